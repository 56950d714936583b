"""A battery in two functions: a bucket of charge behind a constant voltage.

Replace the arithmetic by questions to your device; everything else (schedules, leases, limits, staleness,
follow-error, faults) is made by bess.
"""

import time
from dataclasses import dataclass

from bess_core.params import param
from bess_drivers.simple import Reading


@dataclass(frozen=True)
class Params:
    """Parameters in the site file, beside those that every battery has."""

    voltage: float = param(50.0, 'V', 'terminal voltage', low=1.0, high=1000.0)
    capacity: float = param(100.0, 'Ah', 'charge when full', low=0.01, high=1e5)
    charge: float = param(50.0, 'Ah', 'charge at the start', low=0.0, high=1e5)
    limit: float = param(40.0, 'A', 'greatest current either way', low=0.0, high=1e4)


class Bucket:
    """Holds what flows in."""

    Params = Params

    def __init__(self, params: Params) -> None:
        self.params = params
        self.charge, self.current, self.since = params.charge, 0.0, time.monotonic()

    def refresh(self) -> Reading:
        """Ask the device: voltage (V), current (A, + = charging), charge (Ah), limits (A)."""
        p, now = self.params, time.monotonic()
        self.charge += self.current * (now - self.since) / 3600.0
        self.charge, self.since = min(max(self.charge, 0.0), p.capacity), now
        return Reading(
            voltage=p.voltage, current=self.current, charge=self.charge, charge_full=p.capacity,
            max_charge_current=p.limit if self.charge < p.capacity else 0.0,
            max_discharge_current=p.limit if self.charge > 0.0 else 0.0)

    def set_current(self, current: float) -> None:
        """Tell the device: current in A, + = charging."""
        self.refresh()
        self.current = current
