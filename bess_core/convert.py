"""Readings to messages and back, field by field by name, by functions made once per type (`bess_core.messages`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CellArray, ClimateStatus, InverterStatus, IoStatus, MeterStatus, PowerSetpoint

from .clock import Clock, join_stamp, split_stamp
from .messages import compiled, floats, maker
from .values import (
    BatteryReading,
    ClimateReading,
    Contactor,
    ConverterReading,
    ConverterState,
    IoReading,
    MeterReading,
    Mode,
    Quality,
)

#: As calling the enum, but several times faster.
_QUALITY = {int(q): q for q in Quality}
_MODE = {int(m): m for m in Mode}
_CONTACTOR = {int(c): c for c in Contactor}
_STATE = {int(s): s for s in ConverterState}
_NAN = float('nan')
_NEVER = float('-inf')

#: Header of a message from the arguments sec, nanosec and frame of its maker.
HEADER = {'header.stamp.sec': 'sec', 'header.stamp.nanosec': 'nanosec', 'header.frame_id': 'frame'}


def _ints(*names: str) -> dict[str, str]:
    return {name: f'int(r.{name})' for name in names}


def _lists(*names: str) -> dict[str, str]:
    return {name: f'[*r.{name}]' for name in names}


def _arrays(*names: str) -> dict[str, str]:
    return {name: f'array(r.{name}, float)' for name in names}


_new_battery = maker(BatteryStatus, 'r, frame, sec, nanosec, newest_sec, newest_nanosec, next_sec, next_nanosec', {
    **HEADER, 'newest_stamp.sec': 'newest_sec', 'newest_stamp.nanosec': 'newest_nanosec',
    'next_change.sec': 'next_sec', 'next_change.nanosec': 'next_nanosec',
    **floats(BatteryStatus, 'r', of=BatteryReading),
    **_ints('quality', 'mode', 'contactor', 'cell_voltage_min_index', 'cell_voltage_max_index', 'members',
            'members_usable'),
    'setpoint_source': 'r.setpoint_source', **_lists('limit_reasons', 'missing')})
_new_converter = maker(InverterStatus, 'r, frame, sec, nanosec', {
    **HEADER, **floats(InverterStatus, 'r', of=ConverterReading), **_ints('quality', 'state'),
    'grid_forming': 'bool(r.grid_forming)',
    **_arrays('voltage', 'current'), 'setpoint_source': 'r.setpoint_source', **_lists('limit_reasons'),
    'alarms': '[a.text for a in r.alarms]'}, array=np.array)
_new_meter = maker(MeterStatus, 'r, frame, sec, nanosec', {
    **HEADER, **floats(MeterStatus, 'r', of=MeterReading), **_ints('sequence', 'quality'),
    **_arrays('voltage', 'current', 'phase_power')}, array=np.array)
_new_climate = maker(ClimateStatus, 'r, frame, sec, nanosec, setpoint_source, lease_remaining', {
    **HEADER, **floats(ClimateStatus, 'r', 'lease_remaining', of=ClimateReading),
    **_ints('quality', 'mode', 'heating', 'cooling', 'fan'), 'alarms': '[a.text for a in r.alarms]'})


def _reader(reading: type, first: str, last: str, before: str, after: str) -> Callable[..., Any]:
    """Function of a message `m` and the times `time, newest`: the fields from `first` to `last` are taken as they are.

    Read from where they are stored: the properties of a message are Python functions.
    """
    names = [f.name for f in dataclass_fields(reading)]  # type: ignore[arg-type]
    taken = ''.join(f'm._{name}, ' for name in names[names.index(first):names.index(last) + 1])
    return compiled('m, time, newest', [], f'reading({before}, {taken}{after})', {
        'reading': reading, 'quality': _QUALITY, 'mode': _MODE, 'contactor': _CONTACTOR, 'state': _STATE})


_read_battery = _reader(
    BatteryReading, 'voltage', 'members_usable',
    'time, newest, quality[m._quality], mode[m._mode], contactor[m._contactor]', '[*m._limit_reasons], [*m._missing]')
_read_converter = _reader(
    ConverterReading, 'active_power', 'setpoint_source',
    'time, quality[m._quality], state[m._state], m._grid_forming, (*m._voltage.tolist(),), (*m._current.tolist(),)',
    '[*m._limit_reasons]')
_read_meter = _reader(
    MeterReading, 'active_power', 'energy_export',
    'time, m._sequence, quality[m._quality], (*m._voltage.tolist(),), (*m._current.tolist(),), '
    '(*m._phase_power.tolist(),)', '')


def stamp_parts(clock: Clock, at: float) -> tuple[int, int]:
    """Seconds and nanoseconds of the stamp of a site time; zero for "never"."""
    return (0, 0) if at == _NEVER else split_stamp(clock.to_wall(at))


def stamp(clock: Clock, at: float) -> Time:
    """Stamp of a site time; zero for "never"."""
    time = Time()
    set_stamp(time, clock, at)
    return time


def set_stamp(time: Time, clock: Clock, at: float) -> None:
    """Make `time` the stamp of a site time, in place; zero for "never"."""
    sec, nanosec = stamp_parts(clock, at)
    if time._sec != sec:
        time.sec = sec
    time._nanosec = nanosec  # below 1e9 by `split_stamp`


def wall_stamp(wall: float) -> Time:
    """Stamp of an absolute time."""
    sec, nanosec = split_stamp(wall)
    return Time(sec=sec, nanosec=nanosec)


def set_wall(time: Time, wall: float) -> None:
    """Make `time` the stamp of an absolute time, in place; zero for NaN."""
    sec, nanosec = split_stamp(wall)
    if time._sec != sec:
        time.sec = sec
    time._nanosec = nanosec  # below 1e9 by `split_stamp`


def site_time(clock: Clock, time: Time) -> float:
    """Site time of a stamp; -inf for the zero stamp."""
    sec, nanosec = time._sec, time._nanosec
    if sec == 0 and nanosec == 0:
        return _NEVER
    return clock.from_wall(sec + nanosec * 1e-9)


def sent_at(message: Any, clock: Clock) -> float:
    """Site time of the stamp in the header of a message; -inf for the zero stamp."""
    return site_time(clock, message._header._stamp)


def order_from_msg(m: PowerSetpoint, clock: Clock) -> tuple[float, float, float, str, int, int, float]:
    """Power in W, reactive power in var, lease in s, source, term, sequence and site time (-inf: none) of an order."""
    return m._power, m._reactive_power, m._lease, m._source, m._term, m._sequence, site_time(clock, m._header._stamp)


def battery_to_msg(reading: BatteryReading, clock: Clock, name: str = '') -> BatteryStatus:
    """`BatteryStatus` of a reading."""
    sec, nanosec = stamp_parts(clock, reading.time)
    newest = (sec, nanosec) if reading.newest == reading.time else stamp_parts(clock, reading.newest)
    return _new_battery(reading, name, sec, nanosec, *newest, *split_stamp(reading.next_change))


def battery_from_msg(message: BatteryStatus, clock: Clock) -> BatteryReading:
    """Reading of a `BatteryStatus`."""
    oldest, newest = message._header._stamp, message._newest_stamp
    time = site_time(clock, oldest)
    same = newest._nanosec == oldest._nanosec and newest._sec == oldest._sec
    return _read_battery(message, time, time if same else site_time(clock, newest))  # type: ignore[no-any-return]


def cells_to_msg(reading: BatteryReading, clock: Clock, name: str = '') -> CellArray:
    """`CellArray` of a reading's cell-level values."""
    message = CellArray(
        voltages=[float(v) for v in reading.cells],
        temperatures=[float(v) for v in reading.temperatures],
        balancing=[bool(v) for v in reading.balancing],
    )
    message.header.stamp = stamp(clock, reading.time)
    message.header.frame_id = name
    return message


