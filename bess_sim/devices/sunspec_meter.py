"""A simulated SunSpec meter: common model and one of 201 to 204 or 211 to 214. + = import."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import hypot, isnan, nan

from bess_sim.devices.sunspec_base import COMMON, SunSpecDevice
from bess_sim.devices.sunspec_image import SunSpecImage
from bess_sim.plant_api import PlantApi

MODELS = (201, 202, 203, 204, 211, 212, 213, 214)
SCALES = {'A_SF': -2, 'V_SF': -1, 'Hz_SF': -2, 'W_SF': 0, 'VA_SF': 0, 'VAR_SF': 0, 'PF_SF': -2, 'TotWh_SF': 0}


class SunSpecMeterSimulator(SunSpecDevice):
    """Shows the grid connection of the plant."""

    def __init__(self, plant: PlantApi, model: int = 203, *, base: int = 40000,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if model not in MODELS:
            raise ValueError(f'model must be one of {", ".join(map(str, MODELS))}, not {model}')
        image = SunSpecImage({1: 0, model: 0}, base)
        image.set(1, {**COMMON, 'Md': 'meter', 'SN': 'M-0001'})
        if model < 210:
            image.scale(model, **SCALES)
        super().__init__(image, clock, background=False)
        self.plant, self.model = plant, model
        self._live[model] = self._show
        self._show()

    def _show(self) -> None:
        m = self.plant.meter()
        phases = [p for n, p in enumerate(m.phase_power) if not isnan(m.voltage[n])]
        total = sum(0.0 if isnan(p) else p for p in phases)
        apparent = hypot(total, m.reactive_power)
        values: dict[str, float | str] = {
            'W': total, 'VA': apparent, 'VAR': m.reactive_power, 'Hz': m.frequency,
            'PF': total / apparent if apparent else 1.0, 'TotWhImp': m.energy_import, 'TotWhExp': m.energy_export,
        }
        amps = 0.0
        for n, phase in enumerate('ABC'):
            volt, watt = m.voltage[n], m.phase_power[n]
            ampere = nan if isnan(volt) or not volt else watt / volt
            amps += 0.0 if isnan(ampere) else ampere
            values |= {f'PhVph{phase}': volt, f'Wph{phase}': nan if isnan(volt) else watt, f'Aph{phase}': ampere}
        self.image.set(self.model, {**values, 'A': amps})
