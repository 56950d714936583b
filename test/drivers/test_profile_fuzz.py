"""Register blocks and frames: whatever comes, a profile device gives a reading or a `DeviceError`."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bess_core.values import (
    BatteryReading,
    ClimateReading,
    ConverterReading,
    IoReading,
    MeterReading,
    Quality,
)
from bess_drivers.device import DeviceError, Role
from bess_drivers.modbus import frames, profile_device
from bess_drivers.modbus.frames import ModbusRefused
from bess_drivers.modbus.image import registers_of
from bess_drivers.profiles import installed, load_profile
from bess_drivers.profiles.model import ModbusKeys, ModbusPlace, Point, PointKeys

READINGS = {Role.METER: MeterReading, Role.CONVERTER: ConverterReading, Role.BATTERY: BatteryReading,
            Role.IO: IoReading, Role.CLIMATE: ClimateReading}
USABLE = [n for n in installed() if (p := load_profile(n)).head.transport == 'modbus' and not p.head.template]


class Link:
    """Answers with given words, again and again; refuses and fails on demand."""

    def __init__(self, words: list[int], refuse: int) -> None:
        self.words, self.refuse, self.asked = words, refuse, 0
        self.counters = None
        self.wrote: list[tuple[int, list[int]]] = []

    def open(self) -> None:
        return

    def close(self) -> None:
        return

    def read(self, unit: int, function: int, address: int, count: int) -> list[int]:
        self.asked += 1
        if self.refuse and self.asked % self.refuse == 0:
            raise ModbusRefused(2, frames.read_request(unit, function, address, count))
        return [self.words[(address + i) % len(self.words)] & (1 if function < 3 else 0xFFFF) for i in range(count)]

    def write(self, unit: int, function: int, address: int, values: list[int]) -> None:
        frames.write_request(unit, address, values, False)  # would it fit a frame?
        self.wrote.append((address, values))


WORDS = st.lists(st.sampled_from([0, 1, 0x8000, 0x7FFF, 0xFFFF, 0x7FC0, 0x7F80, 0xFF80]) | st.integers(0, 0xFFFF),
                 min_size=1, max_size=40)


def device(name: str, link: Any) -> Any:
    profile = load_profile(name)
    cls = {Role.METER: profile_device.ModbusMeter, Role.CONVERTER: profile_device.ModbusConverter,
           Role.BATTERY: profile_device.ModbusBattery, Role.IO: profile_device.ModbusIo,
           Role.CLIMATE: profile_device.ModbusClimate}[profile.role]
    return cls(profile_device.ProfileParams(address='tcp://127.0.0.1:1', profile=name, rated_power=1e4), link=link)


@pytest.mark.parametrize('name', USABLE)
@given(words=WORDS, refuse=st.integers(0, 7), power=st.floats(allow_nan=True, allow_infinity=True),
       lease=st.floats(0.01, 100.0))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_registers_give_a_reading_or_a_device_error(name: str, words: list[int], refuse: int, power: float,
                                                        lease: float) -> None:
    made = device(name, Link(words, refuse))
    kind = READINGS[made.role]
    for call in (made.identify, lambda: made.read(1.0), lambda: made.read_slow(2.0), lambda: made.read(3.0),
                 lambda: made.write_power(power, nan, lease), lambda: made.stop(), lambda: made.read(4.0)):
        try:
            result = call()
        except DeviceError:
            continue
        except AttributeError:
            assert made.role is not Role.CONVERTER
            continue
        if isinstance(result, kind):
            assert result.quality is Quality.OK
            assert inf not in vars_of(result)
    made.close()


def vars_of(reading: Any) -> list[Any]:
    """Numbers of a reading whose range its profile bounds."""
    return [getattr(reading, n) for n in ('frequency',) if hasattr(reading, n)]


@given(kind=st.sampled_from(['u16', 'i16', 'u32', 'i32', 'u64', 'i64', 'f32']), low=st.booleans(),
       value=st.floats(-1e6, 1e6), scale=st.sampled_from([0.001, 0.1, 1.0, -10.0]), positive=st.booleans())
@settings(max_examples=300)
def test_what_is_written_is_what_would_be_read(kind: str, low: bool, value: float, scale: float,
                                               positive: bool) -> None:
    section = ModbusKeys(word_order='low_first' if low else 'high_first')
    point = Point('x', PointKeys(scale=scale), ModbusPlace(address=0, type=kind), sign=1.0 if positive else -1.0,
                  directed=True)
    try:
        words = registers_of(point, point.raw(value), section)
    except DeviceError:
        return  # does not fit the type
    from bess_drivers.modbus.image import number_of

    back = point.value(number_of(words, point.place, section))
    assert back == pytest.approx(value, abs=abs(scale) * 0.51 + abs(value) * 1e-6)


@given(st.binary(max_size=300), st.sampled_from([1, 2, 3, 4, 5, 6, 15, 16]), st.integers(1, 120))
@settings(max_examples=500)
def test_any_answer_is_an_answer_or_a_device_error(data: bytes, function: int, count: int) -> None:
    if function in (5, 6):
        count = 1
    values = (1,) * count if function not in frames.READS else ()
    request = frames.Request(1, function, 0, count, values)
    for decode in (frames.decode_pdu, frames.decode_rtu):
        try:
            words = decode(data, request)
        except DeviceError:
            continue
        assert len(words) == (count if function in frames.READS else 0)
        assert all(0 <= w <= 0xFFFF for w in words)
