"""Unit: a battery management system and its converter seen as one logical battery.

The power terminals of a unit are the AC terminals of the converter; voltage and current are those of
the DC terminals. A current limit of the BMS becomes an AC limit by voltage and efficiency:

    charging     P_ac = I * V / efficiency     (the converter's losses come on top)
    discharging  P_ac = I * V * efficiency     (the losses are taken off)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan

from bess_core.values import (
    BatteryReading,
    Contactor,
    ConverterReading,
    ConverterState,
    Mode,
    Quality,
    quality_of,
)


@dataclass(frozen=True, slots=True)
class Ages:
    """Allowed ages in s: older than `max_age` is STALE, older than `invalid_after` INVALID."""

    bms_max_age: float = 3.0
    bms_invalid_after: float = 15.0
    converter_max_age: float = 2.0
    converter_invalid_after: float = 10.0


@dataclass(frozen=True, slots=True)
class UnitParams:
    """Settings of a unit. Efficiencies in (0, 1]; powers in W >= 0, AC side."""

    charge_efficiency: float = 0.95
    discharge_efficiency: float = 0.95
    max_charge_power: float = inf
    max_discharge_power: float = inf
    idle_power: float = 20.0  # below this magnitude the unit counts as idle

    def __post_init__(self) -> None:
        for name in ('charge_efficiency', 'discharge_efficiency'):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f'{name} is {value}, allowed: above 0, up to 1')
        for name in ('max_charge_power', 'max_discharge_power', 'idle_power'):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f'{name} is {value} W, allowed: 0 or more')


def dc_current_to_ac_power(current: float, voltage: float, efficiency: float) -> float:
    """AC power in W for a DC current in A (both + = charging), voltage in V, efficiency in (0, 1]."""
    return dc_to_ac_power(current * voltage, efficiency)


def dc_to_ac_power(power: float, efficiency: float) -> float:
    """AC power for a DC power, W, + = charging. ValueError unless 0 < efficiency <= 1."""
    if not 0 < efficiency <= 1:
        raise ValueError(f'efficiency is {efficiency}, allowed: above 0, up to 1')
    return power / efficiency if power > 0 else power * efficiency


def ac_to_dc_power(power: float, efficiency: float) -> float:
    """Inverse of `dc_to_ac_power`."""
    if not 0 < efficiency <= 1:
        raise ValueError(f'efficiency is {efficiency}, allowed: above 0, up to 1')
    return power * efficiency if power > 0 else power / efficiency


def merge(bms: BatteryReading, conv: ConverterReading, now: float, ages: Ages,
          params: UnitParams) -> BatteryReading:
    """One logical battery at time `now` (s).

    Limits are the tightest of BMS, converter and settings, `limit_reasons` names which one binds in
    each direction, followed by what BMS and converter themselves report. Limits are 0 while either
    side is INVALID, failed, off, or the contactor blocks the direction. Quality is the worst and
    `time` the oldest of both. Power and energy counters are those of the AC side; where the converter
    does not measure power it follows from the DC side by efficiency.
    """
    bms_quality, conv_quality = bms.quality, conv.quality
    if not now - bms.time <= ages.bms_max_age:
        bms_quality = max(bms_quality, quality_of(now - bms.time, ages.bms_max_age, ages.bms_invalid_after))
    if not now - conv.time <= ages.converter_max_age:
        conv_quality = max(
            conv_quality, quality_of(now - conv.time, ages.converter_max_age, ages.converter_invalid_after))
    quality = bms_quality if bms_quality >= conv_quality else conv_quality
    voltage = conv.dc_voltage if isnan(bms.voltage) else bms.voltage
    current = conv.dc_current if isnan(bms.current) else bms.current
    power = conv.active_power
    if isnan(power):
        power = current * voltage if isnan(conv.dc_power) else conv.dc_power
        power = dc_to_ac_power(
            power, params.charge_efficiency if power > 0 else params.discharge_efficiency)

    reasons: list[str] = []
    stop = _stop(bms, conv, bms_quality, conv_quality)
    if stop:
        max_charge = max_discharge = 0.0
        reasons.append(stop)
    else:
        if bms.contactor == Contactor.DISCHARGE_ONLY:
            max_charge = 0.0
            reasons.append('charge blocked: contactor')
        else:
            max_charge = _tightest(
                'charge', _ac_limit(bms.max_charge_power, bms.max_charge_current, voltage,
                                    1 / params.charge_efficiency),
                conv.max_charge_power, conv.max_apparent_power, params.max_charge_power, reasons)
        if bms.contactor == Contactor.CHARGE_ONLY:
            max_discharge = 0.0
            reasons.append('discharge blocked: contactor')
        else:
            max_discharge = _tightest(
                'discharge', _ac_limit(bms.max_discharge_power, bms.max_discharge_current, voltage,
                                       params.discharge_efficiency),
                conv.max_discharge_power, conv.max_apparent_power, params.max_discharge_power, reasons)
    if bms_quality == Quality.STALE:
        reasons.append(f'bms: stale, {now - bms.time:.1f} s old')
    if conv_quality == Quality.STALE:
        reasons.append(f'converter: stale, {now - conv.time:.1f} s old')
    if bms.limit_reasons:
        reasons += [f'bms: {text}' for text in bms.limit_reasons]
    if conv.limit_reasons:
        reasons += [f'converter: {text}' for text in conv.limit_reasons]

    return BatteryReading(
        time=min(bms.time, conv.time),
        newest=max(bms.newest, conv.time),
        quality=quality,
        mode=_mode(bms, conv, power, params.idle_power),
        contactor=bms.contactor,
        voltage=voltage,
        current=current,
        power=power,
        charge=bms.charge,
        charge_full=bms.charge_full,
        energy=bms.energy,
        energy_full=bms.energy_full,
        max_charge_current=_dc_current(max_charge * params.charge_efficiency, voltage),
        max_discharge_current=_dc_current(max_discharge / params.discharge_efficiency, voltage),
        max_charge_power=max_charge,
        max_discharge_power=max_discharge,
        soc=bms.soc,
        soc_spread=bms.soc_spread,
        voltage_spread=bms.voltage_spread,
        current_spread=bms.current_spread,
        missing=[f'bms: {text}' for text in bms.missing],
        soh=bms.soh,
        temperature=bms.temperature,
        temperature_min=bms.temperature_min,
        cell_voltage_min=bms.cell_voltage_min,
        cell_voltage_max=bms.cell_voltage_max,
        cell_voltage_min_index=bms.cell_voltage_min_index,
        cell_voltage_max_index=bms.cell_voltage_max_index,
        energy_charged=conv.energy_import,
        energy_discharged=conv.energy_export,
        setpoint=conv.setpoint,
        setpoint_source=conv.setpoint_source,
        members=1,
        members_usable=0 if stop or quality != Quality.OK else 1,
        limit_reasons=reasons,
        cells=bms.cells,
        temperatures=bms.temperatures,
        balancing=bms.balancing,
        alarms=bms.alarms + conv.alarms,
    )


def limited(power: float, reading: BatteryReading) -> float:
    """`power` (W) within the reading's present limits; an unknown limit allows nothing."""
    limit = reading.max_charge_power if power > 0 else reading.max_discharge_power
    if isnan(limit) or limit <= 0.0:
        return 0.0
    return min(power, limit) if power > 0 else max(power, -limit)


