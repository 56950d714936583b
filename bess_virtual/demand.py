"""What is asked of a battery, and how asking ends. Pure; shared by the nodes and by simulations without ROS."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

RELEASE_TICKS = 5  # ticks for which zero is still sent after the last request ended


class Demand(NamedTuple):
    """What is asked of a battery now. `power` in W, + = charging."""

    power: float
    reactive_power: float  # var, NaN = leave
    source: str
    lease: float  # s, how long the order below may last
    term: int = 0


class Release:
    """Says zero explicitly for a while once nobody asks any more: silence alone would leave the members to
    their leases."""

    __slots__ = ('_left',)

    def __init__(self) -> None:
        self._left = 0

    def follow(self, before: Demand | None, wanted: Demand | None, name: str) -> Demand | None:
        """What to command when `wanted` comes after `before`; `name` signs a zero that nobody else asked for."""
        if wanted is not None:
            self._left = 0
            return wanted
        if before is not None:
            self._left = RELEASE_TICKS
        if self._left <= 0:
            return None
        self._left -= 1
        return Demand(0.0, nan, before.source if before is not None else name, 1.0)
