"""`watchdog`: watches the heartbeats of one process group and says when its container hangs.

    ros2 run bess watchdog --site home_demo --process control --state DIR

For containers that launch, systemd or a person started; `bess up` does the same by itself. Ends with
exit code 3 when nodes are silent: whoever started the container is to end it and start it again. Ends with
exit code 4 when somebody asked the site to restart: whoever started the containers is to end all of them in order,
control first, and start them again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from math import inf
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import State

from bess.msg import Heartbeat, SystemState

from . import log, overlay, qos
from . import site as site_module
from .clock import Clock
from .launching import RESTART, RESTART_S, SITE_RESTART
from .runtime import Runtime
from .stalls import OwnStalls, excused
from .ticker import RealTicker

PERIOD_S = 0.05  # look at signals and heartbeats
BRING_UP_S = 20.0  # from the start of a process to the first sign of life of all its nodes


class Watch:
    """What the heartbeats of some nodes say. Times in s on any one clock."""

    def __init__(self, nodes: Sequence[str], timeout_s: float, now: float) -> None:
        self._timeout = timeout_s
        # A process that has just started may need as long as bring-up takes to its first sign of life.
        self._seen = dict.fromkeys(nodes, now + BRING_UP_S - timeout_s)
        self._state = dict.fromkeys(nodes, State.PRIMARY_STATE_UNKNOWN)

    def beat(self, node: str, lifecycle: int, now: float) -> None:
        """A sign of life; those of other nodes are none of ours."""
        if node in self._seen:
            self._seen[node] = now
            self._state[node] = lifecycle

    def keep(self, nodes: Collection[str]) -> None:
        """The others were destroyed."""
        self._seen = {n: t for n, t in self._seen.items() if n in nodes}
        self._state = {n: s for n, s in self._state.items() if n in nodes}

    def excuse(self, late: float, now: float) -> None:
        """The watcher itself stood still for so long, and could hear nobody."""
        self._seen = excused(self._seen, late, now)

    def missing(self) -> list[str]:
        """Nodes that are not up yet, in bring-up order."""
        up = (State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE)
        return [n for n, state in self._state.items() if state not in up]

    def silent(self, now: float) -> list[str]:
        """Nodes whose last sign of life is too long ago, in bring-up order."""
        return [n for n, seen in self._seen.items() if now - seen > self._timeout]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 after a signal, 2 for a site that cannot be used, 3 when the container has to be restarted, 4 when
    all containers of the site have to be."""
    parser = argparse.ArgumentParser(prog='watchdog', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--site', required=True, help='site file, or name of an installed one')
    parser.add_argument('--process', default='', help='process group of the site file; default: all nodes')
    parser.add_argument('--node', action='append', default=[], help='only these nodes')
    parser.add_argument('--state', type=Path, required=True, help='folder for journals, logs, recordings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='override the site file')
    parser.add_argument('--supervised', action='store_true', help='end when the starting process is gone')
    args, ros_args = parser.parse_known_args(argv)
    try:
        site = site_module.load(site_module.find(args.site), overrides=args.set, state=args.state)
    except site_module.SiteError as error:
        print(error, file=sys.stderr)
        return 2
    names = [n.name for n in site.select(args.process, args.node)]
    if not names:
        print(f'{args.site}: no such node or process; processes: {", ".join(site.processes)}', file=sys.stderr)
        return 2
    log.setup(args.state / 'log', f'watchdog_{args.process or "all"}', level=site.params.log_level, console='off')
    with Runtime(ros_args or None) as runtime:
        code = _run(runtime, site, names, args)
    if argv is None:
        # A second signal while Python shuts down is no failure; Runtime has put the deadly handlers back.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


def _there(site: site_module.Site, state: Path, logger: Any) -> set[str]:
    """Nodes of the site as it is by now: batteries can be destroyed at run time."""
    try:
        stored = overlay.read(state)
        now = site if stored.revision == site.overlay.revision or site.again is None else site.again(stored)
    except (overlay.OverlayError, site_module.SiteError) as error:
        logger.error('topology cannot be read', reason=str(error))
        now = site
    return {n.name for n in now.nodes}


def _run(runtime: Runtime, site: site_module.Site, names: list[str], args: argparse.Namespace) -> int:
    from rclpy.node import Node

    label = args.process or site.name
    logger = log.get(f'{site.name}/watchdog')
    parent, started = os.getppid(), time.monotonic()
    watch = Watch(names, site.params.heartbeat_timeout, started)
    stalls = OwnStalls(PERIOD_S, site.params.heartbeat_timeout)
    node = Node(f'{label}_watchdog', namespace=site.namespace, start_parameter_services=False, enable_rosout=False)
    runtime.executor.add_node(node)

    def heard(message: Any) -> None:
        watch.beat(message.node, message.lifecycle, time.monotonic())

    node.create_subscription(Heartbeat, f'{site.namespace}/heartbeat', heard, qos.EVENT)
    restart_at = inf
    clock = Clock()
    born = clock.wall()

    def on_state(message: SystemState) -> None:
        """A site that goes to RESTART. What was announced before this process began is carried out by then."""
        nonlocal restart_at
        if message.state == SystemState.RESTART and restart_at == inf:
            since = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
            if since >= born:
                restart_at = time.monotonic() + RESTART_S
                logger.warning('restart', cause=message.cause)

    # The state, not the event of its change: whoever discovers late still gets it.
    node.create_subscription(SystemState, f'{site.namespace}/system_state', on_state, qos.STATE)
    silent: list[str] = []
    told = {'up': False, 'missing': False}

    def look(_: Any) -> None:
        if args.supervised and os.getppid() != parent:
            runtime.stop()
        if runtime.stopped.done():
            return
        now = time.monotonic()
        if now >= restart_at:
            runtime.stop()
            return
        missing = watch.missing()
        if not missing and not told['up']:
            told['up'] = True
            logger.info('nodes up', process=label, nodes=len(names), after_s=round(now - started, 2))
            print(f'{label}: {len(names)} nodes up after {now - started:.1f} s', flush=True)
        elif missing and not told['missing'] and now - started > BRING_UP_S:
            told['missing'] = True
            logger.error('nodes not up', process=label, nodes=missing, after_s=BRING_UP_S)
            print(f'{label}: not up after {BRING_UP_S:g} s: {", ".join(missing)}', file=sys.stderr, flush=True)
        if late := stalls.late(now):
            watch.excuse(late, now)
        if site.params.heartbeat > 0:
            silent[:] = watch.silent(now)
            if silent:
                watch.keep(_there(site, args.state, logger))
                silent[:] = watch.silent(now)
            if silent:
                runtime.stop()

    ticker = RealTicker(clock, runtime.post)
    ticker.every(PERIOD_S, look)
    try:
        runtime.spin()
    finally:
        ticker.stop()
        runtime.drop(node)
    if time.monotonic() >= restart_at and runtime.signal == 0:
        print(f'{label}: the site restarts', flush=True)
        return SITE_RESTART
    if not silent:
        return 0
    logger.error('nodes are silent', process=label, nodes=silent, timeout_s=site.params.heartbeat_timeout)
    print(f'{label}: nodes are silent: {", ".join(silent)}', file=sys.stderr, flush=True)
    return RESTART


if __name__ == '__main__':
    sys.exit(main())
