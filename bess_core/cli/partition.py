"""`bess partition`: the parts of a divided battery: list, add, resize, remove, and who used how much energy."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from math import isnan, nan
from pathlib import Path
from typing import Any

from . import partition_periods as periods
from . import words
from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json

EXAMPLES = """
  bess partition list                                   all partitions with their ledgers
  bess partition add split car --share 0.2 --from grid  a new child takes 20 % from grid
  bess partition resize split car --energy 0.1          what it gives up is unassigned
  bess partition remove split car --to house            share and energy go to house
  bess partition statement split --from 2026-05-01T00:00Z --to 2026-06-01T00:00Z
  bess partition statement house --csv may.csv --price 0.30 --currency EUR
  bess partition statement split --per day --from 2026-03-01 --to 2026-04-01 --csv march.csv
Energies in kWh. `in` and `out` went through the source's terminals, `moved` between children. Times are local
unless they say otherwise (2026-05-01T12:00Z); statements print UTC, with --per local times with their offset (a day
on which the clock is changed has 23 or 25 h). Cost: + = the child pays.
"""
COLUMNS = ('start', 'end', 'child', 'in_kwh', 'out_kwh', 'moved_in_kwh', 'moved_out_kwh', 'lost_kwh', 'correction_kwh',
           'stored_kwh', 'basis', 'gap', 'final')
MONEY = ('price_per_kwh', 'cost', 'currency')
ENERGIES = ('energy_in', 'energy_out', 'moved_in', 'moved_out', 'lost', 'correction', 'stored')
SHARES = (('energy', 'energy'), ('charge', 'charge_power'), ('discharge', 'discharge_power'))


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'partition', 'parts of a divided battery and their energy', __doc__, EXAMPLES, run)
    parser.add_argument('action', choices=['list', 'add', 'resize', 'remove', 'statement'])
    parser.add_argument('name', nargs='?', default='', metavar='PARTITION', help='statement also takes a child')
    parser.add_argument('child', nargs='?', default='', metavar='CHILD')
    parser.add_argument('--share', type=float, metavar='F', help='fraction of energy and power, 0 to 1')
    for word, _ in SHARES:
        parser.add_argument(f'--{word}', type=float, metavar='F', help=f'fraction of the {word}, instead of --share')
    parser.add_argument('--promise-charge', type=float, metavar='W', help='promised power (policy guaranteed)')
    parser.add_argument('--promise-discharge', type=float, metavar='W', help='promised power (policy guaranteed)')
    parser.add_argument('--from', dest='begin', default='', metavar='SIBLING|TIME',
                        help='add, resize: who gives or takes the difference (default: the unassigned part); '
                             'statement: first time')
    parser.add_argument('--to', default='', metavar='HEIR|TIME',
                        help='remove: sibling or `unassigned` that takes share and energy; statement: end')
    parser.add_argument('--force', action='store_true', help='remove: also while it is in use')
    parser.add_argument('--per', choices=periods.UNITS, help='statement: added up per hour, day, month or year (local)')
    parser.add_argument('--csv', metavar='FILE', help='statement: every period as CSV; - = standard output')
    parser.add_argument('--price', type=float, metavar='P', help='per kWh')
    parser.add_argument('--prices', type=Path, metavar='FILE', help='CSV with columns time and price')
    parser.add_argument('--currency', default='', metavar='CUR', help='of the price, e.g. EUR')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or not found; 2 for a request that makes no sense."""
    if args.action != 'list' and not args.name:
        raise CliError(f'{args.action} needs the name of a partition', 2)
    if args.action in ('add', 'resize', 'remove') and not args.child:
        raise CliError(f'{args.action} needs the name of a child', 2)
    if args.action == 'remove' and not args.to:
        raise CliError('say who takes its energy: --to SIBLING or --to unassigned', 2)
    if args.action == 'statement':
        return _statement(args)
    with open_session(args.timeout) as session:
        if args.action == 'list':
            return _list(session, args)
        return _change(session, args)


def _partitions(session: Session, args: argparse.Namespace) -> list[str]:
    """Full names of the partitions of the site."""
    site = session.site(args.site)
    found = lambda: sorted(n.removesuffix('/get_ledgers') for n in session.services('bess/srv/GetLedgers')  # noqa: E731
                           if n.startswith(f'{site}/'))
    session.settle(found, found)
    if not found():
        raise CliError(f'no partition in {site}')
    return found()


def _ledgers(session: Session, name: str) -> Any:
    from bess.srv import GetLedgers

    return session.call(f'{name}/get_ledgers', GetLedgers, GetLedgers.Request())


