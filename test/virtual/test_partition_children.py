"""Guaranteed power, children that come and go, and the files of a partition."""

from __future__ import annotations

import json
import os
from math import fsum, nan
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.ledger import Ledger
from bess_virtual.partition import Expected, Partition
from bess_virtual.partition_children import adapt, add_child, remove_child, resize_child, shares_of
from bess_virtual.partition_state import from_dict, to_dict
from bess_virtual.partition_store import RecordFiles, StateFile
from bess_virtual.shares import (
    REMOVED,
    UNASSIGNED,
    Policy,
    Share,
    attribute,
    broken_promises,
    share_rest,
    spread_promises,
    validate,
)
from bess_virtual.statements import Record, Row

EXAMPLES = 3000 if os.environ.get('BESS_SOAK') else 200
RATED = Expected(10_000, 5000, 5000)


def source(energy=5000.0, power=0.0, limit=5000.0, full=10_000.0, **fields):
    return BatteryReading(
        time=1.0, newest=1.0, quality=fields.pop('quality', Quality.OK), mode=Mode.IDLE, contactor=Contactor.CLOSED,
        voltage=50.0, power=power, energy=energy, energy_full=full, max_charge_power=limit,
        max_discharge_power=limit, **fields)


def promised(charge, discharge, fraction=0.5):
    return Share(fraction, fraction, fraction, charge, discharge)


def three(policy=Policy.PROPORTIONAL):
    p = Partition({'a': Share.equal(0.5), 'b': Share(0.25, 0.3, 0.2), 'c': Share(0.25, 0.2, 0.3)}, policy, RATED)
    p.refresh(source(), {}, 0)
    return p


# policy guaranteed


@pytest.mark.parametrize(('promises', 'total', 'expected'), [
    ([1000, 500, 0], 2500, [1500, 800, 200]),  # g + f * 1000
    ([1000, 500, 0], 1500, [1000, 500, 0]),
    ([1000, 500, 0], 600, [400, 200, 0]),  # cannot be kept: cut alike
    ([1000, 500, 0], 0, [0, 0, 0]), ([0, 0, 0], 1000, [500, 300, 200])])
def test_firm_power_by_hand(promises, total, expected):
    assert spread_promises(promises, [0.5, 0.3, 0.2], total) == pytest.approx(expected)


@pytest.mark.parametrize(('asked', 'total', 'expected'), [
    ([1500, 800, 200], 2500, [1500, 800, 200]),
    ([5000, 5000, 5000], 2500, [1500, 800, 200]),  # all want more: by the fractions
    ([5000, 0, 0], 2500, [2000, 0, 0]),  # alone: its promise and the whole rest, never the others' promises
    ([5000, 0, 5000], 2500, [1000 + 1000 * 5 / 7, 0, 1000 * 2 / 7]),
    ([5000, 0, 100], 2500, [1900, 0, 100]),  # what one leaves goes to the others
    ([0, 400, 5000], 2500, [0, 400, 1000]),
    ([5000, 5000, 5000], 600, [400, 200, 0]), ([0, 0, 0], 2500, [0, 0, 0])])
def test_the_unpromised_rest_is_shared(asked, total, expected):
    assert share_rest([1000, 500, 0], [0.5, 0.3, 0.2], asked, total) == pytest.approx(expected)


power = st.one_of(st.just(0.0), st.floats(0.1, 1e4))


@settings(max_examples=EXAMPLES)
@example([(0.0, 2.225073858507203e-309, 1.0)], 0.5)
@example([(0.0, 2.225073858507203e-309, 1.0), (0.5, 0.0, 0.0)], 1.0)
@given(st.lists(st.tuples(power, st.floats(0, 1), power), min_size=1, max_size=6), power)
def test_promises_hold_whatever_the_others_ask(children, total):
    promises, fractions, asked = (list(c) for c in zip(*children, strict=True))
    granted = share_rest(promises, fractions, asked, total)
    assert fsum(granted) <= total * (1 + 1e-9) + 1e-6
    keep = min(1.0, total / fsum(promises)) if fsum(promises) else 1.0
    for a, g, p in zip(asked, granted, promises, strict=True):
        assert min(a, p * keep) - 1e-6 <= g <= a + 1e-6
    if fsum(asked) >= total:  # nothing that is wanted and not promised to another stays unused
        unused = fsum(max(p * keep - a, 0.0) for a, p in zip(asked, promises, strict=True))
        assert fsum(granted) == pytest.approx(min(total - unused, fsum(asked)), abs=1e-6)


