"""The CAN frame set that inverters expect of a low-voltage battery ("CAN-bms", 500 kbit/s, 11 bit). Pure.

Used with small differences by Victron, SMA, Pylontech, BYD and many others; multi-byte values are
little-endian. Nobody publishes one specification: the layout here follows recorded frames and
independent open senders and receivers (`shared/facts/bms_portal_radio.md`, section 4.10).
Currents are passive-signed on the wire too (0x356: + = charging); limits are magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan, nan
from struct import Struct, pack
from typing import NamedTuple

from bess_core.values import Severity
from bess_drivers.device import BadFrame, BadValue

LIMITS, STATE, MEASURED, PROTECTION, ALARMS = 0x351, 0x355, 0x356, 0x359, 0x35A
REQUESTS, MAKER, INFO = 0x35C, 0x35E, 0x35F
MODEL, MODEL_2, MODULES, EXTREMES = 0x370, 0x371, 0x372, 0x373
ENERGY, CAPACITY, SERIAL, SERIAL_2, PRODUCT = 0x378, 0x379, 0x380, 0x381, 0x382
KEEP_ALIVE = 0x305  # the inverter's
IDS = (LIMITS, STATE, MEASURED, PROTECTION, ALARMS, REQUESTS, MAKER, INFO, MODEL, MODEL_2, MODULES, EXTREMES,
       ENERGY, CAPACITY, SERIAL, SERIAL_2, PRODUCT)

_LIMITS, _MEASURED = Struct('<HhhH'), Struct('<hhh')
_U16X4, _U32X2 = Struct('<HHHH'), Struct('<II')
KELVIN = 273

CHARGE_ENABLE, DISCHARGE_ENABLE, FORCE_CHARGE_1, FORCE_CHARGE_2, FULL_CHARGE = 0x80, 0x40, 0x20, 0x10, 0x08


class Condition(NamedTuple):
    """An alarm of the frame set: `id` without prefix, what it means, and which way it must not flow."""

    id: str
    severity: Severity
    text: str
    blocks_charge: bool = False
    blocks_discharge: bool = False


_E, _C = Severity.ERROR, Severity.CRITICAL
#: 0x35A: (byte, lowest bit of the pair) -> condition. 01 = active, 10 = not, others = not supported.
ALARM_PAIRS: dict[tuple[int, int], Condition] = {
    (0, 2): Condition('overvoltage', _E, 'battery voltage too high', True),
    (0, 4): Condition('undervoltage', _E, 'battery voltage too low', False, True),
    (0, 6): Condition('overtemperature', _E, 'battery too hot', True, True),
    (1, 0): Condition('undertemperature', _E, 'battery too cold', True, True),
    (1, 2): Condition('charge_overtemperature', _E, 'too hot to charge', True),
    (1, 4): Condition('charge_undertemperature', _E, 'too cold to charge', True),
    (1, 6): Condition('discharge_overcurrent', _E, 'discharge current too high', False, True),
    (2, 0): Condition('charge_overcurrent', _E, 'charge current too high', True),
    (2, 4): Condition('short_circuit', _C, 'short circuit', True, True),
    (2, 6): Condition('internal_failure', _C, 'internal failure of the battery', True, True),
    (3, 0): Condition('cell_imbalance', _E, 'cells differ too much'),
}
#: 0x359: (byte, bit) of the protection bytes; the two bytes behind hold the same bits as warnings.
PROTECTION_BITS: dict[tuple[int, int], Condition] = {
    (0, 1): Condition('cell_overvoltage', _E, 'a cell or module is too full', True),
    (0, 2): Condition('cell_undervoltage', _E, 'a cell or module is too empty', False, True),
    (0, 3): Condition('overtemperature', _E, 'battery too hot', True, True),
    (0, 4): Condition('undertemperature', _E, 'battery too cold', True, True),
    (0, 7): Condition('discharge_overcurrent', _E, 'discharge current too high', False, True),
    (1, 0): Condition('charge_overcurrent', _E, 'charge current too high', True),
    (1, 3): Condition('system_error', _C, 'system error of the battery', True, True),
}


class Active(NamedTuple):
    """A condition that is present, as alarm (it protects) or as warning."""

    condition: Condition
    warning: bool


@dataclass(slots=True)
class BatteryFrames:
    """What one battery says. Units: V, A (+ = charging; limits are magnitudes), Ah, Wh, degC, fractions."""

    charge_voltage: float = nan
    charge_current: float = nan
    discharge_current: float = nan
    discharge_voltage: float = nan
    soc: float = nan
    soh: float = nan
    voltage: float = nan
    current: float = nan
    temperature: float = nan
    requests: int | None = None  # bits of 0x35C; None = not sent
    capacity: float = nan  # when full
    cell_min: float = nan
    cell_max: float = nan
    temperature_min: float = nan
    temperature_max: float = nan
    modules: int = 0
    modules_blocking_charge: int = 0
    modules_blocking_discharge: int = 0
    modules_offline: int = 0
    energy_charged: float = nan
    energy_discharged: float = nan
    maker: str = ''
    model: str = ''
    serial: str = ''
    version: str = ''
    active: list[Active] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # bits that are set and have no known meaning


def _need(data: bytes, size: int, can_id: int) -> bytes:
    if len(data) < size:
        raise BadFrame(f'frame {can_id:#x} has {len(data)} bytes, {size} are needed')
    return data


def _bounded(what: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise BadValue(f'{what} {value:g} is not in {low:g}..{high:g}')
    return value


def _text(data: bytes) -> str:
    return ''.join(chr(b) for b in data if 32 <= b < 127).strip()


def decode(frames: dict[int, bytes]) -> BatteryFrames:
    """All frames of one battery by id; ids that are absent leave their fields unknown.

    Raises `BadFrame` for a frame that is too short and `BadValue` for a value that cannot be.
    """
    out = BatteryFrames()
    if (data := frames.get(LIMITS)) is not None:
        cvl, ccl, dcl, dvl = _LIMITS.unpack_from(_need(data, 6, LIMITS).ljust(8, b'\0'))
        out.charge_voltage = _bounded('charge voltage limit (V)', cvl * 0.1, 0.0, 1500.0)
        out.charge_current = _bounded('charge current limit (A)', ccl * 0.1, 0.0, 3276.7)
        out.discharge_current = _bounded('discharge current limit (A)', dcl * 0.1, 0.0, 3276.7)
        out.discharge_voltage = dvl * 0.1 if len(data) >= 8 and dvl else nan
    if (data := frames.get(STATE)) is not None:
        out.soc, out.soh = _state(_need(data, 4, STATE))
    if (data := frames.get(MEASURED)) is not None:
        voltage, current, temperature = _MEASURED.unpack_from(_need(data, 6, MEASURED))
        out.voltage = _bounded('battery voltage (V)', voltage * 0.01, 0.0, 327.67)
        out.current = current * 0.1
        out.temperature = _bounded('battery temperature (degC)', temperature * 0.1, -60.0, 150.0)
    if (data := frames.get(REQUESTS)) is not None:
        out.requests = _need(data, 1, REQUESTS)[0]
    _decode_extremes(frames, out)
    _decode_identity(frames, out)
    _decode_alarms(frames, out)
    return out


def _state(data: bytes) -> tuple[float, float]:
    whole, soh = data[0] | data[1] << 8, data[2] | data[3] << 8
    soc = _bounded('state of charge (%)', whole, 0, 100) / 100.0
    if len(data) >= 6:
        # Some senders leave these bytes 0: the fine value counts only where it agrees with the coarse one.
        fine = (data[4] | data[5] << 8) / 10_000.0
        if abs(fine - soc) <= 0.01 and fine <= 1.0:
            soc = fine
    return soc, _bounded('state of health (%)', soh, 0, 200) / 100.0


def _decode_extremes(frames: dict[int, bytes], out: BatteryFrames) -> None:
    if (data := frames.get(EXTREMES)) is not None:
        low, high, cold, hot = _U16X4.unpack_from(_need(data, 8, EXTREMES))
        if low or high:
            out.cell_min = _bounded('lowest cell (mV)', low, 500, 5000) / 1000.0
            out.cell_max = _bounded('highest cell (mV)', high, low, 5000) / 1000.0
        if cold or hot:
            out.temperature_min = _bounded('lowest temperature (K)', cold, 213, 423) - KELVIN
            out.temperature_max = _bounded('highest temperature (K)', hot, cold, 423) - KELVIN
    if (data := frames.get(MODULES)) is not None:
        (out.modules, out.modules_blocking_charge, out.modules_blocking_discharge,
         out.modules_offline) = _U16X4.unpack_from(_need(data, 8, MODULES))
    if (data := frames.get(ENERGY)) is not None:
        charged, discharged = _U32X2.unpack_from(_need(data, 8, ENERGY))
        if charged or discharged:
            out.energy_charged, out.energy_discharged = charged * 100.0, discharged * 100.0  # 0.1 kWh


def _decode_identity(frames: dict[int, bytes], out: BatteryFrames) -> None:
    out.maker = _text(frames.get(MAKER, b''))
    out.model = _text(frames.get(MODEL, b'') + frames.get(MODEL_2, b'')) or _text(frames.get(PRODUCT, b''))
    out.serial = _text(frames.get(SERIAL, b'') + frames.get(SERIAL_2, b''))
    available = nan
    if (data := frames.get(INFO)) is not None and len(data) >= 6:
        out.version = f'{data[3]}.{data[2]:02d}' if data[2] or data[3] else ''
        available = float(data[4] | data[5] << 8) or nan
    if (data := frames.get(CAPACITY)) is not None:
        out.capacity = float(int.from_bytes(_need(data, 2, CAPACITY)[:2], 'little')) or nan
    if isnan(out.capacity):
        # Where 0x379 exists, 0x35F holds what is left (BYD); where it does not, the size (Pylontech, SMA).
        out.capacity = available


def _decode_alarms(frames: dict[int, bytes], out: BatteryFrames) -> None:
    if (data := frames.get(ALARMS)) is not None:
        for at, byte in enumerate(_need(data, 8, ALARMS)[:8]):
            for shift in (0, 2, 4, 6):
                if byte >> shift & 0b11 == 0b01:
                    _found(out, ALARM_PAIRS.get((at % 4, shift)), at >= 4, f'0x35a byte {at} bits {shift}')
    if (data := frames.get(PROTECTION)) is not None:
        for at, byte in enumerate(_need(data, 4, PROTECTION)[:4]):
            for bit in range(8):
                if byte >> bit & 1:
                    _found(out, PROTECTION_BITS.get((at % 2, bit)), at >= 2, f'0x359 byte {at} bit {bit}')


def _found(out: BatteryFrames, condition: Condition | None, warning: bool, where: str) -> None:
    if condition is None:
        # Byte 7 of 0x35A carries an online flag of some senders, which is no alarm.
        if where != '0x35a byte 7 bits 2':
            out.unknown.append(where)
    elif all(a.condition.id != condition.id or a.warning != warning for a in out.active):
        out.active.append(Active(condition, warning))


def _count(value: float, scale: float, low: int, high: int) -> int:
    """A register value, saturated; unknown = 0."""
    return 0 if isnan(value) else max(low, min(high, round(value / scale)))


def encode(battery: BatteryFrames) -> dict[int, bytes]:
    """The frames of a battery by id, in the order in which they are sent; unknown fields are 0 or left out."""
    b = battery
    soc = 0.0 if isnan(b.soc) else min(1.0, max(0.0, b.soc))
    frames = {
        LIMITS: _LIMITS.pack(_count(b.charge_voltage, 0.1, 0, 0xFFFF), _count(b.charge_current, 0.1, 0, 0x7FFF),
                             _count(b.discharge_current, 0.1, 0, 0x7FFF), _count(b.discharge_voltage, 0.1, 0, 0xFFFF)),
        STATE: pack('<HHH', round(100 * soc), _count(b.soh, 0.01, 0, 100) or 100, round(10_000 * soc)),
        MEASURED: _MEASURED.pack(_count(b.voltage, 0.01, 0, 0x7FFF), _count(b.current, 0.1, -0x8000, 0x7FFF),
                                 _count(b.temperature, 0.1, -600, 1500)),
        ALARMS: _encode_alarms(b.active),
        REQUESTS: bytes((b.requests or 0, 0)),
        MAKER: b.maker.encode('ascii', 'replace')[:8].ljust(8),
    }
    if not isnan(b.capacity):
        capacity = _count(b.capacity, 1.0, 0, 0xFFFF)
        frames[INFO] = pack('<HHHH', 0, 0, capacity, 0)
        frames[CAPACITY] = pack('<HHHH', capacity, 0, 0, 0)
    if b.modules or b.modules_offline:
        frames[MODULES] = _U16X4.pack(b.modules, b.modules_blocking_charge, b.modules_blocking_discharge,
                                      b.modules_offline)
    if not isnan(b.cell_min) and not isnan(b.cell_max):
        cold = b.temperature_min if not isnan(b.temperature_min) else b.temperature
        hot = b.temperature_max if not isnan(b.temperature_max) else b.temperature
        frames[EXTREMES] = _U16X4.pack(
            _count(b.cell_min, 0.001, 0, 0xFFFF), _count(b.cell_max, 0.001, 0, 0xFFFF),
            0 if isnan(cold) else round(cold + KELVIN), 0 if isnan(hot) else round(hot + KELVIN))
    if not isnan(b.energy_charged) and not isnan(b.energy_discharged):
        frames[ENERGY] = _U32X2.pack(_count(b.energy_charged, 100.0, 0, 0xFFFFFFFF),
                                     _count(b.energy_discharged, 100.0, 0, 0xFFFFFFFF))
    if b.model:
        frames[PRODUCT] = b.model.encode('ascii', 'replace')[:8].ljust(8, b'\0')
    return frames


def _encode_alarms(active: list[Active]) -> bytes:
    data = bytearray(b'\xaa' * 8)  # everything supported, nothing active
    for (at, shift), condition in ALARM_PAIRS.items():
        for alarm in active:
            if alarm.condition.id == condition.id:
                place = at + 4 * alarm.warning
                data[place] = data[place] & ~(0b11 << shift) | 0b01 << shift
    return bytes(data)
