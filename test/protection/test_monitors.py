"""Each monitor on a virtual clock: threshold, hysteresis, delay, data age."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_control.protection.monitors import (
    DEFAULTS,
    ChargeCount,
    Check,
    Monitors,
    Settings,
    meter_deviation,
    settings_from,
)
from bess_core.values import BatteryReading, Contactor, ConverterReading, MeterReading, Mode, Quality, Severity

S = Settings(10.0, 2.0, 3.0, 5.0, Severity.ERROR, 'V', '')

# (time, value, measured at), active, blind
CHECK: list[tuple[str, bool, list[tuple[float, float, float, bool, bool]]]] = [
    ('above for the delay', False, [(0, 11, 0, False, False), (2.9, 11, 2.9, False, False), (3, 11, 3, True, False)]),
    ('at the threshold', False, [(0, 10, 0, False, False), (9, 10, 9, False, False)]),
    ('a dip starts anew', False, [(0, 11, 0, False, False), (2, 9, 2, False, False), (3, 11, 3, False, False),
                                  (5, 11, 5, False, False), (6, 11, 6, True, False)]),
    ('hysteresis', False, [(0, 11, 0, False, False), (3, 11, 3, True, False), (4, 9, 4, True, False),
                           (9, 9, 9, True, False), (10, 7.9, 10, True, False), (13, 7.9, 13, False, False)]),
    ('below', True, [(0, 9, 0, False, False), (3, 9, 3, True, False), (4, 11, 4, True, False),
                     (9, 11, 9, True, False), (10, 12.1, 10, True, False), (13, 12.1, 13, False, False)]),
    ('old data raises nothing and clears nothing', False,
     [(0, 11, 0, False, False), (3, 11, 3, True, False), (9, 0, 3, True, False), (12, 0, 3, True, True),
      (13, 0, 13, True, False), (16, 0, 16, False, False)]),
    ('NaN', False, [(0, nan, 0, False, False), (3, nan, 3, False, True), (4, 5, 4, False, False)]),
]


@pytest.mark.parametrize(('what', 'below', 'rows'), CHECK, ids=[c[0] for c in CHECK])
def test_a_check_over_time(what: str, below: bool, rows: list[Any]) -> None:
    check = Check(replace(S, below=below))
    for now, value, at, active, blind in rows:
        assert check.tick(float(value), float(at), float(now)) is active, now
        assert check.blind is blind, now


GOOD = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=52.0, current=0.0, power=0.0, soc=0.5,
    charge_full=100.0, cell_voltage_min=3.25, cell_voltage_max=3.26, cell_voltage_min_index=1,
    cell_voltage_max_index=2)


def watch(seconds: float, *, changes: dict[str, Any] | None = None, start: float = 0.0, step: float = 1.0,
          monitors: Monitors | None = None, age: float = 0.0, **values: Any) -> tuple[Monitors, set[str]]:
    m = monitors or Monitors(settings_from(changes or {}), start)
    now = start
    while now <= start + seconds:
        m.battery('bms', replace(GOOD, time=now - age, **values), True, now)
        now += step
    return m, {a.id for a in m.alarms()}


@pytest.mark.parametrize(('values', 'seconds', 'fault'), [
    ({}, 300.0, ''),
    ({'cell_voltage_max': 3.36}, 59.0, ''), ({'cell_voltage_max': 3.36}, 61.0, 'monitor.cell_imbalance'),
    ({'mode': Mode.FAULT}, 1.0, ''), ({'mode': Mode.FAULT}, 3.0, 'monitor.bms_state'),
    ({'contactor': Contactor.OPEN}, 3.0, 'monitor.bms_state'),
    ({'contactor': Contactor.CHARGE_ONLY}, 3.0, ''),
    ({'cell_voltage_min': 2.49, 'cell_voltage_max': 2.5}, 3.0, 'monitor.critical_low_voltage'),
    ({'power': 300.0}, 11.0, 'monitor.auto_charge'), ({'power': 300.0, 'setpoint': 300.0}, 11.0, ''),
    ({'power': 300.0, 'setpoint': -500.0}, 11.0, 'monitor.auto_charge'), ({'power': -900.0}, 11.0, ''),
    ({'cell_voltage_min': nan, 'cell_voltage_max': nan}, 9.0, 'monitors.blind'),
])
def test_battery_monitors(values: dict[str, Any], seconds: float, fault: str) -> None:
    _, ids = watch(seconds, **values)
    assert ids == ({fault} if fault else set())


def test_voltage_levels_are_watched_where_they_are_set() -> None:
    changes = {'voltage_low': {'threshold': 48}, 'voltage_high': {'threshold': 58, 'delay': 0}}
    assert watch(6.0, changes=changes, voltage=47.9)[1] == {'monitor.voltage_low'}
    assert watch(0.0, changes=changes, voltage=58.1)[1] == {'monitor.voltage_high'}
    assert watch(6.0, voltage=1.0)[1] == set()


def test_a_battery_that_falls_silent_is_inactive_and_not_blind_as_well() -> None:
    m, ids = watch(1.0)
    assert ids == set()
    for now in range(2, 60):
        m.battery('bms', replace(GOOD, time=1.0), True, float(now))
    (alarm,) = m.alarms()
    assert (alarm.id, alarm.text) == ('monitor.inactive_bms', 'bms: no values for 58 s')
    assert watch(11.0, age=0.0, monitors=m, start=60.0)[1] == set()


def test_a_battery_that_never_came_is_inactive_from_the_start_on() -> None:
    m = Monitors(settings_from({}), 100.0)
    m.battery('bms', BatteryReading(), True, 109.0)
    assert not m.alarms()
    m.battery('bms', BatteryReading(), True, 111.0)
    assert {a.id for a in m.alarms()} == {'monitor.inactive_bms'}


def test_soc_that_its_current_does_not_explain() -> None:
    count = ChargeCount()
    assert count.update(0.5, 100.0, 100.0, 0.0) == 0.0
    for k in range(1, 61):  # a minute at 1 C
        deviation = count.update(0.5 + k / 3600.0, 100.0, 100.0, float(k))
    assert deviation == pytest.approx(0.0, abs=1e-9)
    assert count.update(0.4, 0.0, 100.0, 61.0) == pytest.approx(0.1 + 60.0 / 3600.0, abs=1e-3)
    assert count.update(1.0, 0.0, 100.0, 62.0) == 0.0, 'full sets the count right'
    assert count.correction == pytest.approx(0.5 - 60.0 / 3600.0, abs=1e-3)
    assert count.update(0.3, 0.0, 100.0, 500.0) == 0.0, 'after a gap nothing can be said'
    for bad in ((nan, 0.0, 100.0), (0.5, nan, 100.0), (0.5, 0.0, 0.0), (0.5, 0.0, nan)):
        assert count.update(*bad, 501.0) != count.update(*bad, 501.0)  # NaN


THREE = MeterReading(quality=Quality.OK, time=0.0, voltage=(230.0,) * 3, current=(10.0, -5.0, 1.0),
                     phase_power=(2000.0, -1000.0, 200.0), active_power=1200.0, reactive_power=500.0,
                     apparent_power=1400.0)


@pytest.mark.parametrize(('change', 'deviation'), [
    ({}, 0.0), ({'active_power': 1500.0}, 0.2), ({'active_power': -1200.0}, 2.0),
    ({'phase_power': (2600.0, -1600.0, 200.0)}, pytest.approx(450.0 / 1150.0)),
    ({'apparent_power': 1000.0}, pytest.approx(0.3)), ({'active_power': inf}, 1.0),
    ({'phase_power': (nan, nan, nan), 'apparent_power': nan}, 'unknown'), ({'active_power': nan}, 'unknown'),
])
def test_a_meter_that_contradicts_itself(change: dict[str, Any], deviation: Any) -> None:
    found = meter_deviation(replace(THREE, **change))
    if deviation == 'unknown':
        assert found != found
    else:
        assert found == deviation


def test_meters_and_converters() -> None:
    m = Monitors(settings_from({}), 0.0)
    for k in range(13):
        m.meter('grid', replace(THREE, active_power=-1200.0, time=float(k)), float(k))
        m.converter('inv', ConverterReading(time=float(k), quality=Quality.OK, active_power=0.0, setpoint=2000.0),
                    float(k))
    assert {a.id for a in m.alarms()} == {'monitor.meter_plausibility', 'monitor.follow_error'}
    m.meter('grid', replace(THREE, time=12.0), 23.0)
    assert 'monitor.communication' in {a.id for a in m.alarms()}


def test_temperature_humidity_and_clock() -> None:
    m = Monitors(settings_from({}), 0.0)
    for k in range(11):
        m.value('controller_temperature', 'controller', 80.0, float(k), float(k))
        m.clock(1.8e9 + k, float(k))
    assert {a.id for a in m.alarms()} == {'monitor.controller_temperature'}
    for k in range(11, 80):
        m.value('controller_temperature', 'controller', 60.0, float(k), float(k))
        m.value('humidity', 'cabinet', 0.9, float(k), float(k))
        m.clock(1.8e9 + k + 30.0, float(k))
    assert {a.id: a.text for a in m.alarms()} == {
        'monitor.humidity': 'cabinet: 90%', 'monitor.clock': 'clock: the wall clock jumped by +30.0 s'}
    m.clock(1.8e9 + 30.0 + 700.0, 700.0)
    assert 'monitor.clock' not in {a.id for a in m.alarms()}
    m.clock(1000.0, 701.0)
    assert 'never been set' in next(a.text for a in m.alarms() if a.id == 'monitor.clock')


@pytest.mark.parametrize(('changes', 'text'), [
    ({'nonsense': {}}, 'unknown monitor'), ({'clock': 3}, 'not a mapping'), ({'clock': {'unit': 's'}}, 'unknown key'),
    ({'clock': {'delay': -1}}, 'at least 0'), ({'clock': {'delay': nan}}, 'a number'), ({'clock': {'delay': True}}, 'number'),  # noqa: E501
    ({'clock': {'severity': 'grave'}}, 'severity'), ({'clock': {'enabled': 1}}, 'true or false'),
])
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        settings_from(changes)


def test_a_monitor_that_is_off_says_nothing() -> None:
    assert watch(61.0, changes={'cell_imbalance': {'enabled': False}}, cell_voltage_max=9.0)[1] == set()


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(allow_infinity=True, allow_nan=True)), max_size=40))
def test_no_check_is_active_sooner_than_its_delay(rows: list[tuple[float, float]]) -> None:
    check, now, beyond = Check(S), 0.0, None
    for dt, value in rows:
        now += dt
        beyond = (now if beyond is None else beyond) if value > S.threshold else None
        was = check.active
        if check.tick(value, now, now) and not was:
            assert beyond is not None and now - beyond >= S.delay


def test_every_monitor_has_words_and_a_range() -> None:
    for name, s in DEFAULTS.items():
        assert s.doc and s.delay >= 0.0 and s.max_age > 0.0 and s.hysteresis >= 0.0, name
