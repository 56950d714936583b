"""sonnenBatterie over real HTTP, against published answers, and with everything that can be wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import ConverterState, Mode, Quality
from bess_drivers.device import BadFrame, BadValue, DeviceError, NoAnswer, ReadOnlyError, Refused
from bess_drivers.http.client import JsonClient, read_token
from bess_drivers.http.sonnen import SonnenBattery, SonnenConverter, SonnenParams
from bess_drivers.http.sonnen_codec import Ratings, battery_reading, converter_reading, shutdown_reasons, status_of
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.sonnen import SonnenSimulator
from bess_sim.plant_api import StaticPlant

TOKEN = 'token-of-the-test'

# Published answers: Genio2003/sb_access_points (v1, 2022), Cominch/homebridge-sonnenbatterie (v1, 2021).
PUBLISHED_DISCHARGE = json.loads('''{"Apparent_output": 362, "BackupBuffer": "0", "BatteryCharging": false,
 "BatteryDischarging": true, "Consumption_W": 407, "Fac": 49.993003845214844, "GridFeedIn_W": -35,
 "IsSystemInstalled": 1, "OperatingMode": "2", "Pac_total_W": 371, "Production_W": 0, "RSOC": 78,
 "RemainingCapacity_Wh": 4712, "Sac1": 362, "Sac2": null, "Sac3": null, "SystemStatus": "OnGrid",
 "Timestamp": "2022-03-27 19:15:05", "USOC": 77, "Uac": 222, "Ubat": 52}''')
PUBLISHED_CHARGE = {**PUBLISHED_DISCHARGE, 'BackupBuffer': '20', 'BatteryCharging': True, 'BatteryDischarging': False,
                    'Fac': 50.018966674804688, 'Pac_total_W': -344, 'USOC': 26, 'Uac': 237, 'Ubat': 211}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A simulated battery with its drivers."""

    def __init__(self, tmp_path: Path, form: str = 'local') -> None:
        self.plant, self.faults, self.clock = StaticPlant(), DeviceFaults(), Clock()
        self.box = SonnenSimulator(self.plant, 'u', self.faults, form=form, token=TOKEN, clock=self.clock)
        self.address, self.form = self.box.start(), form
        self.token = tmp_path / 'token'
        self.token.write_text(TOKEN + '\n')
        self.token.chmod(0o600)
        self.made: list[Any] = []

    def device(self, kind: Any = SonnenConverter, read_only: bool = False, **more: Any) -> Any:
        device = kind(SonnenParams(**{'address': self.address, 'form': self.form, 'token_file': str(self.token),
                                      'timeout_s': 1.0, **more}), read_only, clock=self.clock)
        device.open()
        self.made.append(device)
        return device

    def wrote(self) -> list[str]:
        """What changed something: paths in order."""
        return [p for m, p in self.box.requests if m in ('PUT', 'POST') or 'setpoint' in p or 'setting' in p]

    def close(self) -> None:
        self.faults.clear()
        for device in self.made:
            device.close()
        self.box.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(form: str = 'local') -> Bench:
        made.append(Bench(tmp_path, form))
        return made[-1]

    yield make
    for b in made:
        b.close()


def test_published_answers() -> None:
    r = battery_reading(PUBLISHED_DISCHARGE, Ratings(3300.0, 3300.0, 5500.0), (), 7.0)
    assert (r.power, r.voltage, r.soc, r.mode) == (-371.0, 52.0, 0.77, Mode.DISCHARGING)  # Pac + = discharging
    assert (r.current, r.energy, r.max_charge_power) == pytest.approx((-371 / 52, 4235.0, 3300.0)) and r.alarms == ()
    c = converter_reading(PUBLISHED_CHARGE, Ratings(), (), 7.0)
    assert (c.active_power, c.voltage[0], c.dc_voltage, c.apparent_power) == (344.0, 237.0, 211.0, 362.0)
    assert c.frequency == pytest.approx(50.019) and c.state is ConverterState.RUNNING and not c.grid_forming
    assert isnan(c.reactive_power) and isnan(c.max_charge_power) and isnan(c.voltage[1])


@pytest.mark.parametrize(('change', 'fault', 'mode'), [
    ({'SystemStatus': 'OffGrid', 'Uac': 0}, 'sonnen.off_grid', Mode.DISCHARGING),
    ({'SystemStatus': 'Critical Error'}, 'sonnen.system_error', Mode.FAULT),
    ({'IsSystemInstalled': 0}, 'sonnen.not_installed', Mode.FAULT),
    ({'dischargeNotAllowed': True}, 'sonnen.discharge_not_allowed', Mode.DISCHARGING)])
def test_each_state_is_a_named_fault(change: dict[str, Any], fault: str, mode: Mode) -> None:
    r = battery_reading({**PUBLISHED_DISCHARGE, **change}, Ratings(3000.0, 3000.0), (), 0.0)
    assert [a.id for a in r.alarms] == [fault] and r.mode is mode
    assert (r.max_charge_power == 0) == (mode is Mode.FAULT)
    assert (r.max_discharge_power == 0) == (mode is Mode.FAULT or 'dischargeNotAllowed' in change)


