"""Grid functions of a DER (703, 705 to 712) over real Modbus TCP, seen by a foreign client and through the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from bess.msg import InverterStatus
from bess.srv import DeviceOperation
from bess_core import qos
from bess_core.values import ConverterState
from bess_drivers.device import BadValue, ReadOnlyError, Refused
from bess_drivers.driver_node import node_type
from bess_drivers.sunspec.grid_functions import Droop, EnterService
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecInverterSimulator
from bess_sim.plant_api import StaticPlant

VOLT_VAR = [92.0, 44.0, 98.0, 0.0, 102.0, 0.0, 108.0, -44.0]  # IEEE 1547-2018, category B
SERVICE = [90.0, 106.0, 49.0, 50.2, 60.0, 120.0]
DROOP = [0.05, 0.04, 0.03, 0.06, 2.0]
Make = Callable[..., SunSpecInverter]


@pytest.fixture
def der() -> Iterator[tuple[Any, ModbusDeviceServer]]:
    simulator = SunSpecInverterSimulator(StaticPlant(), 'u', curves=True, background=False)
    server = ModbusDeviceServer({1: simulator}, DeviceFaults())
    server.start()
    yield simulator, server
    server.stop()


@pytest.fixture
def make(der: tuple[Any, ModbusDeviceServer]) -> Iterator[Make]:
    made = []

    def build(read_only: bool = False, **params: Any) -> SunSpecInverter:
        device = SunSpecInverter(
            SunSpecInverterParams(address=f'tcp://127.0.0.1:{der[1].port}', **params), read_only)
        device.open()
        made.append(device)
        return device

    yield build
    for device in made:
        device.close()


def foreign(server: ModbusDeviceServer) -> Any:
    client = SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr='127.0.0.1', ipport=server.port, timeout=5)
    client.scan()
    return client


def test_all_functions_are_read_in_turn_and_shown(make: Make) -> None:
    device = make()
    device.identify()
    assert [device.read_slow(5.0) for _ in range(9)] == [5.0] * 8 + [65.0]
    assert device.shown == {
        '703 enter service': 'permitted, 91.7 to 105 %, 49.5 to 50.1 Hz, after 300 s, ramp 300 s',
        '705 volt-var': 'off: 90:0 95:0', '706 volt-watt': 'off: 90:0 95:0',
        '707 low voltage trip': 'on: must trip 50:0.16 88:2; may trip none; cease 45:0.08',
        '708 high voltage trip': 'on: must trip 120:0.16 110:2; may trip none; cease none',
        '709 low frequency trip': 'on: must trip 46.5:0.16 48.5:300; may trip none; cease none',
        '710 high frequency trip': 'on: must trip 52:0.16 51.2:300; may trip none; cease none',
        '711 frequency droop': 'off: dead band 0.036 / 0.036 Hz, k 0.05 / 0.05, 5 s',
        '712 watt-var': 'off: 90:0 95:0'}
    device.read(7.0)
    ages = device.ages(9.0)
    assert {m for m, age in ages.items() if age == 4.0} >= {'705', '707', '711', '712'} and ages['701'] == 2.0
    assert ages['703'] == 2.0  # with the measurements


def test_a_foreign_client_reads_the_same_trips_and_droop(der: tuple[Any, ModbusDeviceServer], make: Make) -> None:
    device, client = make(), foreign(der[1])
    device.identify()
    for number in (707, 708, 709, 710):
        ours, model = device.grid.trip(number), client.models[number][0]
        assert ours.enabled == (model.Ena.value == 1)
        for points, group in ((ours.must_trip, 'MustTrip'), (ours.may_trip, 'MayTrip'), (ours.cease, 'MomCess')):
            theirs = getattr(model.Crv[0], group)
            name = 'V' if number < 709 else 'Hz'
            assert len(points) == theirs.ActPt.value
            assert points == tuple((pytest.approx(getattr(p, name).cvalue), pytest.approx(p.Tms.cvalue))
                                   for p in theirs.Pt[:theirs.ActPt.value])
    device.operate('freq_droop', list(map(str, DROOP)))
    model = client.models[711][0]
    model.read()
    assert model.Ena.value == 1
    assert [getattr(model.Ctl[0], n).cvalue for n in ('DbOf', 'DbUf', 'KOf', 'KUf', 'RspTms')] == pytest.approx(DROOP)
    client.close()


def test_settings_of_the_site_file_are_written_once(der: tuple[Any, ModbusDeviceServer], make: Make) -> None:
    simulator, server = der
    device = make(volt_var=VOLT_VAR, volt_watt=[106.0, 100.0, 110.0, 0.0], watt_var=[20.0, 0.0, 100.0, -44.0],
                  freq_droop=DROOP, enter_service=SERVICE, permit_service='off')
    assert device.apply_settings() == ['volt_var', 'volt_watt', 'watt_var', 'freq_droop', 'enter_service',
                                       'permit_service']
    assert device.grid.enter_service() == (False, EnterService(*map(pytest.approx, SERVICE)))
    assert device.grid.droop() == (True, Droop(*map(pytest.approx, DROOP)))
    for model, curve in ((705, VOLT_VAR), (706, [106.0, 100.0, 110.0, 0.0])):
        enabled, points = device.read_curve(model)
        assert enabled and [v for p in points for v in p] == pytest.approx(curve)
    count = len(server.writes)
    assert device.apply_settings() == [] and len(server.writes) == count  # flash is not written again
    reading = device.read(1.0)
    assert reading.state is ConverterState.OFF
    assert 'inverter: not permitted to enter service (703 ES)' in reading.limit_reasons
    device.write_power(500.0, float('nan'), 5.0)
    assert simulator.plant.inverter('u').active_power == 0.0  # off the grid it follows nothing
    device.operate('permit_service', ['on'])
    assert simulator.plant.inverter('u').active_power == 500.0 and device.read(2.0).state is ConverterState.RUNNING
    simulator.image.set(703, {'ESDlyRemTms': 42})
    assert 'inverter: enters service in 42 s' in device.read(3.0).limit_reasons


def test_what_is_written_does_not_revert_by_itself(der: tuple[Any, ModbusDeviceServer], make: Make) -> None:
    simulator, _ = der
    for model in (705, 706, 711, 712):
        simulator.image.set(model, {'RvrtTms': 3600})
    device = make(volt_var=VOLT_VAR, volt_watt=VOLT_VAR, watt_var=VOLT_VAR, freq_droop=DROOP)
    assert device.apply_settings() == ['volt_var', 'volt_watt', 'watt_var', 'freq_droop']
    assert [simulator.image.raw(model, 'RvrtTms') for model in (705, 706, 711, 712)] == [0] * 4


def test_what_is_refused(der: tuple[Any, ModbusDeviceServer], make: Make) -> None:
    simulator, server = der
    device, before = make(), len(server.writes)
    for operation, arguments in (('format', []), ('permit_service', ['perhaps']), ('enter_service', ['1', '2']),
                                 ('freq_droop', ['a', *'1234']), ('write_curve', ['705', '90;1', '95:2'])):
        with pytest.raises(Refused):
            device.operate(operation, arguments)
    for operation, arguments in (('enable', ['707', 'off']), ('write_curve', ['707', '90:1', '95:2']),
                                 ('enter_service', ['106', '90', '49', '50', '1', '1']),
                                 ('freq_droop', ['-1', *'1111']), ('freq_droop', ['nan', *'1111'])):
        with pytest.raises(BadValue):
            device.operate(operation, arguments)
    for run in (lambda d: d.apply_settings(), lambda d: d.operate('permit_service', ['off'])):
        with pytest.raises(ReadOnlyError):
            run(make(read_only=True, permit_service='off'))
    assert len(server.writes) == before
    with pytest.raises(Refused, match='does not adopt'):
        device.operate('freq_droop', ['0.03', '0.03', '0', '0', '1'])
    simulator.image.set(711, {'Ctl[1].ReadOnly': 1})
    with pytest.raises(BadValue, match='no control that can be written'):
        device.operate('freq_droop', list(map(str, DROOP)))
    device.operate('enable', ['711', 'on'])
    assert simulator.image.raw(711, 'Ena') == 1


@pytest.mark.parametrize(('params', 'text'), [
    ({'volt_var': [1.0, 2.0, 3.0]}, 'pairs'), ({'watt_var': [1.0, 2.0]}, 'at least two points'),
    ({'freq_droop': [1.0]}, 'must be 5'), ({'enter_service': [1.0] * 5}, 'must be 6'),
    ({'permit_service': 'maybe'}, 'must be one of')])
def test_bad_settings_are_named(params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SunSpecInverterParams(**params)


def test_damaged_settings_are_shown_and_harm_nothing(der: tuple[Any, ModbusDeviceServer], make: Make) -> None:
    simulator, _ = der
    simulator.image.set(707, {'NCrvSet': 200})
    simulator.image.scale(705, V_SF=99)
    simulator.image.set(711, {'NCtl': 0})
    device = make()
    for _ in range(9):
        device.read_slow(1.0)
    for name in ('707 low voltage trip', '705 volt-var', '711 frequency droop'):
        assert device.shown[name].startswith('not readable: ')
    device.read(2.0)


def test_the_node_writes_shows_and_operates(graph: Any, der: tuple[Any, ModbusDeviceServer]) -> None:
    _, server = der
    node = graph.add(node_type(SunSpecInverter), 'inverter', {
        'address': f'tcp://127.0.0.1:{server.port}', 'period': 0.1, 'volt_var': VOLT_VAR})
    graph.up(node)
    seen = graph.listen(InverterStatus, 'inverter/status', qos.MEASUREMENT)
    graph.wait(lambda: seen and node.diagnostics().get('705 volt-var', '').startswith('on: 92:44'), 'written and shown')
    assert node.faults.get('converter.settings') is None and 'age 707 [s]' in node.diagnostics()
    answer = graph.call(DeviceOperation, 'inverter/operate', DeviceOperation.Request(
        operation='permit_service', arguments=['off']))
    assert answer.accepted and any(v.startswith('703 enter service=not permitted') for v in answer.values)
    answer = graph.call(DeviceOperation, 'inverter/operate', DeviceOperation.Request(operation='nonsense'))
    assert not answer.accepted and 'there is: ' in answer.message
