"""All points of one read block at once: the layout of the block is worked out when it is planned. Pure.

One `struct` call takes all numbers out of the registers, and one pass brings them to SI; only points with
something special (bits, enums, "not implemented" numbers) are looked at one by one. The meaning is that
of `Point.value`, which the tests compare it with. Plain numbers, not numpy: blocks are small, and what goes in
and comes out are Python's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from bess_drivers.device import BadValue
from bess_drivers.modbus.image import KINDS, Block, low_first, start_of
from bess_drivers.profiles.model import ModbusKeys, Point

Base = Callable[[Point], float]


class _Layer:
    """Points that do not overlap and have one word order."""

    def __init__(self, members: list[tuple[int, Point]], low: bool, count: int, base: Base, inverted: bool) -> None:
        self.points = [p for _, p in members]
        self.names = [p.name for p in self.points]
        self._low, self._count, self._base, self._inverted = low, count, base, inverted
        layout, at = '<' if low else '>', 0
        for index, point in members:
            layout += f'{2 * (index - at)}x' if index > at else ''
            layout += KINDS[point.place.type].value[0]
            at = index + point.place.words
        self._layout = struct.Struct(layout)
        signs = [p.sign * (-1.0 if inverted and p.directed else 1.0) * base(p) for p in self.points]
        bounds = [p.keys.range or (-inf, inf) for p in self.points]
        #: (factor, shift, lowest, highest) by point, SI = number * factor + shift
        self._plain = [(p.keys.scale * p.factor * s, (p.keys.offset * p.factor + p.shift) * s, low, high)
                       for p, s, (low, high) in zip(self.points, signs, bounds, strict=True)]
        self._special = [i for i, p in enumerate(self.points) if p.mask or p.codes or p.keys.not_implemented]

    def decode(self, data: bytes, numbers: dict[str, Any], values: dict[str, Any]) -> None:
        """Take all numbers and values out of the bytes of the registers. Raises `BadValue`."""
        raw = self._layout.unpack_from(data)
        # What is within no bounds (also a NaN) is left to `_one`; + 0.0: never -0.0.
        out = [value if low <= (value := number * factor + shift + 0.0) <= high else None
               for number, (factor, shift, low, high) in zip(raw, self._plain, strict=True)]
        for i in self._special:
            out[i] = None
        if None in out:
            out = [self._one(i, raw[i]) if value is None else value for i, value in enumerate(out)]
        numbers.update(zip(self.names, raw, strict=True))
        values.update(zip(self.names, out, strict=True))

    def _one(self, index: int, raw: float) -> float:
        point = self.points[index]
        return point.value(raw, 0.0, self._base(point), self._inverted)


class BlockDecoder:
    """Decodes one block. `rest` are its points that need more than this block or this way."""

    def __init__(self, block: Block, section: ModbusKeys, base: Base, inverted: bool) -> None:
        self.rest: list[Point] = []
        self.names: list[str] = []
        layers: list[tuple[bool, list[tuple[int, Point]]]] = []
        for point in sorted(block.points, key=lambda p: start_of(p.place, section)):
            index = start_of(point.place, section) - block.span.start
            if point.place.type not in KINDS or point.place.count > 1 or point.keys.scale_factor or index < 0:
                self.rest.append(point)
                continue
            low = low_first(point.place, section)
            for order, members in layers:
                last, previous = members[-1]
                if order == low and last + previous.place.words <= index:
                    members.append((index, point))
                    break
            else:
                layers.append((low, [(index, point)]))
            self.names.append(point.name)
        self._layers = [_Layer(members, low, block.span.count, base, inverted) for low, members in layers]
        self._orders = {low for low, _ in layers}
        self._pack = {low: struct.Struct(f'{"<" if low else ">"}{block.span.count}H') for low in self._orders}
        self._lows = [low for low, _ in layers]

    def decode(self, words: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(numbers of the device, SI values) by point. Raises `BadValue`, also for a block that is too short."""
        try:
            data = {low: pack.pack(*words) for low, pack in self._pack.items()}
        except struct.error as error:
            raise BadValue(f'{len(words)} registers do not make the block: {error}') from error
        numbers: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for low, layer in zip(self._lows, self._layers, strict=True):
            layer.decode(data[low], numbers, values)
        return numbers, values


__all__ = ['BlockDecoder']
