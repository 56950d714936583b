"""A pseudo terminal on which a simulated device answers requests; faults are injected into the answers."""

from __future__ import annotations

import os
import select
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from bess_sim.control_server import Request
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.jbd import place_link

TICK_S = 0.05
GAP_S = 0.1  # a request that pauses so long is dropped
MAX_REQUEST = 1024

#: `answer(data)`: (answer or None while the request is incomplete, bytes that were used up).
Answer = Callable[[bytes], tuple[bytes | None, int]]


class SerialLine:
    """Answers at `link` (a symbolic link to a pty) in a thread of its own (`RunningDevice`).

    answer: takes everything received that was not used up. corrupt_at: where `flipped_bytes` inverts,
    as a share of the answer.
    """

    def __init__(self, link: Path, faults: DeviceFaults, answer: Answer, corrupt_at: float = 0.5) -> None:
        self._link, self._faults, self._answer, self._corrupt_at = link, faults, answer, corrupt_at
        self.requests = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> str:
        """See `RunningDevice`."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name='serial', daemon=True)
        self._thread.start()
        if not ready.wait(5.0) or self._failure is not None:
            raise OSError(f'{self._link}: {self._failure or "did not appear"}')
        return f'serial:{self._link}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)

    def check(self) -> None:
        """See `RunningDevice`."""
        if self._failure is not None:
            raise self._failure

    def command(self, request: Request) -> Request:
        """See `RunningDevice`."""
        if request['cmd'] == 'requests':
            return {'requests': self.requests}
        raise ValueError(f'unknown command {request["cmd"]!r}')

    def _run(self, ready: threading.Event) -> None:
        try:
            while not self._stop.is_set():
                if self._faults.on('disconnect'):
                    self._stop.wait(TICK_S)
                else:
                    self._serve(ready)
        except Exception as error:  # noqa: BLE001 - raised by `check` in the main thread
            self._failure = error
        ready.set()

    def _serve(self, ready: threading.Event) -> None:
        master, slave = os.openpty()  # this end of the slave stays open, or the master fails when nobody listens
        target = os.ttyname(slave)
        try:
            tty.setraw(master)
            tty.setraw(slave)
            os.set_blocking(master, False)
            place_link(self._link, target)
            ready.set()
            data, last = b'', 0.0
            due: list[tuple[float, bytes]] = []
            while not (self._stop.is_set() or self._faults.on('disconnect')):
                now = monotonic()
                while due and due[0][0] <= now:
                    self._send(master, due.pop(0)[1])
                wait = min(TICK_S, due[0][0] - now) if due else TICK_S
                if not select.select([master], [], [], max(0.0, wait))[0]:
                    continue
                if monotonic() - last > GAP_S:
                    data = b''
                data, last = (data + os.read(master, 4096))[-MAX_REQUEST:], monotonic()
                while data:
                    answer, used = self._answer(data)
                    data = data[used:]
                    if answer is None:
                        break
                    self.requests += 1
                    if not self._faults.on('no_answer'):
                        late = self._faults.value('late_answer', 2.0) if self._faults.on('late_answer') else 0.0
                        due.append((monotonic() + late, self._disturbed(answer)))
        finally:
            if self._link.is_symlink() and os.readlink(self._link) == target:
                self._link.unlink()
            os.close(slave)
            os.close(master)

    def _disturbed(self, answer: bytes) -> bytes:
        if self._faults.on('flipped_bytes'):
            at = int(len(answer) * self._corrupt_at)
            answer = answer[:at] + bytes((answer[at] ^ 0x01,)) + answer[at + 1:]
        return answer[:len(answer) // 2] if self._faults.on('truncated_frame') else answer

    @staticmethod
    def _send(master: int, data: bytes) -> None:
        try:
            os.write(master, data)
        except BlockingIOError:
            return  # nobody reads and the line is full: the bytes are lost, as on a wire
