"""BME280 and BME680 on a simulated bus. Registers as in the data sheets BST-BME280-DS002 and BST-BME680-DS001.

The BME280 finds the raw values for a climate by searching with the *integer* formulas of its data sheet;
a driver that uses the floating point ones is checked against something else than itself.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any

#: T1-T3 and P1-P9 are those of the worked example of the BMP280 data sheet (BST-BMP280-DS001, section 3.12).
T = (27504, 26435, -1000)
P = (36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000)
H = (75, 370, 0, 306, 50, 30)


class _Registers:
    address = 0x76

    def __init__(self) -> None:
        self.memory = bytearray(256)

    def write(self, data: bytes) -> None:
        """Pairs of register and value."""
        for register, value in zip(data[::2], data[1::2], strict=False):
            self.memory[register] = value

    def read(self, command: bytes, size: int) -> bytes:
        """From a register on."""
        return bytes(self.memory[command[0]:command[0] + size])


def trunc_div(a: int, b: int) -> int:
    """Division of C, towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def t_fine(raw: int) -> int:
    """32 bit integer formula."""
    first = ((raw >> 3) - (T[0] << 1)) * T[1] >> 11
    second = (((raw >> 4) - T[0]) * ((raw >> 4) - T[0]) >> 12) * T[2] >> 14
    return first + second


def celsius(raw: int) -> float:
    """degC, in steps of 0.01."""
    return (t_fine(raw) * 5 + 128 >> 8) / 100.0


def pascal(raw: int, fine: int) -> float:
    """Pa, 64 bit integer formula."""
    a = fine - 128000
    b = a * a * P[5] + (a * P[4] << 17) + (P[3] << 35)
    a = (a * a * P[2] >> 8) + (a * P[1] << 12)
    a = ((1 << 47) + a) * P[0] >> 33
    p = trunc_div(((1048576 - raw << 31) - b) * 3125, a)
    a = P[8] * (p >> 13) * (p >> 13) >> 25
    b = P[7] * p >> 19
    return ((p + a + b >> 8) + (P[6] << 4)) / 256.0


def humidity(raw: int, fine: int) -> float:
    """0..1, 32 bit integer formula."""
    v = fine - 76800
    x = ((raw << 14) - (H[3] << 20) - H[4] * v + 16384 >> 15) * (
        (((v * H[5] >> 10) * ((v * H[2] >> 11) + 32768) >> 10) + 2097152) * H[1] + 8192 >> 14)
    x -= ((x >> 15) * (x >> 15) >> 7) * H[0] >> 4
    return (min(max(x, 0), 419430400) >> 12) / 1024.0 / 100.0


def search(value: float, of: Callable[[int], float], high: int) -> int:
    """Raw value for which `of` comes nearest; `of` is monotonic."""
    low, rising = 0, of(high) > of(0)
    while high - low > 1:
        middle = (low + high) // 2
        if (of(middle) < value) is rising:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda r: abs(of(r) - value))


class Bme280(_Registers):
    """Measures when it is told to (forced) or all the time (normal)."""

    def __init__(self) -> None:
        super().__init__()
        self.memory[0xD0] = 0x60
        self.memory[0x88:0xA0] = pack('<Hhh', *T) + pack('<H8h', *P)
        self.memory[0xA1] = H[0]
        self.memory[0xE1:0xE8] = pack('<hB', H[1], H[2]) + bytes(
            (H[3] >> 4, (H[3] & 0xF) | (H[4] & 0xF) << 4, H[4] >> 4, H[5]))
        self.memory[0xF7:0xFF] = bytes.fromhex('8000008000008000')  # not measured yet
        self.values = {'temperature': 23.5, 'pressure': 98_000.0, 'humidity': 0.41}

    def set(self, values: dict[str, Any]) -> None:
        """temperature (degC), pressure (Pa), humidity (0..1), or `memory` (register -> value)."""
        for register, value in values.pop('memory', {}).items():
            self.memory[int(register)] = value
        self.values |= values
        self._measure()

    def _measure(self) -> None:
        if self.memory[0xF4] & 3 == 0:
            return
        t = search(self.values['temperature'], celsius, (1 << 20) - 1)
        fine = t_fine(t)
        p = search(self.values['pressure'], lambda r: pascal(r, fine), (1 << 20) - 1)
        h = search(self.values['humidity'], lambda r: humidity(r, fine), (1 << 16) - 1)
        self.memory[0xF7:0xFF] = (p << 4).to_bytes(3, 'big') + (t << 4).to_bytes(3, 'big') + h.to_bytes(2, 'big')
        if self.memory[0xF4] & 3 in (1, 2):
            self.memory[0xF4] &= 0xFC

    def write(self, data: bytes) -> None:
        """See `_Registers`."""
        super().write(data)
        if self.memory[0xE0] == 0xB6:
            self.memory[0xE0] = self.memory[0xF2] = self.memory[0xF4] = self.memory[0xF5] = 0
        self._measure()


class Bme680(_Registers):
    """Registers with fixed raw values and a calibration; new data is there as soon as it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.memory[0xD0] = 0x61
        # Calibration: T1 0xE9 u16, T2 0x8A i16, T3 0x8C i8; P and H as in a real part.
        self.memory[0x8A:0x8D] = pack('<hb', 26535, 3)
        self.memory[0xE9:0xEB] = pack('<H', 26216)
        self.memory[0x8E:0x91] = pack('<Hb', 35943, 0)[:3]
        self.memory[0x8E:0x90], self.memory[0x90:0x92], self.memory[0x92] = pack('<H', 35943), pack('<h', -10362), 88
        self.memory[0x94:0x96], self.memory[0x96:0x98] = pack('<h', 6880), pack('<h', -110)
        self.memory[0x98], self.memory[0x99] = 30, 25  # P7, P6
        self.memory[0x9C:0x9E], self.memory[0x9E:0xA0], self.memory[0xA0] = pack('<h', -3044), pack('<h', -2532), 30
        h1, h2 = 761, 1009
        self.memory[0xE1], self.memory[0xE2], self.memory[0xE3] = h2 >> 4, (h2 & 0xF) << 4 | h1 & 0xF, h1 >> 4
        self.memory[0xE4:0xE9] = bytes((0, 45, 20, 120, 156))  # H3..H7
        self.memory[0xEB:0xEF] = pack('<hbb', -10000, -30, 18)  # GH2, GH1, GH3
        self.memory[0x1F:0x22] = (360_000 << 4).to_bytes(3, 'big')
        self.memory[0x22:0x25] = (490_000 << 4).to_bytes(3, 'big')
        self.memory[0x25:0x27] = (20_000).to_bytes(2, 'big')
        self.memory[0x2A:0x2C] = bytes((0x80, 0x30 | 0x05))  # gas valid, heater stable
        self.memory[0x1D] = 0x80

    def set(self, values: dict[str, Any]) -> None:
        """`memory`: register -> value."""
        for register, value in values.get('memory', {}).items():
            self.memory[int(register)] = value
