"""The children of a partition: parts of a divided battery, each with the full contract."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bess_core.context import NodeContext
from bess_core.values import BatteryReading

from .demand import Demand
from .logical_battery_node import LogicalBatteryNode
from .partition import aged
from .partition_params_node import ChildParams, PartitionParams
from .plan import Plan, total

if TYPE_CHECKING:
    from .partition_node import PartitionNode

COLLECT_S = 0.5  # after the end of a node


class PartitionChildNode(LogicalBatteryNode):
    """One part of a divided battery, with the full contract."""

    Params: ClassVar[type] = ChildParams

    def configure_battery(self) -> None:
        """Find the partition, which runs in the same process."""
        self._given = BatteryReading()
        partition: Any = self.ctx.nodes.get(self.params.partition)
        if getattr(partition, 'role', '') != 'partition':
            raise RuntimeError(f'partition {self.params.partition!r} does not run in this process')
        self._owner: PartitionNode = partition
        partition.attach(self)
        if hasattr(partition, '_partition') and not partition.has_child(self.name):
            self.retire()

    def retire(self) -> None:
        """This is no child any more: forget every request, and say so."""
        self.forget()
        self._given = BatteryReading(
            limit_reasons=[f'no part of {self.params.partition} any more: removed while the site ran'])
        self.changed()

    def forget(self) -> None:
        """Drop setpoint and schedule: whoever comes next must not run what another one asked for."""
        self._leases.release()
        self.demand = None
        self.scheduling.forget()

    def busy(self) -> str:
        """Why this child should not be taken away now; '' = it rests."""
        if self.demand is not None and self.demand.power != 0.0:
            return f'{self.demand.source} asks it for {self.demand.power:.0f} W'
        pending = len(self.schedule.entries(self.clock.wall()))
        return f'it has {pending} scheduled request{"s" if pending > 1 else ""}' if pending else ''

    def take(self, reading: BatteryReading, reason: str) -> None:
        """A new reading from the partition."""
        if reason:
            reading.limit_reasons.append(reason)
        self._given = reading
        self.changed()

    def measure(self, now: float) -> BatteryReading:
        """The partition's reading, aged."""
        return aged(self._given, now, self.params.max_age, self.params.invalid_after)

    def members_below(self) -> list[str]:
        """The source, on behalf of the partition."""
        return [self._owner.params.source]

    together: ClassVar[bool] = True

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """The sum with what all siblings have planned and promised: opposite ones cancel at the source."""
        return self.plans_together({self.name: plan})

    def plans_together(self, plans: Mapping[str, Plan]) -> list[tuple[str, Plan]]:
        """The same with new plans of several children."""
        others = [c.scheduling.wanted() for c in self._owner.children if c.name not in plans]
        return [(self._owner.params.source, total([*plans.values(), *others]))]

    def member_reading(self, member: str) -> BatteryReading | None:
        """The source as the partition last heard it."""
        return self._owner.source

    @property
    def owner_label(self) -> str:
        """The source knows the partition."""
        return self._owner.name

    @property
    def lead_time(self) -> float:
        """That of the source."""
        return self._owner.source.lead_time if self._owner.source.lead_time > 0.0 else 0.0

    def command(self, demand: Demand | None, now: float) -> None:
        """Ask the partition."""
        self._owner.request(self.name, demand, now)


def child_params(partition: str, parameters: PartitionParams) -> ChildParams:
    """Parameters of a child: those of its partition."""
    return ChildParams(partition=partition, **{
        f: getattr(parameters, f) for f in ('period', 'max_age', 'invalid_after', 'max_lease')})


def start_child(ctx: NodeContext, name: str, parameters: ChildParams) -> PartitionChildNode:
    """A child node made while the process runs. RuntimeError where the process cannot."""
    if ctx.add_node is None:
        raise RuntimeError('this process cannot make nodes while it runs')
    node = PartitionChildNode(name, parameters, ctx)
    ctx.add_node(node)
    return node


def end_child(ctx: NodeContext, node: PartitionChildNode) -> None:
    """Undo `start_child`."""
    node.close()
    node.forget_faults()
    if ctx.remove_node is not None:
        ctx.remove_node(node)
    node.destroy_node()

    def collect(_: object) -> None:
        sweep.cancel()
        gc.collect()

    # It lies in reference cycles: until they are collected its services stay on the graph. A little later, because
    # executor and callers still hold it now.
    sweep = ctx.ticker.every(COLLECT_S, collect)


__all__ = ['PartitionChildNode', 'child_params', 'end_child', 'start_child']
