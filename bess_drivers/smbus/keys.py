"""Keys of a gauge, from a file that nobody but its owner may read. They never appear in a text or a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bess_drivers.device import Refused
from bess_drivers.owner_file import read_owned

NAMES = ('unseal', 'full_access')


@dataclass(frozen=True)
class Keys:
    """Two words per level; empty = not given."""

    unseal: tuple[int, ...] = field(default=(), repr=False)
    full_access: tuple[int, ...] = field(default=(), repr=False)


def read_keys(path: str) -> Keys:
    """Read lines like `unseal: 0x0000 0x0000`; `#` starts a comment.

    Raises `Refused` as `read_owned`, or for wrong content (which is not repeated in the text).
    """
    data = read_owned(path, 'key_file')
    return _parse(Path(path).name, data.decode('ascii', errors='replace'))


def _parse(name: str, text: str) -> Keys:
    found: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, colon, words = line.partition('#')[0].strip().partition(':')
        if not key and not colon:
            continue
        try:
            values = tuple(int(w, 16) for w in words.split())
        except ValueError:
            values = ()
        if key.strip() not in NAMES or len(values) != 2 or not all(0 <= v <= 0xFFFF for v in values):
            raise Refused(f'key file {name}, line {number}: expected "unseal:" or "full_access:" and two hex words')
        found[key.strip()] = values
    return Keys(**found)
