"""`bess certs`: certificates for remote batteries and private totals, from an authority of one's own."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .session import CliError, add_command, add_json, positive, print_json, text_table

EXAMPLES = """
  bess certs init ~/bess-pki                                an authority: ca.pem, ca.key
  bess certs issue ~/bess-pki owner --server --host home.example.org --host 192.0.2.7
  bess certs issue ~/bess-pki alice --client                identity "alice": alice.pem, alice.key
  bess certs list ~/bess-pki                                what there is and when it ends
Keep the folder with ca.key offline; a party gets its own two files and ca.pem, over a channel you trust.
"""
SOON_DAYS = 30.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'certs', 'make certificates for TLS', __doc__, EXAMPLES, run)
    parser.add_argument('action', choices=['init', 'issue', 'list'])
    parser.add_argument('folder', type=Path, help='folder of the authority')
    parser.add_argument('name', nargs='?', default='', help='issue: common name of the new certificate')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--server', action='store_true', help='issue: for who is asked; needs --host')
    kind.add_argument('--client', action='store_true', help='issue: for who asks')
    parser.add_argument('--host', action='append', default=[], metavar='NAME',
                        help='issue: DNS name or address by which it is reached (repeatable)')
    parser.add_argument('--days', type=positive, default=None, metavar='N',
                        help='how long it is valid (default: 3650 for an authority, else 397)')
    parser.add_argument('--out', type=Path, default=None, metavar='FOLDER', help='issue: write there instead')
    parser.add_argument('--organisation', default='bess', help='init: name of the authority')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when it cannot be made; 2 for wrong use."""
    from .. import certs

    folder = args.folder.expanduser()
    try:
        if args.action == 'list':
            return _list(folder, args.json)
        if args.action == 'init':
            if args.name or args.server or args.client or args.host:
                raise CliError('init takes a folder only', 2)
            made = certs.init(folder, organisation=args.organisation, days=args.days or certs.CA_DAYS)
        else:
            if not args.name or args.server == args.client:
                raise CliError('issue needs a NAME and one of --server, --client', 2)
            made = certs.issue(folder, args.name, 'server' if args.server else 'client', hosts=args.host,
                               days=args.days or certs.LEAF_DAYS, out=args.out and args.out.expanduser())
        said = certs.facts(made.certificate)
    except certs.CertificateProblem as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f'{error.filename or folder}: {error.strerror or error}') from error
    if args.json:
        print_json({**vars(said), 'certificate': str(made.certificate), 'key': str(made.key)})
    else:
        print(f'{made.certificate}: {said.kind} "{said.name}", valid until {_day(said.ends)}\n'
              f'{made.key}: private key, give it to nobody')
    return 0


def _list(folder: Path, as_json: bool) -> int:
    from .. import certs

    found = [(path, certs.facts(path)) for path in sorted(folder.glob('*.pem'))]
    if as_json:
        print_json([{**vars(said), 'certificate': str(path)} for path, said in found])
        return 0
    if not found:
        raise CliError(f'no certificates in {folder}')
    now = time.time()
    print(text_table(['file', 'kind', 'name', 'valid until', '', 'names'], [
        [path.name, said.kind or '-', said.name, _day(said.ends), _state(said.ends - now), ' '.join(said.names)]
        for path, said in found]))
    return 0


def _day(at: float) -> str:
    return f'{datetime.fromtimestamp(at, UTC):%Y-%m-%d}'


def _state(left: float) -> str:
    if left <= 0.0:
        return 'EXPIRED'
    return f'{left / 86400.0:.0f} days left' if left < SOON_DAYS * 86400.0 else ''
