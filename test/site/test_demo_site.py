"""The demo site from the wire to the services: real processes, real protocols, nothing replaced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import isnan
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from running_site import BATTERIES, INVERTERS, SETTLE_S, TARGET_W, RunningSite, near_target
from std_srvs.srv import Trigger

from bess.msg import BatteryStatus, SystemState
from bess.srv import CancelSchedule, GetStatus, ListSchedule, ScheduleSetCurrent, SetMode
from bess_core.clock import split_stamp

TICK_S, POLL_S = 0.1, 0.2  # control tick; poll of the inverters


@pytest.fixture(scope='module')
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """The whole demo site."""
    with RunningSite(tmp_path_factory.mktemp('demo')) as running:
        yield running


@pytest.fixture
def site(shared_site: RunningSite) -> RunningSite:
    """The site in RUN under self-consumption, with a constant load, and nothing scheduled."""
    shared_site.device('world').set(house_power=1500.0, pv_power=0.0)
    for battery in BATTERIES:
        shared_site.call(CancelSchedule, f'{battery}/cancel_schedule')
    assert shared_site.call(SetMode, 'site/set_mode', mode='self_consumption').accepted
    if not shared_site.state_is(SystemState.RUN):
        assert shared_site.call(Trigger, 'site/start').success
    shared_site.wait_for(lambda: near_target(shared_site), SETTLE_S, 'grid power at its target')
    return shared_site


@pytest.fixture
def idle(shared_site: RunningSite) -> RunningSite:
    """The site in RUN without a mode, at rest: nobody asks any battery for power."""
    for battery in BATTERIES:
        shared_site.call(CancelSchedule, f'{battery}/cancel_schedule')
    assert shared_site.call(SetMode, 'site/set_mode', mode='none').accepted
    if not shared_site.state_is(SystemState.RUN):
        assert shared_site.call(Trigger, 'site/start').success
    shared_site.wait_for(
        lambda: shared_site.at_zero() and not any(shared_site.battery(b).setpoint_source for b in BATTERIES),
        6.0, 'nobody asks for power')
    return shared_site


def stamp(wall: float) -> Time:
    """A point in time for a service; 0 = now."""
    seconds, nanoseconds = split_stamp(wall)
    return Time(sec=seconds, nanosec=nanoseconds)


def schedule(site: RunningSite, battery: str, current: float, seconds: float, start: float = 0.0) -> tuple[Any, float]:
    """Answer of schedule_set_current, and the wall time of its end."""
    end = (start or time.time()) + seconds
    answer = site.call(ScheduleSetCurrent, f'{battery}/schedule_set_current', current=current, start=stamp(start),
                       end=stamp(end))
    return answer, end


def test_every_node_is_active(site: RunningSite) -> None:
    # What was heard counts when it is received, and nobody has received for a while.
    site.wait_for(lambda: not site.not_active(), 5.0, lambda: f'active: {site.not_active()}')
    assert site.starts('control') == [site.pid('control')]
    assert site.starts('telemetry') == [site.pid('telemetry')]
    assert site.fault_ids() == []
    assert (site.state / 'dashboard-password.txt').exists()
    site.wait_for(lambda: list((site.state / 'recordings').rglob('*.mcap')), 10.0, 'a recording')


@pytest.mark.parametrize('battery', BATTERIES)
def test_every_battery_answers_the_same_contract(site: RunningSite, battery: str) -> None:
    answer = site.call(GetStatus, f'{battery}/get_status')
    status = answer.status
    assert answer.fresh, answer.message
    assert status.quality == BatteryStatus.QUALITY_OK
    assert 0.0 < status.soc < 1.0
    assert not isnan(status.power)
    assert status.max_charge_power > 0.0
    assert status.max_discharge_power > 0.0
    assert 0.0 < status.energy < status.energy_full
    assert site.call(ListSchedule, f'{battery}/list_schedule').entries == []


@pytest.mark.parametrize(('house', 'pv'), [(4200.0, 0.0), (400.0, 3600.0)])
def test_grid_stays_at_its_target_while_the_house_changes(site: RunningSite, house: float, pv: float) -> None:
    site.device('world').set(house_power=house, pv_power=pv)
    wanted = TARGET_W - house + pv  # W at the batteries, + = charging
    site.wait_for(lambda: abs(site.battery_power() - wanted) < 150.0, SETTLE_S, 'batteries carry the difference')
    site.wait_for(lambda: near_target(site), SETTLE_S, 'grid power at its target')
    site.holds(lambda: near_target(site), 1.0, 'grid power leaves its target')
    powers = site.inverter_powers()
    assert all(power * wanted > 0.0 for power in powers.values()), powers  # both, in the same direction


def test_more_than_the_batteries_may_give_comes_from_the_grid(site: RunningSite) -> None:
    site.device('world').set(house_power=14000.0, pv_power=0.0)
    site.wait_for(lambda: any(step.bound for step in site.trace().steps), SETTLE_S, 'a limit binds')

    def within_limits() -> bool:
        units = site.world()['units']
        for name, unit in units.items():
            assert -unit['inverter']['active_power'] <= unit['inverter']['max_discharge_power'] * 1.01, name
            assert -unit['pack']['current'] <= unit['pack']['max_discharge_current'] * 1.01, name
        house = site.battery('house')
        return -house.power <= house.max_discharge_power * 1.02 + 50.0

    site.holds(within_limits, 2.0, 'house beyond its limit')
    assert site.grid_power() > 4000.0
    assert 'limited to' in site.trace().text


def test_self_consumption_and_the_grid_share_work_side_by_side(site: RunningSite) -> None:
    before = site.battery_power()
    answer, end = schedule(site, 'grid', -12.0, 7.0)
    assert answer.accepted, answer.message
    asked = -12.0 * site.battery('all').voltage
    site.wait_for(lambda: site.battery_power() < before + 0.6 * asked, 1.5, 'the inverters give more')
    site.wait_for(lambda: abs(site.battery('grid').power - asked) < 0.15 * abs(asked), 1.5, 'the share gives it')
    site.wait_for(lambda: site.battery('grid').setpoint_source == f'schedule:{answer.event_id}', 0.5, 'who asked')
    house = site.battery('house')
    assert house.setpoint_source == 'power_manager'
    assert house.power < -500.0
    # Self-consumption does not take the share's power for load: it goes on reaching the grid.
    site.wait_for(lambda: time.time() > end - 1.0, 7.0)
    assert site.grid_power() < TARGET_W + 0.6 * asked
    site.wait_for(lambda: time.time() > end, 3.0)
    site.wait_for(lambda: abs(site.battery('grid').power) < 20.0, 1.0, 'the share rests after the end')
    assert site.battery('house').power < -500.0


@pytest.mark.parametrize('battery', BATTERIES)
def test_schedule_moves_power_and_ends(idle: RunningSite, battery: str) -> None:
    site = idle
    answer, end = schedule(site, battery, 8.0, 1.5, start=time.time() + 0.3)
    assert answer.accepted, answer.message
    entries = site.call(ListSchedule, f'{battery}/list_schedule').entries
    assert [(e.event_id, e.value, e.is_power) for e in entries] == [(answer.event_id, 8.0, False)]
    asked = 8.0 * site.battery(battery).voltage
    site.wait_for(lambda: abs(site.battery_power() - asked) < 0.15 * asked, 2.0, f'{asked:.0f} W at the inverters')
    if battery.startswith('unit'):
        other = site.inverter_powers()['unit_a' if battery == 'unit_b' else 'unit_b']
        assert abs(other) < 15.0
    site.wait_for(lambda: site.battery(battery).setpoint_source == f'schedule:{answer.event_id}', 0.5, 'who asked')
    assert time.time() < end, 'the power came after the end'
    site.wait_for(site.at_zero, end - time.time() + 1.0, 'zero after the end')
    assert time.time() > end - 0.1, 'the power went before the end'
    assert site.call(ListSchedule, f'{battery}/list_schedule').active_at is False


def test_what_cannot_be_scheduled_is_refused_with_the_reason(site: RunningSite) -> None:
    for current, seconds, word in ((5000.0, 2.0, 'limit'), (float('nan'), 2.0, 'nan'), (5.0, -2.0, 'end')):
        answer, _ = schedule(site, 'all', current, seconds)
        assert not answer.accepted
        assert answer.event_id == 0
        assert answer.message, word
    assert site.call(ListSchedule, 'all/list_schedule').entries == []


def test_stop_puts_zero_on_the_wire_within_a_tick_and_a_poll(site: RunningSite) -> None:
    site.wait_for(lambda: site.battery_power() < -1000.0, SETTLE_S)
    asked = time.monotonic()
    assert site.call(Trigger, 'site/stop').success
    site.wait_for(site.at_zero, 2.0, 'inverters at zero')
    site.holds(site.at_zero, 1.0, 'power although the site was stopped')
    for inverter in INVERTERS:
        written = site.orders(inverter, asked)
        zeros = [at for at, power in written if power == 0]
        assert zeros, inverter
        print(f'{inverter}: zero on the wire {(zeros[0] - asked) * 1e3:.0f} ms after the call')
        assert zeros[0] - asked <= TICK_S + POLL_S
        assert all(power == 0 for at, power in written if at > zeros[0]), 'an order followed the stop'
    assert site.state_is(SystemState.SLEEP)
    answer, _ = schedule(site, 'unit_a', 10.0, 1.0)  # a schedule is no way around a stop
    site.holds(site.at_zero, 0.8, 'a schedule moved power although the site was stopped')
    assert site.call(Trigger, 'site/start').success
    site.wait_for(lambda: site.state_is(SystemState.RUN), 2.0, 'RUN')
    site.wait_for(lambda: near_target(site), SETTLE_S, 'grid power at its target')


def test_without_a_mode_nothing_is_asked(site: RunningSite) -> None:
    answer = site.call(SetMode, 'site/set_mode', mode='nonsense')
    assert not answer.accepted
    assert 'nonsense' in answer.message
    assert answer.available == ['self_consumption']
    assert near_target(site)
    assert site.call(SetMode, 'site/set_mode', mode='none').accepted
    site.wait_for(site.at_zero, 3.0, 'inverters at zero')
    assert site.state_is(SystemState.RUN)
    site.wait_for(lambda: site.site_state().mode == '', 1.0)  # type: ignore[union-attr]
    site.wait_for(lambda: site.trace().text.startswith('nobody asks'), 1.0, 'a decision that says so')
