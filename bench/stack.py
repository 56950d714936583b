"""Batteries on batteries in one process: what a layer adds.

Added latency per layer is the slope over the depth: status up and setpoint down through 1 to 8
aggregates of one member. It is held against the same slope of a chain of bare relays of the same messages
on the same executor, so that publishing by the probe, waking up and arriving are on neither side; and, for
information, against the whole hop through one bare relay, which contains them. Depths and kinds take turns,
so that a drift of the machine hits all alike.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .figures import Figure, ahead_of_others, percentile, settled

DEPTHS = (1, 2, 4, 6, 8)
ROUNDS, BATCH = 12, 25

os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')


class Bench:
    """An executor, a namespace, a probe node, and batteries that are made when asked for."""

    def __init__(self, runtime: Any, folder: Path, namespace: str = '/bench') -> None:
        from bess_core.clock import Clock
        from bess_core.context import NodeContext
        from bess_core.ticker import RealTicker

        self.runtime, self.clock = runtime, Clock()
        self.ticker = RealTicker(self.clock, runtime.post)
        self.ctx = NodeContext(namespace, folder, self.clock, self.ticker, runtime.post, heartbeat_s=0,
                               diagnostics_s=0)
        self.probe = self.plain('probe')
        self.batteries: list[Any] = []

    def plain(self, name: str) -> Any:
        """A bare rclpy node."""
        from rclpy.node import Node

        node = Node(name, namespace=self.ctx.namespace, start_parameter_services=False, enable_rosout=False)
        self.runtime.executor.add_node(node)
        return node

    def battery(self, cls: Any, name: str, **values: Any) -> Any:
        """A logical battery, active."""
        node = cls(name, cls.Params(**values), self.ctx)
        self.ctx.nodes[name] = node
        self.runtime.executor.add_node(node)
        self.batteries.append(node)
        for transition in (node.trigger_configure, node.trigger_activate):
            if transition().name != 'SUCCESS':
                raise RuntimeError(f'{name} does not come up')
        return node

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
        """Raises RuntimeError when the condition does not come true."""
        if not self.runtime.spin_until(lambda: bool(condition()), timeout_s):
            raise RuntimeError(f'not within {timeout_s:g} s: {what}')

    def until(self, future: Any, what: str, timeout_s: float = 5.0) -> None:
        """Handle callbacks just until the future is done."""
        self.runtime.executor.spin_until_future_complete(future, timeout_sec=timeout_s)
        if not future.done():
            raise RuntimeError(f'not within {timeout_s:g} s: {what}')

    def close(self) -> None:
        """End the batteries, upper ones first."""
        for node in reversed(self.batteries):
            node.close()
        self.ticker.stop()


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench with a folder of its own."""
    from bess_core.runtime import Runtime

    with ahead_of_others(), Runtime(signals=False) as runtime, tempfile.TemporaryDirectory() as folder:
        made = Bench(runtime, Path(folder))
        try:
            yield made
        finally:
            made.close()


def member(now: float, **values: Any) -> Any:
    """Reading of a sound 5 kWh battery, measured now."""
    from bess_core.values import BatteryReading, Contactor, Mode, Quality

    fields: dict[str, Any] = {
        'time': now, 'newest': now, 'quality': Quality.OK, 'mode': Mode.IDLE, 'contactor': Contactor.CLOSED,
        'voltage': 51.2, 'current': 0.0, 'power': 0.0, 'charge': 50.0, 'charge_full': 100.0, 'energy': 2560.0,
        'energy_full': 5120.0, 'max_charge_current': 80.0, 'max_discharge_current': 80.0, 'max_charge_power': 4000.0,
        'max_discharge_power': 4000.0, 'soc': 0.5, 'soh': 1.0, 'temperature': 25.0, 'temperature_min': 24.0,
        'cell_voltage_min': 3.2, 'cell_voltage_max': 3.3}
    return BatteryReading(**{**fields, **values})


def slope(points: dict[int, float]) -> float:
    """Least squares slope of the values over the depths."""
    mean_x = sum(points) / len(points)
    mean_y = sum(points.values()) / len(points)
    return (sum((x - mean_x) * (y - mean_y) for x, y in points.items())
            / sum((x - mean_x) ** 2 for x in points))


