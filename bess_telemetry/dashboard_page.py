"""The dashboard page. Imported in the web thread only: importing NiceGUI takes most of a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from bess_telemetry import site_words as words
from bess_telemetry.care_cards import EventCard, InfoCard, ParameterCard, TestCard, ZoneRow
from bess_telemetry.dashboard_cells import CellCard
from bess_telemetry.dashboard_chart import Chart
from bess_telemetry.dashboard_parts import BatteryCard, Decision, FaultRow, TreeRow
from bess_telemetry.plan_card import ModeRow, PlanCard
from bess_telemetry.power_picture import PowerPicture
from bess_telemetry.site_view import Values, power_flow
from bess_telemetry.web_parts import Listing, tag, text
from bess_telemetry.web_style import CSS, SCRIPT

if TYPE_CHECKING:
    from bess_telemetry.dashboard import DashboardServer

SPANS = {600: '10 min', 3600: '1 h', 86400: '24 h', 172800: '48 h'}  # s
NO_MODE = 'none'


def register() -> None:
    """Make the page known to NiceGUI; once per process."""

    @ui.page('/')
    def main(request: Request) -> None:
        from bess_telemetry.dashboard import SCOPE_KEY

        server: DashboardServer = request.scope[SCOPE_KEY]
        ui.page_title(f'bess: {server.view.site}')
        ui.add_css(CSS)
        ui.add_head_html(f'<script>{SCRIPT}</script>')
        ui.colors(primary='#1f9d63', negative='#d1373f')
        page = Page(server, request.cookies.get(server.auth.cookie_name))
        page.update()
        ui.timer(server.refresh, page.update)


class Page:
    """One open page of one user."""

    def __init__(self, server: DashboardServer, session: str | None) -> None:
        self._server = server
        self._view = server.view
        self._session = session
        self._mode: str | None = None  # as the site says
        self._test_number = 0  # of the test that this page has started
        self._build_bar()
        with tag('main', 'page'):
            with tag('div', 'top'):
                with tag('section', 'card'):
                    tag('h2', '', 'Power flow')
                    self._picture = PowerPicture()
                with tag('div', 'stack'):
                    with tag('section', 'card').props('data-test=decision'):
                        with tag('div', 'split'):
                            tag('h2', '', 'Why it does this')
                            tag('span', 'small muted', '+ charging, \u2212 discharging')
                        self._decisions = Listing(
                            tag('div'), Decision, 'No decision yet: nothing is asked of a battery.'
                        )
                    with tag('section', 'card').props('data-test=modes'):
                        tag('h2', '', 'Modes')
                        self._mode_rows = Listing(tag('div'), ModeRow, 'No mode is active.')
                    with tag('section', 'card').props('data-test=faults'):
                        tag('h2', '', 'Faults')
                        self._faults = Listing(
                            tag('div'), lambda key: FaultRow(key, self._clear_fault, self._acknowledge),
                            'No faults.',
                        )
            tag('h2', 'group', 'Batteries')
            self._batteries = Listing(
                tag('section', 'cards'), BatteryCard, 'No battery reports yet.'
            )
            with tag('section', 'card topology').props('data-test=tree') as self._topology:
                tag('h2', '', 'What they are made of')
                with tag('table'):
                    with tag('thead'), tag('tr'):
                        for column in TreeRow.COLUMNS:
                            tag('th', '', column)
                    self._tree = Listing(tag('tbody'), TreeRow)
            with tag('section', 'wide'):
                with tag('div', 'card'):
                    with tag('div', 'split'):
                        tag('h2', '', 'Power, kW')
                        ui.toggle(
                            SPANS, value=600, on_change=lambda e: self._show(float(e.value))
                        ).props('dense no-caps unelevated size=sm data-test=span')
                    power = Chart(self._view, '', 'kW', digits=2, scale=1e-3, test='chart-power')
                with tag('div', 'card'):
                    tag('h2', '', 'State of charge, %')
                    soc = Chart(self._view, 'soc:', '%', digits=1, scale=100.0, test='chart-soc')
            self._charts = (power, soc)
            self._plans = Listing(tag('section', 'wide'), PlanCard)
            self._cells = Listing(tag('section', 'wide'), CellCard)
            with tag('section', 'wide'):
                with tag('section', 'card').props('data-test=climate') as self._climate:
                    tag('h2', '', 'Climate')
                    self._zones = Listing(tag('div'), ZoneRow)
                self._test = TestCard(self._run_test, self._stop_test)
                self._info = InfoCard()
                self._events = EventCard(self._ask)
                self._parameters = ParameterCard(self._ask, self._change_parameter, self._rollback)

    def _build_bar(self) -> None:
        with tag('header', 'bar'):
            with tag('h1'):
                tag('b', '', 'bess')
                tag('span', '', f' {self._view.site}')
            self._state = text('span', 'chip').props('data-test=state')
            self._cause = text('span', 'small muted')
            tag('span', 'gap')
            self._modes = ui.select(
                [NO_MODE], value=NO_MODE, label='Mode', on_change=self._mode_chosen
            )
            self._modes.props('outlined dense options-dense data-test=mode')
            ui.button('Start', on_click=self._start).props('unelevated no-caps data-test=start')
            stop = ui.button('Stop', on_click=self._stop, color='negative')
            stop.props('unelevated no-caps data-test=stop')
            with tag('form').props('method=post action=/logout'):
                tag('button', 'logout', 'Log out').props('type=submit data-test=logout')

    # ---- values

    def update(self) -> None:
        """Bring the page up to date; elements send only what differs."""
        if not self._server.auth.session_valid(self._session):
            ui.navigate.to('/login')
            return
        snap = self._view.snapshot()
        self._picture.update(power_flow(snap))
        self._update_state(snap['state'], snap['modes'])
        for listing, values in ((self._batteries, snap['batteries']), (self._cells, snap['cells'])):
            _fill(listing, values, [v['name'] for v in values])
        _fill(self._decisions, snap['traces'], [t['name'] for t in snap['traces']])
        _fill(self._mode_rows, snap['mode_states'], [m['name'] for m in snap['mode_states']])
        _fill(self._plans, snap['plans'], [p['name'] for p in snap['plans']])
        _fill(self._faults, snap['faults'], [FaultRow.key(f) for f in snap['faults']])
        _fill(self._tree, snap['tree'], [TreeRow.key(r) for r in snap['tree']])
        self._topology.set_visibility(bool(snap['tree']))
        _fill(self._zones, snap['zones'], [z['name'] for z in snap['zones']])
        self._climate.set_visibility(bool(snap['zones']))
        self._test.update(snap['test'])
        self._info.update(snap['info'])
        self._parameters.card.set_visibility(snap['info'] is not None)  # both come from the system node
        if self._test_number and snap['test'] is not None:
            if snap['test']['id'] == self._test_number and snap['test']['state'] != 1:
                self._test_number = 0
            else:
                self._server.actions.test_alive(self._test_number)
        for chart in self._charts:
            chart.update()

    def _update_state(self, state: Values, modes: list[str]) -> None:
        if state['known']:
            self._state.text = state['state']
            self._state.classes(replace=f'chip {state["state"].lower()}')
            missing = f'missing: {", ".join(state["missing"])}' if state['missing'] else ''
            cause = state['cause'] if state['state'] != 'Run' else ''
            self._cause.text = '; '.join(part for part in (cause, missing) if part)
        else:
            self._state.text = 'State unknown'
            self._state.classes(replace='chip warning')
            self._cause.text = (
                '' if state['last'] == words.UNKNOWN else f'last seen: {state["last"]}'
            )
        mode = state['mode'] or NO_MODE
        options = [NO_MODE, *(m for m in modes if m != NO_MODE)]
        if mode not in options:
            options.append(mode)
        if options != self._modes.options or mode != self._mode:
            # Only a change of the site moves the selection: somebody may be choosing.
            self._mode = mode
            self._modes.set_options(options, value=mode)

    def _show(self, span: float) -> None:
        for chart in self._charts:
            chart.show(span)
            chart.update()

    # ---- actions

    async def _start(self) -> None:
        text = 'Start the site? The batteries will charge and discharge as the control mode asks.'
        if await self._confirm(text, 'Start'):
            await self._do('start', self._server.actions.start)

    async def _stop(self) -> None:
        text = (
            'Stop the site? All batteries go to 0 W and stay there until somebody starts it again.'
        )
        if await self._confirm(text, 'Stop', 'negative'):
            await self._do('stop', self._server.actions.stop)

    async def _mode_chosen(self, event: Any) -> None:
        wanted = str(event.value)
        if wanted == self._mode:
            return
        if await self._confirm(f'Change the control mode to "{wanted}"?', 'Change'):
            await self._do(
                f'mode {wanted}',
                lambda: self._server.actions.set_mode('' if wanted == NO_MODE else wanted),
            )
        # Show what the site says, not what was wished for.
        self._modes.value = self._mode

    async def _clear_fault(self, source: str, fault_id: str) -> None:
        if await self._confirm(
            f'Clear the fault {fault_id} of {source}? It comes back if its cause is still there.',
            'Clear',
        ):
            await self._do(
                f'clear {fault_id}', lambda: self._server.actions.clear_fault(source, fault_id)
            )

    async def _acknowledge(self, source: str, fault_id: str) -> None:
        await self._do(f'acknowledge {fault_id}', lambda: self._server.actions.acknowledge(source, fault_id))

    async def _run_test(self, steps: list[str]) -> None:
        text = (f'Run {", ".join(steps)}? The control mode steps back meanwhile. Limits and the emergency stop hold; '
                'closing this page ends the test.')
        if await self._confirm(text, 'Run'):
            number = await self._do('test', lambda: self._server.actions.run_test(steps))
            self._test_number = int(number) if number is not None else 0

    async def _stop_test(self) -> None:
        self._test_number = 0
        await self._do('end of the test', self._server.actions.stop_test)

    async def _change_parameter(self, name: str, value: str, comment: str) -> None:
        what = f'set to {value}' if value else 'go back to the site file'
        if await self._confirm(f'{name}: {what}? It takes effect when the site starts again.', 'Change'):
            await self._do(f'change of {name}', lambda: self._server.actions.set_parameter(name, value, comment))

    async def _rollback(self, revision: int) -> None:
        if await self._confirm(f'All parameters as after revision {revision}?', 'Go back'):
            await self._do(f'revision {revision}', lambda: self._server.actions.rollback(revision))

    async def _ask(self, what: str, **fields: Any) -> list[Values]:
        """Rows of a question; none, and the reason shown, when it fails."""
        rows = await self._do('', lambda: getattr(self._server.actions, what)(**fields))
        return list(rows or ())

    async def _confirm(self, question: str, yes: str, colour: str = 'primary') -> bool:
        with ui.dialog() as dialog, ui.card().props('data-test=confirm'):
            ui.label(question)
            with ui.row().classes('w-full justify-end'):
                ui.button('Cancel', on_click=lambda: dialog.submit(False)).props(
                    'flat no-caps data-test=no'
                )
                ui.button(yes, on_click=lambda: dialog.submit(True), color=colour).props(
                    'unelevated no-caps data-test=yes'
                )
        answer = await dialog
        dialog.delete()
        return bool(answer)

    async def _do(self, what: str, action: Callable[[], Future[tuple[bool, Any]]]) -> Any:
        """Do it with a valid login and show the answer ('' = only a refusal). Returns it; None when refused."""
        if not self._server.auth.session_valid(self._session):
            ui.navigate.to('/login')
            return None
        try:
            accepted, message = await asyncio.wait_for(
                asyncio.wrap_future(action()), self._server.action_timeout
            )
        except TimeoutError:
            accepted, message = (
                False,
                f'no answer within {self._server.action_timeout:.0f} s; it may still happen',
            )
        if what or not accepted:
            said = f': {message}' if message else ''
            ui.notify(
                f'{what} {"accepted" if accepted else "refused"}{said}'.strip(),
                type='positive' if accepted else 'negative',
                timeout=4000 if accepted else 10000,
            )
        return message if accepted else None


def _fill(listing: Listing[Any], values: list[Values], keys: list[str]) -> None:
    for row, value in zip(listing.rows(keys), values, strict=True):
        row.update(value)
