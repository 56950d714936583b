"""Messages from what people type: YAML values put into the fields of a message, checked one by one."""

from __future__ import annotations

import difflib
import importlib
import re
import time
from typing import Any

import yaml

from ..clock import split_stamp
from .words import moment

_INTEGERS = {
    f'{sign}int{bits}': (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for bits in (8, 16, 32, 64) for sign in ('', 'u')
} | {'octet': (0, 255), 'byte': (0, 255), 'char': (0, 255)}
_FLOATS = ('float', 'double', 'float32', 'float64')
_ARRAY = re.compile(r'(.+)\[(\d+)\]')
_SEQUENCE = re.compile(r'sequence<(.+?)(?:, ?(\d+))?>')
_TEXT = re.compile(r'w?string(?:<(\d+)>)?')
TYPE = re.compile(r'([A-Za-z]\w*)(?:/(msg|srv))?/([A-Za-z]\w*)')


class FieldError(ValueError):
    """A value that does not fit its field; names field, value and what is allowed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e3 is one, 12:30 and 2026-05-01 are text."""


_DROPPED = {f'tag:yaml.org,2002:{kind}' for kind in ('int', 'float', 'timestamp')}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:int', re.compile(r'^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$'),
    list('-+0123456789'))
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?'
               r'|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$'),
    list('-+.0123456789'))


def parse(text: str) -> dict[str, Any]:
    """The mapping in a YAML text; empty text is an empty mapping. Raises `FieldError`."""
    try:
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, 'problem', None) or str(error)
        raise FieldError(f'not valid YAML: {reason}: {text!r}') from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FieldError(f"values must be a mapping like '{{power: 500}}', not {text!r}")
    return values


def find_class(type_name: str, kind: str) -> Any:
    """Python class of `bess/srv/GetStatus` or `bess/GetStatus`; `kind` is 'msg' or 'srv'.

    Raises `FieldError`."""
    found = TYPE.fullmatch(type_name)
    if found is None or found[2] not in (None, kind):
        raise FieldError(f'{type_name!r} is not a type like bess/{kind}/Name')
    package, name = found[1], found[3]
    try:
        module = importlib.import_module(f'{package}.{kind}')
    except ImportError as error:
        raise FieldError(f'{type_name}: package {package} is not installed here ({error})') from None
    cls = getattr(module, name, None)
    if cls is None:
        names = [n for n in dir(module) if n[:1].isupper()]
        near = difflib.get_close_matches(name, names, n=3)
        hint = f'; did you mean {", ".join(near)}?' if near else ''
        raise FieldError(f'{package}/{kind} has no {name!r}{hint}')
    return cls


def fill(message: Any, values: dict[str, Any], path: str = '') -> Any:
    """Put `values` into the fields of `message` and return it. Raises `FieldError`."""
    types = message.get_fields_and_field_types()
    for key, value in values.items():
        name = f'{path}.{key}' if path else str(key)
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            allowed = ', '.join(f'{f} ({t})' for f, t in types.items()) or 'none'
            raise FieldError(f'unknown field {name!r}{hint}; fields: {allowed}')
        setattr(message, key, _value(types[key], value, name))
    return message


def _value(wanted: str, value: Any, path: str) -> Any:
    if found := _ARRAY.fullmatch(wanted):
        return _items(found[1], value, path, exactly=int(found[2]))
    if found := _SEQUENCE.fullmatch(wanted):
        return _items(found[1], value, path, at_most=int(found[2]) if found[2] else None)
    if wanted == 'boolean':
        if not isinstance(value, bool):
            raise _misfit(path, value, 'true or false')
        return value
    if wanted in _FLOATS:
        return _float(value, path)
    if wanted in _INTEGERS:
        low, high = _INTEGERS[wanted]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _misfit(path, value, f'a whole number from {low} to {high}')
        return bytes([value]) if wanted in ('octet', 'byte') else value
    if found := _TEXT.fullmatch(wanted):
        if not isinstance(value, str):
            raise _misfit(path, value, 'text (put it in quotes)')
        if found[1] and len(value) > int(found[1]):
            raise _misfit(path, value, f'text of at most {found[1]} characters')
        return value
    cls = find_class(wanted, 'msg')
    if wanted.endswith('/Time') and not isinstance(value, dict):
        return _time(cls, value, path)
    if wanted.endswith('/Duration') and isinstance(value, (int, float)) and not isinstance(value, bool):
        sec = int(value // 1)
        return cls(sec=sec, nanosec=min(round((value - sec) * 1e9), 999_999_999))
    if not isinstance(value, dict):
        raise _misfit(path, value, f'a mapping with the fields of {wanted}')
    return fill(cls(), value, path)


def _items(wanted: str, value: Any, path: str, *, exactly: int | None = None,
           at_most: int | None = None) -> Any:
    if not isinstance(value, list):
        raise _misfit(path, value, 'a list like [1, 2]')
    if exactly is not None and len(value) != exactly:
        raise FieldError(f'{path}: {len(value)} values; it takes exactly {exactly}')
    if at_most is not None and len(value) > at_most:
        raise FieldError(f'{path}: {len(value)} values; it takes at most {at_most}')
    return [_value(wanted, item, f'{path}[{i}]') for i, item in enumerate(value)]


def _float(value: Any, path: str) -> float:
    if isinstance(value, str):
        special = {'nan': 'nan', 'inf': 'inf', '+inf': 'inf', '-inf': '-inf'}.get(value.lower())
        if special is not None:
            return float(special)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _misfit(path, value, 'a number')
    try:
        return float(value)
    except OverflowError:
        raise _misfit(path, value, 'a number below 1.8e308') from None


def _time(cls: Any, value: Any, path: str) -> Any:
    """Absolute time: epoch seconds, or words such as `now`, `+10s`, `18:30`."""
    try:
        if isinstance(value, str):
            at = moment(value, time.time())
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _misfit(path, value, 'a time: epoch seconds, now, +10s, 18:30, 2026-05-01T12:00')
        else:
            at = float(value)
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(f'{path}: {error}') from None
    if not 0.0 <= at < 2**31:
        raise _misfit(path, value, 'a time between 1970 and 2038')
    sec, nanosec = split_stamp(at)
    return cls(sec=sec, nanosec=nanosec)


def _misfit(path: str, value: Any, allowed: str) -> FieldError:
    return FieldError(f'{path}: {value!r} does not fit; allowed: {allowed}')
