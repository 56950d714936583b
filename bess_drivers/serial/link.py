"""A serial line with one question and one answer at a time.

Devices on such lines have no sequence numbers: an answer that comes late looks exactly like the
answer to the next question. So after a question that got no answer the link sends nothing until
`late_s` have passed since that question, and throws away what arrives meanwhile. At most one answer
is ever owed, and it cannot be mistaken unless a device needs longer than `late_s`.

Several devices on one line (RS485) have a link each and share its port (`SerialPorts`). Where answers
carry the address of their device (`addressed`), a link waits only for what its own device owes, so that
a silent device costs the others one time-out; where they do not, it waits for what any of them owes.
"""

from __future__ import annotations

import errno
import termios
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from urllib.parse import parse_qsl

import serial  # type: ignore[import-untyped]

from bess_drivers.device import BadFrame, Disconnected, NoAnswer, ReadOnlyError

POLL_S = 0.02  # how long one look for bytes may block
GAP_S = 0.1  # silence after which a disturbed answer has certainly ended

# A port that vanished reports itself in one of these ways (termios.error is no OSError).
PORT_ERRORS = (OSError, termios.error)

#: `extract(data)`: the complete answer in everything received so far, None while there is none yet.
Extract = Callable[[bytes], bytes | None]


class Incomplete(NoAnswer):
    """Bytes came, but no complete answer; `data` is what came, for a diagnosis by the codec."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


def port_problem(error: BaseException) -> str:
    """Why a port cannot be opened, in words."""
    if getattr(error, 'errno', None) == errno.EAGAIN:
        return 'another program uses this port (a site that runs?)'
    return str(error)


@dataclass(frozen=True)
class SerialAddress:
    """Where a serial device is and how the line is set."""

    path: str
    baud: int = 9600
    parity: str = 'N'  # N, E or O
    stopbits: int = 1
    bytesize: int = 8

    @property
    def byte_s(self) -> float:
        """Seconds that one byte takes on the line."""
        return (1 + self.bytesize + self.stopbits + (self.parity != 'N')) / self.baud


def parse_address(address: str, baud: int = 9600) -> SerialAddress:
    """Parse `serial:/dev/ttyUSB0?baud=9600&parity=N&stopbits=1&bytesize=8` or a plain path; `baud`: where it says none.

    Raises ValueError that names the setting, its value and what is allowed.
    """
    path, _, query = address.removeprefix('serial:').partition('?')
    if not path:
        raise ValueError(
            f'address {address!r} names no port; expected serial:/dev/ttyUSB0?baud=9600'
        )
    parity, stopbits, bytesize = 'N', 1, 8
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == 'baud':
            if not value.isdecimal() or not 300 <= int(value) <= 4_000_000:
                raise ValueError(f'address {address!r}: baud is {value!r}, allowed 300..4000000')
            baud = int(value)
        elif key == 'parity':
            if value not in ('N', 'E', 'O'):
                raise ValueError(f'address {address!r}: parity is {value!r}, allowed N, E, O')
            parity = value
        elif key == 'stopbits':
            if value not in ('1', '2'):
                raise ValueError(f'address {address!r}: stopbits is {value!r}, allowed 1, 2')
            stopbits = int(value)
        elif key == 'bytesize':
            if value not in ('7', '8'):
                raise ValueError(f'address {address!r}: bytesize is {value!r}, allowed 7, 8')
            bytesize = int(value)
        else:
            raise ValueError(
                f'address {address!r}: unknown setting {key!r}, allowed baud, parity, stopbits, bytesize'
            )
    return SerialAddress(path, baud, parity, stopbits, bytesize)


class SerialPort:
    """One port as all its links know it. Not thread-safe: one worker thread owns it."""

    def __init__(self, address: SerialAddress) -> None:
        self.address = address
        self.device: serial.Serial | None = None
        self.users: set[int] = set()  # links that have it open
        self.owed: dict[int, float] = {}  # link -> monotonic s until which a late answer to it may come
        self.silent = 0  # questions of anybody without any answer, in a row

    def open(self, write_timeout_s: float) -> None:
        """Open it for this process alone. Raises `Disconnected`."""
        where = self.address
        try:
            self.device = serial.Serial(
                where.path, where.baud, bytesize=where.bytesize, parity=where.parity, stopbits=where.stopbits,
                timeout=POLL_S,
                write_timeout=write_timeout_s, exclusive=True)
        except (ValueError, *PORT_ERRORS) as error:
            raise Disconnected(f'{where.path}: {port_problem(error)}') from error
        self.silent = 0

    def close(self) -> None:
        """Close it for all; never raises."""
        port, self.device = self.device, None
        if port is not None:
            try:
                port.close()
            except PORT_ERRORS:
                # The port is gone already, which is what was asked for.
                return


class SerialPorts:
    """Ports that several devices share: one per path, open as long as one link uses it."""

    def __init__(self) -> None:
        self._ports: dict[str, SerialPort] = {}

    def take(self, address: SerialAddress) -> SerialPort:
        """The port of an address. Raises ValueError for other line settings than those in use."""
        port = self._ports.get(address.path)
        if port is None or (port.address != address and not port.users):
            port = self._ports[address.path] = SerialPort(address)
        if port.address != address:
            raise ValueError(f'{address.path} is used with other settings: {_settings(port.address)} '
                             f'and {_settings(address)}')
        return port


def _settings(address: SerialAddress) -> str:
    return f'{address.baud} {address.bytesize}{address.parity}{address.stopbits}'


class SerialLink:
    """Questions of one device on a serial port. Not thread-safe: one worker thread owns it.

    timeout_s: an answer has to be complete this long (s) after its question; a call of `transact`
        takes at most twice as long.
    late_s: longest time (s) after which a device may still answer a question (see the module text).
    max_frame: bytes after which an answer that never ends is given up.
    reopen_after: so many silent questions in a row (of anybody on the line) close the port, because the
        operating system may keep an unplugged adapter "open"; the next `open` starts afresh.
    read_only: questions marked as `write` are refused before a byte leaves.
    ports: where links that share a line find its port; None = a port of its own.
    addressed: answers name their device, and `extract` passes over those of others.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 0.6,
        late_s: float = 3.0,
        max_frame: int = 512,
        reopen_after: int = 5,
        read_only: bool = False,
        ports: SerialPorts | None = None,
        addressed: bool = False,
    ) -> None:
        self.address = parse_address(address)
        self.timeout_s = timeout_s
        self.late_s = late_s
        self.max_frame = max_frame
        self.reopen_after = reopen_after
        self.read_only = read_only
        self.addressed = addressed
        self.sent = 0  # requests of which at least a part may have left
        self.discarded = 0  # bytes thrown away because they answered no open question
        self.trace: Callable[[str, bytes], None] | None = (
            None  # gets ('>' or '<', bytes), for recording
        )
        self._line = SerialPort(self.address) if ports is None else ports.take(self.address)

    @property
    def is_open(self) -> bool:
        """Whether the port is open, as far as is known."""
        return self._line.device is not None

    def open(self) -> None:
        """Open the port for this process alone; another link may have done so. Raises `Disconnected`."""
        if self._line.device is None:
            self._line.open(self.timeout_s)
        self._line.users.add(id(self))

    def close(self) -> None:
        """Let the port go, and close it when no other link uses it; never raises."""
        self._line.users.discard(id(self))
        if not self._line.users:
            self._line.close()

    def transact(self, request: bytes, extract: Extract, *, write: bool) -> bytes:
        """Send `request` and return the answer that `extract` finds.

        `write` says that the request changes the device. Raises `ReadOnlyError` (nothing was sent),
        `NoAnswer` (silence, or the line still has to be cleared of a late answer), `Incomplete`,
        `BadFrame` (endless babble), `Disconnected` (the port is closed then), what `extract`
        raises.
        """
        if write and self.read_only:
            raise ReadOnlyError(f'{self.address.path} is read-only; not sent: {request.hex(" ")}')
        if self._line.device is None or id(self) not in self._line.users:
            raise Disconnected(f'{self.address.path} is not open')
        self._wait_for_late_answer()
        self._send(request)
        try:
            answer = self._collect(request, extract)
        except Incomplete as error:
            # An adapter that echoes the request has not answered yet.
            if error.data.removeprefix(request):
                self._answer_came(in_order=False)
            raise
        except Disconnected:
            raise
        except NoAnswer:
            self._line.silent += 1
            if self._line.silent >= self.reopen_after:
                self._line.close()
                text = f'{self._line.silent} questions in a row without an answer; port closed'
                raise Disconnected(f'{self.address.path}: {text}') from None
            raise
        except Exception:
            self._answer_came(
                in_order=False
            )  # babble, or a complete answer that `extract` rejected
            raise
        self._answer_came(in_order=True)
        return answer

    def _answer_came(self, *, in_order: bool) -> None:
        self._line.silent = 0
        self._line.owed[id(self)] = -inf if in_order else monotonic() + GAP_S

    def _owed_until(self) -> float:
        """Monotonic s until which an answer may come that could be taken for the next one."""
        owed = self._line.owed
        return owed.get(id(self), -inf) if self.addressed else max(owed.values(), default=-inf)

    def _wait_for_late_answer(self) -> None:
        owed_until = self._owed_until()
        until = min(owed_until, monotonic() + self.timeout_s)
        while monotonic() < until:
            self.discarded += len(self._receive())
        left = owed_until - monotonic()
        if left > 0:
            raise NoAnswer(
                f'{self.address.path}: the last question got no answer; '
                f'listening {left:.1f} s more for a late one before asking again'
            )

    def _send(self, request: bytes) -> None:
        port = self._line.device
        assert port is not None
        try:
            self.discarded += port.in_waiting
            port.reset_input_buffer()
            self._line.owed[id(self)] = monotonic() + self.late_s
            self.sent += 1
            port.write(request)
        except serial.SerialTimeoutException as error:
            raise NoAnswer(f'{self.address.path}: the port takes no bytes') from error
        except PORT_ERRORS as error:
            raise self._lost(error) from error
        if self.trace:
            self.trace('>', request)

    def _collect(self, request: bytes, extract: Extract) -> bytes:
        deadline = monotonic() + self.timeout_s + len(request) * self.address.byte_s
        data = b''
        while True:
            data += self._receive()
            frame = extract(data) if data else None
            if frame is not None:
                return frame
            if len(data) > self.max_frame:
                raise BadFrame(f'{self.address.path}: {len(data)} bytes without a valid answer')
            if monotonic() >= deadline:
                break
        if data:
            text = f'no complete answer in {self.timeout_s:g} s, only {data.hex(" ")}'
            raise Incomplete(f'{self.address.path}: {text}', data)
        raise NoAnswer(f'{self.address.path}: no answer in {self.timeout_s:g} s')

    def _receive(self) -> bytes:
        """What arrived; waits up to `POLL_S` for the first byte."""
        port = self._line.device
        assert port is not None
        try:
            data = bytes(port.read(max(1, min(port.in_waiting, self.max_frame))))
        except PORT_ERRORS as error:
            raise self._lost(error) from error
        if data and self.trace:
            self.trace('<', data)
        return data

    def _lost(self, error: BaseException) -> Disconnected:
        self._line.close()
        return Disconnected(f'{self.address.path}: {error}')
