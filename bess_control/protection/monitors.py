"""Monitors: conditions that no single device reports, each with threshold, hysteresis, delay and data age. Pure.

A check becomes active when its value stays beyond the threshold for `delay`, and ends when the value
stays inside the threshold by `hysteresis` for the same time. Data older than `max_age` (or NaN) decides
nothing: a check keeps its state, and after `delay` says that it is blind. Times in s of the site clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import hypot, inf, isfinite, isnan, nan
from typing import Any

from bess_core.values import Alarm, BatteryReading, Contactor, ConverterReading, MeterReading, Mode, Quality, Severity

W, E, C = Severity.WARNING, Severity.ERROR, Severity.CRITICAL


@dataclass(frozen=True, slots=True)
class Settings:
    """One monitor. `threshold` and `hysteresis` in `unit`; active above the threshold, or below where `below`."""

    threshold: float
    hysteresis: float
    delay: float  # s
    max_age: float  # s
    severity: Severity
    unit: str
    doc: str
    below: bool = False
    enabled: bool = True


#: Defaults by name; each may be changed in the site file.
DEFAULTS: dict[str, Settings] = {
    'cell_imbalance': Settings(0.1, 0.02, 60.0, 30.0, W, 'V', 'highest minus lowest cell of a battery'),
    'bms_state': Settings(0.5, 0.0, 2.0, 5.0, E, '', 'battery in FAULT, or its contactor open while the site runs '
                          '(1 = so)'),
    'critical_low_voltage': Settings(2.5, 0.2, 2.0, 10.0, C, 'V', 'lowest cell of a battery', below=True),
    'voltage_low': Settings(0.0, 1.0, 5.0, 10.0, E, 'V', 'voltage of a battery; 0 = off', below=True),
    'voltage_high': Settings(inf, 1.0, 5.0, 10.0, E, 'V', 'voltage of a battery; inf = off'),
    'soc_degradation': Settings(0.1, 0.02, 60.0, 30.0, W, 'fraction', 'SoC against the counted charge'),
    'controller_temperature': Settings(75.0, 5.0, 10.0, 30.0, W, 'degC', 'temperature of this machine'),
    'humidity': Settings(0.85, 0.05, 60.0, 120.0, W, 'fraction', 'relative humidity of a climate sensor'),
    'auto_charge': Settings(200.0, 50.0, 10.0, 5.0, W, 'W', 'power into a battery that nobody asked for'),
    'inactive_bms': Settings(10.0, 0.0, 0.0, inf, E, 's', 'age of the values of a battery'),
    'communication': Settings(10.0, 0.0, 0.0, inf, E, 's', 'age of the values of a meter or converter'),
    'follow_error': Settings(500.0, 100.0, 10.0, 5.0, E, 'W', 'power of a converter against its order'),
    'meter_plausibility': Settings(0.1, 0.02, 10.0, 5.0, E, 'fraction', 'phases against the sum, and U times I '
                                   'against the power'),
    'clock': Settings(1.0, 0.0, 0.0, inf, W, 's', 'jump of the wall clock against the steady one'),
}
CLOCK_HOLD_S = 600.0  # how long a jump of the clock is shown
EARLIEST_WALL = 1_704_067_200.0  # 2024-01-01: a machine without time starts at 1970
WINDOW_S = 86400.0  # after so long the charge count of soc_degradation starts anew


def settings_from(changes: Mapping[str, Any]) -> dict[str, Settings]:
    """Defaults with the changes of a site file: name -> mapping of fields. Raises ValueError."""
    out = dict(DEFAULTS)
    allowed = {f.name for f in fields(Settings)} - {'unit', 'doc', 'below'}
    for name, change in changes.items():
        if name not in out:
            raise ValueError(f'unknown monitor {name!r}; allowed: {", ".join(DEFAULTS)}')
        if not isinstance(change, Mapping):
            raise ValueError(f'{name}: not a mapping')
        taken: dict[str, Any] = {}
        for key, value in change.items():
            if key not in allowed:
                raise ValueError(f'{name}: unknown key {key!r}; allowed: {", ".join(sorted(allowed))}')
            if key == 'enabled':
                if not isinstance(value, bool):
                    raise ValueError(f'{name}: enabled must be true or false')
                taken[key] = value
            elif key == 'severity':
                if str(value).upper() not in Severity.__members__:
                    raise ValueError(f'{name}: severity must be warning, error or critical')
                taken[key] = Severity[str(value).upper()]
            else:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or isnan(value):
                    raise ValueError(f'{name}: {key} is {value!r}, must be a number')
                if key != 'threshold' and value < 0.0:
                    raise ValueError(f'{name}: {key} is {value!r}, must be at least 0')
                taken[key] = float(value)
        out[name] = replace(out[name], **taken)
    return out


class Check:
    """One monitor for one subject."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.active = False
        self.blind = False
        self._changing_since: float | None = None
        self._blind_since: float | None = None

    def tick(self, value: float, at: float, now: float) -> bool:
        """Whether it is active, with a value measured at `at`; NaN = not measured."""
        s = self.settings
        if isnan(value) or now - at > s.max_age:
            if self._blind_since is None:
                self._blind_since = now
            self.blind = now - self._blind_since >= s.delay
            self._changing_since = None
            return self.active
        self.blind, self._blind_since = False, None
        sign = -1.0 if s.below else 1.0
        excess = sign * (value - s.threshold)
        wants = excess > 0.0 if not self.active else excess > -s.hysteresis
        if wants is self.active:
            self._changing_since = None
        else:
            if self._changing_since is None:
                self._changing_since = now
            if now - self._changing_since >= s.delay:
                self.active, self._changing_since = wants, None
        return self.active


