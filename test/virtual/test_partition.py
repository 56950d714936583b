from __future__ import annotations

import json
import os
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.aggregate import combine, split
from bess_virtual.partition import Expected, Partition
from bess_virtual.partition_state import from_dict, to_dict
from bess_virtual.schedule import Schedule
from bess_virtual.shares import (
    Policy,
    Share,
    attribute,
    spread_energy,
    spread_limit,
    validate,
)

EXAMPLES = 5000 if os.environ.get('BESS_SOAK') else 300
HALF = {'a': Share.equal(0.5), 'b': Share.equal(0.5)}


def source(energy=5000.0, full=10_000.0, limit=5000.0, power=0.0, **fields):
    fields = {'time': 1.0, 'newest': 1.0, 'quality': Quality.OK, 'mode': Mode.IDLE,
              'contactor': Contactor.CLOSED, 'voltage': 50.0, 'max_charge_power': limit,
              'max_discharge_power': limit, 'current': power / 50, **fields}
    return BatteryReading(energy=energy, energy_full=full, power=power, **fields)


# shares


@pytest.mark.parametrize('fractions', [
    [0.5, 0.5], [0.5, 0.3, 0.2], [1 / 3] * 3, [0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1],
    [0.1] * 10, [0.0, 1.0], [1.0, 0.0], [1.0]])
def test_good_shares(fractions):
    names = [str(i) for i in range(len(fractions))]
    assert validate(names, [Share.equal(f) for f in fractions]) == []


@pytest.mark.parametrize(('fractions', 'problem'), [
    ([-0.5, 0.5], "energy share of '0' is -0.5"), ([-0.5, 1.5], "share of '0' is -0.5"),
    ([nan, 1.0], 'is nan'), ([0.6, 0.5], 'add up to 1.1'), ([0.5, 0.500002], 'must be 1 or less'),
    ([], 'at least one child')])
def test_bad_shares(fractions, problem):
    names = [str(i) for i in range(len(fractions))]
    problems = validate(names, [Share.equal(f) for f in fractions])
    assert any(problem in text for text in problems)
    with pytest.raises(ValueError, match='child|share'):
        Partition(dict(zip(names, map(Share.equal, fractions), strict=True)))


def test_columns_are_checked_apart_and_names_once():
    problems = validate(['a', 'a'], [Share(0.5, 0.9, 0.5), Share(0.5, 0.2, 0.5)])
    assert problems == ["child 'a' is listed more than once", 'charge shares add up to 1.1, must be 1 or less']


# policies: values worked out by hand from the formulas of the facts, section 6.2


@pytest.mark.parametrize(('policy', 'total', 'expected'), [
    (Policy.PROPORTIONAL, 80, [40, 24, 16]),
    (Policy.TRANCHE, 120, [70, 30, 20]),
    (Policy.TRANCHE, 70, [50, 20, 0]),
    (Policy.TRANCHE, 10, [10, 0, 0]),
    (Policy.TRANCHE, 0, [0, 0, 0]),
    (Policy.RESERVED, 120, [50, 30, 40]),
    (Policy.RESERVED, 70, [50, 20, 0]),
])
def test_limits_by_policy(policy, total, expected):
    assert spread_limit(policy, [0.5, 0.3, 0.2], [50, 30, 20], total) == pytest.approx(expected)


@pytest.mark.parametrize(('policy', 'ledger', 'total', 'expected', 'left'), [
    (Policy.PROPORTIONAL, [10, 20, 10], 60, [15, 30, 15], 0),
    (Policy.PROPORTIONAL, [10, 20, 10], 20, [5, 10, 5], 0),
    (Policy.PROPORTIONAL, [0, 0, 0], 20, [10, 6, 4], 0),
    (Policy.PROPORTIONAL, [10, 30, 0], 60, [30, 30, 0], 0),  # the second is full
    (Policy.PROPORTIONAL, [40, 30, 0], 85, [50, 30, 5], 0),  # both are full: the rest by free room
    (Policy.TRANCHE, [10, 20, 10], 60, [30, 20, 10], 0),
    (Policy.TRANCHE, [10, 20, 10], 95, [50, 30, 15], 0),
    (Policy.TRANCHE, [10, 20, 10], 25, [10, 15, 0], 0),
    (Policy.RESERVED, [10, 20, 10], 60, [10, 30, 20], 0),
    (Policy.RESERVED, [10, 20, 10], 55, [10, 25, 20], 0),
    (Policy.RESERVED, [10, 20, 10], 25, [10, 15, 0], 0),
    (Policy.TRANCHE, [60, 20, 10], 90, [50, 30, 10], 0),  # more than its capacity: passed on
    (Policy.TRANCHE, [10, 20, -5], 30, [10, 20, 0], 0),
    (Policy.RESERVED, [10, 20, 10], 107, [50, 30, 20], 7),
])
def test_energy_by_policy(policy, ledger, total, expected, left):
    parts, unassigned = spread_energy(policy, [0.5, 0.3, 0.2], ledger, [50, 30, 20], total)
    assert parts == pytest.approx(expected)
    assert unassigned == pytest.approx(left)


