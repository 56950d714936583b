"""Hard bounds of the power manager: parameters, battery, configured limits, grid connection. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf, isfinite, isnan

from bess_control.load_estimate import plausible
from bess_control.words import grid_watts, magnitude, watts
from bess_core.params import param
from bess_core.values import BatteryReading, Contactor, MeterReading, Mode, Quality

NO_LIMIT = 1e12  # W, parameter value that means "no limit" (site files can not say infinity)


@dataclass(frozen=True)
class PowerManagerParams:
    """Parameters of the power manager. A limit of 1e12 (the default) is none."""

    battery: str = param('', '', 'name of the battery that is decided on')
    max_charge_power: float = param(
        NO_LIMIT, 'W', 'configured limit of charging', low=0.0, high=NO_LIMIT)
    max_discharge_power: float = param(
        NO_LIMIT, 'W', 'configured limit of discharging (magnitude)', low=0.0, high=NO_LIMIT)
    max_apparent_power: float = param(
        NO_LIMIT, 'VA', 'apparent power of the converter: P and Q share it', low=0.0, high=NO_LIMIT)
    reactive_first: bool = param(
        False, '', 'on the apparent-power circle reactive power comes first (else active power)')
    import_limit: float = param(
        NO_LIMIT, 'W', 'import at the grid connection that charging must not exceed',
        low=0.0, high=NO_LIMIT)
    export_limit: float = param(
        NO_LIMIT, 'W', 'export (magnitude) that discharging must not exceed',
        low=0.0, high=NO_LIMIT)
    grid_support: bool = param(
        False, '', 'the grid limits may also force the battery to (dis)charge when the rest of the '
        'site alone exceeds them; else they only keep the battery from making it worse')
    blind_power: float = param(
        0.0, 'W', 'power (magnitude) allowed while a grid limit is set but the meter is lost',
        low=0.0, high=NO_LIMIT)
    max_meter_age_s: float = param(
        3.0, 's', 'age of the meter reading from which it counts as lost', low=0.1, high=60.0)
    grid_delay_s: float = param(
        1.2, 's', 'longest delay between meter and battery readings', low=0.0, high=30.0)
    grid_settle_s: float = param(
        4.0, 's', 'time in which meter and battery answered a step', low=0.1, high=120.0)
    max_battery_age_s: float = param(
        3.0, 's', 'age of the battery reading from which power may not grow', low=0.1, high=3600.0)
    battery_invalid_after_s: float = param(
        10.0, 's', 'age of the battery reading from which power is zero', low=0.1, high=3600.0)
    ramp_rate: float = param(
        5000.0, 'W/s', 'fastest change of power; limits and stop do not wait for it',
        low=0.1, high=NO_LIMIT)
    tick_s: float = param(0.1, 's', 'nominal control tick', low=0.001, high=60.0)
    max_step_s: float = param(
        1.0, 's', 'longest pause between ticks that the ramp counts', low=0.001, high=60.0)

    def __post_init__(self) -> None:
        for name in ('max_charge_power', 'max_discharge_power', 'max_apparent_power',
                     'import_limit', 'export_limit', 'ramp_rate', 'blind_power'):
            if not getattr(self, name) >= 0.0:  # NaN too
                raise ValueError(f'{name} is {getattr(self, name)}, must be 0 or more')
        if self.battery_invalid_after_s < self.max_battery_age_s:
            raise ValueError('battery_invalid_after_s is below max_battery_age_s')

    @property
    def has_grid_limit(self) -> bool:
        """True when import or export is limited."""
        return self.import_limit < NO_LIMIT or self.export_limit < NO_LIMIT


#: Why a bound is what it is; made only when somebody is held by it.
Reason = str | Callable[[], str]


def _text(reason: Reason) -> str:
    return reason if isinstance(reason, str) else reason()


@dataclass(slots=True)
class Bound:
    """A range in W that one limit allows, after narrowing: what is left. + = charging."""

    name: str
    low: float
    high: float
    reason_high: Reason = ''  # why not more (charging)
    reason_low: Reason = ''  # why not less (discharging)
    conflict: bool = False  # it could not be met

    def reason_for(self, value: float) -> str:
        """The reason of the side that `value` hits; the conflict when it hits neither."""
        if value > self.high:
            return _text(self.reason_high)
        return _text(self.reason_low or self.reason_high)


@dataclass(slots=True)
class Bounds:
    """Bounds narrowed one after another; never empty."""

    low: float = -inf
    high: float = inf
    passed: list[Bound] = field(default_factory=list)

    def narrow(self, name: str, low: float, high: float, reason: str = '') -> None:
        """Narrow to [low, high]; where that leaves nothing, to the present end nearest to it."""
        self.add(Bound(name, low, high, reason, reason))

    def add(self, bound: Bound) -> None:
        """As `narrow`, with a reason for each side. NaN counts as no bound on that side."""
        low = -inf if isnan(bound.low) else bound.low
        high = inf if isnan(bound.high) else bound.high
        if low > self.high or high < self.low:
            end, wish = (self.high, low) if low > self.high else (self.low, high)
            why = _text(bound.reason_high or bound.reason_low)
            text = (f'needs {watts(wish)}, but only {watts(end)} is possible'
                    + (f' ({why})' if why else ''))
            self.low = self.high = end
            self.passed.append(Bound(bound.name, end, end, text, text, conflict=True))
            return
        self.low, self.high = max(self.low, low), min(self.high, high)
        bound.low, bound.high = self.low, self.high
        self.passed.append(bound)


def battery_bounds(p: PowerManagerParams, battery: BatteryReading, now: float,
                   granted: float) -> Iterator[Bound]:
    """Bounds of the battery itself, then the configured ones. All contain zero.

    A limit that the battery does not tell is zero: what is not known is not allowed.
    """
    age = now - battery.time
    if battery.quality is Quality.INVALID or not age <= p.battery_invalid_after_s:
        why = 'never read' if not isfinite(battery.time) else f'no valid reading for {age:.1f} s'
        yield Bound('battery', 0.0, 0.0, why, why)
    elif battery.quality is Quality.STALE or age > p.max_battery_age_s:
        why = f'reading is {max(age, 0.0):.1f} s old, power may not grow'
        yield Bound('battery', min(granted, 0.0), max(granted, 0.0), why, why)
    elif battery.mode in (Mode.OFF, Mode.FAULT):
        why = f'battery is {"off" if battery.mode is Mode.OFF else "in fault"}'
        why = _because(why, battery.limit_reasons)
        yield Bound('battery', 0.0, 0.0, why, why)
    if battery.contactor is Contactor.OPEN:
        why = _because('contactor is open', battery.limit_reasons)
        yield Bound('contactor', 0.0, 0.0, why, why)
    elif battery.contactor is Contactor.CHARGE_ONLY:
        why = _because('discharging is blocked', battery.limit_reasons)
        yield Bound('contactor', 0.0, inf, '', why)
    elif battery.contactor is Contactor.DISCHARGE_ONLY:
        why = _because('charging is blocked', battery.limit_reasons)
        yield Bound('contactor', -inf, 0.0, why, '')
    yield Bound(
        'battery limits',
        -_known(battery.max_discharge_power), _known(battery.max_charge_power),
        lambda: _limit_reason(battery.max_charge_power, 'charge', battery.limit_reasons),
        lambda: _limit_reason(battery.max_discharge_power, 'discharge', battery.limit_reasons))
    if p.max_charge_power < NO_LIMIT or p.max_discharge_power < NO_LIMIT:
        yield Bound('configured limit', -p.max_discharge_power, p.max_charge_power,
                    f'at most {magnitude(p.max_charge_power)}',
                    f'at most discharge {magnitude(p.max_discharge_power)}')


def grid_bounds(p: PowerManagerParams, rest: float, meter: MeterReading | None,
                now: float) -> Iterator[Bound]:
    """Bounds of the grid connection. `rest` (W): what all but the battery draws; NaN unknown."""
    age = inf if meter is None else now - meter.time
    usable = (meter is not None and meter.quality is Quality.OK and age <= p.max_meter_age_s
              and plausible(meter.active_power))
    if not usable or isnan(rest):
        known = meter is not None and isfinite(meter.time)
        why = f'meter lost for {max(age, 0.0):.1f} s' if known else 'meter has not been read'
        why = 'battery power is unknown' if usable else why
        yield Bound('grid connection', -p.blind_power, p.blind_power, why, why)
        return
    low, high = -p.export_limit - rest, p.import_limit - rest
    if not p.grid_support:
        low, high = min(low, 0.0), max(high, 0.0)
    yield Bound('grid connection', low, high,
                lambda: f'import limit {magnitude(p.import_limit)}, the rest of the site is at {grid_watts(rest)}',
                lambda: f'export limit {magnitude(p.export_limit)}, the rest of the site is at {grid_watts(rest)}')


def _known(limit: float) -> float:
    """A limit that may be used: unknown or negative is zero."""
    return 0.0 if isnan(limit) else max(0.0, limit)


def _limit_reason(limit: float, direction: str, reasons: list[str]) -> str:
    if isnan(limit):
        return f'an unknown {direction} limit of the battery'
    return _because('', _about(direction, reasons)) or f'the {direction} limit of the battery'


def _about(direction: str, reasons: list[str]) -> list[str]:
    """Reasons that do not speak of the other direction only; all of them when none is left."""
    def fits(text: str) -> bool:
        low = text.lower()
        discharge = 'discharg' in low
        charge = 'charg' in low.replace('discharg', '')
        return (not discharge or charge) if direction == 'charge' else (not charge or discharge)

    return [r for r in reasons if fits(r)] or list(reasons)


def _because(head: str, reasons: list[str]) -> str:
    """`head` and the reasons; "bms: x" reads "BMS: x"."""
    said = '; '.join(f'BMS:{r[4:]}' if r[:4].lower() == 'bms:' else r for r in reasons)
    return f'{head} ({said})' if head and said else head or said
