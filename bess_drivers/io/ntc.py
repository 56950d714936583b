"""Resistance of a thermistor to temperature and back. Pure; resistances in Ohm, temperatures in degC.

Steinhart-Hart: 1/T = a + b ln R + c (ln R)^3 (Deep-Sea Research 15, 1968). Beta: 1/T = 1/T25 + ln(R/R25)/B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, nan

KELVIN, T25 = 273.15, 298.15


@dataclass(frozen=True)
class SteinhartHart:
    """Three coefficients. `from_beta` and `from_points` make them."""

    a: float
    b: float
    c: float

    @classmethod
    def from_beta(cls, beta: float, r25: float) -> SteinhartHart:
        """The beta equation as a case of it. Raises ValueError."""
        if beta <= 0.0 or r25 <= 0.0:
            raise ValueError(f'beta {beta:g} and r25 {r25:g} must be above 0')
        return cls(1.0 / T25 - log(r25) / beta, 1.0 / beta, 0.0)

    @classmethod
    def from_points(cls, points: Sequence[tuple[float, float]]) -> SteinhartHart:
        """From three (degC, Ohm) of a data sheet. Raises ValueError."""
        if len({t for t, _ in points}) != 3 or len({r for _, r in points}) != 3 or min(r for _, r in points) <= 0.0:
            raise ValueError(f'three different points are needed, not {points}')
        (l1, y1), (l2, y2), (l3, y3) = ((log(r), 1.0 / (t + KELVIN)) for t, r in points)
        g2, g3 = (y2 - y1) / (l2 - l1), (y3 - y1) / (l3 - l1)
        c = (g3 - g2) / (l3 - l2) / (l1 + l2 + l3)
        b = g2 - c * (l1 * l1 + l1 * l2 + l2 * l2)
        return cls(y1 - (b + c * l1 * l1) * l1, b, c)

    def temperature(self, resistance: float) -> float:
        """degC; NaN for an open (inf) or shorted (0) sensor."""
        if not 0.0 < resistance < float('inf'):
            return nan
        x = log(resistance)
        y = self.a + self.b * x + self.c * x ** 3
        return 1.0 / y - KELVIN if y > 0.0 else nan

    def resistance(self, temperature: float) -> float:
        """Ohm, the inverse (Cardano for c > 0). Raises ValueError below absolute zero."""
        if temperature <= -KELVIN:
            raise ValueError(f'{temperature:g} degC is below absolute zero')
        y = self.a - 1.0 / (temperature + KELVIN)
        if not self.c:
            return exp(-y / self.b)
        x, p = y / (2.0 * self.c), self.b / (3.0 * self.c)
        root = (p ** 3 + x ** 2) ** 0.5
        return exp(_cube_root(root - x) - _cube_root(root + x))


def _cube_root(v: float) -> float:
    return abs(v) ** (1.0 / 3.0) * (1.0 if v >= 0.0 else -1.0)


def divider(voltage: float, supply: float, series: float, *, pull_up: bool = True) -> float:
    """Resistance (Ohm) of a sensor in a divider with `series`; inf = open, 0 = shorted.

    pull_up: `series` lies between supply and sensor, and the sensor's own voltage is measured.
    """
    if not supply > 0.0 or voltage != voltage:
        return nan
    upper = supply - voltage
    if pull_up:
        return float('inf') if upper <= 0.0 else max(voltage, 0.0) * series / upper
    return float('inf') if voltage <= 0.0 else max(upper, 0.0) * series / voltage
