"""Parameters of a node: one frozen dataclass, checked in the site file and declared to ROS.

A field carries its description in ``field(metadata={...})``; use `param` to write it shortly:

>>> @dataclass(frozen=True)
... class P:
...     lease: float = param(1.0, 's', 'how long an order holds', low=0.1, high=60.0)

Metadata keys: ``unit``, ``doc``, ``min``, ``max``, ``choices`` (allowed values), ``ref`` (the value
names another node of the site; the string is the role that node must have), ``owns`` (the named node
may have only one such owner).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

T = TypeVar('T')


def param(
    default: Any = MISSING,
    unit: str = '',
    doc: str = '',
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    ref: str | None = None,
    owns: bool = False,
) -> Any:
    """A dataclass field with unit, description and allowed range (see the module docstring)."""
    metadata: dict[str, Any] = {'unit': unit, 'doc': doc}
    for key, value in (('min', low), ('max', high), ('choices', choices), ('ref', ref)):
        if value is not None:
            metadata[key] = value
    if owns:
        metadata['owns'] = True
    if isinstance(default, (list, dict)):
        copy = default
        return field(default_factory=lambda: type(copy)(copy), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one parameter. `key` is its name ('' = the whole)."""

    key: str
    text: str


class ParameterError(ValueError):
    """Values that do not fit a parameter dataclass; `problems` holds one entry per parameter."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__('; '.join(f'{p.key}: {p.text}' if p.key else p.text for p in problems))


@dataclass(frozen=True)
class Spec:
    """Description of one parameter."""

    name: str
    type: Any
    required: bool
    default: Any
    metadata: Mapping[str, Any]

    @property
    def allowed(self) -> str:
        """The allowed values in words, with the unit."""
        unit = self.metadata.get('unit', '')
        unit = f' {unit}' if unit else ''
        if 'choices' in self.metadata:
            return 'one of ' + ', '.join(map(repr, self.metadata['choices']))
        low, high = self.metadata.get('min'), self.metadata.get('max')
        if low is not None and high is not None:
            return f'{low:g} to {high:g}{unit}'
        if low is not None:
            return f'at least {low:g}{unit}'
        if high is not None:
            return f'at most {high:g}{unit}'
        return _type_name(self.type) + unit


#: Annotations are texts, which cost more to evaluate than all else in the check of a site file.
_hints = functools.cache(typing.get_type_hints)


def specs(cls: type) -> Iterator[Spec]:
    """Descriptions of all parameters of a dataclass, in order."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        required = f.default is MISSING and f.default_factory is MISSING
        default = None if required else f.default
        if f.default_factory is not MISSING:
            default = f.default_factory()
        yield Spec(f.name, hints[f.name], required, default, f.metadata)


