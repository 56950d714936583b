"""Calls of services whose answer may be lost.

A server whose middleware has not yet found the reader of a client drops the answer ("failed to send response"), and
the client cannot see whether it has been found. So what changes nothing when it is done twice is asked again until it
is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .node import BessNode

AGAIN_S = 0.5  # from a question without an answer to the next one, where the work takes no time


class Call:
    """One question to a service, asked at once and again every `again` s until the first answer or `within` s.

    `done(answer, reason)` is called exactly once in the executor thread: with the answer and '', or with None and why
    there is none, which is also that the node is cleaned up. For requests only that may be done twice.
    """

    def __init__(self, node: BessNode, client: Any, request: Any, within: float, done: Callable[[Any, str], None],
                 again: float = AGAIN_S) -> None:
        self._node, self._client, self._request, self._done = node, client, request, done
        self._futures: list[Any] = []
        self._within = within
        self._ended = False
        node.open_calls.add(self)
        self._deadline = node.clock.now() + within
        self._handle = node.ctx.ticker.every(min(again, within), lambda _: node._guarded(self._again))
        self._ask()

    def _ask(self) -> None:
        if not self._client.service_is_ready():
            return  # it may come, or come back, in time
        future = self._client.call_async(self._request)
        self._futures.append(future)
        future.add_done_callback(lambda f: self._node._guarded(self._answered, f))

    def _again(self) -> None:
        if self._node.clock.now() < self._deadline - 1e-6:
            self._ask()
        else:
            self.give_up(f'it does not answer within {self._within:g} s' if self._futures else 'it is not there')

    def _answered(self, future: Any) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._end(future.result(), '')
        else:
            self._end(None, f'{type(error).__name__}: {error}')

    def give_up(self, reason: str) -> None:
        """End it without an answer; nothing when it has ended already."""
        self._end(None, reason)

    def _end(self, answer: Any, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._node.open_calls.discard(self)
        self._handle.cancel()
        for future in self._futures:
            self._client.remove_pending_request(future)
        self._futures.clear()
        self._done(answer, reason)


__all__ = ['AGAIN_S', 'Call']