def test_limits_end_at_full_and_at_the_reserve() -> None:
    full = battery_reading({**PUBLISHED_CHARGE, 'USOC': 100}, Ratings(3000.0, 3000.0), (), 0.0)
    assert (full.max_charge_power, full.max_discharge_power) == (0.0, 3000.0)
    low = battery_reading({**PUBLISHED_CHARGE, 'USOC': 20}, Ratings(3000.0, 3000.0), (), 0.0)
    assert (low.max_charge_power, low.max_discharge_power) == (3000.0, 0.0) and 'reserve' in low.limit_reasons[0]


def test_missing_and_wrong_values() -> None:
    for key in ('Pac_total_W', 'USOC'):
        for bad in (None, 'n/a', True, float('nan'), [1]):
            with pytest.raises(BadValue, match='not there'):
                battery_reading({**PUBLISHED_CHARGE, key: bad}, Ratings(), (), 0.0)
    with pytest.raises(BadValue, match='outside'):
        battery_reading({**PUBLISHED_CHARGE, 'USOC': 101}, Ratings(), (), 0.0)
    assert isnan(battery_reading({**PUBLISHED_CHARGE, 'Ubat': 0}, Ratings(), (), 0.0).current)
    with pytest.raises(BadValue, match='wrong token'):
        status_of({})
    with pytest.raises(BadFrame):
        status_of([1])
    with pytest.raises(BadFrame):
        shutdown_reasons('x')
    assert shutdown_reasons({'ic_status': {'DC Shutdown Reason': {'a': True, 'b': False}}}) == ('a',)
    assert shutdown_reasons({'ic_status': None}) == ()


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=8), c, max_size=3),
                    max_leaves=8)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(sorted(PUBLISHED_CHARGE)), JSON, max_size=6), JSON)
def test_any_json_gives_a_reading_or_a_device_error(change: dict[str, Any], other: Any) -> None:
    for decode in (battery_reading, converter_reading):
        try:
            decode({**PUBLISHED_CHARGE, **change}, Ratings(1.0, 1.0, 1.0), (), 0.0)
        except DeviceError:
            pass
    try:
        shutdown_reasons(other)
        status_of(other)
    except DeviceError:
        pass


@pytest.mark.parametrize('form', ['local', 'cloud'])
def test_orders_are_followed_and_given_back(bench: Callable[..., Bench], form: str) -> None:
    b = bench(form)
    device = b.device()
    assert device.identify().manufacturer == 'sonnen'
    assert device.read(1.0).state is ConverterState.STANDBY
    device.write_power(1234.9, nan, 5.0)
    assert b.plant.orders[-1][1] == 1234.0  # whole watts, never more than was asked for
    r = device.read(2.0)
    assert (r.active_power, r.setpoint) == (1234.0, 1234.0)
    assert [a.id for a in r.alarms] == ['sonnen.no_reversion_timer']
    device.write_power(-800.0, 0.0, 5.0)
    assert device.read(3.0).active_power == -800.0
    before = len(b.wrote())
    device.write_power(-800.0, nan, 5.0)  # unchanged: not repeated at once ...
    assert len(b.wrote()) == before
    b.clock.now += 31.0  # ... but after a while
    device.write_power(-800.0, nan, 5.0)
    assert len(b.wrote()) == before + 1
    device.stop()
    mode = {'local': '2', 'cloud': '8'}[form]
    assert b.box.mode == mode and b.plant.inverter('u').active_power == 0
    version = {'local': 'v2', 'cloud': 'v1'}[form]
    setting = {'local': '/api/v2/configurations', 'cloud': '/api/setting?EM_OperatingMode=1'}[form]
    assert b.wrote()[:3] == [setting, f'/api/{version}/setpoint/charge/1234', f'/api/{version}/setpoint/discharge/800']
    assert b.wrote()[-2] == f'/api/{version}/setpoint/charge/0'


def test_battery_reads_what_the_box_says_about_itself(bench: Callable[..., Bench]) -> None:
    b = bench()
    device = b.device(SonnenBattery)
    r = device.read(1.0)
    assert (r.soc, r.energy_full, r.max_charge_power) == (0.5, 5500.0, 5000.0)
    b.box.shutdown = {'Critical BMS Alarm'}
    b.clock.now += 11.0
    r = device.read(2.0)
    assert [a.id for a in r.alarms] == ['sonnen.dc_shutdown_critical_bms_alarm'] and r.max_charge_power == 0
    with pytest.raises(Refused):
        device.set_contactor(False, False)
    assert b.wrote() == []
    own = b.device(SonnenBattery, energy_full=10000.0, rated_power=2000.0)
    assert (own.read(1.0).energy_full, own.read(1.0).max_charge_power) == (10000.0, 0.0)


