from __future__ import annotations

import errno
import os
import queue
import threading
from math import pi

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_virtual import journal as module
from bess_virtual.journal import Committer, Journal, added, cancelled, decode, encode, parse
from bess_virtual.schedule import Request, Schedule


class Kept(Schedule):
    """A schedule whose requests are on disk before they are accepted, as the node has it."""

    def __init__(self, journal):
        super().__init__(journal.content.requests.values(), journal.content.next_id)
        self.journal = journal

    def add(self, *args, request_id='', **kwargs):
        made = self.make(*args, request_id=request_id, **kwargs)
        assert isinstance(made, Request), made
        try:
            self.journal.append(added(made))
        except OSError as error:
            return False, 0, str(error)
        return True, made.event_id, self.insert(made)

    def cancel(self, event_id):
        ids = self.ids(event_id)
        try:
            self.journal.append(cancelled(ids))
        except OSError as error:
            return False, 0, str(error)
        return True, self.remove(ids), ''


def reopen(path):
    journal = Journal(path)
    return journal, Kept(journal)


def test_schedule_survives_a_restart_bit_by_bit(tmp_path):
    path = tmp_path / 'schedule.jsonl'
    journal, schedule = reopen(path)
    schedule.add(pi, 0, 1e9 / 3, now=1 / 3, source='übér "quoted"\n')
    schedule.add(-0.1, 5, 6, now=1, is_power=True)
    schedule.add(2, 5, 7, now=1)
    schedule.cancel(3)
    before = schedule.entries(1)
    journal.close()
    journal, schedule = reopen(path)
    assert journal.content.problems == []
    assert schedule.entries(1) == before
    assert schedule.add(1, 5, 6, now=1)[1] == 4  # the id of the cancelled one is not used again
    schedule.cancel(0)
    journal.close()
    journal, schedule = reopen(path)
    assert len(schedule) == 0 and schedule.next_id == 5
    journal.close()


def test_every_truncation_recovers_to_the_last_whole_line(tmp_path):
    path = tmp_path / 'whole'
    journal, schedule = reopen(path)
    for i in range(4):
        schedule.add(i, 5, 10 + i, now=1)
    schedule.cancel(2)
    journal.close()
    data = path.read_bytes()
    whole = [i + 1 for i, byte in enumerate(data) if byte == 10]
    states = [sorted(parse(data[:end]).requests) for end in [0, *whole]]
    assert states == [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 3, 4]]
    for size in range(len(data) + 1):
        torn = tmp_path / 'torn'
        torn.write_bytes(data[:size])
        journal, schedule = reopen(torn)
        assert parse(torn.read_bytes()).problems == []  # the torn tail is gone from the file
        lines = sum(end <= size for end in whole)
        assert sorted(r.event_id for r in schedule.entries(1)) == states[lines]
        assert bool(journal.content.problems) == (size not in (0, *whole))
        # what is added next is not lost behind the torn tail
        accepted, event_id, _ = schedule.add(9, 5, 6, now=1)
        assert accepted and event_id > max(states[min(lines, 4)], default=0)
        journal.close()
        again = parse(torn.read_bytes())
        assert event_id in again.requests and again.problems == []


def test_damage_in_the_middle_is_reported_and_skipped(tmp_path):
    path = tmp_path / 'j'
    journal, schedule = reopen(path)
    for _ in range(3):
        schedule.add(1, 5, 6, now=1)
    journal.close()
    lines = path.read_bytes().split(b'\n')
    lines[1] = lines[1].replace(b'"value":1', b'"value":9')
    path.write_bytes(b'\n'.join(lines))
    journal, schedule = reopen(path)
    assert [r.event_id for r in schedule.entries(1)] == [1, 3]
    assert 'line 2 is damaged' in journal.content.problems[0]
    journal.close()


@settings(max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([
    b'{}', b'[1],"crc":1}', b'{"op":"add","crc":0}', b'\n', encode({'op': 'cancel', 'ids': 3}),
    encode({'op': 'add', 'id': 'x'}), encode({'no': 1}), encode({'op': 'next', 'id': 7})]))))
def test_any_bytes_can_be_read(pieces):
    content = parse(b''.join(pieces))
    assert content.requests == {}
    assert content.next_id >= 1


@pytest.mark.parametrize('position', range(40))
def test_a_flipped_bit_is_noticed(position):
    line = bytearray(encode({'op': 'cancel', 'ids': [1, 2, 3]}))[:-1]
    line[position % len(line)] ^= 4
    with pytest.raises(ValueError, match='.'):
        decode(bytes(line))


