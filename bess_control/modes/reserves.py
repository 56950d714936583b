"""Limits on the state of charge: limit of total discharge and reserve for emergencies."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import ClassVar

from bess_control.load_estimate import clamp
from bess_control.modes.base import BoundParams, ModeBase, View, soc_problem
from bess_control.proposals import Proposal
from bess_control.words import magnitude
from bess_core.params import param


@dataclass(frozen=True)
class LimitTotalDischargeParams(BoundParams):
    """Parameters of the limit of total discharge."""

    min_soc: float = param(0.15, '', 'state of charge (0..1) at which discharging ends', low=0.0, high=1.0)
    force_charge_soc: float = param(
        0.10, '', 'state of charge (0..1) at which it charges; 0 = never', low=0.0, high=1.0)
    force_charge_power: float = param(500.0, 'W', 'power with which it then charges', low=0.0, high=1e9)
    hysteresis: float = param(0.02, '', 'how far above a threshold it is released', low=0.0, high=0.5)
    release_s: float = param(
        300.0, 's', 'how long the state of charge must stay above before it is released; protecting does not wait',
        low=0.0, high=86400.0)
    priority: int = param(200, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        if self.force_charge_soc and self.force_charge_soc >= self.min_soc:
            raise ValueError(f'force_charge_soc {self.force_charge_soc:g} is not below min_soc {self.min_soc:g}')


class LimitTotalDischarge(ModeBase):
    """No discharge below a state of charge, and a forced charge below a lower one.

    Towards protection it acts at once, hysteresis is for release only. While the state of charge is
    unknown the last limit stays, or no discharge when there was none.
    """

    Params: ClassVar[type] = LimitTotalDischargeParams

    params: LimitTotalDischargeParams

    def __init__(self, params: LimitTotalDischargeParams, source: str = 'limit_total_discharge', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.state = ''
        self._above_since = inf

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        self.problem = soc_problem(view.battery)
        if self.problem:
            self._above_since = inf
            if self.state in ('', 'normal'):
                self.state = 'min_soc'
        else:
            self._move(view.battery.soc, view.now)
        p = self.params
        known = self.problem or f'state of charge {view.battery.soc:.1%}'
        if self.state == 'force_charge':
            return self.propose(view, low=p.force_charge_power, high=inf,
                                reason=f'{known}: charging to protect the battery')
        if self.state == 'min_soc':
            return self.propose(view, low=0.0, reason=f'{known}: no discharge below {p.min_soc:.0%}')
        return self.propose(view, reason=f'{known}: no limit')

    def _move(self, soc: float, now: float) -> None:
        p = self.params
        wanted = ('force_charge' if p.force_charge_soc and soc <= p.force_charge_soc
                  else 'min_soc' if soc <= p.min_soc else 'normal')
        order = ('normal', 'min_soc', 'force_charge')
        here = order.index(self.state) if self.state in order else 0
        if order.index(wanted) >= here:
            self.state, self._above_since = wanted, inf
            return
        leaves = p.force_charge_soc if self.state == 'force_charge' else p.min_soc
        if soc < min(leaves + p.hysteresis, 1.0):
            self._above_since = inf
            return
        self._above_since = min(self._above_since, now)
        if now - self._above_since >= p.release_s:
            self.state, self._above_since = order[here - 1], inf


@dataclass(frozen=True)
class EmergencyReserveParams(BoundParams):
    """Parameters of the emergency reserve."""

    reserve_soc: float = param(0.20, '', 'state of charge (0..1) that is kept for an outage', low=0.05, high=1.0)
    band: float = param(0.01, '', 'width of the zone above and below the reserve', low=0.002, high=0.1)
    max_power: float = param(5000.0, 'W', 'discharge power (magnitude) far above the reserve', low=0.0, high=1e9)
    ramp_share: float = param(
        0.01, '1/s', 'how fast the bound is released, as a share of max_power; tightening does not wait',
        low=1e-4, high=10.0)
    grid_charge: bool = param(
        False, '', 'well below the reserve it may be refilled from the grid, else only from generation')
    grid_charge_power: float = param(500.0, 'W', 'power of that', low=0.0, high=1e9)
    pv_meter: str = param('', '', 'meter in the line of the PV plant: below the reserve generation goes into the '
                                  'battery', ref='meter')
    priority: int = param(190, '', 'Priority of the proposals.', low=0, high=255)


class EmergencyReserve(ModeBase):
    """Keeps a part of the energy for an outage.

    The bound of discharge narrows from `max_power` over half of it to zero as the state of charge comes
    down to the reserve; below, generation and then (where allowed) the grid refill it.
    """

    Params: ClassVar[type] = EmergencyReserveParams
    meters: ClassVar[tuple[str, ...]] = ('pv_meter',)

    params: EmergencyReserveParams

    def __init__(self, params: EmergencyReserveParams, source: str = 'emergency_reserve', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._last_soc = -1.0
        self._bound = -inf  # W, lower bound of power
        self._at: float | None = None

    def reset(self) -> None:
        """See `ModeBase`."""
        self.state, self._at = '', None

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`. An unknown state of charge counts as the last known one, or as below the reserve."""
        p = self.params
        self.problem = soc_problem(view.battery)
        soc = self._last_soc if self.problem else view.battery.soc
        self._last_soc = soc
        self.state = self._next(soc)
        target = self._target(view)
        dt = 0.0 if self._at is None else clamp(view.now - self._at, 0.0, 1.0)
        first, self._at = self._at is None, view.now
        if first or target >= self._bound:
            self._bound = target
        else:
            self._bound = max(target, max(self._bound, -p.max_power) - p.ramp_share * p.max_power * dt)
        self.values = {'reserve': p.reserve_soc, 'discharge_bound_w': -self._bound}
        free = self.state == 'free' and self._bound <= -p.max_power
        text = self.problem or f'state of charge {soc:.1%}, reserve {p.reserve_soc:.0%}'
        if free:
            return self.propose(view, reason=f'{text}: no limit')
        if self._bound > 0.0:
            return self.propose(view, low=self._bound, reason=f'{text}: refilling with {magnitude(self._bound)}')
        return self.propose(view, low=self._bound, reason=f'{text}: discharge at most {magnitude(self._bound)}')

    def _next(self, soc: float) -> str:
        p, b, state = self.params, self.params.band, self.state
        if soc < p.reserve_soc - 2.0 * b and p.grid_charge:
            return 'refill_grid'
        if soc < p.reserve_soc - b:
            return 'refill_grid' if state == 'refill_grid' and p.grid_charge else 'refill_pv'
        if state in ('refill_pv', 'refill_grid') and soc < p.reserve_soc + (b if p.reserve_soc + b <= 1.0 else 0.0):
            return state
        if soc < p.reserve_soc:
            return 'below'
        if soc <= p.reserve_soc + 1e-9 or (state in ('at', 'below') and soc < p.reserve_soc + 0.5 * b):
            return 'at'
        return 'above' if soc <= p.reserve_soc + (2.0 * b if state == 'above' else b) else 'free'

    def _target(self, view: View) -> float:
        p = self.params
        if self.state == 'free':
            return -p.max_power
        if self.state == 'above':
            return -0.5 * p.max_power
        if self.state == 'refill_grid':
            return p.grid_charge_power
        pv = view.meters.get('pv_meter')
        if self.state == 'refill_pv' and pv is not None and isfinite(pv.active_power):
            return max(-pv.active_power, 0.0)
        return 0.0
