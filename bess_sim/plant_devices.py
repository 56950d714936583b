"""Devices without wires: the physics seen through the driver interface, for simulated time.

On simulated time a day passes in minutes, far too fast for a serial line. The same driver nodes then
read these classes instead of the protocol devices; everything above the wire is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt
from typing import Any, ClassVar

from bess_core.params import param
from bess_core.values import (
    BatteryReading,
    Contactor,
    ConverterReading,
    ConverterState,
    Identity,
    IoReading,
    MeterReading,
    Mode,
    Switch,
)

from .plant_api import AIRFLOW, HEATER_W, PlantApi

IDLE_A = 0.05  # below this magnitude a pack counts as idle


@dataclass(frozen=True, kw_only=True)
class PlantDeviceParams:
    """Parameters of a device without wires."""

    address: str = param(doc='plant:<name of the simulated device>')
    plant_unit: str = param('', doc='unit of the simulation; empty for the meter')
    plant_options: dict[str, Any] = param({}, doc='further keys of the simulated device')


class PlantDevice:
    """Common part: there is nothing to open."""

    Params: ClassVar[type] = PlantDeviceParams
    plant: PlantApi  # given by `bess_sim.conductor.bound`

    def __init__(self, params: PlantDeviceParams, read_only: bool = False) -> None:
        self.unit, self.options = params.plant_unit, params.plant_options
        self.read_only = read_only

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def identify(self) -> Identity:
        """The simulation itself."""
        return Identity('bess', 'simulated', self.unit)


class PlantBattery(PlantDevice):
    """A pack as its BMS tells it."""

    role: ClassVar[str] = 'battery'

    def read(self, now: float) -> BatteryReading:
        """One snapshot."""
        p = self.plant.pack(self.unit)
        charge = p.max_charge_current if p.charge_switch else 0.0
        discharge = p.max_discharge_current if p.discharge_switch else 0.0
        low, high, lowest, highest = _extremes(p.cells)
        coldest, hottest, _, _ = _extremes(p.temperatures)
        return BatteryReading(
            time=now, newest=now,
            mode=Mode.CHARGING if p.current > IDLE_A else Mode.DISCHARGING if p.current < -IDLE_A else Mode.IDLE,
            contactor=_contactor(p.charge_switch, p.discharge_switch),
            voltage=p.voltage, current=p.current, power=p.voltage * p.current, charge=p.charge,
            charge_full=p.charge_full, energy=p.energy, energy_full=p.energy_full, max_charge_current=charge,
            max_discharge_current=discharge, max_charge_power=charge * p.voltage,
            max_discharge_power=discharge * p.voltage, soc=p.soc, soh=p.soh, temperature=hottest,
            temperature_min=coldest, cell_voltage_min=low, cell_voltage_max=high, cell_voltage_min_index=lowest,
            cell_voltage_max_index=highest, cells=p.cells, temperatures=p.temperatures,
            balancing=p.balancing)

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Open or close the paths."""
        self.plant.set_switches(self.unit, charge, discharge)

    def set_balancing(self, cells: tuple[bool, ...]) -> None:
        """Bleed these cells; () gives balancing back to the pack."""
        self.plant.set_balancing(self.unit, cells)


def _extremes(values: tuple[float, ...]) -> tuple[float, float, int, int]:
    """Lowest and highest of at least one value, and which are the first of them."""
    low = high = values[0]
    at_low = at_high = 0
    for k, value in enumerate(values):
        if value < low:
            low, at_low = value, k
        if value > high:
            high, at_high = value, k
    return low, high, at_low, at_high


def _contactor(charge: bool, discharge: bool) -> Contactor:
    if charge:
        return Contactor.CLOSED if discharge else Contactor.CHARGE_ONLY
    return Contactor.DISCHARGE_ONLY if discharge else Contactor.OPEN


def _apparent(power: float, reactive_power: float) -> float:
    return sqrt(power * power + reactive_power * reactive_power)


class PlantConverter(PlantDevice):
    """An inverter as it tells itself."""

    role: ClassVar[str] = 'converter'

    def read(self, now: float) -> ConverterReading:
        """One snapshot."""
        s = self.plant.inverter(self.unit)
        return ConverterReading(
            time=now, state=ConverterState.RUNNING if s.running else ConverterState.STANDBY, voltage=s.voltage,
            active_power=s.active_power, reactive_power=s.reactive_power,
            apparent_power=_apparent(s.active_power, s.reactive_power), frequency=s.frequency,
            dc_voltage=s.dc_voltage, dc_current=s.dc_current, dc_power=s.dc_power, temperature=s.temperature,
            max_charge_power=s.max_charge_power, max_discharge_power=s.max_discharge_power,
            max_apparent_power=s.max_apparent_power, energy_import=s.energy_import, energy_export=s.energy_export)

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        """Order a power; the last gate above keeps the lease on simulated time."""
        del lease
        self.plant.set_inverter(self.unit, power, 0.0 if reactive_power != reactive_power else reactive_power, nan)

    def stop(self) -> None:
        """Zero."""
        self.plant.set_inverter(self.unit, 0.0, 0.0, nan)


class PlantMeter(PlantDevice):
    """The meter at the grid connection."""

    role: ClassVar[str] = 'meter'

    def read(self, now: float) -> MeterReading:
        """One snapshot."""
        s = self.plant.pv_meter() if self.unit == 'pv' else self.plant.meter()
        one, two, three = s.phase_power
        power = one + two + three
        return MeterReading(
            time=now, voltage=s.voltage, phase_power=s.phase_power, active_power=power,
            reactive_power=s.reactive_power, apparent_power=_apparent(power, s.reactive_power),
            frequency=s.frequency, energy_import=s.energy_import, energy_export=s.energy_export)


@dataclass(frozen=True, slots=True)
class Relay:
    """What the last gate lets through to an output: on or off, off when nobody holds it."""

    safe: float = 0.0
    latched: bool = False
    digital: bool = True
    low: float = 0.0
    high: float = 1.0


class PlantIo(PlantDevice):
    """The relays of a cabinet: the first switches its heater, the second its fan."""

    role: ClassVar[str] = 'io'

    def __init__(self, params: PlantDeviceParams, read_only: bool = False) -> None:
        super().__init__(params, read_only)
        self.relays = dict.fromkeys((f'relay_{n}' for n in range(1, 9)), False)

    def output_rules(self) -> dict[str, Relay]:
        """All relays."""
        return dict.fromkeys(self.relays, Relay())

    def read(self, now: float) -> IoReading:
        """One snapshot; each input is wired to its relay."""
        outputs = {n: Switch.ON if on else Switch.OFF for n, on in self.relays.items()}
        return IoReading(time=now, digital_outputs=outputs,
                         digital_inputs={n.replace('relay', 'input'): v for n, v in outputs.items()})

    def write_output(self, name: str, value: float) -> None:
        """Switch a relay."""
        self.relays[name] = value > 0.5
        heater = float(self.options.get('heater_power', HEATER_W)) if self.relays['relay_1'] else 0.0
        airflow = float(self.options.get('airflow', AIRFLOW)) if self.relays['relay_2'] else 1.0
        self.plant.set_climate(self.unit, heater, airflow)


#: What stands in for a simulated device of a kind, by the role of its driver.
BY_ROLE: dict[str, type[PlantDevice]] = {'bms': PlantBattery, 'converter': PlantConverter, 'meter': PlantMeter,
                                         'io': PlantIo}