def test_accepted_only_after_fsync_and_refused_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / 'j'
    journal, schedule = reopen(path)
    synced = []
    real = os.fsync
    monkeypatch.setattr(module.os, 'fsync', lambda f: (synced.append(path.read_bytes()), real(f)))
    assert schedule.add(1, 5, 6, now=1)[0]
    assert b'"id":1' in synced[-1]

    def full(file, data):
        os_write(file, bytes(data)[:7])
        raise OSError(errno.ENOSPC, 'No space left on device')

    os_write = os.write
    monkeypatch.setattr(module.os, 'write', full)
    accepted, event_id, message = schedule.add(2, 5, 6, now=1)
    assert (accepted, event_id) == (False, 0) and 'No space left' in message
    accepted, count, message = schedule.cancel(1)
    assert (accepted, count) == (False, 0) and 'No space left' in message
    assert schedule.at(5).event_id == 1
    monkeypatch.undo()
    assert schedule.add(3, 5, 6, now=1)[0]
    assert parse(path.read_bytes()).problems == []
    journal.close()


def test_compaction_keeps_requests_and_ids(tmp_path):
    path = tmp_path / 'j'
    journal = Journal(path)
    schedule = Kept(journal)
    for i in range(20):
        schedule.add(i, 5, 100 if i == 3 else 50, now=1)
    for _ in range(1000):
        assert schedule.cancel(schedule.add(1, 60, 70, now=1)[1])[0]
    size = path.stat().st_size
    schedule.prune(55)
    assert journal.worth_compacting(len(schedule))
    journal.compact(schedule.all(), schedule.next_id)
    assert path.stat().st_size < size / 100
    schedule.add(1, 60, 70, now=55)
    journal.close()
    journal, schedule = reopen(path)
    assert journal.content.problems == []
    assert [r.event_id for r in schedule.entries(55)] == [4, 1021]
    assert schedule.next_id == 1022
    journal.close()


def test_second_process_is_kept_out(tmp_path):
    journal = Journal(tmp_path / 'j')
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / 'j')
    journal.compact([], 5)
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / 'j')
    journal.close()
    journal = Journal(tmp_path / 'j')
    assert journal.content.next_id == 5
    journal.close()


def test_callers_ids_stay_used_up_after_the_end_a_cancellation_and_a_compaction(tmp_path):
    path = tmp_path / 'j'
    journal, schedule = reopen(path)
    schedule.add(1, 5, 6, now=1, request_id='a')
    schedule.add(2, 5, 7, now=1, request_id='b')
    schedule.add(3, 5, 7, now=1)
    schedule.cancel(2)
    journal.close()
    journal, schedule = reopen(path)
    assert {k: r.event_id for k, r in journal.content.answered.items()} == {'a': 1, 'b': 2}
    assert journal.content.answered['b'].repeats(2.0, 5.0, 7.0, False)
    live = {r.event_id for r in schedule.all()}
    journal.compact(schedule.all(), schedule.next_id, [r for r in journal.content.answered.values()
                                                       if r.event_id not in live])
    journal.close()
    journal, schedule = reopen(path)
    assert {k: r.event_id for k, r in journal.content.answered.items()} == {'a': 1, 'b': 2}
    assert [r.event_id for r in schedule.all()] == [1, 3]
    journal.close()


def test_only_the_latest_callers_ids_are_remembered(monkeypatch):
    monkeypatch.setattr(module, 'ANSWERS', 3)
    lines = [encode(added(Request(i, 1.0, 2.0, 3.0, request_id=f'r{i}'))) for i in range(1, 6)]
    assert list(parse(b''.join(lines)).answered) == ['r3', 'r4', 'r5']


def test_a_crowd_of_records_shares_syncs_and_keeps_its_order(tmp_path, monkeypatch):
    posted = queue.Queue()
    journal = Journal(tmp_path / 'j')
    committer = Committer(journal, posted.put)
    syncs = []
    gate = threading.Event()
    real = os.fsync
    monkeypatch.setattr(module.os, 'fsync', lambda f: (gate.wait(10), syncs.append(f), real(f)))
    answers = []
    for i in range(1, 501):
        committer.submit(added(Request(i, 1.0, 2.0, 3.0)), lambda e, i=i: answers.append((i, e)))
    gate.set()
    for _ in range(500):
        posted.get(timeout=10)()
    assert answers == [(i, None) for i in range(1, 501)]
    assert len(syncs) <= 3
    committer.close()
    assert sorted(parse((tmp_path / 'j').read_bytes()).requests) == list(range(1, 501))


def test_a_full_disk_refuses_the_whole_batch_and_the_next_is_served(tmp_path, monkeypatch):
    posted = queue.Queue()
    committer = Committer(Journal(tmp_path / 'j'), posted.put)
    monkeypatch.setattr(module.os, 'write', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full')))
    answers = []
    committer.submit(added(Request(1, 1.0, 2.0, 3.0)), answers.append)
    posted.get(timeout=10)()
    assert 'full' in str(answers[0])
    monkeypatch.undo()
    committer.submit(added(Request(2, 1.0, 2.0, 3.0)), answers.append)
    posted.get(timeout=10)()
    assert answers[1] is None
    committer.close()
    assert sorted(parse((tmp_path / 'j').read_bytes()).requests) == [2]
