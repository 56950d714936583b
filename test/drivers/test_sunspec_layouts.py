"""Further SunSpec layouts over real Modbus TCP: MESA drafts, strings and modules, flow batteries, MESA-PCS, meters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest

from bess_core.values import Contactor, ConverterState, Mode, Quality, Severity
from bess_drivers.device import BadValue, DeviceError, NoAnswer, ReadOnlyError, Refused
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_drivers.sunspec.meter import SunSpecMeter, SunSpecMeterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecInverterSimulator
from bess_sim.devices.sunspec_layouts import SUNSPEC_LAYOUTS
from bess_sim.plant_api import InverterSample, PackSample, StaticPlant

Serve = Callable[..., tuple[Any, str, DeviceFaults]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A simulated device on a port of its own: (registers, address, faults)."""
    servers = []

    def make(layout: str, plant: StaticPlant) -> tuple[Any, str, DeviceFaults]:
        faults = DeviceFaults()
        registers = SUNSPEC_LAYOUTS[layout](plant, 'u', faults)
        server = ModbusDeviceServer({1: registers}, faults)
        server.start()
        servers.append(server)
        return registers, f'tcp://127.0.0.1:{server.port}', faults

    yield make
    for server in servers:
        server.stop()


def opened(address: str, read_only: bool = False, **more: Any) -> SunSpecBattery:
    device = SunSpecBattery(SunSpecBatteryParams(address=address, timeout_s=0.4, **more), read_only)
    device.open()
    return device


def ids(reading: Any) -> list[str]:
    return [a.id for a in reading.alarms]


PACK = PackSample(voltage=51.2, current=-20.0, soc=0.6, soh=0.9, energy_full=4500.0,
                  cells=(3.21, *(3.2,) * 14, 3.19), temperatures=(24.0, 31.0), max_charge_current=50.0,
                  max_discharge_current=80.0, balancing=(True, *(False,) * 15))


def test_the_drafts_give_a_complete_battery(serve: Serve) -> None:
    plant = StaticPlant(packs={'u': replace(PACK)})
    registers, address, _ = serve('sunspec_draft', plant)
    device = opened(address, heartbeat=True)
    assert device.identify().model == 'draft battery' and device.notes == ()
    r = device.read(5.0)
    assert (r.voltage, r.current, r.soc, r.soh) == pytest.approx((51.2, -20.0, 0.6, 0.9))
    assert (r.energy_full, r.energy) == pytest.approx((4500.0, 2700.0), rel=0.02)
    assert (r.max_charge_current, r.max_discharge_current) == pytest.approx((50.0, 80.0))
    assert (r.cell_voltage_min, r.cell_voltage_max) == pytest.approx((3.19, 3.21))
    assert (r.temperature_min, r.temperature) == pytest.approx((24.0, 31.0))
    assert (r.mode, r.contactor, r.alarms, r.quality) == (Mode.DISCHARGING, Contactor.CLOSED, (), Quality.OK)
    assert registers.word(0, 17) == 1  # our heartbeat in 801 ControllerHb
    plant.packs['u'].current = 7.5
    assert device.read(6.0).current == pytest.approx(7.5)
    turned = opened(address, current_sign='discharge_positive')
    assert turned.read(6.0).current == pytest.approx(-7.5)


@pytest.mark.parametrize(('bit', 'name'), enumerate((
    'communication_error over_temp_alarm under_temp_alarm over_temp_warning under_temp_warning '
    'over_charge_current_alarm over_discharge_current_alarm over_charge_current_warning '
    'over_discharge_current_warning voltage_imbalance_warning current_imbalance_warning over_volt_alarm '
    'under_volt_alarm over_volt_warning under_volt_warning contactor_error fan_error - ground_fault open_door_error '
    'other_alarm other_warning').split()))
def test_each_event_of_the_draft_is_its_own_fault(serve: Serve, bit: int, name: str) -> None:
    registers, address, _ = serve('sunspec_draft', StaticPlant(packs={'u': replace(PACK)}))
    registers.events = 1 << bit
    r = opened(address).read(0.0)
    assert ids(r) == ([] if name == '-' else [f'sunspec.{name}'])  # 17 says that the contactor is closed
    if name != '-':
        assert r.alarms[0].severity == (Severity.WARNING if name.endswith('warning') else Severity.ERROR)
    assert (r.max_charge_current == 0) == (name in ('over_temp_alarm', 'under_temp_alarm', 'over_volt_alarm'))
    assert (r.max_discharge_current == 0) == (name in ('over_temp_alarm', 'under_volt_alarm'))


