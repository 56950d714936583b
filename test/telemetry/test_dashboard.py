"""The dashboard as users meet it: a real server, over HTTP and in a headless browser."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from math import inf, nan
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from bess_telemetry.auth import PASSWORD_FILE, TOKEN_FILE, DashboardAuth
from bess_telemetry.dashboard import DashboardServer
from bess_telemetry.site_view import SiteView, ViewLimits

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
DRIVER = shutil.which('chromedriver')


class Recorded:
    """Actions that note what was asked; `answer` is what they say, None = nothing at all."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.answer: tuple[bool, str] | None = (True, 'done')

    def _do(self, *call: str) -> Future[tuple[bool, str]]:
        self.calls.append(call)
        done: Future[tuple[bool, str]] = Future()
        if self.answer is not None:
            done.set_result(self.answer)
        return done

    def start(self) -> Future[tuple[bool, str]]:
        return self._do('start')

    def stop(self) -> Future[tuple[bool, str]]:
        return self._do('stop')

    def set_mode(self, name: str) -> Future[tuple[bool, str]]:
        return self._do('set_mode', name)

    def clear_fault(self, source: str, fault_id: str) -> Future[tuple[bool, str]]:
        return self._do('clear_fault', source, fault_id)


class Site:
    """A served site whose values a test sets; its clock moves only when told."""

    def __init__(self, state_dir: Path) -> None:
        self.now = 1000.0
        self.actions = Recorded()
        self.view = SiteView(
            'home',
            clock=lambda: self.now,
            wall=lambda: 1.7e9 + self.now,
            limits=ViewLimits(stale_after=3.0, invalid_after=15.0),
        )
        self.auth = DashboardAuth.open(state_dir)
        self.password = (state_dir / PASSWORD_FILE).read_text().strip()
        self.token = (state_dir / TOKEN_FILE).read_text().strip()
        self.server = DashboardServer(
            self.view, self.actions, self.auth, refresh=0.2, action_timeout=1.0
        )
        self.server.start()
        self.server.ready.result(30.0)
        self.address = urlsplit(self.server.url).netloc

    def feed(self, grid: float = 400.0, power: float = -1200.0, soc: float = 0.63) -> None:
        self.now += 1.0
        stamp = {'time': self.now, 'quality': 0}
        self.view.update_meter('grid_meter', stamp | {'active_power': grid})
        self.view.describe('garage', 'unit')
        self.view.describe('all', 'aggregate')
        values = {
            'power': power,
            'soc': soc,
            'max_charge_power': 3000.0,
            'max_discharge_power': 1800.0,
        }
        self.view.update_battery(
            'garage', stamp | values | {'limit_reasons': ['bms: cell 7 at 3.42 V']}
        )
        self.view.update_battery('all', stamp | values | {'members': 2, 'members_usable': 1})
        cells = {
            'voltages': [3.30, 3.31, nan, 3.42],
            'temperatures': [21.5, nan],
            'balancing': [False] * 3 + [True],
        }
        self.view.update_cells('garage_bms', stamp | cells)
        step = {'before': -3200.0, 'after': -2500.0, 'low': -2500.0, 'high': inf, 'bound': True}
        step |= {'name': 'bms', 'reason': 'cell 7 at 3.42 V'}
        trace = {
            'battery': 'garage',
            'asked_by': 'self_consumption',
            'asked': -3200.0,
            'sent': -2500.0,
        }
        self.view.update_trace(stamp | trace | {'steps': [step]})
        self.view.update_state({'state': 1, 'mode': 'self_consumption', 'cause': '', 'missing': []})
        self.view.update_modes(['self_consumption', 'peak_shaving'])
        self.view.record()

    def request(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, str]:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request(
                method, path, body, {k.replace('_', '-'): v for k, v in headers.items()}
            )
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()

    def login(self, word: str, **headers: str) -> http.client.HTTPResponse:
        return self.request('POST', '/login', f'password={quote(word)}', **headers)[0]

    def cookie(self) -> str:
        return (self.login(self.password).getheader('set-cookie') or '').split(';')[0]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = Site(tmp_path)
    yield served
    served.server.stop()


