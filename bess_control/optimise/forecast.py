"""Forecasts of load and generation from what was measured, and how good they were. Pure.

Three methods, simple on purpose, because each is to be understood and none needs training elsewhere:

* persistence: as at the same time of the day before;
* weekday profile: mean of the same weekday's slot over the last weeks, of all days while there are no
  weeks yet;
* regression: ridge regression on the values one day and one week ago, the profile, the level of the
  last day and two harmonics of the day.

Every method makes a forecast of each day at its beginning, also those that are not used, and is scored
against what then happened. The best one so far is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

import numpy as np

Array = np.ndarray
METHODS = ('persistence', 'weekday profile', 'regression')
DAY = 86400.0
KEEP_DAYS = 36
RIDGE = 1e-3  # relative to the mean square of a feature


class Measured:
    """Means of one power over steps of the absolute grid, as far back as `KEEP_DAYS`."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.values: dict[int, float] = {}  # step number since the epoch -> W
        self._sum = self._time = 0.0
        self._step: int | None = None

    def add(self, wall: float, power: float, seconds: float) -> int | None:
        """Count a power that flowed for so long; returns the number of a step that is now complete."""
        done = None
        step = int(wall // self.step_s)
        if step != self._step:
            done = self._close()
            self._step = step
        if isfinite(power) and 0.0 < seconds <= self.step_s:
            self._sum += power * seconds
            self._time += seconds
        return done

    def _close(self) -> int | None:
        step, seconds, total = self._step, self._time, self._sum
        self._sum = self._time = 0.0
        if step is None or seconds < 0.5 * self.step_s:  # half a step tells too little
            return None
        self.values[step] = total / seconds
        oldest = step - round(KEEP_DAYS * DAY / self.step_s)
        for old in [s for s in self.values if s < oldest] if len(self.values) % 96 == 0 else ():
            del self.values[old]
        return step

    def get(self, step: int) -> float:
        """W of a step; NaN when not measured."""
        return self.values.get(step, nan)


def forecast(measured: Mapping[int, float], first: int, count: int, step_s: float, method: str) -> Array | None:
    """W of the steps `first`.. `first + count`, from what was measured before `first`; None = too little known.

    `measured`: step number since the epoch -> W; what lies at or behind `first` is not looked at.
    """
    day, week = round(DAY / step_s), round(7 * DAY / step_s)
    steps = np.arange(first, first + count)
    if not any(s in measured for s in range(first - 2 * day, first)):
        return None
    base = np.array([_before(measured, int(s), day, first) for s in steps])
    if np.isnan(base).all():
        return None
    base = _fill(base)
    if method == 'persistence':
        return base
    profile = np.array([_profile(measured, int(s), day, week, first) for s in steps])
    profile = np.where(np.isnan(profile), base, profile)
    if method == 'weekday profile':
        return profile
    if method == 'regression':
        return _regression(measured, steps, base, profile, day, week, first)
    raise ValueError(f'unknown method {method!r}; known: {", ".join(METHODS)}')


def _before(measured: Mapping[int, float], step: int, period: int, first: int) -> float:
    """The newest value a whole number of periods ago that was known at `first`; up to a week back."""
    s = step - period * (1 + max(step - first, 0) // period)
    for _ in range(7):
        if s in measured and s < first:
            return measured[s]
        s -= period
    return nan


def _profile(measured: Mapping[int, float], step: int, day: int, week: int, first: int) -> float:
    same = [measured[s] for s in (step - k * week for k in range(1, 6)) if s in measured and s < first]
    if len(same) < 2:
        same += [measured[s] for s in (step - k * day for k in range(1, 15)) if s in measured and s < first]
    return float(np.mean(same)) if same else nan


def _fill(values: Array) -> Array:
    known = ~np.isnan(values)
    return np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])


def _regression(measured: Mapping[int, float], steps: Array, base: Array, profile: Array, day: int, week: int,
                first: int) -> Array | None:
    history = [s for s in measured if s < first and s - day in measured]
    if len(history) < 3 * day:
        return None
    history = sorted(history)[-21 * day:]
    known = np.array(history)
    x = _features(known, np.array([measured[s - day] for s in history]),
                  np.array([_mean_known(measured, s, day, week) for s in history]), day, measured)
    y = np.array([measured[s] for s in history])
    scale = np.maximum(np.sqrt(np.mean(x * x, axis=0)), 1e-9)
    xs = x / scale
    weights = np.linalg.solve(xs.T @ xs + RIDGE * len(y) * np.eye(xs.shape[1]), xs.T @ y)
    out = (_features(steps, base, profile, day, measured, first) / scale) @ weights
    low, high = min(y.min(), 0.0), max(y.max(), 0.0)
    return np.clip(out, low, high)


