"""The emergency stop of a whole site, measured at the wire of its simulated converters."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import running_site
from running_site import INVERTERS, SETTLE_S, RunningSite
from std_srvs.srv import Trigger

from bess.msg import SystemState
from bess.srv import ResetEmergencyStop, TriggerEmergencyStop
from bess_core import emergency

TICK_S, MARGIN_S = 0.1, 0.02
running_site.SERVICES.update({
    'emergency_stop/trigger': TriggerEmergencyStop, 'emergency_stop/reset': ResetEmergencyStop})


def with_stop(data: dict[str, Any]) -> None:
    data['nodes']['emergency_stop'] = {'type': 'emergency_stop'}


def test_zero_on_the_wire_within_a_tick_and_only_on_the_spot_again(tmp_path: Path) -> None:
    with RunningSite(tmp_path, without=('dashboard', 'recorder'), edit=with_stop) as site:
        site.wait_for(lambda: site.battery_power() < -1000.0, SETTLE_S)
        asked = time.monotonic()
        assert site.call(TriggerEmergencyStop, 'emergency_stop/trigger', cause='test').accepted
        site.wait_for(site.at_zero, 2.0, 'inverters at zero')
        site.holds(site.at_zero, 0.6, 'power although the emergency stop is in force')
        for inverter in INVERTERS:
            written = site.orders(inverter, asked)
            zeros = [at for at, power in written if power == 0]
            assert zeros, inverter
            print(f'{inverter}: zero on the wire {(zeros[0] - asked) * 1e3:.0f} ms after the call')
            assert zeros[0] - asked <= TICK_S + MARGIN_S
            assert all(power == 0 for at, power in written if at > zeros[0]), 'an order followed the stop'
        site.wait_for(lambda: site.state_is(SystemState.ERROR), 2.0, 'ERROR')
        assert not site.call(Trigger, 'site/start').success
        assert not site.call(ResetEmergencyStop, 'emergency_stop/reset', token='guess', by='remote').accepted
        done = subprocess.run(
            [sys.executable, '-m', 'bess_core.cli.main', 'emergency', 'reset', '--state', str(site.state), '--by', 'eva',  # noqa: E501
             '--site', 'home'], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        site.wait_for(lambda: not emergency.load(site.state, 0.0).active, 2.0, 'stored')
        site.wait_for(lambda: site.call(Trigger, 'site/start').success, 3.0, 'start')
        site.wait_for(lambda: site.battery_power() < -1000.0, SETTLE_S, 'power again')
