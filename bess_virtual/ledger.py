"""Accounts of a partition: what flowed in, out and between, and who bears the losses. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import NamedTuple

from bess_virtual.exact import exact_sum


class LossRule(Enum):
    """Who bears the losses of the source."""

    THROUGHPUT = 'throughput'  # by all the energy that a child takes in or gives out, also moved between children
    SOURCE_FLOW = 'source_flow'  # by what of it went through the source's terminals
    ENERGY_SHARE = 'energy_share'  # by the energy shares, whoever used the battery


@dataclass(slots=True)
class Ledger:
    """Energy account of one child, Wh.

    energy = charged - discharged + moved_in - moved_out - lost + correction, from an empty account.
    """

    energy: float = 0.0  # stored
    charged: float = 0.0  # counter of energy taken in through the source's terminals, >= 0
    discharged: float = 0.0  # counter of energy given out through them, >= 0
    lost: float = 0.0  # counter of its part of the losses, >= 0
    correction: float = 0.0  # sum of reconciliations with the source and of transfers at a resize, either sign
    moved_in: float = 0.0  # counter of energy taken over from siblings, >= 0
    moved_out: float = 0.0  # counter of energy given to siblings, >= 0

    def absorb(self, other: Ledger) -> None:
        """Add another account to this one."""
        for f in fields(other):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


class Flow(NamedTuple):
    """Power of one child (W, all >= 0) by where it went."""

    taken: float  # in through the source's terminals
    given: float  # out through them
    moved_in: float  # from siblings
    moved_out: float  # to siblings


def flows(parts: list[float]) -> list[Flow]:
    """Attributed powers (W, + = charging) divided into what went through the source and what between children.

    With A = sum of the charging and B = sum of the discharging powers, the source sees A - B. If it is
    charging, each charging child took (A - B)/A of its power from the source and B/A from its discharging
    siblings, whose power all went there; the other way round when the source is discharging. So the sums of
    `taken` and `given` are the source's, and the sums of `moved_in` and `moved_out` are equal.
    """
    up, down = exact_sum([p for p in parts if p > 0]), -exact_sum([p for p in parts if p < 0])
    through_up = (up - down) / up if up > down else 0.0
    through_down = (down - up) / down if down > up else 0.0
    return [Flow(p * through_up, 0.0, p * (1 - through_up), 0.0) if p > 0
            else Flow(0.0, -p * through_down, 0.0, -p * (1 - through_down)) for p in parts]


def divide_loss(rule: LossRule, loss: float, through: list[Flow], fractions: list[float]) -> list[float]:
    """Each child's part of a loss; by `fractions` (energy shares) where the rule finds nothing to go by."""
    if rule is LossRule.THROUGHPUT:
        weights = [f.taken + f.given + f.moved_in + f.moved_out for f in through]
    elif rule is LossRule.SOURCE_FLOW:
        weights = [f.taken + f.given for f in through]
    else:
        weights = fractions
    whole = exact_sum(weights)
    if whole <= 0:
        weights, whole = fractions, exact_sum(fractions)
    return [loss * (w / whole) for w in weights]
