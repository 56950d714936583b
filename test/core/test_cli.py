"""The command line: what people type, and commands end to end against a small site in another process."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from array import array
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')

from bess_core.cli import checks, fields, inject, main, running, schedule, session, sim, site_checks, words
from bess_core.plugins import PluginError

NOW = datetime(2026, 5, 1, 12, 0, 0).timestamp()  # noqa: DTZ001 - local time


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('text, expected', [
    ('90', 90.0), ('1.5', 1.5), ('30m', 1800.0), ('30min', 1800.0), ('1h30m', 5400.0), ('250ms', 0.25),
    ('2d', 172800.0), ('1e3', 1000.0), ('.5s', 0.5)])
def test_durations(text: str, expected: float) -> None:
    assert words.duration(text) == pytest.approx(expected)


@pytest.mark.parametrize('text', ['', '0', '-5', '5x', 'm', '1h x', 'nan', 'inf', '-inf', '1h-3m', '101d1000000h'])
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match='duration'):
        words.duration(text)


@pytest.mark.parametrize('text, expected', [
    ('now', NOW), ('+10s', NOW + 10), ('+1h30m', NOW + 5400),
    ('12:00', NOW), ('18:30', NOW + 6.5 * 3600), ('18:30:15', NOW + 6.5 * 3600 + 15),
    ('2026-05-01T12:00', NOW), ('2026-05-01 12:00:30', NOW + 30),
    ('2026-05-01T12:00Z', 1777636800.0), ('2026-05-01T12:00+02:00', 1777629600.0)])
def test_moments(text: str, expected: float) -> None:
    assert words.moment(text, NOW) == pytest.approx(expected)


def test_a_clock_time_that_has_passed_is_tomorrow() -> None:
    tomorrow = datetime(2026, 5, 2, 11, 59)  # noqa: DTZ001 - local time
    assert words.moment('11:59', NOW) == tomorrow.timestamp()


@pytest.mark.parametrize('text', ['', '25:00', '12:60', 'soon', '+', '+x', '2026-13-01T00:00', '12'])
def test_moments_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'time|duration'):
        words.moment(text, NOW)


@pytest.mark.usefixtures('central_europe')
def test_local_times_around_the_change_of_clocks() -> None:
    def utc(text: str) -> float:
        return datetime.fromisoformat(text + ':00+00:00').timestamp()

    noon = utc('2026-10-24T10:00')
    with pytest.raises(ValueError, match=r'twice.*2026-10-25T02:30:00\+02:00 or 2026-10-25T02:30:00\+01:00'):
        words.moment('2026-10-25T02:30', noon)
    assert words.moment('2026-10-25T02:30+02:00', noon) == utc('2026-10-25T00:30')
    assert words.moment('2026-10-25T02:30+01:00', noon) == utc('2026-10-25T01:30')
    assert words.moment('2026-10-25T01:59', noon) == utc('2026-10-24T23:59')
    assert words.moment('2026-10-25T03:00', noon) == utc('2026-10-25T02:00')
    with pytest.raises(ValueError, match='twice'):
        words.moment('02:30', utc('2026-10-24T22:00'))
    assert words.moment('02:30', utc('2026-10-25T00:45')) == utc('2026-10-25T01:30'), 'only the second lies ahead'
    assert words.moment('02:30', utc('2026-10-25T02:00')) == utc('2026-10-26T01:30')
    with pytest.raises(ValueError, match='does not exist'):
        words.moment('2026-03-29T02:30', noon)
    with pytest.raises(ValueError, match='does not exist'):
        words.moment('02:30', utc('2026-03-28T20:00'))
    assert words.moment('03:00', utc('2026-03-28T20:00')) == utc('2026-03-29T01:00')
    args = argparse.Namespace(power='5', current=None, start='22:00', end='06:00', length=None)
    _, start, end = schedule._request(args, noon)
    assert (end - start) / 3600.0 == 9.0, 'the night is one hour longer'
    args = argparse.Namespace(power='5', current=None, start='2026-10-24T22:00', end=None, length='8h')
    _, start, end = schedule._request(args, noon)
    assert end - start == 8 * 3600.0, 'a duration is a duration'
    passed = utc('2026-03-29T01:10')  # 03:10; 02:30 was skipped today
    assert words.moment('02:30', passed) == utc('2026-03-30T00:30')
    args = argparse.Namespace(power='5', current=None, start='+2h', end='+1h', length=None)
    with pytest.raises(session.CliError, match='not after the start'):
        schedule._request(args, noon)


@pytest.mark.usefixtures('central_europe')
def test_the_hour_that_the_clock_shows_twice_is_printed_with_its_offset() -> None:
    at = datetime.fromisoformat('2026-10-25T00:30:00+00:00').timestamp()
    assert [words.local(at + k * 3600.0) for k in (-1, 0, 1, 2)] == [
        '2026-10-25 01:30:00', '2026-10-25 02:30:00 +0200', '2026-10-25 02:30:00 +0100', '2026-10-25 03:30:00']
    assert words.local(datetime.fromisoformat('2026-03-29T01:00:00+00:00').timestamp()) == '2026-03-29 03:00:00'


@given(st.text(max_size=20))
@settings(max_examples=300)
def test_words_raise_only_value_errors(text: str) -> None:
    for parse in (words.duration, lambda t: words.moment(t, NOW), lambda t: words.quantity(t, 'W')):
        try:
            assert isinstance(parse(text), float)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize('text, unit, expected', [
    ('500', 'W', 500.0), ('-2.5kW', 'W', -2500.0), ('1MW', 'W', 1e6), ('10A', 'A', 10.0), ('-1e3', 'W', -1000.0)])
def test_quantities(text: str, unit: str, expected: float) -> None:
    assert words.quantity(text, unit) == expected


@pytest.mark.parametrize('text, unit', [('5A', 'W'), ('nan', 'W'), ('1e999', 'W'), ('', 'A'), ('5 mW', 'W')])
def test_quantities_refused(text: str, unit: str) -> None:
    with pytest.raises(ValueError, match='number'):
        words.quantity(text, unit)


# -- fields --------------------------------------------------------------------------------------


def request_of(name: str) -> Any:
    return fields.find_class(f'bess/srv/{name}', 'srv').Request()


def test_values_are_built_and_whole_numbers_become_floats() -> None:
    request = fields.fill(request_of('ScheduleSetPower'), fields.parse('{power: -500, end: {sec: 7, nanosec: 5}}'))
    assert (request.power, type(request.power)) == (-500.0, float)
    assert (request.end.sec, request.end.nanosec) == (7, 5)


@pytest.mark.parametrize('text, expected', [
    ('1e3', 1000.0), ('.inf', float('inf')), ('-inf', float('-inf')), ('.5', 0.5)])
def test_numbers_of_yaml_1_2(text: str, expected: float) -> None:
    assert fields.fill(request_of('ScheduleSetPower'), fields.parse(f'{{power: {text}}}')).power == expected


def test_times_in_words_and_seconds() -> None:
    before = time.time()
    request = fields.fill(request_of('ScheduleSetPower'), fields.parse('{start: +10s, end: 12:30}'))
    assert 9.9 < request.start.sec + request.start.nanosec * 1e-9 - before < 12.0
    assert request.end.sec >= before - 1
    assert fields.fill(request_of('ListSchedule'), {'at': 12.5}).at.nanosec == 500_000_000


def test_arrays_nested_messages_and_sequences() -> None:
    meter = fields.find_class('bess/MeterStatus', 'msg')()
    fields.fill(meter, fields.parse('{voltage: [230, 231.5, nan], header: {frame_id: m}, quality: 2}'))
    assert list(meter.voltage)[:2] == [230.0, 231.5] and meter.quality == 2 and meter.header.frame_id == 'm'
    faults = fields.fill(fields.find_class('bess/msg/FaultArray', 'msg')(), {'faults': [{'id': 'x', 'count': 3}]})
    assert faults.faults[0].count == 3
    cells = fields.fill(fields.find_class('bess/msg/CellArray', 'msg')(), {'voltages': [3, 3.3], 'balancing': [True]})
    assert cells.voltages == array('d', [3.0, 3.3])


@pytest.mark.parametrize('name, text, said', [
    ('ScheduleSetPower', '{powr: 5}', "did you mean 'power'"),
    ('ScheduleSetPower', '{power: fast}', 'power: .*a number'),
    ('ScheduleSetPower', '{power: true}', 'a number'),
    ('ScheduleSetPower', '{start: soon}', 'start: .*not a time'),
    ('ScheduleSetPower', '{start: -5}', 'between 1970 and 2038'),
    ('ScheduleSetPower', '{end: {seconds: 5}}', "unknown field 'end.seconds'"),
    ('ScheduleSetPower', '{end: {sec: 1.5}}', 'end.sec: 1.5 does not fit; allowed: a whole number'),
    ('CancelSchedule', '{event_id: -1}', 'whole number from 0'),
    ('CancelSchedule', '{event_id: 18446744073709551616}', 'whole number from 0'),
    ('SetContactor', '{charge: 1}', 'true or false'),
    ('ClearFault', '{id: 5}', 'text'),
    ('GetStatus', '{x: 1}', 'fields: .*structure_needs|fields: none')])
def test_values_that_do_not_fit(name: str, text: str, said: str) -> None:
    with pytest.raises(fields.FieldError, match=said):
        fields.fill(request_of(name), fields.parse(text))


@pytest.mark.parametrize('text', ['{a: 1', '[1]', '5', '"x', '{a: !!python/object:os.system {}}'])
def test_yaml_that_is_no_mapping(text: str) -> None:
    with pytest.raises(fields.FieldError):
        fields.parse(text)


def test_wrong_number_of_values() -> None:
    with pytest.raises(fields.FieldError, match='exactly 3'):
        fields.fill(fields.find_class('bess/msg/MeterStatus', 'msg')(), {'voltage': [1]})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(['sec', 'nanosec', 'x']), inner, max_size=3), max_leaves=4))
@settings(max_examples=200)
def test_any_value_fits_or_is_refused_in_words(value: Any) -> None:
    for name, key in (('ScheduleSetPower', 'power'), ('ScheduleSetPower', 'start'), ('CancelSchedule', 'event_id'),
                      ('ClearFault', 'id'), ('SetContactor', 'charge')):
        try:
            fields.fill(request_of(name), {key: value})
        except fields.FieldError as error:
            assert key in str(error)


@pytest.mark.parametrize('name, said', [
    ('bess/srv/GetStatu', 'GetStatus'), ('nope/srv/X', 'not installed'), ('x', 'not a type'),
    ('bess/msg/Fault', 'not a type')])
def test_types_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(fields.FieldError, match=said):
        fields.find_class(name, 'srv')


# -- parsers -------------------------------------------------------------------------------------


@pytest.mark.parametrize('command', main.COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([command, '--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f'usage: bess {command}')
    if command != 'up':
        assert f'  bess {command}' in text.partition('examples:')[2]


@pytest.mark.parametrize('line', [
    'nosuch', 'schedule', 'schedule house --power 5 --current 5', 'schedule house fly', 'mode maintenance maybe',
    'watch --topic a --cells b', 'status --timeout 0', 'replay DIR --rate 0', 'sim x --days 1 --hours 1',
    'sim x --tick nan', 'record --for soon', 'watch --count 0', 'inject', 'nodes kinds', 'faults lost'])
def test_wrong_arguments_exit_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(line.split())
    assert end.value.code == 2
    assert 'error:' in capsys.readouterr().err


@pytest.mark.parametrize('line, said', [
    ('schedule house', 'either --power or --current'),
    ('schedule house list --power 5', 'either --power or --current'),
    ('schedule house --power 5', 'how long'),
    ('schedule house --power fast --for 5', 'not a number in W'),
    ('schedule house --power 5 --for never', 'not a duration'),
    ('schedule house --power 5 --start 2026-05-02T00:00 --end 2026-05-01T00:00', 'not after the start'),
    ('schedule house cancel', 'event id'), ('schedule house cancel -- -1', 'event id'),
    ('schedule house at', 'needs a time'), ('schedule house at noon', 'not a time'),
    ('schedule house list 5', 'no value'),
    ('mode maintenance', 'on or off'), ('mode stop on', 'belong to maintenance'), ('faults clear', 'name of a node'),
    ('faults explain', 'needs a fault id'), ('faults list bms_a', 'takes no further words'),
    ('call', '--list'), ('call a/b std_srvs/srv/Trigger {a:', 'not valid YAML'),
    ('call a/b std_srvs/srv/Trigger {a: 1}', 'too many words'), ('call a std_srvs/srv/Nope', 'no .Nope'),
    ('inject meter', 'say what to do'), ('inject list x', 'takes no fault'),
    ('inject meter clear --value 3', 'belong to a fault'),
    ('inject meter no_answer --index 3', 'device world')])
def test_wrong_use_exits_2_with_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(line.split()) == 2
    text = capsys.readouterr().err
    assert said.replace('.', "'", said.startswith('no .')) in text and text.count('\n') == 1
    assert text.startswith(f'bess {line.partition(" ")[0]}: ')


def test_an_end_over_midnight_is_on_the_next_day() -> None:
    args = argparse.Namespace(power='5', current=None, start='22:00', end='02:00', length=None)
    _, start, end = schedule._request(args, NOW)
    assert (start - NOW, end - start) == (36000.0, 14400.0)


def test_node_types_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(['nodes', 'types', 'jbd', '--json']) == 0
    (jbd,) = json.loads(capsys.readouterr().out)
    period = next(p for p in jbd['parameters'] if p['name'] == 'period')
    assert (jbd['kind'], jbd['role'], period['unit'], period['min']) == ('driver', 'bms', 's', 0.02)
    assert main.main(['nodes', 'types', 'power_manager', 'self_consumption']) == 0
    assert 'default' in capsys.readouterr().out
    assert main.main(['nodes', 'types']) == 0
    assert 'sunspec_inverter' in capsys.readouterr().out
    assert main.main(['nodes', 'types', 'jdb']) == 1
    assert 'jbd' in capsys.readouterr().err


def test_names() -> None:
    assert session.nearest('/home/hause', ['/home/house', '/x/y'])[0] == '/home/house'
    assert session.nearest('zzz', ['b', 'a']) == ['a', 'b']
    assert session.absolute('home/') == '/home' and session.absolute('') == ''
    with pytest.raises(session.CliError, match='not a ROS name'):
        session.absolute('a b')


# -- simulation and faults, with the other rooms replaced ------------------------------------------

SITE = """
site: {name: tiny}
nodes:
  site: {type: site}
