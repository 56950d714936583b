"""Driver nodes: one thin lifecycle shell per role around any device class.

A device class (`bess_drivers.device`) is registered under the entry point group ``bess.drivers`` and
becomes a node type of that name. Its `Params` dataclass and the parameters of the shell together are
the parameters of the node.
"""

from __future__ import annotations

from functools import cache, partial
from math import inf, isnan, nan
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState
from std_srvs.srv import SetBool

from bess.msg import (
    BalanceSetpoint,
    BatteryStatus,
    CellArray,
    EmergencyStop,
    InverterStatus,
    MeterStatus,
    PowerSetpoint,
)
from bess.srv import DeviceOperation, GetStatus, SetContactor
from bess_core import emergency, qos
from bess_core.context import NodeContext
from bess_core.convert import (
    battery_from_msg,
    battery_to_msg,
    battery_to_state,
    cells_to_msg,
    converter_to_msg,
    meter_to_msg,
    site_time,
)
from bess_core.log import Refusals
from bess_core.node import BessNode
from bess_core.params import extract, merge
from bess_core.ticker import Tick
from bess_core.values import (
    Alarm,
    BatteryReading,
    ConverterReading,
    Identity,
    MeterReading,
    Quality,
    Severity,
    quality_of,
)

from .bus import Client, InlineBus, Order, bus_for
from .device import DeviceError, Role
from .driver_params import BatteryParams, ConverterParams, DriverParams, MeterParams
from .gate import Gate, Setpoint
from .modbus.link import ModbusLink, Ports

CONTACTOR_S = 10.0  # how long a contactor order may wait for a device that is away
OPERATION_S = 30.0  # how long an administrative operation may
BALANCE_LEASE_S = 60.0  # longest lease of a balancing order
MOVING_A = 5.0  # current from which a battery's values must move
BALANCE_LOOK_S = 0.5  # how often the lease of balancing is looked at
QUALITY_S = 0.1  # how often the age of the last reading is looked at


def _comparable(value: Any) -> Any:
    """NaN equals nothing, not even itself: a phase that is not measured would look as if it moved."""
    if isinstance(value, tuple):
        return tuple(_comparable(v) for v in value)
    return 'NaN' if isinstance(value, float) and isnan(value) else value


