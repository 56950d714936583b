"""Site state machine: a table of stories and a stateful property test."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bess_control.site_state import LEAVING, Reply, SiteMachine, SiteParams, SiteState

NODES = ('a', 'b')
INIT, RUN, SLEEP = SiteState.INIT, SiteState.RUN, SiteState.SLEEP
MAINTENANCE, ERROR = SiteState.MAINTENANCE, SiteState.ERROR
REBOOT, RESTART = SiteState.REBOOT, SiteState.RESTART
Event = Callable[[SiteMachine], Reply]


def up(node: str) -> Event:
    return lambda m: m.node_active(node, 1.0)


def lost(node: str) -> Event:
    return lambda m: m.node_lost(node, 1.0, 'no heartbeat for 2.0 s')


def start(m: SiteMachine) -> Reply:
    return m.start(1.0)


def stop(m: SiteMachine) -> Reply:
    return m.stop(1.0)


def fault(m: SiteMachine) -> Reply:
    return m.critical_fault('a/jbd.short', 'a: short circuit', 1.0)


def clear(m: SiteMachine) -> Reply:
    return m.fault_cleared('a/jbd.short', 1.0)


def lock(on: bool) -> Event:
    return lambda m: m.maintenance(on, 1.0)


def leave(target: SiteState) -> Event:
    return lambda m: m.leave(target, 1.0)


@pytest.mark.parametrize('autostart, events, states', [
    (True, [up('a'), up('b')], [INIT, RUN]),
    (False, [up('a'), up('b'), start, stop], [INIT, SLEEP, RUN, SLEEP]),
    (False, [start, up('a'), up('b')], [INIT, INIT, RUN]),
    (True, [stop, up('a'), up('b'), start], [INIT, INIT, SLEEP, RUN]),
    (True, [lost('a'), up('a'), up('b'), lost('b'), up('b')], [INIT, INIT, RUN, ERROR, RUN]),
    (True, [up('a'), up('b'), lost('a'), lost('b'), up('a'), up('b')],
     [INIT, RUN, ERROR, ERROR, ERROR, RUN]),
    (True, [up('a'), up('b'), lost('a'), stop, up('a')], [INIT, RUN, ERROR, ERROR, SLEEP]),
    (True, [up('a'), up('b'), stop, lost('a'), start, up('a')],
     [INIT, RUN, SLEEP, ERROR, ERROR, RUN]),
    (True, [up('a'), up('b'), fault, lost('a'), up('a'), clear, start],
     [INIT, RUN, ERROR, ERROR, ERROR, SLEEP, RUN]),
    (True, [fault, up('a'), up('b'), clear], [ERROR, ERROR, ERROR, SLEEP]),
    (True, [up('a'), up('b'), fault, lost('a'), clear, up('a')],
     [INIT, RUN, ERROR, ERROR, ERROR, SLEEP]),
    (True, [up('a'), up('b'), lock(True), lost('a'), up('a'), lock(False), start],
     [INIT, RUN, MAINTENANCE, MAINTENANCE, MAINTENANCE, SLEEP, RUN]),
    (True, [up('a'), up('b'), lock(True), fault, lock(False)],
     [INIT, RUN, MAINTENANCE, MAINTENANCE, ERROR]),
    (True, [up('a'), up('b'), leave(RESTART), stop, lost('a'), fault],
     [INIT, RUN, RESTART, RESTART, RESTART, RESTART]),
    (True, [lost('c'), up('c'), up('a'), up('b'), lost('c')], [INIT, INIT, INIT, RUN, RUN]),
])
def test_stories(autostart: bool, events: list[Event], states: list[SiteState]) -> None:
    machine = SiteMachine(SiteParams(autostart=autostart), NODES)
    seen = []
    for event in events:
        before = machine.state
        reply = event(machine)
        seen.append(machine.state)
        assert (reply.transition is not None) is (before is not machine.state)
        if reply.transition:
            assert (reply.transition.previous, reply.transition.state) == (before, machine.state)
            assert reply.transition.cause == machine.cause != ''
            assert machine.previous is before and machine.since == 1.0
    assert seen == states


def test_causes_and_missing_in_words() -> None:
    machine = SiteMachine(SiteParams(), NODES)
    assert (machine.cause, machine.missing) == ('starting', ('a', 'b'))
    up('a')(machine)
    assert up('b')(machine).transition.cause == 'all required nodes are active'
    assert lost('b')(machine).transition.cause == 'b lost: no heartbeat for 2.0 s'
    assert machine.missing == ('b',)
    assert start(machine).message == 'will run when active: b'
    assert up('b')(machine).transition.cause == 'b is back'
    assert fault(machine).transition.cause == 'critical fault: a: short circuit'
    reply = start(machine)
    assert (reply.accepted, reply.message) == (
        False, 'refused: critical fault latched: a: short circuit')
    assert machine.critical == ('a/jbd.short',)
    assert not machine.fault_cleared('other', 2.0).accepted
    machine.fault_cleared('', 2.0)
    assert machine.critical == () and machine.state is SLEEP


def test_resume_after_clear_is_a_choice() -> None:
    machine = SiteMachine(SiteParams(resume_after_clear=True), NODES)
    for event in (up('a'), up('b'), fault, clear):
        event(machine)
    assert machine.state is RUN


def test_modes() -> None:
    machine = SiteMachine(SiteParams(), (), ('self_consumption',), 'self_consumption')
    assert machine.mode == 'self_consumption'
    assert machine.set_mode('none').accepted and machine.mode == ''
    reply = machine.set_mode('peak')
    assert (reply.accepted, machine.mode) == (False, '')
    assert reply.message == "unknown mode 'peak'; available: self_consumption"
    with pytest.raises(ValueError, match='unknown mode'):
        SiteMachine(SiteParams(), (), ('x',), 'y')


def test_a_site_without_required_nodes_needs_a_start() -> None:
    machine = SiteMachine(SiteParams(), ())
    assert machine.start(0.0).transition.state is RUN


def test_refusals_name_the_reason() -> None:
    machine = SiteMachine(SiteParams(), NODES)
    lock(True)(machine)
    assert start(machine).message == 'refused: the site is under maintenance'
    leave(REBOOT)(machine)
    assert start(machine).message == 'refused: the site is about to reboot'
    assert not leave(RESTART)(machine).accepted and not lock(True)(machine).accepted
    assert stop(machine).accepted
    with pytest.raises(ValueError, match='SLEEP'):
        machine.leave(SLEEP, 0.0)


def again(machine: SiteMachine, later: float = 5.0, **more: object) -> SiteMachine:
    """The machine of the process that follows, `later` s on; its clock starts at 0."""
    saved = json.loads(json.dumps({**machine.saved(lambda t: t + 1e9), **more}))
    new = SiteMachine(SiteParams(), NODES, ('m', 'n', 'o'), 'm', 0.0, ('n',))
    assert new.resume(saved, 0.0, 1e9 + 1.0 + later).accepted
    return new


def both_up(machine: SiteMachine) -> SiteMachine:
    for node in NODES:
        machine.node_active(node, 1.0)
    return machine


@pytest.mark.parametrize(('events', 'then'), [
    ([], RUN), ([stop], SLEEP), ([lock(True)], MAINTENANCE), ([fault], ERROR), ([lost('a')], RUN),
    ([leave(RESTART)], RUN), ([leave(REBOOT)], RUN), ([stop, leave(RESTART)], SLEEP), ([leave(RESTART), stop], SLEEP),
    ([lock(True), leave(REBOOT)], MAINTENANCE), ([fault, leave(RESTART)], ERROR),
    ([lambda m: m.sleep(0.0, 1.0)], SLEEP), ([lambda m: m.sleep(0.0, 1.0), leave(RESTART)], SLEEP),
])
def test_a_new_process_goes_on_where_the_old_one_was(events: list[Event], then: SiteState) -> None:
    machine = both_up(SiteMachine(SiteParams(), NODES, ('m', 'n', 'o'), 'o', 0.0))
    for event in events:
        event(machine)
    new = again(machine)
    assert not new.allows_power, 'before the nodes are there'
    assert both_up(new).state is then
    assert (new.mode, new.beside) == ('o', ())
    if then is MAINTENANCE:
        assert not start(new).accepted
        assert new.maintenance(False, 2.0).transition.state is SLEEP  # type: ignore[union-attr]
    if then is ERROR:
        assert not start(new).accepted and new.fault_cleared('', 3.0).accepted


def test_a_sleep_timer_goes_on_over_a_restart() -> None:
    machine = both_up(SiteMachine(SiteParams(), NODES, ('m', 'n', 'o'), 'm', 0.0))
    machine.sleep(60.0, 1.0)
    new = both_up(again(machine, later=50.0))
    assert new.asleep and new.cause == 'all required nodes are active; asleep as before the restart'
    new.look(9.0, 'a demand')
    assert new.asleep
    assert new.look(10.5).transition.state is RUN  # type: ignore[union-attr]
    over = both_up(again(machine, later=500.0))
    assert over.look(0.1).transition.state is RUN  # type: ignore[union-attr]
    assert again(machine, wake_at=None)._site.wake_at == inf


def test_faults_of_nodes_that_are_gone_are_forgotten_and_leaving_can_fail() -> None:
    machine = both_up(SiteMachine(SiteParams(), NODES))
    machine.critical_fault('a/x', 'x', 1.0)
    new = SiteMachine(SiteParams(), NODES)
    new.resume(machine.saved(float), 0.0, 0.0, ('b',))
    assert new.critical == ()
    machine = both_up(SiteMachine(SiteParams(), NODES))
    assert not machine.leave_failed('x', 1.0).accepted
    leave(REBOOT)(machine)
    back = machine.leave_failed('code 1', 2.0).transition
    assert back is not None and (back.state, back.cause) == (RUN, 'reboot failed: code 1')
    for damaged in ({'wants_run': True}, {'mode': ''}, {'wants_run': True, 'mode': '', 'critical': 3}):
        with pytest.raises((KeyError, TypeError)):
            SiteMachine(SiteParams(), NODES).resume(damaged, 0.0, 0.0)


class AnySite(RuleBasedStateMachine):
    """Any sequence of events against a second, simpler book-keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = SiteMachine(SiteParams(), NODES, ('m',))
        self.now = 0.0
        self.missing = set(NODES)
        self.critical: set[str] = set()
        self.stopped = False  # since the last accepted start

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(node=st.sampled_from((*NODES, 'guest')), back=st.booleans())
    def node(self, node: str, back: bool) -> None:
        if back:
            self.machine.node_active(node, self.tick())
            self.missing.discard(node)
        else:
            self.machine.node_lost(node, self.tick())
            self.missing |= {node} & set(NODES)

    @rule()
    def start(self) -> None:
        reply = self.machine.start(self.tick())
        if reply.accepted:
            self.stopped = False
            assert not self.critical
        else:
            assert reply.message.startswith('refused: ')

    @rule()
    def stop(self) -> None:
        assert self.machine.stop(self.tick()).accepted
        assert not self.machine.allows_power
        self.stopped = True

    @rule(key=st.sampled_from('xy'), on=st.booleans())
    def fault(self, key: str, on: bool) -> None:
        if on:
            self.machine.critical_fault(key, f'fault {key}', self.tick())
            self.critical.add(key)
            self.stopped = True
            assert not self.machine.allows_power
        else:
            assert self.machine.fault_cleared(key, self.tick()).accepted is (key in self.critical)
            self.critical.discard(key)

    @rule(on=st.booleans())
    def maintenance(self, on: bool) -> None:
        before = self.machine.state
        reply = self.machine.maintenance(on, self.tick())
        if reply.accepted and (before is MAINTENANCE) is not on:
            self.stopped = True

    @rule(to=st.sampled_from(LEAVING), really=st.integers(0, 9))
    def leave(self, to: SiteState, really: int) -> None:
        if really == 0:
            self.machine.leave(to, self.tick())

    @rule()
    def leave_failed(self) -> None:
        state = self.machine.state
        assert self.machine.leave_failed('no', self.tick()).accepted is (state in LEAVING)
        assert self.machine.state not in LEAVING

    @rule()
    def process_ends(self) -> None:
        """A new process knows what was wanted and what bars it; nodes are found again."""
        before, saved = self.machine, json.loads(json.dumps(self.machine.saved(lambda t: t + 1e9)))
        self.machine = SiteMachine(SiteParams(), NODES, ('m',))
        reply = self.machine.resume(saved, self.now, self.now + 1e9)
        assert reply.accepted and not self.machine.allows_power
        locked = before.state is MAINTENANCE or saved['maintenance']
        assert (self.machine.state is MAINTENANCE) is locked
        self.missing = set(NODES)

    @invariant()
    def holds(self) -> None:
        m = self.machine
        assert set(m.missing) == self.missing and set(m.critical) == self.critical
        if m.allows_power:
            assert m.state is RUN and not self.missing and not self.critical and not self.stopped
        if m.state not in (MAINTENANCE, *LEAVING):
            if self.critical:
                assert m.state is ERROR
            elif not self.missing:
                assert m.state in (RUN, SLEEP, INIT)  # errors end by themselves
            else:
                assert m.state in (INIT, ERROR)
        assert m.wants_run is not self.stopped


AnySite.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestAnySite = AnySite.TestCase
