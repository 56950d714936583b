"""Grid support functions as modes: volt-var, watt-var, fixed power factor, volt-watt, frequency-watt.

At most one reactive function is meant to be active; where several are, the one of highest priority
decides. Limits of active power (volt-watt, frequency-watt) stand above everything that steers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import ClassVar

from bess_control.grid_support.base import GridSupport, GridSupportParams
from bess_control.grid_support.curves import (
    MOST_CHANGE,
    Curve,
    Droop,
    Reference,
    power_factor_q,
)
from bess_control.load_estimate import clamp
from bess_control.modes.base import View
from bess_control.proposals import Proposal
from bess_control.words import magnitude
from bess_core.params import param


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
    y_limit: ClassVar[float] = MOST_CHANGE
    falling: ClassVar[bool] = True
    what: ClassVar[str] = 'frequency'

    params: FrequencyWattParams

    def __init__(self, params: FrequencyWattParams, source: str = 'frequency_watt', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._before: float | None = None  # pu, + = injection

    def configured(self) -> Curve:
        """Change of power by deviation from nominal."""
        p = self.params
        return Droop(p.nominal_frequency, p.db_over, p.db_under, p.k_over, p.k_under).curve()

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
        p = self.params
        wanted = self._curve(view.now).at(value - p.nominal_frequency)
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