"""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Any]:
    """Entry points that are used instead of the installed ones."""
    found: dict[tuple[str, str], Any] = {}
    monkeypatch.setattr('bess_core.plugins.load', lambda group, name: _pick(found, group, name))
    return found


_real_load = __import__('bess_core.plugins', fromlist=['load']).load


def _pick(found: dict[tuple[str, str], Any], group: str, name: str) -> Any:
    return found[group, name] if (group, name) in found else _real_load(group, name)


def test_sim_passes_on_what_was_asked(plugin: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'tiny.yaml'
    file.write_text(SITE)
    asked = {}

    def simulate(site: Any, state: Path, *, hours: float, tick: float, progress: Any,
                 middleware: bool) -> dict[str, Any]:
        asked.update(name=site.name, hours=hours, tick=tick, folder=state.is_dir(), middleware=middleware)
        progress(0.5, hours * 1800.0)
        progress(1.0, hours * 3600.0)
        return {'nodes_active': 1, 'simulated_s': hours * 3600.0, 'speed': float('nan')}

    plugin['bess.simulation', 'conductor'] = simulate
    assert main.main(['sim', str(file), '--days', '0.5', '--tick', '2', '--json']) == 0
    out = capsys.readouterr()
    assert asked == {'name': 'tiny', 'hours': 12.0, 'tick': 2.0, 'folder': True, 'middleware': False}
    assert json.loads(out.out) == {'nodes_active': 1, 'simulated_s': 43200.0, 'speed': None}
    assert '100 %' in out.err and '12.0 h of 12.0 h' in out.err
    assert main.main(['sim', str(file), '--quiet', '--middleware']) == 0
    out = capsys.readouterr()
    assert 'active nodes: 1' in out.out and asked['hours'] == 24.0 and asked['middleware'] and not out.err


def test_options_may_come_before_arguments(bess: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from bess_core.cli.main import _AnyOrder

    parser = _AnyOrder()
    parser.add_argument('battery')
    parser.add_argument('action', nargs='?')
    parser.add_argument('--site')
    for line in ('house --site home list', '--site home house list', 'house list --site=home'):
        assert vars(parser.parse_args(line.split())) == {'battery': 'house', 'action': 'list', 'site': 'home'}
    with pytest.raises(SystemExit):
        parser.parse_args(['house', 'list', 'more', '--site', 'home'])
    with pytest.raises(SystemExit):
        main.main(['schedule', 'house', '--site', 'home', 'nonsense'])
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_sim_of_what_cannot_be_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'tiny.yaml'
    file.write_text(SITE)
    assert main.main(['sim', str(file), '--quiet']) == 2
    assert 'simulation' in capsys.readouterr().err
    file.write_text('nodes: {}')
    assert main.main(['sim', str(file)]) == 2
    assert 'tiny.yaml:1' in capsys.readouterr().err


def test_an_interrupted_sim_says_so(plugin: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'tiny.yaml'
    file.write_text(SITE)
    plugin['bess.simulation', 'conductor'] = lambda *_, **__: {'simulated_s': 60.0}
    assert main.main(['sim', str(file), '--state', str(tmp_path / 'state')]) == 130
    assert 'interrupted after 60 s' in capsys.readouterr().err


class Control:
    """Stands for the control socket of a device; remembers what came."""

    calls: list[Any] = []

    def __init__(self, path: Path) -> None:
        self.device = Path(path).stem

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None: ...

    def inject(self, fault: str, value: float | None, for_s: float | None, **place: Any) -> None:
        if fault == 'nonsense':
            raise RuntimeError("meter: unknown fault 'nonsense'")
        self.calls.append((self.device, fault, value, for_s, place))

    def clear(self, fault: str) -> None:
        self.calls.append((self.device, 'clear', fault))

    def status(self) -> dict[str, Any]:
        return {'kind': 'em', 'faults': [{'fault': 'late_answer', 'value': None, 'remaining_s': 4.2}]}


@pytest.fixture
def bench(plugin: dict, tmp_path: Path) -> Path:
    plugin['bess.simulation', 'control'] = Control
    plugin['bess.simulation', 'device_faults'] = {'no_answer': 'requests are swallowed'}
    Control.calls = []
    (tmp_path / 'sim').mkdir()
    for name in ('meter', 'world'):
        (tmp_path / 'sim' / f'{name}.sock').touch()
    return tmp_path


def test_inject(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bess(*words: str) -> int:
        return main.main(['inject', *words, '--state', str(bench)])

    assert bess('meter', 'no_answer', '--for', '10s') == 0
    assert bess('world', 'cell_overvoltage', '--value', '3.7', '--unit', 'unit_a', '--index', '3') == 0
    assert bess('meter', 'clear', 'no_answer') == 0
    assert Control.calls == [
        ('meter', 'no_answer', None, 10.0, {}),
        ('world', 'cell_overvoltage', 3.7, None, {'unit': 'unit_a', 'index': 3}), ('meter', 'clear', 'no_answer')]
    capsys.readouterr()
    assert bess('list') == 0
    assert 'late_answer, 4 s left' in capsys.readouterr().out
    assert bess('meter', 'list') == 0
    assert 'requests are swallowed' in capsys.readouterr().out
    assert bess('metre', 'no_answer') == 1
    assert 'there is: meter' in capsys.readouterr().err
    assert bess('meter', 'nonsense') == 1
    assert "unknown fault 'nonsense'" in capsys.readouterr().err


def test_inject_finds_the_site_that_runs(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / 'xdg'
    monkeypatch.setenv('XDG_STATE_HOME', str(base))
    with pytest.raises(session.CliError, match='no site with simulated devices'):
        inject.find_folder(None)
    for number, name in enumerate(('one', 'two')):
        folder = base / 'bess' / name / 'sim'
        folder.mkdir(parents=True)
        (folder / 'world.sock').touch()
        (folder / 'bench.json').write_text(json.dumps({'pid': os.getpid()}))
        if number == 0:
            assert inject.find_folder(None) == folder
    with pytest.raises(session.CliError, match='several sites'):
        inject.find_folder(None)
    (folder / 'bench.json').unlink()  # killed: its sockets stay behind
    assert inject.find_folder(None).parent.name == 'one'


def test_a_room_that_is_not_installed(plugin: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    def absent(group: str, name: str) -> Any:
        raise PluginError(f'unknown {group} {name!r}; known: none')

    monkeypatch.setattr('bess_core.plugins.load', absent)
    for line in (['record', '--out', str(tmp_path)], ['replay', str(tmp_path)], ['inject', 'list']):
        assert main.main(line) == 1
        assert 'known: none' in capsys.readouterr().err


def test_replay_of_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(['replay', str(tmp_path), '--info']) == 1
    assert 'no recording' in capsys.readouterr().err


# -- doctor --------------------------------------------------------------------------------------


def test_ports_and_addresses(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        port = server.getsockname()[1]
        address = f'tcp://127.0.0.1:{port}'
        plain = {'simulated': False, 'running': False}
        assert site_checks.check_address('m', address, **plain).level == 'OK'
        assert site_checks.check_address('m', address, simulated=True, running=False).level == 'FAIL'
        assert site_checks.check_port('d', '127.0.0.1', port, running=True).level == 'OK'
    assert site_checks.check_address('m', address, **plain).level == 'FAIL'
    assert site_checks.check_address('m', address, simulated=True, running=False).level == 'OK'
    assert site_checks.check_address('m', 'tcp://127.0.0.1:99999', **plain).level == 'FAIL'
    assert site_checks.check_address('m', f'serial:{tmp_path}/none?baud=9600', **plain).level == 'FAIL'
    assert site_checks.check_address('m', f'serial:{tmp_path}/none', simulated=True, running=False).level == 'OK'
    (tmp_path / 'port').touch()
    assert site_checks.check_address('m', f'rtu:{tmp_path}/port?baud=9600', **plain).level == 'OK'


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, level in (('', 'OK'), ('7', 'OK'), ('150', 'WARN'), ('233', 'FAIL'), ('x', 'FAIL')):
        monkeypatch.setenv('ROS_DOMAIN_ID', value)
        assert checks.domain().level == level
    monkeypatch.delenv('ROS_LOCALHOST_ONLY', raising=False)
    for value, level in (('LOCALHOST', 'OK'), ('SUBNET', 'WARN'), ('OFF', 'FAIL'), ('lan', 'FAIL')):
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', value)
        assert checks.discovery_range().level == level
    assert checks.state_folder(tmp_path / 'a' / 'b').level == 'OK'
    assert not (tmp_path / 'a').exists()
    assert checks.state_folder(Path('/proc/none')).level == 'FAIL'
    usage = SimpleNamespace(free=1e6, total=1e9)
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage)
    assert checks.disk_space(tmp_path).level == 'FAIL'


def test_a_broken_check_is_a_finding() -> None:
    def broken() -> checks.Finding:
        raise OSError('boom')

    finding = checks.guarded(broken)
    assert finding.level == 'FAIL' and 'boom' in finding.text


def test_progress_and_numbers() -> None:
    assert sim.finite({'a': [1.0, float('nan')], 'b': float('inf')}) == {'a': [1.0, None], 'b': None}
    spans = [words.span(s) for s in (5.0, 60.0, 600.0, 7200.0, 200000.0)]
    assert spans == ['5.0 s', '60 s', '10 min', '2.0 h', '2.3 d']


# -- end to end ----------------------------------------------------------------------------------

ENV = dict(os.environ)  # conftest.py chose a ROS domain of our own
WORDS = [sys.executable, '-m', 'bess_core.cli.main']


def in_a_process(*line: str) -> SimpleNamespace:
    """The command as people start it."""
    done = subprocess.run([*WORDS, *line], env=ENV, capture_output=True, text=True, timeout=30.0, check=False)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope='module')
def site() -> Any:
    """A small site in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__], env=ENV, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == 'ready\n'
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(10.0) == 0


