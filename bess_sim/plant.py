"""The physics of a site: packs, inverters, house, PV, grid and the meter at the connection point.

`Plant` implements `bess_sim.plant_api.PlantApi`. Within a step all powers are constant, so
energies are exact sums: meter = load + PV + inverters; AC = DC + loss; DC = stored + heat.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import acos, inf, isfinite, isnan, nan, tan

import numpy as np

from bess_sim.cells import CellBank
from bess_sim.chemistry import CHEMISTRIES
from bess_sim.grid import Grid
from bess_sim.inverter import Inverter
from bess_sim.plant_api import InverterSample, MeterSample, PackSample
from bess_sim.plant_config import PlantConfig
from bess_sim.profiles import load_profile, pv_profile

#: name -> what it does (value in brackets); shown by `pack()`, the state of the cells is untouched
PLANT_FAULTS = {
    'cell_overvoltage': 'a cell reads too high a voltage [value: V, default 0.1 V above the limit]',
    'cell_undervoltage': 'a cell reads too low a voltage [value: V, default 0.1 V below the limit]',
    'over_temperature': 'a temperature sensor reads too high [value: degC, default 75]',
}

Phases = tuple[float, float, float]  # W

RELEASE_V = 0.1  # a pack that was stopped at a hard voltage limit goes on this far inside


@dataclass(frozen=True, slots=True)
class PlantFault:
    """An injected fault: which cell (or temperature sensor) of which unit reads `value`."""

    name: str
    unit: str
    index: int
    value: float
    until: float  # s, plant time


@dataclass(frozen=True, slots=True)
class EnergyBooks:
    """Energies of a unit since start (Wh, + = into it): ac = dc + loss, dc = stored + heat."""

    ac: float
    dc: float
    loss: float
    stored: float
    heat: float


class Unit:
    """One pack with its inverter: switches and voltage trips."""

    def __init__(self, name: str, row: int, config: PlantConfig) -> None:
        self.name, self.row, self.config = name, row, config.units[name]
        self.inverter = Inverter(self.config.inverter, config.ambient)
        self.charge_switch = self.discharge_switch = True
        self.too_high = self.too_low = False
        pack = self.config.pack
        self.soh, self.taper, self.cycles = pack.soh, pack.taper, pack.cycles
        count = pack.temperature_sensors
        self.sensors = [(2 * k + 1) * pack.cells // (2 * count) for k in range(count)]  # the cells that they sit on
        self.max_charge_current, self.max_discharge_current = pack.max_charge_current, pack.max_discharge_current
        chemistry = CHEMISTRIES[pack.chemistry]
        self.limits = (chemistry.min_voltage, chemistry.max_voltage)
        self.discharged = 0.0  # Ah
        self.stored_at_start = 0.0  # Wh


class Plant:
    """The whole site. `time` is s since start. Not thread-safe: one caller steps and orders."""

    def __init__(self, config: PlantConfig) -> None:
        self.config = config
        self.time = 0.0
        rng = np.random.default_rng(config.seed)
        self.units = {name: Unit(name, row, config) for row, name in enumerate(config.units)}
        self._list = list(self.units.values())
        packs = [unit.config.pack for unit in self._list]
        self.bank = CellBank(packs, config.ambient, rng) if packs else None
        for unit in self._list:
            unit.stored_at_start = self._bank.stored_energy(unit.row)
        self.grid = Grid(config.grid, rng)
        self._house, self._pv = load_profile(config), pv_profile(config)
        self._house_phase, self._pv_phase = config.house.phase, config.pv.phase
        self._house_q = tan(acos(config.house.power_factor))
        self.house_override = self.pv_override = nan  # W, + load and magnitude; NaN = the profile
        self.house_power = self.pv_power = 0.0  # W, passive signs
        self.phase_power = (0.0, 0.0, 0.0)
        self.reactive_power = 0.0
        self.energy_import = self.energy_export = 0.0  # Ws
        self.pv_energy = 0.0  # Ws generated
        self.faults: dict[tuple[str, str, int], PlantFault] = {}
        self._measure()

    @property
    def _bank(self) -> CellBank:
        if self.bank is None:
            raise ValueError('this plant has no units')
        return self.bank

    # -- time ------------------------------------------------------------------------------------

    def step(self, dt: float) -> None:
        """Advance the physics by `dt` s (> 0). Orders given before take part in this step."""
        if not 0.0 < dt < inf:
            raise ValueError(f'dt must be a finite number above 0 s, not {dt!r}')
        now, bank = self.time, self.bank
        if bank is not None:
            wishes = []
            for unit in self._list:
                low, high = unit.limits
                top, bottom = bank.cell_max[unit.row], bank.cell_min[unit.row]
                unit.too_high = top > (high - RELEASE_V if unit.too_high else high)
                unit.too_low = bottom < (low + RELEASE_V if unit.too_low else low)
                wishes.append(
                    unit.inverter.wish(
                        now, dt,
                        unit.charge_switch and not unit.too_high,
                        unit.discharge_switch and not unit.too_low,
                    )
                )  # fmt: skip
            currents = bank.step(wishes, dt)
            for unit, wish, current in zip(self._list, wishes, currents, strict=True):
                taken = bank.pack_voltage[unit.row] * current
                if abs(taken - wish) <= 1e-9 * abs(wish):
                    taken = wish  # only rounding lies between them
                unit.inverter.settle(wish, taken, dt)
                if current < 0.0:
                    unit.discharged -= current * dt / 3600.0
        self.time = now + dt
        self._measure()
        self.pv_energy -= self.pv_power * dt
        one, two, three = self.phase_power
        net = one + two + three
        if net > 0.0:
            self.energy_import += net * dt
        else:
            self.energy_export -= net * dt
        self.grid.step(dt, self.phase_power)

    def _measure(self) -> None:
        """Powers at the connection point: profiles at the present time, and inverters."""
        t = self.time
        house, pv = self.house_override, self.pv_override
        self.house_power = house = self._house.at(t) if isnan(house) else house
        self.pv_power = pv = -(self._pv.at(t) if isnan(pv) else pv)
        phases = _on(_on((0.0, 0.0, 0.0), house, self._house_phase), pv, self._pv_phase)
        reactive = house * self._house_q
        for unit in self._list:
            inverter = unit.inverter
            phases = _on(phases, inverter.power, inverter.phase)
            reactive += inverter.reactive_power
        self.phase_power = phases
        self.reactive_power = reactive

    # -- PlantApi --------------------------------------------------------------------------------

    def pack(self, name: str) -> PackSample:
        """See `PlantApi`; injected faults show here."""
        unit, bank = self._unit(name), self._bank
        row = unit.row
        n = bank.sizes[row]
        charge = bank.reach[row]
        full = charge + bank.room[row]  # a series string is full and empty with its first cell
        soc = charge / full if full > 0.0 else 0.0
        cells = bank.cells_of(row)
        temperatures = [bank.temperature_of(row, cell) for cell in unit.sensors]
        voltage = bank.pack_voltage[row]
        coldest = inf
        for temperature in temperatures:
            coldest = min(coldest, temperature)
        if self.faults:
            shift = self._disturb(name, cells, temperatures)
            voltage += shift
        up = 0.0 if unit.taper and coldest < 0.0 else _taper(1.0 - soc, unit.taper)
        energy, energy_full = bank.told_energy(row)
        bleed = bank.bleed[row, :n].tolist() if bank.balancing else ()
        return PackSample(
            voltage=voltage,
            current=bank.current[row],
            soc=soc,
            soh=unit.soh,
            charge=charge,
            charge_full=full,
            energy=energy,
            energy_full=energy_full,
            cells=tuple(cells),
            temperatures=tuple(temperatures),
            balancing=tuple(b > 0.0 for b in bleed) if bleed else (False,) * n,
            charge_switch=unit.charge_switch,
            discharge_switch=unit.discharge_switch,
            max_charge_current=unit.max_charge_current * up,
            max_discharge_current=unit.max_discharge_current * _taper(soc, unit.taper),
            cycles=unit.cycles + int(unit.discharged / full) if full > 0.0 else unit.cycles,
        )

    def inverter(self, name: str) -> InverterSample:
        """See `PlantApi`."""
        unit, bank = self._unit(name), self._bank
        inverter, phase = unit.inverter, unit.inverter.phase
        volts = self.grid.voltage
        return InverterSample(
            active_power=inverter.power,
            reactive_power=inverter.reactive_power,
            dc_voltage=bank.pack_voltage[unit.row],
            dc_current=bank.current[unit.row],
            dc_power=inverter.dc_power,
            voltage=volts if phase == 0 else (volts[phase - 1], nan, nan),
            frequency=self.grid.frequency,
            temperature=inverter.temperature,
            running=inverter.running,
            energy_import=inverter.energy_import / 3600.0,
            energy_export=inverter.energy_export / 3600.0,
            max_charge_power=inverter.charge_limit,
            max_discharge_power=inverter.discharge_limit,
            max_apparent_power=inverter.rating,
        )

    def meter(self) -> MeterSample:
        """See `PlantApi`."""
        return MeterSample(
            phase_power=self.phase_power,
            reactive_power=self.reactive_power,
            voltage=self.grid.voltage,
            frequency=self.grid.frequency,
            energy_import=self.energy_import / 3600.0,
            energy_export=self.energy_export / 3600.0,
        )

    def pv_meter(self) -> MeterSample:
        """See `PlantApi`."""
        return MeterSample(
            phase_power=_on((0.0, 0.0, 0.0), self.pv_power, self._pv_phase),
            voltage=self.grid.voltage,
            frequency=self.grid.frequency,
            energy_export=self.pv_energy / 3600.0,
        )

    def set_inverter(
        self, name: str, power: float, reactive_power: float, ramp: float = nan
    ) -> None:
        """See `PlantApi`. NaN keeps the present order of that power. Raises ValueError."""
        self._unit(name).inverter.order(power, reactive_power, ramp, self.time)

    def set_switches(self, name: str, charge: bool, discharge: bool) -> None:
        """See `PlantApi`."""
        unit = self._unit(name)
        unit.charge_switch, unit.discharge_switch = bool(charge), bool(discharge)

    def set_balancing(self, name: str, cells: tuple[bool, ...]) -> None:
        """See `PlantApi`. Raises ValueError for another number of cells."""
        unit = self._unit(name)
        self._bank.order_balancing(unit.row, cells)

    def set_climate(self, name: str, heater: float, airflow: float) -> None:
        """See `PlantApi`."""
        self._bank.set_climate(self._unit(name).row, heater, airflow)

    # -- world -----------------------------------------------------------------------------------

    def inject(
        self, name: str, value: float = nan, unit: str = '', index: int = 0, for_s: float = inf
    ) -> None:
        """Make cell (or temperature sensor) `index` of `unit` read wrong for `for_s` plant seconds.

        An empty `unit` means the only one. Raises ValueError for an unknown fault, unit or index.
        """
        if name not in PLANT_FAULTS:
            raise ValueError(f'unknown plant fault {name!r}; known: {", ".join(PLANT_FAULTS)}')
        if not unit and len(self.units) == 1:
            unit = self._list[0].name
        pack = self._unit(unit).config.pack
        count = pack.temperature_sensors if name == 'over_temperature' else pack.cells
        if not 0 <= index < count:
            raise ValueError(f'{name}: index {index} is not in 0..{count - 1}')
        if isnan(value):
            low, high = self._unit(unit).limits
            value = {'cell_overvoltage': high + 0.1, 'cell_undervoltage': low - 0.1}.get(name, 75.0)
        if not isfinite(value) or not for_s > 0.0:
            raise ValueError(f'{name}: value {value!r} must be finite and for_s {for_s!r} above 0')
        self.faults[name, unit, index] = PlantFault(name, unit, index, value, self.time + for_s)

    def clear(self, name: str = '', unit: str = '') -> None:
        """End the faults of this name and unit; '' = all."""
        self.faults = {
            key: fault
            for key, fault in self.faults.items()
            if (name and fault.name != name) or (unit and fault.unit != unit)
        }

    def override(self, house_power: float, pv_power: float) -> None:
        """Fix load and generation (W, magnitudes; NaN = the profile) from now on."""
        self.house_override, self.pv_override = house_power, pv_power
        self._measure()

    def books(self, name: str) -> EnergyBooks:
        """Energy balance of a unit since start."""
        unit, bank = self._unit(name), self._bank
        inverter, row = unit.inverter, unit.row
        return EnergyBooks(
            ac=(inverter.energy_import - inverter.energy_export) / 3600.0,
            dc=bank.dc_energy[row] / 3600.0,
            loss=inverter.loss_energy / 3600.0,
            stored=bank.stored_energy(row) - unit.stored_at_start,
            heat=float(bank.heat[row].sum()) / 3600.0,
        )

    def set_ambient(self, ambient: float) -> None:
        """Change the ambient temperature (degC) of cells and inverters."""
        if not isfinite(ambient):
            raise ValueError(f'ambient must be a finite number, not {ambient!r}')
        if self.bank is not None:
            self.bank.set_ambient(ambient)
        for unit in self._list:
            unit.inverter.ambient = ambient

    def _unit(self, name: str) -> Unit:
        try:
            return self.units[name]
        except KeyError:
            known = ', '.join(self.units) or 'none'
            raise ValueError(f'unknown unit {name!r}; known: {known}') from None

    def _disturb(self, unit: str, cells: list[float], temperatures: list[float]) -> float:
        """Write active faults into a sample; returns the change of the pack voltage (V)."""
        shift = 0.0
        for key, fault in list(self.faults.items()):
            if self.time >= fault.until:
                del self.faults[key]
            elif fault.unit == unit and fault.name == 'over_temperature':
                temperatures[fault.index] = fault.value
            elif fault.unit == unit:
                shift += fault.value - cells[fault.index]
                cells[fault.index] = fault.value
        return shift


def _on(phases: Phases, power: float, phase: int) -> Phases:
    """With a power more on one phase (1..3), or evenly on all (0)."""
    one, two, three = phases
    if phase == 0:
        third = power / 3.0
        return one + third, two + third, three + third
    if phase == 1:
        return one + power, two, three
    return (one, two + power, three) if phase == 2 else (one, two, three + power)


def _taper(distance: float, over: float) -> float:
    """Share of a told current limit: 1, falling to 0 over the last `over` of SoC."""
    return min(max(distance / over, 0.0), 1.0) if over > 0.0 else 1.0
