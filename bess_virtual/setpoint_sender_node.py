"""Orders to a battery or converter below."""

from __future__ import annotations

from math import inf

from bess.msg import PowerSetpoint
from bess_core import qos
from bess_core.convert import set_stamp
from bess_core.leases import Numbers
from bess_core.node import BessNode


class SetpointSender:
    """Sends orders to one battery or converter below, numbered, stamped and leased."""

    def __init__(self, node: BessNode, target: str, lease: float) -> None:
        self._node, self._lease = node, lease
        self._publisher = node.create_publisher(PowerSetpoint, node.ctx.topic(f'{target}/setpoint'), qos.SETPOINT)
        self._numbers = Numbers(node.clock.now())
        self._message = PowerSetpoint(source=node.name)  # refilled for every order

    def send(self, power: float, reactive_power: float, now: float, lease: float = inf, term: int = 0) -> None:
        """Order a power (W, + = charging) for at most `lease` s."""
        message = self._message
        message._power, message._reactive_power = float(power), float(reactive_power)  # floats need no check
        message._lease, message.term, message.sequence = float(min(self._lease, lease)), term, self._numbers.next()
        set_stamp(message.header.stamp, self._node.clock, now)
        self._publisher.publish(message)

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)
