"""One node of a site in a process of its own, that can be killed; everything around it is played by the test.

What its orders reach is real: the last gate of a converter, the gate of outputs, and the book of proposals. So "the
power is zero within the lease" is said by the code that says it in a driver.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from bess.msg import (
    BatteryStatus,
    ClimateZone,
    EmergencyStop,
    Event,
    Fault,
    FaultArray,
    Heartbeat,
    InverterStatus,
    MeterStatus,
    ModeState,
    OutputSetpoint,
    PowerProposal,
    PowerSetpoint,
    SystemState,
)
from bess.srv import SetContactor, SetMode
from bess_control.proposals import Proposal, ProposalBook
from bess_core import qos
from bess_core.convert import battery_to_msg, meter_to_msg, site_time, stamp
from bess_core.site import DRIVEN, load
from bess_core.values import BatteryReading, Contactor, ConverterReading, MeterReading, Mode, Quality
from bess_drivers.gate import Gate, GateParams, Setpoint
from bess_drivers.output_gate import OutputGate, OutputRule

ACTIVE, INACTIVE = State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_INACTIVE
RUN = SystemState.RUN
START_S = 15.0  # until a new process is heard, on a busy machine


def free_port() -> int:
    """A port that is free at present."""
    with socket.socket() as holder:
        holder.bind(('127.0.0.1', 0))
        return int(holder.getsockname()[1])


#: A zone in which it is about noon: what depends on the time of day then behaves the same whenever the tests run.
ZONE = f'Etc/GMT{time.gmtime().tm_hour - 12:+d}'
SITE = """
site: {name: site, heartbeat: 0.1}
nodes:
  meter: {type: carlo_gavazzi, address: "tcp://127.0.0.1:1"}
  pv: {type: carlo_gavazzi, address: "tcp://127.0.0.1:5"}
  bms: {type: jbd, address: "serial:/dev/null"}
  inv: {type: sunspec_inverter, address: "tcp://127.0.0.1:2", bms: bms}
  bat: {type: unit, bms: bms, converter: inv}
  bms2: {type: jbd, address: "serial:/dev/null2"}
  inv2: {type: sunspec_inverter, address: "tcp://127.0.0.1:3", bms: bms2}
  bat2: {type: unit, bms: bms2, converter: inv2}
  bms3: {type: jbd, address: "serial:/dev/null3"}
  bms4: {type: jbd, address: "serial:/dev/null4"}
  inv4: {type: sunspec_inverter, address: "tcp://127.0.0.1:4", bms: bms4}
  bat4: {type: unit, bms: bms4, converter: inv4}
  io: {type: gpio, address: "gpio:/dev/null", pins: ["heater=1 relay", "fan=2 relay"]}
  manager: {type: power_manager, battery: bat, meter: meter, tick_s: 0.05, ramp_rate: 1.0e+9}
  fixed: {type: fixed_power, battery: bat, meter: meter, charge_power: 800.0}
  self: {type: self_consumption, battery: bat, meter: meter}
  peak: {type: peak_shaving, battery: bat, meter: meter, import_limit: 500.0}
  local: {type: local_control, battery: bat, meter: meter, heartbeat: false}
  external: {type: external_control, battery: bat, meter: meter}
  charge: {type: charge_only, battery: bat, meter: meter, charge_power: 800.0}
  delayed: {type: delayed_charge, battery: bat, target_time: "23:59", time_zone: ZONE}
  optimized: {type: grid_optimized_charge, battery: bat, meter: meter, target_time: "23:59", time_zone: ZONE}
  passive: {type: passive, battery: bat, hold_zero: true}
  deep: {type: limit_total_discharge, battery: bat, min_soc: 0.6, force_charge_soc: 0.1}
  reserve: {type: emergency_reserve, battery: bat, reserve_soc: 0.6}
  feed_in: {type: feed_in_limit, battery: bat, meter: meter, max_feed_in: 500.0}
  contact: {type: load_limit, battery: bat, meter: meter, input: closed, charge_limit: 1000.0}
  ramp: {type: ramp_rate, battery: bat, meter: meter, ramp_rate: 10.0}
  smooth: {type: solar_smoothing, battery: bat, meter: meter, pv_meter: pv}
  match: {type: load_matching, battery: bat, meter: meter, load_meter: pv}
  cost: {type: cost_saving, battery: bat, meter: meter}
  backup: {type: backup, battery: bat, meter: meter, switch_output: switch, loads: [kitchen, "pump 0.6"], detect_s: 0.1,
           switch_timeout_s: 0.2, form_timeout_s: 0.6, observation_s: 0.3, period: 0.05, ramp_power: 1.0e+4}
  volt_var: {type: volt_var, battery: bat, meter: meter, rated_power: 5000.0, response_s: 0.0}
  watt_var: {type: watt_var, battery: bat, rated_power: 5000.0, response_s: 0.0, curve: "-1:0.2 1:0.2"}
  factor: {type: fixed_power_factor, battery: bat, rated_power: 5000.0}
  volt_watt: {type: volt_watt, battery: bat, meter: meter, rated_power: 5000.0, response_s: 0.0}
  droop: {type: frequency_watt, battery: bat, meter: meter, rated_power: 5000.0, response_s: 0.0}
  modbus: {type: modbus_control, mode: external, battery: bat, port: PORT, lease: 1.0}
  store: {type: storage, battery: bat2, bms: bms2, converter: inv2, period: 0.05, wait_connecting_interval: 0.2}
  site: {type: site, mode: fixed, timeout: 0.6, period: 0.05}
  emergency_stop: {type: emergency_stop}
  fault_manager: {type: fault_manager, battery: bat, manager: manager, site: site, emergency_stop: emergency_stop,
                  rules: [{fault: hot, action: derate, derate: 0.5}, {severity: critical, action: stop}]}
  event_log: {type: event_log}
  climate: {type: climate, profile: small, io: [io], batteries: [bms], sensors: {cabinet: [bms]}, period: 0.1,
            outputs: {cabinet: {heater: io.heater, fan: io.fan}}, battery: bat}
  soc: {type: soc, bms: bms3, capacity: 100.0, save_every: 1.0, reference: start}
  system: {type: system, battery: bms, period: 0.2}
  test: {type: test_controller, battery: bat, manager: manager, site: site}
  watchdog: {type: watchdog, nodes: [manager], device: "WATCHDOG", grace: 0.0, period: 0.1, timeout: 0.6}
  monitors: {type: monitors, batteries: [bms]}
  safe: {type: limiter, source: bat4, rated_charge_power: 5000.0, rated_discharge_power: 5000.0}
