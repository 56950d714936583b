"""Modes that need no more than a few lines: passive, fixed power."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

from bess_control.modes.base import ModeBase, ModeBaseParams, View
from bess_control.proposals import Proposal
from bess_control.words import magnitude, watts
from bess_core.params import param


@dataclass(frozen=True)
class PassiveParams(ModeBaseParams):
    """Parameters of the passive mode."""

    hold_zero: bool = param(
        False, '', 'keep the battery at 0 W; else nothing is asked, and its own schedule may run')


class Passive(ModeBase):
    """No control: everything is measured, recorded and ready, and nothing is asked of the battery."""

    Params: ClassVar[type] = PassiveParams

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        self.text = 'passive: monitoring only'
        if not self.params.hold_zero:
            return None
        return self.propose(view, 0.0, reason='passive: held at 0 W')


@dataclass(frozen=True)
class FixedPowerParams(ModeBaseParams):
    """Parameters of fixed power."""

    charge_power: float = param(0.0, 'W', 'power (magnitude) to charge with', low=0.0, high=1e9)
    discharge_power: float = param(0.0, 'W', 'power (magnitude) to discharge with', low=0.0, high=1e9)
    relation: str = param(
        'equal', '', 'equal: exactly this power; at_least: others may do more in the same direction; '
        'at_most: others may do less', choices=['equal', 'at_least', 'at_most'])
    reactive_power: float = param(
        nan, 'var', 'reactive power, + = inductive; not given = none is asked', low=-1e9, high=1e9)

    def __post_init__(self) -> None:
        if self.charge_power > 0.0 and self.discharge_power > 0.0:
            raise ValueError('charge_power and discharge_power are both given')


class FixedPower(ModeBase):
    """A constant power, as a value or as a bound for others."""

    Params: ClassVar[type] = FixedPowerParams

    params: FixedPowerParams

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p = self.params
        power = p.charge_power - p.discharge_power
        if p.relation == 'equal':
            return self.propose(view, power, reactive=p.reactive_power, reason=f'fixed power {watts(power)}')
        words = 'at least' if p.relation == 'at_least' else 'at most'
        reason = f'fixed power: {"dis" if power < 0.0 else ""}charge {words} {magnitude(power)}'
        upwards = (p.relation == 'at_least') is (power >= 0.0)  # whether the bound is a lower one in W
        if upwards:
            return self.propose(view, low=power, reactive=p.reactive_power, reason=reason)
        return self.propose(view, high=power, reactive=p.reactive_power, reason=reason)
