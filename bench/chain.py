"""A simulated site without ROS: the pure functions of the node graph, in the order of the graph.

Each class below stands for one node type and does what its callbacks do, with the same parameters
and the same pure objects (gate, unit, aggregate, partition, mode, manager). A queue stands for the
executor: what a node publishes is handled in the order in which it was sent, then what was posted.
Delays and results are therefore those of `bess_sim.conductor.simulate`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isnan, nan
from typing import Any, NamedTuple

from bess_control.bounds import PowerManagerParams
from bess_control.load_estimate import without
from bess_control.manager import PowerManager
from bess_control.proposals import Proposal, ProposalBook
from bess_control.site_state import SiteMachine, SiteParams, SiteState
from bess_core.leases import LeaseHolder
from bess_core.params import extract
from bess_core.site import NodeSpec, Site
from bess_core.values import BatteryReading, ConverterReading, MeterReading, Quality
from bess_drivers.gate import Gate, Setpoint
from bess_sim.conductor import TOLERANCE, TOLERANCE_W, VIOLATION_TICKS, simulated_specs
from bess_sim.plant import Plant
from bess_sim.plant_config import BenchConfig
from bess_virtual.aggregate import combine, split
from bess_virtual.logical_battery_node import RELEASE_TICKS, Demand
from bess_virtual.partition import Expected, Partition, aged
from bess_virtual.shares import Policy
from bess_virtual.unit import Ages, UnitParams, limited, merge

Listener = Callable[[Any], None]


class Order(NamedTuple):
    """What a `PowerSetpoint` message carries. W, var, s."""

    power: float
    reactive_power: float
    lease: float
    source: str
    term: int
    sequence: int
    time: float


class Loop:
    """Time, topics and the queue of what was sent and not yet handled."""

    def __init__(self, plant: Plant, tick: float) -> None:
        self.plant, self.tick = plant, tick
        self.now = 0.0
        self.queue: deque[tuple[Listener, Any]] = deque()
        self.posted: list[tuple[Listener, Any]] = []
        self._topics: dict[str, list[Listener]] = {}
        self._phases: list[list[tuple[int, Callable[[], None]]]] = [[], [], [], []]

    def topic(self, name: str) -> list[Listener]:
        """Listeners of a topic, present and future."""
        return self._topics.setdefault(name, [])

    def publish(self, topic: list[Listener], value: Any) -> None:
        """Queue a value for all listeners."""
        for listener in topic:
            self.queue.append((listener, value))

    def every(self, period: float, fn: Callable[[], None], phase: int) -> None:
        """Call `fn` every `period` s. Raises ValueError unless that is a whole number of ticks."""
        count = round(period / self.tick)
        if count < 1 or abs(count * self.tick - period) > 1e-9:
            raise ValueError(f'a period of {period:g} s is not a whole number of ticks of {self.tick:g} s')
        self._phases[phase].append((count, fn))

    def run(self, k: int) -> None:
        """Tick number `k`: phase by phase, each until nothing is left to handle."""
        queue = self.queue
        for phase in self._phases:
            for count, fn in phase:
                if k % count == 0:
                    fn()
            while queue or self.posted:
                for _ in range(len(queue)):
                    listener, value = queue.popleft()
                    listener(value)
                posted, self.posted = self.posted, []
                for listener, value in posted:
                    listener(value)


class Driver:
    """A polled device: what it reads is published one turn later."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        self.loop, self.name, self.params = loop, spec.name, spec.params
        cls: Any = spec.cls.DeviceClass  # type: ignore[attr-defined]
        self.device = cls(extract(cls.Params, spec.params), read_only=spec.params.read_only)
        self.status = loop.topic(f'{spec.name}/status')
        loop.every(spec.params.period, self.poll, 0)

    def poll(self) -> None:
        """Read now, handle later."""
        self.loop.posted.append((self.on_reading, self.device.read(self.loop.now)))

    def on_reading(self, reading: Any) -> None:
        """A good reading."""
        reading.quality = Quality.OK
        self.loop.publish(self.status, reading)


class Meter(Driver):
    """Numbers its samples."""

    sequence = 0

    def on_reading(self, reading: MeterReading) -> None:
        """A good reading."""
        self.sequence += 1
        reading.sequence = self.sequence
        super().on_reading(reading)


