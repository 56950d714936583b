"""Serial BMS: frames published by others, drivers against simulated devices on real ptys, garbage."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.values import Contactor, Mode, Severity
from bess_drivers.device import BadChecksum, BadFrame, BadValue, DeviceError, ReadOnlyError, Refused
from bess_drivers.driver_node import node_type
from bess_drivers.serial import daly, jbd_up16s, jk, pylontech
from bess_drivers.serial.bms import SerialBms
from bess_drivers.serial.bms_reading import PackParams, Snapshot, current_limits, named, reading_from
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.serial_bms import KINDS
from bess_sim.devices.serial_line import SerialLine
from bess_sim.plant_api import PackSample, StaticPlant

DRIVERS: dict[str, type[SerialBms]] = {
    'daly': daly.DalyBms, 'jk': jk.JkBms, 'jk_pb': jk.JkPbBms, 'pylontech': pylontech.PylontechBms,
    'seplos': pylontech.SeplosBms, 'jbd_up16s': jbd_up16s.Up16sBms}


# -- frames of others -----------------------------------------------------------------------------------


def test_daly_requests_are_the_published_ones():
    assert daly.build(0x90, bytes(8)).hex() == 'a540900800000000000000007d'
    assert daly.build(0x94, bytes(8)).hex() == 'a5409408000000000000000081'
    assert daly.build(0x90).hex() == 'a5409008aaaaaaaaaaaaaaaacd'
    assert daly.build(0x94).hex() == 'a5409408aaaaaaaaaaaaaaaad1'
    assert daly.build(0xDA, b'\x00' + daly.FILL[1:]).hex() == 'a540da0800aaaaaaaaaaaaaa6d'
    assert daly.build(0xDA, b'\x01' + daly.FILL[1:]).hex() == 'a540da0801aaaaaaaaaaaaaa6e'


def daly_data(text: str, command: int) -> bytes:
    frame = daly.find(bytes.fromhex(text), command)
    assert frame is not None
    return frame[4:12]


def test_daly_answers():
    pack = daly_data('a50190080208000074b502f366', 0x90)
    assert daly.parse_pack(pack, True) == pytest.approx((52.0, 12.3, 0.755))
    assert daly.parse_pack(pack, False) == pytest.approx((52.0, -12.3, 0.755))
    state = daly_data('a50193080201010c0000c35064', 0x93)
    assert (state[0], state[1], state[2], int.from_bytes(state[4:], 'big')) == (2, 1, 1, 50_000)
    status = daly_data('a50194080801000000007b00c6', 0x94)
    assert (status[0], status[1]) == (8, 1)
    frames = bytes.fromhex('a5019508010ce50ce90d020039' 'a5019508020cee0cef0cf00036' 'a5019508030cec0ced00000037')
    cells = daly.find_series(frames, 0x95, 3)
    assert daly.parse_cells(cells, 8) == (3.301, 3.305, 3.330, 3.310, 3.311, 3.312, 3.308, 3.309)
    assert daly.find_series(frames[:26], 0x95, 3) is None
    assert daly.parse_temperatures(bytes((65, 128)), 2) == (25.0, 88.0)  # unsigned: above 87 degC too


@pytest.mark.parametrize('bit', sorted(daly.ALARM_BITS))
@pytest.mark.parametrize('below', [True, False])
def test_daly_every_alarm_bit_is_named_and_follows_the_sign_of_the_current(bit, below):
    found = daly.parse_alarms((1 << bit).to_bytes(8, 'little'), below)
    wanted = daly.ALARM_BITS[bit].id
    if not below and 'overcurrent' in wanted:
        wanted = wanted.replace('discharge', 'x').replace('charge', 'discharge').replace('x', 'charge')
    assert [c.id for c in found] == [wanted]


def test_jk_request_is_the_published_one_and_its_sum_is_right():
    # start, length, BMS, read all, from a computer, request, nothing, record 0, end, sum
    assert jk.READ_ALL == bytes.fromhex('4E57 0013 00000000 06 03 00 00 00000000 68 0000 0129')
    assert len(jk.READ_ALL) == 21 and sum(jk.READ_ALL[:-4]) & 0xFFFF == int.from_bytes(jk.READ_ALL[-2:], 'big')


def test_jk_temperatures_at_the_edge():
    assert [jk._temperature(t) for t in (0, 99, 100, 101, 140)] == [0.0, 99.0, 100.0, -1.0, -40.0]
    with pytest.raises(BadValue):
        jk._temperature(200)


def test_jk_starting_up_is_no_reading():
    values = {0x79: bytes((3, 1, 0x0C, 0xE4)), 0x83: b'\x14\x00', 0x84: b'\x00\x00', 0x85: b'\0', 0x87: b'\0\0',
              0x8B: b'\0\0', 0x8C: b'\0\3', 0xAA: b'\0\0\0\x64', 0xC0: b'\1'}
    with pytest.raises(BadValue, match='starting up'):
        jk.snapshot(values)
    assert jk.snapshot(values | {0x85: b'\x32', 0x84: b'\x83\xe8'}).current == pytest.approx(10.0)
    assert jk.snapshot(values | {0x85: b'\x32', 0x84: b'\x03\xe8'}).current == pytest.approx(-10.0)
    with pytest.raises(BadFrame, match='0x83 is missing'):
        jk.snapshot({k: v for k, v in values.items() if k != 0x83} | {0x85: b'\x32'})


def test_jk_pb_under_voltage_bits_are_not_swapped():
    assert [c.id for c in named(jk.PB_ALARMS, 1 << 11)] == ['cell_undervoltage']
    assert [c.id for c in named(jk.PB_ALARMS, 1 << 12)] == ['pack_undervoltage']


def test_pylontech_requests_are_the_published_ones():
    assert pylontech.build(2, 0x42, b'\x02') == b'~20024642E00202FD33\r'
    assert pylontech.build(0, 0x42, b'\x00') == b'~20004642E00200FD37\r'
    assert pylontech.length_field(0) == 0


def test_pylontech_answer_codes_and_damage():
    def answer(code: int = 0, info: bytes = b'\x01', address: int = 2) -> bytes:
        return pylontech.build(address, code, info)

    assert pylontech.parse(answer(), 2) == b'\x01'
    with pytest.raises(Refused, match='unknown command'):
        pylontech.parse(answer(4), 2)
    with pytest.raises(BadFrame, match='address'):
        pylontech.parse(answer(), 3)
    good = answer()
    with pytest.raises((BadChecksum, BadFrame)):
        pylontech.parse(good[:8] + b'1' + good[9:], 2)
    assert pylontech.find(good[:-1]) is None
    assert pylontech.find(b'xx' + good + b'~2') == good


def test_pylontech_capacities_in_three_bytes():
    head = bytes((0, 2, 1)) + bytes.fromhex('0CE4') + b'\x01' + bytes.fromhex('0BA5')
    s = pylontech.parse_analog(head + bytes.fromhex('FF9C C350 FFFF 04 FFFF 0001 011170 0186A0'))
    assert (s.current, s.voltage, s.charge, s.charge_full) == pytest.approx((-10.0, 50.0, 70.0, 100.0))
    assert s.temperatures == (25.0,)
    s = pylontech.parse_analog(head + bytes.fromhex('0064 C350 7530 02 C350 0001'))
    assert (s.charge, s.charge_full) == (30.0, 50.0)


def test_pylontech_states_and_management():
    info = bytes((0, 2, 2, 2, 0, 1, 1, 0, 0xF0, 0, 0, 0b110, 0, 0, 0))
    conditions, charge, discharge = pylontech.parse_alarms(info)
    assert [c.id for c in conditions] == ['cell_overvoltage', 'undertemperature', 'pack_voltage_fault']
    assert charge and discharge
    limits = pylontech.parse_management(bytes.fromhex('02 D002 ADD4 00FA FF06 D8'))
    assert (limits.charge_voltage, limits.discharge_voltage) == pytest.approx((53.25, 44.5))
    assert (limits.charge_current, limits.discharge_current) == (25.0, 25.0)
    assert limits.charge_allowed and limits.discharge_allowed
    assert [c.id for c in limits.conditions] == ['force_charge', 'full_charge_request']


@pytest.mark.parametrize(('place', 'condition'), pylontech.SEPLOS_BITS.items(), ids=lambda x: getattr(x, 'id', None))
def test_seplos_every_alarm_bit(place, condition):
    info = bytearray(49)
    info[place[0]] = 1 << place[1]
    assert pylontech.parse_seplos_alarms(bytes(info)) == ((condition,), False, False)


def test_up16s_frame_of_16_cells_and_4_sensors_has_the_published_length():
    plant = StaticPlant({'a': PackSample(temperatures=(20.0, 21.0, 22.0, 23.0))})
    bms = KINDS['jbd_up16s'][0](plant, 'a', DeviceFaults())
    frame, _ = bms.answer(jbd_up16s.build(1, *jbd_up16s.STATUS))
    assert len(frame) == 166  # 8 + 156 + 2
    assert jbd_up16s.build(1, *jbd_up16s.STATUS)[:8].hex() == '0178100010a00000'


@pytest.mark.parametrize('table', [jbd_up16s.FAULTS, jbd_up16s.ALARMS, jk.JK_ALARMS, jk.PB_ALARMS])
def test_every_bit_has_a_condition_and_unknown_ones_their_number(table):
    for bit, condition in table.items():
        assert named(table, 1 << bit) == (condition,)
    (unknown,) = named(table, 1 << 40)
    assert unknown.id == 'alarm_bit_40' and unknown.severity is Severity.WARNING


# -- limits ---------------------------------------------------------------------------------------------


def test_limits_and_reading():
    s = Snapshot(voltage=52.0, current=-7.0, cells=(3.3, 3.6, 2.85), temperatures=(20.0,), charge=40.0,
                 charge_full=100.0, charge_on=True, discharge_on=True, charge_limit=50.0)
    charge, discharge, reasons = current_limits(s, PackParams())
    assert (charge, discharge) == pytest.approx((25.0, 50.0)) and len(reasons) == 3
    reading = reading_from(s, PackParams(), 'x', 3.0)
    assert reading.mode is Mode.DISCHARGING and reading.contactor is Contactor.CLOSED and reading.soc == 0.4
    assert reading.energy == pytest.approx(40 * 52.0) and reading.cell_voltage_min_index == 2
    assert reading_from(Snapshot(voltage=50.0, current=0.0, soc=0.3), PackParams(), 'x', 0.0).soc == 0.3
    assert isnan(reading_from(Snapshot(voltage=50.0, current=0.0), PackParams(), 'x', 0.0).soc)
    with pytest.raises(ValueError, match='must be below'):
        PackParams(cell_voltage_low=3.7)


# -- drivers on real lines ------------------------------------------------------------------------------


class Bench:
    """A simulated BMS on a pty, and the driver's device."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.plant, self.faults, self.kind = StaticPlant(), DeviceFaults(), kind
        bms_class, address = KINDS[kind]
        self.line = SerialLine(folder / 'line', self.faults, bms_class(self.plant, 'a', self.faults, address).answer)
        self.address = self.line.start()

    def device(self, read_only: bool = False, **params: Any) -> SerialBms:
        cls = DRIVERS[self.kind]
        given = {'timeout_s': 2.0, 'late_s': 0.3, **params}  # a busy machine may take long to answer
        made = cls(cls.Params(address=self.address, **given), read_only=read_only)
        made.open()
        return made


