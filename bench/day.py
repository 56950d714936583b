"""A simulated day of the home site: through the node graph, and through the pure chain alone.

Both are one thread of Python that never waits, so what counts is the CPU time of this process (of all its
threads); the time on the wall is the same on a machine that does nothing else.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bess_core import site as site_module

from .figures import Figure
from .site import SITE


def measure(hours: float = 24.0) -> list[Figure]:
    """CPU times of a day at a 1 s tick, and how far the energies of both ways differ."""
    from bess_sim.conductor import simulate

    from .chain import simulate_chain

    scale = 24.0 / hours
    with tempfile.TemporaryDirectory() as folder:
        site = site_module.load(SITE, variables={'state': folder})
        started = time.process_time()
        pure = simulate_chain(site, hours=hours, tick=1.0)
        pure_s = (time.process_time() - started) * scale
        started = time.process_time()
        graph = simulate(site, Path(folder), hours=hours, tick=1.0)
        graph_s = (time.process_time() - started) * scale
    difference = max(
        abs(graph[k] - pure[k]) / max(abs(graph[k]), 1.0) for k in ('energy_import_wh', 'energy_export_wh'))
    return [
        Figure('simulated day through the node graph', graph_s, 's', 120.0),
        Figure('simulated day through the pure chain', pure_s, 's', 10.0),
        Figure('simulated day: energy difference graph / chain', difference, 'relative', 1e-6),
        Figure('simulated day: limit violations', float(graph['limit_violations']), '', 0.0),
    ]
