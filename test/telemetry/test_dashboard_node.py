"""The dashboard node on real DDS: topics reach the page's store, orders reach services."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

pytest.importorskip('rclpy', reason='needs ROS 2')

from rclpy.node import Node  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from bess.msg import (  # noqa: E402
    BatteryStatus,
    CellArray,
    DecisionStep,
    DecisionTrace,
    Fault,
    FaultArray,
    MeterStatus,
    SystemState,
)
from bess.srv import ClearFault, SetMode  # noqa: E402
from bess_core import qos  # noqa: E402
from bess_core.clock import Clock  # noqa: E402
from bess_core.context import NodeContext  # noqa: E402
from bess_core.convert import wall_stamp  # noqa: E402
from bess_core.params import check  # noqa: E402
from bess_core.runtime import Runtime  # noqa: E402
from bess_core.ticker import RealTicker  # noqa: E402
from bess_telemetry.auth import TOKEN_FILE  # noqa: E402
from bess_telemetry.dashboard_node import (  # noqa: E402
    DashboardNode,
    DashboardParams,
    battery_kinds,
)


def spec(name: str, type_: str, role: str = '', refs: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(name=name, type=type_, role=role, refs=refs)


SPECS = (
    spec('jbd1', 'jbd', 'bms'),
    spec('inv1', 'sunspec_inverter', 'converter'),
    spec('garage', 'unit', 'battery', ('jbd1', 'inv1')),
    spec('all', 'aggregate', 'battery', ('garage',)),
    spec('house', 'partition_child', 'battery', ('all',)),
    spec('self_consumption', 'self_consumption', 'mode'),
)


class Bench:
    """A dashboard node, and a peer node that plays the rest of the site."""

    def __init__(self, state_dir: Path, port: int = 0) -> None:
        self.runtime = Runtime(signals=False)
        self.clock = Clock()
        self.ticker = RealTicker(self.clock, self.runtime.post)
        self.ctx = NodeContext(
            namespace='/home', state_dir=state_dir, clock=self.clock, ticker=self.ticker,
            post=self.runtime.post, site=SimpleNamespace(nodes=SPECS),  # type: ignore[arg-type]
        )  # fmt: skip
        self.node = DashboardNode('dashboard', DashboardParams(port=port, call_timeout=1.0), self.ctx)
        self.peer = Node('peer', namespace='/home', start_parameter_services=False)
        for node in (self.node, self.peer):
            self.runtime.executor.add_node(node)

    def wait(self, condition: Any, what: str) -> None:
        assert self.runtime.spin_until(lambda: bool(condition()), 10.0), f'not within 10 s: {what}'

    def result(self, answer: Future[tuple[bool, str]]) -> tuple[bool, str]:
        self.wait(answer.done, 'answer')
        return answer.result()

    def stamp(self) -> Any:
        return wall_stamp(self.clock.wall())

    def close(self) -> None:
        self.node.close()
        self.ticker.stop()
        for node in (self.node, self.peer):
            self.runtime.executor.remove_node(node)
            node.destroy_node()
        self.runtime.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_a_port_in_use_is_said_and_it_starts_once_the_port_is_free(tmp_path: Path) -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        made = Bench(tmp_path, port=port)
        assert made.node.trigger_configure().name != 'SUCCESS'
        assert not made.node.url
        assert [f.id for f in made.node.faults.active if f'127.0.0.1:{port}' in f.text] == ['node.configure']
    try:
        assert made.node.trigger_configure().name == 'SUCCESS'
        assert made.node.url.endswith(f':{port}/')
    finally:
        made.close()


def test_topics_reach_the_view(bench: Bench, tmp_path: Path) -> None:
    peer = bench.peer
    battery = peer.create_publisher(BatteryStatus, 'garage/status', qos.MEASUREMENT)
    meter = peer.create_publisher(MeterStatus, 'em24/status', qos.MEASUREMENT)
    cells = peer.create_publisher(CellArray, 'jbd1/cells', qos.MEASUREMENT)
    trace = peer.create_publisher(DecisionTrace, 'power_manager/trace', qos.EVENT)
    faults = peer.create_publisher(FaultArray, 'faults', qos.FAULTS)
    state = peer.create_publisher(SystemState, 'system_state', qos.STATE)
    foreign = peer.create_publisher(BatteryStatus, '/other/battery/status', qos.MEASUREMENT)
    # Latched ones are sent before the dashboard is there.
    fault = Fault(
        id='x', severity=2, source='jbd1', since=bench.stamp(), count=1, active=True, text='t'
    )
    faults.publish(FaultArray(source='jbd1', faults=[fault]))
    state.publish(SystemState(state=SystemState.RUN, mode='self_consumption'))
    history = peer.create_publisher(SystemState, 'site_transitions', qos.TRANSITIONS)
    history.publish(SystemState(state=SystemState.SLEEP, mode='older'))

    assert bench.node.trigger_configure().name == 'SUCCESS'
    assert bench.node.trigger_activate().name == 'SUCCESS'

    def send() -> dict[str, Any]:
        status = BatteryStatus(power=-900.0, soc=0.5, limit_reasons=['bms: full'])
        status.header.stamp = bench.stamp()
        battery.publish(status)
        foreign.publish(status)
        reading = MeterStatus(active_power=400.0, phase_power=[100.0, 100.0, 200.0])
        reading.header.stamp = bench.stamp()
        meter.publish(reading)
        array = CellArray(voltages=[3.3, 3.4], temperatures=[20.0], balancing=[False, True])
        array.header.stamp = bench.stamp()
        cells.publish(array)
        step = DecisionStep(name='bms', before=-2.0, after=-1.0, bound=True, reason='cell 7')
        decision = DecisionTrace(battery='garage', asked=-2.0, sent=-1.0, steps=[step])
        decision.header.stamp = bench.stamp()
        trace.publish(decision)
        return bench.node.view.snapshot()

    def complete() -> bool:
        snap = send()
        parts = ('batteries', 'meters', 'cells', 'traces', 'faults')
        return all(snap[p] for p in parts) and snap['state']['state'] == 'Run'

    bench.wait(complete, 'all topics')
    snap = bench.node.view.snapshot()
    (garage,) = snap['batteries']  # not the one of another site
    assert (garage['name'], garage['kind'], garage['power'], garage['quality']) == (
        'garage',
        'unit',
        -900.0,
        'ok',
    )
    assert garage['limit_reasons'] == ['bms: full'] and garage['age'] < 2.0
    assert snap['meters'][0]['role'] == 'grid' and snap['meters'][0]['phase_power'] == [
        100.0,
        100.0,
        200.0,
    ]
    assert snap['cells'][0]['name'] == 'jbd1' and snap['cells'][0]['balancing'] == [False, True]
    assert 'limited to 1 W by bms: cell 7' in snap['traces'][0]['sentence']
    own = [f for f in snap['faults'] if f['source'] == 'jbd1']
    assert own[0]['severity_name'] == 'error' and own[0]['age'] < 60.0
    assert snap['modes'] == ['self_consumption']

    token = (tmp_path / TOKEN_FILE).read_text().strip()
    request = urllib.request.Request(
        f'{bench.node.url}api/state', headers={'Authorization': f'Bearer {token}'}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)['power_flow']['house']['power'] == 1300.0

    peer.destroy_publisher(state)
    bench.wait(lambda: not bench.node.view.snapshot()['state']['known'], 'state unknown')


def test_fast_topics_are_decimated(bench: Bench) -> None:
    assert bench.node.trigger_configure().name == 'SUCCESS'
    taken = [bench.node._due('battery', 'a') for _ in range(100)]
    assert taken == [True] + [False] * 99
    assert bench.node._due('battery', 'b')


def test_orders_reach_services(bench: Bench) -> None:
    asked: list[Any] = []

    def stop(_: Any, answer: Any) -> Any:
        asked.append('stop')
        answer.success, answer.message = True, 'sleeping'
        return answer

    def set_mode(request: Any, answer: Any) -> Any:
        asked.append(request.mode)
        answer.accepted, answer.message = False, 'no such mode'
        return answer

    def clear(request: Any, answer: Any) -> Any:
        asked.append(request.id)
        answer.accepted = True
        return answer

    bench.peer.create_service(Trigger, 'site/stop', stop)
    bench.peer.create_service(SetMode, 'site/set_mode', set_mode)
    bench.peer.create_service(ClearFault, 'jbd1/clear_fault', clear)
    assert bench.node.trigger_configure().name == 'SUCCESS'
    actions = bench.node._actions
    assert bench.result(actions.stop()) == (True, 'sleeping')
    assert bench.result(actions.set_mode('peak')) == (False, 'no such mode')
    assert bench.result(actions.clear_fault('jbd1', 'cell')) == (True, '')
    assert asked == ['stop', 'peak', 'cell']
    missing = bench.result(actions.start())
    assert missing == (False, '/home/site/start is not there within 1 s')


def test_configure_cleanup_configure(bench: Bench) -> None:
    urls = []
    for _ in range(2):
        assert bench.node.trigger_configure().name == 'SUCCESS'
        assert bench.node.trigger_activate().name == 'SUCCESS'
        urls.append(bench.node.url)
        waiting = bench.node._actions.start()
        with urllib.request.urlopen(f'{bench.node.url}healthz', timeout=10) as answer:
            assert answer.status == 200
        bench.node.trigger_deactivate()
        with urllib.request.urlopen(f'{bench.node.url}healthz', timeout=10) as answer:
            assert answer.status == 200  # also while the site sleeps
        bench.wait(lambda: bench.node._actions._calls, 'order in the executor')
        assert bench.node.trigger_cleanup().name == 'SUCCESS'
        assert waiting.result(0) == (False, 'the dashboard is being stopped')
        assert bench.node.url == ''
    assert all(urls)


def test_damaged_secrets_fail_configure_with_a_fault(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / 'dashboard-auth.json').write_text('{}')
    assert bench.node.trigger_configure().name == 'FAILURE'
    assert 'dashboard.auth' in [r.id for r in bench.node.faults.records]


def test_kinds_from_the_site_file() -> None:
    kinds = battery_kinds(SPECS)
    assert kinds['garage'] == 'unit' and kinds['all'] == 'aggregate' and kinds['jbd1'] == 'pack'
    assert kinds['house'] == 'partition'


def test_parameters_are_checked() -> None:
    assert [p.key for p in check(DashboardParams, {'port': 70000, 'hots': 'x'})] == ['port', 'hots']
    assert not check(DashboardParams, {'port': 0, 'host': '0.0.0.0'})
