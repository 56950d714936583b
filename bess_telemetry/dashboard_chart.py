"""Live charts of the dashboard, and the colours of what they show."""

from __future__ import annotations

import json
from math import isnan
from typing import Any

from nicegui import ui

from bess_telemetry.site_view import SiteView

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
