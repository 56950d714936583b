"""Parameters of the charge limiter."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from bess_core.params import param

from .curves import CHEMISTRIES, DEFAULTS, SOC_CHARGE, SOC_DISCHARGE, Curve

_FLAT = 'value, fraction, value, fraction ...; empty = the default of the chemistry'


@dataclass(frozen=True, kw_only=True)
class LimiterParams:
    """Limits in the order of the chain. Powers at the power terminals, currents at the DC terminals, magnitudes."""

    chemistry: str = param('lfp', '', 'which default curves apply', choices=list(CHEMISTRIES))
    rated_charge_power: float = param(
        doc='power that a fraction of 1 of a curve stands for', unit='W', low=1.0, high=1e12)
    rated_discharge_power: float = param(
        doc='power that a fraction of 1 of a curve stands for', unit='W', low=1.0, high=1e12)
    software_charge_power: float = param(inf, 'W', 'limit by grid code or connection', low=0.0)
    software_discharge_power: float = param(inf, 'W', 'limit by grid code or connection', low=0.0)
    soc_min: float = param(0.0, '', 'no discharging at or below, 0..1', low=0.0, high=1.0)
    soc_max: float = param(1.0, '', 'no charging at or above, 0..1', low=0.0, high=1.0)
    soc_hysteresis: float = param(0.01, '', 'so far the state of charge must come back, 0..1', low=0.0, high=0.5)
    soc_curves: bool = param(False, '', 'reduce power towards full and empty by state of charge')
    soc_charge_curve: list[float] = param([], '', f'over state of charge 0..1: {_FLAT}')
    soc_discharge_curve: list[float] = param([], '', f'over state of charge 0..1: {_FLAT}')
    cell_voltage: bool = param(True, '', 'limit by cell voltage; needs a battery that reports cells')
    charge_voltage_curve: list[float] = param([], 'V', f'over the highest cell: {_FLAT}')
    discharge_voltage_curve: list[float] = param([], 'V', f'over the lowest cell: {_FLAT}')
    temperature: bool = param(True, '', 'limit by temperature; needs a battery that reports it')
    charge_temperature_curve: list[float] = param([], 'degC', f'over coldest and hottest sensor: {_FLAT}')
    discharge_temperature_curve: list[float] = param([], 'degC', f'over coldest and hottest sensor: {_FLAT}')
    max_charge_current: float = param(inf, 'A', 'greatest current', low=0.0)
    max_discharge_current: float = param(inf, 'A', 'greatest current', low=0.0)
    recovery_hold: float = param(30.0, 's', 'a limit by curve that fell stays so long before it rises again',
                                 low=0.0, high=3600.0)
    recovery_slope: float = param(0.1, '1/s', 'then it rises by this share of the rated power per second',
                                  low=1e-4, high=1e6)
    restart_fraction: float = param(0.015, '', 'from zero it rises only when the curve allows this share of the '
                                               'rated power', low=0.0, high=1.0)
    ramp_rate: float = param(inf, 'W/s', 'fastest rise of the allowed power; falls never wait', low=0.1)
    ramp_floor: float = param(0.1, '', 'near a limit by curve the ramp slows down with it, to this share at least',
                              low=0.01, high=1.0)
    max_apparent_power: float = param(inf, 'VA', 'P and Q share it; P leaves room for the Q that is asked', low=0.0)
    plausible_cell: list[float] = param([1.0, 5.0], 'V', 'a cell voltage outside is a failed sensor')
    plausible_temperature: list[float] = param([-60.0, 120.0], 'degC', 'a temperature outside is a failed sensor')
    voltage_temperature_coefficient: float = param(
        0.0, 'V/K', 'of a cell: voltages are brought to 25 degC before they meet the curves; 0 = as measured '
        '(0.0001 for LFP)', low=0.0, high=0.005)
    data_max_age: float = param(5.0, 's', 'older readings allow no more power than flows, see data_invalid_after',
                                low=0.1, high=3600.0)
    data_invalid_after: float = param(15.0, 's', 'older readings allow nothing', low=0.1, high=3600.0)

    def __post_init__(self) -> None:
        if not self.soc_min < self.soc_max:
            raise ValueError(f'soc_min {self.soc_min:g} is not below soc_max {self.soc_max:g}')
        if self.data_invalid_after < self.data_max_age:
            raise ValueError('data_invalid_after is below data_max_age')
        for name in ('plausible_cell', 'plausible_temperature'):
            if len(getattr(self, name)) != 2 or not getattr(self, name)[0] < getattr(self, name)[1]:
                raise ValueError(f'{name} needs two rising values')
        for what in ('soc_charge', 'soc_discharge', 'charge_voltage', 'discharge_voltage', 'charge_temperature',
                     'discharge_temperature'):
            try:
                self.curve(what)
            except ValueError as error:
                raise ValueError(f'{what}_curve: {error}') from error

    def curve(self, what: str) -> Curve:
        """The curve in force, e.g. `charge_voltage`."""
        own = getattr(self, f'{what}_curve')
        default = {'soc_charge': SOC_CHARGE, 'soc_discharge': SOC_DISCHARGE}.get(what)
        curve = Curve.of(own or default or DEFAULTS[self.chemistry, what])
        assert curve is not None
        return curve
