"""A whole site in processes of its own, started with `bess up`, and a look at it from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node
from std_srvs.srv import Trigger

from bess.msg import DecisionTrace, SystemState
from bess.srv import CancelSchedule, ClearFault, GetStatus, ListSchedule, ScheduleSetCurrent, SetMode
from bess_core.observer import DEFAULT, SiteObserver
from bess_core.runtime import Runtime
from bess_sim.control_client import DeviceControl

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / 'config' / 'sites' / 'home_demo.yaml'
NAMESPACE = '/home'
TELEMETRY = ('recorder', 'dashboard')
START_S, END_S, ANSWER_S = 25.0, 20.0, 5.0
TARGET_W, NEAR_W, SETTLE_S = 20.0, 60.0, 12.0  # grid power that the demo site holds
INVERTERS = {'inverter_a': 'unit_a', 'inverter_b': 'unit_b'}
BATTERIES = ('unit_a', 'unit_b', 'all', 'house', 'grid')
#: All services that tests call. Their clients are made before the site is up: the middleware drops the answer
#: of a service that has not yet discovered its client, although the client sees the service as ready.
SERVICES: dict[str, Any] = {
    'site/start': Trigger, 'site/stop': Trigger, 'site/set_mode': SetMode,
    **{f'{node}/clear_fault': ClearFault for node in ('bms_a', 'bms_b')},
    **{f'{battery}/{name}': kind for battery in BATTERIES for name, kind in {
        'get_status': GetStatus, 'schedule_set_current': ScheduleSetCurrent, 'cancel_schedule': CancelSchedule,
        'list_schedule': ListSchedule}.items()},
}


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


def write_site(path: Path, *, without: Iterable[str] = (),
               edit: Callable[[dict[str, Any]], None] | None = None, source: Path = DEMO) -> Path:
    """The demo site (or another one) with free ports, without some nodes, and changed by `edit`."""
    data = yaml.safe_load(source.read_text(encoding='utf-8'))
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


def nodes_of(site: Path) -> set[str]:
    """Names of all nodes of a site file, with those that partitions make."""
    nodes = yaml.safe_load(site.read_text())['nodes']
    return set(nodes) | {child for node in nodes.values() for child in node.get('children', ())}


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
        self._watched = 0  # process whose waiting for a CPU is noted
        self.cpu_waits: list[tuple[float, float]] = []  # (monotonic s, s that its threads have waited)

    def __enter__(self) -> RunningSite:
        self._runtime = Runtime(signals=False)
        self._node = Node('site_test', start_parameter_services=False, enable_rosout=False)
        self._runtime.executor.add_node(self._node)
        for service, kind in SERVICES.items():
            self._clients[service] = self._node.create_client(kind, f'{NAMESPACE}/{service}')
        self.observer = SiteObserver(self._node, NAMESPACE, DEFAULT, self._take)
        self._discovered = 0.0
        # Last: whatever fails before this leaves no process behind.
        self.errors = open(self.state.parent / 'stderr.txt', 'w+b')
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command(self.site, self.state, *self._words), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=self.errors,
            start_new_session=True)
        try:
            if self._ready:
                self.wait_for(self.all_active, START_S, 'all nodes active')
                self.wait_for(lambda: self.state_is(SystemState.RUN), 5.0, 'site in RUN')
                groups = {line['process'] for line in self.events('process started')}
                self.wait_for(lambda: {line['process'] for line in self.events('nodes active')} >= groups, 10.0,
                              'the supervisor knows that all nodes are active')
                if 'meter' in self.nodes_in_file():  # the observer finds its topic by itself, at some time
                    self.wait_for(lambda: f'{NAMESPACE}/meter' in self.observer.meters, 10.0, 'the meter is heard')
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
        now = time.monotonic()
        if self._watched and (not self.cpu_waits or now - self.cpu_waits[-1][0] > 0.05):
            with suppress(OSError):
                self.cpu_waits.append((now, cpu_wait(self._watched)))
        if time.monotonic() - self._discovered > 0.2:
            self._discovered = time.monotonic()
            self.observer.discover()

    def wait_for(self, predicate: Callable[[], Any], timeout: float, what: str | Callable[[], str] = '') -> Any:
        """Receive until `predicate` is true; its value. Fails with `what`, then what the site said, otherwise."""
        found: list[Any] = []

        def done() -> bool:
            self._look()
            value = predicate()
            if value:
                found.append(value)
            return bool(value)

        if not self._runtime.spin_until(done, timeout):
            missed = what() if callable(what) else what or predicate
            raise AssertionError(f'not within {timeout:g} s: {missed}\n{self.words()}')
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
        return nodes_of(self.site)

    def all_active(self) -> bool:
        """Whether every node of the file says that it is active, now."""
        return self.all_active_but(())

    def all_active_but(self, resting: Collection[str]) -> bool:
        """Whether every other node of the file says that it is active, now."""
        return not set(self.not_active()) - set(resting)

    def not_active(self) -> dict[str, str]:
        """Nodes of the file that do not say now that they are active, and what was last heard of each."""
        now = time.monotonic()
        seen = {name.rsplit('/', 1)[1]: seen for name, seen in self.observer.nodes.items()}
        heard = {name: (seen[name].message.lifecycle, now - seen[name].at) for name in self.nodes_in_file() & set(seen)}
        silent = dict.fromkeys(self.nodes_in_file() - set(seen), 'never heard')
        return silent | {name: f'state {state}, {age:.2f} s ago' for name, (state, age) in heard.items()
                         if state != 3 or age >= 1.0}

    def watch_ticks(self) -> None:
        """From now on `traces` and `cpu_waits` are of the present control process."""
        self._watched = self.pid('control')
        self.traces.clear()
        self.cpu_waits.clear()

    def late_ticks(self, limit: float = 0.02) -> list[tuple[float, float]]:
        """Late control ticks since `watch_ticks` that the site itself is to blame for.

        (lateness, s that the process had waited for a CPU around it). A tick whose lateness beyond `limit` is
        no more than what other processes took from this one is theirs: the machine is shared.
        """
        out = []
        for at, trace in self.traces:
            if trace.jitter > limit:
                around = [wait for t, wait in self.cpu_waits if at - trace.jitter - 0.3 <= t <= at + 0.2]
                waited = around[-1] - around[0] if around else 0.0
                if trace.jitter - limit > waited:
                    out.append((trace.jitter, waited))
        return out

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
        """Call one of `SERVICES`."""
        assert SERVICES[service] is kind
        client = self._clients[service]
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

    def orders(self, inverter: str, since: float = 0.0) -> list[tuple[float, int]]:
        """(monotonic s, W) of the powers written to an inverter: 704 WSet.

        WSetRvrt and WSetRvrtTms have two registers as well, at higher addresses.
        """
        pairs = [w for w in self.device(inverter).writes() if len(w['values']) == 2]
        power_at = min((w['address'] for w in pairs), default=0)
        out = []
        for write in pairs:
            if write['time'] > since and write['address'] == power_at:
                high, low = write['values']
                out.append((float(write['time']), (high << 16 | low) - (1 << 32 if high & 0x8000 else 0)))
        return out

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


def cpu_wait(pid: int) -> float:
    """s that the threads of a process were ready to run and had no CPU."""
    waited = 0
    for task in Path(f'/proc/{pid}/task').iterdir():
        with suppress(OSError):
            waited += int((task / 'schedstat').read_text().split()[1])
    return waited * 1e-9


def lateness(traces: Sequence[tuple[float, DecisionTrace]]) -> str:
    """Lateness of control ticks against their grid, in words."""
    late = sorted(trace.jitter * 1e3 for _, trace in traces)
    if not late:
        return 'no ticks'
    p99 = late[int(0.99 * (len(late) - 1))]
    return f'{len(late)} ticks, late p50 {late[len(late) // 2]:.1f} ms, p99 {p99:.1f} ms, max {late[-1]:.1f} ms'
