"""The Modbus link on real TCP and a real serial line (pty): faults, recovery, no mix-up."""

from __future__ import annotations

import os
import pty
import random
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from functools import partial
from math import isnan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.device import (
    BadChecksum,
    BadFrame,
    BadValue,
    DeviceError,
    Disconnected,
    NoAnswer,
    ReadOnlyError,
)
from bess_drivers.modbus import frames
from bess_drivers.modbus.link import ModbusLink, ModbusRefused
from bess_drivers.modbus.ports import RtuPort, TcpPort, parse_address
from bess_drivers.modbus.registers import Kind, decode, encode, text
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import IllegalAddress, ModbusDeviceServer, ModbusRtuServer

TIMEOUT_S = 0.15


class Memory:
    """100 registers, register n holds n."""

    def __init__(self) -> None:
        self.registers = list(range(100))

    def read(self, function: int, address: int, count: int) -> list[int]:
        if address + count > 100:
            raise IllegalAddress
        return self.registers[address : address + count]

    def write(self, address: int, values: list[int]) -> None:
        if address + len(values) > 100:
            raise IllegalAddress
        self.registers[address : address + len(values)] = values


class Bench:
    """A simulated device with its faults and a link to it."""

    def __init__(self, server: ModbusDeviceServer | ModbusRtuServer, address: str) -> None:
        self.server, self.faults, self.address = server, server.faults, address
        self.link = ModbusLink(address, timeout_s=TIMEOUT_S)


@pytest.fixture
def tcp() -> Iterator[Bench]:
    server = ModbusDeviceServer({1: Memory(), 2: Memory()}, DeviceFaults())
    server.start()
    bench = Bench(server, f'tcp://127.0.0.1:{server.port}')
    yield bench
    bench.link.close()
    server.stop()


@pytest.fixture
def rtu(tmp_path: Path) -> Iterator[Bench]:
    server = ModbusRtuServer({1: Memory(), 2: Memory()}, DeviceFaults(), tmp_path / 'ttyS0')
    server.start()
    # No parity: a pty has none, and reopening one with parity is refused by the C library.
    bench = Bench(server, f'rtu:{server.link_path}?baud=115200&quiet=0.5')
    yield bench
    bench.link.close()
    server.stop()


@pytest.fixture(params=['tcp', 'rtu'])
def bench(request: pytest.FixtureRequest) -> Bench:
    return request.getfixturevalue(request.param)


