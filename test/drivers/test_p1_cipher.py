"""Encrypted P1 telegrams: against an independent implementation, and a simulated meter on a line."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.device import BadChecksum, BadFrame, DeviceError, NoAnswer, Refused
from bess_drivers.serial import p1_cipher as c
from bess_drivers.serial.p1 import P1Meter, P1Params
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.p1 import P1Simulator, encrypted, telegram
from bess_sim.plant_api import MeterSample, StaticPlant

needs_library = pytest.mark.skipif(importlib.util.find_spec('dsmr_parser') is None,
                                   reason='needs pip install -r requirements/p1.txt (optional)')
KEY = bytes(range(0x40, 0x50))
PLAIN = telegram(MeterSample(phase_power=(100.0, 200.0, -50.0)), 5, datetime(2026, 1, 2, tzinfo=UTC))


def key_file(folder: Path, text: str = f'encryption: {KEY.hex()}  # of the grid operator\n', mode: int = 0o600) -> str:
    path = folder / 'p1.key'
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@needs_library
def test_an_independent_implementation_reads_the_same_frames() -> None:
    """Both ways: dsmr-parser decrypts what our meter sends, and what dlms-cosem encrypts is read."""
    from dlms_cosem.protocol.xdlms import GeneralGlobalCipher
    from dlms_cosem.security import SecurityControlField, encrypt
    from dsmr_parser import telegram_specifications
    from dsmr_parser.parsers import TelegramParser

    theirs = TelegramParser(telegram_specifications.MSN).parse(
        encrypted(PLAIN, KEY, 7).hex(), encryption_key=KEY.hex())
    assert float(theirs.CURRENT_ELECTRICITY_USAGE.value) == pytest.approx(0.25)
    assert telegram_specifications.MSN['authentication_key'] == c.PUBLIC_AUTHENTICATION.hex().upper()
    control, title = SecurityControlField(security_suite=0, authenticated=True, encrypted=True), b'SAGEMCOM'
    secret = encrypt(control, title, 99, KEY, PLAIN[:80], c.PUBLIC_AUTHENTICATION)
    short = GeneralGlobalCipher(title, control, 99, secret).to_bytes()  # a length of one byte
    assert c.decrypt(short, c.P1Key(KEY)) == PLAIN[:80]


def test_a_key_of_its_own_and_wrong_keys() -> None:
    frame = encrypted(PLAIN, KEY, 1)
    assert c.decrypt(frame, c.P1Key(KEY)) == PLAIN
    for key in (c.P1Key(bytes(16)), c.P1Key(KEY, bytes(16))):
        with pytest.raises(BadChecksum, match='the key is not that'):
            c.decrypt(frame, key)
    assert KEY.hex() not in repr(c.P1Key(KEY)) and repr(KEY) not in repr(c.P1Key(KEY))
    for wrong in (b'', frame[:-1], frame + b'x', b'\xdb\x07' + frame[2:], frame[:13] + b'\x20' + frame[14:],
                  frame[:10] + b'\x84' + frame[11:], frame[:10] + b'\x05' + frame[11:]):
        with pytest.raises(BadFrame):
            c.decrypt(wrong, c.P1Key(KEY))


def test_frames_are_found_in_what_arrives() -> None:
    frame, framer = encrypted(PLAIN, KEY, 1), c.CipherFramer(c.P1Key(KEY))
    assert [t for b in b'\x00\xdb' + frame for t in [framer.feed(bytes((b,)))] if t] == [PLAIN]
    assert framer.feed(frame + frame[:50]) == PLAIN and framer.feed(frame[50:]) == PLAIN
    with pytest.raises(BadChecksum):
        framer.feed(frame[:60] + bytes((frame[60] ^ 1,)) + frame[61:])
    framer.clear()
    assert framer.feed(frame) == PLAIN
    with pytest.raises(BadChecksum):  # decrypted well, but its own CRC is wrong
        framer.feed(encrypted(PLAIN[:-6] + b'0000\r\n', KEY, 2))


@settings(max_examples=200)
@given(data=st.data())
def test_garbage_gives_only_device_errors(data: Any) -> None:
    base = bytearray(encrypted(PLAIN, KEY, data.draw(st.integers(0, 0xFFFFFFFF))))
    for _ in range(data.draw(st.integers(1, 4))):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    hostile = data.draw(st.sampled_from((bytes(base), bytes(base[:data.draw(st.integers(0, len(base)))]),
                                         data.draw(st.binary(max_size=200)), b'\xdb\x08' * 100)))
    framer = c.CipherFramer(c.P1Key(KEY))
    try:
        found = framer.feed(hostile)
    except DeviceError:
        found = None
    assert found in (None, PLAIN)
    framer.clear()
    assert framer.feed(encrypted(PLAIN, KEY, 1)) == PLAIN


def test_wrong_key_files_do_not_show_what_is_in_them(tmp_path: Path) -> None:
    assert c.read_key(key_file(tmp_path)) == c.P1Key(KEY)
    own = c.read_key(key_file(tmp_path, f'encryption: {KEY.hex()}\nauthentication: {KEY.hex().upper()}\n'))
    assert own.authentication == KEY
    for text in ('', 'encryption: 1234\n', f'password: {KEY.hex()}\n', f'authentication: {KEY.hex()}\n',
                 f'encryption {KEY.hex()}', 'encryption: ' + 'zz' * 16, 'x' * 5000):
        with pytest.raises(Refused) as caught:
            c.read_key(key_file(tmp_path, text))
        assert KEY.hex() not in str(caught.value) and 'zz' not in str(caught.value)
    with pytest.raises(Refused, match='may be read by others'):
        c.read_key(key_file(tmp_path, mode=0o640))
    with pytest.raises(Refused, match='No such file'):
        c.read_key(str(tmp_path / 'none'))
    os.symlink(key_file(tmp_path), tmp_path / 'link')
    with pytest.raises(Refused):
        c.read_key(str(tmp_path / 'link'))


# -- on a line -------------------------------------------------------------------------------------------


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[P1Simulator]:
    made = P1Simulator(StaticPlant(meter_sample=MeterSample(phase_power=(100.0, 200.0, 300.0))), DeviceFaults(),
                       f'serial:{tmp_path / "p1"}', period=0.05, key=KEY)
    made.start()
    yield made
    made.stop()
    made.check()


def until(run: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + 10.0
    while True:
        assert time.monotonic() < end
        try:
            found = run()
        except DeviceError as error:
            found = error
        if fits(found):
            return found


@needs_library
def test_an_encrypted_meter_is_read_damaged_and_read_again(meter: P1Simulator, tmp_path: Path) -> None:
    address = f'serial:{tmp_path / "p1"}'
    device = P1Meter(P1Params(address=address, timeout_s=0.4, key_file=key_file(tmp_path)))
    device.open()
    assert until(device.identify, lambda r: not isinstance(r, DeviceError)).serial == 'BESS0001'
    assert until(lambda: device.read(1.0), lambda r: not isinstance(r, DeviceError)).active_power == 600.0
    for fault in ('flipped_bytes', 'truncated_frame'):
        meter.faults.inject(fault)
        until(lambda: device.read(1.0), lambda r: isinstance(r, (BadChecksum, BadFrame, NoAnswer)))
        for _ in range(2):
            with pytest.raises(DeviceError):
                device.read(1.0)
        meter.faults.clear()
        assert until(lambda: device.read(1.0), lambda r: not isinstance(r, DeviceError)).active_power == 600.0
    device.close()
    blind = P1Meter(P1Params(address=address, timeout_s=0.4))
    blind.open()
    with pytest.raises(NoAnswer, match='no key_file is set'):
        blind.read(1.0)
    blind.close()
    wrong = P1Meter(P1Params(address=address, timeout_s=0.4, key_file=key_file(tmp_path, f'encryption: {"00" * 16}')))
    wrong.open()
    assert 'the key is not that' in str(until(lambda: wrong.read(1.0), lambda r: isinstance(r, BadChecksum)))
    wrong.close()
    with pytest.raises(Refused, match='No such file'):
        P1Meter(P1Params(address=address, key_file=str(tmp_path / 'none'))).open()
