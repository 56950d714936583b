"""The high and low limit of a state of charge, with hysteresis and greatest age of the value. Pure."""

from __future__ import annotations

from math import inf, isnan, nan

from bess_control.storage_params import StorageParams
from bess_core.values import BatteryReading, Quality


class SocLimits:
    """`soc` in percent (NaN = never read), `time` when it was measured (s)."""

    def __init__(self, params: StorageParams) -> None:
        self._params = params
        self.soc, self.time = nan, -inf
        self.at_high = self.at_low = False  # reached, and not yet back by the hysteresis

    def see(self, battery: BatteryReading) -> None:
        """Take a newer value. One that cannot be is none: the last one grows old."""
        p = self._params
        if battery.quality is not Quality.INVALID and 0.0 <= battery.soc <= 1.0 and battery.time > self.time:
            self.soc, self.time = 100.0 * battery.soc, battery.time
        if isnan(self.soc):
            return
        if self.soc >= p.soc_high_limit:
            self.at_high = True
        elif self.soc < p.soc_high_limit - p.soc_hysteresis:
            self.at_high = False
        if self.soc <= p.soc_low_limit:
            self.at_low = True
        elif self.soc > p.soc_low_limit + p.soc_hysteresis:
            self.at_low = False

    def old(self, now: float) -> bool:
        """No value that is young enough."""
        return not now - self.time <= self._params.soc_monitor_max_time

    @property
    def low(self) -> bool:
        """At or below the low limit now."""
        return self.soc <= self._params.soc_low_limit

    @property
    def recovered(self) -> bool:
        """At or above the level at which a recovery ends."""
        return self.soc >= self._params.soc_recovered_level

    @property
    def low_text(self) -> str:
        """Why it is low, in words."""
        return f'state of charge {self.soc:.1f} % is at or below the low limit {self._params.soc_low_limit:g} %'

    def forbids(self, charge: bool, now: float) -> str:
        """Why this direction is refused; '' = it is not."""
        p = self._params
        if self.old(now):
            return 'the state of charge is unknown'
        if charge and self.at_high:
            return (f'charge is refused: state of charge {self.soc:.1f} %, high limit {p.soc_high_limit:g} %, '
                    f'allowed again below {p.soc_high_limit - p.soc_hysteresis:g} %')
        if not charge and self.at_low:
            return (f'discharge is refused: state of charge {self.soc:.1f} %, low limit {p.soc_low_limit:g} %, '
                    f'allowed again above {p.soc_low_limit + p.soc_hysteresis:g} %')
        return ''
