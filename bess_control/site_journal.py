"""Journal of the site's states: one JSON line per transition, with cause. Pure apart from the file.

The file keeps the newest `keep` transitions at least; when it holds twice as many the older half goes. A torn or
damaged line (power cut) is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bess_control.site_state import Transition
from bess_core.files import replace_file

KEEP = 5000


class SiteJournal:
    """Appends to `file`. OSError when the disk does not take it."""

    def __init__(self, file: Path, keep: int = KEEP) -> None:
        self.file, self.keep = file, keep
        self._lines = sum(1 for _ in self.read())

    def write(self, transition: Transition, wall: float) -> None:
        """Append one transition that happened at `wall` (Unix seconds)."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        record = {'time': round(wall, 3), 'previous': transition.previous.name, 'state': transition.state.name,
                  'cause': transition.cause}
        if self._lines >= 2 * self.keep:
            self._shorten()
        with self.file.open('ab+') as out:
            if out.tell() and not self._ends_whole(out):
                out.write(b'\n')  # behind a torn line
            out.write(json.dumps(record).encode() + b'\n')
            out.flush()
            os.fsync(out.fileno())
        self._lines += 1

    def read(self) -> Iterator[dict[str, Any]]:
        """All transitions, oldest first."""
        if not self.file.exists():
            return
        for line in self.file.read_bytes().split(b'\n'):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {'time', 'previous', 'state', 'cause'} <= record.keys():
                yield record

    @staticmethod
    def _ends_whole(out: Any) -> bool:
        out.seek(-1, os.SEEK_END)
        return bool(out.read(1) == b'\n')

    def _shorten(self) -> None:
        kept = list(self.read())[-self.keep:]
        replace_file(self.file, ''.join(json.dumps(r) + '\n' for r in kept))
        self._lines = len(kept)
