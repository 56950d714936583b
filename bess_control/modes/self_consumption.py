"""Self-consumption: keep the grid connection at a target power with the battery.

How it works, and why it is not a plain PID. The battery should take ``target - P_rest``, where
``P_rest`` is what everything else at the connection draws (`bess_control.load_estimate`). This
feed-forward does nearly all the work: it answers a load step in one sample, has no loop that could
swing, and does not depend on how late meter and converter are. Around it:

* P: the answer approaches that value with rate `kp` (1/s), which filters measurement noise;
* I: a slow trim `ki` (1/s) removes what remains, because converters give a little more or less than
  they are told and sensors disagree. It learns only while load and battery have been quiet for
  `settle_s`, so a step can not wind it up; it is frozen while what was granted differs from what was
  asked in the direction it pushes (conditional integration) and bounded by `trim_limit`;
* D: `kd` (s) leads slow ramps of the load; 0 by default, since it also amplifies noise.

All gains use the measured time between samples, so 0.1 s and 1 s ticks behave alike.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import expm1, inf, isfinite, isnan
from typing import ClassVar

from bess_control.load_estimate import LoadEstimator, clamp, plausible
from bess_control.proposals import CLOCK_SLACK_S, Proposal
from bess_control.words import grid_watts, magnitude
from bess_core.params import param
from bess_core.values import BatteryReading, MeterReading, Quality


@dataclass(frozen=True)
class SelfConsumptionParams:
    """Parameters of self-consumption."""

    target_grid_power: float = param(
        0.0, 'W', low=-1e7, high=1e7,
        doc='Grid power to hold, + = import. The bias: a small import (10 to 50 W) avoids '
            'feeding battery energy into the grid when loads switch off.')
    kp: float = param(
        5.0, '1/s', low=0.05, high=1000.0,
        doc='Rate at which the answer approaches the balancing power; 1000 = at once.')
    ki: float = param(
        0.1, '1/s', low=0.0, high=1.0,
        doc='Rate at which a remaining grid error is trimmed away while all is quiet; 0 = off.')
    kd: float = param(
        0.0, 's', low=0.0, high=5.0,
        doc='Lead on ramps of the load, in seconds of its filtered slope; 0 = off.')
    dead_band: float = param(
        10.0, 'W', low=0.0, high=1e6,
        doc='Grid error up to which nothing is changed.')
    trim_limit: float = param(
        500.0, 'W', low=0.0, high=1e6,
        doc='Largest trim of the integral part.')
    delay_s: float = param(
        1.2, 's', low=0.0, high=30.0,
        doc='Longest delay between meter and battery readings that their stamps do not show '
            '(averaging, refresh). Larger = slower on steps in quick succession, never unstable.')
    settle_s: float = param(
        4.0, 's', low=0.1, high=120.0,
        doc='Time in which meter and converter have surely answered a power step.')
    soc_reserve: float = param(
        0.0, '', low=0.0, high=1.0,
        doc='State of charge (0..1) at which discharging ends.')
    soc_hysteresis: float = param(
        0.02, '', low=0.0, high=0.5,
        doc='State of charge above the reserve from which discharging starts again.')
    priority: int = param(
        100, '', low=0, high=255,
        doc='Priority of the proposals.')
    lease_s: float = param(
        3.0, 's', low=0.1, high=60.0,
        doc='Lease of each proposal.')
    max_meter_age_s: float = param(
        3.0, 's', low=0.1, high=60.0,
        doc='Age of the meter reading from which power goes to zero.')


class SelfConsumption:
    """The controller. Call `step` on every tick; it acts once per fresh meter sample."""

    Params: ClassVar[type] = SelfConsumptionParams

    def __init__(self, params: SelfConsumptionParams, source: str = 'self_consumption',
                 battery: str = '', meter: str = '') -> None:
        self.params = params
        self.source = source
        self.battery = battery
        self.meter = meter if 'meter' in meter else f'meter {meter}'.strip()
        self._rest = LoadEstimator(params.delay_s, params.settle_s)
        self._sequence: int | None = None
        self._measured_at = -inf
        self.problem = ''  # why nothing can be controlled at present, in words
        self._no_discharge = False
        self._history: deque[tuple[float, float]] = deque()  # (s, W) balancing powers
        self.reset()

    def reset(self) -> None:
        """Forget the plant and start bumplessly from the next samples (mode switched, meter lost)."""
        self._rest.reset()
        self._history.clear()
        self._base: float | None = None  # W, filtered balancing power
        self._slope = 0.0  # W/s
        self._asked: float | None = None  # W
        self.trim = 0.0  # W

    def step(self, meter: MeterReading | None, battery: BatteryReading, granted: float | None,
             now: float) -> Proposal | None:
        """One tick; `granted` (W) is what the power manager last granted for this battery.

        Returns a proposal for a fresh meter sample, None when there is nothing new, and a proposal
        of zero that says why on every tick on which meter or battery can not be trusted.
        """
        self.problem = self._problem(meter, battery, now)
        if self.problem or meter is None:
            self.reset()
            return self._propose(0.0, self.problem, now)
        if battery.quality is Quality.OK:
            self._rest.observe(battery.power, battery.time, now)
        if granted is not None and plausible(granted):
            self._rest.order(granted - self.trim, now)
        if meter.sequence == self._sequence or meter.time <= self._measured_at:
            return None
        # A meter that was away is a new start, not one long interval.
        period = min(meter.time - self._measured_at, self.params.max_meter_age_s)
        self._sequence, self._measured_at = meter.sequence, meter.time

        power = self._balance(meter, battery, granted, now, period)
        power, note = self._respect_reserve(power, battery.soc)
        self._asked = power
        reason = (f'grid at {grid_watts(meter.active_power)}, target '
                  f'{grid_watts(self.params.target_grid_power)}')
        return self._propose(power, f'{reason}; {note}' if note else reason, now)

    def _problem(self, meter: MeterReading | None, battery: BatteryReading, now: float) -> str:
        """Why nothing can be controlled, in words; "" when all is well."""
        if meter is None or not isfinite(meter.time):
            return f'{self.meter} has not been read'
        age = now - meter.time
        if age > self.params.max_meter_age_s or meter.quality is Quality.STALE:
            return f'{self.meter} stale for {max(age, 0.0):.1f} s'
        if meter.quality is not Quality.OK:
            return f'{self.meter} values are invalid'
        if age < -CLOCK_SLACK_S:
            return f'{self.meter} stamp is {-age:.1f} s in the future'
        if not plausible(meter.active_power):
            return (f'{self.meter} does not measure active power' if isnan(meter.active_power)
                    else f'{self.meter} power is not plausible')
        if battery.quality is Quality.INVALID or not plausible(battery.power):
            return 'battery power is unknown'
        return ''

    def _balance(self, meter: MeterReading, battery: BatteryReading, granted: float | None,
                 now: float, period: float) -> float:
        p = self.params
        rest = self._rest.update(meter.active_power, meter.time, now, period)
        error = p.target_grid_power - meter.active_power
        if isnan(rest):  # stale from the start: no battery power yet
            return 0.0
        if self._base is None:
            self._base = granted if granted is not None and plausible(granted) else battery.power
        # Outside the dead band approach target - rest; inside it leave well alone.
        wanted = p.target_grid_power - rest if abs(error) > p.dead_band else self._base
        before = self._base
        self._base -= expm1(-p.kp * period) * (wanted - self._base)
        self._trim(error, wanted, granted, now, period)
        lead = 0.0
        if p.kd > 0.0:
            share = period / (period + p.delay_s)
            self._slope += share * ((self._base - before) / period - self._slope)
            lead = p.kd * self._slope
        return self._base + self.trim + lead

    def _trim(self, error: float, wanted: float, granted: float | None, now: float,
              period: float) -> None:
        """Integral part: learn the remaining error while nothing moves."""
        p = self.params
        self._history.append((now, wanted))
        while len(self._history) > 1 and self._history[1][0] <= now - p.settle_s:
            self._history.popleft()
        values = [w for _, w in self._history]
        quiet = max(values) - min(values) <= max(20.0, 2.0 * p.dead_band, 0.02 * abs(wanted))
        seen_long_enough = self._history[0][0] <= now - p.settle_s
        if not (quiet and seen_long_enough) or abs(error) <= p.dead_band:
            return
        if granted is not None and plausible(granted) and self._asked is not None:
            short = self._asked - granted  # W, what was asked but not granted
            if abs(short) > 1.0 and short * error > 0.0:
                return
        self.trim = clamp(self.trim + p.ki * period * error, -p.trim_limit, p.trim_limit)

    def _respect_reserve(self, power: float, soc: float) -> tuple[float, str]:
        p = self.params
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

    def _propose(self, power: float, reason: str, now: float) -> Proposal:
        return Proposal(
            source=self.source, battery=self.battery, priority=self.params.priority,
            preferred_power=power + 0.0, lease=self.params.lease_s, reason=reason, time=now)
