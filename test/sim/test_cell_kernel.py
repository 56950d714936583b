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
from bess_sim.chemistry import power_to_current
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
    arrays |= {'slope': np.zeros(2), 'base': np.zeros(2), 'energy': np.zeros(2), 'ae': np.ones((2, *shape)),
               'rc': np.zeros((2, *shape)), 'line': np.zeros((4, *shape)), 'eta': np.ones(2), 'full': np.ones(2),
               'v1': 3.0 + rng.random(size=shape)}
    volts, ohms = arrays['v1'].copy(), rng.random(size=shape) / 100.0
    kernel = cell_kernel.CellKernel(library, [cells] * 2, 2, 1, arrays)
    kernel.renew(1.0, False, None, [9.0] * 2, [9.0] * 2, ohms)
    powers = [0.0, 10.0]
    packs = dict(zip(cell_kernel.PACKS, kernel.step(powers), strict=True))
    a, b = np.add.reduce([volts, ohms], axis=2).tolist()
    assert packs['current'] == [0.0, power_to_current(10.0, a[1], b[1])]
    assert packs['pack_voltage'] == [a[0], a[1] + b[1] * packs['current'][1]]


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
