"""Administration of the batteries of a running site: services `<site>/batteries/...`, one set per site.

It lives in the process that runs the batteries. A change is checked as a whole (`bess_core.topology`), then
what it touches is made safe and seen to be at rest, then nodes end and begin, then it is saved; whatever
fails on the way puts everything back. One change at a time, each for the revision that its sender knew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import isnan
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from bess.msg import Topology, TopologyNode
from bess.srv import ChangeBattery, ListBatteries

from . import overlay as overlay_module
from . import qos, topology
from .convert import wall_stamp
from .node import SUCCESS, BessNode
from .overlay import Overlay, OverlayError
from .site import Site, SiteError, read_values
from .ticker import Handle
from .topology import Plan, RefusedError
from .values import Quality, Severity

if TYPE_CHECKING:
    from .container import Container

NAME = 'batteries'
REST_S = 10.0  # how long a stopped battery may take to come to rest
LOOK_S = 0.1
TIDY_S = 0.5  # from a change until what removed nodes left is freed
REST_W, REST_SHARE = 100.0, 0.02  # at rest: below this power, or this share of its greatest one
KEPT = ('log', 'recordings', 'sim', 'retired')  # folders of the state folder that hold nothing of one node


@dataclass(frozen=True)
class NoParams:
    """The administrator has no parameters."""


@dataclass
class _Job:
    """A change under way."""

    plan: Plan
    request: ChangeBattery.Request
    answers: list[Callable[[Any], None]]
    asked: str  # the request with its verb, to know it again when it is asked again
    text: str
    deadline: float  # s, until which the stopped nodes must be at rest
    active: list[str] = field(default_factory=list)  # stopped nodes that were active
    hints: list[str] = field(default_factory=list)
    looking: Handle | None = None


def hosts(site: Site, process: str) -> bool:
    """Whether the administrator of a site runs in this process ('' = all in one): where its batteries are."""
    if not site.params.administration:
        return False
    home = next((n.process for n in site.nodes if n.role in topology.ROLES), site.processes[0])
    return process in ('', home)


class Administrator(BessNode):
    """See the module. `end` before the container closes."""

    Params: ClassVar[type] = NoParams
    role: ClassVar[str] = 'administrator'

    def __init__(self, container: Container) -> None:
        # No node of the site file: nobody waits for its heartbeat.
        super().__init__(NAME, NoParams(), replace(container.ctx, heartbeat_s=0.0, diagnostics_s=0.0))
        self._container = container
        self._job: _Job | None = None
        self._done: tuple[str, Any] = ('', None)  # the last change that was made, in words, and its answer
        self._tidy = Handle(TIDY_S, lambda _: None, 0.0)
        # The process of the site file whose batteries are changed here.
        self._process = next((n.process for n in container.site.nodes if n.role in topology.ROLES), 'control')
        self._topology = self.create_publisher(Topology, '~/topology', qos.STATE)
        self.create_service(ListBatteries, '~/list', self._on_list)
        for verb, prepare in (('create', self._create), ('destroy', self._destroy), ('reparent', self._reparent),
                              ('configure', self._configure)):
            self.create_deferred_service(ChangeBattery, f'~/{verb}', self._handler(verb, prepare))
        container.runtime.executor.add_node(self)
        container.on_guests = lambda: self.ctx.post(lambda: self._guarded(self._publish))
        self._publish()

    def end(self) -> None:
        """A change under way is undone; then the services end."""
        if self._job is not None:
            self._undo(self._job, 'the process ends')
        self._tidy.cancel()
        self._container.on_guests = lambda: None
        self.close()
        self._container.runtime.executor.remove_node(self)
        self.destroy_node()

    @property
    def site(self) -> Site:
        """The site as it is now."""
        return self._container.site

    # -- what is asked -------------------------------------------------------------------------------

    def _create(self, r: ChangeBattery.Request) -> tuple[Overlay, str]:
        if r.name in self.ctx.nodes:
            raise RefusedError(f'{r.name} is there already')
        overlay = topology.create(self.site, r.name, r.type, list(r.members), read_values(r.parameters))
        of = f' of {", ".join(r.members)}' if r.members else ''
        return overlay, f'created {r.name} ({r.type}{of})'

    def _destroy(self, r: ChangeBattery.Request) -> tuple[Overlay, str]:
        overlay, gone = topology.destroy(self.site, r.name, cascade=r.cascade)
        return overlay, f'destroyed {", ".join(gone)}'

    def _reparent(self, r: ChangeBattery.Request) -> tuple[Overlay, str]:
        before = topology.owners(self.site).get(r.name, '')
        overlay = topology.reparent(self.site, r.name, r.parent)
        return overlay, f'moved {r.name} from {before or "nobody"} to {r.parent or "nobody"}'

    def _configure(self, r: ChangeBattery.Request) -> tuple[Overlay, str]:
        values = read_values(r.parameters)
        overlay = topology.configure(self.site, r.name, values)
        return overlay, f'configured {r.name}: {", ".join(map(str, values))}'

    def _handler(self, verb: str, prepare: Callable[[Any], tuple[Overlay, str]]) -> Any:
        def handle(request: Any, answer: Callable[[Any], None]) -> None:
            asked = f'{verb} {request}'
            # Its answer was lost and it is asked again: made once, answered as before.
            if self._job is not None and self._job.asked == asked:
                self._job.answers.append(answer)
                return
            if self._done[0] == asked:
                answer(self._done[1])
                return
            try:
                self._begin(asked, request, answer, prepare)
            except (RefusedError, SiteError, OverlayError) as error:
                text = f'{str(error)[:3800]}{self._guest_hint(request)}'
                self.log.info('change refused', change=verb, name=request.name[:80], reason=text[:500])
                answer(self._response(False, text))

        return handle

    def _begin(self, asked: str, request: Any, answer: Callable[[Any], None],
               prepare: Callable[[Any], tuple[Overlay, str]]) -> None:
        if self._job is not None:
            raise RefusedError(f'another change is under way: {self._job.text}')
        if request.revision != self.site.overlay.revision:
            raise overlay_module.ConflictError(self.site.overlay.revision, int(request.revision))
        overlay, text = prepare(request)
        after = topology.checked(self.site, overlay, author=request.author, text=text, wall=self.clock.wall())
        plan = topology.plan(self.site, after, self._process)
        self._check_unfinished(plan, request.force)
        if request.dry_run:
            stops = f'; stops meanwhile: {", ".join(plan.stopped)}' if plan.stopped else ''
            answer(self._response(True, f'would have {text}{stops}'))
            return
        job = self._job = _Job(plan, request, [answer], asked, text, self.clock.now() + REST_S)
        self._stop(job)
        # In a turn of its own: nodes end, and this one is in the middle of a callback.
        job.looking = self.ctx.ticker.every(LOOK_S, lambda _: self._guarded(self._look, job))

    def _check_unfinished(self, plan: Plan, force: bool) -> None:
        running: list[str] = []
        gone = {s.name for s in plan.removed}
        for name in plan.disturbed:
            node = self.ctx.nodes.get(name)
            for one in (node, *node.guests()) if node is not None else ():
                now, later = one.unfinished()
                running += [*now, *later] if name in gone else now
        if running and not force:
            raise RefusedError(f'would break what is scheduled: {"; ".join(running[:5])}'
                               f'{f" and {len(running) - 5} more" if len(running) > 5 else ""}; '
                               'cancel it, or --force')

    # -- one change ----------------------------------------------------------------------------------

    def _stop(self, job: _Job) -> None:
        """Make safe what will be touched: what is made of others first, as when the site ends."""
        for name in reversed(job.plan.stopped):
            node = self.ctx.nodes[name]
            if node.is_active:
                node.trigger_deactivate()
                job.active.append(name)

    def _look(self, job: _Job) -> None:
        if job is not self._job:
            return
        moving = [text for name in job.plan.stopped if (text := self._moving(name, job))]
        if moving and self.clock.now() < job.deadline:
            return
        if job.looking is not None:
            job.looking.cancel()
        if moving:
            self._undo(job, f'not at rest after {REST_S:g} s: {"; ".join(moving)}')
            return
        try:
            self._carry_out(job)
        except Exception as error:  # whatever it is, the site must be as before
            if not isinstance(error, (RuntimeError, OverlayError)):
                self.log.exception('change failed', change=job.text)
            self._undo(job, str(error) or type(error).__name__)

    def _moving(self, name: str, job: _Job) -> str:
        """How a stopped battery is not at rest yet; '' = it is, or nobody can tell."""
        reading = getattr(self.ctx.nodes[name], 'reading', None)
        if reading is None:
            return ''
        if reading.quality != Quality.OK or isnan(reading.power):
            hint = f'{name}: no good measurement, rest not confirmed'
            if hint not in job.hints:
                job.hints.append(hint)
            return ''
        most = max((p for p in (reading.max_charge_power, reading.max_discharge_power) if not isnan(p)), default=0.0)
        return f'{name} at {reading.power:.0f} W' if abs(reading.power) > max(REST_W, REST_SHARE * most) else ''

    def _carry_out(self, job: _Job) -> None:
        plan, revision = job.plan, job.plan.after.overlay.revision
        names = {s.name for s in (*plan.removed, *plan.replaced)}
        guests = dict(self._guests())  # may become nodes of the site, and keep what they have
        for name in [s.name for s in reversed(plan.before.nodes) if s.name in names]:
            self._container.remove_node(name)
        known = {s.name for s in plan.before.nodes}
        for spec in plan.made:
            if spec.name not in known and spec.name not in guests:
                self._retire(spec.name, revision)  # what an earlier one of this name left must not run
            self._container.add_node(spec, activate=spec.name not in known or spec.name in job.active)
        overlay_module.write(self.ctx.state_dir, plan.after.overlay, expected=plan.before.overlay.revision)
        # From here on it holds, also when the process ends now.
        left = {s.name for s in plan.after.nodes}
        gone = [s.name for s in (*plan.removed, *plan.replaced) if s.name not in left]
        for name in (*gone, *(guest for guest, host in guests.items() if host in gone)):
            try:
                self._retire(name, revision)
            except OSError as error:  # done again before a node of this name is created
                job.hints.append(f'what {name} stored could not be put aside: {error.strerror or error}')
        self._container.adopt(plan.after)
        self._wake(job)
        self._finish(job, True, f'revision {revision}: {"; ".join([job.text, *job.hints])}')
        self._publish()

    def _undo(self, job: _Job, reason: str) -> None:
        """Everything as it was."""
        plan = job.plan
        before = {s.name for s in plan.before.nodes}
        touched = {s.name for s in (*plan.removed, *plan.replaced)}
        for spec in reversed(plan.made):
            node = self.ctx.nodes.get(spec.name)
            if node is not None and (spec.name not in before or node.params is spec.params):
                self._container.remove_node(spec.name)
        for spec in [s for s in plan.before.nodes if s.name in touched and s.name not in self.ctx.nodes]:
            try:
                self._container.add_node(spec, activate=False)
            except RuntimeError as error:
                self.raise_fault('batteries.rollback', Severity.ERROR, f'after "{job.text}" failed ({reason}): {error}')
                self._container.make([spec])  # tried again and again with the others that are not up
        self._wake(job)
        self._finish(job, False, f'nothing was changed: {reason}')

    def _wake(self, job: _Job) -> None:
        """Active again what was active and is still there."""
        for name in reversed(job.active):
            node = self.ctx.nodes.get(name)
            if node is not None and not node.is_active and node.trigger_activate() != SUCCESS:
                job.hints.append(f'{name} is not active again')

    def _finish(self, job: _Job, accepted: bool, message: str) -> None:
        if job.looking is not None:
            job.looking.cancel()
        self._job = None
        self.log.info('topology changed' if accepted else 'change failed', change=job.text, message=message,
                      author=job.request.author[:topology.MAX_AUTHOR], forced=job.request.force)
        response = self._response(accepted, message)
        if accepted:
            self._done = (job.asked, response)
        for answer in job.answers:
            answer(response)
        self._tidy.cancel()  # not at once: messages on their way still hold what was removed
        self._tidy = self.ctx.ticker.every(TIDY_S, lambda _: self._guarded(self._collect))

    def _collect(self) -> None:
        self._tidy.cancel()
        started = time.monotonic()
        self._container.collect()
        self.log.debug('removed nodes freed', pause_ms=round((time.monotonic() - started) * 1e3, 1))

    def _retire(self, name: str, revision: int) -> None:
        """Put aside what a node stored (schedule, ledger, statements, faults): one of the same name must not go on
        with it."""
        state = self.ctx.state_dir
        for path in [*(f for f in state.glob(f'*/{name}.*') if f.is_file()),
                     *(d for d in state.glob(f'*/{name}') if d.is_dir())]:
            if path.parent.name in KEPT:
                continue
            target = state / 'retired' / f'{revision}' / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target / path.name)

    def _response(self, accepted: bool, message: str) -> ChangeBattery.Response:
        return ChangeBattery.Response(accepted=accepted, revision=self.site.overlay.revision, message=message)

    # -- what there is -------------------------------------------------------------------------------

    def _on_list(self, request: ListBatteries.Request, response: ListBatteries.Response) -> Any:
        site = self.site
        response.revision = site.overlay.revision
        response.nodes = [n for n in self._all(with_parameters=True) if request.name in ('', n.name)]
        if request.name and not response.nodes:
            response.message = f'no node {request.name[:80]!r}'
            return response
        response.accepted = True
        for one in response.nodes:
            node = self.ctx.nodes.get(one.name)
            now, later = node.unfinished() if node is not None else ([], [])
            response.running = [*response.running, *now]
            response.pending = [*response.pending, *later]
        response.fragment = topology.fragment(site)
        response.history = [
            f'{c.revision} {datetime.fromtimestamp(c.wall, UTC):%Y-%m-%d %H:%M:%S} {c.author or "-"}: {c.text}'
            for c in site.overlay.history]
        return response

    def _guests(self) -> list[tuple[str, str]]:
        """Nodes of no site file and who made them."""
        return [(guest.get_name(), name) for name, node in self.ctx.nodes.items() for guest in node.guests()]

    def _guest_hint(self, request: Any) -> str:
        """What to do about batteries that the site does not know, as they were added while it runs."""
        named = {request.name, request.parent, *request.members}
        return ''.join(f'; {name} was added to {host} at run time: change it there, or name it among the children of '
                       f'{host} (configure) to make others of it' for name, host in self._guests() if name in named)

    def _all(self, *, with_parameters: bool) -> list[TopologyNode]:
        """The nodes of the site, and those that have joined it while it runs."""
        owners = topology.owners(self.site)
        nodes = [self._node(self.site, s, owners, with_parameters=with_parameters) for s in self.site.nodes]
        by_name = {n.name: n for n in nodes}
        for name, host in self._guests():
            if host not in by_name or name in by_name:
                continue
            parent = by_name[host]
            parent.children = [*parent.children, name]
            nodes.insert(nodes.index(parent) + len(parent.children), TopologyNode(
                name=name, type=f'{parent.type}_child', role='battery', process=parent.process, origin='created'))
        return nodes

    @staticmethod
    def _node(site: Site, spec: Any, owners: Mapping[str, str], *, with_parameters: bool) -> TopologyNode:
        d = topology.describe(site, spec, owners)
        if d['parameters'] and with_parameters:
            d['parameters'] = yaml.safe_dump(d['parameters'], sort_keys=False, allow_unicode=True)
        else:
            d['parameters'] = ''
        return TopologyNode(**d)

    def _publish(self) -> None:
        message = Topology(revision=self.site.overlay.revision, nodes=self._all(with_parameters=False))
        message.header.stamp = wall_stamp(self.clock.wall())
        self._topology.publish(message)


__all__ = ['NAME', 'Administrator', 'hosts']
