"""Keep the power of the grid connection at a target with the battery: the loop that modes share.

How it works, and why it is not a plain PID. The battery should take ``target - P_rest``, where
``P_rest`` is what everything else at the connection draws (`bess_control.load_estimate`). This
feed-forward does nearly all the work: it answers a load step in one sample, has no loop that could
swing, and does not depend on how late meter and converter are. Around it:

* P: the answer approaches that value with rate `kp` (1/s), which filters measurement noise;
* trim, at once: converters give a little more or less than they are told. When order and battery
  reading have stood still for `steady_s` and differ by a plausible share, that difference is added to
  the order in one step, and the next such step waits until its effect has surely been seen;
* trim, slowly: what then remains at the meter while load and battery are quiet is learnt with rate
  `ki` (1/s). Both are frozen while less was granted than asked in the direction they push
  (conditional integration) and bounded by `trim_limit`;
* D: `kd` (s) leads slow ramps of the load; 0 by default, since it also amplifies noise.

All gains use the measured time between samples, so 0.1 s and 1 s ticks behave alike.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import expm1, inf, isfinite, isnan, nan

from bess_control.load_estimate import LoadEstimator, clamp, plausible
from bess_control.proposals import CLOCK_SLACK_S
from bess_core.params import param
from bess_core.values import BatteryReading, MeterReading, Quality


@dataclass(frozen=True)
class GridLoopParams:
    """Parameters of the loop."""

    kp: float = param(
        8.0, '1/s', low=0.05, high=1000.0,
        doc='Rate at which the answer approaches the balancing power; 1000 = at once.')
    ki: float = param(
        0.1, '1/s', low=0.0, high=2.0,
        doc='Rate at which a remaining grid error is trimmed away while all is quiet; 0 = off.')
    kd: float = param(
        0.0, 's', low=0.0, high=5.0,
        doc='Lead on ramps of the load, in seconds of its filtered slope; 0 = off.')
    dead_band: float = param(
        10.0, 'W', low=0.0, high=1e6,
        doc='Grid error up to which nothing is changed.')
    trim_limit: float = param(
        500.0, 'W', low=0.0, high=1e6,
        doc='Largest trim.')
    steady_s: float = param(
        0.5, 's', low=0.0, high=60.0,
        doc='Time for which order and battery must have stood still before what the converter gives too much or '
            'too little is trimmed in one step; 0 = never in one step.')
    delay_s: float = param(
        1.2, 's', low=0.0, high=30.0,
        doc='Longest delay between meter and battery readings that their stamps do not show '
            '(averaging, refresh). Larger = slower on steps in quick succession, never unstable.')
    settle_s: float = param(
        4.0, 's', low=0.1, high=120.0,
        doc='Time in which meter and converter have surely answered a power step.')
    max_meter_age_s: float = param(
        3.0, 's', low=0.1, high=60.0,
        doc='Age of the meter reading from which the mode can no longer work.')


class GridLoop:
    """`look` on every tick; where it returns True (a fresh sample), `track` gives the power to ask for."""

    def __init__(self, params: GridLoopParams, meter: str = '') -> None:
        self.params = params
        self.meter = meter if 'meter' in meter else f'meter {meter}'.strip()
        self._estimate = LoadEstimator(params.delay_s, params.settle_s)
        self._sequence: int | None = None
        self._measured_at = -inf
        self.problem = ''  # why nothing can be controlled at present, in words
        self._history: deque[tuple[float, float]] = deque()  # (s, W) balancing powers
        self._readings: deque[tuple[float, float]] = deque()  # (stamp, W) of the battery
        self._trimmed_at = -inf  # s
        self.period = 0.0  # s, between the last two samples
        self.grid = nan  # W, last sample, + = import
        self.reset()

    def reset(self) -> None:
        """Forget the plant and start bumplessly from the next samples (mode switched, meter lost)."""
        self._estimate.reset()
        self.trim = 0.0  # W
        self.release()

    def release(self) -> None:
        """The power is left to others; the next `track` begins at what is granted then."""
        self._history.clear()
        self._readings.clear()
        self._base: float | None = None  # W, filtered balancing power
        self._settled: deque[tuple[float, float]] = deque()  # (s, W) of `_base`
        self._slope = 0.0  # W/s
        self._asked: float | None = None  # W

    @property
    def rest(self) -> float:
        """What all but the battery draws, W, + = consumption; NaN while unknown."""
        return self._estimate.value

    def look(self, meter: MeterReading | None, battery: BatteryReading, granted: float | None,
             now: float) -> bool:
        """Take in the present readings; `granted` (W) is what the power manager last granted.

        True when there is a fresh sample to act on. False with `problem` set: nothing may be
        concluded from the readings, and the loop has been reset.
        """
        self.problem = self._problem(meter, battery, now)
        if self.problem or meter is None:
            self.reset()
            return False
        if battery.quality is Quality.OK:
            self._estimate.observe(battery.power, battery.time, now)
            if not self._readings or battery.time > self._readings[-1][0]:
                self._readings.append((battery.time, battery.power))
                while len(self._readings) > 2 and self._readings[1][0] <= battery.time - self.params.steady_s:
                    self._readings.popleft()
        if granted is not None and plausible(granted):
            self._estimate.order(granted - self.trim, now)
        if meter.sequence == self._sequence or meter.time <= self._measured_at:
            return False
        # A meter that was away is a new start, not one long interval.
        self.period = min(meter.time - self._measured_at, self.params.max_meter_age_s)
        self._sequence, self._measured_at = meter.sequence, meter.time
        self.grid = meter.active_power
        self._estimate.update(meter.active_power, meter.time, now, self.period)
        return True

    def _problem(self, meter: MeterReading | None, battery: BatteryReading, now: float) -> str:
        """Why nothing can be controlled, in words; "" when all is well."""
        problem = meter_problem(meter, self.meter, now, self.params.max_meter_age_s)
        if problem:
            return problem
        if battery.quality is Quality.INVALID or not plausible(battery.power):
            return 'battery power is unknown'
        return ''

    def track(self, target: float, battery: BatteryReading, granted: float | None, now: float) -> float:
        """Power (W) that brings the connection to `target` (W, + = import). Call after a true `look`."""
        p, rest = self.params, self.rest
        error = target - self.grid
        if isnan(rest):  # stale from the start: no battery power yet
            return 0.0
        if self._base is None:
            present = granted if granted is not None and plausible(granted) else battery.power
            self._base = present - self.trim
        # Outside the dead band approach target - rest; inside it leave well alone.
        wanted = target - rest if abs(error) > p.dead_band else self._base
        before = self._base
        self._base -= expm1(-p.kp * self.period) * (wanted - self._base)
        if not self._trim_at_once(granted, now):
            self._learn(error, wanted, granted, now)
        self._settled.append((now, self._base))
        while len(self._settled) > 2 and self._settled[1][0] <= now - p.steady_s:
            self._settled.popleft()
        lead = 0.0
        if p.kd > 0.0:
            share = self.period / (self.period + p.delay_s)
            self._slope += share * ((self._base - before) / self.period - self._slope)
            lead = p.kd * self._slope
        self._asked = self._base + self.trim + lead
        return self._asked

    def asked(self, power: float) -> None:
        """What was asked in the end, where it differs from the answer of `track`."""
        self._asked = power

    def _trim_at_once(self, granted: float | None, now: float) -> bool:
        """Trim by what the battery reads less than it was told, where both stand still. True when it did."""
        p, told, read = self.params, self._settled, self._readings
        # A reading must come after the order stood still, and three make "still" more than chance.
        if (not p.steady_s or now - self._trimmed_at < p.delay_s + p.steady_s or len(read) < 3 or len(told) < 3
                or told[0][0] > now - p.steady_s or read[0][0] > now - p.steady_s
                or granted is None or self._asked is None or abs(self._asked - granted) > 1.0):
            return False
        powers, orders = [w for _, w in read], [w for _, w in told]
        order = orders[-1]
        moved = max(powers) - min(powers) + max(orders) - min(orders)
        if moved > max(10.0, 0.01 * abs(order)):
            return False
        gap = order - sum(powers) / len(powers)
        if not p.dead_band + 3.0 * moved < abs(gap) <= max(100.0, 0.1 * abs(order)):
            return False  # nothing to do; or not a converter's error but one that has not moved yet
        self.trim = clamp(self.trim + gap, -p.trim_limit, p.trim_limit)
        self._trimmed_at = now
        return True

    def _learn(self, error: float, wanted: float, granted: float | None, now: float) -> None:
        """Integral part: learn the remaining error while nothing moves."""
        p = self.params
        self._history.append((now, wanted))
        while len(self._history) > 1 and self._history[1][0] <= now - p.settle_s:
            self._history.popleft()
        low = high = wanted
        for _, value in self._history:
            low, high = min(low, value), max(high, value)
        quiet = high - low <= max(20.0, 2.0 * p.dead_band, 0.02 * abs(wanted))
        seen_long_enough = self._history[0][0] <= now - p.settle_s
        if not (quiet and seen_long_enough) or abs(error) <= p.dead_band:
            return
        if granted is not None and plausible(granted) and self._asked is not None:
            short = self._asked - granted  # W, what was asked but not granted
            if abs(short) > 1.0 and short * error > 0.0:
                return
        self.trim = clamp(self.trim + p.ki * self.period * error, -p.trim_limit, p.trim_limit)


def meter_problem(meter: MeterReading | None, name: str, now: float, max_age_s: float) -> str:
    """Why a meter reading can not be used at `now`, in words; "" when it can."""
    if meter is None or not isfinite(meter.time):
        return f'{name} has not been read'
    age = now - meter.time
    if age > max_age_s or meter.quality is Quality.STALE:
        return f'{name} stale for {max(age, 0.0):.1f} s'
    if meter.quality is not Quality.OK:
        return f'{name} values are invalid'
    if age < -CLOCK_SLACK_S:
        return f'{name} stamp is {-age:.1f} s in the future'
    if not plausible(meter.active_power):
        return (f'{name} does not measure active power' if isnan(meter.active_power)
                else f'{name} power is not plausible')
    return ''
