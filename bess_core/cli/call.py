"""`bess call`: call any ROS service; the type is looked up, fields are checked, the answer is JSON."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .fields import TYPE, FieldError, fill, find_class, parse
from .session import (
    CliError,
    Session,
    absolute,
    add_command,
    add_json,
    add_timeout,
    nearest,
    open_session,
    print_json,
    text_table,
    type_of,
    where,
)

EXAMPLES = """
  bess call --list                                     services on the graph with their types
  bess call /home/house/get_status
  bess call house/schedule_set_power '{power: 500, start: now, end: +10m}'
  bess call /home/meter/change_state '{transition: {label: deactivate}}'
  bess call /home/bms_a/set_contactor bess/srv/SetContactor '{charge: true, discharge: false}'
  bess call /home/house/schedule_set_power --fields    fields and types of request and answer
A name without leading slash fits any service that ends with it. Times: {sec: 1, nanosec: 0}, epoch
seconds, now, +10s, 18:30. The exit code is 1 when the answer says accepted or success: false.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'call', 'call any service', __doc__, EXAMPLES, run)
    parser.add_argument('service', nargs='?', default='', metavar='SERVICE', help='name of the service')
    parser.add_argument('rest', nargs='*', metavar='TYPE|VALUES',
                        help="type such as bess/srv/GetStatus, and fields as YAML: '{power: 500}'")
    parser.add_argument('--list', action='store_true', help='list the services instead')
    parser.add_argument('--fields', action='store_true', help='print the fields instead of calling')
    add_timeout(parser)
    add_json(parser, 'lists as JSON too (answers always are)')


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused, not found or without answer; 2 for values that do not fit."""
    if bool(args.service) == args.list:
        raise CliError('give the name of a service, or --list', 2)
    type_name, text = split_rest(args.rest)
    try:
        values = parse(text)
        if type_name:
            kind = find_class(type_name, 'srv')
            fill(kind.Request(), values)  # wrong values are told before anything is waited for
    except FieldError as error:
        raise CliError(str(error), 2) from error
    with open_session(args.timeout) as session:
        if args.list:
            return _list(session, args.json)
        service = find_service(session, args.service)
        offered = session.services()[service]
        try:
            kind = find_class(type_name or offered, 'srv')
            if type_of(kind) != offered:
                raise CliError(f'{service} is of type {offered}, not {type_of(kind)}')
            if args.fields:
                return _print_fields(service, kind, args.json)
            request = fill(kind.Request(), values)
        except FieldError as error:
            raise CliError(f'{service}: {error}', 2) from error
        answer = session.call(service, kind, request)
    from .render import plain

    print_json(plain(answer))
    refused = any(getattr(answer, flag, True) is False for flag in ('accepted', 'success'))
    if refused:
        print(f'bess call: refused: {getattr(answer, "message", "") or "no reason given"}', file=sys.stderr)
    return 1 if refused else 0


def split_rest(rest: list[str]) -> tuple[str, str]:
    """(type, values) of what follows the service name. Raises `CliError`."""
    if len(rest) > 2:
        raise CliError(f'too many words; put the values in quotes: \'{" ".join(rest[1:])}\'', 2)
    if len(rest) == 2:
        return rest[0], rest[1]
    if rest and TYPE.fullmatch(rest[0]):
        return rest[0], ''
    return '', rest[0] if rest else ''


def find_service(session: Session, name: str) -> str:
    """Full name of a service that is there; a name without leading slash may be the end of it."""
    full = absolute(name)

    def fits() -> list[str]:
        known = session.services()
        if name.startswith('/') or full in known:
            return [full] if full in known else []
        return sorted(n for n in known if n.endswith(full))

    # A full name is certain at once; an ending may fit a second service that is discovered later.
    found = session.until(fits) if name.startswith('/') else session.settle(fits, fits)
    matches = fits()
    if not matches or not (found or matches):
        known = session.services()
        close = f'; close: {", ".join(nearest(full, known))}' if known else f' ({where()})'
        raise CliError(f'no service {name} within {session.timeout:g} s{close}')
    if len(matches) > 1:
        raise CliError(f'{name} fits several services: {", ".join(matches)}', 2)
    return matches[0]


def _list(session: Session, as_json: bool) -> int:
    session.settle(session.services, session.services)
    services = session.services()
    if as_json:
        print_json(services)
        return 0
    if not services:
        raise CliError(f'no services here ({where()})')
    print(text_table(['service', 'type'], sorted(services.items())))
    return 0


def _print_fields(service: str, kind: Any, as_json: bool) -> int:
    sides = {'request': _tree(kind.Request), 'answer': _tree(kind.Response)}
    if as_json:
        print_json({'service': service, **sides})
        return 0
    for side, fields in sides.items():
        print(f'{side}:')
        _print_tree(fields, '  ')
    return 0


def _tree(cls: Any) -> dict[str, Any]:
    """Fields with their types; messages inside as trees of their own."""
    out: dict[str, Any] = {}
    for name, wanted in cls.get_fields_and_field_types().items():
        nested = TYPE.fullmatch(wanted)
        out[name] = _tree(find_class(wanted, 'msg')) if nested else wanted
    return out


def _print_tree(fields: dict[str, Any], indent: str) -> None:
    for name, wanted in fields.items():
        if isinstance(wanted, dict):
            print(f'{indent}{name}:')
            _print_tree(wanted, indent + '  ')
        else:
            print(f'{indent}{name}: {wanted}')
    if not fields:
        print(f'{indent}(no fields)')
