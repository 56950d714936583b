"""Values in words for the dashboard: units in every text, "unknown" for NaN, never 0 for it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isnan
from typing import Any

UNKNOWN = 'unknown'
MINUS = '\u2212'

STATES = ('Init', 'Run', 'Sleep', 'Maintenance', 'Error', 'Reboot', 'Restart')
BATTERY_MODES = ('unknown', 'off', 'idle', 'charging', 'discharging', 'fault')
CONTACTORS = ('unknown', 'open', 'closed', 'charge only', 'discharge only')
CONVERTER_STATES = ('unknown', 'off', 'standby', 'starting', 'running', 'fault')
SEVERITIES = {1: 'warning', 2: 'error', 3: 'critical'}
QUALITIES = ('ok', 'stale', 'invalid')


def name_of(table: tuple[str, ...] | Mapping[int, str], code: object) -> str:
    """The word for a message constant; a number that is not in the table is shown as such."""
    if not isinstance(code, int):
        return UNKNOWN
    if isinstance(table, Mapping):
        return table.get(code, f'unknown ({code})')
    return table[code] if 0 <= code < len(table) else f'unknown ({code})'


def _number(value: float, digits: int) -> str:
    text = f'{value:.{digits}f}'
    if '.' in text:
        text = text.rstrip('0').rstrip('.')
    if text in ('-0', ''):
        text = '0'
    return text.replace('-', MINUS)


def _scaled(value: float, unit: str) -> str:
    if isnan(value):
        return UNKNOWN
    if not isfinite(value):
        return 'no limit'
    # The step to the next prefix is taken where rounding would show 1000.
    if abs(value) < 999.5:
        return f'{_number(value, 0)} {unit}'
    kilo = value / 1e3
    if abs(kilo) < 999.5:
        return f'{_number(kilo, 2 if abs(kilo) < 9.995 else 1)} k{unit}'
    return f'{_number(value / 1e6, 2)} M{unit}'


def power(watts: float) -> str:
    """`2500` -> "2.5 kW", `-120` -> "-120 W" (typographic minus), NaN -> "unknown"."""
    return _scaled(watts, 'W')


def energy(watt_hours: float) -> str:
    """`10240` -> "10.2 kWh"; NaN -> "unknown"."""
    return _scaled(watt_hours, 'Wh')


def fixed(value: float, digits: int, unit: str) -> str:
    """A number with a fixed count of digits and its unit; NaN -> "unknown"."""
    if not isfinite(value):
        return UNKNOWN if isnan(value) else 'no limit'
    text = f'{value:.{digits}f}'
    if float(text) == 0:
        text = text.lstrip('-')
    return f'{text.replace("-", MINUS)} {unit}'


def stored(watt_hours: float, full: float) -> str:
    """ "6.4 of 10.2 kWh"; what is unknown is left out, NaN for both -> "unknown"."""
    if isnan(watt_hours) or isnan(full):
        return energy(watt_hours)
    return f'{watt_hours / 1e3:.1f} of {full / 1e3:.1f} kWh'


def percent(fraction: float, digits: int = 0) -> str:
    """`0.634` -> "63 %"; NaN -> "unknown"."""
    return fixed(fraction * 100, digits, '%')


def age(seconds: float) -> str:
    """How old a value is: "3 s", "4 min", "2 h", "5 d"; "never" for one that never came."""
    if isnan(seconds) or seconds == float('inf'):
        return 'never'
    s = max(0.0, seconds)
    if s < 99.5:
        return f'{s:.0f} s'
    if s < 99.5 * 60:
        return f'{s / 60:.0f} min'
    if s < 48 * 3600:
        return f'{s / 3600:.0f} h'
    return f'{s / 86400:.0f} d'


def battery_power(watts: float) -> str:
    """Passive sign in words: "charging 2.5 kW", "discharging 800 W", "idle 0 W"."""
    if isnan(watts):
        return UNKNOWN
    if round(watts) == 0:
        return 'idle 0 W'
    return f'{"charging" if watts > 0 else "discharging"} {power(abs(watts))}'


def grid_power(watts: float) -> str:
    """ "import 400 W", "export 2.1 kW", "0 W"."""
    if isnan(watts):
        return UNKNOWN
    if round(watts) == 0:
        return '0 W'
    return f'{"import" if watts > 0 else "export"} {power(abs(watts))}'


def order(watts: float) -> str:
    """An order in words: "charge 3.2 kW", "discharge 500 W", "hold 0 W"."""
    if isnan(watts):
        return UNKNOWN
    if round(watts) == 0:
        return 'hold 0 W'
    return f'{"charge" if watts > 0 else "discharge"} {power(abs(watts))}'


def decision(trace: Mapping[str, Any]) -> str:
    """One sentence about a decision, e.g. "self_consumption asked discharge 3.2 kW, limited to
    2.5 kW by bms: cell 7 at 3.42 V". The power manager's own `text` is taken where there is one.
    """
    text = str(trace.get('text') or '')
    if text:
        return text
    asked = float(trace.get('asked', float('nan')))
    if isnan(asked):
        parts = ['nobody asks for power']
    else:
        parts = [f'{trace.get("asked_by") or "somebody"} asked {order(asked)}']
    for step in trace.get('steps') or ():
        if step.get('bound'):
            reason = f': {step["reason"]}' if step.get('reason') else ''
            parts.append(f'limited to {power(abs(float(step["after"])))} by {step["name"]}{reason}')
    sent = float(trace.get('sent', float('nan')))
    parts.append('nothing sent' if isnan(sent) else f'sent {order(sent)}')
    return ', '.join(parts)


def bounds(low: float, high: float) -> str:
    """Range of a decision step, W, + = charging: "-2.5 kW to 3 kW", "no bound"."""
    below = not isnan(low) and low != float('-inf')
    above = not isnan(high) and high != float('inf')
    if below and above:
        return f'{power(low)} to {power(high)}'
    if below:
        return f'at least {power(low)}'
    if above:
        return f'at most {power(high)}'
    return 'no bound'
