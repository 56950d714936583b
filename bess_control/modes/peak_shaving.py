"""Peak shaving: grid power within import and export limits; below a recharge level the battery refills.

Between the bands it only sets bounds, so that modes of lower priority (self-consumption, tariffs) use
the battery freely there. It must therefore stand above them in priority.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import ClassVar

from bess_control.grid_loop import GridLoop, GridLoopParams
from bess_control.modes.base import BoundParams, ModeBase, View
from bess_control.proposals import Proposal
from bess_control.words import grid_watts, magnitude
from bess_core.params import param

NO_LIMIT = 1e12  # W


@dataclass(frozen=True)
class PeakShavingParams(GridLoopParams, BoundParams):
    """Parameters of peak shaving."""

    import_limit: float = param(
        NO_LIMIT, 'W', 'import that is not to be exceeded: above it the battery discharges', low=0.0, high=NO_LIMIT)
    export_limit: float = param(
        NO_LIMIT, 'W', 'export (magnitude) that is not to be exceeded: above it the battery charges',
        low=0.0, high=NO_LIMIT)
    recharge_limit: float = param(
        -NO_LIMIT, 'W', 'grid power, + = import, up to which the battery recharges; -1e12 = does not recharge by '
        'itself. Below the import limit', low=-NO_LIMIT, high=NO_LIMIT)
    recharge_power: float = param(NO_LIMIT, 'W', 'most power for recharging', low=0.0, high=NO_LIMIT)
    recharge_soc: float = param(
        0.95, '', 'state of charge (0..1) to which it recharges, so that the next peak can be shaved',
        low=0.0, high=1.0)
    recharge_hysteresis: float = param(
        0.03, '', 'how far the state of charge must have fallen before it recharges again', low=0.0, high=0.5)

    def __post_init__(self) -> None:
        if self.import_limit >= NO_LIMIT and self.export_limit >= NO_LIMIT:
            raise ValueError('neither import_limit nor export_limit is given: there is no peak to shave')
        if self.recharge_limit > self.import_limit:
            raise ValueError(f'recharge_limit {self.recharge_limit:g} W is above import_limit {self.import_limit:g} W')
        if -self.export_limit > self.recharge_limit > -NO_LIMIT:
            raise ValueError('recharge_limit is below the export limit')


class PeakShaving(ModeBase):
    """Grid power within limits, without taking the battery from other modes in between."""

    Params: ClassVar[type] = PeakShavingParams
    needs_meter: ClassVar[bool] = True

    params: PeakShavingParams

    def __init__(self, params: PeakShavingParams, source: str = 'peak_shaving', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.loop = GridLoop(params, meter)
        self._full = False

    def reset(self) -> None:
        """See `ModeBase`."""
        self.loop.reset()
        self.state = ''

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`. Without a meter: no import peak can be seen, so charging and export are blocked."""
        loop, p = self.loop, self.params
        fresh = loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = loop.problem
        if self.problem:
            self.state = 'blind'
            return self.propose(view, low=0.0, high=0.0, reason=self.problem)
        if not fresh or isnan(loop.rest):
            return None
        rest = loop.rest
        self.values = {'rest_w': rest, 'grid_w': loop.grid}
        low, high = -p.export_limit - rest, p.import_limit - rest
        site = f'the rest of the site is at {grid_watts(rest)}'
        if high < 0.0:
            return self._hold(view, p.import_limit, 'shaving', f'import limit {magnitude(p.import_limit)}, {site}')
        if low > 0.0:
            return self._hold(view, -p.export_limit, 'absorbing', f'export limit {magnitude(p.export_limit)}, {site}')
        wanted = self._recharge(view, rest)
        if not wanted > 0.0:
            loop.release()
            self.state = 'between'
            return self.propose(view, low=low, high=high, reason=f'between the limits, {site}')
        self.state = 'recharging'
        return self.propose(view, wanted, low=low, high=high,
                            reason=f'recharging up to {grid_watts(p.recharge_limit)}, {site}')

    def _hold(self, view: View, target: float, state: str, reason: str) -> Proposal:
        """The limit as a bound: others may do more in the same direction, not less."""
        self.state = state
        power = self.loop.track(target, view.battery, view.granted, view.now)
        if state == 'shaving':
            return self.propose(view, low=-self.params.export_limit - self.loop.rest, high=min(power, 0.0),
                                reason=reason)
        high = self.params.import_limit - self.loop.rest
        return self.propose(view, low=max(power, 0.0), high=max(high, power), reason=reason)

    def _recharge(self, view: View, rest: float) -> float:
        """Power with which to refill, W; NaN = not now."""
        p, soc = self.params, view.battery.soc
        if p.recharge_limit <= -NO_LIMIT or isnan(soc):
            return nan
        if soc >= p.recharge_soc:
            self._full = True
        elif soc < p.recharge_soc - p.recharge_hysteresis:
            self._full = False
        room = p.recharge_limit - rest
        if self._full or room <= 0.0:
            return nan
        power = self.loop.track(p.recharge_limit, view.battery, view.granted, view.now)
        power = min(max(power, 0.0), p.recharge_power)
        self.loop.asked(power)
        return power if power < inf else nan
