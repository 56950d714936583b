"""Event log node: keeps what happens (`<site>/events`, states and modes) and answers questions about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bess.msg import Event, SystemState
from bess.srv import QueryEvents
from bess_core import qos
from bess_core.convert import wall_stamp
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.values import Severity

from ..site_state import SiteState
from .event_log import EventLog, LogEvent, Query


@dataclass(frozen=True)
class EventLogParams:
    """Parameters of the event log node."""

    file: str = param('events.sqlite', '', 'file inside the state folder')
    keep: int = param(100_000, '', 'how many events are kept', low=100, high=10_000_000)


class EventLogNode(BessNode):
    """`~/query`."""

    Params: ClassVar[type] = EventLogParams
    role: ClassVar[str] = 'event_log'

    def on_bess_configure(self) -> None:
        """Listen and write from now on."""
        topic = self.ctx.topic
        self._seen: SystemState | None = None
        self._log = EventLog(self.ctx.state_dir / self.params.file, self.params.keep, self.ctx.post, self._on_disk)
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            (self.destroy_subscription, self.create_subscription(Event, topic('events'), self._on_event, qos.EVENT)),
            (self.destroy_subscription, self.create_subscription(SystemState, topic('system_state'), self._on_state,
                                                                 qos.FAULTS)),
            (self.destroy_service, self.create_deferred_service(QueryEvents, '~/query', self._on_query)),
        ]

    def on_bess_cleanup(self) -> None:
        """Write what is there."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        self._own = []
        if hasattr(self, '_log'):
            self._log.close()
            del self._log

    def _on_disk(self, error: str) -> None:
        self.set_fault(bool(error), 'event_log.write', Severity.ERROR, f'events cannot be stored: {error}')

    def _on_event(self, m: Event) -> None:
        self.progress += 1
        at = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9
        self._log.put(LogEvent(at or self.clock.wall(), m.severity, m.kind, m.source, m.name, m.change, m.text))

    def _on_state(self, m: SystemState) -> None:
        """States and modes become events here, so that they are kept whoever else listens."""
        old, self._seen = self._seen, m
        state = SiteState(m.state)
        at = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 or self.clock.wall()
        if old is None or old.state != m.state:
            severity = 2 if state is SiteState.ERROR else 0
            self._log.put(LogEvent(at, severity, 'state', 'site', state.name, 'entered', m.cause))
        if old is not None and old.mode != m.mode:
            self._log.put(LogEvent(self.clock.wall(), 0, 'mode', 'site', m.mode or 'none', 'entered',
                                   f'mode {m.mode or "none"} after {old.mode or "none"}'))

    def _on_query(self, r: QueryEvents.Request, answer: Any) -> None:
        response = QueryEvents.Response()

        def done(found: list[LogEvent], error: str) -> None:
            response.accepted = not error
            response.message = error or f'{len(found)} events'
            for e in found:
                event = Event(id=e.id, severity=e.severity, kind=e.kind, source=e.source, name=e.name, change=e.change,
                              text=e.text)
                event.header.stamp = wall_stamp(e.time)
                response.events.append(event)
            answer(response)

        self._log.query(Query(r.start.sec + r.start.nanosec * 1e-9, r.end.sec + r.end.nanosec * 1e-9, r.source, r.kind,
                              r.min_severity, r.text, r.limit), done)
