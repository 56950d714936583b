"""YAML with line numbers: what a person wrote, and where, so that every mistake can be shown at its line.

Used for the site file and for device profiles. A hostile file costs neither memory nor minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from . import params

EXPONENT = re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z')
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1_000_000, 20, 100_000  # a hostile file must not cost memory or minutes
Path_ = tuple[Any, ...]


class UnreadableFile(Exception):
    """A file that is not there, too large or no text."""


class _TooMuch(Exception):
    """More values than any site needs (aliases can multiply them); `path` is where it became too much."""

    def __init__(self, path: Path_) -> None:
        self.path = path
        super().__init__()


class LineReader:
    """YAML to plain values, remembering the line of every key."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path_, int] = {}
        self.given: dict[Path_, str] = {}  # what did not come from the file: path -> where it came from
        self.messages: list[str] = []
        self._values = 0

    def say(self, path: Path_, text: str, key: str = '') -> None:
        """Report a mistake at the line of `path` (or of its nearest known parent)."""
        full = (*path, key) if key else path
        for given, source in self.given.items():
            if full[: len(given)] == given or (full not in self.lines and given[: len(full)] == full):
                self.messages.append(f'{source}: {".".join(map(str, full))}: {text}')
                return
        where = full
        while where and where not in self.lines:
            where = where[:-1]
        name = '.'.join(str(p) for p in full)
        self.messages.append(f'{self.file}:{self.lines.get(where, 1)}: {name + ": " if name else ""}{text}')

    def read(self, text: str) -> Any:
        """Parse; syntax errors become messages."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            self.messages.append(f'{self.file}:{line}: not valid YAML: {error.problem or error.context}')
            return None
        except ReaderError as error:
            line = text.count('\n', 0, error.position) + 1
            self.messages.append(f'{self.file}:{line}: not text: character {error.character:#04x} is not allowed')
            return None
        except RecursionError:
            self.messages.append(f'{self.file}:1: nested too deeply; at most {MAX_DEPTH} levels are allowed')
            return None
        try:
            return None if root is None else self._plain(root, (), frozenset())
        except _TooMuch as error:
            self.say(error.path[:1], f'more than {MAX_VALUES} values in the file; do its aliases multiply them?')
            return None

    def _plain(self, node: yaml.Node, path: Path_, seen: frozenset[int]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TooMuch(path)
        if id(node) in seen:
            self.say(path, 'an alias that contains itself')
            return None
        if len(path) > MAX_DEPTH:
            self.say(path[:3], f'nested too deeply; at most {MAX_DEPTH} levels are allowed')
            return None
        seen = seen | {id(node)}
        if isinstance(node, yaml.MappingNode):
            out: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == 'tag:yaml.org,2002:merge':
                    self.lines[path] = key_node.start_mark.line + 1
                    self.say(path, 'merge keys (<<) and keys that are lists or mappings are not allowed here')
                    continue
                key = self._scalar(key_node, path)
                self.lines[(*path, key)] = key_node.start_mark.line + 1
                if key in out:
                    self.say((*path, key), 'given twice')
                out[key] = self._plain(value_node, (*path, key), seen)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, i), seen) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: Path_) -> Any:
        try:
            value = yaml.SafeLoader('').construct_object(node)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # A date like 2026-13-45, a number of 5000 digits, a tag like !!python/object.
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
            self.lines[path] = node.start_mark.line + 1
            self.say(path, f'{str(node.value)[:40]!r} cannot be read: {reason}')
            return None
        # YAML 1.1 reads 1e3 as text; everybody means the number.
        if isinstance(value, str) and getattr(node, 'style', None) is None and EXPONENT.match(value):
            return float(value)
        return value


def build(reader: LineReader, cls: type, values: Any, path: Path_) -> Any:
    """An instance of a parameter dataclass, or None after its problems were reported at their lines."""
    if not isinstance(values, Mapping):
        reader.say(path, 'must be a mapping')
        return None
    try:
        return params.build(cls, values)
    except params.ParameterError as error:
        for problem in error.problems:
            reader.say(path, problem.text, problem.key)
        return None


def read_text(path: Path) -> str:
    """A text file of bearable size. Raises `UnreadableFile` that names the line."""
    try:
        with path.open('rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f'{path}: cannot be read: {error.strerror or error}') from error
    if len(data) > MAX_BYTES:
        raise UnreadableFile(f'{path}: larger than {MAX_BYTES // 1000} kB, which is the most that is allowed')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise UnreadableFile(f'{path}:{line}: not UTF-8 text: {error.reason}') from error
