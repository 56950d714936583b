"""Recordings open with ordinary readers at every moment and lose nothing that was committed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.opcode import Opcode
from mcap.reader import NonSeekingReader, make_reader
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from bess_telemetry import bag_metadata, definitions
from bess_telemetry.mcap_file import OPEN_END, PAGE, RawFile
from bess_telemetry.mcap_log import BagWriter, RecordingStopped, enforce_limit
from bess_telemetry.mcap_recover import recover, recover_all, summary_index
from bess_telemetry.replay import bag_topics, messages

TYPE = 'std_msgs/msg/String'
QOS = """- history: keep_last
  depth: 10
  reliability: reliable
  durability: transient_local
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: automatic
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false"""
STORE = get_typestore(Stores.EMPTY)
T0 = 1_700_000_000_000_000_000
MS = 1_000_000


def cdr(text: str) -> bytes:
    raw = text.encode() + b'\0'
    return b'\0\1\0\0' + len(raw).to_bytes(4, 'little') + raw


def text_of(data: bytes) -> str:
    return data[8:-1].decode()


def writer(directory: Path, **options) -> BagWriter:
    options = {'split_bytes': 1 << 20, 'split_seconds': 3600.0, 'fsync': False} | options
    w = BagWriter(directory, **options)
    for topic in ('/a', '/b'):
        w.add_topic(topic, TYPE, definitions.definition(TYPE), QOS, definitions.type_hash(TYPE))
    return w


def fill(w: BagWriter, count: int, *, per_flush: int = 10, size: int = 20, start: int = 0) -> None:
    for i in range(start, start + count):
        topic = '/b' if i % 3 == 0 else '/a'
        w.write(topic, cdr(f'{i}:'.ljust(size, 'x')), T0 + i * MS, T0 + i * MS - 5)
        if (i + 1) % per_flush == 0:
            w.flush()


def number(data: bytes) -> int:
    return int(text_of(data).split(':')[0])


def by_rosbags(directory: Path) -> list[int]:
    with Reader(directory) as reader:
        return [number(data) for _, _, data in reader.messages()]


def by_any(directory: Path) -> list[int]:
    with AnyReader([directory], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        return [int(reader.deserialize(data, c.msgtype).data.split(':')[0])
                for c, _, data in reader.messages()]


def by_mcap(path: Path, *, streaming: bool = False) -> list[int]:
    with path.open('rb') as file:
        reader = NonSeekingReader(file, validate_crcs=True) if streaming else make_reader(
            file, validate_crcs=True)
        return [number(m.data) for _, _, m in reader.iter_messages()]


def mcap_files(directory: Path) -> list[Path]:
    return sorted(directory.glob('*.mcap'), key=lambda p: int(p.stem.rpartition('_')[2]))


def read_everywhere(directory: Path) -> list[int]:
    """The numbers in the bag after all readers agreed on them."""
    found = by_rosbags(directory)
    assert by_any(directory) == found
    assert [n for p in mcap_files(directory) for n in by_mcap(p)] == found
    assert [n for p in mcap_files(directory) for n in by_mcap(p, streaming=True)] == found
    return found


def test_other_tools_understand_a_closed_bag(tmp_path):
    bag = tmp_path / 'bag'
    with_header = 'sensor_msgs/msg/BatteryState'
    w = writer(bag)
    w.add_topic('/battery', with_header, definitions.definition(with_header), QOS)
    store = get_typestore(Stores.ROS2_JAZZY)
    kinds = store.types
    header = kinds['std_msgs/msg/Header'](kinds['builtin_interfaces/msg/Time'](7, 8), 'rack1')
    import numpy as np
    state = kinds[with_header](header, 51.2, 25.0, -3.5, *[float('nan')] * 4, 1, 1, 1, True,
                               np.array([3.2, 3.3], np.float32), np.zeros(2, np.float32), 'l', 's')
    w.write('/battery', bytes(store.serialize_cdr(state, with_header)), T0, T0)
    fill(w, 25, start=1)
    w.close()
    assert read_everywhere_strings(bag) == list(range(1, 26))
    # The definitions in the file alone are enough to understand it.
    with AnyReader([bag], default_typestore=STORE) as reader:
        battery = [c for c in reader.connections if c.topic == '/battery']
        ((connection, stamp, data),) = reader.messages(connections=battery)
        msg = reader.deserialize(data, connection.msgtype)
        assert (stamp, msg.voltage, msg.current, msg.header.frame_id) == (
            T0, pytest.approx(51.2, abs=1e-5), -3.5, 'rack1')
        assert list(msg.cell_voltage) == [pytest.approx(3.2, abs=1e-6), pytest.approx(3.3, abs=1e-6)]
        (qos,) = connection.ext.offered_qos_profiles
        assert (qos.durability.name, qos.reliability.name, qos.depth) == (
            'TRANSIENT_LOCAL', 'RELIABLE', 10)
        assert reader.message_count == 26
        assert reader.duration == 25 * MS + 1


def read_everywhere_strings(bag: Path) -> list[int]:
    with Reader(bag) as reader:
        strings = [c for c in reader.connections if c.msgtype == TYPE]
        return [number(data) for _, _, data in reader.messages(strings)]


def _installed(package: str) -> list[str]:
    return [f'{package}/msg/{p.stem}' for share in definitions.share_directories()
            for p in sorted((share / package / 'msg').glob('*.msg'))]


@pytest.mark.parametrize('package', ['builtin_interfaces', 'std_msgs', 'sensor_msgs',
                                     'diagnostic_msgs', 'bess'])
def test_definitions_have_the_hash_the_package_was_generated_with(package):
    """The type hash covers all fields of a type and of all types it uses."""
    types = _installed(package)
    if not types:
        pytest.skip(f'{package} is not installed')
    for msgtype in types:
        if msgtype == 'std_msgs/msg/Char':
            continue  # rosbags hashes the deprecated type char in another way than rosidl
        store = get_typestore(Stores.EMPTY)
        store.register(get_types_from_msg(definitions.definition(msgtype), msgtype))
        assert store.hash_rihs01(msgtype) == definitions.type_hash(msgtype) != '', msgtype


def test_types_without_definition_are_refused():
    for name in ('nowhere_msgs/msg/Thing', 'std_srvs/srv/Trigger', 'String', 'std_msgs/msg/Nothing'):
        with pytest.raises(definitions.DefinitionNotFound):
            definitions.definition(name)


def test_type_hash_and_times_are_kept(tmp_path):
    w = writer(tmp_path / 'bag')
    fill(w, 3)
    w.close()
    with (tmp_path / 'bag' / 'bag_0.mcap').open('rb') as file:
        reader = make_reader(file)
        assert reader.get_header().profile == 'ros2'
        schema, channel, message = next(iter(reader.iter_messages(topics='/a')))
    assert schema.encoding == 'ros2msg'
    assert channel.metadata['topic_type_hash'] == (
        'RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18')
    assert (message.log_time, message.publish_time) == (T0 + MS, T0 + MS - 5)


def test_an_open_bag_is_readable_after_each_flush(tmp_path):
    bag = tmp_path / 'bag'
    w = writer(bag, split_bytes=40_000, compression='')
    for start in range(0, 100, 20):
        fill(w, 20, start=start, size=700)
        assert read_everywhere(bag) == list(range(start + 20))
    w.write('/a', cdr('100:'), T0 + 100 * MS, T0)
    assert read_everywhere(bag) == list(range(100))
    assert len(mcap_files(bag)) > 2
    w.close()
    assert read_everywhere(bag) == list(range(101))
    assert all(summary_index(p) is not None for p in mcap_files(bag))
    assert bag_metadata.is_closed(bag)


def test_flush_and_split_by_time(tmp_path):
    now = [100.0]
    w = writer(tmp_path / 'bag', flush_s=1.0, split_seconds=60.0, monotonic=lambda: now[0])
    w.write('/a', cdr('0:'), T0, T0)
    assert w.message_count == 0
    now[0] += 1.0
    w.poll()
    assert w.message_count == 1
    w.write('/a', cdr('1:'), T0 + 1, T0)
    now[0] += 60.0
    w.poll()
    assert w.current_file is None
    assert [len(by_mcap(p)) for p in mcap_files(tmp_path / 'bag')] == [2]
    w.write('/a', cdr('2:'), T0 + 2, T0)
    w.close()
    assert read_everywhere(tmp_path / 'bag') == [0, 1, 2]


def test_a_message_larger_than_a_file_is_recorded(tmp_path):
    w = writer(tmp_path / 'bag', split_bytes=10_000, compression='')
    fill(w, 5, size=3_000_000, per_flush=1)
    w.close()
    assert read_everywhere(tmp_path / 'bag') == list(range(5))


def test_messages_out_of_order_are_sorted_and_a_clock_set_back_starts_a_new_file(tmp_path):
    bag = tmp_path / 'bag'
    w = writer(bag)
    for i, t in enumerate((3, 1, 2)):
        w.write('/a', cdr(f'{i}:'), T0 + t * MS, T0)
    w.flush()
    w.write('/a', cdr('3:'), T0 + 2 * MS, T0)
    w.flush()
    assert read_everywhere(bag) == [1, 2, 0, 3]
    w.write('/a', cdr('4:'), T0 - 3_600_000 * MS, T0)
    w.flush()
    with Reader(bag) as reader:
        assert [number(d) for _, _, d in reader.messages()] == [1, 2, 0, 3, 4]
    assert len(mcap_files(bag)) == 2
    w.close()


def test_a_bag_is_continued(tmp_path):
    for start in (0, 20):
        w = writer(tmp_path / 'bag')
        fill(w, 20, start=start)
        w.close()
    assert [p.name for p in mcap_files(tmp_path / 'bag')] == ['bag_0.mcap', 'bag_1.mcap']
    assert read_everywhere(tmp_path / 'bag') == list(range(40))


def test_topics_must_be_declared_with_one_type(tmp_path):
    w = writer(tmp_path / 'bag')
    w.add_topic('/a', TYPE, 'string data\n')
    with pytest.raises(ValueError, match='not std_msgs/msg/Bool'):
        w.add_topic('/a', 'std_msgs/msg/Bool', 'bool data\n')
    with pytest.raises(KeyError):
        w.write('/unknown', b'', 0, 0)
    w.close()
    with pytest.raises(ValueError, match='closed'):
        w.write('/a', cdr('1:'), T0, T0)


class Journal(RawFile):
    """Notes each operation on the file so that every moment in between can be rebuilt."""

    def __init__(self, path: Path, log: list) -> None:
        super().__init__(path, create=True)
        self.log = log

    def pwrite(self, data: bytes, offset: int) -> None:
        # A kill may stop a write at each page boundary, never inside a page.
        while data:
            part = data[:PAGE - offset % PAGE]
            self.log.append((offset, part))
            super().pwrite(part, offset)
            data, offset = data[len(part):], offset + len(part)

    def truncate(self, size: int) -> None:
        self.log.append((size, None))
        super().truncate(size)

    def rename(self, target: Path) -> None:
        self.log.append('named')
        super().rename(target)


def test_every_moment_of_a_file_opens_and_holds_all_committed(tmp_path):
    """Stop after each single page written, each cut and each commit; chunks cross the padding grid."""
    log: list = []
    commits: dict[int, int] = {}
    bag = tmp_path / 'bag'
    w = writer(bag, split_bytes=2_400_000, compression='', open_file=lambda p: Journal(p, log))
    rng = random.Random(4)
    count = 0
    for size in [200, 504, 505, 700_000, 690_000, 100, 40_000] + [rng.randrange(1, 3000)
                                                                  for _ in range(40)]:
        w.write('/a', cdr(f'{count}:'.ljust(size, 'x')), T0 + count * MS, T0)
        w.flush()
        count += 1
        commits[len(log)] = count
    w.close()
    assert len(mcap_files(bag)) == 1
    moment = tmp_path / 'moment.mcap'
    committed = 0
    named = False
    states = 0
    with moment.open('w+b') as file:
        for i, step in enumerate(log, 1):
            if step == 'named':
                named = True
            else:
                offset, data = step
                if data is None:
                    file.truncate(offset)
                else:
                    file.seek(offset)
                    file.write(data)
                    file.flush()
            committed = commits.get(i, committed)
            if not named or (i % 7 and i not in commits and len(step[1] or b'') >= PAGE):
                continue
            states += 1
            assert committed <= len(by_mcap(moment)) <= committed + 1
            assert committed <= len(by_mcap(moment, streaming=True)) <= committed + 1
            with Reader(moment) as reader:
                assert committed <= sum(1 for _ in reader.messages()) <= committed + 1
    assert states > 150
    assert moment.read_bytes() == mcap_files(bag)[0].read_bytes()


def _write_until_killed(directory: str, pipe) -> None:
    w = writer(Path(directory), split_bytes=1_500_000, flush_s=0.005, fsync=False)
    rng = random.Random(os.getpid())
    i = 0
    while True:
        w.write('/a', cdr(f'{i}:'.ljust(rng.randrange(10, 60_000), 'x')), T0 + i * MS, T0)
        i += 1
        if rng.random() < 0.1:
            w.flush()
            pipe.send(i)


def test_killed_writers_leave_readable_bags_with_all_committed(tmp_path):
    context = multiprocessing.get_context('fork')
    rng = random.Random(11)
    for run in range(12):
        bag = tmp_path / f'run{run}'
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_write_until_killed, args=(str(bag), send))
        child.start()
        send.close()
        committed = receive.recv()
        stop = time.monotonic() + rng.uniform(0.0, 0.04)
        while time.monotonic() < stop:
            if receive.poll(max(0.0, stop - time.monotonic())):
                committed = receive.recv()
        os.kill(child.pid, signal.SIGKILL)
        child.join(5)
        assert child.exitcode == -signal.SIGKILL
        while True:
            try:
                committed = receive.recv()
            except EOFError:
                break
        before = read_everywhere(bag)
        assert before == list(range(len(before))) and len(before) >= committed
        recover(bag)
        assert by_rosbags(bag) == before
        assert all(summary_index(p) is not None for p in mcap_files(bag))
        with Reader(bag) as reader:
            assert reader.message_count == len(before)
        w = writer(bag)
        fill(w, 5, start=len(before))
        w.close()
        assert by_rosbags(bag) == list(range(len(before) + 5))


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> tuple[bytes, bytes]:
    """A finished file of 200 messages in 20 chunks, and the same still open."""
    bag = tmp_path_factory.mktemp('finished') / 'bag'
    w = writer(bag, split_bytes=200_000)
    fill(w, 200, size=100)
    still_open = (bag / 'bag_0.mcap').read_bytes()
    w.close()
    return (bag / 'bag_0.mcap').read_bytes(), still_open


def _recovered(tmp_path: Path, data: bytes) -> list[int]:
    bag = tmp_path / 'bag'
    shutil.rmtree(bag, ignore_errors=True)
    bag.mkdir()
    (bag / 'bag_0.mcap').write_bytes(data)
    recover(bag, fsync=False)
    found = read_everywhere(bag)
    assert found == list(range(len(found)))
    for path in mcap_files(bag):
        index = summary_index(path)
        assert index is not None
        assert path.stat().st_size <= len(data) + 8000
        raw = path.read_bytes()
        for chunk in index.chunks:
            for channel_id, offset in chunk.message_index_offsets.items():
                assert raw[offset] == Opcode.MESSAGE_INDEX
                assert int.from_bytes(raw[offset + 9:offset + 11], 'little') == channel_id
    return found


def test_recover_after_any_truncation(tmp_path, finished):
    whole, still_open = finished
    rng = random.Random(2)
    last = 0
    for cut in sorted(rng.sample(range(len(whole) + 1), 60) + [0, 1, 8, 40, len(whole)]):
        found = len(_recovered(tmp_path, whole[:cut]))
        assert found >= last
        last = found
    assert last == 200
    # Cut between a chunk and its message indexes, and inside them.
    (tmp_path / 'whole.mcap').write_bytes(whole)
    index = summary_index(tmp_path / 'whole.mcap')
    assert index is not None
    chunk_end = index.chunks[4].chunk_start_offset + index.chunks[4].chunk_length
    for cut in range(chunk_end, chunk_end + index.chunks[4].message_index_length, 17):
        assert len(_recovered(tmp_path, whole[:cut])) == 50
    assert len(_recovered(tmp_path, still_open[:-1])) == 200
    assert len(_recovered(tmp_path, still_open[:-60_000])) == 200


def test_recover_after_damage_anywhere(tmp_path, finished):
    """One wrong byte never stops the repair; an open file is readable afterwards, up to the damage."""
    @settings(max_examples=100)
    @given(st.booleans(), st.data(), st.integers(1, 255))
    def damaged(still_open, draw, flip):
        broken = bytearray(finished[still_open])
        broken[draw.draw(st.integers(0, len(finished[0]) - 1))] ^= flip
        bag = tmp_path / 'bag'
        shutil.rmtree(bag, ignore_errors=True)
        bag.mkdir()
        (bag / 'bag_0.mcap').write_bytes(broken)
        done = recover(bag, fsync=False)
        if still_open and not done.skipped:
            found = by_rosbags(bag)
            assert found == list(range(len(found)))
        if done.repaired:
            assert recover(bag, fsync=False).repaired == ()
    damaged()


def test_recover_leaves_other_recordings_alone(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer
    with Writer(tmp_path / 'other', version=9, storage_plugin=StoragePlugin.MCAP) as other:
        c = other.add_connection('/x', TYPE, typestore=get_typestore(Stores.ROS2_JAZZY))
        other.write(c, T0, cdr('1:'))
    w = writer(tmp_path / 'ours')
    fill(w, 10)
    w.close()
    before = {p: p.read_bytes() for p in tmp_path.glob('*/*')}
    assert recover_all(tmp_path) == {}
    assert enforce_limit(tmp_path, 0) == [tmp_path / 'ours' / 'ours_0.mcap']
    assert {p: p.read_bytes() for p in tmp_path.glob('*/*')} == {
        p: d for p, d in before.items() if p.parent.name == 'other'}
    (tmp_path / 'other' / 'metadata.yaml').unlink()
    path = next((tmp_path / 'other').glob('*.mcap'))
    path.write_bytes(path.read_bytes()[:-20])
    assert recover_all(tmp_path)['other'].skipped == (path.name,)


class FullDisk(RawFile):
    """A disk that takes `space` more bytes, then refuses; a refused write may be done in part."""

    space = 0

    def pwrite(self, data: bytes, offset: int) -> None:
        taken = min(len(data), FullDisk.space)
        FullDisk.space -= taken
        super().pwrite(data[:taken], offset)
        if taken < len(data):
            raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('space', [0, 30, 600, 3_000, 30_000, 45_123])
def test_full_disk_stops_recording_and_keeps_the_data(tmp_path, space):
    FullDisk.space = space
    bag = tmp_path / 'bag'
    w = writer(bag, split_bytes=20_000, compression='',
               open_file=lambda p: FullDisk(p, create=True))
    with pytest.raises(RecordingStopped) as stopped:
        fill(w, 1000, size=300)
    assert stopped.value.disk_full
    committed = w.message_count
    with pytest.raises(RecordingStopped):
        w.write('/a', cdr('0:'), T0, T0)
    w.close()
    assert w.message_count == committed
    found = read_everywhere(bag)
    assert found == list(range(committed))
    assert committed > 0 or space < 5000
    recover(bag)
    assert read_everywhere(bag) == found


def _fill_small_disk(directory: str, pipe) -> None:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns = 0x00020000
    if libc.unshare(clone_newns) != 0:
        pipe.send('no mount namespace')
        return
    libc.mount(b'none', b'/', None, 0x44000, None)
    if libc.mount(b'none', directory.encode(), b'tmpfs', 0, b'size=600k') != 0:
        pipe.send('no tmpfs')
        return
    bag = Path(directory) / 'bag'
    w = writer(bag, split_bytes=256_000, compression='')
    try:
        fill(w, 100_000, size=1000)
    except RecordingStopped as stopped:
        w.close()
        pipe.send((stopped.disk_full, w.message_count, read_everywhere(bag)))


def test_full_tmpfs(tmp_path):
    context = multiprocessing.get_context('fork')
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_fill_small_disk, args=(str(tmp_path), send))
    child.start()
    send.close()
    try:
        result = receive.recv()
    finally:
        child.join(20)
    if isinstance(result, str):
        pytest.skip(result)
    disk_full, committed, found = result
    assert disk_full and committed > 200
    assert found == list(range(committed))


def test_limit_deletes_oldest_first_and_bags_stay_valid(tmp_path):
    w = writer(tmp_path / 'old', split_bytes=30_000, compression='')
    fill(w, 200, size=500)
    w.close()
    for i, path in enumerate(mcap_files(tmp_path / 'old')):
        os.utime(path, (1000 + i, 1000 + i))
    w = writer(tmp_path / 'new', split_bytes=30_000, compression='')
    fill(w, 200, size=500)
    for i, path in enumerate(mcap_files(tmp_path / 'new')):
        os.utime(path, (2000 + i, 2000 + i))
    counts = Counter(p.parent.name for p in tmp_path.glob('*/*.mcap'))
    used = sum(p.stat().st_blocks * 512 for p in tmp_path.glob('*/*.mcap'))
    deleted = enforce_limit(tmp_path, used - 40_000, w)
    assert [p.name for p in deleted] == ['old_0.mcap', 'old_1.mcap']
    rest = read_everywhere(tmp_path / 'old')
    assert rest == list(range(rest[0], 200)) and rest[0] > 0
    enforce_limit(tmp_path, 0, w)
    assert not (tmp_path / 'old').exists()
    assert len(mcap_files(tmp_path / 'new')) == 1 < counts['new']
    fill(w, 10, start=200)
    w.close()
    rest = read_everywhere(tmp_path / 'new')
    assert rest == list(range(rest[0], 210))


def test_reading_back_by_our_own_reader(tmp_path):
    w = writer(tmp_path / 'bag', split_bytes=30_000)
    fill(w, 300, size=300)
    for closed in (False, True):
        assert [number(m.data) for m in messages(tmp_path / 'bag')] == list(range(300))
        assert [number(m.data) for m in messages(tmp_path / 'bag', topics=['/b'])] == list(
            range(0, 300, 3))
        part = messages(tmp_path / 'bag', start_ns=T0 + 100 * MS, end_ns=T0 + 103 * MS)
        assert [number(m.data) for m in part] == [100, 101, 102]
        assert {t.name: t.msgtype for t in bag_topics(tmp_path / 'bag')} == {'/a': TYPE, '/b': TYPE}
        if not closed:
            w.close()


def test_the_open_file_uses_little_disk(tmp_path):
    w = writer(tmp_path / 'bag', split_bytes=64 << 20)
    fill(w, 10)
    path = w.current_file
    assert path is not None and path.stat().st_size == 64 << 20
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip('this file system has no sparse files')
    assert path.read_bytes()[-len(OPEN_END):] == OPEN_END
    w.close()
    assert path.stat().st_size < 10_000
