"""Parts of the dashboard page: battery cards, the tree of batteries, decision and faults."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from math import isnan, nan

from nicegui import ui

from bess_telemetry import site_words as words
from bess_telemetry.site_view import Values
from bess_telemetry.web_parts import Listing, Text, set_quality, tag, text

KIND_WORDS = {
    'unit': 'unit',
    'battery': 'battery',
    'remote': 'remote',
    'aggregate': 'virtual: aggregate',
    'partition': 'virtual: partition',
    'pack': 'pack (BMS)',
}


class Aged:
    """ "12 s old" beside values that are not fresh."""

    def __init__(self) -> None:
        self._label = text('span', 'aged')

    def update(self, values: Values) -> None:
        """Say how old the values are; hidden while they are fresh."""
        if values['quality'] == 'ok':
            return
        age = words.age(values['age'])
        if age == 'never':
            self._label.text = 'no data yet'
        else:
            self._label.text = f'{age} old' if values['quality'] == 'stale' else f'lost, {age} old'


class BatteryCard:
    """One logical battery, real or virtual."""

    FACTS = (
        'May charge',
        'May discharge',
        'Asked',
        'Asked by',
        'Stored',
        'Voltage',
        'Current',
        'Temperature',
        'Cells',
        'Contactor',
    )

    def __init__(self, name: str) -> None:
        with tag('div', 'card bat').props(f'data-test="battery-{name}"') as self._card:
            with tag('div', 'split'):
                tag('span', 'name', name)
                with tag('span', 'row'):
                    self._aged = Aged()
                    self._kind = text('span', 'chip')
            with tag('div', 'split'):
                self._soc = text('span', 'soc value')
                self._now = text('span', 'now value')
            with tag('div', 'bar2'):
                self._bar = tag('div')
            with tag('dl', 'facts'):
                self._facts: dict[str, tuple[Text, Text]] = {}
                for fact in self.FACTS:
                    self._facts[fact] = (text('dt', '', fact), text('dd', 'value'))
            self._why = text('div', 'why')

    def update(self, b: Values) -> None:
        """Show these `BatteryStatus` fields."""
        set_quality(self._card, b['quality'])
        self._aged.update(b)
        usable = b['quality'] != 'invalid'

        def get(field: str) -> float:
            return float(b.get(field, nan)) if usable else nan

        members = int(b.get('members', 1))
        used = f' {b.get("members_usable", members)}/{members}' if members > 1 else ''
        self._kind.text = KIND_WORDS[b['kind']] + used
        soc = get('soc')
        self._soc.text = words.percent(soc) if not isnan(soc) else 'SoC unknown'
        self._now.text = words.battery_power(get('power'))
        self._bar.style(
            replace=f'width:{0 if isnan(soc) else min(100.0, max(0.0, soc * 100)):.0f}%'
        )
        self._bar.classes(replace='low' if soc < 0.1 else 'mid' if soc < 0.2 else 'full')
        asked = get('setpoint')
        facts = {
            'May charge': words.power(get('max_charge_power')),
            'May discharge': words.power(get('max_discharge_power')),
            'Asked': 'nothing' if usable and isnan(asked) else words.order(asked),
            'Asked by': str(b.get('setpoint_source') or 'nobody') if usable else words.UNKNOWN,
            'Stored': words.stored(get('energy'), get('energy_full')),
            'Voltage': words.fixed(get('voltage'), 1, 'V'),
            'Current': words.fixed(get('current'), 1, 'A'),
            'Temperature': _temperature_range(get('temperature_min'), get('temperature')),
            'Cells': _cell_range(get('cell_voltage_min'), get('cell_voltage_max')),
            'Contactor': words.name_of(words.CONTACTORS, b.get('contactor', 0) if usable else 0),
        }
        for name, (label, value) in self._facts.items():
            # What no real part of this battery can measure takes no room on a virtual one.
            missing = b['kind'] in ('aggregate', 'partition') and words.UNKNOWN in facts[name]
            label.set_visibility(not missing)
            value.set_visibility(not missing)
            value.text = facts[name]
        reasons = list(b.get('limit_reasons') or ())
        self._why.text = 'Limits: ' + '; '.join(reasons)
        self._why.set_visibility(bool(reasons) and usable)


class TreeRow:
    """One node of the topology with its live values."""

    COLUMNS = ('Battery', 'Type', 'Power', 'SoC', 'May charge', 'May discharge', 'Limits')

    def __init__(self, _: str) -> None:
        with tag('tr') as self._row:
            with tag('td', 'tree'):
                self._stem = text('span', 'stem')
                self._name = text('span', 'name')
            self._cells = [text('td', 'small muted' if i in (0, 5) else 'value') for i in range(6)]

    @staticmethod
    def key(row: Values) -> str:
        """What makes a row of its own: a battery can stand in two places."""
        return f'{row["stem"]}|{row["name"]}'

    def update(self, row: Values) -> None:
        """Show these values."""
        usable = row['quality'] not in ('', 'invalid')

        def get(*names: str) -> float:
            return next((float(row[n]) for n in names if n in row), nan) if usable else nan

        self._row.props(f'data-test="tree-{row["name"]}"')
        if row['quality']:
            set_quality(self._row, row['quality'])
        self._stem.text = row['stem'].replace(' ', '\u00a0')
        self._name.text = row['name']
        soc = get('soc')
        texts = (
            row['node_type'],
            words.power(get('power', 'active_power')),
            words.percent(soc) if not isnan(soc) else words.UNKNOWN,
            words.power(get('max_charge_power')),
            words.power(get('max_discharge_power')),
            '; '.join(row.get('limit_reasons') or ()) if usable else '',
        )
        for cell, content in zip(self._cells, texts, strict=True):
            cell.text = content


def _temperature_range(low: float, high: float) -> str:
    if isnan(low) or round(low, 1) == round(high, 1):
        return words.fixed(high, 1, '°C')
    return f'{words.fixed(low, 1, "")}to {words.fixed(high, 1, "°C")}'


def _cell_range(low: float, high: float) -> str:
    if isnan(low) or isnan(high):
        return words.UNKNOWN
    return f'{low:.3f} to {high:.3f} V'


class Decision:
    """Why the power manager does what it does, for one battery."""

    def __init__(self, battery: str) -> None:
        with tag('div', 'trace').props(f'data-test="trace-{battery}"') as self._box:
            self._sentence = text('div', 'sentence')
            with tag('div', 'row small muted'):
                self._numbers = text('span', 'value')
                self._aged = Aged()
            self._steps = Listing(tag('div', 'steps q-mt-sm'), _Step)

    def update(self, trace: Values) -> None:
        """Show these `DecisionTrace` fields."""
        set_quality(self._box, trace['quality'])
        self._aged.update(trace)
        battery = trace.get('battery')
        self._sentence.text = f'{battery}: {trace["sentence"]}' if battery else trace['sentence']

        def get(field: str) -> float:
            return float(trace.get(field, nan))

        sent = get('sent')
        numbers = {
            'granted': words.order(get('granted')),
            'sent': 'nothing' if isnan(sent) else words.order(sent),
            'measured': words.battery_power(get('measured')),
            'grid': words.grid_power(get('grid_power')),
        }
        self._numbers.text = ' · '.join(f'{name} {value}' for name, value in numbers.items())
        steps = list(trace.get('steps') or ())
        rows = self._steps.rows([f'{i} {s["name"]}' for i, s in enumerate(steps)])
        for row, step in zip(rows, steps, strict=True):
            row.update(step)


class _Step:
    def __init__(self, key: str) -> None:
        with tag('div', 'step') as self._row:
            tag('b', '', key.partition(' ')[2])
            self._change = text('span', 'value')
            self._reason = text('span', 'reason')

    def update(self, step: Values) -> None:
        before, after = float(step.get('before', nan)), float(step.get('after', nan))
        bound = bool(step.get('bound'))
        self._change.text = (
            f'{words.power(before)} \u2192 {words.power(after)}' if bound else words.power(after)
        )
        limits = words.bounds(float(step.get('low', nan)), float(step.get('high', nan)))
        reason = str(step.get('reason') or '')
        self._reason.text = f'{reason} ({limits})' if reason else limits
        self._row.classes(replace='step bound' if bound else 'step')


class FaultRow:
    """One fault; a latched one can be cleared."""

    def __init__(
        self,
        key: str,
        clear: Callable[[str, str], Awaitable[None]],
        acknowledge: Callable[[str, str], Awaitable[None]],
    ) -> None:
        source, fault_id, latched, open_ = json.loads(key)
        with tag('div', 'fault').props(f'data-test="fault-{source}-{fault_id}"'):
            self._severity = text('span', 'chip')
            with tag('div') as self._body:
                self._text = text('div')
                self._detail = text('div', 'small muted')
            if open_:
                seen = ui.button('Seen', on_click=lambda: acknowledge(source, fault_id))
                seen.props('outline dense no-caps size=sm data-test=acknowledge').classes('q-px-sm')
            if latched:
                button = ui.button('Clear', on_click=lambda: clear(source, fault_id))
                button.props('outline dense no-caps size=sm data-test=clear').classes('q-px-sm')

    def update(self, fault: Values) -> None:
        """Show these `Fault` fields."""
        severity = fault['severity_name']
        self._severity.text = severity
        self._severity.classes(replace=f'chip {severity}')
        self._text.text = str(fault.get('text') or fault['id'])
        since = float(fault.get('since', nan))
        at = time.strftime('%d %b %H:%M:%S', time.localtime(since)) if since > 0 else words.UNKNOWN
        count = int(fault.get('count', 1))
        state = [] if fault.get('active', True) else ['cause is gone']
        if fault.get('latched'):
            state.append('latched')
        if fault.get('acknowledged_by'):
            state.append(f'seen by {fault["acknowledged_by"]}')
        when = f'since {at} ({words.age(fault["age"])})'
        about = [
            str(fault['source']),
            str(fault['id']),
            when,
            *([f'{count} times'] if count > 1 else ()),
        ]
        self._detail.text = ' · '.join(about + state)
        self._body.classes(replace='' if fault.get('active', True) else 'gone')

    @staticmethod
    def key(fault: Values) -> str:
        """What makes it the same row."""
        open_ = bool(fault.get('can_acknowledge')) and not fault.get('acknowledged_by')
        return json.dumps([fault['source'], fault['id'], bool(fault.get('latched')), open_])
