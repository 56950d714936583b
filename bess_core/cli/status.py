"""`bess status`: state, meters, batteries, converters, last decision and faults of the running sites."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .session import (
    CliError,
    Session,
    absolute,
    add_command,
    add_json,
    add_site,
    no_site,
    open_session,
    print_json,
)

EXAMPLES = """
  bess status                        all sites of this ROS domain
  bess status --site home            one of them
  bess status --json | jq '.batteries["/home/all"].soc'
"""
#: Topics whose first message is waited for; the others come when they come.
_AWAITED = ('bess/msg/BatteryStatus', 'bess/msg/MeterStatus', 'bess/msg/InverterStatus',
            'bess/msg/SystemState', 'bess/msg/FaultArray')


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'status', 'state of the running sites', __doc__, EXAMPLES, run)
    add_site(parser)
    add_json(parser, 'everything as one JSON object; unknown = null')


def run(args: argparse.Namespace) -> int:
    """0 with data, 1 when no site runs here."""
    with open_session(args.timeout) as session:
        observer, silent = observe(session, args.site)
        if args.json:
            print_json(snapshot(observer, silent))
        else:
            from .render import site_table

            print(site_table(observer))
        if silent:
            print(f'bess status: no message within {args.timeout:g} s on: {", ".join(silent)}',
                  file=sys.stderr)
    return 0


def awaited_topics(session: Session, namespace: str) -> dict[str, tuple[str, str]]:
    """Topics of a site (all with '') that a first message is expected on -> (owner, message class)."""
    out = {}
    for topic, types in session.node.get_topic_names_and_types():
        kind = next((t for t in types if t in _AWAITED), None)
        if kind and topic.startswith(f'{namespace}/') and session.node.count_publishers(topic):
            out[topic] = (topic.rsplit('/', 1)[0], kind.rsplit('/', 1)[-1])
    return out


def observe(session: Session, site: str) -> tuple[Any, list[str]]:
    """An observer that has seen what there is, and the topics that stayed silent.

    Raises `CliError` when there is no site."""
    from ..observer import SiteObserver

    namespace = absolute(site)
    heard: set[tuple[str, str]] = set()
    observer = SiteObserver(session.node, namespace,
                            listener=lambda name, m: heard.add((name, type(m).__name__)))

    def silent() -> list[str]:
        return sorted(t for t, key in awaited_topics(session, namespace).items() if key not in heard)

    def shown() -> bool:
        return bool(observer.states or observer.batteries or observer.meters or observer.converters or observer.faults)

    session.patiently(lambda wait: session.settle(
        lambda: shown() and not silent() and not session.undiscovered(namespace),
        lambda: (len(heard), len(observer.faults)), wait, look=observer.discover)
        or shown(), namespace)
    if not shown():
        others = [s for s in session.sites() if s != namespace]
        text = no_site(namespace)
        raise CliError(f'{text}; there is: {", ".join(others)}' if others else text)
    return observer, silent()


def snapshot(observer: Any, silent: list[str] | None = None) -> dict[str, Any]:
    """Everything an observer knows as JSON-able values (SI units, + = into the component)."""
    from .render import QUALITY, SEVERITY, STATES, plain

    now = time.monotonic()

    def group(seen: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for name, s in sorted(seen.items()):
            values = plain(s.message)
            values['age_s'] = round(now - s.at, 3)
            if hasattr(s.message, 'quality'):
                values['quality_name'] = QUALITY[s.message.quality].upper()
            out[name] = values
        return out

    sites = group(observer.states)
    for values in sites.values():
        values['state_name'] = STATES[values['state']]
    return {
        'sites': sites,
        'meters': group(observer.meters),
        'batteries': group(observer.batteries),
        'converters': group(observer.converters),
        'decisions': group(observer.traces),
        'faults': [{'site': site, 'severity_name': SEVERITY.get(f.severity, '?'), **plain(f)}
                   for site, f in observer.faults],
        'silent': silent or [],
    }