@pytest.fixture(params=sorted(DRIVERS))
def bench(request: Any, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path)
    yield made
    made.line.stop()
    made.line.check()


def test_what_the_pack_has_arrives(bench):
    bench.plant.packs['a'] = PackSample(
        voltage=53.12, current=-12.34, charge=42.0, cells=tuple(3.3 + 0.001 * i for i in range(16)),
        temperatures=(19.0, 11.0), discharge_switch=True)
    device = bench.device()
    try:
        identity = device.identify()
        reading = device.read(7.0)
    finally:
        device.close()
    assert identity.manufacturer and reading.time == 7.0 and reading.alarms == ()
    assert reading.voltage == pytest.approx(53.12, abs=0.06) and reading.current == pytest.approx(-12.34, abs=0.06)
    assert reading.soc == pytest.approx(0.42, abs=0.006) and reading.charge_full == pytest.approx(100.0, abs=0.6)
    assert reading.cells == pytest.approx([3.3 + 0.001 * i for i in range(16)])
    assert (max(reading.temperatures), min(reading.temperatures)) == pytest.approx((19.0, 11.0))
    assert reading.contactor is Contactor.CLOSED and reading.mode is Mode.DISCHARGING
    assert reading.max_charge_current == pytest.approx(100.0) and reading.max_discharge_power > 5000


