"""State of charge and of health, estimated from current, voltage and time. Pure.

Method: coulomb counting, put right at rest by the open-circuit voltage and at the ends by full and empty detection.

- Counting: dq = I dt / 3600, charging times the coulomb efficiency; the mean of two samples over the time between
  them (trapezoid), no more than `max_gap` s at once: what flowed in a longer gap is not known.
- Rest: |I| below `rest_current` for `rest_time`; then the cell voltage, brought to 25 degC by the temperature
  coefficient, is the open-circuit voltage. Where its curve is flat (LFP) a millivolt is many percent, so the correction
  is weighted by slope: w = 1 / (1 + (voltage_error / slope / soc_error)^2), with slope dV/dSoC.
- Full: highest cell at or above `full_voltage` and charging current below `tail_current` for `full_time`: 1.
  Empty: lowest cell at or below `empty_voltage` while discharging for `empty_time`: 0 (foxBMS and DSB practice).
- Delta compensation: every correction tells how far counting had drifted; what is left over between two corrections of
  the same kind, divided by the time between, is the offset of the current sensor, learned with `offset_gain`.
- Degradation check: a SoC that differs from a reference (BMS, or OCV at rest) by more than `deviation` is `suspect`.
- SoH: from capacity tests (full to empty or back without a gap: charge moved over rated charge), and between tests from
  throughput: loss = cycle_loss * equivalent full cycles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, isnan, nan
from typing import Any

from bess_core.params import param

#: OCV of an LFP cell at 25 degC, from the table that the plant uses (Sony US26650, SimSES, BSD-3-Clause).
OCV_LFP = ((0.0, 2.2862), (0.01, 2.7833), (0.03, 2.9673), (0.05, 3.0647), (0.1, 3.1967), (0.15, 3.2120), (0.2, 3.2343),
           (0.3, 3.2703), (0.4, 3.2921), (0.5, 3.2995), (0.6, 3.3035), (0.7, 3.3108), (0.8, 3.3345), (0.9, 3.3425),
           (0.97, 3.3463), (0.985, 3.3522), (0.99, 3.3618), (0.995, 3.3963), (1.0, 3.5305))


@dataclass(frozen=True, kw_only=True)
class SocParams:
    """Settings of an estimator."""

    capacity: float = param(doc='rated charge', unit='Ah', low=0.01, high=1e6)
    coulomb_efficiency: float = param(0.995, '', 'share of the charge put in that can be taken out', low=0.5, high=1.0)
    max_gap: float = param(10.0, 's', 'longest time between two samples that is counted', low=0.1, high=3600.0)
    rest_current: float = param(0.01, '1/h', 'current below this share of the capacity per hour is rest', low=0.0)
    rest_time: float = param(1800.0, 's', 'rest after which voltage is open-circuit voltage', low=1.0, high=1e6)
    voltage_error: float = param(0.003, 'V', 'error of a cell voltage', low=1e-6, high=1.0)
    soc_error: float = param(0.05, '', 'error of counting that is reckoned with, 0..1', low=1e-4, high=1.0)
    temperature_coefficient: float = param(0.0001, 'V/K', 'of the open-circuit voltage, per cell', low=-0.01, high=0.01)
    full_voltage: float = param(3.45, 'V', 'highest cell of a full battery', low=0.1, high=10.0)
    tail_current: float = param(0.05, '1/h', 'charging current of a full battery, share of the capacity per hour',
                                low=0.0, high=10.0)
    full_time: float = param(60.0, 's', 'so long', low=0.0, high=86400.0)
    empty_voltage: float = param(2.9, 'V', 'lowest cell of an empty battery', low=0.1, high=10.0)
    empty_time: float = param(60.0, 's', 'so long, while discharging', low=0.0, high=86400.0)
    offset_gain: float = param(0.2, '', 'share of a found drift that corrects the current sensor', low=0.0, high=1.0)
    max_offset: float = param(0.01, '1/h', 'largest offset of the sensor, share of the capacity per hour', low=0.0)
    deviation: float = param(0.1, '', 'difference from a reference from which the estimate is suspect, 0..1',
                             low=0.001, high=1.0)
    cycle_loss: float = param(3e-5, '', 'capacity lost per equivalent full cycle, share', low=0.0, high=0.1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a pack. NaN = not measured."""

    time: float  # s, when it was measured
    current: float  # A, + = charging
    cell_min: float = nan  # V
    cell_max: float = nan  # V
    temperature: float = nan  # degC
    reference: float = nan  # 0..1, state of charge that the BMS reports


