"""Readings to messages and back: every field, every value, nothing invented on the way."""

from __future__ import annotations

import dataclasses
import json
from enum import IntEnum
from math import inf, isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CellArray, InverterStatus, MeterStatus
from bess_core.clock import SimClock
from bess_core.convert import (
    battery_from_msg,
    battery_to_msg,
    battery_to_state,
    cells_to_msg,
    converter_from_msg,
    converter_to_msg,
    describe,
    meter_from_msg,
    meter_to_msg,
    site_time,
    stamp,
)
from bess_core.values import Alarm, BatteryReading, ConverterReading, MeterReading, Mode, Quality, Severity

CLOCK = SimClock(start_wall=1.8e9)
CLOCK.set(1000.0)
LOCAL = {'cells', 'temperatures', 'balancing', 'alarms', 'next_power', 'next_change'}  # not read from a status
TRIPS = [
    (BatteryReading, BatteryStatus, battery_to_msg, battery_from_msg),
    (ConverterReading, InverterStatus, converter_to_msg, converter_from_msg),
    (MeterReading, MeterStatus, meter_to_msg, meter_from_msg),
]  # fmt: skip

floats = st.floats(allow_nan=True, allow_infinity=True)
times = st.just(-inf) | st.floats(0.0, 1000.0)
texts = st.text(st.characters(codec='utf-8', exclude_characters='\x00'), max_size=10)


def readings(cls: Any) -> st.SearchStrategy[Any]:
    """Readings of a kind with any value in every field."""
    hints = {f.name: f for f in dataclasses.fields(cls)}
    example = cls()
    made: dict[str, st.SearchStrategy[Any]] = {}
    for name in hints:
        value = getattr(example, name)
        if name in LOCAL:
            continue
        if name in ('time', 'newest', 'next_change'):
            made[name] = times
        elif isinstance(value, IntEnum):
            made[name] = st.sampled_from(type(value))
        elif isinstance(value, bool):
            made[name] = st.booleans()
        elif isinstance(value, int):
            made[name] = st.integers(-(2**31), 2**31 - 1) if name.endswith('index') else st.integers(0, 2**63)
        elif isinstance(value, float):
            made[name] = floats
        elif isinstance(value, str):
            made[name] = texts
        elif isinstance(value, list):
            made[name] = st.lists(texts, max_size=3)
        elif isinstance(value, tuple):
            made[name] = st.tuples(floats, floats, floats)
        else:
            raise AssertionError(f'no strategy for {name}: {value!r}')
    return st.builds(cls, **made)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (isnan(a) and isnan(b))
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(('cls', 'message_type', 'to', 'back'), TRIPS, ids=[t[0].__name__ for t in TRIPS])
@settings(max_examples=60)
@given(data=st.data())
def test_every_field_survives_the_wire(cls: Any, message_type: Any, to: Any, back: Any, data: st.DataObject) -> None:
    reading = data.draw(readings(cls))
    sent = to(reading, CLOCK, 'name')
    assert type(sent) is message_type
    received = deserialize_message(serialize_message(sent), message_type)
    assert received.header.frame_id == 'name'
    result = back(received, CLOCK)
    for field in dataclasses.fields(cls):
        if field.name in LOCAL:
            continue
        before, after = getattr(reading, field.name), getattr(result, field.name)
        if field.name in ('time', 'newest'):
            assert after == pytest.approx(before, abs=1e-5)
        else:
            assert same(before, after), field.name
            assert type(after) is type(before) or isinstance(before, (int, tuple)), field.name


@pytest.mark.parametrize(('cls', 'to'), [(t[0], t[2]) for t in TRIPS], ids=[t[0].__name__ for t in TRIPS])
@pytest.mark.parametrize('value', [np.float32(51.5), np.float64(51.5), 51, np.int64(51), np.int16(51), True])
def test_a_number_of_another_type_never_goes_out_as_zero(cls: Any, to: Any, value: Any) -> None:
    names = [f.name for f in dataclasses.fields(cls) if isinstance(getattr(cls(), f.name), float)
             and f.name not in ('time', 'newest', 'next_change')]
    assert names
    for name in names:
        message = to(dataclasses.replace(cls(), **{name: value}), CLOCK)
        received = deserialize_message(serialize_message(message), type(message))
        assert getattr(received, name) == float(value), name


