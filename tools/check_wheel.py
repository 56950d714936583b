"""Run the demo site of an environment in which the wheel was installed; with that environment's Python.

    build/wheel-check/venv/bin/python tools/check_wheel.py build/wheel-check/venv
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml

RUN_S, LIMIT_S = 5, 120.0
SCRIPTS = ('lib/bess/container', 'lib/bess/watchdog', 'bin/container', 'bin/bess')


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def moved(site: dict[str, Any]) -> list[str]:
    """Settings that give every TCP address of a site file, in nodes and devices, a free port, and the pages any."""
    places = {f'{section}.{name}.address': entry['address']
              for section, entries in (('nodes', site['nodes']), ('simulation.devices', site['simulation']['devices']))
              for name, entry in entries.items() if str(entry.get('address', '')).startswith('tcp://')}
    addresses = sorted(set(places.values()))
    ports = dict(zip(addresses, free_ports(len(addresses)), strict=True))
    settings = [f'{place}={re.sub(":[0-9]+$", "", address)}:{ports[address]}' for place, address in places.items()]
    return settings + [f'nodes.{name}.port=0' for name, entry in site['nodes'].items() if 'port' in entry]


def run_site(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and summary (JSON) of a site that is ended `RUN_S` after all its nodes are active, whenever that is."""
    summary = ''
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as site:
        timers = [threading.Timer(LIMIT_S, site.kill)]
        timers[0].start()
        for line in site.stdout or ():
            print(line, end='', flush=True)
            summary = line if line.startswith('{') else summary
            if 'nodes active after' in line:
                timers.append(threading.Timer(RUN_S, site.send_signal, (signal.SIGINT,)))
                timers[-1].start()
        code = site.wait()
        for timer in timers:
            timer.cancel()
    return code, summary


def main() -> int:
    """0 when the site ran with all its nodes."""
    venv = Path(sys.argv[1]).resolve()
    file = venv / 'share' / 'bess' / 'config' / 'sites' / 'home_demo.yaml'
    site = yaml.safe_load(file.read_text(encoding='utf-8'))
    environment = {k: v for k, v in os.environ.items()
                   if k not in ('_ROS_WHEELS_BOOTSTRAP_COMPLETE', 'LD_LIBRARY_PATH', 'AMENT_PREFIX_PATH', 'PYTHONPATH')}
    environment |= {'ROS_DOMAIN_ID': os.environ.get('ROS_DOMAIN_ID') or str(100 + os.getpid() % 100),
                    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    for script in SCRIPTS:
        subprocess.run([str(venv / script), '--help'], check=True, env=environment,
                       stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    subprocess.run([str(venv / 'bin' / 'bess'), 'faults', 'explain', 'comm.silent'], check=True, env=environment,
                   stdout=subprocess.DEVNULL, timeout=LIMIT_S)  # the catalogue is part of it
    with tempfile.TemporaryDirectory(prefix='bess-wheel-') as state:
        code, summary = run_site(
            [str(venv / 'bin' / 'bess'), 'up', 'home_demo', '--state', state, '--json', '--table', 'off',
             *(word for setting in moved(site) for word in ('--set', setting))], environment)
    if code:
        print(f'bess up ended with code {code}', file=sys.stderr)
        return 1
    result = json.loads(summary)
    least = len(site['nodes'])
    if result['nodes_active'] < least or result['control_ticks'] < RUN_S:
        print(f'at least {least} nodes were to be active and to control', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
