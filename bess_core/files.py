"""Small state files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: str | bytes) -> None:
    """Write a file beside, sync it and rename it: after a power cut it is the old one or the new one, whole.

    Raises OSError, also for a folder that is missing; the old file is then as before.
    """
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('wb') as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
