"""Counters of each device: requests, errors by kind, round trips, age of what was read; `bess device show`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from can_bus import can_address, can_port  # noqa: F401 - fixtures
from conformance_stands import STANDS, Wire

from bess_core.cli import device as command
from bess_core.cli.main import main
from bess_core.cli.session import Session
from bess_drivers.device import Disconnected
from bess_drivers.driver_node import node_type
from bess_drivers.serial.link import SerialLink

#: stand -> ages that its diagnostics must have beside that of the reading
KINDS = {'jbd': ('pack', 'cells'), 'jk_pb': ('of all points',), 'sonnen_battery': ('status', 'configuration'),
         'sunspec_meter-203': ('of all points',), 'can_bms': ('0x351', '0x355', '0x356'), 'jk_can': ('0x2f4', '0x7f4'),
         'sunspec_battery-802': ('802', '803'), 'sunspec_inverter-7xx': ('701', '702', '704'),
         'carlo_gavazzi-em340': ('measurement', 'energies'), 'eastron_sdm630-layout': ('active_power', 'frequency')}


@pytest.fixture
def wire(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    (stand,) = [s for s in STANDS if s.name == kind]
    more = (request.getfixturevalue('can_port'),) if stand.transport == 'can' else ()
    if more:
        request.getfixturevalue('can_address')
    built = stand.build(tmp_path, *more)
    yield built
    built.end()


def add(graph: Any, wire: Wire, period: float = 0.1) -> Any:
    """A node around the device that the stand makes."""
    made = wire.make(False)
    params = {f: getattr(made.params, f) for f in made.params.__dataclass_fields__}
    node = graph.add(node_type(type(made)), 'device', {**params, 'period': period})
    graph.up(node)
    return node


@pytest.mark.parametrize('kind', KINDS)
def test_counters_ages_and_errors_by_kind(graph: Any, kind: str, wire: Wire) -> None:
    node = add(graph, wire)
    graph.wait(lambda: node.diagnostics().get('answers', 0) >= 3, 'three answers')
    shown = node.diagnostics()
    assert shown['requests'] >= shown['answers'] and shown['quality'] == 'OK' and shown['read only'] is False
    p50, p99 = (float(shown[f'round trip {p} [ms]']) for p in ('p50', 'p99'))
    assert 0.0 <= p50 <= p99 < 5000.0
    assert float(shown['age [s]']) < 5.0
    for name in KINDS[kind]:
        assert 0.0 <= float(shown[f'age {name} [s]']) < 5.0
    assert not any(k.startswith('errors ') and k != 'errors silent' for k in shown)
    wire.faults.inject('no_answer')
    graph.wait(lambda: any(k in ('errors timeout', 'errors silent') for k in node.diagnostics()), 'counted by kind')
    wire.faults.clear()
    silent = 'errors silent' in node.diagnostics()  # CAN: nobody is asked, and the channel stays open
    answers = node.diagnostics()['answers']
    graph.wait(lambda: node.diagnostics()['answers'] > answers and (silent or node.diagnostics()['reconnects'] >= 1),
               'it is back')


@pytest.mark.parametrize('kind', ['sunspec_battery-802'])
def test_they_are_shown_by_a_command(graph: Any, kind: str, wire: Wire, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    add(graph, wire)

    @contextmanager
    def same(timeout_s: float = 5.0, *, name: str = '') -> Iterator[Session]:
        yield Session(graph.runtime, graph.peer, timeout_s)

    monkeypatch.setattr(command, 'open_session', same)
    assert main(['device', 'show', 'device', '--site', '/site']) == 0
    text = capsys.readouterr().out
    assert 'round trip p99 [ms]' in text and 'age 802 [s]' in text
    assert main(['device', 'show', 'device', '--site', '/site', '--json']) == 0
    assert int(json.loads(capsys.readouterr().out)['requests']) > 0
    assert main(['device', 'show', 'nobody', '--site', '/site', '--timeout', '1']) == 1
    assert 'no diagnostics of /site/nobody' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['jk'])
def test_a_port_that_another_program_uses_says_so(kind: str, wire: Wire) -> None:
    first = wire.make(False)
    first.open()
    second = SerialLink(first.params.address)
    with pytest.raises(Disconnected, match='another program uses this port'):
        second.open()
    first.close()
    second.open()
    second.close()
