"""The tutorial for driver plug-ins is true: its code is installed as a package and run on a real graph."""

from __future__ import annotations

import importlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from bess.msg import BatteryStatus, FaultArray
from bess.srv import SetContactor
from bess_core import plugins, qos
from bess_core import site as site_module
from bess_core.container import Container
from bess_core.runtime import Runtime
from bess_core.site import SiteError
from bess_drivers.device import DeviceError

TUTORIAL = Path(__file__).parents[2] / 'docs' / 'tutorial_driver.md'
BLOCK = re.compile(r'<!-- file: (\S+) -->\n```\w+\n(.*?)^```$', re.MULTILINE | re.DOTALL)
DEADLINE_S = 15.0


def blocks() -> dict[str, str]:
    return dict(BLOCK.findall(TUTORIAL.read_text(encoding='utf-8')))


@pytest.fixture(scope='module')
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tutorial as a reader would write them; `installed` holds the result of pip."""
    root = tmp_path_factory.mktemp('bess-example')
    for name, text in blocks().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    (root / 'bess_example' / '__init__.py').touch()
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index',
         '--target', str(root / 'installed'), str(root)], check=True, timeout=60)
    return root


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plug-in is on the path, and found by its entry point only."""
    monkeypatch.syspath_prepend(str(package / 'installed'))
    plugins.forget()
    yield package
    plugins.forget()
    for name in [n for n in sys.modules if n.split('.')[0] == 'bess_example']:
        del sys.modules[name]


class Device:
    """The simulated device of the tutorial, started as its reader does."""

    def __init__(self, program: Path, port: Path) -> None:
        self.process = subprocess.Popen([sys.executable, str(program), str(port)], stdout=subprocess.PIPE, text=True)

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def port(tmp_path: Path) -> Path:
    return tmp_path / 'rack'


@pytest.fixture
def device(installed: Path, port: Path) -> Iterator[Device]:
    made = Device(installed / 'acme_device.py', port)
    yield made
    made.close()


class Graph:
    """The site of the tutorial on a real executor, and what it says."""

    def __init__(self, site_file: Path, state: Path, port: Path, *settings: str) -> None:
        address = f'nodes.rack.address=serial:{port}'
        site = site_module.load(site_file, overrides=[address, *settings])
        self.runtime = Runtime(signals=False)
        self.container = Container(self.runtime, site, 'control', state)
        self.container.make(site.nodes)
        self.node = self.container.nodes[0]
        self.status: BatteryStatus | None = None
        self.faults: set[str] = set()
        self.node.create_subscription(BatteryStatus, '/garage/rack/status', self._on_status, qos.MEASUREMENT)
        self.node.create_subscription(FaultArray, '/garage/faults', self._on_faults, qos.FAULTS)

    def _on_status(self, message: BatteryStatus) -> None:
        self.status = message

    def _on_faults(self, message: FaultArray) -> None:
        self.faults = {f.id for f in message.faults}

    def until(self, condition: Callable[[], Any], what: str) -> None:
        assert self.runtime.spin_until(lambda: bool(condition()), DEADLINE_S), f'not within {DEADLINE_S} s: {what}'

    def close(self) -> None:
        self.container.close()
        self.runtime.close()


@pytest.fixture
def graph(installed: Path, port: Path, tmp_path: Path) -> Iterator[Graph]:
    made = Graph(installed / 'site.yaml', tmp_path, port, 'nodes.rack.period=0.05', 'nodes.rack.timeout_s=0.2')
    yield made
    made.close()


def test_the_promised_number_of_lines_is_true() -> None:
    lines = sum(1 for line in blocks()['bess_example/acme.py'].splitlines() if line.strip())
    assert f'one Python file of {lines} lines' in TUTORIAL.read_text(encoding='utf-8')
    assert f'a driver in {lines} lines' in (TUTORIAL.parents[1] / 'README.md').read_text(encoding='utf-8')


def test_the_examples_of_the_protocol_are_true() -> None:
    examples = re.findall(r'-> (.+)\*([0-9A-F]{2})$', TUTORIAL.read_text(encoding='utf-8'), re.MULTILINE)
    assert len(examples) == 3
    for text, check in examples:
        assert f'{sum(text.encode()) % 256:02X}' == check
    assert f"'{examples[1][0]}'" in blocks()['acme_device.py']


