"""The two servers of a private total: the collector beside the shared battery, and the helper elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from typing import Any, ClassVar

from bess_core.convert import wall_stamp
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.values import Severity

from .private_book import Book, BookError, Terms
from .private_sum import MAX_HOUSEHOLDS, MAX_POWER, MAX_SLOTS, ShareError, add, runs, to_powers, unpack
from .remote_access import Access
from .remote_door_node import Door
from .remote_link import LinkClient, LinkServer
from .remote_server_node import TlsParams
from .remote_wire import AGAIN, Answer, Ask, WireError, decode_answer, decode_ask, encode, fields_of

TICK_S = 0.2
ANSWER_S = 5.0  # of the battery or the helper
RETRY_S = 1.0
AT_ONCE = 100  # entries of the schedule that one question takes back


@dataclass(frozen=True, kw_only=True)
class PrivateParams(TlsParams):
    """What both servers have in common; the terms must be equal at both."""

    households: list[str] = param(doc='common names of the client certificates of all that may take part')
    realm: str = param('private', doc='name of this server on the network; the same at both')
    slots: int = param(96, '', 'slots of one epoch', low=1, high=MAX_SLOTS)
    slot: float = param(900.0, 's', 'length of one slot', low=0.1, high=86400.0)
    offset: float = param(0.0, 's', 'epochs begin at this absolute time plus whole epochs: 0 = midnight UTC when '
                                    'slots * slot is a day')
    close_before: float = param(3600.0, 's', 'an epoch is closed so long before it begins', low=0.0, high=86400.0)
    minimum: int = param(3, '', 'households without which nothing is added up', low=2, high=MAX_HOUSEHOLDS)
    max_power: float = param(20_000.0, 'W', 'largest power of one household, both ways', low=1.0, high=MAX_POWER)

    def __post_init__(self) -> None:
        if len(set(self.households)) != len(self.households) or len(self.households) < self.minimum:
            raise ValueError(f'households: {len(set(self.households))} different names, at least {self.minimum} needed')
        Access({h: {'-': ['read']} for h in self.households}, ['-'])

    @property
    def terms(self) -> Terms:
        """As agreed with everybody."""
        return Terms(self.slots, self.slot, self.offset, self.close_before, self.minimum, self.max_power)


@dataclass(frozen=True, kw_only=True)
class HelperParams(PrivateParams):
    """Second server of a private total; run it at somebody who does not collude with the collector."""

    collector: str = param('collector', doc='common name of the client certificate of the collector')


@dataclass(frozen=True, kw_only=True)
class CollectorParams(PrivateParams):
    """First server of a private total: learns the sum of the day schedules and applies it to the shared battery."""

    battery: str = param(doc='shared battery', ref='battery')
    helper: str = param(doc='HOST:PORT of the helper')
    client_certificate: str = param(doc='client certificate for the helper (NAME.pem, key beside it)')
    strict: bool = param(False, doc='refuse a sum that the stored energy cannot serve')
    max_charge_power: float = param(inf, 'W', 'the sum may not be above this', low=0.0)
    max_discharge_power: float = param(inf, 'W', 'the sum may not be below minus this', low=0.0)


class PrivateNode(BessNode):
    """A server: its book lives in one worker thread, which also writes its files."""

    Params: ClassVar[type] = PrivateParams

    def on_bess_configure(self) -> None:
        """Restore the book, open the port."""
        p = self.params
        self._boot = secrets.token_hex(8)
        self._book = Book(self.ctx.state_dir / 'private' / str(self.get_name()), p.terms, p.households)
        self._desk = ThreadPoolExecutor(1, thread_name_prefix=f'{self.get_name()} book')
        self._link: LinkServer | None = None
        self._link = LinkServer(p.endpoint, p.realm, p.tls(), [*p.households, *self.others()], self._on_question)
        self.every(600.0, lambda _: self.work(lambda: self._book.forget(self.clock.wall()), self._failed))

    def others(self) -> list[str]:
        """Clients beside the households."""
        return []

    def on_bess_cleanup(self) -> None:
        """Close the port."""
        if getattr(self, '_link', None) is not None:
            self._link.close()  # type: ignore[union-attr]
            self._link = None
        if hasattr(self, '_desk'):
            self._desk.shutdown()

    def work(self, job: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """Run a job in the thread of the book; `done(result, error)` in the executor thread."""
        def hand_over(future: Future[Any]) -> None:
            error = future.exception()
            self.ctx.post(lambda: self._guarded(done, None if error else future.result(), error))

        self._desk.submit(job).add_done_callback(hand_over)

    def _failed(self, _: Any, error: Exception | None) -> None:
        self.set_fault(error is not None, 'private.book', Severity.ERROR, f'the book cannot be kept: {error}')

    def _on_question(self, client: str, op: str, data: bytes, answer: Callable[[bytes], None]) -> None:
        """In a thread of zenoh: over to the thread of the book."""
        self._desk.submit(self._serve, client, op, data, answer)

    def _serve(self, client: str, op: str, data: bytes, send: Callable[[bytes], None]) -> None:
        """In the thread of the book."""
        body, refusal = None, ''
        try:
            body = self.answer(client, op, decode_ask(data).body)
            self.progress += 1
        except (BookError, WireError) as error:
            refusal = str(error)
        except OSError as error:
            refusal = 'the book cannot be written'
            text = f'{error}'
            self.ctx.post(lambda: self._failed(None, OSError(text)))
        send(encode(Answer(self._boot, self.clock.now(), self.clock.wall(), body or {}, refusal)))

    def answer(self, client: str, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer in the thread of the book. Raises `BookError`, OSError."""
        if client not in self._book.households:
            raise BookError(f'{client} is none of the households')
        if op == 'terms':
            return asdict(self.params.terms)
        if op == 'submit':
            return {'message': self._book.submit(client, body, self.clock.wall())}
        if op == 'withdraw':
            return {'message': self._book.withdraw(client, body, self.clock.wall())}
        raise BookError(f'there is no question {op[:40]!r}')

    def diagnostics(self) -> dict[str, Any]:
        """Values for people: how many, never whose or what."""
        return {'epochs': len(self._book.epochs)} if hasattr(self, '_book') else {}


