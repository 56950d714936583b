"""Recorder and replay on a real graph: what was published comes back, byte for byte."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest  # noqa: E402

rclpy = pytest.importorskip('rclpy')

from rclpy.experimental import EventsExecutor  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from rclpy.task import Future  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402
from sensor_msgs.msg import BatteryState  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from bess.msg import BatteryStatus, FaultArray  # noqa: E402
from bess_telemetry.mcap_file import RawFile  # noqa: E402
from bess_telemetry.mcap_log import BagWriter  # noqa: E402
from bess_telemetry.recorder_node import Recorder, adapted_qos, selected  # noqa: E402
from bess_telemetry.recording import NewTopic, RecordingThread  # noqa: E402
from bess_telemetry.replay import info, messages, replay  # noqa: E402
from bess_telemetry.replay_node import NodePublishers  # noqa: E402

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
DEEP = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


class Graph:
    """A node on an EventsExecutor in this thread."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('t', context=self.context, enable_rosout=False,
                                      start_parameter_services=False)
        self.executor = EventsExecutor(context=self.context)
        self.executor.add_node(self.node)

    def until(self, condition, deadline: float = 10.0, period: float = 0.02) -> None:
        """Run callbacks until `condition()`, checked every `period` s; fail after `deadline` s."""
        done = Future()
        end = time.monotonic() + deadline

        def check() -> None:
            if condition() or time.monotonic() > end:
                done.set_result(None)
                self.executor.wake()

        timer = self.node.create_timer(period, check)
        try:
            self.executor.spin_until_future_complete(done, 1e9)
        finally:
            self.node.destroy_timer(timer)
        assert condition(), 'deadline passed'

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def graph():
    g = Graph()
    yield g
    g.close()


def factory(**options):
    return lambda directory: BagWriter(directory, **({'fsync': False, 'flush_s': 0.1} | options))


def the_bag(root: Path) -> Path:
    (bag,) = (p for p in root.iterdir() if p.is_dir())
    return bag


def started(graph: Graph, root: Path, topics: int, **options) -> Recorder:
    recorder = Recorder(graph.node, root, options.pop('writer_factory', factory()),
                        include=('/x/*',), **options)
    recorder.start()
    graph.until(lambda: recorder.discover() or len(recorder.topics) == topics)
    return recorder


def record(graph: Graph, root: Path) -> dict[str, list]:
    """A recording of three topics of different QoS; returns what was published."""
    node = graph.node
    latched = node.create_publisher(BatteryStatus, '/x/status', LATCHED)
    text = node.create_publisher(String, '/x/text', 10)
    state = node.create_publisher(BatteryState, '/x/state', BEST_EFFORT)
    node.create_publisher(String, '/other', 10)
    first = BatteryStatus(voltage=51.5, current=-20.0)
    latched.publish(first)
    recorder = started(graph, root, 3)
    assert recorder.topics == ['/x/state', '/x/status', '/x/text']
    graph.until(lambda: text.get_subscription_count() == state.get_subscription_count() == 1)
    sent: dict[str, list] = defaultdict(list, {'/x/status': [first]})
    for i in range(20):
        sent['/x/text'].append(String(data=f'{i}'))
        text.publish(sent['/x/text'][-1])
        sent['/x/state'].append(BatteryState(voltage=float(i)))
        state.publish(sent['/x/state'][-1])
        graph.until(lambda want=2 * i + 3: recorder.stats().received >= want, period=0.005)
    assert recorder.stop()
    assert recorder.stats().dropped == 0 and recorder.stats().stopped == ''
    return sent


