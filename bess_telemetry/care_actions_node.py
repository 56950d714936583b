"""Orders and questions of the dashboard's users as service calls, and messages as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from std_msgs.msg import UInt64
from std_srvs.srv import Trigger

from bess.srv import (
    AcknowledgeFault,
    ClearFault,
    ListSiteParameters,
    QueryEvents,
    RunTest,
    SetMode,
    SetSiteParameter,
)
from bess_core import qos
from bess_core.clock import join_stamp
from bess_core.node import BessNode

BY = 'dashboard'  # there is one login; who used it is not known
ALIVE_S = 5.0  # a test ends so long after the page that started it was closed
MOST_ROWS = 200
Answer = tuple[bool, Any]  # (accepted, message or rows)


AGAIN_S = 1.0  # from a question without an answer to the next one
#: Orders and questions that are sent again while there is no answer: doing them twice changes nothing.
AGAIN = frozenset((Trigger, SetMode, QueryEvents, ListSiteParameters))


@dataclass
class _Call:
    done: Future[Any]
    deadline: float  # s, site clock
    name: str
    send: Callable[[], bool]  # False: the service is not there yet
    again: bool = False  # doing it twice changes nothing
    sent: bool = False
    sent_at: float = 0.0  # s, site clock
    pick: Callable[[Any], Any] | None = None


def plain(message: Any) -> dict[str, Any]:
    """Fields of a message as plain values without header: stamps in epoch s, arrays as lists."""
    fields = message.get_fields_and_field_types()
    return {name: _plain(getattr(message, name)) for name in fields if name != 'header'}


def _plain(value: Any) -> Any:
    if hasattr(value, 'nanosec'):
        return wall(value)
    if hasattr(value, 'get_fields_and_field_types'):
        return plain(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    return [_plain(v) for v in (value.tolist() if hasattr(value, 'tolist') else value)]


def wall(stamp: Any) -> float:
    """Epoch s of a stamp; NaN for zero."""
    return join_stamp(stamp.sec, stamp.nanosec) if stamp.sec or stamp.nanosec else float('nan')


class RosActions:
    """Orders of users as service calls: asked in the web thread, called in the executor thread."""

    def __init__(self, node: BessNode, timeout: float, site: str = 'site',
                 roles: Mapping[str, str] | None = None) -> None:
        self._node = node
        self._site = site  # name of the node that holds the state of the site
        self._timeout = timeout  # s
        self._roles = dict(roles or {})  # role -> name of the first node with it
        self._alive: Any = None
        self._service_clients: dict[str, Any] = {}
        self._calls: list[_Call] = []

    def start(self) -> Future[tuple[bool, str]]:
        """Ask the site to run."""
        return self._call(Trigger, f'{self._site}/start', Trigger.Request())

    def stop(self) -> Future[tuple[bool, str]]:
        """Ask the site to sleep."""
        return self._call(Trigger, f'{self._site}/stop', Trigger.Request())

    def set_mode(self, name: str) -> Future[tuple[bool, str]]:
        """Ask for another control mode; '' = none."""
        return self._call(SetMode, f'{self._site}/set_mode', SetMode.Request(mode=name))

    def clear_fault(self, source: str, fault_id: str) -> Future[tuple[bool, str]]:
        """Ask a node to clear a latched fault."""
        return self._call(ClearFault, f'{source}/clear_fault', ClearFault.Request(id=fault_id))

    def acknowledge(self, source: str, fault_id: str) -> Future[Answer]:
        """Tell the fault manager that somebody has seen a fault."""
        return self._call(AcknowledgeFault, f'{self._named("fault_manager")}/acknowledge', AcknowledgeFault.Request(
            source=source, id=fault_id, by=BY))

    def run_test(self, steps: Sequence[str]) -> Future[Answer]:
        """Start a test; its number is the answer."""
        return self._call(RunTest, f'{self._named("test")}/run', RunTest.Request(
            steps=list(steps), by=BY, alive=ALIVE_S), lambda r: r.id if r.accepted else r.message)

    def stop_test(self) -> Future[Answer]:
        """End the test that runs."""
        return self._call(Trigger, f'{self._named("test")}/stop', Trigger.Request())

    def test_alive(self, number: int) -> None:
        """The page that started a test is still open."""
        self._node.ctx.post(lambda: self._beat(number))

    def set_parameter(self, name: str, value: str, comment: str) -> Future[Answer]:
        """Change a parameter; '' = back to the site file."""
        return self._call(SetSiteParameter, f'{self._named("system")}/set_parameters', SetSiteParameter.Request(
            names=[name], values=[value], by=BY, comment=comment))

    def rollback(self, revision: int) -> Future[Answer]:
        """All parameters as after a revision."""
        return self._call(SetSiteParameter, f'{self._named("system")}/set_parameters', SetSiteParameter.Request(
            rollback=True, revision=revision, by=BY))

    def events(self, severity: int = 0, source: str = '', text: str = '') -> Future[Answer]:
        """The newest events that fit, as rows of plain values."""
        return self._call(
            QueryEvents, f'{self._named("event_log")}/query',
            QueryEvents.Request(min_severity=severity, source=source, text=text, limit=MOST_ROWS),
            lambda r: [plain(e) | {'time': wall(e.header.stamp)} for e in r.events] if r.accepted else r.message)

    def parameters(self, pattern: str = '', history: bool = False) -> Future[Answer]:
        """Parameters or changes that fit, as rows of plain values."""
        return self._call(
            ListSiteParameters, f'{self._named("system")}/list_parameters',
            ListSiteParameters.Request(pattern=pattern, history=history),
            lambda r: '; '.join(r.problems) or [plain(p) for p in r.parameters][-MOST_ROWS:])

    def _named(self, role: str) -> str:
        return self._roles.get(role, role)

    def _beat(self, number: int) -> None:
        if self._alive is None:
            self._alive = self._node.create_publisher(
                UInt64, self._node.ctx.topic(f'{self._named("test")}/alive'), qos.EVENT)
        self._alive.publish(UInt64(data=number))

    def _call(self, kind: Any, name: str, request: Any, pick: Callable[[Any], Any] | None = None) -> Future[Any]:
        """`pick`: what to answer instead of the message."""
        done: Future[Any] = Future()
        done.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only answered
        self._node.ctx.post(lambda: self._send(kind, name, request, done, pick))
        return done

    def _send(self, kind: Any, name: str, request: Any, done: Future[Any], pick: Callable[[Any], Any] | None) -> None:
        try:
            topic = self._node.ctx.topic(name)
            if topic not in self._service_clients:
                self._service_clients[topic] = self._node.create_client(kind, topic)
            client = self._service_clients[topic]
            call = _Call(
                done,
                self._node.clock.now() + self._timeout,
                topic,
                lambda: self._ask(client, request, call),
                kind in AGAIN,
                pick=pick,
            )
            self._calls.append(call)
            self.tick()
        except Exception as error:
            self._node.log.exception('order failed', service=name)
            done.set_result((False, f'{type(error).__name__}: {error}'))

    def _ask(self, client: Any, request: Any, call: _Call) -> bool:
        if not client.service_is_ready():
            return False
        client.call_async(request).add_done_callback(partial(self._answered, call))
        return True

    def _answered(self, call: _Call, answer: Any) -> None:
        if call.done.done():
            return
        if answer.exception() is not None:
            call.done.set_result((False, str(answer.exception())))
            return
        result = answer.result()
        picked = str(result.message) if call.pick is None else call.pick(result)
        if hasattr(result, 'accepted') or hasattr(result, 'success'):
            good = bool(result.accepted if hasattr(result, 'accepted') else result.success)
        else:
            good = not isinstance(picked, str)
        call.done.set_result((good, picked))

    def tick(self) -> None:
        """Send what waits for its service to appear, give up what waits too long."""
        now = self._node.clock.now()
        for call in self._calls:
            # A server that has not found the client yet loses its answer.
            if not call.done.done() and (not call.sent or (call.again and now - call.sent_at >= AGAIN_S)):
                call.sent, call.sent_at = call.send() or call.sent, now
            if now > call.deadline and not call.done.done():
                why = 'did not answer' if call.sent else 'is not there'
                call.done.set_result((False, f'{call.name} {why} within {self._timeout:g} s'))
        self._calls = [c for c in self._calls if not c.done.done()]

    def close(self) -> None:
        """Answer everybody who waits, and drop the clients."""
        for call in self._calls:
            if not call.done.done():
                call.done.set_result((False, 'the dashboard is being stopped'))
        self._calls.clear()
        for client in self._service_clients.values():
            self._node.destroy_client(client)
        self._service_clients.clear()
        if self._alive is not None:
            self._node.destroy_publisher(self._alive)
            self._alive = None