class Converter(Driver):
    """The last gate and its device."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        super().__init__(loop, spec)
        p = spec.params
        self.gate = Gate(p.gate(), spec.name)
        self.gate.start()
        self.ordered = (nan, nan)
        self.output = self.gate.tick(0.0)
        loop.topic(f'{spec.name}/setpoint').append(self.on_setpoint)
        if p.bms:
            loop.topic(f'{p.bms}/status').append(self.on_bms)
        self._looked_at = -inf
        loop.every(p.gate_period, self.on_gate_period, 3)

    def on_reading(self, reading: ConverterReading) -> None:
        """The gate sees it first; then it is published with what the gate adds."""
        reading.quality = Quality.OK
        self.gate.reading(reading)
        self.step()
        out = self.output
        reading.setpoint, reading.reactive_setpoint = self.ordered
        reading.lease_remaining, reading.setpoint_source = out.lease_remaining, out.source
        reading.limit_reasons = list(out.limit_reasons)
        self.loop.publish(self.status, reading)

    def on_bms(self, reading: BatteryReading) -> None:
        """Limits of the battery behind."""
        if reading.quality == Quality.INVALID:
            return
        self._looked_at = -inf
        efficiency = self.params.efficiency
        self.gate.external(reading.max_charge_power / efficiency, reading.max_discharge_power * efficiency,
                           reading.time, tuple(reading.limit_reasons[:3]), self.params.bms)

    def on_setpoint(self, order: Order) -> None:
        """An order from above."""
        refused = self.gate.offer(
            Setpoint(order.power, order.lease, order.source, order.sequence, order.time, order.term,
                     order.reactive_power), self.loop.now)
        if not refused:
            self.step()

    def on_gate_period(self) -> None:
        """Look when nobody else did."""
        if self._looked_at != self.loop.now:
            self.step()

    def step(self) -> None:
        """What the gate lets through is written."""
        self._looked_at = self.loop.now
        self.output = out = self.gate.tick(self.loop.now)
        if out.write:
            self.ordered = (out.power, out.reactive_power)
            self.device.write_power(out.power, out.reactive_power, out.lease)
            self.loop.posted.append((self.written, self.ordered))

    def written(self, ordered: tuple[float, float]) -> None:
        """The device took it."""
        self.gate.written(*ordered, self.loop.now)


class Sender:
    """Numbered, leased orders to what lies below."""

    def __init__(self, loop: Loop, source: str, target: str, lease: float) -> None:
        self._loop, self._source, self._lease = loop, source, lease
        self._topic = loop.topic(f'{target}/setpoint')
        self._sequence = 0

    def send(self, power: float, reactive_power: float, lease: float = inf, term: int = 0) -> None:
        """Order a power (W, + = charging) for at most `lease` s."""
        self._sequence += 1
        loop = self._loop
        loop.publish(self._topic, Order(power, reactive_power, min(self._lease, lease), self._source, term,
                                        self._sequence, loop.now))


class Battery:
    """A logical battery. Subclasses fill in `measure` and `command`."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        self.loop, self.name, self.params = loop, spec.name, spec.params
        self.reading = BatteryReading()
        self.demand: Demand | None = None
        self._leases = LeaseHolder(spec.params.max_lease)
        self._posted = False
        self._resting = 0
        self._last_drive = self._last_publish = -inf
        self._status = loop.topic(f'{spec.name}/status')
        loop.topic(f'{spec.name}/setpoint').append(self.on_setpoint)
        loop.every(spec.params.period, self.on_tick, 2)

    def measure(self, now: float) -> BatteryReading:
        """State now."""
        raise NotImplementedError

    def command(self, demand: Demand | None, now: float) -> None:
        """Pass the demand on."""
        raise NotImplementedError

    def changed(self) -> None:
        """Refresh once everything that arrived at the same time is in."""
        if not self._posted:
            self._posted = True
            self.loop.posted.append((self.refresh, None))

    def refresh(self, _: None = None) -> None:
        """Measure and publish."""
        self._posted = False
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
        if now - self._last_drive > 0.9 * self.params.period:
            self.drive(now)
        if now - self._last_publish > self.params.max_age:
            self.refresh()

    def drive(self, now: float) -> None:
        """Decide what is asked now and pass it on."""
        self._last_drive = now
        order = self._leases.current(now)
        demand = None if order is None else Demand(
            order.power, order.reactive_power, order.source, order.expires - now, order.term)
        if demand is None and self.demand is not None:
            self._resting = RELEASE_TICKS
        if demand is None and self._resting > 0:
            self._resting -= 1
            source = self.demand.source if self.demand is not None else self.name
            self.command(Demand(0.0, nan, source, 1.0), now)
        else:
            if demand is not None:
                self._resting = 0
            self.command(demand, now)
        self.demand = demand


