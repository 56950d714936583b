"""Reading recordings and playing them: pure, so any bag of MCAP files and any publisher will do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any, Protocol

import yaml
from mcap.reader import make_reader

from bess_telemetry.bag_metadata import FILE_NAME
from bess_telemetry.mcap_file import Index
from bess_telemetry.mcap_recover import natural_order, scan, summary_index, topics_of

NS = 1_000_000_000


class BagError(ValueError):
    """The directory is no recording that can be read here."""


@dataclass(frozen=True, slots=True)
class RecordedTopic:
    """A topic of a bag. `qos`: the publishers' profiles as plain dictionaries (rosbag2 names)."""

    name: str
    msgtype: str
    qos: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """One message: `data` is CDR with its encapsulation, `log_time` in ns since epoch."""

    topic: str
    data: bytes
    log_time: int


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """Type, number of messages and mean rate (Hz, NaN below two messages)."""

    msgtype: str
    count: int
    rate: float


@dataclass(frozen=True, slots=True)
class BagInfo:
    """Contents of a bag; times in s since epoch, `duration` in s, `size` in bytes on disk."""

    start: float
    duration: float
    message_count: int
    size: int
    topics: dict[str, TopicInfo] = field(default_factory=dict)


class PublisherFactory(Protocol):
    """Makes the publisher of a topic: returns a function that sends serialized bytes."""

    def __call__(self, topic: str, msgtype: str,
                 qos: tuple[dict[str, Any], ...]) -> Callable[[bytes], object]: ...


def bag_files(bag_dir: Path | str) -> list[Path]:
    """The MCAP files of a bag in order of recording. Raises `BagError`."""
    bag = Path(bag_dir)
    metadata = bag / FILE_NAME
    if metadata.is_file():
        try:
            text = yaml.load(metadata.read_text('utf-8'), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
            information = text['rosbag2_bagfile_information']
            if information['storage_identifier'] != 'mcap' or information['compression_mode']:
                raise BagError(f'{bag}: only MCAP without compression of messages or files')
            files = [bag / Path(name).name for name in information['relative_file_paths']]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise BagError(f'{metadata}: {error}') from error
    else:
        files = sorted(bag.glob('*.mcap'), key=natural_order)
    missing = [str(f) for f in files if not f.is_file()]
    if missing or not (files or metadata.is_file()):
        raise BagError(f'{bag}: ' + (f'{missing} missing' if missing else 'no recording'))
    return files


def bag_topics(bag_dir: Path | str) -> list[RecordedTopic]:
    """Topics with at least one message. Raises `BagError`."""
    topics: dict[str, RecordedTopic] = {}
    for path in bag_files(bag_dir):
        for t in topics_of(_index(path)):
            if t.name not in topics:
                qos = yaml.safe_load(t.qos_yaml) if t.qos_yaml else None
                topics[t.name] = RecordedTopic(t.name, t.msgtype, tuple(qos or ()))
    return list(topics.values())


def messages(bag_dir: Path | str, *, topics: Collection[str] | None = None,
             start_ns: int | None = None, end_ns: int | None = None) -> Iterator[RecordedMessage]:
    """Messages in order of log time, `start_ns` <= time < `end_ns`; also of a bag being written."""
    streams = []
    for path in bag_files(bag_dir):
        index = _index(path)
        if not index.message_count or (end_ns is not None and index.start >= end_ns) or (
                start_ns is not None and index.end < start_ns):
            continue
        streams.append((index.start, path))
    # Files follow each other; only where they overlap do they have to be merged.
    streams.sort()
    yield from merge(*(_file_messages(p, topics, start_ns, end_ns) for _, p in streams),
                     key=lambda m: m.log_time)


def _file_messages(path: Path, topics: Collection[str] | None, start_ns: int | None,
                   end_ns: int | None) -> Iterator[RecordedMessage]:
    with path.open('rb') as file:
        indexed = summary_index(path) is not None
        # Files of ours without index are in order; sorting would load them as a whole.
        for _, channel, message in make_reader(file).iter_messages(
                topics=topics, starting_at=start_ns, ending_before=end_ns, log_time_order=indexed):
            yield RecordedMessage(channel.topic, message.data, message.log_time)


def _index(path: Path) -> Index:
    return summary_index(path) or scan(path).index


def info(bag_dir: Path | str) -> BagInfo:
    """What a bag holds. Raises `BagError`."""
    counts: dict[str, int] = {}
    types: dict[str, str] = {}
    size, start, end = 0, None, 0
    for path in bag_files(bag_dir):
        index = _index(path)
        size += path.stat().st_blocks * 512
        types.update((t.name, t.msgtype) for t in topics_of(index))
        for channel_id, count in index.counts.items():
            name = index.channels[channel_id].topic
            counts[name] = counts.get(name, 0) + count
        if index.message_count:
            start = index.start if start is None else min(start, index.start)
            end = max(end, index.end)
    duration = (end - start) / NS if start is not None else 0.0
    return BagInfo((start or 0) / NS, duration, sum(counts.values()), size, {
        name: TopicInfo(types[name], count,
                        (count - 1) / duration if count > 1 and duration > 0 else float('nan'))
        for name, count in sorted(counts.items())})


def replay(bag_dir: Path | str, publisher: PublisherFactory, *, rate: float = 1.0,
           topics: Collection[str] | None = None, start: float | None = None,
           duration: float | None = None, loop: bool = False, remap_prefix: str = '',
           stop: threading.Event | None = None, ready: Callable[[], bool] | None = None,
           ready_timeout: float = 5.0, monotonic: Callable[[], float] = time.monotonic) -> int:
    """Publish a recording with its original spacing; blocks, so give it a thread of its own.

    `rate`: times real time; `start`, `duration`: part of the bag in s (recorded time, from its start);
    `remap_prefix`: put before every topic; `stop`: ends it; `ready`: waited for before the first
    message, at most `ready_timeout` (e.g. until subscribers are matched). Spacing is kept against the
    first message, so delays do not add up. Returns the number of messages published. Raises `BagError`.
    """
    if not rate > 0.0:
        raise ValueError('rate must be positive')
    stop = stop or threading.Event()
    found = [t for t in bag_topics(bag_dir) if topics is None or t.name in topics]
    publish = {t.name: publisher(remap_prefix + t.name, t.msgtype, t.qos) for t in found}
    deadline = monotonic() + ready_timeout
    while ready is not None and not ready() and monotonic() < deadline and not stop.wait(0.02):
        pass
    indexes = [i for i in map(_index, bag_files(bag_dir)) if i.message_count]
    if not indexes or not found:
        return 0
    first = min(i.start for i in indexes) + round((start or 0.0) * NS)
    last = None if duration is None else first + round(duration * NS)
    sent = 0
    while not stop.is_set():
        began = monotonic()
        before = sent
        for m in messages(bag_dir, topics=[t.name for t in found], start_ns=first, end_ns=last):
            wait = began + (m.log_time - first) / NS / rate - monotonic()
            if (wait > 0.0 and stop.wait(wait)) or stop.is_set():
                break
            publish[m.topic](m.data)
            sent += 1
        if not loop or sent == before:
            break
    return sent
