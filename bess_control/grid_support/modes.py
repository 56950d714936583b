"""Grid support functions as modes: volt-var, watt-var, fixed power factor, volt-watt, frequency-watt.

At most one reactive function is meant to be active; where several are, the one of highest priority
decides. Limits of active power (volt-watt, frequency-watt) stand above everything that steers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import ClassVar

from bess_control.grid_support.curves import ActiveCurve, Curve, Droop, Reference, Response, power_factor_q
from bess_control.load_estimate import clamp
from bess_control.modes.base import BoundParams, ModeBase, View
from bess_control.proposals import Proposal
from bess_control.words import magnitude
from bess_core.params import param
from bess_core.values import Quality


@dataclass(frozen=True, kw_only=True)
class GridSupportParams(BoundParams):
    """Parameters of all grid support functions."""

    rated_power: float = param(unit='W', doc='rated active power: 1 pu', low=1.0, high=1e9)
    rated_apparent_power: float = param(
        0.0, 'VA', 'rated apparent power: 1 pu of reactive power; 0 = as rated_power', low=0.0, high=1e9)
    max_age_s: float = param(3.0, 's', 'age of the reading up to which it is used', low=0.1, high=60.0)
    hold_s: float = param(
        10.0, 's', 'how long the last answer is kept when the measurement is lost; then the function is neutral',
        low=0.0, high=3600.0)
    priority: int = param(230, '', 'Priority of the proposals.', low=0, high=255)

    @property
    def rated_va(self) -> float:
        """1 pu of apparent power in VA."""
        return self.rated_apparent_power or self.rated_power


class GridSupport(ModeBase):
    """What the functions share: the measured value, the response, the answer while it is lost."""

    needs_meter: ClassVar[bool] = True
    y_limit: ClassVar[float] = 1.0
    falling: ClassVar[bool] = False

    params: GridSupportParams

    def __init__(self, params: GridSupportParams, source: str = '', battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.response = Response(getattr(params, 'response_s', 0.0))
        text = getattr(params, 'curve', '')
        self.active = ActiveCurve(Curve.parse(text, self.y_limit, self.falling), self.y_limit,
                                  self.falling) if text else None
        self._seen_at = -inf
        self._last: Proposal | None = None

    def reset(self) -> None:
        """See `ModeBase`."""
        self.response.reset()
        self._last = None

    def adopt(self, x: Sequence[float], y: Sequence[float], response_s: float, reversion_s: float,
              now: float) -> tuple[bool, str]:
        """Another curve (`srv/AdoptCurve.srv`). Returns (accepted, message)."""
        if self.active is None:
            return False, 'this function has no curve'
        if not isnan(response_s) and not 0.0 <= response_s <= 600.0:
            return False, f'response time is {response_s} s, allowed 0 to 600 s'
        refused = self.active.adopt(x, y, 0.0 if isnan(reversion_s) else reversion_s, now)
        if refused:
            return False, refused
        self.response.time_s = response_s if not isnan(response_s) else getattr(self.params, 'response_s', 0.0)
        left = self.active.remaining(now)
        return True, 'adopted' + (f', reverts in {left:.0f} s' if left < inf else '')

    def measured(self, view: View) -> float:
        """The quantity that the function looks at; NaN unknown."""
        raise NotImplementedError

    def answer(self, value: float, view: View) -> Proposal:
        """What follows from it."""
        raise NotImplementedError

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        value = self.measured(view)
        if isfinite(value):
            self.problem, self._seen_at = '', view.now
            self._last = self.answer(value, view)
            return self._last
        self.problem = f'{self.what} is not measured'
        if self._last is not None and view.now - self._seen_at <= self.params.hold_s:
            p = self._last
            return self.propose(view, p.preferred_power, low=p.min_power, high=p.max_power,
                                reactive=p.preferred_reactive_power, reason=f'{self.problem}, last answer held')
        self.response.reset()
        self._last = None
        return self.propose(view, reactive=0.0 if self.reactive else nan, reason=f'{self.problem}: neutral')

    what: ClassVar[str] = 'the quantity'
    reactive: ClassVar[bool] = False

    def _curve(self, now: float) -> Curve:
        assert self.active is not None
        return self.active.curve(now)

    def _meter_ok(self, view: View) -> bool:
        m = view.meter
        return m is not None and m.quality is Quality.OK and -1.0 <= view.now - m.time <= self.params.max_age_s

    def _voltage(self, view: View, nominal: float, highest: bool = False) -> float:
        """Voltage in pu: mean of the measured phases, or the highest."""
        if not self._meter_ok(view) or view.meter is None:
            return nan
        known = [v for v in view.meter.voltage if isfinite(v) and v > 0.0]
        if not known:
            return nan
        return (max(known) if highest else sum(known) / len(known)) / nominal

    def _power(self, view: View) -> float:
        """Active power of the battery in pu of rated, + = injection."""
        power = view.granted if view.granted is not None and isfinite(view.granted) else view.battery.power
        return -power / self.params.rated_power if isfinite(power) else nan

    def _say_q(self, view: View, q: float, reason: str) -> Proposal:
        """`q` in pu, + = injection: the passive sign is the other one."""
        self.values['reactive_power_var'] = -q * self.params.rated_va
        kind = 'injecting' if q > 0.0 else 'absorbing'
        text = f'{kind} {abs(q) * self.params.rated_va:.0f} var' if q else '0 var'
        return self.propose(view, reactive=-q * self.params.rated_va, reason=f'{reason}: {text}')


@dataclass(frozen=True, kw_only=True)
class VoltVarParams(GridSupportParams):
    """Parameters of volt-var (SunSpec 705)."""

    curve: str = param(
        '0.92:0.44 0.98:0 1.02:0 1.08:-0.44', 'pu', 'voltage (pu of the reference) : reactive power (pu of rated VA, '
        '+ = injection); the default is category B of IEEE 1547-2018')
    response_s: float = param(5.0, 's', 'open-loop response time, to 90 % of a step', low=0.0, high=90.0)
    nominal_voltage: float = param(230.0, 'V', 'phase voltage that is 1 pu', low=50.0, high=100000.0)
    reference: float = param(1.0, 'pu', 'VRef', low=0.95, high=1.05)
    auto_reference_s: float = param(
        0.0, 's', 'time constant with which VRef follows the voltage; 0 = VRef stays', low=0.0, high=5000.0)

    def __post_init__(self) -> None:
        Curve.parse(self.curve, falling=True)


class VoltVar(GridSupport):
    """Reactive power by voltage: low voltage injects, high voltage absorbs."""

    Params: ClassVar[type] = VoltVarParams
    falling: ClassVar[bool] = True
    what: ClassVar[str] = 'voltage'
    reactive: ClassVar[bool] = True

    params: VoltVarParams

    def __init__(self, params: VoltVarParams, source: str = 'volt_var', battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._reference = Reference(params.reference, params.auto_reference_s, 0.95, 1.05)

    def measured(self, view: View) -> float:
        """Voltage in pu."""
        return self._voltage(view, self.params.nominal_voltage)

    def answer(self, value: float, view: View) -> Proposal:
        """Reactive power by the curve, whose voltages shift with the reference."""
        reference = self._reference.step(value, view.now)
        q = self.response.step(self._curve(view.now).at(value + 1.0 - reference), view.now)
        self.values = {'voltage_pu': value, 'reference_pu': reference}
        return self._say_q(view, q, f'voltage {value:.3f} pu')


@dataclass(frozen=True, kw_only=True)
class WattVarParams(GridSupportParams):
    """Parameters of watt-var (SunSpec 712)."""

    curve: str = param(
        '-1:0.44 -0.5:0 -0.2:0 0.2:0 0.5:0 1:-0.44', 'pu', 'active power (pu of rated, + = injection) : reactive power '
        '(pu of rated VA, + = injection)')
    response_s: float = param(10.0, 's', 'open-loop response time, to 90 % of a step', low=0.0, high=90.0)

    def __post_init__(self) -> None:
        Curve.parse(self.curve)


class WattVar(GridSupport):
    """Reactive power by active power."""

    Params: ClassVar[type] = WattVarParams
    needs_meter: ClassVar[bool] = False
    what: ClassVar[str] = 'power of the battery'
    reactive: ClassVar[bool] = True

    def measured(self, view: View) -> float:
        """Active power in pu, + = injection."""
        return self._power(view)

    def answer(self, value: float, view: View) -> Proposal:
        """Reactive power by the curve."""
        q = self.response.step(self._curve(view.now).at(value), view.now)
        self.values = {'power_pu': value}
        return self._say_q(view, q, f'active power {value:+.2f} pu')


@dataclass(frozen=True, kw_only=True)
class FixedPowerFactorParams(GridSupportParams):
    """Parameters of fixed power factor (SunSpec 704)."""

    power_factor: float = param(1.0, '', 'power factor', low=0.1, high=1.0)
    excitation: str = param('absorbing', '', 'whether reactive power is injected (over-excited) or absorbed '
                                             '(under-excited)', choices=['injecting', 'absorbing'])
    response_s: float = param(10.0, 's', 'open-loop response time, to 90 % of a step', low=0.0, high=90.0)


class FixedPowerFactor(GridSupport):
    """Reactive power in a fixed proportion to active power, charging and discharging alike."""

    Params: ClassVar[type] = FixedPowerFactorParams
    needs_meter: ClassVar[bool] = False
    what: ClassVar[str] = 'power of the battery'
    reactive: ClassVar[bool] = True

    params: FixedPowerFactorParams

    def measured(self, view: View) -> float:
        """Active power in pu, + = injection."""
        return self._power(view)

    def answer(self, value: float, view: View) -> Proposal:
        """Q = s P sqrt(1 - PF^2) / PF."""
        p = self.params
        q = power_factor_q(value, p.power_factor) * p.rated_power / p.rated_va
        q = self.response.step(q if p.excitation == 'injecting' else -q, view.now)
        self.values = {'power_pu': value}
        return self._say_q(view, clamp(q, -1.0, 1.0), f'power factor {p.power_factor:.2f}')


@dataclass(frozen=True, kw_only=True)
class VoltWattParams(GridSupportParams):
    """Parameters of volt-watt (SunSpec 706)."""

    curve: str = param(
        '1.06:1 1.10:0', 'pu', 'voltage (pu) : upper limit of injection (pu of rated); below zero it makes the battery '
        'charge')
    response_s: float = param(10.0, 's', 'open-loop response time, to 90 % of a step', low=0.0, high=90.0)
    nominal_voltage: float = param(230.0, 'V', 'phase voltage that is 1 pu', low=50.0, high=100000.0)
    priority: int = param(240, '', 'Priority of the proposals.', low=0, high=255)

    def __post_init__(self) -> None:
        Curve.parse(self.curve, falling=True)


class VoltWatt(GridSupport):
    """Limits injection while the voltage of the highest phase is high."""

    Params: ClassVar[type] = VoltWattParams
    falling: ClassVar[bool] = True
    what: ClassVar[str] = 'voltage'

    params: VoltWattParams

    def measured(self, view: View) -> float:
        """Highest phase voltage in pu."""
        return self._voltage(view, self.params.nominal_voltage, highest=True)

    def answer(self, value: float, view: View) -> Proposal:
        """A bound."""
        limit = self.response.step(self._curve(view.now).at(value), view.now)
        self.values = {'voltage_pu': value, 'limit_pu': limit}
        if limit >= 1.0:
            return self.propose(view, reason=f'voltage {value:.3f} pu: no limit')
        return self.propose(view, low=-limit * self.params.rated_power,
                            reason=f"voltage {value:.3f} pu: discharge at most "
                                   f"{magnitude(max(limit, 0.0) * self.params.rated_power)}")


@dataclass(frozen=True, kw_only=True)
class FrequencyWattParams(GridSupportParams):
    """Parameters of frequency-watt (SunSpec 711, IEEE 1547-2018 table 23)."""

    nominal_frequency: float = param(50.0, 'Hz', 'nominal frequency', low=45.0, high=65.0)
    db_over: float = param(0.036, 'Hz', 'dead band above', low=0.0, high=5.0)
    db_under: float = param(0.036, 'Hz', 'dead band below', low=0.0, high=5.0)
    k_over: float = param(0.05, '', 'pu of frequency per pu of power, above', low=0.01, high=0.5)
    k_under: float = param(0.05, '', 'pu of frequency per pu of power, below', low=0.01, high=0.5)
    response_s: float = param(5.0, 's', 'open-loop response time, to 90 % of a step', low=0.0, high=90.0)
    min_power: float = param(-1.0, 'pu', 'lowest injection (below 0: charging) that over-frequency leads to',
                             low=-1.0, high=1.0)
    priority: int = param(235, '', 'Priority of the proposals.', low=0, high=255)


class FrequencyWatt(GridSupport):
    """Less injection (more charging) at over-frequency, more injection at under-frequency.

    The power before the event is kept as its base until the frequency is back in the dead band. The answer
    is a bound in the helping direction: others may help more.
    """

    Params: ClassVar[type] = FrequencyWattParams
    what: ClassVar[str] = 'frequency'

    params: FrequencyWattParams

    def __init__(self, params: FrequencyWattParams, source: str = 'frequency_watt', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._droop = Droop(params.nominal_frequency, params.db_over, params.db_under, params.k_over, params.k_under)
        self._before: float | None = None  # pu, + = injection

    def reset(self) -> None:
        """See `ModeBase`."""
        super().reset()
        self._before = None

    def measured(self, view: View) -> float:
        """Frequency in Hz."""
        if not self._meter_ok(view) or view.meter is None or not 40.0 <= view.meter.frequency <= 70.0:
            return nan
        return view.meter.frequency

    def answer(self, value: float, view: View) -> Proposal:
        """A bound around the power before the event."""
        p, wanted = self.params, self._droop.deviation(value)
        if wanted != 0.0 and self._before is None:
            power = self._power(view)
            self._before = 0.0 if isnan(power) else clamp(power, -1.0, 1.0)
            self.response.reset(0.0)
            self.response.step(0.0, view.now)
        change = self.response.step(wanted, view.now)
        self.values = {'frequency_hz': value, 'change_pu': change}
        if self._before is None or (wanted == 0.0 and abs(change) < 0.005):
            self._before = None
            self.state = 'normal'
            return self.propose(view, reason=f'{value:.3f} Hz: no limit')
        goal = clamp(self._before + change, p.min_power, 1.0)
        bound = -goal * p.rated_power
        if wanted < 0.0 or (wanted == 0.0 and change < 0.0):
            self.state = 'over'
            return self.propose(view, low=bound, reason=f'{value:.3f} Hz is high: injection at most {goal:+.2f} pu')
        self.state = 'under'
        return self.propose(view, high=bound, reason=f'{value:.3f} Hz is low: injection at least {goal:+.2f} pu')