wh = st.one_of(st.just(0.0), st.floats(1e-3, 1e5))


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(Policy), st.lists(st.tuples(wh, wh), min_size=1, max_size=6), wh)
def test_children_always_add_up_to_the_source(policy, children, total):
    ledger, full = (list(column) for column in zip(*children, strict=True))
    n = len(full)
    parts, left = spread_energy(policy, [1 / n] * n, ledger, full, total)
    assert sum(parts) + left == pytest.approx(total, rel=1e-9, abs=1e-6)
    assert all(0 <= p <= f * (1 + 1e-9) + 1e-9 for p, f in zip(parts, full, strict=True))
    if total <= sum(full):
        assert left == pytest.approx(0, abs=1e-6)
    limits = spread_limit(policy, [1 / n] * n, full, total)
    assert sum(limits) == pytest.approx(total, rel=1e-9, abs=1e-6)
    assert all(p >= -1e-9 for p in limits)


# attribution


@pytest.mark.parametrize('policy', list(Policy))
@pytest.mark.parametrize('sign', [1, -1])
def test_ramp_with_opposite_requests_does_not_amplify(policy, sign):
    """Facts 6.3: +20/-10 while the source is still at 19: +20/-1, not +38/-19."""
    parts = attribute(policy, [20 * sign, -10 * sign], 19 * sign, [50, 50], [50, 50],
                      fractions=[0.5, 0.5])
    assert parts == pytest.approx([20 * sign, -1 * sign])


@pytest.mark.parametrize(('policy', 'requests', 'delivered', 'expected'), [
    (Policy.PROPORTIONAL, [10, 20, 30], 30, [5, 10, 15]),
    (Policy.TRANCHE, [10, 20, 30], 25, [10, 15, 0]),  # charging: shortfall from the bottom
    (Policy.TRANCHE, [-10, -20, -30], -45, [0, -15, -30]),  # discharging: from the top
    (Policy.RESERVED, [-10, -20, -30], -25, [-10, -15, 0]),
    (Policy.RESERVED, [10, 20, 30], 25, [10, 15, 0]),
    (Policy.PROPORTIONAL, [10, 20, 0], 33, [11, 22, 0]),  # more than asked
    (Policy.TRANCHE, [10, 20, 0], 50, [30, 20, 0]),
    (Policy.TRANCHE, [10, 20, 0], 75, [40, 35, 0]),
    (Policy.RESERVED, [10, 20, 0], 45, [10, 35, 0]),
    (Policy.TRANCHE, [-10, -20, 0], -45, [-10, -35, 0]),
    (Policy.PROPORTIONAL, [0, 0, 0], -10, [-5, -3, -2]),  # nobody asked: own consumption, by shares
    (Policy.TRANCHE, [0, 0, 0], 10, [5, 3, 2]),
    (Policy.PROPORTIONAL, [20, -10, 0], -15, [0, -15, 0]),
    (Policy.PROPORTIONAL, [10, -10, 0], 0, [10, -10, 0]),
])
def test_attribution_by_hand(policy, requests, delivered, expected):
    parts = attribute(policy, requests, delivered, [40, 40, 40], [40, 40, 40],
                      fractions=[0.5, 0.3, 0.2])
    assert parts == pytest.approx(expected)


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(Policy), st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6),
       st.floats(-3e4, 3e4))
