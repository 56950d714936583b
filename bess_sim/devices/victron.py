"""Simulated services behind a Victron GX gateway: VE.Bus, battery, grid meter. What is not there is refused.

Numbers from the maker's table (register = value x its scale), without a look at the drivers' profiles. A setpoint at
the AC input counts + = import; it lapses after 60 s without a write.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.register_layouts import RegisterDevice, known, signed
from bess_sim.plant_api import PlantApi

LAPSE_S = 60.0


class VeBus(RegisterDevice):
    """com.victronenergy.vebus of `phases` phases. `alarms`: register -> 1 (warning) or 2 (alarm)."""

    phases = 1
    error = 0

    def prepare(self) -> None:
        """Everything that stands in the table up to 63."""
        self.alarms: dict[int, int] = {}
        self.clock: Callable[[], float] = time.monotonic
        self._written_at = self.clock()
        self.image.fill(3, (*range(3, 37), *range(42, 64)))
        for address in (37, 40, 41)[: self.phases]:
            self.image.put(3, address, 'i16', 0, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""
        if self.clock() - self._written_at > LAPSE_S:
            self.order(0.0)
        i = self.plant.inverter(self.unit)
        put = self.image.put
        for n in range(3):
            there = n < self.phases
            volts = known(i.voltage[0]) if there else 0.0
            power = i.active_power / self.phases if there else 0.0
            put(3, 3 + n, 'u16', volts * 10)
            put(3, 6 + n, 'i16', power / volts * 10 if volts else 0)
            put(3, 9 + n, 'i16', i.frequency * 100 if there else 0)
            put(3, 12 + n, 'i16', power * 0.1)
        put(3, 26, 'u16', i.dc_voltage * 100)
        put(3, 27, 'i16', i.dc_current * 10)
        put(3, 28, 'u16', self.phases)
        put(3, 31, 'u16', 2 if self.error else 0 if not i.running else 3 if i.active_power > 0 else
            9 if i.active_power < 0 else 8)
        put(3, 32, 'u16', self.error)
        put(3, 61, 'i16', i.temperature * 10)
        for address, level in self.alarms.items():
            put(3, address, 'u16', level)

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        self._written_at = self.clock()
        self.order(float(sum(signed(self.image.words[3][a]) for a in (37, 40, 41)[: self.phases])))


class VeBus3(VeBus):
    """Three phases."""

    phases = 3


class GxBattery(RegisterDevice):
    """com.victronenergy.battery: what a managed battery has; no starter voltage, no mid voltage."""

    def prepare(self) -> None:
        """Alarm registers."""
        self.alarms: dict[int, int] = {}
        self.image.fill(3, (267, 268, 269, *range(272, 275), *range(320, 327)))

    def show(self) -> None:
        """See `RegisterDevice`."""
        p = self.plant.pack(self.unit)
        put = self.image.put
        put(3, 259, 'u16', p.voltage * 100)
        put(3, 261, 'i16', p.current * 10)
        put(3, 262, 'i16', p.temperatures[0] * 10)
        put(3, 266, 'u16', p.soc * 1000)
        put(3, 304, 'u16', p.soh * 1000)
        put(3, 307, 'u16', p.max_charge_current * 10)
        put(3, 308, 'u16', p.max_discharge_current * 10)
        put(3, 309, 'u16', p.charge_full * 10)
        put(3, 1290, 'u16', min(p.cells) * 100)
        put(3, 1291, 'u16', max(p.cells) * 100)
        for address, level in self.alarms.items():
            put(3, address, 'u16', level)


class GxGrid(RegisterDevice):
    """com.victronenergy.grid: phases that are not there read 0."""

    def show(self) -> None:
        """See `RegisterDevice`."""
        m = self.plant.meter()
        put = self.image.put
        for n in range(3):
            watts, volts = known(m.phase_power[n]), known(m.voltage[n])
            put(3, 2600 + n, 'i16', watts)
            put(3, 2616 + 2 * n, 'u16', volts * 10)
            put(3, 2617 + 2 * n, 'i16', watts / volts * 10 if volts else 0)
            put(3, 2622 + 2 * n, 'u32', m.energy_import / 10 if n == 0 else 0)
            put(3, 2628 + 2 * n, 'u32', m.energy_export / 10 if n == 0 else 0)


#: layout -> class
VICTRON_LAYOUTS: dict[str, Callable[[PlantApi, str, DeviceFaults], RegisterDevice]] = {
    'victron_vebus': VeBus, 'victron_vebus_3p': VeBus3, 'victron_battery': GxBattery, 'victron_grid': GxGrid,
}
