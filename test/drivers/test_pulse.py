"""Pulse meters: power and energy of a count, and real edges on the mock pins of gpiozero."""

from __future__ import annotations

from math import isnan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess.msg import MeterStatus
from bess_core import qos
from bess_drivers.device import Disconnected, NoAnswer
from bess_drivers.driver_node import node_type
from bess_drivers.io.pins import Gpiozero
from bess_drivers.io.pulse import PulseMeter, PulseParams, PulsePower


def test_power_is_that_of_the_last_interval_and_falls_without_pulses() -> None:
    p = PulsePower(1.0, 60.0, 500.0)  # 1000 pulses per kWh
    p.take(0, 0.0)
    assert isnan(p.power) and p.energy == 500.0
    p.take(1, 10.0)
    assert isnan(p.power)  # when the interval began is not known
    p.take(2, 13.6)
    assert p.power == pytest.approx(1000.0) and p.energy == 502.0
    p.take(2, 15.0)
    assert p.power == pytest.approx(1000.0)  # the next one may still come in time
    p.take(2, 20.8)
    assert p.power == pytest.approx(500.0)  # it cannot be more
    p.take(2, 73.7)
    assert p.power == 0.0
    p.take(12, 109.6)
    assert p.power == pytest.approx(3600.0 * 10 / 96.0) and p.energy == 512.0


def test_no_pulse_at_all_becomes_no_power_and_a_restart_loses_no_energy() -> None:
    p = PulsePower(1.0, 60.0)
    for now in (0.0, 59.0, 60.0):
        p.take(0, now)
    assert p.power == 0.0
    p.take(5, 61.0)
    p.restart()  # the pins were taken anew: counts begin at 0
    p.take(0, 62.0)
    p.take(3, 63.0)
    assert p.energy == 8.0


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.05, 100.0)), min_size=1, max_size=30))
def test_energy_is_the_pulses_whatever_their_times(steps: list[tuple[int, float]]) -> None:
    p, now, count = PulsePower(0.5, 10.0), 0.0, 0
    p.take(0, 0.0)
    for new, wait in steps:
        now, count = now + wait, count + new
        p.take(count, now)
        assert isnan(p.power) or p.power >= 0.0
    assert p.energy == pytest.approx(0.5 * count)


@pytest.fixture
def mock() -> Any:
    """Pins that are driven by the test, and a meter on them."""
    pytest.importorskip('gpiozero', reason='needs pip install -r requirements/gpio.txt (optional)')
    from gpiozero.pins.mock import MockFactory

    factory = MockFactory()

    class Backend(Gpiozero):
        def _make_factory(self) -> Any:
            return factory

    return factory, Backend('mock')


def pulses(factory: Any, line: int, count: int) -> None:
    pin = factory.pin(line)
    for _ in range(count):
        pin.drive_low()
        pin.drive_high()


def test_edges_of_two_pins_are_import_and_export(mock: Any) -> None:
    factory, backend = mock
    device = PulseMeter(PulseParams(address='gpiozero:mock', pulse='17 pull=up active_low debounce_ms=0',
                                    export='18 pull=up active_low debounce_ms=0', pulses_per_kwh=2000.0,
                                    energy_import=100.0, zero_after_s=50.0), backend=backend)
    with pytest.raises((Disconnected, NoAnswer)):
        device.read(0.0)
    device.open()
    factory.pin(17).drive_high()
    factory.pin(18).drive_high()
    assert 'gpiozero' in device.identify().model
    assert isnan(device.read(0.0).active_power)
    pulses(factory, 17, 1)
    device.read(10.0)
    pulses(factory, 17, 4)
    device.read(20.0)
    r = device.read(60.0)  # nothing exported for 50 s
    assert r.energy_import == pytest.approx(102.5) and r.energy_export == 0.0
    assert r.active_power == pytest.approx(3600.0 * 0.5 / 40.0)  # at most one pulse in 40 s
    pulses(factory, 18, 2)
    device.read(61.0)
    pulses(factory, 18, 2)
    r = device.read(62.0)
    assert r.energy_export == pytest.approx(2.0) and r.active_power < -3500.0  # feeding in is negative
    device.close()
    device.open()
    factory.pin(17).drive_high()
    assert device.read(63.0).energy_import == pytest.approx(102.5)
    device.close()


@pytest.mark.parametrize(('params', 'text'), [
    ({}, 'pulse is missing'), ({'pulse': 'x'}, 'is no number'), ({'pulse': '17 pull=left'}, 'pull'),
    ({'pulse': '17', 'export': '17'}, 'same line'), ({'pulse': '17', 'address': 'usb:1'}, '')])
def test_bad_settings_are_named(params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PulseMeter(PulseParams(**{'address': 'gpiozero:mock', **params}))


def test_the_node_publishes_and_nothing_is_driven(graph: Any) -> None:
    pytest.importorskip('gpiozero', reason='needs pip install -r requirements/gpio.txt (optional)')
    node = graph.add(node_type(PulseMeter), 'meter', {
        'address': 'gpiozero:mock', 'pulse': '17 pull=up active_low', 'period': 0.05})
    graph.up(node)
    seen = graph.listen(MeterStatus, 'meter/status', qos.MEASUREMENT)
    graph.wait(lambda: seen and seen[-1].quality == 0 and seen[-1].energy_import == 0.0, 'a sample')
