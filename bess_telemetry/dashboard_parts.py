"""Parts of the dashboard page: battery cards, cells, decision, faults and charts."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from math import ceil, floor, isnan, nan
from typing import Any

from nicegui import ui

from bess_telemetry import site_words as words
from bess_telemetry.site_view import SiteView, Values
from bess_telemetry.web_parts import Listing, Text, set_quality, tag, text

KIND_WORDS = {
    'unit': 'unit',
    'battery': 'battery',
    'remote': 'remote',
    'aggregate': 'virtual: aggregate',
    'partition': 'virtual: partition',
    'pack': 'pack (BMS)',
}
# Middle tones that can be read on a white and on a dark page.
COLOURS = {'grid': '#6d7df0', 'house': '#12a3bb', 'pv': '#e8a01e', 'battery': '#27ab6e'}
SOC_COLOURS = (
    '#27ab6e',
    '#6d7df0',
    '#e8a01e',
    '#12a3bb',
    '#d0538f',
    '#8e6bd1',
    '#8a9a5b',
    '#c0674a',
)
AXIS = '#7d8a97'
GRID_LINE = 'rgba(125,138,151,.22)'


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


class CellCard:
    """Cell voltages as bars, temperatures and balancing of one pack."""

    def __init__(self, name: str) -> None:
        self._shown: Any = None
        with tag('div', 'card cells').props(f'data-test="cells-{name}"') as self._card:
            with tag('div', 'split'):
                tag('h2', '', f'Cells of {name}, V')
                self._aged = Aged()
            self._chart = ui.echart(_cell_options([])).classes('cellchart')
            tag('div', 'small muted', 'lowest blue, highest pink, balancing amber')
            self._summary = text('div', 'small value')
            self._temperatures = text('div', 'small value')

    def update(self, cells: Values) -> None:
        """Show these `CellArray` fields."""
        set_quality(self._card, cells['quality'])
        self._aged.update(cells)
        usable = cells['quality'] != 'invalid'
        volts = [float(v) for v in cells.get('voltages', ())] if usable else []
        balancing = [bool(b) for b in cells.get('balancing', ())] if usable else []
        self._summary.text = cell_summary(volts, balancing)
        temperatures = cells.get('temperatures', ()) if usable else ()
        listed = ', '.join(words.fixed(float(t), 1, '°C') for t in temperatures)
        self._temperatures.text = f'Temperatures: {listed or words.UNKNOWN}'
        shown = (
            [round(v, 3) if not isnan(v) else None for v in volts],
            balancing,
            cells['quality'],
        )
        if shown != self._shown:
            self._shown = shown
            options = _cell_options(volts, balancing, faded=cells['quality'] != 'ok')
            self._chart.run_chart_method('setOption', options)


def cell_summary(volts: list[float], balancing: list[bool]) -> str:
    """ "3.312 V (cell 7) to 3.345 V (cell 2), spread 33 mV, mean 3.330 V"; cells count from 1."""
    known = [(v, i + 1) for i, v in enumerate(volts) if not isnan(v)]
    if not known:
        return f'Cell voltages {words.UNKNOWN}'
    (low, low_cell), (high, high_cell) = min(known), max(known)
    mean = sum(v for v, _ in known) / len(known)
    parts = [
        f'{low:.3f} V (cell {low_cell}) to {high:.3f} V (cell {high_cell})',
        f'spread {(high - low) * 1000:.0f} mV',
        f'mean {mean:.3f} V',
    ]
    if len(known) < len(volts):
        parts.append(f'{len(volts) - len(known)} not measured')
    active = [str(i + 1) for i, on in enumerate(balancing) if on]
    if active:
        parts.append(f'balancing: {", ".join(active)}')
    return ', '.join(parts)


def _cell_options(
    volts: list[float], balancing: list[bool] | None = None, *, faded: bool = False
) -> dict[str, Any]:
    known = [v for v in volts if not isnan(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    # The axis does not start at 0: what matters is the difference of a few mV. It spans at least
    # 60 mV, so that measuring noise does not look like a spread.
    step = next((s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if high - low <= 3 * s), 1.0)
    bottom = floor(low / step - 0.5) * step
    top = max(ceil(high / step + 0.1) * step, bottom + 3 * step)
    data: list[Any] = []
    for i, v in enumerate(volts):
        colour = COLOURS['battery']
        if balancing and i < len(balancing) and balancing[i]:
            colour = COLOURS['pv']
        elif len(known) > 1 and v == low:
            colour = COLOURS['grid']
        elif len(known) > 1 and v == high:
            colour = '#d0538f'
        style = {'color': colour, 'borderRadius': [3, 3, 0, 0], 'opacity': 0.4 if faded else 1.0}
        data.append({'value': None if isnan(v) else round(v, 3), 'itemStyle': style})
    return {
        'animation': False,
        'grid': {'left': 48, 'right': 6, 'top': 14, 'bottom': 22},
        'xAxis': {
            'type': 'category',
            'data': [str(i + 1) for i in range(len(volts))],
            'axisLabel': {'color': AXIS, 'fontSize': 10},
            'axisTick': {'show': False},
            'axisLine': {'lineStyle': {'color': GRID_LINE}},
        },
        'yAxis': {
            'type': 'value',
            'min': round(bottom, 3),
            'max': round(top, 3),
            'interval': step,
            'axisLabel': {'color': AXIS, 'fontSize': 10, ':formatter': 'v => v.toFixed(2) + " V"'},
            'splitLine': {'lineStyle': {'color': GRID_LINE}},
        },
        'tooltip': {
            'trigger': 'axis',
            ':formatter': 'p => "cell " + p[0].name + ": " + (p[0].value == null ? "unknown" '
            ': p[0].value.toFixed(3) + " V")',
        },
        'series': [{'type': 'bar', 'data': data, 'barCategoryGap': '25%'}],
    }


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


class Chart:
    """A live chart over a time span; new points are appended in the browser."""

    def __init__(
        self, view: SiteView, prefix: str, unit: str, *, digits: int, scale: float, test: str
    ) -> None:
        self._view = view
        self._prefix = prefix  # '' = powers, 'soc:' = states of charge
        self._unit, self._digits, self._scale = unit, digits, scale
        self._span = 600.0
        self._names: list[str] = []
        self._sent = 0.0  # epoch s of the newest point that the browser has
        self._chart = ui.echart(self._options()).classes('chart').props(f'data-test={test}')

    def show(self, span: float) -> None:
        """Show the last `span` s."""
        self._span = span
        self._sent = 0.0

    def update(self) -> None:
        """Send what is new."""
        series = self._view.history(self._span)
        names = [n for n in series.values if n.startswith('soc:') == bool(self._prefix)]
        names.sort(key=lambda n: (list(COLOURS).index(n) if n in COLOURS else 9, n))
        if names != self._names:
            self._names = names
            self._sent = 0.0
            self._chart.run_chart_method('setOption', self._options(), True)
        now = self._view.wall()
        tolerance = series.period / 2
        rows = []
        for i, at in enumerate(series.times):
            if at >= self._sent - tolerance:  # the newest point may still have changed
                values = [series.values[n][i] for n in names]
                rows.append(
                    [
                        round(at * 1000),
                        *(None if isnan(v) else round(v * self._scale, 4) for v in values),
                    ]
                )
        whole = self._sent == 0.0
        if series.times:
            self._sent = series.times[-1]
        call = [
            self._chart.id,
            rows,
            round((now - self._span) * 1000),
            round(now * 1000),
            round(tolerance * 1000),
        ]
        reset = f'window.bessRows[{self._chart.id}] = []; ' if whole else ''
        ui.run_javascript(f'{reset}window.bessChart({", ".join(json.dumps(c) for c in call)})')

    def _options(self) -> dict[str, Any]:
        unit, digits = self._unit, self._digits
        series = []
        for i, name in enumerate(self._names):
            colour = COLOURS.get(name, SOC_COLOURS[i % len(SOC_COLOURS)])
            series.append(
                {
                    'type': 'line',
                    'name': chart_label(name),
                    'encode': {'x': 0, 'y': i + 1},
                    'showSymbol': False,
                    'lineStyle': {'width': 2},
                    'color': colour,
                    'animation': False,
                }
            )
        percent = {'min': 0, 'max': 100, 'interval': 25} if self._prefix else {}
        return {
            'animation': False,
            'legend': {
                'type': 'scroll',
                'top': 0,
                'left': 0,
                'textStyle': {'color': AXIS, 'fontSize': 11},
                'icon': 'circle',
            },
            'grid': {'left': 52, 'right': 12, 'top': 34, 'bottom': 24},
            'xAxis': {
                'type': 'time',
                'axisLabel': {'color': AXIS, 'fontSize': 10, 'hideOverlap': True},
                'axisLine': {'lineStyle': {'color': GRID_LINE}, 'onZero': False},
                'splitNumber': 5,
            },
            'yAxis': {
                'type': 'value',
                'splitNumber': 4,
                'axisLabel': {'color': AXIS, 'fontSize': 10, 'formatter': '{value} ' + unit},
                'splitLine': {'lineStyle': {'color': GRID_LINE}},
            }
            | percent,
            'tooltip': {
                'trigger': 'axis',
                ':valueFormatter': 'v => v == null ? "unknown" : '
                f'(+v).toFixed({digits}) + " {unit}"',
            },
            'dataset': {'source': []},
            'series': series,
        }


def chart_label(channel: str) -> str:
    """Legend of a channel, with the meaning of its sign."""
    names = {
        'grid': 'grid (+ import)',
        'house': 'house',
        'pv': 'PV production',
        'battery': 'batteries (+ charging)',
    }
    return names.get(channel, channel.removeprefix('soc:'))
