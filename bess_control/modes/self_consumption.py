"""Self-consumption: keep the grid connection at a target power with the battery.

The control itself is `bess_control.grid_loop`; here are the bias and the reserve for backup.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import ClassVar

from bess_control.grid_loop import GridLoop, GridLoopParams
from bess_control.modes.base import ModeBase, ModeBaseParams, View
from bess_control.proposals import Proposal
from bess_control.words import grid_watts, magnitude
from bess_core.params import param


@dataclass(frozen=True)
class SelfConsumptionParams(GridLoopParams, ModeBaseParams):
    """Parameters of self-consumption."""

    target_grid_power: float = param(
        0.0, 'W', low=-1e7, high=1e7,
        doc='Grid power to hold, + = import. The bias: a small import (10 to 50 W) avoids '
            'feeding battery energy into the grid when loads switch off.')
    soc_reserve: float = param(
        0.0, '', low=0.0, high=1.0,
        doc='State of charge (0..1) at which discharging ends.')
    soc_hysteresis: float = param(
        0.02, '', low=0.0, high=0.5,
        doc='State of charge above the reserve from which discharging starts again.')


class SelfConsumption(ModeBase):
    """The grid connection at a target power: own generation is used in place of grid energy.

    Acts once per fresh meter sample.
    """

    Params: ClassVar[type] = SelfConsumptionParams
    needs_meter: ClassVar[bool] = True

    def __init__(self, params: SelfConsumptionParams, source: str = 'self_consumption',
                 battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.loop = GridLoop(params, meter)
        self._no_discharge = False

    def reset(self) -> None:
        """Forget the plant and start bumplessly from the next samples (mode switched, meter lost)."""
        self.loop.reset()

    @property
    def trim(self) -> float:
        """Trim of the loop, W."""
        return self.loop.trim

    def decide(self, view: View) -> Proposal | None:
        """One tick.

        Returns a proposal for a fresh meter sample, None when there is nothing new, and a proposal
        of zero that says why on every tick on which meter or battery can not be trusted.
        """
        loop = self.loop
        p: SelfConsumptionParams = self.params
        fresh = loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = loop.problem
        if self.problem:
            return self.propose(view, 0.0, reason=self.problem)
        if not fresh:
            return None
        power = loop.track(p.target_grid_power, view.battery, view.granted, view.now)
        power, note = self._respect_reserve(power, view.battery.soc)
        loop.asked(power)
        reason = f'grid at {grid_watts(loop.grid)}, target {grid_watts(p.target_grid_power)}'
        return self.propose(view, power, reason=f'{reason}; {note}' if note else reason)

    def _respect_reserve(self, power: float, soc: float) -> tuple[float, str]:
        p: SelfConsumptionParams = self.params
        if p.soc_reserve > 0.0:
            if isnan(soc) or soc <= p.soc_reserve:
                self._no_discharge = True
            elif soc >= min(p.soc_reserve + p.soc_hysteresis, 1.0):
                self._no_discharge = False
            if self._no_discharge and power < 0.0:
                known = 'unknown' if isnan(soc) else f'{soc:.0%}'
                return 0.0, (f'no discharge of {magnitude(power)}: state of charge {known}, '
                             f'reserve {p.soc_reserve:.0%}')
        return power, ''