@pytest.mark.parametrize(('requests', 'delivered', 'expected'), [
    ([3000, 1000, 200], 2700, [3000 - 2000 * 15 / 22, 1000, 200 - 200 * 15 / 22]),  # beyond the promises
    ([3000, 2000, 200], 2700, [3000 - 2000 * 25 / 32, 2000 - 1000 * 25 / 32, 200 - 200 * 25 / 32]),
    ([3000, 1000, 0], 1000, [500, 500, 0]),  # not even the promises were delivered
    ([-3000, -1000, 0], -1000, [-500, -500, 0]),
    ([1000, -1000, 0], 0, [1000, -1000, 0]), ([100, 0, 0], 150, [150, 0, 0])])
def test_a_shortfall_takes_promises_last(requests, delivered, expected):
    shares = [promised(1000, 1000), promised(1000, 1000), promised(0, 0)]
    parts = attribute(Policy.GUARANTEED, requests, delivered, [5000] * 3, [5000] * 3, fractions=[0.5, 0.3, 0.2],
                      promises=shares)
    assert fsum(parts) == pytest.approx(delivered)
    assert parts == pytest.approx(expected)


def test_a_guaranteed_child_in_a_partition():
    p = Partition({'firm': promised(3000, 1000, 0.2), 'flex': promised(0, 0, 0.8)}, Policy.GUARANTEED, RATED)
    r = p.refresh(source(), {}, 0)
    assert (r['firm'].max_charge_power, r['flex'].max_charge_power) == pytest.approx((3400, 1600))
    assert r['firm'].max_discharge_power == pytest.approx(1800)
    net = p.net_request({'firm': 3000, 'flex': 9000})
    assert net.granted == pytest.approx({'firm': 3000, 'flex': 2000})
    assert net.reasons == {'flex': 'can charge only 2000 W of 9000 W'}
    assert p.net_request({'flex': 9000}).source_power == 2000, 'promised power is kept free'
    r = p.refresh(source(limit=1500.0), net.granted, 1)
    assert (r['firm'].max_charge_power, r['flex'].max_charge_power) == pytest.approx((1500, 0))
    assert any('promises cut: 3000 W of charge power are promised, the source has 1500 W' in t
               for t in r['flex'].limit_reasons)
    assert p.net_request({'firm': 3000, 'flex': 9000}).granted == pytest.approx({'firm': 1500, 'flex': 0})


def test_promises_are_admitted_only_if_the_source_can_keep_them():
    shares = {'a': promised(3000, 0), 'b': promised(2500, 0)}
    assert broken_promises(list(shares.values()), 5000, 5000) == [
        '5500 W of charge power are promised, the source has 5000 W']
    with pytest.raises(ValueError, match='5500 W of charge'):
        Partition(shares, Policy.GUARANTEED, RATED)
    with pytest.raises(ValueError, match='only the policy guaranteed'):
        Partition(shares, Policy.TRANCHE)
    assert 'promised power' in validate(['a'], [promised(-1, nan)])[0]
    p = Partition({'a': promised(3000, 0)}, Policy.GUARANTEED, RATED)
    p.refresh(source(), {}, 0)
    before = to_dict(p)
    with pytest.raises(ValueError, match='5500 W of charge'):
        add_child(p, 'b', promised(2500, 0))
    with pytest.raises(ValueError, match='6000 W of discharge'):
        resize_child(p, 'a', promised(3000, 6000))
    assert to_dict(p) == before


# unassigned


