"""One suite over all drivers and all profiles; see `conformance_rules` for what is tried with which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from can_bus import can_address, can_port  # noqa: F401 - fixtures
from conformance_rules import CHECKS, ELSEWHERE, LOCAL, absent, drivers, named_tests, own_nodes, page
from conformance_stands import STANDS, TIMEOUT_S, ProfileImage, Stand, Wire

from bess_core.clock import Clock
from bess_core.convert import battery_to_msg, converter_to_msg, meter_to_msg
from bess_core.values import Quality
from bess_drivers.device import BadValue, DeviceError, Role
from bess_drivers.gate import Gate, GateParams, Setpoint
from bess_drivers.profiles import installed, load_profile
from bess_drivers.profiles.model import Point

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10.0
POSITIVE = {'charging': 1, 'import': 1, 'consuming': 1, 'inductive': 1,
            'discharging': -1, 'export': -1, 'generating': -1, 'capacitive': -1}
TO_MSG: dict[Role, Callable[..., Any]] = {Role.BATTERY: battery_to_msg, Role.CONVERTER: converter_to_msg,
                                          Role.METER: meter_to_msg}


def those(check: str) -> Any:
    """The stands to which a check applies."""
    found = [s for s in STANDS if not absent(s, check)]
    return pytest.mark.parametrize('stand', found, ids=[s.name for s in found])


@pytest.fixture
def wire(stand: Stand, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Wire]:
    if stand.transport == 'can':
        request.getfixturevalue('can_address')  # says why when there is no multicast
        built = stand.build(tmp_path, request.getfixturevalue('can_port'))
    else:
        built = stand.build(tmp_path)
    yield built
    built.end()


@pytest.fixture
def device(wire: Wire) -> Iterator[Any]:
    made = wire.make(False)
    made.open()
    again(made)
    yield made
    made.close()


def again(device: Any, now: float = 1.0, fits: Callable[[Any], bool] = lambda _: True) -> Any:
    """A good reading, got as a bus does it: after silence or loss closed and opened anew. Fails at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            device.identify()
            reading = device.read(now)
            if fits(reading):
                return reading
            assert time.monotonic() < end, reading
        except DeviceError as error:
            assert time.monotonic() < end, error
            time.sleep(0.02)
            if error.kind in ('timeout', 'disconnected'):
                device.close()
                with suppress(DeviceError):
                    device.open()


def numbers(value: Any, name: str = '') -> Iterator[tuple[str, float]]:
    """All numbers of a reading."""
    if is_dataclass(value):
        for f in fields(value):
            yield from numbers(getattr(value, f.name), f'{name}.{f.name}')
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from numbers(v, name)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from numbers(v, f'{name}.{k}')
    elif isinstance(value, (int, float)) and not isinstance(value, (bool, Enum)):
        yield name, float(value)


def test_every_driver_and_every_profile_is_tried_or_says_where() -> None:
    """From the entry points: a driver that is registered without a row fails here."""
    tried = {s.driver for s in STANDS}
    rows = {n.partition('-')[0] for n in LOCAL} | set(ELSEWHERE)
    assert drivers() | own_nodes() == tried | rows
    assert not tried & rows
    assert all(set(row) == set(CHECKS) for row in (*LOCAL.values(), *ELSEWHERE.values()))
    names = {p for p in installed() if not load_profile(p).head.template}
    assert names == {s.profile for s in STANDS if s.profile and '/' not in s.profile}
    for test in named_tests():
        path, _, name = test.partition('::')
        assert f'def {name}(' in (ROOT / path).read_text(), test


def test_the_page_says_what_runs() -> None:
    assert (ROOT / 'docs/conformance.md').read_text() == page(), 'python test/drivers/conformance_rules.py'


@those('normal')
def test_normal(stand: Stand, wire: Wire, device: Any) -> None:
    reading = again(device, 7.0)
    if stand.transport == 'can':
        assert 5.0 < reading.time <= 7.0  # of the oldest frame
    elif stand.role is not Role.IO:
        assert reading.time == 7.0
    assert device.identify().manufacturer or stand.profile == 'generic_io_8'
    for name, number in numbers(reading):
        assert isfinite(number) or isnan(number), f'{name} is {number}'
    if stand.role in TO_MSG:
        assert reading.quality is Quality.OK and reading.alarms == ()
        TO_MSG[stand.role](reading, Clock(), 'x')
    if stand.role is Role.BATTERY and wire.image is None:
        assert reading.voltage == pytest.approx(52.0)
        assert reading.soc == pytest.approx(0.5)
    if stand.role is Role.METER and wire.image is None:
        assert reading.active_power == pytest.approx(600.0, rel=1e-3)


