"""What `bess private` does."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bess_core import certs
from bess_core.cli import words
from bess_core.cli.session import CliError, print_json

from .private_client import PrivateError, Servers, next_epoch
from .private_sum import ShareError
from .remote_link import LinkError, Tls


def run(args: argparse.Namespace) -> int:
    """0, or raises `CliError`."""
    certificate = args.certificate.expanduser()
    tls = Tls(args.authority.expanduser(), certs.Pair(certificate, certificate.with_suffix('.key')))
    powers = _powers(args.value) if args.action == 'submit' else []
    epoch = 0 if args.action in ('submit', 'terms') else _epoch(args.value)
    if args.action == 'withdraw' and not args.id:
        raise CliError('withdraw needs --id, as printed by submit', 2)
    try:
        with Servers(args.collector, args.helper, args.realm, tls, args.timeout) as servers:
            return _do(args, servers, powers, epoch)
    except (PrivateError, ShareError, LinkError) as error:
        raise CliError(str(error)) from error


def _do(args: argparse.Namespace, servers: Servers, powers: list[float], epoch: int) -> int:
    if args.action == 'terms':
        values = asdict(servers.terms())
        text = ', '.join(f'{k} {v}' for k, v in values.items())
    elif args.action == 'submit':
        epoch = args.epoch or next_epoch(servers.terms(), time.time())
        name = servers.submit(epoch, powers, minimum=args.minimum)
        values = {'epoch': epoch, 'submission': name}
        text = f'submitted for epoch {_begin(epoch)} as {name}'
    elif args.action == 'withdraw':
        servers.withdraw(epoch, args.id)
        values, text = {'epoch': epoch, 'submission': args.id}, f'withdrawn from epoch {_begin(epoch)}'
    else:
        values = servers.result(epoch)
        if values['included'] or values.get('added_up'):
            part = f'with{"" if values["included"] else "out"} this household'
        else:
            part = f'submitted as {values["submission"]}' if values['submission'] else 'nothing of this household'
        text = f'epoch {_begin(epoch)}: {values["state"]} ({part})' + (
            f': {values["message"]}' if values['message'] else '')
    if args.json:
        print_json(values)
    else:
        print(text)
    return 0 if values.get('state') != 'refused' else 1


def _begin(epoch: int) -> str:
    return f'{epoch} ({words.local(epoch)})'


def _epoch(text: str) -> int:
    if not text.isdecimal():
        raise CliError(f'{text!r} is not the begin of an epoch in absolute s', 2)
    return int(text)


def _powers(name: str) -> list[float]:
    if not name:
        raise CliError('submit needs a file of powers', 2)
    try:
        text = sys.stdin.read() if name == '-' else Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f'{name}: {error}') from error
    powers: list[float] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split('#')[0].split(',')
        if cells == [''] or not any(c.strip() for c in cells):
            continue
        try:
            if len(cells) > 2 or (len(cells) == 2 and int(cells[0]) != len(powers)):
                raise ValueError
            powers.append(float(cells[-1]))
        except ValueError:
            raise CliError(f'{name}, line {number}: {line.strip()[:40]!r} is not a power in W, nor '
                           f'"{len(powers)},W"', 2) from None
    return powers
