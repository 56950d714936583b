"""Zenoh with mutual TLS: questions and answers between sites. No ROS; callbacks come from threads of zenoh.

A party asks with key ``bess/REALM/CLIENT/OP``. The access control of the server's zenoh lets a certificate ask
under its own common name only, so the key tells who asks; what it may do is decided above (`remote_access`).
Nothing is declared, subscribed or put by clients, no scouting, no gossip, no router in between. Everybody with a
certificate of the authority may ask one thing more, ``bess/hello``: who gets no other answer learns why from it.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zenoh

from bess_core import certs

from .remote_access import Bucket
from .remote_wire import MAX_BYTES, Answer, WireError, decode_answer, encode

HELLO = 'bess/hello'
HELLO_RATE, HELLO_BURST = 20.0, 50.0  # per s of all parties together
QUEUE = 64  # answers of one client that may wait to be sent
CLOSE_S = 2.0  # longest wait for threads at the end

#: Called with (client, op, bytes, answer); `answer(bytes)` may be called once, from any thread, at any time.
Handler = Callable[[str, str, bytes, Callable[[bytes], None]], None]


class LinkError(RuntimeError):
    """The link cannot be set up; in words."""


@dataclass(frozen=True)
class Tls:
    """Files of one party."""

    authority: Path
    files: certs.Pair

    def check(self, kind: str) -> None:
        """Raises `LinkError` with all that would keep the other side from accepting this party."""
        found = certs.problems(self.files, self.authority, kind, time.time())
        if found:
            raise LinkError('; '.join(found))


def _config(endpoints: dict[str, Any], tls: dict[str, Any], **more: Any) -> zenoh.Config:
    return zenoh.Config.from_json5(json.dumps({
        'mode': 'peer', **endpoints, **more,
        'scouting': {'multicast': {'enabled': False}, 'gossip': {'enabled': False}},
        'adminspace': {'enabled': False},
        'transport': {
            'unicast': {'open_timeout': 3000, 'accept_timeout': 3000, 'max_sessions': 256},
            'shared_memory': {'enabled': False},
            'link': {
                'protocols': ['tls'],
                'tx': {'lease': 3000, 'queue': {'congestion_control': {'block': {'wait_before_close': 500_000}}}},
                'rx': {'max_message_size': 2 * MAX_BYTES},
                'tls': {'enable_mtls': True, 'verify_name_on_connect': True, 'close_link_on_expiration': True, **tls},
            }},
    }))


def _access(realm: str, clients: Sequence[str]) -> dict[str, Any]:
    """Everything is denied but: a client asks under its own name, anybody says hello, and both are answered."""
    allowed = {'ask hello': ('ingress', ['query'], HELLO),
               'answer hello': ('egress', ['reply', 'declare_queryable'], HELLO)}
    for c in clients:
        allowed |= {f'ask {c}': ('ingress', ['query'], f'bess/{realm}/{c}/*'),
                    f'answer {c}': ('egress', ['reply', 'declare_queryable'], f'bess/{realm}/{c}/*')}
    return {
        'enabled': True, 'default_permission': 'deny',
        'rules': [{'id': name, 'permission': 'allow', 'flows': [flow], 'messages': messages, 'key_exprs': [key]}
                  for name, (flow, messages, key) in allowed.items()],
        'subjects': [{'id': 'anybody'}, *({'id': f'client {c}', 'cert_common_names': [c]} for c in clients)],
        'policies': [{'rules': ['ask hello', 'answer hello'], 'subjects': ['anybody']},
                     *({'rules': [f'ask {c}', f'answer {c}'], 'subjects': [f'client {c}']} for c in clients)],
    }


class _Lane(threading.Thread):
    """Sends the answers of one client: one that does not read holds up nobody else."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f'answers {name}', daemon=True)
        self._queue: queue.Queue[tuple[Any, bytes] | None] = queue.Queue(QUEUE)
        self.lost = 0
        self.start()

    def put(self, question: Any, data: bytes) -> None:
        """Send later; an answer that finds the queue full is lost (the client asks again)."""
        try:
            self._queue.put_nowait((question, data))
        except queue.Full:
            self.lost += 1

    def stop(self) -> None:
        """End after what is queued; does not wait."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self.lost += 1  # it stands still; the thread is a daemon and its session is closed

    def run(self) -> None:
        """Thread."""
        while (item := self._queue.get()) is not None:
            question, data = item
            try:
                question.reply(question.key_expr, data)
            except zenoh.ZError:  # the client is gone
                self.lost += 1
            finally:
                question.drop()


class LinkServer:
    """Answers clients. `handle` is called in a thread of zenoh and must only hand over."""

    def __init__(self, endpoint: str, realm: str, tls: Tls, clients: Sequence[str], handle: Handler, *,
                 rate: float = 50.0, burst: float = 100.0) -> None:
        """Opens the port; raises `LinkError`. `rate`: questions per s that one client may ask, `burst` at once."""
        tls.check('server')
        self._handle = handle
        self._lanes = {c: _Lane(c) for c in clients}
        self._buckets = {c: Bucket(rate, burst) for c in clients}
        self._hello, self._hello_lane = Bucket(HELLO_RATE, HELLO_BURST), _Lane('hello')
        self._hello_answer = encode(Answer(body={'realm': realm}))
        self.refused: dict[str, int] = dict.fromkeys(clients, 0)  # questions over the rate or too large
        config = _config(
            {'listen': {'endpoints': [f'tls/{endpoint}'], 'exit_on_failure': True}, 'connect': {'endpoints': []}},
            {'root_ca_certificate': str(tls.authority), 'listen_certificate': str(tls.files.certificate),
             'listen_private_key': str(tls.files.key)},
            access_control=_access(realm, clients))
        try:
            self._session = zenoh.open(config)
            self._queryables = [self._session.declare_queryable(f'bess/{realm}/{c}/*', self._on_query)
                                for c in clients]
            self._queryables.append(self._session.declare_queryable(HELLO, self._on_hello))
        except zenoh.ZError as error:
            raise LinkError(f'{endpoint} cannot be opened: {error}') from error

    def _on_query(self, question: Any) -> None:
        _, _, client, op = str(question.key_expr).split('/')
        payload = question.payload
        if not self._buckets[client].take(time.monotonic()) or (payload is not None and len(payload) > MAX_BYTES):
            self.refused[client] += 1
            question.drop()
            return
        lane = self._lanes[client]
        self._handle(client, op, payload.to_bytes() if payload is not None else b'',
                     lambda data: lane.put(question, data))

    def _on_hello(self, question: Any) -> None:
        if self._hello.take(time.monotonic()):
            self._hello_lane.put(question, self._hello_answer)
        else:
            question.drop()

    @property
    def lost(self) -> int:
        """Answers that could not be sent."""
        return sum(lane.lost for lane in self._lanes.values())

    def close(self) -> None:
        """Close the port."""
        for lane in (*self._lanes.values(), self._hello_lane):
            lane.stop()
        self._session.close()


class LinkClient:
    """Asks one server. The session is opened, kept up and closed by a thread of its own."""

    def __init__(self, endpoint: str, realm: str, tls: Tls) -> None:
        """Raises `LinkError` when the own certificate cannot work. Returns before the link is up."""
        tls.check('client')
        self.client = certs.facts(tls.files.certificate).name
        self._realm, self._prefix = realm, f'bess/{realm}/{self.client}'
        self._config = _config(
            {'listen': {'endpoints': []},
             'connect': {'endpoints': [f'tls/{endpoint}'], 'timeout_ms': -1, 'exit_on_failure': False,
                         'retry': {'period_init_ms': 200, 'period_max_ms': 2000, 'period_increase_factor': 2}}},
            {'root_ca_certificate': str(tls.authority), 'connect_certificate': str(tls.files.certificate),
             'connect_private_key': str(tls.files.key)})
        self._session: Any = None
        self.problem = ''  # why the session could not be opened
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f'link {endpoint}', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._session = zenoh.open(self._config)
                self.problem = ''
                break
            except zenoh.ZError as error:
                self.problem = str(error)
                self._end.wait(1.0)
        self._end.wait()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def ask(self, op: str, data: bytes, timeout_s: float, done: Callable[[bytes | None], None]) -> bool:
        """Ask once; `done(answer or None)` is called exactly once in a thread of zenoh.

        False (and `done` is not called) while there is no session. Does not wait.
        """
        return self._get(f'{self._prefix}/{op}', data, timeout_s, done)

    def ask_why(self, timeout_s: float, told: Callable[[str], None]) -> bool:
        """Why the other side does not answer, as far as it says so: `told(words)`, '' = it is silent; else as `ask`."""
        def heard(data: bytes | None) -> None:
            told('' if data is None else self._why(data))

        return self._get(HELLO, b'', timeout_s, heard)

    def _why(self, data: bytes) -> str:
        try:
            realm = decode_answer(data).body.get('realm')
        except WireError as error:
            return f'unreadable answer: {error}'
        if realm != self._realm:
            return f'the realm there is {realm!r}, not {self._realm!r}'
        return f'permission denied: the other side has no client {self.client!r} (or too many questions were asked)'

    def _get(self, key: str, data: bytes, timeout_s: float, done: Callable[[bytes | None], None]) -> bool:
        session = self._session
        if session is None or self._end.is_set():
            return False
        answers: list[bytes] = []

        def on_reply(reply: Any) -> None:
            if reply.ok is not None and not answers and len(reply.ok.payload) <= MAX_BYTES:
                answers.append(reply.ok.payload.to_bytes())

        def on_end() -> None:
            done(answers[0] if answers else None)

        try:
            session.get(key, zenoh.handlers.Callback(on_reply, on_end), payload=data,
                        timeout=timeout_s, congestion_control=zenoh.CongestionControl.DROP)
        except zenoh.ZError:  # closed meanwhile; `on_end` is called by the handler's end
            return True
        return True

    def close(self) -> None:
        """End the session; waits for it for a short while."""
        self._end.set()
        self._thread.join(CLOSE_S)
