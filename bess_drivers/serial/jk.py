"""JK BMS on RS485 or TTL, both generations, 115200 8N1.

`jk`: the older "4E57" protocol, one question for everything. `jk_pb`: the inverter series with its 300 byte
records behind a Modbus-like request. Layouts: open drivers and recordings, see
`shared/facts/bms_portal_radio.md`, sections 4.5 and 4.6 (two published defects are not repeated here:
99 degC read as 1 degC, and the swapped under-voltage bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack, unpack_from
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, NoAnswer
from bess_drivers.modbus.frames import rtu_crc
from bess_drivers.serial.bms import SerialBms, SerialBmsParams
from bess_drivers.serial.bms_reading import Condition, Snapshot, checked, named

# -- the older generation ------------------------------------------------------------------------------

HEAD = b'\x4e\x57'
READ_ALL = bytes.fromhex('4E5700130000000006030000000000006800000129')
MAX_RECORD = 600
#: id -> bytes of its value, of every id that a read-all answer may hold; 0x79 says its length itself.
SIZES = {
    **dict.fromkeys((0x80, 0x81, 0x82, 0x83, 0x84, 0x87, 0x8A, 0x8B, 0x8C, *range(0x8E, 0x9D), *range(0x9E, 0xA9),
                     0xAD, 0xB0), 2),
    **dict.fromkeys((0x85, 0x86, 0x9D, 0xA9, 0xAB, 0xAC, 0xAE, 0xAF, 0xB1, 0xB3, 0xB8, 0xC0), 1),
    **dict.fromkeys((0x89, 0xAA, 0xB5, 0xB6, 0xB9), 4), 0xB2: 10, 0xB4: 8, 0xB7: 15, 0xBA: 24,
}
_W, _C = Severity.WARNING, Severity.CRITICAL
JK_ALARMS: dict[int, Condition] = {
    0: Condition('low_soc', 'state of charge low', _W),
    1: Condition('mosfet_overtemperature', 'switches too hot', blocks_charge=True, blocks_discharge=True),
    2: Condition('pack_overvoltage', 'pack voltage too high', blocks_charge=True),
    3: Condition('pack_undervoltage', 'pack voltage too low', blocks_discharge=True),
    4: Condition('overtemperature', 'battery too hot', blocks_charge=True, blocks_discharge=True),
    5: Condition('charge_overcurrent', 'charge current too high', blocks_charge=True),
    6: Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True),
    7: Condition('cell_imbalance', 'cells differ too much'),
    8: Condition('box_overtemperature', 'box too hot', blocks_charge=True, blocks_discharge=True),
    9: Condition('undertemperature', 'battery too cold', blocks_charge=True),
    10: Condition('cell_overvoltage', 'a cell is too full', blocks_charge=True),
    11: Condition('cell_undervoltage', 'a cell is too empty', blocks_discharge=True),
    12: Condition('protection_309_a', 'protection 309_A'),
    13: Condition('protection_309_b', 'protection 309_B'),
}


def find_record(data: bytes) -> bytes | None:
    """The complete frame in everything received, None while there is none. Raises `BadFrame`."""
    at = data.find(HEAD)
    if at < 0 or len(data) < at + 4:
        return None
    size = int.from_bytes(data[at + 2:at + 4], 'big') + 2
    if not len(READ_ALL) <= size <= MAX_RECORD:
        raise BadFrame(f'a frame of {size} bytes')
    return data[at:at + size] if len(data) >= at + size else None


def parse_record(frame: bytes) -> dict[int, bytes]:
    """Values by id. Raises `BadChecksum`, `BadFrame`."""
    if sum(frame[:-4]) & 0xFFFF != int.from_bytes(frame[-2:], 'big') or frame[-4:-2] != b'\0\0':
        raise BadChecksum('wrong sum')
    if frame[10] != 1 or frame[-5] != 0x68:
        raise BadFrame('is no answer')
    values, at, end = {}, 11, len(frame) - 9
    while at < end:
        code = frame[at]
        size = frame[at + 1] + 1 if code == 0x79 else SIZES.get(code, 0)
        if not size:
            raise BadFrame(f'unknown id {code:#x} at byte {at}')
        if at + 1 + size > end:
            raise BadFrame(f'value of id {code:#x} is cut off')
        values[code] = frame[at + 1:at + 1 + size]
        at += 1 + size
    return values


def _temperature(raw: int) -> float:
    """0..100 = degC, 101..140 = -1..-40 degC."""
    return float(raw) if raw <= 100 else 100.0 - checked('temperature', raw, 101, 140)


def snapshot(values: dict[int, bytes]) -> Snapshot:
    """One poll. Raises `BadFrame` for a value that is not there, `BadValue` for one that cannot be."""
    def number(code: int) -> int:
        if code not in values:
            raise BadFrame(f'value {code:#x} is missing')
        return int.from_bytes(values[code], 'big')

    table = values.get(0x79, b'\0')[1:]
    if len(table) % 3 or [table[i] for i in range(0, len(table), 3)] != list(range(1, len(table) // 3 + 1)):
        raise BadFrame('cells are not numbered 1, 2, 3, ...')
    cells = tuple(checked('cell (mV)', int.from_bytes(table[i + 1:i + 3], 'big'), 0, 6000) / 1000.0
                  for i in range(0, len(table), 3))
    raw, state = number(0x84), number(0x8C)
    if 0xC0 in values and number(0xC0) == 1:
        current = (raw & 0x7FFF) * (0.01 if raw & 0x8000 else -0.01)
    else:
        current = (10_000 - raw) * 0.01
    if number(0x85) == 0 and number(0x87) == 0 and max(cells, default=0.0) > 3.0:
        raise BadValue('state of charge and cycles are both 0: the BMS is starting up')
    full = float(number(0xAA)) if 0xAA in values else float(number(0x89))
    soc = checked('state of charge (%)', number(0x85), 0, 100) / 100.0
    return Snapshot(
        voltage=number(0x83) * 0.01, current=current + 0.0, cells=cells,
        temperatures=tuple(_temperature(number(c)) for c in (0x82, 0x81) if c in values), charge=full * soc,
        charge_full=full, soc=soc, charge_on=bool(state & 1), discharge_on=bool(state & 2),
        conditions=named(JK_ALARMS, number(0x8B)))


class JkBms(SerialBms):
    """A JK BMS of the older generation (`BatteryDevice`)."""

    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (115200,)
    prefix: ClassVar[str] = 'jk'
    idle: ClassVar[float] = 0.3  # A, its smallest reading is 0.2 A
    max_frame: ClassVar[int] = 2 * MAX_RECORD

    def identify(self) -> Identity:
        """Device id and software version. Raises `DeviceError`."""
        values = self._values()
        text = {c: values.get(c, b'').decode('ascii', 'replace').strip('\0 ') for c in (0xB4, 0xB7, 0xBA)}
        return Identity('JK', text[0xB4], text[0xBA], text[0xB7])

    def poll(self) -> Snapshot:
        """Everything in one answer. Raises `DeviceError`."""
        return snapshot(self._values())

    def _values(self) -> dict[int, bytes]:
        return self.ask(READ_ALL, find_record, parse_record)


# -- the inverter series -------------------------------------------------------------------------------

PB_HEAD = b'\x55\xaa\xeb\x90'
PB_SIZE, PB_ANSWER = 300, 310
PB_STATUS, PB_ABOUT = (0x20, 2), (0x1C, 3)  # register, frame type
PB_ALARMS: dict[int, Condition] = {
    0: Condition('wire_resistance', 'resistance of a cell wire too high', _W),
    1: Condition('mosfet_overtemperature', 'switches too hot', blocks_charge=True, blocks_discharge=True),
    2: Condition('cell_count', 'number of cells is not the one that is set'),
    3: Condition('current_sensor', 'current sensor failed', _C, True, True),
    4: Condition('cell_overvoltage', 'a cell is too full', blocks_charge=True),
    5: Condition('pack_overvoltage', 'pack voltage too high', blocks_charge=True),
    6: Condition('charge_overcurrent', 'charge current too high', blocks_charge=True),
    7: Condition('charge_short_circuit', 'short circuit while charging', _C, True, True),
    8: Condition('charge_overtemperature', 'too hot to charge', blocks_charge=True),
    9: Condition('charge_undertemperature', 'too cold to charge', blocks_charge=True),
    10: Condition('aux_cpu', 'second processor does not answer'),
    11: Condition('cell_undervoltage', 'a cell is too empty', blocks_discharge=True),
    12: Condition('pack_undervoltage', 'pack voltage too low', blocks_discharge=True),
    13: Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True),
    14: Condition('discharge_short_circuit', 'short circuit while discharging', _C, True, True),
    15: Condition('discharge_overtemperature', 'too hot to discharge', blocks_discharge=True),
    16: Condition('charge_mosfet', 'charge switch failed', _C, True, True),
    17: Condition('discharge_mosfet', 'discharge switch failed', _C, True, True),
    18: Condition('gps', 'GPS link lost', _W),
    19: Condition('password', 'password still that of delivery', _W),
    20: Condition('discharge_on_failed', 'discharge switch did not close', blocks_discharge=True),
    21: Condition('battery_overtemperature', 'battery too hot', blocks_charge=True, blocks_discharge=True),
    22: Condition('temperature_sensor', 'temperature sensor failed'),
    23: Condition('plc', 'PLC module failed', _W),
}


@dataclass(frozen=True)
class JkPbParams(SerialBmsParams):
    """Settings of one JK BMS of the inverter series."""

    unit: int = param(1, doc='address on the DIP switches; 0 is the bus master', low=0, high=15)


def pb_request(unit: int, register: int) -> bytes:
    """A request for one record."""
    frame = bytes((unit, 0x10, 0x16, register, 0, 1, 2, 0, 0))
    return frame + rtu_crc(frame)


def pb_find(data: bytes, unit: int, register: int, kind: int) -> bytes | None:
    """The 300 byte record that is acknowledged by this unit for this register, None while there is none.

    The record holds no address, so that only the acknowledgement behind it says whose it is.
    """
    acknowledged = bytes((unit, 0x10, 0x16, register, 0, 1))
    acknowledged += rtu_crc(acknowledged)
    at = -1
    while (at := data.find(PB_HEAD, at + 1)) >= 0:
        answer = data[at:at + PB_ANSWER]
        if len(answer) >= PB_ANSWER - 1 and answer[PB_SIZE + 1:PB_SIZE + 9] == acknowledged \
                and int.from_bytes(answer[4:6], 'little') & 0xFF == kind:
            return answer[:PB_SIZE]
    return None


def pb_check(record: bytes) -> bytes:
    """The record, or `BadChecksum`."""
    if sum(record[:-1]) & 0xFF != record[-1]:
        raise BadChecksum('wrong sum of the record')
    return record


def pb_snapshot(record: bytes) -> Snapshot:
    """A status record. Raises `BadValue`."""
    present = unpack_from('<I', record, 70)[0]
    volts = unpack_from('<32H', record, 6)
    cells = tuple(checked(f'cell {k + 1} (mV)', volts[k], 0, 6000) / 1000.0 for k in range(32) if present >> k & 1)
    if not cells:
        raise BadValue('no cell is present')
    sensors = record[214]
    places = ((1, 162), (2, 164), (4, 256), (5, 258))
    left, full = unpack_from('<i', record, 174)[0] / 1000.0, unpack_from('<I', record, 178)[0] / 1000.0
    return Snapshot(
        voltage=unpack_from('<I', record, 150)[0] / 1000.0, current=unpack_from('<i', record, 158)[0] / 1000.0,
        cells=cells, charge=checked('charge (Ah)', left, -1.0, 1e5),
        charge_full=checked('capacity (Ah)', full, 0.1, 1e5),
        temperatures=tuple(unpack_from('<h', record, at)[0] / 10.0 for bit, at in places if sensors >> bit & 1),
        soc=checked('state of charge (%)', record[173], 0, 100) / 100.0,
        soh=checked('state of health (%)', record[190], 0, 200) / 100.0,
        charge_on=bool(record[198]), discharge_on=bool(record[199]),
        conditions=named(PB_ALARMS, unpack('<I', record[166:170])[0]))


class JkPbBms(SerialBms):
    """A JK BMS of the inverter series (`BatteryDevice`); several may share a line."""

    NOT_PROBED: ClassVar[str] = ('to a Modbus device its request is an order to write a register; if you have one, try '
                                 'it with `type: jk_pb`')

    Params: ClassVar[type] = JkPbParams
    addressed: ClassVar[bool] = True
    prefix: ClassVar[str] = 'jk'
    max_frame: ClassVar[int] = 4 * PB_ANSWER  # the bus master sends records of its own in between
    params: JkPbParams

    def identify(self) -> Identity:
        """Device id, serial, software. The record may be missing on new firmware. Raises `DeviceError`."""
        self._record(*PB_STATUS)
        try:
            about = self._record(*PB_ABOUT)
        except (BadFrame, BadChecksum, NoAnswer):
            return Identity('JK')
        text = [about[a:b].split(b'\0')[0].decode('ascii', 'replace').strip()
                for a, b in ((6, 22), (46, 62), (30, 38))]
        return Identity('JK', *text)

    def poll(self) -> Snapshot:
        """One status record. Raises `DeviceError`."""
        return pb_snapshot(self._record(*PB_STATUS))

    def _record(self, register: int, kind: int) -> bytes:
        unit = self.params.unit
        return self.ask(pb_request(unit, register), lambda d: pb_find(d, unit, register, kind), pb_check)
