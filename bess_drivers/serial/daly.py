"""Daly BMS on UART or RS485 (9600 8N1), the 13 byte protocol.

Frames: `A5 address command 08 d0..d7 sum`; board n is asked by host 0x3F + n (or 0x7F + n) and answers as n.
Facts and frames: several open drivers, see `shared/facts/bms_portal_radio.md`, section 4.4. Sources disagree
on the sign of the current, so it is a setting; the charge and discharge over-current bits follow it. Newer
models speak Modbus: profile `daly_modbus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, nan
from struct import unpack
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, Refused
from bess_drivers.serial.bms import SerialBms, SerialBmsParams
from bess_drivers.serial.bms_reading import Condition, Snapshot, checked, named
from bess_drivers.serial.link import SerialLink

START, LENGTH, SIZE = 0xA5, 8, 13
PACK, STATE, STATUS, CELLS, TEMPERATURES, ALARMS, RATED = 0x90, 0x93, 0x94, 0x95, 0x96, 0x98, 0x50
BALANCE, DISCHARGE_FET, CHARGE_FET, CODE = 0x97, 0xD9, 0xDA, 0x57
ZERO = 30_000  # raw current of 0 A
FILL = b'\xaa' * 8  # helps a BMS with a weak receiver to find the bits
MAX_CELLS, MAX_SENSORS = 48, 16

_W, _C = Severity.WARNING, Severity.CRITICAL
#: Bit of the first seven alarm bytes (little-endian) -> condition; bits from 20: open driver Daly2MQTT.
ALARM_BITS: dict[int, Condition] = {
    **{b: Condition('overvoltage_warning', 'voltage nearly too high', _W) for b in range(4)},
    **{b: Condition('overvoltage', 'voltage too high', blocks_charge=True) for b in (4, 5)},
    6: Condition('undervoltage_warning', 'voltage nearly too low', _W),
    7: Condition('undervoltage', 'voltage too low', blocks_discharge=True),
    8: Condition('charge_overtemperature_warning', 'nearly too hot to charge', _W),
    9: Condition('charge_overtemperature', 'too hot to charge', blocks_charge=True),
    10: Condition('charge_undertemperature_warning', 'nearly too cold to charge', _W),
    11: Condition('charge_undertemperature', 'too cold to charge', blocks_charge=True),
    12: Condition('discharge_overtemperature_warning', 'nearly too hot to discharge', _W),
    13: Condition('discharge_overtemperature', 'too hot to discharge', blocks_discharge=True),
    14: Condition('discharge_undertemperature_warning', 'nearly too cold to discharge', _W),
    15: Condition('discharge_undertemperature', 'too cold to discharge', blocks_discharge=True),
    16: Condition('charge_overcurrent_warning', 'charge current nearly too high', _W),
    17: Condition('charge_overcurrent', 'charge current too high', blocks_charge=True),
    18: Condition('discharge_overcurrent_warning', 'discharge current nearly too high', _W),
    19: Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True),
    20: Condition('high_soc_warning', 'state of charge high', _W),
    21: Condition('high_soc', 'state of charge too high', blocks_charge=True),
    22: Condition('low_soc_warning', 'state of charge low', _W),
    23: Condition('low_soc', 'state of charge too low', blocks_discharge=True),
    24: Condition('voltage_difference_warning', 'cells differ', _W),
    25: Condition('voltage_difference', 'cells differ too much'),
    26: Condition('temperature_difference_warning', 'temperatures differ', _W),
    27: Condition('temperature_difference', 'temperatures differ too much'),
    32: Condition('charge_mosfet_overtemperature', 'charge switch too hot', blocks_charge=True),
    33: Condition('discharge_mosfet_overtemperature', 'discharge switch too hot', blocks_discharge=True),
    **{b: Condition('mosfet_temperature_sensor', 'temperature sensor of a switch failed') for b in (34, 35)},
    **{b: Condition('charge_mosfet', 'charge switch failed', _C, True, True) for b in (36, 38)},
    **{b: Condition('discharge_mosfet', 'discharge switch failed', _C, True, True) for b in (37, 39)},
    40: Condition('afe_error', 'measuring chip failed', _C, True, True),
    41: Condition('voltage_sensor', 'a cell voltage is not measured', _C, True, True),
    42: Condition('temperature_sensor', 'temperature sensor failed'),
    43: Condition('eeprom', 'memory failed'),
    44: Condition('rtc', 'clock failed', _W),
    45: Condition('precharge', 'precharging failed'),
    46: Condition('communication', 'communication failed', _W),
    47: Condition('internal_communication', 'communication inside the BMS failed'),
    48: Condition('current_sensor', 'current sensor failed', _C, True, True),
    49: Condition('pack_voltage_sensor', 'pack voltage is not measured'),
    50: Condition('short_circuit', 'short circuit', _C, True, True),
    51: Condition('charging_forbidden', 'voltage so low that charging is forbidden', blocks_charge=True),
}
_SWAPPED = {16: 18, 17: 19, 18: 16, 19: 17}


@dataclass(frozen=True)
class DalyParams(SerialBmsParams):
    """Settings of one Daly BMS."""

    host_address: int = param(0x40, doc='address of this machine: 0x40 (RS485) or 0x80 (UART); + 1 for board 2, ...',
                              low=0x40, high=0x8F)
    current_sign: str = param('charge_below', doc='what raw numbers below 30000 mean',
                              choices=['charge_below', 'charge_above'])


def build(command: int, data: bytes = FILL, host: int = 0x40) -> bytes:
    """A request."""
    frame = bytes((START, host, command, LENGTH)) + data.ljust(8, b'\0')
    return frame + bytes((sum(frame) & 0xFF,))


def board_of(host: int) -> int:
    """Number of the board that this host address asks, which is the address in its answers."""
    return (host & 0x0F) + 1


def find(data: bytes, command: int, board: int = 1) -> bytes | None:
    """A complete answer of a board to `command` in everything received, wherever it starts; None while there is none.

    Raises `BadChecksum` when something that looks like one has a wrong sum.
    """
    head, at, wrong = bytes((START, board, command, LENGTH)), -1, False
    while (at := data.find(head, at + 1)) >= 0:
        frame = data[at:at + SIZE]
        if len(frame) == SIZE:
            if sum(frame[:-1]) & 0xFF == frame[-1]:
                return frame
            wrong = True
    if wrong:
        raise BadChecksum(f'answer to {command:#x} with a wrong sum')
    return None


def find_series(data: bytes, command: int, count: int, board: int = 1) -> bytes | None:
    """`count` answers that carry the numbers 1, 2, ...; their data joined, or None."""
    found: dict[int, bytes] = {}
    head, at = bytes((START, board, command, LENGTH)), -1
    while (at := data.find(head, at + 1)) >= 0:
        frame = data[at:at + SIZE]
        if len(frame) == SIZE and sum(frame[:-1]) & 0xFF == frame[-1]:
            found[frame[4]] = frame[5:12]
    if not all(n in found for n in range(1, count + 1)):
        return None
    return b''.join(found[n] for n in range(1, count + 1))


def parse_pack(data: bytes, charge_below: bool) -> tuple[float, float, float]:
    """Voltage (V), current (A, + = charging), state of charge (0..1). Raises `BadValue`."""
    voltage, _, current, soc = unpack('>HHHH', data)
    sign = -0.1 if charge_below else 0.1
    return (checked('voltage (V)', voltage * 0.1, 1.0, 1000.0), sign * (current - ZERO) + 0.0,
            checked('state of charge (%)', soc * 0.1, 0.0, 100.0) / 100.0)


def parse_cells(data: bytes, count: int) -> tuple[float, ...]:
    """Cell voltages in V from joined frames of three. Raises `BadValue`."""
    numbers = [unpack('>H', data[7 * (i // 3) + 2 * (i % 3):][:2])[0] for i in range(count)]
    return tuple(checked(f'cell {i + 1} (mV)', n, 0, 6000) / 1000.0 for i, n in enumerate(numbers))


def parse_temperatures(data: bytes, count: int) -> tuple[float, ...]:
    """Temperatures in degC from joined frames of seven."""
    return tuple(float(b) - 40.0 for b in data[:count])


def parse_alarms(data: bytes, charge_below: bool) -> tuple[Condition, ...]:
    """Conditions that are present. With the other sign of the current the over-current bits change places."""
    bits = int.from_bytes(data[:7], 'little')
    if not charge_below:
        moved = sum(1 << new for old, new in _SWAPPED.items() if bits >> old & 1)
        bits = bits & ~(0b1111 << 16) | moved
    found = {c.id: c for c in named(ALARM_BITS, bits)}
    if len(data) > 7 and data[7]:
        found['fault_code'] = Condition('fault_code', f'fault code {data[7]}')
    return tuple(found.values())


class DalyBms(SerialBms):
    """One Daly BMS (`BatteryDevice`); several share a line, one host address each."""

    Params: ClassVar[type] = DalyParams
    addressed: ClassVar[bool] = True
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (9600,)
    prefix: ClassVar[str] = 'daly'
    params: DalyParams

    def __init__(self, params: DalyParams, read_only: bool = False, *, link: SerialLink | None = None) -> None:
        super().__init__(params, read_only, link=link)
        self._board = board_of(params.host_address)
        self._counts: tuple[int, int] | None = None  # cells, sensors

    def close(self) -> None:
        """Close the port; the numbers of cells and sensors are asked for again."""
        super().close()
        self._counts = None

    def identify(self) -> Identity:
        """Numbers of cells and sensors. Raises `DeviceError`."""
        cells, sensors = self._ask_counts()
        return Identity('Daly', f'{cells} cells, {sensors} sensors')

    def poll(self) -> Snapshot:
        """Pack, state, cells, temperatures and alarms. Raises `DeviceError`."""
        below = self.params.current_sign == 'charge_below'
        cells, sensors = self._counts or self._ask_counts()
        voltage, current, soc = parse_pack(self._single(PACK), below)
        state = self._single(STATE)
        left = unpack('>L', state[4:])[0] / 1000.0
        volts = parse_cells(self._series(CELLS, ceil(cells / 3)), cells)
        degrees = parse_temperatures(self._series(TEMPERATURES, ceil(sensors / 7)), sensors) if sensors else ()
        return Snapshot(
            voltage=voltage, current=current, cells=volts, temperatures=degrees, charge=left,
            charge_full=left / soc if soc > 0.01 else nan, soc=soc, charge_on=bool(state[1]),
            discharge_on=bool(state[2]), conditions=parse_alarms(self._single(ALARMS), below))

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Switch both FETs and read back that they did. Raises `DeviceError`, `Refused` when they did not."""
        for command, on in ((CHARGE_FET, charge), (DISCHARGE_FET, discharge)):
            self._single(command, bytes((on,)) + FILL[1:], write=True)
        state = self._single(STATE)
        if (bool(state[1]), bool(state[2])) != (charge, discharge):
            raise Refused(f'asked for charge {charge:d}, discharge {discharge:d}; '
                          f'they are {bool(state[1]):d}, {bool(state[2]):d}')

    def _ask_counts(self) -> tuple[int, int]:
        status = self._single(STATUS)
        cells, sensors = status[0], status[1]
        if not 1 <= cells <= MAX_CELLS or sensors > MAX_SENSORS:
            raise BadValue(f'{cells} cells and {sensors} sensors; allowed 1..{MAX_CELLS} and 0..{MAX_SENSORS}')
        self._counts = cells, sensors
        return self._counts

    def _single(self, command: int, data: bytes = FILL, *, write: bool = False) -> bytes:
        request = build(command, data, self.params.host_address)
        return self.ask(request, lambda d: find(d, command, self._board), lambda f: f[4:12], write=write)

    def _series(self, command: int, count: int) -> bytes:
        def parse(data: bytes) -> bytes:
            if len(data) < 7 * count:
                raise BadFrame(f'{len(data)} bytes in {count} frames')
            return data

        return self.ask(build(command, host=self.params.host_address),
                        lambda d: find_series(d, command, count, self._board), parse)
