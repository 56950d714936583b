"""`bess tree`: what the batteries of a site are made of, with live values."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .session import CliError, Session, add_command, add_json, add_site, open_session, print_json, seconds

EXAMPLES = """
  bess tree
  bess tree --watch                  again and again until Ctrl-C
  bess tree --json | jq '.roots[].name'
power: + = charging; limits are the powers that the battery allows now, with the reasons
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'tree', 'topology of the batteries with live values', __doc__, EXAMPLES, run)
    parser.add_argument('--watch', action='store_true', help='again and again until Ctrl-C')
    parser.add_argument('--for', dest='seconds', type=seconds, default=0.0, metavar='S', help='watch: end after this')
    parser.add_argument('--period', type=seconds, default=1.0, metavar='S', help='watch: time between two (default 1)')
    add_site(parser)
    add_json(parser, 'the tree as one JSON object (watch: a line each); unknown = null')


def run(args: argparse.Namespace) -> int:
    """0; 1 when no site runs here or it has no administrator."""
    with open_session(args.timeout) as session:
        site = session.site(args.site)
        observer = _observe(session, site)
        started, lines = time.monotonic(), 0
        while True:
            values = _tree(observer, site)
            if args.json:
                print_json({'site': site, 'revision': observer.topologies[site].message.revision,
                            'roots': [b.to_dict() for b in values]})
            else:
                text = draw(values)
                back = f'\x1b[{lines}F\x1b[J' if lines and sys.stdout.isatty() else ''
                print(back + text, flush=True)
                lines = text.count('\n') + 1
            left = args.seconds - (time.monotonic() - started) if args.seconds else args.period
            if not args.watch or left <= 0.0:
                return 0
            observer.discover()
            session.until(lambda: False, min(args.period, left))


def _observe(session: Session, site: str) -> Any:
    """Topology and the first status of each of its batteries, as far as they come in time."""
    from ..observer import SiteObserver

    observer = SiteObserver(session.node, site, ('bess/msg/Topology', 'bess/msg/BatteryStatus',
                                                 'bess/msg/InverterStatus'))
    if not session.settle(lambda: site in observer.topologies, lambda: 0, look=observer.discover, quiet=0.0):
        raise CliError(f'{site}: no topology within {session.timeout:g} s (the site setting administration is off?)')

    def silent() -> list[str]:
        observer.discover()
        heard = {**observer.batteries, **observer.converters}
        return [n.name for n in observer.topologies[site].message.nodes
                if n.role in ('battery', 'bms', 'converter') and f'{site}/{n.name}' not in heard]

    session.until(lambda: not silent())
    return observer


def _tree(observer: Any, site: str) -> Any:
    from ..topology_tree import tree

    heard = {**observer.batteries, **observer.converters}
    return tree(observer.topologies[site].message.nodes,
                {name.rsplit('/', 1)[-1]: seen.message for name, seen in heard.items()})


def draw(roots: Any) -> str:
    """The tree for a terminal."""
    from ..topology_tree import rows
    from .render import percent, watts
    from .session import text_table

    table = []
    for stem, b in rows(roots):
        state = b.quality or ('-' if b.role != 'partition' else '')
        limit = f'{watts(-b.max_discharge_power)} .. {watts(b.max_charge_power)}' if b.quality else ''
        table.append([f'{stem}{b.name}', b.type, watts(b.power) if b.quality else '',
                      percent(b.soc) if b.quality and b.role != 'converter' else '', limit, state,
                      '; '.join(b.limits[:2])])
    return text_table(['battery', 'type', 'power', 'SoC', 'limits', 'quality', 'reasons'], table)
