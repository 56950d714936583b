"""Driver nodes of I/O modules and climate devices: status out, leased orders in (`output_gate`)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan
from typing import Any, ClassVar

from bess.msg import ClimateSetpoint, ClimateStatus, IoStatus, OutputSetpoint
from bess.srv import SetClimate, SetOutput
from bess_core import qos
from bess_core.convert import climate_to_msg, io_to_msg, site_time
from bess_core.log import Refusals
from bess_core.ticker import Tick
from bess_core.values import ClimateMode, ClimateReading, IoReading, Severity, Switch

from .device import DeviceError
from .driver_node import DriverNode
from .driver_params import ClimateParams, IoParams
from .output_gate import OutputGate, OutputRule

WRITE_S = 2.0  # how long a write may wait for a device that is away
OPERATOR = 'operator'


class OutputDriverNode(DriverNode):
    """Common part: the gate, and the way of an order to the wire and its answer back."""

    def configure_role(self) -> None:
        """Gate and its inputs."""
        p = self.params
        self._gate = OutputGate(self.rules(), read_only=p.read_only, longest_lease=p.longest_lease, refresh=p.refresh)
        self._refusals = Refusals(self.log, 'output order refused')
        self._pending: dict[str, float] = {}
        self._asking: dict[str, list[tuple[float, Any]]] = {}  # output -> value and answer that waits for it
        self._own_sequence = 0
        self._interfaces: list[tuple[Callable[[Any], Any], Any]] = []
        self.make_interfaces()
        self.every(p.gate_period, self._on_gate_period, phase=3)

    def rules(self) -> dict[str, OutputRule]:
        """The outputs of this device."""
        raise NotImplementedError

    def make_interfaces(self) -> None:
        """Topics and services of the role; `own` them."""
        raise NotImplementedError

    def write(self, device: Any, values: dict[str, float]) -> None:
        """Put values on the wire (runs in the bus thread). Raises `DeviceError`."""
        raise NotImplementedError

    def own(self, destroy: Callable[[Any], Any], entity: Any) -> None:
        """Have something destroyed at cleanup."""
        self._interfaces.append((destroy, entity))

    def on_bess_activate(self) -> None:
        """From now on orders are accepted; what nobody holds goes to its safe value."""
        self._gate.start()
        self._step()

    def on_bess_deactivate(self) -> None:
        """Leased outputs go to their safe values; measuring goes on."""
        self._gate.stop('inactive')
        self._step()

    def on_bess_cleanup(self) -> None:
        """Let the device go."""
        for name in list(getattr(self, '_asking', {})):
            self._answer(name, 'the driver was stopped')
        for destroy, entity in getattr(self, '_interfaces', []):
            destroy(entity)
        self._interfaces = []
        super().on_bess_cleanup()

    def take(self, name: str, value: float, lease: float, source: str, sequence: int, stamp: Any) -> str:
        """An order from a topic; returns why it is refused."""
        now = self.clock.now()
        given = site_time(self.clock, stamp)
        reason = self._gate.offer(name, value, lease, source, sequence, given if given > -inf else now, now)
        if reason:
            self._refusals.refuse(source, f'{name}: {reason}', now, expected=reason.endswith('inactive'))
        return reason

    def ask(self, values: dict[str, float], lease: float, source: str, answer: Any, response: Any) -> None:
        """An order from a service, answered when all is written."""
        now = self.clock.now()
        self._own_sequence += 1
        for name, value in values.items():
            reason = self._gate.offer(name, value, lease, source or OPERATOR, self._own_sequence, now, now)
            if reason:
                response.accepted, response.message = False, reason
                answer(response)
                return
        left = set(values)

        def written(name: str, problem: str) -> None:
            left.discard(name)
            if response.message:
                return  # answered already
            if problem or not left:
                response.accepted, response.message = not problem, problem or 'written'
                self.log.info('output order', values=str(values), source=source or OPERATOR, result=response.message)
                answer(response)

        for name, value in values.items():
            self._asking.setdefault(name, []).append((value, written))
            self._gate.written(name, nan, now)  # also an unchanged value is confirmed by a write
        self._step()

    def _answer(self, name: str, problem: str) -> None:
        for _, written in self._asking.pop(name, []):
            written(name, problem)

    def _on_gate_period(self, _: Tick) -> None:
        self._step()

    def _step(self) -> None:
        if not hasattr(self, '_gate') or self._client is None:
            return
        now = self.clock.now()
        due = {n: v for n, v in self._gate.tick(now).items() if self._pending.get(n) != v}
        if not due:
            return
        self._pending.update(due)
        device = self._client.device

        def done(error: DeviceError | None) -> None:
            for name, value in due.items():
                if self._pending.get(name) == value:
                    del self._pending[name]
                if error is None:
                    self._gate.written(name, value, self.clock.now())
                self._answer(name, '' if error is None else f'{error.kind}: {error}')
            self.set_fault(error is not None, 'output.write', Severity.ERROR, f'output not written: {error}')

        # One order per output set: a newer value of the same outputs replaces a waiting one.
        self.order(f'outputs {",".join(sorted(due))}', lambda: self.write(device, due), done, now + WRITE_S)


class IoDriverNode(OutputDriverNode):
    """An I/O module: `~/status`, leased orders on `~/output`, `~/set_output`."""

    role: ClassVar[str] = 'io'
    Shell = IoParams
    Message = IoStatus
    empty = IoReading

    def rules(self) -> dict[str, OutputRule]:
        """From the device: `outputs` maps names to rules."""
        device = self.make_device()  # opens nothing
        return dict(device.output_rules()) if hasattr(device, 'output_rules') else {}

    def make_interfaces(self) -> None:
        """Orders by topic and by service."""
        self.own(self.destroy_subscription,
                 self.create_subscription(OutputSetpoint, '~/output', self._on_output, qos.SETPOINT))
        self.own(self.destroy_service, self.create_deferred_service(SetOutput, '~/set_output', self._on_set_output))

    def write(self, device: Any, values: dict[str, float]) -> None:
        """Output by output."""
        for name, value in values.items():
            device.write_output(name, value)

    def _on_output(self, m: OutputSetpoint) -> None:
        if not self.take(m.name, m.value, m.lease, m.source, m.sequence, m.header.stamp):
            self._step()

    def _on_set_output(self, request: SetOutput.Request, answer: Any) -> None:
        self.ask({request.name: request.value}, request.lease, request.source, answer, SetOutput.Response())

    def accept(self, reading: IoReading) -> None:
        """The gate sees what the outputs really are."""
        shown = {n: nan if v is Switch.UNKNOWN else float(v) for n, v in reading.digital_outputs.items()}
        self._gate.reading({**shown, **reading.analog_outputs})
        self._step()

    def publish(self) -> None:
        """Status with who holds what."""
        self._status.give(io_to_msg(self.reading, self.clock, self.name, self._gate.holdings(self.clock.now())))


class ClimateDriverNode(OutputDriverNode):
    """A climate device or sensor: `~/status`, leased orders on `~/setpoint`, `~/set_climate`."""

    role: ClassVar[str] = 'climate'
    Shell = ClimateParams
    Message = ClimateStatus
    empty = ClimateReading

    def rules(self) -> dict[str, OutputRule]:
        """Mode and target; what they fall back to is a parameter."""
        p = self.params
        fallback = {'unknown': nan}.get(p.fallback_mode, float(ClimateMode[p.fallback_mode.upper()]))
        return {'mode': OutputRule(fallback, digital=False, low=1.0, high=float(max(ClimateMode))),
                'temperature': OutputRule(p.fallback_temperature, digital=False, low=p.min_temperature,
                                          high=p.max_temperature)}

    def make_interfaces(self) -> None:
        """Orders by topic and by service."""
        self.own(self.destroy_subscription,
                 self.create_subscription(ClimateSetpoint, '~/setpoint', self._on_setpoint, qos.SETPOINT))
        self.own(self.destroy_service, self.create_deferred_service(SetClimate, '~/set_climate', self._on_set_climate))

    def write(self, device: Any, values: dict[str, float]) -> None:
        """Both in one order."""
        device.write_climate(values.get('mode', nan), values.get('temperature', nan))

    @staticmethod
    def _asked(mode: int, temperature: float) -> dict[str, float]:
        asked = {} if mode == ClimateMode.UNKNOWN else {'mode': float(mode)}
        return asked if isnan(temperature) else {**asked, 'temperature': temperature}

    def _on_setpoint(self, m: ClimateSetpoint) -> None:
        taken = [not self.take(name, value, m.lease, m.source, m.sequence, m.header.stamp)
                 for name, value in self._asked(m.mode, m.temperature).items()]
        if any(taken):
            self._step()

    def _on_set_climate(self, request: SetClimate.Request, answer: Any) -> None:
        response = SetClimate.Response()
        asked = self._asked(request.mode, request.temperature)
        if not asked:
            response.message = 'neither mode nor temperature is given'
            answer(response)
            return
        self.ask(asked, request.lease, request.source, answer, response)

    def accept(self, reading: ClimateReading) -> None:
        """The gate sees mode and target as they are."""
        mode = nan if reading.mode is ClimateMode.UNKNOWN else float(reading.mode)
        self._gate.reading({'mode': mode, 'temperature': reading.target_temperature})
        self._step()

    def publish(self) -> None:
        """Status with who holds it."""
        holdings = self._gate.holdings(self.clock.now())
        source, left = next(iter(holdings.values()), ('', 0.0))
        self._status.give(climate_to_msg(self.reading, self.clock, self.name, source, left))