class DriverNode(BessNode):
    """Common part: bus, staleness, communication faults."""

    Shell: ClassVar[type] = DriverParams
    DeviceClass: ClassVar[Any]
    Params: ClassVar[type] = DriverParams
    Message: ClassVar[Any]
    empty: ClassVar[Any]
    frozen_is_stale: ClassVar[bool] = False  # what does not move must not be controlled on

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self.reading: Any = self.empty()
        self.identity = Identity()
        self.hardware_id = ''
        self._bus: InlineBus | None = None
        self._client: Client | None = None
        self._failed = 0
        self._signature: Any = None
        self._moved_at = -inf

    def make_device(self) -> Any:
        """The device object, from the device's part of the parameters.

        Units that share a port share one connection; each keeps its own time-out, counters and `read_only`.
        """
        p, cls = self.params, self.DeviceClass
        own = extract(cls.Params, p)
        if hasattr(cls, 'make_link'):  # a serial line
            return cls(own, read_only=p.read_only, link=cls.make_link(own, p.read_only, self.ctx.shared))
        if not getattr(cls, 'shares_link', False):
            return cls(own, read_only=p.read_only)
        ports = self.ctx.shared.setdefault('ports', Ports())
        return cls(own, read_only=p.read_only, link=ModbusLink(
            p.address, timeout_s=p.timeout_s, read_only=p.read_only or getattr(cls, 'never_writes', False),
            ports=ports))

    @classmethod
    def check(cls, parameters: Any) -> str:
        """What the device itself finds wrong with its parameters (e.g. its address); '' = nothing."""
        if not getattr(parameters, 'address', 'none'):
            return 'address is missing; e.g. tcp://192.168.1.9:502 or serial:/dev/ttyUSB0'
        try:  # making a device opens nothing
            cls.DeviceClass(extract(cls.DeviceClass.Params, parameters), read_only=parameters.read_only)
        except ValueError as error:
            return str(error)
        return ''

    def on_bess_configure(self) -> None:
        """Start polling; the device may be away, it is tried again and again."""
        p = self.params
        device = self.make_device()
        self._status = self.create_publisher(self.Message, '~/status', qos.MEASUREMENT)
        self._message = self.Message()  # refilled for every publication
        self._operations = 0
        self._operate: Any = None
        if hasattr(self.DeviceClass, 'operate'):
            self._operate = self.create_deferred_service(DeviceOperation, '~/operate', self._on_operate)
        self.configure_role()
        self._bus = bus_for(self.ctx.shared, p.address, self.clock, self.ctx.post)
        self._client = Client(
            name=self.get_name(), device=device, poll=lambda: device.read(self.clock.now()),
            period=inf if p.polling == 'lazy' else p.period,
            on_reading=partial(self._guarded, self._on_reading), on_error=partial(self._guarded, self._on_error),
            on_identity=partial(self._guarded, self._on_identity), slow=getattr(device, 'read_slow', None))
        self._bus.add(self._client)
        if self.clock.simulated:
            bus = self._bus
            self.every(p.period, lambda _: bus.run_due())
        else:
            self.every(QUALITY_S, self._watch)

    def configure_role(self) -> None:
        """Role-specific part of configure."""

    def on_bess_cleanup(self) -> None:
        """Let the device go."""
        if self._bus is not None and self._client is not None:
            self._bus.remove(self._client)
        self._bus = self._client = None
        if getattr(self, '_operate', None) is not None:
            self.destroy_service(self._operate)
            self._operate = None
        for publisher in self.publishers_own():
            self.destroy_publisher(publisher)
        self._status = None  # type: ignore[assignment]

    def publishers_own(self) -> list[Any]:
        """Publishers that cleanup destroys."""
        return [self._status] if getattr(self, '_status', None) is not None else []

    # -- results of the bus ------------------------------------------------------------------------

    def _on_identity(self, identity: Identity) -> None:
        self.identity = identity
        self.hardware_id = identity.serial or identity.model
        self.log.info('device connected', address=self.params.address, manufacturer=identity.manufacturer,
                      model=identity.model, serial=identity.serial, version=identity.version)

    def _on_reading(self, reading: Any) -> None:
        if self._failed >= self.params.errors_to_fault:
            self.log.info('device answers again', failed_polls=self._failed)
        self._failed = 0
        self.progress += 1
        self.sync_alarms((), 'comm')
        reading.quality = Quality.OK
        frozen = self._frozen(reading)
        self.sync_alarms((*reading.alarms, *frozen), 'device')
        self.reading = reading
        self.accept(reading)
        if frozen and self.frozen_is_stale:
            reading.quality = Quality.STALE
        self.publish()

    def _frozen(self, reading: Any) -> tuple[Alarm, ...]:
        limit = self.params.frozen_after
        if limit <= 0:
            return ()
        signature = _comparable(self.signature(reading))
        if signature != self._signature:
            self._signature, self._moved_at = signature, reading.time
        still = reading.time - self._moved_at
        if signature is None or still < limit:
            return ()
        return (Alarm('sensor.frozen', Severity.ERROR, f'measured values have not moved for {still:.0f} s'),)

    def signature(self, reading: Any) -> Any:
        """What must move on a live device; None = cannot tell."""
        return None

    def accept(self, reading: Any) -> None:
        """Role-specific handling of a good reading, before it is published."""

    def _on_error(self, error: DeviceError) -> None:
        self._failed += 1
        if self._failed == 1:
            self.log.debug('poll failed', kind=error.kind, reason=str(error))
        if self._failed >= self.params.errors_to_fault:
            self.sync_alarms(
                (Alarm(f'comm.{error.kind}', Severity.ERROR, f'{self._failed} polls failed: {error}'),), 'comm')
        self._watch(None)

    def _watch(self, _: Tick | None) -> None:
        """Age the reading; publish when its quality changes."""
        now = self.clock.now()
        quality = quality_of(now - self.reading.time, self.params.stale_s, self.params.invalid_s)
        if quality != self.reading.quality and quality > self.reading.quality:
            self.reading.quality = quality
            self.log.warning('quality', quality=quality.name, age_s=round(now - self.reading.time, 2))
            self.publish()

    def publish(self) -> None:
        """Publish the present reading."""
        raise NotImplementedError(f'{type(self).__name__} does not publish')

    def order(self, name: str, run: Any, done: Any, expires: float = inf) -> None:
        """Hand an order to the bus."""
        if self._bus is not None and self._client is not None:
            attempts, wait = getattr(self._client.device, 'write_attempts', (1, 0.0))
            self._bus.order(self._client, Order(name, run, partial(self._guarded, done), expires, attempts, wait))

    def _on_operate(self, request: DeviceOperation.Request, answer: Any) -> None:
        """Answered once the device confirmed, or with the reason why it did not."""
        response = DeviceOperation.Response()
        if self.params.read_only or self._client is None:
            response.message = 'read_only is set' if self.params.read_only else 'not configured'
            answer(response)
            return
        device, operation, arguments = self._client.device, request.operation, list(request.arguments)

        def done(error: DeviceError | None) -> None:
            response.accepted = error is None
            response.message = 'done' if error is None else f'{error.kind}: {error}'
            self.log.info('operation', operation=operation, arguments=' '.join(arguments), result=response.message)
            answer(response)

        def run() -> None:
            response.values = device.operate(operation, arguments)  # type: ignore[attr-defined]

        self._operations += 1  # an own name each: every caller gets an answer
        self.order(f'operation {self._operations}', run, done, self.clock.now() + OPERATION_S)

    def diagnostics(self) -> dict[str, Any]:
        """Traffic, for people."""
        c = self._client
        if c is None:
            return {}
        k = c.counters
        now = self.clock.now()
        wire = getattr(c.device, 'counters', None)
        ages = c.device.ages(now) if hasattr(c.device, 'ages') else {}
        return {
            'address': self.params.address, 'device': f'{self.identity.manufacturer} {self.identity.model}'.strip(),
            'requests': k.requests, 'answers': k.ok, 'writes': k.writes, 'reconnects': k.reconnects,
            'round trip [ms]': f'{c.round_trip * 1e3:.1f}', 'age [s]': f'{self.clock.now() - self.reading.time:.2f}',
            'quality': Quality(self.reading.quality).name, 'read only': self.params.read_only,
            'round trip p50 [ms]': f'{k.round_trip(0.5) * 1e3:.1f}',
            'round trip p99 [ms]': f'{k.round_trip(0.99) * 1e3:.1f}',
            **{f'errors {kind}': n for kind, n in list(k.errors.items())},
            **({} if wire is None or wire is k else {
                'wire requests': wire.requests, 'wire writes': wire.writes,
                'wire p50 [ms]': f'{wire.round_trip(0.5) * 1e3:.1f}',
                'wire p99 [ms]': f'{wire.round_trip(0.99) * 1e3:.1f}',
                **{f'wire errors {kind}': n for kind, n in list(wire.errors.items())}}),
            **{f'age {name} [s]': f'{age:.2f}' for name, age in ages.items()}, **getattr(c.device, 'shown', {}),
        }


