"""`bringup`: configure and activate the nodes of one process group in order, then watch their heartbeats.

    ros2 run bess bringup --site home_demo --process control --state DIR

For sites whose containers are started by launch, systemd or by hand; `bess up` does the same by itself.
Ends with 3 when a node cannot be brought up or is silent: whoever starts the container starts it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bess.msg import Heartbeat

from . import log, qos, site as site_module
from .bringup import BringupError, LifecycleClient, bring_up
from .clock import Clock
from .launching import RESTART
from .runtime import Runtime
from .ticker import RealTicker

PERIOD_S = 0.05  # look at signals, heartbeats and the result of bring-up
TIMEOUT_S = 20.0


class Watch:
    """Which nodes are silent. Times in s on any one clock."""

    def __init__(self, nodes: Sequence[str], timeout_s: float, now: float) -> None:
        self._timeout = timeout_s
        self._seen = dict.fromkeys(nodes, now)

    def beat(self, node: str, now: float) -> None:
        """A sign of life; of other nodes too."""
        if node in self._seen:
            self._seen[node] = now

    def silent(self, now: float) -> list[str]:
        """Nodes whose last sign of life is too long ago, in bring-up order."""
        return [n for n, seen in self._seen.items() if now - seen > self._timeout]


class Attempt:
    """Bring-up in a thread of its own; `done` and then `error` ('' = all active)."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.done = threading.Event()
        self.error = ''
        self.abandoned = False  # nobody waits for it: its node may be gone
        # A daemon: a call that waits for its answer must not hold up the end of the process.
        threading.Thread(target=self._run, args=(work,), name='bring-up', daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BringupError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f'{type(error).__name__}: {error}'
            if not self.abandoned:
                raise
        finally:
            self.done.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 after a signal (or `--once`), 2 for an unusable site, 3 when the container has to be restarted."""
    parser = argparse.ArgumentParser(prog='bringup', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--site', required=True, help='site file, or name of an installed one')
    parser.add_argument('--process', default='', help='process group of the site file; default: all nodes')
    parser.add_argument('--node', action='append', default=[], help='only these nodes')
    parser.add_argument('--state', type=Path, required=True, help='folder for journals, logs, recordings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='override the site file')
    parser.add_argument('--timeout', type=float, default=TIMEOUT_S, metavar='S',
                        help='how long the nodes may take to appear, s (default: %(default)g)')
    parser.add_argument('--once', action='store_true', help='end when all are active')
    parser.add_argument('--supervised', action='store_true', help='end when the starting process is gone')
    args, ros_args = parser.parse_known_args(argv)
    try:
        site = site_module.load(site_module.find(args.site), overrides=args.set, variables={'state': str(args.state)})
    except site_module.SiteError as error:
        print(error, file=sys.stderr)
        return 2
    names = [n.name for n in site.nodes
             if (not args.process or n.process == args.process) and (not args.node or n.name in args.node)]
    if not names:
        print(f'{args.site}: no such node or process; processes: {", ".join(site.processes)}', file=sys.stderr)
        return 2
    log.setup(args.state / 'log', f'bringup_{args.process or "all"}', level=site.params.log_level, console='warning')
    with Runtime(ros_args or None) as runtime:
        return _run(runtime, site, names, args)


def _run(runtime: Runtime, site: site_module.Site, names: list[str], args: argparse.Namespace) -> int:
    from rclpy.node import Node

    logger = log.get(f'{site.name}/bringup')
    label = args.process or site.name
    parent = os.getppid()
    node = Node(f'{label}_bringup', namespace=site.namespace, start_parameter_services=False, enable_rosout=False)
    runtime.executor.add_node(node)
    watch = Watch(names, site.params.heartbeat_timeout, time.monotonic())

    def heard(message: Any) -> None:
        watch.beat(message.node, time.monotonic())

    node.create_subscription(Heartbeat, f'{site.namespace}/heartbeat', heard, qos.EVENT)
    clients = [LifecycleClient(node, f'{site.namespace}/{name}') for name in names]
    started = time.monotonic()
    attempt = Attempt(lambda: bring_up(clients, logger, timeout_s=args.timeout,
                                       cancelled=lambda: 'it was stopped' if runtime.stopped.done() else ''))
    failure, announced = '', False

    def look(_: Any) -> None:
        nonlocal failure, announced
        if args.supervised and os.getppid() != parent:
            runtime.stop()
        if not attempt.done.is_set() or runtime.stopped.done():
            return
        if attempt.error:
            failure = attempt.error
            runtime.stop()
            return
        now = time.monotonic()
        if not announced:
            announced = True
            for name in names:
                watch.beat(name, now)
            print(f'{label}: {len(names)} nodes active after {now - started:.1f} s', flush=True)
            if args.once:
                runtime.stop()
        elif site.params.heartbeat > 0 and (silent := watch.silent(now)):
            failure = f'nodes are silent: {", ".join(silent)}'
            runtime.stop()

    ticker = RealTicker(Clock(), runtime.post)
    ticker.every(PERIOD_S, look)
    try:
        runtime.spin()
    finally:
        attempt.abandoned = True
        ticker.stop()
        runtime.executor.remove_node(node)
        node.destroy_node()
    if not failure:
        return 0
    logger.error('container has to be started again', process=label, reason=failure)
    print(f'{label}: {failure}', file=sys.stderr, flush=True)
    return RESTART


if __name__ == '__main__':
    sys.exit(main())
