"""Energy statements: who took in, gave out, moved and lost how much in which period. Pure.

A partition books into an `OpenPeriod`; closing it gives a `Record` that never changes again. Records hold
whole milliwatt-hours. The source's energies of a record are the differences of its own counters (of the
integrated power where it has none), and each column is divided so that the children add up to the source
exactly; so does every sum of records. A record begins where the one before it ended, so that the
differences add up to the difference of the counter, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, fsum, isfinite, isnan, nan
from typing import Any, NamedTuple

from bess_virtual.ledger import Flow, Ledger

PERIOD_S = 900.0
SAME_TIME_S = 2.0  # two clocks that differ by less agree


class Row(NamedTuple):
    """Energies of one account over one period, mWh (`stored` at its end)."""

    taken: int = 0
    given: int = 0
    moved_in: int = 0
    moved_out: int = 0
    lost: int = 0
    correction: int = 0
    stored: int = 0

    @property
    def net(self) -> int:
        """What came in less what went out, also from and to siblings."""
        return self.taken - self.given + self.moved_in - self.moved_out


@dataclass(frozen=True, slots=True)
class Record:
    """One closed period. Times in s since the epoch (UTC)."""

    sequence: int  # counts up from 1
    start: float
    end: float
    rows: Mapping[str, Row]  # per account, in order
    counters: tuple[float, float, float, float] | None  # Wh, in and out at the start, in and out at the end
    gap: bool = False  # nobody booked: divided by the energy shares
    final: bool = True

    @property
    def source(self) -> Row:
        """The sum, which is the source."""
        return add(self.rows.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {'seq': self.sequence, 'start': self.start, 'end': self.end, 'gap': self.gap,
                'counters': None if self.counters is None else list(self.counters),
                'rows': {name: list(row) for name, row in self.rows.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Raises ValueError, KeyError or TypeError when it is damaged."""
        rows = {}
        for name, row in values['rows'].items():
            if len(row) != len(Row._fields) or not all(type(v) is int for v in row):
                raise ValueError(f'row of {name!r} does not hold {len(Row._fields)} whole numbers')
            rows[str(name)] = Row(*row)
        counters = None
        if values['counters'] is not None:
            a, b, c, d = map(float, values['counters'])
            counters = (a, b, c, d)
        return cls(int(values['seq']), float(values['start']), float(values['end']), rows, counters,
                   bool(values['gap']))


def add(rows: Iterable[Row]) -> Row:
    """The sum of rows."""
    return Row(*(sum(column) for column in zip(Row(), *rows, strict=True)))


def follow(rows: Sequence[Row]) -> Row:
    """Rows of one account one after another: the sum, with what is stored at the end."""
    return add(rows)._replace(stored=rows[-1].stored) if rows else Row()


def milli(wh: float) -> int:
    """Wh as whole mWh; 0 for NaN."""
    return 0 if isnan(wh) else round(wh * 1000.0)


def allocate(total: int, weights: Sequence[float], fallback: Sequence[float] = ()) -> list[int]:
    """Divide a whole number >= 0 by the weights, exactly: the largest remainders are rounded up.

    Without any weight above 0 `fallback` is used, and the last one takes all without that.
    """
    for use in (weights, fallback):
        use = [w if w > 0 and isfinite(w) else 0.0 for w in use]
        whole = fsum(use)
        if whole > 0:
            exact = [total * (w / whole) for w in use]
            parts = [min(floor(x), total) for x in exact]
            left = total - sum(parts)
            by_remainder = sorted(range(len(use)), key=lambda i: (parts[i] - exact[i], i))
            step = 1 if left > 0 else -1
            k = 0
            while left:
                i = by_remainder[k % len(use)]
                if use[i] > 0 and parts[i] + step >= 0:
                    parts[i] += step
                    left -= step
                k += 1
            return parts
    return [0] * (len(weights) - 1) + [total] if weights else []


def next_boundary(start: float, period: float) -> float:
    """End of the period that `start` lies in: the next whole multiple of `period` (s) since the epoch, UTC."""
    return (floor(start / period) + 1) * period


