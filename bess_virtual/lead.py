"""Lead time: a device that needs L seconds to follow is commanded L early. Pure.

Slow devices (a cloud relay, a converter that starts up) take longer from rest to power than from one power
to another; each change of the plan is ordered its own lead time ahead, never before the change that goes
before it. A constant is not enough, so the time from order to effect is measured as well.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf, isnan, nan
from typing import NamedTuple

from .plan import Plan, same

FOLLOWED = 0.9  # part of a step that counts as its effect
STEP_W = 100.0  # smaller steps are not measured
LOST_S = 600.0  # an effect that takes longer is none


class LeadTimes(NamedTuple):
    """Seconds from an order to its effect."""

    start: float = 0.0  # from rest to power
    change: float = 0.0  # from one power to another, or to rest

    def between(self, before: float, after: float) -> float:
        """Lead time of one step; NaN powers (nothing asked) mean rest. 0 when nothing changes."""
        before, after = (0.0 if p != p else p for p in (before, after))
        if before == after:
            return 0.0
        return self.start if before == 0.0 else self.change


class Ahead(NamedTuple):
    """An order that goes out early."""

    power: float  # W, NaN = nothing is asked then
    at: float  # wall s at which its effect is wanted


def ahead(plan: Plan, now: float, lead: LeadTimes) -> Ahead | None:
    """The change that has to be ordered already although it lies ahead; None when there is none."""
    horizon = now + max(lead.start, lead.change)
    if horizon <= now or not plan.times:
        return None
    found = None
    before, ordered = plan.at(now), -inf
    for k in range(bisect_right(plan.times, now), len(plan.times)):
        at = plan.times[k]
        if at > horizon:
            break
        power = plan.powers[k] if k < len(plan.powers) else nan
        ordered = max(ordered, at - lead.between(before, power))
        if ordered > now:
            break
        if not same(power, before):
            found = Ahead(power, at)
        before = power
    return found


class Measured:
    """Shortest and longest time seen from an order to its effect, per kind of step."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float, int]] = {}  # 'start'/'change' -> (shortest s, longest s, how many)
        self._order: tuple[float, float, float, str] | None = None  # from W, to W, at s, kind
        self._ordered = nan

    def order(self, power: float, measured: float, now: float) -> None:
        """A power (W) was ordered at site time `now`, while `measured` W flowed."""
        if power == self._ordered:
            return
        before = self._ordered
        self._ordered = power
        if isnan(measured) or abs(power - measured) < STEP_W:
            self._order = None
            return
        resting = before != before or before == 0.0
        self._order = (measured, power, now, 'start' if resting else 'change')

    def effect(self, measured: float, taken: float) -> None:
        """A power (W) measured at site time `taken`: is the step done?"""
        if self._order is None or isnan(measured) or taken < self._order[2]:
            return
        start, goal, at, kind = self._order
        if taken - at > LOST_S:
            self._order = None
        elif (measured - start) / (goal - start) >= FOLLOWED:
            low, high, count = self.seen.get(kind, (inf, 0.0, 0))
            self.seen[kind] = (min(low, taken - at), max(high, taken - at), count + 1)
            self._order = None

    def words(self) -> str:
        """For people."""
        return '; '.join(f'{kind} {low:.1f} to {high:.1f} s in {count}'
                         for kind, (low, high, count) in sorted(self.seen.items())) or 'none yet'
