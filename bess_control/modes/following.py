"""Modes that follow a measured power: solar smoothing and load matching."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isnan
from typing import ClassVar

from bess_control.grid_loop import meter_problem
from bess_control.load_estimate import clamp
from bess_control.modes.base import ModeBase, ModeBaseParams, View
from bess_control.modes.connection import recovery
from bess_control.proposals import Proposal
from bess_control.words import magnitude
from bess_core.params import param
from bess_core.values import MeterReading


@dataclass(frozen=True, kw_only=True)
class SolarSmoothingParams(ModeBaseParams):
    """Parameters of solar smoothing."""

    pv_meter: str = param(doc='meter in the line of the PV plant: generation is negative', ref='meter')
    time_constant_s: float = param(
        600.0, 's', 'time constant with which generation is smoothed', low=1.0, high=86400.0)
    dead_band: float = param(0.0, 'W', 'fluctuation up to which nothing is done', low=0.0, high=1e9)
    max_power: float = param(1e12, 'W', 'most power for smoothing', low=0.0, high=1e12)
    target_soc: float = param(0.5, '', 'state of charge (0..1) to which the battery drifts back', low=0.0, high=1.0)
    recovery_share: float = param(
        0.1, '1/h', 'power of that as a share of the energy when full, per hour, at a deviation of 0.5; 0 = none',
        low=0.0, high=5.0)
    max_meter_age_s: float = param(
        5.0, 's', 'age of the reading from which smoothing ends', low=0.1, high=600.0)


class SolarSmoothing(ModeBase):
    """Generation and battery together follow the generation's own first-order mean: clouds stay at home."""

    Params: ClassVar[type] = SolarSmoothingParams
    meters: ClassVar[tuple[str, ...]] = ('pv_meter',)

    params: SolarSmoothingParams

    def __init__(self, params: SolarSmoothingParams, source: str = 'solar_smoothing', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self._mean: float | None = None  # W, generation, negative
        self._at = 0.0

    def reset(self) -> None:
        """See `ModeBase`."""
        self._mean = None

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`. Without a reading nothing is smoothed, and the mean starts anew."""
        p = self.params
        pv = view.meters.get('pv_meter')
        self.problem = meter_problem(pv, p.pv_meter, view.now, p.max_meter_age_s)
        if self.problem or pv is None:
            self._mean = None
            return self.propose(view, 0.0, reason=self.problem)
        if self._mean is None:  # begins with what the battery does already
            self._mean = pv.active_power + (view.granted or 0.0)
        else:
            self._mean += (1.0 - exp(-max(view.now - self._at, 0.0) / p.time_constant_s)) * (
                pv.active_power - self._mean)
        self._at = view.now
        gap = self._mean - pv.active_power
        power = 0.0 if abs(gap) <= p.dead_band else clamp(gap, -p.max_power, p.max_power)
        power += recovery(view, p.target_soc, p.recovery_share)
        self.values = {'pv_w': pv.active_power, 'mean_w': self._mean}
        return self.propose(view, power, reason=f'generation {magnitude(pv.active_power)}, mean '
                                                f'{magnitude(self._mean)}')


@dataclass(frozen=True, kw_only=True)
class LoadMatchingParams(ModeBaseParams):
    """Parameters of load matching."""

    load_meter: str = param(doc='meter in the line of the load (or generation) that is followed', ref='meter')
    follow: str = param('load', '', 'load: discharge as the load draws; generation: charge as the plant generates',
                        choices=['load', 'generation'])
    threshold: float = param(0.0, 'W', 'power (magnitude) from which it follows', low=0.0, high=1e9)
    ratio: float = param(1.0, '', 'share of what exceeds the threshold that the battery takes over', low=0.0, high=2.0)
    max_power: float = param(1e12, 'W', 'most power for this', low=0.0, high=1e12)
    max_meter_age_s: float = param(5.0, 's', 'age of the reading from which it ends', low=0.1, high=600.0)


class LoadMatching(ModeBase):
    """The battery gives what one load draws above a threshold (or takes what one plant generates).

    Unlike self-consumption it does not look at the grid connection: what other loads do is not its matter.
    """

    Params: ClassVar[type] = LoadMatchingParams
    meters: ClassVar[tuple[str, ...]] = ('load_meter',)

    params: LoadMatchingParams

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        p = self.params
        meter: MeterReading | None = view.meters.get('load_meter')
        self.problem = meter_problem(meter, p.load_meter, view.now, p.max_meter_age_s)
        if self.problem or meter is None or isnan(meter.active_power):
            return self.propose(view, 0.0, reason=self.problem)
        sign = 1.0 if p.follow == 'load' else -1.0
        flow = max(sign * meter.active_power, 0.0)  # W, magnitude of what is followed
        taken = min(p.ratio * max(flow - p.threshold, 0.0), p.max_power)
        self.values = {f'{p.follow}_w': flow, 'matched_w': taken}
        return self.propose(view, -sign * taken, reason=f'{p.follow} at {magnitude(flow)}, {p.ratio:.0%} above '
                                                        f'{magnitude(p.threshold)}')
