"""Every parameter of every node type, at, just inside and just beyond its bounds: what a change at run time may ask."""

from __future__ import annotations

from math import inf, isinf, nan, nextafter
from typing import Any

import pytest

from bess_core.params import ParameterError, build, specs
from bess_core.plugins import available, load

SHELLS = {'bess.drivers': 'driver', 'bess.modes': 'mode'}
TYPES = sorted((group, name) for group in ('bess.nodes', *SHELLS) for name in available(group))


def params_of(group: str, name: str) -> Any:
    cls = load(group, name)
    return (load('bess.shells', SHELLS[group])(cls) if group in SHELLS else cls).Params


def base(cls: Any) -> dict[str, Any]:
    """A value for each parameter that has no default."""
    values: dict[str, Any] = {}
    for s in specs(cls):
        if not s.required:
            continue
        if s.metadata.get('choices'):
            values[s.name] = s.metadata['choices'][0]
        elif s.type in (int, float):
            values[s.name] = s.type(max(s.metadata.get('min', 1), 1))
        else:
            values[s.name] = 'x' if s.type is str else ['x']
    return values


@pytest.mark.parametrize(('group', 'name'), TYPES)
def test_each_bound_of_each_parameter(group: str, name: str) -> None:
    """At the bound: taken, or refused by a check across parameters that says why. Beyond: refused, naming it."""
    cls = params_of(group, name)
    good = base(cls)
    looked = 0
    for s in specs(cls):
        if s.type not in (int, float):
            continue
        for bound, outward in ((s.metadata.get('min'), -inf), (s.metadata.get('max'), inf)):
            if bound is None or isinf(bound):
                continue
            looked += 1
            beyond = int(bound) + (1 if outward > 0 else -1) if s.type is int else nextafter(float(bound), outward)
            with pytest.raises(ParameterError) as refused:
                build(cls, {**good, s.name: beyond})
            assert s.name in str(refused.value)
            try:
                build(cls, {**good, s.name: s.type(bound)})
            except ParameterError as error:
                assert not [p for p in error.problems if p.key == s.name], f'{s.name} = {bound}: {error}'
                assert str(error)
        if s.type is float and s.metadata.get('min') is not None and s.default == s.default:  # NaN: not given
            with pytest.raises(ParameterError):
                build(cls, {**good, s.name: nan})
        for nonsense in ('fast', [], {}):
            with pytest.raises(ParameterError):
                build(cls, {**good, s.name: nonsense})
    assert looked or not any(s.type in (int, float) for s in specs(cls)) or all(
        s.metadata.get('min') is None and s.metadata.get('max') is None for s in specs(cls) if s.type in (int, float))
