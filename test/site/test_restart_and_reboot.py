"""RESTART and REBOOT of a running site: outputs at rest, then the processes in order, then the same mode again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import running_site
from running_site import INVERTERS, SETTLE_S, RunningSite, alive
from std_srvs.srv import Trigger

from bess.msg import SystemState
from bess.srv import SetMode

running_site.SERVICES.update({'site/restart': Trigger, 'site/reboot': Trigger})
POWER_W, BACK_S = 1000.0, 25.0


def at_work(site: RunningSite) -> bool:
    return abs(site.battery_power() + POWER_W) < 150.0


def back(site: RunningSite, since: float) -> bool:
    """In RUN, entered after that time (epoch s), with every node."""
    state = site.site_state()
    return (state is not None and state.state == SystemState.RUN and state.header.stamp.sec >= since - 1.0
            and site.all_active_but(('self_consumption', 'fixed')))


def rests_from(site: RunningSite, asked: float) -> float:
    """Monotonic s of the first zero on the wire of every inverter; nothing but zero may follow."""
    first = []
    for inverter in INVERTERS:
        written = site.orders(inverter, asked)
        zeros = [at for at, power in written if power == 0]
        assert zeros, f'{inverter}: {written}'
        assert all(power == 0 for at, power in written if at > zeros[0]), f'{inverter}: an order followed the rest'
        first.append(zeros[0])
    return max(first)


def test_restart_and_reboot(tmp_path: Path) -> None:
    mark = tmp_path / 'reboots'

    def edit(data: dict[str, Any]) -> None:
        nodes = data['nodes']
        nodes['fixed'] = {'type': 'fixed_power', 'battery': 'house', 'meter': 'meter', 'discharge_power': POWER_W}
        nodes['site'] |= {'leave_delay': 1.0, 'reboot_command': ['/bin/sh', '-c', f'echo x >> {mark}']}

    with RunningSite(tmp_path, without=('dashboard',), edit=edit, ready=False) as site:
        site.wait_for(lambda: back(site, 0.0), BACK_S, 'RUN')
        assert site.call(SetMode, 'site/set_mode', mode='fixed').accepted
        site.wait_for(lambda: at_work(site), SETTLE_S, 'the chosen mode at work')
        groups = ('control', 'telemetry')

        # RESTART: outputs at rest, then both processes end and start, control first.
        pids, asked, asked_wall = {g: site.pid(g) for g in groups}, time.monotonic(), time.time()
        assert site.call(Trigger, 'site/restart').success
        site.wait_for(lambda: not alive(pids['control']), 10.0, 'the end of control')
        ended = time.monotonic()
        assert rests_from(site, asked) < ended
        site.wait_for(lambda: all(len(site.starts(g)) == 2 for g in groups), 15.0, 'both processes anew')
        ends = {g: next(line['time'] for line in site.events('process ends', g)) for g in groups}
        assert ends['control'] < ends['telemetry'], 'control ends first, and is recorded to its end'
        starts = {line['process']: line['time'] for line in site.events('process started')}
        assert ends['telemetry'] < starts['control'] < starts['telemetry'], 'in order'
        site.wait_for(lambda: back(site, asked_wall + 1.0), BACK_S, 'RUN by itself')
        assert site.site_state().mode == 'fixed'  # type: ignore[union-attr]
        site.wait_for(lambda: at_work(site), SETTLE_S, 'the chosen mode at work again')
        assert not site.events('process does not end; killed')
        assert all(len(site.starts(g)) == 2 for g in groups), 'restarted once'

        # REBOOT: outputs at rest, then the command, once; also when the process is killed and comes back meanwhile.
        asked, asked_wall = time.monotonic(), time.time()
        assert site.call(Trigger, 'site/reboot').success
        site.wait_for(mark.exists, 5.0, 'the command')
        at = mark.stat().st_mtime - time.time() + time.monotonic()
        assert rests_from(site, asked) < at and site.at_zero()
        assert site.state_is(SystemState.REBOOT)
        assert not site.call(Trigger, 'site/start').success and not site.call(Trigger, 'site/reboot').success
        os.kill(site.pid('control'), signal.SIGKILL)
        site.wait_for(lambda: back(site, asked_wall + 1.0), BACK_S, 'RUN by itself')
        assert site.site_state().mode == 'fixed'  # type: ignore[union-attr]
        site.wait_for(lambda: at_work(site), SETTLE_S, 'the chosen mode at work again')
        assert mark.read_text() == 'x\n', 'exactly one reboot'
        code, _ = site.end()
        assert code == 0
        assert mark.read_text() == 'x\n'
