"""IEC 61850: the bridge process (libiec61850) against a simulated server of an independent implementation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.values import Contactor, Mode
from bess_drivers.device import BadFrame, BadValue, DeviceError, Disconnected, NoAnswer, ReadOnlyError, Refused
from bess_drivers.driver_node import node_type
from bess_drivers.iec61850 import objects
from bess_drivers.iec61850.battery import Iec61850Battery, Iec61850Params, parse_address
from bess_drivers.iec61850.bridge import Bridge, find_bridge
from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PackSample, StaticPlant

INSTALLED = bool(find_bridge()) and all(importlib.util.find_spec(m) for m in ('pyiec61850', 'open61850'))
needs_library = pytest.mark.skipif(
    not INSTALLED, reason='needs pip install -r requirements/iec61850.txt ./iec61850_bridge (GPL, optional)')


# -- pure ------------------------------------------------------------------------------------------------


def test_addresses():
    assert parse_address('iec61850://10.0.0.7') == ('10.0.0.7', 102)
    assert parse_address('iec61850://bess:8102/') == ('bess', 8102)
    for wrong in ('', 'tcp://x:102', 'iec61850://', 'iec61850://x/y', 'iec61850://x:99999'):
        with pytest.raises(ValueError):
            parse_address(wrong)


def test_which_battery_is_meant():
    one = {'BESS1BAT': ['LLN0', 'DBAT1', 'SBAT1', 'ZBTC3'], 'BESS1PV': ['LLN0', 'DPVM1']}
    assert objects.choose(one) == ('BESS1BAT', 'DBAT1', {'DBAT': 'DBAT1', 'SBAT': 'SBAT1', 'ZBTC': 'ZBTC3'})
    two = {'A': ['DBAT1', 'DBAT2', 'SBAT1', 'SBAT2'], 'B': ['xZBAT1']}
    with pytest.raises(BadValue, match='more than one.*A/DBAT1, A/DBAT2, B/xZBAT1'):
        objects.choose(two)
    assert objects.choose(two, 'A', 'DBAT2') == ('A', 'DBAT2', {'DBAT': 'DBAT2', 'SBAT': 'SBAT2'})
    assert objects.choose(two, 'B') == ('B', 'xZBAT1', {'ZBAT': 'xZBAT1'})
    with pytest.raises(BadValue, match='no battery node'):
        objects.choose({'X': ['LLN0']})


def test_what_is_needed_and_what_is_invalid():
    good = {'voltage': 52.0, 'current': 4.0, 'charge_limit': 50.0, 'discharge_limit': 60.0}
    assert objects.snapshot(good, set(), (), True, -1.0, 0.0)[0].current == -4.0
    with pytest.raises(BadValue, match='current is invalid'):
        objects.snapshot(good, {'current'}, (), True, 1.0, 0.0)
    with pytest.raises(BadValue, match='voltage is missing'):
        objects.snapshot({'current': 4.0}, set(), (), True, 1.0, 0.0)
    lost, _ = objects.snapshot(good, {'charge_limit'}, (), True, 1.0, 0.0)
    assert lost.conditions == (objects.LIMIT_LOST,)
    assert [objects.usable(q) for q in (0, 1, 2, 3, 4096, None)] == [True, False, False, True, True, True]


# -- the lines between driver and bridge, with programs that misbehave --------------------------------------


def program(text: str) -> Bridge:
    made = Bridge([sys.executable, '-c', text], grace_s=0.3)
    made.start()
    return made


@pytest.mark.parametrize(('text', 'error'), [
    ('input(); print("no json")', BadFrame), ('input(); print("[1]")', BadFrame),
    ('input(); print(\'{"id": 7}\')', BadFrame), ('pass', Disconnected), ('input()', Disconnected),
    ('import time; time.sleep(30)', NoAnswer), ('input(); print("x" * 2000000)', BadFrame),
    ('input(); print(\'{"id": 1, "error": "refused", "message": "why"}\')', Refused),
    ('input(); print(\'{"id": 1, "error": "what"}\')', BadFrame)])
def test_a_bridge_that_misbehaves_gives_device_errors(text, error):
    bridge = program(text)
    try:
        with pytest.raises(error):
            bridge.ask('read', 0.5, items=[])
    finally:
        bridge.close()
    assert not bridge.running


def test_a_bridge_that_is_not_there():
    with pytest.raises(Disconnected, match='cannot be started'):
        Bridge(['/nowhere/bridge']).start()
    device = Iec61850Battery(Iec61850Params(address='iec61850://127.0.0.1:1', bridge='/nowhere/bridge'))
    with pytest.raises(Disconnected):
        device.open()
    device.close()
    with pytest.raises(Disconnected, match='not open'):
        device.read(0.0)


@settings(max_examples=15)
@given(st.lists(st.one_of(st.binary(max_size=40).filter(lambda b: b'\n' not in b and b'\r' not in b),
                          st.recursive(st.none() | st.integers() | st.text(max_size=5),
                                       lambda c: st.lists(c, max_size=3) | st.dictionaries(
                                           st.sampled_from(['id', 'op', 'items', 'host', 'port', 'x']), c, max_size=4),
                                       max_leaves=6).map(lambda v: json.dumps(v).encode())), max_size=8))
def test_the_bridge_answers_every_line_whatever_it_is(lines):
    program = Path(__file__).parents[2] / 'iec61850_bridge' / 'bess_iec61850_bridge.py'
    out = subprocess.run([sys.executable, '-S', '-E', str(program)], input=b''.join(x + b'\n' for x in lines),
                         capture_output=True, timeout=60, check=False)
    assert out.returncode == 0, out.stderr
    answers = [json.loads(x) for x in out.stdout.splitlines()]
    assert len(answers) == len(lines)
    assert all(a.get('error') in ('frame', 'disconnected', 'missing') for a in answers)


# -- driver, bridge and server ------------------------------------------------------------------------------


class Bench:
    """A simulated server and drivers of it."""

    def __init__(self, **options: Any) -> None:
        from bess_sim.devices.iec61850 import Iec61850Simulator

        self.plant, self.faults = StaticPlant(), DeviceFaults()
        self.server = Iec61850Simulator(self.plant, 'a', self.faults, '127.0.0.1', 0, **options)
        self.address = self.server.start()
        self.devices: list[Iec61850Battery] = []

    def device(self, read_only: bool = False, **params: Any) -> Iec61850Battery:
        own = Iec61850Params(address=self.address, **{'timeout_s': 2.0, **params})
        made = Iec61850Battery(own, read_only=read_only)
        self.devices.append(made)
        made.open()
        return made

    def identify(self, device: Iec61850Battery) -> Any:
        """As the driver node does it: what is silent (a busy machine) is connected to and asked again."""
        deadline, again = time.monotonic() + 15.0, False
        while True:
            try:
                if again:
                    device.close()
                    device.open()
                return device.identify()
            except (NoAnswer, Disconnected):
                if time.monotonic() > deadline:
                    raise
                again = True

    def stop(self) -> None:
        for device in self.devices:
            device.close()
        self.server.stop()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@needs_library
def test_a_battery_of_edition_2(bench):
    made = bench(kilo=True)
    made.plant.packs['a'] = PackSample(voltage=52.5, current=-20.0, energy=1300.0, energy_full=5200.0,
                                       cells=(3.2, 3.3), temperatures=(18.0, 24.0), max_charge_current=40.0)
    device = made.device()
    identity = made.identify(device)
    assert 'BESS1BAT/DBAT1' in identity.model and identity.manufacturer == 'bess'
    reading = device.read(5.0)
    assert reading.time == 5.0 and reading.mode is Mode.DISCHARGING and reading.contactor is Contactor.CLOSED
    assert (reading.voltage, reading.current) == pytest.approx((52.5, -20.0))
    assert reading.power == pytest.approx(-1050.0)  # the server shows kW and says so
    assert (reading.soc, reading.energy, reading.energy_full) == pytest.approx((0.25, 1300.0, 5200.0))
    assert (reading.temperature, reading.temperature_min) == pytest.approx((24.0, 18.0))
    assert (reading.cell_voltage_min, reading.cell_voltage_max) == pytest.approx((3.2, 3.3))
    assert reading.max_charge_current == pytest.approx(40.0) and reading.alarms == ()
    inverted = made.device(invert=True)
    made.identify(inverted)
    assert inverted.read(0.0).current == pytest.approx(20.0)


@needs_library
def test_a_battery_of_edition_1(bench):
    made = bench(battery='zbat')
    made.plant.packs['a'] = PackSample(voltage=51.0, current=7.0, max_charge_current=30.0, max_discharge_current=80.0)
    device = made.device()
    made.identify(device)
    reading = device.read(0.0)
    assert (reading.voltage, reading.current, reading.charge_full) == pytest.approx((51.0, 7.0, 100.0))
    assert (reading.max_charge_current, reading.max_discharge_current) == pytest.approx((30.0, 80.0))
    assert isnan(reading.soc) and reading.contactor is Contactor.UNKNOWN


@needs_library
def test_each_alarm_is_a_named_fault_and_qualities_count(bench):
    made = bench()
    device = made.device()
    made.identify(device)
    for do, condition in objects.ALARMS.items():
        if do.startswith('Intn'):
            continue  # the simulated battery has the outer ones
        made.server.forced = {do: True}
        reading = device.read(0.0)
        assert [a.id for a in reading.alarms] == [f'iec61850.{condition.id}']
        assert (reading.max_charge_current == 0.0) == condition.blocks_charge
        assert (reading.max_discharge_current == 0.0) == condition.blocks_discharge
    made.server.forced = {}
    made.server.invalid = {'IntnTmp', 'CelVolHi'}
    reading = device.read(0.0)
    assert isnan(reading.cell_voltage_max) and reading.quality == 0
    made.server.invalid = {'Amp'}
    with pytest.raises(BadValue, match='current is invalid'):
        device.read(0.0)


@needs_library
@pytest.mark.parametrize('model', ['direct-with-normal-security', 'sbo-with-normal-security',
                                   'direct-with-enhanced-security', 'sbo-with-enhanced-security'])
def test_the_switch_obeys_in_every_control_model(bench, model):
    made = bench(control_model=model)
    device = made.device(switch='CSWI1.Pos')
    made.identify(device)
    device.set_contactor(False, False)
    assert not made.plant.pack('a').charge_switch and device.read(0.0).contactor is Contactor.OPEN
    device.set_contactor(True, True)
    assert device.read(0.0).contactor is Contactor.CLOSED
    with pytest.raises(Refused, match='apart'):
        device.set_contactor(True, False)


@needs_library
def test_what_may_not_be_switched(bench):
    made = bench(control_model='status-only')
    device = made.device(switch='CSWI1.Pos')
    made.identify(device)
    with pytest.raises(Refused, match='only shows'):
        device.set_contactor(False, False)
    with pytest.raises(Refused, match='configured'):
        made.device().set_contactor(False, False)
    watched = made.device(read_only=True, switch='CSWI1.Pos')
    made.identify(watched)
    with pytest.raises(ReadOnlyError):
        watched.set_contactor(False, False)
    with pytest.raises(ReadOnlyError):  # and the bridge refuses by itself
        watched._ask('operate', object='BESS1BAT/CSWI1.Pos', value=False)
    assert made.plant.pack('a').charge_switch


@needs_library
def test_silence_ends_in_time_and_a_wrong_node_is_named(bench):
    made = bench()
    device = made.device(timeout_s=0.5)
    made.identify(device)
    made.faults.inject('no_answer')
    with pytest.raises((NoAnswer, Disconnected)):
        device.read(0.0)
    made.faults.clear()
    device.close()
    device.open()
    made.identify(device)
    assert device.read(0.0).voltage == pytest.approx(52.0)
    wrong = made.device(node='DBAT9')
    with pytest.raises(BadValue, match='BESS1BAT/DBAT1'):
        made.identify(wrong)


@needs_library
def test_a_bridge_that_is_killed_is_started_again(bench):
    made = bench()
    device = made.device()
    made.identify(device)
    process = device._bridge._process
    process.kill()
    process.wait()
    with pytest.raises(DeviceError):
        device.read(0.0)
    made.identify(device)  # a bridge that has just started may find the server busy with the end of the one before
    assert device.read(0.0).voltage == pytest.approx(52.0)


@needs_library
def test_node_survives_the_server(graph, bench):
    made = bench()
    node = graph.add(node_type(Iec61850Battery), 'bms', {
        'address': made.address, 'period': 0.2, 'timeout_s': 1.0, 'errors_to_fault': 1})
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bms/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'a good status')
    made.faults.inject('disconnect')
    graph.wait(lambda: any(node.faults.get(f'comm.{k}') for k in ('disconnected', 'timeout')), 'a fault')
    made.faults.clear()
    count = len(statuses)
    graph.wait(lambda: len(statuses) > count and statuses[-1].quality == 0, 'good again')


@needs_library
def test_a_step_of_the_wall_clock(bench, monkeypatch):
    made = bench()
    device, real = made.device(timeout_s=2.0), time.time
    device.open()
    made.identify(device)
    for now, step in ((10.0, 3e8), (11.0, -3e8)):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        assert device.read(now).time == now
    made.plant.packs['a'] = PackSample(voltage=51.5)
    end = time.monotonic() + 10.0
    while device.read(12.0).voltage != pytest.approx(51.5):
        assert time.monotonic() < end
