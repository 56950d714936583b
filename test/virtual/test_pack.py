"""Packs: series and parallel, pure and on real DDS."""

from __future__ import annotations

import re
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_virtual_nodes import CONVERTER, TICK, Below, Kind

from bess.msg import BatteryStatus
from bess.srv import GetStatus, SetContactor
from bess_core import qos, site
from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual import pack
from bess_virtual.pack_node import BmsPackNode, PackNode
from bess_virtual.unit_node import UnitNode

AGES = (100.0, 2.0, 10.0)


def module(voltage=12.0, charge=50.0, full=100.0, limit=40.0, current=0.0, **fields):
    """A module of a pack, as a BMS reports it: V, Ah, A."""
    values: dict[str, Any] = {
        'time': 99.5, 'newest': 99.6, 'quality': Quality.OK, 'mode': Mode.IDLE, 'contactor': Contactor.CLOSED,
        'voltage': voltage, 'current': current, 'charge': charge, 'charge_full': full, 'max_charge_current': limit,
        'max_discharge_current': limit, 'soc': charge / full, 'temperature': 20.0, 'cell_voltage_min': 3.2,
        'cell_voltage_max': 3.3}
    return BatteryReading(**{**values, **fields})


def combined(modules, series, tolerance=1.0, **options):
    names = [f'm{i}' for i in range(len(modules))]
    strings, refused = pack.strings_of(names, modules, series, *AGES, tolerance)
    return pack.combine(strings, **options), strings, refused


def test_series_sums_voltage_and_takes_the_weakest_current_and_charge():
    p, *_ = combined([module(12.0, 50, 100, 40), module(13.0, 60, 100, 30), module(12.5, 40, 90, 50)], 3)
    assert p.voltage == 37.5
    assert (p.max_charge_current, p.max_discharge_current) == (30, 30)
    assert p.max_charge_power == pytest.approx(30 * 37.5)
    assert (p.charge, p.charge_full) == (40, 80), 'empty with the first module, full with the first module'
    assert p.soc == 0.5
    assert p.energy == pytest.approx(40 * 37.5) and p.energy_full == pytest.approx(80 * 37.5)
    assert p.soc_spread == pytest.approx(0.6 - 40 / 90)
    assert isnan(p.voltage_spread), 'nothing is in parallel'
    assert (p.members, p.members_usable) == (3, 3)


def test_parallel_sums_current_and_charge_at_one_voltage():
    p, *_ = combined([module(12.0, 50, 100, 40, current=5.0), module(12.2, 30, 60, 20, current=2.0)], 1)
    assert p.voltage == pytest.approx((12.0 * 100 + 12.2 * 60) / 160)
    assert (p.max_charge_current, p.charge, p.charge_full, p.current) == (60, 80, 160, 7)
    assert p.max_discharge_power == pytest.approx(12.0 * 40 + 12.2 * 20)
    assert (p.voltage_spread, p.current_spread) == (pytest.approx(0.2), 3.0)


def test_a_full_or_empty_module_stops_its_string_in_that_direction():
    p, *_ = combined([module(charge=100.0), module(charge=50.0), module(charge=60.0), module(charge=50.0)], 2)
    assert (p.max_charge_current, p.max_discharge_current) == (40, 80)
    p, *_ = combined([module(charge=0.0), module()], 2)
    assert (p.max_discharge_current, p.energy, p.soc) == (0, 0, 0)
    assert p.max_charge_current == 40


@pytest.mark.parametrize(('broken', 'text'), [
    ({'mode': Mode.FAULT}, 'm1: fault'), ({'contactor': Contactor.OPEN}, 'm1: contactor open'),
    ({'time': 95.0}, 'm1: stale, 5.0 s old'), ({'quality': Quality.INVALID}, 'm1: invalid, 0.5 s old'),
    ({'voltage': nan}, 'm0+m1: voltage not known')])
def test_a_failing_module_takes_the_string_not_the_pack(broken, text):
    modules = [module() for _ in range(4)]
    good, strings, _ = combined(modules, 2)
    modules[1] = module(**broken)
    p, *_ = combined(modules, 2, last_good=strings)
    assert (p.members, p.members_usable) == (4, 2)
    assert p.quality is Quality.OK
    assert (p.max_charge_current, p.charge, p.voltage) == (40, 50, 24)
    assert p.missing == [text] and f'string m0+m1 is out: {text}' in p.limit_reasons
    assert p.expected_charge_power == good.max_charge_power and p.expected_energy_full == good.energy_full
    alone, *_ = combined(modules[:2], 2)
    assert alone.max_charge_power == alone.max_discharge_power == 0, 'with one string, nothing is left'