def test_the_plug_in_is_found_by_its_entry_point(installed: Path) -> None:
    assert 'acme' in site_module.known_types()
    site = site_module.load(installed / 'site.yaml')
    spec = site.node('rack')
    assert spec.role == 'bms'
    assert (spec.params.max_current, spec.params.period) == (80.0, 0.5)
    with pytest.raises(SiteError, match=r"rack.*parity is 'X', allowed N, E, O"):
        site_module.load(installed / 'site.yaml', overrides=['nodes.rack.address=serial:/dev/null?parity=X'])


def test_status_arrives_with_the_values_of_the_device(graph: Graph, device: Device) -> None:
    assert graph.node.trigger_configure()
    graph.until(lambda: graph.status is not None and graph.node.hardware_id, 'status and identity')
    status = graph.status
    assert status is not None
    assert status.quality == BatteryStatus.QUALITY_OK
    assert (status.voltage, status.current) == (51.2, -4.0), 'the device says + = discharging'
    assert status.power == pytest.approx(-204.8)
    assert status.soc == pytest.approx(0.80, abs=0.001)
    assert status.charge_full == 100.0
    assert status.temperature == 21.5
    assert status.max_discharge_power == pytest.approx(80.0 * 51.2)
    assert graph.node.hardware_id == 'SN0042'


def test_a_lost_device_is_a_fault_and_comes_back(graph: Graph, device: Device, installed: Path, port: Path) -> None:
    graph.node.trigger_configure()
    graph.until(lambda: graph.status is not None, 'status')
    device.close()
    graph.until(lambda: 'comm.disconnected' in graph.faults, 'fault')
    graph.until(lambda: graph.status.quality != BatteryStatus.QUALITY_OK, 'quality')
    again = Device(installed / 'acme_device.py', port)
    try:
        graph.until(lambda: not graph.faults and graph.status.quality == BatteryStatus.QUALITY_OK, 'recovery')
    finally:
        again.close()


def test_a_wrong_checksum_never_becomes_a_value(graph: Graph, port: Path, tmp_path: Path) -> None:
    program = tmp_path / 'corrupt.py'
    right = '(sum(text) % 256)'
    assert blocks()['acme_device.py'].count(right) == 1
    program.write_text(blocks()['acme_device.py'].replace(right, '(~sum(text) % 256)'))
    corrupt = Device(program, port)
    try:
        graph.node.trigger_configure()
        graph.until(lambda: 'comm.checksum' in graph.faults, 'fault')
        assert graph.status is None or graph.status.quality == BatteryStatus.QUALITY_INVALID
    finally:
        corrupt.close()


def test_random_answers_raise_only_device_errors(installed: Path) -> None:
    acme = importlib.import_module('bess_example.acme')
    rng = random.Random(5)
    battery = acme.AcmeBattery(acme.AcmeParams('serial:/dev/null'))
    words = ('V=51.2', 'I=nan', 'I=4', 'Q=80', 'Q=-1', 'F=100', 'F=0', 'T=', '=', 'V', ',', 'x=1e400')
    for _ in range(10_000):
        raw = rng.randbytes(rng.randrange(30))
        text = ' '.join(rng.sample(words, rng.randrange(8)))
        battery.ask = lambda *_, text=text: text
        for attempt in (lambda raw=raw: acme.whole_answer(raw + b'\r\n'), lambda: battery.read(1.0), battery.identify):
            try:
                attempt()
            except DeviceError:
                continue


@pytest.mark.parametrize('read_only', [False, True])
def test_contactor_order_reaches_the_device_unless_read_only(
        installed: Path, device: Device, port: Path, tmp_path: Path, read_only: bool) -> None:
    graph = Graph(installed / 'site.yaml', tmp_path, port, f'nodes.rack.read_only={str(read_only).lower()}')
    try:
        graph.node.trigger_configure()
        graph.until(lambda: graph.status is not None, 'status')
        client = graph.node.create_client(SetContactor, '/garage/rack/set_contactor')
        graph.until(client.service_is_ready, 'service')
        answer = client.call_async(SetContactor.Request(charge=True, discharge=False))
        graph.until(answer.done, 'answer')
        assert answer.result().accepted == (not read_only), answer.result().message
        if not read_only:
            assert device.said() == 'FET 1 0'
    finally:
        graph.close()


def test_the_command_checks_the_site(installed: Path) -> None:
    paths = [str(installed / 'installed'), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [sys.executable, '-m', 'bess_core.cli.main', 'up', str(installed / 'site.yaml'), '--check'],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '1 nodes in 1 processes' in done.stdout
