"""Limiter node: a battery with its limits tightened by the chain of `bess_control.limits`; itself a battery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan
from typing import Any, ClassVar

import numpy as np

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.convert import battery_from_msg
from bess_core.params import extract, param
from bess_core.values import BatteryReading, Quality
from bess_virtual.demand import Demand
from bess_virtual.lead import LeadTimes
from bess_virtual.logical_battery_node import LogicalBatteryNode, LogicalBatteryParams
from bess_virtual.plan import Plan
from bess_virtual.setpoint_sender_node import SetpointSender
from bess_virtual.unit import limited

from .limits import STAGES, Chain, Inputs, Limited, LimiterParams

_FIELDS = ('max_charge_power', 'max_discharge_power', 'power', 'voltage', 'soc')


@dataclass(frozen=True, kw_only=True)
class LimiterNodeParams(LogicalBatteryParams, LimiterParams):
    """A battery whose limits follow cells, temperature, state of charge and settings; see docs/limits.md."""

    source: str = param(doc='battery that is limited', ref='battery', owns=True)
    lease: float = param(2.0, 's', 'how long the source keeps an order without a new one', low=0.1, high=60.0)

    def __post_init__(self) -> None:
        LimiterParams.__post_init__(self)


class LimiterNode(LogicalBatteryNode):
    """See `LimiterNodeParams`."""

    Params: ClassVar[type] = LimiterNodeParams

    def configure_battery(self) -> None:
        """Listen to the source."""
        p = self.params
        self._source = BatteryReading()
        self._chain = Chain(extract(LimiterParams, p))
        self._reactive = nan
        self.limited: Limited | None = None
        self._sender = SetpointSender(self, p.source, p.lease)
        self._entities.append(self.create_subscription(
            BatteryStatus, self.ctx.topic(f'{p.source}/status'), self._on_source, qos.MEASUREMENT))

    def cleanup_battery(self) -> None:
        """Stop sending."""
        if hasattr(self, '_sender'):
            self._sender.close()
            del self._sender

    def members_below(self) -> list[str]:
        """The source."""
        return [self.params.source]

    def plans_below(self, plan: Plan) -> list[tuple[str, Plan]]:
        """The plan as it is."""
        return [(self.params.source, plan)]

    def member_reading(self, member: str) -> BatteryReading | None:
        """As last received."""
        return self._source if member == self.params.source else None

    @property
    def lead(self) -> LeadTimes:
        """None of its own: the source orders ahead."""
        return LeadTimes()

    @property
    def lead_time(self) -> float:
        """That of the source."""
        return self._source.lead_time if self._source.lead_time > 0.0 else 0.0

    def _on_source(self, message: BatteryStatus) -> None:
        self._source = battery_from_msg(message, self.clock)
        self.changed()

    def measure(self, now: float) -> BatteryReading:
        """The source's reading with the chain's limits and reasons."""
        source = self._source
        self.limited = self._chain(inputs(source, self._reactive), now)
        return limit(source, self.limited, self.params.max_age, self.params.invalid_after, now)

    def command(self, demand: Demand | None, now: float) -> None:
        """Held to the limits, on to the source."""
        if demand is None:
            return
        self._reactive = demand.reactive_power
        self._sender.send(limited(demand.power, self.reading), self._q(demand.reactive_power), now, demand.lease,
                          demand.term)

    def _q(self, reactive: float) -> float:
        s = self.params.max_apparent_power
        return max(-s, min(s, reactive)) if isfinite(reactive) else reactive


def inputs(b: BatteryReading, reactive: float = nan) -> Inputs:
    """One battery as input of a chain of one."""
    one = {name: np.array([getattr(b, name)]) for name in _FIELDS}
    usable = b.quality is not Quality.INVALID and isfinite(b.time)
    return Inputs(
        time=np.array([b.time if usable else -inf]), cell_min=np.array([b.cell_voltage_min]),
        cell_max=np.array([b.cell_voltage_max]), temperature_min=np.array([_or(b.temperature_min, b.temperature)]),
        temperature_max=np.array([b.temperature]), reactive=np.array([reactive]), **one)


def limit(b: BatteryReading, result: Limited, max_age: float, invalid_after: float, now: float) -> BatteryReading:
    """The reading with lower limits; each stage that lowered one is named, in the order of the chain."""
    charge, discharge = (float(v) for v in result.allowed[:, 0])
    age, quality = now - b.time, b.quality
    if not age <= invalid_after:
        quality = Quality.INVALID
    elif age > max_age:
        quality = max(quality, Quality.STALE)
    own = [f'{word} {after:.0f} W: {name}{_why(b, name, word == "charge")}'
           for row, word in enumerate(('charge', 'discharge')) for name, after in _steps(result, row)]
    return replace(
        b, quality=quality, max_charge_power=charge, max_discharge_power=discharge,
        max_charge_current=_scaled(b.max_charge_current, charge, b.max_charge_power, b.voltage),
        max_discharge_current=_scaled(b.max_discharge_current, discharge, b.max_discharge_power, b.voltage),
        limit_reasons=[*own, *b.limit_reasons])


def _steps(result: Limited, row: int) -> list[tuple[str, float]]:
    return [(name, float(result.after[STAGES.index(name), row, 0])) for name in result.binding(0)[row]
            if name != 'hardware']  # the battery's own reasons say that


def _why(b: BatteryReading, name: str, charging: bool) -> str:
    """The value that the stage looked at, in words."""
    if name == 'SoC':
        return f', state of charge {100 * b.soc:.1f} %'
    if name == 'cell voltage':
        index, volts = ((b.cell_voltage_max_index, b.cell_voltage_max) if charging
                        else (b.cell_voltage_min_index, b.cell_voltage_min))
        return f', cell {index} at {volts:.3f} V' if index >= 0 else f', cell at {volts:.3f} V'
    if name == 'temperature':
        return f', {_or(b.temperature_min, b.temperature):.1f} to {b.temperature:.1f} degC'
    return ''


def _or(value: float, other: float) -> float:
    return other if isnan(value) else value


def _scaled(current: float, power: float, of: float, voltage: float) -> float:
    if power <= 0.0:
        return 0.0
    if of > 0.0 and isfinite(current) and isfinite(of):
        return current * power / of
    return power / voltage if voltage > 0.0 else nan


__all__: list[Any] = ['LimiterNode', 'LimiterNodeParams', 'inputs', 'limit']