def wait_until(call: Callable[[], list[int]], seconds: float = 3.0) -> list[int]:
    """The first result of a call that may fail with a DeviceError for a while."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except DeviceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_reads_and_writes(bench: Bench) -> None:
    link = bench.link
    assert not link.connected
    link.open()
    assert link.connected
    assert link.read_holding(1, 10, 3) == [10, 11, 12]
    assert link.read_input(2, 0, 1) == [0]
    link.write_registers(1, 10, [65535, 0])
    link.write_registers(1, 12, [7], single=True)
    assert link.read_holding(1, 10, 4) == [65535, 0, 7, 13]
    assert len(link.read_holding(1, 0, 100)) == 100
    assert [w[1:] for w in bench.server.writes] == [(1, 10, (65535, 0)), (1, 12, (7,))]
    counters = link.counters
    assert (counters.requests, counters.ok, counters.writes, counters.errors) == (6, 6, 2, {})
    link.close()
    assert not link.connected
    assert link.read_holding(1, 10, 1) == [65535]  # connects again
    assert link.counters.reconnects == 1


def test_refusal_names_its_code_and_keeps_the_connection(bench: Bench) -> None:
    with pytest.raises(ModbusRefused, match=r'exception 2 \(illegal data address\)') as caught:
        bench.link.read_holding(1, 99, 2)
    assert caught.value.code == 2 and caught.value.kind == 'refused'
    assert bench.link.connected and bench.link.read_holding(1, 99, 1) == [99]
    assert bench.link.counters.reconnects == 0


def test_what_no_frame_can_carry(bench: Bench) -> None:
    for bad in (
        lambda link: link.read_holding(1, 0, 126),
        lambda link: link.read_holding(1, 0, 0),
        lambda link: link.read_holding(1, -1, 1),
        lambda link: link.read_holding(1, 65535, 2),
        lambda link: link.read_holding(256, 0, 1),
        lambda link: link.write_registers(1, 0, []),
        lambda link: link.write_registers(1, 0, [65536]),
        lambda link: link.write_registers(1, 0, [-1]),
        lambda link: link.write_registers(1, 0, [0] * 124),
        lambda link: link.write_registers(1, 0, [1, 2], single=True),
    ):
        with pytest.raises(BadValue):
            bad(bench.link)
    assert bench.link.counters.requests == 0


@pytest.mark.parametrize(
    ('fault', 'value', 'on_tcp', 'on_rtu'),
    [
        ('no_answer', float('nan'), NoAnswer, NoAnswer),
        ('wrong_unit_id', float('nan'), BadFrame, BadFrame),
        ('modbus_exception', 6, ModbusRefused, ModbusRefused),
        ('flipped_bytes', float('nan'), BadFrame, BadChecksum),
        ('truncated_frame', float('nan'), NoAnswer, NoAnswer),
        ('late_answer', 0.4, NoAnswer, NoAnswer),
        ('disconnect', float('nan'), Disconnected, Disconnected),
    ],
)
def test_each_fault_its_error_and_recovery(
    bench: Bench, fault: str, value: float, on_tcp: type[DeviceError], on_rtu: type[DeviceError]
) -> None:
    link = bench.link
    assert link.read_holding(1, 4, 2) == [4, 5]
    expected = on_tcp if isinstance(bench.server, ModbusDeviceServer) else on_rtu
    bench.faults.inject(fault, value)
    if fault == 'disconnect':  # the device notices within its own poll interval
        deadline = time.monotonic() + 2.0
        while link.counters.errors.get('disconnected', 0) < 3 and time.monotonic() < deadline:
            try:
                assert link.read_holding(1, 4, 2) == [4, 5]
            except Disconnected:
                assert not link.connected
        assert link.counters.errors == {'disconnected': 3}
    else:
        for _ in range(9 if fault == 'flipped_bytes' else 1):  # each byte of the answer once
            with pytest.raises(expected) as caught:
                link.read_holding(1, 4, 2)
            assert type(caught.value) is expected
            assert link.connected == (fault == 'modbus_exception')
        if isinstance(caught.value, ModbusRefused):
            assert caught.value.code == 6
    bench.faults.clear()
    assert wait_until(lambda: link.read_holding(1, 4, 2)) == [4, 5]
    assert set(link.counters.errors) <= {expected.kind, 'timeout'}


def test_frozen_value_is_a_valid_answer(bench: Bench) -> None:
    bench.faults.inject('frozen_value')
    assert bench.link.read_holding(1, 4, 1) == [4]
    bench.link.write_registers(1, 4, [400])
    assert bench.link.read_holding(1, 4, 1) == [4]
    bench.faults.clear()
    assert bench.link.read_holding(1, 4, 1) == [400]


def test_late_answer_never_answers_the_next_request(bench: Bench) -> None:
    """Same unit, function and count, other registers: only the values tell the answers apart."""
    link = bench.link
    for address in range(3):
        bench.faults.inject('late_answer', TIMEOUT_S + 0.05)
        with pytest.raises(NoAnswer):
            link.read_holding(1, address, 2)
        bench.faults.clear()
        # Asked at once and until it works, so that the late answer arrives in between.
        assert wait_until(partial(link.read_holding, 1, address + 50, 2)) == [
            address + 50,
            address + 51,
        ]


def test_a_stop_goes_out_at_once_on_a_line_in_doubt(rtu: Bench) -> None:
    rtu.faults.inject('no_answer')
    with pytest.raises(NoAnswer):
        rtu.link.write_registers(1, 3, [500])
    with pytest.raises(NoAnswer):
        rtu.link.read_holding(1, 3, 1)
    rtu.faults.clear()
    with pytest.raises(NoAnswer, match='not sent'):
        rtu.link.read_holding(1, 3, 1)
    rtu.link.write_registers(1, 3, [0])
    assert rtu.server.writes[-1][1:] == (1, 3, (0,))
    assert rtu.link.read_holding(2, 3, 1) == [3]  # the doubt is about unit 1 only


def test_rtu_port_is_not_shared(rtu: Bench) -> None:
    rtu.link.open()
    with pytest.raises(Disconnected, match='cannot open'):
        ModbusLink(rtu.address).open()


# --- scripted peers ---


class Peer:
    """A TCP peer that receives bytes and answers each with what a function makes of them."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer, self.received, self.accepted = answer, bytearray(), 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.listener.settimeout(0.02)
        self.stopping = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    @property
    def address(self) -> str:
        return f'tcp://127.0.0.1:{self.listener.getsockname()[1]}'

    def _run(self) -> None:
        while not self.stopping:
            try:
                client, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.accepted += 1
            with client:
                client.settimeout(0.02)
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        while not self.stopping:
            try:
                data = client.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                return
            if not data:
                return
            self.received += data
            answer = self.answer(data)
            if answer is None:
                return
            try:
                client.sendall(answer)
            except ConnectionError:
                return

    def stop(self) -> None:
        self.stopping = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def peer() -> Iterator[Callable[[Callable[[bytes], bytes | None]], Peer]]:
    peers: list[Peer] = []

    def make(answer: Callable[[bytes], bytes | None]) -> Peer:
        peers.append(Peer(answer))
        return peers[-1]

    yield make
    for one in peers:
        one.stop()


