"""Journal of a schedule on disk: append-only JSON lines, durable before a request is accepted.

Each line is a JSON object whose last key `crc` is the CRC-32 of the line without it. A torn last line
(power cut while writing) is dropped: its request had not been accepted yet. A damaged line elsewhere
is skipped and reported.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from bess_virtual.schedule import Request

ANSWERS = 10_000  # callers' own ids of past requests that are remembered


@dataclass(slots=True)
class Content:
    """What a journal holds."""

    requests: dict[int, Request] = field(default_factory=dict)
    next_id: int = 1  # never given out before
    lines: int = 0
    size: int = 0  # bytes up to the end of the last whole line
    problems: list[str] = field(default_factory=list)  # in words; empty = undamaged
    answered: dict[str, Request] = field(default_factory=dict)  # by the caller's own id, oldest first; also ended ones


_ENCODER = json.JSONEncoder(separators=(',', ':'), allow_nan=False)


def encode(record: dict[str, Any]) -> bytes:
    """One line of the journal. Floats keep every bit (shortest exact decimal)."""
    body = _ENCODER.encode(record)
    return f'{body[:-1]},"crc":{crc32(body.encode())}}}\n'.encode()


def decode(line: bytes) -> dict[str, Any]:
    """The record of one line without its newline; ValueError when it is damaged."""
    head, mark, tail = line.rpartition(b',"crc":')
    if not mark or not tail.endswith(b'}') or not tail[:-1].isdigit():
        raise ValueError('no checksum')
    body = head + b'}'
    if crc32(body) != int(tail[:-1]):
        raise ValueError('checksum differs')
    record: dict[str, Any] = json.loads(body)
    return record


def parse(data: bytes) -> Content:
    """Replay a journal. Never raises: damage is listed in `problems`."""
    content = Content()
    *lines, torn = data.split(b'\n')
    content.size = len(data) - len(torn)
    content.lines = len(lines)
    for number, line in enumerate(lines, start=1):
        try:
            _apply(content, decode(line))
        except (ValueError, KeyError, TypeError) as error:
            content.problems.append(f'line {number} is damaged and skipped: {error}')
            content.next_id += 1  # it may have been an id that was given out
    if torn:
        content.problems.append(
            f'the last line is incomplete and dropped ({len(torn)} bytes); its request was not accepted')
        content.next_id += 1
    return content


def _apply(content: Content, record: dict[str, Any]) -> None:
    operation = record['op']
    if operation == 'add':
        event_id = int(record['id'])
        request = content.requests[event_id] = _request(record)
        remember(content.answered, request)
        content.next_id = max(content.next_id, event_id + 1)
    elif operation == 'cancel':
        for event_id in record['ids']:
            content.requests.pop(int(event_id), None)
    elif operation == 'answered':
        remember(content.answered, _request(record))
        content.next_id = max(content.next_id, int(record['id']) + 1)
    elif operation == 'next':
        content.next_id = max(content.next_id, int(record['id']))
    else:
        raise ValueError(f'unknown operation {operation!r}')


def _request(record: dict[str, Any]) -> Request:
    return Request(int(record['id']), float(record['start']), float(record['end']), float(record['value']),
                   bool(record['power']), str(record['source']), float(record.get('accepted', 0.0)),
                   str(record.get('request', '')))


def remember(answered: dict[str, Request], request: Request) -> None:
    """Keep the answer to a request that has an id of its caller; the oldest are forgotten beyond `ANSWERS`."""
    if request.request_id:
        answered.pop(request.request_id, None)
        answered[request.request_id] = request
        if len(answered) > ANSWERS:
            del answered[next(iter(answered))]


def added(request: Request, operation: str = 'add') -> dict[str, Any]:
    """Record of an accepted request; as 'answered' it only keeps the caller's id used up."""
    record = {'op': operation, 'id': request.event_id, 'start': request.start, 'end': request.end,
              'value': request.value, 'power': request.is_power, 'source': request.source,
              'accepted': request.accepted}
    if request.request_id:
        record['request'] = request.request_id
    return record


def cancelled(event_ids: list[int]) -> dict[str, Any]:
    """Record of a cancellation."""
    return {'op': 'cancel', 'ids': event_ids}


