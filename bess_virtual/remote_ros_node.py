"""A battery in the same network, reached by plain ROS 2: another namespace, or another ROS domain.

In the same domain the node of the remote battery talks for itself. Another domain needs a context and an executor
of its own; they live in a thread, and everything crosses by handing over functions.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.experimental import EventsExecutor  # type: ignore[attr-defined]
from rclpy.node import Node
from rclpy.task import Future

from bess_core.clock import Clock
from bess_core.log import Log

from .remote_door_node import Door
from .remote_wire import Answer, Ask, WireError

EXPIRE_S = 0.1


class RosLink:
    """Asks one battery of the graph. `ask` and `close` are called in the executor thread of the remote battery."""

    def __init__(self, node: Any, topic: str, domain: int, clock: Clock, post: Callable[[Callable[[], None]], object],
                 log: Log) -> None:
        """`domain`: ROS domain of the battery, -1 = that of `node`."""
        self._clock, self._post, self._topic, self._log = clock, post, topic, log
        self._boot = secrets.token_hex(8)
        self._door: Door | None = None
        self._other: _OtherDomain | None = None
        if domain < 0:
            self._door = Door(node, topic, clock)
            self._handle = node.every(EXPIRE_S, lambda _: self._expire())
        else:
            self._other = _OtherDomain(domain, f'remote_{topic.strip("/").replace("/", "_")}', self._open, self._expire)

    @property
    def problem(self) -> str:
        """Why nothing can be asked."""
        return self._other.problem if self._other is not None else ''

    def _open(self, node: Any) -> None:
        self._door = Door(node, self._topic, self._clock)

    def _expire(self) -> None:
        if self._door is not None:
            self._door.expire(self._clock.now())

    def ask(self, op: str, ask: Ask, timeout_s: float, done: Callable[[Answer | None], None]) -> bool:
        """Ask once; `done` is called in the executor thread. False while there is nobody to ask."""
        if self._other is None:
            self._ask(op, ask, timeout_s, lambda answer: self._post(lambda: done(answer)))
            return True
        return self._other.run(lambda: self._ask(op, ask, timeout_s, lambda a: self._post(lambda: done(a)) and None))

    def _ask(self, op: str, ask: Ask, timeout_s: float, done: Callable[[Answer], object]) -> None:
        """In the thread of the door."""
        door = self._door
        now = self._clock.now()

        def reply(body: dict[str, Any] | None, error: str = '') -> None:
            done(Answer(self._boot, self._clock.now(), self._clock.wall(), body or {}, error))

        if door is None:
            reply(None, 'the link is closed')
        elif op == 'status':
            reply(door.status(now))
        elif op == 'setpoint':
            try:
                reason = door.setpoint(ask.body, str(ask.body.get('source', '')), ask.given)
            except WireError as error:
                reason = str(error)
            reply(None if reason else {}, reason)
        elif op == 'withdraw':
            self._withdraw(door, ask, now + timeout_s, reply)
        else:
            body = dict(ask.body)
            if op in ('schedule_set_power', 'schedule_set_current'):
                body['request_id'] = ask.id
            door.call(op, body, now + timeout_s, reply)

    @staticmethod
    def _withdraw(door: Door, ask: Ask, deadline: float, reply: Callable[..., None]) -> None:
        def answered(answer: dict[str, Any] | None, error: str) -> None:
            taken = answer is not None and answer['accepted']
            reply(answer if taken else None, '' if taken else error or str((answer or {}).get('message', '')))

        door.call('cancel_schedule', {'request_ids': list(ask.body['ids'])}, deadline, answered)

    def close(self) -> None:
        """Give everything back."""
        if self._other is not None:
            self._other.close(lambda: self._door.close() if self._door is not None else None)
        elif self._door is not None:
            self._handle.cancel()
            self._door.close()
        self._door = None


class _OtherDomain:
    """A node in another ROS domain, with its own context, executor and thread."""

    def __init__(self, domain: int, name: str, opened: Callable[[Any], None], tick: Callable[[], None]) -> None:
        self._domain, self._name, self._opened, self._tick = domain, name, opened, tick
        self._executor: Any = None
        self._stop = Future()
        self._last: Callable[[], object] = lambda: None
        self.problem = ''
        self._thread = threading.Thread(target=self._run, name=f'domain {domain}', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        context = Context()
        try:
            rclpy.init(context=context, domain_id=self._domain)
            executor = EventsExecutor(context=context)
            node = Node(self._name, context=context, start_parameter_services=False, enable_rosout=False)
            executor.add_node(node)
            node.create_timer(EXPIRE_S, self._guarded(self._tick))
            self._opened(node)
            self._executor = executor
            executor.spin_until_future_complete(self._stop, timeout_sec=1e9)
            self._executor = None
            self._last()
            executor.remove_node(node)
            node.destroy_node()
            executor.shutdown()
        except Exception as error:  # noqa: BLE001 - whatever it is: the battery says that it cannot be reached, and why
            self.problem = f'ROS domain {self._domain}: {type(error).__name__}: {error}'
            self._executor = None
        finally:
            rclpy.try_shutdown(context=context)  # type: ignore[attr-defined]

    def _guarded(self, fn: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            try:
                fn()
            except Exception as error:  # noqa: BLE001 - an exception would end the executor
                self.problem = f'{type(error).__name__}: {error}'

        return call

    def run(self, fn: Callable[[], object]) -> bool:
        """Run a function in the thread; False when it does not run (yet)."""
        executor = self._executor
        if executor is None:
            return False
        executor.create_task(self._guarded(fn))
        return True

    def close(self, last: Callable[[], object]) -> None:
        """End the thread after `last` ran in it; waits for it."""
        self._last = last
        if not self._stop.done():
            self._stop.set_result(None)
        executor = self._executor
        if executor is not None:
            executor.wake()
        self._thread.join(5.0)
