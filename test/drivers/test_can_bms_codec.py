"""CAN-bms frame set: published frames, round trips, and whatever else may be on a bus."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Contactor, Mode, Severity
from bess_drivers.can import can_bms_codec as codec
from bess_drivers.can.can_bms import CanBmsParams, alarms_of, current_limits, reading_from
from bess_drivers.can.can_bms_codec import ALARM_PAIRS, PROTECTION_BITS, Active, BatteryFrames
from bess_drivers.device import BadFrame, BadValue

# BYD Battery-Box Premium LVS with Venus OS 3.00 (dfch/BydCanProtocol, MIT), recorded.
BYD = {0x351: '480200050005AE01', 0x355: '4300640000000000', 0x356: 'BE14F9FF8C000000', 0x35A: 'AAAAAAAAAAAAAAAA',
       0x35E: '4259440000000000', 0x35F: '4C69011769000000', 0x372: '0200000000000000', 0x373: 'EA0C010D1F012201',
       0x378: '400800002B070000', 0x379: '9C00000000000000', 0x382: '5052454D49554D00'}


def said(**frames: str) -> BatteryFrames:
    return codec.decode({int(k[1:], 16): bytes.fromhex(v) for k, v in frames.items()})


def test_recorded_byd_battery():
    b = codec.decode({k: bytes.fromhex(v) for k, v in BYD.items()})
    assert (b.charge_voltage, b.charge_current, b.discharge_current, b.discharge_voltage) == pytest.approx(
        (58.4, 128.0, 128.0, 43.0))
    assert (b.soc, b.soh) == (0.67, 1.0)
    assert (b.voltage, b.current, b.temperature) == pytest.approx((53.10, -0.7, 14.0))
    assert (b.cell_min, b.cell_max) == pytest.approx((3.306, 3.329))
    assert (b.temperature_min, b.temperature_max) == (14, 17)
    assert (b.modules, b.modules_offline) == (2, 0)
    assert (b.energy_charged, b.energy_discharged) == pytest.approx((211_200, 183_500))
    assert b.capacity == 156
    assert (b.maker, b.model, b.version) == ('BYD', 'PREMIUM', '23.01')
    assert b.active == [] and b.unknown == []


def test_the_same_frames_from_the_recorded_log(shared_data: Path):
    log = (shared_data / 'can' / 'byd_lvs_frames_candump.log').read_text().split()
    frames = {int(word.split('#')[0], 16): bytes.fromhex(word.split('#')[1]) for word in log if '#' in word}
    assert {k: v.hex().upper() for k, v in frames.items() if k in BYD} == BYD
    reading = reading_from(codec.decode(frames), CanBmsParams(), 1.0, 2.0)
    assert reading.charge == pytest.approx(0.67 * 156)
    assert reading.max_charge_current == pytest.approx(128.0)


def test_published_frames_of_other_senders():
    b = said(x351='2802F4012003E001', x355='3C006400', x35C='C000')
    assert (b.charge_voltage, b.charge_current, b.discharge_current, b.discharge_voltage) == pytest.approx(
        (55.2, 50.0, 80.0, 48.0))
    assert (b.soc, b.soh, b.requests) == (0.6, 1.0, 0xC0)
    b = said(x355='570063002922', x356='6C1485FFDC00', x373='BE0CC70C25012701')
    assert (b.soc, b.soh) == pytest.approx((0.8745, 0.99))
    assert (b.voltage, b.current, b.temperature) == pytest.approx((52.28, -12.3, 22.0))
    assert (b.cell_min, b.cell_max, b.temperature_min, b.temperature_max) == pytest.approx((3.262, 3.271, 20, 22))


def test_first_byd_frame_after_power_up_says_modules_block():
    b = said(x372='0200020001000000')
    assert (b.modules, b.modules_blocking_charge, b.modules_blocking_discharge, b.modules_offline) == (2, 2, 1, 0)


@pytest.mark.parametrize(('place', 'condition'), ALARM_PAIRS.items(), ids=lambda x: getattr(x, 'id', None))
@pytest.mark.parametrize('warning', [False, True])
def test_every_alarm_pair_is_a_named_fault(place, condition, warning):
    data = bytearray(b'\xaa' * 8)
    at = place[0] + 4 * warning
    data[at] = data[at] & ~(3 << place[1]) | 1 << place[1]
    (alarm,) = alarms_of(codec.decode({codec.ALARMS: bytes(data)}))
    assert alarm.id == f'can_bms.{condition.id}' + '_warning' * warning
    assert alarm.severity is (Severity.WARNING if warning else condition.severity)


@pytest.mark.parametrize(('place', 'condition'), PROTECTION_BITS.items(), ids=lambda x: getattr(x, 'id', None))
def test_every_pylontech_protection_bit_is_a_named_fault(place, condition):
    data = bytearray(7)
    data[place[0]] = 1 << place[1]
    (alarm,) = alarms_of(codec.decode({codec.PROTECTION: bytes(data)}))
    assert (alarm.id, alarm.severity) == (f'can_bms.{condition.id}', condition.severity)


def test_unknown_bits_are_named_and_the_online_flag_is_none():
    assert codec.decode({codec.ALARMS: b'\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xa6'}).unknown == []
    assert [a.id for a in alarms_of(codec.decode({codec.ALARMS: b'\xaa\xaa\xa6\xaa\xaa\xaa\xaa\xaa'}))] == [
        'can_bms.unknown_alarm']


def limits(**changes) -> tuple[float, float, list[str]]:
    base = {'charge_voltage': 56.0, 'charge_current': 100.0, 'discharge_current': 80.0, 'discharge_voltage': 46.0,
            'voltage': 52.0, 'requests': 0xC0} | changes
    return current_limits(BatteryFrames(**base), 0.3)


def test_limits():
    assert limits() == (100.0, 80.0, [])
    assert limits(voltage=55.85)[0] == pytest.approx(50.0)
    assert limits(voltage=56.0)[0] == 0.0
    assert limits(voltage=46.0)[1] == 0.0
    assert limits(requests=0x40)[0] == 0.0 and limits(requests=0x80)[1] == 0.0
    assert limits(requests=0xE0)[:2] == (100.0, 0.0)
    assert limits(requests=None)[:2] == (100.0, 80.0)
    hot = Active(ALARM_PAIRS[0, 6], False)
    assert limits(active=[hot])[:2] == (0.0, 0.0)
    assert limits(active=[hot._replace(warning=True)])[:2] == (100.0, 80.0)
    for changes in ({'voltage': 56.0}, {'voltage': 46.0}, {'requests': 0}, {'active': [hot]}, {'charge_current': 0.0}):
        assert limits(**changes)[2], changes  # whatever binds says so


def test_charge_voltage_limit_of_zero_is_no_reason_to_taper():
    assert limits(charge_voltage=0.0)[0] == 100.0


@pytest.mark.parametrize('data', [b'', b'\x00', b'\x00' * 5])
def test_short_frames_are_refused(data):
    for can_id in (codec.LIMITS, codec.MEASURED):
        with pytest.raises(BadFrame):
            codec.decode({can_id: data})


@pytest.mark.parametrize(('can_id', 'data'), [
    (0x355, '6500640000000000'),  # 101 %
    (0x355, '3200C90000000000'),  # SoH 201 %
    (0x351, '2802FFFF2003E001'),  # negative charge limit
    (0x356, '0080F9FF8C000000'),  # negative voltage
    (0x373, 'EA0CE90C1F012201'),  # highest cell below the lowest
    (0x373, 'EA0C010DC8002201'),  # 200 K
])
def test_impossible_values_are_refused(can_id, data):
    with pytest.raises(BadValue):
        codec.decode({can_id: bytes.fromhex(data)})


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(codec.IDS), st.binary(max_size=8)))
def test_garbage_gives_values_in_range_or_a_device_error(frames):
    try:
        b = codec.decode(frames)
    except (BadFrame, BadValue):
        return
    assert isnan(b.soc) or 0 <= b.soc <= 1
    assert isnan(b.charge_current) or b.charge_current >= 0
    reading = reading_from(b, CanBmsParams(), 0.0, 0.0)
    assert isnan(reading.max_charge_current) or reading.max_charge_current >= 0


def number(low, high, step):
    return st.integers(round(low / step), round(high / step)).map(lambda n: n * step)


@given(st.builds(
    BatteryFrames, charge_voltage=number(0, 600, 0.1), charge_current=number(0, 3000, 0.1),
    discharge_current=number(0, 3000, 0.1), discharge_voltage=number(0.1, 600, 0.1), soc=number(0, 1, 0.0001),
    soh=number(0.01, 1, 0.01), voltage=number(0, 327, 0.01), current=number(-3000, 3000, 0.1),
    temperature=number(-50, 100, 0.1), requests=st.integers(0, 255), capacity=number(1, 60000, 1),
    cell_min=number(2, 3, 0.001), cell_max=number(3, 4, 0.001), modules=st.integers(1, 100),
    energy_charged=number(100, 1e6, 100), energy_discharged=number(100, 1e6, 100),
    active=st.lists(st.builds(Active, st.sampled_from(list(ALARM_PAIRS.values())), st.booleans()),
                    unique_by=lambda a: (a.condition.id, a.warning))))
def test_what_is_encoded_is_decoded(b):
    again = codec.decode(codec.encode(b))
    for name in ('charge_voltage', 'charge_current', 'discharge_current', 'discharge_voltage', 'voltage', 'current',
                 'soc', 'soh', 'temperature', 'requests', 'capacity', 'cell_min', 'cell_max', 'modules',
                 'energy_charged', 'energy_discharged'):
        assert getattr(again, name) == pytest.approx(getattr(b, name), abs=1e-6), name
    assert {(a.condition.id, a.warning) for a in again.active} == {(a.condition.id, a.warning) for a in b.active}


def test_unknown_values_are_not_invented():
    frames = codec.encode(BatteryFrames(soc=0.5, voltage=52.0, current=0.0))
    assert not {codec.EXTREMES, codec.CAPACITY, codec.ENERGY, codec.MODULES} & set(frames)
    assert isnan(codec.decode(frames).cell_min)


def test_an_independent_decoder_reads_our_frames(shared_data: Path):
    """cantools with the DBC of the recorded battery decodes what we encode."""
    import cantools

    dbc = cantools.database.load_file(str(shared_data / 'can' / 'byd_lvs_victron_canbms.dbc'))
    frames = codec.encode(BatteryFrames(
        charge_voltage=57.6, charge_current=25.0, discharge_current=40.0, discharge_voltage=44.0, soc=0.42, soh=0.98,
        voltage=53.27, current=-12.3, temperature=-5.5, cell_min=3.301, cell_max=3.345, temperature_min=3.0,
        temperature_max=9.0, capacity=280.0, modules=3, energy_charged=1e6, energy_discharged=9e5))
    values = {}
    for can_id in (0x351, 0x355, 0x356, 0x372, 0x373, 0x378, 0x379):
        values |= dbc.decode_message(can_id, frames[can_id].ljust(8, b'\0'))
    assert values['ChargeVoltageLimit'] == pytest.approx(57.6) and values['DischargeCurrentLimit'] == pytest.approx(40)
    assert values['StateOfCharge'] == 42 and values['StateOfHealth'] == 98
    assert values['BatteryVoltage'] == pytest.approx(53.27) and values['BatteryCurrent'] == pytest.approx(-12.3)
    assert values['BatteryTemperature'] == pytest.approx(-5.5)
    assert values['MinCellVoltage'] == pytest.approx(3.301) and values['MaxCellTemperature'] == 9
    assert values['InstalledCapacity'] == 280 and values['BatteriesOnline'] == 3
    assert values['ChargedEnergy'] == pytest.approx(1000)


def test_reading_of_a_battery_that_blocks():
    b = said(x351='2802F4012003E001', x355='3C006400', x356='6C1485FFDC00', x35C='8000')
    reading = reading_from(b, CanBmsParams(capacity=100.0, nominal_voltage=51.2), 5.0, 6.0)
    assert reading.contactor is Contactor.CHARGE_ONLY and reading.mode is Mode.DISCHARGING
    assert reading.max_discharge_current == 0.0 and reading.max_charge_current == pytest.approx(50.0)
    assert (reading.charge, reading.energy) == pytest.approx((60.0, 3072.0))
    assert reading.time == 5.0 and reading.newest == 6.0
    assert isnan(reading.cell_voltage_min)
    assert isnan(reading_from(said(x373='BE0CC70C25012701'), CanBmsParams(cell_extremes=False), 0, 0).cell_voltage_max)
    assert isnan(reading_from(b, CanBmsParams(), 0, 0).charge)
