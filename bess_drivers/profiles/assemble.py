"""Readings of a role from the values of a profile's points. Pure; used by every transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from math import isnan, nan
from typing import Any

from bess_core.values import (
    Alarm,
    BatteryReading,
    ClimateMode,
    ClimateReading,
    Contactor,
    ConverterReading,
    ConverterState,
    IoReading,
    MeterReading,
    Mode,
    Quality,
    Switch,
    finite_or,
)
from bess_drivers.device import Role

from .model import DerivedKeys, Profile
from .roles import VALUES

Values = Mapping[str, Any]  # point -> SI number, tuple of numbers or text
IDLE_A = 0.05  # smaller currents are no charging or discharging
_NO_BITS: tuple[Alarm, ...] = ()
#: Fields of the readings that are not simply the value of the same name.
_METER_OWN = frozenset(('voltage', 'current', 'phase_power', 'time', 'quality', 'sequence', 'alarms'))
_CONVERTER_OWN = frozenset(('voltage', 'current', 'time', 'quality', 'state', 'alarms', 'grid_forming', 'setpoint',
                            'limit_reasons'))
_BATTERY_INTEGERS = ('cell_voltage_min_index', 'cell_voltage_max_index')
_BATTERY_OWN = frozenset(('cells', 'temperatures', 'balancing', *_BATTERY_INTEGERS, 'time', 'newest', 'quality', 'mode',
                          'contactor', 'alarms', 'setpoint', 'members', 'members_usable'))
_CLIMATE_SWITCHES = frozenset(('heating', 'cooling', 'fan'))
_CLIMATE_OWN = _CLIMATE_SWITCHES | {'time', 'quality', 'mode', 'alarms'}


def derive(profile: Profile, values: dict[str, Any]) -> None:
    """Add constants and derived values."""
    values.update(profile.constants)
    for name, keys in profile.derived.items():
        values[name] = _derived(keys, values)


def _derived(keys: DerivedKeys, values: Values) -> float:
    if keys.sum:
        return sum((-1.0 if n[0] == '-' else 1.0) * values.get(n.removeprefix('-'), nan) for n in keys.sum) + 0.0
    if keys.product:
        product = 1.0
        for name in keys.product:
            product *= values.get(name, nan)
        return product + 0.0
    known = [v for n in keys.max or keys.min if not isnan(v := values.get(n, nan))]
    if not known:
        return nan
    return max(known) if keys.max else min(known)


def alarms(profile: Profile, raws: Mapping[str, float]) -> tuple[Alarm, ...]:
    """The named faults whose bit is set or whose code is shown."""
    if not profile.faults:
        return _NO_BITS
    found = []
    for fault in profile.faults:
        raw = raws.get(fault.point, nan)
        if isnan(raw):
            continue
        number = int(raw)
        if fault.zero:
            present = number == 0
        elif fault.bit >= 0:
            present = bool(number >> fault.bit & 1)
        else:
            present = number == fault.code if fault.code else number != 0
        if present:
            found.append(Alarm(fault.id, fault.severity, f'{profile.head.title}: {fault.name}'))
    return tuple(found)


def state_of(profile: Profile, raws: Mapping[str, float]) -> str:
    """Name of the state by the first rule that holds; '' when none does."""
    for rule in profile.states:
        if rule.holds(raws.get(rule.point, nan) if rule.point else nan):
            return rule.state
    return ''


def _three(values: Values, name: str) -> tuple[float, float, float]:
    return (values.get(f'{name}_1', nan), values.get(f'{name}_2', nan), values.get(f'{name}_3', nan))


@cache
def _names(cls: type, skip: frozenset[str]) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls)) - skip


def _plain(cls: type, values: Values, skip: frozenset[str]) -> dict[str, Any]:
    names = _names(cls, skip)
    return {name: value for name, value in values.items() if name in names}


def _number(values: Values, name: str, enum: Any) -> Any:
    value = values.get(name, nan)
    return enum.UNKNOWN if isnan(value) else enum(int(value))


def _switch(values: Values, name: str) -> Switch:
    value = values.get(name, nan)
    return Switch.UNKNOWN if isnan(value) else Switch(int(value != 0.0))


def meter(profile: Profile, values: Values, raws: Mapping[str, float], now: float, inverted: bool) -> MeterReading:
    """A meter reading. An inverted meter counts what it calls import as export."""
    out = MeterReading(
        time=now, quality=Quality.OK, voltage=_three(values, 'voltage'), current=_three(values, 'current'),
        phase_power=_three(values, 'phase_power'), alarms=alarms(profile, raws),
        **_plain(MeterReading, values, _METER_OWN))
    if inverted:
        out.energy_import, out.energy_export = out.energy_export, out.energy_import
        out.power_factor = -out.power_factor
    if isnan(out.active_power) and not any(map(isnan, out.phase_power)):
        out.active_power = sum(out.phase_power)
    return out


def converter(profile: Profile, values: Values, raws: Mapping[str, float], now: float,
              inverted: bool) -> ConverterReading:
    """A converter reading."""
    named = state_of(profile, raws)
    state = ConverterState[named] if named else _number(values, 'state', ConverterState)
    out = ConverterReading(
        time=now, quality=Quality.OK, state=state, voltage=_three(values, 'voltage'),
        current=_three(values, 'current'), alarms=alarms(profile, raws),
        **_plain(ConverterReading, values, _CONVERTER_OWN))
    out.grid_forming = finite_or(values.get('grid_forming', nan), 0.0) != 0.0
    if inverted:
        out.energy_import, out.energy_export = out.energy_export, out.energy_import
    if isnan(out.dc_power):
        out.dc_power = out.dc_voltage * out.dc_current
    return out


def battery(profile: Profile, values: Values, raws: Mapping[str, float], now: float, inverted: bool) -> BatteryReading:
    """A battery reading; power, limits in W, extremes and the mode are worked out where only their parts are known."""
    out = BatteryReading(
        time=now, newest=now, quality=Quality.OK, alarms=alarms(profile, raws),
        **_plain(BatteryReading, values, _BATTERY_OWN))
    if inverted:
        out.energy_charged, out.energy_discharged = out.energy_discharged, out.energy_charged
    for name in _BATTERY_INTEGERS:
        if not isnan(values.get(name, nan)):
            setattr(out, name, int(values[name]))
    out.cells = tuple(values.get('cells', ()))
    out.temperatures = tuple(values.get('temperatures', ()))
    out.balancing = tuple(bool(finite_or(v, 0.0)) for v in values.get('balancing', ()))
    out.contactor = _number(values, 'contactor', Contactor)
    _complete(out)
    named = state_of(profile, raws)
    out.mode = Mode[named] if named else _number(values, 'mode', Mode)
    if out.mode is Mode.UNKNOWN and not isnan(out.current):
        moving = Mode.CHARGING if out.current > 0 else Mode.DISCHARGING
        out.mode = moving if abs(out.current) > IDLE_A else Mode.IDLE
    return out


def _complete(out: BatteryReading) -> None:
    """What follows from other values by definition."""
    if isnan(out.power):
        out.power = out.voltage * out.current
    if isnan(out.max_charge_power):
        out.max_charge_power = out.voltage * out.max_charge_current
    if isnan(out.max_discharge_power):
        out.max_discharge_power = out.voltage * out.max_discharge_current
    if isnan(out.charge):
        out.charge = out.charge_full * out.soc
    if isnan(out.energy):
        out.energy = out.energy_full * out.soc
    cells = [v for v in out.cells if not isnan(v)]
    if cells and isnan(out.cell_voltage_min):
        out.cell_voltage_min = min(cells)
        out.cell_voltage_min_index = out.cells.index(out.cell_voltage_min)
    if cells and isnan(out.cell_voltage_max):
        out.cell_voltage_max = max(cells)
        out.cell_voltage_max_index = out.cells.index(out.cell_voltage_max)
    temperatures = [v for v in out.temperatures if not isnan(v)]
    if temperatures:
        out.temperature = max(temperatures) if isnan(out.temperature) else out.temperature
        out.temperature_min = min(temperatures) if isnan(out.temperature_min) else out.temperature_min


def io(profile: Profile, values: Values, raws: Mapping[str, float], now: float, inverted: bool) -> IoReading:
    """An I/O reading; every point of the profile is in it, unknown ones as UNKNOWN or NaN."""
    del inverted  # nothing here has a direction
    out = IoReading(time=now, quality=Quality.OK, alarms=alarms(profile, raws))
    for name, point in profile.points.items():
        kind = point.keys.kind
        if kind.startswith('digital'):
            table = out.digital_inputs if kind == 'digital_input' else out.digital_outputs
            table[name] = _switch(values, name)
        elif kind:
            analog = out.analog_inputs if kind == 'analog_input' else out.analog_outputs
            analog[name] = values.get(name, nan)
            out.units[name] = point.si_unit
    return out


def climate(profile: Profile, values: Values, raws: Mapping[str, float], now: float, inverted: bool) -> ClimateReading:
    """A climate reading."""
    del inverted
    named = state_of(profile, raws)
    return ClimateReading(
        time=now, quality=Quality.OK, alarms=alarms(profile, raws),
        mode=ClimateMode[named] if named else _number(values, 'mode', ClimateMode),
        **{name: _switch(values, name) for name in _CLIMATE_SWITCHES},
        **_plain(ClimateReading, values, _CLIMATE_OWN))


ASSEMBLE = {Role.METER: meter, Role.CONVERTER: converter, Role.BATTERY: battery, Role.IO: io, Role.CLIMATE: climate}


def missing(profile: Profile) -> list[str]:
    """Values of the role that the profile cannot fill: they stay NaN or UNKNOWN."""
    filled = {*profile.points, *profile.constants, *profile.derived, *(['state', 'mode'] if profile.states else [])}
    if {'dc_voltage', 'dc_current'} <= filled:
        filled.add('dc_power')
    return [name for name in VALUES[profile.role] if name not in filled]
