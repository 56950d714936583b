"""The chain of limits, for many batteries (or scenarios) at once. Pure.

Each stage sees what the one before left and may only lower it, so the order is also the order in which the reasons
are read. All arrays are [2, n]: row 0 charging, row 1 discharging, as magnitudes in W at the power terminals.

| stage | what it does |
| --- | --- |
| hardware | limit that the battery (BMS, converter) reports; unknown = 0; old readings: what flows at most, then 0 |
| software | grid code, connection: configured powers |
| SoC | floor and ceiling with hysteresis, and curves when switched on |
| cell voltage | curve over the highest (charging) and the lowest cell (discharging) |
| temperature | curve over the coldest and the hottest sensor, the lower result counts |
| current | greatest current times present voltage |
| ramp | allowed power rises at most by the ramp, slower near a curve's limit; falls never wait |
| apparent power | sqrt(S^2 - Q^2) of the reactive power that is asked |

Stages with curves recover with hold and slope: what fell stays for `recovery_hold`, then rises by `recovery_slope`, so
that a cell that relaxes as soon as the current is gone does not make the power swing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from .curves import Array, Curve
from .params import LimiterParams

STAGES = ('hardware', 'software', 'SoC', 'cell voltage', 'temperature', 'current', 'ramp', 'apparent power')
CHARGE, DISCHARGE = 0, 1
BINDS = 1e-6  # share by which a stage must lower the power to be named


@dataclass(slots=True)
class Inputs:
    """What is known of n batteries. NaN = not measured. Arrays of [n]."""

    time: Array  # s, when the oldest value was measured; -inf = never
    max_charge_power: Array  # W, of BMS and converter
    max_discharge_power: Array  # W
    power: Array  # W, + = charging
    voltage: Array  # V, pack
    soc: Array  # 0..1
    cell_min: Array  # V
    cell_max: Array  # V
    temperature_min: Array  # degC
    temperature_max: Array  # degC
    reactive: Array  # var, that is asked


@dataclass(slots=True)
class Limited:
    """Result: `allowed` [2, n] W; `after` [stages, 2, n] what each stage left."""

    allowed: Array
    after: Array

    def binding(self, index: int = 0) -> tuple[list[str], list[str]]:
        """Names of the stages that lowered the limit of one battery, in order: (charging, discharging)."""
        out: tuple[list[str], list[str]] = ([], [])
        for row in (CHARGE, DISCHARGE):
            before = np.inf
            for name, value in zip(STAGES, self.after[:, row, index], strict=True):
                if value < before - BINDS * max(1.0, value) and (name != 'hardware' or value < np.inf):
                    out[row].append(name)
                before = value
        return out


class _Recovery:
    """Falls at once; rises after a hold, by a slope. Fractions of the rated power, [2, n]."""

    def __init__(self, p: LimiterParams, n: int) -> None:
        self._p = p
        self.value = np.ones((2, n))
        self._since = np.full((2, n), -np.inf)  # when it fell last
        self._first = True

    def __call__(self, target: Array, now: float, dt: float) -> Array:
        p = self._p
        if self._first:
            self._first = False
            self.value = target.copy()
            self._since = np.where(target < 1.0, now, self._since)
            return self.value
        falls = target < self.value
        # Out of zero only when it is worth it; else it would flap around the end of the curve.
        stays = (self.value <= 0.0) & (target < p.restart_fraction)
        self._since = np.where(falls | stays, now, self._since)
        risen = np.minimum(target, self.value + p.recovery_slope * dt)
        free = now - self._since >= p.recovery_hold
        self.value = np.where(falls, target, np.where(free & ~stays, risen, self.value))
        return self.value


class Chain:
    """The limits of `n` batteries with the same parameters. `now` is the site clock in s."""

    def __init__(self, params: LimiterParams, n: int = 1) -> None:
        self.params = p = params
        self.n = n
        self._rated = np.array([[p.rated_charge_power], [p.rated_discharge_power]]) * np.ones((1, n))
        self._software = np.array([[p.software_charge_power], [p.software_discharge_power]])
        self._amps = np.minimum(np.array([[p.max_charge_current], [p.max_discharge_current]]), 1e15)
        self._soc = _pair(p, 'soc') if p.soc_curves else None
        self._volt = _pair(p, '{}_voltage') if p.cell_voltage else None
        self._temp = _pair(p, '{}_temperature') if p.temperature else None
        self._soc_recovery, self._volt_recovery, self._temp_recovery = (_Recovery(p, n) for _ in range(3))
        self._full: NDArray[np.bool_] = np.zeros(n, dtype=bool)
        self._empty: NDArray[np.bool_] = np.zeros(n, dtype=bool)
        self._ramp: Array | None = None
        self._last = nan

    def __call__(self, x: Inputs, now: float) -> Limited:
        """Limits now."""
        p = self.params
        dt = max(now - self._last, 0.0) if now == now and self._last == self._last else 0.0
        self._last = now
        after = np.empty((len(STAGES), 2, self.n))
        flows = np.stack((np.maximum(x.power, 0.0), np.maximum(-x.power, 0.0)))
        known = np.nan_to_num(np.stack((x.max_charge_power, x.max_discharge_power)), nan=0.0, posinf=np.inf)
        age = now - x.time
        hardware = np.where(age > p.data_max_age, np.fmin(known, np.nan_to_num(flows)), known)
        hardware = np.maximum(np.where(age <= p.data_invalid_after, hardware, 0.0), 0.0)
        after[0] = hardware
        after[1] = np.minimum(after[0], self._software)
        soc = self._soc_fraction(x.soc, now, dt)
        after[2] = np.minimum(after[1], np.where(soc >= 1.0, np.inf, soc * self._rated))
        volt = self._voltage_fraction(x, now, dt)
        after[3] = np.minimum(after[2], np.where(volt >= 1.0, np.inf, volt * self._rated))
        temp = self._temperature_fraction(x, now, dt)
        after[4] = np.minimum(after[3], np.where(temp >= 1.0, np.inf, temp * self._rated))
        amps = self._amps * np.nan_to_num(np.maximum(x.voltage, 0.0), posinf=0.0)
        amps = np.where(self._amps < 1e15, amps, np.inf)
        after[5] = np.minimum(after[4], amps)
        after[6] = self._ramped(after[5], np.minimum(np.minimum(soc, volt), temp), flows, dt)
        after[7] = np.minimum(after[6], self._apparent(x.reactive))
        return Limited(after[7].copy(), after)

    def _soc_fraction(self, soc: Array, now: float, dt: float) -> Array:
        p = self.params
        usable = (soc >= 0.0) & (soc <= 1.0)
        bounded = p.soc_min > 0.0 or p.soc_max < 1.0 or self._soc is not None
        if not bounded:
            return np.ones((2, self.n))
        self._full = (soc >= p.soc_max) | (self._full & ~(soc < p.soc_max - p.soc_hysteresis))
        self._empty = (soc <= p.soc_min) | (self._empty & ~(soc > p.soc_min + p.soc_hysteresis))
        fraction = np.ones((2, self.n))
        if self._soc is not None:
            value = np.where(usable, soc, np.nan)
            fraction = self._soc_recovery(np.stack((self._soc[0](value), self._soc[1](value))), now, dt).copy()
        fraction[CHARGE][self._full & (p.soc_max < 1.0)] = 0.0
        fraction[DISCHARGE][self._empty & (p.soc_min > 0.0)] = 0.0
        fraction[:, ~usable] = 0.0
        return fraction

    def _voltage_fraction(self, x: Inputs, now: float, dt: float) -> Array:
        if self._volt is None:
            return np.ones((2, self.n))
        low, high = self.params.plausible_cell
        top, bottom = _plausible(x.cell_max, low, high), _plausible(x.cell_min, low, high)
        top, bottom = self._at_25(top, x.temperature_min), self._at_25(bottom, x.temperature_max)
        return self._volt_recovery(np.stack((self._volt[0](top), self._volt[1](bottom))), now, dt)

    def _at_25(self, volts: Array, temperature: Array) -> Array:
        """The voltage that a cell of this temperature (degC) would have at 25 degC; as measured while it is unknown.

        Each end takes the sensor that leaves the tighter limit where they differ (for a coefficient above 0): cold
        raises a high cell, heat lowers a low one.
        """
        k = self.params.voltage_temperature_coefficient
        if k == 0.0:
            return volts
        known = _plausible(temperature, *self.params.plausible_temperature)
        return volts - k * np.nan_to_num(known - 25.0, nan=0.0)

    def _temperature_fraction(self, x: Inputs, now: float, dt: float) -> Array:
        if self._temp is None:
            return np.ones((2, self.n))
        low, high = self.params.plausible_temperature
        hot, cold = _plausible(x.temperature_max, low, high), _plausible(x.temperature_min, low, high)
        charge, discharge = self._temp
        target = np.stack((np.minimum(charge(cold), charge(hot)), np.minimum(discharge(cold), discharge(hot))))
        return self._temp_recovery(target, now, dt)

    def _ramped(self, target: Array, fraction: Array, flows: Array, dt: float) -> Array:
        p = self.params
        if p.ramp_rate == np.inf:
            return target
        if self._ramp is None:  # begins at what flows
            self._ramp = np.minimum(target, np.nan_to_num(flows))
            return self._ramp
        rate = p.ramp_rate * np.maximum(fraction, p.ramp_floor)
        self._ramp = np.minimum(target, self._ramp + rate * dt)
        return self._ramp

    def _apparent(self, reactive: Array) -> Array:
        s = self.params.max_apparent_power
        if s == np.inf:
            return np.full(self.n, np.inf)
        q = np.minimum(np.abs(np.nan_to_num(reactive)), s)
        return np.sqrt(np.maximum(s * s - q * q, 0.0))


def _pair(p: LimiterParams, name: str) -> tuple[Curve, Curve]:
    if '{}' in name:
        return p.curve(name.format('charge')), p.curve(name.format('discharge'))
    return p.curve(f'{name}_charge'), p.curve(f'{name}_discharge')


def _plausible(value: Array, low: float, high: float) -> Array:
    return np.where((value >= low) & (value <= high), value, np.nan)
