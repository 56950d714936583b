"""The compiled step of the cells, where it was built: `cell_kernel.c`, equal to the numpy code to the last bit.

`python tools/build_native.py` builds it for simulations that count in years. Without it nothing is missing but
speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LIBRARY = Path(__file__).with_name('libcell_kernel.so')  # a name that is no module's
PACKS = ('cell_min', 'cell_max', 'current', 'pack_voltage', 'dc_energy', 'room', 'reach', 'told')  # what `step` returns
_COUNTS = ('rows', 'cols', 'table', 'grid', 'bleeding', 'heated')
#: As in the structure of cell_kernel.c. What stays, then what is made anew by each refresh, then what changes.
_LASTING = ('gain', 'offset', 'slope', 'base', 'energy', 'ae', 'eta', 'full')
_RENEWED = ('k', 'b0', 'half_c1', 'e_th', 'to_ambient', 'heat_k', 'heating')
_CHANGING = ('bleed', 'power', 'charge', 'v1', 'voltage', 'temperature', 'loss', 'line', 'rc', 'packs')


class _Cells(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in _COUNTS), ('dt', ctypes.c_double), ('sizes', ctypes.c_void_p),
                *((name, ctypes.c_void_p) for name in (*_LASTING, *_RENEWED, *_CHANGING))]


class CellKernel:
    """The step over the arrays of one bank. Raises OSError where `library` cannot be loaded."""

    def __init__(self, library: Path, sizes: Sequence[int], knots: int, grid: int, arrays: dict[str, Array]) -> None:
        """`sizes` = cells of each pack; `knots` of all tables together, `grid` = intervals of each; `arrays` by their
        names in cell_kernel.c.

        The arrays are read and written in place from now on. Raises ValueError for one that does not suit.
        """
        self._call = ctypes.CDLL(str(library)).cells_step
        self._call.restype = None
        self._shape = len(sizes), max(sizes)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._cells = _Cells(rows=len(sizes), cols=max(sizes), table=knots, grid=grid, sizes=self._sizes.ctypes.data)
        self._pointer: Any = ctypes.byref(self._cells)
        self._kept = dict(arrays)  # alive as long as their addresses are in use
        power, self._packs = np.zeros(len(sizes)), np.zeros((len(PACKS), len(sizes)))
        self._kept |= {'power': power, 'packs': self._packs, **{name: np.zeros(self._shape) for name in _RENEWED}}
        self._power: Any = power.data  # a single value several times as fast
        for name in (*_LASTING, *_RENEWED, *_CHANGING):
            array = self._kept[name]
            if array.dtype != np.float64 or not array.flags.c_contiguous:
                raise ValueError(f'{name} is not a contiguous array of doubles')
            setattr(self._cells, name, array.ctypes.data)

    def take(self, **arrays: Array) -> None:
        """Copy coefficients that have become others."""
        for name, array in arrays.items():
            np.copyto(self._kept[name], array)

    def renew(self, dt: float, bleeding: bool, heating: Array | None, room: Sequence[float], reach: Sequence[float],
              b0: Array) -> None:
        """After a refresh: time step in s, whether cells are bled, heaters in W, Ah that each pack can still take and
        give, and resistances."""
        cells = self._cells
        cells.dt, cells.bleeding, cells.heated = dt, bleeding, heating is not None
        self._packs[PACKS.index('room')], self._packs[PACKS.index('reach')] = room, reach
        self.take(b0=b0)
        if heating is not None:
            self.take(heating=heating)

    def step(self, powers: Sequence[float]) -> list[list[float]]:
        """One step with a power for each pack (W, + = charging); for each of `PACKS` the values of all packs."""
        into = self._power
        for row, power in enumerate(powers):
            into[row] = power
        self._call(self._pointer)
        packs: list[list[float]] = self._packs.tolist()
        return packs
