from __future__ import annotations

from math import isnan, nan

import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.aggregate import combine, split

AGES = {'now': 100.0, 'max_age': 2.0, 'invalid_after': 10.0}


def battery(energy, full, charge=1000.0, discharge=1000.0, **fields):
    fields = {'time': 99.5, 'newest': 99.8, 'quality': Quality.OK, 'mode': Mode.IDLE,
              'contactor': Contactor.CLOSED, 'voltage': 50.0, 'current': 0.0, 'power': 0.0, **fields}
    return BatteryReading(energy=energy, energy_full=full, max_charge_power=charge,
                          max_discharge_power=discharge, **fields)


def dc(voltage, charge, charge_full, charge_limit, discharge_limit, **fields):
    """A bare pack that knows only Ah, V and A."""
    return BatteryReading(
        time=99.5, newest=99.5, quality=Quality.OK, mode=Mode.IDLE, voltage=voltage, current=0.0,
        charge=charge, charge_full=charge_full, max_charge_current=charge_limit,
        max_discharge_current=discharge_limit, **fields)


def test_vector_a():
    """Published: 17.5 Ah, MDC 8.4 A, MCC 0; request 8.4 A -> 3.6 + 4.8 A."""
    members = [dc(0.005, 7.5, 7.5, 3.6, 3.6), dc(0.005, 10, 10, 7, 7)]
    a = combine(members, **AGES)
    assert a.charge == pytest.approx(17.5) and a.charge_full == pytest.approx(17.5)
    assert a.voltage == pytest.approx(0.005)
    assert a.max_discharge_current == pytest.approx(8.4)
    assert a.max_charge_current == 0
    assert a.soc == pytest.approx(1)
    powers = split(-8.4 * 0.005, members, **AGES).powers
    assert powers / 0.005 == pytest.approx([-3.6, -4.8])
    assert combine(members, **AGES, limit='sum').max_discharge_current == pytest.approx(10.6)


@pytest.mark.parametrize(('charge_a', 'limit', 'request_a', 'shares'), [
    (110, 81.818, 81.818, [60, 21.818]),
    (110, 81.818, 30, [22, 8]),
    (110, 81.818, 50, [36.667, 13.333]),
    (10, 50, 50, [10, 40]),
])
def test_vector_a3(charge_a, limit, request_a, shares):
    members = [dc(10, charge_a, 110, 60, 60), dc(10, 40, 40, 40, 40)]
    a = combine(members, **AGES)
    assert a.charge == charge_a + 40
    assert a.max_discharge_current == pytest.approx(limit, abs=1e-3)
    assert a.soc == pytest.approx((charge_a + 40) / 150)
    powers = split(-request_a * 10, members, **AGES).powers
    assert powers / -10 == pytest.approx(shares, abs=1e-3)


def test_members_of_different_voltage():
    """Facts 5.4: 13 V with 60/110 Ah and 12 V with 20/40 Ah -> 12.75 V when discharging."""
    members = [dc(13, 60, 110, 60, 60), dc(12, 20, 40, 40, 40)]
    a = combine(members, **AGES)
    assert a.voltage == pytest.approx(12.75)
    energies, limits = [780, 240], [780, 480]
    pace = min(p / e for p, e in zip(limits, energies, strict=True))
    assert a.max_discharge_power == pytest.approx(sum(energies) * pace)
    assert a.max_discharge_current == pytest.approx(sum(energies) * pace / 12.75)
    for m in members:
        m.current, m.power = 1.0, m.voltage
    charging = combine(members, **AGES)
    assert charging.voltage == pytest.approx((50 * 13 + 20 * 12) / 70)
    assert charging.current == pytest.approx(25 / charging.voltage)
    assert charging.power == 25


def test_held_at_the_limit_members_finish_together():
    members = [battery(3000, 5000, 2500, 2500), battery(9000, 10_000, 5000, 3000)]
    for limit_name, sign, room in (('max_discharge_power', -1, [3000, 9000]),
                                   ('max_charge_power', 1, [2000, 1000])):
        power = getattr(combine(members, **AGES), limit_name)
        powers = split(sign * power, members, **AGES).powers
        hours = [e / abs(p) for e, p in zip(room, powers, strict=True)]
        assert hours[0] == pytest.approx(hours[1])


