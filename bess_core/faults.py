"""Faults of one node: what is wrong now, what was, and what stays until somebody clears it. Pure.

A fault is *active* while its cause is there. A CRITICAL fault is also *latched*: it stays in the list
after its cause has gone, survives a restart (`to_dict`, `from_dict`) and needs an explicit `clear`,
which is refused while the cause is still there. Times are seconds on the caller's clock; keep them on
a clock that survives restarts (wall time) where faults are persisted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from bess_core.values import Alarm, Severity

DEVICE = 'device'  # group of the alarms given to `update`
DIRECT = 'direct'  # group of `raise_` and `clear_cause`


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One fault. Fields as in `msg/Fault.msg`; `since` in s."""

    id: str
    severity: Severity
    source: str
    since: float
    count: int
    active: bool
    latched: bool
    text: str


@dataclass(frozen=True, slots=True)
class FaultEvent:
    """Something happened to a fault: one line of the log. `kind`: raised, escalated, eased, gone, cleared."""

    kind: str
    fault: FaultRecord


class FaultRegistry:
    """The faults of `source` (a node name).

    `changed` is True after anything but the text of a fault changed; reset it with `take_changed`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.changed = False
        self._faults: dict[str, FaultRecord] = {}  # also gone ones, for their count
        self._causes: dict[str, set[str]] = {}  # id -> groups that see the cause now

    @property
    def records(self) -> list[FaultRecord]:
        """Active and latched faults, worst first, then oldest first."""
        shown = [f for f in self._faults.values() if f.active or f.latched]
        return sorted(shown, key=lambda f: (-f.severity, f.since, f.id))

    @property
    def active(self) -> list[FaultRecord]:
        """Faults whose cause is there now."""
        return [f for f in self.records if f.active]

    @property
    def latched(self) -> list[FaultRecord]:
        """Faults that need an explicit clear."""
        return [f for f in self.records if f.latched]

    @property
    def worst(self) -> Severity | None:
        """Highest severity in the list, None when there is none."""
        return max((f.severity for f in self.records), default=None)

    def get(self, id: str) -> FaultRecord | None:
        """The fault of this id if it is active or latched."""
        fault = self._faults.get(id)
        return fault if fault is not None and (fault.active or fault.latched) else None

    @property
    def clean(self) -> bool:
        """Whether no cause of any fault is there, and nothing is left to tell."""
        return not self._causes and not self.changed

    def take_changed(self) -> bool:
        """True once after a change."""
        changed, self.changed = self.changed, False
        return changed

    def update(self, alarms: Iterable[Alarm], now: float, group: str = DEVICE) -> list[FaultEvent]:
        """All alarms that are present now; those of the same group that are not listed have gone.

        Give different reporters (device, last gate, communication) different groups. When one id is
        listed twice, the more severe counts.
        """
        present: dict[str, Alarm] = {}
        for alarm in alarms:
            known = present.get(alarm.id)
            if known is None or alarm.severity > known.severity:
                present[alarm.id] = alarm
        events: list[FaultEvent] = []
        for id, groups in list(self._causes.items()):
            if group in groups and id not in present:
                events += self.clear_cause(id, group)
        for alarm in present.values():
            events += self.raise_(alarm.id, alarm.severity, alarm.text, now, group)
        return events

    def raise_(self, id: str, severity: Severity, text: str, now: float,
               group: str = DIRECT) -> list[FaultEvent]:
        """The cause of a fault is there; repeating it is no new occurrence."""
        if not id:
            raise ValueError('fault id is empty')
        severity = Severity(severity)
        old = self._faults.get(id)
        self._causes.setdefault(id, set()).add(group)
        if old is None or not old.active:
            kept = old.severity if old is not None and old.latched else severity
            count = (old.count if old is not None else 0) + 1
            worst = max(kept, severity)
            latched = worst is Severity.CRITICAL
            return self._put('raised', FaultRecord(
                id, worst, self.source, now, count, True, latched, text))
        worst = severity
        if old.latched or len(self._causes[id]) > 1:  # another reporter may see it as worse
            worst = max(old.severity, severity)
        new = replace(old, severity=worst, text=text if severity >= old.severity else old.text,
                      latched=worst is Severity.CRITICAL)
        if (new.severity, new.latched) == (old.severity, old.latched):
            self._faults[id] = new
            return []
        return self._put('escalated' if new.severity > old.severity else 'eased', new)

    def clear_cause(self, id: str, group: str = DIRECT) -> list[FaultEvent]:
        """The cause has gone, as far as this group knows. A latched fault stays in the list."""
        groups = self._causes.get(id)
        if groups is None or group not in groups:
            return []
        groups.discard(group)
        if groups:
            return []
        del self._causes[id]
        return self._put('gone', replace(self._faults[id], active=False))

    def clear(self, id: str = '') -> tuple[bool, str, list[FaultEvent]]:
        """Clear one latched fault, or all latched ones (""). Returns (accepted, message, events).

        Refused as a whole while the cause of any of them is still there.
        """
        if id and self.get(id) is None:
            return False, f'no fault {id!r} at {self.source}', []
        chosen = [f for f in self.records if (f.id == id if id else f.latched)]
        present = [f for f in chosen if f.active]
        if present:
            causes = '; '.join(f'{f.id}: {f.text}' for f in present)
            return False, f'refused, the cause is still present: {causes}', []
        if not chosen:
            return True, 'nothing to clear', []
        self.changed = True
        events = []
        for fault in chosen:
            del self._faults[fault.id]
            events.append(FaultEvent('cleared', replace(fault, latched=False, active=False)))
        return True, f'cleared {", ".join(f.id for f in chosen)}', events

    def _put(self, kind: str, fault: FaultRecord) -> list[FaultEvent]:
        self._faults[fault.id] = fault
        self.changed = True
        return [FaultEvent(kind, fault)]

    # Persistence

    def to_dict(self) -> dict[str, Any]:
        """Latched faults as plain JSON values; the rest is found again by itself."""
        return {'source': self.source, 'latched': [
            {'id': f.id, 'severity': int(f.severity), 'since': f.since, 'count': f.count,
             'text': f.text} for f in self.latched]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FaultRegistry:
        """Restore what `to_dict` gave. The causes are unknown until they are seen again.

        Raises ValueError that says what is wrong; a damaged file must not clear a critical fault
        unnoticed.
        """
        if not isinstance(data, Mapping):
            raise ValueError('faults: not a mapping')
        source, entries = data.get('source'), data.get('latched')
        if not isinstance(source, str) or not isinstance(entries, list):
            raise ValueError('faults: "source" (text) and "latched" (list) are needed')
        registry = cls(source)
        for number, entry in enumerate(entries):
            fault = _restored(source, entry, f'faults: entry {number}')
            registry._faults[fault.id] = fault
        registry.changed = bool(entries)
        return registry


def _restored(source: str, entry: Any, where: str) -> FaultRecord:
    if not isinstance(entry, Mapping):
        raise ValueError(f'{where}: not a mapping')
    id, text = entry.get('id'), entry.get('text')
    since, count, severity = entry.get('since'), entry.get('count'), entry.get('severity')
    if not isinstance(id, str) or not id or not isinstance(text, str):
        raise ValueError(f'{where}: "id" and "text" must be text')
    if isinstance(since, bool) or not isinstance(since, (int, float)) or not isfinite(since):
        raise ValueError(f'{where}: "since" is {since!r}, must be a number')
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f'{where}: "count" is {count!r}, must be 1 or more')
    if severity != Severity.CRITICAL:  # nothing else latches
        raise ValueError(f'{where}: "severity" is {severity!r}, must be {int(Severity.CRITICAL)}')
    return FaultRecord(id, Severity(severity), source, float(since), count, False, True, text)
