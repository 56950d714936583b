"""Driver nodes around devices in memory: quality, faults, the last gate on the wire, on real DDS."""

from __future__ import annotations

import threading
from math import isnan, nan
from typing import Any

import pytest
from fake_device import WORLD, FakeBattery, FakeConverter, FakeMeter, World
from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CellArray, InverterStatus, MeterStatus, PowerSetpoint
from bess.srv import GetStatus, SetContactor
from bess_core import qos
from bess_core.clock import Clock
from bess_core.convert import battery_to_msg, stamp
from bess_core.values import Alarm, BatteryReading, Quality, Severity
from bess_drivers.device import BadValue, Disconnected, NoAnswer
from bess_drivers.driver_node import node_type

OK, STALE, INVALID = int(Quality.OK), int(Quality.STALE), int(Quality.INVALID)


class Driver:
    """One driver node with its device's world, and what it publishes."""

    def __init__(self, graph: Any, kind: type, message: Any, **params: Any) -> None:
        self.graph, self.name = graph, 'device'
        self.world = WORLD['w'] = World()
        self.world.now = graph.clock.now
        self.node = graph.add(node_type(kind), self.name, {'address': 'w', 'period': 0.05, **params})
        self.node.trigger_configure()
        self.statuses = graph.listen(message, 'device/status', qos.MEASUREMENT)
        self._sequence = 0
        self._setpoints: Any = None

    def up(self) -> Driver:
        """Active, and read at least once."""
        self.node.trigger_activate()
        self.graph.wait(lambda: self.statuses and self.statuses[-1].quality == OK, 'a good status')
        return self

    @property
    def last(self) -> Any:
        return self.statuses[-1]

    def fault(self, fault_id: str) -> Any:
        return self.node.faults.get(fault_id)

    def ask(self, power: float, lease: float = 1.0, source: str = 'manager', sequence: int = 0, **more: Any) -> None:
        """A setpoint on the topic."""
        if self._setpoints is None:
            self._setpoints = self.graph.publisher(PowerSetpoint, 'device/setpoint', qos.SETPOINT)
        self._sequence += 1
        message = PowerSetpoint(power=float(power), reactive_power=more.pop('reactive_power', nan), lease=lease,
                                source=source, sequence=sequence or self._sequence, **more)
        message.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._setpoints.publish(message)

    def wait(self, condition: Any, what: str, timeout_s: float = 10.0) -> None:
        self.graph.wait(condition, what, timeout_s)


# -- measuring ---------------------------------------------------------------------------------------


def test_a_battery_publishes_all_it_knows(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus)
    state = graph.listen(BatteryState, 'device/battery_state', qos.MEASUREMENT)
    cells = graph.listen(CellArray, 'device/cells', qos.MEASUREMENT)
    driver.up()
    assert driver.node.hardware_id == 'serial'
    status = driver.last
    assert (status.soc, status.charge_full, status.header.frame_id) == (0.5, 100.0, 'device')
    assert abs(status.header.stamp.sec - graph.clock.wall()) < 3
    driver.wait(lambda: state and cells, 'battery_state and cells')
    assert state[-1].percentage == pytest.approx(0.5)
    assert list(cells[-1].voltages) == pytest.approx([3.3, 3.31])


def test_a_meter_numbers_its_samples_from_one(graph: Any) -> None:
    driver = Driver(graph, FakeMeter, MeterStatus).up()
    driver.wait(lambda: len(driver.statuses) >= 3, 'samples')
    numbers = [m.sequence for m in driver.statuses]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert driver.last.active_power == 0.0