@pytest.mark.parametrize(('odd', 'reason'), [
    (battery(0, 5000), 'empty'),
    (battery(4000, 5000, discharge=0), 'must not discharge'),
    (battery(4000, 5000, contactor=Contactor.CHARGE_ONLY), 'must not discharge'),
    (battery(4000, 5000, contactor=Contactor.OPEN), 'contactor open'),
    (battery(4000, 5000, mode=Mode.FAULT), 'fault'),
    (battery(4000, 5000, mode=Mode.OFF), 'off'),
    (battery(4000, 5000, time=95.0), 'stale, 5.0 s old'),
    (battery(4000, 5000, time=50.0), 'invalid, 50.0 s old'),
    (battery(4000, 5000, quality=Quality.INVALID), 'invalid'),
    (BatteryReading(), 'invalid, never read'),
    (BatteryReading(time=99.0, quality=Quality.OK), 'must not discharge'),
])
def test_one_odd_member_never_blocks_the_others(odd, reason):
    good = battery(6000, 10_000, 2000, 3000, soc=0.6, temperature=20.0)
    a = combine([good, odd], **AGES, names=['good', 'odd'])
    assert a.max_discharge_power == 3000
    assert a.quality is Quality.OK
    assert any(text.startswith('odd: ') and reason in text for text in a.limit_reasons)
    if a.members_usable == 1:  # said once
        assert [text for text in a.limit_reasons if text.startswith('odd: ')] == a.limit_reasons
        assert len(a.limit_reasons) == 1
    assert not isnan(a.voltage) and not isnan(a.energy) and not isnan(a.soc)
    assert a.time <= 99.5 and a.members == 2
    powers = split(-2500, [good, odd], **AGES).powers
    assert powers.tolist() == [-2500, 0]


def test_full_and_empty_member_together_work_in_both_directions():
    members = [battery(5000, 5000), battery(0, 5000)]
    a = combine(members, **AGES)
    assert (a.max_charge_power, a.max_discharge_power) == (1000, 1000)
    assert split(700, members, **AGES).powers.tolist() == [0, 700]
    assert split(-700, members, **AGES).powers.tolist() == [-700, 0]


def test_unusable_members_are_left_out_of_the_values():
    good = battery(6000, 10_000, power=500.0, current=10.0, energy_charged=7.0,
                   energy_discharged=1.0)
    lost = battery(1000, 2000, time=90.5, power=300.0, energy_charged=5.0, energy_discharged=2.0)
    failed = battery(1000, 2000, mode=Mode.FAULT, power=-100.0, current=-2.0, energy_charged=1.0,
                     energy_discharged=3.0)
    a = combine([good, lost, failed], **AGES)
    assert (a.members, a.members_usable) == (3, 1)
    assert (a.energy, a.energy_full, a.soc) == (6000, 10_000, 0.6)
    assert a.power == 400  # what flows is measured, whatever the state
    assert (a.energy_charged, a.energy_discharged) == (13, 6)  # counters must not jump
    assert (a.time, a.newest) == (99.5, 99.8)


@pytest.mark.parametrize(('times', 'quality'), [
    ((95.0, 96.0), Quality.STALE), ((95.0, 10.0), Quality.STALE), ((10.0, 20.0), Quality.INVALID)])
def test_all_stale_keeps_the_values_but_allows_nothing(times, quality):
    a = combine([battery(1000, 2000, time=t) for t in times], **AGES)
    assert a.quality is quality
    assert a.members_usable == 0
    assert a.soc == 0.5 and a.voltage == 50
    assert a.max_charge_power == a.max_discharge_power == 0
    assert a.time == (95.0 if quality is Quality.STALE else 10.0)


def test_age_is_that_of_the_oldest_contributing_member():
    a = combine([battery(1, 2, time=98.5, newest=98.5), battery(1, 2, time=99.9, newest=99.95)], **AGES)
    assert (a.time, a.newest, a.quality) == (98.5, 99.95, Quality.OK)


