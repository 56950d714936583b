"""Backup with a converter that forms the grid: mode, driver, a simulated device over Modbus; restarts."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest
from modes_story import meter, view
from std_srvs.srv import SetBool

from bess.msg import BatteryStatus, EmergencyStop, InverterStatus, MeterStatus
from bess_control.backup import AFTER_RESTART
from bess_control.mode_node import node_type as mode_type
from bess_control.modes.backup import Backup
from bess_core import qos
from bess_core.convert import battery_to_msg, meter_to_msg
from bess_core.params import ParameterError, build
from bess_core.values import BatteryReading, ConverterReading, MeterReading, Quality
from bess_drivers.driver_node import node_type
from bess_drivers.modbus.profile_device import ModbusConverter
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.plant_api import StaticPlant


class House:
    """A meter at the connection, a battery, and a TRUMPF converter on TCP; all as their drivers show them."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.plant, self.volts, self.told = graph, StaticPlant(), 230.0, 0
        self.device: Any = LAYOUTS['trumpf_ac3025'](self.plant, 'u', DeviceFaults())
        self.server = ModbusDeviceServer({1: self.device}, DeviceFaults())
        self.server.start()
        self.converter = graph.add(node_type(ModbusConverter), 'conv', {
            'address': f'tcp://127.0.0.1:{self.server.port}', 'profile': 'trumpf_ac3025', 'period': 0.05})
        self.status = graph.listen(InverterStatus, 'conv/status', qos.MEASUREMENT)
        self._meter = graph.peer.create_publisher(MeterStatus, 'grid/status', qos.MEASUREMENT)
        self._battery = graph.peer.create_publisher(BatteryStatus, 'bat/status', qos.MEASUREMENT)
        graph.ticker.every(0.05, lambda _: self._tell())

    @property
    def grid_type(self) -> int:
        return int(self.device.image.number(3, 4009, 'u16'))

    def _tell(self) -> None:
        now, clock = self.graph.clock.now(), self.graph.clock
        self.told += 1
        self._meter.publish(meter_to_msg(MeterReading(
            time=now, sequence=self.told, quality=Quality.OK, voltage=(self.volts,) * 3, active_power=0.0,
            frequency=50.0 if self.volts else nan), clock))
        self._battery.publish(battery_to_msg(BatteryReading(
            time=now, newest=now, quality=Quality.OK, soc=0.8, power=0.0, voltage=50.0, max_discharge_power=3000.0,
            max_charge_power=3000.0), clock))

    def backup(self, **more: Any) -> Any:
        return self.graph.add(mode_type(Backup), 'backup', {
            'battery': 'bat', 'meter': 'grid', 'converter': 'conv', 'form_converter': True, 'period': 0.05,
            'switch_timeout_s': 0.3, 'observation_s': 0.5, 'ramp_s': 0.3, **more})


@pytest.fixture
def house(graph: Any) -> Any:
    house = House(graph)
    yield house
    house.server.stop()


def test_an_outage_makes_the_converter_form_the_grid_and_its_end_follow_it(house: House, graph: Any) -> None:
    mode = house.backup()
    graph.up(house.converter, mode)
    graph.wait(lambda: house.status and not house.status[-1].grid_forming and mode._mode.state == 'on_grid', 'grid')
    graph.settle(0.3)
    assert house.grid_type == 0
    house.volts = 0.0
    graph.wait(lambda: mode._mode.state == 'island', 'island')
    assert house.grid_type == 2 and house.status[-1].grid_forming, 'measured, not assumed'
    house.volts = 230.0
    graph.wait(lambda: mode._mode.state == 'on_grid', 'back')
    graph.wait(lambda: house.grid_type == 0 and not house.status[-1].grid_forming, 'following')


def test_a_converter_that_is_not_idle_refuses_and_is_asked_again(house: House, graph: Any) -> None:
    mode = house.backup(form_timeout_s=30.0)
    graph.up(house.converter, mode)
    graph.wait(lambda: mode._mode.state == 'on_grid' and house.status, 'grid')
    house.plant.inverter('u').active_power = 700.0
    house.volts = 0.0
    graph.wait(lambda: mode.faults.get('mode.grid_forming') is not None, 'refused')
    assert 'refused' in mode.faults.get('mode.grid_forming').text and house.grid_type == 0
    house.plant.inverter('u').active_power = 0.0
    graph.wait(lambda: mode._mode.state == 'island' and house.grid_type == 2, 'asked again')
    graph.wait(lambda: mode.faults.get('mode.grid_forming') is None, 'fault gone')


