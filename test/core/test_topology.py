"""Changes of the topology: whatever is asked in whatever order, the site stays one that a site file could be."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core import overlay, site, topology
from bess_core.cli import battery
from bess_core.cli.session import CliError
from bess_core.cli.tree import draw
from bess_core.overlay import ConflictError, Overlay, OverlayError
from bess_core.topology import RefusedError
from bess_core.topology_tree import rows, tree

NAMES = ('u1', 'u2', 'u3', 'all', 'x', 'y', 'z')
TEXT = """
site: {name: home}
nodes:
  b1: {type: jbd, address: 'serial:/dev/null1'}
  b2: {type: jbd, address: 'serial:/dev/null2'}
  b3: {type: jbd, address: 'serial:/dev/null3'}
  i1: {type: sunspec_inverter, address: 'tcp://127.0.0.1:1001', bms: b1}
  i2: {type: sunspec_inverter, address: 'tcp://127.0.0.1:1002', bms: b2}
  i3: {type: sunspec_inverter, address: 'tcp://127.0.0.1:1003', bms: b3}
  u1: {type: unit, bms: b1, converter: i1}
  u2: {type: unit, bms: b2, converter: i2}
  u3: {type: unit, bms: b3, converter: i3}
  all: {type: aggregate, members: [u1, u2]}
  mode: {type: self_consumption, battery: all, meter: meter}
  meter: {type: carlo_gavazzi, address: 'tcp://127.0.0.1:1004'}
