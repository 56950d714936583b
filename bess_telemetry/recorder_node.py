"""Recorder: writes every topic of the site into rosbag2 recordings with a bound on disk space."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')  # before the first message import

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

from bess_core.context import NodeContext
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity
from bess_telemetry.bag_metadata import qos_yaml
from bess_telemetry.definitions import DefinitionNotFound, split_type
from bess_telemetry.mcap_log import BagWriter
from bess_telemetry.recording import NewTopic, RecordingStats, RecordingThread

DEPTH = 200


def message_class(msgtype: str) -> Any:
    """The Python class of ``'package/msg/Name'``. Raises `DefinitionNotFound`."""
    package, name = split_type(msgtype)
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise DefinitionNotFound(f'{msgtype} is not installed: {error}') from error


def adapted_qos(offers: Sequence[QoSProfile]) -> QoSProfile:
    """The strictest QoS that connects to all of these publishers (as ``ros2 bag record`` chooses it)."""
    reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offers)
    latched = all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def selected(topic: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether globs choose a topic; hidden topics (a part begins with ``_``) only by their full name."""
    if topic in include:
        return True
    if any(part.startswith('_') for part in topic.split('/')):
        return False
    return (any(fnmatchcase(topic, g) for g in include)
            and not any(fnmatchcase(topic, g) for g in exclude))


@dataclass
class _Subscribed:
    subscription: Any
    qos: QoSProfile
    publishers: int


class Recorder:
    """Subscribes to what it finds on the graph of any rclpy node and records the bytes as they came.

    All methods belong to the executor thread; none waits for the disk except `stop`. Call `discover`
    periodically. `now_ns` stamps the messages.
    """

    def __init__(self, node: Node, root: Path, writer_factory: Callable[[Path], BagWriter] = BagWriter,
                 *, include: Sequence[str] = ('*',), exclude: Sequence[str] = (),
                 max_total_bytes: int = 0, min_free_bytes: int = 0, queue_bytes: int = 32 << 20,
                 now_ns: Callable[[], int] = time.time_ns) -> None:
        self._node = node
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._now_ns = now_ns
        self._subscribed: dict[str, _Subscribed] = {}
        self._refused: dict[str, str] = {}
        self._thread = RecordingThread(
            root, writer_factory, max_total_bytes=max_total_bytes, min_free_bytes=min_free_bytes,
            queue_bytes=queue_bytes, wall=lambda: now_ns() / 1e9)

    @property
    def topics(self) -> list[str]:
        """Topics being recorded."""
        return sorted(self._subscribed)

    @property
    def refused(self) -> dict[str, str]:
        """Topics that are chosen but cannot be recorded, with the reason."""
        return self._refused | self._thread.stats().unrecordable

    def start(self) -> None:
        """Start the writing thread and look for topics."""
        self._thread.start()
        self.discover()

    def discover(self) -> None:
        """Subscribe to new topics; subscribe anew where a later publisher offers less."""
        for topic, types in self._node.get_topic_names_and_types():
            if topic in self._refused or not selected(topic, self._include, self._exclude):
                continue
            known = self._subscribed.get(topic)
            publishers = self._node.count_publishers(topic)
            if not publishers or (known is not None and known.publishers == publishers):
                continue
            if len(types) != 1:
                self._refused[topic] = f'has several types: {", ".join(types)}'
                continue
            try:
                self._subscribe(topic, types[0], publishers)
            except DefinitionNotFound as error:
                self._refused[topic] = str(error)

    def stop(self, timeout: float = 30.0) -> bool:
        """Unsubscribe, write what is queued and close the bag. False if the disk took longer."""
        for known in self._subscribed.values():
            self._node.destroy_subscription(known.subscription)
        self._subscribed.clear()
        return self._thread.stop(timeout)

    def stats(self) -> RecordingStats:
        """Counters of the recording."""
        return self._thread.stats()

    def _subscribe(self, topic: str, msgtype: str, publishers: int) -> None:
        offers = self._node.get_publishers_info_by_topic(topic)
        if not offers:
            return
        profiles = [o.qos_profile for o in offers]
        wanted = adapted_qos(profiles)
        known = self._subscribed.get(topic)
        if known is None:
            distinct: list[QoSProfile] = []
            for profile in profiles:
                if profile not in distinct:
                    distinct.append(profile)
            self._thread.announce(NewTopic(topic, msgtype, qos_yaml(distinct),
                                           str(offers[0].topic_type_hash)))
        else:
            weaker = ((known.qos.reliability == ReliabilityPolicy.RELIABLE
                       and wanted.reliability != ReliabilityPolicy.RELIABLE)
                      or (known.qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
                          and wanted.durability != DurabilityPolicy.TRANSIENT_LOCAL))
            known.publishers = publishers
            if not weaker:
                # A stricter subscription would deliver latched messages a second time.
                return
            self._node.destroy_subscription(known.subscription)
        # One argument only: callbacks that also take the message info break the EventsExecutor.
        subscription = self._node.create_subscription(
            message_class(msgtype), topic, partial(self._received, topic), wanted, raw=True)
        self._subscribed[topic] = _Subscribed(subscription, wanted, publishers)

    def _received(self, topic: str, data: bytes) -> None:
        self._thread.put(topic, data, self._now_ns())


