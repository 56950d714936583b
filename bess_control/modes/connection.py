"""Modes about what the grid connection may carry: feed-in limit, controllable-load limit, ramp rate."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from typing import ClassVar

from bess_control.grid_loop import GridLoop, GridLoopParams
from bess_control.load_estimate import clamp
from bess_control.modes.base import BoundParams, ModeBase, ModeBaseParams, View, soc_problem
from bess_control.proposals import Proposal
from bess_control.words import grid_watts, magnitude
from bess_core.params import param

NO_LIMIT = 1e12  # W


@dataclass(frozen=True)
class FeedInLimitParams(GridLoopParams, BoundParams):
    """Parameters of the feed-in limit."""

    max_feed_in: float = param(
        NO_LIMIT, 'W', 'export (magnitude) allowed at the grid connection', low=0.0, high=NO_LIMIT)
    pv_peak_power: float = param(0.0, 'W', 'rated power of the PV plant, for pv_share', low=0.0, high=1e9)
    pv_share: float = param(1.0, '', 'export allowed as a share of pv_peak_power, e.g. 0.6', low=0.0, high=1.0)
    ripple_0: str = param('', '', 'topic (std_msgs/Bool) of the ripple control contact "0 %": while true, no export')
    ripple_30: str = param('', '', 'topic of the contact "30 %" of pv_peak_power')
    ripple_60: str = param('', '', 'topic of the contact "60 %" of pv_peak_power')
    signal_timeout_s: float = param(
        60.0, 's', 'a contact that was not heard for so long counts as closed (limit in force)', low=1.0, high=86400.0)
    priority: int = param(180, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        if (self.pv_share < 1.0 or self.ripple_30 or self.ripple_60) and self.pv_peak_power <= 0.0:
            raise ValueError('pv_share and ripple control are shares of pv_peak_power, which is not given')


class FeedInLimit(ModeBase):
    """Export at most so much: what exceeds it goes into the battery, and the battery adds nothing to it.

    What the battery can not take is left to the PV inverter's own limit.
    """

    Params: ClassVar[type] = FeedInLimitParams
    needs_meter: ClassVar[bool] = True
    signals: ClassVar[tuple[str, ...]] = ('ripple_0', 'ripple_30', 'ripple_60')

    params: FeedInLimitParams

    def __init__(self, params: FeedInLimitParams, source: str = 'feed_in_limit', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.loop = GridLoop(params, meter)
        self._begun: float | None = None

    def reset(self) -> None:
        """See `ModeBase`."""
        self.loop.reset()

    def limit(self, view: View) -> tuple[float, str]:
        """Export allowed now in W, and why."""
        p = self.params
        self._begun = view.now if self._begun is None else self._begun
        options = [(p.max_feed_in, f'feed-in limit {magnitude(p.max_feed_in)}')]
        if p.pv_peak_power > 0.0:
            options.append((p.pv_share * p.pv_peak_power, f'{p.pv_share:.0%} of the PV plant'))
        for name, share in (('ripple_0', 0.0), ('ripple_30', 0.3), ('ripple_60', 0.6)):
            if not getattr(p, name):
                continue
            signal = view.signals.get(name)
            heard = self._begun if signal is None else signal.time
            silent = view.now - heard > p.signal_timeout_s
            if silent or (signal is not None and signal.value):
                options.append((share * p.pv_peak_power,
                                f'ripple control {share:.0%}{", contact not heard" if silent else ""}'))
        return min(options)

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`. Without a meter the battery may not discharge: it might be into the grid."""
        loop = self.loop
        fresh = loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = loop.problem
        if self.problem:
            self.state = 'blind'
            return self.propose(view, low=0.0, reason=self.problem)
        if not fresh or isnan(loop.rest):
            return None
        allowed, why = self.limit(view)
        low = -allowed - loop.rest
        self.values = {'rest_w': loop.rest, 'allowed_w': allowed}
        if low <= 0.0:
            loop.release()
            self.state = 'within'
            return self.propose(view, low=low, reason=why)
        self.state = 'absorbing'
        low = max(loop.track(-allowed, view.battery, view.granted, view.now), 0.0)
        return self.propose(view, low=low, reason=f'{why}, the rest of the site is at {grid_watts(loop.rest)}')


