"""Simulated SunSpec devices: registers at the workbook's offsets, behaviour, a foreign client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan, nan
from typing import Any

import pytest
from counting import calls
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import IllegalAddress, IllegalValue, ModbusDeviceServer
from bess_sim.devices.sunspec import (
    BatteryThresholds,
    SunSpecBatterySimulator,
    SunSpecInverterSimulator,
)
from bess_sim.devices.sunspec_base import SunSpecDevice, scale_for
from bess_sim.plant_api import InverterSample, PackSample, StaticPlant

# Model starts: SunS at 40000, model 1 (68 registers), then as listed.
S701 = 40002 + 68
S702 = S701 + 155
S704 = S702 + 52
S713 = S704 + 67
S714 = S713 + 9
S715 = S714 + 45
S802 = 40002 + 68
L101 = 40002 + 68
L120 = L101 + 52
L121 = L120 + 28
L123 = L121 + 32
L124 = L123 + 26


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def der(**options: Any) -> tuple[SunSpecDevice, StaticPlant, Clock]:
    plant, clock = StaticPlant(), Clock()
    plant.inverters['u'] = InverterSample()
    return (SunSpecInverterSimulator(plant, 'u', clock=clock, background=False, **options),
            plant, clock)  # fmt: skip


def one(device: SunSpecDevice, address: int) -> int:
    return device.read(3, address, 1)[0]


def u32(value: int) -> list[int]:
    return [value >> 16 & 0xFFFF, value & 0xFFFF]


def test_layout_of_every_kind() -> None:
    plant = StaticPlant()
    for device, starts in (
        (der()[0], {1: 40002, 701: S701, 702: S702, 704: S704, 713: S713, 714: S714, 715: S715}),
        (SunSpecInverterSimulator(plant, 'u', 'legacy', background=False),
         {1: 40002, 101: L101, 120: L120, 121: L121, 123: L123, 124: L124}),
        (SunSpecBatterySimulator(plant, 'u'), {1: 40002, 802: S802, 803: S802 + 64}),
    ):  # fmt: skip
        assert device.read(3, 40000, 2) == [0x5375, 0x6E53]
        address, found = 40002, {}
        while one(device, address) != 0xFFFF:
            model, length = device.read(3, address, 2)
            found[model] = address
            address += 2 + length
        assert found == starts and one(device, address + 1) == 0
        with pytest.raises(IllegalAddress):
            device.read(3, address + 1, 2)
        with pytest.raises(IllegalAddress):
            device.read(3, 39999, 2)
        with pytest.raises(IllegalAddress):
            device.read(4, 40000, 2)
    with pytest.raises(ValueError, match='must be'):
        SunSpecInverterSimulator(plant, 'u', 'other')


def test_der_measurement_has_generation_positive() -> None:
    device, plant, _ = der()
    sample = plant.inverters['u']
    sample.active_power, sample.reactive_power = 1200.0, -500.0
    sample.energy_import, sample.energy_export, sample.dc_current = 70000.0, 3.0, 25.0
    assert one(device, S701 + 10) == 65536 - 1200
    assert one(device, S701 + 12) == 500
    assert one(device, S701 + 11) == 1300
    assert device.read(3, S701 + 17, 2) == u32(50000)
    assert device.read(3, S701 + 23, 4) == [0, 0, 1, 70000 - 65536]
    assert one(device, S701 + 47) == 2300 and one(device, S701 + 69) == 0xFFFF
    assert one(device, S714 + 5) == 65536 - 250
    sample.voltage = (nan, nan, nan)
    assert one(device, S701 + 47) == 0xFFFF


def test_setpoint_acts_only_while_enabled_and_within_the_ratings() -> None:
    device, plant, _ = der()
    sample = plant.inverters['u']
    device.write(S704 + 24, u32(-3000))
    assert sample.active_power == 0.0
    device.write(S704 + 22, [1])
    assert sample.active_power == 3000.0
    device.write(S704 + 24, u32(9000))
    assert sample.active_power == -5000.0
    device.write(S702 + 35, [2000])  # WDisChaRteMax
    assert sample.active_power == -2000.0
    device.write(S704 + 15, [300])  # WMaxLimPct 30 % of 5000 W
    device.write(S704 + 14, [1])
    assert sample.active_power == -1500.0
    device.write(S704 + 22, [0])
    assert sample.active_power == 0.0
    with pytest.raises(IllegalValue):
        device.write(S702 + 35, [6000])  # above the rating


def test_percent_ramp_and_reactive_power_on_the_circle() -> None:
    device, plant, _ = der()
    sample = plant.inverters['u']
    device.write(S704 + 49, [10])  # WRmp 10 %/s of 5000 W
    device.write(S704 + 22, [1, 0])  # percent
    device.write(S704 + 28, [65536 - 600])  # -60 %
    assert sample.active_power == 3000.0 and plant.orders[-1][3] == 500.0
    device.write(S704 + 38, u32(4500))
    device.write(S704 + 35, [1])
    assert sample.reactive_power == pytest.approx(-4000.0)
    device.write(S704 + 22, [0])
    assert sample.reactive_power == pytest.approx(-4500.0)


@pytest.mark.parametrize(('rearm', 'kept'), [('any', True), ('timer', False), ('enable', False)])
def test_reversion_counts_down_and_reverts(rearm: str, kept: bool) -> None:
    device, plant, clock = der(rearm=rearm)
    sample = plant.inverters['u']
    device.write(S704 + 24, [*u32(-2000), *u32(-100)])  # WSet, WSetRvrt
    device.write(S704 + 30, [1, *u32(5)])
    device.write(S704 + 22, [1])
    if rearm == 'timer':
        device.write(S704 + 31, u32(5))
    clock.now += 3
    assert device.read(3, S704 + 33, 2) == [0, 2]
    device.write(S704 + 24, u32(-2500))
    assert device.read(3, S704 + 33, 2) == [0, 5 if kept else 2]
    clock.now += 2.5
    device.tick()
    assert sample.active_power == (2500.0 if kept else 100.0)
    clock.now += 3
    assert device.tick() == float('inf')
    assert sample.active_power == 100.0
    assert one(device, S704 + 22) == 1 and device.read(3, S704 + 24, 2) == u32(-100)
    assert device.read(3, S704 + 33, 2) == [0, 0]


def test_reversion_without_enable_switches_the_function_off() -> None:
    device, plant, clock = der()
    device.write(S704 + 24, u32(-2000))
    device.write(S704 + 31, u32(2))
    device.write(S704 + 22, [1])
    clock.now += 2
    assert one(device, S704 + 22) == 0
    assert plant.inverters['u'].active_power == 0.0


def test_reversion_fires_without_any_request() -> None:
    plant = StaticPlant()
    device = SunSpecInverterSimulator(plant, 'u')
    try:
        device.write(S704 + 24, u32(-2000))
        device.write(S704 + 31, u32(1))
        started = time.monotonic()
        device.write(S704 + 22, [1])
        sample = plant.inverter('u')
        assert sample.active_power == 2000.0
        while sample.active_power != 0.0:
            assert time.monotonic() - started < 3.0
            time.sleep(0.01)
        assert time.monotonic() - started >= 0.95
    finally:
        device.close()


def test_what_may_not_be_written() -> None:
    device, _, _ = der()
    before = list(device.image.registers)
    for address, values in (
        (S701 + 10, [1]),  # measurement
        (S704 + 33, [0, 1]),  # WSetRvrtRem
        (S704 + 24, [0]),  # half of WSet
        (S704 + 25, [0]),  # the other half
        (S704 + 31, [0, 1, 0, 1]),  # runs into a read-only point
        (S704 + 2, [1]),  # PFWInjEna: not implemented here
        (40000, [1]),
        (45000, [1]),
    ):
        with pytest.raises(IllegalAddress):
            device.write(address, values)
    for address, values in ((S704 + 22, [2]), (S715 + 8, [9]), (S704 + 24, [0x8000, 0])):
        with pytest.raises(IllegalValue):
            device.write(address, values)
    device.local = True  # type: ignore[attr-defined]
    with pytest.raises(IllegalValue):
        device.write(S704 + 22, [1])
    assert device.image.registers == before


def test_operation_model() -> None:
    device, plant, clock = der(started=False)
    device.write(S704 + 24, u32(-800))
    device.write(S704 + 22, [1])
    assert plant.inverters['u'].active_power == 0.0 and one(device, S701 + 4) == 0
    device.write(S715 + 8, [1])
    assert plant.inverters['u'].active_power == 800.0 and one(device, S701 + 4) == 3
    device.write(S715 + 8, [2])
    assert plant.inverters['u'].active_power == 0.0 and one(device, S701 + 4) == 7
    device.write(S715 + 8, [3])
    assert plant.inverters['u'].active_power == 800.0
    clock.now += 7
    assert device.read(3, S715 + 3, 2) == [0, 7]
    device.alarms = 1 << 7  # type: ignore[attr-defined]
    assert device.read(3, S701 + 6, 2) == [0, 0x80]
    device.write(S715 + 7, [1])
    assert device.read(3, S701 + 6, 2) == [0, 0] and one(device, S715 + 7) == 0


def test_legacy_controls() -> None:
    plant, clock = StaticPlant(), Clock()
    device = SunSpecInverterSimulator(plant, 'u', 'legacy', clock=clock, background=False)
    sample = plant.inverter('u')
    device.write(L124 + 12, [2500, 5000, 0, 10])  # OutWRte 25 %, InWRte 50 %, window, reversion
    assert sample.active_power == 0.0  # holds
    device.write(L124 + 5, [1])
    assert sample.active_power == 2500.0
    device.write(L124 + 5, [2])
    assert sample.active_power == -1250.0
    assert one(device, L101 + 14) == 1250
    device.write(L124 + 5, [3])
    assert sample.active_power == 0.0  # both are bounds, zero lies between
    device.write(L124 + 12, [65536 - 3000])
    assert sample.active_power == 1500.0  # at least 30 % charging
    device.write(L123 + 4, [0])
    assert sample.active_power == 0.0 and one(device, L101 + 38) == 1
    device.write(L123 + 4, [1])
    assert sample.active_power == 1500.0
    clock.now += 10
    device.tick()
    assert sample.active_power == 0.0 and one(device, L124 + 5) == 0
    device.write(L123 + 15, [100])
    device.write(L123 + 19, [3])
    device.write(L123 + 22, [1])
    assert sample.reactive_power == -500.0
    clock.now += 3
    device.tick()
    assert sample.reactive_power == 0.0


def test_battery_registers_and_switches() -> None:
    plant, clock = StaticPlant(), Clock()
    pack = plant.pack('u')
    pack.current, pack.soc, pack.soh = -12.3, 0.555, 0.98
    device = SunSpecBatterySimulator(plant, 'u', clock=clock)
    registers = device.read(3, S802, 64)
    assert registers[11] == 555 and registers[13] == 980
    assert registers[44] == 65536 - 123 and registers[61] == 65535
    assert registers[16] == 3 and registers[22] == 3  # discharging, connected
    assert registers[34] * 10.0 ** (registers[59] - 65536) == pytest.approx(52.0)
    flipped = SunSpecBatterySimulator(plant, 'u', sign=-1)
    assert one(flipped, S802 + 44) == 123
    clock.now += 3.5
    assert one(device, S802 + 18) == 3
    device.write(S802 + 50, [2])
    assert not pack.charge_switch and not pack.discharge_switch and one(device, S802 + 22) == 1
    device.write(S802 + 50, [1])
    assert pack.charge_switch and pack.discharge_switch and one(device, S802 + 22) == 3
    device.write(S802 + 19, [55])
    assert one(device, S802 + 19) == 55
    device.events = 1 << 21
    assert device.read(3, S802 + 26, 2) == u32(1 << 21)
    device.write(S802 + 20, [1])
    assert device.read(3, S802 + 26, 2) == [0, 0] and one(device, S802 + 20) == 0
    with pytest.raises(IllegalValue):
        device.write(S802 + 50, [7])
    with pytest.raises(IllegalAddress):
        device.write(S802 + 11, [500])
    device.local = True
    device.write(S802 + 50, [2])
    assert pack.charge_switch and one(device, S802 + 17) == 1


@pytest.mark.parametrize(('change', 'bits'), [
    ({}, 0),
    ({'cells': (3.61, 3.4)}, 1 << 10),
    ({'cells': (3.66, 3.4)}, 1 << 9 | 1 << 10),
    ({'cells': (2.7, 2.9)}, 1 << 12),
    ({'cells': (2.4, 2.6)}, 1 << 11 | 1 << 12),
    ({'cells': (3.0, 3.4)}, 1 << 17),
    ({'temperatures': (20.0, 55.0)}, 1 << 2),
    ({'temperatures': (61.0,)}, 1 << 1 | 1 << 2),
    ({'temperatures': (-5.0,)}, 1 << 4),
    ({'temperatures': (-25.0,)}, 1 << 3 | 1 << 4),
    ({'soc': 0.01}, 1 << 14),
    ({'current': 120.0}, 1 << 6),
    ({'current': -120.0}, 1 << 8),
])  # fmt: skip
def test_event_bits(change: dict[str, object], bits: int) -> None:
    assert BatteryThresholds().events(PackSample(**change)) == bits  # type: ignore[arg-type]


def test_scales_of_large_devices() -> None:
    assert [scale_for(w) for w in (5000, 20_000, 1e6, 100e6)] == [0, 1, 2, 4]
    plant = StaticPlant()
    plant.inverters['u'] = InverterSample(
        active_power=-1.2e6, max_charge_power=2e6, max_discharge_power=2e6, max_apparent_power=2e6
    )
    plant.packs['u'] = PackSample(voltage=1200.0, energy_full=4e6, energy=2e6, charge_full=3400.0)
    image = SunSpecInverterSimulator(plant, 'u', background=False)
    assert one(image, S701 + 10) * 10 ** one(image, S701 + 116) == 1_200_000
    battery = SunSpecBatterySimulator(plant, 'u')
    assert one(battery, S802 + 3) * 10 ** one(battery, S802 + 53) == pytest.approx(4e6, rel=1e-3)


def test_reads_are_cheap() -> None:
    device, _, _ = der()
    assert calls(lambda: device.read(3, S701, 125)) < 200  # the image is kept, not made anew


@contextmanager
def foreign_client(device: SunSpecDevice) -> Iterator[SunSpecModbusClientDeviceTCP]:
    server = ModbusDeviceServer({1: device}, DeviceFaults())
    server.start()
    client = SunSpecModbusClientDeviceTCP(1, '127.0.0.1', server.port, timeout=2)
    try:
        client.scan()
        yield client
    finally:
        client.close()
        server.stop()


def test_a_foreign_sunspec_client_discovers_and_drives_the_inverter() -> None:
    device, plant, _ = der()
    with foreign_client(device) as client:
        assert client.common[0].Mn.value == 'bess' and client.common[0].SN.value == 'u'
        control = client.models[704][0]
        control.WSet.cvalue = -1750
        control.write()
        control.WSetEna.value = 1
        control.write()
        measure = client.models[701][0]
        measure.read()
        assert measure.W.cvalue == -1750 and measure.Hz.cvalue == pytest.approx(50.0)
        assert isnan(plant.orders[-1][3]) and plant.inverters['u'].active_power == 1750.0
        assert client.models[702][0].WMaxRtg.cvalue == 5000
        assert client.models[713][0].SoC.cvalue == pytest.approx(50.0)
        assert client.models[714][0].Prt[0].DCV.cvalue == pytest.approx(52.0)
        assert all(
            not m[0].error_info for m in client.models.values() if hasattr(m[0], 'error_info')
        )


def test_a_foreign_sunspec_client_reads_the_battery() -> None:
    plant = StaticPlant()
    plant.pack('u').current = 33.3
    with foreign_client(SunSpecBatterySimulator(plant, 'u')) as client:
        battery, bank = client.models[802][0], client.models[803][0]
        assert battery.A.cvalue == pytest.approx(33.3) and battery.V.cvalue == pytest.approx(52.0)
        assert battery.WHRtg.cvalue == 5200 and battery.CellVMax.cvalue == pytest.approx(3.25)
        assert bank.NStr.value == 1 and bank.string[0].StrA.cvalue == pytest.approx(33.3)
        battery.SetOp.value = 2
        battery.write()
        assert not plant.pack('u').charge_switch