class SocEstimator:
    """`step` for each sample, in order of time. A sample that is not newer, or has no current, is not counted."""

    def __init__(self, params: SocParams, soc: float = nan, soh: float = 1.0,
                 ocv: Sequence[tuple[float, float]] = OCV_LFP) -> None:
        if not 0.0 < soh <= 2.0:
            raise ValueError(f'soh is {soh}')
        self.params = params
        self._ocv = _table(ocv)
        self.soc = min(max(soc, 0.0), 1.0) if isfinite(soc) else nan
        self.soh = soh
        self.offset = 0.0  # A, that the sensor shows too much
        self.suspect = ''  # why the estimate is not to be believed
        self.drift = nan  # 0..1, what the last correction changed
        self.corrected_by = ''  # full, empty, ocv or reference
        self.throughput = 0.0  # Ah, both ways
        self._last: Sample | None = None
        self._rest_since = self._full_since = self._empty_since = inf
        self._rested = False
        self._anchor: tuple[str, float] | None = None  # last correction at an end: kind and time
        self._at_end = ''  # kind of the end where it is at present
        self._since_end = 0.0  # Ah, counted since then
        self._gapless = False  # and without a gap
        self._loss_from = self.soh
        self._loss_throughput = 0.0

    @property
    def capacity(self) -> float:
        """Ah, present."""
        return self.params.capacity * self.soh

    @property
    def cycles(self) -> float:
        """Equivalent full cycles."""
        return self.throughput / (2.0 * self.params.capacity)

    def saved(self) -> dict[str, float]:
        """What survives a restart; see `resume`."""
        return {'capacity': self.params.capacity, 'soc': self.soc, 'soh': self.soh, 'offset': self.offset,
                'throughput': self.throughput, 'loss_from': self._loss_from, 'loss_throughput': self._loss_throughput}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave. What flowed meanwhile is unknown: a capacity test does not go on.

        Raises ValueError when it is damaged or belongs to a battery of another capacity; then nothing is taken over.
        """
        names = ('capacity', 'soc', 'soh', 'offset', 'throughput', 'loss_from', 'loss_throughput')
        try:
            capacity, soc, soh, offset, throughput, start, moved = (float(saved[n]) for n in names)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{type(error).__name__}: {error}') from error
        limit = self.params.max_offset * self.params.capacity
        if not abs(capacity - self.params.capacity) <= 1e-6 * capacity:
            raise ValueError(f'it is of a battery of {capacity:g} Ah, not {self.params.capacity:g} Ah')
        if not (0.0 <= soc <= 1.0 and 0.0 < soh <= 2.0 and 0.0 < start <= 2.0 and 0.0 <= moved <= throughput < inf
                and isfinite(offset)):
            raise ValueError(f'state of charge {soc:g}, health {soh:g}, throughput {throughput:g} Ah cannot be')
        self.soc, self.soh, self.offset = soc, soh, min(max(offset, -limit), limit)
        self.throughput, self._loss_from, self._loss_throughput = throughput, start, moved
        self.corrected_by = 'restart'

    def step(self, s: Sample) -> float:
        """State of charge 0..1 after this sample; NaN while unknown."""
        if not isfinite(s.time) or (self._last is not None and s.time <= self._last.time):
            return self.soc
        if isnan(self.soc) and 0.0 <= s.reference <= 1.0:
            self.soc, self.corrected_by = s.reference, 'reference'
        self._count(s)
        self._rest(s)
        self._ends(s)
        if 0.0 <= s.reference <= 1.0 and abs(s.reference - self.soc) > self.params.deviation:
            self.suspect = f'estimate {self.soc:.2f}, BMS says {s.reference:.2f}'
        elif self.suspect and self.suspect.startswith('estimate'):
            self.suspect = ''
        if isfinite(s.current):
            self._last = s
        return self.soc

    def _count(self, s: Sample) -> None:
        last, p = self._last, self.params
        if last is None or not isfinite(s.current):
            return
        dt = s.time - last.time
        if dt > p.max_gap:
            self._gapless = False
            dt = p.max_gap
        current = 0.5 * (s.current + last.current) - self.offset
        ah = current * dt / 3600.0 * (p.coulomb_efficiency if current > 0.0 else 1.0)
        self.throughput += abs(ah)
        self._since_end += ah
        if isfinite(self.soc):
            self.soc = min(max(self.soc + ah / self.capacity, 0.0), 1.0)
        self._age()

    def _age(self) -> None:
        moved = (self.throughput - self._loss_throughput) / (2.0 * self.params.capacity)
        self.soh = max(0.01, self._loss_from - self.params.cycle_loss * moved)

    def _rest(self, s: Sample) -> None:
        p = self.params
        if not abs(s.current) <= p.rest_current * p.capacity:
            self._rest_since, self._rested = inf, False
            return
        self._rest_since = min(self._rest_since, s.time)
        if self._rested or s.time - self._rest_since < p.rest_time or isnan(s.cell_min) or isnan(s.cell_max):
            return
        self._rested = True  # once per rest: the same voltage tells nothing new
        volts = at_25(0.5 * (s.cell_min + s.cell_max), s.temperature, p.temperature_coefficient)
        found, slope = self._inverse(volts)
        if isnan(self.soc):
            self._correct(found, 'ocv', s.time)
            return
        weight = 1.0 / (1.0 + (p.voltage_error / max(slope, 1e-9) / p.soc_error) ** 2)
        if abs(found - self.soc) > p.deviation and p.voltage_error / max(slope, 1e-9) < p.deviation / 2:
            self.suspect = f'counted {self.soc:.2f}, open-circuit voltage says {found:.2f}'
        elif self.suspect.startswith('counted'):
            self.suspect = ''
        self._correct(self.soc + weight * (found - self.soc), 'ocv', s.time)

    def _ends(self, s: Sample) -> None:
        p = self.params
        full = s.cell_max >= p.full_voltage and 0.0 <= s.current <= p.tail_current * p.capacity
        empty = s.cell_min <= p.empty_voltage and s.current < 0.0
        self._full_since = min(self._full_since, s.time) if full else inf
        self._empty_since = min(self._empty_since, s.time) if empty else inf
        if s.time - self._full_since >= p.full_time:
            self._end('full', s.time)
        elif s.time - self._empty_since >= p.empty_time:
            self._end('empty', s.time)
        else:
            self._at_end = ''

    def _end(self, kind: str, now: float) -> None:
        """At an end of the range. As long as it stays there, counting begins anew with each sample."""
        if self._at_end == kind:
            self._anchor, self._since_end = (kind, now), 0.0
            self.soc = 1.0 if kind == 'full' else 0.0
            return
        self._at_end = kind
        p, anchor = self.params, self._anchor
        if anchor is not None and self._gapless:
            hours = (now - anchor[1]) / 3600.0
            if anchor[0] != kind:
                # One whole charge or discharge: a capacity test.
                measured = abs(self._since_end) / p.capacity
                if 0.3 <= measured <= 1.5:
                    self.soh = self._loss_from = measured
                    self._loss_throughput = self.throughput
            elif hours > 0.1:
                # From an end back to the same one: what counting is off is the offset of the sensor.
                limit = p.max_offset * p.capacity
                self.offset += p.offset_gain * self._since_end / hours
                self.offset = min(max(self.offset, -limit), limit)
        self._anchor, self._since_end, self._gapless = (kind, now), 0.0, True
        self._correct(1.0 if kind == 'full' else 0.0, kind, now)

    def _correct(self, soc: float, by: str, now: float) -> None:
        soc = min(max(soc, 0.0), 1.0)
        self.drift = soc - self.soc
        self.soc, self.corrected_by = soc, by

    def _inverse(self, volts: float) -> tuple[float, float]:
        """State of charge for an open-circuit voltage, and slope dV/dSoC there."""
        socs, ocvs = self._ocv
        i = min(max(bisect_right(ocvs, volts) - 1, 0), len(ocvs) - 2)
        slope = (ocvs[i + 1] - ocvs[i]) / (socs[i + 1] - socs[i])
        return min(max(socs[i] + (volts - ocvs[i]) / slope, 0.0), 1.0), slope


def at_25(volts: float, temperature: float, coefficient: float) -> float:
    """A cell voltage (V) brought to 25 degC; unchanged while the temperature is unknown. `coefficient` V/K."""
    return volts if isnan(temperature) else volts - coefficient * (temperature - 25.0)


def _table(ocv: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    socs, volts = [s for s, _ in ocv], [v for _, v in ocv]
    for values in (socs, volts):
        if len(values) < 2 or any(b <= a for a, b in pairwise(values)):
            raise ValueError('an open-circuit table needs at least two points that rise in both columns')
    return socs, volts


@dataclass(frozen=True, kw_only=True)
class BalanceParams:
    """When cells may be balanced."""

    start_difference: float = param(0.010, 'V', 'cells further apart than this are balanced', low=0.0005, high=1.0)
    stop_difference: float = param(0.005, 'V', 'until they are closer than this', low=0.0001, high=1.0)
    min_voltage: float = param(3.35, 'V', 'only above: on a flat curve voltage says nothing of charge', low=0.0,
                               high=10.0)
    max_current: float = param(0.05, '1/h', 'discharging only below this share of the capacity per hour', low=0.0)
    min_temperature: float = param(0.0, 'degC', 'only above', low=-60.0, high=120.0)
    max_temperature: float = param(45.0, 'degC', 'only below: bleeding heats', low=-60.0, high=120.0)
    max_time: float = param(14400.0, 's', 'then a pause of `pause`', low=1.0, high=1e6)
    pause: float = param(3600.0, 's', 'after max_time', low=0.0, high=1e6)

    def __post_init__(self) -> None:
        if not self.stop_difference < self.start_difference:
            raise ValueError('stop_difference is not below start_difference')


class Balancer:
    """Which cells are to be bled now, and why none is."""

    def __init__(self, params: BalanceParams) -> None:
        self.params = params
        self.on = False
        self.reason = 'not looked yet'
        self._since = -inf
        self._pause_until = -inf

    def step(self, cells: Sequence[float], current: float, capacity: float, temperature: float,
             now: float) -> tuple[bool, ...]:
        """One flag per cell. Cells in V, current in A (+ = charging), capacity in Ah, hottest sensor in degC."""
        p = self.params
        none = (False,) * len(cells)
        why = self._forbidden(cells, current, capacity, temperature, now)
        if why:
            self.on, self.reason = False, why
            return none
        low = min(cells)
        difference = max(cells) - low
        if not self.on and difference > p.start_difference:
            self.on, self._since = True, now
        elif self.on and difference <= p.stop_difference:
            self.on = False
        if self.on and now - self._since >= p.max_time:
            self.on, self._pause_until = False, now + p.pause
            self.reason = f'pause of {p.pause:g} s'
            return none
        if not self.on:
            self.reason = f'cells are within {1000 * difference:.0f} mV'
            return none
        self.reason = ''
        return tuple(v > low + p.stop_difference and v >= p.min_voltage for v in cells)

    def _forbidden(self, cells: Sequence[float], current: float, capacity: float, temperature: float,
                   now: float) -> str:
        p = self.params
        if not cells or any(not isfinite(v) for v in cells):
            return 'not every cell is measured'
        if not p.min_temperature <= temperature <= p.max_temperature:
            return f'temperature is {temperature:.1f} degC'
        if not current > -p.max_current * capacity:
            return f'current is {current:.1f} A'
        if max(cells) < p.min_voltage:
            return f'highest cell is at {max(cells):.3f} V'
        if now < self._pause_until:
            return 'pause'
        return ''