class Unit(Battery):
    """A BMS and its converter."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        super().__init__(loop, spec)
        p = spec.params
        self._bms, self._converter = BatteryReading(), ConverterReading()
        self._ages = Ages(p.bms_max_age, p.bms_invalid_after, p.max_age, p.invalid_after)
        self._unit = UnitParams(p.charge_efficiency, p.discharge_efficiency, p.max_charge_power,
                                p.max_discharge_power)
        self._sender = Sender(loop, spec.name, p.converter, p.lease)
        loop.topic(f'{p.bms}/status').append(self.on_bms)
        loop.topic(f'{p.converter}/status').append(self.on_converter)

    def on_bms(self, reading: BatteryReading) -> None:
        """News of one half."""
        self._bms = reading
        self.changed()

    def on_converter(self, reading: ConverterReading) -> None:
        """News of the other half."""
        self._converter = reading
        self.changed()

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
        self._members = [BatteryReading() for _ in p.members]
        self._senders = [Sender(loop, spec.name, name, p.lease) for name in p.members]
        self._shares = [0.0] * len(p.members)
        for i, name in enumerate(p.members):
            loop.topic(f'{name}/status').append(self._listener(i))

    def _listener(self, i: int) -> Listener:
        def on_member(reading: BatteryReading) -> None:
            self._members[i] = reading
            self.changed()

        return on_member

    def measure(self, now: float) -> BatteryReading:
        """All combined."""
        p = self.params
        return combine(self._members, now, p.max_age, p.invalid_after, limit=p.limit, names=self._names)

    def command(self, demand: Demand | None, now: float) -> None:
        """Split over the members."""
        if demand is None:
            return
        p = self.params
        allocation = split(
            demand.power, self._members, now, p.max_age, p.invalid_after, minimum=p.minimum_power or None,
            running=[s != 0.0 for s in self._shares] if p.minimum_power else None)
        self._shares = shares = allocation.powers.tolist()
        total = sum(abs(s) for s in shares)
        for sender, share in zip(self._senders, shares, strict=True):
            reactive = demand.reactive_power * (abs(share) / total if total > 0 else 1.0 / len(shares))
            sender.send(share, reactive, demand.lease, demand.term)


class PartitionOwner:
    """The ledgers of a divided battery."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        self.loop, self.name, self.params = loop, spec.name, p
        expected = (Expected(p.rated_energy, p.rated_charge_power, p.rated_discharge_power)
                    if p.rated_energy else None)
        self._partition = Partition(p.shares(), Policy(p.policy), expected, p.charge_efficiency,
                                    p.discharge_efficiency)
        self._sender = Sender(loop, spec.name, p.source, p.lease)
        self.children: dict[str, Child] = {}
        self._requests: dict[str, Demand] = {}
        self._in_force: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._booked = -inf
        loop.topic(f'{p.source}/status').append(self.on_source)

    def on_source(self, reading: BatteryReading) -> None:
        """Book what flowed, tell the children."""
        now = self.loop.now
        dt = now - self._booked if self._booked > -inf else 0.0
        if dt > self.params.invalid_after:
            dt = 0.0
        self._booked = now
        for name, part in self._partition.refresh(reading, self._in_force, dt).items():
            self.children[name].take(part, self._reasons.get(name, ''))

    def request(self, child: str, demand: Demand | None) -> None:
        """A child asks for a power (None = nothing)."""
        if demand is None:
            if self._requests.pop(child, None) is None:
                return
        else:
            self._requests[child] = demand
        demands = self._requests.values()
        net = self._partition.net_request({name: d.power for name, d in self._requests.items()})
        self._in_force, self._reasons = net.granted, net.reasons
        reactive = [d.reactive_power for d in demands if d.reactive_power == d.reactive_power]
        self._sender.send(net.source_power, sum(reactive) if reactive else nan,
                          min((d.lease for d in demands), default=1.0), max((d.term for d in demands), default=0))


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
        return aged(self._given, now, self.params.max_age, self.params.invalid_after)

    def command(self, demand: Demand | None, now: float) -> None:
        """Ask the partition."""
        self._owner.request(self.name, demand)


