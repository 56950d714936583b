"""Messages are encoded and decoded exactly as by rclpy, for every message of the contract."""

from __future__ import annotations

import array
import random
import struct
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import deserialize_message, serialize_message
from rosidl_parser import definition as idl
from sensor_msgs.msg import BatteryState, NavSatFix

from bess import msg
from bess_core.cdr import decoder, encoder

TYPES = [c for c in vars(msg).values() if isinstance(c, type) and hasattr(c, 'SLOT_TYPES')]
OTHERS = [BatteryState, NavSatFix, DiagnosticArray, Time]
RANGES = {'uint8': (0, 2**8), 'int8': (-(2**7), 2**7), 'uint16': (0, 2**16), 'int16': (-(2**15), 2**15),
          'uint32': (0, 2**32), 'int32': (-(2**31), 2**31), 'uint64': (0, 2**64), 'int64': (-(2**63), 2**63)}
FLOATS = (0.0, -1.5, float('nan'), float('inf'), float('-inf'), 1e300, 230.1, -0.0)


def draw(kind: Any, rng: random.Random) -> Any:
    """A value for a field."""
    if isinstance(kind, idl.BasicType):
        if kind.typename == 'boolean':
            return rng.random() < 0.5
        if kind.typename == 'octet':
            return bytes([rng.randrange(256)])
        if kind.typename == 'float':
            return float(np.float32(rng.uniform(-1e6, 1e6)))
        return rng.choice(FLOATS) if kind.typename == 'double' else rng.randrange(*RANGES[kind.typename])
    if isinstance(kind, idl.AbstractString):
        return rng.choice(['', 'a', 'meter', 'Zelle 7: 3,62 V ü€', 'x' * rng.randrange(40)])
    if isinstance(kind, idl.NamespacedType):
        module = __import__('.'.join(kind.namespaces), fromlist=[kind.name])
        return fill(getattr(module, kind.name), rng)
    if isinstance(kind, idl.Array):
        return np.array([draw(kind.value_type, rng) for _ in range(kind.size)])
    values = [draw(kind.value_type, rng) for _ in range(rng.randrange(4))]
    typename = getattr(kind.value_type, 'typename', '')
    codes = {'double': 'd', 'float': 'f', 'uint8': 'B', 'int32': 'i'}
    return array.array(codes[typename], values) if typename in codes else values


def fill(message_type: Any, rng: random.Random) -> Any:
    """A message with random content."""
    message = message_type()
    for name, kind in zip(message_type.get_fields_and_field_types(), message_type.SLOT_TYPES, strict=True):
        setattr(message, name, draw(kind, rng))
    return message


def same(a: Any, b: Any) -> bool:
    """Equal in value and in the types of all parts."""
    if type(a) is not type(b):
        return False
    if hasattr(a, 'SLOT_TYPES'):
        return all(same(getattr(a, n), getattr(b, n)) for n in a.get_fields_and_field_types())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=True))
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or a != a


@pytest.mark.parametrize('message_type', [*TYPES, *OTHERS], ids=lambda t: t.__name__)
def test_as_rclpy_decodes(message_type: Any) -> None:
    rng = random.Random(message_type.__name__)
    decode = decoder(message_type)
    assert decode is not None
    for _ in range(60):
        data = serialize_message(fill(message_type, rng))
        assert same(decode(data), deserialize_message(data, message_type))


@pytest.mark.parametrize('message_type', [*TYPES, *OTHERS], ids=lambda t: t.__name__)
def test_rclpy_reads_what_is_encoded(message_type: Any) -> None:
    rng = random.Random(message_type.__name__)
    encode, decode = encoder(message_type), decoder(message_type)
    assert encode is not None and decode is not None
    for _ in range(60):
        message = fill(message_type, rng)
        data, usual = encode(message), serialize_message(message)
        assert same(deserialize_message(data, message_type), message)
        assert same(decode(data), message)
        assert data[:4] == usual[:4]
        assert len(data) <= len(usual)  # rclpy leaves room behind an empty sequence at the end


def test_what_does_not_fit_its_field_is_not_sent() -> None:
    encode = encoder(msg.PowerSetpoint)
    assert encode is not None
    for field, value in (('_power', 'much'), ('_power', None), ('_sequence', -1), ('_sequence', 2**64), ('_term', 1.5),
                         ('_source', 7), ('_source', '\ud800'), ('_header', None)):
        message = msg.PowerSetpoint()
        setattr(message, field, value)
        with pytest.raises((struct.error, AttributeError, UnicodeEncodeError)):
            encode(message)


def test_a_numpy_number_is_sent_as_it_is() -> None:
    message = msg.PowerSetpoint()
    message._power, message._lease = np.float64(-1234.5), np.float32(2.5)
    encode = encoder(msg.PowerSetpoint)
    assert encode is not None
    got = deserialize_message(encode(message), msg.PowerSetpoint)
    assert (got.power, got.lease) == (-1234.5, 2.5)


def test_decoded_message_is_a_full_one() -> None:
    sent = fill(msg.InverterStatus, random.Random(3))
    decode = decoder(msg.InverterStatus)
    assert decode is not None
    got = decode(serialize_message(sent))
    assert same(got, sent) and serialize_message(got) == serialize_message(sent)
    with pytest.raises(AssertionError):
        got.active_power = 1  # fields stay checked
    got.voltage[0] = 1.0  # an own copy, not the receive buffer


def test_rare_kinds_are_left_to_rclpy() -> None:
    class Wide:
        __slots__ = ('_text',)
        SLOT_TYPES = (idl.Array(idl.BasicType('boolean'), 2),)

    assert decoder(Wide) is None and encoder(Wide) is None


def test_other_encapsulation_goes_to_rclpy() -> None:
    decode = decoder(Time)
    assert decode is not None
    big_endian = b'\x00\x00\x00\x00' + (5).to_bytes(4, 'big') + (7).to_bytes(4, 'big')
    assert decode(big_endian) == Time(sec=5, nanosec=7)


def test_cut_off_bytes_are_an_error() -> None:
    decode = decoder(msg.PowerSetpoint)
    assert decode is not None
    data = serialize_message(fill(msg.PowerSetpoint, random.Random(1)))
    for size in range(4, len(data)):
        with pytest.raises((struct.error, ValueError)):
            decode(data[:size])
