"""Members and their aggregate in processes of their own: killed, stopped, restarted with another capacity."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bess.msg import BatteryStatus
from bess.srv import ListSchedule, ScheduleSetPower
from bess_core import qos
from bess_core.convert import wall_stamp

SITE = """
site: {name: site, heartbeat: 0.2, heartbeat_timeout: 60.0}
nodes:
  a: {type: bucket, process: pa, poll: 0.1, max_age: 1.0, invalid_after: 3.0, rewrite: 0.2}
  b: {type: bucket, process: pb, poll: 0.1, max_age: 1.0, invalid_after: 3.0, rewrite: 0.2}
  all: {type: aggregate, process: top, members: [a, b], max_age: 1.0, invalid_after: 3.0, lease: 1.0, limit: sum}
"""
DIVIDED = """
site: {name: site, heartbeat: 0.2, heartbeat_timeout: 60.0}
nodes:
  a: {type: bucket, process: pa, poll: 0.1, max_age: 1.0, invalid_after: 3.0, rewrite: 0.2}
  b: {type: bucket, process: pb, poll: 0.1, max_age: 1.0, invalid_after: 3.0, rewrite: 0.2}
  c: {type: bucket, process: pb, poll: 0.1, max_age: 1.0, invalid_after: 3.0, rewrite: 0.2}
  stack: {type: pack, process: top, members: [a, b], max_age: 1.0, invalid_after: 3.0, lease: 1.0}
  split:
    type: partition
    process: top
    source: c
    max_age: 1.0
    invalid_after: 3.0
    lease: 1.0
    children:
      x: {energy: 0.5, charge_power: 0.5, discharge_power: 0.5}
      y: {energy: 0.5, charge_power: 0.5, discharge_power: 0.5}
