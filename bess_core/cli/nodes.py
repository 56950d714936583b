"""`bess nodes`: the nodes that run, and the node types that a site file may use."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from .session import (
    CliError,
    Session,
    add_command,
    add_json,
    add_site,
    load_plugin,
    nearest,
    open_session,
    print_json,
    text_table,
)

EXAMPLES = """
  bess nodes                         lifecycle state, process group, sign of life, progress
  bess nodes types                   node types, drivers and modes known here
  bess nodes types jbd aggregate     their parameters: unit, allowed range, default, meaning
  bess nodes types --json            all of it for programs
"""
LIFECYCLE = {0: 'unknown', 1: 'unconfigured', 2: 'inactive', 3: 'active', 4: 'finalized'}
_GET_STATE = 'lifecycle_msgs/srv/GetState'


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'nodes', 'running nodes, known node types', __doc__, EXAMPLES, run)
    parser.add_argument('what', nargs='?', choices=['types'], default=None,
                        help='node types instead of running nodes')
    parser.add_argument('names', nargs='*', metavar='TYPE', help='types to show with their parameters')
    add_site(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when no site runs here or a type is not known."""
    if args.what == 'types':
        return _types(args)
    with open_session(args.timeout) as session:
        nodes = running(session, session.site(args.site))
    if args.json:
        print_json(nodes)
        return 0
    from .render import number, table

    def rate(node: dict[str, Any]) -> str:
        return '-' if node['progress_per_s'] is None else f'{node["progress_per_s"]:.1f} /s'

    print(table(['node', 'state', 'process', 'last heartbeat', 'progress', 'rate', 'faults'], [
        [n['name'], n['state'], n['process'] or '-',
         '-' if n['heartbeat_age_s'] is None else number(n['heartbeat_age_s'], 's', 2),
         '-' if n['progress'] is None else str(n['progress']), rate(n), str(n['faults'])]
        for n in nodes]))
    return 0


def running(session: Session, site: str) -> list[dict[str, Any]]:
    """Nodes of a site: those that give heartbeats and those that only offer lifecycle services."""
    from bess.msg import Heartbeat

    from ..observer import SiteObserver

    beats: dict[str, list[tuple[float, int]]] = {}  # full name -> (monotonic s, progress)

    def listen(name: str, message: Any) -> None:
        if isinstance(message, Heartbeat):
            beats.setdefault(f'{name}/{message.node}', []).append((time.monotonic(), message.progress))

    observer = SiteObserver(
        session.node, site, ('bess/msg/Heartbeat', 'bess/msg/FaultArray'), listener=listen)

    def managed() -> set[str]:
        return {service.rsplit('/', 1)[0] for service in session.services(_GET_STATE)
                if service.startswith(f'{site}/')}

    # Two heartbeats of every node: their difference is the rate of its progress.
    session.settle(lambda: managed() and all(len(beats.get(n, ())) > 1 for n in managed()),
                   lambda: (managed(), set(beats)), look=observer.discover, quiet=2.0)
    now = time.monotonic()
    faults: dict[str, int] = {}
    for space, fault in observer.faults:
        name = f'{space}/{fault.source}'
        faults[name] = faults.get(name, 0) + 1
    out = []
    for name in sorted(set(beats) | managed()):
        seen = observer.nodes.get(name)
        entry: dict[str, Any] = {'name': name, 'faults': faults.get(name, 0)}
        if seen is None:
            entry |= {'state': _ask_state(session, name), 'process': '', 'heartbeat_age_s': None,
                      'progress': None, 'progress_per_s': None}
        else:
            (t0, p0), (t1, p1) = beats[name][0], beats[name][-1]
            rate = round((p1 - p0) / (t1 - t0), 2) if t1 > t0 else None
            entry |= {'state': LIFECYCLE.get(seen.message.lifecycle, str(seen.message.lifecycle)),
                      'process': seen.message.group, 'heartbeat_age_s': round(now - seen.at, 3),
                      'progress': seen.message.progress, 'progress_per_s': rate}
        out.append(entry)
    return out


def _ask_state(session: Session, name: str) -> str:
    from lifecycle_msgs.srv import GetState

    try:
        answer = session.call(f'{name}/get_state', GetState, GetState.Request(), deadline_s=1.0)
    except CliError:
        return 'no answer'
    return str(answer.current_state.label)


# -- types ---------------------------------------------------------------------------------------


def _types(args: argparse.Namespace) -> int:
    from .. import site as site_module

    known = site_module.known_types()
    unknown = [n for n in args.names if n not in known]
    if unknown:
        raise CliError(f'no node type {unknown[0]!r}; close: {", ".join(nearest(unknown[0], known))}')
    described = [describe_type(name) for name in (args.names or known)]
    if args.json:
        print_json(described)
        return 0
    if not args.names:
        print(text_table(['type', 'kind', 'role', 'what it is'],
                         [[d['type'], d['kind'], d['role'] or '-', d['doc'] or d['error']] for d in described]))
        print('parameters: bess nodes types TYPE')
        return 0
    print('\n\n'.join(_type_text(d) for d in described))
    return 1 if any(d['error'] for d in described) else 0


def describe_type(name: str) -> dict[str, Any]:
    """A node type as plain values; `error` says why it cannot be loaded, '' when it can."""
    from .. import params, plugins
    from .. import site as site_module

    groups = (('node', plugins.NODES), ('driver', plugins.DRIVERS), ('battery', plugins.BATTERIES),
              ('mode', plugins.MODES))
    kind = next((k for k, group in groups if name in plugins.available(group)), '')
    out: dict[str, Any] = {'type': name, 'kind': kind, 'role': '', 'doc': '', 'error': '', 'parameters': []}
    try:
        cls = site_module.resolve_type(name)
    except plugins.PluginError as error:
        out['error'] = str(error)
        return out
    source = cls if kind == 'node' else load_plugin(f'bess.{kind}s', name)
    out['role'] = cls.role
    out['doc'] = (source.__doc__ or '').strip().split('\n')[0]
    for spec in params.specs(cls.Params):
        meta = spec.metadata
        out['parameters'].append({
            'name': spec.name, 'required': spec.required,
            'default': None if spec.required else _plain(spec.default), 'unit': meta.get('unit', ''),
            'min': _plain(meta.get('min')), 'max': _plain(meta.get('max')),
            'choices': list(meta['choices']) if 'choices' in meta else None,
            'names_a': meta.get('ref', ''), 'allowed': spec.allowed, 'doc': meta.get('doc', '')})
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _type_text(described: dict[str, Any]) -> str:
    head = f'{described["type"]} ({described["kind"]}, role {described["role"] or "-"}): '
    if described['error']:
        return head + described['error']
    lines = [head + described['doc']]
    for p in described['parameters']:
        unit = f' {p["unit"]}' if p['unit'] else ''
        default = 'required' if p['required'] else f'default {_default(p["default"])}{unit}'
        names = f' ({p["names_a"]} node)' if p['names_a'] else ''
        lines.append(f'  {p["name"]}: {p["allowed"]}{names}; {default}')
        if p['doc']:
            lines.append(f'      {p["doc"]}')
    return '\n'.join(lines)


def _default(value: Any) -> str:
    if value is None:
        return 'none'
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return f'{value:g}' if isinstance(value, float) else str(value)
