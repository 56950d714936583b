"""Modes one by one: at time t, inputs -> proposal, on a virtual clock."""

from __future__ import annotations

from importlib.metadata import entry_points
from math import inf, isfinite, isinf, isnan, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes_story import meter, tell, view, wall

from bess_control.modes.base import Signal, View
from bess_control.modes.charging import ChargeOnly, DelayedCharge, GridOptimizedCharge
from bess_control.modes.connection import FeedInLimit, LoadLimit, RampRate
from bess_control.modes.external import ExternalControl, LocalControl, PowerSchedule
from bess_control.modes.following import LoadMatching, SolarSmoothing
from bess_control.modes.peak_shaving import PeakShaving
from bess_control.modes.reserves import EmergencyReserve, LimitTotalDischarge
from bess_control.modes.simple import FixedPower, Passive
from bess_control.modes.windows import Windows, next_time_of_day, parse, zone
from bess_core.params import ParameterError, build
from bess_core.values import BatteryReading, Quality


def make(cls: Any, meter: str = 'grid', **params: Any) -> Any:
    return cls(build(cls.Params, params), 'm', 'b', meter)


# -- peak shaving --------------------------------------------------------------------------------------


def test_peak_shaving_is_a_range_between_its_bands() -> None:
    mode = make(PeakShaving, import_limit=5000.0, export_limit=3000.0, kp=1000.0)
    tell(mode, [
        (1.0, {'grid': 2000.0}, {'power': nan, 'low': -5000.0, 'high': 3000.0, 'state': 'between'}),
        (2.0, {'grid': 6500.0}, {'power': nan, 'high': -1500.0, 'state': 'shaving', 'says': 'import limit 5.0 kW'}),
        (9.0, {'grid': 5000.0, 'power': -1500.0, 'granted': -1500.0}, {'high': -1500.0, 'state': 'shaving'}),
        (19.0, {'grid': 1000.0, 'power': -1500.0, 'granted': -1500.0}, {'state': 'between', 'high': 2500.0}),
        (24.0, {'grid': 2500.0}, {'state': 'between'}),
        (29.0, {'grid': -4000.0}, {'low': 1000.0, 'state': 'absorbing', 'says': 'export limit 3.0 kW'}),
        (39.0, {'grid': nan}, {'low': 0.0, 'high': 0.0, 'state': 'blind', 'says': 'does not measure'}),
    ])


def test_peak_shaving_recharges_below_its_band_until_full_and_with_hysteresis() -> None:
    mode = make(PeakShaving, import_limit=5000.0, recharge_limit=3000.0, recharge_power=1500.0, recharge_soc=0.9,
                recharge_hysteresis=0.1, kp=1000.0)
    tell(mode, [
        (1.0, {'grid': 2000.0, 'soc': 0.5}, {'power': 1000.0, 'high': 3000.0, 'state': 'recharging'}),
        (11.0, {'grid': 500.0, 'soc': 0.5}, {'power': 1500.0, 'state': 'recharging'}),
        (21.0, {'grid': 500.0, 'soc': 0.91}, {'power': nan, 'state': 'between'}),
        (31.0, {'grid': 500.0, 'soc': 0.85}, {'power': nan, 'state': 'between'}),
        (41.0, {'grid': 500.0, 'soc': 0.79}, {'power': 1500.0, 'state': 'recharging'}),
        (51.0, {'grid': 500.0, 'soc': nan}, {'power': nan, 'state': 'between'}),
        (61.0, {'grid': 4000.0, 'soc': 0.5}, {'power': nan, 'high': 1000.0, 'state': 'between'}),
    ])


