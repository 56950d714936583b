"""CAN: processor time of receiving 10 000 frames/s and decoding them to a role message ten times a second."""

from __future__ import annotations

import socket
import statistics
import threading
import time

from .figures import Figure

RATE, SECONDS, PIECE = 10_000, 3.0, 100  # frames/s, s, frames that the sender sends at once
IDS = (0x351, 0x355, 0x356, 0x35A, 0x35C, 0x372, 0x373, 0x378, 0x379, 0x35E)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(('', 0))
        return int(probe.getsockname()[1])


def _send(port: int, frames: int) -> None:
    """In a process of its own: the battery's frames at `RATE`."""
    import can

    from bess_sim.devices.can_bms import frames_of
    from bess_sim.plant_api import PackSample

    bus = can.Bus(interface='udp_multicast', channel='239.74.163.2', port=port, fd=False, hop_limit=0)
    data = frames_of(PackSample(), 3.6, 2.7)
    messages = [can.Message(arbitration_id=i, data=data.get(i, bytes(8)), is_extended_id=False) for i in IDS]
    start = time.monotonic()
    for piece in range(frames // PIECE):
        for k in range(PIECE):
            bus.send(messages[k % len(messages)])
        time.sleep(max(0.0, start + (piece + 1) * PIECE / RATE - time.monotonic()))
    bus.shutdown()


def measure() -> list[Figure]:
    """Share of one core in the receiving process, and how many frames arrived."""
    import multiprocessing

    import can

    from bess_core.clock import Clock
    from bess_core.convert import battery_to_msg
    from bess_drivers.can.can_bms import CanBmsBattery, CanBmsParams
    from bess_drivers.device import DeviceError

    port = _free_port()
    device = CanBmsBattery(CanBmsParams(address=f'can:udp_multicast:239.74.163.2?port={port}', keep_alive=False))
    try:
        device.open()
    except (DeviceError, can.CanError):
        return []  # no multicast on this machine
    clock, total = Clock(), int(RATE * SECONDS)
    sender = multiprocessing.get_context('spawn').Process(target=_send, args=(port, total))
    sender.start()
    while device.link.mailbox.received == 0:
        threading.Event().wait(0.01)
    used, begun, polls = time.process_time(), time.monotonic(), []
    while time.monotonic() - begun < SECONDS - 0.2:
        threading.Event().wait(0.1)
        start = time.perf_counter()
        battery_to_msg(device.read(clock.now()), clock, 'bms')
        polls.append(time.perf_counter() - start)
    share = (time.process_time() - used) / (time.monotonic() - begun)
    sender.join()
    received = device.link.mailbox.received
    device.close()
    return [
        Figure('CAN: one core at 10 000 frames/s to a role message', 100.0 * share, '%', 40.0),
        Figure('CAN: frames lost at 10 000 frames/s', 100.0 * (1.0 - received / total), '%', 0.0),
        Figure('CAN: decode of one poll, median', 1e6 * statistics.median(polls), 'us'),
    ]
