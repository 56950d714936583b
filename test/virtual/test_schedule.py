from __future__ import annotations

import os
import random
from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_virtual.schedule import Request, Schedule

SCHEDULES = 100_000 if os.environ.get('BESS_SOAK') else 10_000
END = 12


class Oracle:
    """A plain list; the last request that covers t wins."""

    def __init__(self):
        self.requests = []

    def at(self, t):
        for event_id, start, end, value in reversed(self.requests):
            if start <= t < end:
                return event_id, value
        return None


def compare(schedule, oracle, now=0.0):
    answers = []
    for half in range(int(2 * now), 2 * END + 2):
        t = half / 2
        got = schedule.at(t)
        want = oracle.at(t)
        assert (got and (got.event_id, got.value)) == want, t
        answers.append((t, want))
    # next_boundary walks exactly over the changes
    changes = [t for (_, before), (t, after) in pairwise(answers)
               if before != after]
    walked = []
    t = schedule.next_boundary(now)
    while t is not None:
        walked.append(t)
        t = schedule.next_boundary(t)
    assert walked == changes


def test_random_schedules_against_the_oracle():
    """Nested, crossing, touching, covering, cancelled, pruned, restored: no difference."""
    rng = random.Random(20240607)
    for _ in range(SCHEDULES):
        schedule, oracle = Schedule(), Oracle()
        for _ in range(rng.randint(1, 8)):
            start, end = sorted((rng.randint(1, END), rng.randint(1, END)))
            value = rng.uniform(-50, 50) if rng.random() < 0.9 else 0.0
            accepted, event_id, _ = schedule.add(value, start, end, now=0)
            assert accepted
            oracle.requests.append((event_id, start, end, value))
            if rng.random() < 0.25:
                gone = rng.choice(oracle.requests)
                oracle.requests.remove(gone)
                assert schedule.remove(schedule.ids(gone[0])) == 1
        compare(schedule, oracle)
        now = float(rng.randint(0, END))
        schedule.prune(now)
        compare(schedule, oracle, now)
        compare(Schedule(schedule.entries(now), schedule.next_id), oracle, now)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, END), st.integers(1, END), st.booleans()), max_size=8))
def test_schedules_against_the_oracle(steps):
    schedule, oracle = Schedule(), Oracle()
    for a, b, cancel in steps:
        start, end = min(a, b), max(a, b)
        _, event_id, _ = schedule.add(a * 1.1 - b, start, end, now=0)
        oracle.requests.append((event_id, start, end, a * 1.1 - b))
        if cancel:
            schedule.remove([oracle.requests.pop(0)[0]])
    compare(schedule, oracle)


@pytest.mark.parametrize(('value', 'start', 'end', 'reason'), [
    (nan, 10, 20, 'current is nan'),
    (inf, 10, 20, 'current is inf'),
    (1, nan, 20, 'must be finite'),
    (1, 10, inf, 'must be finite'),
    (1, 20, 10, 'end is 10 s before start'),
    (1, 0, 5, 'end is 0 s in the past'),
    (1, 0, 3, 'end is 2 s in the past'),
    (99, 10, 20, '99 A is outside of -10 to 10 A'),
])
def test_refusals(value, start, end, reason):
    schedule = Schedule()
    accepted, event_id, message = schedule.add(value, start, end, now=5, bounds=(-10, 10))
    assert (accepted, event_id) == (False, 0)
    assert reason in message
    assert len(schedule) == 0 and schedule.at(12) is None


def test_start_zero_or_past_begins_now():
    schedule = Schedule()
    for start in (0, 3):
        schedule.add(1.25, start, 20, now=5)
        assert schedule.entries(5)[-1].begins == 5
    assert schedule.at(5).value == 1.25
    assert schedule.at(2).event_id == 1, 'a clock put back does not interrupt what began "now"'
    assert schedule.at(20) is None


def test_older_request_resumes_and_zero_is_a_request():
    schedule = Schedule()
    schedule.add(10, 1, 10, now=0)
    accepted, event_id, message = schedule.add(0, 3, 5, now=0, is_power=True, source='ui')
    assert (accepted, event_id, message) == (True, 2, 'overlays event 1')
    assert schedule.at(3) == Request(2, 3.0, 5.0, 0.0, True, 'ui', 0)
    assert [schedule.at(t).value for t in (2, 3, 4.999, 5)] == [10, 0, 0, 10]
    assert schedule.add(7, 10, 12, now=0)[2] == ''  # touches only
    assert schedule.ids(9) == [] and schedule.remove([9]) == 0
    assert schedule.remove(schedule.ids(0)) == 3
    assert schedule.at(3) is None and schedule.next_boundary(0) is None
    assert schedule.add(1, 1, 2, now=0)[1] == 4  # ids are not used again


def test_empty_interval_has_no_effect():
    schedule = Schedule()
    schedule.add(1, 1, 9, now=0)
    accepted, event_id, message = schedule.add(5, 4, 4, now=0)
    assert accepted and 'no effect' in message
    assert schedule.at(4).event_id == 1
    assert schedule.next_boundary(1) == 9
    assert schedule.remove([event_id]) == 1


def test_full_schedule_refuses():
    schedule = Schedule(max_requests=2)
    assert [schedule.add(1, 1, 2, now=0)[0] for _ in range(3)] == [True, True, False]
    assert [schedule.add(1, 3, 4, now=2)[0] for _ in range(3)] == [True, True, False], 'ended ones do not count'
    assert schedule.add(1, 7, 9, now=5)[0]
    assert len(schedule) == 1, 'far above the limit ended ones are forgotten at once'


def test_many_requests_stay_quick():
    """20,000 staggered and nested requests: lookups bisect, additions splice."""
    schedule = Schedule(max_requests=20_000)
    for i in range(20_000):
        schedule.add(i, i + 1, i + 500 + (i % 7) * 100, now=0)
    assert schedule.at(10_000.5).value == 9999
    t, steps = 0.0, 0
    while (t := schedule.next_boundary(t)) is not None:
        steps += 1
    assert steps > 20_000
    assert len(schedule.prune(15_000)) > 10_000
    assert schedule.at(19_000.5).value == 18_999
