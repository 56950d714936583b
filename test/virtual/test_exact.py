"""Sums that are rounded once."""

from __future__ import annotations

from math import fsum, inf, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess_virtual.exact import exact_sum


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300), max_size=4))
def test_as_fsum(values: list[float]) -> None:
    assert repr(exact_sum(values)) == repr(fsum(values)), 'also the sign of zero'


@pytest.mark.parametrize(('values', 'error'), [([inf, -inf], ValueError), ([1.7e308, 1.7e308], OverflowError)])
def test_raises_as_fsum(values: list[float], error: type[Exception]) -> None:
    with pytest.raises(error):
        exact_sum(values)


def test_what_is_not_finite_stays_so() -> None:
    assert exact_sum([inf]) == exact_sum([inf, 1.0]) == inf and isnan(exact_sum([inf, float('nan')]))