@those('faults')
def test_faults(stand: Stand, wire: Wire, device: Any) -> None:
    if wire.image is not None:
        for fault in wire.image.profile.faults:
            wire.image.fault(fault, True)
            same = {f.id for f in wire.image.profile.faults if f.point == fault.point and f.bit == fault.bit
                    and f.code == fault.code}
            if wire.image.profile.points[fault.point].keys.poll != 'fast':
                device.open()
            assert {a.id for a in again(device, 2.0).alarms} == same, fault
            wire.image.fault(fault, False)
        device.open()
        assert again(device, 3.0).alarms == ()
    elif stand.transport == 'can' and stand.profile:
        known = load_profile(stand.profile).faults
        alarms = 0x202 if stand.name == 'can_meter' else 0x7F4
        for fault in known:
            wire.can_bus.frames[alarms] = (1 << fault.bit).to_bytes(8, 'little')
            again(device, fits=lambda r, fault=fault: [a.id for a in r.alarms] == [fault.id])
    else:
        for change in ({'cells': (3.9,) * 16, 'voltage': 62.4}, {'cells': (2.4,) * 16, 'voltage': 38.4},
                       {'temperatures': (70.0, 70.0)}):
            usual = wire.plant.packs['u']
            wire.plant.packs['u'] = replace(usual, **change)
            # Not every BMS says in its alarms that it is hot; that nothing flows then holds for all.
            reading = again(device, fits=lambda r, hot='temperatures' in change: (
                0.0 in (r.max_charge_current, r.max_discharge_current) and bool(r.alarms or hot)))
            assert all('.' in a.id and a.text for a in reading.alarms)
            wire.plant.packs['u'] = usual
            device.close()
            device.open()
            again(device, fits=lambda r: not r.alarms and r.max_charge_current > 0.0)


def refused(device: Any, times: int, needed: bool = True) -> None:
    """Reads fail with an error of a device, and only with such; none gives a value."""
    end = time.monotonic() + DEADLINE_S
    failed = 0
    while failed < times:
        try:
            device.read(2.0)
        except DeviceError as error:
            failed += 1
            if error.kind in ('timeout', 'disconnected'):
                device.close()
                with suppress(DeviceError):
                    device.open()
        else:
            assert failed == 0, 'a value of answers that are wrong'
            assert time.monotonic() < end, 'it goes on reading'  # CAN: until the good frames are too old


@those('garbage')
def test_garbage(stand: Stand, wire: Wire, device: Any) -> None:
    wire.faults.inject('flipped_bytes')
    refused(device, 4 if stand.transport == 'modbus' else 1)
    wire.faults.clear()
    again(device)


@those('truncation')
def test_truncation(stand: Stand, wire: Wire, device: Any) -> None:
    wire.faults.inject('truncated_frame')
    refused(device, 1)
    wire.faults.clear()
    again(device)


@those('wrong_unit')
def test_wrong_unit(stand: Stand, wire: Wire, device: Any) -> None:
    wire.faults.inject('wrong_unit_id')
    refused(device, 1)
    wire.faults.clear()
    again(device)


@those('unplug')
def test_unplug_in_the_middle_of_a_transfer(stand: Stand, wire: Wire, device: Any) -> None:
    if stand.transport != 'can':
        wire.faults.inject('late_answer', 5.0)
    pull = threading.Timer(TIMEOUT_S / 4, lambda: wire.faults.inject('disconnect'))
    pull.start()
    refused(device, 1)
    pull.join()
    wire.faults.clear('late_answer')
    refused(device, 1)
    wire.faults.clear()
    again(device)


