"""`ros2 launch` on the demo site: all up, what dies or hangs comes back, and everything ends in order."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Not `launch`: without the real one that name is the folder launch/ of this repository.
pytest.importorskip('ros2launch', reason='ros2 launch is not installed (it has no wheel; part of a ROS 2 distribution)')

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = REPOSITORY / 'config' / 'sites' / 'home_demo.yaml'
ROS2 = (sys.executable, '-c', 'import sys; from ros2cli.cli import main; sys.exit(main())')
START_S, END_S = 40.0, 40.0

pytestmark = pytest.mark.timeout(240)


def settings() -> str:
    """Free ports for the demo site, and a short patience with silent nodes."""
    spec = importlib.util.spec_from_file_location('check_wheel', REPOSITORY / 'tools' / 'check_wheel.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    site = yaml.safe_load(SITE.read_text(encoding='utf-8'))
    return ' '.join([*module.moved(site), 'site.heartbeat_timeout=2.0'])


class Launched:
    """A running `ros2 launch`."""

    def __init__(self, file: str, folder: Path, *arguments: str) -> None:
        self.output = folder / 'output.txt'
        with self.output.open('w') as output:
            self.process = subprocess.Popen(
                [*ROS2, 'launch', str(REPOSITORY / 'launch' / file), *arguments], stdout=output, stderr=output,
                env={**os.environ, 'ROS_LOG_DIR': str(folder / 'ros')}, start_new_session=True)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def pids(self, name: str) -> list[int]:
        """Process ids of all lives of a process, the present one last."""
        return [int(n) for n in re.findall(rf'\[{name}-\d+\]: process started with pid \[(\d+)\]', self.text)]

    def ups(self, name: str) -> int:
        """How often a group was up."""
        return len(re.findall(rf'\[{name}_watchdog-\d+\] {name}: \d+ nodes up', self.text))

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f'not within {timeout_s} s: {what}\n{self.text}'
            time.sleep(0.05)

    def trigger(self, service: str) -> bool:
        """Call a service of std_srvs/Trigger."""
        done = subprocess.run([*ROS2, 'service', 'call', service, 'std_srvs/srv/Trigger'], capture_output=True,
                              text=True, timeout=START_S, check=False)
        return 'success=True' in done.stdout

    def interrupt(self) -> int:
        """Ctrl-C as a terminal does it, to all processes of the group; exit code of launch."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.wait(lambda: self.process.poll() is not None, 'launch ends', END_S)
        return self.process.returncode


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts launch files; nothing is left running."""
    running: list[Launched] = []

    def start(file: str, *arguments: str) -> Launched:
        folder = tmp_path / f'launch{len(running)}'
        folder.mkdir()
        running.append(Launched(file, folder, *arguments))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


def gone(pid: int) -> bool:
    """Whether no such process is left."""
    return not Path(f'/proc/{pid}').exists()


def test_a_site_comes_up_recovers_and_ends_in_order(launched: Callable[..., Launched], tmp_path: Path) -> None:
    site = launched('site.launch.py', 'site:=home_demo', f'state:={tmp_path}', f'set:={settings()}')
    site.wait(lambda: site.ups('control') == 1 and site.ups('telemetry') == 1, 'all nodes up', START_S)

    os.kill(site.pids('control')[-1], signal.SIGKILL)
    site.wait(lambda: site.ups('control') == 2, 'control is up again after it was killed', START_S)

    hanging = site.pids('control')[-1]
    os.kill(hanging, signal.SIGSTOP)
    site.wait(lambda: site.ups('control') == 3, 'control is up again after it hung', START_S)
    assert gone(hanging)
    assert len(site.pids('telemetry')) == 1  # the other group went on

    # A restart of the site: both groups end, control first, and come back; the devices stay.
    control, telemetry = site.pids('control')[-1], site.pids('telemetry')[-1]
    before = len(site.text)
    assert site.trigger('/home/site/restart'), site.text
    site.wait(lambda: site.ups('control') == 4 and site.ups('telemetry') == 2, 'both groups are up again', START_S)
    assert gone(control) and gone(telemetry)
    ended = re.findall(r'\[(control|telemetry|bench)-\d+\]: process has finished cleanly', site.text[before:])
    assert ended == ['control', 'telemetry'], site.text[before:]
    assert len(site.pids('control')) == 4 and len(site.pids('telemetry')) == 2, 'once'

    before = len(site.text)
    assert site.interrupt() == 0, site.text
    ended = re.findall(r'\[(control|telemetry|bench)-\d+\]: process has finished cleanly', site.text[before:])
    assert ended == ['control', 'telemetry', 'bench'], site.text[before:]
    assert 'has died' not in site.text[before:]
    assert 'failed to terminate' not in site.text[before:]
    for name in ('control', 'telemetry', 'bench', 'control_watchdog', 'telemetry_watchdog'):
        assert all(gone(pid) for pid in site.pids(name)), name


def test_a_state_folder_is_used_once(launched: Callable[..., Launched], tmp_path: Path) -> None:
    arguments = ('site:=home_demo', f'state:={tmp_path}', f'set:={settings()}', 'node:=recorder', 'sim:=false')
    first = launched('site.launch.py', *arguments)
    first.wait(lambda: first.ups('telemetry') == 1, 'recorder is up', START_S)
    assert not first.pids('bench') and not first.pids('control')
    second = launched('site.launch.py', *arguments)
    assert second.process.wait(START_S) == 1
    assert 'process started' not in second.text
    assert first.interrupt() == 0, first.text


def test_an_unusable_site_is_refused_and_nothing_started(launched: Callable[..., Launched], tmp_path: Path) -> None:
    site = launched('site.launch.py', 'site:=home_demo', f'state:={tmp_path}', 'set:=nodes.meter.perod=1.0')
    assert site.process.wait(START_S) == 1
    assert 'nodes.meter.perod' in site.text
    assert 'process started' not in site.text


def test_one_driver_with_its_simulated_device(launched: Callable[..., Launched], tmp_path: Path) -> None:
    driver = launched('driver.launch.py', 'site:=home_demo', 'node:=meter', 'sim:=true', f'state:={tmp_path}',
                      f'set:={settings()}')
    driver.wait(lambda: driver.ups('control') == 1, 'driver is up', START_S)
    assert 'control: 1 nodes up' in driver.text
    assert len(driver.pids('bench')) == 1
    assert driver.interrupt() == 0, driver.text
    assert 'has died' not in driver.text
