"""Reading what an MCAP file really holds, and repairing recordings that did not end in order."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, ChunkIndex, Footer, Header, Schema
from mcap.stream_reader import StreamReader

from bess_telemetry import bag_metadata
from bess_telemetry.bag_metadata import BagFile, Topic
from bess_telemetry.mcap_file import (
    HEAD,
    LIBRARY,
    MAGIC,
    MESSAGE_HEAD,
    OPEN_END,
    PAD,
    SECTOR,
    GrowingFile,
    Index,
    RawFile,
    encode_end,
    encode_message_indexes,
)

_FOOTER_SIZE = 29
UNREADABLE = (McapError, zstandard.ZstdError, struct.error, ValueError, LookupError, OverflowError,
              MemoryError)
"""What the mcap library raises on damaged records."""


@dataclass
class Scan:
    """Result of `scan`: everything intact at the start of a file.

    `position`: where data may continue (offset of the padding that follows, else the end of the last
    intact record); `missing`: message index records of the last chunk if they were cut off; `open_end`:
    the file has its padding and provisional end and can be closed in place.
    """

    index: Index = field(default_factory=Index)
    library: str | None = None
    position: int = 0
    missing: bytes = b''
    open_end: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did, as file names: repaired, removed because without messages, not understood."""

    repaired: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    topics: tuple[Topic, ...] = ()
    files: tuple[BagFile, ...] = ()


def summary_index(path: Path) -> Index | None:
    """Index from the summary of a finished file; None when there is none that fits the file."""
    size = path.stat().st_size
    with path.open('rb') as file:
        if size < len(MAGIC) + len(OPEN_END) or file.read(len(MAGIC)) != MAGIC:
            return None
        file.seek(size - len(MAGIC) - _FOOTER_SIZE)
        end = file.read()
        if end[:9] != HEAD.pack(Opcode.FOOTER, 20) or end[_FOOTER_SIZE:] != MAGIC:
            return None
        start = int.from_bytes(end[9:17], 'little')
        if not len(MAGIC) <= start <= size - len(end):
            return None
        file.seek(start)
        block = file.read(size - len(MAGIC) - 4 - start)
        crc = int.from_bytes(end[25:29], 'little')
        if crc and zlib.crc32(block) != crc:
            return None
        file.seek(0)
        try:
            summary = make_reader(file).get_summary()
        except UNREADABLE:
            return None
        # A writer killed while closing leaves a summary before the end of the file.
        file.seek(start)
        try:
            footers = [r for r in StreamReader(file, skip_magic=True).records
                       if isinstance(r, Footer)]
        except UNREADABLE:
            return None
        if file.tell() != size or len(footers) != 1:
            return None
    if summary is None or summary.statistics is None:
        return None
    statistics = summary.statistics
    return Index(dict(summary.schemas), dict(summary.channels), list(summary.chunk_indexes),
                 dict(statistics.channel_message_counts), statistics.message_start_time,
                 statistics.message_end_time)


def scan(path: Path) -> Scan:
    """Read a file from its start up to the first thing that is not intact."""
    result = Scan()
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(MAGIC)) != MAGIC:
            return result
        position = len(MAGIC)
        padding: int | None = None
        expected: list[bytes] = []
        while True:
            file.seek(position)
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                break
            opcode, length = HEAD.unpack(head)
            end = position + HEAD.size + length
            if end > size:
                break
            if opcode == PAD:
                # Padding of a single sector only fills up; the next one can be overwritten safely.
                if padding is None and position % SECTOR <= SECTOR - HEAD.size:
                    padding = position
            elif opcode == Opcode.DATA_END:
                result.open_end = padding is not None and _has_open_end(file, size)
                break
            elif opcode == Opcode.HEADER and result.library is None:
                result.library = _library(file.read(length))
            elif opcode == Opcode.CHUNK and not expected:
                entries = _add_chunk(result.index, file.read(length), position, HEAD.size + length)
                if entries is None:
                    break
                expected = _index_records(entries)
                padding = None
            elif opcode == Opcode.MESSAGE_INDEX and expected:
                if file.read(length) != expected[0][HEAD.size:]:
                    break
                expected.pop(0)
                padding = None
            else:
                break
            position = end
            if not expected and padding is None:
                result.position = position
        if padding is not None:
            result.position = padding
        if expected and result.index.chunks:
            result.position = position
            result.missing = b''.join(expected)
    return result


