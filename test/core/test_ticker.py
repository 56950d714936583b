"""The ticker: a fixed grid without drift; missed points are counted, never replayed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.clock import Clock, SimClock
from bess_core.ticker import RealTicker, SimTicker, Tick


class Executor:
    """Runs in this thread what the ticker posts."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Callable[[], None]] = queue.Queue()

    def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            left = end - time.monotonic()
            assert left > 0, 'too late'
            try:
                self.queue.get(timeout=min(left, 0.01))()
            except queue.Empty:
                continue


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.fixture
def ticker(executor: Executor) -> Iterator[RealTicker]:
    made = RealTicker(Clock(), executor.queue.put)
    yield made
    made.stop()
    assert not made._worker.is_alive()


def test_calls_are_on_the_grid_without_drift_and_in_the_executor_thread(
    executor: Executor, ticker: RealTicker
) -> None:
    ticks: list[Tick] = []
    threads: set[int] = set()
    handle = ticker.every(0.02, lambda t: (ticks.append(t), threads.add(threading.get_ident())))
    executor.until(lambda: len(ticks) >= 20)
    assert threads == {threading.get_ident()}
    for tick in ticks:
        assert tick.due == pytest.approx(handle.start + tick.index * 0.02, abs=1e-9)
        assert tick.late >= 0.0
    assert [t.index for t in ticks] == sorted({t.index for t in ticks})
    assert ticks[-1].index - ticks[0].index + 1 == len(ticks) + sum(t.missed for t in ticks[1:])
    assert sorted(t.late for t in ticks)[len(ticks) // 2] < 0.02


def test_points_that_are_missed_while_busy_are_counted_not_replayed(executor: Executor, ticker: RealTicker) -> None:
    ticks: list[Tick] = []
    ticker.every(0.01, ticks.append)
    executor.until(lambda: len(ticks) >= 2)
    stop = time.monotonic() + 0.2  # the executor is busy with something else
    while time.monotonic() < stop:
        time.sleep(0.01)
    before = len(ticks)
    assert executor.queue.qsize() <= 1, 'calls must not pile up'
    executor.until(lambda: len(ticks) >= before + 3)
    missed = sum(t.missed for t in ticks[before:])
    assert 15 <= missed <= 30
    assert ticks[-1].index == len(ticks) + sum(t.missed for t in ticks)
    assert ticks[before].late > 0.1


def test_cancel_also_stops_a_call_that_is_already_posted(executor: Executor, ticker: RealTicker) -> None:
    ticks: list[Tick] = []
    handle = ticker.every(0.01, ticks.append)
    posted = executor.queue.get(timeout=5.0)
    handle.cancel()
    posted()
    assert ticks == []
    other: list[Tick] = []
    ticker.every(0.01, other.append)
    executor.until(lambda: len(other) >= 3)
    assert ticks == []


def test_several_periods_side_by_side(executor: Executor, ticker: RealTicker) -> None:
    counts = {0.01: 0, 0.05: 0}
    for period in counts:
        ticker.every(period, lambda t, p=period: counts.__setitem__(p, t.index))
    executor.until(lambda: counts[0.05] >= 6)
    assert counts[0.01] == pytest.approx(5 * counts[0.05], abs=8)


def test_nothing_is_called_after_stop(executor: Executor) -> None:
    ticker = RealTicker(Clock(), executor.queue.put)
    ticks: list[Tick] = []
    ticker.every(0.005, ticks.append)
    executor.until(lambda: len(ticks) >= 2)
    ticker.stop()
    assert not ticker._worker.is_alive()
    count = len(ticks)
    while not executor.queue.empty():
        executor.queue.get()()
    assert len(ticks) == count


@pytest.mark.parametrize('period', [0.0, -1.0, float('nan')])
def test_a_period_must_be_above_zero(ticker: RealTicker, period: float) -> None:
    for one in (ticker, SimTicker(SimClock())):
        with pytest.raises(ValueError, match='period must be above 0 s'):
            one.every(period, lambda _: None)


# -- simulated ---------------------------------------------------------------------------------------


def conduct(ticker: SimTicker, end: float) -> None:
    while (due := ticker.next_due()) is not None and due[0] <= end + 1e-9:
        ticker.run(*due)


def test_simulated_time_moves_to_what_is_due_phase_by_phase() -> None:
    clock = SimClock()
    ticker = SimTicker(clock)
    order: list[tuple[str, float]] = []
    ticker.every(1.0, lambda t: order.append(('decide', clock.now())), phase=1)
    ticker.every(0.5, lambda t: order.append(('measure', clock.now())), phase=0)
    conduct(ticker, 2.0)
    assert order == [('measure', 0.5), ('measure', 1.0), ('decide', 1.0), ('measure', 1.5), ('measure', 2.0),
                     ('decide', 2.0)]


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=5), st.floats(1.0, 50.0))
def test_no_simulated_call_is_lost_and_none_drifts(periods: list[float], end: float) -> None:
    clock = SimClock()
    ticker = SimTicker(clock)
    seen: list[list[Tick]] = [[] for _ in periods]
    for period, ticks in zip(periods, seen, strict=True):
        ticker.every(period, ticks.append)
    conduct(ticker, end)
    for period, ticks in zip(periods, seen, strict=True):
        assert [t.index for t in ticks] == list(range(1, len(ticks) + 1))
        assert abs(len(ticks) - end / period) <= 1.0
        assert all(t.due == pytest.approx(t.index * period, rel=1e-12) for t in ticks)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 2),
                          st.none() | st.sampled_from([2.0, 3.0, 4.5])), max_size=8))
