"""Schedules of logical batteries on real DDS: admission by all that lie below, durability, lead time, rest, crowds."""

from __future__ import annotations

import time
from datetime import datetime
from math import isnan, nan
from typing import Any

import pytest
from test_virtual_nodes import BATTERY, CONVERTER, TICK, Below

from bess.msg import BatteryStatus
from bess.srv import CancelSchedule, ListSchedule, Reserve, ScheduleAt, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.clock import Clock
from bess_core.convert import wall_stamp
from bess_core.values import Quality
from bess_virtual import reservation_node, scheduling_node
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.book import Promise
from bess_virtual.partition_node import PartitionChildNode, PartitionNode
from bess_virtual.plan import Plan
from bess_virtual.unit_node import UnitNode

CLIENTS = 10  # endpoints of 1000 callers: every endpoint of a service gets all its answers, 1000 of them in this one
# process would starve the hardware that it plays, and the battery would rightly refuse
HALF = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}


class Stack:
    """Two units, an aggregate of them, a partition of that, and an aggregate of its children: four layers."""

    def __init__(self, graph: Any, *, apart: bool = False, **unit: Any) -> None:
        self.graph = graph
        # In a context of their own the units are as in another process: reached by DDS only.
        self.other = None
        if apart:
            from dataclasses import replace
            self.other = replace(graph.ctx, nodes={}, shared={})
        self.below = {n: Below(graph, n, CONVERTER if n[0] == 'c' else BATTERY)
                      for n in ('bms_a', 'c_a', 'bms_b', 'c_b')}
        unit = {'charge_efficiency': 1.0, 'discharge_efficiency': 1.0, **TICK, **unit}
        self.units = [graph.add(UnitNode, n, {'bms': f'bms_{n}', 'converter': f'c_{n}', **unit}, ctx=self.other)
                      for n in ('a', 'b')]
        self.all = graph.add(AggregateNode, 'all', {'members': ['a', 'b'], **TICK})
        self.split = graph.add(PartitionNode, 'split', {
            'source': 'all', 'children': {'house': HALF, 'grid': HALF}, 'charge_efficiency': 1.0,
            'discharge_efficiency': 1.0, **TICK})
        self.children = [graph.add(PartitionChildNode, name, values)
                         for name, _, values in PartitionNode.expand('split', self.split.params)]
        self.both = graph.add(AggregateNode, 'both', {'members': ['house', 'grid'], **TICK})
        self.nodes = [*self.units, self.all, *self.children, self.both]
        graph.up(*self.units, self.all, self.split, *self.children, self.both)
        graph.wait(lambda: all(n.reading.quality == Quality.OK and n.reading.max_charge_power > 0.0
                               and n.reading.members_usable == n.reading.members for n in self.nodes), 'all measure')
        if apart:
            clients = self.all.scheduling._clients.values()
            graph.wait(lambda: all(c.service_is_ready() for c in clients), 'members found')

    def ask(self, battery: str, power: float, start: float, end: float, **values: Any) -> Any:
        """schedule_set_power; times in s from now."""
        wall = self.graph.clock.wall()
        return self.graph.call(ScheduleSetPower, f'{battery}/schedule_set_power', ScheduleSetPower.Request(
            power=power, start=wall_stamp(wall + start), end=wall_stamp(wall + end), **values))

    def ordered(self, name: str) -> float:
        return self.below[f'c_{name}'].power

    def promised(self, node: Any, after: float) -> float:
        return node.scheduling.book.plan.at(self.graph.clock.wall() + after)


@pytest.fixture
def stack(graph: Any) -> Stack:
    return Stack(graph)


# -- two phases --------------------------------------------------------------------------------------


@pytest.mark.parametrize('apart', [False, True])
def test_a_request_is_promised_by_every_layer_and_taken_back_from_every_layer(graph: Any, apart: bool) -> None:
    stack = Stack(graph, apart=apart)
    answer = stack.ask('both', -800.0, 100.0, 200.0)
    assert (answer.accepted, answer.message) == (True, '')
    for node in (*stack.units, *stack.children):
        graph.wait(lambda n=node: stack.promised(n, 150.0) == pytest.approx(-400.0), f'half of it at {node.name}')
    assert stack.promised(stack.all, 150.0) == pytest.approx(-800.0)
    assert isnan(stack.promised(stack.all, 250.0))
    assert stack.ask('house', 300.0, 1000.0, 1100.0).accepted, 'a child has a schedule of its own as well'
    graph.wait(lambda: stack.promised(stack.units[0], 1050.0) == pytest.approx(150.0), 'the sum of all children')
    assert stack.promised(stack.units[0], 150.0) == pytest.approx(-400.0)
    assert graph.call(CancelSchedule, 'both/cancel_schedule').cancelled == 1
    graph.wait(lambda: all(isnan(stack.promised(n, 150.0)) for n in stack.nodes), 'taken back everywhere')
    assert stack.promised(stack.units[0], 1050.0) == pytest.approx(150.0), 'the rest stays'


