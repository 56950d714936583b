"""Plans: arithmetic, forecast, and whole stacks of layers against a plain list of requests."""

from __future__ import annotations

import os
import random
from math import inf, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual import plan as module
from bess_virtual import plan_shares
from bess_virtual.book import Book, Promise
from bess_virtual.plan import (
    EMPTY,
    MANY,
    MOMENT_S,
    Plan,
    beyond,
    checked,
    clash,
    foresee,
    from_now,
    lately,
    of_schedule,
    over,
    portion,
    same,
    single,
    total,
)
from bess_virtual.plan_shares import Highest, share_plan
from bess_virtual.schedule import Schedule

STACKS = 100_000 if os.environ.get('BESS_SOAK') else 10_000
END = 12
POINTS = [half / 2 for half in range(2 * END + 2)]

powers = st.one_of(st.just(nan), st.just(0.0), st.integers(-5, 5).map(float))


@st.composite
def some_plans(draw):
    times = sorted(draw(st.sets(st.integers(0, END), max_size=6)))
    return checked(times, [draw(powers) for _ in times[1:]])


def battery(**values):
    return BatteryReading(**{
        'time': 0.0, 'newest': 0.0, 'quality': Quality.OK, 'mode': Mode.IDLE, 'contactor': Contactor.CLOSED,
        'voltage': 50.0, 'energy': 1e6, 'energy_full': 3e6, 'max_charge_power': 1e6, 'max_discharge_power': 1e6,
        **values})


@settings(max_examples=300)
@given(st.lists(some_plans(), min_size=1, max_size=4), st.integers(0, END))
def test_arithmetic_is_that_of_each_instant(plans, now):
    a, b = plans[0], plans[-1]
    upper, summed, both, later = over(a, b), total(plans), clash(a, b), from_now(a, now)
    for t in POINTS:
        x, y = a.at(t), b.at(t)
        assert same(upper.at(t), y if isnan(x) else x)
        asked = [p.at(t) for p in plans if not isnan(p.at(t))]
        assert same(summed.at(t), sum(asked) if asked else nan)
        assert same(later.at(t), x if t >= now else nan)
        if both is None:
            assert isnan(x) or isnan(y)
    if both is not None:
        first = min(t for t in POINTS if not isnan(a.at(t)) and not isnan(b.at(t)))
        assert both[0] == first and both[1] > first
    for plan in (upper, summed, later):
        assert list(plan.times) == sorted(set(plan.times))
        assert len(plan.powers) == max(0, len(plan.times) - 1)


def is_bounded(plan: Plan, *, exactly: bool) -> None:
    """Against the plan as it is written down."""
    asked = [(b - a, 0.0 if isnan(p) else p) for a, b, p in zip(plan.times, plan.times[1:], plan.powers, strict=False)]
    found = (min((p for _, p in asked), default=0.0), max((p for _, p in asked), default=0.0),
             sum(w * max(p, 0.0) for w, p in asked) / 3600.0, sum(w * max(-p, 0.0) for w, p in asked) / 3600.0)
    if exactly:
        assert plan.bounds == pytest.approx(found)
    else:
        tiny = 1e-12 + 1e-12 * max(map(abs, found))
        assert plan.bounds[0] <= found[0] and plan.bounds[1] >= found[1]
        assert plan.bounds[2] >= found[2] - tiny and plan.bounds[3] >= found[3] - tiny
    assert plan.asks() == any(not isnan(p) for p in plan.powers)
    assert [plan.at(t) for t in plan.times[:-1]] == pytest.approx(list(plan.powers), nan_ok=True)


@st.composite
def siblings(draw):
    """Plans over the same times, short and long, some of which ask at the same times as portions of one do."""
    length = draw(st.sampled_from([1, 3, MANY - 1, MANY, MANY + 1, 40]))
    times = [float(k) for k in range(length + 1)]
    row = st.lists(powers, min_size=length, max_size=length)
    first = Plan(times, draw(row))
    others = [portion(first, draw(st.sampled_from([0.0, 0.3, 1.0, 2.5]))) for _ in range(draw(st.integers(0, 2)))]
    others += [Plan(list(times), [nan if isnan(p) else -1.5 * p for p in first.powers])] * draw(st.integers(0, 1))
    others += [Plan(times, draw(row))] * draw(st.integers(0, 1))
    return [first, *others]


