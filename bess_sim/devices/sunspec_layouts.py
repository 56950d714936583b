"""Simulated SunSpec devices whose models are not in the public definitions, or in several copies.

Registers by number, from the documents; nothing is shared with the drivers. Signs: A + = charging (the drafts
leave it open), W of 103 and the limit of 123 + = generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import IllegalValue
from bess_sim.devices.register_layouts import RegisterDevice, known, signed
from bess_sim.plant_api import PlantApi

BASE = 40000
SF_1, SF_2, SF_3 = -1, -2, -3
Points = Mapping[int, tuple[str, float]]  # offset from the model's ID -> kind, number


class SunSpecRegisters(RegisterDevice):
    """Models in a row from 40000; a subclass names them in `models` and fills them in `show`."""

    models: tuple[tuple[int, int], ...] = ()  # (id, L); model 1 and the end marker come by themselves
    writable: frozenset[tuple[int, int]] = frozenset()  # (place of the model in `models`, offset)
    name = ''

    def prepare(self) -> None:
        """Frame of the map. What is not filled reads 0xFFFF."""
        put = self.image.put
        put(3, BASE, 'u32', 0x53756E53)
        self._start: list[int] = []
        at = BASE + 2
        for place, (model, length) in enumerate(((1, 66), *self.models)):
            self.image.words[3].update(dict.fromkeys(range(at, at + 2 + length), 65535))
            put(3, at, 'u16', model)
            put(3, at + 1, 'u16', length)
            self._start.append(at)
            for where, offset in self.writable:
                if where == place - 1:
                    self.image.writable.add((3, at + offset))
            at += 2 + length
        put(3, at, 'u16', 0xFFFF)
        put(3, at + 1, 'u16', 0)
        for offset, text, size in ((2, 'bess', 16), (18, self.name, 16), (34, '', 8), (42, '1.0', 8),
                                   (50, self.unit, 16)):
            self.image.put_text(3, self._start[0] + offset, text, size)
        self._began = time.monotonic()

    def fill(self, place: int, points: Points) -> None:
        """Put numbers into the model at this place of `models`."""
        for offset, (kind, value) in points.items():
            self.image.put(3, self._start[place + 1] + offset, kind, known(value))

    def word(self, place: int, offset: int) -> int:
        """A register of a model."""
        return self.image.words[3][self._start[place + 1] + offset]

    def at(self, place: int, offset: int) -> int:
        """Its address."""
        return self._start[place + 1] + offset

    def beat(self) -> int:
        """Counts seconds."""
        return int(time.monotonic() - self._began) % 0x7FFF


class DraftBattery(SunSpecRegisters):
    """MESA drafts: 801 (L=22), 802 (L=20), 803 (L=16 + 16 per string). `events`: bits of 802 Evt1 to add."""

    models = ((801, 22), (802, 20), (803, 32))
    writable = frozenset({(0, 17), (0, 18), (1, 16), (1, 17)})
    name = 'draft battery'
    events = 0
    string_events = 0
    connection = 0
    request = 0  # BatReqPCSSt

    def prepare(self) -> None:
        """Registers that wait for orders."""
        super().prepare()
        self.fill(0, {17: ('u16', 0), 18: ('u16', 0)})
        self.fill(1, {16: ('u16', 0), 17: ('u16', 1)})

    def show(self) -> None:
        """See `RegisterDevice`."""
        p = self.plant.pack(self.unit)
        closed = p.charge_switch and p.discharge_switch
        flow = 4 if p.current > 0.05 else 3 if p.current < -0.05 else 6
        self.fill(0, {2: ('u16', 92), 3: ('u16', p.energy_full / 100 / (p.soh or 1.0)),
                      4: ('u16', p.max_charge_current * p.voltage / 10),
                      5: ('u16', p.max_discharge_current * p.voltage / 10), 11: ('u16', p.soc * 1000),
                      12: ('u16', flow), 13: ('u16', 1), 14: ('u32', 0), 16: ('u16', self.beat()),
                      19: ('i16', 2), 20: ('i16', 1), 21: ('i16', 0), 22: ('i16', SF_1), 23: ('u16', 0x8000)})
        self.fill(1, {2: ('u16', 4), 3: ('u16', 3 if closed else 1), 4: ('u32', p.cycles), 6: ('u16', p.soh * 1000),
                      7: ('u32', self.events | closed << 17), 9: ('u32', 0), 11: ('u16', p.voltage * 10),
                      12: ('u16', p.max_charge_current * 10), 13: ('u16', p.max_discharge_current * 10),
                      14: ('u16', self.request), 15: ('i16', 0), 18: ('i16', SF_1), 19: ('i16', SF_1),
                      20: ('i16', SF_1), 21: ('i16', 0)})
        cells, degrees = p.cells or (0.0,), p.temperatures or (0.0,)
        self.fill(2, {2: ('u16', closed), 3: ('u16', max(cells) * 1000), 5: ('u16', min(cells) * 1000),
                      7: ('i16', max(degrees) * 10), 9: ('i16', min(degrees) * 10), 11: ('i16', p.current * 10),
                      14: ('i16', SF_3), 15: ('i16', SF_1), 16: ('i16', SF_1), 17: ('i16', SF_1),
                      18: ('u16', 1), 19: ('u16', p.soc * 100), 20: ('u16', p.soh * 1000), 21: ('i16', p.current * 10),
                      28: ('u32', self.string_events | closed << 15 | 1 << 20), 30: ('u32', 0),
                      32: ('u16', self.connection), 33: ('u16', 0)})

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == self.at(1, 16):
            if value not in (1, 2):
                raise IllegalValue
            self.plant.set_switches(self.unit, value == 1, value == 1)
        elif address == self.at(0, 18) and value == 1:
            self.events = 0


class StringBattery(SunSpecRegisters):
    """Two strings (804) in parallel with one module of 8 cells each (805), no bank model."""

    models = ((804, 46), (805, 74), (804, 46), (805, 74))
    name = 'strings'
    events = 0
    events2 = 0
    vendor = 0

    def show(self) -> None:
        """See `RegisterDevice`."""
        p = self.plant.pack(self.unit)
        degrees = p.temperatures or (25.0,)
        for n in (0, 1):
            cells = p.cells[8 * n: 8 * n + 8] or (3.3,) * 8
            self.fill(2 * n, {
                2: ('u16', n), 3: ('u16', 0), 4: ('u32', 1 | (p.charge_switch and p.discharge_switch) << 1),
                6: ('u16', 0), 7: ('u16', 0), 8: ('u16', p.soc * 1000), 9: ('u16', 1000 - p.soc * 1000),
                10: ('u32', p.cycles), 12: ('u16', p.soh * 1000), 13: ('i16', p.current * 5),
                14: ('u16', p.voltage * 10), 15: ('u16', max(cells) * 1000), 17: ('u16', min(cells) * 1000),
                19: ('u16', sum(cells) * 125), 20: ('i16', max(degrees) * 10), 22: ('i16', min(degrees) * 10),
                24: ('i16', degrees[0] * 10), 28: ('u32', self.events if n else 0),
                30: ('u32', self.events2), 32: ('u32', self.vendor),
                34: ('u32', 0), 38: ('i16', SF_1), 39: ('i16', SF_1), 40: ('i16', SF_1), 41: ('i16', SF_1),
                42: ('i16', SF_1), 43: ('i16', SF_3), 44: ('i16', SF_1)})
            self.fill(2 * n + 1, {
                2: ('u16', n), 3: ('u16', 0), 4: ('u16', 8), 5: ('u16', p.soc * 1000), 38: ('i16', SF_1),
                39: ('i16', SF_1), 40: ('i16', SF_1), 41: ('i16', SF_1), 42: ('i16', SF_3), 43: ('i16', SF_1)})
            for k, volt in enumerate(cells):
                balancing = 8 * n + k < len(p.balancing) and p.balancing[8 * n + k]
                self.fill(2 * n + 1, {44 + 4 * k: ('u16', volt * 1000), 45 + 4 * k: ('i16', degrees[0] * 10),
                                      46 + 4 * k: ('u32', balancing)})


class FlowBattery(SunSpecRegisters):
    """A flow battery: 802 and 807 with two modules. `events`, `events2`: bits of 807 Evt1 and Evt2."""

    models = ((802, 62), (807, 82))
    writable = frozenset({(0, 19), (0, 20), (0, 50), (0, 51)})
    name = 'flow battery'
    events = 0
    events2 = 0
    module_events = 0
    module_events2 = 0
    connection = 0

    def prepare(self) -> None:
        """Registers that wait for orders."""
        super().prepare()
        self.fill(0, {19: ('u16', 0), 20: ('u16', 0), 50: ('u16', 1), 51: ('u16', 1)})

    def show(self) -> None:
        """See `RegisterDevice`."""
        p = self.plant.pack(self.unit)
        closed = p.charge_switch and p.discharge_switch
        self.fill(0, {2: ('u16', p.charge_full * 10), 3: ('u16', p.energy_full / 100), 4: ('u16', 500), 5: ('u16', 500),
                      11: ('u16', p.soc * 1000), 16: ('u16', 6), 17: ('u16', 0), 18: ('u16', self.beat()),
                      21: ('u16', 10), 22: ('u16', 3 if closed else 1), 26: ('u32', 0), 28: ('u32', 0),
                      30: ('u32', 0), 32: ('u32', 0), 34: ('u16', p.voltage * 10), 44: ('i16', p.current * 10),
                      45: ('u16', p.max_charge_current * 10), 46: ('u16', p.max_discharge_current * 10),
                      47: ('i16', p.current * p.voltage), 48: ('u16', 0), 49: ('i16', 0), 52: ('i16', SF_1),
                      53: ('i16', 2), 54: ('i16', 1), 55: ('i16', 0), 56: ('i16', SF_1), 57: ('i16', SF_1),
                      58: ('i16', SF_1), 59: ('i16', SF_1), 60: ('i16', SF_3), 61: ('i16', SF_1), 62: ('i16', SF_1),
                      63: ('i16', 0)})
        degrees = p.temperatures or (25.0,)
        self.fill(1, {2: ('u16', 0), 3: ('u16', 2), 4: ('u16', 2), 10: ('u16', 1450), 13: ('u16', 1380),
                      17: ('i16', max(degrees) * 10), 19: ('i16', min(degrees) * 10), 21: ('i16', degrees[0] * 10),
                      22: ('u32', self.events), 24: ('u32', self.events2), 26: ('u32', 0), 28: ('u32', 0),
                      30: ('i16', SF_1), 31: ('i16', SF_3), 32: ('i16', SF_1), 33: ('i16', SF_1), 34: ('i16', SF_1)})
        for n in (0, 1):
            at = 36 + 24 * n
            self.fill(1, {at: ('u16', n), at + 2: ('u32', 3), at + 4: ('u16', p.soc * 1000),
                          at + 16: ('u32', self.module_events if n else 0),
                          at + 18: ('u32', self.module_events2 if n else 0),
                          at + 20: ('u16', self.connection if n else 0)})

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == self.at(0, 50):
            self.plant.set_switches(self.unit, value == 1, value == 1)


class MesaPcs(SunSpecRegisters):
    """An inverter with 103, 120, 121, 123 and MESA-PCS 64800; 123 WMaxLimPct is signed, - = charging.

    Behind them the parameters of REFU: 64040 names one (number and index in `parameters`), 64041 shows it in each type
    that can hold it.
    """

    models: tuple[tuple[int, int], ...] = ((103, 50), (120, 26), (121, 30), (123, 24), (64800, 14), (64040, 3),
                                           (64041, 10))
    writable = frozenset({(3, n) for n in range(2, 23)} | {(4, 4), (4, 6), (4, 7), (4, 8), (2, 12)}
                         | {(5, n) for n in (2, 3, 4)})
    name = 'MESA-PCS'
    local = False
    events = 0
    parameters: Mapping[tuple[int, int], float] = {(0x10001, 2): -40.5, (7, 0): 12.0}

    def prepare(self) -> None:
        """Ratings; stopped."""
        super().prepare()
        s = self.plant.inverter(self.unit)
        self._rating = s.max_discharge_power
        self._until = float('inf')
        self.running = False
        self.fill(1, {2: ('u16', 82), 3: ('u16', self._rating), 4: ('i16', 0), 5: ('u16', s.max_apparent_power),
                      6: ('i16', 0)})
        self.fill(2, {2: ('u16', self._rating), 12: ('u16', 100), 22: ('i16', 0), 28: ('i16', 0)})
        self.fill(3, {4: ('u16', 1), 5: ('i16', 0), 6: ('u16', 0), 7: ('u16', 0), 8: ('u16', 0), 9: ('u16', 0),
                      10: ('i16', 100), 14: ('u16', 0), 15: ('i16', 0), 19: ('u16', 0), 21: ('u16', 1), 22: ('u16', 0),
                      23: ('i16', SF_1), 24: ('i16', SF_2), 25: ('i16', SF_1)})
        self.fill(4, {4: ('u16', 0), 6: ('u16', 0), 7: ('u16', 0), 8: ('u16', 0), 11: ('i16', SF_2), 12: ('i16', 0),
                      13: ('i16', 0), 14: ('u16', 0x8000), 15: ('u16', 0x8000)})

    def show(self) -> None:
        """See `RegisterDevice`. The reversion time of 123 ends here."""
        if time.monotonic() >= self._until:
            self._until = float('inf')
            self.fill(3, {5: ('i16', 0), 9: ('u16', 0)})
            self._apply()
        self.measure()
        self.fill(4, {2: ('u16', self.local), 3: ('u16', self.beat())})
        wanted = (self.word(5, 2) << 16 | self.word(5, 3), self.word(5, 4))
        value = self.parameters.get(wanted)
        empty = {2: ('u32', 0xFFFFFFFF), 4: ('u32', 0x80000000), 6: ('u32', 0x7FC00000), 8: ('u16', 0xFFFF),
                 9: ('u16', 0x8000), 10: ('u16', 0xFFFF), 11: ('u16', 0x8000)}
        self.fill(6, empty)
        if value is not None:
            self.fill(6, {4: ('i32', value), 6: ('f32', value), 9: ('i16', value), 11: ('i16', value)})
            if value >= 0:
                self.fill(6, {2: ('u32', value), 8: ('u16', value), 10: ('u16', value)})

    def measure(self) -> None:
        """Model 103."""
        s = self.plant.inverter(self.unit)
        self.fill(0, {2: ('u16', 0), 6: ('i16', SF_1), 10: ('u16', s.voltage[0] * 10), 13: ('i16', SF_1),
                      14: ('i16', -s.active_power), 15: ('i16', 0), 16: ('u16', s.frequency * 100), 17: ('i16', SF_2),
                      18: ('i16', abs(s.active_power)), 19: ('i16', 0), 20: ('i16', -s.reactive_power), 21: ('i16', 0),
                      22: ('i16', 0x7000), 23: ('i16', 0), 24: ('u32', s.energy_export),
                      26: ('i16', 0), 28: ('i16', SF_1),
                      29: ('u16', s.dc_voltage * 10), 30: ('i16', SF_1), 31: ('i16', -s.dc_power), 32: ('i16', 0),
                      33: ('i16', s.temperature * 10), 37: ('i16', SF_1), 38: ('u16', 9 if self.running else 1),
                      40: ('u32', self.events)})

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == self.at(4, 6):
            if self.local or value > 4:
                raise IllegalValue
            self.running = {1: True, 2: False, 3: False, 4: True}.get(value, self.running)
        if address in (self.at(3, 5), self.at(3, 7), self.at(3, 9)):
            seconds = self.word(3, 7)
            self._until = time.monotonic() + seconds if seconds and self.word(3, 9) == 1 else float('inf')
        self._apply()

    def _apply(self) -> None:
        share = signed(self.word(3, 5)) / 1000 if self.word(3, 9) == 1 and self.running else 0.0
        q = signed(self.word(3, 15)) / 1000 if self.word(3, 22) == 1 and self.running else 0.0
        self.order(-share * self._rating, -q * self._rating)


class KacoGridsave(MesaPcs):
    """An inverter with 103, 120, 121 and 64201 to 64204; WSetPct - = charging; its watchdog takes the orders away.

    It connects only after EnLimit of 64202 was written if `limits_needed`; `vendor_state` and `precharge_error` are
    StVnd and ErrPcu of 64201.
    """

    models = ((103, 50), (120, 26), (121, 30), (64201, 52), (64202, 14), (64203, 26), (64204, 8))
    writable = frozenset({(3, n) for n in (4, 6, 8, 9, 10)} | {(4, n) for n in (8, 9, 10, 11, 12, 13, 15)}
                         | {(5, n) for n in (4, 8, 9, 10, 11)} | {(6, n) for n in (4, 5, 6, 7)})
    name = 'blueplanet gridsave'
    state = 8  # STANDBY
    limits_needed = False
    vendor_state = 1  # waits to feed in
    precharge_error = 0

    def prepare(self) -> None:
        """Ratings; in standby."""
        SunSpecRegisters.prepare(self)
        s = self.plant.inverter(self.unit)
        self._rating, self._apparent = s.max_discharge_power, s.max_apparent_power
        self._until = float('inf')
        self.running = False
        self.fill(1, {2: ('u16', 82), 3: ('u16', self._rating), 4: ('i16', 0), 5: ('u16', self._apparent),
                      6: ('i16', 0)})
        self.fill(2, {2: ('u16', self._rating), 5: ('u16', self._apparent), 22: ('i16', 0), 25: ('i16', 0)})
        self.fill(3, {2: ('u16', 1), 3: ('u16', 0), 4: ('u16', 8), 6: ('u16', 0), 8: ('u16', 0), 9: ('i16', 0),
                      10: ('i16', 0), 46: ('i16', SF_2), 47: ('i16', SF_2)})
        self.fill(4, {2: ('u16', 1), 3: ('u16', 0), 6: ('i16', SF_1), 7: ('i16', SF_2),
                      **dict.fromkeys((8, 9, 10, 11, 12, 13, 15), ('u16', 0))})
        self.fill(5, {2: ('u16', 1), 3: ('u16', 0), 4: ('u16', 0), 5: ('i16', SF_1), 6: ('i16', 0), 7: ('i16', SF_1),
                      8: ('u16', 3), 9: ('u16', 505), 10: ('u16', 98), 11: ('i16', -15)})
        self.fill(6, {2: ('u16', 1), 3: ('u16', 0), 4: ('i16', 0), 5: ('i16', 0), 6: ('u16', 0), 7: ('u16', 0),
                      8: ('i16', SF_2), 9: ('i16', SF_1)})

    def show(self) -> None:
        """See `RegisterDevice`. The watchdog ends here."""
        if time.monotonic() >= self._until:
            self._until = float('inf')
            self.fill(3, {9: ('i16', 0), 10: ('i16', 0)})
            self._apply()
        self.measure()
        unset = self.limits_needed and self.word(4, 15) != 1
        self.fill(3, {5: ('u16', self.state), 16: ('u16', self.vendor_state),
                      19: ('u16', 11 if unset else self.precharge_error)})

    def obey(self, address: int, value: int) -> None:
        """See `RegisterDevice`."""
        if address == self.at(3, 4):
            if value not in (1, 8, 10, 11):
                raise IllegalValue
            if value == 11 and self.limits_needed and self.word(4, 15) != 1:
                value = 8
            self.state = value if self.state != 12 or value == 1 else self.state
            self.running = self.state == 11
        seconds = self.word(3, 8)
        self._until = time.monotonic() + seconds if seconds else float('inf')
        self._apply()

    def _apply(self) -> None:
        share = signed(self.word(3, 9)) / 10_000 if self.running else 0.0
        q = signed(self.word(3, 10)) / 10_000 if self.running and self.word(3, 6) == 1 else 0.0
        self.order(-share * self._rating, -q * self._apparent)


#: layout -> class
SUNSPEC_LAYOUTS: dict[str, Callable[[PlantApi, str, DeviceFaults], RegisterDevice]] = {
    'sunspec_draft': DraftBattery, 'sunspec_strings': StringBattery, 'sunspec_flow': FlowBattery,
    'mesa_pcs': MesaPcs, 'kaco_gridsave': KacoGridsave,
}
