"""The thread that records: takes messages from a bounded queue and writes them (no ROS in here)."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bess_telemetry.definitions import DefinitionNotFound, definition
from bess_telemetry.mcap_log import BagWriter, RecordingStopped, enforce_limit
from bess_telemetry.mcap_recover import recover_all

WAKE_S = 0.1
"""Period in which the thread looks into the queue: one wake-up for many messages costs control less
than one for each."""
HOUSEKEEPING_S = 5.0
MESSAGE_OVERHEAD = 200
"""Memory of a queued message beyond its bytes, roughly."""


@dataclass(frozen=True, slots=True)
class NewTopic:
    """Announces a topic to the recording thread, before its first message."""

    topic: str
    msgtype: str
    qos_yaml: str
    type_hash: str


@dataclass(frozen=True, slots=True)
class RecordingStats:
    """Counters since start. `stopped`: why recording ended by itself ('' = it did not)."""

    received: int = 0
    dropped: int = 0
    written: int = 0
    bag: str = ''
    recovered: tuple[str, ...] = ()
    unrecordable: dict[str, str] = field(default_factory=dict)
    stopped: str = ''
    disk_full: bool = False


class RecordingThread:
    """Owns a `BagWriter` and writes what `put` hands over; `put` never blocks and never raises.

    `root`: directory of the bags; each start makes a new one named after the time (UTC). Bags left by a
    killed process are repaired first. `max_total_bytes`: the oldest files are deleted beyond this (0 =
    no limit), and below `min_free_bytes` of free space (then recording stops if that does not help,
    so that the site keeps room for its own state). `queue_bytes`: bound of the queue; more is dropped and
    counted. `put`, `announce` and `stats` belong to one thread (the executor's).
    """

    def __init__(self, root: Path, writer_factory: Callable[[Path], BagWriter], *,
                 max_total_bytes: int = 0, min_free_bytes: int = 0, queue_bytes: int = 32 << 20,
                 wall: Callable[[], float] = time.time) -> None:
        self.root = Path(root)
        self._writer_factory = writer_factory
        self._max_total_bytes = max_total_bytes
        self._min_free_bytes = min_free_bytes
        self._queue_bytes = queue_bytes
        self._wall = wall
        self._queue: deque[NewTopic | tuple[str, bytes, int]] = deque()
        # Each counter has one writing thread, so that no lock is needed.
        self._received = self._dropped = self._bytes_in = 0
        self._written = self._bytes_out = 0
        self._bag = ''
        self._recovered: tuple[str, ...] = ()
        self._unrecordable: dict[str, str] = {}
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='recorder')

    def start(self) -> None:
        """Start once."""
        self._thread.start()

    def announce(self, topic: NewTopic) -> None:
        """Declare a topic."""
        self._queue.append(topic)

    def put(self, topic: str, data: bytes, log_time_ns: int) -> None:
        """Hand over a message of an announced topic."""
        self._received += 1
        size = len(data) + MESSAGE_OVERHEAD
        if self._error is not None or self._bytes_in - self._bytes_out + size > self._queue_bytes:
            self._dropped += 1
            return
        self._bytes_in += size
        self._queue.append((topic, data, log_time_ns))

    def stop(self, timeout: float = 30.0) -> bool:
        """Write what is queued, close the bag and end the thread. False if that took longer."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def stats(self) -> RecordingStats:
        """Snapshot of the counters."""
        error = self._error
        return RecordingStats(
            self._received, self._dropped, self._written, self._bag, self._recovered,
            dict(self._unrecordable), f'{type(error).__name__}: {error}' if error else '',
            isinstance(error, RecordingStopped) and error.disk_full)

    def _run(self) -> None:
        try:
            self._record()
        except Exception as error:  # noqa: BLE001 - reported by stats(): the thread cannot tell others
            self._error = error

    def _record(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            recovered = recover_all(self.root)
            self._recovered = tuple(
                f'{bag}/{name}' for bag, r in recovered.items() for name in r.repaired)
        except OSError as error:
            raise RecordingStopped(error) from error
        self._make_room(None)
        writer = self._writer_factory(self._new_bag())
        self._bag = str(writer.directory)
        try:
            due = time.monotonic() + HOUSEKEEPING_S
            while True:
                stopping = self._stop.wait(WAKE_S)
                self._drain(writer)
                writer.poll()
                if time.monotonic() >= due:
                    self._make_room(writer)
                    due = time.monotonic() + HOUSEKEEPING_S
                if stopping:
                    return
        finally:
            writer.close()

    def _drain(self, writer: BagWriter) -> None:
        for _ in range(len(self._queue)):
            item = self._queue.popleft()
            if isinstance(item, NewTopic):
                self._declare(writer, item)
                continue
            topic, data, stamp = item
            self._bytes_out += len(data) + MESSAGE_OVERHEAD
            if topic not in self._unrecordable:
                writer.write(topic, data, stamp, stamp)
                self._written += 1

    def _declare(self, writer: BagWriter, topic: NewTopic) -> None:
        try:
            writer.add_topic(topic.topic, topic.msgtype, definition(topic.msgtype), topic.qos_yaml,
                             topic.type_hash)
        except (DefinitionNotFound, ValueError) as error:
            self._unrecordable[topic.topic] = str(error)

    def _new_bag(self) -> Path:
        name = datetime.fromtimestamp(self._wall(), UTC).strftime('%Y%m%dT%H%M%SZ')
        bag = self.root / name
        number = 1
        while bag.exists():
            number += 1
            bag = self.root / f'{name}-{number}'
        return bag

    def _make_room(self, writer: BagWriter | None) -> None:
        try:
            if self._max_total_bytes:
                enforce_limit(self.root, self._max_total_bytes, writer)
            missing = self._min_free_bytes - shutil.disk_usage(self.root).free
            if missing <= 0:
                return
            used = sum(p.stat().st_blocks * 512 for p in self.root.glob('*/*.mcap'))
            enforce_limit(self.root, max(0, used - missing), writer)
            if shutil.disk_usage(self.root).free < self._min_free_bytes:
                raise OSError(errno.ENOSPC, f'less than {self._min_free_bytes} bytes free')
        except OSError as error:
            raise RecordingStopped(error) from error