def test_attribution_properties(policy, requests, delivered):
    n = len(requests)
    parts = attribute(policy, requests, delivered, [1e4] * n, [1e4] * n, fractions=[1 / n] * n)
    assert sum(parts) == pytest.approx(delivered, rel=1e-9, abs=1e-6)
    lowest = sum(r for r in requests if r < 0)
    highest = sum(r for r in requests if r > 0)
    if lowest <= delivered <= highest:
        for r, p in zip(requests, parts, strict=True):
            assert abs(p) <= abs(r) + 1e-6
            assert p * r >= -1e-6
    else:
        assert all(p * delivered >= -1e-6 for p in parts)


# the partition itself


def test_vector_b():
    """Facts 15 B: aggregate -> partition -> aggregate -> partition with three overlapping requests."""
    def pack(charge, current, i=0.0):
        return BatteryReading(time=0.0, newest=0.0, quality=Quality.OK, mode=Mode.IDLE, voltage=0.005,
                              charge=charge, charge_full=charge, max_charge_current=current,
                              max_discharge_current=current, current=i, power=i * 0.005)

    ages = {'now': 0.0, 'max_age': 1.0, 'invalid_after': 5.0}
    bat0, bat1 = pack(7.5, 3.6), pack(10.0, 7.0)
    low, high = Partition(HALF), Partition(HALF)
    bat2 = combine([bat0, bat1], **ages)
    halves = low.refresh(bat2, {}, 0)
    assert [halves[n].charge for n in 'ab'] == pytest.approx([8.75, 8.75])
    assert [halves[n].max_discharge_current for n in 'ab'] == pytest.approx([4.2, 4.2])
    bat5 = combine([halves['a'], halves['b']], **ages)
    assert bat5.charge == pytest.approx(17.5)
    assert bat5.max_discharge_current == pytest.approx(8.4)
    tops = high.refresh(bat5, {}, 0)
    assert tops['a'].max_discharge_current == pytest.approx(4.2)

    schedules = {'a': Schedule(), 'b': Schedule()}
    for name, current, start, end in (('a', 1.75, 1, 20), ('b', 1.75, 10, 18), ('a', 1.5, 5, 15)):
        assert schedules[name].add(-current, start, end, now=0)[0]
    boundaries = sorted({t for s in schedules.values() for t in (1, 5, 10, 15, 18, 20)})
    seen = []
    for t in boundaries:
        wanted = {n: s.at(t).value * 0.005 if s.at(t) else 0.0 for n, s in schedules.items()}
        top = high.net_request(wanted)
        middle = split(top.source_power, [halves['a'], halves['b']], **ages)
        bottom = low.net_request(dict(zip('ab', middle.powers.tolist(), strict=True)))
        seen.append(split(bottom.source_power, [bat0, bat1], **ages).powers / -0.005)
    expected = [[0.75, 1], [0.642857, 0.857143], [1.392857, 1.857143], [1.5, 2], [0.75, 1], [0, 0]]
    for got, want in zip(seen, expected, strict=True):
        assert got == pytest.approx(want, abs=1e-6)


def test_opposite_requests_cancel_at_the_source_and_move_energy():
    p = Partition(HALF, charge_efficiency=0.9, discharge_efficiency=0.9)
    p.refresh(source(), {}, 0)
    net = p.net_request({'a': 1000, 'b': -1000})
    assert net.source_power == 0 and net.granted == {'a': 1000, 'b': -1000} and not net.reasons
    r = p.refresh(source(), net.granted, 1800)
    assert (r['a'].energy, r['b'].energy) == pytest.approx((3000, 2000))
    assert (r['a'].power, r['b'].power) == (1000, -1000)
    assert (r['a'].mode, r['b'].mode) == (Mode.CHARGING, Mode.DISCHARGING)
    assert r['a'].energy_charged == 500 and r['b'].energy_discharged == 500
    assert [x.lost for x in p.ledgers] == [0, 0]


def test_ledger_follows_delivered_not_requested_power():
    p = Partition(HALF)
    p.refresh(source(), {}, 0)
    r = p.refresh(source(4500, power=-1000.0), {'a': -2000, 'b': 0}, 1800)
    assert r['a'].energy == pytest.approx(2000) and r['b'].energy == pytest.approx(2500)
    assert r['a'].power == -1000 and r['b'].power == 0
    assert r['a'].current == pytest.approx(-20)


