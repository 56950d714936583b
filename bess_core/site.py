"""The site file: one YAML file is the whole site. This module reads, checks and orders it.

Top-level keys: ``site`` (name and common settings), ``nodes`` (name -> type and parameters) and, for
a site that brings its own simulated devices, ``simulation``. Every mistake is reported as
``file:line: key: what is wrong; what is allowed``; nothing is started while there is one.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from . import installed, params, plugins, site_changes
from . import overlay as overlay_module
from .overlay import Overlay, OverlayError
from .params import Problem, param
from .yaml_lines import LineReader, Path_, UnreadableFile, build, read_text

NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]{0,63}\Z')
NAMESPACE = re.compile(r'(/[A-Za-z][A-Za-z0-9_]{0,63})+\Z')
NAME_RULE = 'letters, digits and underscores, a letter first, at most 64'
SECTIONS = ('site', 'nodes', 'simulation')
NODE_KEYS = ('type', 'process', 'required')  # and `feature`, which is gone when nodes are made
RESERVED = ('batteries',)  # nodes of the system itself


@dataclass(frozen=True)
class SiteParams:
    """The ``site`` section."""

    name: str = param(doc='name of the site; also its ROS namespace')
    description: str = param('', doc='one line for people')
    namespace: str = param('', doc='ROS namespace; empty = /<name>')
    log_level: str = param('info', doc='lowest level in the log files', choices=['debug', 'info', 'warning', 'error'])
    features: dict[str, Any] = param({}, doc='switches: name -> true or false; a node with `feature: NAME` is left out '
                                     'where its switch is off')
    administration: bool = param(True, doc='offer the services that create, change and destroy batteries at run time')
    priority: bool = param(True, doc='where the processor is short, processes with converters or a power manager go '
                                     'ahead of other programs (nice -10, if the system allows it), and the others '
                                     'behind them (nice 5)')
    parameter_services: bool = param(False, doc='offer the ROS parameter services of every node (1 MB each)')
    heartbeat: float = param(0.25, 's', 'period of the sign of life of each node', low=0.05, high=5.0)
    heartbeat_timeout: float = param(
        4.0, 's', 'a process whose nodes are silent for so long is ended and started again', low=0.5, high=60.0
    )


@dataclass(frozen=True)
class NodeSpec:
    """One node of the site, ready to be made: ``spec.cls(spec.name, spec.params, context)``."""

    name: str
    type: str
    cls: Any
    params: Any
    process: str = 'control'
    required: bool = True  # the site cannot run without it
    refs: tuple[str, ...] = ()  # nodes that must be brought up before this one
    line: int = 0
    entry: str = ''  # key of the site file that made it; a child of a partition is made by the partition's

    @property
    def role(self) -> str:
        """What other nodes may refer to it as."""
        return str(self.cls.role)


#: Roles of the nodes that a site node switches on and off as its state wants it. Nobody else activates them there: a
#: process that starts again while the site sleeps or is under maintenance must not put a converter to work.
DRIVEN = ('converter', 'mode', 'storage')


@dataclass(frozen=True)
class Site:
    """A checked site. `nodes` are in bring-up order: what a node refers to comes before it."""

    path: Path
    params: SiteParams
    nodes: tuple[NodeSpec, ...]
    simulation: Mapping[str, Any] = field(default_factory=dict)
    overlay: Overlay = Overlay()  # changes made at run time
    entries: Mapping[str, Any] = field(default_factory=dict)  # `nodes` of the file with the overlay, as written
    again: Callable[[Overlay], Site] | None = None  # the same text checked with other changes; raises `SiteError`

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.params.name

    @property
    def namespace(self) -> str:
        """ROS namespace with leading slash."""
        return self.params.namespace or f'/{self.params.name}'

    @property
    def processes(self) -> tuple[str, ...]:
        """Process groups in order of first use."""
        return tuple(dict.fromkeys(n.process for n in self.nodes))

    def select(self, process: str = '', names: Sequence[str] = ()) -> list[NodeSpec]:
        """Nodes of a process group ('' = all), of these names (none = all), in bring-up order."""
        return [n for n in self.nodes if (not process or n.process == process) and (not names or n.name in names)]

    @property
    def driven(self) -> frozenset[str]:
        """Names of the nodes that only the site node activates; none where there is no site node."""
        if not any(n.role == 'site' for n in self.nodes):
            return frozenset()
        return frozenset(n.name for n in self.nodes if n.role in DRIVEN)

    def node(self, name: str) -> NodeSpec:
        """A node by name. Raises KeyError."""
        for spec in self.nodes:
            if spec.name == name:
                return spec
        raise KeyError(name)


class SiteError(Exception):
    """A site file that cannot be used; `messages` holds one line per mistake."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)
        super().__init__('\n'.join(messages))


