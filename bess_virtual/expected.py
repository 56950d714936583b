"""Expected values of a whole: what it would hold and bear if every member took part as when it last did.

The difference to the current values is what is missing at present; fractions of a partition refer to the
expected ones, which do not jump when a member drops out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bess_core.values import BatteryReading


class Expected(NamedTuple):
    """Energy when full in Wh; powers in W, magnitudes. NaN unknown."""

    energy_full: float
    charge_power: float
    discharge_power: float


def usual(reading: BatteryReading, energy_full: float, charge: float, discharge: float) -> tuple[float, float, float]:
    """The same of one member: its own expectation where it has one, else the given values (Wh, W, W)."""
    r = reading
    return (energy_full if isnan(r.expected_energy_full) else r.expected_energy_full,
            charge if isnan(r.expected_charge_power) else max(charge, r.expected_charge_power),
            discharge if isnan(r.expected_discharge_power) else max(discharge, r.expected_discharge_power))


def pace(limits: ArrayLike, energies: ArrayLike, plain_sum: bool) -> float:
    """Common limit in W of members with these limits (W) and energies (Wh, NaN unknown): the plain sum, or what
    can be held until all finish together (see `bess_virtual.aggregate`)."""
    p, e = np.asarray(limits, dtype=float), np.asarray(energies, dtype=float)
    able = p > 0
    p, e = p[able], e[able]
    total = float(p.sum())
    known = e > 0
    if plain_sum or not known.any():
        return total
    with np.errstate(over='ignore'):
        rate = float((p[known] / e[known]).min())
    return min(float(e[known].sum()) * rate + float(p[np.isnan(e)].sum()), total)


def expect(values: Sequence[tuple[float, float, float]], energies: Sequence[float], plain_sum: bool) -> Expected:
    """Of the whole, from `usual` of each member and its stored energy (Wh)."""
    full = [f for f, _, _ in values]
    known = [f for f in full if not isnan(f)]
    headroom = [f - e for f, e in zip(full, energies, strict=True)]
    return Expected(sum(known) if known else nan,
                    pace([c for _, c, _ in values], headroom, plain_sum),
                    pace([d for _, _, d in values], energies, plain_sum))
