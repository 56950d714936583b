"""The whole demo site with its simulated devices: start, jitter, memory, meter step to inverter write."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bess_core.supervisor import memory_pss_mb
from bess_sim.control_client import DeviceControl

from .figures import Figure, percentile

SITE = Path(__file__).parent.parent / 'config' / 'sites' / 'home_demo.yaml'
STEPS, BASE_W, STEP_W, PAUSE_S = 50, 700.0, 1500.0, 3.0
CALM_S = 30.0
METER_POLL_S, TICK_S, MARGIN_S = 0.1, 0.1, 0.030


def free_port() -> int:
    """A port that the system considers free now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def port_settings() -> list[str]:
    """--set arguments that move every device and the dashboard of the demo site to free ports."""
    words = []
    for name in ('meter', 'pv_meter', 'inverter_a', 'bms_b', 'inverter_b'):
        address = f'tcp://127.0.0.1:{free_port()}'
        words += ['--set', f'nodes.{name}.address={address}', '--set', f'simulation.devices.{name}.address={address}']
    return [*words, '--set', f'nodes.dashboard.port={free_port()}']


def wait(condition: Any, timeout_s: float, what: str) -> Any:
    """First true value of `condition()`. Raises RuntimeError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise RuntimeError(f'{what}: not within {timeout_s} s')


def log_events(state: Path, name: str) -> list[dict[str, Any]]:
    """Lines of a log of the running site."""
    file = state / 'log' / f'{name}.jsonl'
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def measure() -> list[Figure]:
    """Figures of the running site."""
    from rclpy.node import Node

    from bess_core.clock import Clock
    from bess_core.observer import SiteObserver
    from bess_core.runtime import Runtime
    from bess_core.ticker import RealTicker

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        started = time.monotonic()
        site = subprocess.Popen(
            [sys.executable, '-m', 'bess_core.cli.main', 'up', str(SITE), '--state', str(state), '--table', 'off',
             '--json', *port_settings()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            wait(lambda: sum(e['event'] == 'nodes active' for e in log_events(state, 'supervisor')) >= 2, 30.0,
                 'all nodes active')
            active_s = time.monotonic() - started
            with Runtime(signals=False) as runtime:
                node = Node('bench', namespace='/home', start_parameter_services=False, enable_rosout=False)
                runtime.executor.add_node(node)
                ticker = RealTicker(Clock(), runtime.post)
                ticks: list[tuple[int, float]] = []

                def listen(_: str, message: Any) -> None:
                    if type(message).__name__ == 'DecisionTrace':
                        ticks.append((message.tick, message.jitter))

                observer = SiteObserver(node, '/home', listener=listen)
                ticker.every(0.2, lambda _: observer.discover() and None)
                runtime.spin_until(lambda: len(ticks) > 20, 15.0)
                ticks.clear()
                runtime.spin_until(lambda: False, CALM_S)
                calm = list(ticks)
                pids = {e['process']: e['pid'] for e in log_events(state, 'supervisor')
                        if e['event'] == 'process started'}
                pss = memory_pss_mb(pids['control'])
                delays = steps(state, runtime)
                ticker.stop()
                runtime.executor.remove_node(node)
                node.destroy_node()
        finally:
            site.send_signal(signal.SIGINT)
            output, _ = site.communicate(timeout=30)
    summary = json.loads(output.strip().splitlines()[-1])
    skipped = calm[-1][0] - calm[0][0] + 1 - len(calm)
    expected = round(CALM_S / TICK_S)
    lost = max(0, expected - len(calm) - 1)
    return [
        Figure('demo site: all nodes active after start', active_s, 's', 5.0),
        Figure('demo site: memory of the control process (PSS)', pss, 'MB', 130.0),
        Figure('control tick jitter, p99', percentile([j for _, j in calm], 0.99) * 1e3, 'ms', 5.0),
        Figure('control tick jitter, max', max(j for _, j in calm) * 1e3, 'ms'),
        Figure('control ticks skipped', float(max(skipped, lost)), 'ticks', 0.0),
        Figure('meter step to inverter write, p99', percentile(delays, 0.99) * 1e3, 'ms',
               (METER_POLL_S + TICK_S + MARGIN_S) * 1e3),
        Figure('meter step to inverter write, median', percentile(delays, 0.5) * 1e3, 'ms'),
        Figure('demo site: limit violations', float(summary['limit_violations']), '', 0.0),
    ]


def steps(state: Path, runtime: Any) -> list[float]:
    """s from a step of the house load (and so of the meter's register) to the inverter's answer on the wire.

    The answer is the first setpoint that moved by a tenth of the step in its direction: small corrections
    go on all the time.
    """
    world = DeviceControl(state / 'sim' / 'world.sock')
    inverter = DeviceControl(state / 'sim' / 'inverter_a.sock')
    world.set(house_power=BASE_W, pv_power=0.0)
    runtime.spin_until(lambda: False, 8.0)
    delays = []
    for k in range(STEPS):
        rising = k % 2 == 0
        # An odd pause, so that steps fall anywhere between two polls, and the answer to the last one is over.
        runtime.spin_until(lambda: False, PAUSE_S + 0.0137 * (k % 17))
        before = setpoints(inverter)[-1][1]
        at = time.monotonic()
        world.set(house_power=BASE_W + (STEP_W if rising else 0.0), pv_power=0.0)

        def answered(at: float = at, before: int = before, sign: int = 1 if rising else -1) -> float:
            # WSet is positive when discharging: more load, higher value.
            return next((t for t, w in setpoints(inverter) if t > at and (w - before) * sign > 0.1 * STEP_W), 0.0)

        deadline = time.monotonic() + 3.0
        while not (hit := answered()) and time.monotonic() < deadline:
            runtime.spin_until(lambda: False, 0.02)
        delays.append(hit - at if hit else 3.0)
    return delays


def setpoints(inverter: DeviceControl) -> list[tuple[float, int]]:
    """(monotonic s, W with + = generation) of the WSet writes that the device got.

    WSet of model 704 lies lowest of the registers that a steady order writes; its scale factor is 0 there.
    """
    writes = [w for w in inverter.writes() if len(w['values']) == 2]
    address = min((w['address'] for w in writes), default=0)
    values = [(w['time'], (w['values'][0] << 16) | w['values'][1]) for w in writes if w['address'] == address]
    return [(t, v - (1 << 32) if v & 0x8000_0000 else v) for t, v in values]


def pin_domain() -> None:
    """A DDS domain of this run's own."""
    os.environ['ROS_DOMAIN_ID'] = str(60 + os.getpid() % 40)
