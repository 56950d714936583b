"""SunSpec model definitions as flat tables: one offset per point, loaded once from JSON.

The public JSON files and the conversion of single points come from `pysunspec2` (SunSpec Alliance);
offsets count registers from the model start (ID at 0, L at 1), as in the SunSpec workbook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sunspec2
from sunspec2 import mb, mdef

from bess_drivers.sunspec.layouts import other_layout

MODEL_FILES = Path(sunspec2.__file__).parent / 'models' / 'json'

_INTEGER_TYPES = {'enum16', 'enum32', 'bitfield16', 'bitfield32', 'count'}
_TEXT_TYPES = {'string', 'eui48', 'ipv6addr', 'ipaddr'}
_FLOAT_TYPES = {'float32', 'float64'}


@dataclass(frozen=True, slots=True)
class PointDef:
    """One point. `kind` is 'number', 'integer' (enum, bit field, count), 'text', 'sf' or 'pad'."""

    name: str  # points of a nested single group are named 'Group.Point'
    type: str
    kind: str
    offset: int  # registers from the start of the model, or of one element of a group
    size: int  # registers
    sf: str | int | None
    writable: bool
    symbols: dict[int, str]  # enum value or bit number -> name
    data_to: Callable[[bytes], Any]  # conversions of the library
    to_data: Callable[..., bytes]
    implemented: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class ModelDef:
    """One model: fixed part and, where the model has one, the repeating group at its end."""

    id: int
    name: str
    points: tuple[PointDef, ...]
    by_name: dict[str, PointDef]
    size: int  # registers of the fixed part, with ID and L
    repeat: tuple[PointDef, ...] = ()
    repeat_size: int = 0
    repeat_count: str = ''  # point that holds the number of elements, '' = as many as fit into L
    flat: bool = True  # False: repeating groups are nested, only the fixed part is decoded

    def length_problem(self, length: int) -> str:
        """Why a model with this L does not have the layout of the definition; '' if it has.

        The names of the definition must not be laid over another layout. Model 1 is allowed
        without its pad.
        """
        fixed = self.size - 2
        if length == fixed or (self.id == 1 and length == fixed - 1):
            return ''
        if not self.flat and length > fixed:
            return ''
        if self.repeat_size and length > fixed and (length - fixed) % self.repeat_size == 0:
            return ''
        return f'model {self.id} has L={length} instead of {fixed}'


def _point(definition: dict[str, Any], offset: int, prefix: str) -> PointDef:
    kind_of = {'sunssf': 'sf', 'pad': 'pad'}
    type_ = definition['type']
    kind = kind_of.get(type_) or (
        'integer' if type_ in _INTEGER_TYPES else 'text' if type_ in _TEXT_TYPES else 'number'
    )
    info = mb.point_type_info[type_]
    sf = definition.get('sf')
    if isinstance(sf, str) and sf.lstrip('-').isdigit():
        sf = int(sf)
    return PointDef(
        name=prefix + definition['name'],
        type=type_,
        kind=kind,
        offset=offset,
        size=definition['size'],
        sf=sf,
        writable=definition.get('access') == 'RW',
        symbols={int(s['value']): str(s['name']) for s in definition.get('symbols', ())},
        data_to=info.data_to,
        to_data=info.to_data,
        implemented=info.is_impl,
    )


def _fixed(
    group: dict[str, Any], offset: int, prefix: str
) -> tuple[list[PointDef], int, list[dict[str, Any]]]:
    """Points of a group and its single subgroups, the offset behind, the repeating subgroups."""
    points: list[PointDef] = []
    repeating: list[dict[str, Any]] = []
    for definition in group.get('points', ()):
        points.append(_point(definition, offset, prefix))
        offset += definition['size']
    for sub in group.get('groups', ()):
        if 'count' in sub and sub['count'] != 1:
            repeating.append(sub)
            continue
        more, offset, nested = _fixed(sub, offset, f'{prefix}{sub["name"]}.')
        points += more
        repeating += nested
    return points, offset, repeating


@lru_cache(maxsize=128)
def model_definition(model_id: int) -> ModelDef | None:
    """The definition of a model, or None where SunSpec has none (vendor models)."""
    path = MODEL_FILES / mdef.to_json_filename(model_id)
    if path.is_file():
        return _model(model_id, mdef.from_json_str(path.read_text(encoding='utf-8'))['group'])
    other = other_layout(model_id)
    return _model(model_id, other) if other else None


@lru_cache(maxsize=128)
def layout_of(model_id: int, length: int) -> ModelDef | None:
    """The definition that fits this L: that of SunSpec, else a draft's; without a fit that of SunSpec."""
    usual = model_definition(model_id)
    if usual is not None and usual.length_problem(length) and (other := other_layout(model_id)):
        draft = _model(model_id, other)
        if not draft.length_problem(length):
            return draft
    return usual


def _model(model_id: int, group: dict[str, Any]) -> ModelDef:
    points, size, repeating = _fixed(group, 0, '')
    by_name = {p.name: p for p in points}
    if len(repeating) == 1:
        elements, repeat_size, nested = _fixed(repeating[0], 0, '')
        count = repeating[0]['count']
        if not nested:
            return ModelDef(
                model_id,
                group['name'],
                tuple(points),
                by_name,
                size,
                tuple(elements),
                repeat_size,
                count if isinstance(count, str) else '',
            )
    return ModelDef(model_id, group['name'], tuple(points), by_name, size, flat=not repeating)
