"""Many batteries at once behind a chain of limits, with random commands, faults, delays and sensor errors.

The plant shares nothing with the chain: cells are an open-circuit voltage over charge, an ohmic and a slow part; the
limits it is judged by are computed anew from the curves of the facts page, straight and without memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from bess_control.limits import Chain, Inputs, LimiterParams

CELLS = 16
AH = 100.0
RATED = 5000.0  # W
SOFTWARE = (4500.0, 4000.0)  # W
AMPS = (90.0, 95.0)
VA = 4800.0
SOC = (0.06, 0.97)
# Facts page, chemistry lfp: charge by highest cell, discharge by lowest, temperatures.
HIGH = ((3.375, 3.400, 3.425, 3.450, 3.500), (1.0, 0.25, 0.05, 0.005, 0.0))
LOW = ((2.8, 2.9, 3.0, 3.1, 3.19), (0.0, 0.005, 0.05, 0.25, 1.0))
HOT = ((0.0, 2.0, 5.0, 10.0, 40.0, 45.0, 50.0, 55.0), (0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0))
COLD_OUT = ((-10.0, 0.0, 5.0, 10.0, 40.0, 45.0, 50.0, 55.0), (0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0))
OCV = ((0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.97, 0.99, 1.0),
       (2.50, 2.89, 3.06, 3.19, 3.23, 3.30, 3.33, 3.34, 3.35, 3.38, 3.53))

PARAMS = LimiterParams(
    rated_charge_power=RATED, rated_discharge_power=RATED, software_charge_power=SOFTWARE[0],
    software_discharge_power=SOFTWARE[1], soc_min=SOC[0], soc_max=SOC[1], max_charge_current=AMPS[0],
    max_discharge_current=AMPS[1], max_apparent_power=VA, ramp_rate=500.0)

LAG_TICKS = 2  # in which the device answers an order to within the tolerance
TOLERANCE = 0.02 * RATED


@dataclass
class Judgement:
    """Ticks of each scenario in which more flowed than a limit allowed at any time within the last tick plus lag."""

    seen: np.ndarray  # limits from what was received
    true: np.ndarray  # limits from the true state, of scenarios with honest sensors only
    top: float  # V, highest true cell voltage while charging
    bottom: float  # V, lowest true cell voltage while discharging
    moved: float  # mean share of ticks in which power flowed
    blocked: float  # share of ticks in which a command met a limit


def oracle(x: dict[str, np.ndarray], q: np.ndarray) -> np.ndarray:
    """[kinds, 2, n] W, from values as they are; NaN and nonsense allow nothing."""
    n = len(q)

    def curve(points: tuple, value: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.where((value >= low) & (value <= high), np.interp(value, *points) * RATED, 0.0)

    out = np.empty((len(KINDS), 2, n))
    out[0] = np.maximum(np.nan_to_num(np.stack((x['charge'], x['discharge']))), 0.0)
    out[1] = np.array(SOFTWARE)[:, None]
    soc = x['soc']
    known = (soc >= 0.0) & (soc <= 1.0)
    out[2] = np.where(known & np.stack((soc < SOC[1], soc > SOC[0])), np.inf, 0.0)
    out[3] = np.stack((curve(HIGH, x['top'], 1.0, 5.0), curve(LOW, x['bottom'], 1.0, 5.0)))
    t = x['temperature']
    out[4] = np.stack((curve(HOT, t, -60.0, 120.0), curve(COLD_OUT, t, -60.0, 120.0)))
    out[5] = np.outer(AMPS, np.maximum(np.nan_to_num(x['voltage']), 0.0))
    out[6] = np.sqrt(np.maximum(VA**2 - np.minimum(np.abs(q), VA) ** 2, 0.0))
    return out


KINDS = ('hardware', 'software', 'SoC', 'cell voltage', 'temperature', 'current', 'apparent power')


def run(n: int, seconds: int, seed: int, params: LimiterParams = PARAMS, season: bool = False) -> Judgement:
    """`n` scenarios for so long, in ticks of 1 s; the first half of them has honest sensors."""
    rng = np.random.default_rng(seed)
    chain = Chain(params, n)
    honest = np.arange(n) < n // 2
    soc = rng.uniform(0.02, 0.99, n)
    spread = rng.uniform(0.0, 0.03, n)  # the highest cell holds so much more, the lowest so much less
    slow = np.zeros(n)
    temperature = rng.uniform(-15.0, 58.0, n)
    ambient = (10.0 - 18.0 * np.cos(2 * np.pi * np.arange(n) / n) if season else rng.uniform(-20.0, 50.0, n))
    ohm = rng.uniform(0.0004, 0.0012, n)  # per cell
    power, command, q = np.zeros(n), np.zeros(n), np.zeros(n)
    bms = np.tile([[RATED], [RATED]], (1, n)).astype(float)
    contactor = np.ones(n, dtype=bool)
    error = np.zeros(n, dtype=int)  # 0 none, 1 NaN, 2 out of range, 3 late, 4 frozen (it says that it is fresh)
    which = np.zeros(n, dtype=int)
    order = np.zeros(n)
    waiting: deque[np.ndarray] = deque([np.zeros(n)] * LAG_TICKS, maxlen=LAG_TICKS)
    seen: dict[str, np.ndarray] = {}
    stamp = np.full(n, -np.inf)
    count = np.zeros((len(KINDS), 2 * n), int)
    recent: deque[np.ndarray] = deque(maxlen=2 + LAG_TICKS)  # limits now, a tick ago, and before that for the lag
    top_max, bottom_min, flowing, blocked = -np.inf, np.inf, 0.0, 0.0
    previous_allowed = None
    for t in range(seconds):
        # What happens: new commands, faults that come and go, sensors that fail and heal.
        u = rng.random((11, n))
        command = np.where(u[0] < 0.02, (u[1] * 3.2 - 1.6) * RATED, command)
        q = np.where(u[2] < 0.01, (u[3] * 2.4 - 1.2) * VA * (u[1] < 0.5), q)
        bms = np.where(u[4:6] < 0.004, u[6:8] * 1.7 * RATED * (u[6:8] < 0.7), bms)
        contactor = np.where(u[8] < 0.002, ~contactor, contactor | (u[8] > 0.95))
        fails = ~honest & (u[9] < 0.004)
        error = np.where(fails, 1 + (u[10] * 4).astype(int), np.where(u[9] > 0.98, 0, error))
        which = np.where(fails, (u[8] * 6).astype(int), which)
        # Physics of the last second, under the power that flows now.
        voltage_cell = np.interp(soc, *OCV) + slow
        current = power / (CELLS * np.maximum(voltage_cell, 2.0))
        slow += (current * ohm - slow) / 60.0
        soc = np.clip(soc + current / 3600.0 / AH, 0.0, 1.0)
        temperature += (ambient - temperature) / 5400.0 + 3 * ohm * CELLS * current**2 / (24.0 * AH * CELLS)
        drop = current * ohm + slow
        top = np.interp(np.minimum(soc + spread, 1.0), *OCV) + drop
        bottom = np.interp(np.maximum(soc - spread, 0.0), *OCV) + drop
        true = {'charge': bms[0] * contactor, 'discharge': bms[1] * contactor, 'soc': soc, 'top': top, 'bottom': bottom,
                'temperature': temperature, 'voltage': CELLS * (np.interp(soc, *OCV) + drop)}
        # What is received.
        late = error == 3
        for i, (name, value) in enumerate(true.items()):
            wrong = np.where(error == 1, np.nan, -500.0 if t % 2 else 1e9)
            hit = which == min(i, 5)
            measured = np.where(((error == 1) | (error == 2)) & hit, wrong, value)
            measured = np.where((error == 4) & hit, seen.get(name, value), measured)
            if name in ('charge', 'discharge'):  # a limit out of range is one that a driver has refused: unknown
                measured = np.where(measured > 10 * RATED, np.nan, measured)
            if name == 'voltage':
                measured = np.where(measured > 1000.0, np.nan, measured)
            seen[name] = np.where(late, seen.get(name, np.full(n, np.nan)), measured)
        stamp = np.where(late, stamp, float(t))
        result = chain(Inputs(
            time=stamp, max_charge_power=seen['charge'], max_discharge_power=seen['discharge'], power=power,
            voltage=seen['voltage'], soc=seen['soc'], cell_min=seen['bottom'], cell_max=seen['top'],
            temperature_min=seen['temperature'], temperature_max=seen['temperature'], reactive=q), float(t))
        allowed = result.allowed
        assert np.all(allowed >= 0.0) and np.all(np.isfinite(allowed))
        if previous_allowed is not None:
            assert np.all(result.after[6] - previous_allowed <= params.ramp_rate + 1e-6), 'the ramp'
        previous_allowed = result.after[6]
        order = np.clip(command, -allowed[1], allowed[0])
        blocked += float(np.mean(order != command))
        # Judge what flows now, which is an answer to orders before this tick.
        flows = np.stack((np.maximum(power, 0.0), np.maximum(-power, 0.0)))
        both = {name: np.concatenate((seen[name], true[name])) for name in true}
        recent.append(oracle(both, np.tile(q, 2)))
        count += np.any(np.tile(flows, 2) > np.maximum.reduce(recent) + TOLERANCE, axis=1)
        top_max = max(top_max, float(np.max(np.where(honest & (power > TOLERANCE), top, -np.inf))))
        bottom_min = min(bottom_min, float(np.min(np.where(honest & (power < -TOLERANCE), bottom, np.inf))))
        flowing += float(np.mean(np.abs(power) > TOLERANCE))
        # The device: dead time of one tick, then a lag.
        waiting.append(order)
        power = (power + (waiting[0] - power) * 0.98) * contactor
    return Judgement(count[:, :n], count[:, n:][:, honest], top_max, bottom_min, flowing / seconds, blocked / seconds)


def check(j: Judgement) -> None:
    """No limit is exceeded for longer than one tick plus the device's lag, and the test has teeth."""
    for k, kind in enumerate(KINDS):
        assert j.seen[k].sum() == 0, f'{kind}: {j.seen[k].sum()} ticks over what was known'
        assert j.true[k].sum() == 0, f'{kind}: {j.true[k].sum()} ticks over what is true'
    assert j.top < 3.65 and j.bottom > 2.5, (j.top, j.bottom)
    assert j.moved > 0.2 and j.blocked > 0.2, (j.moved, j.blocked)
