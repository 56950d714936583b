"""Periodic work on a fixed monotonic grid, handed to the executor.

One thread per process waits on the monotonic clock (a wall-clock step neither skips nor replays
anything) and posts due work to the executor thread. `SimTicker` has no thread: `advance` runs what
is due, in order.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from .clock import Clock, SimClock


class Tick(NamedTuple):
    """One due moment: `index` counts grid points since the start, `late` is s behind the grid."""

    index: int  # type: ignore[assignment]
    due: float  # s, site time of the grid point
    late: float  # s
    missed: int  # grid points that passed without a call since the last one


def _nothing(_: object) -> None:
    pass


class Handle:
    """Work that repeats until `cancel`."""

    __slots__ = ('cancelled', 'fn', 'index', 'missed', 'period', 'queued', 'start')

    def __init__(self, period: float, fn: Callable[[Tick], object], start: float) -> None:
        self.period, self.fn, self.start = period, fn, start
        self.index = 0
        self.cancelled = False
        self.queued = False
        self.missed = 0

    def cancel(self) -> None:
        """No further calls. Safe from any thread."""
        self.cancelled = True
        self.fn = _nothing  # who is no more must not be kept alive until the next grid point


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
        self._thread = threading.Thread(target=self._run, name='ticker', daemon=True)
        self._thread.start()

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
        self._thread.join()

    def _run(self) -> None:
        while True:
            due: list[tuple[Handle, float]] = []
            with self._changed:
                if self._stopping:
                    return
                now = self._clock.now()
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
                if not due:
                    wait = self._heap[0][0] - now if self._heap else 1.0
                    self._changed.wait(max(0.0, min(wait, 1.0)))
                    continue
            self._post(partial(self._call_all, due))  # one task for all of a moment: each costs about as much as a call

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


class SimTicker:
    """Ticker on simulated time: whoever conducts the simulation calls what is due, phase by phase."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, int, Handle]] = []
        self._ids = itertools.count()

    def every(self, period: float, fn: Callable[[Tick], object], *, phase: int = 0) -> Handle:
        """See `Ticker`."""
        if not period > 0.0:
            raise ValueError(f'period must be above 0 s, not {period}')
        handle = Handle(period, fn, self._clock.now())
        heapq.heappush(self._heap, (handle.start + period, phase, next(self._ids), handle))
        return handle

    def next_due(self) -> tuple[float, int] | None:
        """Time and phase of the next call; None when there is none."""
        while self._heap and self._heap[0][3].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else None

    def run(self, at: float, phase: int) -> None:
        """Move simulated time on to `at` s and call everything of that moment and phase."""
        self._clock.set(max(at, self._clock.now()))
        while self._heap and self._heap[0][0] <= at + 1e-9 and self._heap[0][1] <= phase:
            due, own_phase, number, handle = heapq.heappop(self._heap)
            if handle.cancelled:
                continue
            handle.index += 1
            # From the grid, not from the last call: no drift over a simulated year.
            following = handle.start + (handle.index + 1) * handle.period
            heapq.heappush(self._heap, (following, own_phase, number, handle))
            handle.fn(Tick(handle.index, due, 0.0, 0))

    def stop(self) -> None:
        """Forget all work."""
        self._heap.clear()
