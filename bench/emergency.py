"""Emergency stop of the whole demo site: from the call of the service to the zero on the wire of each inverter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bess_sim.control_client import DeviceControl

from .figures import Figure, percentile
from .site import SITE, port_settings, setpoints, wait

ROUNDS, TICK_S, MARGIN_S = 8, 0.1, 0.02
INVERTERS = ('inverter_a', 'inverter_b')


def measure() -> list[Figure]:
    """Delays over some rounds of stop, reset and start."""
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    from std_srvs.srv import Trigger

    from bess.srv import ResetEmergencyStop, TriggerEmergencyStop
    from bess_core.cli.session import open_session
    from bess_core.emergency import TOKEN

    delays: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        site = subprocess.Popen(
            [sys.executable, '-m', 'bess_core.cli.main', 'up', str(SITE), '--state', str(state), '--table', 'off',
             '--set', 'nodes.emergency_stop.type=emergency_stop', *port_settings()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with open_session(30.0) as session:
                controls = {n: DeviceControl(state / 'sim' / f'{n}.sock') for n in INVERTERS}

                def call(name: str, kind: Any, **fields: Any) -> Any:
                    return session.call(f'/home/{name}', kind, kind.Request(**fields))

                def flows() -> bool:
                    return all((w := setpoints(c)) and abs(w[-1][1]) > 100.0 for c in controls.values())

                call('emergency_stop/reset', ResetEmergencyStop)  # discovery is over: not part of the delay
                for _ in range(ROUNDS):
                    wait(lambda: session.until(flows, 0.2), 40.0, 'power flows')
                    asked = time.monotonic()
                    call('emergency_stop/trigger', TriggerEmergencyStop, cause='bench')
                    session.until(lambda: False, 0.5)
                    for control in controls.values():
                        zeros = [at for at, w in setpoints(control) if at > asked and w == 0]
                        delays.append(zeros[0] - asked if zeros else 10.0)
                    token = (state / TOKEN).read_text()
                    call('emergency_stop/reset', ResetEmergencyStop, token=token, by='bench')
                    wait(lambda: call('site/start', Trigger).success, 5.0, 'start')
        finally:
            site.send_signal(signal.SIGINT)
            site.wait(timeout=30)
    goal = (TICK_S + MARGIN_S) * 1e3
    return [Figure('emergency stop to zero on the wire, median', percentile(delays, 0.5) * 1e3, 'ms', goal),
            Figure('emergency stop to zero on the wire, max', max(delays) * 1e3, 'ms', goal)]