@pytest.mark.parametrize('params, said', [
    ({}, 'no peak to shave'),
    ({'import_limit': 1000.0, 'recharge_limit': 2000.0}, 'above import_limit'),
    ({'export_limit': 1000.0, 'recharge_limit': -2000.0}, 'below the export limit'),
    ({'import_limit': -1.0}, 'out of range'),
])
def test_peak_shaving_refuses_what_makes_no_sense(params: dict[str, float], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        make(PeakShaving, **params)


# -- charging ------------------------------------------------------------------------------------------


def test_charge_only_to_a_target_in_its_window_and_under_the_cap() -> None:
    mode = make(ChargeOnly, target_soc=0.8, hysteresis=0.05, charge_power=4000.0, import_cap=6000.0, kp=1000.0,
                windows=['22:00-06:00'], time_zone='Europe/Berlin')
    night, day = wall('2026-03-02 23:00'), wall('2026-03-02 12:00')
    tell(mode, [
        (1.0, {'grid': 500.0, 'at': night}, {'power': 4000.0, 'low': 0.0, 'state': 'charging'}),
        (11.0, {'grid': 3500.0, 'at': night}, {'power': 2500.0, 'says': 'import cap 6.0 kW'}),
        (21.0, {'grid': 7000.0, 'at': night}, {'power': 0.0, 'low': 0.0}),
        (31.0, {'grid': 500.0, 'at': day}, {'power': 0.0, 'state': 'waiting', 'says': '22:00-06:00'}),
        (41.0, {'grid': 500.0, 'at': night, 'soc': 0.8}, {'power': 0.0, 'state': 'full'}),
        (51.0, {'grid': 500.0, 'at': night, 'soc': 0.77}, {'power': 0.0, 'state': 'full'}),
        (61.0, {'grid': 500.0, 'at': night, 'soc': 0.74}, {'power': 4000.0, 'state': 'charging'}),
        (71.0, {'grid': 500.0, 'at': night, 'soc': nan}, {'power': 0.0, 'state': 'blind'}),
        (81.0, {'grid': nan, 'at': night}, {'power': 0.0, 'low': 0.0, 'state': 'blind'}),
    ])


def test_charge_only_rate_and_a_cap_without_a_meter() -> None:
    assert make(ChargeOnly, '', c_rate=0.2).decide(view(1.0, energy=10_000.0)).preferred_power == 2000.0
    assert make(ChargeOnly, '', c_rate=0.2).decide(view(1.0, energy=nan)).preferred_power == 5000.0, 'of the battery'
    with pytest.raises(ValueError, match='needs a meter'):
        make(ChargeOnly, '', import_cap=1000.0)
    with pytest.raises(ParameterError, match='no time window'):
        make(ChargeOnly, windows=['nachts'])


def test_delayed_charge_spreads_over_the_time_left() -> None:
    mode = make(DelayedCharge, '', target_time='15:00', efficiency=1.0, time_zone='Europe/Berlin')
    tell(mode, [
        (1.0, {'at': wall('2026-06-01 10:00'), 'soc': 0.5}, {'high': 1000.0, 'low': -inf, 'state': 'delaying'}),
        (2.0, {'at': wall('2026-06-01 14:00'), 'soc': 0.5}, {'high': 5000.0}),
        (3.0, {'at': wall('2026-06-01 14:00'), 'soc': 1.0}, {'high': 0.0}),
        (4.0, {'at': wall('2026-06-01 15:00'), 'soc': 0.5}, {'high': inf, 'state': 'released'}),
        (5.0, {'at': wall('2026-06-01 16:00'), 'soc': 0.5}, {'high': inf, 'state': 'released'}),
        (6.0, {'at': wall('2026-06-02 00:00'), 'soc': 0.25}, {'high': 500.0}),
        (7.0, {'at': wall('2026-06-02 00:00'), 'soc': nan}, {'high': inf, 'says': 'unknown'}),
        # Sunday, 29 March: 02:00 becomes 03:00, so four hours of real time are left at 10:00 CEST as on any day
        (8.0, {'at': wall('2026-03-29 01:00'), 'soc': 0.5}, {'high': 5000.0 / 13.0}),
    ])


def test_grid_optimised_learns_the_end_of_the_surplus_and_takes_what_exceeds_the_limit() -> None:
    mode = make(GridOptimizedCharge, target_time='', pv_meter='pv', export_limit=4000.0, kp=1000.0, buffer_s=7200.0,
                efficiency=1.0, low_power_share=0.0, time_zone='Europe/Berlin')
    first, second = wall('2026-06-01 00:00'), wall('2026-06-02 00:00')
    tell(mode, [
        (1.0, {'at': first + 12 * 3600, 'grid': -2000.0, 'pv_meter': -3000.0}, {'high': inf, 'state': 'released'}),
        (60.0, {'at': first + 18 * 3600, 'grid': -500.0, 'pv_meter': -800.0}, {'high': inf}),
        (120.0, {'at': first + 20 * 3600, 'grid': 500.0, 'pv_meter': 0.0}, {'high': inf}),
        (180.0, {'at': second + 1 * 3600, 'grid': 300.0, 'pv_meter': 0.0}, {'high': inf}),
        # surplus ended at 18:00 yesterday: to be full at 16:00; 6 h for half of 10 kWh
        (240.0, {'at': second + 10 * 3600, 'grid': -1000.0, 'pv_meter': -1500.0},
         {'high': 5000.0 / 6.0, 'state': 'delaying'}),
        (300.0, {'at': second + 12 * 3600, 'grid': -6000.0, 'pv_meter': -7000.0},
         {'low': 2000.0, 'high': 2000.0, 'state': 'absorbing'}),
        (360.0, {'at': second + 16.5 * 3600, 'grid': -1000.0, 'pv_meter': -1500.0}, {'high': inf}),
    ])
    with pytest.raises(ParameterError, match='nothing tells'):
        make(GridOptimizedCharge)


# -- external and local --------------------------------------------------------------------------------


def test_external_control_setpoint_then_schedule_then_zero() -> None:
    mode = make(ExternalControl, '')
    assert mode.set_schedule([1000.0, 2000.0], [1100.0, 2100.0], [500.0, -700.0], [nan, 300.0])[0]
    tell(mode, [
        (1.0, {'at': 500.0}, {'power': 0.0, 'state': 'fallback'}),
        (2.0, {'at': 1000.0}, {'power': 500.0, 'reactive': nan, 'state': 'schedule'}),
        (3.0, {'at': 1100.0}, {'power': 0.0, 'state': 'fallback'}),
        (4.0, {'at': 2050.0}, {'power': -700.0, 'reactive': 300.0}),
    ])
    assert mode.order(1200.0, 100.0, 5.0, 'scada', 10.0) == ''
    assert 'holds the lease' in mode.order(1.0, nan, 5.0, 'other', 11.0)
    assert 'finite' in mode.order(nan, nan, 5.0, 'scada', 11.0)
    tell(mode, [
        (11.0, {'at': 2050.0}, {'power': 1200.0, 'reactive': 100.0, 'state': 'setpoint', 'says': 'scada'}),
        (15.0, {'at': 2050.0}, {'power': -700.0, 'state': 'schedule'}),
    ])
    again = make(ExternalControl, '')
    again.restore(mode.save())
    assert again._schedule.at(1050.0) and again._schedule.at(2050.0) == mode._schedule.at(2050.0)


@pytest.mark.parametrize('fallback, during, later', [
    ('zero', (0.0, 'fallback'), (0.0, 'fallback')), ('hold', (800.0, 'holding'), (0.0, 'fallback')),
    ('release', (nan, 'released'), (nan, 'released')), ('schedule', (0.0, 'fallback'), (0.0, 'fallback')),
])
def test_external_control_falls_back(fallback: str, during: Any, later: Any) -> None:
    mode = make(ExternalControl, '', fallback=fallback, hold_s=10.0, warn_s=20.0)
    mode.order(800.0, nan, 5.0, 'a', 0.0)
    tell(mode, [
        (4.9, {}, {'power': 800.0}),
        (6.0, {}, {'power': during[0], 'state': during[1]}),
        (16.0, {}, {'power': later[0], 'state': later[1]}),
    ])
    assert mode.problem == ''
    mode.decide(view(26.0))
    assert 'no setpoint for' in mode.problem


@pytest.mark.parametrize('arguments, said', [
    (([1.0], [2.0, 3.0], [1.0]), 'one of each'), (([2.0], [2.0], [1.0]), 'not after start'),
    (([1.0, 1.5], [2.0, 3.0], [1.0, 2.0]), 'before the one before it ends'), (([1.0], [2.0], [nan]), 'finite'),
    (([1.0], [2.0], [1.0], [inf]), 'infinite'), (([nan], [2.0], [1.0]), 'not after start'),
    (([float(i) for i in range(10_001)],) * 3, 'at most'),
])
def test_a_bad_schedule_changes_nothing(arguments: Any, said: str) -> None:
    schedule = PowerSchedule()
    assert schedule.set([5.0], [6.0], [7.0]) == ''
    assert said in schedule.set(*arguments)
    assert schedule.at(5.5).power == 7.0 and schedule.at(6.0) is None


def test_local_control_needs_the_heartbeat_and_does_not_resume_by_itself() -> None:
    mode = make(LocalControl, '', heartbeat_timeout_s=5.0, fallback_charge_power=100.0, max_charge_power=3000.0)
    assert mode.manual(500.0, nan, 0.0) == (False, 'no heartbeat of the panel: send ~/heartbeat first')
    mode.beat(True, 1.0)
    assert mode.manual(5000.0, nan, 1.0)[0] is False
    assert mode.manual(inf, nan, 1.0)[0] is False
    assert mode.manual(500.0, 50.0, 1.0)[0]
    tell(mode, [(5.0, {}, {'power': 500.0, 'reactive': 50.0, 'state': 'manual'}),
                (6.5, {}, {'power': 100.0, 'state': 'fallback'})])
    mode.beat(True, 7.0)
    tell(mode, [(7.1, {}, {'power': 100.0, 'state': 'fallback'})])
    assert mode.manual(nan, nan, 7.2)[0]
    tell(mode, [(7.3, {}, {'power': 0.0, 'state': 'ready'})])
    free = make(LocalControl, '', heartbeat=False)
    assert free.manual(-800.0, nan, 0.0)[0]
    tell(free, [(1000.0, {}, {'power': -800.0})])


def test_passive_and_fixed_power() -> None:
    assert make(Passive, '').decide(view(1.0)) is None
    tell(make(Passive, '', hold_zero=True), [(1.0, {}, {'power': 0.0})])
    for params, expected in (
            ({'charge_power': 700.0}, {'power': 700.0}),
            ({'discharge_power': 700.0, 'reactive_power': 90.0}, {'power': -700.0, 'reactive': 90.0}),
            ({'charge_power': 700.0, 'relation': 'at_least'}, {'power': nan, 'low': 700.0, 'high': inf}),
            ({'charge_power': 700.0, 'relation': 'at_most'}, {'power': nan, 'low': -inf, 'high': 700.0}),
            ({'discharge_power': 700.0, 'relation': 'at_least'}, {'power': nan, 'low': -inf, 'high': -700.0}),
            ({'discharge_power': 700.0, 'relation': 'at_most'}, {'power': nan, 'low': -700.0, 'high': inf})):
        tell(make(FixedPower, '', **params), [(1.0, {}, expected)])
    with pytest.raises(ParameterError, match='both given'):
        make(FixedPower, charge_power=1.0, discharge_power=1.0)


# -- limits --------------------------------------------------------------------------------------------


def test_limit_total_discharge_protects_at_once_and_releases_late() -> None:
    mode = make(LimitTotalDischarge, '', min_soc=0.15, force_charge_soc=0.1, force_charge_power=400.0,
                hysteresis=0.02, release_s=300.0)
    tell(mode, [
        (0.0, {'soc': 0.5}, {'low': -inf, 'state': 'normal'}),
        (1.0, {'soc': 0.15}, {'low': 0.0, 'state': 'min_soc'}),
        (2.0, {'soc': 0.1}, {'low': 400.0, 'power': nan, 'state': 'force_charge'}),
        (3.0, {'soc': 0.5}, {'low': 400.0, 'state': 'force_charge'}),
        (302.0, {'soc': 0.13}, {'low': 400.0}),
        (303.0, {'soc': 0.13}, {'low': 0.0, 'state': 'min_soc'}),
        (304.0, {'soc': nan}, {'low': 0.0, 'state': 'min_soc', 'says': 'unknown'}),
        (305.0, {'soc': 0.2}, {'low': 0.0}),
        (600.0, {'soc': 0.16}, {'low': 0.0}),  # not high enough: the time starts anew
        (601.0, {'soc': 0.2}, {'low': 0.0}),
        (901.0, {'soc': 0.2}, {'low': -inf, 'state': 'normal'}),
        (902.0, {'soc': 0.05}, {'low': 400.0, 'state': 'force_charge'}),
    ])
    tell(make(LimitTotalDischarge, ''), [(0.0, {'soc': nan}, {'low': 0.0})])
    with pytest.raises(ParameterError, match='not below'):
        make(LimitTotalDischarge, min_soc=0.1, force_charge_soc=0.2)


def test_emergency_reserve_closes_as_the_reserve_comes_near() -> None:
    mode = make(EmergencyReserve, '', reserve_soc=0.2, band=0.01, max_power=4000.0, ramp_share=0.01, pv_meter='pv',
                grid_charge=True, grid_charge_power=600.0)
    tell(mode, [
        (0.0, {'soc': 0.5}, {'low': -inf, 'state': 'free'}),
        (1.0, {'soc': 0.205}, {'low': -2000.0, 'state': 'above'}),
        (2.0, {'soc': 0.2}, {'low': 0.0, 'state': 'at'}),
        (3.0, {'soc': 0.195}, {'low': 0.0, 'state': 'below'}),
        (4.0, {'soc': 0.188, 'pv_meter': -900.0}, {'low': 900.0, 'state': 'refill_pv'}),
        (5.0, {'soc': 0.17, 'pv_meter': -900.0}, {'low': 860.0, 'state': 'refill_grid'}),
        (6.0, {'soc': nan}, {'low': 820.0, 'says': 'unknown'}),
        (7.0, {'soc': 0.205}, {'state': 'refill_grid'}),
        (8.0, {'soc': 0.212}, {'state': 'free', 'low': 740.0}),
        (8.5, {'soc': 0.5}, {'low': 720.0}),  # the bound opens by 40 W/s
    ])
    tell(make(EmergencyReserve, '', reserve_soc=0.2), [(0.0, {'soc': nan}, {'low': 0.0})])


def test_feed_in_limit_and_ripple_control_fail_safe() -> None:
    mode = make(FeedInLimit, pv_peak_power=10_000.0, pv_share=0.6, kp=1000.0, ripple_0='c0', ripple_30='c30',
                signal_timeout_s=60.0)
    on = {'ripple_0': False, 'ripple_30': False}
    tell(mode, [
        (1.0, {'grid': -5000.0, 'inputs': on}, {'power': nan, 'low': -1000.0, 'state': 'within'}),
        (11.0, {'grid': -8000.0, 'inputs': on}, {'low': 2000.0, 'state': 'absorbing'}),
        (21.0, {'grid': -8000.0, 'inputs': {**on, 'ripple_30': True}}, {'low': 5000.0, 'says': 'ripple control 30%'}),
        (31.0, {'grid': -8000.0, 'inputs': {**on, 'ripple_0': True, 'ripple_30': True}}, {'low': 8000.0}),
        (120.0, {'grid': -8000.0, 'inputs': on, 'heard': 31.0}, {'low': 8000.0, 'says': 'not heard'}),
        (121.0, {'grid': nan}, {'low': 0.0, 'state': 'blind'}),
    ])
    with pytest.raises(ParameterError, match='pv_peak_power'):
        make(FeedInLimit, pv_share=0.7)


def test_load_limit_holds_when_the_contact_is_silent_and_counts() -> None:
    mode = make(LoadLimit, '', input='c', timeout_s=60.0, release_s=10.0)
    tell(mode, [
        (0.0, {}, {'high': inf, 'state': 'free'}),
        (1.0, {'inputs': {'input': True}}, {'high': 4200.0, 'low': -inf, 'power': nan, 'state': 'limited'}),
        (5.0, {'inputs': {'input': True}}, {'high': 4200.0}),
        (6.0, {'inputs': {'input': False}}, {'high': 4200.0}),
        (15.1, {'inputs': {'input': False}}, {'high': inf}),
        (76.0, {'inputs': {'input': False}, 'heard': 15.1}, {'high': 4200.0, 'says': 'not heard'}),
    ])
    assert mode.events == 2 and mode.limited_s == pytest.approx(5.0)
    again = make(LoadLimit, '', input='c')
    again.restore(mode.save())
    assert (again.events, again.limited_s) == (2, mode.limited_s)
    silent = make(LoadLimit, '', input='c', timeout_s=60.0)
    tell(silent, [(0.0, {}, {'high': inf}), (61.0, {}, {'high': 4200.0})])
    whole = make(LoadLimit, input='c', import_limit=6000.0)
    tell(whole, [(1.0, {'grid': 1000.0, 'inputs': {'input': True}}, {'high': 5000.0}),
                 (20.0, {'grid': nan, 'inputs': {'input': True}}, {'high': 4200.0})])


def test_ramp_rate_of_the_connection() -> None:
    mode = make(RampRate, ramp_rate=10.0, recovery_share=0.0)
    tell(mode, [
        (0.0, {'grid': -1000.0}, {'power': 0.0}),
        (1.0, {'grid': -3000.0}, {'power': 1990.0, 'state': 'ramping'}),
        (2.0, {'grid': -3000.0}, {'power': 1980.0}),
        (3.0, {'grid': nan}, {'power': 0.0, 'state': 'blind'}),
        (4.0, {'grid': -3000.0}, {'power': 0.0}),  # a new start
    ])
    bumpless = make(RampRate, ramp_rate=10.0, recovery_share=0.0)
    tell(bumpless, [(0.0, {'grid': -1000.0, 'power': 500.0, 'granted': 500.0}, {'power': 500.0})])


def test_solar_smoothing_follows_the_mean() -> None:
    mode = make(SolarSmoothing, '', pv_meter='pv', time_constant_s=100.0, recovery_share=0.0)
    tell(mode, [
        (0.0, {'pv_meter': -4000.0}, {'power': 0.0}),
        (1.0, {'pv_meter': -1000.0}, {'power': -2970.0}),  # a cloud: the battery gives
        (101.0, {'pv_meter': -1000.0}, {'power': -1092.7}),
        (102.0, {}, {'power': 0.0, 'says': 'has not been read'}),
    ])
    drift = make(SolarSmoothing, '', pv_meter='pv', recovery_share=0.1)
    tell(drift, [(0.0, {'pv_meter': 0.0, 'soc': 0.75}, {'power': -500.0}),
                 (1.0, {'pv_meter': 0.0, 'soc': nan}, {'power': 0.0})])


def test_load_matching_both_ways() -> None:
    tell(make(LoadMatching, '', load_meter='l', threshold=500.0, ratio=0.5, max_power=900.0), [
        (0.0, {'load_meter': 400.0}, {'power': 0.0}), (1.0, {'load_meter': 1500.0}, {'power': -500.0}),
        (2.0, {'load_meter': 9000.0}, {'power': -900.0}), (3.0, {'load_meter': -100.0}, {'power': 0.0}),
        (4.0, {}, {'power': 0.0, 'says': 'has not been read'}), (5.0, {'load_meter': nan}, {'power': 0.0})])
    tell(make(LoadMatching, '', load_meter='l', follow='generation'), [
        (0.0, {'load_meter': -1500.0}, {'power': 1500.0}), (1.0, {'load_meter': 200.0}, {'power': 0.0})])


# -- times of day --------------------------------------------------------------------------------------


@pytest.mark.parametrize('text, inside, outside', [
    ('22:00-06:00', ['2026-03-02 23:00', '2026-03-03 05:59'], ['2026-03-02 21:59', '2026-03-03 06:00']),
    ('Mo-Fr 17:00-20:00', ['2026-03-02 17:00'], ['2026-03-01 18:00', '2026-03-02 20:00']),
    ('Fr 22:00-06:00', ['2026-03-06 23:00', '2026-03-07 05:00'], ['2026-03-06 05:00', '2026-03-07 23:00']),
    ('Sa,Su 00:00-24:00', ['2026-03-07 00:00', '2026-03-08 23:59'], ['2026-03-09 00:00']),
    ('Sa-Mo 12:00-13:00', ['2026-03-09 12:30'], ['2026-03-10 12:30']),
])
def test_windows(text: str, inside: list[str], outside: list[str]) -> None:
    windows = Windows([text], 'Europe/Berlin')
    assert all(windows.cover(wall(t)) for t in inside)
    assert not any(windows.cover(wall(t)) for t in outside)


@pytest.mark.parametrize('text', [
    '', '22-06', '25:00-26:00', '12:00-12:00', 'Xx 10:00-11:00', '10:61-11:00', '10:00-24:01'])
def test_bad_windows(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_next_time_of_day_over_the_change_of_clocks() -> None:
    tz = zone('Europe/Berlin')
    assert next_time_of_day(wall('2026-03-29 01:00'), 180, tz) - wall('2026-03-29 01:00') == 3600.0
    assert next_time_of_day(wall('2026-10-25 01:00'), 240, tz) - wall('2026-10-25 01:00') == 4 * 3600.0
    with pytest.raises(ValueError, match='Europe/Berlin'):
        zone('Nowhere/At_all')


# -- all of them ---------------------------------------------------------------------------------------

NEEDED: dict[str, dict[str, Any]] = {
    'peak_shaving': {'import_limit': 3000.0, 'recharge_limit': 500.0}, 'load_limit': {'input': 'contact'},
    'solar_smoothing': {'pv_meter': 'pv'}, 'load_matching': {'load_meter': 'load'},
    'grid_optimized_charge': {'pv_meter': 'pv', 'export_limit': 100.0},
    **dict.fromkeys(('volt_var', 'watt_var', 'volt_watt', 'frequency_watt', 'fixed_power_factor'),
                    {'rated_power': 5000.0}),
}
MODES = sorted(e.name for e in entry_points(group='bess.modes') if e.value.startswith('bess_control.'))
ANYTHING = st.one_of(st.floats(-1e5, 1e5), st.sampled_from([nan, inf, -inf, 0.0, 1e300]))


def load_mode(name: str) -> Any:
    entry = next(e for e in entry_points(group='bess.modes') if e.name == name)
    return make(entry.load(), **NEEDED.get(name, {}))


@pytest.mark.parametrize('name', MODES)
@given(rows=st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.floats(0.0, 30.0), st.booleans(),
                               st.sampled_from(list(Quality))), max_size=8))
@settings(max_examples=12)
def test_whatever_it_sees_it_proposes_nothing_that_cannot_be(name: str, rows: list[Any]) -> None:
    mode, now = load_mode(name), 0.0
    for grid, power, soc, other, dt, on, quality in rows:
        now += dt
        battery = BatteryReading(time=now, newest=now, quality=quality, power=power, soc=soc, energy_full=other,
                                 max_charge_power=power, max_discharge_power=other)
        readings = {k: meter(other, now) for k in getattr(mode, 'meters', ())}
        proposal = mode.decide(View(
            now=now, wall=1.7e9 + now * 997.0, battery=battery, granted=power,
            meter=meter(grid, now, quality=quality, voltage=(grid, power, soc), frequency=other), meters=readings,
            signals={k: Signal(on, now) for k in mode.signals}))
        if proposal is None:
            continue
        assert proposal.problem() == '', (name, proposal)
        assert not isinf(proposal.preferred_power)
        assert not isnan(proposal.min_power) and not isnan(proposal.max_power), 'a lost bound would be no bound'
        assert isfinite(proposal.lease)
    mode.reset()
