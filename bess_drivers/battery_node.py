"""Driver node of batteries."""

from __future__ import annotations

from math import inf, isnan
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState

from bess.msg import (
    BalanceSetpoint,
    BatteryStatus,
    CellArray,
)
from bess.srv import GetStatus, SetContactor
from bess_core import qos
from bess_core.convert import (
    battery_to_msg,
    battery_to_state,
    cells_to_msg,
    site_time,
)
from bess_core.log import Refusals
from bess_core.ticker import Tick
from bess_core.values import (
    BatteryReading,
    Quality,
    Severity,
)

from .device import DeviceError
from .driver_node import DriverNode
from .driver_params import BatteryParams

CONTACTOR_S = 10.0  # how long a contactor order may wait for a device that is away
BALANCE_LEASE_S = 60.0  # longest lease of a balancing order
MOVING_A = 5.0  # current from which a battery's values must move
BALANCE_LOOK_S = 0.5  # how often the lease of balancing is looked at


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
        self._status.give(battery_to_msg(reading, self.clock, name))
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
