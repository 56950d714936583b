"""Site node: the site state machine on the wire. It watches all nodes and drives converters and modes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, ClassVar

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from std_srvs.srv import SetBool, Trigger

from bess.msg import FaultArray, Heartbeat, SystemState
from bess.srv import SetMode
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import wall_stamp
from bess_core.node import BessNode
from bess_core.params import extract, param
from bess_core.ticker import Tick
from bess_core.values import Severity

from .site_state import Reply, SiteMachine, SiteParams

ANSWER_S = 2.0  # a lifecycle request without an answer for so long may be sent again


@dataclass(frozen=True)
class SiteNodeParams(SiteParams):
    """Parameters of the site node."""

    mode: str = param('', '', 'control mode at first start; empty = none', ref='mode')
    timeout: float = param(1.5, 's', 'a node that is silent for so long is lost', low=0.2, high=60.0)
    period: float = param(0.1, 's', 'how often nodes are looked at', low=0.02, high=10.0)


class SiteNode(BessNode):
    """State on `<site>/system_state`; services `~/start`, `~/stop`, `~/set_mode`, `~/set_maintenance`."""

    Params: ClassVar[type] = SiteNodeParams
    role: ClassVar[str] = 'site'

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        nodes = ctx.site.nodes if ctx.site is not None else ()
        required = [n.name for n in nodes if n.required and n.name != name]
        modes = [n.name for n in nodes if n.role == 'mode']
        self._driven = {n.name: n.role for n in nodes if n.role in ('converter', 'mode')}
        self._file = ctx.state_dir / f'{name}.json'
        self._machine = SiteMachine(extract(SiteParams, parameters), required, modes, parameters.mode, self.clock.now())
        self._restore()

    def on_bess_configure(self) -> None:
        """Offer the services, watch the nodes."""
        self._seen: dict[str, tuple[float, int]] = {}  # node -> (when, lifecycle state)
        self._asked: dict[str, tuple[float, int]] = {}  # node -> (when, transition)
        self._latched: set[str] = set()
        self._state = self.create_publisher(SystemState, self.ctx.topic('system_state'), qos.STATE)
        self._own: list[Any] = [
            self.create_subscription(Heartbeat, self.ctx.topic('heartbeat'), self._on_heartbeat, qos.EVENT),
            self.create_subscription(FaultArray, self.ctx.topic('faults'), self._on_faults, qos.FAULTS),
        ]
        self._offered = [
            self.create_service(Trigger, '~/start', self._on_start),
            self.create_service(Trigger, '~/stop', self._on_stop),
            self.create_service(SetMode, '~/set_mode', self._on_set_mode),
            self.create_service(SetBool, '~/set_maintenance', self._on_maintenance),
        ]
        self._lifecycle = {
            name: self.create_client(ChangeState, self.ctx.topic(f'{name}/change_state')) for name in self._driven
        }
        self.every(self.params.period, self._look, phase=2)
        self._publish_state()

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for entity in getattr(self, '_own', []):
            self.destroy_subscription(entity)
        for service in getattr(self, '_offered', []):
            self.destroy_service(service)
        for client in getattr(self, '_lifecycle', {}).values():
            self.destroy_client(client)
        self._own, self._offered, self._lifecycle = [], [], {}
        if getattr(self, '_state', None) is not None:
            self.destroy_publisher(self._state)
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

    def _look(self, _: Tick) -> None:
        if not self.is_active:
            return
        now = self.clock.now()
        self.progress += 1
        missing = set(self._machine.missing)
        there = {n.name for n in self.ctx.site.nodes} if self.ctx.site is not None else self._machine.required
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
            alive = state in (State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE)
            if alive and name in missing:
                self._apply(self._machine.node_active(name, now))
            elif not alive and name not in missing:
                self._apply(self._machine.node_lost(name, now, 'silent' if state == 0 else 'not configured'))
        self._drive(now)

    def _drive(self, now: float) -> None:
        """Bring converters and modes to where the state wants them, one request at a time per node."""
        running = self._machine.allows_power
        for name, role in self._driven.items():
            wanted = running if role == 'converter' else running and name == self._machine.mode
            state = self._lifecycle_of(name)
            if state not in (State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE):
                continue
            if wanted == (state == State.PRIMARY_STATE_ACTIVE):
                continue
            transition = Transition.TRANSITION_ACTIVATE if wanted else Transition.TRANSITION_DEACTIVATE
            at, last = self._asked.get(name, (-inf, -1))
            if last == transition and now - at < ANSWER_S:
                continue
            client = self._lifecycle[name]
            if not client.service_is_ready():
                continue
            self._asked[name] = (now, transition)
            request = ChangeState.Request()
            request.transition.id = transition
            client.call_async(request).add_done_callback(partial(self._on_changed, name, transition))

    def _lifecycle_of(self, name: str) -> int:
        """Lifecycle state: exact for a node of this process, by heartbeat otherwise."""
        node = self.ctx.nodes.get(name)
        return node.lifecycle_id if node is not None else self._seen.get(name, (-inf, 0))[1]

    def _on_changed(self, name: str, transition: int, future: Any) -> None:
        self._asked.pop(name, None)
        result = future.result()
        ok = result is not None and result.success
        self.set_fault(not ok, f'site.drive.{name}', Severity.ERROR, f'{name}: transition {transition} failed')
        if ok and name in self._seen:
            active = transition == Transition.TRANSITION_ACTIVATE
            self._seen[name] = (self.clock.now(),
                                State.PRIMARY_STATE_ACTIVE if active else State.PRIMARY_STATE_INACTIVE)

    def _apply(self, reply: Reply) -> Reply:
        if reply.transition is not None:
            t = reply.transition
            self.log.info('site state', state=t.state.name, previous=t.previous.name, cause=t.cause)
            self._save()
            self._publish_state()
            self._drive(self.clock.now())
        return reply

    def _publish_state(self) -> None:
        m = self._machine
        message = SystemState(state=int(m.state), previous=int(m.previous), cause=m.cause, mode=m.mode,
                              missing=list(m.missing))
        message.header.stamp = wall_stamp(self.clock.to_wall(m.since))
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
        reply = self._machine.set_mode(request.mode)
        if reply.accepted:
            self.log.info('mode', mode=self._machine.mode or 'none')
            self._save()
            self._publish_state()
            self._drive(self.clock.now())
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
        temporary = self._file.with_suffix('.tmp')
        temporary.write_text(json.dumps({'wants_run': self._machine.wants_run, 'mode': self._machine.mode}))
        temporary.replace(self._file)

    def _restore(self) -> None:
        if not self._file.exists():
            return
        try:
            saved = json.loads(self._file.read_text())
            if not saved['wants_run']:
                self._machine.stop(self.clock.now(), 'operator before the restart')
            reply = self._machine.set_mode(str(saved['mode']))
            if not reply.accepted:
                self.log.warning('saved mode is not used; starting as configured', reason=reply.message)
        except (ValueError, KeyError, TypeError) as error:
            self.log.warning('saved site state cannot be read; starting as configured', reason=str(error))
