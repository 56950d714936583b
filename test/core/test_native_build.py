"""The compiled rooms: the same energies, and the tests of what was compiled pass with it (part of `make soak`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import day
from tools.build_native import ROOT, modules

pytestmark = [
    pytest.mark.soak,  # compiling takes minutes
    pytest.mark.skipif(shutil.which(os.environ.get('CC', 'cc')) is None, reason='no C compiler here'),
    pytest.mark.timeout(1800),
]
#: Tests of modules that are compiled.
PURE = ('core/test_clock.py', 'core/test_exchange.py', 'core/test_faults.py', 'core/test_leases.py',
        'core/test_ticker.py', 'drivers/test_bus.py', 'control/test_self_consumption.py',
        'control/test_power_manager.py', 'control/test_proposals.py', 'drivers/test_gate.py',
        'virtual/test_aggregate.py', 'virtual/test_partition.py', 'virtual/test_unit.py',
        'virtual/test_allocation.py', 'virtual/test_demand.py', 'virtual/test_statements.py', 'sim/test_cells.py',
        'sim/test_plant.py', 'sim/test_limit_watch.py')


@pytest.fixture(scope='module')
def native() -> Path:
    """The tree; built unless it is there."""
    subprocess.run([sys.executable, str(ROOT / 'tools' / 'build_native.py')], check=True)
    return day.NATIVE


def test_the_same_energies(native: Path) -> None:
    compiled, plain, graph = (day.simulated('chain', native, 3.0), day.simulated('chain', ROOT, 3.0),
                              day.simulated('graph', native, 3.0))
    assert compiled.pop('compiled') and not plain.pop('compiled') and graph['compiled']
    for key in ('energy_import_wh', 'energy_export_wh', 'soc'):
        assert graph[key] == compiled[key]
    for result in (compiled, plain):
        for timing in ('wall_s', 'speed', 'cpu_s'):
            del result[timing]
    assert compiled == plain and compiled['energy_import_wh'] > 0


def test_pure_tests_pass_with_it(native: Path, tmp_path: Path) -> None:
    """In a folder of its own: what lies beside the tests would be imported in place of the compiled rooms."""
    shutil.copytree(ROOT / 'test', tmp_path / 'test', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    names = [m.removesuffix('.py').replace('/', '.') for m in modules() if not m.startswith('bench/')]
    (tmp_path / 'test' / 'test_it_is_compiled.py').write_text(
        'import importlib\nimport pytest\n\n'
        f'@pytest.mark.parametrize("name", {names!r})\n'
        'def test_compiled(name):\n    assert importlib.import_module(name).__file__.endswith(".so")\n')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '--timeout', '900', 'test/test_it_is_compiled.py',
         *(f'test/{name}' for name in PURE)],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(native)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
