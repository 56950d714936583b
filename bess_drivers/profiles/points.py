"""Reads the points of a profile, and what refers to them; see `loader`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bess_core import params
from bess_core.yaml_lines import LineReader, Path_, build
from bess_drivers.device import Role

from . import model as m
from .can_model import CanKeys, CanPlace, check_can
from .roles import VALUES, Value
from .units import POSITIVE, UNITS, Unit

POINT_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]{0,63}\Z')
BITS = re.compile(r'(\d+)(?:-(\d+))?\Z')


class Transport(NamedTuple):
    """What a transport adds to a profile: keys of its section, keys of a point, and its own check.

    `check(place, section) -> str` finds what is wrong with the place of one point, '' = nothing, and
    `section` is an instance of the first class.
    """

    section: type
    place: type
    check: Callable[[Any, Any], str]


def check_modbus(place: m.ModbusPlace, section: m.ModbusKeys) -> str:
    """What is wrong with the place of a Modbus point."""
    at = section.wire(place.address)
    function = section.read_function(place)
    if not 0 <= at <= 65535 or at + place.span > 65536:
        return (f'address {place.address} with address_base {section.address_base} is register {at} to '
                f'{at + place.span - 1} on the wire; allowed: 0 to 65535')
    if (function in (1, 2)) != (place.type == 'bool'):
        return f'type {place.type} does not go with function {function}: bool is for 1 and 2, others for 3 and 4'
    if place.step < place.words:
        return f'stride {place.stride} is shorter than a value of {place.words} registers'
    if place.words > section.max_registers:
        return f'one value of {place.words} registers is longer than max_registers {section.max_registers}'
    if any(section.wire(first) < at + place.span and section.wire(last) >= at for first, last in section.holes):
        return f'address {place.address} lies in one of the holes'
    write = place.write_function or section.write_function
    if write and (write in (5, 15)) != (place.type == 'bool') and place.write_function:
        return f'write_function {write} does not go with type {place.type}'
    return ''


#: transport name -> what it adds. A new transport registers itself here.
TRANSPORTS: dict[str, Transport] = {
    'modbus': Transport(m.ModbusKeys, m.ModbusPlace, check_modbus),
    'can': Transport(CanKeys, CanPlace, check_can),
}


class PointLoader:
    """Turns plain values into points, reporting every mistake to `reader`."""

    def __init__(self, reader: LineReader, raw: Mapping[str, Any], path: Path) -> None:
        self._r, self._raw, self._path = reader, raw, path
        self._role = Role.METER
        self._template = False
        self._transport = TRANSPORTS['modbus']
        self._section: Any = None
        self._points: dict[str, m.Point] = {}
        self._used: set[str] = set()

    def _part(self, name: str, default: Any) -> Any:
        value = self._raw.get(name)
        return default if value is None else value

    def _built(self, name: str, cls: type) -> dict[str, Any]:
        raw = self._part(name, {})
        if not isinstance(raw, dict):
            self._r.say((name,), 'must be a mapping')
            return {}
        built = {}
        for key, value in raw.items():
            if not isinstance(key, str) or not POINT_NAME.match(key):
                self._r.say((name, key), f'{key!r} is no name: letters, digits, underscores, a letter first')
                continue
            made = build(self._r, cls, value, (name, key))
            if made is not None:
                built[key] = made
        return built

    def _list(self, name: str, cls: type) -> list[Any]:
        raw = self._part(name, [])
        if not isinstance(raw, list):
            self._r.say((name,), 'must be a list')
            return []
        return [made for i, v in enumerate(raw) if (made := build(self._r, cls, v, (name, i))) is not None]

    def _texts(self, name: str) -> tuple[str, ...]:
        raw = self._part(name, [])
        if not isinstance(raw, list) or not all(isinstance(x, str) for x in raw):
            self._r.say((name,), 'must be a list of texts')
            return ()
        return tuple(raw)

    def _read_points(self, polls: Mapping[str, float]) -> None:
        r = self._r
        raw = self._part('points', None)
        if not isinstance(raw, dict) or not raw:
            r.say(('points',) if raw is not None else (), 'a profile needs points: a mapping from name to its keys')
            return
        place_class = self._transport.place
        schema = params.merge('PointKeysOfTransport', m.PointKeys, place_class)
        needed = {s.name for s in params.specs(place_class) if s.required}
        for name, value in raw.items():
            path = ('points', name)
            if not isinstance(name, str) or not POINT_NAME.match(name):
                r.say(path, f'{name!r} is no name: letters, digits, underscores, a letter first')
                continue
            if self._template and isinstance(value, dict) and needed - set(value):
                value = {**dict.fromkeys(needed, 0), **value}  # a template may leave places open
            both = build(r, schema, value, path)
            if both is None:
                continue
            point = self._point(path, name, params.extract(m.PointKeys, both), params.extract(place_class, both))
            if point is not None:
                if point.keys.poll not in (m.FAST, m.ONCE, *polls):
                    r.say(path, f'no poll group {point.keys.poll!r}; known: {", ".join((m.FAST, m.ONCE, *polls))}',
                          'poll')
                self._points[name] = point
        for point in self._points.values():
            if point.keys.scale_factor:
                self._use(('points', point.name, 'scale_factor'), point.keys.scale_factor)

    def _point(self, path: Path_, name: str, keys: m.PointKeys, place: Any) -> m.Point | None:
        r = self._r
        value = VALUES[self._role].get(name)
        problem = self._transport.check(place, self._section)
        if problem:
            r.say(path, problem)
            return None
        unit = UNITS.get(keys.unit or (value.unit if value else ''))
        if unit is None:
            near = difflib.get_close_matches(keys.unit, UNITS, n=3)
            r.say(path, f'unknown unit {keys.unit!r}; known: {", ".join(near or list(UNITS))}', 'unit')
            return None
        if problem := _unit_problem(keys, value, unit):
            r.say(path, problem, 'unit')
        directed = value.directed if value else bool(keys.positive)
        if directed and not keys.positive:
            r.say(path, f'has a direction: say what a positive number of the device means with positive: '
                        f'{", ".join(POSITIVE)}')
        if value and not value.directed and keys.positive and name != 'power_factor':
            r.say(path, 'is a magnitude without direction', 'positive')
        if keys.scale == 0.0 or keys.scale != keys.scale or keys.offset != keys.offset:
            r.say(path, 'scale must not be 0, scale and offset must be numbers')
            return None
        for pair in ('range', 'write_range'):
            given = getattr(keys, pair)
            if given and not (len(given) == 2 and given[0] <= given[1]):
                r.say(path, 'must be [lowest, highest]', pair)
                return None
        if getattr(place, 'count', 1) > 1 and not (value and value.array):
            arrays = [n for n, v in VALUES[self._role].items() if v.array]
            r.say(path, f'only {", ".join(arrays) or "no value of this role"} may hold several values', 'count')
        mask = low = 0
        if keys.bits:
            found = BITS.match(keys.bits)
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
            if not 0 <= low <= high <= 63:
                r.say(path, f'{keys.bits!r} is not like 3 or 8-15', 'bits')
                return None
            mask = ((1 << (high - low + 1)) - 1) << low
        codes, names = self._enum(path, keys, value)
        return m.Point(name, keys, place, unit.factor, unit.offset, POSITIVE.get(keys.positive, 1.0), directed,
                       mask, low, codes, names)

    def _enum(self, path: Path_, keys: m.PointKeys,
              value: Value | None) -> tuple[dict[int, float], dict[int, str]]:
        codes: dict[int, float] = {}
        names: dict[int, str] = {}
        for code, name in keys.enum.items():
            where = (*path, 'enum', code)
            if isinstance(code, bool) or not isinstance(code, int) or not isinstance(name, (str, bool)):
                self._r.say(where, 'an enum maps whole numbers to names')
                continue
            names[code] = _yaml_word(name)
            if value is not None and value.enum is not None:
                if names[code] not in value.enum.__members__:
                    self._r.say(where, f'{names[code]!r} is none of {", ".join(value.enum.__members__)}')
                    continue
                codes[code] = float(value.enum[names[code]])
        if value is not None and value.enum is not None and not keys.enum:
            self._r.say(path, f'needs an enum with {", ".join(value.enum.__members__)}')
        return codes, names

    def _use(self, path: Path_, name: str, access: str = 'r') -> m.Point | None:
        """A point that is referred to."""
        point = self._points.get(name)
        if point is None:
            if name not in self._part('points', {}):  # else it has a message of its own
                near = difflib.get_close_matches(name, self._points, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else ''
                self._r.say(path, f'no point {name!r}{hint}')
            return None
        self._used.add(name)
        if access not in point.keys.access:
            self._r.say(path, f'point {name!r} has access {point.keys.access!r}, needs {access!r}')
        return point

    def _constants(self) -> dict[str, float]:
        raw = self._part('constants', {})
        if not isinstance(raw, dict):
            self._r.say(('constants',), 'must be a mapping')
            return {}
        known = [n for n, v in VALUES[self._role].items() if v.enum is None and not v.array]
        for name, value in raw.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                self._r.say(('constants', name), f'must be a number (SI) for one of {", ".join(known)}')
            elif name in self._points:
                self._r.say(('constants', name), 'is a point already')
        return {n: float(v) for n, v in raw.items() if isinstance(v, (int, float))}


def _unit_problem(keys: m.PointKeys, value: Value | None, unit: Unit) -> str:
    wanted = UNITS[value.unit] if value else None
    if keys.per:
        return '' if unit.kind == 'fraction' else f'with per it must be % or fraction, not {keys.unit!r}'
    if wanted is None or unit.kind == wanted.kind:
        return ''
    fitting = [n for n, u in UNITS.items() if u.kind == wanted.kind and n]
    return f'{keys.unit!r} does not fit; allowed: {", ".join(fitting) or "none"}'


def snake(name: str) -> str:
    """A fault name as it appears in an id: small letters, digits, underscores."""
    return re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_') or 'unnamed'


def _yaml_word(value: Any) -> str:
    """YAML 1.1 reads OFF and ON as booleans; people mean the words."""
    if isinstance(value, bool):
        return 'ON' if value else 'OFF'
    return str(value)