def test_nothing_is_shown_without_login(site: Site) -> None:
    site.feed()
    assert site.request('GET', '/healthz')[1] == '{"ok":true}'
    answer, _ = site.request('GET', '/')
    assert (answer.status, answer.getheader('location')) == (303, '/login')
    for path in (
        '/api/state',
        '/_nicegui/x',
        '/_nicegui_ws/socket.io/?EIO=4&transport=polling',
        '/docs',
    ):
        answer, text = site.request('GET', path)
        assert answer.status == 401 and 'garage' not in text, path
    answer, text = site.request('GET', '/login')
    assert answer.status == 200 and 'password' in text and site.password not in text


def test_web_sockets_need_the_session_and_our_own_page(site: Site) -> None:
    upgrade = {
        'connection': 'Upgrade',
        'upgrade': 'websocket',
        'sec_websocket_version': '13',
        'sec_websocket_key': 'dGhlIHNhbXBsZSBub25jZQ==',
    }
    path = '/_nicegui_ws/socket.io/?EIO=4&transport=websocket'
    cookie = site.cookie()

    def status(**headers: str) -> int:
        connection = http.client.HTTPConnection(site.address, timeout=10)
        try:
            connection.request(
                'GET', path, headers={k.replace('_', '-'): v for k, v in headers.items()}
            )
            return connection.getresponse().status
        finally:
            connection.close()

    assert status(**upgrade) == 403
    assert status(**upgrade, cookie=cookie, origin='http://127.0.0.1:1') == 403
    assert status(**upgrade, cookie=cookie, origin=f'http://{site.address}') == 101


def test_login_cookie_and_logout(site: Site) -> None:
    answer = site.login(site.password)
    cookie = (answer.getheader('set-cookie') or '').lower()
    assert answer.status == 303 and 'httponly' in cookie and 'samesite=strict' in cookie
    session = (answer.getheader('set-cookie') or '').split(';')[0]
    assert site.request('GET', '/api/state', cookie=session)[0].status == 200
    answer, _ = site.request('POST', '/logout', cookie=session)
    assert answer.getheader('location') == '/login'
    assert site.request('GET', '/api/state', cookie=session)[0].status == 401


def test_wrong_passwords_are_refused_and_then_slowed(site: Site) -> None:
    statuses = [site.login(f'wrong {i}').status for i in range(6)]
    assert statuses == [401] * 5 + [429]
    locked = site.login(site.password, x_forwarded_for='10.1.2.3')  # no way round by a header
    assert locked.status == 429 and int(locked.getheader('retry-after') or 0) > 0


def test_login_from_a_foreign_page_or_too_long_is_refused(site: Site) -> None:
    assert site.login(site.password, origin='http://evil.example').status == 403
    assert site.login('x' * 10_000).status == 413
    assert site.request('POST', '/login', '%ff%00&&&=')[0].status == 401
    assert site.login(site.password, origin=f'http://{site.address}').status == 303


def test_state_for_programs(site: Site) -> None:
    site.feed(grid=nan)
    bearer = f'Bearer {site.token}'
    answer, text = site.request('GET', '/api/state', authorization=bearer)
    state = json.loads(text)
    assert answer.status == 200
    assert state['power_flow']['grid']['power'] is None  # unknown, not 0
    assert state['power_flow']['battery']['power'] == -1200.0
    assert state['batteries'][0]['name'] == 'garage' and state['batteries'][0]['kind'] == 'unit'
    assert site.request('GET', '/api/state', authorization='Bearer wrong')[0].status == 401
    # The token reads values; it is no way into the page with its buttons.
    assert site.request('GET', '/', authorization=bearer)[0].status == 303


def test_answers_forbid_frames_and_foreign_content(site: Site) -> None:
    for path in ('/login', '/healthz', '/'):
        answer, _ = site.request('GET', path, cookie=site.cookie())
        assert answer.getheader('x-frame-options') == 'DENY'
        assert "default-src 'self'" in (answer.getheader('content-security-policy') or '')


