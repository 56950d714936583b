"""JBD codec against published frames, and the serial link against a scripted line."""

from __future__ import annotations

import os
import random
import select
import threading
import tty
from collections.abc import Callable, Iterator
from datetime import date
from math import isnan
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Contactor, Mode, Quality, Severity
from bess_drivers.device import (
    BadChecksum,
    BadFrame,
    BadValue,
    DeviceError,
    Disconnected,
    NoAnswer,
    ReadOnlyError,
    Refused,
)
from bess_drivers.serial.jbd import (
    JbdBattery,
    JbdParams,
    build_fet_control,
    build_read,
    build_write,
    diagnose,
    find_answer,
    parse_basic,
    parse_cells,
    parse_frame,
    parse_name,
    reading_from,
)
from bess_drivers.serial.jbd_codec import PROTECTIONS, checksum
from bess_drivers.serial.link import Incomplete, SerialLink, parse_address

BASIC_15S = bytes.fromhex(
    'DD A5 00 1B 17 00 00 00 02 D0 03 E8 00 00 20 78 00 00 00 00 00 00 10 48 03 0F 02'
    '0B 76 0B 82 FB FF 77'
)
CELLS_15S = bytes.fromhex(
    'DD A5 00 1E 0F66 0F63 0F63 0F64 0F3E 0F63 0F37 0F5B 0F65 0F3B 0F63 0F63 0F3C 0F66 0F3DF9 F9 77'
)
MV_15S = (3942, 3939, 3939, 3940, 3902, 3939, 3895, 3931, 3941, 3899, 3939, 3939, 3900, 3942, 3901)
BASIC_4S = bytes.fromhex('dd03001d0618fee101f201f4002a2c7c00000000000080640304030b8b0b8a0b84f88477')
CELLS_4S = bytes.fromhex('dd0400080d660d610d680d59fe3c77')
NAME_FRAME = bytes.fromhex('dd05000a30313233343536373839fde977')


def frame_of(register: int, payload: bytes, status: int = 0) -> bytes:
    body = bytes((status, len(payload))) + payload
    return bytes((0xDD, register)) + body + checksum(body).to_bytes(2, 'big') + b'\x77'


def basic_payload(**changes: int) -> bytes:
    """The published 4S payload with single bytes replaced: key `b<offset>`."""
    payload = bytearray(parse_frame(BASIC_4S, 3))
    for key, value in changes.items():
        payload[int(key[1:])] = value
    return bytes(payload)


# Published frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('request_', 'published'),
    [
        (build_read(0x03), 'DD A5 03 00 FF FD 77'),
        (build_read(0x04), 'DD A5 04 00 FF FC 77'),
        (build_read(0x05), 'DD A5 05 00 FF FB 77'),
        (build_write(0x00, b'\x56\x78'), 'DD 5A 00 02 56 78 FF 30 77'),
        (build_write(0x01, b'\x00\x00'), 'DD 5A 01 02 00 00 FF FD 77'),
        (build_write(0x01, b'\x28\x28'), 'DD 5A 01 02 28 28 FF AD 77'),
        (build_fet_control(charge=True, discharge=True), 'DD 5A E1 02 00 00 FF 1D 77'),
        (build_fet_control(charge=False, discharge=True), 'DD 5A E1 02 00 01 FF 1C 77'),
        (build_fet_control(charge=True, discharge=False), 'DD 5A E1 02 00 02 FF 1B 77'),
        (build_fet_control(charge=False, discharge=False), 'DD 5A E1 02 00 03 FF 1A 77'),
    ],
)
def test_requests_equal_the_published_bytes(request_: bytes, published: str) -> None:
    assert request_ == bytes.fromhex(published)


def test_published_basic_information_of_15_cells() -> None:
    basic = parse_basic(parse_frame(BASIC_15S, 0x03))
    assert (basic.voltage, basic.current, basic.remaining, basic.full) == (58.88, 0.0, 7.2, 10.0)
    assert (basic.cycles, basic.produced, basic.version) == (0, date(2016, 3, 24), '1.0')
    assert not any(basic.balancing) and len(basic.balancing) == 15
    assert basic.protections == 0 and basic.soc_shown == 0.72
    assert basic.charge_fet and basic.discharge_fet and basic.cell_count == 15
    assert basic.temperatures == (20.3, 21.5)


