"""Registers and values: 16, 32 and 64 bit integers and float32, in either word order.

Registers are unsigned 16 bit words as Modbus transfers them. `low_first` is the order of the words;
the bytes inside a word are always big-endian. Nothing is scaled here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum

from bess_drivers.device import BadValue


class Kind(Enum):
    """Type of a value: name = (struct code, registers)."""

    U16 = ('H', 1)
    I16 = ('h', 1)
    U32 = ('I', 2)
    I32 = ('i', 2)
    U64 = ('Q', 4)
    I64 = ('q', 4)
    F32 = ('f', 2)

    @property
    def words(self) -> int:
        """Number of registers."""
        return self.value[1]


def decode(kind: Kind, registers: Sequence[int], at: int = 0, *, low_first: bool = False) -> float:
    """The value at index `at` (an int except for F32; NaN and infinity pass).

    Raises `BadValue` when the registers do not reach that far or are no 16 bit words.
    """
    words = registers[at : at + kind.words]
    if at < 0 or len(words) != kind.words:
        raise BadValue(f'{kind.name} at {at} is outside of {len(registers)} registers')
    if low_first:
        words = words[::-1]
    try:
        return struct.unpack(f'>{kind.value[0]}', struct.pack(f'>{kind.words}H', *words))[0]
    except struct.error as error:
        raise BadValue(f'registers {list(words)} are not all in 0..65535') from error


def encode(kind: Kind, value: float, *, low_first: bool = False) -> list[int]:
    """The registers of a value. Raises `BadValue` when it does not fit; never wraps or rounds."""
    try:
        packed = struct.pack(f'>{kind.value[0]}', value)
    except (struct.error, OverflowError) as error:
        raise BadValue(f'{value!r} does not fit {kind.name}') from error
    words = list(struct.unpack(f'>{kind.words}H', packed))
    return words[::-1] if low_first else words


def text(registers: Sequence[int]) -> str:
    """ASCII text, two characters per register, high byte first, without what is not printable.

    Some meters put one character into each register and a NUL into its high byte.
    """
    data = struct.pack(f'>{len(registers)}H', *registers)
    return ''.join(chr(byte) for byte in data if 0x20 <= byte < 0x7F).strip()
