"""Logical batteries of the pure chain: see `bench.chain`."""

from __future__ import annotations

from math import inf, nan

from bess_core.leases import LeaseHolder
from bess_core.site import NodeSpec
from bess_core.values import BatteryReading, ConverterReading
from bess_virtual.aggregate import combine, split
from bess_virtual.demand import Demand, Release
from bess_virtual.partition import HOLD_TICKS, Expected, Partition, aged
from bess_virtual.shares import Policy
from bess_virtual.unit import Ages, UnitParams, limited, merge

from .chain_devices import Listener, Loop, Order, Sender


class Battery:
    """A logical battery. Subclasses fill in `measure` and `command`."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        self.loop, self.name = loop, spec.name
        self._period: float = spec.params.period
        self._max_age: float = spec.params.max_age
        self._invalid_after: float = spec.params.invalid_after
        self.reading = BatteryReading()
        self.demand: Demand | None = None
        self._leases = LeaseHolder(spec.params.max_lease)
        self.parts = frozenset({''})
        self._heard: set[str] = set()
        self._posted = False
        self._release = Release()
        self._last_drive = self._last_publish = -inf
        self._status = loop.topic(f'{spec.name}/status')
        loop.topic(f'{spec.name}/setpoint').append(self.on_setpoint)
        loop.every(spec.params.period, self.on_tick, 2)

    def measure(self, now: float) -> BatteryReading:
        """State now."""
        raise NotImplementedError(f'{type(self).__name__} does not measure')

    def command(self, demand: Demand | None, now: float) -> None:
        """Pass the demand on."""
        raise NotImplementedError(f'{type(self).__name__} passes nothing on')

    def changed(self, part: str = '') -> None:
        """Refresh once all parts were heard, or everything that arrived at the same time is in."""
        self._heard.add(part)
        if len(self._heard) == len(self.parts):  # nothing else is ever heard
            self.refresh()
        elif not self._posted:
            self._posted = True
            self.loop.posted.append((self._refresh_posted, None))

    def _refresh_posted(self, _: None) -> None:
        if self._posted:
            self.refresh()

    def refresh(self) -> None:
        """Measure and publish."""
        self._posted = False
        self._heard.clear()
        now = self.loop.now
        reading, demand = self.measure(now), self.demand
        if demand is not None:
            reading.setpoint, reading.setpoint_source = demand.power, demand.source
        else:
            reading.setpoint, reading.setpoint_source = nan, ''
        self.reading = reading
        self._last_publish = now
        self.loop.publish(self._status, reading)

    def on_setpoint(self, order: Order) -> None:
        """A leased order."""
        now = self.loop.now
        refused = self._leases.offer(
            order.power, order.lease, order.source, now, given=order.time,
            reactive_power=order.reactive_power, term=order.term, sequence=order.sequence)
        if not refused:
            self.drive(now)

    def on_tick(self) -> None:
        """Leases end, values age."""
        now = self.loop.now
        if now - self._last_drive > 0.9 * self._period:
            self.drive(now)
        if now - self._last_publish > self._max_age:
            self.refresh()

    def drive(self, now: float) -> None:
        """Decide what is asked now and pass it on."""
        self._last_drive = now
        order = self._leases.current(now)
        demand = None if order is None else Demand(
            order.power, order.reactive_power, order.source, order.expires - now, order.term)
        self.command(self._release.follow(self.demand, demand, self.name), now)
        self.demand = demand


class Unit(Battery):
    """A BMS and its converter."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        super().__init__(loop, spec)
        p = spec.params
        self._bms, self._converter = BatteryReading(), ConverterReading()
        self.parts = frozenset({'bms', 'converter'})
        self._ages = Ages(p.bms_max_age, p.bms_invalid_after, p.max_age, p.invalid_after)
        self._unit = UnitParams(p.charge_efficiency, p.discharge_efficiency, p.max_charge_power,
                                p.max_discharge_power)
        self._sender = Sender(loop, spec.name, p.converter, p.lease)
        loop.topic(f'{p.bms}/status').append(self.on_bms)
        loop.topic(f'{p.converter}/status').append(self.on_converter)

    def on_bms(self, reading: BatteryReading) -> None:
        """News of one half."""
        self._bms = reading
        self.changed('bms')

    def on_converter(self, reading: ConverterReading) -> None:
        """News of the other half."""
        self._converter = reading
        self.changed('converter')

    def measure(self, now: float) -> BatteryReading:
        """Both merged."""
        return merge(self._bms, self._converter, now, self._ages, self._unit)

    def command(self, demand: Demand | None, now: float) -> None:
        """Within the limits, on to the converter."""
        if demand is not None:
            self._sender.send(limited(demand.power, self.reading), demand.reactive_power, demand.lease, demand.term)


