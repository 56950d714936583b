"""Simulated devices seen by programs of others: mbpoll (Debian) and the client of pysunspec2.

What they read and write is compared with what our drivers read of the same device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
import sunspec2.modbus.client as sunspec

from bess_drivers.modbus.profile_device import ModbusConverter, ModbusIo, ModbusMeter, ProfileParams
from bess_drivers.sunspec.meter import SunSpecMeter, SunSpecMeterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.devices.sunspec_meter import MODELS, SunSpecMeterSimulator
from bess_sim.plant_api import InverterSample, MeterSample, StaticPlant

PLANT = MeterSample(phase_power=(-1500.0, 230.0, 40.0), reactive_power=120.0, voltage=(231.0, 229.5, 230.0),
                    frequency=49.98, energy_import=123_456.0, energy_export=7_890.0)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], int]]:
    servers = []

    def start(registers: Any) -> int:
        server = ModbusDeviceServer({1: registers}, DeviceFaults())
        server.start()
        servers.append(server)
        return server.port

    yield start
    for server in servers:
        server.stop()


def mbpoll(*line: str, port: int = 0, path: str = '') -> list[str]:
    """Values that mbpoll prints; addresses from 0."""
    where = ['-m', 'tcp', '-p', str(port), '127.0.0.1'] if port else ['-m', 'rtu', '-b', '115200', '-P', 'none', path]
    at = line.index('--') if '--' in line else len(line)
    done = subprocess.run(['mbpoll', '-0', '-1', '-o', '1', '-a', '1', *line[:at], *where, *line[at:]],
                          capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [found[1].split()[0] for found in re.finditer(r'^\[\d+\]:\s+(.+)$', done.stdout, re.MULTILINE)]


needs_mbpoll = pytest.mark.skipif(shutil.which('mbpoll') is None, reason='mbpoll is not installed (make browser)')


@needs_mbpoll
def test_mbpoll_reads_the_floats_of_a_meter(serve: Callable[[Any], int]) -> None:
    port = serve(LAYOUTS['eastron_sdm630'](StaticPlant(meter_sample=PLANT), '', DeviceFaults()))
    values = [float(v) for v in mbpoll('-t', '3:float', '-B', '-r', '12', '-c', '3', port=port)]
    total = float(mbpoll('-t', '3:float', '-B', '-r', '52', port=port)[0])
    device = ModbusMeter(ProfileParams(address=f'tcp://127.0.0.1:{port}', profile='eastron_sdm630'))
    device.open()
    r = device.read(1.0)
    device.close()
    assert values == pytest.approx(list(r.phase_power), rel=1e-4)
    assert total == pytest.approx(r.active_power, rel=1e-4) == pytest.approx(-1230.0)


@needs_mbpoll
def test_mbpoll_orders_a_converter_and_our_driver_sees_it(serve: Callable[[Any], int]) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    port = serve(LAYOUTS['luxpower_lxp'](plant, 'u', DeviceFaults()))
    assert mbpoll('-t', '4', '-r', '19', port=port) == ['3']
    mbpoll('-t', '4', '-r', '138', '--', '250', port=port)
    mbpoll('-t', '4', '-r', '21', '--', str(1 << 11 | 1 << 9), port=port)
    device = ModbusConverter(ProfileParams(address=f'tcp://127.0.0.1:{port}', profile='luxpower_lxp',
                                           rated_power=12_000.0))
    device.open()
    device.identify()
    assert device.read(1.0).active_power == pytest.approx(3000.0)
    device.write_power(-1200.0, nan, 1.0)
    assert mbpoll('-t', '4', '-r', '142', port=port) == ['100']
    assert int(mbpoll('-t', '4', '-r', '21', port=port)[0]) >> 10 & 3 == 0b01
    device.close()


@needs_mbpoll
def test_mbpoll_and_coils(serve: Callable[[Any], int]) -> None:
    port = serve(LAYOUTS['generic_io_8'](StaticPlant(), '', DeviceFaults()))
    mbpoll('-t', '0', '-r', '2', '--', '1', port=port)
    mbpoll('-t', '0', '-r', '4', '--', '1', '1', '0', port=port)
    device = ModbusIo(ProfileParams(address=f'tcp://127.0.0.1:{port}', profile='generic_io_8'))
    device.open()
    r = device.read(1.0)
    assert [int(v) for v in r.digital_outputs.values()] == [0, 0, 1, 0, 1, 1, 0, 0]
    device.write_output('relay_8', 1.0)
    assert mbpoll('-t', '1', '-r', '0', '-c', '8', port=port) == ['0', '0', '1', '0', '1', '1', '0', '1']
    device.close()


@needs_mbpoll
def test_mbpoll_on_a_serial_line(tmp_path: Path) -> None:
    plant = StaticPlant(inverters={'u': InverterSample(dc_voltage=51.2)})
    server = ModbusRtuServer({1: LAYOUTS['rd6006'](plant, 'u', DeviceFaults())}, DeviceFaults(), tmp_path / 'ttyS0')
    server.start()
    try:
        path = str(server.link_path)
        assert mbpoll('-t', '4', '-r', '10', path=path) == ['5120']
        mbpoll('-t', '4', '-r', '9', '--', '2500', path=path)
        mbpoll('-t', '4', '-r', '18', '--', '1', path=path)
        device = ModbusConverter(ProfileParams(address=f'rtu:{path}?baud=115200', profile='rd6006'))
        device.open()
        assert device.read(1.0).dc_current == pytest.approx(2.5)
        device.close()
    finally:
        server.stop()


def opened(port: int) -> Any:
    """pysunspec2's own client, after its scan."""
    client = sunspec.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr='127.0.0.1', ipport=port, timeout=2)
    client.scan()
    return client


