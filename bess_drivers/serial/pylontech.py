"""Pylontech on RS485, and Seplos V2, which uses the same frames: hexadecimal text between `~` and carriage return.

`~ VER ADR 46 CID2 LENGTH INFO CHKSUM \\r`. Layouts: open drivers and recordings, see
`shared/facts/bms_portal_radio.md`, section 4.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, Refused
from bess_drivers.serial.bms import SerialBms, SerialBmsParams
from bess_drivers.serial.bms_reading import Condition, Snapshot, checked, named

VERSION, CLASS = 0x20, 0x46
ANALOG, ALARM, MAKER, MANAGEMENT, SERIAL = 0x42, 0x44, 0x51, 0x92, 0x93
MAX_ANSWER = 2048
KELVIN = 2731  # of 0 degC, in 0.1 K
CODES = {1: 'wrong version', 2: 'wrong checksum', 3: 'wrong length checksum', 4: 'unknown command',
         5: 'wrong format', 6: 'wrong data', 0x90: 'wrong address', 0x91: 'not possible now'}
_W = Severity.WARNING


def checksum(text: bytes) -> int:
    """Two's complement (16 bit) of the sum of the characters."""
    return -sum(text) & 0xFFFF


def length_field(count: int) -> int:
    """LENGTH for so many characters of INFO: its own checksum in the upper four bits."""
    nibbles = (count >> 8 & 15) + (count >> 4 & 15) + (count & 15)
    return (-nibbles & 15) << 12 | count


def build(address: int, command: int, info: bytes = b'') -> bytes:
    """A request; `info` as bytes, sent as hexadecimal text."""
    text = b'%02X%02X%02X%02X%04X' % (VERSION, address, CLASS, command, length_field(2 * len(info)))
    text += info.hex().upper().encode()
    return b'~' + text + b'%04X\r' % checksum(text)


def find(data: bytes, address: int | None = None) -> bytes | None:
    """The last complete frame (of this address), from `~` to carriage return; None while there is none."""
    wanted = b'' if address is None else b'%02X' % address
    end = len(data)
    while (end := data.rfind(b'\r', 0, end)) >= 0:
        start = data.rfind(b'~', 0, end)
        if start >= 0 and data[start + 3:start + 5].upper().startswith(wanted):
            return data[start:end + 1]
    return None


def parse(frame: bytes, address: int) -> bytes:
    """INFO of an answer, as bytes. Raises `BadChecksum`, `BadFrame`, `Refused` (return code)."""
    text = frame[1:-1]
    try:
        raw = bytes.fromhex(text.decode('ascii'))
    except (UnicodeDecodeError, ValueError):
        raise BadFrame(f'is no hexadecimal text: {frame[:40]!r}') from None
    if len(raw) < 8:
        raise BadFrame(f'{len(raw)} bytes, at least 8 are needed')
    if checksum(text[:-4]) != int.from_bytes(raw[-2:], 'big'):
        raise BadChecksum('wrong checksum')
    length = int.from_bytes(raw[4:6], 'big')
    count = length & 0xFFF
    if length != length_field(count) or 2 * (len(raw) - 8) != count:
        raise BadFrame(f'LENGTH says {count} characters, there are {2 * (len(raw) - 8)}')
    if raw[1] != address or raw[2] != CLASS:
        raise BadFrame(f'answer of address {raw[1]}, class {raw[2]:#x}; asked was {address}')
    if raw[3]:
        raise Refused(f'return code {raw[3]:#x}: {CODES.get(raw[3], "not known")}')
    return raw[6:-2]