@pytest.mark.parametrize(('to', 'reading', 'names'), [
    (converter_to_msg, ConverterReading(voltage=(230, np.float32(231.0), nan), current=(1, 2, 3)),
     ('voltage', 'current')),
    (meter_to_msg, MeterReading(voltage=(230, np.float32(231.0), nan), phase_power=(1, 2, np.float64(3))),
     ('voltage', 'phase_power')),
    (cells_to_msg, BatteryReading(cells=(3, np.float32(3.5)), temperatures=(20, np.int8(-3))),
     ('voltages', 'temperatures')),
    (battery_to_state, BatteryReading(cells=(3, np.float32(3.5)), voltage=np.float32(50.0)),
     ('cell_voltage', 'voltage')),
])  # fmt: skip
def test_lists_too(to: Any, reading: Any, names: tuple[str, ...]) -> None:
    message = to(reading, CLOCK)
    received = deserialize_message(serialize_message(message), type(message))
    for name in names:
        sent = np.atleast_1d(np.asarray(getattr(message, name), dtype=float))
        got = np.atleast_1d(np.asarray(getattr(received, name), dtype=float))
        assert np.array_equal(sent, got, equal_nan=True)
        assert np.nanmax(np.abs(got)) > 0.0


def test_what_was_not_measured_is_nan_not_zero() -> None:
    for cls, _, to, back in TRIPS:
        message = to(cls(), CLOCK)
        for name, type_ in message.get_fields_and_field_types().items():
            if type_ == 'double' and name != 'lease_remaining':
                assert isnan(getattr(message, name)), name
        assert message.quality == int(Quality.INVALID)
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)
        assert back(message, CLOCK).time == -inf


def test_nothing_of_one_message_is_left_in_the_next() -> None:
    full = BatteryReading(time=10.0, voltage=50.0, limit_reasons=['a'], setpoint_source='x', cells=(3.3,))
    battery_to_msg(full, CLOCK, 'one')
    empty = deserialize_message(serialize_message(battery_to_msg(BatteryReading(), CLOCK, 'two')), BatteryStatus)
    assert isnan(empty.voltage)
    assert (list(empty.limit_reasons), empty.setpoint_source, empty.header.frame_id) == ([], '', 'two')
    assert list(deserialize_message(serialize_message(cells_to_msg(BatteryReading(), CLOCK)), CellArray).voltages) == []


def test_the_ecosystems_battery_state() -> None:
    reading = BatteryReading(
        time=10.0, quality=Quality.STALE, mode=Mode.DISCHARGING, voltage=50.0, current=-10.0, charge=40.0,
        charge_full=100.0, soc=0.4, temperature=25.0, cells=(3.3, 3.4), temperatures=(25.0,))
    state = deserialize_message(serialize_message(battery_to_state(reading, CLOCK, 'bms_a')), BatteryState)
    assert (state.current, state.percentage, state.charge, state.capacity) == (
        -10.0, pytest.approx(0.4), 40.0, 100.0)
    assert isnan(state.design_capacity)
    assert state.power_supply_status == BatteryState.POWER_SUPPLY_STATUS_DISCHARGING
    assert state.present
    assert state.location == 'bms_a'
    assert list(state.cell_voltage) == pytest.approx([3.3, 3.4])
    gone = battery_to_state(BatteryReading(mode=Mode.FAULT), CLOCK)
    assert not gone.present
    assert gone.power_supply_health == BatteryState.POWER_SUPPLY_HEALTH_UNSPEC_FAILURE


def test_alarms_of_a_converter_are_text_in_its_status() -> None:
    reading = ConverterReading(alarms=(Alarm('x', Severity.ERROR, 'too hot: 91 degC'),))
    assert list(converter_to_msg(reading, CLOCK).alarms) == ['too hot: 91 degC']


@given(st.floats(0.0, 1000.0))
def test_stamps(at: float) -> None:
    assert site_time(CLOCK, stamp(CLOCK, at)) == pytest.approx(at, abs=1e-6)


def test_described_messages_are_json() -> None:
    message = battery_to_msg(BatteryReading(time=10.0, voltage=nan, current=inf, power=-inf, soc=0.5,
                                            limit_reasons=['a']), CLOCK, 'b')
    plain = describe(message)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain['voltage'], plain['current'], plain['power'], plain['soc']) == (None, 'inf', '-inf', 0.5)
    assert plain['limit_reasons'] == ['a']
    assert plain['header']['frame_id'] == 'b'
    cells = describe(cells_to_msg(BatteryReading(cells=(3.3, nan), balancing=(True, False)), CLOCK))
    assert (cells['voltages'], cells['balancing']) == ([3.3, None], [True, False])
