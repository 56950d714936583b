"""What a simulated device sees of the physics: the same few calls in one process or over shared memory.

Signs are passive, units SI. Device simulators depend on this module only, so tests can give them a
`StaticPlant` and the bench gives them the shared one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Protocol

HEATER_W, AIRFLOW = 200.0, 4.0  # a cabinet whose site file says nothing else, see `PlantApi.set_climate`


@dataclass(slots=True)
class PackSample:
    """One battery pack as its BMS sees it."""

    voltage: float = 52.0  # V
    current: float = 0.0  # A, + = charging
    soc: float = 0.5  # 0..1, true state of charge
    soh: float = 1.0
    charge: float = 50.0  # Ah stored
    charge_full: float = 100.0  # Ah
    energy: float = 2600.0  # Wh
    energy_full: float = 5200.0  # Wh
    cells: tuple[float, ...] = (3.25,) * 16  # V
    temperatures: tuple[float, ...] = (25.0, 25.0)  # degC
    balancing: tuple[bool, ...] = ()
    charge_switch: bool = True  # charge path closed
    discharge_switch: bool = True
    max_charge_current: float = 100.0  # A
    max_discharge_current: float = 100.0  # A
    cycles: int = 0


@dataclass(slots=True)
class InverterSample:
    """One inverter as its own electronics see it."""

    active_power: float = 0.0  # W, AC, + = charging
    reactive_power: float = 0.0  # var, + = inductive
    dc_voltage: float = 52.0  # V
    dc_current: float = 0.0  # A, + = into the battery
    dc_power: float = 0.0  # W, + = into the battery
    voltage: tuple[float, float, float] = (230.0, nan, nan)  # V
    frequency: float = 50.0  # Hz
    temperature: float = 30.0  # degC
    running: bool = True
    energy_import: float = 0.0  # Wh
    energy_export: float = 0.0  # Wh
    max_charge_power: float = 5000.0  # W, rating
    max_discharge_power: float = 5000.0  # W, rating
    max_apparent_power: float = 5000.0  # VA, rating


@dataclass(slots=True)
class MeterSample:
    """The grid connection."""

    phase_power: tuple[float, float, float] = (0.0, 0.0, 0.0)  # W, + = import
    reactive_power: float = 0.0  # var
    voltage: tuple[float, float, float] = (230.0, 230.0, 230.0)  # V
    frequency: float = 50.0  # Hz
    energy_import: float = 0.0  # Wh
    energy_export: float = 0.0  # Wh


class PlantApi(Protocol):
    """Access of a device to the physics; `name` is a unit of `simulation.units` in the site file."""

    def pack(self, name: str) -> PackSample:
        """Present state of a unit's battery pack."""

    def inverter(self, name: str) -> InverterSample:
        """Present state of a unit's inverter."""

    def meter(self) -> MeterSample:
        """Present state of the grid connection."""

    def pv_meter(self) -> MeterSample:
        """What a meter in the line of the PV plant measures: generation is negative, counted as export."""

    def set_inverter(self, name: str, power: float, reactive_power: float, ramp: float = nan) -> None:
        """Order of the inverter's controller: W and var at AC, ramp in W/s (NaN = the inverter's own)."""

    def set_switches(self, name: str, charge: bool, discharge: bool) -> None:
        """The BMS opens or closes the charge and discharge paths of a pack."""

    def set_balancing(self, name: str, cells: tuple[bool, ...]) -> None:
        """The BMS bleeds these cells of a pack and no others; () = as the pack does by itself."""

    def set_climate(self, name: str, heater: float, airflow: float) -> None:
        """The cabinet of a pack: W of its heater, and by what factor (1 = still air) its fan carries heat away better.
        """


@dataclass
class StaticPlant:
    """A plant that does not move: for tests of one device. Orders are recorded."""

    packs: dict[str, PackSample] = field(default_factory=dict)
    inverters: dict[str, InverterSample] = field(default_factory=dict)
    meter_sample: MeterSample = field(default_factory=MeterSample)
    pv_sample: MeterSample = field(default_factory=MeterSample)
    orders: list[tuple[str, float, float, float]] = field(default_factory=list)
    climate: dict[str, tuple[float, float]] = field(default_factory=dict)

    def pack(self, name: str) -> PackSample:
        """See `PlantApi`."""
        return self.packs.setdefault(name, PackSample())

    def inverter(self, name: str) -> InverterSample:
        """See `PlantApi`."""
        return self.inverters.setdefault(name, InverterSample())

    def meter(self) -> MeterSample:
        """See `PlantApi`."""
        return self.meter_sample

    def pv_meter(self) -> MeterSample:
        """See `PlantApi`."""
        return self.pv_sample

    def set_inverter(self, name: str, power: float, reactive_power: float, ramp: float = nan) -> None:
        """See `PlantApi`."""
        self.orders.append((name, power, reactive_power, ramp))
        sample = self.inverter(name)
        sample.active_power, sample.reactive_power = power, reactive_power

    def set_switches(self, name: str, charge: bool, discharge: bool) -> None:
        """See `PlantApi`."""
        pack = self.pack(name)
        pack.charge_switch, pack.discharge_switch = charge, discharge

    def set_balancing(self, name: str, cells: tuple[bool, ...]) -> None:
        """See `PlantApi`."""
        self.pack(name).balancing = cells

    def set_climate(self, name: str, heater: float, airflow: float) -> None:
        """See `PlantApi`."""
        self.climate[name] = (heater, airflow)
