"""Additive shares of day schedules: two servers each see uniform numbers, together they see the sum. Pure.

A power of a slot is a whole number of mW, modulo 2^64 (two's complement, so discharge needs no special case). A
household splits its vector v into (v - r, r) with r uniform: each half alone is uniform, whatever v is. Servers
add the halves they hold; the two sums add up to the sum of the vectors. Additive secret sharing over Z_2^64 as in
Corrigan-Gibbs and Boneh, "Prio" (NSDI 2017), without its proofs: docs/private_totals.md says what that means.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

Share = NDArray[np.uint64]

UNITS_PER_W = 1000  # resolution 1 mW
MAX_POWER = 1e9  # W, of one household
MAX_HOUSEHOLDS = 4096  # 4096 * 1e9 W * 1000 < 2^62: a sum of honest vectors never wraps
MAX_SLOTS = 2880


class ShareError(ValueError):
    """Values or shares that cannot be what they should be; in words."""


def to_units(powers: Sequence[float], max_power: float) -> Share:
    """Powers (W, + = charging) of one household as numbers modulo 2^64. Raises `ShareError`."""
    if not 0.0 < max_power <= MAX_POWER:
        raise ShareError(f'the limit of one household is {max_power} W, not in (0, {MAX_POWER:g}]')
    if not 0 < len(powers) <= MAX_SLOTS:
        raise ShareError(f'{len(powers)} slots, not 1 to {MAX_SLOTS}')
    for slot, power in enumerate(powers):
        if not isfinite(power) or abs(power) > max_power:
            raise ShareError(f'slot {slot}: {power} W is outside of -{max_power:g} to {max_power:g} W')
    return np.array([round(float(p) * UNITS_PER_W) for p in powers], dtype=np.int64).view(np.uint64)


def split(units: Share, random: Callable[[int], bytes] = secrets.token_bytes) -> tuple[Share, Share]:
    """Two shares that add up to `units`. `random(n)`: n uniform bytes; each call must give new ones."""
    second = np.frombuffer(random(8 * len(units)), dtype='<u8').astype(np.uint64)
    return units - second, second  # numpy wraps modulo 2^64


def add(shares: Sequence[Share]) -> Share:
    """Sum of shares, slot by slot, modulo 2^64."""
    total = np.zeros_like(shares[0])
    for share in shares:
        total = total + share
    return total


def to_powers(total: Share, households: int, max_power: float) -> list[float]:
    """Powers (W, + = charging) of a sum over `households` vectors.

    Raises `ShareError` when a slot is beyond what so many households may ask for: somebody sent more than
    allowed, or garbage (which is uniform and passes with probability 2 * households * max_power * 1000 / 2^64
    per slot). What stays within the sum of the limits is not detected.
    """
    signed = total.view(np.int64)
    limit = round(households * max_power * UNITS_PER_W)
    outside = np.flatnonzero((signed > limit) | (signed < -limit))
    if outside.size:
        raise ShareError(f'slot {int(outside[0])}: the sum is beyond what {households} households may ask for '
                         f'(-{max_power:g} to {max_power:g} W each): a share is damaged or dishonest')
    return [int(v) / UNITS_PER_W for v in signed]


def pack(share: Share) -> str:
    """A share as text."""
    return base64.b64encode(share.astype('<u8').tobytes()).decode()


def unpack(text: object, slots: int) -> Share:
    """The share in a text. Raises `ShareError` unless it holds exactly `slots` numbers."""
    if not isinstance(text, str) or len(text) > 16 * MAX_SLOTS:
        raise ShareError('a share is a text in base64')
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ShareError(f'a share is a text in base64: {error}') from error
    if len(data) != 8 * slots:
        raise ShareError(f'{len(data)} bytes, {8 * slots} are {slots} slots')
    return np.frombuffer(data, dtype='<u8').astype(np.uint64)


def runs(powers: Sequence[float]) -> list[tuple[int, int, float]]:
    """Stretches of equal power as (first slot, slot behind the last, W)."""
    out: list[tuple[int, int, float]] = []
    for slot, power in enumerate(powers):
        if out and out[-1][2] == power:
            out[-1] = (out[-1][0], slot + 1, power)
        else:
            out.append((slot, slot + 1, power))
    return out
