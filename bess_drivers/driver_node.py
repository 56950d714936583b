"""Driver nodes: one thin lifecycle shell per role around any device class.

A device class (`bess_drivers.device`) is registered under the entry point group ``bess.drivers`` and
becomes a node type of that name. Its `Params` dataclass and the parameters of the shell together are
the parameters of the node.
"""

from __future__ import annotations

from functools import cache, partial
from math import inf
from typing import Any, ClassVar

from bess.msg import (
    MeterStatus,
)
from bess.srv import DeviceOperation
from bess_core import qos
from bess_core.context import NodeContext
from bess_core.convert import (
    meter_to_msg,
)
from bess_core.node import BessNode
from bess_core.params import extract, merge
from bess_core.ticker import Tick
from bess_core.values import (
    Alarm,
    Identity,
    MeterReading,
    Quality,
    Severity,
    quality_of,
)

from .bus import Client, InlineBus, Order, bus_for
from .device import DeviceError, Role
from .driver_params import DriverParams, MeterParams
from .modbus.link import ModbusLink
from .modbus.ports import Ports

OPERATION_S = 30.0  # how long an administrative operation may
QUALITY_S = 0.1  # how often the age of the last reading is looked at


def _still(a: Any, b: Any) -> bool:
    """Equal; NaN, which equals nothing, counts as equal: a phase that is not measured would look as if it moved."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_still, a, b))
    return bool(a == b) or (a != a and b != b)


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
        signature = self.signature(reading)
        if not _still(signature, self._signature):
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
        # What a device reads at once is as old as its reading.
        ages = c.device.ages(now) if hasattr(c.device, 'ages') else {'of all points': now - self.reading.time}
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
        self._status.give(meter_to_msg(self.reading, self.clock, self.name))


def _shell(role: Role) -> type[DriverNode]:
    if role in (Role.IO, Role.CLIMATE):
        from .io_node import ClimateDriverNode, IoDriverNode  # it builds on this module

        return IoDriverNode if role is Role.IO else ClimateDriverNode
    if role is Role.GPS:
        from .io.gps_node import GpsDriverNode  # as above

        return GpsDriverNode
    if role is Role.BATTERY:
        from .battery_node import BatteryDriverNode  # as above

        return BatteryDriverNode
    if role is Role.CONVERTER:
        from .converter_node import ConverterDriverNode  # as above

        return ConverterDriverNode
    return MeterDriverNode


@cache
def node_type(device_class: Any) -> type[DriverNode]:
    """Node class for a device class: the shell of its role with both sets of parameters."""
    shell = _shell(Role(device_class.role))
    params = merge(f'{device_class.__name__}NodeParams', shell.Shell, device_class.Params)
    return type(f'{device_class.__name__}Node', (shell,), {
        '__doc__': f'Driver node of {device_class.__name__}.', 'DeviceClass': device_class, 'Params': params})
