"""Counts what happened while a site ran: ticks, jitter, violated limits, energy."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from bess.msg import BatteryStatus, DecisionTrace, MeterStatus

VIOLATION_S = 1.0  # beyond a limit for longer than tick plus device lag
TOLERANCE_W, TOLERANCE = 50.0, 0.02
JITTERS = 36_000  # ticks whose lateness is kept: the last hour at 100 ms
LONGEST_GAP_S = 5.0  # between two samples that are integrated over


@dataclass
class Summary:
    """Feed it every message with `take`; `result` is the last line of ``bess up --json``."""

    grid_meter: str = ''  # full name of the meter at the grid connection
    ticks: int = 0
    jitters: deque[float] = field(default_factory=lambda: deque(maxlen=JITTERS))
    violations: int = 0
    faults_seen: set[str] = field(default_factory=set)
    _last: dict[str, tuple[float, float]] = field(default_factory=dict)  # meter -> (stamp s, W)
    _sums: dict[str, list[float]] = field(default_factory=dict)  # meter -> [Wh imported, Wh exported]
    _beyond: dict[str, tuple[float, bool]] = field(default_factory=dict)  # battery -> (since stamp, counted)

    def take(self, name: str, message: Any) -> None:
        """One message of a topic below `name`."""
        if isinstance(message, DecisionTrace):
            self.ticks += 1
            self.jitters.append(message.jitter)
        elif isinstance(message, MeterStatus):
            self._energy(name, message)
        elif isinstance(message, BatteryStatus):
            self._limits(name, message)
        elif hasattr(message, 'faults'):
            self.faults_seen.update(f'{message.source}/{f.id}' for f in message.faults)

    def _limits(self, name: str, m: BatteryStatus) -> None:
        limit = m.max_charge_power if m.power > 0 else m.max_discharge_power
        at = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9
        beyond = (m.quality == BatteryStatus.QUALITY_OK and not isnan(m.power) and not isnan(limit)
                  and abs(m.power) > limit * (1 + TOLERANCE) + TOLERANCE_W)
        if not beyond:
            self._beyond.pop(name, None)
            return
        since, counted = self._beyond.setdefault(name, (at, False))
        if not counted and at - since > VIOLATION_S:
            self.violations += 1
            self._beyond[name] = (since, True)

    @property
    def jitter_p99_ms(self) -> float:
        """99th percentile of the control tick's lateness in ms; NaN without ticks."""
        if not self.jitters:
            return nan
        ordered = sorted(self.jitters)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3

    def _energy(self, name: str, m: MeterStatus) -> None:
        """Integrate the measured power: counters of many meters move in steps of 100 Wh only."""
        at = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9
        last = self._last.get(name)
        if isnan(m.active_power) or m.quality != MeterStatus.QUALITY_OK:
            self._last.pop(name, None)
            return
        self._last[name] = (at, m.active_power)
        if last is None or not 0.0 < at - last[0] <= LONGEST_GAP_S:
            return
        energy = 0.5 * (m.active_power + last[1]) * (at - last[0]) / 3600.0
        total = self._sums.setdefault(name, [0.0, 0.0])
        total[0 if energy > 0 else 1] += abs(energy)

    def energy(self) -> tuple[float, float]:
        """(import, export) in Wh at the grid meter since the start; NaN while unknown."""
        imported, exported = self._sums.get(self.grid_meter, [nan, nan])
        return imported, exported

    def result(self, nodes_active: int) -> dict[str, Any]:
        """The summary as plain values; unknown = None."""
        imported, exported = self.energy()
        values = {'tick_jitter_p99_ms': self.jitter_p99_ms, 'energy_import_wh': imported,
                  'energy_export_wh': exported}
        return {
            'nodes_active': nodes_active,
            'control_ticks': self.ticks,
            'tick_jitter_p99_ms': None if isnan(values['tick_jitter_p99_ms']) else round(
                values['tick_jitter_p99_ms'], 3),
            'limit_violations': self.violations,
            'faults': sorted(self.faults_seen),
            'energy_import_wh': None if isnan(imported) else round(imported, 3),
            'energy_export_wh': None if isnan(exported) else round(exported, 3),
        }
