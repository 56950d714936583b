"""Self-consumption in closed loop: a 5 kW step, and a day of measured house data, with 300 ms meter lag."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import exp

import numpy as np

from bess_control.bounds import PowerManagerParams
from bess_control.manager import PowerManager
from bess_control.modes.self_consumption import SelfConsumption, SelfConsumptionParams
from bess_control.proposals import ProposalBook
from bess_core.values import BatteryReading, Contactor, MeterReading, Quality
from bess_core.values import Mode as BatteryMode

from .figures import Figure
from .optimiser import house

TICK_S, LAG_S, CONVERTER_S, FOLLOW = 0.1, 0.3, 0.3, 0.97  # the converter gives 3 % less than it is told
LIMIT_W = 6000.0


def close_loop(load: Callable[[float], float], seconds: float) -> np.ndarray:
    """Rows of (time, battery W, grid W) every 0.1 s: real mode, book and manager; meter and converter with lag."""
    mode = SelfConsumption(SelfConsumptionParams(), battery='b')
    manager = PowerManager(PowerManagerParams(battery='b', tick_s=TICK_S, ramp_rate=1e12))
    book, late = ProposalBook(), deque([0.0] * round(LAG_S / TICK_S))
    granted = power = 0.0
    rows = np.empty((round(seconds / TICK_S), 3))
    share = 1.0 - exp(-TICK_S / CONVERTER_S)
    for k in range(len(rows)):
        now = TICK_S * (k + 1)
        power += share * (FOLLOW * granted - power)
        grid = load(now) + power
        rows[k] = now, power, grid
        late.append(grid)
        meter = MeterReading(time=now, sequence=k + 1, quality=Quality.OK, active_power=late.popleft())
        battery = BatteryReading(
            time=now, newest=now, quality=Quality.OK, mode=BatteryMode.IDLE, contactor=Contactor.CLOSED, power=power,
            soc=0.5, max_charge_power=LIMIT_W, max_discharge_power=LIMIT_W)
        proposal = mode.step(meter, battery, granted, now)
        if proposal is not None:
            book.put(proposal, now)
        granted = manager.tick(now, book, battery, meter).granted
    return rows


def measure(hours: float = 6.0) -> list[Figure]:
    """Overshoot (% of the step), settling to 2 % of it, and the share of time within 100 W on measured data."""
    step = close_loop(lambda t: 200.0 if t < 20.0 else 5200.0, 60.0)
    after = step[step[:, 0] > 20.0]
    overshoot = max(0.0, float(np.max(-after[:, 1])) - 5200.0) / 5000.0
    outside = after[np.abs(after[:, 2]) > 0.02 * 5000.0]
    settled = float(outside[-1, 0]) - 20.0 if len(outside) else 0.0
    problem = house()
    rest = problem.load + problem.pv
    begin = 4 * 8 + 96  # morning of the first full day: sun and load
    rng = np.random.default_rng(5)
    count = int(hours * 3600.0 / TICK_S) + 10
    # The data has one mean per 30 min: seconds of real houses are put back as steps of devices and noise.
    steps, level = np.zeros(count), 0.0
    for k in range(count):
        if rng.random() < TICK_S / 120.0:  # a device every two minutes
            level = float(rng.choice([0.0, 0.0, 300.0, 900.0, 2000.0]))
        steps[k] = level
    noise = rng.normal(0.0, 10.0, count)
    grid_steps = np.arange(len(rest)) * 900.0

    def load(t: float) -> float:
        k = int(t / TICK_S)
        return float(np.interp(t + 900.0 * begin, grid_steps, rest)) + float(steps[k]) + float(noise[k])

    rows = close_loop(load, hours * 3600.0)
    free = np.abs(rows[:, 1]) < FOLLOW * LIMIT_W - 50.0
    within = float(np.mean(np.abs(rows[free, 2]) <= 100.0))
    return [
        Figure('self-consumption, 5 kW step with 300 ms meter lag: overshoot', 100.0 * overshoot, '%', 5.0),
        Figure('self-consumption, 5 kW step with 300 ms meter lag: settling to 2 %', settled, 's', 3.0),
        Figure('self-consumption on house data: time outside of +-100 W', 100.0 * (1.0 - within), '%', 5.0),
    ]
