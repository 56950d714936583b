"""`bess faults`: list the faults of the running sites; acknowledge them; clear latched ones whose cause is gone."""

from __future__ import annotations

import argparse
import difflib
import getpass
import sys
import textwrap
from functools import partial
from typing import Any

from .session import (
    CliError,
    Session,
    absolute,
    accepted,
    add_command,
    add_json,
    add_site,
    no_site,
    open_session,
    print_json,
    text_table,
)

EXAMPLES = """
  bess faults                              all faults, the worst first
  bess faults clear bms_a                  all latched faults of a node
  bess faults clear bms_a jbd.cell_overvoltage
  bess faults ack jbd.cell_overvoltage     somebody has seen it, whichever node it is of; ack NODE ID, ack NODE, ack all
  bess faults explain jbd.cell_overvoltage what it means and what to do
A latched fault stays until it is cleared; clearing is refused while the cause is present.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'faults', 'list and clear faults', __doc__, EXAMPLES, run)
    parser.add_argument('what', nargs='?', choices=['list', 'clear', 'ack', 'explain'], default='list',
                        help='list (default), clear, ack or explain')
    parser.add_argument('node', nargs='?', default='', metavar='NODE',
                        help='node, e.g. bms_a or /home/bms_a; or NODE/ID')
    parser.add_argument('id', nargs='?', default='', metavar='ID', help='fault id; all of the node without')
    parser.add_argument('--by', default='', help='who acknowledges (default: the user)')
    parser.add_argument('--manager', default='fault_manager', help='name of the fault manager (default: %(default)s)')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or when no site runs here."""
    if args.what == 'clear' and not args.node:
        raise CliError('clear needs the name of a node', 2)
    if args.what in ('ack', 'explain') and not args.node:
        needed = 'a fault id, a node, both, or all' if args.what == 'ack' else 'a fault id'
        raise CliError(f'{args.what} needs {needed}', 2)
    if args.what == 'list' and args.node:
        raise CliError(f'list takes no further words: {args.node}', 2)
    if not args.id and '/' in args.node.strip('/') and '.' in args.node.rsplit('/', 1)[1]:
        args.node, args.id = args.node.rsplit('/', 1)  # as other commands show it: NODE/ID
    if args.what == 'explain':
        return _explain(args)
    with open_session(args.timeout) as session:
        if args.what == 'ack':
            return _acknowledge(session, args)
        return _clear(session, args) if args.what == 'clear' else _list(session, args)


def collect(session: Session, site: str) -> list[tuple[str, Any]]:
    """(site namespace, Fault) of one site or, with '', of all. Raises `CliError` without any site."""
    from ..observer import SiteObserver

    namespace = absolute(site)
    sources: set[tuple[str, str]] = set()
    observer = SiteObserver(session.node, namespace, ('bess/msg/FaultArray',),
                            listener=lambda name, message: sources.add((name, message.source)))

    def publishers() -> int:
        return sum(session.node.count_publishers(topic)
                   for topic, types in session.node.get_topic_names_and_types()
                   if 'bess/msg/FaultArray' in types and topic.startswith(f'{namespace}/'))

    session.patiently(lambda wait: session.settle(
        lambda: 0 < publishers() <= len(sources) and not session.undiscovered(namespace),
        lambda: (publishers(), len(sources)), wait, look=observer.discover)
        or publishers() or sources, namespace)
    if not publishers() and not sources:
        raise CliError(no_site(namespace))
    if absent := session.undiscovered(namespace):
        print(f'bess faults: not heard, their faults are missing here: {", ".join(absent)}', file=sys.stderr)
    elif (silent := publishers() - len(sources)) > 0:
        print(f'bess faults: {silent} of {publishers()} nodes have not told their faults yet', file=sys.stderr)
    return observer.faults


