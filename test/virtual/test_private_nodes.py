"""Private totals end to end: households, two servers, mutual TLS, and a battery that runs the sum."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from remote_site import TICK, Cell, free_port, make_pki

from bess.srv import ListSchedule
from bess_core import certs
from bess_core.cli.main import main
from bess_core.context import NodeContext
from bess_core.params import ParameterError, build
from bess_core.values import Quality
from bess_virtual.aggregate_node import AggregateNode
from bess_virtual.private_client import PrivateError, Servers, next_epoch
from bess_virtual.private_sum import ShareError, pack, split, to_units
from bess_virtual.private_total_node import CollectorNode, CollectorParams, HelperNode
from bess_virtual.remote_link import Tls
from bess_virtual.scheduling_node import seconds

HOMES = ['anna', 'ben', 'cleo', 'dan']
TERMS = {'slots': 4, 'slot': 1.5, 'close_before': 0.8, 'minimum': 3, 'max_power': 5000.0, 'households': HOMES}

STEP_S = 1.2  # of one household, on a busy machine


@pytest.fixture(scope='module')
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_pki(tmp_path_factory.mktemp('private') / 'pki', *HOMES, 'collector', 'eve')
    certs.issue(folder, 'second', 'server', hosts=['localhost'])
    return folder


class Total:
    """Both servers, the shared battery, and households."""

    def __init__(self, graph: Any, pki: Path, helper: bool = True, **params: Any) -> None:
        self.graph, self.pki = graph, pki
        self.cell = Cell(graph, 'cell')
        self.battery = graph.add(AggregateNode, 'shared', {'members': ['cell'], **TICK})
        graph.up(self.battery)
        graph.wait(lambda: self.battery.reading.quality == Quality.OK, 'a good status')
        self.ports = free_port(), free_port()
        self.elsewhere = NodeContext('/elsewhere', graph.ctx.state_dir / 'elsewhere', graph.clock, graph.ticker,
                                     graph.ctx.post, heartbeat_s=0.0, diagnostics_s=0.0)
        if helper:
            self.start_helper()
        self.collector = graph.add(CollectorNode, 'totals', {
            'endpoint': f'localhost:{self.ports[0]}', 'authority': str(pki / 'ca.pem'),
            'certificate': str(pki / 'owner.pem'), 'client_certificate': str(pki / 'collector.pem'),
            'helper': f'localhost:{self.ports[1]}', 'battery': 'shared', **TERMS, **params})
        graph.up(self.collector)

    def start_helper(self, **params: Any) -> None:
        self.helper = self.graph.add(HelperNode, 'helper', {
            'endpoint': f'localhost:{self.ports[1]}', 'authority': str(self.pki / 'ca.pem'),
            'certificate': str(self.pki / 'second.pem'), **TERMS, **params}, self.elsewhere)
        self.graph.up(self.helper)

    def epoch(self, steps: int = 3) -> int:
        """One that stays open for so many steps of households, of which each opens its own connections."""
        return next_epoch(self.collector.params.terms, self.graph.clock.wall() + STEP_S * steps)

    def household(self, name: str, work: Callable[[Servers], Any], timeout_s: float = 4.0) -> Any:
        """What a household does, in a thread of its own as its program would; result or exception."""
        out: list[Any] = []

        def run() -> None:
            with Servers(*(f'localhost:{p}' for p in self.ports), 'private',
                         Tls(self.pki / 'ca.pem', certs.pair(self.pki, name)), timeout_s) as servers:
                try:
                    out.append(work(servers))
                except (PrivateError, ShareError) as error:
                    out.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.graph.wait(lambda: out, f'{name} is through', 15.0)
        thread.join()
        return out[0]

    def entries(self) -> Any:
        return self.graph.call(ListSchedule, 'shared/list_schedule').entries

    def wait_state(self, epoch: int, *states: str) -> Any:
        self.graph.wait(lambda: epoch in self.collector._book.epochs
                        and self.collector._book.epochs[epoch].state in states, f'epoch is {states}', 20.0)
        return self.collector._book.epochs[epoch]


def test_the_sum_of_day_schedules_runs_on_the_shared_battery(graph: Any, pki: Path) -> None:
    total = Total(graph, pki)
    epoch = total.epoch(6)
    days = {'anna': [500.0, -800.0, 0.0, 100.0], 'ben': [250.5, -200.0, 0.0, -100.0], 'cleo': [0.0, -100.25, 0.0, 0.0]}
    for home, powers in days.items():
        name = total.household(home, lambda s, p=powers: s.submit(epoch, p, minimum=3))
        assert isinstance(name, str), name
    dan = total.household('dan', lambda s: s.submit(epoch, [4000.0] * 4))
    assert total.household('dan', lambda s: s.withdraw(epoch, dan)) is None  # changed their mind
    assert total.household('anna', lambda s: s.result(epoch))['state'] == 'open'

    done = total.wait_state(epoch, 'applied', 'refused')
    assert done.state == 'applied', done.message
    assert done.powers == [750.5, -1100.25, 0.0, 0.0]
    listed = [(seconds(e.start) - epoch, seconds(e.end) - epoch, e.value, e.source) for e in total.entries()]
    assert listed == [(0.0, 1.5, 750.5, 'totals'), (1.5, 3.0, -1100.25, 'totals'), (3.0, 6.0, 0.0, 'totals')]
    graph.wait(lambda: total.cell.power == 750.5, 'first slot at the cell')
    graph.wait(lambda: total.cell.power == -1100.25, 'second slot: discharge', 4.0)

    said = total.household('anna', lambda s: s.result(epoch))
    assert (said['state'], said['included'], said['households']) == ('applied', True, 3)
    assert not total.household('dan', lambda s: s.result(epoch))['included']
    late = total.household('dan', lambda s: s.submit(epoch, [0.0] * 4))
    assert isinstance(late, PrivateError) and str(late).startswith('helper: too late')
    assert 'withdrawn' not in str(late), 'nothing was sent that could be taken back'

    # What is on the disks of the servers: no single value, no share, and the sum at the collector only.
    stored = [json.loads((ctx.state_dir / 'private' / n / f'{epoch}.json').read_text())
              for ctx, n in ((graph.ctx, 'totals'), (total.elsewhere, 'helper'))]
    assert [s['shares'] for s in stored] == [{}, {}]
    assert stored[1]['powers'] == []


def test_a_sum_beyond_the_battery_is_refused_as_a_whole_and_all_are_told(graph: Any, pki: Path) -> None:
    total = Total(graph, pki)
    epoch = total.epoch()
    for home in HOMES[:3]:
        assert isinstance(total.household(home, lambda s: s.submit(epoch, [100.0, 100.0, -900.0, 0.0])), str)
    done = total.wait_state(epoch, 'applied', 'refused')
    assert done.state == 'refused' and 'slots 2 to 2' in done.message and 'discharging' in done.message
    assert '2700' not in done.message  # the value is not told
    assert list(total.entries()) == []  # the first stretch had been accepted and was taken back
    for home in HOMES:
        assert total.household(home, lambda s: s.result(epoch))['state'] == 'refused'
    assert any(r.id == 'private.refused' and r.active for r in total.collector.faults.records)


def test_too_few_households_are_not_added_up(graph: Any, pki: Path) -> None:
    total = Total(graph, pki, max_charge_power=100.0)
    epoch = total.epoch()
    for home in HOMES[:2]:
        assert isinstance(total.household(home, lambda s: s.submit(epoch, [1.0] * 4)), str)

    def half(servers: Servers) -> None:  # drops out between the two servers
        servers.ask('collector', 'submit', epoch=epoch, submission='a' * 32,
                    share=pack(split(to_units([9.0] * 4, 5000.0))[0]))

    total.household('cleo', half)
    done = total.wait_state(epoch, 'applied', 'refused')
    assert done.state == 'refused' and '2 households' in done.message
    assert total.helper._book.epochs[epoch].total == '' and list(total.entries()) == []


def test_a_dishonest_share_that_shows_spoils_the_epoch_not_the_battery(graph: Any, pki: Path) -> None:
    total = Total(graph, pki)
    epoch = total.epoch(5)
    for home in HOMES[:2]:
        assert isinstance(total.household(home, lambda s: s.submit(epoch, [10.0] * 4)), str)
    too_much = total.household('cleo', lambda s: s.submit(epoch, [5000.1] + [0.0] * 3))
    assert isinstance(too_much, ShareError)

    def garbage(servers: Servers) -> list[Any]:
        out = []
        for body in ({}, {'epoch': epoch}, {'epoch': epoch, 'submission': 'b' * 32, 'share': 'AAAA'},
                     {'epoch': [1], 'submission': 3, 'share': {}}):
            try:
                out.append(servers.ask('helper', 'submit', **body))
            except PrivateError as error:
                out.append(str(error))
        for server in ('helper', 'collector'):  # well-formed, but not shares of anything
            servers.ask(server, 'submit', epoch=epoch, submission='c' * 32,
                        share=pack(split(to_units([0.0] * 4, 5000.0))[0]))
        for op in ('total', 'roster'):  # and what only the collector may ask
            try:
                out.append(servers.ask('helper', op, epoch=epoch, members={}))
            except PrivateError as error:
                out.append(str(error))
        return out

    refused = total.household('cleo', garbage)
    assert len(refused) == 6 and all(isinstance(r, str) for r in refused), refused
    done = total.wait_state(epoch, 'applied', 'refused')
    assert done.state == 'refused' and 'damaged or dishonest' in done.message
    assert list(total.entries()) == []


def test_the_helper_comes_late_and_strangers_stay_out(graph: Any, pki: Path) -> None:
    total = Total(graph, pki, helper=False)
    refused = total.household('eve', lambda s: s.terms(), 1.0)
    assert isinstance(refused, PrivateError) and 'no answer' in str(refused)
    total.start_helper()
    epoch = total.epoch()
    for home in HOMES[:3]:
        assert isinstance(total.household(home, lambda s: s.submit(epoch, [10.0] * 4)), str)
    graph.remove(total.helper)
    graph.wait(lambda: any(r.id == 'private.helper' for r in total.collector.faults.records), 'says so', 15.0)
    total.start_helper()  # its book is on its disk
    done = total.wait_state(epoch, 'applied', 'refused')
    assert done.state == 'applied', done.message


def test_different_terms_are_noticed_by_households(graph: Any, pki: Path) -> None:
    total = Total(graph, pki, helper=False)
    total.start_helper(minimum=2)
    answer = total.household('anna', lambda s: s.submit(total.epoch(), [0.0] * 4))
    assert isinstance(answer, PrivateError) and 'different terms' in str(answer)


def test_from_the_command_line(graph: Any, pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = Total(graph, pki)
    day = tmp_path / 'day.csv'
    day.write_text('# W\n0,100\n1,-50.5\n2,0\n3,0\n')
    common = ['--collector', f'localhost:{total.ports[0]}', '--helper', f'localhost:{total.ports[1]}', '--authority',
              str(pki / 'ca.pem'), '--certificate', str(pki / 'anna.pem')]
    codes: list[int] = []

    def command(*words: str) -> None:
        codes.clear()
        thread = threading.Thread(target=lambda: codes.append(main(['private', *words, *common])), daemon=True)
        thread.start()
        graph.wait(lambda: codes, f'end of {words}', 15.0)

    command('submit', str(day), '--json', '--epoch', str(total.epoch()))
    assert codes == [0]
    said = json.loads(capsys.readouterr().out)
    command('result', str(said['epoch']))
    assert f'open (submitted as {said["submission"]})' in capsys.readouterr().out
    command('withdraw', str(said['epoch']), '--id', said['submission'])
    assert codes == [0]
    command('result', str(said['epoch']))
    assert 'open (nothing of this household)' in capsys.readouterr().out
    command('terms')
    assert codes == [0] and 'minimum 3' in capsys.readouterr().out
    for words in (('submit', str(tmp_path / 'none')), ('submit', str(day), '--minimum', '9'), ('result', 'x')):
        command(*words)
        assert codes[0] > 0 and 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('change', [{'households': ['anna']}, {'households': ['anna', 'anna', 'ben']},
                                    {'households': ['a*', 'b', 'c']}, {'minimum': 1}, {'slots': 0}])
def test_parameters_that_cannot_keep_anything_private_are_refused(change: dict[str, Any]) -> None:
    values = {'endpoint': 'x:1', 'authority': 'a', 'certificate': 'b', 'client_certificate': 'c', 'helper': 'y:1',
              'battery': 'shared', **TERMS, **change}
    with pytest.raises(ParameterError):
        build(CollectorParams, values)