def resolve_type(type_name: str) -> Any:
    """Node class of a type name: a node, or what becomes one in its shell. Raises `plugins.PluginError`."""
    if type_name in plugins.available(plugins.NODES):
        return _checked(plugins.load(plugins.NODES, type_name), type_name)
    for group, shell in ((plugins.DRIVERS, 'driver'), (plugins.BATTERIES, 'battery'), (plugins.MODES, 'mode')):
        if type_name in plugins.available(group):
            make, part = plugins.load('bess.shells', shell), plugins.load(group, type_name)
            try:
                return _checked(make(part), type_name)
            except (AttributeError, TypeError, ValueError, KeyError) as error:
                raise plugins.PluginError(f'{group} {type_name!r} is not a {shell}: {error!r}') from error
    known = known_types()
    near = difflib.get_close_matches(type_name, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise plugins.PluginError(f'unknown type {type_name!r}{hint}; known: {", ".join(known)}')


def _checked(cls: Any, type_name: str) -> Any:
    if not is_dataclass(getattr(cls, 'Params', None)):
        raise plugins.PluginError(f'type {type_name!r} ({cls!r}) has no parameter dataclass "Params"')
    return cls


def known_types() -> list[str]:
    """All type names that a site file may use."""
    groups = (plugins.NODES, plugins.DRIVERS, plugins.BATTERIES, plugins.MODES)
    return sorted({name for group in groups for name in plugins.available(group)})


def find(name: str) -> Path:
    """File of a site: a path, or the name of one of the installed `config/sites/*.yaml`. Raises `SiteError`."""
    direct = Path(name)
    if direct.is_file():
        return direct
    for folder in site_folders():
        candidate = folder / (name if name.endswith('.yaml') else f'{name}.yaml')
        if candidate.is_file():
            return candidate
    known = sorted({f.stem for folder in site_folders() for f in folder.glob('*.yaml')})
    raise SiteError([f'{name}: no such site file; installed sites: {", ".join(known) or "none"}'])


def site_folders() -> list[Path]:
    """Where site files are looked for: the checkout and the installed share folders."""
    return installed.folders('config', 'sites')


def load(path: Path, *, overrides: Iterable[str] = (), variables: Mapping[str, str] | None = None,
         check_simulation: bool = False, state: Path | None = None, recorded: Iterable[str] | None = None) -> Site:
    """Read and check a site file. With a `state` folder the changes made at run time that are stored there
    are applied, and it is the variable ${state}. `overrides` are ``nodes.meter.address=tcp://...`` settings
    that win over both; `variables` replace ``${name}`` in texts; `check_simulation` also checks the ``simulation``
    section (by whoever simulates: entry point ``check`` of ``bess.simulation``). Raises `SiteError` with
    one message per mistake.

    `recorded`: parameters changed on the running site, applied before `overrides`; None = those of `state`."""
    known = {**({'state': str(state)} if state is not None else {}), **(variables or {})}
    try:
        overlay = overlay_module.read(state) if state is not None else Overlay()
    except OverlayError as error:
        raise SiteError([f'{error}; `bess battery reset` puts it aside']) from error
    if recorded is None:
        try:
            recorded = site_changes.overrides(state) if state is not None else ()
        except site_changes.ChangesError as error:
            raise SiteError([str(error)]) from error
    try:
        text = read_text(path)
    except UnreadableFile as error:
        raise SiteError([str(error)]) from error
    return _check(path, text, tuple(overrides), known, overlay, check_simulation, tuple(recorded))


def _check(path: Path, text: str, overrides: tuple[str, ...], variables: dict[str, str], overlay: Overlay,
           check_simulation: bool, recorded: tuple[str, ...]) -> Site:
    reader = LineReader(str(path))
    raw = reader.read(text)
    if reader.messages:
        raise SiteError(reader.messages)
    if not isinstance(raw, dict):
        raise SiteError([f'{path}:1: a site file is a mapping with the keys {", ".join(SECTIONS)}'])
    raw['nodes'] = entries = overlay.apply(raw.get('nodes'))
    source = f'{overlay_module.FILE} (revision {overlay.revision})'
    reader.given.update({('nodes', name): source for name in overlay.created})
    reader.given.update({('nodes', name, key): source for name, keys in overlay.changed.items() for key in keys})
    entries = copy.deepcopy(entries)
    for override in recorded:
        _override(reader, raw, override, 'recorded parameter')
    for override in overrides:
        _override(reader, raw, override)
    raw = _substitute(reader, raw, variables, ())
    for key in raw:
        if key not in SECTIONS:
            reader.say((key,), f'unknown key; allowed: {", ".join(SECTIONS)}')
    site_params = build(reader, SiteParams, raw.get('site') or {}, ('site',))
    _leave_out(reader, raw, dict(site_params.features) if site_params is not None else {})
    specs = _nodes(reader, raw.get('nodes'))
    unusable = _names(raw.get('nodes')) - {s.name for s in specs}
    simulation = {} if raw.get('simulation') is None else raw['simulation']
    if not isinstance(simulation, dict):
        reader.say(('simulation',), 'must be a mapping')
    elif simulation and check_simulation:
        _check_simulation(reader, simulation)
    _check_references(reader, specs, unusable)
    try:
        ordered = _order(reader, specs)
    except RecursionError:
        reader.say(('nodes',), 'too many nodes refer to each other in one chain')
    if site_params is not None:
        if not NAME.match(site_params.name):
            reader.say(('site', 'name'), f'{site_params.name!r} is not a ROS name; allowed: {NAME_RULE}')
        if site_params.namespace and not NAMESPACE.match(site_params.namespace):
            reader.say(('site', 'namespace'), f'{site_params.namespace!r} is not a ROS namespace; allowed: '
                                              f'names with a leading slash, e.g. /home')
    if reader.messages:
        raise SiteError(reader.messages)
    assert site_params is not None
    return Site(path, site_params, tuple(ordered), simulation, overlay, entries,
                lambda other: _check(path, text, overrides, variables, other, False, recorded))


def _check_simulation(reader: LineReader, simulation: dict[str, Any]) -> None:
    if 'check' not in plugins.available('bess.simulation'):
        return  # whoever simulates here checks it by itself when it starts
    try:
        for path, text in plugins.load('bess.simulation', 'check')(simulation):
            reader.say(('simulation', *path), text)
    except plugins.PluginError as error:
        reader.say(('simulation',), str(error))


def _leave_out(reader: LineReader, raw: dict[str, Any], features: dict[str, Any]) -> None:
    """Take out the nodes of features that are off."""
    for name, value in features.items():
        if not isinstance(value, bool):
            reader.say(('site', 'features', name), 'must be true or false')
    nodes = raw.get('nodes')
    if not isinstance(nodes, dict):
        return
    for name, entry in list(nodes.items()):
        if not isinstance(entry, dict) or 'feature' not in entry:
            continue
        feature = entry.pop('feature')
        if feature not in features:
            reader.say(('nodes', name), f'unknown feature {feature!r}; allowed: {", ".join(features) or "none"} '
                       '(site.features)', 'feature')
        elif features[feature] is False:
            del nodes[name]


def _override(reader: LineReader, raw: dict[str, Any], override: str, origin: str = '--set') -> None:
    path, equals, value = override.partition('=')
    keys = path.split('.')
    if not equals or len(keys) < 2:
        reader.messages.append(f'{origin} {override}: must look like nodes.meter.address=tcp://127.0.0.1:502')
        return
    target: Any = raw
    for key in keys[:-1]:
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            reader.messages.append(f'{origin} {override}: {key!r} is not a mapping')
            return
    own = LineReader('')
    plain = own.read(value)
    reader.messages += [f'{origin} {override}: {message.split(": ", 1)[1]}' for message in own.messages]
    if not own.messages:
        target[keys[-1]] = plain
        reader.given[tuple(keys)] = f'{origin} {override}'


def _substitute(reader: LineReader, value: Any, variables: dict[str, str], path: Path_) -> Any:
    if isinstance(value, dict):
        return {k: _substitute(reader, v, variables, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(reader, v, variables, (*path, i)) for i, v in enumerate(value)]
    if isinstance(value, str):
        for name in re.findall(r'\$\{(\w+)\}', value):
            if name not in variables:
                reader.say(path, f'unknown variable ${{{name}}}; known: {", ".join(variables) or "none"}')
            else:
                value = value.replace(f'${{{name}}}', variables[name])
    return value


def read_values(text: str, most: int = 65536) -> dict[str, Any]:
    """A mapping as it may stand in a site file, e.g. the parameters of one node. Raises `SiteError`."""
    if len(text) > most:
        raise SiteError([f'{len(text)} characters of parameters; at most {most} are allowed'])
    reader = LineReader('parameters')
    values = reader.read(text)
    if not reader.messages and values is not None and not isinstance(values, dict):
        reader.messages.append('parameters: must be a mapping, e.g. {limit: sum}')
    if reader.messages:
        raise SiteError(reader.messages)
    return values or {}


def _nodes(reader: LineReader, raw: Any) -> list[NodeSpec]:
    if not isinstance(raw, dict) or not raw:
        reader.say(('nodes',), 'a site needs at least one node')
        return []
    out: list[NodeSpec] = []
    for name, entry in raw.items():
        path = ('nodes', name)
        if not isinstance(name, str) or not NAME.match(name):
            reader.say(path, f'{name!r} is not a ROS name; allowed: {NAME_RULE}')
            continue
        if name in RESERVED:
            reader.say(path, f'{name!r} is the name of a node of the system itself')
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get('type'), str):
            reader.say(path, f'needs a type; known: {", ".join(known_types())}')
            continue
        try:
            cls = resolve_type(entry['type'])
        except plugins.PluginError as error:
            reader.say((*path, 'type'), str(error))
            continue
        process, required = entry.get('process', 'control'), entry.get('required', True)
        if not isinstance(process, str) or not NAME.match(process):
            reader.say((*path, 'process'), f'{process!r} is not a name; allowed: {NAME_RULE}')
            continue
        if not isinstance(required, bool):
            reader.say((*path, 'required'), 'must be true or false')
            continue
        built = build(reader, cls.Params, {k: v for k, v in entry.items() if k not in NODE_KEYS}, path)
        if built is None:
            continue
        if problem := getattr(cls, 'check', lambda _: '')(built):
            reader.say(path, problem)
            continue
        line = reader.lines.get(path, 0)
        out.append(NodeSpec(name, entry['type'], cls, built, process, required, _refs(built), line, name))
        for child in getattr(cls, 'expand', lambda *_: ())(name, built):
            if not isinstance(child[0], str) or not NAME.match(child[0]):
                reader.say((*path, 'children', child[0]), f'{child[0]!r} is not a ROS name; allowed: {NAME_RULE}')
                continue
            out.append(NodeSpec(child[0], child[1], resolve_type(child[1]), child[2], process, required,
                                _refs(child[2]), line, name))
    names: set[str] = set()
    for spec in out:
        if spec.name in names:
            reader.say(('nodes', spec.name), 'two nodes have this name')
        names.add(spec.name)
    return out


def _named(value: Any) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value) if isinstance(value, (list, tuple)) else []


