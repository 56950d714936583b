"""Modbus requests and answers as bytes: pure functions, no port.

Requests are encoded with pymodbus' PDU classes and framers (a read over TCP, twelve bytes, directly).
Answers are decoded here, because pymodbus' decoders accept what a measurement must not be made of: a byte
count that does not fit the request, garbage before and bytes after an RTU frame, another unit's answer
(skipped and logged).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsRequest,
    ReadDiscreteInputsRequest,
    WriteMultipleCoilsRequest,
    WriteSingleCoilRequest,
)
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
    WriteSingleRegisterRequest,
)

from bess_drivers.device import BadChecksum, BadFrame, BadValue, Refused

READ_COILS, READ_DISCRETE, READ_HOLDING, READ_INPUT = 1, 2, 3, 4
WRITE_COIL, WRITE_SINGLE, WRITE_COILS, WRITE_MULTIPLE = 5, 6, 15, 16
READS = (READ_COILS, READ_DISCRETE, READ_HOLDING, READ_INPUT)
BIT_READS = (READ_COILS, READ_DISCRETE)
BIT_WRITES = (WRITE_COIL, WRITE_COILS)
COIL_ON = 0xFF00  # value of WRITE_COIL; 0 = off
#: Most registers, and most coils, of one request (Modbus Application Protocol 1.1b3, 6.1 to 6.12).
MAX_READ, MAX_WRITE, MAX_READ_BITS, MAX_WRITE_BITS = 125, 123, 2000, 1968
MBAP_SIZE = 7  # transaction, protocol, length, unit

EXCEPTIONS = {
    1: 'illegal function',
    2: 'illegal data address',
    3: 'illegal data value',
    4: 'server device failure',
    5: 'acknowledge',
    6: 'server device busy',
    8: 'memory parity error',
    10: 'gateway path unavailable',
    11: 'gateway target failed to respond',
}

_TCP = FramerSocket(DecodePDU(False))
_RTU = FramerRTU(DecodePDU(False))
#: Transaction, protocol, bytes that follow, unit, function, address, count.
_TCP_READ = struct.Struct('>HHHBBHH')
_MBAP = struct.Struct('>HHHB')


class ModbusRefused(Refused):
    """The device answered with a Modbus exception; `code` is its number."""

    def __init__(self, code: int, request: Request) -> None:
        name = EXCEPTIONS.get(code, 'unknown exception')
        super().__init__(f'exception {code} ({name}) to {request}')
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what goes out and what the answer must look like."""

    unit: int
    function: int
    address: int
    count: int
    values: tuple[int, ...] = ()

    def __str__(self) -> str:
        verb = 'read' if self.function in READS else 'write'
        return f'{verb} of {self.count} at {self.address} (0x{self.address:04X}), unit {self.unit}'

    def pdu_size(self) -> int:
        """Length of the right answer, function code to last data byte."""
        return 2 + self.data_size() if self.function in READS else 5

    def data_size(self) -> int:
        """Data bytes of the answer to a read."""
        return (self.count + 7) // 8 if self.function in BIT_READS else 2 * self.count

    def pdu(self) -> ModbusPDU:
        """The request as pymodbus' object."""
        if self.function in BIT_READS:
            bits = ReadCoilsRequest if self.function == READ_COILS else ReadDiscreteInputsRequest
            return bits(dev_id=self.unit, address=self.address, count=self.count)
        if self.function in READS:
            kind = ReadHoldingRegistersRequest if self.function == 3 else ReadInputRegistersRequest
            return kind(dev_id=self.unit, address=self.address, count=self.count)
        if self.function in BIT_WRITES:
            coils = WriteSingleCoilRequest if self.function == WRITE_COIL else WriteMultipleCoilsRequest
            return coils(dev_id=self.unit, address=self.address, bits=[bool(v) for v in self.values])
        write = WriteSingleRegisterRequest if self.function == 6 else WriteMultipleRegistersRequest
        return write(dev_id=self.unit, address=self.address, registers=list(self.values))


def _check(unit: int, address: int, count: int, limit: int) -> None:
    if not 0 <= unit <= 255:
        raise BadValue(f'unit {unit} is not in 0..255')
    if not 1 <= count <= limit:
        raise BadValue(f'{count} registers in one request; 1..{limit} are possible')
    if not 0 <= address <= 65536 - count:
        raise BadValue(f'registers {address}..{address + count - 1} are not in 0..65535')


def read_request(unit: int, function: int, address: int, count: int) -> Request:
    """A read. Raises `BadValue` for what no Modbus frame can ask."""
    if function not in READS:
        raise BadValue(f'function {function} is no read; reads are {", ".join(map(str, READS))}')
    _check(unit, address, count, MAX_READ_BITS if function in BIT_READS else MAX_READ)
    return Request(unit, function, address, count)