def right(request: bytes, value: int = 42) -> bytes:
    """The right answer to a read of one register."""
    return request[:4] + b'\0\5' + request[6:8] + b'\2' + value.to_bytes(2, 'big')


@pytest.mark.parametrize(
    ('spoil', 'error'),
    [
        (lambda q: bytes([q[0] ^ 1]) + right(q)[1:], BadFrame),  # transaction
        (lambda q: b'\0\0' + right(q)[2:], BadFrame),  # 0, which pysunspec2 and others send
        (lambda q: right(q)[:3] + b'\1' + right(q)[4:], BadFrame),  # protocol
        (lambda q: right(q)[:4] + b'\0\7' + right(q)[6:] + b'\0\0', BadFrame),  # length
        (lambda q: right(q)[:4] + b'\xff\xff' + right(q)[6:], BadFrame),
        (lambda q: right(q)[:4] + b'\0\0' + right(q)[6:], BadFrame),
        (lambda q: right(q)[:7] + b'\4' + right(q)[8:], BadFrame),  # function
        (lambda q: right(q)[:8] + b'\3' + right(q)[9:], BadFrame),  # byte count
        (lambda q: q[:4] + b'\0\3' + q[6:7] + b'\x83\2\0\0', BadFrame),  # exception with bytes behind it
        (lambda q: q[:4] + b'\0\3' + q[6:7] + b'\x84\2', BadFrame),  # exception to another function
        (lambda q: None, Disconnected),
        (lambda q: right(q)[:5], NoAnswer),
        (lambda q: b'', NoAnswer),
    ],
)
def test_spoiled_answers(
    peer: Callable[..., Peer], spoil: Callable[[bytes], bytes | None], error: type[DeviceError]
) -> None:
    answers = iter([spoil, right])
    server = peer(lambda q: next(answers)(q))
    link = ModbusLink(server.address, timeout_s=TIMEOUT_S)
    with pytest.raises(error) as caught:
        link.read_holding(1, 0, 1)
    assert type(caught.value) is error and not link.connected
    assert link.read_holding(1, 0, 1) == [42]
    assert server.accepted == 2
    link.close()


def test_a_doubled_answer_is_not_taken_for_the_next_one(peer: Callable[..., Peer]) -> None:
    values = iter([1, 2])
    server = peer(lambda q: right(q, v := next(values)) + (right(q, v) if v == 1 else b''))
    link = ModbusLink(server.address, timeout_s=TIMEOUT_S)
    assert link.read_holding(1, 0, 1) == [1]
    assert link.read_holding(1, 0, 1) == [2]
    link.close()