def _list(session: Session, args: argparse.Namespace) -> int:
    from .render import SEVERITY, plain
    from .words import local

    faults = collect(session, args.site)
    seen = _acknowledged(session, absolute(args.site)) if faults else {}
    if args.json:
        print_json([{'site': site, 'severity_name': SEVERITY.get(f.severity, '?'), **plain(f),
                     'acknowledged_by': seen.get((site, f.source, f.id), '')} for site, f in faults])
        return 0
    if not faults:
        print('no faults')
        return 0
    rows = []
    for site, f in faults:
        state = 'active' if f.active else 'cause gone'
        rows.append([SEVERITY.get(f.severity, '?'), f'{site}/{f.source}', f.id,
                     local(f.since.sec + f.since.nanosec * 1e-9), str(f.count),
                     state + (', latched' if f.latched else '')
                     + (f', seen by {who}' if (who := seen.get((site, f.source, f.id))) else '')])
    lines = text_table(['severity', 'node', 'id', 'since (local time)', 'times', 'state'], rows).split('\n')
    print(lines[0])
    for line, (_, fault) in zip(lines[1:], faults, strict=True):
        print(f'{line}\n    {fault.text}')
    return 0


def _acknowledged(session: Session, namespace: str) -> dict[tuple[str, str, str], str]:
    """(site, node, fault id) -> who acknowledged it, of the sites that have a fault manager."""
    from bess.msg import FaultOverview

    from .. import qos

    told: dict[str, Any] = {}
    topics = [t for t, types in session.node.get_topic_names_and_types()
              if 'bess/msg/FaultOverview' in types and t.startswith(f'{namespace}/')
              and session.node.count_publishers(t)]
    for topic in topics:
        session.node.create_subscription(FaultOverview, topic, partial(told.__setitem__, topic), qos.STATE)
    if topics and not session.until(lambda: len(told) == len(topics)):
        print('bess faults: the fault manager does not say what was acknowledged', file=sys.stderr)
    return {(t.rsplit('/', 2)[0], e.fault.source, e.fault.id): e.acknowledged_by
            for t, m in told.items() for e in m.entries if e.acknowledged}


def _explain(args: argparse.Namespace) -> int:
    """What the catalogue says of a fault id; no site is needed."""
    from fnmatch import fnmatchcase

    from ..installed import fault_catalogue

    wanted = args.id or args.node
    try:
        known = fault_catalogue()
    except OSError as error:
        raise CliError(f'the fault catalogue is not part of this installation: {error}') from error
    found = [known[wanted]] if wanted in known else [v for i, v in known.items() if fnmatchcase(wanted, i)]
    if not found:
        near = difflib.get_close_matches(wanted, known, n=3)
        raise CliError(f'no fault {wanted!r} in the catalogue' + (f'; close: {", ".join(near)}' if near else ''))
    group, entry = found[0]
    told = {'id': wanted, 'severity': entry['severity'],
            'raised_by': entry.get('raised_by') or group.get('raised_by', ''),
            'meaning': entry['meaning'], 'action': entry.get('action') or group.get('action', '')}
    if args.json:
        print_json(told)
        return 0
    print(f'{told["id"]}: {told["severity"]}, raised by {told["raised_by"]}')
    print(textwrap.fill(f'Meaning: {told["meaning"]}', 100))
    print(textwrap.fill(f'What to do: {told["action"]}', 100))
    return 0


def _clear(session: Session, args: argparse.Namespace) -> int:
    from bess.srv import ClearFault

    node = session.full_name(args.node, args.site)
    answer = session.call(f'{node}/clear_fault', ClearFault, ClearFault.Request(id=args.id))
    values = {'node': node, 'id': args.id, 'accepted': answer.accepted, 'message': answer.message}
    return accepted(answer.accepted, f'{node}: {answer.message}', json_values=values if args.json else None)


def _acknowledge(session: Session, args: argparse.Namespace) -> int:
    from bess.srv import AcknowledgeFault

    source, fault_id = args.node, args.id
    if not fault_id and source == 'all':
        source = ''
    elif not fault_id and '.' in source:  # ids have dots, names of nodes have none
        source, fault_id = '', source
    manager = session.full_name(args.manager, args.site)
    answer = session.call(f'{manager}/acknowledge', AcknowledgeFault, AcknowledgeFault.Request(
        source=source.rsplit('/', 1)[-1], id=fault_id, by=args.by or getpass.getuser()))
    values = {'source': source, 'id': fault_id, 'accepted': answer.accepted, 'message': answer.message}
    return accepted(answer.accepted, answer.message, json_values=values if args.json else None)
