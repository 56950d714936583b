"""`bess params`: parameters of the running site: values, units and ranges, changes, history, way back."""

from __future__ import annotations

import argparse
import getpass
from typing import Any

from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json, text_table

EXAMPLES = """
  bess params                               all parameters that were changed
  bess params 'nodes.meter.*'               value, unit, allowed range
  bess params set nodes.meter.period=0.2 nodes.power_manager.import_limit=16000 --comment "new fuse"
  bess params set nodes.meter.period=       back to what the site file says
  bess params history
  bess params rollback 3                    all parameters as after revision 3; 0 = the site file
A change is checked against the whole site, recorded, and takes effect when the site starts again.
"""
ORDERS = ('set', 'history', 'rollback')


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'params', 'parameters of the site', __doc__, EXAMPLES, run)
    parser.add_argument('words', nargs='*', metavar='PATTERN | set NAME=VALUE ... | history [PATTERN] | rollback N')
    parser.add_argument('--by', default='', help='who (default: the user)')
    parser.add_argument('--comment', default='', help='why')
    parser.add_argument('--node', default='system', help='name of the system node (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or no site runs here; 2 for words that make no sense."""
    words = args.words or ['']
    order, rest = (words[0], words[1:]) if words[0] in ORDERS else ('list', words)
    if order == 'set' and (not rest or not all('=' in w for w in rest)):
        raise CliError('set needs NAME=VALUE', 2)
    if order == 'rollback' and not (len(rest) == 1 and rest[0].isdecimal()):
        raise CliError('rollback needs the number of a revision', 2)
    if order in ('list', 'history') and len(rest) > 1:
        raise CliError('one pattern, with * and ?, in quotes', 2)
    with open_session(args.timeout) as session:
        node = session.full_name(args.node, args.site)
        if order in ('list', 'history'):
            return _list(session, node, rest[0] if rest else '', order == 'history', args.json)
        return _change(session, node, order, rest, args)


def _change(session: Session, node: str, order: str, rest: list[str], args: argparse.Namespace) -> int:
    from bess.srv import SetSiteParameter

    request = SetSiteParameter.Request(by=args.by or getpass.getuser(), comment=args.comment)
    if order == 'set':
        pairs = [w.partition('=') for w in rest]
        request.names, request.values = [p[0] for p in pairs], [p[2] for p in pairs]
    else:
        request.rollback, request.revision = True, int(rest[0])
    answer = session.call(f'{node}/set_parameters', SetSiteParameter, request)
    values = {'accepted': answer.accepted, 'message': answer.message, 'revision': answer.revision}
    return accepted(answer.accepted, answer.message, json_values=values if args.json else None)


def _list(session: Session, node: str, pattern: str, history: bool, as_json: bool) -> int:
    from bess.srv import ListSiteParameters

    from .render import plain
    from .words import local

    answer = session.call(f'{node}/list_parameters', ListSiteParameters,
                          ListSiteParameters.Request(pattern=pattern, history=history))
    if answer.problems:
        raise CliError('; '.join(answer.problems))
    found = list(answer.parameters) if pattern or history else [p for p in answer.parameters if p.revision]
    if as_json:
        print_json([plain(p) for p in found])
        return 0
    if not found:
        print('nothing' if pattern or history else "no parameter was changed; all of them: bess params '*'")
        return 0
    if history:
        print(text_table(['revision', 'time (local)', 'by', 'parameter', 'value', 'comment'], [
            [str(p.revision), local(p.changed.sec), p.changed_by, p.name, p.value or '(as in the site file)', p.comment]
            for p in found]))
        return 0
    print(text_table(['parameter', 'value', 'unit', 'allowed', 'state', 'description'], [
        [p.name, p.value, p.unit, p.allowed,
         (f'revision {p.revision}' if p.revision else '') + (', at the next start' if p.pending else ''), p.description]
        for p in found]))
    return 0
