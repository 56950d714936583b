"""Messages are encoded and decoded exactly as by rclpy, for every message of the contract."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from message_filler import OTHERS, TYPES, fill, same
from rclpy.serialization import deserialize_message, serialize_message
from rosidl_parser import definition as idl

from bess import msg
from bess_core.cdr import decoder, encoder


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
