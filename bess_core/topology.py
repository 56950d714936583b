"""Changes of the batteries of a site: create, destroy, re-parent, configure. Pure.

Each change makes the next overlay and has the whole site checked with it, by the checks of the site file
itself: what could not stand in a site file cannot be reached at run time either. `plan` tells what has to
be stopped, removed and made for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

from . import params, plugins
from .overlay import Overlay, updated
from .site import NAME, NAME_RULE, NodeSpec, Site, SiteError, resolve_type

ROLES = ('battery', 'partition')  # what may be created and destroyed; drivers of devices are the site file's
MAX_NODES = 1000
MAX_MEMBERS = 1000
MAX_AUTHOR = 100


class RefusedError(Exception):
    """The change is not possible; the text says why."""


@dataclass(frozen=True)
class Plan:
    """What a change does to the nodes of a site. All in bring-up order of `after` (removed: of `before`)."""

    before: Site
    after: Site
    removed: tuple[NodeSpec, ...]  # end for good
    replaced: tuple[NodeSpec, ...]  # made anew with other parameters: as they were
    made: tuple[NodeSpec, ...]  # new, and `replaced` as they will be
    moved: tuple[str, ...]  # stay as they are but get another owner: stopped meanwhile

    @property
    def stopped(self) -> tuple[str, ...]:
        """Nodes that must be at rest for the change, in bring-up order of `before`."""
        names = {*(s.name for s in (*self.removed, *self.replaced)), *self.moved}
        return tuple(s.name for s in self.before.nodes if s.name in names)

    @property
    def disturbed(self) -> tuple[str, ...]:
        """Nodes whose running schedule the change would break: the stopped ones and what is made of them."""
        above = {owner for name in self.stopped for owner in ancestors(self.before, name)}
        return tuple(s.name for s in self.before.nodes if s.name in above or s.name in self.stopped)


# -- what there is -------------------------------------------------------------------------------


def owned(spec: NodeSpec) -> tuple[str, ...]:
    """Nodes that this one owns, in the order of its parameters."""
    return tuple(name for parameter in _owning(spec.params.__class__) for name in _listed(getattr(spec.params,
                                                                                              parameter.name)))


def owners(site: Site) -> dict[str, str]:
    """Owner of each node that has one. A child of a partition belongs to the partition only by origin."""
    return {name: spec.name for spec in site.nodes for name in owned(spec)}


def siblings(site: Site, spec: NodeSpec) -> tuple[NodeSpec, ...]:
    """All nodes that the same entry of the site file makes."""
    return tuple(s for s in site.nodes if s.entry == spec.entry)


def head(site: Site, name: str) -> NodeSpec:
    """The node that an entry is named after. Raises `RefusedError`."""
    try:
        spec = site.node(name)
    except KeyError:
        known = ', '.join(s.name for s in site.nodes if s.role in ROLES) or 'none'
        raise RefusedError(f'no battery {_shown(name)}; there is: {known}') from None
    if spec.entry != name:
        raise RefusedError(f'{name} is a child of {spec.entry}: change the children of that one')
    if spec.role not in ROLES:
        raise RefusedError(f'{name} is a {spec.role or spec.type}, not a battery: it is changed in the site file')
    return spec


def children(site: Site, spec: NodeSpec) -> tuple[str, ...]:
    """Batteries that a node is divided into."""
    return tuple(s.name for s in siblings(site, spec) if s.name != spec.name) if spec.name == spec.entry else ()


def ancestors(site: Site, name: str) -> list[str]:
    """What is made of a node, directly or not, and the children of what divides it."""
    above = {s.name: list(children(site, s)) for s in site.nodes if s.role == 'partition'}
    for member, owner in owners(site).items():
        above.setdefault(member, []).append(owner)
    found: dict[str, None] = {}
    todo = [name]
    while todo:
        new = [a for a in above.get(todo.pop(), ()) if a not in found and a != name]
        found.update(dict.fromkeys(new))
        todo += new
    return list(found)


def dependants(site: Site, names: Iterable[str]) -> list[NodeSpec]:
    """Nodes outside `names` that refer to one of them."""
    gone = set(names)
    return [s for s in site.nodes if s.name not in gone and gone & set(s.refs)]


def describe(site: Site, spec: NodeSpec, owner: Mapping[str, str]) -> dict[str, Any]:
    """One node for people and messages; `parameters` as in the site file, without the type. `owner`: `owners`."""
    entry = site.entries.get(spec.entry, {})
    return {
        'name': spec.name, 'type': spec.type, 'role': spec.role, 'owner': owner.get(spec.name, ''),
        'members': list(owned(spec)), 'children': list(children(site, spec)), 'process': spec.process,
        'origin': site.overlay.origin(spec.entry),
        'parameters': {k: v for k, v in entry.items() if k != 'type'} if spec.name == spec.entry else {}}


def fragment(site: Site) -> str:
    """The changes as a site-file fragment; '' = none. A removed entry is named in a comment."""
    o = site.overlay
    nodes = {n: dict(site.entries[n]) for n in (*o.changed, *o.created) if n in site.entries}
    text = yaml.safe_dump({'nodes': nodes}, sort_keys=False, allow_unicode=True) if nodes else ''
    return text + ''.join(f'# removed: {name}\n' for name in o.removed)


# -- changes -------------------------------------------------------------------------------------


def create(site: Site, name: str, type_name: str, members: Sequence[str], values: Mapping[str, Any]) -> Overlay:
    """A new battery made of `members`; `values` are its parameters as in the site file. Raises `RefusedError`."""
    if not NAME.match(name):
        raise RefusedError(f'{_shown(name)} is not a name; allowed: {NAME_RULE}')
    if any(s.name == name for s in site.nodes):
        raise RefusedError(f'{name} is there already')
    if len(site.nodes) >= MAX_NODES:
        raise RefusedError(f'the site has {len(site.nodes)} nodes; at most {MAX_NODES} are allowed')
    try:
        cls = resolve_type(type_name[:100])
    except plugins.PluginError as error:
        raise RefusedError(str(error)) from error
    if cls.role not in ROLES:
        raise RefusedError(f'{type_name} is not a type of battery (role {cls.role or "none"})')
    entry = {'type': type_name, **_members(cls, members), **values}
    if clash := sorted(set(_members(cls, members)) & set(values)):
        raise RefusedError(f'{", ".join(clash)}: given as members and as parameter')
    # A name that the site file has and that was removed comes back as a created one.
    return _next(site.overlay, created={**site.overlay.created, name: entry})


def destroy(site: Site, name: str, *, cascade: bool = False) -> tuple[Overlay, tuple[str, ...]]:
    """Without this battery (`cascade`: and without what is made of it); the entries that go, the given one last.

    Raises `RefusedError` when something is made of it or refers to it.
    """
    head(site, name)
    entries = [name]
    while True:
        gone = {s.name for s in site.nodes if s.entry in entries}
        left = dependants(site, gone)
        blocked = [s for s in left if not (cascade and s.role in ROLES)]
        if blocked:
            what = ', '.join(f'{s.name} ({s.type})' for s in blocked)
            hint = '' if cascade or any(s.role not in ROLES for s in blocked) else '; destroy it first, or --cascade'
            raise RefusedError(f'{name} is used by {what}{hint}')
        new = [s.entry for s in left if s.entry not in entries]
        if not new:
            break
        entries += list(dict.fromkeys(new))
    o = site.overlay
    from_file = [n for n in entries if n not in o.created or n in o.removed]
    return _next(
        o, created={n: e for n, e in o.created.items() if n not in entries},
        changed={n: e for n, e in o.changed.items() if n not in entries},
        removed=tuple(dict.fromkeys((*o.removed, *from_file)))), tuple(reversed(entries))


def reparent(site: Site, name: str, parent: str) -> Overlay:
    """The battery `name` out of its present owner and into `parent` ('' = none). Raises `RefusedError`."""
    try:
        spec = site.node(name)
    except KeyError:
        head(site, name)  # says what there is
        raise
    if spec.role != 'battery':
        raise RefusedError(f'{name} is a {spec.role or spec.type}, not a battery')
    present = owners(site).get(name, '')
    if present == parent:
        raise RefusedError(f'{name} belongs to {parent} already' if parent else f'{name} belongs to nobody already')
    overlay = site.overlay
    if present:
        owner = head(site, present)
        parameter = next(p.name for p in _owning(owner.params.__class__)
                         if name in _listed(getattr(owner.params, p.name)))
        value = getattr(owner.params, parameter)
        if isinstance(value, str):
            raise RefusedError(f'{present} cannot be without its {parameter}: destroy {present} first')
        overlay = _patch(overlay, present, {parameter: [n for n in value if n != name]})
    if parent:
        into = head(site, parent)
        lists = [p.name for p in _owning(into.params.__class__) if isinstance(getattr(into.params, p.name), list)]
        if not lists:
            raise RefusedError(f'{parent} ({into.type}) does not take further members')
        overlay = _patch(overlay, parent, {lists[0]: [*getattr(into.params, lists[0]), name]})
    return overlay


def configure(site: Site, name: str, values: Mapping[str, Any]) -> Overlay:
    """Other parameters for a battery; None = back to the default. Raises `RefusedError`."""
    head(site, name)
    if not values:
        raise RefusedError('no parameter given')
    if 'type' in values or 'process' in values:
        raise RefusedError('type and process of a battery cannot be changed: destroy it and create another')
    return _patch(site.overlay, name, values)


def checked(site: Site, overlay: Overlay, *, author: str, text: str, wall: float) -> Site:
    """The site with a change, checked as a site file. Raises `RefusedError` with every mistake."""
    assert site.again is not None, 'a site that was not loaded from text cannot change'
    try:
        after = site.again(overlay.with_change(text, _plain(author), wall))
    except SiteError as error:
        source = f'topology.json (revision {overlay.revision + 1}): '
        raise RefusedError('; '.join(m.removeprefix(source) for m in error.messages[:5])) from error
    if len(after.nodes) > MAX_NODES:
        raise RefusedError(f'the site would have {len(after.nodes)} nodes; at most {MAX_NODES} are allowed')
    return after


def plan(before: Site, after: Site, process: str) -> Plan:
    """What `after` changes in the nodes. Raises `RefusedError` when that reaches into another process, or when
    nothing changes (a parameter that is set on the command line wins over a change)."""
    old, new = _by_entry(before), _by_entry(after)
    touched = {e for e in (*old, *new) if _values(old.get(e, ())) != _values(new.get(e, ()))}
    removed = tuple(s for s in before.nodes if s.entry in touched and s.entry not in new)
    replaced = tuple(s for s in before.nodes if s.entry in touched and s.entry in new)
    made = tuple(s for s in after.nodes if s.entry in touched)
    if not touched:
        raise RefusedError('that changes nothing (what is set on the command line goes before)')
    was, will = owners(before), owners(after)
    # What somebody drives now and nobody or another will drive then; what is new has never been driven.
    moved = tuple(s.name for s in before.nodes if s.entry not in touched and was.get(s.name) != will.get(s.name)
                  and s.role == 'battery')
    for spec in (*removed, *replaced, *made, *(before.node(n) for n in moved)):
        if spec.process != process:
            raise RefusedError(f'{spec.name} runs in process {spec.process!r}; only batteries of process {process!r} '
                               'can be changed at run time')
    return Plan(before, after, removed, replaced, made, moved)


# -- inside --------------------------------------------------------------------------------------


def _next(overlay: Overlay, **parts: Any) -> Overlay:
    return replace(overlay, **parts)


def _patch(overlay: Overlay, name: str, values: Mapping[str, Any]) -> Overlay:
    """Other values in one entry: in place when it was created at run time, over the file's otherwise."""
    if name in overlay.created:
        return _next(overlay, created={**overlay.created, name: updated(overlay.created[name], values)})
    return _next(overlay, changed={**overlay.changed, name: {**overlay.changed.get(name, {}), **values}})


