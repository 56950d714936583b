"""Curves of IEEE 1547-2018 against its published defaults, response time, adoption and reversion; the modes."""

from __future__ import annotations

import json
from math import inf, isfinite, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modes_story import tell, view
from test_control_nodes import Plant

from bess.srv import AdoptCurve
from bess_control.grid_support.curves import ActiveCurve, Curve, Droop, Reference, Response, power_factor_q
from bess_control.grid_support.modes import FixedPowerFactor, FrequencyWatt, VoltVar, VoltWatt, WattVar
from bess_control.mode_node import node_type
from bess_core.params import ParameterError, build


def make(cls: Any, meter: str = 'grid', **params: Any) -> Any:
    return cls(build(cls.Params, {'rated_power': 10_000.0, **params}), 'm', 'b', meter)


def volts(pu: float, now: float = 0.0, **more: Any) -> dict[str, Any]:
    return {'grid': 0.0, 'voltage': 230.0 * pu, **more}


@pytest.mark.parametrize('voltage, q', [  # category B: V1..V4 0.92 0.98 1.02 1.08, Q 0.44 0 0 -0.44
    (0.80, 0.44), (0.92, 0.44), (0.95, 0.22), (0.98, 0.0), (1.0, 0.0), (1.02, 0.0), (1.05, -0.22), (1.08, -0.44),
    (1.2, -0.44)])
def test_volt_var_defaults_and_the_passive_sign(voltage: float, q: float) -> None:
    # injection is negative in passive signs
    tell(make(VoltVar, response_s=0.0), [(0.0, volts(voltage), {'reactive': -q * 10_000.0, 'power': nan, 'low': -inf})])


def test_open_loop_response_is_90_percent_after_its_time() -> None:
    for steps in (1, 5, 50):
        response = Response(5.0)
        response.step(0.0, 0.0)
        for i in range(1, steps + 1):
            value = response.step(1.0, 5.0 * i / steps)
        assert value == pytest.approx(0.9, abs=1e-9), 'whatever the tick'


@pytest.mark.parametrize('text, said', [
    ('', 'points'), ('1:2', '2 to 20'), ('1:0 1:0', 'ascending'), ('0.9:0.4 1.1', 'no curve'),
    ('0.9:nan 1:0', 'finite'),
    ('0.9:-0.4 1.1:0.4', 'rises'), ('0.9:3 1.1:0', 'beyond'), (' '.join(f'{i}:0' for i in range(21)), '2 to 20')])
def test_bad_curves_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Curve.parse(text, falling=True)
    with pytest.raises(ParameterError):
        make(VoltVar, curve=text)


def test_adoption_is_checked_and_reverts() -> None:
    configured = Curve.parse('0.92:0.44 1.08:-0.44', falling=True)
    active = ActiveCurve(configured, 1.0, falling=True)
    assert 'rises' in active.adopt([0.9, 1.1], [-0.1, 0.1], 0.0, 0.0)
    assert 'reversion' in active.adopt([0.9, 1.1], [0.1, -0.1], -1.0, 0.0)
    assert active.curve(0.0) is configured
    assert active.adopt([0.9, 1.1], [0.1, -0.1], 60.0, 10.0) == ''
    assert active.curve(69.9).y == (0.1, -0.1) and active.remaining(20.0) == 50.0
    assert active.curve(70.0) is configured and active.remaining(70.0) == inf
    active.adopt([0.9, 1.1], [0.1, -0.1], 0.0, 80.0)
    assert active.curve(1e9).y == (0.1, -0.1)
    assert active.adopt([], [], 0.0, 1e9) == '' and active.curve(1e9) is configured


def test_the_reference_follows_slowly_and_within_its_limits() -> None:
    reference = Reference(1.0, 300.0, 0.95, 1.05)
    reference.step(1.03, 0.0)
    assert reference.step(1.03, 300.0) == pytest.approx(1.0 + 0.03 * (1 - 1 / 2.718281828), abs=1e-9)
    assert reference.step(1.5, 3000.0) == 1.05
    mode = make(VoltVar, response_s=0.0, auto_reference_s=300.0)
    tell(mode, [(0.0, volts(1.05), {'reactive': 2200.0}), (3000.0, volts(1.05), {'reactive': 0.0})])