class ChargeCount:
    """SoC that a battery says against the one that its current explains."""

    def __init__(self) -> None:
        self._soc = self._at = nan
        self._counted = 0.0  # fraction since the reference
        self._since = nan
        self.correction = nan  # last jump of SoC that no current explains, fraction

    def update(self, soc: float, current: float, charge_full: float, at: float) -> float:
        """Deviation (fraction, >= 0) at `at`; NaN where it cannot be told."""
        if isnan(soc) or isnan(current) or isnan(charge_full) or charge_full <= 0.0 or not isfinite(at):
            return nan
        gap = at - self._at
        if isnan(self._since) or gap < 0.0 or gap > 60.0 or at - self._since > WINDOW_S or soc >= 0.999 or soc <= 0.001:
            # At both ends a battery sets its count right; that is no degradation.
            if not isnan(self._since) and 0.0 <= gap <= 60.0:
                self.correction = soc - self._soc - self._counted
            self._soc, self._since, self._counted, self._at = soc, at, 0.0, at
            return 0.0
        self._counted += current * gap / 3600.0 / charge_full
        self._at = at
        return abs(soc - self._soc - self._counted)


def meter_deviation(m: MeterReading, floor: float = 200.0) -> float:
    """How far a meter contradicts itself, as a fraction; NaN where it gives too little to tell.

    Sum of the phases against the total, and per phase |P| against U I (it can not be larger). `floor` (W)
    keeps small powers from looking large. Values that are no number of this world count as 1.
    """
    if isnan(m.active_power):
        return nan
    worst = nan
    known = [p for p in m.phase_power if not isnan(p)]
    if not isfinite(m.active_power) or any(not isfinite(p) for p in known):
        return 1.0
    if len(known) == 3 or (len(known) == 1 and sum(not isnan(v) for v in m.voltage) == 1):
        worst = abs(sum(known) - m.active_power) / max(abs(m.active_power), floor)
    for power, voltage, current in zip(m.phase_power, m.voltage, m.current, strict=True):
        if isnan(power) or isnan(voltage) or isnan(current):
            continue
        beyond = max(abs(power) - abs(voltage * current), 0.0) / max(abs(voltage * current), floor)
        worst = beyond if isnan(worst) else max(worst, beyond)
    if not (isnan(m.active_power) or isnan(m.reactive_power) or isnan(m.apparent_power)):
        beyond = max(hypot(m.active_power, m.reactive_power) - m.apparent_power, 0.0) / max(m.apparent_power, floor)
        worst = beyond if isnan(worst) else max(worst, beyond)
    return worst


