"""The demo site on simulated time: the same graph, the same result twice, and books that balance."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from running_site import DEMO, REPOSITORY

HOURS, TICK_S = 0.5, 1.0
#: Runs the site and prints the summary with what the physics have booked.
PROGRAM = '''
import json, sys
from pathlib import Path
from bess_core import site
from bess_sim import conductor

plants = []
class Plant(conductor.Plant):
    def __init__(self, config):
        super().__init__(config)
        plants.append(self)
        self.house_wh = self.pv_wh = 0.0
    def step(self, dt):
        super().step(dt)
        self.house_wh += abs(self.house_power) * dt / 3600.0
        self.pv_wh += abs(self.pv_power) * dt / 3600.0
conductor.Plant = Plant

state = Path(sys.argv[2])
result = conductor.simulate(site.load(Path(sys.argv[1]), variables={'state': str(state)}), state,
                            hours=float(sys.argv[3]), tick=float(sys.argv[4]))
plant = plants[0]
result['house_wh'], result['pv_wh'] = plant.house_wh, plant.pv_wh
result['inverters_wh'] = sum(plant.inverter(u).energy_import - plant.inverter(u).energy_export for u in plant.units)
print(json.dumps(result))
'''


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of two runs, side by side in processes of their own."""
    running = [subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(DEMO), str(tmp_path_factory.mktemp('sim')), str(HOURS), str(TICK_S)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = []
    for process in running:
        try:
            out, errors = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            for other in running:
                other.kill()
            raise
        assert process.returncode == 0, errors
        results.append(json.loads(out.splitlines()[-1]))
    return results


def test_two_runs_are_equal(runs: list[dict[str, Any]]) -> None:
    """Also although they ran at the same time under the same names: they must not hear each other."""
    first, second = ({k: v for k, v in run.items() if k not in ('wall_s', 'speed')} for run in runs)
    assert first == second


def test_half_an_hour_is_covered_without_a_violation(runs: list[dict[str, Any]]) -> None:
    result = runs[0]
    print(result)
    assert result['simulated_s'] == pytest.approx(HOURS * 3600.0)
    assert result['control_ticks'] == pytest.approx(HOURS * 3600.0 / TICK_S, abs=2)
    assert result['limit_violations'] == 0
    assert result['faults'] == []
    assert all(0.0 < soc < 1.0 for soc in result['soc'].values())


def test_energy_balances_at_the_connection(runs: list[dict[str, Any]]) -> None:
    result = runs[0]
    grid = result['energy_import_wh'] - result['energy_export_wh']
    assert result['house_wh'] > 50.0
    assert grid == pytest.approx(result['house_wh'] - result['pv_wh'] + result['inverters_wh'], abs=1.0)
    # Self-consumption leaves the target (20 W) and what steps of the load cost until it has answered.
    assert result['energy_import_wh'] < 0.25 * result['house_wh']
    assert result['energy_export_wh'] < 0.1 * result['house_wh']


