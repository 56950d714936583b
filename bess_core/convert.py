"""Readings to messages and back, field by field by name.

Every float goes through `float(x)`: a numpy scalar or an int in a float64 field would otherwise be
sent as about zero.
"""

from __future__ import annotations

from typing import Any, TypeVar

from builtin_interfaces.msg import Time
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CellArray, InverterStatus, MeterStatus

from .clock import Clock, join_stamp, split_stamp
from .values import (
    BatteryReading,
    Contactor,
    ConverterReading,
    ConverterState,
    MeterReading,
    Mode,
    Quality,
)

M = TypeVar('M')


def _floats(message: type) -> tuple[str, ...]:
    return tuple(n for n, t in message.get_fields_and_field_types().items() if t == 'double')  # type: ignore[attr-defined]


_BATTERY_FLOATS = _floats(BatteryStatus)
_CONVERTER_FLOATS = _floats(InverterStatus)
_METER_FLOATS = _floats(MeterStatus)
_NAN = float('nan')


def stamp(clock: Clock, at: float) -> Time:
    """Stamp of a site time; zero for "never"."""
    if at == float('-inf'):
        return Time()
    sec, nanosec = split_stamp(clock.to_wall(at))
    return Time(sec=sec, nanosec=nanosec)


def wall_stamp(wall: float) -> Time:
    """Stamp of an absolute time."""
    sec, nanosec = split_stamp(wall)
    return Time(sec=sec, nanosec=nanosec)


def site_time(clock: Clock, time: Time) -> float:
    """Site time of a stamp; -inf for the zero stamp."""
    if time.sec == 0 and time.nanosec == 0:
        return float('-inf')
    return clock.from_wall(join_stamp(time.sec, time.nanosec))


def battery_to_msg(reading: BatteryReading, clock: Clock, name: str = '') -> BatteryStatus:
    """`BatteryStatus` of a reading."""
    message = BatteryStatus()
    message.header.stamp = stamp(clock, reading.time)
    message.header.frame_id = name
    message.newest_stamp = stamp(clock, reading.newest)
    for field in _BATTERY_FLOATS:
        setattr(message, field, float(getattr(reading, field)))
    message.quality = int(reading.quality)
    message.mode = int(reading.mode)
    message.contactor = int(reading.contactor)
    message.cell_voltage_min_index = int(reading.cell_voltage_min_index)
    message.cell_voltage_max_index = int(reading.cell_voltage_max_index)
    message.members = int(reading.members)
    message.members_usable = int(reading.members_usable)
    message.setpoint_source = reading.setpoint_source
    if reading.limit_reasons:
        message.limit_reasons = list(reading.limit_reasons)
    return message


def battery_from_msg(message: BatteryStatus, clock: Clock) -> BatteryReading:
    """Reading of a `BatteryStatus`."""
    reading = BatteryReading(
        time=site_time(clock, message.header.stamp),
        newest=site_time(clock, message.newest_stamp),
        quality=Quality(message.quality),
        mode=Mode(message.mode),
        contactor=Contactor(message.contactor),
        cell_voltage_min_index=message.cell_voltage_min_index,
        cell_voltage_max_index=message.cell_voltage_max_index,
        members=message.members,
        members_usable=message.members_usable,
        setpoint_source=message.setpoint_source,
        limit_reasons=list(message.limit_reasons),
    )
    for field in _BATTERY_FLOATS:
        setattr(reading, field, getattr(message, field))
    return reading


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
    message = InverterStatus()
    message.header.stamp = stamp(clock, reading.time)
    message.header.frame_id = name
    for field in _CONVERTER_FLOATS:
        setattr(message, field, float(getattr(reading, field)))
    message.quality = int(reading.quality)
    message.state = int(reading.state)
    message.grid_forming = bool(reading.grid_forming)
    message.voltage = [float(v) for v in reading.voltage]
    message.current = [float(v) for v in reading.current]
    message.setpoint_source = reading.setpoint_source
    message.limit_reasons = list(reading.limit_reasons)
    message.alarms = [a.text for a in reading.alarms]
    return message


def converter_from_msg(message: InverterStatus, clock: Clock) -> ConverterReading:
    """Reading of an `InverterStatus` (alarms stay at the driver: they are faults there)."""
    reading = ConverterReading(
        time=site_time(clock, message.header.stamp),
        quality=Quality(message.quality),
        state=ConverterState(message.state),
        grid_forming=message.grid_forming,
        voltage=tuple(float(v) for v in message.voltage),  # type: ignore[arg-type]
        current=tuple(float(v) for v in message.current),  # type: ignore[arg-type]
        setpoint_source=message.setpoint_source,
        limit_reasons=list(message.limit_reasons),
    )
    for field in _CONVERTER_FLOATS:
        setattr(reading, field, getattr(message, field))
    return reading


def meter_to_msg(reading: MeterReading, clock: Clock, name: str = '') -> MeterStatus:
    """`MeterStatus` of a reading."""
    message = MeterStatus()
    message.header.stamp = stamp(clock, reading.time)
    message.header.frame_id = name
    message.sequence = int(reading.sequence)
    for field in _METER_FLOATS:
        setattr(message, field, float(getattr(reading, field)))
    message.quality = int(reading.quality)
    message.voltage = [float(v) for v in reading.voltage]
    message.current = [float(v) for v in reading.current]
    message.phase_power = [float(v) for v in reading.phase_power]
    return message


def meter_from_msg(message: MeterStatus, clock: Clock) -> MeterReading:
    """Reading of a `MeterStatus`."""
    reading = MeterReading(
        time=site_time(clock, message.header.stamp),
        sequence=message.sequence,
        quality=Quality(message.quality),
        voltage=tuple(float(v) for v in message.voltage),  # type: ignore[arg-type]
        current=tuple(float(v) for v in message.current),  # type: ignore[arg-type]
        phase_power=tuple(float(v) for v in message.phase_power),  # type: ignore[arg-type]
    )
    for field in _METER_FLOATS:
        setattr(reading, field, getattr(message, field))
    return reading


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
