"""I/O and climate nodes around register images: real DDS, real Modbus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest

from bess.msg import ClimateStatus, IoStatus, OutputSetpoint
from bess.srv import SetClimate, SetOutput
from bess_core import qos
from bess_core.convert import stamp
from bess_core.site import resolve_type
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.register_image import RegisterImage

IO = """title: I
role: io
transport: modbus
source: none, for a test
points:
  relay: {address: 0, function: 1, type: bool, kind: digital_output, access: rw}
  lamp: {address: 1, function: 1, type: bool, kind: digital_output, access: rw, latched: true}
  door: {address: 0, function: 2, type: bool, kind: digital_input}
  tank: {address: 0, function: 4, kind: analog_input, scale: 0.1, unit: degC}
"""
CLIMATE = """title: K
role: climate
transport: modbus
source: none, for a test
points:
  temperature: {address: 0, type: i16, scale: 0.1}
  mode: {address: 1, access: rw, enum: {0: OFF, 1: HEAT, 2: COOL}}
  target_temperature: {address: 2, type: i16, scale: 0.1, access: rw}
write:
  climate: [{point: mode, value: mode}, {point: target_temperature, value: temperature}]
"""
OK = 0


class Bench:
    """A node with its registers."""

    def __init__(self, graph: Any, folder: Path, kind: str, text: str, message: Any, **more: Any) -> None:
        self.graph, self.image = graph, RegisterImage()
        for address in range(3):
            self.image.put(1, address, 'bit', 1, writable=True)
            self.image.put(2, address, 'bit', 1)
            self.image.put(3, address, 'u16', 215 if address == 0 else 0, writable=True)
            self.image.put(4, address, 'u16', 215)
        self.server = ModbusDeviceServer({1: self.image}, DeviceFaults())
        self.server.start()
        profile = folder / 'tested.yaml'
        profile.write_text(text)
        self.node = graph.add(resolve_type(kind), 'device', {
            'address': f'tcp://127.0.0.1:{self.server.port}', 'profile': str(profile), 'period': 0.05, **more})
        self.node.trigger_configure()
        self.statuses = graph.listen(message, 'device/status', qos.MEASUREMENT)
        graph.wait(lambda: self.statuses and self.statuses[-1].quality == OK, 'a good status')

    def coils(self) -> tuple[int, int]:
        return self.image.words[1][0], self.image.words[1][1]


@pytest.fixture
def bench(graph: Any, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*args: Any, **more: Any) -> Bench:
        made.append(Bench(graph, tmp_path, *args, **more))
        return made[-1]

    yield make
    for b in made:
        b.server.stop()


def test_outputs_are_leased_and_go_to_their_safe_value(graph: Any, bench: Callable[..., Bench]) -> None:
    b = bench('modbus_io', IO, IoStatus)
    status = b.statuses[-1]
    assert (list(status.digital_input_names), list(status.digital_inputs)) == (['door'], [1])
    assert list(status.analog_inputs) == pytest.approx([21.5])
    assert list(status.analog_input_units) == ['degC']
    assert b.coils() == (1, 1)  # configured is not active: nothing is written
    b.node.trigger_activate()
    graph.wait(lambda: b.coils() == (0, 1), 'what nobody holds is safe; a latched lamp is left alone')
    publisher = graph.publisher(OutputSetpoint, 'device/output', qos.SETPOINT)
    order = OutputSetpoint(name='relay', value=1.0, lease=0.5, source='test', sequence=1)
    order.header.stamp = stamp(graph.clock, graph.clock.now())
    publisher.publish(order)
    graph.wait(lambda: b.coils() == (1, 1), 'the relay closes')
    graph.wait(lambda: list(b.statuses[-1].leased_outputs) == ['relay'], 'the status says who')
    assert list(b.statuses[-1].lease_sources) == ['test']
    graph.wait(lambda: b.coils() == (0, 1), 'the lease ends')


def test_a_service_answers_when_it_is_written(graph: Any, bench: Callable[..., Bench]) -> None:
    b = bench('modbus_io', IO, IoStatus)
    b.node.trigger_activate()

    def ask(**fields: Any) -> Any:
        return graph.call(SetOutput, 'device/set_output', SetOutput.Request(**fields))

    answer = ask(name='relay', value=1.0, lease=30.0)
    assert (answer.accepted, answer.message, b.coils()[0]) == (True, 'written', 1)
    answer = ask(name='lamp', value=0.0, lease=0.0)
    assert (answer.accepted, b.coils()[1]) == (True, 0)
    graph.wait(lambda: 'lamp' in b.statuses[-1].leased_outputs, 'latched')
    at = list(b.statuses[-1].leased_outputs).index('lamp')
    assert b.statuses[-1].lease_remaining[at] == inf
    answer = ask(name='relay', value=1.0, lease=0.0)
    assert not answer.accepted
    assert 'not latched' in answer.message
    b.image.writable.clear()
    answer = ask(name='relay', value=0.0, lease=30.0)
    assert not answer.accepted
    assert 'refused' in answer.message
    assert b.node.faults.get('output.write').active
    b.image.writable |= {(1, 0), (1, 1)}
    b.node.trigger_deactivate()
    graph.wait(lambda: b.coils() == (0, 0), 'leased outputs are safe')


def test_read_only_writes_no_output(graph: Any, bench: Callable[..., Bench]) -> None:
    b = bench('modbus_io', IO, IoStatus, read_only=True)
    b.node.trigger_activate()
    answer = graph.call(SetOutput, 'device/set_output', SetOutput.Request(name='relay', value=0.0, lease=3.0))
    assert (answer.accepted, answer.message) == (False, 'read only')
    assert not b.server.writes


def test_a_climate_device_falls_back(graph: Any, bench: Callable[..., Bench]) -> None:
    b = bench('modbus_climate', CLIMATE, ClimateStatus, fallback_mode='cool', fallback_temperature=25.0)
    assert b.statuses[-1].temperature == pytest.approx(21.5)
    assert isnan(b.statuses[-1].humidity)
    assert b.statuses[-1].fan == ClimateStatus.SWITCH_UNKNOWN
    b.node.trigger_activate()
    graph.wait(lambda: (b.image.words[3][1], b.image.words[3][2]) == (2, 250), 'the fallback')
    answer = graph.call(SetClimate, 'device/set_climate',
                        SetClimate.Request(mode=ClimateStatus.MODE_HEAT, temperature=18.5, lease=0.6))
    assert answer.accepted, answer.message
    assert (b.image.words[3][1], b.image.words[3][2]) == (1, 185)
    graph.wait(lambda: b.statuses[-1].mode == ClimateStatus.MODE_HEAT, 'it is read back')
    assert b.statuses[-1].setpoint_source == 'operator'
    graph.wait(lambda: (b.image.words[3][1], b.image.words[3][2]) == (2, 250), 'the fallback again')
    answer = graph.call(SetClimate, 'device/set_climate', SetClimate.Request(mode=0, temperature=nan, lease=1.0))
    assert 'neither' in answer.message
    answer = graph.call(SetClimate, 'device/set_climate', SetClimate.Request(mode=0, temperature=99.0, lease=1.0))
    assert 'not in 5..40' in answer.message
