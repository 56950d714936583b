"""Power manager, mode and site node on real DDS, with small fakes for battery, meter and the rest of the site."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import isnan, nan
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle_msgs.msg import State
from std_srvs.srv import SetBool, Trigger

from bess.msg import BatteryStatus, DecisionTrace, MeterStatus, PowerProposal, PowerSetpoint, SystemState
from bess.srv import ClearFault, SetMode
from bess_control.mode_node import node_type
from bess_control.modes.self_consumption import SelfConsumption
from bess_control.power_manager_node import PowerManagerNode
from bess_control.site_node import SiteNode
from bess_core import qos
from bess_core.convert import battery_to_msg, meter_to_msg, stamp
from bess_core.node import BessNode
from bess_core.values import BatteryReading, Contactor, MeterReading, Mode, Quality, Severity

BATTERY = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0, power=0.0, soc=0.5,
    energy=2500.0, energy_full=5000.0, max_charge_power=2000.0, max_discharge_power=2000.0)
RUN = SystemState.RUN


class Plant:
    """A battery `bat` that follows, a meter `grid`, the site's state, and what the manager says."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.battery = BATTERY
        self.load = 0.0  # W
        self.sequence = 0
        self.silent: set[str] = set()
        peer = graph.peer
        self._battery = peer.create_publisher(BatteryStatus, 'bat/status', qos.MEASUREMENT)
        self._meter = peer.create_publisher(MeterStatus, 'grid/status', qos.MEASUREMENT)
        self._state = peer.create_publisher(SystemState, 'system_state', qos.STATE)
        self._proposals = peer.create_publisher(PowerProposal, 'proposals', qos.EVENT)
        self.orders: list[tuple[float, float]] = []
        self.proposals: list[PowerProposal] = []
        self.traces: list[DecisionTrace] = []
        peer.create_subscription(PowerSetpoint, 'bat/setpoint', self._on_setpoint, qos.SETPOINT)
        peer.create_subscription(PowerProposal, 'proposals', self.proposals.append, qos.EVENT)
        peer.create_subscription(DecisionTrace, 'power_manager/trace', self.traces.append, qos.EVENT)
        graph.ticker.every(0.05, lambda _: self.publish())

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        self.orders.append((self.graph.clock.now(), message.power))
        self.battery = replace(self.battery, power=message.power)

    def publish(self) -> None:
        now = self.graph.clock.now()
        if 'battery' not in self.silent:
            self._battery.publish(battery_to_msg(replace(self.battery, time=now, newest=now), self.graph.clock))
        if 'meter' not in self.silent:
            self.sequence += 1
            self._meter.publish(meter_to_msg(MeterReading(
                time=now, sequence=self.sequence, quality=Quality.OK,
                active_power=self.load + self.battery.power), self.graph.clock))

    def state(self, state: int, cause: str = 'because', again: bool = False) -> None:
        """A state that is entered now, or (`again`) was before and is only told again."""
        if not again:
            self.since = stamp(self.graph.clock, self.graph.clock.now())
        message = SystemState(state=state, cause=cause)
        message.header.stamp = self.since
        self._state.publish(message)

    def propose(self, power: float, source: str = 'mode', lease: float = 5.0, **more: Any) -> None:
        values = {'min_power': float('-inf'), 'max_power': float('inf'), 'preferred_reactive_power': nan,
                  'priority': 100, 'reason': 'for a test', **more}
        message = PowerProposal(source=source, battery='bat', preferred_power=power, lease=lease, **values)
        message.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._proposals.publish(message)

    @property
    def power(self) -> float:
        return self.orders[-1][1] if self.orders else nan


# -- power manager -----------------------------------------------------------------------------------