_HEALTH = {
    Mode.FAULT: BatteryState.POWER_SUPPLY_HEALTH_UNSPEC_FAILURE,
    Mode.UNKNOWN: BatteryState.POWER_SUPPLY_HEALTH_UNKNOWN,
}
_POWER = {
    Mode.CHARGING: BatteryState.POWER_SUPPLY_STATUS_CHARGING,
    Mode.DISCHARGING: BatteryState.POWER_SUPPLY_STATUS_DISCHARGING,
    Mode.IDLE: BatteryState.POWER_SUPPLY_STATUS_NOT_CHARGING,
}


def battery_to_state(reading: BatteryReading, clock: Clock, name: str = '') -> BatteryState:
    """The ecosystem's own `sensor_msgs/BatteryState` of a reading (charge in Ah, percentage 0..1)."""
    message = BatteryState(
        voltage=float(reading.voltage),
        current=float(reading.current),
        charge=float(reading.charge),
        capacity=float(reading.charge_full),
        design_capacity=_NAN,
        percentage=float(reading.soc),
        temperature=float(reading.temperature),
        power_supply_status=_POWER.get(reading.mode, BatteryState.POWER_SUPPLY_STATUS_UNKNOWN),
        power_supply_health=_HEALTH.get(reading.mode, BatteryState.POWER_SUPPLY_HEALTH_GOOD),
        power_supply_technology=BatteryState.POWER_SUPPLY_TECHNOLOGY_UNKNOWN,
        present=reading.quality != Quality.INVALID,
        cell_voltage=[float(v) for v in reading.cells],
        cell_temperature=[float(v) for v in reading.temperatures],
        location=name,
    )
    message.header.stamp = stamp(clock, reading.time)
    message.header.frame_id = name
    return message


