from __future__ import annotations

import os
from itertools import combinations
from math import inf, nan

import numpy as np
import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_virtual.allocation import allocate, choose

EXAMPLES = 20_000 if os.environ.get('BESS_SOAK') else 300

weight = st.one_of(st.just(0.0), st.floats(1e-3, 1e6))
limit = st.one_of(st.just(0.0), st.floats(1e-2, 1e6))
power_value = st.one_of(st.just(0.0), st.floats(1e-3, 1e7), st.floats(-1e7, -1e-3))
member = st.tuples(weight, weight, limit, limit)


def run(power, members, **options):
    wc, wd, low, high = (np.array(column, dtype=float) for column in zip(*members, strict=True))
    return allocate(power, wc, wd, -low, high, **options), wc, wd, -low, high


def oracle(power, weights, caps):
    """Water level by bisection."""
    caps = [c if w > 0 else 0.0 for w, c in zip(weights, caps, strict=True)]
    if power >= sum(caps):
        return caps
    low, high = 0.0, max(c / w for w, c in zip(weights, caps, strict=True) if c > 0)
    for _ in range(300):
        level = (low + high) / 2
        if sum(min(c, level * w) for w, c in zip(weights, caps, strict=True)) < power:
            low = level
        else:
            high = level
    return [min(c, high * w) for w, c in zip(weights, caps, strict=True)]


@settings(max_examples=EXAMPLES)
@given(power_value, st.lists(member, min_size=1, max_size=30))
def test_properties(power, members):
    a, wc, wd, low, high = run(power, members)
    p = a.powers
    assert np.all(p >= low * (1 + 1e-12)) and np.all(p <= high * (1 + 1e-12))
    assert np.all(p >= 0) if power >= 0 else np.all(p <= 0)
    assert p.sum() == pytest.approx(a.granted, rel=1e-9, abs=1e-12)
    assert a.granted + a.residual == pytest.approx(power, rel=1e-12)
    weights, caps = (wc, high) if power >= 0 else (wd, -low)
    reachable = float(caps[weights > 0].sum())
    if abs(power) <= reachable:
        assert a.granted == power and a.residual == 0 and a.reason == ''
    else:
        assert abs(a.granted) == pytest.approx(reachable, rel=1e-12)
        assert a.reason
    expected = oracle(abs(power), weights.tolist(), caps.tolist())
    assert np.abs(p) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert not np.any(np.signbit(p[p == 0]))  # no negative zero


@settings(max_examples=EXAMPLES)
@given(power_value, st.lists(member, min_size=1, max_size=8), st.data())
def test_identical_members_get_identical_power(power, members, data):
    repeated = [m for m in members for _ in range(data.draw(st.integers(1, 4)))]
    shuffled = data.draw(st.permutations(repeated))
    a, *_ = run(power, shuffled)
    by_member = {}
    for m, p in zip(shuffled, a.powers.tolist(), strict=True):
        by_member.setdefault(m, set()).add(p)
    assert all(len(powers) == 1 for powers in by_member.values())


@settings(max_examples=EXAMPLES)
@given(st.floats(0, 1e5), st.floats(0, 1e5), st.lists(member, min_size=1, max_size=10))
def test_more_power_never_takes_from_a_member(a, b, members):
    small, *_ = run(min(a, b), members)
    large, *_ = run(max(a, b), members)
    assert np.all(large.powers >= small.powers * (1 - 1e-9) - 1e-9)


def best_by_brute_force(power, minimum, caps):
    """(largest reachable power, fewest members for it)."""
    best, fewest = 0.0, 0
    able = [i for i, cap in enumerate(caps) if minimum[i] <= cap]
    for k in range(1, len(able) + 1):
        for subset in combinations(able, k):
            if sum(minimum[i] for i in subset) <= power:
                reach = min(power, sum(caps[i] for i in subset))
                if reach > best * (1 + 1e-12):
                    best, fewest = reach, k
    return best, fewest


@settings(max_examples=EXAMPLES)
@given(st.floats(1, 3000), st.sampled_from([1, -1]), st.lists(
    st.tuples(st.floats(1, 100), st.floats(0, 1000), st.floats(0, 600)), min_size=1, max_size=7))
def test_minimum_power_against_all_subsets(magnitude, sign, members):
    w, caps, minimum = (np.array(column) for column in zip(*members, strict=True))
    power = sign * magnitude
    low, high = (np.zeros(w.size), caps) if sign > 0 else (-caps, np.zeros(w.size))
    a = allocate(power, w, w, low, high, exclusion=minimum)
    p = a.powers * sign
    assert np.all(p >= 0)
    assert np.all((p == 0) | (p >= minimum * (1 - 1e-9)))
    assert np.all(p <= caps * (1 + 1e-12))
    assert p.sum() == pytest.approx(abs(a.granted), rel=1e-9, abs=1e-12)
    best, fewest = best_by_brute_force(magnitude, minimum.tolist(), caps.tolist())
    assert abs(a.granted) == pytest.approx(best, rel=1e-9)
    able = (caps > 0) & (minimum <= caps)
    plain = allocate(power, w, w, np.where(able, low, 0), np.where(able, high, 0)).powers * sign
    if np.all(plain[able] >= minimum[able]):
        assert p.tolist() == plain.tolist()
    elif np.all(caps > 0):
        assert np.count_nonzero(p) <= fewest
    if a.residual == 0:
        assert a.reason == ''
    else:
        assert a.reason


