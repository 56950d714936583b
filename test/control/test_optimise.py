"""Tariffs, forecasts, the optimiser and the mode that carries out its plans."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes_story import tell, view, wall

from bess.msg import EnergyPlan, ForecastScores
from bess.srv import SetPrices
from bess_control.mode_node import node_type
from bess_control.modes.cost_saving import CostSaving, PlanInForce
from bess_control.optimise import planner, rolling
from bess_control.optimise.forecast import METHODS, Forecaster, Measured, forecast
from bess_control.optimise.tariff import Tariff, read_csv, take
from bess_core import qos
from bess_core.convert import wall_stamp
from bess_core.params import ParameterError, build

BERLIN = 'Europe/Berlin'

# -- tariffs -------------------------------------------------------------------------------------------


def hours(day: str, count: int) -> str:
    return '\n'.join(f'{day}T{h:02d}:00,{0.1 + h / 100:g}' for h in range(count))


def test_a_price_file_with_header_negative_prices_and_per_mwh() -> None:
    prices = read_csv('Export,TIME,Import\n60,2026-03-02T00:00,100\n55,2026-03-02T01:00,-20\n', BERLIN, per=1000.0)
    start = wall('2026-03-02 00:00')
    assert prices.at(start) == pytest.approx((0.1, 0.06))
    assert prices.at(start + 5000.0) == pytest.approx((-0.02, 0.055))
    assert isnan(prices.at(start - 1.0)[0]) and isnan(prices.at(start + 7200.0)[0])
    assert prices.problems == []


def test_gaps_and_duplicates_are_reported_and_a_gap_takes_the_price_below() -> None:
    text = '2026-03-02T00:00,0.1\n2026-03-02T01:00,0.2\n2026-03-02T01:00,0.25\n2026-03-02T04:00,0.3\n' \
        '2026-03-02T05:00,0.3\n'
    tariff = Tariff(0.5, 0.08, ['0.4 02:00-03:00'], BERLIN, grid_fee=0.01)
    tariff.file = read_csv(text, BERLIN)
    assert len(tariff.file.problems) == 2
    assert 'given twice' in tariff.file.problems[0] and 'gap of 2 h' in tariff.file.problems[1]
    start = wall('2026-03-02 00:00')
    buy, sell, source = tariff.series(start, 3600.0, 7)
    assert buy == pytest.approx([0.11, 0.26, 0.4, 0.5, 0.31, 0.31, 0.5])
    assert source[1:5] == ['price file', 'time of use', 'constant price', 'price file'] and set(sell) == {0.08}


def test_days_of_23_and_25_hours() -> None:
    spring = read_csv('\n'.join(f'2026-03-29T{h:02d}:00,{h}' for h in range(24) if h != 2), BERLIN)
    assert spring.problems == [] and spring.starts[-1] - spring.starts[0] == 22 * 3600.0
    rows = [f'2026-10-25T{h:02d}:00,{h}' for h in (0, 1, 2, 2, 3, *range(4, 24))]
    autumn = read_csv('\n'.join(rows), BERLIN)
    assert autumn.problems == [] and len(autumn.starts) == 25
    assert autumn.starts[-1] - autumn.starts[0] == 24 * 3600.0
    with_offsets = read_csv('2026-10-25T02:00+02:00,1\n2026-10-25T02:00+01:00,2\n')
    assert with_offsets.starts[1] - with_offsets.starts[0] == 3600.0


@pytest.mark.parametrize('text, said', [
    ('time,price\n2026-01-01,1\n', 'line 1: the header needs'), ('2026-13-01T00:00,1\n', 'line 1'),
    ('2026-01-01T00:00,abc\n', 'line 1'), ('2026-01-01T00:00\n', 'line 1'), ('2026-01-01T00:00,250\n', 'another unit'),
    ('2026-01-01T00:00,nan\n', 'no price'), ('2026-01-01T00:00,0.1\nx\n', 'line 2'),
])
def test_a_bad_price_file_says_where(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_csv(text, BERLIN)


def test_an_empty_file_has_no_prices_and_delivered_prices_replace_the_hours_they_name() -> None:
    assert read_csv('', BERLIN).until == -inf
    tariff = Tariff(0.3, 0.1)
    assert tariff.deliver([0.0, 3600.0], [0.1, 0.2], [], 0.0) == ''
    assert tariff.deliver([3600.0, 7200.0], [0.9, -0.5], [0.0, 0.0], 0.0) == ''
    assert [tariff.at(t)[0] for t in (10.0, 3700.0, 7300.0, 1e6)] == [0.1, 0.9, -0.5, 0.3]
    for bad, said in ((([1.0, 1.0], [0.1, 0.1], []), 'ascending'), (([1.0], [0.1, 0.2], []), 'one of each'),
                      (([], [], []), 'no prices'), (([1.0], [nan], []), 'no price')):
        assert said in tariff.deliver(*bad, 0.0)
        assert tariff.at(7300.0)[0] == -0.5
    with pytest.raises(ValueError, match='write the price'):
        Tariff(0.3, 0.1, ['cheap 22:00-06:00'])


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(-1.0, 1.0)), max_size=60))
def test_any_rows_give_one_price_per_time(rows: list[tuple[int, float]]) -> None:
    prices = take([(900.0 * t, p, nan) for t, p in rows])
    assert prices.starts == sorted(set(prices.starts))
    last = dict(rows)
    for t, p in last.items():
        assert prices.at(900.0 * t)[0] == p


# -- forecasts -----------------------------------------------------------------------------------------


def day_shape(step: int) -> float:
    return 300.0 + 200.0 * np.sin(2.0 * np.pi * (step % 96) / 96.0) + (400.0 if (step // 96) % 7 in (2, 3) else 0.0)


def test_each_method_on_a_known_pattern() -> None:
    known = {s: day_shape(s) for s in range(96 * 28)}
    truth = np.array([day_shape(s) for s in range(96 * 28, 96 * 29)])
    errors = {m: float(np.abs(forecast(known, 96 * 28, 96, 900.0, m) - truth).mean()) for m in METHODS}
    assert errors['weekday profile'] < 1e-6, 'a pure weekly pattern'
    assert errors['regression'] < 60.0
    weekend = np.array([day_shape(s) for s in range(96 * 30, 96 * 31)])  # the first day of its kind
    known |= {s: day_shape(s) for s in range(96 * 28, 96 * 30)}
    assert float(np.abs(forecast(known, 96 * 30, 96, 900.0, 'persistence') - weekend).mean()) > 300.0


def test_a_forecast_never_looks_ahead_and_says_when_it_knows_too_little() -> None:
    assert forecast({}, 1000, 10, 900.0, 'persistence') is None
    known = dict.fromkeys(range(1000, 1000 + 96 * 10), 100.0)
    future = {**known, **dict.fromkeys(range(1960, 3000), 9e9)}
    for method in METHODS:
        a, b = (forecast(k, 1960, 192, 900.0, method) for k in (known, future))
        assert a is not None and b is not None and np.array_equal(a, b)
        assert a == pytest.approx(100.0, abs=2.0)
    with pytest.raises(ValueError, match='less than a day'):
        Forecaster(900.0).predict(0, 4)


def test_gaps_in_what_was_measured_do_not_end_the_forecast() -> None:
    known = {s: day_shape(s) for s in range(96 * 10) if s % 7}
    for method in METHODS:
        values = forecast(known, 96 * 10, 96, 900.0, method)
        assert values is not None and np.isfinite(values).all()


def test_measured_means_and_incomplete_steps() -> None:
    m = Measured(900.0)
    assert [m.add(t, 100.0 if t < 450 else 300.0, 30.0) for t in range(0, 900, 30)] == [None] * 30
    assert m.add(900.0, 5.0, 30.0) == 0 and m.get(0) == pytest.approx(200.0)
    m.add(1000.0, nan, 30.0)
    assert m.add(1800.0, 5.0, 30.0) is None and isnan(m.get(1)), 'too little was measured'


def test_forecasts_are_scored_and_the_best_is_used() -> None:
    f = Forecaster(900.0, low=0.0)
    for s in range(96 * 24):
        for part in range(3):
            f.add(900.0 * s + 300.0 * part, day_shape(s), 300.0)
    assert f.best != 'persistence'
    assert f.scores[f.best].mae < f.scores['persistence'].mae
    assert f.skill(f.best) > 0.3 and abs(f.skill('persistence')) < 1e-9
    again = Forecaster(900.0)
    again.restore(f.save())
    assert again.best == f.best
    assert again.predict(96 * 24, 96)[0] == pytest.approx(f.predict(96 * 24, 96)[0], abs=0.1)


# -- the optimiser -------------------------------------------------------------------------------------


def problem(load: list[float], pv: list[float], buy: list[float], sell: float | list[float] = 0.05,
            soc: float = 0.5, **more: Any) -> planner.Problem:
    battery = {'energy_full': 10_000.0, 'max_charge': 3000.0, 'max_discharge': 3000.0, 'soc': soc,
               **more.pop('battery', {})}
    n = len(load)
    sells = [sell] * n if isinstance(sell, float) else sell
    return planner.Problem(3600.0, np.array(load), -np.array(pv), np.array(buy) / 1e3, np.array(sells) / 1e3,
                           planner.Battery(**battery), **more)


def test_charges_when_cheap_and_gives_when_dear() -> None:
    plan = planner.solve(problem([500.0] * 4, [0.0] * 4, [0.1, 0.1, 0.5, 0.5], soc=0.1, end_value=0.0))
    assert plan.power[2:] == pytest.approx([-500.0, -500.0])
    assert plan.power[:2].sum() == pytest.approx(1000.0 / 0.95**2, rel=1e-6)
    assert plan.cost < planner.rules(problem([500.0] * 4, [0.0] * 4, [0.1, 0.1, 0.5, 0.5], soc=0.1, end_value=0.0)).cost


def test_wear_can_make_it_not_worth_while() -> None:
    spread = problem([500.0] * 2, [0.0] * 2, [0.20, 0.25], soc=0.1, end_value=0.0, battery={'wear_per_wh': 0.1e-3})
    assert np.abs(planner.solve(spread).power).max() < 1e-6


def test_negative_prices_fill_the_battery_and_never_both_ways_at_once() -> None:
    p = problem([500.0] * 3, [0.0] * 3, [-0.2, -0.1, 0.3], sell=[-0.3, -0.2, 0.05], soc=0.1, end_value=0.0)
    plan = planner.solve(p)
    assert plan.power[0] == pytest.approx(3000.0) and plan.power[1] == pytest.approx(3000.0)
    better = problem([0.0] * 3, [0.0] * 3, [0.1, 0.1, 0.1], sell=[0.4, 0.4, 0.05], soc=0.9, end_value=0.0)
    plan = planner.solve(better)  # export pays more than import costs: finite, and never a circle through the grid
    assert plan.grid.min() >= -3000.0 - 1e-6 and np.isfinite(plan.cost)


def test_demand_charge_flattens_the_peak() -> None:
    load = [1000.0, 1000.0, 5000.0, 1000.0]
    flat = planner.solve(problem(load, [0.0] * 4, [0.2] * 4, soc=0.1, end_value=0.0, demand_price=0.05))
    plain = planner.solve(problem(load, [0.0] * 4, [0.2] * 4, soc=0.1, end_value=0.0))
    assert plain.grid.max() == pytest.approx(5000.0, abs=1.0)
    assert flat.grid.max() < 3000.0
    known = planner.solve(problem(load, [0.0] * 4, [0.2] * 4, soc=0.1, end_value=0.0, demand_price=0.05,
                                  peak_so_far=4500.0))
    assert known.grid.max() == pytest.approx(4500.0, abs=1.0), 'no use in going below a peak that was paid for'


@pytest.mark.parametrize('more', [
    {'soc': 0.0}, {'soc': 1.0, 'battery': {'max_soc': 0.9}}, {'soc': 0.03, 'import_limit': 100.0},
    {'export_limit': 0.0}, {'battery': {'max_charge': 0.0, 'max_discharge': 0.0}}, {'import_limit': 0.0}])
def test_never_infeasible(more: dict[str, Any]) -> None:
    plan = planner.solve(problem([4000.0, 500.0, 500.0], [0.0, 9000.0, 0.0], [0.3, 0.1, 0.3], **more))
    assert np.isfinite(plan.power).all() and np.isfinite(plan.cost)


@pytest.mark.parametrize('spoil', [
    {'load': np.array([nan, 1.0])}, {'buy': np.array([0.1])}, {'load': np.array([]), 'pv': np.array([])}])
def test_what_is_no_problem_is_refused(spoil: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        planner.solve(replace(problem([1.0, 1.0], [0.0, 0.0], [0.1, 0.1]), **spoil))
    with pytest.raises(ValueError, match='unknown'):
        planner.solve(problem([1.0], [0.0], [0.1], soc=nan))


@given(data=st.lists(st.tuples(st.floats(0.0, 8000.0), st.floats(0.0, 8000.0), st.floats(-0.3, 0.6),
                               st.floats(-0.2, 0.5)), min_size=1, max_size=12),
       soc=st.floats(0.0, 1.0), limit=st.sampled_from([np.inf, 3000.0, 0.0]))
@settings(max_examples=40)
def test_a_plan_keeps_the_limits_and_is_never_worse_than_rules(data: Any, soc: float, limit: float) -> None:
    load, pv, buy, sell = (list(c) for c in zip(*data, strict=True))
    p = problem(load, pv, buy, sell, soc=soc)
    plan = planner.solve(p)
    assert np.abs(plan.power).max() <= 3000.0 + 1e-6
    assert plan.soc.min() >= min(soc, 0.1) - 1e-6 and plan.soc.max() <= max(soc, 1.0) + 1e-6
    if soc >= 0.1:
        assert plan.cost <= planner.rules(p).cost + 1e-3
        assert plan.cost <= planner.idle(p).cost + 1e-3
    assert np.isfinite(planner.solve(replace(p, import_limit=limit)).cost)


@pytest.mark.parametrize('planned, grid, rest, done', [
    (-800.0, 0.0, 900.0, -900.0), (800.0, 5.0, -700.0, 700.0),  # self-consumption, with what there really is
    (-800.0, 500.0, 500.0, -500.0), (-800.0, 500.0, 900.0, -800.0),  # a part of the load, never export
    (-2000.0, -1500.0, 100.0, -2000.0), (2000.0, 2500.0, 400.0, 2000.0),  # on purpose
    (800.0, -500.0, -600.0, 600.0), (0.0, 700.0, 900.0, 0.0)])
def test_how_a_plan_meets_reality(planned: float, grid: float, rest: float, done: float) -> None:
    assert rolling.carry_out(planned, grid, rest) == done


# -- the mode ------------------------------------------------------------------------------------------


def mode(**params: Any) -> CostSaving:
    return CostSaving(build(CostSaving.Params, {'time_zone': BERLIN, 'kp': 1000.0, **params}), 'm', 'b', 'grid')


def force(m: CostSaving, start: float, powers: list[float], load: list[float]) -> None:
    p = problem(load, [0.0] * len(load), [0.3] * len(load))
    plan = planner.account(p, np.array(powers))
    m.planned(PlanInForce(start, 900.0, plan, p, 0.0, 0.0, ('persistence', 'persistence')), '')


def test_carries_out_the_plan_and_falls_back_to_rules() -> None:
    m = mode(max_plan_age_s=1800.0)
    start = 1.77e9
    tell(m, [(1.0, {'grid': 700.0, 'at': start}, {'power': -700.0, 'state': 'rules', 'says': 'no plan yet'})])
    force(m, start, [-600.0, 2000.0, 0.0, 0.0], [600.0] * 4)
    tell(m, [
        (20.0, {'grid': 700.0, 'at': start + 60.0}, {'power': -700.0, 'state': 'plan', 'says': 'self-consumption'}),
        (40.0, {'grid': 700.0, 'at': start + 900.0}, {'power': 2000.0, 'state': 'plan'}),
        (60.0, {'grid': 700.0, 'at': start + 950.0, 'soc': 1.0}, {'power': 0.0}),
        (80.0, {'grid': 700.0, 'at': start + 1810.0}, {'power': -700.0, 'state': 'rules', 'says': 'too old'}),
        (100.0, {'grid': nan, 'at': start}, {'power': 0.0, 'state': 'blind'}),
        (120.0, {'grid': 700.0, 'at': start, 'soc': nan}, {'power': 0.0, 'says': 'unknown'}),
    ])


def test_rules_take_energy_that_is_paid_for() -> None:
    m = mode(import_limit=2500.0)
    m.tariff.deliver([1.77e9], [-0.05], [], 1.77e9)
    tell(m, [(1.0, {'grid': 700.0, 'at': 1.77e9}, {'power': 1800.0, 'says': 'import is paid'})])


def learn(m: CostSaving, days: int, start: float = 1.77e9 // 86400 * 86400) -> float:
    for s in range(96 * days):
        m.load.add(start + 900.0 * s, 400.0, 900.0)
        m.load.add(start + 900.0 * s + 899.0, 400.0, 900.0)
    return start + 86400.0 * days


def test_the_job_makes_a_plan_from_what_was_learnt() -> None:
    m = mode(horizon_h=24.0, time_of_use=['0.10 00:00-06:00'], wear_price=0.0, replan_s=900.0)
    now = learn(m, 3)
    assert m.job(view(1.0, grid=400.0, at=now, soc=0.1)) is not None
    assert m.job(view(2.0, grid=400.0, at=now, soc=0.1)) is None, 'not due again'
    job = m.job(view(1000.0, grid=400.0, at=now, soc=0.1))
    made = job()
    assert len(made.plan.power) == 96 and made.cost_rules - made.plan.cost > 0.0
    m.planned(made, '')
    assert m.plan is made
    m.planned(None, 'RuntimeError: no plan')
    assert (m.plan, m.why_no_plan) == (made, 'RuntimeError: no plan')
    m.replan()
    unknown = m.job(view(1001.0, grid=400.0, at=now, soc=nan))
    with pytest.raises(ValueError, match='unknown'):
        unknown()


def test_the_price_file_is_read_again_when_it_changes_and_a_bad_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / 'prices.csv'
    m = mode(price_file=str(file))
    with pytest.raises(OSError):
        m.read_file()
    file.write_text('2026-03-02T00:00,0.11\n')
    m.read_file()
    assert m.tariff.at(wall('2026-03-02 00:30'))[0] == 0.11
    file.write_text('2026-03-02T00:00,oops\n')
    with pytest.raises(ValueError, match='line 1'):
        m.read_file()
    assert m.tariff.at(wall('2026-03-02 00:30'))[0] == 0.11, 'what was good stays'
    with pytest.raises(ParameterError, match='not below'):
        mode(min_soc=0.9, max_soc=0.2)


def test_measurements_survive_a_restart() -> None:
    m = mode()
    learn(m, 2)
    m.tariff.deliver([0.0], [0.2], [], 0.0)
    again = mode()
    again.restore(m.save())
    assert again.load.measured.values == m.load.measured.values and again.tariff.at(10.0)[0] == 0.2


def test_plan_scores_and_prices_on_the_wire(graph: Any) -> None:
    from test_control_nodes import Plant

    plant = Plant(graph)
    plant.load = 400.0
    node = graph.add(node_type(CostSaving), 'saver', {
        'battery': 'bat', 'meter': 'grid', 'period': 0.1, 'horizon_h': 6.0, 'replan_s': 30.0, 'time_zone': BERLIN})
    graph.up(node)
    plans = graph.listen(EnergyPlan, 'saver/plan', qos.STATE)
    scores = graph.listen(ForecastScores, 'saver/forecast_scores', qos.STATE)
    graph.wait(lambda: node.faults.get('cost_saving.no_plan'), 'no forecast yet is said')
    graph.wait(lambda: plant.proposals and plant.proposals[-1].preferred_power < -100.0, 'rules meanwhile')
    learn(node._mode, 2, graph.clock.wall() // 86400 * 86400 - 2 * 86400)
    hour = graph.clock.wall() // 3600 * 3600
    request = SetPrices.Request(start=[wall_stamp(hour + 3600.0 * i) for i in range(3)], price_import=[0.1, 0.2, 0.5])
    answer = graph.call(SetPrices, 'saver/set_prices', request)
    assert (answer.accepted, answer.message) == (True, '3 prices')
    graph.wait(lambda: plans, 'a plan')
    plan = plans[-1]
    assert len(plan.power) == len(plan.soc) == len(plan.load) == 24 and plan.load_forecast == 'persistence'
    assert plan.price_import[-1] == pytest.approx(0.3e-3) and plan.source == 'optimiser'
    assert plan.saving == pytest.approx(plan.cost_rules - plan.cost)
    assert list(scores[-1].method) == [*METHODS] * 2
    graph.wait(lambda: node.faults.get('cost_saving.no_plan') is None, 'the fault is gone')
    refused = graph.call(SetPrices, 'saver/set_prices', SetPrices.Request(start=[wall_stamp(hour)], price_import=[nan]))
    assert not refused.accepted and 'no price' in refused.message
