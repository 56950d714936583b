"""Partition nodes: one battery divided among several, each a logical battery with a ledger of its own.

The partition itself (`type: partition`) owns the source and the ledgers; each child is a lifecycle
node with the full contract, made by the same entry of the site file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf, nan
from typing import Any, ClassVar

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import battery_from_msg
from bess_core.node import BessNode
from bess_core.params import ParameterError, build, param
from bess_core.values import BatteryReading, Severity

from .demand import Demand
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams, SetpointSender
from .partition import Expected, Partition, aged
from .plan import Plan, over, total
from .shares import Policy, Share, validate

SAVE_S = 10.0
HOLD_TICKS = 3.0  # ticks of the children that an order to the source lasts at least, while any child asks


@dataclass(frozen=True, kw_only=True)
class ShareParams:
    """Share of one child; each column adds up to 1 over the children."""

    energy: float = param(doc='fraction of the energy', low=0.0, high=1.0)
    charge_power: float = param(doc='fraction of the charge power', low=0.0, high=1.0)
    discharge_power: float = param(doc='fraction of the discharge power', low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class PartitionParams(LogicalBatteryParams):
    """One battery divided among several children."""

    source: str = param(doc='battery that is divided', ref='battery', owns=True)
    policy: str = param('proportional', doc='who gets a surplus and who bears a deficit of the source',
                        choices=[p.value for p in Policy])
    children: dict[str, Any] = param(doc='child name -> {energy, charge_power, discharge_power} as fractions')
    lease: float = param(2.0, 's', 'how long the source keeps an order without a new one', low=0.1, high=60.0)
    charge_efficiency: float = param(0.95, '', 'of the source, AC to stored energy: losses are booked with it',
                                     low=0.5, high=1.0)
    discharge_efficiency: float = param(0.95, '', 'of the source, stored energy to AC', low=0.5, high=1.0)
    rated_energy: float = param(0.0, 'Wh', 'of the source when full; 0 = as first measured', low=0.0)
    rated_charge_power: float = param(0.0, 'W', 'of the source; 0 = as first measured', low=0.0)
    rated_discharge_power: float = param(0.0, 'W', 'of the source; 0 = as first measured', low=0.0)

    def __post_init__(self) -> None:
        shares = self.shares()
        problems = validate(list(shares), list(shares.values()))
        rated = (self.rated_energy, self.rated_charge_power, self.rated_discharge_power)
        if any(rated) and not all(rated):
            problems.append('give all of rated_energy, rated_charge_power, rated_discharge_power, or none')
        if problems:
            raise ValueError('; '.join(problems))

    def shares(self) -> dict[str, Share]:
        """Share per child. Raises ValueError."""
        out = {}
        for name, values in self.children.items():
            try:
                p = build(ShareParams, values if isinstance(values, dict) else {})
            except ParameterError as error:
                raise ValueError(f'children.{name}: {error}') from error
            out[name] = Share(p.energy, p.charge_power, p.discharge_power)
        return out


@dataclass(frozen=True, kw_only=True)
class ChildParams(LogicalBatteryParams):
    """One child of a partition; made by the partition, not written in a site file."""

    partition: str = param(doc='partition that this battery is a part of', ref='partition')


class PartitionNode(BessNode):
    """Owner of the source and of the ledgers; see `PartitionParams`."""

    Params: ClassVar[type] = PartitionParams
    role: ClassVar[str] = 'partition'

    @staticmethod
    def expand(name: str, parameters: PartitionParams) -> list[tuple[str, str, Any]]:
        """The child nodes that belong to this one: (name, type, parameters)."""
        common = {f: getattr(parameters, f) for f in ('period', 'max_age', 'invalid_after', 'max_lease')}
        return [(child, 'partition_child', ChildParams(partition=name, **common)) for child in parameters.children]

    def __init__(self, name: str, parameters: PartitionParams, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self._children: dict[str, PartitionChildNode] = {}  # also while the partition is configured anew

    def on_bess_configure(self) -> None:
        """Restore the ledgers, listen to the source."""
        p = self.params
        self._requests: dict[str, Demand] = {}
        self.reasons: dict[str, str] = {}
        self._source = BatteryReading()
        self._booked = -inf
        self._in_force: dict[str, float] = {}
        self._file = self.ctx.state_dir / 'ledgers' / f'{self.get_name()}.json'
        self._partition = self._restore()
        self._sender = SetpointSender(self, p.source, p.lease)
        self._subscription = self.create_subscription(
            BatteryStatus, self.ctx.topic(f'{p.source}/status'), self._on_source, qos.MEASUREMENT)
        # Simulated time passes too fast to write that often, and nothing is lost with it.
        self.every(60 * SAVE_S if self.clock.simulated else SAVE_S, lambda _: self._save())

    def on_bess_cleanup(self) -> None:
        """Keep the ledgers."""
        if hasattr(self, '_partition'):
            try:
                self._save()
            finally:  # also when the disk is full
                self.destroy_subscription(self._subscription)
                self._sender.close()
                del self._partition, self._sender

    @property
    def children(self) -> list[PartitionChildNode]:
        """Child nodes that reported for duty."""
        return list(self._children.values())

    @property
    def source(self) -> BatteryReading:
        """Last reading of the source."""
        return getattr(self, '_source', BatteryReading())

    def attach(self, child: PartitionChildNode) -> None:
        """A child node of this process reports for duty."""
        self._children[child.get_name()] = child

    def _restore(self) -> Partition:
        p = self.params
        expected = (Expected(p.rated_energy, p.rated_charge_power, p.rated_discharge_power)
                    if p.rated_energy else None)
        fresh = Partition(p.shares(), Policy(p.policy), expected, p.charge_efficiency, p.discharge_efficiency)
        if not self._file.exists():
            return fresh
        try:
            saved = Partition.from_dict(json.loads(self._file.read_text()), p.charge_efficiency,
                                        p.discharge_efficiency)
        except ValueError as error:
            self.raise_fault('partition.ledger', Severity.ERROR, f'saved ledgers cannot be read: {error}')
            return fresh
        if saved.names != fresh.names or saved.shares != fresh.shares or saved.policy != fresh.policy:
            self.log.warning('shares changed in the site file: ledgers start anew', before=saved.names)
            return fresh
        return saved

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix('.tmp')
        temporary.write_text(json.dumps(self._partition.to_dict()))
        temporary.replace(self._file)

    def _on_source(self, message: BatteryStatus) -> None:
        now = self.clock.now()
        self._source = battery_from_msg(message, self.clock)
        dt = now - self._booked if self._booked > -inf else 0.0
        if dt > self.params.invalid_after:
            dt = 0.0  # nobody knows what flowed meanwhile: the reconciliation with the source books it
        self._booked = now
        readings = self._partition.refresh(self._source, self._in_force, dt)
        for name, reading in readings.items():
            if name in self._children:
                self._children[name].take(reading, self.reasons.get(name, ''))
        self.progress += 1

    def request(self, child: str, demand: Demand | None, now: float) -> None:
        """A child asks for a power (None = nothing). Requests are summed; opposite ones cancel at the source."""
        if not hasattr(self, '_partition'):
            return  # not configured: the children's readings grow old and say so
        before = self._requests.get(child)
        if demand is None:
            self._requests.pop(child, None)
            if before is None:
                return
        else:
            self._requests[child] = demand
        requests = {name: d.power for name, d in self._requests.items()}
        net = self._partition.net_request(requests)
        self._in_force, self.reasons = net.granted, net.reasons
        if not self.is_active:
            return
        leases = [d.lease for d in self._requests.values()] or [1.0]
        # The sum holds until the first lease ends, but at least until the other children had their next tick.
        lease = min(max(leases), max(min(leases), HOLD_TICKS * self.params.period))
        term = max((d.term for d in self._requests.values()), default=0)
        reactive = [d.reactive_power for d in self._requests.values() if d.reactive_power == d.reactive_power]
        # The last child's rest also goes through here: zero is sent once, then the lease runs out.
        self._sender.send(net.source_power, sum(reactive) if reactive else nan, now, lease, term)

    def diagnostics(self) -> dict[str, Any]:
        """Ledgers for people."""
        ledgers = self._partition.ledgers if hasattr(self, '_partition') else None
        if not ledgers:
            return {}
        return {
            f'{name} {label} [Wh]': f'{value:.1f}'
            for name, x in zip(self._partition.names, ledgers, strict=True)
            for label, value in (('stored', x.energy), ('charged', x.charged), ('discharged', x.discharged),
                                 ('lost', x.lost), ('correction', x.correction))
        }


class PartitionChildNode(LogicalBatteryNode):
    """One part of a divided battery, with the full contract."""

    Params: ClassVar[type] = ChildParams

    def configure_battery(self) -> None:
        """Find the partition, which runs in the same process."""
        self._given = BatteryReading()
        partition = self.ctx.nodes.get(self.params.partition)
        if not isinstance(partition, PartitionNode):
            raise RuntimeError(f'partition {self.params.partition!r} does not run in this process')
        self._owner = partition
        partition.attach(self)

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

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """The sum with what all siblings have planned and promised: opposite ones cancel at the source."""
        siblings = [over(c.scheduling.book.promised(), c.scheduling.own)
                    for c in self._owner.children if c is not self]
        return [(self._owner.params.source, total([plan, *siblings]))]

    def member_reading(self, member: str) -> BatteryReading | None:
        """The source as the partition last heard it."""
        return self._owner.source

    @property
    def owner_label(self) -> str:
        """The source knows the partition."""
        return str(self._owner.get_name())

    @property
    def lead_time(self) -> float:
        """That of the source."""
        return self._owner.source.lead_time if self._owner.source.lead_time > 0.0 else 0.0

    def command(self, demand: Demand | None, now: float) -> None:
        """Ask the partition."""
        self._owner.request(self.name, demand, now)
