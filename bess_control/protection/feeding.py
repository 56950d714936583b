"""When a watchdog may be fed: only while the control grid is healthy. Pure.

Healthy means: every watched node was heard within `timeout`, is active (or inactive, where that is
allowed), its progress counter moved within `timeout`, and our own tick was not late. What is not
healthy is not fed; the watchdog then does what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

ALIVE = (2, 3)  # lifecycle_msgs/State: inactive, active


@dataclass(slots=True)
class _Seen:
    beat: float = -inf  # s, last sign of life
    lifecycle: int = 0
    progress: int = -1
    moved: float = -inf  # s, when progress last changed


class FeedRule:
    """`nodes` must live and work; `timeout` in s; until `grace` s after `now` nothing is judged (bring-up)."""

    def __init__(self, nodes: Iterable[str], timeout: float, *, now: float, grace: float = 0.0,
                 max_late: float = inf) -> None:
        self._timeout, self._max_late = timeout, max_late
        self._seen = {n: _Seen() for n in nodes}
        self._judged_from = now + grace
        self._late = 0.0

    def beat(self, node: str, lifecycle: int, progress: int, now: float) -> None:
        """A heartbeat; of other nodes it is none of ours."""
        seen = self._seen.get(node)
        if seen is None:
            return
        seen.beat, seen.lifecycle = now, lifecycle
        if progress != seen.progress:  # also a smaller one: the node was started again
            seen.progress, seen.moved = progress, now

    def tick(self, late: float) -> None:
        """Lateness (s) of our own tick against the grid."""
        self._late = late

    def problem(self, now: float) -> str:
        """Why it must not be fed; '' = healthy."""
        if self._late > self._max_late:
            return f'own tick is {self._late:.2f} s late'
        for name, s in self._seen.items():
            if now < self._judged_from and s.beat == -inf:
                continue
            if now - s.beat > self._timeout:
                return f'{name} is silent' if s.beat == -inf else f'{name} is silent for {now - s.beat:.1f} s'
            if s.lifecycle not in ALIVE:
                if now < self._judged_from:
                    continue
                return f'{name} is not up (lifecycle {s.lifecycle})'
            if now - s.moved > self._timeout:
                return f'{name} makes no progress for {now - s.moved:.1f} s'
        return ''
