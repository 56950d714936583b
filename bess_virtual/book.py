"""What a battery has promised to the batteries above it. Pure; `now` is site time, plans are in wall time.

An owner sends its whole plan. It is first held (phase one), then put into force (phase two) or dropped. A
hold that is not put into force ends by itself, and so does a plan that its owner stops renewing: an owner
that dies leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .plan import EMPTY, Plan, total


@dataclass(slots=True)
class Promise:
    """One plan of one owner."""

    owner: str
    number: int  # counted up by the owner
    plan: Plan
    until: float  # site time s at which it ends unless put into force or renewed
    token: Any = None  # what is held further below for it


class Book:
    """Plans held and in force, per owner."""

    def __init__(self) -> None:
        self._in_force: dict[str, Promise] = {}
        self._held: dict[tuple[str, int], Promise] = {}
        self._others: dict[str, dict[str, Plan]] = {}  # answers of `others` since the last change
        self.plan = EMPTY  # in force, all owners

    @property
    def owners(self) -> list[str]:
        """Who has a plan in force."""
        return list(self._in_force)

    def owner_at(self, t: float) -> str:
        """Whose plan asks for something at wall time t; '' = nobody's."""
        for owner, promise in self._in_force.items():
            power = promise.plan.at(t)
            if power == power:
                return owner
        return ''

    def effective(self, owner: str, *, held: bool = True) -> Plan:
        """The plan of one owner: the newest that is held, else the one in force."""
        best = self._in_force.get(owner)
        if held:
            for promise in self._held.values():
                if promise.owner == owner and (best is None or promise.number > best.number):
                    best = promise
        return EMPTY if best is None else best.plan

    def knows(self, owner: str, number: int) -> bool:
        """Whether the plan of this number is held, or it or a later one is in force."""
        current = self._in_force.get(owner)
        return (owner, number) in self._held or (current is not None and current.number >= number)

    def others(self, owner: str) -> dict[str, Plan]:
        """Plans of everybody else, held ones included."""
        found = self._others.get(owner)
        if found is None:
            names = {*self._in_force, *(o for o, _ in self._held)} - {owner}
            found = self._others[owner] = {name: self.effective(name) for name in sorted(names)}
        return found

    def rest(self, owner: str) -> Plan:
        """Plans of everybody else together, held ones included."""
        others = self.others(owner)
        return total(list(others.values())) if others else EMPTY

    def promised(self) -> Plan:
        """All plans together, held ones included."""
        return self.rest('')

    def hold(self, promise: Promise) -> None:
        """Phase one."""
        self._held[promise.owner, promise.number] = promise
        self._others.clear()

    def commit(self, owner: str, number: int, until: float) -> tuple[str, Any]:
        """Phase two: (reason or '', what is held further below). A late or repeated one changes nothing."""
        promise = self._held.pop((owner, number), None)
        self._others.clear()
        current = self._in_force.get(owner)
        if current is not None and current.number >= number:
            return '', None if promise is None else promise.token
        if promise is None:
            return f'nothing is held for {owner} under number {number} (any more)', None
        promise.until = until
        token, promise.token = promise.token, None
        if promise.plan.asks():
            self._in_force[owner] = promise
        else:
            self._in_force.pop(owner, None)
        self._changed()
        return '', token

    def abort(self, owner: str, number: int) -> Any:
        """Forget a hold; returns what is held further below for it, None when there was none."""
        promise = self._held.pop((owner, number), None)
        self._others.clear()
        return None if promise is None else promise.token

    def expire(self, now: float) -> tuple[list[Any], list[str]]:
        """Drop what is over: (what is held further below for holds, owners whose plan was dropped)."""
        tokens = [self._held.pop(key).token for key, p in list(self._held.items()) if p.until <= now]
        dropped = [owner for owner, p in self._in_force.items() if p.until <= now]
        for owner in dropped:
            del self._in_force[owner]
        if tokens:
            self._others.clear()
        if dropped:
            self._changed()
        return [t for t in tokens if t is not None], dropped

    def __len__(self) -> int:
        return len(self._in_force) + len(self._held)

    def _changed(self) -> None:
        self._others.clear()
        self.plan = total([p.plan for p in self._in_force.values()])


class HoldNumbers:
    """Numbers of plans: above all earlier ones, also of an earlier life of this owner."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, wall: float) -> int:
        """Microseconds since the epoch, or one more than the last."""
        self._last = max(self._last + 1, int(wall * 1e6), 1)
        return self._last


class Turns:
    """One admission at a time; the others wait in a queue of at most `limit`.

    `patient` work of a crowd is spread: each goes back through the executor's queue, so that status and ticks come
    in between.
    """

    def __init__(self, post: Callable[[Callable[[], None]], object], limit: int = 4000) -> None:
        self._post, self._limit = post, limit
        self._waiting: deque[Callable[[Callable[[], None]], None]] = deque()
        self._busy = False
        self._posted = False  # `_next` is on its way

    def enter(self, work: Callable[[Callable[[], None]], None], *, patient: bool = False) -> bool:
        """Run `work(leave)` when its turn comes; it calls `leave()` once. False when too many wait."""
        if self._busy or self._waiting or (patient and self._posted):
            if len(self._waiting) >= self._limit:
                return False
            self._waiting.append(work)
            return True
        if patient:
            self._post_next()
        self._run(work)
        return True

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._busy = True
        left = False

        def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            self._busy = False
            if self._waiting:
                self._post_next()

        try:
            work(leave)
        except BaseException:
            leave()
            raise

    def _post_next(self) -> None:
        if not self._posted:
            self._posted = True
            self._post(self._next)

    def _next(self) -> None:
        self._posted = False
        if not self._busy and self._waiting:
            self._run(self._waiting.popleft())
