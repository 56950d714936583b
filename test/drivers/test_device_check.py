"""`bess device check`: the commissioning test finds what is wrong, and only that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest
from fake_device import WORLD, FakeBattery, FakeConverter, FakeMeter, World

from bess_core.cli import device as command
from bess_core.cli.device_checks import check_battery, check_meter, effect, followed, fresh, moves, within
from bess_core.cli.main import main
from bess_core.cli.session import Session
from bess_drivers.driver_node import node_type

NAMES = {'inverter': FakeConverter, 'bms': FakeBattery, 'meter': FakeMeter}


@pytest.fixture
def site(graph: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A converter, its battery and the meter in front, in one world."""
    world = WORLD['w'] = World()
    world.now = graph.clock.now
    nodes = {}
    for name, kind in NAMES.items():
        nodes[name] = graph.add(node_type(kind), name, {'address': 'w', 'period': 0.05})
        nodes[name].trigger_configure()
        nodes[name].trigger_activate()

    @contextmanager
    def same(timeout_s: float = 5.0, *, name: str = '') -> Iterator[Session]:
        yield Session(graph.runtime, graph.peer, timeout_s)

    monkeypatch.setattr(command, 'open_session', same)
    yield SimpleNamespace(world=world, nodes=nodes, graph=graph)


def check(capsys: pytest.CaptureFixture, *line: str) -> tuple[int, dict[str, str]]:
    code = main(['device', 'check', *line, '--site', '/site', '--for', '0.5s', '--json'])
    out = capsys.readouterr().out.strip().splitlines()
    return code, {f['name']: f['level'] for f in json.loads(out[-1])} if out else {}


def test_a_good_converter_passes_in_both_directions(site: Any, capsys: pytest.CaptureFixture) -> None:
    code, found = check(capsys, 'inverter', '--power', '300', '--hold', '0.8', '--battery', 'bms', '--meter', 'meter')
    assert code == 0, found
    assert {k: v for k, v in found.items() if 'W' in k} == {
        'setpoint +300 W': 'ok', 'battery at +300 W': 'ok', 'meter at +300 W': 'ok',
        'setpoint -300 W': 'ok', 'battery at -300 W': 'ok', 'meter at -300 W': 'ok', 'setpoint +0 W': 'ok'}
    assert site.world.writes[-1][0] == 0.0


def test_a_wrong_sign_is_found(site: Any, capsys: pytest.CaptureFixture) -> None:
    def turn(reading: Any) -> None:
        if hasattr(reading, 'active_power') and hasattr(reading, 'dc_power'):
            reading.active_power = -reading.active_power

    site.world.change = turn
    code, found = check(capsys, 'inverter', '--power', '300', '--hold', '0.8')
    assert code == 1
    assert found['setpoint +300 W'] == found['setpoint -300 W'] == 'FAIL'


def test_a_converter_that_somebody_else_holds(site: Any, capsys: pytest.CaptureFixture) -> None:
    site.nodes['inverter'].trigger_deactivate()
    code, found = check(capsys, 'inverter', '--power', '300', '--hold', '0.8')
    assert (code, found['orders accepted']) == (1, 'FAIL')
    assert [w for w in site.world.writes if w[0]] == []


def test_reads_only_without_power_and_unknown_names(site: Any, capsys: pytest.CaptureFixture) -> None:
    code, found = check(capsys, 'meter')
    assert code == 0
    assert found['reads'] == found['moves'] == 'ok'
    assert not site.world.writes
    assert check(capsys, 'bms')[0] == 0
    assert main(['device', 'check', 'nobody', '--site', '/site', '--timeout', '0.5']) == 1
    assert main(['device', 'check', 'meter', '--site', '/site', '--power', '100', '--for', '0.2s']) == 2


def test_findings() -> None:
    good = SimpleNamespace(quality=0, frequency=50.0, voltage=(230.0,) * 3, phase_power=(100.0, 200.0, -300.0),
                           current=(0.45, 0.9, -1.31), active_power=0.0, apparent_power=620.0)
    assert {f.level for f in check_meter(good)} == {'ok'}
    bad = SimpleNamespace(**{**vars(good), 'frequency': 5.0, 'active_power': 900.0, 'current': (0.45, -0.9, 0.1)})
    assert sum(f.level == 'FAIL' for f in check_meter(bad)) == 5
    nothing = SimpleNamespace(**{**dict.fromkeys(vars(good), nan), 'voltage': (nan,) * 3, 'current': (nan,) * 3,
                                 'phase_power': (nan,) * 3})
    assert {f.level for f in check_meter(nothing)} == {'skip'}
    pack = SimpleNamespace(soc=0.5, voltage=52.0, temperature=20.0, cell_voltage_min=3.2, cell_voltage_max=3.3,
                           power=-520.0, current=10.0, max_charge_current=nan, max_charge_power=nan,
                           max_discharge_current=nan, max_discharge_power=nan)
    assert [f.name for f in check_battery(pack) if f.level == 'FAIL'] == ['P = U x I']
    assert fresh([], 1.0).level == 'FAIL'
    assert moves([good] * 5, ('frequency',)).level == 'WARN'
    assert within('x', nan, 0, 1, '').level == 'skip'
    assert followed(300.0, -300.0, 50.0).text.endswith('(see `invert`)')
    assert followed(300.0, 100.0, 50.0).level == 'FAIL'
    assert followed(300.0, nan, 50.0).level == 'skip'
    assert [effect('m', 0.0, v, 300.0).level for v in (280.0, -280.0, 20.0, nan)] == ['ok', 'FAIL', 'WARN', 'skip']
