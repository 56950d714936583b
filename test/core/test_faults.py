"""Fault registry: latching, clearing, persistence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.faults import FaultRegistry
from bess_core.values import Alarm, Severity

W, E, C = Severity.WARNING, Severity.ERROR, Severity.CRITICAL


def kinds(events: list) -> list[tuple[str, str]]:
    return [(e.kind, e.fault.id) for e in events]


def test_alarms_come_and_go() -> None:
    faults = FaultRegistry('bms')
    assert not faults.take_changed()
    assert kinds(faults.update([Alarm('hot', W, '46 degC')], 1.0)) == [('raised', 'hot')]
    assert faults.take_changed() and not faults.take_changed()
    assert faults.update([Alarm('hot', W, '47 degC')], 2.0) == []
    assert not faults.changed  # only the text
    record = faults.records[0]
    assert (record.since, record.count, record.text, record.source) == (1.0, 1, '47 degC', 'bms')
    assert (record.active, record.latched, faults.worst) == (True, False, W)
    assert kinds(faults.update([], 3.0)) == [('gone', 'hot')]
    assert faults.records == [] and faults.worst is None and faults.get('hot') is None
    faults.update([Alarm('hot', W, '46 degC')], 4.0)
    assert (faults.records[0].count, faults.records[0].since) == (2, 4.0)


def test_critical_latches_until_cleared() -> None:
    faults = FaultRegistry('bms')
    faults.update([Alarm('short', C, 'short circuit')], 1.0)
    accepted, message, events = faults.clear('short')
    assert (accepted, events) == (False, [])
    assert message == 'refused, the cause is still present: short: short circuit'
    assert kinds(faults.update([], 2.0)) == [('gone', 'short')]
    record = faults.latched[0]
    assert (record.active, record.latched, faults.active) == (False, True, [])
    faults.take_changed()
    accepted, message, events = faults.clear('short')
    assert (accepted, message, kinds(events)) == (True, 'cleared short', [('cleared', 'short')])
    assert faults.changed and faults.records == []
    assert faults.clear('short')[:2] == (False, "no fault 'short' at bms")
    assert faults.clear() == (True, 'nothing to clear', [])
    faults.update([Alarm('short', C, 'short circuit')], 3.0)
    assert faults.records[0].count == 1  # counted since the last clear


def test_clear_all_is_wholly_accepted_or_refused() -> None:
    faults = FaultRegistry('n')
    faults.raise_('a', C, 'aa', 1.0)
    faults.raise_('b', C, 'bb', 1.0)
    faults.raise_('w', W, 'ww', 1.0)
    faults.clear_cause('a')
    accepted, message, _ = faults.clear('')
    assert not accepted and 'b: bb' in message and 'a: aa' not in message
    assert len(faults.latched) == 2
    faults.clear_cause('b')
    assert faults.clear('')[:2] == (True, 'cleared a, b')
    assert [f.id for f in faults.records] == ['w']  # an active warning does not stand in the way
    assert not faults.clear('w')[0]


def test_severity_grows_and_latch_keeps_it() -> None:
    faults = FaultRegistry('n')
    faults.update([Alarm('t', W, 'warm')], 1.0)
    assert kinds(faults.update([Alarm('t', E, 'hot')], 2.0)) == [('escalated', 't')]
    assert kinds(faults.update([Alarm('t', W, 'warm')], 3.0)) == [('eased', 't')]
    faults.update([Alarm('t', C, 'burning')], 4.0)
    faults.update([Alarm('t', W, 'warm')], 5.0)
    assert (faults.records[0].severity, faults.records[0].latched) == (C, True)
    faults.update([], 6.0)
    assert kinds(faults.update([Alarm('t', W, 'warm')], 7.0)) == [('raised', 't')]
    assert (faults.records[0].severity, faults.records[0].count) == (C, 2)


def test_groups_do_not_clear_each_other() -> None:
    faults = FaultRegistry('n')
    faults.raise_('comm.timeout', E, 'no answer', 1.0, 'comm')
    faults.update([Alarm('hot', W, 'x')], 1.0)
    faults.update([], 2.0)
    assert [f.id for f in faults.records] == ['comm.timeout']
    faults.update([Alarm('comm.timeout', W, 'seen by the device too')], 3.0)
    assert faults.records[0].severity is E
    assert faults.clear_cause('comm.timeout', 'comm') == []  # the other still sees it
    assert faults.active != []
    assert kinds(faults.update([], 4.0)) == [('gone', 'comm.timeout')]
    assert faults.clear_cause('nothing') == []


def test_order_and_duplicates() -> None:
    faults = FaultRegistry('n')
    faults.update([Alarm('w', W, ''), Alarm('e', W, 'mild'), Alarm('e', E, 'bad')], 2.0)
    faults.raise_('old', W, '', 1.0)
    assert [(f.id, f.severity) for f in faults.records] == [('e', E), ('old', W), ('w', W)]
    with pytest.raises(ValueError, match='id is empty'):
        faults.raise_('', W, '', 1.0)


def test_latched_faults_survive_a_restart() -> None:
    faults = FaultRegistry('bms')
    faults.update([Alarm('short', C, 'short circuit'), Alarm('hot', W, 'warm')], 1.5)
    again = FaultRegistry.from_dict(json.loads(json.dumps(faults.to_dict())))
    assert [(f.id, f.active, f.latched, f.since, f.count, f.text) for f in again.records] == [
        ('short', False, True, 1.5, 1, 'short circuit')]
    assert again.changed and again.source == 'bms'
    again.update([Alarm('short', C, 'short circuit')], 9.0)
    assert again.records[0].count == 2 and not again.clear('short')[0]
    again.update([], 10.0)
    assert again.clear('short')[0]
    assert again.to_dict() == {'source': 'bms', 'latched': []}
    assert not FaultRegistry.from_dict(again.to_dict()).changed


GOOD = {'id': 'x', 'severity': 3, 'since': 1.0, 'count': 1, 'text': ''}


@pytest.mark.parametrize('data', [
    None, [], {}, {'source': 'n'}, {'source': 1, 'latched': []}, {'source': 'n', 'latched': [3]},
    *({'source': 'n', 'latched': [{**GOOD, key: value}]} for key, value in (
        ('id', ''), ('id', None), ('severity', 7), ('severity', 1), ('severity', 'C'), ('since', float('nan')),
        ('since', 'now'), ('count', 0), ('count', True), ('count', 1.5), ('text', None)))])
def test_damaged_state_is_an_error(data: object) -> None:
    with pytest.raises(ValueError, match='faults: '):
        FaultRegistry.from_dict(data)  # type: ignore[arg-type]


@given(st.lists(st.one_of(
    st.tuples(st.just('update'), st.dictionaries(st.sampled_from('abc'), st.sampled_from(Severity))),
    st.tuples(st.just('clear'), st.sampled_from(['a', 'b', 'c', ''])),
    st.tuples(st.just('restart'), st.none())), max_size=25))
@settings(max_examples=150)
def test_a_critical_fault_never_vanishes_without_a_clear(actions: list[tuple]) -> None:
    faults = FaultRegistry('n')
    latched: set[str] = set()
    present: set[str] = set()
    for now, (kind, value) in enumerate(actions):
        if kind == 'update':
            faults.update([Alarm(i, s, 'x') for i, s in value.items()], float(now))
            present = set(value)
            latched |= {i for i, s in value.items() if s is C}
        elif kind == 'clear':
            shown = {f.id for f in faults.records}
            accepted, _, _ = faults.clear(value)
            wanted = {value} if value else set(latched)
            assert accepted is (wanted <= shown and not wanted & present)
            if accepted:
                latched -= wanted
        else:
            faults = FaultRegistry.from_dict(json.loads(json.dumps(faults.to_dict())))
            present = set()
        assert {f.id for f in faults.latched} == latched
        assert {f.id for f in faults.active} == present
        assert all(f.count >= 1 for f in faults.records)