@pytest.mark.parametrize('apart', [False, True])
def test_what_one_member_refuses_is_held_by_none_and_the_reason_names_it(graph: Any, apart: bool) -> None:
    stack = Stack(graph, apart=apart)
    assert stack.ask('b', 500.0, 100.0, 200.0).accepted, 'somebody uses one unit directly'
    answer = stack.ask('both', -800.0, 150.0, 300.0)
    assert (answer.accepted, answer.event_id) == (False, 0)
    assert 'all: b: its own schedule (event 1) runs from' in answer.message
    assert graph.call(ListSchedule, 'both/list_schedule').entries == []
    assert all(len(n.scheduling.book) == 0 for n in stack.nodes), 'nothing is held anywhere'
    assert stack.ask('both', -800.0, 200.0, 300.0).accepted, 'beside it there is room'
    refused = stack.ask('b', 100.0, 250.0, 400.0)
    assert not refused.accepted and 'promised to all from' in refused.message
    assert graph.call(CancelSchedule, 'b/cancel_schedule').cancelled == 1
    assert stack.ask('both', -800.0, 150.0, 300.0).accepted


def test_opposite_requests_of_children_cancel_and_beyond_the_source_is_refused(stack: Stack) -> None:
    assert stack.ask('house', 1500.0, 100.0, 200.0).accepted
    assert stack.ask('grid', -1500.0, 100.0, 200.0).accepted
    assert stack.promised(stack.all, 150.0) == pytest.approx(0.0)
    assert 'is outside of' in stack.ask('house', 99_000.0, 100.0, 200.0).message
    stack.below['bms_a'].set(max_charge_power=100.0, max_charge_current=2.0)
    stack.graph.wait(lambda: stack.units[0].reading.max_charge_power == pytest.approx(100.0), 'limited')
    answer = stack.ask('a', 1000.0, 0.0, 100.0)
    assert not answer.accepted and 'outside' in answer.message
    assert stack.ask('a', 1000.0, 100.0, 200.0).accepted is False, 'promised to the aggregate'
    assert stack.ask('a', 1000.0, 300.0, 400.0).accepted, 'later it may be able to again'


def test_a_dead_coordinator_leaves_nothing_behind(graph: Any, stack: Stack) -> None:
    wall = graph.clock.wall()
    plan = {'times': [wall + 100.0, wall + 200.0], 'powers': [500.0]}
    ask = {'owner': 'ghost', 'hold_time': 0.3, 'keep_time': 0.4}
    held = graph.call(Reserve, 'a/reserve', Reserve.Request(phase=1, hold=1, **ask, **plan))
    assert (held.accepted, held.message) == (True, '')
    refused = stack.ask('all', 800.0, 150.0, 160.0)
    assert not refused.accepted and 'a: promised to ghost' in refused.message
    graph.wait(lambda: len(stack.units[0].scheduling.book) == 0, 'the hold ends', 2.0)
    late = graph.call(Reserve, 'a/reserve', Reserve.Request(phase=2, hold=1, **ask))
    assert not late.accepted and 'nothing is held for ghost' in late.message
    for phase in (1, 2):
        assert graph.call(Reserve, 'a/reserve', Reserve.Request(phase=phase, hold=2, **ask, **plan)).accepted
    assert stack.promised(stack.units[0], 150.0) == 500.0
    graph.wait(lambda: len(stack.units[0].scheduling.book) == 0, 'the plan ends when nobody renews it', 2.0)
    assert stack.ask('all', 800.0, 150.0, 160.0).accepted


def test_a_question_whose_answer_was_lost_is_acted_on_once(graph: Any, stack: Stack) -> None:
    wall, book = graph.clock.wall(), stack.units[0].scheduling.book
    plan = {'times': [wall + 100.0, wall + 200.0], 'powers': [500.0]}
    ask = {'owner': 'above', 'hold': 7, 'hold_time': 5.0, 'keep_time': 60.0}
    leave: list[Any] = []
    assert stack.units[0].scheduling.turns.enter(leave.append)  # another admission is under way
    client = graph.peer.create_client(Reserve, 'a/reserve')
    graph.wait(client.service_is_ready, 'service')
    futures = [client.call_async(Reserve.Request(phase=1, **ask, **plan)) for _ in range(3)]
    graph.settle(0.2)
    assert not any(f.done() for f in futures)
    leave[0]()
    graph.wait(lambda: all(f.done() for f in futures), 'all three answers')
    assert all(f.result().accepted for f in futures)
    assert len(book) == 1
    for _ in range(2):
        assert graph.call(Reserve, 'a/reserve', Reserve.Request(phase=2, **ask)).accepted
    assert graph.call(Reserve, 'a/reserve', Reserve.Request(phase=1, **ask, **plan)).accepted, 'a late one'
    assert len(book) == 1 and stack.promised(stack.units[0], 150.0) == 500.0
    assert graph.call(Reserve, 'a/reserve', Reserve.Request(phase=1, **{**ask, 'hold': 8})).accepted
    for _ in range(2):  # nothing is planned any more
        assert graph.call(Reserve, 'a/reserve', Reserve.Request(phase=2, **{**ask, 'hold': 8})).accepted
    assert len(book) == 0


