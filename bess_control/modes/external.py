"""Modes that take their power from somebody else: external control and local control."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isinf, isnan, nan
from typing import Any, ClassVar

from bess_control.modes.base import ModeBase, ModeBaseParams, View
from bess_control.proposals import Proposal
from bess_control.words import watts
from bess_core.leases import LeaseHolder
from bess_core.params import param

MOST_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a schedule: [start, end) in epoch s, W, var (NaN = leave)."""

    start: float
    end: float
    power: float
    reactive_power: float


class PowerSchedule:
    """Active and reactive power over absolute time; entries do not overlap."""

    def __init__(self) -> None:
        self.entries: tuple[Entry, ...] = ()
        self._starts: list[float] = []

    def set(self, start: Sequence[float], end: Sequence[float], power: Sequence[float],
            reactive: Sequence[float] = ()) -> str:
        """Replace all entries; "" or why they are refused, with nothing changed."""
        reactive = list(reactive) or [nan] * len(start)
        if not len(start) == len(end) == len(power) == len(reactive):
            return (f'{len(start)} starts, {len(end)} ends, {len(power)} powers and {len(reactive)} reactive powers: '
                    'one of each is needed per entry')
        if len(start) > MOST_ENTRIES:
            return f'{len(start)} entries; at most {MOST_ENTRIES} are allowed'
        entries = sorted((Entry(*e) for e in zip(start, end, power, reactive, strict=True)), key=lambda e: e.start)
        for number, e in enumerate(entries):
            if not (isfinite(e.start) and isfinite(e.end) and e.start < e.end):
                return f'entry {number}: end {e.end:g} is not after start {e.start:g}'
            if not isfinite(e.power):
                return f'entry {number}: power is {e.power}, not a finite number'
            if isinf(e.reactive_power):
                return f'entry {number}: reactive power is infinite'
            if number and e.start < entries[number - 1].end:
                return f'entry {number} begins {entries[number - 1].end - e.start:g} s before the one before it ends'
        self.entries, self._starts = tuple(entries), [e.start for e in entries]
        return ''

    def at(self, wall: float) -> Entry | None:
        """The entry that covers an absolute time."""
        i = bisect_right(self._starts, wall) - 1
        return self.entries[i] if i >= 0 and wall < self.entries[i].end else None


@dataclass(frozen=True)
class ExternalControlParams(ModeBaseParams):
    """Parameters of external control."""

    max_lease_s: float = param(
        300.0, 's', 'longest lease of a setpoint; a longer one is shortened', low=0.5, high=86400.0)
    fallback: str = param(
        'schedule', '', 'what holds when the lease of the last setpoint ended: the schedule (0 W where it has no '
        'entry), zero, the last setpoint for hold_s more, or release (others decide)',
        choices=['schedule', 'zero', 'hold', 'release'])
    hold_s: float = param(60.0, 's', 'how long fallback "hold" holds; then 0 W', low=0.0, high=86400.0)
    warn_s: float = param(0.0, 's', 'without a live setpoint or schedule for so long it is a problem; 0 = never',
                          low=0.0, high=86400.0)


