"""The site file: one YAML file is the whole site. This module reads, checks and orders it.

Top-level keys: ``site`` (name and common settings), ``nodes`` (name -> type and parameters) and, for
a site that brings its own simulated devices, ``simulation``. Every mistake is reported as
``file:line: key: what is wrong; what is allowed``; nothing is started while there is one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import params, plugins
from .params import Problem, param

NAME = re.compile(r'^[A-Za-z][A-Za-z0-9_]*$')
SECTIONS = ('site', 'nodes', 'simulation')
NODE_KEYS = ('type', 'process', 'required')
Path_ = tuple[Any, ...]


@dataclass(frozen=True)
class SiteParams:
    """The ``site`` section."""

    name: str = param(doc='name of the site; also its ROS namespace')
    description: str = param('', doc='one line for people')
    namespace: str = param('', doc='ROS namespace; empty = /<name>')
    log_level: str = param('info', doc='lowest level in the log files', choices=['debug', 'info', 'warning', 'error'])
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

    @property
    def role(self) -> str:
        """What other nodes may refer to it as."""
        return str(self.cls.role)


@dataclass(frozen=True)
class Site:
    """A checked site. `nodes` are in bring-up order: what a node refers to comes before it."""

    path: Path
    params: SiteParams
    nodes: tuple[NodeSpec, ...]
    simulation: Mapping[str, Any] = field(default_factory=dict)

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


class _Reader:
    """YAML to plain values, remembering the line of every key."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path_, int] = {}
        self.messages: list[str] = []

    def say(self, path: Path_, text: str, key: str = '') -> None:
        """Report a mistake at the line of `path` (or of its nearest known parent)."""
        full = (*path, key) if key else path
        where = full
        while where and where not in self.lines:
            where = where[:-1]
        name = '.'.join(str(p) for p in full)
        self.messages.append(f'{self.file}:{self.lines.get(where, 1)}: {name + ": " if name else ""}{text}')

    def read(self, text: str) -> Any:
        """Parse; syntax errors become messages."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            self.messages.append(f'{self.file}:{line}: not valid YAML: {error.problem or error.context}')
            return None
        except yaml.YAMLError as error:
            self.messages.append(f'{self.file}:1: not valid YAML: {error}')
            return None
        return None if root is None else self._plain(root, (), frozenset())

    def _plain(self, node: yaml.Node, path: Path_, seen: frozenset[int]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in seen or len(path) > 20:
            self.say(path, 'nested too deeply or refers to itself')
            return None
        seen = seen | {id(node)}
        if isinstance(node, yaml.MappingNode):
            out: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
                self.lines[(*path, key)] = key_node.start_mark.line + 1
                if key in out:
                    self.say((*path, key), 'given twice')
                out[key] = self._plain(value_node, (*path, key), seen)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, i), seen) for i, item in enumerate(node.value)]
        return self._scalar(node)

    @staticmethod
    def _scalar(node: yaml.Node) -> Any:
        value = yaml.SafeLoader('').construct_object(node)  # type: ignore[no-untyped-call]
        # YAML 1.1 reads 1e3 as text; everybody means the number.
        if isinstance(value, str) and node.style is None and re.fullmatch(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+', value):
            return float(value)
        return value


def resolve_type(type_name: str) -> Any:
    """Node class of a type name: a node, a driver or a mode plug-in. Raises `plugins.PluginError`."""
    if type_name in plugins.available(plugins.NODES):
        return plugins.load(plugins.NODES, type_name)
    for group, shell in ((plugins.DRIVERS, 'driver'), (plugins.MODES, 'mode')):
        if type_name in plugins.available(group):
            return plugins.load('bess.shells', shell)(plugins.load(group, type_name))
    known = known_types()
    near = difflib.get_close_matches(type_name, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise plugins.PluginError(f'unknown type {type_name!r}{hint}; known: {", ".join(known)}')


def known_types() -> list[str]:
    """All type names that a site file may use."""
    groups = (plugins.NODES, plugins.DRIVERS, plugins.MODES)
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
    """Where site files are looked for: the checkout and the installed share folder."""
    import sys

    folders = [Path(__file__).parent.parent / 'config' / 'sites', Path(sys.prefix) / 'share' / 'bess' / 'config' / 'sites']
    try:
        from ament_index_python.packages import get_package_share_directory

        folders.append(Path(get_package_share_directory('bess')) / 'config' / 'sites')
    except (ImportError, LookupError):
        pass  # not an ament environment: the two folders above are all there is
    return [f for f in folders if f.is_dir()]


def load(path: Path, *, overrides: Iterable[str] = (), variables: Mapping[str, str] | None = None) -> Site:
    """Read and check a site file. `overrides` are ``nodes.meter.address=tcp://...`` settings that win over
    the file; `variables` replace ``${name}`` in texts. Raises `SiteError` with one message per mistake."""
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError([f'{path}: cannot be read: {error}']) from error
    reader = _Reader(str(path))
    raw = reader.read(text)
    if reader.messages:
        raise SiteError(reader.messages)
    if not isinstance(raw, dict):
        raise SiteError([f'{path}:1: a site file is a mapping with the keys {", ".join(SECTIONS)}'])
    for override in overrides:
        _override(reader, raw, override)
    raw = _substitute(reader, raw, dict(variables or {}), ())
    for key in raw:
        if key not in SECTIONS:
            reader.say((key,), f'unknown key; allowed: {", ".join(SECTIONS)}')
    site_params = _build(reader, SiteParams, raw.get('site') or {}, ('site',))
    specs = _nodes(reader, raw.get('nodes'))
    simulation = raw.get('simulation') or {}
    if not isinstance(simulation, dict):
        reader.say(('simulation',), 'must be a mapping')
    _check_references(reader, specs)
    ordered = _order(reader, specs)
    if site_params is not None and not NAME.match(site_params.name):
        reader.say(('site', 'name'), f'{site_params.name!r} is not a ROS name (letters, digits, underscore)')
    if reader.messages:
        raise SiteError(reader.messages)
    assert site_params is not None
    return Site(path, site_params, tuple(ordered), simulation)


def _override(reader: _Reader, raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition('=')
    keys = path.split('.')
    if not equals or len(keys) < 2:
        reader.messages.append(f'--set {override}: must look like nodes.meter.address=tcp://127.0.0.1:502')
        return
    target: Any = raw
    for key in keys[:-1]:
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            reader.messages.append(f'--set {override}: {key!r} is not a mapping')
            return
    target[keys[-1]] = _Reader('--set').read(value)


def _substitute(reader: _Reader, value: Any, variables: dict[str, str], path: Path_) -> Any:
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


def _build(reader: _Reader, cls: type, values: Any, path: Path_) -> Any:
    if not isinstance(values, Mapping):
        reader.say(path, 'must be a mapping')
        return None
    try:
        return params.build(cls, values)
    except params.ParameterError as error:
        for problem in error.problems:
            reader.say(path, problem.text, problem.key)
        return None


def _nodes(reader: _Reader, raw: Any) -> list[NodeSpec]:
    if not isinstance(raw, dict) or not raw:
        reader.say(('nodes',), 'a site needs at least one node')
        return []
    out: list[NodeSpec] = []
    for name, entry in raw.items():
        path = ('nodes', name)
        if not isinstance(name, str) or not NAME.match(name):
            reader.say(path, f'{name!r} is not a ROS name (letters, digits, underscore; letter first)')
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
            reader.say((*path, 'process'), f'{process!r} is not a name')
            continue
        if not isinstance(required, bool):
            reader.say((*path, 'required'), 'must be true or false')
            continue
        built = _build(reader, cls.Params, {k: v for k, v in entry.items() if k not in NODE_KEYS}, path)
        if built is None:
            continue
        line = reader.lines.get(path, 0)
        out.append(NodeSpec(name, entry['type'], cls, built, process, required, _refs(built), line))
        for child in getattr(cls, 'expand', lambda *_: ())(name, built):
            spec = NodeSpec(child[0], child[1], resolve_type(child[1]), child[2], process, required,
                            _refs(child[2]), line)
            if not NAME.match(spec.name):
                reader.say(path, f'{spec.name!r} is not a ROS name')
            out.append(spec)
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


def _check_references(reader: _Reader, specs: list[NodeSpec]) -> None:
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
            if key in addresses:
                reader.say(('nodes', spec.name, 'address'), f'{address} is already used by {addresses[key]!r}')
            addresses.setdefault(key, spec.name)


def _order(reader: _Reader, specs: list[NodeSpec]) -> list[NodeSpec]:
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


__all__ = ['NodeSpec', 'Problem', 'Site', 'SiteError', 'SiteParams', 'find', 'known_types', 'load', 'resolve_type']
