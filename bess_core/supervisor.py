"""Starts the processes of a site, brings their nodes up, watches them, restarts what died.

One thread per process group: start, bring up in order, wait. A process that ends, or whose nodes are
silent for longer than `heartbeat_timeout`, is ended (killed when it does not listen) and started
again after a backoff of 0.1 s doubling to 30 s. The other groups go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bess.msg import Heartbeat

from . import log, qos
from .bringup import BringupError, LifecycleClient, bring_up
from .site import Site

BACKOFF_FIRST_S, BACKOFF_MAX_S, STABLE_S = 0.1, 30.0, 60.0
STOP_S = 8.0  # how long a process may take to end in order


@dataclass
class Group:
    """One process group while it is supervised."""

    name: str
    nodes: list[str]  # in bring-up order
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    active: bool = False
    starts: int = 0
    backoff: float = BACKOFF_FIRST_S
    started: float = 0.0
    last_seen: dict[str, float] = field(default_factory=dict)  # node -> monotonic s of its last heartbeat
    last_error: str = ''


class Supervisor:
    """Runs the groups of a site. `node` is an rclpy node that somebody spins."""

    def __init__(self, site: Site, state_dir: Path, node: Any, *, site_arguments: Sequence[str] = (),
                 console: str = 'warning') -> None:
        self.site = site
        self.log = log.get(f'{site.name}/supervisor')
        self._node = node
        self._timeout = site.params.heartbeat_timeout
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.groups = {
            process: Group(
                process,
                [n.name for n in site.nodes if n.process == process],
                [sys.executable, '-m', 'bess_core.container', '--site', str(site.path), '--process', process,
                 '--state', str(state_dir), '--supervised', '--console', console, *site_arguments],
            )
            for process in site.processes
        }
        self._group_of = {n.name: self.groups[n.process] for n in site.nodes}
        self._clients = {n.name: LifecycleClient(node, f'{site.namespace}/{n.name}') for n in site.nodes}
        node.create_subscription(Heartbeat, f'{site.namespace}/heartbeat', self._on_heartbeat, qos.EVENT)

    def start(self) -> None:
        """Start all groups; returns at once."""
        for group in self.groups.values():
            thread = threading.Thread(target=self._supervise, args=(group,), name=f'supervise {group.name}')
            self._threads.append(thread)
            thread.start()

    @property
    def all_active(self) -> bool:
        """Whether every node of every group was brought up and its process lives."""
        return all(g.active and g.process is not None and g.process.poll() is None for g in self.groups.values())

    @property
    def active_nodes(self) -> int:
        """Number of nodes in groups that are up."""
        return sum(len(g.nodes) for g in self.groups.values() if g.active)

    def stop(self) -> None:
        """End all groups, control first: each process makes its own nodes safe in reverse order on SIGTERM,
        and the recorder of a later group still sees it.
        """
        self._cancelled.set()
        for group in self.groups.values():
            self._end(group)
        for thread in self._threads:
            thread.join()

    def _on_heartbeat(self, message: Heartbeat) -> None:
        group = self._group_of.get(message.node)
        if group is not None:
            group.last_seen[message.node] = time.monotonic()

    def _supervise(self, group: Group) -> None:
        while not self._cancelled.is_set():
            self._launch(group)
            try:
                bring_up([self._clients[n] for n in group.nodes], self.log, cancelled=partial(self._why_not, group))
                group.active = True
                group.last_error = ''
                self._watch(group)
            except BringupError as error:
                group.last_error = str(error)
                if not self._cancelled.is_set():
                    self.log.error('bring-up failed', process=group.name, reason=str(error))
            group.active = False
            self._end(group)
            if self._cancelled.is_set():
                return
            if time.monotonic() - group.started > STABLE_S:
                group.backoff = BACKOFF_FIRST_S
            self.log.warning('process is started again', process=group.name, after_s=group.backoff)
            self._cancelled.wait(group.backoff)
            group.backoff = min(group.backoff * 2, BACKOFF_MAX_S)

    def _why_not(self, group: Group) -> str:
        """Why bring-up makes no sense any more; '' = go on."""
        if self._cancelled.is_set():
            return 'the site ends'
        code = group.process.poll() if group.process is not None else None
        return '' if code is None else f'process ended with code {code}'

    def _launch(self, group: Group) -> None:
        with self._lock:
            if self._cancelled.is_set():
                return
            group.started = time.monotonic()
            group.starts += 1
            group.last_seen = {}
            # An own session: Ctrl-C at the terminal reaches the supervisor only, which ends the groups in order.
            group.process = subprocess.Popen(group.command, start_new_session=True)
        self.log.info('process started', process=group.name, pid=group.process.pid, start=group.starts)

    def _watch(self, group: Group) -> None:
        assert group.process is not None
        since = time.monotonic()
        while not self._cancelled.is_set():
            code = group.process.poll()
            if code is not None:
                self.log.error('process died', process=group.name, code=code)
                return
            now = time.monotonic()
            silent = [n for n in group.nodes if now - group.last_seen.get(n, since) > self._timeout]
            if silent and self.site.params.heartbeat > 0:
                self.log.error('nodes are silent', process=group.name, nodes=silent, timeout_s=self._timeout)
                return
            self._cancelled.wait(0.05)

    def _end(self, group: Group) -> None:
        process = group.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S if self._cancelled.is_set() else 1.0)
        except subprocess.TimeoutExpired:
            self.log.error('process does not end; killed', process=group.name, pid=process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()


def memory_pss_mb(pid: int) -> float:
    """Proportional set size of a process in MB (shared pages divided by their users)."""
    with open(f'/proc/{pid}/smaps_rollup', encoding='ascii') as file:
        for line in file:
            if line.startswith('Pss:'):
                return int(line.split()[1]) / 1024.0
    return float('nan')


def lock_state(state_dir: Path) -> int:
    """Take the lock of a state folder, so that a site runs once. Raises BlockingIOError when it is held."""
    import fcntl

    state_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(state_dir / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