def _members(cls: Any, members: Sequence[str]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise RefusedError(f'{len(members)} members; at most {MAX_MEMBERS} are allowed')
    if not members:
        return {}
    parameters = _owning(cls.Params)
    lists = [p for p in parameters if 'list' in str(p.type)]
    if len(parameters) == 1 and lists:
        return {parameters[0].name: list(members)}
    if lists or len(parameters) != len(members):
        names = ', '.join(p.name for p in parameters) or 'none'
        raise RefusedError(f'{len(members)} members, but this type has the parts: {names}')
    return {p.name: member for p, member in zip(parameters, members, strict=True)}


@cache
def _owning(cls: Any) -> tuple[params.Spec, ...]:
    return tuple(p for p in params.specs(cls) if p.metadata.get('ref') and p.metadata.get('owns'))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value) if isinstance(value, (list, tuple)) else []


def _by_entry(site: Site) -> dict[str, tuple[NodeSpec, ...]]:
    out: dict[str, tuple[NodeSpec, ...]] = {}
    for spec in site.nodes:
        out[spec.entry] = (*out.get(spec.entry, ()), spec)
    return out


def _values(specs: Iterable[NodeSpec]) -> list[Any]:
    # By text: NaN equals nothing, not even itself. Lines move when the file is another one.
    return [(s.name, s.type, repr(s.params), s.process) for s in specs]


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f'{name[:80]}...')


def _plain(author: str) -> str:
    return ''.join(c if c.isprintable() else '?' for c in author[:MAX_AUTHOR])


__all__ = [
    'Plan', 'RefusedError', 'ancestors', 'checked', 'configure', 'create', 'dependants', 'describe',
    'destroy', 'fragment', 'head', 'owned', 'owners', 'plan', 'reparent']
