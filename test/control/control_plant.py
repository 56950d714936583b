"""A small site for closed-loop tests: load, battery with lag and dead time, meter with delay."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp

from bess_core.values import BatteryReading, MeterReading, Mode, Quality


class Delay:
    """A value as it was `delay_s` ago."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._line: deque[tuple[float, float]] = deque()

    def __call__(self, value: float, now: float) -> float:
        self._line.append((now, value))
        while len(self._line) > 1 and self._line[1][0] <= now - self._delay_s + 1e-9:
            self._line.popleft()
        return self._line[0][1]


@dataclass
class Plant:
    """Integrated in steps of `dt`; stamps are those of a driver that does not know its delays."""

    meter_delay_s: float = 0.3
    lag_s: float = 0.3
    dead_time_s: float = 0.0  # order to converter
    battery_delay_s: float = 0.0
    honest_stamps: bool = False  # True: stamps tell when it was measured
    follow: float = 1.0  # share of the order that the converter really gives
    offset: float = 0.0  # W on top
    noise: float = 0.0  # W, standard deviation of both measurements
    dt: float = 0.02
    load: Callable[[float], float] = field(default=lambda t: 0.0)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.power = 0.0
        self.grid = 0.0
        self.sequence = 0
        self._order = Delay(self.dead_time_s)
        self._meter = Delay(self.meter_delay_s)
        self._battery = Delay(self.battery_delay_s)
        self._rng = random.Random(7)

    def run(self, order: float, seconds: float) -> list[tuple[float, float, float]]:
        """Hold an order; returns (time, battery W, grid W) of every step."""
        rows = []
        for _ in range(round(seconds / self.dt)):
            self.now += self.dt
            target = self.follow * self._order(order, self.now) + self.offset
            self.power += (1.0 - exp(-self.dt / self.lag_s)) * (target - self.power)
            self.grid = self.load(self.now) + self.power
            self._seen_grid = self._meter(self.grid, self.now)
            self._seen_power = self._battery(self.power, self.now)
            rows.append((self.now, self.power, self.grid))
        return rows

    def meter(self) -> MeterReading:
        self.sequence += 1
        noise = self._rng.gauss(0.0, self.noise) if self.noise else 0.0
        age = self.meter_delay_s if self.honest_stamps else 0.0
        return MeterReading(time=self.now - age, sequence=self.sequence, quality=Quality.OK,
                            active_power=self._seen_grid + noise)

    def battery(self) -> BatteryReading:
        noise = self._rng.gauss(0.0, self.noise) if self.noise else 0.0
        age = self.battery_delay_s if self.honest_stamps else 0.0
        return BatteryReading(
            time=self.now - age, newest=self.now - age, quality=Quality.OK, mode=Mode.IDLE,
            power=self._seen_power + noise, voltage=51.2, soc=0.5,
            max_charge_power=5000.0, max_discharge_power=5000.0)
