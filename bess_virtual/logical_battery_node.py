"""The contract of a logical battery, the same for every kind.

Topics `~/status`, `~/battery_state`; orders on `~/setpoint` and `~/setpoint_current`; services
`~/get_status` and those of the schedule (`scheduling_node`). A leased setpoint overrides the schedule
while its lease lasts. A kind of battery fills in `measure` (what it is now) and `command` (what to ask of
what lies below); one with batteries below also `members_below` and `plans_below` (what a plan asks of each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CurrentSetpoint, PowerSetpoint
from bess.srv import GetStatus
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import battery_to_msg, battery_to_state, order_from_msg, sent_at
from bess_core.leases import LeaseHolder, Order
from bess_core.log import Refusals
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Quality, Severity

from .admission import Ask, Done
from .demand import Demand, Release, resting
from .lead import Ahead, LeadTimes, Measured, ahead
from .plan import Plan
from .plan_shares import Highest
from .reservation_node import known
from .schedule import Schedule
from .scheduling_node import Scheduling

LAYERS = 4  # periods that a change of the topmost battery takes to the lowest at most
BRIDGE_S = 1.0  # how long an order that went out early is kept until the owner's own order arrives
AT_ONCE = LeadTimes()
STALE_FAULT_S = 1.0  # a status that is stale for longer is a fault; a single late poll is none


@dataclass(frozen=True, kw_only=True)
class LogicalBatteryParams:
    """Parameters of every logical battery."""

    period: float = param(0.1, 's', 'how often requests and leases are looked at', low=0.01, high=60.0)
    max_age: float = param(2.0, 's', 'older values are STALE', low=0.05, high=3600.0)
    invalid_after: float = param(10.0, 's', 'older values are INVALID', low=0.1, high=86400.0)
    max_lease: float = param(60.0, 's', 'longest lease of a setpoint', low=0.1, high=3600.0)
    rest_tolerance: float = param(50.0, 'W', 'a battery asked to rest is believed to when less flows', low=0.0)
    rest_timeout: float = param(15.0, 's', 'a battery asked to rest that does not after so long is a fault',
                                low=0.1, high=3600.0)


class LogicalBatteryNode(BessNode):
    """Base of unit, aggregate, partition and remote."""

    role: ClassVar[str] = 'battery'
    Params: ClassVar[type] = LogicalBatteryParams

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.reading = BatteryReading()
        self.demand: Demand | None = None
        self.scheduling = Scheduling(self)
        self.highest = Highest()  # limits, of all that was measured
        self.lead_measured = Measured()
        self._early: Ahead | None = None  # ordered ahead of its time at present
        self._bridge: Ahead | None = None  # what was ordered ahead last
        self._leases = LeaseHolder(parameters.max_lease)
        self._refusals = Refusals(self.log, 'setpoint refused')
        self.parts: frozenset[str] = frozenset({''})  # what is heard of below; '' = one thing without a name
        self._heard: set[str] = set()  # of `parts`, since the last refresh
        self._refresh_posted = False
        self._last_drive = -inf
        self._last_publish = -inf
        self._sound_at = -inf  # s, when the quality was OK last
        self._release = Release()

    # -- what a kind of battery provides -----------------------------------------------------------

    def measure(self, now: float) -> BatteryReading:
        """State of the battery now, from what was received so far."""
        raise NotImplementedError(f'{type(self).__name__} does not measure')

    def command(self, demand: Demand | None, now: float) -> None:
        """Pass the demand on to what lies below; None = nobody asks (any more)."""
        raise NotImplementedError(f'{type(self).__name__} does not take commands')

    def power_of_current(self, current: float) -> float:
        """W at the power terminals for a current in A at the battery's own voltage; NaN while unknown."""
        return current * self.reading.voltage

    def members_below(self) -> list[str]:
        """Batteries below that admit plans of this one."""
        return []

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """What a plan of this battery asks of each of `members_below`; to be called again when they change."""
        return []

    together: ClassVar[bool] = False  # whether siblings (see `owner_label`) that one owner asks at once are admitted so

    def plans_together(self, plans: Mapping[str, Plan]) -> list[tuple[str, Plan]]:
        """As `plans_below`, for several siblings: name -> plan of each that gets a new one."""
        raise NotImplementedError(f'{type(self).__name__} is not admitted together with others')

    def member_reading(self, member: str) -> BatteryReading | None:
        """Last reading of a member, for one that keeps no book of promises."""
        return None

    def ask_member(self, member: str, ask: Ask, done: Done) -> None:
        """Put a question of admission to a member; `done(answer)` in the executor thread, now or later."""
        self.scheduling.ask(member, ask, done)

    @property
    def owner_label(self) -> str:
        """Under which name members know this battery as the one that commands them."""
        return self.name

    @property
    def efficiencies(self) -> tuple[float, float]:
        """Charge and discharge efficiency between power terminals and stored energy, for forecasts."""
        return 1.0, 1.0

    @property
    def lead(self) -> LeadTimes:
        """Lead times with which this battery itself orders ahead of its plan (s)."""
        return AT_ONCE

    @property
    def lead_time(self) -> float:
        """Longest lead time of this battery and all below, s."""
        return max(self.lead)

    # -- lifecycle -----------------------------------------------------------------------------------

    def on_bess_configure(self) -> None:
        """Restore the schedule and offer the contract."""
        self._status = self.create_publisher(BatteryStatus, '~/status', qos.MEASUREMENT)
        self._state = self.create_publisher(BatteryState, '~/battery_state', qos.MEASUREMENT)
        self._entities: list[Any] = [
            self.create_subscription(PowerSetpoint, '~/setpoint', self._on_setpoint, qos.SETPOINT),
            self.create_subscription(CurrentSetpoint, '~/setpoint_current', self._on_current_setpoint, qos.SETPOINT),
        ]
        self._services_own = [self.offer_get_status()]
        self.every(self.params.period, self._on_tick, phase=2)
        self.configure_battery()
        self.scheduling.open()

    def configure_battery(self) -> None:
        """Kind-specific part of configure."""

    def offer_get_status(self) -> Any:
        """The service `~/get_status`."""
        return self.create_service(GetStatus, '~/get_status', self._on_get_status)

    def on_bess_deactivate(self) -> None:
        """Ask nothing any more, now; measuring goes on."""
        if self.demand is not None:
            self.command(Demand(0.0, nan, self.demand.source, 1.0, self.demand.term), self.clock.now())
        self.demand = self._early = self._bridge = None
        self._leases.release()
        self.command(None, self.clock.now())

    def on_bess_cleanup(self) -> None:
        """Take the contract back."""
        for subscription in getattr(self, '_entities', []):
            self.destroy_subscription(subscription)
        for service in getattr(self, '_services_own', []):
            self.destroy_service(service)
        for publisher in (getattr(self, '_status', None), getattr(self, '_state', None)):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._entities, self._services_own = [], []
        self._status = self._state = None  # type: ignore[assignment]
        self.scheduling.close()
        self.cleanup_battery()

    def cleanup_battery(self) -> None:
        """Kind-specific part of cleanup."""

    # -- measuring -----------------------------------------------------------------------------------

    def changed(self, part: str = '') -> None:
        """Something below has news: refresh once everything that arrived at the same time is in.

        `part`: which of `parts` it is. When all of them were heard since the last refresh there is nothing to
        wait for.
        """
        self._heard.add(part)
        if self._heard.issuperset(self.parts):
            self._guarded(self.refresh)
        elif not self._refresh_posted:
            self._refresh_posted = True
            self.ctx.post(lambda: self._guarded(self._refresh_posted_now))

    def _refresh_posted_now(self) -> None:
        if self._refresh_posted:
            self.refresh()

    def refresh(self) -> None:
        """Measure and publish."""
        self._refresh_posted = False
        self._heard.clear()
        if self._status is None:
            return
        now = self.clock.now()
        reading = self.measure(now)
        self._tell_asked(reading)
        if self._early is not None:
            reading.limit_reasons.append(f'lead time: ordered {self._early.at - self.clock.wall():.0f} s ahead')
        self.reading = reading
        if reading.quality == Quality.OK:
            self.highest.see(reading.max_charge_power, reading.max_discharge_power)
            self.lead_measured.effect(reading.power, reading.time)
        self.progress += 1
        self._last_publish = now
        if self._status.get_subscription_count():
            self._status.give(battery_to_msg(reading, self.clock, self.name))
        if self._state.get_subscription_count():
            self._state.publish(battery_to_state(reading, self.clock, self.name))
        self._watch_quality(reading)

    def _tell_asked(self, reading: BatteryReading) -> None:
        """Fill in what is asked of this battery now, and what comes next."""
        if self.demand is not None:
            reading.setpoint, reading.setpoint_source = self.demand.power, self.demand.source
        else:
            reading.setpoint, reading.setpoint_source = nan, ''
        reading.lead_time = self.lead_time
        reading.next_change, reading.next_power = self.scheduling.plan.next_change(self.clock.wall())

    def _watch_quality(self, reading: BatteryReading) -> None:
        now = self.clock.now()
        if reading.quality == Quality.OK:
            self._sound_at = now
            self.clear_fault('battery.stale')
        elif self.is_active and reading.time > -inf and (
                reading.quality == Quality.INVALID or now - self._sound_at > STALE_FAULT_S):
            self.raise_fault('battery.stale', Severity.WARNING,
                             f'{Quality(reading.quality).name.lower()}: oldest value is '
                             f'{self.clock.now() - reading.time:.0f} s old; ' + '; '.join(reading.limit_reasons[:2]))

    # -- commanding ----------------------------------------------------------------------------------

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        self._offer(*order_from_msg(message, self.clock), False)

    def _on_current_setpoint(self, message: CurrentSetpoint) -> None:
        m = message
        self._offer(m.current, nan, m.lease, m.source, m.term, m.sequence, sent_at(m, self.clock), True)

    def _offer(self, value: float, reactive: float, lease: float, source: str, term: int, sequence: int, given: float,
               is_current: bool) -> None:
        now = self.clock.now()
        if not self.is_active:
            self._refusals.refuse(source, 'the battery is not active', now, expected=True)
            return
        reason = self._leases.offer(
            value, lease, source, now, given=given if given > -inf else None,
            reactive_power=reactive, term=term, sequence=sequence, is_current=is_current)
        if reason:
            self._refusals.refuse(source, reason, now)
            return
        self.drive(now)

    def _on_tick(self, _: Tick) -> None:
        now = self.clock.now()
        self.scheduling.tick(now)
        if self.is_active and now - self._last_drive > 0.9 * self.params.period:
            self.drive(now)
        if now - self._last_publish > self.params.max_age:
            self.refresh()  # nothing came from below: say how old it is by now

    def drive(self, now: float) -> None:
        """Decide what is asked now (lease over schedule over nothing) and pass it on; nothing unless active."""
        if not self.is_active:
            return
        self._last_drive = now
        demand = self._wanted(now)
        reading = self.reading
        if demand is not None:
            self.lead_measured.order(demand.power, reading.power, now)
        rests = resting(reading.power, self.params.rest_tolerance,
                        reading.quality == Quality.OK and not reading.time < self._release.since)
        self.command(self._release.follow(self.demand, demand, self.name, rests, now), now)
        self.demand = demand
        self._watch_rest(now)

    def _watch_rest(self, now: float) -> None:
        """A battery that goes on although nobody asks any more is a fault."""
        waited = now - self._release.since  # NaN while all is well
        if waited > self.params.rest_timeout:
            reading = self.reading
            flows = f'{reading.power:.0f} W flow' if reading.quality == Quality.OK else 'its values are not fresh'
            self.raise_fault('battery.rest', Severity.ERROR,
                             f'asked to rest, not confirmed for {waited:.0f} s: {flows}')
        elif isnan(waited):
            self.clear_fault('battery.rest')

    def order(self) -> Order | None:
        """The setpoint in force."""
        return self._leases.current(self.clock.now())

    def _wanted(self, now: float) -> Demand | None:
        order = self._leases.current(now)
        wall = self.clock.wall()
        lead = self.lead
        early = self._ahead(order, wall) if lead is not AT_ONCE and max(lead) > 0.0 else None
        self._early = early if early is not None and early.at > wall else None
        if early is not None:
            power = 0.0 if isnan(early.power) else early.power
            return Demand(power, nan, 'schedule: lead time', max(1.0, 10 * self.params.period))
        if order is not None:
            power = self.power_of_current(order.power) if order.is_current else order.power
            if isnan(power):
                return Demand(0.0, nan, order.source, order.expires - now, order.term, order.given)
            return Demand(power, order.reactive_power, order.source, order.expires - now, order.term, order.given)
        if not len(self.schedule):
            return None
        if self.scheduling.unsaved(wall):
            return self.demand  # on its way to the disk: as before for the moment
        request = self.schedule.at(wall)
        if request is None:
            return None
        power = request.value if request.is_power else self.power_of_current(request.value)
        lease = min(request.end - wall, max(1.0, 10 * self.params.period))
        return Demand(0.0 if isnan(power) else power, nan, f'schedule:{request.event_id}', lease)

    def _ahead(self, order: Order | None, wall: float) -> Ahead | None:
        """What the plan wants next, when the lead time says that it must be ordered now; bridges to the owner's order.

        Only while what is asked follows the plan: somebody else's setpoint is not anticipated.
        """
        book = self.scheduling.book
        if order is not None and order.source not in book.owners:
            return None
        found = ahead(self.scheduling.plan, wall, self.lead)
        if found is not None:
            self._bridge = found
            return found
        last = self._bridge
        if last is None or not last.at <= wall < last.at + BRIDGE_S:
            return None
        if order is not None:
            # Out of date when given before the change, or by an owner that had not heard of it from its own owner yet.
            return last if self.clock.to_wall(order.given) < last.at + LAYERS * self.params.period else None
        return None if isnan(book.plan.at(wall)) else last

    @property
    def schedule(self) -> Schedule:
        """Requests of this battery's clients."""
        return self.scheduling.schedule

    def power_bounds(self, *, later: bool) -> tuple[float, float]:
        """Lowest and highest power (W) of now, or of what begins later (the highest limits that were seen)."""
        charge, discharge = known(self.reading.max_charge_power), known(self.reading.max_discharge_power)
        if later:
            charge, discharge = max(charge, self.highest.charge), max(discharge, self.highest.discharge)
        return -discharge, charge

    def current_bounds(self, *, later: bool) -> tuple[float, float]:
        """As `power_bounds`, in A at the battery's own voltage."""
        low, high = -known(self.reading.max_discharge_current), known(self.reading.max_charge_current)
        if later:
            lowest, highest = self.power_bounds(later=True)
            ampere = self.power_of_current(1.0), -self.power_of_current(-1.0)  # W per A, charging and discharging
            if ampere[0] > 0 and ampere[1] > 0:
                high, low = max(high, highest / ampere[0]), min(low, lowest / ampere[1])
        return low, high

    def readmit(self) -> None:
        """Have the members admit what is planned anew; to be called when they change."""
        self.scheduling.readmit()

    # -- services ------------------------------------------------------------------------------------

    def _on_get_status(self, _: GetStatus.Request, response: GetStatus.Response) -> GetStatus.Response:
        now = self.clock.now()
        if now - self.reading.time > self.params.max_age:
            self.refresh()
        reading = self.reading
        response.status = battery_to_msg(reading, self.clock, self.get_name())
        response.fresh = reading.quality == Quality.OK
        if not response.fresh:
            age = now - reading.time
            response.message = (f'{Quality(reading.quality).name}: oldest value is {age:.1f} s old'
                                if age < inf else 'never measured')
        return response

    def unfinished(self) -> tuple[list[str], list[str]]:
        """Schedule entries that run now and that begin later."""
        wall = self.clock.wall()
        out: tuple[list[str], list[str]] = ([], [])
        for r in self.schedule.entries(wall):
            unit = 'W' if r.is_power else 'A'
            out[r.start > wall].append(f'{self.name}: request {r.event_id}, {r.value:g} {unit}, '
                                       f'{max(r.end - wall, 0.0):.0f} s to its end')
        return out

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        r = self.reading
        return {
            'SoC': f'{r.soc:.3f}', 'power [W]': f'{r.power:.0f}', 'quality': Quality(r.quality).name,
            'age [s]': f'{self.clock.now() - r.time:.2f}', 'asked [W]': f'{r.setpoint:.0f}',
            'asked by': r.setpoint_source, 'limits': '; '.join(r.limit_reasons),
            'usable members': f'{r.members_usable} of {r.members}',
            'scheduled requests': len(self.schedule), 'promised to': ', '.join(self.scheduling.book.owners),
            'lead time, seen': self.lead_measured.words(),
        }
