"""Aggregates on real DDS: members that change, fail, come back different, and are equalised."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest
from test_virtual_nodes import BATTERY, TICK, Below, Kind

from bess.msg import BatteryStatus, PowerSetpoint
from bess.srv import Equalise
from bess_core import qos
from bess_core.convert import battery_to_msg
from bess_core.params import ParameterError, build
from bess_virtual.aggregate_node import AggregateNode, AggregateParams


class Watched(AggregateNode):
    """Counts what it costs."""

    measured = 0

    def measure(self, now: float) -> Any:
        self.measured += 1
        return super().measure(now)


def make(graph: Any, names: list[str], **params: Any) -> tuple[Kind, list[Below]]:
    below = [Below(graph, name) for name in names]
    node = graph.add(AggregateNode, 'all', {'members': names, **TICK, **params})
    graph.up(node)
    return Kind(graph, node, below, 50.0), below


def test_who_leaves_is_told_zero_first_and_who_joins_takes_part(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'], minimum_power=[100.0, 150.0])
    c = Below(graph, 'c')
    kind.ask(-900.0, lease=60.0)
    graph.wait(lambda: (a.power, b.power) == (-450.0, -450.0), 'equal members, equal power')
    left = len(b.orders)
    kind.node.set_members(['c', 'a'])
    graph.wait(lambda: b.power == 0.0, 'told zero')
    assert b.orders[left:] and all(o.power == 0.0 for _, o in b.orders[left:]), 'and nothing else'
    graph.wait(lambda: (a.power, c.power) == (-450.0, -450.0), 'the new one takes its part')
    graph.settle(0.4)
    count = len(b.orders)
    graph.settle(0.2)
    assert len(b.orders) == count, 'then it is let go'
    assert kind.statuses[-1].members == 2 and list(kind.statuses[-1].missing) == []
    assert kind.node.params.members == ['c', 'a'] and kind.node.params.minimum_power == [0.0, 100.0]
    kind.node.set_members(['a', 'b', 'c'])
    graph.wait(lambda: (a.power, b.power, c.power) == (-300.0, -300.0, -300.0), 'and it may come back')
    for wrong, text in (([], 'at least one'), (['a', 'a'], 'a: named twice'), (['all'], 'a member of itself')):
        with pytest.raises(ValueError, match=text):
            kind.node.set_members(wrong)
    assert list(kind.node._members) == ['a', 'b', 'c'], 'nothing changed'
    assert kind.node.faults.get('node.callback') is None


def test_a_member_that_is_killed_and_comes_back_with_another_capacity(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'])
    kind.ask(-800.0, lease=60.0)
    graph.wait(lambda: (a.power, b.power) == (-400.0, -400.0), 'half each')
    b.silent = True
    graph.peer.destroy_publisher(b._status)
    gone = graph.clock.now()
    graph.wait(lambda: a.power == -800.0 and b.power == 0.0, 'the other takes over')
    assert graph.clock.now() - gone - TICK['max_age'] < 2 * TICK['period'] + 0.05, 'within a tick of being stale'
    graph.wait(lambda: kind.statuses[-1].members_usable == 1, 'told')
    status = kind.statuses[-1]
    assert status.energy_full == 5000.0 and status.expected_energy_full == 10_000.0
    assert status.expected_discharge_power == 4000.0 and status.max_discharge_power == 2000.0
    assert status.missing[0].startswith('b: stale')
    b._status = graph.peer.create_publisher(BatteryStatus, 'b/status', qos.MEASUREMENT)
    b.set(energy=7500.0, energy_full=15_000.0)
    b.silent = False
    graph.wait(lambda: (a.power, b.power) == (-200.0, -600.0), 'by its new capacity')
    graph.wait(lambda: kind.statuses[-1].energy_full == 20_000.0 and not kind.statuses[-1].missing, 'complete again')


def test_a_member_that_hangs_with_old_values_moves_its_share_and_says_so_at_once(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'])
    kind.ask(600.0, lease=60.0)
    graph.wait(lambda: (a.power, b.power) == (300.0, 300.0), 'half each')
    stuck = graph.clock.now()
    b.publish = lambda: b._status.publish(b._to_message(  # type: ignore[method-assign]
        replace(b.reading, time=stuck, newest=stuck), graph.clock, 'b'))
    graph.wait(lambda: (a.power, b.power) == (600.0, 0.0), 'the other takes over')
    graph.wait(lambda: any(m.startswith('b: stale') for m in kind.statuses[-1].missing), 'told')
    assert graph.clock.now() - stuck - TICK['max_age'] < 2 * TICK['period'] + 0.1


def test_the_energy_counter_does_not_jump_when_members_change_or_restart(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'])
    assert isnan(kind.statuses[-1].energy_charged), 'not known'
    a.set(energy_charged=1000.0, energy_discharged=10.0)
    b.set(energy_charged=500.0, energy_discharged=20.0)
    counted = lambda wh: graph.wait(  # noqa: E731
        lambda: kind.statuses[-1].energy_charged == pytest.approx(wh), lambda: str(kind.statuses[-1].energy_charged))
    counted(1500.0)
    b.set(energy_charged=0.0)
    graph.settle(0.15)
    counted(1500.0)
    b.set(energy_charged=7.0)
    counted(1507.0)
    c = Below(graph, 'c', replace(BATTERY, energy_charged=9e5, energy_discharged=1e5))
    kind.node.set_members(['a', 'c'])
    graph.wait(lambda: kind.node._members['c'].energy_charged == 9e5, 'the new one')
    graph.settle(0.1)
    counted(1507.0)
    c.set(energy_charged=9e5 + 3.0)
    counted(1510.0)
    assert kind.statuses[-1].energy_discharged == pytest.approx(30.0)


def test_what_cannot_be_served_is_said_in_the_status_while_it_lasts(graph: Any) -> None:
    kind, _ = make(graph, ['a', 'b'], minimum_power=[500.0, 500.0])
    kind.ask(300.0, lease=60.0)
    graph.wait(lambda: any('below the minimum power' in r for r in kind.statuses[-1].limit_reasons), 'status')
    kind.ask(600.0, lease=60.0)
    graph.wait(lambda: not any('minimum' in r for r in kind.statuses[-1].limit_reasons), 'gone')


def test_exclusion_zones_from_the_site_file(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'], exclusion_zones={'a': [[200, 400]]})
    kind.ask(600.0, lease=60.0)
    graph.wait(lambda: kind.ordered == pytest.approx(600.0) and a.power in (200.0, 400.0), 'at an edge of the zone')
    with pytest.raises(ParameterError, match="'x' is not a member"):
        build(AggregateParams, {'members': ['a'], 'exclusion_zones': {'x': []}})


def test_members_are_equalised_on_request_until_they_agree(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'], max_age=2.0, invalid_after=5.0)
    a.set(energy=4000.0, soc=0.8)
    b.set(energy=1000.0, soc=0.2)
    graph.wait(lambda: kind.statuses[-1].soc_spread == pytest.approx(0.6), 'apart')
    ask = lambda **values: graph.call(Equalise, 'all/equalise', Equalise.Request(**values))  # noqa: E731
    for bad in ({'power': nan}, {'power': -5.0}, {'power': 5.0, 'duration': 0.0}, {'power': 5.0, 'tolerance': 2.0}):
        assert not ask(**bad).accepted
    graph.settle(0.1)
    assert not a.orders, 'nobody asked for anything yet'
    answer = ask(power=300.0, duration=60.0)
    assert answer.accepted and '0.600 apart' in answer.message
    graph.wait(lambda: (a.power, b.power) == (-300.0, 300.0), 'from the fuller to the emptier one')
    graph.wait(lambda: kind.statuses[-1].balance_power == 300.0, 'status')
    assert any(r.startswith('balancing: 300 W') for r in kind.statuses[-1].limit_reasons)
    # The two members report one after the other: only then do both measurements belong together.
    graph.wait(lambda: abs(kind.statuses[-1].power) < 1e-9, 'nothing at the terminals of the whole')
    kind.ask(-1000.0, lease=0.5)
    graph.wait(lambda: (a.power, b.power) == (-1100.0, 100.0), 'beside what is asked of the whole')
    graph.wait(lambda: (a.power, b.power) == (-300.0, 300.0), 'and alone again')
    a.set(energy=2520.0, soc=0.504)
    b.set(energy=2480.0, soc=0.496)
    graph.wait(lambda: (a.power, b.power) == (0.0, 0.0), 'equal within the tolerance: it ends')
    graph.wait(lambda: kind.statuses[-1].balance_power == 0.0, 'status')
    a.set(energy=4000.0, soc=0.8)
    graph.settle(0.3)
    assert (a.power, b.power) == (0.0, 0.0), 'it was a request, not a rule'
    assert ask(power=300.0, duration=0.4).accepted
    graph.wait(lambda: a.power == -300.0, 'again')
    graph.wait(lambda: a.power == 0.0, 'its time is over', 2.0)
    assert ask(power=300.0, duration=60.0).accepted
    graph.wait(lambda: a.power == -300.0, 'again')
    assert ask(power=0.0).message == 'stopped'
    graph.wait(lambda: (a.power, b.power) == (0.0, 0.0), 'stopped')
    assert ask(power=300.0, duration=60.0).accepted
    graph.wait(lambda: a.power == -300.0, 'again')
    kind.node.trigger_deactivate()
    graph.wait(lambda: (a.power, b.power) == (0.0, 0.0), 'not beyond deactivation', 1.0)
    assert ask(power=300.0, duration=60.0).message == 'the battery is not active'


def test_equalisation_as_a_rule(graph: Any) -> None:
    kind, (a, b) = make(graph, ['a', 'b'], balance_power=200.0, balance_tolerance=0.05)
    a.set(energy=2800.0, soc=0.56)
    graph.settle(0.3)
    assert not a.orders, 'nearly equal is equal'
    a.set(energy=4000.0, soc=0.8)
    graph.wait(lambda: (a.power, b.power) == (-200.0, 200.0), 'starts by itself')
    b.set(max_charge_power=0.0)
    graph.wait(lambda: (a.power, b.power) == (0.0, 0.0), 'never against a limit')
    graph.wait(lambda: any('balancing waits: no member can take' in r for r in kind.statuses[-1].limit_reasons), 'said')
    assert 'no member can take' in kind.node.diagnostics()['balancing [W]']


def test_twelve_layers_cost_twelve_refreshes(graph: Any) -> None:
    source = Below(graph, 'level0')
    nodes = [graph.add(Watched, f'level{i}', {'members': [f'level{i - 1}'], **TICK, 'max_age': 30.0,
                                              'invalid_after': 60.0}) for i in range(1, 13)]
    graph.up(*nodes)
    top = graph.listen(BatteryStatus, 'level12/status', qos.MEASUREMENT)
    graph.wait(lambda: top and top[-1].quality == 0, 'through all layers')
    source.silent = True
    graph.settle(0.3)
    for node in nodes:
        node.measured = 0
    heard = len(top)
    source.set(energy=1234.0)
    source.silent = False
    source.publish()
    source.silent = True
    graph.wait(lambda: top[-1].energy == 1234.0, 'on top')
    graph.settle(0.2)
    assert [n.measured for n in nodes] == [1] * 12
    assert len(top) == heard + 1


def test_news_of_many_members_are_gathered(graph: Any) -> None:
    names = [f'm{i}' for i in range(60)]
    publishers = [graph.peer.create_publisher(BatteryStatus, f'{name}/status', qos.MEASUREMENT) for name in names]
    orders: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        graph.peer.create_subscription(PowerSetpoint, f'{name}/setpoint',
                                       lambda m, n=name: orders[n].append(m.power), qos.SETPOINT)
    node = graph.add(Watched, 'all', {'members': names, **TICK, 'max_age': 30.0, 'invalid_after': 60.0})
    graph.up(node)
    heard = graph.listen(BatteryStatus, 'all/status', qos.MEASUREMENT)

    def tell(energy: float) -> None:
        now = graph.clock.now()
        for name, publisher in zip(names, publishers, strict=True):
            publisher.publish(battery_to_msg(replace(BATTERY, time=now, newest=now, energy=energy), graph.clock, name))

    graph.wait(lambda: all(p.get_subscription_count() for p in publishers), 'all are heard')
    tell(2500.0)
    graph.wait(lambda: heard and heard[-1].members_usable == 60, 'all usable')
    node.measured = 0
    tell(3000.0)
    graph.wait(lambda: heard[-1].energy == pytest.approx(180_000.0), 'all news')
    assert node.measured < 30, 'not once per member'
    assert not isnan(heard[-1].soc)
    graph.ticker.every(0.2, lambda _: tell(3000.0))
    kind = Kind(graph, node, [], 50.0)
    kind.ask(-6000.0, lease=20.0)
    graph.wait(lambda: all(o and o[-1] == -100.0 for o in orders.values()), 'equal members get equal power')
