"""A CAN battery on a real bus between processes' sockets: driver, simulated battery, server for inverters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import can
import pytest
from can_bus import can_address, can_port, wire  # noqa: F401 - fixtures

from bess.msg import BatteryStatus
from bess_core import qos
from bess_core.convert import battery_to_msg
from bess_core.values import BatteryReading, Contactor, Quality, Severity
from bess_drivers.can import can_bms_codec as codec
from bess_drivers.can.can_bms import CanBmsBattery, CanBmsParams
from bess_drivers.can.can_bms_server_node import CanBmsServerNode
from bess_drivers.can.channel import CanLink, Mailbox, parse_address
from bess_drivers.device import BadFrame, BadValue, DeviceError, Disconnected, ReadOnlyError, Refused, Silent
from bess_drivers.driver_node import node_type
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.can_bms import CanBmsSimulator
from bess_sim.plant_api import PackSample, StaticPlant


@pytest.fixture
def battery(can_address: str) -> Iterator[CanBmsSimulator]:  # noqa: F811
    """A simulated battery that talks."""
    simulator = CanBmsSimulator(StaticPlant(), 'a', DeviceFaults(), can_address)
    simulator.start()
    yield simulator
    simulator.stop()
    simulator.check()


@pytest.fixture
def device(can_address: str) -> Iterator[CanBmsBattery]:  # noqa: F811
    """The driver's device on the same bus."""
    made = CanBmsBattery(CanBmsParams(address=can_address, timeout_s=0.6))
    made.open()
    yield made
    made.close()


def until(device: CanBmsBattery, kind: type[DeviceError] | None, over: Any, check: Any = lambda r: True) -> Any:
    """Poll until there is a good reading that fulfils `check`, or a failure of this kind."""
    while not over():
        try:
            reading = device.read(100.0)
        except DeviceError as error:
            if kind is not None and isinstance(error, kind):
                return error
        else:
            if kind is None and check(reading):
                return reading
    raise AssertionError(f'not in time: {kind or check}')


def test_what_the_battery_says_arrives(battery, device, monotonic_deadline):
    battery.plant.packs['a'] = PackSample(current=-12.3, charge=42.0, temperatures=(11.0, 19.0))
    reading = until(device, None, monotonic_deadline(), lambda r: r.current < -12 and r.temperature_min < 12)
    assert reading.current == pytest.approx(-12.3) and reading.soc == pytest.approx(0.42)
    assert (reading.temperature, reading.temperature_min) == pytest.approx((19.0, 11.0))
    assert reading.contactor is Contactor.CLOSED and reading.alarms == ()
    assert 99.0 < reading.time <= reading.newest <= 100.0  # of the frames, not of the poll
    identity = device.identify()
    assert (identity.manufacturer, identity.version) == ('BESSSIM', '1.02')
    with pytest.raises(Refused):
        device.set_contactor(True, True)


def test_a_full_cell_blocks_charging_and_is_a_fault(battery, device, monotonic_deadline):
    battery.plant.packs['a'] = PackSample(cells=(3.3,) * 15 + (3.7,))
    reading = until(device, None, monotonic_deadline(), lambda r: r.alarms)
    assert [a.id for a in reading.alarms] == ['can_bms.overvoltage']
    assert reading.max_charge_current == 0.0 and reading.max_discharge_current == pytest.approx(100.0)


def test_silence_damage_and_recovery_without_reopening(battery, device, monotonic_deadline):
    over = monotonic_deadline()
    until(device, None, over)
    channel = device.link.channel
    for fault, kind in (('no_answer', Silent), ('wrong_unit_id', Silent), ('truncated_frame', BadFrame),
                        ('flipped_bytes', BadValue)):
        battery.faults.inject(fault)
        until(device, kind, over)
        battery.faults.clear()
        until(device, None, over)
    assert device.link.channel is channel


def test_keep_alive_is_sent_unless_read_only(can_address, wire, device):  # noqa: F811
    with pytest.raises(Silent):
        device.read(0.0)
    assert wire.recv(2.0).arbitration_id == 0x305
    silent = CanBmsBattery(CanBmsParams(address=can_address), read_only=True)
    silent.open()
    try:
        with pytest.raises(Silent):
            silent.identify()
        with pytest.raises(ReadOnlyError):
            silent.link.send(0x305, bytes(8))
        assert wire.recv(0.2) is None
    finally:
        silent.close()


