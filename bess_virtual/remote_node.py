"""Remote battery: one in another namespace, ROS domain, process or site that looks like a local one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isnan, nan
from typing import Any, ClassVar, Protocol

from bess.msg import BatteryStatus
from bess.srv import CancelSchedule, ListSchedule, Reserve, ScheduleAt, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.convert import battery_from_msg
from bess_core.files import replace_file
from bess_core.log import Refusals
from bess_core.params import param
from bess_core.values import BatteryReading, Quality, Severity, quality_of

from . import admission, reservation_node
from .demand import Demand
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams
from .remote_link import LinkClient
from .remote_requests import Outbox, OwnerTime, Pending
from .remote_ros_node import RosLink
from .remote_server_node import TlsParams
from .remote_wire import AGAIN, Answer, Ask, WireError, decode_answer, encode, fields_of, message_of
from .scheduling_node import Scheduling


@dataclass(frozen=True, kw_only=True)
class RemoteParams(LogicalBatteryParams):
    """A battery elsewhere as a local one: over plain ROS 2 (`topic`), or Zenoh with mutual TLS (`endpoint`)."""

    topic: str = param('', doc='plain ROS 2: full name of the battery, as /other_site/house')
    domain: int = param(-1, doc='plain ROS 2: ROS domain of the battery; -1 = the own one', low=-1, high=232)
    endpoint: str = param('', doc='Zenoh: HOST:PORT of the owner\'s remote_server; HOST as in its certificate')
    realm: str = param('', doc='Zenoh: `realm` of the owner\'s remote_server (by default the name of its site)')
    battery: str = param('', doc='Zenoh: name of the battery at the owner')
    authority: str = param('', doc='Zenoh: certificate of the authority (ca.pem)')
    certificate: str = param('', doc='Zenoh: own client certificate (NAME.pem)')
    key: str = param('', doc='Zenoh: own private key, mode 0600; "" = beside the certificate (NAME.key)')
    poll: float = param(0.2, 's', 'how often the status is asked for', low=0.02, high=60.0)
    request_timeout: float = param(5.0, 's', 'a request without an answer is tried again for so long, then refused',
                                   low=0.2, high=600.0)
    lease: float = param(2.0, 's', 'how long the owner keeps an order without a new one', low=0.1, high=60.0)
    max_clock_offset: float = param(2.0, 's', 'difference of the wall clocks that is a fault', low=0.05, high=3600.0)

    def __post_init__(self) -> None:
        if bool(self.topic) == bool(self.endpoint):
            raise ValueError('give either topic (plain ROS 2) or endpoint (Zenoh)')
        if self.topic and not self.topic.startswith('/'):
            raise ValueError(f'topic {self.topic!r} does not begin with /')
        missing = [n for n in ('realm', 'battery', 'authority', 'certificate') if not getattr(self, n)]
        if self.endpoint and missing:
            raise ValueError(f'endpoint needs {", ".join(missing)}, too')


class Link(Protocol):
    """A way to the owner."""

    @property
    def problem(self) -> str:
        """Why nothing can be asked; '' = nothing known."""

    def ask(self, op: str, ask: Ask, timeout_s: float, done: Callable[[Answer | None], None]) -> bool:
        """Ask once; `done` in the executor thread, None = no answer. False while nobody can be asked."""

    def close(self) -> None:
        """End it."""


class ZenohLink:
    """Envelopes over `LinkClient`, handed over to the executor."""

    def __init__(self, client: LinkClient, post: Callable[[Callable[[], None]], object]) -> None:
        self._client, self._post = client, post
        self._why = ''  # what the other side says to one that it does not answer
        self._asking_why = False

    @property
    def problem(self) -> str:
        """Why nothing can be asked, or is not answered."""
        return self._client.problem or self._why

    def ask(self, op: str, ask: Ask, timeout_s: float, done: Callable[[Answer | None], None]) -> bool:
        """See `Link`."""
        def heard(data: bytes | None) -> None:  # thread of zenoh
            try:
                answer = None if data is None else decode_answer(data)
            except WireError as error:
                answer = Answer(error=f'{AGAIN} unreadable answer: {error}')
            self._post(lambda: finished(answer))

        def finished(answer: Answer | None) -> None:
            if answer is not None:
                self._why = ''
            elif not self._asking_why:
                self._asking_why = self._client.ask_why(timeout_s, hand_over)
            done(answer)

        def hand_over(why: str) -> None:  # thread of zenoh
            self._post(lambda: told(why))

        def told(why: str) -> None:
            self._why, self._asking_why = why, False

        return self._client.ask(op, encode(ask), timeout_s, heard)

    def close(self) -> None:
        """See `Link`."""
        self._client.close()


class RemoteScheduling(Scheduling):
    """The schedule is the owner's: every request goes there, and is accepted when the owner has accepted it."""

    node: RemoteNode

    def open(self) -> None:
        """Offer the services."""
        forward = self.node.forward
        self.services = [
            self._service(ScheduleSetCurrent, 'schedule_set_current', forward),
            self._service(ScheduleSetPower, 'schedule_set_power', forward),
            self._service(CancelSchedule, 'cancel_schedule', forward),
            self._service(ListSchedule, 'list_schedule', forward),
            self._service(ScheduleAt, 'schedule_at', forward),
            self._service(Reserve, 'reserve', forward),
        ]
        self.is_open = True

    def _service(self, kind: Any, op: str, forward: Callable[..., None]) -> Any:
        return self.node.create_deferred_service(kind, f'~/{op}', partial(forward, op, kind), qos_profile=qos.SERVICE)

    def close(self) -> None:
        """Take the services back."""
        self.is_open = False
        for service in getattr(self, 'services', []):
            self.node.destroy_service(service)
        self.services = []

    def tick(self, now: float) -> None:
        """Nothing is kept here."""

    def reserve(self, ask: admission.Ask, done: admission.Done) -> None:
        """A battery above in this process asks: the owner admits."""
        def answer(response: Reserve.Response) -> None:
            done(admission.Answer(response.accepted, response.message, response.runs_out))

        self.node.forward('reserve', Reserve, Reserve.Request(
            phase=ask.phase, owner=ask.owner, hold=ask.hold, hold_time=ask.hold_time, keep_time=ask.keep_time,
            strict=ask.strict, times=[float(t) for t in ask.plan.times], powers=[float(p) for p in ask.plan.powers]),
            answer)