def _list(session: Session, args: argparse.Namespace) -> int:
    from .render import plain, table

    names = [session.full_name(args.name, args.site)] if args.name else _partitions(session, args)
    states = {name: _ledgers(session, name) for name in names}
    if args.json:
        print_json({name: {**plain(a.state), 'message': a.message} for name, a in states.items()})
        return 0
    for name, answer in states.items():
        s = answer.state
        basis = 'its counters' if s.counted else 'integrated power'
        print(f'{name}: {s.source} divided, policy {s.policy}, losses by {s.loss_rule}; '
              f'in {_kwh(s.source_in)}, out {_kwh(s.source_out)} kWh by {basis}')
        for text in [*s.notices, *filter(None, [answer.message])]:
            print(f'  ! {text}')
        print(table(['child', 'energy', 'charge', 'discharge', 'promised W', 'stored kWh', 'in', 'out', 'moved in',
                     'moved out', 'lost', 'correction'], [
            [x.child, f'{x.energy:.1%}', f'{x.charge_power:.1%}', f'{x.discharge_power:.1%}',
             f'{x.promised_charge_power:g}/{x.promised_discharge_power:g}',
             *(_kwh(v) for v in (x.stored, x.energy_in, x.energy_out, x.moved_in, x.moved_out, x.lost, x.correction))]
            for x in s.ledgers]))
    return 0


def _change(session: Session, args: argparse.Namespace) -> int:
    from bess.srv import AddChild, GetLedgers, RemoveChild, ResizeChild

    name = session.full_name(args.name, args.site)
    look = f'{name}/get_ledgers', GetLedgers
    given = {field: getattr(args, word) if getattr(args, word) is not None else args.share for word, field in SHARES}
    promises = {'promised_charge_power': args.promise_charge, 'promised_discharge_power': args.promise_discharge}
    if args.action == 'add':
        if None in given.values():
            raise CliError('give --share, or all of --energy, --charge and --discharge', 2)
        request = AddChild.Request(name=args.child, donor=args.begin, **given,
                                   **{k: v or 0.0 for k, v in promises.items()})
        answer = session.call(f'{name}/add_child', AddChild, request, after=look)
    elif args.action == 'resize':
        values = {k: nan if v is None else v for k, v in (given | promises).items()}
        if all(isnan(v) for v in values.values()):
            raise CliError('nothing to change: give --share, --energy, --charge, --discharge or a promise', 2)
        answer = session.call(f'{name}/resize_child', ResizeChild,
                              ResizeChild.Request(name=args.child, partner=args.begin, **values), after=look)
    else:
        answer = session.call(f'{name}/remove_child', RemoveChild,
                              RemoveChild.Request(name=args.child, heir=args.to, force=args.force), after=look)
    text = f'{name}: {answer.message}' if answer.accepted else f'{name}: refused: {answer.message}'
    values = {'partition': name, 'child': args.child, 'accepted': answer.accepted, 'message': answer.message}
    return accepted(answer.accepted, text, json_values=values if args.json else None)


# -- statements ------------------------------------------------------------------------------------


def _statement(args: argparse.Namespace) -> int:
    now = time.time()
    try:
        start = words.moment(args.begin, now) if args.begin else 0.0
        end = words.moment(args.to, now) if args.to else 0.0
    except ValueError as error:
        raise CliError(str(error), 2) from error
    if end and end <= start:
        raise CliError('the end is not after the start', 2)
    if args.price is not None and args.prices:
        raise CliError('give --price or --prices, not both', 2)
    if (args.price is not None or args.prices) and not args.currency:
        raise CliError('a price needs its --currency', 2)
    times, prices = _prices(args)
    with open_session(args.timeout) as session:
        from bess.srv import EnergyStatement

        from ..convert import wall_stamp

        name, child = _whose(session, args)
        request = EnergyStatement.Request(
            child=child, start=wall_stamp(start), end=wall_stamp(end), totals=not (args.csv or args.per),
            price=nan if args.price is None else args.price, currency=args.currency,
            price_times=[wall_stamp(t) for t in times], prices=prices)
        records: list[Any] = []
        warnings: list[str] = []
        while True:
            answer = session.call(f'{name}/energy_statement', EnergyStatement, request)
            if not answer.accepted:
                raise CliError(f'{name}: refused: {answer.message}')
            records += answer.records
            warnings += [answer.message] if answer.message else []
            if not answer.more:
                break
            request.start = answer.next
    for text in dict.fromkeys(warnings):
        print(f'bess partition: {text}', file=sys.stderr)
    if args.per:
        records = periods.add_up(records, args.per)
    at = local if args.per else utc
    if args.csv:
        _write_csv(args.csv, records, answer.currency, at)
        return 0
    rows = [row(r, answer.currency, at) for r in records]
    if args.json:
        print_json({'partition': name, 'currency': answer.currency or None, 'records': rows})
        return 0
    if args.per:
        _print_periods(name, rows, answer.currency)
    else:
        _print(name, records, answer.currency)
    return 0