def converter_to_msg(reading: ConverterReading, clock: Clock, name: str = '') -> InverterStatus:
    """`InverterStatus` of a reading."""
    return _new_converter(reading, name, *stamp_parts(clock, reading.time))


def converter_from_msg(message: InverterStatus, clock: Clock) -> ConverterReading:
    """Reading of an `InverterStatus` (alarms stay at the driver: they are faults there)."""
    return _read_converter(message, site_time(clock, message._header._stamp), 0.0)  # type: ignore[no-any-return]


def meter_to_msg(reading: MeterReading, clock: Clock, name: str = '') -> MeterStatus:
    """`MeterStatus` of a reading."""
    return _new_meter(reading, name, *stamp_parts(clock, reading.time))


def meter_from_msg(message: MeterStatus, clock: Clock) -> MeterReading:
    """Reading of a `MeterStatus`."""
    return _read_meter(message, site_time(clock, message._header._stamp), 0.0)  # type: ignore[no-any-return]


def io_to_msg(reading: IoReading, clock: Clock, name: str, holdings: Mapping[str, tuple[str, float]]) -> IoStatus:
    """`IoStatus` of a reading; `holdings`: output -> (who holds it, s left)."""
    message = IoStatus()
    set_stamp(message.header.stamp, clock, reading.time)
    message.header.frame_id = name
    message.quality = int(reading.quality)
    for kind in ('input', 'output'):
        switches = getattr(reading, f'digital_{kind}s')
        setattr(message, f'digital_{kind}_names', list(switches))
        setattr(message, f'digital_{kind}s', [int(v) for v in switches.values()])
        analog = getattr(reading, f'analog_{kind}s')
        setattr(message, f'analog_{kind}_names', list(analog))
        setattr(message, f'analog_{kind}s', [float(v) for v in analog.values()])
        setattr(message, f'analog_{kind}_units', [reading.units.get(n, '') for n in analog])
    message.leased_outputs = list(holdings)
    message.lease_sources = [source for source, _ in holdings.values()]
    message.lease_remaining = [float(left) for _, left in holdings.values()]
    message.alarms = [a.text for a in reading.alarms]
    return message


def climate_to_msg(reading: ClimateReading, clock: Clock, name: str, source: str,
                   lease_remaining: float) -> ClimateStatus:
    """`ClimateStatus` of a reading."""
    return _new_climate(reading, name, *stamp_parts(clock, reading.time), source, float(lease_remaining))


def describe(message: Any) -> dict[str, Any]:
    """A message as plain JSON-able values (NaN becomes None), for the CLI."""
    out: dict[str, Any] = {}
    for field in message.get_fields_and_field_types():
        out[field] = _plain(getattr(message, field))
    return out


def _plain(value: Any) -> Any:
    if hasattr(value, 'get_fields_and_field_types'):
        if isinstance(value, Time):
            return join_stamp(value.sec, value.nanosec)
        return describe(value)
    if isinstance(value, float):
        return value if value - value == 0.0 else (None if value != value else ('inf' if value > 0 else '-inf'))
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    return [_plain(v.item() if hasattr(v, 'item') else v) for v in value]
