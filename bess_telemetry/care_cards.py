"""Cards of the page for looking after a site: climate, test, events, system information, parameters.

Imported in the web thread only. What is asked of the site goes through the page's `do` (login and answer shown) and
`ask` (login and rows back).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from bess_telemetry import care_words as said
from bess_telemetry.web_parts import Listing, tag, text

Values = dict[str, Any]
Ask = Callable[..., Awaitable[list[Values]]]
SEVERITIES = {0: 'all', 1: 'warning and worse', 2: 'error and worse', 3: 'critical'}


class ZoneRow:
    """One climate zone."""

    def __init__(self, key: str) -> None:
        with tag('div', 'care').props(f'data-test="zone-{key}"'):
            tag('b', '', key)
            self._text = text('div', 'small')
            self._why = text('div', 'small muted')

    def update(self, zone: Values) -> None:
        """Show these `ClimateZone` fields."""
        self._text.text, self._why.text = said.zone_line(zone), said.zone_reason(zone)


class TestCard:
    """State of the test controller, its last results, and a form to start a test."""

    def __init__(self, start: Callable[[list[str]], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
        with tag('section', 'card').props('data-test=test') as self.card:
            tag('h2', '', 'Test by hand')
            self._line = text('div', 'small').props('data-test=test-line')
            with tag('div', 'row q-mt-sm'):
                self._kind = ui.select({'hold': 'hold', 'step': 'step there and back', 'ramp': 'ramp there and back',
                                        'transitions': 'stop, start, maintenance'}, value='hold', label='Test')
                self._kind.props('outlined dense options-dense data-test=test-kind').style('min-width:170px')
                self._power = ui.number('Power, W', value=500, format='%.0f')
                self._power.props('outlined dense data-test=test-power')
                self._length = ui.number('Seconds', value=10, min=1, format='%.0f')
                self._length.props('outlined dense data-test=test-seconds')
                ui.button('Run', on_click=lambda: self._run(start)).props(
                    'unelevated no-caps data-test=test-run')
                ui.button('End', on_click=stop, color='negative').props('outline no-caps data-test=test-stop')
            self._steps = Listing(tag('div', 'q-mt-sm'), lambda _: text('div', 'small'))

    async def _run(self, start: Callable[[list[str]], Awaitable[None]]) -> None:
        try:
            steps = said.test_steps(str(self._kind.value), self._power.value, self._length.value)
        except ValueError as error:
            ui.notify(str(error), type='negative')
            return
        await start(steps)

    def update(self, state: Values | None) -> None:
        """Show these `TestState` fields; hidden on a site without test controller."""
        self.card.set_visibility(state is not None)
        if state is None:
            return
        self._line.text = said.test_line(state)
        steps = state['steps']
        for row, step in zip(self._steps.rows([str(i) for i in range(len(steps))]), steps, strict=True):
            row.text = said.test_step(step)


class EventCard:
    """Events with a filter; newest first."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        with tag('section', 'card').props('data-test=events') as self.card:
            with tag('div', 'split'):
                tag('h2', '', 'Events')
                ui.button('Show', on_click=self.load).props('outline dense no-caps size=sm data-test=events-show')
            with tag('div', 'row'):
                self._severity = ui.select(SEVERITIES, value=0, label='Severity', on_change=self.load)
                self._severity.props('outlined dense options-dense data-test=events-severity').style('min-width:160px')
                self._source = ui.input('Source').props('outlined dense data-test=events-source')
                self._text = ui.input('Text').props('outlined dense data-test=events-text')
            self._rows = Listing(tag('div', 'scroll q-mt-sm'), _EventRow, 'No events, or not asked for yet.')

    async def load(self) -> None:
        """Ask the event log."""
        events = await self._ask('events', severity=int(self._severity.value), source=str(self._source.value or ''),
                                 text=str(self._text.value or ''))
        events.reverse()
        for row, event in zip(self._rows.rows([str(e['id']) for e in events]), events, strict=True):
            row.update(event)


class _EventRow:
    def __init__(self, _: str) -> None:
        with tag('div', 'care'):
            self._what, self._text = text('div', 'small muted'), text('div', 'small')

    def update(self, event: Values) -> None:
        self._what.text, self._text.text = said.event_head(event), said.event_text(event)


class InfoCard:
    """System information."""

    def __init__(self) -> None:
        with tag('section', 'card').props('data-test=info') as self.card:
            tag('h2', '', 'System')
            self._lines = Listing(tag('div'), lambda _: text('div', 'small'))

    def update(self, info: Values | None) -> None:
        """Show these `SystemInfo` fields."""
        self.card.set_visibility(info is not None)
        if info is not None:
            lines = said.info_lines(info)
            for row, line in zip(self._lines.rows([str(i) for i in range(len(lines))]), lines, strict=True):
                row.text = line


class ParameterCard:
    """Parameters by name, their history, a change and the way back."""

    def __init__(self, ask: Ask, change: Callable[[str, str, str], Awaitable[None]],
                 rollback: Callable[[int], Awaitable[None]]) -> None:
        self._ask, self._change, self._rollback = ask, change, rollback
        with tag('section', 'card').props('data-test=parameters') as self.card:
            with tag('div', 'split'):
                tag('h2', '', 'Parameters')
                with tag('span'):
                    ui.button('Show', on_click=self.load).props('outline dense no-caps size=sm data-test=params-show')
                    ui.button('History', on_click=self.history).props(
                        'outline dense no-caps size=sm data-test=params-history').classes('q-ml-sm')
            with tag('div', 'row'):
                self._name = ui.input('Name, with * and ?', value='nodes.power_manager.*')
                self._name.props('outlined dense data-test=params-name').style('min-width:220px')
                self._value = ui.input('New value').props('outlined dense data-test=params-value')
                self._why = ui.input('Why').props('outlined dense data-test=params-why')
                ui.button('Change', on_click=lambda: self._change(
                    str(self._name.value), str(self._value.value or ''), str(self._why.value or ''))).props(
                        'outline dense no-caps size=sm data-test=params-change')
            self._rows = Listing(tag('div', 'scroll q-mt-sm'), self._row, 'Nothing, or not asked for yet.')

    def _row(self, key: str) -> Any:
        revision = int(key.split(maxsplit=1)[0])
        with tag('div', 'care'):
            line, more = text('div', 'small'), text('div', 'small muted')
            if revision:
                ui.button(f'Back to revision {revision}', on_click=lambda: self._rollback(revision)).props(
                    'flat dense no-caps size=sm data-test=params-back')
        return line, more

    async def load(self) -> None:
        """Values of the parameters that fit."""
        await self._fill(history=False)

    async def history(self) -> None:
        """All changes of the parameters that fit, newest first."""
        await self._fill(history=True)

    async def _fill(self, *, history: bool) -> None:
        found = await self._ask('parameters', pattern=str(self._name.value or ''), history=history)
        if history:
            found.reverse()
        keys = [f'{int(p["revision"]) if history else 0} {p["name"]}' for p in found]
        for (line, more), p in zip(self._rows.rows(keys), found, strict=True):
            line.text, more.text = said.parameter(p, history)


