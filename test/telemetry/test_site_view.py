"""What the dashboard knows: staleness, sums that do not hide unknowns, histories, words."""

from __future__ import annotations

import json
import threading
from math import inf, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_telemetry import site_words as words
from bess_telemetry.site_history import History
from bess_telemetry.site_view import (
    SiteView,
    ViewLimits,
    flow_batteries,
    json_safe,
    meter_role,
    power_flow,
)


class Time:
    """Site clock (starts at 100 s) and wall clock (starts at 1e9 s) that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.offset = 1e9 - 100.0

    def wall(self) -> float:
        return self.now + self.offset


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def view(clock: Time) -> SiteView:
    limits = ViewLimits(stale_after=3.0, invalid_after=15.0)
    return SiteView('home', clock=lambda: clock.now, wall=clock.wall, limits=limits)


def battery(view: SiteView, name: str) -> dict:
    return next(b for b in view.snapshot()['batteries'] if b['name'] == name)


# ---- staleness


def test_a_value_that_stops_coming_ages(view: SiteView, clock: Time) -> None:
    view.update_battery('a', {'time': clock.now, 'quality': 0, 'power': 100.0})
    for passed, quality in (
        (0.0, 'ok'),
        (3.0, 'ok'),
        (3.1, 'stale'),
        (15.0, 'stale'),
        (15.1, 'invalid'),
    ):
        clock.now = 100.0 + passed
        b = battery(view, 'a')
        assert (b['quality'], b['age']) == (quality, pytest.approx(passed))


def test_wall_clock_steps_age_nothing(view: SiteView, clock: Time) -> None:
    view.update_battery('a', {'time': clock.now, 'quality': 0, 'power': 100.0})
    clock.offset += 3600.0
    assert battery(view, 'a')['quality'] == 'ok'


def test_the_sender_may_know_worse(view: SiteView, clock: Time) -> None:
    view.update_battery('a', {'time': clock.now, 'quality': 2, 'power': 100.0})
    assert battery(view, 'a')['quality'] == 'invalid'


@pytest.mark.parametrize('stamp', [nan, -inf])
def test_a_value_without_a_stamp_is_never_fresh(view: SiteView, stamp: float) -> None:
    view.update_battery('a', {'time': stamp, 'quality': 0, 'power': 1.0})
    view.update_battery('b', {'quality': 0, 'power': 1.0})
    assert battery(view, 'a')['quality'] == battery(view, 'b')['quality'] == 'invalid'


def test_the_state_is_unknown_until_told_and_after_its_source_is_gone(view: SiteView) -> None:
    assert view.snapshot()['state']['state'] == 'unknown'
    view.update_state({'state': 1, 'mode': 'self_consumption', 'missing': []})
    assert view.snapshot()['state']['state'] == 'Run'
    view.update_state(None)
    state = view.snapshot()['state']
    assert (state['known'], state['state'], state['last']) == (False, 'unknown', 'Run')


# ---- power flow


def site(
    view: SiteView, clock: Time, grid: float, units: dict[str, float], pv: float | None = None
) -> None:
    view.update_meter('grid_meter', {'time': clock.now, 'quality': 0, 'active_power': grid})
    for name, power in units.items():
        view.describe(name, 'unit')
        view.update_battery(name, {'time': clock.now, 'quality': 0, 'power': power, 'soc': 0.5})
    if pv is not None:
        view.update_meter('pv_meter', {'time': clock.now, 'quality': 0, 'active_power': pv})


def test_the_house_is_what_remains(view: SiteView, clock: Time) -> None:
    site(view, clock, 400.0, {'a': -900.0, 'b': -300.0}, pv=-500.0)
    flow = power_flow(view.snapshot())
    assert flow['grid']['power'] == 400.0
    assert flow['pv']['power'] == 500.0  # production is shown positive
    assert flow['battery']['power'] == -1200.0
    assert flow['house']['power'] == 400.0 + 1200.0 + 500.0
    assert flow['house']['derived']


def test_without_a_pv_meter_there_is_no_pv(view: SiteView, clock: Time) -> None:
    site(view, clock, 400.0, {'a': -900.0})
    flow = power_flow(view.snapshot())
    assert flow['pv'] is None
    assert flow['house']['power'] == 1300.0


def test_a_house_meter_is_believed(view: SiteView, clock: Time) -> None:
    site(view, clock, 400.0, {'a': -900.0})
    view.update_meter('house_load', {'time': clock.now, 'quality': 0, 'active_power': 1234.0})
    house = power_flow(view.snapshot())['house']
    assert (house['power'], house['derived']) == (1234.0, False)


def test_an_unknown_part_makes_the_sum_unknown(view: SiteView, clock: Time) -> None:
    site(view, clock, 400.0, {'a': -900.0, 'b': nan})
    flow = power_flow(view.snapshot())
    assert isnan(flow['battery']['power'])
    assert isnan(flow['house']['power'])
    assert flow['grid']['power'] == 400.0


def test_a_lost_meter_is_unknown_not_zero(view: SiteView, clock: Time) -> None:
    site(view, clock, 400.0, {'a': -900.0})
    clock.now += 20.0
    view.update_battery('a', {'time': clock.now, 'quality': 0, 'power': -900.0})
    flow = power_flow(view.snapshot())
    assert isnan(flow['grid']['power'])
    assert isnan(flow['house']['power'])
    assert (flow['house']['quality'], flow['battery']['quality']) == ('invalid', 'ok')


def test_an_empty_site_is_unknown_everywhere(view: SiteView) -> None:
    flow = power_flow(view.snapshot())
    assert flow['pv'] is None and flow['batteries'] == []
    assert all(isnan(flow[part]['power']) for part in ('grid', 'house', 'battery'))


def test_no_power_is_counted_twice(view: SiteView, clock: Time) -> None:
    kinds = {'u1': 'unit', 'u2': 'unit', 'all': 'aggregate', 'house': 'partition', 'bms': 'pack'}
    for name, kind in kinds.items():
        view.describe(name, kind)
        view.update_battery(name, {'time': clock.now, 'quality': 0, 'power': 100.0})
    assert power_flow(view.snapshot())['battery']['power'] == 200.0
    all_batteries = view.snapshot()['batteries']
    virtual = [b for b in all_batteries if b['kind'] in ('aggregate', 'partition', 'pack')]
    assert [b['name'] for b in flow_batteries(virtual)] == ['all']


def test_the_role_of_a_meter(view: SiteView, clock: Time) -> None:
    assert [meter_role(n) for n in ('grid', 'PV_roof', 'house', 'x')] == [
        'grid',
        'pv',
        'house',
        'other',
    ]
    view.update_meter('em24', {'time': clock.now, 'quality': 0, 'active_power': 5.0})
    assert view.snapshot()['meters'][0]['role'] == 'grid'  # the only one
    view.describe('em24', 'pv')
    assert view.snapshot()['meters'][0]['role'] == 'pv'
    with pytest.raises(ValueError, match='allowed'):
        view.describe('em24', 'windmill')
    # A battery and a meter of one name: what the one is says nothing of the other.
    view.describe('house', 'partition')
    view.update_meter('house', {'time': clock.now, 'active_power': 1.0})
    assert [m['role'] for m in view.snapshot()['meters']] == ['pv', 'house']
    view.update_battery('em24', {'time': clock.now, 'power': 1.0})
    assert battery(view, 'em24')['kind'] == 'battery'


# ---- faults and traces


def test_faults_worst_first_and_replaced_per_source(view: SiteView, clock: Time) -> None:
    base = {'since': clock.wall() - 60, 'active': True, 'latched': False, 'text': 't', 'count': 1}
    view.update_faults('a', [base | {'id': 'w', 'severity': 1}, base | {'id': 'e', 'severity': 2}])
    view.update_faults('b', [base | {'id': 'c', 'severity': 3}])
    faults = view.snapshot()['faults']
    assert [f['severity_name'] for f in faults] == ['critical', 'error', 'warning']
    assert faults[0]['source'] == 'b' and faults[0]['age'] == pytest.approx(60.0)
    view.update_faults('a', [])
    assert [f['id'] for f in view.snapshot()['faults']] == ['c']


TRACE = {
    'battery': 'house',
    'asked_by': 'self_consumption',
    'asked': -3200.0,
    'sent': -2500.0,
    'steps': [
        {'name': 'grid', 'before': -3200.0, 'after': -3200.0, 'bound': False, 'reason': ''},
        {
            'name': 'bms',
            'before': -3200.0,
            'after': -2500.0,
            'bound': True,
            'reason': 'cell 7 at 3.42 V',
        },
    ],
}


def test_a_decision_in_words(view: SiteView, clock: Time) -> None:
    view.update_trace(TRACE | {'time': clock.now})
    (trace,) = view.snapshot()['traces']
    assert trace['sentence'] == (
        'self_consumption asked discharge 3.2 kW, limited to 2.5 kW by bms: cell 7 at 3.42 V, '
        'sent discharge 2.5 kW'
    )
    view.update_trace(TRACE | {'time': clock.now, 'text': 'told by the manager'})
    assert view.snapshot()['traces'][0]['sentence'] == 'told by the manager'
    assert words.decision({'asked': nan, 'sent': nan}) == 'nobody asks for power, nothing sent'


# ---- words


@pytest.mark.parametrize(
    ('watts', 'shown'),
    [
        (2500.0, '2.5 kW'), (0.0, '0 W'), (-0.2, '0 W'), (-120.4, '\u2212120 W'), (999.4, '999 W'),
        (999.6, '1 kW'), (1234.0, '1.23 kW'), (12345.0, '12.3 kW'), (9996.0, '10 kW'),
        (999600.0, '1 MW'), (2.5e6, '2.5 MW'), (nan, 'unknown'), (inf, 'no limit'),
    ],
)  # fmt: skip
def test_power_in_words(watts: float, shown: str) -> None:
    assert words.power(watts) == shown


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9))
@settings(max_examples=200)
def test_power_in_words_keeps_the_value(watts: float) -> None:
    number, unit = words.power(watts).split(' ')
    value = float(number.replace('\u2212', '-')) * {'W': 1, 'kW': 1e3, 'MW': 1e6}[unit]
    assert value == pytest.approx(watts, rel=0.01, abs=0.51)
    assert '\u22120 ' not in words.power(watts)


def test_unknown_is_never_a_number() -> None:
    shown = [
        f(nan) for f in (words.power, words.energy, words.percent, words.battery_power, words.order)
    ]
    shown += [words.fixed(nan, 2, 'V'), words.grid_power(nan), words.stored(nan, nan)]
    assert set(shown) == {'unknown'}
    assert words.name_of(words.STATES, 77) == 'unknown (77)'
    assert words.age(inf) == 'never'


def test_directions_and_ages() -> None:
    assert words.battery_power(-800.0) == 'discharging 800 W'
    assert words.grid_power(-2100.0) == 'export 2.1 kW'
    assert words.order(0.2) == 'hold 0 W'
    ages = [words.age(s) for s in (0.4, 12, 99.6, 3600, 7200, 1e6)]
    assert ages == ['0 s', '12 s', '2 min', '60 min', '2 h', '12 d']
    assert words.bounds(-inf, inf) == 'no bound'
    assert words.bounds(-2500.0, 3000.0) == '\u22122.5 kW to 3 kW'


# ---- history


def test_history_has_gaps_where_nothing_was_known(view: SiteView, clock: Time) -> None:
    for second in range(20):
        clock.now = 100.0 + second
        if second < 10:
            site(view, clock, 400.0, {'a': -100.0})
        view.record()
    series = view.history(600.0)
    grid = series.values['grid']
    assert len(grid) == 20
    assert series.times[-1] == pytest.approx(clock.wall())
    assert grid[:10] == [400.0] * 10
    clock.now += 30.0
    view.record()
    assert isnan(view.history(600.0).values['grid'][-1])
    assert isnan(view.history(600.0).values['soc:a'][-1])


def test_history_memory_is_bounded_and_long_spans_are_means() -> None:
    history = History(((1.0, 60), (10.0, 30)))
    for second in range(1000):
        history.add(float(second), {'x': float(second)})
    assert len(history.read(999.0, 1e9).times) == 30
    short = history.read(999.0, 20.0)
    assert short.times == [float(t) for t in range(979, 1000)]
    assert short.values['x'] == short.times
    long = history.read(999.0, 200.0)
    assert long.period == 10.0
    assert long.values['x'][0] == pytest.approx(long.times[0] + 4.5)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 50.0), st.one_of(st.just(nan), st.floats(-1e4, 1e4))), max_size=150
    ),
    st.integers(1, 40),
)
@settings(max_examples=60)
def test_history_never_leaves_the_range_of_what_was_recorded(steps: list, most: int) -> None:
    history = History(((1.0, 50), (7.0, 40)))
    now, known = 0.0, []
    for step, value in steps:
        now += step
        history.add(now, {'x': value})
        known += [] if isnan(value) else [value]
    for span in (30.0, 200.0):
        series = history.read(now, span, most)
        assert len(series.times) <= most + 1
        assert series.times == sorted(set(series.times))
        shown = [v for v in series.values.get('x', []) if not isnan(v)]
        assert all(min(known) - 1 <= v <= max(known) + 1 for v in shown)


def test_history_starts_anew_when_time_goes_far_back() -> None:
    history = History(((1.0, 60),))
    history.add(1000.0, {'x': 1.0})
    history.add(999.0, {'x': 5.0})  # late: its point is closed
    assert history.read(1000.0, 60.0).values['x'] == [1.0]
    history.add(10.0, {'x': 2.0})
    assert history.read(10.0, 60.0).values['x'] == [2.0]


# ---- for programs, and threads


def test_a_snapshot_is_json_without_nan(view: SiteView, clock: Time) -> None:
    site(view, clock, nan, {'a': nan})
    view.update_trace({'time': clock.now, 'battery': 'a', 'steps': [{'low': -inf, 'high': inf}]})
    text = json.dumps(json_safe(view.snapshot()), allow_nan=False)
    assert json.loads(text)['traces'][0]['steps'][0] == {'low': None, 'high': None}


def test_one_thread_writes_while_others_read() -> None:
    view, stop, errors = SiteView(), threading.Event(), []

    def write() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            view.update_battery(f'b{i % 50}', {'time': view.clock(), 'power': float(i)})
            view.update_faults(f's{i % 50}', [{'id': 'x', 'severity': 1}] * (i % 3))
            view.record()

    def read() -> None:
        try:
            for _ in range(100):
                power_flow(view.snapshot())
                view.history(600.0)
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (writer, *readers):
        thread.start()
    for thread in readers:
        thread.join(20.0)
    stop.set()
    writer.join(5.0)
    assert not errors
    assert not any(t.is_alive() for t in (writer, *readers))