@dataclass(frozen=True)
class LoadLimitParams(GridLoopParams, BoundParams):
    """Parameters of the limit of controllable loads."""

    input: str = param('', '', 'topic (std_msgs/Bool) of the control contact of the grid operator: true = limit')
    charge_limit: float = param(
        4200.0, 'W', 'power with which the battery may charge while the limit is on', low=0.0, high=NO_LIMIT)
    import_limit: float = param(
        NO_LIMIT, 'W', 'import at the grid connection while the limit is on, where the operator limits the whole '
        'connection; own generation may then be used on top', low=0.0, high=NO_LIMIT)
    timeout_s: float = param(
        60.0, 's', 'a contact that was not heard for so long counts as "limit on"', low=1.0, high=86400.0)
    release_s: float = param(0.0, 's', 'how long the limit stays after the contact opened', low=0.0, high=86400.0)
    priority: int = param(210, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError('input is missing: the topic of the control contact')


class LoadLimit(ModeBase):
    """Limits charging on the grid operator's signal (as section 14a of the German EnWG has it: 4.2 kW).

    A contact that is silent counts as "limit on": a broken wire must not lift a limit. Discharging stays
    free. How long and how much it limited is counted, because the operator of a site has to document it.
    """

    Params: ClassVar[type] = LoadLimitParams
    signals: ClassVar[tuple[str, ...]] = ('input',)

    params: LoadLimitParams

    def __init__(self, params: LoadLimitParams, source: str = 'load_limit', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        if params.import_limit < NO_LIMIT and not meter:
            raise ValueError('import_limit needs a meter')
        self._loop = GridLoop(params, meter)
        self._begun: float | None = None
        self._on_until = -inf
        self._at: float | None = None
        self.limited_s = 0.0  # s, in total
        self.events = 0

    def reset(self) -> None:
        """See `ModeBase`; the counters stay."""
        self._loop.reset()
        self._at = None

    def save(self) -> dict[str, float]:
        """What survives a restart."""
        return {'limited_s': self.limited_s, 'events': self.events}

    def restore(self, saved: dict[str, float]) -> None:
        """Take back what `save` gave."""
        self.limited_s, self.events = float(saved['limited_s']), int(saved['events'])

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p, now = self.params, view.now
        self._begun = now if self._begun is None else self._begun
        signal = view.signals.get('input')
        heard = self._begun if signal is None else signal.time
        silent = now - heard > p.timeout_s
        self.problem = f'contact {p.input} not heard for {now - heard:.0f} s: limit on' if silent else ''
        if silent or (signal is not None and signal.value):
            self._on_until = now + p.release_s
            on = True
        else:
            on = now < self._on_until
        if on and self.state == 'limited' and self._at is not None:
            self.limited_s += clamp(now - self._at, 0.0, 10.0)
        if on is not (self.state == 'limited'):
            self.events += on
            self.dirty = True
        self._at, self.state = now, 'limited' if on else 'free'
        high, why = p.charge_limit, f'charging at most {magnitude(p.charge_limit)} on order of the grid operator'
        if p.import_limit < NO_LIMIT:
            self._loop.look(view.meter, view.battery, view.granted, now)
            if self._loop.problem or isnan(self._loop.rest):
                why += f'; {self._loop.problem or "the rest of the site is unknown"}'
            else:
                high = max(p.import_limit - self._loop.rest, 0.0)
                why = f'import at most {magnitude(p.import_limit)} on order of the grid operator'
        self.values = {'limited_s': self.limited_s, 'events': float(self.events), 'limit_w': high if on else inf}
        if not on:
            return self.propose(view, reason='no limit ordered')
        return self.propose(view, high=high, reason=self.problem or why)


@dataclass(frozen=True)
class RampRateParams(GridLoopParams, ModeBaseParams):
    """Parameters of ramp-rate limiting."""

    ramp_rate: float = param(
        10.0, 'W/s', 'fastest change of the power at the grid connection', low=0.001, high=1e9)
    pv_meter: str = param('', '', 'meter in the line of the PV plant: then the ramp of generation is limited; empty = '
                                  'the ramp of the whole connection', ref='meter')
    target_soc: float = param(
        0.5, '', 'state of charge (0..1) to which the battery drifts back between ramps', low=0.0, high=1.0)
    recovery_share: float = param(
        0.1, '1/h', 'power of that as a share of the energy when full, per hour, at a deviation of 0.5; 0 = none',
        low=0.0, high=5.0)
    priority: int = param(120, '', 'Priority of the proposals.', low=0, high=255)


class RampRate(ModeBase):
    """Limits how fast the power at the connection (or of the PV plant) changes; the battery fills the gap."""

    Params: ClassVar[type] = RampRateParams
    needs_meter: ClassVar[bool] = True
    meters: ClassVar[tuple[str, ...]] = ('pv_meter',)

    params: RampRateParams

    def __init__(self, params: RampRateParams, source: str = 'ramp_rate', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.loop = GridLoop(params, meter)
        self._level: float | None = None  # W, the ramped power
        self._at: float | None = None

    def reset(self) -> None:
        """See `ModeBase`."""
        self.loop.reset()
        self._level = self._at = None

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p, loop = self.params, self.loop
        fresh = loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = loop.problem
        if self.problem:
            self.state, self._level = 'blind', None
            return self.propose(view, 0.0, reason=self.problem)
        if not fresh or isnan(loop.rest):
            return None
        source, name = loop.rest, 'grid connection'
        if p.pv_meter:
            pv = view.meters.get('pv_meter')
            if pv is None or isnan(pv.active_power) or view.now - pv.time > p.max_meter_age_s:
                self.problem, self._level = f'{p.pv_meter} has no fresh value', None
                return self.propose(view, 0.0, reason=self.problem)
            source, name = pv.active_power, 'generation'
        dt = 0.0 if self._at is None else clamp(view.now - self._at, 0.0, 10.0)
        self._at = view.now
        if self._level is None:  # the battery goes on as it is, and the ramp begins there
            self._level = source + (view.granted or 0.0)
        step = p.ramp_rate * dt
        wanted = source + recovery(view, p.target_soc, p.recovery_share)
        self._level = clamp(wanted, self._level - step, self._level + step)
        power = self._level - source
        self.state = 'ramping' if abs(wanted - self._level) > p.dead_band else 'steady'
        self.values = {'level_w': self._level, 'source_w': source}
        return self.propose(view, power, reason=f'{name} at {grid_watts(source)}, ramped {grid_watts(self._level)}')


def recovery(view: View, target_soc: float, share: float) -> float:
    """Power (W) that brings the state of charge back to its target slowly; 0 while unknown."""
    b = view.battery
    if soc_problem(b) or not 0.0 < b.energy_full < inf:
        return 0.0
    return 2.0 * share * b.energy_full * clamp(target_soc - b.soc, -0.5, 0.5)