@settings(max_examples=120)
@given(siblings(), st.integers(0, 45), st.integers(0, 45), st.integers(-5, 5).map(float), st.floats(0.0, 3.0))
def test_sums_portions_and_bounds_are_those_of_each_instant(plans, start, end, power, factor):
    is_bounded(plans[0], exactly=True)
    for plan in plans[1:]:
        is_bounded(plan, exactly=False)
    summed, part = total(plans), portion(plans[0], factor)
    more = over(single(start, end, power), plans[0])
    is_bounded(summed, exactly=False)
    is_bounded(part, exactly=False)
    is_bounded(more, exactly=True)
    for k in range(2 * len(plans[0].times)):
        t = k / 2
        asked = [p.at(t) for p in plans if not isnan(p.at(t))]
        assert summed.at(t) == pytest.approx(sum(asked) if asked else nan, nan_ok=True)
        assert same(part.at(t), plans[0].at(t) * factor)
        assert same(more.at(t), power if start <= t < end else plans[0].at(t))
        low, high, _, _ = summed.bounds
        assert beyond(summed, 0.0, (low, high), (low, high)) is None
    truth = [0.0 if isnan(p) else p for p in summed.powers] or [0.0]
    lowest, highest = min(truth) + 1e-6, max(truth) - 1e-6
    if lowest < 0.0 < highest:  # wide bounds do not excuse what is really too much
        assert beyond(summed, 0.0, (lowest, 9e9), (lowest, 9e9)) is not None
        assert beyond(summed, 0.0, (-9e9, highest), (-9e9, highest)) is not None


@settings(max_examples=120)
@given(siblings(), st.floats(0, 100), st.sampled_from([50.0, 100.0, nan]), st.floats(0, 40),
       st.sampled_from([0.5, 1.0]), st.sampled_from([0.5, 1.0]))
def test_the_forecast_by_bounds_is_that_segment_by_segment(plans, energy, full, now, charge, discharge):
    for plan in (*plans, total(plans)):
        hours = Plan([t * 3600.0 for t in plan.times], plan.powers)
        quick = foresee(hours, now * 3600.0, energy, full, charge, discharge)
        slow = module._followed(hours, now * 3600.0, energy, full, charge, discharge)
        assert list(quick.short) == pytest.approx(list(slow.short), abs=1e-6)
        assert quick.runs_out == pytest.approx(slow.runs_out, nan_ok=True)


@settings(max_examples=200)
@given(some_plans(), st.floats(-1, END + 1))
def test_a_plan_of_a_moment_ago_is_taken_as_it_is(plan, now):
    taken = lately(plan, now)
    for t in POINTS:
        if t >= now:
            assert same(taken.at(t), plan.at(t))
    assert taken is plan or taken.times == [] or len(taken.times) == 0 or taken.times[0] == now
    if taken is plan and plan.times:
        assert plan.times[0] >= now - MOMENT_S and plan.times[1] > now, 'nothing that is over is kept'


def test_plans_are_equal_by_what_they_say():
    plan = single(1.0, 2.0, 5.0)
    assert plan == Plan([1.0, 2.0], [5.0]) and plan != Plan([1.0, 2.0], [6.0]) and plan != EMPTY and plan != 5
    assert repr(plan) == 'Plan((1.0, 2.0), (5.0,))'
    assert checked([1.0], []) is EMPTY
    with pytest.raises(AttributeError, match='nothing'):
        _ = plan.nothing


@settings(max_examples=500)
@given(some_plans(), st.integers(0, END), st.integers(0, END), st.integers(-5, 5).map(float))
def test_one_request_over_a_plan(plan, start, end, power):
    new = over(single(start, end, power), plan)
    for t in POINTS:
        assert same(new.at(t), power if start <= t < end else plan.at(t))
    assert list(new.times) == sorted(set(new.times))
    assert len(new.powers) == max(0, len(new.times) - 1)


@settings(max_examples=200)
@given(some_plans())
def test_next_change_walks_over_the_changes(plan):
    t, walked = -1.0, []
    while True:
        at, power = plan.next_change(t)
        if isnan(at):
            break
        assert same(power, plan.at(at)) and not same(power, plan.at(at - 0.25))
        walked.append(at)
        t = at
    assert walked == [t for t in POINTS if not same(plan.at(t), plan.at(t - 0.25))]


