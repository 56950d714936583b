"""`bess emergency`: stop everything now; reset the emergency stop on the machine itself."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path
from typing import Any

from .session import CliError, accepted, add_command, add_json, add_site, open_session, print_json

EXAMPLES = """
  bess emergency                     is it in force, since when, why
  bess emergency stop "smoke in the cabinet"
  bess emergency reset               on the machine of the site only; then `bess mode start`
The reset reads a secret of this machine from the state folder of the site. Nobody can reset from afar.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'emergency', 'emergency stop and its reset', __doc__, EXAMPLES, run)
    parser.add_argument('what', nargs='?', choices=['stop', 'reset'], default=None, help='without: show')
    parser.add_argument('cause', nargs='?', default='', help='why, for stop')
    parser.add_argument('--state', type=Path, default=None, help='state folder of the site, for reset '
                        '(default: $XDG_STATE_HOME/bess/<site>)')
    parser.add_argument('--by', default='', help='who (default: the user)')
    parser.add_argument('--node', default='emergency_stop', help='name of the node (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused, stopped (show) or no site runs here."""
    from bess.srv import ResetEmergencyStop, TriggerEmergencyStop

    by = args.by or getpass.getuser()
    with open_session(args.timeout) as session:
        node = session.full_name(args.node, args.site)
        if args.what is None:
            return _show(session, node, args.json)
        if args.what == 'stop':
            answer = session.call(f'{node}/trigger', TriggerEmergencyStop,
                                  TriggerEmergencyStop.Request(cause=args.cause, by=by))
        else:
            token = _token(args.state or _default(node))
            answer = session.call(f'{node}/reset', ResetEmergencyStop, ResetEmergencyStop.Request(token=token, by=by))
    values = {'node': node, 'accepted': answer.accepted, 'message': answer.message}
    return accepted(answer.accepted, f'{node}: {answer.message}', json_values=values if args.json else None)


def _default(node: str) -> Path:
    from .up import default_state

    return default_state(node.strip('/').split('/')[0])


def _token(folder: Path) -> str:
    from ..emergency import TOKEN

    try:
        return (folder / TOKEN).read_text(encoding='ascii').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f'{folder / TOKEN} cannot be read ({error}); reset on the machine of the site, as a user who '
                       'may read its state folder, and name that with --state') from error


def _show(session: Any, node: str, as_json: bool) -> int:
    from bess.msg import EmergencyStop

    from .. import qos
    from .render import plain
    from .words import local

    heard: list[Any] = []
    topic = f'{node.rsplit("/", 1)[0]}/emergency_stop'
    session.node.create_subscription(EmergencyStop, topic, heard.append, qos.STATE)
    if not session.until(lambda: heard):
        raise CliError(f'nobody publishes {topic}')
    state = heard[-1]
    if as_json:
        print_json(plain(state))
        return 1 if state.active else 0
    since = local(state.header.stamp.sec + state.header.stamp.nanosec * 1e-9)
    print(f'in force since {since}, by {state.source}: {state.cause}' if state.active else
          f'not in force{f"; {state.cause} ({since})" if state.cause else ""}')
    if state.input_configured:
        print(f'input: {"pressed or not readable" if state.input_pressed else "released"}')
    return 1 if state.active else 0
