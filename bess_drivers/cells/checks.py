"""Checks of cells and pack. Pure, vectorised over the cells.

Three bands, each inside the one before: beyond `abs` the relay opens, at `ext` no current is allowed in that
direction any more, from `std` on all of it is. Source: the battery controller of M-o-a-T (facts in
`shared/facts/bms_portal_radio.md`, sections 2.1 and 2.2). Its code ramps temperatures between abs and ext,
against its own description; here they ramp between ext and std like voltages, which stops earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bess_core.params import param
from bess_core.values import Severity
from bess_drivers.serial.bms_reading import Condition

Array = NDArray[np.float64]
#: What `violations` may find.
CHECKS = ('cell_voltage_high', 'cell_voltage_low', 'cell_temperature_high', 'cell_temperature_low', 'cell_unknown',
          'pack_voltage_high', 'pack_voltage_low', 'charge_current_high', 'discharge_current_high', 'pack_unknown')


@dataclass(frozen=True)
class CellLimits:
    """Limits of each cell. Raises ValueError where they are not in order. Defaults fit LFP cells."""

    voltage_abs_min: float = param(2.7, 'V', 'the relay opens below', low=0.0, high=5.0)
    voltage_ext_min: float = param(2.9, 'V', 'no discharging at or below', low=0.0, high=5.0)
    voltage_std_min: float = param(3.0, 'V', 'full discharge current from here', low=0.0, high=5.0)
    voltage_std_max: float = param(3.4, 'V', 'full charge current up to here', low=0.0, high=5.0)
    voltage_ext_max: float = param(3.58, 'V', 'no charging at or above', low=0.0, high=5.0)
    voltage_abs_max: float = param(3.63, 'V', 'the relay opens above', low=0.0, high=5.0)
    temperature_abs_min: float = param(-10.0, 'degC', 'the relay opens below', low=-60.0, high=100.0)
    temperature_ext_min: float = param(2.0, 'degC', 'no current at or below', low=-60.0, high=100.0)
    temperature_std_min: float = param(10.0, 'degC', 'full current from here', low=-60.0, high=100.0)
    temperature_std_max: float = param(40.0, 'degC', 'full current up to here', low=-60.0, high=100.0)
    temperature_ext_max: float = param(45.0, 'degC', 'no current at or above', low=-60.0, high=100.0)
    temperature_abs_max: float = param(55.0, 'degC', 'the relay opens above', low=-60.0, high=100.0)
    temperature_required: bool = param(True, doc='a cell whose temperature is not known allows no current')
    soc_min: float = param(0.1, '', 'below it the discharge current falls to zero', low=0.0, high=1.0)
    soc_max: float = param(0.95, '', 'above it the charge current falls to zero', low=0.0, high=1.0)
    sum_tolerance: float = param(0.02, '', 'pack voltage and sum of the cells may differ by so much', low=0.001,
                                 high=0.5)
    pack_voltage_min: float = param(41.6, 'V', 'the relay opens at or below', low=0.0, high=2000.0)
    pack_voltage_max: float = param(58.0, 'V', 'the relay opens at or above', low=0.0, high=2000.0)
    charge_current_abs: float = param(200.0, 'A', 'the relay opens at or above', low=0.1, high=5000.0)
    discharge_current_abs: float = param(200.0, 'A', 'the relay opens at or above', low=0.1, high=5000.0)
    max_charge_current: float = param(150.0, 'A', 'allowed when nothing limits', low=0.0, high=5000.0)
    max_discharge_current: float = param(150.0, 'A', 'allowed when nothing limits', low=0.0, high=5000.0)

    def __post_init__(self) -> None:
        for what in ('voltage', 'temperature'):
            names = [f'{what}_{n}' for n in ('abs_min', 'ext_min', 'std_min', 'std_max', 'ext_max', 'abs_max')]
            for low, high in pairwise(names):
                if getattr(self, low) >= getattr(self, high):
                    raise ValueError(f'{low} is {getattr(self, low):g}, must be below {high} {getattr(self, high):g}')
        if self.pack_voltage_min >= self.pack_voltage_max:
            raise ValueError('pack_voltage_min must be below pack_voltage_max')


def pos(zero: float, value: Array | float, one: float) -> Array:
    """0 at `zero`, 1 at `one`, linear between, clamped; NaN stays NaN."""
    return np.clip((zero - np.asarray(value, dtype=float)) / (zero - one), 0.0, 1.0)


def temperature_factor(t: Array, p: CellLimits) -> Array:
    """Share of the current that each temperature (degC) allows; for an unknown one 0, or 1 when not required."""
    high = pos(p.temperature_ext_max, t, p.temperature_std_max)
    low = pos(p.temperature_ext_min, t, p.temperature_std_min)
    return np.where(np.isnan(t), 0.0 if p.temperature_required else 1.0, high * low)


def factors(u: Array, t: Array, soc: float, p: CellLimits) -> tuple[Array, Array]:
    """Shares of charge and discharge current that each cell allows. u in V, t in degC; an unknown voltage allows 0."""
    both = temperature_factor(t, p)
    charge = both * pos(p.voltage_ext_max, u, p.voltage_std_max)
    discharge = both * pos(p.voltage_ext_min, u, p.voltage_std_min)
    if soc < p.soc_min:
        discharge = discharge * max(soc, 0.0) / p.soc_min
    if soc > p.soc_max:
        charge = charge * max(1.0 - soc, 0.0) / (1.0 - p.soc_max)
    return np.nan_to_num(charge, nan=0.0), np.nan_to_num(discharge, nan=0.0)


def _c(id: str, text: str, severity: Severity = Severity.CRITICAL) -> Condition:
    return Condition(id, text, severity, True, True)


def violations(u: Array, t: Array, pack_voltage: float, current: float, p: CellLimits) -> tuple[Condition, ...]:
    """What opens the relay. A pack voltage or current that is not known (NaN) opens it, too."""
    found = []
    for values, low, high, what, unit in ((u, p.voltage_abs_min, p.voltage_abs_max, 'voltage', 'V'),
                                          (t, p.temperature_abs_min, p.temperature_abs_max, 'temperature', 'degC')):
        with np.errstate(invalid='ignore'):
            above, below = np.flatnonzero(values > high), np.flatnonzero(values < low)
        for index, name, limit in ((above, f'{what}_high', high), (below, f'{what}_low', low)):
            if index.size:
                text = ', '.join(f'cell {i + 1}: {values[i]:.3f} {unit}' for i in index[:4])
                found.append(_c(f'cell_{name}', f'{text}; limit {limit:g} {unit}'))
    if np.isnan(u).any():
        found.append(_c('cell_unknown', f'no voltage of cell {int(np.flatnonzero(np.isnan(u))[0]) + 1}'))
    for bad, name, text in (
            (pack_voltage >= p.pack_voltage_max, 'pack_voltage_high', f'{pack_voltage:.2f} V'),
            (pack_voltage <= p.pack_voltage_min, 'pack_voltage_low', f'{pack_voltage:.2f} V'),
            (current >= p.charge_current_abs, 'charge_current_high', f'{current:.1f} A'),
            (current <= -p.discharge_current_abs, 'discharge_current_high', f'{current:.1f} A'),
            (pack_voltage != pack_voltage or current != current, 'pack_unknown', 'no pack voltage or current')):
        if bad:
            found.append(_c(name, text))
    return tuple(found)


def sum_difference(pack_voltage: float, u: Array) -> float:
    """Relative difference between the pack voltage and the sum of the cells; NaN when unknown."""
    total = float(np.sum(u))
    return abs(pack_voltage - total) / total if total > 0.0 else float('nan')


@dataclass
class SumCheck:
    """Alarm above the tolerance, gone below three quarters of it."""

    tolerance: float
    active: bool = False

    def step(self, difference: float) -> Condition | None:
        """The condition while it lasts."""
        self.active = difference > self.tolerance * (0.75 if self.active else 1.0)
        return Condition('sum_mismatch', f'pack voltage and sum of the cells differ by {difference:.1%}',
                         Severity.ERROR) if self.active else None