@pytest.mark.parametrize(('times', 'asked', 'reason'), [
    ([1.0], [1.0], 'do not fit'), ([], [1.0], 'do not fit'), ([1.0, 1.0], [1.0], 'ascend'),
    ([2.0, 1.0], [1.0], 'ascend'),
    ([1.0, nan], [1.0], 'finite'), ([-inf, 1.0], [1.0], 'finite'), ([1.0, 2.0], [inf], 'infinite'),
    ([float(i) for i in range(module.MAX_SEGMENTS + 1)], [0.0] * module.MAX_SEGMENTS, 'at most')])
def test_what_is_no_plan_is_refused(times, asked, reason):
    with pytest.raises(ValueError, match=reason):
        checked(times, asked)


@settings(max_examples=300)
@given(some_plans(), st.floats(0, 10), st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_forecast_is_that_of_small_steps(plan, energy, charge, discharge):
    """Against a walk in small steps of a battery of 10 Wh; hours are seconds here."""
    hours = Plan([t * 3600.0 for t in plan.times], plan.powers)
    forecast = foresee(hours, 0.0, energy, 10.0, charge, discharge)
    steps, stored, missing, out = 400, energy, [0.0] * len(plan.powers), nan
    for k, power in enumerate(plan.powers):
        width = (plan.times[k + 1] - plan.times[k]) / steps
        for i in range(steps):
            rate = 0.0 if isnan(power) else power * charge if power > 0 else power / discharge
            after = min(max(stored + rate * width, 0.0), 10.0)
            lost = abs(stored + rate * width - after)
            missing[k] += lost and lost * abs(power / rate)
            if lost > 1e-9 and isnan(out) and missing[k] > 1e-3:
                out = plan.times[k] + i * width
            stored = after
    assert forecast.short == pytest.approx(missing, abs=0.2)
    if not isnan(out) and not isnan(forecast.runs_out):
        assert forecast.runs_out / 3600.0 == pytest.approx(out, abs=0.1)
    assert isnan(forecast.runs_out) == all(s <= module.NOTHING_WH for s in forecast.short)


@settings(max_examples=300)
@given(some_plans(), st.floats(0, 10), st.floats(0, 3600), st.sampled_from([0.8, 1.0]))
def test_the_forecast_of_long_plans_is_that_of_short_ones(plan, energy, now, efficiency):
    hours = Plan([t * 3600.0 for t in plan.times], plan.powers)
    short = foresee(hours, now, energy, 10.0, efficiency, efficiency)
    many, module.MANY = module.MANY, 1
    try:
        long = foresee(hours, now, energy, 10.0, efficiency, efficiency)
    finally:
        module.MANY = many
    assert long.short == pytest.approx(short.short, abs=1e-6)
    assert long.runs_out == pytest.approx(short.runs_out, nan_ok=True)


def test_forecast_in_numbers():
    plan = over(single(0.0, 3600.0, -500.0), single(7200.0, 10800.0, 200.0))
    forecast = foresee(plan, 0.0, 250.0, 1000.0)
    assert forecast.runs_out == 1800.0
    assert forecast.short == [250.0, 0.0, 0.0]
    assert forecast.within(plan, 0.0, 3600.0) == 250.0
    assert forecast.within(plan, 3600.0, 9000.0) == 0.0
    assert isnan(foresee(plan, 0.0, 600.0, 1000.0).runs_out)
    assert foresee(single(0.0, 3600.0, 500.0), 0.0, 600.0, 1000.0, charge_efficiency=0.5).runs_out != 0.0
    assert isnan(foresee(plan, 0.0, nan, 1000.0).short[0]), 'unknown energy: unknown, not enough'
    assert foresee(plan, 1800.0, 250.0, 1000.0).short[0] == 0.0, 'only what lies ahead counts'


def test_limits_of_now_and_of_later():
    plan = over(single(0.0, 10.0, 5.0), single(20.0, 30.0, -9.0))
    assert beyond(plan, 0.0, (-1.0, 5.0), (-9.0, 9.0)) is None
    assert beyond(plan, 0.0, (-1.0, 4.0), (-9.0, 9.0)) == (0.0, 5.0)
    assert beyond(plan, 0.0, (-1.0, 5.0), (-8.0, 9.0)) == (20.0, -9.0)
    assert beyond(plan, 0.0, (-1.0, 5.0), (-9.0, 9.0), soon=20.0) == (20.0, -9.0)


# -- shares ------------------------------------------------------------------------------------------


def test_shares_follow_the_energies_from_request_to_request():
    """A full and an empty member: the first gives, both take by the headroom they have by then."""
    members = [battery(energy=1000.0, energy_full=1000.0, max_charge_power=0.0),
               battery(energy=0.0, energy_full=1000.0)]
    plan = Plan([0.0, 3600.0, 7200.0], [-500.0, 600.0])
    seen = [Highest(), Highest()]
    seen[0].see(400.0, 400.0)
    a, b = share_plan(plan, members, 0.0, 0.0, 2.0, 10.0, highest=seen)
    assert (a.at(0.0), b.at(0.0)) == (-500.0, 0.0)
    assert (a.at(3600.0), b.at(3600.0)) == (pytest.approx(200.0), pytest.approx(400.0))
    a, b = share_plan(plan, members, 0.0, 0.0, 2.0, 10.0)
    assert (a.at(3600.0), b.at(3600.0)) == (0.0, 600.0), 'with nothing else known the limits of now hold'


@settings(max_examples=300)
@given(some_plans(), st.sampled_from([0.0, 1.0, 5.0, 20.0, nan]), st.sampled_from([20.0, 30.0, nan]),
       st.sampled_from([0.0, 0.5, 2.0, 50.0]), st.sampled_from([0.5, 3.0, 50.0]), st.floats(-1, 3),
       st.sampled_from([1, 1000]))
def test_the_short_way_of_a_plan_to_one_member_is_the_long_one(plan, energy, full, charge, discharge, wall, many):
    member = battery(energy=energy, energy_full=full, max_charge_power=charge, max_discharge_power=discharge, soc=nan,
                     charge=nan, charge_full=nan)
    hours = Plan([t * 3600.0 for t in plan.times], plan.powers)
    seen = [Highest()]
    seen[0].see(4.0, 4.0)
    before, plan_shares.MANY = plan_shares.MANY, many
    try:
        short, = share_plan(hours, [member], 0.0, wall * 3600.0, 2.0, 10.0, highest=seen)
    finally:
        plan_shares.MANY = before
    # A minimum power of 0 W changes nothing but takes the way of many members.
    long, = share_plan(hours, [member], 0.0, wall * 3600.0, 2.0, 10.0, highest=seen, minimum=[0.0])
    for a, b in zip(hours.times, hours.times[1:], strict=False):
        assert short.at((a + b) / 2) == pytest.approx(long.at((a + b) / 2), abs=1e-6, nan_ok=True)


def test_a_stale_member_gets_nothing_and_rest_is_rest_for_all():
    members = [battery(), battery(time=-100.0)]
    plan = Plan([0.0, 1.0, 2.0, 3.0], [100.0, 0.0, nan])
    a, b = share_plan(plan, members, 0.0, 0.0, 2.0, 10.0)
    assert (a.at(0.0), b.at(0.0)) == (100.0, 0.0)
    assert (a.at(1.0), b.at(1.0)) == (0.0, 0.0)
    assert isnan(a.at(2.0)) and isnan(b.at(2.0))
    assert share_plan(EMPTY, members, 0.0, 0.0, 2.0, 10.0) == [EMPTY, EMPTY]


# -- layers ------------------------------------------------------------------------------------------


def make_schedule(rng, schedule, oracle):
    """1 to 8 requests, nested, touching, crossing, some cancelled; the oracle is a plain list of them."""
    for _ in range(rng.randint(1, 8)):
        start, end = sorted((rng.randint(1, END), rng.randint(1, END)))
        value = rng.uniform(-50, 50) if rng.random() < 0.9 else 0.0
        accepted, event_id, _ = schedule.add(value, start, end, now=0, is_power=True)
        assert accepted
        oracle.append((event_id, start, end, value))
        if rng.random() < 0.25:
            gone = rng.choice(oracle)
            oracle.remove(gone)
            assert schedule.remove([gone[0]]) == 1


def wanted(oracle, t):
    for _, start, end, value in reversed(oracle):
        if start <= t < end:
            return value
    return nan


def test_stacks_of_layers_against_a_plain_list_of_requests():
    """Children of a partition, aggregates over it, again and again: what arrives below is what was asked above."""
    rng = random.Random(20261127)
    differences = 0
    for _ in range(STACKS):
        oracles, plans = [], []
        for _ in range(rng.randint(1, 2)):
            schedule, oracle = Schedule(), []
            make_schedule(rng, schedule, oracle)
            oracles.append(oracle)
            plans.append(of_schedule(schedule, 0.0, lambda r: r.value))
        for _ in range(rng.randint(1, 4)):
            if len(plans) > 1 or rng.random() < 0.3:
                plans = [total(plans)]  # a partition: its children cancel and add at the source
            else:
                energy = rng.uniform(1e5, 2e6)
                plans = share_plan(plans[0], [battery(energy=energy), battery()], 0.0, 0.0, 2.0, 10.0)
            books = [Book() for _ in plans]
            for book, plan in zip(books, plans, strict=True):
                book.hold(Promise('owner', 1, plan, 5.0))
                assert book.commit('owner', 1, 100.0)[0] == ''
            plans = [book.plan for book in books]
        for t in range(END + 1):
            asked = [x for x in (wanted(o, t) for o in oracles) if x == x]
            given = [x for x in (p.at(t) for p in plans) if x == x]
            if bool(asked) != bool(given) or abs(sum(asked) - sum(given)) > 1e-9:
                differences += 1
    assert differences == 0


# -- book --------------------------------------------------------------------------------------------


def promise(owner, number, plan, until=5.0, token=None):
    return Promise(owner, number, plan, until, token)


def test_a_plan_is_held_then_in_force_or_forgotten():
    book = Book()
    book.hold(promise('all', 1, single(10.0, 20.0, 5.0), token='t'))
    assert isnan(book.plan.at(10.0)), 'held is not in force'
    assert book.promised().at(10.0) == 5.0, 'but nobody else gets it'
    assert book.commit('all', 1, 100.0) == ('', 't')
    assert (book.plan.at(10.0), book.owner_at(10.0), book.owner_at(20.0)) == (5.0, 'all', '')
    book.hold(promise('all', 2, single(10.0, 20.0, 7.0)))
    assert (book.effective('all').at(10.0), book.plan.at(10.0)) == (7.0, 5.0)
    book.abort('all', 2)
    assert (book.effective('all').at(10.0), book.abort('all', 2)) == (5.0, None)
    assert book.others('all') == {} and list(book.others('other')) == ['all']


def test_late_repeated_and_unknown_commits_change_nothing():
    book = Book()
    for number, power in ((1, 1.0), (2, 2.0)):
        book.hold(promise('all', number, single(0.0, 9.0, power)))
    assert book.commit('all', 2, 100.0)[0] == ''
    assert book.commit('all', 1, 100.0)[0] == '', 'older than what is in force'
    assert book.commit('all', 2, 100.0)[0] == '', 'again'
    assert book.plan.at(1.0) == 2.0
    assert 'nothing is held' in book.commit('all', 3, 100.0)[0]
    assert 'nothing is held' in book.commit('stranger', 1, 100.0)[0]


def test_a_dead_owner_leaves_nothing_behind():
    book = Book()
    book.hold(promise('a', 1, single(0.0, 9.0, 1.0), until=5.0, token='below'))
    book.hold(promise('b', 1, single(10.0, 19.0, 2.0)))
    book.commit('b', 1, 50.0)
    assert book.expire(4.9) == ([], [])
    assert book.expire(5.0) == (['below'], [])
    assert 'nothing is held' in book.commit('a', 1, 9.0)[0]
    assert book.expire(50.0) == ([], ['b'])
    assert len(book) == 0 and book.plan == EMPTY
    book.hold(promise('c', 1, single(0.0, 9.0, 1.0)))
    book.commit('c', 1, 100.0)
    book.hold(promise('c', 2, EMPTY))
    book.commit('c', 2, 100.0)
    assert book.owners == [], 'an empty plan is no plan'


@settings(max_examples=150)
@given(st.lists(st.sampled_from([nan, 0.0, 100.0, 250.0, 900.0]), min_size=30, max_size=60), st.booleans(),
       st.lists(st.floats(10.0, 5000.0), min_size=2, max_size=4))
def test_a_long_plan_in_proportion_is_shared_as_segment_by_segment(powers: list[float], charging: bool,
                                                                  rooms: list[float]) -> None:
    plan = Plan([1000.0 + 60.0 * k for k in range(len(powers) + 1)], [p if charging else -p for p in powers])
    readings = [BatteryReading(time=0.0, newest=0.0, quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED,
                               energy=5000.0 - room if charging else room, energy_full=5000.0,
                               max_charge_power=600.0, max_discharge_power=600.0) for room in rooms]
    whole = share_plan(plan, readings, 0.0, 1000.0, 5.0, 10.0)
    # With something of the other direction at its end the same plan is followed segment by segment.
    other = Plan([*plan.times, plan.times[-1] + 1.0], [*plan.powers, 1e-9 if not charging else -1e-9])
    slow = share_plan(other, readings, 0.0, 1000.0, 5.0, 10.0)
    for k in range(len(powers)):
        at = plan.times[k] + 1.0
        for a, b in zip(whole, slow, strict=True):
            assert a.at(at) == pytest.approx(b.at(at), rel=1e-9, abs=1e-9, nan_ok=True)


@settings(max_examples=120)
@given(st.lists(st.sampled_from([nan, 0.0, 100.0, 250.0, -100.0, -400.0, 900.0, -900.0]), min_size=25, max_size=60),
       st.lists(st.tuples(st.floats(0.0, 1.0), st.sampled_from([100.0, 800.0, 5000.0]),
                          st.sampled_from([100.0, 600.0, 2000.0]), st.booleans()), min_size=2, max_size=4),
       st.sampled_from([60.0, 900.0]), st.sampled_from([0.0, 1010.0, 2000.0]))
def test_a_long_plan_of_both_directions_is_shared_as_segment_by_segment(
        asked: list[float], members: list[tuple[float, float, float, bool]], width: float, wall: float) -> None:
    plan = Plan([1000.0 + width * k for k in range(len(asked) + 1)], asked)
    readings = [BatteryReading(time=0.0, newest=0.0, quality=Quality.OK, mode=Mode.IDLE,
                               contactor=Contactor.OPEN if blocked and k else Contactor.CLOSED, energy=soc * size,
                               energy_full=size, max_charge_power=limit, max_discharge_power=limit)
                for k, (soc, size, limit, blocked) in enumerate(members)]
    seen = [Highest() for _ in members]
    for one, (_, _, limit, _) in zip(seen, members, strict=True):
        one.see(limit * 1.2, limit)
    quick = share_plan(plan, readings, 0.0, wall, 5.0, 10.0, highest=seen)
    many, plan_shares.MANY = plan_shares.MANY, 1000
    try:
        slow = share_plan(plan, readings, 0.0, wall, 5.0, 10.0, highest=seen)
    finally:
        plan_shares.MANY = many
    for k in range(len(asked)):
        if plan.times[k + 1] > wall:
            at = plan.times[k] + 0.5 * width
            assert [p.at(at) for p in quick] == pytest.approx([p.at(at) for p in slow], rel=1e-9, abs=1e-6, nan_ok=True)
    for share in quick:
        is_bounded(share, exactly=False)


def test_the_quick_way_of_both_directions_is_taken() -> None:
    members = [battery(energy=1000.0, energy_full=4000.0), battery(energy=3000.0, energy_full=5000.0)]
    plan = Plan([3600.0 * k for k in range(31)], [500.0, -400.0, nan] * 10)
    a, b = share_plan(plan, members, 0.0, 0.0, 2.0, 10.0)
    assert a.times is plan.times is b.times
    assert (a.at(0.0), b.at(0.0)) == (pytest.approx(300.0), pytest.approx(200.0)), 'by the headroom'
    assert (a.at(3600.0), b.at(3600.0)) == (pytest.approx(-400.0 * 1300 / 4500), pytest.approx(-400.0 * 3200 / 4500))
    back = total([a, b])
    assert back.bounds[0] < plan.bounds[0] and back.bounds[1] > plan.bounds[1], 'of a sum they are wide'
    assert back.bounds[2:] == pytest.approx(plan.bounds[2:]) and module.tightened(back) == pytest.approx(plan.bounds)
    assert list(back.powers) == pytest.approx(list(plan.powers), nan_ok=True)
