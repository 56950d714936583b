"""Keys of a gauge, from a file that nobody but its owner may read. They never appear in a text or a log."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from bess_drivers.device import Refused

LONGEST = 4096  # bytes of a key file
NAMES = ('unseal', 'full_access')


@dataclass(frozen=True)
class Keys:
    """Two words per level; empty = not given."""

    unseal: tuple[int, ...] = field(default=(), repr=False)
    full_access: tuple[int, ...] = field(default=(), repr=False)


def read_keys(path: str) -> Keys:
    """Read lines like `unseal: 0x0000 0x0000`; `#` starts a comment.

    Raises `Refused` for a missing file, a link, a foreign owner, any permission of group or others, or
    wrong content (which is not repeated in the text).
    """
    if not path:
        raise Refused('no key_file is set')
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f'key file {path}: {error.strerror}') from error
    try:
        about = os.fstat(fd)  # of what is open, so that nobody exchanges it in between
        if not stat.S_ISREG(about.st_mode):
            raise Refused(f'key file {path} is no regular file')
        if about.st_uid != os.geteuid():
            raise Refused(f'key file {path} belongs to another user')
        if about.st_mode & 0o077:
            raise Refused(f'key file {path} may be read by others (mode {about.st_mode & 0o777:03o}); chmod 600 it')
        data = os.read(fd, LONGEST + 1)
    finally:
        os.close(fd)
    if len(data) > LONGEST:
        raise Refused(f'key file {path} is longer than {LONGEST} bytes')
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
