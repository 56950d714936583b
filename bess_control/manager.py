"""Power manager: one decision per tick out of limits, proposals and a ramp, with its reasons.

Order of a tick (design, section 9):

1. **Hard bounds**, each narrowing the one before: site state, battery (quality, contactor, limits),
   configured limits, grid connection. They act at once, without ramp.
2. **Proposals** from high to low priority. Each one's bounds narrow what is left. The first
   preference met, that is the one of highest priority, decides, clamped into the bounds so far
   (bounds of its own priority included); whatever has a lower priority is then no longer asked. A
   proposal without preference leaves lower ones their freedom inside its range.
3. **P and Q** on the exact circle ``P^2 + Q^2 <= S^2``, with P or Q first.
4. **Ramp**, in W/s of measured time. Bounds of proposals are on the ramp where they push away from
   zero and act at once where they pull towards it, so a lower limit never waits.

A bound that contradicts an earlier one can not be met: the earlier one holds, the nearest value to
the later one is taken, and the trace says so. Zero asked stays zero unless a bound excludes zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan, sqrt

from bess_control.bounds import (
    NO_LIMIT,
    Bound,
    Bounds,
    PowerManagerParams,
    battery_bounds,
    grid_bounds,
)
from bess_control.load_estimate import LoadEstimator, clamp
from bess_control.proposals import Proposal, resolution_order
from bess_control.site_state import SiteState
from bess_control.words import watts
from bess_core.values import BatteryReading, MeterReading, Quality

__all__ = ['Decision', 'PowerManager', 'PowerManagerParams', 'Step']

EPSILON = 1e-6  # W, below which two powers are the same


@dataclass(slots=True)
class Step:
    """One limit that was looked at. Fields as in `msg/DecisionStep.msg`."""

    name: str
    before: float  # W, + = charging
    after: float  # W
    low: float  # W
    high: float  # W
    bound: bool
    reason: str


@dataclass(slots=True)
class Decision:
    """One tick's decision. Fields as in `msg/DecisionTrace.msg` (`time` = header.stamp)."""

    time: float
    tick: int
    battery: str
    asked_by: str = ''
    asked: float = nan  # W, + = charging
    steps: list[Step] = field(default_factory=list)
    granted: float = 0.0  # W
    granted_reactive: float = nan  # var
    sent: float = nan  # W; filled in by whoever sends
    measured: float = nan  # W
    grid_power: float = nan  # W, + = import
    jitter: float = 0.0  # s
    asked_reason: str = ''  # reason of the proposal that decided; in `text` only

    @property
    def text(self) -> str:
        """The decision in one sentence."""
        return sentence(self)

    @property
    def limit_reasons(self) -> list[str]:
        """The limits that changed the power, in words, in the order in which they did."""
        return [_said(s) for s in self.steps if s.bound]


