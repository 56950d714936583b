"""Measured response to an order: delay, rise, settling, overshoot, follow error. Pure.

Definitions as usual in control engineering: rise from 10 % to 90 % of the change, settling until the signal stays
within the tolerance band to the end, overshoot beyond the target as a fraction of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

LIMITED = 'limited'
LAG_S = 0.5  # time from an order to the decision about it


@dataclass(slots=True)
class Response:
    """See `msg/TestStep.msg`. s, W, fractions; NaN = could not be told."""

    result: str = ''
    reason: str = ''
    asked: float = nan
    granted: float = nan
    measured: float = nan
    delay: float = nan
    rise: float = nan
    settling: float = nan
    overshoot: float = nan
    follow_error: float = nan


def analyse(times: Sequence[float], asked: Sequence[float], granted: Sequence[float], measured: Sequence[float],
            before: float, *, ramp: bool, tolerance: float, share: float = 0.05, reason: str = '') -> Response:
    """Response within one step. Times in s from its start, powers in W; `before` = power when it began (W).

    tolerance: W, least half width of the band; share: fraction of the change that widens it. `reason` explains a
    limited order.
    """
    t, a, g, m = (np.asarray(v, dtype=float) for v in (times, asked, granted, measured))
    if not len(t):
        return Response('not measured', 'no sample')
    out = Response(asked=float(a[-1]), granted=float(g[-1]))
    good = ~np.isnan(m)
    if good.sum() < 2:
        out.result, out.reason = 'not measured', 'the battery does not measure its power'
        return out
    out.measured = float(m[good][-1])
    # While the order moves, what is granted is a moment behind it.
    behind = abs(out.asked - float(a[np.searchsorted(t, t[-1] - LAG_S)])) if ramp else 0.0
    limited = not isnan(out.granted) and abs(out.granted - out.asked) > tolerance + behind
    if ramp:
        wanted = np.where(np.isnan(g), a, g) if limited else a
        error = np.abs(m - wanted)[good]
        out.follow_error = float(error.mean())
        span = abs(float(a[-1] - a[0]))
        if error.max() > tolerance + 0.2 * span:
            out.result, out.reason = 'not followed', f'{error.max():.0f} W off at most'
        else:
            out.result = 'ok'
    else:
        _hold(out, t[good], m[good], out.granted if limited else out.asked, before, tolerance, share)
    if limited:
        out.result, out.reason = LIMITED, reason or f'{out.granted:.0f} W granted'
    return out


def _hold(out: Response, t: np.ndarray, m: np.ndarray, target: float, before: float, tolerance: float,
          share: float) -> None:
    before = float(m[0]) if isnan(before) else before
    change = target - before
    band = max(tolerance, share * abs(change))
    outside = np.flatnonzero(np.abs(m - target) > band)
    if not len(outside):
        out.settling = float(t[0])
    elif outside[-1] + 1 < len(t):
        out.settling = float(t[outside[-1] + 1])
    tail = m[t >= t[-1] / 2]
    out.follow_error = float(np.abs(tail - target).mean())
    if abs(change) > band:
        progress = (m - before) / change
        first, most = (np.flatnonzero(progress >= share_) for share_ in (0.1, 0.9))
        if len(first):
            out.delay = float(t[first[0]])
        if len(most):
            out.rise = float(t[most[0]]) - out.delay
        out.overshoot = max(float(progress.max()) - 1.0, 0.0)
    if isnan(out.settling):
        out.result, out.reason = 'not settled', f'{out.measured:.0f} W at the end, {target:.0f} W asked'
    else:
        out.result = 'ok'
