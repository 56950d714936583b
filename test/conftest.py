"""Set-up of all tests: checked message fields, loopback only, a ROS domain of this process's own."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from ros_domain import claim_domain

if TYPE_CHECKING:
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.runtime import Runtime

DEADLINE_S = 10.0  # how long a condition may take to come true
STAND_BACK = 10  # nice value of what only computes
#: Whether this user may lower a nice value again that was raised (20 - RLIMIT_NICE is the lowest one).
MAY_RETURN = os.geteuid() == 0 or 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= os.getpriority(os.PRIO_PROCESS, 0)


# At import: rclpy and message classes read these once, and child processes inherit them.
_DOMAIN, _LOCK = claim_domain()
os.environ.update(
    ROS_DOMAIN_ID=str(_DOMAIN), ROS_PYTHON_CHECK_FIELDS='1', ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST')

# How long an example takes is told by the machine and what else it does, least of all by who stands back (below).
settings.register_profile('bess', deadline=None)
settings.load_profile('bess')


def pytest_configure(config: pytest.Config) -> None:
    """Markers."""
    config.addinivalue_line('markers', 'soak: long check; runs only with BESS_SOAK=1 (make soak)')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes long, unless asked for."""
    if os.environ.get('BESS_SOAK') == '1':
        return
    skip = pytest.mark.skip(reason='long check: make soak (BESS_SOAK=1)')
    for item in items:
        if item.get_closest_marker('soak'):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: collections, which each node test asks for, need not walk them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Property tests keep a core busy for seconds and wait for nothing: they let those go first that keep time."""
    if not getattr(getattr(item, 'obj', None), 'is_hypothesis_test', False) or not MAY_RETURN:
        return (yield)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, STAND_BACK)
    try:
        return (yield)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder of measured data, beside the repository or where BESS_SHARED says."""
    root = Path(os.environ.get('BESS_SHARED') or Path(__file__).resolve().parents[2] / 'shared')
    if not (root / 'data').is_dir():
        pytest.skip(f'no measured data at {root / "data"} (set BESS_SHARED)')
    return root / 'data'


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """rclpy, initialised, with an executor in this thread; `spin_until(condition, timeout_s)`."""
    from bess_core.runtime import Runtime

    with Runtime(signals=False) as made:
        yield made
    # Nodes live in reference cycles: until they are collected their lifecycle services stay on the graph, as
    # ghosts that the next test would find under the same names.
    gc.collect()


