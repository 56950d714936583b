"""The compiled step of the cells gives what numpy gives, to the last bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_sim import cell_kernel
from bess_sim.cells import CellBank
from bess_sim.plant_config import PackConfig
from tools.build_native import compile_kernel


@pytest.fixture(scope='module')
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel, compiled here."""
    if shutil.which('cc') is None:
        pytest.skip('no C compiler here')
    path = tmp_path_factory.mktemp('kernel') / 'libcell_kernel.so'
    compile_kernel(path)
    return path


PACKS = st.builds(
    PackConfig, chemistry=st.sampled_from(['lfp', 'nmc']), cells=st.integers(1, 24),
    capacity_ah=st.floats(1.0, 300.0), initial_soc=st.floats(0.0, 1.0), soc_spread=st.floats(0.0, 0.05),
    coulomb_efficiency=st.sampled_from([1.0, 0.995]), balance_current=st.sampled_from([0.0, 0.1]))
STEPS = st.lists(st.tuples(st.lists(st.floats(-3000.0, 3000.0), min_size=3, max_size=3),
                           st.sampled_from([0.1, 1.0, 1.0, 17.0])), min_size=1, max_size=60)


def state(bank: CellBank) -> dict[str, Any]:
    """All that a step changes."""
    rows = range(len(bank.sizes))
    return {
        'charge': bank.charge, 'voltage': bank.voltage, 'temperature': bank.temperature, 'heat': bank.heat,
        'current': bank.current, 'dc': bank.dc_energy, 'pack': bank.pack_voltage, 'room': bank.room,
        'reach': bank.reach, 'cells': [v for row in rows for v in bank.cells_of(row)], 'bleed': bank.bleed,
        'highest': bank.cell_max, 'lowest': bank.cell_min, 'told': [bank.told_energy(row) for row in rows]}


@settings(max_examples=60)
@given(packs=st.lists(PACKS, min_size=1, max_size=3), steps=STEPS, seed=st.integers(0, 1000), heater=st.booleans())
def test_equal_to_the_last_bit(library: Path, packs: list[PackConfig], steps: list[Any], seed: int,
                               heater: bool) -> None:
    plain = CellBank(packs, 20.0, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('bess_sim.cells.LIBRARY', library)
        compiled = CellBank(packs, 20.0, np.random.default_rng(seed))
    assert plain._kernel is None and compiled._kernel is not None
    for k, (powers, dt) in enumerate(steps):
        if heater and k == 3:
            for bank in (plain, compiled):
                bank.set_climate(0, 80.0, 2.0)
        if k == 5:
            for bank in (plain, compiled):
                bank.order_balancing(0, [c % 2 == 0 for c in range(packs[0].cells)])
        assert plain.step(powers[:len(packs)], dt) == compiled.step(powers[:len(packs)], dt)
        before, after = state(plain), state(compiled)
        for name, value in before.items():
            assert np.array_equal(np.asarray(value), np.asarray(after[name])), (k, name)


@pytest.mark.parametrize('cells', [1, 7, 8, 9, 16, 100, 127, 128, 129, 130, 300])
def test_sums_are_those_of_numpy(library: Path, cells: int) -> None:
    """Its order of adding decides the last bits; strings of any length."""
    rng = np.random.default_rng(cells)
    shape = (2, cells)
    arrays = {name: np.zeros(shape) for name in (*cell_kernel._LASTING, *cell_kernel._CHANGING)
              if name not in ('power', 'packs')}
    v1 = rng.normal(size=shape) * 1e3
    v1[1] = [1.0] + [0.0] * (cells - 1)
    arrays |= {'slope': np.zeros(2), 'base': np.zeros(2), 'energy': np.zeros(2), 'ae': np.ones((2, *shape)),
               'rc': np.zeros((2, *shape)), 'line': np.zeros((4, *shape)), 'eta': np.ones(2), 'full': np.ones(2),
               'v1': v1}
    volts, ohms = v1.copy(), rng.random(size=shape)
    kernel = cell_kernel.CellKernel(library, [cells] * 2, 2, 1, arrays)
    kernel.renew(1.0, False, None, [9.0] * 2, [9.0] * 2, ohms)
    packs = dict(zip(cell_kernel.PACKS, kernel.step([0.0, -1e9]), strict=True))
    a, b = np.add.reduce([volts, ohms], axis=2).tolist()
    assert packs['pack_voltage'][0] == a[0], 'at rest: the sum of the voltages'
    assert packs['current'] == [0.0, -a[1] / (2.0 * b[1])], 'the greatest power: the sum of the resistances'
    assert arrays['line'][0].tolist() == volts.tolist() and arrays['line'][1].tolist() == ohms.tolist()


def test_a_power_that_is_no_number_stays_in_its_pack(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read beyond the tables, and the other pack goes on."""
    monkeypatch.setattr('bess_sim.cells.LIBRARY', library)
    packs = [PackConfig(cells=4), PackConfig(cells=4)]
    bank, other = (CellBank(packs, 20.0, np.random.default_rng(1)) for _ in range(2))
    for _ in range(3):
        bank.step([float('nan'), 500.0], 1.0)
        other.step([0.0, 500.0], 1.0)
    assert np.isnan(bank.current[0]) and np.isnan(bank.told_energy(0)[0])
    assert bank.current[1] == other.current[1] and bank.told_energy(1) == other.told_energy(1)


@pytest.mark.parametrize('powers', [[1.0], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize('compiled', [False, True])
def test_one_power_for_each_pack(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, powers: list[float],
                                 compiled: bool) -> None:
    monkeypatch.setattr('bess_sim.cells.LIBRARY', library if compiled else tmp_path / 'none.so')
    bank = CellBank([PackConfig(cells=4), PackConfig(cells=4)], 20.0, np.random.default_rng(1))
    with pytest.raises(ValueError):
        bank.step(powers, 1.0)


def test_without_the_library_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        cell_kernel.CellKernel(tmp_path / 'none.so', [1], 1, 1, {})


def test_an_array_that_is_none_is_refused(library: Path) -> None:
    with pytest.raises(ValueError, match='contiguous'):
        cell_kernel.CellKernel(library, [2, 2], 1, 1, {n: np.zeros((2, 2), dtype=np.float32) for n in
                                                    (*cell_kernel._LASTING, *cell_kernel._CHANGING)})


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CC', 'false')
    with pytest.raises(subprocess.CalledProcessError):
        compile_kernel(tmp_path / 'x.so')
