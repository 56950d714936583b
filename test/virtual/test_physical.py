"""Two functions make a whole battery: the example package, installed, on a real graph; and what drivers get wrong."""

from __future__ import annotations

from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess.msg import BatteryStatus, PowerSetpoint
from bess.srv import GetStatus, ListSchedule, ScheduleSetCurrent
from bess_core import plugins, qos
from bess_core.convert import stamp, wall_stamp
from bess_core.site import resolve_type
from bess_core.values import Mode
from bess_drivers.device import BadValue, Disconnected, NoAnswer, ReadOnlyError
from bess_drivers.simple import Reading, SimpleDevice, reading_of
from bess_virtual.physical_node import node_type

FAST = {'poll': 0.05, 'period': 0.05, 'max_age': 0.3, 'invalid_after': 1.0}


class Fake:
    """A driver that does as a test wants."""

    made: Fake

    def __init__(self) -> None:
        Fake.made = self
        self.current, self.orders, self.error = 0.0, [], None
        self.follows = True

    def refresh(self) -> Reading:
        if self.error is not None:
            raise self.error
        return Reading(voltage=50.0, current=self.current, charge=50.0, charge_full=100.0, max_charge_current=40.0,
                       max_discharge_current=20.0)

    def set_current(self, current: float) -> None:
        if self.error is not None:
            raise self.error
        self.orders.append(current)
        if self.follows:
            self.current = current


def order(graph: Any, publisher: Any, power: float, sequence: int, lease: float = 1.0) -> None:
    message = PowerSetpoint(power=power, reactive_power=nan, lease=lease, source='manager', sequence=sequence)
    message.header.stamp = stamp(graph.clock, graph.clock.now())
    publisher.publish(message)


def test_the_installed_example_is_a_logical_battery(graph: Any, example: Path) -> None:
    cls = resolve_type('bucket')
    import bess_simple_battery  # type: ignore[import-not-found]

    assert Path(bess_simple_battery.__file__).is_relative_to(example), 'not the one in the tree'
    node = graph.add(cls, 'bucket', {**FAST, 'charge': 20.0, 'limit': 30.0})
    assert node.role == 'battery'
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bucket/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'good status')
    s = statuses[-1]
    assert (s.voltage, s.soc, s.max_charge_power, s.energy_full) == (50.0, 0.2, 1500.0, 5000.0)
    wall = graph.clock.wall()
    answer = graph.call(ScheduleSetCurrent, 'bucket/schedule_set_current', ScheduleSetCurrent.Request(
        current=-10.0, start=wall_stamp(wall), end=wall_stamp(wall + 2.0)))
    assert answer.accepted
    graph.wait(lambda: statuses[-1].current == pytest.approx(-10.0), 'the schedule runs')
    assert graph.call(ListSchedule, 'bucket/list_schedule').value_at == -10.0
    graph.wait(lambda: statuses[-1].current == 0.0, 'and ends at rest')
    beyond = graph.call(ScheduleSetCurrent, 'bucket/schedule_set_current', ScheduleSetCurrent.Request(
        current=31.0, start=wall_stamp(wall), end=wall_stamp(wall + 60.0)))
    assert not beyond.accepted


def test_leases_limits_and_rest(graph: Any) -> None:
    node = graph.add(node_type(Fake), 'battery', {**FAST, 'max_charge_current': 15.0, 'expiry_ramp': 1e6})
    graph.up(node)
    publisher = graph.publisher(PowerSetpoint, 'battery/setpoint', qos.SETPOINT)
    graph.wait(lambda: node.reading.quality == 0, 'measures')
    assert node.reading.max_charge_current == 15.0
    assert node.reading.max_discharge_current == 20.0
    assert Fake.made.orders == [], 'nothing is ordered unasked'
    order(graph, publisher, 5000.0, 1, lease=0.6)
    graph.wait(lambda: Fake.made.current == 15.0, 'held to the configured limit')
    graph.wait(lambda: any('limited' in r for r in node.reading.limit_reasons), 'which is said')
    order(graph, publisher, -5000.0, 2, lease=0.6)
    graph.wait(lambda: Fake.made.current == -20.0, 'and to that of the device')
    graph.wait(lambda: Fake.made.current == 0.0, 'the lease ends')
    order(graph, publisher, 500.0, 3, lease=5.0)
    graph.wait(lambda: Fake.made.current == 10.0, 'runs')
    node.trigger_deactivate()
    graph.wait(lambda: Fake.made.current == 0.0, 'stopped at once')
    assert all(-20.0 <= current <= 15.0 for current in Fake.made.orders)


