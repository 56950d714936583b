"""Cards of the page for the modes and for the plan of the cost optimiser."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from bess_telemetry.plan_words import mode_line, plan_lines, plan_series
from bess_telemetry.web_parts import tag, text

Values = dict[str, Any]


class ModeRow:
    """One line of the list of active modes."""

    def __init__(self, key: str) -> None:
        self._text = text('div', 'small').props(f'data-test=mode-{key}')

    def update(self, mode: Values) -> None:
        """Show its state."""
        self._text.text = mode_line(mode)


class PlanCard:
    """Plan of one mode: what it saves in words, and its curves."""

    def __init__(self, name: str) -> None:
        self._made = 0.0
        with tag('section', 'card').props(f'data-test=plan-{name}'):
            tag('h2', '', f'Plan of {name}')
            self._lines = text('div', 'small')
            self._lines.style('white-space: pre-line')
            self._chart = ui.echart({}).classes('chart')

    def update(self, plan: Values) -> None:
        """Show the plan; the curves are sent only when there is a new one."""
        self._lines.text = '\n'.join(plan_lines(plan, plan.get('scores')))
        if plan['start'] == self._made:
            return
        self._made = plan['start']
        series = [{'type': 'line', 'step': 'end', 'name': name, 'data': data, 'showSymbol': False,
                   'yAxisIndex': 1 if '%' in name else 2 if 'price' in name else 0}
                  for name, data in plan_series(plan).items()]
        self._chart.options.clear()
        self._chart.options.update({
            'animation': False, 'legend': {'type': 'scroll', 'top': 0}, 'tooltip': {'trigger': 'axis'},
            'grid': {'left': 52, 'right': 52, 'top': 34, 'bottom': 24}, 'xAxis': {'type': 'time'},
            'yAxis': [{'type': 'value', 'axisLabel': {'formatter': '{value} kW'}},
                      {'type': 'value', 'min': 0, 'max': 100, 'axisLabel': {'formatter': '{value} %'}},
                      {'type': 'value', 'show': False}],
            'series': series})
        self._chart.update()
