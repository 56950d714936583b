"""Helpers for the page: plain HTML elements, and lists rebuilt only when they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

T = TypeVar('T')
_QUALITIES = 'ok stale invalid'


class Text(TextElement):
    """An HTML or SVG element with text; setting `text` to what it is already sends nothing."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(tag=name, text=text)


def tag(name: str, classes: str = '', text: str | None = None) -> Element:
    """A plain element; with `text` (also an empty one) its text can be changed."""
    element = Element(name) if text is None else Text(name, text)
    if classes:
        element.classes(classes)
    return element


def text(name: str, classes: str = '', content: str = '') -> Text:
    """A plain element whose text changes."""
    element = Text(name, content)
    if classes:
        element.classes(classes)
    return element


def set_quality(element: Element, quality: str) -> None:
    """Make an element look fresh, stale or invalid."""
    element.classes(remove=_QUALITIES, add=quality)


class Listing(Generic[T]):
    """Rows by key in a container. Rebuilt when the keys change, else only updated."""

    def __init__(self, container: Element, build: Callable[[str], T], empty: str = '') -> None:
        self._container = container
        self._build = build
        self._empty = empty
        self._keys: list[str] | None = None
        self._rows: list[T] = []

    def rows(self, keys: Sequence[str]) -> list[T]:
        """The row objects of these keys, in this order."""
        wanted = list(keys)
        if wanted != self._keys:
            self._keys = wanted
            self._container.clear()
            with self._container:
                self._rows = [self._build(key) for key in wanted]
                if not wanted and self._empty:
                    tag('div', 'none', self._empty)
        return self._rows
