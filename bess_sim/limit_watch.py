"""Counts powers beyond their limits in a simulation; the same for the node graph and the pure chain."""

from __future__ import annotations

from math import isnan

from bess_core.values import BatteryReading

TOLERANCE_W, TOLERANCE = 50.0, 0.02
VIOLATION_TICKS = 2  # beyond a limit for more ticks than order and answer take


class LimitWatch:
    """Look at every battery once per tick; `violations` counts the times that one stayed beyond its limit."""

    def __init__(self) -> None:
        self.violations = 0
        self._beyond: dict[str, int] = {}  # battery -> ticks in a row

    def look(self, name: str, r: BatteryReading) -> None:
        """One battery in this tick."""
        limit = r.max_charge_power if r.power > 0 else r.max_discharge_power
        if isnan(r.power) or isnan(limit) or abs(r.power) <= limit * (1 + TOLERANCE) + TOLERANCE_W:
            if self._beyond:
                self._beyond.pop(name, None)
            return
        count = self._beyond[name] = self._beyond.get(name, 0) + 1
        if count == VIOLATION_TICKS + 1:
            self.violations += 1