def manager(graph: Any, **params: Any) -> tuple[Plant, Any]:
    """A running manager in a site that runs, with a fresh battery."""
    plant = Plant(graph)
    node = graph.add(PowerManagerNode, 'power_manager', {
        'battery': 'bat', 'meter': 'grid', 'tick_s': 0.05, 'ramp_rate': 1e12, **params})
    graph.up(node)
    graph.wait(lambda: plant._proposals.get_subscription_count() >= 2 and plant._battery.get_subscription_count()
               and plant._state.get_subscription_count(), 'the manager listens')
    plant.state(RUN)
    graph.wait(lambda: plant.traces and plant.traces[-1].grid_power == 0.0 and not isnan(plant.traces[-1].measured)
               and plant.traces[-1].text.startswith('nobody asks, at'), 'it runs and sees battery and meter')
    return plant, node


def test_a_proposal_becomes_a_setpoint_and_a_trace_with_reasons(graph: Any) -> None:
    plant, _ = manager(graph, max_charge_power=1500.0)
    plant.propose(3200.0)
    graph.wait(lambda: plant.power == 1500.0, 'order')
    graph.wait(lambda: plant.traces[-1].asked == 3200.0, 'trace')
    trace = plant.traces[-1]
    assert (trace.asked_by, trace.battery, trace.granted, trace.sent) == ('mode', 'bat', 1500.0, 1500.0)
    by_name = {s.name: s for s in trace.steps}
    assert by_name['battery limits'].after == 2000.0
    assert by_name['configured limit'].bound
    assert (by_name['configured limit'].before, by_name['configured limit'].after) == (2000.0, 1500.0)
    assert trace.text.startswith('asked 3.2 kW, limited to ')
    assert trace.text.endswith('then to 1.5 kW by configured limit: at most 1.5 kW')
    ticks = [t.tick for t in plant.traces]
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks))), 'every tick is traced'


def test_a_lease_of_a_proposal_that_ends_is_zero(graph: Any) -> None:
    plant, _ = manager(graph)
    plant.propose(800.0, lease=0.3)
    graph.wait(lambda: plant.power == 800.0, 'order')
    graph.wait(lambda: plant.power == 0.0, 'zero after the lease', 2.0)
    graph.settle(0.15)
    count = len(plant.orders)
    graph.settle(0.2)
    assert len(plant.orders) == count, 'while nobody asks the battery is left to its own schedule'


def test_reactive_power_alone_reaches_the_battery_and_goes_back_to_zero(graph: Any) -> None:
    plant, _ = manager(graph)
    sent: list[PowerSetpoint] = graph.listen(PowerSetpoint, 'bat/setpoint', qos.SETPOINT)
    plant.propose(nan, preferred_reactive_power=300.0, lease=0.4)
    graph.wait(lambda: sent and sent[-1].reactive_power == 300.0, 'reactive power without a wish for active power')
    graph.wait(lambda: sent[-1].reactive_power == 0.0, 'zero after the lease', 2.0)
    graph.settle(0.15)
    count = len(sent)
    graph.settle(0.2)
    assert len(sent) == count, 'and then the battery is left alone'


def test_higher_priority_bounds_lower(graph: Any) -> None:
    plant, _ = manager(graph)
    plant.propose(800.0)
    plant.propose(nan, source='limit', priority=200, max_power=300.0, reason='fuse')
    graph.wait(lambda: plant.power == 300.0, 'held to the limit')
    graph.wait(lambda: 'fuse' in plant.traces[-1].text, 'and the text says why')


def test_the_stop_service_is_zero_within_one_tick_until_the_site_runs_anew(graph: Any) -> None:
    plant, _ = manager(graph)
    plant.propose(800.0, lease=30.0)
    graph.wait(lambda: plant.power == 800.0, 'runs')
    answer = graph.call(Trigger, 'power_manager/stop')
    asked = graph.clock.now()
    assert answer.success
    graph.wait(lambda: plant.power == 0.0, 'zero', 2.0)
    first = next(at for at, power in plant.orders if at > asked - 0.1 and power == 0.0)
    assert first - asked < 0.05 + 0.05, 'within one tick'
    for _ in range(3):
        plant.propose(800.0, lease=30.0)
        graph.settle(0.06)
    assert plant.power == 0.0
    assert 'stop service' in plant.traces[-1].text
    plant.state(RUN, 'told again, with another mode', again=True)
    graph.settle(0.2)
    assert plant.power == 0.0, 'a RUN that is only told again starts nothing'
    plant.state(RUN)
    graph.wait(lambda: plant.power == 800.0, 'the site was started anew')