@pytest.fixture(scope='module')
def opened(site: Any) -> Any:
    """One session for all commands of these tests: discovery happens once."""
    with session.open_session() as made:
        assert made.until(lambda: '/home/mute' in made.services() and '/home' in made.sites(), 20.0)
        yield made


@pytest.fixture
def bess(opened: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process on the common session."""

    @contextmanager
    def same(timeout_s: float = session.TIMEOUT_S, *, name: str = '') -> Any:
        opened.timeout = timeout_s
        yield opened

    monkeypatch.setattr(session, 'QUIET_S', 0.1)  # everything here is discovered already
    for name in main.COMMANDS:
        module = importlib.import_module(f'bess_core.cli.{name}')
        if hasattr(module, 'open_session'):
            monkeypatch.setattr(module, 'open_session', same)

    def run(*line: str) -> SimpleNamespace:
        code = main.main(line)
        got = capsys.readouterr()
        return SimpleNamespace(code=code, out=got.out, err=got.err)

    return run


def test_commands_in_processes_of_their_own(site: Any) -> None:
    got = in_a_process('status', '--json')
    assert got.code == 0, got.err
    assert json.loads(got.out)['sites']['/home']['state_name'] == 'RUN'
    got = in_a_process('schedule', 'house', '--current', '10', '--for', '5m')
    assert got.code == 0 and 'charge 10 A' in got.out, got.err
    got = in_a_process('call', 'house/cancel_schedule', '{event_id: 4711}')
    assert got.code == 1 and json.loads(got.out)['accepted'] is False, got.err


def test_ctrl_c_ends_a_watch(site: Any) -> None:
    process = subprocess.Popen([*WORDS, 'watch', '--json', '--period', '0.2', '--timeout', '10'], env=ENV,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())['sites']
    process.send_signal(signal.SIGINT)
    assert process.wait(5.0) == 130


def test_status(bess: Any) -> None:
    got = bess('status', '--json')
    assert got.code == 0, got.err
    seen = json.loads(got.out)
    assert seen['sites']['/home']['state_name'] == 'RUN' and seen['sites']['/home']['mode'] != 'older'
    assert seen['batteries']['/home/house']['soc'] == 0.5 and seen['batteries']['/home/house']['soh'] is None
    assert seen['meters']['/home/meter']['active_power'] == 1234.0
    assert seen['faults'][0]['id'] == 'test.hot' and seen['silent'] == []
    table = bess('watch', '--once', '--site', 'home')
    assert table.code == 0 and '1.23 kW' in table.out and '50.0 %' in table.out and 'CRITICAL' in table.out
    none = bess('status', '--site', 'nowhere', '--timeout', '0.3')
    assert none.code == 1 and '/nowhere' in none.err and '/home' in none.err


def test_watch_topic_and_cells(bess: Any) -> None:
    got = bess('watch', '--topic', '/home/meter/status', '--count', '2', '--for', '10')
    lines = [json.loads(line) for line in got.out.splitlines()]
    assert got.code == 0 and [m['active_power'] for m in lines] == [1234.0, 1234.0]
    latched = bess('watch', '--topic', 'home/system_state', '--once')
    assert latched.code == 0 and json.loads(latched.out)['cause'] == 'test'
    cells = bess('watch', '--cells', 'bms_a', '--once')
    assert cells.code == 0 and '3.302 V' in cells.out and 'spread 4 mV' in cells.out and 'balancing' in cells.out
    lost = bess('watch', '--topic', '/home/metre/status', '--timeout', '0.3')
    assert lost.code == 1 and '/home/meter/status' in lost.err
    lost = bess('watch', '--cells', 'bms_b', '--timeout', '0.3')
    assert lost.code == 1 and '/home/bms_a' in lost.err
    lines = bess('watch', '--for', '0.3', '--period', '0.1').out.splitlines()
    assert len(lines) == 3 and 'RUN: meter 1.23 kW; house 50.0 % -250 W; faults 1' in lines[-1]


def test_schedule(bess: Any) -> None:
    asked = time.time()
    got = bess('schedule', 'house', '--power', '1500', '--start', '+10s', '--for', '30m', '--json')
    answer = json.loads(got.out)
    assert got.code == 0 and answer['accepted'] and answer['end'] - answer['start'] == pytest.approx(1800.0)
    assert 10.0 <= answer['start'] - asked < 10.0 + time.time() - asked
    event = str(answer['event_id'])
    refused = bess('schedule', '/home/house', '--power=-99kW', '--for', '5')
    assert refused.code == 1 and 'refused: at most 5000 W' in refused.err
    listed = bess('schedule', 'house', 'list')
    assert listed.code == 0 and 'charge 1500 W' in listed.out and event in listed.out
    at = bess('schedule', 'house', 'at', '+1m')
    assert at.code == 0 and f'charge 1500 W (event {event}), until 20' in at.out
    there = json.loads(bess('schedule', 'house', 'at', '+1m', '--json').out)
    assert (there['active'], there['value'], there['unit'], there['event_id']) == (True, 1500.0, 'W', int(event))
    assert 'no request' in bess('schedule', 'house', 'at', '+2h').out
    strict = bess('schedule', 'house', '--power', '5', '--for', '5', '--strict')
    assert strict.code == 1 and 'refused: strict' in strict.err
    named = json.loads(bess('schedule', 'house', '--power', '5', '--for', '5', '--id', 'car-1', '--json').out)
    entry = next(e for e in json.loads(bess('schedule', 'house', 'list', '--json').out)['entries']
                 if e['event_id'] == named['event_id'])
    assert (entry['request_id'], entry['source'], entry['start']) == ('car-1', 'bess schedule', 0.0), 'now = zero stamp'
    assert bess('schedule', 'house', 'cancel', event).code == 0
    assert bess('schedule', 'house', '--power', '5', '--start', '+50m', '--for', '1m', '--id', 'mine').code == 0
    assert bess('schedule', 'house', 'cancel', '--id', 'mine').code == 0
    assert bess('schedule', 'house', 'cancel').code == bess('schedule', 'house', 'cancel', '3', '--id', 'x').code == 2
    again = bess('schedule', 'house', 'cancel', event)
    assert again.code == 1 and 'no such request' in again.err
    lost = bess('schedule', '/home/hause', '--current', '5', '--for', '5', '--timeout', '0.3')
    assert lost.code == 1 and '/home/house' in lost.err and lost.err.count('\n') == 1


def test_mode(bess: Any) -> None:
    shown = bess('mode')
    assert shown.code == 0 and '/home: RUN' in shown.out and 'available: peak, self_consumption, none' in shown.out
    assert bess('mode', 'peak').code == 0
    assert bess('mode', 'self_consumption', 'on').code == 0
    assert 'beside it: self_consumption' in bess('mode').out
    assert bess('mode', 'self_consumption', 'off').code == 0
    assert json.loads(bess('mode', '--json').out)['mode'] == 'peak'
    wrong = bess('mode', 'peek')
    assert wrong.code == 1 and 'peak, self_consumption' in wrong.err
    assert bess('mode', 'stop').out.strip() == '/home: stopped'
    assert json.loads(bess('mode', 'maintenance', 'on', '--json').out) == {
        'site': '/home', 'accepted': True, 'message': 'maintenance True'}
    refused = bess('mode', 'start')
    assert refused.code == 1 and refused.err == '/home: refused\n'


def test_faults(bess: Any) -> None:
    listed = json.loads(bess('faults', '--json').out)
    assert [(f['source'], f['id'], f['severity_name']) for f in listed] == [('bms_a', 'test.hot', 'CRITICAL')]
    text = bess('faults')
    assert 'latched' in text.out and 'too hot' in text.out
    refused = bess('faults', 'clear', 'bms_a', 'test.other')
    assert refused.code == 1 and "no fault 'test.other'" in refused.err
    assert bess('faults', 'clear', 'bms_a/test.other').err == refused.err, 'as other commands show it'
    assert bess('faults', 'clear', 'bms_a').code == 0
    assert bess('faults').out == 'no faults\n'
    lost = bess('faults', 'clear', '/home/bms_x', '--timeout', '0.3')
    assert lost.code == 1 and '/home/bms_a' in lost.err


def test_a_list_of_faults_says_what_it_has_not_heard(bess: Any, opened: Any, monkeypatch: pytest.MonkeyPatch,
                                                     tmp_path: Path) -> None:
    """"No faults" must not mean "not discovered yet"."""
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    assert bess('faults', 'list').err == ''
    note = running.announce('/home', tmp_path, ['ghost'])
    try:
        assert opened.undiscovered() == opened.undiscovered('/home') == ['/home/ghost_process']
        assert opened.undiscovered('/other') == []
        got = bess('faults', '--timeout', '0.3')
        assert got.code == 0 and 'their faults are missing here: /home/ghost_process' in got.err
    finally:
        os.close(note)
    assert bess('faults').err == ''


def test_a_fault_is_explained_without_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ('climate.interlock', 'climate/climate.interlock'):
        assert main.main(['faults', 'explain', word]) == 0
        text = capsys.readouterr().out
        assert text.startswith('climate.interlock: WARNING') and 'What to do:' in text
    assert main.main(['faults', 'explain', 'comm.timeout', '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['raised_by'] == 'every driver' and told['meaning'] and told['action']
    assert main.main(['faults', 'explain', 'climate.interlok']) == 1
    assert 'close: climate.interlock' in capsys.readouterr().err


def test_nodes_and_lifecycle(bess: Any) -> None:
    (node,) = json.loads(bess('nodes', '--json').out)
    assert (node['name'], node['state'], node['process']) == ('/home/bms_a', 'unconfigured', 'control')
    assert node['heartbeat_age_s'] < 5.0
    moved = bess('call', '/home/bms_a/change_state', '{transition: {label: configure}}')
    assert moved.code == 0 and json.loads(moved.out) == {'success': True}
    assert json.loads(bess('call', 'bms_a/get_state').out)['current_state']['label'] == 'inactive'
    assert 'inactive' in bess('nodes').out
    refused = bess('call', 'bms_a/change_state', '{transition: {id: 4}}')
    assert refused.code == 1 and json.loads(refused.out) == {'success': False}


def test_call(bess: Any) -> None:
    wrong = bess('call', 'house/schedule_set_power', '{power: 5, ends: now}')
    assert wrong.code == 2 and "did you mean 'end'" in wrong.err
    typed = bess('call', '/home/house/schedule_set_power', 'bess/srv/ScheduleSetPower', '{power: 7, end: +1h}')
    assert typed.code == 0 and json.loads(typed.out)['accepted']
    other = bess('call', '/home/house/schedule_set_power', 'std_srvs/srv/Trigger')
    assert other.code == 1 and 'is of type bess/srv/ScheduleSetPower' in other.err
    lost = bess('call', '/home/house/schedule_set_powr', '--timeout', '0.3')
    assert lost.code == 1 and '/home/house/schedule_set_power' in lost.err
    several = bess('call', 'again')
    assert several.code == 2 and '/home/again, /home/house/again' in several.err
    shown = bess('call', 'house/list_schedule', '--fields')
    assert shown.code == 0 and '    nanosec: uint32' in shown.out and 'sequence<bess/ScheduleEntry>' in shown.out
    assert json.loads(bess('call', '--list', '--json').out)['/home/mute'] == 'std_srvs/srv/Trigger'
    mute = bess('call', '/home/mute', '--timeout', '0.3')
    assert mute.code == 1 and 'no answer within 0.3 s' in mute.err


def test_an_answer_that_was_lost_is_asked_for_again(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has not found the client yet loses its answers."""
    from rclpy.task import Future

    from bess.srv import ListSchedule, ScheduleSetPower
    from bess_core.cli import session as module

    monkeypatch.setattr(module, 'AGAIN_S', 0.1)
    asked: list[Any] = []

    class Lossy:
        """Client whose first two requests are never answered."""

        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self.client, name)

        def call_async(self, request: Any) -> Any:
            asked.append(request)
            return Future() if len(asked) < 3 else self.client.call_async(request)

    make = opened.node.create_client
    monkeypatch.setattr(opened.node, 'create_client', lambda *a, **k: Lossy(make(*a, **k)))
    monkeypatch.setattr(opened.node, 'destroy_client', lambda client: None)
    assert opened.call('/home/house/list_schedule', ListSchedule, ListSchedule.Request()) is not None
    assert len(asked) == 3
    asked.clear()
    with pytest.raises(module.CliError, match='no answer'):  # what may do something twice is asked once
        opened.call('/home/house/schedule_set_power', ScheduleSetPower, ScheduleSetPower.Request(), deadline_s=0.5)
    assert len(asked) == 1


