"""`bess probe` against simulated devices: names them, prints a site file that loads, and writes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from can_bus import can_address, can_port, wire  # noqa: F401 - fixtures
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.cli.main import main
from bess_core.cli.probe import units
from bess_core.site import load
from bess_core.values import Identity
from bess_drivers.device import Disconnected
from bess_drivers.probe import Found, fragment, probe
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.can_bms import CanBmsSimulator
from bess_sim.devices.carlo_gavazzi import CarloGavazziSimulator
from bess_sim.devices.jbd import JbdSimulator
from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
from bess_sim.devices.p1 import P1Simulator
from bess_sim.devices.register_image import RegisterImage
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.devices.serial_bms import KINDS
from bess_sim.devices.serial_line import SerialLine
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.devices.sunspec_meter import SunSpecMeterSimulator
from bess_sim.plant_api import StaticPlant


class Spy:
    """A register map that notes every request of another map."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.functions = inner, []  # type: tuple[Any, list[int]]

    def read(self, function: int, address: int, count: int) -> list[int]:
        self.functions.append(function)
        return self.inner.read(function, address, count)

    def write(self, address: int, values: list[int]) -> None:
        self.functions.append(16)
        self.inner.write(address, values)

    def write_coils(self, address: int, values: list[int]) -> None:
        self.functions.append(15)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, list[Spy]]]]:
    servers: list[ModbusDeviceServer] = []

    def start(**units: Any) -> tuple[str, list[Spy]]:
        spies = {int(k[1:]): Spy(v) for k, v in units.items()}
        server = ModbusDeviceServer(spies, DeviceFaults())
        server.start()
        servers.append(server)
        return f'tcp://127.0.0.1:{server.port}', list(spies.values())

    yield start
    for server in servers:
        server.stop()


def loads(found: list[Found], folder: Path) -> list[Any]:
    """The nodes of the printed fragment, through the real site loader."""
    path = folder / 'site.yaml'
    path.write_text('site: {name: home}\n' + fragment(found))
    return list(load(path).nodes)


def test_a_gateway_with_several_devices(serve: Callable[..., Any], tmp_path: Path) -> None:
    plant = StaticPlant()
    address, spies = serve(
        u1=LAYOUTS['eastron_sdm630'](plant, '', DeviceFaults()),
        u2=CarloGavazziSimulator(plant, DeviceFaults(), 'em540'),
        u3=SunSpecBatterySimulator(plant, 'u'), u4=SunSpecInverterSimulator(plant, 'u'),
        u5=SunSpecMeterSimulator(plant), u6=LAYOUTS['rd6006'](StaticPlant(), 'u', DeviceFaults()),
        u7=RegisterImage())
    found = probe(address, range(1, 9))
    assert [(f.type, f.name, f.settings['unit']) for f in found] == [
        ('modbus_meter', 'meter', 1), ('carlo_gavazzi', 'meter_2', 2), ('sunspec_battery', 'battery', 3),
        ('sunspec_inverter', 'inverter', 4), ('sunspec_meter', 'meter_3', 5), ('modbus_converter', 'converter', 6)]
    assert found[0].settings['profile'] == 'eastron_sdm630'
    assert found[1].identity.model.startswith('EM540')
    assert found[5].identity.serial == '12345'
    assert [n.type for n in loads(found, tmp_path)] == [f.type for f in found]
    for spy in spies:
        assert spy.functions, 'it was asked'
        assert set(spy.functions) <= {1, 2, 3, 4}, 'only reads'


def test_one_device_under_every_unit_id_is_one_device(serve: Callable[..., Any]) -> None:
    same = SunSpecInverterSimulator(StaticPlant(), 'u')
    address, _ = serve(u1=same, u2=same, u3=same)
    found = probe(address)
    assert len(found) == 1
    assert 'answers as unit 2, too' in found[0].notes