@given(x=st.floats(-2.0, 2.0), points=st.lists(st.floats(0.5, 1.5), min_size=2, max_size=20, unique=True))
def test_a_curve_stays_between_its_points(x: float, points: list[float]) -> None:
    xs = sorted(points)
    curve = Curve.of(xs, [0.5 - i / len(xs) for i in range(len(xs))])
    assert min(curve.y) - 1e-12 <= curve.at(x) <= max(curve.y) + 1e-12


@pytest.mark.parametrize('voltage, low', [(1.05, -inf), (1.07, -7500.0), (1.08, -5000.0), (1.10, 0.0), (1.2, 0.0)])
def test_volt_watt_is_a_bound_on_discharge(voltage: float, low: float) -> None:
    tell(make(VoltWatt, response_s=0.0), [(0.0, volts(voltage), {'low': low, 'high': inf, 'power': nan})])


def test_volt_watt_may_force_charging_and_looks_at_the_highest_phase() -> None:
    mode = make(VoltWatt, response_s=0.0, curve='1.05:1 1.10:-1')
    tell(mode, [(0.0, volts(1.10), {'low': 10_000.0})])
    seen = view(1.0, grid=0.0)
    seen.meter.voltage = (230.0, 253.0, nan)
    assert mode.decide(seen).min_power == pytest.approx(10_000.0)


@pytest.mark.parametrize('power, q', [
    (0.0, 0.0), (-5000.0, 0.0), (-7500.0, -0.22), (-10_000.0, -0.44), (10_000.0, 0.44), (7500.0, 0.22), (1000.0, 0.0)])
def test_watt_var_defaults(power: float, q: float) -> None:
    tell(make(WattVar, '', response_s=0.0), [(0.0, {'granted': power}, {'reactive': -q * 10_000.0})])


def test_power_factor() -> None:
    assert power_factor_q(1.0, 0.9) == pytest.approx(0.48432, abs=1e-5)
    for excitation, sign in (('injecting', -1.0), ('absorbing', 1.0)):
        mode = make(FixedPowerFactor, '', power_factor=0.9, excitation=excitation, response_s=0.0)
        for power in (-5000.0, 5000.0):
            tell(mode, [(0.0, {'granted': power}, {'reactive': sign * 2421.6})])


@pytest.mark.parametrize('frequency, change', [
    (50.0, 0.0), (50.036, 0.0), (49.964, 0.0), (50.536, -0.2), (49.464, 0.2), (51.0, -0.3856), (52.536, -1.0)])
def test_droop(frequency: float, change: float) -> None:
    assert Droop().curve().at(frequency - 50.0) == pytest.approx(change, abs=1e-4)


def test_frequency_watt_keeps_the_power_before_the_event_as_its_base() -> None:
    mode = make(FrequencyWatt, response_s=0.0)
    tell(mode, [
        (0.0, {'grid': 0.0, 'frequency': 50.0, 'granted': -4000.0}, {'low': -inf, 'high': inf, 'state': 'normal'}),
        (1.0, {'grid': 0.0, 'frequency': 50.536, 'granted': -4000.0}, {'low': -2000.0, 'high': inf, 'state': 'over'}),
        (2.0, {'grid': 0.0, 'frequency': 51.536, 'granted': -2000.0}, {'low': 2000.0}),
        (3.0, {'grid': 0.0, 'frequency': 50.0, 'granted': 2000.0}, {'low': -inf, 'state': 'normal'}),
        (4.0, {'grid': 0.0, 'frequency': 49.464, 'granted': 1000.0}, {'low': -inf, 'high': -1000.0, 'state': 'under'}),
        (5.0, {'grid': 0.0, 'frequency': 47.0, 'granted': -1000.0}, {'high': -10_000.0}),
    ])
    slow = make(FrequencyWatt, response_s=5.0)
    tell(slow, [(0.0, {'grid': 0.0, 'frequency': 50.0}, {}), (1.0, {'grid': 0.0, 'frequency': 50.536}, {'low': 0.0}),
                (6.0, {'grid': 0.0, 'frequency': 50.536}, {'low': 1800.0})])


