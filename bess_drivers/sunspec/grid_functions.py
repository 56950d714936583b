"""Grid functions inside a DER: enter service (703), curves (705, 706, 712), trips (707 to 710), droop (711).

Those of older devices (126 to 144) are in `legacy_functions.py`, those of vendors in `vendor_functions.py`; all are
read, shown and changed through here. They are settings of the device, which it obeys without us. Trip settings are
read and shown, never written: they belong to the grid operator. Offsets from the SunSpec models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.codec import encode
from bess_drivers.sunspec.curves import LAYOUTS, Curves, Points, factor
from bess_drivers.sunspec.device_map import DeviceMap
from bess_drivers.sunspec.inverter_params import CURVE_SETTINGS, SunSpecInverterParams
from bess_drivers.sunspec.legacy_functions import NAMES as LEGACY_NAMES
from bess_drivers.sunspec.legacy_functions import LegacyFunctions, Slope
from bess_drivers.sunspec.vendor_functions import NAMES as VENDOR_NAMES
from bess_drivers.sunspec.vendor_functions import VendorFunctions

DER_NAMES = {703: 'enter service', 705: 'volt-var', 706: 'volt-watt', 707: 'low voltage trip', 708: 'high voltage trip',
         709: 'low frequency trip', 710: 'high frequency trip', 711: 'frequency droop', 712: 'watt-var'}
NAMES = {**DER_NAMES, **LEGACY_NAMES, **VENDOR_NAMES}
VOLTAGE_TRIPS, FREQUENCY_TRIPS = (707, 708), (709, 710)
TRIP_HEAD = 9  # registers before the first set
ADOPT_S = 5.0  # longest time in which a device adopts a setting
ROUND_S = 60.0  # how often all are read


#: points of `EnterService` and `Droop`, in the order of their fields
SERVICE_POINTS = ('ESVLo', 'ESVHi', 'ESHzLo', 'ESHzHi', 'ESDlyTms', 'ESRmpTms')
DROOP_POINTS = ('DbOf', 'DbUf', 'KOf', 'KUf', 'RspTms')


class EnterService(NamedTuple):
    """703: when the device may connect. Voltages in % of nominal, frequencies in Hz, times in s."""

    v_low: float
    v_high: float
    f_low: float
    f_high: float
    delay: float
    ramp: float


class Droop(NamedTuple):
    """711: dead bands in Hz, slopes (per unit of frequency for one per unit of power), response time in s."""

    dead_over: float
    dead_under: float
    k_over: float
    k_under: float
    response: float


@dataclass(frozen=True)
class Trip:
    """One set of 707 to 710: points of value (% of nominal voltage, or Hz) and time (s)."""

    enabled: bool
    must_trip: Points
    may_trip: Points
    cease: Points  # momentary cessation


class GridFunctions:
    """Reads, shows and changes the grid functions of one DER. Raises only `DeviceError`s."""

    def __init__(self, device: DeviceMap, params: SunSpecInverterParams, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._map, self._params, self._clock, self._sleep = device, params, clock, sleep
        self.curves = Curves(device, clock, sleep)
        self.legacy = LegacyFunctions(device)
        self.vendor = VendorFunctions(device, params)
        self.shown: dict[str, str] = {}  # for people
        self.read_at: dict[int, float] = {}  # s, site time
        self._left: list[int] = []

    def present(self) -> list[int]:
        """Models that this device has."""
        return [m for m in NAMES if self._map.has(m)]

    def forget(self) -> None:
        """Another device may answer."""
        self.shown, self.read_at, self._left = {}, {}, []

    def read_one(self, now: float) -> float:
        """Read the next model; when it is to be called again (s, site time). What cannot be decoded is shown so."""
        if not self._left:
            self._left = self.present()
        if not self._left:
            return now + ROUND_S
        model = self._left.pop(0)
        try:
            text = self.describe(model)
        except (BadValue, Refused) as error:
            text = f'not readable: {error}'
        self.shown = {**self.shown, f'{model} {NAMES[model]}': text}
        self.read_at = {**self.read_at, model: now}
        return now if self._left else now + ROUND_S

    def describe(self, model: int) -> str:
        """Present settings of one model in words."""
        if model == 703:
            permitted, s = self.enter_service()
            return (f'{"permitted" if permitted else "not permitted"}, {s.v_low:g} to {s.v_high:g} %, {s.f_low:g} to '
                    f'{s.f_high:g} Hz, after {s.delay:g} s, ramp {s.ramp:g} s')
        if model == 711:
            enabled, d = self.droop()
            return (f'{_on(enabled)}: dead band {d.dead_over:g} / {d.dead_under:g} Hz, k {d.k_over:g} / {d.k_under:g}, '
                    f'{d.response:g} s')
        if model in LAYOUTS:
            enabled, points = self.curves.read(model)
            return f'{_on(enabled)}: {_pairs(points)}'
        if model in LEGACY_NAMES:
            return self.legacy.describe(model)
        if model in VENDOR_NAMES:
            return self.vendor.describe(model)
        t = self.trip(model)
        return (f'{_on(t.enabled)}: must trip {_pairs(t.must_trip)}; may trip {_pairs(t.may_trip)}; '
                f'cease {_pairs(t.cease)}')

    # -- reading -----------------------------------------------------------------------------------

    def enter_service(self) -> tuple[bool, EnterService]:
        """Whether the device may enter service, and its conditions."""
        m = self._map.read(703)
        return m.integer('ES') == 1, EnterService(*map(m.number, SERVICE_POINTS))

    def droop(self, control: int = 1) -> tuple[bool, Droop]:
        """Whether droop is enabled, and a control (1 = the one that acts)."""
        m = self._map.read(711)
        controls = m.elements()
        if not 1 <= control <= len(controls):
            raise BadValue(f'711 has {len(controls)} controls, not {control}')
        return m.integer('Ena') == 1, Droop(*map(controls[control - 1].number, DROOP_POINTS))

    def trip(self, model: int, number: int = 1) -> Trip:
        """A set of 707 to 710 (1 = the one that acts)."""
        if model not in (*VOLTAGE_TRIPS, *FREQUENCY_TRIPS):
            raise BadValue(f'{model} has no trip settings')
        head = self._map.read_raw(model, 0, TRIP_HEAD)
        enable, count, sets = head[2], head[5], head[6]
        if not (1 <= count <= 100 and 1 <= number <= sets <= 100):
            raise BadValue(f'{model} says {sets} sets of {count} points')
        width = 3 if model in VOLTAGE_TRIPS else 4  # registers of a point
        size = 4 + 3 * width * count
        block = self._map.read_raw(model, TRIP_HEAD + (number - 1) * size, size)
        value, seconds = factor(head[7]), factor(head[8])
        curves = []
        for kind in range(3):
            at = 1 + kind * (1 + width * count)
            active = block[at] if block[at] <= count else 0
            points = [block[at + 1 + width * k: at + 1 + width * (k + 1)] for k in range(active)]
            curves.append(tuple((_wide(p[:-2]) * value, _wide(p[-2:]) * seconds) for p in points))
        return Trip(enable == 1, *curves)

    # -- changing ----------------------------------------------------------------------------------

    def permit_service(self, on: bool) -> None:
        """703 ES: whether the device may connect to the grid."""
        self._map.write(703, {'ES': int(on)}, {})

    def write_enter_service(self, wanted: EnterService) -> None:
        """Conditions of 703. All are checked before the first is written."""
        m = self._map.read(703)
        if not (wanted.v_low < wanted.v_high and wanted.f_low < wanted.f_high):
            raise BadValue('enter service: low must be below high')
        self._map.write(703, dict(zip(SERVICE_POINTS, wanted, strict=True)), m.sf)

    def write_droop(self, wanted: Droop) -> None:
        """Make a droop act: into a control that may be written, adopted, then enabled. Raises as `Curves.write`."""
        m = self._map.read(711)
        assert m.definition is not None
        writable = next((n for n, c in enumerate(m.elements()) if c.integer('ReadOnly') == 0), None)
        if writable is None:
            raise BadValue('711 has no control that can be written')
        points = {p.name: p for p in m.definition.repeat}
        registers = [(points[name].offset, encode(points[name], value, m.sf))
                     for name, value in zip(DROOP_POINTS, wanted, strict=True)]
        start = m.definition.size + writable * m.definition.repeat_size
        for offset, words in registers:
            self._map.write_at(711, start + offset, words)
        if m.number('RvrtTms') > 0:
            self._map.write(711, {'RvrtTms': 0}, {})
        self.curves.adopt(711, writable + 1, enabled=m.integer('Ena') == 1, timeout_s=ADOPT_S)

    def read_curve(self, model: int) -> tuple[bool, Points]:
        """Whether a function with a curve is enabled, and the curve that acts."""
        return self.legacy.read(model) if model in LEGACY_NAMES else self.curves.read(model)

    def write_curve(self, model: int, points: Sequence[tuple[float, float]]) -> None:
        """Make a curve act: see `Curves.write` and `LegacyFunctions.write`."""
        if model in LEGACY_NAMES:
            self.legacy.write(model, points)
        else:
            self.curves.write(model, points, ADOPT_S)

    def enable(self, model: int, on: bool) -> None:
        """Switch 705, 706, 711, 712, 126, 127, 131, 132 or 134 on or off. Trips are not switched."""
        if model in LEGACY_NAMES:
            self.legacy.enable(model, on)
            return
        if model not in (*LAYOUTS, 711):
            raise BadValue(f'{model} is not switched from here')
        self._map.write(model, {'Ena': int(on)}, {})

    def apply(self) -> list[str]:
        """Write what the site file gives and the device does not have yet; names of what was written."""
        p, done = self._params, []
        for name, models in CURVE_SETTINGS.items():
            wanted = _points(getattr(p, name))
            if not wanted:
                continue
            model = self._map.first_of(*models) or models[0]  # without any of them the read says what is missing
            enabled, points = self.read_curve(model)
            if not (enabled and _same([v for q in points for v in q], [v for q in wanted for v in q])):
                self.write_curve(model, wanted)
                done.append(name)
        if p.freq_watt_slope:
            enabled, slope = self.legacy.slope()
            if not (enabled and _same(slope, p.freq_watt_slope)):
                self.legacy.write_slope(Slope(*p.freq_watt_slope))
                done.append('freq_watt_slope')
        if p.freq_droop:
            enabled, droop = self.droop()
            if not (enabled and _same(droop, p.freq_droop)):
                self.write_droop(Droop(*p.freq_droop))
                done.append('freq_droop')
        if p.enter_service and not _same(self.enter_service()[1], p.enter_service):
            self.write_enter_service(EnterService(*p.enter_service))
            done.append('enter_service')
        if p.permit_service != 'leave' and self.enter_service()[0] != (p.permit_service == 'on'):
            self.permit_service(p.permit_service == 'on')
            done.append('permit_service')
        return done

    def operate(self, operation: str, arguments: Sequence[str]) -> list[str]:
        """An operation by name (service `~/operate`); results as `name=value`. Raises `Refused` for bad words."""
        known: dict[str, Callable[..., Any]] = {
            'grid_settings': lambda: None, 'permit_service': lambda on: self.permit_service(_switch(on)),
            'enter_service': lambda *v: self.write_enter_service(EnterService(*map(float, v))),
            'freq_droop': lambda *v: self.write_droop(Droop(*map(float, v))),
            'write_curve': lambda model, *pairs: self.write_curve(
                int(model), [(float(x), float(y)) for x, y in (q.split(':') for q in pairs)]),
            'enable': lambda model, on: self.enable(int(model), _switch(on)),
            'freq_watt_slope': lambda *v: self.legacy.write_slope(Slope(*map(float, v))),
            'volt_var_offset': lambda *v: self.vendor.write_offset(*map(float, v)) if v else self.vendor.end_offset(),
            'vendor_parameter': lambda number, index, kind: self.vendor.parameter(int(number), int(index), kind)}
        if operation not in known:
            raise Refused(f'no operation {operation!r}; there is: {", ".join(known)}')
        try:
            answer = known[operation](*arguments)
        except (TypeError, ValueError) as error:
            raise Refused(f'{operation} does not take {" ".join(arguments) or "no arguments"}: {error}') from error
        if answer is not None:
            return [f'{operation}={answer:.10g}']
        return [f'{model} {NAMES[model]}={self.describe(model)}' for model in self.present()]


def _points(flat: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _same(have: Sequence[float], wanted: Sequence[float]) -> bool:
    """Equal but for the resolution of a register (0.1 %)."""
    return len(have) == len(wanted) and all(abs(a - b) <= max(1e-3 * abs(b), 1e-9) for a, b in
                                            zip(have, wanted, strict=True))


def _switch(text: str) -> bool:
    if text not in ('on', 'off'):
        raise ValueError(f'{text!r} is neither on nor off')
    return text == 'on'


def _on(enabled: bool) -> str:
    return 'on' if enabled else 'off'


def _pairs(points: Points) -> str:
    return ' '.join(f'{x:g}:{y:g}' for x, y in points) or 'none'


def _wide(registers: Sequence[int]) -> int:
    return registers[0] if len(registers) == 1 else registers[0] << 16 | registers[1]