def test_slow_drip_does_not_stretch_the_time_out() -> None:
    """Each byte comes within the time-out, the answer as a whole does not."""
    stop = threading.Event()
    with socket.create_server(('127.0.0.1', 0)) as listener:

        def drip() -> None:
            client, _ = listener.accept()
            with client:
                for byte in right(client.recv(100)):
                    if stop.wait(0.06):
                        return
                    client.send(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        link = ModbusLink(f'tcp://127.0.0.1:{listener.getsockname()[1]}', timeout_s=0.2)
        start = time.monotonic()
        with pytest.raises(NoAnswer):
            link.read_holding(1, 0, 1)
        elapsed = time.monotonic() - start
        stop.set()
        thread.join()
    assert 0.19 < elapsed < 0.4


def test_read_only_sends_not_one_byte(peer: Callable[..., Peer]) -> None:
    server = peer(right)
    link = ModbusLink(server.address, timeout_s=TIMEOUT_S, read_only=True)
    for single in (False, True):
        with pytest.raises(ReadOnlyError, match='not sent'):
            link.write_registers(1, 0, [1], single=single)
    assert not link.connected and link.counters.errors == {'read_only': 2}
    assert link.read_holding(1, 5, 1) == [42]
    with pytest.raises(ReadOnlyError):
        link.write_registers(1, 0, [1])
    assert link.read_input(1, 6, 1) == [42]
    link.close()
    assert server.accepted == 1
    assert [server.received[i + 7] for i in (0, 12)] == [3, 4] and len(server.received) == 24


def test_read_only_on_a_serial_line() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    link = ModbusLink(f'rtu:{os.ttyname(slave)}', timeout_s=0.05, read_only=True)
    link.open()
    with pytest.raises(ReadOnlyError):
        link.write_registers(1, 0, [1])
    with pytest.raises(BlockingIOError):
        os.read(master, 1)
    with pytest.raises(NoAnswer):
        link.read_holding(1, 0, 10)
    assert os.read(master, 100) == bytes.fromhex('01 03 00 00 00 0a c5 cd')  # published CRC
    link.close()
    os.close(master)
    os.close(slave)


def test_small_frames_leave_at_once(tcp: Bench) -> None:
    tcp.link.open()
    port = tcp.link._port
    assert isinstance(port, TcpPort) and port._socket is not None
    assert port._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))
        link = ModbusLink(f'tcp://127.0.0.1:{reserved.getsockname()[1]}', timeout_s=TIMEOUT_S)
        with pytest.raises(Disconnected):
            link.open()
        with pytest.raises(Disconnected):
            link.read_holding(1, 0, 1)
    with pytest.raises(Disconnected):
        ModbusLink('rtu:/dev/does-not-exist').open()
    with pytest.raises(Disconnected):
        ModbusLink('rtu:/dev/null').open()
    link.close()
    link.close()


def test_random_answers_on_a_live_connection(peer: Callable[..., Peer]) -> None:
    generator = random.Random(3)
    server = peer(lambda q: generator.randbytes(generator.randrange(1, 40)))
    link = ModbusLink(server.address, timeout_s=0.02)
    for _ in range(200):
        with pytest.raises(DeviceError):
            link.read_holding(1, 0, 1)
    link.close()


# --- pure codec ---

READ = frames.read_request(1, 3, 0, 2)


def test_10000_random_answers_give_only_device_errors() -> None:
    """Half of them begin like the right answer, so that the deep checks are reached."""
    generator = random.Random(4)
    start_rtu, start_tcp = bytes.fromhex('01 03 04'), bytes.fromhex('00 07 00 00 00 07 01')
    for n in range(10_000):
        noise = generator.randbytes(generator.randrange(0, 24))
        frame = start_rtu + noise if n % 2 else noise
        try:
            frames.decode_rtu(frame, READ)
        except BadFrame:
            pass
        except BadChecksum:
            assert frames.rtu_crc(frame[:-2]) != frame[-2:]
        else:
            assert frames.rtu_crc(frame[:-2]) == frame[-2:]
        assert frames.rtu_size(frame, READ) in (0, 5, 9)
        try:
            assert len(frames.decode_pdu(noise, READ)) == 2
        except (BadFrame, ModbusRefused):
            pass
        header = (start_tcp + noise if n % 4 == 0 else noise.ljust(7, b'\0'))[:7]
        try:
            assert frames.body_size(header, READ, 7) in (2, 6)
        except BadFrame:
            pass


@given(st.integers(0, 6), st.integers(1, 255))
def test_every_damaged_byte_of_an_rtu_answer_is_noticed(at: int, flip: int) -> None:
    whole = bytes.fromhex('01 03 04 12 34 56 78')
    whole += frames.rtu_crc(whole)
    assert frames.decode_rtu(whole, READ) == [0x1234, 0x5678]
    damaged = bytearray(whole)
    damaged[at] ^= flip
    with pytest.raises(BadChecksum):
        frames.decode_rtu(bytes(damaged), READ)