def test_a_full_and_an_empty_cell_are_faults_and_block_their_direction(bench):
    device = bench.device()
    try:
        for cell, way in ((3.72, 'charge'), (2.5, 'discharge')):
            bench.plant.packs['a'] = PackSample(cells=(3.3,) * 15 + (cell,))
            reading = device.read(0.0)
            assert getattr(reading, f'max_{way}_current') == 0.0 and reading.alarms and reading.limit_reasons
            assert all(a.id.startswith(f'{device.prefix}.') for a in reading.alarms)
    finally:
        device.close()


def test_open_paths_are_shown(bench):
    bench.plant.packs['a'] = PackSample(charge_switch=False)
    device = bench.device()
    try:
        reading = device.read(0.0)
        assert reading.contactor is Contactor.DISCHARGE_ONLY and reading.max_charge_current == 0.0
    finally:
        device.close()


def test_damage_is_never_a_reading_and_it_comes_back(bench, monotonic_deadline):
    device = bench.device(timeout_s=0.3)
    over = monotonic_deadline()

    def answers(after: str) -> None:
        good = False
        while not good:
            assert not over(), after
            try:
                device.open()
                good = device.read(0.0) is not None
            except DeviceError:
                continue

    try:
        answers('start')
        for fault in ('flipped_bytes', 'truncated_frame', 'wrong_unit_id', 'no_answer'):
            bench.faults.inject(fault)
            with pytest.raises(DeviceError):
                device.read(0.0)
            bench.faults.clear()
            answers(fault)
    finally:
        device.close()