class _Stacks:
    """A stack of aggregates over `base_virtual` and one of bare relays over `base_bare`, tapped at each depth."""

    def __init__(self, b: Bench) -> None:
        from rclpy.task import Future

        from bess.msg import BatteryStatus, PowerSetpoint
        from bess_core import qos
        from bess_virtual.aggregate_node import AggregateNode

        self.b, self._future_class = b, Future
        self._arrival = Future()
        self._sequence = 0
        self.status = {kind: b.probe.create_publisher(BatteryStatus, f'/bench/{kind}_0/status', qos.MEASUREMENT)
                       for kind in ('virtual', 'bare')}
        self.orders: dict[tuple[str, int], Any] = {}
        self._taps: list[Any] = []
        self._node = b.plain('relays')
        for depth in range(1, max(DEPTHS) + 1):
            b.battery(AggregateNode, f'virtual_{depth}', members=[f'virtual_{depth - 1}'], limit='sum', period=10.0,
                      max_age=60.0, invalid_after=600.0, lease=60.0)
            self._relay(BatteryStatus, f'bare_{depth - 1}/status', f'bare_{depth}/status', qos.MEASUREMENT)
            self._relay(PowerSetpoint, f'bare_{depth}/setpoint', f'bare_{depth - 1}/setpoint', qos.SETPOINT)
        for kind in ('virtual', 'bare'):
            for depth in DEPTHS:
                self.orders[kind, depth] = b.probe.create_publisher(
                    PowerSetpoint, f'/bench/{kind}_{depth}/setpoint', qos.SETPOINT)
            b.probe.create_subscription(PowerSetpoint, f'/bench/{kind}_0/setpoint', self._heard, qos.SETPOINT)

    def _relay(self, message_type: Any, source: str, target: str, profile: Any) -> None:
        publisher = self._node.create_publisher(message_type, f'/bench/{target}', profile)
        self._node.create_subscription(message_type, f'/bench/{source}', publisher.publish, profile)

    def _heard(self, _: Any) -> None:
        if not self._arrival.done():
            self._arrival.set_result(time.perf_counter())

    def tap(self, kind: str, depth: int) -> None:
        """Listen to the status at this depth; stacks above it go on, behind what is measured."""
        from bess.msg import BatteryStatus
        from bess_core import qos

        for old in self._taps:
            self.b.probe.destroy_subscription(old)
        found = self.b.probe.create_subscription(
            BatteryStatus, f'/bench/{kind}_{depth}/status', self._heard, qos.MEASUREMENT)
        self._taps = [found]
        self.b.wait(lambda: found.get_publisher_count() > 0, 'publisher of the status')

    def hop(self, send: Callable[[], None]) -> float:
        """us from sending to arrival; then everything settles."""
        self._arrival = self._future_class()
        started = time.perf_counter()
        send()
        self.b.until(self._arrival, 'a message through the stack')
        took = (self._arrival.result() - started) * 1e6
        self.b.runtime.spin_until(lambda: False, 0.003)
        return took

    def up(self, kind: str) -> float:
        """One status through the stack."""
        from bess_core.convert import battery_to_msg

        message = battery_to_msg(member(self.b.clock.now()), self.b.clock)
        return self.hop(lambda: self.status[kind].publish(message))

    def down(self, kind: str, depth: int) -> float:
        """One order through the stack."""
        from bess.msg import PowerSetpoint
        from bess_core.convert import stamp

        self._sequence += 1
        # A higher term each time: lower layers still hold leases of what another depth was told.
        message = PowerSetpoint(power=1000.0, reactive_power=float('nan'), lease=5.0, source='probe',
                                sequence=self._sequence, term=self._sequence)
        message.header.stamp = stamp(self.b.clock, self.b.clock.now())
        return self.hop(lambda: self.orders[kind, depth].publish(message))


def layers() -> list[Figure]:
    """Added latency per layer against that of a bare relay, both ways."""
    kinds = ('virtual', 'bare')
    times: dict[tuple[str, str, int], list[float]] = {
        (way, kind, depth): [] for way in ('up', 'down') for kind in kinds for depth in DEPTHS}
    with bench() as b:
        stacks = _Stacks(b)
        with settled():
            for round_ in range(ROUNDS):
                for depth in DEPTHS:
                    for kind in kinds:
                        stacks.tap(kind, depth)
                        stacks.up(kind)  # the tap was just made
                        batch = [stacks.up(kind) for _ in range(BATCH)]
                        if round_:  # the first round warms up
                            times['up', kind, depth] += batch
                for depth in DEPTHS:
                    for kind in kinds:
                        batch = [stacks.down(kind, depth) for _ in range(BATCH)]
                        if round_:
                            times['down', kind, depth] += batch
    out = []
    for way, words in (('up', 'status up'), ('down', 'setpoint down')):
        median = {(kind, d): percentile(times[way, kind, d], 0.5) for kind in kinds for d in DEPTHS}
        per = {kind: slope({d: median[kind, d] for d in DEPTHS}) for kind in kinds}
        out += [
            Figure(f'latency added per virtual layer / added per bare relay, {words}', per['virtual'] / per['bare'],
                   'ratio', 1.5),
            Figure(f'latency added per virtual layer / whole bare relay hop, {words}',
                   per['virtual'] / median['bare', 1], 'ratio'),
            Figure(f'latency added per virtual layer, {words}', per['virtual'], 'us'),
        ]
    return out


def measure() -> list[Figure]:
    """Status up and setpoint down."""
    return layers()
