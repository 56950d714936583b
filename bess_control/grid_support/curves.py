"""Piecewise linear curves, response times, adoption and reversion, droop: the parts of IEEE 1547-2018. Pure.

Inside this room P and Q are in the standard's generator convention (+ = injection, inductive Q
negative) and in per unit of the ratings, because curves are published and set that way. The modes turn
them into the passive signs of everything else at their edge.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, isnan, sqrt

MOST_POINTS = 20
MOST_CHANGE = 2.0  # pu of rated power, from full charging to full discharging


@dataclass(frozen=True)
class Curve:
    """(x, y) points with ascending x; beyond the outermost points their values hold."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float], y_limit: float = 1.0, falling: bool = False) -> Curve:
        """A checked curve. Raises ValueError: too few or many points, x not ascending, y beyond its limit."""
        if len(x) != len(y):
            raise ValueError(f'{len(x)} x and {len(y)} y values: one of each is needed per point')
        if not 2 <= len(x) <= MOST_POINTS:
            raise ValueError(f'{len(x)} points; allowed are 2 to {MOST_POINTS}')
        if not all(isfinite(v) for v in (*x, *y)):
            raise ValueError('a point is not finite')
        if any(b <= a for a, b in pairwise(x)):
            raise ValueError('x is not ascending')
        if any(abs(v) > y_limit for v in y):
            raise ValueError(f'y is beyond +-{y_limit:g}')
        if falling and any(b > a for a, b in pairwise(y)):
            raise ValueError('y rises: that would push the grid further from its reference')
        return cls(tuple(map(float, x)), tuple(map(float, y)))

    @classmethod
    def parse(cls, text: str, y_limit: float = 1.0, falling: bool = False) -> Curve:
        """From "0.92:0.44 0.98:0 1.02:0 1.08:-0.44". Raises ValueError."""
        try:
            pairs = [tuple(map(float, point.split(':', 1))) for point in text.split()]
            x, y = [p[0] for p in pairs], [p[1] for p in pairs]
        except (ValueError, IndexError):
            raise ValueError(f'{text!r} is no curve; write points as "x:y x:y ..."') from None
        return cls.of(x, y, y_limit, falling)

    def at(self, x: float) -> float:
        """y at x; NaN for NaN."""
        if isnan(x):
            return x
        i = bisect_right(self.x, x)
        if i == 0:
            return self.y[0]
        if i == len(self.x):
            return self.y[-1]
        x0, x1, y0, y1 = self.x[i - 1], self.x[i], self.y[i - 1], self.y[i]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class Response:
    """Open-loop response: 90 % of a step after `time_s`, first order (1547-2018: y0 + (y - y0)(1 - 10^(-t/Tr)))."""

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s
        self.value: float | None = None
        self._at = 0.0

    def reset(self, value: float | None = None) -> None:
        """Begin at `value`, or with the next input."""
        self.value = value

    def step(self, target: float, now: float) -> float:
        """Output at `now` (s) while the target is this."""
        dt, self._at = max(now - self._at, 0.0), now
        if self.value is None or self.time_s <= 0.0:
            self.value = target
        else:
            self.value += (target - self.value) * (1.0 - 10.0 ** (-dt / self.time_s))
        return self.value


class ActiveCurve:
    """The curve in force: the configured one, or one that was adopted and perhaps reverts by itself."""

    def __init__(self, configured: Curve, y_limit: float, falling: bool) -> None:
        self.configured, self._limit, self._falling = configured, y_limit, falling
        self.adopted: Curve | None = None
        self._until = inf

    def adopt(self, x: Sequence[float], y: Sequence[float], reversion_s: float, now: float) -> str:
        """Check and take a curve (x empty = the configured one); "" or why the active one stays."""
        if not x and not y:
            self.adopted, self._until = None, inf
            return ''
        if reversion_s == inf or reversion_s < 0.0:
            return f'reversion time is {reversion_s} s'
        try:
            curve = Curve.of(x, y, self._limit, self._falling)
        except ValueError as error:
            return str(error)
        self.adopted, self._until = curve, now + reversion_s if reversion_s > 0.0 else inf
        return ''

    def revert(self, now: float) -> bool:
        """Back to the configured curve when its time has come; whether that happened now."""
        due = self.adopted is not None and now >= self._until
        if due:
            self.adopted, self._until = None, inf
        return due

    def curve(self, now: float) -> Curve:
        """The curve in force."""
        self.revert(now)
        return self.adopted or self.configured

    def remaining(self, now: float) -> float:
        """s until reversion; inf without."""
        return max(self._until - now, 0.0)


class Reference:
    """Voltage reference that follows the measured voltage slowly (autonomous VRef): a first-order time constant."""

    def __init__(self, value: float, time_s: float, low: float, high: float) -> None:
        self.value, self._time_s, self._low, self._high = value, time_s, low, high
        self._at: float | None = None

    def step(self, voltage: float, now: float) -> float:
        """The reference (pu) at `now`; `voltage` in pu."""
        dt = 0.0 if self._at is None else max(now - self._at, 0.0)
        self._at = now
        if self._time_s > 0.0 and isfinite(voltage):
            self.value += (voltage - self.value) * (1.0 - 2.718281828459045 ** (-dt / self._time_s))
            self.value = min(max(self.value, self._low), self._high)
        return self.value


@dataclass(frozen=True)
class Droop:
    """Frequency droop (1547-2018 table 23): dead bands in Hz, slopes k in pu frequency per pu power."""

    nominal: float = 50.0
    db_over: float = 0.036
    db_under: float = 0.036
    k_over: float = 0.05
    k_under: float = 0.05

    def curve(self) -> Curve:
        """Change of injected power (pu of rated) by deviation from nominal (Hz): 0 inside the dead band, at most
        `MOST_CHANGE`, which leads from full charging to full discharging."""
        points = {-self.db_under: 0.0, self.db_over: 0.0}
        if not self.db_under and not self.db_over:
            points = {0.0: 0.0}
        points[-self.db_under - MOST_CHANGE * self.k_under * self.nominal] = MOST_CHANGE
        points[self.db_over + MOST_CHANGE * self.k_over * self.nominal] = -MOST_CHANGE
        x = sorted(points)
        return Curve.of(x, [points[v] for v in x], MOST_CHANGE, falling=True)


def power_factor_q(power: float, factor: float) -> float:
    """Magnitude of Q at a power factor: |P| sqrt(1 - pf^2) / pf."""
    return abs(power) * sqrt(max(1.0 - factor * factor, 0.0)) / factor