def test_contactor_of_the_draft(serve: Serve) -> None:
    plant = StaticPlant(packs={'u': replace(PACK)})
    plant.packs['u'].current = 0.0
    registers, address, _ = serve('sunspec_draft', plant)
    device = opened(address)
    device.set_contactor(False, False)
    assert device.read(1.0).contactor is Contactor.OPEN and not plant.packs['u'].charge_switch
    device.set_contactor(True, True)
    assert device.read(1.0).contactor is Contactor.CLOSED
    plant.packs['u'].current = -30.0
    with pytest.raises(BadValue, match='disconnect at -30 A'):
        device.set_contactor(False, False)
    with pytest.raises(ReadOnlyError):
        opened(address, read_only=True).set_contactor(True, True)
    registers.connection, registers.request = 6, 2
    r = device.read(2.0)
    assert 'sunspec.string_0_connection' in ids(r) and r.max_charge_current == r.max_discharge_current == 0


@pytest.mark.parametrize('fault', ['no_answer', 'truncated_frame', 'wrong_unit_id', 'flipped_bytes', 'disconnect'])
def test_a_broken_line_gives_errors_and_then_the_battery_again(serve: Serve, fault: str) -> None:
    _, address, faults = serve('sunspec_strings', StaticPlant(packs={'u': replace(PACK)}))
    device = opened(address, cells_every_s=0.0)
    device.read(0.0)
    faults.inject(fault)
    with pytest.raises(DeviceError):
        for _ in range(4):
            device.read(1.0)
    faults.clear()
    deadline = time.monotonic() + 5.0
    while True:
        try:
            device.open()
            assert device.read(2.0).voltage == pytest.approx(51.2)
            return
        except (NoAnswer, DeviceError):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_strings_and_modules_without_a_bank(serve: Serve) -> None:
    registers, address, _ = serve('sunspec_strings', StaticPlant(packs={'u': replace(PACK)}))
    device = opened(address)
    assert device.identify().model == 'strings'
    r = device.read(1.0)
    assert (r.voltage, r.current, r.power, r.soc) == pytest.approx((51.2, -20.0, -1024.0, 0.6))
    assert r.cells == pytest.approx(PACK.cells) and r.balancing == PACK.balancing
    assert (r.cell_voltage_max_index, r.cell_voltage_min_index) == (0, 15)
    assert (r.members, r.members_usable, r.contactor) == (2, 2, Contactor.CLOSED)
    assert isnan(r.max_charge_current) and isnan(r.energy)
    registers.events = 1 << 9 | 1 << 24  # over-voltage; 24 is reserved
    r = device.read(2.0)
    assert ids(r) == ['sunspec.over_volt_alarm', 'sunspec.bit_24'] and r.alarms[0].text.startswith('string 1')
    assert r.max_charge_current == 0 and isnan(r.max_discharge_current)
    with pytest.raises(BadValue, match='no model 802'):
        device.set_contactor(True, True)


@pytest.mark.parametrize(('bits', 'bits2', 'name'), [
    (1 << 27, 0, 'fire_alarm'), (1 << 25, 0, 'other_alarm'), (0, 1, 'leak_alarm'), (0, 2, 'pump_alarm'),
    (0, 4, 'high_pressure_alarm'), (0, 8, 'high_pressure_warning'), (0, 16, 'low_flow_alarm'),
    (0, 32, 'low_flow_warning')])
def test_flow_battery_events(serve: Serve, bits: int, bits2: int, name: str) -> None:
    registers, address, _ = serve('sunspec_flow', StaticPlant(packs={'u': replace(PACK)}))
    device = opened(address)
    r = device.read(0.0)
    assert (r.voltage, r.soc) == pytest.approx((51.2, 0.6)) and r.alarms == ()
    assert (r.temperature_min, r.temperature) == pytest.approx((24.0, 31.0))
    assert (r.cell_voltage_min, r.cell_voltage_max) == pytest.approx((1.38, 1.45))
    registers.events, registers.events2, registers.connection = bits, bits2, 7
    r = device.read(1.0)
    assert ids(r) == [f'sunspec.{name}', 'sunspec.string_0_module_1_connection']
    assert (r.max_charge_current == 0) == (name == 'fire_alarm')
    registers.events = registers.events2 = 0
    registers.module_events2 = bits2
    assert (f'sunspec.{name}' in ids(device.read(2.0))) == bool(bits2)


