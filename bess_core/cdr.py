"""Messages to bytes and back: the standard CDR of ROS 2, by code made once per type.

rclpy builds each received message through its constructor, which checks the default of every field, and then sets
and checks every field again; to send one it looks its type and each field up by name. That is most of the cost of
a hop. Here the fields are read and filled directly: what comes from the middleware has its type already, and what a
node makes itself was checked when it was set.

Encoding: OMG DDS-XTypes 1.3, 7.4.3 (XCDR version 1): 4 bytes of encapsulation, then the fields in
order, each primitive aligned to its size from there on; strings and sequences start with a uint32 count,
the one of a string includes its closing zero.
"""

from __future__ import annotations

import array
import importlib
import sys
from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any

import numpy as np
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message
from rosidl_parser import definition as idl

Decoder = Callable[[bytes], Any]
Encoder = Callable[[Any], bytes]
ORIGIN = 4  # alignment counts from behind the encapsulation
LITTLE = b'\x00\x01'  # plain CDR, little endian
HEAD = LITTLE + b'\x00\x00'  # with no options

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


@cache
def encoder(message_type: Any) -> Encoder | None:
    """Function from a message of this type to its bytes; None for types with rare kinds of fields.

    It raises `struct.error` (or OverflowError, AttributeError) for a value that its field cannot hold.
    """
    if sys.byteorder != 'little':
        return None  # arrays are sent as they lie in memory
    try:
        write = _Writer(message_type, 8).function()
    except UnsupportedError:
        return None

    def encode(message: Any) -> bytes:
        out = bytearray(HEAD)
        write(message, out)
        return bytes(out)

    return encode


