"""Administration as people meet it: a site under its supervisor, commands in processes of their own, a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = """
site: {name: shed, heartbeat: 0.1, heartbeat_timeout: 1.5}
nodes:
  a: {type: bucket, poll: 0.1}
  b: {type: bucket, poll: 0.1}
  all: {type: aggregate, members: [a]}
"""


class Shed:
    """`bess up` of a small site."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.file, self.state = folder / 'shed.yaml', folder / 'state'
        self.file.write_text(SITE)
        self.env = {**os.environ, 'PYTHONPATH': str(target)}
        self.process: Any = None

    def up(self) -> str:
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'bess_core.cli.main', 'up', str(self.file), '--state', str(self.state),
             '--table', 'off'], env=self.env, stdout=subprocess.PIPE, text=True)
        line = str(self.process.stdout.readline())
        assert 'nodes active' in line, line
        return line

    def down(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=20.0)
        return str(out)

    def bess(self, *words: str, code: int = 0) -> str:
        got = subprocess.run([sys.executable, '-m', 'bess_core.cli.main', *words], env=self.env, capture_output=True,
                             text=True, timeout=60, check=False)
        assert got.returncode == code, got.stdout + got.stderr
        return got.stdout + got.stderr

    @property
    def starts(self) -> int:
        text = ''.join(f.read_text() for f in (self.state / 'log').glob('supervisor*'))
        return text.count('process started')


@pytest.fixture
def shed(tmp_path: Path, example_target: Path) -> Iterator[Shed]:
    made = Shed(tmp_path, example_target)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.down()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_commands_restart_and_supervision(shed: Shed) -> None:
    shed.up()
    made = shed.bess('battery', 'create', 'aggregate', 'home', '--members', 'all', 'b', '--set', 'limit=sum')
    assert 'revision 1: created home (aggregate of all, b)' in made
    refused = shed.bess('battery', 'create', 'aggregate', 'other', '--members', 'b', code=1)
    assert "'b' is already used by 'home'; a battery has one owner" in refused
    late = shed.bess('battery', 'destroy', 'home', '--revision', '0', code=1)
    assert 'the topology is at revision 1 by now, not 0' in late
    tree = json.loads(shed.bess('tree', '--json'))
    assert tree['revision'] == 1
    root, = tree['roots']
    assert (root['name'], root['quality'], root['max_charge_power']) == ('home', 'OK', 4000.0)
    assert [b['name'] for b in root['below']] == ['all', 'b']
    shed.down()

    # A start applies the changes, and says so; so does doctor. A damaged file stops the start.
    assert 'topology revision 1, on top of the site file: created home' in shed.bess(
        'up', str(shed.file), '--state', str(shed.state), '--check')
    shed.up()
    starts = shed.starts
    assert 'revision 2: destroyed home' in shed.bess('battery', 'destroy', 'home')
    # Its heartbeats end; nobody takes that for a process that hangs.
    assert not until(lambda: shed.starts > starts, 3.0)
    assert 'created home' in shed.bess('battery', 'history')
    shed.down()
    stored = shed.state / 'topology.json'
    stored.write_text(stored.read_text()[:-10])
    assert 'bess battery reset' in shed.bess('up', str(shed.file), '--state', str(shed.state), '--check', code=2)
    shed.bess('battery', 'reset', '--state', str(shed.state))
    shed.bess('up', str(shed.file), '--state', str(shed.state), '--check')