def test_a_second_site_must_be_named(bess: Any, opened: Any) -> None:
    from bess.msg import SystemState

    other = opened.node.create_publisher(SystemState, '/annex/system_state', 1)
    several = bess('mode')
    opened.node.destroy_publisher(other)
    assert several.code == 2 and '/annex, /home' in several.err


def test_record_and_replay(bess: Any, opened: Any, plugin: dict, tmp_path: Path) -> None:
    from bess.msg import MeterStatus
    from bess_telemetry.replay_node import NodePublishers

    plugin['bess.telemetry', 'publishers'] = NodePublishers
    got = bess('record', '--out', str(tmp_path), '--for', '1.5', '--topics', '/home/meter/*', '--json')
    assert got.code == 0, got.err
    result = json.loads(got.out)
    assert result['topics'] == ['/home/meter/status'] and result['messages'] > 3 and result['dropped'] == 0
    told = json.loads(bess('replay', result['bag'], '--info', '--json').out)
    assert told['messages'] == result['messages']
    assert told['topics']['/home/meter/status']['type'] == 'bess/msg/MeterStatus'
    assert 'bess/msg/MeterStatus' in bess('replay', result['bag'], '--info').out
    live = bess('replay', result['bag'])
    assert live.code == 1 and 'published by somebody now' in live.err
    again: list[float] = []
    opened.node.create_subscription(
        MeterStatus, '/again/home/meter/status', lambda m: again.append(m.active_power), 100)
    played = bess('replay', result['bag'], '--rate', '4', '--prefix', 'again', '--wait', '10', '--force', '--json')
    assert played.code == 0 and json.loads(played.out)['messages'] == result['messages']
    assert again == [1234.0] * result['messages']
    no_topic = bess('replay', result['bag'], '--topics', '/x*')
    assert no_topic.code == 1 and '/home/meter/status' in no_topic.err
    nothing = bess('record', '--out', str(tmp_path), '--for', '0.3', '--topics', '/nothing')
    assert nothing.code == 1 and 'no message came' in nothing.err


