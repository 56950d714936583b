"""Allocation of one power over several members by water-filling. Stateless; numpy only.

Every member gets a share proportional to what it still has to give (remaining energy) or to take
(headroom); what a member cannot carry is redistributed in the same proportion. Members then reach
empty, or full, together as far as their limits allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, isnan

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

EXACT_SUBSETS_UP_TO = 12
"""Up to this many eligible members the choice of who runs is exact, beyond it a good heuristic."""

FEW = 12
"""Up to this many members plain floats are faster than arrays; the results are the same."""


LIGHTEST = 1e-12
"""A smaller weight relative to the heaviest counts as this: what is below is lost in rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Who does what. `powers.sum() == granted` to 1e-9 relative; `residual` = asked - granted."""

    powers: FloatArray  # W per member, + = charging; all of one sign
    granted: float  # W
    residual: float  # W, what nobody can take; 0 when everything is granted
    reason: str  # why less than asked was granted; '' when everything is


def allocate(
    power: float,
    weight_charge: ArrayLike,
    weight_discharge: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    exclusion: ArrayLike | None = None,
    running: ArrayLike | None = None,
    hysteresis: float = 0.2,
) -> Allocation:
    """Split `power` (W, + = charging) over n members.

    weight_charge, weight_discharge: n values >= 0, headroom and remaining energy in Wh. A member with
        weight 0 or NaN takes no part in that direction.
    low, high: n limits in W, low <= 0 <= high (-max. discharge, max. charge). A limit on the wrong
        side of zero, or NaN, counts as 0; infinite means unlimited.
    exclusion: n minimum powers in W >= 0: |p| is either 0 or at least this. If the proportional
        split leaves a member below its minimum, the fewest members that can carry the power run, the
        ones with the most to give first. If no set of members can carry it, the largest reachable
        power below the request is granted, never more than asked.
    running: n flags of who runs now, a preference against switching to and fro: that set is kept
        while it can carry the power, until the proportional split puts every member at least
        `hysteresis` (fraction) above its minimum. Only used with `exclusion`.

    Raises ValueError when lengths differ or a weight is infinite. A NaN request is granted as 0.
    """
    limits, shares = (high, weight_charge) if power >= 0 else (low, weight_discharge)
    if (exclusion is None and isinstance(limits, list) and isinstance(shares, list)
            and 0 < len(limits) == len(shares) <= FEW and not isnan(power)):
        return _allocate_few(power, shares, limits)
    caps = np.asarray(limits, dtype=np.float64)
    weights = np.asarray(shares, dtype=np.float64)
    if caps.ndim != 1 or caps.shape != weights.shape:
        raise ValueError(f'limits and weights differ in shape: {caps.shape} and {weights.shape}')
    if isnan(power):
        return Allocation(np.zeros(caps.size), 0.0, 0.0, 'the requested power is not a number')
    if power == 0 or caps.size == 0:
        reason = '' if power == 0 else 'there are no members'
        return Allocation(np.zeros(caps.size), 0.0, float(power), reason)
    sign = 1.0 if power > 0 else -1.0
    caps = np.fmax(caps * sign, 0.0)  # fmax: NaN counts as 0
    weights = np.fmax(weights, 0.0)
    scale = float(weights.max())
    if not isfinite(scale):
        raise ValueError('a weight is infinite')
    if scale > 0:
        # Relative to the heaviest, so that sums and ratios stay within range for any unit.
        weights = np.where(weights > 0, np.fmax(weights / scale, LIGHTEST), 0.0)
    caps = np.where(weights > 0, caps, 0.0)
    if exclusion is None:
        magnitudes, granted = fill(abs(power), weights, caps)
    else:
        minimum = np.fmax(np.asarray(exclusion, dtype=np.float64), 0.0)
        if minimum.shape != caps.shape:
            raise ValueError(f'limits and exclusion differ: {caps.shape} and {minimum.shape}')
        flags = None if running is None else np.asarray(running, dtype=np.bool_)
        if flags is not None and flags.shape != caps.shape:
            raise ValueError(f'limits and running differ: {caps.shape} and {flags.shape}')
        magnitudes, granted = _fill_above_minimum(
            abs(power), weights, caps, minimum, running=flags, hysteresis=hysteresis)
    residual = abs(power) - granted
    reason = '' if residual == 0 else shortfall(power, granted, float(caps.sum()))
    # + 0.0 turns -0.0 into 0.0
    return Allocation(magnitudes * sign + 0.0, granted * sign + 0.0, residual * sign + 0.0, reason)


def _allocate_few(power: float, weights: list[float], limits: list[float]) -> Allocation:
    """`allocate` without exclusion, for a list of few members."""
    if power == 0:
        return Allocation(np.zeros(len(limits)), 0.0, 0.0, '')
    sign = 1.0 if power > 0 else -1.0
    asked = abs(power)
    # Comparisons with NaN are false: such a member takes no part.
    heaviest = 0.0
    for w in weights:
        heaviest = max(heaviest, w)
    if heaviest == inf:
        raise ValueError('a weight is infinite')
    weights = [max(w, LIGHTEST * heaviest) if w > 0.0 else w for w in weights]
    caps = [c * sign if w > 0.0 and c * sign > 0.0 else 0.0 for w, c in zip(weights, limits, strict=True)]
    reachable = 0.0
    for c in caps:
        reachable += c
    if asked >= reachable:
        reason = '' if asked == reachable else shortfall(power, reachable, reachable)
        return Allocation(np.array([c * sign + 0.0 for c in caps]), reachable * sign + 0.0,
                          (asked - reachable) * sign + 0.0, reason)
    # Weights relative to the heaviest keep sums and ratios within range for any unit.
    level = _level_few(asked, [(c * heaviest / w, w / heaviest, c)
                               for w, c in zip(weights, caps, strict=True) if c > 0.0])
    powers = [min(c, level * (w / heaviest)) * sign + 0.0 if c > 0.0 else 0.0
              for w, c in zip(weights, caps, strict=True)]
    return Allocation(np.array(powers), power, 0.0, '')


def _level_few(power: float, members: list[tuple[float, float, float]]) -> float:
    """Level at which the members (level where it is full, weight, limit) carry `power`, which they can."""
    members.sort()
    free = [0.0]
    for _, weight, _ in reversed(members):
        free.append(free[-1] + weight)
    free.reverse()
    fixed = 0.0
    last = len(members) - 1
    for k, (full_at, _, cap) in enumerate(members):
        if k == last or fixed + full_at * free[k] >= power:
            return (power - fixed) / free[k]
        fixed += cap
    raise AssertionError('no members')


def fill(power: float, weights: FloatArray, caps: FloatArray) -> tuple[FloatArray, float]:
    """Water-filling: shares min(cap, level * weight) whose sum is `power` (all >= 0), and the sum.

    Members without weight must have cap 0. Closed form after one sort by the level cap / weight at
    which each member reaches its limit: O(n log n). Equal members get bit-equal shares.
    """
    total = float(caps.sum())
    if power >= total:
        return caps.copy(), total
    takes = caps > 0
    all_take = bool(takes.all())
    w, c = (weights, caps) if all_take else (weights[takes], caps[takes])
    with np.errstate(over='ignore'):
        full_at = c / w
    order = full_at.argsort(kind='stable')
    w_sorted = w[order]
    c_sorted = c[order]
    # Sum of the shares at the level at which the k-th member becomes full: everyone before it is
    # full, everyone from it on still follows the level.
    before = np.zeros(w.size)
    c_sorted[:-1].cumsum(out=before[1:])
    free = w_sorted[::-1].cumsum()[::-1]
    with np.errstate(over='ignore', invalid='ignore'):
        reached = before + full_at[order] * free
    k = min(int(np.count_nonzero(reached < power)), w.size - 1)
    fixed = float(c_sorted[:k].sum())
    level = (power - fixed) / float(free[k])
    shares = np.minimum(c, level * w)
    if all_take:
        return shares, power
    result = np.zeros(caps.size)
    result[takes] = shares
    return result, power


def fill_between(
    power: float, weights: FloatArray, floors: FloatArray, caps: FloatArray,
) -> FloatArray:
    """Shares clip(level * weight, floor, cap) whose sum is `power`; needs sum(floors) <= power <= sum(caps).

    Binary search over the levels at which a member leaves its floor or reaches its cap, then exact.
    """
    with np.errstate(over='ignore'):
        leaves, full_at = floors / weights, caps / weights
    levels = np.unique(np.concatenate((leaves, full_at)))
    below, above = 0, levels.size - 1
    while above - below > 1:
        middle = (below + above) // 2
        if float(np.clip(levels[middle] * weights, floors, caps).sum()) <= power:
            below = middle
        else:
            above = middle
    at_floor = leaves >= levels[above]
    at_cap = full_at <= levels[below]
    free = ~(at_floor | at_cap)
    if not free.any():  # no interval between two levels: everyone is at a bound
        return np.where(at_cap, caps, floors)
    rest = power - float(np.where(at_cap, caps, np.where(at_floor, floors, 0.0)).sum())
    level = rest / float(weights[free].sum())
    moving = np.clip(level * weights, floors, caps)
    return np.where(at_cap, caps, np.where(at_floor, floors, moving))


def _fill_above_minimum(
    power: float, weights: FloatArray, caps: FloatArray, minimum: FloatArray,
    *, running: BoolArray | None, hysteresis: float,
) -> tuple[FloatArray, float]:
    """Water-filling in which every member has either 0 or at least its minimum."""
    able = (caps > 0) & (minimum <= caps)
    shares, granted = fill(power, weights, np.where(able, caps, 0.0))
    keep = None if running is None else running & able
    margin = 1.0 + (hysteresis if keep is not None and keep.any() and not keep[able].all() else 0.0)
    if bool((shares[able] >= minimum[able] * margin).all()):
        return shares, granted
    chosen = np.flatnonzero(keep) if keep is not None else np.empty(0, dtype=np.intp)
    if chosen.size == 0 or not minimum[chosen].sum() <= power <= caps[chosen].sum():
        if margin > 1.0 and bool((shares[able] >= minimum[able]).all()):
            return shares, granted
        candidates = np.flatnonzero(able & (minimum <= power))
        picked = choose(power, weights[candidates], minimum[candidates], caps[candidates])
        chosen = candidates[picked]
    result = np.zeros(caps.size)
    if chosen.size == 0:
        return result, 0.0
    reachable = float(caps[chosen].sum())
    if power >= reachable:
        result[chosen] = caps[chosen]
        return result, reachable
    result[chosen] = fill_between(power, weights[chosen], minimum[chosen], caps[chosen])
    return result, power


def choose(
    power: float, weights: FloatArray, minimum: FloatArray, caps: FloatArray,
) -> NDArray[np.intp]:
    """Which members run: those that carry the most of `power`, as few as possible, heaviest first.

    A set can carry every power from the sum of its minima to the sum of its caps. This is a knapsack
    problem: exact up to EXACT_SUBSETS_UP_TO members, otherwise the best of several greedy orders.
    """
    if minimum.size == 0:
        return np.empty(0, dtype=np.intp)
    caps = np.minimum(caps, power)  # no set needs more, and infinite caps become finite
    if minimum.size <= EXACT_SUBSETS_UP_TO:
        sets = _subsets(minimum.size)
        # 1e-12: a sum that equals the request must not fail by rounding
        fits = sets @ minimum <= power * (1 + 1e-12)
        carried = np.where(fits, np.minimum(sets @ caps, power), -1.0)
        near = carried >= carried.max() * (1 - 1e-12)
        count = sets.sum(axis=1)
        near &= count == count[near].min()
        weight = np.where(near, sets @ weights, -1.0)
        return np.flatnonzero(sets[int(weight.argmax())])
    candidates = [np.array(members, dtype=np.intp)
                  for members in _greedy_sets(power, weights, minimum, caps)]
    return max(candidates, key=lambda s: (
        min(float(caps[s].sum()), power), -s.size, float(weights[s].sum())))


def _greedy_sets(
    power: float, weights: FloatArray, minimum: FloatArray, caps: FloatArray,
) -> Iterator[Sequence[int]]:
    """Sets that fit, taken in different orders: heaviest, strongest, best span, smallest minimum."""
    with np.errstate(divide='ignore'):
        span = caps / minimum
    for order in ((-weights).argsort(kind='stable'), (-caps).argsort(kind='stable'),
                  (-span).argsort(kind='stable'), minimum.argsort(kind='stable')):
        taken: list[int] = []
        floor = cap = 0.0
        for i, low, high in zip(order.tolist(), minimum[order].tolist(), caps[order].tolist(),
                                strict=True):
            if floor + low > power:
                continue
            taken.append(i)
            floor += low
            cap += high
            if cap >= power:
                break
        for i in sorted(taken, key=lambda i: float(caps[i])):  # early picks may not be needed any more
            if cap - caps[i] >= power:
                cap -= float(caps[i])
                taken.remove(i)
        yield taken


@lru_cache(maxsize=EXACT_SUBSETS_UP_TO)
def _subsets(n: int) -> FloatArray:
    """All 2^n subsets of n members as rows of 0.0 and 1.0."""
    return ((np.arange(2 ** n)[:, None] >> np.arange(n)) & 1).astype(np.float64)


def shortfall(power: float, granted: float, reachable: float) -> str:
    """Why only `granted` of `power` (W) is given, when members can carry `reachable` (W) in all."""
    direction = 'charge' if power > 0 else 'discharge'
    if reachable == 0:
        return f'no member can {direction}'
    if granted == 0:
        return f'{abs(power):.0f} W is below the minimum power of every member'
    if granted >= reachable * (1 - 1e-12):
        return f'members can {direction} only {granted:.0f} W of {abs(power):.0f} W'
    return (f'minimum powers of the members allow only {granted:.0f} W'
            f' of {abs(power):.0f} W to {direction}')
