"""The Modbus control server: its registers as tables, and a master on a real socket in front of the genuine mode."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client import ModbusTcpClient
from test_control_nodes import Plant

from bess.msg import EmergencyStop, SystemState
from bess_control import modbus_map as m
from bess_control.modbus_control_node import ModbusControlNode
from bess_control.mode_node import node_type
from bess_control.modes.external import ExternalControl
from bess_core import qos
from bess_core.params import ParameterError, build

LIMITS = {'charge': 5000.0, 'discharge': 4000.0, 'lease': 60.0}
NOTHING = m.order_words(None)


@given(st.floats(-m.HIGHEST, m.HIGHEST))
def test_numbers_come_back(value: float) -> None:
    assert m.number_32(m.words_32(value)) == round(value)


def test_what_is_unknown_or_beyond() -> None:
    assert m.words_32(nan) == m.words_32(inf) == [0x8000, 0] and isnan(m.number_32([0x8000, 0]))
    assert m.number_32(m.words_32(1e12)) == m.HIGHEST and m.number_32(m.words_32(-1e12)) == -m.HIGHEST
    assert m.words_32(-2.0) == [0xFFFF, 0xFFFE]
    assert (m.word_16(nan), m.word_16(-5.0), m.word_16(1e9)) == (0xFFFF, 0, 0xFFFE)
    assert m.status_words(m.Status()) == [1, 0xFFFF, 0, 0xFFFF, *[0x8000, 0] * 4, 0, 0xFFFF]
    told = m.status_words(m.Status(1, True, 0.5, -300.0, 5000.0, 4000.0, -250.0, 7.4, False))
    assert told == [1, 1, 1, 500, 0xFFFF, 0xFED4, 0, 5000, 0, 4000, 0xFFFF, 0xFF06, 7, 0]


@pytest.mark.parametrize('address, values, power, reactive, lease', [
    (0, m.words_32(2500.0), 2500.0, nan, 0.0), (0, m.words_32(-4000.0), -4000.0, nan, 0.0),
    (0, [*m.words_32(0.0), *m.words_32(-700.0)], 0.0, -700.0, 0.0),
    (0, [*m.words_32(100.0), *m.words_32(nan), 30], 100.0, nan, 30.0)])
def test_a_write_of_the_power_is_an_order(address: int, values: list[int], power: float, reactive: float,
                                          lease: float) -> None:
    order = m.written(NOTHING, address, values, LIMITS)
    assert order is not None and (order.power, order.lease) == (power, lease)
    assert order.reactive_power == pytest.approx(reactive, nan_ok=True)


@pytest.mark.parametrize('address, values', [(2, m.words_32(500.0)), (4, [20]), (2, [*m.words_32(5.0), 20])])
def test_other_writes_prepare_the_next_order(address: int, values: list[int]) -> None:
    assert m.written(NOTHING, address, values, LIMITS) is None


@pytest.mark.parametrize('address, values, said', [
    (0, [0], 'at once'), (1, [0], 'at once'), (1, [0, 0], 'at once'), (3, [0, 5], 'at once'), (0, [0, 0, 0], 'at once'),
    (0, m.words_32(nan), 'needs a power'), (0, m.words_32(5001.0), 'not within'),
    (0, m.words_32(-4001.0), 'not within'),
    (4, [61], 'at most 60'), (0, [*m.words_32(1.0), *m.words_32(nan), 0xFFFF], 'at most 60'),
    (4, [1, 1], 'not written'), (100, [1], 'not written'), (5, [1], 'not written')])
def test_bad_writes(address: int, values: list[int], said: str) -> None:
    with pytest.raises(m.IllegalWrite, match=said):
        m.written(NOTHING, address, values, LIMITS)


@given(st.integers(0, 10), st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8))
def test_any_write_is_an_order_within_the_limits_or_none(address: int, values: list[int]) -> None:
    try:
        order = m.written(NOTHING, address, values, LIMITS)
    except m.IllegalWrite:
        return
    assert order is None or (-4000.0 <= order.power <= 5000.0 and 0.0 <= order.lease <= 60.0)


@pytest.mark.parametrize('wrong', [{'mode': ''}, {'battery': ''}, {'unit': 0}, {'port': 70000}, {'lease': 0.0},
                                   {'clients': 0}])
def test_bad_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        build(ModbusControlNode.Params, {'mode': 'ext', 'battery': 'bat', **wrong})


class Master:
    """A Modbus master; it waits for its answers in a thread while the graph goes on."""

    def __init__(self, graph: Any, port: int) -> None:
        self.graph, self._pool = graph, ThreadPoolExecutor(1)
        self._client = ModbusTcpClient('127.0.0.1', port=port, timeout=5, retries=0)

    def _do(self, call: Any, *args: Any, **more: Any) -> Any:
        future: Future[Any] = self._pool.submit(call, *args, **more)
        self.graph.wait(future.done, 'an answer')
        return future.result()

    def read(self, address: int, count: int, unit: int = 1) -> Any:
        return self._do(self._client.read_holding_registers, address, count=count, device_id=unit)

    def write(self, address: int, values: list[int]) -> Any:
        return self._do(self._client.write_registers, address, values, device_id=1)

    def write_one(self, address: int, value: int) -> Any:
        return self._do(self._client.write_register, address, value, device_id=1)

    def coils(self) -> Any:
        return self._do(self._client.read_coils, 0, count=1, device_id=1)

    def close(self) -> None:
        self._client.close()
        self._pool.shutdown()


@pytest.fixture
def bench(graph: Any) -> Iterator[tuple[Plant, Any, Any, Master]]:
    plant = Plant(graph)
    mode = graph.add(node_type(ExternalControl), 'ext', {'battery': 'bat', 'meter': 'meter', 'period': 0.05})
    server = graph.add(ModbusControlNode, 'modbus', {'mode': 'ext', 'battery': 'bat', 'port': 0, 'period': 0.05,
                                                     'lease': 0.8, 'clients': 2, 'max_charge_power': 5000.0})
    graph.up(mode, server)
    master = Master(graph, server.port)
    yield plant, mode, server, master
    master.close()


def test_a_master_steers_the_battery_and_its_silence_ends_it(graph: Any, bench: Any) -> None:
    plant, mode, server, master = bench
    site = graph.publisher(SystemState, 'system_state', qos.STATE)
    site.publish(SystemState(state=SystemState.RUN))
    graph.publisher(EmergencyStop, 'emergency_stop', qos.STATE).publish(EmergencyStop())

    def status() -> list[int]:
        return list(master.read(100, 14).registers)

    graph.wait(lambda: status()[:3] == [1, SystemState.RUN, 1], 'the mode takes orders')
    told = status()
    assert told[3] != m.UNKNOWN_16 and told[13] == 0
    assert not master.write(0, [*m.words_32(1500.0), *m.words_32(-300.0)]).isError()
    graph.wait(lambda: plant.proposals[-1].preferred_power == 1500.0, 'ordered')
    assert plant.proposals[-1].preferred_reactive_power == -300.0
    assert master.read(0, 5).registers == [*m.words_32(1500.0), *m.words_32(-300.0), 0]
    graph.wait(lambda: isnan(plant.proposals[-1].preferred_power) or plant.proposals[-1].preferred_power == 0.0,
               'the lease is over')
    assert status()[12] == 0
    assert not master.write_one(4, 30).isError()
    assert not master.write(0, m.words_32(-900.0)).isError()
    graph.wait(lambda: plant.proposals[-1].preferred_power == -900.0 and status()[12] >= 28, 'ordered for 30 s')

    # A mode that is off: said at once, and nothing is kept for later.
    assert mode.trigger_deactivate().name == 'SUCCESS'
    graph.wait(lambda: status()[2] == 0, 'no orders count')
    assert master.write(0, m.words_32(700.0)).exception_code == 6
    assert mode.trigger_activate().name == 'SUCCESS'
    graph.wait(lambda: status()[2] == 1, 'orders count again')
    plant.proposals.clear()
    graph.settle(0.3)
    assert not any(abs(p.preferred_power) > 0.0 for p in plant.proposals)


def test_bad_requests_and_too_many_clients(graph: Any, bench: Any) -> None:
    plant, _, server, master = bench
    graph.wait(lambda: master.read(102, 1).registers == [1], 'the mode takes orders')
    for answer, code in ((master.write_one(0, 5), 3), (master.write(0, m.words_32(9000.0)), 3),
                         (master.write(100, [1]), 2), (master.read(50, 1), 2), (master.read(0, 6), 2),
                         (master.coils(), 1)):
        assert answer.exception_code == code, answer
    assert master.read(0, 1, unit=9).exception_code == 11
    # Garbage, half frames and silence on other connections cost nobody anything.
    with socket.create_connection(('127.0.0.1', server.port)) as rude:
        rude.sendall(bytes(range(256)))
        rude.sendall(struct.pack('>HHHBB', 1, 0, 400, 1, 16))
        assert master.read(100, 1).registers == [1]
        with socket.create_connection(('127.0.0.1', server.port)) as third:
            third.settimeout(5.0)
            assert third.recv(1) == b'', 'one too many is closed'
        assert master.read(100, 1).registers == [1]
    assert not any(abs(p.preferred_power) > 0.0 for p in plant.proposals)


def test_a_port_that_is_taken_is_a_fault_and_can_be_had_later(graph: Any) -> None:
    taken = socket.socket()
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    server = graph.add(ModbusControlNode, 'modbus', {'mode': 'ext', 'battery': 'bat', 'port': port})
    assert server.trigger_configure().name == 'FAILURE'
    assert 'cannot be listened on' in next(iter(server.faults.active)).text
    taken.close()
    assert server.trigger_configure().name == 'SUCCESS' and server.port == port
    assert server.trigger_cleanup().name == 'SUCCESS'
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port), timeout=1.0)
