"""Limit curves: fraction of the greatest current over a measured value, linear between points. Pure.

Defaults per chemistry. `lfp`: those that users of the DSB BMS monitor keep (voltage and temperature; SoC off by
default there). `nmc`: the BMW set of OpenEMS' battery protection. Cell voltages in V, temperatures in degC, SoC 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points with rising x; constant beyond both ends. Two points of the same x are a jump, upper side wins."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError('a curve needs pairs of value and fraction')
        if any(not isfinite(v) for v in (*self.x, *self.y)):
            raise ValueError('a curve holds finite numbers only')
        if any(b < a for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError('values of a curve must rise')
        if any(not 0.0 <= f <= 1.0 for f in self.y):
            raise ValueError('fractions of a curve are 0 to 1')
        object.__setattr__(self, '_x', np.array(self.x))
        object.__setattr__(self, '_y', np.array(self.y))

    @classmethod
    def of(cls, flat: Sequence[float]) -> Curve | None:
        """Out of `[value, fraction, value, fraction ...]`; None when empty = no limit."""
        if not flat:
            return None
        if len(flat) % 2:
            raise ValueError('a curve is a list of value, fraction, value, fraction ...')
        return cls(tuple(flat[::2]), tuple(flat[1::2]))

    def __call__(self, value: Array) -> Array:
        """Fraction for each value; 0 where the value is NaN: what is not known is not allowed."""
        out = np.interp(value, self._x, self._y)  # type: ignore[attr-defined]
        return np.where(np.isnan(value), 0.0, out)


#: (chemistry, what) -> points
DEFAULTS: dict[tuple[str, str], tuple[float, ...]] = {
    ('lfp', 'charge_voltage'): (3.375, 1.0, 3.400, 0.25, 3.425, 0.05, 3.450, 0.005, 3.500, 0.0),
    ('lfp', 'discharge_voltage'): (2.800, 0.0, 2.900, 0.005, 3.000, 0.05, 3.100, 0.25, 3.190, 1.0),
    ('lfp', 'charge_temperature'): (0.0, 0.0, 2.0, 0.25, 5.0, 0.5, 10.0, 1.0, 40.0, 1.0, 45.0, 0.5, 50.0, 0.25,
                                    55.0, 0.0),
    ('lfp', 'discharge_temperature'): (-10.0, 0.0, 0.0, 0.25, 5.0, 0.5, 10.0, 1.0, 40.0, 1.0, 45.0, 0.5, 50.0, 0.25,
                                       55.0, 0.0),
    ('nmc', 'charge_voltage'): (4.160, 1.0, 4.164, 0.2, 4.174, 0.05, 4.180, 0.0),
    ('nmc', 'discharge_voltage'): (3.304, 0.0, 3.308, 0.01, 3.314, 0.1, 3.340, 1.0),
    # The BMW set allows 1 % of charging down to -20 degC; here, as for lfp, none below freezing.
    ('nmc', 'charge_temperature'): (0.0, 0.0, 25.0, 1.0, 35.0, 1.0, 44.0, 0.01, 45.0, 0.0),
    ('nmc', 'discharge_temperature'): (-36.0, 0.01, 5.0, 1.0, 35.0, 1.0, 44.0, 0.01, 45.0, 0.0),
}
#: Curves over SoC for whoever switches them on: `soc_curves: true`.
SOC_CHARGE = (0.85, 1.0, 0.90, 0.5, 0.95, 0.2, 0.98, 0.1, 1.0, 0.1)
SOC_DISCHARGE = (0.05, 0.1, 0.10, 0.2, 0.15, 0.5, 0.20, 1.0)
CHEMISTRIES = ('lfp', 'nmc')
