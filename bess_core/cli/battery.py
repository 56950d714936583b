"""`bess battery`: create, change, move and destroy batteries of a running site; list and inspect them."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import Any

from .session import CliError, Session, accepted, add_command, add_json, add_site, open_session, print_json, text_table

EXAMPLES = """
  bess battery list
  bess battery inspect all
  bess battery create aggregate home --members a b --set limit=sum
  bess battery create partition split --members home --children house=0.8 grid=0.2
  bess battery configure home --set limit=together
  bess battery reparent b --to other           out of its owner and into other; --to none = free
  bess battery destroy home                    --cascade: with what is made of it
  bess battery history
  bess battery export                          the changes as a site-file fragment
  bess battery reset --state DIR               put the stored changes of a site that does not run aside
A change is refused when it makes a cycle, uses a battery twice, leaves something without its source or
would break a schedule; --force stops what is scheduled safely first. --dry-run only checks.
"""
WAIT_S = 30.0  # a change may have to wait until batteries are at rest


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'battery', 'create, change and destroy batteries', __doc__, EXAMPLES, run)
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)
    create = _verb(verbs, 'create', 'make a battery', change=True)
    create.add_argument('type', help='kind, as in a site file: aggregate, partition, unit ...')
    create.add_argument('name')
    create.add_argument('--members', nargs='+', default=[], metavar='NAME', help='what it is made of')
    create.add_argument('--children', nargs='+', default=[], metavar='NAME=SHARE',
                        help='partition: children with their share 0..1 of energy and powers')
    create.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='parameter, as in a site file')
    configure = _verb(verbs, 'configure', 'change parameters', change=True)
    configure.add_argument('name')
    configure.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', required=True,
                           help='parameter, as in a site file; KEY=null = default')
    destroy = _verb(verbs, 'destroy', 'end a battery for good', change=True)
    destroy.add_argument('name')
    destroy.add_argument('--cascade', action='store_true', help='also what is made of it')
    move = _verb(verbs, 'reparent', 'move a battery to another owner', change=True)
    move.add_argument('name')
    move.add_argument('--to', required=True, metavar='NAME', help='new owner; none = free')
    inspect = _verb(verbs, 'inspect', 'one battery: parameters, members, schedule')
    inspect.add_argument('name')
    for name, text in (('list', 'all batteries'), ('history', 'what was changed, when and by whom'),
                       ('export', 'the changes as a site-file fragment')):
        _verb(verbs, name, text)
    reset = verbs.add_parser('reset', help='put the stored changes aside; the site must not run')
    reset.add_argument('--state', type=Path, required=True, metavar='DIR', help='state folder of the site')


def _verb(verbs: Any, name: str, text: str, *, change: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    add_site(parser)
    add_json(parser)
    if change:
        parser.add_argument('--force', action='store_true', help='also when it stops what is scheduled')
        parser.add_argument('--dry-run', action='store_true', help='only check')
        parser.add_argument('--revision', type=int, default=None, metavar='N',
                            help='refuse unless the topology is at this revision (default: the present one)')
    return parser


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or when no site runs here."""
    if args.verb == 'reset':
        return _reset(args.state)
    with open_session(args.timeout) as session:
        site = session.site(args.site)
        if args.verb in ('create', 'configure', 'destroy', 'reparent'):
            return _change(session, site, args)
        return _show(_listed(session, site, getattr(args, 'name', '')), args)


def parameters(settings: list[str], children: list[str] | None = None) -> str:
    """`--set` and `--children` as a YAML mapping. Raises `CliError`."""
    import yaml

    from ..site import SiteError, read_values

    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition('=')
        if not equals or not key.isidentifier():
            raise CliError(f'--set {setting}: must look like limit=sum', 2)
        try:
            values[key] = read_values(f'value: {text}')['value']
        except SiteError as error:
            raise CliError(f'--set {setting}: {error}', 2) from error
    shares = {}
    for child in children or []:
        name, equals, text = child.partition('=')
        try:
            share = float(text)
        except ValueError:
            raise CliError(f'--children {child}: must look like house=0.8', 2) from None
        shares[name] = dict.fromkeys(('energy', 'charge_power', 'discharge_power'), share)
    if shares:
        values['children'] = shares
    return yaml.safe_dump(values) if values else ''


