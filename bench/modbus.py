"""Modbus: a poll to a published message against bare pymodbus round trips, decoding, and finding SunSpec models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .figures import Figure

ROUNDS = 400
#: Models of a storage inverter with everything, besides the common model: 15 in all.
MODELS = (1, 701, 702, 703, 704, 705, 706, 707, 708, 709, 710, 711, 712, 713, 802)


def _serve(pipe: Any) -> None:
    """In a process of its own: a meter as unit 1, a SunSpec map as unit 2."""
    from bess_sim.device_faults import DeviceFaults
    from bess_sim.devices.modbus_server import ModbusDeviceServer
    from bess_sim.devices.register_layouts import LAYOUTS
    from bess_sim.devices.sunspec_base import SunSpecDevice
    from bess_sim.devices.sunspec_image import SunSpecImage
    from bess_sim.plant_api import StaticPlant

    faults = DeviceFaults()
    image = SunSpecImage(dict.fromkeys(MODELS, 1))
    server = ModbusDeviceServer({1: LAYOUTS['janitza_umg96rme'](StaticPlant(), '', faults),
                                 2: SunSpecDevice(image, time.monotonic, background=False)}, faults)
    server.start()
    pipe.send(server.port)
    pipe.recv()
    server.stop()


def _ratio(rounds: int, bare: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Median over the rounds of `ours` / `bare`, and median time of `ours` in s.

    Both are taken in turn, in the other order each time, and divided within their round: load that comes and
    goes, and what the first of two leaves in the caches for the second, hit both alike.
    """
    ratios, times = [], []
    for k in range(rounds):
        taken = {}
        for call in (bare, ours) if k % 2 else (ours, bare):
            start = time.perf_counter()
            call()
            taken[call] = time.perf_counter() - start
        ratios.append(taken[ours] / taken[bare])
        times.append(taken[ours])
    warm = rounds // 10
    return statistics.median(ratios[warm:]), statistics.median(times[warm:])


def _median(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Median time of each call in s; taken in turn, so that a loaded machine hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for taken, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(t[rounds // 10:]) for t in times]


def measure() -> list[Figure]:
    """Ratios to pymodbus on the same device, and the time of decoding 1,000 points."""
    import multiprocessing

    context = multiprocessing.get_context('spawn')
    pipe, other = context.Pipe()
    server = context.Process(target=_serve, args=(other,))
    server.start()
    try:
        port = pipe.recv()
        return [*_poll(port), _decode(), _probe(port)]
    finally:
        pipe.send(None)
        server.join()


def _client(port: int) -> Any:
    from pymodbus.client import ModbusTcpClient

    client = ModbusTcpClient('127.0.0.1', port=port)
    client.connect()
    return client


def _poll(port: int) -> list[Figure]:
    from bess.msg import MeterStatus
    from bess_core import qos
    from bess_core.clock import Clock
    from bess_core.convert import meter_to_msg
    from bess_core.runtime import Runtime
    from bess_drivers.modbus.profile_device import ModbusMeter, ProfileParams

    device = ModbusMeter(ProfileParams(address=f'tcp://127.0.0.1:{port}', profile='janitza_umg96rme'))
    device.open()
    device.identify()
    clock, client = Clock(), _client(port)
    spans = [b.span for b in device._blocks['fast']]
    with Runtime(signals=False):
        from rclpy.node import Node

        node = Node('bench_modbus', start_parameter_services=False, enable_rosout=False)
        publisher = node.create_publisher(MeterStatus, 'bench/status', qos.MEASUREMENT)
        ratio, ours = _ratio(
            ROUNDS,
            lambda: [client.read_holding_registers(s.start, count=s.count, device_id=1) for s in spans],
            lambda: publisher.publish(meter_to_msg(device.read(clock.now()), clock, 'meter')))
        node.destroy_node()
    client.close()
    device.close()
    return [Figure('Modbus: read, decode and publish against the bare pymodbus round trips', ratio, 'x', 1.5),
            Figure('Modbus: read, decode and publish a meter, median', 1e6 * ours, 'us')]


def _decode() -> Figure:
    from bess_drivers.modbus.block_decoder import BlockDecoder
    from bess_drivers.modbus.image import blocks
    from bess_drivers.profiles.model import ModbusKeys, ModbusPlace, Point, PointKeys

    section = ModbusKeys()
    points = [Point(f'p{i}', PointKeys(scale=0.1, range=(-1e9, 1e9)), ModbusPlace(address=2 * i, type='f32'))
              for i in range(1000)]
    plan = [(BlockDecoder(b, section, lambda _: 1.0, False), [0x4248, 0] * (b.span.count // 2))
            for b in blocks(points, section)]

    def decode() -> None:
        for decoder, words in plan:
            decoder.decode(words)

    return Figure('Modbus: 1,000 points decoded', 1e3 * _median(ROUNDS, decode)[0], 'ms', 1.0)


def _probe(port: int) -> Figure:
    from bess_drivers.modbus.link import ModbusLink
    from bess_drivers.sunspec.device_map import DeviceMap

    asked: list[tuple[int, int]] = []

    class Recorded(ModbusLink):
        def read_holding(self, unit: int, address: int, count: int) -> list[int]:
            asked.append((address, count))
            return super().read_holding(unit, address, count)

    link, client = Recorded(f'tcp://127.0.0.1:{port}', read_only=True), _client(port)
    link.open()

    def probe() -> None:
        asked.clear()
        device = DeviceMap(link, 2)
        device.scan()
        device.identity()
        assert len(device.blocks) == len(MODELS)

    probe()

    def bare() -> None:
        for address, count in tuple(asked):
            client.read_holding_registers(address, count=count, device_id=2)

    ratio, _ = _ratio(200, bare, probe)
    client.close()
    link.close()
    return Figure('Modbus: SunSpec device with 15 models found, against the same requests bare', ratio, 'x', 1.2)
