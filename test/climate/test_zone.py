"""Climate zones on a virtual clock, and the profiles that come along."""

from __future__ import annotations

from math import inf, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_control.climate import profile
from bess_control.climate.zone import Actuator, Sample, Zone, ZoneParams

FAN = Actuator(start=30.0, stop=26.0, full=40.0, low=0.3)
RELAY = Actuator(start=5.0, stop=9.0, steps=True, min_on=60.0, min_off=120.0)


def zone(**values: Any) -> Zone:
    return Zone(ZoneParams('z', **{'fan': FAN, 'heater': Actuator(start=5.0, stop=9.0), **values}))


def at(z: Zone, now: float, *temperatures: float) -> Any:
    return z.tick([Sample(t, now) for t in temperatures], now)


# (time, temperature, fan, heater)
TABLE: list[tuple[str, dict[str, Any], list[tuple[float, float, float, float]]]] = [
    ('fan: hysteresis and speed', {}, [(0, 20, 0, 0), (1, 29.9, 0, 0), (2, 30, 0.3, 0), (3, 35, 0.65, 0), (4, 45, 1, 0),
                                       (5, 27, 0.3, 0), (6, 26, 0, 0), (7, 29, 0, 0)]),
    ('heater: hysteresis', {}, [(0, 20, 0, 0), (1, 5, 0, 1), (2, 8.9, 0, 1), (3, 9, 0, 0), (4, 6, 0, 0), (5, 4, 0, 1)]),
    ('least on and off times', {'heater': RELAY},
     [(0, 4, 0, 1), (59, 20, 0, 1), (60, 20, 0, 0), (179, 4, 0, 0), (180, 4, 0, 1)]),
    ('ramp', {'fan': Actuator(start=30.0, stop=26.0, low=0.2, ramp=0.1)},
     [(0, 20, 0, 0), (1, 50, 0.2, 0), (2, 50, 0.3, 0), (4, 50, 0.5, 0), (20, 50, 1, 0), (21, 20, 0.9, 0), (30, 20, 0, 0)]),  # noqa: E501
    ('a relay fan has no speed', {'fan': Actuator(start=30.0, stop=26.0, full=40.0, low=0.3, steps=True)},
     [(0, 31, 1, 0), (1, 25, 0, 0)]),
    ('no sensor: fan safe, heater off', {'fan': Actuator(start=30.0, stop=26.0, safe=0.6)},
     [(0, 4, 0, 1), (1, nan, 0.6, 0), (2, 200, 0.6, 0), (3, inf, 0.6, 0), (4, 20, 0, 0)]),
]


@pytest.mark.parametrize(('what', 'values', 'rows'), TABLE, ids=[t[0] for t in TABLE])
def test_outputs_over_time(what: str, values: dict[str, Any], rows: list[Any]) -> None:
    z = zone(**values)
    for now, temperature, fan, heater in rows:
        out = at(z, float(now), float(temperature))
        assert out.outputs['fan'] == pytest.approx(fan), now
        assert out.outputs['heater'] == pytest.approx(heater), now


def test_the_hottest_cools_and_the_coldest_heats() -> None:
    out = at(zone(), 0.0, 3.0, 35.0)
    assert (out.coldest, out.hottest) == (3.0, 35.0)
    assert out.outputs == {'fan': pytest.approx(0.65), 'heater': 1.0}


def test_an_old_sensor_is_no_sensor() -> None:
    z = zone(max_age=10.0)
    assert z.tick([Sample(20.0, 0.0)], 10.0).usable == 1
    out = z.tick([Sample(20.0, 0.0)], 10.1)
    assert (out.usable, out.charge_allowed) == (0, False)


# (time, temperatures, charge, discharge)
LIMITS = [(0, [1.9], False, True), (1, [2.0], True, True), (2, [0.0], True, True), (3, [-0.1], False, True),
          (4, [1.0], False, True), (5, [2.0, 44.0], False, True), (6, [2.0, 43.0], True, True),
          (7, [2.0, 45.1], False, True), (8, [61.0], False, False), (9, [59.0], False, False),
          (10, [58.0], False, True), (11, [], False, False)]


def test_no_charging_below_the_limit_until_it_is_warm_by_the_hysteresis() -> None:
    z = zone()
    for now, temperatures, charge, discharge in LIMITS:
        out = at(z, float(now), *map(float, temperatures))
        assert (out.charge_allowed, out.discharge_allowed) == (charge, discharge), now
    assert any(r.startswith('no charging') for r in out.reasons)


