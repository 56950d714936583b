"""Sentences of a GPS receiver (NMEA 0183) to position and time. Pure; parsed by pynmea2, each with its checksum."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf, isfinite, nan
from typing import Any

import pynmea2

from bess_core.values import Alarm, Quality
from bess_drivers.device import BadChecksum, BadFrame

LONGEST = 120  # bytes; 82 by the standard, some receivers exceed it
OLDEST_YEAR = 2020  # a receiver whose week counter rolled over is years behind
KNOT = 1852.0 / 3600.0  # m/s
RANGE_ERROR = 5.0  # m, 1 sigma at HDOP 1, for an uncertainty in metres


@dataclass(slots=True)
class GpsReading:
    """One fix."""

    time: float = -inf  # s, site clock, when the sentence had arrived
    quality: Quality = Quality.INVALID
    fix: bool = False
    augmented: bool = False  # differential or satellite based
    latitude: float = nan  # degrees, + = north
    longitude: float = nan  # degrees, + = east
    altitude: float = nan  # m, above mean sea level
    uncertainty: float = nan  # m, 1 sigma, horizontal
    satellites: int = -1  # used; -1 unknown
    speed: float = nan  # m/s
    utc: float = nan  # s since the epoch, of the fix
    alarms: tuple[Alarm, ...] = ()


def parse(line: bytes) -> Any:
    """One sentence. Raises `BadChecksum`, `BadFrame`."""
    text = line.strip().decode('ascii', errors='replace')
    if not text.startswith('$') or len(text) > LONGEST:
        raise BadFrame(f'no sentence: {text[:40]!r}')
    try:
        return pynmea2.parse(text, check=True)
    except pynmea2.ChecksumError as error:
        raise BadChecksum(f'{text[:40]!r}: wrong or no checksum') from error
    except (pynmea2.ParseError, ValueError, TypeError, KeyError, IndexError) as error:
        raise BadFrame(f'{text[:40]!r}: {type(error).__name__}') from error


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return nan
    return number if isfinite(number) else nan


def _position(message: Any) -> tuple[float, float]:
    try:
        latitude, longitude = float(message.latitude), float(message.longitude)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadFrame(f'position {message.lat!r} {message.lon!r}') from error
    if not message.lat or not message.lon:
        return nan, nan
    if not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0):
        raise BadFrame(f'position {message.lat!r} {message.lon!r}')
    return latitude, longitude


@dataclass
class Receiver:
    """Puts sentences together: RMC makes a reading, GGA before it adds altitude and quality."""

    altitude: float = nan
    hdop: float = nan
    satellites: int = -1
    augmented: bool = False
    gga_time: Any = None
    ignored: dict[str, int] = field(default_factory=dict)

    def take(self, line: bytes, now: float) -> GpsReading | None:
        """A reading when the sentence was an RMC. Raises `BadChecksum`, `BadFrame`."""
        message = parse(line)
        kind = getattr(message, 'sentence_type', '')
        try:
            if kind == 'GGA':
                self._gga(message)
            elif kind == 'RMC':
                return self._rmc(message, now)
            else:
                self.ignored[kind] = self.ignored.get(kind, 0) + 1
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BadFrame(f'{line[:40]!r}: {error}') from error
        return None

    def _gga(self, m: Any) -> None:
        quality = int(_number(m.gps_qual)) if _number(m.gps_qual) == _number(m.gps_qual) else 0
        known = quality > 0
        self.augmented = quality in (2, 4, 5)
        self.altitude = _number(m.altitude) if known else nan
        self.hdop = _number(m.horizontal_dil) if known else nan
        count = _number(m.num_sats)
        self.satellites = int(count) if count == count else -1
        self.gga_time = m.timestamp

    def _rmc(self, m: Any, now: float) -> GpsReading:
        fix = m.status == 'A'
        same = self.gga_time is not None and self.gga_time == m.timestamp
        reading = GpsReading(time=now, quality=Quality.OK, satellites=self.satellites if same else -1)
        if m.datestamp is not None and m.timestamp is not None and fix:
            utc = datetime.combine(m.datestamp, m.timestamp.replace(tzinfo=None), tzinfo=UTC)
            if utc.year >= OLDEST_YEAR:
                reading.utc = utc.timestamp()
        if fix:
            reading.latitude, reading.longitude = _position(m)
            reading.fix = reading.latitude == reading.latitude
            reading.speed = _number(m.spd_over_grnd) * KNOT
            if same:
                reading.altitude, reading.augmented = self.altitude, self.augmented
                reading.uncertainty = self.hdop * RANGE_ERROR
        return reading


@dataclass
class GpsTime:
    """UTC from the receiver, for stamping. Sentences come late by a varying time; the quickest of the last ones counts.

    latency: s, from the start of a second to the arrival of its sentence, of this receiver at its best.
    """

    latency: float = 0.0
    window: int = 30
    _offsets: deque[tuple[float, float]] = field(default_factory=deque)  # (site time, utc - site time), s

    def take(self, utc: float, now: float) -> None:
        """A time of the receiver (s since the epoch) that arrived at `now` (s, site clock)."""
        if not isfinite(utc):
            return
        offset = utc + self.latency - now
        # A jump of the receiver (leap second, cold start) makes all older ones worthless.
        if self._offsets and abs(offset - max(o for _, o in self._offsets)) > 1.0:
            self._offsets.clear()
        self._offsets.append((now, offset))
        while len(self._offsets) > self.window:
            self._offsets.popleft()

    @property
    def offset(self) -> float:
        """UTC minus site time, s; NaN before the first time."""
        return max((o for _, o in self._offsets), default=nan)

    def utc(self, at: float) -> float:
        """UTC (s since the epoch) of a site time; NaN before the first time."""
        return at + self.offset

    def age(self, now: float) -> float:
        """Since the last time, s."""
        return now - self._offsets[-1][0] if self._offsets else inf