class Monitors:
    """All monitors of a site. Give readings with `battery`, `converter` ..., then `tick`."""

    def __init__(self, settings: Mapping[str, Settings], now: float) -> None:
        self.settings = dict(settings)
        self._checks: dict[tuple[str, str], Check] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._counts: dict[str, ChargeCount] = {}
        self._clock: tuple[float, float] | None = None  # (site, wall)
        self._jumped: tuple[float, float] | None = None  # (site, s)
        self._started = now

    def battery(self, name: str, r: BatteryReading, running: bool, now: float, asked: float | None = None) -> None:
        """Look at the last reading of a battery; `running`: the site is in RUN. `asked`: W (NaN = nobody asks) where
        not the battery itself takes the orders; None = it does."""
        at, heard = r.time, max(r.time, self._started)
        usable = r.quality is not Quality.INVALID
        spread = r.cell_voltage_max - r.cell_voltage_min
        self._look('cell_imbalance', name, spread if usable else nan, at, now,
                   f'cells differ by {spread:.3f} V (lowest {r.cell_voltage_min_index}, '
                   f'highest {r.cell_voltage_max_index})')
        opened = running and r.contactor is Contactor.OPEN
        bad = r.mode is Mode.FAULT or opened
        self._look('bms_state', name, float(bad) if usable else nan, at, now,
                   'its contactor is open although the site runs' if opened else 'it says FAULT')
        self._look('critical_low_voltage', name, r.cell_voltage_min if usable else nan, at, now,
                   f'cell {r.cell_voltage_min_index} at {r.cell_voltage_min:.3f} V')
        for check in ('voltage_low', 'voltage_high'):
            self._look(check, name, r.voltage if usable else nan, at, now, f'{r.voltage:.1f} V')
        count = self._counts.setdefault(name, ChargeCount())
        deviation = count.update(r.soc, r.current, r.charge_full, at) if usable else nan
        self._look('soc_degradation', name, deviation, at, now,
                   f'SoC {r.soc:.1%} differs by {deviation:.1%} from the counted charge')
        asked = r.setpoint if asked is None else asked
        asked = 0.0 if isnan(asked) else max(asked, 0.0)
        self._look('auto_charge', name, r.power - asked if usable else nan, at, now,
                   f'{r.power:.0f} W flow in, {asked:.0f} W are asked for')
        self._look('inactive_bms', name, now - heard, now, now, f'no values for {now - heard:.0f} s')

    def converter(self, name: str, r: ConverterReading, now: float) -> None:
        """Look at the last reading of a converter."""
        usable = r.quality is Quality.OK and not isnan(r.setpoint)
        self._look('follow_error', name, abs(r.active_power - r.setpoint) if usable else nan, r.time, now,
                   f'{r.active_power:.0f} W flow, ordered are {r.setpoint:.0f} W', blind=False)
        self._age(name, r.time, now)

    def meter(self, name: str, r: MeterReading, now: float) -> None:
        """Look at the last reading of a meter."""
        deviation = meter_deviation(r) if r.quality is Quality.OK else nan
        self._look('meter_plausibility', name, deviation, r.time, now,
                   f'its values contradict each other by {deviation:.0%}', blind=False)
        self._age(name, r.time, now)

    def _age(self, name: str, at: float, now: float) -> None:
        age = now - max(at, self._started)
        self._look('communication', name, age, now, now, f'no values for {age:.0f} s')

    def value(self, check: str, name: str, value: float, at: float, now: float) -> None:
        """A plain value: `controller_temperature` (degC) or `humidity` (fraction)."""
        text = f'{value:.0%}' if check == 'humidity' else f'{value:.1f} degC'
        self._look(check, name, value, at, now, text)

    def clock(self, wall: float, now: float) -> None:
        """Compare the wall clock with the steady one."""
        s = self.settings['clock']
        if self._clock is not None:
            jump = (wall - self._clock[1]) - (now - self._clock[0])
            if abs(jump) > s.threshold:
                self._jumped = (now, jump)
        self._clock = (now, wall)
        wrong = wall < EARLIEST_WALL
        recent = self._jumped is not None and now - self._jumped[0] < CLOCK_HOLD_S
        size = inf if wrong else abs(self._jumped[1]) if recent and self._jumped else 0.0
        text = 'the wall clock has never been set' if wrong else \
            f'the wall clock jumped by {self._jumped[1]:+.1f} s' if self._jumped else ''
        self._look('clock', 'clock', size, now, now, text)

    def _look(self, check: str, subject: str, value: float, at: float, now: float, text: str,
              blind: bool = True) -> None:
        settings = self.settings[check]
        if not settings.enabled:
            return
        state = self._checks.setdefault((check, subject), Check(settings))
        was = state.active
        state.tick(value, at, now)
        if not blind:
            state.blind = False  # its silence is told by `communication`
        if state.active and (not was or not isnan(value)):
            self._texts[(check, subject)] = f'{subject}: {text}'

    def alarms(self) -> list[Alarm]:
        """One alarm per active monitor, and one for those without data."""
        out: list[Alarm] = []
        for name, settings in self.settings.items():
            texts = [self._texts.get((c, s), s) for (c, s), check in self._checks.items() if c == name and check.active]
            if texts:
                out.append(Alarm(f'monitor.{name}', settings.severity, '; '.join(texts)))
        silent = self._silent()
        blind = sorted(f'{c} of {s}' for (c, s), check in self._checks.items() if check.blind and s not in silent)
        if blind:
            out.append(Alarm('monitors.blind', Severity.WARNING, f'no fresh data for: {", ".join(blind)}'))
        return out

    def _silent(self) -> set[str]:
        """Subjects that are told to be silent already."""
        return {s for (c, s), check in self._checks.items() if c in ('inactive_bms', 'communication') and check.active}
