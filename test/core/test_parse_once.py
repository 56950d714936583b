"""What the generators of the interfaces do once: a result that was kept is the one that was parsed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import em
import pytest
from rosidl_parser import parser

ROOT = Path(__file__).parents[2]
INTERFACES = ('msg/BatteryStatus.idl', 'msg/DecisionTrace.idl', 'srv/ListSchedule.idl')


TEMPLATE = """@# every kind of token, in texts that begin alike
@[for name in names]@
@{width = len(name)}@
@[  if width > 3]long @(name)@[  elif width]short @name@[  else]@@none@[  end if]: @(width ? width ! 'no') letters
@[end for]@
@[def twice(x)]<@(x * 2)>@[end def]@
@(twice(names[0]))@[while names]@{names.pop()}@[if len(names) == 1]@[break]@[end if].@[end while]
"""


@pytest.fixture
def parse_once(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv('BESS_PARSED', raising=False)
    spec = importlib.util.spec_from_file_location('parse_once', ROOT / 'cmake/parse_once/sitecustomize.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(thing: Any) -> Any:
    """An object and all it holds, as tuples that can be compared."""
    if isinstance(thing, str | int | float | bool | None):
        return thing
    if isinstance(thing, dict):
        return tuple((plain(k), plain(v)) for k, v in thing.items())
    if isinstance(thing, list | tuple | set | frozenset):
        return type(thing).__name__, tuple(map(plain, thing))
    slots = [s for c in type(thing).__mro__ for s in getattr(c, '__slots__', ())]
    held = {**{s: getattr(thing, s) for s in slots if hasattr(thing, s)}, **getattr(thing, '__dict__', {})}
    return type(thing).__qualname__, plain(held)


def test_kept_is_what_was_parsed(parse_once: ModuleType, tmp_path: Path) -> None:
    remember = parse_once.remember
    asked = []

    def parse(text: str, png_file: str | None = None) -> Any:
        asked.append(text)
        return parser.parse_idl_string(text, png_file)

    again = remember(parse, tmp_path / 'parsed', b'1')
    texts = [(Path(sys.prefix) / 'share/bess' / name).read_text() for name in INTERFACES]
    first = [plain(again(text)) for text in texts]
    assert asked == texts and all('Structure' in str(content) for content in first)
    assert len(set(map(str, first))) == len(texts)
    assert [plain(again(text)) for text in texts] == first and asked == texts

    asked.clear()
    short = texts[2]
    remember(parse, tmp_path / 'parsed', b'2')(short)
    assert asked == [short], 'a result of another parser was taken'
    again(short + ' ')
    assert asked == [short, short + ' '], 'a result of another text was taken'
    for kept in (tmp_path / 'parsed').iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert plain(again(short)) == first[2] and len(asked) == 3, 'half a result was taken'
    assert plain(again(short)) == first[2] and len(asked) == 3


def test_a_token_that_was_kept_does_the_same(parse_once: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = [['power', 'soc', ''], ['a'], ['', 'energy', 'b', 'current']]
    texts = [TEMPLATE, TEMPLATE[40:], TEMPLATE + 'end @(len(names))']
    cases = [(text, names) for text in texts for names in given]
    plainly = [em.expand(text, names=list(names)) for text, names in cases]
    assert 'long power: 5 letters' in plainly[0] and '@none: no letters' in plainly[0] and '<powerpower>' in plainly[0]

    read, reads = em.Scanner.one, []
    one = parse_once.remember_tokens(lambda scanner: reads.append(scanner.buffer) or read(scanner))
    monkeypatch.setattr(em.Scanner, 'one', one)
    assert [em.expand(text, names=list(names)) for text, names in cases] == plainly
    first = len(reads)
    assert [em.expand(text, names=list(names)) for text, names in reversed(cases)] == plainly[::-1]
    assert len(reads) == first, 'a text was read again'

    for broken in ('@[for x in y]no end', '@(no end', '@[if x]@[end for]'):
        for _ in range(2):
            with pytest.raises(em.ParseError):
                em.expand(broken)