def test_a_cancellation_that_is_asked_again_is_no_refusal(graph: Any, stack: Stack) -> None:
    event = stack.ask('all', 800.0, 100.0, 200.0).event_id
    answers = [graph.call(CancelSchedule, 'all/cancel_schedule', CancelSchedule.Request(event_id=event))
               for _ in range(2)]
    assert [(a.accepted, a.cancelled) for a in answers] == [(True, 1), (True, 0)]
    assert answers[1].message == f'event {event} was cancelled before'
    assert not graph.call(CancelSchedule, 'all/cancel_schedule', CancelSchedule.Request(event_id=event + 1)).accepted


def test_hostile_reservations_are_refused(graph: Any, stack: Stack) -> None:
    good = {'phase': 1, 'owner': 'x', 'hold': 1, 'hold_time': 1.0, 'keep_time': 1.0, 'times': [9e9, 9.1e9],
            'powers': [1.0]}
    for bad in ({'phase': 7}, {'owner': ''}, {'owner': 'x' * 257}, {'hold': 0}, {'hold_time': nan}, {'hold_time': 1e9},
                {'keep_time': -1.0}, {'times': [2.0, 1.0]}, {'times': [nan, 1.0]}, {'powers': [float('inf')]},
                {'powers': []}, {'powers': [1e9]}, {'powers': [-1e300]}):
        answer = graph.call(Reserve, 'a/reserve', Reserve.Request(**{**good, **bad}))
        assert not answer.accepted and answer.message, bad
    assert len(stack.units[0].scheduling.book) == 0
    assert stack.units[0].faults.get('node.callback') is None


def test_a_member_that_restarts_is_asked_again(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'RENEW_S', 0.3)
    stack = Stack(graph)
    assert stack.ask('all', 800.0, 100.0, 200.0).accepted
    unit = stack.units[0]
    graph.remove(unit)
    again = graph.add(UnitNode, 'a', unit.params)
    graph.up(again)
    graph.wait(lambda: stack.promised(again, 150.0) == pytest.approx(400.0), 'promised again', 5.0)


def test_what_is_not_admitted_any_more_is_a_fault_until_it_is(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'RENEW_S', 0.2)
    monkeypatch.setattr(reservation_node, 'RETRY_S', 0.1)
    stack = Stack(graph)
    assert stack.ask('all', 800.0, 100.0, 200.0).accepted
    unit = stack.units[0]
    graph.remove(unit)
    again = graph.add(UnitNode, 'a', unit.params)
    graph.up(again)
    # Somebody else is quicker than the owner.
    wall = graph.clock.wall()
    again.scheduling.book.hold(Promise(
        'ghost', 1, Plan([wall, wall + 500.0], [1.0]), graph.clock.now() + 99.0))
    again.scheduling.book.commit('ghost', 1, graph.clock.now() + 1.5)

    def said() -> str:
        fault = stack.all.faults.get('schedule.not_admitted')
        return fault.text if fault else ''

    graph.wait(lambda: 'a: promised to ghost' in said(), said, 5.0)
    assert len(graph.call(ListSchedule, 'all/list_schedule').entries) == 1, 'it stays accepted'
    graph.wait(lambda: stack.all.faults.get('schedule.not_admitted') is None, 'admitted again', 5.0)
    assert stack.promised(again, 150.0) == pytest.approx(400.0)


def test_the_fault_ends_soon_also_when_another_request_is_admitted_first(
        graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'RETRY_S', 0.5)
    stack = Stack(graph)
    assert stack.ask('all', 800.0, 100.0, 200.0).accepted
    book, wall = stack.units[0].scheduling.book, graph.clock.wall()
    book.hold(Promise('ghost', 1, Plan([wall, wall + 500.0], [1.0]), graph.clock.now() + 99.0))
    stack.all.readmit()
    graph.wait(lambda: stack.all.faults.get('schedule.not_admitted') is not None, 'a fault')
    book.abort('ghost', 1)
    assert stack.ask('all', 800.0, 300.0, 400.0).accepted
    graph.wait(lambda: stack.all.faults.get('schedule.not_admitted') is None, 'all is admitted', 3.0)


def test_a_member_that_hangs_is_a_refusal_in_time(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'ANSWER_S', 0.3)
    stack = Stack(graph, apart=True)
    unit = stack.units[1]
    monkeypatch.setattr(unit.scheduling, 'reserve', lambda ask, done: None)
    answer = stack.ask('all', 800.0, 100.0, 200.0)
    assert not answer.accepted and 'b: it does not answer within 0.3 s' in answer.message
    assert len(stack.units[0].scheduling.book) == 0, 'the other one is let go'


