"""`bess`: run, watch and operate a site."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = ('up', 'sim', 'status', 'watch', 'nodes', 'faults', 'mode', 'call', 'schedule', 'battery', 'tree',
            'partition', 'record', 'replay', 'doctor', 'inject', 'certs', 'private', 'probe', 'device', 'events',
            'emergency', 'info', 'params', 'test', 'commission', 'climate')


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code of the command (2 = wrong use or unusable site file)."""
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    parser = argparse.ArgumentParser(prog='bess', description='Operating system for battery energy storage.')
    parser.add_argument('--version', action='store_true', help='print the version and end')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name in COMMANDS:
        importlib.import_module(f'bess_core.cli.{name}').add_parser(commands)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # said with the usage of the command, not of all
        getattr(args, 'parser', parser).error(f'unrecognized arguments: {" ".join(unknown)}')
    if args.version:
        from importlib.metadata import version

        print(version('bess'))
        return 0
    if not args.command:
        parser.print_help()
        return 2
    try:
        return int(args.run(args) or 0)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main())