def test_what_no_child_owns_is_kept_and_nobody_can_ask_for_it():
    p = Partition({'a': Share.equal(0.5), 'b': Share(0.2, 0.3, 0.1)}, Policy.PROPORTIONAL, RATED)
    r = p.refresh(source(), {}, 0)
    assert set(r) == {'a', 'b'} and p.names[-1] == UNASSIGNED
    assert [x.energy for x in p.ledgers] == pytest.approx([2500, 1000, 1500])
    assert p.net_request({'a': 9000, 'b': 9000}).source_power == pytest.approx(4000)
    with pytest.raises(KeyError, match='unassigned'):
        p.net_request({UNASSIGNED: 1})
    assert from_dict(json.loads(json.dumps(to_dict(p)))).ledgers == p.ledgers


@pytest.mark.parametrize('name', [UNASSIGNED, REMOVED])
def test_reserved_names(name):
    with pytest.raises(ValueError, match='cannot have the name'):
        Partition({name: Share.equal(1.0)})


# children at run time


def test_a_new_child_takes_share_and_energy_from_where_it_is_told():
    p = three()
    p.ledgers[0].energy, p.ledgers[1].energy = 3000.0, 750.0
    with pytest.raises(ValueError, match='energy shares add up to 1.2'):
        add_child(p, 'd', Share.equal(0.2))
    with pytest.raises(ValueError, match=r"'b' has 0\.25 of the energy, 0\.3 are needed"):
        add_child(p, 'd', Share(0.3, 0.1, 0.1), 'b')
    add_child(p, 'd', Share(0.1, 0.2, 0.0), 'a')
    assert [x.energy for x in p.ledgers] == pytest.approx([2400, 750, 1250, 600])
    assert p.names == ['a', 'b', 'c', 'd']
    assert shares_of(p)['a'] == Share(0.4, 0.3, 0.5)
    r = p.refresh(source(), {}, 1)
    assert r['d'].energy == pytest.approx(600) and r['d'].max_charge_power == pytest.approx(1000)
    for name in ('a', 'd', UNASSIGNED):
        with pytest.raises(ValueError, match='already|cannot have'):
            add_child(p, name, Share(0, 0, 0))


def test_resize_there_and_back_changes_nothing():
    p = three()
    p.ledgers[0].energy, p.ledgers[1].energy = 3000.0, 750.0
    resize_child(p, 'a', Share.equal(0.2))
    assert p.names == ['a', 'b', 'c', UNASSIGNED]
    assert [x.energy for x in p.ledgers] == pytest.approx([1200, 750, 1250, 1800])
    resize_child(p, 'a', Share.equal(0.5))
    assert p.names == ['a', 'b', 'c']
    assert [x.energy for x in p.ledgers] == pytest.approx([3000, 750, 1250])
    resize_child(p, 'b', Share(0.1, 0.3, 0.2), 'c')
    assert [x.energy for x in p.ledgers] == pytest.approx([3000, 300, 1700])
    for bad in (Share(nan, 0, 0), Share(-0.1, 0, 0), Share(2.0, 0, 0)):
        with pytest.raises(ValueError, match='share'):
            resize_child(p, 'a', bad)
    with pytest.raises(ValueError, match="no child 'x'"):
        resize_child(p, 'x', Share.equal(0.1))
    with pytest.raises(ValueError, match='no sibling'):
        resize_child(p, 'a', Share.equal(0.1), 'a')


def test_the_energy_of_a_removed_child_goes_where_it_is_told():
    p = three()
    assert remove_child(p, 'b', 'a') == 1250
    assert p.names == ['a', 'c'] and [x.energy for x in p.ledgers] == [3750, 1250]
    assert shares_of(p)['a'] == Share(0.75, 0.8, 0.7)
    assert remove_child(p, 'a', UNASSIGNED) == 3750
    assert p.names == ['c', UNASSIGNED] and [x.energy for x in p.ledgers] == [1250, 3750]
    with pytest.raises(ValueError, match='last child'):
        remove_child(p, 'c', UNASSIGNED)
    with pytest.raises(ValueError, match='no child'):
        remove_child(p, 'a', 'c')
    add_child(p, 'd', Share(0.75, 0.8, 0.7))
    assert p.names == ['c', 'd'] and [x.energy for x in p.ledgers] == pytest.approx([1250, 3750])
    for heir in ('', 'nobody', 'c'):
        with pytest.raises(ValueError, match='the heir is'):
            remove_child(p, 'c', heir)


