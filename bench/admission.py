"""Admission of a schedule through four layers: from the client's call to its answer, with DDS and the disk.

Two units, an aggregate of them, a partition of that into two children, an aggregate of those: each layer holds
its share before the request is accepted, and the journal is synced before it is answered.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .figures import Figure, ahead_of_others, percentile, settled

CALLS, KEPT = 400, 20  # so many requests are in force at most


def measure() -> list[Figure]:
    """Median and 99th percentile."""
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    from rclpy.node import Node

    from bess.msg import BatteryStatus, InverterStatus
    from bess.srv import CancelSchedule, ScheduleSetPower
    from bess_core import qos
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.convert import battery_to_msg, converter_to_msg, wall_stamp
    from bess_core.runtime import Runtime
    from bess_core.ticker import RealTicker
    from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, Mode, Quality
    from bess_virtual.aggregate_node import AggregateNode, AggregateParams
    from bess_virtual.partition_node import PartitionChildNode, PartitionNode, PartitionParams
    from bess_virtual.unit_node import UnitNode, UnitNodeParams

    half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    with ahead_of_others(), Runtime(signals=False) as runtime, tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        ticker = RealTicker(clock, runtime.post)
        ctx = NodeContext('/bench', Path(folder), clock, ticker, runtime.post, heartbeat_s=0, diagnostics_s=0)
        client = Node('client', namespace='/bench', start_parameter_services=False, enable_rosout=False)
        split = PartitionParams(source='all', children={'house': half, 'grid': half})
        nodes: list[Any] = []

        def add(cls: Any, name: str, params: Any) -> None:
            node = ctx.nodes[name] = cls(name, params, ctx)
            nodes.append(node)

        for name in ('a', 'b'):
            add(UnitNode, name, UnitNodeParams(bms=f'bms_{name}', converter=f'c_{name}'))
        add(AggregateNode, 'all', AggregateParams(members=['a', 'b']))
        add(PartitionNode, 'split', split)
        for name, _, params in PartitionNode.expand('split', split):
            add(PartitionChildNode, name, params)
        add(AggregateNode, 'both', AggregateParams(members=['house', 'grid']))
        for node in (client, *nodes):
            runtime.executor.add_node(node)
        for node in nodes:
            node.trigger_configure()
        for node in nodes:
            node.trigger_activate()
        statuses = [(client.create_publisher(kind, f'{half_name}_{name}/status', qos.MEASUREMENT), kind)
                    for name in ('a', 'b') for half_name, kind in (('bms', BatteryStatus), ('c', InverterStatus))]

        def publish(_: Any) -> None:
            now = clock.now()
            battery = battery_to_msg(BatteryReading(
                time=now, newest=now, quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=51.2,
                current=0.0, power=0.0, energy=2560.0, energy_full=5120.0, max_charge_current=80.0,
                max_discharge_current=80.0, max_charge_power=4000.0, max_discharge_power=4000.0, soc=0.5), clock)
            converter = converter_to_msg(ConverterReading(
                time=now, quality=Quality.OK, state=ConverterState.RUNNING, active_power=0.0, max_charge_power=5000.0,
                max_discharge_power=5000.0, max_apparent_power=5000.0), clock)
            for publisher, kind in statuses:
                publisher.publish(battery if kind is BatteryStatus else converter)

        ticker.every(0.5, publish)
        schedule = client.create_client(ScheduleSetPower, 'both/schedule_set_power', qos_profile=qos.SERVICE)
        cancel = client.create_client(CancelSchedule, 'both/cancel_schedule', qos_profile=qos.SERVICE)
        top = ctx.nodes['both']
        if not runtime.spin_until(lambda: bool(schedule.service_is_ready() and cancel.service_is_ready()
                                               and top.reading.max_discharge_power > 0.0), 10.0):
            raise RuntimeError('the batteries do not come up')

        def call(service: Any, request: Any) -> tuple[float, Any]:
            answered: list[float] = []
            started = time.perf_counter()
            future = service.call_async(request)
            future.add_done_callback(lambda _: answered.append(time.perf_counter()))
            if not runtime.spin_until(lambda: bool(answered), 5.0):
                raise RuntimeError('no answer')
            return (answered[0] - started) * 1e3, future.result()

        times = []
        with settled():
            for i in range(CALLS):
                wall = clock.wall()
                took, answer = call(schedule, ScheduleSetPower.Request(
                    power=-100.0 - i, start=wall_stamp(wall + 600 + 10 * i), end=wall_stamp(wall + 900 + 10 * i)))
                if not answer.accepted:
                    raise RuntimeError(answer.message)
                times.append(took)
                if i % KEPT == KEPT - 1:
                    call(cancel, CancelSchedule.Request())
        ticker.stop()
        for node in reversed(nodes):
            node.close()
        for node in (*reversed(nodes), client):
            runtime.executor.remove_node(node)
            node.destroy_node()
    return [Figure('schedule admission through four layers, 99th percentile', percentile(times, 0.99), 'ms', 5.0),
            Figure('schedule admission through four layers, median', percentile(times, 0.5), 'ms')]
