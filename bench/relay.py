"""Relay hop through a virtual battery against a bare rclpy relay hop, on the same executor.

A hop is: publish a message, one node takes it and publishes another one, a probe gets that. The
virtual battery is the aggregate (status upwards: decode, combine, publish) and the unit (setpoint
downwards: decode, check lease and limits, publish). The bare relay passes the same message types on
unchanged. Rounds alternate, so that a drift of the machine hits both.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .figures import Figure, percentile

ROUNDS, BATCH = 12, 100


def measure() -> list[Figure]:
    """The ratios."""
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    from rclpy.node import Node
    from rclpy.task import Future

    from bess.msg import BatteryStatus, InverterStatus, PowerSetpoint
    from bess_core import qos
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.convert import battery_to_msg, converter_to_msg, stamp
    from bess_core.runtime import Runtime
    from bess_core.ticker import RealTicker
    from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, Mode, Quality
    from bess_virtual.aggregate_node import AggregateNode, AggregateParams
    from bess_virtual.unit_node import UnitNode, UnitNodeParams

    with Runtime(signals=False) as runtime, tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        ticker = RealTicker(clock, runtime.post)
        ctx = NodeContext('/bench', Path(folder), clock, ticker, runtime.post, heartbeat_s=0, diagnostics_s=0)
        probe = Node('probe', namespace='/bench', start_parameter_services=False, enable_rosout=False)
        aggregate = AggregateNode('all', AggregateParams(members=['member']), ctx)
        unit = UnitNode('unit', UnitNodeParams(bms='bms', converter='converter'), ctx)
        bare = Node('bare', namespace='/bench', start_parameter_services=False, enable_rosout=False)
        for node in (probe, aggregate, unit, bare):
            runtime.executor.add_node(node)
        for node in (aggregate, unit):
            node.trigger_configure()
            node.trigger_activate()

        arrival = Future()

        def heard(_: Any) -> None:
            if not arrival.done():
                arrival.set_result(time.perf_counter())

        def publisher(kind: Any, topic: str, profile: Any) -> Any:
            return probe.create_publisher(kind, topic, profile)

        status_in = publisher(BatteryStatus, '/bench/member/status', qos.MEASUREMENT)
        status_bare = publisher(BatteryStatus, '/bench/bare/status', qos.MEASUREMENT)
        order_in = publisher(PowerSetpoint, '/bench/unit/setpoint', qos.SETPOINT)
        order_bare = publisher(PowerSetpoint, '/bench/bare/setpoint', qos.SETPOINT)
        bms_in = publisher(BatteryStatus, '/bench/bms/status', qos.MEASUREMENT)
        converter_in = publisher(InverterStatus, '/bench/converter/status', qos.MEASUREMENT)
        status_out = bare.create_publisher(BatteryStatus, '/bench/bare/status_out', qos.MEASUREMENT)
        order_out = bare.create_publisher(PowerSetpoint, '/bench/bare/order_out', qos.SETPOINT)
        bare.create_subscription(BatteryStatus, '/bench/bare/status', status_out.publish, qos.MEASUREMENT)
        bare.create_subscription(PowerSetpoint, '/bench/bare/setpoint', order_out.publish, qos.SETPOINT)
        probe.create_subscription(BatteryStatus, '/bench/all/status', heard, qos.MEASUREMENT)
        probe.create_subscription(BatteryStatus, '/bench/bare/status_out', heard, qos.MEASUREMENT)
        probe.create_subscription(PowerSetpoint, '/bench/converter/setpoint', heard, qos.SETPOINT)
        probe.create_subscription(PowerSetpoint, '/bench/bare/order_out', heard, qos.SETPOINT)

        def reading() -> BatteryReading:
            now = clock.now()
            return BatteryReading(
                time=now, newest=now, quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=51.2,
                current=0.0, power=0.0, charge=50.0, charge_full=100.0, energy=2560.0, energy_full=5120.0,
                max_charge_current=80.0, max_discharge_current=80.0, max_charge_power=4000.0,
                max_discharge_power=4000.0, soc=0.5, soh=1.0, temperature=25.0, temperature_min=24.0,
                cell_voltage_min=3.2, cell_voltage_max=3.3)

        sequence = 0

        def order() -> Any:
            nonlocal sequence
            sequence += 1
            message = PowerSetpoint(power=1000.0, reactive_power=float('nan'), lease=5.0, source='probe',
                                    sequence=sequence)
            message.header.stamp = stamp(clock, clock.now())
            return message

        def hop(send: Callable[[], None]) -> float:
            nonlocal arrival
            arrival = Future()
            started = time.perf_counter()
            send()
            runtime.executor.spin_until_future_complete(arrival, timeout_sec=2.0)
            if not arrival.done():
                raise RuntimeError('a relayed message did not arrive within 2 s')
            return (arrival.result() - started) * 1e6

        def chain(kind: str) -> float:
            """One hop in us; the message is made before the clock starts."""
            if kind == 'status':
                message = battery_to_msg(reading(), clock)
                return hop(lambda: status_in.publish(message))
            if kind == 'status bare':
                message = battery_to_msg(reading(), clock)
                return hop(lambda: status_bare.publish(message))
            message = order()
            target = order_in if kind == 'order' else order_bare
            return hop(lambda: target.publish(message))

        def warm() -> None:
            now = clock.now()
            bms_in.publish(battery_to_msg(reading(), clock))
            converter_in.publish(converter_to_msg(
                ConverterReading(time=now, quality=Quality.OK, state=ConverterState.RUNNING, active_power=0.0,
                                 dc_voltage=51.2, max_charge_power=4000.0, max_discharge_power=4000.0), clock))
            runtime.spin_until(lambda: unit.reading.quality == Quality.OK, 5.0)

        kinds = ('status', 'status bare', 'order', 'order bare')
        times: dict[str, list[float]] = {k: [] for k in kinds}
        for round_ in range(ROUNDS):
            warm()
            for kind in kinds:
                batch = [chain(kind) for _ in range(BATCH)]
                if round_:  # the first round warms up
                    times[kind] += batch
        for node in (aggregate, unit):
            node.close()
        ticker.stop()
    median = {k: percentile(v, 0.5) for k, v in times.items()}
    return [
        Figure('relay hop, setpoint down through a unit / bare relay', median['order'] / median['order bare'],
               'ratio', 2.0),
        Figure('relay hop, status up through an aggregate / bare relay', median['status'] / median['status bare'],
               'ratio', 2.0),
        Figure('relay hop, status up through an aggregate, median', median['status'], 'us'),
        Figure('relay hop, bare status relay, median', median['status bare'], 'us'),
    ]
