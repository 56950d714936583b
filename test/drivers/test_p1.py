"""P1 meters: telegrams published in the companion standard, and the driver against a simulated meter on pty and TCP."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess.msg import MeterStatus
from bess_core import qos
from bess_drivers.device import BadChecksum, BadFrame, BadValue, DeviceError, Disconnected, NoAnswer
from bess_drivers.driver_node import node_type
from bess_drivers.serial import p1_telegram as p1
from bess_drivers.serial.p1 import P1Meter, P1Params
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.p1 import P1Simulator, telegram
from bess_sim.plant_api import MeterSample, StaticPlant

INSTALLED = importlib.util.find_spec('dsmr_parser') is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason='needs pip install -r requirements/p1.txt (optional)')

#: P1 companion standard 5.0.2 (Netbeheer Nederland, 2016), chapter 6.12: example of a three-phase meter with gas.
#: The CRC that is printed there, EF2F, is not that of the printed text; this one is.
TEXT = '0-0:96.13.0(' + 5 * '303132333435363738393A3B3C3D3E3F' + ')'
STANDARD_5 = '\r\n'.join((
    r'/ISk5\2MT382-1000', '', '1-3:0.2.8(50)', '0-0:1.0.0(101209113020W)',
    '0-0:96.1.1(4B384547303034303436333935353037)', '1-0:1.8.1(123456.789*kWh)', '1-0:1.8.2(123456.789*kWh)',
    '1-0:2.8.1(123456.789*kWh)', '1-0:2.8.2(123456.789*kWh)', '0-0:96.14.0(0002)', '1-0:1.7.0(01.193*kW)',
    '1-0:2.7.0(00.000*kW)', '0-0:96.7.21(00004)', '0-0:96.7.9(00002)',
    '1-0:99.97.0(2)(0-0:96.7.19)(101208152415W)(0000000240*s)(101208151004W)(0000000301*s)', '1-0:32.32.0(00002)',
    '1-0:52.32.0(00001)', '1-0:72.32.0(00000)', '1-0:32.36.0(00000)', '1-0:52.36.0(00003)', '1-0:72.36.0(00000)', TEXT,
    '1-0:32.7.0(220.1*V)', '1-0:52.7.0(220.2*V)', '1-0:72.7.0(220.3*V)', '1-0:31.7.0(001*A)', '1-0:51.7.0(002*A)',
    '1-0:71.7.0(003*A)', '1-0:21.7.0(01.111*kW)', '1-0:41.7.0(02.222*kW)', '1-0:61.7.0(03.333*kW)',
    '1-0:22.7.0(04.444*kW)', '1-0:42.7.0(05.555*kW)', '1-0:62.7.0(06.666*kW)', '0-1:24.1.0(003)',
    '0-1:96.1.0(3232323241424344313233343536373839)', '0-1:24.2.1(101209112500W)(12785.123*m3)', '!E47C', '')).encode()
#: P1 companion standard 3.0 (2010), chapter 6: no version, no CRC, gas on two lines.
STANDARD_3 = '\r\n'.join((
    r'/ISk5\2MT382-1000', '', '0-0:96.1.1(4B384547303034303436333935353037)', '1-0:1.8.1(12345.678*kWh)',
    '1-0:1.8.2(12345.678*kWh)', '1-0:2.8.1(12345.678*kWh)', '1-0:2.8.2(12345.678*kWh)', '0-0:96.14.0(0002)',
    '1-0:1.7.0(001.19*kW)', '1-0:2.7.0(000.00*kW)', '0-0:17.0.0(016*A)', '0-0:96.3.10(1)',
    '0-0:96.13.1(303132333435363738)', TEXT, '0-1:96.1.0(3232323241424344313233343536373839)', '0-1:24.1.0(03)',
    '0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.1)(m3)', '(00000.000)', '0-1:24.4.0(1)', '!', '')).encode()


# -- telegrams -------------------------------------------------------------------------------------------


@needs_library
def test_the_crc_is_that_of_an_independent_implementation() -> None:
    from dsmr_parser.parsers import TelegramParser

    TelegramParser.validate_checksum(STANDARD_5.decode())
    for sample in (MeterSample(), MeterSample(phase_power=(-1.0, 2.0, 3.0), voltage=(230.0, nan, nan))):
        TelegramParser.validate_checksum(telegram(sample, 5, datetime(2026, 1, 2, tzinfo=UTC)).decode())


def test_the_crc_is_that_of_the_standard() -> None:
    assert f'{p1.crc16(STANDARD_5.partition(b"!")[0] + b"!"):04X}' == 'E47C'
    assert p1.crc16(b'123456789') == 0xBB3D  # the check value of CRC-16/ARC
    assert p1.check(STANDARD_5) == STANDARD_5 and p1.check(STANDARD_3) == STANDARD_3


@needs_library
def test_the_published_telegram_of_version_5() -> None:
    r = p1.reading_from(p1.reader()(STANDARD_5), 7.0)
    assert r.time == 7.0 and r.voltage == (220.1, 220.2, 220.3)
    assert r.active_power == pytest.approx(1193.0)
    assert r.phase_power == pytest.approx((1111.0 - 4444.0, 2222.0 - 5555.0, 3333.0 - 6666.0))
    assert r.current == (-1.0, -2.0, -3.0)  # with the sign of the power of their phase
    assert r.energy_import == r.energy_export == pytest.approx(2 * 123_456_789.0)
    assert isnan(r.frequency) and isnan(r.reactive_power)


@needs_library
def test_the_published_telegram_of_version_3() -> None:
    r = p1.reading_from(p1.reader()(STANDARD_3), 0.0)
    assert r.active_power == pytest.approx(1190.0) and r.energy_export == pytest.approx(2 * 12_345_678.0)
    assert all(map(isnan, (*r.voltage, *r.current, *r.phase_power)))  # this version does not send them


def test_damage_is_refused() -> None:
    for wrong, error in (
            (STANDARD_5.replace(b'01.193', b'01.194'), BadChecksum), (STANDARD_5.replace(b'!E47C', b'!'), BadChecksum),
            (STANDARD_5.replace(b'!E47C', b'!0000'), BadChecksum),
            (STANDARD_3.replace(b'001.19*kW)', b'001'), BadFrame),
            (STANDARD_3.replace(b'0-0:17', b'garbage'), BadFrame)):
        with pytest.raises(error):
            p1.Framer().feed(wrong)


def test_telegrams_are_found_in_what_arrives() -> None:
    framer = p1.Framer()
    assert framer.feed(b'*kWh)\r\n!1234\r\n' + STANDARD_5[:300]) is None  # joined in the middle
    assert framer.feed(STANDARD_5[300:] + STANDARD_3[:20]) == STANDARD_5
    assert framer.feed(STANDARD_3[20:] + STANDARD_5) == STANDARD_5  # the newest
    with pytest.raises(BadFrame, match='cut off'):
        framer.feed(STANDARD_5[:400] + b'\r\n' + STANDARD_5[:400])
    assert framer.feed(STANDARD_5[400:]) == STANDARD_5
    with pytest.raises(BadFrame, match='without the end'):
        framer.feed(b'/' + b'1-0:1.7.0(01.193*kW)\r\n' * 400)
    assert framer.feed(STANDARD_3) == STANDARD_3
    one = p1.Framer()
    assert [t for b in STANDARD_3 for t in [one.feed(bytes((b,)))] if t] == [STANDARD_3]


@needs_library
@pytest.mark.parametrize(('change', 'error'), [
    ((b'1-0:1.7.0(001.19*kW)\r\n', b''), BadValue), ((b'001.19*kW', b'001.19*hp'), BadValue),
    ((b'001.19*kW', b'1.2.3*kW'), BadFrame), ((b'1-0:1.7.0(001.19*kW)', b'1-0:1.7.0(001.19*kW)(1)'), BadFrame)])
def test_values_that_cannot_be(change: tuple[bytes, bytes], error: type[DeviceError]) -> None:
    telegram = STANDARD_3.replace(*change)
    with pytest.raises(error):
        p1.reading_from(p1.reader()(telegram), 0.0)


@needs_library
def test_totals_and_missing_export() -> None:
    """Swedish meters have no tariffs; a meter may have no feed-in."""
    text = b'/X5X\r\n\r\n1-0:1.8.0(00000100.5*kWh)\r\n1-0:2.8.0(00000002.5*kWh)\r\n1-0:1.7.0(0000.250*kW)\r\n!\r\n'
    r = p1.reading_from(p1.reader()(p1.check(text)), 0.0)
    assert (r.active_power, r.energy_import, r.energy_export) == pytest.approx((250.0, 100_500.0, 2500.0))


@needs_library
def test_an_empty_value_is_not_known() -> None:
    empty = STANDARD_3.replace(b'1-0:2.7.0', b'1-0:32.7.0()\r\n1-0:31.7.0()\r\n1-0:2.7.0')
    r = p1.reading_from(p1.reader()(p1.check(empty)), 0.0)
    assert isnan(r.voltage[0]) and isnan(r.current[0]) and r.active_power == pytest.approx(1190.0)


@settings(max_examples=200)
@given(data=st.data())
def test_garbage_gives_only_device_errors(data: Any) -> None:
    base = bytearray(data.draw(st.sampled_from((STANDARD_5, STANDARD_3))))
    for _ in range(data.draw(st.integers(0, 4))):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    hostile = data.draw(st.sampled_from((bytes(base), bytes(base[:data.draw(st.integers(0, len(base)))]),
                                         data.draw(st.binary(max_size=200)))))
    framer = p1.Framer()
    try:
        telegram = framer.feed(hostile)
        if telegram is not None and INSTALLED:
            p1.reading_from(p1.reader()(telegram), 0.0)
    except DeviceError:
        pass
    assert framer.feed(b'\r\n' + STANDARD_5) == STANDARD_5 or hostile  # and it goes on


# -- on real lines ---------------------------------------------------------------------------------------


class Bench:
    def __init__(self, kind: str, tmp_path: Path, version: int = 5) -> None:
        self.plant, self.faults = StaticPlant(), DeviceFaults()
        where = 'tcp://127.0.0.1:0' if kind == 'tcp' else f'serial:{tmp_path / "p1"}'
        self.meter = P1Simulator(self.plant, self.faults, where, version=version, period=0.05)
        self.address = self.meter.start()

    def device(self, **params: Any) -> P1Meter:
        made = P1Meter(P1Params(address=self.address, timeout_s=0.4, **params))
        made.open()
        return made


@pytest.fixture(params=['pty', 'tcp'])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path)
    yield made
    made.meter.stop()
    made.meter.check()


def until(device: P1Meter, fits: Callable[[Any], bool] = lambda _: True) -> Any:
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        try:
            reading = device.read(5.0)
            if fits(reading):
                return reading
        except DeviceError:
            try:
                device.open()
            except Disconnected:
                time.sleep(0.02)
    raise AssertionError('not in time')


@needs_library
def test_what_the_meter_says_arrives(bench: Bench) -> None:
    bench.plant.meter_sample = MeterSample(phase_power=(1500.0, -400.0, 200.0), voltage=(231.0, 229.5, 230.0),
                                           energy_import=4_000_000.0, energy_export=1_000_000.0)
    device = bench.device()
    identity = device.identify()
    assert (identity.manufacturer, identity.model, identity.serial) == ('P1', r'BES5\SIMULATED', 'BESS0001')
    r = until(device, lambda r: r.active_power > 1000.0)
    assert r.active_power == pytest.approx(1300.0) and r.phase_power == pytest.approx((1500.0, -400.0, 200.0))
    assert r.voltage == pytest.approx((231.0, 229.5, 230.0)) and r.current == pytest.approx((6.0, -2.0, 1.0))
    assert (r.energy_import, r.energy_export) == pytest.approx((4_000_000.0, 1_000_000.0))
    assert 5.0 <= r.time < 6.0 and 'UTC' in device.shown['time of the meter']
    bench.plant.meter_sample = MeterSample(phase_power=(-900.0, 0.0, 0.0))
    assert until(device, lambda r: r.active_power < 0.0).active_power == pytest.approx(-900.0)  # + = import
    device.close()
    turned = bench.device(invert=True)
    assert until(turned, lambda r: r.active_power > 0.0).active_power == pytest.approx(900.0)
    turned.close()


@needs_library
def test_an_old_meter_at_9600_7e1(tmp_path: Path) -> None:
    bench = Bench('pty', tmp_path, version=2)
    bench.plant.meter_sample = MeterSample(phase_power=(-700.0, 0.0, 0.0))
    bench.address += '?baud=9600&parity=E&bytesize=7'
    device = bench.device()
    assert until(device).active_power == pytest.approx(-700.0) and isnan(device.read(1.0).voltage[0])
    device.close()
    bench.meter.stop()


@needs_library
@pytest.mark.parametrize(('fault', 'error'), [
    ('flipped_bytes', BadChecksum), ('truncated_frame', BadFrame), ('no_answer', NoAnswer),
    ('disconnect', DeviceError)])
def test_damage_is_never_a_reading_and_it_comes_back(bench: Bench, fault: str, error: type[DeviceError]) -> None:
    device = bench.device()
    until(device)
    bench.faults.inject(fault)
    end = time.monotonic() + 10.0
    while True:
        assert time.monotonic() < end
        try:
            device.read(1.0)  # what was sent before may still come
        except error:
            break
        except DeviceError:
            continue
    for _ in range(2):
        with pytest.raises(DeviceError):
            device.read(1.0)
    bench.faults.clear()
    assert until(device).active_power == 0.0
    device.close()


@needs_library
def test_a_clock_step_does_not_matter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    device, real = bench.device(), time.time
    for step in (3e8, -3e8):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        assert 5.0 <= until(device).time < 6.0
    device.close()


@needs_library
def test_nothing_is_ever_sent(tmp_path: Path) -> None:
    """The wire itself: what the meter's end of the line receives."""
    import os
    import tty
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    device = P1Meter(P1Params(address=f'serial:{os.ttyname(slave)}', timeout_s=0.5))
    device.open()
    os.write(master, STANDARD_5)
    assert device.identify().serial == 'K8EG004046395507'
    os.write(master, STANDARD_5)
    assert device.read(0.0).active_power == pytest.approx(1193.0)
    with pytest.raises(BlockingIOError):
        os.read(master, 100)
    device.close()
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize('address', ['', 'tcp://x', 'tcp://:5', 'tcp://a:5/b', 'serial:', 'serial:/dev/x?bytesize=9'])
def test_bad_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError):
        P1Meter(P1Params(address=address))


def test_without_the_library_the_site_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'dsmr_parser', None)
    with pytest.raises(ValueError, match='requirements/p1.txt'):
        P1Meter(P1Params(address='tcp://127.0.0.1:1'))


@needs_library
def test_the_node_of_a_meter_that_is_unplugged_and_comes_back(graph: Any, tmp_path: Path) -> None:
    bench = Bench('tcp', tmp_path)
    node = graph.add(node_type(P1Meter), 'meter', {
        'address': bench.address, 'period': 0.2, 'timeout_s': 0.4, 'errors_to_fault': 1})
    graph.up(node)
    seen = graph.listen(MeterStatus, 'meter/status', qos.MEASUREMENT)
    graph.wait(lambda: seen and seen[-1].quality == 0 and seen[-1].sequence > 2, 'samples')
    bench.faults.inject('disconnect')
    graph.wait(lambda: any(node.faults.get(f'comm.{k}') for k in ('disconnected', 'timeout')), 'a fault')
    bench.faults.clear()
    graph.wait(lambda: not any(node.faults.get(f'comm.{k}') for k in ('disconnected', 'timeout')), 'it is back')
    assert node.diagnostics()['telegrams damaged'] == 0
    bench.meter.stop()
