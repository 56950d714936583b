"""Prices for energy statements: one price, or one per interval. Pure; money in exact decimals."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from math import isfinite
from pathlib import Path

from bess_virtual.statements import Record, Row

MAX_PRICES = 200_000
MICRO = Decimal('0.000001')


@dataclass(frozen=True)
class Prices:
    """Prices per kWh. `times` (s since the epoch, ascending): values[k] holds from times[k] until the next one."""

    currency: str
    values: tuple[Decimal, ...]
    times: tuple[float, ...] = ()  # empty: the one value holds always

    def __post_init__(self) -> None:
        text = self.currency
        if not (0 < len(text) <= 16 and text.isprintable() and not set(text) & set(' ,;"\'')):
            raise ValueError(f'{text[:40]!r} is no currency; e.g. EUR; '
                             'allowed: 1 to 16 characters without spaces, commas and quotes')
        if not all(v.is_finite() and abs(v) < 10**6 for v in self.values):
            raise ValueError('a price is not a finite number below 1 000 000 per kWh')
        if self.times:
            if len(self.times) != len(self.values):
                raise ValueError(f'{len(self.times)} times for {len(self.values)} prices')
            if not all(isfinite(t) for t in self.times) or any(
                    b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
                raise ValueError('the times of the prices must ascend')
        elif len(self.values) != 1:
            raise ValueError('a list of prices needs as many times')
        if len(self.values) > MAX_PRICES:
            raise ValueError(f'{len(self.values)} prices, at most {MAX_PRICES} are allowed')

    def at(self, time: float) -> Decimal:
        """The price in force at a time (s since the epoch). Raises ValueError before the first one."""
        if not self.times:
            return self.values[0]
        k = bisect_right(self.times, time) - 1
        if k < 0:
            raise ValueError(f'no price for {utc(time)}: the first one holds from {utc(self.times[0])}')
        return self.values[k]


def cost(row: Row, price: Decimal) -> Decimal:
    """What an account pays for its net energy, in whole millionths: price * (in + moved in - out - moved out)."""
    return (price * row.net / 1_000_000).quantize(MICRO, ROUND_HALF_EVEN)


def costs(record: Record, prices: Prices) -> dict[str, Decimal]:
    """Cost per account of one record at the price in force at its start. The source's cost is their sum."""
    price = prices.at(record.start)
    return {name: cost(row, price) for name, row in record.rows.items()}


def decimal(value: float | str) -> Decimal:
    """The decimal that people see when they see this number. Raises ValueError."""
    try:
        return Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(f'{str(value)[:40]!r} is not a number') from None


def read_prices(text: str, currency: str) -> Prices:
    """Prices of a CSV text with the columns `time` (ISO 8601 with offset, or s since the epoch) and `price`.

    Raises ValueError with the line.
    """
    rows = csv.DictReader(text.splitlines())
    if not rows.fieldnames or not {'time', 'price'} <= set(rows.fieldnames):
        raise ValueError('line 1: the columns must be called time and price')
    times, values = [], []
    for number, row in enumerate(rows, start=2):
        try:
            times.append(_time(row['time'] or ''))
            values.append(decimal(row['price'] or ''))
        except ValueError as error:
            raise ValueError(f'line {number}: {error}') from None
        if len(values) > MAX_PRICES:
            raise ValueError(f'more than {MAX_PRICES} prices')
    if not values:
        raise ValueError('no prices')
    return Prices(currency, tuple(values), tuple(times))


def load_prices(path: Path, currency: str) -> Prices:
    """As `read_prices`; OSError when the file cannot be read, ValueError when it is too large or no text."""
    if path.stat().st_size > 20_000_000:
        raise ValueError(f'{path}: larger than 20 MB')
    return read_prices(path.read_text(encoding='utf-8'), currency)


def given(price: float, times: Sequence[float], values: Sequence[float], currency: str) -> Prices | None:
    """Prices of a request; None when it gives none. Raises ValueError."""
    if price == price:
        if len(values):
            raise ValueError('give one price or a list of prices, not both')
        return Prices(currency, (decimal(price),))
    if len(values) or len(times):
        if len(times) != len(values) or not times:
            raise ValueError(f'{len(times)} times for {len(values)} prices')
        return Prices(currency, tuple(decimal(v) for v in values), tuple(times))
    return None


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f'{text[:40]!r} is not a time') from None
    if at.tzinfo is None:
        raise ValueError(f'{text!r} has no offset from UTC; write e.g. 2026-05-01T12:00+00:00')
    return at.timestamp()


def utc(time: float) -> str:
    """ISO 8601 with explicit offset."""
    return datetime.fromtimestamp(time, UTC).isoformat()
