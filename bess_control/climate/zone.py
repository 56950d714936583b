"""One climate zone: fan by hottest sensor, heaters by coldest, and whether batteries may charge. Pure.

Each actuator has its own law (hysteresis or PID), ramp, least on and off times and a manual force with
an end. Without a usable sensor fans run at their safe share and heaters are off: an unwatched heater is
the greater danger. A force never switches a heater on that is over its limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan

from bess_core.values import ClimateMode

OUTPUTS = ('fan', 'heater', 'heater_board')


@dataclass(frozen=True, slots=True)
class Actuator:
    """Law of one output. Fans act above `start`, heaters below it; `off` is where they end. degC and fractions."""

    start: float  # degC, begins here (hysteresis); set point of a PID
    stop: float  # degC, ends here (hysteresis); for a PID where it is switched off altogether
    full: float = nan  # degC at which a fan under hysteresis is at full speed; NaN = at once
    low: float = 0.3  # fraction, least output while on (a fan that turns too slowly stalls)
    high: float = 1.0  # fraction, most output
    kp: float = 0.0  # 1/K; above 0 = PID instead of hysteresis
    ki: float = 0.0  # 1/(K s)
    kd: float = 0.0  # s/K
    ramp: float = inf  # 1/s, fastest change of the output
    min_on: float = 0.0  # s
    min_off: float = 0.0  # s
    steps: bool = False  # on or off only (a relay): any output above 0 is `high`
    safe: float = 0.0  # fraction without a usable sensor

    def problem(self, heats: bool) -> str:
        """Why it cannot be; '' = it can."""
        if not (isfinite(self.start) and isfinite(self.stop)):
            return 'start and stop must be numbers (degC)'
        if heats and not self.stop > self.start:
            return f'stop ({self.stop:g}) must be above start ({self.start:g}) for what heats'
        if not heats and not self.stop < self.start:
            return f'stop ({self.stop:g}) must be below start ({self.start:g}) for a fan'
        if not heats and not isnan(self.full) and not self.full > self.start:
            return f'full ({self.full:g}) must be above start ({self.start:g})'
        if not 0.0 <= self.low <= self.high <= 1.0:
            return f'low ({self.low:g}) and high ({self.high:g}) must be 0 <= low <= high <= 1'
        if not (self.ramp > 0.0 and self.min_on >= 0.0 and self.min_off >= 0.0 and 0.0 <= self.safe <= 1.0):
            return 'ramp must be above 0, min_on and min_off at least 0, safe 0 to 1'
        if not all(isfinite(k) and k >= 0.0 for k in (self.kp, self.ki, self.kd)):
            return 'kp, ki and kd must be at least 0'
        return 'safe must be 0 for what heats' if heats and self.safe > 0.0 else ''


@dataclass(frozen=True, slots=True)
class ZoneParams:
    """A zone of a profile. Temperatures in degC."""

    name: str
    fan: Actuator | None = None
    heater: Actuator | None = None
    heater_board: Actuator | None = None
    charge_min: float = 0.0  # coldest sensor below this: no charging (0 for LFP and NMC; lithium plating)
    charge_max: float = 45.0
    discharge_min: float = -20.0
    discharge_max: float = 60.0
    hysteresis: float = 2.0  # K, by which it must be well before it is allowed again
    heater_limit: float = 40.0  # hottest sensor above this: heaters off, whatever is forced
    max_age: float = 60.0  # s, of a sensor
    plausible: tuple[float, float] = (-40.0, 100.0)  # outside = sensor broken

    @property
    def actuators(self) -> dict[str, Actuator]:
        """Outputs that the zone has."""
        return {n: a for n in OUTPUTS if (a := getattr(self, n)) is not None}

    def problem(self) -> str:
        """Why it cannot be; '' = it can."""
        if not self.actuators:
            return f'{self.name}: no fan, heater or heater_board'
        for name, a in self.actuators.items():
            if problem := a.problem(heats=name != 'fan'):
                return f'{self.name}: {name}: {problem}'
        if not (self.charge_min < self.charge_max and self.discharge_min < self.discharge_max):
            return f'{self.name}: charge_min and discharge_min must be below charge_max and discharge_max'
        if not (self.hysteresis >= 0.0 and self.max_age > 0.0):
            return f'{self.name}: hysteresis must be at least 0, max_age above 0'
        return ''


@dataclass(frozen=True, slots=True)
class Sample:
    """A temperature in degC, with the time it was measured (s); NaN = not measured."""

    value: float
    at: float


@dataclass(slots=True)
class ZoneOutput:
    """What a zone wants. Fractions 0..1; NaN = the zone has no such output."""

    outputs: dict[str, float] = field(default_factory=dict)
    coldest: float = nan
    hottest: float = nan
    usable: int = 0  # sensors
    sensors: int = 0
    charge_allowed: bool = False
    discharge_allowed: bool = False
    forced: dict[str, tuple[float, float]] = field(default_factory=dict)  # output -> (value, s left)
    reasons: list[str] = field(default_factory=list)


class _Law:
    """One output over time."""

    def __init__(self, p: Actuator, heats: bool) -> None:
        self.p, self._sign = p, -1.0 if heats else 1.0
        self.on = False
        self.value = 0.0
        self._switched = -inf
        self._integral = 0.0
        self._error = nan
        self._time: float | None = None

    def wanted(self, temperature: float, dt: float) -> float:
        """Fraction by the law, before ramp and least times."""
        p = self.p
        excess = self._sign * (temperature - p.start)  # K beyond `start`, + = act
        if p.kp > 0.0:
            if self._sign * (temperature - p.stop) <= 0.0:
                self._integral, self._error = 0.0, nan
                return 0.0
            slope = 0.0 if isnan(self._error) or dt <= 0.0 else (excess - self._error) / dt
            self._error = excess
            raw = p.kp * excess + self._integral + p.kd * slope
            # The integral stands still where it would only wind up.
            if 0.0 < raw < p.high or (raw >= p.high) is (excess < 0.0):
                self._integral = max(min(self._integral + p.ki * excess * dt, p.high), 0.0)
                raw = p.kp * excess + self._integral + p.kd * slope
            return 0.0 if raw <= 0.0 else max(p.low, min(raw, p.high))
        beyond = excess >= 0.0 if not self.on else self._sign * (temperature - p.stop) > 0.0
        if not beyond:
            return 0.0
        if isnan(p.full) or self._sign < 0.0:
            return p.high
        share = max(0.0, min(1.0, excess / (p.full - p.start)))
        return p.low + (p.high - p.low) * share

    def apply(self, wanted: float, now: float, dt: float, at_once: bool = False) -> float:
        """Least times and ramp; `at_once` for what must not wait (a limit)."""
        p = self.p
        if p.steps and wanted > 0.0:
            wanted = p.high
        too_soon = now - self._switched < (p.min_on if self.on else p.min_off)
        if too_soon and not at_once and (wanted > 0.0) is not self.on:
            wanted = max(p.low, self.value) if self.on else 0.0
        if (wanted > 0.0) is not self.on:
            self.on, self._switched = wanted > 0.0, now
        step = inf if at_once or p.steps else p.ramp * dt
        low = p.low if self.on else 0.0  # below its least output it does not run
        value = max(self.value - step, min(self.value + step, wanted)) if isfinite(step) else wanted
        self.value = max(value, low) if wanted > 0.0 else max(value, 0.0)
        return self.value


class Zone:
    """One zone; call `tick` on a grid."""

    def __init__(self, params: ZoneParams) -> None:
        if problem := params.problem():
            raise ValueError(problem)
        self.params = params
        self._laws = {n: _Law(a, n != 'fan') for n, a in params.actuators.items()}
        self._force: dict[str, tuple[float, float]] = {}  # output -> (value, until)
        self._may = {'charge': False, 'discharge': False}
        self._time: float | None = None

    def force(self, output: str, value: float, until: float, now: float) -> str:
        """Force an output until `until` (s); NaN ends that. Returns why not, '' = done."""
        if output not in self._laws:
            return f'{self.params.name} has no {output}; it has: {", ".join(self._laws)}'
        if isnan(value):
            self._force.pop(output, None)
            return ''
        if not 0.0 <= value <= 1.0:
            return f'{value:g} is not a fraction 0 to 1'
        if not until > now or not isfinite(until):
            return 'the duration must be above 0'
        self._force[output] = (value, until)
        return ''

    def tick(self, samples: Iterable[Sample], now: float) -> ZoneOutput:
        """Outputs at `now`, from the zone's temperature sensors."""
        p = self.params
        dt = 0.0 if self._time is None else max(now - self._time, 0.0)
        self._time = now
        samples = list(samples)
        good = [s.value for s in samples if now - s.at <= p.max_age and p.plausible[0] <= s.value <= p.plausible[1]]
        out = ZoneOutput(sensors=len(samples), usable=len(good))
        if good:
            out.coldest, out.hottest = min(good), max(good)
        self._limits(out)
        self._force = {n: f for n, f in self._force.items() if f[1] > now}
        for name, law in self._laws.items():
            heats = name != 'fan'
            at_once = False
            if not good:
                wanted, reason = law.p.safe, 'no usable sensor'
            else:
                wanted, reason = law.wanted(out.coldest if heats else out.hottest, dt), ''
            if name in self._force:
                wanted, until = self._force[name]
                out.forced[name] = (wanted, until - now)
                reason = f'forced for {until - now:.0f} s'
            if heats and (not good or out.hottest > p.heater_limit) and (wanted > 0.0 or law.on):
                wanted, at_once = 0.0, True
                reason = f'{out.hottest:.1f} degC is above {p.heater_limit:g} degC' if good else 'no usable sensor'
            value = out.outputs[name] = law.apply(wanted, now, dt, at_once)
            if value > 0.0 or reason:
                out.reasons.append(f'{name} {value:.0%}{f": {reason}" if reason else ""}')
        return out

    def _limits(self, out: ZoneOutput) -> None:
        p = self.params
        for name, low, high in (('charge', p.charge_min, p.charge_max),
                                ('discharge', p.discharge_min, p.discharge_max)):
            # Where it was not allowed it must be well by the hysteresis, or a heater would be chased by its own load.
            margin = 0.0 if self._may[name] else p.hysteresis
            may = out.usable > 0 and out.coldest >= low + margin and out.hottest <= high - margin
            self._may[name] = may
            if not may:
                out.reasons.append(f'no {name.replace("charge", "charging")}: ' + (
                    'no usable sensor' if not out.usable else
                    f'{out.coldest:.1f} degC, at least {low + margin:g} degC' if out.coldest < low + margin else
                    f'{out.hottest:.1f} degC, at most {high - margin:g} degC'))
        out.charge_allowed, out.discharge_allowed = self._may['charge'], self._may['discharge']


def device_order(zone: ZoneParams, outputs: Mapping[str, float], cooling: ClimateMode) -> tuple[ClimateMode, float]:
    """Mode and target temperature (degC, NaN = none) of a climate device that does what a zone's outputs ask for.

    The target is where the zone's own law ends, so that the device does not stop earlier. Heating goes first: a zone
    whose coldest sensor is too cold and whose hottest is too warm must not be cooled further.
    """
    heat = [a.stop for n in ('heater', 'heater_board') if (a := getattr(zone, n)) is not None and outputs[n] > 0.0]
    if heat:
        return ClimateMode.HEAT, max(heat)
    if zone.fan is not None and outputs['fan'] > 0.0:
        return cooling, zone.fan.stop if cooling is ClimateMode.COOL else nan
    return ClimateMode.OFF, nan
