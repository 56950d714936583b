"""The contract of one battery as questions and answers: status, orders and services of its topics and services.

Used at the owner (`remote_server`), and by a remote battery that reaches its owner by plain ROS 2. Everything
happens in the executor thread of `node`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, isnan
from typing import Any

from bess.msg import BatteryStatus, PowerSetpoint
from bess.srv import CancelSchedule, ListSchedule, Reserve, ScheduleAt, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.clock import Clock
from bess_core.convert import set_stamp, site_time
from bess_core.leases import Numbers

from .remote_wire import AGAIN, WireError, fields_of, message_of

SERVICES = {
    'schedule_set_power': ScheduleSetPower, 'schedule_set_current': ScheduleSetCurrent,
    'cancel_schedule': CancelSchedule, 'list_schedule': ListSchedule, 'schedule_at': ScheduleAt, 'reserve': Reserve,
}
MAX_CALLS = 64  # that wait for an answer of the battery

Done = Callable[[dict[str, Any] | None, str], None]  # (body or None, why not)


class Door:
    """One battery, as `topic` (absolute, without trailing slash) of the graph of `node`."""

    def __init__(self, node: Any, topic: str, clock: Clock, heard: Callable[[], None] = lambda: None) -> None:
        self._node, self._clock, self._heard = node, clock, heard
        self.topic = topic
        self._status: BatteryStatus | None = None
        self._received = -inf
        self._subscription = node.create_subscription(
            BatteryStatus, f'{topic}/status', self._on_status, qos.MEASUREMENT)
        self._publisher = node.create_publisher(PowerSetpoint, f'{topic}/setpoint', qos.SETPOINT)
        self._clients = {op: node.create_client(kind, f'{topic}/{op}', qos_profile=qos.SERVICE)
                         for op, kind in SERVICES.items()}
        self._calls: dict[int, tuple[float, Any, str, Done]] = {}  # by number: deadline, future, op, done
        self._number = 0
        self._numbers = Numbers(clock.now())

    def close(self) -> None:
        """Give everything back; whoever waits is told."""
        self.expire(inf)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_publisher(self._publisher)
        for client in self._clients.values():
            self._node.destroy_client(client)

    def _on_status(self, message: BatteryStatus) -> None:
        self._status, self._received = message, self._clock.now()
        self._heard()

    def status(self, now: float) -> dict[str, Any]:
        """Last status with its age in s (`age`, `newest_age`); no status inside while none was heard."""
        message = self._status
        if message is None:
            return {}
        oldest, newest = site_time(self._clock, message.header.stamp), site_time(self._clock, message.newest_stamp)
        age = now - oldest
        body: dict[str, Any] = {'status': fields_of(message), 'heard': now - self._received}
        if isfinite(age):
            body['age'] = max(0.0, age)
        if isfinite(newest):
            body['newest_age'] = max(0.0, now - newest)
        return body

    def setpoint(self, body: dict[str, Any], source: str, given: float) -> str:
        """Pass an order on; '' or the reason. `given`: s of the own clock. Raises `WireError`."""
        order = message_of(PowerSetpoint, {k: v for k, v in body.items() if k != 'header'})
        if not isfinite(order.power) or not 0.0 < order.lease < inf:
            return f'power {order.power} W or lease {order.lease} s is not a finite number (lease above 0)'
        if isnan(given):
            return 'an order needs the time at which it was given'
        if not self._publisher.get_subscription_count():
            return 'the battery does not listen at present'
        order.sequence, order.source = self._numbers.next(), source
        set_stamp(order.header.stamp, self._clock, given)
        self._publisher.publish(order)
        return ''

    def call(self, op: str, body: dict[str, Any], deadline: float, done: Done) -> None:
        """Call a service; `done` exactly once, at `deadline` (s of the own clock) at the latest."""
        client = self._clients[op]
        try:
            request = message_of(SERVICES[op].Request, body)
        except WireError as error:
            done(None, str(error))
            return
        if not client.service_is_ready():
            done(None, f'{self.topic}/{op} is not offered at present')
            return
        if len(self._calls) >= MAX_CALLS:
            done(None, f'{MAX_CALLS} requests wait for {self.topic} already')
            return
        future = client.call_async(request)
        self._number += 1
        number = self._number
        self._calls[number] = (deadline, future, op, done)
        future.add_done_callback(lambda f: self._answered(number, f))

    def _answered(self, number: int, future: Any) -> None:
        entry = self._calls.pop(number, None)
        if entry is not None and not future.cancelled():
            entry[3](fields_of(future.result()), '')

    def expire(self, now: float) -> None:
        """Tell those that waited too long: nobody knows yet what becomes of what they asked."""
        for number in [n for n, e in self._calls.items() if e[0] <= now]:
            _, future, op, done = self._calls.pop(number)
            self._clients[op].remove_pending_request(future)
            done(None, f'{AGAIN} {self.topic}/{op} does not answer')


