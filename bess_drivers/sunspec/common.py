"""What the SunSpec drivers share: address and map settings, signs, parameter check, heartbeat."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from math import isnan, nan
from typing import Any

from bess_core.params import param

#: factor from the device's sign to ours (+ = charging)
SIGNS = {'charge_positive': 1.0, 'discharge_positive': -1.0}


@dataclass(frozen=True)
class SunSpecParams:
    """Where a SunSpec device is and how its map is read."""

    address: str = param('', doc='Modbus address: tcp://host:port or rtu:/dev/...')
    unit: int = param(1, doc='Modbus unit id', low=0, high=255)
    timeout_s: float = param(0.5, 's', 'time-out of one request', low=0.01, high=60.0)
    base: str = param('auto', doc="register of the 'SunS' marker, or 'auto' to look at 40000, 0 and 50000")
    max_registers: int = param(125, doc='largest read that the device answers', low=8, high=125)


def check_params(params: Any) -> None:
    """Check each field against `min`, `max` and `choices` of its metadata. Raises ValueError.

    The message names parameter, value and what is allowed.
    """
    assert is_dataclass(params)
    for item in fields(params):
        value = getattr(params, item.name)
        low, high = item.metadata.get('min'), item.metadata.get('max')
        choices = item.metadata.get('choices')
        if choices and value not in choices:
            raise ValueError(f'{item.name} = {value!r}: must be one of {", ".join(choices)}')
        if low is not None and value == value and not low <= value <= high:
            raise ValueError(
                f'{item.name} = {value!r}: must be {low} to {high} {item.metadata["unit"]}'.rstrip()
            )
    base = getattr(params, 'base', 'auto')
    if base != 'auto' and not (base.isdigit() and int(base) <= 65535):
        raise ValueError(f"base = {base!r}: must be 'auto' or a register number 0 to 65535")


class Heartbeat:
    """Watches a counter of the device and counts our own, +1 per second."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = timeout_s
        self.reset()

    def reset(self) -> None:
        """Start anew after a reconnect."""
        self._last, self._moved_at, self._counts = nan, nan, False
        self._next, self._value = nan, 0

    def stands_still(self, counter: float, now: float) -> bool:
        """Whether a counter that has counted before has stood still for the time-out."""
        if isnan(counter):
            return False
        if counter != self._last:
            self._counts = self._counts or not isnan(self._last)
            self._last, self._moved_at = counter, now
        return self._counts and now - self._moved_at > self._timeout

    def due(self, monotonic: float, limit: int = 0xFFFE) -> int | None:
        """The next value of our counter (1 to `limit`, then 0) if one is due, else None.

        On a fixed grid of one second; beats that were missed are not made up for.
        """
        if not isnan(self._next) and monotonic < self._next:
            return None
        started = not isnan(self._next) and monotonic - self._next < 1.0
        self._next = (self._next if started else monotonic) + 1.0
        self._value = self._value + 1 if self._value < limit else 0
        return self._value
