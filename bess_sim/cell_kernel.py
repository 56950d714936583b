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
_COUNTS = ('rows', 'cols', 'table', 'bleeding', 'heated', 'lossy')
#: As in the structure of cell_kernel.c. What stays, then what is made anew by each refresh, then what changes.
_LASTING = ('gain', 'offset', 'slope', 'base', 'ae', 'k_eta')
_RENEWED = ('k', 'b0', 'half_c1', 'e_th', 'to_ambient', 'heat_k', 'heating')
_CHANGING = ('bleed', 'flow', 'charge', 'v1', 'voltage', 'temperature', 'loss', 'line', 'rc', 'sums', 'totals')


class _Cells(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in _COUNTS), ('dt', ctypes.c_double), ('sizes', ctypes.c_void_p),
                *((name, ctypes.c_void_p) for name in (*_LASTING, *_RENEWED, *_CHANGING))]


class CellKernel:
    """Both halves of a step over the arrays of one bank. Raises OSError where `library` cannot be loaded."""

    def __init__(self, library: Path, sizes: Sequence[int], table: int, arrays: dict[str, Array]) -> None:
        """`sizes` = cells of each pack; `table` = knots of the tables; `arrays` by their names in cell_kernel.c.

        The arrays are read and written in place from now on. Raises ValueError for one that does not suit.
        """
        loaded = ctypes.CDLL(str(library))
        self._open, self._close = loaded.cells_open, loaded.cells_close
        self._open.restype = self._close.restype = None
        self._shape = len(sizes), max(sizes)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._cells = _Cells(rows=len(sizes), cols=max(sizes), table=table, sizes=self._sizes.ctypes.data)
        self._pointer: Any = ctypes.byref(self._cells)
        self._kept = dict(arrays)  # alive as long as their addresses are in use
        self.sums = self._kept['sums'] = np.zeros((2, len(sizes)))  # of A and B of each pack
        self.totals = self._kept['totals'] = np.zeros((3, len(sizes)))  # of each pack, as `close` returns them
        self._kept |= {name: np.zeros(self._shape) for name in _RENEWED}
        for name in (*_LASTING, *_RENEWED, *_CHANGING):
            array = self._kept[name]
            if array.dtype != np.float64 or not array.flags.c_contiguous:
                raise ValueError(f'{name} is not a contiguous array of doubles')
            setattr(self._cells, name, array.ctypes.data)

    def renew(self, dt: float, bleeding: bool, heating: Array | None, arrays: dict[str, Array]) -> None:
        """After a refresh: time step in s, whether cells are bled, heaters in W, and the coefficients that are new."""
        cells = self._cells
        cells.dt, cells.bleeding, cells.heated = dt, bleeding, heating is not None
        for name, array in arrays.items():
            np.copyto(self._kept[name], array)
        if heating is not None:
            np.copyto(self._kept['heating'], heating)

    def open(self) -> list[list[float]]:
        """Sums of A (V) and of B (ohm) over the cells of each pack."""
        self._open(self._pointer)
        sums: list[list[float]] = self.sums.tolist()
        return sums

    def close(self, lossy: bool) -> list[list[float]]:
        """All cells at the end of the step; lowest and highest voltage (V) of each pack, charge (Ah) of its cells."""
        self._cells.lossy = lossy
        self._close(self._pointer)
        totals: list[list[float]] = self.totals.tolist()
        return totals
