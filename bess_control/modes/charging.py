"""Modes about charging: charge only, delayed and grid-optimised charging."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import ClassVar

from bess_control.grid_loop import GridLoop, GridLoopParams
from bess_control.modes.base import BoundParams, ModeBase, ModeBaseParams, View, soc_problem
from bess_control.modes.windows import Windows, local, minute_of_day, next_time_of_day, zone
from bess_control.proposals import Proposal
from bess_control.words import grid_watts, magnitude, watts
from bess_core.params import param

NO_LIMIT = 1e12  # W
HOUR = 3600.0


@dataclass(frozen=True)
class ChargeOnlyParams(GridLoopParams, ModeBaseParams):
    """Parameters of charge only."""

    target_soc: float = param(1.0, '', 'state of charge (0..1) at which charging ends', low=0.0, high=1.0)
    hysteresis: float = param(
        0.02, '', 'how far the state of charge must fall below the target before charging starts again',
        low=0.0, high=0.5)
    charge_power: float = param(NO_LIMIT, 'W', 'power to charge with', low=0.0, high=NO_LIMIT)
    c_rate: float = param(0.5, '1/h', 'most charge power as a share of the energy when full, per hour; '
                                      'not used while that energy is unknown', low=0.01, high=20.0)
    windows: list[str] = param([], '', 'times at which it may charge, e.g. "22:00-06:00", "Sa,Su 00:00-24:00"; '
                                       'none = always')
    time_zone: str = param('', '', 'time zone of the windows, e.g. "Europe/Berlin"; empty = of the machine')
    import_cap: float = param(
        NO_LIMIT, 'W', 'import at the grid connection that charging must not exceed', low=0.0, high=NO_LIMIT)

    def __post_init__(self) -> None:
        Windows(self.windows, self.time_zone)


class ChargeOnly(ModeBase):
    """Charges to a target in given times and never discharges.

    Without a trustworthy meter an import cap can not be kept: then it does not charge.
    """

    Params: ClassVar[type] = ChargeOnlyParams

    params: ChargeOnlyParams

    def __init__(self, params: ChargeOnlyParams, source: str = 'charge_only', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._windows = Windows(params.windows, params.time_zone)
        self._loop = GridLoop(params, meter)
        self._full = False
        if params.import_cap < NO_LIMIT and not meter:
            raise ValueError('import_cap needs a meter')

    def reset(self) -> None:
        """See `ModeBase`."""
        self._loop.reset()
        self._full = False

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p, soc = self.params, view.battery.soc
        fresh = True
        capped = p.import_cap < NO_LIMIT
        if capped:
            fresh = self._loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = (self._loop.problem if capped else '') or soc_problem(view.battery)
        if self.problem:
            return self._rest(view, 'blind', self.problem)
        if not fresh:
            return None
        if soc >= p.target_soc:
            self._full = True
        elif soc < p.target_soc - p.hysteresis:
            self._full = False
        if self._full:
            return self._rest(view, 'full', f'target {p.target_soc:.0%} reached')
        if not self._windows.cover(view.wall):
            return self._rest(view, 'waiting', f'outside of {", ".join(p.windows)}')
        power = p.charge_power
        if 0.0 < view.battery.energy_full < inf:
            power = min(power, p.c_rate * view.battery.energy_full)
        if power >= NO_LIMIT:
            power = _known(view.battery.max_charge_power)
        reason = f'charging to {p.target_soc:.0%}'
        if capped:
            room = self._loop.track(p.import_cap, view.battery, view.granted, view.now)
            if room < power:
                power, reason = max(room, 0.0), f'{reason}, import cap {magnitude(p.import_cap)}'
            self._loop.asked(power)
        self.state = 'charging'
        return self.propose(view, power, low=0.0, reason=reason)

    def _rest(self, view: View, state: str, reason: str) -> Proposal:
        self.state = state
        self._loop.release()
        return self.propose(view, 0.0, low=0.0, reason=reason)


def _known(limit: float) -> float:
    return max(limit, 0.0) if isfinite(limit) else 0.0


def missing_energy(view: View, target_soc: float) -> float:
    """Wh to be taken in until `target_soc`; NaN while the battery does not tell."""
    b = view.battery
    full = b.energy_full if 0.0 < b.energy_full < inf else nan
    return max(target_soc - b.soc, 0.0) * full


@dataclass(frozen=True)
class DelayedChargeParams(BoundParams):
    """Parameters of delayed charging."""

    target_time: str = param('15:00', '', 'local time of day at which the battery is to be full')
    target_soc: float = param(1.0, '', 'state of charge (0..1) to have then', low=0.0, high=1.0)
    time_zone: str = param('', '', 'time zone of the target time; empty = of the machine')
    margin_s: float = param(0.0, 's', 'how much earlier it is to be full', low=0.0, high=6 * HOUR)
    efficiency: float = param(0.95, '', 'share of the charge energy that is stored', low=0.5, high=1.0)

    def __post_init__(self) -> None:
        minute_of_day(self.target_time)
        zone(self.time_zone)


class DelayedCharge(ModeBase):
    """Spreads charging over the day, so that the battery is full at a target time and not at noon.

    A full battery in the hours after the sun is highest leaves nothing to take the midday peak. The
    charge power is bounded by missing energy / remaining time; after the target time there is no bound
    until midnight. Discharging stays free.
    """

    Params: ClassVar[type] = DelayedChargeParams

    params: DelayedChargeParams

    def __init__(self, params: DelayedChargeParams, source: str = 'delayed_charge', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._zone = zone(params.time_zone)
        self._minute = minute_of_day(params.target_time)

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`. An unknown state of charge is no reason to forbid charging: no bound, and it says so."""
        p = self.params
        self.problem = soc_problem(view.battery)
        missing = missing_energy(view, p.target_soc)
        if self.problem or isnan(missing):
            self.problem = self.problem or 'energy when full is unknown'
            self.state = 'blind'
            return self.propose(view, reason=self.problem)
        target = next_time_of_day(view.wall, self._minute, self._zone)
        if local(target, self._zone).date() != local(view.wall, self._zone).date():
            self.state = 'released'
            return self.propose(view, reason=f'after {p.target_time} charging is free')
        left = (target - p.margin_s - view.wall) / HOUR
        if left <= 1.0 / 60.0:
            self.state = 'released'
            return self.propose(view, reason='the target time has come')
        limit = missing / p.efficiency / left
        self.state = 'delaying'
        self.values = {'limit_w': limit, 'missing_wh': missing}
        return self.propose(view, high=limit, reason=f'at most {magnitude(limit)} to be full at {p.target_time}')


