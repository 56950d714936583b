"""Which cells are balanced by discharging them, and down to which voltage. Pure.

Source: facts in `shared/facts/bms_portal_radio.md`, section 2.4. The original lets one cell more than `most`
run because it compares with `>` before it starts the next one; here it is never more than `most`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan

from bess_core.params import param


@dataclass(frozen=True)
class BalanceParams:
    """Settings of balancing."""

    balance_min: float = param(3.45, 'V', 'nothing is balanced below', low=0.0, high=5.0)
    balance_difference: float = param(0.05, 'V', 'cells may differ by so much at full charge', low=0.001, high=1.0)
    balance_most: int = param(4, doc='most cells at a time', low=1, high=128)
    balance_slope: float = param(0.05, '', 'so much of the distance to full is allowed on top', low=0.0, high=1.0)


@dataclass
class Balancer:
    """What runs at present."""

    params: BalanceParams
    full: float  # V, ext_max of the cells
    goals: dict[int, float] = field(default_factory=dict)  # cell (from 0) -> V at which it stops

    def step(self, u: Sequence[float]) -> dict[int, float]:
        """Goals from now on, by cell. `u`: V, each cell; any NaN stops all."""
        p = self.params
        high, low = max(u, default=0.0), min(u, default=0.0)
        if any(map(isnan, u)) or high - low < 2 * p.balance_difference or high < p.balance_min:
            self.goals = {}
            return {}
        upper = max(low + p.balance_difference + p.balance_slope * (self.full - low), p.balance_min)
        low = max(low, p.balance_min)
        lower = low + 0.8 * (upper - low)
        goals = {i: g for i, g in self.goals.items() if u[i] > g}
        goals = {i: low + 2 * p.balance_difference if g < low else g for i, g in goals.items()}
        for i in sorted(goals, key=lambda i: u[i]):
            if len(goals) > p.balance_most and u[i] < lower:
                del goals[i]
        for i in sorted(range(len(u)), key=lambda i: -u[i]):
            if len(goals) < p.balance_most and i not in goals and u[i] >= upper + p.balance_difference:
                goals[i] = low
        self.goals = goals
        return dict(goals)