def _stop(bms: BatteryReading, conv: ConverterReading, bms_quality: Quality,
          conv_quality: Quality) -> str:
    """Why the unit must take no power in either direction; '' when it may."""
    if bms_quality == Quality.INVALID:
        return 'bms: no valid data'
    if conv_quality == Quality.INVALID:
        return 'converter: no valid data'
    if bms.mode == Mode.FAULT:
        return 'bms: fault'
    if conv.state == ConverterState.FAULT:
        return 'converter: fault'
    if bms.contactor == Contactor.OPEN:
        return 'bms: contactor open'
    if bms.mode == Mode.OFF:
        return 'bms: off'
    if conv.state == ConverterState.OFF:
        return 'converter: off'
    return ''


def _tightest(direction: str, bms: float, converter: float, apparent: float, settings: float,
              reasons: list[str]) -> float:
    """The smallest known limit (W); appends who sets it. NaN when none is known."""
    name, tightest = '', inf
    if bms < tightest:  # false for NaN
        name, tightest = 'bms', bms
    if converter < tightest:
        name, tightest = 'converter', converter
    if apparent < tightest:
        name, tightest = 'converter apparent power', apparent
    if settings < tightest:
        name, tightest = 'settings', settings
    if not name:
        reasons.append(f'{direction}: no limit known')
        return nan
    tightest = max(tightest, 0.0)
    reasons.append(f'{direction} {tightest:.0f} W: {name}')
    return tightest


def _ac_limit(power: float, current: float, voltage: float, factor: float) -> float:
    """AC limit from the DC limits of the BMS: the tighter of power and current times voltage; NaN unknown."""
    from_current = current * voltage
    if isnan(power) or from_current < power:
        power = from_current
    return power * factor


def _dc_current(power: float, voltage: float) -> float:
    if power == 0:
        return 0.0
    return power / voltage if voltage > 0 else nan


def _mode(bms: BatteryReading, conv: ConverterReading, power: float, idle: float) -> Mode:
    if bms.mode == Mode.FAULT or conv.state == ConverterState.FAULT:
        return Mode.FAULT
    if (bms.mode == Mode.OFF or conv.state == ConverterState.OFF
            or bms.contactor == Contactor.OPEN):
        return Mode.OFF
    if power > idle:
        return Mode.CHARGING
    if power < -idle:
        return Mode.DISCHARGING
    return bms.mode if isnan(power) else Mode.IDLE