def test_doctor(tmp_path: Path) -> None:
    file = tmp_path / 'tiny.yaml'
    file.write_text(SITE)
    got = in_a_process('doctor', str(file), '--state', str(tmp_path), '--json')
    found = {f['name']: f for f in json.loads(got.out)}
    for name in ('python', 'rclpy', 'interfaces', 'field checks', 'executor', 'state folder', 'site file'):
        assert found[name]['level'] == 'OK', found[name]
    assert got.code == any(f['level'] == 'FAIL' for f in found.values())


def test_doctor_tells_what_is_wrong_with_a_site(tmp_path: Path) -> None:
    file = tmp_path / 'tiny.yaml'
    file.write_text(SITE.replace('type: site', 'type: sight'))
    (finding,) = site_checks.check_site(str(file), tmp_path, [])
    assert finding.level == 'FAIL' and 'tiny.yaml:4' in finding.text
    file.write_text(SITE)
    assert [f.level for f in site_checks.check_site(str(file), tmp_path, [])] == ['OK', 'OK']


# -- the small site ------------------------------------------------------------------------------


def serve() -> None:
    """A site with one battery, one meter, one real lifecycle node and scripted answers."""
    from dataclasses import dataclass
    from tempfile import mkdtemp

    from std_srvs.srv import SetBool, Trigger

    from bess.msg import BatteryStatus, CellArray, MeterStatus, ScheduleEntry, SystemState
    from bess.srv import CancelSchedule, ListSchedule, ScheduleAt, ScheduleSetCurrent, ScheduleSetPower, SetMode
    from bess_core import qos
    from bess_core.clock import Clock
    from bess_core.context import NodeContext
    from bess_core.node import BessNode
    from bess_core.runtime import Runtime
    from bess_core.ticker import RealTicker
    from bess_core.values import Severity

    @dataclass(frozen=True)
    class Params:
        """None."""

    class Bms(BessNode):
        """Real lifecycle, heartbeat and faults."""

    Bms.Params = Params
    with Runtime() as runtime:
        from rclpy.node import Node

        clock = Clock()
        ticker = RealTicker(clock, runtime.post)
        bms = Bms('bms_a', Params(), NodeContext('/home', Path(mkdtemp()), clock, ticker, runtime.post))
        bms.raise_fault('test.hot', Severity.CRITICAL, 'too hot: 71 degC')
        bms.clear_fault('test.hot')
        node = Node('rest', namespace='/home', start_parameter_services=False, enable_rosout=False)
        state = node.create_publisher(SystemState, 'system_state', qos.STATE)
        now = SystemState(state=SystemState.RUN, cause='test', mode='self_consumption')
        state.publish(now)
        # What the state was before has the same type on another topic, and is heard by who comes late, too.
        history = node.create_publisher(SystemState, 'site_transitions', qos.TRANSITIONS)
        history.publish(SystemState(state=SystemState.INIT, cause='long ago', mode='none'))
        battery = node.create_publisher(BatteryStatus, 'house/status', qos.MEASUREMENT)
        meter = node.create_publisher(MeterStatus, 'meter/status', qos.MEASUREMENT)
        cells = node.create_publisher(CellArray, 'bms_a/cells', qos.MEASUREMENT)
        entries: dict[int, ScheduleEntry] = {}

        def publish(_: object) -> None:
            battery.publish(BatteryStatus(power=-250.0, soc=0.5, soh=float('nan'), max_charge_power=5000.0))
            meter.publish(MeterStatus(active_power=1234.0))
            cells.publish(CellArray(voltages=[3.3, 3.302, 3.304], temperatures=[21.5], balancing=[False, False, True]))

        def add(value: float, is_power: bool, request: Any, response: Any) -> Any:
            response.accepted = abs(value) <= 5000.0 and not request.strict
            response.message = 'strict' if request.strict else ''
            if response.accepted:
                response.event_id = len(entries) + 5
                entries[response.event_id] = ScheduleEntry(
                    event_id=response.event_id, start=request.start, end=request.end, is_power=is_power, value=value,
                    source=request.source, request_id=request.request_id)
            elif not request.strict:
                response.message = 'at most 5000 W'
            return response

        def listing(request: Any, response: Any) -> Any:
            response.entries = list(entries.values())
            return response

        def at(request: Any, response: Any) -> Any:
            for e in entries.values():
                if e.start.sec <= request.at.sec < e.end.sec:
                    response.active, response.is_power, response.value = True, True, e.value
                    response.event_id, response.until = e.event_id, e.end
            return response

        def cancel(request: Any, response: Any) -> Any:
            by_id = {e.request_id: n for n, e in entries.items()}
            event = by_id.get(request.request_ids[0], 0) if request.request_ids else request.event_id
            response.accepted = entries.pop(event, None) is not None
            response.cancelled = int(response.accepted)
            response.message = '' if response.accepted else 'no such request'
            return response

        def set_mode(request: Any, response: Any) -> Any:
            response.available = ['peak', 'self_consumption']
            response.accepted = request.mode in response.available
            response.message = 'ok' if response.accepted else f'unknown mode {request.mode!r}'
            if response.accepted and request.action:
                now.modes = [request.mode] if request.action == SetMode.Request.ADD else []
                state.publish(now)
            elif response.accepted:
                now.mode = request.mode
                state.publish(now)
            return response

        def say(ok: bool, text: str, response: Any) -> Any:
            response.success, response.message = ok, text
            return response

        def mute(_: Any, response: Any) -> Any:
            time.sleep(0.5)  # longer than the caller waits
            return response

        for name, kind, answer in (
                ('house/schedule_set_power', ScheduleSetPower, lambda q, r: add(q.power, True, q, r)),
                ('house/schedule_set_current', ScheduleSetCurrent, lambda q, r: add(q.current, False, q, r)),
                ('house/list_schedule', ListSchedule, listing), ('house/schedule_at', ScheduleAt, at),
                ('house/cancel_schedule', CancelSchedule, cancel),
                ('again', Trigger, mute), ('house/again', Trigger, mute), ('mute', Trigger, mute),
                ('site/set_mode', SetMode, set_mode),
                ('site/start', Trigger, lambda q, r: say(False, 'refused', r)),
                ('site/stop', Trigger, lambda q, r: say(True, 'stopped', r)),
                ('site/set_maintenance', SetBool, lambda q, r: say(True, f'maintenance {q.data}', r))):
            node.create_service(kind, name, answer)
        ticker.every(0.1, publish)
        runtime.executor.add_node(bms)
        runtime.executor.add_node(node)
        print('ready', flush=True)
        runtime.spin()
        ticker.stop()
        bms.close()
        for known in (bms, node):
            runtime.executor.remove_node(known)
            known.destroy_node()


if __name__ == '__main__':
    serve()


def test_the_line_for_a_log_names_each_meter() -> None:
    from types import SimpleNamespace

    from bess_core.cli.render import brief

    def seen(**fields: float) -> SimpleNamespace:
        return SimpleNamespace(message=SimpleNamespace(**fields))

    observer = SimpleNamespace(
        states={'/home': seen(state=1)}, faults=[], batteries={'/home/all': seen(soc=0.5, power=-429.0)},
        meters={'/home/pv_meter': seen(active_power=-108.0), '/home/meter': seen(active_power=23.0)})
    assert brief(observer) == 'RUN: meter 23 W, pv_meter -108 W; all 50.0 % -429 W; faults 0'  # type: ignore[arg-type]
    empty = SimpleNamespace(states={}, faults=[], batteries={}, meters={})
    assert brief(empty) == '?: no meter; no battery; faults 0'  # type: ignore[arg-type]