def test_what_is_not_known_is_not_named(serve: Callable[..., Any]) -> None:
    said: list[str] = []
    image = RegisterImage()
    image.put(4, 0x0B, 'u16', 9999)
    address, _ = serve(u1=image)
    assert probe(address, (1, 2), say=said.append) == []
    assert said == ['unit 1: answers, but is none of the devices known here', 'unit 2: nothing']


def test_no_device_is_an_error() -> None:
    with pytest.raises(Disconnected):
        probe('tcp://127.0.0.1:1')
    with pytest.raises(ValueError, match='cannot be probed'):
        probe('http://127.0.0.1')


def test_a_serial_line_with_modbus_units(tmp_path: Path) -> None:
    spies = {3: Spy(LAYOUTS['eastron_sdm630'](StaticPlant(), '', DeviceFaults()))}
    server = ModbusRtuServer(spies, DeviceFaults(), tmp_path / 'ttyS0')
    server.start()
    try:
        found = probe(f'rtu:{server.link_path}?baud=115200', (1, 3, 5), 0.1)
        assert [(f.settings['profile'], f.settings['unit']) for f in found] == [('eastron_sdm630', 3)]
        assert set(spies[3].functions) <= {3, 4}
    finally:
        server.stop()


def test_a_serial_line_with_a_jbd(tmp_path: Path) -> None:
    simulator, stop = JbdSimulator(StaticPlant(), 'u', DeviceFaults()), threading.Event()
    link = tmp_path / 'ttyS1'
    thread = threading.Thread(target=simulator.serve, args=(str(link), stop), daemon=True)
    thread.start()
    deadline = time.monotonic() + 5
    while not link.is_symlink() and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        found = probe(f'serial:{link}?baud=9600')
        assert [(f.type, f.address, f.identity.manufacturer) for f in found] == [
            ('jbd', f'serial:{link}?baud=9600', 'JBD')]
        assert [n.type for n in loads(found, tmp_path)] == ['jbd']
    finally:
        stop.set()
        thread.join(5)


@pytest.mark.parametrize(('kind', 'baud', 'maker'), [
    ('daly', 9600, 'Daly'), ('jbd_up16s', 9600, 'JBD'), ('jk', 115200, 'JK'), ('pylontech', 115200, 'Simulated'),
    ('seplos', 19200, 'Seplos')])
def test_serial_lines_with_other_bms(tmp_path: Path, kind: str, baud: int, maker: str) -> None:
    made, unit = KINDS[kind]
    bms = made(StaticPlant(), 'u', DeviceFaults(), unit)
    orders: list[tuple[bool, bool]] = []
    bms.switch = lambda charge, discharge: orders.append((charge, discharge))  # type: ignore[method-assign]
    line = SerialLine(tmp_path / 'ttyS2', DeviceFaults(), bms.answer)
    line.start()
    try:
        found = probe(f'serial:{tmp_path}/ttyS2?baud={baud}')
        assert [(f.type, f.name, f.identity.manufacturer) for f in found] == [(kind, 'bms', maker)]
        assert [n.type for n in loads(found, tmp_path)] == [kind] and orders == []
    finally:
        line.stop()


def test_a_p1_meter_is_heard(tmp_path: Path) -> None:
    pytest.importorskip('dsmr_parser', reason='needs pip install -r requirements/p1.txt (optional)')
    meter = P1Simulator(StaticPlant(), DeviceFaults(), f'serial:{tmp_path}/p1', period=0.2)
    meter.start()
    try:
        found = probe(f'serial:{tmp_path}/p1?baud=115200')
        assert [(f.type, f.name, f.identity.serial) for f in found] == [('p1', 'meter', 'BESS0001')]
    finally:
        meter.stop()


