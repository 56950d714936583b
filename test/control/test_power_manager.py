"""Power manager: tables on a virtual clock and properties."""

from __future__ import annotations

from dataclasses import replace
from math import hypot, inf, isfinite, isnan, nan

import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.bounds import Bound, Bounds
from bess_control.manager import Decision, PowerManager, PowerManagerParams
from bess_control.proposals import Proposal
from bess_control.site_state import SiteState
from bess_control.words import grid_watts, magnitude, watts
from bess_core.values import BatteryReading, Contactor, MeterReading, Mode, Quality

FAST = PowerManagerParams(battery='b', ramp_rate=1e12)


def battery(now: float = 0.0, **changes: object) -> BatteryReading:
    values: dict = {'time': now, 'newest': now, 'quality': Quality.OK, 'mode': Mode.IDLE, 'power': 0.0,
                    'max_charge_power': 5000.0, 'max_discharge_power': 4000.0, **changes}
    return BatteryReading(**values)


def meter(now: float = 0.0, grid: float = 0.0, sequence: int = 1,
          quality: Quality = Quality.OK) -> MeterReading:
    return MeterReading(time=now, sequence=sequence, quality=quality, active_power=grid)


def ask(power: float, source: str = 'mode', priority: int = 100, low: float = -inf,
        high: float = inf, reactive: float = nan, reason: str = '') -> Proposal:
    return Proposal(source, 'b', priority, low, high, power, reactive, 10.0, reason, 0.0)


def decide(proposals: list[Proposal], reading: BatteryReading | None = None,
           params: PowerManagerParams = FAST, **rest: object) -> Decision:
    return PowerManager(params).tick(0.0, proposals, reading or battery(), **rest)


@pytest.mark.parametrize('power, said', [
    (0.0, '0 W'), (350.0, '350 W'), (3200.0, '3.2 kW'), (-1300.0, 'discharge 1.3 kW'),
    (999.7, '1.0 kW'), (-0.2, '0 W'), (150e3, '150 kW'), (2.5e6, '2.50 MW'), (nan, 'unknown')])
def test_words(power: float, said: str) -> None:
    assert watts(power) == said


def test_words_at_the_grid() -> None:
    assert (grid_watts(350.0), grid_watts(-1200.0), grid_watts(0.0)) == (
        'import 350 W', 'export 1.2 kW', '0 W')
    assert magnitude(-inf) == 'unlimited'


@pytest.mark.parametrize('asked, reading, granted, text', [
    (3200.0, battery(max_charge_power=2500.0, limit_reasons=['bms: cell 7 at 3.42 V']), 2500.0,
     'asked 3.2 kW, limited to 2.5 kW by BMS: cell 7 at 3.42 V'),
    (-4500.0, battery(), -4000.0,
     'asked discharge 4.5 kW, limited to discharge 4.0 kW by the discharge limit of the battery'),
    (-1300.0, battery(), -1300.0, 'asked discharge 1.3 kW by mode, granted'),
    (0.0, battery(), 0.0, 'asked 0 W by mode, granted'),
    (3200.0, battery(max_charge_power=nan), 0.0,
     'asked 3.2 kW, limited to 0 W by an unknown charge limit of the battery'),
    (3200.0, battery(max_charge_power=-5.0), 0.0,
     'asked 3.2 kW, limited to 0 W by the charge limit of the battery'),
    (-900.0, battery(max_discharge_power=0.0, limit_reasons=[
        'bms: charge over temperature 48 degC', 'bms: discharge blocked, cell 2 at 2.61 V']), 0.0,
     'asked discharge 900 W, limited to 0 W by BMS: discharge blocked, cell 2 at 2.61 V'),
    (900.0, battery(contactor=Contactor.OPEN), 0.0,
     'asked 900 W, limited to 0 W by contactor: contactor is open'),
    (900.0, battery(contactor=Contactor.DISCHARGE_ONLY), 0.0,
     'asked 900 W, limited to 0 W by contactor: charging is blocked'),
    (-900.0, battery(contactor=Contactor.DISCHARGE_ONLY), -900.0,
     'asked discharge 900 W by mode, granted'),
    (900.0, battery(mode=Mode.FAULT, limit_reasons=['bms: short circuit']), 0.0,
     'asked 900 W, limited to 0 W by battery: battery is in fault (BMS: short circuit)'),
    (900.0, battery(quality=Quality.INVALID), 0.0,
     'asked 900 W, limited to 0 W by battery: no valid reading for 0.0 s'),
    (900.0, BatteryReading(), 0.0, 'asked 900 W, limited to 0 W by battery: never read'),
    (900.0, battery(now=-12.0), 0.0,
     'asked 900 W, limited to 0 W by battery: no valid reading for 12.0 s'),
    (900.0, battery(quality=Quality.STALE), 0.0,
     'asked 900 W, limited to 0 W by battery: reading is 0.0 s old, power may not grow'),
])
def test_battery_bounds_and_words(asked: float, reading: BatteryReading, granted: float,
                                  text: str) -> None:
    decision = decide([ask(asked)], reading)
    assert (decision.granted, decision.text) == (granted, text)
    assert (decision.asked, decision.asked_by) == (asked, 'mode')


