"""Site time: monotonic for decisions, absolute for labels; a stepped wall clock must not age fresh data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_core.clock import STEP_MEMORY_S, Clock, SimClock, join_stamp, split_stamp
from bess_core.values import Quality, quality_of


class Stepped(Clock):
    """Time that the test moves, with a wall clock that it can step."""

    def __init__(self, offset: float = 1.8e9) -> None:
        self.at, self.offset = 100.0, offset
        super().__init__()

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.at + self.offset


def test_real_time_does_not_jump() -> None:
    clock = Clock()
    times = [clock.now() for _ in range(100)]
    assert times == sorted(times)
    assert clock.from_wall(clock.wall()) == pytest.approx(clock.now(), abs=0.05)
    assert clock.to_wall(clock.now()) == pytest.approx(clock.wall(), abs=0.05)
    assert not clock.simulated


@given(age=st.floats(0.0, 3600.0), later=st.floats(0.0, 60.0))
def test_a_stamp_keeps_its_age(age: float, later: float) -> None:
    clock = Stepped()
    stamped = clock.to_wall(clock.at - age)
    clock.at += later
    assert clock.from_wall(stamped) == pytest.approx(100.0 - age, abs=1e-5)


@given(step=st.floats(-1e6, 1e6), age=st.floats(0.0, 1.0), gap=st.floats(0.0, 3.0))
def test_a_step_of_the_wall_clock_does_not_make_a_fresh_stamp_old(step: float, age: float, gap: float) -> None:
    clock = Stepped()
    stamped, made = clock.to_wall(clock.at), clock.at
    clock.at += age
    clock.offset += step
    clock.from_wall(clock.wall())  # somebody looks at the clock: the step is seen
    clock.at += gap
    read = clock.from_wall(stamped)
    if abs(step) > 0.21:
        assert quality_of(clock.at - read, age + gap + 0.01, 10.0) is Quality.OK
    assert read <= clock.at
    fresh = clock.to_wall(clock.at)
    assert clock.from_wall(fresh) == pytest.approx(clock.at, abs=1e-5), 'what is stamped after the step is fresh'
    assert made <= clock.at


@given(step=st.floats(0.25, 1e6), age=st.floats(0.0, 100.0), gap=st.floats(0.0, STEP_MEMORY_S - 0.1))
def test_a_step_forward_does_not_make_an_old_stamp_fresh(step: float, age: float, gap: float) -> None:
    clock = Stepped()
    before = clock.to_wall(clock.at)
    clock.at += age
    clock.offset += step
    clock.now()
    clock.to_wall(0.0)
    after, after_at = clock.to_wall(clock.at), clock.at
    clock.at += gap
    assert clock.from_wall(before) == pytest.approx(100.0, abs=1e-4)
    assert clock.from_wall(after) == pytest.approx(after_at, abs=1e-4)


def test_a_stamp_of_the_future_is_now() -> None:
    clock = Stepped()
    assert clock.from_wall(clock.wall() + 50.0) == clock.at


def test_drift_is_no_step() -> None:
    clock = Stepped()
    for _ in range(1000):
        clock.at += 0.1
        clock.offset += 0.05e-3  # 500 ppm
        assert clock.from_wall(clock.wall()) == pytest.approx(clock.at, abs=1e-6)
    assert clock._step == 0.0


def test_simulated_time_goes_on_only() -> None:
    clock = SimClock(start_wall=1.8e9)
    assert (clock.now(), clock.wall(), clock.simulated) == (0.0, 1.8e9, True)
    clock.set(5.0)
    clock.set(5.0)
    assert (clock.now(), clock.wall()) == (5.0, 1.8e9 + 5.0)
    with pytest.raises(ValueError, match=r'cannot go back from 5\.0 s to 4\.0 s'):
        clock.set(4.0)
    assert clock.from_wall(1.8e9 + 3.0) == pytest.approx(3.0)


@given(st.floats(1e-9, 4e9))
def test_stamps_round_trip_to_the_microsecond(wall: float) -> None:
    sec, nanosec = split_stamp(wall)
    assert 0 <= nanosec < 1_000_000_000
    assert join_stamp(sec, nanosec) == pytest.approx(wall, abs=1e-6)


@pytest.mark.parametrize('wall', [0.0, -1.0, float('nan'), float('-inf')])
def test_what_was_never_is_the_zero_stamp(wall: float) -> None:
    assert split_stamp(wall) == (0, 0)
