"""Tariffs: what a kWh costs and brings at each time. Pure.

Prices of several sources lie over each other: what was delivered (service), the price file, times of
use, and one constant price below. A price that is missing above comes from below, so there is always
one, and where it comes from can be said.

A price file is CSV: time, import price, and optionally export price. A header line is optional; its
names may be in any order (`time`, `import`, `export`). Times are ISO 8601; without an offset they are
local times of the tariff's zone, in ascending order, so that the hour that a day with the change from
summer time has twice is the first time summer and the second time winter time. A price holds until the
next one, but no longer than `max_step_s`: what lies behind that is a gap. A time given twice with
different prices takes the last one and is reported.
"""

from __future__ import annotations

import csv
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import StringIO
from itertools import pairwise
from math import isfinite, nan
from typing import Any

from bess_control.modes.windows import Window, local, parse, zone

MOST_ROWS = 200_000
PLAUSIBLE = 100.0  # currency per kWh; more is a wrong unit


@dataclass
class Prices:
    """Prices over absolute time: `starts` (epoch s, ascending) and values per kWh."""

    starts: list[float] = field(default_factory=list)
    imports: list[float] = field(default_factory=list)
    exports: list[float] = field(default_factory=list)  # NaN = as configured
    max_step_s: float = 3600.0
    problems: list[str] = field(default_factory=list)  # what was wrong with the source, in words

    def at(self, wall: float) -> tuple[float, float]:
        """(import, export) per kWh at an absolute time; NaN in a gap."""
        i = bisect_right(self.starts, wall) - 1
        if i < 0:
            return nan, nan
        end = self.starts[i] + self.max_step_s
        if i + 1 < len(self.starts):
            end = min(end, self.starts[i + 1])
        return (self.imports[i], self.exports[i]) if wall < end else (nan, nan)

    @property
    def until(self) -> float:
        """Absolute time up to which there are prices; -inf without any."""
        return self.starts[-1] + self.max_step_s if self.starts else float('-inf')


def take(rows: Iterable[tuple[float, float, float]], max_step_s: float = 0.0) -> Prices:
    """Prices from rows of (epoch s, import, export) in any order; duplicates and gaps are reported.

    `max_step_s` 0 = the most frequent distance of two rows. Raises ValueError for values that are no
    prices.
    """
    prices = Prices()
    known: dict[float, tuple[float, float]] = {}
    for start, buy, sell in rows:
        if not isfinite(start):
            raise ValueError(f'time {start} is not finite')
        for name, value in (('import', buy), ('export', sell)):
            if abs(value) > PLAUSIBLE or (value != value and name == 'import'):
                raise ValueError(f'{name} price {value} per kWh is no price; is it in another unit?')
        if start in known and known[start] != (buy, sell):
            prices.problems.append(
                f'{_said(start)} is given twice, with {known[start][0]:g} and {buy:g}; the last counts')
        known[start] = (buy, sell)
    prices.starts = sorted(known)
    prices.imports = [known[t][0] for t in prices.starts]
    prices.exports = [known[t][1] for t in prices.starts]
    steps = [round(b - a) for a, b in pairwise(prices.starts)]
    prices.max_step_s = max_step_s or float(max(set(steps), key=steps.count) if steps else 3600.0)
    for start, step in zip(prices.starts, steps, strict=False):
        if step > prices.max_step_s + 0.5:
            prices.problems.append(f'gap of {(step - prices.max_step_s) / 3600.0:g} h after {_said(start)}')
    return prices


def _said(wall: float) -> str:
    return local(wall, zone('UTC')).strftime('%Y-%m-%d %H:%M UTC')


