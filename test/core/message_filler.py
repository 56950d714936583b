"""Messages with random content, and whether two are equal to the last part."""

from __future__ import annotations

import array
import random
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rosidl_parser import definition as idl
from sensor_msgs.msg import BatteryState, NavSatFix

from bess import msg

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
