"""The simulated Modbus server from outside: raw sockets, a pty, and pymodbus as a client."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymodbus.client import ModbusTcpClient

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import split_rtu, split_tcp, with_crc
from bess_sim.devices.modbus_server import (
    IllegalAddress,
    IllegalValue,
    ModbusDeviceServer,
    ModbusRtuServer,
)


class Memory:
    """100 registers; register 99 takes only 0 and 1."""

    def __init__(self) -> None:
        self.registers = list(range(100))

    def read(self, function: int, address: int, count: int) -> list[int]:
        if address == 666:
            raise RuntimeError('a defect in a map')
        if address + count > 100:
            raise IllegalAddress
        return self.registers[address : address + count]

    def write(self, address: int, values: list[int]) -> None:
        if address + len(values) > 100:
            raise IllegalAddress
        if address + len(values) == 100 and values[-1] > 1:
            raise IllegalValue
        self.registers[address : address + len(values)] = values


@pytest.fixture
def faults() -> DeviceFaults:
    return DeviceFaults()


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def server(memory: Memory, faults: DeviceFaults) -> Iterator[ModbusDeviceServer]:
    server = ModbusDeviceServer({1: memory, 7: Memory()}, faults)
    server.start()
    yield server
    server.stop()


def connect(server: ModbusDeviceServer) -> socket.socket:
    return socket.create_connection(('127.0.0.1', server.port), timeout=2.0)


def receive(sock: socket.socket, size: int) -> bytes:
    data = b''
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def ask(sock: socket.socket, request: str, size: int) -> str:
    sock.sendall(bytes.fromhex(request))
    return receive(sock, size).hex(' ')


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b''
    except ConnectionError:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'condition not met in time'
        time.sleep(0.005)


READ_2_AT_5 = '12 34 00 00 00 06 01 03 00 05 00 02'
ANSWER = '12 34 00 00 00 07 01 03 04 00 05 00 06'


def test_read_write_and_exceptions_byte_for_byte(
    server: ModbusDeviceServer, memory: Memory
) -> None:
    with connect(server) as sock:
        assert ask(sock, READ_2_AT_5, 13) == ANSWER
        assert (
            ask(sock, '00 01 00 00 00 06 07 04 00 63 00 01', 11)
            == '00 01 00 00 00 05 07 04 02 00 63'
        )
        before = time.monotonic()
        write = '00 02 00 00 00 0b 01 10 00 0a 00 02 04 ff ff 12 34'
        assert ask(sock, write, 12) == '00 02 00 00 00 06 01 10 00 0a 00 02'
        assert (
            ask(sock, '00 03 00 00 00 06 01 06 00 0c 00 09', 12)
            == '00 03 00 00 00 06 01 06 00 0c 00 09'
        )
        assert memory.registers[10:13] == [0xFFFF, 0x1234, 9]
        for body, code in (
            ('01 05 00 00 ff 00', 1),  # write coil
            ('01 03 00 63 00 02', 2),  # past the end
            ('01 03 ff ff 00 02', 2),  # past 65535
            ('01 03 00 00 00 7e', 3),  # 126 registers
            ('01 03 00 00 00 00', 3),
            ('01 06 00 63 00 02', 3),  # a value that the map refuses
            ('01 10 00 00 00 02', 3),  # too short
            ('01 03 02 9a 00 01', 4),  # the map has a defect
            ('09 03 00 00 00 01', 11),  # no such unit
        ):
            answer = ask(sock, '00 04 00 00 00 06 ' + body, 9)
            function = int(body[3:5], 16) | 0x80
            assert answer == f'00 04 00 00 00 03 {body[:2]} {function:02x} {code:02x}'
    assert [w[1:] for w in server.writes] == [(1, 10, (0xFFFF, 0x1234)), (1, 12, (9,))]
    assert all(before <= w[0] <= time.monotonic() for w in server.writes)


def test_pymodbus_as_client(server: ModbusDeviceServer) -> None:
    client = ModbusTcpClient('127.0.0.1', port=server.port, timeout=2, retries=0)
    assert client.connect()
    try:
        assert not client.write_registers(20, [7, 8, 9], device_id=1).isError()
        assert client.read_holding_registers(19, count=4, device_id=1).registers == [19, 7, 8, 9]
        assert client.read_input_registers(99, count=2, device_id=1).exception_code == 2
    finally:
        client.close()


def test_split_and_joined_requests_and_several_clients(server: ModbusDeviceServer) -> None:
    with connect(server) as one, connect(server) as two:
        for byte in bytes.fromhex(READ_2_AT_5):
            one.sendall(bytes([byte]))
        two.sendall(bytes.fromhex(READ_2_AT_5) * 3)
        assert receive(one, 13).hex(' ') == ANSWER
        assert receive(two, 39).hex(' ') == ' '.join([ANSWER] * 3)


@pytest.mark.parametrize(
    'hostile', ['00 01 00 00 ff ff 01 03', '00 01 00 00 00 00 01 03', '47 45 54 20 2f 20 48']
)
def test_hostile_header_closes_only_that_connection(
    server: ModbusDeviceServer, hostile: str
) -> None:
    with connect(server) as good, connect(server) as bad:
        bad.sendall(bytes.fromhex(hostile))
        assert is_closed(bad)
        assert ask(good, READ_2_AT_5, 13) == ANSWER


def test_client_that_leaves_mid_frame_and_one_that_never_reads(
    server: ModbusDeviceServer, caplog: pytest.LogCaptureFixture
) -> None:
    half = connect(server)
    half.sendall(bytes.fromhex(READ_2_AT_5)[:9])
    half.close()
    with connect(server) as greedy:
        greedy.settimeout(0.2)
        request = bytes.fromhex('00 01 00 00 00 06 01 03 00 00 00 64') * 1000
        with pytest.raises(OSError):  # reset by the server, which keeps no endless queue
            for _ in range(2000):
                greedy.sendall(request)
    with connect(server) as sock:
        assert ask(sock, READ_2_AT_5, 13) == ANSWER
    wait_for(lambda: not server.connections)
    assert not caplog.records  # whoever was turned away is not answered any more


def test_random_bytes_never_stop_the_server(server: ModbusDeviceServer) -> None:
    generator = random.Random(1)
    for _ in range(50):
        with connect(server) as sock:
            sock.sendall(generator.randbytes(generator.randrange(1, 400)))
    with connect(server) as sock:
        assert ask(sock, READ_2_AT_5, 13) == ANSWER


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_splitters_take_any_bytes(data: bytes) -> None:
    for split in (split_tcp, split_rtu):
        try:
            parts = split(data)
        except ValueError:
            continue
        if parts is not None:
            assert len(parts[0]) > 0 and data.endswith(parts[1])


def test_answer_faults_and_their_end(
    server: ModbusDeviceServer, faults: DeviceFaults, memory: Memory
) -> None:
    with connect(server) as sock:
        faults.inject('wrong_unit_id')
        assert ask(sock, READ_2_AT_5, 13) == ANSWER.replace('07 01 03', '07 54 03')
        faults.clear()
        faults.inject('modbus_exception')
        assert ask(sock, READ_2_AT_5, 9) == '12 34 00 00 00 03 01 83 04'
        faults.inject('modbus_exception', 6)
        assert ask(sock, READ_2_AT_5, 9) == '12 34 00 00 00 03 01 83 06'
        faults.clear()
        faults.inject('flipped_bytes')
        flipped = {
            next(i for i in range(13) if bytes.fromhex(ANSWER)[i] != got[i])
            for got in (bytes.fromhex(ask(sock, READ_2_AT_5, 13)) for _ in range(8))
        }
        assert flipped == set(range(8))
        faults.clear()
        faults.inject('truncated_frame')
        assert ask(sock, READ_2_AT_5, 6) == ANSWER[:17]
        faults.clear()
        faults.inject('no_answer')
        sock.sendall(bytes.fromhex('00 09 00 00 00 06 01 06 00 05 00 63'))
        assert not select.select([sock], [], [], 0.1)[0]
        faults.clear()
        assert memory.registers[5] == 5  # swallowed, not silently done
        assert ask(sock, READ_2_AT_5, 13) == ANSWER


def test_late_answer_delays_only_as_asked(server: ModbusDeviceServer, faults: DeviceFaults) -> None:
    with connect(server) as sock:
        faults.inject('late_answer', 0.15)
        start = time.monotonic()
        assert ask(sock, READ_2_AT_5, 13) == ANSWER
        assert 0.14 < time.monotonic() - start < 1.0


def test_frozen_value(server: ModbusDeviceServer, faults: DeviceFaults, memory: Memory) -> None:
    with connect(server) as sock:
        faults.inject('frozen_value')
        assert ask(sock, READ_2_AT_5, 13) == ANSWER
        memory.registers[5] = 77
        assert ask(sock, READ_2_AT_5, 13) == ANSWER
        faults.clear()
        assert ask(sock, READ_2_AT_5, 13) == ANSWER.replace('04 00 05', '04 00 4d')


def test_disconnect_closes_refuses_and_comes_back_on_the_same_port(
    server: ModbusDeviceServer, faults: DeviceFaults
) -> None:
    port = server.port
    with connect(server) as sock:
        faults.inject('disconnect')
        assert is_closed(sock)

    def refused() -> bool:
        try:
            connect(server).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_for(refused)
    with socket.socket() as thief:  # nobody else gets the port meanwhile
        with pytest.raises(OSError):
            thief.bind(('127.0.0.1', port))
    faults.clear()
    wait_for(lambda: not refused())
    assert server.port == port
    with connect(server) as sock:
        assert ask(sock, READ_2_AT_5, 13) == ANSWER


def test_start_stop_and_a_taken_port(server: ModbusDeviceServer, faults: DeviceFaults) -> None:
    with pytest.raises(OSError):
        ModbusDeviceServer({1: Memory()}, faults, port=server.port).start()
    port = server.port
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port), timeout=1.0)
    server.start()
    with connect(server) as sock:
        assert ask(sock, READ_2_AT_5, 13) == ANSWER


# --- RTU on a pty ---


@pytest.fixture
def line(memory: Memory, faults: DeviceFaults, tmp_path: Path) -> Iterator[ModbusRtuServer]:
    server = ModbusRtuServer({1: memory}, faults, tmp_path / 'ttyS0')
    server.start()
    yield server
    server.stop()
    assert not (tmp_path / 'ttyS0').is_symlink()


def talk(fd: int, request: bytes, size: int, seconds: float = 1.0) -> bytes:
    os.write(fd, request)
    data, deadline = b'', time.monotonic() + seconds
    while (
        len(data) < size and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
    ):
        data += os.read(fd, size - len(data))
    return data


def test_rtu_published_frame_garbage_and_broadcast(line: ModbusRtuServer, memory: Memory) -> None:
    fd = os.open(line.link_path, os.O_RDWR | os.O_NOCTTY)
    try:
        # CRC of this request as published in many Modbus tutorials: C5 CD.
        request = bytes.fromhex('01 03 00 00 00 0a c5 cd')
        answer = with_crc(bytes.fromhex('01 03 14') + struct.pack('>10H', *range(10)))
        assert talk(fd, request, 25) == answer
        assert talk(fd, request[:-1] + b'\x00', 1, 0.1) == b''  # bad CRC: silence
        assert talk(fd, with_crc(bytes.fromhex('02 03 00 00 00 01')), 1, 0.1) == b''  # another unit
        assert talk(fd, b'\xff\x99\x12', 1, 0.1) == b''
        assert talk(fd, request, 25) == answer
        assert talk(fd, with_crc(bytes.fromhex('00 06 00 03 00 2a')), 1, 0.1) == b''
        wait_for(lambda: memory.registers[3] == 42)
        assert [w[1:] for w in line.writes] == [(1, 3, (42,))]
    finally:
        os.close(fd)


def test_rtu_unplugged_and_back(line: ModbusRtuServer, faults: DeviceFaults) -> None:
    faults.inject('disconnect')
    wait_for(lambda: not line.link_path.exists())
    faults.clear()
    wait_for(line.link_path.exists)
    fd = os.open(line.link_path, os.O_RDWR | os.O_NOCTTY)
    try:
        assert talk(fd, bytes.fromhex('01 03 00 00 00 0a c5 cd'), 25)[:3] == b'\x01\x03\x14'
    finally:
        os.close(fd)
