"""House load and PV over time: from a CSV file or from a seeded generator.

CSV format: a header line, then one row per time, comma separated. Columns (names are options):

    time    seconds (0 = local midnight of the profile's first day) or ISO 8601 date and time,
            strictly ascending; a UTC offset is read but only the local clock time counts
    load    W, consumption, positive
    pv      W, generation, positive (a magnitude: the plant applies the sign)

Other columns are ignored. After its last row a profile repeats: its length is that of all rows plus
one more interval, so a file of whole days stays aligned with the clock.
"""

from __future__ import annotations

import csv
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import ceil, isfinite, pi
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bess_sim.plant_config import HouseConfig, PlantConfig, PvConfig, parse_start

DAY = 86_400
MAX_ROWS = 5_000_000


class CsvReader(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


class Profile(Protocol):
    """A power over time."""

    def at(self, t: float) -> float:
        """Magnitude (W) at plant time `t` (s since start)."""


class Constant:
    """The same power at all times."""

    def __init__(self, power: float) -> None:
        self.power = power

    def at(self, t: float) -> float:
        """See `Profile`."""
        return self.power


class Series:
    """Points in time, linear or held in between, repeating. O(1) while time moves forward.

    `times` (s, ascending) and `values` (W); plant time 0 is `offset` s on that axis.
    """

    def __init__(
        self,
        times: Sequence[float],
        values: Sequence[float],
        *,
        offset: float = 0.0,
        hold: bool = False,
    ) -> None:
        if len(times) < 2 or len(times) != len(values):
            raise ValueError(f'a profile needs at least two points, not {len(times)}')
        length = times[-1] - times[0] + (times[-1] - times[-2])
        self._start, self._length, self._hold = times[0], length, hold
        self._offset = offset
        self._times = array('d', [t - times[0] for t in times] + [length])
        self._values = array('d', [*values, values[0]])
        self._k = 0

    def at(self, t: float) -> float:
        """See `Profile`."""
        position = (t + self._offset - self._start) % self._length
        times, k = self._times, self._k
        if not times[k] <= position < times[k + 1]:
            k = k + 1 if k + 2 < len(times) and times[k + 1] <= position < times[k + 2] else -1
            if k < 0:
                k = min(bisect_right(times, position) - 1, len(times) - 2)
            self._k = k
        value = self._values[k]
        if self._hold:
            return value
        return value + (self._values[k + 1] - value) * (position - times[k]) / (
            times[k + 1] - times[k]
        )


class Days:
    """A power with 1 s resolution whose days are generated when they are reached. O(1)."""

    def __init__(self, start: datetime, day: _DayMaker) -> None:
        self._midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
        self._offset = (start - self._midnight).total_seconds()
        self._make, self._day, self._values = day, -1, array('d')

    def at(self, t: float) -> float:
        """See `Profile`."""
        day, second = divmod(int(t + self._offset), DAY)
        if day != self._day:
            values = self._make(self._midnight + timedelta(days=day))
            self._values, self._day = array('d', values.astype(np.float64).tobytes()), day
        return self._values[second]


class _DayMaker(Protocol):
    def __call__(self, midnight: datetime) -> NDArray[np.float64]:
        """86,400 magnitudes (W) of the day that begins at `midnight`."""


# -- CSV ------------------------------------------------------------------------------------------


def read_csv(
    path: Path, time: str = 'time', value: str = 'load'
) -> tuple[list[float], list[float], datetime | None]:
    """Times (s), values (W) and, for ISO times, midnight of the first day.

    Times count from midnight of the first day. Raises ValueError with file and line for everything
    that is not a clean profile: missing file or column, text, NaN, negative power, time going back.
    """
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            return _read_rows(csv.reader(file, strict=True), str(path), time, value)
    except OSError as error:
        raise ValueError(f'{path}: cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 text (byte {error.start})') from error


def _read_rows(
    reader: CsvReader, path: str, time: str, value: str
) -> tuple[list[float], list[float], datetime | None]:
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = []
        for name in (time, value):
            if header.count(name) != 1:
                problem = 'has no column' if name not in header else 'has more than one column'
                raise ValueError(
                    f'{path}:1: {problem} {name!r}; columns: {", ".join(header) or "none"}'
                )
            columns.append(header.index(name))
        times: list[float] = []
        values: list[float] = []
        first: datetime | None = None
        for row in reader:
            where = f'{path}:{reader.line_num}'
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f'{where}: {len(row)} fields, but the header has {len(header)}')
            if len(times) >= MAX_ROWS:
                raise ValueError(f'{where}: more than {MAX_ROWS} rows')
            seconds, first = _seconds(row[columns[0]].strip(), first, not times, where)
            if times and seconds <= times[-1]:
                raise ValueError(f'{where}: time {row[columns[0]]!r} is not after the row before')
            times.append(seconds)
            values.append(_watts(row[columns[1]].strip(), value, where))
    except csv.Error as error:
        raise ValueError(f'{path}:{reader.line_num}: {error}') from error
    if len(times) < 2:
        raise ValueError(f'{path}:{reader.line_num}: a profile needs at least two rows')
    return times, values, first


