"""Ledgers, loss rules and energy statements: everything adds up, exactly."""

from __future__ import annotations

import json
import os
import random
from decimal import Decimal
from math import fsum, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Quality
from bess_virtual.ledger import LossRule, divide_loss, flows
from bess_virtual.partition import Expected, Partition
from bess_virtual.partition_children import add_child, remove_child, resize_child, shares_of
from bess_virtual.partition_state import from_dict, to_dict
from bess_virtual.prices import Prices, costs, decimal, read_prices
from bess_virtual.shares import UNASSIGNED, Policy, Share
from bess_virtual.statements import Record, allocate, follow, next_boundary

EXAMPLES = 1000 if os.environ.get('BESS_SOAK') else 200
WALL = 1.8e9  # a whole multiple of 900 s


def reading(energy, power, counters=(nan, nan), full=10_000.0, limit=5000.0, **fields):
    fields = {'quality': Quality.OK, 'mode': Mode.IDLE, 'contactor': Contactor.CLOSED, 'voltage': 50.0, **fields}
    return BatteryReading(time=1.0, newest=1.0, power=power, energy=energy, energy_full=full, max_charge_power=limit,
                          max_discharge_power=limit, energy_charged=counters[0], energy_discharged=counters[1],
                          **fields)


class Source:
    """A battery with losses and counters of a given resolution (Wh)."""

    def __init__(self, partition, energy=5000.0, step=0.001, wall=WALL):
        self.partition, self.energy, self.step, self.wall = partition, energy, step, wall
        self.charged, self.discharged = 1_234_567.0, 987_654.0
        self.records = []
        self.update({}, 0.0, 0.0)
        self.begin = self.counters

    @property
    def counters(self):
        return tuple(int(c / self.step + 1e-9) * self.step for c in (self.charged, self.discharged))

    def update(self, requests, power, dt, *, gap=False, measured=None):
        hours = dt / 3600
        self.charged += max(power, 0.0) * hours
        self.discharged += max(-power, 0.0) * hours
        self.energy += power * hours * (0.95 if power > 0 else 1 / 0.95)
        self.wall += dt
        p = self.partition
        result = p.refresh(reading(self.energy, power if measured is None else measured, self.counters), requests,
                           0.0 if gap else dt, self.wall, gap)
        self.records += p.closed
        p.closed.clear()
        return result

    def run(self, requests, dt, *, follow_by=1.0, measured_by=1.0):
        net = self.partition.net_request(requests, horizon=dt)
        power = net.source_power * follow_by
        return self.update(net.granted, power, dt, measured=power * measured_by)

    def close(self):
        self.partition.close_period(self.wall)
        self.records += self.partition.closed
        self.partition.closed.clear()
        return self.records


def check_records(records):
    """What holds for every series of records."""
    for record in records:
        total = record.source
        if record.counters is not None:
            c = [round(x * 1000) for x in record.counters]
            assert (total.taken, total.given) == (c[2] - c[0], c[3] - c[1])
        assert total.moved_in == total.moved_out
        assert record.end >= record.start
        for row in record.rows.values():
            assert min(row.taken, row.given, row.moved_in, row.moved_out, row.lost, row.stored) >= 0
    for before, after in zip(records, records[1:], strict=False):
        assert after.sequence == before.sequence + 1
        assert after.start == before.end
        if before.counters and after.counters:
            assert after.counters[:2] == before.counters[2:]
        assert before.source.stored + after.source.net - after.source.lost + after.source.correction \
            == after.source.stored
        for name, row in after.rows.items():
            if name in before.rows:
                held = before.rows[name].stored
                assert held + row.net - row.lost + row.correction == row.stored


def ways(parts):
    """Taken, given, moved in and out of each part (compiled, a flow is no tuple)."""
    return [(f.taken, f.given, f.moved_in, f.moved_out) for f in flows(parts)]


def test_flows_by_hand():
    """Facts 6.5: opposite requests cancel at the source and move energy between the ledgers."""
    a, b, c = ways([1000.0, -400.0, 200.0])
    assert a == pytest.approx((1000 * 800 / 1200, 0, 1000 * 400 / 1200, 0))
    assert b == pytest.approx((0, 0, 0, 400))
    assert c == pytest.approx((200 * 800 / 1200, 0, 200 * 400 / 1200, 0))
    assert ways([10.0, -10.0]) == [(0, 0, 10, 0), (0, 0, 0, 10)]
    assert ways([-30.0, 10.0])[0] == pytest.approx((0, 20, 0, 10))
    assert ways([0.0]) == [(0, 0, 0, 0)]


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=6))
def test_flows_add_up(parts):
    through = flows(parts)
    net = fsum(parts)
    assert fsum(f.taken for f in through) == pytest.approx(max(net, 0.0), abs=1e-6)
    assert fsum(f.given for f in through) == pytest.approx(max(-net, 0.0), abs=1e-6)
    assert fsum(f.moved_in for f in through) == pytest.approx(fsum(f.moved_out for f in through), abs=1e-6)
    for f, part in zip(through, parts, strict=True):
        assert f.taken + f.moved_in - f.given - f.moved_out == pytest.approx(part, abs=1e-9)
    assert min(map(min, ways(parts))) >= 0


