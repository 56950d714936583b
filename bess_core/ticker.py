"""Periodic work on a fixed monotonic grid, handed to the executor.

One thread per process waits on the monotonic clock (a wall-clock step neither skips nor replays
anything) and posts due work to the executor thread. `SimTicker` has no thread: `run` calls what is
due, in order.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Protocol

from .clock import Clock, SimClock


@dataclass(slots=True)
class Tick:
    """One due moment: `index` counts grid points since the start, `late` is s behind the grid."""

    index: int
    due: float  # s, site time of the grid point
    late: float  # s
    missed: int  # grid points that passed without a call since the last one


def _nothing(_: object) -> None:
    pass


class Handle:
    """Work that repeats until `cancel`."""

    __slots__ = ('beat', 'cancelled', 'fn', 'index', 'missed', 'period', 'queued', 'start')

    def __init__(self, period: float, fn: Callable[[Tick], object], start: float) -> None:
        self.period, self.fn, self.start = period, fn, start
        self.index = 0
        self.cancelled = False
        self.queued = False
        self.missed = 0
        self.beat: _Beat | None = None  # on simulated time

    def cancel(self) -> None:
        """No further calls. Safe from any thread."""
        self.cancelled = True
        self.fn = _nothing  # who is no more must not be kept alive until the next grid point
        if self.beat is not None:
            self.beat.thinned = True


class Ticker(Protocol):
    """Source of periodic calls in the executor thread."""

    def every(self, period: float, fn: Callable[[Tick], object], *, phase: int = 0) -> Handle:
        """Call `fn` each `period` s on a fixed grid; grid points missed while busy are counted, not replayed.

        `phase` orders calls of the same moment on simulated time: 0 measures, 1 decides.
        """

    def stop(self) -> None:
        """No further calls."""


class RealTicker:
    """Ticker on real time. `post(fn)` must run fn in the executor thread."""

    def __init__(self, clock: Clock, post: Callable[[Callable[[], None]], object]) -> None:
        self._clock, self._post = clock, post
        self._heap: list[tuple[float, int, Handle]] = []
        self._ids = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._worker = threading.Thread(target=self._run, name='ticker', daemon=True)
        self._worker.start()

    def every(self, period: float, fn: Callable[[Tick], object], *, phase: int = 0) -> Handle:
        """See `Ticker`."""
        if not period > 0.0:
            raise ValueError(f'period must be above 0 s, not {period}')
        handle = Handle(period, fn, self._clock.now())
        with self._changed:
            heapq.heappush(self._heap, (handle.start + period, next(self._ids), handle))
            self._changed.notify()
        return handle

    def stop(self) -> None:
        """End the thread; nothing is posted afterwards."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._worker.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                now = self._clock.now()
                due = self._take_due(now)
                if not due:
                    wait = self._heap[0][0] - now if self._heap else 1.0
                    self._changed.wait(max(0.0, min(wait, 1.0)))
            if due:  # one task for all of a moment: each costs about as much as a call
                self._post(partial(self._call_all, due))

    def _take_due(self, now: float) -> list[tuple[Handle, float]]:
        """What is to be called now, with its grid point."""
        due: list[tuple[Handle, float]] = []
        while self._heap and self._heap[0][0] <= now:
            _, _, handle = heapq.heappop(self._heap)
            if handle.cancelled:
                continue
            index = int((now - handle.start) / handle.period + 1e-9)
            handle.missed += max(0, index - handle.index - 1)
            handle.index = max(index, handle.index + 1)
            nxt = handle.start + (handle.index + 1) * handle.period
            heapq.heappush(self._heap, (nxt, next(self._ids), handle))
            if handle.queued:  # the last call has not run yet: do not pile up
                handle.missed += 1
            else:
                handle.queued = True
                due.append((handle, handle.start + handle.index * handle.period))
        return due

    def _call_all(self, due: list[tuple[Handle, float]]) -> None:
        for k, (handle, at) in enumerate(due, start=1):
            try:
                self._call(handle, at)
            except BaseException:
                if k < len(due):
                    self._post(partial(self._call_all, due[k:]))  # it is not the fault of the others
                raise

    def _call(self, handle: Handle, due: float) -> None:
        handle.queued = False
        if handle.cancelled or self._stopping:
            return
        missed, handle.missed = handle.missed, 0
        handle.fn(Tick(handle.index, due, max(0.0, self._clock.now() - due), missed))


class _Beat:
    """Work of one start, period and phase, which is due together. `calls`: (number, handle), in order."""

    __slots__ = ('calls', 'index', 'period', 'phase', 'start', 'thinned')

    def __init__(self, start: float, period: float, phase: int) -> None:
        self.start, self.period, self.phase = start, period, phase
        self.index = 0
        self.calls: list[tuple[int, Handle]] = []
        self.thinned = False  # some of them are cancelled

    def due(self) -> float:
        """Site time of the next grid point; from the grid, not from the last call: no drift over a simulated year."""
        return self.start + (self.index + 1) * self.period

    def alive(self) -> bool:
        """Whether anything is left of it."""
        if self.thinned:
            self.thinned = False
            self.calls = [call for call in self.calls if not call[1].cancelled]
        return bool(self.calls)


class SimTicker:
    """Ticker on simulated time: whoever conducts the simulation calls what is due, phase by phase."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, int, _Beat]] = []
        self._made: dict[tuple[float, float, int], _Beat] = {}  # those that start now
        self._ids = itertools.count()

    def every(self, period: float, fn: Callable[[Tick], object], *, phase: int = 0) -> Handle:
        """See `Ticker`."""
        if not period > 0.0:
            raise ValueError(f'period must be above 0 s, not {period}')
        start, number = self._clock.now(), next(self._ids)
        handle = Handle(period, fn, start)
        beat = self._made.get((start, period, phase))
        if beat is None:
            if any(begun != start for begun, _, _ in self._made):
                self._made.clear()
            beat = self._made[start, period, phase] = _Beat(start, period, phase)
            heapq.heappush(self._heap, (beat.due(), phase, number, beat))
        beat.calls.append((number, handle))
        handle.beat = beat
        return handle

    def next_due(self) -> tuple[float, int] | None:
        """Time and phase of the next call; None when there is none."""
        while self._heap and not self._heap[0][3].alive():
            self._forget(heapq.heappop(self._heap)[3])
        return self._heap[0][:2] if self._heap else None

    def run(self, at: float, phase: int) -> None:
        """Move simulated time on to `at` s and call everything of that moment and phase, in the order of its making."""
        self._clock.set(max(at, self._clock.now()))
        beats: list[tuple[_Beat, Tick]] = []
        while self._heap and self._heap[0][0] <= at + 1e-9 and self._heap[0][1] <= phase:
            due, own_phase, number, beat = heapq.heappop(self._heap)
            if not beat.alive():
                self._forget(beat)
                continue
            beat.index += 1
            heapq.heappush(self._heap, (beat.due(), own_phase, number, beat))
            beats.append((beat, Tick(beat.index, due, 0.0, 0)))
        if len(beats) == 1:
            beat, tick = beats[0]
            for _, handle in beat.calls:
                handle.fn(tick)
            return
        calls = [((tick.due, beat.phase, number), handle, tick)
                 for beat, tick in beats for number, handle in beat.calls]
        calls.sort(key=_order)
        for _, handle, tick in calls:
            handle.fn(tick)

    def _forget(self, beat: _Beat) -> None:
        self._made.pop((beat.start, beat.period, beat.phase), None)

    def stop(self) -> None:
        """Forget all work."""
        self._heap.clear()
        self._made.clear()


_order = itemgetter(0)
