"""Frames and registers of the JBD (Xiaoxiang) BMS protocol, UART 9600 8N1. Pure. Big-endian.

Request: DD, A5 read or 5A write, register, length, data, checksum, 77.
Answer:  DD, register (some devices: A5), status (00 = done), length, data, checksum, 77.
Checksum: two's complement of the 16-bit sum of register (request) or status (answer), length, data.
Source: JBD communication protocol V4 as documented by its users; frames checked in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from struct import unpack, unpack_from

from bess_core.values import Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, NoAnswer, Refused

START, END, READ, WRITE = 0xDD, 0x77, 0xA5, 0x5A
BASIC, CELLS, NAME, FET_CONTROL = 0x03, 0x04, 0x05, 0xE1

MAX_CELLS = 32  # the balance flags have 32 bits
MAX_NTC = 8  # calibration registers D0..D7
MAX_NAME = 31
CELL_RANGE = (0.5, 5.0)  # V, what a lithium cell in service can have
NTC_RANGE = (-40.0, 125.0)  # degC, what the sensors can measure
FULL_TOLERANCE = 1.05  # counted charge may pass "full" by this factor before it is recalibrated


@dataclass(frozen=True, slots=True)
class Protection:
    """One bit of the protection word: what it is called and which direction it blocks."""

    name: str
    severity: Severity
    text: str
    blocks_charge: bool = False
    blocks_discharge: bool = False


#: In bit order. Severities: the BMS has acted, so ERROR; cold and a lock by order are normal, so
#: WARNING; CRITICAL where the pack may be damaged or cannot be trusted to protect itself.
PROTECTIONS = (
    Protection('cell_overvoltage', Severity.ERROR, 'cell overvoltage', blocks_charge=True),
    Protection('cell_undervoltage', Severity.ERROR, 'cell undervoltage', blocks_discharge=True),
    Protection('pack_overvoltage', Severity.ERROR, 'pack overvoltage', blocks_charge=True),
    Protection('pack_undervoltage', Severity.ERROR, 'pack undervoltage', blocks_discharge=True),
    Protection('charge_overtemperature', Severity.ERROR, 'too hot to charge', blocks_charge=True),
    Protection(
        'charge_undertemperature', Severity.WARNING, 'too cold to charge', blocks_charge=True
    ),
    Protection(
        'discharge_overtemperature', Severity.ERROR, 'too hot to discharge', blocks_discharge=True
    ),
    Protection(
        'discharge_undertemperature',
        Severity.WARNING,
        'too cold to discharge',
        blocks_discharge=True,
    ),
    Protection('charge_overcurrent', Severity.ERROR, 'charge overcurrent', blocks_charge=True),
    Protection(
        'discharge_overcurrent', Severity.ERROR, 'discharge overcurrent', blocks_discharge=True
    ),
    Protection('short_circuit', Severity.CRITICAL, 'short circuit', True, True),
    Protection('afe_error', Severity.CRITICAL, 'measuring chip (AFE) failed', True, True),
    Protection('fet_lock', Severity.WARNING, 'FETs locked by order'),
)


@dataclass(frozen=True, slots=True)
class Basic:
    """Register 0x03."""

    voltage: float  # V
    current: float  # A, + = charging
    remaining: float  # Ah
    full: float  # Ah
    cycles: int
    produced: date | None  # None: not set, or no date
    balancing: tuple[bool, ...]  # one per cell
    protections: int  # bits, see PROTECTIONS
    version: str
    soc_shown: float  # 0..1, the BMS's own figure in steps of 1 %
    charge_fet: bool  # True = on
    discharge_fet: bool
    cell_count: int
    temperatures: tuple[float, ...]  # degC


def checksum(data: bytes) -> int:
    """Two's complement of the byte sum, 16 bit."""
    return -sum(data) & 0xFFFF


def _request(kind: int, register: int, data: bytes) -> bytes:
    body = bytes((register, len(data))) + data
    return bytes((START, kind)) + body + checksum(body).to_bytes(2, 'big') + bytes((END,))


def build_read(register: int) -> bytes:
    """The request that reads a register (0..255)."""
    return _request(READ, register, b'')


def build_write(register: int, data: bytes) -> bytes:
    """The request that writes up to 255 bytes to a register (0..255)."""
    return _request(WRITE, register, data)


def build_fet_control(charge: bool, discharge: bool) -> bytes:
    """The request that switches the FETs: here a set bit means *off*, unlike in the status."""
    return build_write(FET_CONTROL, bytes((0, (not charge) | (not discharge) << 1)))


def parse_frame(frame: bytes, register: int) -> bytes:
    """Payload of one whole answer to a request for `register`.

    Raises `BadFrame` (start, end, length, register), `BadChecksum`, `Refused` (status not 0).
    """
    if len(frame) < 7 or frame[0] != START or frame[-1] != END or len(frame) != frame[3] + 7:
        raise BadFrame(f'not a JBD answer: {frame[:40].hex(" ")}')
    expected, found = checksum(frame[2:-3]), int.from_bytes(frame[-3:-1], 'big')
    if expected != found:
        raise BadChecksum(f'checksum {found:04X} instead of {expected:04X}: {frame.hex(" ")}')
    if frame[1] not in (register, READ):
        raise BadFrame(f'answer for register 0x{frame[1]:02X} instead of 0x{register:02X}')
    if frame[2] != 0:
        raise Refused(f'register 0x{register:02X} refused with status 0x{frame[2]:02X}')
    return frame[4:-3]


