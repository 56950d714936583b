"""The contract of a logical battery, the same for every kind.

Topics `~/status`, `~/battery_state`; orders on `~/setpoint` and `~/setpoint_current`; services
`~/get_status`, `~/schedule_set_current`, `~/schedule_set_power`, `~/cancel_schedule`,
`~/list_schedule`. A leased setpoint overrides the schedule while its lease lasts. A kind of battery
fills in `measure` (what it is now) and `command` (what to ask of what lies below).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus, CurrentSetpoint, PowerSetpoint, ScheduleEntry
from bess.srv import CancelSchedule, GetStatus, ListSchedule, ScheduleSetCurrent, ScheduleSetPower
from bess_core import qos
from bess_core.clock import join_stamp
from bess_core.context import NodeContext
from bess_core.convert import battery_to_msg, battery_to_state, set_stamp, site_time, wall_stamp
from bess_core.leases import LeaseHolder
from bess_core.log import Refusals
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Quality, Severity

from .demand import Demand, Release
from .journal import Journal
from .schedule import Request, Schedule

PRUNE_S = 60.0
STALE_FAULT_S = 1.0  # a status that is stale for longer is a fault; a single late poll is none


@dataclass(frozen=True, kw_only=True)
class LogicalBatteryParams:
    """Parameters of every logical battery."""

    period: float = param(0.1, 's', 'how often requests and leases are looked at', low=0.01, high=60.0)
    max_age: float = param(2.0, 's', 'older values are STALE', low=0.05, high=3600.0)
    invalid_after: float = param(10.0, 's', 'older values are INVALID', low=0.1, high=86400.0)
    max_lease: float = param(60.0, 's', 'longest lease of a setpoint', low=0.1, high=3600.0)


class LogicalBatteryNode(BessNode):
    """Base of unit, aggregate, partition and remote."""

    role: ClassVar[str] = 'battery'
    Params: ClassVar[type] = LogicalBatteryParams

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.reading = BatteryReading()
        self.demand: Demand | None = None
        self.schedule = Schedule()
        self._journal: Journal | None = None
        self._leases = LeaseHolder(parameters.max_lease)
        self._refusals = Refusals(self.log, 'setpoint refused')
        self.parts: frozenset[str] = frozenset({''})  # what is heard of below; '' = one thing without a name
        self._heard: set[str] = set()  # of `parts`, since the last refresh
        self._refresh_posted = False
        self._last_drive = -inf
        self._last_publish = -inf
        self._sound_at = -inf  # s, when the quality was OK last
        self._release = Release()
        self._boundary = -inf  # wall s of the next change of the schedule

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

    # -- lifecycle -----------------------------------------------------------------------------------

    def on_bess_configure(self) -> None:
        """Restore the schedule and offer the contract."""
        journal_file = self.ctx.state_dir / 'schedules' / f'{self.get_name()}.jsonl'
        journal_file.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(journal_file)
        for problem in self._journal.content.problems:
            self.log.warning('schedule journal damaged', problem=problem)
        content = self._journal.content
        self.schedule = Schedule(content.requests.values(), content.next_id, self._journal)
        self._status = self.create_publisher(BatteryStatus, '~/status', qos.MEASUREMENT)
        self._message = BatteryStatus()  # refilled for every publication
        self._state = self.create_publisher(BatteryState, '~/battery_state', qos.MEASUREMENT)
        self._entities: list[Any] = [
            self.create_subscription(PowerSetpoint, '~/setpoint', self._on_setpoint, qos.SETPOINT),
            self.create_subscription(CurrentSetpoint, '~/setpoint_current', self._on_current_setpoint, qos.SETPOINT),
        ]
        self._services_own = [
            self.create_service(GetStatus, '~/get_status', self._on_get_status),
            self.create_service(ScheduleSetCurrent, '~/schedule_set_current', self._on_schedule_current),
            self.create_service(ScheduleSetPower, '~/schedule_set_power', self._on_schedule_power),
            self.create_service(CancelSchedule, '~/cancel_schedule', self._on_cancel),
            self.create_service(ListSchedule, '~/list_schedule', self._on_list),
        ]
        self.every(self.params.period, self._on_tick, phase=2)
        self.every(PRUNE_S, lambda _: self.schedule.prune(self.clock.wall()))
        self.configure_battery()

    def configure_battery(self) -> None:
        """Kind-specific part of configure."""

    def on_bess_deactivate(self) -> None:
        """Ask nothing any more, now; measuring goes on."""
        if self.demand is not None:
            self.command(Demand(0.0, nan, self.demand.source, 1.0, self.demand.term), self.clock.now())
        self.demand = None
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
        if self._journal is not None:
            self._journal.close()
            self._journal = None
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
        if self.demand is not None:
            reading.setpoint, reading.setpoint_source = self.demand.power, self.demand.source
        else:
            reading.setpoint, reading.setpoint_source = nan, ''
        self.reading = reading
        self.progress += 1
        self._last_publish = now
        if self._status.get_subscription_count():
            self._status.publish(battery_to_msg(reading, self.clock, self.name, self._message))
        if self._state.get_subscription_count():
            self._state.publish(battery_to_state(reading, self.clock, self.name))
        self._watch_quality(reading)

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
        self._offer(message, message.power, message.reactive_power, False)

    def _on_current_setpoint(self, message: CurrentSetpoint) -> None:
        self._offer(message, message.current, nan, True)

    def _offer(self, message: Any, value: float, reactive: float, is_current: bool) -> None:
        if not self.is_active:
            self._refusals.refuse(message.source, 'the battery is not active', self.clock.now(), expected=True)
            return
        now = self.clock.now()
        given = site_time(self.clock, message.header.stamp)
        reason = self._leases.offer(
            value, message.lease, message.source, now, given=given if given > -inf else None,
            reactive_power=reactive, term=message.term, sequence=message.sequence, is_current=is_current)
        if reason:
            self._refusals.refuse(message.source, reason, now)
            return
        self.drive(now)

    def _on_tick(self, _: Tick) -> None:
        now = self.clock.now()
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
        self.command(self._release.follow(self.demand, demand, self.name), now)
        self.demand = demand

    def _wanted(self, now: float) -> Demand | None:
        order = self._leases.current(now)
        if order is not None:
            power = self.power_of_current(order.power) if order.is_current else order.power
            if isnan(power):
                return Demand(0.0, nan, order.source, order.expires - now, order.term)
            return Demand(power, order.reactive_power, order.source, order.expires - now, order.term)
        if not len(self.schedule):
            return None
        wall = self.clock.wall()
        request = self.schedule.at(wall)
        if request is None:
            return None
        power = request.value if request.is_power else self.power_of_current(request.value)
        lease = min(request.end - wall, max(1.0, 10 * self.params.period))
        return Demand(0.0 if isnan(power) else power, nan, f'schedule:{request.event_id}', lease)

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

    def _on_schedule_current(self, request: Any, response: Any) -> Any:
        bounds = (-self.reading.max_discharge_current, self.reading.max_charge_current)
        return self._add(request, response, request.current, False, bounds)

    def _on_schedule_power(self, request: Any, response: Any) -> Any:
        bounds = (-self.reading.max_discharge_power, self.reading.max_charge_power)
        return self._add(request, response, request.power, True, bounds)

    def _add(self, request: Any, response: Any, value: float, is_power: bool, bounds: tuple[float, float]) -> Any:
        wall = self.clock.wall()
        start, end = join_stamp(request.start.sec, request.start.nanosec), join_stamp(request.end.sec,
                                                                                      request.end.nanosec)
        low, high = (0.0 if isnan(bounds[0]) else bounds[0]), (0.0 if isnan(bounds[1]) else bounds[1])
        if self.reading.quality == Quality.INVALID and value != 0.0:
            response.accepted, response.message = False, 'the battery has no valid measurement: limits are unknown'
            return response
        # A stop (0) is always within bounds, also of a battery that is full, empty or unknown.
        accepted, event_id, message = self.schedule.add(
            float(value), start, end, now=wall, is_power=is_power, source='service',
            bounds=(min(low, 0.0), max(high, 0.0)))
        if accepted:
            hints = [message] if message else []
            order = self._leases.current(self.clock.now())
            if order is not None:
                hints.append(f'{order.source} holds a setpoint that goes before the schedule while it lasts')
            if not self.is_active:
                hints.append('the battery is not active: nothing runs until it is')
            if forecast := self._forecast(value, is_power, max(start, wall), end):
                hints.append(forecast)
            message = '; '.join(hints)
            self.log.info('request accepted', event_id=event_id, value=value, unit='W' if is_power else 'A',
                          start=start, end=end)
            self.drive(self.clock.now())
        else:
            self.log.info('request refused', value=value, reason=message)
        response.accepted, response.event_id, response.message = accepted, event_id, message
        return response

    def _forecast(self, value: float, is_power: bool, start: float, end: float) -> str:
        """When the stored energy cannot serve the request to its end: when it will run dry (or full)."""
        power = value if is_power else self.power_of_current(value)
        room = self.reading.energy if power < 0 else self.reading.energy_full - self.reading.energy
        if not power or isnan(power) or isnan(room):
            return ''
        lasts = room / abs(power) * 3600.0
        if start + lasts >= end:
            return ''
        return f'the battery will be {"empty" if power < 0 else "full"} after about {lasts / 60:.0f} min of it'

    def _on_cancel(self, request: CancelSchedule.Request, response: CancelSchedule.Response) -> Any:
        response.accepted, response.cancelled, response.message = self.schedule.cancel(int(request.event_id))
        if response.accepted and response.cancelled:
            self.log.info('requests cancelled', event_id=int(request.event_id) or 'all', count=response.cancelled)
            self.drive(self.clock.now())
        return response

    def _on_list(self, request: ListSchedule.Request, response: ListSchedule.Response) -> Any:
        wall = self.clock.wall()
        at = join_stamp(request.at.sec, request.at.nanosec) or wall
        running = self.schedule.at(wall)
        response.entries = [self._entry(r, r is running) for r in self.schedule.entries(wall)]
        there = self.schedule.at(at)
        response.active_at = there is not None
        response.is_power_at = there.is_power if there else False
        response.value_at = float(there.value) if there else 0.0
        return response

    @staticmethod
    def _entry(request: Request, running: bool) -> ScheduleEntry:
        return ScheduleEntry(
            event_id=request.event_id, start=wall_stamp(request.start), end=wall_stamp(request.end),
            is_power=request.is_power, value=float(request.value), source=request.source, running=running)

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        r = self.reading
        return {
            'SoC': f'{r.soc:.3f}', 'power [W]': f'{r.power:.0f}', 'quality': Quality(r.quality).name,
            'age [s]': f'{self.clock.now() - r.time:.2f}', 'asked [W]': f'{r.setpoint:.0f}',
            'asked by': r.setpoint_source, 'limits': '; '.join(r.limit_reasons),
            'usable members': f'{r.members_usable} of {r.members}',
            'scheduled requests': len(self.schedule),
        }


class SetpointSender:
    """Sends orders to one battery or converter below, numbered, stamped and leased."""

    def __init__(self, node: BessNode, target: str, lease: float) -> None:
        self._node, self._lease = node, lease
        self._publisher = node.create_publisher(PowerSetpoint, node.ctx.topic(f'{target}/setpoint'), qos.SETPOINT)
        self._sequence = 0
        self._message = PowerSetpoint(source=node.name)  # refilled for every order

    def send(self, power: float, reactive_power: float, now: float, lease: float = inf, term: int = 0) -> None:
        """Order a power (W, + = charging) for at most `lease` s."""
        self._sequence += 1
        message = self._message
        message._power, message._reactive_power = float(power), float(reactive_power)  # floats need no check
        message._lease, message.term, message.sequence = float(min(self._lease, lease)), term, self._sequence
        set_stamp(message.header.stamp, self._node.clock, now)
        self._publisher.publish(message)

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._publisher)
