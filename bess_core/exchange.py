"""Messages from node to node within one process, without the middleware.

On simulated time nobody else can listen, and a day of it is some million messages: serialising, sending, receiving and
deserialising each of them is most of what it costs. Here publishers, subscriptions, message types, QoS and the order
in which callbacks run are those of a running site; the bytes in between are left out. Listeners get a copy of the
moment, so that senders may refill their messages; they share it and leave it as it is: callbacks make readings of it.

As in DDS: a message that arrives at a full queue takes the place of the oldest one there, and who subscribes to a
transient-local topic later gets what its publishers sent last.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosidl_parser import definition as idl

from .cdr import message_class

Callback = Callable[[Any], object]


class LocalSubscription:
    """One listener: its queue, of the depth of its QoS."""

    def __init__(self, exchange: Exchange, msg_type: Any, topic: str, callback: Callback, profile: QoSProfile) -> None:
        self.msg_type, self.topic_name, self.callback = msg_type, topic, callback
        self.transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        self._queue, self._waiting = exchange.queue, deque[Any](maxlen=profile.depth or 1)

    def take(self, message: Any) -> None:
        """A message arrives."""
        self._waiting.append(message)
        self._queue.append(self)

    def hand_over(self) -> None:
        """One message to the callback, unless newer ones have pushed it out."""
        if self._waiting:
            self.callback(self._waiting.popleft())


class LocalPublisher:
    """As rclpy's publisher, as far as nodes use it."""

    def __init__(self, exchange: Exchange, msg_type: Any, topic: str, profile: QoSProfile) -> None:
        self.msg_type, self.topic_name = msg_type, topic
        self.transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        self.last = deque[Any](maxlen=profile.depth or 1 if self.transient else 0)
        self.listeners: list[LocalSubscription] = []
        self._copy = copier(msg_type)

    def publish(self, msg: Any) -> None:
        """Queue a message, or the bytes of one, for all who listen. Raises TypeError for another type."""
        if isinstance(msg, bytes):
            msg = deserialize_message(msg, self.msg_type)
        if type(msg) is not self.msg_type:
            raise TypeError(f'{self.topic_name}: expected {self.msg_type.__name__}, got {type(msg).__name__}')
        if self.listeners or self.transient:
            sent = self._copy(msg)
            self.last.append(sent)
            for listener in self.listeners:
                listener.take(sent)

    def get_subscription_count(self) -> int:
        """How many listen."""
        return len(self.listeners)


class Exchange:
    """The topics of one process."""

    def __init__(self) -> None:
        self.queue: deque[LocalSubscription] = deque()  # who has something to hand over, in order
        self._publishers: dict[str, list[LocalPublisher]] = {}
        self._subscriptions: dict[str, list[LocalSubscription]] = {}

    def publisher(self, msg_type: Any, topic: str, profile: QoSProfile) -> LocalPublisher:
        """A new publisher on a topic (absolute name)."""
        publisher = LocalPublisher(self, msg_type, topic, profile)
        self._publishers.setdefault(topic, []).append(publisher)
        publisher.listeners = [s for s in self._subscriptions.get(topic, ()) if _matches(publisher, s)]
        return publisher

    def subscription(self, msg_type: Any, topic: str, callback: Callback, profile: QoSProfile) -> LocalSubscription:
        """A new subscription; its callback runs in `deliver`."""
        subscription = LocalSubscription(self, msg_type, topic, callback, profile)
        self._subscriptions.setdefault(topic, []).append(subscription)
        for publisher in self._publishers.get(topic, ()):
            if _matches(publisher, subscription):
                publisher.listeners.append(subscription)
                if subscription.transient:
                    for message in publisher.last:
                        subscription.take(message)
        return subscription

    def remove(self, endpoint: LocalPublisher | LocalSubscription) -> bool:
        """End a publisher or subscription; what it has received is not handed over. False when it has ended before."""
        if isinstance(endpoint, LocalPublisher):
            known: list[Any] = self._publishers.get(endpoint.topic_name, [])
        else:
            known = self._subscriptions.get(endpoint.topic_name, [])
            for publisher in self._publishers.get(endpoint.topic_name, ()):
                if endpoint in publisher.listeners:
                    publisher.listeners.remove(endpoint)
            endpoint._waiting.clear()
        if endpoint not in known:
            return False
        known.remove(endpoint)
        return True

    def deliver(self) -> bool:
        """Hand over what was on its way when this was called; False when there was nothing."""
        queue = self.queue
        count = len(queue)
        for _ in range(count):
            queue.popleft().hand_over()
        return count > 0


def _matches(publisher: LocalPublisher, subscription: LocalSubscription) -> bool:
    return publisher.msg_type is subscription.msg_type and (publisher.transient or not subscription.transient)


@cache
def copier(message_type: Any) -> Callable[[Any], Any]:
    """Function that copies a message of this type, made once per type: all levels of it, also its arrays."""
    names: dict[str, Any] = {'new': object.__new__, 'deep': copy.deepcopy}
    lines: list[str] = []
    _message('c', 'm', message_type, names, lines)
    exec('def function(m):\n' + ''.join(f'    {line}\n' for line in lines) + '    return c\n', names)
    return names['function']  # type: ignore[no-any-return]


def _message(target: str, source: str, message_type: Any, names: dict[str, Any], lines: list[str]) -> None:
    """Lines that make `target` a copy of `source`; messages within it in place, without a call for each."""
    lines.append(f'{target} = new({_name(names, message_type)}); {target}._check_fields = True')
    for slot, kind in zip(message_type.__slots__, message_type.SLOT_TYPES, strict=False):
        if isinstance(kind, idl.NamespacedType):
            part = f'p{len(lines)}'
            lines.append(f'{part}_ = {source}.{slot}')
            _message(part, f'{part}_', message_class(kind), names, lines)
            lines.append(f'{target}.{slot} = {part}')
        else:
            lines.append(f'{target}.{slot} = {_copied(f"{source}.{slot}", kind, names)}')


def _copied(value: str, kind: Any, names: dict[str, Any]) -> str:
    if isinstance(kind, idl.BasicType | idl.AbstractString):
        return value  # these never change in place
    item = getattr(kind, 'value_type', None)
    if isinstance(item, idl.NamespacedType):
        return f'[{_name(names, copier(message_class(item)))}(e) for e in {value}]'
    if isinstance(kind, idl.AbstractSequence) and isinstance(item, idl.BasicType | idl.AbstractString):
        return f'{value}[:]'  # a list or an array
    if isinstance(kind, idl.Array) and isinstance(item, idl.BasicType) and item.typename not in ('boolean', 'octet'):
        return f'{value}.copy()'  # an array of numpy
    return f'deep({value})'


def _name(names: dict[str, Any], value: Any) -> str:
    name = f'g{len(names)}'
    names[name] = value
    return name


__all__ = ['Exchange', 'LocalPublisher', 'LocalSubscription', 'copier']
