"""The virtual bench: one process for the physics, one for every simulated device.

`run_bench` steps the plant on a 50 Hz grid and ends all devices when it ends. In `run_dir` it keeps

    bench.json       pid, speed and, per device, pid, kind, unit, address, control, exit code;
                     written in one step when all devices listen, removed at an orderly end
    <device>.sock    control socket of each device, `world.sock` that of the physics

Requests (JSON lines, see `bess_sim.control_client`): `inject`, `clear`, `status` everywhere;
`writes`, `override_power` at devices that can; `sample`, `set` at the world, whose `inject` takes
plant faults.
A dead device is reported, not restarted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil, inf, isfinite, nan
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bess_core.files import replace_file
from bess_sim.bench_device import READY_S, WATCH_S, BenchError, Child, fault_name
from bess_sim.control_server import ControlServer, Request, number, plain
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices import factory
from bess_sim.plant import PLANT_FAULTS, Plant
from bess_sim.plant_config import BenchConfig
from bess_sim.shared_plant import SharedPlant

RATE = 50.0  # Hz, real time
MAX_STEP_S = 1.0  # s of plant time; a faster bench takes more steps per tick
CATCH_UP = 50  # ticks that are made up for after a pause; more are dropped
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

_log = logging.getLogger('bess.bench')


def run_bench(simulation: Mapping[str, Any], run_dir: Path, *, speed: float = 1.0) -> int:
    """Run the bench of a site's `simulation` section until SIGTERM, SIGINT or the parent's death.

    Returns 0. Raises ValueError for a bad section (nothing was started) and `BenchError`.
    Call it in the main thread of a process of its own.
    """
    if not (isfinite(speed) and 0.0 < speed <= 10_000.0):
        raise ValueError(f'speed must be above 0 and at most 10000, not {speed!r}')
    config = BenchConfig.model_validate(dict(simulation))
    parent = os.getppid()
    plant = Plant(config)
    shared = SharedPlant.of(plant)
    children = []
    for name, device in config.devices.items():
        faults = DeviceFaults()
        try:  # built here, so that modules are loaded once and mistakes show before anything starts
            running = factory.build(device, shared, faults)
        except ValueError as error:
            raise ValueError(f'devices.{name}: {error}') from error
        children.append(Child(name, device, running, faults, run_dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_bench(run_dir) as lock:
        state_file = run_dir / 'bench.json'
        state_file.unlink(missing_ok=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        world: World | None = None
        try:
            deadline = time.monotonic() + READY_S
            for child in children:
                child.start(lock.fileno())
            for child in children:
                child.wait_ready(deadline)
            world = World(plant, shared, children, run_dir)
            write_state(state_file, world, speed)
            _log.info('bench runs: %d devices in %s', len(children), run_dir)
            return _run(world, parent, speed, state_file)
        finally:
            if world is not None:
                world.server.stop()
            _end(children)
            state_file.unlink(missing_ok=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _run(world: World, parent: int, speed: float, state_file: Path) -> int:
    """The 50 Hz loop; waiting for its next tick is waiting for a signal to stop."""
    period = 1.0 / RATE
    steps = ceil(period * speed / MAX_STEP_S)
    dt = period * speed / steps
    due = watch = time.monotonic()
    while True:
        now = time.monotonic()
        if now < due:
            if signal.sigtimedwait(STOP_SIGNALS, due - now) is not None:
                return 0
            continue
        if signal.sigtimedwait(STOP_SIGNALS, 0) is not None or os.getppid() != parent:
            return 0
        if now - due > CATCH_UP * period:
            _log.warning('bench was held up for %.1f s; plant time goes on from now', now - due)
            due = now
        world.advance(dt, steps)
        due += period
        if now >= watch:
            watch = now + WATCH_S
            if world.look_after():
                write_state(state_file, world, speed)


class World:
    """The physics and its control socket; the lock keeps their threads apart."""

    def __init__(
        self, plant: Plant, shared: SharedPlant, children: Sequence[Child], run_dir: Path
    ) -> None:
        self.plant, self.shared, self.children = plant, shared, children
        self._lock = threading.Lock()
        self.server = ControlServer(run_dir / 'world.sock', self.handle)

    def advance(self, dt: float, steps: int) -> None:
        """Take orders, step, publish."""
        with self._lock:
            self.shared.take_orders(self.plant)
            for _ in range(steps):
                self.plant.step(dt)
            self.shared.publish(self.plant)

    def look_after(self) -> bool:
        """Report devices that have died since the last call; whether there are any."""
        dead = [child for child in self.children if child.died()]
        for child in dead:
            _log.error(
                'device %s (pid %s) ended with code %s', child.name, child.pid, child.exit_code
            )
        return bool(dead)

    def handle(self, request: Request) -> Request:
        """Answer a control request."""
        with self._lock:
            match request['cmd']:
                case 'sample':
                    return self._sample()
                case 'status':
                    faults = [asdict(fault) for fault in self.plant.faults.values()]
                    devices = {child.name: child.state() for child in self.children}
                    return {'time': self.plant.time, 'faults': faults, 'devices': devices}
                case 'inject':
                    self.plant.inject(
                        fault_name(request, PLANT_FAULTS),
                        number(request, 'value', nan),
                        str(request.get('unit') or ''),
                        int(number(request, 'index', 0)),
                        number(request, 'for_s', inf),
                    )
                    self.shared.publish(self.plant)
                case 'clear':
                    self.plant.clear(
                        str(request.get('fault') or ''), str(request.get('unit') or '')
                    )
                    self.shared.publish(self.plant)
                case 'set':
                    self._set({k: v for k, v in request.items() if k != 'cmd'})
                    self.shared.publish(self.plant)
                case other:
                    raise ValueError(f'unknown command {other!r}')
        return {}

    def _sample(self) -> Request:
        plant = self.plant
        units = {
            name: {
                'pack': asdict(plant.pack(name)),
                'inverter': asdict(plant.inverter(name)),
                'energy': asdict(plant.books(name)),
            }
            for name in plant.units
        }
        return {
            'time': plant.time, 'monotonic': time.monotonic(), 'house_power': plant.house_power,
            'pv_power': plant.pv_power, 'meter': asdict(plant.meter()), 'units': units,
        }  # fmt: skip

    def _set(self, values: Request) -> None:
        """All of it or, after a ValueError, none of it."""
        plant, grid = self.plant, self.plant.grid
        limits = {
            'house_power': (0.0, 1e9), 'pv_power': (0.0, 1e9), 'frequency': (1.0, 1000.0),
            'voltage': (0.0, 1e6), 'ambient': (-50.0, 70.0),
        }  # fmt: skip
        checked = {}
        for key in values:
            if key not in limits:
                raise ValueError(f'unknown setting {key!r}; known: {", ".join(limits)}')
            value, (low, high) = number(values, key, nan), limits[key]
            if not (low <= value <= high) and not (values[key] is None and key != 'ambient'):
                raise ValueError(f'{key} must be from {low:g} to {high:g}, not {values[key]!r}')
            checked[key] = value
        plant.override(
            checked.get('house_power', plant.house_override),
            checked.get('pv_power', plant.pv_override),
        )
        grid.frequency_override = checked.get('frequency', grid.frequency_override)
        grid.voltage_override = checked.get('voltage', grid.voltage_override)
        if 'ambient' in checked:
            plant.set_ambient(checked['ambient'])


def _end(children: Sequence[Child]) -> None:
    for child in children:
        child.end()
    for child in children:
        child.join()


def write_state(path: Path, world: World, speed: float) -> None:
    """Write bench.json in one step, so that no reader sees half of it."""
    state = {
        'pid': os.getpid(),
        'speed': speed,
        'world': {'control': str(world.server.path)},
        'devices': {child.name: child.state() for child in world.children},
    }
    replace_file(path, json.dumps(plain(state), indent=1))


def _only_bench(run_dir: Path) -> Any:
    """The open lock file of a run directory. Raises `BenchError` when another bench holds it."""
    lock = open(run_dir / 'bench.lock', 'w')  # noqa: SIM115 - returned open
    deadline = time.monotonic() + 1.0  # the devices of a killed bench need a moment to end
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise BenchError(f'another bench runs in {run_dir}') from None
            time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m bess_sim.bench SITE`: the bench of a site file. 2 = refused, 1 = could not run."""
    import yaml

    parser = argparse.ArgumentParser(
        prog='bess_sim.bench', description='Run the simulated devices of a site.'
    )
    parser.add_argument('site', type=Path, help='site file (YAML) with a section "simulation"')
    parser.add_argument(
        '--run-dir', type=Path, default=Path('.run'), help='for bench.json and sockets'
    )
    parser.add_argument('--speed', type=float, default=1.0, help='plant seconds per second')
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format='%(asctime)s %(levelname)s %(name)s: %(message)s'
    )
    try:
        site = yaml.safe_load(arguments.site.read_text(encoding='utf-8'))
        if not isinstance(site, dict) or not isinstance(site.get('simulation'), dict):
            raise ValueError('there is no section "simulation"')
        return run_bench(site['simulation'], arguments.run_dir, speed=arguments.speed)
    except ValidationError as error:
        for problem in error.errors():
            place = '.'.join(str(part) for part in problem['loc'])
            print(f'{arguments.site}: simulation.{place}: {problem["msg"]}', file=sys.stderr)
        return 2
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f'{arguments.site}: {error}', file=sys.stderr)
        return 2
    except BenchError as error:
        print(f'bench: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
