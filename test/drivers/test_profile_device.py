"""Profile devices against register images on real TCP and serial lines: fewest requests, groups, orders, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isnan, nan
from pathlib import Path

import pytest

from bess_core.values import Contactor, ConverterState, Mode
from bess_drivers.device import BadValue, NoAnswer, ReadOnlyError, Refused
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.modbus.ports import Ports
from bess_drivers.modbus.profile_device import (
    ModbusBattery,
    ModbusClimate,
    ModbusConverter,
    ModbusIo,
    ModbusMeter,
    ProfileParams,
)
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import IllegalValue
from bess_sim.devices.modbus_server import ModbusDeviceServer, ModbusRtuServer
from bess_sim.devices.register_image import RegisterImage

METER = """title: M
role: meter
transport: modbus
source: none, for a test
modbus: {function: 4, max_registers: 20, max_gap: 4}
polls:
  slow: {every: 5}
detect:
  - {address: 900, equals: [7]}
identity: {serial: number}
points:
  number: {address: 901, type: text, length: 4, poll: once}
  active_power: {address: 0, type: f32, positive: import}
  frequency: {address: 4, type: u16, scale: 0.01}
  voltage_1: {address: 30, type: u16, optional: true, scale: 0.1}
  energy_import: {address: 40, type: u32, word_order: low_first, unit: kWh, poll: slow}
  energy_export: {address: 60, type: u32, word_order: low_first, unit: kWh, poll: slow}