def test_losses_are_paid_by_throughput():
    """3:1 throughput pays the losses 3:1; a child that rests pays nothing."""
    shares = {n: Share.equal(f) for n, f in zip('abc', (0.4, 0.4, 0.2), strict=True)}
    p = Partition(shares, charge_efficiency=0.9, discharge_efficiency=0.8)
    p.refresh(source(), {}, 0)
    r = p.refresh(source(5900, power=1000.0), {'a': 750, 'b': 250}, 3600)
    assert [r[n].energy for n in 'abc'] == pytest.approx([2675, 2225, 1000])
    r = p.refresh(source(4900, power=-800.0), {'b': -800}, 3600)
    assert [r[n].energy for n in 'abc'] == pytest.approx([2675, 1225, 1000])
    assert [x.lost for x in p.ledgers] == pytest.approx([75, 225, 0])
    assert [x.correction for x in p.ledgers] == pytest.approx([0, 0, 0], abs=1e-9)


def test_drained_child_stops_exactly_and_does_not_disturb_its_sibling():
    p = Partition({'a': Share.equal(0.1), 'b': Share.equal(0.9)})
    energy, dt = 1000.0, 1.0
    readings = p.refresh(source(energy), {}, 0)
    delivered = {'a': 0.0, 'b': 0.0}
    stopped_at = None
    for tick in range(3600):
        net = p.net_request({'a': -430, 'b': -900}, horizon=dt)
        assert net.source_power == sum(net.granted.values())
        assert net.granted['b'] == -900
        if stopped_at is None and net.granted['a'] == 0:
            stopped_at = tick
            assert net.reasons == {'a': 'empty'}
            assert net.source_power == -900
        energy += net.source_power * dt / 3600
        readings = p.refresh(source(energy, power=net.source_power), net.granted, dt)
        for name in delivered:
            delivered[name] -= net.granted[name] * dt / 3600
        if energy <= 1:
            break
    assert stopped_at == 838  # 100 Wh at 430 W, the last second partly
    assert delivered['a'] == pytest.approx(100)
    assert readings['a'].energy == pytest.approx(0, abs=1e-6)
    assert 'empty' in readings['a'].limit_reasons
    assert readings['a'].max_discharge_power == 0 and readings['a'].max_charge_power > 0
    assert readings['b'].energy == pytest.approx(900 - delivered['b'])


def test_full_child_stops_charging():
    p = Partition(HALF)
    p.refresh(source(9000), {}, 0)
    r = p.refresh(source(9500, power=1000.0), {'a': 1000}, 1800)
    assert r['a'].max_charge_power == 0 and 'full' in r['a'].limit_reasons
    net = p.net_request({'a': 1000, 'b': 700})
    assert (net.source_power, net.reasons) == (700, {'a': 'full'})


def test_limits_of_child_and_source():
    p = Partition({'a': Share(0.5, 0.2, 0.8), 'b': Share(0.5, 0.8, 0.2)})
    p.refresh(source(), {}, 0)
    net = p.net_request({'a': 3000, 'b': -3000})
    assert net.granted == {'a': 1000, 'b': -1000}
    assert net.reasons['a'] == 'can charge only 1000 W of 3000 W'
    assert p.net_request({'a': nan}).reasons == {'a': 'the request is not a number'}
    assert p.net_request({}).source_power == 0
    with pytest.raises(KeyError, match='nobody'):
        p.net_request({'nobody': 1})
    with pytest.raises(ValueError, match='dt'):
        p.refresh(source(), {}, -1)


def test_outage_of_a_member_moves_no_energy_between_children():
    p = Partition(HALF, Policy.TRANCHE, Expected(10_000, 5000, 5000))
    p.refresh(source(4000, members=2, members_usable=2), {}, 0)
    r = p.refresh(source(2000, 5000, 2500, members=2, members_usable=1), {}, 60)
    assert (r['a'].energy, r['b'].energy) == (2000, 0)  # the upper tranche is served first
    assert r['b'].max_discharge_power == 0
    r = p.refresh(source(4000, members=2, members_usable=2), {}, 60)
    assert (r['a'].energy, r['b'].energy) == (2000, 2000)


@pytest.mark.parametrize('policy', list(Policy))
def test_invalid_source_freezes_the_ledgers(policy):
    p = Partition(HALF, policy)
    p.refresh(source(), {}, 0)
    r = p.refresh(BatteryReading(), {'a': 1000}, 60)
    assert r['a'].quality is Quality.INVALID
    assert (r['a'].energy, r['a'].max_charge_power) == (2500, 0)
    r = p.refresh(source(), {}, 0)
    assert r['a'].energy == 2500 and r['a'].quality is Quality.OK


