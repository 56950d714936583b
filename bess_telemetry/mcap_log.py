"""Recording ROS messages into a rosbag2 directory (MCAP files) that survives any way to stop.

At every moment, also after ``kill -9``, the directory opens with the ordinary readers (mcap, rosbags,
rosbag2) and lacks at most the messages of the last `flush_s`; see `bess_telemetry.mcap_file` for how.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mcap.records import Channel, McapRecord, Schema

from bess_telemetry import bag_metadata
from bess_telemetry.bag_metadata import Topic
from bess_telemetry.mcap_file import (
    COMPRESSIONS,
    MESSAGE_HEAD,
    PAGE,
    EncodedChunk,
    GrowingFile,
    LogMessage,
    RawFile,
    encode,
    encode_chunk,
)
from bess_telemetry.mcap_recover import Recovery, bag_file_of, is_ours, natural_order, recover

__all__ = ['BagWriter', 'RecordingStopped', 'Recovery', 'enforce_limit', 'recover']

CHUNK_BYTES = 1 << 20
"""A chunk is written when this much waits, even before `flush_s`."""
CLOCK_STEP_NS = 1_000_000_000
"""Log times that go back by less are raised to the last one; a larger step starts a new file, because
the messages of a file that has no index yet must be in order of time."""
METADATA_S = 10.0
"""Period for refreshing the counts in ``metadata.yaml``."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RecordingStopped(RuntimeError):
    """The disk refused; what was committed before stays readable, nothing more is recorded.

    `disk_full` tells a full disk or quota from other errors; the OSError is the cause.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f'recording stopped: {error}')
        self.error = error
        self.disk_full = error.errno in FULL


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingStopped(error) from error


class BagWriter:
    """Writes one bag. Not thread-safe; calls may block on the disk, so keep it off the executor.

    `directory`: the bag (its name is the name of the files); one that exists is repaired and continued.
    `split_bytes`, `split_seconds`: a new file after so much data or time. `flush_s`: longest time that
    written messages wait in memory (call `poll` when there is nothing to write). `fsync`: survive power
    loss too. `compression`: '' or 'zstd'. All methods raise `RecordingStopped`.
    """

    def __init__(self, directory: Path | str, *, split_bytes: int = 64 << 20,
                 split_seconds: float = 3600.0, flush_s: float = 1.0, fsync: bool = True,
                 compression: str = 'zstd', monotonic: Callable[[], float] = time.monotonic,
                 open_file: Callable[[Path], RawFile] = lambda p: RawFile(p, create=True)) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f'compression {compression!r} is not one of {COMPRESSIONS}')
        self.directory = Path(directory)
        self._split_bytes = split_bytes
        self._split_seconds = split_seconds
        self._flush_s = flush_s
        self._fsync = fsync
        self._compression = compression
        self._monotonic = monotonic
        self._open_file = open_file
        self._topics: dict[str, Topic] = {}
        self._schemas: dict[str, Schema] = {}
        self._channels: dict[str, Channel] = {}
        self._sequences: dict[int, int] = {}
        self._pending: list[LogMessage] = []
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._last_time = 0
        self._file: GrowingFile | None = None
        self._file_name = ''
        self._file_opened = 0.0
        self._metadata_written = 0.0
        self._metadata_stale = False
        self._stopped: RecordingStopped | None = None
        self._closed = False
        with _disk():
            self.directory.mkdir(parents=True, exist_ok=True)
            existing = recover(self.directory, fsync=fsync)
            self._files = list(existing.files)
            self._next_number = 1 + max((_number(p) for p in self.directory.glob('*.mcap')), default=-1)
            self._topics.update((t.name, t) for t in existing.topics)
            self._write_metadata()
            if fsync:
                bag_metadata.sync_directory(self.directory.parent)

    @property
    def current_file(self) -> Path | None:
        """The file being written, None before the first flush and after closing."""
        return self.directory / self._file_name if self._file is not None else None

    @property
    def message_count(self) -> int:
        """Committed messages of this bag."""
        current = self._file.index.message_count if self._file is not None else 0
        return sum(f.message_count for f in self._files) + current

    def has_topic(self, topic: str) -> bool:
        """True after `add_topic`."""
        return topic in self._channels

    def add_topic(self, topic: str, msgtype: str, definition: str, qos_yaml: str = '',
                  type_hash: str = '') -> None:
        """Declare a topic before its first message; a second time with the same type has no effect.

        `definition`: text in format ros2msg (`definitions.definition`); `qos_yaml`: offered QoS
        (`bag_metadata.qos_yaml`). ValueError if the topic is known with another type.
        """
        known = self._topics.get(topic)
        if known is not None and known.msgtype != msgtype:
            raise ValueError(f'{topic} is {known.msgtype}, not {msgtype}')
        if topic in self._channels:
            return
        if known is None:
            known = self._topics[topic] = Topic(topic, msgtype, qos_yaml, type_hash)
        schema = self._schemas.get(msgtype)
        if schema is None:
            schema = Schema(id=len(self._schemas) + 1, name=msgtype, encoding='ros2msg',
                            data=definition.encode())
            self._schemas[msgtype] = schema
        metadata = {'offered_qos_profiles': known.qos_yaml, 'topic_type_hash': known.type_hash}
        self._channels[topic] = Channel(id=len(self._channels) + 1, topic=topic,
                                        message_encoding='cdr', metadata=metadata,
                                        schema_id=schema.id)
        # Readers take the list of topics from the metadata: it has to be there before the messages.
        self._metadata_stale = True

    def write(self, topic: str, cdr: bytes, log_time_ns: int, publish_time_ns: int) -> None:
        """Record one serialized message. KeyError for a topic that was not added."""
        self._check()
        channel_id = self._channels[topic].id
        sequence = self._sequences.get(channel_id, 0)
        self._sequences[channel_id] = (sequence + 1) & 0xFFFFFFFF
        if not self._pending:
            self._pending_since = self._monotonic()
        elif log_time_ns < self._pending[0].log_time - CLOCK_STEP_NS:
            # Set back: what came before belongs into a chunk, and a file, of its own.
            self.flush()
            self._pending_since = self._monotonic()
        self._pending.append(LogMessage(channel_id, log_time_ns, publish_time_ns, sequence, cdr))
        self._pending_bytes += len(cdr) + MESSAGE_HEAD.size
        if self._pending_bytes >= CHUNK_BYTES:
            self.flush()
        else:
            self.poll()

    def poll(self) -> None:
        """Flush, split and refresh the metadata if it is time."""
        self._check()
        now = self._monotonic()
        if self._pending and now - self._pending_since >= self._flush_s:
            self.flush()
        if self._file is not None and now - self._file_opened >= self._split_seconds:
            self.flush()
            self._finish_file()
        if self._file is not None and now - self._metadata_written >= METADATA_S:
            self._write_metadata()

    def flush(self) -> None:
        """Commit everything written so far to the disk."""
        self._check()
        if not self._pending:
            return
        messages = sorted(self._pending, key=lambda m: m.log_time)
        self._pending = []
        self._pending_bytes = 0
        with self._stopping():
            if messages[0].log_time < self._last_time - CLOCK_STEP_NS:
                self._finish_file()
            elif self._file is not None:
                messages = [m if m.log_time >= self._last_time else
                            LogMessage(m.channel_id, self._last_time, m.publish_time, m.sequence, m.data)
                            for m in messages]
            self._commit(messages)
            self._last_time = messages[-1].log_time

    def close(self) -> None:
        """Flush, write the indexes and the final metadata. May be called again."""
        if self._closed:
            return
        try:
            if self._stopped is None:
                self.flush()
                with self._stopping():
                    self._finish_file()
                    self._write_metadata(closed=True)
        finally:
            self._closed = True
            if self._file is not None:
                self._files.append(bag_file_of(self._file_name, self._file.index))
                self._file.abandon()
                self._file = None

    def forget(self, path: Path) -> None:
        """Delete a finished file of this bag. ValueError for the one being written."""
        self._check()
        if path.name == self._file_name and self._file is not None:
            raise ValueError(f'{path.name} is being written')
        with self._stopping():
            self._files = [f for f in self._files if f.name != path.name]
            self._write_metadata()
            path.unlink()

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._closed:
            raise ValueError('the writer is closed')

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            with _disk():
                yield
        except RecordingStopped as stopped:
            self._stopped = stopped
            raise

    def _commit(self, messages: list[LogMessage]) -> None:
        chunk, schemas, channels = self._encode(messages)
        if self._file is not None and self._needed(chunk, schemas, channels) > self._file.room():
            self._finish_file()
        if self._file is None:
            chunk, schemas, channels = self._encode(messages)
            self._new_file(self._needed(chunk, schemas, channels))
        if self._metadata_stale:
            self._write_metadata()
        assert self._file is not None
        self._file.commit(chunk, schemas, channels)

    def _encode(
        self, messages: list[LogMessage]
    ) -> tuple[EncodedChunk, list[Schema], list[Channel]]:
        """The chunk and what it introduces to the current file."""
        there = self._file.index if self._file is not None else None
        used = {m.channel_id for m in messages}
        channels = [c for c in self._channels.values()
                    if c.id in used and (there is None or c.id not in there.channels)]
        wanted = {c.schema_id for c in channels}
        schemas = [s for s in self._schemas.values()
                   if s.id in wanted and (there is None or s.id not in there.schemas)]
        prefix: list[McapRecord] = [*schemas, *channels]
        return encode_chunk(prefix, messages, self._compression), schemas, channels

    @staticmethod
    def _needed(chunk: EncodedChunk, schemas: list[Schema], channels: list[Channel]) -> int:
        summary = encode([*schemas, *channels, chunk.index])
        return len(chunk.data) + len(summary) + 10 * len(channels)

    def _new_file(self, needed: int) -> None:
        self._file_name = f'{self.directory.name}_{self._next_number}.mcap'
        self._next_number += 1
        path = self.directory / self._file_name
        raw = self._open_file(path.with_name(path.name + '.tmp'))
        try:
            self._file = GrowingFile(raw, path, capacity=max(self._split_bytes, needed + 2 * PAGE),
                                     fsync=self._fsync)
        except OSError:
            raw.close()
            path.with_name(path.name + '.tmp').unlink(missing_ok=True)
            raise
        self._file_opened = self._monotonic()
        self._metadata_stale = True

    def _finish_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # Also if closing fails: the file is readable without its summary.
            self._files.append(bag_file_of(self._file_name, file.index))
            file.close()
            self._write_metadata()

    def _write_metadata(self, *, closed: bool = False) -> None:
        files = list(self._files)
        if self._file is not None:
            files.append(bag_file_of(self._file_name, self._file.index))
        topics = list(self._topics.values())
        text = bag_metadata.render(topics, files, closed=closed)
        bag_metadata.write(self.directory, text, fsync=self._fsync)
        self._metadata_written = self._monotonic()
        self._metadata_stale = False


def _number(path: Path) -> int:
    tail = path.stem.rpartition('_')[2]
    return int(tail) if tail.isdigit() else -1


def enforce_limit(root: Path, max_bytes: int, writer: BagWriter | None = None) -> list[Path]:
    """Delete the oldest files of the bags below `root` until they use at most `max_bytes` on disk.

    The file being written and bags of other recorders stay. Returns what was deleted. Raises OSError.
    """
    files: list[tuple[Path, int]] = []
    for bag in sorted((p for p in root.iterdir() if p.is_dir() and is_ours(p)), key=natural_order):
        files += [(p, p.stat().st_blocks * 512) for p in sorted(bag.glob('*.mcap'), key=natural_order)]
    files.sort(key=lambda item: item[0].stat().st_mtime_ns)
    total = sum(size for _, size in files)
    deleted: list[Path] = []
    for path, size in files:
        if total <= max_bytes:
            break
        if writer is not None and path.parent == writer.directory:
            if path == writer.current_file:
                continue
            writer.forget(path)
        else:
            _delete(path)
        deleted.append(path)
        total -= size
    return deleted


def _delete(path: Path) -> None:
    bag = path.parent
    remaining = [p for p in bag.glob('*.mcap') if p != path]
    if not remaining:
        shutil.rmtree(bag)
        return
    recover(bag, without=path.name)
    path.unlink()