@pytest.mark.parametrize('cls, good, neutral', [
    (VoltVar, {'grid': 0.0, 'voltage': 253.0}, {'reactive': 0.0}),
    (VoltWatt, {'grid': 0.0, 'voltage': 253.0}, {'low': -inf}),
    (FrequencyWatt, {'grid': 0.0, 'frequency': 50.9}, {'low': -inf})])
def test_a_lost_measurement_holds_the_answer_for_a_while(cls: Any, good: dict, neutral: dict) -> None:
    mode = make(cls, response_s=0.0, hold_s=10.0)
    first = mode.decide(view(0.0, **good))
    held = mode.decide(view(5.0, grid=0.0))
    assert (held.min_power, held.preferred_reactive_power) == pytest.approx(
        (first.min_power, first.preferred_reactive_power), nan_ok=True)
    assert 'not measured' in mode.problem
    tell(mode, [(11.0, {'grid': 0.0}, {**neutral, 'power': nan, 'says': 'neutral'})])
    tell(mode, [(12.0, {}, {'says': 'neutral'})])
    assert isfinite(mode.decide(view(13.0, **good)).lease) and mode.problem == ''


VOLTS, RISE, OTHER = [0.9, 1.1], [0.3, -0.3], [0.2, -0.2]


def after_restart(mode: Any, **params: Any) -> Any:
    """The function in a new process, which has what the old one stored."""
    new = make(type(mode), response_s=0.0, **params)
    new.restore(json.loads(json.dumps(mode.save())))
    return new


def test_an_adopted_curve_survives_a_restart_and_still_reverts() -> None:
    mode = make(VoltVar, response_s=0.0)
    assert mode.save() == {}
    accepted, message = mode.adopt(VOLTS, RISE, 7.0, 60.0, 100.0, 1e6)
    assert accepted and message == 'adopted, reverts in 60 s'
    # Another process, with another site clock: 20 s of the 60 are over.
    new = after_restart(mode)
    assert after_restart(new).save() == mode.save(), 'killed before it has looked once'
    low = volts(0.9)
    assert new.decide(view(5.0, at=1e6 + 20.0, **low)).preferred_reactive_power == pytest.approx(-3000.0)
    assert (new.response.time_s, new.values['adopted'], new.dirty) == (7.0, 1.0, False)
    assert new.save()['reverts_at'] == pytest.approx(1e6 + 60.0)
    new.decide(view(44.9, at=1e6 + 59.9, **low))
    assert new.values['adopted'] == 1.0
    new.decide(view(45.0, at=1e6 + 60.0, **low))
    assert (new.values['adopted'], new.response.time_s, new.dirty, new.save()) == (0.0, 0.0, True, {})
    # Over while no process was there; not taken up again, and the file says so from then on.
    late = after_restart(mode)
    assert late.decide(view(0.0, at=1e6 + 61.0, **low)).preferred_reactive_power == pytest.approx(-4400.0)
    assert (late.values['adopted'], late.dirty, late.save()) == (0.0, True, {})
    # Without reversion it stays, until somebody goes back.
    mode.adopt(VOLTS, OTHER, nan, 0.0, 200.0, 1e6)
    stays = after_restart(mode)
    stays.decide(view(0.0, at=9e9, **low))
    assert (stays.values['adopted'], stays.response.time_s) == (1.0, 0.0)
    assert stays.adopt([], [], nan, nan, 1.0, 9e9) == (True, 'back to the configured curve') and stays.save() == {}


@pytest.mark.parametrize('damage', [
    {'x': [1.1, 0.9]}, {'y': [-0.3, 0.3]}, {'y': [5.0, -5.0]}, {'x': ['a', 'b']}, {'reverts_at': nan},
    {'response': -1.0}, {'response': 'soon'}, {'reverts_at': [1]}, {'x': None}])
def test_a_damaged_record_is_no_curve(damage: dict[str, Any]) -> None:
    mode = make(VoltVar)
    mode.adopt(VOLTS, RISE, nan, 60.0, 0.0, 1e6)
    new = make(VoltVar)
    with pytest.raises((ValueError, TypeError, KeyError)):
        new.restore({**mode.save(), **damage})
    new.decide(view(0.0, **volts(1.0)))
    assert new.values['adopted'] == 0.0 and new.save() == {}


