"""A partition on real DDS: children at run time, a source that goes, statements, files."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
from test_virtual_nodes import Kind, make_partition

from bess.msg import LedgerState
from bess.srv import AddChild, EnergyStatement, GetLedgers, RemoveChild, ResizeChild
from bess_core import qos
from bess_virtual import partition_node
from bess_virtual.partition_node import PartitionChildNode, PartitionNode


@pytest.fixture(autouse=True)
def host(graph: Any) -> Iterator[None]:
    """What a container offers: nodes made and ended while it runs."""
    def add(node: Any) -> None:
        graph.ctx.nodes[node.get_name()] = node
        graph.nodes.append(node)
        graph.runtime.executor.add_node(node)

    def remove(node: Any) -> None:
        graph.ctx.nodes.pop(node.get_name(), None)
        graph.nodes.remove(node)
        graph.runtime.executor.remove_node(node)

    graph.ctx.add_node, graph.ctx.remove_node = add, remove
    yield
    # What is still queued in the executor when it ends is never freed, and would haunt the graph of the next test.
    graph.ticker.stop()
    graph.settle(0.05)


def add(graph: Any, name: str, share: float = 0.2, donor: str = '', **fields: float) -> Any:
    return graph.call(AddChild, 'split/add_child', AddChild.Request(
        name=name, energy=share, charge_power=share, discharge_power=share, donor=donor, **fields))


def remove(graph: Any, name: str, heir: str, force: bool = False) -> Any:
    return graph.call(RemoveChild, 'split/remove_child', RemoveChild.Request(name=name, heir=heir, force=force))


def resize(graph: Any, name: str, share: float, **fields: Any) -> Any:
    values = {'energy': share, 'charge_power': share, 'discharge_power': share, 'promised_charge_power': nan,
              'promised_discharge_power': nan, **fields}
    return graph.call(ResizeChild, 'split/resize_child', ResizeChild.Request(name=name, **values))


def statement(graph: Any, **fields: Any) -> Any:
    answer = graph.call(EnergyStatement, 'split/energy_statement',
                        EnergyStatement.Request(**{'price': nan, **fields}))
    assert answer.accepted, answer.message
    return answer


def stored(graph: Any) -> dict[str, float]:
    state = graph.call(GetLedgers, 'split/get_ledgers').state
    return {x.child: x.stored for x in state.ledgers}


def again(graph: Any, partition: Any, **params: Any) -> tuple[Any, list[Any]]:
    """End everything and start it as the container would, from the same site file."""
    for node in [n for n in list(graph.nodes) if isinstance(n, PartitionChildNode)]:
        graph.remove(node)
    graph.remove(partition)
    from dataclasses import replace
    values = replace(partition.params, **params)
    fresh = graph.add(PartitionNode, 'split', values)
    nodes = [graph.add(PartitionChildNode, name, p) for name, _, p in PartitionNode.expand('split', values)]
    graph.up(fresh, *nodes)
    return fresh, nodes


def test_a_child_is_added_used_and_removed_while_its_siblings_run(graph: Any) -> None:
    _, (house, _), source = make_partition(graph)
    one = Kind(graph, house, [source], 50.0)
    one.ask(500.0, lease=60.0)
    graph.wait(lambda: source.power == pytest.approx(500.0), 'house charges')
    assert not add(graph, 'car').accepted, 'nothing is unassigned'
    answer = add(graph, 'car', 0.2, 'grid')
    assert answer.accepted, answer.message
    graph.wait(lambda: 'car' in graph.ctx.nodes and graph.ctx.nodes['car'].is_active, 'the new battery runs')
    car = Kind(graph, graph.ctx.nodes['car'], [source], 50.0)
    assert car.statuses[-1].energy == pytest.approx(500.0, abs=1.0)
    assert car.statuses[-1].max_charge_power == pytest.approx(400.0)
    car.ask(-300.0, lease=60.0)
    graph.wait(lambda: source.power == pytest.approx(200.0), 'it has the whole contract')
    assert car.schedule(5.0, 100.0, 200.0).accepted
    answer = remove(graph, 'car', 'house')
    assert not answer.accepted and 'asks it for -300 W' in answer.message
    assert source.power == pytest.approx(200.0)
    answer = remove(graph, 'car', 'house', force=True)
    assert answer.accepted, answer.message
    graph.wait(lambda: source.power == pytest.approx(500.0), 'its request is gone, its sibling goes on')
    graph.wait(lambda: 'car' not in graph.ctx.nodes, 'its node ends')
    assert set(stored(graph)) == {'house', 'grid', 'removed'}
    graph.wait(lambda: one.statuses[-1].max_charge_power == pytest.approx(1400.0), 'the heir has its share')
    del car
    graph.wait(lambda: 'car' not in graph.peer.get_node_names(), 'and leaves the graph')
    assert add(graph, 'car', 0.1, 'grid').accepted
    graph.wait(lambda: 'car' in graph.ctx.nodes and graph.ctx.nodes['car'].is_active, 'the name can be used again')
    assert len(graph.ctx.nodes['car'].schedule) == 0, 'nothing runs that nobody asked for'


def test_two_administrators_change_the_children_at_once(graph: Any) -> None:
    """Both ask for the same unassigned share, and for the same name: one gets it, the other is told why not."""
    partition, _, _ = make_partition(graph)
    for name in ('house', 'grid'):
        assert resize(graph, name, 0.3).accepted
    clients = [graph.peer.create_client(AddChild, 'split/add_child') for _ in range(4)]
    graph.wait(lambda: all(c.service_is_ready() for c in clients), 'service')
    futures = [c.call_async(AddChild.Request(name=name, energy=0.3, charge_power=0.3, discharge_power=0.3))
               for c, name in zip(clients, ('car', 'van', 'car', 'bus'), strict=True)]
    graph.wait(lambda: all(f.done() for f in futures), 'all answers')
    answers = [f.result() for f in futures]
    (winner,) = [i for i, a in enumerate(answers) if a.accepted]
    assert all('add up to' in a.message or 'already' in a.message for a in answers if not a.accepted), answers
    name = ('car', 'van', 'car', 'bus')[winner]
    graph.wait(lambda: name in graph.ctx.nodes and graph.ctx.nodes[name].is_active, 'it runs')
    assert partition._partition.children == ['house', 'grid', name]
    assert not ({'car', 'van', 'bus'} - {name}) & set(graph.ctx.nodes)


@pytest.mark.parametrize('name', ['', 'a b', '../x', '1a', 'a/b', 'ä', 'x' * 65, 'unassigned', 'removed', 'house',
                                  'split', 'peer', 'a\n', "a'; rm"])
def test_hostile_names_are_refused(graph: Any, name: str) -> None:
    make_partition(graph)
    answer = add(graph, name, 0.1, 'grid')
    assert not answer.accepted and answer.message
    assert set(stored(graph)) == {'house', 'grid'}


@pytest.mark.parametrize('share', [nan, -0.1, 1.5, float('inf'), 1e308])
def test_hostile_sizes_are_refused(graph: Any, share: float) -> None:
    make_partition(graph)
    answer = add(graph, 'new', share, 'grid')
    assert not answer.accepted and answer.message
    if share == share:
        answer = resize(graph, 'house', share)
        assert not answer.accepted and answer.message
    assert not resize(graph, 'house', 0.3, promised_charge_power=100.0).accepted, 'the policy keeps no promises'
    assert not resize(graph, 'nobody', 0.3).accepted
    assert not remove(graph, 'house', '').accepted
    assert set(stored(graph)) == {'house', 'grid'}


def test_changes_survive_a_restart_and_go_before_the_site_file(graph: Any) -> None:
    partition, children, source = make_partition(graph)
    Kind(graph, children[0], [source], 50.0)
    assert resize(graph, 'house', 0.3).accepted
    assert add(graph, 'car', 0.1).accepted
    assert remove(graph, 'grid', 'unassigned').accepted
    before = stored(graph)
    assert set(before) == {'house', 'car', 'unassigned', 'removed'}
    partition, children = again(graph, partition)
    graph.wait(lambda: 'car' in graph.ctx.nodes and graph.ctx.nodes['car'].is_active, 'the added one is back')
    graph.wait(lambda: partition._partition.source.quality == 0, 'source')
    assert {k: pytest.approx(v, abs=0.01) for k, v in before.items()} == stored(graph)
    state = graph.call(GetLedgers, 'split/get_ledgers').state
    assert any('differ from the site file' in t for t in state.notices)
    graph.wait(lambda: 'removed while the site ran' in ' '.join(children[1].reading.limit_reasons), 'and grid is not')
    assert children[1].reading.quality == 2
    # The site file is edited: it holds again, and ledgers of those that stay are kept.
    half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    partition, _ = again(graph, partition, children={'house': half, 'van': half})
    graph.wait(lambda: partition._partition.source.quality == 0, 'source')
    assert partition._partition.children == ['house', 'van']
    assert stored(graph)['house'] == pytest.approx(before['house'] + 0.2 / 0.6 * before['unassigned'], rel=0.35)
    assert any('car removed' in t for t in partition.notices)


def test_a_change_that_cannot_be_saved_is_no_change(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    partition, _, _ = make_partition(graph)

    def full(state: Any) -> None:
        raise OSError(28, 'No space left on device')

    before = stored(graph)
    with monkeypatch.context() as patch:
        patch.setattr(partition._desk._file, 'write', full)
        answer = resize(graph, 'house', 0.3)
        assert not answer.accepted and 'No space left' in answer.message
        assert partition.faults.get('partition.save') is not None
    assert partition._partition.children == ['house', 'grid']
    graph.wait(lambda: set(stored(graph)) == set(before), 'as before')
    assert resize(graph, 'house', 0.3).accepted
    assert partition.faults.get('partition.save') is None


def test_a_source_that_goes_stops_its_children_and_comes_back(graph: Any) -> None:
    partition, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    one.ask(500.0, lease=60.0)
    graph.wait(lambda: source.power == pytest.approx(500.0), 'runs')
    energy = one.statuses[-1].energy
    source.silent = True
    graph.wait(lambda: one.statuses[-1].quality == 2 and two.statuses[-1].quality == 2, 'INVALID')
    graph.wait(lambda: any('no status from source' in r for r in one.statuses[-1].limit_reasons), 'and why')
    assert one.statuses[-1].max_charge_power == 0.0
    fault = partition.faults.get('partition.source')
    assert fault is not None and 'no status from source' in fault.text
    graph.wait(lambda: source.power == 0.0, 'nothing is ordered of what nobody can see')
    source.set(energy_full=4000.0, energy=2400.0, max_charge_power=1000.0)  # restarted with another capacity
    source.silent = False
    graph.wait(lambda: one.statuses[-1].quality == 0, 'back')
    assert partition.faults.get('partition.source') is None
    graph.wait(lambda: one.statuses[-1].energy_full == pytest.approx(2000.0), 'its new capacity')
    assert one.statuses[-1].energy + two.statuses[-1].energy == pytest.approx(2400.0)
    assert one.statuses[-1].energy == pytest.approx(energy * 2400 / 2500, abs=1.0)
    graph.wait(lambda: source.power == pytest.approx(500.0), 'the lease still holds: it goes on')


def test_a_drained_child_stops_between_its_own_ticks(graph: Any) -> None:
    """The order of the source changes with the source's own status, not with the child's next tick."""
    partition, (house, grid), source = make_partition(graph, period=5.0)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    one.ask(-900.0, lease=60.0)
    two.ask(-200.0, lease=60.0)
    graph.wait(lambda: source.power == pytest.approx(-1100.0), 'both')
    asked = graph.clock.now()
    partition._partition.ledgers[0].energy = 0.0
    source.set(energy=1250.0)
    graph.wait(lambda: source.power == pytest.approx(-200.0), 'only the other one')
    assert graph.clock.now() - asked < 2.0


def test_ledgers_are_told_and_statements_add_up_to_the_counters(graph: Any) -> None:
    partition, (house, grid), source = make_partition(graph, price=0.25, currency='EUR')
    source.set(energy_charged=1000.0, energy_discharged=2000.0)
    told = graph.listen(LedgerState, 'split/ledgers', qos.MEASUREMENT)
    graph.wait(lambda: partition._partition.period.counter_last == (1000.0, 2000.0), 'counters')
    partition._partition.close_period(graph.clock.wall())  # from here on the start is known
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    one.ask(600.0, lease=20.0)
    two.ask(-200.0, lease=20.0)
    graph.wait(lambda: source.power == pytest.approx(400.0), 'runs')
    graph.settle(0.3)
    source.set(energy_charged=1012.5, energy_discharged=2000.5)
    graph.wait(lambda: partition._partition.period.counter_last == (1012.5, 2000.5), 'counters')
    answer = statement(graph, totals=True)
    rows = {r.child: r for r in answer.records}
    assert (rows[''].energy_in, rows[''].energy_out) == (12.5, 0.5)
    assert rows['house'].energy_in + rows['grid'].energy_in == 12.5
    assert rows['house'].energy_out + rows['grid'].energy_out == 0.5
    assert rows['house'].moved_in == rows['grid'].moved_out > 0
    assert not rows[''].final, 'the last period is still open'
    assert answer.currency == 'EUR' and rows[''].price == 0.25
    assert rows[''].cost == pytest.approx(12.0 / 1000 * 0.25, abs=2e-6)
    assert rows['house'].cost + rows['grid'].cost == pytest.approx(rows[''].cost, abs=1e-9)
    graph.wait(lambda: told and told[-1].ledgers and told[-1].counted, 'ledgers')
    assert [x.child for x in told[-1].ledgers] == ['house', 'grid']
    assert told[-1].source == 'source' and told[-1].policy == 'proportional'
    partition, _ = again(graph, partition)
    graph.wait(lambda: len(statement(graph).records) >= 4 * 3, 'records survive, a gap was booked')
    answer = statement(graph, child='', price=2.0, currency='USD')
    source_rows = [r for r in answer.records if r.child == '' and r.counted]
    assert sum(r.energy_in for r in source_rows) == pytest.approx(12.5)
    assert any(r.gap for r in answer.records) and answer.currency == 'USD'
    assert {r.child for r in statement(graph, child='house').records} == {'house'}


@pytest.mark.parametrize(('fields', 'problem'), [
    ({'child': 'nobody'}, "no record of 'nobody'"), ({'price': 1.0}, 'no currency'),
    ({'prices': [1.0]}, '0 times for 1 prices'), ({'price': 1.0, 'prices': [1.0], 'currency': 'EUR'}, 'not both'),
    ({'currency': 'EUR'}, 'no price in EUR')])
def test_statements_that_make_no_sense_are_refused(graph: Any, fields: dict[str, Any], problem: str) -> None:
    make_partition(graph)
    answer = graph.call(EnergyStatement, 'split/energy_statement', EnergyStatement.Request(**{'price': nan, **fields}))
    assert not answer.accepted and problem in answer.message and not answer.records


def test_a_damaged_ledger_file_is_told_and_the_records_help(graph: Any) -> None:
    partition, children, source = make_partition(graph)
    Kind(graph, children[0], [source], 50.0)
    partition._partition.ledgers[0].energy, partition._partition.ledgers[1].energy = 2000.0, 500.0
    partition._partition.close_period(graph.clock.wall())
    assert partition._desk.save(wait=True) == ''
    for node in (*children, partition):
        graph.remove(node)
    path = Path(graph.ctx.state_dir) / 'ledgers' / 'split.jsonl'
    path.write_bytes(path.read_bytes()[:40])
    fresh = graph.add(PartitionNode, 'split', partition.params)
    graph.up(fresh)
    assert [x.energy for x in fresh._partition.ledgers] == pytest.approx([2000.0, 500.0])
    fault = fresh.faults.get('partition.ledger')
    assert fault is not None and 'no whole one is left' in fault.text
    assert any('last energy record' in t for t in fresh.notices)


def test_promises_that_the_source_cannot_keep_are_a_fault(graph: Any) -> None:
    share = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    partition, (house, _), source = make_partition(graph, policy='guaranteed', children={
        'house': {**share, 'promised_charge_power': 1500.0}, 'grid': share})
    one = Kind(graph, house, [source], 50.0)
    assert one.statuses[-1].max_charge_power == pytest.approx(1750.0)
    answer = resize(graph, 'grid', 0.5, promised_charge_power=600.0)
    assert not answer.accepted and '2100 W of charge power are promised' in answer.message
    source.set(max_charge_power=750.0)
    graph.wait(lambda: partition.faults.get('partition.promise') is not None, 'fault')
    graph.wait(lambda: one.statuses[-1].max_charge_power == pytest.approx(750.0), 'all that is left is its own')
    source.set(max_charge_power=2000.0)
    graph.wait(lambda: partition.faults.get('partition.promise') is None, 'gone')




def both_at_400(graph: Any, given: float | None = None) -> tuple[Any, Kind, Kind, Any]:
    partition, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    for kind in (one, two):
        kind.ask(400.0, lease=60.0, given=given)
    graph.wait(lambda: source.power == pytest.approx(800.0), 'both charge')
    return partition, one, two, source


def test_orders_given_at_one_moment_are_never_added_to_older_ones(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_node, 'GATHER_S', 30.0)  # a machine of any slowness
    partition, one, two, source = both_at_400(graph, graph.clock.now())
    before = len(source.orders)
    given = graph.clock.now()
    one.ask(0.0, lease=60.0, given=given)
    graph.wait(lambda: partition._requests['house'].power == 0.0, 'the first of two orders')
    graph.settle(0.2)  # several ticks of the children and statuses of the source
    two.ask(0.0, lease=60.0, given=given)
    graph.wait(lambda: source.power == 0.0, 'both rest')
    assert {round(o.power) for _, o in list(source.orders)[before:]} <= {800, 0}


def test_an_order_that_others_do_not_follow_counts_after_a_moment(graph: Any) -> None:
    _, one, _, source = both_at_400(graph)
    one.ask(-100.0, lease=60.0)
    graph.wait(lambda: source.power == pytest.approx(300.0), 'ordered one by one')
