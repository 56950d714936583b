"""The chain of charge limits: each stage by a table, recovery, names, and many random scenarios behind it."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import limit_plant
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.limits import STAGES, Chain, Inputs, LimiterParams
from bess_control.limits.curves import DEFAULTS, Curve
from bess_core.params import ParameterError, build

BASE = {'time': 0.0, 'max_charge_power': 8000.0, 'max_discharge_power': 9000.0, 'power': 0.0, 'voltage': 51.2,
        'soc': 0.5, 'cell_min': 3.28, 'cell_max': 3.30, 'temperature_min': 20.0, 'temperature_max': 25.0,
        'reactive': nan}


def params(**more: object) -> LimiterParams:
    return LimiterParams(**{'rated_charge_power': 5000.0, 'rated_discharge_power': 6000.0, **more})  # type: ignore[arg-type]


def look(chain: Chain, now: float = 0.0, **more: float) -> tuple[float, float, list[str], list[str]]:
    values = {**BASE, 'time': now, **more}
    result = chain(Inputs(**{k: np.array([v]) for k, v in values.items()}), now)
    charge, discharge = result.binding()
    return float(result.allowed[0, 0]), float(result.allowed[1, 0]), charge, discharge


def test_the_order_is_fixed_and_visible() -> None:
    assert STAGES == ('hardware', 'software', 'SoC', 'cell voltage', 'temperature', 'current', 'ramp', 'apparent power')


@pytest.mark.parametrize(('settings_', 'values', 'charge', 'discharge', 'names'), [
    ({}, {}, 8000.0, 9000.0, ['hardware']),
    ({}, {'max_charge_power': nan}, 0.0, 9000.0, ['hardware']),
    ({}, {'max_charge_power': -5.0}, 0.0, 9000.0, ['hardware']),
    ({'software_charge_power': 4200.0}, {}, 4200.0, 9000.0, ['hardware', 'software']),
    ({'soc_max': 0.9}, {'soc': 0.9}, 0.0, 9000.0, ['hardware', 'SoC']),
    ({'soc_max': 0.9}, {'soc': nan}, 0.0, 0.0, ['hardware', 'SoC']),
    ({'soc_curves': True}, {'soc': 0.9}, 2500.0, 9000.0, ['hardware', 'SoC']),
    ({'soc_curves': True}, {'soc': 0.925}, 1750.0, 9000.0, ['hardware', 'SoC']),
    ({}, {'cell_max': 3.4}, 1250.0, 9000.0, ['hardware', 'cell voltage']),
    ({}, {'cell_max': 3.425}, 250.0, 9000.0, ['hardware', 'cell voltage']),
    ({}, {'cell_max': 3.5}, 0.0, 9000.0, ['hardware', 'cell voltage']),
    ({}, {'cell_max': nan}, 0.0, 9000.0, ['hardware', 'cell voltage']),
    ({}, {'cell_max': 500.0}, 0.0, 9000.0, ['hardware', 'cell voltage']),
    ({}, {'temperature_min': 2.0}, 1250.0, 2100.0, ['hardware', 'temperature']),
    ({}, {'temperature_max': 50.0}, 1250.0, 1500.0, ['hardware', 'temperature']),
    ({}, {'temperature_min': nan}, 0.0, 0.0, ['hardware', 'temperature']),
    ({'max_charge_current': 50.0}, {}, 2560.0, 9000.0, ['hardware', 'current']),
    ({'max_charge_current': 50.0}, {'voltage': nan}, 0.0, 9000.0, ['hardware', 'current']),
    ({'max_apparent_power': 5000.0}, {'reactive': 3000.0}, 4000.0, 4000.0, ['hardware', 'apparent power']),
    ({'max_apparent_power': 5000.0}, {'reactive': -9000.0}, 0.0, 0.0, ['hardware', 'apparent power']),
    ({'software_charge_power': 4000.0, 'max_charge_current': 40.0}, {'cell_max': 3.39, 'temperature_min': 4.0},
     2048.0, 2700.0, ['hardware', 'software', 'cell voltage', 'temperature', 'current']),
])
def test_stages(settings_: dict, values: dict, charge: float, discharge: float, names: list[str]) -> None:
    got = look(Chain(params(**settings_)), **values)
    assert got[0] == pytest.approx(charge) and got[1] == pytest.approx(discharge)
    if got[2] != names:  # the table of several names states the curve values that do bind
        assert set(got[2]) <= set(names) and got[2][-1] == names[-1]


@pytest.mark.parametrize(('low', 'discharge'), [(3.19, 9000.0), (3.1, 1500.0), (3.0, 300.0), (2.9, 30.0), (2.8, 0.0)])
def test_lowest_cell_and_discharging(low: float, discharge: float) -> None:
    got = look(Chain(params()), cell_min=low)
    assert (got[0], got[1]) == (8000.0, pytest.approx(discharge))


@pytest.mark.parametrize(('age', 'charge', 'discharge'), [
    (0.0, 8000.0, 9000.0), (5.0, 8000.0, 9000.0), (5.1, 1000.0, 0.0), (15.0, 1000.0, 0.0), (15.1, 0.0, 0.0),
    (inf, 0.0, 0.0), (nan, 0.0, 0.0)])
def test_old_readings_allow_what_flows_and_then_nothing(age: float, charge: float, discharge: float) -> None:
    got = look(Chain(params()), now=100.0, time=100.0 - age, power=1000.0)
    assert got[:2] == (charge, discharge)


@pytest.mark.parametrize(('cold', 'hot', 'charge', 'discharge'), [
    (25.0, 25.0, 1250.0, 1500.0),  # 3.400 and 3.100 V as they are
    (15.0, 25.0, 250.0, 1500.0),  # the high cell may be the cold one: 3.425 V at 25 degC
    (25.0, 35.0, 1250.0, 1200.0),  # the low one may be the hot one: 3.075 V at 25 degC
    (nan, nan, 1250.0, 1500.0), (-300.0, 500.0, 1250.0, 1500.0)])
def test_cell_voltages_are_brought_to_25_degrees(cold: float, hot: float, charge: float, discharge: float) -> None:
    chain = Chain(params(voltage_temperature_coefficient=0.0025, temperature=False))
    got = look(chain, cell_max=3.4, cell_min=3.1, temperature_min=cold, temperature_max=hot)
    assert got[:2] == (pytest.approx(charge), pytest.approx(discharge))


def test_recovery_holds_and_then_rises_by_its_slope() -> None:
    chain = Chain(params(max_charge_current=200.0, recovery_hold=30.0, recovery_slope=0.1))
    assert look(chain, 0.0)[0] == 8000.0
    assert look(chain, 1.0, cell_max=3.45)[0] == pytest.approx(25.0)
    table = [(2.0, 25.0), (30.9, 25.0), (31.0, 75.0), (32.0, 575.0), (36.0, 2575.0), (42.0, 8000.0)]
    last = 1.0
    for at, expected in table:
        t = last + 1.0
        while t < at - 1e-9:
            if at <= 30.9:
                assert look(chain, t, cell_max=3.30)[0] == pytest.approx(25.0)
            else:
                look(chain, t, cell_max=3.30)
            t += 1.0
        got = look(chain, at, cell_max=3.30)[0]
        last = at
        assert got == pytest.approx(expected, abs=60.0), at


def test_a_lower_value_during_recovery_acts_at_once_and_holds_again() -> None:
    chain = Chain(params(recovery_hold=10.0))
    look(chain, 0.0, cell_max=3.5)
    for t in range(1, 13):
        value = look(chain, float(t), cell_max=3.3)[0]
    assert 0.0 < value < 5000.0
    assert look(chain, 13.0, cell_max=3.45)[0] == pytest.approx(25.0)
    assert look(chain, 22.0, cell_max=3.3)[0] == pytest.approx(25.0)


def test_out_of_zero_only_when_it_is_worth_it() -> None:
    chain = Chain(params(recovery_hold=1.0, restart_fraction=0.015))
    look(chain, 0.0, cell_max=3.5)
    for t in range(1, 100):
        assert look(chain, float(t), cell_max=3.45)[0] == 0.0, 'the curve allows 0.5 % only'
    assert look(chain, 102.0, cell_max=3.40)[0] > 0.0


def test_soc_window_has_hysteresis() -> None:
    chain = Chain(params(soc_min=0.1, soc_max=0.9, soc_hysteresis=0.02))
    table = [(0.89, True, True), (0.90, False, True), (0.885, False, True), (0.879, True, True), (0.10, True, False),
             (0.115, True, False), (0.121, True, True)]
    for t, (soc, charge, discharge) in enumerate(table):
        got = look(chain, float(t), soc=soc)
        assert (got[0] > 0.0, got[1] > 0.0) == (charge, discharge), soc


def test_ramp_rises_slower_near_a_limit_and_never_waits_downwards() -> None:
    chain = Chain(params(ramp_rate=1000.0, recovery_hold=0.0, recovery_slope=1e6))
    assert look(chain, 0.0)[0] == 0.0
    assert look(chain, 1.0)[0] == pytest.approx(1000.0)
    assert look(chain, 2.0, temperature_max=45.0)[0] == pytest.approx(1500.0), 'curve at one half: half the ramp'
    assert look(chain, 3.0, max_charge_power=200.0)[0] == pytest.approx(200.0)


def test_defaults_are_those_of_the_chemistry() -> None:
    assert DEFAULTS['lfp', 'charge_voltage'][-2:] == (3.5, 0.0)
    assert params().curve('charge_voltage')(np.array([3.4125]))[0] == pytest.approx(0.15)
    assert params(chemistry='nmc').curve('charge_voltage')(np.array([4.18, 4.0])) == pytest.approx([0.0, 1.0])
    own = params(charge_voltage_curve=[3.3, 1.0, 3.4, 0.0])
    assert look(Chain(own), cell_max=3.35)[0] == pytest.approx(2500.0)


@pytest.mark.parametrize('bad', [
    {'charge_voltage_curve': [3.3]}, {'charge_voltage_curve': [3.3, 1.0, 3.2, 0.0]},
    {'charge_voltage_curve': [3.3, 1.5]}, {'charge_voltage_curve': [nan, 1.0]}, {'soc_min': 0.9, 'soc_max': 0.5},
    {'chemistry': 'lead'}, {'rated_charge_power': 0.0}, {'data_invalid_after': 1.0}, {'plausible_cell': [5.0, 1.0]}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ParameterError):
        build(LimiterParams, {'rated_charge_power': 5000.0, 'rated_discharge_power': 5000.0, **bad})


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 1.0)), min_size=1, max_size=6), st.floats(-10.0, 10.0))
def test_a_curve_stays_within_its_points(points: list, at: float) -> None:
    points.sort()
    curve = Curve(tuple(p[0] for p in points), tuple(p[1] for p in points))
    assert min(p[1] for p in points) - 1e-9 <= curve(np.array([at]))[0] <= max(p[1] for p in points) + 1e-9
    assert curve(np.array([nan]))[0] == 0.0


@settings(max_examples=80)
@given(st.lists(st.fixed_dictionaries({k: st.floats(allow_nan=True, allow_infinity=True) for k in BASE}), min_size=1,
                max_size=6))
def test_whatever_comes_in_what_comes_out_is_allowed(readings: list) -> None:
    chain = Chain(params(soc_curves=True, max_charge_current=100.0, ramp_rate=500.0, max_apparent_power=4000.0))
    for t, values in enumerate(readings):
        with np.errstate(all='ignore'):
            charge, discharge, *_ = look(chain, float(t), **{**values, 'time': min(values['time'], float(t))})
        assert 0.0 <= charge <= 4000.0 and 0.0 <= discharge <= 4000.0


def test_many_are_as_one() -> None:
    """Row by row the same as a chain of one."""
    rng = np.random.default_rng(1)
    p = params(soc_curves=True, ramp_rate=700.0, max_charge_current=80.0)
    wide, single = Chain(p, 5), [Chain(p) for _ in range(5)]
    for t in range(60):
        values = {k: rng.uniform(0.9, 1.1, 5) * v if v == v else np.full(5, nan) for k, v in BASE.items()}
        values['time'] = np.full(5, float(t))
        got = wide(Inputs(**values), float(t)).allowed
        for i, chain in enumerate(single):
            one = chain(Inputs(**{k: v[i:i + 1] for k, v in values.items()}), float(t)).allowed
            assert np.allclose(one[:, 0], got[:, i])


def test_no_random_sequence_exceeds_a_limit_for_long() -> None:
    """200 scenarios of an hour."""
    limit_plant.check(limit_plant.run(200, 3600, seed=11))


def test_the_judge_sees_a_chain_that_forgets_a_limit() -> None:
    """Without cell voltages in the chain the same scenarios fail."""
    with pytest.raises(AssertionError, match='cell voltage'):
        limit_plant.check(limit_plant.run(100, 900, seed=11, params=replace(limit_plant.PARAMS, cell_voltage=False)))


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(10))
def test_ten_thousand_hours(seed: int) -> None:
    """1000 scenarios of an hour for each seed."""
    limit_plant.check(limit_plant.run(1000, 3600, seed=100 + seed))


@pytest.mark.soak
def test_a_year_of_days() -> None:
    """365 days with the temperatures of their season, side by side."""
    limit_plant.check(limit_plant.run(365, 86_400, seed=5, season=True))
