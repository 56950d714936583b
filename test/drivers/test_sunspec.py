"""SunSpec drivers against register lists written out by hand, and over real Modbus TCP."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Contactor, ConverterState, Mode, Quality, Severity
from bess_drivers.device import (
    BadFrame,
    BadValue,
    DeviceError,
    NoAnswer,
    ReadOnlyError,
    Refused,
)
from bess_drivers.sunspec.battery import SunSpecBattery, SunSpecBatteryParams
from bess_drivers.sunspec.codec import decode, encode
from bess_drivers.sunspec.definitions import model_definition
from bess_drivers.sunspec.device_map import DeviceMap, plan_reads
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecBatterySimulator, SunSpecInverterSimulator
from bess_sim.plant_api import StaticPlant

NI = 0x8000  # "not implemented" of int16 and sunssf
NU = 0xFFFF  # of uint16 and enum16

# Model 802 (L=62) by the offsets of the SunSpec workbook.
BATTERY = [
    802, 62,
    280, 143, 500, 600, NU,  # @2 AHRtg Ah, WHRtg 100 Wh, WChaRteMax, WDisChaRteMax 10 W, DisChaRte
    NU, NU, 950, 50, 555,  # @7 SoCMax, SoCMin, SocRsvMax, SoCRsvMin, SoC 55.5 %
    NU, 98, 0, 321,  # @12 DoD, SoH 98 %, NCyc
    4, 0, 17, 3, 0, 4, 3, NU,  # @16 ChaSt, LocRemCtl, Hb, CtrlHb, AlmRst, Typ, State, StateVnd
    0xFFFF, 0xFFFF,  # @24 WarrDt
    0x0000, 0x0006, 0, 0, 0, 0, 0, 0,  # @26 Evt1: over-temperature alarm and warning
    5123, 5840, 4480,  # @34 V 512.3 V, VMax, VMin
    3344, NU, NU, 3321, NU, NU, 3333,  # @37 CellVMax ... CellVMin ... CellVAvg
    65536 - 123, 250, 300,  # @44 A -12.3, AChaMax 25.0 A, ADisChaMax 30.0 A
    65536 - 630, 0, NI, 1, 3,  # @47 W -6300 W, ReqInvState, ReqW, SetOp, SetInvState
    0, 2, 1, NI, 65535, NI, 0, 65535, 65533, 65535, 65535, 1,  # @52 scale factors
]  # fmt: skip


def der_measure(w: int = 1500, var: int = 65536 - 300) -> list[int]:
    """Model 701 (L=153): single-phase, running, exporting 1.5 kW by default."""
    registers = [NI] * 155
    registers[0:6] = [701, 153, 0, 1, 3, 1]  # @2 ACType, St, InvSt running, ConnSt
    registers[6:10] = [0, 0x0080, 0, 1]  # @6 Alrm OVER_TEMP, @8 DERMode grid following
    registers[10:17] = [w, 1530, var, 980, 65, 2300, 2301]  # W VA Var PF A LLV LNV
    registers[17:19] = [0, 49987]  # Hz
    registers[19:23] = [0, 0, 1, 0]  # TotWhInj 65536 Wh
    registers[23:27] = [0, 0, 0, 77]  # TotWhAbs
    registers[27:35] = [0xFFFF] * 8
    registers[36:38] = [412, 455]  # TmpCab, TmpSnk
    registers[41:48] = [w, 1530, var, 980, 65, NU, 2301]  # L1: W VA Var PF A VL1L2 VL1
    for phase in (64, 87):
        registers[phase + 5 : phase + 7] = [NU, NU]
    registers[113:123] = [65535, 65535, 65533, 0, 65533, 0, 0, 0, 0, 65535]
    return registers  # SFs @113: A -1 V -1 Hz -3 W 0 PF -3 VA 0 Var 0 TotWh 0 TotVarh 0 Tmp -1


CAPACITY = [702, 50, *[NU] * 24, *[NU] * 19, 1, 65535, 0, 0, 0, 0, 0]
CAPACITY[26], CAPACITY[31], CAPACITY[34], CAPACITY[35] = 500, 5500, 350, 450  # W_SF is 1
CAPACITY[10] = 300  # WChaRteMaxRtg below the setting


def der_control(**at: int) -> list[int]:
    """Model 704 (L=65): WSet in tens of watts; other points by offset, e.g. _22=1."""
    registers = [NU] * 67
    registers[0:2] = [704, 65]
    registers[22:28] = [0, 0, 0, 0, 0, 0]  # WSetEna, WSetMod %, WSet, WSetRvrt
    registers[30:35] = [0, 0, 0, 0, 0]  # WSetEnaRvrt, WSetRvrtTms, WSetRvrtRem
    registers[53:59] = [NI, NI, 1, NI, NI, NI]  # WSet_SF = 1
    for key, value in at.items():
        registers[int(key[1:])] = value
    return registers


# Model 103 (L=50)
LEGACY = [
    103, 50, 66, 22, 22, 22, 65535, NU, NU, NU, 2300, 2301, 2302, 65535,  # A, PPV, PhV, V_SF
    65536 - 150, 1, 5001, 65534, 152, 1, 20, 1, 99, 65534, 0, 4242, 0,  # W, Hz, VA, VAr, PF, WH
    310, 65535, 512, 0, 65536 - 155, 1, 40, NI, NI, NI, 0, 5, NU,  # DCA, DCV, DCW, Tmp, St
    0, 0x0020, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  # Evt1 OVER... bit 5 CABINET_OPEN
]  # fmt: skip
NAMEPLATE = [
    120,
    26,
    82,
    500,
    1,
    500,
    1,
    *[0] * 4,
    1,
    0,
    0,
    *[0] * 4,
    0,
    NU,
    NI,
    NU,
    NI,
    300,
    1,
    400,
    1,
    NI,
]
SETTINGS = [121, 30, 450, 230, 0, NU, NU, 480, *[NI] * 4, NU, *[NI] * 4, NU, NU, NU, NU, NU,
            1, 0, 0, NI, 1, NI, NI, NI, NI, NI]  # fmt: skip
IMMEDIATE = [123, 24, NU, NU, 1, 100, 0, 0, NU, 0, *[0] * 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 65535]
STORAGE = [124, 24, 300, 0, 0, 0, NU, NU, 500, NU, 5120, 6, 0, 0, 0, 0, NU, 1,
           1, 0, NI, NI, 65535, NI, 65535, 65534]  # fmt: skip


class FakeLink:
    """Registers at addresses; what is not there is refused. Records reads and writes."""

    def __init__(self, *models: Sequence[int], base: int = 40000, end: bool = True) -> None:
        registers = [0x5375, 0x6E53, *(r for m in models for r in m), *([0xFFFF, 0] if end else [])]
        self.registers = dict(enumerate(registers, base))
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, list[int]]] = []
        self.refuse_writes: set[int] = set()
        self.on_write: Callable[[int, Sequence[int]], None] = lambda a, v: None

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        assert 1 <= count <= 125
        self.reads.append((address, count))
        try:
            return [self.registers[a] for a in range(address, address + count)]
        except KeyError:
            raise Refused('exception 2') from None

    def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        if address in self.refuse_writes:
            raise Refused('exception 3')
        self.writes.append((address, list(values)))
        self.registers.update(enumerate(values, address))
        self.on_write(address, values)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def battery(link: FakeLink, read_only: bool = False, **params: object) -> SunSpecBattery:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    device = SunSpecBattery(
        SunSpecBatteryParams(address='tcp://x', **params),  # type: ignore[arg-type]
        read_only,
        link=link,
        clock=clock,
        sleep=sleep,
    )
    device.clock = clock  # type: ignore[attr-defined]
    return device


def inverter(link: FakeLink, read_only: bool = False, **params: object) -> SunSpecInverter:
    clock = Clock()
    device = SunSpecInverter(
        SunSpecInverterParams(address='tcp://x', **params),  # type: ignore[arg-type]
        read_only,
        link=link,
        clock=clock,
    )
    device.clock = clock  # type: ignore[attr-defined]
    return device


# --- codec and walker -----------------------------------------------------------------------------


def test_sizes_of_the_written_out_models() -> None:
    for registers in (
        BATTERY,
        der_measure(),
        CAPACITY,
        der_control(),
        LEGACY,
        NAMEPLATE,
        SETTINGS,
        IMMEDIATE,
        STORAGE,
    ):
        definition = model_definition(registers[0])
        assert definition is not None
        assert len(registers) == registers[1] + 2 == definition.size, registers[0]


def test_not_implemented_and_missing_scale_factors_are_never_numbers() -> None:
    definition = model_definition(802)
    assert definition is not None
    values = decode(definition, BATTERY, 62)
    assert values.number('V') == 512.3
    assert isnan(values.number('DoD')) and isnan(values.number('SoCMax'))
    assert values.integer('StateVnd') is None
    for broken in (NI, 11, 65536 - 11):
        registers = [*BATTERY]
        registers[59] = broken  # V_SF
        values = decode(definition, registers, 62)
        assert isnan(values.number('V')) and isnan(values.number('VMax'))
        assert values.number('A') == -12.3
    # scale factors that were not read
    assert isnan(decode(definition, BATTERY[:50]).number('V'))


def test_encode_rounds_towards_zero_and_refuses_what_does_not_fit() -> None:
    definition = model_definition(704)
    assert definition is not None
    wset, pct = definition.by_name['WSet'], definition.by_name['WSetPct']
    assert encode(wset, -1999.0, {'WSet_SF': 1}) == [0xFFFF, 65536 - 199]
    assert encode(pct, 0.29, {'WSetPct_SF': -2}) == [29]
    for value, sf in (
        (1.0, {}),
        (nan, {'WSet_SF': 0}),
        (float('inf'), {'WSet_SF': 0}),
        (3e9, {'WSet_SF': 0}),
        (-(2.0**31), {'WSet_SF': 0}),
    ):
        with pytest.raises(BadValue):
            encode(wset, value, sf)


def test_walker_finds_every_base_and_skips_what_it_does_not_know() -> None:
    vendor = [64123, 3, 1, 2, 3]
    for base in (40000, 0, 50000):
        device = DeviceMap(FakeLink([1, 66, *[0] * 66], vendor, BATTERY, base=base), 1)
        device.scan()
        assert device.base == base and [b.id for b in device.blocks] == [1, 64123, 802]
        assert device.has(802) and not device.has(64123) and device.notes == ()


def test_walker_tolerates_missing_end_and_stops_at_nonsense() -> None:
    device = DeviceMap(FakeLink(BATTERY, end=False), 1)
    device.scan()
    assert device.has(802) and 'no end marker' in device.notes[0]
    zeros = FakeLink(BATTERY, [0] * 200)
    device = DeviceMap(zeros, 1)
    device.scan()
    assert len(device.blocks) == 1 and len(zeros.reads) < 6
    endless = FakeLink(*[[64999, 0]] * 5000)
    device = DeviceMap(endless, 1)
    device.scan()
    assert len(endless.reads) < 120 and 'ignored' in device.notes[-1]
    with pytest.raises(BadValue, match='no SunSpec marker'):
        DeviceMap(FakeLink(BATTERY, base=1000), 1).scan()


def test_silence_during_the_walk_is_an_error_not_a_shorter_map() -> None:
    class Silent(FakeLink):
        def read_holding(self, unit: int, address: int, count: int) -> list[int]:
            if address > 40050:
                raise NoAnswer('silence')
            return super().read_holding(unit, address, count)

    device = DeviceMap(Silent(BATTERY, CAPACITY), 1)
    with pytest.raises(NoAnswer):
        device.scan()
    assert not device.known


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), min_size=1, max_size=8),
       st.integers(8, 125))  # fmt: skip
@settings(max_examples=80)
def test_planned_reads_cover_everything_within_the_limit(
    spans: list[tuple[int, int]], limit: int
) -> None:
    # models never overlap
    placed, at = [], 0
    for gap, size in spans:
        placed.append((at + gap, size))
        at += gap + size
    plan = plan_reads(placed, limit)
    assert all(1 <= count <= limit for _, count in plan)
    covered = {a for address, count in plan for a in range(address, address + count)}
    assert all(a in covered for address, size in placed for a in range(address, address + size))


def test_random_registers_give_device_errors_only() -> None:
    rng = random.Random(802)
    ids = (1, 101, 103, 113, 120, 121, 123, 124, 701, 702, 704, 705, 713, 714, 715, 802, 803)
    edges = (0, 1, 0x7FFF, NI, NU, 0x7FC0, 0x7F80)
    for n in range(10_000):
        definition = model_definition(ids[n % len(ids)])
        assert definition is not None
        count = rng.randrange(0, definition.size + 40)
        registers = [
            rng.choice(edges) if rng.random() < 0.3 else rng.randrange(0x10000)
            for _ in range(count)
        ]
        try:
            values = decode(definition, registers)
        except DeviceError:
            continue
        assert len(values.groups) * max(1, definition.repeat_size) <= count
        for name, value in values.values.items():
            if isinstance(value, float) and not isnan(value):
                assert abs(value) < 1e50, name
    battery_definition = model_definition(802)
    assert battery_definition is not None
    with pytest.raises(BadFrame):
        decode(battery_definition, [70000, -1])


def test_random_devices_give_device_errors_only() -> None:
    rng = random.Random(704)
    ids = (1, 103, 120, 121, 123, 124, 701, 702, 704, 713, 714, 715, 802, 803)
    for _ in range(300):
        models = []
        for model in rng.sample(ids, rng.randrange(1, 8)):
            definition = model_definition(model)
            assert definition is not None
            size = definition.size - 2 + rng.choice((0, 0, 0, definition.repeat_size, -3, 7))
            models.append(
                [
                    model,
                    size,
                    *(rng.choice((0, 1, NI, NU, rng.randrange(65536))) for _ in range(size)),
                ]
            )
        link = FakeLink(*models, end=rng.random() < 0.5)
        link.refuse_writes = set(range(40000, 41000)) if rng.random() < 0.3 else set()
        for device, calls in (
            (battery(link), ('read',)),
            (inverter(link), ('read', 'write', 'stop')),
        ):
            for call in ('identify', *calls):
                try:
                    if call == 'identify':
                        device.identify()
                    elif call == 'read':
                        device.read(1.0)
                    elif isinstance(device, SunSpecInverter):
                        device.write_power(100.0, 10.0, 3.0) if call == 'write' else device.stop()
                except DeviceError:
                    continue


# --- battery --------------------------------------------------------------------------------------


def test_battery_from_literal_registers() -> None:
    link = FakeLink(BATTERY)
    device = battery(link, current_sign='discharge_positive', power_sign='discharge_positive')
    device.identify()
    link.reads.clear()
    r = device.read(42.0)
    assert link.reads == [(40002, 64)]
    assert (r.time, r.quality, r.mode, r.contactor) == (
        42.0,
        Quality.OK,
        Mode.CHARGING,
        Contactor.CLOSED,
    )
    assert (r.voltage, r.current, r.power) == (512.3, 12.3, 6300.0)
    assert r.soc == pytest.approx(0.555) and r.soh == pytest.approx(0.98)
    assert r.energy_full == pytest.approx(14300 * 0.98)
    assert r.energy == pytest.approx(14300 * 0.98 * 0.555)
    assert r.charge == pytest.approx(280 * 0.98 * 0.555)
    # The over-temperature alarm of this register list stops both directions; see below for the plain limits.
    assert (r.max_charge_current, r.max_discharge_current) == (0.0, 0.0)
    assert (r.max_charge_power, r.max_discharge_power) == (0.0, 0.0)
    assert r.limit_reasons == ['bms: over temp alarm']
    assert (r.cell_voltage_min, r.cell_voltage_max) == (3.321, 3.344)
    assert [(a.id, a.severity) for a in r.alarms] == [
        ('sunspec.over_temp_alarm', Severity.ERROR),
        ('sunspec.over_temp_warning', Severity.WARNING),
    ]


def test_battery_signs_are_settings_of_their_own() -> None:
    assert battery(FakeLink(BATTERY)).read(0.0).current == -12.3
    r = battery(FakeLink(BATTERY), power_sign='discharge_positive').read(0.0)
    assert (r.current, r.power) == (-12.3, 6300.0)


@pytest.mark.parametrize(
    ('at', 'value', 'text'),
    [
        (34, NU, '802 V'),
        (44, NI, '802 A'),
        (11, NU, '802 SoC'),
        (56, NI, '802 SoC'),
        (59, NI, '802 V'),
    ],
)
def test_battery_without_a_needed_value_gives_no_reading(at: int, value: int, text: str) -> None:
    registers = [*BATTERY]
    registers[at] = value
    with pytest.raises(BadValue, match=text):
        battery(FakeLink(registers)).read(0.0)


def test_battery_derives_power_and_obeys_a_stop_request() -> None:
    registers = [*BATTERY]
    registers[63] = NI  # W_SF: W unusable
    registers[48] = 2  # ReqInvState stop
    r = battery(FakeLink(registers)).read(0.0)
    assert r.power == pytest.approx(512.3 * -12.3)
    assert (r.max_charge_current, r.max_discharge_current) == (0.0, 0.0)
    assert (r.max_charge_power, r.max_discharge_power) == (0.0, 0.0)
    assert 'bms: asks the inverter to stop' in r.limit_reasons


@pytest.mark.parametrize(('bit', 'charge', 'discharge'), [
    (None, 25.0, 30.0),
    (1, 0.0, 0.0),  # over temperature, alarm
    (2, 25.0, 30.0),  # over temperature, warning: must not limit
    (9, 0.0, 30.0),  # over voltage, alarm
    (11, 25.0, 0.0),  # under voltage, alarm
])
def test_alarms_stop_the_direction_that_makes_them_worse(
    bit: int | None, charge: float, discharge: float
) -> None:
    registers = [*BATTERY]
    events = 0 if bit is None else 1 << bit
    registers[26:28] = [events >> 16, events & 0xFFFF]
    r = battery(FakeLink(registers)).read(0.0)
    assert (r.max_charge_current, r.max_discharge_current) == (charge, discharge)


def test_wrong_length_of_802_is_refused_in_words() -> None:
    with pytest.raises(BadValue, match='L=60 instead of 62'):
        battery(FakeLink([802, 60, *BATTERY[2:62]])).identify()
    draft = FakeLink([802, 20, *BATTERY[2:22]])
    battery(draft).identify()
    with pytest.raises(BadValue, match='draft layout of 802 has no SoC: no model 801'):
        battery(draft).read(0.0)


def test_bank_model_gives_temperatures_and_one_request() -> None:
    bank = [803, 58, 1, 1, 315, 1, 1, 287, 1, 1, *[NI] * 12, 65533, 65535, 65535, NI, 65535, NI]
    string = [
        1,
        0,
        3,
        6,
        555,
        NU,
        0,
        *[3300, NU] * 2,
        NU,
        *[300, NU] * 2,
        300,
        0,
        *[0] * 10,
        1,
        1,
        0,
        0,
    ]
    string += [0] * (32 - len(string))
    link = FakeLink(BATTERY, [*bank, *string])
    device = battery(link)
    device.identify()
    link.reads.clear()
    r = device.read(0.0)
    assert link.reads == [(40002, 124)]
    assert (r.temperature, r.temperature_min) == (31.5, 28.7)
    assert (
        r.alarms[-1].id == 'sunspec.string_0_connection'
        and 'contactor failure' in r.alarms[-1].text
    )


def test_storage_capacity_model_alone() -> None:
    r = battery(FakeLink([713, 7, 143, 80, 600, 950, 1, 2, 65535])).read(0.0)
    assert [r.soc, r.soh] == pytest.approx([0.6, 0.95])
    assert [r.energy_full, r.energy] == pytest.approx([13585, 8000])
    assert isnan(r.voltage) and r.alarms[0].id == 'sunspec.storage_warning'


def test_heartbeat_counts_once_a_second_and_never_when_reading_only() -> None:
    link = FakeLink(BATTERY)
    device = battery(link, heartbeat=True)
    for _ in range(30):  # 3 s in steps of 0.1 s
        device.read(0.0)
        device.clock.now += 0.1  # type: ignore[attr-defined]
    assert link.writes == [(40021, [1]), (40021, [2]), (40021, [3])]
    link = FakeLink(BATTERY)
    battery(link, read_only=True, heartbeat=True).read(0.0)
    assert link.writes == []
    link.refuse_writes = {40021}
    assert battery(link, heartbeat=True).read(0.0).alarms[-1].id == 'sunspec.heartbeat_refused'


def test_a_heartbeat_that_stops_makes_the_reading_stale() -> None:
    link = FakeLink(BATTERY)
    device = battery(link)
    assert device.read(0.0).quality is Quality.OK
    assert device.read(100.0).quality is Quality.OK  # has never counted: not a heartbeat
    link.registers[40020] += 1
    assert device.read(101.0).quality is Quality.OK
    assert device.read(106.0).quality is Quality.OK
    r = device.read(106.1)
    assert r.quality is Quality.STALE and r.alarms[-1].id == 'sunspec.heartbeat_lost'


def test_contactor_is_confirmed_by_state() -> None:
    registers = [*BATTERY]
    registers[22] = 1
    link = FakeLink(registers)

    def obey(address: int, values: Sequence[int]) -> None:
        link.registers[40024] = {1: 3, 2: 1}[values[0]]

    link.on_write = obey
    device = battery(link)
    device.set_contactor(True, True)
    assert link.writes == [(40052, [1])]
    device.set_contactor(True, True)  # is connected already
    assert len(link.writes) == 1
    with pytest.raises(BadValue, match='disconnect at -12.3 A'):
        device.set_contactor(False, False)
    link.registers[40046] = 65536 - 4  # -0.4 A
    device.set_contactor(False, False)
    assert link.writes[1:] == [(40052, [2])]
    with pytest.raises(BadValue, match='both'):
        device.set_contactor(True, False)


def test_contactor_failures() -> None:
    registers = [*BATTERY]
    registers[22] = 1
    link = FakeLink(registers)
    with pytest.raises(NoAnswer, match=r'did not connect within 2 s \(State: disconnected\)'):
        battery(link, contactor_timeout_s=2.0).set_contactor(True, True)
    link.registers[40019] = 1
    with pytest.raises(Refused, match='local'):
        battery(link).set_contactor(True, True)
    with pytest.raises(ReadOnlyError):
        battery(link, read_only=True).set_contactor(True, True)


# --- inverter, DER models -------------------------------------------------------------------------


def test_der_inverter_from_literal_registers() -> None:
    link = FakeLink(
        der_measure(), CAPACITY, der_control(_22=1, _23=1, _24=NU, _25=65536 - 120, _34=4)
    )
    r = inverter(link).read(7.0)
    assert (r.time, r.quality, r.state, r.grid_forming) == (
        7.0,
        Quality.OK,
        ConverterState.RUNNING,
        False,
    )
    assert (r.active_power, r.reactive_power, r.apparent_power) == (-1500.0, 300.0, 1530.0)
    assert r.voltage[0] == 230.1 and isnan(r.voltage[1]) and r.current[0] == 6.5
    assert (r.frequency, r.temperature) == (49.987, 45.5)
    assert (r.energy_export, r.energy_import) == (65536.0, 77.0)
    assert (r.max_charge_power, r.max_discharge_power, r.max_apparent_power) == (
        3000.0,
        4500.0,
        5500.0,
    )
    assert (r.setpoint, r.lease_remaining) == (1200.0, 4.0)
    assert [a.id for a in r.alarms] == ['sunspec.over_temp']


def test_der_sign_setting() -> None:
    r = inverter(
        FakeLink(der_measure()), power_sign='charge_positive', reactive_sign='absorption_positive'
    ).read(0.0)
    assert (r.active_power, r.reactive_power) == (1500.0, -300.0)
    with pytest.raises(BadValue, match='701 W'):
        inverter(FakeLink(der_measure(w=NI))).read(0.0)


def test_orders_at_the_literal_offsets_of_704() -> None:
    start = 40002 + 155
    link = FakeLink(der_measure(), der_control())
    device = inverter(link)
    device.write_power(2500.0, nan, 4.2)
    # mode W and setpoint (10 W, + = generation), reversion to an enabled zero, then the enable
    assert link.writes == [
        (start + 23, [1, 0xFFFF, 65536 - 250]),
        (start + 30, [1, 0, 5]),
        (start + 22, [1]),
    ]
    link.writes.clear()
    device.write_power(-1230.0, nan, 4.2)
    assert link.writes == [(start + 24, [0, 123])]
    link.writes.clear()
    device.clock.now += 2.0  # type: ignore[attr-defined]  # over a third of 5 s
    device.write_power(0.0, nan, 4.2)
    assert link.writes == [(start + 24, [0, 0]), (start + 31, [0, 5]), (start + 22, [1])]
    link.writes.clear()
    device.stop()
    assert link.writes == [(start + 24, [0, 0]), (start + 22, [0])]


def test_the_device_timer_is_never_below_two_thirds_of_the_lease_while_orders_come() -> None:
    link = FakeLink(der_measure(), der_control())
    device = inverter(link)
    written: list[float] = []
    clock = device.clock  # type: ignore[attr-defined]
    link.on_write = lambda a, v: written.append(clock.now) if a == 40157 + 22 else None
    for _ in range(100):
        device.write_power(100.0, nan, 6.0)
        clock.now += 0.1
    assert max(b - a for a, b in zip(written, written[1:], strict=False)) <= 2.1
    assert len(written) < 8


def test_bad_orders_leave_nothing_behind() -> None:
    link = FakeLink(der_measure(), der_control())
    device = inverter(link)
    for power, reactive, lease in (
        (nan, nan, 1.0),
        (1.0, nan, 0.0),
        (1.0, nan, nan),
        (1.0, nan, -1.0),
        (float('inf'), nan, 1.0),
        (1.0, 500.0, 1.0),
        (1e12, nan, 1.0),
    ):
        with pytest.raises(BadValue):
            device.write_power(power, reactive, lease)
    assert link.writes == []
    device.write_power(1.0, 0.0, 1.0)  # no reactive power asked of a device that has none
    link.writes.clear()
    no_scale = FakeLink(der_measure(), der_control(_55=NI))
    with pytest.raises(BadValue, match='WSet_SF'):
        inverter(no_scale).write_power(100.0, nan, 1.0)
    assert no_scale.writes == []


def test_a_dropped_order_is_reported_and_armed_anew() -> None:
    link = FakeLink(der_measure(), der_control())
    device = inverter(link)
    device.write_power(500.0, nan, 5.0)
    assert device.read(0.0).alarms[-1].id == 'sunspec.over_temp'
    link.registers[40157 + 22] = 0
    assert device.read(0.0).alarms[-1].id == 'sunspec.order_dropped_wset'
    link.writes.clear()
    device.write_power(500.0, nan, 5.0)
    assert link.writes[-1] == (40157 + 22, [1])


def test_device_without_timer_says_so() -> None:
    device = inverter(FakeLink(der_measure(), der_control(_31=NU, _32=NU)))
    device.write_power(500.0, nan, 5.0)
    assert device.read(0.0).alarms[-1].id == 'sunspec.no_reversion_timer'


def test_operation_model_starts_and_refuses_in_local_control() -> None:
    measure = der_measure()
    measure[4] = 0  # InvSt off
    link = FakeLink(measure, der_control(), [715, 7, 0, 0, 1, 0, 0, 0, 0])
    inverter(link, off_on_stop=True).write_power(0.0, nan, 5.0)
    assert link.writes[0] == (40157 + 67 + 8, [1])
    link.writes.clear()
    inverter(link, off_on_stop=True).stop()
    assert link.writes[-1] == (40157 + 67 + 8, [0])
    link.writes.clear()
    link.registers[40157 + 67 + 2] = 1
    with pytest.raises(Refused, match='local'):
        inverter(link).write_power(0.0, nan, 5.0)
    assert link.writes == []


def test_stop_disables_even_if_the_zero_is_refused() -> None:
    link = FakeLink(der_measure(), der_control())
    link.refuse_writes = {40157 + 24}
    with pytest.raises(Refused):
        inverter(link).stop()
    assert link.writes == [(40157 + 22, [0])]


def test_read_only_never_writes() -> None:
    for models in ((der_measure(), der_control()), (LEGACY, STORAGE)):
        link = FakeLink(*models)
        device = inverter(link, read_only=True, heartbeat=True)
        device.read(0.0)
        for call in (lambda: device.write_power(1.0, nan, 1.0), device.stop):
            with pytest.raises(ReadOnlyError):
                call()
        assert link.writes == []


def test_a_moved_map_is_found_again() -> None:
    link = FakeLink(der_measure())
    device = inverter(link)
    device.read(0.0)
    link.registers = FakeLink([1, 66, *[0] * 66], der_measure()).registers
    with pytest.raises(BadFrame, match='no longer'):
        device.read(1.0)
    assert device.read(2.0).active_power == -1500.0


# --- inverter, older models -----------------------------------------------------------------------

S120, S121 = 40054, 40082
S123, S124 = 40114, 40140


def legacy_link() -> FakeLink:
    return FakeLink(LEGACY, NAMEPLATE, SETTINGS, IMMEDIATE, STORAGE)


def test_legacy_inverter_from_literal_registers() -> None:
    r = inverter(legacy_link()).read(0.0)
    assert (r.state, r.active_power, r.reactive_power) == (ConverterState.RUNNING, 1500.0, -200.0)
    assert r.voltage == (230.0, 230.1, 230.2) and r.current == (2.2, 2.2, 2.2)
    assert (r.frequency, r.energy_export, r.temperature) == (50.01, 4242.0, 40.0)
    assert (r.dc_voltage, r.dc_current, r.dc_power) == (512.0, 31.0, 1550.0)
    assert (r.max_charge_power, r.max_discharge_power, r.max_apparent_power) == (
        3000.0,
        4000.0,
        4800.0,
    )
    assert [a.id for a in r.alarms] == ['sunspec.cabinet_open']
    assert r.limit_reasons == ['inverter: throttled']


def test_float_inverter_model() -> None:
    def f(value: float) -> list[int]:
        return list(struct.unpack('>2H', struct.pack('>f', value)))

    registers = [113, 60, *[0x7FC0, 0] * 23, 4, NU, *[0] * 12]
    registers[22:24], registers[24:26], registers[36:38] = f(-1234.5), f(50.0), f(400.0)
    r = inverter(FakeLink(registers)).read(0.0)
    assert (r.active_power, r.frequency, r.dc_voltage) == (1234.5, 50.0, 400.0)
    assert isnan(r.temperature) and r.state is ConverterState.RUNNING


def test_legacy_orders_at_the_literal_offsets_of_124() -> None:
    link = legacy_link()
    device = inverter(link)
    device.write_power(1500.0, nan, 10.0)
    # OutWRte, InWRte (0.01 %), window, reversion; then the direction
    assert link.writes == [(S124 + 12, [0, 5000, 0, 10]), (S124 + 5, [1])]
    link.writes.clear()
    device.write_power(750.0, nan, 10.0)
    assert link.writes == [(S124 + 12, [0, 2500, 0, 10])]
    link.writes.clear()
    device.write_power(-1000.0, nan, 10.0)  # 25 % of 4000 W
    assert link.writes == [(S124 + 12, [2500, 0, 0, 10]), (S124 + 5, [2])]
    assert device.read(0.0).setpoint == -1000.0
    link.writes.clear()
    device.stop()
    assert link.writes == [(S124 + 12, [0, 0]), (S124 + 5, [0])]
    with pytest.raises(BadValue, match='WChaMax'):
        device.write_power(3100.0, nan, 10.0)


def test_legacy_forced_and_signed_limit() -> None:
    link = legacy_link()
    inverter(link, legacy_control='forced').write_power(1500.0, nan, 10.0)
    assert link.writes == [(S124 + 12, [65536 - 3750, 5000, 0, 10]), (S124 + 5, [3])]
    link = legacy_link()
    inverter(link, legacy_control='signed_limit').write_power(900.0, nan, 10.0)  # 20 % of 4500 W
    assert link.writes == [(S123 + 5, [65536 - 20]), (S123 + 7, [10]), (S123 + 9, [1])]


def test_legacy_reactive_and_connect() -> None:
    link = legacy_link()
    link.registers[S123 + 4] = 0
    device = inverter(link)
    device.write_power(0.0, -450.0, 10.0)  # ours: + = inductive; theirs: + = injection
    assert link.writes[0] == (S123 + 4, [1])
    assert (S123 + 15, [100]) in link.writes and link.writes[-1] == (S123 + 22, [1])


def test_no_control_model_is_said_in_words() -> None:
    with pytest.raises(BadValue, match='no model 704'):
        inverter(FakeLink(der_measure())).write_power(0.0, nan, 1.0)
    with pytest.raises(BadValue, match='no SunSpec inverter'):
        inverter(FakeLink(BATTERY)).identify()


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('params', 'text'),
    [
        ({'unit': 300}, 'unit = 300: must be 0 to 255'),
        ({'timeout_s': 0.0}, 'timeout_s = 0.0'),
        ({'base': 'x'}, "base = 'x'"),
        ({'base': '70000'}, "base = '70000'"),
        ({'power_sign': 'plus'}, "power_sign = 'plus'"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], text: str) -> None:
    for kind in (SunSpecBatteryParams, SunSpecInverterParams):
        with pytest.raises(ValueError, match=text):
            kind(address='tcp://x', **params)  # type: ignore[arg-type]


# --- over real Modbus TCP -------------------------------------------------------------------------


@contextmanager
def served(unit_map: object) -> Iterator[tuple[str, DeviceFaults]]:
    faults = DeviceFaults()
    server = ModbusDeviceServer({1: unit_map}, faults)  # type: ignore[dict-item]
    server.start()
    try:
        yield f'tcp://127.0.0.1:{server.port}', faults
    finally:
        server.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'condition did not come true'
        time.sleep(0.01)


@pytest.mark.parametrize(
    ('models', 'options'),
    [('der', {'rearm': 'timer'}), ('der', {'rearm': 'enable'}), ('legacy', {})])  # fmt: skip
def test_order_arrives_and_reverts_without_a_controller(
    models: str, options: dict[str, str]
) -> None:
    plant = StaticPlant()
    simulator = SunSpecInverterSimulator(plant, 'u1', models, **options)
    try:
        with served(simulator) as (address, _):
            device = SunSpecInverter(SunSpecInverterParams(address=address))
            device.open()
            assert device.identify().manufacturer == 'bess'
            sample = plant.inverter('u1')
            until = time.monotonic() + 1.2  # longer than the lease: the orders keep it alive
            while time.monotonic() < until:
                device.write_power(2000.0, 300.0, 1.0)
                assert sample.active_power == pytest.approx(2000.0)
                assert sample.reactive_power == pytest.approx(300.0, abs=6)
                time.sleep(0.05)
            reading = device.read(1.0)
            assert (reading.active_power, reading.setpoint) == (2000.0, 2000.0)
            device.write_power(-1500.0, nan, 1.0)
            assert device.read(2.0).active_power == -1500.0
            last = time.monotonic()
            device.close()  # nobody speaks to the device any more
            wait_for(lambda: sample.active_power == 0.0, 3.0)
            assert time.monotonic() - last < 1.5
            device.open()
            device.write_power(700.0, nan, 5.0)
            assert sample.active_power == pytest.approx(700.0)
            device.stop()
            assert sample.active_power == 0.0
            device.close()
    finally:
        simulator.close()


def test_battery_over_tcp() -> None:
    plant = StaticPlant()
    pack = plant.pack('u1')
    pack.current, pack.soc = 20.0, 0.8
    with served(SunSpecBatterySimulator(plant, 'u1')) as (address, faults):
        device = SunSpecBattery(SunSpecBatteryParams(address=address, timeout_s=0.3))
        device.open()
        assert device.identify().model == 'battery'
        r = device.read(1.0)
        assert (r.voltage, r.current, r.soc, r.mode) == (52.0, 20.0, 0.8, Mode.CHARGING)
        assert (r.energy_full, r.charge_full, r.temperature) == (5200.0, 100.0, 25.0)
        pack.current = 0.0
        device.set_contactor(False, False)
        assert not pack.charge_switch and not pack.discharge_switch
        assert device.read(1.0).contactor is Contactor.OPEN
        device.set_contactor(True, True)
        assert pack.charge_switch and device.read(1.0).contactor is Contactor.CLOSED
        faults.inject('modbus_exception')
        with pytest.raises(Refused):
            device.read(1.0)
        faults.clear()
        for name in (
            'flipped_bytes',
            'truncated_frame',
            'wrong_unit_id',
            'no_answer',
            'disconnect',
        ):
            faults.inject(name)
            for _ in range(3 if name == 'flipped_bytes' else 1):
                with pytest.raises(DeviceError):
                    device.read(1.0)
                    device.read(1.0)
            faults.clear()

            def answers() -> bool:
                try:
                    return device.read(2.0).voltage == 52.0
                except DeviceError:
                    return False

            wait_for(answers)
        device.close()


def test_link_refuses_writes_of_a_read_only_inverter() -> None:
    plant = StaticPlant()
    with served(SunSpecInverterSimulator(plant, 'u1', background=False)) as (address, _):
        device = SunSpecInverter(SunSpecInverterParams(address=address), read_only=True)
        device.open()
        device.read(0.0)
        with pytest.raises(ReadOnlyError):
            device.write_power(1.0, nan, 1.0)
        device.close()
    assert plant.orders == []