def test_readmission_after_a_change_of_membership_shares_anew(graph: Any, stack: Stack) -> None:
    assert stack.ask('all', -800.0, 100.0, 200.0).accepted
    stack.below['bms_b'].silent = True
    graph.wait(lambda: stack.all.reading.members_usable == 1, 'one is lost', 5.0)
    stack.all.readmit()
    graph.wait(lambda: stack.promised(stack.units[0], 150.0) == pytest.approx(-800.0), 'the other one takes it all')
    graph.wait(lambda: stack.promised(stack.units[1], 150.0) == pytest.approx(0.0), 'and the lost one nothing')


# -- energy ------------------------------------------------------------------------------------------


def test_what_the_energy_cannot_serve_is_foreseen_or_refused(stack: Stack) -> None:
    """2500 Wh in each unit: 2 kW out of both for 3 h are 1000 Wh too much."""
    strict = stack.ask('all', -2000.0, 10.0, 3 * 3600.0 + 10.0, strict=True)
    assert (strict.accepted, strict.event_id) == (False, 0)
    assert 'strict: the battery will be empty after about 150 min of it' in strict.message
    assert strict.shortfall == pytest.approx(1000.0, rel=1e-3)
    wall = stack.graph.clock.wall()
    answer = stack.ask('all', -2000.0, 10.0, 3 * 3600.0 + 10.0)
    assert answer.accepted and 'the battery will be empty after about 150 min of it' in answer.message
    assert answer.shortfall == pytest.approx(1000.0, rel=1e-3)
    assert answer.runs_out.sec == pytest.approx(wall + 10.0 + 9000.0, abs=5.0)
    assert stack.ask('all', -1000.0, 20_000.0, 21_000.0, strict=True).accepted is False, 'nothing is left by then'
    assert stack.ask('all', 1000.0, 11_000.0, 18_000.0, strict=True).accepted, 'there is room to charge'
    assert stack.ask('all', -1000.0, 20_000.0, 21_000.0, strict=True).accepted, 'now it is foreseen to be served'
    charge = stack.ask('all', 2000.0, 11_000.0, 18_000.0 + 3600.0 * 4)
    assert 'will be full' in charge.message


def test_strict_also_protects_what_was_accepted_before(stack: Stack) -> None:
    assert stack.ask('all', -2000.0, 10_000.0, 10_000.0 + 2 * 3600.0, strict=True).accepted
    answer = stack.ask('all', -1000.0, 1000.0, 1000.0 + 2 * 3600.0, strict=True)
    assert not answer.accepted and 'strict: other requests would lack 1000 Wh' in answer.message
    answer = stack.ask('all', -1000.0, 1000.0, 1000.0 + 2 * 3600.0)
    assert answer.accepted and 'other requests will lack 1000 Wh' in answer.message


# -- ids of the caller -------------------------------------------------------------------------------


@pytest.mark.parametrize('state', ['empty', 'full', 'silent'])
def test_a_stop_is_accepted_by_a_battery_that_is_empty_or_unknown(graph: Any, stack: Stack, state: str) -> None:
    for name in ('bms_a', 'bms_b'):
        below = stack.below[name]
        if state == 'silent':
            below.silent = True
        else:
            energy = 0.0 if state == 'empty' else below.reading.energy_full
            below.set(energy=energy, charge=energy / 50.0, soc=energy / below.reading.energy_full,
                      **{f'max_{"dis" if state == "empty" else ""}charge_{what}': 0.0 for what in ('current', 'power')})
    reading = lambda: stack.all.reading  # noqa: E731
    graph.wait(lambda: reading().quality == Quality.INVALID if state == 'silent' else
               0.0 in (reading().max_charge_power, reading().max_discharge_power), state)
    assert stack.ask('all', 0.0, 0.0, 60.0).accepted
    power = {'empty': -100.0, 'full': 100.0, 'silent': 100.0}[state]
    refused = stack.ask('all', power, 0.0, 60.0)
    assert not refused.accepted and refused.message


def test_a_repeated_id_gives_the_same_answer_and_adds_nothing(graph: Any, stack: Stack) -> None:
    wall = graph.clock.wall()
    request = ScheduleSetPower.Request(power=-500.0, start=wall_stamp(wall + 50), end=wall_stamp(wall + 90),
                                       request_id='car-1', source='wallbox')
    client = graph.peer.create_client(ScheduleSetPower, 'all/schedule_set_power', qos_profile=qos.SERVICE)
    graph.wait(client.service_is_ready, 'service')
    futures = [client.call_async(request) for _ in range(20)]
    graph.wait(lambda: all(f.done() for f in futures), 'all answered')
    assert {(f.result().accepted, f.result().event_id) for f in futures} == {(True, 1)}
    (entry,) = graph.call(ListSchedule, 'all/list_schedule').entries
    assert (entry.request_id, entry.source) == ('car-1', 'wallbox')
    other = graph.call(ScheduleSetPower, 'all/schedule_set_power', ScheduleSetPower.Request(
        power=-501.0, start=request.start, end=request.end, request_id='car-1'))
    assert not other.accepted and "'car-1' was used for another request (event 1)" in other.message
    node = stack.all
    graph.remove(node)
    again = graph.add(AggregateNode, 'all', node.params)
    graph.up(again)
    answer = graph.call(ScheduleSetPower, 'all/schedule_set_power', request)
    assert (answer.accepted, answer.event_id, answer.repeated) == (True, 1, True), 'also after a restart'
    assert graph.call(CancelSchedule, 'all/cancel_schedule').cancelled == 1
    answer = graph.call(ScheduleSetPower, 'all/schedule_set_power', request)
    assert (answer.event_id, answer.repeated) == (1, True) and 'cancelled' in answer.message
    assert graph.call(ListSchedule, 'all/list_schedule').entries == [], 'a late retry does not bring it back'