@pytest.mark.parametrize('model', MODELS)
def test_pysunspec2_and_our_driver_read_the_same_meter(serve: Callable[[Any], int], model: int) -> None:
    port = serve(SunSpecMeterSimulator(StaticPlant(meter_sample=PLANT), model))
    client = opened(port)
    theirs = client.models[model][0]
    device = SunSpecMeter(SunSpecMeterParams(address=f'tcp://127.0.0.1:{port}'))
    device.open()
    assert device.identify().serial == client.models['common'][0].SN.value == 'M-0001'
    r = device.read(1.0)
    assert r.active_power == pytest.approx(theirs.W.cvalue) == pytest.approx(-1230.0)
    assert list(r.phase_power) == pytest.approx([theirs.WphA.cvalue, theirs.WphB.cvalue, theirs.WphC.cvalue])
    assert list(r.voltage) == pytest.approx([theirs.PhVphA.cvalue, theirs.PhVphB.cvalue, theirs.PhVphC.cvalue])
    assert r.frequency == pytest.approx(theirs.Hz.cvalue) == pytest.approx(49.98, abs=1e-3)
    assert r.reactive_power == pytest.approx(theirs.VAR.cvalue)
    assert (r.energy_import, r.energy_export) == pytest.approx((theirs.TotWhImp.cvalue, theirs.TotWhExp.cvalue))
    assert r.energy_import == pytest.approx(123_456.0, rel=1e-6)
    device.close()
    device = SunSpecMeter(SunSpecMeterParams(address=f'tcp://127.0.0.1:{port}', invert=True))
    device.open()
    turned = device.read(2.0)
    assert (turned.active_power, turned.energy_import) == pytest.approx((1230.0, 7_890.0))
    device.close()
    client.close()


def test_pysunspec2_writes_an_order_to_the_simulated_inverter(serve: Callable[[Any], int]) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    port = serve(SunSpecInverterSimulator(plant, 'u'))
    client = opened(port)
    control = client.models[704][0]
    control.WSetMod.cvalue, control.WSet.cvalue, control.WSetEna.cvalue = 1, 1500, 1
    control.write()
    assert plant.orders[-1][1] == pytest.approx(-1500.0), '704: + = generation; ours: + = charging'
    client.close()


def test_pysunspec2_reads_the_simulated_battery(serve: Callable[[Any], int]) -> None:
    plant = StaticPlant()
    port = serve(SunSpecBatterySimulator(plant, 'u'))
    client = opened(port)
    bank = client.models[802][0]
    assert bank.SoC.cvalue == pytest.approx(50.0)
    assert bank.V.cvalue == pytest.approx(plant.pack('u').voltage, abs=0.1)
    client.close()