# --- MESA-PCS -------------------------------------------------------------------------------------


def pcs(address: str, read_only: bool = False, **more: Any) -> SunSpecInverter:
    device = SunSpecInverter(SunSpecInverterParams(address=address, legacy_control='signed_limit', **more), read_only)
    device.open()
    return device


def test_mesa_pcs_starts_follows_and_reverts(serve: Serve) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    registers, address, _ = serve('mesa_pcs', plant)
    device = pcs(address, heartbeat=True, off_on_stop=True)
    assert device.identify().model == 'MESA-PCS'
    assert device.read(0.0).state is ConverterState.OFF
    device.write_power(2000.0, nan, 1.0)  # charging
    sample = plant.inverters['u']
    assert registers.running and registers.word(4, 6) == 1  # START_PCS, which is 1 here too, but STOP is 2
    assert sample.active_power == pytest.approx(2000.0)
    assert registers.word(3, 5) == 0x10000 - 400  # -40 % of 5 kW
    r = device.read(1.0)
    assert (r.active_power, r.state, r.setpoint) == (2000.0, ConverterState.RUNNING, 2000.0)
    assert registers.word(4, 4) >= 1  # ControllerHb
    device.write_power(-1500.0, nan, 1.0)
    assert device.read(1.0).active_power == -1500.0
    deadline = time.monotonic() + 3.0
    while device.read(2.0).active_power != 0:  # the lease ends in the device
        assert time.monotonic() < deadline
        time.sleep(0.02)
    device.write_power(500.0, nan, 1.0)
    device.stop()
    assert registers.word(4, 6) == 2 and not registers.running and sample.active_power == 0


def test_mesa_pcs_refusals(serve: Serve) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    registers, address, _ = serve('mesa_pcs', plant)
    registers.local = True
    device = pcs(address)
    with pytest.raises(Refused, match='local control'):
        device.write_power(100.0, nan, 1.0)
    assert 'inverter: in local control' in device.read(0.0).limit_reasons
    with pytest.raises(ReadOnlyError):
        pcs(address, read_only=True).write_power(100.0, nan, 1.0)
    registers.events = 1 << 7
    assert ids(device.read(0.0)) == ['sunspec.over_temp']
    assert plant.orders == []


def test_currents_of_the_battery_are_told_to_a_mesa_pcs(serve: Serve) -> None:
    registers, address, _ = serve('mesa_pcs', StaticPlant(inverters={'u': InverterSample()}))
    device = pcs(address, battery_charge_current=50.0, battery_discharge_current=80.5)
    assert device.read(0.0).alarms == () and registers.word(4, 7) == 0  # with the first order
    device.write_power(100.0, nan, 5.0)
    assert (registers.word(4, 7), registers.word(4, 8)) == (5000, 8050)
    other = pcs(address, battery_charge_current=900.0)  # 0.01 A in 16 bits
    with pytest.raises(BadValue, match='does not fit'):
        other.write_power(100.0, nan, 5.0)
    server = ModbusDeviceServer({1: SunSpecInverterSimulator(StaticPlant(), 'u')}, DeviceFaults())
    server.start()
    with pytest.raises(BadValue, match='64800 or 64202'):
        kaco(f'tcp://127.0.0.1:{server.port}', battery_charge_current=50.0).write_power(100.0, nan, 5.0)
    server.stop()


def test_power_factor_and_ramp_of_an_older_inverter(serve: Serve) -> None:
    registers, address, _ = serve('mesa_pcs', StaticPlant(inverters={'u': InverterSample()}))
    device = pcs(address, power_factor=-0.95, ramp=20.0)
    device.write_power(100.0, 0.0, 5.0)
    assert registers.word(3, 10) == 0x10000 - 95 and registers.word(3, 14) == 1 and registers.word(2, 12) == 20
    with pytest.raises(BadValue, match='power_factor is set'):
        device.write_power(100.0, 50.0, 5.0)
    device.stop()
    assert registers.word(3, 14) == 0


# --- KACO 64201 -----------------------------------------------------------------------------------


def kaco(address: str, read_only: bool = False, **more: Any) -> SunSpecInverter:
    device = SunSpecInverter(SunSpecInverterParams(address=address, **more), read_only)
    device.open()
    return device


