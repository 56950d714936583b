"""Small state files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Write a file beside, sync it and rename it: after a power cut it is the old one or the new one, whole.

    `mode`: permissions before the umask. Raises OSError, also for a folder that is missing; the old file is then as
    before.
    """
    temporary = path.with_name(path.name + '.tmp')
    temporary.unlink(missing_ok=True)  # of a write that was cut; it may have other permissions
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), 'wb') as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
