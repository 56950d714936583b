"""Equalising states of charge: power moved from fuller members to emptier ones, beside what is asked of the whole.

With member energies E_i and full energies F_i (Wh) the common state of charge is s = sum(E) / sum(F); member i is
s * F_i - E_i away from it (positive: it should take). Givers and takers share the moved power in proportion to that
distance, each within what its limits leave beside its share of the demand, so that all arrive together. What is
given equals what is taken: the transfer nets to zero at the terminals of the whole. Losses stay in the members: both
meet the losses of their own conversion, which is why a tolerance ends it. Pure; no state but `Goal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan

import numpy as np

from .allocation import FloatArray, fill
from .member import Member
from .zones import Zone, allowed

ARRIVAL_H = 1 / 60
"""h: near the goal no more flows than reaches it in this time, so that nothing swings over."""

MIN_POWER = 1.0  # W: less is not worth sending
RESTART = 2.0  # tolerances of difference at which standing equalisation starts again


@dataclass(frozen=True, slots=True)
class Goal:
    """A request to equalise. `power` W >= 0, most that may flow; `tolerance` fraction; `until` s of the site clock."""

    power: float
    tolerance: float
    until: float = inf


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """What is moved. `powers` W per member, + = charging, beside its share; sums to zero."""

    powers: FloatArray
    moved: float  # W given, = W taken
    spread: float  # fraction, highest minus lowest state of charge of the members that take part; 0 for fewer than two
    reason: str  # why nothing moves; '' while it does


def problem(power: float, tolerance: float, duration: float) -> str:
    """Why a request cannot be taken; '' when it can."""
    if not 0.0 <= power < inf:
        return f'power is {power} W, allowed: finite, 0 or more'
    if not (isnan(tolerance) or 0.0 <= tolerance < 1.0):
        return f'tolerance is {tolerance}, allowed: 0 up to below 1'
    if power > 0.0 and not 0.0 < duration <= 604800.0:
        return f'duration is {duration} s, allowed: above 0, at most 604800'
    return ''


def equalise(
    goal: Goal, members: Sequence[Member], shares: Sequence[float], *,
    minimum: Sequence[float] | None = None, zones: Sequence[Sequence[Zone]] | None = None,
) -> Transfer:
    """Transfer between members whose shares of the demand are `shares` (W, + = charging).

    Only usable members whose energies are known take part. Every share plus transfer stays within the member's
    limits, its minimum power (W) and outside its zones; where those forbid it nothing moves, and `reason` says so.
    """
    n = len(members)
    nothing = np.zeros(n)
    takes_part = [not m.blocked and m.energy_full > 0 and m.energy >= 0 for m in members]
    energy = np.array([m.energy if t else 0.0 for m, t in zip(members, takes_part, strict=True)])
    full = np.array([m.energy_full if t else 0.0 for m, t in zip(members, takes_part, strict=True)])
    known = full > 0
    if known.sum() < 2:
        return Transfer(nothing, 0.0, 0.0, 'fewer than two members can take part')
    soc = energy[known] / full[known]
    spread = float(soc.max() - soc.min())
    if spread <= goal.tolerance:
        return Transfer(nothing, 0.0, spread, 'equal within the tolerance')
    away = np.where(known, energy.sum() / full.sum() * full - energy, 0.0)
    base = np.asarray(shares, dtype=float)
    up = np.array([m.charge_power for m in members])
    down = np.array([m.discharge_power for m in members])
    take = np.where(away > 0, np.maximum(up - base, 0.0), 0.0)
    give = np.where(away < 0, np.maximum(down + base, 0.0), 0.0)
    distance = float(away[away > 0].sum())  # = what the givers have too much
    power = min(goal.power, distance / ARRIVAL_H)

    def moved(power: float, taking: FloatArray, giving: FloatArray) -> FloatArray:
        power = min(power, float(taking.sum()), float(giving.sum()))
        if power < MIN_POWER:
            return nothing
        into, taken = fill(power, np.where(taking > 0, away, 0.0), taking)
        out, _ = fill(taken, np.where(giving > 0, -away, 0.0), giving)
        return into - out

    result = moved(power, take, give)
    if not result.any():
        side = 'take' if take.sum() < give.sum() else 'give'
        return Transfer(nothing, 0.0, spread, f'no member can {side} anything within its limits')
    if not _fits(base + result, minimum, zones):
        # Among all members the shares may be too small to run: try the two that are farthest apart.
        taking, giving = np.zeros(n), np.zeros(n)
        emptiest, fullest = int(np.argmax(away * (take > 0))), int(np.argmin(away * (give > 0)))
        taking[emptiest], giving[fullest] = take[emptiest], give[fullest]
        result = moved(power, taking, giving)
        if not result.any() or not _fits(base + result, minimum, zones):
            return Transfer(nothing, 0.0, spread, 'minimum powers or exclusion zones of the members forbid it')
    return Transfer(result, float(result[result > 0].sum()), spread, '')


def _fits(powers: FloatArray, minimum: Sequence[float] | None, zones: Sequence[Sequence[Zone]] | None) -> bool:
    low = minimum if minimum is not None else [0.0] * powers.size
    own: Sequence[Sequence[Zone]] = zones if zones is not None else [()] * powers.size
    return all(allowed(p, z, m) for p, z, m in zip(powers.tolist(), own, low, strict=True))
