"""Leases: at most one source commands, never longer than promised, and every refusal says why."""

from __future__ import annotations

from math import inf, isfinite, nan

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bess_core.leases import LeaseHolder, Numbers

offers = st.lists(st.tuples(
    st.sampled_from(['a', 'b', 'c']), st.floats(-1e6, 1e6), st.integers(-1000, 100_000).map(lambda ms: ms / 1e3),
    st.integers(0, 3), st.integers(0, 5), st.floats(0.0, 20.0), st.floats(0.0, 30.0)), max_size=30)


@settings(max_examples=200)
@given(offers)
def test_whatever_comes_the_rules_hold(sequence: list[tuple[str, float, float, int, int, float, float]]) -> None:
    holder = LeaseHolder(max_lease=60.0)
    now, top_term = 0.0, 0
    for source, power, lease, term, number, wait, age in sequence:
        now += wait
        before = holder.current(now)
        given_at = now - age
        reason = holder.offer(power, lease, source, now, given=given_at, term=term, sequence=number)
        after = holder.current(now)
        if reason:
            assert after == before, 'a refused order changes nothing'
            continue
        top_term = max(top_term, term)
        assert after is not None
        assert (after.source, after.power, after.term) == (source, power, term)
        assert term == top_term, 'a lower term than one seen never commands'
        assert after.expires <= min(given_at + lease, now + 60.0) + 1e-9, 'never longer than promised'
        assert after.expires > now
        assert 0.0 < holder.remaining(now) <= 60.0 + 1e-9
        if before is not None and before.source != source:
            assert term > before.term, 'another source takes over with a higher term only'
        assert holder.current(after.expires) is None, 'over is over'
        assert holder.remaining(after.expires) == 0.0
        holder._order = after  # the look into the future above ended it


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True),
       st.floats(allow_nan=True, allow_infinity=True))
def test_no_value_that_is_not_a_number_is_accepted(power: float, lease: float, reactive: float) -> None:
    assume(not 0.0 < lease < 1e-6)  # too short to be told from none
    holder = LeaseHolder()
    reason = holder.offer(power, lease, 'a', 10.0, reactive_power=reactive)
    assert (reason == '') == (isfinite(power) and isfinite(lease) and lease > 0.0 and abs(reactive) != inf)
    assert (holder.current(10.0) is None) == (reason != '')


@pytest.mark.parametrize(('change', 'reason'), [
    ({'power': nan}, 'power is nan, not a finite number'),
    ({'power': nan, 'is_current': True}, 'current is nan, not a finite number'),
    ({'reactive_power': -inf}, 'reactive power is -inf, not a finite number'),
    ({'lease': 0.0}, 'lease is 0.0 s, must be above 0'),
    ({'lease': nan}, 'lease is nan s, must be above 0'),
    ({'given': 4.0, 'lease': 2.0}, 'arrived 6.0 s old, after its lease of 2 s'),
    ({'source': 'b'}, 'a holds the lease for another 5.0 s'),
    ({'sequence': 7}, 'sequence 7 is not above the last one (7)'),
    ({'sequence': 6}, 'sequence 6 is not above the last one (7)'),
    ({'term': 1}, 'term 1 is below the present term 2'),
])  # fmt: skip
def test_reasons(change: dict[str, float], reason: str) -> None:
    holder = LeaseHolder()
    assert holder.offer(1.0, 5.0, 'a', 10.0, term=2, sequence=7) == ''
    offer = {'power': 1.0, 'lease': 5.0, 'source': 'a', 'term': 2, 'sequence': 8, **change}
    assert holder.offer(now=10.0, **offer) == reason  # type: ignore[arg-type]
    assert holder.current(10.0).sequence == 7  # type: ignore[union-attr]


def test_a_new_leader_takes_over_at_once_and_the_old_one_is_out() -> None:
    holder = LeaseHolder()
    assert holder.offer(1.0, 50.0, 'old', 0.0, term=1) == ''
    assert holder.offer(2.0, 5.0, 'new', 1.0, term=2) == ''
    assert 'below the present term' in holder.offer(3.0, 5.0, 'old', 2.0, term=1)
    assert 'below the present term' in holder.offer(3.0, 5.0, 'old', 100.0, term=1), 'also after the lease'


def test_a_source_that_starts_anew_may_count_from_one_after_its_lease() -> None:
    holder = LeaseHolder()
    assert holder.offer(1.0, 2.0, 'a', 0.0, sequence=500) == ''
    assert holder.offer(1.0, 2.0, 'a', 1.0, sequence=1) != ''
    assert holder.offer(1.0, 2.0, 'a', 2.0, sequence=1) == ''
    holder.release()
    assert holder.current(2.0) is None
    assert holder.offer(1.0, 2.0, 'b', 2.0) == ''


def test_a_stamp_of_the_future_gives_no_longer_lease() -> None:
    holder = LeaseHolder()
    assert holder.offer(1.0, 2.0, 'a', 10.0, given=1000.0) == ''
    assert holder.current(11.9) is not None
    assert holder.current(12.0) is None


@given(st.floats(0.0, 1e8), st.floats(0.0, 60.0), st.integers(1, 1000))
def test_a_sender_that_starts_anew_is_heard_at_once_and_its_former_life_no_more(
        start: float, pause: float, orders: int) -> None:
    assume(pause * 1e6 > orders + 1)  # nobody sends a million orders per s
    holder, former, fresh = LeaseHolder(), Numbers(start), Numbers(start + pause)
    for _ in range(orders):
        number = former.next()
        assert holder.offer(1.0, 60.0, 'partition', 0.0, sequence=number) == ''
    assert holder.offer(2.0, 60.0, 'partition', 0.0, sequence=fresh.next()) == ''
    assert 'is not above the last one' in holder.offer(1.0, 60.0, 'partition', 0.0, sequence=former.next())
    order = holder.current(0.0)
    assert order is not None and order.power == 2.0


@given(st.lists(st.tuples(st.sampled_from('ab'), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3),
                          st.integers(1, 4)), max_size=30))
def test_numbers_rise_also_when_another_had_the_lease_meanwhile(offers: list[tuple[str, int, int, int, int]]) -> None:
    """What was accepted last counts for a source until a lease of it ends."""
    holder, last, now, held = LeaseHolder(), dict[str, tuple[int, int]](), 0, ('', 0)
    for source, term, number, wait, lease in offers:
        now += wait
        if held[0] and now >= held[1]:
            last.pop(held[0], None)
            held = ('', 0)
        refused = holder.offer(1.0, float(lease), source, float(now), term=term, sequence=number)
        repeated = bool(number) and (term, number) <= last.get(source, (-1, -1))
        assert ('not above the last one' in refused) <= repeated
        assert not (repeated and refused == '')
        if not refused:
            last[source], held = (term, number), (source, now + lease)
