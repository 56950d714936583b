"""`bess up cabinet_demo` as somebody tries it: what the climate commands, faults and events say meanwhile."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running_site import REPOSITORY, START_S, command, write_site

from bess_core.cli import main, session

WARM_S = 60.0  # heater on until charging, on a busy machine


@pytest.fixture
def bess(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Runs a command in this process: (exit code, output). All share a session, so that discovery happens once."""
    with session.open_session() as opened:
        @contextmanager
        def same(timeout_s: float = session.TIMEOUT_S, *, name: str = '') -> Iterator[Any]:
            opened.timeout = timeout_s
            yield opened

        for name in ('climate', 'faults', 'events', 'status'):
            monkeypatch.setattr(importlib.import_module(f'bess_core.cli.{name}'), 'open_session', same)

        def run(*words: str) -> tuple[int, str]:
            code = main.main(words)
            got = capfd.readouterr()
            return code, got.out or got.err

        yield run


def wait(condition: Callable[[], Any], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what


@pytest.fixture
def site(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    def edit(data: dict[str, Any]) -> None:
        data['simulation']['devices']['io']['heater_power'] = 2000.0  # ten seconds until it may be charged
        del data['nodes']['dashboard']

    file = write_site(tmp_path / 'cabinet.yaml', edit=edit, source=REPOSITORY / 'config/sites/cabinet_demo.yaml')
    process = subprocess.Popen(command(file, tmp_path / 'state'), cwd=REPOSITORY, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_cold_cabinet_by_hand(site: subprocess.Popen[str], bess: Callable[..., Any]) -> None:
    def zone() -> dict[str, Any]:
        code, text = bess('climate', '--json')
        return dict(json.loads(text.splitlines()[-1])[0]) if code == 0 else {}

    wait(lambda: zone().get('heater') == 1.0, 'heats', START_S)
    assert not zone()['charge_allowed']
    code, text = bess('faults', 'ack', 'climate/climate.interlock', '--by', 'eva')
    assert (code, text) == (0, 'acknowledged climate/climate.interlock\n')
    code, text = bess('faults')
    assert 'climate.interlock' in text and 'active, seen by eva' in text
    code, text = bess('climate', 'force', 'cabinet', 'fan', '1', '--for', '600', '--by', 'eva')
    assert code == 0, text
    assert zone()['forced'].startswith('fan=1 for')
    assert bess('climate', 'release', 'cabinet', 'fan')[0] == 0
    for wrong in (('cellar', 'fan', '1'), ('cabinet', 'heater_board', '1'), ('cabinet', 'fan', '2')):
        assert bess('climate', 'force', *wrong)[0] == 1
    wait(lambda: zone().get('charge_allowed'), 'warm', WARM_S)
    code, text = bess('events', '--json')
    told = [(e['kind'], e['name'], e['change']) for e in json.loads(text.splitlines()[-1])]
    for change in ('raised', 'acknowledged', 'gone'):
        assert ('fault', 'climate.interlock', change) in told
    assert ('climate', 'cabinet.fan', 'forced') in told and ('climate', 'cabinet.fan', 'released') in told

    def charging() -> bool:
        code, text = bess('status', '--json')
        return bool(code == 0 and json.loads(text.splitlines()[-1])['batteries']['/cabinet/battery']['power'] > 500.0)

    wait(charging, 'the sun charges it', 20.0)
    site.send_signal(signal.SIGINT)
    out, _ = site.communicate(timeout=30.0)
    summary = json.loads(out.splitlines()[-1])
    assert site.returncode == 0 and summary['limit_violations'] == 0
    assert summary['faults'] == ['climate/climate.interlock'], 'nothing else was wrong'