def test_frames_of_the_modbus_specification() -> None:
    """Examples of the Modbus Application Protocol 1.1b3, sections 6.3, 6.4, 6.6 and 6.12."""
    read = frames.read_request(17, 3, 0x6B, 3)
    assert frames.encode_tcp(read, 0x1501).hex(' ') == '15 01 00 00 00 06 11 03 00 6b 00 03'
    assert frames.decode_pdu(bytes.fromhex('03 06 02 2b 00 00 00 64'), read) == [0x22B, 0, 0x64]
    read = frames.read_request(1, 4, 8, 1)
    assert frames.encode_tcp(read, 1)[7:].hex(' ') == '04 00 08 00 01'
    assert frames.decode_pdu(bytes.fromhex('04 02 00 0a'), read) == [10]
    write = frames.write_request(1, 1, [3], single=True)
    assert frames.encode_tcp(write, 1)[7:].hex(' ') == '06 00 01 00 03'
    assert frames.decode_pdu(bytes.fromhex('06 00 01 00 03'), write) == []
    with pytest.raises(BadFrame):
        frames.decode_pdu(bytes.fromhex('06 00 01 00 04'), write)
    write = frames.write_request(1, 1, [10, 0x102])
    assert frames.encode_tcp(write, 1)[7:].hex(' ') == '10 00 01 00 02 04 00 0a 01 02'
    assert frames.decode_pdu(bytes.fromhex('10 00 01 00 02'), write) == []
    with pytest.raises(ModbusRefused) as caught:
        frames.decode_pdu(bytes.fromhex('90 02'), write)
    assert caught.value.code == 2


@settings(max_examples=200)
@given(st.sampled_from(list(Kind)), st.booleans(), st.data())
def test_registers_round_trip(kind: Kind, low_first: bool, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=kind.words, max_size=kind.words))
    value = decode(kind, [9, *words, 9], 1, low_first=low_first)
    if kind is Kind.F32 and isnan(value):
        return  # a NaN has many bit patterns
    assert encode(kind, value, low_first=low_first) == words


def test_register_values() -> None:
    assert decode(Kind.I32, [0xFFFE, 0xFFFF], low_first=True) == -2
    assert decode(Kind.I32, [0xFFFF, 0xFFFE]) == -2
    assert decode(Kind.U32, [1, 2], low_first=True) == 0x20001
    assert decode(Kind.I64, [4, 3, 2, 1], low_first=True) == 0x0001000200030004
    assert decode(Kind.F32, [0x42C8, 0]) == 100.0
    assert encode(Kind.I16, -1) == [0xFFFF]
    for bad in (
        (Kind.U16, -1),
        (Kind.I16, 40000),
        (Kind.U32, 2**32),
        (Kind.F32, 1e40),
        (Kind.U16, 0.5),
    ):
        with pytest.raises(BadValue):
            encode(*bad)
    for registers, at in (([1], 0), ([1, 2], 1), ([1, 2], -1), ([1, 70000], 0)):
        with pytest.raises(BadValue):
            decode(Kind.U32, registers, at)
    assert text([0x4142, 0x4300, 0]) == text([0x41, 0x42, 0x43]) == 'ABC'


def test_addresses() -> None:
    port = parse_address('tcp://[::1]:1502', 1.0)
    assert isinstance(port, TcpPort) and (port.host, port.port) == ('::1', 1502)
    assert parse_address('tcp://meter', 1.0).port == 502  # type: ignore[union-attr]
    line = parse_address('rtu:/dev/ttyUSB0?baud=19200&parity=E&stopbits=2', 0.5)
    assert isinstance(line, RtuPort)
    assert (line.path, line.baud, line.parity, line.stopbits) == ('/dev/ttyUSB0', 19200, 'E', 2)
    assert line.quiet_s == 2.0
    assert parse_address('rtu:/dev/x', 0.5).baud == 9600  # type: ignore[union-attr]
    for bad in (
        '', '127.0.0.1:502', 'udp://h:1', 'tcp://', 'tcp://h:99999', 'tcp://h:x', 'tcp://h:1/path',
        'rtu:', 'rtu:/dev/x?speed=1', 'rtu:/dev/x?baud=fast', 'rtu:/dev/x?baud=0',
        'rtu:/dev/x?parity=X', 'rtu:/dev/x?stopbits=3', 'rtu:/dev/x?quiet=-1', 'rtu:/dev/x?baud',
    ):  # fmt: skip
        with pytest.raises(ValueError):
            parse_address(bad, 0.5)
    with pytest.raises(ValueError, match='timeout_s'):
        ModbusLink('tcp://h:1', timeout_s=0.0)