"""
LONG_S = 30.0  # a process starts in a few s, on a busy machine in more
MOVED_S = 3.0  # max_age of a member, a tick, and the way of an order to the device and of its effect back


class Processes:
    """One operating-system process per battery, and what they say."""

    def __init__(self, graph: Any, folder: Path, target: Path, text: str, names: Sequence[str]) -> None:
        self.graph, self.folder = graph, folder
        self.file = folder / 'site.yaml'
        self.file.write_text(text)
        self.env = {**os.environ, 'PYTHONPATH': str(target), 'PYTHONFAULTHANDLER': '1'}
        self.running: dict[str, Any] = {}
        self.heard = {n: graph.listen(BatteryStatus, f'{n}/status', qos.MEASUREMENT) for n in names}

    def start(self, process: str, *settings: str) -> None:
        self.running[process] = subprocess.Popen(
            [sys.executable, '-m', 'bess_core.container', '--site', str(self.file), '--process', process, '--state',
             str(self.folder / 'state'), '--bring-up', *(w for s in settings for w in ('--set', s))], env=self.env)

    def signal(self, process: str, number: int) -> None:
        self.running[process].send_signal(number)

    def kill(self, process: str) -> None:
        self.signal(process, signal.SIGKILL)
        self.running.pop(process).wait(LONG_S)

    def last(self, name: str) -> Any:
        return self.heard[name][-1] if self.heard[name] else BatteryStatus()

    def power(self, name: str) -> float:
        return float(self.last(name).power)

    def wait(self, condition: Any, what: str, seconds: float = LONG_S) -> float:
        """s that it took."""
        began = time.monotonic()
        self.graph.wait(condition, lambda: f'{what}: ' + '; '.join(
            f'{n} {self.power(n):.0f} W {self.last(n).members_usable} usable {list(self.last(n).missing)}'
            for n in self.heard), seconds)
        return time.monotonic() - began

    def shares(self, a: float, b: float) -> bool:
        return abs(self.power('a') - a) < 2.0 and abs(self.power('b') - b) < 2.0

    def list(self, name: str) -> Any:
        """The schedule; asked again, as the middleware still knows the service of the killed process for a while."""
        client = self.graph.peer.create_client(ListSchedule, f'{name}/list_schedule')
        answers: list[Any] = []

        def ask(_: Any = None) -> None:
            client.call_async(ListSchedule.Request()).add_done_callback(lambda f: answers.append(f.result()))

        again = self.graph.ticker.every(1.0, ask)
        try:
            self.wait(lambda: answers, 'the schedule')
        finally:
            again.cancel()
            self.graph.peer.destroy_client(client)
        return answers[0].entries

    def end(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(LONG_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # it tells where each of its threads is
                process.wait(LONG_S)
                raise


@pytest.fixture
def processes(graph: Any, tmp_path: Path, example_target: Path) -> Iterator[Processes]:
    made = Processes(graph, tmp_path, example_target, SITE, ('a', 'b', 'all'))
    try:
        for process in ('pa', 'pb', 'top'):
            made.start(process)
        made.wait(lambda: made.last('all').members_usable == 2 and made.last('all').quality == 0, 'all up')
        yield made
    finally:
        made.end()


@pytest.fixture
def divided(graph: Any, tmp_path: Path, example_target: Path) -> Iterator[Processes]:
    made = Processes(graph, tmp_path, example_target, DIVIDED, ('a', 'b', 'c', 'stack', 'x', 'y'))
    try:
        for process in ('pa', 'pb', 'top'):
            made.start(process)
        made.wait(lambda: made.last('stack').members_usable == 2 and all(
            made.heard[n] and made.last(n).quality == 0 and made.last(n).max_charge_power > 0.0
            for n in ('stack', 'x', 'y')), 'all up')
        yield made
    finally:
        made.end()


def test_whoever_is_killed_or_stopped_the_others_go_on_and_nothing_runs_unasked(graph: Any,
                                                                               processes: Processes) -> None:
    p = processes
    wall = graph.clock.wall()
    asked = graph.call(ScheduleSetPower, 'all/schedule_set_power', ScheduleSetPower.Request(
        power=-400.0, start=wall_stamp(wall), end=wall_stamp(wall + 600.0), request_id='evening'))
    assert asked.accepted, asked.message
    p.wait(lambda: p.shares(-200.0, -200.0), 'both carry half')

    # A member that hangs: its share moves, the status names it; then it is back.
    p.signal('pb', signal.SIGSTOP)
    p.wait(lambda: abs(p.power('a') + 400.0) < 2.0, 'the other one carries all', MOVED_S)
    assert p.last('all').members_usable == 1
    assert any(m.startswith(('b: stale', 'b: invalid')) for m in p.last('all').missing)
    p.signal('pb', signal.SIGCONT)
    p.wait(lambda: p.last('all').members_usable == 2 and p.shares(-200.0, -200.0), 'it takes part again')

    # A member that is killed, and comes back with half of its capacity.
    full = p.last('all').energy_full
    p.kill('pb')
    p.wait(lambda: abs(p.power('a') + 400.0) < 2.0 and p.last('all').members_usable == 1, 'as before', MOVED_S)
    p.start('pb', 'nodes.b.capacity=50.0', 'nodes.b.charge=25.0')
    p.wait(lambda: p.last('all').members_usable == 2 and abs(p.last('all').energy_full / full - 0.75) < 0.01,
           'the smaller one counts')
    p.wait(lambda: abs(p.power('all') + 400.0) < 3.0 and abs(p.power('a') - 2.0 * p.power('b')) < 10.0 < -p.power('b'),
           'by energy')

    # The aggregate hangs: leases end, members rest by themselves; it goes on where it was.
    p.signal('top', signal.SIGSTOP)
    p.wait(lambda: p.shares(0.0, 0.0), 'members rest when nobody renews', MOVED_S)
    p.signal('top', signal.SIGCONT)
    p.wait(lambda: abs(p.power('a') + p.power('b') + 400.0) < 3.0, 'the schedule goes on')

    # The aggregate is killed: the same, and its journal has the request, once.
    p.kill('top')
    p.wait(lambda: p.shares(0.0, 0.0), 'members rest when nobody renews', MOVED_S)
    p.start('top')
    p.wait(lambda: abs(p.power('a') + p.power('b') + 400.0) < 3.0, 'the schedule goes on after the restart')
    entries = p.list('all')
    assert [(e.event_id, e.request_id, e.value, e.running) for e in entries] == [
        (asked.event_id, 'evening', -400.0, True)]


def test_pack_and_partition_whose_module_and_source_hang_or_die(graph: Any, divided: Processes) -> None:
    """One process holds a module of the pack and the source of the partition."""
    p = divided
    wall = graph.clock.wall()
    for name, power in (('stack', -400.0), ('x', -200.0), ('y', -100.0)):
        asked = graph.call(ScheduleSetPower, f'{name}/schedule_set_power', ScheduleSetPower.Request(
            power=power, start=wall_stamp(wall), end=wall_stamp(wall + 600.0), request_id=name))
        assert asked.accepted, asked.message

    def runs() -> bool:
        return p.shares(-200.0, -200.0) and abs(p.power('c') + 300.0) < 2.0

    p.wait(runs, 'both strings and both children')
    # It hangs: the string is left out and the other one carries all; the children say that they know nothing.
    p.signal('pb', signal.SIGSTOP)
    p.wait(lambda: abs(p.power('a') + 400.0) < 2.0 and p.last('stack').members_usable == 1, 'other string', MOVED_S)
    assert any(m.startswith(('b: stale', 'b: invalid')) for m in p.last('stack').missing)
    p.wait(lambda: all(p.last(n).quality == 2 and any('no status from c' in r for r in p.last(n).limit_reasons)
                       for n in ('x', 'y')), 'the children are INVALID and say why', 3.0 + MOVED_S)
    assert p.last('x').max_discharge_power == 0.0
    p.signal('pb', signal.SIGCONT)
    p.wait(lambda: p.last('x').quality == 0 and runs(), 'all as before')

    # It is killed, and comes back with half of its capacity, half full.
    stack, child = p.last('stack').energy_full, p.last('x').energy_full
    p.kill('pb')
    p.wait(lambda: abs(p.power('a') + 400.0) < 2.0 and p.last('stack').members_usable == 1, 'as before', MOVED_S)
    p.wait(lambda: p.last('x').quality == 2, 'the children are INVALID', 3.0 + MOVED_S)
    p.start('pb', *(f'nodes.{n}.{key}={value}' for n in 'bc' for key, value in (('capacity', 50.0), ('charge', 25.0))))
    p.wait(lambda: p.last('stack').members_usable == 2 and abs(p.last('stack').energy_full / stack - 0.75) < 0.01,
           'the smaller module counts')
    p.wait(lambda: p.last('x').quality == 0 and abs(p.last('x').energy_full / child - 0.5) < 0.01, 'smaller children')
    p.wait(lambda: abs(p.last('x').energy + p.last('y').energy - p.last('c').energy) < 1.0, 'they add up')
    p.wait(lambda: abs(p.power('stack') + 400.0) < 3.0 and abs(p.power('a') - 2.0 * p.power('b')) < 10.0
           and abs(p.power('c') + 300.0) < 2.0, 'the schedules go on, the pack by its energies')

    # Pack and partition hang: their members rest by themselves; then the schedules go on, once.
    p.signal('top', signal.SIGSTOP)
    p.wait(lambda: p.shares(0.0, 0.0) and abs(p.power('c')) < 2.0, 'all rest when nobody renews', MOVED_S)
    p.signal('top', signal.SIGCONT)
    p.wait(lambda: abs(p.power('a') + p.power('b') + 400.0) < 3.0 and abs(p.power('c') + 300.0) < 2.0, 'they go on')
    assert [(e.request_id, e.value, e.running) for e in p.list('x')] == [('x', -200.0, True)]
