"""Chemistries of battery cells: tables of the open-circuit voltage, resistance, current of a source at a power."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID = 1000  # intervals of the uniform SoC grid of the OCV tables
T_REF = 298.15  # K
GAS_CONSTANT = 8.314  # J/(mol K)

# LFP: Sony US26650 (25 points of its table), from SimSES, github.com/tum-ees/simses at 2769f809,
# src/simses/model/cell/data/CLFP_Sony_US26650_OCV.csv. Licence BSD-3-Clause; Copyright (c)
# 2020-2026, Chair of Electrical Energy Storage Technology, TUM School of Engineering and Design,
# Technical University of Munich.
_LFP_OCV = (
    (0.0, 2.2862), (0.005, 2.6835), (0.01, 2.7833), (0.02, 2.8952), (0.03, 2.9673), (0.05, 3.0647),
    (0.075, 3.1455), (0.1, 3.1967), (0.15, 3.2120), (0.2, 3.2343), (0.25, 3.2547), (0.3, 3.2703),
    (0.4, 3.2921), (0.5, 3.2995), (0.6, 3.3035), (0.65, 3.3063), (0.7, 3.3108), (0.75, 3.3185),
    (0.8, 3.3345), (0.9, 3.3425), (0.97, 3.3463), (0.985, 3.3522), (0.99, 3.3618), (0.995, 3.3963),
    (1.0, 3.5305),
)  # fmt: skip

# NMC: LG INR21700-M50T pseudo-OCV (25 points of its table), github.com/soorajsunil/
# Piecewise-Battery-OCV at 2d7f7823. Licence MIT; Copyright (c) 2024 soorajsunil.
_NMC_OCV = (
    (0.0, 2.5199), (0.005, 2.7291), (0.01, 2.8306), (0.02, 2.9650), (0.03, 3.0520), (0.05, 3.1617),
    (0.075, 3.2396), (0.1, 3.3041), (0.15, 3.4014), (0.2, 3.4754), (0.25, 3.5205), (0.3, 3.5763),
    (0.4, 3.6443), (0.5, 3.7167), (0.6, 3.8174), (0.65, 3.8748), (0.7, 3.9201), (0.75, 3.9650),
    (0.8, 4.0184), (0.9, 4.0919), (0.95, 4.1158), (0.97, 4.1343), (0.98, 4.1477), (0.99, 4.1653),
    (1.0, 4.1943),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chemistry:
    """Constants of a chemistry; resistance and heat scale with the capacity of the cell."""

    ocv: tuple[tuple[float, float], ...]  # (SoC, V), SoC ascending from 0 to 1
    min_voltage: float  # V, hard limit beyond the BMS's own: the inverter stops discharging
    max_voltage: float  # V, hard limit: the inverter stops charging
    balance_voltage: float  # V, cells above are bled while they are ahead
    resistance_ah: float  # ohm Ah at 25 degC, R0 + R1
    activation: float = 15_000.0  # J/mol, Arrhenius; fits SimSES CLFP_Sony Rint at 10/25/40 degC
    time_constant: float = 60.0  # s, R1 C1 at 25 degC
    heat_capacity_ah: float = 24.0  # J/(K Ah): 1000 J/(kg K) at 42 Ah/kg with housing, both typical
    thermal_time: float = 5400.0  # s, R_th C of a cell in its pack


CHEMISTRIES = {
    'lfp': Chemistry(_LFP_OCV, 2.2, 3.80, 3.36, 0.13),
    'nmc': Chemistry(_NMC_OCV, 2.5, 4.30, 4.00, 0.15, heat_capacity_ah=16.0),
}


def ocv_table(chemistry: str) -> Array:
    """OCV (V) on the uniform grid of `GRID` + 1 SoC values from 0 to 1."""
    soc, volts = np.array(CHEMISTRIES[chemistry].ocv).T
    return np.interp(np.linspace(0.0, 1.0, GRID + 1), soc, volts)


def ocv(chemistry: str, soc: float) -> float:
    """Open-circuit voltage (V) of a cell at `soc` (0..1, clamped)."""
    return float(np.interp(soc, np.linspace(0.0, 1.0, GRID + 1), ocv_table(chemistry)))


def resistance_factor(kelvin: Array, soc: Array, activation: Array | float) -> Array:
    """Resistance relative to 25 degC at half charge: Arrhenius, and up to 40 % more when empty."""
    arrhenius = np.exp(activation / GAS_CONSTANT * (1.0 / kelvin - 1.0 / T_REF))
    return arrhenius * (1.0 + 0.4 * np.exp(-soc / 0.1))


def power_to_current(power: float, voltage: float, resistance: float) -> float:
    """Current (A, + = charging) at which a source (V, ohm) takes `power` (W) at its terminals.

    More discharge than the source can give yields the current of its greatest power.
    """
    root = voltage * voltage + 4.0 * resistance * power
    if root <= 0.0:
        return -voltage / (2.0 * resistance)
    return 2.0 * power / (voltage + sqrt(root))
