"""Ports that Modbus goes through: TCP and a serial line, each of which knows the right answer from a late one.

pymodbus' own client is not used for the exchange (3.16.1, read in its source): it keeps the
connection after a time-out, skips answers with a wrong unit or transaction number and then reports
a time-out, hunts for RTU frames inside garbage, measures its time-out with the wall clock and does
not set TCP_NODELAY. Its frame and PDU encoders are used (`frames`), the port is our own.
"""

from __future__ import annotations

import random
import select
import socket
import termios
import time
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import serial

from bess_drivers.device import BadFrame, BadValue, Disconnected, NoAnswer
from bess_drivers.modbus import frames
from bess_drivers.modbus.frames import Request


class Port(Protocol):
    """A transport: `exchange` sends one request and returns the registers of its answer."""

    @property
    def connected(self) -> bool:
        """Whether the next request can go out."""

    def open(self) -> None:
        """Connect. Raises `Disconnected`."""

    def close(self) -> None:
        """Disconnect; never raises."""

    def exchange(self, request: Request, timeout_s: float = 0.0) -> list[int]:
        """One request and its answer. Raises `DeviceError`."""


class TcpPort:
    """Modbus TCP over one socket."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self._socket: socket.socket | None = None
        self._poll = select.poll()  # whether something waits on the socket
        # A random start and no reset on reconnect: a gateway that answers an old connection's
        # request on the new one is recognised too.
        self._transaction = random.randrange(1, 0x10000)

    @property
    def connected(self) -> bool:
        """Whether the connection is up and the peer has not closed it."""
        return self._socket is not None and not self._poll.poll(0)  # nothing was asked, nothing may wait

    def open(self) -> None:
        """Connect. Raises `Disconnected`."""
        self.close()
        try:
            self._socket = socket.create_connection((self.host, self.port), timeout=self.timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host
            self.close()
            raise Disconnected(f'no connection to {self.host}:{self.port}: {error}') from error

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def exchange(self, request: Request, timeout_s: float = 0.0) -> list[int]:
        """Send one request, wait for its answer (`timeout_s` instead of the port's own, 0 = that one)."""
        timeout_s = timeout_s or self.timeout_s
        sock = self._socket
        if sock is None:
            raise Disconnected(f'not connected to {self.host}:{self.port}')
        self._transaction = self._transaction % 0xFFFF + 1
        deadline = time.monotonic() + timeout_s
        try:
            sock.settimeout(timeout_s)
            sock.sendall(frames.encode_tcp(request, self._transaction))
            # Header and body come together as a rule; never more is taken than the right answer has.
            most = frames.MBAP_SIZE + request.pdu_size()
            answer = self._receive(sock, frames.MBAP_SIZE, most, deadline)
            size = frames.MBAP_SIZE + frames.body_size(answer[:frames.MBAP_SIZE], request, self._transaction)
            if len(answer) < size:
                answer += self._receive(sock, size - len(answer), size - len(answer), deadline)
        except TimeoutError as error:
            raise NoAnswer(f'no answer within {timeout_s} s to {request}') from error
        except OSError as error:
            raise Disconnected(f'connection to {self.host}:{self.port} lost: {error}') from error
        if len(answer) > size:
            raise BadFrame(f'{len(answer) - size} bytes behind the answer to {request}')
        return frames.decode_pdu(answer[frames.MBAP_SIZE:], request)

    def _receive(self, sock: socket.socket, least: int, most: int, deadline: float) -> bytes:
        """At least and at most so many bytes."""
        data = b''
        while len(data) < least:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            part = sock.recv(most - len(data))
            if not part:
                raise Disconnected(f'{self.host}:{self.port} closed the connection')
            data += part
        return data


class RtuPort:
    """Modbus RTU over a serial port.

    RTU answers carry no transaction number. After total silence the unit's next *reads of the same
    shape* are therefore not sent for `quiet_s`, counted from the time-out: an answer that comes
    within it is thrown away and can be taken for nothing else. Writes always go out at once, so
    that a stop is never delayed; see `exchange`.
    """

    def __init__(
        self, path: str, timeout_s: float, baud: int, parity: str, stopbits: float, quiet_s: float
    ) -> None:
        self.path, self.timeout_s, self.quiet_s = path, timeout_s, quiet_s
        self.baud, self.parity, self.stopbits = baud, parity, stopbits
        self._serial: serial.Serial | None = None
        self._char_s = (9 + (parity != 'N') + stopbits) / baud
        # 3.5 characters, fixed above 19200 baud (Modbus over Serial Line 1.02, 2.5.1.1).
        self._gap_s = max(3.5 * self._char_s, 0.00175)
        # USB adapters hand bytes over in lumps (FTDI: 16 ms): longer pauses inside an answer.
        self._lump_s = max(self._gap_s, 0.05)
        self._last_byte = 0.0
        self._doubt: dict[tuple[int, int, int], float] = {}  # (unit, function, count) -> until
        self._late: dict[tuple[int, int, int], Request] = {}  # what may still be answered late
        self.late_answers = 0  # that came and were thrown away

    @property
    def connected(self) -> bool:
        """Whether the port is open."""
        return self._serial is not None

    def open(self) -> None:
        """Open the port for ourselves alone. Raises `Disconnected`."""
        self.close()
        try:
            self._serial = serial.Serial(
                self.path, self.baud, parity=self.parity, stopbits=self.stopbits,
                timeout=0, write_timeout=self.timeout_s, exclusive=True,
            )  # fmt: skip
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            raise Disconnected(f'cannot open {self.path}: {error}') from error

    def close(self) -> None:
        """Close the port."""
        if self._serial is not None:
            self._serial.close()
        self._serial = None

    def exchange(self, request: Request, timeout_s: float = 0.0) -> list[int]:
        """Send one request, wait for its answer (`timeout_s` instead of the port's own, 0 = that one).

        The late answer of another unit or to another question, up to `quiet_s` after its time-out, is
        thrown away, and the wait for the right one goes on.

        Raises `NoAnswer` without sending while a late answer could be taken for the one asked for
        (reads only). A write's late echo within `quiet_s` may confirm the next identical write.
        """
        timeout_s = timeout_s or self.timeout_s
        port = self._serial
        if port is None:
            raise Disconnected(f'{self.path} is not open')
        if request.unit == 0:
            raise BadValue('unit 0 is the broadcast address on a serial line and never answers')
        shape = (request.unit, request.function, request.count)
        wait = self._doubt.get(shape, 0.0) - time.monotonic()
        if wait > 0 and request.function in frames.READS:
            raise NoAnswer(f'not sent for {wait:.2f} s more, a late answer may come: {request}')
        self._doubt.pop(shape, None)
        try:
            self._rest()
            port.reset_input_buffer()
            frame = frames.encode_rtu(request)
            port.write(frame)
            on_wire = (len(frame) + request.pdu_size() + 3) * self._char_s
            answer = self._receive(port, request, time.monotonic() + timeout_s + on_wire)
        except serial.SerialTimeoutException as error:
            raise NoAnswer(f'{self.path} does not accept bytes: {error}') from error
        except (OSError, termios.error) as error:  # termios.error is no OSError
            raise Disconnected(f'{self.path} is gone: {error}') from error
        if not answer:
            self._doubt[shape] = time.monotonic() + self.quiet_s
            self._late[shape] = request
            raise NoAnswer(f'no answer within {timeout_s} s to {request}')
        wanted = frames.rtu_size(answer, request)
        if wanted > len(answer):
            raise NoAnswer(
                f'{len(answer)} of {wanted} bytes within {timeout_s} s to {request}'
            )
        return frames.decode_rtu(answer, request)

    def _rest(self) -> None:
        """Keep the silence that separates two frames."""
        pause = self._last_byte + self._gap_s - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def _receive(self, port: serial.Serial, request: Request, deadline: float) -> bytes:
        """Bytes until the answer is whole; of anything else, all until a pause or the deadline."""
        data = b''
        while True:
            data = self._without_late(data, request)
            wanted = frames.rtu_size(data, request)
            if (wanted and len(data) >= wanted) or len(data) > 260:
                return data
            left = deadline - time.monotonic()
            if data and not wanted and not self._begins_late(data):
                left = min(left, self._lump_s)
            if left <= 0 or not select.select([port.fileno()], [], [], left)[0]:
                return data
            part = port.read(512)
            if not part:
                raise Disconnected(f'{self.path} was closed by the other side')
            self._last_byte = time.monotonic()
            data += part

    def _owed(self, data: bytes) -> list[int]:
        """Lengths of late answers that these bytes may be the beginning of."""
        now = time.monotonic()
        self._late = {k: r for k, r in self._late.items() if self._doubt.get(k, 0.0) > now}
        return [size for r in self._late.values() if (size := frames.rtu_size(data, r))]

    def _begins_late(self, data: bytes) -> bool:
        return bool(self._owed(data))

    def _without_late(self, data: bytes, request: Request) -> bytes:
        """The bytes without a whole late answer before them. What fits the open question is never taken away."""
        while data and not frames.rtu_size(data, request):
            size = next((n for n in self._owed(data) if len(data) >= n
                         and frames.rtu_crc(data[:n - 2]) == data[n - 2:n]), 0)
            if not size:
                return data
            self.late_answers += 1
            data = data[size:]
        return data


class Ports:
    """Ports that several units share: one per address, open as long as one link uses it."""

    def __init__(self) -> None:
        self._ports: dict[str, tuple[str, TcpPort | RtuPort, set[int]]] = {}

    def take(self, address: str, timeout_s: float) -> tuple[TcpPort | RtuPort, set[int]]:
        """The port of an address and who uses it. Raises ValueError for other line settings than before."""
        where, _, options = address.partition('?')
        if where not in self._ports:
            self._ports[where] = (options, parse_address(address, timeout_s), set())
        known, port, users = self._ports[where]
        if known != options:
            raise ValueError(f'{where} is used with other settings: ?{known} and ?{options}')
        return port, users


def parse_address(address: str, timeout_s: float) -> TcpPort | RtuPort:
    """The port that an address names.

    `tcp://host:port` (port 502 when left out), or `rtu:/dev/ttyUSB0?baud=9600&parity=N&stopbits=1`
    (these are the defaults; `quiet` = s, see `RtuPort`, default 4 x `timeout_s`).
    Raises ValueError, in words, for anything else.
    """
    url = urlsplit(address)
    if url.scheme == 'tcp':
        if not url.hostname or url.path not in ('', '/') or url.query:
            raise ValueError(f'{address!r} is not tcp://host:port')
        return TcpPort(url.hostname, url.port or 502, timeout_s)  # .port raises ValueError itself
    if url.scheme != 'rtu' or not url.path:
        raise ValueError(f'{address!r} is neither tcp://host:port nor rtu:/dev/NAME?baud=9600')
    options = {'baud': '9600', 'parity': 'N', 'stopbits': '1', 'quiet': str(4 * timeout_s)}
    given = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    if unknown := set(given) - set(options):
        raise ValueError(f'{address!r}: unknown {sorted(unknown)}; known: {sorted(options)}')
    options |= given
    if options['parity'] not in 'NEO' or len(options['parity']) != 1:
        raise ValueError(f'{address!r}: parity is N, E or O')
    if options['stopbits'] not in ('1', '2'):
        raise ValueError(f'{address!r}: stopbits is 1 or 2')
    baud, quiet = int(options['baud']), float(options['quiet'])
    if baud <= 0 or not quiet >= 0:
        raise ValueError(f'{address!r}: baud must be above and quiet not below 0')
    return RtuPort(url.path, timeout_s, baud, options['parity'], int(options['stopbits']), quiet)