def test_refusals_and_lost_manual_mode(bench: Callable[..., Bench]) -> None:
    b = bench()
    device = b.device()
    device.write_power(500.0, nan, 5.0)
    b.box.mode = '2'  # somebody else
    assert 'sonnen.order_dropped' in [a.id for a in device.read(1.0).alarms]
    device.write_power(500.0, nan, 5.0)
    assert b.box.mode == '1' and b.plant.inverter('u').active_power == 500
    b.box.vpp = True
    with pytest.raises(Refused, match='answers False'):
        device.write_power(600.0, nan, 5.0)
    b.box.vpp, b.box.system = False, 'OffGrid'
    device.read(2.0)
    with pytest.raises(Refused, match='without the grid'):
        device.write_power(700.0, nan, 5.0)
    for power, reactive in ((nan, nan), (float('inf'), nan), (100.0, 50.0)):
        with pytest.raises(BadValue):
            device.write_power(power, reactive, 5.0)


def test_read_only_sends_nothing_that_changes(bench: Callable[..., Bench]) -> None:
    b = bench('cloud')
    device = b.device(read_only=True)
    device.identify()
    device.read(0.0)
    for act in (lambda: device.write_power(1.0, nan, 1.0), device.stop,
                lambda: device.client.request('POST', '/api/v2/setpoint/charge/1'),
                lambda: device.client.get('/api/v1/setpoint/charge/1', write=True)):
        with pytest.raises(ReadOnlyError):
            act()
    assert b.wrote() == [] and b.plant.orders == []


@pytest.mark.parametrize(('fault', 'error'), [
    ('no_answer', NoAnswer), ('late_answer', NoAnswer), ('truncated_frame', BadFrame), ('flipped_bytes', BadFrame),
    ('modbus_exception', Refused), ('disconnect', DeviceError)])
def test_faults_of_the_line_and_recovery(bench: Callable[..., Bench], fault: str, error: type[DeviceError]) -> None:
    b = bench()
    device = b.device(SonnenBattery, timeout_s=0.3)
    device.read(0.0)
    b.faults.inject(fault, 0.8 if fault == 'late_answer' else nan)
    started = time.monotonic()
    with pytest.raises(error):
        device.read(1.0)
    assert time.monotonic() - started < 0.7
    b.faults.clear()
    b.plant.pack('u').soc = 0.61
    assert device.read(2.0).soc == 0.61  # never the late answer of before
    assert sum(device.counters.errors.values()) == 1


def test_old_values_are_stale(bench: Callable[..., Bench]) -> None:
    b = bench('cloud')
    device = b.device(SonnenBattery)
    assert device.read(1000.0).quality is Quality.OK
    assert device.read(1060.0).quality is Quality.OK
    assert device.read(1061.0).quality is Quality.STALE  # the same Timestamp for more than a minute
    b.clock.now += 5.0
    assert device.read(1062.0).quality is Quality.OK


def test_tokens(bench: Callable[..., Bench], tmp_path: Path) -> None:
    b = bench()
    b.token.chmod(0o640)
    with pytest.raises(BadValue, match='may be read by others'):
        b.device()
    b.token.chmod(0o600)
    for text in ('', 'two words', 'line\nline', 'é', 'x' * 5000):
        b.token.write_text(text)
        with pytest.raises(BadValue, match='one token|longer than 4096'):
            read_token(str(b.token))
    with pytest.raises(BadValue, match='No such file'):
        read_token(str(tmp_path / 'none'))
    with pytest.raises(BadValue):
        read_token(str(tmp_path))
    b.token.write_text('wrong')
    with pytest.raises(Refused, match='token is not accepted'):
        b.device().write_power(100.0, nan, 1.0)
    with pytest.raises(BadValue, match='token_file'):
        b.device(token_file='')


@pytest.mark.parametrize('address', ['', 'tcp://x:1', 'http://', 'http://u:p@h', 'http://h/?q=1'])
def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(ValueError, match='address'):
        SonnenConverter(SonnenParams(address=address))


@pytest.mark.parametrize('answer', [
    b'garbage\r\n\r\n', b'HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n' + b'1' * 2_000_000,
    b'HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n' + b'[' * 100000, b'HTTP/1.1 200 OK\r\n' + b'a: b\r\n' * 200])
def test_a_hostile_server_gives_device_errors(answer: bytes) -> None:
    with Hostile(lambda c: c.sendall(answer)) as port:
        client = JsonClient(f'http://127.0.0.1:{port}', 1.0)
        with pytest.raises(DeviceError):
            client.get('/')
        client.close()


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n')
        for _ in range(1000):
            connection.sendall(b'1')
            time.sleep(0.02)

    with Hostile(drip) as port:
        client = JsonClient(f'http://127.0.0.1:{port}', 0.3)
        started = time.monotonic()
        with pytest.raises(NoAnswer):
            client.get('/')
        assert time.monotonic() - started < 0.8
        client.close()


class Hostile:
    """A server that sends what it likes after any request."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self._act = act
        self._socket = socket.create_server(('127.0.0.1', 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(4096)
            try:
                self._act(connection)
            except OSError:
                return  # the client has left, as it should

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._thread.join(3.0)
        self._socket.close()