@dataclass
class Graph:
    """Nodes on real DDS in this process, and a plain peer node that plays everybody else."""

    runtime: Runtime
    clock: Clock
    ticker: Any
    ctx: NodeContext
    peer: Any
    nodes: list[Any] = field(default_factory=list)
    heard: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, cls: Any, name: str, params: Any = None, ctx: NodeContext | None = None) -> Any:
        """A node of this class, served by the executor. `params`: its parameter object, or a dict of values."""
        from bess_core.params import build

        values = build(cls.Params, params or {}) if params is None or isinstance(params, dict) else params
        ctx = ctx or self.ctx
        node = cls(name, values, ctx)
        ctx.nodes[name] = node
        self.nodes.append(node)
        self.runtime.executor.add_node(node)
        return node

    def up(self, *nodes: Any) -> None:
        """Configure all, then activate all."""
        for node in nodes:
            assert node.trigger_configure().name == 'SUCCESS', node.get_name()
        for node in nodes:
            assert node.trigger_activate().name == 'SUCCESS', node.get_name()

    def remove(self, node: Any) -> None:
        """End one node in order, as its process would."""
        node.close()
        self.nodes.remove(node)
        self.ctx.nodes.pop(node.get_name(), None)
        self.runtime.executor.remove_node(node)
        node.destroy_node()
        del node
        gc.collect()  # see `runtime`

    def wait(self, condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = DEADLINE_S) -> None:
        """Handle callbacks until the condition is true; fail when it does not come true in time."""
        done = self.runtime.spin_until(lambda: bool(condition()), timeout_s)
        assert done, f'not within {timeout_s} s: {what if isinstance(what, str) else what()}'

    def settle(self, seconds: float) -> None:
        """Handle callbacks for so long, where the point is that something does not happen meanwhile."""
        self.runtime.spin_until(lambda: False, seconds)

    def listen(self, message_type: Any, topic: str, qos: Any) -> list[Any]:
        """Messages of a topic (relative to the site) from now on; a publisher that is there has been found."""
        messages: list[Any] = []
        self.heard[topic] = messages
        subscription = self.peer.create_subscription(message_type, topic, messages.append, qos)
        if self.peer.get_publishers_info_by_topic(subscription.topic_name):
            self.wait(lambda: subscription.get_publisher_count() > 0, f'publisher of {topic}')
        return messages

    def publisher(self, message_type: Any, topic: str, qos: Any) -> Any:
        """A publisher of the peer; waits until somebody of this process listens."""
        publisher = self.peer.create_publisher(message_type, topic, qos)
        self.wait(lambda: publisher.get_subscription_count() > 0, f'somebody listens to {topic}')
        return publisher

    def call(self, srv_type: Any, name: str, request: Any = None, timeout_s: float = DEADLINE_S) -> Any:
        """The answer of a service (relative to the site)."""
        client = self.peer.create_client(srv_type, name)
        self.wait(client.service_is_ready, f'service {name}', timeout_s)
        future = client.call_async(request or srv_type.Request())
        self.wait(future.done, f'answer of {name}', timeout_s)
        self.peer.destroy_client(client)
        return future.result()

    def advance(self, seconds: float) -> None:
        """On simulated time: do what falls due within the next seconds, letting messages arrive in between."""
        end = self.clock.now() + seconds
        while (due := self.ticker.next_due()) is not None and due[0] <= end + 1e-9:
            self.ticker.run(*due)
            self.runtime.spin_until(lambda: False, 0.002)
        self.clock.set(max(end, self.clock.now()))  # type: ignore[attr-defined]

    def close(self) -> None:
        """End everything in order."""
        for node in reversed(self.nodes):
            node.close()
        self.ticker.stop()
        for bus in self.ctx.shared.get('buses', {}).values():
            if hasattr(bus, 'stop'):
                bus.stop()
        for node in (*reversed(self.nodes), self.peer):
            self.runtime.executor.remove_node(node)
            node.destroy_node()


def _graph(runtime: Runtime, state_dir: Path, clock: Clock, ticker: Any) -> Graph:
    from rclpy.node import Node

    from bess_core.context import NodeContext

    ctx = NodeContext('/site', state_dir, clock, ticker, runtime.post, heartbeat_s=0.1, diagnostics_s=0.2)
    peer = Node('peer', namespace='/site', start_parameter_services=False, enable_rosout=False)
    runtime.executor.add_node(peer)
    return Graph(runtime, clock, ticker, ctx, peer)


@pytest.fixture
def graph(runtime: Runtime, tmp_path: Path) -> Iterator[Graph]:
    """A graph on real time."""
    from bess_core.clock import Clock
    from bess_core.ticker import RealTicker

    clock = Clock()
    made = _graph(runtime, tmp_path, clock, RealTicker(clock, runtime.post))
    yield made
    made.close()


@pytest.fixture
def sim_graph(runtime: Runtime, tmp_path: Path) -> Iterator[Graph]:
    """A graph on simulated time: nothing falls due unless the test calls `advance`."""
    from bess_core.clock import SimClock
    from bess_core.ticker import SimTicker

    clock = SimClock(start_wall=1.8e9)
    made = _graph(runtime, tmp_path, clock, SimTicker(clock))
    yield made
    made.close()


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time as in Berlin: put forward on the last Sunday of March, back on that of October."""
    monkeypatch.setenv('TZ', 'CET-1CEST,M3.5.0,M10.5.0/3')
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def monotonic_deadline() -> Callable[[float], Callable[[], bool]]:
    """Makes "time is over" functions for tests without an executor."""
    def deadline(seconds: float = DEADLINE_S) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    return deadline
