from __future__ import annotations

from dataclasses import replace
from math import isnan, nan

import pytest
from counting import calls

from bess_core.values import (
    Alarm,
    BatteryReading,
    Contactor,
    ConverterReading,
    ConverterState,
    Mode,
    Quality,
    Severity,
)
from bess_virtual.unit import (
    Ages,
    UnitParams,
    ac_to_dc_power,
    dc_current_to_ac_power,
    dc_to_ac_power,
    merge,
)

NOW = 100.0
PARAMS = UnitParams(charge_efficiency=0.8, discharge_efficiency=0.9)
BMS = BatteryReading(
    time=99.0, newest=99.5, quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED,
    voltage=50.0, current=20.0, charge=60.0, charge_full=100.0, energy=3000.0, energy_full=5000.0,
    max_charge_current=40.0, max_discharge_current=80.0, soc=0.6, soh=0.97, temperature=25.0,
    cell_voltage_min=3.1, cell_voltage_max=3.3, cells=(3.1, 3.3), limit_reasons=['cell 7 at 3.42 V'])
CONV = ConverterReading(
    time=99.8, quality=Quality.OK, state=ConverterState.RUNNING, active_power=1240.0, dc_voltage=49.0,
    dc_current=19.0, dc_power=1000.0, max_charge_power=3000.0, max_discharge_power=3000.0,
    setpoint=1250.0, setpoint_source='power_manager', energy_import=10.0, energy_export=7.0)


def unit(bms=None, conv=None, params=PARAMS):
    return merge(replace(BMS, **(bms or {})), replace(CONV, **(conv or {})), NOW, Ages(), params)


def test_conversion_by_hand():
    assert dc_current_to_ac_power(10, 50, 0.8) == pytest.approx(625)
    assert dc_current_to_ac_power(-10, 50, 0.8) == pytest.approx(-400)
    assert dc_to_ac_power(0, 1) == 0
    for power in (-700.0, 0.0, 700.0):
        assert ac_to_dc_power(dc_to_ac_power(power, 0.93), 0.93) == pytest.approx(power)
    for bad in (0.0, -0.5, 1.01, nan):
        with pytest.raises(ValueError, match='efficiency'):
            dc_current_to_ac_power(1, 1, bad)
        with pytest.raises(ValueError, match='efficiency'):
            UnitParams(charge_efficiency=bad)
    with pytest.raises(ValueError, match='max_charge_power'):
        UnitParams(max_charge_power=-1)


def test_tightest_limit_of_both_with_its_name():
    u = unit()
    assert u.max_charge_power == pytest.approx(40 * 50 / 0.8)  # 2500 W by the BMS
    assert u.max_discharge_power == 3000  # the converter; the BMS would allow 3600 W
    assert u.limit_reasons == ['charge 2500 W: bms', 'discharge 3000 W: converter',
                               'bms: cell 7 at 3.42 V']
    assert u.max_charge_current == pytest.approx(40)
    assert u.max_discharge_current == pytest.approx(3000 / 0.9 / 50)
    u = unit(params=UnitParams(max_discharge_power=800, max_charge_power=0))
    assert (u.max_charge_power, u.max_discharge_power) == (0, 800)
    assert u.limit_reasons[:2] == ['charge 0 W: settings', 'discharge 800 W: settings']
    u = unit({'max_charge_power': 1000.0}, {'max_apparent_power': 900.0})
    assert u.max_discharge_power == 900
    assert u.max_charge_power == 900
    u = unit({'max_charge_power': 600.0})
    assert u.max_charge_power == pytest.approx(750)  # DC power limit of the BMS, seen from the AC side


def test_limits_that_nobody_knows_are_unknown():
    u = unit({'max_charge_current': nan}, {'max_charge_power': nan})
    assert isnan(u.max_charge_power) and 'charge: no limit known' in u.limit_reasons
    assert u.max_discharge_power == 3000


def test_values_come_from_the_side_that_measures_them():
    u = unit()
    assert (u.power, u.voltage, u.current) == (1240, 50, 20)
    assert (u.soc, u.soh, u.energy, u.charge, u.cells) == (0.6, 0.97, 3000, 60, (3.1, 3.3))
    assert (u.energy_charged, u.energy_discharged) == (10, 7)
    assert (u.setpoint, u.setpoint_source) == (1250, 'power_manager')
    assert (u.time, u.newest, u.quality, u.mode) == (99.0, 99.8, Quality.OK, Mode.CHARGING)
    assert (u.members, u.members_usable) == (1, 1)
    u = unit({'voltage': nan, 'current': nan})
    assert (u.voltage, u.current) == (49, 19)
    assert unit(conv={'active_power': nan}).power == pytest.approx(1250)
    assert unit(conv={'active_power': nan, 'dc_power': nan}).power == pytest.approx(1250)
    assert unit({'current': -20.0}, {'active_power': nan, 'dc_power': nan}).power == pytest.approx(-900)


@pytest.mark.parametrize(('power', 'mode'), [
    (15.0, Mode.IDLE), (-15.0, Mode.IDLE), (-30.0, Mode.DISCHARGING), (30.0, Mode.CHARGING)])
def test_mode_by_power(power, mode):
    assert unit(conv={'active_power': power}).mode is mode


@pytest.mark.parametrize(('bms', 'conv', 'reason', 'quality', 'mode'), [
    ({'time': 50.0}, {}, 'bms: no valid data', Quality.INVALID, Mode.CHARGING),
    ({'quality': Quality.INVALID}, {}, 'bms: no valid data', Quality.INVALID, Mode.CHARGING),
    ({}, {'time': 50.0}, 'converter: no valid data', Quality.INVALID, Mode.CHARGING),
    ({'mode': Mode.FAULT}, {}, 'bms: fault', Quality.OK, Mode.FAULT),
    ({}, {'state': ConverterState.FAULT}, 'converter: fault', Quality.OK, Mode.FAULT),
    ({}, {'state': ConverterState.OFF}, 'converter: off', Quality.OK, Mode.OFF),
    ({'contactor': Contactor.OPEN}, {}, 'bms: contactor open', Quality.OK, Mode.OFF),
])
def test_what_stops_a_unit(bms, conv, reason, quality, mode):
    u = unit(bms, conv)
    assert u.max_charge_power == u.max_discharge_power == 0
    assert u.max_charge_current == u.max_discharge_current == 0
    assert u.limit_reasons[0] == reason
    assert (u.quality, u.mode, u.members_usable) == (quality, mode, 0)


def test_one_way_contactor():
    u = unit({'contactor': Contactor.CHARGE_ONLY})
    assert (u.max_charge_power, u.max_discharge_power) == (2500, 0)
    assert 'discharge blocked: contactor' in u.limit_reasons
    u = unit({'contactor': Contactor.DISCHARGE_ONLY})
    assert (u.max_charge_power, u.max_discharge_power) == (0, 3000)


def test_stale_side_makes_the_unit_stale_and_is_named():
    u = unit({'time': 96.0})
    assert (u.quality, u.time) == (Quality.STALE, 96.0)
    assert 'bms: stale, 4.0 s old' in u.limit_reasons
    u = unit(conv={'quality': Quality.STALE})
    assert u.quality is Quality.STALE and u.members_usable == 0


def test_alarms_of_both():
    a, b = (Alarm(name, Severity.ERROR, name) for name in ('a', 'b'))
    assert unit({'alarms': (a,)}, {'alarms': (b,)}).alarms == (a, b)


def test_cost():
    """Called for every reading: few steps."""
    assert calls(lambda: merge(BMS, CONV, NOW, Ages(), PARAMS)) < 50
