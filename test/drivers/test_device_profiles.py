"""The installed profiles against simulated devices that were written from the makers' tables, and against figures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest

from bess_core.values import ConverterState
from bess_drivers.device import BadValue
from bess_drivers.modbus.profile_device import ModbusConverter, ModbusIo, ModbusMeter, ProfileDevice, ProfileParams
from bess_drivers.profiles import load_profile
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.register_image import RegisterImage
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.plant_api import InverterSample, MeterSample, StaticPlant


class Bench:
    """A simulated device on TCP with its driver."""

    def __init__(self, registers: Any, kind: type[ProfileDevice], profile: str, **more: Any) -> None:
        self.registers = registers
        self.server = ModbusDeviceServer({1: registers}, DeviceFaults())
        self.server.start()
        self.device: Any = kind(ProfileParams(address=f'tcp://127.0.0.1:{self.server.port}', profile=profile,
                                              timeout_s=0.5, **more))
        self.device.open()

    def close(self) -> None:
        self.device.close()
        self.server.stop()


Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    made: list[Bench] = []

    def make(*args: Any, **more: Any) -> Bench:
        made.append(Bench(*args, **more))
        return made[-1]

    yield make
    for b in made:
        b.close()


@pytest.mark.parametrize('name', ['eastron_sdm630', 'janitza_umg96rme'])
def test_meters_read_what_the_grid_is(bench: Make, name: str) -> None:
    plant = StaticPlant(meter_sample=MeterSample(
        phase_power=(-1500.0, 230.0, 40.5), reactive_power=120.0, voltage=(231.0, 229.5, 230.0), frequency=49.985,
        energy_import=123_456.0, energy_export=7_890.0))
    b = bench(LAYOUTS[name](plant, '', DeviceFaults()), ModbusMeter, name)
    assert b.device.identify().model
    r = b.device.read(1.0)
    assert r.phase_power == pytest.approx((-1500.0, 230.0, 40.5))
    assert r.active_power == pytest.approx(-1229.5)
    assert r.voltage == pytest.approx((231.0, 229.5, 230.0))
    assert r.current == pytest.approx((-1500 / 231, 230 / 229.5, 40.5 / 230), rel=1e-5)
    assert (r.reactive_power, r.frequency) == pytest.approx((120.0, 49.985))
    assert (r.energy_import, r.energy_export) == pytest.approx((123_456.0, 7_890.0), rel=1e-6)
    # Other numbers of the same plant, the signs turned.
    plant.meter_sample = MeterSample(phase_power=(10.0, 20.0, 30.0), voltage=(230.0, nan, nan))
    assert b.device.read(2.0).active_power == pytest.approx(60.0)


def test_the_sdm630_is_never_asked_for_more_than_it_takes(bench: Make) -> None:
    device = LAYOUTS['eastron_sdm630'](StaticPlant(), '', DeviceFaults())
    b = bench(device, ModbusMeter, 'eastron_sdm630')
    b.device.identify()
    device.image.reads.clear()
    b.device.read(1.0)
    assert len(device.image.reads) == 2
    assert max(count for _, _, count in device.image.reads) <= 40


#: OpenEMS @0e4ea888 (Janitza drivers): address of P total and frequency, and one phase voltage, of each model.
JANITZA = {'janitza_umg96rme': (19026, 19050, 19000), 'janitza_umg801': (19026, 19050, 19000),
           'janitza_umg509': (19026, 19050, 19000), 'janitza_umg604': (1369, 1439, 1317),
           'janitza_umg511': (3925, 3995, 3845)}


@pytest.mark.parametrize('name', JANITZA)
def test_janitza_addresses(bench: Make, name: str) -> None:
    image = RegisterImage()
    for start in (1300, 3840, 9840, 19000):
        image.fill(3, range(start, start + 160))
    power, frequency, voltage = JANITZA[name]
    for address, value in ((power, -4321.5), (frequency, 50.02), (voltage, 229.0)):
        image.put(3, address, 'f32', value)
    b = bench(image, ModbusMeter, name)
    b.device.identify()
    r = b.device.read(1.0)
    assert (r.active_power, r.frequency, r.voltage[0]) == pytest.approx((-4321.5, 50.02, 229.0))


def converter(bench: Make, name: str, **more: Any) -> tuple[StaticPlant, Bench]:
    plant = StaticPlant(inverters={'u': InverterSample(dc_voltage=50.0)})
    return plant, bench(LAYOUTS[name](plant, 'u', DeviceFaults()), ModbusConverter, name, **more)


@pytest.mark.parametrize(('name', 'more', 'step'), [
    ('luxpower_lxp', {'rated_power': 12_000.0}, 12.0), ('abb_pqstori', {}, 0.01), ('trumpf_dc1008', {}, 50.0),
])
def test_converters_do_as_they_are_told_in_both_directions(bench: Make, name: str, more: dict, step: float) -> None:
    plant, b = converter(bench, name, **more)
    b.device.identify()
    for step_number, power in enumerate((2400.0, -3600.0, 0.0, 600.0)):
        b.device.read(1.0)
        b.device._clock = lambda at=step_number: 1000.0 * at  # past any write interval
        b.device.write_power(power, nan, 5.0)
        sample = plant.inverter('u')
        assert sample.active_power == pytest.approx(power, abs=step)
        sample.dc_power, sample.dc_current = power, power / 50.0
        r = b.device.read(2.0)
        assert r.active_power == pytest.approx(power, abs=step)
        assert r.dc_voltage == pytest.approx(50.0)
        assert r.dc_power == pytest.approx(power, abs=step)
    b.device.stop()
    assert plant.inverter('u').active_power == 0.0


def test_states_of_the_lxp(bench: Make) -> None:
    plant, b = converter(bench, 'luxpower_lxp', rated_power=12_000.0)
    b.device.identify()
    device: Any = b.registers
    assert b.device.read(1.0).state is ConverterState.STANDBY
    device.image.before_read = None  # from here the registers are ours
    for number, state, island in ((0x01, 'FAULT', False), (0x02, 'OFF', False), (0x20, 'RUNNING', False),
                                  (0x40, 'RUNNING', True), (0x88, 'RUNNING', True), (0xC0, 'RUNNING', True)):
        device.image.put(4, 0, 'u16', number)
        r = b.device.read(2.0)
        assert (r.state.name, r.grid_forming) == (state, island), hex(number)
    # E016 and E025 in the fault word (60 low, 61 high), W009 in the warning word.
    device.image.put(4, 60, 'u16', 0)
    device.image.put(4, 61, 'u16', 1 << 0 | 1 << 9)
    device.image.put(4, 62, 'u16', 1 << 9)
    assert [a.id for a in b.device.read(3.0).alarms] == [
        'luxpower.e016_relay', 'luxpower.e025_heatsink_temperature', 'luxpower.w009_fan_stuck']


def test_lxp_touches_flash_only_when_it_must(bench: Make) -> None:
    _, b = converter(bench, 'luxpower_lxp', rated_power=12_000.0)
    clock = [1000.0]
    b.device._clock = lambda: clock[0]
    for _ in range(100):
        b.device.write_power(2400.0, nan, 5.0)
        clock[0] += 0.5
    assert [(a, v) for _, _, a, v in b.server.writes] == [(138, (200,)), (21, (1 << 11 | 1 << 9 | 1,))]


def test_pqstori_float_of_the_manual(bench: Make) -> None:
    """Set P in kW, + = discharge: 12.5 kW of discharging are the float 12.5, high word first."""
    _, b = converter(bench, 'abb_pqstori', heartbeat=False)
    b.device.write_power(-12_500.0, 2000.0, 5.0)
    writes = [(a, v) for _, _, a, v in b.server.writes]
    assert writes == [(44611, (1,)), (46201, struct.unpack('>2H', struct.pack('>f', 12.5))),
                      (46203, struct.unpack('>2H', struct.pack('>f', -2.0)))]


def test_pqstori_beats_well_within_its_20_seconds(bench: Make) -> None:
    _, b = converter(bench, 'abb_pqstori')
    clock = [0.0]
    b.device._clock = lambda: clock[0]
    beats = []
    for _ in range(600):
        before = len(b.server.writes)
        b.device.read(clock[0])
        beats += [(clock[0], v[0]) for _, _, a, v in list(b.server.writes)[before:] if a == 46229]
        clock[0] += 0.2
    gaps = [later[0] - earlier[0] for earlier, later in zip(beats, beats[1:], strict=False)]
    assert max(gaps) < 6.0
    assert all(a[1] != c[1] for a, c in zip(beats, beats[1:], strict=False))
    assert beats[0][1] != 0


def test_modicon_notation_of_the_same_profile(bench: Make) -> None:
    image = RegisterImage()
    image.fill(4, range(500, 6300))
    image.put(4, 810, 'f32', 3.5)  # 30811
    image.put(3, 6228, 'u16', 0, writable=True)
    for address in (6200, 6202):
        image.put(3, address, 'f32', 0.0, writable=True)  # 46201, 46203
    b = bench(image, ModbusConverter, 'abb_pqstori', notation='modicon', heartbeat=False)
    b.device.identify()
    assert b.device.read(1.0).active_power == pytest.approx(-3500.0)


def test_trumpf_ac_power_word(bench: Make) -> None:
    """4195 is in kVA x 0.001: 3 kW are 3000; what the manual does not print stays unknown."""
    image = RegisterImage()
    image.put(3, 4009, 'u16', 2)
    image.put(3, 4195, 'i16', 0, writable=True)
    b = bench(image, ModbusConverter, 'trumpf_ac3025')
    r = b.device.read(1.0)
    assert (r.state, r.grid_forming, isnan(r.active_power)) == (ConverterState.UNKNOWN, True, True)
    b.device.write_power(-3000.0, nan, 1.0)
    assert image.number(3, 4195, 'i16') == 3000
    with pytest.raises(BadValue, match='takes -32000 to 32000'):
        b.device.write_power(33_000.0, nan, 1.0)


def test_trumpf_dc_status_words(bench: Make) -> None:
    _, b = converter(bench, 'trumpf_dc1008')
    b.device.identify()
    device: Any = b.registers
    device.image.before_read = None
    for number, state in enumerate(('STARTING', 'FAULT', 'STANDBY', 'RUNNING', 'OFF')):
        device.image.put(4, 5000, 'i16', number)
        r = b.device.read(1.0)
        assert r.state.name == state
        assert [a.id for a in r.alarms] == (['trumpf_dc1008.alarm'] if number == 1 else [])
    assert r.max_charge_power == pytest.approx(167.0 * 50.0)


def test_rd6006_only_charges(bench: Make) -> None:
    plant, b = converter(bench, 'rd6006')
    assert b.device.identify().serial == '12345'
    b.device.read(1.0)
    b.device.write_power(100.0, nan, 1.0)
    assert [(a, v[0]) for _, _, a, v in b.server.writes] == [(9, 2000), (18, 1)]
    r = b.device.read(2.0)
    assert (r.dc_current, r.active_power, r.max_discharge_power) == pytest.approx((2.0, 100.0, 0.0))
    assert r.state is ConverterState.RUNNING
    b.device.write_power(-100.0, nan, 1.0)  # the gate would not let it through; here it is no current
    assert plant.inverter('u').active_power == 0.0
    b.device.stop()


def test_a_current_needs_a_voltage(bench: Make) -> None:
    _, b = converter(bench, 'rd6006')
    with pytest.raises(BadValue, match='voltage is not known'):
        b.device.write_power(100.0, nan, 1.0)


def test_rhombus_through_a_profile_of_its_own(bench: Make, tmp_path: Path) -> None:
    names = list(load_profile('rhombus_res125').points)
    text = 'extends: rhombus_res125\ntitle: Our inverter\npoints:\n' + ''.join(
        f'  {name}: {{address: {100 + i}}}\n' for i, name in enumerate(names))
    path = tmp_path / 'our_inverter.yaml'
    path.write_text(text)
    at = {name: 100 + i for i, name in enumerate(names)}
    image = RegisterImage()
    image.fill(3, range(100, 100 + len(names)))
    image.writable |= {(3, at[n]) for n in ('Heartbeat', 'SecurityCode', 'OpMode', 'MaxPowerCommand')}
    image.put(3, at['active_power'], 'i16', -40)
    image.put(3, at['UnitStatus'], 'u16', 5)
    image.put(3, at['frequency'], 'u16', 60)
    image.put(3, at['Heartbeat'], 'u16', 800)
    b = bench(image, ModbusConverter, str(path), security_code=4711)
    r = b.device.read(1.0)
    assert (r.active_power, r.state) == (40_000.0, ConverterState.RUNNING)
    b.device.write_power(20_000.0, nan, 5.0)
    b.device.stop()
    assert [(a, v[0]) for _, _, a, v in b.server.writes] == [
        (at['SecurityCode'], 4711), (at['OpMode'], 1), (at['MaxPowerCommand'], 0x10000 - 20),
        (at['MaxPowerCommand'], 0), (at['OpMode'], 0)]
    b.server.writes.clear()
    image.put(3, at['Heartbeat'], 'u16', 750)
    b.device.read(2.0)
    b.device.read(2.1)
    assert [(a, v[0]) for _, _, a, v in b.server.writes] == [(at['Heartbeat'], 931)]
    image.put(3, at['CIUFaultSummary'], 'u16', 1 << 8 | 1)
    image.put(3, at['GridOffStandaloneOn'], 'u16', 1)
    image.put(3, at['Warnings'], 'u16', 1 << 13)
    r = b.device.read(3.0)
    assert r.state is ConverterState.FAULT
    assert {a.id for a in r.alarms} == {'rhombus.critical_mod_communication_error', 'rhombus.epo_shutdown',
                                        'rhombus.grid_standalone_on', 'rhombus.too_cold'}


def test_relays_and_inputs(bench: Make) -> None:
    b = bench(LAYOUTS['generic_io_8'](StaticPlant(), '', DeviceFaults()), ModbusIo, 'generic_io_8')
    b.device.write_output('relay_3', 1.0)
    r = b.device.read(1.0)
    assert [int(v) for v in r.digital_inputs.values()] == [0, 0, 1, 0, 0, 0, 0, 0]
