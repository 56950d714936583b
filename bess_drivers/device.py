"""What every device class of this room offers, and the errors that it raises.

A device is plain blocking Python without ROS: it is called from the one worker thread that owns its
bus (`bess_drivers.bus`). It converts the device's own units and signs at its edge: what it returns
is SI and passive-signed. It raises a `DeviceError` for anything that is not a complete, checked
answer; it never invents or repeats a value.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import nan
from typing import ClassVar, Protocol

from bess_core.values import BatteryReading, ConverterReading, Identity, MeterReading


class Role(Enum):
    """Which message a device fills."""

    BATTERY = 'battery'
    CONVERTER = 'converter'
    METER = 'meter'
    IO = 'io'
    CLIMATE = 'climate'
    GPS = 'gps'


class DeviceError(Exception):
    """A device did not give a usable answer. `kind` names the counter and fault ("comm.<kind>")."""

    kind: ClassVar[str] = 'error'


class NoAnswer(DeviceError):
    """Nothing, or not enough, came within the time-out."""

    kind = 'timeout'


class Silent(DeviceError):
    """A device that talks by itself (CAN) has not been heard; listening goes on, nothing is reopened."""

    kind = 'silent'


class Disconnected(DeviceError):
    """The port or connection is gone (refused, reset, unplugged)."""

    kind = 'disconnected'


class BadChecksum(DeviceError):
    """The checksum or CRC of an answer is wrong."""

    kind = 'checksum'


class BadFrame(DeviceError):
    """Wrong start, end, length, unit id, function or transaction of an answer."""

    kind = 'frame'


class Refused(DeviceError):
    """The device answered with an error code (Modbus exception, JBD status)."""

    kind = 'refused'


class BadValue(DeviceError):
    """A value is "not implemented" where it is needed, or outside its valid range."""

    kind = 'value'


class ReadOnlyError(DeviceError):
    """A write was asked of a read-only link; nothing left this machine."""

    kind = 'read_only'


@dataclass
class Counters:
    """Traffic of one device: plain numbers for diagnostics."""

    requests: int = 0
    ok: int = 0
    writes: int = 0
    reconnects: int = 0
    errors: dict[str, int] = field(default_factory=dict)  # DeviceError.kind -> count
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=512))  # s, of good requests

    def count(self, error: DeviceError) -> None:
        """Count one error by kind."""
        self.errors[error.kind] = self.errors.get(error.kind, 0) + 1

    def round_trip(self, share: float) -> float:
        """Time in s that this share of the last 512 good requests did not exceed; NaN without any."""
        times = sorted(self.round_trips.copy())
        return times[min(int(share * len(times)), len(times) - 1)] if times else nan


class Device(Protocol):
    """One device on a bus. All methods block and are called from the bus thread only."""

    role: ClassVar[Role]

    def open(self) -> None:
        """Connect. Raises `Disconnected` or `NoAnswer`."""

    def close(self) -> None:
        """Disconnect; never raises."""

    def identify(self) -> Identity:
        """Ask who it is and check that it is the kind of device this class is for (`BadValue` if not)."""


class BatteryDevice(Device, Protocol):
    """A battery or BMS."""

    def read(self, now: float) -> BatteryReading:
        """One complete poll; `now` (s, site clock) becomes `time`. Raises `DeviceError`."""

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Allow or block charging and discharging; returns after the device confirmed. Raises `DeviceError`."""


class BalancingDevice(BatteryDevice, Protocol):
    """A battery that lets its cells be bled by order; others have no `set_balancing`."""

    def set_balancing(self, cells: tuple[bool, ...]) -> None:
        """Bleed the cells that are True and no other; () ends it and gives balancing back. Raises `DeviceError`."""


class ConverterDevice(Device, Protocol):
    """A converter that takes a power."""

    def read(self, now: float) -> ConverterReading:
        """One complete poll. Raises `DeviceError`."""

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        """Order `power` (W, AC, + = charging) and `reactive_power` (var, NaN = leave), valid `lease` s.

        Arms the device's own revert timer with the lease where the device has one. Raises `DeviceError`.
        """

    def stop(self) -> None:
        """Order zero power and release remote control. Raises `DeviceError`."""


class GridFormingDevice(ConverterDevice, Protocol):
    """A converter that is told when to form the grid itself; others have no `set_grid_forming`."""

    def set_grid_forming(self, on: bool) -> None:
        """Form the grid (True) or follow it (False). Whether it does is told by `read`. Raises `DeviceError`."""


class MeterDevice(Device, Protocol):
    """A power meter."""

    def read(self, now: float) -> MeterReading:
        """One complete poll. Raises `DeviceError`."""