class BatteryDriverNode(DriverNode):
    """A battery or BMS: `~/status`, `~/battery_state`, `~/cells`, `~/get_status`, `~/set_contactor`."""

    role: ClassVar[str] = 'bms'
    Shell = BatteryParams
    Message = BatteryStatus
    empty = BatteryReading

    def configure_role(self) -> None:
        """Interfaces of a battery."""
        self._state = self.create_publisher(BatteryState, '~/battery_state', qos.MEASUREMENT)
        self._cells = self.create_publisher(CellArray, '~/cells', qos.MEASUREMENT)
        self._own_services = [
            self.create_deferred_service(GetStatus, '~/get_status', self._on_get_status),
            self.create_deferred_service(SetContactor, '~/set_contactor', self._on_set_contactor),
        ]
        self._contactor_orders = 0
        self._asking: list[Any] = []  # answers that wait for a fresh reading
        self._balance_until = -inf  # end of the lease of the cells that are bled
        self._balance_refusals = Refusals(self.log, 'balancing order refused')
        self._balance_own: Any = None
        if hasattr(self.DeviceClass, 'set_balancing'):
            self._balance_own = self.create_subscription(BalanceSetpoint, '~/balance', self._on_balance, qos.SETPOINT)
            self.every(BALANCE_LOOK_S, self._look_at_balance)

    def on_bess_deactivate(self) -> None:
        """No cell stays bled by order."""
        if self._balance_until > -inf:
            self._balance(())

    def on_bess_cleanup(self) -> None:
        """Let the device go."""
        self._answer_status()
        if getattr(self, '_balance_own', None) is not None:
            self.destroy_subscription(self._balance_own)
            self._balance_own = None
        for service in getattr(self, '_own_services', []):
            self.destroy_service(service)
        self._own_services = []
        super().on_bess_cleanup()

    def publishers_own(self) -> list[Any]:
        """Publishers that cleanup destroys."""
        own = [*super().publishers_own(), getattr(self, '_state', None), getattr(self, '_cells', None)]
        self._state = self._cells = None  # type: ignore[assignment]
        return [p for p in own if p is not None]

    def signature(self, reading: BatteryReading) -> Any:
        """Under current something moves; at rest a battery may stand still for hours."""
        if isnan(reading.current) or abs(reading.current) < MOVING_A:
            return object()
        return (reading.cells, reading.current, reading.charge, reading.voltage)

    def publish(self) -> None:
        """Status, and what else somebody listens to."""
        reading, name = self.reading, self.name
        self._status.publish(battery_to_msg(reading, self.clock, name, self._message))
        if self._state.get_subscription_count():
            self._state.publish(battery_to_state(reading, self.clock, name))
        if reading.cells and self._cells.get_subscription_count():
            self._cells.publish(cells_to_msg(reading, self.clock, name))
        self._answer_status()

    def _on_error(self, error: DeviceError) -> None:
        super()._on_error(error)
        self._answer_status()

    def _on_get_status(self, _: GetStatus.Request, answer: Any) -> None:
        """Answered at once when fresh; otherwise the device is asked first."""
        self._asking.append(answer)
        stale = self.clock.now() - self.reading.time > self.params.stale_s
        if stale and self._bus is not None and self._client is not None and len(self._asking) == 1:
            self._bus.poll_now(self._client)
        elif not stale:
            self._answer_status()

    def _answer_status(self) -> None:
        waiting, self._asking = getattr(self, '_asking', []), []
        for answer in waiting:
            response = GetStatus.Response()
            response.status = battery_to_msg(self.reading, self.clock, self.get_name())
            response.fresh = self.reading.quality == Quality.OK
            if not response.fresh:
                response.message = f'{Quality(self.reading.quality).name}: the device has not answered in time'
            answer(response)

    def _on_balance(self, message: BalanceSetpoint) -> None:
        """Bleed these cells until the lease ends; what cannot be is refused and the lease that holds goes on."""
        now = self.clock.now()
        refused = self._balance_problem(message, now)
        if refused:
            self._balance_refusals.refuse(message.source, refused, now)
        elif any(message.cells):
            self._balance(tuple(message.cells), site_time(self.clock, message.header.stamp) + message.lease)
        elif self._balance_until > -inf:
            self._balance(())

    def _balance_problem(self, message: BalanceSetpoint, now: float) -> str:
        if self.params.read_only or not self.is_active:
            return 'read_only is set' if self.params.read_only else 'not active'
        if not 0.0 < message.lease <= BALANCE_LEASE_S:
            return f'lease is {message.lease:g} s, allowed: above 0, up to {BALANCE_LEASE_S:g}'
        age = now - site_time(self.clock, message.header.stamp)
        if not -1.0 <= age < message.lease:
            return f'it is {age:.1f} s old'
        if message.cells and len(message.cells) != len(self.reading.cells):
            return f'{len(message.cells)} cells are named, the battery has {len(self.reading.cells)}'
        return ''

    def _look_at_balance(self, _: Tick) -> None:
        if self.clock.now() > self._balance_until > -inf:
            self._balance(())

    def _balance(self, cells: tuple[bool, ...], until: float = -inf) -> None:
        """Order it; what fails is tried again with the next order, or the next look for the end of one."""
        if self._client is None:
            return
        device, before, self._balance_until = self._client.device, self._balance_until, until

        def done(error: DeviceError | None) -> None:
            self.set_fault(error is not None, 'battery.balance', Severity.WARNING, f'balancing order failed: {error}')
            if error is not None and not cells:
                self._balance_until = min(before, self.clock.now())

        self.order('balance', lambda: device.set_balancing(cells), done)  # type: ignore[attr-defined]

    def _on_set_contactor(self, request: SetContactor.Request, answer: Any) -> None:
        """Answered once the battery confirmed, or with the reason why it did not."""
        response = SetContactor.Response()
        if self.params.read_only or self._client is None:
            response.message = 'read_only is set' if self.params.read_only else 'not configured'
            answer(response)
            return
        device, charge, discharge = self._client.device, request.charge, request.discharge

        def done(error: DeviceError | None) -> None:
            response.accepted = error is None
            response.message = 'confirmed' if error is None else f'{error.kind}: {error}'
            self.set_fault(error is not None, 'contactor.failed', Severity.ERROR,
                           f'contactor order failed: {error}')
            self.log.info('contactor', charge=charge, discharge=discharge, result=response.message)
            answer(response)

        self._contactor_orders += 1  # an own name each: every caller gets an answer
        self.order(f'contactor {self._contactor_orders}',
                   lambda: device.set_contactor(charge, discharge), done,  # type: ignore[attr-defined]
                   self.clock.now() + CONTACTOR_S)


