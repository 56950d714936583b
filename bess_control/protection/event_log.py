"""Event log: SQLite in a thread of its own, queryable by time, source, kind, severity and text. No ROS.

Events are written in batches; a query runs in the same thread after everything that was put before it,
so that it sees it. When the disk refuses, events are kept in memory up to a bound and written later.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_LIMIT, DEFAULT_LIMIT = 10_000, 100
KEPT = 10_000  # events that wait for a disk
CLEAN_EVERY = 200  # stored events between two looks at the size
_SCHEMA = '''
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, severity INTEGER NOT NULL,
  kind TEXT NOT NULL, source TEXT NOT NULL, name TEXT NOT NULL, change TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_time ON events (time);
'''
# A site state is told again to every process that starts, but was entered once.
_INSERT = '''
INSERT INTO events (time, severity, kind, source, name, change, text)
  SELECT :time, :severity, :kind, :source, :name, :change, :text
  WHERE :kind <> 'state' OR NOT EXISTS (
    SELECT 1 FROM events WHERE time = :time AND kind = :kind AND source = :source AND name = :name)
'''


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Fields as in `msg/Event.msg`; `time` in s, wall clock."""

    time: float
    severity: int
    kind: str
    source: str
    name: str
    change: str
    text: str
    id: int = 0


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; `end` is exclusive. Globs with * and ? in `source`."""

    start: float = 0.0
    end: float = 0.0  # 0 = no end
    source: str = ''
    kind: str = ''
    min_severity: int = 0
    text: str = ''
    limit: int = 0

    def sql(self) -> tuple[str, list[Any]]:
        """Statement and values; the newest `limit` events, oldest first."""
        where = ['time >= ?', 'severity >= ?']
        values: list[Any] = [self.start, self.min_severity]
        if self.end > 0.0:
            where.append('time < ?')
            values.append(self.end)
        if self.source:
            where.append('source GLOB ?')
            values.append(self.source.replace('[', '[[]'))  # brackets are no part of our globs
        if self.kind:
            where.append('kind = ?')
            values.append(self.kind)
        if self.text:
            where.append('instr(lower(text), lower(?)) > 0')
            values.append(self.text)
        values.append(min(self.limit or DEFAULT_LIMIT, MAX_LIMIT))
        return (f'SELECT * FROM (SELECT time, severity, kind, source, name, change, text, id FROM events '
                f'WHERE {" AND ".join(where)} ORDER BY id DESC LIMIT ?) ORDER BY id'), values


Answer = Callable[[list[LogEvent], str], None]  # events, error


class EventLog:
    """`keep`: how many events at most. `post`: runs a function in the caller's thread. `on_state(error)`: '' = well."""

    def __init__(self, file: Path, keep: int, post: Callable[[Callable[[], None]], object],
                 on_state: Callable[[str], None]) -> None:
        self._file, self._keep, self._post, self._on_state = file, keep, post, on_state
        self._queue: queue.SimpleQueue[LogEvent | tuple[Query, Answer] | None] = queue.SimpleQueue()
        self._waiting: deque[LogEvent] = deque(maxlen=KEPT)
        self._stored = 0
        self._error = ''
        self._thread = threading.Thread(target=self._run, name='event_log', daemon=True)
        self._thread.start()

    def put(self, event: LogEvent) -> None:
        """Store; never waits."""
        self._queue.put(event)

    def query(self, query: Query, answer: Answer) -> None:
        """Search; `answer` is called through `post`."""
        self._queue.put((query, answer))

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is there, then end."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        base: sqlite3.Connection | None = None
        last = False
        while not last:
            items = [self._queue.get()]
            while len(items) < 1000 and not self._queue.empty():
                items.append(self._queue.get())
            last = None in items
            self._waiting.extend(i for i in items if isinstance(i, LogEvent))
            error = ''
            try:
                base = base or self._open()
                self._write(base)
            except (sqlite3.Error, OSError) as problem:
                error = f'{self._file}: {problem}'
                if base is not None:
                    base.close()
                base = None
            if error != self._error:
                self._error = error
                self._post(lambda e=error: self._on_state(e))  # type: ignore[misc]
            for item in items:
                if isinstance(item, tuple):
                    self._search(base, error, *item)
        if base is not None:
            base.close()

    def _open(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, full, not writable: no reason to set the file aside
            # Not a data base (torn by a power cut): the old file is kept for people, a new one is begun.
            self._file.replace(self._file.with_suffix('.damaged'))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._file, timeout=2.0)
        try:
            base.execute('PRAGMA journal_mode=WAL')
            base.execute('PRAGMA synchronous=NORMAL')
            base.executescript(_SCHEMA)
        except sqlite3.Error:
            base.close()
            raise
        return base

    def _write(self, base: sqlite3.Connection) -> None:
        if not self._waiting:
            return
        batch = list(self._waiting)
        with base:
            base.executemany(_INSERT, [asdict(e) for e in batch])
        self._waiting.clear()
        self._stored += len(batch)
        if self._stored >= CLEAN_EVERY:
            self._stored = 0
            with base:
                base.execute('DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?', (self._keep,))

    def _search(self, base: sqlite3.Connection | None, error: str, query: Query, answer: Answer) -> None:
        found: list[LogEvent] = []
        if base is not None:
            try:
                found = [LogEvent(*row) for row in base.execute(*query.sql())]
            except sqlite3.Error as problem:
                error = str(problem)
        self._post(lambda: answer(found, error))
