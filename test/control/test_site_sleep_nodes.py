"""Site node on real DDS: sleep and waking by itself, by timer and service; transitions as events and in the journal."""

from __future__ import annotations

import json
import sys
from typing import Any

from std_srvs.srv import SetBool, Trigger
from test_control_nodes import RUN, SiteBench

from bess.msg import BatteryStatus, SystemState
from bess.srv import SleepTimer
from bess_core import qos


def running(graph: Any, **params: Any) -> tuple[SiteBench, Any, list[Any]]:
    bench = SiteBench(graph, **params)
    graph.up(bench.site)
    events = graph.listen(SystemState, 'site_transitions', qos.EVENT)
    bench.wait(RUN, {'conv', 'mode_a'}, 'runs by itself')
    return bench, graph.peer.create_publisher(BatteryStatus, 'bat/status', qos.MEASUREMENT), events


def test_idle_site_sleeps_and_a_demand_wakes_it(graph: Any, tmp_path: Any) -> None:
    switched: list[bool] = []

    def on_switch(request: Any, response: Any) -> Any:
        switched.append(request.data)
        response.success = True
        return response

    graph.peer.create_service(SetBool, 'relay/set', on_switch)
    bench, battery, events = running(graph, sleep_after=1.0, idle_batteries=['bat'], sleep_switch='relay/set')
    bench.wait(SystemState.SLEEP, set(), 'asleep')
    assert bench.states[-1].cause == 'idle for 1 s'
    graph.wait(lambda: switched == [True], 'batteries may sleep')
    graph.wait(lambda: battery.get_subscription_count() > 0, 'the site listens')
    nothing = float('nan')
    battery.publish(BatteryStatus(setpoint=nothing, power=20.0, next_power=nothing))
    graph.settle(0.3)
    assert bench.state == SystemState.SLEEP, 'what is below idle_power wakes nobody'
    battery.publish(BatteryStatus(setpoint=-800.0, power=0.0, next_power=nothing, setpoint_source='schedule:3'))
    bench.wait(RUN, {'conv', 'mode_a'}, 'awake')
    woken = next(s for s in bench.states if s.cause.startswith('demand'))
    assert woken.cause == 'demand: schedule:3 asks discharge 800 W'
    graph.wait(lambda: switched[:2] == [True, False], 'and the batteries too')
    graph.wait(lambda: [e.state for e in events][-2:] != [], 'events')
    lines = [json.loads(line) for line in (tmp_path / 'site_states.jsonl').read_text().splitlines()]
    assert [r['state'] for r in lines][:3] == ['RUN', 'SLEEP', 'RUN']
    assert lines[1]['cause'] == 'idle for 1 s'
    assert SystemState.SLEEP in [e.state for e in events]


def test_sleep_timer_service(graph: Any) -> None:
    bench, _, _ = running(graph)
    answer = graph.call(SleepTimer, 'site/sleep', SleepTimer.Request(duration=0.5))
    assert answer.accepted
    bench.wait(SystemState.SLEEP, set(), 'asleep')
    bench.wait(RUN, {'conv', 'mode_a'}, 'awake by itself')
    assert not graph.call(SleepTimer, 'site/sleep', SleepTimer.Request(duration=-1.0)).accepted
    graph.call(SetBool, 'site/set_maintenance', SetBool.Request(data=True))
    assert not graph.call(SleepTimer, 'site/sleep', SleepTimer.Request(duration=1.0)).accepted


def test_restart_and_reboot(graph: Any, tmp_path: Any) -> None:
    mark = tmp_path / 'rebooted'
    bench, _, events = running(graph, leave_delay=0.3, reboot_command=[
        sys.executable, '-c', f'open({str(mark)!r}, "w").close()'])
    assert graph.call(Trigger, 'site/reboot').success
    bench.wait(SystemState.REBOOT, set(), 'all at rest')
    graph.wait(mark.exists, 'the command')
    assert not graph.call(Trigger, 'site/start').success
    assert not graph.call(Trigger, 'site/restart').success
    graph.wait(lambda: events and events[-1].state == SystemState.REBOOT, 'event')
    assert events[-1].cause == 'reboot by operator'


def test_reboot_without_a_command_is_refused(graph: Any) -> None:
    bench, _, events = running(graph)
    assert not graph.call(Trigger, 'site/reboot').success
    assert bench.state == RUN
    assert graph.call(Trigger, 'site/restart').success
    bench.wait(SystemState.RESTART, set(), 'all at rest, the supervisor does the rest')
