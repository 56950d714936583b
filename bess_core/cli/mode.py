"""`bess mode`: show or choose the control mode of a site, start and stop it, lock it for maintenance."""

from __future__ import annotations

import argparse
from typing import Any

from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json

EXAMPLES = """
  bess mode                          state of the site, its mode, the modes it has
  bess mode self_consumption         choose a mode
  bess mode feed_in_limit on         let a mode act beside the main one; `off` ends that
  bess mode none                     no mode: batteries at rest
  bess mode stop                     to SLEEP: everything at zero, still measuring
  bess mode start                    to RUN
  bess mode maintenance on           lock out remote commands; `off` releases, then `start`
"""
#: No node can have this name: asking for it is refused, and the answer lists what there is.
_NOBODY = '?'


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'mode', 'show or choose the mode, start, stop', __doc__, EXAMPLES, run)
    parser.add_argument('mode', nargs='?', default='', metavar='MODE',
                        help='name of a mode, none, start, stop, or maintenance')
    parser.add_argument('switch', nargs='?', default='', metavar='on|off',
                        help='for maintenance, or to let a mode act beside the main one')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or when no site runs here."""
    if args.switch not in ('', 'on', 'off'):
        hint = f'; to choose a mode: `bess mode {args.switch}`' if args.mode in ('set', 'select', 'mode') else ''
        args.parser.error(f'after {args.mode} comes on or off, not {args.switch!r}{hint}')
    if args.mode == 'maintenance' and not args.switch:
        raise CliError('maintenance needs on or off', 2)
    if args.switch and args.mode in ('', 'none', 'start', 'stop'):
        raise CliError(f'on and off belong to maintenance or the name of a mode, not to {args.mode!r}', 2)
    with open_session(args.timeout) as session:
        site = session.site(args.site)
        if not args.mode:
            return _show(session, site, args.json)
        ok, message = _order(session, site, args)
    values = {'site': site, 'accepted': ok, 'message': message}
    return accepted(ok, f'{site}: {message}', json_values=values if args.json else None)


def _order(session: Session, site: str, args: argparse.Namespace) -> tuple[bool, str]:
    from std_srvs.srv import SetBool, Trigger

    from bess.srv import SetMode

    if args.mode in ('start', 'stop'):
        answer = session.call(f'{site}/site/{args.mode}', Trigger, Trigger.Request(), again=True)
        return answer.success, answer.message
    if args.mode == 'maintenance':
        answer = session.call(f'{site}/site/set_maintenance', SetBool,
                              SetBool.Request(data=args.switch == 'on'), again=True)
        return answer.success, answer.message
    answer = session.call(f'{site}/site/set_mode', SetMode, SetMode.Request(
        mode=args.mode, action={'': SetMode.Request.SELECT, 'on': SetMode.Request.ADD,
                                'off': SetMode.Request.REMOVE}[args.switch]), again=True)
    message = answer.message or ('accepted' if answer.accepted else 'refused')
    missing = [] if answer.accepted else [m for m in answer.available if m not in message]
    return answer.accepted, message + (f'; available: {", ".join(answer.available)}' if missing else '')


def _show(session: Session, site: str, as_json: bool) -> int:
    from bess.srv import SetMode

    from ..observer import SiteObserver
    from .render import STATES
    from .words import local

    observer = SiteObserver(session.node, site, ('bess/msg/SystemState',))

    def look() -> bool:
        observer.discover()
        return site in observer.states

    if not session.until(look):
        raise CliError(f'{site}: no system state within {session.timeout:g} s; has the site a node of type site?')
    available = list(session.call(f'{site}/site/set_mode', SetMode, SetMode.Request(mode=_NOBODY)).available)
    m = observer.states[site].message
    since = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9
    if as_json:
        print_json({'site': site, 'state': STATES[m.state], 'previous': STATES[m.previous], 'since': since,
                    'cause': m.cause, 'mode': m.mode, 'beside': list(m.modes), 'available': available,
                    'missing': list(m.missing)})
        return 0
    print(f'{site}: {STATES[m.state]} since {local(since)} ({m.cause or "no cause given"})')
    if m.missing:
        print(f'missing: {", ".join(m.missing)}')
    beside = f', beside it: {", ".join(m.modes)}' if m.modes else ''
    print(f'mode: {m.mode or "none"}{beside}; available: {", ".join([*available, "none"])}')
    return 0
