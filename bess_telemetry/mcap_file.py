"""One MCAP file that ordinary readers can open at every moment while it is written.

While a file grows it has its final size already (a sparse hole on disk) and a valid end (DataEnd, Footer
without summary, magic) that never moves. The hole is covered by padding records of a private opcode,
which readers skip::

    magic | header | chunks ... | PAD ->................| PAD ->......| DataEnd Footer magic
                                 ^ position              ^ every PAD_GRID bytes

A chunk is first written behind the 9-byte head of the padding record at `position`, where nobody sees
it, and becomes part of the file when that head is replaced by the head of the chunk: 9 bytes within
one disk sector, so it happens or it does not. A process killed between any two system calls, or inside
one, leaves a file that opens and holds everything committed. On closing, a summary with indexes is put
there in the same way and the file is cut to its real length.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Schema,
    Statistics,
    SummaryOffset,
)

MAGIC = b'\x89MCAP0\r\n'
LIBRARY = 'bess'
PAD = 0x80
"""Private opcode of padding (MCAP reserves 0x80 and above for private use)."""
HEAD = struct.Struct('<BQ')
MESSAGE_HEAD = struct.Struct('<BQHIQQ')
SECTOR = 512
PAGE = 4096
PAD_GRID = 1 << 20
"""Padding records end at multiples of this, because readers load a record as a whole."""
COMPRESSIONS = ('', 'zstd')


class RawFile:
    """Positional writes to one file. Replaceable in tests that let the disk fill up."""

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        self._fd = os.open(path, flags, 0o644)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data`; raises OSError."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view = view[done:]
            offset += done

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def rename(self, target: Path) -> None:
        os.replace(self.path, target)
        self.path = target

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class LogMessage:
    """One message to log; times in ns, `data` is CDR including its 4-byte encapsulation."""

    channel_id: int
    log_time: int
    publish_time: int
    sequence: int
    data: bytes


@dataclass
class Index:
    """What the summary of a file says: kept while writing, rebuilt when repairing."""

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    start: int = 0
    end: int = 0

    @property
    def message_count(self) -> int:
        return sum(self.counts.values())

    def add_chunk(self, chunk: ChunkIndex, counts: dict[int, int]) -> None:
        first = not self.message_count
        self.start = chunk.message_start_time if first else min(self.start, chunk.message_start_time)
        self.end = max(self.end, chunk.message_end_time)
        self.chunks.append(chunk)
        for channel_id, count in counts.items():
            self.counts[channel_id] = self.counts.get(channel_id, 0) + count


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk record followed by its message index records, and the index entry (offsets from 0)."""

    data: bytes
    index: ChunkIndex
    counts: dict[int, int]


def encode(records: Iterable[McapRecord]) -> bytes:
    """Bytes of MCAP records in a row."""
    builder = RecordBuilder()
    for record in records:
        record.write(builder)
    return builder.end()


def encode_message_indexes(entries: dict[int, list[int]]) -> tuple[bytes, dict[int, int]]:
    """Message index records of a chunk and the offset of each within them.

    `entries`: per channel id a flat list log_time, offset, log_time, offset, ...
    """
    parts: list[bytes] = []
    offsets: dict[int, int] = {}
    size = 0
    for channel_id, flat in entries.items():
        body = struct.pack(f'<HI{len(flat)}Q', channel_id, 8 * len(flat), *flat)
        offsets[channel_id] = size
        parts += HEAD.pack(Opcode.MESSAGE_INDEX, len(body)), body
        size += HEAD.size + len(body)
    return b''.join(parts), offsets


