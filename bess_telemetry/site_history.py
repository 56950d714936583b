"""Histories of the dashboard: memory rings of three resolutions, for the live charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isnan

import numpy as np
from numpy.typing import NDArray

#: (period of one point in s, number of points): 15 min, 3 h, 48 h.
TIERS = ((1.0, 900), (10.0, 1080), (60.0, 2880))


@dataclass(frozen=True)
class Series:
    """Points of several channels on one time axis; `values[channel][i]` belongs to `times[i]`."""

    times: list[float]  # s, site clock
    values: dict[str, list[float]]  # NaN = unknown at that time
    period: float  # s between points


class _Ring:
    """Fixed memory; a point is the mean of what was known during its period."""

    def __init__(self, period: float, size: int) -> None:
        self.period = period
        self.size = size
        self.times = np.full(size, np.nan)
        self.channels: dict[str, NDArray[np.float32]] = {}
        self.head = -1  # place of the newest point
        self.count = 0
        self._slot: int | None = None
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, time: float, row: Mapping[str, float]) -> None:
        slot = int(time // self.period)
        if self._slot is not None and slot < self._slot:
            if self._slot - slot <= self.size:
                return  # a late sample: its point is already closed
            self.clear()  # the clock was set back (or simulated time began anew)
        if slot != self._slot:
            self._slot = slot
            self._sums = {}
            self.head = (self.head + 1) % self.size
            self.count = min(self.count + 1, self.size)
            self.times[self.head] = slot * self.period
            for values in self.channels.values():
                values[self.head] = np.nan
        for name, value in row.items():
            if isnan(value):
                continue
            if name not in self.channels:
                self.channels[name] = np.full(self.size, np.nan, dtype=np.float32)
            total, n = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, n + 1)
            self.channels[name][self.head] = (total + value) / (n + 1)

    def clear(self) -> None:
        self.times[:] = np.nan
        for values in self.channels.values():
            values[:] = np.nan
        self.head, self.count, self._slot, self._sums = -1, 0, None, {}

    def read(self, start: float, most: int) -> Series:
        """Points from `start` (s) on, about `most` at most: means of several where there are more."""
        places = (self.head - np.arange(self.count)[::-1]) % self.size
        places = places[self.times[places] >= start]
        reach = self.times[places[-1]] - self.times[places[0]] if len(places) else 0.0
        group = max(1, ceil((reach / self.period + 1) / most))
        # Groups lie on a fixed time grid, so that a chart does not flicker as points are added.
        keys = np.floor_divide(self.times[places], self.period * group).astype(np.int64)
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(places) else places
        times = self.times[places[starts]]
        values = {
            name: _means(ring[places].astype(float), starts) for name, ring in self.channels.items()
        }
        return Series([float(t) for t in times], values, self.period * group)


def _means(values: NDArray[np.float64], starts: NDArray[np.intp]) -> list[float]:
    if not len(starts):
        return []
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    return [float(s / n) if n else float('nan') for s, n in zip(sums, counts, strict=True)]


class History:
    """Channels of values over time in bounded memory; not thread safe (its owner locks)."""

    def __init__(self, tiers: tuple[tuple[float, int], ...] = TIERS) -> None:
        self._rings = [_Ring(period, size) for period, size in tiers]

    def add(self, time: float, row: Mapping[str, float]) -> None:
        """Take in one row at `time` (s, site clock); NaN is kept as a gap."""
        for ring in self._rings:
            ring.add(time, row)

    def read(self, now: float, span: float, most: int = 300) -> Series:
        """The last `span` seconds from the finest ring that reaches that far."""
        ring = next((r for r in self._rings if r.period * r.size >= span), self._rings[-1])
        return ring.read(now - span, most)

    @property
    def channels(self) -> list[str]:
        """Names of all channels seen so far."""
        return list(self._rings[0].channels)