def _listed(session: Session, site: str, name: str = '') -> Any:
    from bess.srv import ListBatteries

    answer = session.call(f'{site}/batteries/list', ListBatteries, ListBatteries.Request(name=name))
    if not answer.accepted:
        raise CliError(answer.message)
    return answer


def _change(session: Session, site: str, args: argparse.Namespace) -> int:
    from bess.srv import ChangeBattery

    request = ChangeBattery.Request(name=args.name, force=args.force, dry_run=args.dry_run, author=getpass.getuser())
    if args.verb == 'create':
        request.type, request.members = args.type, args.members
        request.parameters = parameters(args.set, args.children)
    elif args.verb == 'configure':
        request.parameters = parameters(args.set)
    elif args.verb == 'destroy':
        request.cascade = args.cascade
    else:
        request.parent = '' if args.to == 'none' else args.to
    request.revision = _listed(session, site).revision if args.revision is None else args.revision
    answer = session.call(f'{site}/batteries/{args.verb}', ChangeBattery, request,
                          deadline_s=max(WAIT_S, args.timeout), again=True)
    return accepted(answer.accepted, f'{site}: {answer.message}', json_values={
        'site': site, 'accepted': answer.accepted, 'revision': answer.revision,
        'message': answer.message} if args.json else None)


def _show(answer: Any, args: argparse.Namespace) -> int:
    nodes = [n for n in answer.nodes if n.role in ('battery', 'partition') or args.verb == 'inspect']
    if args.json:
        print_json({
            'revision': answer.revision, 'nodes': [_plain(n) for n in nodes], 'running': list(answer.running),
            'pending': list(answer.pending), 'history': list(answer.history), 'fragment': answer.fragment})
    elif args.verb == 'history':
        print('\n'.join(answer.history) or 'no changes: the topology is that of the site file')
    elif args.verb == 'export':
        print(answer.fragment or '# no changes: the topology is that of the site file')
    elif args.verb == 'inspect':
        node = nodes[0]
        print(f'{node.name}: {node.type} ({node.role}), process {node.process}, from: {node.origin}, '
              f'owner: {node.owner or "none"}')
        for label, texts in (('members', node.members), ('children', node.children), ('running', answer.running),
                             ('pending', answer.pending)):
            if texts:
                print(f'{label}: {", ".join(texts)}')
        print(node.parameters.rstrip() or 'no parameters of its own')
    else:
        print(text_table(['name', 'type', 'owner', 'made of', 'divided into', 'from'], [
            [n.name, n.type, n.owner or '-', ', '.join(n.members) or '-', ', '.join(n.children) or '-', n.origin]
            for n in nodes]))
        print(f'revision {answer.revision}', file=sys.stderr)
    return 0


def _plain(node: Any) -> dict[str, Any]:
    import yaml

    from .render import plain

    values: dict[str, Any] = plain(node)
    values['parameters'] = yaml.safe_load(node.parameters) or {}
    return values


def _reset(state: Path) -> int:
    from .. import overlay
    from .site_checks import is_running

    if is_running(state):
        raise CliError(f'{state}: the site is running; end it first')
    try:
        try:
            revision = overlay.read(state).revision
        except overlay.OverlayError as error:  # damaged: all the more reason
            print(error, file=sys.stderr)
            revision = -1
        if not revision:
            print(f'{state}: no changes are stored')
            return 0
        aside = overlay.reset(state, max(revision, 0))
    except overlay.OverlayError as error:
        raise CliError(str(error)) from error
    print(f'the site file holds alone from the next start; the changes are in {aside}')
    return 0
