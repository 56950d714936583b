"""Turns of admission, numbers of plans, lead times: what needs no node."""

from __future__ import annotations

from collections import deque
from math import isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_virtual.book import HoldNumbers, Turns
from bess_virtual.demand import RELEASE_TICKS, Demand, Release, resting
from bess_virtual.lead import LeadTimes, Measured, ahead
from bess_virtual.plan import EMPTY, Plan, over, single

# -- turns -------------------------------------------------------------------------------------------


class Loop:
    """An executor's queue."""

    def __init__(self):
        self.queue = deque()

    def run(self):
        while self.queue:
            self.queue.popleft()()


def test_one_at_a_time_in_order_and_without_recursion():
    loop, order, leaves = Loop(), [], []
    turns = Turns(loop.queue.append, limit=5000)
    turns.enter(lambda leave: (order.append(0), leaves.append(leave)))
    for i in range(1, 3001):
        assert turns.enter(lambda leave, i=i: (order.append(i), leave()))
    assert order == [0]
    leaves[0]()
    leaves[0]()  # twice does no harm
    loop.run()
    assert order == list(range(3001))


def test_a_crowd_lets_others_through_in_between():
    loop, order = Loop(), []
    turns = Turns(loop.queue.append)
    for i in range(3):
        turns.enter(lambda leave, i=i: (order.append(i), leave()), patient=True)
        loop.queue.append(lambda i=i: order.append(f'tick {i}'))
    loop.run()
    assert [x for x in order if isinstance(x, int)] == [0, 1, 2]
    assert order.index('tick 0') < order.index(2), 'not all of the crowd first'


def test_too_many_are_refused_and_a_failure_lets_the_next_in():
    loop, order = Loop(), []
    turns = Turns(loop.queue.append, limit=1)

    def fails(leave):
        assert turns.enter(lambda leave: (order.append('next'), leave()))
        assert not turns.enter(lambda leave: None)
        raise RuntimeError('no')

    with pytest.raises(RuntimeError):
        turns.enter(fails)
    loop.run()
    assert order == ['next']


def test_numbers_only_go_up():
    numbers = HoldNumbers()
    given = [numbers.next(wall) for wall in (1e9, 1e9, 1e9 - 3600.0, 2e9)]
    assert given == sorted(set(given))
    assert given[-1] == int(2e15)


# -- lead time ---------------------------------------------------------------------------------------

SONNEN = LeadTimes(30.0, 5.0)


def test_lead_times_of_a_slow_device():
    assert [SONNEN.between(a, b) for a, b in ((0.0, 5.0), (nan, -5.0), (5.0, 0.0), (5.0, nan), (5.0, -5.0), (0.0, nan),
                                              (5.0, 5.0))] == [30.0, 30.0, 5.0, 5.0, 5.0, 0.0, 0.0]


def test_each_change_is_ordered_its_lead_time_ahead():
    plan = over(single(100.0, 200.0, 500.0), single(200.0, 300.0, -500.0))
    assert ahead(plan, 69.9, SONNEN) is None
    assert ahead(plan, 70.0, SONNEN) == (500.0, 100.0)
    assert ahead(plan, 99.0, SONNEN) == (500.0, 100.0)
    assert ahead(plan, 100.0, SONNEN) is None, 'from then on the plan itself says so'
    assert ahead(plan, 194.9, SONNEN) is None
    assert ahead(plan, 195.0, SONNEN) == (-500.0, 200.0)
    found = ahead(plan, 295.0, SONNEN)
    assert found is not None and isnan(found.power) and found.at == 300.0
    assert ahead(plan, 400.0, SONNEN) is None
    assert ahead(EMPTY, 0.0, SONNEN) is None
    assert ahead(plan, 99.0, LeadTimes()) is None


def test_a_short_pulse_is_not_skipped_for_what_follows_it():
    plan = over(single(100.0, 110.0, 500.0), single(112.0, 300.0, -500.0))
    assert ahead(plan, 82.0, SONNEN) == (500.0, 100.0), 'the second start lies 30 s ahead already'
    assert ahead(plan, 105.0, SONNEN) == (-500.0, 112.0)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([nan, 0.0, 100.0, -200.0])), min_size=2, max_size=6,
                unique_by=lambda x: x[0]), st.floats(0, 12), st.floats(0, 12))
def test_orders_come_in_the_order_of_the_plan_and_never_too_early(steps, start, change):
    steps.sort()
    plan = Plan([float(t) for t, _ in steps], [p for _, p in steps[:-1]])
    lead, last = LeadTimes(start, change), -1.0
    for quarter in range(-60, 180):
        now = quarter / 4
        found = ahead(plan, now, lead)
        if found is None:
            continue
        assert now < found.at <= now + max(start, change)
        assert found.at >= last, 'never back to an earlier change'
        last = found.at
        assert plan.at(found.at) == found.power or isnan(found.power)


def test_the_time_to_an_effect_is_measured():
    measured = Measured()
    assert measured.words() == 'none yet'
    for at, took in ((0.0, 16.0), (100.0, 28.0)):
        measured.order(0.0, 0.0, at)
        measured.order(2500.0, 0.0, at)
        measured.effect(2400.0, at - 1.0)  # measured before the order
        measured.effect(1000.0, at + 5.0)
        measured.effect(nan, at + 6.0)
        measured.order(2500.0, 1000.0, at + 7.0)  # repeated
        measured.effect(2300.0, at + took)
        measured.effect(2500.0, at + 50.0)
        measured.order(0.0, 2500.0, at + 60.0)
        measured.effect(0.0, at + 66.0)
    assert measured.seen == {'start': (16.0, 28.0, 2), 'change': (6.0, 6.0, 2)}
    assert measured.words() == 'change 6.0 to 6.0 s in 2; start 16.0 to 28.0 s in 2'
    measured.order(50.0, 0.0, 300.0)
    measured.effect(50.0, 301.0)
    assert measured.seen['start'][2] == 2, 'too small a step to tell'
    measured.order(2500.0, 50.0, 400.0)
    measured.effect(2500.0, 5000.0)
    assert measured.seen['change'][2] == 2, 'what takes that long is no effect'


# -- rest --------------------------------------------------------------------------------------------


def test_zero_is_said_until_rest_is_seen():
    asked = Demand(1000.0, nan, 'manager', 2.0)
    release = Release()
    assert release.follow(asked, None, 'me', False, 10.0).power == 0.0
    for k in range(20):
        assert release.follow(None, None, 'me', False, 10.1 + k).power == 0.0
    assert release.since == 10.0
    assert release.follow(None, None, 'me', True, 40.0) is None
    assert isnan(release.since)


def test_rest_that_is_seen_at_once_is_still_said_a_few_times():
    release = Release()
    said = [release.follow(Demand(1.0, nan, 'x', 1.0), None, 'me', True, 0.0)]
    said += [release.follow(None, None, 'me', True, 0.1 * k) for k in range(10)]
    assert sum(d is not None for d in said) == RELEASE_TICKS
    assert isnan(release.since)


def test_what_counts_as_rest():
    assert resting(3.0, 50.0, True) and resting(-50.0, 50.0, True)
    assert not resting(51.0, 50.0, True)
    assert not resting(0.0, 50.0, False), 'old values prove nothing'
    assert resting(nan, 50.0, True), 'what measures no power cannot be waited for'
