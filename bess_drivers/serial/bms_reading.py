"""What any BMS says, as a `BatteryReading`: limits from cells and temperatures, alarms, mode. Pure.

A codec fills a `Snapshot`; everything that is not about one protocol is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan

from bess_core.params import param
from bess_core.values import Alarm, BatteryReading, Contactor, Mode, Quality, Severity
from bess_drivers.device import BadValue


@dataclass(frozen=True)
class Condition:
    """An alarm bit of a BMS: `id` without prefix, what it means, and which way it blocks."""

    id: str
    text: str
    severity: Severity = Severity.ERROR
    blocks_charge: bool = False
    blocks_discharge: bool = False


@dataclass(frozen=True)
class PackParams:
    """Limits of a pack; the defaults fit LFP cells. Raises ValueError where a pair is the wrong way round."""

    max_charge_current: float = param(100.0, 'A', 'charge current that the pack takes', low=0.0, high=5000.0)
    max_discharge_current: float = param(100.0, 'A', 'discharge current that the pack gives', low=0.0, high=5000.0)
    nominal_voltage: float = param(0.0, 'V', 'turns Ah into Wh; 0 = the measured voltage', low=0.0, high=1500.0)
    cell_voltage_high: float = param(3.65, 'V', 'no charging at or above this cell voltage', low=1.0, high=5.0)
    cell_voltage_low: float = param(2.8, 'V', 'no discharging at or below this cell voltage', low=0.5, high=4.5)
    cell_voltage_taper: float = param(0.1, 'V', 'the current falls to 0 over this voltage before', low=0.0, high=1.0)
    charge_temperature_min: float = param(0.0, 'degC', 'no charging below', low=-40.0, high=60.0)
    charge_temperature_max: float = param(50.0, 'degC', 'no charging above', low=0.0, high=100.0)
    discharge_temperature_min: float = param(-20.0, 'degC', 'no discharging below', low=-40.0, high=60.0)
    discharge_temperature_max: float = param(60.0, 'degC', 'no discharging above', low=0.0, high=100.0)

    def __post_init__(self) -> None:
        for low, high in (('cell_voltage_low', 'cell_voltage_high'),
                          ('charge_temperature_min', 'charge_temperature_max'),
                          ('discharge_temperature_min', 'discharge_temperature_max')):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f'{low} is {getattr(self, low):g}, must be below {high} {getattr(self, high):g}')


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """One complete poll of a BMS in SI units, + = charging; NaN or None = the BMS does not say."""

    voltage: float
    current: float
    cells: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    charge: float = nan  # Ah left
    charge_full: float = nan  # Ah
    soc: float = nan  # as shown; used where charges are not known
    soh: float = nan
    charge_on: bool | None = None  # charge path
    discharge_on: bool | None = None
    charge_limit: float = nan  # A, of the BMS
    discharge_limit: float = nan
    balancing: tuple[bool, ...] = ()
    conditions: tuple[Condition, ...] = ()
    cell_min: float = nan  # where single cells are not known
    cell_max: float = nan


def taper(distance: float, width: float) -> float:
    """1 far from a limit, linearly to 0 at it and beyond."""
    if distance <= 0.0:
        return 0.0
    return 1.0 if distance >= width else distance / width


def current_limits(s: Snapshot, p: PackParams) -> tuple[float, float, list[str]]:
    """Allowed charge and discharge current (A, magnitudes), and one line per limit that binds."""
    charge, discharge, reasons = p.max_charge_current, p.max_discharge_current, []
    if s.charge_limit < charge:
        charge = s.charge_limit
        reasons.append(f'bms: charge current limit {charge:g} A')
    if s.discharge_limit < discharge:
        discharge = s.discharge_limit
        reasons.append(f'bms: discharge current limit {discharge:g} A')
    highest, lowest = max(s.cells, default=s.cell_max), min(s.cells, default=s.cell_min)
    if (share := taper(p.cell_voltage_high - highest, p.cell_voltage_taper)) < 1.0:
        charge *= share
        reasons.append(f'bms: {_cell(s, highest)} at {highest:.3f} V, charging at {share:.0%}')
    if (share := taper(lowest - p.cell_voltage_low, p.cell_voltage_taper)) < 1.0:
        discharge *= share
        reasons.append(f'bms: {_cell(s, lowest)} at {lowest:.3f} V, discharging at {share:.0%}')
    for value in s.temperatures:
        if not p.charge_temperature_min <= value <= p.charge_temperature_max:
            charge = 0.0
            reasons.append(f'bms: no charging at {value:.1f} degC')
        if not p.discharge_temperature_min <= value <= p.discharge_temperature_max:
            discharge = 0.0
            reasons.append(f'bms: no discharging at {value:.1f} degC')
    for c in s.conditions:
        charge = 0.0 if c.blocks_charge else charge
        discharge = 0.0 if c.blocks_discharge else discharge
        if c.blocks_charge or c.blocks_discharge:
            reasons.append(f'bms: {c.text}')
    if s.charge_on is False:
        charge = 0.0
        reasons.append('bms: charging is switched off')
    if s.discharge_on is False:
        discharge = 0.0
        reasons.append('bms: discharging is switched off')
    return charge, discharge, reasons


def _cell(s: Snapshot, value: float) -> str:
    return f'cell {s.cells.index(value) + 1}' if s.cells else 'a cell'


def contactor_of(charge_on: bool | None, discharge_on: bool | None) -> Contactor:
    """Charge and discharge path as one contactor."""
    if charge_on is None or discharge_on is None:
        return Contactor.UNKNOWN
    if charge_on:
        return Contactor.CLOSED if discharge_on else Contactor.CHARGE_ONLY
    return Contactor.DISCHARGE_ONLY if discharge_on else Contactor.OPEN


def mode_of(current: float, idle: float, contactor: Contactor, failed: bool) -> Mode:
    """Operating mode; `current` in A (+ = charging), below `idle` A nothing flows."""
    if failed:
        return Mode.FAULT
    if contactor is Contactor.OPEN:
        return Mode.OFF
    if isnan(current):
        return Mode.UNKNOWN
    return Mode.IDLE if abs(current) < idle else Mode.CHARGING if current > 0 else Mode.DISCHARGING


def alarms_of(conditions: tuple[Condition, ...], prefix: str) -> tuple[Alarm, ...]:
    """Each condition once, as a fault of this driver."""
    return tuple({c.id: Alarm(f'{prefix}.{c.id}', c.severity, c.text) for c in conditions}.values())


def reading_from(s: Snapshot, p: PackParams, prefix: str, time: float, idle: float = 0.1) -> BatteryReading:
    """A complete reading; `time` in s (site clock), `prefix` of the fault ids, `idle` in A."""
    charge_limit, discharge_limit, reasons = current_limits(s, p)
    alarms = alarms_of(s.conditions, prefix)
    volts = p.nominal_voltage or s.voltage
    soc = min(1.0, s.charge / s.charge_full) if s.charge_full > 0 and not isnan(s.charge) else s.soc
    charge = s.charge if not isnan(s.charge) else s.charge_full * soc
    low, high = min(s.cells, default=s.cell_min), max(s.cells, default=s.cell_max)
    contactor = contactor_of(s.charge_on, s.discharge_on)
    return BatteryReading(
        time=time, newest=time, quality=Quality.OK, contactor=contactor,
        mode=mode_of(s.current, idle, contactor, any(a.severity is Severity.CRITICAL for a in alarms)),
        voltage=s.voltage, current=s.current, power=s.voltage * s.current, charge=charge, charge_full=s.charge_full,
        energy=charge * volts, energy_full=s.charge_full * volts, max_charge_current=charge_limit,
        max_discharge_current=discharge_limit, max_charge_power=charge_limit * s.voltage,
        max_discharge_power=discharge_limit * s.voltage, soc=soc, soh=s.soh,
        temperature=max(s.temperatures, default=nan), temperature_min=min(s.temperatures, default=nan),
        cell_voltage_min=low, cell_voltage_max=high,
        cell_voltage_min_index=s.cells.index(low) if s.cells else -1,
        cell_voltage_max_index=s.cells.index(high) if s.cells else -1,
        limit_reasons=reasons, cells=s.cells, temperatures=s.temperatures, balancing=s.balancing, alarms=alarms)


def named(table: dict[int, Condition], bits: int, unknown: str = 'alarm_bit') -> tuple[Condition, ...]:
    """Conditions of the bits that are set; a bit without a meaning is one of its own, with its number."""
    return tuple(
        table.get(bit) or Condition(f'{unknown}_{bit}', f'unknown alarm bit {bit}', Severity.WARNING)
        for bit in range(bits.bit_length()) if bits >> bit & 1)


def checked(what: str, value: float, low: float = -inf, high: float = inf) -> float:
    """`value`, or `BadValue` when it cannot be."""
    if not low <= value <= high:
        raise BadValue(f'{what} {value:g} is not in {low:g}..{high:g}')
    return value
