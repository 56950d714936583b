"""The stored state of the site's emergency stop, which everything that can move power reads when it starts. Pure.

One file in the state folder, written before the stop counts as taken. A file that cannot be read may
have been a stop: it counts as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from .files import replace_file

FILE, TOKEN = 'emergency_stop.json', 'emergency_stop.token'


@dataclass(frozen=True, slots=True)
class Stop:
    """State of the emergency stop. `changed` in s, wall clock."""

    active: bool = False
    cause: str = ''
    source: str = ''
    changed: float = 0.0


def restored(data: Any, wall: float) -> Stop:
    """What `to_dict` gave. A record that cannot be read may have been a stop: it counts as one."""
    try:
        if not isinstance(data, Mapping):
            raise TypeError('not a mapping')
        active, cause, source, changed = (data[k] for k in ('active', 'cause', 'source', 'changed'))
        if not isinstance(active, bool) or not isinstance(cause, str) or not isinstance(source, str):
            raise TypeError('wrong types')
        if isinstance(changed, bool) or not isfinite(changed):
            raise TypeError('changed is no time')
        return Stop(active, cause, source, float(changed))
    except (KeyError, TypeError) as error:
        return replace(Stop(), active=True, cause=f'the stored state cannot be read: {error}', source='stored',
                       changed=wall)


def load(folder: Path, wall: float) -> Stop:
    """The stored state; not active where none was ever stored. `wall`: s, for a file that cannot be read."""
    file = folder / FILE
    try:
        text = file.read_text(encoding='utf-8')
    except FileNotFoundError:
        return Stop()
    except (OSError, UnicodeDecodeError) as error:
        return restored(f'{error}', wall)
    try:
        return restored(json.loads(text), wall)
    except ValueError:
        return restored(None, wall)


def save(folder: Path, values: Mapping[str, Any]) -> None:
    """Store durably. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FILE, json.dumps(dict(values)))
