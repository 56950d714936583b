"""Two-phase admission of plans: what a battery promises to its owner, and asks of its members.

A battery that is to follow a new plan first asks everything below it to hold its share (PREPARE), recursively;
when all agree the plan is put into force (COMMIT), else dropped (ABORT). Members in the same process are
asked by a call, others by the service `~/reserve`, with the same rules: docs/schedules.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any

from bess.srv import Reserve
from bess_core.calls import Call
from bess_core.values import BatteryReading, Quality, Severity

from .admission import RENEW_S, Admission, Answer, Ask, Done, Part, Prepared, Together, Token, by_text
from .book import Book, HoldNumbers, Turns
from .plan import EMPTY, NOTHING_WH, Forecast, Plan, beyond, checked, clash, foresee, from_now, lately, over, total

if TYPE_CHECKING:
    from .logical_battery_node import LogicalBatteryNode

ANSWER_S = 1.5  # how long a member in another process may take to answer
FROM_ABOVE = 1.5  # times as late renews who has no plan of its own: its owner does so first, and that comes down
RETRY_S = 2.0  # how soon after a plan that was not admitted
TOLERANCE = 0.01  # by which a member's limit may have moved since its owner read it
MOST_ASKED = 500  # questions of owners whose answers are remembered
SOON_S = 5.0  # what begins later than this may use limits that are only reached later

PREPARE, COMMIT, ABORT = Reserve.Request.PREPARE, Reserve.Request.COMMIT, Reserve.Request.ABORT


class Reservations:
    """Book of one battery, and its questions to the members below."""

    def __init__(self, node: LogicalBatteryNode) -> None:
        self.node = node
        self.book = Book()
        self.own = EMPTY  # plan of the own schedule
        self.plan = EMPTY  # what is asked of this battery: promises in force before the own schedule
        self._clients: dict[str, Any] = {}
        # Questions of owners and their answers, or who waits for it.
        self._asked: OrderedDict[tuple[int, str, int, bytes], Answer | list[Done]] = OrderedDict()
        self._renew_at = 0.0
        self._sent = False  # members hold a plan of this battery
        self._refused = False  # they did not admit the whole plan when it was sent again: `schedule.not_admitted`
        self.is_open = False

    def open(self) -> None:
        """Be known to members and owners."""
        node = self.node
        label = node.owner_label
        self.turns, self._numbers = node.ctx.shared.setdefault('admission', {}).setdefault(
            label, (Turns(node.ctx.post), HoldNumbers()))
        for member in node.members_below():
            if member not in node.ctx.nodes and member not in self._clients:
                self._clients[member] = node.create_client(Reserve, node.ctx.topic(f'{member}/reserve'))
        self.service = node.create_deferred_service(Reserve, '~/reserve', self._on_reserve)
        self.is_open = True

    def give_up(self) -> None:
        """Answer what still waits for members, while it can be answered."""
        for call in list(self.node.open_calls):
            call.give_up('the battery is shutting down')
        self.is_open = False

    def close(self) -> None:
        """Forget promises and members; owners find out when they renew."""
        for client in self._clients.values():
            self.node.destroy_client(client)
        self._clients.clear()
        self._asked.clear()
        self.book = Book()
        self.own = self.plan = EMPTY

    # -- asked from above ----------------------------------------------------------------------------

    def _on_reserve(self, request: Reserve.Request, answer: Callable[[Any], None]) -> None:
        def done(given: Answer) -> None:
            if self.is_open:
                answer(Reserve.Response(accepted=given.accepted, message=given.message,
                                        runs_out=float(given.runs_out)))

        try:
            plan = checked(request.times, request.powers)
            if not request.owner or len(request.owner) > 256:
                raise ValueError('the owner needs a name of at most 256 characters')
            if not 0.0 < request.hold_time <= 60.0 or not 0.0 < request.keep_time <= 3600.0:
                raise ValueError('hold_time must be in (0, 60] s and keep_time in (0, 3600] s')
            if request.hold == 0 or request.phase not in (PREPARE, COMMIT, ABORT):
                raise ValueError(f'hold {request.hold} or phase {request.phase} is not allowed')
        except ValueError as error:
            done(Answer(False, str(error)))
            return
        ask = Ask(request.phase, request.owner, request.hold, plan, request.strict, request.hold_time,
                  request.keep_time)
        # Asked again because the answer was lost: it is done once, and answered as before.
        key = (ask.phase, ask.owner, ask.hold, b''.join(a.tobytes() for a in plan.arrays))  # NaN is not equal to NaN
        before = self._asked.get(key)
        if isinstance(before, list):
            before.append(done)
            return
        if before is not None and (ask.phase != PREPARE or not before.accepted or self.book.knows(ask.owner, ask.hold)):
            done(before)
            return
        waiting: list[Done] = [done]
        self._asked[key] = waiting

        def answered(given: Answer) -> None:
            self._asked[key] = given
            while len(self._asked) > MOST_ASKED:
                self._asked.popitem(last=False)
            for one in waiting:
                one(given)

        self.reserve(ask, answered)

    def reserve(self, ask: Ask, done: Done) -> None:
        """Answer a question of an owner, also one of this process."""
        if ask.phase == PREPARE:
            part = Part(self, ask, done)
            together = ask.together
            if together is None or not self.node.together or not together.gather(part):
                self.admit([part])
        elif ask.phase == ABORT:
            self._tell_below(ABORT, self.book.abort(ask.owner, ask.hold))
            done(Answer(True))
        else:
            reason, token = self.book.commit(ask.owner, ask.hold, self.node.clock.now() + ask.keep_time)
            self._tell_below(COMMIT, token)
            self.changed()
            done(Answer(not reason, reason))

    def admit(self, parts: list[Part]) -> None:
        """Admit these in one turn, all or none: this battery alone, or with siblings that share its turns."""
        if not self.turns.enter(Admission(parts)):
            for part in parts:
                part.done(Answer(False, 'too many requests wait for admission'))

    def examine(self, part: Part) -> str:
        """Why this battery cannot promise what is asked, as far as it decides itself; '' when it can."""
        if not self.is_open:
            return 'it is shutting down'
        part.book = self.book
        ask, wall = part.ask, self.node.clock.wall()
        plan = part.plan = lately(ask.plan, wall)
        reason = self._refusal(ask.owner, plan, wall)
        if reason:
            return reason
        wanted = part.wanted = over(total([plan, self.book.rest(ask.owner)]), self.own)
        forecast = part.forecast = self.foresee(wanted)
        if ask.strict and sum(forecast.short) > sum(self.foresee(self.wanted()).short) + NOTHING_WH:
            return f'the stored energy does not serve it: {self.words(forecast.runs_out, wanted)}'
        return ''

    def _refusal(self, owner: str, plan: Plan, wall: float) -> str:
        """Why this battery cannot promise a plan, by its own limits and other promises; '' when it can."""
        node = self.node
        if not plan.times:
            return ''
        both = clash(plan, self.own)
        if both is not None:
            return (f'its own schedule {self.who(both[0])}runs from {stamp(both[0])} to {stamp(both[1])}')
        for other, promised in self.book.others(owner).items():
            both = clash(plan, promised)
            if both is not None:
                return f'promised to {other} from {stamp(both[0])} to {stamp(both[1])}'
        lowest, highest, _, _ = plan.bounds
        if lowest == 0.0 == highest:
            return ''  # to rest is within all limits, also unknown ones
        if node.reading.quality == Quality.INVALID:
            rests = all(p != p or p == 0.0 for p in plan.powers)
            return '' if rests else 'it has no valid measurement: limits are unknown'
        present = widened(node.power_bounds(later=False))
        if present[0] <= lowest and highest <= present[1]:
            return ''  # those of later are never narrower
        later = widened(node.power_bounds(later=True))
        outside = beyond(plan, wall, present, later, SOON_S)
        if outside is not None:
            low, high = present if outside[0] <= wall + SOON_S else later
            return f'{outside[1]:.0f} W is outside of {low:.0f} to {high:.0f} W'
        return ''

    def who(self, at: float) -> str:
        """Own event that runs at a time, for reasons."""
        return ''

    # -- asking below --------------------------------------------------------------------------------

    def prepare_below(self, plan: Plan, strict: bool, done: Prepared) -> None:
        """Let everything below hold its share of the plan; all or nothing."""
        self.ask_below(self.node.plans_below(plan), strict, done)

    def ask_below(self, shares: list[tuple[str, Plan]], strict: bool, done: Prepared) -> None:
        """Let members hold these plans; all or nothing."""
        node = self.node
        if not shares:
            done('', [], None)
            return
        hold = self._numbers.next(node.clock.wall())
        answers: dict[str, Answer] = {}

        def answered(member: str, answer: Answer) -> None:
            answers[member] = answer
            if len(answers) < len(shares):
                return
            held = tuple(m for m, a in answers.items() if a.accepted)
            token = Token(hold, held)
            if len(held) < len(answers):
                self._tell_below(ABORT, token)
                refused = {m: a for m, a in answers.items() if not a.accepted}
                done('; '.join(by_text(refused)) or f'{", ".join(refused)}: refused', [], None)
            else:
                done('', by_text(answers), token)

        label = node.owner_label
        together = Together() if len(shares) > 1 else None
        for member, share in shares:
            node.ask_member(member, Ask(PREPARE, label, hold, share, strict, together=together),
                            partial(answered, member))
        if together is not None:
            together.go()

    def commit_below(self, token: Token | None) -> None:
        """Put into force what is held below."""
        self._tell_below(COMMIT, token)

    def abort_below(self, token: Token | None) -> None:
        """Drop what is held below."""
        self._tell_below(ABORT, token)

    def _tell_below(self, phase: int, token: Token | None) -> None:
        if token is None:
            return
        if phase == COMMIT:  # the whole plan
            self._sent = True
            if not self._refused:
                self._renew_later()
        if token.told:  # by one that was admitted together with this
            if phase != token.told:
                self._differs(phase)
            return
        token.told = phase

        def told(member: str, answer: Answer) -> None:
            if not answer.accepted and phase == COMMIT:
                self.node.log.warning('plan not in force at a member', member=member, reason=answer.message)
                self.renew_soon()

        label = self.node.owner_label
        for member in token.members:
            self.node.ask_member(member, Ask(phase, label, token.hold), partial(told, member))

    def _differs(self, phase: int) -> None:
        """Of batteries that were admitted together some are in force and some are not: what lies below has too much
        or too little. One of them lost its hold, or its owner half of its words."""
        self._sent = True
        self.renew_soon()
        self.node.log.warning('plan not in force as it was admitted', reason='held too long'
                              if phase == COMMIT else 'a battery that was admitted together with this is in force')

    def ask(self, member: str, ask: Ask, done: Done) -> None:
        """Ask one member of this site: in this process directly, else by service, else judge it by its status."""
        local = getattr(self.node.ctx.nodes.get(member), 'scheduling', None)
        if local is not None:
            if local.is_open:
                local.reserve(ask, done)
            else:
                done(Answer(False, 'it is not configured'))
            return
        client = self._clients.get(member)
        if client is None or not (client.service_is_ready() or self._keeps_a_book(member)):
            done(self._by_status(member, ask))
            return

        def heard(answer: Any, reason: str) -> None:
            done(Answer(False, reason) if answer is None else Answer(answer.accepted, answer.message, answer.runs_out))

        Call(self.node, client, Reserve.Request(
            phase=ask.phase, owner=ask.owner, hold=ask.hold, hold_time=ask.hold_time, keep_time=ask.keep_time,
            strict=ask.strict, times=[float(t) for t in ask.plan.times], powers=[float(p) for p in ask.plan.powers]),
            ANSWER_S, heard)

    def _keeps_a_book(self, member: str) -> bool:
        """Whether the site file says that it is a logical battery: then it is waited for until it can be asked."""
        site = self.node.ctx.site
        return site is not None and any(n.name == member and n.role == 'battery' for n in site.nodes)

    def _by_status(self, member: str, ask: Ask) -> Answer:
        """A member that keeps no book (plain hardware) is judged by its last status; nothing is held there."""
        if ask.phase != PREPARE:
            return Answer(True)
        reading = self.node.member_reading(member)
        if all(p != p or p == 0.0 for p in ask.plan.powers):
            return Answer(True)
        if reading is None or reading.quality == Quality.INVALID:
            return Answer(False, 'it cannot be reached')
        volts = reading.voltage
        bounds = widened((-power_limit(reading.max_discharge_power, reading.max_discharge_current, volts),
                          power_limit(reading.max_charge_power, reading.max_charge_current, volts)))
        wall = self.node.clock.wall()
        outside = beyond(from_now(ask.plan, wall), wall, bounds, (-float('inf'), float('inf')), SOON_S)
        if outside is not None:
            return Answer(False, f'{outside[1]:.0f} W is outside of {bounds[0]:.0f} to {bounds[1]:.0f} W')
        return Answer(True)

    # -- in force ------------------------------------------------------------------------------------

    def wanted(self) -> Plan:
        """What is asked of this battery, with what is only held."""
        return over(self.book.promised(), self.own)

    def changed(self) -> None:
        """The own schedule or a promise changed: what is planned now?"""
        self.plan = over(self.book.plan, self.own)

    def renew_soon(self) -> None:
        """Send the plan to the members again shortly."""
        self._renew_at = min(self._renew_at, self.node.clock.now() + RETRY_S)

    def _renew_later(self) -> None:
        self._renew_at = self.node.clock.now() + RENEW_S * (1.0 if self.own.times else FROM_ABOVE)

    def readmit(self) -> None:
        """Have the members admit the present plan anew: after a change of membership, a restart, a cancellation.

        What they refuse stays accepted here and is a fault (`schedule.not_admitted`) until they admit it.
        """
        self._renew_later()
        if self.plan.times or self.book.promised().times or self._sent:
            self.turns.enter(self._readmit)

    def _readmit(self, leave: Callable[[], None]) -> None:
        node = self.node
        if not self.is_open:
            leave()
            return
        plan = from_now(self.wanted(), node.clock.wall())

        def prepared(refusal: str, _: list[str], token: Token | None) -> None:
            self._refused = bool(refusal)
            if refusal:
                self.renew_soon()
            else:
                self.commit_below(token)
                self._sent = plan.asks()
            node.set_fault(bool(refusal), 'schedule.not_admitted', Severity.ERROR,
                           f'accepted requests are not admitted below any more: {refusal}')
            leave()

        self.prepare_below(plan, False, prepared)

    def tick(self, now: float) -> None:
        """Plans that are over, and the renewal of the own plan."""
        if len(self.book):
            tokens, dropped = self.book.expire(now)
            for token in tokens:
                self._tell_below(ABORT, token)
            if dropped:
                self.node.log.warning('plans dropped: not renewed', owners=', '.join(dropped))
                self.changed()
                self.readmit()
        if now >= self._renew_at and (self.own.times or self._sent):
            self.readmit()

    def foresee(self, plan: Plan) -> Forecast:
        """What the stored energy does with a plan, from now on."""
        reading: BatteryReading = self.node.reading
        return foresee(plan, self.node.clock.wall(), reading.energy, reading.energy_full, *self.node.efficiencies)

    def words(self, runs_out: float, plan: Plan) -> str:
        """Forecast in words; '' when the battery lasts."""
        if isnan(runs_out):
            return ''
        return f'{"empty" if plan.at(runs_out) < 0 else "full"} at {stamp(runs_out)}'


def known(limit: float) -> float:
    """An unknown limit allows nothing."""
    return limit if limit > 0 else 0.0


def power_limit(power: float, current: float, voltage: float) -> float:
    """Limit in W of a member that keeps no book; from its limit in A where it gives no limit in W."""
    return known(power if power == power else current * voltage)


def widened(bounds: tuple[float, float]) -> tuple[float, float]:
    """Limits with the tolerance of a member."""
    return bounds[0] * (1 + TOLERANCE) - 1.0, bounds[1] * (1 + TOLERANCE) + 1.0


def stamp(wall: float) -> str:
    """UTC, for reasons in words."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(wall, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    except (ValueError, OverflowError, OSError):
        return f'{wall:g} s'