def encode_chunk(
    prefix: Sequence[McapRecord], messages: Sequence[LogMessage], compression: str
) -> EncodedChunk:
    """Chunk of schemas and channels not yet in the file (`prefix`) and messages sorted by log time."""
    head = encode(prefix)
    parts = [head]
    position = len(head)
    entries: dict[int, list[int]] = {}
    for m in messages:
        entries.setdefault(m.channel_id, []).extend((m.log_time, position))
        parts.append(MESSAGE_HEAD.pack(Opcode.MESSAGE, MESSAGE_HEAD.size - HEAD.size + len(m.data),
                                       m.channel_id, m.sequence, m.log_time, m.publish_time))
        parts.append(m.data)
        position += MESSAGE_HEAD.size + len(m.data)
    raw = b''.join(parts)
    data = zstandard.ZstdCompressor(level=1).compress(raw) if compression == 'zstd' else raw
    chunk = Chunk(compression=compression, data=data, message_start_time=messages[0].log_time,
                  message_end_time=messages[-1].log_time, uncompressed_crc=zlib.crc32(raw),
                  uncompressed_size=len(raw))
    record = encode([chunk])
    indexes, offsets = encode_message_indexes(entries)
    index = ChunkIndex(
        message_start_time=chunk.message_start_time, message_end_time=chunk.message_end_time,
        chunk_start_offset=0, chunk_length=len(record),
        message_index_offsets={c: len(record) + o for c, o in offsets.items()},
        message_index_length=len(indexes), compression=compression, compressed_size=len(data),
        uncompressed_size=len(raw))
    return EncodedChunk(record + indexes, index, {c: len(e) // 2 for c, e in entries.items()})


def move_index(index: ChunkIndex, by: int) -> ChunkIndex:
    """The index entry of a chunk that stands `by` bytes further on."""
    return ChunkIndex(
        message_start_time=index.message_start_time, message_end_time=index.message_end_time,
        chunk_start_offset=index.chunk_start_offset + by, chunk_length=index.chunk_length,
        message_index_offsets={c: o + by for c, o in index.message_index_offsets.items()},
        message_index_length=index.message_index_length, compression=index.compression,
        compressed_size=index.compressed_size, uncompressed_size=index.uncompressed_size)


def encode_end(index: Index, position: int) -> tuple[bytes, int]:
    """DataEnd, summary, footer and magic for a file whose data end at `position`.

    Returns the bytes and the offset in the file where the summary starts.
    """
    data_end = encode([DataEnd(0)])
    start = position + len(data_end)
    statistics = Statistics(
        attachment_count=0, channel_count=len(index.channels),
        channel_message_counts=dict(index.counts), chunk_count=len(index.chunks),
        message_count=index.message_count, message_end_time=index.end,
        message_start_time=index.start, metadata_count=0, schema_count=len(index.schemas))
    groups: list[tuple[Opcode, list[McapRecord]]] = [
        (Opcode.SCHEMA, list(index.schemas.values())),
        (Opcode.CHANNEL, list(index.channels.values())),
        (Opcode.STATISTICS, [statistics]),
        (Opcode.CHUNK_INDEX, list(index.chunks)),
    ]
    summary = b''
    offsets: list[McapRecord] = []
    for opcode, records in groups:
        block = encode(records)
        if block:
            offsets.append(SummaryOffset(opcode, start + len(summary), len(block)))
        summary += block
    offset_start = start + len(summary)
    summary += encode(offsets)
    footer_head = struct.pack('<BQQQ', Opcode.FOOTER, 20, start, offset_start)
    footer = footer_head + struct.pack('<I', zlib.crc32(summary + footer_head))
    return data_end + summary + footer + MAGIC, start


OPEN_END = encode([DataEnd(0), Footer(0, 0, 0)]) + MAGIC
"""End of a file without summary."""


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


class GrowingFile:
    """Writes one file as described above. Not thread-safe. Every method raises OSError.

    `capacity`: final size in bytes until closed (disk space is used only as data come); `fsync`: also
    survive power loss, at the price of two small syncs per commit.
    """

    def __init__(self, raw: RawFile, path: Path, *, capacity: int, fsync: bool) -> None:
        """Create the file under the temporary name of `raw` and rename it to `path` when valid."""
        self.index = Index()
        self.capacity = _up(capacity, PAGE)
        self._raw = raw
        self._fsync = fsync
        self._end = self.capacity - len(OPEN_END)
        start = MAGIC + encode([Header('ros2', LIBRARY)])
        self.position = len(start)
        self._hidden_to = self._stop(self.position)
        self._summary_size = len(encode_end(self.index, 0)[0])
        self._failed = False
        raw.truncate(self.capacity)
        raw.pwrite(OPEN_END, self._end)
        for stop in range(PAD_GRID, self._end, PAD_GRID):
            raw.pwrite(self._pad(stop), stop)
        raw.pwrite(start + self._pad(self.position), 0)
        self._sync()
        raw.rename(path)

    @classmethod
    def resume(cls, raw: RawFile, index: Index, position: int, size: int, *,
               fsync: bool) -> GrowingFile:
        """Take over an open file left by a process that died, to `close` it."""
        self = cls.__new__(cls)
        self.index = index
        self.capacity = size
        self._raw = raw
        self._fsync = fsync
        self._end = size - len(OPEN_END)
        self.position = position
        self._hidden_to = 0
        self._summary_size = 0
        self._failed = True
        return self

    def room(self) -> int:
        """Bytes that a commit, with what it adds to the summary, may take."""
        return self._end - self.position - self._summary_size - 4 * SECTOR

    def commit(self, chunk: EncodedChunk, schemas: Iterable[Schema],
               channels: Iterable[Channel]) -> None:
        """Append a chunk; `schemas` and `channels` are those it introduces to this file."""
        if self._failed:
            raise ValueError('no commit after a failure')
        end = self.position + len(chunk.data)
        filler = b''
        if end % SECTOR > SECTOR - HEAD.size:
            # the next head must lie within one sector
            target = _up(end + HEAD.size, SECTOR)
            filler = HEAD.pack(PAD, target - end - HEAD.size).ljust(target - end, b'\0')
            end = target
        self._publish(chunk.data + filler + self._pad(end), end)
        new_schemas, new_channels = list(schemas), list(channels)
        entry = move_index(chunk.index, self.position)
        self.index.schemas.update((s.id, s) for s in new_schemas)
        self.index.channels.update((c.id, c) for c in new_channels)
        self.index.add_chunk(entry, chunk.counts)
        self._summary_size += len(encode([*new_schemas, *new_channels, entry]))
        self._summary_size += 10 * len(new_channels)
        self.position = end
        self._hidden_to = self._stop(end)

    def close(self) -> int:
        """Add the summary, cut the file to its length and return it. The file is closed in any case."""
        try:
            head = HEAD.pack(PAD, 0)
            data, summary_start = encode_end(self.index, self.position + len(head))
            size = self.position + len(head) + len(data)
            if size > self._end:
                raise ValueError('no room for the summary')
            self._hide(size)
            if self._failed:
                # The process may have died while closing: forget what it had put there.
                self._raw.pwrite(OPEN_END, self._end)
                self._sync()
            self._raw.pwrite(data, self.position + len(head))
            self._sync()
            # From here on the old end points at the new summary, then it is cut off.
            footer = encode([Footer(summary_start, 0, 0)])
            self._raw.pwrite(footer, self.capacity - len(MAGIC) - len(footer))
            self._sync()
            self._raw.pwrite(head, self.position)
            self._raw.truncate(size)
            self._sync()
            return size
        finally:
            self._raw.close()

    def abandon(self) -> None:
        """Close without summary; the file stays as valid as it is."""
        self._raw.close()

    def _stop(self, position: int) -> int:
        """Where a padding record at `position` ends."""
        grid = _up(position + HEAD.size, PAD_GRID)
        return grid if grid < self._end else self._end

    def _pad(self, position: int) -> bytes:
        return HEAD.pack(PAD, self._stop(position) - position - HEAD.size)

    def _hide(self, end: int) -> None:
        """Let the padding record at `position` reach beyond everything about to be written."""
        stop = max(self._stop(end), self._hidden_to)
        if stop != self._hidden_to:
            self._raw.pwrite(HEAD.pack(PAD, stop - self.position - HEAD.size), self.position)
            self._sync()
            self._hidden_to = stop

    def _publish(self, data: bytes, end: int) -> None:
        self._failed = True
        self._hide(end)
        self._raw.pwrite(data[HEAD.size:], self.position + HEAD.size)
        self._sync()
        self._raw.pwrite(data[:HEAD.size], self.position)
        self._sync()
        self._failed = False

    def _sync(self) -> None:
        if self._fsync:
            self._raw.sync()
