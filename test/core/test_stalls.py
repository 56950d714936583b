"""A watcher that stood still itself."""

from __future__ import annotations

from math import inf, nan

from hypothesis import given
from hypothesis import strategies as st

from bess_core.stalls import OwnStalls, excused

TIMES = st.floats(0.0, 1e6)


def test_looks_in_time_and_small_delays_are_no_stall() -> None:
    stalls = OwnStalls(0.1, 1.5)
    assert [stalls.late(now) for now in (1000.0, 1000.1, 1000.25, 1000.64)] == [0.0] * 4
    assert abs(stalls.late(1001.74) - 1.0) < 1e-9
    assert stalls.late(1001.84) == 0.0, 'it counts once'


@given(st.lists(TIMES, min_size=1), st.floats(0.01, 10.0), st.floats(0.0, 100.0))
def test_silence_is_counted_without_the_stall(heard: list[float], timeout: float, stall: float) -> None:
    """Who was heard up to the last look is as silent after the stall as he was then; nobody is heard in the future."""
    before = max(heard)
    now = before + stall
    after = excused({str(i): at for i, at in enumerate(heard)}, stall, now)
    for i, at in enumerate(heard):
        assert abs((now - after[str(i)]) - (before - at)) <= 1e-9 * max(1.0, now)
        assert after[str(i)] <= now


def test_who_was_never_heard_stays_so_and_a_grace_period_is_kept() -> None:
    assert excused({'never': -inf, 'starts': 30.0}, 2.0, 10.0) == {'never': -inf, 'starts': 30.0}
    assert OwnStalls(0.1, 1.0).late(nan) == 0.0
