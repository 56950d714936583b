"""Which sites this user has running on this machine, before the middleware has discovered them.

`bess up` holds a locked note per site in a folder of its user; discovery takes some seconds, the note none.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A site that runs. `since`: epoch s; `domain`: its ROS_DOMAIN_ID; `processes`: its process groups."""

    namespace: str
    domain: str
    state: str
    pid: int
    since: float
    processes: list[str] = field(default_factory=list)


def domain() -> str:
    """ROS domain of this process."""
    return os.environ.get('ROS_DOMAIN_ID') or '0'


def folder() -> Path:
    """Folder of the notes of this user."""
    return Path(os.environ.get('XDG_RUNTIME_DIR') or tempfile.gettempdir()) / f'bess-sites-{os.getuid()}'


def announce(namespace: str, state: Path, processes: Iterable[str] = ()) -> int:
    """Note that a site runs for as long as the returned file descriptor is open. Raises OSError."""
    place = _own_folder()
    note = Running(namespace, domain(), str(state.absolute()), os.getpid(), time.time(), list(processes))
    path = place / f'{os.getpid()}.json'
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # whoever looks at a note holds it for a moment
            if os.fstat(handle).st_nlink:
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(asdict(note)).encode())
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # somebody took it for an old one and removed it before it was locked


def running() -> list[Running]:
    """All of this user, oldest first. What cannot be read is no site."""
    found = []
    try:
        files = list(_own_folder().glob('*.json'))
    except OSError:
        return []
    for file in files:
        try:
            with file.open(encoding='utf-8') as note:
                if _free(note.fileno()):
                    file.unlink(missing_ok=True)  # its process has ended
                else:
                    found.append(Running(**json.load(note)))
        except (OSError, ValueError, TypeError):  # ends or begins just now
            continue
    return sorted(found, key=lambda r: r.since)


def earlier(namespace: str) -> Running | None:
    """The site of this name in this ROS domain that was there before this process; None = there is none."""
    same = [r for r in running() if (r.namespace, r.domain) == (namespace, domain())]
    return same[0] if same and same[0].pid != os.getpid() else None


def _own_folder() -> Path:
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = place.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f'{place} belongs to somebody else')
    return place


def _free(handle: int) -> bool:
    """Whether nobody holds the lock of a note; it is not kept."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    return True
