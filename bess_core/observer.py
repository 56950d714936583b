"""Watches a running site from outside: latest message of every battery, meter, converter, trace and fault.

Topics are found by type, so no site file is needed and nodes may come and go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bess.msg import (
    BatteryStatus,
    CellArray,
    DecisionTrace,
    Fault,
    FaultArray,
    Heartbeat,
    InverterStatus,
    MeterStatus,
    SystemState,
    Topology,
)

from . import qos

KINDS: dict[str, tuple[Any, Any]] = {
    'bess/msg/BatteryStatus': (BatteryStatus, qos.MEASUREMENT),
    'bess/msg/MeterStatus': (MeterStatus, qos.MEASUREMENT),
    'bess/msg/InverterStatus': (InverterStatus, qos.MEASUREMENT),
    'bess/msg/DecisionTrace': (DecisionTrace, qos.EVENT),
    'bess/msg/FaultArray': (FaultArray, qos.FAULTS),
    'bess/msg/SystemState': (SystemState, qos.STATE),
    'bess/msg/Heartbeat': (Heartbeat, qos.EVENT),
    'bess/msg/CellArray': (CellArray, qos.MEASUREMENT),
    'bess/msg/Topology': (Topology, qos.STATE),
}
DEFAULT = tuple(k for k in KINDS if k not in ('bess/msg/CellArray', 'bess/msg/Topology'))


def is_current(topic: str, kind: str) -> bool:
    """Not the history of states (`site_transitions`), which comes late and knows nothing of a mode chosen since."""
    return kind != 'bess/msg/SystemState' or topic.endswith('/system_state')


@dataclass
class Seen:
    """Last message of one topic and when it came (monotonic s)."""

    message: Any
    at: float


@dataclass
class SiteObserver:
    """Latest values of the sites under `namespace` ('' = all). Call `discover` now and then."""

    node: Any
    namespace: str = ''
    kinds: tuple[str, ...] = DEFAULT
    listener: Callable[[str, Any], None] | None = None
    batteries: dict[str, Seen] = field(default_factory=dict)
    meters: dict[str, Seen] = field(default_factory=dict)
    converters: dict[str, Seen] = field(default_factory=dict)
    traces: dict[str, Seen] = field(default_factory=dict)
    states: dict[str, Seen] = field(default_factory=dict)
    nodes: dict[str, Seen] = field(default_factory=dict)  # full node name -> heartbeat
    cells: dict[str, Seen] = field(default_factory=dict)
    topologies: dict[str, Seen] = field(default_factory=dict)  # by site namespace
    _faults: dict[tuple[str, str], list[Fault]] = field(default_factory=dict)
    _subscriptions: dict[str, Any] = field(default_factory=dict)

    def discover(self) -> int:
        """Subscribe to what is new; number of topics watched."""
        for topic, types in self.node.get_topic_names_and_types():
            for kind in types:
                if kind in self.kinds and topic not in self._subscriptions and self._ours(topic, kind):
                    message_type, profile = KINDS[kind]
                    self._subscriptions[topic] = self.node.create_subscription(
                        message_type, topic, partial(self._on_message, topic, kind), profile)
        return len(self._subscriptions)

    def _ours(self, topic: str, kind: str) -> bool:
        return is_current(topic, kind) and (not self.namespace or topic.startswith(f'{self.namespace}/'))

    def _on_message(self, topic: str, kind: str, message: Any) -> None:
        name = topic.rsplit('/', 1)[0]
        seen = Seen(message, time.monotonic())
        store = {
            'bess/msg/BatteryStatus': self.batteries, 'bess/msg/MeterStatus': self.meters,
            'bess/msg/InverterStatus': self.converters, 'bess/msg/DecisionTrace': self.traces,
            'bess/msg/SystemState': self.states, 'bess/msg/CellArray': self.cells,
        }.get(kind)
        if store is not None:
            store[name] = seen
        elif kind == 'bess/msg/Topology':
            self.topologies[name.rsplit('/', 1)[0]] = seen
        elif kind == 'bess/msg/Heartbeat':
            self.nodes[f'{name}/{message.node}'] = seen
        elif kind == 'bess/msg/FaultArray':
            self._faults[(name, message.source)] = list(message.faults)
        if self.listener is not None:
            self.listener(name, message)

    @property
    def faults(self) -> list[tuple[str, Fault]]:
        """(site namespace, fault) of all known faults, worst first."""
        found = [(site, fault) for (site, _), faults in self._faults.items() for fault in faults]
        return sorted(found, key=lambda f: (-f[1].severity, f[1].source, f[1].id))
