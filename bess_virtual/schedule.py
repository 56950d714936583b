"""Schedule of one battery: requests overlay each other, the latest accepted one that covers t wins.

Intervals are half-open, [start, end), in absolute wall seconds (floats since the epoch). When a
request ends or is cancelled, the older one below it resumes; with none the battery rests.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request. `value` in W (`is_power`) or A, + = charging."""

    event_id: int
    start: float
    end: float
    value: float
    is_power: bool = False
    source: str = ''

    def covers(self, t: float) -> bool:
        """True for start <= t < end."""
        return self.start <= t < self.end


class Store(Protocol):
    """Where accepted requests are kept over a restart (`bess_virtual.journal.Journal`)."""

    def append(self, request: Request) -> None:
        """Make the request durable, or raise OSError."""

    def cancel(self, event_ids: list[int]) -> None:
        """Make the cancellation durable, or raise OSError."""

    def compact(self, requests: Iterable[Request], next_id: int) -> None:
        """Replace the content by these requests, or raise OSError."""

    def worth_compacting(self, live: int) -> bool:
        """True when most of the content is history."""


class Schedule:
    """Overlay ledger of requests. Not thread-safe; `at` and `next_boundary` cost O(log n).

    `requests` and `next_id` restore a saved schedule; with a `store` every acceptance and
    cancellation is durable before it is answered, and a store that fails refuses.
    """

    def __init__(self, requests: Iterable[Request] = (), next_id: int = 1,
                 store: Store | None = None, max_requests: int = 10_000) -> None:
        self._requests = {r.event_id: r for r in sorted(requests, key=lambda r: r.event_id)}
        self.next_id = max([next_id, *(i + 1 for i in self._requests)])
        self._store = store
        self._max_requests = max_requests
        # From _times[k] on, until _times[k + 1], _owners[k] wins (0: nobody).
        self._times: list[float] = [-inf]
        self._owners: list[int] = [0]
        self._rebuild()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, value: float, start: float, end: float, *, now: float, is_power: bool = False,
            source: str = '', bounds: tuple[float, float] = (-inf, inf)) -> tuple[bool, int, str]:
        """Ask for `value` over [start, end). Returns (accepted, event id or 0, message).

        A start at or before `now` (also zero) begins now. Refused with the reason, changing nothing:
        a value or time that is not finite, end before start, end not after `now`, a value outside
        `bounds` (lowest, highest), too many requests, a store that cannot save.
        """
        unit = 'W' if is_power else 'A'
        if not isfinite(value):
            return False, 0, f'{"power" if is_power else "current"} is {value}, not a finite number'
        if not isfinite(start) or not isfinite(end):
            return False, 0, f'start {start} and end {end} must be finite'
        if end < start:
            return False, 0, f'end is {start - end:g} s before start'
        if end <= now:
            return False, 0, f'end is {now - end:g} s in the past'
        low, high = bounds
        if not low <= value <= high:
            return False, 0, f'{value:g} {unit} is outside of {low:g} to {high:g} {unit}'
        if len(self._requests) >= self._max_requests:
            return False, 0, f'the schedule is full ({self._max_requests} requests)'
        request = Request(self.next_id, float(max(start, now)), float(end), float(value), is_power,
                          source)
        # Used up even when saving fails: part of the record may have reached the disk.
        self.next_id += 1
        if self._store is not None:
            try:
                self._store.append(request)
            except OSError as error:
                return False, 0, f'the request could not be saved: {error}'
        self._requests[request.event_id] = request
        if request.start == request.end:
            return True, request.event_id, 'the interval is empty: no effect'
        covered = self._overlay(request)
        if not covered:
            return True, request.event_id, ''
        names = ', '.join(str(i) for i in covered[:5]) + (', ...' if len(covered) > 5 else '')
        return True, request.event_id, f'overlays event {names}'

    def cancel(self, event_id: int) -> tuple[bool, int, str]:
        """Take back one request, 0 = all. Returns (accepted, how many, message)."""
        ids = list(self._requests) if event_id == 0 else [event_id]
        if event_id != 0 and event_id not in self._requests:
            return False, 0, f'there is no event {event_id}'
        if not ids:
            return True, 0, 'the schedule is empty'
        if self._store is not None:
            try:
                self._store.cancel(ids)
            except OSError as error:
                return False, 0, f'the cancellation could not be saved: {error}'
        for i in ids:
            del self._requests[i]
        if event_id == 0 or event_id in self._owners:
            self._rebuild()
        return True, len(ids), ''

    def at(self, t: float) -> Request | None:
        """The latest accepted request that covers t, or None."""
        owner = self._owners[bisect_right(self._times, t) - 1]
        return self._requests[owner] if owner else None

    def next_boundary(self, t: float) -> float | None:
        """The first time after t at which `at` gives another answer, or None."""
        k = bisect_right(self._times, t)
        return self._times[k] if k < len(self._times) else None

    def entries(self, now: float) -> list[Request]:
        """Requests that are pending or running, in order of acceptance (a later one wins)."""
        return [r for r in self._requests.values() if r.end > now]

    def get(self, event_id: int) -> Request | None:
        """The request with this id while it is kept."""
        return self._requests.get(event_id)

    def prune(self, now: float) -> list[Request]:
        """Forget and return what has ended; shortens the store when worthwhile (may raise OSError).

        `at` must not be asked for times before `now` afterwards.
        """
        ended = [r for r in self._requests.values() if r.end <= now]
        for request in ended:
            del self._requests[request.event_id]
        k = bisect_right(self._times, now) - 1
        if k > 0:
            self._times = [-inf, *self._times[k + 1:]]
            self._owners = self._owners[k:]
        if self._store is not None and self._store.worth_compacting(len(self._requests)):
            self._store.compact(self._requests.values(), self.next_id)
        return ended

    def _overlay(self, request: Request) -> list[int]:
        """Lay a new request over everything; returns whom it covers."""
        first = bisect_left(self._times, request.start)
        last = bisect_right(self._times, request.end)
        resumes = self._owners[last - 1]
        covered = [*self._owners[first - 1:first], *self._owners[first:last]]
        if last > first and self._times[last - 1] == request.end:
            covered.pop()  # begins where the request ends
        if first < len(self._times) and self._times[first] == request.start:
            covered = covered[1:]  # ends where the request begins
        self._times[first:last] = [request.start, request.end]
        self._owners[first:last] = [request.event_id, resumes]
        return sorted({i for i in covered if i})

    def _rebuild(self) -> None:
        """Timeline from the requests: sweep over the boundaries, the newest open request wins."""
        edges = [(t, r.event_id) for r in self._requests.values() if r.start < r.end
                 for t in (r.start, r.end)]
        edges.sort()
        self._times, self._owners = [-inf], [0]
        newest: list[int] = []  # heap of -event_id; ended ones are dropped when they surface
        k = 0
        while k < len(edges):
            t = edges[k][0]
            while k < len(edges) and edges[k][0] == t:
                request = self._requests[edges[k][1]]
                if request.start == t:
                    heapq.heappush(newest, -request.event_id)
                k += 1
            while newest and self._requests[-newest[0]].end <= t:
                heapq.heappop(newest)
            owner = -newest[0] if newest else 0
            if owner != self._owners[-1]:
                self._times.append(t)
                self._owners.append(owner)
