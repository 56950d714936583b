"""`bess probe`: what answers at an address? Prints a part of a site file; writes nothing to the device."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .session import CliError, add_command, add_json, load_plugin, positive, print_json

EXAMPLES = """
  bess probe tcp://192.168.1.9:502               a Modbus TCP device or gateway
  bess probe tcp://192.168.1.9 --units 1-20
  bess probe rtu:/dev/ttyUSB0?baud=19200         Modbus units on a serial line
  bess probe serial:/dev/ttyUSB0                 serial battery management systems, then Modbus
  bess probe can:can0                            listens on a CAN bus
Only reads are sent (on CAN nothing at all). The exit code is 1 when nothing was recognised.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'probe', 'find out which devices answer', __doc__, EXAMPLES, run)
    parser.add_argument('address', metavar='ADDRESS', help='tcp://host:port, rtu:/dev/..., serial:/dev/..., can:...')
    parser.add_argument('--units', type=units, default=(), metavar='LIST', help='Modbus unit ids, e.g. 1,3,10-20')
    parser.add_argument('--timeout', type=positive, default=0.3, metavar='S',
                        help='longest wait for one answer, s (default: %(default)g)')
    add_json(parser, 'what was found as a JSON list')


def units(text: str) -> tuple[int, ...]:
    """Unit ids as an argparse type."""
    out: list[int] = []
    for part in text.split(','):
        first, dash, last = part.partition('-')
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f'{text!r} is not like 1,3,10-20')
        low, high = int(first), int(last if dash else first)
        if high > 255:
            raise argparse.ArgumentTypeError(f'{text!r}: units are 0 to 255')
        out += range(low, high + 1)
    return tuple(dict.fromkeys(out))


def run(args: argparse.Namespace) -> int:
    """0; 1 when nothing was recognised."""
    probe, fragment = (load_plugin('bess.commissioning', name) for name in ('probe', 'fragment'))
    try:
        found = probe(args.address, args.units, args.timeout, lambda text: print(text, file=sys.stderr, flush=True))
    except ValueError as error:
        raise CliError(str(error), 2) from error
    except Exception as error:
        if not hasattr(error, 'kind'):  # a DeviceError of bess_drivers
            raise
        raise CliError(f'{args.address}: {error}') from error
    if args.json:
        print_json([{'type': f.type, 'name': f.name, 'address': f.address, 'manufacturer': f.identity.manufacturer,
                     'model': f.identity.model, 'serial': f.identity.serial, 'version': f.identity.version,
                     'settings': f.settings, 'notes': list(f.notes)} for f in found])
    elif found:
        print(fragment(found), end='')
    else:
        print('nothing here that is known', file=sys.stderr)
    return 0 if found else 1
