"""Plan and modes in words, and how they reach the view."""

from __future__ import annotations

from math import nan

from bess_telemetry.plan_words import mode_line, plan_lines, plan_series
from bess_telemetry.site_view import SiteView

PLAN = {'power': [1000.0, -500.0], 'soc': [0.6, 0.5], 'grid': [1200.0, 0.0], 'price_import': [1e-4, 3e-4],
        'step': 900.0,
        'start': 1000.0, 'currency': 'EUR', 'cost': 1.5, 'saving': 0.25, 'cost_idle': 2.0, 'source': 'optimiser',
        'load_forecast': 'regression', 'pv_forecast': 'persistence', 'time': 5.0}
SCORES = {'quantity': ['load', 'load', 'pv'], 'method': ['persistence', 'regression', 'regression'],
          'mae': [100.0, 80.0, nan], 'skill': [0.0, 0.2, nan], 'used': [False, True, False], 'time': 5.0}


def test_a_plan_in_words() -> None:
    lines = plan_lines(PLAN, SCORES)
    assert lines[0] == ('next 0.5 h: 1.50 EUR, saves 0.25 EUR against plain self-consumption and 0.50 EUR against a '
                        'battery at rest')
    assert lines[2:] == ['forecast of load by persistence: 100 W mean error',
                         'forecast of load by regression: 80 W mean error, +20% against persistence (used)']
    assert len(plan_lines(PLAN, None)) == 2


def test_curves_of_a_plan() -> None:
    series = plan_series(PLAN)
    assert series['battery (+ charging), kW'] == [[1000000, 1.0], [1900000, -0.5]]
    assert series['import price per kWh'][1] == [1900000, 0.3]


def test_the_view_keeps_modes_that_are_on_and_the_scores_with_the_plan() -> None:
    view = SiteView('home', clock=lambda: 10.0, wall=lambda: 1010.0)
    view.update_mode('a', {'state': 'shaving', 'text': 'why', 'problem': '', 'time': 9.0})
    view.update_mode('b', {'state': 'off', 'text': '', 'problem': '', 'time': 9.0})
    view.update_plan('saver', PLAN)
    view.update_scores('saver', SCORES)
    snap = view.snapshot()
    assert [mode_line(m) for m in snap['mode_states']] == ['a (shaving): why']
    assert snap['plans'][0]['scores'] == SCORES
    assert mode_line({'name': 'x', 'state': '', 'problem': 'blind', 'text': 'y'}) == 'x: blind'
