"""`bess commission`: the checklist before a site is handed over, item by item with result and evidence."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import time
from collections.abc import Callable
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

from . import checks
from .commission_checks import FOLDER, OPEN, Item, Report, configured_limits, growing, load, signs
from .device import SOURCE, Watch, look, orders
from .device_checks import FAIL, OK, SKIP, WARN, Finding, followed
from .session import CliError, Session, add_command, add_json, add_timeout, open_session, print_json, seconds

EXAMPLES = """
  bess commission home_demo                    all items that are not done yet, without moving any power
  bess commission home_demo --power 400        also the signs: each converter charges and discharges with 400 W
  bess commission home_demo --power 400 --emergency    also the emergency stop: everything stops, then it is reset
  bess commission home_demo --again --item 'reads*'    some items anew
  bess commission home_demo --show             the report as it stands
The site must run. Items that are done are kept, so that the list can be gone on with later; a changed site file
starts it anew. The report is in the state folder of the site (commissioning/report.json and report.txt). The exit
code is 0 when the site is commissioned, 1 when an item failed or is open.
With --power the control mode is taken away meanwhile and given back afterwards; orders are leases of 2 s.
"""
WATCH_S = 3.0
MEAN_S = 1.5
REST_S = 15.0  # longest wait until nobody else commands a converter
DRIVERS = {'meter': 'meter', 'bms': 'battery', 'converter': 'converter', 'io': 'I/O module',
           'climate': 'climate device'}


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'commission', 'the commissioning checklist of a site', __doc__, EXAMPLES, run)
    parser.add_argument('site', metavar='SITE', help='site file, or name of an installed one')
    parser.add_argument('--state', type=Path, default=None, help='state folder of the site (default: as `bess up`)')
    parser.add_argument('--power', type=float, default=0.0, metavar='W', help='power of the sign check (default: none)')
    parser.add_argument('--hold', type=seconds, default=5.0, metavar='S', help='how long each order holds, s '
                        '(default: %(default)g)')
    parser.add_argument('--emergency', action='store_true', help='test the emergency stop, too')
    parser.add_argument('--item', action='append', default=[], metavar='GLOB', help='only these items')
    parser.add_argument('--again', action='store_true', help='also what is done already')
    parser.add_argument('--show', action='store_true', help='only show the report')
    parser.add_argument('--by', default='', help='who (default: the user)')
    add_timeout(parser)
    add_json(parser, 'the report as JSON')


def run(args: argparse.Namespace) -> int:
    """0 when commissioned, 1 when an item failed or is open."""
    from .. import site as site_module
    from .session import glob_choice
    from .site_checks import state_folder_of

    if args.power < 0.0:
        raise CliError('--power is a magnitude', 2)
    folder = state_folder_of(args.site, args.state)
    try:
        site = site_module.load(site_module.find(args.site), state=folder)
    except site_module.SiteError as error:
        raise CliError('; '.join(error.messages), 2) from error
    report, why = load(folder, site.name, hashlib.sha256(Path(site.path).read_bytes()).hexdigest())
    titles = checklist(site)
    if args.show:
        if not report.items:
            raise CliError('there is no report yet')
        return _end(report, folder, args)
    kept = {i.id: i for i in report.items}
    chosen = glob_choice(list(titles), args.item)
    if args.item and not chosen:
        raise CliError(f'no item fits; there is: {", ".join(titles)}', 2)
    report.merge(titles, again=False)
    if args.again:
        report.items = [Item(i.id, i.title) if i.id in chosen else kept.get(i.id, i) for i in report.items]
    if why and not args.json:
        print(why)
    with open_session(args.timeout) as session:
        namespace = session.site(site.name)
        work = Work(session, namespace, site, folder, args)
        try:
            for item in report.items:
                if item.id not in chosen or item.result != OPEN:
                    continue
                item.take(work.check(item.id), args.by or getpass.getuser(), time.time())
                if item.result == SKIP and work.postponed:
                    item.result = OPEN
                if not args.json:
                    print(f'[{item.result:<4}] {item.title}', *item.evidence, sep='\n         ', flush=True)
                _save(report, folder)
        finally:
            work.give_back()
    _save(report, folder)
    return _end(report, folder, args)


def _save(report: Report, folder: Path) -> None:
    try:
        report.save(folder)
    except OSError as error:
        raise CliError(f'the report cannot be written: {error}') from error


def _end(report: Report, folder: Path, args: argparse.Namespace) -> int:
    if args.json:
        print_json(report.values())
    elif args.show:
        print(report.text(), end='')
    else:
        left = [i.id for i in report.items if i.result == OPEN]
        bad = [i.id for i in report.items if i.result == FAIL]
        print(f'{report.site}: {report.verdict}' + (f'; failed: {", ".join(bad)}' if bad else '')
              + (f'; open: {", ".join(left)}' if left else '') + f'; report: {folder / FOLDER / "report.txt"}')
    return 0 if report.verdict == 'commissioned' else 1


def checklist(site: Any) -> dict[str, str]:
    """Item id -> title, of a loaded site file, in the order in which they are made."""
    out = {'clock': 'clock is synchronised', 'site': 'site runs and no required node is missing',
           'faults': 'no errors'}
    for n in site.nodes:
        if n.role in DRIVERS:
            out[f'reads.{n.name}'] = f'{DRIVERS[n.role]} {n.name} reads plausible values'
    for n in site.nodes:
        if n.role == 'bms':
            out[f'limits.{n.name}'] = f'limits of {n.name} are known'
    for n in site.nodes:
        if n.role == 'converter' and not getattr(n.params, 'read_only', False):
            out[f'signs.{n.name}'] = f'{n.name} follows a small setpoint, and battery and meter agree in sign'
    out['emergency_stop'] = 'emergency stop takes all power away and can be reset on the spot'
    out['recording'] = 'measurements are recorded'
    return out


class Work:
    """Carries the items out on a running site."""

    def __init__(self, session: Session, namespace: str, site: Any, folder: Path, args: argparse.Namespace) -> None:
        self.session, self.space, self.site, self.folder, self.args = session, namespace, site, folder, args
        self.nodes = {n.name: n for n in site.nodes}
        self.postponed = False  # the item needs an option that was not given
        self._watches: dict[str, Watch] = {}
        self._mode: str | None = None  # taken away; '' = there was none

    def check(self, item: str) -> list[Finding]:
        """Findings of one item."""
        self.postponed = False
        kind, _, name = item.partition('.')
        steps: dict[str, Callable[[str], list[Finding]]] = {
            'clock': self._clock, 'site': self._site, 'faults': self._faults, 'reads': self._reads,
            'limits': self._limits, 'signs': self._signs, 'emergency_stop': self._emergency,
            'recording': self._recording}
        try:
            return steps[kind](name)
        except CliError as error:
            return [Finding(FAIL, kind, str(error))]

    def give_back(self) -> None:
        """The control mode from before."""
        if self._mode:
            mode, self._mode = self._mode, None
            self._select(mode)

    def _postpone(self, option: str) -> list[Finding]:
        self.postponed = True
        return [Finding(SKIP, 'not made', f'give {option}')]

    def _node(self, role: str) -> Any:
        return next((n for n in self.site.nodes if n.role == role), None)

    def _watch(self, name: str) -> Watch:
        if name not in self._watches:
            self._watches[name] = Watch(self.session, f'{self.space}/{name}')
        return self._watches[name]

    @staticmethod
    def _rests(watch: Watch) -> bool:
        return watch.last is not None and abs(watch.power()) <= 100.0

    def _clock(self, _: str) -> list[Finding]:
        f = checks.clock()
        level = {'OK': OK, 'WARN': WARN, 'FAIL': FAIL}[f.level]
        return [Finding(level, f.name, f.text + (f'; {f.advice}' if f.advice else ''))]

    def _state(self) -> Any:
        from bess.msg import SystemState

        from .. import qos

        heard: list[Any] = []
        made = self.session.node.create_subscription(SystemState, f'{self.space}/system_state', heard.append, qos.STATE)
        self.session.until(lambda: heard)
        self.session.node.destroy_subscription(made)
        if not heard:
            raise CliError('the site does not say its state')
        return heard[-1]

    def _site(self, _: str) -> list[Finding]:
        from .render import STATES

        m = self._state()
        good = m.state in (1, 2) and not m.missing
        return [Finding(OK if good else FAIL, 'state', f'{STATES[m.state]} ({m.cause})'
                        + (f', missing: {", ".join(m.missing)}' if m.missing else ''))]

    def _faults(self, _: str) -> list[Finding]:
        from .faults import collect
        from .render import SEVERITY

        found = [f for _, f in collect(self.session, self.space) if f.active or f.latched]
        return [Finding(WARN if f.severity <= 1 else FAIL, f'{f.source} {f.id}',
                        f'{SEVERITY.get(f.severity, "?")}: {f.text}') for f in found] or [Finding(OK, 'faults', 'none')]

    def _reads(self, name: str) -> list[Finding]:
        found: list[Finding] = []
        look(self.session, self._watch(name), WATCH_S, lambda *fs: found.extend(fs))
        return found

    def _limits(self, name: str) -> list[Finding]:
        w = self._watch(name)
        if not self.session.until(lambda: w.last is not None):
            return [Finding(FAIL, 'reads', 'no status')]
        p = self.nodes[name].params
        return configured_limits(w.last, {k: float(getattr(p, k, nan)) for k in (
            'max_charge_current', 'max_discharge_current', 'max_charge_power', 'max_discharge_power')})

    # -- power

    def _select(self, mode: str) -> None:
        from bess.srv import SetMode

        site = self._node('site')
        answer = self.session.call(f'{self.space}/{site.name if site else "site"}/set_mode', SetMode,
                                   SetMode.Request(mode=mode or 'none'))
        if not answer.accepted:
            raise CliError(f'mode {mode or "none"}: {answer.message}')

    def _signs(self, name: str) -> list[Finding]:
        if not self.args.power:
            return self._postpone('--power W')
        state = self._state()
        if state.state != 1:
            return [Finding(FAIL, 'site', 'is not in RUN: start it, power flows only there')]
        if self._mode is None:
            self._mode = state.mode
            if state.mode:
                self._select('')
        manager = self._node('manager')
        bms = getattr(self.nodes[name].params, 'bms', '')
        names = {'converter': name, 'battery': bms, 'meter': manager.params.meter if manager is not None else ''}
        watches = {what: self._watch(n) for what, n in names.items() if n}
        power = abs(self.args.power)
        device = watches['converter']
        order = orders(self.session, f'{self.space}/{name}')
        try:
            # Whoever held it goes on until it is at rest, and its last lease has to end.
            end, holder = time.monotonic() + REST_S, ''
            while time.monotonic() < end and holder != SOURCE:
                order(0.0, 0.5)
                holder = device.last.setpoint_source if device.last is not None else ''
            if holder != SOURCE:
                return [Finding(FAIL, 'orders accepted', f'{holder} holds it' if holder else
                                'no: is the driver active, and not read_only? see `bess faults`')]
            order(-power, self.args.hold)
            low = {what: w.mean(MEAN_S) for what, w in watches.items()}
            first = followed(-power, low['converter'], max(0.2 * power, 50.0))
            order(power, self.args.hold)
            high = {what: w.mean(MEAN_S) for what, w in watches.items()}
            second = followed(power, high['converter'], max(0.2 * power, 50.0))
            limits = '; '.join(device.last.limit_reasons)
        finally:
            order(0.0, 1.0)
        limited = [Finding(WARN, 'limits', limits)] if limits else []
        return [first, second, *limited, *signs(name, 2.0 * power, {
            what: (names[what], high[what] - low[what]) for what in watches})]

    # -- emergency stop, recording

    def _emergency(self, _: str) -> list[Finding]:
        from bess.msg import EmergencyStop
        from bess.srv import ResetEmergencyStop, TriggerEmergencyStop

        from .. import qos
        from ..emergency import TOKEN

        node = self._node('emergency_stop')
        if node is None:
            return [Finding(WARN, 'emergency stop', 'the site has no node of type emergency_stop')]
        if not self.args.emergency:
            return self._postpone('--emergency')
        heard: list[Any] = []
        self.session.node.create_subscription(EmergencyStop, f'{self.space}/emergency_stop', heard.append, qos.STATE)
        by = self.args.by or getpass.getuser()
        at = time.monotonic()
        self.session.call(f'{self.space}/{node.name}/trigger', TriggerEmergencyStop,
                          TriggerEmergencyStop.Request(cause='commissioning', by=by))
        out = [Finding(OK if self.session.until(lambda: heard and heard[-1].active) else FAIL, 'pressed',
                       f'in force after {time.monotonic() - at:.1f} s')]
        for name in (n.name for n in self.site.nodes if n.role == 'converter'):
            w = self._watch(name)
            still = self.session.until(partial(self._rests, w), 10.0)
            out.append(Finding(OK if still else FAIL, name, f'{w.power():.0f} W'))
        try:
            token = (self.folder / TOKEN).read_text(encoding='ascii').strip()
        except OSError as error:
            return [*out, Finding(FAIL, 'reset', f'{error}: reset with `bess emergency reset` on the spot')]
        answer = self.session.call(f'{self.space}/{node.name}/reset', ResetEmergencyStop,
                                   ResetEmergencyStop.Request(token=token, by=by))
        out.append(Finding(OK if answer.accepted else FAIL, 'reset', answer.message))
        return out

    def _recording(self, _: str) -> list[Finding]:
        node = self._node('recorder')
        if node is None:
            return [Finding(WARN, 'recording', 'the site has no recorder')]
        folder = Path(str(node.params.directory).replace('${state}', str(self.folder)))

        def sizes() -> dict[str, int]:
            return {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob('*') if f.is_file()}

        before = sizes()
        self.session.until(lambda: sum(sizes().values()) > sum(before.values()), 20.0)
        return [growing(before, sizes(), 20.0)]

