"""How asking ends: zero is said for a while, then nothing."""

from __future__ import annotations

from math import nan

from bess_virtual.demand import RELEASE_TICKS, Demand, Release, apart

ASKED = Demand(1000.0, nan, 'manager', 2.0, 3)


def test_what_is_wanted_is_passed_on() -> None:
    assert Release().follow(None, ASKED, 'me') is ASKED


def test_nothing_asked_from_the_start_says_nothing() -> None:
    assert Release().follow(None, None, 'me') is None


def test_zero_is_said_for_some_ticks_after_the_last_request() -> None:
    release = Release()
    said = [release.follow(ASKED, None, 'me')]
    said += [release.follow(None, None, 'me') for _ in range(RELEASE_TICKS)]
    assert [d.power for d in said if d] == [0.0] * RELEASE_TICKS
    assert [d.source for d in said if d] == ['manager'] + ['me'] * (RELEASE_TICKS - 1)
    assert said[-1] is None


def test_a_new_request_ends_the_release() -> None:
    release = Release()
    release.follow(ASKED, None, 'me')
    assert release.follow(None, ASKED, 'me') is ASKED
    zero = release.follow(ASKED, None, 'me')
    assert zero is not None
    assert zero.power == 0.0


def test_orders_of_one_owner_given_at_different_moments_are_apart() -> None:
    def demand(source: str, given: float) -> Demand:
        return Demand(1.0, nan, source, 2.0, given=given)

    assert not apart([])
    assert not apart([demand('a', 5.0), demand('a', 5.0), demand('a', 5.0 + 1e-7)]), 'stamps are rounded to ns'
    assert apart([demand('a', 5.0), demand('a', 5.1)]) and apart([demand('a', 5.1), demand('a', 5.0)])
    assert not apart([demand('a', 5.0), demand('b', 5.1)]), 'two owners order when they like'
    assert not apart([demand('a', 5.0), ASKED, demand('manager', nan)]), 'a schedule, or a zero of its own'
