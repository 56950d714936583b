"""Storage node: the machine of one storage unit on the wire (node type `storage`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import inf, isnan
from typing import Any, ClassVar

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import String

from bess.msg import BatteryStatus, CurrentSetpoint, FaultArray, Heartbeat, InverterStatus
from bess.msg import StorageCommand as CommandMessage
from bess.msg import StorageState as StateMessage
from bess.srv import GetStorageState, SetContactor, StorageCommand
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import battery_from_msg, converter_from_msg, set_stamp, wall_stamp
from bess_core.files import replace_file
from bess_core.leases import Numbers
from bess_core.log import Refusals
from bess_core.node import BessNode
from bess_core.params import extract, param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Contactor, ConverterReading, Severity
from bess_virtual.setpoint_sender_node import SetpointSender

from .state_machine import CLOSED, COMMANDS, StorageMachine, View, Wanted
from .storage_params import StorageParams, StorageState


@dataclass(frozen=True, kw_only=True)
class StorageNodeParams(StorageParams):
    """A battery with contactors and converter, started, used and stopped as one; options of the BESS Agent."""

    battery: str = param(doc='battery that is commanded', ref='battery', owns=True)
    bms: str = param('', '', 'whose contactors are switched; empty = that of the unit named as battery, if it is one',
                     ref='bms')
    converter: str = param('', '', 'which is switched on and off; empty = that of the unit', ref='converter')
    lease: float = param(2.0, 's', 'how long the battery keeps an order without a new one', low=0.1, high=60.0)
    period: float = param(0.1, 's', 'how often the machine looks', low=0.02, high=10.0)
    autostart: bool = param(False, '', 'start when the site enters RUN, without a command')
    system_state_publish_topic: str = param(
        'record/BESS/SystemState', '', 'topic of each change of state as JSON text; empty = none')


class StorageNode(BessNode):
    """`~/state`, `~/command`, `~/get_storage_state`, and a service for each command."""

    Params: ClassVar[type] = StorageNodeParams
    role: ClassVar[str] = 'storage'

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.bms, self.converter = parts(parameters, ctx.site)

    def on_bess_configure(self) -> None:
        """Listen, offer the commands; the machine runs from now on and commands nothing before a start."""
        p, topic = self.params, self.ctx.topic
        self.machine = StorageMachine(extract(StorageParams, p), self.clock.now())
        self._file = self.ctx.state_dir / f'{self.name}_storage.json'
        self._start_due = False  # autostart, as soon as a stop that is under way is done
        self._resume()
        self._battery, self._bms, self._converter = BatteryReading(), BatteryReading(), ConverterReading()
        self._faults: dict[str, tuple[str, ...]] = {}
        self._lifecycle = (-inf, 0)  # of the converter: when, state
        self._asked: dict[str, tuple[float, Any]] = {}  # 'contactor', 'converter' -> when, what
        self._refused = ''  # why the contactors were not switched
        self._told: Any = None
        self._refusals = Refusals(self.log, 'command refused')
        self._sender = SetpointSender(self, p.battery, p.lease)
        self._amps = self.create_publisher(CurrentSetpoint, topic(f'{p.battery}/setpoint_current'), qos.SETPOINT)
        self._numbers = Numbers(self.clock.now())
        self._state = self.create_publisher(StateMessage, '~/state', qos.STATE)
        record = p.system_state_publish_topic
        self._record = self.create_publisher(String, topic(record), qos.EVENT) if record else None
        self._own: list[Any] = [
            self.create_subscription(BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT),
            self.create_subscription(FaultArray, topic('faults'), self._on_faults, qos.FAULTS),
            self.create_subscription(Heartbeat, topic('heartbeat'), self._on_heartbeat, qos.EVENT),
            self.create_subscription(CommandMessage, '~/command', self._on_command, qos.EVENT),
        ]
        self._clients: list[Any] = []
        if self.bms:
            self._own.append(self.create_subscription(
                BatteryStatus, topic(f'{self.bms}/status'), self._on_bms, qos.MEASUREMENT))
            self._contactor = self.create_client(SetContactor, topic(f'{self.bms}/set_contactor'))
            self._clients.append(self._contactor)
        if self.converter:
            self._own.append(self.create_subscription(
                InverterStatus, topic(f'{self.converter}/status'), self._on_converter, qos.MEASUREMENT))
            self._switch = self.create_client(ChangeState, topic(f'{self.converter}/change_state'))
            self._clients.append(self._switch)
        self._offered = [
            *(self.create_service(StorageCommand, f'~/{name}', partial(self._on_service, name)) for name in COMMANDS),
            self.create_service(GetStorageState, '~/get_storage_state', self._on_get_state),
        ]
        self.every(p.period, self._tick, phase=2)
        self._publish(Wanted())

    def on_bess_activate(self) -> None:
        """Commands are accepted from now on."""
        self._start_due = bool(self.params.autostart)
        self._start_when_stopped(self.clock.now())

    def on_bess_deactivate(self) -> None:
        """Zero at once; the rest of the stop goes on while inactive."""
        self._start_due = False
        self.machine.stop('deactivated', self.clock.now())
        self._step(self.clock.now())

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        for service in getattr(self, '_offered', []):
            self.destroy_service(service)
        for client in getattr(self, '_clients', []):
            self.destroy_client(client)
        self._own, self._offered, self._clients = [], [], []
        if hasattr(self, '_sender'):
            self._sender.close()
            for publisher in (self._amps, self._state, self._record):
                if publisher is not None:
                    self.destroy_publisher(publisher)
            del self._sender

    # -- what is measured --------------------------------------------------------------------------

    def _on_battery(self, message: BatteryStatus) -> None:
        self._battery = battery_from_msg(message, self.clock)

    def _on_bms(self, message: BatteryStatus) -> None:
        self._bms = battery_from_msg(message, self.clock)

    def _on_converter(self, message: InverterStatus) -> None:
        self._converter = converter_from_msg(message, self.clock)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        if message.node == self.converter:
            self._lifecycle = (self.clock.now(), message.lifecycle)

    def _on_faults(self, message: FaultArray) -> None:
        if message.source in (self.params.battery, self.bms, self.converter):
            self._faults[message.source] = tuple(
                f'{message.source}: {f.text}' for f in message.faults if f.severity == int(Severity.CRITICAL))

    def view(self) -> View:
        """All that the machine looks at."""
        return View(
            battery=self._battery, contactor=self._bms.contactor, contactor_time=self._bms.time,
            converter=self._converter.state, converter_time=self._converter.time, converter_on=self._is_on(),
            faults=tuple(text for texts in self._faults.values() for text in texts),
            has_contactor=bool(self.bms), has_converter=bool(self.converter))

    def _is_on(self) -> bool:
        node = self.ctx.nodes.get(self.converter)
        state = node.lifecycle_id if node is not None else self._lifecycle[1]
        return bool(state == State.PRIMARY_STATE_ACTIVE)

    # -- what is done ------------------------------------------------------------------------------

    def _tick(self, _: Tick) -> None:
        self.progress += 1
        now = self.clock.now()
        self._start_when_stopped(now)
        self._step(now)

    def _start_when_stopped(self, now: float) -> None:
        if self._start_due and self.machine.state is StorageState.STOPPED:
            self._start_due = False
            self.machine.command('start', now, by='autostart')

    def _step(self, now: float) -> None:
        view = self.view()
        wanted = self.machine.tick(now, view)
        if not isnan(wanted.order):
            self._send(wanted, now)
        if wanted.contactor is not None and self.bms:
            self._drive_contactor(wanted.contactor, view, now)
        if wanted.converter is not None and self.converter:
            self._drive_converter(wanted.converter, view, now)
        if self._refused and self.machine.state in (StorageState.CONNECTING, StorageState.STOPPING):
            wanted.reasons.append(f'{self.bms}: {self._refused}')
        alarms = dict(wanted.alarms)
        self.set_fault('storage.stop' in alarms, 'storage.stop', Severity.ERROR, alarms.get('storage.stop', ''))
        self.set_fault('storage.stopped' in alarms, 'storage.stopped', Severity.ERROR,
                       alarms.get('storage.stopped', ''))
        self.set_fault('storage.soc_recovery' in alarms, 'storage.soc_recovery', Severity.WARNING,
                       alarms.get('storage.soc_recovery', ''))
        for change in wanted.changes:
            self.log.info('storage state', state=change.state.name, previous=change.previous.name, cause=change.cause)
            self._say(change)
        if wanted.changes:
            self._keep()
        self._publish(wanted)

    def _send(self, wanted: Wanted, now: float) -> None:
        if not self.params.in_current:
            self._sender.send(wanted.order, wanted.reactive, now)
            return
        message = CurrentSetpoint(current=float(wanted.order), lease=float(self.params.lease), source=self.name,
                                  sequence=self._numbers.next())
        set_stamp(message.header.stamp, self.clock, now)
        self._amps.publish(message)

    def _drive_contactor(self, closed: bool, view: View, now: float) -> None:
        if (view.contactor in CLOSED) if closed else (view.contactor is Contactor.OPEN):
            self._refused = ''
            return
        if not self._may_ask('contactor', closed, now) or not self._contactor.service_is_ready():
            return
        self._asked['contactor'] = (now, closed)
        request = SetContactor.Request(charge=closed, discharge=closed)
        self._contactor.call_async(request).add_done_callback(partial(self._on_contactor, closed))

    def _on_contactor(self, closed: bool, future: Any) -> None:
        result = future.result()
        self._refused = '' if result is not None and result.accepted else (
            f'contactors not {"closed" if closed else "opened"}: {result.message if result else "no answer"}')

    def _drive_converter(self, on: bool, view: View, now: float) -> None:
        if on == view.converter_on or not self._may_ask('converter', on, now):
            return
        if not self._switch.service_is_ready():
            return
        self._asked['converter'] = (now, on)
        request = ChangeState.Request()
        request.transition.id = Transition.TRANSITION_ACTIVATE if on else Transition.TRANSITION_DEACTIVATE
        self._switch.call_async(request).add_done_callback(partial(self._on_switched, on))

    def _on_switched(self, on: bool, future: Any) -> None:
        result = future.result()
        if result is not None and result.success:
            state = State.PRIMARY_STATE_ACTIVE if on else State.PRIMARY_STATE_INACTIVE
            self._lifecycle = (self.clock.now(), state)

    def _may_ask(self, what: str, wish: bool, now: float) -> bool:
        """Told again at most every `wait_connecting_interval`; another wish is told at once."""
        at, last = self._asked.get(what, (-inf, None))
        return last is not wish or now - at >= self.params.wait_connecting_interval

    # -- commands ----------------------------------------------------------------------------------

    def command(self, name: str, value: float, power_factor: float, lease: float, by: str) -> tuple[bool, str]:
        """One command, from wherever it comes."""
        now = self.clock.now()
        if not self.is_active and name != 'stop':
            self.machine.last_command = f'{name} by {by}: refused, the site does not run this unit'
            return False, 'refused: the unit is not active; the site has to be in RUN'
        if name == 'stop':
            self._start_due = False
        answer = self.machine.command(name, now, value, power_factor, lease, by)
        if answer.accepted:
            self.log.info('command', name=name, value=value, by=by, result=answer.message)
        else:
            self._refusals.refuse(by, f'{name}: {answer.message}', now)
        self._step(now)
        return answer.accepted, answer.message

    def _on_service(self, name: str, request: StorageCommand.Request,
                    response: StorageCommand.Response) -> StorageCommand.Response:
        response.accepted, response.message = self.command(
            name, request.value, request.power_factor, request.lease, 'service')
        response.state = self.machine.state.name
        return response

    def _on_command(self, message: CommandMessage) -> None:
        self.command(message.command, message.value, message.power_factor, message.lease,
                     message.source or 'topic')

    def _on_get_state(self, _: GetStorageState.Request, response: GetStorageState.Response) -> Any:
        response.status = self._message
        return response

    # -- what survives a restart -------------------------------------------------------------------

    def _keep(self) -> None:
        """The state, so that a process that follows knows what this one left closed or running."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, json.dumps({'state': self.machine.state.name}))
        except OSError as error:
            self.raise_fault('storage.save', Severity.WARNING, f'{self._file} cannot be written: {error}')
        else:
            self.clear_fault('storage.save')

    def _resume(self) -> None:
        try:
            state = str(json.loads(self._file.read_text(encoding='utf-8'))['state'])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            state = f'a state that cannot be read ({error})'
        self.machine.resume(state, self.clock.now())

    # -- what is said ------------------------------------------------------------------------------

    def _publish(self, wanted: Wanted) -> None:
        m = self.machine
        told = (m.state, m.since, m.cause, m.asked, wanted.order, round(m.soc, 1), tuple(wanted.reasons),
                m.last_command)
        if repr(told) == self._told:  # NaN does not equal itself
            return
        self._told = repr(told)
        self._message = StateMessage(
            state=int(m.state), previous=int(m.previous), name=m.state.name, cause=m.cause,
            mode=self.params.user_command_mode, asked=float(m.asked), granted=float(wanted.order), soc=float(m.soc),
            limit_reasons=list(wanted.reasons), last_command=m.last_command)
        self._message.header.stamp = wall_stamp(self.clock.to_wall(m.since))
        self._state.publish(self._message)

    def _say(self, change: Any) -> None:
        if self._record is None:
            return
        at = datetime.fromtimestamp(self.clock.to_wall(change.time), self.params.zone)
        self._record.publish(String(data=json.dumps({
            'unit': self.name, 'state': change.state.name, 'previous': change.previous.name, 'cause': change.cause,
            'time': at.isoformat(timespec='milliseconds')})))

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        m = getattr(self, 'machine', None)
        return {} if m is None else {'state': m.state.name, 'cause': m.cause, 'last command': m.last_command}


def parts(params: Any, site: Any) -> tuple[str, str]:
    """Names of the battery management system and the converter of a storage unit; '' = none."""
    unit = None
    if site is not None:
        unit = next((n.params for n in site.nodes if n.name == params.battery), None)
        seen = set()
        while unit is not None and hasattr(unit, 'source') and unit.source not in seen:  # behind a limiter
            seen.add(unit.source)
            unit = next((n.params for n in site.nodes if n.name == unit.source), None)
    return (params.bms or str(getattr(unit, 'bms', '')), params.converter or str(getattr(unit, 'converter', '')))


__all__ = ['StorageNode', 'StorageNodeParams', 'parts']
