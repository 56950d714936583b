"""Messages from node to node within one process, without the middleware.

On simulated time nobody else can listen, and a day of it is some million messages: serialising, sending, receiving and
deserialising each of them is most of what it costs. Here publishers, subscriptions, message types, QoS and the order
in which callbacks run are those of a running site; the bytes in between are left out. Listeners get a copy of the
moment, so that senders may refill their messages, or the message itself where the sender gives it away (`give`); they
share it and leave it as it is: callbacks make readings of it.

As in DDS: a message that arrives at a full queue takes the place of the oldest one there, and who subscribes to a
transient-local topic later gets what its publishers sent last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message

from .cdr import encoder
from .messages import copier

Callback = Callable[[Any], object]
Failed = Callable[[Callback, Exception], object]


class LocalSubscription:
    """One listener: its queue, of the depth of its QoS."""

    def __init__(self, exchange: Exchange, msg_type: Any, topic: str, callback: Callback, profile: QoSProfile,
                 failed: Failed | None = None) -> None:
        self.msg_type, self.topic_name, self.callback, self._failed = msg_type, topic, callback, failed
        self.transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        self._queue, self._waiting = exchange.queue, deque[Any](maxlen=profile.depth or 1)

    def take(self, message: Any) -> None:
        """A message arrives."""
        self._waiting.append(message)
        self._queue.append(self)

    def hand_over(self) -> None:
        """One message to the callback, unless newer ones have pushed it out."""
        if not self._waiting:
            return
        message = self._waiting.popleft()
        try:
            self.callback(message)
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(self.callback, error)


class LocalPublisher:
    """As rclpy's publisher, as far as nodes use it."""

    def __init__(self, msg_type: Any, topic: str, profile: QoSProfile) -> None:
        self.msg_type, self.topic_name = msg_type, topic
        self.transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        self.last = deque[Any](maxlen=profile.depth or 1 if self.transient else 0)
        self.listeners: list[LocalSubscription] = []
        self._copy, self._untried = copier(msg_type), encoder(msg_type)

    def publish(self, msg: Any) -> None:
        """Queue a message, or the bytes of one, for all who listen. Raises TypeError for another type."""
        if isinstance(msg, bytes):
            msg = deserialize_message(msg, self.msg_type)
        self.give(self._copy(msg) if type(msg) is self.msg_type and (self.listeners or self.transient) else msg)

    def give(self, msg: Any) -> None:
        """Queue a message that its sender does not change any more. Raises TypeError for another type.

        The first one is encoded, as on a running site each is: a plug-in that fills a field with what it cannot hold
        is found out by `bess_core.cdr.encoder`, with its errors.
        """
        if type(msg) is not self.msg_type:
            raise TypeError(f'{self.topic_name}: expected {self.msg_type.__name__}, got {type(msg).__name__}')
        if self._untried is not None:
            self._untried(msg)
            self._untried = None
        if self.transient:
            self.last.append(msg)
        for listener in self.listeners:
            listener.take(msg)

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
        publisher = LocalPublisher(msg_type, topic, profile)
        self._publishers.setdefault(topic, []).append(publisher)
        publisher.listeners = [s for s in self._subscriptions.get(topic, ()) if _matches(publisher, s)]
        return publisher

    def subscription(self, msg_type: Any, topic: str, callback: Callback, profile: QoSProfile,
                     failed: Failed | None = None) -> LocalSubscription:
        """A new subscription; its callback runs in `deliver`. What it raises is told to `failed`, if there is one."""
        subscription = LocalSubscription(self, msg_type, topic, callback, profile, failed)
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


__all__ = ['Exchange', 'LocalPublisher', 'LocalSubscription']
