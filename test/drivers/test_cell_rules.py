"""Battery of bare cells: tables for each rule, and frames."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.cells import charge, diybms
from bess_drivers.cells.balancing import BalanceParams, Balancer
from bess_drivers.cells.checks import CellLimits, SumCheck, factors, pos, sum_difference, violations
from bess_drivers.cells.controller import CONDITIONS
from bess_drivers.cells.relay import Relay, RelayParams
from bess_drivers.device import BadChecksum, BadFrame, DeviceError
from bess_sim.devices import diybms as simulated

P = CellLimits()
T = np.array([25.0])


# -- checks ---------------------------------------------------------------------------------------------


def test_pos_as_it_is_defined():
    assert [float(pos(10.0, v, 20.0)) for v in (5.0, 10.0, 15.0, 20.0, 30.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert [float(pos(20.0, v, 10.0)) for v in (5.0, 15.0, 30.0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(('u', 't', 'soc', 'charging', 'discharging'), [
    (3.2, 25.0, 0.5, 1.0, 1.0), (3.49, 25.0, 0.5, 0.5, 1.0), (3.58, 25.0, 0.5, 0.0, 1.0), (3.6, 25.0, 0.5, 0.0, 1.0),
    (2.95, 25.0, 0.5, 1.0, 0.5), (2.9, 25.0, 0.5, 1.0, 0.0), (3.2, 42.5, 0.5, 0.5, 0.5), (3.2, 45.0, 0.5, 0.0, 0.0),
    (3.2, 6.0, 0.5, 0.5, 0.5), (3.2, -5.0, 0.5, 0.0, 0.0), (3.2, 25.0, 0.05, 1.0, 0.5), (3.2, 25.0, 0.975, 0.5, 1.0),
    (3.2, 25.0, 0.0, 1.0, 0.0), (3.2, 25.0, 1.0, 0.0, 1.0), (3.2, nan, 0.5, 0.0, 0.0), (nan, 25.0, 0.5, 0.0, 0.0),
    (3.2, 25.0, nan, 1.0, 1.0)])
def test_factors_of_a_cell(u, t, soc, charging, discharging):
    found = factors(np.array([u]), np.array([t]), soc, P)
    assert [float(f[0]) for f in found] == pytest.approx([charging, discharging])


def test_a_temperature_that_is_not_required():
    found = factors(np.array([3.2]), np.array([nan]), 0.5, CellLimits(temperature_required=False))
    assert [float(f[0]) for f in found] == [1.0, 1.0]


@given(st.lists(st.floats(2.0, 4.5), min_size=1, max_size=32), st.floats(-40, 80), st.floats(0, 1))
def test_factors_are_shares_and_zero_outside_ext(u, t, soc):
    charging, discharging = factors(np.array(u), np.full(len(u), t), soc, P)
    for v, c, d in zip(u, charging, discharging, strict=True):
        assert 0.0 <= c <= 1.0 and 0.0 <= d <= 1.0
        assert v < P.voltage_ext_max or c == 0.0
        assert v > P.voltage_ext_min or d == 0.0


@pytest.mark.parametrize(('u', 't', 'pack', 'current', 'ids'), [
    (3.3, 25.0, 52.0, 0.0, []), (3.64, 25.0, 52.0, 0.0, ['cell_voltage_high']), (3.63, 25.0, 52.0, 0.0, []),
    (2.69, 25.0, 52.0, 0.0, ['cell_voltage_low']), (3.3, 56.0, 52.0, 0.0, ['cell_temperature_high']),
    (3.3, -11.0, 52.0, 0.0, ['cell_temperature_low']), (nan, 25.0, 52.0, 0.0, ['cell_unknown']),
    (3.3, nan, 52.0, 0.0, []), (3.3, 25.0, 58.0, 0.0, ['pack_voltage_high']),
    (3.3, 25.0, 41.6, 0.0, ['pack_voltage_low']),
    (3.3, 25.0, 52.0, 200.0, ['charge_current_high']), (3.3, 25.0, 52.0, -200.0, ['discharge_current_high']),
    (3.3, 25.0, nan, 0.0, ['pack_unknown']), (3.3, 25.0, 52.0, nan, ['pack_unknown'])])
def test_what_opens_the_relay(u, t, pack, current, ids):
    found = violations(np.array([3.3, u]), np.array([25.0, t]), pack, current, P)
    assert [c.id for c in found] == ids and set(ids) <= set(CONDITIONS)
    assert not ids or not ids[0].startswith('cell') or 'cell 2' in found[0].text


def test_limits_in_the_wrong_order():
    for wrong in ({'voltage_ext_max': 3.7}, {'temperature_std_min': 1.0}, {'pack_voltage_max': 40.0}):
        with pytest.raises(ValueError, match='must be below'):
            CellLimits(**wrong)


def test_sum_of_the_cells_with_hysteresis():
    check = SumCheck(0.02)
    assert [check.step(d) is not None for d in (0.019, 0.021, 0.016, 0.014, 0.019, nan)] == [
        False, True, True, False, False, False]
    assert sum_difference(50.0, np.array([25.0, 24.0])) == pytest.approx(1 / 49)


# -- relay ----------------------------------------------------------------------------------------------


def relay(**params: float) -> Relay:
    made = Relay(RelayParams(reengage=10.0, first=2.0, link_timeout=15.0, blind_timeout=5.0, **params))
    made.start(0.0)
    return made


def test_first_closing_waits_and_a_restart_keeps_what_is_closed():
    r = relay()
    assert r.decide(0.1, closed=True) and not r.decide(0.1, closed=False)
    r.measured(1.0, ok=True)
    assert not r.decide(1.9, closed=False) and 'closes in' in r.why
    assert r.decide(2.0, closed=False)


def test_a_fault_opens_at_once_and_closing_waits():
    r = relay()
    r.measured(3.0, ok=False)
    assert not r.decide(3.0, closed=True) and 'violated' in r.why
    r.measured(4.0, ok=True)
    assert not r.decide(8.9, closed=False)
    for now in (9.0, 12.9):
        r.measured(now, ok=True)
        assert not r.decide(now, closed=False)
    r.measured(13.0, ok=True)
    assert r.decide(13.0, closed=False)
    r.fault(14.0)
    assert not r.decide(14.0, closed=True)


def test_it_opens_by_itself_when_nobody_above_is_heard_or_cells_are_not_measured():
    r = relay()
    for now in range(1, 16):
        r.measured(float(now), ok=True)
        assert r.decide(float(now), closed=True)
    r.measured(15.1, ok=True)
    assert not r.decide(15.1, closed=True) and 'link' in r.why
    r.link(16.0)
    r.measured(16.0, ok=True)
    assert r.decide(16.0, closed=False)  # a lost link is no fault: no waiting
    assert not r.decide(21.1, closed=True) and 'not been measured' in r.why


def test_held_open_and_stuck():
    r = relay(confirm=1.0)
    r.measured(5.0, ok=True)
    r.held_open = True
    assert not r.decide(5.0, closed=True) and 'order' in r.why
    assert not r.stuck(5.0, False, True) and not r.stuck(6.0, False, True) and r.stuck(6.1, False, True)
    assert not r.stuck(6.2, True, None) and not r.stuck(99.0, True, None)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.01, 8.0), st.sampled_from(['ok', 'bad', 'link', 'none']), st.booleans()),
                max_size=40))
def test_whatever_happens_it_is_never_closed_on_bad_or_old_cells(events):
    r, now, last, good, heard = relay(), 0.0, 0.0, True, 0.0
    for step, event, closed in events:
        now += step
        if event in ('ok', 'bad'):
            r.measured(now, event == 'ok')
            last, good = now, event == 'ok'
        elif event == 'link':
            r.link(now)
            heard = now
        if r.decide(now, closed):
            assert good and now - last <= 5.0 and now - heard <= 15.0


# -- balancing ------------------------------------------------------------------------------------------


def test_balancing_by_the_published_rules():
    b = Balancer(BalanceParams(), 3.58)
    assert b.step([3.40, 3.44]) == {}  # below the minimum
    assert b.step([3.45, 3.54]) == {}  # less than twice the difference
    goals = b.step([3.45, 3.57, 3.46, 3.58])
    # thr1 = 3.45 + 0.05 + 0.05 * 0.13 = 3.5065; started from 3.5565 on, down to 3.45
    assert goals == {1: 3.45, 3: 3.45}
    assert b.step([3.45, 3.56, 3.46, 3.45]) == {1: 3.45}  # reached
    assert b.step([3.48, 3.59, 3.50, 3.50]) == {1: pytest.approx(3.58)}  # a goal below the lowest is raised
    assert b.step([3.48, nan, 3.5, 3.5]) == {}


@given(st.lists(st.lists(st.floats(3.0, 3.7), min_size=16, max_size=16), min_size=1, max_size=20))
def test_never_more_than_allowed_and_never_below_the_minimum(rows):
    b = Balancer(BalanceParams(), 3.58)
    for row in rows:
        goals = b.step(row)
        assert len(goals) <= 4
        assert all(g >= 3.45 and row[i] > 3.45 for i, g in goals.items())


# -- charge ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('lowest', 'counted', 'soc'), [
    (3.2, 0.5, 0.5), (3.2, 0.0, 0.05), (3.2, 1.0, 0.95), (2.9, 0.5, 0.0), (2.95, 0.5, 0.025), (2.8, 0.5, 0.0),
    (3.49, 0.5, 0.975), (3.58, 0.5, 1.0), (3.6, 0.5, 1.0)])
def test_state_of_charge(lowest, counted, soc):
    assert charge.soc(lowest, counted, P) == pytest.approx(soc)


def test_counter():
    c = charge.Counter(100.0, 0.02)
    c.add(10.0)
    assert isnan(c.energy) and isnan(charge.soc(3.2, c.energy, P))
    c.knee(2.95, P)
    c.add(50.0)
    assert c.energy == pytest.approx(49.0)
    c.add(-60.0)
    assert (c.energy, c.over_discharged) == (0.0, pytest.approx(11.0))
    c.knee(3.45, P)
    c.add(10.0)
    assert (c.energy, c.over_charged) == (100.0, pytest.approx(9.8))
    c.add(nan)
    assert c.energy == 100.0


def test_adaptive_voltages():
    even = np.full(4, 3.40)
    assert charge.charge_voltage(even, 3.58, 0.5) == pytest.approx(4 * 3.58)
    uneven = np.array([3.50, 3.40, 3.40, 3.40])
    # room 0.08, width 0.04: only the highest counts, and it may rise to 3.58
    assert charge.charge_voltage(uneven, 3.58, 0.5) == pytest.approx(13.70 + 0.08)
    assert charge.charge_voltage(np.array([3.60, 3.40]), 3.58, 0.5) == pytest.approx(6.98)
    assert charge.charge_voltage(np.array([3.58, 3.40]), 3.58, 0.5) == pytest.approx(6.98)  # width 0
    assert charge.discharge_voltage(np.full(4, 3.0), 2.9, 0.5) == pytest.approx(4 * 2.9)
    assert charge.adapt(50.0, 51.0, 0.001) == 51.0 and charge.adapt(50.0, 49.0, 0.001) == pytest.approx(49.999)
    assert charge.adapt(nan, 49.0, 0.001) == 49.0


@given(st.lists(st.floats(2.5, 3.7), min_size=1, max_size=16))
def test_charging_to_the_adaptive_voltage_never_lifts_it_beyond_all_cells_full(u):
    found = charge.charge_voltage(np.array(u), 3.58, 0.5)
    assert found <= max(len(u) * 3.58, sum(min(v, 3.58) for v in u)) + 1e-9


# -- frames ---------------------------------------------------------------------------------------------


def test_check_code_table_is_the_published_one():
    assert diybms.CRC_TABLE == (0x0000, 0x64A8, 0xC950, 0xADF8, 0xE7FB, 0x8353, 0x2EAB, 0x4A03, 0xBAAD, 0xDE05,
                                0x73FD, 0x1755, 0x5D56, 0x39FE, 0x9406, 0xF0AE)


@given(st.binary(min_size=1, max_size=300))
def test_frames_and_check_codes_agree_with_the_other_implementation(data):
    assert diybms.crc16(data) == simulated.crc(data)
    framed = diybms.frame(data)
    assert diybms.split(b'\x00\x12' + framed) == (data, len(framed) + 2)
    assert diybms.split(framed[:-1]) is None
    with pytest.raises(BadChecksum):
        diybms.split(framed[:-1] + bytes((framed[-1] ^ 1,)))


def test_header_as_published():
    assert diybms.request(1, 2, 5, 3)[1:6] == bytes((4, 2, 1, 0, 4 << 3 | 3))
    assert len(diybms.frame(bytes(200))) == 3 + 200 + 2  # two length bytes
    assert diybms.frame(bytes(200))[1:3] == bytes((200 & 0x7F | 0x80, 1))


@given(st.binary(max_size=80))
def test_garbage_gives_only_device_errors(data):
    for raw in (data, diybms.frame(data or b'\0')):
        try:
            content = diybms.extractor(diybms.SETTINGS, 0, 2, 1)(raw)
            if content is not None:
                [diybms.module(r) for r in diybms.replies(content, diybms.SETTINGS, 2)]
        except DeviceError:
            pass
    with pytest.raises(BadFrame):
        diybms.module((0, 0, 0, 0, nan, 0, 0, 0, 0, 0, 0))