@pytest.mark.parametrize(('rule', 'expected'), [
    (LossRule.THROUGHPUT, [50, 30, 20]), (LossRule.SOURCE_FLOW, [500 / 7, 0, 200 / 7]),
    (LossRule.ENERGY_SHARE, [20, 30, 50])])
def test_loss_rules_by_hand(rule, expected):
    assert divide_loss(rule, 100.0, flows([500.0, -300.0, 200.0]), [0.2, 0.3, 0.5]) == pytest.approx(expected)
    assert divide_loss(rule, 100.0, flows([0.0, 0.0, 0.0]), [0.2, 0.3, 0.5]) == pytest.approx([20, 30, 50])


@given(st.integers(0, 10**15), st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=8))
def test_allocation_is_exact_and_fair(total, weights):
    parts = allocate(total, weights, [1.0] * len(weights))
    assert sum(parts) == total and min(parts) >= 0
    whole = fsum(weights)
    if whole > 0:
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * (weight / whole)) <= 1 + total * 1e-14
            assert weight > 0 or part == 0


def test_allocation_without_weights():
    assert allocate(7, [0.0, nan], [1.0, 1.0]) == [4, 3]
    assert allocate(7, [0.0, 0.0], [0.0, 0.0]) == [0, 7]
    assert allocate(0, []) == []


def test_boundaries_are_utc_and_know_no_daylight_saving():
    assert next_boundary(WALL, 900) == WALL + 900
    assert next_boundary(WALL + 899.9, 900) == WALL + 900
    assert next_boundary(1761436800.0 + 3599, 3600) == 1761436800.0 + 3600  # 2025-10-26, clocks go back


def test_worked_records():
    """One hour: a charges with 1000 W, b discharges with 400 W; the source takes 600 W."""
    p = Partition({'a': Share.equal(0.5), 'b': Share.equal(0.5)}, Policy.PROPORTIONAL, None, 0.95, 0.95)
    s = Source(p)
    for _ in range(60):
        s.run({'a': 1000.0, 'b': -400.0}, 60.0)
    assert [(r.start, r.end) for r in s.records] == [(WALL + 900 * k, WALL + 900 * (k + 1)) for k in range(4)]
    check_records(s.records)
    a, b = (follow([r.rows[n] for r in s.records]) for n in 'ab')
    assert (a.taken, a.given, a.moved_in, a.moved_out) == (600_000, 0, 400_000, 0)
    assert (b.taken, b.given, b.moved_in, b.moved_out) == (0, 0, 0, 400_000)
    assert a.lost + b.lost == 30_000
    assert a.lost == pytest.approx(30_000 * 1000 / 1400, abs=5)
    assert b.stored == pytest.approx(2_500_000 - 400_000 - 30_000 * 400 / 1400, abs=10)
    prices = read_prices(f'time,price\n{WALL},0.30\n2027-01-15T08:30:00+00:00,0.10\n', 'EUR')
    assert prices.times == (WALL, WALL + 1800)
    money = [costs(r, prices) for r in s.records]
    assert [m['a'] for m in money] == [Decimal('0.075')] * 2 + [Decimal('0.025')] * 2
    assert sum(m['b'] for m in money) == Decimal('-0.08')


def test_a_coarse_counter_is_followed_at_the_end_of_each_period():
    p = Partition({'a': Share.equal(0.5), 'b': Share.equal(0.5)}, Policy.PROPORTIONAL, None, 0.95, 0.95)
    s = Source(p, step=100.0)
    for k in range(240):
        s.run({'a': 500.0 if k < 120 else -300.0, 'b': 250.0}, 60.0, measured_by=1.03)
    records = s.close()
    check_records(records)
    assert all(r.counters is not None for r in records)
    assert sum(r.source.taken for r in records) == round(1000 * (s.counters[0] - s.begin[0]))
    assert p.source_in == pytest.approx(s.counters[0] - s.begin[0])
    charged = [x.charged for x in p.ledgers]
    assert fsum(charged) == pytest.approx(p.source_in)
    assert all(x.energy == pytest.approx(2500 + x.charged - x.discharged + x.moved_in - x.moved_out - x.lost
                                         + x.correction) for x in p.ledgers)


