"""`bess watch`: the running sites as a live table, the messages of a topic, or the cells of a pack."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from .session import (
    CliError,
    Session,
    absolute,
    add_command,
    add_json,
    add_site,
    count,
    nearest,
    open_session,
    print_json,
    seconds,
)
from .status import observe, snapshot

EXAMPLES = """
  bess watch                                  live table until Ctrl-C
  bess watch --once                           one look
  bess watch --json --period 5                a line of JSON each 5 s
  bess watch --topic /home/meter/status       each message as a line of JSON
  bess watch --topic home/house/setpoint --count 3 --for 10
  bess watch --cells bms_a                    cell voltages (V), temperatures (degC), balancing
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'watch', 'live values of the running sites', __doc__, EXAMPLES, run)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--topic', metavar='NAME', help='print each message of a topic as a line of JSON')
    what.add_argument('--cells', metavar='NAME', help='cells of the pack of this node')
    parser.add_argument('--once', action='store_true', help='one table or message, then end')
    parser.add_argument('--count', type=count, default=0, metavar='N', help='end after N tables or messages')
    parser.add_argument('--for', dest='seconds', type=seconds, default=0.0, metavar='S',
                        help='end after this time, s')
    parser.add_argument('--period', type=seconds, default=1.0, metavar='S',
                        help='time between two tables, s (default: %(default)g)')
    add_site(parser)
    add_json(parser, 'each table as a line of JSON')


def run(args: argparse.Namespace) -> int:
    """0 when something was seen, 1 when there is nothing to see."""
    if args.once:
        args.count = 1
    with open_session(args.timeout) as session:
        if args.topic:
            return _watch_topic(session, args)
        return _watch_cells(session, args) if args.cells else _watch_table(session, args)


# -- tables --------------------------------------------------------------------------------------


def _watch_table(session: Session, args: argparse.Namespace) -> int:
    from .render import brief, site_table

    observer, silent = observe(session, args.site)
    full = sys.stdout.isatty() or args.count == 1

    def show() -> str | None:
        observer.discover()
        if args.json:
            print_json(snapshot(observer, silent))
            return None
        return site_table(observer) if full else f'{time.strftime("%H:%M:%S")} {brief(observer)}'

    return _repeat(session, args, show)


def _watch_cells(session: Session, args: argparse.Namespace) -> int:
    from ..observer import SiteObserver

    name = session.full_name(args.cells, args.site)
    observer = SiteObserver(session.node, '', ('bess/msg/CellArray',))

    def look() -> bool:
        observer.discover()
        return name in observer.cells

    if not session.until(look):
        with_cells = [t.rsplit('/', 1)[0] for t, types in session.node.get_topic_names_and_types()
                      if 'bess/msg/CellArray' in types and session.node.count_publishers(t)]
        if name in with_cells:
            raise CliError(f'{name}: no cell values within {args.timeout:g} s')
        raise CliError(f'{name} publishes no cells; nodes that do: '
                       f'{", ".join(nearest(name, with_cells)) or "none"}')

    def show() -> str | None:
        seen = observer.cells[name]
        if args.json:
            from .render import plain

            print_json({'name': name, 'age_s': round(time.monotonic() - seen.at, 3), **plain(seen.message)})
            return None
        return cell_table(name, seen.message, time.monotonic() - seen.at)

    return _repeat(session, args, show)


def cell_table(name: str, message: Any, age: float) -> str:
    """Cells as text: voltage in V, difference to the mean in mV, balancing; then temperatures in degC."""
    from .render import number, table

    volts = list(message.voltages)
    known = [v for v in volts if not math.isnan(v)]
    mean = sum(known) / len(known) if known else float('nan')
    spread = (max(known) - min(known)) * 1e3 if known else float('nan')
    bleeding = list(message.balancing)
    rows = [[str(i), number(v, 'V', 3), number((v - mean) * 1e3, 'mV', 0),
             'balancing' if i < len(bleeding) and bleeding[i] else '']
            for i, v in enumerate(volts)]
    temperatures = ', '.join(number(t, 'degC') for t in message.temperatures) or '-'
    return '\n'.join([
        f'{name}: {len(volts)} cells, mean {number(mean, "V", 3)}, spread {number(spread, "mV", 0)}, '
        f'age {number(age, "s")}',
        table(['cell', 'voltage', 'to mean', ''], rows),
        f'temperatures: {temperatures}'])


def _repeat(session: Session, args: argparse.Namespace, show: Callable[[], str | None]) -> int:
    """Call `show` on a fixed grid; on a terminal the last text is replaced."""
    started = time.monotonic()
    redraw = sys.stdout.isatty() and args.count != 1
    lines = shown = 0
    while True:
        text = show()
        if text is not None:
            print((f'\x1b[{lines}F\x1b[J' if lines and redraw else '') + text, flush=True)
            lines = text.count('\n') + 1
        shown += 1
        if args.count and shown >= args.count:
            return 0
        if args.seconds and time.monotonic() + args.period > started + args.seconds:
            return 0
        session.until(lambda: False, max(0.0, started + shown * args.period - time.monotonic()))


# -- topics --------------------------------------------------------------------------------------


def _watch_topic(session: Session, args: argparse.Namespace) -> int:
    from .fields import FieldError, find_class
    from .render import plain

    topic = absolute(args.topic)
    types: list[str] = []

    def look() -> bool:
        types[:] = dict(session.node.get_topic_names_and_types()).get(topic, [])
        return bool(types) and session.node.count_publishers(topic) > 0

    if not session.until(look) and not types:
        known = [t for t, _ in session.node.get_topic_names_and_types()]
        raise CliError(f'no topic {topic} within {args.timeout:g} s; close: '
                       f'{", ".join(nearest(topic, known)) or "none"}')
    if len(types) > 1:
        raise CliError(f'{topic} has several types: {", ".join(types)}')
    try:
        cls = find_class(types[0], 'msg')
    except FieldError as error:
        raise CliError(str(error)) from error
    seen = 0

    def on_message(message: Any) -> None:
        nonlocal seen
        # Several may be handled before the count is looked at.
        if not args.count or seen < args.count:
            seen += 1
            print_json(plain(message))

    subscription = session.node.create_subscription(cls, topic, on_message, _matching_qos(session, topic))
    # Counted messages have a deadline, an endless watch waits for the first one as long as it takes.
    limit = args.seconds or (args.timeout if args.count == 1 else 1e9)
    session.until(lambda: args.count and seen >= args.count, limit)
    session.node.destroy_subscription(subscription)
    if not seen or (args.count and seen < args.count):
        raise CliError(f'{topic}: {seen or "no"} message{"s" if seen > 1 else ""} within {limit:g} s')
    return 0


def _matching_qos(session: Session, topic: str) -> Any:
    """The strictest profile that connects to all publishers of a topic."""
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    offers = [i.qos_profile for i in session.node.get_publishers_info_by_topic(topic)]
    reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offers)
    latched = all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
    return QoSProfile(
        depth=100,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched and offers else DurabilityPolicy.VOLATILE)