def test_kaco_connects_follows_and_its_watchdog_ends_the_order(serve: Serve) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    registers, address, _ = serve('kaco_gridsave', plant)
    device = kaco(address, off_on_stop=True)
    assert device.identify().model == 'blueplanet gridsave' and device.notes == ()
    assert device.read(0.0).state is ConverterState.OFF  # 103 St
    device.write_power(2000.0, nan, 1.0)  # charging
    sample = plant.inverters['u']
    assert registers.word(3, 4) == 11 and registers.word(3, 8) == 1
    assert registers.word(3, 9) == 0x10000 - 4000 and sample.active_power == pytest.approx(2000.0)  # - = charging
    r = device.read(1.0)
    assert (r.active_power, r.state, r.setpoint) == (2000.0, ConverterState.RUNNING, 2000.0)
    device.write_power(-1500.0, 500.0, 1.0)
    assert registers.word(3, 6) == 1 and sample.reactive_power == pytest.approx(500.0)
    assert device.read(1.0).active_power == -1500.0
    deadline = time.monotonic() + 3.0
    while device.read(2.0).active_power != 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    device.write_power(500.0, nan, 5.0)
    assert sample.active_power == pytest.approx(500.0)
    device.stop()
    assert sample.active_power == 0.0 and registers.word(3, 4) == 1 and registers.word(3, 8) == 0
    assert registers.word(3, 6) == 0


def test_kaco_faults_and_refusals(serve: Serve) -> None:
    plant = StaticPlant(inverters={'u': InverterSample()})
    registers, address, _ = serve('kaco_gridsave', plant)
    registers.state = 12
    device = kaco(address)
    assert device.read(0.0).state is ConverterState.FAULT  # waits for an acknowledgement
    with pytest.raises(BadValue, match='more than WMax'):
        device.write_power(9000.0, nan, 1.0)
    assert registers.state == 12
    device.write_power(100.0, nan, 5.0)  # OFF acknowledges
    assert registers.state == 11 and plant.inverters['u'].active_power == pytest.approx(100.0)
    with pytest.raises(BadValue, match='no power factor'):
        kaco(address, ramp=20.0).write_power(100.0, nan, 5.0)
    registers.fill(3, {8: ('u16', 0)})
    assert 'sunspec.order_dropped_watchdog' in ids(device.read(1.0))
    with pytest.raises(ReadOnlyError):
        kaco(address, read_only=True).write_power(100.0, nan, 1.0)
    registers.events = 1 << 7
    assert 'sunspec.over_temp' in ids(device.read(2.0))


# --- DER ------------------------------------------------------------------------------------------


def test_power_factor_and_ramp_of_a_der_and_the_der_as_a_meter() -> None:
    plant = StaticPlant(inverters={'u': InverterSample(energy_import=1000.0, energy_export=3000.0)})
    simulator = SunSpecInverterSimulator(plant, 'u', background=False)
    simulator.image.scale(704, PF_SF=-3)
    simulator.image.set(704, {'PFWInjEna': 0, 'PFWAbsEna': 0, 'PFWInj.PF': 1.0, 'PFWInj.Ext': 0, 'PFWAbs.PF': 1.0,
                              'PFWAbs.Ext': 0})
    server = ModbusDeviceServer({1: simulator}, DeviceFaults())
    server.start()
    try:
        address = f'tcp://127.0.0.1:{server.port}'
        device = SunSpecInverter(SunSpecInverterParams(address=address, power_factor=-0.9, ramp=25.0))
        device.open()
        device.write_power(-1200.0, nan, 5.0)
        value = simulator.image.value
        set_ = [value(704, n) for n in ('PFWInj.PF', 'PFWInj.Ext', 'PFWInjEna')]
        assert set_ == pytest.approx([0.9, 1, 1])
        assert (value(704, 'PFWAbs.PF'), value(704, 'PFWAbsEna')) == pytest.approx((0.9, 1))
        assert value(704, 'WRmp') == 25 and plant.orders[-1][3] == pytest.approx(0.25 * 5000)
        meter = SunSpecMeter(SunSpecMeterParams(address=address))
        meter.open()
        m = meter.read(0.0)
        assert (m.active_power, m.phase_power[0]) == (-1200.0, -1200.0)
        assert (m.energy_import, m.energy_export) == (1000.0, 3000.0)
        assert m.current[0] == pytest.approx(-1200 / 230, abs=0.06) and m.power_factor == -1.0
        device.stop()
        assert value(704, 'PFWInjEna') == value(704, 'PFWAbsEna') == 0
        with pytest.raises(ValueError, match='power_factor'):
            SunSpecInverterParams(address=address, power_factor=1.5)
    finally:
        server.stop()