def test_power_flows_in_run_only(graph: Any) -> None:
    plant, _ = manager(graph)
    plant.propose(800.0, lease=30.0)
    for state in (SystemState.INIT, SystemState.SLEEP, SystemState.MAINTENANCE, SystemState.ERROR,
                  SystemState.REBOOT, SystemState.RESTART):
        graph.wait(lambda: plant.power == 800.0, 'runs')
        plant.state(state, f'the test wants {state}')
        graph.wait(lambda: plant.power == 0.0, f'zero in state {state}', 2.0)
        graph.wait(lambda s=state: f'the test wants {s}' in plant.traces[-1].text, 'and says why')
        plant.state(RUN)


def test_before_the_site_says_its_state_nothing_is_granted(graph: Any) -> None:
    plant = Plant(graph)
    node = graph.add(PowerManagerNode, 'power_manager', {'battery': 'bat', 'tick_s': 0.05})
    graph.up(node)
    graph.wait(lambda: plant._proposals.get_subscription_count() >= 2, 'it listens')
    plant.propose(800.0, lease=30.0)
    graph.wait(lambda: plant.traces and plant.traces[-1].asked == 800.0, 'asked')
    assert plant.traces[-1].granted == 0.0
    assert 'the site has not said its state yet' in plant.traces[-1].text
    assert all(power == 0.0 for _, power in plant.orders)


def test_bad_proposals_are_refused(graph: Any) -> None:
    plant, node = manager(graph)
    for bad in ({'power': 1.0, 'lease': -1.0}, {'power': float('inf')}, {'power': 1.0, 'source': ''},
                {'power': 1.0, 'min_power': 5.0, 'max_power': 4.0}, {'power': 1.0, 'lease': 1e9}):
        plant.propose(**bad)
    graph.settle(0.2)
    assert len(node._book) == 0
    assert all(power == 0.0 for _, power in plant.orders)


def test_a_stale_battery_is_granted_nothing(graph: Any) -> None:
    plant, _ = manager(graph, max_battery_age_s=0.2, battery_invalid_after_s=0.5)
    plant.propose(800.0, lease=30.0)
    graph.wait(lambda: plant.power == 800.0, 'runs')
    plant.silent = {'battery'}
    graph.wait(lambda: plant.power == 0.0, 'zero', 3.0)
    graph.wait(lambda: 'no valid reading' in plant.traces[-1].text, 'says why')


def test_a_lost_meter_blocks_where_a_grid_limit_is_set_and_is_a_fault(graph: Any) -> None:
    plant, node = manager(graph, import_limit=5000.0, max_meter_age_s=0.3)
    plant.propose(800.0, lease=30.0)
    graph.wait(lambda: plant.power == 800.0, 'runs')
    plant.silent = {'meter'}
    graph.wait(lambda: node.faults.get('meter.lost'), 'fault', 3.0)
    graph.wait(lambda: plant.power == 0.0, 'zero', 3.0)
    graph.wait(lambda: 'meter lost' in plant.traces[-1].text, 'says why')
    plant.silent = set()
    graph.wait(lambda: plant.power == 800.0 and node.faults.get('meter.lost') is None, 'back')


def test_deactivation_says_zero(graph: Any) -> None:
    plant, node = manager(graph)
    plant.propose(800.0, lease=30.0)
    graph.wait(lambda: plant.power == 800.0, 'runs')
    node.trigger_deactivate()
    graph.wait(lambda: plant.power == 0.0, 'zero', 1.0)
    graph.settle(0.2)
    count = len(plant.orders)
    graph.settle(0.2)
    assert len(plant.orders) == count


