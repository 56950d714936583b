"""Which powers count as a violated limit."""

from __future__ import annotations

from math import nan

import pytest

from bess_core.values import BatteryReading
from bess_sim.limit_watch import VIOLATION_TICKS, LimitWatch


def reading(power: float) -> BatteryReading:
    return BatteryReading(power=power, max_charge_power=1000.0, max_discharge_power=2000.0)


@pytest.mark.parametrize(('power', 'violated'), [
    (1000.0, 0), (1060.0, 0), (1100.0, 1), (-2000.0, 0), (-2080.0, 0), (-2200.0, 1), (nan, 0)])
def test_beyond_limit_and_tolerance_for_longer_than_an_answer_takes(power: float, violated: int) -> None:
    watch = LimitWatch()
    for _ in range(VIOLATION_TICKS):
        watch.look('a', reading(power))
    assert watch.violations == 0
    for _ in range(5):
        watch.look('a', reading(power))
    assert watch.violations == violated, 'counted once while it lasts'


def test_each_time_counts_and_batteries_do_not_mix() -> None:
    watch = LimitWatch()
    for _ in range(2):
        for power in (*[3000.0] * (VIOLATION_TICKS + 1), 0.0):
            watch.look('a', reading(power))
            watch.look('b', reading(0.0))
    assert watch.violations == 2