def test_read_only_sends_no_order(bench):
    device = bench.device(read_only=True)
    try:
        device.read(0.0)
        asked = bench.line.requests
        with pytest.raises((ReadOnlyError, Refused)):
            device.set_contactor(False, False)
        assert bench.line.requests == asked and bench.plant.pack('a').charge_switch
    finally:
        device.close()


def test_daly_switches_its_paths(tmp_path):
    bench = Bench('daly', tmp_path)
    device = bench.device()
    try:
        device.set_contactor(False, True)
        assert not bench.plant.pack('a').charge_switch and bench.plant.pack('a').discharge_switch
        assert device.read(0.0).contactor is Contactor.DISCHARGE_ONLY
        device.set_contactor(True, True)
        assert device.read(0.0).contactor is Contactor.CLOSED
    finally:
        device.close()
        bench.line.stop()


def test_unplugged_in_the_middle_and_plugged_in_again(graph, tmp_path):
    bench = Bench('jk_pb', tmp_path)
    node = graph.add(node_type(jk.JkPbBms), 'bms', {
        'address': bench.address, 'period': 0.1, 'timeout_s': 0.3, 'late_s': 0.3, 'errors_to_fault': 1})
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bms/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'a good status')
    bench.faults.inject('disconnect')
    graph.wait(lambda: any(node.faults.get(f'comm.{k}') for k in ('disconnected', 'timeout')), 'a fault')
    bench.faults.clear()
    count = len(statuses)
    graph.wait(lambda: len(statuses) > count and statuses[-1].quality == 0 and not node.faults.get('comm.disconnected'),
               'good again without a restart')
    bench.line.stop()


# -- garbage --------------------------------------------------------------------------------------------

PARSERS = {
    'daly': lambda d: [daly.find(d, 0x90), daly.find_series(d, 0x95, 4)],
    'jk': lambda d: jk.snapshot(jk.parse_record(f)) if (f := jk.find_record(d)) else None,
    'jk_pb': lambda d: jk.pb_snapshot(jk.pb_check(f)) if (f := jk.pb_find(d, 1, 0x20, 2)) else None,
    'pylontech': lambda d: pylontech.parse_analog(pylontech.parse(f, 2)) if (f := pylontech.find(d)) else None,
    'seplos': lambda d: pylontech.parse_seplos(pylontech.parse(f, 0)) if (f := pylontech.find(d)) else None,
    'jbd_up16s': lambda d: jbd_up16s.parse_status(jbd_up16s.parse(f)) if (f := jbd_up16s.find(d, 1, 0x78)) else None,
}
REQUESTS = {'daly': daly.build(0x90), 'jk': jk.READ_ALL, 'jk_pb': jk.pb_request(1, 0x20),
            'pylontech': pylontech.build(2, 0x42, b'\x02'), 'seplos': pylontech.build(0, 0x42, b'\x01'),
            'jbd_up16s': jbd_up16s.build(1, *jbd_up16s.STATUS)}


@pytest.mark.parametrize('kind', sorted(PARSERS))
@settings(max_examples=150)
@given(data=st.data())
def test_garbage_and_damaged_answers_give_only_device_errors(kind, data):
    cls, address = KINDS[kind]
    answer, _ = cls(StaticPlant(), 'a', DeviceFaults(), address).answer(REQUESTS[kind])
    assert answer is not None and PARSERS[kind](answer) is not None
    frame = bytearray(answer)
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    frame = frame[data.draw(st.integers(0, 3)):data.draw(st.integers(0, len(frame)))]
    for hostile in (bytes(frame), data.draw(st.binary(max_size=64)), data.draw(st.binary(max_size=30)) + bytes(frame)):
        try:
            PARSERS[kind](hostile)
        except DeviceError:
            pass
