"""Publishing recordings onto the graph: publishers of an rclpy node for `bess_telemetry.replay`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from bess_telemetry.recorder_node import message_class

DEPTH = 100
INFINITE_S = 9223372036


def offered_qos(recorded: tuple[dict[str, Any], ...]) -> QoSProfile:
    """A profile that serves every subscriber the recorded publishers served.

    Reliable and transient_local if one of them was; deadline and liveliness are not promised again.
    """
    reliable = not recorded or any(q['reliability'] in ('reliable', 1) for q in recorded)
    latched = any(q['durability'] in ('transient_local', 1) for q in recorded)
    profile = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=max([1 if latched else DEPTH, *(int(q['depth']) for q in recorded)]),
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)
    spans = [q['lifespan'] for q in recorded]
    if spans and all(s['sec'] + s['nsec'] > 0 and s['sec'] < INFINITE_S for s in spans):
        longest = max(spans, key=lambda s: (s['sec'], s['nsec']))
        profile.lifespan = Duration(seconds=longest['sec'], nanoseconds=longest['nsec'])
    return profile


class NodePublishers:
    """A `replay.PublisherFactory` on an rclpy node. Create it before, `destroy` it after replaying."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: list[Any] = []

    def __call__(self, topic: str, msgtype: str,
                 qos: tuple[dict[str, Any], ...]) -> Callable[[bytes], object]:
        """Raises `definitions.DefinitionNotFound` for a type that is not installed."""
        publisher = self._node.create_publisher(message_class(msgtype), topic, offered_qos(qos))
        self._publishers.append(publisher)
        return publisher.publish  # takes serialized bytes as well

    def matched(self) -> bool:
        """Whether every topic has a subscriber (for `replay(ready=...)`)."""
        return all(p.get_subscription_count() > 0 for p in self._publishers)

    def destroy(self) -> None:
        """Remove the publishers."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