def test_recorded_bytes_are_the_messages_and_rosbags_understands_them(graph, tmp_path):
    sent = record(graph, tmp_path)
    bag = the_bag(tmp_path)
    got = defaultdict(list)
    kinds = {'/x/status': BatteryStatus, '/x/text': String, '/x/state': BatteryState}
    for m in messages(bag):
        got[m.topic].append(m.data)
    for topic, kind in kinds.items():
        assert got[topic] == [serialize_message(m) for m in sent[topic]]
        assert [repr(deserialize_message(d, kind)) for d in got[topic]] == [
            repr(m) for m in sent[topic]]
    # A type store made of nothing but the definitions in the file.
    with AnyReader([bag], default_typestore=get_typestore(Stores.EMPTY)) as reader:
        by_topic = defaultdict(list)
        for connection, _, data in reader.messages():
            by_topic[connection.topic].append(reader.deserialize(data, connection.msgtype))
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    (status,) = by_topic['/x/status']
    assert (status.voltage, status.current) == (51.5, -20.0)
    assert [m.data for m in by_topic['/x/text']] == [str(i) for i in range(20)]
    assert [m.voltage for m in by_topic['/x/state']] == [float(i) for i in range(20)]
    assert qos['/x/status'].durability.name == 'TRANSIENT_LOCAL'
    assert qos['/x/state'].reliability.name == 'BEST_EFFORT'
    found = info(bag)
    assert found.message_count == 41
    assert {t: i.count for t, i in found.topics.items()} == {
        '/x/status': 1, '/x/text': 20, '/x/state': 20}
    assert found.topics['/x/status'].msgtype == 'bess/msg/BatteryStatus'


def test_replay_publishes_the_same_bytes(graph, tmp_path):
    sent = record(graph, tmp_path)
    bag = the_bag(tmp_path)
    got = defaultdict(list)
    kinds = {'/x/status': BatteryStatus, '/x/text': String, '/x/state': BatteryState}
    for topic, kind in kinds.items():
        # Deep queues: it plays faster than a busy machine may look.
        qos = {'/x/status': LATCHED, '/x/text': 100, '/x/state': DEEP}[topic]
        graph.node.create_subscription(kind, '/again' + topic, got[topic].append, qos, raw=True)
    publishers = NodePublishers(graph.node)
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(replay(
        bag, publishers, rate=10.0, remap_prefix='/again', ready=publishers.matched)))
    thread.start()
    try:
        graph.until(lambda: sum(map(len, got.values())) >= 41)
    finally:
        thread.join(10)
    assert counts == [41]
    for topic in kinds:
        assert got[topic] == [serialize_message(m) for m in sent[topic]]
    publishers.destroy()


def test_replay_keeps_the_spacing_and_selects(tmp_path):
    bag = tmp_path / 'bag'
    writer = BagWriter(bag, fsync=False)
    writer.add_topic('/a', 'std_msgs/msg/String', 'string data\n')
    writer.add_topic('/b', 'std_msgs/msg/String', 'string data\n')
    start = 1_700_000_000 * 10**9
    for i in range(10):
        at = start + i * 100_000_000
        writer.write('/a' if i % 2 else '/b', bytes([i]), at, at)
    writer.close()

    class Clock(threading.Event):
        """Time passes only in `wait`, and 1 ms with every message."""

        now = 5.0

        def wait(self, timeout=None) -> bool:
            self.now += timeout
            return False

    def play(**options) -> list[tuple[str, int, float]]:
        seen = []
        clock = Clock()

        def make(topic, msgtype, qos):
            def take(data):
                seen.append((topic, data[0], clock.now))
                clock.now += 0.001
            return take

        options = {'rate': 10.0, 'stop': clock, 'monotonic': lambda: clock.now} | options
        assert replay(bag, make, **options) == len(seen)
        return seen

    everything = play()
    assert [n for _, n, _ in everything] == list(range(10))
    assert [at - 5.0 for _, _, at in everything] == pytest.approx([n * 0.01 for n in range(10)])
    assert [at - 5.0 for _, _, at in play(rate=0.5)] == pytest.approx([n * 0.2 for n in range(10)])
    assert [n for _, n, _ in play(topics=['/a'], remap_prefix='/r')] == [1, 3, 5, 7, 9]
    assert play(topics=['/a'], remap_prefix='/r')[0][0] == '/r/a'
    assert [n for _, n, _ in play(start=0.3, duration=0.3)] == [3, 4, 5]
    with pytest.raises(ValueError, match='rate'):
        play(rate=0.0)
    stop = threading.Event()
    looped = []

    def until_25(topic, msgtype, qos):
        def take(data):
            looped.append(data[0])
            if len(looped) == 25:
                stop.set()
        return take

    assert replay(bag, until_25, rate=1000.0, loop=True, stop=stop) == 25
    assert looped == [*range(10), *range(10), *range(5)]


