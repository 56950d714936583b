"""Machine of a storage unit on a virtual clock, with a battery, contactors and converter that answer late or never."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, isnan, nan
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.state_machine import COMMANDS, StorageMachine, View, Wanted
from bess_control.storage_node import StorageNodeParams
from bess_control.storage_params import ALLOWED, READY, StorageParams, StorageState
from bess_core.params import ParameterError, build
from bess_core.values import BatteryReading, Contactor, ConverterState, Mode, Quality

S = StorageState


@dataclass
class Unit:
    """A plant of one tick per 0.1 s: contactors and converter answer after a while, power follows an order with a
    lag, the state of charge moves with the power."""

    params: StorageParams = field(default_factory=StorageParams)
    soc: float = 0.5
    contactor_s: float = 0.5
    converter_s: float = 1.0
    lag_s: float = 0.3
    limit: float = 5000.0  # W
    energy: float = 10_000.0  # Wh
    silent: bool = False  # nothing is measured any more
    soc_frozen: bool = False
    stuck: bool = False  # power ignores orders
    welded: bool = False  # contactors do not open
    closed_as: Contactor = Contactor.CLOSED
    faults: tuple[str, ...] = ()
    mode: Mode = Mode.IDLE

    def __post_init__(self) -> None:
        self.now = 0.0
        self.machine = StorageMachine(self.params)
        self.closed = False
        self.on = False
        self.power = 0.0
        self.wanted = Wanted()
        self.trail: list[StorageState] = [S.STOPPED]
        self.unsafe: list[str] = []
        self._contactor_due = self._converter_due = inf
        self._seen = replace(BatteryReading(), soc=self.soc)
        self._view = View()

    def run(self, seconds: float, until: StorageState | None = None) -> None:
        for _ in range(round(seconds / 0.1)):
            self.step()
            if until is not None and self.machine.state is until:
                return
        assert until is None, f'not {until.name} but {self.machine.state.name}: {self.machine.cause}'

    def step(self) -> None:
        self.now = round(self.now + 0.1, 6)
        w = self.wanted
        if w.contactor is not None and w.contactor is not self.closed and not (self.welded and self.closed):
            self._contactor_due = min(self._contactor_due, self.now + self.contactor_s)
            if self.now >= self._contactor_due:
                if abs(self.power) > 200.0 and not w.contactor:
                    self.unsafe.append(f'contactor opened under {self.power:.0f} W')
                self.closed, self._contactor_due = w.contactor, inf
        else:
            self._contactor_due = inf
        if w.converter is not None and w.converter is not self.on:
            if w.converter and not self.closed:
                self.unsafe.append('converter started before the contactors closed')
            self._converter_due = min(self._converter_due, self.now + self.converter_s)
            if self.now >= self._converter_due:
                self.on, self._converter_due = w.converter, inf
        else:
            self._converter_due = inf
        target = w.order if self.closed and self.on and not isnan(w.order) else 0.0
        if not self.stuck:
            self.power += (target - self.power) * min(1.0, 0.1 / self.lag_s)
        if not self.soc_frozen:
            self.soc = min(1.0, max(0.0, self.soc + self.power * 0.1 / 3600.0 / self.energy))
        if not self.silent:
            reading = BatteryReading(
                time=self.now, quality=Quality.OK, mode=self.mode, voltage=50.0, power=self.power,
                current=self.power / 50.0, soc=self.soc, max_charge_power=self.limit, max_discharge_power=self.limit,
                max_charge_current=self.limit / 50.0, max_discharge_current=self.limit / 50.0)
            self._view = View(
                battery=reading, contactor=self.closed_as if self.closed else Contactor.OPEN,
                contactor_time=self.now, converter=ConverterState.RUNNING if self.on else ConverterState.OFF,
                converter_time=self.now, converter_on=self.on, faults=self.faults)
        before = self.machine.state
        self.wanted = self.machine.tick(self.now, self._view)
        for change in self.wanted.changes:
            self.trail.append(change.state)
        if before is not self.machine.state:
            assert self.wanted.changes

    def ask(self, name: str, value: float = nan, **more: float) -> tuple[bool, str]:
        answer = self.machine.command(name, self.now, value, **more)
        return answer.accepted, answer.message

    def started(self) -> Unit:
        self.run(0.2)
        assert self.ask('start')[0]
        self.run(20.0, S.HOLDING)
        return self


def test_start_and_stop_in_the_right_order() -> None:
    u = Unit().started()
    assert u.trail == [S.STOPPED, S.STARTING, S.CONNECTING, S.CONNECTED, S.HOLD_TRANSITION, S.HOLDING]
    assert u.closed and u.on and u.wanted.order == 0.0
    u.ask('charge', 3000.0)
    u.run(10.0, S.CHARGING)
    assert u.power == pytest.approx(3000.0, rel=0.1)
    u.ask('stop')
    assert u.machine.state is S.STOPPING
    u.run(20.0, S.STOPPED)
    assert not u.closed and not u.on and not u.unsafe and not u.wanted.alarms


@pytest.mark.parametrize(('command', 'value', 'states'), [
    ('charge', 2000.0, (S.CHARGE_TRANSITION, S.CHARGING)),
    ('discharge', 2000.0, (S.DISCHARGE_TRANSITION, S.DISCHARGING)),
    ('hold', nan, (S.HOLD_TRANSITION, S.HOLDING)),
])
def test_each_command_from_holding(command: str, value: float, states: tuple[StorageState, ...]) -> None:
    u = Unit().started()
    assert u.ask(command, value)[0]
    assert u.machine.state is states[0], 'at once, without waiting'
    u.run(10.0, states[1])
    expected = {'charge': 2000.0, 'discharge': -2000.0, 'hold': 0.0}[command]
    assert u.wanted.order == expected


def test_new_commands_while_a_transition_is_under_way() -> None:
    u = Unit(lag_s=5.0).started()
    u.ask('charge', 4000.0)
    u.run(0.3)
    assert u.machine.state is S.CHARGE_TRANSITION
    assert u.ask('discharge', 1000.0)[0]
    u.step()
    assert (u.machine.state, u.wanted.order) == (S.DISCHARGE_TRANSITION, -1000.0)
    assert u.ask('hold')[0]
    assert u.ask('charge', 500.0)[0]
    u.step()
    assert (u.machine.state, u.wanted.order) == (S.CHARGE_TRANSITION, 500.0)


@pytest.mark.parametrize('state', list(S))
def test_stop_from_every_state(state: StorageState) -> None:
    u = Unit(soc=0.05 if state is S.LOW_SOC_RECOVERY else 0.5, lag_s=3.0)
    u.run(0.2)
    if state is not S.STOPPED:
        u.ask('start')
        if state in READY and state is not S.HOLD_TRANSITION:
            u.run(30.0, S.HOLDING)
        if state.name.startswith('CHARG'):
            u.ask('charge', 1000.0)
        if state.name.startswith('DISCHARG'):
            u.ask('discharge', 1000.0)
        if state is S.HOLD_TRANSITION:
            u.run(30.0, S.HOLDING)
            u.ask('hold')
        elif state is S.STOPPING:
            u.ask('stop')
        elif state is not S.STARTING and u.machine.state is not state:
            u.run(30.0, state)
    assert u.machine.state is state
    assert u.ask('stop')[0]
    assert u.machine.state in (S.STOPPING, S.STOPPED)
    u.run(40.0)
    assert u.machine.state is S.STOPPED and not u.unsafe and abs(u.power) < 1.0


@pytest.mark.parametrize(('make', 'state', 'text'), [
    ({'silent': True}, S.STARTING, 'no start within'),
    ({'contactor_s': 1e6}, S.CONNECTING, 'contactors not closed within'),
    ({'converter_s': 1e6}, S.CONNECTED, 'converter not on within'),
])
def test_every_waiting_state_of_a_start_ends(make: dict, state: StorageState, text: str) -> None:
    u = Unit(**make)
    u.ask('start')
    u.run(5.0)
    assert u.machine.state is state
    u.run(70.0)
    assert u.machine.state in (S.STOPPING, S.STOPPED)
    assert text in u.machine.cause
    assert ('storage.stopped', u.machine.cause) in u.wanted.alarms


def test_power_that_does_not_come_ends_in_hold_and_says_so() -> None:
    u = Unit().started()
    u.stuck = True
    u.ask('charge', 3000.0)
    u.run(29.0)
    assert u.machine.state is S.CHARGE_TRANSITION, 'CHARGING is never said before power is measured'
    u.run(3.0, S.HOLDING)
    assert 'power not there within 30 s' in str(u.wanted.alarms)


def test_power_that_does_not_go_ends_in_stop_and_a_fault_but_never_in_stopped_unconfirmed() -> None:
    u = Unit().started()
    u.ask('charge', 3000.0)
    u.run(10.0, S.CHARGING)
    u.stuck = u.welded = True
    u.ask('hold')
    u.run(31.0)
    assert u.machine.state is S.STOPPING
    u.run(100.0)
    assert u.machine.state is S.STOPPING
    assert any(a[0] == 'storage.stop' and 'contactors' in a[1] for a in u.wanted.alarms)
    assert u.wanted.contactor is False and u.wanted.converter is False, 'asked again and again'
    assert not u.ask('start')[0]
    u.stuck = u.welded = False
    u.run(10.0, S.STOPPED)
    assert not any(a[0] == 'storage.stop' for a in u.wanted.alarms)


def test_automatic_recovery_below_the_limit_and_discharge_refused_with_the_reason() -> None:
    u = Unit(soc=0.1005, energy=500.0).started()
    u.ask('discharge', 3000.0)
    u.run(60.0, S.LOW_SOC_RECOVERY)
    accepted, message = u.ask('discharge', 1000.0)
    assert not accepted and 'state of charge is being recovered' in message
    assert u.machine.state is S.LOW_SOC_RECOVERY
    u.step()
    assert u.wanted.order == 5000.0, 'the rate of 10 kW is held to the limit of the battery'
    u.run(300.0, S.HOLDING)
    assert u.soc >= 0.2
    assert u.trail[-3:] == [S.LOW_SOC_RECOVERY, S.HOLD_TRANSITION, S.HOLDING]


def test_recovery_at_start_below_the_limit() -> None:
    u = Unit(soc=0.05, energy=500.0)
    u.run(0.2)
    u.ask('start')
    u.run(20.0, S.LOW_SOC_RECOVERY)
    assert u.closed and u.on, 'contactors and converter as at every start'
    assert u.trail == [S.STOPPED, S.STARTING, S.CONNECTING, S.CONNECTED, S.LOW_SOC_RECOVERY]


def test_a_battery_that_blocks_discharging_is_recovered_all_the_same() -> None:
    u = started_low(Unit(soc=0.02, closed_as=Contactor.CHARGE_ONLY))
    u.step()
    assert u.wanted.order == 5000.0


def test_recovery_by_command_when_stopped_starts_the_unit_properly() -> None:
    u = Unit(soc=0.15, energy=500.0)
    u.run(0.2)
    assert u.ask('recover_soc', 800.0)[0]
    u.run(20.0, S.LOW_SOC_RECOVERY)
    assert not u.unsafe and S.CONNECTING in u.trail
    u.run(1.0)
    assert u.wanted.order == 800.0
    u.run(600.0, S.HOLDING)
    assert 0.2 <= u.soc < 0.22


def test_recovery_is_never_above_its_rate() -> None:
    p = StorageParams(soc_low_recovery_charge_command=1.0)
    u = Unit(params=p, soc=0.15).started()
    assert u.ask('recover_soc', 4000.0)[0]
    for _ in range(50):
        u.step()
        assert u.wanted.order <= 1000.0


@pytest.mark.parametrize(('soc', 'accepted'), [(0.25, False), (0.1999, True), (0.2, False)])
def test_recovery_above_the_recovered_level_is_refused_and_not_stuck(soc: float, accepted: bool) -> None:
    u = Unit(soc=soc).started()
    answer, message = u.ask('recover_soc')
    assert answer is accepted
    if not accepted:
        assert 'recovered is 20 %' in message
    u.run(60.0, S.HOLDING)


def test_recovery_does_not_undo_a_stop() -> None:
    u = Unit(soc=0.15).started()
    u.ask('stop')
    accepted, message = u.ask('recover_soc')
    assert not accepted and 'a stop is not undone' in message
    u.run(20.0, S.STOPPED)


@pytest.mark.parametrize(('make', 'seconds', 'text'), [
    ({'limit': 0.0}, 3700.0, 'recovery gained nothing for 3600 s'),
    ({'silent': True}, 40.0, 'state of charge is'),
    ({'soc_frozen': True}, 3700.0, 'recovery gained nothing'),
])
def test_recovery_that_cannot_go_on_ends_in_stop(make: dict, seconds: float, text: str) -> None:
    u = started_low(Unit(soc=0.05))
    for key, value in make.items():
        setattr(u, key, value)
    u.run(seconds)
    assert u.machine.state in (S.STOPPING, S.STOPPED) and text in u.machine.cause


def started_low(u: Unit) -> Unit:
    u.run(0.2)
    u.ask('start')
    u.run(20.0, S.LOW_SOC_RECOVERY)
    return u


def test_high_limit_holds_with_hysteresis() -> None:
    u = Unit(soc=0.899, energy=500.0).started()
    u.ask('charge', 4000.0)
    u.run(60.0, S.HOLDING)
    assert u.soc == pytest.approx(0.9, abs=0.01)
    u.soc = 0.895
    u.run(2.0)
    accepted, message = u.ask('charge', 1000.0)
    assert not accepted and 'allowed again below 89 %' in message
    u.soc = 0.889
    u.run(2.0)
    assert u.ask('charge', 1000.0)[0]


def test_discharge_after_low_is_refused_until_hysteresis() -> None:
    u = Unit(params=StorageParams(allowed_transitions={'LOW_SOC_RECOVERY': ['LOW_SOC_RECOVERY']}), soc=0.0995)
    u.run(0.2)
    u.ask('start')
    u.run(20.0, S.HOLDING)
    u.soc = 0.105
    u.run(2.0)
    accepted, message = u.ask('discharge', 1000.0)
    assert not accepted and 'allowed again above 11 %' in message
    u.soc = 0.115
    u.run(2.0)
    assert u.ask('discharge', 1000.0)[0]


@pytest.mark.parametrize('soc', [nan, -0.1, 1.7, inf])
def test_state_of_charge_that_cannot_be_stops_after_its_age(soc: float) -> None:
    u = Unit().started()
    u.soc = soc
    u.soc_frozen = True
    u.run(29.0)
    assert u.machine.state is S.HOLDING
    u.run(3.0)
    assert u.machine.state in (S.STOPPING, S.STOPPED) and 'state of charge' in u.machine.cause


def test_no_state_of_charge_ever_is_no_operation() -> None:
    u = Unit(soc=nan, soc_frozen=True)
    u.run(0.2)
    u.ask('start')
    u.run(70.0)
    assert u.machine.state in (S.STOPPING, S.STOPPED) and 'no state of charge' in u.machine.cause


@pytest.mark.parametrize('strict', [True, False])
def test_strict_power_sign(strict: bool) -> None:
    u = Unit(params=StorageParams(strict_power_sign=strict)).started()
    u.ask('charge', 1000.0)
    u.run(10.0, S.CHARGING)
    accepted, message = u.ask('discharge', -2000.0)
    u.step()
    if strict:
        assert not accepted and 'strict_power_sign' in message
        assert u.machine.state is S.HOLD_TRANSITION and u.wanted.order == 0.0
    else:
        assert accepted and u.wanted.order == -2000.0


def test_current_mode_counts_in_ampere_and_against_current_limits() -> None:
    u = Unit(params=StorageParams(user_command_mode='CURRENT')).started()
    u.ask('charge', 150.0)
    u.step()
    assert u.wanted.order == 100.0, '5000 W at 50 V'
    assert '150.0 A asked, 100.0 A possible' in u.wanted.reasons[0]
    u.ask('discharge', 20.0)
    u.step()
    assert u.wanted.order == -20.0


def test_highest_command_and_power_factor() -> None:
    u = Unit(params=StorageParams(max_inverter_command=2.0)).started()
    u.ask('charge', 3000.0, power_factor=0.8)
    u.step()
    assert u.wanted.order == 2000.0 and u.wanted.reactive == pytest.approx(1500.0)
    assert 'max_inverter_command' in u.wanted.reasons[0]
    u.ask('charge', 1000.0, power_factor=-0.8)
    u.step()
    assert u.wanted.reactive == pytest.approx(-750.0)
    assert not u.ask('charge', 1000.0, power_factor=1.2)[0]


def test_lease_of_a_command_ends_in_hold() -> None:
    u = Unit().started()
    u.ask('charge', 1000.0, lease=5.0)
    u.run(4.0)
    assert u.machine.state is S.CHARGING
    u.run(3.0, S.HOLDING)


def test_a_fault_stops_from_operation() -> None:
    u = Unit().started()
    u.ask('charge', 1000.0)
    u.run(5.0)
    u.faults = ('bms: short circuit',)
    u.run(20.0, S.STOPPED)
    assert u.machine.cause == 'bms: short circuit' and not u.unsafe
    u.faults = ()
    u.ask('start')
    u.run(20.0, S.HOLDING)
    assert not u.wanted.alarms, 'a new start forgets it'


def test_contactors_that_open_by_themselves_stop() -> None:
    u = Unit().started()
    u.contactor_s = 1e6
    u.closed = False
    u.run(2.0)
    assert 'contactors have opened' in u.machine.cause


@pytest.mark.parametrize('value', [nan, inf, -inf])
def test_bad_values_change_nothing(value: float) -> None:
    u = Unit().started()
    for name in ('charge', 'discharge'):
        assert not u.ask(name, value)[0]
    assert not u.ask('fly')[0]
    assert not u.ask('charge', 1.0, lease=nan)[0]
    assert u.machine.state is S.HOLDING


@pytest.mark.parametrize('state', [S.STOPPED, S.STARTING, S.CONNECTING])
def test_commands_before_the_unit_is_ready_are_refused(state: StorageState) -> None:
    u = Unit(contactor_s=10.0)
    u.run(0.2)
    if state is not S.STOPPED:
        u.ask('start')
    if state is S.CONNECTING:
        u.run(1.0, S.CONNECTING)
    for name in ('charge', 'discharge', 'hold'):
        assert not u.ask(name, 100.0)[0]


@pytest.mark.parametrize(('table', 'text'), [
    ({'FLYING': ['STOPPED']}, 'unknown state'),
    ({'STOPPING': ['HOLDING']}, 'cannot be configured'),
    ({'LOW_SOC_RECOVERY': ['STOPPED']}, 'must never follow STOPPED'),
    ({'CHARGE_TRANSITION': ['STOPPING']}, 'must never follow STOPPING'),
    ({'STARTING': ['STOPPING']}, 'must never follow'),
    ({'HOLD_TRANSITION': ['HOLDING']}, 'is stuck'),
    ({'CHARGE_TRANSITION': 'HOLDING'}, 'needs a list'),
])
def test_unusable_tables_are_refused(table: dict, text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        build(StorageParams, {'allowed_transitions': table})


def test_the_table_is_configuration() -> None:
    u = Unit(params=StorageParams(allowed_transitions={'CHARGE_TRANSITION': ['HOLDING']})).started()
    u.ask('discharge', 1000.0)
    assert not u.ask('charge', 1000.0)[0]
    u.ask('hold')
    u.run(10.0, S.HOLDING)
    assert u.ask('charge', 1000.0)[0]


@pytest.mark.parametrize('values', [
    {'soc_low_limit': 95.0}, {'soc_recovered_level': 10.0}, {'soc_recovered_level': 95.0}, {'tz': 'Mars/Olympus'},
    {'user_command_mode': 'VOLTAGE'}, {'soc_monitor_interval': 0.0}, {'strict_power_sign': 'yes'},
    {'soc_high_limit': nan}])
def test_bad_options_are_refused(values: dict) -> None:
    with pytest.raises(ParameterError):
        build(StorageParams, values)


def test_defaults_are_those_of_the_original() -> None:
    p = StorageParams()
    assert (p.tz, p.soc_monitor_max_time, p.soc_high_limit, p.soc_low_limit, p.soc_recovered_level) == (
        'UTC', 30.0, 90.0, 10.0, 20.0)
    assert (p.soc_monitor_interval, p.soc_recovery_check_interval, p.soc_low_recovery_charge_command) == (
        1.0, 1.0, 10.0)
    assert (p.system_fault_check_interval, p.wait_connecting_interval, p.strict_power_sign, p.user_command_mode) == (
        1.0, 1.0, True, 'POWER')
    assert set(ALLOWED[S.CHARGE_TRANSITION]) == set(READY)


#: Further options of the original, of its devices and their point tables.
ELSEWHERE = (
    'battery_config inverter_config meter_config actuator_vip class_name module_name points repeatable_blocks '
    'mesa_name driver_point_name topic_prefix scale_factor offset unit rpc_attempts rpc_wait max_data_age '
    'buffer_length charge_sign inverter_heartbeat_check_interval inverter_heartbeat_warning_time '
    'initial_inverter_heartbeat_count inverter_heartbeat_count_limit security_code_value inverter_command_mode')


def test_every_option_of_the_original_is_one_here_or_is_told_where_it_went() -> None:
    assert StorageNodeParams(battery='b').system_state_publish_topic == 'record/BESS/SystemState'
    assert StorageParams().max_inverter_command == 125.0
    page_folder = Path(__file__).parents[2] / 'docs'
    page = (page_folder / 'storage.md').read_text(encoding='utf-8')
    table = page.partition('## Options that are different here')[2].partition('##')[0]
    assert [name for name in ELSEWHERE.split() if f'`{name}`' not in table] == []
    profile = yaml.safe_load((page_folder.parent / 'config/devices/rhombus_res125.yaml').read_text(encoding='utf-8'))
    assert (profile['write']['heartbeat']['below'], profile['write']['heartbeat']['value']) == (750, 931)


EVENT = st.one_of(
    st.tuples(st.sampled_from(COMMANDS), st.floats(-6000.0, 6000.0) | st.just(nan)),
    st.tuples(st.just('set'), st.sampled_from([
        ('silent', True), ('silent', False), ('stuck', True), ('stuck', False), ('welded', True), ('welded', False),
        ('soc', 0.05), ('soc', 0.5), ('soc', 0.95), ('limit', 0.0), ('limit', 3000.0), ('faults', ('x',)),
        ('faults', ()), ('contactor_s', 100.0), ('contactor_s', 0.1), ('mode', Mode.FAULT), ('mode', Mode.IDLE)])))


@settings(max_examples=60)
@given(st.lists(st.tuples(EVENT, st.integers(1, 150)), max_size=20))
def test_no_sequence_breaks_the_rules(events: list) -> None:
    u = Unit(energy=300.0)
    for (what, value), ticks in events:
        if what == 'set':
            setattr(u, value[0], value[1])
        else:
            u.ask(what, value)
        if what == 'stop':
            assert u.machine.state in (S.STOPPING, S.STOPPED)
        for _ in range(ticks):
            u.step()
            w, m = u.wanted, u.machine
            limit = u._view.battery.max_charge_power
            assert isnan(w.order) or abs(w.order) <= (0.0 if isnan(limit) else max(limit, 0.0))  # unknown: nothing
            if m.state is S.STOPPED:
                assert isnan(w.order)
            if m.state in (S.STOPPING, S.HOLDING, S.HOLD_TRANSITION):
                assert w.order == 0.0
            if m.state is S.LOW_SOC_RECOVERY:
                assert 0.0 <= w.order <= m.params.recovery_rate
            if w.converter:
                assert w.contactor, 'the converter never without contactors'
    # Whatever happened: sound again, a stop ends in STOPPED and a start comes up.
    u.silent = u.stuck = u.welded = False
    u.faults, u.contactor_s, u.mode, u.limit, u.soc = (), 0.1, Mode.IDLE, 3000.0, 0.5
    u.ask('stop')
    u.run(60.0)
    assert u.machine.state is S.STOPPED
    u.ask('start')
    u.run(30.0, S.HOLDING)
    assert not [t for t in u.unsafe if 'converter' in t]
