"""`bess partition` against a real partition, and the worked example of its page."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_partition_nodes import host
from test_virtual_nodes import Kind, make_partition

from bess_core.cli import main, session
from bess_core.cli import partition as command

__all__ = ['host']  # a fixture
PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'partitions.md'


@pytest.fixture
def bess(graph: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command on the nodes of this process."""
    @contextmanager
    def same(timeout_s: float = session.TIMEOUT_S, **_: Any) -> Any:
        yield session.Session(graph.runtime, graph.peer, timeout_s)

    monkeypatch.setattr(session, 'QUIET_S', 0.1)
    monkeypatch.setattr(command, 'open_session', same)

    def run(*line: str) -> SimpleNamespace:
        code = main.main(['partition', *line])
        got = capsys.readouterr()
        return SimpleNamespace(code=code, out=got.out, err=got.err)

    return run


def test_children_and_statements_by_command(graph: Any, bess: Any, tmp_path: Path) -> None:
    partition, (house, grid), source = make_partition(graph)
    one, two = Kind(graph, house, [source], 50.0), Kind(graph, grid, [source], 50.0)
    got = bess('list')
    assert got.code == 0 and '/site/split: source divided, policy proportional' in got.out, got.err
    assert re.search(r'house +50\.0% +50\.0% +50\.0%', got.out)
    got = bess('resize', 'split', 'grid', '--share', '0.3')
    assert got.code == 0 and 'grid is now' in got.out, got.err
    got = bess('add', 'split', 'car', '--share', '0.5')
    assert got.code == 1 and 'energy shares add up to 1.3' in got.err
    got = bess('add', 'split', 'car', '--energy', '0.1', '--charge', '0.2', '--discharge', '0')
    assert got.code == 0, got.err
    graph.wait(lambda: 'car' in graph.ctx.nodes and graph.ctx.nodes['car'].is_active, 'it runs')
    got = json.loads(bess('list', 'split', '--json').out)['/site/split']
    assert [x['child'] for x in got['ledgers']] == ['house', 'grid', 'car', 'unassigned']
    assert any('differ from the site file' in t for t in got['notices'])
    one.ask(600.0, lease=20.0)
    two.ask(-300.0, lease=20.0)
    graph.wait(lambda: source.power == pytest.approx(300.0), 'runs')
    graph.wait(lambda: partition._partition.ledgers[0].charged > 0.02, 'something was booked')
    got = bess('remove', 'split', 'car', '--to', 'house')
    assert got.code == 0 and '250.0 Wh and its shares go to house' in got.out, got.err
    prices = tmp_path / 'prices.csv'
    prices.write_text('time,price\n2020-01-01T00:00+00:00,100\n')
    target = tmp_path / 'bill.csv'
    got = bess('statement', 'split', '--csv', str(target), '--prices', str(prices), '--currency', 'EUR')
    assert got.code == 0, got.err
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert {r['child'] for r in rows} == {'house', 'grid', 'car', 'unassigned', 'source'}
    assert all(re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?\+00:00', r['start']) for r in rows)
    for column in ('in_kwh', 'out_kwh', 'lost_kwh', 'stored_kwh', 'correction_kwh', 'cost'):
        for start in {r['start'] for r in rows}:
            parts = [Decimal(r[column]) for r in rows if r['start'] == start and r['child'] != 'source']
            whole, = (Decimal(r[column]) for r in rows if r['start'] == start and r['child'] == 'source')
            assert sum(parts) == whole, column
    assert {r['currency'] for r in rows} == {'EUR'} and {r['price_per_kwh'] for r in rows} == {'100'}
    assert sum(Decimal(r['cost']) for r in rows if r['child'] == 'house') > 0
    got = bess('statement', 'house', '--price', '1', '--currency', 'CHF')
    assert got.code == 0 and 'cost CHF' in got.out and 'still open' in got.out, got.err
    got = bess('statement', 'split', '--per', 'day', '--price', '1', '--currency', 'CHF')
    assert got.code == 0 and re.search(r'T\d\d:\d\d:\d\d[+-]\d\d:\d\d .*house.* open +', got.out), got.out
    got = bess('statement', 'house', '--per', 'month', '--csv', '-')
    (line,) = csv.DictReader(io.StringIO(got.out))
    later = sum(Decimal(r['in_kwh']) for r in csv.DictReader(io.StringIO(bess('statement', 'house', '--csv', '-').out)))
    assert (line['child'], line['final']) == ('house', 'no') and 0 < Decimal(line['in_kwh']) <= later
    assert json.loads(bess('statement', 'grid', '--json').out)['records'][0]['child'] == 'grid'


def test_a_repeated_id_with_a_moving_end_says_what_to_do() -> None:
    from argparse import Namespace

    from bess_core.cli.schedule import _relative

    moving, fixed = Namespace(id='x', length='5m', start='now', end=None), Namespace(
        id='x', length=None, start='22:00', end='23:00')
    for reason in ("request_id 'x' was used for another request (event 1)", 'remote: another request had the same id'):
        assert 'fixed --end' in _relative(moving, reason) and not _relative(fixed, reason)
    assert not _relative(moving, '9000 W is outside of -1 to 1 W')


@pytest.mark.parametrize(('line', 'code', 'problem'), [
    (['add', 'split'], 2, 'needs the name of a child'), (['add'], 2, 'needs the name of a partition'),
    (['add', 'split', 'x'], 2, 'give --share'), (['resize', 'split', 'house'], 2, 'nothing to change'),
    (['remove', 'split', 'house'], 2, 'who takes its energy'),
    (['remove', 'split', 'house', '--to', 'nobody'], 1, 'the heir is'),
    (['resize', 'split', 'nobody', '--share', '0.1'], 1, 'no child'),
    (['statement', 'nobody'], 1, 'neither a partition nor a child'),
    (['statement', 'split', '--price', '1'], 2, 'needs its --currency'),
    (['statement', 'split', '--prices', '/nonexistent', '--currency', 'EUR'], 2, '/nonexistent'),
    (['statement', 'split', '--from', '2026-05-02T00:00Z', '--to', '2026-05-01T00:00Z'], 2, 'not after the start'),
    (['statement', 'split', '--from', 'yesterday'], 2, 'is not a time'),
    (['statement', 'split', '--csv', '/nonexistent/x.csv'], 1, '/nonexistent/x.csv')])
def test_wrong_use_is_one_line(graph: Any, bess: Any, line: list[str], code: int, problem: str) -> None:
    make_partition(graph)
    got = bess(*line)
    assert got.code == code and problem in got.err, got.err
    assert got.err.count('\n') == 1


def test_the_worked_example_of_the_page_is_true() -> None:
    text = PAGE.read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], str(PAGE), 'exec'), {})  # noqa: S102 - our own page
