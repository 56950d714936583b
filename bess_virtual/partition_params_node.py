"""Parameters of a partition and its children."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Any

from bess_core.params import ParameterError, build, param

from .ledger import LossRule
from .logical_battery_node import LogicalBatteryParams
from .shares import Policy, Share, broken_promises, validate


@dataclass(frozen=True, kw_only=True)
class ShareParams:
    """Share of one child; each column adds up to 1 or less over the children, the rest is unassigned."""

    energy: float = param(doc='fraction of the energy', low=0.0, high=1.0)
    charge_power: float = param(doc='fraction of the charge power', low=0.0, high=1.0)
    discharge_power: float = param(doc='fraction of the discharge power', low=0.0, high=1.0)
    promised_charge_power: float = param(0.0, 'W', 'kept for it whatever the others do (policy guaranteed)', low=0.0)
    promised_discharge_power: float = param(0.0, 'W', 'as promised_charge_power, discharging', low=0.0)

    def share(self) -> Share:
        """The same as a `Share`."""
        return Share(self.energy, self.charge_power, self.discharge_power, self.promised_charge_power,
                     self.promised_discharge_power)


@dataclass(frozen=True, kw_only=True)
class PartitionParams(LogicalBatteryParams):
    """One battery divided among several children."""

    source: str = param(doc='battery that is divided', ref='battery', owns=True)
    policy: str = param('proportional', doc='who gets a surplus and who bears a deficit of the source',
                        choices=[p.value for p in Policy])
    children: dict[str, Any] = param(doc='child name -> {energy, charge_power, discharge_power} as fractions')
    lease: float = param(2.0, 's', 'how long the source keeps an order without a new one', low=0.1, high=60.0)
    charge_efficiency: float = param(0.95, '', 'of the source, AC to stored energy: losses are booked with it',
                                     low=0.5, high=1.0)
    discharge_efficiency: float = param(0.95, '', 'of the source, stored energy to AC', low=0.5, high=1.0)
    loss_rule: str = param('throughput', doc='who bears the losses of the source: by all that a child moves, by what '
                           'of it goes through the source, or by the energy shares',
                           choices=[r.value for r in LossRule])
    statement_period: float = param(900.0, 's', 'length of a period of the energy statements, on a UTC grid',
                                    low=10.0, high=86400.0)
    price: float = param(nan, '', 'per kWh, for statements that are asked for without one; NaN = none')
    currency: str = param('', doc='of price and price_file, e.g. EUR')
    price_file: str = param('', doc='CSV with columns time (ISO 8601 with offset) and price, instead of price')
    rated_energy: float = param(0.0, 'Wh', 'of the source when full; 0 = as first measured', low=0.0)
    rated_charge_power: float = param(0.0, 'W', 'of the source; 0 = as first measured', low=0.0)
    rated_discharge_power: float = param(0.0, 'W', 'of the source; 0 = as first measured', low=0.0)

    def __post_init__(self) -> None:
        shares = self.shares()
        problems = validate(list(shares), list(shares.values()), Policy(self.policy))
        rated = (self.rated_energy, self.rated_charge_power, self.rated_discharge_power)
        if any(rated) and not all(rated):
            problems.append('give all of rated_energy, rated_charge_power, rated_discharge_power, or none')
        elif all(rated):
            problems += broken_promises(list(shares.values()), *rated[1:])
        if (self.price == self.price or self.price_file) and not self.currency:
            problems.append('a price needs its currency')
        if problems:
            raise ValueError('; '.join(problems))

    def shares(self) -> dict[str, Share]:
        """Share per child. Raises ValueError."""
        out = {}
        for name, values in self.children.items():
            try:
                p = build(ShareParams, values if isinstance(values, dict) else {})
            except ParameterError as error:
                raise ValueError(f'children.{name}: {error}') from error
            out[name] = p.share()
        return out


@dataclass(frozen=True, kw_only=True)
class ChildParams(LogicalBatteryParams):
    """One child of a partition; made by the partition, not written in a site file."""

    partition: str = param(doc='partition that this battery is a part of', ref='partition')
