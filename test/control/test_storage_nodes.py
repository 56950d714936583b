"""Storage and limiter nodes on real DDS: commands as services and topics, start and stop order, limits with reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import String

from bess.msg import (
    BatteryStatus,
    CurrentSetpoint,
    FaultArray,
    Heartbeat,
    InverterStatus,
    PowerSetpoint,
    StorageState,
)
from bess.msg import (
    StorageCommand as CommandMessage,
)
from bess.srv import GetStorageState, SetContactor, StorageCommand
from bess_control.limiter_node import LimiterNode
from bess_control.storage_node import StorageNode
from bess_core import qos
from bess_core.convert import battery_to_msg, stamp
from bess_core.values import BatteryReading, Contactor, Mode, Quality


class Unit:
    """A battery `bat`, its `bms` and `converter`, played by the peer."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        peer = graph.peer
        self.closed, self.active, self.power, self.soc = False, False, 0.0, 0.5
        self.refuse = ''
        self.log: list[str] = []
        self.cell = 3.30
        self.limit = 5000.0
        self._battery = peer.create_publisher(BatteryStatus, 'bat/status', qos.MEASUREMENT)
        self._bms = peer.create_publisher(BatteryStatus, 'bms/status', qos.MEASUREMENT)
        self._converter = peer.create_publisher(InverterStatus, 'converter/status', qos.MEASUREMENT)
        self._heartbeat = peer.create_publisher(Heartbeat, 'heartbeat', qos.EVENT)
        peer.create_service(SetContactor, 'bms/set_contactor', self._on_contactor)
        peer.create_service(ChangeState, 'converter/change_state', self._on_change)
        peer.create_subscription(PowerSetpoint, 'bat/setpoint', self._on_setpoint, qos.SETPOINT)
        peer.create_subscription(CurrentSetpoint, 'bat/setpoint_current', self._on_current, qos.SETPOINT)
        graph.ticker.every(0.03, lambda _: self.publish())

    def _on_contactor(self, request: Any, response: Any) -> Any:
        self.log.append(f'contactor {"closed" if request.charge else "open"}')
        response.accepted = not self.refuse
        response.message = self.refuse
        if not self.refuse:
            self.closed = request.charge and request.discharge
        return response

    def _on_change(self, request: Any, response: Any) -> Any:
        self.active = request.transition.id == Transition.TRANSITION_ACTIVATE
        self.log.append(f'converter {"on" if self.active else "off"}')
        response.success = True
        return response

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        self.power = message.power if self.active and self.closed else 0.0
        self.source = message.source

    def _on_current(self, message: CurrentSetpoint) -> None:
        self.power = 50.0 * message.current

    def publish(self) -> None:
        clock = self.graph.clock
        now = clock.now()
        reading = BatteryReading(
            time=now, newest=now, quality=Quality.OK, mode=Mode.IDLE, voltage=50.0, power=self.power,
            current=self.power / 50.0, soc=self.soc, max_charge_power=self.limit, max_discharge_power=self.limit,
            max_charge_current=self.limit / 50.0, max_discharge_current=self.limit / 50.0, cell_voltage_min=3.29,
            cell_voltage_max=self.cell, cell_voltage_max_index=7, temperature=20.0, temperature_min=18.0,
            contactor=Contactor.CLOSED if self.closed else Contactor.OPEN)
        self._battery.publish(battery_to_msg(replace(reading, contactor=Contactor.UNKNOWN), clock))
        self._bms.publish(battery_to_msg(reading, clock))
        status = InverterStatus(
            state=InverterStatus.STATE_RUNNING if self.active else InverterStatus.STATE_OFF,
            quality=InverterStatus.QUALITY_OK)
        status.header.stamp = stamp(clock, now)
        self._converter.publish(status)
        self._heartbeat.publish(Heartbeat(node='converter', lifecycle=(
            State.PRIMARY_STATE_ACTIVE if self.active else State.PRIMARY_STATE_INACTIVE)))


def storage(graph: Any, **params: Any) -> tuple[Unit, Any, list[Any]]:
    unit = Unit(graph)
    node = graph.add(StorageNode, 'store', {
        'battery': 'bat', 'bms': 'bms', 'converter': 'converter', 'period': 0.05, 'wait_connecting_interval': 0.1,
        'soc_monitor_interval': 0.1, 'system_fault_check_interval': 0.1, 'stop_timeout': 2.0, **params})
    graph.up(node)
    states = graph.listen(StorageState, 'store/state', qos.STATE)
    graph.wait(lambda: states and unit._bms.get_subscription_count() and node._battery.quality is Quality.OK
               and node._bms.quality is Quality.OK, 'it listens')
    return unit, node, states


