"""The test controller with a real power manager on real DDS; site, battery and emergency stop are played."""

from __future__ import annotations

import json
from functools import partial
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest
from std_msgs.msg import UInt64
from std_srvs.srv import SetBool, Trigger

from bess import msg
from bess.srv import GetTestReport, RunTest, SetMode
from bess_control.power_manager_node import PowerManagerNode
from bess_control.site_state import SiteState
from bess_control.system.controller_node import TestControllerNode as Controller
from bess_core import qos
from bess_core.convert import stamp

RUNNING, DONE, ABORTED = 1, 2, 3


class Site:
    """A battery that follows its setpoints at once, and a site that obeys."""

    def __init__(self, graph: Any) -> None:
        self.graph, peer = graph, graph.peer
        self.power, self.room, self.quality = 0.0, 3000.0, 0
        self.state, self.mode, self.stopped, self.alive = SiteState.RUN, 'passive', False, 0
        self.orders: list[float] = []
        graph.ctx.site = SimpleNamespace(nodes=[
            SimpleNamespace(name=n, role=r, params=None) for n, r in
            (('passive', 'mode'), ('eco', 'mode'), ('emergency_stop', 'emergency_stop'))])
        self.manager = graph.add(PowerManagerNode, 'power_manager', {'battery': 'bat', 'tick_s': 0.05})
        self.node = graph.add(Controller, 'test', {'battery': 'bat', 'period': 0.05, 'transition_time': 2.0})
        peer.create_subscription(msg.PowerSetpoint, 'bat/setpoint', self._order, qos.SETPOINT)
        for name, state in (('start', SiteState.RUN), ('stop', SiteState.SLEEP)):
            peer.create_service(Trigger, f'site/{name}', partial(self._trigger, state))
        peer.create_service(SetBool, 'site/set_maintenance', self._maintenance)
        peer.create_service(SetMode, 'site/set_mode', self._set_mode)
        self._status = peer.create_publisher(msg.BatteryStatus, 'bat/status', qos.MEASUREMENT)
        self._system = peer.create_publisher(msg.SystemState, 'system_state', qos.STATE)
        self._emergency = peer.create_publisher(msg.EmergencyStop, 'emergency_stop', qos.STATE)
        self._alive = peer.create_publisher(UInt64, 'test/alive', qos.EVENT)
        graph.up(self.manager, self.node)
        self.states = graph.listen(msg.TestState, 'test/state', qos.STATE)
        self.tell()
        graph.ticker.every(0.05, lambda _: self._publish())
        graph.wait(lambda: self.manager._battery.power == 0.0 and self.node._stopped == ''
                   and self.node._system.state == 1 and self.manager._state is SiteState.RUN
                   and self.node._battery.power == 0.0, 'all is heard')

    def tell(self) -> None:
        self._system.publish(msg.SystemState(state=int(self.state), mode=self.mode, cause='played'))
        self._emergency.publish(msg.EmergencyStop(active=self.stopped, cause='button'))

    def _publish(self) -> None:
        m = msg.BatteryStatus(power=self.power, quality=self.quality, soc=0.5, voltage=51.2, mode=2, contactor=2,
                              max_charge_power=self.room, max_discharge_power=self.room)
        m.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._status.publish(m)
        if self.alive:
            self._alive.publish(UInt64(data=self.alive))

    def _order(self, m: msg.PowerSetpoint) -> None:
        self.orders.append(m.power)
        self.power = m.power

    def _trigger(self, state: SiteState, _: Any, response: Any) -> Any:
        response.success, self.state = True, state
        self.tell()
        return response

    def _maintenance(self, request: Any, response: Any) -> Any:
        response.success, self.state = True, SiteState.MAINTENANCE if request.data else SiteState.SLEEP
        self.tell()
        return response

    def _set_mode(self, request: Any, response: Any) -> Any:
        response.accepted, self.mode = True, request.mode.replace('none', '')
        self.tell()
        return response

    def run(self, *steps: str, alive: float = 2.0, by: str = 'eva') -> Any:
        answer = self.graph.call(RunTest, 'test/run', RunTest.Request(steps=list(steps), alive=alive, by=by))
        self.alive = answer.id
        return answer

    def end(self) -> msg.TestState:
        self.graph.wait(lambda: self.states and self.states[-1].id == self.alive and self.states[-1].state != RUNNING,
                        lambda: f'end of the test: {self.states[-1:]}')
        return self.states[-1]

    def rest(self) -> None:
        self.graph.wait(lambda: self.power == 0.0, 'battery back at 0 W')


@pytest.fixture
def site(graph: Any) -> Site:
    return Site(graph)