class Aggregate(Battery):
    """Several batteries as one."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        super().__init__(loop, spec)
        p = spec.params
        self._names = list(p.members)
        self.parts = frozenset(p.members)
        self._members = [BatteryReading() for _ in p.members]
        self._senders = [Sender(loop, spec.name, name, p.lease) for name in p.members]
        self._shares = [0.0] * len(p.members)
        self._limit = p.limit
        self._minimum = p.minimum_power or None
        for i, name in enumerate(p.members):
            loop.topic(f'{name}/status').append(self._listener(i, name))

    def _listener(self, i: int, name: str) -> Listener:
        def on_member(reading: BatteryReading) -> None:
            self._members[i] = reading
            self.changed(name)

        return on_member

    def measure(self, now: float) -> BatteryReading:
        """All combined."""
        return combine(self._members, now, self._max_age, self._invalid_after, limit=self._limit,
                       names=self._names)

    def command(self, demand: Demand | None, now: float) -> None:
        """Split over the members."""
        if demand is None:
            return
        minimum = self._minimum
        allocation = split(
            demand.power, self._members, now, self._max_age, self._invalid_after, minimum=minimum,
            running=[s != 0.0 for s in self._shares] if minimum else None)
        self._shares = shares = allocation.powers.tolist()
        total = 0.0
        for share in shares:
            total += abs(share)
        for sender, share in zip(self._senders, shares, strict=True):
            reactive = demand.reactive_power * (abs(share) / total if total > 0 else 1.0 / len(shares))
            sender.send(share, reactive, demand.lease, demand.term)


class PartitionOwner:
    """The ledgers of a divided battery."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        self.loop, self.name = loop, spec.name
        self._period: float = p.period
        self._max_age: float = p.max_age
        self._invalid_after: float = p.invalid_after
        expected = (Expected(p.rated_energy, p.rated_charge_power, p.rated_discharge_power)
                    if p.rated_energy else None)
        self._partition = Partition(p.shares(), Policy(p.policy), expected, p.charge_efficiency,
                                    p.discharge_efficiency)
        self._sender = Sender(loop, spec.name, p.source, p.lease)
        self.children: dict[str, Child] = {}
        self._requests: dict[str, Demand] = {}
        self._in_force: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._booked, self._dt = -inf, 0.0
        self._send_posted, self._sent = False, nan
        loop.topic(f'{p.source}/status').append(self.on_source)

    def on_source(self, reading: BatteryReading) -> None:
        """Book what flowed, tell the children; a drained or full child stops now."""
        now = self.loop.now
        dt = now - self._booked if self._booked > -inf else 0.0
        gap = dt > self._invalid_after
        self._booked = now
        if not gap and dt > 0.0:
            self._dt = min(dt, self._max_age)
        for name, part in self._partition.refresh(reading, self._in_force, 0.0 if gap else dt, gap=gap).items():
            self.children[name].take(part, self._reasons.get(name, ''))
        if self._requests:
            self.send(only_changes=True)

    def request(self, child: str, demand: Demand | None) -> None:
        """A child asks for a power (None = nothing)."""
        if demand is None:
            if self._requests.pop(child, None) is None:
                return
        else:
            self._requests[child] = demand
        if not self._send_posted:
            self._send_posted = True
            self.loop.posted.append((self._send_soon, None))

    def _send_soon(self, _: None) -> None:
        self._send_posted = False
        self.send()

    def send(self, *, only_changes: bool = False) -> None:
        """Tell the source the sum of what the children may have."""
        net = self._partition.net_request({name: d.power for name, d in self._requests.items()},
                                          max(self._period, self._dt))
        self._in_force, self._reasons = net.granted, net.reasons
        if only_changes and net.source_power == self._sent:
            return
        reactive, shortest, longest, term = nan, inf, 0.0, 0
        for d in self._requests.values():
            if d.reactive_power == d.reactive_power:
                reactive = d.reactive_power if reactive != reactive else reactive + d.reactive_power
            shortest, longest, term = min(shortest, d.lease), max(longest, d.lease), max(term, d.term)
        if not self._requests:
            shortest = longest = 1.0
        self._sender.send(net.source_power, reactive, min(longest, max(shortest, HOLD_TICKS * self._period)), term)
        self._sent = net.source_power


class Child(Battery):
    """One part of a divided battery."""

    def __init__(self, loop: Loop, spec: NodeSpec, owner: PartitionOwner) -> None:
        super().__init__(loop, spec)
        self._given = BatteryReading()
        self._owner = owner
        owner.children[spec.name] = self

    def take(self, reading: BatteryReading, reason: str) -> None:
        """A new reading from the partition."""
        if reason:
            reading.limit_reasons.append(reason)
        self._given = reading
        self.changed()

    def measure(self, now: float) -> BatteryReading:
        """The partition's reading, aged."""
        return aged(self._given, now, self._max_age, self._invalid_after)

    def command(self, demand: Demand | None, now: float) -> None:
        """Ask the partition."""
        self._owner.request(self.name, demand)
