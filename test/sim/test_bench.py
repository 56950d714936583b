"""The bench with real processes: start, sockets, faults, death of device, bench and parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bess_sim.bench import run_bench
from bess_sim.control_client import ControlError, DeviceControl
from bess_sim.devices.sunspec import SunSpecInverterSimulator
from bess_sim.plant_api import StaticPlant

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], Any], what: str, within: float = 10.0) -> Any:
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f'{what} not within {within} s'
        time.sleep(0.01)
    return result


def alive(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != 'Z'


def site(folder: Path, **changes: Any) -> Path:
    simulation = {
        'seed': 3,
        'house': {'profile': 'none'},
        'pv': {'profile': 'none'},
        'units': {'a': {'pack': {}, 'inverter': {}}},
        'devices': {
            'bms': {'kind': 'jbd', 'unit': 'a', 'address': f'serial:{folder}/jbd'},
            'meter': {'kind': 'carlo_gavazzi', 'address': 'tcp://127.0.0.1:0'},
        },
        **changes,
    }
    path = folder / 'site.yaml'
    path.write_text(yaml.safe_dump({'simulation': simulation}))
    return path


class Bench:
    """A bench process of its own."""

    def __init__(self, folder: Path, *, speed: float = 1.0, **changes: Any) -> None:
        self.run_dir = folder / 'run'
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'bess_sim.bench', str(site(folder, **changes)),
             '--run-dir', str(self.run_dir), '--speed', str(speed)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return json.loads((self.run_dir / 'bench.json').read_text())

    def ready(self) -> dict[str, Any]:
        def look() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            return (self.run_dir / 'bench.json').exists()

        wait_for(look, 'bench.json')
        return self.state()

    def control(self, name: str) -> DeviceControl:
        return DeviceControl(self.run_dir / f'{name}.sock')

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**arguments: Any) -> Bench:
        benches.append(Bench(tmp_path, **arguments))
        return benches[-1]

    yield make
    for bench in benches:
        bench.end()


def read_registers(address: str, start: int, count: int, unit: int = 1) -> list[int]:
    host, port = address.removeprefix('tcp://').split(':')
    with socket.create_connection((host, int(port)), timeout=2.0) as connection:
        connection.sendall(struct.pack('>HHHBBHH', 7, 0, 6, unit, 3, start, count))
        answer = b''
        while len(answer) < 6 or len(answer) < 6 + int.from_bytes(answer[4:6], 'big'):
            data = connection.recv(300)
            assert data, f'closed after {answer!r}'
            answer += data
    assert answer[7] == 3, f'exception: {answer!r}'
    return list(struct.unpack(f'>{count}H', answer[9:]))


def meter_power(address: str) -> float:
    low, high = read_registers(address, 0x28, 2)  # total W, INT32, low word first, 0.1 W
    return struct.unpack('>i', struct.pack('>HH', high, low))[0] / 10.0


def test_devices_listen_and_the_world_answers(start) -> None:
    bench = start(speed=10.0)
    state = bench.ready()
    pids = {device['pid'] for device in state['devices'].values()}
    assert len(pids) == 2 and state['pid'] == bench.process.pid and state['pid'] not in pids
    assert all(alive(pid) for pid in pids)
    meter = state['devices']['meter']
    assert not meter['address'].endswith(':0')
    link = Path(state['devices']['bms']['address'].removeprefix('serial:'))
    assert link.is_symlink() and link.resolve().is_char_device()
    with bench.control('world') as world, bench.control('meter') as control:
        world.set(house_power=4321.0)
        wait_for(
            lambda: abs(meter_power(meter['address']) - world.sample()['house_power']) < 50, 'load'
        )
        assert world.sample()['house_power'] == 4321.0
        control.override_power(-777.0)
        assert meter_power(meter['address']) == pytest.approx(-777.0)
        control.override_power(None)
        assert meter_power(meter['address']) > 4000.0
        # plant time runs at the speed asked for
        first = world.sample()
        second = wait_for(
            lambda: (s := world.sample())['time'] > first['time'] + 10 and s, 'ten seconds'
        )
        passed = second['monotonic'] - first['monotonic']
        assert second['time'] - first['time'] == pytest.approx(10.0 * passed, rel=0.2)
        assert set(second['units']['a']) == {'pack', 'inverter', 'energy'}


def write_registers(address: str, start: int, values: list[int], unit: int = 1) -> None:
    host, port = address.removeprefix('tcp://').split(':')
    body = struct.pack(f'>BBHHB{len(values)}H', unit, 16, start, len(values), 2 * len(values), *values)
    with socket.create_connection((host, int(port)), timeout=2.0) as connection:
        connection.sendall(struct.pack('>HHH', 9, 0, len(body)) + body)
        answer = connection.recv(300)
    assert answer[7] == 16, f'exception: {answer!r}'


def test_a_setpoint_travels_from_its_register_to_the_meter(start) -> None:
    devices = {
        'inverter': {'kind': 'sunspec_inverter', 'unit': 'a'},
        'battery': {'kind': 'sunspec_battery', 'unit': 'a', 'sign': -1},
        'meter': {'kind': 'carlo_gavazzi'},
    }
    bench = start(devices=devices)
    state = bench.ready()['devices']
    assert len({device['pid'] for device in state.values()}) == 3
    image = SunSpecInverterSimulator(StaticPlant(), 'a', background=False).image
    power, enable = (40_000 + image.point(704, name).index for name in ('WSet', 'WSetEna'))
    raw = list(struct.unpack('>HH', struct.pack('>i', 2000)))  # + = export
    write_registers(state['inverter']['address'], power, raw)
    write_registers(state['inverter']['address'], enable, [1])
    wait_for(
        lambda: meter_power(state['meter']['address']) == pytest.approx(-2000.0, abs=1.0), 'export'
    )
    writes = bench.control('inverter').writes()
    assert [write['address'] for write in writes] == [power, enable]
    assert writes[0]['values'] == raw and writes[0]['time'] <= time.monotonic()
    pack = bench.control('world').sample()['units']['a']['pack']
    assert -2200.0 < pack['voltage'] * pack['current'] < -2000.0


def test_device_faults_come_and_go(start) -> None:
    bench = start()
    meter = bench.ready()['devices']['meter']
    with bench.control('meter') as control:
        assert control.status()['faults'] == []
        control.inject('modbus_exception', value=6)
        with pytest.raises(AssertionError, match='exception'):
            meter_power(meter['address'])
        assert control.status()['faults'][0]['fault'] == 'modbus_exception'
        control.clear()
        meter_power(meter['address'])
        control.inject('modbus_exception', for_s=0.2)
        wait_for(lambda: not control.status()['faults'], 'end of the fault')
        meter_power(meter['address'])
        assert control.writes() == []
        for request in ({'cmd': 'inject', 'fault': 'x'}, {'cmd': 'inject'}, {'cmd': 'what'},
                        {'cmd': 'inject', 'fault': 'no_answer', 'for_s': 'long'},
                        {'cmd': 'inject', 'fault': 'no_answer', 'for_s': -1}):  # fmt: skip
            with pytest.raises(ControlError):
                control.command(**request)
        with pytest.raises(ControlError, match='unknown command'):
            bench.control('bms').writes()


def test_plant_faults_switches_and_settings_of_the_world(start) -> None:
    bench = start()
    bench.ready()
    with bench.control('world') as world:
        world.inject('cell_overvoltage', value=3.9, unit='a', index=6)
        pack = wait_for(
            lambda: (p := world.sample()['units']['a']['pack'])['cells'][6] == 3.9 and p, 'fault'
        )
        assert sorted(pack['cells'])[-2] < 3.6
        # the simulated BMS protects the pack: an order crosses from its process to the physics
        wait_for(lambda: not world.sample()['units']['a']['pack']['charge_switch'], 'open switch')
        world.clear()
        wait_for(lambda: world.sample()['units']['a']['pack']['charge_switch'], 'closed switch')
        world.set(frequency=49.6, ambient=10.0, voltage=None)
        wait_for(lambda: world.sample()['meter']['frequency'] == 49.6, 'frequency')
        for settings in (
            {'house_power': -1},
            {'frequency': 'x'},
            {'nothing': 1},
            {'ambient': None},
        ):
            with pytest.raises(ControlError):
                world.set(**settings)
        with pytest.raises(ControlError, match='unknown fault'):
            world.inject('no_answer')


def test_hostile_control_requests_are_answered(start) -> None:
    bench = start()
    bench.ready()
    for data in (
        b'\n',
        b'[]\n',
        b'{}\n',
        b'{"cmd": 1}\n',
        b'\xff\xfe\n',
        b'{"cmd":"sample"\n',
        b'[' * 60_000 + b'\n',
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5.0)
            client.connect(str(bench.run_dir / 'world.sock'))
            client.sendall(data)
            answer = json.loads(client.makefile().readline())
            assert answer['ok'] is False and answer['error']
    assert bench.control('world').sample()['time'] >= 0.0


@pytest.mark.parametrize('stop', [signal.SIGTERM, signal.SIGINT])
def test_signals_end_everything(start, stop: signal.Signals) -> None:
    bench = start()
    state = bench.ready()
    bench.process.send_signal(stop)
    assert bench.process.wait(10.0) == 0
    assert not any(alive(device['pid']) for device in state['devices'].values())
    assert not (bench.run_dir / 'bench.json').exists()
    assert not list(bench.run_dir.glob('*.sock'))
    assert not Path(state['devices']['bms']['address'].removeprefix('serial:')).exists()


def test_a_dead_device_is_reported_and_the_others_go_on(start) -> None:
    bench = start()
    state = bench.ready()
    os.kill(state['devices']['bms']['pid'], signal.SIGKILL)
    wait_for(lambda: bench.state()['devices']['bms']['exit_code'] == -signal.SIGKILL, 'report')
    assert bench.control('world').status()['devices']['bms']['exit_code'] == -signal.SIGKILL
    assert bench.state()['devices']['meter']['exit_code'] is None
    meter_power(state['devices']['meter']['address'])


def test_devices_end_when_the_bench_is_killed_and_a_new_one_may_start(start) -> None:
    bench = start()
    state = bench.ready()
    bench.process.kill()
    bench.process.wait()
    (bench.run_dir / 'bench.json').unlink()
    again = start()
    fresh = again.ready()
    wait_for(lambda: not any(alive(d['pid']) for d in state['devices'].values()), 'end of devices')
    assert fresh['pid'] != state['pid']
    assert Path(fresh['devices']['bms']['address'].removeprefix('serial:')).exists()


def test_the_bench_ends_when_its_parent_dies(tmp_path: Path) -> None:
    run_dir = tmp_path / 'run'
    code = (
        'import subprocess, sys, time\n'
        f'subprocess.Popen([sys.executable, "-m", "bess_sim.bench", {str(site(tmp_path))!r},'
        f' "--run-dir", {str(run_dir)!r}])\n'
        'time.sleep(60)\n'
    )
    parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
    try:
        wait_for((run_dir / 'bench.json').exists, 'bench.json')
        state = json.loads((run_dir / 'bench.json').read_text())
    finally:
        parent.kill()
        parent.wait()
    pids = [state['pid'], *(device['pid'] for device in state['devices'].values())]
    wait_for(lambda: not any(alive(pid) for pid in pids), 'end of the bench')


def test_two_benches_do_not_share_a_run_directory(start) -> None:
    bench = start()
    bench.ready()
    second = start()
    _, message = second.process.communicate(timeout=20.0)
    assert second.process.returncode == 1 and 'another bench runs' in message
    assert bench.control('world').status()['devices']


def test_a_port_in_use_is_a_clear_error(start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        address = f'tcp://127.0.0.1:{taken.getsockname()[1]}'
        bench = start(devices={'meter': {'kind': 'carlo_gavazzi', 'address': address}})
        _, message = bench.process.communicate(timeout=20.0)
    assert bench.process.returncode == 1 and 'device meter did not start' in message
    assert not (bench.run_dir / 'bench.json').exists()


@pytest.mark.parametrize(
    ('devices', 'message'),
    [
        ({'x': {'kind': 'toaster', 'unit': 'a'}}, 'unknown device kind'),
        ({'x': {'kind': 'jbd', 'unit': 'b'}}, "no unit 'b'"),
        ({'x': {'kind': 'jbd', 'address': 'serial:/tmp/x'}}, 'unit'),
        ({'x': {'kind': 'jbd', 'unit': 'a', 'address': 'tcp://127.0.0.1:1'}}, 'serial:'),
        ({'x': {'kind': 'carlo_gavazzi', 'address': 'udp://1'}}, 'tcp://host:port'),
        ({'x': {'kind': 'carlo_gavazzi', 'colour': 'red'}}, 'colour'),
        ({'x': {'kind': 'carlo_gavazzi', 'unit_id': 'one'}}, 'unit_id'),
    ],
)
def test_bad_devices_are_refused_before_anything_starts(
    tmp_path: Path, devices, message: str
) -> None:
    simulation = {'units': {'a': {}}, 'devices': devices}
    with pytest.raises(ValueError, match=message):
        run_bench(simulation, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_bad_site_file_is_refused_with_exit_code_2(start, tmp_path: Path) -> None:
    bench = start(units={'a': {'pack': {'cells': -1}}})
    _, message = bench.process.communicate(timeout=20.0)
    assert bench.process.returncode == 2
    assert 'units.a.pack.cells' in message and 'Traceback' not in message


def test_p1_meters_on_a_line_and_on_tcp_in_processes_of_their_own(start, tmp_path: Path) -> None:
    pytest.importorskip('dsmr_parser', reason='needs pip install -r requirements/p1.txt (optional)')
    from bess_drivers.serial.p1 import P1Meter, P1Params

    bench = start(devices={'line': {'kind': 'p1', 'address': f'serial:{tmp_path}/p1', 'interval': 0.2},
                           'bridge': {'kind': 'p1', 'address': 'tcp://127.0.0.1:0', 'interval': 0.2}})
    for name, state in bench.ready()['devices'].items():
        device = P1Meter(P1Params(address=state['address'], timeout_s=3.0))
        device.open()
        assert device.identify().serial == 'BESS0001' and device.read(0.0).voltage[0] > 200.0
        device.close()
        with bench.control(name) as control:
            assert control.command(cmd='sent')['sent'] >= 1