def test_nobody_asks_is_zero() -> None:
    decision = decide([])
    assert decision.granted == 0.0 and isnan(decision.asked) and decision.asked_by == ''
    assert decision.text == 'nobody asks, at 0 W'
    assert isnan(decision.granted_reactive)


def test_stale_battery_may_shrink_but_not_grow() -> None:
    manager = PowerManager(FAST)
    assert manager.tick(0.0, [ask(-1000.0)], battery()).granted == -1000.0
    stale = battery(quality=Quality.STALE)
    assert manager.tick(0.1, [ask(-3000.0)], stale).granted == -1000.0
    assert manager.tick(0.2, [ask(-400.0)], stale).granted == -400.0
    assert manager.tick(0.3, [ask(-1000.0)], stale).granted == -400.0
    assert manager.tick(0.4, [ask(1000.0)], stale).granted == 0.0


@pytest.mark.parametrize('state', [s for s in SiteState if s is not SiteState.RUN] + [False])
def test_stop_is_zero_at_once_from_any_state(state: SiteState | bool) -> None:
    manager = PowerManager(PowerManagerParams(battery='b', ramp_rate=100.0))
    for k in range(100):
        running = manager.tick(0.1 * k, [ask(3000.0, reactive=500.0)], battery(0.1 * k),
                               state=SiteState.RUN)
    assert running.granted > 900.0 and running.granted_reactive == 500.0
    stopped = manager.tick(9.95, [ask(3000.0, reactive=500.0)], battery(9.95), state=state,
                           state_cause='stop by operator')
    assert (stopped.granted, stopped.granted_reactive) == (0.0, 0.0)
    assert 'site: ' in stopped.text and 'stop by operator' in stopped.text


# Proposals: (source, priority, low, high, preferred) -> granted, asked by
@pytest.mark.parametrize('proposals, granted, asked_by', [
    ([('a', 9, -inf, inf, 1000.0), ('b', 5, -inf, inf, -500.0)], 1000.0, 'a'),
    ([('a', 9, -inf, 800.0, nan), ('b', 5, -inf, inf, 1000.0)], 800.0, 'b'),
    ([('a', 9, 500.0, inf, nan), ('b', 5, -inf, inf, -1000.0)], 500.0, 'b'),
    ([('a', 9, 200.0, 800.0, nan), ('b', 5, 1000.0, 2000.0, 1500.0)], 800.0, 'b'),  # contradiction
    ([('a', 9, -200.0, 200.0, nan), ('b', 5, -100.0, inf, nan), ('c', 1, -inf, inf, -900.0)],
     -100.0, 'c'),
    ([('a', 9, -inf, inf, 1000.0), ('b', 5, -inf, 100.0, nan)], 1000.0, 'a'),  # too late to bound
    ([('z', 9, -inf, 300.0, nan), ('a', 9, -inf, inf, 1000.0)], 300.0, 'a'),  # equals: bounds first
    ([('b', 9, -inf, inf, 200.0), ('a', 9, -inf, inf, 100.0)], 100.0, 'a'),
    ([('a', 9, -inf, inf, 0.0), ('b', 5, -inf, inf, 900.0)], 0.0, 'a'),  # a wish for zero is a wish
    ([('a', 9, -5000.0, -500.0, nan)], -500.0, ''),  # a bound alone may exclude zero
    ([('a', 9, 600.0, 500.0, 1000.0), ('b', 5, -inf, inf, 50.0)], 50.0, 'b'),  # senseless: ignored
])
def test_priority_by_narrowing(proposals: list[tuple], granted: float, asked_by: str) -> None:
    decision = decide([ask(p[4], p[0], p[1], p[2], p[3]) for p in proposals])
    assert (decision.granted, decision.asked_by) == (granted, asked_by)


def test_expired_and_foreign_proposals_do_not_count() -> None:
    old = replace(ask(1000.0), lease=1.0, time=-5.0)
    foreign = replace(ask(1000.0), battery='other')
    assert decide([old, foreign]).text == 'nobody asks, at 0 W'


