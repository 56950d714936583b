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


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request. `value` in W (`is_power`) or A, + = charging.

    `start` is kept as it was asked for. One that lay in the past, or was zero, means "from now on"; so a
    clock that is put back does not interrupt what already runs.
    """

    event_id: int
    start: float
    end: float
    value: float
    is_power: bool = False
    source: str = ''
    accepted: float = 0.0  # when; 0 = not recorded
    request_id: str = ''  # the caller's own id; '' = none

    def covers(self, t: float) -> bool:
        """True for start <= t < end."""
        return self.start <= t < self.end

    @property
    def begins(self) -> float:
        """When it begins: its start, or the moment of acceptance."""
        return max(self.start, self.accepted)

    def repeats(self, value: float, start: float, end: float, is_power: bool) -> bool:
        """Whether a request with these values asks for the same."""
        return (self.value, self.start, self.end, self.is_power) == (value, start, end, is_power)


class Schedule:
    """Overlay ledger of requests. Not thread-safe; `at` and `next_boundary` cost O(log n).

    `requests` and `next_id` restore a saved schedule. `max_requests` that have not ended yet are held.
    """

    def __init__(self, requests: Iterable[Request] = (), next_id: int = 1, max_requests: int = 10_000) -> None:
        self._requests = {r.event_id: r for r in sorted(requests, key=lambda r: r.event_id)}
        self.next_id = max([next_id, *(i + 1 for i in self._requests)])
        self._max_requests = max_requests
        self.version = 0  # counted up with each change of who decides when
        # From _times[k] on, until _times[k + 1], _owners[k] wins (0: nobody).
        self._times: list[float] = [-inf]
        self._owners: list[int] = [0]
        self._rebuild()

    def __len__(self) -> int:
        return len(self._requests)

    def make(self, value: float, start: float, end: float, *, now: float, is_power: bool = False, source: str = '',
             request_id: str = '', bounds: tuple[float, float] = (-inf, inf)) -> Request | str:
        """A request for `value` over [start, end) with a new id, for `insert`; or why it is refused.

        A start at or before `now` (also zero) begins now. Refused are: a value or time that is not
        finite, end before start, end not after `now`, a value outside `bounds` (lowest, highest), too
        many requests.
        """
        unit = 'W' if is_power else 'A'
        if not isfinite(value):
            return f'{"power" if is_power else "current"} is {value}, not a finite number'
        if not isfinite(start) or not isfinite(end):
            return f'start {start} and end {end} must be finite'
        if end < start:
            return f'end is {start - end:g} s before start'
        if end <= now:
            return f'end is {now - end:g} s in the past'
        low, high = bounds
        if not low <= value <= high:
            return f'{value:g} {unit} is outside of {low:g} to {high:g} {unit}'
        if len(self._requests) >= self._max_requests:
            live = len(self.entries(now))
            if live >= self._max_requests:
                return f'the schedule is full ({self._max_requests} requests)'
            if len(self._requests) >= 2 * self._max_requests:
                self.prune(now)
        request = Request(self.next_id, float(start), float(end), float(value), is_power, source, now, request_id)
        # Used up even when the request comes to nothing: part of its record may have reached the disk.
        self.next_id += 1
        return request

    def insert(self, request: Request) -> str:
        """Lay a request over the others; returns a hint in words."""
        self._requests[request.event_id] = request
        self.version += 1
        if request.start == request.end:
            return 'the interval is empty: no effect'
        covered = [i for i in self._overlay(request) if self._requests[i].end > request.accepted]
        if not covered:
            return ''
        names = ', '.join(str(i) for i in covered[:5]) + (', ...' if len(covered) > 5 else '')
        return f'overlays event {names}'

    def add(self, value: float, start: float, end: float, *, now: float, is_power: bool = False,
            source: str = '', bounds: tuple[float, float] = (-inf, inf)) -> tuple[bool, int, str]:
        """`make` and `insert`. Returns (accepted, event id or 0, message)."""
        made = self.make(value, start, end, now=now, is_power=is_power, source=source, bounds=bounds)
        if isinstance(made, str):
            return False, 0, made
        return True, made.event_id, self.insert(made)

    def remove(self, event_ids: Iterable[int]) -> int:
        """Take requests back; what lies below resumes. Returns how many were there."""
        gone = [i for i in event_ids if self._requests.pop(i, None) is not None]
        self.version += bool(gone)
        if gone and not set(gone).isdisjoint(self._owners):
            self._rebuild()
        return len(gone)

    def ids(self, event_id: int) -> list[int]:
        """The requests that a cancellation means: one, or all for 0."""
        if event_id == 0:
            return list(self._requests)
        return [event_id] if event_id in self._requests else []

    def timeline(self, now: float) -> tuple[list[float], list[Request | None]]:
        """Times from `now` on, and who decides from each of them to the next (one less)."""
        k = bisect_right(self._times, now)
        times = [now, *self._times[k:]]
        return times, [self._requests.get(i) for i in self._owners[k - 1:-1]]

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

    def prune(self, before: float) -> list[Request]:
        """Forget and return what ended at or before that time; `at` must not be asked for earlier times then."""
        ended = [r for r in self._requests.values() if r.end <= before]
        for request in ended:
            del self._requests[request.event_id]
        k = bisect_right(self._times, before) - 1
        if k > 0:
            self._times = [-inf, *self._times[k + 1:]]
            self._owners = self._owners[k:]
        return ended

    def all(self) -> list[Request]:
        """Every request that is kept, also ended ones."""
        return list(self._requests.values())

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
