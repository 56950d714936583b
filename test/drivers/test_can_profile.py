"""CAN devices as data: signals of published DBC files, bit positions, racks, and every kind of bad profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import cantools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import BatteryReading, Contactor, Mode, Severity
from bess_drivers.can.channel import frame_key
from bess_drivers.can.profile_device import CanBattery, CanMeter, CanProfileParams
from bess_drivers.can.racks import combine_racks
from bess_drivers.can.signals import DbcSignals, bits, load_dbc
from bess_drivers.device import BadFrame, BadValue, DeviceError, Refused, Silent
from bess_drivers.profiles.can_model import CanPlace
from bess_drivers.profiles.files import load_profile
from bess_drivers.profiles.model import ProfileError

ADDRESS = 'can:virtual:test'
HEAD = 'title: T\nrole: battery\ntransport: can\nsource: test\n'
BYD = HEAD + '''can: {{dbc: "{dbc}", timeout: 2.0, racks: {racks}, rack_step: 0x40}}
points:
  voltage: {{signal: BatteryStats.BatteryVoltage, range: [0, 1000]}}
  current: {{signal: BatteryStats.BatteryCurrent, positive: charging, range: [-3000, 3000]}}
  temperature: {{signal: BatteryStats.BatteryTemperature}}
  soc: {{signal: BatteryState.StateOfCharge, unit: '%', range: [0, 1]}}
  soh: {{signal: BatteryState.StateOfHealth, unit: '%'}}
  max_charge_current: {{signal: BatteryLimits.ChargeCurrentLimit}}
  max_discharge_current: {{signal: BatteryLimits.DischargeCurrentLimit}}
  charge_full: {{signal: BatterySize.InstalledCapacity, optional: true}}
  cell_voltage_min: {{signal: CellInfo.MinCellVoltage, optional: true}}
'''


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CanBattery]:
    """A battery of a profile text; frames are put into its mailbox as the receiver thread would."""
    def build(text: str, cls: type = CanBattery, **params) -> CanBattery:
        file = tmp_path / 'thing.yaml'
        file.write_text(text)
        device = cls(CanProfileParams(address=ADDRESS, profile=str(file), **params))
        device.open()
        opened.append(device)
        return device

    opened: list[CanBattery] = []
    yield build
    for device in opened:
        device.close()


def feed(device: CanBattery, frames: dict[int, str | bytes], age: float = 0.0, shift: int = 0) -> None:
    import time
    for can_id, data in frames.items():
        if can_id + shift in device.link.mailbox.ids:
            device.link.mailbox.put(can_id + shift, bytes.fromhex(data) if isinstance(data, str) else data,
                                    time.monotonic() - age)


RECORDED = {0x351: '480200050005AE01', 0x355: '4300640000000000', 0x356: 'BE14F9FF8C000000',
            0x373: 'EA0C010D1F012201', 0x379: '9C00000000000000'}


def test_recorded_frames_through_a_dbc_file(make, shared_data):
    device = make(BYD.format(dbc=shared_data / 'can' / 'byd_lvs_victron_canbms.dbc', racks=1))
    feed(device, RECORDED)
    reading = device.read(50.0)
    assert (reading.voltage, reading.current, reading.temperature) == pytest.approx((53.10, -0.7, 14.0))
    assert (reading.soc, reading.soh, reading.charge_full) == pytest.approx((0.67, 1.0, 156))
    assert reading.charge == pytest.approx(0.67 * 156) and reading.cell_voltage_min == pytest.approx(3.306)
    assert reading.max_discharge_power == pytest.approx(128 * 53.1) and reading.mode is Mode.DISCHARGING
    assert 49.5 < reading.time <= 50.0
    assert device.identify().model == 'T'


def test_a_needed_frame_that_is_missing_or_old_is_named_and_an_optional_one_is_unknown(make, shared_data):
    device = make(BYD.format(dbc=shared_data / 'can' / 'byd_lvs_victron_canbms.dbc', racks=1))
    with pytest.raises(Silent, match='0x351, 0x355, 0x356'):
        device.identify()
    needed = {k: RECORDED[k] for k in (0x351, 0x355, 0x356)}
    feed(device, needed)
    assert isnan(device.read(0.0).charge_full)
    feed(device, {0x355: RECORDED[0x355]}, age=2.5)
    with pytest.raises(Silent, match=r'0x355 for'):
        device.read(0.0)


def test_racks_with_ids_of_their_own_are_one_battery(make, shared_data):
    device = make(BYD.format(dbc=shared_data / 'can' / 'byd_lvs_victron_canbms.dbc', racks=2), unit=0x100)
    feed(device, RECORDED, shift=0x100)
    with pytest.raises(Silent, match='0x491'):
        device.read(0.0)
    feed(device, RECORDED | {0x356: '0014640014000000', 0x355: '2100640000000000'}, shift=0x140)
    reading = device.read(0.0)
    assert reading.current == pytest.approx(-0.7 + 10.0) and reading.voltage == pytest.approx((53.1 + 51.2) / 2)
    assert reading.charge_full == 312 and reading.soc == pytest.approx(0.5)
    assert reading.max_charge_current == pytest.approx(256) and reading.members == 2


def test_a_multiplexed_signal_array_of_a_published_dbc(make, shared_data):
    """36 modules of a solar car, one per frame, selected by an index (cantools' own test file encodes)."""
    path = shared_data / 'dbc' / 'msxii_system_can.dbc'
    device = make(HEAD + f'''can: {{dbc: "{path}", timeout: 5.0}}
points:
  cells: {{signal: 'BATTERY_VT.MODULE_VOLTAGE_##', first: 0, count: 36, scale: 0.0001, range: [0, 6]}}
  temperatures: {{signal: 'BATTERY_VT.MODULE_TEMP_##', first: 0, count: 36, scale: 0.01}}
''')
    message = cantools.database.load_file(str(path)).get_message_by_name('BATTERY_VT')
    for index in range(36):
        with pytest.raises(Silent):
            device.read(0.0)
        feed(device, {0x401: message.encode({'BATTERY_VT_INDEX': index, f'MODULE_VOLTAGE_{index:02d}': 36000 + index,
                                             f'MODULE_TEMP_{index:02d}': 2500 - index})})
    reading = device.read(0.0)
    assert reading.cells == pytest.approx([3.6 + i * 1e-4 for i in range(36)])
    assert reading.temperatures == pytest.approx([25 - i * 0.01 for i in range(36)])
    assert reading.cell_voltage_max_index == 35


def test_every_signal_of_published_dbc_files_is_read_as_cantools_encodes_it(shared_data):
    checked = 0
    for name in ('multiplex_2', 'j1939', 'signed', 'floating_point', 'vehicle'):
        path = shared_data / 'dbc' / f'{name}.dbc'
        signals = DbcSignals(load_dbc(path), name)
        for message in cantools.database.load_file(str(path), strict=False).messages[:40]:
            if message.is_multiplexed() or message.length > 8:
                continue
            values = {s.name: s.conversion.raw_to_scaled(1, False) for s in message.signals}
            data = message.encode(values, strict=False)
            for signal in message.signals:
                assert signals.part(f'{message.name}.{signal.name}').read(data) == pytest.approx(values[signal.name])
                checked += 1
    assert checked > 100


def test_jk_on_can(tmp_path):
    device = CanBattery(CanProfileParams(address=ADDRESS, profile='jk_can', unit=1))
    device.open()
    try:
        frames = {0x2F4: '0802 A40F 37 00 0000', 0x4F4: 'E80C 03 D00C 0B', 0x5F4: '4B 01 46 02', 0x7F4: '0400 0000',
                  0x18F128F4: 'F401 E803 0000 0000', 0x18F528F4: '02'}
        feed(device, {k: v.replace(' ', '') for k, v in frames.items()}, shift=1)
        reading = device.read(0.0)
    finally:
        device.close()
    assert (reading.voltage, reading.current, reading.soc) == pytest.approx((52.0, 0.4, 0.55))
    assert (reading.cell_voltage_max, reading.cell_voltage_max_index) == (pytest.approx(3.304), 2)
    assert (reading.cell_voltage_min, reading.cell_voltage_min_index) == (pytest.approx(3.280), 10)
    assert (reading.temperature, reading.temperature_min) == (25, 20)
    assert (reading.charge, reading.charge_full) == pytest.approx((50.0, 100.0))
    assert reading.contactor is Contactor.DISCHARGE_ONLY
    assert [a.id for a in reading.alarms] == ['jk_can.cell_undervoltage']
    with pytest.raises(Refused):
        device.set_contactor(True, True)


@pytest.mark.parametrize(('points', 'message'), [
    ('voltage: {}', 'needs either signal'),
    ('voltage: {signal: A.B, id: 3}', 'needs either signal'),
    ('voltage: {signal: AB}', 'not like Message.Signal'),
    ('voltage: {signal: A.B}', 'no dbc file'),
    ('cells: {id: 1, start: 500, length: 16, count: 4}', 'bit 511'),
    ('cells: {id: 1, count: 8, per_frame: 4}', 'per_frame needs id_step'),
    ('voltage: {id: 1, start: 3, length: 16, big_endian: true}', 'whole bytes'),
    ('voltage: {id: 0x20000000}', 'id'),
    ('current: {id: 1}', 'direction'),
    ('voltage: {id: 1, unit: A}', 'does not fit'),
])
def test_bad_profiles_name_line_and_key(tmp_path, points, message):
    file = tmp_path / 'thing.yaml'
    file.write_text(f'{HEAD}points:\n  {points}\n')
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(str(file))
    assert caught.value.messages[0].startswith(f'{file}:6: ')


def test_profiles_that_do_not_fit_are_refused(make, tmp_path, shared_data):
    dbc = shared_data / 'can' / 'byd_lvs_victron_canbms.dbc'
    plain = 'points:\n  voltage: {id: 1}\n'
    for text, message in (
            (HEAD + f'can: {{dbc: "{dbc}"}}\npoints:\n  voltage: {{signal: Nope.B}}\n', 'no message'),
            (HEAD + f'can: {{dbc: "{dbc}"}}\npoints:\n  voltage: {{signal: BatteryStats.Nope}}\n', 'no signal'),
            (HEAD + 'can: {dbc: nope.dbc}\npoints:\n  voltage: {signal: A.B}\n', 'cannot be read'),
            (HEAD + f'can: {{dbc: "{tmp_path / "thing.yaml"}"}}\npoints:\n  voltage: {{signal: A.B}}\n', 'DBC file')):
        with pytest.raises(ValueError, match=message):
            make(text)
    with pytest.raises(ValueError, match='describes a battery, not a meter'):
        make(HEAD + plain, CanMeter)
    with pytest.raises(ValueError, match='is for modbus'):
        CanBattery(CanProfileParams(address=ADDRESS, profile='eastron_sdm630'))
    with pytest.raises(ValueError, match='above'):
        make(HEAD + plain.replace('id: 1', 'id: 0x1FFFFFFF'), unit=1)


@settings(max_examples=200)
@given(frames=st.dictionaries(st.sampled_from([0x2F4, 0x4F4, 0x5F4, 0x7F4, 0x18F128F4, 0x18F528F4]),
                              st.binary(max_size=64)))
def test_garbage_is_a_device_error_or_in_range(frames):
    device = CanBattery(CanProfileParams(address=ADDRESS, profile='jk_can'))
    feed(device, frames)
    device.link.check = lambda: None  # type: ignore[method-assign,return-value]
    try:
        reading = device.read(0.0)
    except DeviceError as error:
        assert isinstance(error, (Silent, BadFrame, BadValue))
    else:
        assert 0 <= reading.voltage <= 1000 and 0 <= reading.soc <= 1


@given(st.integers(0, 40), st.integers(1, 24), st.booleans(), st.data())
def test_bit_positions_are_those_that_were_packed(start, length, signed, data):
    low, high = (-(1 << length - 1), (1 << length - 1) - 1) if signed else (0, (1 << length) - 1)
    number = data.draw(st.integers(low, high))
    noise = data.draw(st.integers(0, (1 << 64) - 1)) & ~((1 << length) - 1 << start)
    frame = (noise | (number & (1 << length) - 1) << start).to_bytes(8, 'little')
    assert bits(CanPlace(id=1, start=start, length=length, signed=signed)).read(frame) == number


def test_arrays_over_several_frames_and_big_endian():
    place = CanPlace(id=0x100, length=16, count=6, per_frame=4, id_step=2, big_endian=True)
    assert [bits(place, i).can_id for i in range(6)] == [0x100] * 4 + [0x102] * 2
    assert bits(place, 5).read(bytes.fromhex('0000 0CE4')) == 0x0CE4
    with pytest.raises(BadFrame):
        bits(place, 3).read(bytes(7))


def test_racks_combine():
    a = BatteryReading(time=1.0, newest=2.0, voltage=100.0, current=10.0, power=1000.0, charge=40.0, charge_full=100.0,
                       energy=4000.0, energy_full=1e4, max_charge_current=50.0, max_discharge_current=60.0, soc=0.4,
                       contactor=Contactor.CLOSED, cells=(3.2, 3.3), temperature=20.0)
    b = replace(a, time=0.5, current=-4.0, max_charge_current=20.0, charge=60.0, cells=(3.1, 3.4), temperature=nan)
    both = combine_racks([a, b])
    assert (both.time, both.current, both.charge, both.soc) == (0.5, 6.0, 100.0, 0.5)
    assert (both.max_charge_current, both.max_discharge_current) == (40.0, 120.0)
    assert (both.cell_voltage_min_index, both.cell_voltage_max_index, both.temperature) == (2, 3, 20.0)
    open_rack = combine_racks([a, replace(b, contactor=Contactor.OPEN, current=0.0)])
    assert open_rack.max_charge_current == 50.0 and open_rack.charge_full == 100.0
    assert (open_rack.members, open_rack.members_usable) == (2, 1)
    unknown = combine_racks([a, replace(b, charge=nan)])
    assert isnan(unknown.charge)  # half a battery must not look like a whole one
    assert combine_racks([a]) is a
    from bess_core.values import Alarm
    hot = Alarm('x.hot', Severity.ERROR, 'hot')
    assert combine_racks([replace(a, alarms=(hot,)), replace(b, alarms=(hot,))]).alarms == (
        Alarm('x.hot', Severity.ERROR, 'rack 1, 2: hot'),)


DBC_29 = '''VERSION ""
NS_ :
BS_:
BU_: X
BO_ 2147484497 Long: 8 X
 SG_ Volts : 0|16@1+ (0.1,0) [0|0] "V" X
BO_ 849 Short: 8 X
 SG_ Amperes : 0|16@1- (0.1,0) [0|0] "A" X
'''


def test_a_dbc_tells_29_bits_from_11_bits_of_the_same_id(make, tmp_path):
    (tmp_path / 'both.dbc').write_text(DBC_29)
    device = make(HEAD + '''can: {dbc: both.dbc}
points:
  voltage: {signal: Long.Volts, range: [0, 1000]}
  current: {signal: Short.Amperes, positive: charging, range: [-3000, 3000]}
''')
    assert device.link.mailbox.ids == {0x80000351, 0x351}
    assert frame_key(0x351, True) == 0x80000351 and frame_key(0x351, False) == 0x351
    assert frame_key(0x18F128F4, True) == 0x18F128F4
    feed(device, {0x80000351: '0802000000000000', 0x351: '9cff000000000000'})
    reading = device.read(0.0)
    assert (reading.voltage, reading.current) == pytest.approx((52.0, -10.0))
