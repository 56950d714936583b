"""Aggregate node: several batteries as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan
from typing import Any, ClassVar

from bess.msg import BatteryStatus
from bess.srv import Equalise
from bess_core import qos
from bess_core.convert import battery_from_msg
from bess_core.params import param
from bess_core.ticker import Handle
from bess_core.values import BatteryReading, Contactor, Mode, Quality, Severity

from . import zones
from .aggregate import FEW, combine, split
from .allocation import Allocation
from .balancing import RESTART, Goal, Transfer, equalise, problem
from .counters import Counter
from .demand import RELEASE_TICKS, Demand, Release
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams
from .member import view
from .plan import Plan
from .plan_shares import Highest, share_plan
from .setpoint_sender_node import SetpointSender

REST_PER_MEMBER = 5e-5  # s: news of many members are gathered for so long per member, at most half a period


@dataclass(frozen=True, kw_only=True)
class GroupParams(LogicalBatteryParams):
    """Parameters of a battery that commands members."""

    members: list[str] = param(doc='batteries that form the whole', ref='battery', owns=True)
    lease: float = param(2.0, 's', 'how long a member keeps an order without a new one', low=0.1, high=60.0)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError('needs at least one member')


@dataclass(frozen=True, kw_only=True)
class AggregateParams(GroupParams):
    """Several batteries as one: energies and powers add up, members reach empty or full together."""

    limit: str = param('together', doc='"together": power that can be held until all members are empty or '
                                       'full; "sum": sum of the member limits', choices=['together', 'sum'])
    minimum_power: list[float] = param([], 'W', 'per member: runs with at least this power or not at all', low=0.0)
    exclusion_zones: dict[str, Any] = param(
        {}, 'W', 'member -> list of [low, high], + = charging: powers it must not run at, ends excluded')
    balance_power: float = param(0.0, 'W', 'most that may flow between members to equalise their states of charge '
                                           'whenever they differ; 0: only on request', low=0.0)
    balance_tolerance: float = param(0.02, '', 'difference of state of charge (fraction) that counts as equal',
                                     low=0.001, high=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minimum_power and len(self.minimum_power) != len(self.members):
            raise ValueError('minimum_power needs one value per member, or none')
        zones.parse(self.exclusion_zones, self.members)


class GroupNode(LogicalBatteryNode):
    """Members that are listened to and commanded; a kind says how they combine and how power is divided.

    Members may be replaced while the node runs: `set_members`.
    """

    Params: ClassVar[type] = GroupParams

    def combined(self, now: float) -> BatteryReading:
        """The whole."""
        raise NotImplementedError

    def divided(self, power: float, now: float) -> Allocation:
        """Power in W, + = charging, of each member."""
        raise NotImplementedError

    def configure_battery(self) -> None:
        """Listen to all members."""
        self._members: dict[str, BatteryReading] = {}
        self._last_good: dict[str, BatteryReading] = {}
        self._senders: dict[str, SetpointSender] = {}
        self._listeners: dict[str, Any] = {}
        self._highest: dict[str, Highest] = {}
        self._leaving: dict[str, tuple[SetpointSender, int]] = {}
        self._shares: list[float] = []
        self._charged, self._discharged = Counter(), Counter()
        self._shortfall = ''
        self._fresh = -1  # members that were young enough when measured last
        self._deferred: Handle | None = None
        for name in self.params.members:
            self._join(name)
        self.parts = frozenset(self._members)

    def cleanup_battery(self) -> None:
        """Stop sending and listening."""
        senders = list(getattr(self, '_senders', {}).values())
        for sender in senders + [s for s, _ in getattr(self, '_leaving', {}).values()]:
            sender.close()
        for listener in getattr(self, '_listeners', {}).values():
            self.destroy_subscription(listener)
        self._senders, self._listeners, self._leaving = {}, {}, {}
        if getattr(self, '_deferred', None) is not None:
            self._deferred.cancel()  # type: ignore[union-attr]
            self._deferred = None

    def _join(self, name: str) -> None:
        self._members[name] = self._last_good[name] = BatteryReading()
        self._highest[name] = Highest()
        sender, _ = self._leaving.pop(name, (None, 0))
        self._senders[name] = sender or SetpointSender(self, name, self.params.lease)
        self._listeners[name] = self.create_subscription(
            BatteryStatus, self.ctx.topic(f'{name}/status'), partial(self._on_member, name), qos.MEASUREMENT)
        self._shares.append(0.0)

    def set_members(self, names: Sequence[str]) -> None:
        """Replace the members while running. Who stays keeps its place; who leaves is told zero first, now and for
        some ticks; who joins takes part from its first good status on. Raises ValueError, with nothing changed,
        for none, a name given twice, or a number that the kind of battery cannot use."""
        names = list(names)
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f'{", ".join(twice)}: named twice; a battery counts once')
        if self.name in names:
            raise ValueError(f'{self.name} cannot be a member of itself')
        self.params = self.params_for(names)  # raises for what cannot be
        if not getattr(self, '_listeners', None):
            return  # not configured: the next configure listens to them
        shares = dict(zip(self._members, self._shares, strict=True))
        for name in [n for n in self._members if n not in names]:
            sender = self._senders.pop(name)
            if self.is_active:
                sender.send(0.0, nan, self.clock.now())
                self._leaving[name] = (sender, RELEASE_TICKS)  # closed at once it might take its last word along
            else:
                sender.close()
            self.destroy_subscription(self._listeners.pop(name))
            del self._members[name], self._last_good[name], self._highest[name]
            self._charged.forget(name)
            self._discharged.forget(name)
        for name in names:
            if name not in self._members:
                self._join(name)
        # The order of all of them is that of `names`.
        self._members = {n: self._members[n] for n in names}
        self._last_good = {n: self._last_good[n] for n in names}
        self._highest = {n: self._highest[n] for n in names}
        self._senders = {n: self._senders[n] for n in names}
        self._shares = [shares.get(n, 0.0) for n in names]
        self.parts = frozenset(names)
        self.log.info('members replaced', members=names)
        self.refresh()
        self.drive(self.clock.now())
        self.readmit()

    def params_for(self, names: list[str]) -> Any:
        """Parameters with these members."""
        return replace(self.params, members=names)

    def _on_member(self, name: str, message: BatteryStatus) -> None:
        if name not in self._members:
            return  # it has left, this was still under way
        reading = self._members[name] = battery_from_msg(message, self.clock)
        self._highest[name].see(reading.max_charge_power, reading.max_discharge_power)
        self._charged.see(name, reading.energy_charged)
        self._discharged.see(name, reading.energy_discharged)
        if (reading.quality == Quality.OK and reading.contactor != Contactor.OPEN
                and reading.mode not in (Mode.FAULT, Mode.OFF)):
            self._last_good[name] = reading
        self.changed(name)

    def changed(self, part: str = '') -> None:
        """Refresh soon; of many members, news are gathered first, so that the cost does not grow with their square."""
        if len(self._members) <= FEW:
            super().changed(part)
            return
        self._heard.add(part)
        if len(self._heard) >= len(self.parts) and self._heard.issuperset(self.parts):
            self._end_rest()
            self._guarded(self.refresh)
        elif self._deferred is None:
            wait = min(REST_PER_MEMBER * len(self._members), 0.5 * self.params.period)
            self._deferred = self.ctx.ticker.every(wait, partial(self._guarded, self._after_rest))

    def _after_rest(self, _: object) -> None:
        if self._end_rest():
            super().changed()

    def _end_rest(self) -> bool:
        """Whether news were being gathered."""
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            deferred.cancel()
        return deferred is not None

    def measure(self, now: float) -> BatteryReading:
        """All members combined."""
        self._fresh = self._count_fresh(now)
        reading = self.combined(now)
        reading.energy_charged = self._charged.total(self._members)
        reading.energy_discharged = self._discharged.total(self._members)
        if self._shortfall:
            reading.limit_reasons.insert(0, self._shortfall)
        return reading

    def _count_fresh(self, now: float) -> int:
        oldest = now - self.params.max_age
        return sum(m.time >= oldest for m in self._members.values())

    def command(self, demand: Demand | None, now: float) -> None:
        """Divide over the members afresh at each tick, as their energies move."""
        for name, (sender, left) in list(self._leaving.items()) if self._leaving else ():
            if left > 0:
                sender.send(0.0, nan, now)
                self._leaving[name] = (sender, left - 1)
            else:
                self._leaving.pop(name)[0].close()
        if self._count_fresh(now) != self._fresh:
            self.refresh()  # somebody became too old: say so now, not when the others have news
        if demand is None:
            self._shortfall = ''
            self.clear_fault('battery.shortfall')
            return
        allocation = self.divided(demand.power, now)
        shares = self._shares = self.adjusted(allocation.powers.tolist(), now)
        reactive = [nan] * len(shares)
        if not isnan(demand.reactive_power):
            total = sum(abs(s) for s in shares)
            reactive = [demand.reactive_power * (abs(s) / total if total > 0 else 1.0 / len(shares)) for s in shares]
        for sender, share, var in zip(self._senders.values(), shares, reactive, strict=True):
            sender.send(share, var, now, demand.lease, demand.term)
        self._watch_shortfall(demand.power, allocation.residual, allocation.reason)

    def members_below(self) -> list[str]:
        """The members."""
        return list(self._members)

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """By energy and headroom, as the split of each tick."""
        p = self.params
        shares = share_plan(plan, list(self._members.values()), self.clock.now(), self.clock.wall(), p.max_age,
                            p.invalid_after, highest=list(self._highest.values()), minimum=self.minimum_powers)
        return list(zip(self._members, shares, strict=True))

    def member_reading(self, member: str) -> BatteryReading | None:
        """As last received."""
        return self._members.get(member)

    @property
    def lead_time(self) -> float:
        """The longest of the members: each orders ahead by its own."""
        return max((m.lead_time for m in self._members.values() if m.lead_time > 0.0), default=0.0)

    @property
    def minimum_powers(self) -> list[float] | None:
        """W per member, below which it does not run; None = every power."""
        return None

    def adjusted(self, shares: list[float], now: float) -> list[float]:
        """What is sent for these shares (W, + = charging); the same sum."""
        return shares

    def _watch_shortfall(self, asked: float, residual: float, reason: str) -> None:
        short = abs(residual) > max(50.0, 0.02 * abs(asked))
        self.set_fault(short, 'battery.shortfall', Severity.WARNING, reason)
        self._shortfall = reason if residual else ''


class AggregateNode(GroupNode):
    """See `AggregateParams`."""

    Params: ClassVar[type] = AggregateParams

    def configure_battery(self) -> None:
        """Members, and the service that equalises them."""
        super().configure_battery()
        self._goal: Goal | None = None
        self._transfer: Transfer | None = None  # of the last tick, None while nothing is to be equalised
        self._balancing_before: Demand | None = None
        self._rest = Release()
        self._zones = self._zones_of(self.params)
        self._services_own.append(self.create_service(Equalise, '~/equalise', self._on_equalise))

    @property
    def minimum_powers(self) -> list[float] | None:
        """See `GroupNode`."""
        return self.params.minimum_power or None

    @staticmethod
    def _zones_of(params: AggregateParams) -> list[list[zones.Zone]] | None:
        parsed = zones.parse(params.exclusion_zones, params.members)
        return [parsed.get(name, []) for name in params.members] if parsed else None

    def params_for(self, names: list[str]) -> AggregateParams:
        """Who stays keeps its minimum power and zones, who joins has none."""
        p = self.params
        minimum = dict(zip(p.members, p.minimum_power, strict=False))
        made = replace(p, members=names, minimum_power=[minimum.get(n, 0.0) for n in names] if minimum else [],
                       exclusion_zones={n: z for n, z in p.exclusion_zones.items() if n in names})
        self._zones = self._zones_of(made)
        return made

    def combined(self, now: float) -> BatteryReading:
        """By energy and power."""
        p = self.params
        reading = combine(list(self._members.values()), now, p.max_age, p.invalid_after, limit=p.limit,
                          names=list(self._members), last_good=list(self._last_good.values()))
        if self._transfer is not None and self._transfer.moved > 0.0:
            reading.balance_power = self._transfer.moved
            reading.limit_reasons.append(f'balancing: {self._transfer.moved:.0f} W from fuller to emptier members, '
                                         f'states of charge {self._transfer.spread:.3f} apart')
        elif self._transfer is not None:
            reading.limit_reasons.append(f'balancing waits: {self._transfer.reason}')
        return reading

    def divided(self, power: float, now: float) -> Allocation:
        """By energy when discharging, by headroom when charging."""
        p = self.params
        return split(power, list(self._members.values()), now, p.max_age, p.invalid_after,
                     minimum=self.minimum_powers, zones=self._zones, present=self._shares,
                     running=[s != 0.0 for s in self._shares] if p.minimum_power else None)

    def command(self, demand: Demand | None, now: float) -> None:
        """Also without a demand while members are equalised; then zero is said at the end."""
        goal = None
        if self._goal is not None or self.params.balance_power > 0.0:
            goal = self._wanted_goal(now)
        if goal is None:
            self._transfer = None
        if demand is None:
            wanted = None if goal is None else Demand(0.0, nan, f'{self.name}:balancing', 10 * self.params.period)
            demand = self._rest.follow(self._balancing_before, wanted, self.name)
            self._balancing_before = wanted
        else:
            self._balancing_before = None
        super().command(demand, now)

    def adjusted(self, shares: list[float], now: float) -> list[float]:
        """With what is moved between the members beside their shares."""
        goal, p = self._goal, self.params
        if goal is None:
            return shares
        views = [view(m, now, p.max_age, p.invalid_after) for m in self._members.values()]
        transfer = self._transfer = equalise(goal, views, shares, minimum=self.minimum_powers, zones=self._zones)
        if transfer.spread <= goal.tolerance and not self._lacking():
            self.log.info('states of charge are equal within the tolerance', spread=transfer.spread)
            self._goal = self._transfer = None
        return [s + float(t) for s, t in zip(shares, transfer.powers, strict=True)]

    def _lacking(self) -> bool:
        return self.reading.members_usable < self.reading.members

    def _wanted_goal(self, now: float) -> Goal | None:
        if not self.is_active:
            self._goal = None
        elif self._goal is not None and now >= self._goal.until:
            self.log.info('equalisation ends: its time is over', spread=self.reading.soc_spread)
            self._goal = None
        elif self._goal is None and self.params.balance_power > 0.0 and (
                self.reading.soc_spread > RESTART * self.params.balance_tolerance):
            self._goal = Goal(self.params.balance_power, self.params.balance_tolerance)
        return self._goal

    def _on_equalise(self, request: Equalise.Request, response: Equalise.Response) -> Equalise.Response:
        p = self.params
        response.message = problem(request.power, request.tolerance, request.duration)
        if not response.message and request.power > 0.0 and not self.is_active:
            response.message = 'the battery is not active'
        response.accepted = not response.message
        if not response.accepted:
            return response
        if request.power == 0.0:
            response.message = 'stopped' if self._goal is not None else 'nothing was running'
            self._goal = None
        else:
            tolerance = request.tolerance if request.tolerance > 0.0 else p.balance_tolerance
            now = self.clock.now()
            self._goal = Goal(request.power, tolerance, now + request.duration)
            spread = self.reading.soc_spread
            response.message = ('states of charge are not known yet' if isnan(spread)
                                else f'states of charge are {spread:.3f} apart')
        self.log.info('equalisation asked for', power=request.power, tolerance=request.tolerance,
                      duration=request.duration, answer=response.message)
        self.drive(self.clock.now())
        return response

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        transfer = self._transfer
        return {**super().diagnostics(), 'missing': '; '.join(self.reading.missing),
                'balancing [W]': f'{transfer.moved if transfer else 0.0:.0f}'
                                 + (f' ({transfer.reason})' if transfer and transfer.reason else '')}


