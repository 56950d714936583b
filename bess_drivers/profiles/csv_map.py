"""The CSV point map of the BESS Agent (University of Toledo, 0.7) as a profile with the same meaning.

The map names, for each MESA point, the point of a device driver (`driver_point_name`) and what its
number means: real = number * scale_factor + offset. Here the "driver" is another profile
(`registers`), in whose points the names are looked up; the result is that profile with the points
renamed, scaled and limited as the map says. Without `registers` the names are looked up in nothing,
and the map cannot be used (it holds no addresses).
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, isfinite
from pathlib import Path

from bess_core.yaml_lines import UnreadableFile, read_text

from .files import find, load_profile
from .mesa import MEANINGS
from .model import Point, Profile, ProfileError
from .roles import VALUES
from .units import UNITS

HEADER = ('mesa_name', 'driver_point_name', 'topic_prefix', 'scale_factor', 'offset', 'unit', 'rpc_attempts',
          'rpc_wait', 'max_data_age', 'buffer_length')
REQUIRED = HEADER[:3]


@dataclass(frozen=True)
class Row:
    """One line of the map, with the defaults of the BESS Agent where a cell is empty."""

    line: int
    mesa_name: str
    driver_point_name: str
    topic_prefix: str
    scale_factor: float = 1.0
    offset: float = 0.0
    unit: str = ''
    rpc_attempts: int = 5
    rpc_wait: float = 0.9  # s
    max_data_age: float = 0.0  # s, 0 = data of any age is valid
    buffer_length: int = 1

    @property
    def device(self) -> str:
        """What tells the devices of a map apart."""
        return self.topic_prefix.strip('/')

    @property
    def topic(self) -> str:
        """Full topic of the driver's point."""
        return f'{self.topic_prefix.rstrip("/")}/{self.driver_point_name}'


def parse(text: str, name: str) -> list[Row]:
    """The rows of a map. Raises `ProfileError` with one message per mistake, each with its line."""
    messages: list[str] = []
    rows: list[Row] = []
    try:
        reader = csv.reader(io.StringIO(text.removeprefix('\ufeff'), newline=''), strict=True)
        table = [(reader.line_num, [c.strip() for c in cells]) for cells in reader]
    except csv.Error as error:
        raise ProfileError([f'{name}:{reader.line_num}: not valid CSV: {error}']) from error
    table = [(line, cells) for line, cells in table if any(cells)]
    if not table:
        raise ProfileError([f'{name}:1: empty; the first line must be {",".join(HEADER)}'])
    line, header = table[0]
    messages += [f'{name}:{line}: column {column} is missing; known: {", ".join(HEADER)}'
                 for column in REQUIRED if column not in header]
    messages += [f'{name}:{line}: column {column} is given twice'
                 for column in dict.fromkeys(header) if header.count(column) > 1]
    # More columns are allowed: subclasses of the agent's devices have their own.
    if messages:
        raise ProfileError(messages)
    for line, cells in table[1:]:
        if len(cells) > len(header):
            messages.append(f'{name}:{line}: {len(cells)} cells, the header has {len(header)}')
            continue
        row = _row(dict(zip(header, cells, strict=False)), line, name, messages)
        if row is None:
            continue
        if any((r.mesa_name, r.device) == (row.mesa_name, row.device) for r in rows):
            messages.append(f'{name}:{line}: {row.mesa_name} is mapped twice')
        rows.append(row)
    if messages:
        raise ProfileError(messages)
    return rows


def _row(cells: Mapping[str, str], line: int, name: str, messages: list[str]) -> Row | None:
    before = len(messages)
    messages += [f'{name}:{line}: {column} is empty' for column in REQUIRED if not cells.get(column)]
    numbers: dict[str, float] = {}
    for column, low, whole in (('scale_factor', -inf, False), ('offset', -inf, False), ('rpc_attempts', 1, True),
                               ('rpc_wait', 0, False), ('max_data_age', 0, False), ('buffer_length', 1, True)):
        given = cells.get(column, '')
        if not given:
            continue
        try:
            number = float(given)
        except ValueError:
            number = inf
        if not isfinite(number) or number < low or (whole and number != int(number)) or (
                column == 'scale_factor' and number == 0.0) or number > 1e12:
            messages.append(f'{name}:{line}: {column} is {given[:40]!r}; allowed: a '
                            f'{"whole " if whole else ""}number{f" from {low:g}" if low > -inf else " but 0"}'
                            if column != 'offset' else f'{name}:{line}: offset is {given[:40]!r}, not a number')
            continue
        numbers[column] = int(number) if whole else number
    if len(messages) > before:
        return None
    texts = {c: cells[c] for c in REQUIRED}
    return Row(line=line, **texts, unit=cells.get('unit', ''), **numbers)  # type: ignore[arg-type]


