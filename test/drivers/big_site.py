"""Processes of `test_big_site.py`: 100 Modbus units on 10 buses, 4 CAN buses at 2,000 frames/s each, and the site.

`devices FOLDER`, `can RATE PORT...` and `site FOLDER SECONDS` print one line of JSON when they are ready; the site
prints its figures as the second.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

BUSES, UNITS, CHANNELS, RATE = 10, 10, 4, 2000  # half of the buses TCP, half RTU on ptys; frames/s per channel
GROUP = '239.74.163.2'
#: frames that a battery sends; those beyond the ten that a driver wants are what else is on such a bus
IDS = (0x351, 0x355, 0x356, 0x35A, 0x35C, 0x35E, 0x35F, 0x372, 0x373, 0x379, 0x700, 0x701)
TCP, RTU, CONVERTER = 'janitza_umg96rme', 'eastron_sdm630', 'victron_vebus'
WARM_S = 5.0
PIECES = 10  # after each the memory is looked at


def until_closed() -> None:
    """Until whoever started this process closes its end, or is gone."""
    sys.stdin.read()


def closed() -> threading.Event:
    """Set when whoever started this process closes its end."""
    ended = threading.Event()
    threading.Thread(target=lambda: (until_closed(), ended.set()), daemon=True).start()
    return ended


def waited_for_a_core() -> float:
    """s that the threads of this process were ready to run and had no core (all together)."""
    total = 0.0
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((task / 'schedstat').read_text().split()[1]) / 1e9
    return total


def own_memory_mb() -> float:
    """Memory that this process filled itself. Not PSS: that moves by 20 MB when others start and end Python."""
    for line in Path('/proc/self/smaps_rollup').read_text().splitlines():
        if line.startswith('Anonymous:'):
            return int(line.split()[1]) / 1024.0
    raise RuntimeError('the kernel does not tell the memory of a process')


def devices(folder: Path) -> None:
    """Ten servers with ten units each; unit 1 of the first is a converter. Their values move: else they are a fault."""
    from bess_sim.device_faults import DeviceFaults
    from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
    from bess_sim.devices.register_layouts import LAYOUTS
    from bess_sim.devices.victron import VICTRON_LAYOUTS
    from bess_sim.plant_api import MeterSample, StaticPlant

    servers: list[Any] = []
    plants: list[StaticPlant] = []
    for bus in range(BUSES):
        faults, units = DeviceFaults(), {}
        for unit in range(1, UNITS + 1):
            plant = StaticPlant(meter_sample=MeterSample(phase_power=(float(bus), float(unit), 0.0)))
            plants.append(plant)
            units[unit] = LAYOUTS[RTU if bus % 2 else TCP](plant, 'u', faults)
        if bus == 0:
            units[1] = VICTRON_LAYOUTS[CONVERTER](plants[0], 'u', faults)
        servers.append(ModbusRtuServer(units, faults, folder / f'tty{bus}') if bus % 2
                       else ModbusDeviceServer(units, faults))
        servers[-1].start()
    print(json.dumps([f'rtu:{s.link_path}?baud=115200' if hasattr(s, 'link_path') else f'tcp://127.0.0.1:{s.port}'
                      for s in servers]), flush=True)
    ended = closed()
    beat = 0
    while not ended.wait(1.0):
        beat += 1
        for plant in plants:
            plant.meter_sample = replace(plant.meter_sample, phase_power=(*plant.meter_sample.phase_power[:2],
                                                                          float(beat % 100)))
        sample = plants[0].inverter('u')
        plants[0].inverters['u'] = replace(sample, dc_voltage=50.0 + beat % 10 / 10)
    for server in servers:
        server.stop()


def can_traffic(rate: int, ports: list[int]) -> None:
    """`rate` frames/s on each channel, in pieces of 10 ms."""
    import can

    from bess_sim.devices.can_bms import frames_of
    from bess_sim.plant_api import PackSample

    data = frames_of(PackSample(), 3.6, 2.7)
    messages = [can.Message(arbitration_id=i, data=data.get(i, bytes(8)), is_extended_id=False) for i in IDS]
    buses = [can.Bus(interface='udp_multicast', channel=GROUP, port=p, fd=False, hop_limit=0) for p in ports]
    ended = closed()
    print(json.dumps('sending'), flush=True)
    begun, sent = time.monotonic(), 0
    while not ended.is_set():
        due = int((time.monotonic() - begun) * rate)
        if due - sent > rate:  # it could not keep up: say so in the rate, not by a burst
            begun, sent = time.monotonic(), 0
            continue
        for k in range(sent, due):
            for bus in buses:
                bus.send(messages[k % len(messages)])
        sent = due
        ended.wait(0.01)
    for bus in buses:
        bus.shutdown()


def site(folder: Path, seconds: float, addresses: list[str], ports: list[int]) -> None:
    """All drivers, a unit and the power manager in one process, as a container holds them."""
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.params import build
    from bess_core.runtime import Runtime
    from bess_core.site import resolve_type
    from bess_core.ticker import RealTicker

    with Runtime() as runtime:
        clock = Clock()
        ticker = RealTicker(clock, runtime.post)
        ctx = NodeContext('/big', folder, clock, ticker, runtime.post)
        nodes: dict[str, Any] = {}

        def add(kind: str, name: str, **values: Any) -> None:
            cls = resolve_type(kind)
            nodes[name] = ctx.nodes[name] = cls(name, build(cls.Params, values), ctx)
            runtime.executor.add_node(nodes[name])

        for bus, address in enumerate(addresses):
            for unit in range(1, UNITS + 1):
                if (bus, unit) == (0, 1):
                    add('modbus_converter', 'converter', address=address, profile=CONVERTER, unit=unit, bms='can_0')
                else:
                    add('modbus_meter', f'meter_{bus}_{unit}', address=address, profile=RTU if bus % 2 else TCP,
                        unit=unit, period=0.5)
        for n, port in enumerate(ports):
            add('can_bms', f'can_{n}', address=f'can:udp_multicast:{GROUP}?port={port}', period=0.2,
                keep_alive=False)
        add('unit', 'unit', bms='can_0', converter='converter')
        add('power_manager', 'power_manager', battery='unit', meter='meter_0_2')
        for step in ('trigger_configure', 'trigger_activate'):
            for name, node in nodes.items():
                if getattr(node, step)().name != 'SUCCESS':
                    raise RuntimeError(f'{step} of {name} failed')
        gc.collect()
        gc.freeze()
        print(json.dumps(len(nodes)), flush=True)
        runtime.spin_until(lambda: False, WARM_S)
        manager, process = nodes['power_manager'], psutil.Process()
        drivers = {n: node for n, node in nodes.items() if hasattr(node, '_client')}

        def counted() -> dict[str, Any]:
            return {'polls': {n: d._client.counters.ok for n, d in drivers.items()},
                    'errors': {n: dict(d._client.counters.errors) for n, d in drivers.items()},
                    'frames': [nodes[f'can_{n}']._client.device.link.channel.counters.received
                               for n in range(len(ports))],
                    'ticks': manager.progress, 'missed': manager.missed_ticks, 'late': manager.late_ticks,
                    'memory': own_memory_mb(), 'cpu': sum(process.cpu_times()[:2]),
                    'files': len(os.listdir('/proc/self/fd')), 'threads': threading.active_count(),
                    'faults': {n: ids for n, node in nodes.items() if (ids := [f.id for f in node.faults.active])},
                    'waited': waited_for_a_core(), 'time': time.monotonic()}

        before, trace = counted(), []
        for _ in range(PIECES):
            runtime.spin_until(lambda: os.getppid() == 1, seconds / PIECES)
            trace.append(round(own_memory_mb(), 1))
        after = {**counted(), 'trace': trace}
        print(json.dumps([before, after]), flush=True)
        for node in nodes.values():
            node.close()
        ticker.stop()


if __name__ == '__main__':
    what, *rest = sys.argv[1:]
    if what == 'devices':
        devices(Path(rest[0]))
    elif what == 'can':
        can_traffic(int(rest[0]), [int(p) for p in rest[1:]])
    else:
        site(Path(rest[0]), float(rest[1]), json.loads(rest[2]), json.loads(rest[3]))