def test_extremes_modes_and_contactors():
    hot = battery(1, 2, temperature=40.0, temperature_min=10.0, cell_voltage_min=3.1,
                  cell_voltage_max=3.5, mode=Mode.CHARGING, power=500.0,
                  contactor=Contactor.CHARGE_ONLY)
    mild = battery(1, 2, temperature=25.0, cell_voltage_min=3.0, cell_voltage_max=3.4,
                   contactor=Contactor.DISCHARGE_ONLY)
    for members in ([hot, mild, battery(1, 2)], [battery(1, 2), mild, hot]):
        a = combine(members, **AGES)
        assert (a.temperature, a.temperature_min) == (40, 10)
        assert (a.cell_voltage_min, a.cell_voltage_max) == (3.0, 3.5)
        assert (a.mode, a.contactor) == (Mode.CHARGING, Contactor.CLOSED)


def test_unknown_energy_is_named_and_shares_like_the_others():
    known = battery(4000, 8000, 1000, 2000)
    unknown = battery(nan, nan, 500, 1000)
    a = combine([known, unknown], **AGES)
    assert (a.energy, a.energy_full, a.soc) == (4000, 8000, 0.5)
    assert a.max_discharge_power == 3000
    assert 'member 1: energy not known, not counted' in a.limit_reasons
    assert split(-1500, [known, unknown], **AGES).powers == pytest.approx([-1000, -500])
    assert split(-300, [unknown, unknown], **AGES).powers == pytest.approx([-150, -150])


def test_unknown_power_of_one_member_is_not_hidden():
    assert isnan(combine([battery(1, 2, power=5.0), battery(1, 2, power=nan, current=nan)], **AGES).power)


def test_no_members():
    a = combine([], **AGES)
    assert a.quality is Quality.INVALID and a.members == 0 and a.max_charge_power == 0
    assert split(5, [], **AGES).granted == 0


def test_twelve_layers_equal_one():
    members = [battery(3000, 5000), battery(2000, 8000, 800, 500, power=100.0, current=2.0)]
    flat = combine(members, **AGES)
    deep = flat
    for _ in range(11):
        deep = combine([deep], **AGES)
    for name in ('energy', 'energy_full', 'max_charge_power', 'max_discharge_power', 'power',
                 'voltage', 'soc', 'time', 'newest', 'charge', 'current'):
        assert getattr(deep, name) == pytest.approx(getattr(flat, name)), name


any_value = st.one_of(st.just(nan), st.just(0.0), st.floats(0, 1e5))
readings = st.builds(
    BatteryReading, time=st.floats(80, 101), newest=st.just(100.0), quality=st.sampled_from(Quality),
    mode=st.sampled_from(Mode), contactor=st.sampled_from(Contactor), voltage=any_value,
    current=st.one_of(st.just(nan), st.floats(-100, 100)),
    power=st.one_of(st.just(nan), st.floats(-1e4, 1e4)), charge=any_value, charge_full=any_value,
    energy=any_value, energy_full=any_value, max_charge_current=any_value,
    max_discharge_current=any_value, max_charge_power=any_value, max_discharge_power=any_value,
    soc=st.one_of(st.just(nan), st.floats(0, 1)))


@settings(max_examples=300)
@given(st.lists(readings, min_size=1, max_size=6), st.floats(-1e5, 1e5))
def test_any_members(members, power):
    together = combine(members, **AGES)
    plain = combine(members, **AGES, limit='sum')
    for name in ('max_charge_power', 'max_discharge_power'):
        assert 0 <= getattr(together, name) <= getattr(plain, name) * (1 + 1e-9)
        # the plain sum is positive exactly when the reachable limit is
        assert (getattr(together, name) > 0) == (getattr(plain, name) > 0)
    assert together.members_usable <= len(members)
    if together.members_usable < len(members):
        assert together.limit_reasons
    a = split(power, members, **AGES)
    assert abs(a.granted) <= abs(power)
    for r, p in zip(members, a.powers, strict=True):
        if r.quality is not Quality.OK or r.mode is Mode.FAULT or r.time < 98:
            assert p == 0
    if any(r.voltage > 0 and r.quality is together.quality and together.members_usable == 0
           and r.time >= 98 for r in members):
        assert not isnan(together.voltage)


def test_cost():
    """Called every tick: what grows with the members is in numpy."""
    def work(members):
        return calls(lambda: combine(members, **AGES))

    assert work([battery(3000, 5000), battery(2000, 8000)]) < 250
    assert work([battery(3000, 5000)] * 1000) == work([battery(3000, 5000)] * 100) < 500