class Journal:
    """An open journal file. Opening reads it (`content`) and cuts a torn tail off.

    Raises OSError when the file cannot be opened, BlockingIOError when another process has it open.
    Every method returns after the data is on disk. Use: `journal = Journal(path)`, then
    `Schedule(journal.content.requests.values(), journal.content.next_id)`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.content = parse(self.path.read_bytes())
            self._size = self.content.size
            self._lines = self.content.lines
            self._broken = ''
            if self.content.problems:
                # The ids of damaged lines must stay used up after the damage itself is gone.
                self._rewind()
                self._write(encode({'op': 'next', 'id': self.content.next_id}))
            _sync_directory(self.path)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, *records: dict[str, Any]) -> None:
        """Make records durable together; OSError leaves the journal as it was."""
        self._write(b''.join(encode(r) for r in records), len(records))

    def worth_compacting(self, live: int) -> bool:
        """True when more than half of at least 1000 lines is history."""
        return self._lines > 1000 and self._lines > 2 * live

    def compact(self, requests: Iterable[Request], next_id: int, answered: Iterable[Request] = ()) -> None:
        """Replace the file by one that holds these requests and answers only; atomic, or OSError and the old one."""
        lines = [encode({'op': 'next', 'id': next_id}), *(encode(added(r, 'answered')) for r in answered),
                 *(encode(added(r)) for r in requests)]
        data = b''.join(lines)
        temporary = self.path.with_name(self.path.name + '.new')
        new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(new, data)
            os.fsync(new)
            os.replace(temporary, self.path)
        except BaseException:
            os.close(new)
            raise
        os.close(self._file)
        self._file, self._size, self._lines, self._broken = new, len(data), len(lines), ''
        _sync_directory(self.path)

    def close(self) -> None:
        """Close the file; the journal must not be used afterwards."""
        os.close(self._file)

    def _write(self, data: bytes, lines: int = 1) -> None:
        if self._broken:
            raise OSError(f'the journal {self.path} is unusable: {self._broken}')
        try:
            os.lseek(self._file, self._size, os.SEEK_SET)
            _write_all(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            try:
                self._rewind()
            except OSError as second:
                self._broken = f'{error}; cutting it back failed: {second}'
            raise
        self._size += len(data)
        self._lines += lines

    def _rewind(self) -> None:
        """Cut off whatever follows the last whole line."""
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)


Done = Callable[[Exception | None], None]


class Committer:
    """Writes a journal from a thread of its own, everything that waits in one go: the executor never waits for a
    disk, and a thousand requests cost a few syncs.

    `post(fn)` runs fn in the executor thread; without it (simulated time) each call is done at once.
    """

    def __init__(self, journal: Journal, post: Callable[[Callable[[], None]], object] | None) -> None:
        self.journal = journal
        self._post = post
        self._waiting: deque[tuple[Callable[[], None] | dict[str, Any], Done]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread: threading.Thread | None = None  # from the first record on: most batteries have none

    def submit(self, work: dict[str, Any] | Callable[[], None], done: Done) -> None:
        """Make a record durable (or do other work on the journal), in order; then `done(error or None)`."""
        if self._post is None:
            done(self._do([work]))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f'journal {self.journal.path.stem}', daemon=True)
            self._thread.start()
        with self._changed:
            self._waiting.append((work, done))
            self._changed.notify()

    def close(self) -> None:
        """Finish what waits, then close the journal. What is posted last still reaches the executor."""
        if self._thread is not None:
            with self._changed:
                self._ended = True
                self._changed.notify()
            self._thread.join()
        self.journal.close()

    def _run(self) -> None:
        assert self._post is not None
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                batch = [self._waiting.popleft()]
                if not callable(batch[0][0]):
                    while self._waiting and not callable(self._waiting[0][0]):
                        batch.append(self._waiting.popleft())
            error = self._do([work for work, _ in batch])
            for _, done in batch:
                self._post(partial(done, error))

    def _do(self, batch: Sequence[dict[str, Any] | Callable[[], None]]) -> Exception | None:
        try:
            if callable(batch[0]):
                batch[0]()
            else:
                self.journal.append(*batch)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:  # whoever asked is told; the thread serves the next
            return error
        return None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view):]


def _sync_directory(path: Path) -> None:
    """Make the name of a new or replaced file durable."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
