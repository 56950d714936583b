"""Aggregate node: several batteries as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.convert import battery_from_msg
from bess_core.params import param
from bess_core.values import BatteryReading, Severity

from .aggregate import combine, split
from .demand import Demand
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams, SetpointSender
from .plan import Plan
from .plan_shares import Highest, share_plan


@dataclass(frozen=True, kw_only=True)
class AggregateParams(LogicalBatteryParams):
    """Several batteries as one: energies and powers add up, members reach empty or full together."""

    members: list[str] = param(doc='batteries that form the aggregate', ref='battery', owns=True)
    limit: str = param('together', doc='"together": power that can be held until all members are empty or '
                                       'full; "sum": sum of the member limits', choices=['together', 'sum'])
    lease: float = param(2.0, 's', 'how long a member keeps an order without a new one', low=0.1, high=60.0)
    minimum_power: list[float] = param([], 'W', 'per member: runs with at least this power or not at all', low=0.0)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError('an aggregate needs at least one member')
        if self.minimum_power and len(self.minimum_power) != len(self.members):
            raise ValueError('minimum_power needs one value per member, or none')


class AggregateNode(LogicalBatteryNode):
    """See `AggregateParams`."""

    Params: ClassVar[type] = AggregateParams

    def configure_battery(self) -> None:
        """Listen to all members."""
        names = self.params.members
        self._members = {name: BatteryReading() for name in names}
        self._highest = {name: Highest() for name in names}
        self._senders = {name: SetpointSender(self, name, self.params.lease) for name in names}
        self._shares: list[float] = [0.0] * len(names)
        self._entities += [
            self.create_subscription(BatteryStatus, self.ctx.topic(f'{name}/status'),
                                     partial(self._on_member, name), qos.MEASUREMENT)
            for name in names
        ]

    def cleanup_battery(self) -> None:
        """Stop sending."""
        for sender in getattr(self, '_senders', {}).values():
            sender.close()
        self._senders = {}

    def members_below(self) -> list[str]:
        """The members."""
        return list(self._members)

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """By energy and headroom, as the split of each tick."""
        p = self.params
        shares = share_plan(plan, list(self._members.values()), self.clock.now(), self.clock.wall(), p.max_age,
                            p.invalid_after, highest=list(self._highest.values()), minimum=p.minimum_power or None)
        return list(zip(self._members, shares, strict=True))

    def member_reading(self, member: str) -> BatteryReading | None:
        """As last received."""
        return self._members.get(member)

    @property
    def lead_time(self) -> float:
        """The longest of the members: each orders ahead by its own."""
        return max((m.lead_time for m in self._members.values() if m.lead_time > 0.0), default=0.0)

    def _on_member(self, name: str, message: BatteryStatus) -> None:
        reading = self._members[name] = battery_from_msg(message, self.clock)
        self._highest[name].see(reading.max_charge_power, reading.max_discharge_power)
        self.changed()

    def measure(self, now: float) -> BatteryReading:
        """All members combined."""
        p = self.params
        return combine(list(self._members.values()), now, p.max_age, p.invalid_after,
                       limit=p.limit, names=list(self._members))

    def command(self, demand: Demand | None, now: float) -> None:
        """Split over the members afresh at each tick, as their energies move."""
        if demand is None:
            return
        p = self.params
        allocation = split(
            demand.power, list(self._members.values()), now, p.max_age, p.invalid_after,
            minimum=p.minimum_power or None, running=[s != 0.0 for s in self._shares] if p.minimum_power else None)
        self._shares = [float(s) for s in allocation.powers]
        total = sum(abs(s) for s in self._shares)
        for sender, share in zip(self._senders.values(), self._shares, strict=True):
            reactive = demand.reactive_power * (abs(share) / total if total > 0 else 1.0 / len(self._senders))
            sender.send(share, reactive, now, demand.lease, demand.term)
        self._watch_shortfall(demand.power, allocation.residual, allocation.reason)

    def _watch_shortfall(self, asked: float, residual: float, reason: str) -> None:
        short = abs(residual) > max(50.0, 0.02 * abs(asked))
        self.set_fault(short, 'battery.shortfall', Severity.WARNING, reason)