def _refs(built: Any) -> tuple[str, ...]:
    return tuple(
        name
        for spec in params.specs(type(built))
        if 'ref' in spec.metadata
        for name in _named(getattr(built, spec.name))
    )


def _names(raw: Any) -> set[Any]:
    """Names that the nodes of a file would have, also those that cannot be made."""
    entries = raw if isinstance(raw, dict) else {}
    children = [e.get('children') for e in entries.values() if isinstance(e, dict)]
    return {*entries, *(name for c in children if isinstance(c, dict) for name in c)}


def _check_references(reader: LineReader, specs: list[NodeSpec], unusable: set[Any]) -> None:
    """Who refers to what. An `unusable` node has a message of its own already."""
    by_name = {s.name: s for s in specs}
    owners: dict[str, str] = {}
    addresses: dict[tuple[Any, Any], str] = {}
    for spec in specs:
        for parameter in params.specs(type(spec.params)):
            role = parameter.metadata.get('ref')
            value = getattr(spec.params, parameter.name)
            path = ('nodes', spec.name, parameter.name)
            if not role:
                continue
            names = _named(value)
            for repeated in {n for n in names if names.count(n) > 1}:
                reader.say(path, f'{repeated!r} is named twice')
            for name in dict.fromkeys(names):
                if name in unusable:
                    continue
                other = by_name.get(name)
                fitting = sorted(s.name for s in specs if s.role in role.split('|'))
                if other is None:
                    reader.say(path, f'no node {name!r}; allowed: {", ".join(fitting) or f"no {role} in this site"}')
                elif other.role not in role.split('|'):
                    reader.say(path, f'{name!r} is a {other.role or other.type}, not a {role.replace("|", " or ")}; '
                                     f'allowed: {", ".join(fitting) or "none in this site"}')
                elif parameter.metadata.get('owns'):
                    if name in owners:
                        reader.say(path, f'{name!r} is already used by {owners[name]!r}; a battery has one owner')
                    owners.setdefault(name, spec.name)
        address = getattr(spec.params, 'address', None)
        if address:
            key = (address, getattr(spec.params, 'unit', None))
            # One box may be a converter and the battery behind it.
            box = {(s.name, getattr(s.params, 'bms', '')) for s in (spec, by_name[addresses.get(key, spec.name)])}
            if key in addresses and not box & {(spec.name, addresses[key]), (addresses[key], spec.name)}:
                reader.say(('nodes', spec.name, 'address'), f'{address} is already used by {addresses[key]!r}')
            addresses.setdefault(key, spec.name)


def _order(reader: LineReader, specs: list[NodeSpec]) -> list[NodeSpec]:
    """References first, otherwise as in the file; a cycle is reported with its path."""
    by_name = {s.name: s for s in specs}
    done: dict[str, NodeSpec] = {}
    cyclic: set[str] = set()

    def visit(spec: NodeSpec, trail: tuple[str, ...]) -> None:
        if spec.name in done or spec.name in cyclic:
            return
        if spec.name in trail:
            cycle = trail[trail.index(spec.name):]
            cyclic.update(cycle)
            reader.say(('nodes', cycle[0]), f'refers to itself: {" -> ".join((*cycle, spec.name))}')
            return
        for name in spec.refs:
            if name in by_name:
                visit(by_name[name], (*trail, spec.name))
        done.setdefault(spec.name, spec)

    for spec in specs:
        visit(spec, ())
    return list(done.values())


__all__ = ['NodeSpec', 'Problem', 'Site', 'SiteError', 'SiteParams', 'find', 'known_types', 'load', 'read_values',
           'resolve_type']
