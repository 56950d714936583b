"""An I2C bus of Linux (`/dev/i2c-N`) for the devices of one worker thread; `read_only` is enforced here.

All transfers are raw combined ones (`I2C_RDWR`) through smbus2, because the block commands of the kernel
stop at 32 bytes and gauges answer with 34. The packet error code is therefore made and checked here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl

import smbus2

from bess_drivers.device import BadChecksum, Disconnected, NoAnswer, ReadOnlyError

#: What the kernel says when a device does not acknowledge, holds the clock, or loses arbitration.
SILENT = {errno.EREMOTEIO, errno.ENXIO, errno.ETIMEDOUT, errno.EIO, errno.EAGAIN, errno.EPROTO, errno.EBADMSG}


@dataclass(frozen=True)
class I2cAddress:
    """Where a device is: bus file and address (7 bit)."""

    path: str
    device: int


def parse_address(address: str, default: int) -> I2cAddress:
    """Parse `i2c:/dev/i2c-1?address=0x0b`. Raises ValueError that names setting, value and what is allowed."""
    path, _, query = address.removeprefix('i2c:').partition('?')
    if not path:
        raise ValueError(f'address {address!r} names no bus; expected i2c:/dev/i2c-1?address=0x{default:02x}')
    device = default
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != 'address':
            raise ValueError(f'address {address!r}: unknown setting {key!r}, allowed address')
        try:
            device = int(value, 0)
        except ValueError:
            device = -1
        if not 0x03 <= device <= 0x77:
            raise ValueError(f'address {address!r}: address is {value!r}, allowed 0x03..0x77')
    return I2cAddress(path, device)


def pec(data: bytes, crc: int = 0) -> int:
    """Packet error code of SMBus 3.1, section 6.4: CRC-8 with polynomial 0x07 over all bytes of a transfer."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


class I2cDevice:
    """One device on a bus. Not thread-safe: one worker thread owns it."""

    def __init__(self, address: str, default: int, *, read_only: bool = False) -> None:
        self.address = parse_address(address, default)
        self.read_only = read_only
        self.written = 0  # transfers that may have changed the device
        self.trace: Callable[[str, bytes], None] | None = None  # gets ('>' or '<', bytes), for recording
        self._bus: smbus2.SMBus | None = None

    @property
    def text(self) -> str:
        """For messages."""
        return f'{self.address.path} device 0x{self.address.device:02x}'

    @property
    def is_open(self) -> bool:
        """Whether the bus is open."""
        return self._bus is not None

    def open(self) -> None:
        """Open the bus. Raises `Disconnected`."""
        self.close()
        bus = smbus2.SMBus()
        try:
            bus.open(self.address.path)
            if not bus.funcs & smbus2.I2cFunc.I2C:
                raise Disconnected(f'{self.address.path}: this adapter makes no plain I2C transfers')
        except (OSError, Disconnected) as error:
            bus.close()
            raise error if isinstance(error, Disconnected) else Disconnected(f'{self.address.path}: {error}') from error
        self._bus = bus

    def close(self) -> None:
        """Close the bus; never raises."""
        bus, self._bus = self._bus, None
        if bus is not None:
            try:
                bus.close()
            except OSError:
                return  # it is gone already

    def read(self, command: bytes, size: int) -> bytes:
        """`size` bytes after a repeated start behind `command`. Raises `NoAnswer`, `Disconnected`."""
        question = smbus2.i2c_msg.write(self.address.device, command)
        answer = smbus2.i2c_msg.read(self.address.device, size)
        self._transfer(question, answer)
        data = bytes(answer)
        if self.trace:
            self.trace('>', command)
            self.trace('<', data)
        return data

    def write(self, data: bytes) -> None:
        """Send bytes. Raises `ReadOnlyError` (nothing was sent), `NoAnswer`, `Disconnected`."""
        if self.read_only:
            raise ReadOnlyError(f'{self.text} is read-only; not sent: {len(data)} bytes to 0x{data[0]:02x}')
        self.written += 1
        self._transfer(smbus2.i2c_msg.write(self.address.device, data))
        if self.trace:
            self.trace('>', data)

    def _transfer(self, *messages: smbus2.i2c_msg) -> None:
        if self._bus is None:
            raise Disconnected(f'{self.address.path} is not open')
        try:
            self._bus.i2c_rdwr(*messages)
        except OSError as error:
            if error.errno in SILENT:
                raise NoAnswer(f'{self.text}: {error}') from error
            self.close()
            raise Disconnected(f'{self.address.path}: {error}') from error


class SmbusDevice(I2cDevice):
    """The SMBus transfers that smart batteries use, with packet error code."""

    def __init__(self, address: str, default: int, *, with_pec: bool = True, read_only: bool = False) -> None:
        super().__init__(address, default, read_only=read_only)
        self.with_pec = with_pec

    def _checked(self, command: int, data: bytes, size: int) -> bytes:
        """The first `size` bytes, once the code behind them is right."""
        head = bytes((self.address.device << 1, command, self.address.device << 1 | 1))
        if self.with_pec and pec(head + data[:size]) != data[size]:
            raise BadChecksum(f'{self.text}: wrong packet error code of 0x{command:02x}: {data[:size + 1].hex(" ")}')
        return data[:size]

    def read_word(self, command: int) -> int:
        """A little-endian word. Raises `BadChecksum`, `NoAnswer`, `Disconnected`."""
        data = self.read(bytes((command,)), 2 + self.with_pec)
        return int.from_bytes(self._checked(command, data, 2), 'little')

    def read_block(self, command: int, longest: int = 32) -> bytes:
        """A block of up to `longest` bytes. Raises `BadChecksum` (also for an impossible length)."""
        data = self.read(bytes((command,)), 1 + longest + self.with_pec)
        if data[0] > longest:
            raise BadChecksum(f'{self.text}: block 0x{command:02x} claims {data[0]} bytes, more than {longest}')
        return self._checked(command, data, 1 + data[0])[1:]

    def write_word(self, command: int, value: int) -> None:
        """Raises `ReadOnlyError`, `NoAnswer`, `Disconnected`."""
        self._send(bytes((command,)) + value.to_bytes(2, 'little'))

    def write_block(self, command: int, data: bytes) -> None:
        """Raises `ReadOnlyError`, `NoAnswer`, `Disconnected`."""
        self._send(bytes((command, len(data))) + data)

    def _send(self, data: bytes) -> None:
        code = bytes((pec(bytes((self.address.device << 1,)) + data),)) if self.with_pec else b''
        self.write(data + code)
