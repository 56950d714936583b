"""State machine of backup power: grid loss, island, load shedding, return to the grid. Pure.

    on_grid -> islanding -> forming -> island -> observing -> reconnecting -> ramping -> on_grid
                               |          |          |
                               v          v          v (grid gone again: island)
                          black_start   dark

`tick` takes what is measured and returns what the outputs are to be: the transfer switch to the grid,
the converter's grid forming, and each load group. Feedback that is not wired (None) is replaced by
time. Each waiting state has a timeout. What fails ends in `failed`: switch open, forming off, until the
grid is back or somebody resets it.

The machine does not replace the anti-islanding protection of converter and connection: the switch must
be one that is approved for it, and closing onto a live grid needs a device that synchronises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, nan

from bess_core.params import param

OFF_STATES = ('dark', 'failed')
#: State in which a restart goes on, by the state in which it ended: never one that closes the switch onto an island.
AFTER_RESTART = {'islanding': 'islanding', 'forming': 'forming', 'black_start': 'black_start', 'island': 'island',
                 'observing': 'island', 'reconnecting': 'observing', 'ramping': 'ramping', 'dark': 'dark',
                 'failed': 'failed'}


@dataclass(frozen=True)
class BackupParams:
    """Parameters of the backup machine."""

    nominal_voltage: float = param(230.0, 'V', 'phase voltage that is 1 pu', low=50.0, high=100000.0)
    loss_voltage_low: float = param(
        0.80, 'pu', 'voltage of a phase below which the grid counts as lost', low=0.1, high=1.0)
    loss_voltage_high: float = param(1.20, 'pu', 'voltage above which the grid counts as lost', low=1.0, high=1.5)
    loss_frequency_low: float = param(47.5, 'Hz', 'frequency below which the grid counts as lost', low=40.0, high=65.0)
    loss_frequency_high: float = param(51.5, 'Hz', 'frequency above which the grid counts as lost', low=45.0, high=70.0)
    detect_s: float = param(0.2, 's', 'how long before a loss is believed', low=0.0, high=60.0)
    return_voltage_low: float = param(0.85, 'pu', 'voltage from which the grid counts as back', low=0.1, high=1.0)
    return_voltage_high: float = param(1.10, 'pu', 'voltage up to which the grid counts as back', low=1.0, high=1.5)
    return_frequency_low: float = param(49.5, 'Hz', 'frequency from which the grid counts as back', low=40.0, high=65.0)
    return_frequency_high: float = param(
        50.1, 'Hz', 'frequency up to which the grid counts as back', low=45.0, high=70.0)
    observation_s: float = param(
        60.0, 's', 'how long the grid must have been back without a break', low=0.0, high=3600.0)
    ramp_s: float = param(
        600.0, 's', 'time in which the power may rise again after the return (10 % per minute)', low=0.0, high=7200.0)
    ramp_power: float = param(1e6, 'W', 'power that is reached at the end of the ramp', low=0.0, high=1e9)
    switch_timeout_s: float = param(
        2.0, 's', 'longest time of the switch, and its time without feedback', low=0.0, high=60.0)
    form_timeout_s: float = param(10.0, 's', 'longest time until the converter forms the grid', low=0.1, high=600.0)
    black_start: bool = param(True, '', 'when forming under load fails, or there is no grid at start: without load')
    black_start_tries: int = param(3, '', 'how often', low=1, high=100)
    dark_soc: float = param(0.05, '', 'state of charge (0..1) at which the island is given up', low=0.0, high=1.0)
    restart_soc: float = param(0.10, '', 'state of charge from which it is formed again', low=0.0, high=1.0)
    overload_share: float = param(
        0.95, '', 'share of the discharge limit from which load groups are shed', low=0.1, high=2.0)
    overload_s: float = param(0.5, 's', 'how long before one more is shed', low=0.0, high=60.0)
    restore_s: float = param(15.0, 's', 'time between load groups that come back', low=0.0, high=3600.0)
    restore_soc: float = param(0.05, '', 'how far above its own limit a group comes back', low=0.0, high=0.5)
    test_every_days: float = param(0.0, 'd', 'how often the island is tested; 0 = never by itself', low=0.0, high=366.0)
    test_duration_s: float = param(60.0, 's', 'length of the test', low=1.0, high=86400.0)
    test_min_soc: float = param(0.5, '', 'state of charge below which no test begins', low=0.0, high=1.0)

    def __post_init__(self) -> None:
        if self.restart_soc < self.dark_soc:
            raise ValueError('restart_soc is below dark_soc')
        for low, high in (('loss_voltage_low', 'return_voltage_low'), ('return_voltage_high', 'loss_voltage_high'),
                          ('loss_frequency_low', 'return_frequency_low'),
                          ('return_frequency_high', 'loss_frequency_high')):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f'{low} is above {high}: the grid would be lost and back at once')


@dataclass(frozen=True)
class LoadGroup:
    """A group of loads behind one output. Groups are in order of importance, the first is shed last."""

    topic: str
    min_soc: float = 0.0  # below it the group is off in an island

    @classmethod
    def parse(cls, text: str) -> LoadGroup:
        """From "io/kitchen" or "io/heat_pump 0.6". Raises ValueError."""
        topic, _, soc = text.strip().partition(' ')
        try:
            value = float(soc) if soc else 0.0
        except ValueError:
            value = nan
        if not topic or not 0.0 <= value <= 1.0:
            raise ValueError(f'{text!r} is no load group; write the topic of its output and the lowest state of '
                             'charge, e.g. "io/heat_pump 0.6"')
        return cls(topic, value)


@dataclass(slots=True)
class Seen:
    """What is measured. NaN and None = not known."""

    voltage: Sequence[float] = (nan, nan, nan)  # V, phases on the grid's side of the switch
    frequency: float = nan  # Hz, there
    grid_silent: bool = False  # the meter there does not answer
    converter_dead: bool = False  # the converter, too, sees no grid
    forming: bool | None = None  # the converter forms the grid
    switch_open: bool | None = None  # feedback of the switch
    soc: float = nan
    power: float = nan  # W, of the battery, + = charging
    max_discharge: float = nan  # W


@dataclass
class Outputs:
    """What the outputs are to be."""

    switch_closed: bool = True
    form_grid: bool = False
    loads: dict[str, bool] = field(default_factory=dict)


class BackupMachine:
    """See the module. `now` in site seconds, `wall` in epoch s."""

    def __init__(self, params: BackupParams, groups: Sequence[LoadGroup] = ()) -> None:
        self.params, self.groups = params, tuple(groups)
        self.state, self.since, self.cause = 'on_grid', -inf, 'start'
        self.outputs = Outputs(loads={g.topic: True for g in self.groups})
        self.testing = False
        self.last_test: float | None = None  # epoch s
        self.last_result = ''
        self._begun: float | None = None
        self._bad_since = self._good_since = inf
        self._overload_since = inf
        self._load_changed = -inf
        self._tries = 0
        self._resume = ''

    def resume(self, state: str) -> None:
        """Go on after a restart that happened in `state`, with the first tick. Raises ValueError."""
        if state != 'on_grid' and state not in AFTER_RESTART:
            raise ValueError(f'{state!r} is no state')
        self._resume = AFTER_RESTART.get(state, '')

    # -- orders --------------------------------------------------------------------------------------

    def start_test(self, seen: Seen, now: float, wall: float) -> str:
        """Begin a test now; "" or why not."""
        if self.state != 'on_grid':
            return f'no test in state {self.state}'
        if not seen.soc >= self.params.test_min_soc:
            return f'state of charge is below {self.params.test_min_soc:.0%}'
        self.testing, self.last_test, self.last_result = True, wall, 'running'
        self._enter('islanding', 'test', now)
        return ''

    def restart(self, now: float) -> None:
        """Begin anew after `failed`."""
        if self.state == 'failed':
            self._tries = 0
            self._enter('black_start', 'restart by operator', now)

    # -- what is seen --------------------------------------------------------------------------------

    def _grid(self, seen: Seen, now: float) -> None:
        p = self.params
        volts = [v / p.nominal_voltage for v in seen.voltage if isfinite(v)]
        known = bool(volts)
        lost = known and (min(volts) < p.loss_voltage_low or max(volts) > p.loss_voltage_high)
        if isfinite(seen.frequency) and (not known or max(volts) > 0.1):
            lost = lost or not p.loss_frequency_low <= seen.frequency <= p.loss_frequency_high
        # A meter that is silent alone is a fault of the meter; with a converter that sees no grid it is a loss.
        lost = lost or (seen.grid_silent and seen.converter_dead)
        good = (known and not seen.grid_silent and min(volts) >= p.return_voltage_low
                and max(volts) <= p.return_voltage_high
                and p.return_frequency_low <= seen.frequency <= p.return_frequency_high)
        self._bad_since = min(self._bad_since, now) if lost else inf
        self._good_since = min(self._good_since, now) if good else inf

    def grid_lost(self, now: float) -> bool:
        """A loss that lasted long enough."""
        return now - self._bad_since >= self.params.detect_s

    def grid_back(self, now: float, seconds: float) -> bool:
        """The grid has been good for so long."""
        return now - self._good_since >= seconds

    # -- the tick ------------------------------------------------------------------------------------

    def tick(self, seen: Seen, now: float, wall: float) -> Outputs:
        """One step; the outputs from now on."""
        p = self.params
        first, self._begun = self._begun is None, now if self._begun is None else self._begun
        self._grid(seen, now)
        if first and self._resume:
            self._enter(self._resume, 'after a restart', now)
        elif first and self._bad_since < inf and p.black_start:
            self._enter('black_start', 'no grid at start', now)
        getattr(self, f'_{self.state}')(seen, now, wall)
        self._shed(seen, now)
        return self.outputs

    def _enter(self, state: str, cause: str, now: float) -> None:
        self.state, self.since, self.cause = state, now, cause
        out = self.outputs
        out.switch_closed = state in ('on_grid', 'reconnecting', 'ramping')
        out.form_grid = state in ('forming', 'island', 'observing', 'black_start', 'reconnecting')
        if state in ('black_start', *OFF_STATES):
            out.loads = dict.fromkeys(out.loads, False)
        self._load_changed = now
        self._overload_since = inf

    def _on_grid(self, seen: Seen, now: float, wall: float) -> None:
        p = self.params
        if self.grid_lost(now):
            self._enter('islanding', 'grid lost', now)
        elif p.test_every_days > 0.0:
            if self.last_test is None:
                self.last_test = wall  # counts from the first start
            elif wall - self.last_test >= p.test_every_days * 86400.0 and self.grid_back(now, p.observation_s):
                self.start_test(seen, now, wall)

    def _islanding(self, seen: Seen, now: float, _: float) -> None:
        waited = now - self.since
        if seen.switch_open or (seen.switch_open is None and waited >= self.params.switch_timeout_s):
            self._enter('forming', self.cause, now)
        elif waited > self.params.switch_timeout_s:
            self._fail('the transfer switch does not open', now)

    def _forming(self, seen: Seen, now: float, wall: float) -> None:
        if self._formed(seen, now):
            self._enter('island', self.cause, now)
        elif now - self.since > self.params.form_timeout_s:
            if self.testing:
                self._end_test('failed: the converter did not form the grid')
                self._enter('observing', 'test failed', now)
            elif self.params.black_start:
                self._tries = 0
                self._enter('black_start', 'forming under load failed', now)
            else:
                self._fail('the converter does not form the grid', now)

    def _formed(self, seen: Seen, now: float) -> bool:
        if seen.forming is None:
            return now - self.since >= self.params.form_timeout_s / 2.0
        return seen.forming

    def _black_start(self, seen: Seen, now: float, _: float) -> None:
        if seen.soc <= self.params.dark_soc:
            self._enter('dark', f'state of charge {seen.soc:.0%}', now)
        elif self._formed(seen, now):
            self._enter('island', 'black start', now)
        elif self.grid_back(now, self.params.observation_s):
            self._enter('reconnecting', 'grid is back', now)
        elif now - self.since > self.params.form_timeout_s:
            self._tries += 1
            if self._tries >= self.params.black_start_tries:
                self._fail(f'black start failed {self._tries} times', now)
            else:
                self._enter('black_start', f'try {self._tries + 1}', now)

    def _island(self, seen: Seen, now: float, _: float) -> None:
        p = self.params
        if seen.soc <= p.dark_soc:
            self._enter('dark', f'state of charge {seen.soc:.0%}', now)
        elif seen.forming is False and now - self.since > p.form_timeout_s:
            self._enter('forming', 'the converter stopped forming', now)
        elif self.testing:
            if self.grid_lost(now):
                self._end_test('the grid was lost meanwhile: the island stays')
                self.cause = 'grid lost during a test'
            elif now - self.since >= p.test_duration_s:
                self._end_test('passed')
                self._enter('observing', 'test passed', now)
        elif self.grid_back(now, 0.0):
            self._enter('observing', 'grid is back', now)

    def _observing(self, seen: Seen, now: float, _: float) -> None:
        if seen.soc <= self.params.dark_soc:
            self._enter('dark', f'state of charge {seen.soc:.0%}', now)
        elif not self.grid_back(now, 0.0):
            self._enter('island', 'grid left its range again', now)
        elif self.grid_back(now, self.params.observation_s):
            self._enter('reconnecting', self.cause, now)

    def _dark(self, seen: Seen, now: float, _: float) -> None:
        if self.grid_back(now, self.params.observation_s):
            self._enter('reconnecting', 'grid is back', now)
        elif seen.soc >= self.params.restart_soc and self.params.black_start:
            self._tries = 0
            self._enter('black_start', f'state of charge {seen.soc:.0%}', now)

    def _failed(self, seen: Seen, now: float, _: float) -> None:
        if self.grid_back(now, self.params.observation_s):
            self._enter('reconnecting', 'grid is back', now)

    def _reconnecting(self, seen: Seen, now: float, _: float) -> None:
        waited = now - self.since
        if self.grid_lost(now):
            self._enter('islanding', 'grid lost while reconnecting', now)
        elif seen.switch_open is False or (seen.switch_open is None and waited >= self.params.switch_timeout_s):
            self._enter('ramping', self.cause, now)
        elif waited > self.params.form_timeout_s:
            self._fail('the transfer switch does not close', now)

    def _ramping(self, seen: Seen, now: float, _: float) -> None:
        if self.grid_lost(now):
            self._enter('islanding', 'grid lost', now)
        elif now - self.since >= self.params.ramp_s:
            self._enter('on_grid', self.cause, now)

    def _fail(self, why: str, now: float) -> None:
        if self.testing:
            self._end_test(f'failed: {why}')
        self._enter('failed', why, now)

    def _end_test(self, result: str) -> None:
        self.testing, self.last_result = False, result

    # -- loads ---------------------------------------------------------------------------------------

    def _shed(self, seen: Seen, now: float) -> None:
        """Least important first when shedding, most important first when they come back, one at a time."""
        p, loads = self.params, self.outputs.loads
        if not self.groups or self.state in ('black_start', *OFF_STATES):
            return
        island = self.state in ('islanding', 'forming', 'island', 'observing')
        on_battery = self.state in ('island', 'observing')
        if on_battery:
            for g in self.groups:
                if seen.soc < g.min_soc and loads[g.topic]:
                    loads[g.topic] = False
                    self._load_changed = now
        limit = p.overload_share * seen.max_discharge
        overload = on_battery and -seen.power > limit
        self._overload_since = min(self._overload_since, now) if overload else inf
        if overload and now - self._overload_since >= p.overload_s:
            for g in reversed(self.groups):
                if loads[g.topic]:
                    loads[g.topic] = False
                    self._overload_since = self._load_changed = now
                    return
        if overload or (island and not on_battery) or now - self._load_changed < p.restore_s:
            return
        for g in self.groups:
            enough = not island or seen.soc >= min(g.min_soc + p.restore_soc, 1.0) or g.min_soc == 0.0
            if not loads[g.topic] and enough and (not on_battery or not -seen.power > 0.8 * limit):
                loads[g.topic] = True
                self._load_changed = now
                return

    def bound(self, now: float) -> float:
        """Power (W, both ways) that the ramp after the return allows; inf when it does not bind."""
        if self.state == 'ramping':
            return self.params.ramp_power * (now - self.since) / max(self.params.ramp_s, 1e-9)
        return inf if self.state == 'on_grid' else 0.0
