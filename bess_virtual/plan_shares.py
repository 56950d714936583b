"""How the plan of an aggregate falls on its members. Pure.

As `aggregate.split` does every tick: by remaining energy when discharging, by headroom when charging. Over a
plan the energies move, so they are followed from request to request; each member gets a plan of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from bess_core.values import BatteryReading

from .aggregate import view
from .allocation import allocate
from .plan import EMPTY, Plan, scaled


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
    if not plan.powers:
        return [EMPTY] * len(views)
    energies = [m.energy for m in views]
    rooms = [m.headroom for m in views]
    columns: list[list[float]] = [[] for _ in views]
    cached: dict[tuple[float, bool], list[float]] = {}
    for start, end, power in zip(plan.times, plan.times[1:], plan.powers, strict=False):
        if power == 0.0 or isnan(power):
            for column in columns:
                column.append(power)
            continue
        later = start > wall
        shares = cached.get((power, later))
        if shares is None:
            caps = []
            for k, m in enumerate(views):
                cap = m.charge_power if power > 0 else m.discharge_power
                if later and highest is not None and not m.blocked:
                    cap = max(cap, highest[k].charge if power > 0 else highest[k].discharge)
                caps.append(cap)
            weights = rooms if power > 0 else energies
            if all(isnan(w) for w in weights):
                weights = caps
            limits = caps if power > 0 else [-c for c in caps]
            shares = allocate(power, list(weights), list(weights), [0.0] * len(caps) if power > 0 else limits,
                              limits if power > 0 else [0.0] * len(caps), exclusion=minimum).powers.tolist()
            cached[power, later] = shares
        hours = (end - max(start, wall)) / 3600.0
        for k, share in enumerate(shares):
            columns[k].append(share)
            if share:
                moved = share * hours
                energies[k] = max(energies[k] + moved, 0.0) if energies[k] == energies[k] else energies[k]
                rooms[k] = max(rooms[k] - moved, 0.0) if rooms[k] == rooms[k] else rooms[k]
        if any(shares):
            cached.clear()  # the energies have moved
    return [scaled(plan, column) for column in columns]
