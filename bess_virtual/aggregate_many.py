"""The aggregate of many members by columns: the same values as `bess_virtual.aggregate`, several times faster.

Every member is one row of an array, so that the cost per member is that of copying its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from math import isnan, nan
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.expected import pace
from bess_virtual.member import common_contactor, common_mode

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
_UNUSED = ('setpoint', 'setpoint_source', 'limit_reasons', 'missing', 'cells', 'temperatures', 'balancing', 'alarms',
           'cell_voltage_min_index', 'cell_voltage_max_index', 'members', 'members_usable', 'balance_power',
           'soc_spread', 'voltage_spread', 'current_spread', 'expected_energy_full', 'expected_charge_power',
           'expected_discharge_power', 'lead_time', 'next_power', 'next_change')
NAMES = tuple(f.name for f in fields(BatteryReading) if f.name not in _UNUSED)
SPLIT_NAMES = ('time', 'quality', 'mode', 'contactor', 'voltage', 'charge', 'charge_full', 'energy', 'energy_full',
               'max_charge_current', 'max_discharge_current', 'max_charge_power', 'max_discharge_power', 'soc')
"""What decides how much a member may do."""
_READ = {names: attrgetter(*names) for names in (NAMES, SPLIT_NAMES)}
_COLUMN = {names: {name: i for i, name in enumerate(names)} for names in _READ}


@dataclass(slots=True)
class Table:
    """Members as columns; derived ones as in `member.Member`."""

    values: FloatArray  # one row per name, one column per member
    column: dict[str, int]  # name -> row
    quality: FloatArray
    blocked: BoolArray
    energy: FloatArray  # Wh
    energy_full: FloatArray  # Wh
    headroom: FloatArray  # Wh
    charge_power: FloatArray  # W, >= 0
    discharge_power: FloatArray  # W, >= 0

    def __getitem__(self, name: str) -> FloatArray:
        """One value of all members."""
        column: FloatArray = self.values[self.column[name]]
        return column


def table(members: Sequence[BatteryReading], now: float, max_age: float, invalid_after: float,
          names: tuple[str, ...] = NAMES) -> Table:
    """All members at time `now` (s); as `member.view` of each. `names`: NAMES or SPLIT_NAMES."""
    count = len(members)
    flat = np.fromiter(chain.from_iterable(map(_READ[names], members)), np.float64, count * len(names))
    t = Table(flat.reshape(count, len(names)).T.copy(), _COLUMN[names], *(np.empty(0),) * 7)  # type: ignore[arg-type]
    age = now - t['time']
    aged = np.where(age <= max_age, float(Quality.OK),
                    np.where(age <= invalid_after, float(Quality.STALE), float(Quality.INVALID)))
    t.quality = np.maximum(t['quality'], aged)
    mode, contactor, voltage = t['mode'], t['contactor'], t['voltage']
    with np.errstate(invalid='ignore', over='ignore'):
        t.energy, t.energy_full = _energies(t)
        t.headroom = np.where(t.energy_full > t.energy, t.energy_full - t.energy,
                              np.where(t.energy_full <= t.energy, 0.0, nan))
        t.blocked = ((t.quality != Quality.OK) | (mode == Mode.FAULT) | (mode == Mode.OFF)
                     | (contactor == Contactor.OPEN))
        charge = _limits(t['max_charge_power'], t['max_charge_current'], voltage)
        discharge = _limits(t['max_discharge_power'], t['max_discharge_current'], voltage)
    t.charge_power = np.where(
        t.blocked | (t.headroom == 0) | (contactor == Contactor.DISCHARGE_ONLY), 0.0, charge)
    t.discharge_power = np.where(
        t.blocked | (t.energy == 0) | (contactor == Contactor.CHARGE_ONLY), 0.0, discharge)
    return t


def _energies(t: Table) -> tuple[FloatArray, FloatArray]:
    energy, full, voltage = t['energy'], t['energy_full'], t['voltage']
    measured = (energy >= 0) & (full >= 0)
    derived_full = np.where(np.isnan(full), t['charge_full'] * voltage, full)
    derived = np.where(np.isnan(energy), t['charge'] * voltage, energy)
    derived = np.where(np.isnan(derived), t['soc'] * derived_full, derived)
    derived = np.where(derived < 0, 0.0, derived)
    return np.where(measured, energy, derived), np.where(measured, full, derived_full)


def _limits(power: FloatArray, current: FloatArray, voltage: FloatArray) -> FloatArray:
    value = np.where(np.isnan(power), current * voltage, power)
    return np.where(value > 0, value, 0.0)


def known_sum(values: FloatArray) -> float:
    """Sum of what is known; NaN when nothing is."""
    known = values[~np.isnan(values)]
    return float(known.sum()) if known.size else nan


def weighted(values: FloatArray, weights: FloatArray) -> float:
    """Weighted mean of known values; equal weights when no weight is known."""
    known = ~np.isnan(values)
    heavy = known & (weights > 0)
    total = float(weights[heavy].sum())
    if total > 0:
        return float((values[heavy] * weights[heavy]).sum()) / total
    return float(values[known].mean()) if known.any() else nan


def state_of_charge(t: Table, parts: BoolArray) -> float:
    """Stored over full energy of the members that know both; else the mean of known SoCs."""
    known = parts & (t.energy_full > 0) & (t.energy >= 0)
    full = float(t.energy_full[known].sum())
    return float(t.energy[known].sum()) / full if full > 0 else weighted(t['soc'][parts], np.ones(int(parts.sum())))


def spread(t: Table, parts: BoolArray) -> float:
    """Highest minus lowest state of charge; NaN unknown."""
    with np.errstate(invalid='ignore', divide='ignore'):
        own = np.where((t.energy_full > 0) & (t.energy >= 0), t.energy / t.energy_full, t['soc'])[parts]
    own = own[~np.isnan(own)]
    return float(own.max() - own.min()) if own.size else nan


def voltage_of(t: Table, parts: BoolArray, charging: bool) -> float:
    """As `aggregate._voltage`."""
    voltage = t['voltage']
    known = parts & (voltage > 0)
    for by_headroom in (charging, not charging):
        weight = t.headroom if by_headroom else t.energy
        use = known & (weight > 0)
        if use.any():
            charge = float((weight[use] / voltage[use]).sum())
            if charge > 0:
                return float(weight[use].sum()) / charge
    if known.any():
        return float(voltage[known].mean())
    return 0.0 if bool((voltage[parts] == 0).any()) else nan


def charge_sum(t: Table, name: str, energy: FloatArray, parts: BoolArray) -> float:
    """Sum in Ah; from the energy where not measured."""
    voltage = t['voltage']
    with np.errstate(invalid='ignore', divide='ignore'):
        own = np.where(np.isnan(t[name]) & (voltage > 0), energy / voltage, t[name])
    return known_sum(own[parts])


def extremes(result: BatteryReading, t: Table, parts: BoolArray) -> None:
    """Temperatures and cell voltages: hottest, coldest, lowest, highest of what is known."""
    coldest = np.where(np.isnan(t['temperature_min']), t['temperature'], t['temperature_min'])
    for name, column, highest in (
            ('temperature', t['temperature'], True), ('temperature_min', coldest, False),
            ('cell_voltage_min', t['cell_voltage_min'], False), ('cell_voltage_max', t['cell_voltage_max'], True)):
        known = column[parts]
        known = known[~np.isnan(known)]
        if known.size:
            setattr(result, name, float(known.max() if highest else known.min()))


def power_and_current(t: Table, fresh: BoolArray) -> tuple[float, float]:
    """Summed power in W, and DC power in W; NaN when one member does not know."""
    direct = (t['current'] * t['voltage'])[fresh]
    power = t['power'][fresh]
    total = float(np.where(np.isnan(power), direct, power).sum())
    flow = float(direct.sum())
    return total, (total if isnan(flow) else flow)


def common_limit(limits: FloatArray, energies: FloatArray, plain_sum: bool) -> float:
    """As `expected.pace`."""
    return pace(limits, energies, plain_sum)


def slowest(limits: FloatArray, energies: FloatArray) -> int:
    """Which member sets the pace."""
    with np.errstate(invalid='ignore', divide='ignore'):
        rate = np.where((limits > 0) & (energies > 0), limits / energies, np.inf)
    return int(rate.argmin())


def set_limit(result: BatteryReading, charging: bool, power: float) -> None:
    """Limit of the whole in W, and in A at its voltage."""
    current = 0.0 if power == 0 else power / result.voltage if result.voltage > 0 else nan
    if charging:
        result.max_charge_power, result.max_charge_current = power, current
    else:
        result.max_discharge_power, result.max_discharge_current = power, current


def combine(t: Table) -> BatteryReading:
    """The whole without limits and reasons; as `aggregate.combine`."""
    usable = ~t.blocked
    best = t.quality.min()
    fresh = t.quality == best
    parts = usable if usable.any() else fresh
    power, flow = power_and_current(t, fresh)
    voltage = voltage_of(t, parts, power > 0)
    result = BatteryReading(
        time=float(t['time'][parts].min()),
        newest=float(t['newest'][parts].max()),
        quality=Quality(int(t.quality[parts].max())),
        mode=common_mode([Mode(int(m)) for m in np.unique(t['mode'][parts])], power),
        contactor=common_contactor([Contactor(int(c)) for c in np.unique(t['contactor'][parts])]),
        voltage=voltage,
        current=0.0 if flow == 0 else flow / voltage if voltage > 0 else nan,
        power=power,
        charge=charge_sum(t, 'charge', t.energy, parts),
        charge_full=charge_sum(t, 'charge_full', t.energy_full, parts),
        energy=known_sum(t.energy[parts]),
        energy_full=known_sum(t.energy_full[parts]),
        soc=state_of_charge(t, parts),
        soh=weighted(t['soh'][parts], t.energy_full[parts]),
        energy_charged=float(t['energy_charged'].sum()),
        energy_discharged=float(t['energy_discharged'].sum()),
        balance_power=0.0,
        soc_spread=spread(t, parts),
        members=int(t.blocked.size),
        members_usable=int(usable.sum()),
    )
    extremes(result, t, parts)
    return result
