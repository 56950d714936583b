"""Registers of one SunSpec model to SI values and back. Pure: no I/O.

"Not implemented" becomes NaN or None, and a number whose scale factor is missing, not implemented
or outside -10..10 becomes NaN too: an unscaled number must never look like a measurement.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

from bess_drivers.device import BadFrame, BadValue
from bess_drivers.sunspec.definitions import ModelDef, PointDef, model_definition

Value = float | int | str | None

_POWERS = {n: 10.0**n for n in range(11)}


@dataclass(slots=True)
class ModelValues:
    """Decoded values of one model by point name; one mapping per element of its repeating group."""

    model_id: int
    values: dict[str, Value]
    sf: dict[str, int]  # usable scale factors only
    groups: list[dict[str, Value]] = field(default_factory=list)
    definition: ModelDef | None = None  # that it was decoded with; None = that of SunSpec

    def number(self, name: str) -> float:
        """A number in SI units; NaN where it is not implemented, not read or cannot be scaled."""
        return as_number(self.values.get(name))

    def integer(self, name: str) -> int | None:
        """An enum, bit field or count; None where it is not implemented."""
        value = self.values.get(name)
        return value if isinstance(value, int) else None

    def text(self, name: str) -> str:
        """A string; '' where it is not implemented."""
        value = self.values.get(name)
        return value if isinstance(value, str) else ''

    def has(self, name: str) -> bool:
        """Whether the point holds a usable value."""
        value = self.values.get(name)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    def elements(self) -> list[ModelValues]:
        """Each element of the repeating group as values of its own."""
        return [ModelValues(self.model_id, g, self.sf, definition=self.definition) for g in self.groups]

    def bits(self, name: str) -> list[str]:
        """Names of the set bits of a bit field, in lower case; unnamed bits as 'bit_<n>' or 'evt2_bit_<n>'."""
        value = self.integer(name)
        definition = self.definition or model_definition(self.model_id)
        if not value or definition is None:
            return []
        point = definition.by_name.get(name) or next(p for p in definition.repeat if p.name == name)
        unnamed = 'evt2_bit' if name.endswith('Evt2') else 'bit'
        symbols = {bit: n for bit, n in point.symbols.items() if 'reserved' not in n.lower()}
        return [
            symbols.get(bit, f'{unnamed}_{bit}').lower().replace(' ', '_')
            for bit in range(32)
            if value >> bit & 1
        ]


def signed(value: float, sign: float) -> float:
    """`value` in our direction; never -0.0, which reads as a direction."""
    return value * sign + 0.0


def as_number(value: Value) -> float:
    """A decoded value as a float; NaN for None and text."""
    return float(value) if isinstance(value, (int, float)) else nan


def decode(
    definition: ModelDef, registers: Sequence[int], length: int | None = None
) -> ModelValues:
    """Decode the registers of a model from its start (ID first); fewer registers give fewer values.

    `length` is the L of the device where it is known. Raises `BadFrame` for registers outside
    0..65535 and `BadValue` where L does not fit the definition.
    """
    if length is not None and (problem := definition.length_problem(length)):
        raise BadValue(problem)
    try:
        data = struct.pack(f'>{len(registers)}H', *registers)
    except struct.error as error:
        raise BadFrame(f'model {definition.id}: register outside 0..65535') from error
    values: dict[str, Value] = {}
    scales = _scales(definition.points, data, 0)
    _decode_points(definition.points, data, 0, scales, values)
    groups = []
    if definition.repeat_size:
        for start in _element_starts(definition, values, len(registers)):
            local = {**scales, **_scales(definition.repeat, data, start)}
            element: dict[str, Value] = {}
            _decode_points(definition.repeat, data, start, local, element)
            groups.append(element)
    return ModelValues(definition.id, values, scales, groups, definition)


def _element_starts(definition: ModelDef, values: Mapping[str, Value], registers: int) -> range:
    """Offsets of the elements that were read wholly; never more than the model says."""
    fits = max(0, (registers - definition.size) // definition.repeat_size)
    if definition.repeat_count:
        said = as_number(values.get(definition.repeat_count))
        fits = 0 if math.isnan(said) else min(fits, int(said))
    return range(
        definition.size, definition.size + fits * definition.repeat_size, definition.repeat_size
    )


def _scales(points: Sequence[PointDef], data: bytes, start: int) -> dict[str, int]:
    scales = {}
    for point in points:
        if point.kind == 'sf':
            at = 2 * (start + point.offset)
            if at + 2 <= len(data):
                value = point.data_to(data[at : at + 2])
                if -10 <= value <= 10:
                    scales[point.name] = value
    return scales


def _decode_points(
    points: Sequence[PointDef],
    data: bytes,
    start: int,
    scales: Mapping[str, int],
    values: dict[str, Value],
) -> None:
    size = len(data)
    for point in points:
        at = 2 * (start + point.offset)
        end = at + 2 * point.size
        if end > size or point.kind in ('sf', 'pad'):
            continue
        if point.kind == 'text':
            values[point.name] = _text(point, data[at:end])
            continue
        raw = point.data_to(data[at:end])
        usable = raw is not None and point.implemented(raw)
        if point.kind == 'integer':
            values[point.name] = raw if usable else None
        elif not usable:
            values[point.name] = nan
        else:
            values[point.name] = _scaled(raw, _scale_of(point, scales))


def _scale_of(point: PointDef, scales: Mapping[str, int]) -> int | None:
    if point.sf is None:
        return 0
    return point.sf if isinstance(point.sf, int) else scales.get(point.sf)


def _scaled(raw: float, scale: int | None) -> float:
    if scale is None:
        return nan
    value = raw * _POWERS[scale] if scale >= 0 else raw / _POWERS[-scale]
    return value if math.isfinite(value) else nan


def _text(point: PointDef, data: bytes) -> str | None:
    if point.type != 'string':
        value = point.data_to(data)
        return None if value is None else str(value)
    # Not the library's conversion: devices in the field send Latin-1 and text behind the NUL.
    return data.split(b'\0')[0].decode('utf-8', 'replace').strip() or None


def encode(point: PointDef, value: float, sf: Mapping[str, int]) -> list[int]:
    """Registers that hold an SI value, rounded towards zero: no more is asked than was wanted.

    Raises `BadValue` where the value is not finite, the scale factor unknown, or the value outside
    the range of the type (its "not implemented" code included).
    """
    scale = _scale_of(point, sf)
    if scale is None:
        raise BadValue(
            f'{point.name} cannot be written: its scale factor {point.sf} is not implemented'
        )
    if not math.isfinite(value):
        raise BadValue(f'{point.name} cannot be written: {value} is not a number')
    scaled = value / _POWERS[scale] if scale >= 0 else value * _POWERS[-scale]
    raw: float = scaled if point.type.startswith('float') else _towards_zero(scaled)
    try:
        data = point.to_data(raw)
    except (struct.error, OverflowError) as error:
        raise BadValue(f'{point.name} = {value:g} does not fit into {point.type}') from error
    if not point.implemented(raw):
        raise BadValue(f'{point.name} = {value:g} is the code for "not implemented"')
    return list(struct.unpack(f'>{len(data) // 2}H', data))


def _towards_zero(value: float) -> int:
    nearest = round(value)
    # 0.29 * 100 = 28.999999999999996: do not lose a unit to binary fractions
    return nearest if abs(value - nearest) < 1e-6 else math.trunc(value)
