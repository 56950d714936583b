"""The driver's side of the IEC 61850 bridge: a program of its own, asked in lines of JSON over pipes.

The library that speaks IEC 61850 is under the GPL, so it is never imported here; see `iec61850_bridge/README.md`
for the lines. A bridge that does not answer in time is ended, so that no late answer is ever taken for another.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from bess_drivers.device import BadFrame, DeviceError, Disconnected, NoAnswer, ReadOnlyError, Refused

COMMAND = 'bess-iec61850-bridge'
MAX_ANSWER = 1 << 20
KINDS: dict[str, type[DeviceError]] = {
    'timeout': NoAnswer, 'disconnected': Disconnected, 'refused': Refused, 'read_only': ReadOnlyError,
    'frame': BadFrame, 'missing': Disconnected}


def find_bridge() -> str:
    """Path of the installed bridge; '' = none."""
    here = Path(sys.executable).parent / COMMAND
    return str(here) if here.exists() else shutil.which(COMMAND) or ''


class Bridge:
    """One bridge process. Not thread-safe: one worker thread owns it.

    command: program and arguments. grace_s: so much longer (s) than the question's own time-out an answer may take.
    """

    def __init__(self, command: list[str], grace_s: float = 2.0) -> None:
        self._command, self._grace_s = command, grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._data = b''
        self._number = 0

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program if it does not run. Raises `Disconnected`."""
        if self.running:
            return
        self.close()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise Disconnected(f'{self._command[0]} cannot be started: {error}') from error
        self._data = b''

    def close(self) -> None:
        """End the program; never raises."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(0.5)  # it ends with its input
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ask(self, op: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        """The answer to one question. Raises `DeviceError`; after silence the program is ended."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise Disconnected('the bridge does not run')
        self._number += 1
        deadline = monotonic() + timeout_s + self._grace_s
        try:
            process.stdin.write(json.dumps({'id': self._number, 'op': op, **fields}).encode() + b'\n')
            answer = self._answer(process.stdout.fileno(), process.stdout, deadline)
        except OSError as error:
            self.close()
            raise Disconnected(f'the bridge ended: {error}') from error
        except DeviceError:
            self.close()
            raise
        if 'error' in answer:
            raise KINDS.get(str(answer['error']), BadFrame)(f'{answer.get("message", "no reason given")}')
        return answer

    def _answer(self, descriptor: int, pipe: Any, deadline: float) -> dict[str, Any]:
        while True:
            line, found, rest = self._data.partition(b'\n')
            if found:
                self._data = rest
                return self._checked(line)
            if len(self._data) > MAX_ANSWER:
                raise BadFrame(f'{len(self._data)} bytes from the bridge without an end of line')
            left = deadline - monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise NoAnswer('the bridge does not answer; it is started again')
            data = pipe.read(65536)
            if not data:
                raise Disconnected('the bridge ended')
            self._data += data

    def _checked(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            raise BadFrame(f'the bridge answered no JSON: {line[:60]!r}') from None
        if not isinstance(answer, dict) or answer.get('id') != self._number:
            raise BadFrame(f'the bridge answered something else than question {self._number}: {line[:60]!r}')
        return answer