def test_a_best_effort_publisher_that_comes_later_is_recorded_too(graph, tmp_path):
    node = graph.node
    reliable = node.create_publisher(String, '/x/t', 10)
    recorder = started(graph, tmp_path, 1)
    graph.until(lambda: reliable.get_subscription_count() == 1)
    late = node.create_publisher(String, '/x/t', BEST_EFFORT)
    graph.until(lambda: recorder.discover() or late.get_subscription_count() == 1)
    late.publish(String(data='late'))
    graph.until(lambda: recorder.stats().received == 1)
    assert recorder.stop()
    (m,) = messages(the_bag(tmp_path))
    assert deserialize_message(m.data, String).data == 'late'


class FullDisk(RawFile):
    def pwrite(self, data: bytes, offset: int) -> None:
        if offset > 20_000 and not data.endswith(b'MCAP0\r\n'):
            raise OSError(errno.ENOSPC, 'No space left on device')
        super().pwrite(data, offset)


def test_full_disk_stops_only_the_recording(graph, tmp_path):
    publisher = graph.node.create_publisher(String, '/x/t', 10)
    recorder = started(graph, tmp_path, 1, writer_factory=factory(
        open_file=lambda p: FullDisk(p, create=True), compression='', flush_s=0.01,
        split_bytes=200_000))
    graph.until(lambda: publisher.get_subscription_count() == 1)
    sent = [0]

    def publish_until_stopped() -> bool:
        if not recorder.stats().stopped:
            publisher.publish(String(data='x' * 1000))
            sent[0] += 1
        return bool(recorder.stats().stopped)

    graph.until(publish_until_stopped, period=0.005)
    assert recorder.stats().disk_full
    received = recorder.stats().received
    publisher.publish(String(data='still running'))
    graph.until(lambda: recorder.stats().received > received)
    assert recorder.stop()
    kept = list(messages(the_bag(tmp_path)))
    assert 0 < len(kept) < sent[0]


def test_a_slow_disk_drops_and_counts_but_never_blocks(tmp_path):
    release = threading.Event()

    class Stuck(RawFile):
        def pwrite(self, data: bytes, offset: int) -> None:
            release.wait(20)
            super().pwrite(data, offset)

    thread = RecordingThread(tmp_path, factory(open_file=lambda p: Stuck(p, create=True)),
                             queue_bytes=100_000)
    thread.start()
    thread.announce(NewTopic('/x', 'std_msgs/msg/String', '', ''))
    slowest = 0.0
    try:
        for i in range(2000):
            before = time.perf_counter()
            thread.put('/x', bytes(1000), 10**18 + i)
            slowest = max(slowest, time.perf_counter() - before)
            if i == 10:
                deadline = time.monotonic() + 5
                while thread.stats().written == 0 and time.monotonic() < deadline:
                    time.sleep(0.01)
        stats = thread.stats()
        assert stats.received == 2000
        assert 1700 < stats.dropped < 2000
        assert slowest < 0.5
    finally:
        release.set()
        assert thread.stop()
    stats = thread.stats()
    assert stats.stopped == ''
    assert stats.written == 2000 - stats.dropped == info(stats.bag).message_count


def test_a_type_without_definition_is_reported_and_the_rest_recorded(tmp_path):
    thread = RecordingThread(tmp_path, factory())
    thread.start()
    thread.announce(NewTopic('/x', 'nowhere_msgs/msg/Thing', '', ''))
    thread.announce(NewTopic('/y', 'std_msgs/msg/String', '', ''))
    thread.put('/x', b'1', 10**18)
    thread.put('/y', b'2', 10**18)
    assert thread.stop()
    assert 'nowhere_msgs' in thread.stats().unrecordable['/x']
    assert [m.topic for m in messages(thread.stats().bag)] == ['/y']


