"""Secrets from a file that nobody but its owner may read. What is in it never appears in a text or a log."""

from __future__ import annotations

import os
import stat

from bess_drivers.device import Refused

LONGEST = 4096  # bytes


def read_owned(path: str, what: str, links: bool = False) -> bytes:
    """Content of a small file (`what` names it in the error; `links`: symbolic ones are followed).

    Raises `Refused` for a missing or empty name, a link, a foreign owner, any permission of group or others, or more
    than `LONGEST` bytes.
    """
    if not path:
        raise Refused(f'no {what} is set')
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
        fd = os.open(os.path.expanduser(path), flags)
    except OSError as error:
        raise Refused(f'{what} {path}: {error.strerror}') from error
    try:
        about = os.fstat(fd)  # of what is open, so that nobody exchanges it in between
        if not stat.S_ISREG(about.st_mode):
            raise Refused(f'{what} {path} is no regular file')
        if about.st_uid != os.geteuid():
            raise Refused(f'{what} {path} belongs to another user')
        if about.st_mode & 0o077:
            raise Refused(f'{what} {path} may be read by others (mode {about.st_mode & 0o777:03o}); chmod 600 it')
        data = os.read(fd, LONGEST + 1)
    finally:
        os.close(fd)
    if len(data) > LONGEST:
        raise Refused(f'{what} {path} is longer than {LONGEST} bytes')
    return data