@settings(max_examples=EXAMPLES // 3)
@given(st.floats(1, 30000), st.integers(13, 60), st.integers(0, 2**32 - 1))
def test_minimum_power_with_many_members(power, n, seed):
    rng = np.random.default_rng(seed)
    w, caps = rng.uniform(1, 100, n), rng.uniform(100, 1000, n)
    minimum = caps * rng.uniform(0, 0.3, n)
    a = allocate(power, w, w, -caps, caps, exclusion=minimum)
    assert np.all((a.powers == 0) | (a.powers >= minimum * (1 - 1e-9)))
    assert a.powers.sum() == pytest.approx(a.granted, rel=1e-9, abs=1e-12)
    assert a.granted <= power * (1 + 1e-12)
    if minimum.min() < power <= caps.sum():
        assert a.granted > 0
    if power >= minimum.sum():  # everyone can run: nothing may be missing
        assert a.granted == pytest.approx(min(power, caps.sum()), rel=1e-12)


@pytest.mark.parametrize(('power', 'energies', 'low', 'expected'), [
    (-3200, [50, 50, 50, 90], [-1000] * 4, [-2200 / 3] * 3 + [-1000]),
    (-10000, [80, 50, 20], [-50000] * 3, [-5333.333, -3333.333, -1333.333]),
    (-200e3, [1, 1, 1], [-50e3] * 3, [-50e3] * 3),
    (-3, [1, 2], [-1.5, -9], [-1, -2]),
])
def test_published_cases(power, energies, low, expected):
    """Cases in which the allocators of other systems are unequal, all-or-nothing or blind to SoC."""
    a = allocate(power, energies, energies, low, [0] * len(low))
    assert a.powers == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(('power', 'expected', 'granted'), [
    (150, [150, 0], 150),  # not 50/100 or -50/+100
    (-150, [-150, 0], -150),
    (50, [0, 0], 0),
    (200, [100, 100], 200),
    (1999, [999.5, 999.5], 1999),
])
def test_exclusion_of_two_equal_members(power, expected, granted):
    a = allocate(power, [5, 5], [5, 5], [-1000, -1000], [1000, 1000], exclusion=[100, 100])
    assert a.powers.tolist() == expected
    assert a.granted == granted
    assert a.residual == power - granted


def test_nearest_reachable_below_the_request_in_a_gap():
    a = allocate(150, [1] * 40, [1] * 40, [-120] * 40, [120] * 40, exclusion=[100] * 40)
    assert a.granted == 120 and np.count_nonzero(a.powers) == 1
    assert 'minimum' in a.reason


def test_running_set_is_kept_until_clearly_above_the_minimum():
    def count(power, running):
        a = allocate(power, [1] * 3, [1] * 3, [-1000] * 3, [1000] * 3, exclusion=[100] * 3,
                     running=running)
        assert a.granted == power
        return (a.powers > 0).tolist()

    assert count(299, None) == [True, False, False]
    assert count(299, [False, True, True]) == [False, True, True]
    assert count(310, [False, True, True]) == [False, True, True]  # 103 W each: not yet
    assert count(361, [False, True, True]) == [True, True, True]
    assert count(310, [True, True, True]) == [True, True, True]
    assert count(150, [False, True, True]) == [True, False, False]


def test_odd_input():
    assert allocate(nan, [1], [1], [-1], [1]).powers.tolist() == [0]
    assert allocate(0, [1], [1], [-1], [1]).reason == ''
    assert allocate(5, [], [], [], []).reason == 'there are no members'
    assert allocate(10, [nan, 1], [nan, 1], [-9, -9], [9, 9]).powers.tolist() == [0, 9]
    assert allocate(10, [1, 1], [1, 1], [-9, -9], [nan, 9]).powers.tolist() == [0, 9]
    assert allocate(10, [1, 1], [1, 1], [3, -9], [inf, 4]).powers.tolist() == [6, 4]
    assert allocate(-10, [1, 1], [1, 1], [3, -inf], [9, 9]).powers.tolist() == [0, -10]
    assert allocate(10, [1, 1], [1, 1], [0, 0], [inf, inf], exclusion=[20, 4]).powers.tolist() == [0, 10]
    a = allocate(inf, [1, 1], [1, 1], [0, 0], [2, 3])
    assert a.powers.tolist() == [2, 3] and a.residual == inf
    with pytest.raises(ValueError, match='infinite'):
        allocate(1, [inf], [1], [0], [1])
    with pytest.raises(ValueError, match='differ'):
        allocate(1, [1, 1], [1, 1], [0], [1])


def test_choose_prefers_the_fuller_member():
    chosen = choose(150, np.array([1.0, 2.0]), np.array([100.0, 100.0]), np.array([500.0, 500.0]))
    assert chosen.tolist() == [1]


def test_work_does_not_grow_with_the_units():
    """Numpy across units: as many calls for a thousand as for two (`make bench` has the times)."""
    def work(n):
        rng = np.random.default_rng(1)
        w, caps = rng.uniform(1, 100, n), rng.uniform(100, 1000, n)
        power = 0.7 * caps.sum()
        return calls(lambda: allocate(power, w, w, -caps, caps))

    assert work(1000) == work(40) == work(2) < 80
