"""Text for terminals: tables and values with units. Unknown is "-", never 0."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..observer import SiteObserver

STATES = ('INIT', 'RUN', 'SLEEP', 'MAINTENANCE', 'ERROR', 'REBOOT', 'RESTART')
QUALITY = ('ok', 'STALE', 'INVALID')
SEVERITY = {1: 'WARNING', 2: 'ERROR', 3: 'CRITICAL'}


def watts(value: float) -> str:
    """`2.51 kW`, `-340 W`, `-`."""
    if value != value:
        return '-'
    return f'{value / 1000:.2f} kW' if abs(value) >= 1000 else f'{value:.0f} W'


def number(value: float, unit: str = '', digits: int = 1) -> str:
    """A number with its unit; `-` when unknown."""
    return '-' if value != value else f'{value:.{digits}f}{" " + unit if unit else ""}'


def percent(value: float) -> str:
    """A fraction in percent."""
    return '-' if value != value else f'{value * 100:.1f} %'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first one to the left, the others to the right."""
    lines = [list(header), *[list(r) for r in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        out.append('  '.join(cells).rstrip())
    return '\n'.join(out)


def site_table(observer: SiteObserver) -> str:
    """Everything about the running sites on one screen."""
    now = time.monotonic()
    parts: list[str] = []
    for name, seen in sorted(observer.states.items()):
        m = seen.message
        missing = f', missing: {", ".join(m.missing)}' if m.missing else ''
        parts.append(f'{name or "/"}: {STATES[m.state]} ({m.cause}), mode {m.mode or "none"}{missing}')
    rows = []
    for name, seen in sorted(observer.meters.items()):
        m = seen.message
        rows.append([name, 'meter', watts(m.active_power), '', '', '', number(m.frequency, 'Hz', 2),
                     QUALITY[m.quality], number(now - seen.at, 's')])
    for name, seen in sorted(observer.batteries.items()):
        m = seen.message
        rows.append([name, 'battery', watts(m.power), percent(m.soc), watts(m.max_charge_power),
                     watts(m.max_discharge_power), number(m.voltage, 'V'), QUALITY[m.quality],
                     number(now - seen.at, 's')])
    for name, seen in sorted(observer.converters.items()):
        m = seen.message
        rows.append([name, 'converter', watts(m.active_power), '', watts(m.max_charge_power),
                     watts(m.max_discharge_power), number(m.dc_voltage, 'V'), QUALITY[m.quality],
                     number(now - seen.at, 's')])
    if rows:
        parts.append(table(['name', 'kind', 'power', 'SoC', 'max charge', 'max discharge', 'V / Hz', 'quality',
                            'age'], rows))
        parts.append('power: + = into the component (import, charging), - = out of it')
    for name, seen in sorted(observer.traces.items()):
        parts.append(f'{name}: {seen.message.text}')
    for site, fault in observer.faults:
        parts.append(f'{SEVERITY.get(fault.severity, "?")} {site}/{fault.source} {fault.id}: {fault.text}'
                     + (' [latched]' if fault.latched else '') + ('' if fault.active else ' [cause gone]'))
    return '\n'.join(parts) or 'no site is running here (same ROS_DOMAIN_ID?)'


def brief(observer: SiteObserver) -> str:
    """One line for a log: state, meters, batteries."""
    state = next((STATES[s.message.state] for s in observer.states.values()), '?')
    meters = ', '.join(f'{n.rsplit("/", 1)[-1]} {watts(s.message.active_power)}'
                       for n, s in sorted(observer.meters.items()))
    units = ', '.join(f'{n.rsplit("/", 1)[-1]} {percent(s.message.soc)} {watts(s.message.power)}'
                      for n, s in sorted(observer.batteries.items()))
    return f'{state}: {meters or "no meter"}; {units or "no battery"}; faults {len(observer.faults)}'


def plain(message: Any) -> Any:
    """A message as JSON-able values."""
    from ..convert import describe

    return describe(message)
