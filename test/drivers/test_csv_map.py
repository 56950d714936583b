"""The BESS Agent's CSV point map as a profile: same meaning, line-numbered mistakes, any bytes survived."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Contactor
from bess_drivers.device import Refused
from bess_drivers.modbus.profile_device import ModbusBattery, ProfileParams
from bess_drivers.profiles import ProfileError
from bess_drivers.profiles.csv_map import HEADER, load_device, of_topic, parse
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.register_image import RegisterImage

REGISTERS = """title: Registers of a battery
role: battery
transport: modbus
source: none, for a test
points:
  Voltage: {address: 0, scale: 0.1, unit: V, extra: true}
  Amps: {address: 1, type: i16, unit: A, extra: true}
  StateOfCharge: {address: 2, unit: '%', extra: true}
  ChargeLimit: {address: 3, unit: A, extra: true}
  DischargeLimit: {address: 4, unit: A, extra: true}
  State: {address: 5, extra: true}
  contactor: {address: 5, enum: {1: OPEN, 3: CLOSED}}
  SetOp: {address: 6, access: rw}
write:
  contactor: {closed: [{point: SetOp, value: 1}], open: [{point: SetOp, value: 2}]}
"""
#: The columns, defaults and names of the agent (its README is source document 001).
MAP = """mesa_name,driver_point_name,topic_prefix,scale_factor,offset,unit,rpc_attempts,rpc_wait,max_data_age,\
buffer_length
V,Voltage,Campus/BESS/Battery,,,V,,,,
A,Amps,Campus/BESS/Battery,-1,0,A,,,,
SoC,StateOfCharge,Campus/BESS/Battery,1,-2,%WHRtg,,,30,3
AChaMax,ChargeLimit,Campus/BESS/Battery,0.5,10,A,,,,
ADisChaMax,DischargeLimit,Campus/BESS/Battery,,,A,,,,
State,State,Campus/BESS/Battery,,,,,,,
SetOp,SetOp,Campus/BESS/Battery,,,,7,0.25,,
"""


def write(folder: Path, text: str = MAP, registers: str = REGISTERS) -> tuple[str, str]:
    (folder / 'battery_points.csv').write_text(text)
    (folder / 'registers.yaml').write_text(registers)
    return str(folder / 'battery_points.csv'), str(folder / 'registers.yaml')


@pytest.fixture
def battery(tmp_path: Path) -> Iterator[tuple[ModbusBattery, RegisterImage]]:
    image = RegisterImage()
    for address, value in enumerate((5200, 0x10000 - 10, 52, 100, 80, 3, 0)):
        image.put(3, address, 'u16', value, writable=address == 6)
    server = ModbusDeviceServer({1: image}, DeviceFaults())
    server.start()
    points, registers = write(tmp_path)
    device = ModbusBattery(ProfileParams(address=f'tcp://127.0.0.1:{server.port}', profile=points,
                                         registers=registers, timeout_s=0.5))
    device.open()
    yield device, image
    device.close()
    server.stop()


def test_real_is_raw_times_scale_plus_offset(battery: tuple[ModbusBattery, RegisterImage]) -> None:
    device, image = battery
    r = device.read(10.0)
    assert r.voltage == pytest.approx(520.0)
    assert r.current == pytest.approx(10.0)  # scale_factor -1 turns the sign of this device
    assert r.soc == pytest.approx(0.50)  # 52 % - 2
    assert r.max_charge_current == pytest.approx(60.0)  # 100 A x 0.5 + 10
    assert r.max_discharge_power == pytest.approx(80 * 520.0)
    assert r.contactor is Contactor.CLOSED  # what the map does not name stays


def test_ages_attempts_waits_and_buffers(battery: tuple[ModbusBattery, RegisterImage]) -> None:
    device, image = battery
    for now in (1.0, 2.0, 3.0, 4.0):
        device.read(now)
    assert [at for at, _ in device.history['soc']] == [2.0, 3.0, 4.0]  # buffer_length 3
    assert device.shown == {'records of soc': '3 of 3: ' + ' '.join([f'{device.history["soc"][0][1]:.6g}'] * 3)}
    assert device.profile.points['soc'].keys.max_age == 30.0
    assert device.profile.points['voltage'].keys.max_age == inf  # 0: data of any age is valid
    assert device.write_attempts == (7, 0.25)
    assert device.profile.points['State'].keys.write_attempts == 5
    device.set_contactor(True, True)
    assert image.words[3][6] == 1
    image.writable.clear()
    with pytest.raises(Refused):
        device.set_contactor(False, False)


def test_an_old_value_is_not_known(battery: tuple[ModbusBattery, RegisterImage]) -> None:
    device, _ = battery
    device.read(0.0)
    device._times['soc'] = -40.0
    device._blocks['fast'] = []
    r = device.read(0.0)
    assert isnan(r.soc)
    assert r.voltage == pytest.approx(520.0)


def test_empty_cells_have_the_agents_defaults() -> None:
    row = parse(MAP, 'x.csv')[0]
    assert (row.scale_factor, row.offset, row.rpc_attempts, row.rpc_wait, row.max_data_age, row.buffer_length) == (
        1.0, 0.0, 5, 0.9, 0.0, 1)
    assert row.topic == 'Campus/BESS/Battery/Voltage'
    assert ','.join(HEADER) == MAP.splitlines()[0]


@pytest.mark.parametrize(('change', 'message'), [
    (('mesa_name', 'name'), ':1: column mesa_name is missing'),
    (('offset', 'unit'), ':1: column unit is given twice'),
    (('V,Voltage', ',Voltage'), ':2: mesa_name is empty'),
    (('V,Voltage,Campus/BESS/Battery', 'V,Voltage,'), ':2: topic_prefix is empty'),
    (('Battery,-1,0', 'Battery,zero,0'), ":3: scale_factor is 'zero'"),
    (('Battery,-1,0', 'Battery,0,0'), ":3: scale_factor is '0'"),
    (('Battery,-1,0', 'Battery,1,nan'), ":3: offset is 'nan', not a number"),
    (('7,0.25', '0,0.25'), ":8: rpc_attempts is '0'; allowed: a whole number from 1"),
    (('7,0.25', '7.5,0.25'), ":8: rpc_attempts is '7.5'"),
    (('7,0.25', '7,-1'), ":8: rpc_wait is '-1'"),
    (('A,Amps', 'V,Amps'), ':3: V is mapped twice'),
    ((',,,V,,,,\n', ',,,V,,,,,,,\n'), ':2: 13 cells, the header has 10'),
    (('V,Voltage', '"V,Voltage'), 'not valid CSV'),
    (('SoC,StateOfCharge', 'SoC,StateOfCharg'), ":4: SoC: registers has no point 'StateOfCharg'; did you mean StateOf"),
    (('A,Amps,Campus/BESS/Battery,-1,0,A', 'A,Amps,Campus/BESS/Battery,-1,0,V'),
     ":3: A: unit 'V' does not fit current, which is in A"),
])
def test_mistakes_are_named_with_their_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_device(*write(tmp_path, MAP.replace(*change, 1)))
    assert any(message in text for text in caught.value.messages), caught.value.messages


def test_a_map_needs_registers_and_the_other_way_round(tmp_path: Path) -> None:
    points, registers = write(tmp_path)
    with pytest.raises(ProfileError, match='has no addresses'):
        load_device(points)
    with pytest.raises(ProfileError, match='for a point map'):
        load_device(registers, registers)
    with pytest.raises(ProfileError, match='no such point map'):
        load_device(str(tmp_path / 'none.csv'), registers)


@given(st.text(max_size=400) | st.lists(st.lists(st.text(max_size=8), max_size=12), max_size=6).map(
    lambda rows: '\n'.join(','.join(r) for r in [list(HEADER), *rows])))
@settings(max_examples=300)
def test_any_text_gives_rows_or_a_profile_error(text: str) -> None:
    try:
        rows = parse(text, 'x.csv')
    except ProfileError as error:
        assert all(m.startswith('x.csv:') for m in error.messages)
    else:
        for row in rows:
            assert row.scale_factor != 0
            assert row.rpc_attempts >= 1


@given(data=st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes(tmp_path_factory: Any, data: bytes) -> None:
    folder = tmp_path_factory.mktemp('csv')
    points, registers = write(folder)
    Path(points).write_bytes(data)
    with pytest.raises(ProfileError):
        load_device(points, registers)


TWO = """mesa_name,driver_point_name,topic_prefix,scale_factor,buffer_length
V,Voltage,Campus/BESS/A,1,3
V,Voltage,Campus/BESS/B/,2,1
A,Current,Campus/BESS/B,,
"""


def test_a_map_of_several_devices_needs_the_topic_of_this_one():
    rows = parse(TWO, 'two.csv')
    assert [r.line for r in of_topic(rows, 'Campus/BESS/B', 'two.csv')] == [3, 4]
    assert [r.line for r in of_topic(rows, '/Campus/BESS/A/', 'two.csv')] == [2]
    assert of_topic(rows[:1], '', 'two.csv') == rows[:1]
    with pytest.raises(ProfileError, match='points of 2 devices; set topic to one of: Campus/BESS/A, Campus/BESS/B'):
        of_topic(rows, '', 'two.csv')
    with pytest.raises(ProfileError, match="no point with topic_prefix 'C'"):
        of_topic(rows, 'C', 'two.csv')
    with pytest.raises(ProfileError, match='topic is for a point map'):
        load_device('eastron_sdm630', '', 'x')