def test_a_changed_site_file_keeps_the_ledgers_of_those_that_stay():
    p = three()
    p.ledgers[0].charged = 77.0
    done = adapt(p, {'a': Share.equal(0.4), 'd': Share.equal(0.35), 'c': Share(0.25, 0.25, 0.25)})
    assert sorted(done) == ['a resized', 'b removed, its 1250 Wh are unassigned', 'c resized', 'd added']
    assert p.names == ['a', 'd', 'c']
    assert [x.energy for x in p.ledgers] == pytest.approx([2000, 1750, 1250])
    assert p.ledgers[0].charged == 77.0
    with pytest.raises(ValueError, match='add up'):
        adapt(p, {'a': Share.equal(2.0)})


# files


def states(n):
    p = Partition({'a': Share.equal(1.0)})
    out = []
    for k in range(n):
        p.ledgers = [Ledger(1000.0 + k)]
        out.append(to_dict(p))
    return out


def test_a_state_file_cut_at_any_byte_gives_the_last_whole_state(tmp_path: Path):
    path = tmp_path / 'ledgers' / 'split.jsonl'
    file = StateFile(path)
    sizes = [0]
    written = states(3)
    for state in written:
        file.write(state)
        sizes.append(path.stat().st_size)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        again = StateFile(path)
        whole = sum(size <= cut for size in sizes) - 1
        assert again.state == (written[whole - 1] if whole else None)
        assert bool(again.problems) == (cut not in sizes)
        assert (again.problems == []) or 'incomplete or damaged' in again.problems[0]
        if cut % 97 == 0:
            again.write(written[0])  # what was damaged is gone with the next write
            last = StateFile(path)
            assert (last.state, last.problems) == (written[0], [])


def test_a_damaged_byte_anywhere_is_never_taken_for_a_state(tmp_path: Path):
    path = tmp_path / 'split.jsonl'
    file = StateFile(path)
    written = states(2)
    for state in written:
        file.write(state)
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1:])
        again = StateFile(path)
        assert again.state in [None, *written]
    path.write_bytes(os.urandom(5000))
    assert StateFile(path).state is None and StateFile(path).problems


def test_a_state_file_does_not_grow_without_end(tmp_path: Path):
    file = StateFile(tmp_path / 'split.jsonl')
    state = states(1)[0]
    for _ in range(210):
        file.write(state)
    assert file.path.read_bytes().count(b'\n') <= 200
    assert StateFile(file.path).state == state


def some(sequence, start, stored=1000):
    return Record(sequence, start, start + 900.0, {'a': Row(sequence, 0, 0, 0, 0, 0, stored)}, (0.0, 0.0, 1.0, 0.0))


def test_records_cut_at_any_byte_lose_only_the_cut_one(tmp_path: Path):
    start = 1.8e9
    files = RecordFiles(tmp_path / 's')
    for k in range(1, 4):
        files.append(some(k, start + 900 * k))
    path, = (tmp_path / 's').glob('*.jsonl')
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        again = RecordFiles(tmp_path / 's')
        whole = sum(e <= cut for e in ends)
        records, problems = again.read(0.0, 1e12)
        assert [r.sequence for r in records] == list(range(1, whole + 1)) and not problems
        assert bool(again.problems) == (cut not in (0, *ends))
        assert (again.last.sequence if again.last else 0) == whole


def test_missing_and_damaged_records_are_named(tmp_path: Path):
    files = RecordFiles(tmp_path / 's')
    for k in range(1, 6):
        files.append(some(k, 1.8e9 + k * 20 * 86400.0))  # a file per month, more or less
    assert [r.sequence for r in files.read(1.8e9 + 35 * 86400, 1.8e9 + 90 * 86400.0)[0]] == [2, 3, 4]
    path = sorted((tmp_path / 's').glob('*.jsonl'))[1]
    path.write_bytes(path.read_bytes().replace(b'"rows"', b'"r0ws"'))
    problems = RecordFiles(tmp_path / 's').read(0.0, 1e12)[1]
    assert any('is damaged and left out' in t for t in problems)
    assert any('missing' in t for t in problems)


