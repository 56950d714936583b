"""ROS shell of the dashboard: topics of the site into a `SiteView`, orders of users into services.

Serves from configure to cleanup, also while the site sleeps: who stopped a site must be able to
start it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from bess.msg import (
    BatteryStatus,
    CellArray,
    ClimateZone,
    DecisionTrace,
    EnergyPlan,
    FaultArray,
    FaultOverview,
    ForecastScores,
    InverterStatus,
    MeterStatus,
    ModeState,
    SystemInfo,
    SystemState,
    TestState,
    Topology,
)
from bess_core import qos
from bess_core.convert import site_time
from bess_core.node import BessNode
from bess_core.observer import is_current
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity
from bess_telemetry.auth import AuthError, DashboardAuth
from bess_telemetry.care_actions_node import RosActions, plain, wall
from bess_telemetry.dashboard import DashboardServer
from bess_telemetry.site_view import KINDS, SiteView, ViewLimits

#: Node types whose name is not the kind that people see.
TYPE_KINDS = {'partition_child': 'partition'}

#: The same message more often than this is not looked at: the page shows one value per second.
LEAST_INTERVAL = 0.2  # s


@dataclass(frozen=True)
class DashboardParams:
    """Parameters of the dashboard node."""

    host: str = param('127.0.0.1', '', 'address to listen on; 0.0.0.0 = reachable from the network')
    port: int = param(8080, '', 'TCP port; 0 = the system chooses one', low=0, high=65535)
    refresh: float = param(1.0, 's', 'time between updates of a page', low=0.2, high=10.0)
    stale_after: float = param(
        3.0, 's', 'age from which a value is shown grey', low=0.1, high=3600.0
    )
    invalid_after: float = param(
        15.0, 's', 'age from which a value is shown as unknown', low=0.2, high=86400.0
    )
    call_timeout: float = param(
        8.0, 's', 'longest wait for the answer of a service', low=0.1, high=60.0
    )
    grid_meter: str = param('', '', 'name of the meter at the grid connection; empty = the one that the power '
                                    'manager looks at, else by its name')
    pv_meter: str = param('', '', 'name of the PV meter; empty = by its name')
    house_meter: str = param('', '', 'name of the meter of the house; empty = by its name')


class DashboardNode(BessNode):
    """Web dashboard of one site. `url` is where it is; it is logged as event "dashboard" too."""

    Params: ClassVar[type] = DashboardParams
    role: ClassVar[str] = 'dashboard'

    def on_bess_configure(self) -> None:
        """Open the secrets, bind the port, begin to look for topics."""
        p = self.params
        specs = self.ctx.site.nodes if self.ctx.site is not None else ()
        site_node = next((s.name for s in specs if s.role == 'site'), 'site')
        roles = {s.role: s.name for s in reversed(specs)}
        self._actions = RosActions(self, p.call_timeout, site_node, roles)
        self._topics: dict[str, Any] = {}
        self._taken: dict[tuple[str, str], float] = {}
        limits = ViewLimits(stale_after=p.stale_after, invalid_after=p.invalid_after)
        self.view = SiteView(
            self.ctx.namespace.strip('/') or 'site',
            clock=self.clock.now,
            wall=self.clock.wall,
            limits=limits,
        )
        self._describe_site()
        self._url_file = self.ctx.state_dir / f'{self.get_name()}.url'  # `bess up` prints it
        try:
            auth = DashboardAuth.open(self.ctx.state_dir, announce=self._password_made)
        except AuthError as error:
            self.raise_fault('dashboard.auth', Severity.ERROR, str(error))
            raise
        self.clear_fault('dashboard.auth')
        self._server = DashboardServer(
            self.view,
            self._actions,
            auth,
            p.host,
            p.port,
            refresh=p.refresh,
            action_timeout=p.call_timeout + 2.0,
        )
        self._server.start()
        self.log.info('dashboard', url=self._server.url)
        self._url_file.write_text(self._server.url + '\n')
        self._discover()
        self.every(1.0, self._each_second)
        self.every(0.25, lambda _: self._actions.tick())

    def on_bess_activate(self) -> None:
        """Active means that the port listens."""
        self._check_server()

    def on_bess_cleanup(self) -> None:
        """Close the port, refuse what waits for an answer, drop all topics."""
        server: DashboardServer | None = getattr(self, '_server', None)
        if server is None:
            return
        del self._server
        self._url_file.unlink(missing_ok=True)
        self._actions.close()
        for subscription in self._topics.values():
            self.destroy_subscription(subscription)
        self._topics.clear()
        server.stop()

    @property
    def url(self) -> str:
        """Where the dashboard is, '' while it is not configured."""
        server: DashboardServer | None = getattr(self, '_server', None)
        return server.url if server else ''

    def diagnostics(self) -> dict[str, Any]:
        """Key-values for /diagnostics."""
        return {'url': self.url, 'topics': len(getattr(self, '_topics', ()))}

    # ---- topics

    def _discover(self) -> None:
        """Subscribe to what is new under the site's namespace."""
        prefix = self.ctx.namespace.rstrip('/') + '/'
        for topic, types in self.get_topic_names_and_types():
            if topic in self._topics or not topic.startswith(prefix):
                continue
            for type_name in types:
                if type_name not in self._readers or not is_current(topic, type_name):
                    continue
                message_type, profile, take = self._readers[type_name]
                name = topic.removeprefix(prefix).rpartition('/')[0] or topic.removeprefix(prefix)
                self._topics[topic] = self.create_subscription(
                    message_type, topic, partial(take, name), profile
                )
        state = self.ctx.topic('system_state')
        if state in self._topics and not self.count_publishers(state):
            self.view.update_state(None)

    @property
    def _readers(self) -> dict[str, tuple[Any, Any, Callable[[str, Any], None]]]:
        view = self.view
        return {
            'bess/msg/BatteryStatus': (
                BatteryStatus,
                qos.MEASUREMENT,
                self._decimated(view.update_battery),
            ),
            'bess/msg/CellArray': (CellArray, qos.MEASUREMENT, self._decimated(view.update_cells)),
            'bess/msg/MeterStatus': (
                MeterStatus,
                qos.MEASUREMENT,
                self._decimated(view.update_meter),
            ),
            'bess/msg/InverterStatus': (
                InverterStatus,
                qos.MEASUREMENT,
                self._decimated(view.update_inverter),
            ),
            'bess/msg/DecisionTrace': (DecisionTrace, qos.EVENT, self._take_trace),
            'bess/msg/ModeState': (ModeState, qos.STATE, self._latest(view.update_mode)),
            'bess/msg/EnergyPlan': (EnergyPlan, qos.STATE, self._latest(view.update_plan)),
            'bess/msg/ForecastScores': (ForecastScores, qos.STATE, self._latest(view.update_scores)),
            'bess/msg/ClimateZone': (ClimateZone, qos.STATE, self._decimated(view.update_zone)),
            'bess/msg/TestState': (TestState, qos.STATE, self._care('test')),
            'bess/msg/SystemInfo': (SystemInfo, qos.STATE, self._care('info')),
            'bess/msg/FaultOverview': (FaultOverview, qos.STATE, self._care('overview')),
            'bess/msg/FaultArray': (FaultArray, qos.FAULTS, self._take_faults),
            'bess/msg/SystemState': (SystemState, qos.STATE, self._take_state),
            'bess/msg/Topology': (Topology, qos.STATE, self._take_topology),
        }

    def _decimated(
        self, update: Callable[[str, dict[str, Any]], None]
    ) -> Callable[[str, Any], None]:
        def take(name: str, message: Any) -> None:
            if self._due(type(message).__name__, name):
                update(name, self._values(message))

        return take

    def _latest(self, update: Callable[[str, dict[str, Any]], None]) -> Callable[[str, Any], None]:
        return lambda name, message: update(name, self._values(message))

    def _care(self, what: str) -> Callable[[str, Any], None]:
        return lambda _, message: self.view.update_care(what, plain(message))

    def _due(self, kind: str, name: str) -> bool:
        now = self.clock.now()
        if now - self._taken.get((kind, name), -LEAST_INTERVAL) < LEAST_INTERVAL:
            return False
        self._taken[kind, name] = now
        return True

    def _take_trace(self, _: str, message: Any) -> None:
        if self._due('trace', message.battery):
            self.view.update_trace(self._values(message))

    def _take_faults(self, _: str, message: Any) -> None:
        self.view.update_faults(message.source, [plain(f) for f in message.faults])

    def _take_state(self, name: str, message: Any) -> None:
        if name != 'system_state':
            return  # the history of states (`site_transitions`) is not the state
        # Only changes are published, so that the stamp is a moment, not an age.
        self.view.update_state(plain(message) | {'time': wall(message.header.stamp)})

    def _take_topology(self, _: str, message: Any) -> None:
        # Batteries come and go at run time; the site file said what there was at the start.
        listed = [SimpleNamespace(name=n.name, type=n.type, refs=n.members) for n in message.nodes]
        for name, kind in battery_kinds(listed).items():
            self.view.describe(name, kind)
        self.view.update_topology(plain(n) for n in message.nodes)

    def _values(self, message: Any) -> dict[str, Any]:
        return plain(message) | {'time': site_time(self.clock, message.header.stamp)}

    # ---- periodic work

    def _each_second(self, _: Tick) -> None:
        self._discover()
        self.view.record()
        self._check_server()
        self.progress += 1

    def _check_server(self) -> None:
        failure = self._server.failure
        if failure is not None:
            text = f'no web pages: {type(failure).__name__}: {failure}'
            self.raise_fault('dashboard.server', Severity.ERROR, text)
        else:
            self.clear_fault('dashboard.server')

    # ---- the site file

    def _managers_meter(self) -> str:
        """Meter that the power manager of this site looks at: the one at the grid connection."""
        nodes = self.ctx.site.nodes if self.ctx.site is not None else ()
        return next((n.params.meter for n in nodes if n.role == 'manager' and n.params.meter), '')

    def _describe_site(self) -> None:
        p = self.params
        grid = p.grid_meter or self._managers_meter()
        for name, role in ((grid, 'grid'), (p.pv_meter, 'pv'), (p.house_meter, 'house')):
            if name:
                self.view.describe(name, role)
        specs = self.ctx.site.nodes if self.ctx.site is not None else ()
        for name, kind in battery_kinds(specs).items():
            self.view.describe(name, kind)
        self.view.update_modes(s.name for s in specs if s.role == 'mode')

    def _password_made(self, _password: str, path: Path) -> None:
        # The password itself stays out of the log; who may read the state directory finds it.
        self.log.warning('dashboard password generated', file=str(path))


def battery_kinds(specs: Iterable[Any]) -> dict[str, str]:
    """Kind of each battery by name, from the nodes of a site file (`name`, `type`, `refs`).

    What a unit or a pack is made of is a bare pack; its power is already in the unit.
    """
    listed = list(specs)
    types = {s.name: TYPE_KINDS.get(s.type, s.type) for s in listed}
    kinds = {name: kind for name, kind in types.items() if kind in KINDS}
    for whole in listed:
        if whole.type in ('unit', 'pack'):
            for part in whole.refs:
                kinds.setdefault(part, 'pack')
    return kinds
