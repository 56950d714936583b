"""Grid functions of older SunSpec inverters: 126 to 144, what 705 to 712 are for newer ones.

Curves 126, 131, 132 and 134 and the slope of 127 are read and written. Reactive current (128) and the ride-through
and trip curves (129, 130, 135 to 144) belong to the grid operator, and the schedule inside the device (133) is not
ours: they are read and shown. Places, types and scales are those of the definitions of pysunspec2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isnan
from typing import NamedTuple

from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.codec import ModelValues, encode
from bess_drivers.sunspec.curves import Points
from bess_drivers.sunspec.device_map import DeviceMap

NAMES = {126: 'volt-var', 127: 'frequency-watt slope', 128: 'reactive current', 129: 'low voltage must trip',
         130: 'high voltage must trip', 131: 'watt-power factor', 132: 'volt-watt', 133: 'schedule in the device',
         134: 'frequency-watt', 135: 'low frequency must trip', 136: 'high frequency must trip',
         137: 'low voltage must stay', 138: 'high voltage must stay', 139: 'low voltage may trip',
         140: 'high voltage may trip', 141: 'low frequency must stay', 142: 'high frequency must stay',
         143: 'low frequency may trip', 144: 'high frequency may trip'}
#: model -> names of x and y of its points
WRITTEN = {126: ('V', 'VAr'), 131: ('W', 'PF'), 132: ('V', 'W'), 134: ('Hz', 'W')}
TRIPS = {m: ('V' if m in (129, 130, *range(137, 141)) else 'Hz', 'Tms')
         for m in (129, 130, *range(135, 145))}
CURVES = {**WRITTEN, **TRIPS}
ON = 1  # bit 0 of ModEna
SLOPE_POINTS = ('WGra', 'HzStr', 'HzStop')


class Slope(NamedTuple):
    """127: % of the present power per Hz, from and back to how many Hz above nominal."""

    gradient: float
    start: float
    stop: float


class LegacyFunctions:
    """Reads, shows and changes 126 to 144 of one device. Raises only `DeviceError`s."""

    def __init__(self, device: DeviceMap) -> None:
        self._map = device

    def describe(self, model: int) -> str:
        """Present settings of one model in words."""
        if model in CURVES:
            enabled, points = self.read(model)
            return f'{_on(enabled)}: {" ".join(f"{x:g}:{y:g}" for x, y in points) or "none"}'
        m = self._map.read(model)
        enabled = _enabled(m)
        if model == 127:
            slope = Slope(*map(m.number, SLOPE_POINTS))
            back = 'with hysteresis' if (m.integer('HysEna') or 0) & ON else 'without hysteresis'
            return (f'{_on(enabled)}: {slope.gradient:g} %/Hz above {slope.start:g} Hz, until {slope.stop:g} Hz, '
                    f'{back}')
        if model == 128:
            return (f'{_on(enabled)}: sag {m.number("ArGraSag"):g} %/%, swell {m.number("ArGraSwell"):g} %/%, dead '
                    f'band {m.number("DbVMin"):g} to {m.number("DbVMax"):g} %')
        active = m.integer('ActSchd') or 0
        which = ' '.join(str(bit + 1) for bit in range(32) if active >> bit & 1)
        return f'{_on(enabled)}: {len(m.groups)} schedules, active {which or "none"}'

    def read(self, model: int, curve: int = 0) -> tuple[bool, Points]:
        """Whether the function is enabled, and the points of a curve (from 1; 0 = the one that acts)."""
        if model not in CURVES:
            raise BadValue(f'{model} has no curve')
        m = self._map.read(model)
        acts = as_count(m, 'ActCrv', len(m.groups))
        if not curve and not acts:
            return _enabled(m), ()
        return _enabled(m), self._points(m, curve or acts)

    def _points(self, m: ModelValues, curve: int) -> Points:
        curves = m.elements()
        if not 1 <= curve <= len(curves):
            raise BadValue(f'{m.model_id} has {len(curves)} curves, not {curve}')
        x, y = CURVES[m.model_id]
        active = as_count(curves[curve - 1], 'ActPt', self._room(m))
        points = tuple((curves[curve - 1].number(f'{x}{k}'), curves[curve - 1].number(f'{y}{k}'))
                       for k in range(1, active + 1))
        if any(map(isnan, (v for p in points for v in p))):
            raise BadValue(f'{m.model_id}: a point of curve {curve} or its scale factor is not implemented')
        return points

    @staticmethod
    def _room(m: ModelValues) -> int:
        """Points of a curve: as many as the device says, at most the 20 of the model."""
        return as_count(m, 'NPt', 20)

    def slope(self) -> tuple[bool, Slope]:
        """127: whether it is enabled, and its slope."""
        m = self._map.read(127)
        return _enabled(m), Slope(*map(m.number, SLOPE_POINTS))

    # -- changing ----------------------------------------------------------------------------------

    def write(self, model: int, points: Sequence[tuple[float, float]]) -> None:
        """Make these points act and enable the function. Raises `BadValue` before anything is written.

        They go into a curve that does not act, which is then chosen; with one curve only, the function is off while
        it changes. The device does not say whether it takes a curve: it is read back, and `Refused` raised where it
        differs.
        """
        if model not in WRITTEN:
            raise BadValue(f'{model} is not written from here')
        m = self._map.read(model)
        curves, acts = m.elements(), as_count(m, 'ActCrv', len(m.groups))
        if not 2 <= len(points) <= self._room(m):
            raise BadValue(f'{model} takes 2 to {self._room(m)} points, not {len(points)}')
        if any(b[0] < a[0] for a, b in pairwise(points)):
            raise BadValue(f'{model}: x must not fall from point to point')
        writable = [k for k, c in enumerate(curves, 1) if c.integer('ReadOnly') == 0]
        curve = next((k for k in writable if k != acts), acts if acts in writable else 0)
        if not curve:
            raise BadValue(f'{model} has no curve that can be written')
        registers = self._encoded(m, points)
        reference = curves[acts - 1].integer('DeptRef') if acts else None
        if curve == acts and _enabled(m):
            self._map.write(model, {'ModEna': 0}, {})
        assert m.definition is not None
        start = m.definition.size + (curve - 1) * m.definition.repeat_size
        self._map.write_at(model, start, [len(points), *([reference] if reference is not None else [])])
        self._map.write_at(model, start + registers[0], registers[1])
        if m.number('RvrtTms') > 0:  # else the curve before would come back after that time
            self._map.write(model, {'RvrtTms': 0}, {})
        if curve != acts:
            self._map.write(model, {'ActCrv': curve}, {})
        self._verify(model, points)
        if curve == acts or not _enabled(m):
            self._map.write(model, {'ModEna': ON}, {})

    @staticmethod
    def _encoded(m: ModelValues, points: Sequence[tuple[float, float]]) -> tuple[int, list[int]]:
        """Offset of the first point in a curve and the registers of all: x and y in turn."""
        assert m.definition is not None
        by_name = {p.name: p for p in m.definition.repeat}
        x, y = WRITTEN[m.model_id]
        registers: list[int] = []
        for k, pair in enumerate(points, 1):
            for name, value in zip((f'{x}{k}', f'{y}{k}'), pair, strict=True):
                registers += encode(by_name[name], value, m.sf)
        return by_name[f'{x}1'].offset, registers

    def _verify(self, model: int, points: Sequence[tuple[float, float]]) -> None:
        m = self._map.read(model)
        _, have = self.read(model)
        if self._encoded(m, have)[1] != self._encoded(m, points)[1]:
            raise Refused(f'{model}: the device does not take the curve, it shows {have}; the function is not enabled')

    def write_slope(self, wanted: Slope) -> None:
        """Make a slope of 127 act, with hysteresis where it ends below where it begins."""
        if not (wanted.gradient >= 0 and wanted.stop <= wanted.start):
            raise BadValue('127: the slope must not be negative, and end at or below the frequency where it begins')
        m = self._map.read(127)
        if not m.has('HysEna') and wanted.stop != wanted.start:
            raise BadValue('127: the device has no hysteresis, so the slope must end where it begins')
        self._map.write(127, dict(zip(SLOPE_POINTS, wanted, strict=True)), m.sf)
        switches = {'HysEna': int(wanted.stop < wanted.start)} if m.has('HysEna') else {}
        self._map.write(127, {**switches, 'ModEna': ON}, {})

    def enable(self, model: int, on: bool) -> None:
        """Switch 126, 127, 131, 132 or 134 on or off. What belongs to the grid operator is not switched."""
        if model not in (*WRITTEN, 127):
            raise BadValue(f'{model} is not switched from here')
        self._map.write(model, {'ModEna': ON if on else 0}, {})


def as_count(m: ModelValues, name: str, most: int) -> int:
    """A number of points or curves. Raises `BadValue` where it cannot be one."""
    value = m.number(name)
    if isnan(value) or value > most:
        raise BadValue(f'{m.model_id}: {name} is {value:g}')
    return int(value)


def _enabled(m: ModelValues) -> bool:
    return bool((m.integer('ModEna') or 0) & ON)


def _on(enabled: bool) -> str:
    return 'on' if enabled else 'off'