def check(cls: type, values: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with `values` for this dataclass; empty = `build` will succeed."""
    return _convert(cls, values)[1]


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of `cls` from plain values. Raises `ParameterError` with every problem."""
    converted, problems = _convert(cls, values)
    if problems:
        raise ParameterError(problems)
    try:
        return cls(**converted)
    except (ValueError, TypeError) as error:  # a check across fields in __post_init__
        raise ParameterError([Problem('', str(error))]) from error


def _convert(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    known = {s.name: s for s in specs(cls)}
    out: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in values.items():
        spec = known.get(str(key))
        if spec is None:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            problems.append(Problem(str(key), f'unknown key{hint}; allowed: {", ".join(known) or "none"}'))
            continue
        try:
            out[spec.name] = _coerce(spec.type, value)
        except (TypeError, OverflowError):  # a whole number can be too large for a float
            text = f'{_short(value)} is not {_type_name(spec.type)}; allowed: {spec.allowed}'
            problems.append(Problem(spec.name, text))
            continue
        if text := _range_problem(spec, out[spec.name]):
            problems.append(Problem(spec.name, text))
    problems += [
        Problem(s.name, f'missing; needed: {s.allowed}{" - " + s.metadata["doc"] if s.metadata.get("doc") else ""}')
        for s in known.values()
        if s.required and s.name not in values
    ]
    return out, problems


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return 'the number'
    return text if len(text) <= 80 else f'{text[:77]}...'


def _range_problem(spec: Spec, value: Any) -> str:
    meta = spec.metadata
    if 'choices' in meta:
        return '' if value in meta['choices'] else f'{value!r} is not allowed; allowed: {spec.allowed}'
    numbers = value if isinstance(value, (list, tuple)) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        low, high = meta.get('min'), meta.get('max')
        if number != number and (low is not None or high is not None) and spec.default == spec.default:
            return f'not a number; allowed: {spec.allowed}'
        if (low is not None and number < low) or (high is not None and number > high):
            return f'{number:g} is out of range; allowed: {spec.allowed}'
    return ''


def _coerce(wanted: Any, value: Any) -> Any:
    """`value` as `wanted`; ints become floats where floats are wanted. TypeError when it does not fit."""
    origin = typing.get_origin(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(wanted):
            try:
                return _coerce(option, value)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in typing.get_args(wanted):
            return value
        raise TypeError
    if wanted is type(None):
        if value is None:
            return None
        raise TypeError
    if origin in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            raise TypeError
        args = typing.get_args(wanted) or (Any,)
        if origin is tuple and len(args) > 1 and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise TypeError
            return tuple(_coerce(a, v) for a, v in zip(args, value, strict=True))
        items = [_coerce(args[0], v) for v in value]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping) or wanted is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted in (str, bool) and isinstance(value, wanted):
        return value
    raise TypeError


def _type_name(wanted: Any) -> str:
    names = {float: 'a number', int: 'a whole number', bool: 'true or false', str: 'text'}
    if wanted in names:
        return names[wanted]
    origin = typing.get_origin(wanted)
    if origin in (list, tuple, Sequence):
        return 'a list'
    if origin in (dict, Mapping) or wanted is dict:
        return 'a mapping'
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(_type_name(a) for a in typing.get_args(wanted) if a is not type(None))
    if origin is typing.Literal:
        return 'one of ' + ', '.join(map(repr, typing.get_args(wanted)))
    return getattr(wanted, '__name__', str(wanted))


def merge(name: str, base: type, part: type) -> type:
    """A frozen keyword-only dataclass with the parameters of `base` and of `part` (which win where both
    have one). It subclasses `base`, and `part` checks its own share at construction."""
    merged: dict[str, tuple[str, Any, Any]] = {}
    for source in (base, part):
        hints = typing.get_type_hints(source)
        for f in dataclasses.fields(source):
            copy: Any = dataclasses.field(  # type: ignore[call-overload]
                default=f.default, default_factory=f.default_factory, metadata=f.metadata, kw_only=True
            )
            merged[f.name] = (f.name, hints[f.name], copy)
    return dataclasses.make_dataclass(
        name,
        list(merged.values()),
        bases=(base,),
        frozen=True,
        kw_only=True,
        namespace={'__post_init__': lambda self: extract(part, self) and None},
    )


def extract(cls: type[T], values: Any) -> T:
    """The share of `cls` in a merged parameter object."""
    return cls(**{f.name: getattr(values, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def declare(node: Any, params: Any) -> None:
    """Declare a parameter instance on an rclpy node, with descriptors; values that ROS has no type for as JSON."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    for spec in specs(type(params)):
        value = getattr(params, spec.name)
        unit = spec.metadata.get('unit', '')
        descriptor = ParameterDescriptor(
            description=f'{spec.metadata.get("doc", "")}{f" [{unit}]" if unit else ""}',
            additional_constraints=spec.allowed,
            read_only=True,
        )
        low, high = spec.metadata.get('min'), spec.metadata.get('max')
        if isinstance(value, float) and low is not None and high is not None and low <= value <= high:
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        elif isinstance(value, int) and not isinstance(value, bool) and low is not None and high is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        node.declare_parameter(spec.name, _ros_value(value), descriptor)


def _ros_value(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return list(value)
    if isinstance(value, (list, tuple)) and value and all(type(v) is float for v in value):
        return list(value)
    return json.dumps(value, default=str)