class ConverterDriverNode(DriverNode):
    """A converter: `~/status`, orders on `~/setpoint`; the last gate before the wire."""

    role: ClassVar[str] = 'converter'
    Shell = ConverterParams
    Message = InverterStatus
    empty = ConverterReading

    def configure_role(self) -> None:
        """The gate and its inputs."""
        p = self.params
        self._gate = Gate(p.gate(), self.get_name())
        self._ordered = (nan, nan)  # last written (W, var)
        self._refusals = Refusals(self.log, 'setpoint refused')
        self._stopping = False
        self._output: Any = None
        self._subscriptions_own = [self.create_subscription(PowerSetpoint, '~/setpoint', self._on_setpoint,
                                                            qos.SETPOINT)]
        if p.bms:
            self._subscriptions_own.append(
                self.create_subscription(BatteryStatus, self.ctx.topic(f'{p.bms}/status'), self._on_bms,
                                         qos.MEASUREMENT))
        self._emergency = emergency.load(self.ctx.state_dir, self.clock.wall()).active
        self._subscriptions_own.append(self.create_subscription(
            EmergencyStop, self.ctx.topic('emergency_stop'), self._on_emergency, qos.STATE))
        self._looked_at = -inf  # when the gate saw all there is
        self._forming_orders = 0
        self._forming: Any = self.create_deferred_service(SetBool, '~/set_grid_forming', self._on_set_grid_forming) \
            if hasattr(self.DeviceClass, 'set_grid_forming') else None
        self.every(p.gate_period, self._on_gate_period, phase=3)

    def on_bess_activate(self) -> None:
        """From now on setpoints are accepted, unless the emergency stop is in force."""
        if self._emergency:
            self._gate.stop('emergency stop')
        else:
            self._gate.start()
        self._step()
        self._apply_settings()

    def _apply_settings(self) -> None:
        """Settings of the site file that the device keeps by itself, written where they differ."""
        if self._client is None or self.params.read_only or not hasattr(self._client.device, 'apply_settings'):
            return
        device, written = self._client.device, list[str]()

        def done(error: DeviceError | None) -> None:
            self.set_fault(error is not None, 'converter.settings', Severity.ERROR,
                           f'settings of the site file not written: {error}')
            if written:
                self.log.info('settings written', settings=', '.join(written))

        self.order('settings', lambda: written.extend(device.apply_settings()), done)

    def _on_identity(self, identity: Identity) -> None:
        super()._on_identity(identity)
        if self.is_active:  # it may be another device than before
            self._apply_settings()

    def on_bess_deactivate(self) -> None:
        """Zero at once, remote control released; measuring goes on."""
        self._gate.stop('inactive')
        if self._client is not None and not self.params.read_only:
            device = self._client.device
            if self._ordered[0] == self._ordered[0]:  # something was written since the start
                self._client.orders.pop('power', None)
                self._stopping = True  # no order of the gate overtakes the release
                self.order('stop', device.stop, self._on_stopped)  # type: ignore[attr-defined]

    def on_bess_cleanup(self) -> None:
        """Let the device go."""
        for subscription in getattr(self, '_subscriptions_own', []):
            self.destroy_subscription(subscription)
        self._subscriptions_own = []
        if getattr(self, '_forming', None) is not None:
            self.destroy_service(self._forming)
            self._forming = None
        super().on_bess_cleanup()

    def _on_set_grid_forming(self, request: SetBool.Request, answer: Any) -> None:
        """Not leased: an island must not go dark because the program above restarts. Status tells whether it forms."""
        response = SetBool.Response()
        refused = ''
        if self.params.read_only or self._client is None:
            refused = 'read_only is set' if self.params.read_only else 'not configured'
        elif request.data and self._emergency:
            refused = 'emergency stop is in force'
        elif request.data and not self.is_active:
            refused = 'not active'
        if refused:
            response.message = refused
            answer(response)
            return

        def done(error: DeviceError | None) -> None:
            response.success = error is None
            response.message = 'ordered' if error is None else f'{error.kind}: {error}'
            answer(response)

        self._order_forming(request.data, done)

    def _order_forming(self, on: bool, done: Any) -> None:
        assert self._client is not None
        device = self._client.device

        def logged(error: DeviceError | None) -> None:
            self.log.info('grid forming', on=on, result='ordered' if error is None else str(error))
            self.set_fault(error is not None, 'converter.grid_forming', Severity.ERROR,
                           f'order to {"form" if on else "follow"} the grid failed: {error}')
            done(error)

        self._forming_orders += 1  # an own name each: every caller gets an answer
        self.order(f'grid_forming {self._forming_orders}',
                   lambda: device.set_grid_forming(on), logged,  # type: ignore[attr-defined]
                   self.clock.now() + CONTACTOR_S)

    def signature(self, reading: ConverterReading) -> Any:
        """A grid is never still: voltage and frequency move in their last digits."""
        return (reading.voltage, reading.frequency, reading.active_power, reading.dc_voltage, reading.temperature)

    def accept(self, reading: ConverterReading) -> None:
        """The gate sees every good reading (before it, nothing is written)."""
        self._gate.reading(reading)
        self._step()

    def _on_bms(self, message: BatteryStatus) -> None:
        reading = battery_from_msg(message, self.clock)
        if reading.quality == Quality.INVALID:
            return
        self._looked_at = -inf
        # The limits are DC, the gate's powers AC: the converter's losses lie between.
        self._gate.external(
            reading.max_charge_power / self.params.efficiency, reading.max_discharge_power * self.params.efficiency,
            reading.time, tuple(reading.limit_reasons[:3]), self.params.bms)

    def _on_setpoint(self, message: PowerSetpoint) -> None:
        given = site_time(self.clock, message.header.stamp)
        now = self.clock.now()
        reason = self._gate.offer(
            Setpoint(message.power, message.lease, message.source, message.sequence,
                     given if given > -inf else now, message.term, message.reactive_power), now)
        if reason:
            self._refusals.refuse(message.source, reason, now, expected=reason.endswith('inactive'))
        else:
            self._step()

    def _on_emergency(self, message: EmergencyStop) -> None:
        """Zero at once, whoever orders what; released only by the emergency stop itself."""
        if message.active == self._emergency:
            return
        self._emergency = message.active
        if message.active:
            self.log.warning('emergency stop', cause=message.cause, by=message.source)
            self._gate.stop('emergency stop')
            self._step()
            if self._forming is not None and self.reading.grid_forming and self._client is not None:
                self._order_forming(False, lambda _: None)  # an island has power at zero order, too
        elif self.is_active:
            self._gate.start()

    def _on_gate_period(self, _: Tick) -> None:
        if self._looked_at != self.clock.now():  # at the same (simulated) moment nothing else would come out
            self._step()

    def _step(self) -> None:
        if not hasattr(self, '_gate'):
            return
        now = self._looked_at = self.clock.now()
        out = self._gate.tick(now)
        self._output = out
        self.sync_alarms(out.alarms, 'gate')
        if not out.write or self._client is None or self._stopping:
            return
        if 'power' in self._client.orders and self._ordered == (out.power, out.reactive_power):
            return  # the same order already waits for the wire
        device = self._client.device
        power, reactive, lease = out.power, out.reactive_power, out.lease
        self._ordered = (power, reactive)

        def done(error: DeviceError | None) -> None:
            if error is None:
                self._gate.written(power, reactive, self.clock.now())
                self.clear_fault('converter.write')
                if power == 0.0:
                    self.clear_fault('converter.stop')
            else:
                self.raise_fault('converter.write', Severity.ERROR, f'setpoint not written: {error}')

        self.order('power', lambda: device.write_power(power, reactive, lease), done,  # type: ignore[attr-defined]
                   now + lease)

    def _on_stopped(self, error: DeviceError | None) -> None:
        self._stopping = False
        if error is None:
            self._ordered = (0.0, nan)
            self._gate.written(0.0, nan, self.clock.now())
            self.clear_fault('converter.stop')
            self.log.info('converter released at zero')
        else:
            # The gate repeats zero until it is written; the device's own revert timer is the second net.
            self.raise_fault('converter.stop', Severity.ERROR, f'stop not confirmed: {error}')

    def publish(self) -> None:
        """Status with what the gate adds."""
        reading, out = self.reading, self._output
        reading.setpoint, reading.reactive_setpoint = self._ordered
        if out is not None:
            reading.lease_remaining = out.lease_remaining
            reading.setpoint_source = out.source
            reading.limit_reasons = list(out.limit_reasons)
        self._status.publish(converter_to_msg(reading, self.clock, self.name, self._message))


