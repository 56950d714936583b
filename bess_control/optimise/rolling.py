"""Rolling optimisation over recorded data: plan, do the first step, plan again. Pure; for figures and tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bess_control.optimise import planner

Array = np.ndarray
#: (step, count) -> forecasts of load and pv in W for the steps from there; None = rules instead of a plan.
Foresee = Callable[[int, int], tuple[Array, Array] | None]


@dataclass
class Outcome:
    """What a run cost, and how long its plans took."""

    cost: float
    solve_times: list[float]
    power: Array


def run(problem: planner.Problem, horizon: int, foresee: Foresee, every: int = 1) -> Outcome:
    """Do what each new plan (one per `every` steps) says, with what really happens (`problem`) known only afterwards.

    Where the forecast was wrong the power of the step is corrected as the mode does it: a plan that covers
    the load or takes the surplus goes on doing that.
    """
    n = len(problem.load)
    battery, peak = problem.battery, problem.peak_so_far
    power, times = np.zeros(n), []
    plan, made = None, 0
    for t in range(n):
        count = min(horizon, n - t)
        rest = float(problem.load[t] + problem.pv[t])
        seen = foresee(t, count) if t % every == 0 else None
        if seen is not None:
            load, pv = seen
            part = replace(problem, load=load, pv=pv, buy=problem.buy[t:t + count], sell=problem.sell[t:t + count],
                           battery=battery, peak_so_far=peak,
                           end_value=planner.end_value(problem) if t + count >= n else np.nan)
            started = time.perf_counter()
            plan, made = planner.solve(part), t
            times.append(time.perf_counter() - started)
        elif t % every == 0:
            plan = None
        wanted = -rest if plan is None else carry_out(float(plan.power[t - made]), float(plan.grid[t - made]), rest)
        step = planner.account(replace(problem, load=problem.load[t:t + 1], pv=problem.pv[t:t + 1],
                                       buy=problem.buy[t:t + 1], sell=problem.sell[t:t + 1], battery=battery),
                               np.array([wanted]))
        power[t] = step.power[0]
        battery = replace(battery, soc=float(step.soc[0]))
        peak = max(peak, float(step.grid[0]))
    return Outcome(planner.account(problem, power).cost, times, power)


#: W at the grid connection up to which a plan counts as "covers the load" or "takes the surplus".
NEAR_ZERO = 30.0


def carry_out(planned: float, planned_grid: float, rest: float) -> float:
    """Power (W) for now, from the planned one and what the rest of the site really draws.

    A plan that brings the connection to zero goes on doing so; one that charges or discharges beyond that,
    or leaves a part to the grid, gives its power, but does not turn a discharge for the load into export.
    """
    if abs(planned_grid) <= NEAR_ZERO:
        return -rest
    if planned < -1.0:
        # covers a part of the load: not more than there is, unless the plan exports on purpose
        return planned if planned_grid < 0.0 else -min(-planned, max(rest, 0.0))
    if planned > 1.0 and planned_grid < 0.0:
        # takes a part of the surplus
        return min(planned, max(-rest, 0.0))
    return planned
