"""Driver nodes of a sonnenBatterie, Victron and MESA-PCS inverters on real DDS: leases, read_only, lost devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest

from bess.msg import BatteryStatus, InverterStatus, PowerSetpoint
from bess_core import qos
from bess_core.clock import Clock
from bess_core.convert import stamp
from bess_core.values import Quality
from bess_drivers.driver_node import node_type
from bess_drivers.http.sonnen import SonnenBattery, SonnenConverter
from bess_drivers.modbus.profile_device import ModbusConverter
from bess_drivers.sunspec.inverter import SunSpecInverter
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sonnen import SonnenSimulator
from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
from bess_sim.devices.victron import VICTRON_LAYOUTS
from bess_sim.plant_api import StaticPlant

OK = int(Quality.OK)


class Site:
    """A simulated device of one kind, and parameters of the node that drives it."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.plant, self.faults = StaticPlant(), DeviceFaults()
        self.params: dict[str, Any] = {'period': 0.05, 'timeout_s': 1.0}
        self.battery: Any = None
        if kind == 'sonnen':
            token = tmp_path / 'token'
            token.write_text('of-the-test')
            token.chmod(0o600)
            box = SonnenSimulator(self.plant, 'u', self.faults, token='of-the-test')
            self.driver, self.battery, self.stop = SonnenConverter, SonnenBattery, box.stop
            self.params |= {'address': box.start(), 'token_file': str(token)}
            return
        layout = {'victron': VICTRON_LAYOUTS['victron_vebus'], 'mesa_pcs': SUNSPEC_LAYOUTS['mesa_pcs']}[kind]
        server = ModbusDeviceServer({1: layout(self.plant, 'u', self.faults)}, self.faults)
        server.start()
        self.driver, self.stop = (ModbusConverter if kind == 'victron' else SunSpecInverter), server.stop
        self.params |= {'address': f'tcp://127.0.0.1:{server.port}',
                        **({'profile': 'victron_vebus'} if kind == 'victron' else {'legacy_control': 'signed_limit'})}

    @property
    def power(self) -> float:
        """W at the simulated converter, + = charging."""
        return self.plant.inverter('u').active_power


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    made: list[Site] = []

    def make(kind: str) -> Site:
        made.append(Site(kind, tmp_path))
        return made[-1]

    yield make
    for s in made:
        s.faults.clear()
        s.stop()


def started(graph: Any, driver: Any, message: Any, name: str, params: dict[str, Any]) -> tuple[Any, list[Any]]:
    """A node that has published a good status, and what it publishes."""
    node = graph.add(node_type(driver), name, params)
    statuses = graph.listen(message, f'{name}/status', qos.MEASUREMENT)
    graph.up(node)
    graph.wait(lambda: statuses and statuses[-1].quality == OK, 'a good status')
    return node, statuses


@pytest.mark.parametrize('kind', ['sonnen', 'victron', 'mesa_pcs'])
def test_a_setpoint_is_followed_until_its_lease_ends(graph: Any, site: Callable[[str], Site], kind: str) -> None:
    s = site(kind)
    _, statuses = started(graph, s.driver, InverterStatus, 'device', {**s.params, 'expiry_ramp': 1e6})
    publisher = graph.publisher(PowerSetpoint, 'device/setpoint', qos.SETPOINT)
    message = PowerSetpoint(power=-1100.0, reactive_power=nan, lease=1.0, source='manager', sequence=1)
    message.header.stamp = stamp(graph.clock, graph.clock.now())
    publisher.publish(message)
    graph.wait(lambda: s.power == pytest.approx(-1100.0), 'the device follows')
    graph.wait(lambda: statuses[-1].active_power == pytest.approx(-1100.0), 'the status shows it')
    graph.wait(lambda: s.power == 0.0, 'zero after the lease')
    assert isinstance(graph.clock, Clock)


@pytest.mark.parametrize('kind', ['sonnen', 'victron', 'mesa_pcs'])
def test_read_only_moves_nothing(graph: Any, site: Callable[[str], Site], kind: str) -> None:
    s = site(kind)
    _, statuses = started(graph, s.driver, InverterStatus, 'device', {**s.params, 'read_only': True})
    publisher = graph.publisher(PowerSetpoint, 'device/setpoint', qos.SETPOINT)
    message = PowerSetpoint(power=900.0, reactive_power=nan, lease=2.0, source='manager', sequence=1)
    message.header.stamp = stamp(graph.clock, graph.clock.now())
    publisher.publish(message)
    seen = len(statuses)
    graph.wait(lambda: len(statuses) > seen + 4, 'further polls')
    assert s.plant.orders == []


def test_a_box_that_is_lost_and_comes_back(graph: Any, site: Callable[[str], Site]) -> None:
    s = site('sonnen')
    node, statuses = started(graph, s.battery, BatteryStatus, 'bms', s.params)
    assert statuses[-1].soc == pytest.approx(0.5)
    s.faults.inject('disconnect')
    graph.wait(lambda: any(node.faults.get(f'comm.{k}') for k in ('disconnected', 'frame', 'timeout')), 'the fault')
    graph.wait(lambda: statuses[-1].quality != OK, 'no longer good')
    s.faults.clear()
    s.plant.pack('u').soc = 0.7
    graph.wait(lambda: statuses[-1].quality == OK and statuses[-1].soc == pytest.approx(0.7), 'good again')