class Mode:
    """A control mode."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        cls: Any = spec.cls.ModeClass  # type: ignore[attr-defined]
        self.loop, self.name, self.params = loop, spec.name, p
        self._mode = cls(extract(cls.Params, p), spec.name, p.battery, p.meter)
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._granted: float | None = None
        self.active = True
        self._proposals = loop.topic('proposals')
        loop.topic(f'{p.battery}/status').append(self.on_battery)
        loop.topic(f'{p.meter}/status').append(self.on_meter)
        loop.topic(f'{p.battery}/setpoint').append(self.on_granted)
        self._others = dict.fromkeys(p.others, 0.0)  # W
        for name in p.others:
            loop.topic(f'{name}/status').append(partial(self.on_other, name))
        loop.every(p.period, self.on_period, 0)

    def on_battery(self, reading: BatteryReading) -> None:
        """News of the battery."""
        self._battery = reading

    def on_other(self, name: str, reading: BatteryReading) -> None:
        """News of a battery that serves the grid."""
        self._others[name] = 0.0 if reading.quality is Quality.INVALID else reading.power

    def on_granted(self, order: Order) -> None:
        """What the manager granted."""
        self._granted = order.power

    def on_meter(self, reading: MeterReading) -> None:
        """A fresh sample."""
        self._meter = without(reading, self._others.values())
        self.step()

    def on_period(self) -> None:
        """Speak up when the meter is silent."""
        if self._meter is None or self.loop.now - self._meter.time > self.params.period:
            self.step()

    def step(self) -> None:
        """One step of the mode."""
        if not self.active:
            return
        proposal = self._mode.step(self._meter, self._battery, self._granted, self.loop.now)
        if proposal is not None:
            self.loop.publish(self._proposals, proposal)

    def switch(self, on: bool) -> None:
        """As the site drives it."""
        if on and not self.active:
            self._mode.reset()
        elif self.active and not on:
            self.loop.publish(self._proposals, Proposal(
                self.name, self.params.battery, lease=1e-3, reason='mode is off', time=self.loop.now))
        self.active = on


class Manager:
    """The control tick."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        self.loop, self.name, self.params = loop, spec.name, p
        self._manager = PowerManager(extract(PowerManagerParams, p))
        self._book = ProposalBook()
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._state, self._cause = SiteState.INIT, ''
        self._was_asked = False
        self.ticks = 0
        self._sender = Sender(loop, spec.name, p.battery, p.lease)
        loop.topic(f'{p.battery}/status').append(self.on_battery)
        loop.topic('proposals').append(self.on_proposal)
        loop.topic('system_state').append(self.on_state)
        if p.meter:
            loop.topic(f'{p.meter}/status').append(self.on_meter)
        loop.every(p.tick_s, self.tick, 1)

    def on_battery(self, reading: BatteryReading) -> None:
        """News of the battery."""
        self._battery = reading

    def on_meter(self, reading: MeterReading) -> None:
        """A fresh sample."""
        self._meter = reading

    def on_proposal(self, proposal: Proposal) -> None:
        """What a mode wants."""
        self._book.put(proposal, self.loop.now)

    def on_state(self, state: tuple[SiteState, str]) -> None:
        """The site's state."""
        self._state, self._cause = state

    def tick(self) -> None:
        """One decision."""
        now = self.loop.now
        self.ticks += 1
        self._book.expire(now)
        decision = self._manager.tick(now, self._book, self._battery, self._meter, self._state, 0.0, self._cause)
        asked = not isnan(decision.asked)
        if asked or self._was_asked or decision.granted != 0.0 or self._state is not SiteState.RUN:
            self._sender.send(decision.granted, decision.granted_reactive)
        self._was_asked = asked


class SiteRoom:
    """The site's state: RUN once every required node is there; only the chosen mode stays on."""

    def __init__(self, loop: Loop, spec: NodeSpec, site: Site, modes: Sequence[Mode], present: set[str]) -> None:
        p = spec.params
        self.loop, self.name, self._modes, self._present = loop, spec.name, modes, present
        required = [n.name for n in site.nodes if n.required and n.name != spec.name]
        self._machine = SiteMachine(extract(SiteParams, p), required, [m.name for m in modes], p.mode, 0.0)
        if not self._machine.wants_run:
            raise ValueError(f'{spec.name}: autostart is off, so nothing would run')
        self._state = loop.topic('system_state')
        loop.every(p.period, self.look, 2)

    def look(self) -> None:
        """Who is there, and what follows from it."""
        machine = self._machine
        if machine.state is not SiteState.INIT:
            return
        for name in machine.required:
            if name in self._present:
                machine.node_active(name, self.loop.now)
        if machine.state is not SiteState.RUN:
            raise ValueError(f'{self.name}: the site would not run, required nodes are missing: '
                             f'{", ".join(machine.missing)}')
        for mode in self._modes:
            mode.switch(mode.name == machine.mode)
        self.loop.publish(self._state, (machine.state, machine.cause))