@dataclass(slots=True)
class OpenPeriod:
    """The period that is being booked. Times in s since the epoch, energies in Wh."""

    sequence: int = 1
    start: float = nan  # nan: nothing was booked yet
    last: float = nan  # time of the last booking
    elapsed: float = 0.0  # s, by the monotonic clock
    counter_start: tuple[float, float] = (nan, nan)  # of the source, in and out
    counter_last: tuple[float, float] = (nan, nan)
    counted: bool = True  # the counters have not gone back since the start
    gap: bool = False
    sums: dict[str, list[float]] = field(default_factory=dict)  # name -> taken, given, moved in, moved out, lost
    stored: dict[str, int] = field(default_factory=dict)  # mWh at the start

    def book(self, names: list[str], through: list[Flow], lost: list[float], hours: float) -> None:
        """Add what flowed for so long (`lost` in Wh)."""
        for name, flow, loss in zip(names, through, lost, strict=True):
            sums = self.sums.get(name) or self.sums.setdefault(name, [0.0] * 5)
            sums[0] += flow.taken * hours
            sums[1] += flow.given * hours
            sums[2] += flow.moved_in * hours
            sums[3] += flow.moved_out * hours
            sums[4] += loss

    def observe(self, taken: float, given: float) -> bool:
        """The source's counters now, of all its members. False when one went back: then power counts."""
        if not (isfinite(taken) and isfinite(given)):
            return True
        known = not isnan(self.counter_last[0])
        back = known and (milli(taken) < milli(self.counter_last[0]) or milli(given) < milli(self.counter_last[1]))
        self.counter_last = (taken, given)
        if back or not known:
            self.counted = False  # until the next period: its start is known
        return not back

    @property
    def has_counters(self) -> bool:
        """The source's counters serve for this period."""
        return self.counted and not isnan(self.counter_start[0])

    def drift(self) -> tuple[float, float]:
        """Source's counters less what was booked since the start, in and out, Wh; NaN without counters."""
        if not self.has_counters:
            return nan, nan
        booked = [fsum(s[k] for s in self.sums.values()) for k in (0, 1)]
        taken, given = (self.counter_last[k] - self.counter_start[k] - booked[k] for k in (0, 1))
        return taken, given

    def record(self, names: Sequence[str], ledgers: Sequence[Ledger], fractions: Sequence[float],
               end: float, *, final: bool = True) -> Record:
        """What closing at `end` gives. `ledgers` and `fractions` (energy shares) of the accounts `names`."""
        sums = [self.sums.get(name, [0.0] * 5) for name in names]
        columns = [list(column) for column in zip(*sums, strict=True)] if sums else [[]] * 5
        if self.has_counters:
            totals = [milli(self.counter_last[k]) - milli(self.counter_start[k]) for k in (0, 1)]
        else:
            totals = [milli(fsum(columns[k])) for k in (0, 1)]
        moved = milli(fsum(columns[2]))
        totals += [moved, moved, milli(fsum(columns[4]))]
        spread = [allocate(total, column, fractions) for total, column in zip(totals, columns, strict=True)]
        held = [max(x.energy, 0.0) for x in ledgers]
        stored = allocate(milli(fsum(held)), held, fractions)
        rows = {}
        for i, name in enumerate(names):
            row = Row._make([*(column[i] for column in spread), 0, stored[i]])
            rows[name] = row._replace(correction=stored[i] - self.stored.get(name, 0) - row.net + row.lost)
        counters = (*self.counter_start, *self.counter_last) if self.has_counters else None
        return Record(self.sequence, self.start, max(end, self.start), rows, counters, self.gap, final)

    def begin(self, start: float, names: Sequence[str], rows: Mapping[str, Row], *, gap: bool = False) -> None:
        """Start anew where the last period ended, with what its rows had stored."""
        self.sequence += 1
        self.start = self.last = start
        self.elapsed = 0.0
        self.counter_start = self.counter_last
        self.counted = not isnan(self.counter_last[0])
        self.gap = gap
        self.sums = {name: [0.0] * 5 for name in names}
        self.stored = {name: row.stored for name, row in rows.items()}

    def end_at(self, wall: float, boundary: float) -> float:
        """Time to put to a period that is closed now: the boundary where that has just passed; after a
        step of the clock the start plus what really elapsed."""
        if boundary <= wall <= boundary + SAME_TIME_S:
            return boundary
        true = self.start + self.elapsed
        return wall if self.gap or abs(wall - true) <= SAME_TIME_S + 0.01 * self.elapsed else true


def group(records: Iterable[Record]) -> Iterator[tuple[float, float, dict[str, list[Row]]]]:
    """All records as one period: start, end and the rows per account; nothing without records."""
    rows: dict[str, list[Row]] = {}
    start, end = nan, nan
    for record in records:
        start = record.start if isnan(start) else min(start, record.start)
        end = record.end if isnan(end) else max(end, record.end)
        for name, row in record.rows.items():
            rows.setdefault(name, []).append(row)
    if not isnan(start):
        yield start, end, rows
