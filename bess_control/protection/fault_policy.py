"""What the faults of a site make it do: actions by rule, suppression, acknowledgement. Pure.

Rules are tried in order; the first that fits a fault decides its action. A fault is *suppressed* while
another fault or the site's state explains it: it is shown, but asks for nothing. A CRITICAL fault is
never suppressed. Acknowledging a fault says that somebody has seen this occurrence; it changes nothing
about what the fault makes the site do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import Any

from bess_core.faults import FaultRecord
from bess_core.values import Severity

Key = tuple[str, str]  # (source, id)


class Action(IntEnum):
    """What a fault asks for; a higher one includes the lower ones."""

    NONE = 0
    DERATE = 1  # only a share of the battery's limits
    SLEEP = 2  # the site's SLEEP, converters released in order
    STOP = 3  # zero with the next tick, then SLEEP
    EMERGENCY_STOP = 4  # zero at the converters, locked until reset on the spot


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the policy. Globs with * and ?."""

    fault: str = '*'
    source: str = '*'
    severity: Severity = Severity.WARNING  # this or worse
    action: Action = Action.NONE
    derate: float = 1.0  # fraction 0..1 of the limits that stays; for DERATE
    delay: float = 0.0  # s that the fault must have been active

    def fits(self, fault: FaultRecord) -> bool:
        """Whether it decides this fault."""
        return (fault.severity >= self.severity and fnmatchcase(fault.id, self.fault)
                and fnmatchcase(fault.source, self.source))


