"""Pins, files of the kernel, climate sensors, watchdogs: each against a double at the lowest level."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from gpiozero.pins.mock import MockFactory
from hypothesis import given
from hypothesis import strategies as st
from i2c_double import Bus, i2c_bus
from local_double import DBench, ZeroBench, tree

from bess_core.values import Severity, Switch
from bess_drivers.device import (
    BadChecksum,
    BadFrame,
    BadValue,
    DeviceError,
    Disconnected,
    NoAnswer,
    ReadOnlyError,
    Refused,
)
from bess_drivers.io import bme280_codec as b
from bess_drivers.io import pins as pins_module
from bess_drivers.io.analog import (
    AnalogInputs,
    AnalogParams,
    CpuParams,
    CpuTemperature,
    OneWire,
    OneWireParams,
    parse_channel,
)
from bess_drivers.io.bme import Bme280Sensor, Bme680Params, Bme680Sensor, BmeParams
from bess_drivers.io.gpio import GpioModule, GpioParams
from bess_drivers.io.hardware_watchdog import StratoWatchdog
from bess_drivers.io.ntc import SteinhartHart, divider
from bess_drivers.io.pins import Gpiozero, parse_pin, parse_pins
from bess_drivers.io.stratopi import StratoPi, StratoPiParams
from bess_sim.devices import bme as simulated

PINS = ['start=17 button pull=up active_low', 'stop=22 emergency_stop', 'door=23', 'fan=27 relay',
        'lamp=5 led active_low']


# -- pins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('text', 'problem'), [
    ('x', 'name=place'), ('x=a', 'no number'), ('x=1 relay led', 'both'), ('x=1 blue', "unknown 'blue'"),
    ('x=1 pull=left', 'pull'), ('x=1 debounce_ms=2000', 'debounce'), ('', 'empty'), ('x-y=1', 'name=place'),
    ('x=1 relay relay', 'twice')])
def test_wrong_pins(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_pin(text)


def test_pins_are_there_once():
    assert parse_pin('start=17 button pull=up active_low').debounce_ms == 20
    for double in (['a=1', 'a=2'], ['a=1', 'b=1']):
        with pytest.raises(ValueError, match='twice'):
            parse_pins(double)
    with pytest.raises(ValueError, match='pins is empty'):
        GpioModule(GpioParams(address='gpiozero:mock'))
    with pytest.raises(ValueError, match='neither'):
        GpioModule(GpioParams(address='usb:1', pins=PINS))


@pytest.fixture(params=[ZeroBench, DBench])
def pin_bench(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return request.param(monkeypatch)


def test_pins_are_read_counted_and_driven(pin_bench):
    module = GpioModule(GpioParams(address=pin_bench.address, pins=[p + ' debounce_ms=0' if 'start' in p else p
                                                                    for p in PINS]))
    module.open()
    for line, high in ((17, True), (22, True), (23, False)):
        pin_bench.drive(line, high)
    r = module.read(3.0)
    assert r.digital_inputs == {'start': Switch.OFF, 'stop': Switch.ON, 'door': Switch.OFF} and r.alarms == ()
    assert r.digital_outputs == {'fan': Switch.OFF, 'lamp': Switch.OFF}
    assert (pin_bench.level(27), pin_bench.level(5)) == (False, True)  # active low: off is high
    for _ in range(3):
        pin_bench.drive(17, False)
        pin_bench.drive(17, True)
    pin_bench.drive(23, True)
    module.write_output('fan', 1.0)
    module.write_output('lamp', 1.0)
    r = module.read(4.0)
    assert r.analog_inputs == {'start_presses': 3.0} and r.digital_inputs['door'] is Switch.ON
    assert (pin_bench.level(27), pin_bench.level(5)) == (True, False)
    assert r.digital_outputs == {'fan': Switch.ON, 'lamp': Switch.ON}
    pin_bench.drive(22, False)
    (alarm,) = module.read(5.0).alarms
    assert (alarm.id, alarm.severity) == ('io.emergency_stop', Severity.CRITICAL)
    for name, value in (('door', 1.0), ('none', 1.0), ('fan', 0.5), ('fan', nan)):
        with pytest.raises(BadValue):
            module.write_output(name, value)
    rules = module.output_rules()
    assert rules['fan'].safe == 0.0 and not rules['fan'].latched and rules['lamp'].latched
    module.close()
    with pytest.raises(Disconnected):
        module.read(6.0)


def test_read_only_drives_no_pin(pin_bench):
    module = GpioModule(GpioParams(address=pin_bench.address, pins=PINS), read_only=True)
    module.open()
    r = module.read(0.0)
    assert r.digital_outputs == {'fan': Switch.UNKNOWN, 'lamp': Switch.UNKNOWN}
    with pytest.raises(ReadOnlyError):
        module.write_output('fan', 1.0)
    module.close()


def test_a_chip_that_goes_and_comes_keeps_what_was_ordered(monkeypatch):
    bench = DBench(monkeypatch)
    module = GpioModule(GpioParams(address=bench.address, pins=PINS))
    module.open()
    module.write_output('fan', 1.0)
    bench.request.gone = True
    with pytest.raises(Disconnected):
        module.read(0.0)
    bench.there = False
    with pytest.raises(Disconnected):
        module.open()
    bench.there = True
    module.open()
    assert module.read(0.0).digital_outputs['fan'] is Switch.ON


def test_missing_libraries_and_factories(monkeypatch):
    with pytest.raises(Disconnected):
        GpioModule(GpioParams(address='gpiozero:nonsense', pins=['a=1'])).open()
    with pytest.raises(Disconnected, match='by nature'):
        monkeypatch.setattr(Gpiozero, '_make_factory', lambda _: MockFactory())
        GpioModule(GpioParams(address='gpiozero:mock', pins=['a=1 pull=up'])).open()
    monkeypatch.setattr(pins_module.importlib, 'import_module', lambda name: exec('raise ImportError(name)'))
    with pytest.raises(BadValue, match='requirements/gpio.txt'):
        GpioModule(GpioParams(address='gpio:/dev/gpiochip0', pins=['a=1'])).open()


# -- files of the kernel --------------------------------------------------------------------------------


def test_strato_pi(tmp_path):
    root = tree(tmp_path / 'stratopi', {'relay/status': '0\n', 'button/status_deb': '1\n',
                                        'button/status_deb_cnt': '7\n', 'ups/battery': '1\n',
                                        'watchdog/expired': '0\n'})
    board = StratoPi(StratoPiParams(address=str(root)))
    board.open()
    assert board.identify().model == 'Strato Pi'
    r = board.read(0.0)
    assert r.digital_inputs == {'button': Switch.ON, 'on_battery': Switch.ON, 'watchdog_expired': Switch.OFF}
    assert r.digital_outputs == {'relay': Switch.OFF} and r.analog_inputs == {'button_presses': 7.0}
    assert [a.id for a in r.alarms] == ['io.on_battery']
    assert set(board.output_rules()) == {'relay'}
    board.write_output('relay', 1.0)
    assert (root / 'relay/status').read_text().strip()[0] == '1'
    assert board.read(0.0).digital_outputs['relay'] is Switch.ON
    with pytest.raises(Disconnected):
        board.write_output('led', 1.0)  # this model has none, and no file is made
    assert not (root / 'led').exists()
    with pytest.raises(ReadOnlyError):
        StratoPi(StratoPiParams(address=str(root)), read_only=True).write_output('relay', 0.0)
    tree(root, {'watchdog/expired': '1', 'ups/battery': '0'})
    assert [a.id for a in board.read(0.0).alarms] == ['io.watchdog_expired']
    tree(root, {'relay/status': 'garbage'})
    with pytest.raises(BadValue):
        board.read(0.0)
    with pytest.raises(Disconnected):
        StratoPi(StratoPiParams(address=str(tmp_path / 'none'))).read(0.0)
    with pytest.raises(BadValue, match='none of the files'):
        StratoPi(StratoPiParams(address=str(tmp_path))).identify()


def test_iio_and_thermistors(tmp_path):
    root = tree(tmp_path / 'iio', {'name': 'mcp3208', 'in_voltage0_raw': '2048', 'in_voltage_scale': '0.8',
                                   'in_voltage1_raw': '100', 'in_voltage1_offset': '-50', 'in_voltage1_scale': '2',
                                   'in_voltage2_raw': '4095', 'ai1_mv': '1234'})
    inputs = AnalogInputs(AnalogParams(address=str(root), channels=[
        'room=in_voltage0 ntc beta=3950 series=10000 supply=3.2768', 'current=in_voltage1 scale=-10 offset=1 unit=A',
        'broken=in_voltage2 ntc supply=3.276', 'tank=ai1_mv scale=0.001 unit=V', 'gone=in_voltage9']))
    assert inputs.identify().model == 'mcp3208'
    r = inputs.read(0.0)
    assert r.analog_inputs['room'] == pytest.approx(25.0) and r.units['room'] == 'degC'
    assert r.analog_inputs['current'] == pytest.approx(0.0) and r.units['current'] == 'A'
    assert r.analog_inputs['tank'] == pytest.approx(1.234)
    assert isnan(r.analog_inputs['broken']) and isnan(r.analog_inputs['gone'])
    (alarm,) = r.alarms
    assert alarm.id == 'io.sensor_failed' and 'broken' in alarm.text and 'gone' in alarm.text
    with pytest.raises(DeviceError):
        AnalogInputs(AnalogParams(address=str(root), channels=['gone=in_voltage9'])).read(0.0)
    assert inputs.output_rules() == {}


@pytest.mark.parametrize(('text', 'problem'), [
    ('x=y scale=z', 'no number'), ('x=y ntc a=1', 'all three'), ('x=y beta=3950', 'no use'), ('x=y series=1', 'no use'),
    ('x=y blue', "unknown 'blue'"), ('x', 'name=place'), ('', 'empty')])
def test_wrong_channels(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_channel(text)


def test_thermistor_curves():
    # Of a usual 10 kOhm thermistor with B25/85 = 3977: 0 degC 32.56 kOhm, 25 degC 10 kOhm, 50 degC 3.605 kOhm.
    curve = SteinhartHart.from_points([(0.0, 32_560.0), (25.0, 10_000.0), (50.0, 3_605.0)])
    assert [curve.temperature(r) for r in (32_560.0, 10_000.0, 3_605.0)] == pytest.approx([0.0, 25.0, 50.0])
    assert curve.temperature(19_872.0) == pytest.approx(10.0, abs=0.1)
    assert SteinhartHart.from_beta(3950.0, 10_000.0).temperature(10_000.0) == pytest.approx(25.0)
    # 1/T = 1/298.15 + ln(0.5)/3950
    assert SteinhartHart.from_beta(3950.0, 10_000.0).temperature(5_000.0) == pytest.approx(41.460, abs=0.001)
    assert all(map(isnan, map(curve.temperature, (0.0, inf, nan, -1.0))))
    for wrong in ([(0.0, 1.0)] * 3, [(0.0, 1.0), (1.0, 2.0), (2.0, -3.0)]):
        with pytest.raises(ValueError, match='three different'):
            SteinhartHart.from_points(wrong)
    with pytest.raises(ValueError, match='above 0'):
        SteinhartHart.from_beta(0.0, 1.0)
    with pytest.raises(ValueError, match='absolute zero'):
        curve.resistance(-300.0)


@given(st.floats(-40.0, 120.0))
def test_thermistor_there_and_back(t):
    for curve in (SteinhartHart.from_beta(3950.0, 10_000.0), SteinhartHart(1.129148e-3, 2.34125e-4, 8.76741e-8)):
        assert curve.temperature(curve.resistance(t)) == pytest.approx(t, abs=1e-6)


def test_divider():
    assert divider(1.65, 3.3, 10_000.0) == pytest.approx(10_000.0)
    assert divider(1.1, 3.3, 10_000.0) == pytest.approx(5_000.0)
    assert divider(1.1, 3.3, 10_000.0, pull_up=False) == pytest.approx(20_000.0)
    assert divider(3.3, 3.3, 1.0) == inf and divider(0.0, 3.3, 1.0) == 0.0
    assert divider(0.0, 3.3, 1.0, pull_up=False) == inf
    assert isnan(divider(nan, 3.3, 1.0)) and isnan(divider(1.0, 0.0, 1.0))


GOOD = '72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t=23125\n'


def test_one_wire(tmp_path):
    root = tree(tmp_path, {'28-0001/w1_slave': GOOD, '28-0002/w1_slave': GOOD.replace('YES', 'NO'),
                           '28-0003/w1_slave': '50 05 4b 46 7f ff 0c 10 1c : crc=1c YES\n'
                                               '50 05 4b 46 7f ff 0c 10 1c t=85000\n', 'w1_bus_master1/x': ''})
    r = OneWire(OneWireParams(address=str(root))).read(0.0)
    assert r.analog_inputs['28-0001'] == 23.125 and isnan(r.analog_inputs['28-0002']) and isnan(
        r.analog_inputs['28-0003'])
    assert r.alarms[0].id == 'io.sensor_failed' and 'lost its supply' in r.alarms[0].text
    one = OneWire(OneWireParams(address=str(root), sensors=['room=28-0001']))
    assert one.read(0.0).analog_inputs == {'room': 23.125} and one.identify().model == '1-wire, 1 sensors'
    for text, error in (('', BadChecksum), ('x', BadChecksum), (GOOD.replace('t=23125', ''), BadValue),
                        (GOOD.replace('23125', '200000'), BadValue), (GOOD.replace('YES', 'NO'), BadChecksum)):
        tree(root, {'28-0001/w1_slave': text})
        with pytest.raises(error):
            one.read(0.0)
    (root / '28-0001/w1_slave').unlink()
    with pytest.raises(Disconnected):
        one.read(0.0)
    with pytest.raises(BadValue, match='no temperature sensor'):
        OneWire(OneWireParams(address=str(root / 'w1_bus_master1'))).read(0.0)


def test_cpu_temperature(tmp_path):
    root = tree(tmp_path, {'thermal_zone0/type': 'cpu-thermal', 'thermal_zone0/temp': '51234',
                           'thermal_zone1/type': 'cpu-thermal', 'thermal_zone1/temp': '81000'})
    r = CpuTemperature(CpuParams(address=str(root))).read(0.0)
    assert r.analog_inputs == {'cpu_thermal': 51.234, 'cpu_thermal_1': 81.0}
    assert [a.id for a in r.alarms] == ['io.cpu_hot']
    tree(root, {'thermal_zone0/temp': 'x'})
    assert isnan(CpuTemperature(CpuParams(address=str(root))).read(0.0).analog_inputs['cpu_thermal'])
    with pytest.raises(Disconnected):
        CpuTemperature(CpuParams(address=str(root / 'none'))).read(0.0)


# -- climate sensors ------------------------------------------------------------------------------------


def test_worked_example_of_the_data_sheet():
    k = b.Calibration(simulated.T, simulated.P, simulated.H)
    fine = b.fine(519_888, k)
    assert b.temperature(fine) == pytest.approx(25.08, abs=0.005) and round(fine) == 128_422
    assert b.pressure(415_148, fine, k) == pytest.approx(100_653.27, abs=0.3)
    assert simulated.celsius(519_888) == 25.08
    assert simulated.pascal(415_148, 128_422) == pytest.approx(100_653.27, abs=0.3)


@given(st.integers(300_000, 700_000), st.integers(100_000, 700_000), st.integers(0, 65_534))
def test_both_published_forms_of_the_formulas_agree(t, p, h):
    k = b.Calibration(simulated.T, simulated.P, simulated.H)
    fine, whole = b.fine(t, k), simulated.t_fine(t)
    assert fine == pytest.approx(whole, abs=25)  # 0.005 K
    if p != b.NOT_MEASURED_20:
        assert b.pressure(p, whole, k) == pytest.approx(simulated.pascal(p, whole), rel=2e-5, abs=1.0)
    if h != b.NOT_MEASURED_16:
        assert b.humidity(h, whole, k) == pytest.approx(simulated.humidity(h, whole), abs=2e-3)


@given(st.binary(max_size=30), st.binary(max_size=10))
def test_garbage_of_a_bme280(first, second):
    for parse in (lambda: b.parse_calibration(first, second), lambda: b.parse_raw(second)):
        try:
            parse()
        except BadFrame:
            pass
    with pytest.raises(BadFrame):
        b.parse_calibration(b'\xff' * 26, b'\xff' * 7)


@pytest.fixture
def climate_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    with i2c_bus(tmp_path, monkeypatch, 'bme280') as made:
        yield made


def test_bme280_on_the_bus(climate_bus):
    sensor = Bme280Sensor(BmeParams(address=climate_bus.address, temperature_offset=-1.5))
    sensor.open()
    assert sensor.identify().model == 'BME280'
    climate_bus.set(0x76, temperature=31.2, pressure=95_000.0, humidity=0.66)
    r = sensor.read(4.0)
    assert (r.time, r.temperature, r.pressure, r.humidity) == pytest.approx((4.0, 29.7, 95_000.0, 0.66), rel=1e-3)
    assert isnan(r.gas_resistance) and isnan(r.target_temperature)
    with pytest.raises(Refused):
        sensor.write_climate(2.0, nan)
    climate_bus.fault(0x76, 'absent')
    with pytest.raises(NoAnswer):
        sensor.read(5.0)
    climate_bus.fault(0x76)
    assert sensor.read(6.0).temperature == pytest.approx(29.7, abs=0.01)
    climate_bus.set(0x76, memory={0xD0: 0x58})
    with pytest.raises(BadValue, match='chip id 0x58'):
        sensor.identify()
    sensor.close()


def test_bme280_and_a_step_of_the_wall_clock(climate_bus, monkeypatch):
    sensor, real = Bme280Sensor(BmeParams(address=climate_bus.address)), time.time
    sensor.open()
    for now, step in ((10.0, 3e8), (11.0, -3e8)):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        assert sensor.read(now).time == now
    sensor.close()


def test_bme280_read_only(climate_bus):
    sensor = Bme280Sensor(BmeParams(address=climate_bus.address), read_only=True)
    sensor.open()
    with pytest.raises(BadValue, match='sleeps'):
        sensor.read(0.0)
    climate_bus.set(0x76, memory={0xF4: 0x27})  # somebody else set it to normal mode
    assert sensor.read(0.0).temperature == pytest.approx(23.5, abs=0.01)
    assert climate_bus.writes(0x76) == []
    sensor.close()


def test_bme680_on_the_bus(tmp_path, monkeypatch):
    with i2c_bus(tmp_path, monkeypatch, 'bme680') as bus:
        sensor = Bme680Sensor(Bme680Params(address=bus.address))
        sensor.open()
        assert sensor.identify().model == 'BME680'
        r = sensor.read(1.0)
        # The floating point formula of the data sheet (BST-BME680-DS001, section 3.3.1) by hand.
        t1, t2, t3, raw = 26216, 26535, 3, 490_000
        fine = (raw / 16384 - t1 / 1024) * t2 + (raw / 131072 - t1 / 8192) ** 2 * t3 * 16
        assert r.temperature == pytest.approx(fine / 5120, abs=0.02)
        assert 0.0 <= r.humidity <= 1.0 and 20_000.0 < r.pressure < 120_000.0 and r.gas_resistance > 0.0
        bus.set(0x76, memory={0x2B: 0x25})  # the heater is not stable
        assert isnan(sensor.read(2.0).gas_resistance)
        bus.fault(0x76, 'absent')
        with pytest.raises(NoAnswer):
            sensor.read(3.0)
        bus.fault(0x76)
        before = len(bus.writes(0x76))
        blind = Bme680Sensor(Bme680Params(address=bus.address), read_only=True)
        blind.open()
        with pytest.raises(ReadOnlyError):
            blind.read(0.0)
        assert len(bus.writes(0x76)) == before
        sensor.close()


# -- watchdogs ------------------------------------------------------------------------------------------


def test_strato_watchdog(tmp_path):
    tree(tmp_path, {f'watchdog/{n}': '' for n in ('timeout', 'heartbeat', 'enabled')})
    dog = StratoWatchdog(str(tmp_path))
    dog.start(60.0)
    assert [(tmp_path / 'watchdog' / n).read_text() for n in ('timeout', 'heartbeat', 'enabled')] == ['60', 'F', '1']
    (tmp_path / 'watchdog/heartbeat').write_text('')
    dog.feed()
    assert (tmp_path / 'watchdog/heartbeat').read_text() == 'F'
    dog.stop()
    assert (tmp_path / 'watchdog/enabled').read_text() == '0'
    with pytest.raises(ValueError, match='1..99999'):
        dog.start(0.0)
    with pytest.raises(OSError):
        StratoWatchdog(str(tmp_path / 'none')).feed()
