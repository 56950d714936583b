"""`read_only` seen from the wire: a tap between driver and device records each byte that leaves this machine."""

from __future__ import annotations

import os
import pty
import select
import socket
import struct
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Any

import pytest

from bess.msg import InverterStatus, PowerSetpoint
from bess_core import qos
from bess_core.convert import stamp
from bess_core.site import resolve_type
from bess_drivers.device import DeviceError
from bess_drivers.modbus.profile_device import ModbusConverter, ModbusIo, ProfileParams
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import Units, split_rtu, with_crc
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.register_layouts import LAYOUTS
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.plant_api import StaticPlant

READS = {1, 2, 3, 4}


class Tap:
    """Forwards TCP in both directions and keeps what the client sent."""

    def __init__(self, port: int) -> None:
        self.sent = b''
        self._to = port
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address = f'tcp://127.0.0.1:{self._listener.getsockname()[1]}'
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        pairs: dict[socket.socket, tuple[socket.socket, bool]] = {}
        while self._open:
            for ready in select.select([self._listener, *pairs], [], [], 0.05)[0]:
                if ready is self._listener:
                    client, _ = self._listener.accept()
                    server = socket.create_connection(('127.0.0.1', self._to))
                    pairs |= {client: (server, True), server: (client, False)}
                    continue
                other, from_client = pairs[ready]
                data = b''
                with suppress(OSError):
                    data = ready.recv(65536)
                if not data:
                    for one in (ready, other):
                        pairs.pop(one, None)
                        one.close()
                    break
                if from_client:
                    self.sent += data
                with suppress(OSError):
                    other.sendall(data)
        for one in pairs:
            one.close()

    def close(self) -> None:
        self._open = False
        self._thread.join(5)
        self._listener.close()

    def functions(self) -> list[int]:
        """Function codes of all frames that left."""
        data, out = self.sent, []
        while len(data) >= 8:
            length = struct.unpack('>H', data[4:6])[0]
            out.append(data[7])
            data = data[6 + length:]
        assert not data, 'only whole frames'
        return out


@pytest.fixture
def tapped() -> Iterator[Callable[[Any], Tap]]:
    made: list[Any] = []

    def start(registers: Any) -> Tap:
        server = ModbusDeviceServer({1: registers}, DeviceFaults())
        server.start()
        tap = Tap(server.port)
        made.extend((tap.close, server.stop))
        return tap

    yield start
    for end in made:
        end()


def attempt(device: Any) -> None:
    """Everything that a device can be asked for."""
    device.open()
    with suppress(DeviceError):
        device.identify()
    for call in (lambda: device.read(1.0), lambda: device.write_power(500.0, 100.0, 2.0),
                 lambda: device.write_power(0.0, 0.0, 2.0), lambda: device.stop(), lambda: device.read(2.0),
                 lambda: device.set_contactor(True, True), lambda: device.set_contactor(False, False),
                 lambda: device.write_output('relay_1', 1.0), lambda: device.read_slow(3.0),
                 lambda: device.link.write(1, 6, 0, [1]), lambda: device.link.write(1, 5, 0, [1]),
                 lambda: device.link.write_registers(1, 0, [1, 2]), lambda: device.read(4.0)):
        with suppress(DeviceError, AttributeError):
            call()
    device.close()


CASES: dict[str, Callable[[str, bool], Any]] = {
    **{name: lambda address, ro, name=name: ModbusConverter(
        ProfileParams(address=address, profile=name, rated_power=12_000.0), ro)
       for name in ('luxpower_lxp', 'abb_pqstori', 'trumpf_dc1008', 'rd6006')},
    'generic_io_8': lambda address, ro: ModbusIo(ProfileParams(address=address, profile='generic_io_8'), ro),
    'sunspec_inverter': lambda address, ro: SunSpecInverter(SunSpecInverterParams(address=address), ro),
    'sunspec_battery': lambda address, ro: SunSpecBattery(SunSpecBatteryParams(address=address), ro),
}


def registers_of(name: str) -> Any:
    plant = StaticPlant()
    if name in LAYOUTS:
        return LAYOUTS[name](plant, 'u', DeviceFaults())
    return SunSpecInverterSimulator(plant, 'u') if 'inverter' in name else SunSpecBatterySimulator(plant, 'u')


@pytest.mark.parametrize('name', CASES)
def test_no_write_frame_leaves(tapped: Callable[[Any], Tap], name: str) -> None:
    tap = tapped(registers_of(name))
    attempt(CASES[name](tap.address, True))
    assert tap.functions(), 'it was read'
    assert set(tap.functions()) <= READS


@pytest.mark.parametrize('name', CASES)
def test_the_tap_sees_writes_when_they_are_allowed(tapped: Callable[[Any], Tap], name: str) -> None:
    tap = tapped(registers_of(name))
    attempt(CASES[name](tap.address, False))
    assert set(tap.functions()) - READS, 'otherwise the test above proves nothing'


class SerialTap:
    """A serial line that keeps each byte which comes in, with a device behind it."""

    def __init__(self, registers: Any) -> None:
        self.sent = b''
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._units = Units({1: registers}, DeviceFaults())
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        buffer = b''
        while self._open:
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            data = os.read(self._master, 4096)
            self.sent += data
            buffer += data
            while (parts := split_rtu(buffer)) is not None:
                frame, buffer = parts
                answer = self._units.answer(frame[0], frame[1:])
                assert answer is not None
                os.write(self._master, with_crc(frame[:1] + answer))

    def functions(self) -> list[int]:
        """Function codes of all frames that left."""
        data, out = self.sent, []
        while (parts := split_rtu(data)) is not None:
            out.append(parts[0][1])
            data = parts[1]
        assert not data, 'only whole frames'
        return out

    def close(self) -> None:
        self._open = False
        self._thread.join(5)
        for fd in (self._master, self._slave):
            os.close(fd)


@pytest.mark.parametrize('name', ['luxpower_lxp', 'abb_pqstori', 'generic_io_8', 'sunspec_inverter'])
@pytest.mark.parametrize('read_only', [True, False])
def test_a_serial_line(name: str, read_only: bool) -> None:
    tap = SerialTap(registers_of(name))
    try:
        attempt(CASES[name](f'rtu:{tap.path}?baud=115200', read_only))
        functions = set(tap.functions())
        assert functions & READS
        assert (functions <= READS) is read_only
    finally:
        tap.close()


def test_a_node_with_orders_and_heartbeat(graph: Any, tapped: Callable[[Any], Tap], tmp_path: Path) -> None:
    tap = tapped(registers_of('abb_pqstori'))
    node = graph.add(resolve_type('modbus_converter'), 'inverter', {
        'address': tap.address, 'profile': 'abb_pqstori', 'period': 0.05, 'read_only': True})
    node.trigger_configure()
    node.trigger_activate()
    statuses = graph.listen(InverterStatus, 'inverter/status', qos.MEASUREMENT)
    publisher = graph.publisher(PowerSetpoint, 'inverter/setpoint', qos.SETPOINT)
    for sequence in range(1, 6):
        order = PowerSetpoint(power=1000.0, reactive_power=nan, lease=2.0, source='test', sequence=sequence)
        order.header.stamp = stamp(graph.clock, graph.clock.now())
        publisher.publish(order)
        seen = len(statuses)
        graph.wait(lambda seen=seen: len(statuses) > seen + 1, 'it is polled')
    node.trigger_deactivate()
    seen = len(statuses)
    graph.wait(lambda: len(statuses) > seen + 2, 'it is polled')
    assert len(tap.functions()) > 20
    assert set(tap.functions()) <= READS