class PowerManager:
    """Decides the power of one battery; call `tick` once per control tick."""

    def __init__(self, params: PowerManagerParams) -> None:
        self.params = params
        self._has_grid_limit = params.has_grid_limit
        self.tick_count = 0
        self.granted = 0.0  # W, of the last tick
        self._reactive = nan  # var, of the last tick; NaN until somebody asks
        self._last_time: float | None = None
        self._rest = LoadEstimator(params.grid_delay_s, params.grid_settle_s)
        self._meter_seen: tuple[int, float] | None = None

    def tick(
        self,
        now: float,
        proposals: Iterable[Proposal],
        battery: BatteryReading,
        meter: MeterReading | None = None,
        state: SiteState | bool = True,
        jitter: float = 0.0,
        state_cause: str = '',
    ) -> Decision:
        """One decision at `now` (s). `proposals` of other batteries and expired ones are ignored.

        `state`: RUN (or True) lets power flow; anything else is an immediate zero.
        Raises ValueError when `now` is not a finite number.
        """
        if not isfinite(now):
            raise ValueError(f'time is {now}')
        self.tick_count += 1
        dt = self._elapsed(now)
        decision = Decision(
            time=now, tick=self.tick_count, battery=self.params.battery, jitter=jitter,
            measured=battery.power if battery.quality is not Quality.INVALID else nan,
            grid_power=meter.active_power if meter and meter.quality is not Quality.INVALID else nan)

        bounds = Bounds()
        self._hard_bounds(bounds, now, battery, meter, state, state_cause)
        hard_low, hard_high = bounds.low, bounds.high
        wanted, reactive = self._resolve(bounds, proposals, decision, now)
        reactive = self._power_circle(bounds, reactive)

        value = self._walk(bounds.passed, 0.0 if isnan(wanted) else wanted, decision)
        value = self._ramp(value, bounds, hard_low, hard_high, dt, decision)
        self.granted = decision.granted = value
        self._rest.order(value, now)
        if hard_low == hard_high == 0.0 and not isnan(reactive):
            reactive = 0.0
        self._reactive = decision.granted_reactive = self._final_reactive(reactive, value)
        return decision

    def _elapsed(self, now: float) -> float:
        """Seconds since the last tick, at most `max_step_s`: a pause must not become a jump."""
        last, self._last_time = self._last_time, now
        if last is None:
            return self.params.tick_s
        return clamp(now - last, 0.0, self.params.max_step_s)

    def _hard_bounds(self, bounds: Bounds, now: float, battery: BatteryReading,
                     meter: MeterReading | None, state: SiteState | bool, cause: str) -> None:
        running = state is True or state is SiteState.RUN
        if not running:
            name = state.name if isinstance(state, SiteState) else 'stopped'
            bounds.narrow('site', 0.0, 0.0, f'{name}: {cause}' if cause else name)
        else:
            bounds.narrow('site', -inf, inf)
        for bound in battery_bounds(self.params, battery, now, self.granted):
            bounds.add(bound)
        if self._has_grid_limit:
            self._estimate_rest(now, battery, meter)
            for bound in grid_bounds(self.params, self._rest.value, meter, now):
                bounds.add(bound)

    def _estimate_rest(self, now: float, battery: BatteryReading,
                       meter: MeterReading | None) -> None:
        """What everything but the battery draws; held while the meter has nothing new."""
        if battery.quality is Quality.OK:
            self._rest.observe(battery.power, battery.time, now)
        if meter is None or meter.quality is not Quality.OK or not isfinite(meter.time):
            return
        seen = (meter.sequence, meter.time)
        if seen != self._meter_seen:
            period = 0.0 if self._meter_seen is None else meter.time - self._meter_seen[1]
            self._meter_seen = seen
            self._rest.update(meter.active_power, meter.time, now, clamp(period, 0.0, 10.0))

    def _resolve(self, bounds: Bounds, proposals: Iterable[Proposal], decision: Decision,
                 now: float) -> tuple[float, float]:
        """Narrow by priority until somebody's preference decides. Returns (W, var), NaN = nobody."""
        wanted = reactive = nan
        for p in resolution_order(list(proposals)):
            if p.battery != self.params.battery or not p.expires > now:
                continue
            if p.problem():
                continue  # the book refuses these with a message; here they must only not move anything
            if isnan(reactive) and isfinite(p.preferred_reactive_power):
                reactive = p.preferred_reactive_power
            if not isnan(wanted):
                continue
            if isfinite(p.low) or isfinite(p.high):
                bounds.narrow(p.source, p.low, p.high, p.reason or 'its bounds')
            if p.has_preference:
                wanted = decision.asked = float(p.preferred_power)
                decision.asked_by, decision.asked_reason = p.source, p.reason
        return wanted, reactive

    def _power_circle(self, bounds: Bounds, reactive: float) -> float:
        """Bound P by the apparent power that Q leaves; returns Q within what it may have."""
        limit = self.params.max_apparent_power
        if limit >= NO_LIMIT:
            return reactive
        room = limit
        if self.params.reactive_first and isfinite(reactive):
            reactive = clamp(reactive, -limit, limit)
            room = sqrt(max(limit * limit - reactive * reactive, 0.0))
        reason = f'{limit:.0f} VA'
        if room < limit:
            reason += f', reactive power {reactive:.0f} var comes first'
        bounds.narrow('apparent power', -room, room, reason)
        return reactive

    def _final_reactive(self, reactive: float, power: float) -> float:
        """Q on the circle that P leaves. Once given, it goes back to zero when nobody asks."""
        if isnan(reactive):
            return nan if isnan(self._reactive) else 0.0
        limit = self.params.max_apparent_power
        if limit < NO_LIMIT:
            room = sqrt(max(limit * limit - power * power, 0.0))
            reactive = clamp(reactive, -room, room)
        return reactive + 0.0

    @staticmethod
    def _walk(passed: list[Bound], value: float, decision: Decision) -> float:
        """Lead the asked value through the bounds in order and note what each one did."""
        for b in passed:
            after = b.low if value < b.low else min(value, b.high)
            hit = abs(after - value) > EPSILON
            reason = b.reason_for(value) if hit or b.conflict else ''
            decision.steps.append(Step(b.name, value, after, b.low, b.high, hit, reason))
            value = after
        return value

    def _ramp(self, target: float, bounds: Bounds, hard_low: float, hard_high: float,
              dt: float, decision: Decision) -> float:
        rate = self.params.ramp_rate
        last = self.granted
        value = clamp(target, last - rate * dt, last + rate * dt) if rate < NO_LIMIT else target
        # What pulls towards zero does not wait for the ramp, and hard bounds never do.
        value = clamp(value, min(bounds.low, 0.0), max(bounds.high, 0.0))
        value = clamp(value, hard_low, hard_high)
        if abs(value) < EPSILON:
            value = 0.0
        hit = abs(value - target) > EPSILON
        reason = f'{rate:.0f} W/s towards {watts(target)}' if hit else ''
        decision.steps.append(Step('ramp', target, value, hard_low, hard_high, hit, reason))
        return value + 0.0


def sentence(d: Decision) -> str:
    """The decision as people say it: "asked 3.2 kW, limited to 2.5 kW by BMS: cell 7 at 3.42 V"."""
    ramp = d.steps[-1]
    limits = [s for s in d.steps if s.bound and s is not ramp]
    conflicts = [s for s in d.steps if s.reason and not s.bound]
    if isnan(d.asked):
        parts = ['nobody asks']
    elif limits:
        parts = [f'asked {watts(d.asked)}']
    else:
        why = f' ({d.asked_reason})' if d.asked_reason else ''
        parts = [f'asked {watts(d.asked)} by {d.asked_by}{why}']
    for s in limits:
        verb = 'then' if s is not limits[0] else (
            'limited' if abs(s.after) < abs(s.before) else 'set')
        parts.append(f'{verb} to {watts(s.after)} by {_said(s)}')
    parts += [_said(s) for s in conflicts]
    if ramp.bound:
        parts.append(f'now {watts(d.granted)} on the ramp')
    elif not limits:
        parts.append(f'at {watts(d.granted)}' if isnan(d.asked) else 'granted')
    text = ', '.join(parts)
    if isfinite(d.granted_reactive) and d.granted_reactive != 0.0:
        text += f', reactive {d.granted_reactive:.0f} var'
    return text


def _said(step: Step) -> str:
    """Who limits and why. The battery's reasons say themselves whose they are ("BMS: ...")."""
    if step.name == 'battery limits' and step.reason:
        return step.reason
    return f'{step.name}: {step.reason}' if step.reason else step.name
