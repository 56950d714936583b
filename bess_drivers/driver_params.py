"""Parameters of the driver nodes, beside those of the device itself."""

from __future__ import annotations

from dataclasses import dataclass

from bess_core.params import param

from .gate import GateParams


@dataclass(frozen=True, kw_only=True)
class DriverParams:
    """Parameters of every driver node, beside those of the device."""

    period: float = param(1.0, 's', 'how often the device is polled', low=0.02, high=3600.0)
    polling: str = param('active', doc='"active": every period; "lazy": only when somebody asks ~/get_status '
                                       'and the values are STALE', choices=['active', 'lazy'])
    max_age: float = param(0.0, 's', 'older values are STALE; 0 = three periods', low=0.0, high=3600.0)
    invalid_after: float = param(0.0, 's', 'older values are INVALID; 0 = ten periods, at least 5 s',
                                 low=0.0, high=86400.0)
    read_only: bool = param(False, doc='never write to the device: enforced where the bytes leave')
    errors_to_fault: int = param(3, doc='failed polls in a row that make a fault', low=1, high=1000)
    frozen_after: float = param(60.0, 's', 'measured values that do not move at all for so long raise a fault; '
                                           '0 = off', low=0.0, high=86400.0)

    @property
    def stale_s(self) -> float:
        """Age in s from which values are STALE."""
        return self.max_age or 3.0 * self.period

    @property
    def invalid_s(self) -> float:
        """Age in s from which values are INVALID."""
        return self.invalid_after or max(10.0 * self.period, 5.0, self.stale_s)


@dataclass(frozen=True, kw_only=True)
class BatteryParams(DriverParams):
    """Parameters of a battery driver."""

    # Coarse values (SoC in 1 %, current in 0.1 A) stand still for minutes under a steady current: at 5 A,
    # 15 minutes are more than 1 % of a 100 Ah pack.
    frozen_after: float = param(900.0, 's', 'values that do not move at all under 5 A or more for so long raise a '
                                            'fault; 0 = off', low=0.0, high=86400.0)


@dataclass(frozen=True, kw_only=True)
class ConverterParams(DriverParams):
    """Parameters of a converter driver: the last gate before the device."""

    period: float = param(0.2, 's', 'how often the device is polled', low=0.02, high=3600.0)
    bms: str = param('', doc='battery management system whose limits the last gate applies too; empty = none',
                     ref='bms')
    efficiency: float = param(0.95, '', 'of the converter, for comparing DC limits of the BMS with AC power',
                              low=0.5, high=1.0)
    max_charge_power: float = param(1e12, 'W', 'configured limit', low=0.0, high=1e12)
    max_discharge_power: float = param(1e12, 'W', 'configured limit', low=0.0, high=1e12)
    max_apparent_power: float = param(1e12, 'VA', 'configured limit', low=0.0, high=1e12)
    longest_lease: float = param(10.0, 's', 'a longer lease is refused', low=0.1, high=3600.0)
    expiry_ramp: float = param(5000.0, 'W/s', 'ramp to zero after a lease ended', low=0.1, high=1e12)
    refresh: float = param(0.5, 's', 'an unchanged power is written again after this time', low=0.05, high=60.0)
    gate_period: float = param(0.1, 's', 'how often the last gate looks at leases and limits', low=0.01, high=60.0)
    follow_tolerance: float = param(100.0, 'W', 'deviation from the order that is no fault', low=0.0, high=1e9)
    follow_time: float = param(5.0, 's', 'time that the device may take to follow', low=0.1, high=600.0)
    max_bms_age: float = param(15.0, 's', 'age from which BMS limits count as unknown: power is zero then',
                               low=0.1, high=3600.0)

    def gate(self) -> GateParams:
        """Parameters of the last gate."""
        return GateParams(
            max_charge_power=self.max_charge_power, max_discharge_power=self.max_discharge_power,
            max_apparent_power=self.max_apparent_power, read_only=self.read_only, longest_lease_s=self.longest_lease,
            expiry_ramp=self.expiry_ramp, max_reading_age_s=self.invalid_s, external_required=bool(self.bms),
            max_external_age_s=self.max_bms_age, refresh_s=self.refresh, follow_tolerance=self.follow_tolerance,
            follow_time_s=self.follow_time)


@dataclass(frozen=True, kw_only=True)
class OutputParams(DriverParams):
    """Parameters of a driver with leased outputs."""

    longest_lease: float = param(3600.0, 's', 'a longer lease is refused', low=0.1, high=86400.0)
    gate_period: float = param(0.1, 's', 'how often leases are looked at', low=0.01, high=60.0)
    refresh: float = param(30.0, 's', 'a held value is written again after this time', low=0.1, high=86400.0)
    frozen_after: float = param(0.0, 's', 'values that do not move at all for so long raise a fault; 0 = off',
                                low=0.0, high=86400.0)


@dataclass(frozen=True, kw_only=True)
class IoParams(OutputParams):
    """Parameters of an I/O driver."""

    period: float = param(0.2, 's', 'how often the device is polled', low=0.02, high=3600.0)


@dataclass(frozen=True, kw_only=True)
class ClimateParams(OutputParams):
    """Parameters of a climate driver."""

    period: float = param(2.0, 's', 'how often the device is polled', low=0.02, high=3600.0)
    fallback_mode: str = param('unknown', doc='mode when nobody holds a lease; unknown = leave it as it is',
                               choices=['unknown', 'off', 'heat', 'cool', 'auto', 'fan'])
    fallback_temperature: float = param(float('nan'), 'degC', 'target when nobody holds a lease; NaN = leave it',
                                        low=-50.0, high=100.0)
    min_temperature: float = param(5.0, 'degC', 'lowest target that is accepted', low=-50.0, high=100.0)
    max_temperature: float = param(40.0, 'degC', 'highest target that is accepted', low=-50.0, high=100.0)


@dataclass(frozen=True, kw_only=True)
class MeterParams(DriverParams):
    """Parameters of a meter driver."""

    period: float = param(0.1, 's', 'how often the device is polled', low=0.02, high=3600.0)