def write_request(unit: int, address: int, values: Sequence[int], single: bool = False) -> Request:
    """A write, FC16 or with `single` FC6. Raises `BadValue` for what no Modbus frame can carry."""
    _check(unit, address, len(values), 1 if single else MAX_WRITE)
    for value in values:
        if not 0 <= value <= 0xFFFF:
            raise BadValue(f'register value {value} is not in 0..65535')
    function = WRITE_SINGLE if single else WRITE_MULTIPLE
    return Request(unit, function, address, len(values), tuple(int(v) for v in values))


def write_bits_request(unit: int, address: int, values: Sequence[int], single: bool = False) -> Request:
    """A write of coils (0 or 1), FC15 or with `single` FC5. Raises `BadValue`."""
    _check(unit, address, len(values), 1 if single else MAX_WRITE_BITS)
    if any(value not in (0, 1) for value in values):
        raise BadValue(f'coils are 0 or 1, not {list(values)}')
    return Request(unit, WRITE_COIL if single else WRITE_COILS, address, len(values), tuple(int(v) for v in values))


def encode_tcp(request: Request, transaction: int) -> bytes:
    """The request as a Modbus TCP frame."""
    if request.function in READS:  # all four alike, and nearly all that is ever sent
        return _TCP_READ.pack(transaction, 0, 6, request.unit, request.function, request.address, request.count)
    pdu = request.pdu()
    pdu.transaction_id = transaction
    return _TCP.buildFrame(pdu)


def encode_rtu(request: Request) -> bytes:
    """The request as a Modbus RTU frame, CRC included."""
    return _RTU.buildFrame(request.pdu())


def rtu_crc(data: bytes) -> bytes:
    """CRC-16/MODBUS in the order in which it is sent."""
    return FramerRTU.compute_CRC(data).to_bytes(2, 'big')


def body_size(header: bytes, request: Request, transaction: int) -> int:
    """Check the MBAP header (7 bytes) of an answer; the number of bytes that follow it.

    Raises `BadFrame` when the header is not that of an answer to this request.
    """
    got, protocol, length, unit = _MBAP.unpack(header)
    if got != transaction:
        raise BadFrame(f'answer to transaction {got} instead of {transaction}')
    if protocol != 0:
        raise BadFrame(f'protocol {protocol} instead of 0')
    if unit != request.unit:
        raise BadFrame(f'answer of unit {unit} instead of {request.unit}')
    if length - 1 not in (2, request.pdu_size()):
        raise BadFrame(f'answer of {length - 1} bytes instead of {request.pdu_size()}')
    return length - 1


def decode_pdu(pdu: bytes, request: Request) -> list[int]:
    """Registers of an answer (empty for a write), function code first, unit and checksum removed.

    Raises `ModbusRefused` for an exception and `BadFrame` for anything that is not the answer.
    """
    if len(pdu) == 2 and pdu[0] == request.function | 0x80:
        raise ModbusRefused(pdu[1], request)
    if not pdu or pdu[0] != request.function:
        raise BadFrame(f'function {pdu[0] if pdu else None} instead of {request.function}')
    if len(pdu) != request.pdu_size():
        raise BadFrame(f'answer of {len(pdu)} bytes instead of {request.pdu_size()}')
    if request.function in READS:
        if pdu[1] != request.data_size():
            raise BadFrame(f'byte count {pdu[1]} instead of {request.data_size()}')
        if request.function in BIT_READS:
            return [pdu[2 + i // 8] >> i % 8 & 1 for i in range(request.count)]
        return list(struct.unpack(f'>{request.count}H', pdu[2:]))
    address, echo = struct.unpack('>HH', pdu[1:])
    wanted = request.count
    if request.function == WRITE_SINGLE:
        wanted = request.values[0]
    elif request.function == WRITE_COIL:
        wanted = COIL_ON * request.values[0]
    if (address, echo) != (request.address, wanted):
        raise BadFrame(
            f'write echoed as ({address}, {echo}) instead of ({request.address}, {wanted})'
        )
    return []


def rtu_size(start: bytes, request: Request) -> int:
    """Length of the RTU answer that begins like this; 0 when it does not begin like the answer."""
    if len(start) < 3 or start[0] != request.unit:
        return 0
    if start[1] == request.function | 0x80:
        return 5
    if start[1] != request.function:
        return 0
    if request.function in READS and start[2] != request.data_size():
        return 0
    return request.pdu_size() + 3


def decode_rtu(frame: bytes, request: Request) -> list[int]:
    """Registers of a whole RTU answer. Raises `BadChecksum`, `BadFrame` or `ModbusRefused`."""
    if len(frame) < 5:
        raise BadFrame(f'answer of {len(frame)} bytes: {frame.hex(" ")}')
    if rtu_crc(frame[:-2]) != frame[-2:]:
        raise BadChecksum(f'CRC {frame[-2:].hex()} instead of {rtu_crc(frame[:-2]).hex()}')
    if frame[0] != request.unit:
        raise BadFrame(f'answer of unit {frame[0]} instead of {request.unit}')
    return decode_pdu(frame[1:-2], request)
