"""Carlo Gavazzi meters: register vectors, and every family over TCP and a serial line."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from math import isnan, nan
from pathlib import Path

import pytest

from bess_core.values import Quality
from bess_drivers.device import BadValue, DeviceError, NoAnswer, Role
from bess_drivers.modbus.carlo_gavazzi import (
    FAMILIES,
    CarloGavazziMeter,
    CarloGavazziParams,
    decode_points,
    family_of,
    reading_from,
)
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.carlo_gavazzi import MODELS, CarloGavazziSimulator
from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
from bess_sim.plant_api import MeterSample, StaticPlant

SAMPLE = MeterSample(
    phase_power=(1500.0, -2300.5, 100.2),
    reactive_power=300.0,
    voltage=(230.1, 231.2, 229.9),
    frequency=49.987,
    energy_import=12_345_678.0,
    energy_export=765_432.0,
)
ONE_PHASE = dataclasses.replace(
    SAMPLE, phase_power=(-700.3, 0.0, 0.0), voltage=(230.1, nan, nan), reactive_power=0.0
)


class Bench:
    """A simulated meter on TCP."""

    def __init__(self, model: str) -> None:
        self.plant = StaticPlant(meter_sample=ONE_PHASE if model == 'em111' else SAMPLE)
        self.faults = DeviceFaults()
        self.simulator = CarloGavazziSimulator(self.plant, self.faults, model)
        self.reads: list[tuple[int, int, int]] = []
        self.server = ModbusDeviceServer({1: self}, self.faults)
        self.server.start()
        self.meters: list[CarloGavazziMeter] = []

    def read(self, function: int, address: int, count: int) -> list[int]:
        self.reads.append((function, address, count))
        return self.simulator.read(function, address, count)

    def write(self, address: int, values: list[int]) -> None:
        self.simulator.write(address, values)

    def meter(self, **settings: object) -> CarloGavazziMeter:
        address = f'tcp://127.0.0.1:{self.server.port}'
        params = CarloGavazziParams(address, timeout_s=0.2, **settings)  # type: ignore[arg-type]
        self.meters.append(CarloGavazziMeter(params))
        return self.meters[-1]

    def stop(self) -> None:
        for meter in self.meters:
            meter.close()
        self.server.stop()


@pytest.fixture
def make() -> Iterator[Callable[[str], Bench]]:
    benches: list[Bench] = []

    def build(model: str) -> Bench:
        benches.append(Bench(model))
        return benches[-1]

    yield build
    for bench in benches:
        bench.stop()


@pytest.mark.parametrize('model', MODELS)
def test_every_family(make: Callable[[str], Bench], model: str) -> None:
    bench = make(model)
    meter = bench.meter()
    assert meter.role is Role.METER
    meter.open()
    identity = meter.identify()
    assert identity.manufacturer == 'Carlo Gavazzi' and str(MODELS[model].id_code) in identity.model
    assert (identity.serial, identity.version) == ('SIM0000000001', '1.2.3')
    bench.reads.clear()
    reading = meter.read(100.0)
    sample, fine = bench.plant.meter_sample, model in ('em530', 'em540')
    assert (reading.time, reading.sequence, reading.quality) == (100.0, 0, Quality.OK)
    phases = 1 if model == 'em111' else 3
    for n in range(3):
        if n >= phases:
            assert (
                isnan(reading.voltage[n])
                and isnan(reading.current[n])
                and isnan(reading.phase_power[n])
            )
            continue
        assert reading.voltage[n] == pytest.approx(sample.voltage[n])
        assert reading.phase_power[n] == pytest.approx(sample.phase_power[n])
        # With the sign of the power, also from meters that give magnitudes.
        assert reading.current[n] == pytest.approx(
            sample.phase_power[n] / sample.voltage[n], abs=6e-4
        )
    assert reading.active_power == pytest.approx(sum(sample.phase_power))
    assert reading.frequency == pytest.approx(49.987 if fine else 50.0)
    assert reading.energy_import == pytest.approx(12_345_678.0, abs=0.01 if fine else 50.0)
    assert reading.energy_export == pytest.approx(765_432.0, abs=0.01 if fine else 50.0)
    if model.startswith('em24'):
        assert isnan(reading.reactive_power) and isnan(reading.apparent_power)
    else:
        assert reading.reactive_power == sample.reactive_power
        assert -1.0 <= reading.power_factor <= 0.0 and reading.apparent_power > 0
    front = 0x38 if model == 'em24_rtu' else 0x10 if model == 'em111' else 0x34
    assert bench.reads[0] == (4, 0, front)
    assert len(bench.reads) == (3 if fine else 2)
    # Counters about once per second only; a clock that is set back does not stop them.
    bench.reads.clear()
    for now in (100.1, 100.2, 100.9):
        meter.read(now)
    assert len(bench.reads) == (6 if fine else 3)
    bench.plant.meter_sample = dataclasses.replace(sample, energy_import=20e6)
    assert meter.read(101.0).energy_import == pytest.approx(20e6)
    bench.plant.meter_sample = dataclasses.replace(sample, energy_import=30e6)
    assert meter.read(50.0).energy_import == pytest.approx(30e6)


def test_family_of_published_id_codes() -> None:
    for codes, family in (
        (range(1648, 1654), 'em24'),
        (range(70, 74), 'em24_rtu'),
        (range(1744, 1764), 'em540'),
        ((2096, 1956), 'em530'),
        ((330, 340, 345), 'em340'),
        ((102, 121), 'em111'),
        ((0, 69, 74, 1647, 1654, 1764, 65535), None),
    ):
        assert all(family_of(code) == family for code in codes)
    assert set(FAMILIES) == set(MODELS)


def test_register_vectors() -> None:
    """Written by hand from the register table, not with the simulator: low word first."""
    registers = [0] * 0x34
    registers[0x00:0x06] = [2301, 0, 2312, 0, 2299, 0]
    registers[0x0C:0x0E] = [0x86A0, 0x0001]  # 100000 -> 100 A
    registers[0x12:0x14] = [0xEC78, 0xFFFF]  # -5000 -> -500 W
    registers[0x14:0x16] = [0x0000, 0x0001]  # 65536 -> 6553.6 W
    registers[0x28:0x2A] = [0xEC88, 0x0000]  # 60552 -> 6055.2 W
    registers[0x2A:0x2C] = [0xEE00, 0x0000]  # 60928 -> 6092.8 VA
    registers[0x2C:0x2E] = [0xFFF6, 0xFFFF]  # -10 -> -1 var
    registers[0x33] = 499
    values = decode_points(FAMILIES['em340'].points, 0, registers)
    reading = reading_from(values, (1.0, 2.0), 3, CarloGavazziParams(), 5.0)
    assert reading.voltage == pytest.approx((230.1, 231.2, 229.9))
    assert reading.current == pytest.approx((-100.0, 0.0, 0.0))
    assert reading.phase_power == pytest.approx((-500.0, 6553.6, 0.0))
    assert reading.active_power == pytest.approx(6055.2)
    assert reading.apparent_power == pytest.approx(6092.8)
    assert reading.reactive_power == pytest.approx(-1.0)
    assert reading.power_factor == pytest.approx(6055.2 / 6092.8)
    assert reading.frequency == pytest.approx(49.9)
    assert (reading.energy_import, reading.energy_export) == (1.0, 2.0)
    other = reading_from(values, (1.0, 2.0), 3, CarloGavazziParams(invert=True), 5.0)
    assert other.phase_power == pytest.approx((500.0, -6553.6, 0.0))
    assert other.current == pytest.approx((100.0, 0.0, 0.0))
    assert (other.active_power, other.reactive_power) == pytest.approx((-6055.2, 1.0))
    assert (other.energy_import, other.energy_export) == (2.0, 1.0)
    scaled = reading_from(values, (1.0, 2.0), 3, CarloGavazziParams(current_scale=0.1), 5.0)
    assert scaled.current[0] == pytest.approx(-10_000.0)
    rtu = [0] * 0x38
    rtu[0x33], rtu[0x37] = 123, 501  # 0x0033 is something else on this one
    assert decode_points(FAMILIES['em24_rtu'].points, 0, rtu)['frequency'] == pytest.approx(50.1)


@pytest.mark.parametrize(
    ('name', 'value', 'what'),
    [
        ('voltage_2', 1000.1, 'voltage L2'),
        ('voltage_1', -0.1, 'voltage L1'),
        ('active_power', 1.1e6, 'power'),
        ('power_3', -1.1e6, 'power L3'),
        ('frequency', 39.9, 'frequency'),
        ('frequency', 70.1, 'frequency'),
        ('reactive_power', 2e6, 'reactive'),
        ('apparent_power', nan, None),
    ],
)
def test_implausible_values(name: str, value: float, what: str | None) -> None:
    values = decode_points(FAMILIES['em340'].points, 0, [0] * 0x34) | {name: value}
    if what is None:
        assert isnan(reading_from(values, (nan, nan), 3, CarloGavazziParams(), 0.0).power_factor)
        return
    with pytest.raises(BadValue, match=what):
        reading_from(values, (nan, nan), 3, CarloGavazziParams(), 0.0)


def test_10000_random_blocks_give_a_plausible_reading_or_bad_value() -> None:
    generator, families, accepted = random.Random(5), list(FAMILIES.values()), 0
    for n in range(10_000):
        family = families[n % len(families)]
        count = family.front.size if n % 3 else generator.randrange(0, 0x40)
        top = 0xFFFF if n % 2 else 0x0200  # small words, so that some blocks are plausible
        registers = [
            generator.randrange(top + 1) if i % 2 == 0 or n % 2 else 0 for i in range(count)
        ]
        if len(registers) > 0x33:
            registers[0x33] = registers[0x33] or 500
        try:
            values = decode_points(family.points, 0, registers)
            reading = reading_from(values, (nan, nan), family.phases, CarloGavazziParams(), 0.0)
        except BadValue:
            continue
        accepted += 1
        assert all(isnan(v) or 0.0 <= v <= 1000.0 for v in reading.voltage)
        assert abs(reading.active_power) <= 1e6
        assert isnan(reading.frequency) or 40.0 <= reading.frequency <= 70.0
    assert accepted > 100


def test_frequency_of_a_dead_grid_is_not_measured(make: Callable[[str], Bench]) -> None:
    bench = make('em540')
    bench.plant.meter_sample = MeterSample(voltage=(0.0, 0.0, 0.0), frequency=0.0)
    reading = bench.meter().read(0.0)
    assert isnan(reading.frequency) and reading.voltage == (0.0, 0.0, 0.0)


def test_old_em5xx_firmware_without_wh_counters(make: Callable[[str], Bench]) -> None:
    bench = make('em540')
    bench.simulator.wh_counters = False
    reading = bench.meter().read(0.0)
    assert reading.energy_import == pytest.approx(12_345_700.0)
    assert reading.frequency == pytest.approx(50.0)


def test_a_setup_that_loses_the_sign_is_refused(make: Callable[[str], Bench]) -> None:
    for model, attribute, value, text in (
        ('em24', 'application', 3, 'application 3'),
        ('em24_rtu', 'application', 0, 'application 0'),
        ('em340', 'mode', 0, 'mode A'),
    ):
        bench = make(model)
        setattr(bench.simulator, attribute, value)
        with pytest.raises(BadValue, match=text):
            bench.meter().read(0.0)
        assert bench.meter(check_setup=False).read(0.0).active_power == pytest.approx(-700.3)
        setattr(bench.simulator, attribute, 7 if attribute == 'application' else 1)
        assert bench.meter().read(0.0).active_power == pytest.approx(-700.3)


def test_phases_from_the_meter_and_from_the_settings(make: Callable[[str], Bench]) -> None:
    bench = make('em340')
    for config, known in ((0, 3), (1, 3), (2, 2), (3, 1), (4, 3)):
        bench.simulator.phase_config = config
        assert sum(not isnan(v) for v in bench.meter().read(0.0).voltage) == known
    bench.simulator.phase_config = 9
    with pytest.raises(BadValue, match='measuring system 9'):
        bench.meter().read(0.0)
    assert sum(not isnan(v) for v in bench.meter(phases=2).read(0.0).voltage) == 2


def test_wrong_and_forced_models(make: Callable[[str], Bench]) -> None:
    bench = make('em340')
    with pytest.raises(BadValue, match='id code 340 is a em340, not the configured em24'):
        bench.meter(model='em24').identify()
    # EM3xx of the series 27 have the register table of an EM24.
    assert 'EM24' in bench.meter(model='em24', check_setup=False).identify().model
    bench.simulator.id_code = 9999
    with pytest.raises(BadValue, match='9999'):
        bench.meter().identify()
    assert bench.meter(model='em340').read(0.0).active_power == pytest.approx(-700.3)
    with pytest.raises(ValueError, match='em999'):
        bench.meter(model='em999')
    with pytest.raises(ValueError, match='em999'):
        CarloGavazziSimulator(bench.plant, bench.faults, 'em999')


@pytest.mark.parametrize('limit', [4, 11, 125])
def test_requests_in_pieces(make: Callable[[str], Bench], limit: int) -> None:
    bench = make('em24_rtu')
    meter = bench.meter(max_registers=limit)
    reading = meter.read(0.0)
    assert reading.frequency == pytest.approx(50.0)
    assert reading.energy_export == pytest.approx(765_400.0)
    assert max(count for _, _, count in bench.reads) <= limit
    assert all(
        address % 2 == 0 for _, address, count in bench.reads if count > 1 and address < 0x1000
    )


def test_override_power_and_swapped_wiring(make: Callable[[str], Bench]) -> None:
    bench = make('em340')
    meter = bench.meter(invert=True)
    assert meter.read(0.0).energy_export == pytest.approx(12_345_700.0)
    bench.simulator.override_power(6000.0)
    reading = meter.read(0.1)
    assert reading.active_power == pytest.approx(-6000.0)
    assert reading.phase_power == pytest.approx((-2000.0,) * 3)
    bench.simulator.override_power(None)
    assert meter.read(0.2).active_power == pytest.approx(700.3)


def test_each_fault_raises_and_clears_without_a_restart(make: Callable[[str], Bench]) -> None:
    bench = make('em340')
    meter = bench.meter()
    assert meter.read(0.0).quality is Quality.OK
    for number, (fault, kinds) in enumerate(
        {
            'no_answer': {'timeout'},
            'late_answer': {'timeout'},
            'wrong_unit_id': {'frame'},
            'modbus_exception': {'refused'},
            'flipped_bytes': {'frame'},
            'truncated_frame': {'timeout'},
        }.items()
    ):
        bench.faults.inject(fault)
        with pytest.raises(DeviceError) as caught:
            meter.read(float(number))
        assert caught.value.kind in kinds
        bench.faults.clear()
        bench.plant.meter_sample = dataclasses.replace(
            SAMPLE, phase_power=(number * 100.0, 0.0, 0.0)
        )
        assert meter.read(number + 0.5).active_power == pytest.approx(number * 100.0)
    assert not bench.server.writes


def test_on_a_serial_line_with_two_meters_on_one_link(tmp_path: Path) -> None:
    plants = {1: StaticPlant(meter_sample=SAMPLE), 5: StaticPlant(meter_sample=ONE_PHASE)}
    faults = DeviceFaults()
    units = {
        1: CarloGavazziSimulator(plants[1], faults, 'em24_rtu'),
        5: CarloGavazziSimulator(plants[5], faults, 'em111'),
    }
    server = ModbusRtuServer(units, faults, tmp_path / 'ttyMETER')
    server.start()
    address = f'rtu:{server.link_path}?baud=115200&quiet=0.3'
    one = CarloGavazziMeter(CarloGavazziParams(address=address, timeout_s=0.2))
    five = CarloGavazziMeter(dataclasses.replace(one.params, unit=5), link=one.link)
    try:
        one.open()
        assert 'EM24 (71)' in one.identify().model and 'EM1xx' in five.identify().model
        for now in (0.0, 0.1):
            assert one.read(now).active_power == pytest.approx(-700.3)
            assert five.read(now).active_power == pytest.approx(-700.3)
        faults.inject('no_answer')
        with pytest.raises(NoAnswer):
            one.read(1.0)
        faults.clear()
        assert five.read(1.0).voltage[0] == pytest.approx(230.1)
    finally:
        one.close()
        server.stop()