def test_quality_decays_and_a_fault_names_the_cause_until_the_device_is_back(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus, max_age=0.15, invalid_after=0.4, errors_to_fault=2).up()
    measured = driver.last.header.stamp
    driver.world.fail = lambda: NoAnswer('no answer within 0.5 s')
    driver.wait(lambda: driver.last.quality == STALE, 'STALE')
    assert (driver.last.soc, driver.last.voltage) != (0.0, 0.0), 'the last values stay, with their age'
    assert driver.last.header.stamp.sec >= measured.sec
    driver.wait(lambda: driver.fault('comm.timeout'), 'fault')
    assert 'no answer within 0.5 s' in driver.fault('comm.timeout').text
    driver.wait(lambda: driver.last.quality == INVALID, 'INVALID')
    answer = graph.call(GetStatus, 'device/get_status')
    assert (answer.fresh, answer.status.quality) == (False, INVALID)
    assert 'INVALID' in answer.message

    driver.world.fail = None
    driver.wait(lambda: driver.last.quality == OK, 'OK again, without a restart')
    driver.wait(lambda: driver.node.faults.active == [], 'no fault is left')
    assert graph.call(GetStatus, 'device/get_status').fresh


@pytest.mark.parametrize(('error', 'fault'), [
    (Disconnected, 'comm.disconnected'), (BadValue, 'comm.value'), (ZeroDivisionError, 'comm.error')])
def test_each_kind_of_failure_has_its_fault(graph: Any, error: type[Exception], fault: str) -> None:
    driver = Driver(graph, FakeMeter, MeterStatus, errors_to_fault=1).up()
    driver.world.fail = lambda: error('just because')
    driver.wait(lambda: driver.fault(fault), fault)
    driver.world.fail = None
    driver.wait(lambda: driver.fault(fault) is None, 'gone')


def test_a_device_that_is_away_at_start_comes_later(graph: Any) -> None:
    world = WORLD['w'] = World()
    world.fail_open = lambda: Disconnected('no such port')
    node = graph.add(node_type(FakeMeter), 'device', {'address': 'w', 'period': 0.05, 'errors_to_fault': 1})
    graph.up(node)  # configure does not need the device: it is tried again and again
    graph.wait(lambda: node.faults.get('comm.disconnected'), 'fault')
    world.fail_open = None
    graph.wait(lambda: node.reading.quality == Quality.OK, 'reading')


def test_alarms_of_the_device_are_faults_while_present(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus).up()
    driver.world.change = lambda r: setattr(
        r, 'alarms', (Alarm('cell.high', Severity.CRITICAL, 'cell 7 at 3.7 V'),))
    driver.wait(lambda: driver.fault('cell.high'), 'alarm')
    driver.world.change = lambda _: None
    driver.wait(lambda: not driver.fault('cell.high').active, 'the cause has gone')
    assert driver.fault('cell.high').latched, 'a critical one stays until it is cleared'


def test_values_that_do_not_move_are_a_fault(graph: Any) -> None:
    driver = Driver(graph, FakeMeter, MeterStatus, frozen_after=0.3).up()
    graph.settle(0.5)
    assert driver.fault('sensor.frozen') is None
    driver.world.still = True
    driver.wait(lambda: driver.fault('sensor.frozen'), 'frozen')
    driver.world.still = False
    driver.wait(lambda: driver.fault('sensor.frozen') is None, 'moves again')


def test_a_phase_that_is_not_measured_does_not_hide_a_frozen_meter(graph: Any) -> None:
    driver = Driver(graph, FakeMeter, MeterStatus, frozen_after=0.3).up()
    driver.world.change = lambda r: setattr(r, 'voltage', (230.0, float('nan'), float('nan')))
    driver.world.still = True
    driver.wait(lambda: driver.fault('sensor.frozen'), 'frozen')


def test_a_battery_at_rest_is_not_frozen_but_under_current_it_is(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus, frozen_after=0.2).up()
    driver.world.still = True
    graph.settle(0.5)
    assert driver.fault('sensor.frozen') is None
    driver.world.power = 1000.0
    driver.wait(lambda: driver.fault('sensor.frozen'), 'frozen under current')


def test_lazy_polling_reads_when_asked(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus, polling='lazy', max_age=0.2).up()
    driver.wait(lambda: driver.last.quality == STALE, 'STALE')
    reads = driver.world.count('read')
    answer = graph.call(GetStatus, 'device/get_status')
    assert (answer.fresh, driver.world.count('read')) == (True, reads + 1)
    assert graph.call(GetStatus, 'device/get_status').fresh
    assert driver.world.count('read') == reads + 1, 'still fresh: not read again'


