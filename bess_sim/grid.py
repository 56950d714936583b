"""The grid at the connection point: voltage and frequency with small mean-reverting variations."""

from __future__ import annotations

from math import exp, isnan, nan, sqrt

import numpy as np

from bess_sim.plant_config import GridConfig


class Grid:
    """Frequency (Hz) and phase voltages (V) as Ornstein-Uhlenbeck processes, exact for any step.

    x' = mean + (x - mean) e + sigma sqrt(1 - e^2) n, e = exp(-dt / T), n standard normal
    (Gillespie, Phys. Rev. E 54 (1996) 2084). `frequency_override` and `voltage_override` replace
    them (NaN = none).
    """

    def __init__(self, config: GridConfig, rng: np.random.Generator) -> None:
        self._noise_time, self._impedance = config.noise_time, config.impedance
        self._frequency_noise, self._voltage_noise = config.frequency_noise, config.voltage_noise
        self._mean_frequency, self._mean_voltage = config.frequency, config.voltage
        self._rng = rng
        self._noise: list[float] = []
        self._deviation, self._swing = 0.0, 0.0
        self._dt = self._keep = self._kick = 0.0
        self.frequency_override = self.voltage_override = nan
        self.frequency = config.frequency
        self.voltage = (config.voltage,) * 3

    def step(self, dt: float, phase_power: tuple[float, float, float]) -> None:
        """Advance by `dt` s; an import of `phase_power` (W) lowers the voltage by the impedance."""
        if dt != self._dt:
            self._dt, self._keep = dt, exp(-dt / self._noise_time)
            self._kick = sqrt(1.0 - self._keep**2)
        if len(self._noise) < 2:
            self._noise = self._rng.standard_normal(2048).tolist()
        keep, kick = self._keep, self._kick
        self._deviation = self._deviation * keep + self._frequency_noise * kick * self._noise.pop()
        self._swing = self._swing * keep + self._voltage_noise * kick * self._noise.pop()
        override, mean = self.frequency_override, self._mean_frequency
        self.frequency = mean + self._deviation if isnan(override) else override
        volts = self.voltage_override
        if not isnan(volts):
            self.voltage = (volts, volts, volts)
            return
        volts, drop = self._mean_voltage + self._swing, self._impedance / self._mean_voltage
        a, b, c = phase_power
        self.voltage = (volts - drop * a, volts - drop * b, volts - drop * c)