@those('clock')
def test_clock_steps(stand: Stand, wire: Wire, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for now, step in ((10.0, 3e8), (10.1, -3e8), (10.2, 0.0)):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        reading = again(device, now)
        assert getattr(reading, 'quality', Quality.OK) is Quality.OK
        if stand.role is not Role.IO:
            assert now - 3.0 < reading.time <= now


@those('slow')
def test_slow_and_late_answers(stand: Stand, wire: Wire, device: Any) -> None:
    wire.faults.inject('late_answer', TIMEOUT_S / 3)
    again(device, 2.0)
    wire.faults.inject('late_answer', TIMEOUT_S + 0.08)
    refused(device, 1)
    moved = move(wire, stand)
    wire.faults.clear()
    reading = again(device)
    if moved:
        assert moved(reading), 'the late answer was taken for a new one'
    device.read(3.0)


def move(wire: Wire, stand: Stand) -> Callable[[Any], bool] | None:
    """Other numbers than before; what a reading of now must say."""
    if wire.image is not None or stand.role is Role.IO:
        return None
    if stand.role is Role.METER:
        wire.plant.meter_sample = replace(wire.plant.meter_sample, phase_power=(-100.0, -200.0, -300.0))
        return lambda r: abs(r.active_power + 600.0) < 1.0
    wire.plant.packs['u'] = replace(wire.plant.packs['u'], voltage=51.0)
    wire.plant.inverters['u'] = replace(wire.plant.inverters['u'], frequency=51.0)
    return (lambda r: r.voltage == pytest.approx(51.0)) if stand.role is Role.BATTERY else (
        lambda r: isnan(r.frequency) or r.frequency == pytest.approx(51.0))


@those('unknown')
def test_values_that_are_not_implemented(stand: Stand, wire: Wire, device: Any) -> None:
    if wire.image is None:
        wire.plant.packs['u'] = replace(wire.plant.packs['u'], soh=nan)
        wire.plant.meter_sample = replace(wire.plant.meter_sample, voltage=(nan, nan, nan), frequency=nan)
        wire.plant.inverters['u'] = replace(wire.plant.inverters['u'], temperature=nan, frequency=nan)
        name = 'soh' if stand.role is Role.BATTERY else 'frequency'
        assert isnan(getattr(device.read(2.0), name))
        return
    for point in [p for p in wire.image.profile.points.values() if p.keys.not_implemented and p.readable]:
        for raw in point.keys.not_implemented:
            wire.image.raw(point, raw)
            device.open()
            device.identify()
            with suppress(BadValue):  # a value without which there is no reading
                device.read(2.0)
                value = device._values[point.name]
                assert all(map(isnan, value if isinstance(value, tuple) else (value,))), point.name
        wire.image.usual(point)
    again(device)


@those('sign')
def test_sign(stand: Stand, wire: Wire, device: Any) -> None:
    if wire.image is not None:
        for point in wire.image.profile.points.values():
            if point.keys.positive and point.readable and point.place.type != 'text':
                image_sign(wire.image, point, device)
        return
    if stand.name == 'can_meter':
        for raw, sign in ((500, 1), (0x10000 - 500, -1)):
            wire.can_bus.frames[0x201] = raw.to_bytes(2, 'little') + bytes.fromhex('fc0888130000')
            again(device, fits=lambda r, sign=sign: r.active_power == pytest.approx(500.0 * sign))
        return
    if stand.profile and stand.transport == 'can':
        for raw, sign in ((4100, 1), (3900, -1)):  # 0.1 A from -400 A
            wire.can_bus.frames[0x2F4] = bytes.fromhex('0802') + raw.to_bytes(2, 'little') + bytes.fromhex('32000000')
            again(device, fits=lambda r, sign=sign: r.current == pytest.approx(10.0 * sign))
        return
    for sign in (1, -1):
        if stand.role is Role.METER:
            wire.plant.meter_sample = replace(wire.plant.meter_sample, phase_power=(500.0 * sign,) * 3)
        else:
            wire.plant.packs['u'] = replace(wire.plant.packs['u'], current=10.0 * sign)
            wire.plant.inverters['u'] = replace(wire.plant.inverters['u'], active_power=500.0 * sign,
                                                dc_power=500.0 * sign, dc_current=10.0 * sign)
        name = 'current' if stand.role is Role.BATTERY else 'active_power'
        if stand.profile in ('rd6006', 'trumpf_dc1008'):
            device.write_power(200.0 if stand.profile == 'rd6006' else 500.0 * sign, nan, 5.0)
            wire.plant.inverters['u'] = replace(wire.plant.inverters['u'], dc_power=500.0 * sign,
                                                dc_current=10.0 * sign)
        wanted = 1 if stand.profile == 'rd6006' else sign  # it only pushes current out
        again(device, fits=lambda r, name=name, wanted=wanted: getattr(r, name) * wanted > 1.0)


def image_sign(image: ProfileImage, point: Point, device: Any) -> None:
    k = point.keys
    zero = -k.offset / k.scale  # the number of the device when nothing flows
    for way in (1, -1):
        raw = zero + way * 100.0
        if k.range:
            low, high = sorted(image.number(point, v) for v in k.range)
            raw = zero + way * min(100.0, abs(low - zero) / 2 or 100.0, abs(high - zero) / 2 or 100.0)
            if not low <= raw <= high:
                continue  # the profile says that this does not occur
        raw = raw if point.place.type == 'f32' else round(raw) if abs(raw - zero) >= 0.5 else zero + way
        if raw < 0 and point.place.type.startswith('u'):
            continue  # the device itself cannot say it
        image.raw(point, raw)
        device.open()
        again(device, 2.0)
        value = device._values[point.name]
        first = value[0] if isinstance(value, tuple) else value
        assert first * way * POSITIVE[k.positive] > 0.0, point.name
        image.usual(point)


@those('lease')
def test_lease_ends_in_zero(stand: Stand, wire: Wire, device: Any) -> None:
    """The last gate, the driver and the device on a virtual clock: what `driver_node` does, tick by tick."""
    now, gate = 2.0, Gate(GateParams(expiry_ramp=5000.0), 'x')
    if stand.profile:
        device._clock = lambda: now  # of its write limits
    gate.start()
    power, seen, wrote = 250.0, [], []
    gate.reading(again(device, now))
    assert gate.offer(Setpoint(power, 1.0, 'test', 1, now), now) == ''
    for _ in range(120):
        now += 0.1
        try:
            gate.reading(device.read(now))
        except DeviceError:  # a busy machine
            gate.reading(again(device, now))
        out = gate.tick(now)
        if out.write:
            device.write_power(out.power, nan, out.lease)
            gate.written(out.power, nan, now)
            wrote.append((round(now - 2.0, 1), out.power))
        seen.append(wire.plant.inverters['u'].active_power)
    assert wrote[0][1] > 0.0 and wrote[-1][1] == 0.0 and wrote[-1][0] < 3.0, wrote
    if wire.image is None:
        assert max(seen) == pytest.approx(power, abs=20.0), 'the order arrived'
        assert seen[-1] == 0.0, 'the lease is over'
    else:
        profile = wire.image.profile
        enabled = [step for step in profile.order if 'charging' in step.bits.values()]  # the share stays, its bit goes
        for step in enabled or profile.order:
            number = device._ask(profile.points[step.point])
            if enabled:
                assert not any(int(number) >> int(bit) & 1 for bit, word in step.bits.items()
                               if word in ('charging', 'discharging'))
            elif step.value in ('power', 'charge_power', 'current', 'charge_current'):
                assert number == 0.0


ORDERS: dict[str, Callable[[Any], Any]] = {
    'power': lambda d: d.write_power(500.0, 100.0, 2.0), 'zero': lambda d: d.write_power(0.0, 0.0, 2.0),
    'stop': lambda d: d.stop(), 'close': lambda d: d.set_contactor(True, True),
    'open': lambda d: d.set_contactor(False, False), 'output': lambda d: d.write_output('relay_1', 1.0),
    'climate': lambda d: d.write_climate(3.0, 19.0)}


def settled(wire: Wire, quiet_s: float = 2.0, deadline_s: float = 20.0) -> None:
    """Wait until nothing new was heard for a while."""
    end, known, since = time.monotonic() + deadline_s, 0, time.monotonic()
    while time.monotonic() < min(end, since + quiet_s):
        time.sleep(0.05)
        if len(set(wire.heard)) != known:
            known, since = len(set(wire.heard)), time.monotonic()
    assert time.monotonic() < end, 'something new all the time'


@those('read_only')
def test_read_only(stand: Stand, wire: Wire) -> None:
    device = wire.make(True)
    device.open()
    again(device)
    for n in range(3):
        device.read(n)
    if stand.transport == 'can':
        settled(wire)  # the device talks too, and not all of it at once
    before = {repr(h) for h in wire.heard} if stand.transport != 'modbus' else {'1', '2', '3', '4'}
    methods = {Role.CONVERTER: ('power', 'zero', 'stop'), Role.BATTERY: ('close', 'open'), Role.IO: ('output',),
               Role.CLIMATE: ('climate',)}
    for name in methods.get(stand.role, ()):
        with pytest.raises(DeviceError):
            ORDERS[name](device)
    device.read(9.0)
    device.close()
    assert wire.heard
    assert {repr(h) for h in wire.heard} <= before
    assert not wire.written()


WRITERS = [s for s in STANDS if s.role in (Role.CONVERTER, Role.IO, Role.CLIMATE)]


@pytest.mark.parametrize('stand', WRITERS, ids=[s.name for s in WRITERS])
def test_writes_are_heard_when_they_are_allowed(stand: Stand, wire: Wire, device: Any) -> None:
    """Otherwise `test_read_only` would prove nothing."""
    before, written = {repr(h) for h in wire.heard}, len(wire.written())
    for order in ORDERS.values():
        with suppress(AttributeError, DeviceError):
            order(device)
    assert {repr(h) for h in wire.heard} - before or len(wire.written()) > written  # a heartbeat writes from the start

