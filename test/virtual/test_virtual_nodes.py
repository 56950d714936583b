"""Logical batteries on real DDS: every kind offers the same contract, and keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import fsum, nan
from typing import Any

import pytest
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CurrentSetpoint, InverterStatus, PowerSetpoint
from bess.srv import CancelSchedule, GetStatus, ListSchedule, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.convert import battery_to_msg, converter_to_msg, stamp, wall_stamp
from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, Mode, Quality
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.partition_node import PartitionChildNode, PartitionNode
from bess_virtual.unit_node import UnitNode

TICK = {'period': 0.05, 'max_age': 0.3, 'invalid_after': 1.0}
BATTERY = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0, current=0.0, power=0.0,
    charge=50.0, charge_full=100.0, energy=2500.0, energy_full=5000.0, max_charge_current=40.0,
    max_discharge_current=40.0, max_charge_power=2000.0, max_discharge_power=2000.0, soc=0.5, soh=1.0)
CONVERTER = ConverterReading(
    quality=Quality.OK, state=ConverterState.RUNNING, active_power=0.0, max_charge_power=3000.0,
    max_discharge_power=3000.0, max_apparent_power=3000.0)


class Below:
    """What lies below a battery: publishes its status on a grid and does as it is told."""

    def __init__(self, graph: Any, name: str, reading: Any = BATTERY) -> None:
        self.graph, self.name, self.reading = graph, name, reading
        converter = isinstance(reading, ConverterReading)
        self._to_message = converter_to_msg if converter else battery_to_msg
        self._status = graph.peer.create_publisher(InverterStatus if converter else BatteryStatus, f'{name}/status',
                                                   qos.MEASUREMENT)
        self.orders: list[tuple[float, PowerSetpoint]] = []
        graph.peer.create_subscription(PowerSetpoint, f'{name}/setpoint', self._on_setpoint, qos.SETPOINT)
        self.silent = False
        self.follows = True
        graph.ticker.every(0.04, lambda _: self.publish())

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        self.orders.append((self.graph.clock.now(), message))
        if self.follows:
            self.set(**{'power' if hasattr(self.reading, 'power') else 'active_power': message.power})

    def set(self, **values: Any) -> None:
        """Change what is published."""
        self.reading = replace(self.reading, **values)

    def publish(self) -> None:
        """One status, measured now."""
        if self.silent:
            return
        now = self.graph.clock.now()
        reading = replace(self.reading, time=now, **({'newest': now} if hasattr(self.reading, 'newest') else {}))
        self._status.publish(self._to_message(reading, self.graph.clock, self.name))

    @property
    def power(self) -> float:
        """What was last ordered, W; NaN before the first order."""
        return self.orders[-1][1].power if self.orders else nan


class Kind:
    """A battery under test, and everything below it."""

    def __init__(self, graph: Any, node: Any, below: list[Below], watt_per_ampere: float) -> None:
        self.graph, self.node, self.below = graph, node, below
        self.name = node.get_name()
        self.watt_per_ampere = watt_per_ampere  # at the power terminals when charging
        self.statuses = graph.listen(BatteryStatus, f'{self.name}/status', qos.MEASUREMENT)
        self._sequence = 0
        self._setpoint = graph.publisher(PowerSetpoint, f'{self.name}/setpoint', qos.SETPOINT)
        graph.wait(lambda: self.statuses and self.statuses[-1].quality == 0 and self.statuses[-1].max_charge_power > 0.0
                   and self.statuses[-1].members_usable == self.statuses[-1].members, 'a good status of all members')

    @property
    def ordered(self) -> float:
        """Sum of what the members were last told, W."""
        return fsum(b.power for b in self.below if b.orders and b.reading is not None)

    @property
    def orders(self) -> int:
        return sum(len(b.orders) for b in self.below)

    def ask(self, power: float, lease: float = 1.0, source: str = 'manager', sequence: int = 0,
            given: float | None = None) -> None:
        self._sequence += 1
        message = PowerSetpoint(power=power, reactive_power=nan, lease=lease, source=source,
                                sequence=sequence or self._sequence)
        now = self.graph.clock.now()
        message.header.stamp = stamp(self.graph.clock, now if given is None else given)
        self._setpoint.publish(message)

    def schedule(self, current: float, start: float, end: float) -> Any:
        """schedule_set_current; times in s from now."""
        self.scheduled_at = self.graph.clock.now()
        wall = self.graph.clock.wall()
        return self.graph.call(ScheduleSetCurrent, f'{self.name}/schedule_set_current', ScheduleSetCurrent.Request(
            current=current, start=wall_stamp(wall + start), end=wall_stamp(wall + end)))


def make_unit(graph: Any) -> Kind:
    Below(graph, 'bms')
    converter = Below(graph, 'converter', CONVERTER)
    node = graph.add(UnitNode, 'unit', {'bms': 'bms', 'converter': 'converter', 'charge_efficiency': 0.9, **TICK})
    graph.up(node)
    return Kind(graph, node, [converter], 50.0 / 0.9)


def make_aggregate(graph: Any) -> Kind:
    members = [Below(graph, 'a'), Below(graph, 'b')]
    node = graph.add(AggregateNode, 'all', {'members': ['a', 'b'], **TICK})
    graph.up(node)
    return Kind(graph, node, members, 50.0)


def make_partition(graph: Any, **params: Any) -> tuple[Any, list[Any], Below]:
    source = Below(graph, 'source')
    half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    partition = graph.add(PartitionNode, 'split', {
        'source': 'source', 'children': {'house': half, 'grid': half}, 'charge_efficiency': 1.0,
        'discharge_efficiency': 1.0, **TICK, **params})
    children = [graph.add(PartitionChildNode, name, values)
                for name, _, values in PartitionNode.expand('split', partition.params)]
    graph.up(partition, *children)
    return partition, children, source


def make_child(graph: Any) -> Kind:
    _, children, source = make_partition(graph)
    return Kind(graph, children[0], [source], 50.0)


KINDS: dict[str, Callable[[Any], Kind]] = {
    'unit': make_unit, 'aggregate': make_aggregate, 'partition child': make_child}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, graph: Any) -> Kind:
    """Each kind of logical battery, at 50 V, with at least 20 A allowed, over members that follow."""
    return KINDS[request.param](graph)


# -- the contract, the same for all ------------------------------------------------------------------


def test_the_whole_contract_is_offered(graph: Any, kind: Kind) -> None:
    full = f'/site/{kind.name}'
    offered = lambda: dict(graph.peer.get_service_names_and_types_by_node(kind.name, '/site'))  # noqa: E731
    graph.wait(lambda: {f'{full}/get_status', f'{full}/reserve'} <= offered().keys(), 'its services are discovered')
    services = offered()
    for name, type_ in (('get_status', 'GetStatus'), ('schedule_set_current', 'ScheduleSetCurrent'),
                        ('schedule_set_power', 'ScheduleSetPower'), ('cancel_schedule', 'CancelSchedule'),
                        ('list_schedule', 'ListSchedule'), ('schedule_at', 'ScheduleAt'), ('reserve', 'Reserve'),
                        ('clear_fault', 'ClearFault')):
        assert services[f'{full}/{name}'] == [f'bess/srv/{type_}']
    for name in ('change_state', 'get_state', 'get_available_states', 'get_available_transitions'):
        assert f'{full}/{name}' in services, 'the standard lifecycle services'
    published = dict(graph.peer.get_publisher_names_and_types_by_node(kind.name, '/site'))
    assert published[f'{full}/status'] == ['bess/msg/BatteryStatus']
    assert published[f'{full}/battery_state'] == ['sensor_msgs/msg/BatteryState']
    heard = dict(graph.peer.get_subscriber_names_and_types_by_node(kind.name, '/site'))
    assert heard[f'{full}/setpoint'] == ['bess/msg/PowerSetpoint']
    assert heard[f'{full}/setpoint_current'] == ['bess/msg/CurrentSetpoint']
    state = graph.listen(BatteryState, f'{kind.name}/battery_state', qos.MEASUREMENT)
    graph.wait(lambda: state and state[-1].percentage == pytest.approx(0.5), 'sensor_msgs/BatteryState')
    answer = graph.call(GetStatus, f'{kind.name}/get_status')
    assert (answer.fresh, answer.message, answer.status.soc) == (True, '', pytest.approx(0.5))


def test_a_scheduled_current_runs_from_start_to_end_and_is_released(graph: Any, kind: Kind) -> None:
    answer = kind.schedule(10.0, 0.3, 0.7)
    assert (answer.accepted, answer.event_id, answer.message) == (True, 1, '')
    start = kind.scheduled_at + 0.3
    graph.wait(lambda: kind.orders, 'the first order', 3.0)
    assert graph.clock.now() >= start - 0.02, 'not before its start'
    wanted = 10.0 * kind.watt_per_ampere
    graph.wait(lambda: kind.ordered == pytest.approx(wanted, rel=1e-3), '10 A')
    assert kind.ordered > 0.0, 'passive sign: + = charging'
    graph.wait(lambda: kind.statuses[-1].setpoint == pytest.approx(wanted, rel=1e-3), 'status tells what is asked')
    assert kind.statuses[-1].setpoint_source == 'schedule:1'
    graph.wait(lambda: kind.ordered == 0.0, 'zero at the end', 3.0)
    assert start + 0.35 <= graph.clock.now() <= start + 0.8
    graph.wait(lambda: kind.statuses[-1].setpoint_source == '', 'nobody asks any more')
    for below in kind.below:
        for at, order in below.orders:
            if order.power != 0.0:
                assert at + order.lease <= start + 0.4 + 0.2, 'no lease may outlast the request'
    graph.settle(0.3)  # zero is repeated a few times ...
    count = kind.orders
    graph.settle(0.2)
    assert kind.orders == count, '... then the members are let go'


def test_a_later_request_wins_and_the_older_one_resumes(graph: Any, kind: Kind) -> None:
    assert kind.schedule(5.0, 0.0, 20.0).accepted
    graph.wait(lambda: kind.ordered == pytest.approx(5 * kind.watt_per_ampere, rel=1e-3), '5 A')
    answer = kind.schedule(-4.0, 0.0, 0.4)
    assert answer.message == 'overlays event 1'
    graph.wait(lambda: kind.ordered < 0.0, 'the later one')
    graph.wait(lambda: kind.ordered == pytest.approx(5 * kind.watt_per_ampere, rel=1e-3), 'the older one resumes')
    assert not any(o.power == 0.0 for b in kind.below for _, o in b.orders), 'without a stop in between'


def test_what_cannot_be_is_refused_with_the_reason_and_changes_nothing(graph: Any, kind: Kind) -> None:
    for current, start, end, reason in (
            (nan, 0.0, 1.0, 'current is nan, not a finite number'), (float('inf'), 0.0, 1.0, 'not a finite number'),
            (1.0, 2.0, 1.0, 's before start'), (1.0, -5.0, -2.0, 's in the past'), (1e4, 0.0, 1.0, 'is outside of')):
        answer = kind.schedule(current, start, end)
        assert (answer.accepted, answer.event_id) == (False, 0)
        assert reason in answer.message
    assert graph.call(ListSchedule, f'{kind.name}/list_schedule').entries == []
    graph.settle(0.15)
    assert kind.orders == 0


def test_list_and_cancel(graph: Any, kind: Kind) -> None:
    wall = graph.clock.wall()
    power = graph.call(ScheduleSetPower, f'{kind.name}/schedule_set_power', ScheduleSetPower.Request(
        power=-500.0, start=wall_stamp(wall + 100), end=wall_stamp(wall + 200)))
    assert power.accepted
    assert kind.schedule(10.0, 0.0, 50.0).accepted
    graph.wait(lambda: kind.ordered > 0.0, 'runs')
    request = ListSchedule.Request(at=wall_stamp(wall + 150))
    answer = graph.call(ListSchedule, f'{kind.name}/list_schedule', request)
    assert [(e.event_id, e.is_power, e.value, e.running) for e in answer.entries] == [
        (1, True, -500.0, False), (2, False, 10.0, True)]
    assert (answer.active_at, answer.is_power_at, answer.value_at) == (True, True, -500.0)
    answer = graph.call(ListSchedule, f'{kind.name}/list_schedule', ListSchedule.Request(at=wall_stamp(wall + 900)))
    assert (answer.active_at, answer.value_at) == (False, 0.0)

    unknown = graph.call(CancelSchedule, f'{kind.name}/cancel_schedule', CancelSchedule.Request(event_id=77))
    assert (unknown.accepted, unknown.message) == (False, 'there is no event 77')
    answer = graph.call(CancelSchedule, f'{kind.name}/cancel_schedule', CancelSchedule.Request(event_id=2))
    assert (answer.accepted, answer.cancelled) == (True, 1)
    graph.wait(lambda: kind.ordered == 0.0, 'stopped at once', 1.0)
    assert kind.schedule(10.0, 60.0, 70.0).event_id == 3, 'an id is never given twice'
    answer = graph.call(CancelSchedule, f'{kind.name}/cancel_schedule')
    assert (answer.accepted, answer.cancelled) == (True, 2)
    assert graph.call(ListSchedule, f'{kind.name}/list_schedule').entries == []


def test_the_schedule_survives_a_restart_and_runs_on(graph: Any, kind: Kind) -> None:
    assert kind.schedule(10.0, 0.0, 30.0).accepted
    assert kind.schedule(-7.0, 100.0, 200.0).accepted
    graph.wait(lambda: kind.ordered > 0.0, 'runs')
    node = kind.node
    graph.remove(node)
    graph.wait(lambda: kind.ordered == 0.0, 'a node that ends says zero', 2.0)
    again = graph.add(type(node), kind.name, node.params)
    graph.up(again)
    answer = graph.call(ListSchedule, f'{kind.name}/list_schedule')
    assert [(e.event_id, e.value) for e in answer.entries] == [(1, 10.0), (2, -7.0)]
    graph.wait(lambda: kind.ordered == pytest.approx(10.0 * kind.watt_per_ampere, rel=1e-3), 'runs on', 5.0)
    assert kind.schedule(1.0, 300.0, 301.0).event_id == 3


def test_a_setpoint_goes_before_the_schedule_while_its_lease_lasts(graph: Any, kind: Kind) -> None:
    assert kind.schedule(10.0, 0.0, 30.0).accepted
    wanted = 10.0 * kind.watt_per_ampere
    graph.wait(lambda: kind.ordered == pytest.approx(wanted, rel=1e-3), 'schedule')
    kind.ask(-300.0, lease=0.4)
    graph.wait(lambda: kind.ordered == pytest.approx(-300.0), 'setpoint')
    graph.wait(lambda: kind.statuses[-1].setpoint_source == 'manager', 'status says who')
    assert 'manager holds a setpoint' in kind.schedule(5.0, 100.0, 200.0).message
    graph.wait(lambda: kind.ordered == pytest.approx(wanted, rel=1e-3), 'the schedule again, after the lease', 2.0)


def test_a_current_setpoint(graph: Any, kind: Kind) -> None:
    publisher = graph.publisher(CurrentSetpoint, f'{kind.name}/setpoint_current', qos.SETPOINT)
    publisher.publish(CurrentSetpoint(current=8.0, lease=0.3, source='tool', sequence=1))
    graph.wait(lambda: kind.ordered == pytest.approx(8.0 * kind.watt_per_ampere, rel=1e-3), '8 A')
    graph.wait(lambda: kind.ordered == 0.0, 'zero after the lease', 2.0)


def test_a_second_source_and_bad_setpoints_are_refused(graph: Any, kind: Kind) -> None:
    kind.ask(400.0, lease=0.6)
    graph.wait(lambda: kind.ordered == pytest.approx(400.0), 'the first')
    for bad in ({'power': -700.0, 'source': 'stranger'}, {'power': -700.0, 'sequence': 1}, {'power': nan},
                {'power': float('inf')}, {'power': -700.0, 'lease': -1.0}, {'power': -700.0, 'lease': nan}):
        kind.ask(**bad)
        graph.settle(0.03)
    graph.settle(0.06)
    assert kind.ordered == pytest.approx(400.0)
    graph.wait(lambda: kind.ordered == 0.0, 'the lease ends', 2.0)
    kind.ask(-700.0, source='stranger')
    graph.wait(lambda: kind.ordered == pytest.approx(-700.0), 'now it is free')


def test_stale_below_is_stale_above_and_then_invalid(graph: Any, kind: Kind) -> None:
    for below in kind.below:
        below.silent = True
    for expected in (1, 2):
        graph.wait(lambda e=expected: kind.statuses[-1].quality == e, f'quality {expected}', 5.0)
    assert kind.node.faults.get('battery.stale') is not None
    answer = graph.call(GetStatus, f'{kind.name}/get_status')
    assert not answer.fresh
    assert 'INVALID' in answer.message
    refused = kind.schedule(5.0, 0.0, 10.0)
    assert (refused.accepted, refused.message) == (False, 'the battery has no valid measurement: limits are unknown')
    assert kind.schedule(0.0, 0.0, 10.0).accepted, 'a stop is always possible'
    for below in kind.below:
        below.silent = False
    graph.wait(lambda: kind.statuses[-1].quality == 0, 'OK again', 5.0)
    graph.wait(lambda: kind.node.faults.get('battery.stale') is None, 'fault gone')


def test_an_inactive_battery_measures_but_takes_no_orders(graph: Any, kind: Kind) -> None:
    kind.ask(400.0, lease=5.0)
    graph.wait(lambda: kind.ordered == pytest.approx(400.0), 'runs')
    kind.node.trigger_deactivate()
    graph.wait(lambda: kind.ordered == 0.0, 'zero at once', 1.0)
    graph.settle(0.2)
    count, heard = kind.orders, len(kind.statuses)
    kind.ask(400.0)
    assert 'not active' in kind.schedule(5.0, 0.0, 10.0).message
    graph.wait(lambda: len(kind.statuses) > heard + 2, 'measures on')
    assert kind.orders == count


# -- unit --------------------------------------------------------------------------------------------


def test_a_unit_holds_to_the_limits_of_both_halves(graph: Any) -> None:
    kind = make_unit(graph)
    kind.ask(9000.0, lease=5.0)
    limit = 2000.0 / 0.9
    graph.wait(lambda: kind.ordered == pytest.approx(limit, rel=1e-3), 'the BMS limit, at the AC side')
    assert kind.statuses[-1].max_charge_power == pytest.approx(limit, rel=1e-3)
    kind.below[0].set(max_charge_power=700.0)
    graph.wait(lambda: kind.ordered == pytest.approx(700.0), 'the converter limit')
    graph.wait(lambda: 'charge 700 W: converter' in kind.statuses[-1].limit_reasons, 'and says so')


# -- aggregate ---------------------------------------------------------------------------------------


def test_an_aggregate_splits_by_energy_and_reacts_to_a_stale_member_within_a_tick(graph: Any) -> None:
    kind = make_aggregate(graph)
    a, b = kind.below
    a.set(energy=3000.0)
    b.set(energy=1000.0)
    graph.wait(lambda: kind.statuses[-1].energy == pytest.approx(4000.0), 'energies are known')
    kind.ask(-800.0, lease=20.0)
    graph.wait(lambda: (a.power, b.power) == (pytest.approx(-600.0), pytest.approx(-200.0)), 'split 3 : 1')
    b.silent = True
    lost = graph.clock.now()
    graph.wait(lambda: (a.power, b.power) == (pytest.approx(-800.0), 0.0), 'the other one takes it all')
    late = graph.clock.now() - lost - TICK['max_age']
    assert late < 2 * TICK['period'] + 0.05
    graph.wait(lambda: kind.statuses[-1].members_usable == 1, 'status')
    assert any(r.startswith('b: stale') for r in kind.statuses[-1].limit_reasons)
    b.silent = False
    graph.wait(lambda: b.power == pytest.approx(-200.0), 'back')


def test_an_aggregate_that_cannot_says_so(graph: Any) -> None:
    kind = make_aggregate(graph)
    kind.ask(9000.0, lease=20.0)
    graph.wait(lambda: kind.ordered == pytest.approx(4000.0), 'all there is')
    graph.wait(lambda: kind.node.faults.get('battery.shortfall'), 'shortfall')
    kind.ask(1000.0, lease=20.0)
    graph.wait(lambda: kind.node.faults.get('battery.shortfall') is None, 'gone')


# -- partition ---------------------------------------------------------------------------------------


def test_children_sum_to_the_source_and_opposite_requests_cancel(graph: Any) -> None:
    _, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    assert one.statuses[-1].energy + two.statuses[-1].energy == pytest.approx(2500.0)
    assert one.statuses[-1].max_charge_power == pytest.approx(1000.0)
    one.ask(600.0, lease=20.0)
    two.ask(300.0, lease=20.0)
    graph.wait(lambda: source.power == pytest.approx(900.0), 'the sum')
    graph.wait(lambda: (one.statuses[-1].power, two.statuses[-1].power)
               == (pytest.approx(600.0), pytest.approx(300.0)), 'each its own')
    two.ask(-600.0, lease=20.0)
    graph.wait(lambda: source.power == pytest.approx(0.0), 'opposite requests cancel')
    graph.wait(lambda: (one.statuses[-1].power, two.statuses[-1].power)
               == (pytest.approx(600.0), pytest.approx(-600.0)), 'and both get what they asked for')
    one.ask(5000.0, lease=20.0)
    graph.wait(lambda: source.power == pytest.approx(400.0), 'held to its own share')
    graph.wait(lambda: any('can charge only 1000 W of 5000 W' in r for r in one.statuses[-1].limit_reasons), 'says why')


def test_one_childs_short_lease_does_not_interrupt_the_other(graph: Any) -> None:
    _, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    one.ask(400.0, lease=30.0)
    graph.wait(lambda: source.power == pytest.approx(400.0), 'one')
    mark = len(source.orders)
    for _ in range(3):
        two.ask(100.0, lease=0.21)
        graph.wait(lambda: source.power == pytest.approx(500.0), 'both')
        graph.wait(lambda: source.power == pytest.approx(400.0), 'one again')
    orders = source.orders[mark:]
    gaps = [after[0] - (before[0] + before[1].lease) for before, after in zip(orders, orders[1:], strict=False)]
    assert max(gaps) < 0.0, 'the order of the source must never run out in between'


def test_a_drained_child_stops_and_the_other_goes_on(graph: Any) -> None:
    _, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    partition = graph.ctx.nodes['split']
    # The house has used nearly all of its energy; the source as a whole has not.
    partition._partition.ledgers[0].energy = 0.02
    source.set(energy=1250.02)
    one.ask(-900.0, lease=30.0)
    two.ask(-200.0, lease=30.0)
    graph.wait(lambda: source.power == pytest.approx(-200.0), 'only the other one is served')
    graph.wait(lambda: one.statuses[-1].max_discharge_power == 0.0, 'the status says so')
    assert one.statuses[-1].soc == pytest.approx(0.0, abs=1e-3)
    assert any('empty' in r for r in one.statuses[-1].limit_reasons)


def test_ledgers_survive_a_restart(graph: Any) -> None:
    partition, children, source = make_partition(graph)
    one = Kind(graph, children[0], [source], 50.0)
    partition._partition.ledgers[0].charged = 123.0
    for node in (*children, partition):
        graph.remove(node)
    again = graph.add(PartitionNode, 'split', partition.params)
    graph.up(again)
    assert again._partition.ledgers[0].charged == pytest.approx(123.0)
    assert one.statuses


def test_a_partition_that_is_configured_anew_serves_its_children_again(graph: Any) -> None:
    partition, children, source = make_partition(graph)
    one = Kind(graph, children[0], [source], 50.0)
    partition.trigger_deactivate()
    partition.trigger_cleanup()
    one.ask(300.0, lease=0.2)
    graph.settle(0.2)
    assert children[0].faults.get('node.callback') is None
    graph.up(partition)
    count = len(one.statuses)
    graph.wait(lambda: len(one.statuses) > count + 3 and one.statuses[-1].quality == 0, 'children hear again')
    one.ask(300.0, lease=5.0)
    graph.wait(lambda: source.power == pytest.approx(300.0), 'and are served')