_KINDS: dict[str, type[Driver | Battery | PartitionOwner | Mode | Manager]] = {
    'bms': Driver, 'meter': Meter, 'converter': Converter, 'partition': PartitionOwner, 'mode': Mode,
    'manager': Manager,
}
_BATTERIES: dict[str, type[Battery]] = {'unit': Unit, 'aggregate': Aggregate}


class Chain:
    """A site as pure objects. Raises ValueError for a node that has no counterpart here."""

    def __init__(self, site: Site, plant: Plant, config: BenchConfig, tick: float) -> None:
        self.loop = loop = Loop(plant, tick)
        specs = simulated_specs(site, plant, config, tick)
        self.parts: dict[str, Any] = {}
        for spec in specs:
            if spec.role in _KINDS:
                part: Any = _KINDS[spec.role](loop, spec)
            elif spec.role == 'battery' and spec.type in _BATTERIES:
                part = _BATTERIES[spec.type](loop, spec)
            elif spec.type == 'partition_child':
                part = Child(loop, spec, self.parts[spec.params.partition])
            elif spec.role == 'site':
                part = SiteRoom(loop, spec, site, self._of(Mode), {s.name for s in specs})
            else:
                raise ValueError(f'{spec.name}: a node of type {spec.type!r} has no counterpart in the pure chain')
            self.parts[spec.name] = part
        managers = self._of(Manager)
        if len(managers) != 1:
            raise ValueError(f'the pure chain needs exactly one power manager, the site has {len(managers)}')
        self.manager = managers[0]
        self.batteries = self._of(Battery)
        self.violations = 0
        self._ticks = 0
        self._beyond: dict[str, int] = {}

    def _of(self, kind: type[Any]) -> list[Any]:
        return [p for p in self.parts.values() if isinstance(p, kind)]

    def run(self, hours: float) -> None:
        """Run so many simulated hours more."""
        loop, plant, tick = self.loop, self.loop.plant, self.loop.tick
        first = self._ticks + 1
        self._ticks += round(hours * 3600.0 / tick)
        for k in range(first, self._ticks + 1):
            plant.step(tick)
            loop.now = k * tick
            loop.run(k)
            self._check()

    def _check(self) -> None:
        """Count powers beyond their limits, as the conductor does."""
        for battery in self.batteries:
            r = battery.reading
            limit = r.max_charge_power if r.power > 0 else r.max_discharge_power
            if isnan(r.power) or isnan(limit) or abs(r.power) <= limit * (1 + TOLERANCE) + TOLERANCE_W:
                if self._beyond:
                    self._beyond.pop(battery.name, None)
                continue
            count = self._beyond[battery.name] = self._beyond.get(battery.name, 0) + 1
            if count == VIOLATION_TICKS + 1:
                self.violations += 1


def simulate_chain(site: Site, *, hours: float = 24.0, tick: float = 1.0) -> dict[str, Any]:
    """As `bess_sim.conductor.simulate`, without ROS; `faults` are those of the last gates only.

    Raises ValueError for a site that cannot be simulated in this way.
    """
    if not site.simulation:
        raise ValueError(f'{site.path}: there is no section "simulation"')
    if not (tick > 0 and hours > 0):
        raise ValueError(f'tick ({tick} s) and hours ({hours} h) must be above 0')
    config = BenchConfig.model_validate(dict(site.simulation))
    plant = Plant(config)
    started = time.monotonic()
    chain = Chain(site, plant, config, tick)
    chain.run(hours)
    wall = time.monotonic() - started
    meter = plant.meter()
    return {
        'nodes_active': len(chain.parts),
        'control_ticks': chain.manager.ticks,
        'tick_jitter_p99_ms': None,
        'limit_violations': chain.violations,
        'faults': sorted(f'{c.name}/{a.id}' for c in chain._of(Converter) for a in c.gate.alarms),
        'energy_import_wh': round(meter.energy_import, 3),
        'energy_export_wh': round(meter.energy_export, 3),
        'soc': {b.name: round(b.reading.soc, 6) for b in chain.batteries},
        'simulated_s': chain.loop.now,
        'wall_s': round(wall, 2),
        'speed': round(chain.loop.now / wall, 1),
    }


__all__ = ['Chain', 'simulate_chain']
