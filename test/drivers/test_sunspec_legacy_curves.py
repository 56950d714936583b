"""Grid functions of older inverters (126 to 144) and vendors' models, over Modbus TCP, seen by a foreign client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import nan
from typing import Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from bess_core.values import ConverterState, Severity
from bess_drivers.device import BadValue, ReadOnlyError, Refused
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_drivers.sunspec.legacy_functions import CURVES, NAMES, TRIPS, WRITTEN, Slope
from bess_drivers.sunspec.vendor_functions import PRECHARGE_ERRORS, VENDOR_STATES
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecInverterSimulator
from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
from bess_sim.plant_api import InverterSample, StaticPlant

VOLT_VAR = [92.0, 44.0, 98.0, 0.0, 102.0, 0.0, 108.0, -44.0]
WATT_PF = [0.0, 1.0, 50.0, 1.0, 100.0, -0.9]
FREQ_WATT = [50.2, 100.0, 51.5, 48.0]
VOLT_WATT = [106.0, 100.0, 110.0, 0.0]
Start = Callable[..., tuple[Any, ModbusDeviceServer, Callable[..., SunSpecInverter]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """A simulated device: it, its server, and what makes a driver of it."""
    ends: list[Callable[[], None]] = []

    def run(layout: str = '', **attributes: Any) -> Any:
        faults, plant = DeviceFaults(), StaticPlant(inverters={'u': InverterSample()})
        simulator: Any = SUNSPEC_LAYOUTS[layout](plant, 'u', faults) if layout else SunSpecInverterSimulator(
            plant, 'u', models='legacy', curves=True, background=False)
        for name, value in attributes.items():
            setattr(simulator, name, value)
        server = ModbusDeviceServer({1: simulator}, faults)
        server.start()
        ends.append(server.stop)

        def make(read_only: bool = False, **params: Any) -> SunSpecInverter:
            device = SunSpecInverter(
                SunSpecInverterParams(address=f'tcp://127.0.0.1:{server.port}', **params), read_only)
            device.open()
            ends.append(device.close)
            return device

        return simulator, server, make

    yield run
    for end in reversed(ends):
        end()


def foreign(server: ModbusDeviceServer) -> Any:
    client = SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr='127.0.0.1', ipport=server.port, timeout=5)
    client.scan()
    return client


def flat(points: Any) -> list[float]:
    return [v for p in points for v in p]


def test_all_functions_are_shown_and_a_foreign_client_reads_the_same(start: Start) -> None:
    _, server, make = start()
    device, client = make(), foreign(server)
    device.identify()
    while device.read_slow(5.0) == 5.0:
        pass
    assert device.shown == {
        '126 volt-var': 'off: 90:0 91:0',
        '127 frequency-watt slope': 'off: 40 %/Hz above 0.2 Hz, until 0.2 Hz, without hysteresis',
        '128 reactive current': 'on: sag 2 %/%, swell 1.5 %/%, dead band 90 to 110 %',
        '131 watt-power factor': 'off: 0:1 1:1', '132 volt-watt': 'off: 90:100 91:100',
        '133 schedule in the device': 'on: 2 schedules, active 2', '134 frequency-watt': 'off: 49:100 50:100',
        **{f'{m} {NAMES[m]}': f'on: 45:0.16 48:{2 + m / 100:g}' for m in TRIPS}}
    for model, (x, y) in CURVES.items():
        theirs, (enabled, ours) = client.models[model][0], device.read_curve(model)
        assert enabled == bool(theirs.ModEna.value)
        curve = theirs.curve[theirs.ActCrv.value - 1]
        assert len(ours) == curve.ActPt.value
        for k, point in enumerate(ours, 1):
            assert point == pytest.approx([getattr(curve, f'{n}{k}').cvalue for n in (x, y)])
    client.close()


@pytest.mark.parametrize(('model', 'points', 'chosen'), [
    (126, VOLT_VAR, 2), (131, WATT_PF, 1), (132, VOLT_WATT, 2), (134, FREQ_WATT, 2)])
def test_a_curve_is_written_beside_chosen_and_enabled(start: Start, model: int, points: list[float],
                                                      chosen: int) -> None:
    simulator, server, make = start()
    simulator.image.set(model, {'RvrtTms': 3600})
    device = make()
    device.write_curve(model, list(zip(points[::2], points[1::2], strict=True)))
    assert device.read_curve(model) == (True, tuple(
        pytest.approx(p) for p in zip(points[::2], points[1::2], strict=True)))
    client = foreign(server)
    theirs = client.models[model][0]
    assert (theirs.ActCrv.value, theirs.ModEna.value, theirs.RvrtTms.value) == (chosen, 1, 0)
    names = WRITTEN[model]
    curve = theirs.curve[chosen - 1]
    assert [getattr(curve, f'{n}{k}').cvalue for k in range(1, len(points) // 2 + 1)
            for n in names] == pytest.approx(points)
    if model in (126, 132):
        assert curve.DeptRef.value == 2  # what the numbers refer to stays
    client.close()
    before = len(server.writes)
    device.write_curve(model, list(zip(points[::2], points[1::2], strict=True)))  # while it is on
    switch = simulator.image.base + simulator.image.point(model, 'ModEna').index
    switched = [w[3] for w in list(server.writes)[before:] if w[2] == switch]
    assert simulator.image.raw(model, 'ModEna') == 1
    if model == 131:  # one curve only: off while it changes
        assert switched == [(0,), (1,)]
    else:
        assert switched == [] and simulator.image.raw(model, 'ActCrv') == 1  # the other one again


def test_settings_of_the_site_file_are_written_once(start: Start) -> None:
    simulator, server, make = start()
    device = make(volt_var=VOLT_VAR, volt_watt=VOLT_WATT, watt_power_factor=WATT_PF, freq_watt=FREQ_WATT,
                  freq_watt_slope=[40.0, 0.2, 0.05])
    assert device.apply_settings() == ['volt_var', 'volt_watt', 'watt_power_factor', 'freq_watt', 'freq_watt_slope']
    assert device.grid.legacy.slope() == (True, Slope(*map(pytest.approx, (40.0, 0.2, 0.05))))
    assert simulator.image.raw(127, 'HysEna') == 1
    assert flat(device.read_curve(126)[1]) == pytest.approx(VOLT_VAR)
    count = len(server.writes)
    assert device.apply_settings() == [] and len(server.writes) == count  # flash is not written again
    assert device.operate('enable', ['126', 'off'])[0] == '126 volt-var=off: 92:44 98:0 102:0 108:-44'
    assert device.operate('freq_watt_slope', ['50', '0.3', '0.3'])[1].endswith('until 0.3 Hz, without hysteresis')
    assert device.operate('write_curve', ['134', '50.2:100', '52:20'])
    assert device.read_curve(134)[1][1] == pytest.approx((52.0, 20.0))
    device.read(1.0)  # measuring goes on
    device.write_power(500.0, nan, 5.0)
    assert simulator.plant.inverter('u').active_power == pytest.approx(500.0)


def test_what_is_refused(start: Start) -> None:
    simulator, server, make = start()
    device = make()
    device.identify()
    before = len(server.writes)
    pairs = list(zip(VOLT_VAR[::2], VOLT_VAR[1::2], strict=True))
    for model, points in ((126, pairs[:1]), (126, pairs * 2), (126, pairs[::-1]), (129, pairs), (133, pairs),
                          (127, pairs), (126, [(90.0, 0.0), (nan, 0.0)]), (126, [(90.0, 0.0), (9000.0, 0.0)]),
                          (705, pairs)):
        with pytest.raises(BadValue):
            device.write_curve(model, points)
    for operation, arguments in (('enable', ['129', 'off']), ('enable', ['133', 'on']),
                                 ('freq_watt_slope', ['-1', '0.2', '0.2']), ('freq_watt_slope', ['40', '0.1', '0.2']),
                                 ('freq_watt_slope', ['nan', '0.2', '0.2']), ('volt_var_offset', ['1', '1', '5'])):
        with pytest.raises(BadValue):
            device.operate(operation, arguments)
    with pytest.raises(BadValue, match='no model 712'):
        make(watt_var=VOLT_WATT).apply_settings()
    for run in (lambda d: d.apply_settings(), lambda d: d.write_curve(126, pairs)):
        with pytest.raises(ReadOnlyError):
            run(make(read_only=True, volt_var=VOLT_VAR))
    simulator.image.set(126, {'curve[0].ReadOnly': 1, 'curve[1].ReadOnly': 1})
    with pytest.raises(BadValue, match='no curve that can be written'):
        device.write_curve(126, pairs)
    assert len(server.writes) == before
    with pytest.raises(Refused, match='does not take the curve'):
        device.write_curve(132, [(100.0, 100.0), (110.0, -150.0)])  # silently held at -100 %
    assert simulator.image.raw(132, 'ModEna') == 0


def test_damaged_settings_are_shown_and_harm_nothing(start: Start) -> None:
    simulator, _, make = start()
    simulator.image.set(126, {'ActCrv': 9})
    simulator.image.set(131, {'NPt': 200})
    simulator.image.set(132, {'curve[0].ActPt': 17})
    simulator.image.scale(134, Hz_SF=99)
    simulator.image.set(129, {'ActCrv': 0})
    device = make()
    while device.read_slow(1.0) == 1.0:
        pass
    for model in (126, 131, 132, 134):
        assert device.shown[f'{model} {NAMES[model]}'].startswith('not readable: '), model
    assert device.shown['129 low voltage must trip'] == 'on: none'
    device.read(2.0)


# --- vendors --------------------------------------------------------------------------------------


def test_kaco_is_told_the_limits_of_the_battery_before_it_connects(start: Start) -> None:
    registers, server, make = start('kaco_gridsave', limits_needed=True)
    device = make()
    reading = device.read(0.0)
    assert [a.id for a in reading.alarms] == ['kaco.precharge_battery_limits_never_set']
    device.write_power(1000.0, nan, 5.0)
    assert registers.state == 8 and registers.plant.inverters['u'].active_power == 0.0  # it does not connect
    limits = {'battery_min_voltage': 44.8, 'battery_max_voltage': 56.8, 'battery_charge_current': 50.0,
              'battery_discharge_current': 80.5}
    before = len(server.writes)
    too_much = make(**{**limits, 'battery_charge_current': 900.0})
    with pytest.raises(BadValue, match='does not fit'):
        too_much.write_power(1000.0, nan, 5.0)
    assert len(server.writes) == before
    device = make(**limits)
    device.write_power(1000.0, nan, 5.0)
    assert [registers.word(4, n) for n in (8, 9, 10, 11, 12, 13, 15)] == [448, 8050, 0, 568, 5000, 0, 1]
    reading = device.read(1.0)
    assert reading.state is ConverterState.RUNNING and reading.alarms == () and reading.active_power == 1000.0
    while device.read_slow(1.0) == 1.0:
        pass
    assert device.shown == {
        '64202 battery limits': 'active: discharging to 44.8 V with 80.5 A, charging to 56.8 V with 50 A; ends below 0 '
                                'and 0 A',
        '64203 battery information': 'battery 3: SoC 50.5 %, SoH 98 %, -1.5 degC',
        '64204 volt-var offset': 'off: 0 % of voltage, 0 % of reactive power, for 0 s'}
    assert device.operate('volt_var_offset', ['-1.5', '12.3', '60'])[2].endswith(
        '=on: -1.5 % of voltage, 12.3 % of reactive power, for 60 s')
    assert (registers.word(6, 4), registers.word(6, 5), registers.word(6, 6)) == (0x10000 - 150, 123, 60)
    with pytest.raises(BadValue, match='ends by itself'):
        device.operate('volt_var_offset', ['1', '1', '0'])
    assert '=off: ' in device.operate('volt_var_offset', [])[2]


def test_limits_of_the_battery_need_a_model_that_takes_them(start: Start) -> None:
    _, server, make = start('mesa_pcs')
    with pytest.raises(BadValue, match='64202'):
        make(legacy_control='signed_limit', battery_min_voltage=44.0).write_power(100.0, nan, 5.0)
    assert not server.writes


def test_each_vendor_state_of_kaco_is_a_named_fault(start: Start) -> None:
    registers, _, make = start('kaco_gridsave')
    device = make()
    for code, (name, severity) in VENDOR_STATES.items():
        registers.vendor_state = code
        (alarm,) = device.read(0.0).alarms
        assert (alarm.id, alarm.severity) == (f'kaco.{name}', severity)
    for code in (0, 1, 8, 220, 0xFFFF):  # what it is doing, and nothing
        registers.vendor_state = code
        assert device.read(1.0).alarms == ()


def test_each_error_of_the_precharge_unit_is_a_named_fault(start: Start) -> None:
    registers, _, make = start('kaco_gridsave')
    device = make()
    for code in (*PRECHARGE_ERRORS, 99):
        registers.precharge_error = code
        (alarm,) = device.read(0.0).alarms
        assert alarm.id == f'kaco.precharge_{PRECHARGE_ERRORS.get(code, "code_99")}'
        assert alarm.severity is Severity.ERROR
    registers.precharge_error = 0xFFFF
    assert device.read(1.0).alarms == ()


def test_a_parameter_of_refu_is_read(start: Start) -> None:
    _, server, make = start('mesa_pcs')
    device = make()
    assert device.operate('vendor_parameter', [str(0x10001), '2', 'F32']) == ['vendor_parameter=-40.5']
    assert device.operate('vendor_parameter', ['7', '0', 'U16']) == ['vendor_parameter=12']
    assert device.operate('vendor_parameter', ['8', '0', 'S32']) == ['vendor_parameter=nan']  # there is none
    before = len(server.writes)
    for arguments in (['7', '0', 'F64'], ['7', '0'], ['x', '0', 'U16']):
        with pytest.raises(Refused):
            device.operate('vendor_parameter', arguments)
    with pytest.raises(BadValue):
        device.operate('vendor_parameter', ['7', '-1', 'U16'])
    with pytest.raises(ReadOnlyError):
        make(read_only=True).operate('vendor_parameter', ['7', '0', 'U16'])
    assert len(server.writes) == before
    _, _, other = start('kaco_gridsave')
    with pytest.raises(BadValue, match='no model 64040'):
        other().operate('vendor_parameter', ['7', '0', 'U16'])