def test_contradiction_is_reported() -> None:
    decision = decide([ask(nan, 'fuse', 200, high=-2000.0, reason='fuse at 63 A'), ask(500.0)],
                      battery(max_discharge_power=1000.0))
    assert decision.granted == -1000.0
    assert decision.text == (
        'asked 500 W, set to discharge 1.0 kW by fuse: needs discharge 2.0 kW, '
        'but only discharge 1.0 kW is possible (fuse at 63 A)')


def test_reason_of_the_mode_is_in_the_text() -> None:
    decision = decide([ask(0.0, 'self_consumption', reason='meter stale for 3.2 s')])
    assert decision.text == 'asked 0 W by self_consumption (meter stale for 3.2 s), granted'


def test_steps_are_a_chain() -> None:
    params = PowerManagerParams(battery='b', ramp_rate=1000.0, max_charge_power=3000.0,
                                import_limit=4000.0, max_apparent_power=2900.0)
    decision = decide([ask(nan, 'limit', 200, high=1800.0), ask(6000.0)], params=params,
                      meter=meter(grid=2000.0))
    assert [(s.name, s.before, s.after, s.bound) for s in decision.steps] == [
        ('site', 6000.0, 6000.0, False), ('battery limits', 6000.0, 5000.0, True),
        ('configured limit', 5000.0, 3000.0, True), ('grid connection', 3000.0, 2000.0, True),
        ('limit', 2000.0, 1800.0, True), ('apparent power', 1800.0, 1800.0, False),
        ('ramp', 1800.0, 100.0, True)]
    assert all(s.reason for s in decision.steps if s.bound)
    assert decision.granted == 100.0 and decision.text.endswith('now 100 W on the ramp')


# import limit 4 kW, export limit 1 kW: (grid, battery power, asked) -> granted
@pytest.mark.parametrize('grid, power, asked, plain, support', [
    (3000.0, 0.0, 3000.0, 1000.0, 1000.0),
    (3000.0, 1000.0, 3000.0, 2000.0, 2000.0),
    (5000.0, 0.0, 3000.0, 0.0, -1000.0),  # the rest alone exceeds it: support forces a discharge
    (5000.0, 0.0, -500.0, -500.0, -1000.0),
    (500.0, 0.0, -3000.0, -1500.0, -1500.0),
    (-2000.0, 0.0, -500.0, 0.0, 1000.0),
    (9000.0, 0.0, 0.0, 0.0, -4000.0),  # more than the battery can
])
def test_grid_connection(grid: float, power: float, asked: float, plain: float,
                         support: float) -> None:
    for forced, expected in ((False, plain), (True, support)):
        params = PowerManagerParams(battery='b', ramp_rate=1e12, import_limit=4000.0,
                                    export_limit=1000.0, grid_support=forced)
        decision = decide([ask(asked)], battery(power=power), params, meter=meter(grid=grid))
        assert decision.granted == pytest.approx(expected)


def test_a_hard_bound_that_forces_power_does_not_wait_for_the_ramp() -> None:
    params = PowerManagerParams(battery='b', ramp_rate=100.0, import_limit=4000.0, grid_support=True)
    decision = decide([ask(0.0)], params=params, meter=meter(grid=5500.0))
    assert decision.granted == -1500.0
    assert decision.text == (
        'asked 0 W, set to discharge 1.5 kW by grid connection: '
        'import limit 4.0 kW, the rest of the site is at import 5.5 kW')


@pytest.mark.parametrize('reading, said', [
    (None, 'meter has not been read'), (meter(now=-3.5), 'meter lost for 3.5 s'),
    (meter(quality=Quality.STALE), 'meter lost for 0.0 s'), (meter(grid=nan), 'meter lost')])
def test_grid_limit_without_meter_fails_safe(reading: MeterReading | None, said: str) -> None:
    params = PowerManagerParams(battery='b', ramp_rate=1e12, import_limit=4000.0)
    decision = decide([ask(2000.0)], params=params, meter=reading)
    assert decision.granted == 0.0 and f'grid connection: {said}' in decision.text
    blind = replace(params, blind_power=300.0)
    assert decide([ask(2000.0)], params=blind, meter=reading).granted == 300.0


