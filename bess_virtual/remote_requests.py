"""Requests to a remote owner until they are answered: repeated with the same id, ended by a deadline. Pure.

A request that the link lost is sent again with the same id, which the owner answers as before. At its deadline it
is given up and its caller told so. The owner refuses it from then on, too (the deadline travels with it on the
owner's clock). If it may have been accepted before the link broke, it is *withdrawn* once the link is back: what
the caller was told ("not accepted") is then true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 1.0
RUNNING = ('schedule_set_power', 'schedule_set_current')  # what these ask for goes on when nobody asks any more


@dataclass
class Pending:
    """One request on its way. Times in s of the local clock."""

    id: str
    op: str
    body: dict[str, Any]
    asked: float
    deadline: float
    done: Callable[[dict[str, Any] | None, str], None]  # (body of the answer or None, why not)
    tries: int = 0
    next_try: float = -inf
    retry: float = RETRY_FIRST_S
    in_flight: bool = False
    trouble: str = ''
    also: list[Callable[[dict[str, Any] | None, str], None]] = field(default_factory=list)

    def finish(self, body: dict[str, Any] | None, error: str) -> None:
        """Tell everybody who waits."""
        for done in (self.done, *self.also):
            done(body, error)


class Outbox:
    """Requests that wait for their answer, and ids that have to be withdrawn."""

    def __init__(self, withdrawn: Iterable[str] = (), limit: int = 100) -> None:
        self._pending: dict[str, Pending] = {}
        self._withdraw: dict[str, None] = dict.fromkeys(withdrawn)
        self._limit = limit
        self.changed = False  # `to_withdraw` differs from what was last saved

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def to_withdraw(self) -> list[str]:
        """Ids whose requests were given up although the owner may have accepted them."""
        return list(self._withdraw)

    def add(self, request: Pending) -> str:
        """Take a request; '' or why not."""
        there = self._pending.get(request.id)
        if there is not None:
            if (there.op, there.body) != (request.op, request.body):
                return f'another request with the id {request.id} is on its way already'
            there.also.append(request.done)  # asked again by one who lost the answer
            return ''
        if len(self._pending) >= self._limit:
            return f'{self._limit} requests wait for an answer already'
        self._pending[request.id] = request
        if request.id in self._withdraw:  # asked again after all
            del self._withdraw[request.id]
            self.changed = True
        return ''

    def due(self, now: float) -> list[Pending]:
        """Requests to send now; mark each with `sent`."""
        return [p for p in self._pending.values() if not p.in_flight and p.next_try <= now < p.deadline]

    def sent(self, request: Pending) -> None:
        """It is on the wire."""
        request.tries += 1
        request.in_flight = True

    def failed(self, request: Pending, now: float, trouble: str) -> None:
        """No answer to this try, or one that asks to try again."""
        request.in_flight = False
        request.trouble = trouble
        request.next_try = now + request.retry
        request.retry = min(2.0 * request.retry, RETRY_MAX_S)

    def answered(self, request: Pending, body: dict[str, Any] | None, error: str) -> None:
        """The answer, or a refusal of the owner. A late answer to a request that was given up changes nothing.

        A refusal speaks of one try: an earlier one may have got through, so the request is withdrawn then.
        """
        if self._pending.pop(request.id, None) is request:
            if body is None and request.tries > 1:
                self._withdraw_later(request)
            request.finish(body, error)

    def _withdraw_later(self, request: Pending) -> bool:
        """Have it withdrawn if it is of a kind that would go on to run."""
        if request.op not in RUNNING:
            return False
        self._withdraw[request.id] = None
        self.changed = True
        return True

    def expire(self, now: float, trouble: str = '') -> None:
        """Give up what is past its deadline; `trouble`: of the link, for those that never got a try."""
        for request in [p for p in self._pending.values() if now >= p.deadline]:
            del self._pending[request.id]
            why = (trouble if not request.tries else request.trouble or trouble) or 'no answer'
            waited = f'given up after {request.deadline - request.asked:g} s ({why})'
            if request.tries and self._withdraw_later(request):
                waited += '; should the owner have accepted it, it is withdrawn as soon as the link is back'
            elif request.tries:
                waited += '; the owner may have acted on it'
            request.finish(None, waited)

    def take_back(self, request_id: str) -> None:
        """The caller does not want this request any more: it is not sent again, and withdrawn if it was sent."""
        request = self._pending.get(request_id)
        if request is not None and request.op in RUNNING:
            del self._pending[request_id]
            if request.tries:
                self._withdraw_later(request)
            request.finish(None, 'withdrawn by the one who made it')

    def withdrawn(self, ids: Iterable[str]) -> None:
        """The owner confirmed that these do not run."""
        for i in ids:
            self._withdraw.pop(i, None)
        self.changed = True


class OwnerTime:
    """The owner's clocks as seen from here, without believing that clocks of two machines agree."""

    def __init__(self) -> None:
        self.boot = ''
        self._t = self._received = -inf
        self.offset = 0.0  # s, owner's wall clock ahead of the local one
        self.uncertainty = inf  # s, how far `offset` may be off

    def learn(self, boot: str, t: float, wall: float, sent: float, received: float, local_wall: float) -> None:
        """From an answer that was asked for at `sent` and came at `received` (local s)."""
        self.boot, self._t, self._received = boot, t, received
        half = (received - sent) / 2.0
        self.offset, self.uncertainty = wall - (local_wall - half), half

    def now(self, local: float) -> float:
        """Owner's monotonic time, at most: the way of the last answer is left out, so orders never look younger."""
        return self._t + (local - self._received)