class RemoteNode(LogicalBatteryNode):
    """See `RemoteParams`."""

    Params: ClassVar[type] = RemoteParams

    def configure_battery(self) -> None:
        """Set up the link."""
        p = self.params
        self.scheduling = RemoteScheduling(self)
        self._owner = OwnerTime()
        self._last = BatteryReading()  # as the owner said, times of the own clock
        self._owner_says: BatteryReading | None = None
        self._asked_at = -inf  # of the status question on its way
        self._waiting_status = False
        self._heard_at = -inf  # status of the owner
        self._answered_at = -inf  # any answer of the owner, also a refusal to tell its status
        self._configured_at = self.clock.now()
        self._trouble = 'not asked yet'
        self._denied = ''  # why the owner tells no status
        self._withdrawing = False
        self._file = self.ctx.state_dir / 'remote' / f'{self.get_name()}.json'
        self._outbox = Outbox(self._restore())
        self._refused = Refusals(self.log, 'order refused by the owner')
        self._link: Link | None = None
        if p.topic:
            self._link = RosLink(self, p.topic.rstrip('/'), p.domain, self.clock, self.ctx.post, self.log)
        else:
            tls = TlsParams(endpoint=p.endpoint, authority=p.authority, certificate=p.certificate, key=p.key).tls()
            self._link = ZenohLink(LinkClient(p.endpoint, p.realm, tls), self.ctx.post)
        self.every(p.poll, lambda _: self._poll())
        self.every(min(0.05, p.poll), lambda _: self._pump())

    def cleanup_battery(self) -> None:
        """End the link; whoever waits is told."""
        if getattr(self, '_link', None) is not None:
            self._outbox.expire(inf, 'the battery is shutting down')
            self._save()
            self._link.close()  # type: ignore[union-attr]
            self._link = None

    def _restore(self) -> list[str]:
        if not self._file.exists():
            return []
        try:
            return [str(i) for i in json.loads(self._file.read_text())['withdraw']]
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.log.warning('requests to withdraw cannot be read', reason=str(error))
            return []

    def _save(self) -> None:
        if self._outbox.changed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, json.dumps({'withdraw': self._outbox.to_withdraw}))
            self._outbox.changed = False

    # -- status --------------------------------------------------------------------------------------

    def _poll(self) -> None:
        now = self.clock.now()
        if self._waiting_status and now - self._asked_at < 2.0 * max(self.params.poll, 0.5):
            return
        self._asked_at = now
        self._waiting_status = self._link is not None and self._link.ask(
            'status', Ask(self.params.battery), max(self.params.poll, 0.5),
            lambda answer: self._guarded(self._on_status, now, answer))
        if not self._waiting_status and self._link is not None:
            self._trouble = self._link.problem or 'not connected'
        self._watch_link(now)

    def _on_status(self, sent: float, answer: Answer | None) -> None:
        if self._link is None or sent != self._asked_at:
            return
        self._waiting_status = False
        now = self.clock.now()
        if answer is not None and answer.boot:  # its clock, also from a refusal: requests may be allowed nevertheless
            self._answered_at = now
            self._owner.learn(answer.boot, answer.t, answer.wall, sent, now, self.clock.wall())
        if answer is None or answer.error or not answer.boot:
            self._denied = '' if answer is None or answer.error.startswith(AGAIN) else answer.error
            self._trouble = (self._link.problem or 'no answer' if answer is None
                             else answer.error or 'an answer that is none')
            self.changed()
            self._pump()
            return
        try:
            message = message_of(BatteryStatus, answer.body.get('status', {}))
            reading = battery_from_msg(message, self.clock)
            age, newest = (float(answer.body.get(k, nan)) for k in ('age', 'newest_age'))
        except (WireError, KeyError, ValueError, TypeError) as error:
            self._trouble = f'unreadable status: {error}'
            return
        self._heard_at, self._trouble, self._denied = now, '', ''
        # The way there and back is added in full: what is shown is never younger than it is.
        reading.time = -inf if isnan(age) else sent - max(0.0, age)
        reading.newest = -inf if isnan(newest) else sent - max(0.0, newest)
        if 'status' not in answer.body:
            reading.quality = Quality.INVALID
            reading.limit_reasons = ['the owner has not heard of the battery yet']
        after = message.next_change
        reading.next_change = after.sec + after.nanosec * 1e-9 or nan
        reading.next_power = message.next_power
        self._last = reading
        self._watch_link(now)
        self.changed()
        self._pump()

    def _watch_link(self, now: float) -> None:
        silent = now - max(self._heard_at, self._configured_at)
        self.set_fault(silent > self.params.max_age, 'remote.link', Severity.WARNING, self._silence(now))
        owner = self._owner
        if owner.uncertainty < inf:
            off = abs(owner.offset) - owner.uncertainty
            self.set_fault(off > self.params.max_clock_offset, 'remote.clock', Severity.WARNING,
                           f'the clock of the owner is {owner.offset:+.1f} s ahead: schedules run by its clock')

    def _silence(self, now: float) -> str:
        """Why there is no status, in words."""
        if self._denied:
            return f'the owner tells no status: {self._denied}'
        silent = now - max(self._heard_at, self._configured_at)
        return f'the owner is silent for {silent:.1f} s ({self._trouble or "no answer"})'

    def measure(self, now: float) -> BatteryReading:
        """As the owner said last, with the age it has by now."""
        p = self.params
        age = now - self._last.time
        quality = Quality(max(self._last.quality, quality_of(age, p.max_age, p.invalid_after)))
        reasons = list(self._last.limit_reasons)
        if now - self._heard_at > p.max_age:
            reasons.insert(0, f'remote: {self._silence(now)}')
        return replace(self._last, quality=quality, limit_reasons=reasons)

    def _tell_asked(self, reading: BatteryReading) -> None:
        """As the owner said."""

    @property
    def lead_time(self) -> float:
        """As the owner said."""
        return self._last.lead_time

    def power_of_current(self, current: float) -> float:
        """W at the power terminals; by the ratio that the owner measures, which holds its converter's losses."""
        return current * self.reading.voltage

    # -- orders --------------------------------------------------------------------------------------

    def drive(self, now: float) -> None:
        """Pass a setpoint on while its lease lasts; rest and schedules are the owner's business."""
        if not self.is_active:
            return
        self._last_drive = now
        self.demand = self._wanted(now)
        if self.demand is not None:
            self.command(self.demand, now)

    def command(self, demand: Demand | None, now: float) -> None:
        """One order to the owner; the next one follows in a tick, so that a lost one is not asked again."""
        if demand is None or self._link is None or not self._owner.boot:
            return
        lease = min(self.params.lease, demand.lease)
        body = {'power': demand.power, 'reactive_power': None if isnan(demand.reactive_power)
                else demand.reactive_power, 'lease': lease, 'term': demand.term, 'source': demand.source}
        self._link.ask('setpoint', self._order(now, lease, body), max(0.2, lease),
                       lambda answer: self._guarded(self._on_setpoint_answer, answer))

    def _order(self, now: float, within: float, body: dict[str, Any], request_id: str = '') -> Ask:
        owner = self._owner
        return Ask(self.params.battery, request_id, owner.boot, owner.now(now), within, body)

    def _on_setpoint_answer(self, answer: Answer | None) -> None:
        if answer is None:
            return
        refused = answer.error and not answer.error.startswith(AGAIN)
        if refused:
            self._refused.refuse('owner', answer.error, self.clock.now())
        self.set_fault(bool(refused), 'remote.refused', Severity.WARNING, f'the owner refuses orders: {answer.error}')

    # -- requests ------------------------------------------------------------------------------------

    def forward(self, op: str, kind: Any, request: Any, answer: Callable[[Any], None]) -> None:
        """A request of a client of this battery: to the owner, answered when the owner has answered."""
        now = self.clock.now()
        body = fields_of(request)
        request_id = str(body.pop('request_id', '')) or secrets.token_hex(12)

        def done(said: dict[str, Any] | None, error: str) -> None:
            if said is not None:
                try:
                    answer(message_of(kind.Response, said))
                    return
                except WireError as unreadable:
                    error = f'unreadable answer: {unreadable}'
            refused = kind.Response(message=f'remote: {error}')
            for unknown in ('shortfall', 'power'):
                if hasattr(refused, unknown):
                    setattr(refused, unknown, nan)
            answer(refused)

        if self._link is None:
            done(None, 'the battery is not configured')
            return
        for taken_back in body.get('request_ids', []) if op == 'cancel_schedule' else []:
            self._outbox.take_back(taken_back)
        within = reservation_node.ANSWER_S if op == 'reserve' else self.params.request_timeout
        problem = self._outbox.add(Pending(request_id, op, body, now, now + within, done))
        if problem:
            done(None, problem)
        self._save()
        self._pump()

    def _pump(self) -> None:
        """Send what is due, give up what is too late, withdraw what was given up."""
        link = self._link
        if link is None:
            return
        now = self.clock.now()
        self._outbox.expire(now, self._trouble)
        self._save()
        if not self._owner.boot:
            return  # its clock is not known yet
        for request in self._outbox.due(now):
            left = request.deadline - now
            ask = self._order(now, left, request.body, request.id)
            if not link.ask(request.op, ask, min(left, max(1.0, self.params.request_timeout / 3.0)),
                            partial(self._guarded, self._on_answer, request)):
                break
            self._outbox.sent(request)
        ids = self._outbox.to_withdraw[:100]
        if ids and not self._withdrawing and now - self._answered_at < self.params.max_age:
            self._withdrawing = link.ask('withdraw', self._order(now, 2.0, {'ids': ids}), 2.0,
                                         partial(self._guarded, self._on_withdrawn, ids))

    def _on_answer(self, request: Pending, answer: Answer | None) -> None:
        if answer is None or answer.error.startswith(AGAIN):
            trouble = 'no answer' if answer is None else answer.error.removeprefix(AGAIN).lstrip()
            self._outbox.failed(request, self.clock.now(), trouble)
        else:
            self._outbox.answered(request, None if answer.error else answer.body, answer.error)

    def _on_withdrawn(self, ids: list[str], answer: Answer | None) -> None:
        self._withdrawing = False
        if answer is not None and not answer.error:
            self._outbox.withdrawn(ids)
            self.log.info('requests withdrawn at the owner', requests=len(ids))
            self._save()

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        return {**super().diagnostics(), 'owner silent [s]': f'{self.clock.now() - self._heard_at:.2f}',
                'clock of the owner ahead [s]': f'{self._owner.offset:.3f}', 'trouble': self._trouble,
                'requests waiting': len(self._outbox), 'to withdraw': len(self._outbox.to_withdraw)}
