"""The simulated JBD BMS alone, and driver and simulator together over a real pseudo terminal."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from bess_core.values import Contactor, Mode
from bess_drivers.device import (
    BadChecksum,
    BadFrame,
    BadValue,
    DeviceError,
    Disconnected,
    NoAnswer,
    Refused,
)
from bess_drivers.serial.jbd import (
    JbdBattery,
    JbdParams,
    build_fet_control,
    build_read,
    build_write,
)
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.jbd import (
    CELL_OV,
    CELL_UV,
    CHARGE_OC,
    CHARGE_OT,
    FET_LOCK,
    JbdProtection,
    JbdSimulator,
    RequestParser,
    protection_bits,
)
from bess_sim.plant_api import PackSample, StaticPlant

UNIT = 'unit1'


def sample(**changes: object) -> PackSample:
    values: dict[str, object] = {
        'voltage': 52.8,
        'current': 12.34,
        'charge': 55.5,
        'charge_full': 111.0,
        'cells': tuple(3.30 + i / 1000 for i in range(16)),
        'temperatures': (21.5, -3.2),
        'balancing': (False,) * 15 + (True,),
        'cycles': 77,
    }
    return PackSample(**(values | changes))  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = monotonic() + within_s
    pause = threading.Event()
    while not condition():
        assert monotonic() < deadline, 'condition did not come true in time'
        pause.wait(0.005)


@dataclass
class Bench:
    plant: StaticPlant
    faults: DeviceFaults
    simulator: JbdSimulator
    link: Path
    battery: JbdBattery


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    plant, faults = StaticPlant(packs={UNIT: sample()}), DeviceFaults()
    simulator = JbdSimulator(plant, UNIT, faults, name='JBD-TEST', baud=115200)
    link, stop = tmp_path / 'dev' / 'jbd', threading.Event()
    thread = threading.Thread(target=simulator.serve, args=(str(link), stop))
    thread.start()
    battery = JbdBattery(JbdParams(address=f'serial:{link}?baud=9600', timeout_s=0.3, late_s=0.6))
    try:
        wait_for(link.is_symlink)
        battery.open()
        yield Bench(plant, faults, simulator, link, battery)
    finally:
        battery.close()
        stop.set()
        thread.join(timeout=5.0)
    assert not thread.is_alive()
    assert not link.is_symlink()


def read_again(battery: JbdBattery, within_s: float = 5.0) -> float:
    """Poll as a bus does until it works; returns the current."""
    deadline = monotonic() + within_s
    while True:
        try:
            battery.open()
            return battery.read(0.0).current
        except (Disconnected, NoAnswer):
            assert monotonic() < deadline, 'no recovery in time'
            threading.Event().wait(0.02)


# Driver and simulator ---------------------------------------------------------------------------


def test_the_driver_reads_what_the_pack_is(bench: Bench) -> None:
    identity = bench.battery.identify()
    assert (identity.manufacturer, identity.model, identity.version) == ('JBD', 'JBD-TEST', '3.0')
    reading = bench.battery.read(100.0)
    assert (reading.time, reading.newest) == (100.0, 100.0)
    assert (reading.voltage, reading.current) == (52.8, 12.34)
    assert reading.power == pytest.approx(52.8 * 12.34)
    assert (reading.charge, reading.charge_full, reading.soc) == (55.5, 111.0, 0.5)
    assert reading.cells == pytest.approx(sample().cells)
    assert reading.temperatures == (21.5, -3.2) and reading.balancing == sample().balancing
    assert reading.contactor is Contactor.CLOSED and reading.mode is Mode.CHARGING
    assert reading.max_charge_current == 0.0  # -3.2 degC is too cold for the driver's default
    assert reading.alarms == ()


@pytest.mark.parametrize('current', [-327.68, -0.01, 0.0, 327.67])
def test_current_keeps_its_sign_on_the_way(bench: Bench, current: float) -> None:
    bench.plant.packs[UNIT] = sample(
        current=current, max_charge_current=500.0, max_discharge_current=500.0
    )
    assert bench.battery.read(0.0).current == current


def test_cells_can_be_read_less_often_and_tell_their_age(bench: Bench) -> None:
    battery = JbdBattery(JbdParams(address=str(bench.link), cells_every=2))
    bench.battery.close()
    battery.open()
    times = [(r.time, r.newest) for r in map(battery.read, (1.0, 2.0, 3.0))]
    battery.close()
    assert times == [(1.0, 1.0), (1.0, 2.0), (3.0, 3.0)]
    assert bench.simulator.requests == 5


@pytest.mark.parametrize(
    ('charge', 'discharge', 'contactor'),
    [
        (True, False, Contactor.CHARGE_ONLY),
        (False, True, Contactor.DISCHARGE_ONLY),
        (False, False, Contactor.OPEN),
    ],
)
def test_contactor(bench: Bench, charge: bool, discharge: bool, contactor: Contactor) -> None:
    bench.battery.set_contactor(charge, discharge)
    pack = bench.plant.pack(UNIT)
    assert (pack.charge_switch, pack.discharge_switch) == (charge, discharge)
    reading = bench.battery.read(0.0)
    assert reading.contactor is contactor
    assert [alarm.id for alarm in reading.alarms] == ['jbd.fet_lock']
    bench.battery.set_contactor(True, True)
    assert bench.battery.read(0.0).contactor is Contactor.CLOSED


def test_contactor_that_a_protection_holds_open_is_not_confirmed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('bess_drivers.serial.jbd.CONFIRM_S', 0.3)
    bench.plant.packs[UNIT] = sample(cells=(3.3,) * 15 + (3.8,))
    with pytest.raises(Refused, match='cell_overvoltage'):
        bench.battery.set_contactor(True, True)


def test_contactor_order_gets_through_a_disturbed_line(bench: Bench) -> None:
    bench.faults.inject('flipped_bytes', for_s=0.4)
    bench.battery.set_contactor(False, True)
    assert bench.plant.pack(UNIT).charge_switch is False


def test_overvoltage_opens_the_charge_path_and_closes_it_again(bench: Bench) -> None:
    bench.plant.packs[UNIT] = sample(cells=(3.3,) * 6 + (3.76,) + (3.3,) * 9)
    wait_for(lambda: not bench.plant.pack(UNIT).charge_switch)
    reading = bench.battery.read(0.0)
    assert reading.contactor is Contactor.DISCHARGE_ONLY and reading.max_charge_current == 0.0
    (alarm,) = reading.alarms
    assert alarm.id == 'jbd.cell_overvoltage' and 'cell 7 at 3.760 V' in alarm.text
    bench.plant.packs[UNIT] = sample(charge_switch=False)
    wait_for(lambda: bench.plant.pack(UNIT).charge_switch)
    assert bench.battery.read(0.0).alarms == ()


def test_a_cell_that_is_not_measured_is_no_value(bench: Bench) -> None:
    bench.plant.packs[UNIT] = sample(cells=(3.3,) * 15 + (float('nan'),))
    with pytest.raises(BadValue, match='cell 16'):
        bench.battery.read(0.0)


@pytest.mark.parametrize(
    ('fault', 'error'),
    [
        ('no_answer', NoAnswer),
        ('late_answer', NoAnswer),
        ('wrong_unit_id', BadFrame),
        ('modbus_exception', Refused),
        ('flipped_bytes', BadChecksum),
        ('truncated_frame', NoAnswer),
    ],
)
def test_each_fault_is_its_error_and_passes(
    bench: Bench, fault: str, error: type[DeviceError]
) -> None:
    assert bench.battery.read(0.0).current == 12.34
    bench.faults.inject(fault, 0.5 if fault == 'late_answer' else float('nan'))
    with pytest.raises(error) as caught:
        bench.battery.read(1.0)
    assert type(caught.value).kind == error.kind
    bench.faults.clear(fault)
    bench.plant.pack(UNIT).current = -5.0
    # Nothing older than the end of the fault may come back, least of all the late answer.
    assert read_again(bench.battery) == -5.0


@pytest.mark.parametrize('delay_s', [0.3, 0.5, 0.9])
def test_late_answers_never_pass_as_fresh(bench: Bench, delay_s: float) -> None:
    """The current counts up; an accepted reading is never older than its own question."""
    battery = JbdBattery(JbdParams(address=str(bench.link), timeout_s=0.2, late_s=0.3))
    bench.battery.close()
    battery.open()
    bench.faults.inject('late_answer', delay_s, for_s=1.5)
    step, accepted, deadline = 0, 0, monotonic() + 10.0
    while accepted < 3:
        assert monotonic() < deadline, 'no recovery in time'
        step += 1
        bench.plant.pack(UNIT).current = step / 100
        try:
            battery.open()
            reading = battery.read(0.0)
        except (NoAnswer, BadFrame, Disconnected):
            threading.Event().wait(0.02)  # as a bus paces its polls
            continue
        assert reading.current == step / 100
        accepted += 1
    battery.close()
    assert step > 3


def test_one_lost_answer_costs_no_more_than_the_wait_for_a_late_one(bench: Bench) -> None:
    bench.faults.inject('no_answer')
    started = monotonic()
    with pytest.raises(NoAnswer):
        bench.battery.read(0.0)
    bench.faults.clear()
    assert read_again(bench.battery) == 12.34
    assert monotonic() - started < 1.6  # late_s is 0.6 s; telling old answers apart takes 2.4 s


@pytest.mark.parametrize(
    ('fault', 'error', 'pause_s'),
    [('flipped_bytes', BadChecksum, 0.3), ('wrong_unit_id', BadFrame, 1.2)],
)
def test_a_lasting_disturbance_keeps_its_name_and_ends_soon(
    bench: Bench, fault: str, error: type[DeviceError], pause_s: float
) -> None:
    bench.faults.inject(fault)
    for _ in range(6):
        with pytest.raises(error):
            bench.battery.read(0.0)
    bench.faults.clear()
    started = monotonic()
    while True:
        try:
            assert bench.battery.read(0.0).current == 12.34
            break
        except error:
            threading.Event().wait(0.02)
    assert monotonic() - started < pause_s


def test_polls_of_a_closed_port_owe_nothing(bench: Bench) -> None:
    bench.battery.close()
    for _ in range(5):
        with pytest.raises(Disconnected):
            bench.battery.read(0.0)
    bench.battery.open()
    assert bench.battery.read(0.0).current == 12.34
    assert bench.simulator.requests == 2


def test_frozen_values_stay_until_cleared(bench: Bench) -> None:
    bench.faults.inject('frozen_value')
    assert bench.battery.read(0.0).current == 12.34
    bench.plant.pack(UNIT).current = 1.0
    assert bench.battery.read(1.0).current == 12.34
    bench.faults.clear()
    assert bench.battery.read(2.0).current == 1.0


def test_disconnect_removes_the_port_and_brings_it_back(bench: Bench) -> None:
    assert bench.battery.read(0.0).current == 12.34
    bench.faults.inject('disconnect')
    wait_for(lambda: not bench.link.is_symlink())
    with pytest.raises(Disconnected):
        bench.battery.read(1.0)
    with pytest.raises(Disconnected):
        bench.battery.open()
    bench.faults.clear('disconnect')
    bench.plant.pack(UNIT).current = 2.0
    assert read_again(bench.battery) == 2.0


def test_devices_that_echo_a5_are_understood(tmp_path: Path) -> None:
    plant = StaticPlant(packs={UNIT: sample()})
    simulator = JbdSimulator(plant, UNIT, DeviceFaults(), echo_read=True, baud=0)
    link, stop = tmp_path / 'jbd', threading.Event()
    thread = threading.Thread(target=simulator.serve, args=(str(link), stop))
    thread.start()
    battery = JbdBattery(JbdParams(address=str(link)))
    try:
        wait_for(link.is_symlink)
        battery.open()
        assert battery.read(0.0).current == 12.34
        battery.set_contactor(False, False)
        assert battery.read(0.0).mode is Mode.OFF
    finally:
        battery.close()
        stop.set()
        thread.join(timeout=5.0)


def test_the_link_replaces_an_old_link_but_no_file(tmp_path: Path) -> None:
    simulator = JbdSimulator(StaticPlant(), UNIT, DeviceFaults())
    precious = tmp_path / 'file'
    precious.write_text('keep')
    with pytest.raises(FileExistsError):
        simulator.serve(str(precious), threading.Event())
    assert precious.read_text() == 'keep'
    old, stop = tmp_path / 'jbd', threading.Event()
    old.symlink_to('/dev/gone')
    thread = threading.Thread(target=simulator.serve, args=(str(old), stop))
    thread.start()
    wait_for(lambda: old.exists())
    stop.set()
    thread.join(timeout=5.0)
    assert not old.is_symlink()


# Simulator alone --------------------------------------------------------------------------------


def ask(simulator: JbdSimulator, request: bytes, now: float = 10.0) -> bytes:
    simulator.receive(request, now)
    answer = b''.join(piece for _, piece in simulator._outbox)
    simulator._outbox.clear()
    return answer


@pytest.fixture
def alone() -> JbdSimulator:
    return JbdSimulator(
        StaticPlant(packs={UNIT: sample()}), UNIT, DeviceFaults(), name='0123456789'
    )


def test_published_name_answer(alone: JbdSimulator) -> None:
    assert ask(alone, build_read(5)) == bytes.fromhex('dd05000a30313233343536373839fde977')


def test_published_cells_answer(alone: JbdSimulator) -> None:
    alone.plant.pack(UNIT).cells = (3.430, 3.425, 3.432, 3.417)
    assert ask(alone, build_read(4)) == bytes.fromhex('dd0400080d660d610d680d59fe3c77')


@pytest.mark.parametrize(
    ('request_', 'status'),
    [
        (build_read(0x77), 0x80),
        (build_read(0x10), 0x80),
        (build_write(0x10, b'\x00\x00'), 0x80),
        (build_write(0x00, b'\x56\x78'), 0x00),
        (build_write(0x00, b'\x56\x79'), 0x80),
        (build_write(0x01, b'\x00\x00'), 0x80),  # was not entered
        (build_fet_control(True, True), 0x00),
        (build_write(0xE1, b'\x00\x04'), 0x80),
        (build_write(0xE1, b'\x00'), 0x80),
    ],
)
def test_status_of_answers(alone: JbdSimulator, request_: bytes, status: int) -> None:
    answer = ask(alone, request_)
    assert answer[:4] == bytes((0xDD, request_[2], status, 0))


def test_factory_mode_is_left_after_it_was_entered(alone: JbdSimulator) -> None:
    for request in (build_write(0, b'\x56\x78'), build_write(1, b'\x28\x28')):
        assert ask(alone, request)[2] == 0


def test_garbage_is_resynchronised(alone: JbdSimulator) -> None:
    good = ask(alone, build_read(5))
    assert ask(alone, b'\x00\xdd\xa5\x03\xff' + build_read(5)) == good
    assert ask(alone, build_read(5)[:4], 20.0) == b''
    assert ask(alone, build_read(5), 21.0) == good
    assert ask(alone, build_read(5)[:3], 30.0) + ask(alone, build_read(5)[3:], 30.05) == good
    assert ask(alone, build_read(5)[:-2] + b'\x00\x77', 40.0) == b''


def test_10000_random_byte_strings_make_no_error() -> None:
    rng, parser, now = random.Random(2), RequestParser(), 0.0
    for _ in range(10_000):
        data = bytearray(rng.randbytes(rng.randrange(40)))
        if data and rng.random() < 0.7:
            data[0] = 0xDD
        now += rng.random() / 5
        parser.feed(bytes(data), now)
    assert parser.feed(build_read(3), now + 1.0) == [(0xA5, 3, b'')]


def test_answers_take_their_time_on_the_line(alone: JbdSimulator) -> None:
    alone.receive(build_read(4), 10.0)
    (first, piece), (second, _), (last, _) = alone._outbox
    assert len(piece) == 16
    assert first == pytest.approx(10.0 + 160 / 9600) and second == pytest.approx(10.0 + 320 / 9600)
    assert last == pytest.approx(10.0 + 390 / 9600)


def test_an_answer_does_not_overtake_a_late_one(alone: JbdSimulator) -> None:
    alone.faults.inject('late_answer', 2.0)
    alone.receive(build_read(5), 10.0)
    alone.faults.clear()
    alone.receive(build_read(4), 10.5)
    times = [due for due, _ in alone._outbox]
    assert times == sorted(times) and times[0] > 12.0
    assert [piece[1] for _, piece in alone._outbox if piece[0] == 0xDD] == [5, 4]


def test_protection_has_hysteresis() -> None:
    limits = JbdProtection()

    def after(bits: int, cell: float) -> int:
        return protection_bits(bits, sample(cells=(3.3,) * 15 + (cell,)), limits)

    assert after(0, 3.74) == 0
    assert after(0, 3.76) == CELL_OV
    assert after(CELL_OV, 3.60) == CELL_OV
    assert after(CELL_OV, 3.50) == 0
    assert after(0, 2.49) == CELL_UV
    assert after(CELL_UV, 2.7) == CELL_UV
    assert after(CELL_UV, 2.9) == 0
    assert protection_bits(0, sample(temperatures=(60.5, 20.0)), limits) == CHARGE_OT


def test_overcurrent_is_held_for_its_time(alone: JbdSimulator) -> None:
    alone.plant.pack(UNIT).current = 130.0
    alone.protect(100.0)
    assert alone._protections == CHARGE_OC and not alone.plant.pack(UNIT).charge_switch
    alone.plant.pack(UNIT).current = 0.0
    alone.protect(120.0)
    assert alone._protections == CHARGE_OC
    alone.protect(131.0)
    assert alone._protections == 0 and alone.plant.pack(UNIT).charge_switch


def test_switches_that_a_scenario_opened_stay_open(alone: JbdSimulator) -> None:
    alone.plant.pack(UNIT).charge_switch = False
    alone.protect(1.0)
    alone.protect(2.0)
    assert alone.plant.pack(UNIT).charge_switch is False
    ask(alone, build_fet_control(True, False))
    assert alone._protections == FET_LOCK
