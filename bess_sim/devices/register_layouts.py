"""Simulated devices that are a table of registers: where a value stands, from the makers' own tables.

Written from the public documents, without a look at the drivers' profiles: addresses, scales and signs
stand here a second time on purpose. Signs below are those of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import IllegalValue
from bess_sim.devices.register_image import RegisterImage
from bess_sim.plant_api import MeterSample, PlantApi


def known(value: float) -> float:
    """A number that registers can hold: phases that are not there read 0."""
    return 0.0 if isnan(value) else value


class RegisterDevice:
    """A `RegisterMap` that shows the plant and, where it takes orders, moves it."""

    max_read = 125
    same_tables = False

    def __init__(self, plant: PlantApi, unit: str, faults: DeviceFaults) -> None:
        self.plant, self.unit, self.faults = plant, unit, faults
        self.image = RegisterImage(self.max_read, same_tables=self.same_tables)
        self.prepare()
        self.show()
        self.image.before_read = self.show
        self.image.on_write = self._written

    def prepare(self) -> None:
        """Registers that stand still."""

    def show(self) -> None:
        """Bring the registers up to date."""
        raise NotImplementedError

    def obey(self, address: int, value: int) -> None:
        """Carry out the write of one holding register. Raises `IllegalValue`."""

    def _written(self, _function: int, address: int, values: list[int]) -> None:
        for i, value in enumerate(values):
            self.obey(address + i, value)

    def read(self, function: int, address: int, count: int) -> list[int]:
        """See `RegisterMap`."""
        return self.image.read(function, address, count)

    def write(self, address: int, values: list[int]) -> None:
        """See `RegisterMap`."""
        self.image.write(address, values)

    def order(self, charging: float, reactive: float = 0.0) -> None:
        """Move the unit's converter: W, + = charging."""
        self.plant.set_inverter(self.unit, charging, reactive)


def signed(word: int) -> int:
    """A register as i16."""
    return word - 0x10000 if word & 0x8000 else word


class Sdm630(RegisterDevice):
    """Eastron SDM630: float, high word first, input registers, at most 40 at once."""

    max_read = 40

    def prepare(self) -> None:
        """Holes between the values read zero up to the energies; the product code is a holding register."""
        self.image.fill(4, range(0x50))
        self.image.put(3, 0xFC02, 'u16', 112)

    def show(self) -> None:
        """See `RegisterDevice`."""
        m = self.plant.meter()
        put = self.image.put
        for n in range(3):
            volt, watt = known(m.voltage[n]), known(m.phase_power[n])
            put(4, 0x00 + 2 * n, 'f32', volt)
            put(4, 0x06 + 2 * n, 'f32', watt / volt if volt else 0.0)
            put(4, 0x0C + 2 * n, 'f32', watt)
            put(4, 0x18 + 2 * n, 'f32', m.reactive_power / 3)
        total = sum(known(p) for p in m.phase_power)
        apparent = (total ** 2 + m.reactive_power ** 2) ** 0.5
        for address, value in ((0x34, total), (0x38, apparent), (0x3C, m.reactive_power),
                               (0x3E, total / apparent if apparent else 1.0), (0x46, m.frequency),
                               (0x48, m.energy_import / 1000), (0x4A, m.energy_export / 1000)):
            put(4, address, 'f32', value)


class JanitzaUmg96(RegisterDevice):
    """Janitza UMG 96RM-E: float, high word first, SI units, FC 3."""

    same_tables = True

    def prepare(self) -> None:
        """Everything between the first and the last value exists."""
        self.image.fill(3, range(19000, 19100))

    def show(self) -> None:
        """See `RegisterDevice`."""
        self._fill(self.plant.meter())

    def _fill(self, m: MeterSample) -> None:
        put = self.image.put
        for n in range(3):
            volt, watt = known(m.voltage[n]), known(m.phase_power[n])
            put(3, 19000 + 2 * n, 'f32', volt)
            put(3, 19012 + 2 * n, 'f32', watt / volt if volt else 0.0)
            put(3, 19020 + 2 * n, 'f32', watt)
        put(3, 19026, 'f32', sum(known(p) for p in m.phase_power))
        put(3, 19042, 'f32', m.reactive_power)
        put(3, 19050, 'f32', m.frequency)
        put(3, 19068, 'f32', m.energy_import)
        put(3, 19076, 'f32', m.energy_export)


