"""Driver node of converters: the last gate before the wire."""

from __future__ import annotations

from math import inf, nan
from typing import Any, ClassVar

from std_srvs.srv import SetBool

from bess.msg import (
    BatteryStatus,
    EmergencyStop,
    InverterStatus,
    PowerSetpoint,
)
from bess_core import emergency, qos
from bess_core.convert import (
    battery_from_msg,
    converter_to_msg,
    order_from_msg,
)
from bess_core.log import Refusals
from bess_core.ticker import Tick
from bess_core.values import (
    ConverterReading,
    Identity,
    Quality,
    Severity,
)

from .device import DeviceError
from .driver_node import DriverNode
from .driver_params import ConverterParams
from .gate import Gate, Setpoint

FORMING_S = 10.0  # how long an order to form the grid may wait for a device that is away


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
                   self.clock.now() + FORMING_S)

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
        power, reactive, lease, source, term, sequence, given = order_from_msg(message, self.clock)
        now = self.clock.now()
        reason = self._gate.offer(
            Setpoint(power, lease, source, sequence, given if given > -inf else now, term, reactive), now)
        if reason:
            self._refusals.refuse(source, reason, now, expected=reason.endswith(('inactive', 'not started')))
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
        self._status.give(converter_to_msg(reading, self.clock, self.name))
