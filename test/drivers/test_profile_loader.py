"""Profiles: what is wrong is named with its line; what is right means what it says."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import Severity
from bess_drivers.device import BadValue, Role
from bess_drivers.modbus.profile_device import ModbusMeter, ProfileParams
from bess_drivers.profiles import ProfileError, find, folders, installed, load_profile
from bess_drivers.profiles.loader import load

HEAD = """title: Test meter
role: meter
transport: modbus
source: none, for a test
"""
GOOD = HEAD + """polls:
  slow: {every: 5}
points:
  active_power: {address: 10, type: i32, unit: kW, scale: 0.1, positive: export}
  frequency: {address: 20, unit: mHz, poll: slow, range: [40, 70]}
"""


def write(folder: Path, text: str, name: str = 'test_meter.yaml') -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ProfileError) as caught:
        load(path, find)
    return [message.removeprefix(f'{path}:') for message in caught.value.messages]


def test_a_good_profile(tmp_path: Path) -> None:
    profile = load(write(tmp_path, GOOD), find)
    assert (profile.name, profile.role, profile.head.title) == ('test_meter', Role.METER, 'Test meter')
    assert profile.points['active_power'].value(123) == pytest.approx(-12_300.0)
    assert profile.points['active_power'].raw(-12_300.0) == pytest.approx(123)
    assert profile.points['frequency'].value(50_000) == pytest.approx(50.0)
    assert profile.period('fast', 0.1) == 0.1
    assert profile.period('slow', 0.1) == 5.0


@pytest.mark.parametrize(('change', 'message'), [
    (('role: meter', 'role: toaster'), "2: role: 'toaster' is not allowed"),
    (('transport: modbus', 'transport: pigeon'), "3: transport: 'pigeon' is not allowed"),
    (('source: none, for a test\n', ''), '1: source: missing'),
    (('address: 10, ', ''), '8: points.active_power.address: missing'),
    (('type: i32', 'type: i33'), "8: points.active_power.type: 'i33' is not allowed"),
    (('unit: kW', 'unit: kV'), "8: points.active_power.unit: 'kV' does not fit; allowed: W, kW, MW"),
    (('unit: kW', 'unit: furlong'), "8: points.active_power.unit: unknown unit 'furlong'"),
    ((', positive: export', ''), '8: points.active_power: has a direction'),
    (('unit: mHz', 'unit: mHz, positive: import'), '9: points.frequency.positive: is a magnitude'),
    (('scale: 0.1', 'scale: 0'), '8: points.active_power: scale must not be 0'),
    (('scale: 0.1', 'scael: 0.1'), "8: points.active_power.scael: unknown key; did you mean 'scale'?"),
    (('poll: slow', 'poll: sloth'), "9: points.frequency.poll: no poll group 'sloth'; known: fast, once, slow"),
    (('address: 10', 'address: 65535'), '8: points.active_power: address 65535 with address_base 0 is register'),
    (('address: 10', 'function: 1, address: 10'), '8: points.active_power: type i32 does not go with function 1'),
    (('range: [40, 70]', 'range: [70, 40]'), '9: points.frequency.range: must be [lowest, highest]'),
    (('frequency:', 'frequenzy:'), "9: points.frequenzy: is no value of a meter; did you mean 'frequency'?"),
    (('points:', 'ponits:'), "7: ponits: unknown key; did you mean 'points'?"),
    (('frequency: {', 'frequency: [1'), 'not valid YAML'),
])
def test_every_mistake_is_named_with_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    found = problems(tmp_path, GOOD.replace(*change))
    assert any(message in text for text in found), found


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace('kW', 'kV').replace('mHz', 'mA').replace('slow:', 'fast:'))
    assert len(found) == 4, found


def test_what_refers_to_a_point_must_find_it(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + """derived:
  apparent_power: {sum: [actve_power]}
faults:
  word: {bits: {0: Overheat}}
identity: {serial: nowhere}
""")
    assert [text.split(':')[0] for text in found] == ['11', '13', '14']
    assert "no point 'actve_power'; did you mean 'active_power'?" in found[0]


def test_derived_units_must_fit(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + 'derived:\n  apparent_power: {sum: [frequency]}\n')
    assert 'frequency is in Hz, not in VA' in found[0]


def test_faults_have_stable_ids(tmp_path: Path) -> None:
    profile = load(write(tmp_path, GOOD + """  word: {address: 30, type: u32}
