"""Times of day and days of the week, in a time zone with its summer time. Pure.

A window is written ``"22:00-06:00"``, ``"Mo-Fr 17:00-20:00"`` or ``"Sa,Su 00:00-24:00"``. One that ends
before it starts goes over midnight and belongs to the day on which it starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ('Mo', 'Tu', 'We', 'Th', 'Fr', 'Sa', 'Su')
_WINDOW = re.compile(
    r'(?:(?P<days>[A-Za-z]{2}(?:[-,][A-Za-z]{2})*)\s+)?(?P<h0>\d\d?):(?P<m0>\d\d)\s*-\s*(?P<h1>\d\d?):(?P<m1>\d\d)\Z')


@dataclass(frozen=True)
class Window:
    """Days (0 = Monday) and minutes of the local day, [start, end); end may be up to 24 h after midnight."""

    days: frozenset[int]
    start: int
    end: int

    def covers(self, at: datetime) -> bool:
        """Whether the local time lies in it."""
        minute = at.hour * 60 + at.minute
        if self.start < self.end:
            return at.weekday() in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return at.weekday() in self.days
        return minute < self.end and (at.weekday() - 1) % 7 in self.days


def parse(text: str) -> Window:
    """A window from its text. Raises ValueError that says what is allowed."""
    found = _WINDOW.match(text.strip())
    if not found:
        raise ValueError(f'{text!r} is no time window; write e.g. "22:00-06:00" or "Mo-Fr 17:00-20:00"')
    start, end = (int(found[h]) * 60 + int(found[m]) for h, m in (('h0', 'm0'), ('h1', 'm1')))
    if start >= 1440 or end > 1440 or int(found['m0']) > 59 or int(found['m1']) > 59:
        raise ValueError(f'{text!r}: times run from 00:00 to 24:00')
    if start == end:
        raise ValueError(f'{text!r}: the window is empty')
    return Window(_days(found['days'], text), start, end % 1440 if end == 1440 and start else end)


def _days(text: str | None, window: str) -> frozenset[int]:
    if not text:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(','):
        first, _, last = part.partition('-')
        try:
            a, b = (DAYS.index(name.capitalize()) for name in (first, last or first))
        except ValueError:
            raise ValueError(f'{window!r}: days are {", ".join(DAYS)}') from None
        days.update((a + i) % 7 for i in range((b - a) % 7 + 1))
    return frozenset(days)


class Windows:
    """Any of several windows; none = always."""

    def __init__(self, texts: Sequence[str], time_zone: str = '') -> None:
        self._windows = [parse(t) for t in texts]
        self._zone = zone(time_zone)

    def cover(self, wall: float) -> bool:
        """Whether an absolute time (epoch s) lies in one of them."""
        if not self._windows:
            return True
        at = local(wall, self._zone)
        return any(w.covers(at) for w in self._windows)


@cache
def zone(name: str) -> Any:
    """Time zone by its IANA name; "" = that of the machine (None). Raises ValueError."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'time zone {name!r} is not known here; write e.g. "Europe/Berlin"') from None


def local(wall: float, tz: Any) -> datetime:
    """Local time of an absolute time (epoch s)."""
    return datetime.fromtimestamp(wall, UTC).astimezone(tz)


def next_time_of_day(wall: float, minute: int, tz: Any) -> float:
    """Absolute time at which the local clock next shows `minute` (of the day), at or after `wall`."""
    at = local(wall, tz)
    for day in range(3):
        date = (at + timedelta(days=day)).date()
        clock = time(minute // 60 % 24, minute % 60)
        wanted = datetime.combine(date, clock, tz) if tz is not None else datetime.combine(date, clock).astimezone()
        if wanted.timestamp() >= wall:
            return wanted.timestamp()
    raise ValueError(f'no such time of day: {minute} min')  # pragma: no cover - a day has every minute or its hour's


def minute_of_day(text: str) -> int:
    """Minutes after midnight of "HH:MM". Raises ValueError."""
    hours, colon, minutes = text.strip().partition(':')
    if not (colon and hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        raise ValueError(f'{text!r} is no time of day; write e.g. "15:00"')
    return int(hours) * 60 + int(minutes)