def test_a_slow_device_does_not_hold_up_the_node(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus, max_age=0.1).up()
    driver.world.hold.clear()
    assert driver.world.waiting.wait(5.0)
    try:
        driver.wait(lambda: driver.last.quality == STALE, 'the node publishes although the device does not answer')
        assert driver.world.threads == {'bus w'}
        assert threading.current_thread().name not in driver.world.threads
    finally:
        driver.world.hold.set()


def test_configure_cleanup_and_again(graph: Any) -> None:
    driver = Driver(graph, FakeMeter, MeterStatus).up()
    node, world = driver.node, driver.world
    node.trigger_deactivate()
    node.trigger_cleanup()
    graph.wait(lambda: world.calls[-1][0] == 'close', 'closed')
    calls = len(world.calls)
    graph.settle(0.2)
    assert len(world.calls) == calls, 'nothing is asked after cleanup'
    graph.up(node)
    count = len(driver.statuses)
    graph.wait(lambda: len(driver.statuses) > count and driver.last.quality == OK, 'reads again')


# -- the contactor -----------------------------------------------------------------------------------


def test_the_contactor_service_answers_when_the_battery_confirmed(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus).up()
    request = SetContactor.Request(charge=True, discharge=False)
    answer = graph.call(SetContactor, 'device/set_contactor', request)
    assert (answer.accepted, answer.message, driver.world.contactor) == (True, 'confirmed', [(True, False)])
    driver.world.fail_writes = lambda: NoAnswer('FET did not switch')
    answer = graph.call(SetContactor, 'device/set_contactor', request)
    assert (answer.accepted, answer.message) == (False, 'timeout: FET did not switch')
    assert 'FET did not switch' in driver.fault('contactor.failed').text
    driver.world.fail_writes = None
    driver.wait(lambda: driver.last.quality == OK and driver.node._client.is_open, 'connected')
    assert graph.call(SetContactor, 'device/set_contactor', request).accepted
    assert driver.fault('contactor.failed') is None


def test_read_only_never_writes(graph: Any) -> None:
    driver = Driver(graph, FakeBattery, BatteryStatus, read_only=True).up()
    answer = graph.call(SetContactor, 'device/set_contactor', SetContactor.Request(charge=True))
    assert (answer.accepted, answer.message) == (False, 'read_only is set')
    assert driver.world.contactor == []


# -- the last gate -----------------------------------------------------------------------------------


def converter(graph: Any, **params: Any) -> Driver:
    return Driver(graph, FakeConverter, InverterStatus, gate_period=0.02, refresh=0.05, **params)


