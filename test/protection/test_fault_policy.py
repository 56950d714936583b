"""Which faults make the site do what, on a virtual clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_control.protection.fault_policy import (
    Action,
    FaultBook,
    Rule,
    Suppression,
    anchor,
    page_of,
    parse_rules,
    parse_suppressions,
)
from bess_core.faults import FaultRecord
from bess_core.values import Severity

W, E, C = Severity.WARNING, Severity.ERROR, Severity.CRITICAL


def fault(id: str, source: str = 'bms', severity: Severity = E, since: float = 0.0, count: int = 1,
          active: bool = True) -> FaultRecord:
    return FaultRecord(id, severity, source, since, count, active, severity is C, f'{id} text')


RULES = parse_rules([
    {'fault': 'comm.*', 'source': 'meter', 'action': 'none'},
    {'fault': 'temp.warm', 'action': 'derate', 'derate': 0.5},
    {'fault': 'temp.hot', 'action': 'derate', 'derate': 0.2},
    {'fault': 'comm.*', 'action': 'sleep', 'delay': 5.0},
    {'fault': 'smoke', 'action': 'emergency_stop'},
    {'severity': 'critical', 'action': 'stop'},
])

TABLE: list[tuple[str, list[FaultRecord], float, Action, float]] = [
    ('nothing', [], 0.0, Action.NONE, 1.0),
    ('a rule of none comes first', [fault('comm.timeout', 'meter')], 99.0, Action.NONE, 1.0),
    ('not yet', [fault('comm.timeout')], 4.9, Action.NONE, 1.0),
    ('long enough', [fault('comm.timeout')], 5.0, Action.SLEEP, 1.0),
    ('derate', [fault('temp.warm', severity=W)], 0.0, Action.DERATE, 0.5),
    ('the smaller share', [fault('temp.warm'), fault('temp.hot')], 0.0, Action.DERATE, 0.2),
    ('stronger beside derate keeps the share', [fault('temp.warm'), fault('comm.x')], 6.0, Action.SLEEP, 0.5),
    ('critical', [fault('other', severity=C)], 0.0, Action.STOP, 1.0),
    ('latched, cause gone', [fault('other', severity=C, active=False)], 0.0, Action.STOP, 1.0),
    ('strongest', [fault('smoke', severity=W), fault('other', severity=C)], 0.0, Action.EMERGENCY_STOP, 1.0),
    ('no rule fits', [fault('unheard.of')], 99.0, Action.NONE, 1.0),
]


@pytest.mark.parametrize(('what', 'faults', 'at', 'action', 'derate'), TABLE, ids=[t[0] for t in TABLE])
def test_action_of_faults_at_a_time(what: str, faults: list[FaultRecord], at: float, action: Action,
                                    derate: float) -> None:
    book = FaultBook(RULES)
    for source in {f.source for f in faults}:
        book.update(source, [f for f in faults if f.source == source], 0.0)
    verdict = book.verdict(at)
    assert (verdict.action, verdict.derate) == (action, derate)
    assert bool(verdict.cause) is (action is not Action.NONE)


def test_a_delay_starts_anew_with_each_occurrence() -> None:
    book = FaultBook(RULES)
    book.update('bms', [fault('comm.timeout')], 0.0)
    book.update('bms', [], 4.0)
    book.update('bms', [fault('comm.timeout', count=2)], 4.5)
    assert book.verdict(8.0).action is Action.NONE
    assert book.verdict(9.5).action is Action.SLEEP


def test_what_is_explained_asks_for_nothing_and_says_by_what() -> None:
    book = FaultBook((Rule(action=Action.SLEEP),), parse_suppressions([
        {'fault': 'sensor.*', 'by': 'bms/comm.*'}, {'fault': 'meter.lost', 'by': 'state:MAINTENANCE'},
        {'fault': 'danger', 'by': 'bms/comm.*'}]))
    book.update('bms', [fault('comm.timeout')], 0.0)
    book.update('io', [fault('sensor.frozen', 'io'), fault('meter.lost', 'io'), fault('danger', 'io', C)], 0.0)
    by = {e.fault.id: e for e in book.verdict(1.0, 'MAINTENANCE').entries}
    assert (by['sensor.frozen'].suppressed_by, by['sensor.frozen'].action) == ('bms/comm.timeout', Action.NONE)
    assert by['meter.lost'].suppressed_by == 'state:MAINTENANCE'
    assert (by['danger'].suppressed_by, by['danger'].action) == ('', Action.SLEEP), 'critical is never hidden'
    by = {e.fault.id: e for e in book.verdict(1.0, 'RUN').entries}
    assert by['meter.lost'].action is Action.SLEEP
    book.update('bms', [], 2.0)
    by = {e.fault.id: e for e in book.verdict(2.0, 'RUN').entries}
    assert by['sensor.frozen'].action is Action.SLEEP, 'its explanation is gone'


def test_acknowledgement_belongs_to_one_occurrence_and_survives() -> None:
    book = FaultBook(RULES)
    book.update('bms', [fault('temp.warm', since=3.0)], 3.0)
    assert not book.acknowledge('bms', 'temp.warm', ' ', 4.0)[0]
    assert not book.acknowledge('bms', 'temp.cold', 'eva', 4.0)[0]
    assert book.acknowledge('', '', 'eva', 4.0)[0]
    again = FaultBook(RULES)
    again.restore(book.to_dict())
    again.update('bms', [fault('temp.warm', since=3.0)], 5.0)
    entry = again.verdict(5.0).entries[0]
    assert entry.acknowledged is not None and entry.acknowledged.by == 'eva'
    assert entry.action is Action.DERATE, 'seen is not solved'
    again.update('bms', [fault('temp.warm', since=9.0, count=2)], 9.0)
    assert again.verdict(9.0).entries[0].acknowledged is None


@pytest.mark.parametrize('bad', [None, [], {}, {'acknowledged': 3}, {'acknowledged': [1]}, {'acknowledged': [{}]},
                                 {'acknowledged': [{'source': 'a', 'id': 1, 'by': 'x', 'at': 0, 'since': 0, 'count': 1}]},  # noqa: E501
                                 {'acknowledged': [{'source': 'a', 'id': 'b', 'by': 'x', 'at': float('nan'),
                                                    'since': 0, 'count': 1}]}])
def test_damaged_acknowledgements_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match='acknowledgements'):
        FaultBook().restore(bad)


def test_changes_are_told_once() -> None:
    book = FaultBook()
    a = fault('a')
    assert [k for k, _ in book.update('bms', [a], 0.0)] == ['raised']
    assert book.update('bms', [a], 1.0) == []
    assert [k for k, _ in book.update('bms', [fault('a', severity=C)], 1.0)] == ['escalated']
    assert [k for k, _ in book.update('bms', [fault('a', severity=C, active=False)], 2.0)] == ['gone']
    assert [k for k, _ in book.update('bms', [], 3.0)] == ['cleared']


@pytest.mark.parametrize(('rules', 'text'), [
    ([3], 'rule 1: not a mapping'), ([{}], 'action is missing'), ([{'action': 'explode'}], "action is 'explode'"),
    ([{'action': 'derate'}], 'derate .* is missing'), ([{'action': 'derate', 'derate': 1.5}], 'must be 0 to 1'),
    ([{'action': 'stop', 'derate': float('nan')}], 'must be 0 to 1'), ([{'action': 'stop', 'delay': -1}], 'delay'),
    ([{'action': 'stop', 'severity': 'grave'}], 'severity'), ([{'action': 'stop', 'faul': 'x'}], "unknown key 'faul'"),
    ([{'action': 'stop', 'fault': 3}], 'must be text'),
])
def test_rules_that_cannot_be_are_refused(rules: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_rules(rules)


@pytest.mark.parametrize('bad', [[3], [{'fault': 'a'}], [{'fault': 'a', 'by': 'nothing'}], [{'fault': 1, 'by': 'a/b'}]])
def test_suppressions_that_cannot_be_are_refused(bad: list[Any]) -> None:
    with pytest.raises(ValueError, match='suppression 1'):
        parse_suppressions(bad)


def test_pages() -> None:
    assert page_of('comm.timeout', ['comm.timeout', 'site.drive.*']) == 'docs/faults.md#comm-timeout'
    assert page_of('site.drive.mode_a', ['site.drive.*']) == f'docs/faults.md#{anchor("site.drive.*")}'
    assert page_of('unheard', ['comm.timeout']) == ''


ids = st.sampled_from(['comm.a', 'temp.warm', 'smoke', 'x'])


@given(st.lists(st.tuples(st.sampled_from('ab'), st.lists(st.tuples(ids, st.sampled_from([W, E, C]), st.booleans()),
                                                          max_size=4)), max_size=8))
def test_the_action_is_the_strongest_of_its_entries_and_criticals_count(steps: list[Any]) -> None:
    book = FaultBook(RULES, (Suppression('*', '*/*'),))
    for number, (source, faults) in enumerate(steps):
        unique = {i: fault(i, source, s, active=a or s is C) for i, s, a in faults}
        book.update(source, unique.values(), float(number))
    verdict = book.verdict(100.0)
    assert verdict.action == max((e.action for e in verdict.entries), default=Action.NONE)
    assert 0.0 <= verdict.derate <= 1.0
    if any(e.fault.severity is C for e in verdict.entries):
        assert verdict.action >= Action.DERATE
