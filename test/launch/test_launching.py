"""What launch is told to start, and the two helpers it starts: pure functions and real processes, no launch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from bess.msg import Heartbeat, SystemState
from bess_core import launching, qos
from bess_core.convert import wall_stamp
from bess_core.launching import SiteError
from bess_core.site import load
from bess_core.watchdog import BRING_UP_S, Watch
from bess_sim.plant_config import BenchConfig

DEADLINE_S = 20.0
INACTIVE, ACTIVE, UNCONFIGURED = 2, 3, 1


def value(command: tuple[str, ...], option: str) -> str:
    """What follows an option."""
    return command[command.index(option) + 1]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f'not within {timeout_s} s: {what}'
        time.sleep(0.01)


# -- the plan ------------------------------------------------------------------------------------


def test_every_node_of_the_site_is_in_one_process_in_bring_up_order(tmp_path: Path) -> None:
    plan = launching.plan('home_demo', state=str(tmp_path))
    assert tuple(g.name for g in plan.groups) == plan.site.processes
    for group in plan.groups:
        assert group.nodes == tuple(n.name for n in plan.site.nodes if n.process == group.name)
    assert sum(len(g.nodes) for g in plan.groups) == len(plan.site.nodes)


def test_container_and_watchdog_are_told_the_same(tmp_path: Path) -> None:
    plan = launching.plan('home_demo', state=str(tmp_path), settings='nodes.meter.period=0.2 site.log_level=debug',
                          console='info', python='/usr/bin/python3')
    for group in plan.groups:
        assert group.container[:3] == ('/usr/bin/python3', '-m', 'bess_core.container')
        assert group.watchdog[:3] == ('/usr/bin/python3', '-m', 'bess_core.watchdog')
        for command in (group.container, group.watchdog):
            assert Path(value(command, '--site')).is_absolute()
            assert value(command, '--state') == str(tmp_path)
            assert value(command, '--process') == group.name
            assert [command[i + 1] for i, word in enumerate(command) if word == '--set'] == [
                'nodes.meter.period=0.2', 'site.log_level=debug']
            assert '--supervised' in command
            assert '--node' not in command
        assert '--bring-up' in group.container
        assert value(group.container, '--console') == 'info'
    assert plan.site.params.log_level == 'debug'


def test_simulated_devices_end_last_and_read_the_section_of_the_site(tmp_path: Path) -> None:
    plan = launching.plan('home_demo', state=str(tmp_path))
    assert plan.bench is not None
    left_over = plan.bench.folder / 'old.sock'
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    plan.bench.prepare()
    assert not left_over.exists()
    assert str(plan.bench.file) in plan.bench.command
    section = json.loads(plan.bench.file.read_text())['simulation']
    assert set(BenchConfig.model_validate(section).devices) == set(plan.site.simulation['devices'])
    assert str(tmp_path) in section['devices']['bms_a']['address']  # ${state} is filled in
    assert plan.stop_s == launching.STOP_S * (len(plan.groups) + 1)


def test_without_simulated_devices(tmp_path: Path) -> None:
    assert launching.plan('home_demo', state=str(tmp_path), sim=False).bench is None


def test_one_node_only(tmp_path: Path) -> None:
    plan = launching.plan('home_demo', state=str(tmp_path), node='recorder')
    (group,) = plan.groups
    assert (group.name, group.nodes) == ('telemetry', ('recorder',))
    assert value(group.container, '--node') == value(group.watchdog, '--node') == 'recorder'


def test_state_folder_of_a_site_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    assert launching.plan('home_demo').state == tmp_path / 'bess' / 'home_demo'


def test_a_site_read_elsewhere_gives_the_same_plan(tmp_path: Path) -> None:
    plan = launching.plan('home_demo', state=str(tmp_path))
    site = load(plan.site.path, variables={'state': str(tmp_path)})
    assert launching.plan_site(site, tmp_path).groups == plan.groups


@pytest.mark.parametrize('arguments, said', [
    ({'site': 'no_such_site'}, 'no such site file'),
    ({'site': 'home_demo', 'node': 'metre'}, "no node 'metre'; nodes: meter"),
    ({'site': 'home_demo', 'settings': 'nodes.meter.period="0.1'}, 'No closing quotation'),
    ({'site': 'home_demo', 'settings': 'nodes.meter.perod=0.1'}, 'perod'),
])
def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SiteError, match=said.replace('.', r'\.')):
        launching.plan(**arguments, state=str(tmp_path))


@pytest.mark.parametrize('text, meant', [('true', True), ('True', True), ('1', True), ('false', False), (' 0 ', False)])
def test_booleans(text: str, meant: bool) -> None:
    assert launching.boolean('sim', text) is meant


@pytest.mark.parametrize('text', ['', 'yes', 'off', '2'])
def test_what_is_no_boolean_is_refused(text: str) -> None:
    with pytest.raises(SiteError, match='sim:=.*must be true or false'):
        launching.boolean('sim', text)


# -- the watchdog --------------------------------------------------------------------------------


def test_watch_gives_a_new_process_time_and_then_only_the_timeout() -> None:
    watch = Watch(['meter', 'site'], 4.0, now=100.0)
    assert watch.missing() == ['meter', 'site']
    assert watch.silent(100.0 + BRING_UP_S) == []
    assert watch.silent(100.1 + BRING_UP_S) == ['meter', 'site']
    watch.beat('meter', UNCONFIGURED, 110.0)
    assert watch.missing() == ['meter', 'site']
    watch.beat('meter', INACTIVE, 111.0)
    watch.beat('stranger', ACTIVE, 111.0)
    assert watch.missing() == ['site']
    watch.beat('site', ACTIVE, 112.0)
    assert watch.missing() == []
    assert watch.silent(115.0) == []
    assert watch.silent(115.5) == ['meter']
    assert watch.silent(116.5) == ['meter', 'site']


def test_a_watchdog_that_stood_still_itself_takes_nobody_for_silent() -> None:
    watch = Watch(['meter'], 4.0, now=100.0)
    watch.beat('meter', ACTIVE, 110.0)
    watch.excuse(6.0, 116.1)
    assert watch.silent(116.1) == []
    assert watch.silent(120.2) == ['meter']



@pytest.fixture
def processes() -> Any:
    """Starts processes and ends those that are left."""
    started: list[subprocess.Popen[Any]] = []

    def start(*command: str, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen([sys.executable, *command], **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


SITE = """
site: {name: watched, heartbeat_timeout: 0.5}
nodes:
  meter: {type: carlo_gavazzi, address: 'tcp://127.0.0.1:1'}
