"""Loop and devices of the pure chain: see `bench.chain`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any, NamedTuple

from bess_core.params import extract
from bess_core.site import NodeSpec
from bess_core.values import BatteryReading, ConverterReading, MeterReading, Quality
from bess_drivers.gate import Gate, Setpoint
from bess_sim.plant import Plant

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
        self.queue: list[tuple[Listener, Any]] = []
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
        for phase in self._phases:
            for count, fn in phase:
                if k % count == 0:
                    fn()
            while self.queue or self.posted:
                queue, self.queue = self.queue, []
                for listener, value in queue:
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
        self._handle: Listener = self.on_reading
        loop.every(spec.params.period, self.poll, 0)

    def poll(self) -> None:
        """Read now, handle later."""
        self.loop.posted.append((self._handle, self.device.read(self.loop.now)))

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
        self._efficiency: float = p.efficiency
        self._bms: str = p.bms
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
        self.gate.external(reading.max_charge_power / self._efficiency, reading.max_discharge_power * self._efficiency,
                           reading.time, tuple(reading.limit_reasons[:3]), self._bms)

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
        power, reactive = ordered
        self.gate.written(power, reactive, self.loop.now)


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