class EncodingPublisher(Publisher):
    """rclpy's publisher with messages encoded here where that is possible."""

    def __init__(self, publisher_impl: Any, msg_type: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(publisher_impl, msg_type, *args, **kwargs)
        self._encode, self._send = encoder(msg_type), publisher_impl.publish_raw

    def publish(self, msg: Any) -> None:
        """Send a message, or bytes as they are."""
        if self._encode is None or type(msg) is not self.msg_type:
            super().publish(msg)
            return
        with self.handle:
            self._send(self._encode(msg))

    give = publish  # for messages that their sender does not change any more, see `bess_core.exchange`


class _Coder:
    """Walks the fields of a type and writes the source of a function for them.

    `known` and `rest`: the position is `rest` modulo `known`, as far as that is certain when the
    function is written. A run of primitives whose padding is certain is handled in one go.
    """

    _HEAD, _END = '', ''

    def __init__(self, message_type: Any, known: int) -> None:
        self._lines: list[str] = []
        self._names: dict[str, Any] = {'new': object.__new__, 'np': np, 'array': array.array}
        self._known, self._rest = known, 0
        self._format = ''
        self._targets: list[str] = []
        self._message('m', message_type)
        self._flush()

    def function(self) -> Callable[..., Any]:
        """The compiled function."""
        source = self._HEAD + ''.join(f'    {line}\n' for line in self._lines) + self._END
        exec(source, self._names)
        return self._names['function']  # type: ignore[no-any-return]

    def _name(self, value: Any) -> str:
        name = f'g{len(self._names)}'
        self._names[name] = value
        return name

    def _message(self, target: str, message_type: Any) -> None:
        """A message whose fields follow in place."""
        for slot, kind in zip(message_type.__slots__, message_type.SLOT_TYPES, strict=False):
            self._field(f'{target}.{slot}', kind)

    def _field(self, target: str, kind: Any) -> None:
        if isinstance(kind, idl.BasicType):
            self._primitive(target, kind.typename)
        elif isinstance(kind, idl.AbstractString):
            self._string(target)
        elif isinstance(kind, idl.NamespacedType):
            self._nested(target, message_class(kind))
        elif isinstance(kind, idl.Array) and isinstance(kind.value_type, idl.BasicType):
            if kind.value_type.typename in ('boolean', 'octet'):
                raise UnsupportedError(f'array of {kind.value_type.typename}')
            self._array(target, kind.value_type.typename, kind.size)
        elif isinstance(kind, idl.AbstractSequence):
            if getattr(kind.value_type, 'typename', '') == 'octet':
                raise UnsupportedError('sequence of octet')
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
        self._pad(size)
        self._known, self._rest = size, 0

    def _lost(self) -> None:
        """From here on the position is not certain."""
        self._known, self._rest = 1, 0

    def _flush(self) -> None:
        """Handle the run of primitives so far."""
        if self._format:
            self._run(Struct('<' + self._format), ', '.join(self._targets))
            self._format, self._targets = '', []

    def _pad(self, size: int) -> None:
        """Pass what is left to the next multiple of a size."""
        raise NotImplementedError

    def _run(self, run: Struct, targets: str) -> None:
        """These fields in one go."""
        raise NotImplementedError

    def _string(self, target: str) -> None:
        raise NotImplementedError

    def _nested(self, target: str, message_type: Any) -> None:
        raise NotImplementedError

    def _array(self, target: str, typename: str, size: int) -> None:
        raise NotImplementedError

    def _sequence(self, target: str, kind: Any) -> None:
        raise NotImplementedError


class _Reader(_Coder):
    """Makes ``function(data, p) -> (message, p)``."""

    _HEAD, _END = 'def function(data, p):\n', '    return m, p\n'

    def _message(self, target: str, message_type: Any) -> None:
        self._lines.append(f'{target} = new({self._name(message_type)}); {target}._check_fields = True')
        super()._message(target, message_type)

    def _nested(self, target: str, message_type: Any) -> None:
        part = f'm{len(self._lines)}'
        self._message(part, message_type)
        self._lines.append(f'{target} = {part}')

    def _pad(self, size: int) -> None:
        self._lines.append(f'p += ({ORIGIN} - p) % {size}')

    def _run(self, run: Struct, targets: str) -> None:
        self._lines.append(f'{targets}, = {self._name(run.unpack_from)}(data, p); p += {run.size}')

    def _string(self, target: str) -> None:
        count = self._count()
        self._lines.append(f'{target} = data[p:p + {count} - 1].decode(); p += {count}')

    def _count(self) -> str:
        """Read a count; afterwards the position is not certain."""
        self._primitive(f'n{len(self._lines)}', 'uint32')
        name = self._targets[-1]
        self._flush()
        self._lost()
        return name

    def _array(self, target: str, typename: str, size: int) -> None:
        code, width, _ = _primitive(typename)
        self._align(width)
        self._lines.append(f"{target} = np.frombuffer(data, '<{np.dtype(code).str[1:]}', {size}, p).copy()")
        self._lines.append(f'p += {width * size}')
        self._lost()

    def _sequence(self, target: str, kind: Any) -> None:
        count = self._count()
        if isinstance(kind, idl.BasicType):
            _, width, array_code = _primitive(kind.typename)
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
            read = _Reader(message_class(kind), 1).function()
        else:
            raise UnsupportedError(str(kind))
        self._lines.append(f'{target} = items = []')
        self._lines.append(f'for _ in range({count}): item, p = {self._name(read)}(data, p); items.append(item)')


class _Writer(_Coder):
    """Makes ``function(message, out)``, which appends to the bytearray `out`."""

    _HEAD = 'def function(m, out):\n    pass\n'

    def _nested(self, target: str, message_type: Any) -> None:
        part = f'm{len(self._lines)}'
        self._lines.append(f'{part} = {target}')
        self._message(part, message_type)

    def _pad(self, size: int) -> None:
        self._lines.append(f'out += bytes(({ORIGIN} - len(out)) % {size})')

    def _run(self, run: Struct, targets: str) -> None:
        self._lines.append(f'out += {self._name(run.pack)}({targets})')

    def _string(self, target: str) -> None:
        text = f's{len(self._lines)}'
        self._lines.append(f"{text} = {target}.encode() + b'\\0'")
        self._count(f'len({text})')
        self._lines.append(f'out += {text}')

    def _count(self, count: str) -> None:
        """Write a count; afterwards the position is not certain."""
        self._primitive(count, 'uint32')
        self._flush()
        self._lost()

    def _array(self, target: str, typename: str, size: int) -> None:
        self._align(_primitive(typename)[1])
        self._lines.append(f'out += {target}.tobytes()')
        self._lost()

    def _sequence(self, target: str, kind: Any) -> None:
        self._count(f'len({target})')
        if isinstance(kind, idl.BasicType):
            _, width, array_code = _primitive(kind.typename)
            self._lines.append(f'if {target}: out += bytes(({ORIGIN} - len(out)) % {width})')
            self._lines.append(f'out += {target}.tobytes()' if array_code else f'out += bytes({target})')
            return
        if isinstance(kind, idl.AbstractString):
            write: Any = _write_string
        elif isinstance(kind, idl.NamespacedType):
            write = _Writer(message_class(kind), 1).function()
        else:
            raise UnsupportedError(str(kind))
        self._lines.append(f'for item in {target}: {self._name(write)}(item, out)')


def _primitive(typename: str) -> tuple[str, int, str]:
    try:
        return _PRIMITIVES[typename]
    except KeyError:
        raise UnsupportedError(typename) from None


_UINT32 = Struct('<I').unpack_from
_UINT32_BYTES = Struct('<I').pack


def _read_string(data: bytes, p: int) -> tuple[str, int]:
    p += (ORIGIN - p) % 4
    (count,) = _UINT32(data, p)
    p += 4
    return data[p:p + count - 1].decode(), p + count


def _write_string(text: str, out: bytearray) -> None:
    data = text.encode() + b'\0'
    out += bytes((ORIGIN - len(out)) % 4) + _UINT32_BYTES(len(data)) + data


def message_class(kind: Any) -> Any:
    """The Python class of a message type by its name in the interface definition."""
    return getattr(importlib.import_module('.'.join(kind.namespaces)), kind.name)


__all__ = ['Decoder', 'Encoder', 'EncodingPublisher', 'decoder', 'encoder', 'message_class']
