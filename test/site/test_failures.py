"""Failures that a site survives: devices that misbehave, processes that die or hang, plants out of bounds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from running_site import SETTLE_S, TELEMETRY, RunningSite, alive, lateness
from std_srvs.srv import Trigger

from bess.msg import SystemState
from bess.srv import ClearFault
from bess_sim.control_client import DeviceControl

LEASE_S = 2.0  # longest lease on the way to an inverter, and its own revert timer
FROZEN_S = 2.0
SILENT_S = 2.0  # after which the supervisor takes a process for stuck
DRIVERS = ('meter', 'bms_a', 'inverter_a', 'bms_b', 'inverter_b')
SETTINGS = [word for setting in (
    *(f'nodes.{driver}.frozen_after={FROZEN_S}' for driver in DRIVERS), 'nodes.bms_a.period=0.5',
    f'site.heartbeat_timeout={SILENT_S}') for word in ('--set', setting)]


class House:
    """A load that is never quite still, as no house is: at a constant power a battery that tells amperes with one digit
    looks frozen after `FROZEN_S`."""

    def __init__(self, site: RunningSite) -> None:
        self._world = DeviceControl(site.device('world').path)
        self._lock, self._stop, self._power = threading.Lock(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._live, name='house', daemon=True)

    def set(self, house_power: float, pv_power: float) -> None:
        """W, magnitudes; from now on."""
        with self._lock:
            self._power = house_power
            self._world.set(house_power=house_power, pv_power=pv_power)

    def _live(self) -> None:
        sign = 1.0
        while not self._stop.wait(0.25 * FROZEN_S):
            sign = -sign
            with self._lock:
                self._world.set(house_power=self._power + 60.0 * sign)

    def __enter__(self) -> House:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._world.close()


@pytest.fixture(scope='module')
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """The demo site without recorder and dashboard."""
    with RunningSite(tmp_path_factory.mktemp('failures'), *SETTINGS, without=TELEMETRY) as running:
        yield running


@pytest.fixture(scope='module')
def house(shared_site: RunningSite) -> Iterator[House]:
    """What it supplies."""
    with House(shared_site) as made:
        yield made


@pytest.fixture
def site(shared_site: RunningSite, house: House) -> RunningSite:
    """The site in RUN, without a fault, discharging into a load."""
    world = shared_site.device('world')
    world.clear()
    house.set(2000.0, 0.0)
    for driver in DRIVERS:
        shared_site.clear(driver)
    shared_site.wait_for(lambda: not shared_site.fault_ids(), 5.0, 'no fault')
    if not shared_site.state_is(SystemState.RUN):
        assert shared_site.call(Trigger, 'site/start').success
        shared_site.wait_for(lambda: shared_site.state_is(SystemState.RUN), 2.0, 'RUN')
    shared_site.wait_for(lambda: shared_site.battery_power() < -1500.0, SETTLE_S, 'discharging')
    shared_site.faults_seen.clear()
    shared_site.watch_ticks()
    return shared_site


def back_in_run(site: RunningSite, since_wall: float, since: float) -> bool:
    """Whether the site has entered RUN after that moment and all nodes live."""
    state = site.site_state()
    return (state is not None and state.state == SystemState.RUN and state.header.stamp.sec >= since_wall - 1.0
            and site.all_active() and all(site.heard_since(node, since) for node in site.nodes_in_file()))


@pytest.mark.parametrize(('device', 'fault', 'named'), [
    ('meter', 'wrong_unit_id', 'comm.frame'),
    ('meter', 'modbus_exception', 'comm.refused'),
    ('meter', 'frozen_value', 'sensor.frozen'),
    ('inverter_a', 'late_answer', 'comm.timeout'),
    ('inverter_a', 'modbus_exception', 'comm.refused'),
    ('inverter_a', 'disconnect', 'comm.disconnected'),
    ('bms_a', 'flipped_bytes', 'comm.checksum'),
    ('bms_a', 'truncated_frame', 'comm.timeout'),
    ('bms_a', 'disconnect', 'comm.disconnected'),
    ('bms_b', 'wrong_unit_id', 'comm.frame'),
    ('bms_b', 'frozen_value', 'sensor.frozen'),
])
def test_device_fault_is_named_and_stays_where_it_is(site: RunningSite, device: str, fault: str, named: str) -> None:
    pid, others = site.pid('control'), [driver for driver in DRIVERS if driver != device]
    site.inject(device, fault)
    begun = time.monotonic()

    def raised() -> bool:
        for other in others:
            names = set(site.faults(other))
            assert not {n for n in names if n.startswith(('comm.', 'sensor.'))}, (other, names)
        return named in site.faults(device)

    site.wait_for(raised, 8.0, f'{device}/{named}')
    after = time.monotonic() - begun
    assert site.faults(device)[named].text
    site.clear(device)
    begun = time.monotonic()
    site.wait_for(lambda: not site.fault_ids(), 8.0, 'recovery')
    print(f'{device} {fault}: {named} after {after:.1f} s, gone {time.monotonic() - begun:.1f} s after the cause; '
          f'{lateness(site.traces)}')
    assert site.pid('control') == pid, 'a restart'
    assert site.state_is(SystemState.RUN)
    assert not site.late_ticks(), 'control ticks came late'


def test_meter_lost_puts_self_consumption_to_zero_and_it_comes_back(site: RunningSite) -> None:
    site.inject('meter', 'no_answer')
    site.wait_for(site.at_zero, 5.0, 'inverters at zero')
    site.wait_for(lambda: 'comm.timeout' in site.faults('meter'), 4.0, 'a fault of the meter')
    assert 'meter' in site.trace().text
    site.wait_for(lambda: 'meter.lost' in site.faults('power_manager'), 4.0, 'a fault of the power manager')
    site.wait_for(lambda: 'mode.input' in site.faults('self_consumption'), 4.0, 'a fault of self-consumption')
    assert 'stale' in site.trace().text, site.trace().text
    site.holds(site.at_zero, 1.0, 'power without a meter')
    site.clear('meter')
    site.wait_for(lambda: site.battery_power() < -1500.0 and not site.fault_ids(), SETTLE_S, 'back at work')
    assert not site.late_ticks(), 'control ticks came late'


@pytest.mark.parametrize(('unit', 'bms', 'fault', 'named'), [
    ('unit_a', 'bms_a', 'cell_overvoltage', 'overvoltage'),
    ('unit_a', 'bms_a', 'over_temperature', 'overtemp'),
    ('unit_b', 'bms_b', 'over_temperature', 'overtemp'),
])
def test_plant_out_of_bounds_stops_charging_and_says_so(
        site: RunningSite, house: House, unit: str, bms: str, fault: str, named: str) -> None:
    world = site.device('world')
    house.set(300.0, 2800.0)
    site.wait_for(lambda: site.inverter_powers()[unit] > 300.0, SETTLE_S, 'charging')
    world.inject(fault, unit=unit, index=1)
    try:
        site.wait_for(lambda: site.inverter_powers()[unit] < 30.0, 3.0, 'charging stops')
        site.wait_for(lambda: any(named in f.replace('_', '') for f in site.faults(bms)), 3.0, f'{named} of {bms}')
        print(f'{unit} {fault}: {site.fault_ids()}, {site.trace().text}')
    finally:
        world.clear()
    house.set(2000.0, 0.0)
    site.wait_for(lambda: not site.faults(bms), 8.0, 'the cause is gone')
    answer = site.call(ClearFault, f'{bms}/clear_fault', id='')
    assert answer.accepted or 'no' in answer.message, answer.message


def test_killed_control_process_is_back_in_run_within_10_s(site: RunningSite) -> None:
    pid = site.pid('control')
    killed_wall, killed = time.time(), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    site.wait_for(lambda: back_in_run(site, killed_wall, killed), 10.0, 'RUN by itself within 10 s')
    print(f'after kill -9: RUN {time.monotonic() - killed:.1f} s')
    assert site.pid('control') != pid
    assert site.process.poll() is None
    site.wait_for(lambda: site.battery_power() < -1500.0, SETTLE_S, 'back at work')


def test_devices_go_to_zero_by_themselves_within_the_lease(site: RunningSite) -> None:
    """With a supervisor that cannot start a new process either, nobody but the devices is left."""
    pid = site.pid('control')
    site.process.send_signal(signal.SIGSTOP)
    killed = time.monotonic()
    try:
        os.kill(pid, signal.SIGKILL)
        site.wait_for(site.at_zero, LEASE_S + 1.0, 'the devices at zero by themselves')
        print(f'after kill -9: inverters at zero {time.monotonic() - killed:.1f} s')
        assert not alive(pid)
    finally:
        goes_on_wall, goes_on = time.time(), time.monotonic()
        site.process.send_signal(signal.SIGCONT)
    site.wait_for(lambda: back_in_run(site, goes_on_wall, goes_on), 10.0, 'RUN by itself')
    assert site.pid('control') != pid


def test_stuck_control_process_is_killed_and_started_again(site: RunningSite) -> None:
    pid = site.pid('control')
    stopped_wall, stopped = time.time(), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        site.wait_for(site.at_zero, LEASE_S + 1.0, 'the devices at zero by themselves')
        site.wait_for(lambda: not alive(pid), SILENT_S + 3.0, 'the stuck process is ended')
        site.wait_for(lambda: back_in_run(site, stopped_wall, stopped), 10.0, 'RUN by itself')
        print(f'after SIGSTOP: RUN {time.monotonic() - stopped:.1f} s')
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
    assert site.pid('control') != pid
    site.wait_for(lambda: site.battery_power() < -1500.0, SETTLE_S, 'back at work')