faults:
  word: {severity: CRITICAL, bits: {3: "Over-Temp (inside)", 31: fan}}
"""), find)
    assert [(f.id, f.bit, f.severity) for f in profile.faults] == [
        ('test_meter.over_temp_inside', 3, Severity.CRITICAL), ('test_meter.fan', 31, Severity.CRITICAL)]


def test_extends_changes_only_what_it_names(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    path = write(tmp_path, f"""extends: {tmp_path}/test_meter.yaml
title: Other
points:
  active_power: {{address: 99}}
  frequency: null
""", 'other.yaml')
    profile = load(path, find)
    assert (profile.name, profile.head.title, profile.head.source) == ('other', 'Other', 'none, for a test')
    assert set(profile.points) == {'active_power'}
    assert profile.points['active_power'].place.address == 99
    assert profile.points['active_power'].keys.unit == 'kW'


def test_extends_must_end_and_exist(tmp_path: Path) -> None:
    assert 'extends itself' in problems(tmp_path, f'extends: {tmp_path}/test_meter.yaml\n')[0]
    assert 'no profile' in problems(tmp_path, 'extends: nothing_like_it\n')[0]


def test_a_mistake_of_the_base_is_shown_in_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, '{', 'base.yaml')
    path = write(tmp_path, f'extends: {base}\n')
    with pytest.raises(ProfileError, match=r'base\.yaml:\d+: not valid YAML'):
        load(path, find)


def test_a_template_is_not_used_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + 'template: true\npoints:\n  frequency: {unit: Hz}\n')
    with pytest.raises(ValueError, match='is a template'):
        ModbusMeter(ProfileParams(address='tcp://127.0.0.1:1', profile=str(path)))
    mine = write(tmp_path, f'extends: {path}\npoints:\n  frequency: {{address: 7}}\n', 'mine.yaml')
    assert load(mine, find).points['frequency'].place.address == 7


def test_a_user_keeps_profiles_where_he_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    assert load_profile(f'{tmp_path}/test_meter.yaml').name == 'test_meter'
    monkeypatch.setenv('BESS_DEVICES', str(tmp_path))
    assert tmp_path in folders()
    assert load_profile('test_meter').name == 'test_meter'
    with pytest.raises(ProfileError, match='did you mean test_meter'):
        find('test_metre')


def test_bits_not_implemented_and_enum(tmp_path: Path) -> None:
    points = load(write(tmp_path, HEAD + """points:
  apparent_power: {address: 1, bits: 8-15}
  frequency: {address: 2, type: i16, not_implemented: [-32768], range: [40, 70], outside: unknown}
"""), find).points
    assert points['apparent_power'].value(0x6401) == 100.0
    assert isnan(points['frequency'].value(-32768))
    assert isnan(points['frequency'].value(12))
    assert points['frequency'].value(50) == 50.0
    assert isnan(points['frequency'].value(nan))


def test_a_value_outside_of_its_range_is_no_value(tmp_path: Path) -> None:
    point = load(write(tmp_path, GOOD), find).points['frequency']
    with pytest.raises(BadValue, match='frequency is 39, outside of 40 to 70'):
        point.value(39_000)


@pytest.mark.parametrize('name', installed())
def test_every_installed_profile_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.head.title
    assert profile.verified, 'say what is verified, also where it is nothing'


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(['title', 'role', 'points', 'modbus', 'address', 'scale', 'bits', 'enum', 'polls', 'faults',
                         'write', 'order', 'detect', 'states', 'derived', 'x']) | st.integers(), inner, max_size=5),
    max_leaves=30), st.sampled_from(['points', 'modbus', 'polls', 'faults', 'write', 'detect', 'states', 'derived',
                                     'identity', 'verified', 'notes', 'extends', 'title']))
@settings(max_examples=200)
def test_no_content_does_anything_but_a_profile_error(tmp_path_factory: Any, value: Any, section: str) -> None:
    path = write(tmp_path_factory.mktemp('fuzz'), yaml.safe_dump({**yaml.safe_load(GOOD), section: value}))
    try:
        load(path, find)
    except ProfileError as error:
        assert error.messages
        assert all(str(path) in message for message in error.messages)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_no_bytes_do_anything_but_a_profile_error(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp('fuzz') / 'test_meter.yaml'
    path.write_bytes(data)
    with pytest.raises(ProfileError):
        load(path, find)
