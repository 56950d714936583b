"""Allocation over members that must not run at every power: exclusion zones.

A zone is an open interval of powers a member must stay out of, e.g. a resonance or an efficiency hole;
a minimum power is the two zones from zero to it. What is left of a member's range are bands. Choosing one
band per member is a knapsack problem: exact up to `EXACT_CHOICES` combinations, beyond that a good heuristic.
Pure; no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import inf, isfinite, isnan, prod
from typing import Any

import numpy as np

from .allocation import LIGHTEST, Allocation, FloatArray, allocate, fill_between, shortfall

EXACT_CHOICES = 4096
STAY = 0.25  # W/W: how much nearer another band must be before a member leaves the one it runs in

Zone = tuple[float, float]
Band = tuple[float, float]


def zones_of(name: str, value: Any) -> list[Zone]:
    """Zones of one member from the site file: a list of [low, high] in W, + = charging, low < high.

    Zero must be allowed, because a member must be able to stop. Raises ValueError with the reason."""
    zones: list[Zone] = []
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'exclusion_zones.{name}: {value!r} is not a list of [low, high] in W')
    for zone in value:
        try:
            low, high = (float(edge) for edge in zone)
        except (TypeError, ValueError):
            raise ValueError(f'exclusion_zones.{name}: {zone!r} is not [low, high] in W') from None
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f'exclusion_zones.{name}: {zone!r}: low must be below high, both finite')
        if low < 0.0 < high:
            raise ValueError(f'exclusion_zones.{name}: {zone!r} contains 0 W; a member must be able to stop')
        zones.append((low, high))
    merged: list[Zone] = []
    for low, high in sorted(zones):
        # One power between two zones is no place to run at: zones that touch are one; except at zero.
        if merged and low <= merged[-1][1] and low != 0.0:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def parse(zones: Mapping[str, Any], members: Sequence[str]) -> dict[str, list[Zone]]:
    """Zones of all members. Raises ValueError for one that is no member or not written as it must be."""
    for name in zones:
        if name not in members:
            raise ValueError(f'exclusion_zones: {name!r} is not a member; members: {", ".join(members)}')
    return {name: zones_of(name, value) for name, value in zones.items()}


def bands(zones: Sequence[Zone], minimum: float, charging: bool, cap: float) -> list[Band]:
    """Allowed magnitudes in W of one member in one direction, ascending, [0, 0] or a band from 0 first."""
    cuts = [(z if charging else (-z[1], -z[0])) for z in zones]
    cuts = sorted((max(low, 0.0), high) for low, high in cuts if high > 0.0)
    if minimum > 0.0:
        cuts = sorted([(0.0, minimum), *cuts])
    found: list[Band] = []
    start = 0.0
    for low, high in cuts:
        if low >= start and start <= cap:
            found.append((start, min(low, cap)))
        start = max(start, high)
    if start <= cap:
        found.append((start, cap))
    return found


def allowed(power: float, zones: Sequence[Zone], minimum: float = 0.0) -> bool:
    """Whether a member may run at `power` (W, + = charging)."""
    if power == 0.0:
        return True
    return abs(power) >= minimum and not any(low < power < high for low, high in zones)


def allocate_in_bands(
    power: float, weight_charge: Sequence[float], weight_discharge: Sequence[float], low: Sequence[float],
    high: Sequence[float], zones: Sequence[Sequence[Zone]], *, minimum: Sequence[float] | None = None,
    present: Sequence[float] | None = None,
) -> Allocation:
    """As `allocation.allocate`, with `zones` (W, + = charging) per member and optional minimum powers (W).

    Carries the most of the request that the bands allow, never more than asked; among the choices that do,
    the one nearest to the proportional split; a member whose `present` power (W) lies in a band leaves it
    only for a clearly nearer one. Members in the same band share in proportion, equal ones equally.
    """
    plain = allocate(power, weight_charge, weight_discharge, low, high)
    charging = power >= 0
    sign = 1.0 if charging else -1.0
    ideal = np.abs(plain.powers)
    weights = list(weight_charge if charging else weight_discharge)
    limits = [c * sign for c in (high if charging else low)]
    n = len(weights)
    minima = list(minimum) if minimum is not None else [0.0] * n
    if all(allowed(p, z, m) for p, z, m in zip(plain.powers.tolist(), zones, minima, strict=True)):
        return plain
    asked = min(abs(power), sum(c for c in limits if c > 0))
    options: list[list[Band]] = []
    for w, cap, z, m in zip(weights, limits, zones, minima, strict=True):
        able = w > 0 and cap > 0  # false for NaN
        options.append(bands(z, m, charging, min(cap, asked)) if able else [(0.0, 0.0)])
    here = [abs(p) if p * sign > 0 else 0.0 for p in present] if present is not None else None
    costs = [[_distance(float(s), band, here[i] if here is not None else None) for band in choices]
             for i, (s, choices) in enumerate(zip(ideal, options, strict=True))]
    if prod(len(o) for o in options) <= EXACT_CHOICES:
        chosen = _exact(asked, options, costs)
    else:
        chosen = _greedy(asked, options, costs)
    floors = np.array([options[i][k][0] for i, k in enumerate(chosen)])
    caps = np.array([options[i][k][1] for i, k in enumerate(chosen)])
    granted = min(asked, float(caps.sum()))
    safe = np.array([w if w > 0 else 0.0 for w in weights])
    if safe.size and safe.max() > 0:
        safe = np.where(safe > 0, np.fmax(safe / safe.max(), LIGHTEST), 0.0)
    powers = floors.copy()
    moving = (caps > floors) & (safe > 0)
    rest = granted - float(floors[~moving].sum())
    if moving.any():
        powers[moving] = _between(rest, safe[moving], floors[moving], caps[moving])
    granted = abs(power) if granted == abs(power) else float(powers.sum())
    residual = abs(power) - granted
    reason = '' if residual == 0 else (
        shortfall(power, granted, sum(c for w, c in zip(weights, limits, strict=True) if w > 0 and c > 0)))
    return Allocation(powers * sign + 0.0, granted * sign + 0.0, residual * sign + 0.0, reason)


def _between(power: float, weights: FloatArray, floors: FloatArray, caps: FloatArray) -> FloatArray:
    if power <= float(floors.sum()):
        return floors.copy()
    if power >= float(caps.sum()):
        return caps.copy()
    return fill_between(power, weights, floors, caps)


def _distance(share: float, band: Band, present: float | None) -> float:
    low, high = band
    away = low - share if share < low else share - high if share > high else 0.0
    if present is not None and not isnan(present) and low <= present <= high:
        away *= 1.0 - STAY
    return away


def _exact(power: float, options: Sequence[Sequence[Band]], costs: Sequence[Sequence[float]]) -> list[int]:
    """The choice that carries the most, then the nearest to proportional."""
    choices = np.array(list(product(*(range(len(o)) for o in options))), dtype=np.intp)
    floors, caps, cost = (np.zeros(len(choices)) for _ in range(3))
    for i, (own, price) in enumerate(zip(options, costs, strict=True)):
        table = np.array(own)
        floors += table[choices[:, i], 0]
        caps += table[choices[:, i], 1]
        cost += np.array(price)[choices[:, i]]
    # 1e-12: a sum that equals the request must not fail by rounding
    carried = np.where(floors <= power * (1 + 1e-12), np.minimum(caps, power), -1.0)
    cost = np.where(carried >= carried.max() * (1 - 1e-12), cost, inf)
    return [int(k) for k in choices[int(cost.argmin())]]


def _greedy(power: float, options: Sequence[Sequence[Band]], costs: Sequence[Sequence[float]]) -> list[int]:
    """Nearest bands first; then the cheapest steps down until the floors fit, and up while something is missing."""
    chosen = [min(range(len(o)), key=costs[i].__getitem__) for i, o in enumerate(options)]
    floor = sum(options[i][k][0] for i, k in enumerate(chosen))
    cap = sum(options[i][k][1] for i, k in enumerate(chosen))

    def step(i: int, k: int) -> None:
        nonlocal floor, cap
        floor += options[i][k][0] - options[i][chosen[i]][0]
        cap += options[i][k][1] - options[i][chosen[i]][1]
        chosen[i] = k

    while floor > power * (1 + 1e-12):
        down = [i for i, k in enumerate(chosen) if k > 0]
        if not down:
            break
        best = min(down, key=lambda i: costs[i][chosen[i] - 1] - costs[i][chosen[i]])
        step(best, chosen[best] - 1)
    for _ in range(sum(len(o) for o in options)):
        if cap >= power:
            break
        up = [i for i, k in enumerate(chosen) if k + 1 < len(options[i])
              and floor + options[i][k + 1][0] - options[i][k][0] <= power * (1 + 1e-12)]
        if not up:
            break
        best = min(up, key=lambda i: costs[i][chosen[i] + 1] - costs[i][chosen[i]])
        step(best, chosen[best] + 1)
    return chosen