def test_a_taken_port_is_told_at_once_and_a_stopped_server_frees_it(tmp_path: Path) -> None:
    auth, view = DashboardAuth.open(tmp_path), SiteView()
    first = DashboardServer(view, Recorded(), auth)
    first.start()
    port = urlsplit(first.url).port or 0
    with pytest.raises(OSError):
        DashboardServer(view, Recorded(), auth, port=port).start()
    first.stop()  # whether it was ready already or not
    for _ in range(2):
        again = DashboardServer(view, Recorded(), auth, port=port)
        again.start()
        again.ready.result(30.0)
        again.stop()
    with pytest.raises(OSError), socket.create_connection(('127.0.0.1', port), 1.0):
        pass


def test_starting_does_not_hold_up_the_caller(tmp_path: Path) -> None:
    server = DashboardServer(SiteView(), Recorded(), DashboardAuth.open(tmp_path))
    began = time.perf_counter()
    server.start()
    assert time.perf_counter() - began < 0.2
    with socket.create_connection(('127.0.0.1', urlsplit(server.url).port or 0), 1.0):
        server.ready.result(30.0)
    assert server.failure is None
    server.stop()


def test_two_dashboards_in_one_process_show_their_own_site(tmp_path: Path) -> None:
    sites = [Site(tmp_path / 'a'), Site(tmp_path / 'b')]
    try:
        sites[0].view.site, sites[1].view.site = 'alpha', 'beta'
        for served, name in zip(sites, ('alpha', 'beta'), strict=True):
            text = served.request('GET', '/', cookie=served.cookie())[1]
            assert f'bess: {name}' in text
            other = sites[1] if served is sites[0] else sites[0]
            assert other.request('GET', '/', cookie=served.cookie())[0].status == 303
    finally:
        for served in sites:
            served.server.stop()
    assert [t.name for t in threading.enumerate()].count('dashboard') == 1


# ---- in a browser


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    if not CHROMIUM or not DRIVER:
        pytest.skip(
            'no chromium with chromedriver on this machine (Debian: chromium, chromium-driver)'
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        'headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-dev-shm-usage',
        'disable-background-networking', 'disable-component-update', 'disable-sync', 'window-size=1280,900',
        f'user-data-dir={tmp_path_factory.mktemp("chromium")}',
    ):  # fmt: skip
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """One browser on one site."""

    def __init__(self, driver, site: Site) -> None:
        self.driver, self.site = driver, site
        driver.delete_all_cookies()
        driver.get_log('performance')
        driver.get_log('browser')
        driver.get(site.server.url)

    def find(self, test: str, inside: str = ''):
        return self.driver.find_element('css selector', f'[data-test="{test}"] {inside}'.strip())

    def text(self, test: str) -> str:
        """Text of a part, '' while it is not there or just being replaced."""
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )

        try:
            return self.find(test).text
        except (NoSuchElementException, StaleElementReferenceException):
            return ''

    def wait(self, condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f'not within {timeout} s: {what}\n{self.shown()}'
            time.sleep(0.05)

    def wait_text(self, test: str, wanted: str) -> None:
        self.wait(lambda: wanted in self.text(test), f'{wanted!r} in {test}: {self.text(test)!r}')

    def shown(self) -> str:
        """All text of the page, '' while it is being replaced."""
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )

        try:
            return self.driver.find_element('tag name', 'body').text
        except (NoSuchElementException, StaleElementReferenceException):
            return ''

    def click(self, test: str) -> None:
        """Click when nothing lies above it any more (dialogs fade)."""
        from selenium.common.exceptions import WebDriverException

        def clicked() -> bool:
            try:
                self.find(test).click()
            except WebDriverException:
                return False
            return True

        self.wait(clicked, f'click on {test}')

    def login(self, word: str) -> None:
        find = self.driver.find_elements
        self.wait(lambda: find('css selector', 'button[type=submit]'), 'login form')
        (field,) = find('name', 'password')
        field.send_keys(word)
        find('css selector', 'button[type=submit]')[0].click()

    def width(self, pixels: int, height: int = 800) -> None:
        metrics = {
            'width': pixels,
            'height': height,
            'deviceScaleFactor': 1,
            'mobile': pixels < 600,
        }
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)

    def hosts(self) -> set[str]:
        """Every host that the browser asked for anything."""
        found = set()
        for entry in self.driver.get_log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] == 'Network.requestWillBeSent':
                found.add(urlsplit(message['params']['request']['url']).netloc)
            elif message['method'] == 'Network.webSocketCreated':
                found.add(urlsplit(message['params']['url']).netloc)
        return found - {''}  # data: and about: have no host