def _library(header: bytes) -> str:
    try:
        found = Header.read(ReadDataStream(io.BytesIO(header)))
    except UNREADABLE:
        return ''
    return found.library if found.profile == 'ros2' else ''


def _has_open_end(file: BinaryIO, size: int) -> bool:
    file.seek(size - len(OPEN_END))
    end = file.read()
    # The footer may point at a summary already: a writer killed in the middle of closing.
    return end[:22] == OPEN_END[:22] and end[-8:] == MAGIC


def _add_chunk(
    index: Index, body: bytes, position: int, record_size: int
) -> dict[int, list[int]] | None:
    """Add a chunk to the index; its message index entries, or None if it is damaged."""
    try:
        chunk = Chunk.read(ReadDataStream(io.BytesIO(body)))
        raw = chunk.data
        if chunk.compression == 'zstd':
            raw = zstandard.decompress(raw, chunk.uncompressed_size)
        elif chunk.compression:
            return None
        if len(raw) != chunk.uncompressed_size or zlib.crc32(raw) != chunk.uncompressed_crc:
            return None
        entries = _read_chunk(raw, index)
    except UNREADABLE:
        return None
    times = [t for flat in entries.values() for t in flat[::2]]
    if not times or (min(times), max(times)) != (chunk.message_start_time, chunk.message_end_time):
        return None
    indexes, offsets = encode_message_indexes(entries)
    end = position + record_size
    index.add_chunk(
        ChunkIndex(message_start_time=chunk.message_start_time,
                   message_end_time=chunk.message_end_time, chunk_start_offset=position,
                   chunk_length=record_size,
                   message_index_offsets={c: end + o for c, o in offsets.items()},
                   message_index_length=len(indexes), compression=chunk.compression,
                   compressed_size=len(chunk.data), uncompressed_size=len(raw)),
        {c: len(e) // 2 for c, e in entries.items()})
    return entries


def _read_chunk(raw: bytes, index: Index) -> dict[int, list[int]]:
    """Entries per channel of an uncompressed chunk; adds its schemas and channels to `index`."""
    entries: dict[int, list[int]] = {}
    position = 0
    while position < len(raw):
        opcode, length = HEAD.unpack_from(raw, position)
        body = position + HEAD.size
        if body + length > len(raw):
            raise ValueError('record beyond the end of its chunk')
        if opcode == Opcode.MESSAGE:
            fields = MESSAGE_HEAD.unpack_from(raw, position)
            entries.setdefault(fields[2], []).extend((fields[4], position))
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(ReadDataStream(io.BytesIO(raw[body:body + length])))
            index.schemas[schema.id] = schema
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(ReadDataStream(io.BytesIO(raw[body:body + length])))
            index.channels[channel.id] = channel
        position = body + length
    return entries


def _index_records(entries: dict[int, list[int]]) -> list[bytes]:
    return [encode_message_indexes({channel: flat})[0] for channel, flat in entries.items()]


def repair(path: Path, *, fsync: bool = True) -> tuple[str, Index]:
    """Bring one file into its finished form.

    Returns what was done ('ok', 'repaired', 'removed': it held no message, 'skipped': not written by
    this package, left alone) and the index. Raises OSError. May be interrupted and called again.
    """
    index = summary_index(path)
    if index is not None:
        return 'ok', index
    found = scan(path)
    if found.library != LIBRARY:
        if found.library is None and path.stat().st_size <= 64:
            path.unlink()
            return 'removed', Index()
        return 'skipped', Index()
    if not found.index.message_count:
        path.unlink()
        return 'removed', Index()
    before = path.stat()
    raw = RawFile(path, create=False)
    _finish(raw, found, before.st_size, fsync)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return 'repaired', found.index


def _finish(raw: RawFile, found: Scan, size: int, fsync: bool) -> None:
    end = found.missing + encode_end(found.index, found.position + len(found.missing))[0]
    if found.open_end and found.position + len(end) + HEAD.size + len(OPEN_END) <= size:
        GrowingFile.resume(raw, found.index, found.position, size, fsync=fsync).close()
        return
    try:
        raw.truncate(found.position)
        raw.pwrite(end, found.position)
        if fsync:
            raw.sync()
    finally:
        raw.close()


def bag_file_of(name: str, index: Index) -> BagFile:
    """The metadata entry of a file with this index."""
    counts: dict[str, int] = {}
    for channel_id, count in index.counts.items():
        topic = index.channels[channel_id].topic
        counts[topic] = counts.get(topic, 0) + count
    return BagFile(name, index.start, index.end, counts)


def topics_of(index: Index) -> list[Topic]:
    """The topics of a file with this index."""
    return [Topic(c.topic, index.schemas[c.schema_id].name, c.metadata.get('offered_qos_profiles', ''),
                  c.metadata.get('topic_type_hash', '')) for c in index.channels.values()]


def natural_order(path: Path) -> tuple[str | int, ...]:
    """Sort key by which ``bag_10`` follows ``bag_9``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r'(\d+)', path.name))


def recover(directory: Path | str, *, fsync: bool = True, without: str = '') -> Recovery:
    """Repair all files of one bag and rewrite its metadata (leaving out the file `without`).

    Never called on a bag that is being written. Raises OSError, after which it may be called again.
    """
    bag = Path(directory)
    done: dict[str, list[str]] = {'ok': [], 'repaired': [], 'removed': [], 'skipped': []}
    topics: dict[str, Topic] = {}
    files: list[BagFile] = []
    for leftover in [*bag.glob('*.mcap.tmp'), *bag.glob(bag_metadata.FILE_NAME + '.tmp')]:
        leftover.unlink()
    for path in sorted(bag.glob('*.mcap'), key=natural_order):
        if path.name == without:
            continue
        what, index = repair(path, fsync=fsync)
        done[what].append(path.name)
        if what in ('ok', 'repaired'):
            files.append(bag_file_of(path.name, index))
            topics.update((t.name, t) for t in topics_of(index) if t.name not in topics)
    if files or not done['skipped']:
        text = bag_metadata.render(list(topics.values()), files, closed=True)
        bag_metadata.write(bag, text, fsync=fsync)
    return Recovery(tuple(done['repaired']), tuple(done['removed']), tuple(done['skipped']),
                    tuple(topics.values()), tuple(files))


def is_ours(directory: Path) -> bool:
    """True for a bag of this package (also without metadata), False for those of other recorders."""
    path = directory / bag_metadata.FILE_NAME
    if path.is_file():
        return bag_metadata.CLOSED_KEY in path.read_text('utf-8', errors='replace')
    return any(directory.glob('*.mcap')) or any(directory.glob('*.mcap.tmp'))


def recover_all(root: Path | str, *, fsync: bool = True) -> dict[str, Recovery]:
    """`recover` every bag below `root` that was not closed in order; bags of others are left alone."""
    result: dict[str, Recovery] = {}
    for bag in sorted(p for p in Path(root).iterdir() if p.is_dir()):
        if is_ours(bag) and not (bag_metadata.is_closed(bag) and _all_end_well(bag)):
            result[bag.name] = recover(bag, fsync=fsync)
    return result


def _all_end_well(bag: Path) -> bool:
    for path in bag.glob('*.mcap'):
        with path.open('rb') as file:
            if file.seek(0, os.SEEK_END) < len(OPEN_END):
                return False
            file.seek(-len(OPEN_END), os.SEEK_END)
            end = file.read()
        if end[-8:] != MAGIC or end == OPEN_END:
            return False
    return True
