"""`bess events`: what happened on the site, by time, source, kind, severity and text."""

from __future__ import annotations

import argparse
import time
from typing import Any

from .session import CliError, add_command, add_json, add_site, count, open_session, print_json, text_table

EXAMPLES = """
  bess events                              the newest 100
  bess events --last 2h --severity error   errors and worse of the last two hours
  bess events --source 'bms_*' --kind fault --text imbalance
  bess events --from 2026-05-01T00:00 --to 2026-05-02T00:00 --limit 1000 --json
"""
LEVELS = ('info', 'warning', 'error', 'critical')


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'events', 'search the event log', __doc__, EXAMPLES, run)
    parser.add_argument('--last', metavar='TIME', default='', help='only the last, e.g. 90, 30m, 2h, 7d')
    parser.add_argument('--from', dest='start', metavar='TIME', default='', help='from this moment on')
    parser.add_argument('--to', dest='end', metavar='TIME', default='', help='before this moment')
    parser.add_argument('--source', default='', help='node, with * and ?')
    parser.add_argument('--kind', default='', help='fault, state, mode, emergency, parameter, climate, test ...')
    parser.add_argument('--severity', choices=LEVELS, default='info', help='this or worse')
    parser.add_argument('--text', default='', help='part of the text')
    parser.add_argument('--limit', type=count, default=100, help='at most so many, the newest (default: %(default)d)')
    parser.add_argument('--node', default='event_log', help='name of the event log node (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when the log cannot be read or no site runs here."""
    from bess.srv import QueryEvents

    from ..convert import wall_stamp
    from . import words
    from .render import plain

    if args.last and args.start:
        raise CliError('--last and --from exclude each other', 2)
    now = time.time()
    try:
        start = now - words.duration(args.last) if args.last else words.moment(args.start, now) if args.start else 0.0
        end = words.moment(args.end, now) if args.end else 0.0
    except ValueError as error:
        raise CliError(str(error), 2) from None
    request = QueryEvents.Request(start=wall_stamp(start), end=wall_stamp(end), source=args.source, kind=args.kind,
                                  min_severity=LEVELS.index(args.severity), text=args.text, limit=args.limit)
    with open_session(args.timeout) as session:
        answer = session.call(f'{session.full_name(args.node, args.site)}/query', QueryEvents, request)
    if not answer.accepted:
        raise CliError(answer.message)
    if args.json:
        print_json([plain(e) for e in answer.events])
        return 0
    if not answer.events:
        print('no events')
        return 0
    print(text_table(['time (local)', 'severity', 'kind', 'source', 'what', 'text'], [
        [words.local(e.header.stamp.sec + e.header.stamp.nanosec * 1e-9), LEVELS[min(e.severity, 3)], e.kind, e.source,
         f'{e.name} {e.change}'.strip(), e.text] for e in answer.events]))
    return 0
