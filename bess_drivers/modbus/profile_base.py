"""What all Modbus devices that a profile describes have in common: writing by rules, heartbeats, confirming."""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import inf, isnan, nan
from typing import Any

from bess_core.values import Alarm, Severity
from bess_drivers.device import BadValue, ReadOnlyError, Refused
from bess_drivers.modbus.image import registers_of, start_of, write_function_of
from bess_drivers.modbus.profile_reader import ProfileParams, ProfileReader
from bess_drivers.profiles.assemble import ASSEMBLE
from bess_drivers.profiles.model import Point
from bess_drivers.profiles.orders import Beat, Order, Write, WriteLimiter, writes

__all__ = ['ProfileDevice', 'ProfileParams']

CONFIRM_LOOK_S = 0.1  # between two looks whether an order was carried out


class ProfileDevice(ProfileReader):
    """Writing within limits and heartbeats, beside reading. Raises only `DeviceError`s."""

    def _prepare(self) -> None:
        self._limiter = WriteLimiter()
        self._beat = Beat(self.profile.heartbeat) if self.profile.heartbeat else None

    def _forget(self) -> None:
        super()._forget()
        self._started = False
        self._waiting: tuple[Order, float] | None = None  # held back by write limits, until (monotonic s)
        self._why_waiting = ''
        self._limiter.forget()
        if self._beat:
            self._beat.forget()

    @property
    def write_attempts(self) -> tuple[int, float]:
        """(attempts, s between them) of an order: the most that one of its points wants."""
        keys = [p.keys for p in self.profile.points.values() if p.writable]
        return max((k.write_attempts for k in keys), default=1), max((k.write_wait for k in keys), default=0.9)

    def read(self, now: float) -> Any:
        """One poll: the points of the group `fast`, then what the device needs to be told. See the role's `read`."""
        values, told = self._poll(now), self._serve()
        reading: Any = ASSEMBLE[self.role](self.profile, values, self._numbers, now, self.params.invert)
        reading.alarms = (*reading.alarms, *told)
        return reading

    # -- writing ---------------------------------------------------------------------------------

    def _serve(self) -> tuple[Alarm, ...]:
        """Heartbeat and orders that waited; returns what went wrong with them, or why an order still waits."""
        if self._read_only:
            return ()
        try:
            self._serve_device(self._clock())
        except (Refused, BadValue) as error:  # an answer: the measurement is as good as ever
            return (Alarm('profile.write_refused', Severity.WARNING, str(error)),)
        if self._waiting:
            return (Alarm('profile.write_limit', Severity.WARNING, self._why_waiting),)
        return ()

    def _serve_device(self, now: float) -> None:
        keys = self.profile.heartbeat
        if self._beat and keys and self.params.heartbeat:
            number = self._beat.due(now, float(self._numbers.get(keys.point, nan)))
            if number is not None:
                self._send(self.profile.points[keys.point], float(number))
                self._beat.beaten(number, now)
        if self._waiting:
            order, until = self._waiting
            self._waiting = None
            if now < until:
                self._carry_out(self.profile.order, order, until)

    def _carry_out(self, steps: Iterable[Any], order: Order, until: float = inf) -> None:
        """Send the writes of a sequence; those that their limits hold back are tried again until `until`."""
        self._waiting = None
        for write in writes(self.profile, steps, order):
            number, value = self._number(write)
            verdict = self._limiter.decide(write.point, number, value, self._clock(), order.power == 0.0)
            if verdict == 'write':
                self._send(write.point, number)
                self._limiter.written(write.point, number, value, self._clock())
            elif verdict != 'same':
                self._waiting, self._why_waiting = (order, until), verdict

    def _number(self, write: Write) -> tuple[float, float]:
        """Number of the device and SI value of a write."""
        point = write.point
        if write.mask:
            present = int(self._ask(point))
            return float(present & ~write.mask | int(write.value)), nan
        if write.raw:
            return write.value, nan
        exponent = 0.0
        if point.keys.scale_factor:
            exponent = float(self._numbers.get(point.keys.scale_factor, nan))
            if isnan(exponent):
                raise BadValue(f'{point.name}: its scale factor {point.keys.scale_factor} is not known yet')
        number = point.raw(write.value, exponent, self._base(point), self.params.invert)
        return float(number if point.place.type == 'f32' else round(number)), write.value

    def _send(self, point: Point, number: float) -> None:
        section = self._section
        if section.pause:
            time.sleep(section.pause)
        self.link.write(self.params.unit, write_function_of(point.place, section), start_of(point.place, section),
                        registers_of(point, number, section))

    def _refuse_read_only(self) -> None:
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')

    def _until(self, name: str, equals: tuple[float, ...], within: float) -> None:
        """Wait until a point shows one of these numbers. Raises `Refused` when it does not."""
        end = self._clock() + within
        point = self.profile.points[name]
        while (shown := self._ask(point)) not in equals:
            if self._clock() >= end:
                raise Refused(f'{name} is {shown:g} after {within:g} s, wanted {" or ".join(f"{e:g}" for e in equals)}')
            time.sleep(CONFIRM_LOOK_S)