def ask(graph: Any, name: str, value: float = 0.0) -> Any:
    return graph.call(StorageCommand, f'store/{name}', StorageCommand.Request(value=value))


def test_a_day_of_a_unit_over_services(graph: Any) -> None:
    unit, node, states = storage(graph)
    record = graph.listen(String, 'record/BESS/SystemState', qos.EVENT)
    assert not ask(graph, 'charge', 1000.0).accepted
    answer = ask(graph, 'start')
    assert answer.accepted and answer.state in ('STARTING', 'CONNECTING')
    graph.wait(lambda: states[-1].name == 'HOLDING', lambda: f'holding, not {states[-1]}')
    assert list(dict.fromkeys(unit.log))[:2] == ['contactor closed', 'converter on']  # each may be told again
    assert ask(graph, 'charge', 2000.0).state == 'CHARGE_TRANSITION'
    graph.wait(lambda: states[-1].name == 'CHARGING' and unit.power == 2000.0, 'charging')
    assert ask(graph, 'discharge', 9000.0).accepted
    graph.wait(lambda: unit.power == -5000.0, 'discharging, within the limit of the battery')
    graph.wait(lambda: states[-1].limit_reasons, 'and it says why')
    assert 'asked, 5.0 kW possible' in states[-1].limit_reasons[0]
    assert graph.call(GetStorageState, 'store/get_storage_state').status.name in ('DISCHARGE_TRANSITION', 'DISCHARGING')
    assert not ask(graph, 'charge', -5.0).accepted
    graph.wait(lambda: unit.power == 0.0, 'holds (strict_power_sign)')
    assert ask(graph, 'stop').accepted
    graph.wait(lambda: states[-1].name == 'STOPPED', lambda: f'stopped, not {states[-1]}')
    assert unit.log[-2:] == ['converter off', 'contactor open']
    graph.wait(lambda: record and json.loads(record[-1].data)['state'] == 'STOPPED', 'the record')
    assert json.loads(record[-1].data)['time'].endswith('+00:00')


def test_the_same_over_the_topic(graph: Any) -> None:
    unit, node, states = storage(graph)
    commands = graph.publisher(CommandMessage, 'store/command', qos.EVENT)

    def say(name: str, value: float = nan) -> None:
        commands.publish(CommandMessage(command=name, value=value, power_factor=nan, source='scada'))

    say('start')
    graph.wait(lambda: states[-1].name == 'HOLDING', 'holding')
    say('charge', 1500.0)
    graph.wait(lambda: states[-1].name == 'CHARGING' and unit.power == 1500.0, 'charging')
    assert 'charge by scada: accepted' in states[-1].last_command
    say('fly')
    graph.wait(lambda: 'unknown command' in states[-1].last_command, 'refused with the reason')
    say('stop')
    graph.wait(lambda: states[-1].name == 'STOPPED', 'stopped')


def test_low_soc_recovers_and_refuses_to_discharge(graph: Any) -> None:
    unit, node, states = storage(graph, soc_low_recovery_charge_command=0.5)
    ask(graph, 'start')
    graph.wait(lambda: states[-1].name == 'HOLDING', 'holding')
    faults = graph.listen(FaultArray, 'faults', qos.FAULTS)
    unit.soc = 0.08
    graph.wait(lambda: states[-1].name == 'LOW_SOC_RECOVERY' and unit.power == 500.0, 'recovers at its rate')
    answer = ask(graph, 'discharge', 1000.0)
    assert not answer.accepted and 'recovered' in answer.message
    graph.wait(lambda: any(f.id == 'storage.soc_recovery' for m in faults for f in m.faults), 'a fault says so')
    unit.soc = 0.21
    graph.wait(lambda: states[-1].name == 'HOLDING' and unit.power == 0.0, 'recovered')


def test_current_mode(graph: Any) -> None:
    unit, node, states = storage(graph, user_command_mode='CURRENT')
    ask(graph, 'start')
    graph.wait(lambda: states[-1].name == 'HOLDING', 'holding')
    ask(graph, 'charge', 40.0)
    graph.wait(lambda: unit.power == 2000.0 and states[-1].name == 'CHARGING', '40 A')
    assert states[-1].mode == 'CURRENT' and states[-1].asked == 40.0


def test_contactors_that_refuse_are_a_time_out_with_the_reason(graph: Any) -> None:
    unit, node, states = storage(graph, connect_timeout=1.0)
    unit.refuse = 'cell undervoltage'
    ask(graph, 'start')
    graph.wait(lambda: states[-1].name == 'CONNECTING' and 'cell undervoltage' in str(states[-1].limit_reasons),
               'the reason')
    graph.wait(lambda: states[-1].name in ('STOPPING', 'STOPPED'), 'gives up')
    assert 'not closed within 1 s' in states[-1].cause
    assert 'converter on' not in unit.log


