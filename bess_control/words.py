"""Quantities in words, for decision traces and reasons that people read."""

from __future__ import annotations

from math import isinf, isnan


def magnitude(power: float) -> str:
    """A power without its sign: "350 W", "2.5 kW", "1.20 MW", "unlimited", "unknown"."""
    if isnan(power):
        return 'unknown'
    if isinf(power):
        return 'unlimited'
    p = abs(power)
    if p < 999.5:
        return f'{p:.0f} W'
    if p < 999_950.0:
        return f'{p / 1e3:.1f} kW' if p < 99_950.0 else f'{p / 1e3:.0f} kW'
    return f'{p / 1e6:.2f} MW'


def watts(power: float) -> str:
    """A battery power: "2.5 kW" charges, "discharge 1.3 kW" discharges."""
    text = magnitude(power)
    return f'discharge {text}' if power < 0.0 and text != '0 W' else text


def grid_watts(power: float) -> str:
    """A power at the grid connection: "import 350 W", "export 1.2 kW", "0 W"."""
    text = magnitude(power)
    if isnan(power) or text == '0 W':
        return text
    return f'import {text}' if power > 0.0 else f'export {text}'
