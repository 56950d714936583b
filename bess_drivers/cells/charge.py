"""State of charge by counted energy with knees, and adaptive charge and discharge voltages. Pure.

Source: facts in `shared/facts/bms_portal_radio.md`, section 2.5. The cell voltage at the knees is compensated
for the current here, which the original does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from bess_core.params import param
from bess_drivers.cells.checks import Array, CellLimits

EDGE = 0.05  # share of the energy below and above the knees


@dataclass(frozen=True)
class ChargeParams:
    """Settings of counter and adaptive voltages."""

    capacity: float = param(280.0, 'Ah', 'of the cells', low=0.1, high=100_000.0)
    nominal_cell_voltage: float = param(3.2, 'V', 'turns Ah into Wh', low=0.5, high=5.0)
    charge_loss: float = param(0.02, '', 'share of the charged energy that is lost', low=0.0, high=0.5)
    cell_resistance: float = param(0.0, 'Ohm', 'compensates cell voltages for the current', low=0.0, high=1.0)
    balance_range: float = param(0.5, '', 'of the distance to full: cells that count for the charge voltage',
                                 low=0.0, high=1.0)
    voltage_decay: float = param(0.001, '', 'a lower charge voltage is taken over by this share per poll', low=0.0,
                                 high=1.0)


@dataclass
class Counter:
    """Energy in the cells, Wh; NaN until it is known."""

    full: float  # Wh
    loss: float
    energy: float = nan
    over_charged: float = 0.0  # Wh that went in beyond full
    over_discharged: float = 0.0  # Wh that came out beyond empty

    def add(self, energy: float) -> None:
        """Wh since the last call, + = charged."""
        if isnan(self.energy) or isnan(energy):
            return
        new = self.energy + (energy * (1.0 - self.loss) if energy > 0.0 else energy)
        self.over_charged += max(new - self.full, 0.0)
        self.over_discharged += max(-new, 0.0)
        self.energy = min(max(new, 0.0), self.full)

    def knee(self, lowest: float, p: CellLimits) -> None:
        """Empty below, full above the standard band: there the voltage knows better. `lowest`: V."""
        if lowest < p.voltage_std_min:
            self.energy = 0.0
        elif lowest > p.voltage_std_max:
            self.energy = self.full


def soc(lowest: float, counted: float, p: CellLimits) -> float:
    """State of charge 0..1 from the lowest cell (V) and the counted share; NaN while neither says anything."""
    if lowest < p.voltage_std_min:
        return EDGE * max(0.0, (lowest - p.voltage_ext_min) / (p.voltage_std_min - p.voltage_ext_min))
    if lowest > p.voltage_std_max:
        return 1.0 - EDGE * max(0.0, (p.voltage_ext_max - lowest) / (p.voltage_ext_max - p.voltage_std_max))
    return EDGE + (1.0 - 2.0 * EDGE) * min(max(counted, 0.0), 1.0)


def charge_voltage(u: Array, ext_max: float, share: float) -> float:
    """Voltage (V) at which the pack may be charged so that its highest cell just gets to `ext_max`."""
    highest = float(np.max(u))
    room = ext_max - highest
    if room < 0.0:
        return float(np.sum(np.minimum(u, ext_max)))
    width = share * room
    if width <= 0.0:
        return float(np.sum(u))
    above = np.maximum(u - (highest - width), 0.0)
    return float(np.sum(u) + np.sum(room * above / width))


def discharge_voltage(u: Array, ext_min: float, share: float) -> float:
    """Voltage (V) down to which the pack may be discharged; the mirror image of `charge_voltage`."""
    return -charge_voltage(-u, -ext_min, share)


def adapt(before: float, now: float, decay: float) -> float:
    """A higher charge voltage at once, a lower one slowly; the first as it is."""
    return now if isnan(before) or now >= before else before + (now - before) * decay