class MeterDriverNode(DriverNode):
    """A meter: `~/status` with numbered samples."""

    role: ClassVar[str] = 'meter'
    Shell = MeterParams
    frozen_is_stale = True
    Message = MeterStatus
    empty = MeterReading

    def configure_role(self) -> None:
        """Number the samples from 1."""
        self._sequence = 0

    def signature(self, reading: MeterReading) -> Any:
        """A grid is never still."""
        return (reading.voltage, reading.current, reading.active_power, reading.frequency)

    def accept(self, reading: MeterReading) -> None:
        """Number it."""
        self._sequence += 1
        reading.sequence = self._sequence

    def publish(self) -> None:
        """Status."""
        self._status.publish(meter_to_msg(self.reading, self.clock, self.name, self._message))


def _shell(role: Role) -> type[DriverNode]:
    if role in (Role.IO, Role.CLIMATE):
        from .io_node import ClimateDriverNode, IoDriverNode  # it builds on this module

        return IoDriverNode if role is Role.IO else ClimateDriverNode
    if role is Role.GPS:
        from .io.gps_node import GpsDriverNode  # as above

        return GpsDriverNode
    return {Role.BATTERY: BatteryDriverNode, Role.CONVERTER: ConverterDriverNode, Role.METER: MeterDriverNode}[role]


@cache
def node_type(device_class: Any) -> type[DriverNode]:
    """Node class for a device class: the shell of its role with both sets of parameters."""
    shell = _shell(Role(device_class.role))
    params = merge(f'{device_class.__name__}NodeParams', shell.Shell, device_class.Params)
    return type(f'{device_class.__name__}Node', (shell,), {
        '__doc__': f'Driver node of {device_class.__name__}.', 'DeviceClass': device_class, 'Params': params})