def _prices(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    if not args.prices:
        return [], []
    from .session import load_plugin

    try:
        read = load_plugin('bess.statements', 'prices')(args.prices, args.currency)
    except (OSError, ValueError) as error:
        raise CliError(f'{args.prices}: {error}', 2) from error
    return list(read.times), [float(v) for v in read.values]


def _whose(session: Session, args: argparse.Namespace) -> tuple[str, str]:
    """Full name of the partition and name of the child ('' = all) that is meant."""
    full = session.full_name(args.name, args.site)
    partitions = _partitions(session, args)
    if full in partitions:
        return full, args.child
    wanted = full.rsplit('/', 1)[-1]
    for name in partitions:
        if any(x.child == wanted for x in _ledgers(session, name).state.ledgers):
            return name, wanted
    raise CliError(f'{full} is neither a partition nor a child of one; partitions: {", ".join(partitions)}')


def _kwh(wh: float) -> str:
    return '-' if isnan(wh) else f'{wh / 1000:.3f}'


def utc(stamp: Any) -> str:
    """ISO 8601 in UTC with its offset, to the millisecond where there is one."""
    at = datetime.fromtimestamp(stamp.sec, UTC).replace(microsecond=stamp.nanosec // 1000)
    return at.isoformat(timespec='milliseconds' if stamp.nanosec else 'seconds')


def local(stamp: Any) -> str:
    """ISO 8601 in local time with its offset, to the second."""
    return datetime.fromtimestamp(stamp.sec, UTC).astimezone().isoformat(timespec='seconds')


def row(record: Any, currency: str, at: Callable[[Any], str] = utc) -> dict[str, str]:
    """One line of a statement as texts; energies in kWh with six decimals (whole mWh), so that sums are exact."""
    out = {'start': at(record.start), 'end': at(record.end), 'child': record.child or 'source'}
    out |= {column: f'{round(getattr(record, field) * 1000) / 1e6:.6f}'
            for column, field in zip(COLUMNS[3:10], ENERGIES, strict=True)}
    out |= {'basis': 'counter' if record.counted else 'power', 'gap': 'yes' if record.gap else 'no',
            'final': 'yes' if record.final else 'no'}
    if currency:
        out |= {'price_per_kwh': '' if isnan(record.price) else f'{record.price:.10g}',
                'cost': '' if isnan(record.cost) else f'{record.cost:.6f}', 'currency': currency}
    return out


def _write_csv(target: str, records: list[Any], currency: str, at: Callable[[Any], str]) -> None:
    with ExitStack() as stack:
        try:
            out = sys.stdout if target == '-' else stack.enter_context(
                open(target, 'w', newline='', encoding='utf-8'))
        except OSError as error:
            raise CliError(f'{target}: {error.strerror}') from error
        writer = csv.DictWriter(out, [*COLUMNS, *(MONEY if currency else ())], lineterminator='\n')
        writer.writeheader()
        writer.writerows(row(r, currency, at) for r in records)


def _print(name: str, records: list[Any], currency: str) -> None:
    from .render import table

    if not records:
        print(f'{name}: no records')
        return
    print(f'{name}: {utc(records[0].start)} to {utc(records[0].end)}'
          + ('' if records[0].final else ', the last period is still open')
          + (', with gaps in which nobody booked' if records[0].gap else ''))
    header = ['child', 'in kWh', 'out', 'moved in', 'moved out', 'lost', 'correction', 'stored']
    print(table(header + ([f'cost {currency}'] if currency else []), [
        [r.child or 'source', *(_kwh(getattr(r, f)) for f in ENERGIES), *([f'{r.cost:.2f}'] if currency else [])]
        for r in records]))


def _print_periods(name: str, rows: list[dict[str, str]], currency: str) -> None:
    from .render import table

    if not rows:
        print(f'{name}: no records')
        return
    notes = {'gap': 'gap', 'final': 'open'}
    header = ['from', 'to', 'child', 'in kWh', 'out', 'moved in', 'moved out', 'lost', 'correction', 'stored', '']
    print(table(header + ([f'cost {currency}'] if currency else []), [
        [r['start'], r['end'], r['child'], *(f'{float(r[c]):.3f}' for c in COLUMNS[3:10]),
         ' '.join(text for key, text in notes.items() if r[key] == ('yes' if key == 'gap' else 'no')),
         *([f'{float(r["cost"]):.2f}' if r['cost'] else '-'] if currency else [])] for r in rows]))
