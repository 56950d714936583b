"""Starts the processes of a site, watches their nodes, restarts what died.

One thread per process group: start, wait. The process itself configures and activates its nodes in
order. A process that ends, or whose nodes are
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import State

from bess.msg import Heartbeat, SystemState

from . import log, overlay, qos
from .launching import RESTART_S
from .overlay import OverlayError
from .shared_memory import remove_stale
from .site import Site, SiteError
from .stalls import OwnStalls, excused

BACKOFF_FIRST_S, BACKOFF_MAX_S, STABLE_S = 0.1, 30.0, 60.0
LOOK_S = 0.05  # period of looks at a process
BRING_UP_S = 20.0  # from the start of a process to the first sign of life of all its nodes
CONFIGURED = (State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE)
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
    restarts: int = 0  # how many restarts of the site had been ordered when its present process started
    ended: int = 0  # the restart for which a process of it has ended
    last_seen: dict[str, float] = field(default_factory=dict)  # node -> monotonic s of its last heartbeat
    configured: set[str] = field(default_factory=set)  # nodes that said they are inactive or active
    told_fd: int = -1  # pipe from the process: lines, see `Container.tell`
    told_at: float = 0.0  # monotonic s of the last line; 0 = none yet
    told: bytes = b''  # beginning of a line whose end is not here yet
    faults: set[str] = field(default_factory=set)  # node/id of those it told of since the start of the site


class Supervisor:
    """Runs the groups of a site. `node` is an rclpy node that somebody spins."""

    def __init__(self, site: Site, state_dir: Path, node: Any, *, site_arguments: Sequence[str] = (),
                 console: str = 'warning') -> None:
        self.site = site
        self.log = log.get(f'{site.name}/supervisor')
        self._node = node
        self._timeout = site.params.heartbeat_timeout
        self._state_dir = state_dir
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._restarts = 0  # ordered so far
        self._restart_at = inf  # monotonic s from which the processes end, in turn
        self._restart_told = (0, 0)  # stamp of the state that ordered the last one
        self.groups = {
            process: Group(
                process,
                [n.name for n in site.nodes if n.process == process],
                [sys.executable, '-m', 'bess_core.container', '--site', str(site.path), '--process', process,
                 '--state', str(state_dir), '--supervised', '--bring-up', '--console', console, *site_arguments],
            )
            for process in site.processes
        }
        self._group_of = {n.name: self.groups[n.process] for n in site.nodes}
        node.create_subscription(Heartbeat, f'{site.namespace}/heartbeat', self._on_heartbeat, qos.EVENT)
        # The state, not the event of its change: whoever discovers late still gets it.
        node.create_subscription(SystemState, f'{site.namespace}/system_state', self._on_state, qos.STATE)

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
    def faults(self) -> set[str]:
        """Faults (node/id) that the processes told of since the start, gone ones too."""
        return set().union(*(g.faults for g in self.groups.values()))

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
            if message.lifecycle in CONFIGURED:
                group.configured.add(message.node)
            else:
                group.configured.discard(message.node)

    def _follow_topology(self) -> None:
        """Batteries come and go at run time: the nodes of all groups as they are by now."""
        with self._lock:
            try:
                stored = overlay.read(self._state_dir)
                if stored.revision == self.site.overlay.revision or self.site.again is None:
                    return
                self.site = self.site.again(stored)
            except (OverlayError, SiteError) as error:
                self.log.error('topology cannot be read', reason=str(error))
                return
            for group in self.groups.values():
                group.nodes = [n.name for n in self.site.nodes if n.process == group.name]
                group.last_seen = {n: t for n, t in list(group.last_seen.items()) if n in group.nodes}
                group.configured &= set(group.nodes)
            self._group_of = {n.name: self.groups[n.process] for n in self.site.nodes}
        self.log.info('topology', revision=stored.revision, nodes=len(self.site.nodes))

    def _on_state(self, message: SystemState) -> None:
        """A site that goes to RESTART has all its processes ended and started again, in order."""
        since = (message.header.stamp.sec, message.header.stamp.nanosec)
        if message.state == SystemState.RESTART and since != self._restart_told:
            self.log.warning('restart', cause=message.cause)
            self._restart_told = since
            self._restart_at = time.monotonic() + RESTART_S
            self._restarts += 1

    def _supervise(self, group: Group) -> None:
        while not self._cancelled.is_set():
            self._launch(group)
            self._watch(group)
            group.active = False
            if group.restarts != self._restarts and not self._cancelled.is_set():
                self._restart(group)
                continue
            self._end(group)
            if self._cancelled.is_set():
                return
            if time.monotonic() - group.started > STABLE_S:
                group.backoff = BACKOFF_FIRST_S
            self.log.warning('process is started again', process=group.name, after_s=group.backoff)
            self._cancelled.wait(group.backoff)
            group.backoff = min(group.backoff * 2, BACKOFF_MAX_S)

    def _restart(self, group: Group) -> None:
        """End one group of a restart when those before it have ended; return when it is its turn to start.

        Control ends first, so that what follows still records it; it starts when all have ended, and first.
        """
        others = list(self.groups.values())
        before = others[:others.index(group)]
        self._until(lambda: all(_ended(g) for g in before), len(before) * (STOP_S + 1.0))
        self._end(group, STOP_S)
        group.ended = self._restarts
        self._until(lambda: all(g.ended == self._restarts or _ended(g) for g in others), len(others) * (STOP_S + 1.0))
        self._until(lambda: all(g.restarts == self._restarts for g in before), len(before) * 1.0)
        group.backoff = BACKOFF_FIRST_S

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition of other groups holds; they may be stuck, therefore no longer than this."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            if self._cancelled.wait(0.02):
                return

    def _launch(self, group: Group) -> None:
        self._follow_topology()
        if removed := remove_stale():  # of killed processes
            self.log.info('stale shared memory removed', segments=removed)
        with self._lock:
            if self._cancelled.is_set():
                return
            group.started = time.monotonic()
            group.starts += 1
            group.restarts = self._restarts
            group.last_seen = {}
            group.configured = set()
            ready, told = os.pipe()
            os.set_blocking(ready, False)
            if group.told_fd >= 0:
                os.close(group.told_fd)
            group.told_fd, group.told_at, group.told = ready, 0.0, b''
            # An own session: Ctrl-C at the terminal reaches the supervisor only, which ends the groups in order.
            group.process = subprocess.Popen(
                [*group.command, '--ready-fd', str(told)], start_new_session=True, pass_fds=(told,))
            os.close(told)
        self.log.info('process started', process=group.name, pid=group.process.pid, start=group.starts)

    def _watch(self, group: Group) -> None:
        """Until the process ends or its nodes are silent. It brings its nodes up by itself (and goes on
        trying), so that a node that cannot start costs neither the others nor the process."""
        assert group.process is not None
        said_missing = False
        stalls = OwnStalls(LOOK_S, self._timeout)
        while not self._cancelled.is_set():
            code = group.process.poll()
            if code is not None:
                self.log.error('process died', process=group.name, code=code)
                return
            now = time.monotonic()
            if group.restarts != self._restarts and now >= self._restart_at:
                return
            self._listen(group, now)
            if late := stalls.late(now):
                self._excuse(group, late, now)
            missing = [n for n in group.nodes if n not in group.configured]
            if not missing and not group.active:
                group.active = True
                self.log.info('nodes active', process=group.name, nodes=len(group.nodes),
                              after_s=round(now - group.started, 2))
            elif missing and not said_missing and now - group.started > BRING_UP_S:
                said_missing = True
                self.log.error('nodes not up', process=group.name, nodes=missing, after_s=BRING_UP_S)
            # A process that has just started may need as long as bring-up takes to its first sign of life.
            stuck = now - (group.told_at or group.started + BRING_UP_S - self._timeout) > self._timeout
            # A node is missed once it was heard: the middleware may discover its heartbeats seconds late.
            silent = [n for n, seen in list(group.last_seen.items()) if now - seen > self._timeout]
            if silent and not stuck:
                self._follow_topology()  # destroyed, perhaps
                silent = [n for n in silent if n in group.last_seen]
            if stuck or (silent and self.site.params.heartbeat > 0):
                self.log.error('nodes are silent', process=group.name, nodes=silent or group.nodes,
                               timeout_s=self._timeout)
                return
            self._cancelled.wait(LOOK_S)

    @staticmethod
    def _excuse(group: Group, late: float, now: float) -> None:
        """This process itself stood still for so long, and could hear nobody."""
        group.last_seen.update(excused(dict(group.last_seen), late, now))
        if group.told_at:
            group.told_at = min(group.told_at + late, now)

    @staticmethod
    def _listen(group: Group, now: float) -> None:
        """Take what the process says over its pipe: sooner than the middleware discovers its heartbeats."""
        try:
            told = os.read(group.told_fd, 65536)
        except BlockingIOError:
            return
        if told:
            group.told_at = now
        *lines, group.told = (group.told + told).split(b'\n')
        for line in lines:
            word, _, rest = line.decode(errors='replace').partition(' ')
            if word == 'up':
                group.configured.update(group.nodes)
            elif word == 'fault':
                group.faults.add(rest)

    def _end(self, group: Group, patience: float = 1.0) -> None:
        process = group.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S if self._cancelled.is_set() else patience)
        except subprocess.TimeoutExpired:
            self.log.error('process does not end; killed', process=group.name, pid=process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._listen(group, time.monotonic())  # its last words


def _ended(group: Group) -> bool:
    return group.process is None or group.process.poll() is not None


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