def test_the_tick_stays_on_its_grid(graph: Any) -> None:
    plant, node = manager(graph)
    count = len(plant.traces)
    start = graph.clock.now()
    graph.wait(lambda: len(plant.traces) >= count + 10, '10 ticks')
    assert graph.clock.now() - start == pytest.approx(0.5, abs=0.2)
    values = node.diagnostics()
    assert values['ticks'] >= 10
    assert {'late ticks', 'missed ticks'} <= values.keys()


# -- mode --------------------------------------------------------------------------------------------


def mode(graph: Any, **params: Any) -> tuple[Plant, Any]:
    plant = Plant(graph)
    node = graph.add(node_type(SelfConsumption), 'mode', {
        'battery': 'bat', 'meter': 'grid', 'period': 0.1, 'max_meter_age_s': 0.3, 'kp': 1000.0, **params})
    graph.up(node)
    return plant, node


def test_a_mode_answers_each_fresh_meter_sample(graph: Any) -> None:
    plant, _ = mode(graph)
    plant.load = 700.0
    graph.wait(lambda: plant.proposals and plant.proposals[-1].preferred_power == pytest.approx(-700.0), 'covers it')
    last = plant.proposals[-1]
    assert (last.source, last.battery, last.priority) == ('mode', 'bat', 100)
    assert last.reason.startswith('grid at')
    assert last.lease > 0.0
    count, samples = len(plant.proposals), plant.sequence
    graph.wait(lambda: plant.sequence >= samples + 10, 'ten samples')
    graph.settle(0.05)
    assert abs(len(plant.proposals) - count - (plant.sequence - samples)) <= 2, 'one step per sample'


def test_a_lost_meter_is_zero_with_the_reason_and_a_fault(graph: Any) -> None:
    plant, node = mode(graph)
    plant.load = 700.0
    graph.wait(lambda: plant.proposals and plant.proposals[-1].preferred_power < -100.0, 'runs')
    plant.silent = {'meter'}
    graph.wait(lambda: plant.proposals[-1].preferred_power == 0.0, 'zero', 3.0)
    assert plant.proposals[-1].reason.startswith('meter grid stale for ')
    graph.wait(lambda: node.faults.get('mode.input'), 'fault', 3.0)
    plant.silent = set()
    graph.wait(lambda: plant.proposals[-1].preferred_power < -100.0, 'back')
    graph.wait(lambda: node.faults.get('mode.input') is None, 'fault gone')


def test_a_mode_without_any_meter_says_so(graph: Any) -> None:
    plant = Plant(graph)
    plant.silent = {'meter', 'battery'}
    graph.up(graph.add(node_type(SelfConsumption), 'mode', {'battery': 'bat', 'meter': 'grid', 'period': 0.05}))
    graph.wait(lambda: plant.proposals, 'a proposal')
    assert (plant.proposals[-1].preferred_power, plant.proposals[-1].reason) == (0.0, 'meter grid has not been read')


def test_a_mode_that_is_switched_off_withdraws_and_is_silent(graph: Any) -> None:
    plant, _ = manager(graph)
    node = graph.add(node_type(SelfConsumption), 'mode', {'battery': 'bat', 'meter': 'grid', 'lease_s': 30.0})
    graph.up(node)
    plant.load = 700.0
    graph.wait(lambda: plant.power < -100.0, 'the battery covers the load')
    node.trigger_deactivate()
    graph.wait(lambda: plant.power == 0.0, 'withdrawn, long before its lease ends', 2.0)
    graph.wait(lambda: isnan(plant.traces[-1].asked), 'nobody asks')
    count = len(plant.proposals)
    graph.settle(0.3)
    assert len(plant.proposals) == count


# -- site --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoParams:
    """None."""


class Plain(BessNode):
    """A node of the site that does nothing."""

    Params = NoParams
    role = 'battery'


class Converter(Plain):
    """Driven by the site node."""

    role = 'converter'


class ModeStub(Plain):
    """Driven by the site node."""

    role = 'mode'


