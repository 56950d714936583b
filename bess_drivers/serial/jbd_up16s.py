"""JBD UP16S on RS485, 9600 8N1: the inverter series of JBD with a Modbus-like protocol of its own.

Layout: open driver, tested by its author on firmware 10.2.1 and 12.1.7, see
`shared/facts/bms_portal_radio.md`, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, DeviceError
from bess_drivers.modbus.frames import rtu_crc
from bess_drivers.serial.bms import SerialBms, SerialBmsParams
from bess_drivers.serial.bms_reading import Condition, Snapshot, checked, named

HEADER = 8
STATUS, PRODUCT = (0x78, 0x1000, 0x10A0), (0x78, 0x2810, 0x283C)
MAX_PAYLOAD = 400
_W, _C = Severity.WARNING, Severity.CRITICAL
FAULTS: dict[int, Condition] = {
    0: Condition('cell_overvoltage', 'a cell is too full', blocks_charge=True),
    1: Condition('cell_undervoltage', 'a cell is too empty', blocks_discharge=True),
    2: Condition('pack_overvoltage', 'pack voltage too high', blocks_charge=True),
    3: Condition('pack_undervoltage', 'pack voltage too low', blocks_discharge=True),
    **{b: Condition('charge_overcurrent', 'charge current too high', blocks_charge=True) for b in (4, 5)},
    **{b: Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True) for b in (6, 7)},
    8: Condition('charge_overtemperature', 'too hot to charge', blocks_charge=True),
    9: Condition('charge_undertemperature', 'too cold to charge', blocks_charge=True),
    10: Condition('discharge_overtemperature', 'too hot to discharge', blocks_discharge=True),
    11: Condition('discharge_undertemperature', 'too cold to discharge', blocks_discharge=True),
    12: Condition('mosfet_overtemperature', 'switches too hot', blocks_charge=True, blocks_discharge=True),
    13: Condition('ambient_overtemperature', 'room too hot', blocks_charge=True, blocks_discharge=True),
    14: Condition('ambient_undertemperature', 'room too cold', blocks_charge=True),
    15: Condition('voltage_difference', 'cells differ too much'),
    16: Condition('temperature_difference', 'temperatures differ too much'),
    17: Condition('low_soc', 'state of charge too low', blocks_discharge=True),
    18: Condition('short_circuit', 'short circuit', _C, True, True),
    19: Condition('cell_offline', 'a cell is not measured', _C, True, True),
    20: Condition('temperature_sensor', 'temperature sensor failed'),
    21: Condition('charge_mosfet', 'charge switch failed', _C, True, True),
    22: Condition('discharge_mosfet', 'discharge switch failed', _C, True, True),
    23: Condition('current_limiter', 'current limiter failed'),
    24: Condition('aerosol', 'aerosol (fire) sensor', _C, True, True),
    25: Condition('full_charge_protection', 'full: charging is held', _W, True),
    26: Condition('afe_error', 'measuring chip does not answer', _C, True, True),
    27: Condition('reverse', 'reversed', _C, True, True),
}
ALARMS: dict[int, Condition] = {
    b: Condition(f'{name}_warning', f'{text} (warning)', _W) for b, (name, text) in enumerate((
        ('cell_overvoltage', 'cell voltage high'), ('cell_undervoltage', 'cell voltage low'),
        ('pack_overvoltage', 'pack voltage high'), ('pack_undervoltage', 'pack voltage low'),
        ('charge_overcurrent', 'charge current high'), ('discharge_overcurrent', 'discharge current high'),
        ('charge_overtemperature', 'hot while charging'), ('charge_undertemperature', 'cold while charging'),
        ('discharge_overtemperature', 'hot while discharging'),
        ('discharge_undertemperature', 'cold while discharging'),
        ('mosfet_overtemperature', 'switches hot'), ('ambient_overtemperature', 'room hot'),
        ('ambient_undertemperature', 'room cold'), ('voltage_difference', 'cells differ'),
        ('temperature_difference', 'temperatures differ'), ('low_soc', 'state of charge low'), ('eeprom', 'memory'),
        ('rtc', 'clock')))}
FULL = 1 << 18  # of the alarms: always equal to fault bit 25


@dataclass(frozen=True)
class Up16sParams(SerialBmsParams):
    """Settings of one JBD UP16S."""

    timeout_s: float = param(1.5, 's', 'time for one answer, which begins after 0.3 to 0.6 s', low=0.05, high=10.0)
    unit: int = param(1, doc='address; 1 = master, whose limits are those of all packs', low=1, high=15)


def build(unit: int, function: int, start: int, end: int, payload: bytes = b'') -> bytes:
    """A request."""
    frame = pack('>BBHHH', unit, function, start, end, len(payload)) + payload
    return frame + rtu_crc(frame)


def find(data: bytes, unit: int, function: int) -> bytes | None:
    """The complete answer in everything received, None while there is none. Raises `BadFrame`."""
    at = -1
    while (at := data.find(bytes((unit, function)), at + 1)) >= 0:
        if len(data) < at + HEADER:
            return None
        size = int.from_bytes(data[at + 6:at + 8], 'big')
        if not 0 < size <= MAX_PAYLOAD:
            continue  # the echo of a request, or bytes that look like a start
        return data[at:at + HEADER + size + 2] if len(data) >= at + HEADER + size + 2 else None
    return None


def parse(frame: bytes) -> bytes:
    """The payload. Raises `BadChecksum`."""
    if rtu_crc(frame[:-2]) != frame[-2:]:
        raise BadChecksum(f'CRC {frame[-2:].hex()} instead of {rtu_crc(frame[:-2]).hex()}')
    return frame[HEADER:-2]


def _degrees(raw: int) -> float:
    return (raw - 500) / 10.0


def parse_status(data: bytes) -> Snapshot:
    """Pack status. Raises `BadFrame`, `BadValue`."""
    if len(data) < 70:
        raise BadFrame(f'{len(data)} bytes of status, at least 70 are needed')
    count = int.from_bytes(data[66:68], 'big')
    if not 1 <= count <= 32:
        raise BadValue(f'{count} cells; allowed 1..32')
    after = 68 + 2 * count
    sensors = int.from_bytes(data[after:after + 2], 'big')
    if sensors > 16:
        raise BadValue(f'{sensors} sensors; allowed 0..16')
    end = after + 2 + 2 * sensors
    if len(data) < end + 4:
        raise BadFrame(f'{len(data)} bytes of status, {end + 4} are needed for {count} cells')
    cells = unpack_from(f'>{count}H', data, 68)
    left, full = unpack_from('>HH', data, 10)
    faults, alarms = unpack_from('>II', data, 24)
    switches, balance = unpack_from('>H', data, 32)[0], unpack_from('>H', data, end + 2)[0]
    if not full:
        raise BadValue('capacity is 0')
    return Snapshot(
        voltage=unpack_from('>H', data, 0)[0] / 100.0, current=(unpack_from('>I', data, 4)[0] - 300_000) / 100.0,
        cells=tuple(checked('cell (mV)', c, 0, 6000) / 1000.0 for c in cells),
        temperatures=tuple(_degrees(t) for t in unpack_from(f'>{sensors}H', data, after + 2)),
        charge=left / 100.0, charge_full=full / 100.0,
        soc=checked('state of charge (0.01 %)', unpack_from('>H', data, 8)[0], 0, 10_000) / 10_000.0,
        soh=checked('state of health (%)', unpack_from('>H', data, 22)[0], 0, 200) / 100.0,
        charge_on=bool(switches & 2), discharge_on=bool(switches & 1),
        charge_limit=unpack_from('>H', data, 60)[0] / 10.0, discharge_limit=unpack_from('>H', data, 64)[0] / 10.0,
        balancing=tuple(bool(balance >> k & 1) for k in range(min(16, count))),
        conditions=(*named(FAULTS, faults, 'fault_bit'), *named(ALARMS, alarms & ~FULL)))


class Up16sBms(SerialBms):
    """One JBD UP16S (`BatteryDevice`)."""

    Params: ClassVar[type] = Up16sParams
    addressed: ClassVar[bool] = True
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (9600,)
    prefix: ClassVar[str] = 'jbd_up16s'
    params: Up16sParams

    def identify(self) -> Identity:
        """Model and firmware where the BMS tells. Raises `DeviceError` when it does not answer at all."""
        parse_status(self._ask(*STATUS))
        try:
            data = self._ask(*PRODUCT)
        except DeviceError:
            return Identity('JBD', 'UP16S')  # optional: not every firmware answers
        if len(data) < 44:
            return Identity('JBD', 'UP16S')
        major, minor, patch = unpack_from('>HHH', data, 4)
        model = data[12:28].split(b'\0')[0].decode('ascii', 'replace').strip()
        return Identity('JBD', model or 'UP16S', '', f'{major}.{minor}.{patch}')

    def poll(self) -> Snapshot:
        """Pack status. Raises `DeviceError`."""
        return parse_status(self._ask(*STATUS))

    def _ask(self, function: int, start: int, end: int) -> bytes:
        unit = self.params.unit
        return self.ask(build(unit, function, start, end), lambda d: find(d, unit, function), parse)
