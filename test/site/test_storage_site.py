"""A storage unit behind a limiter in the closed loop with the simulated plant, in lock-step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running_site import REPOSITORY

SITE = """
site: {name: store}
nodes:
  bms: {type: jbd, address: "serial:${state}/dev/jbd", max_charge_current: 80.0, max_discharge_current: 80.0}
  inverter: {type: sunspec_inverter, address: "tcp://127.0.0.1:15521", bms: bms}
  unit: {type: unit, bms: bms, converter: inverter}
  safe: {type: limiter, source: unit, rated_charge_power: 5000.0, rated_discharge_power: 5000.0, recovery_hold: 5.0}
  store: {type: storage, battery: safe, autostart: true, soc_low_recovery_charge_command: 2.0}
  site: {type: site}
simulation:
  seed: 3
  ambient: 20.0
  units:
    u:
      pack: {chemistry: lfp, cells: 16, capacity_ah: 20.0, initial_soc: SOC}
      inverter: {rating: 5000.0, phase: 1}
  house: {profile: builtin}
  devices:
    bms: {kind: jbd, unit: u, address: "serial:${state}/dev/jbd"}
    inverter: {kind: sunspec_inverter, unit: u, address: "tcp://127.0.0.1:15521"}
"""
PROGRAM = '''
import json, sys
from pathlib import Path
from bess_core import site
from bess_sim import conductor
from bess_control import storage_node

rows, plants, changes = [], [], []
class Plant(conductor.Plant):
    def __init__(self, config):
        super().__init__(config)
        plants.append(self)
    def step(self, dt):
        super().step(dt)
        pack, inverter = self.pack('u'), self.inverter('u')
        rows.append((inverter.active_power, pack.soc, min(pack.cells), max(pack.cells)))
conductor.Plant = Plant
say = storage_node.StorageNode._say
def heard(self, change):
    changes.append([change.state.name, change.cause])
    say(self, change)
storage_node.StorageNode._say = heard
state = Path(sys.argv[2])
conductor.simulate(site.load(Path(sys.argv[1]), variables={'state': str(state)}), state, hours=0.4, tick=1.0)
print(json.dumps({'rows': rows, 'changes': changes}))
'''


@pytest.mark.parametrize(('soc', 'states'), [
    (0.05, ['STARTING', 'CONNECTING', 'CONNECTED', 'LOW_SOC_RECOVERY', 'HOLD_TRANSITION', 'HOLDING']),
    (0.50, ['STARTING', 'CONNECTING', 'CONNECTED', 'HOLD_TRANSITION', 'HOLDING'])])
def test_a_unit_starts_and_recovers_by_itself(tmp_path: Path, soc: float, states: list[str]) -> None:
    file = tmp_path / 'store.yaml'
    file.write_text(SITE.replace('SOC', str(soc)))
    done = subprocess.run([sys.executable, '-c', PROGRAM, str(file), str(tmp_path / 'state'), '0.4'], cwd=REPOSITORY,
                          capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    names = [name for name, _ in result['changes']]
    assert names[:len(states)] == states, result['changes']
    powers, socs = [r[0] for r in result['rows']], [r[1] for r in result['rows']]
    assert max(powers) <= 2000.0 * 1.05, 'never above its rate'
    assert min(powers) > -200.0, 'nothing is discharged'
    if soc < 0.1:
        # Where recovery ends. Afterwards the battery feeds the running converter's own loss: 0.62 % of 5 kW is 31 W,
        # of 1 kWh 0.7 points in 14 min.
        assert 0.2 <= max(socs) < 0.24 and max(powers) > 1800.0
    assert abs(powers[-20]) < 150.0, 'holds at the end'
