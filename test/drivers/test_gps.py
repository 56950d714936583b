"""GPS: published sentences, garbage, a receiver on a pty, time filter."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Iterator
from math import isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_drivers.device import BadChecksum, BadFrame, DeviceError, Disconnected, NoAnswer
from bess_drivers.io.gps import GpsParams, GpsReceiver
from bess_drivers.io.nmea import GpsTime, Receiver, parse

# Examples of many NMEA descriptions (with the checksums given there), the first of 1994.
OLD_RMC = b'$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n'
GGA = b'$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n'


def sentence(body: str) -> bytes:
    check = 0
    for c in body.encode():
        check ^= c
    return f'${body}*{check:02X}\r\n'.encode()


RMC = sentence('GNRMC,123519.50,A,4807.038,N,01131.000,E,022.4,084.4,250926,,,A')
VOID = sentence('GPRMC,123520.00,V,,,,,,,250926,,,N')


def test_published_sentences():
    r = Receiver()
    assert r.take(GGA, 1.0) is None
    found = r.take(OLD_RMC, 2.0)
    assert found is not None and found.fix and found.time == 2.0
    assert (found.latitude, found.longitude) == pytest.approx((48.1173, 11.516667), abs=1e-6)
    assert (found.altitude, found.satellites, found.uncertainty) == pytest.approx((545.4, 8, 4.5))
    assert found.speed == pytest.approx(11.5235556)
    assert isnan(found.utc)  # 1994: a receiver whose weeks rolled over, or an example


def test_time_and_a_gga_of_another_second():
    r = Receiver()
    r.take(GGA, 1.0)
    found = r.take(RMC, 2.0)
    assert found is not None and found.utc == pytest.approx(1790339719.5) and isnan(found.altitude)
    south = r.take(sentence('GPRMC,123521,A,4117.190,S,17446.572,W,0,0,250926,,'), 3.0)
    assert south is not None and (south.latitude, south.longitude) == pytest.approx((-41.2865, -174.7762))


def test_without_a_fix_nothing_is_invented():
    found = Receiver().take(VOID, 1.0)
    assert found is not None and not found.fix
    assert all(map(isnan, (found.latitude, found.longitude, found.altitude, found.speed, found.utc)))
    assert Receiver().take(sentence('GPRMC,,A,,,,,,,,,'), 1.0).fix is False


@pytest.mark.parametrize(('line', 'error'), [
    (OLD_RMC.replace(b'*6A', b'*6B'), BadChecksum), (OLD_RMC.split(b'*')[0], BadChecksum), (OLD_RMC[:30], BadChecksum),
    (b'GPRMC,1', BadFrame), (b'$', BadFrame), (b'$' + b'A' * 200, BadFrame),
    (sentence('GPRMC,123519,A,9907.038,N,01131.000,E,0,0,250926,,'), BadFrame)])
def test_damage(line, error):
    with pytest.raises(error):
        Receiver().take(line, 0.0)


@given(st.binary(max_size=120), st.integers(0, 80), st.integers(0, 255))
def test_garbage_gives_only_device_errors(data, at, value):
    damaged = bytearray(RMC)
    damaged[at % len(damaged)] = value
    for line in (data, b'$' + data, bytes(damaged), sentence(data.decode('latin-1', 'ignore').replace('\n', ''))
                 if data.isascii() else b''):
        for take in (parse, lambda d: Receiver().take(d, 0.0)):
            try:
                take(line)
            except DeviceError:
                pass


def test_the_quickest_sentence_tells_the_time():
    t = GpsTime(latency=0.1)
    assert isnan(t.utc(5.0))
    for i, late in enumerate((0.4, 0.1, 0.3, 0.25)):
        t.take(1000.0 + i, 50.0 + i + late)
    assert t.utc(53.0) == pytest.approx(1003.0) and t.age(60.0) == pytest.approx(6.75)
    t.take(nan, 60.0)
    t.take(2000.0, 60.1)  # the receiver jumped
    assert t.utc(60.1) == pytest.approx(2000.1)


class Line:
    """A receiver that talks on a pty."""

    def __init__(self) -> None:
        self.text: bytes = b''
        self.master, self.slave = os.openpty()
        tty.setraw(self.master)
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            if self.text:
                os.write(self.master, self.text)

    def stop(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(3.0)
            os.close(self.master)
            os.close(self.slave)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.stop()


def receiver(line: Line, **params: Any) -> GpsReceiver:
    made = GpsReceiver(GpsParams(**{'address': f'serial:{line.path}', 'timeout_s': 0.5, **params}))
    made.open()
    return made


def test_receiver_on_a_line(line):
    device = receiver(line)
    line.text = b'\xff\x00junk' + sentence('GPGSV,1,1,00') + GGA.replace(b'123519', b'123519') + RMC
    r = device.read(0.0)
    assert r.fix and r.latitude == pytest.approx(48.1173) and r.alarms == ()
    assert device.time.utc(r.time) == pytest.approx(1790339719.6)
    line.text = VOID
    assert any(a.id == 'gps.no_fix' for r in [device.read(0.0) for _ in range(4)] for a in r.alarms)
    device.close()


@pytest.mark.parametrize(('text', 'error'), [
    (b'', NoAnswer), (GGA, NoAnswer), (RMC.replace(b'A,4807', b'A,4808'), BadChecksum), (b'x' * 50, BadFrame)])
def test_silence_and_damage_on_a_line(line, text, error):
    line.text = text
    device = receiver(line, timeout_s=0.3)
    with pytest.raises(error):
        device.read(0.0)
    device.close()


def test_unplugged(line):
    device = receiver(line)
    line.text = RMC
    assert device.identify().model
    line.stop()
    with pytest.raises((Disconnected, NoAnswer)):
        device.read(0.0)
    with pytest.raises(Disconnected):
        device.open()


def test_a_step_of_the_wall_clock_does_not_matter(line, monkeypatch):
    device, real = receiver(line), time.time
    line.text = GGA + RMC
    for step in (3e8, -3e8):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        reading = device.read(0.0)
        assert device.time.utc(reading.time) == pytest.approx(1790339719.6)
    device.close()


def test_nothing_is_ever_sent(line):
    """The wire itself: what the receiver's end of the line gets."""
    device = receiver(line)
    line.text = RMC
    device.identify()
    device.read(0.0)
    device.close()
    assert not select.select([line.master], [], [], 0.2)[0]
