"""Logs: one JSON object per event, rotated; short text on the console."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bess_core import log


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    root = logging.getLogger(log.ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_json_object_per_event(tmp_path: Path) -> None:
    log.setup(tmp_path / 'new' / 'folder', 'control', console='off')
    log.get('/home/meter').info('device connected', address='tcp://x:502', attempts=3, path=Path('/dev'), ratio=1.5)
    found = lines(tmp_path / 'new' / 'folder' / 'control.jsonl')
    assert len(found) == 1
    line = found[0]
    at = datetime.strptime(line.pop('time'), '%Y-%m-%dT%H:%M:%S.%fZ').replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - at).total_seconds()) < 5
    assert line == {'level': 'info', 'component': 'home/meter', 'event': 'device connected', 'address': 'tcp://x:502',
                    'attempts': 3, 'path': '/dev', 'ratio': 1.5}


@pytest.mark.parametrize('text', ['two\nlines', 'quote " and \\', '100 %s %d {x}', '\x00\x1b', 'grün ☀', '\ud800'])
def test_any_text_stays_one_line(tmp_path: Path, text: str) -> None:
    log.setup(tmp_path, 'p', console='off')
    log.get('a').warning(text, value=text)
    found = lines(tmp_path / 'p.jsonl')
    assert [(f['event'], f['value']) for f in found] == [(text, text)]


def test_fields_cannot_replace_what_every_line_has(tmp_path: Path) -> None:
    log.setup(tmp_path, 'p', console='off')
    log.get('a').info('what happened', level='x', component='y', time='z')
    line = lines(tmp_path / 'p.jsonl')[0]
    assert (line['event'], line['level'], line['component']) == ('what happened', 'info', 'a')
    assert line['time'].startswith('20')
    assert (line['level_'], line['component_'], line['time_']) == ('x', 'y', 'z')


def test_numbers_that_json_does_not_know_are_text(tmp_path: Path) -> None:
    log.setup(tmp_path, 'p', console='off')
    log.get('a').info('x', power=float('nan'), limit=float('inf'))

    def forbidden(name: str) -> None:
        raise AssertionError(f'{name} is no JSON')

    line = json.loads((tmp_path / 'p.jsonl').read_text(), parse_constant=forbidden)
    assert (line['power'], line['limit']) == ('nan', 'inf')


def test_levels(tmp_path: Path) -> None:
    log.setup(tmp_path, 'p', level='warning', console='off')
    one = log.get('a')
    one.debug('d')
    one.info('i')
    one.warning('w')
    one.error('e')
    assert [f['event'] for f in lines(tmp_path / 'p.jsonl')] == ['w', 'e']


def test_an_exception_carries_its_traceback_in_the_same_line(tmp_path: Path) -> None:
    log.setup(tmp_path, 'p', console='off')
    try:
        raise ZeroDivisionError('by nothing')
    except ZeroDivisionError:
        log.get('a').exception('callback failed', callback='f')
    found = lines(tmp_path / 'p.jsonl')
    assert len(found) == 1
    assert found[0]['level'] == 'error'
    assert found[0]['traceback'].endswith('ZeroDivisionError: by nothing')


def test_rotation_keeps_a_bounded_number_of_whole_files(tmp_path: Path) -> None:
    log.setup(tmp_path, 'p', console='off', max_bytes=2000, backups=3)
    one = log.get('a')
    for number in range(300):
        one.info('event', number=number)
    files = sorted(tmp_path.glob('p.jsonl*'))
    assert [f.name for f in files] == ['p.jsonl', 'p.jsonl.1', 'p.jsonl.2', 'p.jsonl.3']
    assert all(f.stat().st_size <= 2000 for f in files)
    numbers = [line['number'] for f in reversed(files) for line in lines(f)]
    assert numbers == list(range(numbers[0], 300)), 'the newest events, none torn, none lost in between'


def test_the_console_is_short_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(None, 'p', console='warning')
    one = log.get('home/meter')
    one.info('not here')
    one.warning('no answer', address='x', tries=2)
    out = capsys.readouterr()
    assert out.out == ''
    assert re.fullmatch(r'\d\d:\d\d:\d\d WARNING home/meter: no answer address=x tries=2\n', out.err)


def test_a_sink_sees_every_record_and_may_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(tmp_path, 'p', console='off')
    seen: list[str] = []

    def sink(record: logging.LogRecord) -> None:
        seen.append(record.getMessage())
        raise RuntimeError('sink is broken')

    log.add_sink(sink)
    log.get('a').info('one')
    assert seen == ['one']
    assert [f['event'] for f in lines(tmp_path / 'p.jsonl')] == ['one']
    assert 'sink is broken' in capsys.readouterr().err, 'and says so'


def test_setup_again_replaces_and_does_not_double(tmp_path: Path) -> None:
    for _ in range(3):
        log.setup(tmp_path, 'p', console='off')
    log.get('a').info('once')
    assert len(lines(tmp_path / 'p.jsonl')) == 1


def test_a_stream_of_refusals_becomes_a_line_now_and_then() -> None:
    lines: list[tuple[str, dict[str, object]]] = []

    class Lines(log.Log):
        def warning(self, event: str, **fields: object) -> None:
            lines.append((event, fields))

    refusals = log.Refusals(Lines('x'), 'setpoint refused', quiet_s=10.0)
    for k in range(1500):
        refusals.refuse('other', f'sequence {k} is too low', k * 0.01)
    refusals.refuse('third', 'no', 15.0)
    assert [(e, f['source']) for e, f in lines] == [('setpoint refused', 'other')] * 2 + [('setpoint refused', 'third')]
    assert lines[1][1]['refused_meanwhile'] == 999