def test_strings_of_different_voltage_are_refused():
    three = [module(48.0), module(48.3), module(51.0)]
    p, strings, refused = combined(three, 1)
    assert [s.usable for s in strings] == [True, True, False], 'the majority goes on'
    assert 'm2: 51.00 V must not be in parallel' in refused
    assert p.max_charge_current == 80 and p.members_usable == 2
    p, strings, refused = combined(three[1:], 1)
    assert not any(s.usable for s in strings), 'nobody can tell which of two is right'
    assert p.max_charge_power == p.max_discharge_power == 0.0 and refused
    assert combined(three, 3)[2] == '', 'in series voltages may differ'
    assert combined(three[:2], 1)[2] == ''


def test_a_string_that_carries_more_than_its_part_limits_a_passive_pack():
    modules = [module(current=-30.0), module(current=-10.0)]
    p, *_ = combined(modules, 1, passive=True)
    assert p.max_discharge_current == pytest.approx(40 / 0.75)
    assert p.max_discharge_power == pytest.approx(12 * 40 / 0.75)
    assert p.max_charge_current == 80
    assert any('m0 carries more than its part' in r for r in p.limit_reasons)
    assert combined(modules, 1)[0].max_discharge_current == 80, 'converters of their own share as they are told'


def test_a_layout_that_does_not_come_out_even_is_refused():
    for names, series in (('abc', 2), ('', 1), ('ab', 0), ('ab', 3)):
        with pytest.raises(ValueError, match='cannot form strings'):
            pack.groups(list(names), series)


def test_imbalance_is_told():
    p, *_ = combined([module(charge=80.0, soc=0.8, current=9.0), module(charge=50.0, current=1.0)], 1)
    assert pack.imbalance(p, 0.1, 5.0) == ('states of charge of the modules are 0.300 apart, allowed 0.1; '
                                           'currents are 8.0 A apart, allowed 5 A')
    assert pack.imbalance(p, 0.4, 10.0) == ''


modules_strategy = st.builds(
    lambda v, q, f, i, c, **k: module(v, q * f, f, i, c, **k), st.floats(10, 14), st.floats(0, 1), st.floats(1, 200),
    st.floats(0, 100), st.floats(-50, 50), mode=st.sampled_from([Mode.IDLE, Mode.IDLE, Mode.IDLE, Mode.FAULT]),
    contactor=st.sampled_from([Contactor.CLOSED, Contactor.CLOSED, Contactor.CHARGE_ONLY, Contactor.OPEN]))


@settings(max_examples=300)
@given(st.integers(1, 3), st.integers(1, 3), st.data(), st.floats(-5e4, 5e4))
def test_any_pack(series, parallel, data, power):
    modules = data.draw(st.lists(modules_strategy, min_size=series * parallel, max_size=series * parallel))
    p, strings, _ = combined(modules, series, 100.0)
    whole = pack.divide(power, strings)
    shares = whole.powers.tolist()
    assert abs(whole.granted) <= abs(power) and sum(shares) == pytest.approx(whole.granted, abs=1e-6)
    limit = p.max_charge_power if power > 0 else p.max_discharge_power
    if abs(power) <= limit * 0.999 and p.energy > 1 and p.energy_full - p.energy > 1:
        assert whole.granted == pytest.approx(power)
    for k, s in enumerate(strings):
        own = shares[k * series:(k + 1) * series]
        assert all(x * power >= 0 for x in own), 'nobody works against another'
        currents = [x / m.reading.voltage for x, m in zip(own, s.modules, strict=True)]
        assert max(currents) - min(currents) <= 1e-9 * (1 + max(map(abs, currents))), 'one current in a string'
        for c, m in zip(currents, s.modules, strict=True):
            assert abs(c) <= m.reading.max_charge_current * (1 + 1e-9) + 1e-9
        if s.out:
            assert not any(own)
    assert p.members_usable == series * sum(s.usable for s in strings)
    assert bool(p.missing) == (p.members_usable < p.members)
    assert 0 <= p.energy <= p.energy_full * (1 + 1e-9)