def test_a_setpoint_reaches_the_device_and_is_renewed(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(1200.0, lease=0.5)
    driver.wait(lambda: driver.world.writes, 'written')
    assert driver.world.writes[0][0] == 1200.0
    assert isnan(driver.world.writes[0][1]), 'reactive power stays as it is'
    driver.wait(lambda: len(driver.world.writes) >= 3, 'renewed by the driver while the lease lasts')
    driver.wait(lambda: driver.last.setpoint == 1200.0 and driver.last.active_power == 1200.0, 'status')
    assert driver.last.setpoint_source == 'manager'
    assert 0.0 <= driver.last.lease_remaining <= 0.5


def test_a_lease_that_ends_ramps_to_zero(graph: Any) -> None:
    driver = converter(graph, expiry_ramp=5000.0).up()
    driver.ask(1000.0, lease=0.2)
    driver.wait(lambda: driver.world.writes, 'written')
    driver.wait(lambda: driver.world.writes[-1][0] == 0.0, 'zero', 3.0)
    powers = [w[0] for w in driver.world.writes]
    assert powers == sorted(powers, reverse=True)
    assert any(0.0 < p < 1000.0 for p in powers), 'on a ramp, not in one jump'
    written = len(powers)
    graph.settle(0.2)
    assert len(driver.world.writes) == written, 'at rest the device is left alone'


def test_nothing_is_written_before_a_valid_read(graph: Any) -> None:
    driver = converter(graph)
    driver.world.fail = lambda: BadValue('not implemented')
    driver.node.trigger_activate()
    for _ in range(5):
        driver.ask(1000.0)
        graph.settle(0.05)
    assert driver.world.writes == []
    driver.world.fail = None
    driver.wait(lambda: driver.statuses and driver.last.quality == OK, 'a reading')
    driver.ask(1000.0)
    driver.wait(lambda: driver.world.writes, 'now it is written')


def test_a_read_only_converter_is_never_written_to(graph: Any) -> None:
    driver = converter(graph, read_only=True).up()
    for _ in range(3):
        driver.ask(1000.0)
        graph.settle(0.05)
    driver.node.trigger_deactivate()
    graph.settle(0.1)
    assert (driver.world.writes, driver.world.stops) == ([], 0)


def test_setpoints_are_refused_unless_active(graph: Any) -> None:
    driver = converter(graph)
    driver.wait(lambda: driver.statuses and driver.last.quality == OK, 'measures while inactive')
    driver.ask(1000.0)
    graph.settle(0.1)
    assert driver.world.writes == []


def test_a_second_source_and_old_orders_are_refused(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(1000.0, lease=2.0)
    driver.wait(lambda: driver.world.writes, 'written')
    driver.ask(-3000.0, source='stranger', sequence=1)
    driver.ask(-3000.0, sequence=1)
    driver.ask(float('nan'), sequence=90)
    driver.ask(float('inf'), sequence=91)
    driver.ask(-3000.0, lease=3600.0, sequence=92)
    graph.settle(0.2)
    assert {w[0] for w in driver.world.writes} == {1000.0}
    driver.ask(1500.0, sequence=93)
    driver.wait(lambda: driver.world.writes[-1][0] == 1500.0, 'its own next order')


def bms(graph: Any, publisher: Any, charge: float, discharge: float, quality: Quality = Quality.OK,
        reasons: tuple[str, ...] = ()) -> None:
    publisher.publish(battery_to_msg(BatteryReading(
        time=graph.clock.now(), newest=graph.clock.now(), quality=quality, max_charge_power=charge,
        max_discharge_power=discharge, limit_reasons=list(reasons)), graph.clock))


def test_limits_of_the_bms_hold_at_the_gate(graph: Any) -> None:
    driver = converter(graph, bms='pack', efficiency=0.9, max_bms_age=0.5, max_discharge_power=800.0).up()
    driver.ask(2000.0, lease=5.0)
    graph.settle(0.1)
    assert all(w[0] == 0.0 for w in driver.world.writes), 'nothing while the BMS has not said its limits'
    pack = graph.publisher(BatteryStatus, 'pack/status', qos.MEASUREMENT)
    bms(graph, pack, 900.0, 900.0, reasons=('cell 7 at 3.42 V',))
    driver.wait(lambda: driver.world.writes and driver.world.writes[-1][0] == pytest.approx(1000.0), 'held to the BMS')
    driver.wait(lambda: any('cell 7 at 3.42 V' in r for r in driver.last.limit_reasons), 'and it says why')
    driver.ask(-2000.0, lease=5.0)
    driver.wait(lambda: driver.world.writes[-1][0] == -800.0, 'held to the configured limit')
    driver.wait(lambda: any('configured limit' in r for r in driver.last.limit_reasons), 'and it says why')
    driver.wait(lambda: driver.world.writes[-1][0] == 0.0, 'zero once the limits of the BMS are too old', 3.0)
    bms(graph, pack, 900.0, 900.0, Quality.INVALID)
    graph.settle(0.1)
    assert driver.world.writes[-1][0] == 0.0, 'an invalid reading tells no limits'
    bms(graph, pack, 0.0, 450.0)
    driver.wait(lambda: driver.world.writes[-1][0] == pytest.approx(-405.0), 'and on again')


def test_limits_of_the_device_hold(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(9000.0)
    driver.wait(lambda: driver.world.writes, 'written')
    assert driver.world.writes[-1][0] == 5000.0
    driver.wait(lambda: any('device limit' in r for r in driver.last.limit_reasons), 'reason')


def test_a_device_that_does_not_follow_is_a_fault(graph: Any) -> None:
    driver = converter(graph, follow_time=0.3, follow_tolerance=50.0).up()
    driver.world.follows = False

    def renew() -> bool:
        driver.ask(1000.0, lease=2.0)
        return bool(driver.fault('converter.follow_error'))

    driver.wait(renew, 'follow error')
    assert 'ordered 1000 W, measured 0 W' in driver.fault('converter.follow_error').text
    driver.world.power = 1000.0

    def follows() -> bool:
        driver.ask(1000.0, lease=2.0)
        return driver.fault('converter.follow_error') is None

    driver.wait(follows, 'it follows again')


def test_a_write_that_fails_is_a_fault_and_is_repeated(graph: Any) -> None:
    driver = converter(graph).up()
    driver.world.fail_writes = lambda: BadValue('refused by the device')
    driver.ask(1000.0, lease=5.0)
    driver.wait(lambda: driver.fault('converter.write'), 'fault')
    assert 'refused by the device' in driver.fault('converter.write').text
    driver.world.fail_writes = None
    driver.wait(lambda: driver.world.writes, 'written in the end')
    driver.wait(lambda: driver.fault('converter.write') is None, 'fault gone')


def test_deactivate_stops_confirms_and_writes_nothing_after(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(1000.0, lease=5.0)
    driver.wait(lambda: driver.world.power == 1000.0, 'running')
    driver.node.trigger_deactivate()
    driver.wait(lambda: driver.world.stops == 1, 'stopped', 2.0)
    driver.wait(lambda: driver.last.setpoint == 0.0 and driver.last.active_power == 0.0, 'confirmed')
    written = len(driver.world.writes)
    driver.ask(1000.0)
    graph.settle(0.2)
    assert len(driver.world.writes) == written
    driver.node.trigger_activate()
    driver.ask(700.0)
    driver.wait(lambda: driver.world.power == 700.0, 'active again')


def test_a_stop_that_fails_is_a_fault_and_zero_is_written_instead(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(1000.0, lease=5.0)
    driver.wait(lambda: driver.world.power == 1000.0, 'running')
    driver.world.fail_writes = lambda: BadValue('busy')
    driver.node.trigger_deactivate()
    driver.wait(lambda: driver.fault('converter.stop'), 'fault')
    driver.world.fail_writes = None
    driver.wait(lambda: driver.world.power == 0.0, 'zero all the same')
    assert driver.world.writes[-1][0] == 0.0
    driver.wait(lambda: driver.node.faults.active == [], 'and then no fault is left')


def test_cleanup_right_after_deactivate_still_stops_the_device(graph: Any) -> None:
    driver = converter(graph).up()
    driver.ask(1000.0, lease=5.0)
    driver.wait(lambda: driver.world.power == 1000.0, 'running')
    graph.remove(driver.node)  # as at the end of the process: no executor runs any more
    graph.wait(lambda: driver.world.stops == 1 and driver.world.calls[-1][0] == 'close', 'stopped, then closed', 3.0)


def test_what_a_device_finds_wrong_is_known_before_anything_starts() -> None:
    from bess_core.params import build
    from bess_drivers.modbus.carlo_gavazzi import CarloGavazziMeter

    cls = node_type(CarloGavazziMeter)
    assert cls.check(build(cls.Params, {'address': 'tcp://127.0.0.1:502'})) == ''  # type: ignore[attr-defined]
    assert 'address is missing' in cls.check(build(cls.Params, {}))
    assert 'is not tcp://host:port' in cls.check(build(cls.Params, {'address': 'tcp://'}))


def test_on_simulated_time_the_device_is_polled_inline(sim_graph: Any) -> None:
    graph = sim_graph
    assert isinstance(graph.clock, Clock)
    world = WORLD['w'] = World()
    world.now = graph.clock.now
    node = graph.add(node_type(FakeMeter), 'device', {'address': 'w', 'period': 1.0})
    graph.up(node)
    graph.advance(10.0)
    assert [t for n, t in world.calls if n == 'read'] == pytest.approx(list(range(1, 11)), abs=0.01)
    assert node.reading.time == pytest.approx(10.0)
    assert threading.current_thread().name in world.threads
