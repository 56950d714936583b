"""A battery or meter on a CAN bus, described by a profile: signals of a DBC file or bit positions.

The device talks by itself and is only listened to; profiles of CAN devices have no section `write`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from bess_core.params import param
from bess_core.values import Identity
from bess_drivers.can.channel import LONG, CanLink, Frame, Mailbox, frame_key, parse_address
from bess_drivers.can.racks import combine_racks
from bess_drivers.can.signals import DbcSignals, load_dbc, newest, sources
from bess_drivers.device import Refused, Role, Silent
from bess_drivers.profiles.assemble import ASSEMBLE, derive
from bess_drivers.profiles.can_model import MAX_ID, CanKeys
from bess_drivers.profiles.files import load_profile


@dataclass(frozen=True)
class CanProfileParams:
    """Settings of one CAN device that a profile describes."""

    address: str = param('', doc='can:can0, can:slcan:/dev/ttyUSB0?bitrate=500000 or can:INTERFACE:CHANNEL')
    profile: str = param('', doc='name of an installed profile, or path of a profile (.yaml)')
    unit: int = param(0, doc='added to all ids of the profile, for devices with an address', low=0, high=0x100000)
    invert: bool = param(False, doc='all directions turn around')
    rated_power: float = param(0.0, 'W', 'for devices that send shares of it; 0 = not given', low=0.0, high=1e9)
    rated_current: float = param(0.0, 'A', 'for devices that send shares of it; 0 = not given', low=0.0, high=1e6)
    rated_voltage: float = param(0.0, 'V', 'for devices that send shares of it; 0 = not given', low=0.0, high=1e5)


class CanProfileDevice:
    """What both roles share. Raises only `DeviceError`s, and ValueError for a profile that does not fit."""

    Params: ClassVar[type] = CanProfileParams
    role: ClassVar[Role]

    def __init__(self, params: CanProfileParams, read_only: bool = False) -> None:
        self.params, self.profile = params, load_profile(params.profile)
        self._check()
        self._section: CanKeys = self.profile.section
        dbc = None
        if self._section.dbc:
            path = Path(self._section.dbc).expanduser()
            dbc = DbcSignals(load_dbc(self.profile.path.parent / path), path.name)
        self._sources = sources({n: p.place for n, p in self.profile.points.items()}, dbc)
        self._shifts = [params.unit + rack * self._section.rack_step for rack in range(self._section.racks)]
        ids = {i + s for source in self._sources.values() for i in source.ids() for s in self._shifts}
        for key in ids:
            most = 0x7FF if key & LONG else MAX_ID  # beyond it the key of a shifted id would be another
            if key & ~LONG > most:
                raise ValueError(f'frame id {key & ~LONG:#x} of unit {params.unit} is above {most:#x}')
        select = {}
        if dbc is not None:
            for point in self.profile.points.values():
                if not point.place.signal:
                    continue
                message = dbc.message(point.place.signal.partition('.')[0])
                if (selector := dbc.selector(message)) is not None:
                    first = frame_key(message.frame_id, message.is_extended_frame)
                    select.update({first + s: selector for s in self._shifts})
        self.link = CanLink(parse_address(params.address), Mailbox(ids, select), read_only)
        self._listening = 0.0

    def _check(self) -> None:
        profile = self.profile
        if profile.head.transport != 'can':
            raise ValueError(f'profile {profile.name} is for {profile.head.transport}, not for can')
        if profile.role is not self.role:
            raise ValueError(f'profile {profile.name} describes a {profile.role.value}, not a {self.role.value}')
        if profile.order or profile.start or profile.stop or profile.contactor or profile.heartbeat:
            raise ValueError(f'profile {profile.name}: CAN devices are only listened to; take the section write away')
        for point in profile.points.values():
            if point.keys.per and not getattr(self.params, point.keys.per) > 0.0:
                raise ValueError(f'{point.keys.per} is missing: {point.name} of profile {profile.name} is a share '
                                 f'of it')

    def open(self) -> None:
        """Join the bus. Raises `Disconnected`."""
        self.link.open()
        self._listening = monotonic()

    def close(self) -> None:
        """Leave the bus."""
        self.link.close()

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each frame came."""
        return self.link.mailbox.ages()

    def identify(self) -> Identity:
        """Maker and model of the profile, once all needed frames were heard. Raises `Silent`."""
        self._readings(0.0)
        head = self.profile.head
        return Identity(head.manufacturer, head.model or head.title)

    def read(self, now: float) -> Any:
        """What was heard last; `now` in s (site clock). Raises `DeviceError`; `Silent` while a needed frame lacks."""
        self.link.check()
        return self._combine(self._readings(now))

    def _combine(self, readings: list[Any]) -> Any:
        return readings[0]

    def _readings(self, now: float) -> list[Any]:
        """One reading per rack."""
        present = monotonic()
        frames = self.link.mailbox.frames.copy()
        fresh: dict[tuple[int, int], Frame] = {
            key: f for key, f in frames.items() if present - f.time <= self._section.timeout}
        data = {key: f.data for key, f in fresh.items()}
        missing = sorted({part.can_id + shift for shift in self._shifts for name, source in self._sources.items()
                          if not self.profile.points[name].keys.optional
                          for part in source.parts if newest(data, part, shift) is None})
        if missing:
            shown = ', '.join(f'{i:#x}' for i in missing[:8]) + (', ...' if len(missing) > 8 else '')
            raise Silent(f'no frame {shown} for {min(self._section.timeout, present - self._listening):.1f} s')
        return [self._reading(data, shift, now - present + self._oldest(fresh.items(), shift), now)
                for shift in self._shifts]

    def _oldest(self, fresh: Iterable[tuple[tuple[int, int], Frame]], shift: int) -> float:
        ids = {i + shift for name, s in self._sources.items() if not self.profile.points[name].keys.optional
               for i in s.ids()}
        return min(f.time for (i, _), f in fresh if i in ids)

    def _reading(self, data: dict[tuple[int, int], bytes], shift: int, oldest: float, now: float) -> Any:
        numbers = {name: source.number(data, shift) for name, source in self._sources.items()}
        values: dict[str, Any] = {}
        for name, number in numbers.items():
            values[name] = self._value(name, number, numbers)
        derive(self.profile, values)
        raws = {n: v for n, v in numbers.items() if not isinstance(v, tuple)}
        reading: Any = ASSEMBLE[self.role](self.profile, values, raws, now, self.params.invert)
        reading.time = oldest
        return reading

    def _value(self, name: str, number: Any, numbers: dict[str, Any]) -> Any:
        point = self.profile.points[name]
        base = float(getattr(self.params, point.keys.per)) if point.keys.per else 1.0
        exponent = 0.0
        if point.keys.scale_factor:
            exponent = numbers[point.keys.scale_factor]
            if isnan(exponent):
                return nan
        if isinstance(number, tuple):
            return tuple(point.value(n, exponent, base, self.params.invert) for n in number)
        return point.value(number, exponent, base, self.params.invert)


class CanBattery(CanProfileDevice):
    """A battery that a profile describes (`BatteryDevice`)."""

    role: ClassVar[Role] = Role.BATTERY

    def _combine(self, readings: list[Any]) -> Any:
        return combine_racks(readings)

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Batteries on CAN are only listened to. Raises `Refused`."""
        raise Refused('batteries on CAN are only listened to; there is no order for their contactors')


class CanMeter(CanProfileDevice):
    """A meter that a profile describes (`MeterDevice`)."""

    role: ClassVar[Role] = Role.METER
