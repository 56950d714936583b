"""One process of a site: its nodes on one executor. Started by the supervisor or a launch file.

    python -m bess_core.container --site config/sites/home_demo.yaml --process control --state .run
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import log, priority
from . import site as site_module
from .administrator import Administrator, hosts
from .clock import Clock, SimClock
from .context import NodeContext
from .node import SUCCESS
from .runtime import Runtime
from .site import NodeSpec, Site
from .ticker import RealTicker, SimTicker

ALIVE_S = 0.05  # period of the call that keeps signals and stops quick
RETRY_S = 2.0  # between attempts to bring up nodes that failed
TELL_S = 0.25  # period of the sign of life to the supervisor
PARENT_S = 1.0  # period of the look at the supervisor

_ROS_LEVEL = {logging.DEBUG: 10, logging.INFO: 20, logging.WARNING: 30, logging.ERROR: 40, logging.CRITICAL: 50}


class Container:
    """Makes the nodes of one process and closes them in reverse order."""

    def __init__(self, runtime: Runtime, site: Site, process: str, state_dir: Path, *,
                 clock: Clock | None = None, ticker: Any = None, ready_fd: int = -1) -> None:
        self.runtime = runtime
        self._ready_fd = ready_fd
        if ready_fd >= 0:
            os.set_blocking(ready_fd, False)
        self.site = site
        self.clock = clock or Clock()
        self.ticker = ticker or RealTicker(self.clock, runtime.post)
        settings = site.params
        self.ctx = NodeContext(
            namespace=site.namespace,
            state_dir=state_dir,
            clock=self.clock,
            ticker=self.ticker,
            post=runtime.post,
            group=process,
            site=site,
            heartbeat_s=settings.heartbeat,
            parameter_services=settings.parameter_services,
        )
        self.ctx.add_node, self.ctx.remove_node = self._adopt, self._dismiss
        self.nodes: list[Any] = []
        self._to_configure: list[Any] = []
        self._to_activate: list[Any] = []
        self._up = False
        self.on_guests: Callable[[], object] = lambda: None  # a node has made or ended another one
        self._told: set[str] = set()  # faults the supervisor knows of

    def make(self, specs: Sequence[NodeSpec]) -> None:
        """Create nodes in the given order and let them be served."""
        for spec in specs:
            node = self._create(spec)
            self._to_configure.append(node)
            if spec.name not in self.site.driven:
                self._to_activate.append(node)

    def _create(self, spec: NodeSpec) -> Any:
        node = spec.cls(spec.name, spec.params, self.ctx)
        self.ctx.nodes[spec.name] = node
        self.nodes.append(node)
        self.runtime.executor.add_node(node)
        return node

    def add_node(self, spec: NodeSpec, *, activate: bool = True) -> Any:
        """Create one node while the others run and bring it up. Raises RuntimeError with the reason, and
        leaves nothing behind, when it does not come up."""
        node = None
        activate = activate and spec.name not in self.site.driven
        try:
            node = self._create(spec)
            if node.trigger_configure() == SUCCESS and (not activate or node.trigger_activate() == SUCCESS):
                return node
            reason = '; '.join(r.text for r in node.faults.records) or 'a transition failed'
        except Exception as error:  # noqa: BLE001 - whatever a plug-in raises while it is made
            reason = f'{type(error).__name__}: {error}'
        if node is not None:
            self.remove_node(spec.name)
        raise RuntimeError(f'{spec.name} does not come up: {reason}')

    def remove_node(self, name: str) -> None:
        """End one node in order (safe, cleaned up, destroyed) while the others run. Raises KeyError."""
        node = self.ctx.nodes.pop(name)
        self.nodes.remove(node)
        for waiting in (self._to_configure, self._to_activate):
            if node in waiting:
                waiting.remove(node)
        node.close()
        node.forget_faults()
        self.runtime.executor.remove_node(node)
        node.destroy_node()

    def collect(self) -> None:
        """Free what removed nodes left behind. They lie in reference cycles, and until those are collected
        their lifecycle services stay on the graph; those made at the start are exempt (`gc.freeze`)."""
        gc.unfreeze()
        gc.collect()
        gc.collect()  # what the first pass ended may have held more
        gc.freeze()

    def adopt(self, site: Site) -> None:
        """The site as it is from now on."""
        self.site = self.ctx.site = site

    def _adopt(self, node: Any) -> None:
        self.ctx.nodes[node.get_name()] = node
        self.nodes.append(node)
        self.runtime.executor.add_node(node)
        self.on_guests()

    def _dismiss(self, node: Any) -> None:
        self.ctx.nodes.pop(node.get_name(), None)
        self.nodes.remove(node)
        self.runtime.executor.remove_node(node)
        self.on_guests()

    def bring_up(self) -> list[str]:
        """Configure the nodes in order, then activate them (but for those that the site node drives); names of those
        that failed, for a later call.

        Within the process: no discovery lies between, and no other process is needed to recover. A
        node that succeeded is left alone afterwards, whatever the site or an operator does with it.
        """
        self._to_configure = [n for n in self._to_configure if n.trigger_configure() != SUCCESS]
        if not self._to_configure:
            self._to_activate = [n for n in self._to_activate if n.trigger_activate() != SUCCESS]
            if not self._to_activate and not self._up:
                self._up = True
                self.tell('up')
                log.get(self.site.name).info('nodes active', process=self.ctx.group, nodes=len(self.nodes))
        return [n.get_name() for n in self._to_configure or self._to_activate]

    def start(self, then: Callable[[], object]) -> None:
        """`bring_up`, one node after the other between what the executor has to do, and `then`.

        What the first devices say meanwhile is handled, and does not grow old until the last node is up.
        """
        steps = self._steps()

        def go() -> None:
            if next(steps, self) is self:  # all had their turn
                self.bring_up()
                then()
            else:
                self.runtime.post(go)

        self.runtime.post(go)

    def _steps(self) -> Iterator[None]:
        for node in list(self._to_configure):
            if node.trigger_configure() == SUCCESS:
                self._to_configure.remove(node)
            yield
        for node in [] if self._to_configure else list(self._to_activate):
            if node.trigger_activate() == SUCCESS:
                self._to_activate.remove(node)
            yield

    def tell_lives(self) -> None:
        """Tell the supervisor that the executor lives, and faults that are new: what a middleware that discovers late
        would miss."""
        self.tell('lives')
        for node in self.nodes:
            for record in node.faults.records:
                key = f'{record.source}/{record.id}'
                if key not in self._told:
                    self._told.add(key)
                    self.tell(f'fault {key}')

    def tell(self, line: str) -> None:
        """A line for the supervisor: `up` (all nodes are), `lives` (the executor does), `fault NODE/ID`."""
        if self._ready_fd >= 0:
            # A full pipe (it is stopped) or a closed one (it is gone, `--supervised` sees to that) is no matter here.
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._ready_fd, f'{line}\n'.encode())  # at once or not at all: it is short

    def close(self) -> None:
        """Deactivate and clean up in reverse order, so that safe setpoints still go out; then end."""
        for node in reversed(self.nodes):
            node.close()
        self.ticker.stop()
        for bus in self.ctx.shared.get('buses', {}).values():
            if hasattr(bus, 'stop'):
                bus.stop()
        for node in reversed(self.nodes):
            self.runtime.executor.remove_node(node)
            node.destroy_node()
        self.nodes.clear()
        gc.unfreeze()  # whoever goes on in this process can free them


def _publish_logs(runtime: Runtime, site: Site, process: str) -> Any:
    """One lean node per process that carries the log on /rosout, where rqt_console looks."""
    from rcl_interfaces.msg import Log
    from rclpy.node import Node

    from .convert import wall_stamp

    node = Node(f'{process}_process', namespace=site.namespace, start_parameter_services=False, enable_rosout=False)
    publisher = node.create_publisher(Log, '/rosout', 100)

    def publish(record: logging.LogRecord) -> None:
        fields = ''.join(f' {k}={v}' for k, v in getattr(record, 'fields', {}).items())
        message = Log(
            level=_ROS_LEVEL.get(record.levelno, 20),
            name=str(getattr(record, 'component', record.name)).replace('/', '.'),
            msg=record.getMessage() + fields,
            file=record.filename,
            function=record.funcName or '',
            line=record.lineno,
        )
        message.stamp = wall_stamp(record.created)
        runtime.post(lambda: publisher.publish(message))

    log.add_sink(publish)
    runtime.executor.add_node(node)
    return node


def _follow_clock(node: Any, clock: SimClock, ticker: SimTicker) -> None:
    """Drive simulated time from the /clock topic (use_sim_time)."""
    from rosgraph_msgs.msg import Clock as ClockMessage

    def on_clock(message: ClockMessage) -> None:
        wall = message.clock.sec + message.clock.nanosec * 1e-9
        if clock.start_wall == 0.0:
            clock.start_wall = wall
        now = wall - clock.start_wall
        while (due := ticker.next_due()) is not None and due[0] <= now:
            ticker.run(*due)
        if now > clock.now():
            clock.set(now)

    node.create_subscription(ClockMessage, '/clock', on_clock, 10)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog='bess container', description=__doc__.split('\n')[0] if __doc__ else '')
    parser.add_argument('--site', required=True, help='site file')
    parser.add_argument('--process', default='', help='process group of the site file; default: all nodes')
    parser.add_argument('--node', action='append', default=[], help='only these nodes')
    parser.add_argument('--state', type=Path, required=True, help='folder for journals, logs, recordings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='override the site file')
    parser.add_argument('--bring-up', action='store_true', help='configure and activate the nodes in order')
    parser.add_argument('--ready-fd', type=int, default=-1, help='pipe to the supervisor, see Container.tell')
    parser.add_argument('--use-sim-time', action='store_true', help='follow the /clock topic')
    parser.add_argument('--supervised', action='store_true', help='end in order when the starting process is gone')
    parser.add_argument('--console', default='warning', choices=['off', *log.LEVELS], help='console log level')
    args, ros_args = parser.parse_known_args(argv)
    try:
        site = site_module.load(site_module.find(args.site), overrides=args.set, state=args.state)
    except site_module.SiteError as error:
        print(error, file=sys.stderr)
        return 2
    specs = site.select(args.process, args.node)
    if not specs:
        print(f'{args.site}: no node in process {args.process!r}; processes: {", ".join(site.processes)}',
              file=sys.stderr)
        return 2
    process = args.process or 'bess'
    args.state.mkdir(parents=True, exist_ok=True)
    log.setup(args.state / 'log', process, level=site.params.log_level, console=args.console)
    if site.params.priority:
        nice = priority.take(any(spec.role in priority.ACTING_ROLES for spec in specs))
        log.get(site.name).info('priority', process=process, nice=nice)
    # Worker threads decode frames while the control tick is due: give way sooner than the default 5 ms.
    sys.setswitchinterval(0.0005)
    parent = os.getppid()
    with Runtime(ros_args or None) as runtime:
        clock: Clock = SimClock() if args.use_sim_time else Clock()
        ticker: Any = SimTicker(clock) if isinstance(clock, SimClock) else None
        container = Container(runtime, site, process, args.state, clock=clock, ticker=ticker,
                              ready_fd=args.ready_fd)
        logs = _publish_logs(runtime, site, process)
        if isinstance(clock, SimClock):
            _follow_clock(logs, clock, ticker)
        alive = RealTicker(Clock(), runtime.post)
        alive.every(ALIVE_S, lambda _: None)
        if args.supervised:
            alive.every(PARENT_S, lambda _: runtime.stop() if os.getppid() != parent else None)
        administrator: Administrator | None = None
        try:
            container.make(specs)
            if not args.node and hosts(site, args.process):
                administrator = Administrator(container)
            alive.every(TELL_S, lambda _: container.tell_lives())
            gc.collect()  # before devices are read: it takes long enough for a first reading to grow old

            def settled() -> None:
                gc.freeze()  # what exists now stays: later collections need not walk it during a tick
                if args.bring_up:
                    alive.every(RETRY_S, lambda _: container.bring_up())

            if args.bring_up:
                container.start(settled)
            else:
                settled()
            log.get(site.name).info('process started', process=process, nodes=len(specs), pid=os.getpid())
            runtime.spin()
        finally:
            log.get(site.name).info('process ends', process=process, signal=runtime.signal)
            container.tell_lives()
            if administrator is not None:
                administrator.end()
            container.close()
            alive.stop()
            runtime.drop(logs)
            logging.getLogger(log.ROOT).handlers.clear()
    return 0


if __name__ == '__main__':
    sys.exit(main())
