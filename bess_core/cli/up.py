"""`bess up`: run a site with its simulated devices, if it has some, until Ctrl-C or for a time."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .. import log
from .. import site as site_module
from ..site import Site, SiteError

TABLE_S, BRIEF_S, DISCOVER_S = 1.0, 5.0, 0.2
BENCH_READY_S = 20.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser('up', help='run a site', description=__doc__)
    parser.add_argument('site', help='site file, or name of an installed one (e.g. home_demo)')
    parser.add_argument('--for', dest='seconds', type=float, default=0.0, metavar='SECONDS',
                        help='end in order by itself after this time')
    parser.add_argument('--json', action='store_true', help='the last line is the summary as one JSON object')
    parser.add_argument('--state', type=Path, default=None, help='folder for journals, logs and recordings '
                        '(default: $XDG_STATE_HOME/bess/<site>)')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override the site file, e.g. nodes.meter.address=tcp://192.168.1.9:502')
    parser.add_argument('--no-sim', action='store_true', help='do not start the simulated devices of the file')
    parser.add_argument('--table', choices=['auto', 'full', 'brief', 'off'], default='auto',
                        help='live table: full on a terminal, a brief line each 5 s otherwise')
    parser.add_argument('--check', action='store_true', help='check the site file and end')
    parser.set_defaults(run=run)


def default_state(name: str) -> Path:
    """State folder of a site."""
    base = os.environ.get('XDG_STATE_HOME') or str(Path.home() / '.local' / 'state')
    return Path(base) / 'bess' / name


def load_site(args: argparse.Namespace) -> tuple[Site, Path]:
    """Checked site and its state folder. Raises `SiteError`."""
    path = site_module.find(args.site)
    state = args.state.absolute() if args.state else None
    probe = state or default_state(path.stem)
    site = site_module.load(path, overrides=args.set, state=probe,
                            check_simulation=not args.no_sim)
    return site, probe


def changes(site: Site) -> str:
    """What was changed at run time, in one line."""
    o = site.overlay
    parts = (('created', o.created), ('changed', o.changed), ('removed', o.removed))
    what = '; '.join(f'{word} {", ".join(names)}' for word, names in parts if names)
    return f'topology revision {o.revision}, on top of the site file: {what or "as in the file"}'


def run(args: argparse.Namespace) -> int:
    """Run; exit code 0 after an orderly end, 2 for a site file that cannot be used, 1 for a failed start."""
    try:
        site, state = load_site(args)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        print(f'{site.path}: ok, {len(site.nodes)} nodes in {len(site.processes)} processes')
        if site.overlay.revision:
            print(changes(site))
        return 0
    from ..supervisor import lock_state
    from .running import announce, earlier

    try:
        lock_state(state)
    except BlockingIOError:
        print(f'{state}: this site is already running with this state folder', file=sys.stderr)
        return 1
    log.setup(state / 'log', 'supervisor', level=site.params.log_level, console='warning')
    try:
        announce(site.namespace, state, site.processes)
    except OSError as error:  # commands then find it by discovery only, which takes some seconds
        log.get(f'{site.name}/up').warning('the site is not noted as running', reason=str(error))
    other = earlier(site.namespace)
    if other is not None:
        print(f'{site.namespace}: a site of this name runs already in ROS domain {other.domain} (process {other.pid}, '
              f'state folder {other.state}); its nodes would take the orders of this one and the other way round. '
              'Give one of them another name or ROS_DOMAIN_ID', file=sys.stderr)
        return 1
    return _Up(site, state, args).run()


class _Up:
    def __init__(self, site: Site, state: Path, args: argparse.Namespace) -> None:
        self.site, self.state, self.args = site, state, args
        self.bench: subprocess.Popen[bytes] | None = None
        self.log = log.get(f'{site.name}/up')

    def run(self) -> int:
        # The bench is started first: devices and nodes come up side by side.
        if self.site.simulation and not self.args.no_sim:
            self._start_bench()
        from rclpy.node import Node

        from ..clock import Clock
        from ..observer import DEFAULT, SiteObserver
        from ..runtime import Runtime
        from ..supervisor import Supervisor
        from ..ticker import RealTicker
        from .summary import Summary

        with Runtime() as runtime:
            node = Node('supervisor', namespace=self.site.namespace, start_parameter_services=False,
                        enable_rosout=False)
            runtime.executor.add_node(node)
            summary = Summary(grid_meter=self._grid_meter())
            observer = SiteObserver(node, self.site.namespace, DEFAULT, summary.take)
            supervisor = Supervisor(self.site, self.state, node, site_arguments=self._set_arguments())
            ticker = RealTicker(Clock(), runtime.post)
            ticker.every(0.05, lambda _: None)
            ticker.every(DISCOVER_S, lambda _: observer.discover())
            started = time.monotonic()
            supervisor.start()
            shown = _Display(self.args, observer, self.state, self.site)
            ticker.every(0.25, lambda _: shown.update(supervisor, self._bench_died()))
            ended = True
            try:
                ended = runtime.spin(self.args.seconds if self.args.seconds > 0 else 1e9)
            finally:
                active = supervisor.active_nodes
                self.log.info('site ends', ran_s=round(time.monotonic() - started, 1))
                shown.close()
                ticker.stop()
                supervisor.stop()
                self._stop_bench()
                runtime.drop(node)
        summary.faults_seen |= supervisor.faults
        result = summary.result(active)
        if not self.args.json:
            print(f'ended in order: {result}')
        else:
            print(json.dumps(result), flush=True)
        return 0 if ended or self.args.seconds > 0 else 1

    def _grid_meter(self) -> str:
        """Full name of the meter that the power manager looks at; of the first one without a manager."""
        named = [n.params.meter for n in self.site.nodes if n.role == 'manager' and n.params.meter]
        meters = named or [n.name for n in self.site.nodes if n.role == 'meter']
        return f'{self.site.namespace}/{meters[0]}' if meters else ''

    def _set_arguments(self) -> list[str]:
        return [word for setting in self.args.set for word in ('--set', setting)]

    def _start_bench(self) -> None:
        folder = self.state / 'sim'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        simulation = folder / 'simulation.json'
        simulation.write_text(json.dumps({'simulation': self.site.simulation}, default=str))
        self.bench = subprocess.Popen(
            [sys.executable, '-m', 'bess_sim.bench', str(simulation), '--run-dir', str(folder)],
            start_new_session=True)

    def _bench_died(self) -> str:
        if self.bench is not None and self.bench.poll() is not None:
            return f'simulated devices ended with code {self.bench.returncode}'
        return ''

    def _stop_bench(self) -> None:
        if self.bench is None or self.bench.poll() is not None:
            return
        self.bench.send_signal(signal.SIGTERM)
        try:
            self.bench.wait(5.0)
        except subprocess.TimeoutExpired:
            self.bench.kill()
            self.bench.wait()


class _Display:
    """What people see while the site runs."""

    def __init__(self, args: argparse.Namespace, observer: Any, state: Path, site: Site) -> None:
        mode = args.table
        if mode == 'auto':
            mode = 'full' if sys.stdout.isatty() and not args.json else 'brief'
        self._mode, self._observer, self._state, self._site = mode, observer, state, site
        self._last = 0.0
        self._announced = False
        self._troubled = False
        self._lines = 0
        self._started = time.monotonic()
        self._out = sys.stderr if args.json else sys.stdout

    def update(self, supervisor: Any, trouble: str) -> None:
        """Called a few times a second."""
        from .render import brief, site_table

        now = time.monotonic()
        if trouble and not self._troubled:
            self._troubled = True
            print(trouble, file=sys.stderr)
        if not self._announced and supervisor.all_active:
            self._announced = True
            print(f'site {self._site.name}: {supervisor.active_nodes} nodes active after '
                  f'{now - self._started:.1f} s; state folder {self._state}', file=self._out)
            for line in self._urls():
                print(line, file=self._out)
            if self._site.overlay.revision:
                print(changes(self._site), file=self._out)
            self._out.flush()
        period = TABLE_S if self._mode == 'full' else BRIEF_S
        if self._mode == 'off' or now - self._last < period:
            return
        self._last = now
        if self._mode == 'brief':
            print(brief(self._observer), file=self._out, flush=True)
            return
        text = site_table(self._observer)
        urls = '\n'.join(self._urls())
        screen = f'{text}\n{urls}\nCtrl-C stops the site in order.'
        print(f'\x1b[{self._lines}F\x1b[J' * bool(self._lines) + screen, file=self._out, flush=True)
        self._lines = screen.count('\n') + 1

    def _urls(self) -> list[str]:
        out = []
        for file in sorted(self._state.glob('*.url')):
            url = file.read_text().strip()
            out.append(f'{file.stem}: {url}')
        password = self._state / 'dashboard-password.txt'
        if password.exists():
            out.append(f'dashboard login: password in {password}')
        return out

    def close(self) -> None:
        """Leave the table where it is."""
        self._out.flush()