def test_a_curve_that_was_configured_since_is_the_later_word() -> None:
    mode = make(VoltVar)
    mode.adopt(VOLTS, RISE, nan, 0.0, 0.0, 1e6)
    assert after_restart(mode).save() == mode.save()
    assert after_restart(mode, curve='0.9:0.1 1.1:-0.1').save() == {}


def test_frequency_watt_adopts_a_curve_of_the_deviation() -> None:
    mode = make(FrequencyWatt, response_s=0.0)
    assert 'rises' in mode.adopt([-1.0, 1.0], [-0.5, 0.5], nan, 0.0, 0.0, 1e6)[1]
    assert mode.adopt([-1.0, -0.5, 0.5, 1.0], [0.5, 0.0, 0.0, -0.5], nan, 10.0, 0.0, 1e6)[0]
    high = {'grid': 0.0, 'granted': -4000.0}
    tell(mode, [(1.0, {**high, 'frequency': 50.4}, {'low': -inf, 'state': 'normal'}),
                (2.0, {**high, 'frequency': 51.0}, {'low': 1000.0, 'state': 'over'}),
                (10.0, {**high, 'frequency': 50.4}, {'low': -4000.0 + 0.1456 * 10_000.0})])
    no_dead_band = Droop(db_over=0.0, db_under=0.0).curve()
    assert no_dead_band.at(0.5) == pytest.approx(-0.2) and no_dead_band.at(-0.5) == pytest.approx(0.2)
    assert no_dead_band.at(0.0) == 0.0


def test_adopting_a_curve_by_service(graph: Any) -> None:
    plant = Plant(graph)
    plant.silent = {'meter'}
    node = graph.add(node_type(WattVar), 'wv', {
        'battery': 'bat', 'rated_power': 1000.0, 'response_s': 0.0, 'period': 0.05})
    graph.up(node)
    graph.wait(lambda: plant.proposals and plant.proposals[-1].preferred_reactive_power == 0.0, 'the configured curve')
    bad = graph.call(AdoptCurve, 'wv/adopt_curve', AdoptCurve.Request(x=[1.0, 0.0], y=[0.0, 0.0], response_time=nan))
    assert (bad.accepted, bad.message) == (False, 'x is not ascending')
    good = graph.call(AdoptCurve, 'wv/adopt_curve', AdoptCurve.Request(
        x=[-1.0, 1.0], y=[0.2, 0.2], response_time=0.0, reversion_time=0.6))
    assert good.accepted and 'reverts' in good.message
    graph.wait(lambda: plant.proposals[-1].preferred_reactive_power == -200.0, 'the adopted one')
    graph.wait(lambda: plant.proposals[-1].preferred_reactive_power == 0.0, 'reverted', 3.0)
    file = graph.ctx.state_dir / 'modes' / 'wv.json'
    graph.wait(lambda: json.loads(file.read_text()) == {}, 'the reversion is stored')

    # Another life of the node: what was adopted without an end holds.
    lasting = AdoptCurve.Request(x=[-1.0, 1.0], y=[0.1, 0.1], response_time=0.0)
    assert graph.call(AdoptCurve, 'wv/adopt_curve', lasting).accepted
    graph.remove(node)
    graph.wait(lambda: plant.proposals[-1].reason == 'mode is off', 'its last word')
    plant.proposals.clear()
    again = graph.add(node_type(WattVar), 'wv', {
        'battery': 'bat', 'rated_power': 1000.0, 'response_s': 0.0, 'period': 0.05})
    graph.up(again)
    graph.wait(lambda: plant.proposals, 'speaks')
    assert plant.proposals[0].preferred_reactive_power == -100.0, 'from its first word on'

    # A disk that takes nothing: what cannot be kept is not adopted.
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text('')
    refused = graph.call(AdoptCurve, 'wv/adopt_curve', AdoptCurve.Request(x=[-1.0, 1.0], y=[0.3, 0.3]))
    assert not refused.accepted and 'could not be saved' in refused.message
    graph.settle(0.2)
    assert plant.proposals[-1].preferred_reactive_power == -100.0
