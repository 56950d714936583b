"""A serial line with one question and one answer at a time.

Devices on such lines have no sequence numbers: an answer that comes late looks exactly like the
answer to the next question. So after a question that got no answer the link sends nothing until
`late_s` have passed since that question, and throws away what arrives meanwhile. At most one answer
is ever owed, and it cannot be mistaken unless a device needs longer than `late_s`.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class SerialAddress:
    """Where a serial device is and how the line is set."""

    path: str
    baud: int = 9600
    parity: str = 'N'  # N, E or O
    stopbits: int = 1

    @property
    def byte_s(self) -> float:
        """Seconds that one byte takes on the line."""
        return (9 + self.stopbits + (self.parity != 'N')) / self.baud


def parse_address(address: str) -> SerialAddress:
    """Parse `serial:/dev/ttyUSB0?baud=9600&parity=N&stopbits=1` or a plain path.

    Raises ValueError that names the setting, its value and what is allowed.
    """
    path, _, query = address.removeprefix('serial:').partition('?')
    if not path:
        raise ValueError(
            f'address {address!r} names no port; expected serial:/dev/ttyUSB0?baud=9600'
        )
    found = SerialAddress(path)
    baud, parity, stopbits = found.baud, found.parity, found.stopbits
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
        else:
            raise ValueError(
                f'address {address!r}: unknown setting {key!r}, allowed baud, parity, stopbits'
            )
    return SerialAddress(path, baud, parity, stopbits)


class SerialLink:
    """One serial port. Not thread-safe: one worker thread owns it.

    timeout_s: an answer has to be complete this long (s) after its question; a call of `transact`
        takes at most twice as long.
    late_s: longest time (s) after which a device may still answer a question (see the module text).
    max_frame: bytes after which an answer that never ends is given up.
    reopen_after: so many silent questions in a row close the port, because the operating system may
        keep an unplugged adapter "open"; the next `open` starts afresh.
    read_only: questions marked as `write` are refused before a byte leaves.
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
    ) -> None:
        self.address = parse_address(address)
        self.timeout_s = timeout_s
        self.late_s = late_s
        self.max_frame = max_frame
        self.reopen_after = reopen_after
        self.read_only = read_only
        self.sent = 0  # requests of which at least a part may have left
        self.discarded = 0  # bytes thrown away because they answered no open question
        self.trace: Callable[[str, bytes], None] | None = (
            None  # gets ('>' or '<', bytes), for recording
        )
        self._port: serial.Serial | None = None
        self._owed_until = -inf  # monotonic s; until then a late answer may come
        self._silent = 0  # questions without any answer, in a row

    @property
    def is_open(self) -> bool:
        """Whether the port is open, as far as is known."""
        return self._port is not None

    def open(self) -> None:
        """Open the port for this link alone. Raises `Disconnected`."""
        if self._port is not None:
            return
        where = self.address
        try:
            self._port = serial.Serial(
                where.path,
                where.baud,
                parity=where.parity,
                stopbits=where.stopbits,
                timeout=POLL_S,
                write_timeout=self.timeout_s,
                exclusive=True,
            )
        except (ValueError, *PORT_ERRORS) as error:
            raise Disconnected(f'{where.path}: {error}') from error
        self._silent = 0

    def close(self) -> None:
        """Close the port; never raises."""
        port, self._port = self._port, None
        if port is not None:
            try:
                port.close()
            except PORT_ERRORS:
                # The port is gone already, which is what was asked for.
                return

    def transact(self, request: bytes, extract: Extract, *, write: bool) -> bytes:
        """Send `request` and return the answer that `extract` finds.

        `write` says that the request changes the device. Raises `ReadOnlyError` (nothing was sent),
        `NoAnswer` (silence, or the line still has to be cleared of a late answer), `Incomplete`,
        `BadFrame` (endless babble), `Disconnected` (the port is closed then), what `extract`
        raises.
        """
        if write and self.read_only:
            raise ReadOnlyError(f'{self.address.path} is read-only; not sent: {request.hex(" ")}')
        if self._port is None:
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
            self._silent += 1
            if self._silent >= self.reopen_after:
                self.close()
                text = f'{self._silent} questions in a row without an answer; port closed'
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
        self._silent = 0
        self._owed_until = -inf if in_order else monotonic() + GAP_S

    def _wait_for_late_answer(self) -> None:
        until = min(self._owed_until, monotonic() + self.timeout_s)
        while monotonic() < until:
            self.discarded += len(self._receive())
        left = self._owed_until - monotonic()
        if left > 0:
            raise NoAnswer(
                f'{self.address.path}: the last question got no answer; '
                f'listening {left:.1f} s more for a late one before asking again'
            )

    def _send(self, request: bytes) -> None:
        port = self._port
        assert port is not None
        try:
            self.discarded += port.in_waiting
            port.reset_input_buffer()
            self._owed_until = monotonic() + self.late_s
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
        port = self._port
        assert port is not None
        try:
            data = bytes(port.read(max(1, min(port.in_waiting, self.max_frame))))
        except PORT_ERRORS as error:
            raise self._lost(error) from error
        if data and self.trace:
            self.trace('<', data)
        return data

    def _lost(self, error: BaseException) -> Disconnected:
        self.close()
        return Disconnected(f'{self.address.path}: {error}')