def test_steps_and_a_ramp_are_followed_measured_and_given_back(site: Site, graph: Any) -> None:
    assert site.run('hold:1000:0.6', 'ramp:-500:0.6').accepted
    m = site.end()
    assert (m.state, m.message, [s.result for s in m.steps]) == (DONE, 'done', ['ok', 'ok'])
    assert m.steps[0].settling < 0.5 and m.steps[0].measured == 1000.0 and m.steps[0].overshoot == 0.0
    assert 1000.0 in site.orders and min(site.orders) >= -500.0
    site.rest()
    report = graph.call(GetTestReport, 'test/report')
    assert report.accepted and len(report.time) == len(report.measured) == len(report.asked) > 10
    saved = json.loads((graph.ctx.state_dir / 'tests' / '000001.json').read_text())
    assert saved['by'] == 'eva' and len(saved['steps']) == 2 and saved['samples']['measured']
    assert not graph.call(GetTestReport, 'test/report', GetTestReport.Request(id=9)).accepted


def test_refused_with_the_reason_and_nothing_moves(site: Site, graph: Any) -> None:
    for steps, fields, said in ((['hold:3001:1'], {}, 'only 3000 W'), (['hop'], {}, 'step 1'), ([], {}, 'no steps'),
                                (['hold:1:1'], {'by': ' '}, 'who tests'), (['hold:1:1'], {'alive': 0.0}, 'alive'),
                                (['hold:1:1'], {'alive': nan}, 'alive'), (['hold:1:1'], {'alive': 1e9}, 'alive'),
                                (['mode:dance'], {}, 'no such mode')):
        answer = site.run(*steps, **fields)
        assert not answer.accepted and said in answer.message and answer.id == 0
    site.state = SiteState.MAINTENANCE
    site.tell()
    graph.wait(lambda: site.node._system.state == 3, 'maintenance heard')
    assert 'MAINTENANCE' in site.run('hold:100:1').message
    site.state, site.stopped = SiteState.RUN, True
    site.tell()
    graph.wait(lambda: site.node._stopped and site.node._system.state == 1, 'emergency stop heard')
    assert 'emergency stop: button' in site.run('hold:100:1').message
    assert not any(site.orders)


@pytest.mark.parametrize(('what', 'said'), [
    ('client', 'client was silent'), ('maintenance', 'MAINTENANCE'), ('emergency', 'emergency stop'),
    ('battery', 'is not measured'), ('user', 'stopped by its user'), ('switched off', 'switched off')])
def test_ends_safely(site: Site, graph: Any, what: str, said: str) -> None:
    assert site.run('hold:1000:60', alive=0.5).accepted
    number = site.alive
    graph.wait(lambda: site.power == 1000.0, 'power flows')
    assert 'runs' in graph.call(RunTest, 'test/run', RunTest.Request(steps=['stop'], alive=1.0, by='a')).message
    if what == 'client':
        site.alive = 0
    elif what == 'maintenance':
        site.state = SiteState.MAINTENANCE
    elif what == 'emergency':
        site.stopped = True
    elif what == 'battery':
        site.quality = 2
    elif what == 'user':
        assert graph.call(Trigger, 'test/stop').success
    else:
        site.node.trigger_deactivate()
    site.tell()
    graph.wait(lambda: site.states[-1].state == ABORTED and said in site.states[-1].message, said)
    assert site.states[-1].id == number
    site.rest()


def test_a_limit_that_comes_later_wins_and_is_reported(site: Site, graph: Any) -> None:
    assert site.run('hold:1000:1').accepted
    site.room = 400.0
    m = site.end()
    assert m.steps[0].result == 'limited' and m.steps[0].granted == 400.0 and 'limit' in m.steps[0].reason


def test_transitions_are_timed_and_the_mode_comes_back(site: Site, graph: Any) -> None:
    assert site.run('mode:eco', 'stop', 'start', 'maintenance', 'release', 'start').accepted
    m = site.end()
    assert (m.state, {s.result for s in m.steps}) == (DONE, {'ok'})
    assert all(s.settling < 2.0 for s in m.steps)
    graph.wait(lambda: site.mode == 'passive', 'mode from before')


def test_a_transition_that_does_not_come_fails(site: Site, graph: Any) -> None:
    site._trigger = None  # type: ignore[assignment,method-assign]
    site.tell = lambda: None  # type: ignore[method-assign]  # the site no longer says anything
    assert site.run('stop', 'start').accepted
    m = site.end()
    assert m.state == ABORTED and m.steps[0].result == 'failed' and 'not within 2 s' in m.steps[0].reason
    assert m.steps[1].result == ''
