"""`bess info`: version, boot, runtime, last changes, last full charge, sleep time and balance history of a site."""

from __future__ import annotations

import argparse
from typing import Any

from .session import add_command, add_json, add_site, open_session, print_json

EXAMPLES = """
  bess info                what is to know
  bess info --json
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'info', 'what is to know about the system', __doc__, EXAMPLES, run)
    parser.add_argument('--node', default='system', help='name of the system node (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when no site with a system node runs here."""
    from bess.srv import GetSystemInfo

    from .render import plain
    from .words import local, span

    with open_session(args.timeout) as session:
        node = session.full_name(args.node, args.site)
        info = session.call(f'{node}/get_info', GetSystemInfo, GetSystemInfo.Request()).info
    if args.json:
        print_json(plain(info))
        return 0

    def at(stamp: Any) -> str:
        return local(stamp.sec + stamp.nanosec * 1e-9)

    rows = [('site', info.site), ('serial', info.serial or '-'), ('version', info.version),
            ('state', f'{info.state or "-"} since {at(info.last_state_change)}'),
            ('mode', f'{info.mode or "none"}, last change {at(info.last_mode_change)}'),
            ('machine started', at(info.boot)), ('software started', f'{at(info.started)}, {info.starts} times so far'),
            ('total runtime', span(info.runtime)), ('of that asleep', span(info.sleep_time)),
            ('SoC', f'{info.soc:.1%}' if info.soc == info.soc else '-'),
            ('SoH', f'{info.soh:.1%}' if info.soh == info.soh else '-'),
            ('last SoC correction', f'{info.soc_correction:+.1%}' if info.soc_correction == info.soc_correction else '-'),  # noqa: E501
            ('last full charge', at(info.last_full_charge)), ('last empty', at(info.last_empty)),
            ('features', ', '.join(info.features) or 'none')]
    for name, value in rows:
        print(f'{name:<20} {value}')
    for stamp, spread in list(zip(info.balance_times, info.balance_spread, strict=True))[-7:]:
        print(f'{"cell spread":<20} {spread * 1e3:.0f} mV on {at(stamp)[:10]}')
    return 0