class SiteBench:
    """A site node, and the nodes it watches: a battery, a converter and two modes."""

    def __init__(self, graph: Any, other_process: bool = False, **params: Any) -> None:
        self.graph = graph
        kinds = {'bat': Plain, 'conv': Converter, 'mode_a': ModeStub, 'mode_b': ModeStub}
        nodes = [SimpleNamespace(name=n, role=c.role, required=True) for n, c in kinds.items()]
        nodes += [SimpleNamespace(name='extra', role='battery', required=False),
                  SimpleNamespace(name='site', role='site', required=True)]
        graph.ctx.site = SimpleNamespace(nodes=nodes)
        self.ctx = replace(graph.ctx, nodes={}) if other_process else graph.ctx
        self.kinds = kinds
        self.nodes = {name: self.start(name) for name in kinds}
        self.states: list[SystemState] = []
        graph.peer.create_subscription(SystemState, 'system_state', self.states.append, qos.STATE)
        self.params = {'timeout': 0.5, 'period': 0.05, 'mode': 'mode_a', **params}
        self.site = graph.add(SiteNode, 'site', self.params)

    def start(self, name: str) -> Any:
        node = self.graph.add(self.kinds[name], name, ctx=self.ctx)
        node.trigger_configure()
        return node

    def lose(self, name: str) -> None:
        """Its process dies: no heartbeat, no service."""
        self.ctx.nodes.pop(name, None)
        self.graph.remove(self.nodes.pop(name))

    @property
    def state(self) -> int:
        return self.states[-1].state if self.states else -1

    def active(self) -> set[str]:
        return {n for n, node in self.nodes.items() if node.lifecycle_id == State.PRIMARY_STATE_ACTIVE}

    def wait(self, state: int, active: set[str], what: str) -> None:
        self.graph.wait(lambda: self.state == state and self.active() == active,
                        lambda: f'{what}: state {state} with {active}, is {self.state} with {self.active()}')


@pytest.fixture(params=[False, True], ids=['one process', 'other process'])
def bench(request: pytest.FixtureRequest, graph: Any) -> SiteBench:
    made = SiteBench(graph, other_process=request.param)
    graph.up(made.site)
    made.wait(RUN, {'conv', 'mode_a'}, 'runs by itself')
    return made


def test_a_site_runs_sleeps_and_runs_again(graph: Any, bench: SiteBench) -> None:
    assert [s.state for s in bench.states][0] == SystemState.INIT
    assert bench.states[-1].cause == 'all required nodes are active'
    answer = graph.call(Trigger, 'site/stop')
    assert answer.success
    bench.wait(SystemState.SLEEP, set(), 'asleep')
    assert bench.states[-1].cause == 'stop by operator'
    assert graph.call(Trigger, 'site/start').success
    bench.wait(RUN, {'conv', 'mode_a'}, 'runs again')


def test_the_mode_can_be_changed_while_running(graph: Any, bench: SiteBench) -> None:
    answer = graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='mode_b'))
    assert (answer.accepted, answer.available) == (True, ['mode_a', 'mode_b'])
    bench.wait(RUN, {'conv', 'mode_b'}, 'the other mode')
    assert bench.states[-1].mode == 'mode_b'
    answer = graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='nonsense'))
    assert not answer.accepted
    assert 'mode_a, mode_b' in answer.message
    assert graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='none')).accepted
    bench.wait(RUN, {'conv'}, 'no mode')


def test_a_site_node_that_stood_still_itself_takes_nobody_for_lost(graph: Any, bench: SiteBench) -> None:
    count = len(bench.states)
    time.sleep(2.5 * bench.params['timeout'])  # this thread is that of all nodes: nobody hears or says anything
    graph.settle(0.4)
    assert [s.cause for s in bench.states[count:] if s.state != RUN] == []
    bench.lose('bat')
    bench.wait(SystemState.ERROR, set(), 'who is really lost is')


def test_a_lost_node_is_an_error_and_the_site_comes_back_by_itself(graph: Any, bench: SiteBench) -> None:
    bench.lose('bat')
    bench.wait(SystemState.ERROR, set(), 'error')
    assert bench.states[-1].cause == 'bat lost: silent'
    assert list(bench.states[-1].missing) == ['bat']
    bench.nodes['bat'] = bench.start('bat')
    bench.wait(RUN, {'conv', 'mode_a'}, 'back by itself')


