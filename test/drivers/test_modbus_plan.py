"""The read planner against brute force: never over a hole, never too long, never one read too many."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.modbus.plan import Span, plan

SPANS = st.lists(st.builds(Span, st.integers(0, 60), st.integers(1, 6)), min_size=1, max_size=7, unique=True)
HOLES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)).map(lambda h: (h[0], h[0] + h[1])), max_size=3)


def allowed(read: Span, wanted: list[Span], max_gap: int, holes: list[tuple[int, int]]) -> bool:
    """By the letter of the rules: each run of unwanted registers in the read is short and touches no hole."""
    touched = {r for s in wanted for r in range(s.start, s.end)}
    run = 0
    for register in range(read.start, read.end):
        if register in touched:
            run = 0
            continue
        run += 1
        if run > max_gap or any(first <= register <= last for first, last in holes):
            return False
    return True


def fewest(wanted: list[Span], most: int, max_gap: int, holes: list[tuple[int, int]]) -> int:
    """The smallest number of allowed reads that hold all spans, by trying all."""
    starts = sorted({s.start for s in wanted})
    ends = sorted({s.end for s in wanted})
    reads = [Span(a, b - a) for a in starts for b in ends
             if 0 < b - a <= most and allowed(Span(a, b - a), wanted, max_gap, holes)]
    holds = {r: frozenset(s for s in wanted if s.start >= r.start and s.end <= r.end) for r in reads}
    sets = [h for h in set(holds.values()) if h and not any(h < other for other in holds.values())]
    for n in range(1, len(wanted) + 1):
        if any(frozenset().union(*chosen) == frozenset(wanted) for chosen in combinations(sets, min(n, len(sets)))):
            return n
    raise AssertionError('no plan at all')


@given(SPANS, st.integers(6, 25), st.integers(0, 8), HOLES)
@settings(max_examples=300)
def test_fewest_reads_and_none_that_is_not_allowed(wanted: list[Span], most: int, max_gap: int,
                                                   holes: list[tuple[int, int]]) -> None:
    reads = plan(wanted, most, max_gap, holes)
    for span in wanted:
        assert any(r.start <= span.start and span.end <= r.end for r in reads), span
    for read in reads:
        assert 1 <= read.count <= most
        assert allowed(read, wanted, max_gap, holes), read
    assert reads == sorted(reads)
    assert len(reads) == fewest(wanted, most, max_gap, holes)


def test_a_hole_splits_and_a_gap_of_the_allowed_length_does_not() -> None:
    a, b = Span(0, 2), Span(10, 2)
    assert plan([a, b], 125, max_gap=8) == [Span(0, 12)]
    assert plan([a, b], 125, max_gap=7) == [a, b]
    assert plan([a, b], 125, max_gap=8, holes=[(5, 5)]) == [a, b]
    assert plan([a, b], 11, max_gap=8) == [a, b]


def test_a_value_is_never_torn() -> None:
    assert plan([Span(0, 2), Span(2, 4)], 4) == [Span(0, 2), Span(2, 4)]
    with pytest.raises(ValueError, match='4 registers at 2 do not fit one read of 3'):
        plan([Span(2, 4)], 3)


def test_nothing_wanted_is_nothing_read() -> None:
    assert plan([], 125) == []