@pytest.mark.parametrize('first, power, reactive, p, q', [
    (False, 3000.0, 4000.0, 3000.0, 4000.0),
    (False, 4000.0, 4000.0, 4000.0, 3000.0),
    (False, 9000.0, 4000.0, 5000.0, 0.0),
    (True, 4000.0, -4000.0, 3000.0, -4000.0),
    (True, 4000.0, 9000.0, 0.0, 5000.0),
    (True, 4000.0, nan, 4000.0, nan),
])
def test_power_circle_is_exact(first: bool, power: float, reactive: float, p: float,
                               q: float) -> None:
    params = PowerManagerParams(battery='b', ramp_rate=1e12, max_apparent_power=5000.0,
                                reactive_first=first)
    decision = decide([ask(power, reactive=reactive)], battery(max_charge_power=9000.0), params)
    assert decision.granted == pytest.approx(p)
    assert decision.granted_reactive == pytest.approx(q, nan_ok=True)


def test_reactive_power_goes_back_to_zero() -> None:
    manager = PowerManager(FAST)
    assert isnan(manager.tick(0.0, [ask(0.0)], battery()).granted_reactive)
    assert manager.tick(0.1, [ask(0.0, reactive=700.0)], battery()).granted_reactive == 700.0
    assert manager.tick(0.2, [ask(0.0)], battery()).granted_reactive == 0.0


# ramp 1000 W/s: (time, asked, battery charge limit, proposal high) -> granted
def test_ramp_in_measured_time_and_limits_at_once() -> None:
    manager = PowerManager(PowerManagerParams(battery='b', ramp_rate=1000.0))
    table = [
        (0.0, 2000.0, 5000.0, inf, 100.0),  # the first tick counts as one nominal tick
        (0.1, 2000.0, 5000.0, inf, 200.0),
        (0.6, 2000.0, 5000.0, inf, 700.0),
        (0.6, 2000.0, 5000.0, inf, 700.0),  # no time, no change
        (5.6, 2000.0, 5000.0, inf, 1700.0),  # a pause counts as 1 s
        (5.7, 2000.0, 500.0, inf, 500.0),  # a hard limit at once
        (5.8, 2000.0, 5000.0, inf, 600.0),  # back on the ramp
        (5.9, 2000.0, 5000.0, 300.0, 300.0),  # a lower proposal limit at once
        (6.0, 2000.0, 5000.0, -400.0, 0.0),  # to zero at once, beyond it on the ramp
        (6.1, 2000.0, 5000.0, -400.0, -100.0),
        (6.0, 2000.0, 5000.0, inf, -100.0),  # a clock that steps back moves nothing
        (6.2, 0.0, 5000.0, inf, 0.0),
    ]
    for now, asked, limit, high, granted in table:
        decision = manager.tick(now, [ask(asked, high=high)], battery(now, max_charge_power=limit))
        assert decision.granted == pytest.approx(granted, abs=1e-6), now


def test_ticks_are_counted_and_clock_is_checked() -> None:
    manager = PowerManager(FAST)
    manager.tick(0.0, [], battery())
    decision = manager.tick(0.1, [], battery(power=77.0), meter(grid=5.0), jitter=0.002)
    assert (decision.tick, decision.measured, decision.grid_power, decision.jitter) == (
        2, 77.0, 5.0, 0.002)
    with pytest.raises(ValueError, match='time is nan'):
        manager.tick(nan, [], battery())


@pytest.mark.parametrize('wrong', [{'import_limit': nan}, {'ramp_rate': -1.0},
                                   {'max_battery_age_s': 5.0, 'battery_invalid_after_s': 4.0}])
def test_bad_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match='|'.join(wrong)):
        PowerManagerParams(battery='b', **wrong)


def test_grid_limit_does_not_swing() -> None:
    """Charging against an import limit with a late meter settles instead of flickering."""
    from control_plant import Plant

    for tick in (0.1, 1.0):
        plant = Plant(meter_delay_s=1.0, lag_s=0.5, load=lambda t: 2500.0)
        manager = PowerManager(PowerManagerParams(battery='b', ramp_rate=2000.0, import_limit=4000.0,
                                                  tick_s=tick))
        rows = plant.run(0.0, tick)
        while plant.now < 30.0:
            reading = plant.battery()
            granted = manager.tick(plant.now, [replace(ask(5000.0), time=plant.now)], reading,
                                   plant.meter()).granted
            rows += plant.run(granted, tick)
        assert max(grid for _, _, grid in rows) < 4000.0 + 30.0
        assert all(abs(power - 1500.0) < 20.0 for t, power, _ in rows if t > 15.0)


ANY = st.floats(allow_nan=True, allow_infinity=True)
WATT = st.one_of(st.floats(-20e3, 20e3), st.sampled_from([0.0, nan, inf, -inf]))
PROPOSALS = st.lists(st.builds(
    lambda s, pr, lo, hi, p, q: Proposal(s, 'b', pr, lo, hi, p, q, 10.0, 'why', 0.0),
    st.sampled_from('abcdef'), st.integers(0, 255), WATT, WATT, WATT, WATT), max_size=5)
