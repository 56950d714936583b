"""What the dashboard knows of a site: the latest value of everything, and histories.

Fed by the ROS thread, read by the web thread. Fields are named as in `msg/`; signs are passive
(+ = into the component), units SI, NaN = not measured.
"""

from __future__ import annotations

import threading
import time as _time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan
from types import SimpleNamespace
from typing import Any

from bess_core.topology_tree import rows, tree
from bess_telemetry import site_words as words
from bess_telemetry.site_history import History, Series

Values = dict[str, Any]

#: Order in which batteries are shown. "unit" = battery and converter as one, "pack" = bare BMS.
KINDS = ('unit', 'battery', 'remote', 'aggregate', 'partition', 'pack')
METER_ROLES = ('grid', 'pv', 'house', 'other')


@dataclass(frozen=True)
class ViewLimits:
    """From which age a value counts as stale, and as unusable."""

    stale_after: float = 3.0  # s
    invalid_after: float = 15.0  # s


class SiteView:
    """Thread-safe store of the latest values of a site.

    clock: site time in s, which never jumps (`time` of all values is in it).
    wall: epoch s, for labels.
    """

    def __init__(
        self,
        site: str = 'site',
        *,
        clock: Callable[[], float] = _time.monotonic,
        wall: Callable[[], float] = _time.time,
        limits: ViewLimits | None = None,
        history: History | None = None,
    ) -> None:
        self.site = site
        self.clock = clock
        self.wall = wall
        self._limits = limits or ViewLimits()
        self._history = history or History()
        self._lock = threading.RLock()
        self._batteries: dict[str, Values] = {}
        self._cells: dict[str, Values] = {}
        self._meters: dict[str, Values] = {}
        self._inverters: dict[str, Values] = {}
        self._traces: dict[str, Values] = {}
        self._mode_states: dict[str, Values] = {}
        self._plans: dict[str, Values] = {}
        self._scores: dict[str, Values] = {}
        self._zones: dict[str, Values] = {}
        self._care: dict[str, Values] = {}
        self._faults: dict[str, list[Values]] = {}
        self._state: Values | None = None
        self._state_known = False
        self._tree: list[tuple[str, str, str]] = []  # (stem, name, type), top to bottom
        self._modes: list[str] = []
        self._kinds: dict[str, str] = {}

    # ---- what the ROS thread writes

    def describe(self, name: str, kind: str) -> None:
        """Say what a component is: one of `KINDS` for a battery, of `METER_ROLES` for a meter."""
        if kind not in KINDS and kind not in METER_ROLES:
            raise ValueError(f'{name}: kind is {kind!r}, allowed: {", ".join(KINDS + METER_ROLES)}')
        with self._lock:
            self._kinds[name] = kind

    def update_battery(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `BatteryStatus` fields, with `time` (s) for the header stamp."""
        self._put(self._batteries, name, values)

    def update_cells(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `CellArray` fields: voltages (V), temperatures (degC), balancing."""
        self._put(self._cells, name, values)

    def update_meter(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `MeterStatus` fields; which meter it is says `describe` (else its name)."""
        self._put(self._meters, name, values)

    def update_inverter(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `InverterStatus` fields."""
        self._put(self._inverters, name, values)

    def update_trace(self, values: Mapping[str, Any]) -> None:
        """Latest `DecisionTrace` fields; the newest of each battery is kept."""
        self._put(self._traces, str(values.get('battery') or ''), values)

    def update_mode(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `ModeState` fields of a mode."""
        self._put(self._mode_states, name, values)

    def update_plan(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `EnergyPlan` fields of a mode."""
        self._put(self._plans, name, values)

    def update_scores(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `ForecastScores` fields of a mode."""
        self._put(self._scores, name, values)

    def update_zone(self, name: str, values: Mapping[str, Any]) -> None:
        """Latest `ClimateZone` fields."""
        self._put(self._zones, str(values.get('name') or name), values)

    def update_care(self, what: str, values: Mapping[str, Any]) -> None:
        """Latest fields of 'test' (`TestState`), 'info' (`SystemInfo`) or 'overview' (`FaultOverview`)."""
        with self._lock:
            self._care[what] = dict(values)

    def update_faults(self, source: str, faults: Iterable[Mapping[str, Any]]) -> None:
        """All faults of one node (`FaultArray`); an empty list takes its faults away."""
        with self._lock:
            self._faults[source] = [dict(f) for f in faults]

    def update_state(self, values: Mapping[str, Any] | None) -> None:
        """Latest `SystemState` fields; None when nobody publishes the state any more."""
        with self._lock:
            self._state_known = values is not None
            if values is not None:
                self._state = dict(values)

    def update_topology(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """What the batteries are made of: fields of each `TopologyNode`."""
        roots = tree([SimpleNamespace(**n) for n in nodes], {})
        with self._lock:
            self._tree = [(stem, b.name, b.type) for stem, b in rows(roots)]

    def update_modes(self, names: Iterable[str]) -> None:
        """Control modes that may be asked for."""
        with self._lock:
            self._modes = sorted(set(names))

    def record(self) -> None:
        """Add the present values to the histories; called once per second."""
        snap = self.snapshot()
        flow = power_flow(snap)
        row = {
            'grid': flow['grid']['power'],
            'house': flow['house']['power'],
            'battery': flow['battery']['power'],
        }
        if flow['pv'] is not None:
            row['pv'] = flow['pv']['power']
        for battery in snap['batteries']:
            usable = battery['quality'] != 'invalid'
            row[f'soc:{battery["name"]}'] = battery.get('soc', nan) if usable else nan
        with self._lock:
            self._history.add(self.clock(), row)

    # ---- what the web thread reads

    def history(self, span: float, most: int = 300) -> Series:
        """Channels grid, house, battery, pv (W) and soc:<battery> over the last `span` s; times in
        epoch s.
        """
        with self._lock:
            now = self.clock()
            series = self._history.read(now, span, most)
        offset = self.wall() - now
        return replace(series, times=[t + offset for t in series.times])

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain dicts and lists, each value with `age` (s) and `quality`
        ('ok', 'stale', 'invalid': the worse of what the sender says and the age). `time` is
        epoch s.
        """
        now, wall = self.clock(), self.wall()
        with self._lock:
            meters = self._all(self._meters, now, wall)
            for meter in meters:
                meter['role'] = self._meter_role(meter['name'], meters)
            batteries = self._all(self._batteries, now, wall)
            for battery in batteries:
                kind = self._kinds.get(battery['name'])
                battery['kind'] = kind if kind in KINDS else 'battery'
            batteries.sort(key=lambda b: (KINDS.index(b['kind']), b['name']))
            inverters = self._all(self._inverters, now, wall)
            known = {v['name']: v for v in (*inverters, *batteries)}
            traces = self._all(self._traces, now, wall)
            for trace in traces:
                trace['sentence'] = words.decision(trace)
            return {
                'site': self.site,
                'time': wall,
                'state': self._state_view(),
                'modes': list(self._modes),
                'batteries': batteries,
                'cells': self._all(self._cells, now, wall),
                'meters': meters,
                'inverters': inverters,
                'traces': traces,
                'mode_states': [m for m in self._all(self._mode_states, now, wall) if m.get('state') != 'off'],
                'plans': [p | {'scores': self._scores.get(p['name'])} for p in self._all(self._plans, now, wall)],
                'faults': self._fault_list(wall),
                'zones': self._all(self._zones, now, wall),
                'test': self._care.get('test'),
                'info': self._care.get('info'),
                'tree': [
                    {'quality': ''} | known.get(name, {}) | {'name': name, 'stem': stem, 'node_type': kind}
                    for stem, name, kind in self._tree
                ],
            }

    # ---- inside

    def _put(self, store: dict[str, Values], name: str, values: Mapping[str, Any]) -> None:
        with self._lock:
            store[name] = dict(values)

    def _all(self, store: dict[str, Values], now: float, wall: float) -> list[Values]:
        found = []
        for name in sorted(store):
            values = store[name]
            age = _age(now, float(values.get('time', -inf)))
            quality = self._quality(int(values.get('quality', 0)), age)
            found.append(
                values | {'name': name, 'age': age, 'time': wall - age, 'quality': quality}
            )
        return found

    def _quality(self, said: int, age: float) -> str:
        aged = 2 if age > self._limits.invalid_after else 1 if age > self._limits.stale_after else 0
        return words.QUALITIES[min(2, max(said, aged, 0))]

    def _meter_role(self, name: str, meters: list[Values]) -> str:
        role = self._kinds.get(name, '')
        if role not in METER_ROLES:
            role = meter_role(name)
            if role == 'other' and len(meters) == 1:
                role = 'grid'  # a single meter of unspoken purpose stands at the connection point
        return role

    def _state_view(self) -> Values:
        state = self._state or {}
        return {
            'known': self._state_known,
            'state': words.name_of(words.STATES, state.get('state'))
            if self._state_known
            else words.UNKNOWN,
            'last': words.name_of(words.STATES, state.get('state')) if state else words.UNKNOWN,
            'mode': str(state.get('mode') or ''),
            'cause': str(state.get('cause') or ''),
            'missing': list(state.get('missing') or ()),
            'since': float(state.get('time', nan)),
        }

    def _fault_list(self, wall: float) -> list[Values]:
        faults: list[Values] = []
        overview = self._care.get('overview')
        seen = {(e['fault']['source'], e['fault']['id']): e['acknowledged_by'] for e in (overview or {}).get(
            'entries', ()) if e['acknowledged']}
        for source, entries in self._faults.items():
            for fault in entries:
                since = float(fault.get('since', nan))
                severity = words.name_of(words.SEVERITIES, fault.get('severity'))
                faults.append(
                    {'source': source}
                    | fault
                    | {'severity_name': severity, 'age': _age(wall, since),
                       'acknowledged_by': seen.get((source, fault.get('id')), ''),
                       'can_acknowledge': overview is not None}
                )
        faults.sort(
            key=lambda f: (
                -int(f.get('severity', 0)),
                not f.get('active', True),
                f['age'],
                f['source'],
                f['id'],
            )
        )
        return faults


def _age(now: float, stamp: float) -> float:
    """Age in s; infinite for a value that never came or has no stamp."""
    return inf if isnan(stamp) else max(0.0, now - stamp)


def meter_role(name: str) -> str:
    """Guess from a name what a meter measures: 'grid', 'pv', 'house' or 'other'."""
    lowered = name.lower()
    for role, hints in (
        ('pv', ('pv', 'solar')),
        ('house', ('house', 'load', 'home')),
        ('grid', ('grid', 'main', 'pcc')),
    ):
        if any(hint in lowered for hint in hints):
            return role
    return 'other'


def flow_batteries(batteries: list[Values]) -> list[Values]:
    """The batteries that together are all battery power, each counted once.

    Units where there are any; else what is neither virtual nor a bare pack, else an aggregate,
    else packs: an aggregate and its members, or a unit and its pack, are the same power.
    """
    for kinds in (('unit', 'remote'), ('battery',), ('aggregate',), ('pack',)):
        chosen = [b for b in batteries if b['kind'] in kinds]
        if chosen:
            return chosen
    return []


def power_flow(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Powers for the picture: `grid` (W, + = import), `pv` (W, production >= 0, or None when the
    site has no PV meter), `house` (W, + = consumption), `battery` (W, + = charging, the sum) and
    `batteries` (each). A sum with an unknown part is unknown. Without a house meter the house is
    what remains: grid - batteries + PV (net of PV where that is not measured).
    """
    by_role: dict[str, list[Values]] = {}
    for meter in snapshot['meters']:
        by_role.setdefault(meter['role'], []).append(meter)
    grid = _sum([_node(m, 'active_power') for m in by_role.get('grid', [])])
    pv = None
    if 'pv' in by_role:
        pv = _sum([_node(m, 'active_power', -1.0) for m in by_role['pv']])
    chosen = flow_batteries(snapshot['batteries'])
    batteries = [_node(b, 'power') | {'name': b['name'], 'soc': b.get('soc', nan)} for b in chosen]
    battery = _sum(batteries)
    if 'house' in by_role:
        house = _sum([_node(m, 'active_power') for m in by_role['house']]) | {'derived': False}
    else:
        parts = [grid, battery] if pv is None else [grid, battery, pv]
        remains = grid['power'] - battery['power'] + (pv['power'] if pv else 0.0)
        house = _sum(parts) | {'power': remains, 'derived': True}
    return {'grid': grid, 'pv': pv, 'house': house, 'battery': battery, 'batteries': batteries}


def _node(values: Values, field: str, sign: float = 1.0) -> Values:
    power = float(values.get(field, nan)) * sign
    if values['quality'] == 'invalid':
        power = nan  # must not be used; shown as unknown
    return {'power': power, 'quality': values['quality'], 'age': values['age']}


def _sum(nodes: list[Values]) -> Values:
    """Sum of powers with the worst quality and age; unknown when there is none to add."""
    if not nodes:
        return {'power': nan, 'quality': 'invalid', 'age': inf}
    return {
        'power': sum(n['power'] for n in nodes),
        'quality': max((n['quality'] for n in nodes), key=words.QUALITIES.index),
        'age': max(n['age'] for n in nodes),
    }


def json_safe(value: Any) -> Any:
    """The same for JSON, which has neither NaN nor infinity: both become null."""
    if isinstance(value, float):
        return value if isfinite(value) and not isnan(value) else None
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    return value
