"""Sleep, waking and leaving of the site machine on a virtual clock; the journal of its transitions."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.site_demand import Demand
from bess_control.site_journal import SiteJournal
from bess_control.site_state import SiteMachine, SiteParams, SiteState, Transition

RUN, SLEEP = SiteState.RUN, SiteState.SLEEP


def running(**params: object) -> SiteMachine:
    machine = SiteMachine(SiteParams(**{'sleep_after': 60.0, **params}), ['a'])  # type: ignore[arg-type]
    machine.node_active('a', 0.0)
    assert machine.state is RUN
    return machine


@pytest.mark.parametrize('table', [
    [(0.0, '', RUN), (59.0, '', RUN), (60.0, '', SLEEP), (61.0, '', SLEEP), (70.0, 'house asks 300 W', RUN),
     (129.0, '', RUN), (130.0, '', SLEEP)],
    [(0.0, 'x', RUN), (50.0, 'x', RUN), (100.0, '', RUN), (109.0, '', RUN), (110.0, '', SLEEP)],
])
def test_asleep_after_idle_and_awake_on_demand(table: list) -> None:
    machine = running()
    for at, demand, state in table:
        machine.look(at, demand)
        assert machine.state is state, at
    assert machine.wants_run


def test_cause_is_told() -> None:
    machine = running()
    reply = machine.look(60.0)
    assert reply.transition == Transition(RUN, SLEEP, 'idle for 60 s', 60.0)
    reply = machine.look(61.0, 'all asks 300 W')
    assert reply.transition == Transition(SLEEP, RUN, 'demand: all asks 300 W', 61.0)


def test_zero_is_never_and_demand_may_be_told_not_to_wake() -> None:
    machine = running(sleep_after=0.0)
    machine.look(1e6)
    assert machine.state is RUN
    machine = running(wake_on_demand=False)
    machine.look(60.0)
    machine.look(61.0, 'x')
    assert machine.state is SLEEP
    assert machine.start(62.0).accepted and machine.state is RUN


def test_sleep_timer() -> None:
    machine = running(sleep_after=0.0)
    assert machine.sleep(100.0, 10.0).accepted
    assert machine.state is SLEEP
    machine.look(50.0, 'somebody asks')
    assert machine.state is SLEEP, 'a sleep for a time lasts that time'
    assert machine.look(110.0).transition.cause == 'sleep timer is over'  # type: ignore[union-attr]
    assert machine.state is RUN


@pytest.mark.parametrize('duration', [-1.0, nan, inf])
def test_bad_durations(duration: float) -> None:
    assert not running().sleep(duration, 1.0).accepted


def test_a_stop_is_no_sleep() -> None:
    machine = running()
    machine.stop(1.0)
    machine.look(2.0, 'x')
    assert machine.state is SLEEP and not machine.asleep
    assert not machine.sleep(10.0, 3.0).accepted
    machine = running()
    machine.sleep(10.0, 1.0)
    machine.stop(2.0)
    machine.look(20.0, 'x')
    assert machine.state is SLEEP


def test_a_node_lost_while_asleep() -> None:
    machine = running()
    machine.look(60.0)
    machine.node_lost('a', 61.0)
    assert machine.state is SiteState.ERROR
    machine.node_active('a', 62.0)
    assert machine.state is SLEEP, 'asleep as before'
    machine.look(63.0, 'x')
    assert machine.state is RUN


def test_maintenance_ends_sleep_and_nothing_wakes_it() -> None:
    machine = running()
    machine.look(60.0)
    machine.maintenance(True, 61.0)
    machine.look(62.0, 'x')
    assert machine.state is SiteState.MAINTENANCE
    assert not machine.start(63.0).accepted and not machine.sleep(1.0, 63.0).accepted


@pytest.mark.parametrize('target', [SiteState.REBOOT, SiteState.RESTART])
def test_leaving_is_final(target: SiteState) -> None:
    machine = running()
    assert machine.leave(target, 1.0).transition.cause == f'{target.name.lower()} by operator'  # type: ignore[union-attr]
    machine.look(2.0, 'x')
    machine.node_lost('a', 3.0)
    assert machine.state is target
    assert not machine.start(4.0).accepted and not machine.leave(SiteState.REBOOT, 5.0).accepted


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(['start', 'stop', 'look', 'ask', 'sleep', 'lost', 'back', 'lock', 'free',
                                           'critical', 'clear']), st.floats(0.0, 200.0)), max_size=40))
def test_power_only_when_wanted_and_possible(events: list) -> None:
    machine, now = running(), 0.0
    for what, wait in events:
        now += wait
        before = machine.state
        reply = {
            'start': lambda: machine.start(now), 'stop': lambda: machine.stop(now), 'look': lambda: machine.look(now),
            'ask': lambda: machine.look(now, 'x'), 'sleep': lambda: machine.sleep(wait, now),
            'lost': lambda: machine.node_lost('a', now), 'back': lambda: machine.node_active('a', now),
            'lock': lambda: machine.maintenance(True, now), 'free': lambda: machine.maintenance(False, now),
            'critical': lambda: machine.critical_fault('k', 'text', now),
            'clear': lambda: machine.fault_cleared('', now),
        }[what]()
        assert (reply.transition is not None) == (machine.state is not before)
        if reply.transition is not None:
            assert reply.transition.cause
        if machine.state is RUN:
            assert machine.wants_run and not machine.missing and not machine.critical
        if what == 'stop':
            assert machine.state is not RUN and not machine.asleep


def test_what_is_a_demand_and_for_how_long() -> None:
    demand = Demand(100.0, 30.0, 1.5)
    demand.battery('b', nan, '', nan, 0.0)
    demand.battery('b', 99.0, 'm', -99.0, 0.0)
    demand.plan('b', 500.0, 31.0, 0.0)
    demand.plan('b', nan, inf, 0.0)
    demand.proposal('m', nan, 5.0, 0.0)
    demand.proposal('m', 500.0, nan, 0.0)
    demand.meter('e', nan, 500.0, 0.0)
    demand.meter('e', -500.0, 500.0, 0.0)
    assert demand.text(0.0) == ''
    demand.battery('b', 0.0, '', 300.0, 0.0)
    assert demand.text(1.4) == 'b is at 300 W' and demand.text(1.5) == ''
    demand.battery('b', -800.0, 'plan', 0.0, 2.0)
    assert demand.text(2.0) == 'plan asks discharge 800 W' and demand.text(9.0) == ''
    demand.plan('b', -800.0, 30.0, 10.0)
    assert demand.text(10.0) == 'b has discharge 800 W planned'
    demand.plan('b', -800.0, 40.0, 10.1)
    assert demand.text(10.1) == ''
    demand.proposal('m', 400.0, 1e6, 20.0)
    assert demand.text(79.0) == 'm asks 400 W' and demand.text(80.0) == ''
    demand.meter('e', -501.0, 500.0, 90.0)
    assert demand.text(90.0) == 'e is at -501 W'


def test_journal_keeps_causes_over_restarts_and_torn_lines(tmp_path: Path) -> None:
    file = tmp_path / 'states' / 'site.jsonl'
    journal = SiteJournal(file)
    journal.write(Transition(RUN, SLEEP, 'idle for 60 s', 1.0), 1.8e9)
    with file.open('ab') as out:
        out.write(b'{"time": 1, "prev')
    again = SiteJournal(file)
    again.write(Transition(SLEEP, RUN, 'demand: "x"', 2.0), 1.8e9 + 1)
    assert [(r['previous'], r['state'], r['cause']) for r in again.read()] == [
        ('RUN', 'SLEEP', 'idle for 60 s'), ('SLEEP', 'RUN', 'demand: "x"')]


def test_journal_is_bounded(tmp_path: Path) -> None:
    journal = SiteJournal(tmp_path / 'j.jsonl', keep=10)
    for i in range(35):
        journal.write(Transition(RUN, SLEEP, str(i), 0.0), 0.0)
    causes = [r['cause'] for r in journal.read()]
    assert causes[-1] == '34' and 10 <= len(causes) <= 20


def test_journal_on_a_full_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / 'x').write_text('')
    with pytest.raises(OSError):
        SiteJournal(tmp_path / 'x' / 'j').write(Transition(RUN, SLEEP, 'c', 0.0), 0.0)
