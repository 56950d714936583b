"""What is asked of a battery, and how asking ends. Pure; shared by the nodes and by simulations without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan, nan
from typing import NamedTuple

RELEASE_TICKS = 5  # ticks for which zero is still sent after the last request ended


class Demand(NamedTuple):
    """What is asked of a battery now. `power` in W, + = charging."""

    power: float
    reactive_power: float  # var, NaN = leave
    source: str
    lease: float  # s, how long the order below may last
    term: int = 0
    given: float = nan  # s, when its owner gave the order behind it; NaN = there is none


SAME_S = 1e-3  # orders of one owner that differ by less were given at one moment


def apart(demands: Iterable[Demand]) -> bool:
    """Whether an owner of several demands has renewed some of them and not the others: the rest is on its way.

    Until it arrives, the sum of the demands is one of old and new orders, which nobody asked for.
    """
    given: dict[str, float] = {}
    for demand in demands:
        if demand.given == demand.given and abs(given.setdefault(demand.source, demand.given) - demand.given) > SAME_S:
            return True
    return False


class Release:
    """Says zero explicitly once nobody asks any more, until the battery is seen to rest: silence alone would leave
    the members to their leases."""

    __slots__ = ('_left', 'since')

    def __init__(self) -> None:
        self._left = 0
        self.since = nan  # site time s since which rest is asked and not confirmed; NaN = all is well

    def follow(self, before: Demand | None, wanted: Demand | None, name: str, at_rest: bool = True,
               now: float = 0.0) -> Demand | None:
        """What to command when `wanted` comes after `before`; `name` signs a zero that nobody else asked for.

        Zero is said for `RELEASE_TICKS` calls at least, and then until `at_rest` (see `resting`).
        """
        if wanted is not None:
            self._left = 0
            self.since = nan
            return wanted
        if before is not None:
            self._left = RELEASE_TICKS
            self.since = now
        elif at_rest and self._left <= RELEASE_TICKS - 1:
            self.since = nan
        if self._left <= 0 and isnan(self.since):
            return None
        self._left -= 1
        return Demand(0.0, nan, before.source if before is not None else name, 1.0)


def resting(power: float, tolerance: float, fresh: bool) -> bool:
    """Whether a battery is seen to rest: a fresh measured power (W) within `tolerance`, or none measured at all."""
    return fresh and not abs(power) > tolerance