"""


def meter_image() -> RegisterImage:
    image = RegisterImage(max_read=20)
    image.fill(4, range(8))
    image.put(4, 0, 'f32', -1234.5)
    image.put(4, 4, 'u16', 5001)
    image.put(4, 30, 'u16', 2305)
    image.put(4, 40, 'u32', 70_000, low_first=True)
    image.put(4, 60, 'u32', 12, low_first=True)
    image.put(4, 900, 'u16', 7)
    image.put_text(4, 901, 'SN-0042', 4)
    return image


Make = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Callable[..., ModbusDeviceServer]]:
    servers = []

    def start(units: dict[int, RegisterImage]) -> ModbusDeviceServer:
        server = ModbusDeviceServer(units, DeviceFaults())
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def params(folder: Path, text: str, address: str, **more: object) -> ProfileParams:
    path = folder / 'device_under_test.yaml'
    path.write_text(text)
    return ProfileParams(address=address, profile=str(path), timeout_s=0.3, **more)  # type: ignore[arg-type]


def meter(folder: Path, server: ModbusDeviceServer, **more: object) -> ModbusMeter:
    device = ModbusMeter(params(folder, METER, f'tcp://127.0.0.1:{server.port}', **more))
    device.open()
    return device


def test_a_meter_is_read_with_the_fewest_requests(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    device = meter(tmp_path, serve({1: image}))
    identity = device.identify()
    assert identity.serial == 'SN-0042'
    image.reads.clear()
    reading = device.read(10.0)
    assert image.reads == [(4, 0, 5), (4, 30, 1)]  # the gap is wider than allowed
    assert reading.active_power == pytest.approx(-1234.5)
    assert reading.frequency == pytest.approx(50.01)
    assert reading.voltage[0] == pytest.approx(230.5)
    assert isnan(reading.voltage[1])  # not in the profile, not invented
    assert reading.time == 10.0
    device.close()


def test_slow_points_one_request_at_a_time_and_not_before_they_are_due(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    device = meter(tmp_path, serve({1: image}))
    device.identify()
    device.read(95.0)
    assert device.read_slow(99.9) == pytest.approx(100.0)
    image.reads.clear()
    assert device.read_slow(100.0) <= 100.0  # the other one is due, too
    assert len(image.reads) == 1
    assert device.read_slow(100.1) == pytest.approx(105.0)
    assert sorted(image.reads) == [(4, 40, 2), (4, 60, 2)]
    assert device.read_slow(101.0) == pytest.approx(105.0)
    assert len(image.reads) == 2
    reading = device.read(101.0)
    assert (reading.energy_import, reading.energy_export) == (70_000e3, 12e3)
    assert isnan(device.read(117.0).energy_import)  # three periods without a look at it
    assert device.ages(117.0)['energy_import'] == pytest.approx(17.0)
    device.close()


def test_an_optional_point_that_is_refused_is_not_known_and_not_asked_for_again(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    del image.words[4][30]
    device = meter(tmp_path, serve({1: image}))
    device.identify()
    assert isnan(device.read(1.0).voltage[0])
    image.reads.clear()
    assert device.read(2.0).active_power == pytest.approx(-1234.5)
    assert image.reads == [(4, 0, 5)]
    image.put(4, 30, 'u16', 2300)
    device.open()  # a new device may be there
    assert device.read(3.0).voltage[0] == pytest.approx(230.0)
    device.close()


def test_a_device_that_refuses_the_registers_in_between_is_read_without_them(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    for gap in (2, 3, 5, 6, 7):
        del image.words[4][gap]
    device = meter(tmp_path, serve({1: image}))
    device.identify()
    assert device.read(1.0).frequency == pytest.approx(50.01)
    image.reads.clear()
    device.read(2.0)
    assert image.reads == [(4, 0, 2), (4, 4, 1), (4, 30, 1)]
    device.close()


def test_a_needed_point_that_is_refused_is_an_error(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    del image.words[4][4]
    device = meter(tmp_path, serve({1: image}))
    with pytest.raises(Refused):
        device.read(1.0)
    device.close()


def test_another_device_is_recognised(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = meter_image()
    image.put(4, 900, 'u16', 8)
    server = serve({1: image})
    device = meter(tmp_path, server)
    with pytest.raises(BadValue, match='this is no M: register 900 holds 8'):
        device.identify()
    device.close()
    device = meter(tmp_path, server, check_model=False)
    assert device.identify().serial == 'SN-0042'
    device.close()


def test_invert_turns_directions_and_swaps_counters(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    device = meter(tmp_path, serve({1: meter_image()}), invert=True)
    device.identify()
    reading = device.read(1.0)
    assert reading.active_power == pytest.approx(1234.5)
    assert reading.frequency == pytest.approx(50.01)
    assert reading.energy_export == 70_000e3
    device.close()


def test_two_units_share_one_serial_line(tmp_path: Path) -> None:
    first, second = meter_image(), meter_image()
    second.put(4, 0, 'f32', 77.0)
    server = ModbusRtuServer({1: first, 2: second}, DeviceFaults(), tmp_path / 'ttyS0')
    server.start()
    try:
        address, ports = f'rtu:{server.link_path}?baud=115200', Ports()
        devices = [ModbusMeter(params(tmp_path, METER, address, unit=u),
                               link=ModbusLink(address, timeout_s=0.3, ports=ports)) for u in (1, 2)]
        for device in devices:
            device.open()
            device.identify()
        assert [round(d.read(1.0).active_power) for d in devices] == [-1234, 77]
        devices[0].close()
        assert round(devices[1].read(2.0).active_power) == 77  # the line stays open for the other
        with pytest.raises(ValueError, match='other settings'):
            ModbusLink(address.replace('115200', '9600'), ports=ports)
        devices[1].close()
        assert not devices[1].link.connected
    finally:
        server.stop()


def test_a_late_answer_of_one_unit_is_dropped_and_the_other_unit_is_heard(tmp_path: Path) -> None:
    first, second = meter_image(), meter_image()
    second.put(4, 0, 'f32', 77.0)
    faults = DeviceFaults()
    server = ModbusRtuServer({1: first, 2: second}, faults, tmp_path / 'ttyS0')
    server.start()
    try:
        address, ports = f'rtu:{server.link_path}?baud=115200', Ports()
        slow, other = (ModbusLink(address, timeout_s=t, ports=ports) for t in (0.1, 1.0))
        slow.open()
        other.open()
        faults.inject('late_answer', 0.25)
        with pytest.raises(NoAnswer):
            slow.read(1, 4, 0, 5)
        faults.clear('late_answer')
        # The answer of unit 1 arrives while unit 2 is asked, again late: it is no answer to that.
        faults.inject('late_answer', 0.3)
        assert other.read(2, 4, 0, 2)[0] == 0x429A
        assert other.late_answers == 1
        other.close()
        slow.close()
    finally:
        server.stop()


# -- orders ------------------------------------------------------------------------------------------

CONVERTER = """title: C
role: converter
transport: modbus
source: none, for a test
modbus: {write_function: 6}
states:
  - {state: FAULT, point: word, not_zero: true}
  - {state: RUNNING, point: status, equals: [3]}
  - {state: STANDBY}
