"""The cost optimiser on measured house data and its two-level tariff: solve time, and share of the optimum."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bess_control.optimise import planner, rolling
from bess_control.optimise.forecast import Forecaster

from .figures import Figure

STEP_S = 900.0
HORIZON = 192  # steps: 48 h
DATA = Path(os.environ.get('BESS_SHARED') or Path(__file__).resolve().parents[2] / 'shared') / 'data' / 'load_pv'
FILE = 'emhass_home_pv_load_30min.csv'


def house(battery: planner.Battery | None = None) -> planner.Problem:
    """Eight days of a house with PV; 30 min values held over two steps each. Raises OSError without the data."""
    with (DATA / FILE).open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file))

    def column(name: str, scale: float = 1.0) -> np.ndarray:
        return np.repeat([float(r[name]) * scale for r in rows], 2)

    return planner.Problem(
        STEP_S, column('P_Load'), -column('P_PV'), column('unit_load_cost', 1e-3), column('unit_prod_price', 1e-3),
        battery or planner.Battery(5000.0, 2500.0, 2500.0, 0.5))


def forecasts(problem: planner.Problem) -> rolling.Foresee:
    """What the forecasters know at each step; rules while they know nothing."""
    load, pv = Forecaster(STEP_S, low=0.0), Forecaster(STEP_S, high=0.0)
    fed = 0

    def foresee(t: int, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        nonlocal fed
        for i in range(fed, t):
            for f, values in ((load, problem.load), (pv, problem.pv)):
                f.add(STEP_S * i, float(values[i]), STEP_S)
        fed = max(fed, t)
        for f, values in ((load, problem.load), (pv, problem.pv)):
            f.add(STEP_S * t, float(values[t]), 0.0)  # closes the step before
        try:
            return load.predict(t, count)[0], pv.predict(t, count)[0]
        except ValueError:
            return None

    return foresee


def measure(every: int = 4) -> list[Figure]:
    """Solve time of 48 h, and savings against a battery at rest as shares of what was possible."""
    problem = house()
    part = replace(problem, load=problem.load[:HORIZON], pv=problem.pv[:HORIZON], buy=problem.buy[:HORIZON],
                   sell=problem.sell[:HORIZON])
    times = []
    for _ in range(7):
        started = time.perf_counter()
        planner.solve(part)
        times.append(time.perf_counter() - started)
    idle, rules = planner.idle(problem).cost, planner.rules(problem).cost
    possible = idle - planner.solve(problem).cost
    perfect = rolling.run(problem, HORIZON, lambda t, n: (problem.load[t:t + n], problem.pv[t:t + n]), every)
    real = rolling.run(problem, HORIZON, forecasts(problem), every)
    return [
        Figure('optimiser, 48 h at 15 min: solve time, median', sorted(times)[3], 's', 1.0),
        Figure('optimiser, rolling with perfect forecasts: saving missed', 100 * (1 - (idle - perfect.cost) / possible),
               '% of the optimum', 5.0),
        Figure('optimiser, rolling with its own forecasts: saving missed', 100 * (1 - (idle - real.cost) / possible),
               '% of the optimum'),
        Figure('plain self-consumption: saving missed', 100 * (1 - (idle - rules) / possible), '% of the optimum'),
    ]