BATTERIES = st.builds(
    lambda p, c, d, q, k, t: battery(t, power=p, max_charge_power=c, max_discharge_power=d, quality=q,
                                     contactor=k),
    ANY, ANY, ANY, st.sampled_from(Quality), st.sampled_from(Contactor),
    st.sampled_from([0.0, 0.0, 0.0, -5.0, nan, -inf]))
METERS = st.one_of(st.none(), st.builds(
    lambda g, n, q: meter(grid=g, sequence=n, quality=q), ANY, st.integers(0, 9),
    st.sampled_from(Quality)))
PARAMS = st.builds(
    lambda ramp, s, lim, first, sup: PowerManagerParams(
        battery='b', ramp_rate=ramp, max_apparent_power=s, import_limit=lim, export_limit=lim,
        reactive_first=first, grid_support=sup),
    st.sampled_from([10.0, 3000.0, 1e12]), st.sampled_from([0.0, 5000.0, 1e12]),
    st.sampled_from([0.0, 3000.0, 1e12]), st.booleans(), st.booleans())


@given(params=PARAMS, ticks=st.lists(st.tuples(
    PROPOSALS, BATTERIES, METERS, st.booleans(), st.floats(-0.5, 2.0)), max_size=6))
@settings(max_examples=150)
def test_always_within_hard_bounds_and_never_nan(params: PowerManagerParams, ticks: list[tuple]) -> None:
    manager = PowerManager(params)
    now = 0.0
    for proposals, reading, grid, allowed, dt in ticks:
        now += dt
        before = manager.granted
        decision = manager.tick(now, proposals, reading, grid, allowed)
        power, reactive = decision.granted, decision.granted_reactive
        assert isfinite(power) and (isnan(reactive) or isfinite(reactive))
        if not allowed or reading.quality is Quality.INVALID or reading.contactor is Contactor.OPEN:
            assert power == 0.0
        charge, discharge = reading.max_charge_power, reading.max_discharge_power
        assert power <= (max(charge, 0.0) if not isnan(charge) else 0.0)
        assert power >= -(max(discharge, 0.0) if not isnan(discharge) else 0.0)
        if reading.quality is Quality.STALE:
            assert min(before, 0.0) <= power <= max(before, 0.0)
        limit = params.max_apparent_power
        assert hypot(power, 0.0 if isnan(reactive) else reactive) <= limit * (1.0 + 1e-9) + 1e-6
        for first, second in zip(decision.steps, decision.steps[1:], strict=False):
            assert first.after == second.before
        assert decision.steps[-1].after == power
        assert decision.text and 'nan' not in decision.text and 'inf ' not in decision.text


@given(proposals=PROPOSALS, charge=st.floats(0, 1e4), discharge=st.floats(0, 1e4))
@settings(max_examples=150)
def test_higher_priority_bound_is_never_violated(proposals: list[Proposal], charge: float,
                                                 discharge: float) -> None:
    """Without a ramp the result lies in every range that can be met, from high to low priority."""
    decision = decide(proposals, battery(max_charge_power=charge, max_discharge_power=discharge))
    low, high = -discharge, charge
    for p in sorted(proposals, key=lambda p: (-p.priority, p.has_preference, p.source)):
        if p.problem():
            continue
        if p.low > high or p.high < low:
            low = high = high if p.low > high else low
        else:
            low, high = max(low, p.low), min(high, p.high)
        if p.has_preference:
            break
    assert low - 1e-6 <= decision.granted <= high + 1e-6
    if low <= 0.0 <= high and (decision.asked == 0.0 or isnan(decision.asked)):
        assert decision.granted == 0.0  # zero is zero


def test_bounds_never_become_empty() -> None:
    bounds = Bounds()
    bounds.narrow('a', 0.0, 100.0)
    bounds.add(Bound('b', nan, 50.0))
    bounds.narrow('c', 70.0, 90.0, 'x')
    assert (bounds.low, bounds.high) == (50.0, 50.0)
    assert bounds.passed[-1].conflict


def test_a_tick_is_cheap() -> None:
    params = PowerManagerParams(battery='b', import_limit=1e4, max_apparent_power=5e3)
    manager = PowerManager(params)
    proposals = [ask(nan, f'limit{k}', 200 + k, -3000.0, 3000.0) for k in range(4)] + [ask(1000.0)]
    assert calls(lambda: manager.tick(0.0, proposals, battery(), meter(sequence=1))) < 500
