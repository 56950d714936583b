"""Sources for the compiler: the same classes, with constructors that can be compiled."""

from __future__ import annotations

import ast
import dataclasses
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.build_native import ROOT, is_gcc, modules
from tools.native_source import DIGITS, RECORDS, explicit, parameters

SOURCE = '''
"""Docs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple


def param(default):
    return default


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading."""

    time: float
    name: str = 'x'
    kind: ClassVar[str] = 'k'
    notes: list[str] = field(default_factory=list)
    share: float = field(default=0.5)

    def twice(self) -> float:
        """Of the time."""
        return 2.0 * self.time


class Setpoint(NamedTuple):
    power: float
    lease: float = 1.0


class Pair(NamedTuple):
    a: int
    b: int


@dataclass(frozen=True)
class LoopParams:
    gain: float = param(1.0)
    names: tuple[str, ...] = param(())

    def __post_init__(self) -> None:
        if self.gain < 0:
            raise ValueError('gain')


@dataclass
class Checked:
    a: int

    def __post_init__(self) -> None:
        self.a += 1


class Base:
    pass


class Derived(Base):
    pass
'''


@pytest.fixture(scope='module')
def made() -> Iterator[dict[str, Any]]:
    """Names of the module that is compiled."""
    module = types.ModuleType('made_for_mypyc')
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(explicit(SOURCE), module.__name__, 'exec'), module.__dict__)
    yield module.__dict__
    del sys.modules[module.__name__]


def test_fields_keep_names_order_defaults(made: dict[str, Any]) -> None:
    reading = made['Reading'](3.0)
    assert (reading.time, reading.name, reading.notes, reading.share) == (3.0, 'x', [], 0.5)
    assert reading.twice() == 6.0 and made['Reading'].kind == 'k'
    assert [f.name for f in dataclasses.fields(reading)] == ['time', 'name', 'notes', 'share']
    assert reading.notes is not made['Reading'](3.0).notes, 'a list of its own'
    assert made['Reading'](1.0, 'y', ['n'], 0.1) == made['Reading'](time=1.0, name='y', notes=['n'], share=0.1)
    assert dataclasses.replace(reading, name='z').name == 'z'
    with pytest.raises(TypeError):
        made['Reading']()


def test_records_are_no_tuples_any_more_and_others_are(made: dict[str, Any]) -> None:
    assert made['Setpoint'](5.0).lease == 1.0 and not issubclass(made['Setpoint'], tuple)
    assert tuple(made['Pair'](1, 2)) == (1, 2)


def test_parameters_stay_and_check_themselves(made: dict[str, Any]) -> None:
    assert made['Checked'](1).a == 2
    with pytest.raises(ValueError, match='gain'):
        made['LoopParams'](gain=-1.0)
    text = explicit(SOURCE)
    assert '@mypyc_attr(native_class=False)\n@dataclass(frozen=True)\nclass LoopParams' in text
    assert '@mypyc_attr(allow_interpreted_subclasses=True)\nclass Base' in text
    assert text.index('from __future__') < text.index('from mypy_extensions')


def test_fixed_formats_are_called_and_give_the_same_text() -> None:
    source = "def said(x, n):\n    return f'{x:.0f} W {x:.2f} {x:{n}} {x!r:>8} {x}'\n"
    texts = []
    for text in (source, explicit(source)):
        names: dict[str, Any] = {}
        exec(text, names)
        texts.append(names['said'](-0.4, '.3f'))
    assert texts == ['-0 W -0.40 -0.400     -0.4 -0.4'] * 2
    assert "format(x, '.2f')" in explicit(source) and 'x!r:>8' in explicit(source)


@pytest.fixture(scope='module')
def digits() -> dict[str, Any]:
    """The functions that count digits out."""
    names: dict[str, Any] = {}
    for text in DIGITS.values():
        exec(text, names)
    return names


@given(st.floats() | st.integers(-10**7, 10**7).map(lambda n: n / 20.0) | st.floats(-2e4, 2e4))
def test_digits_are_those_of_the_format(digits: dict[str, Any], value: float) -> None:
    assert digits['_whole'](value) == f'{value:.0f}'
    assert digits['_tenths'](value) == f'{value:.1f}'


def test_what_methods_use_of_the_parameters_is_kept() -> None:
    source = SOURCE + '''

@dataclass(frozen=True)
class MoreParams(LoopParams):
    name: str = param('x')


class Loop(Base):
    def __init__(self, params: MoreParams, start: float) -> None:
        self.params = params
        self.value = start

    def step(self, x: float) -> float:
        p, y = self.params, 2.0
        self.value += p.gain * x + self.params.gain * y
        return max(self.value, x, y) + len(p.names)
'''
    text = explicit(source, parameters=parameters([source]))
    assert 'self._params_gain: float = params.gain' in text and 'len(p.names)' in text and 'p.gain * x' not in text
    assert 'max(max(self.value, x), y)' in text
    results = []
    for version in (source, text):
        module = types.ModuleType('loop_for_mypyc')
        sys.modules[module.__name__] = module
        exec(compile(version, module.__name__, 'exec'), module.__dict__)
        del sys.modules[module.__name__]
        results.append(module.Loop(module.MoreParams(3.0, ('a',), 'b'), 1.0).step(5.0))
    assert results == [23.0, 23.0]


def test_broken_source_is_refused() -> None:
    with pytest.raises(SyntaxError):
        explicit('class')


@pytest.mark.parametrize('module', modules())
def test_every_module_is_there_and_stays_valid(module: str) -> None:
    source = (ROOT / module).read_text()
    ast.parse(explicit(source))


def test_every_record_is_in_a_module_that_is_compiled() -> None:
    """That one is used as a tuple is found by the types when it is compiled."""
    found = {node.name for module in modules() for node in ast.walk(ast.parse((ROOT / module).read_text()))
             if isinstance(node, ast.ClassDef) and node.name in RECORDS}
    assert found == RECORDS


@pytest.mark.parametrize(('macros', 'gcc'), [
    ('#define __GNUC__ 12', True), ('#define __GNUC__ 4\n#define __clang__ 1', False), ('', False)])
def test_only_gcc_learns(macros: str, gcc: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that call themselves gnu have other options for it."""
    compiler = tmp_path / 'compiler'
    compiler.write_text(f"#!/bin/sh\ncat <<'END'\n{macros}\nEND\n")
    compiler.chmod(0o755)
    monkeypatch.setenv('CC', f'{compiler} -pthread')
    assert is_gcc() == gcc
    monkeypatch.setenv('CC', str(tmp_path / 'none'))
    with pytest.raises(OSError):
        is_gcc()
