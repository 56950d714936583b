"""Profiles: CSV files, good and hostile, and the generator."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_sim.plant import Plant
from bess_sim.plant_config import PlantConfig
from bess_sim.profiles import (
    Series,
    csv_profile,
    house_day,
    load_profile,
    pv_day,
    pv_profile,
    read_csv,
)

SUMMER, WINTER = datetime.fromisoformat('2026-06-21'), datetime.fromisoformat('2026-12-21')


def write(folder: Path, text: str) -> Path:
    path = folder / 'profile.csv'
    path.write_text(text)
    return path


def test_linear_hold_and_repeat(tmp_path: Path) -> None:
    path = write(tmp_path, 'time,load,pv\n0,100,0\n3600,200,10\n7200,50,0\n')
    linear = csv_profile(path, '00:00', time='time', value='load', hold=False)
    held = csv_profile(path, '00:00', time='time', value='load', hold=True)
    assert [linear.at(t) for t in (0, 1800, 3600, 5400, 9000)] == [100, 150, 200, 125, 75]
    assert [held.at(t) for t in (0, 3599.9, 3600, 7200, 10_799)] == [100, 100, 200, 50, 50]
    assert linear.at(3 * 3600 + 1800) == 150  # repeats after three intervals
    assert linear.at(5400) == 125 and linear.at(1800) == 150  # back in time too
    later = csv_profile(path, '01:00', time='time', value='load', hold=True)
    assert later.at(0) == 200


def test_iso_times_and_the_start_moment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        't,P\n2022-05-07 23:00:00+02:00,5\n2022-05-07 23:30:00+02:00,6\n2022-05-08 00:00:00+02:00,7\n',
    )
    at_day = csv_profile(path, '2022-05-08T00:00', time='t', value='P', hold=True)
    assert at_day.at(0) == 7
    by_clock = csv_profile(path, '23:30', time='t', value='P', hold=True, scale=2.0)
    assert by_clock.at(0) == 12


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', r':1: has no column'),
        ('time,power\n0,1\n', r':1: has no column .load.; columns: time, power'),
        ('time,load,load\n', r':1: has more than one'),
        ('time,load\n', r'at least two rows'),
        ('time,load\n0,1\n', r'at least two rows'),
        ('time,load\n0,1\n60,x\n', r':3: load .x. is not a number'),
        ('time,load\n0,1\n60,nan\n', r':3: load'),
        ('time,load\n0,1\n60,-5\n', r':3: load'),
        ('time,load\n0,1\n60,1e300\n', r':3: load'),
        ('time,load\n0,1\n60\n', r':3: 1 fields'),
        ('time,load\n0,1\n0,2\n', r':3: time .0. is not after'),
        ('time,load\n0,1\nnan,2\n', r':3: time'),
        ('time,load\n-5,1\n', r':2: time'),
        ('time,load\nyesterday,1\n', r':2: time .yesterday.'),
        ('time,load\n2022-01-01,1\n60,2\n', r':3: time .60. is not an ISO'),
        ('time,load\n0,1\n"60,2\n', r'unexpected end of data'),
        ('time,load\n0,1\n\x00,2\n', r':3:'),
    ],
)
def test_hostile_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_csv(write(tmp_path, text))
    assert 'profile.csv' in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='cannot be read'):
        read_csv(tmp_path / 'missing.csv')
    path = tmp_path / 'binary.csv'
    path.write_bytes(b'time,load\n\xff\xfe\n')
    with pytest.raises(ValueError, match='not UTF-8'):
        read_csv(path)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / 'random.csv'
    path.write_bytes(b'time,load\n0,1\n' + data)
    try:
        times, values, _ = read_csv(path)
    except ValueError:
        return
    assert all(b > a for a, b in zip(times, times[1:], strict=False)) and min(values) >= 0.0


@settings(max_examples=100)
@given(
    # quarters of a second are exact in binary, so that both sides agree which interval it is
    st.lists(st.integers(1, 4000).map(lambda n: n / 4), min_size=2, max_size=20),
    st.lists(st.floats(0.0, 1e5), min_size=20, max_size=20),
    st.lists(st.integers(0, 4_000_000).map(lambda n: n / 4), min_size=1, max_size=20),
)
def test_series_agrees_with_numpy(gaps, values, moments) -> None:
    times = np.cumsum(gaps)
    values = values[: len(times)]
    series = Series(times.tolist(), values)
    length = times[-1] - times[0] + gaps[-1]
    axis = np.append(times - times[0], length)
    for t in moments:
        expected = np.interp((t - times[0]) % length, axis, [*values, values[0]])
        assert series.at(t) == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_the_measured_house(shared_data: Path) -> None:
    path = str(shared_data / 'load_pv' / 'emhass_home_pv_load_30min.csv')
    config = PlantConfig.model_validate(
        {
            'start': '2022-05-08T00:00:00',
            'house': {'profile': path, 'time': 'timestamp', 'load': 'P_Load', 'hold': True},
            'pv': {'profile': path, 'time': 'timestamp', 'pv': 'P_PV', 'hold': True},
        }
    )
    plant = Plant(config)
    assert plant.house_power == pytest.approx(290.5713333)
    load = sum(load_profile(config).at(1800.0 * k) for k in range(48)) / 2
    pv = sum(pv_profile(config).at(1800.0 * k) for k in range(48)) / 2
    assert 3_000 < load < 40_000 and 3_000 < pv < 60_000
    plant.step(12.5 * 3600)
    assert plant.pv_power < 0.0


def test_generated_house_day() -> None:
    load = house_day(SUMMER, seed=3, daily_energy=9000.0)
    assert load.shape == (86_400,) and load.min() > 10.0
    assert load.sum() / 3600 == pytest.approx(9000.0, rel=0.11)
    hours = load.reshape(24, 3600).mean(axis=1)
    assert hours[18:22].mean() > 1.5 * hours[1:5].mean()  # the evening
    assert np.abs(np.diff(load)).max() > 500.0  # appliances switch
    assert (load == house_day(SUMMER, 3, 9000.0)).all()
    assert not (load == house_day(WINTER, 3, 9000.0)).all()
    assert not (load == house_day(SUMMER, 4, 9000.0)).all()


def test_generated_pv_day() -> None:
    summer, winter = (pv_day(day, 1, 5000.0, 50.0, 0.0) for day in (SUMMER, WINTER))
    assert summer[0] == 0.0 and summer[86_399] == 0.0 and (summer >= 0.0).all()
    assert 80_000 < summer.argmax() + 40_000 < 86_400  # about noon
    assert 4000.0 < summer.max() <= 5000.0
    assert 0.05 < winter.sum() / summer.sum() < 0.4
    # day length at 50 degrees north: about 16.1 h and 7.9 h, without refraction
    assert np.count_nonzero(summer) / 3600 == pytest.approx(16.1, abs=0.3)
    assert np.count_nonzero(winter) / 3600 == pytest.approx(7.9, abs=0.3)
    cloudy = pv_day(SUMMER, 1, 5000.0, 50.0, 0.8)
    assert cloudy.sum() < 0.6 * summer.sum()
    assert (
        np.abs(np.diff(pv_day(SUMMER, 1, 5000.0, 50.0, 0.4))).max() > np.abs(np.diff(summer)).max()
    )


def test_builtin_days_follow_each_other() -> None:
    config = PlantConfig.model_validate({'start': '2026-06-21T23:59:58', 'seed': 5})
    profile = load_profile(config)
    assert profile.at(1.0) == house_day(SUMMER, 5)[86_399]
    assert profile.at(2.0) == house_day(datetime.fromisoformat('2026-06-22'), 5)[0]
    assert calls(lambda: [profile.at(2.0 + k) for k in range(1000)]) < 5000
