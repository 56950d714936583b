"""Reads a profile file. Every mistake is reported as `file:line: key: what is wrong; what is allowed`.

`extends` takes another profile as base: mappings are merged key by key, lists and values replaced, and
a key set to null is taken away. A mistake in what the base brings is reported at the line of `extends`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bess_core import params
from bess_core.values import Severity
from bess_core.yaml_lines import LineReader, Path_, UnreadableFile, build, read_text
from bess_drivers.device import Role

from . import model as m
from .points import TRANSPORTS, PointLoader, Transport, snake
from .roles import VALUES
from .units import UNITS

NAME = re.compile(r'[a-z][a-z0-9_]{0,63}\Z')
SECTIONS = ('extends', 'polls', 'points', 'derived', 'states', 'faults', 'detect', 'identity', 'write', 'verified',
            'notes', 'constants')
WRITE = ('order', 'start', 'stop', 'grid_forming', 'contactor', 'confirm', 'climate', 'heartbeat')
WORDS = ('power', 'charge_power', 'discharge_power', 'current', 'charge_current', 'reactive_power', 'lease',
         'security_code', 'temperature', 'mode')
BIT_WORDS = ('charging', 'discharging', 'running')
CONTACTOR = ('open', 'closed', 'charge_only', 'discharge_only')
GRID_FORMING = ('island', 'grid')
MAX_EXTENDS = 5


def load(path: Path, find: Callable[[str], Path]) -> m.Profile:
    """Read and check a profile; `find` gives the file of a name after `extends`. Raises `ProfileError`."""
    reader = LineReader(str(path))
    raw = _read(path, reader, find, ())
    if reader.messages:
        raise m.ProfileError(reader.messages)
    profile = Loader(reader, raw, path).profile()
    if reader.messages or profile is None:
        raise m.ProfileError(reader.messages)
    return profile


def _read(path: Path, reader: LineReader, find: Callable[[str], Path], seen: tuple[Path, ...]) -> Any:
    try:
        raw = reader.read(read_text(path))
    except UnreadableFile as error:
        reader.messages.append(str(error))
        return None
    if reader.messages:
        return None
    if not isinstance(raw, dict):
        reader.say((), 'a profile is a mapping with at least title, role, transport, source and points')
        return None
    base_name = raw.get('extends')
    if base_name is None:
        return raw
    if not isinstance(base_name, str) or len(seen) >= MAX_EXTENDS:
        reader.say(('extends',), f'must be the name of a profile, and at most {MAX_EXTENDS} may extend each other')
        return None
    try:
        base_path = find(base_name)
    except m.ProfileError as error:
        reader.say(('extends',), str(error))
        return None
    if base_path in (*seen, path):
        reader.say(('extends',), f'{base_name!r} extends itself')
        return None
    below = LineReader(str(base_path))
    base = _read(base_path, below, find, (*seen, path))
    if below.messages or not isinstance(base, dict):
        reader.messages += below.messages
        return None
    base.pop('template', None)
    merged = _merge(base, raw)
    merged.pop('extends', None)
    line = reader.lines.get(('extends',), 1)
    for where in below.lines:
        if where not in reader.lines:
            reader.lines[where] = reader.lines.get(where[:-1], line) if where[:1] in reader.lines else line
    return merged


def _merge(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    out = dict(base)
    for key, value in over.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _merge(out.get(key), value)
    return out


class Loader(PointLoader):
    """Turns plain values into a `Profile`, reporting every mistake to `reader`."""

    def profile(self) -> m.Profile | None:
        """The profile; None (with messages) when its head is unusable."""
        r, raw = self._r, self._raw
        own = [f.name for f in fields(m.Head)]
        transport = raw.get('transport')
        known = (*own, *SECTIONS, *TRANSPORTS)
        for key in raw:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else ''
                r.say((key,), f'unknown key{hint}; allowed: {", ".join(known)}')
        head = build(r, m.Head, {k: v for k, v in raw.items() if k in own}, ())
        if head is None:
            return None
        if transport not in TRANSPORTS:
            r.say(('transport',), f'{transport!r} cannot be read here; known: {", ".join(TRANSPORTS)}')
            return None
        if not NAME.match(self._path.stem):
            r.say((), f'the file name {self._path.name!r} is the name of the profile: small letters, digits, '
                      f'underscores, a letter first')
        self._role, self._template, self._transport = Role(head.role), head.template, TRANSPORTS[transport]
        self._section = build(r, self._transport.section, self._part(transport, {}), (transport,))
        if self._section is None:
            return None
        polls = {name: keys.every for name, keys in self._built('polls', m.PollKeys).items()}
        for name in {m.FAST, m.ONCE} & set(polls):
            r.say(('polls', name), 'this group is given: fast = every poll, once = after connecting')
        self._read_points(polls)
        derived = self._derived()
        faults = self._faults(head)
        states = tuple(self._rules())
        write = self._part('write', {})
        if not isinstance(write, dict):
            r.say(('write',), f'must be a mapping with {", ".join(WRITE)}')
            write = {}
        for key in write:
            if key not in WRITE:
                r.say(('write', key), f'unknown key; allowed: {", ".join(WRITE)}')
        profile = m.Profile(
            name=self._path.stem, path=self._path, head=head, role=self._role, points=self._points,
            modbus=self._section if isinstance(self._section, m.ModbusKeys) else m.ModbusKeys(),
            section=self._section, polls=polls,
            verified=tuple(self._list('verified', m.Verified)), notes=self._texts('notes'),
            constants=self._constants(), derived=derived, states=states, faults=faults,
            detect=tuple(self._detect()), identity=self._identity(),
            order=self._steps(write, 'order'), start=self._steps(write, 'start'), stop=self._steps(write, 'stop'),
            climate=self._steps(write, 'climate'),
            contactor={k: self._steps(write['contactor'], k, 'contactor')
                       for k in self._contactor_keys(write, 'contactor')},
            grid_forming={k: self._steps(write['grid_forming'], k, 'grid_forming')
                          for k in self._contactor_keys(write, 'grid_forming', GRID_FORMING)},
            confirm={k: made for k in self._contactor_keys(write, 'confirm')
                     if (made := self._one(write['confirm'], k, m.ConfirmKeys, 'r', 'confirm')) is not None},
            heartbeat=self._one(write, 'heartbeat', m.HeartbeatKeys, 'w'))
        self._check_use(profile)
        return profile

    def _derived(self) -> dict[str, m.DerivedKeys]:
        out = {}
        for name, keys in self._built('derived', m.DerivedKeys).items():
            path = ('derived', name)
            value = VALUES[self._role].get(name)
            if value is None:
                self._r.say(path, f'is no value of a {self._role.value}; known: {", ".join(VALUES[self._role])}')
            if name in self._points:
                self._r.say(path, 'is a point already')
            given = [k for k in ('sum', 'product', 'max', 'min') if getattr(keys, k)]
            if len(given) != 1:
                self._r.say(path, 'needs exactly one of sum, product, max, min')
                continue
            for part in getattr(keys, given[0]):
                point = self._use((*path, given[0]), part.removeprefix('-'))
                if point and value and value.unit and given[0] != 'product' and not point.keys.per:
                    kind = UNITS[point.keys.unit].kind if point.keys.unit else ''
                    own = VALUES[self._role].get(point.name)
                    kind = kind or (own.unit if own else '')
                    if kind != UNITS[value.unit].kind and kind != value.unit:
                        self._r.say((*path, given[0]), f'{point.name} is in {kind or "no unit"}, not in {value.unit}')
            out[name] = keys
        return out

    def _faults(self, head: m.Head) -> tuple[m.Fault, ...]:
        prefix = head.faults_prefix or self._path.stem
        out = []
        for point_name, keys in self._built('faults', m.FaultKeys).items():
            path = ('faults', point_name)
            self._use(path, point_name)
            if not keys.bits and not keys.codes and not keys.any:
                self._r.say(path, 'needs bits, codes or any')
            if keys.any:
                out.append(m.Fault(point_name, f'{prefix}.{snake(keys.any)}', Severity[keys.severity], keys.any))
            # A single bit may mean a fault when it is 0; for any other number 0 is "no fault".
            zero = getattr(getattr(self._points.get(point_name), 'place', None), 'type', '') == 'bool'
            for table, name_of in (('bits', keys.bits), ('codes', keys.codes)):
                for number, name in name_of.items():
                    ok = isinstance(number, int) and not isinstance(number, bool) and isinstance(name, str) and name
                    if not ok or (table == 'bits' and not 0 <= number < 64) or (
                            table == 'codes' and number == 0 and not zero):
                        self._r.say((*path, table, number), 'must be a bit 0..63 (or a code that is not 0) and a name')
                        continue
                    out.append(m.Fault(point_name, f'{prefix}.{snake(name)}', Severity[keys.severity], name,
                                       number if table == 'bits' else -1, number if table == 'codes' else 0,
                                       zero=table == 'codes' and number == 0))
        return tuple(out)

    def _rules(self) -> list[m.RuleKeys]:
        key = next((n for n in ('state', 'mode') if n in VALUES[self._role]), '')
        enum = VALUES[self._role][key].enum if key else None
        rules = self._list('states', m.RuleKeys)
        for i, rule in enumerate(rules):
            path = ('states', i)
            if enum is None or rule.state not in enum.__members__:
                known = ', '.join(enum.__members__) if enum else f'none: a {self._role.value} has no states'
                self._r.say((*path, 'state'), f'{rule.state!r} is unknown; allowed: {known}')
            if rule.point:
                self._use((*path, 'point'), rule.point)
            elif i + 1 < len(rules):
                self._r.say(path, 'always holds, so that no later rule is reached')
        if rules and key in self._points:
            self._r.say(('states',), f'{key} is a point already')
        return rules

    def _detect(self) -> list[m.Detect]:
        schema = params.merge('DetectKeys', m.ExpectKeys, self._transport.place)
        out = []
        for i, both in enumerate(self._list('detect', schema)):
            expect = params.extract(m.ExpectKeys, both)
            place: Any = params.extract(self._transport.place, both)
            problem = self._transport.check(place, self._section)
            given = [bool(expect.equals), bool(expect.between), bool(expect.contains)]
            if not problem and sum(given) != 1:
                problem = 'needs exactly one of equals, between, contains'
            if not problem and expect.between and len(expect.between) != 2:
                problem = 'between must be [lowest, highest]'
            if not problem and bool(expect.contains) != (getattr(place, 'type', '') == 'text'):
                problem = 'contains is for type text, equals and between for numbers'
            if problem:
                self._r.say(('detect', i), problem)
            else:
                out.append(m.Detect(place, expect))
        return out

    def _identity(self) -> dict[str, str]:
        raw = self._part('identity', {})
        if not isinstance(raw, dict):
            self._r.say(('identity',), 'must be a mapping')
            return {}
        out = {}
        for key, name in raw.items():
            if key not in ('serial', 'version', 'model', 'manufacturer') or not isinstance(name, str):
                self._r.say(('identity', key), 'allowed: manufacturer, model, serial, version, each a point name')
            elif self._use(('identity', key), name):
                out[key] = name
        return out

    def _contactor_keys(self, write: Mapping[str, Any], key: str, allowed: Sequence[str] = CONTACTOR) -> list[str]:
        raw = write.get(key) or {}
        if not isinstance(raw, dict) or set(raw) - set(allowed):
            self._r.say(('write', key), f'must be a mapping with {", ".join(allowed)}')
            return []
        return list(raw)

    def _steps(self, write: Mapping[str, Any], key: str, parent: str = '') -> tuple[m.StepKeys, ...]:
        raw = write.get(key) or []
        path: Path_ = ('write', parent, key) if parent else ('write', key)
        if not isinstance(raw, list):
            self._r.say(path, 'must be a list of steps')
            return ()
        steps = []
        for i, value in enumerate(raw):
            step = build(self._r, m.StepKeys, value, (*path, i))
            if step is None:
                continue
            problem = self._step_problem(step)
            if problem:
                self._r.say((*path, i), problem)
            if self._use((*path, i, 'point'), step.point, 'w') is not None and not problem:
                steps.append(step)
        return tuple(steps)

    def _step_problem(self, step: m.StepKeys) -> str:
        if bool(step.bits) == (step.value is not None):
            return 'needs exactly one of value and bits'
        if step.value is not None and step.value not in WORDS and (
                isinstance(step.value, bool) or not isinstance(step.value, (int, float))):
            return f'value must be a number or one of {", ".join(WORDS)}'
        point = self._points.get(step.point)
        if step.bits and point is not None and not point.readable:
            return f'{step.point} must be readable: the other bits stay as they are'
        for bit, word in step.bits.items():
            if isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < 64 \
                    or word not in (0, 1, *BIT_WORDS):
                return f'bits map a bit 0..63 to 0, 1, {", ".join(BIT_WORDS)}'
        return ''

    def _one(self, write: Mapping[str, Any], key: str, cls: type, access: str, parent: str = '') -> Any:
        path: Path_ = ('write', parent, key) if parent else ('write', key)
        if write.get(key) is None:
            return None
        made = build(self._r, cls, write[key], path)
        if made is not None:
            self._use((*path, 'point'), made.point, access)
        return made

    def _check_use(self, profile: m.Profile) -> None:
        known = VALUES[self._role]
        for name, point in self._points.items():
            if name in known or name in self._used or point.keys.extra:
                continue
            if self._role is Role.IO and point.keys.kind:
                output = point.keys.kind.endswith('output')
                if output and not point.writable:
                    self._r.say(('points', name), 'an output needs access rw or w')
                continue
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            what = 'has no kind' if self._role is Role.IO else f'is no value of a {self._role.value}{hint}'
            self._r.say(('points', name), f'{what} and nothing in the profile uses it; extra: true keeps it anyway')
        forming = profile.grid_forming
        if forming and (self._role is not Role.CONVERTER or set(forming) != set(GRID_FORMING)
                        or 'grid_forming' not in profile.points):
            self._r.say(('write', 'grid_forming'), 'is for converters, needs both island and grid, and a point '
                        'grid_forming that tells what holds')
        if self._role is Role.CONVERTER and bool(profile.order) != bool(profile.stop):
            self._r.say(('write',), 'a converter that takes orders needs both order and stop')


__all__ = ['TRANSPORTS', 'WORDS', 'Transport', 'load', 'snake']
