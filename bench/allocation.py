"""Allocation of one power over many units: median time per call."""

from __future__ import annotations

import time

import numpy as np

from bess_virtual.allocation import allocate

from .figures import Figure, percentile


def measure() -> list[Figure]:
    """Medians for 40 and 1000 units at various requests."""
    out = []
    for count, goal, calls in ((40, 100.0, 2000), (1000, 1000.0, 600)):
        rng = np.random.default_rng(1)
        energy = rng.uniform(0.0, 10_000.0, count)
        room = rng.uniform(0.0, 10_000.0, count)
        low, high = -rng.uniform(500.0, 5000.0, count), rng.uniform(500.0, 5000.0, count)
        requests = rng.uniform(1.1 * low.sum(), 1.1 * high.sum(), calls)
        times = []
        for power in requests:
            started = time.perf_counter()
            allocate(float(power), room, energy, low, high)
            times.append((time.perf_counter() - started) * 1e6)
        out.append(Figure(f'allocation over {count} units, median', percentile(times, 0.5), 'us', goal))
    return out
