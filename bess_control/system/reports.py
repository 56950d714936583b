"""Files of the test controller: reports of tests, and the note of one that runs. Pure apart from the files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bess_core.files import replace_file


def last_id(folder: Path) -> int:
    """Highest number of a stored report, 0 = none."""
    return max((int(f.stem) for f in folder.glob('*.json') if f.stem.isdecimal()), default=0)


def store(folder: Path, number: int, report: dict[str, Any], keep: int) -> None:
    """Write a report; the oldest beyond `keep` go. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f'{number:06d}.json', json.dumps(report))
    for old in sorted(f for f in folder.glob('*.json') if f.stem.isdecimal())[:-keep]:
        old.unlink()


@dataclass(frozen=True)
class Note:
    """A test that runs: what whoever comes after a killed process has to know."""

    id: int
    by: str
    mode: str  # main mode before the test, '' = none
    chosen: str | None = None  # mode that the test has chosen, None = it changed nothing

    def write(self, file: Path) -> None:
        """Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(asdict(self)))


def read_note(file: Path) -> Note | None:
    """The note of a test that did not end in order; None = there is none. Raises OSError or ValueError."""
    try:
        n = json.loads(file.read_text(encoding='utf-8'))
        return Note(int(n['id']), str(n['by']), str(n['mode']), None if n['chosen'] is None else str(n['chosen']))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f'{file}: {error!r}') from error
