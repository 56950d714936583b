"""Blocking JSON over HTTP for drivers: one connection, one deadline per request, bounded answers, no redirects.

Called from the worker thread of a bus only. A request that would change something is marked as a write; with
`read_only` it does not leave this machine.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from bess_drivers.device import (
    BadFrame,
    BadValue,
    Counters,
    DeviceError,
    Disconnected,
    NoAnswer,
    ReadOnlyError,
    Refused,
)
from bess_drivers.owner_file import read_owned

MAX_ANSWER = 1 << 20  # bytes


def read_token(path: str) -> str:
    """The token in a file that only its owner (this user) can read. Raises `BadValue` with the reason."""
    try:
        text = read_owned(path, 'token_file', links=True)
    except Refused as error:
        raise BadValue(str(error)) from error
    token = text.strip()
    if not token or any(not 0x21 <= byte <= 0x7E for byte in token):
        raise BadValue(f'token_file {path}: must hold one token in one line')
    return token.decode('ascii')


class JsonClient:
    """Requests to `base` (http://host[:port][/path] or https://...). Raises ValueError for another address.

    `timeout_s`: from the first byte sent to the last byte read, connecting included.
    """

    def __init__(self, base: str, timeout_s: float, read_only: bool = False) -> None:
        parts = urlsplit(base)
        if parts.scheme not in ('http', 'https') or not parts.hostname or parts.query or parts.username:
            raise ValueError(f'address {base!r}: must be http://host[:port] or https://host[:port][/path]')
        self._tls = ssl.create_default_context() if parts.scheme == 'https' else None
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip('/')
        self._timeout, self._read_only = timeout_s, read_only
        self.headers: dict[str, str] = {}
        self.counters = Counters()
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection; never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def get(self, path: str, *, write: bool = False) -> Any:
        """GET; `write`: it changes something on the device (some clouds do that with GET)."""
        return self.request('GET', path, write=write)

    def request(self, method: str, path: str, form: Mapping[str, str] | None = None, *, write: bool = True) -> Any:
        """The parsed answer. Raises `DeviceError`.

        `form` goes out as JSON. A connection that the device closed while it was idle is opened anew once.
        """
        if write and self._read_only:
            raise ReadOnlyError(f'{method} {path} not sent: read-only')
        self.counters.requests += 1
        self.counters.writes += write
        started = time.monotonic()
        idle = self._connection is not None
        try:
            try:
                answer = self._exchange(method, path, form, started)
            except Disconnected:
                if not idle or write:  # a write may have arrived
                    raise
                self.counters.reconnects += 1
                answer = self._exchange(method, path, form, started)
        except DeviceError as error:
            self.counters.count(error)
            raise
        self.counters.ok += 1
        self.counters.round_trips.append(time.monotonic() - started)
        return answer

    def _exchange(self, method: str, path: str, form: Mapping[str, str] | None, started: float) -> Any:
        left = self._timeout - (time.monotonic() - started)
        if left <= 0:
            raise NoAnswer(f'{method} {path}: nothing within {self._timeout:g} s')
        if self._connection is None:
            kind: Any = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
            more = {'context': self._tls} if self._tls else {}
            self._connection = kind(self._host, self._port, timeout=left, **more)
        connection = self._connection
        late = threading.Event()

        def cut() -> None:
            """An answer that drips for ever ends here: a socket time-out sees single reads only."""
            late.set()
            if (sock := connection.sock) is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(left, cut)
        timer.daemon = True
        timer.start()
        try:
            return self._converse(connection, method, path, form)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if late.is_set() or isinstance(error, TimeoutError):
                raise NoAnswer(f'{method} {path}: nothing complete within {self._timeout:g} s') from error
            if isinstance(error, http.client.IncompleteRead):
                raise BadFrame(f'{method} {path}: the answer ended too early') from error
            if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
                raise BadFrame(f'{method} {path}: no HTTP answer ({type(error).__name__})') from error
            raise Disconnected(f'{self._host}: {error}') from error
        except DeviceError:
            self.close()
            if late.is_set():
                raise NoAnswer(f'{method} {path}: nothing complete within {self._timeout:g} s') from None
            raise
        finally:
            timer.cancel()

    def _converse(self, connection: http.client.HTTPConnection, method: str, path: str,
                  form: Mapping[str, str] | None) -> Any:
        body = None if form is None else json.dumps(dict(form)).encode()
        headers = {'Accept': 'application/json', **self.headers,
                   **({'Content-Type': 'application/json'} if body else {}),
                   **({'Content-Length': '0'} if body is None and method != 'GET' else {})}
        connection.request(method, self._path + path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read(MAX_ANSWER + 1)
        if answer.length:  # read() with a size does not complain about a short body
            raise BadFrame(f'{method} {path}: the answer ended too early or is too long')
        if len(data) > MAX_ANSWER:
            raise BadFrame(f'{method} {path}: the answer is longer than {MAX_ANSWER} bytes')
        if answer.status in (401, 403):
            raise Refused(f'{method} {path}: the token is not accepted (HTTP {answer.status})')
        if not 200 <= answer.status < 300:
            raise Refused(f'{method} {path}: HTTP {answer.status} {answer.reason}')
        try:
            return json.loads(data) if data.strip() else None
        except (ValueError, RecursionError) as error:
            raise BadFrame(f'{method} {path}: the answer is no JSON') from error
