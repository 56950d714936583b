"""Shares and books of private totals: what is hidden, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_virtual.private_book import Book, BookError, Terms
from bess_virtual.private_sum import (
    MAX_HOUSEHOLDS,
    MAX_POWER,
    ShareError,
    add,
    pack,
    runs,
    split,
    to_powers,
    to_units,
    unpack,
)

power = st.floats(-5000.0, 5000.0).map(lambda x: round(x, 3))
days = st.integers(1, 8).flatmap(lambda slots: st.lists(st.lists(power, min_size=slots, max_size=slots),
                                                        min_size=2, max_size=6))


@given(days)
def test_the_two_sums_add_up_to_the_sum_also_of_discharge(vectors: list[list[float]]) -> None:
    shares = [split(to_units(v, 5000.0)) for v in vectors]
    total = add([add([a for a, _ in shares]), add([b for _, b in shares])])
    expected = [sum(round(v[k] * 1000) for v in vectors) / 1000 for k in range(len(vectors[0]))]
    assert to_powers(total, len(vectors), 5000.0) == expected


@given(days, st.randoms(use_true_random=False))
def test_two_inputs_of_equal_sum_give_the_collector_the_same_view(vectors: list[list[float]], rng: Any) -> None:
    """For each randomness of one input there is one of the other with the same view, and it is as likely.

    The collector sees all first shares and the sum of the second ones; r' = r + (v' - v) keeps both."""
    units = [to_units(v, 5000.0) for v in vectors]
    moved = [u.copy() for u in units]
    shift = np.array([rng.randrange(2**64) for _ in units[0]], dtype=np.uint64)
    moved[0], moved[-1] = moved[0] + shift, moved[-1] - shift  # other inputs, the same sum
    random = [rng.randbytes(8 * len(units[0])) for _ in units]

    def view(inputs: list[Any], randomness: list[bytes]) -> tuple[list[list[int]], list[int]]:
        halves = [split(u, lambda _, r=r: r) for u, r in zip(inputs, randomness, strict=True)]
        return [a.tolist() for a, _ in halves], add([b for _, b in halves]).tolist()

    other = [(np.frombuffer(r, '<u8') + (m - u)).astype('<u8').tobytes()
             for r, u, m in zip(random, units, moved, strict=True)]
    assert view(units, random) == view(moved, other)


@given(st.lists(power, min_size=1, max_size=8), st.lists(power, min_size=1, max_size=8), st.binary(min_size=64,
                                                                                                   max_size=64))
def test_the_helpers_share_does_not_depend_on_the_value(one: list[float], other: list[float], random: bytes) -> None:
    slots = min(len(one), len(other))
    a, b = (split(to_units(v[:slots], 5000.0), lambda n: random[:n])[1] for v in (one, other))
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('value', [-5000.0, 0.0, 4999.999])
def test_each_share_alone_is_uniform(which: int, value: float) -> None:
    """Chi-squared over the top and the bottom byte of 51,200 shares of the same value: 255 degrees of freedom;
    above 415 in one of 10^9 runs."""
    numbers = np.concatenate([split(to_units([value] * 2048, 5000.0))[which] for _ in range(25)])
    for byte in (0, 7):
        counts = np.bincount((numbers >> np.uint64(8 * byte)).astype(np.uint8), minlength=256)
        expected = len(numbers) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 415.0


def test_shares_are_never_made_of_the_same_randomness() -> None:
    units = to_units([1.0] * 96, 5000.0)
    assert len({pack(split(units)[1]) for _ in range(100)}) == 100


def test_the_largest_sum_of_honest_households_does_not_wrap() -> None:
    for sign in (1.0, -1.0):
        unit = to_units([sign * MAX_POWER], MAX_POWER)
        total = add([unit] * MAX_HOUSEHOLDS)
        assert to_powers(total, MAX_HOUSEHOLDS, MAX_POWER) == [sign * MAX_POWER * MAX_HOUSEHOLDS]


def test_what_no_honest_households_can_sum_up_to_is_refused() -> None:
    honest = [split(to_units([5000.0, -5000.0], 5000.0)) for _ in range(3)]
    total = add([s for pair in honest for s in pair])
    assert to_powers(total, 3, 5000.0) == [15000.0, -15000.0]
    for slot, extra in ((0, 1), (1, 2**64 - 1), (0, 2**63)):
        bad = total.copy()
        bad[slot:slot + 1] += np.uint64(extra)
        with pytest.raises(ShareError, match=f'slot {slot}: the sum is beyond'):
            to_powers(bad, 3, 5000.0)


@pytest.mark.parametrize('powers', [[], [float('nan')], [float('inf')], [5000.1], [-5001.0], [0.0] * 2881])
def test_values_that_cannot_be_are_refused(powers: list[float]) -> None:
    with pytest.raises(ShareError):
        to_units(powers, 5000.0)


@pytest.mark.parametrize('text', [None, 3, 'not base64!', '', 'AAAA', 'A' * 10**6, pack(np.zeros(5, np.uint64))])
def test_shares_of_the_wrong_form_are_refused(text: Any) -> None:
    with pytest.raises(ShareError):
        unpack(text, 4)


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=30))
def test_runs_are_the_same_powers(powers: list[float]) -> None:
    out = runs(powers)
    assert [p for a, b, p in out for _ in range(b - a)] == powers
    assert all(x[2] != y[2] for x, y in zip(out, out[1:], strict=False))


# -- the book ----------------------------------------------------------------------------------------

TERMS = Terms(slots=4, slot=900.0, offset=0.0, close_before=600.0, minimum=3, max_power=5000.0)
EPOCH = 36_000_000
BEFORE, AFTER = EPOCH - 700.0, EPOCH - 600.0
HOMES = ['anna', 'ben', 'cleo', 'dan']


def name(k: int) -> str:
    return f'{k:032x}'


def body(k: int, value: int = 7, **more: Any) -> dict[str, Any]:
    return {'epoch': EPOCH, 'submission': name(k), 'share': pack(np.full(4, value, np.uint64)), **more}


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / 'book', TERMS, HOMES)


def full(book: Book) -> dict[str, str]:
    for k, home in enumerate(HOMES):
        book.submit(home, body(k, k + 1), BEFORE)
    return {home: name(k) for k, home in enumerate(HOMES)}


def test_one_sum_over_one_set_and_never_over_another_also_after_a_restart(book: Book, tmp_path: Path) -> None:
    members = full(book)
    with pytest.raises(BookError, match='not closed'):
        book.total(EPOCH, members, BEFORE)
    total = book.total(EPOCH, members, AFTER)
    assert unpack(total, 4).tolist() == [10] * 4
    assert book.total(EPOCH, members, AFTER) == total  # a lost answer is told again
    fewer = {h: i for h, i in members.items() if h != 'dan'}
    again = Book(tmp_path / 'book', TERMS, HOMES)
    for one in (book, again):
        with pytest.raises(BookError, match='never added up twice'):
            one.total(EPOCH, fewer, AFTER)
        assert one.total(EPOCH, members, AFTER) == total
        assert one.epochs[EPOCH].shares == {}  # single shares are gone, from the disk, too
    stored = (tmp_path / 'book' / f'{EPOCH}.json')
    assert pack(np.full(4, 1, np.uint64)) not in stored.read_text()
    assert stored.stat().st_mode & 0o777 == 0o600


def test_too_few_or_unknown_households_give_no_sum(book: Book) -> None:
    members = full(book)
    with pytest.raises(BookError, match='fewer than 3'):
        book.total(EPOCH, {h: members[h] for h in HOMES[:2]}, AFTER)
    with pytest.raises(BookError, match='not here'):
        book.total(EPOCH, {**members, 'eve': name(9)}, AFTER)
    with pytest.raises(BookError, match='not here'):
        book.total(EPOCH, {**members, 'anna': name(9)}, AFTER)
    for rubbish in (None, 3, ['anna'], {'anna': 3}):
        with pytest.raises(BookError):
            book.total(EPOCH, rubbish, AFTER)
    assert book.total(EPOCH, {h: members[h] for h in HOMES[:3]}, AFTER)  # dan dropped out between the servers


def test_replays_late_ones_duplicates_and_withdrawals(book: Book) -> None:
    assert book.submit('anna', body(0), BEFORE) == 'taken'
    assert book.submit('anna', body(0), BEFORE) == 'known already'
    with pytest.raises(BookError, match='another share'):
        book.submit('anna', body(0, 8), BEFORE)
    with pytest.raises(BookError, match='another household'):
        book.submit('ben', body(0), BEFORE)
    assert book.submit('anna', body(1), BEFORE) == 'replaces the former one'
    with pytest.raises(BookError, match='withdrawn'):
        book.submit('anna', body(0), BEFORE)  # a replay of the former one
    book.withdraw('anna', body(1), BEFORE)
    with pytest.raises(BookError, match='withdrawn'):
        book.submit('anna', body(1), BEFORE)
    book.withdraw('ben', body(5), BEFORE)  # overtakes its submission
    with pytest.raises(BookError, match='withdrawn'):
        book.submit('ben', body(5), BEFORE)
    assert book.submit('anna', body(2), BEFORE) == 'taken'
    for late in (book.submit, book.withdraw):
        with pytest.raises(BookError, match='too late'):
            late('anna', body(2), AFTER)
    assert book.roster(EPOCH, AFTER) == {'anna': name(2)}


@pytest.mark.parametrize('change', [
    {'epoch': EPOCH + 1}, {'epoch': str(EPOCH)}, {'epoch': True}, {'epoch': -3600}, {'epoch': 10**30}, {'epoch': None},
    {'epoch': EPOCH + 3600 * 20}, {'submission': 'x'}, {'submission': None}, {'submission': 'A' * 32},
    {'share': pack(np.zeros(3, np.uint64))}, {'share': None}, {'share': '*'}])
def test_submissions_of_the_wrong_form_change_nothing(book: Book, change: dict[str, Any]) -> None:
    with pytest.raises(BookError):
        book.submit('anna', body(0, **change), BEFORE)
    with pytest.raises(BookError):
        book.submit('eve', body(0), BEFORE)
    assert book.epochs == {}


def test_a_damaged_file_is_not_taken_for_an_empty_book(book: Book, tmp_path: Path) -> None:
    full(book)
    path = tmp_path / 'book' / f'{EPOCH}.json'
    text = path.read_text()
    for cut in range(0, len(text) - 1, 37):
        path.write_text(text[:cut])
        with pytest.raises((ValueError, KeyError)):
            Book(tmp_path / 'book', TERMS, HOMES)


def test_other_terms_do_not_mix(book: Book, tmp_path: Path) -> None:
    full(book)
    other = Terms(**{**json.loads(json.dumps(vars(TERMS))), 'minimum': 2})
    assert Book(tmp_path / 'book', other, HOMES).epochs == {}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(HOMES), st.integers(0, 5), st.booleans()), max_size=20))
def test_any_order_of_submissions_and_withdrawals_leaves_what_was_said_last(
        tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]]) -> None:
    book = Book(tmp_path_factory.mktemp('book'), TERMS, HOMES)
    now: dict[str, str] = {}
    dead: set[str] = set()
    for home, k, submit in steps:
        i = name(10 * HOMES.index(home) + k)
        if submit:
            try:
                book.submit(home, {**body(0), 'submission': i}, BEFORE)
            except BookError:
                assert i in dead
                continue
            if home in now and now[home] != i:
                dead.add(now[home])
            now[home] = i
        else:
            book.withdraw(home, {**body(0), 'submission': i}, BEFORE)
            dead.add(i)
            if now.get(home) == i:
                del now[home]
    assert book.roster(EPOCH, AFTER) == now
