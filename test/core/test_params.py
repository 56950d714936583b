"""Parameters from one dataclass: what does not fit is named with what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan, nan
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_core.params import ParameterError, build, check, extract, merge, param, specs


@dataclass(frozen=True)
class P:
    name: str = param(doc='who')
    lease: float = param(1.0, 's', 'how long', low=0.1, high=60.0)
    count: int = param(3, low=1)
    on: bool = param(False)
    mode: str = param('a', choices=['a', 'b'])
    members: list[str] = param([])
    pair: tuple[float, float] = param((1.0, 2.0))
    many: tuple[float, ...] = param((), 'V', low=0.0, high=5.0)
    table: dict[str, Any] = param({})
    maybe: float | None = param(None, 'W', high=10.0)
    word: Literal['x', 'y'] = param('x')
    free: float = param(nan, 'W', low=0.0)


def problem(**values: Any) -> str:
    found = check(P, {'name': 'n', **values})
    assert len(found) == 1, found
    assert found[0].key in values
    return found[0].text


def test_defaults_and_conversion() -> None:
    built = build(P, {'name': 'n', 'lease': 5, 'pair': [1, 2], 'members': ('a',), 'maybe': 3})
    assert (built.lease, type(built.lease)) == (5.0, float)
    assert built.pair == (1.0, 2.0)
    assert built.members == ['a']
    assert built.maybe == 3.0
    assert isnan(built.free)
    assert build(P, {'name': 'n'}).members is not build(P, {'name': 'n'}).members, 'no default is shared'


@pytest.mark.parametrize(('values', 'text'), [
    ({'lease': 'x'}, "'x' is not a number; allowed: 0.1 to 60 s"),
    ({'lease': True}, 'True is not a number; allowed: 0.1 to 60 s'),
    ({'lease': None}, 'None is not a number; allowed: 0.1 to 60 s'),
    ({'lease': 61}, '61 is out of range; allowed: 0.1 to 60 s'),
    ({'lease': -inf}, '-inf is out of range; allowed: 0.1 to 60 s'),
    ({'lease': nan}, 'not a number; allowed: 0.1 to 60 s'),
    ({'count': 1.5}, '1.5 is not a whole number; allowed: at least 1'),
    ({'count': 0}, '0 is out of range; allowed: at least 1'),
    ({'on': 1}, '1 is not true or false; allowed: true or false'),
    ({'mode': 'c'}, "'c' is not allowed; allowed: one of 'a', 'b'"),
    ({'members': 'a'}, "'a' is not a list; allowed: a list"),
    ({'members': [1]}, '[1] is not a list; allowed: a list'),
    ({'pair': [1]}, '[1] is not a list; allowed: a list'),
    ({'many': [1, 9]}, '9 is out of range; allowed: 0 to 5 V'),
    ({'table': [1]}, '[1] is not a mapping; allowed: a mapping'),
    ({'maybe': 11}, '11 is out of range; allowed: at most 10 W'),
    ({'maybe': 'x'}, "'x' is not a number; allowed: at most 10 W"),
    ({'word': 'z'}, "'z' is not one of 'x', 'y'; allowed: one of 'x', 'y'"),
    ({'leese': 1}, "unknown key; did you mean 'lease'?; allowed: name, lease, count, on, mode, members, pair, "
                   'many, table, maybe, word, free'),
    ({'zzz': 1}, 'unknown key; allowed: name, lease, count, on, mode, members, pair, many, table, maybe, word, free'),
])  # fmt: skip
def test_texts(values: dict[str, Any], text: str) -> None:
    assert problem(**values) == text


def test_nan_is_allowed_only_where_it_is_the_default() -> None:
    assert check(P, {'name': 'n', 'free': nan}) == []
    assert problem(free=-1.0) == '-1 is out of range; allowed: at least 0 W'


def test_everything_is_reported_at_once() -> None:
    with pytest.raises(ParameterError) as caught:
        build(P, {'lease': 0, 'nonsense': 1})
    assert [p.key for p in caught.value.problems] == ['lease', 'nonsense', 'name']
    assert 'name: missing; needed: text - who' in str(caught.value)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
              st.dates(), st.just(10**400)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)


@given(st.dictionaries(st.sampled_from([s.name for s in specs(P)]) | st.text(max_size=4) | st.integers(), values,
                       max_size=5))
def test_whatever_a_file_holds_is_built_or_named(given_values: Mapping[Any, Any]) -> None:
    problems = check(P, given_values)
    for found in problems:
        assert found.text
        assert len(found.text) < 300
    if problems:
        with pytest.raises(ParameterError):
            build(P, given_values)
        return
    built = build(P, given_values)
    assert 0.1 <= built.lease <= 60.0
    assert isinstance(built.lease, float)
    assert isinstance(built.count, int)
    assert built.count >= 1
    assert all(isinstance(m, str) for m in built.members)


def test_a_check_across_fields_is_a_problem_of_the_whole() -> None:
    @dataclass(frozen=True)
    class Q:
        low: float = 0.0
        high: float = 1.0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError('low is above high')

    with pytest.raises(ParameterError, match='^low is above high$') as caught:
        build(Q, {'low': 2.0})
    assert caught.value.problems[0].key == ''


def test_merge_and_extract() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Shell:
        period: float = param(1.0, 's', low=0.1)
        address: str = param(doc='of the shell')

        @property
        def twice(self) -> float:
            return 2.0 * self.period

    @dataclass(frozen=True)
    class Part:
        address: str = param('', doc='of the part')
        size: int = field(default=1, metadata={'min': 0})

        def __post_init__(self) -> None:
            if self.address == 'bad':
                raise ValueError('address is bad')

    merged: Any = merge('Merged', Shell, Part)
    built = build(merged, {'address': 'here', 'period': 2})
    assert built.twice == 4.0
    assert extract(Part, built) == Part('here', 1)
    assert [(s.name, s.metadata.get('doc', '')) for s in specs(merged)] == [
        ('period', ''), ('address', 'of the part'), ('size', '')]
    with pytest.raises(ParameterError, match='address is bad'):
        build(merged, {'address': 'bad'})
    with pytest.raises(AttributeError):
        built.period = 3.0
