"""The bus: one worker thread per port, orders first, backoff, nobody waits for somebody else's device."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_device import WORLD, FakeConverter, FakeMeter, FakeParams, World

from bess_core.clock import Clock, SimClock
from bess_drivers.bus import BACKOFF_MAX_S, Bus, Client, InlineBus, Order, bus_for
from bess_drivers.device import BadChecksum, DeviceError, Disconnected, NoAnswer


class Executor:
    """Stands for the executor thread: runs what was posted, here."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Callable[[], None]] = queue.Queue()

    def run(self) -> None:
        while not self.queue.empty():
            self.queue.get()()

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 5.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            left = end - time.monotonic()
            assert left > 0, f'not within {timeout_s} s: {what}'
            try:
                self.queue.get(timeout=min(left, 0.01))()
            except queue.Empty:
                continue


class Seen:
    """What one client was told, and in which thread."""

    def __init__(self, name: str, clock: Clock, kind: type = FakeMeter, period: float = 0.05) -> None:
        self.world = WORLD[name] = World()
        self.world.now = clock.now
        self.readings: list[Any] = []
        self.errors: list[DeviceError] = []
        self.identities: list[Any] = []
        self.done: list[tuple[str, DeviceError | None]] = []
        self.threads: set[int] = set()
        self.device = kind(FakeParams(name))
        self.client = Client(
            name, self.device, lambda: self.device.read(clock.now()), period, self._take(self.readings),
            self._take(self.errors), self._take(self.identities))

    def _take(self, into: list[Any]) -> Callable[[Any], None]:
        def take(value: Any) -> None:
            self.threads.add(threading.get_ident())
            into.append(value)

        return take

    def order(self, name: str, run: Callable[[], None], expires: float = float('inf')) -> Order:
        return Order(name, run, lambda error: self.done.append((name, error)), expires)


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.fixture
def buses() -> Iterator[list[Bus]]:
    made: list[Bus] = []
    yield made
    for bus in made:
        bus.stop()
        assert not bus._worker.is_alive()


# -- on simulated time: exact ------------------------------------------------------------------------


@pytest.fixture
def sim(executor: Executor) -> tuple[SimClock, InlineBus]:
    clock = SimClock()
    return clock, InlineBus(clock, executor.queue.put)


def run_to(clock: SimClock, bus: InlineBus, executor: Executor, end: float, step: float = 0.01) -> None:
    for _ in range(round((end - clock.now()) / step)):
        clock.set(clock.now() + step)
        bus.run_due()
        executor.run()


def test_polls_stay_on_the_grid(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    bus.add(seen.client)
    bus.run_due()
    run_to(clock, bus, executor, 1.0)
    times = [t for n, t in seen.world.calls if n == 'read']
    assert times == pytest.approx([0.1 * i for i in range(11)], abs=0.011)
    assert len(seen.readings) == 11
    assert seen.client.counters.requests == seen.client.counters.ok == 11
    assert [n for n, _ in seen.world.calls[:3]] == ['open', 'identify', 'read']
    assert seen.world.count('open') == seen.world.count('identify') == 1


def test_backoff_doubles_up_to_a_cap_and_starts_anew(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    seen.world.fail_open = lambda: Disconnected('refused')
    bus.add(seen.client)
    run_to(clock, bus, executor, 80.0, 0.05)
    times = [t for n, t in seen.world.calls if n == 'open']
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert gaps[:6] == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0, 8.0], abs=0.06)
    assert max(gaps) <= BACKOFF_MAX_S + 0.06
    assert gaps[-1] == pytest.approx(BACKOFF_MAX_S, abs=0.06)
    assert seen.client.counters.errors == {'disconnected': len(times)}
    assert len(seen.errors) == len(times)
    seen.world.fail_open = None
    run_to(clock, bus, executor, clock.now() + BACKOFF_MAX_S + 0.1, 0.05)
    assert seen.readings
    seen.world.fail = lambda: NoAnswer('silent')
    start = clock.now()
    run_to(clock, bus, executor, start + 1.0, 0.05)
    tries = [t - start for n, t in seen.world.calls if n == 'open' and t > start]
    assert tries[0] < 0.5, 'after a good poll the backoff is short again'