def test_published_basic_information_of_4_cells_discharging() -> None:
    basic = parse_basic(parse_frame(BASIC_4S, 0x03))
    assert (basic.voltage, basic.current, basic.remaining, basic.full) == (15.6, -2.87, 4.98, 5.0)
    assert (basic.cycles, basic.produced, basic.soc_shown) == (42, date(2022, 3, 28), 1.0)
    assert basic.charge_fet and basic.discharge_fet and basic.cell_count == 4
    assert basic.temperatures == (22.4, 22.3, 21.7)


def test_published_cells_and_name() -> None:
    cells = parse_cells(parse_frame(CELLS_15S, 0x04))
    assert cells == tuple(mv / 1000 for mv in MV_15S)
    assert sum(cells) == pytest.approx(58.888)
    assert parse_cells(parse_frame(CELLS_4S, 0x04)) == (3.430, 3.425, 3.432, 3.417)
    assert parse_name(parse_frame(NAME_FRAME, 0x05)) == '0123456789'


@pytest.mark.parametrize(
    ('raw', 'amps'), [(0x00C8, 2.0), (0x03E8, 10.0), (0xFF38, -2.0), (0xFC18, -10.0)]
)
def test_current_is_signed_16_bit(raw: int, amps: float) -> None:
    assert parse_basic(basic_payload(b2=raw >> 8, b3=raw & 0xFF)).current == amps


def test_published_frames_make_a_full_reading() -> None:
    params = JbdParams(cell_voltage_high=4.2, cell_voltage_low=3.0, max_charge_current=20.0)
    basic, cells = parse_basic(parse_frame(BASIC_15S, 3)), parse_cells(parse_frame(CELLS_15S, 4))
    reading = reading_from(basic, cells, params, 10.0, 12.0)
    assert (reading.time, reading.newest, reading.quality) == (10.0, 12.0, Quality.OK)
    assert reading.charge == 7.2 and reading.soc == pytest.approx(0.72)
    assert reading.energy == pytest.approx(7.2 * 58.88) and reading.energy_full == pytest.approx(
        588.8
    )
    assert reading.contactor is Contactor.CLOSED and reading.mode is Mode.IDLE
    assert reading.max_charge_current == 20.0 and reading.max_charge_power == pytest.approx(1177.6)
    assert (reading.cell_voltage_min, reading.cell_voltage_min_index) == (3.895, 6)
    assert (reading.cell_voltage_max, reading.cell_voltage_max_index) == (3.942, 0)
    assert (reading.temperature, reading.temperature_min) == (21.5, 20.3)
    assert reading.alarms == () and reading.limit_reasons == [] and isnan(reading.soh)


# Meaning ----------------------------------------------------------------------------------------

CELLS_OK = (3.3, 3.31, 3.29, 3.3)


@pytest.mark.parametrize('bit', range(16))
def test_each_protection_bit_is_one_alarm(bit: int) -> None:
    basic = parse_basic(basic_payload(b16=(1 << bit) >> 8, b17=(1 << bit) & 0xFF))
    reading = reading_from(basic, CELLS_OK, JbdParams(), 0.0, 0.0)
    (alarm,) = reading.alarms
    if bit >= len(PROTECTIONS):
        assert alarm.id == f'jbd.protection_bit_{bit}'
        return
    known = PROTECTIONS[bit]
    assert alarm.id == f'jbd.{known.name}' and alarm.severity is known.severity
    assert (reading.max_charge_current == 0.0) == known.blocks_charge
    assert (reading.max_discharge_current == 0.0) == known.blocks_discharge