def test_frames_of_others_and_hostile_ones_do_no_harm(device, wire, battery, monotonic_deadline):  # noqa: F811
    for can_id, data in ((0x351, b''), (0x7FF, bytes(8)), (0x1ABCDEF0, bytes(8)), (0x355, b'\xff' * 8)):
        wire.send(can.Message(arbitration_id=can_id, data=data, is_extended_id=can_id > 0x7FF))
    wire._multicast.send(b'no frame at all')  # the wire itself: bytes that are no CAN message
    until(device, None, monotonic_deadline())
    assert device.link.channel.failure == ''


def test_a_bus_that_is_not_there_is_disconnected():
    link = CanLink(parse_address('can:socketcan:nosuchcan7'), Mailbox([1]))
    with pytest.raises(Disconnected):
        link.open()
    with pytest.raises(Disconnected):
        link.check()


@pytest.mark.parametrize('address', ['', 'tcp://1.2.3.4', 'can:', 'can:nosuch:0', 'can:slcan:', 'can:can0?baud=1',
                                     'can:can0?bitrate=7', 'can:can0?bitrate=fast', 'can:can0?port=0'])
def test_bad_addresses_are_refused(address):
    with pytest.raises(ValueError, match='address'):
        parse_address(address)


def test_channel_is_shared_and_closed_with_its_last_user(can_address):  # noqa: F811
    one, two = (CanLink(parse_address(can_address), Mailbox([1])) for _ in range(2))
    one.open()
    two.open()
    channel = one.check()
    assert two.check() is channel
    one.close()
    assert channel.failure == '' and channel._thread.is_alive()
    two.close()
    assert not channel._thread.is_alive()


def test_driver_node_goes_stale_then_invalid_and_back(graph, battery, can_address):  # noqa: F811
    node = graph.add(node_type(CanBmsBattery), 'bms', {
        'address': can_address, 'period': 0.1, 'timeout_s': 0.5, 'max_age': 0.6, 'invalid_after': 1.2,
        'errors_to_fault': 2})
    graph.up(node)
    statuses = graph.listen(BatteryStatus, 'bms/status', qos.MEASUREMENT)
    graph.wait(lambda: statuses and statuses[-1].quality == 0, 'a good status')
    battery.faults.inject('no_answer')
    graph.wait(lambda: statuses[-1].quality == 2, 'INVALID')
    assert [s.quality for s in statuses if s.quality] == sorted(s.quality for s in statuses if s.quality)
    assert node.faults.get('comm.silent').active
    battery.faults.clear()
    graph.wait(lambda: statuses[-1].quality == 0, 'good again')
    assert node.faults.get('comm.silent') is None


def reading(graph, **changes) -> Any:
    now = graph.clock.now()
    values = {'time': now, 'newest': now, 'quality': Quality.OK, 'voltage': 52.0, 'current': 3.0, 'soc': 0.5,
              'soh': 0.97, 'max_charge_current': 70.0, 'max_discharge_current': 90.0, 'charge_full': 280.0,
              'contactor': Contactor.CLOSED, 'members': 3, 'members_usable': 2} | changes
    return battery_to_msg(BatteryReading(**values), graph.clock, 'all')