def _seconds(
    text: str, first: datetime | None, is_first: bool, where: str
) -> tuple[float, datetime | None]:
    if first is None:
        try:
            seconds = float(text)
        except ValueError:
            seconds = float('nan')
        if isfinite(seconds) and seconds >= 0.0:
            return seconds, None
        if not is_first:
            raise ValueError(f'{where}: time {text!r} is not a number of seconds >= 0')
    try:
        moment = datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        expected = 'seconds >= 0 or an ISO 8601 time' if is_first else 'an ISO 8601 time'
        raise ValueError(f'{where}: time {text!r} is not {expected}') from None
    first = first or moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return (moment - first).total_seconds(), first


def _watts(text: str, name: str, where: str) -> float:
    try:
        watts = float(text)
    except ValueError:
        raise ValueError(f'{where}: {name} {text!r} is not a number') from None
    if not isfinite(watts) or watts < 0.0 or watts > 1e9:
        raise ValueError(f'{where}: {name} {text!r} is not a power from 0 to 1e9 W')
    return watts


def csv_profile(
    path: Path, start: str, *, time: str, value: str, hold: bool, scale: float = 1.0
) -> Series:
    """Profile of a file. With ISO times, a `start` with a date is that moment of the file."""
    times, values, first = read_csv(path, time, value)
    begin, dated = parse_start(start)
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    offset = (begin - (first if first is not None and dated else midnight)).total_seconds()
    return Series(times, [v * scale for v in values], offset=offset, hold=hold)


# -- generator ------------------------------------------------------------------------------------


