"""Self-consumption: closed loop with delays and lags, and a table of single steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import isfinite, nan

import pytest
from control_plant import Plant
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.load_estimate import LoadEstimator
from bess_control.manager import PowerManager, PowerManagerParams
from bess_control.modes.self_consumption import SelfConsumption, SelfConsumptionParams
from bess_control.proposals import ProposalBook
from bess_core.values import BatteryReading, MeterReading, Quality

STEP_AT = 10.05  # s, between two samples
Rows = list[tuple[float, float, float]]


def close_loop(plant: Plant, tick: float, until: float,
               params: SelfConsumptionParams | None = None,
               limit: float = 5000.0) -> tuple[Rows, SelfConsumption]:
    """The mode, the book and the real power manager against the plant."""
    mode = SelfConsumption(params or SelfConsumptionParams(), battery='b')
    manager = PowerManager(PowerManagerParams(battery='b', tick_s=tick, ramp_rate=1e12))
    book = ProposalBook()
    granted = 0.0
    rows = plant.run(0.0, tick)
    while plant.now < until:
        battery = plant.battery()
        battery.max_charge_power = battery.max_discharge_power = limit
        meter = plant.meter()
        proposal = mode.step(meter, battery, granted, plant.now)
        if proposal is not None:
            assert book.put(proposal, plant.now) == ''
        granted = manager.tick(plant.now, book, battery, meter).granted
        rows += plant.run(granted, tick)
    return rows, mode


def step_load(size: float, base: float = 200.0) -> Callable[[float], float]:
    return lambda t: base + (size if t >= STEP_AT else 0.0)


def overshoot(rows: Rows, final: float, size: float) -> float:
    """Share of the step by which the battery goes past its final power."""
    sign = 1.0 if size > 0 else -1.0
    return max(sign * (power - final) for t, power, _ in rows if t > STEP_AT) / abs(size)


def settled_after(rows: Rows, final: float, size: float) -> float:
    """Seconds after the step from which the battery stays within 2 % of the step."""
    late = [t for t, power, _ in rows if abs(power - final) > 0.02 * abs(size)]
    return max(late[-1] - STEP_AT, 0.0)


@pytest.mark.parametrize('tick', [0.1, 1.0])
@pytest.mark.parametrize('meter_delay', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('lag', [0.2, 0.5, 1.0])
def test_step_no_overshoot_and_settled_in_7_s(tick: float, meter_delay: float, lag: float) -> None:
    for size in (3000.0, -3000.0):
        for battery_delay, dead_time, honest in (
                (0.0, 0.0, False), (0.0, 0.2, True), (0.5, 0.2, False), (1.0, 0.2, False)):
            plant = Plant(meter_delay_s=meter_delay, lag_s=lag, battery_delay_s=battery_delay,
                          dead_time_s=dead_time, honest_stamps=honest, load=step_load(size))
            rows, _ = close_loop(plant, tick, 40.0)
            final = -(200.0 + size)
            assert overshoot(rows, final, -size) < 0.01
            # dead times, one sample, and 4 lags to 2 %
            bound = meter_delay + dead_time + tick + 4.0 * lag + 0.8
            assert settled_after(rows, final, size) < bound <= 7.0


@pytest.mark.parametrize('tick', [0.1, 1.0])
def test_up_and_down_in_quick_succession(tick: float) -> None:
    def load(t: float) -> float:
        return 300.0 + (2000.0 if 10.0 <= t < 13.0 else 0.0) + (1500.0 if t >= 11.5 else 0.0)

    plant = Plant(meter_delay_s=0.5, lag_s=0.5, load=load)
    rows, _ = close_loop(plant, tick, 40.0)
    assert all(abs(power + 1800.0) < 40.0 for t, power, _ in rows if t > 22.0)
    assert all(-3850.0 < power < -200.0 for t, power, _ in rows if t > 12.0)


@pytest.mark.parametrize('tick', [0.1, 1.0])
@pytest.mark.parametrize('follow, offset', [(0.95, 0.0), (1.05, 40.0), (0.9, -30.0)])
def test_trim_removes_what_the_converter_gives_too_much_or_too_little(
        tick: float, follow: float, offset: float) -> None:
    plant = Plant(meter_delay_s=1.0, lag_s=1.0, follow=follow, offset=offset, load=step_load(2800.0))
    rows, mode = close_loop(plant, tick, 90.0)
    assert all(abs(grid) < 12.0 for t, _, grid in rows if t > 70.0)
    assert abs(mode.trim) > 50.0
    still = [power for t, power, _ in rows if t > 75.0]
    assert max(still) - min(still) < 1.0  # no limit cycle


def test_without_trim_the_same_error_stays() -> None:
    plant = Plant(meter_delay_s=0.5, lag_s=0.5, follow=0.95, load=step_load(2800.0))
    rows, _ = close_loop(plant, 0.1, 60.0, SelfConsumptionParams(ki=0.0, steady_s=0.0))
    assert all(abs(grid) > 100.0 for t, _, grid in rows if t > 40.0)


@pytest.mark.parametrize('tick', [0.1, 1.0])
@pytest.mark.parametrize('delay, lag', [(0.1, 0.2), (1.0, 0.2), (1.0, 1.0)])
def test_noise_does_not_grow_into_a_limit_cycle(tick: float, delay: float, lag: float) -> None:
    plant = Plant(meter_delay_s=delay, lag_s=lag, battery_delay_s=0.3, noise=30.0, follow=0.97,
                  load=step_load(2500.0))
    rows, _ = close_loop(plant, tick, 80.0)
    tail = [grid for t, _, grid in rows if t > 40.0]
    assert max(tail) - min(tail) < 6.0 * 30.0
    assert abs(sum(tail) / len(tail)) < 60.0


def test_delay_longer_than_assumed_still_settles() -> None:
    plant = Plant(meter_delay_s=2.0, lag_s=0.5, load=step_load(3000.0))
    rows, _ = close_loop(plant, 0.1, 60.0)
    assert all(abs(grid) < 60.0 for t, _, grid in rows if t > 45.0)


@pytest.mark.parametrize('tick', [0.1, 1.0])
def test_no_windup_at_the_battery_limit(tick: float) -> None:
    def load(t: float) -> float:
        return 9000.0 if 10.0 <= t < 70.0 else 1000.0

    plant = Plant(meter_delay_s=0.5, lag_s=0.5, load=load)
    rows, mode = close_loop(plant, tick, 90.0, limit=5000.0)
    assert all(abs(power + 5000.0) < 50.0 for t, power, _ in rows if 20.0 < t < 70.0)
    assert all(abs(power + 1000.0) < 60.0 for t, power, _ in rows if t > 76.0)
    assert max(power for t, power, _ in rows if t > 70.0) < -950.0
    assert abs(mode.trim) < 20.0


@pytest.mark.parametrize('tick', [0.1, 1.0])
def test_follows_a_ramp(tick: float) -> None:
    plant = Plant(meter_delay_s=0.3, lag_s=0.3, load=lambda t: 50.0 * t)
    plain, _ = close_loop(plant, tick, 60.0)
    plant = Plant(meter_delay_s=0.3, lag_s=0.3, load=lambda t: 50.0 * t)
    led, _ = close_loop(plant, tick, 60.0, SelfConsumptionParams(kd=1.0))
    error = [abs(grid) for t, _, grid in plain if t > 20.0]
    with_lead = [abs(grid) for t, _, grid in led if t > 20.0]
    assert max(error) < 50.0 * 5.0
    assert sum(with_lead) < sum(error)


@pytest.mark.parametrize('target', [-500.0, 0.0, 30.0])
def test_target_bias(target: float) -> None:
    plant = Plant(load=step_load(1000.0))
    rows, _ = close_loop(plant, 0.1, 30.0, SelfConsumptionParams(target_grid_power=target))
    assert abs(rows[-1][2] - target) <= 10.0


@given(loads=st.lists(st.floats(-4000.0, 4000.0), min_size=2, max_size=6),
       meter_delay=st.floats(0.1, 1.0), lag=st.floats(0.2, 1.0), battery_delay=st.floats(0.0, 1.0),
       tick=st.sampled_from([0.2, 1.0]))
@settings(max_examples=25)
def test_random_steps_settle(loads: list[float], meter_delay: float, lag: float,
                             battery_delay: float, tick: float) -> None:
    hold = 10.0
    plant = Plant(meter_delay_s=meter_delay, lag_s=lag, battery_delay_s=battery_delay, dt=0.05,
                  load=lambda t: loads[min(int(t / hold), len(loads) - 1)])
    rows, _ = close_loop(plant, tick, hold * len(loads))
    bottom, top = min([0.0, *loads]), max([0.0, *loads])
    for t, power, grid in rows:
        assert -top - 250.0 < power < -bottom + 250.0  # never beyond what any load needed
        if t % hold > 9.0:
            assert abs(grid) < 0.02 * (top - bottom) + 15.0


def readings(now: float = 100.0, sequence: int = 1, grid: float = 500.0, power: float = 0.0,
             soc: float = 0.5) -> tuple[MeterReading, BatteryReading]:
    return (MeterReading(time=now, sequence=sequence, quality=Quality.OK, active_power=grid),
            BatteryReading(time=now, newest=now, quality=Quality.OK, power=power, soc=soc))


def test_one_step_per_fresh_sample() -> None:
    mode = SelfConsumption(SelfConsumptionParams(kp=1000.0))
    meter, battery = readings()
    first = mode.step(meter, battery, None, 100.0)
    assert first is not None and first.preferred_power == pytest.approx(-500.0)
    assert mode.step(meter, battery, first.preferred_power, 100.1) is None
    repeated = MeterReading(time=100.2, sequence=1, quality=Quality.OK, active_power=900.0)
    assert mode.step(repeated, battery, -500.0, 100.2) is None


def test_bumpless_start() -> None:
    """Taking over a battery that already balances changes nothing."""
    mode = SelfConsumption(SelfConsumptionParams())
    meter, battery = readings(grid=5.0, power=-1500.0)
    proposal = mode.step(meter, battery, -1500.0, 100.0)
    assert proposal is not None and proposal.preferred_power == pytest.approx(-1500.0)


def changed(reading: MeterReading | BatteryReading, **values: object):
    for name, value in values.items():
        setattr(reading, name, value)
    return reading


@pytest.mark.parametrize('spoil, said', [
    (lambda m, b: (changed(m, time=96.8), b), 'meter grid stale for 3.2 s'),
    (lambda m, b: (changed(m, time=98.5, quality=Quality.STALE), b), 'meter grid stale for 1.5 s'),
    (lambda m, b: (changed(m, quality=Quality.INVALID), b), 'meter grid values are invalid'),
    (lambda m, b: (changed(m, active_power=nan), b), 'meter grid does not measure active power'),
    (lambda m, b: (changed(m, time=nan), b), 'meter grid has not been read'),
    (lambda m, b: (changed(m, time=105.0), b), 'meter grid stamp is 5.0 s in the future'),
    (lambda m, b: (None, b), 'meter grid has not been read'),
    (lambda m, b: (m, changed(b, power=nan)), 'battery power is unknown'),
    (lambda m, b: (m, changed(b, quality=Quality.INVALID)), 'battery power is unknown'),
])
def test_bad_input_is_zero_and_says_so(spoil, said: str) -> None:
    mode = SelfConsumption(SelfConsumptionParams(), battery='b', meter='grid')
    meter, battery = readings(now=99.9)
    assert mode.step(meter, battery, 0.0, 99.9).preferred_power < 0.0
    for _ in range(2):  # said on every tick, not only once
        meter, battery = spoil(*readings(sequence=2))
        proposal = mode.step(meter, battery, -200.0, 100.0)
        assert proposal is not None
        assert (proposal.preferred_power, proposal.reason) == (0.0, said)
        assert mode.problem == said
    meter, battery = readings(now=101.0, sequence=3, grid=700.0)
    assert mode.step(meter, battery, 0.0, 101.0).preferred_power < 0.0  # comes back by itself
    assert mode.problem == ''


def test_soc_reserve_with_hysteresis() -> None:
    mode = SelfConsumption(SelfConsumptionParams(soc_reserve=0.2, soc_hysteresis=0.02, kp=1000.0))
    table = [(0.25, -500.0), (0.20, 0.0), (0.21, 0.0), (0.22, -500.0), (nan, 0.0)]
    for number, (soc, expected) in enumerate(table, start=1):
        now = 100.0 + 10.0 * number
        meter, battery = readings(now, number, grid=500.0, soc=soc)
        mode.reset()
        proposal = mode.step(meter, battery, 0.0, now)
        assert proposal is not None and proposal.preferred_power == pytest.approx(expected)
        assert ('reserve 20%' in proposal.reason) is (expected == 0.0)
    meter, battery = readings(200.0, 50, grid=-800.0, soc=0.1)
    assert mode.step(meter, battery, 0.0, 200.0).preferred_power > 0.0  # charging stays allowed


@given(st.lists(st.tuples(st.floats(), st.floats(), st.floats(), st.floats(-1.0, 6.0)),
                max_size=15))
@settings(max_examples=60)
def test_no_input_makes_it_propose_nan(samples: list[tuple[float, float, float, float]]) -> None:
    mode = SelfConsumption(SelfConsumptionParams(soc_reserve=0.1, kd=1.0))
    now = 0.0
    for number, (grid, power, granted, dt) in enumerate(samples, start=1):
        now += dt
        meter, battery = readings(now, number, grid, power)
        proposal = mode.step(meter, battery, granted, now)
        if proposal is not None:
            assert isfinite(proposal.preferred_power)
            if not (isfinite(grid) and isfinite(power)):
                assert proposal.preferred_power == 0.0


def test_load_estimate_holds_while_the_battery_explains_the_meter() -> None:
    rest = LoadEstimator(delay_s=1.0, settle_s=4.0)
    rest.observe(0.0, 0.0, 0.0)
    assert rest.update(1000.0, 0.0, 0.0, 0.1) == 1000.0
    rest.order(-1000.0, 0.0)
    rng = random.Random(1)
    powers = [0.0]
    for k in range(1, 60):  # the meter shows the battery as it was at some time in the last 0.9 s
        now = 0.1 * k
        powers.append(max(powers[-1] - 60.0, -1000.0))
        rest.observe(powers[-1], now, now)
        seen = 1000.0 + powers[max(k - rng.randrange(10), 0)]
        assert rest.update(seen, now, now, 0.1) == pytest.approx(1000.0)
    assert rest.spread == 0.0  # at rest again: the next sample counts fully
    assert rest.update(300.0, 6.0, 6.0, 0.1) == pytest.approx(1300.0)