faults:
  word: {bits: {0: Overheat, 2: Fan stuck}}
points:
  active_power: {address: 0, type: i16, scale: 0.1, unit: kW, positive: discharging}
  status: {address: 1}
  word: {address: 2, type: u16}
  run: {address: 10, access: w, write_function: 16}
  power: {address: 11, type: i16, scale: 0.1, unit: kW, positive: discharging, access: rw, write_range: [-100, 100]}
  timer: {address: 12, access: w, unit: s}
  share: {address: 13, access: rw, scale: 0.1, unit: '%', per: rated_power, rewrite: false, writes_per_day: 48,
          min_write_interval: 1.0, deadband: 20}
  flags: {address: 14, access: rw, rewrite: false}
  alive: {address: 15, access: rw}
write:
  start: [{point: run, value: 1}]
  order:
    - {point: timer, value: lease}
    - {point: power, value: power}
    - {point: share, value: charge_power}
    - {point: flags, bits: {10: discharging, 11: charging}}
  stop: [{point: power, value: 0}, {point: share, value: 0}, {point: flags, bits: {10: 0, 11: 0}},
         {point: run, value: 0}]
  heartbeat: {point: alive, every: 1.0, kind: count, first: 1, last: 3}
"""


class Clock:
    """Monotonic time by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Converter:
    """A converter, its registers and what was written to it."""

    def __init__(self, folder: Path, serve: Callable[..., ModbusDeviceServer], text: str = CONVERTER,
                 read_only: bool = False, **more: object) -> None:
        self.image, self.clock = RegisterImage(), Clock()
        for address in range(16):
            self.image.put(3, address, 'u16', 0, writable=address >= 10)
        self.server = serve({1: self.image})
        self.device = ModbusConverter(
            params(folder, text, f'tcp://127.0.0.1:{self.server.port}', **{'rated_power': 10_000.0, **more}),
            read_only, clock=self.clock)
        self.device.open()

    def written(self) -> list[tuple[int, int]]:
        writes = [(a, v[0]) for _, _, a, v in self.server.writes]
        self.server.writes.clear()
        return writes


