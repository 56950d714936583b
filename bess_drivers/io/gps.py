"""GPS receiver on a serial line (role gps). It talks by itself; nothing is ever sent to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import ClassVar

import serial  # type: ignore[import-untyped]

from bess_core.params import param
from bess_core.values import Alarm, Identity, Severity
from bess_drivers.device import BadChecksum, BadFrame, DeviceError, Disconnected, NoAnswer, Role
from bess_drivers.io.nmea import LONGEST, GpsReading, GpsTime, Receiver
from bess_drivers.serial.link import POLL_S, PORT_ERRORS, parse_address


@dataclass(frozen=True)
class GpsParams:
    """Settings of a receiver."""

    address: str = param('', doc='serial:/dev/ttyAMA0?baud=9600')
    timeout_s: float = param(3.0, 's', 'silence that counts as lost', low=0.1, high=60.0)
    latency_s: float = param(0.1, 's', 'from the start of a second to the arrival of its sentence, at best',
                             low=0.0, high=2.0)


class GpsReceiver:
    """Position and time from RMC and GGA sentences."""

    Params: ClassVar[type] = GpsParams
    role: ClassVar[Role] = Role.GPS
    never_writes: ClassVar[bool] = True

    def __init__(self, params: GpsParams, read_only: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self.params, self._address, self._clock = params, parse_address(params.address), clock
        self.time = GpsTime(params.latency_s)
        self.damaged = 0  # sentences
        self._receiver = Receiver()
        self._port: serial.Serial | None = None
        self._data = b''

    def open(self) -> None:
        """Open the port for this receiver alone. Raises `Disconnected`."""
        self.close()
        a = self._address
        try:
            self._port = serial.Serial(a.path, a.baud, parity=a.parity, stopbits=a.stopbits, timeout=POLL_S,
                                       exclusive=True)
        except (*PORT_ERRORS, ValueError) as error:
            raise Disconnected(f'{a.path}: {error}') from error

    def close(self) -> None:
        """Close the port; never raises."""
        port, self._port, self._data = self._port, None, b''
        if port is not None:
            try:
                port.close()
            except PORT_ERRORS:
                return  # it is gone already

    def identify(self) -> Identity:
        """A receiver does not say who it is; a sentence must come. Raises `DeviceError`."""
        self.read(self._clock())
        return Identity(model='NMEA 0183 receiver')

    def read(self, now: float) -> GpsReading:
        """The next RMC sentence (`now` becomes its time when it arrives later). Raises `DeviceError`."""
        if self._port is None:
            raise Disconnected(f'{self._address.path} is not open')
        deadline, problem, heard = self._clock() + self.params.timeout_s, None, False
        try:
            # What waited while nobody read is old, and its time would be wrong.
            self._port.reset_input_buffer()
            self._data = b''
            while self._clock() < deadline:
                data = bytes(self._port.read(max(1, min(self._port.in_waiting, 1024))))
                heard = heard or bool(data)
                reading, problem = self._feed(data, problem)
                if reading is not None:
                    return reading
        except PORT_ERRORS as error:
            self.close()
            raise Disconnected(f'{self._address.path}: {error}') from error
        if problem is not None:
            raise problem
        text = 'no RMC sentence' if heard else 'nothing'
        raise NoAnswer(f'{self._address.path}: {text} in {self.params.timeout_s:g} s')

    def _feed(self, data: bytes, problem: DeviceError | None) -> tuple[GpsReading | None, DeviceError | None]:
        *lines, self._data = (self._data + data).split(b'\n')
        if len(self._data) > LONGEST:
            self._data, problem = b'', BadFrame(f'{self._address.path}: no end of a sentence')
        for line in lines:
            start = line.rfind(b'$')
            if start < 0:
                continue  # the rest of a sentence whose start was not heard
            now = self._clock()
            try:
                reading = self._receiver.take(line[start:], now)
            except (BadChecksum, BadFrame) as error:
                self.damaged += 1
                problem = error
                continue
            if reading is not None:
                self.time.take(reading.utc, now)
                no_fix = () if reading.fix else (Alarm('gps.no_fix', Severity.WARNING, 'the receiver has no fix'),)
                return replace(reading, alarms=no_fix), problem
        return None, problem
