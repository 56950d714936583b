"""What is asked of a site or flows in it: why it does not fall asleep, or wakes. Pure. Powers in W, times in s."""

from __future__ import annotations

from math import isfinite, isnan, nan

from .words import watts

LONGEST_S = 60.0  # a proposal counts for its lease, but no longer


class Demand:
    """Less than `idle_power` is idle; a plan counts `wake_ahead` s before; what is measured counts for `hold` s."""

    def __init__(self, idle_power: float, wake_ahead: float, hold: float) -> None:
        self._idle, self._ahead, self._hold = idle_power, wake_ahead, hold
        self._asked: dict[str, tuple[float, str, float, str]] = {}  # who -> until when; words, W, words

    def battery(self, name: str, setpoint: float, source: str, power: float, now: float) -> None:
        """A battery was told `setpoint` by `source` and is at `power`; NaN = not known."""
        if abs(setpoint) > self._idle:
            self._asked[name] = (now + self._hold, f'{source or name} asks', setpoint, '')
        elif abs(power) > self._idle:
            self._asked[name] = (now + self._hold, f'{name} is at', power, '')

    def plan(self, name: str, power: float, ahead: float, now: float) -> None:
        """`name` has `power` planned in `ahead` s; the newest word counts."""
        self._asked.pop(f'{name} planned', None)
        if abs(power) > self._idle and ahead <= self._ahead:
            self._asked[f'{name} planned'] = (now + self._hold, f'{name} has', power, ' planned')

    def proposal(self, source: str, power: float, lease: float, now: float) -> None:
        """A mode or service wants `power` for `lease` s."""
        if abs(power) > self._idle and isfinite(lease):
            self._asked[source] = (now + min(lease, LONGEST_S), f'{source} asks', power, '')

    def meter(self, name: str, power: float, least: float, now: float) -> None:
        """A meter shows `power`; more than `least` is a demand."""
        if abs(power) > least:
            self._asked[name] = (now + self._hold, f'{name} is at {power:.0f} W', nan, '')

    def text(self, now: float) -> str:
        """One of the demands that still hold, in words; '' = none."""
        self._asked = {who: d for who, d in self._asked.items() if d[0] > now}
        for _, before, power, behind in self._asked.values():
            return before if isnan(power) else f'{before} {watts(power)}{behind}'
        return ''