class HelperNode(PrivateNode):
    """See `HelperParams`."""

    Params: ClassVar[type] = HelperParams
    role: ClassVar[str] = 'private_helper'

    def others(self) -> list[str]:
        """The collector."""
        return [self.params.collector]

    def answer(self, client: str, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """The collector gets who takes part, and one sum per epoch."""
        if client != self.params.collector:
            return super().answer(client, op, body)
        now = self.clock.wall()
        if body.get('terms') != asdict(self.params.terms):
            raise BookError('the terms of collector and helper differ')
        if op == 'roster':
            return {'members': self._book.roster(body.get('epoch'), now)}
        if op == 'total':
            return {'total': self._book.total(body.get('epoch'), body.get('members'), now)}
        raise BookError(f'there is no question {op[:40]!r}')


class CollectorNode(PrivateNode):
    """See `CollectorParams`. One epoch at a time goes through: roster, sum, schedule."""

    Params: ClassVar[type] = CollectorParams
    role: ClassVar[str] = 'private_collector'

    def on_bess_configure(self) -> None:
        """Also reach for the helper and the battery."""
        p = self.params
        self._door: Door | None = Door(self, self.ctx.topic(p.battery), self.clock)
        self._helper: LinkClient | None = None
        super().on_bess_configure()
        own = TlsParams(endpoint=p.helper, authority=p.authority, certificate=p.client_certificate).tls()
        self._helper = LinkClient(p.helper, p.realm, own)
        self._busy = False
        self._next_try = -inf
        self.every(TICK_S, lambda _: self._on_tick())

    def on_bess_cleanup(self) -> None:
        """Let go of everything."""
        super().on_bess_cleanup()
        if getattr(self, '_helper', None) is not None:
            self._helper.close()  # type: ignore[union-attr]
            self._helper = None
        if getattr(self, '_door', None) is not None:
            self._door.close()  # type: ignore[union-attr]
            self._door = None

    def answer(self, client: str, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """Households also learn what became of an epoch; not the sum."""
        if op != 'result' or client not in self._book.households:
            return super().answer(client, op, body)
        epoch = self._book.epochs.get(body.get('epoch', -1))
        if epoch is None:
            raise BookError('nothing was submitted for this epoch')
        return {'state': epoch.state, 'message': epoch.message, 'households': len(epoch.members),
                'submission': epoch.members.get(client, epoch.shares.get(client, ('',))[0]),
                'included': client in epoch.members, 'added_up': bool(epoch.members)}

    def _on_tick(self) -> None:
        now, wall = self.clock.now(), self.clock.wall()
        if self._door is not None:
            self._door.expire(now)
        if self._busy or now < self._next_try or not self.is_active:
            return
        for number, epoch in sorted(self._book.epochs.items()):
            if epoch.state in ('applied', 'refused') or not self._book.terms.closed(number, wall):
                continue
            self._busy = True
            if epoch.state == 'added':
                self._apply(number, epoch.powers)
            elif wall >= number + self._book.terms.length:
                self._end(number, 'refused', 'the epoch is over: the helper was not reached in time')
            else:
                self._ask_helper('roster', number, {}, self._on_roster)
            return

    def _later(self, reason: str) -> None:
        self._busy = False
        self._next_try = self.clock.now() + RETRY_S
        why = reason.removeprefix(AGAIN).lstrip()
        self.raise_fault('private.helper', Severity.WARNING, f'the sum has to wait: {why}')

    def _ask_helper(self, op: str, number: int, body: dict[str, Any],
                    then: Callable[[int, dict[str, Any]], None]) -> None:
        def heard(data: bytes | None) -> None:  # thread of zenoh
            self.ctx.post(lambda: self._guarded(self._on_helper, number, data, then))

        ask = Ask(body={'epoch': number, 'terms': asdict(self.params.terms), **body})
        if self._helper is None or not self._helper.ask(op, encode(ask), ANSWER_S, heard):
            self._later('no connection to the helper')

    def _on_helper(self, number: int, data: bytes | None, then: Callable[[int, dict[str, Any]], None]) -> None:
        if self._link is None:
            return
        try:
            answer = None if data is None else decode_answer(data)
        except WireError as error:
            answer = Answer(error=str(error))
        if answer is None or answer.error:
            self._later('no answer' if answer is None else answer.error)
            return
        self.clear_fault('private.helper')
        then(number, answer.body)

    def _on_roster(self, number: int, body: dict[str, Any]) -> None:
        there = body.get('members')
        wall = self.clock.wall()

        def choose() -> dict[str, str]:
            here = self._book.roster(number, wall)
            both = {h: i for h, i in here.items() if isinstance(there, dict) and there.get(h) == i}
            if len(both) < self._book.terms.minimum:
                raise BookError(f'{len(both)} households submitted to both servers, {self._book.terms.minimum} are '
                                'needed: nothing was added up')
            return both

        def chosen(members: dict[str, str] | None, error: Exception | None) -> None:
            if isinstance(error, BookError):
                self._end(number, 'refused', str(error))
            elif members is None:
                self._later(str(error))
            else:
                self._ask_helper('total', number, {'members': members}, partial(self._on_total, members))

        self.work(choose, chosen)

    def _on_total(self, members: dict[str, str], number: int, body: dict[str, Any]) -> None:
        p, wall = self.params, self.clock.wall()

        def add_up() -> list[float]:
            other = unpack(body.get('total'), p.slots)
            own = unpack(self._book.total(number, members, wall), p.slots)
            powers = to_powers(add([own, other]), len(members), p.max_power)
            for slot, power in enumerate(powers):
                if not -p.max_discharge_power <= power <= p.max_charge_power:
                    # The value itself is nobody's business but the battery's.
                    raise BookError(f'slot {slot}: the sum is beyond the limit of the shared battery for '
                                    f'{"charging" if power > 0 else "discharging"}')
            self._book.note(number, 'added', '', powers)
            return powers

        def added(powers: list[float] | None, error: Exception | None) -> None:
            if isinstance(error, (BookError, ShareError)):
                self._end(number, 'refused', str(error))
            elif powers is None:
                self._failed(None, error)
                self._later(str(error))
            else:
                self._apply(number, powers)

        self.work(add_up, added)

    # -- the schedule of the battery -----------------------------------------------------------------

    def _apply(self, number: int, powers: list[float]) -> None:
        """All stretches of the sum, one after the other; all or none."""
        stretches = runs(powers)
        hints: list[str] = []
        slot = self.params.slot

        def step(k: int) -> None:
            if k == len(stretches):
                self._end(number, 'applied', f'{len(stretches)} entries in the schedule of the shared battery'
                          + (f'; {hints[0]}' if hints else ''))
                return
            if self._door is None:
                return
            first, last, power = stretches[k]
            self._door.call('schedule_set_power', {
                'power': power, 'start': fields_of(wall_stamp(number + first * slot)),
                'end': fields_of(wall_stamp(number + last * slot)), 'strict': self.params.strict,
                'request_id': f'private-{number}-{k}', 'source': str(self.get_name()),
            }, self.clock.now() + ANSWER_S, partial(answered, k))

        def answered(k: int, body: dict[str, Any] | None, error: str) -> None:
            if body is None:
                self._later(error)  # the same ids again: nothing is entered twice
            elif not body['accepted']:
                first, last, power = stretches[k]
                self.log.info('sum refused by the battery', epoch=number, reason=body['message'])
                kind = 'charging' if power > 0 else 'discharging'
                self._take_back(number, k, f'slots {first} to {last - 1}: the shared battery refuses the sum '
                                f'({kind}): {"too little energy" if "strict" in body["message"] else "limit"}')
            else:
                if body['message']:
                    hints.append('the battery has a hint for its operator')
                    self.log.info('sum accepted with a hint', epoch=number, hint=body['message'])
                step(k + 1)

        step(0)

    def _take_back(self, number: int, entries: int, reason: str) -> None:
        """Withdraw the first so many entries, also for a later try with the same ids; then the epoch is refused."""
        if entries <= 0 or self._door is None:
            self._end(number, 'refused', reason)
            return

        def taken(body: dict[str, Any] | None, error: str) -> None:
            if body is None or not body['accepted']:
                self._later(error if body is None else str(body['message']))
            else:
                self._take_back(number, entries - AT_ONCE, reason)

        ids = [f'private-{number}-{k}' for k in range(max(0, entries - AT_ONCE), entries)]
        self._door.call('cancel_schedule', {'request_ids': ids}, self.clock.now() + ANSWER_S, taken)

    def _end(self, number: int, state: str, message: str) -> None:
        def noted(_: Any, error: Exception | None) -> None:
            self._busy = False
            self._failed(None, error)
            if error is not None:
                self._next_try = self.clock.now() + RETRY_S
                return
            self.clear_fault('private.helper')
            self.log.info('private total', epoch=number, state=state, message=message)
            self.set_fault(state == 'refused', 'private.refused', Severity.WARNING, f'epoch {number}: {message}')

        self.work(lambda: self._book.note(number, state, message), noted)
