"""Children of a partition that one owner asks at once: what lies below is asked once, and all are admitted or none."""

from __future__ import annotations

from math import isnan
from typing import Any

import pytest
from test_schedule_nodes import TICK, Stack

from bess.msg import BatteryStatus
from bess.srv import CancelSchedule, Reserve, ScheduleSetPower
from bess_core import qos
from bess_core.convert import battery_to_msg, wall_stamp
from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual import reservation_node
from bess_virtual.admission import Answer, Ask, Together, Token
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.plan import Plan, single
from bess_virtual.reservation_node import ABORT, COMMIT, PREPARE


@pytest.fixture
def stack(graph: Any) -> Stack:
    return Stack(graph)


def heard(monkeypatch: pytest.MonkeyPatch, *nodes: Any) -> dict[str, list[Ask]]:
    """Questions of owners in this process, from now on."""
    asked: dict[str, list[Ask]] = {}
    for node in nodes:
        def reserve(ask: Ask, done: Any, kept: Any = asked.setdefault(node.name, []),
                    before: Any = node.scheduling.reserve) -> None:
            kept.append(ask)
            before(ask, done)

        monkeypatch.setattr(node.scheduling, 'reserve', reserve)
    return asked


def phases(asked: list[Ask]) -> list[int]:
    return [ask.phase for ask in asked]


def divided(stack: Stack, monkeypatch: pytest.MonkeyPatch, **factors: float) -> None:
    """`both` asks of each child its plan times a factor."""
    monkeypatch.setattr(stack.both, 'plans_below', lambda plan: [
        (name, Plan(plan.times, [p * f for p in plan.powers])) for name, f in factors.items()])


def idle(stack: Stack) -> None:
    """Nothing is held anywhere, and nobody waits."""
    assert all(len(n.scheduling.book) == 0 for n in stack.nodes)
    done: list[bool] = []
    for node in stack.nodes:
        node.scheduling.turns.enter(lambda leave: (done.append(True), leave()))
    assert len(done) == len(stack.nodes), 'a turn was not given back'


def test_what_lies_below_is_asked_once(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch, *stack.nodes)
    later: list[str] = []
    for node in stack.nodes:
        monkeypatch.setattr(node.scheduling, 'renew_soon', lambda name=node.name: later.append(name))
    assert stack.ask('both', -800.0, 100.0, 200.0).accepted
    assert {name: phases(asks) for name, asks in asked.items()} == {
        **dict.fromkeys(['a', 'b', 'all', 'house', 'grid'], [PREPARE, COMMIT]), 'both': []}
    assert [ask.plan.at(graph.clock.wall() + 150.0) for ask in asked['all']][0] == pytest.approx(-800.0)
    for node in stack.children:
        assert stack.promised(node, 150.0) == pytest.approx(-400.0)
    assert stack.promised(stack.all, 150.0) == pytest.approx(-800.0)
    for asks in asked.values():
        asks.clear()
    # An empty plan is put into force once as well: the second time nobody would know of it.
    assert graph.call(CancelSchedule, 'both/cancel_schedule').cancelled == 1
    graph.wait(lambda: all(len(n.scheduling.book) == 0 for n in stack.nodes), 'taken back everywhere')
    assert phases(asked['all']) == [PREPARE, COMMIT]
    assert later == []


def test_opposite_shares_that_only_fit_together_are_admitted(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.all, 'power_bounds', lambda *, later: (-300.0, 300.0))
    assert 'outside' in stack.ask('house', 1500.0, 100.0, 200.0).message, 'alone it is too much'
    divided(stack, monkeypatch, house=2.0, grid=-1.9)
    assert stack.ask('both', 750.0, 100.0, 200.0).accepted
    assert [stack.promised(n, 150.0) for n in stack.children] == pytest.approx([1500.0, -1425.0])
    assert stack.promised(stack.all, 150.0) == pytest.approx(75.0)
    # And over again, the other way round: one by one, either would be added to the old plan of the other.
    divided(stack, monkeypatch, house=-2.0, grid=1.9)
    assert stack.ask('both', 750.0, 100.0, 200.0).accepted
    assert stack.promised(stack.all, 150.0) == pytest.approx(-75.0)
    assert stack.promised(stack.units[0], 150.0) == pytest.approx(-37.5)


