"""The last gate of a converter driver: what may reach the device. Pure, on a passed-in clock.

Whatever is asked, by whomever, the power that leaves here

* belongs to a live lease (when it ends, the gate ramps to zero by itself),
* is within the tightest of configured, device and external (BMS) limits, which it names,
* is nothing at all before the first valid reading, on a read-only link, or before `start`.

Use: `reading` after every poll, `external` with every BMS reading, `offer` for every setpoint, then
`tick`; write what it says if `write` is True and confirm with `written`. Not thread safe: one owner.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import hypot, inf, isfinite, isinf, isnan, nan, sqrt
from typing import Any, NamedTuple

from bess_core.params import param
from bess_core.values import Alarm, ConverterReading, ConverterState, Quality, Severity

NO_LIMIT = 1e12  # W, parameter value that means "no configured limit"
FOLLOW_ERROR = 'converter.follow_error'


@dataclass(frozen=True)
class GateParams:
    """Parameters of the last gate. A limit of 1e12 (the default) is none."""

    max_charge_power: float = param(
        NO_LIMIT, 'W', 'configured limit of charging', low=0.0, high=NO_LIMIT)
    max_discharge_power: float = param(
        NO_LIMIT, 'W', 'configured limit of discharging (magnitude)', low=0.0, high=NO_LIMIT)
    max_apparent_power: float = param(
        NO_LIMIT, 'VA', 'configured limit of apparent power', low=0.0, high=NO_LIMIT)
    read_only: bool = param(False, '', 'never write to the device')
    longest_lease_s: float = param(
        10.0, 's', 'longest lease that is accepted; a longer one is refused', low=0.1, high=3600.0)
    clock_slack_s: float = param(
        1.0, 's', 'how far in the future a stamp may be', low=0.0, high=60.0)
    expiry_ramp: float = param(
        5000.0, 'W/s', 'ramp to zero after a lease ended', low=0.1, high=NO_LIMIT)
    max_reading_age_s: float = param(
        5.0, 's', 'age of the last valid converter reading from which power is zero',
        low=0.1, high=3600.0)
    external_required: bool = param(
        False, '', 'power is zero while no external (BMS) limits are known')
    max_external_age_s: float = param(
        5.0, 's', 'age from which external limits count as unknown', low=0.1, high=3600.0)
    refresh_s: float = param(
        0.5, 's', 'an unchanged power is written again after this time', low=0.0, high=60.0)
    write_resolution: float = param(
        0.5, 'W', 'smaller changes are not written before the refresh (zero always is)',
        low=0.0, high=1e5)
    min_revert_s: float = param(
        2.0, 's', 'shortest revert time armed in the device', low=0.0, high=3600.0)
    follow_tolerance: float = param(
        100.0, 'W', 'deviation of measured from ordered power that is no fault', low=0.0, high=1e9)
    follow_tolerance_share: float = param(
        0.1, '', 'the same as a share of the ordered power; the larger of both counts',
        low=0.0, high=1.0)
    follow_time_s: float = param(
        5.0, 's', 'time that the converter may take to follow', low=0.1, high=600.0)
    follow_confirm_s: float = param(
        1.0, 's', 'time that a deviation must last after that', low=0.0, high=600.0)


class Setpoint(NamedTuple):
    """A leased order. Fields as in `msg/PowerSetpoint.msg`; `time` (s) = header.stamp."""

    power: float  # W, + = charging
    lease: float  # s
    source: str
    sequence: int
    time: float
    term: int = 0
    reactive_power: float = nan  # var; NaN = leave as it is


class GateOutput(NamedTuple):
    """What to do in this tick."""

    write: bool  # True: write `power` and `reactive_power` now, then call `written`
    power: float  # W, + = charging; 0 when nobody holds a lease
    reactive_power: float  # var; NaN = leave as it is
    lease: float  # s, revert time to arm in the device with this write
    lease_remaining: float  # s, 0 = no lease
    source: str  # holder of the lease, '' nobody
    limit_reasons: tuple[str, ...]
    alarms: tuple[Alarm, ...]


@dataclass(slots=True)
class _External:
    charge: float
    discharge: float
    reasons: tuple[str, ...]
    time: float
    name: str

    def __str__(self) -> str:
        """What the battery says limits it."""
        return '; '.join(r if r.startswith(self.name) else f'{self.name}: {r}'
                         for r in self.reasons) or f'{self.name}: limit'


@dataclass(slots=True)
class _Limits:
    """Collects the tightest limit of each direction with its reason (whose `str` is the text)."""

    high: float = inf
    low: float = -inf
    why_high: Any = ''  # its `str` is the text
    why_low: Any = ''
    stops: list[str] = field(default_factory=list)

    def take(self, charge: float, discharge: float, why: Any) -> None:
        """Magnitudes in W; NaN = not known, no limit (it compares false)."""
        if charge < self.high and (charge >= 0.0 or self.high > 0.0):
            self.high, self.why_high = (charge if charge > 0.0 else 0.0), why
        if -discharge > self.low and (discharge >= 0.0 or self.low < 0.0):
            self.low, self.why_low = (-discharge if discharge > 0.0 else 0.0), why

    def stop(self, why: str) -> None:
        """Nothing is allowed."""
        self.take(0.0, 0.0, why)
        self.stops.append(why)


class Gate:
    """Last gate of one converter."""

    def __init__(self, params: GateParams, name: str = 'converter') -> None:
        self.params = params
        self.name = name
        self.alarms: tuple[Alarm, ...] = ()
        self.refused = 0  # count of refused offers
        self._configured = _Limits()
        self._configured.take(params.max_charge_power, params.max_discharge_power, 'configured limit')
        self._configured.take(params.max_apparent_power, params.max_apparent_power, 'configured apparent power')
        self._device_limit, self._device_apparent = f'{name}: device limit', f'{name}: device apparent power'
        self._blocked = 'not started'
        self._order: Setpoint | None = None  # the last one accepted
        self._expires = -inf
        self._term = 0  # highest seen
        self._power = 0.0  # W, present output
        self._reactive = nan
        self._reactive_used = False
        self._ramp_time: float | None = None
        self._reading: ConverterReading | None = None
        self._external: _External | None = None
        self._written: deque[tuple[float, float]] = deque()  # (s, W) confirmed writes
        self._last_write: tuple[float, float, float] | None = None  # (s, W, var)
        self._reset_reactive = False
        self._zero_pending = False
        self._deviates_since: float | None = None

    # What the driver tells

    def start(self) -> None:
        """Let setpoints through (the driver became active)."""
        self._blocked = ''

    def stop(self, why: str = 'stopped') -> None:
        """Zero at once, no ramp; setpoints are refused until `start`."""
        self._blocked = why or 'stopped'
        self._zero_pending = True  # said even if another process gave the last order
        self._drop()

    def reading(self, reading: ConverterReading) -> None:
        """A poll of the converter; only OK ones count."""
        if reading.quality is not Quality.OK or not isfinite(reading.time):
            return
        self._reading = reading
        self._check_follow(reading)

    def external(self, max_charge_power: float, max_discharge_power: float, now: float,
                 reasons: tuple[str, ...] = (), name: str = 'bms') -> None:
        """Limits of the battery behind the converter: magnitudes in W at the AC side, NaN unknown."""
        self._external = _External(max_charge_power, max_discharge_power, reasons, now, name)

    def written(self, power: float, reactive_power: float, now: float) -> None:
        """A write reached the device."""
        self._last_write = (now, power, reactive_power)
        self._zero_pending = False
        if not isnan(reactive_power):
            self._reactive_used = reactive_power != 0.0
            self._reset_reactive = False
        if not self._written or self._written[-1][1] != power:
            self._written.append((now, power))

    def offer(self, setpoint: Setpoint, now: float) -> str:
        """Take a setpoint. Returns why it is refused, "" when it is accepted."""
        problem = self._problem(setpoint, now)
        if problem:
            self.refused += 1
            return problem
        self._order = setpoint
        self._expires = min(setpoint.time, now) + setpoint.lease
        self._ramp_time = None
        return ''

    def _problem(self, s: Setpoint, now: float) -> str:
        p = self.params
        if not isfinite(s.power):
            return f'power is {s.power}'
        if isinf(s.reactive_power):
            return f'reactive power is {s.reactive_power}'
        if not isfinite(s.lease) or s.lease <= 0.0:
            return f'lease is {s.lease} s, must be above 0'
        if s.lease > p.longest_lease_s:
            return f'lease {s.lease:g} s is longer than {p.longest_lease_s:g} s'
        if not s.source:
            return 'source is empty'
        if not isfinite(s.time):
            return f'stamp is {s.time}'
        if s.time > now + p.clock_slack_s:
            return f'stamp is {s.time - now:.1f} s in the future'
        if s.time + s.lease <= now:
            return f'expired on arrival: {now - s.time:.1f} s old, lease {s.lease:g} s'
        if s.term < self._term:
            return f'term {s.term} is lower than {self._term}'
        # A newer term ends the renewals of the present holder, so it hands over within one lease.
        self._term = s.term
        holder = self._order
        if holder is not None and now < self._expires:
            if s.source != holder.source:
                return (f'{holder.source} holds the lease for another '
                        f'{self._expires - now:.1f} s')
            if s.term == holder.term and s.sequence <= holder.sequence:
                return f'sequence {s.sequence} is not above {holder.sequence}'
        if p.read_only:
            return 'read only'
        if self._blocked:
            return f'refused: {self._blocked}'
        if self._reading is None:
            return 'no valid reading of the device yet'
        return ''

    # What to do

    def tick(self, now: float) -> GateOutput:
        """What to write now."""
        reasons = self._advance(now)
        limits = self._limits(now)
        if self._power > limits.high:
            reasons.append(f'{limits.why_high}: {self._power:.0f} W limited to {limits.high:.0f} W')
            self._power = limits.high
        elif self._power < limits.low:
            reasons.append(f'{limits.why_low}: {self._power:.0f} W limited to {limits.low:.0f} W')
            self._power = limits.low
        if limits.stops:
            reasons += [why for why in limits.stops if not any(r.startswith(why) for r in reasons)]
        self._power += 0.0  # never -0.0
        reactive = self._reactive_output(reasons, bool(limits.stops))
        remaining = max(self._expires - now, 0.0) if self._order is not None else 0.0
        return GateOutput(
            self._due(now, reactive), self._power, reactive, max(remaining, self.params.min_revert_s),
            remaining, self._order.source if self._order is not None else '', tuple(reasons), self.alarms)

    def _advance(self, now: float) -> list[str]:
        """Follow the order, or the ramp to zero after it; returns reasons."""
        if self._blocked:
            return [self._blocked]
        if self._order is not None and now >= self._expires:
            # The ramp counts from the end of the lease, however late this tick comes.
            self._ramp_time = self._expires
            self._drop(keep_power=True)
        if self._order is not None:
            self._power = float(self._order.power)
            self._reactive = float(self._order.reactive_power)
            return []
        if self._power == 0.0 or self._ramp_time is None:
            self._power = 0.0
            return []
        step = self.params.expiry_ramp * max(now - self._ramp_time, 0.0)
        self._ramp_time = max(now, self._ramp_time)
        self._power -= max(-step, min(step, self._power))
        return ['lease ended, ramp to zero']

    def _limits(self, now: float) -> _Limits:
        p, c = self.params, self._configured
        limits = _Limits(c.high, c.low, c.why_high, c.why_low)
        r = self._reading
        if r is None:
            limits.stop(f'{self.name}: no valid reading yet')
        else:
            limits.take(r.max_charge_power, r.max_discharge_power, self._device_limit)
            limits.take(r.max_apparent_power, r.max_apparent_power, self._device_apparent)
            if not now - r.time <= p.max_reading_age_s:
                limits.stop(f'{self.name}: last valid reading {now - r.time:.1f} s ago')
            if r.state is ConverterState.FAULT:
                limits.stop(f'{self.name}: device is in fault')
        e = self._external
        if e is not None and now - e.time <= p.max_external_age_s:
            charge, discharge = e.charge, e.discharge
            if p.external_required:  # what the battery does not allow is not allowed
                charge = 0.0 if isnan(charge) else charge
                discharge = 0.0 if isnan(discharge) else discharge
            limits.take(charge, discharge, e)
        elif p.external_required:
            limits.stop('bms: limits are not known' if e is None else
                        f'{e.name}: limits are {now - e.time:.1f} s old')
        return limits

    def _reactive_output(self, reasons: list[str], stopped: bool) -> float:
        """Q of the order within the circle that P leaves; back to zero once the order ended."""
        if self._order is None:
            return 0.0 if self._reset_reactive else nan
        q = self._reactive
        if isnan(q):  # "leave as it is", unless the order before this one left some
            return 0.0 if self._reset_reactive else nan
        if stopped:
            return 0.0
        room = self.params.max_apparent_power
        if self._reading is not None and not isnan(self._reading.max_apparent_power):
            room = min(room, max(self._reading.max_apparent_power, 0.0))
        if hypot(self._power, q) > room:
            kept = sqrt(max(room * room - self._power * self._power, 0.0))
            reasons.append(f'apparent power {room:.0f} VA: {q:.0f} var limited to {kept:.0f} var')
            q = max(-kept, min(kept, q))
        return q + 0.0

    def _due(self, now: float, reactive: float) -> bool:
        """True when this must be written in this tick."""
        p = self.params
        if p.read_only or self._reading is None:
            return False
        last = self._last_write
        if last is None:  # nothing written yet: only an order is worth the first write
            return self._order is not None or self._zero_pending
        at, power, q = last
        changed = abs(self._power - power) > p.write_resolution or (
            self._power != power and 0.0 in (self._power, power))
        if not isnan(reactive) and not abs(reactive - q) <= p.write_resolution:
            changed = True
        if self._order is None and self._power == 0.0:
            return changed or self._zero_pending  # at rest: once zero is confirmed the device is left alone
        return changed or now - at >= p.refresh_s

    def _drop(self, keep_power: bool = False) -> None:
        """End the lease."""
        if self._reactive_used or not isnan(self._reactive):
            self._reset_reactive = True
        self._order = None
        self._reactive = nan
        if not keep_power:
            self._power = 0.0
            self._ramp_time = None

    # Does it do as it is told?

    def _check_follow(self, r: ConverterReading) -> None:
        """Compare measured power with everything ordered within the last `follow_time_s`."""
        p = self.params
        while len(self._written) > 1 and self._written[1][0] <= r.time - p.follow_time_s:
            self._written.popleft()
        if not self._written or isnan(r.active_power):
            return
        if abs(r.active_power - self._written[-1][1]) <= p.follow_tolerance:  # as nearly always
            self._deviates_since, self.alarms = None, ()
            return
        orders = [power for _, power in self._written]
        low, high = min(orders), max(orders)
        tolerance = max(p.follow_tolerance, p.follow_tolerance_share * max(high, -low))
        low, high = low - tolerance, high + tolerance
        first_ever = self._written[0][0] > r.time - p.follow_time_s  # what was before is not known
        if low <= r.active_power <= high or first_ever:
            self._deviates_since, self.alarms = None, ()
            return
        if self._deviates_since is None:
            self._deviates_since = r.time
        if r.time - self._deviates_since >= p.follow_confirm_s:
            self.alarms = (Alarm(
                FOLLOW_ERROR, Severity.ERROR,
                f'{self.name}: ordered {orders[-1]:.0f} W, measured {r.active_power:.0f} W, '
                f'more than {tolerance:.0f} W off for {r.time - self._deviates_since:.1f} s'),)