# -- nodes -------------------------------------------------------------------------------------------

BMS = replace(module(24.0), time=0.0, newest=0.0)


class Bms(Below):
    """A module with contactors that answer."""

    def __init__(self, graph: Any, name: str, reading: BatteryReading = BMS) -> None:
        super().__init__(graph, name, reading)
        self.refuses = ''
        self.contactor_orders: list[tuple[bool, bool]] = []
        graph.peer.create_service(SetContactor, f'{name}/set_contactor', self._on_contactor)

    def _on_contactor(self, request: Any, response: Any) -> Any:
        self.contactor_orders.append((request.charge, request.discharge))
        response.accepted, response.message = not self.refuses, self.refuses
        return response


def make_bms_pack(graph: Any) -> tuple[Any, list[Bms], list[BatteryStatus]]:
    modules = [Bms(graph, name) for name in ('a1', 'a2', 'b1', 'b2')]
    node = graph.add(BmsPackNode, 'cells', {'members': ['a1', 'a2', 'b1', 'b2'], 'series': 2, 'max_age': 0.4,
                                            'invalid_after': 1.0})
    graph.up(node)
    heard = graph.listen(BatteryStatus, 'cells/status', qos.MEASUREMENT)
    graph.wait(lambda: heard and heard[-1].members_usable == 4, 'all modules')
    return node, modules, heard


def test_a_pack_of_bms_is_the_bms_of_a_unit(graph: Any) -> None:
    node, modules, heard = make_bms_pack(graph)
    assert node.role == 'bms'
    assert (heard[-1].voltage, heard[-1].max_charge_current, heard[-1].charge) == (48.0, 80.0, 100.0)
    Below(graph, 'converter', replace(CONVERTER, max_charge_power=9000.0))
    unit = graph.add(UnitNode, 'unit', {'bms': 'cells', 'converter': 'converter', 'charge_efficiency': 1.0, **TICK})
    graph.up(unit)
    statuses = graph.listen(BatteryStatus, 'unit/status', qos.MEASUREMENT)
    limit = 80.0 * 48.0
    graph.wait(lambda: statuses and statuses[-1].max_charge_power == pytest.approx(3000.0), 'converter apparent power')
    modules[1].silent = True
    graph.wait(lambda: statuses[-1].max_charge_power == pytest.approx(limit / 2), 'half of it, one string left')
    assert any(r.startswith('bms: a2: stale') for r in statuses[-1].missing)
    assert heard[-1].quality == 0
    assert graph.call(GetStatus, 'cells/get_status').status.members_usable == 2
    modules[1].silent = False
    graph.wait(lambda: statuses[-1].max_charge_power == pytest.approx(3000.0), 'back')


def test_contactors_of_a_pack(graph: Any) -> None:
    node, modules, heard = make_bms_pack(graph)
    order = lambda on: graph.call(  # noqa: E731
        SetContactor, 'cells/set_contactor', SetContactor.Request(charge=on, discharge=on))
    assert order(True).accepted
    assert [m.contactor_orders for m in modules] == [[(True, True)]] * 4
    for m in modules:
        m.set(contactor=Contactor.OPEN)
    modules[3].set(voltage=26.5)
    graph.wait(lambda: heard[-1].contactor == Contactor.OPEN
               and heard[-1].voltage_spread == pytest.approx(2.5), 'open, and apart')
    answer = order(True)
    assert (answer.accepted, answer.message) == (
        False, 'voltages are 2.50 V apart, allowed 1 V: a1+a2 48.00 V, b1+b2 50.50 V')
    assert len(modules[0].contactor_orders) == 1, 'nothing was ordered'
    assert order(False).accepted, 'opening is always possible'
    modules[2].refuses = 'protection'
    answer = order(False)
    assert (answer.accepted, answer.message) == (False, 'b1: protection')
    assert node.faults.get('contactor.failed') is not None
    modules[3].set(voltage=24.0, contactor=Contactor.CLOSED)
    modules[0].silent = True
    graph.wait(lambda: heard[-1].quality != 0 or any('a1: stale' in m for m in heard[-1].missing), 'one is stale')
    answer = order(True)
    assert 'voltage of a1+a2 is not known' in answer.message


