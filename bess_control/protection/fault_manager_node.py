"""Fault manager node: listens to all faults of the site and acts through power manager, site and emergency stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, isnan, nan
from typing import Any, ClassVar

from std_srvs.srv import Trigger

from bess.msg import BatteryStatus, Event, Fault, FaultArray, FaultEntry, FaultOverview, PowerProposal, SystemState
from bess.srv import AcknowledgeFault, TriggerEmergencyStop
from bess_core import qos
from bess_core.convert import stamp, wall_stamp
from bess_core.faults import FaultRecord
from bess_core.files import replace_file
from bess_core.installed import fault_catalogue
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity

from ..site_state import SiteState
from .fault_policy import DEFAULT_RULES, Action, Entry, FaultBook, Verdict, page_of, parse_rules, parse_suppressions

ANSWER_S = 2.0  # an action that is still asked for is repeated after so long
PRIORITY = 250  # above every mode and grid service
LEASE_S = 3.0  # of a derating: longer than it takes the site to find that this node is lost


@dataclass(frozen=True)
class FaultManagerParams:
    """Parameters of the fault manager node."""

    rules: list[Any] = param([], '', 'what faults make the site do, first fit decides: mappings with action (none, '
                             'derate, sleep, stop, emergency_stop) and fault, source (globs), severity, derate, delay; '
                             'empty = critical faults stop')
    suppressions: list[Any] = param([], '', 'mappings with fault, source (globs) and by ("source/id" or "state:NAME")')
    battery: str = param('', '', 'battery that derate rules bound', ref='battery')
    manager: str = param('', '', 'power manager that a stop goes to', ref='manager')
    site: str = param('', '', 'site node that a sleep or stop goes to', ref='site')
    emergency_stop: str = param('', '', 'emergency stop node', ref='emergency_stop')
    period: float = param(0.2, 's', 'how often delays and the derating are looked at', low=0.02, high=10.0)
    catalogue: str = param('', '', 'fault catalogue (docs/faults.yaml) for the addresses of pages; empty = the '
                           'installed one')

    def __post_init__(self) -> None:
        rules = parse_rules(self.rules) if self.rules else DEFAULT_RULES
        parse_suppressions(self.suppressions)
        if any(r.action is Action.DERATE for r in rules) and not self.battery:
            raise ValueError('battery is missing: a rule derates it')
        if any(r.action in (Action.SLEEP, Action.STOP) for r in rules) and not (self.site or self.manager):
            raise ValueError('site or manager is missing: a rule stops the site')
        if any(r.action is Action.EMERGENCY_STOP for r in rules) and not self.emergency_stop:
            raise ValueError('emergency_stop is missing: a rule triggers it')


class FaultManagerNode(BessNode):
    """`~/overview` (latched), `~/acknowledge`; changes go to `<site>/events`."""

    Params: ClassVar[type] = FaultManagerParams
    role: ClassVar[str] = 'fault_manager'

    def on_bess_configure(self) -> None:
        """Listen; actions are taken while active."""
        p, topic = self.params, self.ctx.topic
        self._book = FaultBook(parse_rules(p.rules) if p.rules else DEFAULT_RULES, parse_suppressions(p.suppressions))
        self._file = self.ctx.state_dir / f'{self.get_name()}.json'
        self._restore()
        self._catalogue = _catalogue(p.catalogue)
        self._verdict, self._site_state = Verdict(), ''
        self._limits = (nan, nan)  # W, of the battery
        self._derating = False
        self._called: dict[str, float] = {}
        self._overview = self.create_publisher(FaultOverview, '~/overview', qos.STATE)
        self._proposals = self.create_publisher(PowerProposal, topic('proposals'), qos.EVENT)
        self._events = self.create_publisher(Event, topic('events'), qos.EVENT)
        self._actors: dict[str, Any] = {}
        for name, service in ((p.manager, 'stop'), (p.site, 'stop')):
            if name:
                self._actors[f'{name}/{service}'] = self.create_client(Trigger, topic(f'{name}/{service}'))
        if p.emergency_stop:
            self._actors[f'{p.emergency_stop}/trigger'] = self.create_client(
                TriggerEmergencyStop, topic(f'{p.emergency_stop}/trigger'))
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            (self.destroy_publisher, self._overview), (self.destroy_publisher, self._proposals),
            (self.destroy_publisher, self._events),
            *((self.destroy_client, c) for c in self._actors.values()),
            (self.destroy_service, self.create_service(AcknowledgeFault, '~/acknowledge', self._on_acknowledge)),
            (self.destroy_subscription, self.create_subscription(FaultArray, topic('faults'), self._on_faults,
                                                                 qos.FAULTS)),
            (self.destroy_subscription, self.create_subscription(SystemState, topic('system_state'), self._on_state,
                                                                 qos.STATE)),
        ]
        if p.battery:
            self._own.append((self.destroy_subscription, self.create_subscription(
                BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT)))
        self.every(p.period, self._tick, phase=1)
        self._publish()

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        self._own = []

    # -- in ----------------------------------------------------------------------------------------

    def _on_faults(self, message: FaultArray) -> None:
        records = [FaultRecord(f.id, Severity(f.severity), message.source, f.since.sec + f.since.nanosec * 1e-9,
                               f.count, f.active, f.latched, f.text) for f in message.faults]
        changes = self._book.update(message.source, records, self.clock.now())
        for change, fault in changes:
            self._event('fault', fault.source, fault.id, change, fault.text,
                        int(fault.severity) if change in ('raised', 'again', 'escalated') else 0)
        if changes:
            self._save()
        self._look()

    def _on_state(self, message: SystemState) -> None:
        self._site_state = SiteState(message.state).name
        self._look()

    def _on_battery(self, message: BatteryStatus) -> None:
        self._limits = (message.max_charge_power, message.max_discharge_power)

    def _on_acknowledge(self, request: AcknowledgeFault.Request,
                        response: AcknowledgeFault.Response) -> AcknowledgeFault.Response:
        response.accepted, response.message, faults = self._book.acknowledge(
            request.source, request.id, request.by, self.clock.wall())
        for f in faults:
            self._event('fault', f.source, f.id, 'acknowledged', f'by {request.by}', 0)
        if faults:
            self._save()
            self._look()
        return response

    def _tick(self, _: Tick) -> None:
        self.progress += 1
        self._look()

    # -- what follows ------------------------------------------------------------------------------

    def _look(self) -> None:
        verdict = self._book.verdict(self.clock.now(), self._site_state)
        if verdict != self._verdict:
            if verdict.action is not self._verdict.action:
                self.log.warning('action', action=verdict.action.name, cause=verdict.cause)
                self._event('fault', self.get_name(), verdict.action.name.lower(), 'action',
                            verdict.cause or 'no action', 1 if verdict.action else 0)
            self._verdict = verdict
            self._publish()
        if not self.is_active:
            return
        p = self.params
        if verdict.derate < 1.0 or self._derating:
            self._derate(verdict)
        if verdict.action >= Action.EMERGENCY_STOP:
            self._act(f'{p.emergency_stop}/trigger', TriggerEmergencyStop.Request(cause=verdict.cause,
                                                                                  by='fault_manager'))
        if verdict.action >= Action.SLEEP and self._site_state in ('RUN', ''):
            if verdict.action >= Action.STOP:
                self._act(f'{p.manager}/stop', Trigger.Request())
            self._act(f'{p.site}/stop' if p.site else f'{p.manager}/stop', Trigger.Request())

    def _derate(self, verdict: Verdict) -> None:
        charge, discharge = self._limits if verdict.derate < 1.0 else (nan, nan)  # the last one bounds nothing
        self._derating = verdict.derate < 1.0
        message = PowerProposal(
            source=self.get_name(), battery=self.params.battery, priority=PRIORITY,
            min_power=-inf if isnan(discharge) else -float(discharge) * verdict.derate,
            max_power=inf if isnan(charge) else float(charge) * verdict.derate,
            preferred_power=nan, preferred_reactive_power=nan, lease=max(3.0 * self.params.period, LEASE_S),
            reason=f'{verdict.derate:.0%} of the limits: {verdict.cause}'[:200])
        message.header.stamp = stamp(self.clock, self.clock.now())
        self._proposals.publish(message)

    def _act(self, service: str, request: Any) -> None:
        """Call a service, again every ANSWER_S while the action is asked for."""
        client, now = self._actors.get(service), self.clock.now()
        if client is None or now - self._called.get(service, -inf) < ANSWER_S:
            return
        ready = client.service_is_ready()
        self.set_fault(not ready, 'fault_manager.action', Severity.CRITICAL,
                       f'{service} is not there, but {self._verdict.action.name} is asked for')
        if not ready:
            return
        self._called[service] = now
        client.call_async(request).add_done_callback(partial(self._guarded, partial(self._on_done, service)))

    def _on_done(self, service: str, future: Any) -> None:
        answer = future.result()
        ok = answer is not None and bool(getattr(answer, 'success', getattr(answer, 'accepted', False)))
        self.log.info('action done', service=service, ok=ok, answer=getattr(answer, 'message', ''))
        if not ok:
            self._called.pop(service, None)

    # -- out ---------------------------------------------------------------------------------------

    def _publish(self) -> None:
        v = self._verdict
        message = FaultOverview(entries=[self._entry(e) for e in v.entries], action=v.action.name.lower(),
                                derate=float(v.derate), cause=v.cause)
        message.header.stamp = wall_stamp(self.clock.wall())
        self._overview.publish(message)

    def _entry(self, e: Entry) -> FaultEntry:
        f, seen = e.fault, e.acknowledged
        return FaultEntry(
            fault=Fault(id=f.id, severity=int(f.severity), source=f.source, since=wall_stamp(f.since),
                        count=int(f.count), active=f.active, latched=f.latched, text=f.text),
            acknowledged=seen is not None, acknowledged_by=seen.by if seen else '',
            acknowledged_at=wall_stamp(seen.at if seen else 0.0), suppressed_by=e.suppressed_by,
            action=e.action.name.lower(), page=page_of(f.id, self._catalogue))

    def _event(self, kind: str, source: str, name: str, change: str, text: str, severity: int) -> None:
        event = Event(severity=severity, kind=kind, source=source, name=name, change=change, text=text)
        event.header.stamp = wall_stamp(self.clock.wall())
        self._events.publish(event)

    def _save(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(self._book.to_dict()))
        except OSError as error:
            self.log.error('acknowledgements cannot be saved', error=str(error))

    def _restore(self) -> None:
        try:
            self._book.restore(json.loads(self._file.read_text(encoding='utf-8')))
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:  # then everything is shown as not seen yet
            self.log.error('acknowledgements cannot be read', error=str(error))


def _catalogue(path: str) -> tuple[str, ...]:
    """Ids of the fault catalogue; none where an installation has lost it, which is no reason to manage no faults."""
    try:
        return tuple(fault_catalogue(path))
    except FileNotFoundError:
        if path:
            raise
        return ()
