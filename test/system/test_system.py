"""Record of the system, changes of parameters, and the system node on real DDS."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from bess.msg import BatteryStatus, SystemInfo, SystemState
from bess.srv import GetSystemInfo, ListSiteParameters, SetSiteParameter
from bess_control.system.record import DAY_S, SystemRecord, boot_time, restored
from bess_control.system.system_node import SystemNode
from bess_core import qos, site_changes
from bess_core import site as site_module
from bess_core.convert import battery_to_msg
from bess_core.site_changes import FILE, Change, ChangesError
from bess_core.values import BatteryReading, Quality

SITE = '''
site: {name: home, features: {backup: false, extra: true}}
nodes:
  bms: {type: jbd, address: "tcp://127.0.0.1:1"}
  meter: {type: carlo_gavazzi, address: "tcp://127.0.0.1:2", period: 0.5}
  spare: {type: jbd, address: "tcp://127.0.0.1:3", feature: backup}
'''


def test_what_is_counted_survives() -> None:
    r = SystemRecord()
    for wall, soc, spread, current in ((0.0, 0.5, 0.02, 50.0), (10.0, 0.999, 0.03, 0.0), (20.0, 0.9, 0.01, 1.0),
                                       (DAY_S + 1.0, 0.04, 0.05, 0.0), (DAY_S + 2.0, 0.5, nan, 0.0)):
        r.battery(soc, spread, current, wall)
    r.step(5.0, asleep=True)
    r.step(7.0, asleep=False)
    r.step(-1.0, asleep=True)
    assert (r.last_full_charge, r.last_empty, r.runtime, r.sleep_time) == (10.0, DAY_S + 1.0, 12.0, 5.0)
    assert r.balance == [[10.0, 0.01], [DAY_S + 1.0, 0.05]]
    assert restored(r.to_dict()) == r


@pytest.mark.parametrize('bad', [None, {}, {**SystemRecord().to_dict(), 'runtime': -1},
                                 {**SystemRecord().to_dict(), 'runtime': nan},
                                 {**SystemRecord().to_dict(), 'balance': [1]}, {**SystemRecord().to_dict(), 'x': 1}])
def test_damaged_records_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match='system record'):
        restored(bad)


def test_boot_time() -> None:
    assert boot_time('cpu 1\nbtime 1700000000\n') == 1.7e9
    assert boot_time('') == 0.0


def test_changes_fold_and_go_back(tmp_path: Path) -> None:
    for revision, values in enumerate([{'a.b': '1'}, {'a.b': '2', 'c.d': '3'}, {'c.d': ''}], 1):
        site_changes.append(tmp_path, Change(revision, 0.0, 'eva', '', values))
    with (tmp_path / FILE).open('ab') as file:
        file.write(b'{"revision": 4, "ti')  # a torn write was never accepted
    changes = site_changes.load(tmp_path)
    assert (changes.revision, changes.values(), changes.values(2)) == (3, {'a.b': '2'}, {'a.b': '2', 'c.d': '3'})
    assert changes.back_to(1) == {'a.b': '1'}
    assert changes.back_to(2) == {'c.d': '3'}
    assert changes.back_to(0) == {'a.b': ''}
    with pytest.raises(ValueError, match='no revision 9'):
        changes.back_to(9)
    site_changes.append(tmp_path, changes.next({'a.b': '7'}, 'eva', '', 1.0))
    assert site_changes.overrides(tmp_path) == ['a.b=7']


@pytest.mark.parametrize('line', ['nonsense', '[]', '{"revision": 1}', '{"revision": 0, "time": 0, "by": "", '
                                  '"comment": "", "values": {}}', '{"revision": 1, "time": 0, "by": "", "comment": "", '
                                  '"values": {"a": 3}}'])
def test_damaged_changes_stop_with_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE).write_text(line + '\n')
    with pytest.raises(ChangesError, match=f'{FILE}:1'):
        site_changes.load(tmp_path)


def load(tmp_path: Path, text: str = SITE, *overrides: str) -> site_module.Site:
    file = tmp_path / 'site.yaml'
    file.write_text(text)
    return site_module.load(file, state=tmp_path / 'state', overrides=overrides)


def test_a_site_is_its_file_and_its_changes(tmp_path: Path) -> None:
    assert [n.name for n in load(tmp_path).nodes] == ['bms', 'meter']
    site_changes.append(tmp_path / 'state', Change(1, 0.0, 'eva', '', {
        'nodes.meter.period': '0.25', 'site.features.backup': 'true'}))
    changed = load(tmp_path)
    assert changed.node('meter').params.period == 0.25
    assert [n.name for n in changed.nodes] == ['bms', 'meter', 'spare']
    assert load(tmp_path, SITE, 'nodes.meter.period=1.0').node('meter').params.period == 1.0, '--set wins'
    site_changes.append(tmp_path / 'state', Change(2, 0.0, 'eva', '', {'nodes.meter.period': '-4'}))
    with pytest.raises(site_module.SiteError, match=r'recorded parameter nodes\.meter\.period=-4'):
        load(tmp_path)


@pytest.mark.parametrize(('old', 'new', 'text'), [
    ('feature: backup', 'feature: bakcup', "unknown feature 'bakcup'"), ('backup: false', 'backup: 3', 'true or false')])  # noqa: E501
def test_features_that_cannot_be(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(site_module.SiteError, match=text):
        load(tmp_path, SITE.replace(old, new))


@pytest.fixture
def system(graph: Any, tmp_path: Path) -> Any:
    file = tmp_path / 'site.yaml'
    file.write_text(SITE)
    graph.ctx = replace(graph.ctx, state_dir=tmp_path / 'state', nodes={})
    graph.ctx.site = site_module.load(file, state=tmp_path / 'state')
    node = graph.add(SystemNode, 'system', {'battery': 'bms', 'period': 0.1, 'serial': 'S1'})
    graph.up(node)
    return node


def test_information_by_topic_and_service(graph: Any, system: Any) -> None:
    infos = graph.listen(SystemInfo, 'system/info', qos.STATE)
    battery = graph.publisher(BatteryStatus, 'bms/status', qos.MEASUREMENT)
    state = graph.publisher(SystemState, 'system_state', qos.STATE)
    now = graph.clock.now()
    battery.publish(battery_to_msg(BatteryReading(
        time=now, newest=now, quality=Quality.OK, soc=0.998, soh=0.97, current=0.0, charge_full=100.0,
        cell_voltage_min=3.40, cell_voltage_max=3.42), graph.clock))
    state.publish(SystemState(state=SystemState.SLEEP, mode='a'))
    graph.wait(lambda: infos and infos[-1].state == 'SLEEP' and infos[-1].sleep_time > 0.1, 'asleep')
    graph.wait(lambda: infos[-1].soc == 0.998, 'battery')
    info = graph.call(GetSystemInfo, 'system/get_info').info
    assert (info.site, info.serial, info.starts, info.mode, info.soh) == ('home', 'S1', 1, 'a', 0.97)
    assert info.version and info.boot.sec > 0 and info.last_full_charge.sec > 0
    assert list(info.balance_spread) == pytest.approx([0.02])
    assert list(info.features) == ['backup=off', 'extra=on']
    system.trigger_deactivate()
    system.trigger_cleanup()
    graph.remove(system)
    again = graph.add(SystemNode, 'system', {'period': 0.1})
    graph.up(again)
    info = graph.call(GetSystemInfo, 'system/get_info').info
    assert info.starts == 2
    assert info.last_full_charge.sec > 0


def test_parameters_are_checked_recorded_and_taken_back(graph: Any, system: Any) -> None:
    def change(**fields: Any) -> Any:
        return graph.call(SetSiteParameter, 'system/set_parameters', SetSiteParameter.Request(**{'by': 'eva', **fields}))  # noqa: E501

    def show(pattern: str, **fields: Any) -> list[Any]:
        answer = graph.call(ListSiteParameters, 'system/list_parameters',
                            ListSiteParameters.Request(pattern=pattern, **fields))
        assert not answer.problems
        return list(answer.parameters)

    name = 'nodes.meter.period'
    (before,) = show(name)
    assert (before.value, before.unit, before.revision, before.pending) == ('0.5', 's', 0, False)
    assert before.allowed and before.description
    for names, values, text in (
            ([name], ['-1'], 'nodes.meter.period'), ([name], ['fast'], 'not a number'), (['nodes.no.x'], ['1'], 'no'),
            ([name, name], ['1', '1'], 'twice'), ([name], [], 'equally many'), (['site.name'], ['x'], 'not nodes.NODE'),
            (['nodes.meter.type'], ['jbd'], 'not nodes.NODE'), ([name], ['{'], 'cannot be read'),
            (['site.features.backup'], ['maybe'], 'true or false')):
        answer = change(names=names, values=values)
        assert not answer.accepted
        assert text in answer.message, answer.message
    assert not change(names=[name], values=['1'], by=' ').accepted
    assert site_changes.load(graph.ctx.state_dir).revision == 0, 'nothing was recorded'
    answer = change(names=[name, 'site.features.backup'], values=['0.2', 'true'], comment='faster')
    assert (answer.accepted, answer.revision) == (True, 1), answer.message
    (after,) = show(name)
    assert (after.value, after.default_value, after.pending, after.changed_by) == ('0.2', '0.5', True, 'eva')
    assert change(names=[name], values=['']).revision == 2
    assert show(name)[0].value == '0.5'
    assert change(rollback=True, revision=1).revision == 3
    assert show(name)[0].value == '0.2'
    assert [(p.revision, p.value) for p in show(name, history=True)] == [(1, '0.2'), (2, ''), (3, '0.2')]
    assert not change(rollback=True, revision=9).accepted
    assert 'nothing would change' in change(rollback=True, revision=3).message
