"""`bess doctor`: can this machine, and this site, run? Each line says what it found and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .session import add_command, add_json, print_json

EXAMPLES = """
  bess doctor                        this machine
  bess doctor home_demo              and a site: file, devices, ports
  bess doctor site.yaml --json
Nothing is changed and nothing is sent to a device, except that its TCP port is opened and closed.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'doctor', 'check this machine and a site', __doc__, EXAMPLES, run)
    parser.add_argument('site', nargs='?', default='', metavar='SITE', help='site file, or installed site')
    parser.add_argument('--state', type=Path, default=None, metavar='DIR', help='state folder to check')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='override the site file')
    add_json(parser, 'all findings as a JSON list')


def run(args: argparse.Namespace) -> int:
    """0; 1 when something failed."""
    from .checks import Finding

    findings: list[Finding] = []
    width = len('discovery range')
    for finding in _all(args):
        findings.append(finding)
        if not args.json:
            print(f'{finding.level:<4}  {finding.name:<{width}}  {finding.text}', flush=True)
            if finding.advice:
                print(f'{"":<4}  {"":<{width}}  -> {finding.advice}', flush=True)
    failed = sum(f.level == 'FAIL' for f in findings)
    warned = sum(f.level == 'WARN' for f in findings)
    if args.json:
        print_json([{'level': f.level, 'name': f.name, 'text': f.text, 'advice': f.advice} for f in findings])
    else:
        print(f'{len(findings)} checks: {failed} failed, {warned} warnings')
    return 1 if failed else 0


def _all(args: argparse.Namespace) -> Iterator[Any]:
    from . import checks, site_checks

    steps: list[Callable[[], Any]] = [
        checks.python_version, checks.ros_import, checks.interfaces, checks.field_checks, checks.domain,
        checks.discovery_range, checks.middleware, checks.executor, checks.shared_memory, checks.plug_ins,
        checks.open_files, lambda: checks.state_folder(site_checks.state_folder_of(args.site, args.state)),
        lambda: checks.disk_space(site_checks.state_folder_of(args.site, args.state)), checks.clock,
        checks.serial_ports, checks.processors, checks.timer_lateness, checks.realtime]
    for step in steps:
        yield checks.guarded(step)
    if args.site:
        yield from site_checks.check_site(args.site, args.state, args.set)


