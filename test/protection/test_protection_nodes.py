"""Fault manager, event log, emergency stop, watchdog and monitors on real DDS."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from std_msgs.msg import String
from std_srvs.srv import Trigger

from bess.msg import (
    BatteryStatus,
    EmergencyStop,
    Event,
    FaultOverview,
    IoStatus,
    PowerProposal,
    PowerSetpoint,
    SystemState,
)
from bess.srv import AcknowledgeFault, ClearFault, QueryEvents, ResetEmergencyStop, TriggerEmergencyStop
from bess_control.protection.emergency_node import EmergencyStopNode
from bess_control.protection.event_log_node import EventLogNode
from bess_control.protection.fault_manager_node import FaultManagerNode
from bess_control.protection.monitors_node import MonitorsNode
from bess_control.protection.watchdog_node import WatchdogNode
from bess_core import emergency, qos
from bess_core.convert import battery_to_msg, stamp
from bess_core.node import BessNode
from bess_core.site import load
from bess_core.values import BatteryReading, Quality, Severity
from bess_drivers.driver_node import node_type

sys.path.append(str(Path(__file__).parents[1] / 'drivers'))
from fake_device import WORLD, FakeConverter, World  # noqa: E402


@dataclass(frozen=True)
class NoParams:
    """None."""


class Plain(BessNode):
    """A node with faults."""

    Params = NoParams
    role = 'battery'


# -- emergency stop ----------------------------------------------------------------------------------


class Wire:
    """An emergency stop node and a converter driver whose device notes what is written."""

    def __init__(self, graph: Any, **params: Any) -> None:
        self.graph = graph
        self.world = WORLD['w'] = World()
        self.world.now = graph.clock.now
        self.stop = graph.add(EmergencyStopNode, 'emergency_stop', params)
        self.driver = graph.add(node_type(FakeConverter), 'inv', {'address': 'w', 'period': 0.05})
        graph.up(self.stop, self.driver)
        self.states = graph.listen(EmergencyStop, 'emergency_stop', qos.STATE)
        self._setpoints = graph.publisher(PowerSetpoint, 'inv/setpoint', qos.SETPOINT)
        self._sequence = 0

    def order(self, power: float = 1000.0, lease: float = 5.0) -> None:
        self._sequence += 1
        message = PowerSetpoint(power=power, reactive_power=nan, lease=lease, source='manager', sequence=self._sequence)
        message.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._setpoints.publish(message)

    @property
    def last(self) -> float:
        return self.world.writes[-1][0] if self.world.writes else nan

    def runs(self) -> None:
        def asked() -> bool:
            self.order()
            return self.last == 1000.0

        self.graph.wait(asked, 'power flows')

    def token(self) -> str:
        return (self.graph.ctx.state_dir / emergency.TOKEN).read_text()


def test_pressed_by_service_it_is_zero_on_the_wire_and_only_the_token_lets_go(graph: Any) -> None:
    wire = Wire(graph)
    wire.runs()
    answer = graph.call(TriggerEmergencyStop, 'emergency_stop/trigger', TriggerEmergencyStop.Request(cause='smoke'))
    assert answer.accepted
    graph.wait(lambda: wire.last == 0.0, 'zero on the wire', 1.0)
    written = len(wire.world.writes)
    for _ in range(4):
        wire.order()
        graph.settle(0.06)
    assert len(wire.world.writes) == written, 'no order passes'
    assert wire.states[-1].cause == 'smoke (by service)'
    assert wire.stop.faults.get('emergency_stop.active').severity is Severity.CRITICAL
    assert not graph.call(ClearFault, 'emergency_stop/clear_fault', ClearFault.Request()).accepted
    for token, by in (('', 'eva'), ('guess', 'eva'), (wire.token(), '')):
        answer = graph.call(ResetEmergencyStop, 'emergency_stop/reset', ResetEmergencyStop.Request(token=token, by=by))
        assert not answer.accepted
    graph.settle(0.1)
    assert wire.last == 0.0
    answer = graph.call(ResetEmergencyStop, 'emergency_stop/reset',
                        ResetEmergencyStop.Request(token=wire.token(), by='eva'))
    assert answer.accepted, answer.message
    assert wire.stop.faults.records == []
    wire.runs()


def test_the_token_is_for_its_owner_only_and_new_at_each_start(graph: Any) -> None:
    node = graph.add(EmergencyStopNode, 'emergency_stop')
    graph.up(node)
    file = graph.ctx.state_dir / emergency.TOKEN
    first = file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert len(first.strip()) == 32
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.trigger_configure()
    assert file.read_text() != first


def test_it_survives_a_restart_of_everything(graph: Any) -> None:
    wire = Wire(graph)
    wire.runs()
    graph.publisher(String, 'emergency_stop/trigger_topic', qos.EVENT).publish(String(data='button on the wall'))
    graph.wait(lambda: wire.last == 0.0, 'zero')
    for node in (wire.stop, wire.driver):
        node.trigger_deactivate()
        node.trigger_cleanup()
    wire.driver.trigger_configure()  # its process is first; the emergency stop node is not there yet
    wire.driver.trigger_activate()
    graph.settle(0.15)
    written = len(wire.world.writes)
    for _ in range(3):
        wire.order()
        graph.settle(0.06)
    assert [w[0] for w in wire.world.writes[written:] if w[0] != 0.0] == []
    graph.up(wire.stop)
    graph.wait(lambda: wire.states[-1].active, 'still active')
    assert wire.states[-1].cause == 'button on the wall'


def test_an_input_stops_fail_safe_and_a_reset_input_releases(graph: Any) -> None:
    io = graph.peer.create_publisher(IoStatus, 'io/status', qos.MEASUREMENT)
    wire = Wire(graph, input_io='io', reset_name='reset', reset_debounce=0.05, input_max_age=0.4)
    inputs = {'emergency_stop': 1, 'reset': 0}
    silent = False

    def publish(_: Any) -> None:
        if not silent:
            m = IoStatus(quality=0, digital_input_names=list(inputs), digital_inputs=list(inputs.values()))
            m.header.stamp = stamp(graph.clock, graph.clock.now())
            io.publish(m)

    graph.ticker.every(0.03, publish)
    wire.runs()
    inputs['emergency_stop'] = 0  # the normally closed circuit opens
    graph.wait(lambda: wire.last == 0.0, 'zero', 1.0)
    assert wire.states[-1].input_pressed
    refused = graph.call(ResetEmergencyStop, 'emergency_stop/reset',
                         ResetEmergencyStop.Request(token=wire.token(), by='eva'))
    assert 'still pressed' in refused.message
    inputs['emergency_stop'] = 1
    graph.settle(0.2)
    assert wire.states[-1].active, 'the released button alone lets nothing go'
    inputs['reset'] = 1
    graph.wait(lambda: not wire.states[-1].active, 'reset by the input')
    inputs['reset'] = 0
    wire.runs()
    silent = True
    graph.wait(lambda: wire.last == 0.0, 'a silent module stops', 3.0)
    assert wire.states[-1].cause == 'the input cannot be read'


# -- fault manager -----------------------------------------------------------------------------------


class Managed:
    """A fault manager over fakes of power manager, site and battery."""

    def __init__(self, graph: Any, rules: list[Any], **params: Any) -> None:
        self.graph, self.calls = graph, []
        self.stopped = graph.add(EmergencyStopNode, 'emergency_stop')
        self.node = graph.add(FaultManagerNode, 'fault_manager', {
            'rules': rules, 'battery': 'bat', 'manager': 'power_manager', 'site': 'site', 'period': 0.05,
            'emergency_stop': 'emergency_stop', **params})
        self.source = graph.add(Plain, 'bms')
        for name in ('power_manager', 'site'):
            graph.peer.create_service(Trigger, f'{name}/stop', lambda _, r, n=name: self._called(n, r))
        self.proposals: list[PowerProposal] = []
        graph.peer.create_subscription(PowerProposal, 'proposals', self.proposals.append, qos.EVENT)
        self._state = graph.peer.create_publisher(SystemState, 'system_state', qos.STATE)
        self._battery = graph.peer.create_publisher(BatteryStatus, 'bat/status', qos.MEASUREMENT)
        graph.up(self.stopped, self.node, self.source)
        self.overviews = graph.listen(FaultOverview, 'fault_manager/overview', qos.STATE)
        self.events = graph.listen(Event, 'events', qos.EVENT)
        self._state.publish(SystemState(state=SystemState.RUN))

    def _called(self, name: str, response: Any) -> Any:
        self.calls.append(name)
        response.success = True
        return response

    def publish_battery(self) -> None:
        now = self.graph.clock.now()
        self._battery.publish(battery_to_msg(BatteryReading(
            time=now, newest=now, quality=Quality.OK, max_charge_power=1000.0, max_discharge_power=2000.0),
            self.graph.clock))


def test_a_fault_derates_and_its_end_ends_that(graph: Any) -> None:
    m = Managed(graph, [{'fault': 'test.warm', 'action': 'derate', 'derate': 0.25}])
    m.source.raise_fault('test.warm', Severity.WARNING, '48 degC')

    def derated() -> bool:
        m.publish_battery()
        return bool(m.proposals) and m.proposals[-1].max_power == 250.0

    graph.wait(derated, 'bounds')
    p = m.proposals[-1]
    assert (p.min_power, p.battery, p.priority) == (-500.0, 'bat', 250)
    assert p.preferred_power != p.preferred_power, 'bounds only'
    assert p.reason == '25% of the limits: bms/test.warm: 48 degC'
    m.source.clear_fault('test.warm')
    graph.wait(lambda: m.overviews[-1].action == 'none', 'over')
    count = len(m.proposals)
    graph.settle(0.2)
    assert len(m.proposals) <= count + 1
    assert m.calls == []


def test_sleep_stop_and_emergency_stop_reach_who_acts(graph: Any) -> None:
    m = Managed(graph, [{'fault': 'test.sleep', 'action': 'sleep'}, {'fault': 'test.smoke', 'action': 'emergency_stop'},
                        {'severity': 'critical', 'action': 'stop'}])
    m.source.raise_fault('test.sleep', Severity.ERROR, 'tired')
    graph.wait(lambda: m.calls == ['site'], lambda: str(m.calls))
    m.calls.clear()
    m.source.raise_fault('test.danger', Severity.CRITICAL, 'hot')
    graph.wait(lambda: 'power_manager' in m.calls, 'stop')
    m.source.raise_fault('test.smoke', Severity.WARNING, 'smoke')
    graph.wait(lambda: m.stopped._machine.stop.active, 'emergency stop')
    assert m.stopped._machine.stop.cause == 'bms/test.smoke: smoke (by fault_manager)'


def test_an_action_that_cannot_be_taken_is_a_critical_fault(graph: Any) -> None:
    node = graph.add(FaultManagerNode, 'fault_manager', {'manager': 'power_manager', 'period': 0.05})
    source = graph.add(Plain, 'bms')
    graph.up(node, source)
    source.raise_fault('test.danger', Severity.CRITICAL, 'hot')
    graph.wait(lambda: node.faults.get('fault_manager.action'), 'fault')
    assert 'power_manager/stop is not there' in node.faults.get('fault_manager.action').text


def test_acknowledged_with_page_and_kept(graph: Any) -> None:
    m = Managed(graph, [{'action': 'none'}])
    m.source.raise_fault('comm.timeout', Severity.ERROR, 'no answer')
    graph.wait(lambda: m.overviews and m.overviews[-1].entries, 'listed')
    assert m.overviews[-1].entries[0].page == 'docs/faults.md#comm-timeout'
    refused = graph.call(AcknowledgeFault, 'fault_manager/acknowledge',
                         AcknowledgeFault.Request(source='bms', id='nonsense', by='eva'))
    assert not refused.accepted
    assert graph.call(AcknowledgeFault, 'fault_manager/acknowledge',
                      AcknowledgeFault.Request(source='bms', id='comm.timeout', by='eva')).accepted
    graph.wait(lambda: m.overviews[-1].entries[0].acknowledged, 'acknowledged')
    m.node.trigger_deactivate()
    m.node.trigger_cleanup()
    m.node.trigger_configure()
    graph.wait(lambda: m.node._verdict.entries, 'heard again')
    assert m.node._verdict.entries[0].acknowledged.by == 'eva'
    changes = [(e.source, e.name, e.change) for e in m.events]
    assert ('bms', 'comm.timeout', 'raised') in changes
    assert ('bms', 'comm.timeout', 'acknowledged') in changes


# -- event log ---------------------------------------------------------------------------------------


def test_events_are_kept_over_a_restart_and_found(graph: Any) -> None:
    node = graph.add(EventLogNode, 'event_log')
    graph.up(node)
    out = graph.publisher(Event, 'events', qos.EVENT)
    for k in range(5):
        event = Event(severity=k % 3, kind='fault' if k % 2 else 'test', source=f'bms_{"ab"[k % 2]}', name='x',
                      change='raised', text=f'number {k}')
        event.header.stamp.sec = 1000 + k
        out.publish(event)
    state = graph.publisher(SystemState, 'system_state', qos.STATE)
    state.publish(SystemState(state=SystemState.RUN, mode='a', cause='why not'))
    graph.wait(lambda: node._seen is not None, 'the first state')
    state.publish(SystemState(state=SystemState.RUN, mode='b', cause='why not'))

    def ask(**fields: Any) -> list[str]:
        answer = graph.call(QueryEvents, 'event_log/query', QueryEvents.Request(**fields))
        assert answer.accepted, answer.message
        return [e.text for e in answer.events]

    graph.wait(lambda: node._seen is not None and node._seen.mode == 'b' and node.progress == 5, 'all heard')
    assert ask(kind='mode') == ['mode b after a']
    assert ask(kind='state') == ['why not']
    assert ask(source='bms_a') == ['number 0', 'number 2', 'number 4']
    assert ask(source='bms_*', min_severity=2) == ['number 2']
    assert ask(source='bms_*', limit=2) == ['number 3', 'number 4']
    assert ask(text='NUMBER 3') == ['number 3']
    span = QueryEvents.Request()
    span.start.sec, span.end.sec = 1001, 1003
    assert [e.text for e in graph.call(QueryEvents, 'event_log/query', span).events] == ['number 1', 'number 2']
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.trigger_configure()
    assert ask(source='bms_*')[0] == 'number 0'


def test_a_damaged_file_is_set_aside(graph: Any) -> None:
    graph.ctx.state_dir.mkdir(exist_ok=True)
    (graph.ctx.state_dir / 'events.sqlite').write_bytes(b'no data base at all' * 100)
    node = graph.add(EventLogNode, 'event_log')
    graph.up(node)
    assert graph.call(QueryEvents, 'event_log/query').accepted
    assert (graph.ctx.state_dir / 'events.damaged').exists()


def test_a_disk_that_refuses_is_a_fault_and_a_refused_query(graph: Any) -> None:
    (graph.ctx.state_dir / 'events.sqlite').mkdir(parents=True)
    node = graph.add(EventLogNode, 'event_log')
    graph.up(node)
    answer = graph.call(QueryEvents, 'event_log/query')
    assert not answer.accepted
    graph.wait(lambda: node.faults.get('event_log.write'), 'fault')
    (graph.ctx.state_dir / 'events.sqlite').rmdir()
    assert graph.call(QueryEvents, 'event_log/query').accepted
    graph.wait(lambda: not node.faults.get('event_log.write'), 'well again')


# -- watchdog ----------------------------------------------------------------------------------------


class Worker(Plain):
    """A node whose progress the test holds."""

    stuck = False

    def on_bess_configure(self) -> None:
        """Work."""
        self.every(0.05, self._work)

    def _work(self, _: Any) -> None:
        if not self.stuck:
            self.progress += 1


def test_the_watchdog_is_fed_only_while_the_watched_node_works(graph: Any, tmp_path: Path) -> None:
    fifo = tmp_path / 'watchdog'
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    worker = graph.add(Worker, 'worker')
    node = graph.add(WatchdogNode, 'watchdog', {
        'device': str(fifo), 'nodes': ['worker'], 'timeout': 0.4, 'period': 0.05, 'grace': 0.0})
    graph.up(worker, node)

    got = bytearray()

    def taken() -> bytes:
        try:
            got.extend(os.read(reader, 1000))
        except BlockingIOError:
            pass
        return bytes(got)

    graph.wait(lambda: b'1' in taken(), 'fed')
    worker.stuck = True
    graph.wait(lambda: node.faults.get('watchdog.starved'), 'starved')
    assert 'worker makes no progress' in node.faults.get('watchdog.starved').text
    taken()
    got.clear()
    graph.settle(0.3)
    assert taken() == b''
    worker.stuck = False
    graph.wait(lambda: b'1' in taken(), 'fed again')
    graph.wait(lambda: not node.faults.get('watchdog.starved'), 'healthy')
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert taken().endswith(b'V'), 'an orderly end disarms'
    got.clear()
    node.trigger_configure()
    worker.stuck = True
    graph.wait(lambda: node.why, 'starved')
    node.trigger_cleanup()
    assert b'V' not in taken(), 'a starved one is not disarmed'
    os.close(reader)


def test_the_watchdog_of_a_strato_pi(graph: Any, tmp_path: Path) -> None:
    files = {n: tmp_path / 'watchdog' / n for n in ('timeout', 'heartbeat', 'enabled')}
    files['timeout'].parent.mkdir()
    for file in files.values():
        file.write_text('')
    worker = graph.add(Worker, 'worker')
    node = graph.add(WatchdogNode, 'watchdog', {
        'device': f'strato_pi:{tmp_path}', 'nodes': ['worker'], 'timeout': 0.4, 'period': 0.05, 'grace': 0.0})
    graph.up(worker, node)
    assert (files['timeout'].read_text(), files['enabled'].read_text()) == ('15', '1')
    files['heartbeat'].write_text('')
    graph.wait(lambda: files['heartbeat'].read_text() == 'F', 'fed')
    files['heartbeat'].unlink()
    graph.wait(lambda: node.faults.get('watchdog.device'), 'a board that is gone')
    files['heartbeat'].write_text('')
    graph.wait(lambda: not node.faults.get('watchdog.device'), 'and back')
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert files['enabled'].read_text() == '0', 'an orderly end disarms'
    other = graph.add(WatchdogNode, 'other', {'device': 'nosuch', 'nodes': ['worker']})
    other.trigger_configure()
    assert 'nosuch' in other.faults.get('node.configure').text


def test_a_missing_watchdog_device_fails_to_configure(graph: Any, tmp_path: Path) -> None:
    node = graph.add(WatchdogNode, 'watchdog', {'device': str(tmp_path / 'none'), 'nodes': ['x']})
    assert node.trigger_configure().name == 'FAILURE'


@pytest.mark.parametrize('bad', [{}, {'nodes': ['x'], 'period': 6.0, 'hardware_timeout': 15}])
def test_watchdog_parameters_that_cannot_be(bad: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which one is in the text
        WatchdogNode.Params(**bad)


# -- monitors ----------------------------------------------------------------------------------------


UNIT = """
site: {name: site}
nodes:
  bms: {type: jbd, address: "serial:/dev/null"}
  inv: {type: sunspec_inverter, address: "tcp://127.0.0.1:1", bms: bms}
  bat: {type: unit, bms: bms, converter: inv}
  alone: {type: jbd, address: "serial:/dev/null2"}
  monitors: {type: monitors, batteries: [bms, alone]}
