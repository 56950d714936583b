"""Optimal use of a battery over a horizon, as a linear programme (HiGHS through scipy). Pure.

Per step t of length h hours: charge c, discharge d (W at the AC terminals, >= 0), import g, export x
(W, >= 0), energy e at its end (Wh):

    g - x = load + pv + c - d
    e_t   = e_(t-1) + eta_c h c - h d / eta_d
    min   sum h (buy g - sell x) + wear sum h d + demand max(g, peak so far) - value e_end

Nothing is ever infeasible: an energy outside of its range at the start, and an import above the limit,
are allowed at a penalty. Where export pays more than import costs, or import costs less than nothing, a
linear programme would import and export (or charge and discharge) at the same time; only in those steps
binary variables forbid it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Array = np.ndarray
SOONER = 1e-6  # currency per Wh by which the end of the horizon is dearer than its beginning
PENALTY = 10.0  # currency per Wh (or W) of a soft limit: far above any price


@dataclass(frozen=True)
class Battery:
    """What the planner knows of the battery."""

    energy_full: float  # Wh
    max_charge: float  # W, AC
    max_discharge: float  # W, AC, magnitude
    soc: float  # 0..1, now
    min_soc: float = 0.1
    max_soc: float = 1.0
    charge_efficiency: float = 0.95  # stored / taken in
    discharge_efficiency: float = 0.95  # given out / taken from store
    wear_per_wh: float = 0.0  # currency per Wh given out


@dataclass(frozen=True)
class Problem:
    """Forecasts and prices, one value per step; powers in W with passive signs, prices per Wh."""

    step_s: float
    load: Array  # >= 0
    pv: Array  # <= 0
    buy: Array
    sell: Array
    battery: Battery
    import_limit: float = np.inf  # W
    export_limit: float = np.inf  # W
    demand_price: float = 0.0  # currency per W of the highest import
    peak_so_far: float = 0.0  # W, of the accounting period
    end_value: float = np.nan  # currency per Wh left at the end; NaN = what it replaces at the mean price


@dataclass
class Plan:
    """The result: arrays per step, costs in currency (energy left at the end credited)."""

    power: Array  # W, + = charging
    soc: Array  # at the end of each step
    grid: Array  # W, + = import
    cost: float
    solve_time: float = np.nan  # s
    source: str = 'optimiser'
    notes: list[str] = field(default_factory=list)


def end_value(p: Problem) -> float:
    """What a Wh left at the end is worth: the mean price that it saves later, after losses and wear."""
    if not np.isnan(p.end_value):
        return p.end_value
    b = p.battery
    worth = float(np.mean(p.buy)) * b.discharge_efficiency - b.wear_per_wh
    floor = float(np.mean(p.sell)) * b.discharge_efficiency - b.wear_per_wh
    # Not more than a refill at the cheapest quarter of the time costs: else it would buy to keep.
    refill = float(np.quantile(p.buy, 0.25)) / b.charge_efficiency
    return max(min(worth, refill), floor, 0.0)


def solve(p: Problem, time_limit_s: float = 10.0) -> Plan:
    """The cheapest plan. Raises ValueError for input that is no problem, RuntimeError when the solver fails."""
    started = time.perf_counter()
    b, n = p.battery, len(p.load)
    _check(p)
    h = p.step_s / 3600.0
    awkward = np.flatnonzero((p.sell >= p.buy) | (p.buy < 0.0) | (p.sell < 0.0))
    m = len(awkward)
    # Columns: c d g x e | low slack, import slack (n each) | peak | binaries of awkward steps (charge, import)
    count = 7 * n + 1 + 2 * m
    c, d, g, x, e, low, over = (slice(i * n, (i + 1) * n) for i in range(7))
    peak = 7 * n
    eye = sparse.identity(n, format='csr')
    cost = np.zeros(count)
    cost[g], cost[x] = h * p.buy, -h * p.sell
    cost[d] = h * b.wear_per_wh
    # A hair's breadth: of equal plans the one that acts early. What is taken now is certain, what a forecast
    # promises for later is not.
    early = SOONER * np.arange(n) / n
    cost[c] += h * (1e-9 + early)
    cost[d] += h * early
    cost[low], cost[over] = PENALTY, PENALTY * h
    cost[peak] = p.demand_price
    cost[e.stop - 1] -= end_value(p)

    def rows(**blocks: sparse.spmatrix) -> sparse.csr_matrix:
        named = {'c': c, 'd': d, 'g': g, 'x': x, 'e': e, 'low': low, 'over': over}
        size = next(iter(blocks.values())).shape[0]
        parts = [blocks.get(name, sparse.csr_matrix((size, n))) for name in named]
        return sparse.hstack([*parts, sparse.csr_matrix((size, count - 7 * n))], format='csr')

    start = b.soc * b.energy_full
    shift = sparse.diags([np.ones(n), -np.ones(n - 1)], [0, -1], format='csr') if n > 1 else eye
    first = np.zeros(n)
    first[0] = start
    constraints = [
        LinearConstraint(rows(g=eye, x=-eye, c=-eye, d=eye), p.load + p.pv, p.load + p.pv),
        LinearConstraint(rows(e=shift, c=-b.charge_efficiency * h * eye, d=h / b.discharge_efficiency * eye),
                         first, first),
        LinearConstraint(rows(e=eye, low=eye), b.min_soc * b.energy_full, np.inf),
    ]
    if np.isfinite(p.import_limit):
        constraints.append(LinearConstraint(rows(g=eye, over=-eye), -np.inf, p.import_limit))
    if p.demand_price > 0.0:
        a = rows(g=eye).tolil()
        a[:, peak] = -1.0
        constraints.append(LinearConstraint(a.tocsr(), -np.inf, 0.0))
    upper = np.full(count, np.inf)
    upper[c], upper[d] = b.max_charge, b.max_discharge
    upper[x] = p.export_limit if np.isfinite(p.export_limit) else np.inf
    # More than the plant can give off may have to be exported all the same.
    upper[x] = np.maximum(upper[x], np.maximum(-(p.load + p.pv), 0.0))
    upper[e] = max(b.max_soc * b.energy_full, start)
    lower = np.zeros(count)
    lower[peak] = p.peak_so_far
    integrality = np.zeros(count)
    if m:
        most = float(np.max(p.load - p.pv) + b.max_charge + b.max_discharge) + 1.0
        charging, importing = 7 * n + 1 + np.arange(m), 7 * n + 1 + m + np.arange(m)
        upper[charging] = upper[importing] = 1.0
        integrality[charging] = integrality[importing] = 1
        for column, size, switch, on in ((c, b.max_charge, charging, True), (d, b.max_discharge, charging, False),
                                         (g, most, importing, True), (x, most, importing, False)):
            a = sparse.lil_matrix((m, count))
            a[np.arange(m), column.start + awkward] = 1.0
            a[np.arange(m), switch] = -size if on else size
            constraints.append(LinearConstraint(a.tocsr(), -np.inf, 0.0 if on else size))
    result = milp(cost, constraints=constraints, bounds=Bounds(lower, upper), integrality=integrality,
                  options={'time_limit': time_limit_s, 'mip_rel_gap': 1e-4})
    if result.x is None:
        raise RuntimeError(f'the solver found no plan: {result.message}')
    v = result.x
    power = v[c] - v[d]
    plan = account(p, power)
    plan.solve_time = time.perf_counter() - started
    if result.status == 1:
        plan.notes.append(f'best plan within {time_limit_s:g} s')
    return plan


def _check(p: Problem) -> None:
    n = len(p.load)
    if n < 1 or not all(len(a) == n for a in (p.pv, p.buy, p.sell)):
        raise ValueError('forecasts and prices differ in length, or are empty')
    for name in ('load', 'pv', 'buy', 'sell'):
        if not np.all(np.isfinite(getattr(p, name))):
            raise ValueError(f'{name} has values that are not finite')
    b = p.battery
    if not (np.isfinite(b.soc) and np.isfinite(b.energy_full) and b.energy_full > 0.0):
        raise ValueError('state of charge or energy of the battery is unknown')
    if not (b.max_charge >= 0.0 and b.max_discharge >= 0.0 and p.step_s > 0.0):
        raise ValueError('power limits or step make no sense')


def account(p: Problem, power: Array, source: str = 'optimiser') -> Plan:
    """What a sequence of powers (W, + = charging) does and costs; powers that the energy does not bear are cut."""
    b, h = p.battery, p.step_s / 3600.0
    energy, least, most = b.soc * b.energy_full, b.min_soc * b.energy_full, b.max_soc * b.energy_full
    done, soc = np.empty(len(power)), np.empty(len(power))
    for t, wanted in enumerate(power):
        if wanted >= 0.0:
            real = min(wanted, b.max_charge, max(most - energy, 0.0) / (b.charge_efficiency * h))
            energy += b.charge_efficiency * h * real
        else:
            real = -min(-wanted, b.max_discharge, max(energy - least, 0.0) * b.discharge_efficiency / h)
            energy += h * real / b.discharge_efficiency
        done[t], soc[t] = real, energy / b.energy_full
    grid = p.load + p.pv + done
    cost = float(np.sum(h * np.where(grid > 0.0, p.buy * grid, p.sell * grid)))
    cost += b.wear_per_wh * h * float(np.sum(np.maximum(-done, 0.0)))
    cost += p.demand_price * max(p.peak_so_far, float(np.max(grid, initial=0.0)))
    cost -= end_value(p) * energy
    return Plan(done, soc, grid, cost, source=source)


def rules(p: Problem) -> Plan:
    """Plain self-consumption: what the plan is measured against, and what holds when there is none."""
    return account(p, -(p.load + p.pv), source='rules')


def idle(p: Problem) -> Plan:
    """The battery at rest."""
    return account(p, np.zeros(len(p.load)), source='idle')