def _candidate(data: bytes, start: int) -> bytes | None:
    """The whole frame that begins at `start` if its end byte fits; its checksum may be wrong."""
    if len(data) < start + 4 or len(data) < start + data[start + 3] + 7:
        return None
    frame = data[start : start + data[start + 3] + 7]
    return frame if frame[-1] == END else None


def find_answer(data: bytes, register: int, request: bytes = b'') -> bytes | None:
    """The first valid answer for `register` in received bytes, None while there is none.

    An echo of the request is skipped (a read request is by itself a valid answer with the register
    as status), and so are noise and answers for other registers. Raises `BadChecksum` early, when
    the data begin with the right answer damaged.
    """
    if request and data.startswith(request):
        data = data[len(request) :]
    start = data.find(START)
    while start >= 0:
        frame, step = _candidate(data, start), 1
        if frame is not None and frame != request:
            echoed = frame[1] in (register, READ)
            if checksum(frame[2:-3]) == int.from_bytes(frame[-3:-1], 'big'):
                if echoed:
                    return frame
                step = len(frame)
            elif echoed and start == 0:
                parse_frame(frame, register)
        start = data.find(START, start + step)
    return None


def diagnose(data: bytes, register: int, request: bytes = b'') -> None:
    """Say what is wrong with bytes in which `find_answer` found nothing.

    Always raises: `BadFrame`, `BadChecksum`, or `NoAnswer` when the answer is merely cut off.
    """
    rest = data[len(request) :] if request and data.startswith(request) else data
    start = rest.find(START)
    if rest and start < 0:
        raise BadFrame(f'no frame start in {len(rest)} bytes: {rest[:40].hex(" ")}')
    if start >= 0 and len(rest) >= start + 4 and len(rest) >= start + rest[start + 3] + 7:
        parse_frame(rest[start : start + rest[start + 3] + 7], register)
    raise NoAnswer(f'answer for register 0x{register:02X} is incomplete: {rest[:40].hex(" ")}')


def _within(name: str, value: float, low: float, high: float, unit: str) -> float:
    if not low <= value <= high:
        raise BadValue(f'{name} is {value:g} {unit}, possible is {low:g}..{high:g} {unit}')
    return value


def _date(raw: int) -> date | None:
    try:
        return date(2000 + (raw >> 9), raw >> 5 & 0xF, raw & 0x1F)
    except ValueError:
        return None


def parse_basic(payload: bytes) -> Basic:
    """Register 0x03; fields appended by newer firmware are ignored. Raises `DeviceError`."""
    if len(payload) < 23:
        raise BadFrame(f'basic information has {len(payload)} bytes, at least 23 are needed')
    (voltage, current, remaining, full, cycles, day, balance_low, balance_high,
     protections, version, soc, fet, cell_count, ntc_count,
     ) = unpack_from('>HhHHHHHHHBBBBB', payload)  # fmt: skip
    _within('cell count', cell_count, 1, MAX_CELLS, 'cells')
    _within('NTC count', ntc_count, 0, MAX_NTC, 'sensors')
    if len(payload) < 23 + 2 * ntc_count:
        raise BadFrame(
            f'basic information has {len(payload)} bytes, too few for {ntc_count} sensors'
        )
    _within('state of charge', soc, 0, 100, '%')
    low, high = CELL_RANGE
    _within('pack voltage', voltage / 100, low * cell_count, high * cell_count, 'V')
    _within('full capacity', full / 100, 0.01, 655.35, 'Ah')
    _within('remaining capacity', remaining / 100, 0.0, full / 100 * FULL_TOLERANCE, 'Ah')
    raw_temperatures = unpack_from(f'>{ntc_count}H', payload, 23)
    temperatures = tuple((raw - 2731) / 10 for raw in raw_temperatures)
    for number, value in enumerate(temperatures, 1):
        _within(f'temperature {number}', value, *NTC_RANGE, 'degC')
    flags = balance_low | balance_high << 16
    return Basic(
        voltage=voltage / 100,
        current=current / 100,
        remaining=remaining / 100,
        full=full / 100,
        cycles=cycles,
        produced=_date(day),
        balancing=tuple(bool(flags >> i & 1) for i in range(cell_count)),
        protections=protections,
        version=f'{version >> 4}.{version & 0xF}',
        soc_shown=soc / 100,
        charge_fet=bool(fet & 1),
        discharge_fet=bool(fet & 2),
        cell_count=cell_count,
        temperatures=temperatures,
    )


def parse_cells(payload: bytes) -> tuple[float, ...]:
    """Register 0x04: cell voltages in V. Raises `BadFrame`, `BadValue`."""
    if len(payload) % 2:
        raise BadFrame(f'cell voltages have an odd length of {len(payload)} bytes')
    _within('cell count', len(payload) // 2, 1, MAX_CELLS, 'cells')
    cells = tuple(raw / 1000 for raw in unpack(f'>{len(payload) // 2}H', payload))
    for number, value in enumerate(cells, 1):
        _within(f'cell {number}', value, *CELL_RANGE, 'V')
    return cells


def parse_name(payload: bytes) -> str:
    """Register 0x05: name of the hardware. Raises `BadValue` unless it is printable ASCII."""
    text = payload.rstrip(b'\0 ')
    if len(text) > MAX_NAME or not all(0x20 <= byte < 0x7F for byte in text):
        raise BadValue(
            f'device name is not {MAX_NAME} printable characters: {payload[:40].hex(" ")}'
        )
    return text.decode('ascii')