def test_simulated_calls_come_in_the_order_of_time_phase_and_making(work: list[Any]) -> None:
    """Each: when it is made, its period and phase, and from when on it is cancelled. Times are exact."""
    clock = SimClock()
    ticker, made = SimTicker(clock), list[tuple[float, int, int]]()
    steps = sorted({0.0, 6.0} | {m for m, *_ in work} | {c for *_, c in work if c is not None})
    handles: dict[int, Any] = {}
    for step in steps:
        conduct(ticker, step)
        clock.set(max(step, clock.now()))
        for number, (at, period, phase, cancelled) in enumerate(work):
            if at == step:
                def call(tick: Tick, number: int = number, phase: int = phase) -> None:
                    assert tick.due == clock.now()
                    made.append((tick.due, phase, number))

                handles[number] = ticker.every(period, call, phase=phase)
            if cancelled == step and number in handles:
                handles[number].cancel()
    # Those that begin later were made later; with the same number as above only where they begin together.
    order = {number: k for k, number in enumerate(handles)}
    expected = sorted(
        (start + k * period, phase, order[number]) for number, (start, period, phase, cancelled) in enumerate(work)
        for k in range(1, 13) if start + k * period <= (
            6.0 if cancelled is None or cancelled < start else cancelled))
    assert [(at, phase, order[number]) for at, phase, number in made] == expected


def test_a_simulated_year_does_not_drift() -> None:
    clock = SimClock()
    ticker = SimTicker(clock)
    last: list[Tick] = []
    ticker.every(900.1, lambda t: last.__setitem__(slice(None), [t]))
    conduct(ticker, 365 * 86400.0)
    assert last[0].due == pytest.approx(last[0].index * 900.1, abs=1e-6)
    handle = ticker.every(1.0, lambda _: None)
    handle.cancel()
    ticker.stop()
    assert ticker.next_due() is None


def test_one_that_fails_does_not_take_the_others_of_the_moment_along(executor: Executor, ticker: RealTicker) -> None:
    called: list[str] = []

    def fails(_: Tick) -> None:
        called.append('fails')
        raise RuntimeError('on purpose')

    with ticker._changed:  # all due at one moment
        ticker.every(0.05, lambda _: called.append('before'))
        ticker.every(0.05, fails)
        ticker.every(0.05, lambda _: called.append('behind'))
    with pytest.raises(RuntimeError, match='on purpose'):
        executor.until(lambda: False)
    executor.until(lambda: 'behind' in called)
    assert called[:3] == ['before', 'fails', 'behind']
