"""What a JBD BMS says, as a `BatteryReading`: parameters, alarms and limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import isfinite, isnan, nan
from typing import Any

from bess_core.params import param
from bess_core.values import Alarm, BatteryReading, Contactor, Mode, Quality, Severity
from bess_drivers.device import BadValue
from bess_drivers.serial.jbd_codec import PROTECTIONS, Basic, Protection

SOC_TOLERANCE = 0.05  # counted and shown state of charge may differ by this much


def _param(default: Any, unit: str, low: float, high: float, doc: str) -> Any:
    return field(default=default, metadata={'unit': unit, 'min': low, 'max': high, 'doc': doc})


@dataclass(frozen=True)
class JbdParams:
    """Settings of one JBD BMS; defaults fit 16 LFP cells. Raises ValueError outside the ranges."""

    address: str = param(
        'serial:/dev/ttyUSB0?baud=9600', doc='serial port: serial:<path>?baud=9600&parity=N&stopbits=1')
    timeout_s: float = _param(0.6, 's', 0.05, 10.0, 'time for one answer')
    late_s: float = _param(3.0, 's', 0.1, 60.0, 'after silence, wait so long for a late answer')
    cells_every: int = _param(1, 'polls', 1, 100, 'read the cell voltages every so many polls')
    max_charge_current: float = _param(
        100.0, 'A', 0.0, 1000.0, 'charge current that the pack takes'
    )
    max_discharge_current: float = _param(
        100.0, 'A', 0.0, 1000.0, 'discharge current that the pack gives'
    )
    nominal_voltage: float = _param(
        nan, 'V', 1.0, 200.0, 'turns Ah into Wh; NaN = the measured voltage'
    )
    cell_voltage_high: float = _param(
        3.65, 'V', 1.0, 5.0, 'no charging at or above this cell voltage'
    )
    cell_voltage_low: float = _param(
        2.8, 'V', 0.5, 4.5, 'no discharging at or below this cell voltage'
    )
    cell_voltage_taper: float = _param(
        0.1, 'V', 0.0, 1.0, 'the current falls to 0 over this voltage before'
    )
    charge_temperature_min: float = _param(0.0, 'degC', -40.0, 60.0, 'no charging below')
    charge_temperature_max: float = _param(50.0, 'degC', 0.0, 100.0, 'no charging above')
    discharge_temperature_min: float = _param(-20.0, 'degC', -40.0, 60.0, 'no discharging below')
    discharge_temperature_max: float = _param(60.0, 'degC', 0.0, 100.0, 'no discharging above')

    def __post_init__(self) -> None:
        for f in fields(self):
            if 'min' not in f.metadata:
                continue
            value, low, high = getattr(self, f.name), f.metadata['min'], f.metadata['max']
            unset = isnan(float(getattr(type(self), f.name))) and isnan(
                value
            )  # NaN means "unset" where it is the default
            if not unset and not low <= value <= high:
                unit = f.metadata['unit']
                raise ValueError(f'{f.name} is {value!r} {unit}, allowed {low:g}..{high:g} {unit}')
        for low_name, high_name in (
            ('cell_voltage_low', 'cell_voltage_high'),
            ('charge_temperature_min', 'charge_temperature_max'),
            ('discharge_temperature_min', 'discharge_temperature_max'),
        ):
            if getattr(self, low_name) >= getattr(self, high_name):
                raise ValueError(
                    f'{low_name} is {getattr(self, low_name):g}, must be below '
                    f'{high_name} {getattr(self, high_name):g}'
                )


def _situation(protection: Protection, basic: Basic, cells: tuple[float, ...]) -> str:
    """The measured value that belongs to a protection, in words."""
    name = protection.name
    if name.startswith('cell_'):
        value = max(cells) if name == 'cell_overvoltage' else min(cells)
        return f': cell {cells.index(value) + 1} at {value:.3f} V'
    if name.startswith('pack_'):
        return f': {basic.voltage:.2f} V'
    if name.endswith('temperature') and basic.temperatures:
        value = max(basic.temperatures) if 'over' in name else min(basic.temperatures)
        return f': {value:.1f} degC'
    if name.endswith('overcurrent') or name == 'short_circuit':
        return f': {basic.current:.2f} A now'
    return ''


def alarms_of(basic: Basic, cells: tuple[float, ...]) -> tuple[Alarm, ...]:
    """Each protection bit that is set, and a state of charge that contradicts itself."""
    found = []
    for bit in range(16):
        if not basic.protections >> bit & 1:
            continue
        if bit < len(PROTECTIONS):
            known = PROTECTIONS[bit]
            text = known.text + _situation(known, basic, cells)
            found.append(Alarm(f'jbd.{known.name}', known.severity, text))
        else:
            text = f'unknown protection bit {bit}'
            found.append(Alarm(f'jbd.protection_bit_{bit}', Severity.WARNING, text))
    counted = basic.remaining / basic.full
    if abs(counted - basic.soc_shown) > SOC_TOLERANCE:
        text = f'state of charge: {counted:.0%} by charge, but the BMS shows {basic.soc_shown:.0%}'
        found.append(Alarm('jbd.soc_mismatch', Severity.WARNING, text))
    return tuple(found)


def contactor_of(charge_fet: bool, discharge_fet: bool) -> Contactor:
    """The pair of FETs as one contactor."""
    if charge_fet:
        return Contactor.CLOSED if discharge_fet else Contactor.CHARGE_ONLY
    return Contactor.DISCHARGE_ONLY if discharge_fet else Contactor.OPEN


def _taper(distance: float, width: float) -> float:
    """1 far from a limit, linearly to 0 at it and beyond."""
    if distance <= 0.0:
        return 0.0
    return 1.0 if distance >= width else distance / width


def current_limits(
    basic: Basic, cells: tuple[float, ...], params: JbdParams
) -> tuple[float, float, list[str]]:
    """Allowed charge and discharge current (A, magnitudes), and one line per limit that binds."""
    charge, discharge = params.max_charge_current, params.max_discharge_current
    reasons = []
    highest, lowest = max(cells), min(cells)
    share = _taper(params.cell_voltage_high - highest, params.cell_voltage_taper)
    if share < 1.0:
        charge *= share
        reasons.append(
            f'bms: cell {cells.index(highest) + 1} at {highest:.3f} V, charging at {share:.0%}'
        )
    share = _taper(lowest - params.cell_voltage_low, params.cell_voltage_taper)
    if share < 1.0:
        discharge *= share
        reasons.append(
            f'bms: cell {cells.index(lowest) + 1} at {lowest:.3f} V, discharging at {share:.0%}'
        )
    for value in basic.temperatures:
        if not params.charge_temperature_min <= value <= params.charge_temperature_max:
            charge = 0.0
            reasons.append(f'bms: no charging at {value:.1f} degC')
        if not params.discharge_temperature_min <= value <= params.discharge_temperature_max:
            discharge = 0.0
            reasons.append(f'bms: no discharging at {value:.1f} degC')
    for bit, protection in enumerate(PROTECTIONS):
        if basic.protections >> bit & 1:
            charge = 0.0 if protection.blocks_charge else charge
            discharge = 0.0 if protection.blocks_discharge else discharge
            if protection.blocks_charge or protection.blocks_discharge:
                reasons.append(f'bms: {protection.text}')
    if not basic.charge_fet:
        charge = 0.0
        reasons.append('bms: charge FET is off')
    if not basic.discharge_fet:
        discharge = 0.0
        reasons.append('bms: discharge FET is off')
    return charge, discharge, reasons


def _mode(basic: Basic, alarms: tuple[Alarm, ...]) -> Mode:
    if any(alarm.severity is Severity.CRITICAL for alarm in alarms):
        return Mode.FAULT
    if not basic.charge_fet and not basic.discharge_fet:
        return Mode.OFF
    if abs(basic.current) < 0.05:  # A, the BMS shows less as 0
        return Mode.IDLE
    return Mode.CHARGING if basic.current > 0 else Mode.DISCHARGING


def reading_from(
    basic: Basic, cells: tuple[float, ...], params: JbdParams, time: float, newest: float
) -> BatteryReading:
    """A complete reading; `time` and `newest` in s, of the oldest and newest sample.

    Raises `BadValue` when the number of cells contradicts itself.
    """
    if len(cells) != basic.cell_count:
        raise BadValue(f'{len(cells)} cell voltages from a BMS that says {basic.cell_count} cells')
    alarms = alarms_of(basic, cells)
    charge_limit, discharge_limit, reasons = current_limits(basic, cells, params)
    energy_voltage = params.nominal_voltage if isfinite(params.nominal_voltage) else basic.voltage
    return BatteryReading(
        time=time,
        newest=newest,
        quality=Quality.OK,
        mode=_mode(basic, alarms),
        contactor=contactor_of(basic.charge_fet, basic.discharge_fet),
        voltage=basic.voltage,
        current=basic.current,
        power=basic.voltage * basic.current,
        charge=basic.remaining,
        charge_full=basic.full,
        energy=basic.remaining * energy_voltage,
        energy_full=basic.full * energy_voltage,
        max_charge_current=charge_limit,
        max_discharge_current=discharge_limit,
        max_charge_power=charge_limit * basic.voltage,
        max_discharge_power=discharge_limit * basic.voltage,
        soc=min(
            1.0, basic.remaining / basic.full
        ),  # counting may pass "full" a little, see FULL_TOLERANCE
        temperature=max(basic.temperatures, default=nan),
        temperature_min=min(basic.temperatures, default=nan),
        cell_voltage_min=min(cells),
        cell_voltage_max=max(cells),
        cell_voltage_min_index=cells.index(min(cells)),
        cell_voltage_max_index=cells.index(max(cells)),
        limit_reasons=reasons,
        cells=cells,
        temperatures=basic.temperatures,
        balancing=basic.balancing,
        alarms=alarms,
    )
