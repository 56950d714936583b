"""Victron through its Modbus gateway: profiles against simulated services that were written from the maker's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isnan, nan
from typing import Any

import pytest

from bess_core.values import ConverterState
from bess_drivers.device import BadValue, DeviceError, ReadOnlyError
from bess_drivers.modbus.profile_device import ModbusBattery, ModbusConverter, ModbusMeter, ProfileParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.victron import VICTRON_LAYOUTS
from bess_sim.plant_api import InverterSample, MeterSample, PackSample, StaticPlant

Make = Callable[..., tuple[Any, Any, DeviceFaults]]


@pytest.fixture
def make() -> Iterator[Make]:
    """(device, simulated registers, faults) of a profile whose layout has the same name."""
    done: list[Callable[[], None]] = []

    def build(kind: Any, profile: str, plant: StaticPlant, read_only: bool = False) -> tuple[Any, Any, DeviceFaults]:
        faults = DeviceFaults()
        registers = VICTRON_LAYOUTS[profile](plant, 'u', faults)
        server = ModbusDeviceServer({227: registers}, faults)
        server.start()
        device = kind(ProfileParams(address=f'tcp://127.0.0.1:{server.port}', profile=profile, unit=227,
                                    timeout_s=0.4), read_only)
        device.open()
        device.identify()
        done.extend((device.close, server.stop))
        return device, registers, faults

    yield build
    for step in done:
        step()


def read(device: Any, now: float) -> Any:
    """One poll, after the slow points."""
    for _ in range(40):
        device.read_slow(now)
    return device.read(now)


@pytest.mark.parametrize('profile', ['victron_vebus', 'victron_vebus_3p'])
def test_inverter_follows_with_the_right_sign(make: Make, profile: str) -> None:
    plant = StaticPlant(inverters={'u': InverterSample(dc_voltage=51.5, dc_current=-20.5, temperature=31.0)})
    device, registers, _ = make(ModbusConverter, profile, plant)
    r = read(device, 1.0)
    assert (r.voltage[0], r.frequency, r.dc_voltage, r.dc_current) == pytest.approx((230.0, 50.0, 51.5, -20.5))
    assert r.dc_power == pytest.approx(51.5 * -20.5) and r.state is ConverterState.STANDBY
    device.write_power(1500.0, nan, 5.0)
    assert plant.orders[-1][1] == 1500.0
    assert registers.image.number(3, 37, 'i16') == (1500 if profile == 'victron_vebus' else 500)
    r = read(device, 2.0)
    assert r.active_power == pytest.approx(1500.0) and r.state is ConverterState.RUNNING
    device.write_power(-900.0, nan, 5.0)
    assert read(device, 3.0).active_power == pytest.approx(-900.0)
    device.stop()
    assert plant.orders[-1][1] == 0.0


def test_every_alarm_and_error_has_a_name(make: Make) -> None:
    device, registers, _ = make(ModbusConverter, 'victron_vebus', StaticPlant())
    names = set()
    now = 10.0
    alarms = (34, 35, 36, 42, 43, *range(44, 56), 60, 63)
    for address in alarms:
        registers.alarms = {a: 1 if a == address else 0 for a in alarms}
        r = read(device, now)
        now += 10.0
        assert len(r.alarms) == 1 and r.alarms[0].id.startswith('victron.'), address
        names.add(r.alarms[0].id)
    assert len(names) == len(alarms)
    registers.alarms = dict.fromkeys(alarms, 0)
    registers.error = 5
    r = read(device, now)
    assert r.state is ConverterState.FAULT and 'over_voltage_on_ac_out' in r.alarms[0].id


def test_battery(make: Make) -> None:
    plant = StaticPlant(packs={'u': PackSample(voltage=52.34, current=-30.2, soc=0.615, soh=0.98, charge_full=200.0,
                                               cells=(3.25, 3.31), temperatures=(-3.5,), max_charge_current=80.0)})
    device, registers, _ = make(ModbusBattery, 'victron_battery', plant)
    r = read(device, 1.0)
    assert (r.voltage, r.current, r.soc, r.soh) == pytest.approx((52.34, -30.2, 0.615, 0.98))
    assert (r.charge_full, r.max_charge_current, r.temperature) == pytest.approx((200.0, 80.0, -3.5))
    assert (r.cell_voltage_min, r.cell_voltage_max) == pytest.approx((3.25, 3.31)) and r.alarms == ()
    assert isnan(r.energy_charged)  # the gateway has no such register for this battery
    registers.alarms = {268: 2, 326: 1}
    assert sorted(a.id for a in read(device, 20.0).alarms) == ['victron.almost_discharged', 'victron.low_voltage']
    registers.image.put(3, 266, 'u16', 65535)
    registers.image.before_read = None
    assert isnan(device.read(30.0).soc)
    registers.image.put(3, 266, 'u16', 1001)  # 100.1 %
    with pytest.raises(BadValue):
        device.read(31.0)


def test_grid_meter(make: Make) -> None:
    plant = StaticPlant(meter_sample=MeterSample(phase_power=(1200.0, -300.0, 50.0), voltage=(231.0, 229.0, 230.0),
                                                 energy_import=123_450.0, energy_export=5_000.0))
    device, _, _ = make(ModbusMeter, 'victron_grid', plant)
    r = read(device, 1.0)
    assert r.phase_power == (1200.0, -300.0, 50.0) and r.active_power == 950.0
    assert r.voltage == pytest.approx((231.0, 229.0, 230.0))
    assert r.current == pytest.approx((5.2, -1.3, 0.2), abs=0.06)
    assert (r.energy_import, r.energy_export) == pytest.approx((123_450.0, 5_000.0))


def test_read_only_and_a_broken_line(make: Make) -> None:
    plant = StaticPlant()
    device, _, _ = make(ModbusConverter, 'victron_vebus', plant, read_only=True)
    read(device, 0.0)
    with pytest.raises(ReadOnlyError):
        device.write_power(100.0, nan, 1.0)
    assert plant.orders == []
    device, _, faults = make(ModbusConverter, 'victron_vebus', plant)
    for fault in ('no_answer', 'truncated_frame', 'modbus_exception', 'wrong_unit_id'):
        faults.inject(fault)
        with pytest.raises(DeviceError):
            device.read(1.0)
        faults.clear()
        device.close()
        device.open()
        device.identify()
        assert device.read(2.0).frequency == pytest.approx(50.0)


def test_the_setpoint_lapses_in_the_device(make: Make) -> None:
    plant = StaticPlant()
    device, registers, _ = make(ModbusConverter, 'victron_vebus', plant)
    device.read(0.0)
    device.write_power(700.0, nan, 5.0)
    assert device.read(1.0).active_power == pytest.approx(700.0)
    moment = registers.clock() + 61.0
    registers.clock = lambda: moment
    assert device.read(2.0).active_power == 0.0
