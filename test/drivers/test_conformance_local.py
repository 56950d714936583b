"""The conformance suite for what has no frames: files of the kernel, pins, chips on I2C. See `conformance_rules`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import pytest
import smbus2.smbus2 as smbus
from conformance_rules import LOCAL
from i2c_double import i2c_bus
from local_double import DBench, ZeroBench, tree

from bess_core.values import Quality, Switch
from bess_drivers.device import DeviceError, Disconnected
from bess_drivers.io.analog import AnalogInputs, AnalogParams, CpuParams, CpuTemperature, OneWire, OneWireParams
from bess_drivers.io.bme import Bme280Sensor, Bme680Params, Bme680Sensor, BmeParams
from bess_drivers.io.gpio import GpioModule, GpioParams
from bess_drivers.io.pulse import PulseMeter, PulseParams
from bess_drivers.io.stratopi import StratoPi, StratoPiParams
from bess_drivers.smbus.bq40z50 import Bq40z50Battery, Bq40z50Params

ONE_WIRE = '72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t={}\n'
STEPS = 60  # more transfers than any poll here has


@dataclass
class Place:
    """One driver and what it reads from. `main` is the value that has a sign."""

    make: Callable[[bool], Any]
    plug: Callable[[bool], None]
    pull_after: Callable[[int], None]  # unplug when it is touched for the n-th time from now on
    main: Callable[[Any], float] = lambda _: 0.0
    sign: Callable[[int], None] = lambda _: None
    garbage: Callable[[], None] = lambda: None
    truncation: Callable[[], None] = lambda: None
    repair: Callable[[], None] = lambda: None
    writes: Callable[[], Any] = lambda: None  # what was written so far
    orders: tuple[Callable[[Any], Any], ...] = field(default_factory=tuple)


def files(cls: Any, params: Any, content: dict[str, str], main: str = '', sign: dict[str, str] | None = None,
          orders: tuple[Callable[[Any], Any], ...] = ()) -> Callable[[Path, pytest.MonkeyPatch, ExitStack], Place]:
    """A driver of files. `sign`: content with `{}` for the number."""
    def build(folder: Path, monkeypatch: pytest.MonkeyPatch, _: ExitStack) -> Place:
        root = tree(folder / 'root', content)
        real = Path.open

        def plug(there: bool) -> None:
            monkeypatch.setattr(Path, 'open', real)
            with suppress(FileNotFoundError):
                (folder / 'away').rename(root) if there else root.rename(folder / 'away')

        def pull_after(count: int) -> None:
            left = itertools.count(count - 1, -1)

            def opened(path: Path, *args: Any, **more: Any) -> Any:
                if next(left) == 0:
                    with suppress(FileNotFoundError):
                        root.rename(folder / 'away')
                return real(path, *args, **more)

            monkeypatch.setattr(Path, 'open', opened)

        def put(text: Callable[[str], str]) -> None:
            tree(root, {name: text(usual) for name, usual in content.items()})

        return Place(
            lambda read_only: cls(params(address=str(root)), read_only), plug, pull_after,
            lambda r: r.analog_inputs[main] if main else 0.0,
            lambda way: tree(root, {n: t.format(10_125 * way) for n, t in (sign or {}).items()}) and None,
            lambda: put(lambda t: t[::-1].replace('0', 'z').replace('1', '?') + '%'), lambda: put(lambda t: ''),
            lambda: put(lambda t: t), lambda: {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}, orders)
    return build


def pins(bench_type: Any, cls: Any, params: Callable[[str], Any], orders: tuple[Callable[[Any], Any], ...] = ()) -> Any:
    """A driver of pins."""
    def build(folder: Path, monkeypatch: pytest.MonkeyPatch, _: ExitStack) -> Place:
        bench = bench_type(monkeypatch)

        def make(read_only: bool) -> Any:
            device = cls(params(bench.address), read_only)
            opened = device.open

            def open_and_drive() -> None:
                opened()
                for line in (17, 22, 18):  # levels of a plant at rest
                    with suppress(Exception):
                        bench.drive(line, True)

            device.open = open_and_drive
            return device

        def plug(there: bool) -> None:
            bench.there = there

        def pull_after(count: int) -> None:
            left, look = itertools.count(count - 1, -1), bench.request._look

            def looked() -> None:
                if next(left) <= 0:
                    bench.request.gone, bench.there = True, False
                look()

            monkeypatch.setattr(bench.request, '_look', looked)

        return Place(make, plug, pull_after, writes=lambda: None if bench_type is ZeroBench else dict(bench.levels),
                     orders=orders)
    return build


def chip(name: str, address: int, cls: Any, params: Callable[[str], Any], main: str, negative: dict[str, Any] | None,
         positive: dict[str, Any] | None) -> Any:
    """A driver of a chip on I2C, which is a process of its own."""
    def build(folder: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> Place:
        bus = stack.enter_context(i2c_bus(folder, monkeypatch, name))
        ioctl = bus.ioctl

        def plug(there: bool) -> None:
            bus.plugged = there
            monkeypatch.setattr(smbus, 'ioctl', ioctl)

        def pull_after(count: int) -> None:
            left = itertools.count(count - 1, -1)

            def counted(*args: Any) -> int:
                if next(left) <= 0:
                    bus.plugged = False
                return ioctl(*args)

            monkeypatch.setattr(smbus, 'ioctl', counted)

        def sign(way: int) -> None:
            bus.set(address, **((positive if way > 0 else negative) or {}))

        return Place(lambda read_only: cls(params(bus.address), read_only), plug, pull_after,
                     lambda r: getattr(r, main), sign, lambda: bus.fault(address, 'flip'),
                     lambda: bus.fault(address, 'short'), lambda: bus.fault(address), lambda: bus.writes(address))
    return build


RELAY = (lambda d: d.write_output('relay', 1.0), lambda d: d.write_output('relay', 0.0))
PINS = ['start=17 button pull=up active_low', 'stop=22 emergency_stop', 'relay=27 relay']
BUILD: dict[str, Any] = {
    'strato_pi': files(StratoPi, StratoPiParams, {
        'relay/status': '0', 'button/status_deb': '1', 'button/status_deb_cnt': '107', 'ups/battery': '0'},
        orders=RELAY),
    'analog': files(AnalogInputs, lambda address: AnalogParams(address=address, channels=['a=value unit=A']),
                    {'value': '1012', 'name': 'adc'}, 'a', {'value': '{}'}),
    'one_wire': files(OneWire, OneWireParams, {'28-0001/w1_slave': ONE_WIRE.format(23125)}, '28-0001',
                      {'28-0001/w1_slave': ONE_WIRE}),
    'cpu_temperature': files(CpuTemperature, CpuParams, {'thermal_zone0/temp': '51034'}, 'thermal_zone0',
                             {'thermal_zone0/temp': '{}'}),
    'gpio-gpiod': pins(DBench, GpioModule, lambda a: GpioParams(address=a, pins=PINS), RELAY),
    'gpio-gpiozero': pins(ZeroBench, GpioModule, lambda a: GpioParams(address=a, pins=PINS), RELAY),
    'pulse': pins(DBench, PulseMeter, lambda a: PulseParams(address=a, pulse='17 pull=up active_low')),
    'bme280': chip('bme280', 0x76, Bme280Sensor, lambda a: BmeParams(address=a), 'temperature',
                   {'temperature': -12.0}, {'temperature': 31.0}),
    'bme680': chip('bme680', 0x76, Bme680Sensor, lambda a: Bme680Params(address=a), 'temperature', None, None),
    'bq40z50': chip('bq40z50', 0x0B, Bq40z50Battery, lambda a: Bq40z50Params(address=a, quiet_s=0.1), 'current',
                    {'words': {0x0A: 0x10000 - 1200}}, {'words': {0x0A: 1200}}),
}


def those(check: str) -> Any:
    """The places where a check runs here."""
    names = [n for n in BUILD if LOCAL[n][check] == '']
    return pytest.mark.parametrize('name', names)


@pytest.fixture
def place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as stack:
        yield BUILD[name](tmp_path, monkeypatch, stack)


@pytest.fixture
def device(place: Place) -> Iterator[Any]:
    made = place.make(False)
    made.open()
    made.identify()
    yield made
    made.close()


def numbers(reading: Any) -> Iterator[float]:
    for value in vars(reading).values() if hasattr(reading, '__dict__') else ():
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, (bool, Switch)):
                yield float(one)


def test_every_place_is_in_the_table() -> None:
    assert {n for n, row in LOCAL.items() if '' in row.values()} == set(BUILD)


@those('normal')
def test_normal(name: str, place: Place, device: Any) -> None:
    reading = device.read(7.0)
    assert reading.time == 7.0 and reading.quality is Quality.OK and reading.alarms == ()
    assert all(isfinite(n) or isnan(n) for n in numbers(reading))


@those('garbage')
def test_garbage(name: str, place: Place, device: Any) -> None:
    place.garbage()
    for _ in range(3):
        with pytest.raises(DeviceError):
            device.read(1.0)
    place.repair()
    assert device.read(2.0).alarms == ()


@those('truncation')
def test_truncation(name: str, place: Place, device: Any) -> None:
    place.truncation()
    for _ in range(3):
        with pytest.raises(DeviceError):
            device.read(1.0)
    place.repair()
    assert device.read(2.0).alarms == ()


@those('unplug')
def test_unplugged_at_every_step_of_a_poll(name: str, place: Place, device: Any) -> None:
    usual = place.main(device.read(0.0))
    for step in range(1, STEPS):
        place.pull_after(step)
        try:
            reading = device.read(1.0)
        except DeviceError:
            failed = True
        else:  # what came before is right, what did not come is not there and says so
            failed = bool(reading.alarms)
            assert isnan(place.main(reading)) or place.main(reading) == pytest.approx(usual)
        place.plug(False)
        with pytest.raises(DeviceError):
            device.read(2.0)
            device.open()
        with pytest.raises(Disconnected):
            device.open()
        place.plug(True)
        device.close()
        device.open()
        device.identify()
        reading = device.read(3.0)
        assert reading.quality is Quality.OK and reading.alarms == ()
        assert place.main(reading) == pytest.approx(usual)
        if not failed:
            assert step > 1, 'it was not pulled'
            return
    raise AssertionError('a poll has no end')


@those('clock')
def test_clock_steps(name: str, place: Place, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for now, step in ((10.0, 3e8), (10.1, -3e8), (10.2, 0.0)):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        reading = device.read(now)
        assert reading.time == now and reading.quality is Quality.OK


@those('sign')
def test_sign(name: str, place: Place, device: Any) -> None:
    for way in (1, -1):
        place.sign(way)
        assert place.main(device.read(1.0)) * way > 1.0


@those('read_only')
def test_read_only(name: str, place: Place) -> None:
    watched = place.make(True)
    watched.open()
    before = place.writes()
    with suppress(DeviceError):  # some cannot even measure without an order, and say so
        watched.read(0.0)
    for order in place.orders:
        with pytest.raises(DeviceError):
            order(watched)
    if hasattr(watched, 'write_climate'):
        with pytest.raises(DeviceError):
            watched.write_climate(1.0, 20.0)
    if hasattr(watched, 'set_contactor'):
        with pytest.raises(DeviceError):
            watched.set_contactor(True, True)
    assert place.writes() == before
    watched.close()
    if place.orders:  # else the test would prove nothing
        allowed = place.make(False)
        allowed.open()
        before = place.writes()
        place.orders[0](allowed)
        assert place.writes() != before or name == 'gpio-gpiozero'
        allowed.close()