def house_day(midnight: datetime, seed: int, daily_energy: float = 10_000.0) -> NDArray[np.float64]:
    """Load (W) of a household, 86,400 seconds that sum up to `daily_energy` Wh (about 10 % spread).

    Base load, a fridge in cycles, activity peaks in the morning and evening, and single appliances
    (kettle, oven, washing machine) at likely hours. Same seed and date, same day.
    """
    rng = np.random.default_rng((seed, midnight.toordinal(), 1))
    second = np.arange(DAY)
    hour = second / 3600.0
    load = np.full(DAY, 110.0) + 6.0 * rng.standard_normal(DAY // 60).repeat(60)
    period = rng.uniform(2400.0, 3300.0)
    load += np.where((second + rng.uniform(0.0, period)) % period < 0.35 * period, 85.0, 0.0)
    for centre, width, height in ((7.2, 0.8, 260.0), (12.5, 0.7, 120.0), (19.6, 1.8, 420.0)):
        shifted = (hour - centre - rng.normal(0.0, 0.3)) / width
        load += height * rng.uniform(0.7, 1.3) * np.exp(-0.5 * shifted**2)
    weekend = midnight.weekday() >= 5
    appliances = (  # W, duration s, times per day, likely hours
        (2000.0, 170.0, 4.0, (6.8, 8.0, 15.5, 18.5)),
        (2400.0, 2400.0, 0.7, (12.3, 18.6)),
        (1900.0, 1500.0, 0.8 if weekend else 0.4, (10.0, 17.0)),
        (900.0, 420.0, 2.0, (7.5, 12.6, 18.9)),
    )
    for power, duration, rate, hours in appliances:
        for _ in range(int(rng.poisson(rate))):
            begin = int((rng.choice(hours) + rng.normal(0.0, 0.6)) * 3600.0) % DAY
            end = begin + int(duration * rng.uniform(0.6, 1.4))
            load[begin:end] += power * rng.uniform(0.85, 1.1)
    return np.maximum(load, 40.0) * (daily_energy * rng.uniform(0.9, 1.1) * 3600.0 / load.sum())


def pv_day(
    midnight: datetime,
    seed: int,
    peak_power: float,
    latitude: float = 50.0,
    cloudiness: float = 0.3,
) -> NDArray[np.float64]:
    """PV generation (W, magnitude) of a day, 86,400 seconds.

    Clear sky: sine of the solar elevation from declination 23.44 deg sin(2 pi (284 + n) / 365)
    (Cooper, Solar Energy 12 (1969) 333) with an air-mass loss 0.7^(AM^0.678) (Meinel 1976); solar
    noon at 12:00. Clouds: a slow and a fast random factor; `cloudiness` 0 is a clear day, 1 an
    overcast one.
    """
    rng = np.random.default_rng((seed, midnight.toordinal(), 2))
    day = midnight.timetuple().tm_yday
    declination = np.radians(23.44) * np.sin(2.0 * pi * (284 + day) / 365.0)
    angle = np.radians((np.arange(DAY) / 3600.0 - 12.0) * 15.0)
    tilt = np.radians(latitude)
    height = np.sin(tilt) * np.sin(declination) + np.cos(tilt) * np.cos(declination) * np.cos(angle)
    height = np.maximum(height, 0.0)
    air_mass = 1.0 / np.maximum(height, 0.02)
    clear = height * 0.7 ** (air_mass**0.678) / 0.7
    gaps = _smooth_noise(rng, 1800.0) * 0.7 + _smooth_noise(rng, 90.0) * 0.3
    sky = 1.0 - cloudiness * 0.85 * (0.5 + 0.5 * np.tanh(2.5 * gaps + 2.0 * (cloudiness - 0.4)))
    return np.asarray(peak_power * clear * sky, dtype=np.float64)


def _smooth_noise(rng: np.random.Generator, spacing: float) -> NDArray[np.float64]:
    """Standard normal values every `spacing` s, linear in between, one day."""
    count = ceil(DAY / spacing) + 1
    return np.interp(np.arange(DAY), np.arange(count) * spacing, rng.standard_normal(count))


# -- from the configuration -----------------------------------------------------------------------


def load_profile(config: PlantConfig) -> Profile:
    """The house load of a plant. Raises ValueError for a bad file."""
    house: HouseConfig = config.house
    if house.profile == 'none':
        return Constant(0.0)
    if house.profile != 'builtin':
        return csv_profile(
            Path(house.profile), config.start, time=house.time, value=house.load, hold=house.hold,
            scale=house.scale,
        )  # fmt: skip
    start, energy = parse_start(config.start)[0], house.daily_energy * house.scale
    return Days(start, lambda midnight: house_day(midnight, config.seed, energy))


def pv_profile(config: PlantConfig) -> Profile:
    """The PV generation of a plant (magnitude). Raises ValueError for a bad file."""
    pv: PvConfig = config.pv
    if pv.profile == 'none':
        return Constant(0.0)
    if pv.profile != 'builtin':
        return csv_profile(
            Path(pv.profile), config.start, time=pv.time, value=pv.pv, hold=pv.hold, scale=pv.scale
        )
    start, peak = parse_start(config.start)[0], pv.peak_power * pv.scale
    return Days(start, lambda day: pv_day(day, config.seed, peak, pv.latitude, pv.cloudiness))