"""


def test_a_bms_is_charged_when_its_unit_is_asked_to(graph: Any, tmp_path: Path) -> None:
    file = tmp_path / 'site.yaml'
    file.write_text(UNIT)
    graph.ctx.site = load(file, state=tmp_path)
    node = graph.add(MonitorsNode, 'monitors', {
        'batteries': ['bms', 'alone'], 'period': 0.05, 'temperature_file': '', 'checks': {
            'auto_charge': {'delay': 0.3}}})
    graph.up(node)
    outs = {n: graph.publisher(BatteryStatus, f'{n}/status', qos.MEASUREMENT) for n in ('bms', 'bat', 'alone')}
    reading = BatteryReading(quality=Quality.OK, voltage=52.0, current=18.0, power=936.0, soc=0.5, charge_full=100.0,
                             cell_voltage_min=3.2, cell_voltage_max=3.21)

    def active(asked: float) -> list[str]:
        now = graph.clock.now()
        for name, out in outs.items():
            out.publish(battery_to_msg(replace(reading, time=now, newest=now, setpoint=asked if name == 'bat' else nan),
                                       graph.clock))
        return [f.text for f in node.faults.active]

    until = graph.clock.now() + 0.8
    graph.wait(lambda: graph.clock.now() > until or active(1000.0), 'charged as asked')
    assert active(1000.0) == []
    graph.wait(lambda: active(nan) == ['bms: 936 W flow in, 0 W are asked for'], 'nobody asks the unit')


def test_monitors_raise_and_clear(graph: Any, tmp_path: Path) -> None:
    hot = tmp_path / 'temp'
    hot.write_text('91000\n')
    node = graph.add(MonitorsNode, 'monitors', {
        'batteries': ['bms'], 'period': 0.05, 'temperature_file': str(hot),
        'checks': {'cell_imbalance': {'delay': 0.1}, 'controller_temperature': {'delay': 0.1},
                   'inactive_bms': {'threshold': 0.5}}})
    reading = BatteryReading(quality=Quality.OK, voltage=52.0, current=0.0, power=0.0, soc=0.5, charge_full=100.0,
                             cell_voltage_min=3.2, cell_voltage_max=3.5)
    graph.up(node)
    out = graph.publisher(BatteryStatus, 'bms/status', qos.MEASUREMENT)

    def active(reading: BatteryReading | None) -> set[str]:
        if reading is not None:
            now = graph.clock.now()
            out.publish(battery_to_msg(replace(reading, time=now, newest=now), graph.clock))
        return {f.id for f in node.faults.active}

    graph.wait(lambda: active(reading) == {'monitor.cell_imbalance', 'monitor.controller_temperature'}, 'raised')
    hot.write_text('40000\n')
    well = replace(reading, cell_voltage_max=3.21)
    graph.wait(lambda: active(well) == set(), 'cleared')
    graph.wait(lambda: active(None) == {'monitor.inactive_bms'}, 'silent')
