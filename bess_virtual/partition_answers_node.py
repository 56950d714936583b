"""Answers of a partition as messages: its ledgers, and energy statements with prices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from math import inf, isfinite, nan
from typing import Any

from bess.msg import EnergyRecord, Ledger, LedgerState
from bess.srv import EnergyStatement
from bess_core.clock import Clock, join_stamp
from bess_core.convert import set_stamp, wall_stamp

from .ledger import Ledger as Account
from .partition import Partition
from .partition_store import RecordFiles
from .prices import MICRO, Prices, costs, given
from .shares import REMOVED, Share
from .statements import Record, Row, add, follow, group

MOST_RECORDS = 5000  # in one answer


def ledger_state(partition: Partition, clock: Clock, name: str, source: str,
                 notices: Sequence[str]) -> LedgerState:
    """`LedgerState` now."""
    period = partition.period
    drift = period.drift()
    message = LedgerState(
        source=source, policy=partition.policy.value, loss_rule=partition.loss_rule.value,
        source_energy=float(partition.source.energy), source_in=float(partition.source_in),
        source_out=float(partition.source_out), counted=period.has_counters, drift_in=float(drift[0]),
        drift_out=float(drift[1]), unassignable=float(partition.unassigned), notices=list(notices))
    message.header.frame_id = name
    set_stamp(message.header.stamp, clock, partition.source.time)
    message.period_start = wall_stamp(period.start if isfinite(period.start) else 0.0)
    accounts: Sequence[Account | None] = partition.ledgers or [None] * len(partition.names)
    message.ledgers = [_ledger(n, s, p, a) for n, s, p, a in zip(
        partition.names, partition.shares, partition.powers, accounts, strict=True)]
    if partition.removed != Account():
        message.ledgers.append(_ledger(REMOVED, Share(0.0, 0.0, 0.0), 0.0, partition.removed))
    return message


def _ledger(name: str, share: Share, power: float, account: Account | None) -> Ledger:
    a = account or Account(*[nan] * 7)
    return Ledger(
        child=name, energy=share.energy, charge_power=share.charge, discharge_power=share.discharge,
        promised_charge_power=share.promised_charge, promised_discharge_power=share.promised_discharge,
        power=float(power), stored=a.energy, energy_in=a.charged, energy_out=a.discharged, moved_in=a.moved_in,
        moved_out=a.moved_out, lost=a.lost, correction=a.correction)


def energy_statement(request: EnergyStatement.Request, files: RecordFiles, unstored: Sequence[Record],
                     default: Callable[[str], Prices | None]) -> EnergyStatement.Response:
    """Answer of `~/energy_statement`. `unstored`: records not in the files yet, the open one last.

    Blocks on the disk; runs beside the executor. `default(currency)` gives the partition's own prices.
    """
    answer = EnergyStatement.Response()
    start = join_stamp(request.start.sec, request.start.nanosec)
    end = join_stamp(request.end.sec, request.end.nanosec) or inf
    if end <= start:
        answer.message = 'the end is not after the start'
        return answer
    try:
        prices = given(request.price, [join_stamp(t.sec, t.nanosec) for t in request.price_times],
                       list(request.prices), request.currency)
        if prices is None:
            prices = default(request.currency)
        records, problems = files.read(start, end)
        stored = {r.sequence for r in records}
        records += [r for r in unstored if start <= r.start < end and r.sequence not in stored]
        known = {name for r in records for name in r.rows}
        if request.child and request.child not in known:
            raise ValueError(f'no record of {request.child!r}; there are: {", ".join(sorted(known)) or "none"}')
        if request.totals:
            answer.records = _totals(records, request.child, prices)
        else:
            answer.records, left = _periods(records, request.child, prices)
            answer.more = left is not None
            if left is not None:
                answer.next = wall_stamp(left)
    except (ValueError, OSError) as error:
        answer.records = []
        answer.message = str(error)
        return answer
    answer.accepted, answer.message = True, '; '.join(problems)
    answer.currency = prices.currency if prices else ''
    return answer


def _periods(records: Sequence[Record], child: str,
             prices: Prices | None) -> tuple[list[EnergyRecord], float | None]:
    out: list[EnergyRecord] = []
    for record in records:
        if out and len(out) + len(record.rows) + 1 > MOST_RECORDS:
            return out, record.start
        price = prices.at(record.start) if prices else None
        money = costs(record, prices) if prices else {}
        for name, row in record.rows.items():
            if child in ('', name):
                out.append(_message(name, record, row, price, money.get(name)))
        if not child:
            out.append(_message('', record, record.source, price, sum(money.values(), Decimal()) if money else None))
    return out, None


def _totals(records: Sequence[Record], child: str, prices: Prices | None) -> list[EnergyRecord]:
    money: dict[str, Decimal] = {}
    used = set()
    for record in records if prices else ():
        used.add(prices.at(record.start))  # type: ignore[union-attr]
        for name, part in costs(record, prices).items():  # type: ignore[arg-type]
            money[name] = money.get(name, Decimal()) + part
    price = used.pop() if len(used) == 1 else None
    out = []
    for start, end, rows in group(records):
        final, gap = all(r.final for r in records), any(r.gap for r in records)
        counted = all(r.counters is not None for r in records)
        whole = Record(0, start, end, {n: follow(r) for n, r in rows.items()}, (0.0,) * 4 if counted else None,
                       gap, final)
        out = [_message(n, whole, row, price, money.get(n)) for n, row in whole.rows.items() if child in ('', n)]
        if not child:
            everything = add(whole.rows.values())._replace(stored=records[-1].source.stored)
            out.append(_message('', whole, everything, price, sum(money.values(), Decimal()) if prices else None))
    return out


def _message(name: str, record: Record, row: Row, price: Decimal | None, cost: Decimal | None) -> EnergyRecord:
    return EnergyRecord(
        child=name, start=wall_stamp(record.start), end=wall_stamp(record.end), energy_in=row.taken / 1000,
        energy_out=row.given / 1000, moved_in=row.moved_in / 1000, moved_out=row.moved_out / 1000,
        lost=row.lost / 1000, correction=row.correction / 1000, stored=row.stored / 1000,
        counted=record.counters is not None, gap=record.gap, final=record.final,
        price=nan if price is None else float(price), cost=nan if cost is None else float(cost.quantize(MICRO)))


def shares_text(share: Any) -> str:
    """For logs."""
    return f'energy {share.energy:.6g}, charge {share.charge:.6g}, discharge {share.discharge:.6g}'