def test_protection_names_in_bit_order() -> None:
    names = [p.name for p in PROTECTIONS]
    assert names[:4] == [
        'cell_overvoltage',
        'cell_undervoltage',
        'pack_overvoltage',
        'pack_undervoltage',
    ]
    assert names[8:] == [
        'charge_overcurrent', 'discharge_overcurrent', 'short_circuit', 'afe_error', 'fet_lock',
    ]  # fmt: skip
    critical = {p.name for p in PROTECTIONS if p.severity is Severity.CRITICAL}
    assert critical == {'short_circuit', 'afe_error'}


@pytest.mark.parametrize(
    ('fet', 'contactor', 'charge', 'discharge'),
    [
        (0, Contactor.OPEN, 0.0, 0.0),
        (1, Contactor.CHARGE_ONLY, 100.0, 0.0),
        (2, Contactor.DISCHARGE_ONLY, 0.0, 100.0),
        (3, Contactor.CLOSED, 100.0, 100.0),
    ],
)
def test_fets(fet: int, contactor: Contactor, charge: float, discharge: float) -> None:
    reading = reading_from(parse_basic(basic_payload(b20=fet)), CELLS_OK, JbdParams(), 0.0, 0.0)
    assert reading.contactor is contactor
    assert (reading.max_charge_current, reading.max_discharge_current) == (charge, discharge)


@pytest.mark.parametrize(
    ('cell', 'charge', 'discharge', 'reason'),
    [
        (3.65, 0.0, 100.0, 'bms: cell 2 at 3.650 V, charging at 0%'),
        (3.60, 50.0, 100.0, 'bms: cell 2 at 3.600 V, charging at 50%'),
        (2.85, 100.0, 50.0, 'bms: cell 2 at 2.850 V, discharging at 50%'),
        (2.70, 100.0, 0.0, 'bms: cell 2 at 2.700 V, discharging at 0%'),
    ],
)
def test_limits_taper_with_the_extreme_cell(
    cell: float, charge: float, discharge: float, reason: str
) -> None:
    reading = reading_from(
        parse_basic(basic_payload()), (3.3, cell, 3.3, 3.3), JbdParams(), 0.0, 0.0
    )
    assert reading.max_charge_current == pytest.approx(charge)
    assert reading.max_discharge_current == pytest.approx(discharge)
    assert reading.limit_reasons == [reason]


def test_cold_and_hot_packs_are_limited() -> None:
    raw = 2731 - 50
    basic = parse_basic(basic_payload(b23=raw >> 8, b24=raw & 0xFF))
    reading = reading_from(basic, CELLS_OK, JbdParams(), 0.0, 0.0)
    assert reading.temperature_min == -5.0
    assert (reading.max_charge_current, reading.max_discharge_current) == (0.0, 100.0)
    raw = 2731 + 610
    basic = parse_basic(basic_payload(b23=raw >> 8, b24=raw & 0xFF))
    reading = reading_from(basic, CELLS_OK, JbdParams(), 0.0, 0.0)
    assert (reading.max_charge_current, reading.max_discharge_current) == (0.0, 0.0)


def test_balance_bits_are_in_cell_order() -> None:
    assert parse_basic(basic_payload(b13=0b0101)).balancing == (True, False, True, False)
    payload = basic_payload(b0=0x14, b1=0x00, b13=1, b12=0x80, b15=1, b21=17)
    assert [i for i, on in enumerate(parse_basic(payload).balancing) if on] == [0, 15, 16]


def test_shown_soc_that_contradicts_the_charge_is_an_alarm() -> None:
    reading = reading_from(parse_basic(basic_payload(b19=50)), CELLS_OK, JbdParams(), 0.0, 0.0)
    assert [a.id for a in reading.alarms] == ['jbd.soc_mismatch']
    assert reading.soc == pytest.approx(0.996)


