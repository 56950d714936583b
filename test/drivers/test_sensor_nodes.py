"""Nodes of pins, GPS and bare cells: real DDS over doubles at the lowest level."""

from __future__ import annotations

import time
from math import isnan
from typing import Any

import pytest
from gpiozero.pins.mock import MockFactory
from sensor_msgs.msg import NavSatFix, TimeReference
from test_cell_controller import bench  # noqa: F401 - fixture
from test_gps import RMC, VOID, line, sentence  # noqa: F401 - fixture

from bess.msg import BatteryStatus, Heartbeat, IoStatus
from bess.srv import SetContactor, SetOutput
from bess_core import qos
from bess_core.params import build
from bess_core.site import resolve_type
from bess_drivers.cells.controller_node import CellControllerNode
from bess_drivers.io.pins import Gpiozero


def test_pins_node(graph, monkeypatch):
    factory = MockFactory()
    monkeypatch.setattr(Gpiozero, '_make_factory', lambda _: factory)
    node = graph.add(resolve_type('gpio'), 'panel', {
        'address': 'gpiozero:mock', 'period': 0.05, 'pins': ['stop=22 emergency_stop', 'fan=27 relay', 'lamp=5 led']})
    factory.pin(22).drive_high()
    graph.up(node)
    statuses = graph.listen(IoStatus, 'panel/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'a good status')
    answer = graph.call(SetOutput, 'panel/set_output', SetOutput.Request(name='fan', value=1.0, lease=0.5))
    assert answer.accepted and factory.pin(27).state, answer.message
    graph.wait(lambda: not factory.pin(27).state, 'the lease ends')
    assert graph.call(SetOutput, 'panel/set_output', SetOutput.Request(name='lamp', value=1.0, lease=0.0)).accepted
    factory.pin(22).drive_low()
    graph.wait(lambda: node.faults.get('io.emergency_stop'), 'a fault')


def test_gps_node(graph, line):  # noqa: F811
    line.text = RMC
    node = graph.add(resolve_type('gps'), 'gps', {
        'address': f'serial:{line.path}', 'period': 0.05, 'timeout_s': 1.0, 'stamp': 'gps', 'max_age': 1.0,
        'errors_to_fault': 1})
    graph.up(node)
    fixes = graph.listen(NavSatFix, 'gps/fix', qos.MEASUREMENT)
    times = graph.listen(TimeReference, 'gps/time_reference', qos.MEASUREMENT)
    graph.wait(lambda: fixes and times, 'a fix and a time')
    assert fixes[-1].status.status == 0 and abs(fixes[-1].latitude - 48.1173) < 1e-6 and isnan(fixes[-1].altitude)
    assert fixes[-1].header.frame_id == 'gps' and abs(fixes[-1].header.stamp.sec - 1790339719) < 30
    assert abs(times[-1].time_ref.sec - 1790339719) < 30
    assert abs(times[-1].header.stamp.sec - time.time()) < 30
    assert node.faults.get('gps.clock_offset').active
    line.text = VOID
    graph.wait(lambda: fixes[-1].status.status == -1 and isnan(fixes[-1].latitude), 'no fix')
    line.text = b''
    graph.wait(lambda: node.faults.get('comm.timeout'), 'silence is a fault')


def test_cell_controller_node(graph, bench):  # noqa: F811
    p = bench.params(first=0.0, link_timeout=1.5, reengage=0.1)
    node = graph.add(CellControllerNode, 'bms', {
        'address': p.address, 'timeout_s': 0.4, 'late_s': 0.4, 'relay': p.relay, 'sensor': p.sensor,
        'sensor_channels': list(p.sensor_channels), 'temperature_period': 0.1, 'first': 0.0, 'link_timeout': 1.5,
        'reengage': 0.1, 'period': 0.2, 'initial_soc': 0.5, 'link_nodes': ['power']})
    hearts = graph.peer.create_publisher(Heartbeat, graph.ctx.topic('heartbeat'), qos.EVENT)
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bms/status', qos.MEASUREMENT)

    def beat(done: Any) -> Any:
        def look() -> bool:
            hearts.publish(Heartbeat(node='power'))
            return bool(done())

        return look

    graph.wait(beat(lambda: statuses and statuses[-1].contactor == BatteryStatus.CONTACTOR_CLOSED), 'closed')
    assert bench.closed and statuses[-1].max_charge_current == 150.0
    graph.wait(lambda: not bench.closed, 'nobody above: it opens by itself')
    graph.wait(lambda: node.faults.get('cells.link_lost'), 'a fault')
    graph.wait(beat(lambda: bench.closed), 'closed again')
    answer = graph.call(SetContactor, 'bms/set_contactor', SetContactor.Request(charge=False, discharge=False))
    assert answer.accepted and not bench.closed, answer.message
    graph.remove(node)
    assert not bench.closed


@pytest.mark.parametrize(('kind', 'values', 'problem'), [
    ('cell_controller', {'address': 'serial:/dev/x', 'sensor_channels': ['current=a']}, 'relay is missing'),
    ('cell_controller', {'address': 'serial:/dev/x', 'relay': 'file:/x', 'sensor_channels': []}, 'channels is empty'),
    ('gpio', {'address': 'gpio:/dev/gpiochip0', 'pins': ['x']}, 'name=place'), ('gpio', {'pins': ['x=1']}, 'address'),
    ('bq40z50', {'address': 'i2c:/dev/i2c-1?address=0'}, '0x03..0x77'), ('bme280', {}, 'address is missing'),
    ('analog', {'address': '/x', 'channels': ['a=b ntc a=1']}, 'all three'), ('gps', {'address': 'serial:'}, 'no port'),
    ('strato_pi', {}, ''), ('one_wire', {}, ''), ('cpu_temperature', {}, ''),
    ('bme680', {'address': 'i2c:/dev/i2c-1'}, '')])
def test_a_site_file_is_told_what_is_wrong(kind, values, problem):
    cls = resolve_type(kind)
    found = cls.check(build(cls.Params, values))
    assert problem in found and bool(found) is bool(problem)
