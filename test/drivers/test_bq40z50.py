"""BQ40Z50: published vectors, the driver and its administration against a gauge in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from i2c_double import Bus, i2c_bus

from bess_core.values import Contactor, Mode, Severity
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
from bess_drivers.smbus import bq40z50_codec as codec
from bess_drivers.smbus.bq40z50 import Bq40z50Battery, Bq40z50Params
from bess_drivers.smbus.i2c import parse_address, pec
from bess_drivers.smbus.keys import read_keys

GAUGE = 0x0B
KEYS = 'unseal: 0414 3672\nfull_access: FFFF FFFF  # as delivered\n'


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    with i2c_bus(tmp_path, monkeypatch, 'bq40z50') as made:
        yield made


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / 'keys'
    path.write_text(KEYS)
    path.chmod(0o600)
    return str(path)


def gauge(bus: Bus, read_only: bool = False, **params: Any) -> Bq40z50Battery:
    made = Bq40z50Battery(Bq40z50Params(**{'address': bus.address, 'quiet_s': 0.1, **params}), read_only=read_only)
    made.open()
    return made


# -- pure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('data', 'code'), [
    ('160817a60b', 0x2A), ('16001404', 0x0C), ('1644025400', 0x34), ('1644020600', 0x12)])
def test_packet_error_codes_that_were_published(data, code):
    assert pec(bytes.fromhex(data)) == code


@given(st.binary(max_size=40), st.integers(0, 7), st.data())
def test_a_packet_error_code_finds_every_single_wrong_bit(data, bit, draw):
    data += b'\0'
    at = draw.draw(st.integers(0, len(data) - 1))
    wrong = bytearray(data)
    wrong[at] ^= 1 << bit
    assert pec(bytes(wrong)) != pec(data)
    assert pec(data + bytes((pec(data),))) == 0


def test_the_published_answer_to_a_block_access():
    assert codec.answer_of(0x0006, bytes.fromhex('06002101')) == bytes.fromhex('2101')
    for wrong in ('07002101', '06', ''):
        with pytest.raises(BadFrame):
            codec.answer_of(0x0006, bytes.fromhex(wrong))


def test_every_protection_and_permanent_failure_has_a_name():
    for bit, condition in codec.SAFETY_BITS.items():
        assert codec.safety_conditions(1 << bit, 0) == (condition,)
    for bit, condition in codec.PF_BITS.items():
        assert codec.safety_conditions(0, 1 << bit) == (condition,)
        assert condition.severity is Severity.CRITICAL and condition.blocks_charge and condition.blocks_discharge
    assert [c.id for c in codec.safety_conditions(1 << 15, 1 << 5)] == ['safety_bit_15', 'pf_bit_5']
    assert len({c.id for c in (*codec.SAFETY_BITS.values(), *codec.PF_BITS.values())}) == len(
        codec.SAFETY_BITS) + len(codec.PF_BITS)


@given(st.binary(max_size=40))
def test_garbage_in_blocks_gives_only_device_errors(data):
    for parse in (codec.parse_operation, lambda d: codec.dword('x', d), lambda d: codec.parse_cells(d, 4),
                  lambda d: codec.parse_temperatures(d, 4), lambda d: codec.answer_of(0x4000, d)):
        try:
            parse(data)
        except DeviceError:
            pass


@pytest.mark.parametrize(('address', 'problem'), [
    ('i2c:', 'names no bus'), ('i2c:/dev/i2c-1?address=0x99', '0x03..0x77'), ('i2c:/dev/i2c-1?address=x', '0x03'),
    ('i2c:/dev/i2c-1?speed=1', "unknown setting 'speed'")])
def test_addresses(address, problem):
    assert parse_address('i2c:/dev/i2c-1?address=0x20', 0x0B).device == 0x20
    assert parse_address('/dev/i2c-7', 0x0B) == parse_address('i2c:/dev/i2c-7?address=11', 1)
    with pytest.raises(ValueError, match=problem):
        parse_address(address, 0x0B)


# -- keys -----------------------------------------------------------------------------------------------


def test_keys_only_from_a_file_of_the_owner_alone(key_file, tmp_path):
    keys = read_keys(key_file)
    assert keys.unseal == (0x0414, 0x3672) and '414' not in repr(keys)
    for mode in (0o640, 0o604, 0o620, 0o601, 0o660):
        os.chmod(key_file, mode)
        with pytest.raises(Refused, match='chmod 600'):
            read_keys(key_file)
    os.chmod(key_file, 0o400)
    assert read_keys(key_file).full_access == (0xFFFF, 0xFFFF)
    (tmp_path / 'link').symlink_to(key_file)
    for path in (tmp_path / 'link', tmp_path / 'none', tmp_path, ''):
        with pytest.raises(Refused):
            read_keys(str(path) if path else '')
    os.mkfifo(tmp_path / 'pipe', 0o600)
    with pytest.raises(Refused, match='regular'):
        read_keys(str(tmp_path / 'pipe'))


@pytest.mark.parametrize('text', ['unseal: 0414', 'unseal: 0414 36722', 'unseal: secret 0414', 'open: 1 2', 'x', ':',
                                  'unseal: -1 2', 'a' * 5000])
def test_wrong_key_files_do_not_show_what_is_in_them(tmp_path, text):
    path = tmp_path / 'keys'
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Refused) as error:
        read_keys(str(path))
    assert 'secret' not in str(error.value) and '0414' not in str(error.value)


def test_a_file_of_somebody_else(key_file, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
    with pytest.raises(Refused, match='another user'):
        read_keys(key_file)


# -- driver ---------------------------------------------------------------------------------------------


def test_what_the_gauge_says_arrives_without_one_write(bus):
    bus.set(GAUGE, words={0x0A: 0x10000 - 1200, 0x09: 14760}, cells=[3690, 3700, 3710, 3660])
    device = gauge(bus, read_only=True, sensors=2)
    identity = device.identify()
    assert (identity.manufacturer, identity.model, identity.serial, identity.version) == (
        'Texas Instruments', 'bms_03', '7', 'LION')
    r = device.read(5.0)
    assert (r.time, r.voltage, r.current, r.soh) == pytest.approx((5.0, 14.76, -1.2, 0.98))
    assert r.cells == pytest.approx((3.69, 3.70, 3.71, 3.66)) and r.cell_voltage_min_index == 3
    assert (r.charge, r.charge_full, r.soc) == pytest.approx((1.34, 2.0, 0.67))
    assert r.temperatures == pytest.approx((25.45, 25.05, 25.15))
    assert r.mode is Mode.DISCHARGING and r.contactor is Contactor.CLOSED and r.alarms == ()
    assert r.max_charge_current == pytest.approx(0.0) and r.max_discharge_current == 100.0  # cells above 3.65 V
    assert bus.writes(GAUGE) == []
    device.close()


def test_capacity_in_energy_and_scales(bus):
    device = gauge(bus, cell_voltage_high=4.2)
    bus.set(GAUGE, words={0x03: 0x8000, 0x14: 0xFFFF})
    device.identify()
    r = device.read(0.0)
    assert (r.energy, r.energy_full) == pytest.approx((13.4, 20.0)) and isnan(r.charge) and r.soc == 0.67
    assert r.max_charge_current == 100.0  # 0xFFFF is no limit
    bus.set(GAUGE, words={0x03: 0, 0x1A: 0x1131, 0x09: 5200, 0x0A: 250, 0x14: 300})
    device.identify()
    r = device.read(0.0)
    assert (r.voltage, r.current, r.charge_full, r.max_charge_current) == pytest.approx((52.0, 2.5, 20.0, 3.0))
    device.close()


@pytest.mark.parametrize('bit', [0, 1, 10, 27])
def test_a_protection_is_a_fault_and_blocks(bus, bit):
    bus.set(GAUGE, safety=1 << bit, words={0x14: 0xFFFF}, cells=[3600] * 4)
    r = gauge(bus, cell_voltage_high=4.2).read(0.0)
    condition = codec.SAFETY_BITS[bit]
    assert [a.id for a in r.alarms] == [f'bq40z50.{condition.id}']
    assert (r.max_charge_current == 0.0) is condition.blocks_charge
    assert (r.max_discharge_current == 0.0) is condition.blocks_discharge


def test_permanent_failure(bus):
    bus.set(GAUGE, failure=1 << 25)
    r = gauge(bus).read(0.0)
    assert [a.id for a in r.alarms] == ['bq40z50.pf_open_cell'] and r.mode is Mode.FAULT


@pytest.mark.parametrize(('words', 'what'), [({0x0D: 101}, 'state of charge'), ({0x09: 65535}, 'voltage'),
                                             ({0x4F: 255}, 'state of health')])
def test_impossible_values(bus, words, what):
    bus.set(GAUGE, words=words)
    with pytest.raises(BadValue, match=what):
        gauge(bus).read(0.0)


def test_damage_is_found_and_asked_again_and_absence_is_silence(bus):
    device = gauge(bus)
    for fault, error in (('flip', (BadChecksum, BadFrame)), ('short', (BadChecksum, BadFrame)), ('absent', NoAnswer)):
        bus.fault(GAUGE, fault)
        with pytest.raises(error):
            device.read(0.0)
    assert device.repeated == 4  # two more tries each
    bus.fault(GAUGE)
    assert device.read(0.0).voltage == pytest.approx(14.8)
    bus.plugged = False
    with pytest.raises(Disconnected):
        device.read(0.0)
    with pytest.raises(Disconnected):
        device.open()
    bus.plugged = True
    device.open()
    assert device.read(0.0).voltage == pytest.approx(14.8)
    bus.functions &= ~1
    with pytest.raises(Disconnected, match='plain I2C'):
        device.open()


# -- administration -------------------------------------------------------------------------------------


def test_unseal_full_access_seal(bus, key_file):
    device = gauge(bus, key_file=key_file)
    assert device.operate('unseal', []) == ['security=unsealed']
    assert '16001404'[2:] + '0c' in bus.writes(GAUGE)  # the published frame with its code
    assert 'bq40z50.unsealed' in [a.id for a in device.read(0.0).alarms]
    assert device.operate('full_access', []) == ['security=full_access']
    assert device.operate('seal', []) == ['security=sealed']
    assert device.operate('full_access', []) == ['security=full_access']  # over unsealed
    assert device.operate('info', [])[1:] == ['device_type=0045', 'firmware=4500010500260003850200', 'hardware=a500',
                                              'chem_id=2101']
    device.operate('seal', [])
    bus.set(GAUGE, obeys=False)
    with pytest.raises(Refused, match='did not accept'):
        device.unseal()
    bus.set(GAUGE, obeys=True, security=2)
    bus.set(GAUGE, obeys=False)
    with pytest.raises(Refused, match='not sealed'):
        device.seal()


def test_keys_need_silence_before_them(bus, key_file):
    bus.set(GAUGE, quiet=0.5)
    with pytest.raises(Refused, match='did not accept'):
        gauge(bus, key_file=key_file).unseal()


def test_data_flash_is_written_read_back_and_sealed_again(bus, key_file):
    device = gauge(bus, key_file=key_file)
    with pytest.raises(Refused, match='sealed'):
        device.read_flash(0x4085, 6)
    data = bytes(range(70))
    assert device.operate('write_flash', ['0x4085', data.hex()]) == [f'0x4085={data.hex()}']
    assert device.operation().security is codec.Security.SEALED
    assert device.operate('read_flash', ['0x4086', '40']) == [f'0x4086={data[1:41].hex()}']
    assert device.operation().security is codec.Security.SEALED
    device.unseal()
    assert device.read_flash(0x4085, 70) == data  # three blocks of 34 bytes with their addresses
    device.write_flash(0x4888, b'\x26\x02')
    assert device.operation().security is codec.Security.UNSEALED  # as it was before
    with pytest.raises(Refused, match='read back'):
        original, device.mac = device.mac, lambda code: b'\x01' * 32
        try:
            device.write_flash(0x4888, b'\x26\x02')
        finally:
            device.mac = original


def test_reset_comes_back_sealed(bus, key_file):
    device = gauge(bus, key_file=key_file)
    assert device.operate('reset', []) == ['security=sealed']
    assert device.read(0.0).voltage == pytest.approx(14.8)


@pytest.mark.parametrize(('operation', 'arguments', 'problem'), [
    ('help', [], 'there is: info, unseal'), ('seal', ['now'], '0 arguments'), ('read_flash', ['0x4000'], '2 arguments'),
    ('read_flash', ['x', '4'], 'whole number'), ('read_flash', ['0x3fff', '4'], 'outside'),
    ('read_flash', ['0x5fff', '2'], 'outside'), ('write_flash', ['0x4000', ''], 'outside'),
    ('write_flash', ['0x4000', 'zz'], 'hex'), ('unseal', [], 'no key_file')])
def test_wrong_operations(bus, operation, arguments, problem):
    bus.set(GAUGE, security=2 if operation == 'read_flash' else 3)
    with pytest.raises(Refused, match=problem):
        gauge(bus).operate(operation, arguments)


def test_read_only_refuses_everything_before_the_wire(bus, key_file):
    device = gauge(bus, read_only=True, key_file=key_file)
    for operation, arguments in (('info', []), ('unseal', []), ('seal', []), ('full_access', []), ('reset', []),
                                 ('read_flash', ['0x4000', '1']), ('write_flash', ['0x4000', '00'])):
        with pytest.raises(ReadOnlyError):
            device.operate(operation, arguments)
    with pytest.raises(ReadOnlyError):
        device.mac(0x0001)
    assert bus.writes(GAUGE) == [] and device.link.written == 0
    with pytest.raises(Refused):
        device.set_contactor(True, True)


def test_a_step_of_the_wall_clock_does_not_matter(bus, monkeypatch):
    device, real = gauge(bus), time.time
    for now, step in ((10.0, 3e8), (11.0, -3e8)):
        monkeypatch.setattr(time, 'time', lambda step=step: real() + step)
        assert device.read(now).time == now
    device.close()
