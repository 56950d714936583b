"""Several modes at once, the real book and power manager, and a plant with delays: what the meter then shows."""

from __future__ import annotations

from collections.abc import Callable
from math import sin
from typing import Any

import pytest
from control_plant import Plant
from modes_story import wall

from bess_control.manager import PowerManager, PowerManagerParams
from bess_control.modes.base import Signal, View
from bess_control.modes.charging import ChargeOnly
from bess_control.modes.connection import FeedInLimit, LoadLimit, RampRate
from bess_control.modes.peak_shaving import PeakShaving
from bess_control.modes.reserves import LimitTotalDischarge
from bess_control.modes.self_consumption import SelfConsumption
from bess_control.modes.simple import FixedPower
from bess_control.proposals import ProposalBook
from bess_core.params import build

Rows = list[tuple[float, float, float]]


def make(cls: Any, **params: Any) -> Any:
    return cls(build(cls.Params, params), cls.__name__, 'b', 'grid')


def run(modes: list[Any], plant: Plant, until: float, tick: float = 0.1, soc: Callable[[float], float] = lambda t: 0.5,
        contact: Callable[[float], bool] = lambda t: False, limit: float = 5000.0) -> Rows:
    """(time, battery W, grid W) of every step of the plant."""
    manager = PowerManager(PowerManagerParams(battery='b', tick_s=tick, ramp_rate=1e12))
    book = ProposalBook()
    granted, rows = 0.0, plant.run(0.0, tick)
    while plant.now < until:
        battery, meter, now = plant.battery(), plant.meter(), plant.now
        battery.max_charge_power = battery.max_discharge_power = limit
        battery.soc, battery.energy_full = soc(now), 10_000.0
        for mode in modes:
            proposal = mode.decide(View(now=now, wall=wall('2026-06-01 23:00') + now, battery=battery, meter=meter,
                                        granted=granted, signals={'input': Signal(contact(now), now)}))
            if proposal is not None:
                assert book.put(proposal, now) == ''
        granted = manager.tick(now, book, battery, meter).granted
        rows += plant.run(granted, tick)
    return rows


def after(rows: Rows, start: float, end: float = 1e9) -> Rows:
    return [r for r in rows if start < r[0] < end]


@pytest.mark.parametrize('tick', [0.1, 1.0])
@pytest.mark.parametrize('follow', [1.0, 0.95])
def test_peak_shaving_holds_the_peak_and_leaves_self_consumption_free_below(tick: float, follow: float) -> None:
    plant = Plant(follow=follow, load=lambda t: 1500.0 if t < 40.0 else 8000.0 if t < 90.0 else -1000.0)
    rows = run([make(PeakShaving, import_limit=5000.0), make(SelfConsumption)], plant, 130.0, tick)
    assert all(abs(g) < 60.0 for _, _, g in after(rows, 30.0, 40.0)), 'below the limit self-consumption works'
    assert all(g < 5040.0 for _, _, g in after(rows, 60.0, 90.0))
    assert all(abs(g) < 80.0 for _, _, g in after(rows, 115.0))


def test_peak_shaving_alone_shaves_recharges_and_rests() -> None:
    plant = Plant(load=lambda t: 3000.0 if t < 30.0 else 7000.0 if t < 60.0 else 500.0)
    mode = make(PeakShaving, import_limit=5000.0, recharge_limit=2000.0)
    rows = run([mode], plant, 90.0)
    assert all(abs(p) < 1.0 for _, p, _ in after(rows, 10.0, 30.0)), 'at rest between the bands'
    assert all(abs(g - 5000.0) < 30.0 for _, _, g in after(rows, 40.0, 60.0))
    assert all(abs(g - 2000.0) < 30.0 for _, _, g in after(rows, 75.0))


@pytest.mark.parametrize('tick', [0.1, 1.0])
def test_feed_in_limit_over_self_consumption_and_over_a_mode_that_exports(tick: float) -> None:
    plant = Plant(load=lambda t: 500.0 if t < 40.0 else -4000.0)
    rows = run([make(FeedInLimit, max_feed_in=1000.0), make(FixedPower, discharge_power=3000.0)], plant, 80.0, tick)
    assert all(abs(g + 1000.0) < 40.0 for _, _, g in after(rows, 20.0, 40.0)), 'its own discharge is held'
    assert all(abs(g + 1000.0) < 40.0 for _, _, g in after(rows, 60.0)), 'what the sun gives too much is taken'


def test_import_cap_of_charging_holds_while_the_load_moves() -> None:
    plant = Plant(load=lambda t: 2000.0 + 1500.0 * sin(t / 40.0))
    rows = run([make(ChargeOnly, charge_power=4000.0, import_cap=5000.0)], plant, 200.0)
    grid = [g for _, _, g in after(rows, 20.0)]
    assert max(grid) < 5000.0 + 150.0
    assert min(p for _, p, _ in rows) > -1.0, 'never discharges'
    assert max(p for _, p, _ in rows) == pytest.approx(4000.0, abs=20.0)


def test_ramp_rate_of_a_step() -> None:
    plant = Plant(load=lambda t: 1000.0 if t < 20.0 else -2000.0)
    rows = run([make(RampRate, ramp_rate=50.0, recovery_share=0.0, kp=1000.0)], plant, 120.0)
    seen = {round(t): g for t, _, g in rows}
    steepest = max(abs(seen[t + 5] - seen[t]) / 5.0 for t in range(25, 110))
    assert steepest < 60.0
    assert seen[110] == pytest.approx(-2000.0, abs=30.0)


def test_limits_hold_over_a_mode_that_wants_something_else() -> None:
    plant = Plant(load=lambda t: 1000.0)
    modes = [make(LimitTotalDischarge, min_soc=0.2, force_charge_soc=0.1), make(LoadLimit, input='c'),
             make(FixedPower, charge_power=4900.0)]
    rows = run(modes, plant, 40.0, contact=lambda t: 20.0 < t < 30.0)
    assert after(rows, 15.0, 20.0)[0][1] == pytest.approx(4900.0, abs=5.0)
    assert all(p < 4201.0 for _, p, _ in after(rows, 25.0, 30.0))
    modes[2] = make(FixedPower, discharge_power=3000.0)
    rows = run(modes, Plant(load=lambda t: 1000.0), 30.0, soc=lambda t: 0.5 if t < 10.0 else 0.19)
    assert after(rows, 8.0, 9.0)[0][1] == pytest.approx(-3000.0, abs=5.0)
    assert all(p > -1.0 for _, p, _ in after(rows, 13.0))


def test_two_modes_that_fight_are_decided_by_priority_and_do_not_swing() -> None:
    plant = Plant(load=lambda t: 1000.0)
    a = make(FixedPower, charge_power=2000.0, priority=110)
    b = make(FixedPower, discharge_power=2000.0, priority=109)
    b.source = 'other'
    rows = run([b, a], plant, 20.0)
    assert all(p == pytest.approx(2000.0, abs=1.0) for _, p, _ in after(rows, 10.0))
    b.params = build(FixedPower.Params, {'discharge_power': 500.0, 'priority': 120, 'relation': 'at_least'})
    rows = run([b, a], Plant(load=lambda t: 1000.0), 20.0)
    assert all(p == pytest.approx(-500.0, abs=1.0) for _, p, _ in after(rows, 10.0)), 'a bound above a wish'
