"""Modbus control server: a superior control writes setpoints for the mode `external_control` and reads the battery.

pymodbus serves in a thread of its own. It answers from a snapshot and hands orders to the executor.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any, ClassVar

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from bess.msg import BatteryStatus, EmergencyStop, ModeState, PowerSetpoint, SystemState
from bess_core import qos
from bess_core.convert import stamp
from bess_core.leases import Numbers
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity

from . import modbus_map as registers

START_S = 5.0  # until the port listens
FRESH_S = 3.0  # a mode or battery that was not heard for so long is not there


@dataclass(frozen=True)
class ModbusControlParams:
    """Parameters of the Modbus control server."""

    mode: str = param('', '', 'mode that takes the setpoints, of type external_control', ref='mode')
    battery: str = param('', '', 'battery that is told about', ref='battery')
    host: str = param('127.0.0.1', '', 'address at which it listens; 0.0.0.0 = all networks of this machine. Modbus '
                                       'has no password: only where nobody else can connect')
    port: int = param(1502, '', 'TCP port; 0 = any that is free', low=0, high=65535)
    unit: int = param(1, '', 'Modbus unit id; others are refused', low=1, high=247)
    lease: float = param(10.0, 's', 'how long an order holds that names no lease itself', low=0.5, high=3600.0)
    longest_lease: float = param(60.0, 's', 'longest lease that an order may name', low=1.0, high=3600.0)
    max_charge_power: float = param(1e9, 'W', 'greatest setpoint for charging', low=0.0, high=2e9)
    max_discharge_power: float = param(1e9, 'W', 'greatest setpoint (magnitude) for discharging', low=0.0, high=2e9)
    clients: int = param(8, '', 'connections at once; further ones are closed', low=1, high=64)
    period: float = param(0.2, 's', 'how often what can be read is brought up to date', low=0.05, high=10.0)

    def __post_init__(self) -> None:
        for name in ('mode', 'battery'):
            if not getattr(self, name):
                raise ValueError(f'{name} is missing')


class _Server(ModbusTcpServer):
    """Closes connections beyond the greatest number."""

    def __init__(self, most: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most

    def callback_new_connection(self) -> Any:
        """See pymodbus."""
        handler = super().callback_new_connection()
        if len(self.active_connections) >= self._most:
            handler.callback_connected = handler.close  # type: ignore[method-assign] # as soon as it has its connection
        return handler


async def _nobody(*_: Any) -> ExcCodes:
    """There is no such unit, as a gateway says it."""
    return ExcCodes.GATEWAY_NO_RESPONSE


class ModbusControlNode(BessNode):
    """Registers of `modbus_map` over Modbus TCP."""

    Params: ClassVar[type] = ModbusControlParams
    role: ClassVar[str] = 'modbus_control'

    def on_bess_configure(self) -> None:
        """Listen to mode, battery and site, and on the port. Raises OSError when it is taken."""
        p, topic = self.params, self.ctx.topic
        self.port = 0
        self._status, self._order_words = registers.Status(), registers.order_words(None)
        self._words = registers.status_words(self._status)
        self._mode_at = self._battery_at = self._until = -1e9
        self._numbers = Numbers(self.clock.now())
        self._orders = self.create_publisher(PowerSetpoint, topic(f'{p.mode}/setpoint'), qos.SETPOINT)
        self._own = [self.create_subscription(kind, name, take, profile) for kind, name, take, profile in (
            (ModeState, topic(f'{p.mode}/state'), self._on_mode, qos.STATE),
            (BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT),
            (PowerSetpoint, topic(f'{p.battery}/setpoint'), self._on_granted, qos.SETPOINT),
            (SystemState, topic('system_state'), self._on_state, qos.STATE),
            (EmergencyStop, topic('emergency_stop'), self._on_emergency, qos.STATE))]
        self.every(p.period, self._show, phase=2)
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(ready,), name=f'{self.get_name()}.modbus', daemon=True)
        self._thread.start()
        if not ready.wait(START_S):
            raise TimeoutError(f'{p.host}:{p.port} does not listen within {START_S:g} s')
        if self._failure is not None:
            raise OSError(f'{p.host}:{p.port} cannot be listened on: {self._failure}')
        self.log.info('modbus server', host=p.host, port=self.port)

    def on_bess_cleanup(self) -> None:
        """Close the port and all connections."""
        loop, stopping = getattr(self, '_loop', None), getattr(self, '_stopping', None)
        if loop is not None and stopping is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stopping.set)
            self._thread.join(START_S)
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        if getattr(self, '_orders', None) is not None:
            self.destroy_publisher(self._orders)
            self._orders = None
        self._own = []

    # -- the thread of the server ------------------------------------------------------------------

    def _serve(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._main(ready))
        except BaseException as error:  # noqa: BLE001 - told by who waits, or as a fault by `_show`
            self._failure = error
        finally:
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        p = self.params
        # Whatever somebody sends to an open port would be a line on the console.
        logging.getLogger('pymodbus.logging').setLevel(logging.CRITICAL)
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        data = [SimData(at, values=[0] * count, datatype=DataType.REGISTERS) for at, count in (
            (registers.ORDER_AT, registers.ORDER_COUNT), (registers.STATUS_AT, registers.STATUS_COUNT))]
        everything = [SimData(0, values=[0] * 0x10000, datatype=DataType.REGISTERS)]
        devices = [SimDevice(p.unit, simdata=data, action=self._access),
                   SimDevice(0, simdata=everything, action=_nobody)]  # 0: all other units
        server = _Server(p.clients, devices, address=(p.host, p.port))
        await server.serve_forever(background=True)
        try:
            self.port = server.transport.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
            ready.set()
            await self._stopping.wait()
        finally:
            await server.shutdown()

    async def _access(self, function: int, start: int, address: int, count: int, current: list[int],
                      values: list[int] | list[bool] | None) -> ExcCodes | None:
        """See `SimDevice.action`: brings the registers up to date before a read, takes orders from a write."""
        if function not in (3, 4, 6, 16):
            return ExcCodes.ILLEGAL_FUNCTION
        for at, words in ((registers.ORDER_AT, self._order_words), (registers.STATUS_AT, self._words)):
            for i, word in enumerate(words):
                if start <= at + i < start + len(current):
                    current[at + i - start] = word
        if values is None:
            return None
        p = self.params
        limits = {'charge': p.max_charge_power, 'discharge': p.max_discharge_power, 'lease': p.longest_lease}
        numbers = [int(v) for v in values]
        try:
            order = registers.written(self._order_words, address, numbers, limits)
        except registers.IllegalWrite as error:
            self.ctx.post(partial(self._refused, str(error)))
            return ExcCodes.ILLEGAL_VALUE if address < registers.ORDER_AT + registers.ORDER_COUNT \
                else ExcCodes.ILLEGAL_ADDRESS
        if order is not None and not self._status.accepting:
            return ExcCodes.DEVICE_BUSY
        words = list(self._order_words)
        words[address:address + len(numbers)] = numbers
        self._order_words = words
        if order is not None:
            self.ctx.post(partial(self._guarded, self._order, order))
        return None

    # -- the executor ------------------------------------------------------------------------------

    def _order(self, order: registers.Order) -> None:
        if getattr(self, '_orders', None) is None or not self.is_active:
            return
        now, p = self.clock.now(), self.params
        lease = order.lease or p.lease
        message = PowerSetpoint(power=order.power, reactive_power=order.reactive_power, lease=lease,
                                source=self.get_name(), sequence=self._numbers.next())
        message.header.stamp = stamp(self.clock, now)
        self._orders.publish(message)
        self._until = now + lease
        self.progress += 1
        self._refresh(now)

    def _refused(self, why: str) -> None:
        self.log.info('write refused', reason=why)

    def _on_mode(self, m: ModeState) -> None:
        self._mode_at = self.clock.now() if m.state != 'off' else -1e9

    def _on_battery(self, m: BatteryStatus) -> None:
        usable = m.quality != BatteryStatus.QUALITY_INVALID
        self._battery_at = self.clock.now()
        self._status = replace(self._status, soc=m.soc if usable else nan, power=m.power if usable else nan,
                               max_charge=m.max_charge_power if usable else nan,
                               max_discharge=m.max_discharge_power if usable else nan)

    def _on_granted(self, m: PowerSetpoint) -> None:
        self._status = replace(self._status, granted=m.power)

    def _on_state(self, m: SystemState) -> None:
        self._status = replace(self._status, site_state=int(m.state))

    def _on_emergency(self, m: EmergencyStop) -> None:
        self._status = replace(self._status, emergency_stop=bool(m.active))

    def _show(self, _: Tick) -> None:
        self._refresh(self.clock.now())
        self.set_fault(not self._thread.is_alive(), 'modbus_control.server', Severity.ERROR,
                       f'the Modbus server has ended: {self._failure}')

    def _refresh(self, now: float) -> None:
        s = self._status
        if now - self._battery_at > FRESH_S:
            s = replace(s, soc=nan, power=nan, max_charge=nan, max_discharge=nan, granted=nan)
        self._status = s = replace(s, accepting=self.is_active and now - self._mode_at <= FRESH_S,
                                   lease_left=max(self._until - now, 0.0))
        self._words = registers.status_words(s)

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        return {'port': str(getattr(self, 'port', 0)), 'accepting': str(getattr(self, '_status', None)
                                                                       and self._status.accepting)}
