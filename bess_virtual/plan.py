"""Plans: what is asked of a battery over time, as a piecewise constant power. Pure.

A schedule in force, the promise of a member to its owner, the sum over the children of a partition: all
are plans, and admission is arithmetic on them. Times are absolute seconds (floats since the epoch),
powers W, + = charging, NaN = nothing is asked (which differs from 0, an order to rest).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite, isinf, isnan, nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schedule import Request, Schedule

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
MAX_SEGMENTS = 50_000
NOTHING_WH = 1e-3  # a shortfall below this is rounding
MANY = 24  # segments from which on arrays are faster
MOMENT_S = 1.0  # what began so long ago began now
WITH_ROUNDING = 1.0 + 1e-9  # energies of bounds are sums of many products
# What no moment of a plan exceeds: lowest and highest power in W, with 0 where nothing is asked, and all energy in Wh
# that is charged and discharged from its start on. Those of sums may be wide.
Bounds = tuple[float, float, float, float]


class Plan:
    """`powers[k]` is asked over [times[k], times[k + 1]); nothing before and after. Not to be changed.

    One plan goes through several layers of batteries as it is, or as a portion: what is derived from it is made when
    it is first asked for, and kept.
    """

    __slots__ = ('arrays', 'bounds', 'idle', 'moving', 'powers', 'times')

    times: Sequence[float]
    powers: Sequence[float]
    arrays: tuple[Array, Array]  # times and powers, for arithmetic
    idle: Bools  # per power: nothing is asked
    moving: Array  # powers in W, 0 where nothing is asked
    bounds: Bounds

    def __init__(self, times: Sequence[float] = (), powers: Sequence[float] = ()) -> None:
        self.times, self.powers = times, powers

    if not TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any:
            """What is not there yet."""
            make = _DERIVED.get(name)
            if make is None:
                raise AttributeError(name)
            made = make(self)
            setattr(self, name, made)
            return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return list(self.times) == list(other.times) and list(self.powers) == list(other.powers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f'Plan({self.times!r}, {self.powers!r})'

    def at(self, t: float) -> float:
        """Power asked at time t; NaN = nothing."""
        k = bisect_right(self.times, t) - 1
        return self.powers[k] if 0 <= k < len(self.times) - 1 else nan

    def next_change(self, t: float) -> tuple[float, float]:
        """The first time after t from which on another power is asked, and that power; (NaN, NaN) = none."""
        now = self.at(t)
        for k in range(bisect_right(self.times, t), len(self.times)):
            power = self.powers[k] if k < len(self.powers) else nan
            if not same(power, now):
                return self.times[k], power
        return nan, nan

    def asks(self) -> bool:
        """Whether anything is asked at all."""
        if not self.times:
            return False
        low, high, _, _ = self.bounds
        return low < 0.0 or high > 0.0 or any(p == p for p in self.powers)


def _bounds(plan: Plan) -> Bounds:
    if len(plan.times) <= MANY:
        low = high = 0.0 if not plan.times or plan.powers[0] != plan.powers[0] else plan.powers[0]
        charged = discharged = 0.0
        for start, end, power in zip(plan.times, plan.times[1:], plan.powers, strict=False):
            if power != power:
                power = 0.0
            low, high = min(low, power), max(high, power)
            if power > 0.0:
                charged += power * (end - start)
            else:
                discharged -= power * (end - start)
        return low, high, charged / 3600.0, discharged / 3600.0
    times, moving = plan.arrays[0], plan.moving
    low, high = float(np.minimum.reduce(moving)), float(np.maximum.reduce(moving))
    energies = moving * (times[1:] - times[:-1])
    charged = 0.0 if high <= 0.0 else float(np.add.reduce(energies if low >= 0.0 else np.maximum(energies, 0.0)))
    discharged = 0.0 if low >= 0.0 else -float(np.add.reduce(energies if high <= 0.0 else np.minimum(energies, 0.0)))
    return low, high, charged / 3600.0, discharged / 3600.0


def tightened(plan: Plan) -> Bounds:
    """Bounds worked out anew, for the sum of others, of which they may be wide."""
    plan.bounds = _bounds(plan)
    return plan.bounds


_DERIVED: dict[str, Callable[[Plan], Any]] = {
    'powers': lambda plan: plan.arrays[1].tolist(),
    'arrays': lambda plan: (np.asarray(plan.times, dtype=np.float64), np.asarray(plan.powers, dtype=np.float64)),
    'idle': lambda plan: np.isnan(plan.arrays[1]),
    'moving': lambda plan: np.where(plan.idle, 0.0, plan.arrays[1]),
    'bounds': _bounds,
}


def _made(times: Sequence[float], arrays: tuple[Array, Array]) -> Plan:
    plan = Plan.__new__(Plan)
    plan.times, plan.arrays = times, arrays
    return plan


EMPTY = Plan()


def same(a: float, b: float) -> bool:
    """Equal, or both nothing."""
    return a == b or (a != a and b != b)


def checked(times: Sequence[float], powers: Sequence[float]) -> Plan:
    """A plan of what another process sent. Raises ValueError for anything but a plan."""
    if len(times) > MAX_SEGMENTS:
        raise ValueError(f'{len(times)} times, at most {MAX_SEGMENTS} are allowed')
    if len(powers) != max(0, len(times) - 1):
        raise ValueError(f'{len(times)} times do not fit {len(powers)} powers')
    if not all(isfinite(t) for t in times):
        raise ValueError('a time is not a finite number')
    if not all(a < b for a, b in pairwise(times)):
        raise ValueError('the times do not ascend')
    if any(isinf(p) for p in powers):
        raise ValueError('a power is infinite')
    return Plan(list(times), list(powers)) if powers else EMPTY


def of_schedule(schedule: Schedule, now: float, power_of: Callable[[Request], float]) -> Plan:
    """What a schedule asks for from `now` on."""
    times, owners = schedule.timeline(now)
    return _tidy(times, [nan if r is None else power_of(r) for r in owners])


def single(start: float, end: float, power: float) -> Plan:
    """One power over [start, end)."""
    return Plan((start, end), (power,)) if end > start else EMPTY


def over(upper: Plan, lower: Plan) -> Plan:
    """`upper` where it asks for something, `lower` elsewhere."""
    if not upper.times or not lower.times:
        return upper if upper.times else lower
    if len(upper.times) == 2 and upper.powers[0] == upper.powers[0]:
        return _splice(lower, upper.times[0], upper.times[1], upper.powers[0])
    return _merged((upper, lower), lambda powers: np.where(np.isnan(powers[0]), powers[1], powers[0]))


def total(plans: Sequence[Plan]) -> Plan:
    """The sum of all that ask; nothing where nobody does."""
    plans = [p for p in plans if p.times]
    if len(plans) < 2:
        return plans[0] if plans else EMPTY
    return _added(plans) or _merged(plans, _sum)


def _added(plans: Sequence[Plan]) -> Plan | None:
    """The sum of plans over the same times that ask at the same times, as portions of one do; None of others."""
    first = plans[0]
    powers, bounds = first.arrays[1], first.bounds
    for plan in plans[1:]:
        if plan.times is not first.times and plan.times != first.times:
            return None
        if plan.idle is not first.idle and not np.array_equal(plan.idle, first.idle):
            return None
        powers = powers + plan.arrays[1]
        a, b = bounds, plan.bounds
        bounds = a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]
    return alike(first, powers, bounds)


def alike(plan: Plan, powers: Array, bounds: Bounds) -> Plan:
    """Other powers over the same times, NaN where the plan asks for nothing; with their bounds."""
    made = _made(plan.times, (plan.arrays[0], powers))
    made.idle, made.bounds = plan.idle, bounds
    return made


def portion(plan: Plan, factor: float) -> Plan:
    """The plan times a factor >= 0."""
    if not factor > 0.0:
        return scaled(plan, plan.arrays[1] * factor)
    low, high, charged, discharged = plan.bounds
    return alike(plan, plan.arrays[1] * factor, (low * factor, high * factor, charged * factor, discharged * factor))


def clash(a: Plan, b: Plan) -> tuple[float, float] | None:
    """The first interval in which both ask for something; None when there is none."""
    if not a.times or not b.times:
        return None
    start, end = max(a.times[0], b.times[0]), min(a.times[-1], b.times[-1])
    if start >= end:
        return None
    a, b = _window(a, start, end), _window(b, start, end)
    both = _merged((a, b), lambda powers: np.where(np.isnan(powers).any(axis=0), nan, 1.0))
    return next(((both.times[k], both.times[k + 1]) for k, p in enumerate(both.powers) if p == p), None)


def beyond(plan: Plan, now: float, present: tuple[float, float], later: tuple[float, float],
           soon: float = 0.0) -> tuple[float, float] | None:
    """The first (time, power) outside of limits; None when all is within.

    Limits are (lowest, highest) in W: `present` for what begins before now + `soon`, `later` for the rest.
    """
    low, high = max(present[0], later[0]), min(present[1], later[1])
    if (plan.bounds[0] >= low and plan.bounds[1] <= high) or (
            len(plan.times) > MANY and (exact := tightened(plan))[0] >= low and exact[1] <= high):
        return None  # within both, 0 as well; else one by one
    for start, power in zip(plan.times, plan.powers, strict=False):
        low, high = present if start <= now + soon else later
        if power > high or power < low:
            return start, power
    return None


class Forecast(NamedTuple):
    """What stored energy does with a plan."""

    runs_out: float  # absolute s, when the battery is first empty or full although more is asked; NaN = never
    short: Sequence[float]  # Wh per segment of the plan that cannot be served; NaN = not known

    def within(self, plan: Plan, start: float, end: float) -> float:
        """Wh that cannot be served of what the plan asks within [start, end)."""
        if not any(self.short):
            return 0.0
        return sum(s for s, a, b in zip(self.short, plan.times, plan.times[1:], strict=False) if a < end and b > start)


def foresee(plan: Plan, now: float, energy: float, energy_full: float, charge_efficiency: float = 1.0,
            discharge_efficiency: float = 1.0) -> Forecast:
    """Follow the stored energy (Wh, at the DC side of the efficiencies) through the plan.

    Between and after the requests the battery rests; once empty (full) it stays so until the plan
    turns round. With `energy` NaN nothing is known; with `energy_full` NaN only emptiness is.
    """
    _, _, charged, discharged = plan.bounds
    if (energy >= discharged * WITH_ROUNDING / discharge_efficiency
            and energy + charged * WITH_ROUNDING * charge_efficiency <= energy_full) or (
            len(plan.times) > MANY
            and _serves(plan, now, energy, energy_full, charge_efficiency, discharge_efficiency)):
        return Forecast(nan, [0.0] * max(len(plan.times) - 1, 0))
    return _followed(plan, now, energy, energy_full, charge_efficiency, discharge_efficiency)


def _followed(plan: Plan, now: float, energy: float, energy_full: float, charge_efficiency: float,
              discharge_efficiency: float) -> Forecast:
    """Segment by segment."""
    short: list[float] = []
    runs_out = nan
    margin = 1e-9 * (energy_full if energy_full > 0 else 1.0)
    for start, end, power in zip(plan.times, plan.times[1:], plan.powers, strict=False):
        missing = 0.0
        begin = max(start, now)
        if power and power == power and end > begin:
            rate = power * charge_efficiency if power > 0 else power / discharge_efficiency
            room = energy_full - energy if power > 0 else energy
            wanted = abs(rate) * (end - begin) / 3600.0
            if isnan(energy):
                missing = nan
            elif wanted > room + margin:
                room = max(room, 0.0)
                missing = (wanted - room) * abs(power / rate)
                if isnan(runs_out) and missing > NOTHING_WH:
                    runs_out = begin + room / abs(rate) * 3600.0
                energy = energy_full if power > 0 else 0.0
            else:
                energy += rate * (end - begin) / 3600.0
        short.append(missing)
    return Forecast(runs_out, short)


def _serves(plan: Plan, now: float, energy: float, energy_full: float, charge_efficiency: float,
            discharge_efficiency: float) -> bool:
    """Whether the stored energy (Wh) stays between empty and full all along; False also where it is not known."""
    times, powers = np.fmax(plan.arrays[0], now), plan.moving
    rates = np.where(powers > 0.0, powers * charge_efficiency, powers / discharge_efficiency)
    stored = energy + np.cumsum(rates * (times[1:] - times[:-1])) / 3600.0
    return bool(stored.min() >= 0.0 and stored.max() <= energy_full)


def from_now(plan: Plan, now: float) -> Plan:
    """The plan without its past."""
    if not plan.times or plan.times[0] >= now:
        return plan
    k = bisect_right(plan.times, now) - 1
    if k >= len(plan.times) - 1:
        return EMPTY
    return Plan([now, *plan.times[k + 1:]], list(plan.powers[k:]))


def lately(plan: Plan, now: float) -> Plan:
    """The same, but as it is where only a moment of its first segment is past: layer by layer the time goes on while
    a plan comes down, and members of one whole are best given plans over the same times."""
    times = plan.times
    return plan if times and times[0] >= now - MOMENT_S and times[1] > now else from_now(plan, now)


def scaled(plan: Plan, powers: Sequence[float] | Array) -> Plan:
    """Other powers over the same times."""
    return _tidy(plan.arrays[0], powers)


def _window(plan: Plan, start: float, end: float) -> Plan:
    """The segments of a plan that touch [start, end)."""
    first, last = max(bisect_right(plan.times, start) - 1, 0), bisect_left(plan.times, end)
    return Plan(plan.times[first:last + 1], plan.powers[first:last])


def _splice(plan: Plan, start: float, end: float, power: float) -> Plan:
    """The plan with another power over [start, end)."""
    if start > plan.times[-1] or end < plan.times[0]:
        return _merged((plan, single(start, end, power)), _sum)
    first, last = bisect_left(plan.times, start), bisect_right(plan.times, end)
    resumes = plan.powers[last - 1:last] if last and end < plan.times[-1] else []
    times = [*plan.times[:first], start, end, *plan.times[last:]]
    powers = [*plan.powers[:first], power, *resumes, *plan.powers[last:]]
    return Plan(times, powers[:len(times) - 1])


def _sum(powers: Array) -> Array:
    nothing = np.isnan(powers)
    return np.where(nothing.all(axis=0), nan, np.where(nothing, 0.0, powers).sum(axis=0))


def _merged(plans: Sequence[Plan], combine: Callable[[Array], Array]) -> Plan:
    """`combine` makes one row of powers out of a row per plan, all on the common times."""
    times = np.unique(np.concatenate([p.arrays[0] for p in plans]))
    rows = np.full((len(plans), len(times) - 1), nan)
    for row, plan in zip(rows, plans, strict=True):
        own, powers = plan.arrays
        k = np.searchsorted(own, times[:-1], side='right') - 1
        within = (k >= 0) & (k < len(powers))
        row[within] = powers[k[within]]
    return _tidy(times, combine(rows))


def _tidy(times: Sequence[float] | Array, powers: Sequence[float] | Array) -> Plan:
    """Equal neighbours as one segment, nothing asked at either end. One time more than powers, as in a plan."""
    all_times, all_powers = np.asarray(times, dtype=np.float64), np.asarray(powers, dtype=np.float64)
    nothing = np.isnan(all_powers)
    differs = ~nothing
    differs[1:] = (all_powers[1:] != all_powers[:-1]) & ~(nothing[1:] & nothing[:-1])
    kept, starts = all_powers[differs], all_times[:-1][differs]
    if not len(kept):
        return EMPTY
    if isnan(kept[-1]):
        return _of_arrays(starts, kept[:-1])
    return _of_arrays(np.append(starts, all_times[-1]), kept)


def _of_arrays(times: Array, powers: Array) -> Plan:
    return _made(times.tolist(), (times, powers))