"""


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> site.Site:
    file = tmp_path_factory.mktemp('site') / 'home.yaml'
    file.write_text(TEXT)
    return site.load(file, variables={'state': '/state'})


def carry_out(before: site.Site, made: Overlay) -> site.Site:
    after = topology.checked(before, made, author='a', text='t', wall=1.0)
    topology.plan(before, after, 'control')
    return after


name = st.sampled_from(NAMES)
change = st.one_of(
    st.tuples(st.just('create'), name, st.lists(name, max_size=3)), st.tuples(st.just('part'), name, name),
    st.tuples(st.just('destroy'), name, st.booleans()), st.tuples(st.just('reparent'), name, name | st.just('')),
    st.tuples(st.just('configure'), name, st.sampled_from(['sum', 'together', None])))


def prepared(at: site.Site, verb: str, which: str, what: Any) -> Overlay:
    if verb == 'create':
        return topology.create(at, which, 'aggregate', what, {})
    if verb == 'part':
        share = {'energy': 1.0, 'charge_power': 1.0, 'discharge_power': 1.0}
        return topology.create(at, which, 'partition', [what], {'children': {f'{which}_child': share}})
    if verb == 'destroy':
        return topology.destroy(at, which, cascade=what)[0]
    if verb == 'reparent':
        return topology.reparent(at, which, what)
    return topology.configure(at, which, {'limit': what})


@given(st.lists(change, max_size=8))
@settings(max_examples=60)
def test_any_changes_keep_every_invariant(home: site.Site, changes: list[Any]) -> None:
    at = home
    for verb, which, what in changes:
        try:
            made = prepared(at, verb, which, what)
            after = carry_out(at, made)
        except RefusedError as error:
            assert str(error)
            continue
        assert after.overlay.revision == at.overlay.revision + 1
        at = after
        by_name = {n.name: n for n in at.nodes}
        assert len(by_name) == len(at.nodes)
        order = [n.name for n in at.nodes]
        owned = [m for n in at.nodes for m in topology.owned(n)]
        assert len(owned) == len(set(owned)), 'nothing is used twice'
        for node in at.nodes:
            for ref in node.refs:
                assert ref in by_name, 'nothing is orphaned'
                assert order.index(ref) < order.index(node.name), 'and there is no cycle'
            assert node.name not in topology.ancestors(at, node.name)
        # What is stored makes the same site at the next start.
        assert home.again is not None
        stored = Overlay.from_dict(json.loads(json.dumps(at.overlay.to_dict())))
        again = home.again(stored)
        assert {n.name: n.params for n in again.nodes} == {n.name: n.params for n in at.nodes}
        drawn = [b.name for _, b in rows(tree(
            [SimpleNamespace(**topology.describe(at, n, topology.owners(at))) for n in at.nodes], {}))]
        batteries = {n.name for n in at.nodes if n.role in topology.ROLES}
        assert batteries <= set(drawn), 'every battery is in the tree'


def test_plan_names_what_is_touched_and_no_more(home: site.Site) -> None:
    after = carry_out(home, topology.create(home, 'x', 'aggregate', ['u3'], {}))
    plan = topology.plan(home, after, 'control')
    assert ([s.name for s in plan.made], plan.removed, plan.replaced, plan.moved) == (['x'], (), (), ('u3',))
    moved = carry_out(after, topology.reparent(after, 'u2', 'x'))
    plan = topology.plan(after, moved, 'control')
    assert {s.name for s in plan.replaced} == {'all', 'x'}
    assert plan.moved == ('u2',)
    assert set(plan.disturbed) == {'u2', 'all', 'x'}
    assert moved.overlay.changed == {'all': {'members': ['u1']}}, 'a change of the file keeps the rest of its entry'
    with pytest.raises(RefusedError, match='process'):
        topology.plan(after, moved, 'telemetry')


def test_what_the_command_line_sets_goes_before(tmp_path: Path) -> None:
    file = tmp_path / 'home.yaml'
    file.write_text(TEXT)
    at = site.load(file, overrides=['nodes.all.limit=sum'])
    with pytest.raises(RefusedError, match='changes nothing'):
        carry_out(at, topology.configure(at, 'all', {'limit': 'together'}))


def test_destroy_names_who_uses_it_and_cascades_over_batteries_only(home: site.Site) -> None:
    with pytest.raises(RefusedError, match=r'u1 is used by all \(aggregate\)'):
        topology.destroy(home, 'u1')
    with pytest.raises(RefusedError, match=r'mode \(self_consumption\)'):
        topology.destroy(home, 'u1', cascade=True)
    at = carry_out(home, topology.create(home, 'x', 'aggregate', ['u3'], {}))
    made, gone = topology.destroy(at, 'u3', cascade=True)
    assert gone == ('x', 'u3')
    assert made.removed == ('u3',)
    assert carry_out(at, made).overlay.created == {}
    for driver in ('b1', 'i1', 'mode'):
        with pytest.raises(RefusedError, match='not a battery'):
            topology.destroy(home, driver)


def test_stored_and_read_again_with_a_conflict_for_the_second(tmp_path: Path) -> None:
    assert overlay.read(tmp_path) == Overlay()
    one = Overlay().with_change('one', 'a', 1.0, created={'x': {'type': 'aggregate', 'members': ['a']}})
    overlay.write(tmp_path, one, expected=0)
    assert overlay.read(tmp_path) == one
    with pytest.raises(ConflictError, match='at revision 1 by now, not 0'):
        overlay.write(tmp_path, Overlay().with_change('two', 'b', 2.0), expected=0)
    aside = overlay.reset(tmp_path, 1)
    assert aside.exists()
    assert overlay.read(tmp_path) == Overlay()


def test_of_many_who_write_one_revision_one_wins(tmp_path: Path) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            overlay.write(tmp_path, Overlay().with_change(f'{number}', '', 0.0), expected=0)
            won.append(number)
        except ConflictError:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert overlay.read(tmp_path).history[0].text == f'{won[0]}'


def test_cut_at_each_byte_is_refused_with_its_name(tmp_path: Path, home: site.Site) -> None:
    file = tmp_path / overlay.FILE
    overlay.write(tmp_path, Overlay().with_change('one', 'a', 1.0, removed=('u3',)), expected=0)
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(OverlayError, match=r'topology\.json'):
            overlay.read(tmp_path)
    with pytest.raises(site.SiteError, match='bess battery reset'):
        site.load(home.path, state=tmp_path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(['version', 'revision', 'created', 'changed', 'removed', 'history']), inner)))
def test_any_other_json_is_no_topology(values: Any) -> None:
    with pytest.raises(OverlayError):
        Overlay.from_dict(values)


def test_a_change_whose_entry_left_the_file_is_told_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / 'home.yaml'
    file.write_text(TEXT)
    at = site.load(file, state=tmp_path)
    after = carry_out(at, topology.create(at, 'x', 'aggregate', ['u3'], {}))
    overlay.write(tmp_path, after.overlay, expected=0)
    file.write_text(TEXT.replace("  u3: {type: unit, bms: b3, converter: i3}\n", ''))
    with pytest.raises(site.SiteError, match=r"topology\.json \(revision 1\): nodes\.x\.members: no node 'u3'"):
        site.load(file, state=tmp_path)


@given(st.text(max_size=200))
def test_any_text_as_parameters(text: str) -> None:
    try:
        assert isinstance(site.read_values(text), dict)
    except site.SiteError as error:
        assert error.messages


def test_settings_of_the_command_line() -> None:
    assert battery.parameters([]) == ''
    assert yaml.safe_load(battery.parameters(['limit=sum', 'members=[a, b]', 'lease=2', 'x=null'], ['h=0.8'])) == {
        'limit': 'sum', 'members': ['a', 'b'], 'lease': 2, 'x': None,
        'children': {'h': {'energy': 0.8, 'charge_power': 0.8, 'discharge_power': 0.8}}}
    for wrong in (['limit'], ['=x'], ['a b=1'], ['a=[1']):
        with pytest.raises(CliError):
            battery.parameters(wrong)
    with pytest.raises(CliError, match=r'house=0\.8'):
        battery.parameters([], ['h=most'])


def test_the_tree_as_text_and_json(home: site.Site) -> None:
    at = carry_out(home, topology.create(home, 'x', 'aggregate', ['all', 'u3'], {}))
    owner = topology.owners(at)
    nodes = [SimpleNamespace(**topology.describe(at, n, owner)) for n in at.nodes]
    status = SimpleNamespace(power=-1500.0, soc=0.25, max_charge_power=4000.0, max_discharge_power=float('nan'),
                             quality=1, limit_reasons=['cell 7'])
    roots = tree(nodes, {'x': status})
    lines = draw(roots).splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [['x', 'aggregate'], ['├─', 'all'], ['│', '├─']]
    assert all(word in lines[1] for word in ('-1.50 kW', '25.0 %', '- .. 4.00 kW', 'STALE', 'cell 7'))
    assert roots[0].to_dict()['max_discharge_power'] is None
    assert roots[0].to_dict()['below'][0]['name'] == 'all'