@dataclass(frozen=True)
class GridOptimizedChargeParams(GridLoopParams, DelayedChargeParams):
    """Parameters of grid-optimised charging."""

    target_time: str = param(
        '', '', 'local time of day at which the battery is to be full; empty = found each day from the PV of the '
        'days before')
    export_limit: float = param(
        NO_LIMIT, 'W', 'export (magnitude) above which the battery charges, whatever the delay says',
        low=0.0, high=NO_LIMIT)
    pv_meter: str = param('', '', 'meter in the line of the PV plant; needed where target_time is empty', ref='meter')
    buffer_s: float = param(
        2 * HOUR, 's', 'how long before the end of the daily surplus it is to be full', low=0.0, high=6 * HOUR)
    start_power: float = param(100.0, 'W', 'generation from which the day begins', low=0.0, high=1e6)
    low_power_share: float = param(
        0.08, '1/h', 'a delayed charge power below this share of the energy when full counts as zero: converters '
        'lose most at low power', low=0.0, high=1.0)

    def __post_init__(self) -> None:
        zone(self.time_zone)
        if self.target_time:
            minute_of_day(self.target_time)
        elif not self.pv_meter:
            raise ValueError('target_time is empty and no pv_meter is given: nothing tells when the surplus ends')


class GridOptimizedCharge(ModeBase):
    """Delayed charging that also takes what exceeds an export limit, at the time of the sun's peak.

    The target time is that at which surplus (generation above load) ended on the previous days, less a buffer.
    """

    Params: ClassVar[type] = GridOptimizedChargeParams
    needs_meter: ClassVar[bool] = True
    meters: ClassVar[tuple[str, ...]] = ('pv_meter',)

    params: GridOptimizedChargeParams

    def __init__(self, params: GridOptimizedChargeParams, source: str = 'grid_optimized_charge',
                 battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._zone = zone(params.time_zone)
        self._loop = GridLoop(params, meter)
        self._day = ''
        self._ends: list[int] = []  # minutes of the day at which surplus ended, newest last
        self._last_surplus: int | None = None
        self._started = False

    def reset(self) -> None:
        """See `ModeBase`; what was learnt of the days stays."""
        self._loop.reset()

    def save(self) -> dict[str, object]:
        """What survives a restart."""
        return {'ends': self._ends}

    def restore(self, saved: dict[str, list[int]]) -> None:
        """Take back what `save` gave."""
        self._ends = [int(m) for m in saved['ends']][-7:]

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p = self.params
        fresh = self._loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = self._loop.problem or soc_problem(view.battery)
        if self.problem:
            self.state = 'blind'
            return self.propose(view, reason=self.problem)
        if not fresh:
            return None
        rest = self._loop.rest
        self._watch_day(view, rest)
        low = -inf
        if p.export_limit < NO_LIMIT and -rest > p.export_limit:
            low = max(self._loop.track(-p.export_limit, view.battery, view.granted, view.now), 0.0)
        else:
            self._loop.release()
        limit = self._limit(view)
        self.values = {'rest_w': rest, 'limit_w': limit, 'export_floor_w': low if isfinite(low) else nan}
        if low > 0.0:
            self.state = 'absorbing'
            return self.propose(view, low=low, high=max(limit, low),
                                reason=f'export limit {magnitude(p.export_limit)}, the rest of the site is at '
                                       f'{grid_watts(rest)}')
        if limit < NO_LIMIT:
            self.state = 'delaying'
            return self.propose(view, high=limit, reason=f'charging delayed: at most {watts(limit)}')
        self.state = 'released'
        return self.propose(view, reason='charging is free')

    def _watch_day(self, view: View, rest: float) -> None:
        at = local(view.wall, self._zone)
        day, minute = at.date().isoformat(), at.hour * 60 + at.minute
        if day != self._day:
            if self._last_surplus is not None:
                self._ends = [*self._ends, self._last_surplus][-7:]
                self.dirty = True
            self._day, self._last_surplus, self._started = day, None, False
        pv = view.meters.get('pv_meter')
        generation = -pv.active_power if pv is not None else -rest
        if generation > self.params.start_power:
            self._started = True
        if rest < -self.params.start_power:
            self._last_surplus = minute

    def _limit(self, view: View) -> float:
        """Bound of charging in W; NO_LIMIT = none."""
        p = self.params
        if p.target_time:
            minute, buffer = minute_of_day(p.target_time), p.margin_s
        elif self._ends:
            minute, buffer = sorted(self._ends)[len(self._ends) // 2], p.buffer_s
        else:
            return NO_LIMIT  # the first day teaches
        at = local(view.wall, self._zone)
        left = (minute - at.hour * 60 - at.minute) / 60.0 - at.second / HOUR - buffer / HOUR
        missing = missing_energy(view, p.target_soc)
        if left <= 1.0 / 60.0 or isnan(missing) or not self._started:
            return NO_LIMIT
        limit = missing / p.efficiency / left
        return 0.0 if limit < p.low_power_share * view.battery.energy_full else limit
