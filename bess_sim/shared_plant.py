"""The physics seen from other processes, through shared memory.

One process owns the `Plant`: it calls `publish` and `take_orders`. Device processes, forked after
`SharedPlant` was made, read samples and write orders with the calls of `PlantApi`. There is no
lock: every value is one aligned 8-byte double, so a reader may see values of two neighbouring steps side
by side, never half a value. An order carries a counter that is written last.
"""

from __future__ import annotations

import ctypes
from math import inf, isinf, nan
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Any

import numpy as np

from bess_sim.plant_api import InverterSample, MeterSample, PackSample

if TYPE_CHECKING:
    from bess_sim.plant import Plant

_PACK = 13  # scalars of a pack before its cells, temperatures and balancing flags
_INVERTER = 16
_METER = 10
_PV = 4  # W per phase, Wh
# inverter: counter, W, var, W/s; switches: counter, charge, discharge; balancing: counter; climate: counter, W, factor
# (then a balancing flag per cell)
_ORDER = 11


class SharedPlant:
    """`PlantApi` over shared memory for the units of a plant, given as name -> (cells, sensors)."""

    def __init__(self, units: dict[str, tuple[int, int]]) -> None:
        self._units = dict(units)
        self._at: dict[str, tuple[int, int, int]] = {}  # first index of pack, inverter, order
        position = _METER + _PV
        for name, (cells, sensors) in units.items():
            pack_size = _PACK + 2 * cells + sensors
            self._at[name] = (position, position + pack_size, position + pack_size + _INVERTER)
            position += pack_size + _INVERTER + _ORDER + cells
        # Shared with every process forked from here on; freed with the last of them.
        self._memory: Any = RawArray(ctypes.c_double, position)
        self._view = np.frombuffer(memoryview(self._memory), dtype=np.float64)
        self._seen = {name: [0.0, 0.0, 0.0, 0.0] for name in units}

    @classmethod
    def of(cls, plant: Plant) -> SharedPlant:
        """Shared memory of the right size for `plant`, filled with its present state."""
        packs = {name: unit.config.pack for name, unit in plant.units.items()}
        shared = cls({name: (p.cells, p.temperature_sensors) for name, p in packs.items()})
        shared.publish(plant)
        return shared

    # -- the process of the physics --------------------------------------------------------------

    def publish(self, plant: Plant) -> None:
        """Write the present samples of `plant`."""
        view, meter = self._view, plant.meter()
        view[:_METER] = (
            *meter.phase_power, meter.reactive_power, *meter.voltage, meter.frequency,
            meter.energy_import, meter.energy_export,
        )  # fmt: skip
        pv = plant.pv_meter()
        view[_METER : _METER + _PV] = (*pv.phase_power, pv.energy_export)
        for name, (pack_at, inverter_at, order_at) in self._at.items():
            view[pack_at:inverter_at] = _from_pack(plant.pack(name))
            view[inverter_at:order_at] = _from_inverter(plant.inverter(name))

    def take_orders(self, plant: Plant) -> None:
        """Hand the orders that have come since the last call to `plant`."""
        for name, (_, _, at) in self._at.items():
            (counter, power, reactive, ramp, switched, charge, discharge, balanced, aired, heater,
             airflow) = self._read(at, _ORDER)
            seen = self._seen[name]
            if counter != seen[0]:
                seen[0] = counter
                plant.set_inverter(name, power, reactive, ramp)
            if switched != seen[1]:
                seen[1] = switched
                plant.set_switches(name, charge > 0.5, discharge > 0.5)
            if balanced != seen[2]:
                seen[2] = balanced
                flags = self._read(at + _ORDER, self._units[name][0])
                plant.set_balancing(name, () if flags[0] < 0.0 else tuple(f > 0.5 for f in flags))
            if aired != seen[3]:
                seen[3] = aired
                plant.set_climate(name, heater, airflow)

    # -- PlantApi, any process -------------------------------------------------------------------

    def pack(self, name: str) -> PackSample:
        """See `PlantApi`."""
        at, end, _ = self._place(name)
        cells, sensors = self._units[name]
        v = self._read(at, end - at)
        first, second = _PACK + cells, _PACK + cells + sensors
        return PackSample(
            voltage=v[0],
            current=v[1],
            soc=v[2],
            soh=v[3],
            charge=v[4],
            charge_full=v[5],
            energy=v[6],
            energy_full=v[7],
            cells=tuple(v[_PACK:first]),
            temperatures=tuple(v[first:second]),
            balancing=tuple(flag > 0.5 for flag in v[second:]),
            charge_switch=v[8] > 0.5,
            discharge_switch=v[9] > 0.5,
            max_charge_current=v[10],
            max_discharge_current=v[11],
            cycles=int(v[12]),
        )

    def inverter(self, name: str) -> InverterSample:
        """See `PlantApi`."""
        v = self._read(self._place(name)[1], _INVERTER)
        return InverterSample(  # in the order of its fields
            v[0],
            v[1],
            v[2],
            v[3],
            v[4],
            (v[5], v[6], v[7]),
            v[8],
            v[9],
            v[10] > 0.5,
            v[11],
            v[12],
            v[13],
            v[14],
            v[15],
        )

    def meter(self) -> MeterSample:
        """See `PlantApi`."""
        v = self._read(0, _METER)
        return MeterSample((v[0], v[1], v[2]), v[3], (v[4], v[5], v[6]), v[7], v[8], v[9])

    def pv_meter(self) -> MeterSample:
        """See `PlantApi`."""
        grid, v = self.meter(), self._read(_METER, _PV)
        return MeterSample((v[0], v[1], v[2]), 0.0, grid.voltage, grid.frequency, 0.0, v[3])

    def set_inverter(
        self, name: str, power: float, reactive_power: float, ramp: float = nan
    ) -> None:
        """See `PlantApi`; takes effect at the next step. One process per unit may call it."""
        if isinf(power) or isinf(reactive_power):
            raise ValueError(
                f'inverter order must be finite or NaN: {power!r} W, {reactive_power!r} var'
            )
        if ramp <= 0.0:
            raise ValueError(f'ramp must be above 0 W/s, not {ramp!r}')
        at = self._place(name)[2]
        self._view[at + 1 : at + 4] = (power, reactive_power, ramp)
        self._view[at] += 1.0

    def set_switches(self, name: str, charge: bool, discharge: bool) -> None:
        """See `PlantApi`; takes effect at the next step. One process per unit may call it."""
        at = self._place(name)[2]
        self._view[at + 5 : at + 7] = (float(charge), float(discharge))
        self._view[at + 4] += 1.0

    def set_balancing(self, name: str, cells: tuple[bool, ...]) -> None:
        """See `PlantApi`; takes effect at the next step. One process per unit may call it."""
        at, count = self._place(name)[2], self._units[name][0]
        if cells and len(cells) != count:
            raise ValueError(f'{len(cells)} cells are named, the pack has {count}')
        self._view[at + _ORDER : at + _ORDER + count] = cells or (-1.0,) * count
        self._view[at + 7] += 1.0

    def set_climate(self, name: str, heater: float, airflow: float) -> None:
        """See `PlantApi`; takes effect at the next step. One process per unit may call it."""
        if not (0.0 <= heater < inf and 1.0 <= airflow < inf):
            raise ValueError(f'heater {heater!r} W must be at least 0, airflow {airflow!r} at least 1')
        at = self._place(name)[2]
        self._view[at + 9 : at + 11] = (heater, airflow)
        self._view[at + 8] += 1.0

    def _place(self, name: str) -> tuple[int, int, int]:
        try:
            return self._at[name]
        except KeyError:
            known = ', '.join(self._at) or 'none'
            raise ValueError(f'unknown unit {name!r}; known: {known}') from None

    def _read(self, at: int, count: int) -> list[float]:
        values: list[float] = self._view[at : at + count].tolist()
        return values


def _from_pack(s: PackSample) -> tuple[float, ...]:
    return (
        s.voltage, s.current, s.soc, s.soh, s.charge, s.charge_full, s.energy, s.energy_full,
        s.charge_switch, s.discharge_switch, s.max_charge_current, s.max_discharge_current,
        s.cycles, *s.cells, *s.temperatures, *s.balancing,
    )  # fmt: skip


def _from_inverter(s: InverterSample) -> tuple[float, ...]:
    return (
        s.active_power, s.reactive_power, s.dc_voltage, s.dc_current, s.dc_power, *s.voltage,
        s.frequency, s.temperature, s.running, s.energy_import, s.energy_export,
        s.max_charge_power, s.max_discharge_power, s.max_apparent_power,
    )  # fmt: skip