"""


@pytest.fixture
def watchdog(tmp_path: Path, processes: Any, graph: Any) -> Any:
    """A running watchdog of one node, and the function that beats for that node."""
    site = tmp_path / 'watched.yaml'
    site.write_text(SITE)
    output: IO[str]
    with (tmp_path / 'output.txt').open('w') as output:
        process = processes('-m', 'bess_core.watchdog', '--site', str(site), '--process', 'control',
                            '--state', str(tmp_path), stdout=output, stderr=output)
    heart = graph.publisher(Heartbeat, '/watched/heartbeat', qos.EVENT)
    graph.ticker.every(0.05, lambda _: heart.publish(Heartbeat(node='meter', lifecycle=ACTIVE)) if beating else None)
    beating = [True]
    graph.wait(lambda: 'control: 1 nodes up' in (tmp_path / 'output.txt').read_text(), 'node is up', DEADLINE_S)
    return process, beating.clear, tmp_path / 'output.txt'


def test_watchdog_gives_a_silent_process_up(watchdog: Any, graph: Any) -> None:
    process, stop_beating, output = watchdog
    assert process.poll() is None
    stop_beating()
    graph.wait(lambda: process.poll() is not None, 'watchdog ends', DEADLINE_S)
    assert process.returncode == launching.RESTART
    assert 'control: nodes are silent: meter' in output.read_text()


def test_watchdog_says_that_the_site_restarts(watchdog: Any, graph: Any) -> None:
    process, _, output = watchdog
    state = graph.publisher(SystemState, '/watched/system_state', qos.STATE)
    before = SystemState(state=SystemState.RESTART, cause='earlier')  # that one is why the process was started
    before.header.stamp = wall_stamp(time.time() - 60.0)
    run = SystemState(state=SystemState.RUN)
    run.header.stamp = wall_stamp(time.time())
    for message in (before, run):
        state.publish(message)
        graph.settle(1.3)
        assert process.poll() is None
    told = time.monotonic()
    message = SystemState(state=SystemState.RESTART, cause='by operator')
    message.header.stamp = wall_stamp(time.time())
    state.publish(message)
    graph.wait(lambda: process.poll() is not None, 'watchdog ends', DEADLINE_S)
    assert process.returncode == launching.SITE_RESTART
    assert time.monotonic() - told >= 1.0, 'all has gone to zero meanwhile'
    assert 'control: the site restarts' in output.read_text()


def test_watchdog_ends_well_on_a_signal(watchdog: Any, graph: Any) -> None:
    process, _, output = watchdog
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    graph.wait(lambda: process.poll() is not None, 'watchdog ends', DEADLINE_S)
    assert process.returncode == 0
    assert 'Traceback' not in output.read_text()


def test_watchdog_refuses_an_unusable_site(tmp_path: Path, processes: Any) -> None:
    process = processes('-m', 'bess_core.watchdog', '--site', 'no_such_site', '--state', str(tmp_path),
                        stderr=subprocess.PIPE, text=True)
    assert 'no such site file' in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 2


# -- holding a command ---------------------------------------------------------------------------

WORKER = """
import pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
def end(number, _):
    file.write_text(f'signal {number}')
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
file.write_text('ready')
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def held(tmp_path: Path, processes: Any) -> tuple[subprocess.Popen[Any], Path]:
    """A held command that runs, and the file in which it says what it got."""
    file = tmp_path / 'said'
    process = processes('-m', 'bess_core.hold', sys.executable, '-c', WORKER, str(file), start_new_session=True)
    wait_for(lambda: file.exists() and file.read_text() == 'ready', 'command runs')
    return process, file


def test_ctrl_c_does_not_end_a_held_command_and_sigterm_does(held: tuple[subprocess.Popen[Any], Path]) -> None:
    process, file = held
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    process.send_signal(signal.SIGINT)  # what launch does
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 7
    assert file.read_text() == f'signal {int(signal.SIGTERM)}'


def test_a_held_command_ends_with_the_process_that_started_it(tmp_path: Path, processes: Any) -> None:
    file = tmp_path / 'said'
    starter = ('import subprocess, sys, time\n'
               'subprocess.Popen(sys.argv[1:])\n'
               'time.sleep(600)\n')
    process = processes('-c', starter, sys.executable, '-m', 'bess_core.hold', sys.executable, '-c', WORKER, str(file))
    wait_for(lambda: file.exists() and file.read_text() == 'ready', 'command runs')
    process.kill()
    process.wait()
    wait_for(lambda: file.read_text() == f'signal {int(signal.SIGTERM)}', 'command was ended')


@pytest.mark.parametrize('source, code', [('pass', 0), ('raise SystemExit(5)', 5),
                                          ('import os; os.kill(os.getpid(), 9)', 128 + 9)])
def test_exit_code_of_a_held_command(processes: Any, source: str, code: int) -> None:
    assert processes('-m', 'bess_core.hold', sys.executable, '-c', source).wait(DEADLINE_S) == code
