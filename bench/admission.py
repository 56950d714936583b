"""Admission of a schedule through four layers: from the client's call to its answer, with DDS and the disk.

Two units, an aggregate of them, a partition of that into two children, an aggregate of those: each layer holds
its share before the request is accepted, and the journal is synced before it is answered. The quarters of ten
hours are written over again and again, so that plans have some hundreds of segments in the end. What the disk
alone takes for such a record, and what a computation of the same length takes on this machine, are measured in
turns with it: with either beyond the goal the machine cannot meet it.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from typing import Any

from .figures import Figure, percentile, settled
from .stack import bench, member

CALLS, SLOTS = 600, 40
RECORD = b'x' * 200


def measure() -> list[Figure]:
    """Median and 99th percentile."""
    from bess.msg import BatteryStatus, InverterStatus
    from bess.srv import ScheduleSetPower
    from bess_core import qos
    from bess_core.convert import battery_to_msg, converter_to_msg, wall_stamp
    from bess_core.values import ConverterReading, ConverterState, Quality
    from bess_virtual.aggregate_node import AggregateNode
    from bess_virtual.partition_node import PartitionChildNode, PartitionNode
    from bess_virtual.unit_node import UnitNode

    half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
    split: dict[str, Any] = {'source': 'all', 'children': {'house': half, 'grid': half}}
    with bench() as b:
        for name in ('a', 'b'):
            b.battery(UnitNode, name, bms=f'bms_{name}', converter=f'c_{name}')
        b.battery(AggregateNode, 'all', members=['a', 'b'])
        b.battery(PartitionNode, 'split', **split)
        for name, _, params in PartitionNode.expand('split', PartitionNode.Params(**split)):
            b.battery(PartitionChildNode, name, **{k: getattr(params, k) for k in params.__dataclass_fields__})
        top = b.battery(AggregateNode, 'both', members=['house', 'grid'])
        batteries = [b.probe.create_publisher(BatteryStatus, f'/bench/bms_{n}/status', qos.MEASUREMENT) for n in 'ab']
        converters = [b.probe.create_publisher(InverterStatus, f'/bench/c_{n}/status', qos.MEASUREMENT) for n in 'ab']

        def feed(_: Any) -> None:
            now = b.clock.now()
            battery = battery_to_msg(member(now), b.clock)
            converter = converter_to_msg(ConverterReading(
                time=now, quality=Quality.OK, state=ConverterState.RUNNING, active_power=0.0, dc_voltage=51.2,
                max_charge_power=4000.0, max_discharge_power=4000.0, max_apparent_power=5000.0), b.clock)
            for publisher in batteries:
                publisher.publish(battery)
            for publisher in converters:
                publisher.publish(converter)

        b.ticker.every(0.5, feed)
        client = b.probe.create_client(ScheduleSetPower, '/bench/both/schedule_set_power', qos_profile=qos.SERVICE)
        b.wait(lambda: client.service_is_ready() and top.reading.max_charge_power > 0.0, 'a sound stack')

        def admit(k: int) -> float:
            """ms until a request is accepted."""
            begin = b.clock.wall() + 3600.0 + 900.0 * (k % SLOTS)
            request = ScheduleSetPower.Request(
                power=-100.0 - k % 7, start=wall_stamp(begin), end=wall_stamp(begin + 60.0))
            answered: list[float] = []
            started = time.perf_counter()
            future = client.call_async(request)
            future.add_done_callback(lambda _: answered.append(time.perf_counter()))
            b.until(future, 'an answer')
            if not future.result().accepted:
                raise RuntimeError(f'a request was refused: {future.result().message}')
            return (answered[0] - started) * 1e3

        warm, times, syncs, pure = [], [], [], []
        length = 0  # of the loop, once it is known what an admission takes
        with settled(), tempfile.TemporaryFile() as disk:
            for k in range(CALLS):
                disk.write(RECORD)
                disk.flush()
                syncs.append(_timed(lambda: os.fsync(disk.fileno())))
                took = admit(k)
                if k < CALLS // 10:  # the first ones warm up
                    warm.append(took)
                    continue
                length = length or _length(percentile(warm, 0.5))
                times.append(took)
                pure.append(_timed(partial(_compute, length)))
    return [
        Figure('schedule admission through four layers, p99', percentile(times, 0.99), 'ms', 5.0),
        Figure('schedule admission through four layers, median', percentile(times, 0.5), 'ms'),
        Figure('one record synced to the disk alone, in turns with it, p99', percentile(syncs, 0.99), 'ms'),
        Figure('a plain loop as long as that median, in turns with it, p99', percentile(pure, 0.99),
               'ms'),
    ]


def _timed(work: Any) -> float:
    """ms."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _compute(length: int) -> None:
    """A fixed piece of work."""
    for _ in range(length):
        sum(range(500))


def _length(milliseconds: float) -> int:
    """How long a loop takes so many ms when nothing disturbs it."""
    trial = 50
    return max(1, round(trial * milliseconds / min(_timed(lambda: _compute(trial)) for _ in range(20))))