def test_a_wrong_answer_keeps_the_connection_and_the_grid(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.3)
    seen.world.fail = lambda: BadChecksum('crc')
    run_to(clock, bus, executor, 1.0)
    assert seen.world.count('open') == 1
    assert seen.world.count('close') == 0
    assert seen.client.counters.errors['checksum'] >= 6
    seen.world.fail = None
    good = len(seen.readings)
    run_to(clock, bus, executor, 1.2)
    assert len(seen.readings) >= good + 1


def test_after_a_loss_the_device_is_identified_anew(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock)
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.1)
    seen.world.fail = lambda: Disconnected('unplugged')
    run_to(clock, bus, executor, 0.2)
    seen.world.fail = None
    run_to(clock, bus, executor, 1.0)
    assert len(seen.identities) == 2, 'another device may have been plugged in'
    assert seen.client.counters.reconnects >= 1


def test_an_order_for_a_device_that_is_away_expires_or_is_carried_out(
    sim: tuple[SimClock, InlineBus], executor: Executor
) -> None:
    clock, bus = sim
    seen = Seen('a', clock, FakeConverter)
    seen.world.fail_open = lambda: Disconnected('away')
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.02)
    bus.order(seen.client, seen.order('soon', lambda: seen.device.write_power(1.0, 0.0, 1.0), clock.now() + 0.1))
    bus.order(seen.client, seen.order('late', lambda: seen.device.write_power(2.0, 0.0, 1.0), clock.now() + 30.0))
    run_to(clock, bus, executor, 0.2)
    seen.world.fail_open = None
    run_to(clock, bus, executor, 2.0)
    assert [w[0] for w in seen.world.writes] == [2.0], 'an expired order must not be carried out'
    assert [(name, error is None) for name, error in seen.done] == [('soon', False), ('late', True)]


def test_a_newer_order_replaces_a_waiting_one_of_its_name(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, FakeConverter)
    seen.world.fail_open = lambda: Disconnected('away')
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.02)
    for power in (1.0, 2.0, 3.0):
        bus.order(seen.client, seen.order('power', lambda p=power: seen.device.write_power(p, 0.0, 1.0)))
    bus.order(seen.client, seen.order('stop', seen.device.stop))
    seen.world.fail_open = None
    run_to(clock, bus, executor, 1.0)
    assert [w[0] for w in seen.world.writes] == [3.0]
    assert seen.world.stops == 1
    assert seen.client.counters.writes == 2


def test_poll_now_and_lazy_polling(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=float('inf'))
    bus.add(seen.client)
    bus.run_due()
    run_to(clock, bus, executor, 5.0, 0.1)
    assert len(seen.readings) == 1, 'once at start, then only on request'
    bus.poll_now(seen.client)
    executor.run()
    assert len(seen.readings) == 2


def test_a_defect_in_a_driver_is_an_error_of_that_device_only(
    sim: tuple[SimClock, InlineBus], executor: Executor
) -> None:
    clock, bus = sim
    bad, good = Seen('bad', clock, FakeConverter), Seen('good', clock)
    bad.world.fail = lambda: ZeroDivisionError('scale')
    for seen in (bad, good):
        bus.add(seen.client)
    run_to(clock, bus, executor, 0.5)
    assert str(bad.errors[0]) == 'ZeroDivisionError: scale'
    assert len(good.readings) > 5
    bad.world.fail = None
    run_to(clock, bus, executor, 0.6)
    assert bad.readings
    bad.world.fail_writes = lambda: KeyError('register')
    bus.order(bad.client, bad.order('write', lambda: bad.device.write_power(1.0, 0.0, 1.0)))
    run_to(clock, bus, executor, 0.7)
    assert isinstance(bad.done[0][1], DeviceError)


# -- on real time: threads ---------------------------------------------------------------------------


def test_io_runs_in_the_bus_thread_and_results_in_the_executor(executor: Executor, buses: list[Bus]) -> None:
    clock = Clock()
    bus = Bus('one', clock, executor.queue.put)
    buses.append(bus)
    seen = Seen('a', clock, FakeConverter)
    bus.add(seen.client)
    executor.until(lambda: len(seen.readings) >= 3, 'readings')
    bus.order(seen.client, seen.order('power', lambda: seen.device.write_power(7.0, 0.0, 1.0)))
    executor.until(lambda: seen.done, 'order')
    assert seen.done == [('power', None)]
    assert seen.world.threads == {'bus one'}
    assert seen.threads == {threading.get_ident()}


