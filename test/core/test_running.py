"""Which sites run here, before anything is discovered, and what commands say meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bess_core.cli import running, session


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    return running.folder()


HOLD = 'import sys; from pathlib import Path; from bess_core.cli import running; ' \
       'running.announce("/home", Path("/state")); print("", flush=True); sys.stdin.read()'


def other() -> subprocess.Popen[bytes]:
    """A process that runs a site."""
    made = subprocess.Popen([sys.executable, '-c', HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert made.stdout is not None and made.stdout.readline() == b'\n'
    return made


def test_a_site_counts_while_its_process_lives(own_folder: Path) -> None:
    assert running.running() == []
    process = other()
    try:
        found = running.running()
        assert [(r.namespace, r.domain, r.state, r.pid) for r in found] == [('/home', '7', '/state', process.pid)]
        assert running.running() == found, 'looking takes nothing away'
        assert own_folder.stat().st_mode & 0o077 == 0
    finally:
        process.kill()
        process.wait()
    assert running.running() == [] and list(own_folder.glob('*.json')) == []


def test_a_second_site_of_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their nodes would have the same topics, whatever folder the state lies in."""
    site = Path(__file__).parents[2] / 'config' / 'sites' / 'home_demo.yaml'
    process = other()
    try:
        done = subprocess.run([sys.executable, '-m', 'bess_core.cli.main', 'up', str(site), '--state', str(tmp_path)],
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stdout
        assert f'process {process.pid}' in done.stderr and '/state' in done.stderr and 'ROS domain 7' in done.stderr
        monkeypatch.setenv('ROS_DOMAIN_ID', '8')
        assert running.earlier('/home') is None
        handle = running.announce('/home', tmp_path)
        assert running.earlier('/home') is None, 'this process was first there'
        os.close(handle)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize('text', ['', '{', '[]', '{"namespace": "/x"}'])
def test_a_damaged_note_is_no_site(own_folder: Path, text: str) -> None:
    import fcntl

    handle = running.announce('/x', Path('/state'))
    file = own_folder / f'{os.getpid()}.json'
    file.write_text(text)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert running.running() == []
    os.close(handle)


def test_what_a_command_says_when_it_hears_nothing(monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    waits: list[Any] = []

    def found(seconds: float | None) -> bool:
        waits.append(seconds)
        return seconds is not None

    nobody = session.Session(None, None, 5.0)
    assert not nobody.patiently(found) and waits == [None], 'nothing runs: no longer than usual'
    assert 'start one with `bess up`' in session.no_site('')
    process = other()
    try:
        assert nobody.patiently(found) and waits[1:] == [None, session.DISCOVERY_S]
        said = capsys.readouterr().err
        assert f'/home runs since 0 s (process {process.pid}) and is not heard yet; waiting up to 15 s more' in said
        assert not nobody.patiently(found, '/elsewhere')
        assert 'although /home was started as process' in session.no_site('/home')
        monkeypatch.setenv('ROS_DOMAIN_ID', '8')
        assert '/home runs with ROS_DOMAIN_ID=7: set the same here' in session.no_site('')
        assert not nobody.patiently(found)
    finally:
        process.kill()
        process.wait()
    assert json.dumps(capsys.readouterr().err) == '""'


def test_a_note_that_is_removed_before_it_is_locked_is_written_again(
        own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, removed = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not removed:
            removed.append([f.unlink() for f in own_folder.rglob('*.json')])
        lock(handle, how)

    monkeypatch.setattr(fcntl, 'flock', late)
    handle = running.announce('/late', Path('/tmp/late'))
    try:
        assert removed == [[None]] and [r.namespace for r in running.running()] == ['/late']
    finally:
        os.close(handle)
