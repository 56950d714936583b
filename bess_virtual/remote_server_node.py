"""Owner's side of remote batteries: offers chosen batteries of this site to clients with certificates."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bess.srv import CancelSchedule
from bess_core import certs
from bess_core.log import Refusals
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.values import Severity

from .remote_access import ORDERS, Access, Remembered, lateness
from .remote_door_node import Done, Door
from .remote_link import LinkServer, Tls
from .remote_wire import AGAIN, Answer, Ask, WireError, decode_ask, encode, fields_of

TICK_S = 0.1
READ_S = 2.0  # how long a question that changes nothing may take
EXPIRY_DAYS = 14.0  # a certificate that ends sooner is a fault
MOST_GONE = 1000  # cancelled events of one client that are remembered
PENDING = 32  # questions of one client that wait for the battery


@dataclass(frozen=True, kw_only=True)
class TlsParams:
    """Certificates of one party; made with `bess certs`."""

    endpoint: str = param(doc='HOST:PORT; for a server the address to listen on, for a client a name or address '
                              'of its certificate')
    authority: str = param(doc='certificate of the authority that issued all certificates (ca.pem)')
    certificate: str = param(doc='own certificate (NAME.pem)')
    key: str = param('', doc='own private key, mode 0600; "" = beside the certificate (NAME.key)')

    def tls(self) -> Tls:
        """Files of this party."""
        certificate = Path(self.certificate).expanduser()
        key = Path(self.key).expanduser() if self.key else certificate.with_suffix('.key')
        return Tls(Path(self.authority).expanduser(), certs.Pair(certificate, key))


@dataclass(frozen=True, kw_only=True)
class RemoteServerParams(TlsParams):
    """Offers batteries of this site to other sites over Zenoh with mutual TLS."""

    batteries: list[str] = param(doc='batteries of this site that are offered', ref='battery')
    clients: dict[str, Any] = param(doc='common name of a client certificate -> battery -> list of read, schedule, '
                                        'setpoint; nothing else is allowed')
    realm: str = param('', doc='name of this site on the network; "" = name of the site')
    rate: float = param(50.0, '1/s', 'questions of one client in the long run', low=1.0, high=10_000.0)
    burst: float = param(100.0, '', 'questions of one client at once', low=1.0, high=10_000.0)

    def __post_init__(self) -> None:
        Access(self.clients, self.batteries)


class RemoteServerNode(BessNode):
    """See `RemoteServerParams`."""

    Params: ClassVar[type] = RemoteServerParams
    role: ClassVar[str] = 'remote_server'

    def on_bess_configure(self) -> None:
        """Listen to the batteries, open the port."""
        p = self.params
        self._access = Access(p.clients, p.batteries)
        self._boot = secrets.token_hex(8)
        self._doors = {name: Door(self, self.ctx.topic(name), self.clock) for name in p.batteries}
        self._remembered: dict[str, Remembered] = {c: Remembered() for c in p.clients}
        self._gone: dict[str, OrderedDict[str, None]] = {c: OrderedDict() for c in p.clients}  # cancelled events
        self._waiting: dict[str, list[Done]] = {}  # the same request, asked again meanwhile
        self._pending = dict.fromkeys(p.clients, 0)
        self._refusals = Refusals(self.log, 'refused')
        self._tls = p.tls()
        self._link: LinkServer | None = None
        self._link = LinkServer(p.endpoint, p.realm or self.ctx.namespace.strip('/').replace('/', '_'), self._tls,
                                list(p.clients), self._on_question, rate=p.rate, burst=p.burst)
        self.every(TICK_S, lambda _: self._on_tick())
        self.every(3600.0, lambda _: self._watch_expiry())
        self._watch_expiry()

    def on_bess_cleanup(self) -> None:
        """Close the port."""
        if getattr(self, '_link', None) is not None:
            self._link.close()  # type: ignore[union-attr]
            self._link = None
        for door in getattr(self, '_doors', {}).values():
            door.close()
        self._doors = {}

    def _watch_expiry(self) -> None:
        left = (certs.facts(self._tls.files.certificate).ends - self.clock.wall()) / 86400.0
        self.set_fault(left < EXPIRY_DAYS, 'remote.certificate', Severity.WARNING,
                       f'the own certificate ends in {left:.1f} days')

    def _on_tick(self) -> None:
        now = self.clock.now()
        for door in self._doors.values():
            door.expire(now)

    def _on_question(self, client: str, op: str, data: bytes, answer: Callable[[bytes], None]) -> None:
        """In a thread of zenoh: read, then over to the executor."""
        try:
            ask = decode_ask(data)
        except WireError as error:
            answer(encode(Answer(boot=self._boot, error=str(error))))
            return
        self.ctx.post(lambda: self._guarded(self._serve, client, op, ask, answer))

    def _serve(self, client: str, op: str, ask: Ask, send: Callable[[bytes], None]) -> None:
        now = self.clock.now()

        def reply(body: dict[str, Any] | None, error: str = '') -> None:
            try:
                data = encode(self._answer(body, error))
            except WireError as too_large:
                data = encode(self._answer(None, str(too_large)))
            send(data)

        if ask.battery not in self._doors and ask.battery in self.params.batteries:
            return  # the port closes
        refusal = self._access.refusal(client, ask.battery, op)
        if not refusal and op in ORDERS:
            refusal = self._too_late(ask, now)
        if refusal:
            self._refusals.refuse(client, f'{op[:40]}: {refusal}', now)
            reply(None, refusal)
            return
        self.progress += 1
        door = self._doors[ask.battery]
        if op == 'status':
            reply(door.status(now))
        elif op == 'setpoint':
            if not self.is_active:
                reply(None, 'the owner does not take orders at present')
                return
            try:
                reason = door.setpoint(ask.body, self._label(client, ask.body.get('source')), min(ask.given, now))
            except WireError as error:
                reason = str(error)
            reply(None if reason else {}, reason)
        elif self._pending[client] >= PENDING:
            reply(None, f'{PENDING} questions of {client} wait already')
        else:
            self._call(client, op, ask, now, door, reply)

    def _answer(self, body: dict[str, Any] | None, error: str) -> Answer:
        return Answer(self._boot, self.clock.now(), self.clock.wall(), body or {}, error)

    def _too_late(self, ask: Ask, now: float) -> str:
        if ask.boot != self._boot:
            return f'{AGAIN} the owner was started anew, its clock begins afresh'
        return lateness(now, min(ask.given, now), ask.within)

    @staticmethod
    def _label(client: str, source: Any) -> str:
        """How the owner's battery knows who asks."""
        text = ''.join(c for c in source if c.isprintable())[:48] if isinstance(source, str) else ''
        return f'{client}:{text}' if text else client

    def _call(self, client: str, op: str, ask: Ask, now: float, door: Door, reply: Callable[..., None]) -> None:
        deadline = now + READ_S if op not in ORDERS else min(ask.given, now) + ask.within
        body = dict(ask.body)
        self._pending[client] += 1

        def done(answer: dict[str, Any] | None, error: str) -> None:
            self._pending[client] -= 1
            reply(answer, error)

        if op in ('schedule_set_power', 'schedule_set_current'):
            if not ask.id:
                done(None, 'a request that changes something needs an id')
                return
            body['request_id'] = f'{client}:{ask.id}'[:128]
            body['source'] = self._label(client, body.get('source'))[:64]
            self._once(client, op, ask, body, door, deadline, done)
        elif op == 'cancel_schedule':
            self._cancel(client, ask, body, door, deadline, done)
        elif op == 'withdraw':
            self._withdraw(client, body.get('ids'), door, deadline, done)
        elif op == 'reserve':
            body['owner'] = self._label(client, body.get('owner'))
            door.call(op, body, deadline, done)
        else:
            door.call(op, body, deadline, done)

    def _once(self, client: str, op: str, ask: Ask, body: dict[str, Any], door: Door, deadline: float,
              done: Done) -> None:
        """The same id again gives the same answer and is done once."""
        memory, key = self._remembered[client], f'{ask.battery}/{ask.id}'
        question = f'{op} {sorted(body.items())}'
        before, refusal = memory.get(key, question)
        if before is not None or refusal:
            done(before, refusal)
            return
        waiting = f'{client}/{key}'
        if waiting in self._waiting:
            self._waiting[waiting].append(done)
            return
        self._waiting[waiting] = [done]

        def answered(answer: dict[str, Any] | None, error: str) -> None:
            if answer is not None:
                memory.put(key, question, answer)
            for one in self._waiting.pop(waiting):
                one(answer, error)

        door.call(op, body, deadline, answered)

    def _own(self, client: str, entries: list[dict[str, Any]]) -> list[int]:
        """Ids of the events that this client asked for."""
        return [int(e['event_id']) for e in entries if str(e['request_id']).startswith(f'{client}:')]

    def _cancel(self, client: str, ask: Ask, body: dict[str, Any], door: Door, deadline: float,
                done: Done) -> None:
        """A client takes back what it asked for itself; 0 = all of that."""
        wanted = body.get('event_id', 0)
        if body.get('request_ids'):
            self._withdraw(client, body['request_ids'], door, deadline, done)
            return

        def listed(answer: dict[str, Any] | None, error: str) -> None:
            if answer is None:
                done(None, error)
                return
            own = self._own(client, answer['entries'])
            ids = own if wanted == 0 else [i for i in own if i == wanted]
            if not ids:
                if f'{ask.battery}/{wanted}' in self._gone[client]:  # asked again: the answer was lost
                    done(fields_of(CancelSchedule.Response(accepted=True,
                                                           message=f'event {wanted} was cancelled before')), '')
                    return
                there = wanted != 0 and any(e['event_id'] == wanted for e in answer['entries'])
                text = (f'event {wanted} was not asked for by {client}' if there else
                        'the schedule is empty' if wanted == 0 else f'there is no event {wanted}')
                done(fields_of(CancelSchedule.Response(accepted=wanted == 0, message=text)), '')
                return
            self._cancel_all(ids, door, deadline, done)

        if not isinstance(wanted, int) or not ask.id:
            done(None, 'a cancellation needs an event_id and an id of its own')
            return
        memory, key, question = self._remembered[client], f'{ask.battery}/{ask.id}', f'cancel {wanted}'
        before, refusal = memory.get(key, question)
        if before is not None or refusal:
            done(before, refusal)
            return
        after = done

        def remember(answer: dict[str, Any] | None, error: str) -> None:
            if answer is not None:
                memory.put(key, question, answer)
            if answer is not None and answer['cancelled'] and wanted:
                gone = self._gone[client]
                gone[f'{ask.battery}/{wanted}'] = None
                while len(gone) > MOST_GONE:
                    gone.popitem(last=False)
            after(answer, error)

        done = remember
        door.call('list_schedule', {}, deadline, listed)

    @staticmethod
    def _cancel_all(ids: list[int], door: Door, deadline: float, done: Done) -> None:
        left, count, problems = len(ids), 0, []

        def one(answer: dict[str, Any] | None, error: str) -> None:
            nonlocal left, count
            left -= 1
            if answer is None or not answer['accepted']:
                problems.append(error if answer is None else str(answer['message']))
            else:
                count += int(answer['cancelled'])
            if not left:
                done(fields_of(CancelSchedule.Response(accepted=not problems, cancelled=count,
                                                       message='; '.join(problems))), '')

        for event_id in ids:
            door.call('cancel_schedule', {'event_id': event_id}, deadline, one)

    def _withdraw(self, client: str, ids: Any, door: Door, deadline: float, done: Done) -> None:
        """Requests that their maker has given up: take them back if they were accepted, never accept them later."""
        if not isinstance(ids, list) or len(ids) > 100 or not all(isinstance(i, str) and len(i) <= 128 for i in ids):
            done(None, 'ids is a list of at most 100 texts')
            return
        name = door.topic.rsplit('/', 1)[-1]
        for i in ids:
            self._remembered[client].withdraw(f'{name}/{i}')
        if not ids:
            done(fields_of(CancelSchedule.Response(accepted=True)), '')
            return

        def answered(answer: dict[str, Any] | None, error: str) -> None:
            if answer is not None and answer['cancelled']:
                self.log.info('requests withdrawn', client=client, events=answer['cancelled'])
            done(answer if answer is not None and answer['accepted'] else None,
                 error if answer is None else str(answer['message']))

        # By their ids at the battery itself: one that is still being admitted there must not run afterwards.
        keys = sorted({f'{client}:{i}'[:128] for i in ids})
        door.call('cancel_schedule', {'request_ids': keys}, deadline, answered)

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        link = self._link
        return {} if link is None else {
            'clients': ', '.join(self.params.clients), 'answers lost': link.lost,
            'over the rate': ', '.join(f'{c}: {n}' for c, n in link.refused.items() if n) or 'none'}

