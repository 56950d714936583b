"""Readings to messages and back, field by field by name.

Every float goes through `float(x)`: a numpy scalar or an int in a float64 field would otherwise be
sent as about zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from operator import attrgetter
from typing import Any

from builtin_interfaces.msg import Time
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CellArray, ClimateStatus, InverterStatus, IoStatus, MeterStatus

from .clock import Clock, join_stamp, split_stamp
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


def _floats(message: type) -> tuple[str, ...]:
    return tuple(n for n, t in message.get_fields_and_field_types().items() if t == 'double')  # type: ignore[attr-defined]


def _slots(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    """Getter of fields of a message from where they are stored: its properties are Python functions."""
    return attrgetter(*(f'_{name}' for name in names))


class _Fields:
    """Fields that a reading and its message share by name: copied in one pass, set only where they differ.

    Setting is what costs, because every set field is checked; what `float` made needs no check. `kind` makes plain
    Python values.
    """

    def __init__(self, names: Sequence[str], kind: Callable[[Any], Any]) -> None:
        self._names, self._kind = tuple(names), kind
        self._targets = tuple(f'_{name}' for name in names) if kind is float else self._names
        self._get, self._get_old = attrgetter(*self._names), _slots(*self._names)

    def fill(self, message: Any, reading: Any) -> None:
        """Copy to the message."""
        for name, value, old in zip(self._targets, self._get(reading), self._get_old(message), strict=True):
            if value is not old and value != old:  # a NaN is only ever the same as itself
                setattr(message, name, self._kind(value))


def _read_order(reading: type, first: str, last: str) -> Callable[[Any], tuple[Any, ...]]:
    """Getter of a message's fields from `first` to `last`, in the order of the constructor of the reading."""
    names = [f.name for f in dataclass_fields(reading)]  # type: ignore[arg-type]
    return _slots(*names[names.index(first):names.index(last) + 1])


_BATTERY_FLOATS = _Fields(_floats(BatteryStatus), float)
_BATTERY_INTS = _Fields(('quality', 'mode', 'contactor', 'cell_voltage_min_index', 'cell_voltage_max_index', 'members',
                         'members_usable'), int)
_CONVERTER_FLOATS = _Fields(_floats(InverterStatus), float)
_METER_FLOATS = _Fields(_floats(MeterStatus), float)
#: The constructors take these after the fields that need a conversion, and `limit_reasons` next.
_read_battery = _read_order(BatteryReading, 'voltage', 'members_usable')
_read_converter = _read_order(ConverterReading, 'active_power', 'setpoint_source')
_read_meter = _read_order(MeterReading, 'active_power', 'energy_export')
#: As calling the enum, but several times faster.
_QUALITY = {int(q): q for q in Quality}
_MODE = {int(m): m for m in Mode}
_CONTACTOR = {int(c): c for c in Contactor}
_STATE = {int(s): s for s in ConverterState}
_NAN = float('nan')
_NEVER = float('-inf')


def stamp(clock: Clock, at: float) -> Time:
    """Stamp of a site time; zero for "never"."""
    time = Time()
    set_stamp(time, clock, at)
    return time


def set_stamp(time: Time, clock: Clock, at: float) -> None:
    """Make `time` the stamp of a site time, in place; zero for "never"."""
    sec, nanosec = (0, 0) if at == _NEVER else split_stamp(clock.to_wall(at))
    if time._sec != sec:
        time.sec = sec
    time._nanosec = nanosec  # below 1e9 by `split_stamp`


def _copy_stamp(time: Time, source: Time) -> None:
    time._sec, time._nanosec = source._sec, source._nanosec


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


def _fill_header(header: Any, clock: Clock, at: float, name: str) -> None:
    set_stamp(header.stamp, clock, at)
    if header.frame_id != name:
        header.frame_id = name


def battery_to_msg(reading: BatteryReading, clock: Clock, name: str = '',
                   into: BatteryStatus | None = None) -> BatteryStatus:
    """`BatteryStatus` of a reading.

    `into`: a message to refill. A publisher serialises before it returns, so that one message object
    per publisher is enough.
    """
    message = BatteryStatus() if into is None else into
    _fill_header(message.header, clock, reading.time, name)
    if reading.newest == reading.time:
        _copy_stamp(message.newest_stamp, message.header.stamp)
    else:
        set_stamp(message.newest_stamp, clock, reading.newest)
    set_wall(message.next_change, reading.next_change)
    _BATTERY_FLOATS.fill(message, reading)
    _BATTERY_INTS.fill(message, reading)
    if message.setpoint_source != reading.setpoint_source:
        message.setpoint_source = reading.setpoint_source
    if message.limit_reasons != reading.limit_reasons:
        message.limit_reasons = list(reading.limit_reasons)
    if message.missing != reading.missing:
        message.missing = list(reading.missing)
    return message


