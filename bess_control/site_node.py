"""Site node: the site state machine on the wire. It watches all nodes and drives converters and modes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, ClassVar

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from std_srvs.srv import SetBool, Trigger

from bess.msg import BatteryStatus, FaultArray, Heartbeat, MeterStatus, PowerProposal, SystemState
from bess.srv import SetMode, SleepTimer
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import wall_stamp
from bess_core.files import replace_file
from bess_core.node import ACTIVE, INACTIVE, SUCCESS, BessNode
from bess_core.params import extract, param
from bess_core.site import DRIVEN, Site
from bess_core.stalls import OwnStalls, excused
from bess_core.ticker import Tick
from bess_core.values import Severity

from .leaving import Leaving
from .site_demand import Demand
from .site_journal import SiteJournal
from .site_state import LEAVING, Reply, SiteMachine, SiteParams, SiteState
from .sleep_switch_node import SleepSwitch
from .storage_node import parts

_MEASURES = frozenset((INACTIVE, ACTIVE))
ANSWER_S = 2.0  # a lifecycle request without an answer for so long may be sent again


@dataclass(frozen=True)
class SiteNodeParams(SiteParams):
    """Parameters of the site node."""

    mode: str = param('', '', 'control mode at first start; empty = none', ref='mode')
    modes: list[str] = param([], '', 'modes that act beside the main mode at first start, e.g. limits', ref='mode')
    handover: float = param(
        0.5, 's', 'how long a mode goes on when another replaces it: the new one has then taken over, and the power '
        'does not pass through zero', low=0.0, high=10.0)
    timeout: float = param(1.5, 's', 'a node that is silent for so long is lost', low=0.2, high=60.0)
    period: float = param(0.1, 's', 'how often nodes are looked at', low=0.02, high=10.0)
    idle_batteries: list[str] = param(
        [], '', 'batteries whose power, setpoint and plan tell whether the site is idle; empty = those of the power '
        'managers', ref='battery')
    idle_power: float = param(100.0, 'W', 'less than this asked or flowing is idle', low=0.0, high=1e9)
    wake_ahead: float = param(30.0, 's', 'so long before a planned power the site wakes', low=0.0, high=3600.0)
    wake_meter: str = param('', '', 'meter that wakes the site when more than wake_power flows', ref='meter')
    wake_power: float = param(500.0, 'W', 'magnitude at wake_meter that is a demand', low=0.0, high=1e9)
    sleep_switch: str = param(
        '', '', 'SetBool service (relative to the site) called with true when the site has fallen asleep and false '
        'when it wakes, e.g. the relay that lets a BMS sleep; empty = none')
    leave_delay: float = param(2.0, 's', 'time between REBOOT and the command, in which all goes to zero',
                               low=0.1, high=60.0)
    reboot_command: list[str] = param([], '', 'program and arguments that restart the machine; empty = refused')
    leave_timeout: float = param(60.0, 's', 'a RESTART or REBOOT that has not ended this process after so long has '
                                 'failed: the site goes on as before', low=5.0, high=3600.0)


class SiteNode(BessNode):
    """State on `<site>/system_state`; services `~/start`, `~/stop`, `~/set_mode`, `~/set_maintenance`."""

    Params: ClassVar[type] = SiteNodeParams
    role: ClassVar[str] = 'site'

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        nodes = ctx.site.nodes if ctx.site is not None else ()
        required = [n.name for n in nodes if n.required and n.name != name]
        modes = [n.name for n in nodes if n.role == 'mode']
        self._driven = {n.name: n.role for n in nodes if n.role in DRIVEN}
        # A storage node switches its own converter; the site only sees to it when that node is gone.
        self._switched_by = {parts(n.params, ctx.site)[1]: n.name for n in nodes if n.role == 'storage'}
        self._idle_batteries = list(parameters.idle_batteries) or [n.params.battery for n in nodes
                                                                   if n.role == 'manager']
        self._counted: Site | None = None  # the site that `_names` are of
        self._names = frozenset[str]()
        self._file = ctx.state_dir / f'{name}.json'
        self._machine = SiteMachine(
            extract(SiteParams, parameters), required, modes, parameters.mode, self.clock.now(), parameters.modes)
        self._resumed = self._restore()

    def on_bess_configure(self) -> None:
        """Offer the services, watch the nodes."""
        self._seen: dict[str, tuple[float, int]] = {}  # node -> (when, lifecycle state)
        self._asked: dict[str, tuple[float, int]] = {}  # node -> (when, transition)
        self._latched: set[str] = set(self._machine.critical)
        self._outgoing: dict[str, float] = {}  # modes that were replaced -> until when they go on
        self._state = self.create_publisher(SystemState, self.ctx.topic('system_state'), qos.STATE)
        self._transitions = self.create_publisher(SystemState, self.ctx.topic('site_transitions'), qos.TRANSITIONS)
        self._journal = SiteJournal(self.ctx.state_dir / f'{self.name}_states.jsonl')
        p = self.params
        self._stalls = OwnStalls(p.period, p.timeout)
        self._demand = Demand(p.idle_power, p.wake_ahead, p.timeout)
        self._leaving = Leaving(p.reboot_command, p.leave_delay, p.leave_timeout)
        self._own: list[Any] = [
            self.create_subscription(Heartbeat, self.ctx.topic('heartbeat'), self._on_heartbeat, qos.EVENT),
            self.create_subscription(FaultArray, self.ctx.topic('faults'), self._on_faults, qos.FAULTS),
            self.create_subscription(PowerProposal, self.ctx.topic('proposals'), self._on_proposal, qos.EVENT),
            *(self.create_subscription(BatteryStatus, self.ctx.topic(f'{name}/status'),
                                       partial(self._on_battery, name), qos.MEASUREMENT)
              for name in self._idle_batteries),
        ]
        if p.wake_meter:
            self._own.append(self.create_subscription(
                MeterStatus, self.ctx.topic(f'{p.wake_meter}/status'), self._on_meter, qos.MEASUREMENT))
        self._offered = [
            self.create_service(Trigger, '~/start', self._on_start),
            self.create_service(Trigger, '~/stop', self._on_stop),
            self.create_service(SetMode, '~/set_mode', self._on_set_mode),
            self.create_service(SetBool, '~/set_maintenance', self._on_maintenance),
            self.create_service(SleepTimer, '~/sleep', self._on_sleep),
            self.create_service(Trigger, '~/restart', partial(self._on_leave, SiteState.RESTART)),
            self.create_service(Trigger, '~/reboot', partial(self._on_leave, SiteState.REBOOT)),
        ]
        self._lifecycle = {
            name: self.create_client(ChangeState, self.ctx.topic(f'{name}/change_state')) for name in self._driven
        }
        self._switch = SleepSwitch(self, p.sleep_switch)
        self.every(p.period, self._look, phase=2)
        self._publish_state()
        self._apply(self._resumed)
        self._resumed = Reply(True, '')

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for entity in getattr(self, '_own', []):
            self.destroy_subscription(entity)
        for service in getattr(self, '_offered', []):
            self.destroy_service(service)
        for client in getattr(self, '_lifecycle', {}).values():
            self.destroy_client(client)
        if hasattr(self, '_switch'):
            self._switch.close()
        self._own, self._offered, self._lifecycle = [], [], {}
        if getattr(self, '_state', None) is not None:
            self.destroy_publisher(self._state)
            self.destroy_publisher(self._transitions)
            self._state = None  # type: ignore[assignment]

    # -- what happens ------------------------------------------------------------------------------

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._seen[message.node] = (self.clock.now(), message.lifecycle)

    def _on_faults(self, message: FaultArray) -> None:
        now = self.clock.now()
        latched = {f'{message.source}/{f.id}': f.text for f in message.faults if f.severity == int(Severity.CRITICAL)}
        known = {key for key in self._latched if key.startswith(f'{message.source}/')}
        for key, text in latched.items():
            if key not in known:
                self._latched.add(key)
                self._apply(self._machine.critical_fault(key, f'{message.source}: {text}', now))
        for key in known - latched.keys():
            self._latched.discard(key)
            self._apply(self._machine.fault_cleared(key, now))
        if latched.keys() != known:
            self._save()

    def _look(self, _: Tick) -> None:
        if not self.is_active:
            return
        now = self.clock.now()
        self.progress += 1
        if late := self._stalls.late(now):
            heard = excused({name: at for name, (at, _) in self._seen.items()}, late, now)
            self._seen = {name: (heard[name], state) for name, (_, state) in self._seen.items()}
        missing = set(self._machine.missing)
        there = self._there()
        for name in self._machine.required:
            if name not in there:  # destroyed at run time, on purpose
                if name in missing:
                    self._apply(self._machine.node_active(name, now))
                continue
            if self.ctx.heartbeat_s <= 0:
                node = self.ctx.nodes.get(name)
                state = node.lifecycle_id if node is not None else 0
            else:
                at, state = self._seen.get(name, (-inf, 0))
                if now - at > self.params.timeout:
                    state = 0
            # Inactive is no loss: the site itself puts converters and modes to sleep.
            alive = state in _MEASURES
            if alive and name in missing:
                self._apply(self._machine.node_active(name, now))
            elif not alive and name not in missing:
                self._apply(self._machine.node_lost(name, now, 'silent' if state == 0 else 'not configured'))
        self._apply(self._machine.look(now, self._demand.text(now)))
        self._drive(now)
        self._switch.drive(self._machine.asleep and not any(
            self._lifecycle_of(n) == ACTIVE for n, role in self._driven.items() if role != 'mode'),
            now)
        self._leave(now)

    def _there(self) -> frozenset[str]:
        """Names of the nodes that the site has at present."""
        site = self.ctx.site
        if site is None:
            return self._machine.required
        if site is not self._counted:
            self._counted, self._names = site, frozenset(n.name for n in site.nodes)
        return self._names

    def _drive(self, now: float) -> None:
        """Bring converters and modes to where the state wants them, one request at a time per node."""
        running = self._machine.allows_power
        modes = set(self._machine.active_modes)
        if not running or not modes:
            self._outgoing.clear()  # nobody takes over
        self._outgoing = {m: until for m, until in self._outgoing.items() if until > now and m not in modes}
        for name, role in self._driven.items():
            wanted = running and (role in ('converter', 'storage') or name in modes or name in self._outgoing)
            owner = self._switched_by.get(name)
            if owner is not None and (running or self._lifecycle_of(owner) in _MEASURES):
                continue
            state = self._lifecycle_of(name)
            if state not in _MEASURES or wanted == (state == ACTIVE):
                continue
            transition = Transition.TRANSITION_ACTIVATE if wanted else Transition.TRANSITION_DEACTIVATE
            at, last = self._asked.get(name, (-inf, -1))
            if last == transition and now - at < ANSWER_S:
                continue
            self._asked[name] = (now, transition)
            node = self.ctx.nodes.get(name)
            if node is not None:  # of this process: done when this returns
                self._changed(name, transition, (
                    node.trigger_activate() if wanted else node.trigger_deactivate()) == SUCCESS)
            elif (client := self._lifecycle[name]).service_is_ready():
                request = ChangeState.Request()
                request.transition.id = transition
                client.call_async(request).add_done_callback(partial(self._on_changed, name, transition))
            else:
                del self._asked[name]

    def _lifecycle_of(self, name: str) -> int:
        """Lifecycle state: exact for a node of this process, by heartbeat otherwise; 0 = silent."""
        node = self.ctx.nodes.get(name)
        if node is not None:
            return int(node.lifecycle_id)
        at, state = self._seen.get(name, (-inf, 0))
        return state if self.clock.now() - at <= self.params.timeout else 0

    def _on_changed(self, name: str, transition: int, future: Any) -> None:
        result = future.result()
        self._changed(name, transition, result is not None and result.success)

    def _changed(self, name: str, transition: int, ok: bool) -> None:
        if ok:  # otherwise it is asked again after ANSWER_S
            self._asked.pop(name, None)
        self.set_fault(not ok, f'site.drive.{name}', Severity.ERROR, f'{name}: transition {transition} failed')
        if ok and name in self._seen:
            active = transition == Transition.TRANSITION_ACTIVATE
            self._seen[name] = (self.clock.now(),
                                ACTIVE if active else INACTIVE)

    def _apply(self, reply: Reply) -> Reply:
        if reply.transition is not None:
            t = reply.transition
            self.log.info('site state', state=t.state.name, previous=t.previous.name, cause=t.cause)
            self._drive(self.clock.now())  # first: who hears of RUN may command at once
            self._save()
            self._publish_state()
            self._transitions.publish(self._state_message)
            self._write_journal(t)
        return reply

    def _write_journal(self, transition: Any) -> None:
        try:
            self._journal.write(transition, self.clock.to_wall(transition.time))
        except OSError as error:  # a full disk must not stop the site
            self.raise_fault('site.journal', Severity.WARNING, f'transition is not in the journal: {error}')
        else:
            self.clear_fault('site.journal')

    # -- idle, sleep, leaving ----------------------------------------------------------------------

    def _on_battery(self, name: str, m: BatteryStatus) -> None:
        at = m.next_change.sec + 1e-9 * m.next_change.nanosec
        self._demand.battery(name, m.setpoint, m.setpoint_source, m.power, self.clock.now())
        self._demand.plan(name, m.next_power, at - self.clock.wall() if at else inf, self.clock.now())

    def _on_proposal(self, m: PowerProposal) -> None:
        self._demand.proposal(m.source, m.preferred_power, m.lease, self.clock.now())

    def _on_meter(self, m: MeterStatus) -> None:
        if m.quality == MeterStatus.QUALITY_OK:
            self._demand.meter(self.params.wake_meter, m.active_power, self.params.wake_power, self.clock.now())

    def _on_sleep(self, request: SleepTimer.Request, response: SleepTimer.Response) -> SleepTimer.Response:
        reply = self._apply(self._machine.sleep(request.duration, self.clock.now()))
        response.accepted, response.message = reply.accepted, reply.message
        return response

    def _on_leave(self, target: SiteState, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        p = self.params
        if target is SiteState.REBOOT and not p.reboot_command:
            response.message = 'refused: no reboot_command is configured'
            return response
        reply = self._machine.leave(target, self.clock.now())
        if reply.accepted:
            self._leaving = Leaving(p.reboot_command, p.leave_delay, p.leave_timeout)
            self.clear_fault('site.reboot')
            self.clear_fault('site.restart')
        self._apply(reply)
        response.success, response.message = reply.accepted, reply.message
        return response

    def _leave(self, now: float) -> None:
        """REBOOT: the command, once, when all has gone to zero. RESTART is the supervisor's, who hears the state."""
        m = self._machine
        if m.state not in LEAVING:
            return
        failed = self._leaving.look(m.state is SiteState.REBOOT, now - m.since)
        if failed:
            if m.state is SiteState.REBOOT:
                self.raise_fault('site.reboot', Severity.ERROR, f'REBOOT failed: {failed}')
            else:
                self.raise_fault('site.restart', Severity.ERROR, f'RESTART failed: {failed}')
            self._apply(m.leave_failed(failed, now))

    def _publish_state(self) -> None:
        m = self._machine
        message = SystemState(state=int(m.state), previous=int(m.previous), cause=m.cause, mode=m.mode,
                              modes=list(m.beside), missing=list(m.missing))
        message.header.stamp = wall_stamp(self.clock.to_wall(m.since))
        self._state_message = message
        self._state.publish(message)

    # -- orders ------------------------------------------------------------------------------------

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        reply = self._apply(self._machine.start(self.clock.now()))
        self._save()
        response.success, response.message = reply.accepted, reply.message
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        reply = self._apply(self._machine.stop(self.clock.now()))
        self._save()
        response.success, response.message = reply.accepted, reply.message
        return response

    def _on_set_mode(self, request: SetMode.Request, response: SetMode.Response) -> SetMode.Response:
        machine, before = self._machine, set(self._machine.active_modes)
        if request.action == SetMode.Request.SELECT:
            reply = machine.set_mode(request.mode)
        elif request.action in (SetMode.Request.ADD, SetMode.Request.REMOVE):
            reply = machine.set_beside(request.mode, request.action == SetMode.Request.ADD)
        else:
            reply = Reply(False, f'action is {request.action}; allowed: 0 select, 1 add, 2 remove')
        if reply.accepted:
            now = self.clock.now()
            self.log.info('mode', mode=machine.mode or 'none', beside=', '.join(machine.beside) or 'none')
            if machine.mode and request.action == SetMode.Request.SELECT:
                self._outgoing |= dict.fromkeys(before - set(machine.active_modes), now + self.params.handover)
            self._save()
            self._publish_state()
            self._drive(now)
        response.accepted, response.message = reply.accepted, reply.message
        response.available = list(self._machine.modes)
        return response

    def _on_maintenance(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        reply = self._apply(self._machine.maintenance(request.data, self.clock.now()))
        self._save()
        response.success, response.message = reply.accepted, reply.message
        return response

    # -- what survives a restart -------------------------------------------------------------------

    def _save(self) -> None:
        self.ctx.state_dir.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, json.dumps(self._machine.saved(self.clock.to_wall)))

    def _restore(self) -> Reply:
        if not self._file.exists():
            return Reply(True, '')
        nodes = self.ctx.site.nodes if self.ctx.site is not None else None
        try:
            reply = self._machine.resume(json.loads(self._file.read_text()), self.clock.now(), self.clock.wall(),
                                         None if nodes is None else [n.name for n in nodes])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.log.warning('saved site state cannot be read; starting as configured', reason=str(error))
            return Reply(True, '')
        if not reply.accepted:
            self.log.warning('saved mode is not used; starting as configured', reason=reply.message)
        return reply
