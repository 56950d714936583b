"""What people type: durations, moments, powers."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from datetime import time as clock_time
from math import isfinite, isnan

_UNITS = {'ms': 1e-3, 's': 1.0, 'm': 60.0, 'min': 60.0, 'h': 3600.0, 'd': 86400.0}
_PART = re.compile(r'(\d+(?:\.\d*)?|\.\d+)\s*(ms|min|s|m|h|d)')
_CLOCK = re.compile(r'(\d{1,2}):(\d{2})(?::(\d{2}))?')
_SCALED = re.compile(r'([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*([kM]?)([WA]?)')
LONGEST_S = 100 * 365.25 * 86400.0


def duration(text: str) -> float:
    """Seconds of `90`, `1.5`, `30m`, `1h30m`, `250ms`, `2d`; above 0. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or _PART.sub('', text).strip():
            raise ValueError(
                f'{text!r} is not a duration; examples: 90 (seconds), 30m, 1h30m, 250ms, 2d') from None
        seconds = sum(float(value) * _UNITS[unit] for value, unit in parts)
    if not 0.0 < seconds <= LONGEST_S:
        raise ValueError(f'{text!r} is not a duration above 0 s and below 100 years')
    return seconds


def moment(text: str, now: float) -> float:
    """Epoch seconds of `now`, `+10s`, `18:30` (the next one), `2026-05-01T12:00` (local unless it says
    otherwise). `now` in epoch seconds. Raises ValueError."""
    if text == 'now':
        return now
    if text.startswith('+'):
        return now + duration(text[1:])
    if found := _CLOCK.fullmatch(text):
        return _next_clock(found, text, now)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f'{text!r} is not a time; examples: now, +10s, 18:30, 2026-05-01T12:00, '
            '2026-05-01T12:00Z') from None
    return at.timestamp() if at.tzinfo is not None else _local_epoch(at)  # without offset it is local time


def _next_clock(found: re.Match[str], text: str, now: float) -> float:
    hour, minute, second = (int(part or 0) for part in found.groups())
    try:
        wanted = clock_time(hour, minute, second)
    except ValueError:
        raise ValueError(f'{text!r} is not a time of day (00:00 to 23:59:59)') from None
    today = datetime.fromtimestamp(now).date()  # noqa: DTZ006 - local time is what people mean by 18:30
    at = datetime.combine(today, wanted)
    last = at.replace(fold=1).timestamp()
    # A time that the clock skips today is over once the clock has passed it (`now` as the clock shows it).
    if max(at.timestamp(), last) < now or (last < at.timestamp() and at < datetime.fromtimestamp(now)):  # noqa: DTZ006
        return _local_epoch(at + timedelta(days=1))
    if at.timestamp() < now <= last:
        return last  # the clock is put back today, and only the second one lies ahead
    return _local_epoch(at)


def _local_epoch(at: datetime) -> float:
    """Epoch seconds of a local time. ValueError when the clock shows it twice, or never, on that day."""
    first, second = at.replace(fold=0), at.replace(fold=1)
    if first.timestamp() == second.timestamp():
        return first.timestamp()
    if first.timestamp() < second.timestamp():
        either = ' or '.join(t.astimezone().isoformat(timespec='seconds') for t in (first, second))
        raise ValueError(f'{at:%Y-%m-%d %H:%M} happens twice, the clock is put back: say {either}')
    raise ValueError(f'{at:%Y-%m-%d %H:%M} does not exist, the clock is put forward: say an hour earlier or later')


def quantity(text: str, unit: str) -> float:
    """A number in `unit` ('W' or 'A') of `500`, `-2.5kW`, `10A`. Raises ValueError."""
    found = _SCALED.fullmatch(text.strip())
    if found is None or found[3] not in ('', unit):
        raise ValueError(f'{text!r} is not a number in {unit}; examples: 500, -500{unit}, 2.5k{unit}')
    value = float(found[1]) * {'': 1.0, 'k': 1e3, 'M': 1e6}[found[2]]
    if not isfinite(value):
        raise ValueError(f'{text!r} is not a finite number')
    return value


def local(epoch: float) -> str:
    """Local date and time of epoch seconds, `-` for none (0); with the offset in the hour that comes twice."""
    if not epoch:
        return '-'
    at = datetime.fromtimestamp(epoch)  # noqa: DTZ006 - local time, for people
    text = f'{at:%Y-%m-%d %H:%M:%S}'
    twice = at.replace(fold=0).timestamp() != at.replace(fold=1).timestamp()
    return f'{text} {at.astimezone():%z}' if twice else text


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 d`; `-` when unknown."""
    if isnan(seconds):
        return '-'
    if seconds < 120.0:
        return f'{seconds:.1f} s' if seconds < 10.0 else f'{seconds:.0f} s'
    if seconds < 7200.0:
        return f'{seconds / 60.0:.0f} min'
    return f'{seconds / 3600.0:.1f} h' if seconds < 172_800.0 else f'{seconds / 86400.0:.1f} d'
