"""Unit node: a BMS and its converter as one logical battery."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, ClassVar

from bess.msg import BatteryStatus, InverterStatus
from bess_core import qos
from bess_core.convert import battery_from_msg, converter_from_msg
from bess_core.params import param
from bess_core.values import BatteryReading, ConverterReading

from .demand import Demand
from .lead import LeadTimes
from .logical_battery_node import LogicalBatteryNode, LogicalBatteryParams
from .setpoint_sender_node import SetpointSender
from .unit import Ages, UnitParams, dc_current_to_ac_power, limited, merge


@dataclass(frozen=True, kw_only=True)
class UnitNodeParams(LogicalBatteryParams):
    """A BMS and its converter together form one logical battery."""

    bms: str = param(doc='node of the battery management system', ref='bms', owns=True)
    converter: str = param(doc='node of the converter', ref='converter', owns=True)
    bms_max_age: float = param(3.0, 's', 'older BMS values are STALE', low=0.1, high=3600.0)
    bms_invalid_after: float = param(15.0, 's', 'older BMS values are INVALID', low=0.1, high=86400.0)
    charge_efficiency: float = param(0.95, '', 'converter efficiency AC to DC', low=0.5, high=1.0)
    discharge_efficiency: float = param(0.95, '', 'converter efficiency DC to AC', low=0.5, high=1.0)
    max_charge_power: float = param(inf, 'W', 'configured limit, AC side', low=0.0)
    max_discharge_power: float = param(inf, 'W', 'configured limit, AC side', low=0.0)
    lead_time: float = param(0.0, 's', 'from an order to its effect, from rest: schedules order so much earlier',
                             low=0.0, high=3600.0)
    lead_time_change: float = param(0.0, 's', 'the same from one power to another and to rest', low=0.0, high=3600.0)
    lease: float = param(2.0, 's', 'how long the converter keeps an order without a new one', low=0.1, high=60.0)


class UnitNode(LogicalBatteryNode):
    """See `UnitNodeParams`."""

    Params: ClassVar[type] = UnitNodeParams

    def configure_battery(self) -> None:
        """Listen to both halves."""
        p = self.params
        self._bms = BatteryReading()
        self._converter = ConverterReading()
        self.parts = frozenset({'bms', 'converter'})
        self._ages = Ages(p.bms_max_age, p.bms_invalid_after, p.max_age, p.invalid_after)
        self._unit = UnitParams(p.charge_efficiency, p.discharge_efficiency, p.max_charge_power,
                                p.max_discharge_power)
        self._sender = SetpointSender(self, p.converter, p.lease)
        self._entities += [
            self.create_subscription(BatteryStatus, self.ctx.topic(f'{p.bms}/status'), self._on_bms, qos.MEASUREMENT),
            self.create_subscription(
                InverterStatus, self.ctx.topic(f'{p.converter}/status'), self._on_converter, qos.MEASUREMENT),
        ]

    def cleanup_battery(self) -> None:
        """Stop sending."""
        if hasattr(self, '_sender'):
            self._sender.close()
            del self._sender

    def _on_bms(self, message: BatteryStatus) -> None:
        self._bms = battery_from_msg(message, self.clock)
        self.changed('bms')

    def _on_converter(self, message: InverterStatus) -> None:
        self._converter = converter_from_msg(message, self.clock)
        self.changed('converter')

    def measure(self, now: float) -> BatteryReading:
        """Both halves merged."""
        return merge(self._bms, self._converter, now, self._ages, self._unit)

    def power_of_current(self, current: float) -> float:
        """AC power for a DC current at the battery's voltage."""
        voltage = self.reading.voltage
        if isnan(voltage):
            return nan
        p = self.params
        return dc_current_to_ac_power(
            current, voltage, p.charge_efficiency if current > 0 else p.discharge_efficiency)

    @property
    def efficiencies(self) -> tuple[float, float]:
        """Of the converter."""
        return self.params.charge_efficiency, self.params.discharge_efficiency

    @property
    def lead(self) -> LeadTimes:
        """As configured."""
        return LeadTimes(self.params.lead_time, self.params.lead_time_change)

    def command(self, demand: Demand | None, now: float) -> None:
        """Held to the unit's limits, on to the converter (whose own gate looks again)."""
        if demand is None:
            return
        self._sender.send(limited(demand.power, self.reading), demand.reactive_power, now, demand.lease, demand.term)


__all__: list[Any] = ['UnitNode', 'UnitNodeParams', 'limited']