def test_limit_and_free_space(tmp_path):
    old = BagWriter(tmp_path / 'old', fsync=False)
    old.add_topic('/x', 'std_msgs/msg/String', 'string data\n')
    old.write('/x', bytes(os.urandom(100_000)), 10**18, 10**18)
    old.close()
    thread = RecordingThread(tmp_path, factory(), max_total_bytes=50_000)
    thread.start()
    assert thread.stop()
    assert not (tmp_path / 'old').exists()
    thread = RecordingThread(tmp_path, factory(), min_free_bytes=1 << 60)
    thread.start()
    assert thread.stop()
    assert thread.stats().disk_full and 'free' in thread.stats().stopped


def test_bags_of_a_killed_recorder_are_repaired_at_start(tmp_path):
    killed = BagWriter(tmp_path / 'killed', fsync=False)
    killed.add_topic('/x', 'std_msgs/msg/String', 'string data\n')
    killed.write('/x', b'1', 10**18, 10**18)
    killed.flush()
    path = killed.current_file
    assert path is not None
    with path.open('r+b') as file:
        file.truncate(5_000)
    thread = RecordingThread(tmp_path, factory())
    thread.start()
    assert thread.stop()
    assert thread.stats().recovered == ('killed/killed_0.mcap',)
    assert [m.data for m in messages(tmp_path / 'killed')] == [b'1']


def test_recorder_node_records_while_active_and_survives_a_full_disk(tmp_path, monkeypatch):
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.runtime import Runtime
    from bess_core.ticker import RealTicker
    from bess_telemetry import recorder_node
    from bess_telemetry.recorder_node import RecorderNode, RecorderParams

    with Runtime(signals=False) as runtime:
        clock = Clock()
        ticker = RealTicker(clock, runtime.post)
        ctx = NodeContext('/site', tmp_path, clock, ticker, runtime.post)
        node = RecorderNode('recorder', RecorderParams(
            include=('/site/*',), discovery_s=0.1, flush_s=0.1, min_free_mb=0.0), ctx)
        runtime.executor.add_node(node)
        publisher = node.create_publisher(String, '/site/text', LATCHED)
        publisher.publish(String(data='hello'))
        active: set[str] = set()
        node.create_subscription(
            FaultArray, '/site/faults',
            lambda m: active.update(f.id for f in m.faults if f.active), LATCHED)
        try:
            node.trigger_configure()
            node.trigger_activate()
            assert runtime.spin_until(lambda: node.progress > 3, 10.0)
            node.trigger_deactivate()
            bag = the_bag(tmp_path / 'recordings')
            topics = info(bag).topics
            assert topics['/site/text'].count == 1
            assert topics['/site/heartbeat'].msgtype == 'bess/msg/Heartbeat'
            assert node.diagnostics()['dropped'] == 0

            monkeypatch.setattr(recorder_node, 'BagWriter', lambda directory, **options: BagWriter(
                directory, **options, open_file=lambda p: FullDisk(p, create=True)))
            node.trigger_activate()
            assert runtime.spin_until(lambda: node.diagnostics()['topics'] > 0, 10.0)
            noise = String(data=os.urandom(30_000).hex())
            publisher.publish(noise)
            assert runtime.spin_until(
                lambda: publisher.publish(noise) or 'recorder.disk_full' in active, 10.0)
            assert node.diagnostics()['topics'] == 0
            assert node.is_active
        finally:
            node.close()
            ticker.stop()
            runtime.executor.remove_node(node)
            node.destroy_node()


def test_selection():
    assert selected('/site/a', ['*'], [])
    assert not selected('/site/a', ['*'], ['/site/*'])
    assert not selected('/site/a', ['/other/*'], [])
    assert not selected('/site/_hidden/a', ['*'], [])
    assert selected('/site/_hidden/a', ['/site/_hidden/a'], [])


def test_adapted_qos_connects_to_all():
    mixed = adapted_qos([LATCHED, BEST_EFFORT])
    assert mixed.reliability == ReliabilityPolicy.BEST_EFFORT
    assert mixed.durability == DurabilityPolicy.VOLATILE
    latched = adapted_qos([LATCHED, LATCHED])
    assert latched.reliability == ReliabilityPolicy.RELIABLE
    assert latched.durability == DurabilityPolicy.TRANSIENT_LOCAL