class ExternalControl(ModeBase):
    """Active and reactive power from outside: leased setpoints (topic, Modbus) before a schedule.

    Setpoints come on `~/setpoint`, the schedule by the service `~/set_schedule`. When a lease ends without
    a newer setpoint, the fallback holds and says so.
    """

    Params: ClassVar[type] = ExternalControlParams
    takes_setpoints: ClassVar[bool] = True
    takes_schedule: ClassVar[bool] = True

    params: ExternalControlParams

    def __init__(self, params: ExternalControlParams, source: str = 'external_control', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._leases = LeaseHolder(params.max_lease_s)
        self._schedule = PowerSchedule()
        self._last: tuple[float, float, float] | None = None  # (until, W, var)
        self._asked_at: float | None = None

    def reset(self) -> None:
        """See `ModeBase`: setpoints from before it was switched on are void, the schedule stays."""
        self._leases.release()
        self._last = self._asked_at = None

    def order(self, power: float, reactive_power: float, lease: float, source: str, now: float, *,
              given: float | None = None, term: int = 0, sequence: int = 0) -> str:
        """A leased setpoint; "" or why it is refused."""
        refused = self._leases.offer(power, lease, source, now, given=given, reactive_power=reactive_power,
                                     term=term, sequence=sequence)
        if not refused:
            order = self._leases.current(now)
            assert order is not None
            self._last = (order.expires, power, reactive_power)
        return refused

    def set_schedule(self, start: Sequence[float], end: Sequence[float], power: Sequence[float],
                     reactive: Sequence[float] = ()) -> tuple[bool, str]:
        """Replace the schedule. Returns (accepted, message)."""
        refused = self._schedule.set(start, end, power, reactive)
        return not refused, refused or f'{len(self._schedule.entries)} entries'

    def save(self) -> list[list[float | None]]:
        """The schedule; what survives a restart."""
        return [[e.start, e.end, e.power, None if isnan(e.reactive_power) else e.reactive_power]
                for e in self._schedule.entries]

    def restore(self, saved: list[list[Any]]) -> None:
        """Take back what `save` gave. Raises ValueError when it is no schedule."""
        rows = [[float(r[0]), float(r[1]), float(r[2]), nan if r[3] is None else float(r[3])] for r in saved]
        columns = [list(c) for c in zip(*rows, strict=True)] or [[], [], [], []]
        if refused := self._schedule.set(*columns):
            raise ValueError(refused)

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p, now = self.params, view.now
        self._asked_at = now if self._asked_at is None else self._asked_at
        self.problem = ''
        order = self._leases.current(now)
        if order is not None:
            self._asked_at = now
            return self._say(view, 'setpoint', order.power, order.reactive_power, f'setpoint of {order.source}')
        entry = self._schedule.at(view.wall)
        if p.fallback == 'hold' and self._last is not None and now < self._last[0] + p.hold_s:
            left = self._last[0] + p.hold_s - now
            return self._say(view, 'holding', self._last[1], self._last[2],
                             f'lease over, last setpoint held for {left:.0f} s more')
        if entry is not None and p.fallback in ('schedule', 'hold'):
            self._asked_at = now
            return self._say(view, 'schedule', entry.power, entry.reactive_power,
                             f'schedule: {watts(entry.power)} for {entry.end - view.wall:.0f} s more')
        if p.warn_s and now - self._asked_at > p.warn_s:
            self.problem = f'no setpoint for {now - self._asked_at:.0f} s'
        if p.fallback == 'release':
            return self._say(view, 'released', nan, nan, 'no setpoint: others decide')
        return self._say(view, 'fallback', 0.0, nan, 'no setpoint in force: 0 W')

    def _say(self, view: View, state: str, power: float, reactive: float, reason: str) -> Proposal:
        self.state = state
        return self.propose(view, power, reactive=reactive, reason=reason)


@dataclass(frozen=True)
class LocalControlParams(ModeBaseParams):
    """Parameters of local control."""

    heartbeat: bool = param(True, '', 'a manual setpoint holds only while the panel sends `~/heartbeat`')
    heartbeat_timeout_s: float = param(5.0, 's', 'silence after which the fallback holds', low=0.1, high=3600.0)
    fallback_charge_power: float = param(0.0, 'W', 'power to charge with when the heartbeat is lost', low=0.0, high=1e9)
    fallback_discharge_power: float = param(
        0.0, 'W', 'power (magnitude) to discharge with when the heartbeat is lost', low=0.0, high=1e9)
    max_charge_power: float = param(1e12, 'W', 'greatest manual setpoint for charging', low=0.0, high=1e12)
    max_discharge_power: float = param(
        1e12, 'W', 'greatest manual setpoint (magnitude) for discharging', low=0.0, high=1e12)
    priority: int = param(110, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        if self.fallback_charge_power > 0.0 and self.fallback_discharge_power > 0.0:
            raise ValueError('fallback_charge_power and fallback_discharge_power are both given')


class LocalControl(ModeBase):
    """A setpoint by hand on the spot: service `~/set_power`, kept while the panel's heartbeat comes.

    A heartbeat that was lost and comes back does not bring the setpoint back: somebody has to set it again.
    """

    Params: ClassVar[type] = LocalControlParams
    takes_manual: ClassVar[bool] = True
    takes_heartbeat: ClassVar[bool] = True

    params: LocalControlParams

    def __init__(self, params: LocalControlParams, source: str = 'local_control', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._beaten = -inf  # s, last sign of life of the panel
        self._power, self._reactive = nan, nan
        self._lost = False

    def reset(self) -> None:
        """See `ModeBase`: no setpoint from before."""
        self._power = self._reactive = nan
        self._lost = False

    def beat(self, alive: bool, now: float) -> None:
        """A heartbeat; false = the panel says goodbye."""
        self._beaten = now if alive else -inf

    def manual(self, power: float, reactive_power: float, now: float) -> tuple[bool, str]:
        """A manual setpoint in W and var; a power of NaN ends it. Returns (accepted, message)."""
        p = self.params
        if isnan(power):
            self._power = self._reactive = nan
            self._lost = False
            return True, 'manual setpoint ended'
        if not isfinite(power) or isinf(reactive_power):
            return False, f'{power} W, {reactive_power} var is no finite setpoint'
        if not -p.max_discharge_power <= power <= p.max_charge_power:
            return False, (f'{power:g} W is outside of {-p.max_discharge_power:g} to {p.max_charge_power:g} W')
        if p.heartbeat and now - self._beaten > p.heartbeat_timeout_s:
            return False, 'no heartbeat of the panel: send ~/heartbeat first'
        self._power, self._reactive, self._lost = power, reactive_power, False
        return True, f'manual setpoint {watts(power)}'

    def save(self) -> dict[str, Any]:
        """Nothing: a manual setpoint does not survive a restart."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """See `save`."""

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p = self.params
        self.problem = ''
        if p.heartbeat and not isnan(self._power) and view.now - self._beaten > p.heartbeat_timeout_s:
            self._power, self._reactive, self._lost = nan, nan, True
        if not isnan(self._power):
            self.state = 'manual'
            return self.propose(view, self._power, reactive=self._reactive,
                                reason=f'manual setpoint {watts(self._power)}')
        if self._lost:
            fallback = p.fallback_charge_power - p.fallback_discharge_power
            self.state = 'fallback'
            self.problem = 'heartbeat of the panel lost'
            return self.propose(view, fallback,
                                reason=f'{self.problem}: {watts(fallback)} until somebody sets it again')
        self.state = 'ready'
        return self.propose(view, 0.0, reason='local control: no manual setpoint')
