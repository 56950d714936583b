"""What remote parties say to each other: small JSON envelopes with a version. Pure, apart from message classes.

A question is ``{"v": 1, "battery": ..., "id": ..., "boot": ..., "given": ..., "within": ..., "body": {...}}``, an
answer ``{"v": 1, "boot": ..., "t": ..., "wall": ..., "body": {...}}`` or the same with ``"error": "..."``. Bodies
hold the fields of ROS messages by name: an unknown field is ignored and a missing one keeps its default, so that
two releases understand each other. JSON has no NaN and no infinity: null and "inf"/"-inf" stand for them.
"""

from __future__ import annotations

import importlib
import json
import re
from array import array
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any

VERSION = 1
#: Begins an error that goes away by asking again, or that leaves open what became of the question.
AGAIN = 'again:'
MAX_BYTES = 256 * 1024  # of one envelope
MAX_ITEMS = 20_000  # of one sequence
MAX_TEXT = 4096  # characters of one string inside a message
_RANGES = {f'{"u" if low == 0 else ""}int{bits}': (low, high) for bits in (8, 16, 32, 64)
           for low, high in ((0, 2**bits - 1), (-(2**(bits - 1)), 2**(bits - 1) - 1))}
_SPECIAL = {None: nan, 'inf': inf, '-inf': -inf}


class WireError(ValueError):
    """Bytes or fields that are not what they should be; in words."""


@dataclass(frozen=True)
class Ask:
    """A question. `given` is when it was asked, on the clock of the party that is asked (see `Answer.t`)."""

    battery: str = ''
    id: str = ''  # of a request that changes something: the same id again is the same request
    boot: str = ''  # start of the asked party that `given` belongs to; '' = no order, its age does not matter
    given: float = nan  # s
    within: float = nan  # s after `given` from which on it must not be acted on any more
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An answer; `error` is empty when the question was understood and let through."""

    boot: str = ''  # changes with each start of the party that answers
    t: float = nan  # s, its monotonic clock
    wall: float = nan  # s since the epoch, its wall clock
    body: dict[str, Any] = field(default_factory=dict)
    error: str = ''


def encode(what: Ask | Answer) -> bytes:
    """Bytes of an envelope. Raises `WireError` when it is too large."""
    values = {k: _number(v) if isinstance(v, float) else v for k, v in vars(what).items() if v != '' or k == 'battery'}
    data = json.dumps({'v': VERSION, **values}, separators=(',', ':'), allow_nan=False).encode()
    if len(data) > MAX_BYTES:
        raise WireError(f'{len(data)} bytes are more than the {MAX_BYTES} of one message')
    return data


def decode_ask(data: bytes) -> Ask:
    """The question in these bytes. Raises `WireError` for whatever is wrong with them."""
    v = _envelope(data)
    return Ask(_text(v, 'battery', 64), _text(v, 'id', 128), _text(v, 'boot', 64), _float(v, 'given'),
               _float(v, 'within'), _body(v))


def decode_answer(data: bytes) -> Answer:
    """The answer in these bytes. Raises `WireError` for whatever is wrong with them."""
    v = _envelope(data)
    return Answer(_text(v, 'boot', 64), _float(v, 't'), _float(v, 'wall'), _body(v), _text(v, 'error', MAX_TEXT))


def _envelope(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise WireError(f'{len(data)} bytes are more than the {MAX_BYTES} of one message')
    try:
        values = json.loads(data.decode('utf-8'), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f'not JSON: {str(error)[:100]}') from error
    if not isinstance(values, dict):
        raise WireError('not a JSON object')
    if values.get('v') != VERSION or isinstance(values['v'], bool):
        raise WireError(f'version {str(values.get("v"))[:20]} is not {VERSION}')
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON')


def _text(values: dict[str, Any], key: str, longest: int) -> str:
    text = values.get(key, '')
    if not isinstance(text, str) or len(text) > longest:
        raise WireError(f'{key} is not a text of at most {longest} characters')
    _encodable(text, key)
    return text


def _encodable(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise WireError(f'{key} holds half a surrogate pair') from None
    if '\0' in text:
        raise WireError(f'{key} holds a zero character')


def _float(values: dict[str, Any], key: str) -> float:
    return _to_float(values.get(key), key)


def _to_float(value: Any, key: str) -> float:
    if value is None or (isinstance(value, str) and value in _SPECIAL):
        return _SPECIAL[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WireError(f'{key} is not a number')
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise WireError(f'{key} is too large')
    return number


def _number(value: float) -> float | str | None:
    if isfinite(value):
        return float(value)
    return None if value != value else 'inf' if value > 0 else '-inf'


def _body(values: dict[str, Any]) -> dict[str, Any]:
    body = values.get('body', {})
    if not isinstance(body, dict):
        raise WireError('body is not an object')
    return body


# -- fields of ROS messages ----------------------------------------------------------------------------


def fields_of(message: Any) -> dict[str, Any]:
    """A ROS message as a JSON-able object."""
    return {name: _plain(getattr(message, name)) for name in message.get_fields_and_field_types()}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return _number(value)
    if hasattr(value, 'get_fields_and_field_types'):
        return fields_of(value)
    return [_plain(v.item() if hasattr(v, 'item') else v) for v in value]


def message_of(kind: Any, body: dict[str, Any]) -> Any:
    """A message of class `kind` from an object. Raises `WireError` for a value that does not fit its field."""
    message = kind()
    for name, type_name in kind.get_fields_and_field_types().items():
        if name in body:
            setattr(message, name, _value(type_name, body[name], name))
    return message


def _value(type_name: str, value: Any, key: str) -> Any:
    if match := re.fullmatch(r'(?:sequence<(.+?)(?:, \d+)?>|(.+)\[\d+\])', type_name):
        if match[2] is not None:
            raise WireError(f'{key}: arrays of fixed size are not spoken')
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise WireError(f'{key} is not a list of at most {MAX_ITEMS}')
        items = [_value(match[1], v, key) for v in value]
        return array('d', items) if match[1] == 'double' else items
    if type_name in ('double', 'float'):
        return _to_float(value, key)
    if type_name == 'boolean':
        if not isinstance(value, bool):
            raise WireError(f'{key} is neither true nor false')
        return value
    if type_name in _RANGES:
        low, high = _RANGES[type_name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise WireError(f'{key} is not a whole number of {low} to {high}')
        return value
    if type_name.startswith('string'):
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise WireError(f'{key} is not a text of at most {MAX_TEXT} characters')
        _encodable(value, key)
        return value
    if '/' in type_name and isinstance(value, dict):
        package, name = type_name.split('/')
        message = message_of(getattr(importlib.import_module(f'{package}.msg'), name), value)
        if type_name == 'builtin_interfaces/Time' and message.nanosec >= 1_000_000_000:
            raise WireError(f'{key}: {message.nanosec} ns are a second or more')
        return message
    raise WireError(f'{key} is not a {type_name}')
