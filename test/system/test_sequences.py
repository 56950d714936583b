"""Sequences of the test controller and the response that is measured: pure parts."""

from __future__ import annotations

from math import exp, inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_control.site_state import SiteState
from bess_control.system.response import analyse
from bess_control.system.sequence import Allowed, Step, check, parse, total


def allowed(state: SiteState = SiteState.RUN, charge: float = 2000.0, discharge: float = 1000.0) -> Allowed:
    return Allowed(state, ['self_consumption'], charge, discharge, 600.0, 20.0, 'BMS: cold')


def test_steps_read_as_they_are_written() -> None:
    said = ['hold:1000:10', 'ramp:-500:2.5', 'mode:none', 'stop', 'start', 'maintenance', 'release']
    steps = parse(said)
    assert [s.text for s in steps] == said
    assert total(steps, 20.0) == 12.5 + 5 * 20.0


@pytest.mark.parametrize('bad', ['', 'hold', 'hold:1', 'hold:x:1', 'hold:nan:1', 'hold:inf:1', 'hold:1:0', 'hold:1:-1',
                                 'hold:1:nan', 'mode', 'mode:', 'start:1', 'jump', 'hold:1:2:3'])
def test_what_is_no_step_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match='step 2'):
        parse(['stop', bad])


def test_no_steps_and_too_many() -> None:
    with pytest.raises(ValueError, match='no steps'):
        parse([])
    with pytest.raises(ValueError, match='at most'):
        parse(['stop'] * 201)


@pytest.mark.parametrize(('steps', 'now', 'said'), [
    (['hold:2001:1'], allowed(), 'step 1 (hold:2001:1): only 2000 W of charging are allowed now (BMS: cold)'),
    (['hold:500:1', 'hold:-1001:1'], allowed(), 'step 2 (hold:-1001:1): only 1000 W of discharging'),
    (['ramp:9000:1'], allowed(), 'only 2000 W'), (['hold:1:1'], allowed(charge=nan), 'charging is not allowed'),
    (['hold:1:601'], allowed(), 'at most 600 s'), (['mode:dance'], allowed(), 'there is: self_consumption, none'),
    (['hold:0:1'], allowed(SiteState.SLEEP), 'only in RUN'), (['stop', 'hold:0:1'], allowed(), 'would be in SLEEP'),
    (['maintenance', 'start'], allowed(), 'would be in MAINTENANCE'), (['release'], allowed(), 'not be in MAINTENANCE'),
    *((['stop'], allowed(s), f'in {s.name}') for s in SiteState if s not in (SiteState.RUN, SiteState.SLEEP)),
])
def test_refused(steps: list[str], now: Allowed, said: str) -> None:
    assert said in check(parse(steps), now)


@pytest.mark.parametrize('steps', [['hold:2000:1', 'hold:-1000:1', 'ramp:0:1'], ['mode:self_consumption', 'mode:none'],
                                   ['stop', 'start', 'maintenance', 'release', 'start', 'hold:1:1']])
def test_may_run(steps: list[str]) -> None:
    assert check(parse(steps), allowed()) == ''
    assert check(parse(['hold:0:1']), allowed(charge=nan, discharge=nan)) == ''
    assert check(parse(['start', 'hold:1:1']), allowed(SiteState.SLEEP)) == ''


@given(power=st.floats(-1e6, 1e6), charge=st.one_of(st.just(nan), st.floats(0.0, 1e6)),
       discharge=st.one_of(st.just(nan), st.floats(0.0, 1e6)))
def test_no_power_above_a_limit_is_ever_let_through(power: float, charge: float, discharge: float) -> None:
    room = charge if power > 0.0 else discharge
    passed = check((Step('hold', power, 1.0),), allowed(charge=charge, discharge=discharge)) == ''
    assert passed is (power == 0.0 or abs(power) <= room)


@given(power=st.floats(-1e5, 1e5), before=st.floats(-1e5, 1e5), at=st.floats(-1.0, 20.0))
def test_a_ramp_stays_between_its_ends(power: float, before: float, at: float) -> None:
    value = Step('ramp', power, 10.0).order(at, before)
    assert min(power, before) - 1e-6 <= value <= max(power, before) + 1e-6


def hold(measured: list[float], before: float = 0.0, asked: float = 1000.0, granted: float = 1000.0) -> object:
    n = len(measured)
    return analyse([0.1 * i for i in range(n)], [asked] * n, [granted] * n, measured, before, ramp=False,
                   tolerance=20.0, reason='limited by BMS')


def test_first_order_lag() -> None:
    r = hold([1000.0 * (1.0 - exp(-0.1 * i / 0.5)) for i in range(60)])
    assert r.result == 'ok' and r.overshoot == 0.0
    assert r.delay == pytest.approx(0.1) and r.rise == pytest.approx(1.1, abs=0.11)
    assert r.settling == pytest.approx(1.5, abs=0.11)  # 3 tau to 5 %
    assert r.follow_error < 5.0


def test_overshoot_and_never_settled() -> None:
    assert hold([0.0, 500.0, 1200.0, *[1000.0] * 20]).overshoot == pytest.approx(0.2)
    r = hold([0.0, *[800.0] * 30])
    assert r.result == 'not settled' and isnan(r.settling) and r.follow_error == pytest.approx(200.0)
    r = hold([0.0, *[-1000.0] * 30])
    assert r.result == 'not settled' and isnan(r.delay)


def test_a_limit_is_told_and_judged_by_what_was_granted() -> None:
    r = hold([0.0, *[600.0] * 30], granted=600.0)
    assert (r.result, r.reason, r.granted) == ('limited', 'limited by BMS', 600.0)
    assert r.settling == pytest.approx(0.1) and r.follow_error == pytest.approx(0.0)


def test_ramps() -> None:
    t = [0.1 * i for i in range(101)]
    asked = [100.0 * x for x in t]
    r = analyse(t, asked, asked, [max(a - 50.0, 0.0) for a in asked], 0.0, ramp=True, tolerance=20.0)
    assert r.result == 'ok' and r.follow_error == pytest.approx(50.0, abs=3.0) and isnan(r.settling)
    assert analyse(t, asked, asked, [0.0] * 101, 0.0, ramp=True, tolerance=20.0).result == 'not followed'


@given(st.lists(st.one_of(st.just(nan), st.floats(-1e5, 1e5)), max_size=30), st.booleans())
def test_any_samples_give_a_result(measured: list[float], ramp: bool) -> None:
    n = len(measured)
    r = analyse([float(i) for i in range(n)], [5.0] * n, [nan] * n, measured, nan, ramp=ramp, tolerance=10.0)
    assert r.result in ('ok', 'not settled', 'not followed', 'not measured')
    assert sum(v == v for v in measured) >= 2 or r.result == 'not measured'
    assert not r.overshoot < 0.0 and abs(r.overshoot) != inf