@dataclass(frozen=True, slots=True)
class Suppression:
    """`fault` at `source` is explained while `by` is active: "source/id" (globs), or "state:NAME"."""

    fault: str
    by: str
    source: str = '*'


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Who has seen which occurrence."""

    by: str
    at: float  # s, wall time
    since: float  # s, wall time: `since` of the fault then
    count: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One fault with what is done about it."""

    fault: FaultRecord
    action: Action = Action.NONE  # asked for now
    derate: float = 1.0
    suppressed_by: str = ''
    acknowledged: Acknowledged | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All faults, worst first, and the strongest action among them."""

    entries: tuple[Entry, ...] = ()
    action: Action = Action.NONE
    derate: float = 1.0
    cause: str = ''  # text of the fault that asks for the action


DEFAULT_RULES = (
    Rule(severity=Severity.CRITICAL, action=Action.STOP),  # the site goes to ERROR by itself as well
)


def parse_rules(values: Sequence[Any]) -> tuple[Rule, ...]:
    """Rules of a site file: mappings with the fields of `Rule`, severity and action by name.

    Raises ValueError that names the entry and what is allowed.
    """
    return tuple(_rule(value, f'rule {number}') for number, value in enumerate(values, 1))


def _rule(value: Any, where: str) -> Rule:
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}: not a mapping')
    allowed = {'fault', 'source', 'severity', 'action', 'derate', 'delay'}
    if unknown := set(value) - allowed:
        raise ValueError(f'{where}: unknown key {min(map(str, unknown))!r}; allowed: {", ".join(sorted(allowed))}')
    if 'action' not in value:
        raise ValueError(f'{where}: action is missing; allowed: {_names(Action)}')
    action = _named(Action, value['action'], f'{where}: action')
    severity = _named(Severity, value.get('severity', 'warning'), f'{where}: severity')
    derate = _number(value.get('derate', 1.0), 0.0, 1.0, f'{where}: derate')
    if action is Action.DERATE and 'derate' not in value:
        raise ValueError(f'{where}: derate (0 to 1, the share that stays) is missing')
    return Rule(_text(value.get('fault', '*'), f'{where}: fault'), _text(value.get('source', '*'), f'{where}: source'),
                severity, action, derate, _number(value.get('delay', 0.0), 0.0, 86400.0, f'{where}: delay'))


def parse_suppressions(values: Sequence[Any]) -> tuple[Suppression, ...]:
    """Suppressions of a site file: mappings with `fault`, `by` and `source`. Raises ValueError."""
    out = []
    for number, value in enumerate(values, 1):
        where = f'suppression {number}'
        if not isinstance(value, Mapping) or not {'fault', 'by'} <= set(value) <= {'fault', 'by', 'source'}:
            raise ValueError(f'{where}: needs "fault" and "by", and may have "source"')
        by = _text(value['by'], f'{where}: by')
        if not by.startswith('state:') and '/' not in by:
            raise ValueError(f'{where}: by is {by!r}, must be "source/id" or "state:NAME"')
        out.append(Suppression(_text(value['fault'], f'{where}: fault'), by,
                               _text(value.get('source', '*'), f'{where}: source')))
    return tuple(out)


def _names(kind: type[IntEnum]) -> str:
    return ', '.join(m.name.lower() for m in kind)


def _named(kind: Any, value: Any, where: str) -> Any:
    try:
        return kind[str(value).upper()]
    except KeyError:
        raise ValueError(f'{where} is {value!r}, must be one of {_names(kind)}') from None


def _number(value: Any, low: float, high: float, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f'{where} is {value!r}, must be {low:g} to {high:g}')
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f'{where} is {value!r}, must be text')
    return value


class FaultBook:
    """The faults of all nodes, as their last messages say, and the policy over them. Times in s, wall clock."""

    def __init__(self, rules: Sequence[Rule] = DEFAULT_RULES, suppressions: Sequence[Suppression] = ()) -> None:
        self.rules, self.suppressions = tuple(rules), tuple(suppressions)
        self._faults: dict[str, dict[str, FaultRecord]] = {}  # source -> id -> fault
        self._acknowledged: dict[Key, Acknowledged] = {}
        self._first: dict[Key, float] = {}  # active since, on our clock

    def update(self, source: str, faults: Iterable[FaultRecord], now: float) -> list[tuple[str, FaultRecord]]:
        """All faults of one node. Returns what changed: (raised, escalated, eased, again, gone or cleared, fault)."""
        old, new = self._faults.get(source, {}), {f.id: f for f in faults}
        changes: list[tuple[str, FaultRecord]] = []
        for id, fault in new.items():
            before = old.get(id)
            key = (source, id)
            if not fault.active:
                self._first.pop(key, None)
            elif before is None or not before.active or key not in self._first:
                self._first[key] = now
            if before is None or (fault.active and not before.active):
                changes.append(('raised', fault))
            elif before.active and not fault.active:
                changes.append(('gone', fault))
            elif fault.count != before.count:
                changes.append(('again', fault))
            elif fault.severity != before.severity:
                changes.append(('escalated' if fault.severity > before.severity else 'eased', fault))
            seen = self._acknowledged.get(key)
            if seen is not None and (seen.count, seen.since) != (fault.count, fault.since):
                del self._acknowledged[key]  # a new occurrence nobody has seen
        for id, fault in old.items():
            if id not in new:
                changes.append(('cleared' if fault.latched else 'gone', replace(fault, active=False, latched=False)))
                self._first.pop((source, id), None)
                self._acknowledged.pop((source, id), None)
        self._faults[source] = new
        return changes

    def forget(self, source: str, now: float) -> list[tuple[str, FaultRecord]]:
        """A node was taken out of the site."""
        return self.update(source, (), now)

    def acknowledge(self, source: str, id: str, by: str, now: float) -> tuple[bool, str, list[FaultRecord]]:
        """Somebody has seen the faults of this node and id ('' = all). Returns (accepted, message, faults)."""
        if not by.strip():
            return False, 'who acknowledges is missing', []
        chosen = [f for s, faults in self._faults.items() if not source or s == source
                  for f in faults.values() if not id or f.id == id]
        if not chosen:
            return False, f'no fault {id or "at all"}{f" at {source}" if source else ""}', []
        for f in chosen:
            self._acknowledged[(f.source, f.id)] = Acknowledged(by.strip(), now, f.since, f.count)
        return True, f'acknowledged {", ".join(f"{f.source}/{f.id}" for f in chosen)}', chosen

    def verdict(self, now: float, state: str = '') -> Verdict:
        """What to do at `now`; `state` is the name of the site's state."""
        active = [f for faults in self._faults.values() for f in faults.values() if f.active or f.latched]
        if not active:
            return Verdict()
        entries = sorted((self._entry(f, active, now, state) for f in active),
                         key=lambda e: (-e.fault.severity, e.fault.since, e.fault.source, e.fault.id))
        worst = max(entries, key=lambda e: e.action, default=None)
        if worst is None or worst.action is Action.NONE:
            return Verdict(tuple(entries))
        derates = [e for e in entries if e.action is Action.DERATE]
        derate = min((e.derate for e in derates), default=1.0)
        if worst.action is Action.DERATE:
            worst = min(derates, key=lambda e: e.derate)
        return Verdict(tuple(entries), worst.action, derate,
                       f'{worst.fault.source}/{worst.fault.id}: {worst.fault.text}')

    def _entry(self, fault: FaultRecord, active: list[FaultRecord], now: float, state: str) -> Entry:
        key = (fault.source, fault.id)
        seen = self._acknowledged.get(key)
        by = self._suppressed(fault, active, state)
        if by:
            return Entry(fault, suppressed_by=by, acknowledged=seen)
        rule = next((r for r in self.rules if r.fits(fault)), None)
        # A latched fault whose cause has gone has been active long enough.
        lasted = now - self._first.get(key, now) if fault.active else inf
        if rule is None or lasted < rule.delay:
            return Entry(fault, acknowledged=seen)
        return Entry(fault, rule.action, rule.derate if rule.action is Action.DERATE else 1.0, '', seen)

    def _suppressed(self, fault: FaultRecord, active: list[FaultRecord], state: str) -> str:
        if fault.severity is Severity.CRITICAL:
            return ''
        for s in self.suppressions:
            if not (fnmatchcase(fault.id, s.fault) and fnmatchcase(fault.source, s.source)):
                continue
            if s.by.startswith('state:'):
                if state and fnmatchcase(state, s.by[6:]):
                    return s.by
                continue
            for other in active:
                key = f'{other.source}/{other.id}'
                # Two faults that explain each other would hide both.
                if other.active and (other.source, other.id) != (fault.source, fault.id) and fnmatchcase(key, s.by):
                    return key
        return ''

    # Persistence of acknowledgements; the faults themselves are kept by their nodes.

    def to_dict(self) -> dict[str, Any]:
        """Acknowledgements as plain JSON values."""
        return {'acknowledged': [{'source': s, 'id': i, 'by': a.by, 'at': a.at, 'since': a.since, 'count': a.count}
                                 for (s, i), a in sorted(self._acknowledged.items())]}

    def restore(self, data: Any) -> None:
        """Take back what `to_dict` gave. Raises ValueError; nothing is changed then."""
        entries = data.get('acknowledged') if isinstance(data, Mapping) else None
        if not isinstance(entries, list):
            raise ValueError('acknowledgements: "acknowledged" (list) is needed')
        taken: dict[Key, Acknowledged] = {}
        for number, e in enumerate(entries):
            try:
                if not all(isinstance(e[k], str) for k in ('source', 'id', 'by')):
                    raise TypeError('source, id and by must be text')
                at, since, count = float(e['at']), float(e['since']), int(e['count'])
                if not (isfinite(at) and isfinite(since)):
                    raise TypeError('times must be finite')
                taken[(e['source'], e['id'])] = Acknowledged(e['by'], at, since, count)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f'acknowledgements: entry {number}: {error!r}') from error
        self._acknowledged = taken


def page_of(id: str, catalogue: Iterable[str]) -> str:
    """Address of the documentation of a fault id; '' when the catalogue has nothing that fits."""
    exact = [c for c in catalogue if c == id] or [c for c in catalogue if fnmatchcase(id, c)]
    return f'docs/faults.md#{anchor(exact[0])}' if exact else ''


def anchor(id: str) -> str:
    """Anchor of a fault id (or pattern) in docs/faults.md."""
    return id.replace('.', '-').replace('*', 'x').replace('_', '-').lower()
