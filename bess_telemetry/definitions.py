"""Message definitions of installed ROS packages, as recordings carry them.

A recording explains itself: next to the bytes it holds the text of each message type followed by the
texts of all types it uses, in the format "ros2msg" of MCAP and rosbag2 (parts separated by a line of
80 ``=`` and ``MSG: package/Name``).
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

SEPARATOR = '=' * 80
PRIMITIVES = frozenset((
    'bool', 'byte', 'char', 'float32', 'float64', 'int8', 'uint8', 'int16', 'uint16', 'int32',
    'uint32', 'int64', 'uint64', 'string', 'wstring',
))
_FIELD = re.compile(r'^(?P<type>[A-Za-z][\w/]*)(?:<=\d+)?(?:\[[<=\d]*\])?\s+[A-Za-z_]\w*')


class DefinitionNotFound(LookupError):
    """The type has no installed ``share/<package>/msg/<Name>.msg``."""


def share_directories() -> tuple[Path, ...]:
    """Directories which may hold ``<package>/msg``: the ament prefixes in order, then this Python's."""
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    prefixes.append(sys.prefix)
    return tuple(Path(p) / 'share' for p in dict.fromkeys(prefixes))


def split_type(msgtype: str) -> tuple[str, str]:
    """``'std_msgs/msg/Header'`` or ``'std_msgs/Header'`` -> ``('std_msgs', 'Header')``.

    Raises `DefinitionNotFound` for anything else, e.g. services and actions.
    """
    parts = msgtype.split('/')
    if len(parts) == 3 and parts[1] == 'msg':
        return parts[0], parts[2]
    if len(parts) == 2:
        return parts[0], parts[1]
    raise DefinitionNotFound(f'{msgtype!r} is not a message type')


def dependencies(text: str, package: str) -> tuple[str, ...]:
    """Types used by the fields of a ``.msg`` text as ``package/Name``, in order, without repetition."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        match = _FIELD.match(line.split('#', 1)[0].strip())
        if match is None or match['type'] in PRIMITIVES:
            continue
        name = match['type']
        found['/'.join(split_type(name)) if '/' in name else f'{package}/{name}'] = None
    return tuple(found)


def definition(msgtype: str) -> str:
    """Full text of a type with all types it uses. Raises `DefinitionNotFound`."""
    return _definition('/'.join(split_type(msgtype)), share_directories())


def type_hash(msgtype: str) -> str:
    """``RIHS01_...`` of a type as its package was generated, '' when the package does not tell."""
    package, name = split_type(msgtype)
    for share in share_directories():
        path = share / package / 'msg' / f'{name}.json'
        if path.is_file():
            for entry in json.loads(path.read_text('utf-8')).get('type_hashes', ()):
                if entry['type_name'] == f'{package}/msg/{name}':
                    return str(entry['hash_string'])
    return ''


@lru_cache(maxsize=1024)
def _definition(full_name: str, shares: tuple[Path, ...]) -> str:
    parts = [_text(full_name, shares)]
    done = {full_name}
    waiting = list(dependencies(parts[0], full_name.split('/', maxsplit=1)[0]))
    while waiting:
        name = waiting.pop(0)
        if name in done:
            continue
        done.add(name)
        text = _text(name, shares)
        parts.append(f'{SEPARATOR}\nMSG: {name}\n{text}')
        waiting.extend(dependencies(text, name.split('/')[0]))
    return '\n'.join(parts)


@lru_cache(maxsize=1024)
def _text(full_name: str, shares: tuple[Path, ...]) -> str:
    package, name = full_name.split('/')
    for share in shares:
        path = share / package / 'msg' / f'{name}.msg'
        if path.is_file():
            return path.read_text('utf-8')
    raise DefinitionNotFound(f'no {package}/msg/{name}.msg below ' + ', '.join(map(str, shares)))