def test_mismatch_and_imbalance_are_faults(graph: Any) -> None:
    node, modules, heard = make_bms_pack(graph)
    modules[0].set(soc=0.9)
    graph.wait(lambda: node.faults.get('pack.imbalance'), 'imbalance')
    assert any('apart, allowed 0.1' in r for r in heard[-1].limit_reasons)
    modules[0].set(voltage=28.0)
    graph.wait(lambda: node.faults.get('pack.voltage_mismatch'), 'mismatch')
    graph.wait(lambda: heard[-1].max_charge_power == 0.0, 'nothing is allowed')
    modules[0].set(voltage=24.0, soc=0.5)
    graph.wait(lambda: node.faults.get('pack.voltage_mismatch') is None, 'gone')
    graph.wait(lambda: node.faults.get('pack.imbalance') is None, 'gone, too')


def test_a_pack_of_batteries_takes_orders_and_schedules(graph: Any) -> None:
    members = [Below(graph, name, replace(BMS, power=0.0)) for name in ('a1', 'a2', 'b1', 'b2')]
    node = graph.add(PackNode, 'stack', {'members': ['a1', 'a2', 'b1', 'b2'], 'series': 2, **TICK})
    graph.up(node)
    kind = Kind(graph, node, members, 48.0)
    assert node.role == 'battery'
    members[0].set(voltage=25.0)
    graph.wait(lambda: kind.statuses[-1].voltage == pytest.approx(48.5), 'voltage known')
    kind.ask(-980.0, lease=20.0)
    graph.wait(lambda: sum(m.power for m in members) == pytest.approx(-980.0), 'in force')
    a1, a2, b1, b2 = (m.power for m in members)
    assert a1 / 25.0 == pytest.approx(a2 / 24.0) and b1 == b2
    members[2].silent = True
    graph.wait(lambda: (members[2].power, members[3].power) == (0.0, 0.0), 'the string stops')
    graph.wait(lambda: members[0].power + members[1].power == pytest.approx(-980.0), 'the other takes over')
    kind.ask(0.0, lease=0.1)
    members[2].silent = False
    assert kind.schedule(5.0, 0.0, 30.0).accepted
    graph.wait(lambda: kind.ordered == pytest.approx(5.0 * kind.statuses[-1].voltage, rel=1e-3), 'scheduled current')
    with pytest.raises(ValueError, match='3 modules cannot form strings of 2'):
        node.set_members(['a1', 'a2', 'b1'])


# -- site file ---------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / 'docs' / 'virtual_batteries.md'


def example() -> str:
    found = re.search(r'^```yaml\n(site:.*?)^```', PAGE.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_site_of_the_page_is_valid(tmp_path: Path) -> None:
    path = tmp_path / 'barn.yaml'
    path.write_text(example(), encoding='utf-8')
    loaded = site.load(path)
    assert loaded.node('cells').role == 'bms'
    order = [n.name for n in loaded.nodes]
    assert order.index('bms_4') < order.index('cells') < order.index('barn_battery') < order.index('all')
    assert loaded.node('all').params.exclusion_zones == {'barn_battery': [[-900, -700]]}


@pytest.mark.parametrize(('old', 'new', 'text'), [
    ('series: 2', 'series: 3', 'cells: 4 modules cannot form strings of 3'),
    ('series: 2', 'series: 0', 'series: 0 is out of range'),
    ('members: [bms_1, bms_2, bms_3, bms_4]', 'members: [bms_1, bms_1]', "'bms_1' is named twice"),
    ('type: bms_pack', 'type: pack', "'bms_1' is a bms, not a battery"),
    ('members: [barn_battery, house_battery]', 'members: [barn_battery, cells]', "'cells' is a bms, not a battery"),
    ('bms: cells', 'bms: bms_1', "'bms_1' is already used by"),
    ('[[-900, -700]]', '[[-900, 700]]', 'contains 0 W'),
    ('minimum_power: [150.0, 100.0]', 'minimum_power: [150.0]', 'minimum_power needs one value per member'),
])
def test_mistakes_are_named_with_their_line(old: str, new: str, text: str, tmp_path: Path) -> None:
    assert old in example()
    path = tmp_path / 'barn.yaml'
    path.write_text(example().replace(old, new), encoding='utf-8')
    with pytest.raises(site.SiteError) as caught:
        site.load(path)
    assert any(text in m and re.match(rf'{path}:\d+: ', m) for m in caught.value.messages), caught.value.messages
