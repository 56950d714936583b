"""A physical battery of two functions (`bess_drivers.simple`) as a logical battery with the full contract.

The last gate stands here: leases, limits, ramps and the follow-error of converters, with the power at the
battery's own terminals; what leaves it is a current at the present voltage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from math import inf, nan
from typing import Any, ClassVar

from bess.srv import GetStatus
from bess_core.context import NodeContext
from bess_core.params import extract, merge, param
from bess_core.values import Alarm, BatteryReading, ConverterReading, ConverterState, Identity, Quality, Severity
from bess_drivers.bus import Client, InlineBus, Order, bus_for
from bess_drivers.device import DeviceError
from bess_drivers.gate import Gate, GateParams, Setpoint
from bess_drivers.simple import SimpleDevice, params_of

from .demand import Demand
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams
from .partition import aged


@dataclass(frozen=True, kw_only=True)
class PhysicalParams(LogicalBatteryParams):
    """Parameters of every battery of the group `bess.batteries`, beside its own."""

    poll: float = param(1.0, 's', 'how often `refresh` is called', low=0.02, high=3600.0)
    polling: str = param('active', doc='"active": every `poll`; "lazy": only when somebody asks and the values '
                                       'are STALE', choices=['active', 'lazy'])
    max_age: float = param(3.0, 's', 'older values are STALE', low=0.05, high=3600.0)
    port: str = param('', doc='batteries with the same port are asked one after the other; empty = an own thread')
    read_only: bool = param(False, doc='`set_current` is never called')
    errors_to_fault: int = param(3, doc='failed polls in a row that make a fault', low=1, high=1000)
    max_charge_current: float = param(inf, 'A', 'configured limit', low=0.0)
    max_discharge_current: float = param(inf, 'A', 'configured limit', low=0.0)
    longest_lease: float = param(10.0, 's', 'an order is not held for longer without a new one', low=0.1, high=3600.0)
    expiry_ramp: float = param(5000.0, 'W/s', 'ramp to zero after a lease ended', low=0.1, high=1e12)
    rewrite: float = param(1.0, 's', 'an unchanged current is ordered again after this time', low=0.05, high=60.0)
    follow_tolerance: float = param(100.0, 'W', 'deviation from the order that is no fault', low=0.0, high=1e9)
    follow_time: float = param(5.0, 's', 'time that the battery may take to follow', low=0.1, high=600.0)

    def gate(self) -> GateParams:
        """Parameters of the last gate."""
        return GateParams(
            read_only=self.read_only, longest_lease_s=self.longest_lease, expiry_ramp=self.expiry_ramp,
            max_reading_age_s=max(self.invalid_after, 0.1), refresh_s=self.rewrite,
            follow_tolerance=self.follow_tolerance, follow_time_s=self.follow_time)


class PhysicalBatteryNode(LogicalBatteryNode):
    """See the module."""

    BatteryClass: ClassVar[Any]
    Params: ClassVar[type] = PhysicalParams

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.hardware_id = ''
        self._bus: InlineBus | None = None
        self._client: Client | None = None
        self._asking: list[Any] = []  # answers that wait for a fresh reading

    def configure_battery(self) -> None:
        """Start polling; the device may be away, it is tried again and again."""
        p = self.params
        self._measured = BatteryReading()
        self._gate = Gate(p.gate(), self.name)
        self._failed = 0
        self._ordered = nan  # A, last given to the bus
        self._sequence = 0
        self._offered: list[str] = []  # why the last order was held back
        own: Any = extract(params_of(self.BatteryClass), p)
        with_params = hasattr(self.BatteryClass, 'Params')
        device = SimpleDevice(
            lambda: self.BatteryClass(own) if with_params else self.BatteryClass(), read_only=p.read_only,
            max_charge_current=p.max_charge_current, max_discharge_current=p.max_discharge_current)
        self._device = device
        self._bus = bus_for(self.ctx.shared, f'battery:{p.port or self.name}', self.clock, self.ctx.post)
        self._client = Client(
            name=self.name, device=device, poll=lambda: device.read(self.clock.now()),
            period=inf if p.polling == 'lazy' else p.poll, on_reading=partial(self._guarded, self._on_reading),
            on_error=partial(self._guarded, self._on_error), on_identity=partial(self._guarded, self._on_identity))
        self._bus.add(self._client)
        if self.clock.simulated:
            bus = self._bus
            self.every(p.poll, lambda _: bus.run_due())

    def cleanup_battery(self) -> None:
        """Let the device go."""
        self._answer()
        if self._bus is not None and self._client is not None:
            self._bus.remove(self._client)
        self._bus = self._client = None

    def on_bess_activate(self) -> None:
        """From now on orders are passed on."""
        self._gate.start()

    def on_bess_deactivate(self) -> None:
        """Zero at once; measuring goes on."""
        super().on_bess_deactivate()
        self._gate.stop('inactive')
        if self._ordered == self._ordered and not self.params.read_only:
            self._write(0.0)

    # -- what the bus brings -------------------------------------------------------------------------

    def _on_identity(self, identity: Identity) -> None:
        self.hardware_id = identity.serial or identity.model
        self.log.info('battery connected', model=identity.model, serial=identity.serial)

    def _on_reading(self, reading: BatteryReading) -> None:
        self._failed = 0
        self.sync_alarms((), 'comm')
        reading.quality = Quality.OK
        self._measured = reading
        self._gate.reading(ConverterReading(
            time=reading.time, quality=Quality.OK, state=ConverterState.RUNNING, active_power=reading.power,
            max_charge_power=reading.max_charge_power, max_discharge_power=reading.max_discharge_power))
        self._step()
        self.refresh()
        self._answer()

    def _on_error(self, error: DeviceError) -> None:
        self._failed += 1
        if self._failed >= self.params.errors_to_fault:
            self.sync_alarms(
                (Alarm(f'comm.{error.kind}', Severity.ERROR, f'{self._failed} polls failed: {error}'),), 'comm')
        self.refresh()
        self._answer()

    # -- the contract --------------------------------------------------------------------------------

    def measure(self, now: float) -> BatteryReading:
        """The last reading, aged, with what holds orders back."""
        p = self.params
        return replace(aged(self._measured, now, p.max_age, p.invalid_after),
                       limit_reasons=[*self._measured.limit_reasons, *self._offered[:3]])

    def command(self, demand: Demand | None, now: float) -> None:
        """Through the gate; None leaves the lease to its end."""
        if demand is not None:
            if self.params.polling == 'lazy' and now - self._measured.time > self.params.max_age:
                self._poll_now()
            self._sequence += 1
            lease = max(min(demand.lease, self.params.longest_lease), 1e-3)
            reason = self._gate.offer(Setpoint(demand.power, lease, self.name, self._sequence, now, demand.term), now)
            if reason:
                self._refusals.refuse(demand.source, reason, now, expected=reason.endswith('inactive'))
                self._offered = [reason]
        self._step()

    def _on_tick(self, tick: Any) -> None:
        super()._on_tick(tick)
        self._step()

    def _step(self) -> None:
        out = self._gate.tick(self.clock.now())
        self.sync_alarms(out.alarms, 'gate')
        if self._gate.params.read_only:
            return
        self._offered = list(out.limit_reasons)
        if out.write and self._measured.voltage > 0.0 and self._client is not None and (
                'current' not in self._client.orders or self._ordered != out.power / self._measured.voltage):
            self._write(out.power / self._measured.voltage)

    def _write(self, current: float) -> None:
        assert self._bus is not None and self._client is not None
        device, power = self._device, current * self._measured.voltage
        self._ordered = current

        def done(error: DeviceError | None) -> None:
            self.set_fault(error is not None, 'converter.write', Severity.ERROR, f'current not ordered: {error}')
            if error is None:
                self._gate.written(power, nan, self.clock.now())

        self._bus.order(self._client, Order('current', lambda: device.set_current(current),
                                            partial(self._guarded, done), self.clock.now() + self.params.longest_lease))

    # -- status on request ---------------------------------------------------------------------------

    def offer_get_status(self) -> Any:
        """Answered at once when fresh; otherwise the device is asked first."""
        return self.create_deferred_service(GetStatus, '~/get_status', self._on_ask)

    def _on_ask(self, request: Any, answer: Any) -> None:
        if self.clock.now() - self._measured.time <= self.params.max_age or self._client is None:
            answer(self._on_get_status(request, GetStatus.Response()))
            return
        self._asking.append((request, answer))
        if len(self._asking) == 1:
            self._poll_now()

    def _answer(self) -> None:
        waiting, self._asking = self._asking, []
        for request, answer in waiting:
            answer(self._on_get_status(request, GetStatus.Response()))

    def _poll_now(self) -> None:
        if self._bus is not None and self._client is not None:
            self._bus.poll_now(self._client)


@cache
def node_type(battery_class: Any) -> type[PhysicalBatteryNode]:
    """Node class for a two-function battery class: the contract with both sets of parameters. Raises TypeError."""
    missing = [f for f in ('refresh', 'set_current') if not callable(getattr(battery_class, f, None))]
    if missing:
        raise TypeError(f'{battery_class!r} has no function {" and ".join(missing)}')
    name = battery_class.__name__
    params = merge(f'{name}NodeParams', PhysicalParams, params_of(battery_class))
    return type(f'{name}Node', (PhysicalBatteryNode,), {
        '__doc__': f'{name} as a logical battery.', 'BatteryClass': battery_class, 'Params': params})