def test_a_slow_device_does_not_delay_another_bus(executor: Executor, buses: list[Bus]) -> None:
    clock = Clock()
    slow, quick = Seen('slow', clock), Seen('quick', clock, period=0.02)
    for seen in (slow, quick):
        bus = Bus(seen.client.name, clock, executor.queue.put)
        buses.append(bus)
        bus.add(seen.client)
    executor.until(lambda: slow.readings, 'first readings')
    slow.world.hold.clear()
    assert slow.world.waiting.wait(5.0)
    before = len(quick.readings)
    executor.until(lambda: len(quick.readings) >= before + 10, 'the other bus goes on', 2.0)
    assert len(slow.errors) == 0
    held = len(slow.readings)
    slow.world.hold.set()
    executor.until(lambda: len(slow.readings) > held, 'and the slow one again')


def test_orders_go_before_polls(executor: Executor, buses: list[Bus]) -> None:
    clock = Clock()
    bus = Bus('one', clock, executor.queue.put)
    buses.append(bus)
    many = [Seen(f'm{i}', clock, period=0.02) for i in range(3)]
    target = Seen('target', clock, FakeConverter, period=10.0)
    for seen in (*many, target):
        bus.add(seen.client)
    executor.until(lambda: target.readings and all(s.readings for s in many), 'all are polled')
    many[0].world.hold.clear()
    assert many[0].world.waiting.wait(5.0)
    time.sleep(0.05)  # the others are overdue by now, that is the point
    marks = [len(s.world.calls) for s in many[1:]]
    bus.order(target.client, target.order('power', lambda: target.device.write_power(7.0, 0.0, 1.0)))
    many[0].world.hold.set()
    executor.until(lambda: target.done, 'order')
    ordered = next(t for n, t in target.world.calls if n == 'write')
    for seen, mark in zip(many[1:], marks, strict=True):
        after = [t for _, t in seen.world.calls[mark:]]
        assert not after or after[0] >= ordered, 'a poll went before a waiting order'


def test_removal_sends_what_waits_and_then_closes(executor: Executor, buses: list[Bus]) -> None:
    clock = Clock()
    bus = Bus('one', clock, executor.queue.put)
    buses.append(bus)
    seen = Seen('a', clock, FakeConverter)
    bus.add(seen.client)
    executor.until(lambda: seen.readings, 'reading')
    seen.world.hold.clear()
    assert seen.world.waiting.wait(5.0)
    bus.order(seen.client, seen.order('stop', seen.device.stop))
    bus.remove(seen.client)
    seen.world.hold.set()
    executor.until(lambda: seen.world.count('close'), 'closed')
    assert seen.world.stops == 1
    executor.until(lambda: bus.empty, 'empty')
    told = len(seen.readings)
    executor.run()
    assert len(seen.readings) == told, 'a removed client is told nothing any more'


def test_stop_ends_the_thread_quickly_and_closes_all(executor: Executor) -> None:
    clock = Clock()
    bus = Bus('one', clock, executor.queue.put)
    seen = [Seen(f'{i}', clock, FakeConverter, period=60.0) for i in range(3)]
    for one in seen:
        bus.add(one.client)
    executor.until(lambda: all(s.readings for s in seen), 'readings')
    bus.order(seen[0].client, seen[0].order('stop', seen[0].device.stop))
    started = time.monotonic()
    bus.stop()
    assert time.monotonic() - started < 1.0
    assert not bus._worker.is_alive()
    assert seen[0].world.stops == 1
    assert all(s.world.count('close') == 1 for s in seen)


def test_one_bus_per_port(executor: Executor) -> None:
    shared: dict[str, Any] = {}
    clock = Clock()
    try:
        one = bus_for(shared, 'rtu:/dev/ttyUSB0?baud=9600', clock, executor.queue.put)
        assert bus_for(shared, 'rtu:/dev/ttyUSB0?baud=9600&parity=E', clock, executor.queue.put) is one
        assert bus_for(shared, 'rtu:/dev/ttyUSB1', clock, executor.queue.put) is not one
    finally:
        for bus in shared['buses'].values():
            bus.stop()
    assert type(bus_for({}, 'x', SimClock(), executor.queue.put)) is InlineBus


# -- slow points, repeated orders, fairness ----------------------------------------------------------