def test_what_the_source_refuses_is_refused_to_both_and_held_nowhere(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.all, 'power_bounds', lambda *, later: (-300.0, 300.0))
    asked = heard(monkeypatch, *stack.nodes)
    answer = stack.ask('both', 800.0, 100.0, 200.0)
    assert not answer.accepted
    assert answer.message == 'not admitted below: house, grid: all: 800 W is outside of -304 to 304 W'
    assert phases(asked['all']) == [PREPARE] and asked['a'] == asked['b'] == []
    idle(stack)
    assert stack.ask('b', 100.0, 100.0, 150.0).accepted
    answer = stack.ask('both', 200.0, 100.0, 200.0)
    assert 'house, grid: all: b: its own schedule (event 1) runs from' in answer.message
    assert phases(asked['a']) == [PREPARE, ABORT], 'what the other one held is let go, once'
    assert phases(asked['all']) == [PREPARE, PREPARE], 'there is nothing to let go where nothing was held'
    idle(stack)


def test_what_one_child_refuses_is_not_asked_of_the_source(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stack.ask('grid', 300.0, 100.0, 200.0).accepted
    asked = heard(monkeypatch, *stack.nodes)
    answer = stack.ask('both', 800.0, 150.0, 250.0)
    assert not answer.accepted
    assert answer.message.startswith('not admitted below: grid: its own schedule (event 1) runs from')
    assert asked['all'] == [] and asked['house'][0].phase == PREPARE
    assert len(stack.children[0].scheduling.book) == len(stack.children[1].scheduling.book) == 0
    assert stack.ask('both', 800.0, 200.0, 250.0).accepted, 'beside it there is room'
    assert stack.promised(stack.all, 150.0) == pytest.approx(300.0)
    assert stack.promised(stack.all, 225.0) == pytest.approx(800.0)


def test_strict_is_asked_of_the_sum(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """2500 Wh in each unit; what one child takes the other one gives."""
    divided(stack, monkeypatch, house=1.0, grid=1.0)
    refused = stack.ask('both', -1000.0, 100.0, 100.0 + 3 * 3600.0, strict=True)
    assert not refused.accepted and 'the stored energy does not serve it' in refused.message
    idle(stack)
    monkeypatch.setattr(stack.children[0].scheduling, 'foresee', stack.both.scheduling.foresee)
    divided(stack, monkeypatch, house=1.0, grid=-1.0)
    monkeypatch.setattr(stack.children[1].scheduling, 'foresee', stack.both.scheduling.foresee)
    assert stack.ask('both', -1500.0, 100.0, 100.0 + 2 * 3600.0, strict=True).accepted


def test_with_others_beside_and_one_child_alone(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that keeps no book and one child take the single way; so do two children with a third member."""
    mixed = graph.add(AggregateNode, 'mixed', {'members': ['grid', 'plain', 'house'], **TICK})
    graph.up(mixed)
    plain = graph.publisher(BatteryStatus, 'plain/status', qos.MEASUREMENT)

    def measured() -> bool:
        now = graph.clock.now()
        plain.publish(battery_to_msg(BatteryReading(
            time=now, newest=now, quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0,
            energy=2500.0, energy_full=5000.0, max_charge_power=2000.0, max_discharge_power=2000.0), graph.clock))
        return mixed.reading.members_usable == 3

    graph.wait(measured, 'three members')
    asked = heard(monkeypatch, *stack.nodes)
    answer = stack.ask('mixed', -900.0, 100.0, 200.0)
    assert answer.accepted, answer.message
    assert phases(asked['all']) == [PREPARE, COMMIT]
    given = -900.0 - sum(stack.promised(n, 150.0) for n in stack.children)
    assert given == pytest.approx(-300.0) and stack.promised(stack.all, 150.0) == pytest.approx(-600.0)
    mixed.set_members(['house', 'plain'])
    graph.wait(lambda: stack.promised(stack.children[0], 150.0) < -301.0, 'more of it')
    assert stack.promised(stack.children[1], 150.0) == pytest.approx(-300.0), 'until nobody renews it'
    assert stack.promised(stack.all, 150.0) == pytest.approx(stack.promised(stack.children[0], 150.0) - 300.0)


def test_an_owner_in_another_process_asks_one_by_one(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch, *stack.nodes)
    wall = graph.clock.wall()
    ask = {'owner': 'above', 'hold': 1, 'hold_time': 5.0, 'keep_time': 60.0}
    for child, power in (('house', 500.0), ('grid', -300.0)):
        assert graph.call(Reserve, f'{child}/reserve', Reserve.Request(
            phase=PREPARE, times=[wall + 100.0, wall + 200.0], powers=[power], **ask)).accepted
    for child in ('house', 'grid'):
        assert graph.call(Reserve, f'{child}/reserve', Reserve.Request(phase=COMMIT, **ask)).accepted
    assert phases(asked['all']) == [PREPARE, PREPARE, COMMIT, COMMIT]
    assert stack.promised(stack.all, 150.0) == pytest.approx(200.0)


def test_a_plan_is_renewed_from_above_not_by_every_layer(
        graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'RENEW_S', 2.0)
    stack = Stack(graph)
    asked = heard(monkeypatch, *stack.nodes)
    assert stack.ask('both', -800.0, 100.0, 200.0).accepted
    graph.wait(lambda: len(asked['all']) >= 4, 'renewed', 4.0)
    graph.settle(0.3)
    assert {name: phases(asks) for name, asks in asked.items() if name != 'both'} == dict.fromkeys(
        ['a', 'b', 'all', 'house', 'grid'], [PREPARE, COMMIT, PREPARE, COMMIT])
    graph.remove(stack.both)
    graph.wait(lambda: len(asked['all']) >= 8, 'what the dead one leaves is renewed by those below', 8.0)


# -- what goes wrong between the phases ----------------------------------------------------------------


def held(stack: Stack, hold: int = 1, seconds: float = 5.0) -> list[Answer]:
    """Both children hold 400 W for `above`, admitted together."""
    wall, answers, together = stack.graph.clock.wall(), [], Together()
    for child in stack.children:
        child.scheduling.reserve(Ask(PREPARE, 'above', hold, single(wall + 100.0, wall + 200.0, 400.0),
                                     hold_time=seconds, together=together), answers.append)
    assert answers == []
    together.go()
    assert [a.accepted for a in answers] == [True, True]
    return answers


def tell(child: Any, phase: int, hold: int = 1) -> Answer:
    answers: list[Answer] = []
    child.scheduling.reserve(Ask(phase, 'above', hold), answers.append)
    return answers[0]


def test_committed_and_aborted_once(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch, stack.all, *stack.units)
    for phase in (ABORT, COMMIT):
        held(stack, hold=phase)
        for _ in range(2):  # again: the answer was lost
            assert all(tell(child, phase, hold=phase).accepted for child in stack.children)
        assert phases(asked['all']) == phases(asked['a']) == [PREPARE, phase]
        for asks in asked.values():
            asks.clear()
    assert stack.promised(stack.all, 150.0) == pytest.approx(800.0)


def test_one_in_force_and_the_other_dropped_is_told_below(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation_node, 'RETRY_S', 0.1)
    house, grid = stack.children
    held(stack)
    assert tell(house, COMMIT).accepted and tell(grid, ABORT).accepted
    graph.wait(lambda: stack.promised(stack.all, 150.0) == pytest.approx(400.0), 'only half of it', 3.0)
    held(stack, hold=2)
    assert tell(grid, ABORT, hold=2).accepted, 'the hold below is let go'
    assert tell(house, COMMIT, hold=2).accepted, 'and asked for again'
    graph.wait(lambda: stack.promised(stack.all, 150.0) == pytest.approx(400.0), 'that of house', 3.0)


def test_holds_end_by_themselves(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch, stack.all)
    held(stack, seconds=0.2)
    assert len(stack.all.scheduling.book) == 1
    graph.wait(lambda: all(len(n.scheduling.book) == 0 for n in stack.nodes), 'the holds end', 2.0)
    assert phases(asked['all']) == [PREPARE, ABORT]
    assert not tell(stack.children[0], COMMIT).accepted
    idle(stack)


def test_a_child_that_closes_while_the_source_is_asked(
        graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for closing in (0, 1):
        leave: list[Any] = []
        assert stack.all.scheduling.turns.enter(leave.append)  # another admission is under way there
        wall = graph.clock.wall()
        client = graph.peer.create_client(ScheduleSetPower, 'both/schedule_set_power', qos_profile=qos.SERVICE)
        graph.wait(client.service_is_ready, 'service')
        future = client.call_async(ScheduleSetPower.Request(
            power=-800.0, start=wall_stamp(wall + 100.0), end=wall_stamp(wall + 200.0)))
        graph.wait(lambda: stack.all.scheduling.turns._waiting, 'it waits for the source')
        child = stack.children[closing]
        child.trigger_deactivate()
        child.trigger_cleanup()
        leave[0]()
        graph.wait(future.done, 'an answer')
        assert not future.result().accepted
        assert 'it was shut down meanwhile' in future.result().message
        idle(stack)
        graph.up(child)
        graph.wait(lambda: stack.both.reading.members_usable == 2, 'both children again')
    assert stack.ask('both', -800.0, 100.0, 200.0).accepted


def test_more_than_can_wait_are_refused(graph: Any, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = stack.children[0].scheduling.turns
    leave: list[Any] = []
    assert turns.enter(leave.append)
    monkeypatch.setattr(turns, '_limit', 0)
    answer = stack.ask('both', -800.0, 100.0, 200.0)
    assert not answer.accepted
    assert answer.message == 'not admitted below: house, grid: too many requests wait for admission'
    leave[0]()
    idle(stack)


def test_own_requests_of_children_at_the_same_time(graph: Any, stack: Stack) -> None:
    """Requests to both, and to each of its children beside them, all at once: the source promises the sum."""
    wall, futures = graph.clock.wall(), []
    clients = {name: graph.peer.create_client(ScheduleSetPower, f'{name}/schedule_set_power', qos_profile=qos.SERVICE)
               for name in ('both', 'house', 'grid')}
    for client in clients.values():
        graph.wait(client.service_is_ready, 'service')
    for k in range(10):
        for i, (name, power) in enumerate((('both', -200.0), ('house', 50.0), ('grid', -30.0))):
            begin = wall + 1000.0 * (i > 0) + 100.0 + 10.0 * k
            futures.append((name, clients[name].call_async(ScheduleSetPower.Request(
                power=power, start=wall_stamp(begin), end=wall_stamp(begin + 10.0)))))
    graph.wait(lambda: all(f.done() for _, f in futures), 'all answers', 10.0)
    assert [f.result().message for _, f in futures if not f.result().accepted] == []
    for k in range(10):
        at = wall + 105.0 + 10.0 * k - graph.clock.wall()
        assert stack.promised(stack.all, at) == pytest.approx(-200.0)
        assert stack.promised(stack.all, at + 1000.0) == pytest.approx(20.0)
        assert isnan(stack.promised(stack.all, at + 5000.0))


# -- gathering -----------------------------------------------------------------------------------------


def test_a_question_that_comes_too_late_goes_alone(stack: Stack) -> None:
    together, answers = Together(), []
    together.go()
    wall = stack.graph.clock.wall()
    stack.children[0].scheduling.reserve(
        Ask(PREPARE, 'above', 1, single(wall + 1.0, wall + 2.0, 10.0), together=together), answers.append)
    assert answers[0].accepted
    assert isinstance(stack.children[0].scheduling.book.abort('above', 1), Token)
