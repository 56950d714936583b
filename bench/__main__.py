"""`python -m bench [PART ...]`: measure, print, save. Parts: see `PARTS`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from .figures import RESULTS, save, table, write_readme
from .site import pin_domain

PARTS = ('allocation', 'control', 'grid_loop', 'optimiser', 'relay', 'stack', 'crowd', 'admission', 'ledger', 'modbus',
         'can_bus', 'emergency', 'site', 'day')


def main() -> int:
    """Exit code 0 when everything was measured; a goal that is not met is shown, not failed."""
    parser = argparse.ArgumentParser(prog='bench', description=__doc__)
    parser.add_argument('parts', nargs='*', choices=[*PARTS, []], help='what to measure (default: all)')
    args = parser.parse_args()
    os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')
    pin_domain()
    figures = []
    for part in args.parts or PARTS:
        print(f'measuring {part} ...', file=sys.stderr, flush=True)
        measured = importlib.import_module(f'bench.{part}').measure()
        save(measured)  # at once: a later part may fail
        figures += measured
    write_readme()
    print(table(figures))
    print(f'saved in {RESULTS}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
