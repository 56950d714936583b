"""A simulated site in a process of its own: `python -m bench.day_run chain|graph SITE`, one line of JSON at the end.

With `PYTHONPATH=build/native` before it, with the compiled modules (`make native`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from bess_core import site as site_module
from bess_sim.conductor import simulate

from . import chain
from .figures import settled


def main() -> int:
    """Exit code 0; a site that cannot be simulated raises ValueError."""
    parser = argparse.ArgumentParser(prog='bench.day_run', description=__doc__)
    parser.add_argument('way', choices=('chain', 'graph'), help='pure functions alone, or the node graph')
    parser.add_argument('site', type=Path, help='site file')
    parser.add_argument('--hours', type=float, default=24.0, help='simulated time in h (default: 24)')
    parser.add_argument('--tick', type=float, default=1.0, help='control tick in s (default: 1)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, settled():
        site = site_module.load(args.site, variables={'state': folder})
        started = time.process_time()
        if args.way == 'chain':
            result = chain.simulate_chain(site, hours=args.hours, tick=args.tick)
        else:
            result = simulate(site, Path(folder), hours=args.hours, tick=args.tick)
        cpu_s = time.process_time() - started
    print(json.dumps({**result, 'cpu_s': cpu_s, 'compiled': not str(chain.__file__).endswith('.py')}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
