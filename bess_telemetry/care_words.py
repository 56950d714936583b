"""Climate zones, tests, events, system information and parameters as people read them. Pure."""

from __future__ import annotations

import time
from math import isfinite, isnan
from typing import Any

from bess_telemetry import site_words as words

Values = dict[str, Any]
TEST_STATES = ('no test yet', 'running', 'done', 'aborted')
SEVERITIES = ('info', 'warning', 'error', 'critical')


def moment(at: float) -> str:
    """Local time of an epoch time; '-' when unknown."""
    return '-' if isnan(at) or at <= 0.0 else time.strftime('%d %b %Y %H:%M:%S', time.localtime(at))


def zone_line(zone: Values) -> str:
    """Temperatures and what is ordered."""
    if zone['quality'] == 'invalid' or zone['quality'] == 2:
        parts = ['temperature unknown']
    else:
        parts = [f'{zone["temperature_min"]:.1f} to {zone["temperature_max"]:.1f} °C']
    if not isnan(zone['humidity']):
        parts.append(f'{zone["humidity"]:.0%} humidity')
    parts += [f'{name.replace("_", " ")} {zone[name]:.0%}' for name in ('fan', 'heater', 'heater_board')
              if not isnan(zone[name])]
    return ', '.join(parts)


def zone_reason(zone: Values) -> str:
    """What it bars, what is forced, and why."""
    barred = [verb for verb, key in (('charging', 'charge_allowed'), ('discharging', 'discharge_allowed'))
              if not zone[key]]
    parts = [f'no {" and no ".join(barred)}' if barred else '', f'forced: {zone["forced"]}' if zone['forced'] else '',
             zone['reason']]
    return '; '.join(p for p in parts if p)


def test_steps(kind: str, power: Any, length: Any) -> list[str]:
    """Steps of a test of the form. Raises ValueError in words."""
    if kind == 'transitions':
        return ['stop', 'start', 'maintenance', 'release', 'start']
    if power is None or length is None or not (isfinite(float(power)) and 0.0 < float(length) < 1e5):
        raise ValueError('power and seconds must be numbers')
    there, back = f'{float(power):g}:{float(length):g}', f'0:{float(length):g}'
    if kind == 'hold':
        return [f'hold:{there}']
    form = 'hold' if kind == 'step' else 'ramp'
    return [f'{form}:{there}', f'{form}:{back}']


test_steps.__test__ = False  # type: ignore[attr-defined]  # no test case


def test_line(state: Values) -> str:
    """State of the test controller in a line."""
    name = TEST_STATES[state['state']]
    if state['state'] == 0:
        return f'{name}; battery: {state["battery"]}'
    if state['state'] == 1:
        return (f'test {state["id"]} by {state["by"]}: {state["elapsed"]:.0f} of {state["total"]:.0f} s, asked '
                f'{words.order(state["asked"])}, granted {words.order(state["granted"])}, measured '
                f'{words.battery_power(state["measured"])}')
    why = f': {state["message"]}' if state['state'] == 3 else ''
    return f'test {state["id"]} by {state["by"]} {name}{why}'


def test_step(step: Values) -> str:
    """One step with its measured response."""
    parts = [f'{step["text"]}: {step["result"] or "waits"}']
    if not isnan(step['settling']):
        parts.append(f'settled in {step["settling"]:.1f} s')
    if not isnan(step['overshoot']):
        parts.append(f'overshoot {step["overshoot"]:.1%}')
    if not isnan(step['follow_error']):
        parts.append(f'follow error {step["follow_error"]:.0f} W')
    return ', '.join(parts) + (f' ({step["reason"]})' if step['reason'] else '')


for _word in (test_line, test_step):
    _word.__dict__['__test__'] = False  # pytest would take them for tests


def event_head(event: Values) -> str:
    """When, how bad, where."""
    severity = SEVERITIES[min(int(event['severity']), 3)]
    return f'{moment(event["time"])} · {severity} · {event["kind"]} · {event["source"]}'


def event_text(event: Values) -> str:
    """What happened."""
    what = f'{event["name"]} {event["change"]}'.strip()
    return f'{what}: {event["text"]}' if what and event['text'] else what or event['text']


def info_lines(info: Values) -> list[str]:
    """System information."""
    def share(value: float) -> str:
        return words.UNKNOWN if isnan(value) else f'{value:.1%}'

    lines = [
        f'version {info["version"]}' + (f', serial {info["serial"]}' if info['serial'] else ''),
        f'machine started {moment(info["boot"])}, software {moment(info["started"])} ({info["starts"]} starts)',
        f'{info["state"] or "state unknown"} since {moment(info["last_state_change"])}',
        f'mode {info["mode"] or "none"}, last change {moment(info["last_mode_change"])}',
        f'runtime {words.age(info["runtime"])}, of that asleep {words.age(info["sleep_time"])}',
        f'charge {share(info["soc"])}, health {share(info["soh"])}',
        f'last full charge {moment(info["last_full_charge"])}, last empty {moment(info["last_empty"])}']
    if info['features']:
        lines.append('features: ' + ', '.join(info['features']))
    spread = [f'{v * 1e3:.0f}' for v in info['balance_spread'][-7:]]
    return [*lines, f'cell spread of the last days: {", ".join(spread)} mV'] if spread else lines


def parameter(p: Values, history: bool) -> tuple[str, str]:
    """One parameter, or one change of it: name and value, and what is to know about it."""
    unit = f' {p["unit"]}' if p['unit'] else ''
    head = f'{p["name"]} = {p["value"] or "as in the site file"}{unit if p["value"] else ""}'
    if history:
        more = f'revision {p["revision"]}, {moment(p["changed"])} by {p["changed_by"]}'
        return head, f'{more}: {p["comment"]}' if p['comment'] else more
    parts = [p['description'], f'allowed: {p["allowed"]}' if p['allowed'] else '',
             f'revision {p["revision"]}' if p['revision'] else '',
             'takes effect at the next start' if p['pending'] else '']
    return head, '; '.join(x for x in parts if x)
