"""Sums that are rounded once."""

from __future__ import annotations

from math import fsum


def exact_sum(values: list[float]) -> float:
    """`math.fsum`, which one or two numbers do not need: their sum is rounded once anyway. Raises as it does."""
    if len(values) == 1:
        return values[0] + 0.0
    if len(values) == 2:
        total = 0.0 + values[0] + values[1]
        if total - total == 0.0:  # finite
            return total
    return fsum(values)
