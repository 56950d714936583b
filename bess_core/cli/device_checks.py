"""What a commissioning test looks at, as pure functions over the status messages of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

OK, WARN, FAIL, SKIP = 'ok', 'WARN', 'FAIL', 'skip'


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str
    name: str
    text: str


def known(value: float) -> bool:
    """Whether a value was measured."""
    return not isnan(value)


def within(name: str, value: float, low: float, high: float, unit: str) -> Finding:
    """A value against the range in which it is plausible."""
    if not known(value):
        return Finding(SKIP, name, 'not measured')
    level = OK if low <= value <= high else FAIL
    return Finding(level, name, f'{value:g} {unit}' + ('' if level == OK else f', not in {low:g}..{high:g}'))


def fresh(statuses: Sequence[Any], seconds: float) -> Finding:
    """Whether the device is read at all, and well."""
    good = sum(s.quality == 0 for s in statuses)
    if not statuses:
        return Finding(FAIL, 'reads', f'no status within {seconds:g} s')
    level = OK if good == len(statuses) else FAIL if not good else WARN
    return Finding(level, 'reads', f'{len(statuses)} in {seconds:g} s, {good} of good quality')


def moves(statuses: Sequence[Any], names: Sequence[str]) -> Finding:
    """Whether anything moves: a device that repeats its numbers is not measuring."""
    values = {tuple(str(getattr(s, n)) for n in names) for s in statuses}
    if len(statuses) < 3:
        return Finding(SKIP, 'moves', 'too few readings')
    return Finding(OK if len(values) > 1 else WARN, 'moves',
                   f'{len(values)} different readings of {len(statuses)}')


def check_meter(s: Any) -> list[Finding]:
    """Plausibility of one meter status."""
    out = [within('frequency', s.frequency, 45.0, 65.0, 'Hz')]
    out += [within(f'voltage L{n + 1}', v, 80.0, 500.0, 'V') for n, v in enumerate(s.voltage) if known(v)]
    if all(known(p) for p in s.phase_power):
        gap = abs(sum(s.phase_power) - s.active_power)
        allowed = max(20.0, 0.02 * sum(abs(p) for p in s.phase_power))
        out.append(Finding(OK if gap <= allowed else FAIL, 'sum of phases',
                           f'{sum(s.phase_power):.0f} W, total {s.active_power:.0f} W'))
    if known(s.apparent_power):
        level = OK if abs(s.active_power) <= 1.02 * s.apparent_power + 10 else FAIL
        out.append(Finding(level, 'P below S', f'{s.active_power:.0f} W, {s.apparent_power:.0f} VA'))
    for n in range(3):
        v, i, p = s.voltage[n], s.current[n], s.phase_power[n]
        if known(v) and known(i) and known(p) and abs(p) > 100.0:
            level = OK if abs(v * i) >= 0.9 * abs(p) and i * p >= 0 else FAIL
            out.append(Finding(level, f'current L{n + 1}', f'{i:.2f} A at {v:.0f} V carries {p:.0f} W'))
    return out


def _limit(value: float, unit: str) -> str:
    return f'{value:g} {unit}' if known(value) else f'? {unit}'


def check_battery(s: Any) -> list[Finding]:
    """Plausibility of one battery status."""
    out = [within('state of charge', s.soc, 0.0, 1.0, ''), within('voltage', s.voltage, 1.0, 1500.0, 'V'),
           within('temperature', s.temperature, -30.0, 70.0, 'degC'),
           within('lowest cell', s.cell_voltage_min, 1.0, 4.5, 'V'),
           within('highest cell', s.cell_voltage_max, 1.0, 4.5, 'V')]
    if known(s.power) and known(s.current) and known(s.voltage) and abs(s.current) > 1.0:
        gap = abs(s.voltage * s.current - s.power)
        out.append(Finding(OK if gap <= 0.1 * abs(s.power) + 20 else FAIL, 'P = U x I',
                           f'{s.voltage * s.current:.0f} W, reported {s.power:.0f} W'))
    limits = {'charging': (s.max_charge_current, s.max_charge_power),
              'discharging': (s.max_discharge_current, s.max_discharge_power)}
    out.append(Finding(
        OK if any(known(v) for pair in limits.values() for v in pair) else WARN, 'limits',
        ', '.join(f'{way} {_limit(amps, "A")}, {_limit(watts, "W")}' for way, (amps, watts) in limits.items())))
    return out


def check_converter(s: Any) -> list[Finding]:
    """Plausibility of one converter status."""
    out = [within('frequency', s.frequency, 45.0, 65.0, 'Hz'), within('DC voltage', s.dc_voltage, 1.0, 1500.0, 'V'),
           within('temperature', s.temperature, -40.0, 110.0, 'degC'),
           Finding(WARN if s.state == 0 else FAIL if s.state == 5 else OK, 'state',
                   ('unknown', 'off', 'standby', 'starting', 'running', 'fault')[s.state])]
    if known(s.active_power) and known(s.dc_power) and abs(s.active_power) > 200.0:
        level = OK if s.active_power * s.dc_power > 0 else FAIL
        out.append(Finding(level, 'AC and DC agree', f'{s.active_power:.0f} W AC, {s.dc_power:.0f} W DC'))
    return out


CHECKS = {'MeterStatus': check_meter, 'BatteryStatus': check_battery, 'InverterStatus': check_converter}


def followed(asked: float, measured: float, tolerance: float) -> Finding:
    """Whether a setpoint was followed, with the right sign."""
    name = f'setpoint {asked:+.0f} W'
    if not known(measured):
        return Finding(SKIP, name, 'the device does not measure its power')
    if asked and measured * asked < 0 and abs(measured) > tolerance:
        return Finding(FAIL, name, f'measured {measured:+.0f} W: the sign is wrong (see `invert`)')
    level = OK if abs(measured - asked) <= tolerance else FAIL
    return Finding(level, name, f'measured {measured:+.0f} W')


def effect(what: str, before: float, after: float, asked: float, share: float = 0.5) -> Finding:
    """Whether another device saw the step with the right sign."""
    name = f'{what} at {asked:+.0f} W'
    change = after - before
    if not known(change):
        return Finding(SKIP, name, 'not measured')
    if change * asked > 0 and abs(change) >= share * abs(asked):
        return Finding(OK, name, f'moved by {change:+.0f} W')
    if change * asked < 0 and abs(change) >= share * abs(asked):
        return Finding(FAIL, name, f'moved by {change:+.0f} W: the sign is wrong')
    return Finding(WARN, name, f'moved by {change:+.0f} W, too little to tell its sign')
