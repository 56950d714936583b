"""`bess private`: take part in a private total (docs/private_totals.md) as a household."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .session import add_command, add_json, count, load_plugin, seconds

EXAMPLES = """
  bess private submit day.csv --collector battery.example.org:7450 --helper helper.example.net:7451 \\
      --authority ca.pem --certificate anna.pem             one W per line or "slot,W"; + = charging
  bess private result 1800057600 --collector ... --helper ...
  bess private withdraw 1800057600 --id 3f... --collector ... --helper ...
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'private', 'submit a day schedule that nobody sees but as part of a sum', __doc__,
                         EXAMPLES, run)
    parser.add_argument('action', choices=['submit', 'result', 'withdraw', 'terms'])
    parser.add_argument('value', nargs='?', default='', metavar='FILE|EPOCH',
                        help='submit: file of powers, - = stdin; result, withdraw: begin of the epoch (absolute s)')
    parser.add_argument('--collector', required=True, metavar='HOST:PORT', help='server beside the shared battery')
    parser.add_argument('--helper', required=True, metavar='HOST:PORT', help='second server')
    parser.add_argument('--realm', default='private', help='realm of both servers (default: %(default)s)')
    parser.add_argument('--authority', type=Path, required=True, metavar='FILE', help='ca.pem')
    parser.add_argument('--certificate', type=Path, required=True, metavar='FILE',
                        help='own client certificate, its key (.key) beside it')
    parser.add_argument('--epoch', type=count, default=0, metavar='S',
                        help='submit: begin of the epoch, absolute s (default: the next that is open)')
    parser.add_argument('--minimum', type=count, default=3, metavar='N',
                        help='submit: only if the servers need at least so many households (default: %(default)s)')
    parser.add_argument('--id', default='', help='withdraw: id of the submission')
    parser.add_argument('--timeout', type=seconds, default=10.0, metavar='S', help='longest wait for a server')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or not reached; 2 for wrong use."""
    return int(load_plugin('bess.virtual', 'private')(args))