def test_unknown_source_gives_nothing_and_says_so():
    p = Partition(HALF)
    r = p.refresh(BatteryReading(), {}, 1)
    assert 'the energy of the source is not known yet' in r['a'].limit_reasons
    net = p.net_request({'a': 100})
    assert net.source_power == 0 and net.reasons == {'a': 'the energy of the source is not known yet'}
    r = p.refresh(source(), {}, 1)
    assert r['a'].energy == 2500


def test_reconciliation_is_visible():
    p = Partition(HALF)
    p.refresh(source(), {}, 0)
    r = p.refresh(source(4800), {}, 60)
    assert [r[n].energy for n in 'ab'] == [2400, 2400]
    assert [x.correction for x in p.ledgers] == [-100, -100]
    r = p.refresh(source(10_100), {}, 60)
    assert sum(r[n].energy for n in 'ab') == 10_000
    assert p.unassigned == pytest.approx(100)
    assert '100.0 Wh of the source fit into no child' in r['a'].limit_reasons


def test_state_survives_a_restart():
    p = Partition({'a': Share(0.25, 0.5, 0.5), 'b': Share(0.75, 0.5, 0.5)}, Policy.RESERVED)
    p.refresh(source(), {}, 0)
    p.refresh(source(5100, power=200.0), {'a': 200}, 1800)
    saved = json.loads(json.dumps(to_dict(p), allow_nan=False))
    q = from_dict(saved)
    assert to_dict(q) == to_dict(p)
    assert q.refresh(source(5100), {}, 0)['a'].energy == p.refresh(source(5100), {}, 0)['a'].energy
    fresh = Partition(HALF)
    assert from_dict(json.loads(json.dumps(to_dict(fresh)))).ledgers is None
    for damage in ({}, {**saved, 'version': 9}, {**saved, 'children': {}}, {**saved, 'policy': 'x'},
                   {**saved, 'children': {'a': {'share': {}, 'ledger': None}}},
                   {**saved, 'children': 3}):
        with pytest.raises(ValueError, match='.'):
            from_dict(damage)


@settings(max_examples=EXAMPLES // 3)
@given(st.sampled_from(Policy), st.lists(st.tuples(
    st.floats(-6000, 6000), st.floats(-6000, 6000), st.floats(-6000, 6000), st.floats(0.5, 1.1),
    st.sampled_from([Quality.OK, Quality.OK, Quality.STALE, Quality.INVALID])), max_size=40))
def test_any_run_adds_up(policy, steps):
    """Children sum to the source in energy, power and limits, whatever is asked and delivered."""
    shares = {'a': Share(0.5, 0.2, 0.3), 'b': Share(0.3, 0.5, 0.3), 'c': Share(0.2, 0.3, 0.4)}
    p = Partition(shares, policy, Expected(10_000, 5000, 5000), 0.95, 0.95)
    energy = 5000.0
    p.refresh(source(energy), {}, 0)
    for a, b, c, follow, quality in steps:
        net = p.net_request({'a': a, 'b': b, 'c': c}, horizon=300)
        assert abs(net.source_power) <= 5000 * (1 + 1e-9)
        assert sum(net.granted.values()) == pytest.approx(net.source_power, abs=1e-6)
        for asked, granted in zip((a, b, c), net.granted.values(), strict=True):
            assert abs(granted) <= abs(asked) and granted * asked >= 0
        power = net.source_power * follow
        energy = min(max(energy + power / 12 * (0.95 if power > 0 else 1 / 0.95), 0.0), 10_000.0)
        children = p.refresh(source(energy, power=power, quality=quality), net.granted, 300).values()
        if quality is Quality.OK:
            assert sum(x.energy for x in children) == pytest.approx(energy, abs=1e-6)
            assert sum(x.energy_full for x in children) == pytest.approx(10_000)
        if quality is not Quality.INVALID:
            assert sum(x.power for x in children) == pytest.approx(power, abs=1e-6)
        for x in children:
            assert -1e-9 <= x.energy <= x.energy_full + 1e-6
            assert 0 <= x.soc <= 1 + 1e-9