class LuxPower(RegisterDevice):
    """LuxPowerTek LXP, single phase, 12 kW: enable bits and shares in 0.1 %, no power in W."""

    rating = 12_000.0  # W

    def prepare(self) -> None:
        """Input registers 0 to 139 and the holding registers for control exist."""
        self.image.fill(4, range(140))
        self.image.fill(3, range(144))
        self.image.put(3, 21, 'u16', 1 << 9 | 1, writable=True)  # on, EPS
        self.image.put(3, 19, 'u16', 3)
        for address in (138, 139, 142):
            self.image.put(3, address, 'u16', 0, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""
        i, pack = self.plant.inverter(self.unit), self.plant.pack(self.unit)
        put, charging = self.image.put, i.active_power
        put(4, 0, 'u16', 0x20 if charging > 0 else 0x10 if charging < 0 else 0x00)
        put(4, 4, 'u16', i.dc_voltage * 10)
        put(4, 5, 'u16', round(pack.soc * 100) | round(pack.soh * 100) << 8)
        put(4, 10, 'u16', max(i.dc_power, 0.0))
        put(4, 11, 'u16', max(-i.dc_power, 0.0))
        put(4, 12, 'u16', known(i.voltage[0]) * 10)
        put(4, 15, 'u16', i.frequency * 100)
        put(4, 16, 'u16', max(-charging, 0.0))
        put(4, 17, 'u16', max(charging, 0.0))
        put(4, 46, 'u32', i.energy_export / 100, low_first=True)
        put(4, 48, 'u32', i.energy_import / 100, low_first=True)
        for address in (64, 65, 66):
            put(4, address, 'i16', i.temperature)

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address in (138, 142) and value > 1000:
            raise IllegalValue
        enable = self.image.words[3][21]
        power = 0.0
        if enable >> 9 & 1 and enable >> 11 & 1:
            power = self.image.words[3][138] / 1000 * self.rating
        elif enable >> 9 & 1 and enable >> 10 & 1:
            power = -self.image.words[3][142] / 1000 * self.rating
        self.order(power)


class PqStorI(RegisterDevice):
    """ABB PQstorI: float kW, + = discharge; a heartbeat that is watched from its first beat."""

    def prepare(self) -> None:
        """Writable registers."""
        for address in (44611, 44612, 44613, 46229):
            self.image.put(3, address, 'u16', 0, writable=True)
        for address in (46201, 46203):
            self.image.put(3, address, 'f32', 0.0, writable=True)
        self.running = False

    def show(self) -> None:
        """See `RegisterDevice`."""
        i, put = self.plant.inverter(self.unit), self.image.put
        for n in range(3):
            put(4, 30501 + 2 * n, 'f32', known(i.voltage[n]))
            put(4, 30621 + 2 * n, 'f32', abs(i.active_power) / 3 / 230.0)
        for address, value in ((30519, i.frequency), (30523, 750.0), (30709, i.temperature),
                               (30811, -i.active_power / 1000), (30813, -i.reactive_power / 1000),
                               (30815, (i.active_power ** 2 + i.reactive_power ** 2) ** 0.5 / 1000),
                               (36203, i.dc_voltage), (36205, -i.dc_current)):
            put(4, address, 'f32', value)
        put(4, 31118, 'u16', int(self.running))
        put(4, 31123, 'u16', 0)
        for address in (32801, 32803, 32866, 36201):
            self.image.words[4].setdefault(address, 0)
            self.image.words[4].setdefault(address + 1, 0)

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == 44611 and value:
            self.running = True
        if address == 44612 and value:
            self.running = False
        power = self.image.number(3, 46201, 'f32') * -1000
        reactive = self.image.number(3, 46203, 'f32') * -1000
        if address in (44611, 44612, 46202, 46204):
            self.order(power if self.running else 0.0, reactive if self.running else 0.0)


class TruConvertAc(RegisterDevice):
    """TRUMPF TruConvert AC 3025: set power in kVA x 0.001, grid type 2 and 3 are islands, changed only while idle."""

    def prepare(self) -> None:
        """400 V at 50 Hz on the grid, nothing asked."""
        self.image.put(3, 4009, 'u16', 0, writable=True)
        self.image.put(3, 4195, 'i16', 0, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == 4009:
            if not 0 <= value <= 4 or self.plant.inverter(self.unit).active_power != 0.0:
                raise IllegalValue
        elif address == 4195:
            self.order(-float(signed(value)))


class TruConvertDc(RegisterDevice):
    """TRUMPF TruConvert DC 1008: a set current in A, status 0 to 4."""

    def prepare(self) -> None:
        """Limits and the set current."""
        self.image.put(3, 4106, 'u16', 1670)
        self.image.put(3, 4109, 'u16', 1670)
        self.image.put(3, 4500, 'i16', 0, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""
        i, put = self.plant.inverter(self.unit), self.image.put
        put(4, 5000, 'i16', 3 if self.image.words[3][4500] else 2)
        put(4, 5100, 'u16', i.dc_voltage * 10)
        put(4, 5110, 'i16', -i.dc_current)
        put(4, 5120, 'i16', -i.dc_power)

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if abs(signed(value)) > 250:
            raise IllegalValue
        self.order(-signed(value) * self.plant.inverter(self.unit).dc_voltage)


class Rd6006(RegisterDevice):
    """RD6006 bench supply: only pushes current out, into the battery."""

    same_tables = True

    def prepare(self) -> None:
        """Identity, set values."""
        self.image.fill(3, range(20))
        self.image.put(3, 0, 'u16', 60062)
        self.image.put(3, 1, 'u32', 12345)
        self.image.put(3, 3, 'u16', 128)
        for address, value in ((8, 5600), (9, 0), (18, 0)):
            self.image.put(3, address, 'u16', value, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""
        i, put = self.plant.inverter(self.unit), self.image.put
        amps = self.image.words[3][9] / 1000 if self.image.words[3][18] else 0.0
        put(3, 5, 'u16', i.temperature)
        put(3, 10, 'u16', i.dc_voltage * 100)
        put(3, 11, 'u16', amps * 1000)
        put(3, 13, 'u16', amps * i.dc_voltage * 100)

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == 9 and value > 6000:
            raise IllegalValue
        amps = self.image.words[3][9] / 1000 if self.image.words[3][18] else 0.0
        self.order(amps * self.plant.inverter(self.unit).dc_voltage)


class Relays(RegisterDevice):
    """Eight relays and eight inputs; input n shows relay n, as with a wire between them."""

    def prepare(self) -> None:
        """Coils."""
        for n in range(8):
            self.image.put(1, n, 'bit', 0, writable=True)

    def show(self) -> None:
        """See `RegisterDevice`."""
        self.image.words[2].update(self.image.words[1])

    def write_coils(self, address: int, values: list[int]) -> None:
        """Coils, see `RegisterMap`."""
        self.image.write_coils(address, values)


class Cabinet(Relays):
    """Those relays in a battery cabinet: relay 1 switches its heater, relay 2 its fan."""

    def __init__(self, plant: PlantApi, unit: str, faults: DeviceFaults, heater_power: float, airflow: float) -> None:
        self.heater_power, self.airflow = heater_power, airflow
        super().__init__(plant, unit, faults)

    def write_coils(self, address: int, values: list[int]) -> None:
        """Coils, see `RegisterMap`; what they switch follows."""
        super().write_coils(address, values)
        heats, blows = self.image.words[1][0], self.image.words[1][1]
        self.plant.set_climate(self.unit, self.heater_power * heats, self.airflow if blows else 1.0)


#: layout -> class
LAYOUTS: dict[str, Callable[[PlantApi, str, DeviceFaults], RegisterDevice]] = {
    'eastron_sdm630': Sdm630, 'janitza_umg96rme': JanitzaUmg96, 'luxpower_lxp': LuxPower, 'abb_pqstori': PqStorI,
    'trumpf_ac3025': TruConvertAc, 'trumpf_dc1008': TruConvertDc, 'rd6006': Rd6006, 'generic_io_8': Relays,
}

__all__ = ['LAYOUTS', 'Cabinet', 'RegisterDevice']