class Reader:
    """Takes values from INFO in order. Raises `BadFrame` at its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int, signed: bool = False) -> int:
        """A big-endian integer."""
        end = self._at + size
        if end > len(self._data):
            raise BadFrame(f'{len(self._data)} bytes of INFO, at least {end} are needed')
        value = int.from_bytes(self._data[self._at:end], 'big', signed=signed)
        self._at = end
        return value

    @property
    def left(self) -> int:
        """Bytes that were not taken."""
        return len(self._data) - self._at


def parse_analog(info: bytes) -> Snapshot:
    """Analog values of one pack. Raises `BadFrame`, `BadValue`."""
    r = Reader(info)
    r.take(2)  # flag, address
    cells = tuple(checked('cell (mV)', r.take(2), 0, 6000) / 1000.0 for _ in range(_count(r, 1, 32, 'cells')))
    degrees = tuple((r.take(2) - KELVIN) / 10.0 for _ in range(_count(r, 0, 16, 'sensors')))
    current, voltage = r.take(2, True) / 10.0, r.take(2) / 1000.0
    left, items, total, cycles = r.take(2), r.take(1), r.take(2), r.take(2)
    del cycles
    if items > 2:
        left, total = r.take(3), r.take(3)
    if total <= 0 or left > 1.1 * total:
        raise BadValue(f'{left} of {total} mAh')
    return Snapshot(voltage=voltage, current=current, cells=cells, temperatures=degrees, charge=left / 1000.0,
                    charge_full=total / 1000.0)


def _count(r: Reader, low: int, high: int, what: str) -> int:
    count = r.take(1)
    if not low <= count <= high:
        raise BadValue(f'{count} {what}; allowed {low}..{high}')
    return count


CELL_HIGH = Condition('cell_overvoltage', 'a cell is too full', blocks_charge=True)
CELL_LOW = Condition('cell_undervoltage', 'a cell is too empty', blocks_discharge=True)
HOT = Condition('overtemperature', 'too hot', blocks_charge=True, blocks_discharge=True)
COLD = Condition('undertemperature', 'too cold', blocks_charge=True)
OVERCURRENT = Condition('charge_overcurrent', 'charge current too high', blocks_charge=True)
PACK_HIGH = Condition('pack_overvoltage', 'pack voltage too high', blocks_charge=True)
PACK_LOW = Condition('pack_undervoltage', 'pack voltage too low', blocks_discharge=True)
DISCHARGE_OVERCURRENT = Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True)
FORCE_CHARGE = Condition('force_charge', 'the pack asks to be charged at once', _W, blocks_discharge=True)
FULL_CHARGE = Condition('full_charge_request', 'the pack asks for a full charge', _W)
PROTECTION = Condition('protection', 'the pack protects itself', blocks_charge=True, blocks_discharge=True)


OTHER = {what: Condition(f'{what}_fault', f'{what.replace("_", " ")}: fault that has no name')
         for what in ('cell_voltage', 'temperature', 'charge_current', 'pack_voltage', 'discharge_current')}
#: Everything that a Pylontech pack can report.
CONDITIONS = (CELL_HIGH, CELL_LOW, HOT, COLD, OVERCURRENT, PACK_HIGH, PACK_LOW, DISCHARGE_OVERCURRENT, FORCE_CHARGE,
              FULL_CHARGE, PROTECTION, *OTHER.values())


def _state(code: int, what: str, high: Condition, low: Condition) -> Condition | None:
    """Meaning of one state byte of the alarm answer."""
    known = {0: None, 1: low, 2: high}
    if code in known:
        return known[code]
    return OTHER[what]


def parse_alarms(info: bytes) -> tuple[tuple[Condition, ...], bool, bool]:
    """Conditions, charge and discharge path of one pack. Raises `BadFrame`, `BadValue`."""
    r = Reader(info)
    r.take(2)
    found = [_state(r.take(1), 'cell_voltage', CELL_HIGH, CELL_LOW) for _ in range(_count(r, 1, 32, 'cells'))]
    found += [_state(r.take(1), 'temperature', HOT, COLD) for _ in range(_count(r, 0, 16, 'sensors'))]
    found.append(_state(r.take(1), 'charge_current', OVERCURRENT, OVERCURRENT))
    found.append(_state(r.take(1), 'pack_voltage', PACK_HIGH, PACK_LOW))
    found.append(_state(r.take(1), 'discharge_current', DISCHARGE_OVERCURRENT, DISCHARGE_OVERCURRENT))
    status = [r.take(1) for _ in range(5)]
    if status[0]:
        found.append(PROTECTION)
    unique = {c.id: c for c in found if c is not None}
    return tuple(unique.values()), bool(status[1] & 0b10), bool(status[1] & 0b100)


@dataclass(frozen=True)
class PackLimits:
    """Answer to 0x92: limits in V and A (magnitudes) and what is allowed."""

    charge_voltage: float
    discharge_voltage: float
    charge_current: float
    discharge_current: float
    charge_allowed: bool
    discharge_allowed: bool
    conditions: tuple[Condition, ...]


def parse_management(info: bytes) -> PackLimits:
    """Charge and discharge management. Raises `BadFrame`, `BadValue`."""
    r = Reader(info)
    r.take(1)
    high, low = r.take(2) / 1000.0, r.take(2) / 1000.0
    charge, discharge, status = r.take(2, True) / 10.0, r.take(2, True) / 10.0, r.take(1)
    conditions = []
    if status & 0x30:
        conditions.append(FORCE_CHARGE)
    if status & 0x08:
        conditions.append(FULL_CHARGE)
    return PackLimits(high, low, checked('charge current limit (A)', charge, 0.0), abs(discharge),
                      bool(status & 0x80), bool(status & 0x40), tuple(conditions))


@dataclass(frozen=True)
class PylontechParams(SerialBmsParams):
    """Settings of one Pylontech pack."""

    unit: int = param(2, doc='address of the pack; the first one has 2', low=0, high=255)


class PylontechBms(SerialBms):
    """One Pylontech pack (`BatteryDevice`); several share a line."""

    Params: ClassVar[type] = PylontechParams
    addressed: ClassVar[bool] = True
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (115200, 9600)
    prefix: ClassVar[str] = 'pylontech'
    max_frame: ClassVar[int] = MAX_ANSWER
    params: PylontechParams

    def identify(self) -> Identity:
        """Maker and name of the master pack, serial of this one. Raises `DeviceError`."""
        info = self._ask(MAKER)
        if len(info) < 32:
            raise BadFrame(f'{len(info)} bytes of maker information, 32 are needed')
        name, maker = (part.split(b'\0')[0].decode('ascii', 'replace').strip('- ') for part in (info[:10], info[12:32]))
        try:
            serial = self._ask_pack(SERIAL)[1:17].decode('ascii', 'replace').strip('\0 ')
        except Refused:
            serial = ''
        return Identity(maker or 'Pylontech', name, serial, f'{info[10]}.{info[11]}')

    def poll(self) -> Snapshot:
        """Values, alarms, limits. Raises `DeviceError`."""
        out = parse_analog(self._ask_pack(ANALOG))
        out.conditions, out.charge_on, out.discharge_on = parse_alarms(self._ask_pack(ALARM))
        limits = parse_management(self._ask_pack(MANAGEMENT))
        out.charge_limit = limits.charge_current if limits.charge_allowed else 0.0
        out.discharge_limit = limits.discharge_current if limits.discharge_allowed else 0.0
        out.conditions = (*out.conditions, *limits.conditions)
        return out

    def _ask_pack(self, command: int) -> bytes:
        return self._ask(command, bytes((self.params.unit,)))

    def _ask(self, command: int, info: bytes = b'') -> bytes:
        unit = self.params.unit
        request = build(unit, command, info)

        def complete(data: bytes) -> bytes | None:
            # An adapter may echo what was sent; another pack of the line may answer late.
            return find(data.removeprefix(request), unit)

        return self.ask(request, complete, lambda frame: parse(frame, unit))


# -- Seplos V2 -----------------------------------------------------------------------------------------

#: (byte of the alarm INFO, bit) -> condition
SEPLOS_BITS: dict[tuple[int, int], Condition] = {
    (30, 0): Condition('cell_overvoltage_warning', 'a cell is nearly too full', _W), (30, 1): CELL_HIGH,
    (30, 2): Condition('cell_undervoltage_warning', 'a cell is nearly too empty', _W), (30, 3): CELL_LOW,
    (30, 4): Condition('pack_overvoltage_warning', 'pack voltage nearly too high', _W), (30, 5): PACK_HIGH,
    (30, 6): Condition('pack_undervoltage_warning', 'pack voltage nearly too low', _W), (30, 7): PACK_LOW,
    (31, 0): Condition('charge_overtemperature_warning', 'nearly too hot to charge', _W),
    (31, 1): Condition('charge_overtemperature', 'too hot to charge', blocks_charge=True),
    (31, 2): Condition('charge_undertemperature_warning', 'nearly too cold to charge', _W),
    (31, 3): Condition('charge_undertemperature', 'too cold to charge', blocks_charge=True),
    (31, 4): Condition('discharge_overtemperature_warning', 'nearly too hot to discharge', _W),
    (31, 5): Condition('discharge_overtemperature', 'too hot to discharge', blocks_discharge=True),
    (31, 6): Condition('discharge_undertemperature_warning', 'nearly too cold to discharge', _W),
    (31, 7): Condition('discharge_undertemperature', 'too cold to discharge', blocks_discharge=True),
    (33, 0): Condition('charge_overcurrent_warning', 'charge current nearly too high', _W), (33, 1): OVERCURRENT,
    (33, 2): Condition('discharge_overcurrent_warning', 'discharge current nearly too high', _W),
    (33, 3): DISCHARGE_OVERCURRENT,
    (34, 2): Condition('low_soc_warning', 'state of charge low', _W),
    (34, 3): Condition('low_soc', 'state of charge too low', blocks_discharge=True),
}


def parse_seplos(info: bytes) -> Snapshot:
    """Status of a Seplos V2. Raises `BadFrame`, `BadValue`."""
    r = Reader(info)
    r.take(2)
    cells = tuple(checked('cell (mV)', r.take(2), 0, 6000) / 1000.0 for _ in range(_count(r, 1, 16, 'cells')))
    degrees = tuple((r.take(2) - KELVIN) / 10.0 for _ in range(_count(r, 0, 8, 'sensors')))
    current, voltage, left = r.take(2, True) / 100.0, r.take(2) / 100.0, r.take(2) / 100.0
    r.take(1)
    total = r.take(2) / 100.0
    soc = checked('state of charge (%)', r.take(2) / 10.0, 0.0, 100.0) / 100.0
    if total <= 0.0:
        raise BadValue('capacity is 0')
    return Snapshot(voltage=voltage, current=current, cells=cells, temperatures=degrees[:4], charge=left,
                    charge_full=total, soc=soc, soh=nan)


def parse_seplos_alarms(info: bytes) -> tuple[tuple[Condition, ...], bool, bool]:
    """Conditions, charge and discharge path. Raises `BadFrame`."""
    if len(info) < 36:
        raise BadFrame(f'{len(info)} bytes of alarms, 36 are needed')
    found: dict[str, Condition] = {}
    for at in (30, 31, 33, 34):
        table = {bit: c for (byte, bit), c in SEPLOS_BITS.items() if byte == at}
        bits = info[at] & (0x0C if at == 34 else 0xFF)
        found |= {c.id: c for c in named(table, bits, f'alarm_byte_{at}_bit')}
    return tuple(found.values()), bool(info[35] & 2), bool(info[35] & 1)


@dataclass(frozen=True)
class SeplosParams(PylontechParams):
    """Settings of one Seplos V2 BMS."""

    unit: int = param(0, doc='address of the BMS; the first one has 0', low=0, high=255)


class SeplosBms(PylontechBms):
    """One Seplos V2 BMS (`BatteryDevice`), 19200 8N1."""

    Params: ClassVar[type] = SeplosParams
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (19200,)
    prefix: ClassVar[str] = 'seplos'

    def identify(self) -> Identity:
        """It answers at all. Raises `DeviceError`."""
        parse_seplos(self._ask(ANALOG, b'\x01'))
        return Identity('Seplos')

    def poll(self) -> Snapshot:
        """Values and alarms. Raises `DeviceError`."""
        out = parse_seplos(self._ask(ANALOG, b'\x01'))
        out.conditions, out.charge_on, out.discharge_on = parse_seplos_alarms(self._ask(ALARM, b'\x01'))
        return out
