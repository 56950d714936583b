"""Orders to a battery or converter below."""

from __future__ import annotations

from math import inf

from bess.msg import PowerSetpoint
from bess_core import qos
from bess_core.convert import HEADER, stamp_parts
from bess_core.leases import Numbers
from bess_core.messages import maker
from bess_core.node import BessNode

_setpoint = maker(PowerSetpoint, 'source, power, reactive_power, lease, term, sequence, sec, nanosec, frame', HEADER)


class SetpointSender:
    """Sends orders to one battery or converter below, numbered, stamped and leased."""

    def __init__(self, node: BessNode, target: str, lease: float) -> None:
        self._node, self._lease = node, lease
        self._publisher = node.create_publisher(PowerSetpoint, node.ctx.topic(f'{target}/setpoint'), qos.SETPOINT)
        self._numbers = Numbers(node.clock.now())

    def send(self, power: float, reactive_power: float, now: float, lease: float = inf, term: int = 0) -> None:
        """Order a power (W, + = charging) for at most `lease` s."""
        self._publisher.give(_setpoint(
            self._node.name, float(power), float(reactive_power), float(min(self._lease, lease)), term,
            self._numbers.next(), *stamp_parts(self._node.clock, now), ''))

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)
