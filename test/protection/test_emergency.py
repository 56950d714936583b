"""Emergency stop and watchdog feeding on a virtual clock."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_control.protection.emergency import EmergencyStop
from bess_control.protection.feeding import FeedRule
from bess_core.emergency import FILE, Stop, load, restored, save


def test_pressed_once_stays_until_the_right_token() -> None:
    e = EmergencyStop()
    assert e.press('service', 'smoke', 5.0)
    assert not e.press('topic', 'me too', 6.0)
    assert e.stop == Stop(True, 'smoke', 'service', 5.0)
    for token in ('', 'wrong', 'tok', 'token2'):
        assert 'on the spot' in e.reset(token, 'token', 'eva', 1.0, 7.0)
    assert 'on the spot' in e.reset('', '', 'eva', 1.0, 7.0), 'no token on the disk is no way in'
    assert 'missing' in e.reset('token', 'token', '', 1.0, 7.0)
    assert e.stop.active
    assert e.reset('token\n', 'token', 'eva', 1.0, 7.0) == ''
    assert (e.stop.active, e.stop.changed) == (False, 7.0)
    assert e.reset('token', 'token', 'eva', 1.0, 7.0) == 'not active'


# time, input (True pressed, None unreadable, 'x' = no message), stopped afterwards
INPUT: list[tuple[float, Any, bool]] = [
    (0.0, 'x', False), (9.0, 'x', False), (9.5, False, False), (10.4, 'x', False), (10.6, 'x', True)]


def test_an_input_that_falls_silent_is_pressed() -> None:
    e = EmergencyStop(input_configured=True, max_age=1.0, grace=10.0)
    for now, value, stopped in INPUT:
        if value != 'x':
            e.read_input(value, now)
        e.tick(now, now)
        assert e.stop.active is stopped, now
    assert e.stop.cause == 'the input cannot be read'
    assert 'cannot be read' in e.reset('t', 't', 'eva', 11.0, 11.0)
    e.read_input(True, 11.0)
    assert 'still pressed' in e.reset('t', 't', 'eva', 11.0, 11.0)
    e.read_input(False, 11.5)
    assert e.reset('t', 't', 'eva', 11.5, 11.5) == ''


def test_an_input_that_never_came_is_pressed_after_the_grace() -> None:
    e = EmergencyStop(input_configured=True, grace=10.0)
    assert not e.tick(9.9, 0.0)
    assert e.tick(10.0, 0.0)
    assert not EmergencyStop().tick(1e9, 0.0)


@pytest.mark.parametrize(('readings', 'resets'), [
    ([(0.0, True), (1.0, True)], False),  # held or stuck from the beginning
    ([(0.0, False), (0.1, True), (0.15, True)], False),  # too short
    ([(0.0, False), (0.1, True), (0.2, True)], True),
    ([(0.0, False), (0.1, None), (0.2, True), (0.9, True)], False),  # the wire was off in between
])
def test_the_reset_input_needs_a_hand(readings: list[Any], resets: bool) -> None:
    e = EmergencyStop(Stop(True, 'x', 'input', 0.0), input_configured=True)
    for now, value in readings:
        e.read_input(False, now)
        e.read_reset(value, now, now)
    assert e.stop.active is not resets


def test_the_reset_input_does_not_overrule_a_pressed_input() -> None:
    e = EmergencyStop(Stop(True, 'x', 'input', 0.0), input_configured=True)
    e.read_input(True, 0.2)
    e.read_reset(False, 0.0, 0.0)
    e.read_reset(True, 0.1, 0.1)
    assert 'still pressed' in e.read_reset(True, 0.2, 0.2)
    assert e.stop.active


def test_kept_over_a_restart(tmp_path: Path) -> None:
    assert load(tmp_path, 1.0) == Stop(), 'never pressed'
    e = EmergencyStop()
    e.press('input', 'smoke', 5.0)
    save(tmp_path, e.to_dict())
    assert load(tmp_path, 9.0) == e.stop
    (tmp_path / FILE).write_bytes(b'\xff{')
    assert load(tmp_path, 9.0).active
    (tmp_path / FILE).write_text('{"active": fal')
    assert load(tmp_path, 9.0).active


@pytest.mark.parametrize('bad', [None, 3, [], {}, {'active': 'no', 'cause': '', 'source': '', 'changed': 0},
                                 {'active': False, 'cause': '', 'source': '', 'changed': float('nan')},
                                 {'active': False, 'cause': 1, 'source': '', 'changed': 0}])
def test_a_damaged_record_counts_as_stopped(bad: Any) -> None:
    assert restored(bad, 9.0).active


@given(st.lists(st.sampled_from(['press', 'wrong', 'lost', 'pressed', 'reset input'])))
def test_nothing_but_a_reset_on_the_spot_lets_go(steps: list[str]) -> None:
    e = EmergencyStop(Stop(True, 'x', 'service', 0.0), input_configured=True)
    for now, step in enumerate(steps):
        if step == 'press':
            e.press('topic', '', now)
        elif step == 'wrong':
            e.reset('no', 'token', 'eva', now, now)
        elif step == 'reset input':
            e.read_reset(True, now, now)
        else:
            e.read_input(True if step == 'pressed' else None, now)
        e.tick(now, now)
        assert e.stop.active


# node beats: (time, lifecycle, progress); asked at; problem
FEED: list[tuple[str, list[tuple[float, int, int]], float, str]] = [
    ('bring-up', [], 4.9, ''),
    ('never came', [], 5.0, 'pm is silent'),
    ('healthy', [(6.0, 3, 1), (6.5, 3, 2)], 7.0, ''),
    ('inactive is alive', [(6.0, 2, 1), (6.5, 2, 2)], 7.0, ''),
    ('silent', [(6.0, 3, 1)], 7.1, 'pm is silent for 1.1 s'),
    ('stuck', [(6.0, 3, 1), (6.5, 3, 1), (7.0, 3, 1), (7.2, 3, 1)], 7.2, 'pm makes no progress for 1.2 s'),
    ('down', [(6.0, 1, 1)], 6.1, 'pm is not up (lifecycle 1)'),
    ('started again', [(6.0, 3, 900), (6.9, 3, 0)], 7.5, ''),
]


@pytest.mark.parametrize(('what', 'beats', 'at', 'problem'), FEED, ids=[f[0] for f in FEED])
def test_when_a_watchdog_is_fed(what: str, beats: list[Any], at: float, problem: str) -> None:
    rule = FeedRule(['pm'], 1.0, now=0.0, grace=5.0)
    for now, lifecycle, progress in beats:
        rule.beat('other', 3, 1, now)
        rule.beat('pm', lifecycle, progress, now)
    assert rule.problem(at) == problem


def test_an_own_late_tick_does_not_feed() -> None:
    rule = FeedRule([], 1.0, now=0.0, max_late=0.5)
    rule.tick(0.6)
    assert 'late' in rule.problem(1.0)
    rule.tick(0.1)
    assert rule.problem(1.0) == ''
    assert FeedRule([], 1.0, now=0.0, max_late=inf).problem(9.0) == ''
