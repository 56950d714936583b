"""Changes of site parameters after the site file was written: durable, numbered, undoable. Pure but for the file.

One line of JSON per change in the state folder, only ever appended (fsync before a change is accepted).
A site is its file plus these changes; both are checked together when it starts. A value of "" takes a
change back to what the file says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = 'site_parameters.jsonl'


class ChangesError(ValueError):
    """A file of changes that cannot be read."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one or more parameters together. `time`: s, wall clock."""

    revision: int
    time: float
    by: str
    comment: str
    values: dict[str, str]  # name -> JSON, "" = as in the site file


class Changes:
    """All changes of a site, oldest first."""

    def __init__(self, history: Sequence[Change] = ()) -> None:
        self.history = list(history)

    @property
    def revision(self) -> int:
        """Number of the last change; 0 = none."""
        return self.history[-1].revision if self.history else 0

    def at(self, revision: int | None = None) -> dict[str, Change]:
        """Name -> the change that is in force after `revision` (None = now); without those taken back."""
        out: dict[str, Change] = {}
        for change in self.history:
            if revision is not None and change.revision > revision:
                break
            for name, value in change.values.items():
                if value:
                    out[name] = change
                else:
                    out.pop(name, None)
        return out

    def values(self, revision: int | None = None) -> dict[str, str]:
        """Name -> JSON in force after `revision`."""
        return {name: change.values[name] for name, change in self.at(revision).items()}

    def back_to(self, revision: int) -> dict[str, str]:
        """What must be set so that all is as it was after `revision`. Raises ValueError for one that never was."""
        if revision not in {0, *(c.revision for c in self.history)}:
            raise ValueError(f'there is no revision {revision}; the last one is {self.revision}')
        now, then = self.values(), self.values(revision)
        return {n: then.get(n, '') for n in {**now, **then} if now.get(n, '') != then.get(n, '')}

    def next(self, values: Mapping[str, str], by: str, comment: str, time: float) -> Change:
        """The change that would follow."""
        return Change(self.revision + 1, time, by, comment, dict(values))


def load(folder: Path) -> Changes:
    """Changes of a state folder. Raises `ChangesError` naming the line; a torn last line was never accepted."""
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return Changes()
    except OSError as error:
        raise ChangesError(f'{folder / FILE}: cannot be read: {error}') from error
    changes: list[Change] = []
    for number, line in enumerate(data.split(b'\n')[:-1], 1):
        try:
            changes.append(_change(json.loads(line), changes[-1].revision if changes else 0))
        except (ValueError, KeyError, TypeError) as error:
            raise ChangesError(f'{folder / FILE}:{number}: {error}; repair the line, or remove the file to run the site '  # noqa: E501
                               'file as it is') from error
    return Changes(changes)


def _change(raw: Any, last: int) -> Change:
    values = raw['values']
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise ValueError('"values" must map names to text')
    for value in values.values():
        if value:
            json.loads(value)
    change = Change(int(raw['revision']), float(raw['time']), str(raw['by']), str(raw['comment']), values)
    if change.revision <= last:
        raise ValueError(f'revision {change.revision} follows {last}')
    return change


def append(folder: Path, change: Change) -> None:
    """Store durably. Raises OSError; then nothing was changed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    line = json.dumps(asdict(change)).encode() + b'\n'
    with file.open('a+b') as out:
        size = out.seek(0, os.SEEK_END)
        # What a torn write left behind must not become part of this line.
        out.seek(0)
        keep = out.read().rfind(b'\n') + 1 if size else 0
        out.truncate(keep)
        try:
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
        except OSError:
            out.truncate(keep)
            raise


def overrides(folder: Path) -> list[str]:
    """The changes in force as ``name=value`` settings, as `bess_core.site.load` takes them. Raises `ChangesError`."""
    return [f'{name}={value}' for name, value in load(folder).values().items()]