def test_a_force_ends_by_itself_and_does_not_overheat() -> None:
    z = zone()
    assert 'no heater_board' in z.force('heater_board', 1.0, 10.0, 0.0)
    for bad in (-0.1, 1.1):
        assert 'fraction' in z.force('fan', bad, 10.0, 0.0)
    for until in (0.0, -1.0, inf, nan):
        assert 'duration' in z.force('fan', 1.0, until, 0.0)
    assert z.force('fan', 0.5, 10.0, 0.0) == ''
    assert z.force('heater', 1.0, 100.0, 0.0) == ''
    out = at(z, 9.9, 20.0)
    assert out.outputs == {'fan': 0.5, 'heater': 1.0}
    assert out.forced['fan'] == (0.5, pytest.approx(0.1))
    assert at(z, 10.0, 20.0).outputs['fan'] == 0.0
    assert at(z, 11.0, 41.0).outputs['heater'] == 0.0, 'above heater_limit'
    assert at(z, 12.0).outputs['heater'] == 0.0, 'unwatched'
    assert at(z, 13.0, 20.0).outputs['heater'] == 1.0
    assert z.force('heater', nan, 0.0, 13.0) == ''
    assert at(z, 14.0, 20.0).outputs['heater'] == 0.0


def test_a_pid_fan_holds_a_cabinet_near_its_set_point() -> None:
    z = zone(fan=Actuator(start=27.0, stop=24.0, kp=0.12, ki=0.0006, low=0.2, ramp=0.05))
    temperature = 35.0  # 20 kJ/K, 300 W of losses, 35 W/K at full speed over 20 degC outside
    for k in range(20000):
        fan = at(z, float(k), temperature).outputs['fan']
        temperature += (300.0 - (3.0 + 60.0 * fan) * (temperature - 20.0)) / 20_000.0
    assert temperature == pytest.approx(27.0, abs=0.3)


@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(allow_nan=True, allow_infinity=True)), max_size=50))
def test_outputs_are_fractions_and_least_times_hold(rows: list[tuple[float, float]]) -> None:
    z = Zone(ZoneParams('z', fan=Actuator(start=30.0, stop=26.0, full=40.0, ramp=0.05, min_on=20.0), heater=RELAY))
    now, on_since = 0.0, None
    for dt, temperature in rows:
        now += dt
        out = at(z, now, temperature)
        for value in out.outputs.values():
            assert 0.0 <= value <= 1.0 and not isnan(value)
        assert out.outputs['heater'] in (0.0, 1.0)
        if out.outputs['heater'] == 0.0 and on_since is not None:
            assert now - on_since >= 60.0 or not out.usable or out.hottest > 40.0
        on_since = None if out.outputs['heater'] == 0.0 else on_since if on_since is not None else now


@pytest.mark.parametrize('name', ['small', 'medium', 'large'])
def test_profiles_keep_batteries_in_their_limits(name: str) -> None:
    for params in profile.load(name):
        assert profile.describe(params)
        z = Zone(params)
        cold, hot = at(z, 0.0, -15.0), None
        if 'heater' in cold.outputs:
            assert cold.outputs['heater'] > 0.0
            assert not cold.charge_allowed, 'heated first'
            assert params.heater is not None and params.heater.stop >= params.charge_min + params.hysteresis, \
                'the heater goes on until charging is allowed'
        for k in range(1, 400):
            hot = at(z, float(k), params.charge_max)
        assert hot is not None
        assert hot.outputs['fan'] > 0.4


@pytest.mark.parametrize(('data', 'text'), [
    (None, 'needs "zones"'), ({'zones': {}}, 'no zone'), ({'zones': {'a b': {}}}, 'letters'),
    ({'zones': {'a': {}}}, 'no fan'), ({'zones': {'a': 3}}, 'not a mapping'),
    ({'zones': {'a': {'fan': {'start': 30}}}}, 'stop is missing'), ({'zones': {'a': {'fan': {'start': 30, 'stop': 31}}}}, 'below'),  # noqa: E501
    ({'zones': {'a': {'heater': {'start': 5, 'stop': 4}}}}, 'above'),
    ({'zones': {'a': {'fan': {'start': 30, 'stop': 26, 'sped': 1}}}}, "unknown key 'sped'"),
    ({'zones': {'a': {'fan': {'start': 'x', 'stop': 26}}}}, 'must be a number'),
    ({'zones': {'a': {'fan': {'start': 30, 'stop': 26, 'low': 2}}}}, 'low'),
    ({'zones': {'a': {'fan': {'start': 30, 'stop': 26, 'ramp': 0}}}}, 'ramp'),
    ({'zones': {'a': {'heater': {'start': 5, 'stop': 9, 'safe': 1}}}}, 'safe must be 0'),
    ({'zones': {'a': {'fan': {'start': 30, 'stop': 26}, 'charge_min': 50}}}, 'charge_min'),
])
def test_profiles_that_cannot_be_are_refused(data: Any, text: str) -> None:
    with pytest.raises(profile.ProfileError, match=text):
        profile.parse(data)


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(profile.ProfileError, match='installed: large, medium, small'):
        profile.load('huge')