@pytest.mark.parametrize('damage', [{}, {'version': 9}, {'period': {'start': 1.0}}, {'children': 3}, {'removed': None}])
def test_a_damaged_state_is_refused_as_a_whole(damage):
    state = {**to_dict(three()), **damage} if damage else {}
    with pytest.raises(ValueError, match='.'):
        from_dict(state)


# measured vectors of the facts, sections 6.5, 12.3 and 13.2 (there discharge is positive, here it is negative)


@pytest.mark.parametrize(('policy', 'requests', 'delivered', 'expected'), [
    (Policy.PROPORTIONAL, [-1000, -1500], -2302, [-921, -1381]),  # exp 3
    (Policy.RESERVED, [-2000, -1500], -3167, [-2000, -1167]),  # exp 4: s1 without loss, s2 bears all
    (Policy.RESERVED, [-2000, -1500], -3139, [-2000, -1139]),
    (Policy.PROPORTIONAL, [-2000, 1000], -1900, [-2000, 100]),  # exp 3 while it ramps: not -3800/+1900
    (Policy.PROPORTIONAL, [-20, 10], -19, [-20, 1])])
def test_attribution_as_measured(policy, requests, delivered, expected):
    parts = attribute(policy, requests, delivered, [5000] * 2, [5000] * 2, fractions=[0.6, 0.4])
    assert parts == pytest.approx(expected, abs=1)


def test_the_source_is_told_at_every_boundary_of_every_child():
    """Facts 6.5: 10 A over 0.5-3 s and 5 A over 2-4.5 s gives 10, 15, 5, 0 (one version lost the 5)."""
    from bess_virtual.schedule import Schedule

    p = Partition({'s1': Share.equal(0.5), 's2': Share.equal(0.5)}, Policy.PROPORTIONAL, RATED)
    p.refresh(source(), {}, 0)
    schedules = {'s1': Schedule(), 's2': Schedule()}
    assert schedules['s1'].add(-10.0, 0.5, 3.0, now=0)[0] and schedules['s2'].add(-5.0, 2.0, 4.5, now=0)[0]
    told = []
    for t in (0.0, 0.5, 2.0, 3.0, 4.5):
        running = {n: s.at(t) for n, s in schedules.items()}
        told.append(p.net_request({n: r.value for n, r in running.items() if r}).source_power)
    assert told == [0, -10, -15, -5, 0]


def test_a_small_child_is_empty_when_its_energy_says_so():
    """Facts 6.5: a child was empty after 6 s and its source went on until 18 s; here both stop together."""
    p = Partition({'small': Share(0.001, 0.5, 0.5), 'big': Share(0.999, 0.5, 0.5)}, Policy.PROPORTIONAL, RATED)
    energy = 10_000.0
    p.refresh(source(energy), {}, 0)
    stopped = None
    for k in range(36):
        net = p.net_request({'small': -1800.0}, horizon=1.0)
        if stopped is None and net.source_power == 0.0:
            stopped = k
        energy += net.source_power / 3600
        p.refresh(source(energy, net.source_power), net.granted, 1.0)
    assert stopped == 20  # 10 Wh at 1800 W
    assert p.ledgers[0].energy == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize('policy', list(Policy))
def test_more_deficit_than_all_children_have_is_no_crash(policy):
    """Facts 12.3, no. 30: an unsigned index ran below 0."""
    p = Partition({'a': Share.equal(0.5), 'b': Share.equal(0.5)}, policy, RATED)
    p.refresh(source(), {}, 0)
    r = p.refresh(source(energy=-50.0, full=0.0, limit=0.0), {'a': -100.0}, 60.0)
    assert [r[n].energy for n in 'ab'] == [0, 0]
    assert [r[n].max_discharge_power for n in 'ab'] == [0, 0]