def test_a_probe_of_a_serial_line_orders_no_modbus_device_to_write(tmp_path: Path) -> None:
    spies = {1: Spy(LAYOUTS['eastron_sdm630'](StaticPlant(), '', DeviceFaults()))}
    server = ModbusRtuServer(spies, DeviceFaults(), tmp_path / 'ttyS3')
    server.start()
    try:
        said: list[str] = []
        found = probe(f'serial:{server.link_path}?baud=115200', (1,), 0.2, said.append)
        assert [s for s in said if 'not asked' in s] == [
            'jk_pb: not asked: to a Modbus device its request is an order to write a register; if you have one, try it '
            'with `type: jk_pb`']
        assert [f.settings.get('profile') for f in found] == ['eastron_sdm630']
        assert set(spies[1].functions) <= {3, 4} and list(server.writes) == []
    finally:
        server.stop()


def test_the_command(serve: Callable[..., Any], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    address, _ = serve(u1=LAYOUTS['eastron_sdm630'](StaticPlant(), '', DeviceFaults()))
    assert main(['probe', address, '--units', '1']) == 0
    out = capsys.readouterr().out
    (tmp_path / 's.yaml').write_text('site: {name: home}\n' + out)
    assert load(tmp_path / 's.yaml').nodes[0].type == 'modbus_meter'
    assert main(['probe', address, '--units', '1', '--json']) == 0
    assert json.loads(capsys.readouterr().out)[0]['settings'] == {'profile': 'eastron_sdm630', 'unit': 1}
    assert main(['probe', address, '--units', '9']) == 1
    assert main(['probe', 'tcp://127.0.0.1:1']) == 1
    assert main(['probe', 'nonsense']) == 2
    err = capsys.readouterr().err
    assert 'no connection' in err
    assert 'cannot be probed' in err


def test_units() -> None:
    assert units('1,3,5-7') == (1, 3, 5, 6, 7)
    for wrong in ('', 'a', '1-', '256', '0-99999'):
        with pytest.raises(Exception, match='units are|is not like'):
            units(wrong)


@given(st.text(), st.text(), st.text())
@settings(max_examples=200)
def test_what_a_device_says_of_itself_cannot_change_the_site_file(
        tmp_path_factory: Any, maker: str, model: str, note: str) -> None:
    found = [Found('modbus_meter', 'meter', 'tcp://127.0.0.1:502', Identity(maker, model, note, maker),
                   {'profile': 'eastron_sdm630', 'unit': 1}, (note,))]
    nodes = loads(found, tmp_path_factory.mktemp('site'))
    assert [(n.name, n.type, n.params.unit) for n in nodes] == [('meter', 'modbus_meter', 1)]


@given(st.integers(0, 5), st.data())
@settings(max_examples=25)
def test_devices_that_answer_anything_are_survived(seed: int, data: st.DataObject) -> None:
    import random

    rng = random.Random(data.draw(st.integers()))

    class Noise:
        def read(self, function: int, address: int, count: int) -> list[int]:
            return [rng.choice((0, 0x5375, 0x6E53, 0xFFFF, 1, 66, 1648, rng.randrange(0x10000))) for _ in range(count)]

        def write(self, address: int, values: list[int]) -> None:
            raise AssertionError('a write')

    server = ModbusDeviceServer({1: Noise()}, DeviceFaults())
    server.start()
    try:
        probe(f'tcp://127.0.0.1:{server.port}', (1,))
        assert not server.writes
    finally:
        server.stop()


def test_a_can_bus_is_listened_to(can_address: str, wire: Any, tmp_path: Path) -> None:  # noqa: F811
    simulator = CanBmsSimulator(StaticPlant(), 'u', DeviceFaults(), can_address)
    assert probe(can_address, timeout_s=0.2) == []
    simulator.start()
    try:
        found = probe(can_address)
        assert ('can_bms', 'bms') in [(f.type, f.name) for f in found]
        assert [n.type for n in loads(found[:1], tmp_path)] == ['can_bms']
        heard = {m.arbitration_id for m in iter(lambda: wire.recv(0.0), None)}
        assert 0x305 not in heard, 'an inverter would send its keep-alive; a probe says nothing'
    finally:
        simulator.stop()
