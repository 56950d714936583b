"""A simulated day of the home site: through the node graph, and through the pure chain alone.

Each is one thread of Python that never waits, so what counts is the CPU time of its process (of all its
threads); the time on the wall is the same on a machine that does nothing else. The pure chain runs compiled
(`make native`) and, for comparison, as it is; both must give the energies of the node graph.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bess_core import site as site_module

from .figures import Figure
from .site import SITE

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / 'build' / 'native'


def measure(hours: float = 24.0) -> list[Figure]:
    """CPU times of a day at a 1 s tick, and how far the energies differ."""
    from bess_sim.conductor import simulate

    scale = 24.0 / hours
    subprocess.run([sys.executable, str(ROOT / 'tools' / 'build_native.py')], check=True)
    pure, plain = chain(NATIVE, hours), chain(ROOT, hours)
    if not pure['compiled'] or plain['compiled']:
        raise RuntimeError('the compiled and the plain chain were taken for each other')
    with tempfile.TemporaryDirectory() as folder:
        site = site_module.load(SITE, variables={'state': folder})
        started = time.process_time()
        graph = simulate(site, Path(folder), hours=hours, tick=1.0)
        graph_s = (time.process_time() - started) * scale
    difference = max(
        abs(graph[k] - other[k]) / max(abs(graph[k]), 1.0)
        for k in ('energy_import_wh', 'energy_export_wh') for other in (pure, plain))
    return [
        Figure('simulated day through the node graph', graph_s, 's', 120.0),
        Figure('simulated day through the pure chain', pure['cpu_s'] * scale, 's', 10.0),
        Figure('simulated day through the pure chain, not compiled', plain['cpu_s'] * scale, 's'),
        Figure('simulated day: energy difference graph / chain', difference, 'relative', 1e-6),
        Figure('simulated day: limit violations', float(graph['limit_violations']), '', 0.0),
    ]


def chain(tree: Path, hours: float) -> dict[str, Any]:
    """Result of the pure chain with the modules of a tree, in a process of its own. Raises CalledProcessError."""
    outer = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONSAFEPATH')}
    done = subprocess.run([sys.executable, '-m', 'bench.chain_run', str(SITE), '--hours', str(hours)], cwd=tree,
                          env={**outer, 'PYTHONPATH': str(tree)}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
