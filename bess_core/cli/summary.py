"""Counts what happened while a site ran: ticks, jitter, violated limits, energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from bess.msg import BatteryStatus, DecisionTrace, MeterStatus

VIOLATION_S = 1.0  # beyond a limit for longer than tick plus device lag
TOLERANCE_W, TOLERANCE = 50.0, 0.02


@dataclass
class Summary:
    """Feed it every message with `take`; `result` is the last line of ``bess up --json``."""

    manager_meter: str = ''  # full name of the meter whose energy counts; '' = the first one seen
    ticks: int = 0
    jitters: list[float] = field(default_factory=list)
    violations: int = 0
    faults_seen: set[str] = field(default_factory=set)
    _counter_start: dict[str, tuple[float, float]] = field(default_factory=dict)
    _counter_last: dict[str, tuple[float, float]] = field(default_factory=dict)
    _beyond: dict[str, tuple[float, bool]] = field(default_factory=dict)  # battery -> (since stamp, counted)

    def take(self, name: str, message: Any) -> None:
        """One message of a topic below `name`."""
        if isinstance(message, DecisionTrace):
            self.ticks += 1
            self.jitters.append(message.jitter)
        elif isinstance(message, MeterStatus):
            if not self.manager_meter:
                self.manager_meter = name
            counters = (message.energy_import, message.energy_export)
            if not any(isnan(c) for c in counters):
                self._counter_start.setdefault(name, counters)
                self._counter_last[name] = counters
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

    def energy(self) -> tuple[float, float]:
        """(import, export) in Wh at the grid meter since the start; NaN while unknown."""
        start = self._counter_start.get(self.manager_meter)
        last = self._counter_last.get(self.manager_meter)
        if start is None or last is None:
            return nan, nan
        return last[0] - start[0], last[1] - start[1]

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
