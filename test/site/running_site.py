"""A whole site in processes of its own, started with `bess up`, and a look at it from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

from bess.msg import DecisionTrace, SystemState
from bess_core.observer import DEFAULT, SiteObserver
from bess_core.runtime import Runtime
from bess_sim.control_client import ControlError, DeviceControl

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / 'config' / 'sites' / 'home_demo.yaml'
NAMESPACE = '/home'
TELEMETRY = ('recorder', 'dashboard')
START_S, END_S, ANSWER_S = 25.0, 20.0, 5.0
TARGET_W, NEAR_W, SETTLE_S = 20.0, 60.0, 12.0  # grid power that the demo site holds
INVERTERS = {'inverter_a': 'unit_a', 'inverter_b': 'unit_b'}


def free_ports(count: int) -> list[int]:
    """Ports that are free at present; held together, so that they differ."""
    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.bind(('127.0.0.1', 0))
        return [int(holder.getsockname()[1]) for holder in holders]
    finally:
        for holder in holders:
            holder.close()


def write_site(path: Path, *, without: Iterable[str] = (), edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """The demo site with free ports, without some nodes, and changed by `edit`."""
    data = yaml.safe_load(DEMO.read_text(encoding='utf-8'))
    for name in without:
        del data['nodes'][name]
    devices = data['simulation']['devices']
    on_tcp = [name for name, device in devices.items() if device['address'].startswith('tcp:')]
    *ports, page = free_ports(len(on_tcp) + 1)
    for name, port in zip(on_tcp, ports, strict=True):
        address = f'tcp://127.0.0.1:{port}'
        assert data['nodes'][name]['address'] == devices[name]['address']
        data['nodes'][name]['address'] = devices[name]['address'] = address
    if 'dashboard' in data['nodes']:
        data['nodes']['dashboard']['port'] = page
    if edit is not None:
        edit(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding='utf-8')
    return path


def command(site: Path, state: Path, *words: str) -> list[str]:
    """`bess up` of a site file."""
    return [sys.executable, '-m', 'bess_core.cli.main', 'up', str(site), '--state', str(state), '--table', 'off',
            '--json', *words]


class RunningSite:
    """`bess up` in a process of its own, observed over DDS and at the devices. A context manager.

    Nothing is received while the test does something else than `wait_for`, `run_for` or `call`.
    """

    def __init__(self, folder: Path, *words: str, without: Sequence[str] = (),
                 edit: Callable[[dict[str, Any]], None] | None = None, ready: bool = True) -> None:
        self.state = folder / 'state'
        self.site = write_site(folder / 'site.yaml', without=without, edit=edit)
        self._words, self._ready = words, ready
        self._controls: dict[str, DeviceControl] = {}
        self._clients: dict[str, Any] = {}
        self._said = ''
        self.traces: list[tuple[float, DecisionTrace]] = []  # (monotonic s of arrival, trace)
        self.faults_seen: set[str] = set()

    def __enter__(self) -> RunningSite:
        self.errors = open(self.state.parent / 'stderr.txt', 'w+b')
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command(self.site, self.state, *self._words), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=self.errors,
            start_new_session=True)
        self._runtime = Runtime(signals=False)
        self._node = Node('site_test', start_parameter_services=False, enable_rosout=False)
        self._runtime.executor.add_node(self._node)
        self.observer = SiteObserver(self._node, NAMESPACE, DEFAULT, self._take)
        self._discovered = 0.0
        try:
            if self._ready:
                self.wait_for(self.all_active, START_S, 'all nodes active')
                self.wait_for(lambda: self.state_is(SystemState.RUN), 5.0, 'site in RUN')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process.poll() is None:
                self.end()
        finally:
            for control in self._controls.values():
                control.close()
            self._runtime.executor.remove_node(self._node)
            self._node.destroy_node()
            self._runtime.close()
            self.errors.close()

    def end(self, number: int = signal.SIGINT) -> tuple[int, dict[str, Any]]:
        """Ask it to end; exit code and the summary of its last line. Kills what does not end and fails."""
        pids = self.own_pids()
        self.process.send_signal(number)
        return self.ended(pids)

    def ended(self, pids: Sequence[int] = (), timeout: float = END_S) -> tuple[int, dict[str, Any]]:
        """Wait for the end; as `end`."""
        try:
            out, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for pid in (*pids, self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.communicate()
            raise AssertionError(f'bess up does not end\n{self.words()}') from None
        left = [pid for pid in pids if alive(pid)]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f'processes {left} outlive bess up\n{self.words()}'
        self._said = out.decode()
        return self.process.returncode, json.loads(self._said.splitlines()[-1])

    # -- watching ----------------------------------------------------------------------------------

    def _take(self, _: str, message: Any) -> None:
        if isinstance(message, DecisionTrace):
            self.traces.append((time.monotonic(), message))
        elif hasattr(message, 'faults'):
            self.faults_seen.update(f'{message.source}/{f.id}' for f in message.faults)

    def _look(self) -> None:
        if time.monotonic() - self._discovered > 0.2:
            self._discovered = time.monotonic()
            self.observer.discover()

    def wait_for(self, predicate: Callable[[], Any], timeout: float, what: str = '') -> Any:
        """Receive until `predicate` is true; its value. Fails with what the site said otherwise."""
        found: list[Any] = []

        def done() -> bool:
            self._look()
            value = predicate()
            if value:
                found.append(value)
            return bool(value)

        if not self._runtime.spin_until(done, timeout):
            raise AssertionError(f'not within {timeout:g} s: {what or predicate}\n{self.words()}')
        return found[-1]

    def run_for(self, seconds: float) -> None:
        """Receive for so long."""
        end = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() >= end, seconds + 5.0)

    def holds(self, predicate: Callable[[], Any], seconds: float, what: str = '') -> None:
        """`predicate` stays true for so long."""
        end = time.monotonic() + seconds

        def failed_or_over() -> bool:
            assert predicate(), f'{what or predicate}\n{self.words()}'
            return time.monotonic() >= end

        self.wait_for(failed_or_over, seconds + 5.0)

    def words(self) -> str:
        """What is known, for messages of failed tests."""
        lines = [f'exit code {self.process.poll()}, faults {self.fault_ids()}']
        seen = next(iter(self.observer.states.values()), None)
        if seen is not None:
            lines.append(f'state {seen.message.state} because {seen.message.cause}; missing {seen.message.missing}')
        if self.traces:
            lines.append(f'decision: {self.traces[-1][1].text}')
        with suppress(OSError, ValueError):
            self.errors.flush()
            lines.append((self.state.parent / 'stderr.txt').read_text()[-3000:])
        return '\n'.join(lines)

    def nodes_in_file(self) -> set[str]:
        """Names of all nodes, with those that partitions make."""
        nodes = yaml.safe_load(self.site.read_text())['nodes']
        children = {child for node in nodes.values() for child in node.get('children', ())}
        return set(nodes) | children

    def all_active(self) -> bool:
        """Whether every node of the file says that it is active, now."""
        now = time.monotonic()
        active = {name.rsplit('/', 1)[1] for name, seen in self.observer.nodes.items()
                  if seen.message.lifecycle == 3 and now - seen.at < 1.0}
        return active >= self.nodes_in_file()

    def heard_since(self, node: str, moment: float) -> bool:
        """Whether a node has given a sign of life after this monotonic time."""
        seen = self.observer.nodes.get(f'{NAMESPACE}/{node}')
        return seen is not None and seen.at > moment

    def site_state(self) -> SystemState | None:
        """Last state of the site."""
        seen = self.observer.states.get(NAMESPACE)
        return seen.message if seen is not None else None

    def state_is(self, state: int) -> bool:
        """Whether the site is in this state."""
        known = self.site_state()
        return known is not None and known.state == state

    def meter(self) -> Any:
        """Last message of the grid meter."""
        return self.observer.meters[f'{NAMESPACE}/meter'].message

    def battery(self, name: str) -> Any:
        """Last status of a battery."""
        return self.observer.batteries[f'{NAMESPACE}/{name}'].message

    def converter(self, name: str) -> Any:
        """Last status of an inverter."""
        return self.observer.converters[f'{NAMESPACE}/{name}'].message

    def trace(self) -> DecisionTrace:
        """Last decision."""
        return self.traces[-1][1]

    def faults(self, source: str) -> dict[str, Any]:
        """Faults of a node that are active now, by id."""
        return {f.id: f for _, f in self.observer.faults if f.source == source and f.active}

    def fault_ids(self) -> list[str]:
        """All active faults as source/id."""
        return sorted(f'{f.source}/{f.id}' for _, f in self.observer.faults if f.active)

    # -- acting ------------------------------------------------------------------------------------

    def call(self, kind: Any, service: str, timeout: float = ANSWER_S, **fields: Any) -> Any:
        """Call a service of the site."""
        client = self._clients.get(service)
        if client is None:
            client = self._clients[service] = self._node.create_client(kind, f'{NAMESPACE}/{service}')
        self.wait_for(client.service_is_ready, timeout, f'service {service}')
        future = client.call_async(kind.Request(**fields))
        self.wait_for(future.done, timeout, f'answer of {service}')
        return future.result()

    def device(self, name: str) -> DeviceControl:
        """Control socket of a simulated device, or 'world'."""
        if name not in self._controls:
            self._controls[name] = DeviceControl(self.state / 'sim' / f'{name}.sock')
        return self._controls[name]

    def inject(self, device: str, fault: str, value: float | None = None, **fields: Any) -> None:
        """Switch a fault on."""
        self.device(device).inject(fault, value, **fields)

    def clear(self, device: str) -> None:
        """Switch all faults of a device off."""
        self.device(device).clear()

    def world(self) -> dict[str, Any]:
        """What the physics know now."""
        return self.device('world').sample()

    def inverter_powers(self) -> dict[str, float]:
        """W at the inverters, + = charging, as the physics know it."""
        units = self.world()['units']
        return {name: float(unit['inverter']['active_power']) for name, unit in units.items()}

    def battery_power(self) -> float:
        """W of all inverters together."""
        return sum(self.inverter_powers().values())

    def at_zero(self, tolerance: float = 15.0) -> bool:
        """Whether all inverters rest."""
        return all(abs(power) <= tolerance for power in self.inverter_powers().values())

    def grid_power(self) -> float:
        """W at the grid connection as the physics know it, + = import."""
        return float(sum(self.world()['meter']['phase_power']))

    # -- processes ---------------------------------------------------------------------------------

    def events(self, event: str, log: str = 'supervisor') -> list[dict[str, Any]]:
        """Lines of a log with this event."""
        path = self.state / 'log' / f'{log}.jsonl'
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]
        return [line for line in lines if line['event'] == event]

    def starts(self, group: str) -> list[int]:
        """Process ids that a group has had, in order."""
        return [int(line['pid']) for line in self.events('process started') if line.get('process') == group]

    def pid(self, group: str) -> int:
        """Present process id of a group."""
        return self.starts(group)[-1]

    def bench(self) -> dict[str, Any]:
        """The bench's state file."""
        return dict(json.loads((self.state / 'sim' / 'bench.json').read_text()))

    def own_pids(self) -> list[int]:
        """Every process that this site has started and that lives."""
        pids = [int(line['pid']) for line in self.events('process started')]
        with suppress(OSError, ValueError):
            bench = self.bench()
            pids += [bench['pid'], *(device['pid'] for device in bench['devices'].values())]
        return [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except OSError:
        return False


def near_target(site: RunningSite) -> bool:
    """Whether the grid power is where self-consumption wants it, as the physics know it."""
    return abs(site.grid_power() - TARGET_W) <= NEAR_W


def late_ticks(traces: Sequence[tuple[float, DecisionTrace]]) -> dict[str, float]:
    """Lateness of control ticks against their grid, in ms."""
    late = sorted(trace.jitter * 1e3 for _, trace in traces)
    if not late:
        return {'ticks': 0.0, 'p50': 0.0, 'p99': 0.0, 'max': 0.0, 'over_20': 0.0}
    return {'ticks': float(len(late)), 'p50': late[len(late) // 2], 'p99': late[int(0.99 * (len(late) - 1))],
            'max': late[-1], 'over_20': float(sum(value > 20.0 for value in late))}

