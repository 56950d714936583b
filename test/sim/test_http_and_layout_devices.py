"""Simulated devices of the drivers in processes of their own: sonnenBatterie, SunSpec layouts, Victron services."""

from __future__ import annotations

import os
import time
from math import nan
from pathlib import Path

import pytest

from bess_drivers.device import DeviceError
from bess_drivers.http.sonnen import SonnenBattery, SonnenConverter, SonnenParams
from bess_drivers.modbus.profile_device import ModbusConverter, ProfileParams
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_sim.bench_device import Child
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.factory import build
from bess_sim.plant_api import PackSample, StaticPlant
from bess_sim.plant_config import DeviceConfig


@pytest.fixture
def child(tmp_path: Path):
    """Starts a device of a kind in a process of its own; returns its address."""
    running = []

    def start(kind: str, **options: object) -> str:
        config = DeviceConfig(kind=kind, unit='u', **options)
        faults = DeviceFaults()
        plant = StaticPlant(packs={'u': PackSample(current=-12.0)})
        made = Child(kind, config, build(config, plant, faults), faults, tmp_path)
        lock = os.open(tmp_path / 'lock', os.O_CREAT | os.O_RDWR)
        made.start(lock)
        running.append((made, lock))
        made.wait_ready(time.monotonic() + 10.0)
        assert made.pid != os.getpid()
        return made.address

    start.kill = lambda: [(m._process.kill(), m._process.join(5.0)) for m, _ in running]
    yield start
    for made, lock in running:
        made._process.kill()
        made._process.join(5.0)
        os.close(lock)


def test_sonnen(child, tmp_path: Path) -> None:
    token = tmp_path / 'token'
    token.write_text('of-the-test')
    token.chmod(0o600)
    params = SonnenParams(address=child('sonnen', token='of-the-test'), token_file=str(token), timeout_s=3.0)
    converter, battery = SonnenConverter(params), SonnenBattery(params)
    for device in (converter, battery):
        device.open()
        device.identify()
    converter.write_power(900.0, nan, 5.0)
    assert converter.read(1.0).active_power == 900.0
    assert battery.read(1.0).soc == 0.5


@pytest.mark.parametrize('layout', ['sunspec_draft', 'sunspec_strings', 'sunspec_flow'])
def test_sunspec_batteries(child, layout: str) -> None:
    device = SunSpecBattery(SunSpecBatteryParams(address=child('registers', layout=layout), timeout_s=3.0))
    device.open()
    device.identify()
    assert device.read(1.0).current == pytest.approx(-12.0)
    device.close()


def test_inverters(child) -> None:
    pcs = SunSpecInverter(SunSpecInverterParams(address=child('registers', layout='mesa_pcs'), timeout_s=3.0,
                                                legacy_control='signed_limit'))
    multi = ModbusConverter(ProfileParams(address=child('registers', layout='victron_vebus'), timeout_s=3.0,
                                          profile='victron_vebus'))
    for device in (pcs, multi):
        device.open()
        device.identify()
        device.read(0.0)
        device.write_power(-700.0, nan, 5.0)
        assert device.read(1.0).active_power == pytest.approx(-700.0)
        device.close()


def test_a_process_that_dies_is_an_error_not_a_value(child, tmp_path: Path) -> None:
    token = tmp_path / 'token'
    token.write_text('x')
    token.chmod(0o600)
    device = SonnenBattery(SonnenParams(address=child('sonnen'), token_file=str(token), timeout_s=1.0))
    device.open()
    device.read(0.0)
    child.kill()
    for _ in range(2):
        with pytest.raises(DeviceError):
            device.read(1.0)