def test_drift_is_visible_until_the_period_closes():
    p = Partition({'a': Share.equal(1.0)})
    s = Source(p)
    s.run({'a': 1000.0}, 600.0, measured_by=0.9)
    assert p.period.drift() == pytest.approx((1000 / 60, 0.0), abs=0.01)
    s.run({'a': 1000.0}, 600.0, measured_by=0.9)
    assert p.period.drift() == pytest.approx((0.0, 0.0), abs=0.01)
    assert p.ledgers[0].charged == pytest.approx(1000 / 3, abs=0.01)


def test_a_counter_that_goes_back_or_vanishes_is_not_believed():
    p = Partition({'a': Share.equal(1.0)})
    s = Source(p)
    s.run({'a': 1000.0}, 600.0)
    s.charged = 0.0  # replaced device
    s.run({'a': 1000.0}, 300.0)
    s.run({'a': 1000.0}, 900.0)
    first, second = s.close()[:2]
    assert (first.counters, first.source.taken) == (None, 250_000)
    assert second.counters is not None and second.source.taken == 250_000
    assert p.counter_resets == 1
    # One member of an aggregate is missing: its counter is not in the sum.
    p.refresh(reading(s.energy, 0.0, (1.0, 1.0), members=2, members_usable=1), {}, 1.0, s.wall + 1)
    s.wall += 1
    assert p.counter_resets == 1


def test_a_gap_is_divided_by_the_shares_and_marked():
    p = Partition({'a': Share(0.75, 0.5, 0.5), 'b': Share(0.25, 0.5, 0.5)})
    s = Source(p)
    s.run({'b': 1000.0}, 600.0)
    s.update({}, 1000.0, 7200.0, gap=True)
    s.run({'b': 1000.0}, 100.0)
    first, gap, last = s.close()
    check_records([first, gap, last])
    assert (first.gap, gap.gap, last.gap) == (False, True, False)
    assert (first.end, gap.end) == (WALL + 600, WALL + 7800)
    assert first.rows['a'].taken == 0
    assert (gap.rows['a'].taken, gap.rows['b'].taken) == (1_500_000, 500_000)


@pytest.mark.parametrize('step', [3600.0, -3600.0, 40.0, -40.0])
def test_a_step_of_the_clock_loses_no_energy(step):
    p = Partition({'a': Share.equal(1.0)})
    s = Source(p)
    for k in range(120):
        if k == 50:
            s.wall += step
        s.run({'a': 1000.0}, 30.0)
    records = s.close()
    assert sum(r.source.taken for r in records) == round(1000 * s.counters[0]) - round(1000 * s.begin[0])
    assert all(0 <= r.end - r.start <= 960.0 for r in records), 'no record is longer than its period'
    assert [r.sequence for r in records] == list(range(1, len(records) + 1))
    check = [r.counters for r in records]
    assert all(b[:2] == a[2:] for a, b in zip(check, check[1:], strict=False))


steps = st.lists(st.tuples(
    st.sampled_from(['run'] * 8 + ['restart', 'gap', 'resize', 'add', 'remove', 'no counter', 'reset']),
    st.floats(-6000, 6000), st.floats(-6000, 6000), st.sampled_from([0.0, 0.7, 0.97, 1.0, 1.05]),
    st.sampled_from([1.0, 60.0, 700.0, 2000.0]), st.floats(0, 1)), max_size=40)


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(Policy), st.sampled_from(LossRule), steps)
def test_statements_add_up_to_the_counter_through_everything(policy, rule, steps):
    """Restart, resize, new and removed children, gaps: the sum of the records is the counter's difference."""
    p = Partition({'a': Share(0.4, 0.3, 0.4), 'b': Share(0.4, 0.5, 0.4)}, policy, Expected(10_000, 5000, 5000),
                  0.95, 0.95, rule)
    s = Source(p, step=1.0)
    born = 0
    for what, x, y, factor, dt, fraction in steps:
        p = s.partition
        names = p.children
        if what == 'restart':
            s.partition = from_dict(json.loads(json.dumps(to_dict(p), allow_nan=False)), 0.95, 0.95, rule)
            assert to_dict(s.partition) == to_dict(p)
            s.update({}, 0.0, dt, gap=True)
        elif what == 'gap':
            s.update({}, min(max(x, -500.0), 500.0) if 500 < s.energy < 9500 else 0.0, dt, gap=True)
        elif what == 'resize':
            old = shares_of(p)[names[0]]
            resize_child(p, names[0], Share(old.energy * fraction, old.charge, old.discharge * fraction),
                         wall=s.wall)
        elif what == 'add':
            born += 1
            free = 1 - fsum(v.energy for v in shares_of(p).values())
            add_child(p, f'n{born}', Share(max(free, 0.0) * fraction, 0.0, 0.0), wall=s.wall)
        elif what == 'remove' and len(names) > 1:
            heir = names[0] if fraction < 0.5 else UNASSIGNED
            remove_child(p, names[-1], heir, s.wall)
        elif what == 'no counter':
            net = p.net_request({names[0]: x}, horizon=dt)
            p.refresh(reading(s.energy, nan, (nan, nan), quality=Quality.STALE), net.granted, 1.0, s.wall)
        else:
            s.run({names[0]: x, names[-1]: y}, dt, follow_by=min(factor, 1.0), measured_by=factor or 1.0)
        s.records += s.partition.closed
        s.partition.closed.clear()
        p = s.partition
        if p.ledgers is not None and what != 'no counter':
            assert all(x.energy >= -1e-6 for x in p.ledgers)
            assert fsum(x.energy for x in p.ledgers) + p.unassigned == pytest.approx(s.energy, abs=1e-3)
    records = s.close()
    check_records(records)
    assert all(r.counters is not None for r in records)
    for k, column in enumerate(('taken', 'given')):
        assert sum(getattr(r.source, column) for r in records) == round(1000 * (s.counters[k] - s.begin[k]))
        ledgers = [*s.partition.ledgers, s.partition.removed]
        assert fsum(x.charged if k == 0 else x.discharged for x in ledgers) == pytest.approx(
            s.counters[k] - s.begin[k], abs=1e-3)
    assert [Record.from_dict(json.loads(json.dumps(r.to_dict()))) for r in records] == records


