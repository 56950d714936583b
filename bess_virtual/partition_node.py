"""Partition nodes: one battery divided among several, each a logical battery with a ledger of its own.

The partition itself (`type: partition`) owns the source and the ledgers; each child is a lifecycle
node with the full contract, made by the same entry of the site file, or while the site runs
(`~/add_child`). What was changed while it ran is kept and goes before the site file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import fsum, inf, nan
from typing import Any, ClassVar

from bess.msg import BatteryStatus, LedgerState
from bess.srv import AddChild, EnergyStatement, GetLedgers, RemoveChild, ResizeChild
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import battery_from_msg
from bess_core.node import SUCCESS, BessNode
from bess_core.ticker import Handle
from bess_core.values import BatteryReading, Quality, Severity

from .demand import Demand, apart
from .partition import HOLD_TICKS
from .partition_answers_node import ledger_state
from .partition_child_node import PartitionChildNode, child_params, end_child, start_child
from .partition_desk_node import PartitionDesk
from .partition_params_node import ChildParams, PartitionParams, ShareParams
from .setpoint_sender_node import SetpointSender

SAVE_S = 10.0
LOOK_S = 0.5  # between looks whether the source is silent
TELL_S = 1.0  # between ledger messages
GATHER_S = 0.02  # how long orders that one owner gave at one moment are waited for
DRIFT_WH, DRIFT_FRACTION = 100.0, 0.05  # what counter and integrated power may differ by in one period


class PartitionNode(BessNode):
    """Owner of the source and of the ledgers; see `PartitionParams`."""

    Params: ClassVar[type] = PartitionParams
    role: ClassVar[str] = 'partition'

    @staticmethod
    def expand(name: str, parameters: PartitionParams) -> list[tuple[str, str, Any]]:
        """The child nodes that belong to this one: (name, type, parameters)."""
        return [(child, 'partition_child', child_params(name, parameters)) for child in parameters.children]

    def __init__(self, name: str, parameters: PartitionParams, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.child_nodes: dict[str, PartitionChildNode] = {}  # also while the partition is configured anew

    def on_bess_configure(self) -> None:
        """Restore the ledgers, listen to the source."""
        p = self.params
        self._requests: dict[str, Demand] = {}
        self.reasons: dict[str, str] = {}
        self._source = BatteryReading()
        self._send_posted = False
        self._gathering: Handle | None = None
        self._booked = -inf
        self._dt = p.period
        self._in_force: dict[str, float] = {}
        self._sent = nan
        self._silent = False
        self._desk = PartitionDesk(self)
        self._partition = self._desk.restore()
        self._gap = True  # since the ledgers were saved
        self._sender = SetpointSender(self, p.source, p.lease)
        self._subscription = self.create_subscription(
            BatteryStatus, self.ctx.topic(f'{p.source}/status'), self._on_source, qos.MEASUREMENT)
        self._ledgers = self.create_publisher(LedgerState, '~/ledgers', qos.MEASUREMENT)
        self._services_own = [
            self.create_service(GetLedgers, '~/get_ledgers', self._on_get_ledgers),
            self.create_service(AddChild, '~/add_child', self._desk.on_add),
            self.create_service(ResizeChild, '~/resize_child', self._desk.on_resize),
            self.create_service(RemoveChild, '~/remove_child', self._desk.on_remove),
            self.create_deferred_service(EnergyStatement, '~/energy_statement', self._desk.on_statement),
        ]
        # Simulated time passes too fast to write that often, and nothing is lost with it.
        self.every(60 * SAVE_S if self.clock.simulated else SAVE_S, lambda _: self._desk.save())
        self.every(LOOK_S, lambda _: self._look_at_source())
        self.every(TELL_S, lambda _: self._tell_ledgers())
        self.ctx.post(lambda: self._guarded(self.sync_children))

    def on_bess_activate(self) -> None:
        """Children that were added while the site ran follow the partition."""
        self.ctx.post(lambda: self._guarded(self.sync_children))

    def on_bess_cleanup(self) -> None:
        """Keep the ledgers."""
        if hasattr(self, '_desk'):
            self._end_gathering()
            try:
                self._desk.close()
            finally:  # also when the disk is full
                for service in getattr(self, '_services_own', []):
                    self.destroy_service(service)
                for attribute, destroy in (('_subscription', self.destroy_subscription),
                                           ('_ledgers', self.destroy_publisher)):
                    if hasattr(self, attribute):
                        destroy(getattr(self, attribute))
                        delattr(self, attribute)
                if hasattr(self, '_sender'):
                    self._sender.close()
                    del self._sender
                self._services_own = []
                if hasattr(self, '_partition'):
                    del self._partition
                del self._desk

    def close(self) -> None:
        """End the children that no site file names, then this; another partition of the name finds them in the file."""
        for node in self.guests():
            end_child(self.ctx, node)
        super().close()

    # -- children ------------------------------------------------------------------------------------

    def guests(self) -> list[PartitionChildNode]:  # type: ignore[override]
        """Children that were added while the site runs."""
        return [n for name, n in self.child_nodes.items()
                if name not in self.params.children and self.ctx.nodes.get(name) is n]

    @property
    def children(self) -> list[PartitionChildNode]:
        """Child nodes that reported for duty."""
        return list(self.child_nodes.values())

    @property
    def source(self) -> BatteryReading:
        """Last reading of the source."""
        return getattr(self, '_source', BatteryReading())

    def attach(self, child: PartitionChildNode) -> None:
        """A child node of this process reports for duty."""
        self.child_nodes[child.get_name()] = child

    def has_child(self, name: str) -> bool:
        """Whether this is a child now."""
        return hasattr(self, '_partition') and name in self._partition.children

    def sync_children(self) -> None:
        """Make the node of every child that has none, and bring it as far up as the partition itself is."""
        if not hasattr(self, '_partition'):
            return
        for name in self._partition.children:
            if name in self.params.children:
                continue  # made by the container from the site file
            node = self.ctx.nodes.get(name) or start_child(self.ctx, name, child_params(self.name, self.params))
            if not isinstance(node, PartitionChildNode):
                self.raise_fault('partition.child', Severity.ERROR, f'{name!r} is another node; it cannot be a child')
                continue
            if name not in self.child_nodes and node.trigger_configure() != SUCCESS:
                continue
            if self.is_active and not node.is_active:
                node.trigger_activate()

    def drop_child(self, name: str) -> None:
        """The node of a removed child ends; one of the site file stays, asks nothing and says why."""
        node = self.child_nodes.get(name)
        self._requests.pop(name, None)
        if node is None:
            return
        node.retire()
        if name not in self.params.children:
            self.child_nodes.pop(name)
            self.ctx.post(lambda: self._guarded(end_child, self.ctx, node))
        self.send(self.clock.now())

    # -- measuring -----------------------------------------------------------------------------------

    def _on_source(self, message: BatteryStatus) -> None:
        now = self.clock.now()
        self._source = battery_from_msg(message, self.clock)
        dt = now - self._booked if self._booked > -inf else 0.0
        # Nobody knows what flowed in a gap: counters and reconciliation with the source book it.
        gap, self._gap = self._gap or dt > self.params.invalid_after, False
        self._booked = now
        if not gap and dt > 0.0:
            self._dt = min(dt, self.params.max_age)
        self._take(self._source, 0.0 if gap else dt, gap)
        if self._silent:
            self._silent = False
            self.clear_fault('partition.source')
        if self._partition.closed:
            self._check_drift()
            self._desk.save()
        if self.is_active and self._requests and not self._send_posted and self._gathering is None:
            self.send(now, only_changes=True)  # a drained child stops now, not at its next tick
        self.progress += 1

    def _take(self, source: BatteryReading, dt: float, gap: bool) -> None:
        readings = self._partition.refresh(source, self._in_force_now(), dt, self.clock.wall(), gap)
        for name, reading in readings.items():
            if name in self.child_nodes:
                self.child_nodes[name].take(reading, self.reasons.get(name, ''))
        broken = self._partition.broken_promises() if source.quality == Quality.OK else []
        self.set_fault(bool(broken), 'partition.promise', Severity.WARNING,
                       '; '.join(broken) + ': each promise is cut in proportion')

    def _in_force_now(self) -> dict[str, float]:
        return {name: power for name, power in self._in_force.items() if self.has_child(name)}

    def _look_at_source(self) -> None:
        """A source that says nothing any more is gone: its children may do nothing, and say so."""
        age = self.clock.now() - self._booked
        if self._silent or self._booked == -inf or age <= self.params.invalid_after:
            return
        self._silent = True
        text = f'no status from {self.params.source} for {age:.0f} s'
        self.raise_fault('partition.source', Severity.ERROR, text)
        self._take(replace(self._source, quality=Quality.INVALID, power=nan, current=nan, max_charge_power=0.0,
                           max_discharge_power=0.0, max_charge_current=0.0, max_discharge_current=0.0,
                           limit_reasons=[text]), 0.0, False)
        self.send(self.clock.now())

    def _check_drift(self) -> None:
        record, booked = self._partition.closed[-1], self._partition.booked
        throughput = record.source.taken / 1000 + record.source.given / 1000
        off = abs(throughput - booked)
        self.set_fault(
            record.counters is not None and not record.gap and off > DRIFT_WH + DRIFT_FRACTION * throughput,
            'partition.drift', Severity.WARNING,
            f'counters of {self.params.source} say {throughput:.0f} Wh, its power {booked:.0f} Wh in one period')

    # -- commanding ----------------------------------------------------------------------------------

    def request(self, child: str, demand: Demand | None, now: float) -> None:
        """A child asks for a power (None = nothing). Requests are summed; opposite ones cancel at the source."""
        if not self.has_child(child):
            return  # not configured: the children's readings grow old and say so
        before = self._requests.get(child)
        if demand is None:
            self._requests.pop(child, None)
            if before is None:
                return
        else:
            self._requests[child] = demand
        # Children that are ordered at the same moment change together, see `apart`.
        if not self._send_posted:
            self._send_posted = True
            self.ctx.post(lambda: self._guarded(self._send_soon))

    def _send_soon(self) -> None:
        self._send_posted = False
        if not hasattr(self, '_sender') or not hasattr(self, '_partition'):
            return
        if not apart(self._requests.values()):
            self._end_gathering()
            self.send(self.clock.now())
        elif self._gathering is None:
            self._gathering = self.ctx.ticker.every(GATHER_S, partial(self._guarded, self._gathered))

    def _gathered(self, _: object) -> None:
        """The other orders did not come in time: the owner orders its batteries one by one, or one was lost."""
        if self._end_gathering():
            self.send(self.clock.now())

    def _end_gathering(self) -> bool:
        """Whether orders were being gathered."""
        gathering, self._gathering = self._gathering, None
        if gathering is not None:
            gathering.cancel()
        return gathering is not None

    def send(self, now: float, *, only_changes: bool = False) -> None:
        """Tell the source the sum of what the children may have."""
        net = self._partition.net_request({name: d.power for name, d in self._requests.items()},
                                          max(self.params.period, self._dt))
        self._in_force, self.reasons = net.granted, net.reasons
        if not self.is_active or (only_changes and net.source_power == self._sent):
            return
        leases = [d.lease for d in self._requests.values()] or [1.0]
        # The sum holds until the first lease ends, but at least until the other children had their next tick.
        lease = min(max(leases), max(min(leases), HOLD_TICKS * self.params.period))
        term = max((d.term for d in self._requests.values()), default=0)
        reactive = [d.reactive_power for d in self._requests.values() if d.reactive_power == d.reactive_power]
        # The last child's rest also goes through here: zero is sent once, then the lease runs out.
        self._sender.send(net.source_power, sum(reactive) if reactive else nan, now, lease, term)
        self._sent = net.source_power

    # -- telling -------------------------------------------------------------------------------------

    @property
    def notices(self) -> list[str]:
        """What people should know about the ledgers."""
        return self._desk.notices + self._partition.broken_promises()

    def _state(self) -> LedgerState:
        return ledger_state(self._partition, self.clock, self.name, self.params.source, self.notices)

    def _tell_ledgers(self) -> None:
        if self._ledgers.get_subscription_count():
            self._ledgers.publish(self._state())

    def _on_get_ledgers(self, _: GetLedgers.Request, response: GetLedgers.Response) -> GetLedgers.Response:
        response.state = self._state()
        if self._partition.ledgers is None:
            response.message = 'the energy of the source is not known yet'
        return response

    def diagnostics(self) -> dict[str, Any]:
        """Ledgers for people."""
        if not hasattr(self, '_partition'):
            return {}
        partition = self._partition
        values: dict[str, Any] = {f'notice {i}': text for i, text in enumerate(self.notices, start=1)}
        drift = partition.period.drift()
        if drift[0] == drift[0]:
            values['drift in the open period [Wh]'] = f'in {drift[0]:+.1f}, out {drift[1]:+.1f}'
        if partition.ledgers:
            values['corrections [Wh]'] = f'{fsum(abs(x.correction) for x in partition.ledgers):.1f}'
            values |= {
                f'{name} {label} [Wh]': f'{value:.1f}'
                for name, x in zip(partition.names, partition.ledgers, strict=True)
                for label, value in (('stored', x.energy), ('charged', x.charged), ('discharged', x.discharged),
                                     ('moved in', x.moved_in), ('moved out', x.moved_out), ('lost', x.lost),
                                     ('correction', x.correction))}
        return values


__all__ = ['ChildParams', 'PartitionChildNode', 'PartitionNode', 'PartitionParams', 'ShareParams']