def test_a_refused_id_may_be_tried_again(graph: Any, stack: Stack) -> None:
    assert not stack.ask('all', 1e6, 10.0, 20.0, request_id='x').accepted
    assert stack.ask('all', 100.0, 10.0, 20.0, request_id='x').accepted


def withdraw(graph: Any, *ids: str) -> Any:
    return graph.call(CancelSchedule, 'all/cancel_schedule', CancelSchedule.Request(request_ids=list(ids)))


def test_a_request_is_withdrawn_by_its_id_wherever_it_is(graph: Any, stack: Stack) -> None:
    kept = stack.ask('all', 50.0, 600.0, 700.0, request_id='kept')
    assert stack.ask('all', 100.0, 500.0, 600.0, request_id='accepted').accepted
    # One that still waits for its turn, to begin now: it is refused and never runs.
    leave: list[Any] = []
    assert stack.all.scheduling.turns.enter(leave.append)
    client = graph.peer.create_client(ScheduleSetPower, 'all/schedule_set_power')
    graph.wait(client.service_is_ready, 'service')
    wall = graph.clock.wall()
    waiting = client.call_async(ScheduleSetPower.Request(
        power=-400.0, start=wall_stamp(wall), end=wall_stamp(wall + 100.0), request_id='waiting'))
    graph.wait(lambda: 'waiting' in stack.all.scheduling._waiting, 'it waits')
    answer = withdraw(graph, 'accepted', 'waiting', 'never seen')
    assert answer.accepted and answer.cancelled == 1, answer
    leave[0]()
    graph.wait(waiting.done, 'an answer')
    assert not waiting.result().accepted and 'withdrawn' in waiting.result().message
    # One that arrives afterwards, and a second withdrawal.
    assert 'withdrawn' in stack.ask('all', -400.0, 0.0, 100.0, request_id='never seen').message
    assert withdraw(graph, 'accepted').accepted
    assert [e.event_id for e in graph.call(ListSchedule, 'all/list_schedule').entries] == [kept.event_id]
    assert stack.promised(stack.units[0], 550.0) != 50.0
    assert all(o.power == 0.0 for _, o in stack.below['c_a'].orders), 'nothing ran'
    node = stack.all
    graph.remove(node)
    again = graph.add(AggregateNode, 'all', node.params)
    graph.up(again)
    assert [r.request_id for r in again.schedule.entries(wall)] == ['kept'], 'nor after a restart'


