"""Battery of bare cells: the whole controller on a simulated chain of modules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest

from bess_core.values import Contactor
from bess_drivers.cells.controller import CellController, CellControllerParams
from bess_drivers.device import BadFrame, DeviceError, Refused
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices import diybms as simulated
from bess_sim.devices.serial_line import SerialLine


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
            c.link.close()  # as the bus does


def test_a_step_of_the_wall_clock_does_not_matter(bench, monkeypatch):
    c, real = bench.controller(), time.time
    bench.step(c, 1.0)
    for step in (3e8, -3e8, 0.0):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        r = bench.step(c, 2.0)
        assert bench.closed and r.time == bench.now and r.alarms == ()


def test_slow_and_late_answers(bench, monotonic_deadline):
    c = bench.controller()
    bench.step(c, 1.0)
    bench.faults.inject('late_answer', 0.1)
    assert bench.step(c, 1.0).cells[0] == pytest.approx(3.3, abs=0.002)
    bench.faults.inject('late_answer', 0.5)
    with pytest.raises(DeviceError):
        c.read(bench.now)
    for m in bench.chain.modules:
        m.volts = 3.4
    bench.faults.clear()
    over = monotonic_deadline()
    while True:
        assert not over()
        try:
            if not c.link.is_open:
                c.link.open()
            assert c.read(bench.now).cells[0] == pytest.approx(3.4, abs=0.002), 'a late answer was taken for a new one'
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
