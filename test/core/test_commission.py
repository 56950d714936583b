"""Judgements and the stored report of `bess commission`, and the words of `bess test`."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bess_core.cli.commission import checklist
from bess_core.cli.commission_checks import OPEN, Item, configured_limits, growing, load, signs
from bess_core.cli.device_checks import FAIL, OK, SKIP, WARN, Finding
from bess_core.cli.session import CliError
from bess_core.cli.test import plot, steps_of


def moved(converter: float = 800.0, battery: float = 790.0, meter: float = 805.0) -> dict[str, Any]:
    return {'converter': ('inv', converter), 'battery': ('bms', battery), 'meter': ('em', meter)}


def test_signs_that_agree() -> None:
    assert {f.level for f in signs('inv', 800.0, moved())} == {OK}


def test_battery_and_meter_that_disagree_are_refused_with_the_explanation() -> None:
    last = signs('inv', 800.0, moved(meter=-805.0))[-1]
    assert last.level == FAIL and last.name == 'battery and meter disagree'
    assert 'charging inv lowered the import at em' in last.text and 'change `invert` of em' in last.text
    last = signs('inv', 800.0, moved(battery=-790.0))[-1]
    assert last.level == FAIL and last.name == 'signs disagree' and 'bms' in last.text
    assert signs('inv', 800.0, moved(converter=-800.0, battery=-790.0, meter=-800.0))[-1].level == FAIL


def test_signs_that_cannot_be_told() -> None:
    assert [f.level for f in signs('inv', 800.0, moved(battery=nan, meter=100.0))] == [OK, SKIP, WARN]
    assert [f.level for f in signs('inv', 800.0, moved(meter=-100.0))][-1] == WARN


def test_worst_finding_decides_and_what_is_skipped_hides_nothing() -> None:
    item = Item('a', 'A')
    for levels, result in (([OK, WARN], WARN), ([OK, SKIP], OK), ([SKIP], SKIP), ([OK, FAIL, WARN], FAIL), ([], SKIP)):
        item.take([Finding(level, 'n', 't') for level in levels], 'eva', 5.0)
        assert (item.result, item.by, len(item.evidence)) == (result, 'eva', len(levels))


def test_the_report_is_gone_on_with_until_the_site_file_changes(tmp_path: Path) -> None:
    report, why = load(tmp_path, 'home', 'abc')
    assert (report.items, why, report.verdict) == ([], '', OPEN)
    titles = {'a': 'A', 'b': 'B'}
    report.merge(titles, again=False)
    report.items[0].take([Finding(OK, 'x', 'y')], 'eva', 1.0)
    report.save(tmp_path)
    again, why = load(tmp_path, 'home', 'abc')
    again.merge({**titles, 'c': 'C'}, again=False)
    assert [i.result for i in again.items] == [OK, OPEN, OPEN] and why == ''
    again.items[1].take([Finding(FAIL, 'x', 'y')], 'eva', 1.0)
    assert again.verdict == 'refused'
    again.merge(titles, again=False)  # what failed is made again
    assert [i.result for i in again.items] == [OK, OPEN] and again.verdict == OPEN
    again.items[1].take([Finding(WARN, 'x', 'y')], 'eva', 1.0)
    again.save(tmp_path)
    assert json.loads((tmp_path / 'commissioning' / 'report.json').read_text())['verdict'] == 'commissioned'
    assert '[ok  ] A (a)' in (tmp_path / 'commissioning' / 'report.txt').read_text()
    changed, why = load(tmp_path, 'home', 'other')
    assert changed.items == [] and 'has changed' in why
    (tmp_path / 'commissioning' / 'report.json').write_text('{"site": 1')
    assert 'cannot be read' in load(tmp_path, 'home', 'abc')[1]


def test_limits_and_recordings() -> None:
    status = SimpleNamespace(max_charge_current=0.0, max_discharge_current=80.0, max_charge_power=nan,
                             max_discharge_power=nan)
    assert [f.level for f in configured_limits(status, {'max_discharge_current': 90.0})] == [WARN, OK]
    unknown = SimpleNamespace(**dict.fromkeys(vars(status), nan))
    assert configured_limits(unknown, {})[0].level == FAIL
    assert growing({'a': 1}, {'a': 2}, 1.0).level == OK
    assert growing({'a': 1}, {'a': 1}, 1.0).level == growing({}, {}, 1.0).level == FAIL


def test_the_list_follows_the_site() -> None:
    nodes = [SimpleNamespace(name=n, role=r, params=SimpleNamespace(read_only=n == 'inv2'))
             for n, r in (('em', 'meter'), ('bms', 'bms'), ('inv', 'converter'), ('inv2', 'converter'), ('x', 'mode'))]
    found = list(checklist(SimpleNamespace(nodes=nodes)))
    assert found == ['clock', 'site', 'faults', 'reads.em', 'reads.bms', 'reads.inv', 'reads.inv2', 'limits.bms',
                     'signs.inv', 'emergency_stop', 'recording']


def test_words_of_a_test() -> None:
    assert steps_of('step', ['1000', '-5e2'], 3.0) == ['hold:1000:3', 'hold:-500:3']
    assert steps_of('ramp', ['0'], 1.5) == ['ramp:0:1.5'] and steps_of('transitions', [], 1.0)[0] == 'stop'
    for what, values in (('hold', ['1', '2']), ('hold', []), ('step', ['x']), ('run', []), ('transitions', ['1'])):
        with pytest.raises(CliError):
            steps_of(what, values, 1.0)


def test_a_picture_of_the_response() -> None:
    lines = plot([0.0, 1.0, 2.0], [nan, 100.0, -100.0], [0.0, 90.0, nan])
    assert lines[0].startswith('     100 |') and any('*' in line for line in lines) and '2 s' in lines[-1]
    assert plot([], [], []) == [] and plot([0.0], [nan], [nan]) == []
    assert plot([0.0], [0.0], [0.0])
