"""Curves of a DER: volt-var (705), volt-watt (706), watt-var (712).

Curve 1 is what acts and cannot be written. A change goes into another curve, is adopted as a whole (the device
checks it then), and only after that the function is enabled. Offsets from the SunSpec workbook.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

from bess_drivers.device import BadValue, NoAnswer, Refused
from bess_drivers.sunspec.device_map import DeviceMap

ENABLE, REQUEST, RESULT, N_POINTS, N_CURVES = 2, 3, 4, 5, 6  # offsets of all three
REVERSION = 7  # of all three, two registers: s until another curve comes back
COMPLETED = 1
DEPT_REF = 1  # offset in a curve
NOT_IMPLEMENTED = 0xFFFF
LAST_FACTOR = 14


class Layout(NamedTuple):
    """Registers before the first curve, of a curve before its points; scale factors; where ReadOnly is."""

    head: int
    block: int
    x_sf: int
    y_sf: int
    x_signed: bool
    read_only: int


LAYOUTS = {705: Layout(15, 10, 12, 13, False, 9), 706: Layout(15, 5, 12, 13, False, 4),
           712: Layout(14, 4, 12, 13, True, 3)}

Points = tuple[tuple[float, float], ...]


class Curves:
    """Reads and changes curves. Units as in SunSpec: x in % of nominal voltage (712: % of W), y in % of DeptRef."""

    def __init__(self, device: DeviceMap, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._map, self._clock, self._sleep = device, clock, sleep

    def read(self, model: int, curve: int = 1) -> tuple[bool, Points]:
        """Whether the function is enabled, and the points of a curve (1 = the one that acts). Raises `DeviceError`."""
        layout, head = self._head(model)
        if not 1 <= curve <= head[N_CURVES]:
            raise BadValue(f'{model} has {head[N_CURVES]} curves, not {curve}')
        block = self._map.read_raw(model, self._start(layout, head, curve), layout.block + 2 * head[N_POINTS])
        active = block[0] if block[0] <= head[N_POINTS] else 0
        x_sf, y_sf = (factor(head[n]) for n in (layout.x_sf, layout.y_sf))
        pairs = block[layout.block: layout.block + 2 * active]
        points = tuple(
            ((signed16(x) if layout.x_signed else x) * x_sf, signed16(y) * y_sf)
            for x, y in zip(pairs[::2], pairs[1::2], strict=True))
        return head[ENABLE] == 1, points

    def write(self, model: int, points: Sequence[tuple[float, float]], timeout_s: float = 10.0) -> None:
        """Make these points act and enable the function. Raises `BadValue` before anything is written.

        Raises `Refused` where the device does not adopt them, `NoAnswer` where it takes longer than `timeout_s`.
        """
        layout, head = self._head(model)
        if not 2 <= len(points) <= head[N_POINTS]:
            raise BadValue(f'{model} takes 2 to {head[N_POINTS]} points, not {len(points)}')
        if any(b[0] < a[0] for a, b in pairwise(points)):
            raise BadValue(f'{model}: x must not fall from point to point')
        registers = []
        for x, y in points:
            registers += [_raw(x, factor(head[layout.x_sf]), layout.x_signed),
                          _raw(y, factor(head[layout.y_sf]), True)]
        curve = next((k for k in range(2, head[N_CURVES] + 1) if self._map.read_raw(
            model, self._start(layout, head, k) + layout.read_only, 1) == [0]), 0)
        if not curve:
            raise BadValue(f'{model} has no curve that can be written')
        start = self._start(layout, head, curve)
        # What y refers to stays that of the curve that acts: the same numbers must not mean another power.
        reference = self._map.read_raw(model, layout.head + DEPT_REF, 1)
        self._map.write_at(model, start, [len(points), *(r for r in reference if r != NOT_IMPLEMENTED)])
        self._map.write_at(model, start + layout.block, registers)
        if head[REVERSION:REVERSION + 2] not in ([0, 0], [NOT_IMPLEMENTED] * 2):
            self._map.write_at(model, REVERSION, [0, 0])
        self.adopt(model, curve, enabled=head[ENABLE] == 1, timeout_s=timeout_s)

    def adopt(self, model: int, curve: int, *, enabled: bool, timeout_s: float) -> None:
        """Let the device take over a curve or control that was written, and enable the function.

        Raises `Refused` where it does not adopt it, `NoAnswer` where it takes longer than `timeout_s`.
        """
        self._map.write_at(model, REQUEST, [curve])
        deadline = self._clock() + timeout_s
        while (result := self._map.read_raw(model, RESULT, 1)[0]) == 0:
            if self._clock() >= deadline:
                raise NoAnswer(f'{model}: the curve was not adopted within {timeout_s:g} s')
            self._sleep(0.05)
        if result != COMPLETED:
            raise Refused(f'{model}: the device does not adopt the curve (result {result})')
        if not enabled:
            self._map.write_at(model, ENABLE, [1])

    def _head(self, model: int) -> tuple[Layout, list[int]]:
        if model not in LAYOUTS:
            raise BadValue(f'{model} is no model with curves; known: {", ".join(map(str, LAYOUTS))}')
        layout = LAYOUTS[model]
        head = self._map.read_raw(model, 0, LAST_FACTOR)
        if not (1 <= head[N_POINTS] <= 100 and 1 <= head[N_CURVES] <= 100):
            raise BadValue(f'{model} says {head[N_CURVES]} curves of {head[N_POINTS]} points')
        return layout, head

    @staticmethod
    def _start(layout: Layout, head: Sequence[int], curve: int) -> int:
        return layout.head + (curve - 1) * (layout.block + 2 * head[N_POINTS])


def signed16(register: int) -> int:
    """A register as a number with a sign."""
    return register - 0x10000 if register & 0x8000 else register


def factor(register: int) -> float:
    """Factor of a scale register. Raises `BadValue` where it is not implemented."""
    exponent = signed16(register)
    if not -10 <= exponent <= 10:
        raise BadValue('the scale factor of the curve is not implemented')
    return float(f'1e{exponent}')


def _raw(value: float, factor: float, has_sign: bool) -> int:
    low, high = (-0x7FFF, 0x7FFF) if has_sign else (0, 0xFFFE)
    if not isfinite(value) or not low <= round(value / factor) <= high:
        raise BadValue(f'{value:g} does not fit into a curve of this device')
    return round(value / factor) & 0xFFFF
