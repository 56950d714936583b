"""`bess sim`: run a site on simulated time, faster than real time, and sum up what happened."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .session import CliError, add_command, add_json, load_plugin, positive, print_json
from .words import span

EXAMPLES = """
  bess sim home_demo                       one day
  bess sim home_demo --hours 6 --tick 0.5
  bess sim site.yaml --days 30 --json --set simulation.seed=3
Same site file, same seed, same tick: same result. Journals go to a new folder that is removed again,
unless --state names one.
"""
SHOW_S = 1.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'sim', 'run a site on simulated time', __doc__, EXAMPLES, run)
    parser.add_argument('site', metavar='SITE', help='site file, or name of an installed one (e.g. home_demo)')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--days', type=positive, default=None, metavar='D', help='simulated days (default: 1)')
    length.add_argument('--hours', type=positive, default=None, metavar='H', help='simulated hours')
    parser.add_argument('--tick', type=positive, default=1.0, metavar='S',
                        help='step of physics and control, s (default: 1)')
    parser.add_argument('--state', type=Path, default=None, metavar='DIR', help='keep journals in this folder')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override the site file, e.g. simulation.seed=3')
    parser.add_argument('--middleware', action='store_true',
                        help='send messages through DDS, as on a running site: slower, the same result')
    parser.add_argument('--quiet', action='store_true', help='no progress on stderr')
    add_json(parser, 'the summary as JSON; unknown = null')


def run(args: argparse.Namespace) -> int:
    """0; 1 when the run failed; 2 for a site that cannot be used or simulated."""
    if args.state is not None:
        return _run(args, args.state.absolute())
    with tempfile.TemporaryDirectory(prefix='bess-sim-') as folder:
        return _run(args, Path(folder))


def _run(args: argparse.Namespace, state: Path) -> int:
    from .. import log
    from .. import site as site_module

    try:
        site = site_module.load(site_module.find(args.site), overrides=args.set, state=state)
    except site_module.SiteError as error:
        print(error, file=sys.stderr)
        return 2
    hours = args.hours if args.hours is not None else 24.0 * (args.days if args.days is not None else 1.0)
    from ..supervisor import lock_state

    try:
        lock_state(state)
    except BlockingIOError:
        raise CliError(f'{state}: a site is running with this state folder') from None
    log.setup(state / 'log', 'sim', level=site.params.log_level, console='error')
    simulate = load_plugin('bess.simulation', 'conductor')
    progress = Progress(hours * 3600.0, quiet=args.quiet)
    try:
        result = simulate(site, state, hours=hours, tick=args.tick, progress=progress, middleware=args.middleware)
    except ValueError as error:  # the site cannot be simulated; says why
        raise CliError(str(error), 2) from error
    finally:
        progress.close()
    if args.json:
        print_json(finite(result))
    else:
        for key, value in result.items():
            print(f'{LABELS.get(key, key)}: {_text(value)}')
    if result['simulated_s'] < hours * 3600.0 - args.tick:
        print(f'bess sim: interrupted after {span(result["simulated_s"])}', file=sys.stderr)
        return 130
    return 0


#: Keys of the summary in words, with units.
LABELS = {
    'nodes_active': 'active nodes', 'control_ticks': 'control ticks', 'limit_violations': 'limit violations',
    'tick_jitter_p99_ms': 'tick jitter p99, ms', 'faults': 'faults', 'energy_import_wh': 'energy imported, Wh',
    'energy_export_wh': 'energy exported, Wh', 'soc': 'SoC at the end, 0..1', 'simulated_s': 'simulated time, s',
    'wall_s': 'real time, s', 'speed': 'speed, times real time'}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{k} {_text(v)}' for k, v in value.items()) or 'none'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(str, value)) or 'none'
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '-'
    return str(value)


def finite(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Progress on stderr: one line that changes on a terminal, a line each 10 % otherwise."""

    def __init__(self, total_s: float, *, quiet: bool = False) -> None:
        self._total, self._quiet = total_s, quiet
        self._live = sys.stderr.isatty()
        self._started = time.monotonic()
        self._shown = -math.inf
        self._tenth = 0
        self._drawn = False

    def __call__(self, fraction: float, sim_seconds: float) -> None:
        """`fraction` 0..1 of the run, `sim_seconds` simulated so far."""
        now = time.monotonic()
        if self._quiet or (self._live and now - self._shown < SHOW_S):
            return
        if not self._live and int(fraction * 10) <= self._tenth:
            return
        self._shown, self._tenth = now, int(fraction * 10)
        ran = max(now - self._started, 1e-6)
        text = (f'{fraction * 100:.0f} %, {span(sim_seconds)} of {span(self._total)} simulated, '
                f'{sim_seconds / ran:.0f} times real time')
        if self._live:
            print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)
            self._drawn = True
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._drawn:
            print(file=sys.stderr)