""".replace('ZONE', ZONE).replace('PORT', str(free_port()))
READING = BatteryReading(
    quality=Quality.OK, mode=Mode.IDLE, contactor=Contactor.CLOSED, voltage=50.0, current=0.0, power=0.0, soc=0.5,
    energy=2500.0, energy_full=5000.0, charge=50.0, charge_full=100.0, max_charge_power=2000.0,
    max_discharge_power=2000.0, max_charge_current=40.0, max_discharge_current=40.0, cell_voltage_min=3.29,
    cell_voltage_max=3.30, temperature=20.0, temperature_min=20.0)


class Zygote:
    """The process that forks the nodes' processes."""

    def __init__(self, folder: Path) -> None:
        file = folder / 'site.yaml'
        file.write_text(SITE)
        self._process = subprocess.Popen([sys.executable, str(Path(__file__).with_name('zygote.py')), str(file)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, 'the zygote has ended'
        return dict(json.loads(line))

    def start(self, argv: list[str]) -> int:
        """Process id of a new container process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({'argv': argv}) + '\n')
        self._process.stdin.flush()
        return int(self._line()['pid'])

    def close(self) -> None:
        """End it; what it forked ends by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10.0)


class Stage:
    """The site around the node `name`. `state` is what the site says; times in s, powers in W."""

    def __init__(self, graph: Any, zygote: Zygote, folder: Path, name: str) -> None:
        self.graph, self.zygote, self.name, self.folder = graph, zygote, name, folder
        self.file, self.watchdog = folder / 'site.yaml', folder / 'watchdog'
        self.watchdog.touch()
        self.file.write_text(SITE.replace('WATCHDOG', str(self.watchdog)))
        self.roles = {n.name: n.role for n in load(self.file, state=folder).nodes}
        self.silent: set[str] = {name}  # nodes without a heartbeat
        self.lifecycles = {n: INACTIVE if r in DRIVEN else ACTIVE for n, r in self.roles.items()}
        self.state, self.since, self.mode, self.load = SystemState.INIT, None, 'fixed', 0.0
        self.pv, self.volts, self.hertz, self.closed_contact = 0.0, 230.0, 50.0, False
        self.switched: dict[str, list[bool]] = {}  # outputs on topics: what the present process said
        self.proposing, self.sequence = nan, 0
        self.asked: list[str] = []  # what the node asked others to do
        self.said: dict[str, Any] = {}  # topic -> last message
        self.heard = (-inf, 0)  # last sign of life of the node: when, lifecycle
        self.pid = 0
        self.broken: Exception | None = None  # in what is played
        self.closed = False  # contactors of bms2
        self._looking: dict[str, Any] = {}  # clients that are kept
        self.readings = dict.fromkeys(('bat', 'bat2', 'bat4', 'bms', 'bms2', 'bms3'), READING)
        self.book = ProposalBook()
        self.gates = {n: Gate(GateParams(), n) for n in ('bat', 'bat2', 'bat4')}
        self.outputs = OutputGate({'heater': OutputRule(), 'fan': OutputRule()})
        self.powers = dict.fromkeys(self.gates, 0.0)
        self.on = dict.fromkeys(('heater', 'fan'), 0.0)
        for gate in (*self.gates.values(), self.outputs):
            gate.start()
        self._wire()

    # -- what is around the node -------------------------------------------------------------------

    def _wire(self) -> None:
        peer = self.graph.peer
        out, take = peer.create_publisher, peer.create_subscription
        self._batteries = {n: out(BatteryStatus, f'{n}/status', qos.MEASUREMENT) for n in self.readings}
        self._meters = {n: out(MeterStatus, f'{n}/status', qos.MEASUREMENT) for n in ('meter', 'pv')}
        self._contact = out(Bool, 'closed', qos.EVENT)
        self._converter = out(InverterStatus, 'inv2/status', qos.MEASUREMENT)
        self._heartbeat = out(Heartbeat, 'heartbeat', qos.EVENT)
        self._proposals = out(PowerProposal, 'proposals', qos.EVENT)
        self._faults = out(FaultArray, 'faults', qos.STATE)
        self.events = out(Event, 'events', qos.EVENT)
        self._state = out(SystemState, 'system_state', qos.STATE) if self.name != 'site' else None
        if self.name != 'emergency_stop':
            out(EmergencyStop, 'emergency_stop', qos.STATE).publish(EmergencyStop())
        take(Heartbeat, 'heartbeat', self._on_heartbeat, qos.EVENT)
        take(PowerProposal, 'proposals', self._on_proposal, qos.EVENT)
        take(OutputSetpoint, 'io/output', self._on_output, qos.SETPOINT)
        for name in self.gates:
            take(PowerSetpoint, f'{name}/setpoint', partial(self._on_setpoint, name), qos.SETPOINT)
        for topic, kind in (('emergency_stop', EmergencyStop), ('system_state', SystemState),
                            ('climate/zone_cabinet', ClimateZone)):
            take(kind, topic, partial(self._on_said, topic), qos.STATE)
        for name in ('switch', 'kitchen', 'pump'):
            take(Bool, name, partial(self._on_bool, name), qos.STATE)
        take(ModeState, f'{self.name}/state', partial(self._on_said, 'mode'), qos.STATE)
        if self.name == 'modbus':
            self._mode = out(ModeState, 'external/state', qos.STATE)
            take(PowerSetpoint, 'external/setpoint', self._on_external, qos.SETPOINT)
        if self.name in ('site', 'store'):
            for name, role in self.roles.items():
                if role in DRIVEN and name != self.name:
                    peer.create_service(ChangeState, f'{name}/change_state', partial(self._on_change, name))
            peer.create_service(SetContactor, 'bms2/set_contactor', self._on_contactor)
        if self.name in ('fault_manager', 'test'):
            for verb, kind in (('start', Trigger), ('stop', Trigger), ('set_maintenance', SetBool),
                               ('set_mode', SetMode)):
                peer.create_service(kind, f'site/{verb}', partial(self._on_site, verb))
            peer.create_service(Trigger, 'manager/stop', partial(self._on_site, 'manager stop'))
        self.faults()
        self.graph.ticker.every(0.05, lambda _: self._play_on())

    def _play_on(self) -> None:
        try:
            self._play()
        except Exception as error:  # noqa: BLE001 - shown by the test that waits
            self.broken = error

    def _play(self) -> None:
        clock = self.graph.clock
        now = clock.now()
        self.sequence += 1
        for name, gate in self.gates.items():
            gate.reading(ConverterReading(time=now, quality=Quality.OK, active_power=self.powers[name]))
            self.powers[name] = gate.tick(now).power
        self.outputs.reading({})
        for name, value in self.outputs.tick(now).items():
            self.on[name] = value
            self.outputs.written(name, value, now)
        self.book.expire(now)
        for name, reading in self.readings.items():
            power = self.powers.get(name, 0.0) if name != 'bat2' or self.lifecycles['inv2'] == ACTIVE else 0.0
            contactor = reading.contactor if name != 'bms2' else Contactor.CLOSED if self.closed else Contactor.OPEN
            self._batteries[name].publish(battery_to_msg(
                replace(reading, time=now, newest=now, power=power, contactor=contactor), clock))
        for name, power in (('meter', self.load + self.powers['bat']), ('pv', self.pv)):
            self._meters[name].publish(meter_to_msg(MeterReading(
                time=now, sequence=self.sequence, quality=Quality.OK, active_power=power, voltage=(self.volts,) * 3,
                frequency=self.hertz), clock))
        self._contact.publish(Bool(data=self.closed_contact))
        if self.name == 'modbus':
            self._mode.publish(ModeState(mode='external', state='off' if self.state != RUN else 'idle'))
        status = InverterStatus(quality=InverterStatus.QUALITY_OK, state=(
            InverterStatus.STATE_RUNNING if self.lifecycles['inv2'] == ACTIVE else InverterStatus.STATE_OFF))
        status.header.stamp = stamp(clock, now)
        self._converter.publish(status)
        for name in self.roles:
            if name not in self.silent:
                self._heartbeat.publish(Heartbeat(node=name, lifecycle=self.lifecycles[name], progress=self.sequence))
        if not isnan(self.proposing):
            message = PowerProposal(source='somebody', battery='bat', preferred_power=self.proposing, lease=0.5,
                                    priority=100, min_power=-inf, max_power=inf, preferred_reactive_power=nan)
            message.header.stamp = stamp(clock, now)
            self._proposals.publish(message)

    def faults(self, **severities: int) -> None:
        """The faults of bms from now on: id -> severity."""
        self._faults.publish(FaultArray(source='bms', faults=[
            Fault(id=i, severity=s, source='bms', active=True, latched=s == Fault.SEVERITY_CRITICAL, count=1, text=i)
            for i, s in severities.items()]))

    def tell(self, state: int) -> None:
        """The site enters a state, and drives the node as it would."""
        if self._state is None:
            return
        self.state, self.since = state, stamp(self.graph.clock, self.graph.clock.now())
        self.retell()
        if self.roles[self.name] in DRIVEN:
            self.drive(state == RUN)

    def retell(self) -> None:
        """The state is told again, as for another mode."""
        message = SystemState(state=self.state, cause='played', mode=self.mode)
        message.header.stamp = self.since
        self._state.publish(message)  # type: ignore[union-attr]

    def drive(self, on: bool) -> None:
        """Activate or deactivate the node."""
        wanted = ACTIVE if on else INACTIVE
        if self.heard[1] != wanted:
            request = ChangeState.Request()
            request.transition.id = Transition.TRANSITION_ACTIVATE if on else Transition.TRANSITION_DEACTIVATE
            name = f'{self.name}/change_state'
            client = self._looking.get(name) or self._looking.setdefault(
                name, self.graph.peer.create_client(ChangeState, name))
            self.wait(client.service_is_ready, f'service {name}', START_S)
            for _ in range(3):  # a request or its answer can be lost on a process that has just started
                future = client.call_async(request)
                if self.graph.runtime.spin_until(lambda: self.heard[1] == wanted, START_S / 2.0):
                    return
                client.remove_pending_request(future)
            raise AssertionError(f'{self.name} does not follow the site')

    # -- what the node does ------------------------------------------------------------------------

    def _on_said(self, topic: str, m: Any) -> None:
        self.said[topic] = m

    def _on_external(self, m: PowerSetpoint) -> None:
        self.asked.append(f'external {m.power:.0f} W for {m.lease:g} s')

    def _on_bool(self, name: str, m: Bool) -> None:
        self.switched.setdefault(name, []).append(m.data)

    def _on_heartbeat(self, m: Heartbeat) -> None:
        if m.node == self.name:
            self.heard = (self.graph.clock.now(), m.lifecycle)

    def _on_setpoint(self, name: str, m: PowerSetpoint) -> None:
        clock = self.graph.clock
        if m.power:
            self.asked.append(f'{name} {m.power:.0f} W')
        self.gates[name].offer(Setpoint(m.power, m.lease, m.source, m.sequence, site_time(clock, m.header.stamp),
                                        m.term), clock.now())

    def _on_proposal(self, m: PowerProposal) -> None:
        if m.source != self.name:
            return
        if abs(m.preferred_power) > 0.0:
            self.asked.append(f'proposes {m.preferred_power:.0f} W')
        self.book.put(Proposal(
            m.source, m.battery, m.priority, m.min_power, m.max_power, m.preferred_power, m.preferred_reactive_power,
            m.lease, m.reason, site_time(self.graph.clock, m.header.stamp)), self.graph.clock.now())

    def _on_output(self, m: OutputSetpoint) -> None:
        clock = self.graph.clock
        if m.value:
            self.asked.append(f'{m.name} {m.value:g}')
        self.outputs.offer(m.name, m.value, m.lease, m.source, m.sequence, site_time(clock, m.header.stamp),
                           clock.now())

    def _on_change(self, name: str, request: Any, response: Any) -> Any:
        on = request.transition.id == Transition.TRANSITION_ACTIVATE
        self.asked.append(f'{name} {"on" if on else "off"}')
        self.lifecycles[name] = ACTIVE if on else INACTIVE
        response.success = True
        return response

    def _on_contactor(self, request: Any, response: Any) -> Any:
        self.asked.append(f'contactors {"closed" if request.charge else "open"}')
        self.closed = request.charge and request.discharge
        response.accepted = True
        return response

    def _on_site(self, verb: str, request: Any, response: Any) -> Any:
        self.asked.append(f'site {verb}' + (f' {request.mode or "none"}' if verb == 'set_mode' else ''))
        if verb == 'set_mode':
            self.mode, response.accepted = request.mode.replace('none', ''), True
            self.retell()
        else:
            response.success = True
        return response

    # -- what the test does ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the node's process; returns when the node is configured, or active where nobody drives it."""
        before = self.graph.clock.now()
        self.pid = self.zygote.start(['--site', str(self.file), '--node', self.name, '--state', str(self.folder),
                                      '--supervised', '--bring-up', '--console', 'off'])
        up = INACTIVE if self.roles[self.name] in DRIVEN else ACTIVE
        self.wait(lambda: self.heard[0] > before + 0.05 and self.heard[1] == up, 'it is up', START_S)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait(lambda: not Path(f'/proc/{self.pid}').exists(), 'the process is gone')
        self.asked.clear()
        self.heard = (-inf, 0)
        self.said.clear()
        self.switched.clear()

    def end(self) -> None:
        """Without a trace."""
        if self.pid and Path(f'/proc/{self.pid}').exists():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = 2.0 * START_S) -> None:
        """Until it is true."""
        def done() -> bool:
            if self.broken is not None:
                raise self.broken
            return bool(condition())

        self.graph.wait(done, lambda: f'{self.name}: {what}; asked {self.asked[-4:]}, powers {self.powers}, '
                                           f'proposals {[p.source for p in self.book]}, said {self.said}', timeout)

    def call(self, kind: Any, service: str, request: Any = None, node: str = '') -> Any:
        """A service of the node, or of another."""
        return self.graph.call(kind, f'{node or self.name}/{service}', request, START_S)

    def look(self, kind: Any, service: str) -> Any:
        """A service that only tells something. It may be asked again: a process that has just started can answer
        before it has discovered who asked, and such an answer is lost."""
        client = self._looking.get(service) or self._looking.setdefault(
            service, self.graph.peer.create_client(kind, f'{self.name}/{service}'))
        self.wait(client.service_is_ready, f'service {service}', START_S)
        for _ in range(3):
            future = client.call_async(kind.Request())
            if self.graph.runtime.spin_until(future.done, START_S / 3.0):
                return future.result()
            client.remove_pending_request(future)
        raise AssertionError(f'{self.name}/{service} does not answer')

    def at_rest(self) -> bool:
        """No power, no output on, no proposal of the node that still counts."""
        return (not any(self.powers.values()) and not any(self.on.values())
                and not any(p.has_preference or p.low > -inf or p.high < inf or isfinite(p.preferred_reactive_power)
                            for p in self.book))

    def stays_at_rest(self, seconds: float) -> None:
        """Nothing is asked meanwhile."""
        self.asked.clear()
        self.graph.settle(seconds)
        assert not self.asked, f'{self.name}: asked {self.asked}'
