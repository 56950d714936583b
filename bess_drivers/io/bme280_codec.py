"""Bosch BME280: calibration and compensation. Pure; formulas of BST-BME280-DS002, section 8.1 (floating point)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import unpack

from bess_drivers.device import BadFrame

ID, RESET, HUM, STATUS, MEAS, CONFIG, DATA = 0xD0, 0xE0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF7
CHIP = 0x60
CALIBRATION_1, SIZE_1, CALIBRATION_2, SIZE_2, DATA_SIZE = 0x88, 26, 0xE1, 7, 8
SLEEP, FORCED, NORMAL = 0, 1, 3
MEASURING = 0x08  # bit of STATUS
NOT_MEASURED_20, NOT_MEASURED_16 = 0x80000, 0x8000


@dataclass(frozen=True)
class Calibration:
    """Trimming values of one chip."""

    t: tuple[int, ...]
    p: tuple[int, ...]
    h: tuple[int, ...]


def parse_calibration(first: bytes, second: bytes) -> Calibration:
    """From registers 0x88 to 0xA1 and 0xE1 to 0xE7. Raises `BadFrame` (also for an empty memory)."""
    if len(first) != SIZE_1 or len(second) != SIZE_2 or len(set(first)) == 1:
        raise BadFrame(f'calibration of the BME280 cannot be read: {first.hex()} {second.hex()}')
    h2, h3 = unpack('<hB', second[:3])
    h4 = unpack('b', second[3:4])[0] << 4 | second[4] & 0xF
    h5 = unpack('b', second[5:6])[0] << 4 | second[4] >> 4
    return Calibration(unpack('<Hhh', first[:6]), unpack('<H8h', first[6:24]),
                       (first[25], h2, h3, h4, h5, unpack('b', second[6:7])[0]))


def parse_raw(data: bytes) -> tuple[int, int, int]:
    """Raw temperature, pressure and humidity. Raises `BadFrame`, also when nothing was measured."""
    if len(data) != DATA_SIZE:
        raise BadFrame(f'{len(data)} bytes of measured values, not {DATA_SIZE}')
    pressure, temperature = (int.from_bytes(data[i:i + 3], 'big') >> 4 for i in (0, 3))
    if temperature == NOT_MEASURED_20:
        raise BadFrame('the BME280 has not measured')
    return temperature, pressure, int.from_bytes(data[6:8], 'big')


def fine(raw: int, k: Calibration) -> float:
    """`t_fine`, which the other formulas need."""
    first = (raw / 16384.0 - k.t[0] / 1024.0) * k.t[1]
    return first + (raw / 131072.0 - k.t[0] / 8192.0) ** 2 * k.t[2]


def temperature(t_fine: float) -> float:
    """degC."""
    return t_fine / 5120.0


def pressure(raw: int, t_fine: float, k: Calibration) -> float:
    """Pa; NaN when the measurement was left out."""
    if raw == NOT_MEASURED_20:
        return float('nan')
    p1, p2, p3, p4, p5, p6, p7, p8, p9 = k.p
    a = t_fine / 2.0 - 64000.0
    b = (a * a * p6 / 32768.0 + a * p5 * 2.0) / 4.0 + p4 * 65536.0
    a = (1.0 + (p3 * a * a / 524288.0 + p2 * a) / 524288.0 / 32768.0) * p1
    if a == 0.0:
        raise BadFrame('pressure calibration of the BME280 is zero')
    p = (1048576.0 - raw - b / 4096.0) * 6250.0 / a
    return p + (p9 * p * p / 2147483648.0 + p * p8 / 32768.0 + p7) / 16.0


def humidity(raw: int, t_fine: float, k: Calibration) -> float:
    """Relative, 0..1; NaN when the measurement was left out."""
    if raw == NOT_MEASURED_16:
        return float('nan')
    h1, h2, h3, h4, h5, h6 = k.h
    v = t_fine - 76800.0
    x = (raw - (h4 * 64.0 + h5 / 16384.0 * v)) * (
        h2 / 65536.0 * (1.0 + h6 / 67108864.0 * v * (1.0 + h3 / 67108864.0 * v)))
    return min(max(x * (1.0 - h1 * x / 524288.0), 0.0), 100.0) / 100.0
