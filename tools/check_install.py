"""Start nodes from a colcon install tree and talk to them; the environment is the sourced one.

    python3 tools/check_install.py build/colcon/install/bess
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

START_S, ANSWER_S, STOP_S = 30.0, 5.0, 15.0
#: Entry points are found through the metadata of an install; another install must not help out.
MODULES = ('bess_core', 'bess_drivers', 'bess_virtual', 'bess_control', 'bess_telemetry', 'bess_sim')


def inside(prefix: Path, path: str | None) -> bool:
    """Whether a file belongs to the install tree."""
    return path is not None and Path(path).resolve().is_relative_to(prefix)


def foreign(prefix: Path) -> list[str]:
    """Modules and loaded libraries of ours that do not come from the install tree."""
    import importlib

    import bess.msg
    import bess.srv

    bess.msg.Heartbeat.__import_type_support__()
    found = [m.__name__ for m in (bess.msg, bess.srv) if not inside(prefix, m.__file__)]
    found += [name for name in MODULES if not inside(prefix, importlib.import_module(name).__file__)]
    libraries = {line.split()[-1] for line in Path('/proc/self/maps').read_text().splitlines() if '/libbess__' in line}
    if not libraries:
        found.append('no library of bess is loaded')
    return found + [name for name in libraries if not inside(prefix, name)]


def entry_points(prefix: Path) -> list[str]:
    """What is wrong with the entry points of the install tree: each has to load."""
    from importlib.metadata import distributions

    site = [p for p in sys.path if inside(prefix, p)]
    points = {(e.group, e.name): e for d in distributions(path=site) for e in d.entry_points}
    wrong = [] if any(group == 'bess.nodes' for group, _ in points) else ['no entry points in the install tree']
    for (group, name), point in points.items():
        try:
            point.load()
        except (ImportError, AttributeError) as error:
            wrong.append(f'{group} {name}: {error}')
    return wrong


def lifecycle_states(namespace: str, nodes: list[str], process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Answers of ~/get_state of all nodes; without one, the reason. The process is given time to start."""
    from lifecycle_msgs.srv import GetState
    from rclpy.node import Node

    from bess_core.runtime import Runtime

    states: dict[str, str] = {}
    with Runtime(signals=False) as runtime:
        node = Node('check_install', start_parameter_services=False, enable_rosout=False)
        runtime.executor.add_node(node)
        clients: dict[str, Any] = {n: node.create_client(GetState, f'{namespace}/{n}/get_state') for n in nodes}

        def there() -> bool:
            return process.poll() is not None or all(c.service_is_ready() for c in clients.values())

        runtime.spin_until(there, START_S)
        for name, client in clients.items():
            if not client.service_is_ready():
                states[name] = f'no service (process ended with {process.poll()})'
                continue
            future = client.call_async(GetState.Request())
            answered = runtime.spin_until(future.done, ANSWER_S)
            states[name] = future.result().current_state.label if answered else 'no answer'
        runtime.executor.remove_node(node)
        node.destroy_node()
    return states


def main() -> int:
    """0 when everything comes from the tree and all nodes answer."""
    prefix = Path(sys.argv[1]).resolve()
    from bess_core import site as site_module

    problems = foreign(prefix) + entry_points(prefix)
    if not (prefix / 'share' / 'bess' / 'docs' / 'faults.yaml').is_file():
        problems.append('the fault catalogue is not part of the tree')
    file = prefix / 'share' / 'bess' / 'config' / 'sites' / 'home_demo.yaml'
    with tempfile.TemporaryDirectory(prefix='bess-colcon-') as state:
        site = site_module.load(file, variables={'state': state})
        nodes = [n.name for n in site.nodes if n.process == 'control']
        command = [str(prefix / 'lib' / 'bess' / 'container'), '--site', str(file), '--process', 'control',
                   '--state', state, '--supervised']
        started = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True)
        try:
            states = lifecycle_states(site.namespace, nodes, process)
            took = time.monotonic() - started
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    problems += [f'{name}: {state}' for name, state in states.items() if state != 'unconfigured']
    if code != 0:
        problems.append(f'container ended with code {code}')
    if problems:
        print('\n'.join(problems), file=sys.stderr)
        if any('No module named' in problem for problem in problems):
            print('libraries beside ROS 2: pip install -r requirements/run.txt', file=sys.stderr)
        print('colcon: failed')
        return 1
    print(f'{len(states)} nodes of the install tree answered after {took:.1f} s')
    print('colcon: ok')
    return 0


if __name__ == '__main__':
    sys.exit(main())
