"""Lifecycle bring-up: configure all in order, then activate all in order, each step verified.

A step counts only when change_state succeeded *and* get_state returns the expected state (an error
hook may have led elsewhere). Runs in an own thread: the executor that serves the clients stays free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from .log import Log

GOALS = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}

ASK_AGAIN_S = 1.0  # a request without an answer for so long is looked into


class BringupError(Exception):
    """A node could not be brought to the wanted state; names node, step and reason."""


class LifecycleClient:
    """Lifecycle services of one node, called from a thread while another one spins the executor."""

    def __init__(self, node: Any, name: str) -> None:
        self.name = name
        self._change = node.create_client(ChangeState, f'{name}/change_state')
        self._get = node.create_client(GetState, f'{name}/get_state')

    def wait(self, deadline: float, cancelled: Callable[[], str]) -> None:
        """Until the services answer. Raises `BringupError` at the deadline (monotonic s)."""
        while not (self._change.service_is_ready() and self._get.service_is_ready()):
            if reason := cancelled():
                raise BringupError(reason)
            if time.monotonic() > deadline:
                raise BringupError(f'{self.name}: no lifecycle services')
            time.sleep(0.01)

    def state(self, timeout_s: float = 5.0, cancelled: Callable[[], str] = str) -> int:
        """lifecycle_msgs/State id. Raises `BringupError` without an answer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # Asked again now and then: the middleware drops the answer of a service that has not yet
            # discovered its client, although the client sees the service as ready.
            answer = _Call(self._get, GetState.Request())
            if answer.arrives(min(ASK_AGAIN_S, timeout_s), cancelled):
                return int(answer.result().current_state.id)
            answer.forget()
        raise BringupError(f'{self.name}: no answer within {timeout_s} s')

    def change(self, transition: int, timeout_s: float = 15.0, cancelled: Callable[[], str] = str) -> None:
        """Make a transition and verify it. Raises `BringupError`."""
        goal = GOALS[transition]
        request = ChangeState.Request()
        request.transition.id = transition
        deadline = time.monotonic() + timeout_s
        answer = _Call(self._change, request)
        while not answer.arrives(ASK_AGAIN_S, cancelled):
            # This answer can be lost as well (see `state`); the transition is not made twice, its result counts.
            if self.state(max(deadline - time.monotonic(), ASK_AGAIN_S), cancelled) == goal:
                answer.forget()
                return
            if time.monotonic() > deadline:
                answer.forget()
                raise BringupError(f'{self.name}: no answer within {timeout_s} s')
        reached = self.state(cancelled=cancelled)
        if not answer.result().success or reached != goal:
            raise BringupError(f'{self.name}: transition {transition} failed, node is in state {reached}; see its log')


class _Call:
    """One request to a service, waited for in a thread that does not spin."""

    def __init__(self, client: Any, request: Any) -> None:
        self._client, self._done = client, threading.Event()
        self._future = client.call_async(request)
        self._future.add_done_callback(lambda _: self._done.set())

    def arrives(self, timeout_s: float, cancelled: Callable[[], str]) -> bool:
        """Whether the answer comes within this time. Raises `BringupError` when there is a reason to give up."""
        deadline = time.monotonic() + timeout_s
        while not self._done.wait(min(0.1, timeout_s)):
            if reason := cancelled():
                self.forget()
                raise BringupError(reason)
            if time.monotonic() >= deadline:
                return False
        return True

    def result(self) -> Any:
        """The answer, after it arrived."""
        return self._future.result()

    def forget(self) -> None:
        """No answer is wanted any more."""
        self._client.remove_pending_request(self._future)


def bring_up(
    clients: Sequence[LifecycleClient], log: Log, *, timeout_s: float = 20.0, cancelled: Callable[[], str] = str
) -> None:
    """All nodes active, in order. Nodes that are already further on are left there.

    `cancelled` gives the reason to give up, '' to go on. Raises `BringupError`.
    """
    deadline = time.monotonic() + timeout_s
    for client in clients:
        client.wait(deadline, cancelled)
    for transition, wanted in (
        (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_UNCONFIGURED),
        (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_INACTIVE),
    ):
        for client in clients:
            if reason := cancelled():
                raise BringupError(reason)
            if client.state(cancelled=cancelled) == wanted:
                client.change(transition, cancelled=cancelled)
    log.info('nodes active', nodes=len(clients))


def bring_down(clients: Sequence[LifecycleClient], log: Log) -> None:
    """All nodes inactive, in reverse order, going on despite failures; what failed is logged."""
    for client in reversed(clients):
        try:
            if client.state(1.0) == State.PRIMARY_STATE_ACTIVE:
                client.change(Transition.TRANSITION_DEACTIVATE, 5.0)
        except BringupError as error:
            log.warning('not deactivated', node=client.name, reason=str(error))
