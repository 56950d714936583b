"""Proposals and their book."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_control.proposals import Proposal, ProposalBook

GOOD = Proposal('mode', battery='b', priority=10, preferred_power=100.0, lease=2.0, time=10.0)


@pytest.mark.parametrize('bad, said', [
    (replace(GOOD, source=''), 'source is empty'),
    (replace(GOOD, priority=256), 'priority is 256, allowed 0 to 255'),
    (replace(GOOD, priority=-1), 'priority is -1, allowed 0 to 255'),
    (replace(GOOD, lease=0.0), 'lease is 0.0 s, must be above 0'),
    (replace(GOOD, lease=nan), 'lease is nan s, must be above 0'),
    (replace(GOOD, lease=61.0), 'lease 61 s is longer than 60 s'),
    (replace(GOOD, min_power=2.0, max_power=1.0), 'min_power 2 W is above max_power 1 W'),
    (replace(GOOD, min_power=inf), 'a bound is infinite on the wrong side'),
    (replace(GOOD, preferred_power=-inf), 'preferred power is infinite'),
    (replace(GOOD, time=12.0), 'stamp is 2.0 s in the future'),
    (replace(GOOD, time=7.5), 'already expired on arrival: 2.5 s old'),
])
def test_refused_with_reason(bad: Proposal, said: str) -> None:
    book = ProposalBook()
    assert book.put(bad, 10.0) == said
    assert len(book) == 0


def test_one_live_proposal_per_source_and_leases() -> None:
    book = ProposalBook()
    assert book.put(GOOD, 10.0) == ''
    assert book.put(replace(GOOD, preferred_power=200.0, time=10.5), 10.5) == ''
    assert [p.preferred_power for p in book.live(10.6)] == [200.0]
    assert book.put(replace(GOOD, time=10.2), 10.6) == 'older than the last proposal of this source'
    assert book.live(12.4) != []
    assert [p.source for p in book.expire(12.5)] == ['mode']
    assert book.live(12.5) == []


def test_lease_counts_from_when_it_was_made() -> None:
    book = ProposalBook()
    assert book.put(replace(GOOD, time=9.0), 10.0) == ''
    assert book.live(10.9) != [] and book.live(11.0) == []
    assert book.put(replace(GOOD, time=nan), 20.0) == ''  # no stamp: from arrival
    assert book.live(21.9) != [] and book.live(22.0) == []


def test_withdraw_and_filter_and_order() -> None:
    book = ProposalBook()
    for source, priority, power in (('low', 1, 5.0), ('b_wish', 9, 5.0), ('a_wish', 9, 5.0),
                                    ('z_bound', 9, nan), ('other', 200, 5.0)):
        battery = 'c' if source == 'other' else 'b'
        assert book.put(Proposal(source, battery, priority, preferred_power=power), 0.0) == ''
    assert [p.source for p in book.live(0.5, 'b')] == ['z_bound', 'a_wish', 'b_wish', 'low']
    assert book.withdraw('a_wish') and not book.withdraw('a_wish')
    assert [p.source for p in book.live(0.5)] == ['other', 'z_bound', 'b_wish', 'low']


def test_overlapping_batteries_are_refused() -> None:
    members = {'all': frozenset({'u1', 'u2'}), 'house': frozenset({'u2'}), 'garage': frozenset({'u3'})}
    book = ProposalBook(members=members)
    assert book.put(Proposal('a', 'all', time=0.0), 0.0) == ''
    assert book.put(Proposal('b', 'house', time=0.0), 0.1) == (
        'house shares u2 with all, for which a has a live proposal')
    assert book.put(Proposal('c', 'garage', time=0.0), 0.1) == ''
    assert book.put(Proposal('d', 'all', time=0.1), 0.1) == ''  # the same battery may be shared
    assert book.put(Proposal('b', 'house', time=1.5), 1.5) == ''  # leases of a and d are over


@given(st.lists(st.tuples(
    st.sampled_from('abc'), st.integers(-5, 300), st.floats(), st.floats(), st.floats(),
    st.floats(), st.floats(-100, 100)), max_size=20))
@settings(max_examples=100)
def test_only_sound_proposals_live(entries: list[tuple]) -> None:
    book = ProposalBook()
    now = 0.0
    for source, priority, low, high, preferred, lease, time in entries:
        now += 0.3
        book.put(Proposal(source, 'b', priority, low, high, preferred, nan, lease, '', time), now)
        live = book.live(now)
        assert len({p.source for p in live}) == len(live)
        for p in live:
            assert p.problem() == '' and p.low <= p.high
            assert now < p.expires <= now + 60.0