def read_csv(text: str, time_zone: str = '', per: float = 1.0) -> Prices:
    """A price file. `per`: kWh that the prices are for (1000 for prices per MWh).

    Raises ValueError with the line for what cannot be read; nothing of the file counts then.
    """
    tz = zone(time_zone)
    columns = {'time': 0, 'import': 1, 'export': 2}
    rows: list[tuple[float, float, float]] = []
    last = float('-inf')
    for line, cells in enumerate(csv.reader(StringIO(text)), start=1):
        cells = [c.strip() for c in cells]
        if not any(cells) or cells[0].startswith('#'):
            continue
        if not rows and not cells[0][:1].isdigit():
            names = [c.lower() for c in cells]
            if 'time' not in names or 'import' not in names:
                raise ValueError(
                    f'line {line}: the header needs the columns time and import, it has {", ".join(cells)}')
            columns = {n: names.index(n) for n in columns if n in names}
            continue
        if len(rows) >= MOST_ROWS:
            raise ValueError(f'line {line}: more than {MOST_ROWS} rows')
        try:
            at = _epoch(cells[columns['time']], tz, last)
            buy = float(cells[columns['import']]) / per
            export = columns.get('export', len(cells))
            sell = float(cells[export]) / per if export < len(cells) and cells[export] else nan
        except (ValueError, IndexError) as error:
            raise ValueError(f'line {line}: {error}') from None
        last = at
        rows.append((at, buy, sell))
    try:
        return take(rows)
    except ValueError as error:
        raise ValueError(f'price file: {error}') from None


def _epoch(text: str, tz: Any, last: float) -> float:
    """Absolute time; of the two times that a repeated local hour may mean, the one that goes on after `last`."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is not None or tz is None:
        return at.timestamp()
    first, second = at.replace(tzinfo=tz, fold=0).timestamp(), at.replace(tzinfo=tz, fold=1).timestamp()
    return second if first <= last < second else min(first, second)


@dataclass(frozen=True)
class TimeOfUse:
    """A price in a window: written "0.19 22:00-06:00"."""

    price: float
    window: Window

    @classmethod
    def parse(cls, text: str) -> TimeOfUse:
        """From its text. Raises ValueError."""
        price, _, window = text.strip().partition(' ')
        try:
            value = float(price)
        except ValueError:
            raise ValueError(f'{text!r}: write the price per kWh and a window, e.g. "0.19 22:00-06:00"') from None
        if not abs(value) <= PLAUSIBLE:
            raise ValueError(f'{text!r}: {value} is no price per kWh')
        return cls(value, parse(window))


class Tariff:
    """Prices per kWh at any time, from the layers that the module describes."""

    def __init__(self, import_price: float, export_price: float, time_of_use: Sequence[str] = (),
                 time_zone: str = '', grid_fee: float = 0.0) -> None:
        self._import, self._export, self._fee = import_price, export_price, grid_fee
        self._use = [TimeOfUse.parse(t) for t in time_of_use]
        self._zone = zone(time_zone)
        self.file = Prices()
        self.delivered = Prices()

    def at(self, wall: float) -> tuple[float, float, str]:
        """(import, export, source) per kWh."""
        for prices, name in ((self.delivered, 'delivered'), (self.file, 'price file')):
            buy, sell = prices.at(wall)
            if buy == buy:
                return buy + self._fee, self._export if sell != sell else sell, name
        moment = local(wall, self._zone)
        for use in self._use:
            if use.window.covers(moment):
                return use.price, self._export, 'time of use'
        return self._import, self._export, 'constant price'

    def series(self, start: float, step: float, count: int) -> tuple[list[float], list[float], list[str]]:
        """Mean-free samples at the middle of each step: import, export (per kWh), sources."""
        found = [self.at(start + (i + 0.5) * step) for i in range(count)]
        return [f[0] for f in found], [f[1] for f in found], [f[2] for f in found]

    def deliver(self, starts: Sequence[float], imports: Sequence[float], exports: Sequence[float], now: float) -> str:
        """Prices of a service; "" or why they are refused, with nothing changed."""
        sells = list(exports) or [nan] * len(starts)
        if not len(starts) == len(imports) == len(sells):
            return f'{len(starts)} starts, {len(imports)} import and {len(sells)} export prices: one of each is needed'
        if any(b <= a for a, b in pairwise(starts)):
            return 'starts are not ascending'
        if not starts:
            return 'no prices'
        kept = self.delivered
        i = bisect_left(kept.starts, starts[0])
        old = [r for r in zip(kept.starts[:i], kept.imports[:i], kept.exports[:i], strict=True)
               if r[0] > now - 2 * 86400.0]
        try:
            self.delivered = take([*old, *zip(starts, imports, sells, strict=True)])
        except ValueError as error:
            return str(error)
        return ''
