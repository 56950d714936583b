"""State of charge and health, and balancing, on a virtual clock against a cell whose charge is known."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.soc import OCV_LFP, BalanceParams, Balancer, Sample, SocEstimator, SocParams, at_25
from bess_core.params import ParameterError, build

P = SocParams(capacity=100.0, coulomb_efficiency=1.0, cycle_loss=0.0, max_gap=120.0)


def ocv(soc: float) -> float:
    for (a, va), (b, vb) in zip(OCV_LFP, OCV_LFP[1:], strict=False):
        if soc <= b:
            return va + (vb - va) * (soc - a) / (b - a)
    return OCV_LFP[-1][1]


class Cell:
    """A cell of known charge; what is measured carries an offset of the current."""

    def __init__(self, estimator: SocEstimator, soc: float, capacity: float = 100.0, offset: float = 0.0) -> None:
        self.e, self.soc, self.capacity, self.offset, self.now = estimator, soc, capacity, offset, 0.0

    def run(self, current: float, seconds: float, dt: float = 60.0, **more: float) -> float:
        for _ in range(round(seconds / dt)):
            self.now += dt
            self.soc = min(max(self.soc + current * dt / 3600.0 / self.capacity, 0.0), 1.0)
            v = ocv(self.soc) + 0.0005 * current
            self.e.step(Sample(self.now, current + self.offset, v, v, more.get('temperature', 25.0),
                               more.get('reference', nan)))
        return self.e.soc


def test_counting() -> None:
    cell = Cell(SocEstimator(P, soc=0.5), 0.5)
    cell.run(20.0, 60.0)
    cell.run(20.0, 3600.0)
    assert cell.e.soc == pytest.approx(0.7, abs=0.005)
    cell.run(-10.0, 3600.0)
    assert cell.e.soc == pytest.approx(0.6, abs=0.006)
    assert cell.e.throughput == pytest.approx(30.0, abs=0.5)


def test_full_and_empty() -> None:
    cell = Cell(SocEstimator(P, soc=0.5), 0.9)
    cell.run(4.0, 3.2 * 3600)
    assert (cell.e.soc, cell.e.corrected_by) == (1.0, 'full')
    cell = Cell(SocEstimator(P, soc=0.5), 0.1)
    cell.run(-20.0, 1800.0)
    assert (cell.e.soc, cell.e.corrected_by) == (0.0, 'empty')
    assert cell.e.drift == pytest.approx(-0.41, abs=0.05)


@pytest.mark.parametrize(('true', 'counted', 'within'), [(0.08, 0.3, 0.02), (0.15, 0.4, 0.3), (0.5, 0.55, 0.051)])
def test_rest_corrects_by_the_slope_of_the_curve(true: float, counted: float, within: float) -> None:
    cell = Cell(SocEstimator(P, soc=counted), true)
    cell.run(0.0, 1700.0)
    assert cell.e.soc == counted
    cell.run(0.0, 300.0)
    assert abs(cell.e.soc - true) <= within and abs(cell.e.soc - true) <= abs(counted - true)


def test_flat_part_of_the_curve_moves_nothing_far() -> None:
    """At half charge 3 mV are 30 percent: a voltage error must not become one of charge."""
    e = SocEstimator(P, soc=0.5)
    for t in range(0, 2000, 10):
        e.step(Sample(float(t), 0.0, ocv(0.5) + 0.003, ocv(0.5) + 0.003, 25.0))
    assert abs(e.soc - 0.5) < 0.1


def test_unknown_begins_with_rest_or_with_what_the_bms_says() -> None:
    cell = Cell(SocEstimator(P), 0.07)
    assert str(cell.run(0.0, 600.0)) == 'nan'
    assert cell.run(0.0, 2000.0) == pytest.approx(0.07, abs=0.01)
    assert Cell(SocEstimator(P), 0.5).run(0.0, 60.0, reference=0.42) == 0.42


def test_delta_compensation_learns_the_offset_of_the_sensor() -> None:
    cell = Cell(SocEstimator(P, soc=0.95), 0.95, offset=0.4)
    for _ in range(25):
        cell.run(4.0, 6 * 3600)
        cell.run(-10.0, 2 * 3600)
    assert cell.e.offset == pytest.approx(0.4, abs=0.15)


def test_capacity_test_gives_state_of_health() -> None:
    cell = Cell(SocEstimator(P, soc=0.9), 0.9, capacity=80.0)
    cell.run(4.0, 4 * 3600)
    assert cell.e.corrected_by == 'full'
    cell.run(-20.0, 5 * 3600)
    assert cell.e.corrected_by == 'empty' and cell.e.soh == pytest.approx(0.8, abs=0.03)


def test_throughput_ages() -> None:
    e = SocEstimator(SocParams(capacity=1.0, cycle_loss=1e-3, coulomb_efficiency=1.0, full_voltage=9.9), soc=0.5)
    for i in range(7201):
        e.step(Sample(float(i), 1.0 if i % 20 < 10 else -1.0))
    assert e.cycles == pytest.approx(1.0, rel=0.12)  # the mean of two samples of opposite sign moves nothing
    assert e.soh == pytest.approx(1.0 - 1e-3 * e.cycles)


def test_degradation_is_told() -> None:
    cell = Cell(SocEstimator(P, soc=0.5), 0.5)
    cell.run(0.0, 60.0, reference=0.8)
    assert cell.e.suspect == 'estimate 0.50, BMS says 0.80'
    cell.run(0.0, 60.0, reference=0.52)
    assert cell.e.suspect == ''


def test_a_gap_is_not_made_up() -> None:
    e = SocEstimator(P, soc=0.5)
    e.step(Sample(0.0, 50.0))
    e.step(Sample(7200.0, 50.0))
    assert e.soc == pytest.approx(0.5 + 50.0 * 120.0 / 3600.0 / 100.0)
    e.step(Sample(7200.0, 50.0))
    e.step(Sample(100.0, 50.0))
    assert e.soc == pytest.approx(0.5 + 50.0 * 120.0 / 3600.0 / 100.0), 'neither twice nor backwards'


def test_temperature_compensation() -> None:
    assert at_25(3.30, 45.0, 0.0001) == pytest.approx(3.298)
    assert at_25(3.30, nan, 0.0001) == 3.30


@settings(max_examples=100)
@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 6), max_size=30))
def test_nonsense_leaves_a_state_of_charge(samples: list) -> None:
    e = SocEstimator(P, soc=0.5)
    for values in samples:
        assert 0.0 <= e.step(Sample(*values)) <= 1.0
    assert 0.0 < e.soh


@pytest.mark.parametrize('values', [{'capacity': 0.0}, {'capacity': 100.0, 'coulomb_efficiency': 1.2}, {}])
def test_bad_settings(values: dict) -> None:
    with pytest.raises(ParameterError):
        build(SocParams, values)
    with pytest.raises(ValueError, match='rise'):
        SocEstimator(P, ocv=[(0.0, 3.0), (1.0, 2.9)])


GOOD = (3.40, 3.41, 3.425)


@pytest.mark.parametrize(('cells', 'current', 'temperature', 'bled', 'reason'), [
    (GOOD, 0.0, 25.0, (False, True, True), ''),
    (GOOD, 30.0, 25.0, (False, True, True), ''),
    (GOOD, -6.0, 25.0, (False,) * 3, 'current is -6.0 A'),
    (GOOD, nan, 25.0, (False,) * 3, 'current is nan A'),
    (GOOD, 0.0, 50.0, (False,) * 3, 'temperature is 50.0 degC'),
    (GOOD, 0.0, nan, (False,) * 3, 'temperature is nan degC'),
    ((3.20, 3.25, 3.28), 0.0, 25.0, (False,) * 3, 'highest cell is at 3.280 V'),
    ((3.400, 3.405, 3.408), 0.0, 25.0, (False,) * 3, 'cells are within 8 mV'),
    ((3.40, nan, 3.43), 0.0, 25.0, (False,) * 3, 'not every cell is measured'),
    ((), 0.0, 25.0, (), 'not every cell is measured'),
    ((3.40, inf, 3.43), 0.0, 25.0, (False,) * 3, 'not every cell is measured'),
])
def test_balancing(cells: tuple, current: float, temperature: float, bled: tuple, reason: str) -> None:
    balancer = Balancer(BalanceParams())
    assert balancer.step(cells, current, 100.0, temperature, 0.0) == bled
    assert balancer.reason == reason


def test_balancing_has_hysteresis_and_pauses() -> None:
    b = Balancer(BalanceParams(max_time=100.0, pause=50.0))
    table = [(0.0, 3.411, True), (10.0, 3.407, True), (20.0, 3.404, False), (30.0, 3.407, False), (40.0, 3.412, True),
             (139.0, 3.412, True), (140.0, 3.412, False), (180.0, 3.412, False), (190.0, 3.412, True)]
    for now, high, on in table:
        assert any(b.step((3.40, high), 0.0, 100.0, 25.0, now)) is on, now