def test_failing_stale_frozen_order_and_back(graph: Any) -> None:
    node = graph.add(node_type(Fake), 'battery', {**FAST, 'follow_time': 0.2, 'follow_tolerance': 10.0})
    graph.up(node)
    publisher = graph.publisher(PowerSetpoint, 'battery/setpoint', qos.SETPOINT)
    graph.wait(lambda: node.reading.quality == 0, 'measures')
    Fake.made.follows = False
    sequence = iter(range(1, 10000))
    handle = graph.ticker.every(0.1, lambda _: order(graph, publisher, 500.0, next(sequence)))
    graph.wait(lambda: node.faults.get('converter.follow_error') is not None, 'does not follow')
    handle.cancel()
    Fake.made.follows = True
    Fake.made.error = ValueError('a defect of the driver')
    graph.wait(lambda: node.reading.quality == 2, 'INVALID')
    assert any(r.id.startswith('comm.') for r in node.faults.records)
    assert node.reading.voltage == 50.0, 'old values stay, marked'
    Fake.made.error = None
    graph.wait(lambda: node.reading.quality == 0, 'back by itself')


def test_read_only_never_orders(graph: Any) -> None:
    node = graph.add(node_type(Fake), 'battery', {**FAST, 'read_only': True})
    graph.up(node)
    publisher = graph.publisher(PowerSetpoint, 'battery/setpoint', qos.SETPOINT)
    graph.wait(lambda: node.reading.quality == 0, 'measures')
    order(graph, publisher, 500.0, 1)
    graph.wait(lambda: 'read only' in node.reading.limit_reasons, 'says why')
    node.trigger_deactivate()
    graph.settle(0.3)
    assert Fake.made.orders == []
    with pytest.raises(ReadOnlyError):
        SimpleDevice(Fake, read_only=True).set_current(1.0)


def test_lazy_asks_only_on_request(graph: Any) -> None:
    node = graph.add(node_type(Fake), 'battery', {**FAST, 'polling': 'lazy', 'max_age': 0.2})
    graph.up(node)
    graph.wait(lambda: node._client.counters.ok == 1, 'the first poll')
    graph.settle(0.4)
    assert node._client.counters.ok == 1
    answer = graph.call(GetStatus, 'battery/get_status')
    assert answer.fresh
    assert node._client.counters.ok == 2


@given(st.builds(Reading, **{f: st.floats() for f in (
    'voltage', 'current', 'charge', 'charge_full', 'max_charge_current', 'max_discharge_current', 'temperature',
    'soh')}), st.floats(0.0, inf), st.floats(0.0, inf))
def test_any_values_make_a_reading_or_a_bad_value(values: Reading, charge: float, discharge: float) -> None:
    try:
        r = reading_of(values, 1.0, charge, discharge)
    except BadValue:
        return
    assert r.voltage > 0.0
    assert r.power == r.voltage * r.current or isnan(r.voltage * r.current)
    assert isnan(r.max_charge_current) or 0.0 <= r.max_charge_current <= charge
    assert isnan(r.max_discharge_current) or 0.0 <= r.max_discharge_current <= discharge
    assert isnan(r.soc) or 0.0 <= r.soc <= 1.0
    assert r.mode == (Mode.IDLE if abs(r.current) < 0.05 else Mode.CHARGING if r.current > 0 else Mode.DISCHARGING)


@pytest.mark.parametrize('values', [None, 'text', {'voltage': 50.0}, Reading(voltage='50', current=0.0),  # type: ignore[arg-type]
                                    Reading(voltage=True, current=0.0), Reading(voltage=50.0, current=None)])  # type: ignore[arg-type]
def test_what_is_no_reading(values: Any) -> None:
    with pytest.raises(BadValue):
        reading_of(values, 0.0)


def test_errors_of_a_driver_by_kind() -> None:
    device = SimpleDevice(Fake)
    device.open()
    for error, kind in ((TimeoutError('slow'), NoAnswer), (ConnectionResetError('gone'), Disconnected)):
        Fake.made.error = error
        with pytest.raises(kind):
            device.read(0.0)


def test_a_class_without_the_two_functions_is_no_battery() -> None:
    with pytest.raises(TypeError, match='no function set_current'):
        node_type(type('Half', (), {'refresh': lambda self: None}))
    assert plugins.BATTERIES == 'bess.batteries'