@pytest.fixture
def page(browser, site: Site) -> Page:
    opened = Page(browser, site)
    opened.width(1280, 900)
    return opened


@pytest.fixture(scope='module')
def opened(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that several tests use: loading one takes a second."""
    served = Site(tmp_path_factory.mktemp('site'))
    yield Page(browser, served)
    served.server.stop()


@pytest.fixture
def inside(opened: Page) -> Page:
    """Logged in, fresh standard values, no faults, no dialog, nothing asked yet."""
    served, driver = opened.site, opened.driver
    served.actions.calls.clear()
    served.actions.answer = (True, 'done')
    for fault in served.view.snapshot()['faults']:
        served.view.update_faults(fault['source'], [])
    served.feed()
    opened.width(1280, 900)
    dialogs = 'return document.querySelectorAll(".q-dialog, .q-menu, .q-notification").length'
    if driver.current_url != served.server.url or driver.execute_script(dialogs):
        driver.get(served.server.url)
        if driver.current_url.endswith('/login'):
            opened.login(served.password)
    opened.wait_text('flow-grid', '400 W')
    opened.wait_text('battery-garage', '63 %')
    opened.wait_text('faults', 'No faults.')
    return opened


@pytest.fixture
def alone(page: Page) -> Page:
    """Logged in on a site of its own."""
    page.site.feed()
    page.login(page.site.password)
    page.wait_text('flow-grid', '400 W')
    return page


def test_browser_wrong_password_then_right(page: Page) -> None:
    page.site.feed()
    page.login('not the password')
    page.wait(lambda: 'Wrong password.' in page.shown(), 'refusal')
    page.login(page.site.password)
    page.wait_text('flow', '1.2 kW')


def test_browser_values_move(inside: Page) -> None:
    assert 'import' in inside.text('flow-grid') and '400 W' in inside.text('flow-grid')
    assert '1.6 kW' in inside.text('flow-house')
    assert 'discharging' in inside.text('flow-battery:garage')
    inside.site.feed(grid=-2100.0, power=1500.0, soc=0.7)
    inside.wait_text('flow-grid', '2.1 kW')
    assert 'export' in inside.text('flow-grid')
    inside.wait_text('flow-battery:garage', 'charging')
    inside.wait_text('battery-garage', 'charging 1.5 kW')
    assert '70 %' in inside.text('battery-garage')
    # The arrow of the grid now points away from the bus.
    assert inside.driver.find_elements('css selector', '.wiring.back')


def test_browser_shows_limits_cells_and_the_reason(inside: Page) -> None:
    assert 'virtual: aggregate 1/2' in inside.text('battery-all')
    card = inside.text('battery-garage')
    assert 'May discharge\n1.8 kW' in card and 'Limits: bms: cell 7 at 3.42 V' in card
    assert 'Voltage\nunknown' in card and 'Contactor\nunknown' in card
    cells = inside.text('cells-garage_bms')
    assert '3.300 V (cell 1) to 3.420 V (cell 4), spread 120 mV' in cells
    assert '1 not measured' in cells and 'balancing: 4' in cells
    assert 'Temperatures: 21.5 \u00b0C, unknown' in cells
    decision = inside.text('decision')
    assert (
        'self_consumption asked discharge 3.2 kW, limited to 2.5 kW by bms: cell 7 at 3.42 V'
        in decision
    )
    assert '\u22123.2 kW \u2192 \u22122.5 kW' in decision


def node(name: str, kind: str, *members: str, role: str = 'battery') -> dict[str, object]:
    return {'name': name, 'type': kind, 'role': role, 'members': members, 'children': (), 'origin': 'site'}


TREE = (node('garage_bms', 'jbd', role='bms'), node('garage', 'unit', 'garage_bms'), node('all', 'aggregate', 'garage'))


def test_topology_of_the_view_and_of_old_values(site: Site) -> None:
    site.feed()
    assert site.view.snapshot()['tree'] == []
    site.view.update_topology(TREE)
    found = [(r['stem'], r['name'], r.get('power'), r['quality']) for r in site.view.snapshot()['tree']]
    assert found == [('', 'all', -1200.0, 'ok'), ('\u2514\u2500 ', 'garage', -1200.0, 'ok'),
                     ('   \u2514\u2500 ', 'garage_bms', None, '')]
    site.now += 5.0
    assert site.view.snapshot()['tree'][0]['quality'] == 'stale'


def test_browser_shows_the_topology_as_it_changes(inside: Page) -> None:
    assert not inside.find('tree').is_displayed()
    inside.site.view.update_topology(TREE)
    inside.wait_text('tree-garage', 'unit')
    row = inside.text('tree-garage')
    assert '63 %' in row and 'bms: cell 7 at 3.42 V' in row and '1.8 kW' in row
    inside.site.view.update_topology([*TREE, node('new', 'aggregate', 'all')])
    inside.wait_text('tree-new', 'aggregate')
    if os.environ.get('BESS_SCREENSHOT'):
        inside.driver.save_screenshot(os.environ['BESS_SCREENSHOT'])


def test_browser_charts_grow(inside: Page) -> None:
    script = """
    const el = document.querySelector('[data-test="chart-power"]');
    return echartRows(el);
    function echartRows(el) {
      const id = el.id.replace('c', '');
      const chart = getElement(Number(id))?.chart;
      return chart ? (chart.getOption().dataset?.[0]?.source?.length || 0) : 0;
    }"""
    inside.wait(lambda: inside.driver.execute_script(script) >= 1, 'first point in the chart')
    points = len(inside.site.view.history(600.0).times)
    for _ in range(5):
        inside.site.feed()
    inside.wait(lambda: inside.driver.execute_script(script) == points + 5, 'five more points')


def test_browser_old_values_are_grey_then_unknown(inside: Page) -> None:
    inside.site.now += 5.0
    inside.wait_text('battery-garage', '5 s old')
    assert 'stale' in (inside.find('battery-garage').get_attribute('class') or '')
    assert 'discharging 1.2 kW' in inside.text('battery-garage')
    inside.site.now += 20.0
    inside.wait_text('flow-grid', 'unknown')
    inside.wait_text('battery-garage', 'SoC unknown')
    assert 'lost, 25 s old' in inside.text('battery-garage')
    assert '0 W' not in inside.text('flow') and '0 %' not in inside.text('battery-garage')
    inside.site.view.update_state(None)
    inside.wait_text('state', 'State unknown')


def test_browser_stop_asks_first(inside: Page) -> None:
    actions = inside.site.actions
    inside.click('stop')
    inside.wait_text('confirm', 'Stop the site?')
    inside.click('no')
    inside.wait(lambda: not inside.text('confirm'), 'dialog gone')
    assert actions.calls == []
    inside.click('stop')
    inside.click('yes')
    inside.wait(lambda: actions.calls == [('stop',)], 'stop called')
    inside.wait(lambda: 'stop accepted: done' in inside.shown(), 'notice')


def test_browser_start_refused_or_without_answer_is_said(inside: Page) -> None:
    inside.site.actions.answer = (False, 'a critical fault is latched')
    inside.click('start')
    inside.click('yes')
    inside.wait(lambda: 'start refused: a critical fault is latched' in inside.shown(), 'notice')
    inside.site.actions.answer = None
    inside.wait(lambda: not inside.text('confirm'), 'dialog gone')
    inside.click('start')
    inside.click('yes')
    inside.wait(lambda: 'no answer within 1 s' in inside.shown(), 'notice')


def test_browser_mode_is_chosen_with_confirmation(inside: Page) -> None:
    # The label is the part of the field that can be clicked.
    inside.wait(lambda: 'self_consumption' in inside.shown(), 'present mode')
    inside.driver.find_element('css selector', '.bar .q-select').click()
    inside.wait(lambda: 'peak_shaving' in inside.shown(), 'list of modes')
    for item in inside.driver.find_elements('css selector', '.q-menu .q-item'):
        if item.text == 'peak_shaving':
            item.click()
            break
    inside.wait_text('confirm', 'peak_shaving')
    inside.click('yes')
    inside.wait(
        lambda: inside.site.actions.calls == [('set_mode', 'peak_shaving')], 'mode asked for'
    )


def test_browser_fault_shows_and_can_be_cleared(inside: Page) -> None:
    assert 'No faults.' in inside.text('faults')
    fault = {
        'id': 'jbd.cell_overvoltage',
        'severity': 3,
        'since': 1.7e9 + inside.site.now - 60,
        'count': 2,
    }
    fault |= {'text': 'cell 7 at 3.66 V', 'active': False, 'latched': True}
    other = fault | {'id': 'comm.timeout', 'severity': 1, 'latched': False, 'active': True}
    inside.site.view.update_faults('bms', [other, fault])
    inside.wait_text('faults', 'cell 7 at 3.66 V')
    shown = inside.text('faults')
    assert shown.index('critical') < shown.index('warning')
    assert 'cause is gone · latched' in shown and '2 times' in shown and '(60 s)' in shown
    assert len(inside.driver.find_elements('css selector', '[data-test=clear]')) == 1
    inside.click('clear')
    inside.click('yes')
    wanted = [('clear_fault', 'bms', 'jbd.cell_overvoltage')]
    inside.wait(lambda: inside.site.actions.calls == wanted, 'clear called')
    inside.site.view.update_faults('bms', [])
    inside.wait_text('faults', 'No faults.')


def test_browser_no_horizontal_scrolling(inside: Page) -> None:
    fault = {'id': 'a.very_long_fault_name_without_any_space', 'severity': 2, 'latched': True}
    fault |= {'since': nan, 'text': 'word' * 40}
    inside.site.view.update_faults('a_node_with_quite_a_long_name', [fault])
    inside.wait_text('faults', 'wordword')
    measure = 'return [document.documentElement.scrollWidth, window.innerWidth]'
    beyond = """return [...document.querySelectorAll('.card, .bar > *')].filter(
      e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"""
    for pixels in (1280, 768, 390, 360):
        inside.width(pixels)
        script = inside.driver.execute_script
        inside.wait(lambda p=pixels: script(measure)[1] == p, f'window of {pixels}')
        inside.wait(lambda p=pixels: script(measure)[0] <= p, f'fits into {pixels}')
        assert script(beyond) == [], pixels


def test_browser_nothing_leaves_the_machine_and_no_script_fails(alone: Page) -> None:
    alone.site.feed()
    alone.wait(lambda: alone.driver.find_elements('css selector', '.chart canvas'), 'chart drawn')
    assert alone.hosts() == {alone.site.address}
    severe = [e['message'] for e in alone.driver.get_log('browser') if e['level'] == 'SEVERE']
    assert severe == []


def test_browser_logout_elsewhere_ends_this_page(alone: Page) -> None:
    session = alone.driver.get_cookie(alone.site.auth.cookie_name)
    assert session['httpOnly'] and session['sameSite'] == 'Strict'
    alone.site.auth.logout(session['value'])
    alone.wait(lambda: alone.driver.current_url.endswith('/login'), 'back at the login')


def test_browser_two_clients_and_a_reload(alone: Page) -> None:
    driver, first = alone.driver, alone.driver.current_window_handle
    driver.switch_to.new_window('tab')
    try:
        driver.get(alone.site.server.url)
        alone.wait_text('flow', '1.2 kW')
        alone.site.feed(grid=777.0)
        alone.wait_text('flow-grid', '777 W')
        driver.refresh()
        alone.wait_text('flow-grid', '777 W')
    finally:
        driver.close()
        driver.switch_to.window(first)
    alone.wait_text('flow-grid', '777 W')