# Bad values and frames --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'what'),
    [
        ({'b19': 101}, 'state of charge'),
        ({'b21': 0}, 'cell count'),
        ({'b21': 33}, 'cell count'),
        ({'b22': 9}, 'NTC count'),
        ({'b23': 0xFF}, 'temperature 1'),
        ({'b23': 0, 'b24': 0}, 'temperature 1'),
        ({'b0': 0, 'b1': 0}, 'pack voltage'),
        ({'b0': 0x20}, 'pack voltage'),
        ({'b6': 0, 'b7': 0}, 'full capacity'),
        ({'b4': 0x30}, 'remaining capacity'),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(BadValue, match=what):
        parse_basic(basic_payload(**changes))


@pytest.mark.parametrize('payload', ['', '0000', '01F3', '1389', 'FFFF', '0CE4' * 33])
def test_impossible_cells_are_refused(payload: str) -> None:
    with pytest.raises(BadValue):
        parse_cells(bytes.fromhex(payload))


def test_bad_names_counts_and_lengths_are_refused() -> None:
    for name in (b'x' * 32, b'\x01', b'\xff\xfe'):
        with pytest.raises(BadValue):
            parse_name(name)
    with pytest.raises(BadFrame):
        parse_cells(b'\x0c')
    with pytest.raises(BadFrame):
        parse_basic(basic_payload(b22=4))
    with pytest.raises(BadValue, match='3 cell voltages'):
        reading_from(parse_basic(basic_payload()), (3.3, 3.3, 3.3), JbdParams(), 0.0, 0.0)


@pytest.mark.parametrize(
    ('frame', 'error'),
    [
        (b'', BadFrame),
        (frame_of(4, b'\x0c\xe4')[:-1] + b'\x78', BadFrame),
        (b'\xdc' + frame_of(4, b'\x0c\xe4')[1:], BadFrame),
        (frame_of(4, b'\x0c\xe4') + b'\x77', BadFrame),
        (frame_of(3, b'\x0c\xe4'), BadFrame),
        (frame_of(4, b'\x0c\xe4')[:-3] + b'\x00\x00\x77', BadChecksum),
        (frame_of(4, b'', 0x80), Refused),
    ],
)
def test_bad_frames_are_refused(frame: bytes, error: type[DeviceError]) -> None:
    with pytest.raises(error):
        parse_frame(frame, 4)


@pytest.mark.parametrize('frame', [BASIC_4S, CELLS_4S, NAME_FRAME])
def test_no_damaged_byte_is_accepted(frame: bytes) -> None:
    for at in range(len(frame)):
        for mask in (0xFF, *(1 << bit for bit in range(8))):
            damaged = frame[:at] + bytes((frame[at] ^ mask,)) + frame[at + 1 :]
            with pytest.raises(DeviceError):
                parse_frame(damaged, frame[1])


def parsers() -> list[Callable[[bytes], object]]:
    return [
        lambda d: parse_frame(d, 3),
        parse_basic,
        parse_cells,
        parse_name,
        lambda d: find_answer(d, 3, build_read(3)),
        lambda d: diagnose(d, 3, build_read(3)),
    ]


def survive(data: bytes) -> None:
    for parse in parsers():
        try:
            parse(data)
        except DeviceError:
            continue
    found = None
    try:
        found = find_answer(data, 3)
    except DeviceError:
        return
    if found is not None:
        assert checksum(found[2:-3]) == int.from_bytes(found[-3:-1], 'big')


def test_10000_random_byte_strings_raise_nothing_but_device_errors() -> None:
    rng = random.Random(1)
    for _ in range(10_000):
        data = bytearray(rng.randbytes(rng.randrange(80)))
        if rng.random() < 0.7 and len(data) > 7:  # far enough into the parser
            data[0], data[1], data[3], data[-1] = 0xDD, 3, len(data) - 7, 0x77
            if rng.random() < 0.5:
                data[2] = 0
                data[-3:-1] = checksum(bytes(data[2:-3])).to_bytes(2, 'big')
        survive(bytes(data))


@settings(max_examples=200)
@given(st.binary(max_size=70))
def test_every_accepted_payload_makes_a_possible_reading(payload: bytes) -> None:
    try:
        basic = parse_basic(payload)
    except DeviceError:
        return
    assert 0.0 <= basic.soc_shown <= 1.0 and 1 <= basic.cell_count <= 32
    reading = reading_from(basic, (3.3,) * basic.cell_count, JbdParams(), 0.0, 0.0)
    assert 0.0 <= reading.soc <= 1.0 and reading.voltage > 0.0 and reading.max_charge_current >= 0.0


@settings(max_examples=100)
@given(noise=st.binary(max_size=30).filter(lambda b: 0xDD not in b), echo=st.booleans())
def test_an_answer_is_found_behind_noise_and_echo(noise: bytes, echo: bool) -> None:
    request = build_read(3)
    stream = (request if echo else b'') + noise + BASIC_4S
    assert find_answer(stream, 3, request) == BASIC_4S
    assert find_answer(stream[:-1], 3, request) is None


def test_an_answer_is_found_behind_a_false_start_and_a_stranger() -> None:
    assert find_answer(b'\xdd\x03\x00\xff' + BASIC_4S, 3) == BASIC_4S
    assert find_answer(CELLS_4S + BASIC_4S, 3) == BASIC_4S
    assert find_answer(CELLS_4S, 3) is None
    # A read request alone looks like a refusal with the register as status: it is only the echo.
    assert find_answer(build_read(3), 3, build_read(3)) is None


# Parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'timeout_s': 0.0}, 'timeout_s is 0.0 s, allowed 0.05..10 s'),
        ({'max_charge_current': -1.0}, 'max_charge_current'),
        ({'max_charge_current': float('nan')}, 'max_charge_current'),
        ({'cells_every': 0}, 'cells_every'),
        ({'cell_voltage_low': 3.7}, 'must be below cell_voltage_high'),
    ],
)
def test_bad_parameters_are_named(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        JbdParams(**changes)  # type: ignore[arg-type]


def test_addresses() -> None:
    found = parse_address('serial:/dev/ttyUSB0?baud=115200&parity=E&stopbits=2')
    assert (found.path, found.baud, found.parity, found.stopbits) == (
        '/dev/ttyUSB0',
        115200,
        'E',
        2,
    )
    assert parse_address('/dev/ttyS1').baud == 9600
    for bad in (
        'serial:',
        'serial:/dev/x?baud=fast',
        'serial:/dev/x?parity=X',
        '/dev/x?stopbits=3',
        '/dev/x?b=1',
    ):
        with pytest.raises(ValueError, match='address'):
            parse_address(bad)


# Link -------------------------------------------------------------------------------------------


class Line:
    """The far end of a serial line, played by the test."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.master)
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def sniff(self, size: int, within_s: float = 2.0) -> bytes:
        """Up to `size` bytes that arrived, waiting until they are there or the time is over."""
        data, deadline = b'', monotonic() + within_s
        while len(data) < size and (left := deadline - monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                data += os.read(self.master, size - len(data))
        return data

    def answer(self, *steps: tuple[int, bytes]) -> threading.Thread:
        """In a thread: for each step wait for so many bytes, then send these."""

        def play() -> None:
            for size, data in steps:
                if len(self.sniff(size)) == size:
                    self.send(data)

        thread = threading.Thread(target=play)
        thread.start()
        return thread

    def hang_up(self) -> None:
        for fd in (self.master, self.slave):
            os.close(fd)
        self.master = self.slave = -1


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    if line.master >= 0:
        line.hang_up()


def one_line(data: bytes) -> bytes | None:
    return data[: data.index(b'\n') + 1] if b'\n' in data else None


def opened(line: Line, **options: float) -> SerialLink:
    link = SerialLink(line.path, timeout_s=options.pop('timeout_s', 0.3), **options)  # type: ignore[arg-type]
    link.open()
    return link


def test_a_read_only_link_sends_no_byte_of_a_write(line: Line) -> None:
    battery = JbdBattery(JbdParams(address=line.path, timeout_s=0.2), read_only=True)
    battery.open()
    with pytest.raises(ReadOnlyError):
        battery.set_contactor(False, False)
    # What arrives first is the read that follows: nothing went out before it.
    with pytest.raises(NoAnswer):
        battery.read(0.0)
    assert line.sniff(64, within_s=0.1) == build_read(3)
    battery.close()


def test_stale_bytes_are_flushed_before_the_question(line: Line) -> None:
    link = opened(line)
    line.send(b'stale\n')
    assert select.select([line.slave], [], [], 1.0)[0]
    player = line.answer((2, b'fresh\n'))
    assert link.transact(b'?\n', one_line, write=False) == b'fresh\n'
    assert link.discarded == 6
    player.join()
    link.close()


def test_a_late_answer_is_never_the_answer_of_the_next_question(line: Line) -> None:
    link = opened(line, timeout_s=0.1, late_s=0.6)
    with pytest.raises(NoAnswer):
        link.transact(b'1\n', one_line, write=False)
    assert line.sniff(2) == b'1\n'
    line.send(b'late\n')
    answers: list[bytes] = []
    player = line.answer((2, b'right\n'))
    deadline = monotonic() + 3.0
    while not answers and monotonic() < deadline:
        try:
            answers.append(link.transact(b'2\n', one_line, write=False))
        except NoAnswer:
            continue
    player.join()
    assert answers == [b'right\n'] and link.discarded == 5
    link.close()


def test_the_debt_of_a_late_answer_survives_a_reconnect(line: Line) -> None:
    link = opened(line, timeout_s=0.1, late_s=5.0)
    with pytest.raises(NoAnswer):
        link.transact(b'1\n', one_line, write=False)
    assert line.sniff(2) == b'1\n'
    link.close()
    link.open()
    with pytest.raises(NoAnswer, match='listening'):
        link.transact(b'2\n', one_line, write=False)
    assert line.sniff(1, within_s=0.05) == b''
    link.close()


def test_cut_answer_is_incomplete_and_the_next_question_follows_soon(line: Line) -> None:
    link = opened(line, timeout_s=0.15, late_s=60.0)
    player = line.answer((2, b'cut'), (2, b'whole\n'))
    with pytest.raises(Incomplete) as caught:
        link.transact(b'1\n', one_line, write=False)
    assert caught.value.data == b'cut'
    assert link.transact(b'2\n', one_line, write=False) == b'whole\n'
    player.join()
    link.close()


def test_babble_is_bounded(line: Line) -> None:
    link = opened(line, timeout_s=5.0, max_frame=100)
    player = line.answer((2, b'x' * 3000))
    started = monotonic()
    with pytest.raises(BadFrame):
        link.transact(b'1\n', one_line, write=False)
    assert monotonic() - started < 2.0
    player.join()
    link.close()


def test_a_vanished_port_is_disconnected(line: Line) -> None:
    link = opened(line)
    line.hang_up()
    with pytest.raises(Disconnected):
        link.transact(b'1\n', one_line, write=False)
    assert not link.is_open
    with pytest.raises(Disconnected):
        link.transact(b'1\n', one_line, write=False)
    link.close()


def test_a_missing_or_taken_port_is_disconnected(line: Line) -> None:
    with pytest.raises(Disconnected, match='no-such-port'):
        SerialLink('/dev/no-such-port').open()
    link = opened(line)
    with pytest.raises(Disconnected):
        SerialLink(line.path).open()
    link.close()


def test_a_port_that_stays_silent_is_closed(line: Line) -> None:
    link = opened(line, timeout_s=0.05, late_s=0.05, reopen_after=3)
    for _ in range(2):
        with pytest.raises(NoAnswer):
            link.transact(b'1\n', one_line, write=False)
    with pytest.raises(Disconnected, match='3 questions'):
        link.transact(b'1\n', one_line, write=False)
    assert not link.is_open


def test_old_answers_are_told_apart_by_another_register(line: Line) -> None:
    """Even without the waiting time of the link an old 0x03 answer is not taken for a new one."""
    battery = JbdBattery(JbdParams(address=line.path, timeout_s=0.15, late_s=0.1))
    battery.open()
    with pytest.raises(NoAnswer):
        battery.read(0.0)
    assert line.sniff(7) == build_read(3)
    old = frame_of(3, basic_payload(b2=0, b3=0))
    # The old answer comes while the new question is open, in front of the new answers.
    player = line.answer((7, old + CELLS_4S), (7, BASIC_4S), (7, CELLS_4S))
    reading = battery.read(1.0)
    player.join()
    assert reading.current == -2.87 and reading.time == 1.0
    battery.close()