def year(p, days, step):
    """A random but repeatable life; returns the throughput of the source, Wh."""
    s = Source(p)
    rng = random.Random(7)
    requests = {}
    for k in range(int(days * 86400 / step)):
        if k % 15 == 0:
            requests = {n: rng.uniform(-3000, 3000) for n in p.children}
        s.run(requests, step)
    return s


@pytest.mark.parametrize('days', [20, pytest.param(365, marks=pytest.mark.soak)])
def test_drift_is_far_below_a_thousandth_of_throughput(days):
    """Ledgers carried by integration alone (corrections) and by the counter, after so many simulated days."""
    p = Partition({'a': Share(0.5, 0.5, 0.3), 'b': Share(0.3, 0.3, 0.3), 'c': Share(0.2, 0.2, 0.4)},
                  Policy.PROPORTIONAL, Expected(10_000, 5000, 5000), 0.95, 0.95)
    s = year(p, days, 60.0)
    throughput = p.source_in + p.source_out
    assert throughput > days * 1000
    assert sum(abs(x.correction) for x in p.ledgers) < 1e-3 * throughput
    assert fsum(x.energy for x in p.ledgers) == pytest.approx(s.energy, abs=1e-6)
    records = s.close()
    assert abs(sum(r.source.taken for r in records) / 1000 - p.source_in) < 1e-6 * throughput
    check_records(records)


# prices


@pytest.mark.parametrize(('text', 'problem'), [
    ('', 'line 1'), ('a,b\n1,2\n', 'line 1: the columns'), ('time,price\n', 'no prices'),
    ('time,price\n2026-01-01T00:00,0.1\n', 'line 2: .*no offset from UTC'), ('time,price\nx,0.1\n', "line 2: 'x'"),
    ('time,price\n1,abc\n', "line 2: 'abc' is not a number"), ('time,price\n2,1\n1,1\n', 'ascend'),
    ('time,price\n1,nan\n', 'finite'), ('time,price\n1,1e9\n', 'finite number below'), ('time,price\n1\n', 'line 2')])
def test_bad_prices_are_refused_with_the_line(text, problem):
    with pytest.raises(ValueError, match=problem):
        read_prices(text, 'EUR')


@pytest.mark.parametrize('currency', ['', 'a b', 'x' * 17, 'E,R', 'E\nR'])
def test_bad_currency(currency):
    with pytest.raises(ValueError, match='no currency'):
        Prices(currency, (decimal(1),))


def test_price_before_the_first_one_is_refused():
    with pytest.raises(ValueError, match='no price for 1970-01-01T00:00:01\\+00:00'):
        Prices('EUR', (decimal('0.1'),), (2.0,)).at(1.0)


def test_money_adds_up_and_is_exact():
    p = Partition({'a': Share.equal(1 / 3), 'b': Share.equal(1 / 3), 'c': Share.equal(1 / 3)})
    s = Source(p)
    for k in range(100):
        s.run({'a': 700.0, 'b': -333.3 * (k % 3), 'c': 123.4}, 60.0)
    for record in s.close():
        parts = costs(record, Prices('EUR', (decimal(0.1234),)))
        exact = Decimal('0.1234') * record.source.net / 1_000_000
        assert abs(sum(parts.values()) - exact) <= Decimal('0.0000005') * len(parts)
        assert all(v == v.quantize(Decimal('0.000001')) for v in parts.values())
    assert not isnan(float(sum(parts.values())))