def test_the_island_outlives_the_program_and_is_taken_up_again(house: House, graph: Any) -> None:
    mode = house.backup(switch_output='io/switch')
    graph.up(house.converter, mode)
    graph.wait(lambda: mode._mode.state == 'on_grid' and house.status, 'grid')
    house.volts = 0.0
    graph.wait(lambda: mode._mode.state == 'island', 'island')
    graph.remove(mode)
    house.converter.trigger_deactivate()
    graph.settle(0.3)
    assert house.grid_type == 2, 'nobody switches the lights off'
    house.converter.trigger_activate()
    again = house.backup(switch_output='io/switch')
    graph.up(again)
    graph.wait(lambda: again._mode.state == 'island', 'taken up')
    assert house.grid_type == 2 and again._mode.outputs['io/switch'] is False


def test_the_emergency_stop_ends_an_island_and_none_begins(house: House, graph: Any) -> None:
    graph.up(house.converter)
    graph.wait(lambda: house.status, 'read')
    order = lambda on: graph.call(SetBool, 'conv/set_grid_forming', SetBool.Request(data=on))  # noqa: E731
    assert order(True).success
    graph.wait(lambda: house.status[-1].grid_forming, 'forms')
    stop = graph.publisher(EmergencyStop, 'emergency_stop', qos.STATE)
    stop.publish(EmergencyStop(active=True, cause='smoke'))
    graph.wait(lambda: house.grid_type == 0, 'ended')
    answer = order(True)
    assert (answer.success, answer.message) == (False, 'emergency stop is in force')
    house.converter.trigger_deactivate()
    assert order(False).success, 'following is always possible'


def test_a_converter_without_grid_forming_is_told_as_such(house: House, graph: Any) -> None:
    other: Any = LAYOUTS['trumpf_dc1008'](house.plant, 'u', DeviceFaults())
    server = ModbusDeviceServer({1: other}, DeviceFaults())
    server.start()
    node = graph.add(node_type(ModbusConverter), 'dc', {
        'address': f'tcp://127.0.0.1:{server.port}', 'profile': 'trumpf_dc1008', 'period': 0.05})
    graph.up(node)
    answer = graph.call(SetBool, 'dc/set_grid_forming', SetBool.Request(data=True))
    assert not answer.success and 'has no order for grid forming' in answer.message
    server.stop()


@pytest.mark.parametrize('state', sorted(AFTER_RESTART))
@pytest.mark.parametrize('grid', [True, False, None])
def test_killed_in_each_state(state: str, grid: bool | None) -> None:
    """A new process never closes the switch before the grid was seen for the observation time, and never ends stuck."""
    made = build(Backup.Params, {'converter': 'c', 'form_converter': True, 'switch_output': 'io/s', 'loads': ['io/a'],
                                 'observation_s': 5.0, 'ramp_s': 5.0, 'switch_timeout_s': 0.5, 'form_timeout_s': 2.0})
    mode = Backup(made, 'm', 'b', 'grid')
    mode.restore({'last_test': None, 'last_result': '', 'state': state})
    seen_states, forming = [], state in ('island', 'observing', 'reconnecting')
    for i in range(300):
        now = 0.1 * (i + 1)
        seen = view(now)
        seen.battery.soc = 0.8
        if grid is not None:
            volts = 230.0 if grid else 0.0
            seen.meter = meter(0.0, now, voltage=(volts,) * 3, frequency=50.0 if grid else nan)
        seen.converter = ConverterReading(time=now, quality=Quality.OK, grid_forming=forming, voltage=(230.0,) * 3)
        mode.decide(seen)
        seen_states.append(mode.state)
        closed = mode.outputs['io/s']
        if state not in ('ramping', 'on_grid') and now < 5.0:
            assert not closed, (state, mode.state, now)
        if grid is not True and state != 'ramping':
            assert not closed, (state, mode.state, now)
        forming = bool(mode.form_grid)
    if grid:
        assert seen_states[-1] == 'on_grid', seen_states[-1]
    elif state not in ('dark', 'failed', 'ramping'):
        assert seen_states[-1] == 'island', seen_states[-1]
    assert Backup(made, 'm', 'b', 'grid').save()['state'] == 'on_grid'


def test_settings_that_make_no_sense() -> None:
    for values in ({'form_converter': True}, {'form_converter': True, 'converter': 'c', 'form_output': 'io/f'}):
        with pytest.raises(ParameterError, match='form_converter'):
            build(Backup.Params, values)
    with pytest.raises(ValueError, match='no state'):
        Backup(build(Backup.Params, {}), 'm', 'b', 'grid').restore(
            {'last_test': None, 'last_result': '', 'state': 'sideways'})
