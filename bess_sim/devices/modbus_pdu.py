"""Modbus from the device's side, without sockets: answers from maps, faults on the wire."""

from __future__ import annotations

import logging
import struct
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from pymodbus.framer import FramerRTU

from bess_sim.device_faults import DeviceFaults

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, NO_TARGET = 1, 2, 3, 4, 11
MBAP_SIZE = 7
MAX_WRITES = 10_000  # remembered writes

_log = logging.getLogger(__name__)


class IllegalAddress(Exception):
    """The map has no such register, or not for this access (exception 2)."""


class IllegalValue(Exception):
    """The register does not take this value (exception 3)."""


class RegisterMap(Protocol):
    """The registers of one unit. Called from the server's thread."""

    def read(self, function: int, address: int, count: int) -> list[int]:
        """`count` registers by FC3 or FC4. Raises `IllegalAddress`."""

    def write(self, address: int, values: list[int]) -> None:
        """Wholly accept or wholly refuse. Raises `IllegalAddress` or `IllegalValue`."""


class Units:
    """Answers requests to several units and applies the faults that concern their content."""

    def __init__(self, units: Mapping[int, RegisterMap], faults: DeviceFaults) -> None:
        self.units, self.faults = dict(units), faults
        #: accepted writes: (time.monotonic() of arrival, unit, address, values)
        self.writes: deque[tuple[float, int, int, tuple[int, ...]]] = deque(maxlen=MAX_WRITES)
        self._frozen: dict[tuple[int, int, int, int], list[int]] = {}

    def answer(self, unit: int, pdu: bytes) -> bytes | None:
        """The answer to a request, both from the function code on; None = silence (a fault)."""
        arrived = time.monotonic()
        if self.faults.on('no_answer'):
            return None
        function = pdu[0]
        if self.faults.on('modbus_exception'):
            return bytes([function | 0x80, int(self.faults.value('modbus_exception', 4)) & 0xFF])
        if unit not in self.units:
            return bytes([function | 0x80, NO_TARGET])
        try:
            return self._execute(arrived, unit, function, pdu[1:])
        except IllegalAddress:
            return bytes([function | 0x80, ILLEGAL_ADDRESS])
        except (IllegalValue, struct.error):  # struct.error: a request that is too short
            return bytes([function | 0x80, ILLEGAL_VALUE])
        except Exception:  # noqa: BLE001
            # A defect of a register map must show, and must not take the other clients down.
            _log.exception('register map of unit %d failed on %s', unit, pdu.hex(' '))
            return bytes([function | 0x80, DEVICE_FAILURE])

    def _execute(self, arrived: float, unit: int, function: int, data: bytes) -> bytes:
        if function in (1, 2, 5, 15):
            return self._execute_bits(arrived, unit, function, data)
        if function in (3, 4):
            address, count = struct.unpack('>HH', data)
            if not 1 <= count <= 125:
                raise IllegalValue
            if address + count > 0x10000:
                raise IllegalAddress
            values = self._read(unit, function, address, count)
            return struct.pack(f'>BB{count}H', function, 2 * count, *values)
        if function == 6:
            address, value = struct.unpack('>HH', data)
            self._write(arrived, unit, address, [value])
            return bytes([function]) + data
        if function == 16:
            address, count, size = struct.unpack('>HHB', data[:5])
            if not 1 <= count <= 123 or size != 2 * count or len(data) != 5 + size:
                raise IllegalValue
            if address + count > 0x10000:
                raise IllegalAddress
            self._write(arrived, unit, address, list(struct.unpack(f'>{count}H', data[5:])))
            return bytes([function]) + data[:4]
        return bytes([function | 0x80, ILLEGAL_FUNCTION])

    def _execute_bits(self, arrived: float, unit: int, function: int, data: bytes) -> bytes:
        """Coils and discrete inputs, for maps that have them."""
        registers = self.units[unit]
        if not hasattr(registers, 'write_coils'):
            return bytes([function | 0x80, ILLEGAL_FUNCTION])
        if function in (1, 2):
            address, count = struct.unpack('>HH', data)
            if not 1 <= count <= 2000:
                raise IllegalValue
            bits = self._read(unit, function, address, count)
            packed = bytearray((count + 7) // 8)
            for i, bit in enumerate(bits):
                packed[i // 8] |= bit << i % 8
            return bytes([function, len(packed)]) + packed
        if function == 5:
            address, value = struct.unpack('>HH', data)
            if value not in (0x0000, 0xFF00):
                raise IllegalValue
            values = [int(value != 0)]
        else:
            address, count, size = struct.unpack('>HHB', data[:5])
            if not 1 <= count <= 1968 or size != (count + 7) // 8 or len(data) != 5 + size:
                raise IllegalValue
            values = [data[5 + i // 8] >> i % 8 & 1 for i in range(count)]
        registers.write_coils(address, values)
        self.writes.append((arrived, unit, address, tuple(values)))
        return bytes([function]) + data[:4]

    def _read(self, unit: int, function: int, address: int, count: int) -> list[int]:
        if not self.faults.on('frozen_value'):
            self._frozen.clear()
            return self.units[unit].read(function, address, count)
        key = (unit, function, address, count)
        if key not in self._frozen:
            self._frozen[key] = self.units[unit].read(function, address, count)
        return self._frozen[key]

    def _write(self, arrived: float, unit: int, address: int, values: list[int]) -> None:
        self.units[unit].write(address, values)
        self.writes.append((arrived, unit, address, tuple(values)))


class FrameFaults:
    """Faults that concern the bytes of an answer."""

    def __init__(self, faults: DeviceFaults) -> None:
        self.faults = faults
        self._flips = 0

    def unit(self, unit: int) -> int:
        """The unit id that the answer carries."""
        return unit ^ 0x55 if self.faults.on('wrong_unit_id') else unit

    def spoil(self, frame: bytes, flip_within: int) -> bytes:
        """Flip one byte, another one each time, among the first `flip_within`, and cut in half."""
        if self.faults.on('flipped_bytes'):
            spoiled, at = bytearray(frame), self._flips % min(flip_within, len(frame))
            spoiled[at] ^= 0xFF
            frame = bytes(spoiled)
            self._flips += 1
        return frame[: len(frame) // 2] if self.faults.on('truncated_frame') else frame

    def delay(self) -> float:
        """Seconds by which the answer is late."""
        if not self.faults.on('late_answer'):
            return 0.0
        return max(self.faults.value('late_answer', 2.0), 0.0)


def split_tcp(buffer: bytes) -> tuple[bytes, bytes] | None:
    """(first frame, rest) of a stream of Modbus TCP requests; None when it is not yet whole.

    Raises ValueError for bytes that are not Modbus TCP or announce an impossible length.
    """
    if len(buffer) < MBAP_SIZE:
        return None
    _, protocol, length = struct.unpack('>HHH', buffer[:6])
    if protocol != 0 or not 2 <= length <= 254:
        raise ValueError(f'not a Modbus TCP header: {buffer[:MBAP_SIZE].hex(" ")}')
    return None if len(buffer) < 6 + length else (buffer[: 6 + length], buffer[6 + length :])


def tcp_frame(transaction: bytes, unit: int, pdu: bytes) -> bytes:
    """A Modbus TCP answer; `transaction` are the two bytes of the request."""
    return transaction + struct.pack('>HHB', 0, len(pdu) + 1, unit) + pdu


def with_crc(frame: bytes) -> bytes:
    """An RTU frame with its CRC."""
    return frame + FramerRTU.compute_CRC(frame).to_bytes(2, 'big')


def split_rtu(buffer: bytes) -> tuple[bytes, bytes] | None:
    """(first frame without CRC, rest) of received RTU bytes; None when it is not yet whole.

    Raises ValueError when the bytes are no request: the line is to be listened to until it rests.
    """
    if len(buffer) < 2:
        return None
    if buffer[1] in (1, 2, 3, 4, 5, 6):
        size = 8
    elif buffer[1] in (15, 16):
        if len(buffer) < 7:
            return None
        size = 9 + buffer[6]
    else:
        raise ValueError(f'function {buffer[1]}')
    if len(buffer) < size:
        return None
    if with_crc(buffer[: size - 2]) != buffer[:size]:
        raise ValueError('CRC')
    return buffer[: size - 2], buffer[size:]