def test_an_order_becomes_its_sequence(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    bench.image.put(3, 14, 'u16', 0x8001, writable=True)
    bench.device.write_power(2000.0, nan, 4.2)
    assert bench.written() == [(10, 1), (12, 5), (11, 0x10000 - 20), (13, 200), (14, 0x8801)]
    bench.device.write_power(2000.0, nan, 4.2)  # flash registers are left alone
    assert bench.written() == [(12, 5), (11, 0x10000 - 20)]
    bench.clock.now += 2.0
    bench.device.write_power(-3000.0, nan, 4.2)
    assert bench.written() == [(12, 5), (11, 30), (13, 0), (14, 0x8401)]
    bench.device.stop()
    assert bench.written() == [(11, 0), (14, 0x8001), (10, 0)]
    bench.device.write_power(100.0, nan, 1.0)
    assert bench.written()[0] == (10, 1)  # after a stop it is started anew
    bench.device.close()


def test_write_limits_hold_back_but_never_a_stop(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    bench.device.write_power(2000.0, nan, 4.0)
    bench.written()
    bench.device.write_power(2010.0, nan, 4.0)  # within the deadband of the share
    assert (13, 201) not in bench.written()
    bench.device.write_power(2500.0, nan, 4.0)  # too soon after the first
    assert [w for w in bench.written() if w[0] == 13] == []
    held = bench.device.read(1.0)
    assert [a.id for a in held.alarms] == ['profile.write_limit']
    bench.written()
    bench.clock.now += 1.0
    assert bench.device.read(1.2).alarms == ()  # the order that waited went out
    assert (13, 250) in bench.written()
    bench.device.write_power(3000.0, nan, 4.0)
    bench.device.stop()
    assert (13, 0) in bench.written()
    bench.device.close()


def test_an_order_that_waited_ends_with_its_lease(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    bench.device.write_power(2000.0, nan, 0.5)
    bench.device.write_power(4000.0, nan, 0.5)
    bench.written()
    bench.clock.now += 1.5
    bench.device.read(1.0)
    assert bench.written() == []
    bench.device.close()


def test_the_daily_budget_of_a_flash_register(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    count = 0
    for second in range(4 * 3600 // 60):  # four hours, another power each minute
        bench.device.write_power(1000.0 + 100.0 * (second % 7), nan, 4.0)
        count += sum(a == 13 for a, _ in bench.written())
        bench.clock.now += 60.0
    assert 8 <= count <= 10  # 48 a day are 2 an hour, and one hour's share at once
    bench.device.write_power(0.0, nan, 4.0)
    assert (13, 0) in bench.written()
    bench.device.close()


def test_heartbeat_counts_on_its_grid_and_wraps(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve)
    beats = []
    for _ in range(9):
        bench.device.read(bench.clock.now)
        beats += [v for a, v in bench.written() if a == 15]
        bench.clock.now += 0.5
    assert beats == [1, 2, 3, 1, 2]
    bench.device.close()


def test_a_refused_heartbeat_does_not_cost_the_reading(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve)
    bench.image.writable.clear()
    reading = bench.device.read(1.0)
    assert reading.state is ConverterState.STANDBY
    assert [a.id for a in reading.alarms] == ['profile.write_refused']
    bench.device.close()


def test_states_and_faults(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    bench.image.put(3, 0, 'i16', 25)
    bench.image.put(3, 1, 'u16', 3)
    reading = bench.device.read(1.0)
    assert (reading.state, reading.active_power) == (ConverterState.RUNNING, -2500.0)
    assert isnan(reading.frequency)
    bench.image.put(3, 2, 'u16', 5)
    reading = bench.device.read(2.0)
    assert reading.state is ConverterState.FAULT
    assert [a.id for a in reading.alarms] == ['device_under_test.overheat', 'device_under_test.fan_stuck']
    bench.device.close()


def test_what_the_device_cannot_take_is_refused_before_it_leaves(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)
    for power in (nan, inf, 11_000.0):
        with pytest.raises(BadValue):
            bench.device.write_power(power, nan, 1.0)
    assert 11 not in [a for a, _ in bench.written()]
    bench.device.close()


def test_a_share_needs_what_it_is_a_share_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='rated_power is missing: share'):
        ModbusConverter(params(tmp_path, CONVERTER, 'tcp://127.0.0.1:1'))


def test_read_only_writes_nothing(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, read_only=True)
    for call in (lambda: bench.device.write_power(100.0, nan, 1.0), bench.device.stop):
        with pytest.raises(ReadOnlyError):
            call()
    assert bench.device.read(1.0).state is ConverterState.STANDBY
    assert bench.written() == []
    bench.device.close()


def test_a_profile_of_another_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='describes a converter: use type modbus_converter'):
        ModbusMeter(params(tmp_path, CONVERTER, 'tcp://127.0.0.1:1', rated_power=1.0))


# -- the other roles ---------------------------------------------------------------------------------

BATTERY = """title: B
role: battery
transport: modbus
source: none, for a test
points:
  voltage: {address: 0, scale: 0.01}
  current: {address: 1, type: i16, scale: 0.1, positive: discharging}
  soc: {address: 2, unit: '%'}
  charge_full: {address: 3, unit: Ah}
  cells: {address: 10, count: 4, unit: mV}
  temperatures: {address: 20, count: 2, type: i16, stride: 2, scale: 0.1, not_implemented: [-32768]}
  contactor: {address: 4, enum: {1: OPEN, 3: CLOSED}}
  operation: {address: 5, access: rw}
write:
  contactor:
    closed: [{point: operation, value: 1}]
    open: [{point: operation, value: 2}]
  confirm:
    closed: {point: contactor, equals: [3], within: 0.5}
"""


def test_a_battery_fills_its_message_and_what_follows_from_it(
        tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = RegisterImage()
    for address, value in enumerate((5200, 0x10000 - 100, 40, 100, 3, 0)):
        image.put(3, address, 'u16', value, writable=address == 5)
    for i, cell in enumerate((3301, 3290, 3312, 3305)):
        image.put(3, 10 + i, 'u16', cell)
    image.put(3, 20, 'i16', 251)
    image.put(3, 21, 'i16', 0)
    image.put(3, 22, 'i16', -32768)
    image.fill(3, range(23))
    server = serve({1: image})
    device = ModbusBattery(params(tmp_path, BATTERY, f'tcp://127.0.0.1:{server.port}'))
    device.open()
    r = device.read(1.0)
    assert (r.voltage, r.current, r.power, r.soc, r.charge) == pytest.approx((52.0, 10.0, 520.0, 0.4, 40.0))
    assert (r.mode, r.contactor) == (Mode.CHARGING, Contactor.CLOSED)
    assert r.cells == pytest.approx((3.301, 3.290, 3.312, 3.305))
    assert (r.cell_voltage_min_index, r.cell_voltage_max_index) == (1, 2)
    assert (r.temperature, r.temperature_min) == pytest.approx((25.1, 25.1))
    assert isnan(r.temperatures[1])
    assert isnan(r.max_charge_power)
    device.set_contactor(True, True)
    assert image.words[3][5] == 1
    image.put(3, 4, 'u16', 1)
    with pytest.raises(Refused, match='contactor is 1 after 0.5 s, wanted 3'):
        device.set_contactor(True, True)
    with pytest.raises(BadValue, match='has no order for "charge_only"; it has: closed, open'):
        device.set_contactor(True, False)
    device.close()


IO = """title: I
role: io
transport: modbus
source: none, for a test
points:
  relay_1: {address: 0, function: 1, type: bool, kind: digital_output, access: rw}
  relay_2: {address: 1, function: 1, type: bool, kind: digital_output, access: rw}
  door: {address: 0, function: 2, type: bool, kind: digital_input}
  tank: {address: 0, function: 4, kind: analog_input, scale: 0.1, unit: degC}
  dimmer: {address: 0, kind: analog_output, access: rw, scale: 0.001, unit: V, write_range: [0, 10000]}
"""


def test_coils_inputs_and_analog_values(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = RegisterImage()
    for address in (0, 1):
        image.put(1, address, 'bit', 0, writable=True)
    image.put(2, 0, 'bit', 1)
    image.put(4, 0, 'u16', 215)
    image.put(3, 0, 'u16', 0, writable=True)
    server = serve({1: image})
    device = ModbusIo(params(tmp_path, IO, f'tcp://127.0.0.1:{server.port}'))
    device.open()
    device.write_output('relay_2', 1.0)
    device.write_output('dimmer', 2.5)
    r = device.read(1.0)
    assert ({k: int(v) for k, v in r.digital_outputs.items()}, int(r.digital_inputs['door'])) == (
        {'relay_1': 0, 'relay_2': 1}, 1)
    assert r.analog_inputs == {'tank': pytest.approx(21.5)}
    assert r.analog_outputs == {'dimmer': pytest.approx(2.5)}
    assert r.units == {'tank': 'degC', 'dimmer': 'V'}
    with pytest.raises(BadValue, match='no output'):
        device.write_output('door', 1.0)
    with pytest.raises(BadValue, match='takes 0 to 10000'):
        device.write_output('dimmer', 12.0)
    device.close()


CLIMATE = """title: K
role: climate
transport: modbus
source: none, for a test
points:
  temperature: {address: 0, type: i16, scale: 0.1}
  mode: {address: 1, access: rw, enum: {0: OFF, 1: HEAT, 2: COOL}}
  target_temperature: {address: 2, type: i16, scale: 0.1, access: rw}
write:
  climate: [{point: mode, value: mode}, {point: target_temperature, value: temperature}]
"""


def test_climate(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    image = RegisterImage()
    for address in range(3):
        image.put(3, address, 'i16', 215 if address == 0 else 0, writable=address > 0)
    server = serve({1: image})
    device = ModbusClimate(params(tmp_path, CLIMATE, f'tcp://127.0.0.1:{server.port}'))
    device.open()
    device.write_climate(3.0, 18.5)
    r = device.read(1.0)
    assert (r.temperature, r.mode.name, r.target_temperature) == (21.5, 'COOL', 18.5)
    device.write_climate(nan, 20.0)
    assert [image.words[3][a] for a in (1, 2)] == [2, 200]
    with pytest.raises(BadValue, match='no number for mode 4'):
        device.write_climate(4.0, nan)
    device.close()


def test_a_device_that_refuses_a_value_says_so(tmp_path: Path, serve: Callable[..., ModbusDeviceServer]) -> None:
    bench = Converter(tmp_path, serve, heartbeat=False)

    def refuse(function: int, address: int, values: list[int]) -> None:
        if address == 11:
            raise IllegalValue

    bench.image.on_write = refuse
    with pytest.raises(Refused, match='exception 3'):
        bench.device.write_power(100.0, nan, 1.0)
    bench.device.close()
