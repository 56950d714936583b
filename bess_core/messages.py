"""Messages made and copied by code that is written once per type.

The constructor of a ROS message looks up and checks every field, also those that keep their default; that takes ten
times as long as filling it. Here the fields are filled directly, as `bess_core.cdr` does with what it receives: for
values that are right by construction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from rosidl_parser import definition as idl

from .cdr import message_class


def maker(message_type: Any, arguments: str, fields: Mapping[str, str] | None = None,
          **names: Any) -> Callable[..., Any]:
    """Function that makes a message of this type from `arguments` ("power, lease, sec"), in this order.

    `fields`: dotted path of a field ("header.stamp.sec") -> expression of the arguments and of `names`; an argument
    that is a field itself needs none. All other fields keep their defaults. Nothing is checked.

    Raises ValueError for a field that does not exist.
    """
    given = {slot[1:]: slot[1:] for slot in message_type.__slots__ if slot[1:] in _words(arguments)}
    given |= fields or {}
    known = {'new': object.__new__, 'deep': copy.deepcopy, **names}
    lines: list[str] = []
    _make('m', message_type(), given, known, lines)
    if given:
        raise ValueError(f'{message_type.__name__} has no field {", ".join(sorted(given))}')
    return compiled(arguments, lines, 'm', known)


def floats(message_type: Any, source: str, *but: str, of: type | None = None) -> dict[str, str]:
    """Expressions for all float64 fields of a message but some, from attributes of the same name of an argument.

    A numpy scalar or an int in such a field would be sent as about zero: what is no float is made one. The attributes
    of a compiled class (`of`, that of the argument) are floats already.
    """
    compiled_class = hasattr(of, '__mypyc_attrs__')
    return {name: f'{source}.{name}' if compiled_class else f'v if type(v := {source}.{name}) is float else float(v)'
            for name, kind in message_type.get_fields_and_field_types().items() if kind == 'double' and name not in but}


def same(source: str, *names: str) -> dict[str, str]:
    """Expressions for fields that are taken as they are, from attributes of the same name of an argument."""
    return {name: f'{source}.{name}' for name in names}


@cache
def copier(message_type: Any) -> Callable[[Any], Any]:
    """Function that copies a message of this type, made once per type: all levels of it, also its arrays."""
    names: dict[str, Any] = {'new': object.__new__, 'deep': copy.deepcopy}
    lines: list[str] = []
    _copy('c', 'm', message_type, names, lines)
    return compiled('m', lines, 'c', names)


def compiled(arguments: str, lines: list[str], result: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Function of these lines, with these global names."""
    exec(f'def function({arguments}):\n' + ''.join(f'    {line}\n' for line in [*lines, f'return {result}']), names)
    return names['function']  # type: ignore[no-any-return]


def _words(arguments: str) -> list[str]:
    return [a.strip() for a in arguments.split(',')]


def _make(target: str, default: Any, given: dict[str, str], names: dict[str, Any], lines: list[str],
          path: str = '') -> None:
    """Lines that make `target`; what `given` says is taken out of it."""
    lines.append(f'{target} = new({_name(names, type(default))}); {target}._check_fields = True')
    for slot, kind in zip(default.__slots__, default.SLOT_TYPES, strict=False):
        field, value = path + slot[1:], getattr(default, slot)
        if (expression := given.pop(field, None)) is not None:
            lines.append(f'{target}.{slot} = {expression}')
        elif isinstance(kind, idl.NamespacedType):
            part = f'p{len(lines)}'
            _make(part, value, given, names, lines, f'{field}.')
            lines.append(f'{target}.{slot} = {part}')
        else:
            lines.append(f'{target}.{slot} = {_copied(_name(names, value), kind, names)}')


def _copy(target: str, source: str, message_type: Any, names: dict[str, Any], lines: list[str]) -> None:
    """Lines that make `target` a copy of `source`; messages within it in place, without a call for each."""
    lines.append(f'{target} = new({_name(names, message_type)}); {target}._check_fields = True')
    for slot, kind in zip(message_type.__slots__, message_type.SLOT_TYPES, strict=False):
        if isinstance(kind, idl.NamespacedType):
            part = f'p{len(lines)}'
            lines.append(f'{part}_ = {source}.{slot}')
            _copy(part, f'{part}_', message_class(kind), names, lines)
            lines.append(f'{target}.{slot} = {part}')
        else:
            lines.append(f'{target}.{slot} = {_copied(f"{source}.{slot}", kind, names)}')


def _copied(value: str, kind: Any, names: dict[str, Any]) -> str:
    if isinstance(kind, idl.BasicType | idl.AbstractString):
        return value  # these never change in place
    item = getattr(kind, 'value_type', None)
    if isinstance(item, idl.NamespacedType):
        return f'[{_name(names, copier(message_class(item)))}(e) for e in {value}]'
    if isinstance(kind, idl.AbstractSequence) and isinstance(item, idl.BasicType | idl.AbstractString):
        return f'{value}[:]'  # a list or an array
    if isinstance(kind, idl.Array) and isinstance(item, idl.BasicType) and item.typename not in ('boolean', 'octet'):
        return f'{value}.copy()'  # an array of numpy
    return f'deep({value})'


def _name(names: dict[str, Any], value: Any) -> str:
    name = f'g{len(names)}'
    names[name] = value
    return name


__all__ = ['compiled', 'copier', 'floats', 'maker', 'same']