def test_a_lost_converter_is_driven_again_when_it_is_back(graph: Any, bench: SiteBench) -> None:
    bench.lose('conv')
    bench.wait(SystemState.ERROR, set(), 'error')
    bench.nodes['conv'] = bench.start('conv')
    bench.wait(RUN, {'conv', 'mode_a'}, 'back by itself')


def test_a_critical_fault_stops_the_site_until_it_is_cleared_and_started(graph: Any, bench: SiteBench) -> None:
    node = bench.nodes['bat']
    node.raise_fault('fire', Severity.ERROR, 'warm')
    graph.settle(0.2)
    assert bench.state == RUN, 'an error of one node is no reason'
    node.raise_fault('fire', Severity.CRITICAL, 'it burns')
    bench.wait(SystemState.ERROR, set(), 'error')
    assert bench.states[-1].cause == 'critical fault: bat: it burns'
    answer = graph.call(Trigger, 'site/start')
    assert (answer.success, answer.message) == (False, 'refused: critical fault latched: bat: it burns')
    node.clear_fault('fire')
    graph.settle(0.2)
    assert bench.state == SystemState.ERROR, 'it is latched'
    assert graph.call(ClearFault, 'bat/clear_fault').accepted
    bench.wait(SystemState.SLEEP, set(), 'cleared, and waits for somebody to start it')
    assert graph.call(Trigger, 'site/start').success
    bench.wait(RUN, {'conv', 'mode_a'}, 'started')


def test_maintenance_locks_the_site(graph: Any, bench: SiteBench) -> None:
    assert graph.call(SetBool, 'site/set_maintenance', SetBool.Request(data=True)).success
    bench.wait(SystemState.MAINTENANCE, set(), 'locked')
    assert not graph.call(Trigger, 'site/start').success
    assert graph.call(SetBool, 'site/set_maintenance', SetBool.Request(data=False)).success
    bench.wait(SystemState.SLEEP, set(), 'released')


def test_a_node_that_never_came_keeps_the_site_in_init(graph: Any) -> None:
    bench = SiteBench(graph)
    bench.lose('bat')
    graph.up(bench.site)
    graph.wait(lambda: bench.states, 'a state')
    graph.settle(0.3)
    assert bench.site._machine.missing == ('bat',)
    assert bench.state == SystemState.INIT
    assert bench.active() == set()
    bench.nodes['bat'] = bench.start('bat')
    bench.wait(RUN, {'conv', 'mode_a'}, 'runs once all are there')


def test_what_people_wanted_survives_a_restart_of_the_site_node(graph: Any, bench: SiteBench) -> None:
    graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='mode_b'))
    graph.call(Trigger, 'site/stop')
    bench.wait(SystemState.SLEEP, set(), 'asleep')
    graph.remove(bench.site)
    bench.states.clear()
    bench.site = graph.add(SiteNode, 'site', bench.params)
    graph.up(bench.site)
    bench.wait(SystemState.SLEEP, set(), 'a stopped site stays stopped')
    graph.call(Trigger, 'site/start')
    bench.wait(RUN, {'conv', 'mode_b'}, 'in the mode that was chosen')


@pytest.mark.parametrize('content', ['', '{', '[]', '{"wants_run": true}', '{"wants_run": true, "mode": "gone"}'])
def test_a_damaged_memory_of_the_site_is_no_obstacle(graph: Any, content: str) -> None:
    (graph.ctx.state_dir / 'site.json').write_text(content)
    bench = SiteBench(graph)
    graph.up(bench.site)
    bench.wait(RUN, {'conv', 'mode_a'}, 'as configured')


def test_a_late_joiner_learns_the_state(graph: Any, bench: SiteBench) -> None:
    late = graph.listen(SystemState, 'system_state', qos.STATE)
    graph.wait(lambda: late, 'the state')
    assert (late[-1].state, late[-1].mode) == (RUN, 'mode_a')
