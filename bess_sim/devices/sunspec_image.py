"""Register image of a SunSpec device, laid out by the public model definitions of `pysunspec2`.

The image is built once; afterwards only the registers of live points are patched. Not implemented
points carry SunSpec's code for that until they are set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sunspec2
from sunspec2 import mb, mdef

from bess_sim.devices.modbus_pdu import IllegalAddress, IllegalValue

_MODELS = Path(sunspec2.__file__).parent / 'models' / 'json'
#: struct code and "not implemented" by size in registers of the integer types
_SIGNED = {1: 'h', 2: 'i', 4: 'q'}
_UNSIGNED = {1: 'H', 2: 'I', 4: 'Q'}


@dataclass(frozen=True, slots=True)
class Point:
    """One point at its place in the image."""

    model: int
    name: str  # 'Point', 'Group.Point', or 'group[0].Point' in a repeating group
    type: str
    index: int  # of its first register in the image
    size: int
    sf: str
    writable: bool
    symbols: frozenset[int]  # values of an enum; empty = not an enum

    @property
    def code(self) -> str:
        """struct code of the value."""
        if self.type.startswith('float'):
            return 'f' if self.size == 2 else 'd'
        signed = self.type.startswith(('int', 'sunssf'))
        return (_SIGNED if signed else _UNSIGNED)[self.size]


@lru_cache(maxsize=64)
def _group(model_id: int) -> dict[str, Any]:
    path = _MODELS / mdef.to_json_filename(model_id)
    group: dict[str, Any] = mdef.from_json_str(path.read_text(encoding='utf-8'))['group']
    return group


class SunSpecImage:
    """Registers from `base`: 'SunS', the models in order, end marker.

    `models`: id -> elements of its repeating group (0 where it has none), of nested groups one number per level.
    """

    def __init__(self, models: Mapping[int, int | tuple[int, ...]], base: int = 40000) -> None:
        self.base = base
        self.registers: list[int] = [0x5375, 0x6E53]
        self.spans: list[tuple[int, int, int]] = []  # model, first index, index behind it
        self._points: dict[tuple[int, str], Point] = {}
        self._at: dict[int, Point] = {}  # register index -> point
        self._sf: dict[tuple[int, str], int] = {}
        for model, elements in models.items():
            first = len(self.registers)
            self._append(model, _group(model), '', elements)
            self.registers[first : first + 2] = [model, len(self.registers) - first - 2]
            self.spans.append((model, first, len(self.registers)))
        self.registers += [0xFFFF, 0]

    def _append(
        self, model: int, group: Mapping[str, Any], prefix: str, elements: int | tuple[int, ...]
    ) -> None:
        first, *rest = elements if isinstance(elements, tuple) else (elements,)
        for definition in group.get('points', ()):
            type_, size = definition['type'], definition['size']
            enum = type_.startswith('enum')
            point = Point(
                model,
                prefix + definition['name'],
                type_,
                len(self.registers),
                size,
                str(definition.get('sf', '')),
                definition.get('access') == 'RW',
                frozenset(int(s['value']) for s in definition.get('symbols', ()) if enum),
            )
            self._points[model, point.name] = point
            self._at.update((point.index + n, point) for n in range(size))
            data = mb.create_unimpl_value(type_, 2 * size)
            self.registers += struct.unpack(f'>{size}H', data)
        for sub in group.get('groups', ()):
            if sub.get('count', 1) == 1:
                self._append(model, sub, f'{prefix}{sub["name"]}.', elements)
            else:
                for n in range(first):
                    self._append(model, sub, f'{prefix}{sub["name"]}[{n}].', tuple(rest) or 0)

    def point(self, model: int, name: str) -> Point:
        """A point by name. Raises KeyError."""
        return self._points[model, name]

    def names(self, model: int) -> list[str]:
        """Points of a model."""
        return [name for number, name in self._points if number == model]

    def scale(self, model: int, **factors: int) -> None:
        """Set scale factors (powers of ten); they stay as they are."""
        for name, value in factors.items():
            self._sf[model, name] = value
            self.registers[self._points[model, name].index] = value & 0xFFFF

    def set(self, model: int, values: Mapping[str, float | str]) -> None:
        """Set points in SI units (static values; `setter` is faster for live ones)."""
        for name, value in values.items():
            point = self._points[model, name]
            if isinstance(value, str):
                data = value.encode('utf-8')[: 2 * point.size].ljust(2 * point.size, b'\0')
                self.registers[point.index : point.index + point.size] = struct.unpack(
                    f'>{point.size}H', data
                )
            else:
                self.setter(model, name)(value)

    def setter(self, model: int, name: str) -> Callable[[float], None]:
        """A function that patches one point with an SI value; NaN gives "not implemented".

        Values outside the range of the type are held at its ends, as a device does.
        """
        point = self._points[model, name]
        registers, index, code = self.registers, point.index, point.code
        empty = list(
            struct.unpack(f'>{point.size}H', mb.create_unimpl_value(point.type, 2 * point.size))
        )
        factor = 10.0 ** -self._sf.get((model, point.sf), 0) if point.sf else 1.0
        end = index + point.size
        if code in 'fd':

            def patch_float(value: float) -> None:
                if value == value:
                    registers[index:end] = struct.unpack(
                        f'>{point.size}H', struct.pack('>' + code, value)
                    )
                else:
                    registers[index:end] = empty

            return patch_float
        bits = 16 * point.size
        signed = code in 'hiq'
        low, high = (-(1 << bits - 1) + 1, (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 2)
        mask = (1 << bits) - 1

        def patch(value: float) -> None:
            if value != value:
                registers[index:end] = empty
                return
            raw = min(max(round(value * factor), low), high) & mask
            if bits == 16:
                registers[index] = raw
            elif bits == 32:
                registers[index] = raw >> 16
                registers[index + 1] = raw & 0xFFFF
            else:
                registers[index:end] = [
                    raw >> 48,
                    raw >> 32 & 0xFFFF,
                    raw >> 16 & 0xFFFF,
                    raw & 0xFFFF,
                ]

        return patch

    def raw(self, model: int, name: str) -> int:
        """The integer in a point, with its sign, unscaled."""
        point = self._points[model, name]
        parts = self.registers[point.index : point.index + point.size]
        return int(struct.unpack('>' + point.code, struct.pack(f'>{point.size}H', *parts))[0])

    def value(self, model: int, name: str) -> float:
        """An integer point in SI units; NaN where it is not implemented."""
        raw = self.raw(model, name)
        point = self._points[model, name]
        if not mb.point_type_info[point.type].is_impl(raw):
            return float('nan')
        scale = self._sf.get((model, point.sf), 0) if point.sf else 0
        return raw * 10.0**scale if scale >= 0 else raw / 10.0**-scale

    def read(self, address: int, count: int) -> list[int]:
        """Registers of the image. Raises `IllegalAddress` outside of it."""
        start = address - self.base
        if start < 0 or start + count > len(self.registers):
            raise IllegalAddress
        return self.registers[start : start + count]

    def touched(self, address: int, count: int) -> list[int]:
        """Models that a request touches."""
        start = address - self.base
        return [model for model, first, end in self.spans if start < end and start + count > first]

    def check_write(self, address: int, values: Sequence[int]) -> dict[str, int]:
        """Points (name -> raw value, model in front: '704.WSet') that a write would change.

        Raises `IllegalAddress` where a register is not writable, not implemented or half a point,
        and `IllegalValue` for a value that its enum does not have or that means "not implemented".
        """
        start = address - self.base
        result: dict[str, int] = {}
        position = 0
        while position < len(values):
            point = self._at.get(start + position)
            if point is None or not point.writable or point.index != start + position:
                raise IllegalAddress
            parts = values[position : position + point.size]
            if len(parts) < point.size:
                raise IllegalAddress
            if self.value(point.model, point.name) != self.value(point.model, point.name):
                raise IllegalAddress
            raw = struct.unpack('>' + point.code, struct.pack(f'>{point.size}H', *parts))[0]
            if (point.symbols and raw not in point.symbols) or not mb.point_type_info[
                point.type
            ].is_impl(raw):
                raise IllegalValue
            result[f'{point.model}.{point.name}'] = raw
            position += point.size
        return result

    def store(self, address: int, values: Sequence[int]) -> None:
        """Take over a write that was checked."""
        start = address - self.base
        self.registers[start : start + len(values)] = values
