"""Received bytes to messages: the standard CDR of ROS 2, decoded by code made once per type.

rclpy builds each received message through its constructor, which checks the default of every field,
and then sets and checks every field again; that is most of the cost of a hop. What comes from the
middleware has its type already, so the decoders here fill the message directly. Messages that a node
makes itself are not touched: their fields stay checked.

Encoding: OMG DDS-XTypes 1.3, 7.4.3 (XCDR version 1): 4 bytes of encapsulation, then the fields in
order, each primitive aligned to its size from there on; strings and sequences start with a uint32 count,
the one of a string includes its closing zero.
"""

from __future__ import annotations

import array
import importlib
from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message
from rosidl_parser import definition as idl

Decoder = Callable[[bytes], Any]
ORIGIN = 4  # alignment counts from behind the encapsulation
LITTLE = b'\x00\x01'  # plain CDR, little endian

#: IDL name -> (struct code, size, array type code)
_PRIMITIVES = {
    'boolean': ('?', 1, ''), 'octet': ('c', 1, ''), 'uint8': ('B', 1, 'B'), 'int8': ('b', 1, 'b'),
    'uint16': ('H', 2, 'H'), 'int16': ('h', 2, 'h'), 'uint32': ('I', 4, 'I'), 'int32': ('i', 4, 'i'),
    'uint64': ('Q', 8, 'Q'), 'int64': ('q', 8, 'q'), 'float': ('f', 4, 'f'), 'double': ('d', 8, 'd'),
}  # fmt: skip


class UnsupportedError(Exception):
    """A field type that is left to rclpy."""


@cache
def decoder(message_type: Any) -> Decoder | None:
    """Function from received bytes to a message of this type; None for types with rare kinds of fields."""
    try:
        read = _Reader(message_type, 8).function()
    except UnsupportedError:
        return None

    def decode(data: bytes) -> Any:
        if data[:2] != LITTLE:
            return deserialize_message(data, message_type)
        message, end = read(data, ORIGIN)
        if end > len(data):
            raise ValueError(f'{message_type.__name__}: {len(data)} bytes, {end} were announced')
        return message

    return decode


class _Reader:
    """Writes the source of a function ``read(data, p) -> (message, p)`` for one type.

    `known` and `rest`: the position is `rest` modulo `known`, as far as that is certain when the
    function is written. A run of primitives whose padding is certain is read in one go.
    """

    def __init__(self, message_type: Any, known: int) -> None:
        self._lines: list[str] = []
        self._names: dict[str, Any] = {'new': object.__new__, 'np': np, 'array': array.array}
        self._known, self._rest = known, 0
        self._format = ''
        self._targets: list[str] = []
        self._message('m', message_type)
        self._flush()

    def function(self) -> Callable[[bytes, int], tuple[Any, int]]:
        """The compiled function."""
        source = 'def read(data, p):\n' + ''.join(f'    {line}\n' for line in self._lines) + '    return m, p\n'
        exec(source, self._names)
        return self._names['read']  # type: ignore[no-any-return]

    def _name(self, value: Any) -> str:
        name = f'g{len(self._names)}'
        self._names[name] = value
        return name

    def _message(self, target: str, message_type: Any) -> None:
        """A message whose fields follow in place."""
        self._lines.append(f'{target} = new({self._name(message_type)}); {target}._check_fields = True')
        for slot, kind in zip(message_type.__slots__, message_type.SLOT_TYPES, strict=False):
            self._field(f'{target}.{slot}', kind)

    def _field(self, target: str, kind: Any) -> None:
        if isinstance(kind, idl.BasicType):
            self._primitive(target, kind.typename)
        elif isinstance(kind, idl.AbstractString):
            count = self._count()
            self._lines.append(f'{target} = data[p:p + {count} - 1].decode(); p += {count}')
        elif isinstance(kind, idl.NamespacedType):
            part = f'm{len(self._lines)}'
            self._message(part, _message_class(kind))
            self._lines.append(f'{target} = {part}')
        elif isinstance(kind, idl.Array) and isinstance(kind.value_type, idl.BasicType):
            self._array(target, kind.value_type.typename, kind.size)
        elif isinstance(kind, idl.AbstractSequence):
            self._sequence(target, kind.value_type)
        else:
            raise UnsupportedError(str(kind))

    def _primitive(self, target: str, typename: str) -> None:
        code, size = _primitive(typename)[:2]
        if size > self._known:
            self._align(size)
        pad = -self._rest % size
        self._format += 'x' * pad + code
        self._targets.append(target)
        self._rest = (self._rest + pad + size) % self._known

    def _align(self, size: int) -> None:
        self._flush()
        self._lines.append(f'p += ({ORIGIN} - p) % {size}')
        self._known, self._rest = size, 0

    def _flush(self) -> None:
        """Read the run of primitives so far."""
        if self._format:
            run = Struct('<' + self._format)
            self._lines.append(f'{", ".join(self._targets)}, = {self._name(run.unpack_from)}(data, p); p += {run.size}')
            self._format, self._targets = '', []

    def _count(self) -> str:
        """Read a count; afterwards the position is not certain."""
        self._primitive(f'n{len(self._lines)}', 'uint32')
        name = self._targets[-1]
        self._flush()
        self._known, self._rest = 1, 0
        return name

    def _array(self, target: str, typename: str, size: int) -> None:
        code, width, _ = _primitive(typename)
        if typename in ('boolean', 'octet'):
            raise UnsupportedError(f'array of {typename}')
        self._align(width)
        self._lines.append(f"{target} = np.frombuffer(data, '<{np.dtype(code).str[1:]}', {size}, p).copy()")
        self._lines.append(f'p += {width * size}')
        self._known, self._rest = 1, 0

    def _sequence(self, target: str, kind: Any) -> None:
        count = self._count()
        if isinstance(kind, idl.BasicType):
            _, width, array_code = _primitive(kind.typename)
            if kind.typename == 'octet':
                raise UnsupportedError('sequence of octet')
            self._lines.append(f'if {count}: p += ({ORIGIN} - p) % {width}')
            piece = f'data[p:p + {count} * {width}]'
            if array_code:
                self._lines.append(f"{target} = array('{array_code}', {piece}); p += {count} * {width}")
            else:
                self._lines.append(f'{target} = [b != 0 for b in {piece}]; p += {count}')
            return
        if isinstance(kind, idl.AbstractString):
            read: Any = _read_string
        elif isinstance(kind, idl.NamespacedType):
            read = _Reader(_message_class(kind), 1).function()
        else:
            raise UnsupportedError(str(kind))
        self._lines.append(f'{target} = items = []')
        self._lines.append(f'for _ in range({count}): item, p = {self._name(read)}(data, p); items.append(item)')


def _primitive(typename: str) -> tuple[str, int, str]:
    try:
        return _PRIMITIVES[typename]
    except KeyError:
        raise UnsupportedError(typename) from None


_UINT32 = Struct('<I').unpack_from


def _read_string(data: bytes, p: int) -> tuple[str, int]:
    p += (ORIGIN - p) % 4
    (count,) = _UINT32(data, p)
    p += 4
    return data[p:p + count - 1].decode(), p + count


def _message_class(kind: Any) -> Any:
    return getattr(importlib.import_module('.'.join(kind.namespaces)), kind.name)


__all__ = ['Decoder', 'decoder']