@dataclass(frozen=True)
class RecorderParams:
    """Parameters of the recorder."""

    directory: str = param('recordings', '', 'where recordings go; relative to the state directory')
    include: tuple[str, ...] = param(('*',), '', 'globs of the topics to record')
    exclude: tuple[str, ...] = param((), '', 'globs of topics not to record')
    split_size_mb: float = param(64.0, 'MB', 'a new file after this much', low=1.0, high=4096.0)
    split_s: float = param(3600.0, 's', 'a new file after this time', low=10.0, high=604800.0)
    max_total_mb: float = param(2000.0, 'MB', 'delete the oldest files beyond this; 0 = never',
                                low=0.0, high=1e8)
    min_free_mb: float = param(200.0, 'MB', 'keep this much of the disk free for the site', low=0.0,
                               high=1e8)
    flush_s: float = param(1.0, 's', 'at most this much is lost when power fails', low=0.1, high=60.0)
    compression: str = param('zstd', '', 'of the recorded data', choices=['', 'zstd'])
    discovery_s: float = param(1.0, 's', 'how often to look for new topics', low=0.1, high=60.0)


class RecorderNode(BessNode):
    """Records while active. A full disk raises ``recorder.disk_full`` and stops the recording only."""

    Params = RecorderParams
    role = 'recorder'

    def __init__(self, name: str, parameters: RecorderParams, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self._recorder: Recorder | None = None
        self._last = RecordingStats()
        self._dropped = 0

    def on_bess_configure(self) -> None:
        """Watch the recording."""
        self.every(self.params.discovery_s, self._watch)

    def on_bess_activate(self) -> None:
        """Start a new recording."""
        p = self.params
        self.clear_fault('recorder.disk_full')
        self.clear_fault('recorder.stopped')
        self._dropped = 0

        def open_bag(directory: Path) -> BagWriter:
            return BagWriter(directory, split_bytes=int(p.split_size_mb * 1e6),
                             split_seconds=p.split_s, flush_s=p.flush_s, compression=p.compression)

        self._recorder = Recorder(
            self, self.ctx.state_dir / p.directory, open_bag, include=p.include, exclude=p.exclude,
            max_total_bytes=int(p.max_total_mb * 1e6), min_free_bytes=int(p.min_free_mb * 1e6),
            now_ns=lambda: round(self.clock.wall() * 1e9))
        self._recorder.start()

    def on_bess_deactivate(self) -> None:
        """Close the recording."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            if not recorder.stop():
                self.log.error('the recording could not be closed in time')
            self._last = recorder.stats()
            self.log.info('recorded', bag=self._last.bag, messages=self._last.written,
                          dropped=self._last.dropped)

    def on_bess_cleanup(self) -> None:
        """Close the recording if it still runs."""
        self.on_bess_deactivate()

    def diagnostics(self) -> dict[str, Any]:
        """Counters of the current or last recording."""
        topics = len(self._recorder.topics) if self._recorder is not None else 0
        s = self._last
        return {'bag': s.bag, 'topics': topics, 'received': s.received, 'written': s.written,
                'dropped': s.dropped, 'stopped': s.stopped}

    def _watch(self, _: Tick) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        stats = self._last = recorder.stats()
        if stats.stopped:
            fault = 'recorder.disk_full' if stats.disk_full else 'recorder.stopped'
            self.raise_fault(fault, Severity.WARNING if stats.disk_full else Severity.ERROR,
                             stats.stopped)
            self.on_bess_deactivate()
            return
        self.progress = stats.written
        if stats.dropped > self._dropped:
            self.raise_fault('recorder.dropping', Severity.WARNING,
                             f'{stats.dropped} messages were too many to record')
        else:
            self.clear_fault('recorder.dropping')
        self._dropped = stats.dropped
        recorder.discover()
