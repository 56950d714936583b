"""Scheduling of one logical battery: requests of its clients, admitted, durable, listed and cancelled.

A request passes four stations: what it asks for (value, times, limits), what the stored energy allows, what
everything below admits (`reservation_node`), and the journal on disk. Only then is it answered.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from math import inf, isnan, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from rclpy.qos import QoSProfile

from bess.msg import ScheduleEntry
from bess.srv import CancelSchedule, ListSchedule, ScheduleAt, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.clock import join_stamp
from bess_core.convert import wall_stamp
from bess_core.values import Quality, Severity

from . import plan as plans
from .admission import Token
from .journal import Committer, Journal, added, cancelled, remember
from .plan import EMPTY, NOTHING_WH, Plan
from .reservation_node import SOON_S, Reservations, stamp
from .schedule import Request, Schedule

if TYPE_CHECKING:
    from .logical_battery_node import LogicalBatteryNode

PRUNE_S = 60.0
REMEMBER_S = 3600.0  # how long an ended request is kept, should the clock be put back
LONGEST_ID, LONGEST_SOURCE = 128, 64
MOST_IDS, MOST_WITHDRAWN = 100, 2000  # in one withdrawal; remembered
MOST_GONE = 1000  # cancelled events that are remembered
WITHDRAWN = 'the request was withdrawn by the one who made it'
DEEP: QoSProfile = qos.SERVICE


class Wanted(NamedTuple):
    """One request as it came in."""

    value: float
    start: float
    end: float
    is_power: bool
    strict: bool
    request_id: str
    source: str


class Scheduling(Reservations):
    """Schedule, journal and services of one battery."""

    def __init__(self, node: LogicalBatteryNode) -> None:
        super().__init__(node)
        self.schedule = Schedule()
        self._committer: Committer | None = None
        self._planned, self._planned_version = EMPTY, -1  # plan of the schedule, and of which version of it
        self._answered: dict[str, Request] = {}
        self._waiting: dict[str, list[Callable[[Any], None]]] = {}  # by request id, while it is being admitted
        self._unsaved: set[int] = set()
        self._withdrawn: OrderedDict[str, None] = OrderedDict()  # ids that are refused from now on
        self._gone: OrderedDict[int, None] = OrderedDict()  # events that were cancelled
        self._taken_back: set[int] = set()  # withdrawn, but not yet so on disk
        self.services: list[Any] = []
        self._lowest_wall: deque[tuple[float, float]] = deque()  # (site time, wall time) of the last hour

    def open(self) -> None:
        """Restore the schedule, offer the services."""
        node = self.node
        file = node.ctx.state_dir / 'schedules' / f'{node.get_name()}.jsonl'
        file.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(file)
        content = journal.content
        for problem in content.problems:
            node.log.warning('schedule journal damaged', problem=problem)
        node.set_fault(bool(content.problems), 'schedule.journal', Severity.WARNING,
                       f'the journal of the schedule was damaged: {"; ".join(content.problems[:3])}')
        self._committer = Committer(journal, None if node.clock.simulated else node.ctx.post)
        self.schedule = Schedule(content.requests.values(), content.next_id)
        self._planned_version = -1
        self._answered = content.answered
        self._unsaved.clear()
        self._taken_back.clear()
        self._waiting.clear()
        self._lowest_wall.clear()
        super().open()
        self.services = [
            node.create_deferred_service(ScheduleSetCurrent, '~/schedule_set_current',
                                         partial(self._on_schedule, False), qos_profile=DEEP),
            node.create_deferred_service(ScheduleSetPower, '~/schedule_set_power',
                                         partial(self._on_schedule, True), qos_profile=DEEP),
            node.create_deferred_service(CancelSchedule, '~/cancel_schedule', self._on_cancel, qos_profile=DEEP),
            node.create_service(ListSchedule, '~/list_schedule', self._on_list),
            node.create_service(ScheduleAt, '~/schedule_at', self._on_at),
            self.service,
        ]
        node.every(PRUNE_S, lambda _: self.prune())
        self.changed()

    def close(self) -> None:
        """Take the services back and finish the journal."""
        self.give_up()
        if self._committer is not None:
            self._committer.close()
            self._committer = None
        for service in self.services:
            self.node.destroy_service(service)
        self.services = []
        super().close()

    # -- requests ------------------------------------------------------------------------------------

    def _on_schedule(self, is_power: bool, request: Any, answer: Callable[[Any], None]) -> None:
        make = ScheduleSetPower.Response if is_power else ScheduleSetCurrent.Response
        wanted = Wanted(float(request.power if is_power else request.current), seconds(request.start),
                        seconds(request.end), is_power, request.strict, request.request_id, request.source)
        if wanted.request_id in self._withdrawn:
            answer(make(message=WITHDRAWN, shortfall=nan))
            return
        if wanted.request_id and len(wanted.request_id) <= LONGEST_ID:
            before = self._answered.get(wanted.request_id)
            if before is not None and before.event_id not in self._unsaved:
                answer(self._again(make, before, wanted))
                return
            same = self._waiting.setdefault(wanted.request_id, [])
            same.append(answer)
            if len(same) > 1:
                return  # the answer of the first is theirs too

        def reply(response: Any) -> None:
            if not response.accepted:
                self.node.log.info('request refused', value=wanted.value, source=wanted.source, reason=response.message)
            for one in self._waiting.pop(wanted.request_id, [answer]) if wanted.request_id else [answer]:
                one(response)

        if not self.turns.enter(partial(self._admit, wanted, make, reply), patient=True):
            reply(make(message='too many requests wait for admission; try again later'))

    def _again(self, make: Any, before: Request, wanted: Wanted) -> Any:
        if not before.repeats(wanted.value, wanted.start, wanted.end, wanted.is_power):
            return make(message=f'request_id {before.request_id!r} was used for another request '
                                f'(event {before.event_id})', shortfall=nan)
        over = '' if self.schedule.get(before.event_id) else ', which has ended or was cancelled'
        return make(accepted=True, event_id=before.event_id, repeated=True, shortfall=nan,
                    message=f'accepted before as event {before.event_id}{over}')

    def _admit(self, wanted: Wanted, make: Any, reply: Callable[[Any], None], leave: Callable[[], None]) -> None:
        committer = self._committer
        if committer is None:  # closed while this one waited for its turn
            leave()
            return
        wall = self.node.clock.wall()
        made = WITHDRAWN if wanted.request_id in self._withdrawn else self._make(wanted, wall)
        if isinstance(made, str):
            reply(make(message=made, shortfall=nan))
            leave()
            return
        request, version = made, self.schedule.version
        begin = max(request.start, wall)
        power = self._power_of(request)
        own_before = self._own_plan(wall)
        own = plans.over(plans.single(begin, request.end, power), own_before)
        promised = self.book.promised()
        wanted_plan = plans.over(promised, own)
        reason = self._refused_for_promise(begin, request.end)
        forecast = self.foresee(wanted_plan)
        shortfall = forecast.within(wanted_plan, begin, request.end)
        others = 0.0  # Wh that other requests lack more than before
        if (short := sum(forecast.short) - shortfall) != 0.0:
            others = short - self._short_outside(plans.over(promised, own_before), begin, request.end)
        if not reason and wanted.strict:
            if isnan(shortfall):
                reason = 'strict: the stored energy is not known'
            elif shortfall > NOTHING_WH:
                reason = f'strict: {self._runs_out(forecast, wanted_plan, begin, request.end, power)}'
            elif others > NOTHING_WH:
                reason = f'strict: other requests would lack {others:.0f} Wh'
        if reason:
            reply(make(message=reason, shortfall=shortfall))
            leave()
            return

        def prepared(refusal: str, hints: list[str], token: Token | None) -> None:
            if not refusal and request.request_id in self._withdrawn:  # while the members were asked
                self.abort_below(token)
                reply(make(message=WITHDRAWN, shortfall=nan))
                leave()
                return
            if refusal:
                reply(make(message=f'not admitted below: {refusal}', shortfall=nan))
                leave()
                return
            same = self.schedule.version == version  # nothing was withdrawn while the members were asked
            overlays = self.schedule.insert(request)
            self._unsaved.add(request.event_id)
            remember(self._answered, request)
            if same and self._planned_version == version and request.is_power:
                self._planned, self._planned_version = own, self.schedule.version
            self.own = own if same else self._own_plan(wall)
            self.changed()
            self.commit_below(token)
            response = make(accepted=True, event_id=request.event_id, shortfall=shortfall)
            if shortfall > NOTHING_WH:
                response.runs_out = wall_stamp(self._when(forecast, wanted_plan, begin, request.end, power))
            hints = [*self._hints(request, overlays, begin, wall), *hints]
            if shortfall > NOTHING_WH:
                hints.append(self._runs_out(forecast, wanted_plan, begin, request.end, power))
            if others > NOTHING_WH:
                hints.append(f'other requests will lack {others:.0f} Wh')
            response.message = '; '.join(h for h in hints if h)
            committer.submit(added(request), partial(self._saved, committer, request, response, make, reply))
            leave()

        self.prepare_below(wanted_plan, wanted.strict, prepared)

    def _make(self, wanted: Wanted, wall: float) -> Request | str:
        for text, longest, name in ((wanted.request_id, LONGEST_ID, 'request_id'),
                                    (wanted.source, LONGEST_SOURCE, 'source')):
            if len(text) > longest:
                return f'{name} has {len(text)} characters, at most {longest} are allowed'
            if not text.isprintable():
                return f'{name} has characters that cannot be printed'
        node = self.node
        later = wanted.start > wall + SOON_S
        low, high = (node.power_bounds if wanted.is_power else node.current_bounds)(later=later)
        if node.reading.quality == Quality.INVALID and wanted.value != 0.0:
            return 'the battery has no valid measurement: limits are unknown'
        # A stop (0) is always within bounds, also of a battery that is full, empty or unknown.
        return self.schedule.make(
            wanted.value, wanted.start, wanted.end, now=wall, is_power=wanted.is_power, source=wanted.source,
            request_id=wanted.request_id, bounds=(min(low, 0.0), max(high, 0.0)))

    def _refused_for_promise(self, begin: float, end: float) -> str:
        for owner, promised in self.book.others('').items():
            both = plans.clash(promised, plans.single(begin, end, 0.0))
            if both is not None:
                return f'promised to {owner} from {stamp(both[0])} to {stamp(both[1])}'
        return ''

    def _saved(self, committer: Committer, request: Request, response: Any, make: Any, reply: Callable[[Any], None],
               error: Exception | None) -> None:
        """The journal has it, or not."""
        if committer is not self._committer:
            return  # closed meanwhile; what is on disk is there after the restart, and a retry by its id finds it
        self._unsaved.discard(request.event_id)
        if error is not None:
            self.schedule.remove([request.event_id])
            self._answered.pop(request.request_id, None)
            self._own_changed()
            reply(make(message=f'the request could not be saved: {error}', shortfall=nan))
            return
        if self.schedule.get(request.event_id) is None:
            reply(make(message=WITHDRAWN, shortfall=nan))
            return
        self.node.log.info('request accepted', event_id=request.event_id, value=request.value,
                           unit='W' if request.is_power else 'A', start=request.start, end=request.end,
                           source=request.source)
        node = self.node
        if request.start <= node.clock.wall() or max(node.lead) > 0.0:  # else the ticks are soon enough
            node.drive(node.clock.now())
        reply(response)

    def _hints(self, request: Request, overlays: str, begin: float, wall: float) -> list[str]:
        node = self.node
        hints = [overlays]
        order = node.order()
        if order is not None:
            hints.append(f'{order.source} holds a setpoint that goes before the schedule while it lasts')
        if not node.is_active:
            hints.append('the battery is not active: nothing runs until it is')
        late = node.reading.lead_time - (begin - wall)
        if late > 0.0 and request.value != 0.0:
            hints.append(f'takes effect up to {late:.0f} s late: the lead time is {node.reading.lead_time:.0f} s')
        return hints

    def _short_outside(self, plan: Plan, begin: float, end: float) -> float:
        forecast = self.foresee(plan)
        return sum(forecast.short) - forecast.within(plan, begin, end)

    def _when(self, forecast: plans.Forecast, plan: Plan, begin: float, end: float, power: float) -> float:
        """When the battery cannot follow this request any more: the first moment of it that is not served."""
        if begin <= forecast.runs_out < end:
            return forecast.runs_out
        for short, a, b in zip(forecast.short, plan.times, plan.times[1:], strict=False):
            if short > NOTHING_WH and a < end and b > begin:
                return max(a, begin, min(b, end) - short / abs(power) * 3600.0)
        return end

    def _runs_out(self, forecast: plans.Forecast, plan: Plan, begin: float, end: float, power: float) -> str:
        when = self._when(forecast, plan, begin, end, power)
        what = 'empty' if power < 0 else 'full'
        return f'the battery will be {what} after about {(when - begin) / 60:.0f} min of it ({stamp(when)})'

    def _on_cancel(self, request: CancelSchedule.Request, answer: Callable[[Any], None]) -> None:
        committer = self._committer
        if len(request.request_ids):
            self._withdraw(list(request.request_ids), answer)
            return
        ids = self.schedule.ids(int(request.event_id))
        if not ids and request.event_id in self._gone:  # asked again: the answer was lost
            answer(CancelSchedule.Response(accepted=True, message=f'event {request.event_id} was cancelled before'))
            return
        if not ids or committer is None:
            none = request.event_id == 0
            answer(CancelSchedule.Response(
                accepted=none, message='the schedule is empty' if none else f'there is no event {request.event_id}'))
            return

        def done(error: Exception | None) -> None:
            if committer is not self._committer:
                return
            if error is not None:
                answer(CancelSchedule.Response(message=f'the cancellation could not be saved: {error}'))
                return
            count = self.schedule.remove(ids)
            for event_id in ids:
                self._gone[event_id] = None
            while len(self._gone) > MOST_GONE:
                self._gone.popitem(last=False)
            self._own_changed()
            self.node.log.info('requests cancelled', event_id=int(request.event_id) or 'all', count=count)
            self.node.drive(self.node.clock.now())
            answer(CancelSchedule.Response(accepted=True, cancelled=count))

        committer.submit(cancelled(ids), done)

    def _withdraw(self, request_ids: list[str], answer: Callable[[Any], None]) -> None:
        """Take requests back by the ids of their callers, wherever they are: accepted, being admitted or still to come.

        They stop deciding at once; answered when that is on disk.
        """
        committer = self._committer
        if committer is None or len(request_ids) > MOST_IDS or not all(0 < len(i) <= LONGEST_ID for i in request_ids):
            answer(CancelSchedule.Response(
                message=f'request_ids are at most {MOST_IDS} texts of 1 to {LONGEST_ID} characters'))
            return
        for request_id in request_ids:
            self._withdrawn[request_id] = None
            self._withdrawn.move_to_end(request_id)
        while len(self._withdrawn) > MOST_WITHDRAWN:
            self._withdrawn.popitem(last=False)
        wanted = set(request_ids)
        found = [r.event_id for r in self.schedule.all() if r.request_id in wanted]
        self._taken_back.update(found)
        if found:
            self.schedule.remove(found)
            self._own_changed()
            self.node.drive(self.node.clock.now())
        events = sorted(self._taken_back)
        if not events:
            answer(CancelSchedule.Response(accepted=True))
            return

        def done(error: Exception | None) -> None:
            if committer is not self._committer:
                return
            if error is not None:
                answer(CancelSchedule.Response(message=f'the withdrawal could not be saved: {error}'))
                return
            self._taken_back.difference_update(events)
            self.node.log.info('requests withdrawn', events=found)
            answer(CancelSchedule.Response(accepted=True, cancelled=len(found)))

        committer.submit(cancelled(events), done)

    def forget(self) -> None:
        """Take back every request, now; the journal follows (a failure there is logged, not answered)."""
        ids = self.schedule.ids(0)
        if not ids:
            return
        self.schedule.remove(ids)
        self._own_changed()

        def done(error: Exception | None) -> None:
            if error is not None:
                self.node.log.error('cancelled requests could not be saved', reason=str(error))

        if self._committer is not None:
            self._committer.submit(cancelled(ids), done)

    def _own_changed(self) -> None:
        self.own = self._own_plan(self.node.clock.wall())
        self.changed()
        self.readmit()

    # -- what runs -----------------------------------------------------------------------------------

    def running(self, wall: float) -> Request | None:
        """The own request that decides now; one that is not yet on disk does not."""
        request = self.schedule.at(wall)
        return None if request is None or request.event_id in self._unsaved else request

    def unsaved(self, wall: float) -> bool:
        """Whether what decides now is on its way to the disk."""
        request = self.schedule.at(wall)
        return request is not None and request.event_id in self._unsaved

    def _power_of(self, request: Request) -> float:
        power = request.value if request.is_power else self.node.power_of_current(request.value)
        return 0.0 if isnan(power) else power

    def _own_plan(self, wall: float) -> Plan:
        """What the schedule asks for from `wall` on; worked out anew only when it has changed."""
        if self._planned_version != self.schedule.version:
            self._planned = plans.of_schedule(self.schedule, wall, self._power_of)
            # A current is another power as soon as the voltage is another one.
            steady = all(r.is_power for r in self.schedule.all())
            self._planned_version = self.schedule.version if steady else -1
        return plans.from_now(self._planned, wall)

    def readmit(self) -> None:
        """As `Reservations.readmit`, with currents at the present voltage."""
        self.own = self._own_plan(self.node.clock.wall())
        self.changed()
        super().readmit()

    def who(self, at: float) -> str:
        """Own event at a time."""
        request = self.schedule.at(at)
        return f'(event {request.event_id}) ' if request is not None else ''

    def prune(self) -> None:
        """Forget requests that ended long ago, also by a clock that was put forward meanwhile and back again."""
        now, wall = self.node.clock.now(), self.node.clock.wall()
        self._lowest_wall.append((now, wall))
        if now - self._lowest_wall[0][0] < REMEMBER_S:
            return
        while now - self._lowest_wall[0][0] > REMEMBER_S:
            self._lowest_wall.popleft()
        self.schedule.prune(min(w for _, w in self._lowest_wall))
        committer = self._committer
        if committer is not None and not self._unsaved and committer.journal.worth_compacting(len(self.schedule)):
            live = {r.event_id for r in self.schedule.all()}
            past = [r for r in self._answered.values() if r.event_id not in live]
            committer.submit(partial(committer.journal.compact, self.schedule.all(), self.schedule.next_id, past),
                             self._compacted)

    def _compacted(self, error: Exception | None) -> None:
        if error is not None:
            self.node.log.warning('journal not shortened', reason=str(error))

    # -- questions -----------------------------------------------------------------------------------

    def _entries(self, wall: float) -> list[Request]:
        return [r for r in self.schedule.entries(wall) if r.event_id not in self._unsaved]

    def _on_list(self, request: ListSchedule.Request, response: ListSchedule.Response) -> Any:
        wall = self.node.clock.wall()
        at = seconds(request.at) or wall
        running = self.schedule.at(wall)
        response.entries = [entry(r, r is running) for r in self._entries(wall)]
        there = self.running(at)
        response.active_at = there is not None
        if there is not None:
            response.is_power_at, response.value_at = there.is_power, float(there.value)
            response.event_id_at = there.event_id
        return response

    def _on_at(self, request: ScheduleAt.Request, response: ScheduleAt.Response) -> Any:
        at = seconds(request.at) or self.node.clock.wall()
        response.power = nan
        promised = self.book.plan.at(at)
        request_at = self.running(at)
        if promised == promised:
            response.active, response.is_power, response.owner = True, True, self.book.owner_at(at)
            response.value = response.power = promised
        elif request_at is not None:
            response.active, response.event_id, response.is_power = True, request_at.event_id, request_at.is_power
            response.value, response.source = request_at.value, request_at.source
            response.power = request_at.value if request_at.is_power else self.node.power_of_current(request_at.value)
        changes = [t for t in (self.book.plan.next_change(at)[0], self.schedule.next_boundary(at)) if t is not None]
        until = min((t for t in changes if t == t), default=inf)
        if until < inf:
            response.until = wall_stamp(until)
        return response


def seconds(time: Any) -> float:
    """Absolute time of a stamp."""
    return join_stamp(time.sec, time.nanosec)


def entry(request: Request, running: bool) -> ScheduleEntry:
    """For the list."""
    return ScheduleEntry(
        event_id=request.event_id, start=wall_stamp(request.begins), end=wall_stamp(request.end),
        is_power=request.is_power, value=float(request.value), source=request.source, running=running,
        request_id=request.request_id, accepted=wall_stamp(request.accepted))