def battery_from_msg(message: BatteryStatus, clock: Clock) -> BatteryReading:
    """Reading of a `BatteryStatus`."""
    oldest, newest = message._header._stamp, message._newest_stamp
    time = site_time(clock, oldest)
    same = newest._nanosec == oldest._nanosec and newest._sec == oldest._sec
    return BatteryReading(  # type: ignore[call-arg]  # mypy cannot count what a getter returns
        time, time if same else site_time(clock, newest), _QUALITY[message.quality],
        _MODE[message.mode], _CONTACTOR[message.contactor], *_read_battery(message), list(message.limit_reasons),
        list(message.missing))


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


def converter_to_msg(reading: ConverterReading, clock: Clock, name: str = '',
                     into: InverterStatus | None = None) -> InverterStatus:
    """`InverterStatus` of a reading; `into` as for `battery_to_msg`."""
    message = InverterStatus() if into is None else into
    _fill_header(message.header, clock, reading.time, name)
    _CONVERTER_FLOATS.fill(message, reading)
    message.quality = int(reading.quality)
    message.state = int(reading.state)
    message.grid_forming = bool(reading.grid_forming)
    message.voltage[:] = reading.voltage
    message.current[:] = reading.current
    if message.setpoint_source != reading.setpoint_source:
        message.setpoint_source = reading.setpoint_source
    if message.limit_reasons != reading.limit_reasons:
        message.limit_reasons = list(reading.limit_reasons)
    if message.alarms or reading.alarms:
        message.alarms = [a.text for a in reading.alarms]
    return message


def converter_from_msg(message: InverterStatus, clock: Clock) -> ConverterReading:
    """Reading of an `InverterStatus` (alarms stay at the driver: they are faults there)."""
    return ConverterReading(  # type: ignore[call-arg]
        site_time(clock, message.header.stamp), _QUALITY[message.quality], _STATE[message.state], message.grid_forming,
        tuple(message.voltage.tolist()), tuple(message.current.tolist()), *_read_converter(message),
        list(message.limit_reasons))


def meter_to_msg(reading: MeterReading, clock: Clock, name: str = '', into: MeterStatus | None = None) -> MeterStatus:
    """`MeterStatus` of a reading; `into` as for `battery_to_msg`."""
    message = MeterStatus() if into is None else into
    _fill_header(message.header, clock, reading.time, name)
    message.sequence = int(reading.sequence)
    message.quality = int(reading.quality)
    _METER_FLOATS.fill(message, reading)
    message.voltage[:] = reading.voltage
    message.current[:] = reading.current
    message.phase_power[:] = reading.phase_power
    return message


def meter_from_msg(message: MeterStatus, clock: Clock) -> MeterReading:
    """Reading of a `MeterStatus`."""
    return MeterReading(
        site_time(clock, message.header.stamp), message.sequence, _QUALITY[message.quality],
        tuple(message.voltage.tolist()), tuple(message.current.tolist()), tuple(message.phase_power.tolist()),
        *_read_meter(message))


def io_to_msg(reading: IoReading, clock: Clock, name: str, holdings: Mapping[str, tuple[str, float]],
              into: IoStatus | None = None) -> IoStatus:
    """`IoStatus` of a reading; `holdings`: output -> (who holds it, s left). `into` as for `battery_to_msg`."""
    message = IoStatus() if into is None else into
    _fill_header(message.header, clock, reading.time, name)
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


_CLIMATE_FLOATS = _Fields([n for n in _floats(ClimateStatus) if n != 'lease_remaining'], float)


def climate_to_msg(reading: ClimateReading, clock: Clock, name: str, source: str, lease_remaining: float,
                   into: ClimateStatus | None = None) -> ClimateStatus:
    """`ClimateStatus` of a reading; `into` as for `battery_to_msg`."""
    message = ClimateStatus() if into is None else into
    _fill_header(message.header, clock, reading.time, name)
    _CLIMATE_FLOATS.fill(message, reading)
    for field in ('quality', 'mode', 'heating', 'cooling', 'fan'):
        setattr(message, field, int(getattr(reading, field)))
    message.setpoint_source, message.lease_remaining = source, float(lease_remaining)
    message.alarms = [a.text for a in reading.alarms]
    return message


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
