"""A simulated day of the home site: through the node graph, and through the pure chain alone.

Each is one thread of Python that never waits, so what counts is the CPU time of its process (of all its
threads); the time on the wall is the same on a machine that does nothing else. Both run with the compiled
modules (`make native`) and, for comparison, without; all must give the same energies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .figures import Figure
from .site import SITE

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / 'build' / 'native'


def measure(hours: float = 24.0) -> list[Figure]:
    """CPU times of a day at a 1 s tick, and how far the energies differ."""
    subprocess.run([sys.executable, str(ROOT / 'tools' / 'build_native.py')], check=True)
    runs = {(way, tree): simulated(way, tree, hours) for tree in (NATIVE, ROOT) for way in ('chain', 'graph')}
    # A shared machine is a third slower for some seconds: of what takes so long, the middle one of three.
    chains = sorted([runs['chain', NATIVE], *(simulated('chain', NATIVE, hours) for _ in range(2))],
                    key=lambda run: float(run['cpu_s']))
    runs['chain', NATIVE] = chains[1]
    if any(result['compiled'] != (tree == NATIVE) for (_, tree), result in runs.items()):
        raise RuntimeError('compiled and plain modules were taken for each other')
    graph = runs['graph', ROOT]
    difference = max(abs(graph[k] - other[k]) / max(abs(graph[k]), 1.0)
                     for k in ('energy_import_wh', 'energy_export_wh') for other in runs.values())
    seconds = {key: result['cpu_s'] * 24.0 / hours for key, result in runs.items()}
    return [
        Figure('simulated day through the node graph', seconds['graph', NATIVE], 's', 120.0),
        Figure('simulated day through the node graph, not compiled', seconds['graph', ROOT], 's'),
        Figure('simulated day through the pure chain, median of three', seconds['chain', NATIVE], 's', 10.0),
        Figure('simulated day through the pure chain, not compiled', seconds['chain', ROOT], 's'),
        Figure('simulated day: energy difference graph / chain', difference, 'relative', 1e-6),
        Figure('simulated day: limit violations', float(max(r['limit_violations'] for r in runs.values())), '', 0.0),
    ]


def simulated(way: str, tree: Path, hours: float) -> dict[str, Any]:
    """Result of a run with the modules of a tree, in a process of its own. Raises CalledProcessError."""
    outer = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONSAFEPATH')}
    done = subprocess.run([sys.executable, '-m', 'bench.day_run', way, str(SITE), '--hours', str(hours)], cwd=tree,
                          env={**outer, 'PYTHONPATH': str(tree)}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
