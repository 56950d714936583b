"""Cell model: tables, resistance, RC pair, heat, balancing, bounds."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_sim.cells import CellBank
from bess_sim.chemistry import CHEMISTRIES, ocv, ocv_table, power_to_current
from bess_sim.plant_config import PackConfig


def bank(*packs: PackConfig, seed: int = 1, ambient: float = 25.0) -> CellBank:
    return CellBank(packs, ambient, np.random.default_rng(seed))


EVEN = {'capacity_spread': 0.0, 'resistance_spread': 0.0, 'soc_spread': 0.0}


@pytest.mark.parametrize('chemistry', CHEMISTRIES)
def test_ocv_rises_and_meets_its_published_points(chemistry: str) -> None:
    assert (np.diff(ocv_table(chemistry)) > 0).all()
    for soc, volts in CHEMISTRIES[chemistry].ocv:
        assert ocv(chemistry, soc) == pytest.approx(volts, abs=1e-9)


def test_ocv_against_the_measured_files(shared_data) -> None:
    for chemistry, file in (('lfp', 'CLFP_Sony_US26650_OCV'), ('nmc', 'pOCV_LG-INR21700M50T')):
        soc, volts = np.genfromtxt(
            shared_data / 'ocv' / f'{file}.csv', delimiter=',', skip_header=1
        ).T
        table = np.interp(soc, np.linspace(0, 1, 1001), ocv_table(chemistry))
        assert np.abs(table - volts).max() < (0.010 if chemistry == 'lfp' else 0.013)


def test_pulse_response_is_that_of_r0_and_one_rc_pair() -> None:
    pack = PackConfig(cells=1, capacity_ah=100.0, resistance=0.002, **EVEN)
    b = bank(pack)
    rest = b.voltage[0, 0]
    dt, current = 0.01, 0.0
    for _ in range(6000):  # one time constant at about 50 A
        current = b.step([50.0 * rest], dt)[0]
    slope = ocv('lfp', 0.5 + 50 / 100 * 60 / 3600) - ocv('lfp', 0.5)
    # half of the resistance is ohmic, half builds up with 60 s; factor 1.003 = SoC 0.5 of an LFP cell
    expected = current * 0.002 * (0.5 + 0.5 * (1 - exp(-1)))
    assert b.voltage[0, 0] - rest - slope == pytest.approx(expected, rel=0.02)
    assert current == pytest.approx(50.0, rel=0.05)
    for _ in range(60_000):
        b.step([0.0], dt)
    # rest for ten time constants: what is left is the OCV of the new charge
    assert b.voltage[0, 0] == pytest.approx(ocv('lfp', b.charge[0, 0] / 100.0), abs=1e-4)


def test_cold_cells_resist_more_and_heat_reaches_its_steady_state() -> None:
    pack = PackConfig(
        cells=1, capacity_ah=100.0, coulomb_efficiency=1.0, balance_current=0.0, **EVEN
    )
    rise = {}
    for ambient in (0.0, 25.0, 45.0):
        b = bank(pack, ambient=ambient)
        b.step([100.0], 1.0)
        rise[ambient] = b.voltage[0, 0] - ocv('lfp', 0.5)
    assert rise[0.0] > 1.5 * rise[25.0] > 1.5 * rise[45.0]
    # a cell that is swung at a high rate ends at ambient + R_th x heat
    b = bank(pack)
    for k in range(3000):
        b.step([300.0 if k % 2 else -290.0], 20.0)
    before = float(b.heat[0, 0])
    for k in range(200):
        b.step([300.0 if k % 2 else -290.0], 20.0)
    watts = (float(b.heat[0, 0]) - before) / 4000.0
    thermal_resistance = 5400.0 / (24.0 * 100.0)
    assert b.temperature[0, 0] - 25.0 == pytest.approx(watts * thermal_resistance, rel=0.05)
    assert watts > 1.0


def test_coulomb_efficiency_is_lost_while_charging_only() -> None:
    b = bank(
        PackConfig(cells=2, capacity_ah=10.0, coulomb_efficiency=0.99, balance_current=0, **EVEN)
    )
    start, moved = b.charge[0, 0], 0.0
    for _ in range(600):
        moved += b.step([30.0], 1.0)[0] / 3600.0
    assert b.charge[0, 0] - start == pytest.approx(0.99 * moved, rel=1e-9)
    start, moved = b.charge[0, 0], 0.0
    for _ in range(600):
        moved += b.step([-30.0], 1.0)[0] / 3600.0
    assert b.charge[0, 0] - start == pytest.approx(moved, rel=1e-9)


def test_spread_is_seeded_and_of_the_stated_size() -> None:
    pack = PackConfig(cells=400, capacity_spread=0.01, soc_spread=0.01)
    a, b, c = bank(pack), bank(pack), bank(pack, seed=2)
    assert (a.capacity == b.capacity).all() and (a.charge == b.charge).all()
    assert not (a.capacity == c.capacity).all()
    assert a.capacity.std() / 100.0 == pytest.approx(0.01, rel=0.2)


def test_balancing_brings_cells_together_at_the_top() -> None:
    pack = PackConfig(
        cells=4, capacity_ah=10.0, initial_soc=0.96, soc_spread=0.02, capacity_spread=0.0,
        balance_current=0.5,
    )  # fmt: skip
    b = bank(pack)
    before = np.ptp(b.charge[0])
    bled = False
    for _ in range(8 * 3600):
        b.step([3.0], 1.0)
        bled = bled or b.balancing
    assert bled
    assert np.ptp(b.charge[0]) < 0.5 * before
    idle = bank(pack.model_copy(update={'balance_current': 0.0}))
    for _ in range(3600):
        idle.step([3.0], 1.0)
    assert not idle.balancing


def test_packs_of_different_length_and_chemistry_do_not_disturb_each_other() -> None:
    long = PackConfig(cells=16)
    short = PackConfig(cells=3, chemistry='nmc', capacity_ah=50.0)
    both, alone = bank(long, short), bank(long)
    for k in range(300):
        power = 1500.0 if k % 50 < 30 else -1500.0
        both.step([power, 100.0], 1.0)
        alone.step([power], 1.0)
    assert (both.voltage[0] == alone.voltage[0]).all()
    assert (both.voltage[1, 3:] == 0.0).all() and both.cell_min[1] > 3.0
    assert both.stored_energy(0) == alone.stored_energy(0)


@settings(max_examples=40)
@given(
    st.lists(st.floats(-20_000, 20_000), min_size=1, max_size=30),
    st.floats(0.0, 1.0),
    st.sampled_from(['lfp', 'nmc']),
    st.sampled_from([0.02, 1.0, 60.0, 900.0]),
)
def test_any_power_leaves_soc_in_range_and_the_balance_closed(powers, soc, chemistry, dt) -> None:
    pack = PackConfig(cells=16, chemistry=chemistry, capacity_ah=50.0, initial_soc=soc)
    b = bank(pack)
    start = b.stored_energy(0)
    for power in powers:
        b.step([power], dt)
        assert (b.charge >= 0.0).all() and (b.charge <= b.capacity).all()
        assert np.isfinite(b.voltage).all() and np.isfinite(b.temperature).all()
    moved = sum(abs(p) for p in powers) * dt / 3600.0
    gap = b.dc_energy[0] / 3600.0 - (b.stored_energy(0) - start) - b.heat.sum() / 3600.0
    if dt <= 1.0:  # a step across knots of the OCV table is exact to second order only
        assert abs(gap) <= 1e-9 + moved * 0.01


def test_balance_closes_to_rounding_while_bleeding() -> None:
    b = bank(PackConfig(cells=8, capacity_ah=20.0, initial_soc=0.95, soc_spread=0.01))
    start = b.stored_energy(0)
    for k in range(7200):
        b.step([60.0 if k < 5400 else -40.0], 1.0)
    assert b.heat.sum() > 0.0
    gap = b.dc_energy[0] / 3600.0 - (b.stored_energy(0) - start) - b.heat.sum() / 3600.0
    assert abs(gap) < 1e-4 * 60.0


@given(st.floats(-1e5, 1e5), st.floats(1.0, 1000.0), st.floats(1e-5, 1.0))
def test_current_for_a_power(power: float, volts: float, ohms: float) -> None:
    current = power_to_current(power, volts, ohms)
    best = -volts * volts / (4 * ohms)
    assert current * (volts + ohms * current) == pytest.approx(max(power, best), rel=1e-6, abs=1e-6)