def of_topic(rows: list[Row], topic: str, name: str) -> list[Row]:
    """The rows of one device: a map may name points of several, told apart by their `topic_prefix`.

    `topic` '' = the only one that there is. Raises `ProfileError` where that is not one, or a topic is not there.
    """
    there = list(dict.fromkeys(r.device for r in rows))
    wanted = topic.strip('/')
    if not wanted and len(there) > 1:
        raise ProfileError([f'{name}: points of {len(there)} devices; set topic to one of: {", ".join(there)}'])
    if wanted and wanted not in there:
        raise ProfileError([f'{name}: no point with topic_prefix {topic!r}; there is: {", ".join(there) or "none"}'])
    return [r for r in rows if not wanted or r.device == wanted]


def apply(rows: list[Row], base: Profile, name: str, path: Path) -> Profile:
    """The profile that results from a map over the points of `base`. Raises `ProfileError`.

    A `mesa_name` that is a value of the role (or stands for one, see `mesa`) fills it; any other name
    (points of the controls, of a subclass) stays as it is. Points of `base` that fill the role under
    its own names, or that controls, faults and states use, stay beside the mapped ones; any other point
    without a row is gone, as in the agent.
    """
    messages: list[str] = []
    points: dict[str, Point] = {}
    known = VALUES[base.role]
    for row in rows:
        where = f'{name}:{row.line}: {row.mesa_name}'
        source = base.points.get(row.driver_point_name)
        if source is None:
            near = difflib.get_close_matches(row.driver_point_name, base.points, n=2)
            hint = f'; did you mean {" or ".join(near)}?' if near else ''
            messages.append(f'{where}: {base.name} has no point {row.driver_point_name!r}{hint}')
            continue
        meaning = MEANINGS[base.role].get(row.mesa_name)
        target = meaning.value if meaning else row.mesa_name
        # Texts like "%WHRtg" are no units: the point's own, or that of the standard, holds then.
        unit = (row.unit if row.unit in UNITS else '') or source.keys.unit or (meaning.unit if meaning else '')
        if target in known and unit in UNITS and known[target].unit and \
                UNITS[unit].kind != UNITS[known[target].unit].kind:
            messages.append(f'{where}: unit {unit!r} does not fit {target}, which is in {known[target].unit}')
            continue
        points[target] = _mapped(source, target, row, unit, known[target].directed if target in known else False,
                                 meaning.sign if meaning else 1.0)
    if messages:
        raise ProfileError(messages)
    used = _used(base)
    kept = {n: p for n, p in base.points.items() if (n in used or n in known) and n not in points}
    derived = {n: d for n, d in base.derived.items() if n not in points}
    return replace(base, name=name.removesuffix('.csv'), path=path, points={**kept, **points}, derived=derived)


def _mapped(source: Point, target: str, row: Row, unit: str, directed: bool, sign: float) -> Point:
    """A point as the map sees it: `value * scale_factor + offset` of what the driver gives."""
    k = source.keys
    si = UNITS.get(unit, UNITS[''])
    keys = replace(
        k, scale=k.scale * row.scale_factor, offset=k.offset * row.scale_factor + row.offset, unit=unit,
        write_attempts=row.rpc_attempts, write_wait=row.rpc_wait,
        max_age=row.max_data_age or inf, keep=row.buffer_length, extra=True)
    return replace(source, name=target, keys=keys, factor=si.factor, shift=si.offset,
                   directed=directed or source.directed, sign=source.sign if k.positive else sign)


def _used(base: Profile) -> set[str]:
    """Names of points that something in a profile refers to."""
    names = {f.point for f in base.faults} | {r.point for r in base.states} | set(base.identity.values())
    steps = [*base.order, *base.start, *base.stop, *base.climate, *(s for c in base.contactor.values() for s in c)]
    names |= {s.point for s in steps} | {p.keys.scale_factor for p in base.points.values()}
    names |= {h.point for h in (base.heartbeat, *base.confirm.values()) if h}
    for d in base.derived.values():
        names |= {n.removeprefix('-') for n in (*d.sum, *d.product, *d.max, *d.min)}
    return names


@lru_cache(maxsize=64)
def _loaded(path: Path, _changed: int, registers: str, topic: str) -> Profile:
    try:
        rows = parse(read_text(path), str(path))
    except UnreadableFile as error:
        raise ProfileError([str(error)]) from error
    return apply(of_topic(rows, topic, str(path)), load_profile(registers), path.name, path)


def load_device(profile: str, registers: str = '', topic: str = '') -> Profile:
    """The profile of a device: a YAML profile, or a CSV map over the points of `registers`. Raises `ProfileError`.

    `topic`: see `of_topic`.
    """
    if not profile.endswith('.csv'):
        if registers or topic:
            raise ProfileError([f'{"registers" if registers else "topic"} is for a point map (.csv) only'])
        return load_profile(profile)
    path = Path(profile).expanduser()
    if not path.is_file():
        raise ProfileError([f'{profile}: no such point map'])
    if not registers:
        raise ProfileError([f'{profile}: a point map has no addresses; name the profile that has them with registers'])
    find(registers)
    return _loaded(path.resolve(), path.stat().st_mtime_ns, registers, topic)
