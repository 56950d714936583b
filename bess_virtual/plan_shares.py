"""How the plan of an aggregate falls on its members. Pure.

As `aggregate.split` does every tick: by remaining energy when discharging, by headroom when charging. Over a
plan the energies move, so they are followed from request to request; each member gets a plan of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan, nan

import numpy as np

from bess_core.values import BatteryReading

from .allocation import allocate
from .member import Member, view
from .plan import EMPTY, MANY, WITH_ROUNDING, Plan, alike, portion, scaled, tightened

NEAR_END = 1e-6  # part of the whole energy from which on members near an end are followed one by one


class Highest:
    """Highest limits (W, magnitudes) that a battery has shown: what it may be able to do later, when it is not
    full, empty or cold any more."""

    __slots__ = ('charge', 'discharge')

    def __init__(self) -> None:
        self.charge = self.discharge = 0.0

    def see(self, charge: float, discharge: float) -> None:
        """Limits of now; NaN is ignored."""
        self.charge = max(self.charge, charge)
        self.discharge = max(self.discharge, discharge)


def share_plan(plan: Plan, readings: Sequence[BatteryReading], now: float, wall: float, max_age: float,
               invalid_after: float, *, highest: Sequence[Highest] | None = None,
               minimum: Sequence[float] | None = None) -> list[Plan]:
    """Plans of the members, in their order. `now` in site time, `wall` the same moment in absolute time.

    A member that is unusable at present gets nothing: the plan is shared anew when that changes. What
    begins later may use the `highest` limits, what runs now the present ones.
    """
    views = [view(r, now, max_age, invalid_after) for r in readings]
    if not plan.times:
        return [EMPTY] * len(views)
    if len(views) == 1 and minimum is None:
        return [_share_of_one(plan, views[0], wall, highest)]
    if len(plan.times) > MANY and minimum is None:
        quick = _in_proportion(plan, wall, views, highest) or _both_ways(plan, wall, views, highest)
        if quick is not None:
            return quick
    stored, rooms = [m.energy for m in views], [m.headroom for m in views]
    limits = {(charging, later): _limits(views, charging, highest if later else None)
              for charging in (True, False) for later in (True, False)}
    able = {key: [(k, x) for k, x in enumerate(found) if x > 0.0] for key, found in limits.items()}
    rest, nothing = [0.0] * len(views), [nan] * len(views)
    rows: list[list[float]] = []
    for start, end, power in zip(plan.times, plan.times[1:], plan.powers, strict=False):
        if power == 0.0 or power != power:
            rows.append(rest if power == 0.0 else nothing)
            continue
        charging, later = power > 0.0, start > wall
        weights = rooms if charging else stored
        members = able[charging, later]
        shares = rest.copy()
        total = 0.0
        for k, _ in members:
            total += weights[k]
        level = abs(power) / total if minimum is None and 0.0 < total < inf else nan
        for k, limit in members:  # the plain proportion, where nobody reaches a limit
            share = weights[k] * level
            if not share <= limit:
                shares = _allocated(power, weights, limits[charging, later], minimum)
                break
            shares[k] = share if charging else -share
        rows.append(shares)
        hours = max(end - max(start, wall), 0.0) / 3600.0
        for k, share in enumerate(shares):
            if share:  # NaN, not known, stays NaN
                stored[k] = max(stored[k] + share * hours, 0.0)
                rooms[k] = max(rooms[k] - share * hours, 0.0)
    return [scaled(plan, column) for column in zip(*rows, strict=True)]


def _in_proportion(plan: Plan, wall: float, views: Sequence[Member],
                   highest: Sequence[Highest] | None) -> list[Plan] | None:
    """The shares of a plan of one direction in which nobody reaches a limit or an end: then they stay in proportion
    all along. None for any other plan."""
    low, high, charged, discharged = plan.bounds
    if low < 0.0 < high:  # the bounds of a sum may be wide
        low, high, charged, discharged = tightened(plan)
        if low < 0.0 < high:
            return None
    charging = high > 0.0
    now, later = _limits(views, charging, None), _limits(views, charging, highest)
    weights = []
    for member, present, then in zip(views, now, later, strict=True):
        if (present > 0.0) != (then > 0.0):
            return None
        weights.append((member.headroom if charging else member.energy) if present > 0.0 else 0.0)
    total = sum(weights)
    if not 0.0 < total < inf or not (
            (charged if charging else discharged) * WITH_ROUNDING < total or _moved(plan, wall) < total):
        return None
    factors = [weight / total for weight in weights]
    peak = high if charging else -low
    for factor, present, then in zip(factors, now, later, strict=True):
        if peak * factor > present and (
                np.abs(plan.arrays[1] * factor) > np.where(plan.arrays[0][:-1] > wall, then, present)).any():
            return None
    return [portion(plan, factor) for factor in factors]


def _both_ways(plan: Plan, wall: float, views: Sequence[Member],
               highest: Sequence[Highest] | None) -> list[Plan] | None:
    """The shares of a plan of both directions in which nobody reaches a limit or an end; None for any other plan.

    Discharging takes the same part of every energy, charging the same part of every headroom. So each energy stays
    a * (the present one) + b * (energy + headroom), with a and b the same for all members: a is the product of the
    parts that were left, b follows from the sum.
    """
    bounds = [np.array(_limits(views, charging, seen)) for seen in (None, highest) for charging in (False, True)]
    able = bounds[0] > 0.0
    if any(((limit > 0.0) != able).any() for limit in bounds) or not able.any():
        return None
    energies = np.array([m.energy if x else 0.0 for m, x in zip(views, able, strict=True)])
    wholes = energies + np.array([m.headroom if x else 0.0 for m, x in zip(views, able, strict=True)])
    times, moving = plan.arrays[0], plan.moving
    ahead = np.fmax(times, wall)
    first, whole = float(energies.sum()), float(wholes.sum())
    after = first + np.cumsum(moving * (ahead[1:] - ahead[:-1])) / 3600.0
    if not (0.0 < first < whole < inf and after.min() > NEAR_END * whole and after.max() < (1.0 - NEAR_END) * whole):
        return None
    before = np.concatenate(([first], after[:-1]))
    charging, room = moving > 0.0, whole - before
    a = np.concatenate(([1.0], np.cumprod(np.where(charging, (whole - after) / room, after / before))[:-1]))
    b = (before - a * first) / whole
    stored = np.outer(energies, a) + np.outer(wholes, b)
    shares = moving * np.where(charging, (wholes[:, None] - stored) / room, stored / before)
    lows, highs = shares.min(axis=1), shares.max(axis=1)
    if (highs > bounds[1]).any() or (-lows > bounds[0]).any():  # what begins later may use other limits
        later = times[:-1] > wall
        if ((shares > np.where(later, bounds[3][:, None], bounds[1][:, None])).any()
                or (-shares > np.where(later, bounds[2][:, None], bounds[0][:, None])).any()):
            return None
    moved = shares * (times[1:] - times[:-1]) / 3600.0
    charged, discharged = np.maximum(moved, 0.0).sum(axis=1), -np.minimum(moved, 0.0).sum(axis=1)
    shares[:, plan.idle] = nan
    return [alike(plan, powers, limits) for powers, limits in zip(
        shares, zip(lows.tolist(), highs.tolist(), charged.tolist(), discharged.tolist(), strict=True), strict=True)]


def _moved(plan: Plan, wall: float) -> float:
    """Wh that a plan of one direction asks for from now on."""
    ahead = np.fmax(plan.arrays[0], wall)
    return float((np.abs(plan.moving) * (ahead[1:] - ahead[:-1])).sum()) / 3600.0


def _share_of_one(plan: Plan, member: Member, wall: float, highest: Sequence[Highest] | None) -> Plan:
    """The whole plan for the only member, within its limits while it has something to give or to take."""
    bounds = [(_limits([member], False, seen)[0], _limits([member], True, seen)[0]) for seen in (None, highest)]
    energy, room = member.energy, member.headroom
    if _fits(plan, wall, energy, room, bounds):
        return plan
    powers: list[float] = []
    for start, end, power in zip(plan.times, plan.times[1:], plan.powers, strict=False):
        if power == 0.0 or power != power:
            powers.append(power)
            continue
        charging = power > 0.0
        if (room if charging else energy) == 0.0:
            powers.append(0.0)
            continue
        limit = bounds[start > wall][charging]
        share = power if -limit <= power <= limit else limit if charging else -limit
        powers.append(share)
        moved = share * max(end - max(start, wall), 0.0) / 3600.0
        energy, room = energy + moved, room - moved  # NaN, not known, stays NaN
        energy = max(energy, 0.0)
        room = max(room, 0.0)
    return scaled(plan, powers)


def _fits(plan: Plan, wall: float, energy: float, room: float,
          bounds: Sequence[tuple[float, float]]) -> bool:
    """Whether no limit (W: discharge, charge; of now, of later) and no end of the energy (Wh) is reached."""
    lowest, highest, charged, discharged = plan.bounds
    if (highest <= min(bounds[0][1], bounds[1][1]) and -lowest <= min(bounds[0][0], bounds[1][0])
            and energy > discharged * WITH_ROUNDING and room > charged * WITH_ROUNDING):
        return True
    if len(plan.times) <= MANY:
        return False
    times, powers = plan.arrays[0], plan.moving
    if bounds[0] == bounds[1]:
        low, high = bounds[0]
        within = powers.max() <= high and powers.min() >= -low
    else:
        later = times[:-1] > wall
        lows, highs = (np.where(later, bounds[1][k], bounds[0][k]) for k in (0, 1))
        within = bool(((powers <= highs) & (powers >= -lows)).all())
    if not within:
        return False
    times = np.fmax(times, wall)
    moved = np.cumsum(powers * (times[1:] - times[:-1])) / 3600.0
    return bool(energy > 0.0 and room > 0.0 and energy + moved.min() > 0.0 and room - moved.max() > 0.0)


def _limits(views: Sequence[Member], charging: bool, highest: Sequence[Highest] | None) -> list[float]:
    """Limits per member in one direction, W >= 0; `highest`: those that may hold later."""
    limits = [m.charge_power if charging else m.discharge_power for m in views]
    if highest is None:
        return limits
    return [x if m.blocked else max(x, h.charge if charging else h.discharge)
            for x, m, h in zip(limits, views, highest, strict=True)]


def _allocated(power: float, stored: Sequence[float], limits: Sequence[float],
               minimum: Sequence[float] | None) -> list[float]:
    """One power over the members, with their limits and minima; where no energy is known, by the limits."""
    weights = list(limits) if all(isnan(w) for w in stored) else list(stored)
    bounds = list(limits) if power > 0 else [-x for x in limits]
    return allocate(power, weights, weights, bounds, bounds, exclusion=minimum).powers.tolist()  # type: ignore[no-any-return]
