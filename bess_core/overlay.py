"""What was changed at run time, on top of the site file: kept in the state folder, applied at every start.

The file `topology.json` holds the changes as they are now (nodes created, parameters changed, nodes
removed), the revision (the number of changes so far) and one line of history per revision. It is written
beside and renamed (fsync of file and folder), under a lock and against the revision that the change was
made for: of two who change the same revision one wins.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .files import replace_file

FILE = 'topology.json'
MAX_BYTES = 1_000_000
MAX_HISTORY = 1000  # older lines are dropped; the revision goes on counting
VERSION = 1


class OverlayError(Exception):
    """The stored changes cannot be read, or not be written."""


class ConflictError(OverlayError):
    """Somebody else made a change meanwhile; `revision` is the present one."""

    def __init__(self, revision: int, expected: int) -> None:
        self.revision = revision
        super().__init__(f'the topology is at revision {revision} by now, not {expected}: look at it again')


@dataclass(frozen=True)
class Change:
    """One revision, for people."""

    revision: int
    wall: float  # s, UTC
    author: str
    text: str


@dataclass(frozen=True)
class Overlay:
    """Changes on top of a site file. Values are those of a site file (plain YAML values)."""

    revision: int = 0
    created: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> whole entry
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> key -> value, None = default
    removed: tuple[str, ...] = ()  # entries of the site file that are not there any more
    history: tuple[Change, ...] = ()

    def apply(self, nodes: Any) -> Any:
        """The `nodes` section with the changes. What a change refers to may be gone from the file: a changed
        entry that is not there any more is left out, a created one replaces one of the same name."""
        if not isinstance(nodes, dict) or not self.revision:
            return nodes
        merged = {name: entry for name, entry in nodes.items() if name not in self.removed}
        for name, values in self.changed.items():
            if isinstance(merged.get(name), dict):
                merged[name] = updated(merged[name], values)
        merged.update({name: dict(entry) for name, entry in self.created.items()})
        return merged

    def with_change(self, text: str, author: str, wall: float, **parts: Any) -> Overlay:
        """The next revision, with these `created`, `changed` or `removed`."""
        number = self.revision + 1
        history = (*self.history, Change(number, wall, author, text))[-MAX_HISTORY:]
        return replace(self, revision=number, history=history, **parts)

    def origin(self, name: str) -> str:
        """`site`, `changed` or `created`."""
        return 'created' if name in self.created else 'changed' if name in self.changed else 'site'

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        return {
            'version': VERSION, 'revision': self.revision,
            'created': {n: dict(e) for n, e in self.created.items()},
            'changed': {n: dict(e) for n, e in self.changed.items()}, 'removed': list(self.removed),
            'history': [{'revision': c.revision, 'wall': c.wall, 'author': c.author, 'text': c.text}
                        for c in self.history]}

    @classmethod
    def from_dict(cls, values: Any) -> Overlay:
        """Raises `OverlayError` for anything that this module has not written."""
        try:
            if values['version'] != VERSION:
                raise OverlayError(f'version {values["version"]} is not known here; known: {VERSION}')
            overlay = cls(
                int(values['revision']), _entries(values['created']), _entries(values['changed']),
                tuple(map(str, values['removed'])),
                tuple(Change(int(c['revision']), float(c['wall']), str(c['author']), str(c['text']))
                      for c in values['history']))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OverlayError(f'not a topology: {error!r}') from error
        if overlay.revision < 1:
            raise OverlayError(f'revision is {overlay.revision}, must be at least 1')
        return overlay


def updated(entry: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with these values; None takes the key away."""
    merged = {**entry, **values}
    return {key: value for key, value in merged.items() if value is not None}


def _entries(values: Any) -> dict[str, dict[str, Any]]:
    return {str(name): {str(key): value for key, value in entry.items()} for name, entry in values.items()}


def read(state_dir: Path) -> Overlay:
    """The stored changes; revision 0 when there are none. Raises `OverlayError`."""
    path = state_dir / FILE
    try:
        with path.open('rb') as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Overlay()
    except OSError as error:
        raise OverlayError(f'{path}: cannot be read: {error.strerror or error}') from error
    if len(data) > MAX_BYTES:
        raise OverlayError(f'{path}: larger than {MAX_BYTES // 1000} kB')
    try:
        return Overlay.from_dict(json.loads(data))
    except (ValueError, RecursionError, OverlayError) as error:
        raise OverlayError(f'{path}: {error}') from error


def write(state_dir: Path, overlay: Overlay, *, expected: int) -> None:
    """Store, durably, if the stored revision is still `expected`. Raises `ConflictError`, `OverlayError`."""
    path = state_dir / FILE
    try:
        data = json.dumps(overlay.to_dict(), indent=1, allow_nan=True).encode()
        if len(data) > MAX_BYTES:
            raise OverlayError(f'the changes would need more than {MAX_BYTES // 1000} kB')
        state_dir.mkdir(parents=True, exist_ok=True)
        with _locked(state_dir):
            found = read(state_dir).revision
            if found != expected:
                raise ConflictError(found, expected)
            replace_file(path, data)
    except OSError as error:
        raise OverlayError(f'{path}: cannot be written: {error.strerror or error}') from error
    except (TypeError, ValueError) as error:  # a YAML date, say
        raise OverlayError(f'a value cannot be stored: {error}') from error


def reset(state_dir: Path, revision: int) -> Path:
    """Put the stored changes aside, so that the site file holds alone; the new name. Raises `OverlayError`."""
    path = state_dir / FILE
    aside = state_dir / f'topology-{revision}.json'
    try:
        with _locked(state_dir):
            path.replace(aside)
    except OSError as error:
        raise OverlayError(f'{path}: {error.strerror or error}') from error
    return aside


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    handle = os.open(state_dir / 'topology.lock', os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


__all__ = ['FILE', 'Change', 'ConflictError', 'Overlay', 'OverlayError', 'read', 'reset', 'updated', 'write']
