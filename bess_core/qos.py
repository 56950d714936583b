"""Quality of service by role, chosen once.

Depth is small everywhere: control wants the newest value, not a backlog. A setpoint's validity is
the lease inside the message, checked by the receiver on its own clock (QoS alone is not enough).
"""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, durability: DurabilityPolicy, lifespan_s: float = 0.0) -> QoSProfile:
    profile = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=durability,
    )
    if lifespan_s:
        profile.lifespan = Duration(seconds=lifespan_s)
    return profile


def profile(given: QoSProfile | int) -> QoSProfile:
    """A profile, or what rclpy makes of a mere depth."""
    return QoSProfile(depth=given) if isinstance(given, int) else given


#: State, mode, limits: a late joiner gets the last one.
STATE = _profile(1, DurabilityPolicy.TRANSIENT_LOCAL)
#: Who listens to faults: several publishers on one topic. They publish as STATE: a late joiner gets the last list of
#: each node, and not a fault that has been cleared since.
FAULTS = _profile(100, DurabilityPolicy.TRANSIENT_LOCAL)
#: Measurements: reliable costs the same as best effort on one host.
MEASUREMENT = _profile(5, DurabilityPolicy.VOLATILE)
#: Events, traces, proposals and heartbeats: several senders share a topic.
EVENT = _profile(50, DurabilityPolicy.VOLATILE)

#: Events that who comes later may still want to hear.
TRANSITIONS = _profile(50, DurabilityPolicy.TRANSIENT_LOCAL)


def setpoint(lease_s: float = 0.0) -> QoSProfile:
    """Orders: newest only; with a lease, dropped by the middleware once it is over."""
    return _profile(1, DurabilityPolicy.VOLATILE, lease_s)


SETPOINT = setpoint()
DIAGNOSTICS = _profile(10, DurabilityPolicy.VOLATILE)
#: Services that many clients call at once: with the usual depth of 10 the middleware would drop requests of a crowd.
SERVICE = _profile(2000, DurabilityPolicy.VOLATILE)
