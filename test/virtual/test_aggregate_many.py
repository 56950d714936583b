"""Members by columns, expected values, exclusion zones and equalisation: pure parts of the aggregate."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from math import inf, isnan, nan

import numpy as np
import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual import aggregate
from bess_virtual.aggregate import combine, split
from bess_virtual.balancing import Goal, equalise, problem
from bess_virtual.counters import Counter
from bess_virtual.member import view
from bess_virtual.reasons import limited_list
from bess_virtual.zones import allocate_in_bands, allowed, bands, parse

EXAMPLES = 1000 if os.environ.get('BESS_SOAK') else 150
AGES = {'now': 100.0, 'max_age': 2.0, 'invalid_after': 10.0}
any_value = st.one_of(st.just(nan), st.just(0.0), st.floats(1e-3, 1e5))
readings = st.builds(
    BatteryReading, time=st.one_of(st.floats(80, 101), st.floats(98, 100)), newest=st.just(100.0),
    quality=st.sampled_from([Quality.OK, Quality.OK, *Quality]), mode=st.sampled_from(Mode),
    contactor=st.sampled_from(Contactor), voltage=any_value,
    current=st.one_of(st.just(nan), st.floats(-100, 100)), power=st.one_of(st.just(nan), st.floats(-1e4, 1e4)),
    charge=any_value, charge_full=any_value, energy=any_value, energy_full=any_value, max_charge_current=any_value,
    max_discharge_current=any_value, max_charge_power=any_value, max_discharge_power=any_value,
    soc=st.one_of(st.just(nan), st.floats(0, 1)), soh=any_value, temperature=any_value, temperature_min=any_value,
    cell_voltage_min=any_value, cell_voltage_max=any_value, energy_charged=any_value, energy_discharged=any_value,
    limit_reasons=st.lists(st.sampled_from(['charge 5 W: bms', 'x']), max_size=2),
    missing=st.lists(st.just('deep: fault'), max_size=1))


def battery(energy, full, charge=1000.0, discharge=1000.0, **fields):
    fields = {'time': 99.5, 'newest': 99.8, 'quality': Quality.OK, 'mode': Mode.IDLE,
              'contactor': Contactor.CLOSED, 'voltage': 50.0, 'current': 0.0, 'power': 0.0, **fields}
    return BatteryReading(energy=energy, energy_full=full, max_charge_power=charge,
                          max_discharge_power=discharge, **fields)


@settings(max_examples=EXAMPLES)
@given(st.lists(readings, min_size=1, max_size=20), st.sampled_from(['together', 'sum']), st.floats(-1e5, 1e5))
def test_columns_and_objects_give_the_same(members, limit, power):
    few, many = aggregate.FEW, None
    try:
        aggregate.FEW = 1000
        one, shares = combine(members, **AGES, limit=limit), split(power, members, **AGES).powers
        aggregate.FEW = 0
        many, shares_many = combine(members, **AGES, limit=limit), split(power, members, **AGES).powers
    finally:
        aggregate.FEW = few
    for name in BatteryReading.__slots__:
        a, b = getattr(one, name), getattr(many, name)
        if name in ('limit_reasons', 'missing'):
            assert sorted(a) == sorted(b) or len(a) == len(b) >= 40, name
        elif isinstance(a, float):
            assert b == pytest.approx(a, rel=1e-9, abs=1e-9, nan_ok=True), name
        else:
            assert a == b and type(a) is type(b), name
    assert shares_many == pytest.approx(shares, rel=1e-9, abs=1e-9)


def test_a_thousand_members_cost_little():
    rng = np.random.default_rng(1)
    members = [battery(float(rng.uniform(100, 5000)), 5000.0, limit_reasons=['charge 700 W: bms']) for _ in range(1000)]

    def work(count):
        return (calls(lambda: combine(members[:count], **AGES)),
                calls(lambda: split(-300.0 * count, members[:count], **AGES)))

    (read_few, shared_few), (read_many, shared_many) = work(100), work(1000)
    assert read_many - read_few <= 900 * 3  # their texts are counted one by one, the rest is in numpy
    assert shared_many == shared_few < 300
    reasons = combine(members, **AGES).limit_reasons
    assert len(reasons) == 40 and reasons[-1] == 'and 963 more'  # 1000 of members, 2 of the pace


def test_lists_of_reasons_are_bounded_and_say_so():
    assert limited_list(['a', 'b'], 3) == ['a', 'b']
    assert limited_list(list('abcd'), 3) == ['a', 'b', 'and 2 more']
    assert limited_list(list('abc'), 3, 5) == ['a', 'b', 'and 6 more']


@given(st.lists(st.tuples(st.sampled_from('abc'), st.one_of(st.just(nan), st.floats(0, 1e6))), max_size=30))
def test_a_counter_never_falls_once_it_is_known(news):
    counter, before = Counter(), -inf
    for member, value in news:
        counter.see(member, value)
        total = counter.total('abc')
        assert isnan(total) or total >= before
        before = before if isnan(total) else total
    counter.forget('a')
    assert counter.total('bc') >= before or isnan(counter.total('bc')) or before == -inf


# -- expected and current values ---------------------------------------------------------------------


@pytest.mark.parametrize('many', [False, True])
def test_a_missing_member_is_named_and_the_expected_values_stay(many, monkeypatch):
    monkeypatch.setattr(aggregate, 'FEW', 0 if many else 16)
    a, b = battery(2500, 5000, 1000, 2000), battery(4000, 8000, 1600, 3200)
    whole = combine([a, b], **AGES, names=['a', 'b'])
    assert whole.missing == []
    assert (whole.expected_energy_full, whole.expected_discharge_power) == (13_000, whole.max_discharge_power)
    for gone, why in ((replace(b, time=95.0), 'stale, 5.0 s old'), (replace(b, mode=Mode.FAULT, max_charge_power=0.0,
                      max_discharge_power=0.0), 'fault'), (BatteryReading(), 'invalid, never read')):
        part = combine([a, gone], **AGES, names=['a', 'b'], last_good=[a, b])
        assert part.missing == [f'b: {why}']
        assert (part.energy_full, part.max_discharge_power) == (5000, 2000)
        assert part.expected_energy_full == whole.expected_energy_full
        assert part.expected_discharge_power == pytest.approx(whole.max_discharge_power)
        assert part.expected_charge_power == pytest.approx(whole.max_charge_power)
    above = combine([part, a], **AGES, names=['inner', 'c'])
    assert above.missing == ['inner: b: invalid, never read'], 'seen from above, too'
    assert above.expected_energy_full == 18_000


def test_edge_cases_of_the_published_table():
    """Facts 5.5: what other implementations make of these, and the rule that holds here."""
    full, empty = battery(5000, 5000), battery(0, 5000)
    all_empty = combine([empty, empty], **AGES)
    assert (all_empty.max_discharge_power, all_empty.max_charge_power) == (0, 2000)
    assert not isnan(all_empty.voltage)
    assert combine([full, full], **AGES).max_charge_power == 0
    assert split(0.0, [empty, empty], **AGES).reason == '', 'a stop is always possible'
    assert split(0.0, [], **AGES).granted == 0.0
    blocked = battery(4000, 5000, discharge=0.0)
    assert combine([full, blocked], **AGES).max_discharge_power == 1000, 'left out of the minimum, and named'
    assert any('must not discharge' in r for r in combine([full, blocked], **AGES).limit_reasons)
    charging = split(700.0, [battery(1000, 5000), battery(4000, 5000)], **AGES)
    assert charging.powers == pytest.approx([560.0, 140.0]), 'charging charges, by headroom'
    over = split(-5000.0, [full, battery(2500, 5000)], **AGES)
    assert over.powers.tolist() == [-1000, -1000] and 'only 2000 W of 5000 W' in over.reason


# -- nobody works against anybody --------------------------------------------------------------------


zone_edges = st.tuples(st.floats(0, 900), st.floats(1, 400)).map(lambda z: (z[0], z[0] + z[1]))
zone = st.tuples(zone_edges, st.booleans()).map(lambda z: z[0] if z[1] else (-z[0][1], -z[0][0]))
small_battery = st.builds(battery, st.floats(0, 5000), st.just(5000.0), st.floats(0, 2000), st.floats(0, 2000))


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(small_battery, st.lists(zone, max_size=2), st.sampled_from([0.0, 0.0, 200.0])),
                min_size=1, max_size=25), st.floats(-2e4, 2e4))
def test_no_two_members_work_against_each_other_and_zones_hold(members, power):
    rs, zones, minimum = (list(column) for column in zip(*members, strict=True))
    for given_minimum, given_zones in ((None, None), (minimum, None), (minimum, zones), (None, zones)):
        a = split(power, rs, **AGES, minimum=given_minimum, zones=given_zones)
        assert (a.powers >= 0).all() if power >= 0 else (a.powers <= 0).all()
        assert abs(a.granted) <= abs(power) * (1 + 1e-12)
        assert a.powers.sum() == pytest.approx(a.granted, rel=1e-9, abs=1e-9)
        assert a.residual == pytest.approx(power - a.granted, abs=1e-9) and bool(a.reason) == (a.residual != 0)
        for r, p, z, m in zip(rs, a.powers.tolist(), zones, minimum, strict=True):
            assert -r.max_discharge_power * (1 + 1e-12) <= p <= r.max_charge_power * (1 + 1e-12)
            if given_zones is not None:
                assert any(allowed(q, z) for q in (p, p * (1 - 1e-12), p * (1 + 1e-12))), (p, z)
            if given_minimum is not None:
                assert p == 0 or abs(p) >= m * (1 - 1e-9)


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(50, 1500), st.lists(zone, max_size=2)),
                min_size=1, max_size=4), st.floats(1, 4000))
def test_zones_carry_the_most_that_any_choice_of_bands_can(members, power):
    weights, caps, zones = (list(column) for column in zip(*members, strict=True))
    a = allocate_in_bands(power, weights, weights, [0.0] * len(caps), caps, zones)
    best = 0.0
    for choice in product(*(bands(z, 0.0, True, c) for z, c in zip(zones, caps, strict=True))):
        if sum(low for low, _ in choice) <= power:
            best = max(best, min(power, sum(high for _, high in choice)))
    assert a.granted == pytest.approx(best, rel=1e-9)


def test_members_in_the_same_band_share_equally_and_stay_in_it():
    zones = [[(300.0, 500.0)]] * 2
    split_at = lambda power, present=None: allocate_in_bands(  # noqa: E731
        power, [1.0, 1.0], [1.0, 1.0], [-1e3] * 2, [1e3] * 2, zones, present=present).powers.tolist()
    assert split_at(500.0) == [250.0, 250.0]
    assert split_at(1200.0) == [600.0, 600.0]
    assert sorted(split_at(800.0)) == [300.0, 500.0]
    one, two = split_at(800.0, [500.0, 300.0]), split_at(800.0, [300.0, 500.0])
    assert (one, two) == ([500.0, 300.0], [300.0, 500.0]), 'who runs above the zone goes on doing so'
    assert split_at(-800.0) == [-400.0, -400.0], 'a zone on the other side does not matter'


def test_zones_that_touch_are_one():
    assert parse({'a': [[200, 300], [100, 200], [250, 260], [-5, 0], [0, 7]]}, ['a']) == {
        'a': [(-5.0, 0.0), (0.0, 7.0), (100.0, 300.0)]}


@pytest.mark.parametrize(('zones', 'text'), [
    ({'c': [[1, 2]]}, "'c' is not a member; members: a, b"), ({'a': 5}, 'is not a list'),
    ({'a': [[1]]}, 'is not [low, high]'), ({'a': [[2, 1]]}, 'low must be below high'),
    ({'a': [[-1, 1]]}, 'contains 0 W'), ({'a': [[1, inf]]}, 'both finite'), ({'a': [['x', 1]]}, 'is not [low, high]'),
    ({'a': [[nan, 1]]}, 'low must be below high')])
def test_zones_that_cannot_be_are_refused(zones, text):
    with pytest.raises(ValueError, match='exclusion_zones') as caught:
        parse(zones, ['a', 'b'])
    assert text in str(caught.value)


# -- equalisation ------------------------------------------------------------------------------------


def transfer(members, shares, power=400.0, tolerance=0.02, **options):
    return equalise(Goal(power, tolerance), [view(m, **AGES) for m in members], shares, **options)


@settings(max_examples=EXAMPLES)
@given(st.lists(small_battery, min_size=1, max_size=8), st.floats(-8000, 8000), st.floats(0, 3000))
def test_equalisation_nets_to_zero_within_budget_and_limits(members, power, budget):
    shares = split(power, members, **AGES).powers.tolist()
    t = transfer(members, shares, budget)
    assert float(t.powers.sum()) == pytest.approx(0.0, abs=1e-6)
    assert t.moved <= budget * (1 + 1e-9)
    for m, s, p in zip(members, shares, t.powers.tolist(), strict=True):
        assert -m.max_discharge_power - 1e-6 <= s + p <= m.max_charge_power + 1e-6
    if t.moved > 0.0:
        mean = sum(m.energy for m in members) / sum(m.energy_full for m in members)
        for m, p in zip(members, t.powers.tolist(), strict=True):
            assert p == 0.0 or (p > 0.0) == (m.energy / m.energy_full < mean)
        assert t.spread > 0.02 and t.reason == ''
    else:
        assert t.reason


def test_equal_members_are_moved_equally_and_the_tolerance_ends_it():
    full, low = battery(4000, 5000), battery(1000, 5000)
    t = transfer([full, full, low, low], [0.0] * 4)
    assert t.powers.tolist() == [-200.0, -200.0, 200.0, 200.0]
    assert transfer([full, battery(3950, 5000)], [0.0, 0.0]).reason == 'equal within the tolerance'


@pytest.mark.parametrize(('members', 'shares', 'reason'), [
    ([battery(4000, 5000, discharge=0.0), battery(1000, 5000)], [0.0, 0.0], 'can give'),
    ([battery(4000, 5000), battery(1000, 5000, charge=0.0)], [0.0, 0.0], 'can take'),
    ([battery(4000, 5000), battery(1000, 5000, contactor=Contactor.OPEN)], [0.0, 0.0], 'fewer than two'),
    ([battery(4000, 5000), battery(1000, 5000, time=90.5)], [0.0, 0.0], 'fewer than two'),
    ([battery(4000, 5000), battery(nan, nan)], [0.0, 0.0], 'fewer than two'),
    ([battery(4000, 5000), battery(1000, 5000)], [-1000.0, -200.0], 'can give')])
def test_nothing_is_moved_against_a_limit(members, shares, reason):
    t = transfer(members, shares)
    assert t.moved == 0.0 and not t.powers.any() and reason in t.reason


def test_minimum_powers_bind_equalisation_too():
    members = [battery(4000, 5000), battery(2000, 5000), battery(1000, 5000)]
    assert transfer(members, [0.0] * 3, 300.0, minimum=[250.0] * 3).powers.tolist() == [-300.0, 0.0, 300.0]
    t = transfer(members, [0.0] * 3, 200.0, minimum=[250.0] * 3)
    assert t.moved == 0.0 and 'minimum powers' in t.reason


@pytest.mark.parametrize('efficiency', [1.0, 0.9])
def test_equalisation_arrives_without_swinging_over(efficiency):
    """Losses of both members are theirs; the whole exchanges nothing with the outside."""
    energies, fulls, hours = [4500.0, 800.0, 3000.0], [5000.0, 4000.0, 8000.0], 0.0
    spreads = []
    while hours < 24.0:
        members = [battery(e, f) for e, f in zip(energies, fulls, strict=True)]
        t = transfer(members, [0.0] * 3, 500.0, 0.01)
        spreads.append(t.spread)
        if t.moved == 0.0:
            break
        step = 5 / 3600
        for i, p in enumerate(t.powers.tolist()):
            energies[i] += p * step * (efficiency if p > 0 else 1 / efficiency)
        hours += step
    assert t.reason == 'equal within the tolerance' and spreads[-1] <= 0.01
    assert all(b <= a + 1e-9 for a, b in zip(spreads, spreads[1:], strict=False)), 'monotonic'



@pytest.mark.parametrize(('power', 'tolerance', 'duration', 'text'), [
    (nan, 0.0, 1.0, 'power is nan'), (inf, 0.0, 1.0, 'power is inf'), (-1.0, 0.0, 1.0, 'power is -1'),
    (1.0, -0.1, 1.0, 'tolerance'), (1.0, 1.0, 1.0, 'tolerance'), (1.0, 0.0, 0.0, 'duration'),
    (1.0, 0.0, nan, 'duration'), (1.0, 0.0, inf, 'duration'), (1.0, nan, 1.0, ''), (0.0, nan, nan, '')])
def test_bad_requests_to_equalise(power, tolerance, duration, text):
    assert text in problem(power, tolerance, duration) and bool(text) == bool(problem(power, tolerance, duration))


# -- together ----------------------------------------------------------------------------------------


def test_held_power_empties_and_fills_all_members_together():
    """Closed loop: whatever their sizes and states, all finish within 1 % of the time."""
    rng = np.random.default_rng(3)
    fulls = rng.uniform(2000, 9000, 6)
    for sign in (-1.0, 1.0):
        energies = fulls * rng.uniform(0.2, 0.8, 6)
        limits = rng.uniform(800, 4000, 6)
        done = np.full(6, nan)
        asked, hours, step = None, 0.0, 2 / 3600
        while np.isnan(done).any() and hours < 50:
            members = [battery(float(e), float(f), float(p), float(p)) for e, f, p in zip(energies, fulls, limits,
                                                                                           strict=True)]
            whole = combine(members, **AGES)
            asked = (whole.max_charge_power if sign > 0 else whole.max_discharge_power) if asked is None else asked
            powers = split(sign * asked, members, **AGES).powers
            energies = np.clip(energies + powers * step, 0.0, fulls)
            hours += step
            done = np.where(np.isnan(done) & ((energies <= 1e-3 * fulls) | (energies >= 0.999 * fulls)), hours, done)
        assert np.nanmax(done) - np.nanmin(done) < 0.01 * hours, done


@settings(max_examples=EXAMPLES)
@given(st.builds(
    BatteryReading, time=st.floats(98, 100), newest=st.just(100.0), quality=st.just(Quality.OK),
    mode=st.sampled_from([Mode.IDLE, Mode.CHARGING, Mode.DISCHARGING]), contactor=st.sampled_from(Contactor),
    voltage=st.floats(1, 1000), current=st.one_of(st.just(nan), st.floats(-100, 100)),
    power=st.one_of(st.just(nan), st.floats(-1e4, 1e4)), charge=any_value, charge_full=any_value,
    energy=st.floats(0, 1e4), energy_full=st.floats(5e3, 2e4), max_charge_current=any_value,
    max_discharge_current=any_value, max_charge_power=any_value, max_discharge_power=any_value, soc=any_value,
    soh=any_value, temperature=any_value, temperature_min=any_value, cell_voltage_min=any_value,
    cell_voltage_max=any_value, energy_charged=any_value, energy_discharged=any_value,
    limit_reasons=st.lists(st.sampled_from(['charge 5 W: bms', 'x']), max_size=2)),
    st.sampled_from(['together', 'sum']), st.floats(-2e4, 2e4))
def test_the_short_way_for_one_member_gives_the_same(member, limit, power):
    plain = aggregate._is_plain
    short, share = combine([member], **AGES, limit=limit), split(power, [member], **AGES)
    try:
        aggregate._is_plain = lambda _: False
        long, share_long = combine([member], **AGES, limit=limit), split(power, [member], **AGES)
    finally:
        aggregate._is_plain = plain
    for name in BatteryReading.__slots__:
        a, b = getattr(short, name), getattr(long, name)
        if isinstance(b, float):
            assert a == pytest.approx(b, rel=1e-12, abs=1e-12, nan_ok=True), name
        else:
            assert a == b, name
    assert (share.powers.tolist(), share.granted, share.residual, share.reason) == (
        pytest.approx(share_long.powers.tolist(), rel=1e-12), pytest.approx(share_long.granted, rel=1e-12),
        pytest.approx(share_long.residual, rel=1e-12), share_long.reason)