def test_an_inverter_sees_our_aggregate_as_a_can_battery(graph, can_address, wire):  # noqa: F811
    node = graph.add(CanBmsServerNode, 'server', {
        'battery': 'all', 'address': can_address, 'period': 0.1, 'max_age': 0.5, 'invalid_after': 1.0,
        'inverter_timeout': 0.3})
    graph.up(node)
    source = graph.publisher(BatteryStatus, 'all/status', qos.MEASUREMENT)
    seen: dict[int, bytes] = {}

    def look(condition: Any) -> Any:
        def check() -> bool:
            while (message := wire.recv(0)) is not None:
                seen[message.arbitration_id] = bytes(message.data)
            return codec.LIMITS in seen and condition(codec.decode(seen))
        return check

    graph.wait(lambda: node.faults.get('battery.stale') is not None, 'no values yet: says so and sends nothing')
    assert wire.recv(0.2) is None
    source.publish(reading(graph))
    graph.wait(look(lambda b: b.charge_current == pytest.approx(70.0)), 'limits')
    said = codec.decode(seen)
    assert (said.discharge_current, said.voltage, said.current) == pytest.approx((90.0, 52.0, 3.0))
    assert (said.soc, said.soh, said.capacity, said.modules_offline) == pytest.approx((0.5, 0.97, 280.0, 1))
    assert (said.charge_voltage, said.requests, said.maker) == (pytest.approx(56.0), 0xC0, 'BESS')
    graph.wait(lambda: node.faults.get('can_bms.inverter_lost') is not None, 'the inverter does not answer')
    wire.send(can.Message(arbitration_id=0x305, data=bytes(8), is_extended_id=False))
    graph.wait(lambda: node.faults.get('can_bms.inverter_lost') is None, 'the inverter is back')
    source.publish(reading(graph, max_charge_current=0.0))
    graph.wait(look(lambda b: b.charge_current == 0.0), 'no charging')
    said = codec.decode(seen)
    assert said.charge_voltage == pytest.approx(52.0) and said.requests == 0x40
    graph.wait(look(lambda b: b.discharge_current == 0.0 and b.active), 'a stale battery allows nothing')
    graph.wait(lambda: node.faults.get('battery.stale') is not None, 'an invalid battery')
    while wire.recv(0) is not None:
        pass
    graph.settle(0.3)
    assert wire.recv(0) is None  # silence: the inverter stops by itself
    assert node.faults.get('battery.stale').severity is Severity.WARNING


def test_the_server_survives_its_bus_and_foreign_frames(graph, can_address, wire, monkeypatch):  # noqa: F811
    node = graph.add(CanBmsServerNode, 'server', {
        'battery': 'all', 'address': can_address, 'period': 0.1, 'max_age': 2.0, 'invalid_after': 4.0,
        'inverter_timeout': 0.3})
    graph.up(node)
    source = graph.publisher(BatteryStatus, 'all/status', qos.MEASUREMENT)
    source.publish(reading(graph))
    graph.wait(lambda: wire.recv(0) is not None, 'frames')
    graph.wait(lambda: node.faults.get('can_bms.inverter_lost') is not None, 'no inverter yet')
    for frame_id, extended, data in ((0x306, False, bytes(8)), (0x305, True, bytes(8)), (0x7FF, False, b''),
                                     (0x351, False, bytes(3))):
        wire.send(can.Message(arbitration_id=frame_id, data=data, is_extended_id=extended))
    graph.settle(0.3)
    assert node.faults.get('can_bms.inverter_lost') is not None  # none of these is the inverter
    bus_type = type(node._sender.link.channel._bus)
    real = bus_type.send

    def gone(*_: Any, **__: Any) -> None:
        raise can.CanOperationError('Network is down')

    monkeypatch.setattr(bus_type, 'send', gone)
    graph.wait(lambda: node.faults.get('can_bms.not_sent') is not None, 'the bus is gone')
    monkeypatch.setattr(bus_type, 'send', real)
    graph.wait(lambda: node.faults.get('can_bms.not_sent') is None, 'the bus is back')
    clock = time.time
    for step in (3e8, -3e8):
        monkeypatch.setattr(time, 'time', lambda step=step: clock() + step)
        while wire.recv(0) is not None:
            pass
        graph.wait(lambda: wire.recv(0) is not None, 'it goes on sending')
        assert node.faults.get('battery.stale') is None


def test_an_id_with_29_bits_is_another_frame(device, can_address, wire, monotonic_deadline):  # noqa: F811
    """A charger or inverter on the same bus may use 29 bit ids below 0x800."""
    frames = codec.encode(codec.BatteryFrames(
        charge_voltage=56.0, charge_current=70.0, discharge_current=90.0, discharge_voltage=44.0, soc=0.5, soh=0.97,
        voltage=52.0, current=3.0, temperature=20.0))
    for extended in (True, False):
        for can_id, data in frames.items():
            wire.send(can.Message(arbitration_id=can_id, data=data, is_extended_id=extended))
        if extended:
            channel, over = device.link.channel, monotonic_deadline()
            while channel.counters.unwanted < len(frames):
                assert not over()
                time.sleep(0.01)
            with pytest.raises(DeviceError):
                device.read(100.0)
            assert not device.link.mailbox.frames
    assert until(device, None, monotonic_deadline()).voltage == pytest.approx(52.0)
