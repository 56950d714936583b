"""`bess`: run, watch and operate a site."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = ('up', 'sim', 'status', 'watch', 'nodes', 'faults', 'mode', 'call', 'schedule', 'battery', 'tree',
            'partition', 'record', 'replay', 'doctor', 'inject', 'certs', 'private', 'probe', 'device', 'events',
            'emergency', 'info', 'params', 'test', 'commission', 'climate')


class _AnyOrder(argparse.ArgumentParser):
    """Arguments and options in any order: `bess schedule house --site home list` is as good as the other way round."""

    _inside = False

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As the base class, which by itself gives an optional argument no second chance behind an option."""
        ordinary = any(a.nargs in (argparse.PARSER, argparse.REMAINDER) for a in self._get_positional_actions())
        if self._inside or ordinary:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code of the command (2 = wrong use or unusable site file)."""
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    parser = argparse.ArgumentParser(prog='bess', description='Operating system for battery energy storage.')
    parser.add_argument('--version', action='store_true', help='print the version and end')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', parser_class=_AnyOrder)
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