def _mean_known(measured: Mapping[int, float], step: int, day: int, week: int) -> float:
    same = [measured[s] for s in (step - week, step - day, step - 2 * day, step - 3 * day) if s in measured]
    return sum(same) / len(same)


def _features(steps: Array, yesterday: Array, profile: Array, day: int, measured: Mapping[int, float],
              first: int | None = None) -> Array:
    angle = 2.0 * np.pi * (steps % day) / day
    levels = {}
    for d in set((steps // day).tolist()):
        end = d * day if first is None else min(d * day, first)
        recent = [measured[s] for s in range(end - day, end) if s in measured]
        levels[d] = float(np.mean(recent)) if recent else 0.0
    level = np.array([levels[d] for d in (steps // day).tolist()])
    return np.column_stack([
        np.ones(len(steps)), yesterday, profile, level,
        np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])


@dataclass
class Score:
    """Errors of one method for one quantity, over the last weeks."""

    errors: deque[float] = field(default_factory=lambda: deque(maxlen=14 * 96))  # W, forecast - measured

    @property
    def mae(self) -> float:
        """Mean absolute error in W; NaN without any."""
        return float(np.mean(np.abs(self.errors))) if self.errors else nan

    @property
    def bias(self) -> float:
        """Mean error in W."""
        return float(np.mean(self.errors)) if self.errors else nan


class Forecaster:
    """One quantity ("load" or "pv"): measures, forecasts with all methods, scores, and picks the best."""

    def __init__(self, step_s: float, high: float = np.inf, low: float = -np.inf) -> None:
        self.measured = Measured(step_s)
        self.scores = {m: Score() for m in METHODS}
        self._bounds = (low, high)
        self._made: dict[str, tuple[int, Array]] = {}  # of this day: method -> (first step, W)
        self._day: int | None = None

    def add(self, wall: float, power: float, seconds: float) -> None:
        """Count a measured power; when a step is complete it is scored, when a day begins it is forecast."""
        done = self.measured.add(wall, power, seconds)
        if done is not None:
            for method, (first, values) in self._made.items():
                if 0 <= done - first < len(values):
                    self.scores[method].errors.append(float(values[done - first]) - self.measured.values[done])
        day = int(wall // DAY)
        if day != self._day:
            self._day = day
            first = int(wall // self.measured.step_s)
            count = round(DAY / self.measured.step_s)
            made = {m: self.make(first, count, m) for m in METHODS}
            self._made = {m: (first, v) for m, v in made.items() if v is not None}

    def make(self, first: int, count: int, method: str) -> Array | None:
        """A forecast by one method, within what is physically possible."""
        values = forecast(self.measured.values, first, count, self.measured.step_s, method)
        return None if values is None else np.clip(values, *self._bounds)

    @property
    def best(self) -> str:
        """The method with the smallest error; persistence until a day was scored."""
        day = DAY / self.measured.step_s
        scored = {m: s.mae for m, s in self.scores.items() if len(s.errors) >= 0.9 * day}
        return min(scored, key=scored.__getitem__) if scored else METHODS[0]

    def predict(self, first: int, count: int) -> tuple[Array, str]:
        """(W, method) by the best method that can. Raises ValueError when nothing is known yet."""
        for method in (self.best, *METHODS):
            values = self.make(first, count, method)
            if values is not None:
                return values, method
        raise ValueError('less than a day was measured: there is no forecast yet')

    def frozen(self) -> Forecaster:
        """A copy that goes on forecasting from what is known now, for another thread."""
        copied = Forecaster(self.measured.step_s)
        copied._bounds = self._bounds
        copied.measured.values = dict(self.measured.values)
        copied.scores = {m: Score(s.errors.copy()) for m, s in self.scores.items()}
        return copied

    def skill(self, method: str) -> float:
        """1 - mae / mae of persistence; NaN while one is unknown."""
        reference = self.scores[METHODS[0]].mae
        return 1.0 - self.scores[method].mae / reference if reference > 0.0 else nan

    def save(self) -> dict[str, Any]:
        """What survives a restart."""
        return {'step_s': self.measured.step_s,
                'values': {str(k): round(v, 2) for k, v in self.measured.values.items()},
                'errors': {m: [round(e, 2) for e in s.errors] for m, s in self.scores.items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` gave; of another step length nothing."""
        if float(saved['step_s']) != self.measured.step_s:
            return
        self.measured.values = {int(k): float(v) for k, v in saved['values'].items()}
        for method, errors in saved['errors'].items():
            if method in self.scores:
                self.scores[method].errors.extend(map(float, errors))