def test_deactivated_is_stopped_and_takes_no_command(graph: Any) -> None:
    unit, node, states = storage(graph)
    ask(graph, 'start')
    graph.wait(lambda: states[-1].name == 'HOLDING', 'holding')
    ask(graph, 'charge', 1000.0)
    graph.wait(lambda: unit.power == 1000.0, 'charging')
    node.trigger_deactivate()
    graph.wait(lambda: states[-1].name == 'STOPPED', 'stopped in order, inactive')
    assert unit.log[-2:] == ['converter off', 'contactor open'] and unit.power == 0.0
    answer = ask(graph, 'start')
    assert not answer.accepted and 'not active' in answer.message


def limiter(graph: Any, **params: Any) -> tuple[Unit, Any, list[Any]]:
    unit = Unit(graph)
    unit.closed = unit.active = True
    node = graph.add(LimiterNode, 'safe', {
        'source': 'bat', 'rated_charge_power': 5000.0, 'rated_discharge_power': 5000.0, 'recovery_hold': 0.0, **params})
    graph.up(node)
    seen = graph.listen(BatteryStatus, 'safe/status', qos.MEASUREMENT)
    graph.wait(lambda: seen and seen[-1].quality == BatteryStatus.QUALITY_OK, 'status')
    return unit, node, seen


def test_a_limiter_is_a_battery_with_lower_limits_and_the_reasons(graph: Any) -> None:
    unit, node, seen = limiter(graph, software_discharge_power=3000.0)
    graph.wait(lambda: (seen[-1].max_charge_power, seen[-1].max_discharge_power) == (5000.0, 3000.0), 'limits')
    assert 'discharge 3000 W: software' in seen[-1].limit_reasons
    unit.cell = 3.40
    graph.wait(lambda: seen[-1].max_charge_power == pytest.approx(1250.0), 'cell voltage')
    assert 'charge 1250 W: cell voltage, cell 7 at 3.400 V' in seen[-1].limit_reasons
    orders = graph.publisher(PowerSetpoint, 'safe/setpoint', qos.SETPOINT)
    for i in range(1, 4):
        message = PowerSetpoint(power=4000.0, reactive_power=nan, lease=5.0, source='somebody', sequence=i)
        message.header.stamp = stamp(graph.clock, graph.clock.now())
        orders.publish(message)
        graph.settle(0.05)
    graph.wait(lambda: unit.power == pytest.approx(1250.0), lambda: f'held to the limit, not {unit.power}')
    assert unit.source == 'safe'
    unit.cell = 3.51
    graph.wait(lambda: unit.power == 0.0, 'nothing at the end of the curve')


def test_limits_of_a_limiter_reach_the_decision_trace(graph: Any) -> None:
    from bess.msg import DecisionTrace, PowerProposal, SystemState
    from bess_control.power_manager_node import PowerManagerNode

    unit, node, seen = limiter(graph, software_charge_power=3000.0)
    manager = graph.add(PowerManagerNode, 'power_manager', {'battery': 'safe', 'tick_s': 0.05, 'ramp_rate': 1e12})
    graph.up(manager)
    traces = graph.listen(DecisionTrace, 'power_manager/trace', qos.EVENT)
    state = graph.publisher(SystemState, 'system_state', qos.STATE)
    proposals = graph.publisher(PowerProposal, 'proposals', qos.EVENT)
    state.publish(SystemState(state=SystemState.RUN))
    unit.cell = 3.40
    message = PowerProposal(source='mode', battery='safe', preferred_power=4000.0, min_power=float('-inf'),
                            max_power=float('inf'), preferred_reactive_power=nan, priority=1, lease=30.0)
    message.header.stamp = stamp(graph.clock, graph.clock.now())
    proposals.publish(message)
    graph.wait(lambda: traces and 'cell 7 at 3.400 V' in traces[-1].text, lambda: traces[-1].text if traces else '')
    graph.wait(lambda: unit.power == pytest.approx(1250.0), 'and on the wire')
    assert 'software' in str(seen[-1].limit_reasons), 'every active limit is named'


def test_a_source_that_falls_silent_allows_nothing(graph: Any) -> None:
    unit, node, seen = limiter(graph, max_age=0.3, invalid_after=0.8, data_max_age=0.3, data_invalid_after=0.8)
    unit.publish = lambda: None  # type: ignore[method-assign]
    graph.wait(lambda: seen[-1].quality == BatteryStatus.QUALITY_INVALID, 'invalid')
    assert (seen[-1].max_charge_power, seen[-1].max_discharge_power) == (0.0, 0.0)
    assert not isnan(seen[-1].max_charge_power)
