"""Base class of every node: lifecycle without traps, parameters, faults, diagnostics, heartbeat.

Lifecycle mirrors the plant: configure = Init (connect, start measuring), activate = Run (may act),
deactivate = Sleep (safe, still measuring). A node overrides the `on_bess_*` hooks; an exception in a
hook is logged with its traceback, raises the fault ``node.<hook>`` and fails the transition. Plain
publishers are used throughout: they work in every state, because an inactive node still measures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')  # before the first message import

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import State, Transition
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from bess.msg import Fault, FaultArray, Heartbeat
from bess.srv import ClearFault

from . import params, qos
from .calls import Call
from .context import NodeContext
from .convert import set_wall, wall_stamp
from .endpoints import Endpoints
from .faults import FaultEvent, FaultRegistry
from .files import replace_file
from .ticker import Handle, Tick
from .values import Alarm, Severity

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
INACTIVE, ACTIVE = int(State.PRIMARY_STATE_INACTIVE), int(State.PRIMARY_STATE_ACTIVE)  # a call each time there
_LEVELS = {
    0: DiagnosticStatus.OK,
    Severity.WARNING: DiagnosticStatus.WARN,
    Severity.ERROR: DiagnosticStatus.ERROR,
    Severity.CRITICAL: DiagnosticStatus.ERROR,
}


class BessNode(Endpoints):
    """A lifecycle node of a site.

    Subclasses set `Params` (a frozen dataclass, see `bess_core.params`) and `role` (what other nodes
    may refer to it as), and override the hooks.
    """

    Params: ClassVar[type]
    role: ClassVar[str] = ''
    ros_parameters: ClassVar[bool] = True  # False: services of its own have the names of ROS' parameter services

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(
            ctx,
            name,
            namespace=ctx.namespace,
            start_parameter_services=ctx.parameter_services and self.ros_parameters,
            enable_rosout=False,  # one /rosout publisher per process: see bess_core.container
        )
        self.name = name
        self._lifecycle_id: int | None = None  # while no transition runs; asked for far more often than it changes
        self.params = parameters
        self.clock = ctx.clock
        params.declare(self, parameters)
        self.progress = 0  # work done so far; a stuck node stands still
        self.open_calls: set[Call] = set()  # questions to services that are not answered yet
        self._handles: list[Handle] = []
        self._own_handles: list[Handle] = []
        self._fault_file = ctx.state_dir / 'faults' / f'{name}.json'
        self._transition_failed: dict[str, str] = {}  # transition -> how it failed last
        self._unsaved = False  # latched faults that the disk did not take
        self._saved_faults = ''  # what it took last
        self.faults = self._load_faults()
        self._fault_publisher = self.create_publisher(FaultArray, ctx.topic('faults'), qos.STATE)
        self.create_service(ClearFault, '~/clear_fault', self._on_clear_fault)
        if ctx.heartbeat_s > 0:
            self._life = Heartbeat(node=name, group=ctx.group)  # refilled, as the diagnosis below
            self._heartbeat = self.create_publisher(Heartbeat, ctx.topic('heartbeat'), qos.EVENT)
            self._own_handles.append(ctx.ticker.every(ctx.heartbeat_s, partial(self._guarded, self._beat)))
        if ctx.diagnostics_s > 0:
            self._status_shown = DiagnosticStatus(name=f'{self.get_fully_qualified_name()}: {self.role or "node"}')
            self._diagnosis = DiagnosticArray(status=[self._status_shown])
            self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
            self._own_handles.append(ctx.ticker.every(ctx.diagnostics_s, partial(self._guarded, self._diagnose)))
        self.faults.changed = True  # an empty list is news to a late joiner: this node knows of no fault
        self.publish_faults()

    # -- hooks of subclasses ---------------------------------------------------------------------

    def on_bess_configure(self) -> None:
        """Init: create interfaces, connect, start measuring."""

    def on_bess_activate(self) -> None:
        """Run: from now on the node may act."""

    def on_bess_deactivate(self) -> None:
        """Sleep: make safe, go on measuring."""

    def on_bess_cleanup(self) -> None:
        """Undo configure; also called at shutdown and after a failed configure. Must bear repetition."""

    def diagnostics(self) -> dict[str, Any]:
        """Key-values for /diagnostics; read by people, not by control."""
        return {}

    def unfinished(self) -> tuple[list[str], list[str]]:
        """Work that somebody asked for: what runs now and what is to come, in words."""
        return [], []

    def guests(self) -> list[BessNode]:
        """Nodes of no site file that this one has made while it runs, and takes along when it ends."""
        return []

    # -- services for subclasses -----------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether the node is in lifecycle state active."""
        known = self._lifecycle_id  # as below, without another call
        return (self.lifecycle_id if known is None else known) == ACTIVE

    @property
    def is_configured(self) -> bool:
        """Whether the node is inactive or active: it measures."""
        return self.lifecycle_id in (INACTIVE, ACTIVE)

    @property
    def lifecycle_id(self) -> int:
        """lifecycle_msgs/State id."""
        known = self._lifecycle_id
        return int(self._state_machine.current_state[0]) if known is None else known

    def every(self, period_s: float, fn: Callable[[Tick], object], *, phase: int = 0) -> Handle:
        """Call `fn` on a fixed grid until cleanup, in every lifecycle state; phase 0 measures, 1 decides."""
        handle = self.ctx.ticker.every(period_s, partial(self._guarded, fn), phase=phase)
        self._handles.append(handle)
        return handle

    def raise_fault(self, fault_id: str, severity: Severity, text: str) -> None:
        """Make a fault active (again)."""
        self._tell(self.faults.raise_(fault_id, severity, text, self.clock.wall()))

    def clear_fault(self, fault_id: str) -> None:
        """The cause is gone; a latched fault stays until it is cleared by an operator."""
        if (faults := self.faults).get(fault_id) is not None:
            self._tell(faults.clear_cause(fault_id))

    def set_fault(self, present: bool, fault_id: str, severity: Severity, text: str) -> None:
        """Raise while `present`, take the cause away otherwise."""
        if present:
            self.raise_fault(fault_id, severity, text)
        else:
            self.clear_fault(fault_id)

    def sync_alarms(self, alarms: Iterable[Alarm], group: str) -> None:
        """Make the active faults of this reporter (device, gate ...) equal to these alarms."""
        if not alarms and self.faults.clean:
            return
        self._tell(self.faults.update(alarms, self.clock.wall(), group))

    def _tell(self, events: list[FaultEvent]) -> None:
        for event in events:
            fields = {'id': event.fault.id, 'severity': event.fault.severity.name, 'text': event.fault.text}
            if event.kind in ('raised', 'escalated'):
                self.log.warning(f'fault {event.kind}', **fields)
            else:
                self.log.info(f'fault {event.kind}', **fields)
        self.publish_faults()

    def publish_faults(self) -> None:
        """Publish and persist the faults when they changed."""
        if not self.faults.take_changed():
            return
        records = self.faults.records
        message = FaultArray(source=self.get_name())
        message.header.stamp = wall_stamp(self.clock.wall())
        message.faults = [
            Fault(
                id=r.id,
                severity=int(r.severity),
                source=r.source,
                since=wall_stamp(r.since),
                count=int(r.count),
                active=r.active,
                latched=r.latched,
                text=r.text,
            )
            for r in records
        ]
        self._fault_publisher.publish(message)
        if any(r.latched for r in records) or self._fault_file.exists():
            self._save_faults()

    def forget_faults(self) -> None:
        """Tell everybody that this node, which ends for good, has no faults any more. Stored ones stay."""
        message = FaultArray(source=self.name)
        message.header.stamp = wall_stamp(self.clock.wall())
        self._fault_publisher.publish(message)

    # -- inside ----------------------------------------------------------------------------------

    def _save_faults(self) -> None:
        text = json.dumps(self.faults.to_dict())
        if text == self._saved_faults:
            return  # the disk is waited for only when something latched has changed
        try:
            self._fault_file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._fault_file, text)
        except OSError as error:  # a full disk must not stop a node, least of all while it reports a fault
            if not self._unsaved:
                self._unsaved = True
                self.raise_fault('node.fault_save', Severity.ERROR, f'latched faults cannot be saved: {error}')
            return
        self._saved_faults = text
        if self._unsaved:
            self._unsaved = False
            self.clear_fault('node.fault_save')

    def _load_faults(self) -> FaultRegistry:
        name = self.get_name()
        if not self._fault_file.exists():
            return FaultRegistry(name)
        try:
            return FaultRegistry.from_dict(json.loads(self._fault_file.read_text()))
        except (ValueError, OSError) as error:
            # A file that cannot be read may have held a critical fault: say so, loudly and latched.
            registry = FaultRegistry(name)
            text = f'stored faults cannot be read: {error}'
            registry.raise_('node.fault_store', Severity.CRITICAL, text, self.clock.wall())
            registry.clear_cause('node.fault_store')
            return registry

    def _on_clear_fault(self, request: ClearFault.Request, response: ClearFault.Response) -> ClearFault.Response:
        response.accepted, response.message, events = self.faults.clear(request.id)
        self._tell(events)
        return response

    def _beat(self, _: Tick) -> None:
        message = self._life
        message.lifecycle, message.progress = self.lifecycle_id, self.progress
        set_wall(message.header.stamp, self.clock.wall())
        self._heartbeat.publish(message)

    def _diagnose(self, _: Tick) -> None:
        if not self.is_configured:
            return
        values = self.diagnostics()
        status, records = self._status_shown, self.faults.records
        status.level = _LEVELS[int(self.faults.worst or 0)]  # type: ignore[index]
        status.message = '; '.join(r.text for r in records) or 'ok'
        status.hardware_id = str(getattr(self, 'hardware_id', ''))
        if [v.key for v in status.values] != list(values):
            status.values = [KeyValue(key=k) for k in values]
        for shown, value in zip(status.values, values.values(), strict=True):
            text = str(value)
            if shown.value != text:
                shown.value = text
        set_wall(self._diagnosis.header.stamp, self.clock.wall())
        self._diagnostics.publish(self._diagnosis)

    def _hook(self, name: str, hook: Callable[[], None], undo: Callable[[], None] | None = None) -> Any:
        try:
            hook()
        except Exception as error:
            text = f'{name}: {type(error).__name__}: {error}'
            if self._transition_failed.get(name) != text:  # it is tried again and again: said once
                self.log.exception('transition failed', transition=name)
            self._transition_failed[name] = text
            self.raise_fault(f'node.{name}', Severity.ERROR, text)
            if undo is not None:
                self._hook(f'undo_{name}', undo)
            return FAILURE
        self._transition_failed.pop(name, None)
        self.clear_fault(f'node.{name}')
        return SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook; override `on_bess_configure` instead."""
        return self._hook('configure', self.on_bess_configure, self._cleanup)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook; override `on_bess_activate` instead."""
        super().on_activate(state)
        return self._hook('activate', self.on_bess_activate, self.on_bess_deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook; override `on_bess_deactivate` instead."""
        super().on_deactivate(state)
        return self._hook('deactivate', self.on_bess_deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook; override `on_bess_cleanup` instead."""
        return self._hook('cleanup', self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook: make safe, then clean up."""
        if state.state_id == ACTIVE:
            self._hook('deactivate', self.on_bess_deactivate)
        return self._hook('cleanup', self._cleanup)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """rclpy hook: back to unconfigured, so that the node can be brought up again."""
        return self._hook('cleanup', self._cleanup)

    def _cleanup(self) -> None:
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()
        for call in list(self.open_calls):
            self._guarded(call.give_up, 'the node is being cleaned up')
        self.on_bess_cleanup()

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        # rclpy 7.1.6 lets a transition that is not possible in this state end the process
        # (ros2/rclpy#1209); refuse it here. The name is the mangled one of the mixin's private method.
        possible = {t[0] for t in self._state_machine.available_transitions}
        if transition_id not in possible:
            self.log.warning('transition refused', transition=transition_id,
                             state=self._state_machine.current_state[1])
            return FAILURE
        self._lifecycle_id = None
        result = super()._LifecycleNodeMixin__change_state(transition_id)  # type: ignore[misc]
        self._lifecycle_id = int(self._state_machine.current_state[0])
        self.log.debug('lifecycle', state=self._state_machine.current_state[1])
        return result

    def close(self) -> None:
        """Orderly end of this process: safe, cleaned up, destroyed."""
        state = self.lifecycle_id
        if state == ACTIVE:
            self.trigger_deactivate()
        if self.lifecycle_id == INACTIVE:
            self.trigger_cleanup()
        for handle in self._own_handles:
            handle.cancel()
        if Transition.TRANSITION_UNCONFIGURED_SHUTDOWN in {
            t[0] for t in self._state_machine.available_transitions
        }:
            self.trigger_shutdown()
