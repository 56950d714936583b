"""`bess climate`: zones with temperatures, outputs and reasons; force an output for a time, or release it."""

from __future__ import annotations

import argparse
import getpass
from math import nan
from typing import Any

from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json, seconds

EXAMPLES = """
  bess climate                                       all zones
  bess climate force battery fan 1 --for 10m         fan of zone "battery" at full speed for ten minutes
  bess climate force battery heater 0 --for 60
  bess climate release battery fan                   back to automatic
A force ends by itself, and never switches on a heater that is above its limit.
"""
ALLOWED = ('may not', 'may')


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'climate', 'climate zones: show, force, release', __doc__, EXAMPLES, run)
    parser.add_argument('what', nargs='?', choices=['force', 'release'], default=None, help='without: show')
    parser.add_argument('zone', nargs='?', default='', help='name of the zone')
    parser.add_argument('output', nargs='?', default='', help='fan, heater or heater_board')
    parser.add_argument('value', nargs='?', default='', help='fraction 0 to 1, for force')
    parser.add_argument('--for', dest='seconds', type=seconds, default=600.0, metavar='S',
                        help='how long a force lasts, s (default: %(default)g)')
    parser.add_argument('--by', default='', help='who (default: the user)')
    parser.add_argument('--node', default='climate', help='name of the climate node (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or when no site with a climate node runs here."""
    if args.what is not None and not (args.zone and args.output):
        raise CliError(f'{args.what} needs a zone and an output', 2)
    value = nan
    if args.what == 'force':
        try:
            value = float(args.value)
        except ValueError:
            raise CliError(f'force needs a value from 0 to 1, not {args.value!r}', 2) from None
    elif args.value:
        raise CliError('only force takes a value', 2)
    with open_session(args.timeout) as session:
        node = session.full_name(args.node, args.site)
        return _show(session, node, args.json) if args.what is None else _force(session, node, value, args)


def _force(session: Session, node: str, value: float, args: argparse.Namespace) -> int:
    from bess.srv import ForceClimate

    answer = session.call(f'{node}/force', ForceClimate, ForceClimate.Request(
        zone=args.zone, output=args.output, value=value, duration=args.seconds, by=args.by or getpass.getuser()))
    text = f'{args.zone} {args.output}: {answer.message}'
    values = {'zone': args.zone, 'output': args.output, 'accepted': answer.accepted, 'message': answer.message}
    return accepted(answer.accepted, text, json_values=values if args.json else None)


def _show(session: Session, node: str, as_json: bool) -> int:
    from bess.msg import ClimateZone

    from .. import qos
    from .render import QUALITY, number, percent, plain, table

    zones: dict[str, Any] = {}
    topics: dict[str, Any] = {}

    def look() -> None:
        for topic, types in session.node.get_topic_names_and_types():
            if topic.startswith(f'{node}/zone_') and 'bess/msg/ClimateZone' in types and topic not in topics:
                topics[topic] = session.node.create_subscription(
                    ClimateZone, topic, lambda m: zones.__setitem__(m.name, m), qos.STATE)

    if not session.settle(lambda: topics and len(zones) == len(topics), lambda: (len(topics), len(zones)),
                          look=look) and not zones:
        raise CliError(f'no climate zones of {node}; has the site a node of type climate? (--node names it)')
    found = [zones[n] for n in sorted(zones)]
    if as_json:
        print_json([plain(z) for z in found])
        return 0
    print(table(['zone', 'coldest', 'hottest', 'humidity', 'fan', 'heater', 'board', 'quality'], [
        [z.name, number(z.temperature_min, 'degC'), number(z.temperature_max, 'degC'), percent(z.humidity),
         percent(z.fan), percent(z.heater), percent(z.heater_board), QUALITY[z.quality]] for z in found]))
    for z in found:
        print(f'{z.name}: batteries {ALLOWED[z.charge_allowed]} be charged, {ALLOWED[z.discharge_allowed]} be '
              'discharged' + (f'; forced: {z.forced}' if z.forced else '') + (f'; {z.reason}' if z.reason else ''))
    return 0
