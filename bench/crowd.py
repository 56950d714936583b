"""Many batteries: an aggregate of 100 and of 1000 members, and 200 logical batteries in one process.

The time of an aggregate counts from the first of its members' messages being sent until its own status
with all of them has arrived; members send one after the other from the same process, as fast as it goes,
which is part of the time. The 200 batteries are in a process of their own, fed at 1 Hz by this one.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from .figures import Figure, percentile
from .stack import Bench, bench, member

SIZES = (100, 1000)
ROUNDS = 25
UNITS, GROUPS, PARTITIONS = 150, 30, 10  # 150 units, 30 aggregates of 5 units, 10 partitions with 2 children
WARM_S, WATCH_S = 15.0, 30.0


def _members(count: int) -> tuple[float, float]:
    """ms from the change of all members to the status of their aggregate: on the wall, and CPU (medians)."""
    from rclpy.task import Future

    from bess.msg import BatteryStatus
    from bess_core import qos
    from bess_core.convert import battery_to_msg
    from bess_virtual.aggregate_node import AggregateNode

    with bench() as b:
        names = [f'm{i}' for i in range(count)]
        publishers = [b.probe.create_publisher(BatteryStatus, f'/bench/{n}/status', qos.MEASUREMENT) for n in names]
        b.battery(AggregateNode, 'all', members=names, period=10.0, max_age=60.0, invalid_after=600.0)
        arrival, wanted = Future(), 0.0

        def heard(message: Any) -> None:
            if not arrival.done() and abs(message.power - wanted) < 1e-6 * abs(wanted):
                arrival.set_result(time.perf_counter())

        status = b.probe.create_subscription(BatteryStatus, '/bench/all/status', heard, qos.MEASUREMENT)
        b.wait(lambda: status.get_publisher_count() and all(p.get_subscription_count() for p in publishers),
               'discovery of all members', 60.0)
        gc.collect()
        gc.freeze()  # as the container does
        times, busy = [], []
        try:
            for k in range(ROUNDS + 3):
                power = 10.0 + k
                messages = [battery_to_msg(member(b.clock.now(), power=power, current=power / 51.2), b.clock)
                            for _ in names]
                arrival, wanted = Future(), power * count
                started, cpu = time.perf_counter(), time.process_time()
                for publisher, message in zip(publishers, messages, strict=True):
                    publisher.publish(message)
                b.until(arrival, 'a status with all members')
                if k >= 3:
                    times.append((arrival.result() - started) * 1e3)
                    busy.append((time.process_time() - cpu) * 1e3)
        finally:
            gc.unfreeze()
    return percentile(times, 0.5), percentile(busy, 0.5)


def members() -> list[Figure]:
    """Both sizes, and how the cost grows."""
    found = {count: _members(count) for count in SIZES}
    small, large = SIZES
    return [
        Figure(f'change of {small} members to the status of their aggregate', found[small][0], 'ms', 10.0),
        Figure(f'change of {large} members to the status of their aggregate', found[large][0], 'ms', 80.0),
        # Linear but for caches: 1000 endpoints do not fit into them. A quadratic part would make it up to 10.
        Figure(f'CPU per member, {large} / {small} members', found[large][1] / large / (found[small][1] / small),
               'ratio', 2.0),
    ]


def _host(folder: Path) -> None:
    """The process under test."""
    from bess_core.runtime import Runtime
    from bess_virtual.aggregate_node import AggregateNode
    from bess_virtual.partition_node import PartitionChildNode, PartitionNode
    from bess_virtual.unit_node import UnitNode

    with Runtime() as runtime:
        b = Bench(runtime, folder)
        b.ctx.heartbeat_s, b.ctx.diagnostics_s = 1.0, 1.0
        slow = {'period': 1.0, 'max_age': 3.0}
        for i in range(UNITS):
            b.battery(UnitNode, f'unit_{i}', bms=f'bms_{i}', converter=f'converter_{i}', **slow)
        for i in range(GROUPS):
            share = UNITS // GROUPS
            b.battery(AggregateNode, f'group_{i}', members=[f'unit_{share * i + k}' for k in range(share)], **slow)
        half = {'energy': 0.5, 'charge_power': 0.5, 'discharge_power': 0.5}
        for i in range(PARTITIONS):
            children = {f'part_{i}_{k}': half for k in range(2)}
            parameters = PartitionNode.Params(source=f'group_{i}', children=children, **slow)
            b.battery(PartitionNode, f'split_{i}', source=f'group_{i}', children=children, **slow)
            for child, _, values in PartitionNode.expand(f'split_{i}', parameters):
                b.battery(PartitionChildNode, child, **{k: getattr(values, k) for k in values.__dataclass_fields__})
        gc.collect()
        gc.freeze()
        print(sum(node.role == 'battery' for node in b.batteries), flush=True)
        b.ticker.every(0.2, lambda _: runtime.stop() if os.getppid() == 1 else None)
        runtime.spin()
        b.close()


def process() -> list[Figure]:
    """CPU time of a process that holds 200 batteries, each with fresh data every second."""
    from bess.msg import BatteryStatus, InverterStatus
    from bess_core import qos
    from bess_core.convert import battery_to_msg, converter_to_msg
    from bess_core.values import ConverterReading, ConverterState, Quality

    with bench() as b, tempfile.TemporaryDirectory() as folder:
        bms = [b.probe.create_publisher(BatteryStatus, f'/bench/bms_{i}/status', qos.MEASUREMENT)
               for i in range(UNITS)]
        converters = [b.probe.create_publisher(InverterStatus, f'/bench/converter_{i}/status', qos.MEASUREMENT)
                      for i in range(UNITS)]

        def feed(_: Any) -> None:
            now = b.clock.now()
            status = battery_to_msg(member(now), b.clock)
            state = converter_to_msg(ConverterReading(
                time=now, quality=Quality.OK, state=ConverterState.RUNNING, active_power=0.0, dc_voltage=51.2,
                max_charge_power=4000.0, max_discharge_power=4000.0), b.clock)
            for publisher in bms:
                publisher.publish(status)
            for publisher in converters:
                publisher.publish(state)

        heard: dict[str, list[Any]] = {'group_0': [], 'part_0_0': []}
        for name, messages in heard.items():
            b.probe.create_subscription(BatteryStatus, f'/bench/{name}/status', messages.append, qos.MEASUREMENT)
        child = subprocess.Popen([sys.executable, '-m', 'bench.crowd', '--host', folder], stdout=subprocess.PIPE,
                                 text=True, cwd=Path(__file__).parent.parent)
        try:
            assert child.stdout is not None
            count = int(child.stdout.readline() or 0)
            if count != UNITS + GROUPS + 2 * PARTITIONS:
                raise RuntimeError(f'{count} batteries came up')
            b.ticker.every(1.0, feed)
            b.wait(lambda: all(m and m[-1].quality == 0 for m in heard.values()), 'sound batteries', 60.0)
            b.runtime.spin_until(lambda: False, WARM_S)
            for messages in heard.values():
                messages.clear()
            seen = psutil.Process(child.pid)
            before, started = sum(seen.cpu_times()[:2]), time.perf_counter()
            b.runtime.spin_until(lambda: False, WATCH_S)
            took = time.perf_counter() - started
            share = (sum(seen.cpu_times()[:2]) - before) / took
            rates = {name: len(messages) / took for name, messages in heard.items()}
            if min(rates.values()) < 0.9:
                raise RuntimeError(f'statuses did not come at 1 Hz: {rates}')
            memory = seen.memory_full_info().pss / 2**20
        finally:
            child.kill()  # the middleware takes long to take 200 nodes down, and nothing of it is kept
            child.wait(30.0)
    return [
        Figure(f'{count} logical batteries at 1 Hz in one process', 100.0 * share, '% of a core', 25.0),
        Figure(f'{count} logical batteries in one process, memory (PSS)', memory, 'MB'),
    ]


def measure() -> list[Figure]:
    """Aggregates of many members, then many batteries."""
    return members() + process()


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--host', type=Path, required=True)
    _host(parser.parse_args().host)
