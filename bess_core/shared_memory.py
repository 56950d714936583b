"""Shared memory that killed processes of the middleware (Fast DDS) left behind.

Each segment and port in /dev/shm has a lock file that its process holds while it lives. A process that is killed
leaves both: half a megabyte each, and ports with a state of which messages of later processes can get lost.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path('/dev/shm')
PREFIX, LOCK, MUTEX = 'fastrtps_', '_el', 'sem.{}_mutex'
SETTLED_S = 2.0  # a file this young may belong to a process that has not locked it yet


def remove_stale(folder: Path = FOLDER) -> int:
    """Remove what no living process owns or still sends to; the number of segments and ports removed.

    Never raises: what cannot be looked at or removed stays, and so does what other users own.
    """
    removed = 0
    try:
        found = [e.name for e in os.scandir(folder) if e.name.startswith(PREFIX) and e.name.endswith(LOCK)]
    except OSError:
        return 0
    used = _mapped() if found else set()
    for name in found:
        if name.removesuffix(LOCK) in used:
            continue  # whoever sends there would go on with the removed one
        with suppress(OSError):
            removed += _remove(folder, name)
    return removed


def _mapped() -> set[str]:
    """Names that some process has mapped."""
    names: set[str] = set()
    for pid in os.listdir('/proc'):
        if pid.isdecimal():
            with suppress(OSError):  # ended meanwhile, or another user's
                maps = Path('/proc', pid, 'maps').read_text(errors='replace')
                names.update(line.rsplit('/', 1)[-1] for line in maps.splitlines() if f'/{PREFIX}' in line)
    return names


def _remove(folder: Path, lock: str) -> bool:
    path = folder / lock
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < SETTLED_S:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        name = lock.removesuffix(LOCK)
        for other in (folder / name, folder / MUTEX.format(name)):
            other.unlink(missing_ok=True)
        path.unlink()  # the lock goes last: until then nobody takes it
        return True
    finally:
        os.close(file)
