"""Energy records of a partition added up per hour, day, month or year of local time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from math import fsum, nan
from typing import Any, NamedTuple

UNITS = ('hour', 'day', 'month', 'year')
SUMMED = ('energy_in', 'energy_out', 'moved_in', 'moved_out', 'lost', 'correction', 'cost')


class Period(NamedTuple):
    """The records of one child that begin in one period; fields as in `bess/msg/EnergyRecord`."""

    child: str
    start: Any  # of the first record
    end: Any  # of the last record
    energy_in: float
    energy_out: float
    moved_in: float
    moved_out: float
    lost: float
    correction: float
    cost: float
    stored: float  # at the end
    counted: bool
    gap: bool
    final: bool
    price: float  # nan when it changed


def period_of(epoch: float, unit: str) -> tuple[int, ...]:
    """The hour, day, month or year of local time in which `epoch` (s) lies. The two hours of the night on which the
    clock is put back differ by their offset."""
    at = datetime.fromtimestamp(epoch).astimezone()
    if unit != 'hour':
        return (at.year, at.month, at.day)[:3 - ('day', 'month', 'year').index(unit)]
    return at.year, at.month, at.day, at.hour, int(at.utcoffset().total_seconds())  # type: ignore[union-attr]


def add_up(records: Iterable[Any], unit: str) -> list[Period]:
    """One `Period` per child and period, in order of time, the source ('') last. A record belongs to the period in
    which it begins (records are at most one `statement_period` long, gaps excepted), so sums over
    periods are those over records."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for record in records:
        start = record.start.sec + record.start.nanosec * 1e-9
        groups.setdefault((period_of(start, unit), record.child), []).append(record)
    order = {period: i for i, period in enumerate(dict.fromkeys(period for period, _ in groups))}
    ordered = sorted(groups.items(), key=lambda one: (order[one[0][0]], one[0][1] == ''))
    return [_sum(child, group) for (_, child), group in ordered]


def _sum(child: str, group: list[Any]) -> Period:
    prices = {r.price for r in group}
    return Period(
        child=child, start=group[0].start, end=group[-1].end, stored=group[-1].stored,
        counted=all(r.counted for r in group), gap=any(r.gap for r in group), final=all(r.final for r in group),
        price=prices.pop() if len(prices) == 1 else nan,
        **{name: fsum(getattr(r, name) for r in group) for name in SUMMED})
