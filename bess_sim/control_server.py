"""The control socket of a bench process: JSON lines over a Unix socket, one answer per request.

A request is an object with `cmd`; the answer has `ok` and, when it is false, `error`.
"""

from __future__ import annotations

import json
import math
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Request = dict[str, Any]
MAX_LINE = 65_536
_SUN_PATH = 100  # bytes; a Unix address holds 107


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """An address for a Unix socket at `path`, also where the path is too long for one."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f'/proc/self/fd/{folder}/{path.name}'
    finally:
        os.close(folder)


def number(request: Request, key: str, default: float) -> float:
    """A number of a request; `default` when missing or null. Raises ValueError."""
    value = request.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{key} must be a number, not {value!r}')
    return float(value)


class ControlServer:
    """Answers requests at `path` with `handle` in threads of its own until `stop`.

    `handle(request)` returns the fields of the answer; a ValueError becomes a refusal.
    """

    def __init__(self, path: Path, handle: Callable[[Request], Request]) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        with reachable(path) as address:
            self._server = _Server(address, _Handler)
        self._server.handle_control = handle
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(0.05,),
            name=f'control-{path.stem}',
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and remove the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    handle_control: Callable[[Request], Request]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may go at any time
            while line := self.rfile.readline(MAX_LINE + 1):
                self.wfile.write(_answer(line, self.server.handle_control))


def _answer(line: bytes, handle: Callable[[Request], Request]) -> bytes:
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f'a request has at most {MAX_LINE} bytes')
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get('cmd'), str):
            raise ValueError('a request is an object with the text "cmd"')
        answer = {'ok': True, **handle(request)}
    except (ValueError, RecursionError) as error:  # JSON errors are ValueErrors
        answer = {'ok': False, 'error': str(error)}
    return json.dumps(plain(answer), allow_nan=False).encode() + b'\n'


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
