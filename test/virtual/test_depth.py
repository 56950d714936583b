"""Batteries on batteries: a layer costs a hop, whatever lies below or beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.convert import battery_to_msg
from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.partition_node import PartitionChildNode, PartitionNode

BATTERY = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0, current=0.0, power=0.0,
    charge=50.0, charge_full=100.0, energy=2500.0, energy_full=5000.0, max_charge_current=40.0,
    max_discharge_current=40.0, max_charge_power=2000.0, max_discharge_power=2000.0, soc=0.5, soh=1.0)
LAYERS, STATUSES = 12, 10
SLOW = {'period': 10.0, 'max_age': 60.0, 'invalid_after': 600.0}  # nothing but news from below makes a status


def status(graph: Any, power: float) -> BatteryStatus:
    now = graph.clock.now()
    return battery_to_msg(replace(BATTERY, power=power, time=now, newest=now), graph.clock)


def test_twelve_layers_cost_twelve_statuses_per_status_of_the_source(graph: Any) -> None:
    nodes = [graph.add(AggregateNode, f'layer_{i}', {'members': [f'layer_{i - 1}'], **SLOW})
             for i in range(1, LAYERS + 1)]
    graph.up(*nodes)
    heard = [graph.listen(BatteryStatus, f'layer_{i}/status', qos.MEASUREMENT) for i in range(1, LAYERS + 1)]
    source = graph.publisher(BatteryStatus, 'layer_0/status', qos.MEASUREMENT)
    reads = [0] * LAYERS
    for i, node in enumerate(nodes):
        def measure(now: float, i: int = i, before: Any = node.measure) -> Any:
            reads[i] += 1
            return before(now)

        node.measure = measure
    for k in range(1, STATUSES + 1):
        source.publish(status(graph, 100.0 * k))
        graph.wait(lambda k=k: len(heard[-1]) >= k, f'status {k} at the top')
    graph.settle(0.2)
    assert [[m.power for m in messages] for messages in heard] == [
        [100.0 * k for k in range(1, STATUSES + 1)]] * LAYERS
    assert reads == [STATUSES] * LAYERS


def test_members_that_report_together_make_one_status(graph: Any) -> None:
    names = [f'm{i}' for i in range(20)]
    graph.up(graph.add(AggregateNode, 'all', {'members': names, **SLOW}))
    heard = graph.listen(BatteryStatus, 'all/status', qos.MEASUREMENT)
    members = [graph.publisher(BatteryStatus, f'{name}/status', qos.MEASUREMENT) for name in names]
    for k in range(1, 6):
        for member in members:
            member.publish(status(graph, 10.0 * k))
        graph.wait(lambda k=k: heard and heard[-1].power == 200.0 * k, 'a status with all members')
    graph.settle(0.2)
    # All but the first member may see one look before the burst is in; the last one of a burst ends the wait.
    assert len(heard) <= 2 * 5
    assert heard[-1].members_usable == 20


def test_a_silent_member_does_not_hold_up_the_status_of_the_others(graph: Any) -> None:
    graph.up(graph.add(AggregateNode, 'all', {'members': ['a', 'b'], **SLOW}))
    heard = graph.listen(BatteryStatus, 'all/status', qos.MEASUREMENT)
    a = graph.publisher(BatteryStatus, 'a/status', qos.MEASUREMENT)
    for power in (100.0, 200.0):
        a.publish(status(graph, power))
        graph.wait(lambda power=power: heard and heard[-1].power == power, f'{power} W')
    assert heard[-1].members_usable == 1
    assert any('b' in reason for reason in heard[-1].limit_reasons)


def test_children_of_a_partition_follow_the_source_status_by_status(graph: Any) -> None:
    half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    split = graph.add(PartitionNode, 'split', {'source': 'battery', 'children': {'a': half, 'b': half}})
    children = [graph.add(PartitionChildNode, name, {'partition': 'split', **SLOW}) for name in ('a', 'b')]
    graph.up(split, *children)
    heard = [graph.listen(BatteryStatus, f'{name}/status', qos.MEASUREMENT) for name in ('a', 'b')]
    source = graph.publisher(BatteryStatus, 'battery/status', qos.MEASUREMENT)
    for k in range(1, STATUSES + 1):
        source.publish(status(graph, 0.0))
        graph.wait(lambda k=k: all(len(messages) >= k for messages in heard), f'status {k} of both')
    graph.settle(0.1)
    assert [len(messages) for messages in heard] == [STATUSES, STATUSES]
