"""P1 port of a smart meter (DSMR, eMUCS), serial or behind a TCP bridge such as ser2net (role meter).

The meter talks by itself, each second (DSMR 5) or each 10 s (before); nothing is ever sent to it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

import serial  # type: ignore[import-untyped]

from bess_core.params import param
from bess_core.values import Identity, MeterReading
from bess_drivers.device import DeviceError, Disconnected, NoAnswer, Role
from bess_drivers.serial.link import POLL_S, PORT_ERRORS, parse_address, port_problem
from bess_drivers.serial.p1_cipher import TAG, TITLE, CipherFramer, read_key
from bess_drivers.serial.p1_telegram import Framer, Values, reader, reading_from

CHUNK = 4096
ENOUGH = 4096  # bytes in which an encrypted telegram shows its beginning
ENCRYPTED = bytes((TAG, TITLE))
CONNECT_S = 3.0


@dataclass(frozen=True)
class P1Params:
    """Settings of one P1 port."""

    address: str = param('', doc='serial:/dev/ttyUSB0 (115200 8N1: DSMR 4 and 5), '
                                 'serial:/dev/ttyUSB0?baud=9600&parity=E&bytesize=7 (DSMR 2 and 3), or tcp://host:port')
    key_file: str = param('', doc='file with the key of a meter that encrypts (Luxembourg, Austria), readable by its '
                                  'owner only: a line "encryption: <32 hex digits>"; empty = it does not')
    timeout_s: float = param(12.0, 's', 'longest time between two telegrams', low=0.2, high=60.0)
    invert: bool = param(False, doc='the meter sits in the line of a generator and counts the other way round')
    period: float = param(1.0, 's', 'how often the meter sends; it is waited for', low=0.2, high=60.0)
    frozen_after: float = param(0.0, 's', 'values that do not move at all for so long raise a fault; 0 = off '
                                          '(before DSMR 5 a quiet house stands still)', low=0.0, high=86400.0)


class _Line(Protocol):
    def read(self) -> bytes: ...

    def close(self) -> None: ...


class _Serial:
    def __init__(self, address: str) -> None:
        a = parse_address(address, baud=115200)
        try:
            self._port = serial.Serial(a.path, a.baud, bytesize=a.bytesize, parity=a.parity, stopbits=a.stopbits,
                                       timeout=POLL_S, exclusive=True)
        except (*PORT_ERRORS, ValueError) as error:
            raise Disconnected(f'{a.path}: {port_problem(error)}') from error

    def read(self) -> bytes:
        return bytes(self._port.read(max(1, min(self._port.in_waiting, CHUNK))))

    def close(self) -> None:
        self._port.close()


class _Tcp:
    def __init__(self, address: str) -> None:
        try:
            self._socket = socket.create_connection(tcp_address(address), CONNECT_S)
        except OSError as error:
            raise Disconnected(f'{address}: {error}') from error

    def read(self) -> bytes:
        if not select.select([self._socket], [], [], POLL_S)[0]:
            return b''
        data = self._socket.recv(CHUNK)
        if not data:
            raise ConnectionResetError('closed by the other end')
        return data

    def close(self) -> None:
        self._socket.close()


def tcp_address(address: str) -> tuple[str, int]:
    """Host and port. Raises ValueError."""
    parts = urlsplit(address)
    if not parts.hostname or parts.port is None or parts.path or parts.query:
        raise ValueError(f'address {address!r} must be tcp://host:port')
    return parts.hostname, parts.port


class P1Meter:
    """A smart meter read through its P1 port (`MeterDevice`). Raises ValueError where the extra is missing."""

    Params: ClassVar[type] = P1Params
    role: ClassVar[Role] = Role.METER
    never_writes: ClassVar[bool] = True
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (115200,)
    PROBE_SETTINGS: ClassVar[dict[str, float]] = {'timeout_s': 1.5}

    def __init__(self, params: P1Params, read_only: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self.params, self._clock = params, clock
        self._tcp = params.address.startswith('tcp:')
        tcp_address(params.address) if self._tcp else parse_address(params.address)
        self._parse = reader()
        self._framer: Framer | CipherFramer = Framer()
        self._line: _Line | None = None
        self.damaged = 0  # telegrams
        self.shown: dict[str, Any] = {}  # for people

    def open(self) -> None:
        """Open the port or connect. Raises `Disconnected`, and `Refused` for a key file that cannot be used."""
        self.close()
        self._framer = CipherFramer(read_key(self.params.key_file)) if self.params.key_file else Framer()
        self._line = _Tcp(self.params.address) if self._tcp else _Serial(self.params.address)

    def close(self) -> None:
        """Close it; never raises."""
        line, self._line = self._line, None
        self._framer.clear()
        if line is not None:
            try:
                line.close()
            except PORT_ERRORS:
                return  # it is gone already

    def identify(self) -> Identity:
        """Header and equipment id of a telegram, which must come. Raises `DeviceError`."""
        telegram, values = self._next()
        header = telegram.splitlines()[0][1:].decode('ascii', 'replace')
        item = values.get('EQUIPMENT_IDENTIFIER')
        code = str(item.value or '') if item is not None else ''
        try:
            serial_number = bytes.fromhex(code).decode('ascii')
        except ValueError:
            serial_number = code
        return Identity('P1', header, serial_number)

    def read(self, now: float) -> MeterReading:
        """The next telegram; its time is that of its arrival. Raises `DeviceError`."""
        started = self._clock()
        _, values = self._next()
        reading = reading_from(values, now + self._clock() - started)
        stamp = values.get('P1_MESSAGE_TIMESTAMP')
        self.shown = {'telegrams damaged': self.damaged, **(
            {} if stamp is None else {'time of the meter': f'{stamp.value:%Y-%m-%d %H:%M:%S} UTC'})}
        return turned(reading) if self.params.invert else reading

    def _next(self) -> tuple[bytes, Values]:
        if self._line is None:
            raise Disconnected(f'{self.params.address} is not open')
        deadline, problem, heard, before = self._clock() + self.params.timeout_s, None, False, b''
        try:
            while self._clock() < deadline:
                data = self._line.read()
                heard, before = heard or bool(data), (before + data)[-ENOUGH:]
                try:
                    telegram = self._framer.feed(data)
                    if telegram is not None:
                        return telegram, self._parse(telegram)
                except DeviceError as error:
                    self.damaged += 1
                    problem = error
        except PORT_ERRORS as error:
            self.close()
            raise Disconnected(f'{self.params.address}: {error}') from error
        if problem is not None:
            raise problem
        text = 'no complete telegram' if heard else 'nothing'
        if heard and ENCRYPTED in before and not self.params.key_file:
            text = 'encrypted telegrams, and no key_file is set; nothing usable'
        raise NoAnswer(f'{self.params.address}: {text} in {self.params.timeout_s:g} s')


def turned(r: MeterReading) -> MeterReading:
    """The same in the other direction."""
    p, c = r.phase_power, r.current
    r.phase_power, r.current = (-p[0] + 0.0, -p[1] + 0.0, -p[2] + 0.0), (-c[0] + 0.0, -c[1] + 0.0, -c[2] + 0.0)
    r.active_power = -r.active_power + 0.0
    r.energy_import, r.energy_export = r.energy_export, r.energy_import
    return r