def test_slow_requests_go_in_turn_and_only_when_nothing_else_is_due(
        sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    log: list[str] = []
    seens = []
    for name in 'ab':
        seen = Seen(name, clock, period=0.1)
        poll = seen.client.poll
        seen.client.poll = lambda name=name, poll=poll: (log.append(f'poll {name}'), poll())[1]
        seen.client.slow = lambda now, name=name: (log.append(f'slow {name}'), now)[1]  # always due
        bus.add(seen.client)
        seens.append(seen)
    run_to(clock, bus, executor, 1.0)
    slow = [x for x in log if x.startswith('slow')]
    assert slow[:6] == ['slow a', 'slow b'] * 3
    assert len(slow) >= 80  # one per look at the bus
    for before, what in zip(log, log[1:], strict=False):
        assert (before, what) != ('slow a', 'slow a')
    assert log.count('poll a') == log.count('poll b') >= 10


def test_a_slow_request_that_fails_is_counted_and_comes_later(
        sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)

    def refused(now: float) -> float:
        raise BadChecksum('crc')

    seen.client.slow = refused
    bus.add(seen.client)
    run_to(clock, bus, executor, 2.0)
    assert 4 <= seen.client.counters.errors['checksum'] <= 9
    assert len(seen.readings) >= 19, 'the polls go on'


def test_a_failed_order_is_tried_again_without_holding_the_bus(
        sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.05)
    tries: list[float] = []

    def run() -> None:
        tries.append(clock.now())
        if len(tries) < 3:
            raise BadChecksum('crc')

    order = seen.order('o', run)
    order.attempts, order.wait = 5, 0.5
    bus.order(seen.client, order)
    run_to(clock, bus, executor, 3.0)
    assert tries == pytest.approx([0.05, 0.55, 1.05], abs=0.02)
    assert seen.done == [('o', None)]
    assert len(seen.readings) >= 25

    def never() -> None:
        raise BadChecksum('crc')

    order = seen.order('n', never)
    order.attempts, order.wait = 3, 0.1
    bus.order(seen.client, order)
    run_to(clock, bus, executor, 4.0)
    assert [(n, type(e)) for n, e in seen.done[1:]] == [('n', BadChecksum)]


def test_a_newer_order_replaces_the_repetition_of_an_older_one(
        sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    bus.add(seen.client)
    run_to(clock, bus, executor, 0.05)
    done: list[str] = []

    def fail() -> None:
        raise BadChecksum('crc')

    old = seen.order('power', fail)
    old.attempts, old.wait = 9, 0.2
    bus.order(seen.client, old)
    bus.order(seen.client, seen.order('power', lambda: done.append('new')))
    run_to(clock, bus, executor, 3.0)
    assert done == ['new']
    assert [e is None for _, e in seen.done] == [True]


def test_a_unit_that_answers_slowly_does_not_starve_the_others(executor: Executor, buses: list[Bus]) -> None:
    clock = Clock()
    bus = Bus('line', clock, executor.queue.put)
    buses.append(bus)
    slow, quick = Seen('slow', clock, period=0.02), Seen('quick', clock, period=0.02)
    poll = slow.client.poll
    slow.client.poll = lambda: (time.sleep(0.05), poll())[1]
    bus.add(slow.client)
    bus.add(quick.client)
    executor.until(lambda: len(slow.readings) >= 10, 'polls of the slow one')
    assert len(quick.readings) >= len(slow.readings) - 1


def test_round_trip_percentiles(sim: tuple[SimClock, InlineBus], executor: Executor) -> None:
    clock, bus = sim
    seen = Seen('a', clock, period=0.1)
    assert seen.client.counters.round_trip(0.5) != seen.client.counters.round_trip(0.5)  # NaN: none yet
    seen.client.counters.round_trips.extend([0.01] * 97 + [0.5] * 3)
    assert seen.client.counters.round_trip(0.5) == 0.01
    assert seen.client.counters.round_trip(0.99) == 0.5


def test_orders_may_come_while_the_worker_looks_for_some() -> None:
    """An order is added by the executor thread at any moment; the worker must not stumble over it."""
    seen, clock = Seen('crowded', Clock()), Clock()
    client, failures, stop = seen.client, list[str](), threading.Event()
    client.is_open = True

    def look() -> None:
        while not stop.is_set():
            try:
                client.has_order(clock.now())
            except RuntimeError as error:
                failures.append(str(error))
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    worker = threading.Thread(target=look)
    worker.start()
    try:
        for _ in range(300):
            client.orders = {}
            for k in range(20):
                order = seen.order(f'{k}', lambda: None)
                order.not_before = float('inf')  # all of them are looked at
                client.orders[order.name] = order
    finally:
        stop.set()
        worker.join(5)
        sys.setswitchinterval(interval)
    assert not failures
