"""Files of a partition: its state (ledgers), and the closed periods of its energy statements.

State: `ledgers/<name>.jsonl`, one whole state per line with its checksum; the last whole line counts, so
that a file cut or damaged anywhere falls back to the state before. Statements: `statements/<name>/YYYY-MM.jsonl`
(month of the start, UTC), one record per line with its checksum, only ever appended to. Every write
is on disk when the method returns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bess_core.files import replace_file
from bess_virtual.journal import decode, encode
from bess_virtual.statements import Record

LINES = 200
"""A state file with more lines is written anew with the last one only."""
_MONTH = re.compile(r'\d{4}-\d{2}')


class StateFile:
    """Whole states, the newest last. `state` is the last whole one at opening, or None; `problems` in words.

    Raises OSError when the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] | None = None
        self.problems: list[str] = []
        self._lines = 0
        data = path.read_bytes() if path.exists() else b''
        *lines, torn = data.split(b'\n')
        damaged = 0
        for line in lines:
            try:
                self.state, damaged = decode(line), 0
            except ValueError:
                damaged += 1
        if torn:
            damaged += 1
        if damaged:
            self.problems.append(
                f'{path.name}: {damaged} incomplete or damaged at the end; ' +
                ('the last whole one before counts' if self.state is not None else 'no whole one is left'))
        self._lines = LINES if damaged or len(lines) > LINES else len(lines)  # damage goes with the next write

    def write(self, state: dict[str, Any]) -> None:
        """Make a state durable. OSError leaves the file with the state before."""
        line = encode(state)
        if self._lines < LINES:
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                _append(self.path, line)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, size)
                raise
            self._lines += 1
            return
        replace_file(self.path, line, 0o640)
        self._lines = 1


class RecordFiles:
    """Closed periods in one file per month. Opening cuts off a torn tail of the newest file.

    `last` is the newest record or None; `problems` in words. Raises OSError when a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.problems: list[str] = []
        self.last: Record | None = None
        files = self._files()
        for path in files:
            data = path.read_bytes()
            whole = data.rfind(b'\n') + 1
            if whole < len(data):
                self.problems.append(f'{path.name}: the last record is incomplete and dropped')
                os.truncate(path, whole)
        for path in reversed(files[-2:]):
            records = read_file(path)[0]
            if records:
                newest = max(records, key=lambda r: r.sequence)
                if self.last is None or newest.sequence > self.last.sequence:
                    self.last = newest

    def append(self, record: Record) -> None:
        """Make a record durable. OSError leaves the file as it was."""
        month = datetime.fromtimestamp(record.start, UTC).strftime('%Y-%m')
        path = self.folder / f'{month}.jsonl'
        new = not path.exists()
        size = 0 if new else path.stat().st_size
        try:
            _append(path, encode(record.to_dict()))
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise
        if new:
            _sync_folder(self.folder)
        if self.last is None or record.sequence > self.last.sequence:
            self.last = record

    def read(self, start: float, end: float) -> tuple[list[Record], list[str]]:
        """Records that start in [start, end) (s since the epoch) in order of sequence, and what is damaged."""
        first, last = (datetime.fromtimestamp(min(max(t, 0.0), 2**33), UTC).strftime('%Y-%m') for t in (start, end))
        records: dict[int, Record] = {}
        problems: list[str] = []
        for path in self._files():
            if first <= path.stem <= last:
                found, bad = read_file(path)
                records.update((r.sequence, r) for r in found if start <= r.start < end)
                problems += bad
        ordered = [records[k] for k in sorted(records)]
        problems += missing(ordered)
        return ordered, problems

    def _files(self) -> list[Path]:
        return sorted(p for p in self.folder.glob('*.jsonl') if _MONTH.fullmatch(p.stem))


def read_file(path: Path) -> tuple[list[Record], list[str]]:
    """Records of one file, and its damaged lines in words."""
    records, problems = [], []
    for number, line in enumerate(path.read_bytes().split(b'\n'), start=1):
        if not line:
            continue
        try:
            records.append(Record.from_dict(decode(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f'{path.name} line {number} is damaged and left out: {error}')
    return records, problems


def missing(records: Iterable[Record]) -> list[str]:
    """Which records of an ordered series are not there, in words."""
    problems, before = [], 0
    for record in records:
        if before and record.sequence != before + 1:
            problems.append(f'records {before + 1} to {record.sequence - 1} are missing')
        before = record.sequence
    return problems


def _append(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view):]
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