def test_one_that_is_on_its_way_to_the_disk_is_withdrawn_before_it_runs(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = stack.all.scheduling._committer
    submitted: list[Any] = []
    submit = committer.submit
    monkeypatch.setattr(committer, 'submit', lambda *args: submitted.append(args))
    client = graph.peer.create_client(ScheduleSetPower, 'all/schedule_set_power')
    graph.wait(client.service_is_ready, 'service')
    wall = graph.clock.wall()
    asked = client.call_async(ScheduleSetPower.Request(
        power=-400.0, start=wall_stamp(wall), end=wall_stamp(wall + 100.0), request_id='x'))
    graph.wait(lambda: submitted, 'it is being saved')
    canceller = graph.peer.create_client(CancelSchedule, 'all/cancel_schedule')
    graph.wait(canceller.service_is_ready, 'service')
    taken = canceller.call_async(CancelSchedule.Request(request_ids=['x']))
    graph.wait(lambda: len(submitted) == 2, 'and withdrawn')
    for args in submitted:
        submit(*args)
    graph.wait(lambda: asked.done() and taken.done(), 'both answers')
    assert not asked.result().accepted and 'withdrawn' in asked.result().message
    assert taken.result().accepted and taken.result().cancelled == 1
    graph.settle(0.2)
    assert all(o.power == 0.0 for _, o in stack.below['c_a'].orders), 'nothing ran'
    assert not graph.call(ListSchedule, 'all/list_schedule').entries


@pytest.mark.parametrize('ids', [[''], ['x' * 129], ['x'] * 101])
def test_hostile_ids_to_withdraw_are_refused(graph: Any, stack: Stack, ids: list[str]) -> None:
    assert stack.ask('all', 100.0, 500.0, 600.0, request_id='x').accepted
    answer = withdraw(graph, *ids)
    assert not answer.accepted and 'at most 100 texts' in answer.message
    assert len(graph.call(ListSchedule, 'all/list_schedule').entries) == 1


# -- what runs ---------------------------------------------------------------------------------------


def test_what_runs_at_a_time(graph: Any, stack: Stack) -> None:
    wall = graph.clock.wall()
    assert stack.ask('all', -500.0, 100.0, 200.0, source='tariff').accepted

    def at(battery: str, after: float) -> Any:
        return graph.call(ScheduleAt, f'{battery}/schedule_at', ScheduleAt.Request(at=wall_stamp(wall + after)))

    there = at('all', 150.0)
    assert (there.active, there.event_id, there.is_power, there.value, there.source, there.owner) == (
        True, 1, True, -500.0, 'tariff', '')
    assert there.until.sec == pytest.approx(wall + 200.0, abs=2.0)
    below = at('a', 150.0)
    assert (below.active, below.event_id, below.owner, below.value) == (True, 0, 'all', -250.0)
    assert at('all', 50.0).active is False and isnan(at('all', 50.0).power)
    assert at('all', 50.0).until.sec == pytest.approx(wall + 100.0, abs=2.0)
    assert at('all', 500.0).until.sec == 0
    statuses = graph.listen(BatteryStatus, 'all/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].next_power == -500.0, 'the status shows the next change')
    assert statuses[-1].next_change.sec == pytest.approx(wall + 100.0, abs=2.0)


# -- lead time ---------------------------------------------------------------------------------------


def test_a_slow_member_is_ordered_early_and_the_status_shows_it(graph: Any) -> None:
    stack = Stack(graph)
    graph.remove(stack.units[1])
    slow = graph.add(UnitNode, 'b', {'bms': 'bms_b', 'converter': 'c_b', 'charge_efficiency': 1.0, 'lead_time': 0.6,
                                     'lead_time_change': 0.3, 'discharge_efficiency': 1.0, **TICK})
    graph.up(slow)
    graph.wait(lambda: stack.all.reading.members_usable == 2 and stack.all.reading.lead_time == 0.6, 'lead time known')
    statuses = graph.listen(BatteryStatus, 'both/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].lead_time == 0.6, 'passed upward through all layers')
    began = graph.clock.now()
    assert stack.ask('both', 800.0, 1.2, 2.4).accepted
    start, end = began + 1.2, began + 2.4
    own = graph.listen(BatteryStatus, 'b/status', qos.MEASUREMENT)
    a, b = stack.below['c_a'].orders, stack.below['c_b'].orders
    graph.wait(lambda: a and a[-1][1].power > 0.0, 'the quick one runs', 5.0)
    graph.wait(lambda: a[-1][1].power == 0.0, 'and ends', 5.0)
    first = {name: next(at for at, o in orders if o.power > 0.0) for name, orders in (('a', a), ('b', b))}
    last = {name: max(at for at, o in orders if o.power > 0.0) for name, orders in (('a', a), ('b', b))}
    assert start - 0.65 <= first['b'] <= start - 0.1, 'the slow one is ordered early'
    assert start - 0.02 <= first['a'], 'the quick one on time'
    assert last['b'] <= end - 0.1 and last['b'] < last['a'], 'the slow one ends early as well'
    assert not any(o.power == 0.0 for at, o in b if first['b'] < at < last['b']), 'no gap where the owner takes over'
    assert any('lead time: ordered' in r for s in own for r in s.limit_reasons), 'the status shows it'
    graph.wait(lambda: 'start' in slow.diagnostics()['lead time, seen'], 'and it was measured')


def test_a_start_closer_than_the_lead_time_is_sent_at_once_and_said(graph: Any) -> None:
    stack = Stack(graph, lead_time=5.0)
    answer = stack.ask('all', 500.0, 1.0, 100.0)
    assert answer.accepted and 'up to 4 s late: the lead time is 5 s' in answer.message
    began = graph.clock.now()
    graph.wait(lambda: stack.ordered('a') == pytest.approx(250.0), 'at once')
    assert graph.clock.now() - began < 0.5


# -- the end -----------------------------------------------------------------------------------------


def test_rest_is_sent_until_it_is_confirmed_and_failure_is_a_fault(graph: Any) -> None:
    stack = Stack(graph, rest_timeout=0.5)
    unit, converter = stack.units[0], stack.below['c_a']
    assert stack.ask('a', 500.0, 0.0, 0.6).accepted
    graph.wait(lambda: stack.ordered('a') == 500.0 and unit.reading.power == pytest.approx(500.0), 'runs')
    converter.follows = False
    graph.wait(lambda: stack.ordered('a') == 0.0, 'rest is ordered', 3.0)
    graph.wait(lambda: unit.faults.get('battery.rest'), 'fault', 3.0)
    assert '500 W flow' in unit.faults.get('battery.rest').text
    count = len(converter.orders)
    graph.settle(0.3)
    assert len(converter.orders) >= count + 3 and stack.ordered('a') == 0.0, 'rest is still sent'
    converter.set(active_power=3.0)
    graph.wait(lambda: unit.faults.get('battery.rest') is None, 'confirmed', 3.0)
    graph.settle(0.2)
    count = len(converter.orders)
    graph.settle(0.2)
    assert len(converter.orders) == count, 'then it is let go'


# -- time --------------------------------------------------------------------------------------------


class Steppable(Clock):
    """Real time whose wall clock can be set."""

    origin = 0.0  # another day
    shift = 0.0  # what a test puts it forward by

    def wall(self) -> float:
        return time.time() + self.origin + self.shift


@pytest.fixture
def stepped(graph: Any, central_europe: None, request: pytest.FixtureRequest) -> Stack:
    """`indirect` parameter: the day and time that it is (ISO 8601 with offset), '' = now."""
    graph.clock = graph.ctx.clock = Steppable()
    if then := getattr(request, 'param', ''):
        graph.clock.origin = datetime.fromisoformat(then).timestamp() - time.time()
    return Stack(graph)


# The second and third begin a moment before daylight saving begins and ends.
@pytest.mark.parametrize('stepped', ['', '2026-03-29T00:59:58+00:00', '2026-10-25T00:59:58+00:00'], indirect=True)
def test_a_clock_that_is_put_forward_and_back_skips_and_repeats_nothing(stepped: Stack) -> None:
    stack, graph = stepped, stepped.graph
    assert stack.ask('a', 300.0, 1800.0, 5400.0).accepted
    now = stack.ask('a', 200.0, -1.0, 600.0)
    assert now.accepted
    graph.wait(lambda: stack.ordered('a') == 200.0, 'the present one')
    graph.clock.shift = 3600.0
    graph.wait(lambda: stack.ordered('a') == 300.0, 'an hour later the later one runs', 2.0)
    stack.units[0].scheduling.prune()
    graph.clock.shift = 0.0
    graph.wait(lambda: stack.ordered('a') == 200.0, 'put right again, the present one goes on', 2.0)
    assert [e.event_id for e in graph.call(ListSchedule, 'a/list_schedule').entries] == [1, 2]
    graph.clock.shift = -3600.0
    graph.settle(0.2)
    assert stack.ordered('a') == 0.0, 'an hour earlier neither of the two has begun'
    graph.clock.shift = 0.0
    graph.wait(lambda: stack.ordered('a') == 200.0, 'and back', 2.0)
    orders = [o.power for _, o in stack.below['c_a'].orders]
    assert set(orders) <= {0.0, 200.0, 300.0}


def test_what_began_now_goes_on_when_the_clock_is_put_back(stepped: Stack) -> None:
    stack, graph = stepped, stepped.graph
    answer = graph.call(ScheduleSetPower, 'a/schedule_set_power', ScheduleSetPower.Request(
        power=200.0, end=wall_stamp(graph.clock.wall() + 600.0)))
    assert answer.accepted
    (entry,) = graph.call(ListSchedule, 'a/list_schedule').entries
    assert entry.start.sec == pytest.approx(graph.clock.wall(), abs=2.0) and entry.running
    graph.wait(lambda: stack.ordered('a') == 200.0, 'runs')
    mark = len(stack.below['c_a'].orders)
    for shift in (-0.5, -3600.0, 0.0):
        graph.clock.shift = shift
        graph.settle(0.2)
    assert {o.power for _, o in stack.below['c_a'].orders[mark:]} == {200.0}


def test_ended_requests_are_forgotten_an_hour_later_of_the_clock_that_nobody_sets(
        stepped: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, graph = stepped, stepped.graph
    scheduling = stack.units[0].scheduling
    assert stack.ask('a', 200.0, 0.0, 10.0).accepted
    monkeypatch.setattr(scheduling_node, 'REMEMBER_S', 0.3)
    scheduling.prune()
    graph.clock.shift = 3600.0
    scheduling.prune()
    assert len(scheduling.schedule) == 1
    graph.settle(0.35)
    scheduling.prune()
    graph.settle(0.35)
    scheduling.prune()
    assert len(scheduling.schedule) == 0


# -- crowds and hostility ----------------------------------------------------------------------------


def test_a_thousand_requests_at_once_are_all_answered_and_nothing_is_lost(graph: Any, stack: Stack) -> None:
    clients = [graph.peer.create_client(ScheduleSetCurrent, 'all/schedule_set_current', qos_profile=qos.SERVICE)
               for _ in range(CLIENTS)]
    graph.wait(lambda: all(c.service_is_ready() for c in clients), 'service', 60.0)
    wall = graph.clock.wall()
    began, futures = graph.clock.now(), []
    for i in range(1000):
        futures.append(clients[i % CLIENTS].call_async(ScheduleSetCurrent.Request(
            current=1.0 + i / 100.0, start=wall_stamp(wall + 600 + i), end=wall_stamp(wall + 1200 + i),
            request_id=f'client {i}')))
    ticks = stack.all.progress
    graph.wait(lambda: all(f.done() for f in futures), lambda: f'{sum(f.done() for f in futures)} of 1000', 60.0)
    took = graph.clock.now() - began
    answers = [f.result() for f in futures]
    assert all(a.accepted for a in answers), next(a.message for a in answers if not a.accepted)
    assert sorted(a.event_id for a in answers) == list(range(1, 1001)), 'each its own'
    assert stack.all.progress > ticks, 'the battery worked on meanwhile'
    entries = graph.call(ListSchedule, 'all/list_schedule').entries
    assert sorted(e.request_id for e in entries) == sorted(f'client {i}' for i in range(1000))
    for i in (0, 1, 500, 999):
        entry = next(e for e in entries if e.request_id == f'client {i}')
        assert entry.value == 1.0 + i / 100.0, 'exact floats'
    node = stack.all
    graph.remove(node)
    again = graph.add(AggregateNode, 'all', node.params)
    graph.up(again)
    assert len(again.schedule.entries(wall)) == 1000, 'all on disk'
    assert took < 60.0


def test_more_than_can_wait_are_refused_not_forgotten(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = stack.all.scheduling.turns
    kept: list[Any] = []
    monkeypatch.setattr(turns, '_limit', 5)
    turns.enter(kept.append)  # an admission that takes its time
    client = graph.peer.create_client(ScheduleSetPower, 'all/schedule_set_power', qos_profile=qos.SERVICE)
    graph.wait(client.service_is_ready, 'service')
    wall = graph.clock.wall()
    request = ScheduleSetPower.Request(power=1.0, start=wall_stamp(wall + 60), end=wall_stamp(wall + 70))
    futures = [client.call_async(request) for _ in range(9)]
    graph.wait(lambda: sum(f.done() for f in futures) == 4, 'four too many')
    assert all('too many' in f.result().message for f in futures if f.done())
    kept[0]()
    graph.wait(lambda: all(f.done() for f in futures), 'the others')
    assert sum(f.result().accepted for f in futures) == 5


@pytest.mark.parametrize(('values', 'reason'), [
    ({'request_id': 'x' * 129}, 'at most 128'), ({'request_id': 'a\nb'}, 'cannot be printed'),
    ({'request_id': '\x1b[2J'}, 'cannot be printed'), ({'source': 'y' * 65}, 'at most 64'),
    ({'source': '\u202e'}, 'cannot be printed'), ({'power': nan}, 'not a finite'),
    ({'power': float('inf')}, 'not a finite'),
    ({'power': 1e308}, 'outside'), ({'power': -1e308}, 'outside')])
def test_hostile_names_and_sizes(graph: Any, stack: Stack, values: dict[str, Any], reason: str) -> None:
    answer = stack.ask('all', **{'power': 10.0, 'start': 10.0, 'end': 20.0, **values})
    assert (answer.accepted, answer.event_id) == (False, 0)
    assert reason in answer.message
    assert graph.call(ListSchedule, 'all/list_schedule').entries == []
    assert stack.all.faults.get('node.callback') is None


def test_strange_but_printable_names_are_kept_exactly(graph: Any, stack: Stack) -> None:
    name = '../../etc/passwd "q" {"op":"cancel","ids":[1]} \u00fc\u4e16'
    assert stack.ask('all', 10.0, 10.0, 20.0, request_id=name).accepted
    node = stack.all
    graph.remove(node)
    graph.up(graph.add(AggregateNode, 'all', node.params))
    (entry,) = graph.call(ListSchedule, 'all/list_schedule').entries
    assert entry.request_id == name


# -- disk --------------------------------------------------------------------------------------------


def test_a_torn_journal_is_recovered_and_said(graph: Any, stack: Stack) -> None:
    for i in range(3):
        assert stack.ask('a', 100.0 + i, 100.0 + i, 200.0).accepted
    unit = stack.units[0]
    file = graph.ctx.state_dir / 'schedules' / 'a.jsonl'
    graph.remove(unit)
    data = file.read_bytes()
    lines = data.splitlines(keepends=True)
    for size, whole in ((len(data) - 1, 2), (len(data) - 30, 2), (len(lines[0]) + 5, 1), (3, 0), (len(lines[0]), 1)):
        file.write_bytes(data[:size])
        again = graph.add(UnitNode, 'a', unit.params)
        graph.up(again)
        assert len(again.schedule) == whole
        fault = again.faults.get('schedule.journal')
        assert bool(fault) == (size not in (len(lines[0]), len(data)))
        if fault:
            assert 'was not accepted' in fault.text
        graph.remove(again)


def test_a_full_disk_refuses_and_nothing_runs(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = stack.all.scheduling._committer.journal

    def full(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(journal, '_write', full)
    answer = stack.ask('all', 500.0, 0.0, 50.0, request_id='x')
    assert not answer.accepted and 'could not be saved' in answer.message and 'No space left' in answer.message
    assert graph.call(ListSchedule, 'all/list_schedule').entries == []
    graph.wait(lambda: all(isnan(stack.promised(n, 20.0)) for n in stack.nodes), 'no promise stays')
    assert all(o.power == 0.0 for b in stack.below.values() for _, o in b.orders)
    monkeypatch.undo()
    assert stack.ask('all', 500.0, 0.0, 50.0, request_id='x').accepted
