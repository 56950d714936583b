"""A device of the bench in a process of its own: fork, readiness, control socket, end."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from bess_sim.control_server import ControlServer, Request, number
from bess_sim.device_faults import DEVICE_FAULTS, DeviceFaults
from bess_sim.devices.factory import RunningDevice
from bess_sim.plant_config import DeviceConfig

READY_S, STOP_S = 15.0, 3.0  # to start and to end
WATCH_S = 0.1  # how often parent and children look at each other

_log = logging.getLogger('bess.bench')
_fork = multiprocessing.get_context('fork')


class BenchError(RuntimeError):
    """The bench cannot run: a device does not start, or another bench has the run directory."""


@dataclass
class Child:
    """A device process, seen from the bench."""

    name: str
    config: DeviceConfig
    running: RunningDevice
    faults: DeviceFaults
    run_dir: Path
    address: str = ''
    reported: bool = False
    _process: ForkProcess | None = None
    _ready: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id once started."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode if self._process else None

    def start(self, lock: int) -> None:
        """Fork the process."""
        self._ready, ready = _fork.Pipe(duplex=False)
        arguments = (self, os.getpid(), ready, lock)
        self._process = _fork.Process(target=_device_main, args=arguments, name=self.name)
        self._process.start()
        ready.close()

    def wait_ready(self, deadline: float) -> None:
        """Wait until the device listens. Raises `BenchError`."""
        assert self._ready is not None
        if not self._ready.poll(max(deadline - time.monotonic(), 0.0)):
            raise BenchError(f'device {self.name} did not start within {READY_S} s')
        try:
            self.address, problem = self._ready.recv()
        except EOFError:
            problem = 'the process ended'
        self._ready.close()
        if problem:
            raise BenchError(f'device {self.name} did not start: {problem}')

    def died(self) -> bool:
        """Whether it has ended; True once."""
        if self.reported or self.exit_code is None:
            return False
        self.reported = True
        return True

    def end(self) -> None:
        """Ask it to end; `join` waits for that."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended; kill it when it takes too long."""
        if self._process is None:
            return
        self._process.join(STOP_S)
        if self._process.is_alive():
            _log.error('device %s (pid %s) does not end; killed', self.name, self.pid)
            self._process.kill()
            self._process.join()

    def state(self) -> Request:
        """Its entry in bench.json."""
        return {
            'pid': self.pid, 'kind': self.config.kind, 'unit': self.config.unit,
            'address': self.address, 'control': str(self.run_dir / f'{self.name}.sock'),
            'exit_code': self.exit_code,
        }  # fmt: skip

    def handle(self, request: Request) -> Request:
        """Answer a control request, in the device's process."""
        faults = self.faults
        match request['cmd']:
            case 'inject':
                for_s = number(request, 'for_s', inf)
                if not for_s > 0.0:
                    raise ValueError(f'for_s must be above 0 s, not {for_s!r}')
                name = fault_name(request, DEVICE_FAULTS)
                faults.inject(name, number(request, 'value', nan), for_s)
            case 'clear':
                faults.clear(str(request.get('fault') or ''))
            case 'status':
                now = time.monotonic()
                active = [
                    {'fault': name, 'value': value, 'remaining_s': until - now}
                    for name, (value, until) in faults.active.items()
                    if until > now
                ]
                own = {'name': self.name, 'kind': self.config.kind, 'unit': self.config.unit}
                return {**own, 'pid': os.getpid(), 'address': self.address, 'faults': active}
            case _:
                return self.running.command(request)
        return {}


def _device_main(child: Child, parent: int, ready: Connection, lock: int) -> None:
    """A device process: listen, answer control requests, end on SIGTERM or with the bench."""
    os.close(lock)
    # The bench had both signals blocked when it forked. Ctrl-C reaches the whole group; only the
    # bench acts on it and then ends its devices in order.
    _die_with_parent()
    try:
        child.address = child.running.start()
        server = ControlServer(child.run_dir / f'{child.name}.sock', child.handle)
    except (OSError, ValueError) as error:
        ready.send(('', str(error) or type(error).__name__))
        sys.exit(1)
    ready.send((child.address, ''))
    ready.close()
    while os.getppid() == parent:
        if signal.sigtimedwait({signal.SIGTERM}, WATCH_S) is not None:
            break
        child.running.check()
    server.stop()
    child.running.stop()


def _die_with_parent() -> None:
    """Linux: SIGTERM to this process when its parent dies (the loop watches the parent as well)."""
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


def fault_name(request: Request, known: Mapping[str, str]) -> str:
    """The known fault that a request names. Raises ValueError."""
    name = request.get('fault')
    if not isinstance(name, str) or name not in known:
        raise ValueError(f'unknown fault {name!r}; known: {", ".join(known)}')
    return name
