"""What the rest of the site draws, although meter and battery report at different times.

At the grid connection ``P_grid = P_rest + P_battery``, so ``P_rest = P_grid - P_battery``. A
controller that aims at a grid power needs nothing else: the battery should take ``target - P_rest``,
and since the rest does not depend on the battery there is no feedback loop that could swing.

That holds only if both powers were measured at the same moment. They never are: meters average and
refresh in steps, buses poll in turn, converters answer late. While the battery moves, a plain
difference mistakes its own movement for load, and the loop overshoots or swings (the flicker that
users of other systems report). The delays are not known and change, so they are not modelled.
Instead the estimate is a set: every battery power that may have been flowing when the meter measured
gives one possible load. The estimate moves only as far as it must to lie in that set:

* battery at rest: the set is one point, the estimate follows the meter at once (dead beat);
* battery moving after an order: the true load stays in the set, the estimate stays where it is.

With a constant load the estimate therefore approaches the truth from one side and never passes it,
whatever the delays are, as long as they are within `delay_s` and `settle_s`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import inf, isfinite, isnan, nan

from bess_core.values import MeterReading

PLAUSIBLE = 1e9  # W; a greater power at a site is a fault of the measurement, not a measurement


def plausible(power: float) -> bool:
    """True for a power that can be calculated with: a number, and not beyond all measure."""
    return abs(power) <= PLAUSIBLE


def clamp(value: float, low: float, high: float) -> float:
    """The value nearest to `value` in [low, high]."""
    return low if value < low else min(value, high)


class LoadEstimator:
    """Set-membership estimate of the power of everything but the battery (W, + = consumption).

    `delay_s`: longest time between what meter and battery show that their stamps do not tell.
    `settle_s`: time after which the battery has surely answered an order; an order that is older no
    longer counts as "the battery may be there", so that a battery that does less than it was told
    cannot widen the set for ever.
    """

    def __init__(self, delay_s: float, settle_s: float) -> None:
        self.delay_s = delay_s
        self.settle_s = settle_s
        self._powers: deque[tuple[float, float]] = deque()  # (seen at, W)
        self._orders: deque[tuple[float, float]] = deque()  # (given at, W)
        self._last_stamp = -inf
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._powers.clear()
        self._orders.clear()
        self._last_stamp = -inf
        self.value = nan  # W
        self.low = nan  # W
        self.high = nan  # W

    @property
    def spread(self) -> float:
        """Width of the set in W: what the battery's own movement may explain. NaN before an update."""
        return self.high - self.low

    def observe(self, power: float, stamp: float, now: float) -> None:
        """A battery reading; counted once per `stamp`, at the time it was first seen."""
        if not plausible(power) or not isfinite(stamp) or stamp == self._last_stamp:
            return
        self._last_stamp = stamp
        self._powers.append((now, power))

    def order(self, power: float, now: float) -> None:
        """A power that the battery was told to take from `now` on."""
        if plausible(power) and (not self._orders or self._orders[-1][1] != power):
            self._orders.append((now, power))

    def update(self, grid_power: float, measured_at: float, now: float, period: float) -> float:
        """A fresh meter sample; returns the estimate, NaN while no battery power is known.

        `period` (s) is the sampling period: an order may wait that long before it is sent.
        """
        low, high = self._battery_range(min(measured_at, now), now, period)
        if low > high or not plausible(grid_power):
            return self.value
        self.low, self.high = grid_power - high, grid_power - low
        start = self.value if isfinite(self.value) else 0.5 * (self.low + self.high)
        self.value = clamp(start, self.low, self.high)
        return self.value

    def _battery_range(self, measured_at: float, now: float, period: float) -> tuple[float, float]:
        """Least and greatest battery power that may have been flowing when the meter measured."""
        since = measured_at - self.delay_s
        _forget(self._powers, since)
        low, high = inf, -inf
        for _, power in self._powers:
            low, high = min(low, power), max(high, power)
        if not self._powers:
            return low, high
        # Between the last reading and now the battery moves from there towards its orders.
        _forget(self._orders, since - period)
        settled = now - self.settle_s
        for given, power in self._orders:
            if given > settled:
                low, high = min(low, power), max(high, power)
        return low, high


def _forget(history: deque[tuple[float, float]], since: float) -> None:
    """Drop what was replaced before `since`; the entry in effect at `since` stays."""
    while len(history) > 1 and history[1][0] <= since:
        history.popleft()


def without(meter: MeterReading, others: Iterable[float]) -> MeterReading:
    """The meter as if batteries with these powers (W, + = charging; NaN = unknown, counts as 0) were not there.

    What another partition delivers as a grid service is meant to reach the grid; a mode that balances the
    connection must not take it for load.
    """
    power = sum(p for p in others if not isnan(p))
    return meter if power == 0.0 else replace(meter, active_power=meter.active_power - power)
