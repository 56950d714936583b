"""Cells of a pack on the dashboard: bars, and what they amount to in words."""

from __future__ import annotations

from math import ceil, floor, isnan
from typing import Any

from nicegui import ui

from bess_telemetry import site_words as words
from bess_telemetry.dashboard_chart import AXIS, COLOURS, GRID_LINE
from bess_telemetry.dashboard_parts import Aged
from bess_telemetry.site_view import Values
from bess_telemetry.web_parts import set_quality, tag, text


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
