"""Energy counter of a whole: goes on steadily when members are replaced or their own counters start anew. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan, nan


class Counter:
    """Sum of what the members' counters (Wh) rose by, from their plain sum at the time when all were known.

    A counter that falls was reset: it counts on from its new value. Who joins adds what it counts from then on, who
    leaves keeps what it counted in the sum. An unknown value (NaN) is no news.
    """

    __slots__ = ('_complete', '_last', '_total')

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._total = 0.0
        self._complete = False

    def see(self, member: str, value: float) -> None:
        """A member's counter now, Wh."""
        if isnan(value):
            return
        last = self._last.get(member)
        if last is None:
            self._total += 0.0 if self._complete else value
        elif value > last or not self._complete:
            self._total += value - last
        self._last[member] = value

    def forget(self, member: str) -> None:
        """The member has left."""
        last = self._last.pop(member, nan)
        if not (self._complete or isnan(last)):
            self._total -= last

    def total(self, members: Iterable[str]) -> float:
        """Wh; NaN until the counters of all `members` have been known once."""
        if not self._complete:
            self._complete = all(m in self._last for m in members)
        return self._total if self._complete else nan
