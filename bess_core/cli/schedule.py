"""`bess schedule`: ask a battery for a power or current over a time; list and cancel requests."""

from __future__ import annotations

import argparse
import secrets
import time
from typing import Any

from . import words
from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json

EXAMPLES = """
  bess schedule house --power 1500 --for 30m            charge with 1500 W from now
  bess schedule house --power=-2.5kW --start 18:00 --end 20:00
  bess schedule house --current -10 --start +10s --for 1h
  bess schedule house list                              pending and running requests
  bess schedule house at 18:30                          what will run then
  bess schedule house --power 3kW --for 4h --strict     refused when the stored energy cannot serve it
  bess schedule house --power 3kW --start 22:00 --end 02:00 --id car-1   may be repeated: accepted only once
  bess schedule house cancel 7                          one request; `cancel all` takes back all
  bess schedule house cancel --id car-1                 by your own id, also when its answer never came
+ = charging, - = discharging. A later request wins where two overlap. Times are local unless they say
otherwise (2026-05-01T12:00Z).
"""
OWNER_S = 3.0  # a remote battery gives its owner as long as we wait for it, and then says why there was no answer


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'schedule', 'ask a battery for power over a time', __doc__, EXAMPLES, run)
    parser.add_argument('battery', metavar='BATTERY', help='name in the site, or full name /home/house')
    parser.add_argument('action', nargs='?', choices=['list', 'cancel', 'at'], default=None,
                        help='instead of a new request')
    parser.add_argument('value', nargs='?', default='', metavar='ID|TIME', help='event id or all; time')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--power', metavar='W', help='W, + = charging; also 2.5kW (--power=-2.5kW)')
    what.add_argument('--current', metavar='A', help="A, + = charging, at the battery's own voltage")
    parser.add_argument('--start', default='now', metavar='TIME',
                        help='now, +10s, 18:30 (the next one), 2026-05-01T12:00 (default: now)')
    end = parser.add_mutually_exclusive_group()
    end.add_argument('--for', dest='length', metavar='DURATION', help='90 (s), 30m, 1h30m')
    end.add_argument('--end', metavar='TIME', help='as --start; +30m counts from now')
    parser.add_argument('--strict', action='store_true', help='refuse what the stored energy cannot serve')
    parser.add_argument('--id', default='', metavar='TEXT',
                        help='your own id of this request: with the same id it is added only once; cancel: that one')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or not found; 2 for a request that makes no sense."""
    asked = args.power is not None or args.current is not None
    if (args.action is None) != asked:
        raise CliError('give either --power or --current, or one of list, cancel ID, at TIME', 2)
    try:
        if args.action is None:
            return _set(args, *_request(args, time.time()))
        if args.action == 'cancel':
            if bool(args.id) == bool(args.value):
                raise CliError('cancel needs an event id (see `list`), all, or --id TEXT', 2)
            return _cancel(args, 0 if args.id else _event(args.value))
        if bool(args.value) != (args.action == 'at'):
            raise CliError('`at` needs a time' if args.action == 'at' else '`list` takes no value', 2)
        at = words.moment(args.value, time.time()) if args.action == 'at' else 0.0
    except ValueError as error:
        raise CliError(str(error), 2) from error
    return _at(args, at) if args.action == 'at' else _list(args)


def _request(args: argparse.Namespace, now: float) -> tuple[float, float, float]:
    """Value (W or A), start and end (epoch s) of a new request. Raises ValueError, `CliError`."""
    value = (words.quantity(args.power, 'W') if args.power is not None
             else words.quantity(args.current, 'A'))
    start = words.moment(args.start, now)
    if args.length is not None:
        end = start + words.duration(args.length)
    elif args.end is not None:
        end = words.moment(args.end, now)
        if end <= start and not args.end.startswith('+'):
            end = words.moment(args.end, start)  # 22:00 to 02:00 ends on the next day
    else:
        raise CliError('say how long: --for DURATION or --end TIME', 2)
    if end <= start:
        raise CliError(f'the end ({words.local(end)}) is not after the start ({words.local(start)})', 2)
    if not 0.0 <= start <= end < 2**31:
        raise CliError('times must be between 1970 and 2038', 2)
    return value, start, end


def _event(text: str) -> int:
    if text == 'all':
        return 0
    if not text.isdecimal() or not 0 < int(text) < 2**64:
        raise CliError(f'cancel needs an event id (see `list`) or all, not {text!r}; your own ids go with --id', 2)
    return int(text)


def _battery(session: Session, args: argparse.Namespace) -> str:
    return session.full_name(args.battery, args.site)


def _set(args: argparse.Namespace, value: float, start: float, end: float) -> int:
    is_power = args.power is not None
    with open_session(args.timeout) as session:
        from bess.srv import ScheduleSetCurrent, ScheduleSetPower

        from ..convert import wall_stamp

        battery = _battery(session, args)
        kind = ScheduleSetPower if is_power else ScheduleSetCurrent
        # "now" is a zero stamp: the battery's own now, whatever is put right on its clock later.
        request = kind.Request(start=wall_stamp(0.0 if args.start == 'now' else start), end=wall_stamp(end),
                               strict=args.strict,
                               request_id=args.id or f'cli-{secrets.token_hex(6)}', source='bess schedule')
        setattr(request, 'power' if is_power else 'current', float(value))
        answer = session.call(f'{battery}/schedule_set_{"power" if is_power else "current"}', kind, request,
                              longer_s=OWNER_S, again=True)
    unit = 'W' if is_power else 'A'
    hint = f'; {answer.message}' if answer.message else ''
    text = (f'{battery}: event {answer.event_id}: {amount(value, unit)} from {words.local(start)} to '
            f'{words.local(end)} ({words.span(end - start)}){hint}' if answer.accepted
            else f'{battery}: refused: {answer.message}{_relative(args, answer.message)}')
    values = {'battery': battery, 'accepted': answer.accepted, 'event_id': answer.event_id,
              'message': answer.message, 'value': value, 'unit': unit, 'start': start, 'end': end,
              'repeated': answer.repeated, 'runs_out': answer.runs_out.sec + answer.runs_out.nanosec * 1e-9 or None,
              'shortfall': answer.shortfall if answer.shortfall == answer.shortfall else None}
    return accepted(answer.accepted, text, json_values=values if args.json else None)


def _relative(args: argparse.Namespace, reason: str) -> str:
    """What to do when a request that is repeated with its id is taken for another one."""
    if 'another request' not in reason:  # "was used for another request", "another request had the same id"
        return ''
    moving = args.length or f'{args.end}'.startswith('+') or args.start.startswith('+')
    return '; times counted from now differ at each try: repeat it with a fixed --end' if args.id and moving else ''


def _cancel(args: argparse.Namespace, event: int) -> int:
    with open_session(args.timeout) as session:
        from bess.srv import CancelSchedule

        battery = _battery(session, args)
        answer = session.call(f'{battery}/cancel_schedule', CancelSchedule,
                              CancelSchedule.Request(event_id=event, request_ids=[args.id] if args.id else []),
                              longer_s=OWNER_S, again=True)
    text = f'{battery}: {answer.message or "cancelled"} ({answer.cancelled} cancelled)'
    values = {'battery': battery, 'accepted': answer.accepted, 'cancelled': answer.cancelled,
              'message': answer.message}
    return accepted(answer.accepted, text, json_values=values if args.json else None)


def _at(args: argparse.Namespace, at: float) -> int:
    with open_session(args.timeout) as session:
        from bess.srv import ScheduleAt

        from ..convert import wall_stamp

        battery = _battery(session, args)
        answer = session.call(f'{battery}/schedule_at', ScheduleAt, ScheduleAt.Request(at=wall_stamp(at)),
                              longer_s=OWNER_S)
    if answer.message:
        return _unknown(battery, answer.message, args)
    unit = 'W' if answer.is_power else 'A'
    until = answer.until.sec + answer.until.nanosec * 1e-9
    if args.json:
        print_json({'battery': battery, 'at': at, 'active': answer.active, 'event_id': answer.event_id or None,
                    'value': answer.value if answer.active else None, 'unit': unit if answer.active else None,
                    'power': answer.power if answer.power == answer.power else None, 'source': answer.source or None,
                    'owner': answer.owner or None, 'until': until or None})
        return 0
    who = f'for {answer.owner}' if answer.owner else f'event {answer.event_id}'
    what = f'{amount(answer.value, unit)} ({who})' if answer.active else 'no request'
    print(f'{battery} at {words.local(at)}: {what}{f", until {words.local(until)}" if until else ""}')
    return 0


def _list(args: argparse.Namespace) -> int:
    with open_session(args.timeout) as session:
        from bess.srv import ListSchedule

        from .render import plain, table

        battery = _battery(session, args)
        answer = session.call(f'{battery}/list_schedule', ListSchedule, ListSchedule.Request(), longer_s=OWNER_S)
    if answer.message:
        return _unknown(battery, answer.message, args)
    entries = [plain(e) for e in answer.entries]
    if args.json:
        print_json({'battery': battery, 'entries': entries})
        return 0
    if not entries:
        print(f'{battery}: no requests')
        return 0
    print(table(['event', 'value', 'start (local time)', 'end', 'running', 'asked by', 'id'], [
        [str(e['event_id']), amount(e['value'], 'W' if e['is_power'] else 'A'), words.local(e['start']),
         words.local(e['end']), 'yes' if e['running'] else 'no', e['source'] or '-', e['request_id'] or '-']
        for e in entries]))
    return 0


def _unknown(battery: str, why: str, args: argparse.Namespace) -> int:
    return accepted(False, f'{battery}: not known: {why}', json_values={
        'battery': battery, 'accepted': False, 'message': why} if args.json else None)


def amount(value: float, unit: str) -> str:
    """`charge 1500 W`, `discharge 10 A`, `rest (0 W)`."""
    if value == 0.0:
        return f'rest (0 {unit})'
    return f'{"charge" if value > 0 else "discharge"} {abs(value):.15g} {unit}'
