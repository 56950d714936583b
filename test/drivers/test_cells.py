"""Battery of bare cells: tables for each rule, frames, and the whole controller on a simulated chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Contactor
from bess_drivers.cells import charge, diybms
from bess_drivers.cells.balancing import BalanceParams, Balancer
from bess_drivers.cells.checks import CellLimits, SumCheck, factors, pos, sum_difference, violations
from bess_drivers.cells.controller import CONDITIONS, CellController, CellControllerParams
from bess_drivers.cells.relay import Relay, RelayParams
from bess_drivers.device import BadChecksum, BadFrame, DeviceError, Refused
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices import diybms as simulated
from bess_sim.devices.serial_line import SerialLine

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


# -- the whole ------------------------------------------------------------------------------------------


class Bench:
    """A chain on a pty, a converter and a relay as files, and the controller without its thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.chain, self.now = folder, DeviceFaults(), simulated.Chain(), 100.0
        for name, text in (('current', '0'), ('voltage', '52.8'), ('relay', '0')):
            (folder / name).write_text(text)
        self.last: CellController | None = None
        self.line = SerialLine(folder / 'line', self.faults, self.chain.answer)
        self.address = self.line.start()

    def params(self, **more: Any) -> CellControllerParams:
        return CellControllerParams(**{
            'address': self.address, 'timeout_s': 0.4, 'late_s': 0.4, 'relay': f'file:{self.folder / "relay"}',
            'sensor': str(self.folder), 'sensor_channels': ['current=current', 'voltage=voltage unit=V'],
            'temperature_period': 0.1, 'initial_soc': 0.5, **more})

    def controller(self, read_only: bool = False, **more: Any) -> CellController:
        made = CellController(self.params(**more), read_only, clock=lambda: self.now)
        if self.last is not None:
            self.last.close()  # a port belongs to one
        self.last = made
        made.output.open()
        made.relay.start(self.now)
        made.link.open()
        return made

    def put(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(str(value))

    @property
    def closed(self) -> bool:
        return (self.folder / 'relay').read_text() == '1'

    def step(self, c: CellController, seconds: float, sign: bool = True) -> Any:
        self.now += seconds
        if sign:
            c.sign_of_life()
        c.guard_step()
        return c.read(self.now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.line.stop()
    made.line.check()


def test_cells_are_measured_and_the_relay_closes(bench):
    bench.chain.modules[3].volts, bench.chain.modules[5].celsius = 3.38, 31.0
    bench.put('current', '-20')
    c = bench.controller()
    assert c.identify().version == '00c0ffee'
    bench.step(c, 1.0)
    assert not bench.closed
    r = bench.step(c, 1.1)
    assert bench.closed and r.contactor is Contactor.CLOSED and r.alarms == ()
    assert r.cells[3] == pytest.approx(3.38, abs=0.002) and r.cell_voltage_max_index == 3
    assert (r.temperature, r.temperature_min) == pytest.approx((31.0, 25.0), abs=0.2)
    assert (r.voltage, r.current, r.max_charge_current, r.max_discharge_current) == (52.8, -20.0, 150.0, 150.0)
    assert r.charge_full == 280.0 and r.soc == pytest.approx(0.5, abs=0.01)
    assert c.charge_voltage == pytest.approx(52.88 + 0.2 + 15 * 0.04, abs=0.05)


def test_energy_is_counted(bench):
    c = bench.controller(capacity=10.0)
    bench.put('current', '36')
    first = bench.step(c, 1.0)
    later = bench.step(c, 10.0)
    assert later.energy - first.energy == pytest.approx(52.8 * 36 * 10 / 3600 * 0.98, rel=1e-6)


@pytest.mark.parametrize(('what', 'value', 'fault'), [
    ('volts', 3.65, 'cell_voltage_high'), ('volts', 2.6, 'cell_voltage_low'),
    ('celsius', 60.0, 'cell_temperature_high'),
    ('celsius', -20.0, 'cell_temperature_low'), ('volts', 0.0, 'cell_unknown')])
def test_a_cell_beyond_a_limit_opens_the_relay_and_is_a_fault(bench, what, value, fault):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.step(c, 2.0)
    assert bench.closed
    setattr(bench.chain.modules[7], what, value)
    r = bench.step(c, 1.0)
    assert not bench.closed and f'cells.{fault}' in [a.id for a in r.alarms]
    assert (r.max_charge_current, r.max_discharge_current) == (0.0, 0.0)
    setattr(bench.chain.modules[7], what, 3.3 if what == 'volts' else 25.0)
    bench.step(c, 1.0)
    bench.step(c, 4.9)
    bench.step(c, 3.0)
    assert not bench.closed
    bench.step(c, 2.1)
    assert bench.closed


@pytest.mark.parametrize(('file', 'text', 'fault'), [
    ('current', '250', 'charge_current_high'), ('current', '-250', 'discharge_current_high'),
    ('voltage', '59', 'pack_voltage_high'), ('voltage', '40', 'pack_voltage_low'), ('current', 'x', 'pack_unknown')])
def test_the_guard_opens_without_waiting_for_the_next_poll(bench, file, text, fault):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.step(c, 2.0)
    assert bench.closed
    bench.put(file, text)
    bench.now += 0.1
    c.guard_step()
    assert not bench.closed
    assert f'cells.{fault}' in [a.id for a in c.read(bench.now).alarms]


def test_lost_link_and_blind_front_end(bench):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.step(c, 2.0)
    for _ in range(4):
        r = bench.step(c, 4.0, sign=False)
    assert not bench.closed and 'cells.link_lost' in [a.id for a in r.alarms]
    bench.step(c, 1.0)
    assert bench.closed  # heard again
    bench.faults.inject('no_answer')
    with pytest.raises(DeviceError):
        c.read(bench.now)
    bench.now += 5.1
    c.sign_of_life()
    c.guard_step()
    assert not bench.closed


def test_orders_sum_mismatch_and_unknown_temperature(bench):
    c = bench.controller()
    bench.put('voltage', '50')
    bench.chain.modules[2].celsius = nan
    r = bench.step(c, 3.0)
    ids = [a.id for a in r.alarms]
    assert 'cells.sum_mismatch' in ids and 'cells.temperature_unknown' in ids and r.max_charge_current == 0.0
    with pytest.raises(Refused, match='both directions'):
        c.set_contactor(True, False)


def test_balancing_reaches_the_modules_and_ends(bench):
    c = bench.controller()
    bench.put('voltage', sum((3.57, 3.5, *(3.45,) * 14)))
    for m in bench.chain.modules:
        m.volts = 3.45
    bench.chain.modules[4].volts = 3.57
    bench.step(c, 1.0)
    assert bench.chain.modules[4].level and sum(bool(m.level) for m in bench.chain.modules) == 1
    r = bench.step(c, 1.0)
    assert r.balancing[4] and sum(r.balancing) == 1 and bench.chain.level_writes == 1
    bench.chain.modules[4].volts = 3.45
    bench.step(c, 1.0)
    assert not bench.chain.modules[4].level
    bench.chain.modules[4].hot = True
    assert 'cells.balancer_hot' in [a.id for a in bench.step(c, 1.0).alarms]


def test_read_only_drives_nothing(bench):
    c = bench.controller(read_only=True)
    for m in bench.chain.modules[:3]:
        m.volts = 3.57
    bench.step(c, 1.0)
    r = bench.step(c, 3.0)
    assert not bench.closed and bench.chain.level_writes == 0 and r.contactor is Contactor.OPEN
    with pytest.raises(Refused, match='read_only'):
        c.set_contactor(True, True)


def test_damage_is_no_reading_and_it_comes_back(bench, monotonic_deadline):
    c = bench.controller()
    bench.step(c, 1.0)
    over = monotonic_deadline()
    for fault in ('flipped_bytes', 'truncated_frame', 'no_answer'):
        bench.faults.inject(fault)
        with pytest.raises(DeviceError):
            c.read(bench.now)
        bench.faults.clear()
        while True:
            assert not over(), fault
            try:
                if not c.link.is_open:
                    c.link.open()
                assert c.read(bench.now).cells[0] == pytest.approx(3.3, abs=0.002)
                break
            except DeviceError:
                continue


def test_unplugged_and_plugged_in_again(bench, monotonic_deadline):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.step(c, 2.0)
    bench.faults.inject('disconnect')
    over = monotonic_deadline()
    with pytest.raises(DeviceError):
        while not over():
            c.read(bench.now)
    bench.now += 6.0
    c.guard_step()
    assert not bench.closed  # blind
    bench.faults.clear()
    while True:
        assert not over()
        try:
            if not c.link.is_open:
                c.link.open()
            c.read(bench.now)
            break
        except DeviceError:
            continue


def test_counted_energy_over_a_restart(bench):
    path = bench.folder / 'energy.json'
    c = bench.controller(state_file=str(path), initial_soc=0.5)
    bench.put('current', '100')
    bench.step(c, 1.0)
    last = bench.step(c, 3600.0 / 4)
    assert last.energy > 0.5 * last.energy_full
    again = bench.controller(state_file=str(path), initial_soc=0.1)
    assert again._counter.energy == pytest.approx(last.energy)
    for text in ('', '{}', '[1]', '{"energy_wh": 1, "full_wh": 2}', '{"energy_wh": NaN, "full_wh": 14336}'):
        path.write_text(text)
        assert bench.controller(state_file=str(path), initial_soc=0.1)._counter.energy == pytest.approx(1433.6)
    blocked = bench.controller(state_file=str(bench.folder / 'none' / 'x'))
    bench.step(blocked, 1.0)
    assert 'cells.hardware' in [a.id for a in bench.step(blocked, 61.0).alarms]
    reader = bench.controller(read_only=True, state_file=str(path))
    before = path.read_text()
    bench.step(reader, 100.0)
    assert path.read_text() == before


def test_a_relay_that_goes_and_comes(bench):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.step(c, 2.0)
    assert bench.closed
    (bench.folder / 'relay').unlink()
    r = bench.step(c, 1.0)
    assert 'cells.hardware' in [a.id for a in r.alarms] and r.contactor is Contactor.UNKNOWN
    bench.put('relay', '0')
    r = bench.step(c, 1.0)
    assert bench.closed and 'cells.hardware' not in [a.id for a in r.alarms]


def test_after_the_end_nothing_closes_it_again(bench):
    c = CellController(bench.params(first=0.0), clock=lambda: bench.now)
    c.open()
    bench.step(c, 1.0)
    bench.step(c, 1.0)
    assert bench.closed
    c.shutdown()
    assert not bench.closed
    bench.step(c, 20.0)
    assert not bench.closed
    c.close()


def test_fewer_modules_than_cells_is_no_reading(bench):
    bench.chain.modules.pop()
    with pytest.raises(BadFrame, match='not 16 times'):
        bench.controller().read(0.0)


def test_its_own_thread_opens_the_relay_though_nobody_polls(bench, monotonic_deadline):
    c = CellController(bench.params(first=0.0, link_timeout=0.6, blind_timeout=10.0))
    over = monotonic_deadline()
    c.open()
    try:
        while not bench.closed:
            assert not over()
            c.sign_of_life()
            c.read(time.monotonic())
        while bench.closed:  # nobody above says anything any more, and nothing is polled
            assert not over()
            time.sleep(0.02)
        c.sign_of_life()
        c.set_contactor(True, True)
        assert bench.closed
        c.set_contactor(False, False)
        assert not bench.closed
    finally:
        c.shutdown()
        c.close()
    with pytest.raises(DeviceError, match='shut down'):
        c.open()


@pytest.mark.parametrize(('more', 'problem'), [
    ({'relay': ''}, 'relay is missing'), ({'relay': 'gpiozero:mock', 'relay_pins': ['x=1']}, 'relay_pins'),
    ({'sensor_channels': ['voltage=voltage']}, 'needs current'), ({'sensor_channels': []}, 'empty')])
def test_wrong_settings(bench, more, problem):
    with pytest.raises(ValueError, match=problem):
        CellController(bench.params(**more))
