"""System node: what is to know about the system, and its parameters with validation, history and way back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bess.msg import BatteryStatus, Event, SiteParameter, SystemInfo, SystemState
from bess.srv import GetSystemInfo, ListSiteParameters, SetSiteParameter
from bess_core import params, qos, site_changes
from bess_core import site as site_module
from bess_core.clock import split_stamp
from bess_core.context import NodeContext
from bess_core.convert import HEADER, battery_from_msg, wall_stamp
from bess_core.files import replace_file
from bess_core.messages import maker, same
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Quality, Severity

from ..protection.monitors import ChargeCount
from ..site_state import SiteState
from .record import SystemRecord, boot_time, restored

SAVE_S = 60.0  # how often the record goes to the disk; a power cut loses at most so much runtime


@dataclass(frozen=True)
class SystemParams:
    """Parameters of the system node."""

    battery: str = param('', '', 'battery that full charges and the balance history are taken from', ref='bms')
    serial: str = param('', '', 'serial number of the system; empty = that of the machine, where it has one')
    period: float = param(1.0, 's', 'how often the information is brought up to date', low=0.1, high=60.0)

_info = maker(SystemInfo, 'lasting, r, state, mode, soc, soh, soc_correction, sec, nanosec, frame', {
    **HEADER, **same('lasting', 'version', 'site', 'serial', 'boot', 'started', 'features', 'balance_times',
                     'balance_spread'),
    'starts': 'r.starts', 'runtime': 'float(r.runtime)', 'sleep_time': 'float(r.sleep_time)',
    **{name: f'stamp(r.{name})' for name in ('last_mode_change', 'last_state_change', 'last_full_charge',
                                             'last_empty')}}, stamp=wall_stamp)


class SystemNode(BessNode):
    """`~/info` (latched), `~/get_info`, `~/list_parameters`, `~/set_parameters`."""

    Params: ClassVar[type] = SystemParams
    role: ClassVar[str] = 'system'
    ros_parameters: ClassVar[bool] = False

    def __init__(self, name: str, parameters: Any, ctx: NodeContext) -> None:
        super().__init__(name, parameters, ctx)
        self._file = ctx.state_dir / f'{name}.json'
        self._record = self._restore()
        self._record.starts += 1
        self._started = self.clock.wall()

    def on_bess_configure(self) -> None:
        """Listen and count."""
        topic = self.ctx.topic
        self._count = ChargeCount()
        self._state: SystemState | None = None
        self._soc = self._soh = nan
        self._last = self._saved_at = self.clock.now()
        self._boot = boot_time(_text('/proc/stat'))
        self._serial = self.params.serial or _text('/sys/firmware/devicetree/base/serial-number').strip('\0\n')
        self._busy = False
        self._lasting: SystemInfo | None = None  # what (nearly) never changes; messages share its parts
        self._version = version('bess')  # read from files
        self._info = self.create_publisher(SystemInfo, '~/info', qos.STATE)
        self._events = self.create_publisher(Event, topic('events'), qos.EVENT)
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            (self.destroy_publisher, self._info), (self.destroy_publisher, self._events),
            (self.destroy_subscription, self.create_subscription(SystemState, topic('system_state'), self._on_state,
                                                                 qos.STATE)),
            (self.destroy_service, self.create_service(GetSystemInfo, '~/get_info', self._on_get_info)),
            (self.destroy_service,
             self.create_deferred_service(ListSiteParameters, '~/list_parameters', self._on_list)),
            (self.destroy_service, self.create_deferred_service(SetSiteParameter, '~/set_parameters', self._on_set)),
        ]
        if self.params.battery:
            self._own.append((self.destroy_subscription, self.create_subscription(
                BatteryStatus, topic(f'{self.params.battery}/status'), self._on_battery, qos.MEASUREMENT)))
        self.every(self.params.period, self._tick, phase=2)

    def on_bess_cleanup(self) -> None:
        """Keep what was counted."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        if getattr(self, '_own', []):
            self._save()
        self._own = []

    # -- information -------------------------------------------------------------------------------

    def _on_state(self, m: SystemState) -> None:
        old, self._state = self._state, m
        at = m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 or self.clock.wall()
        if old is None or old.state != m.state:
            self._record.last_state_change = max(at, 0.0)
        if old is not None and old.mode != m.mode:
            self._record.last_mode_change = self.clock.wall()

    def _on_battery(self, m: BatteryStatus) -> None:
        r = battery_from_msg(m, self.clock)
        if r.quality is not Quality.OK:
            return
        self._soc, self._soh = r.soc, r.soh
        self._count.update(r.soc, r.current, r.charge_full, r.time)
        self._record.battery(r.soc, r.cell_voltage_max - r.cell_voltage_min, r.current, self.clock.wall())

    def _tick(self, _: Tick) -> None:
        now = self.clock.now()
        self.progress += 1
        self._record.step(now - self._last, self._state is not None and self._state.state == SiteState.SLEEP)
        self._last = now
        if now - self._saved_at >= SAVE_S:
            self._saved_at = now
            self._save()
        self._info.give(self._message())

    def _on_get_info(self, _: GetSystemInfo.Request, response: GetSystemInfo.Response) -> GetSystemInfo.Response:
        response.info = self._message()
        return response

    def _message(self) -> SystemInfo:
        r, s, site = self._record, self._state, self.ctx.site
        lasting = self._lasting
        if lasting is None:
            features = site.params.features if site is not None else {}
            lasting = self._lasting = SystemInfo(
                version=self._version, site=site.name if site is not None else self.ctx.namespace.strip('/'),
                serial=self._serial, features=[f'{n}={"on" if on else "off"}' for n, on in sorted(features.items())],
                boot=wall_stamp(self._boot), started=wall_stamp(self._started))
            self._balance_shown: tuple[float, ...] = ()
        balance: tuple[float, ...] = (len(r.balance), *r.balance[-1]) if r.balance else ()
        if balance != self._balance_shown:  # a row per day, over a year of them: only the last one ever changes
            self._balance_shown = balance
            lasting.balance_spread = [v for _, v in r.balance]
            lasting.balance_times = [wall_stamp(t) for t, _ in r.balance]
        state, mode = (SiteState(s.state).name, s.mode) if s is not None else ('', '')
        return _info(lasting, r, state, mode, self._soc, self._soh, float(self._count.correction),  # type: ignore[no-any-return]
                     *split_stamp(self.clock.wall()), '')

    def _save(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(self._record.to_dict()))
            self.clear_fault('system.save')
        except OSError as error:
            self.raise_fault('system.save', Severity.WARNING, f'{self._file} cannot be written: {error}')

    def _restore(self) -> SystemRecord:
        try:
            return restored(json.loads(self._file.read_text(encoding='utf-8')))
        except FileNotFoundError:
            return SystemRecord()
        except (ValueError, OSError) as error:
            self.log.error('the record of the system cannot be read; counting starts anew', error=str(error))
            return SystemRecord()

    # -- parameters --------------------------------------------------------------------------------

    def _in_thread(self, work: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Reading and checking files is nothing for the executor."""
        def run() -> None:
            result = work()
            self.ctx.post(lambda: answer(result))

        threading.Thread(target=run, name='site_parameters', daemon=True).start()

    def _on_list(self, request: ListSiteParameters.Request, answer: Any) -> None:
        running, folder = self.ctx.site, self.ctx.state_dir

        def work() -> ListSiteParameters.Response:
            response = ListSiteParameters.Response()
            if running is None:
                response.problems = ['no site file']
                return response
            try:
                changes = site_changes.load(folder)
                site, plain = (_load(running.path, folder, s) for s in (changes.values(), {}))
            except (site_changes.ChangesError, site_module.SiteError, AttributeError) as error:
                response.problems = str(error).splitlines()
                return response
            if request.history:
                response.parameters = [
                    SiteParameter(name=n, value=v, revision=c.revision, changed=wall_stamp(c.time), changed_by=c.by,
                                  comment=c.comment)
                    for c in changes.history for n, v in c.values.items() if fnmatchcase(n, request.pattern or '*')]
                return response
            found, defaults, runs = _parameters(site), _parameters(plain), _parameters(running)
            made = changes.at()
            for name, p in found.items():
                if not fnmatchcase(name, request.pattern or '*'):
                    continue
                p.default_value = defaults[name].value if name in defaults else ''
                p.pending = name not in runs or runs[name].value != p.value
                if name in made:
                    c = made[name]
                    p.revision, p.changed, p.changed_by, p.comment = c.revision, wall_stamp(c.time), c.by, c.comment
                response.parameters.append(p)
            return response

        self._in_thread(work, answer)

    def _on_set(self, request: SetSiteParameter.Request, answer: Any) -> None:
        running, folder, wall = self.ctx.site, self.ctx.state_dir, self.clock.wall()
        if self._busy:
            answer(SetSiteParameter.Response(message='another change is being checked'))
            return
        self._busy = True

        def work() -> tuple[SetSiteParameter.Response, Any]:
            try:
                if running is None:
                    raise ValueError('no site file')
                change = _checked_change(request, running.path, folder, wall)
                site_changes.append(folder, change)
            except (ValueError, OSError, site_module.SiteError) as error:
                return SetSiteParameter.Response(message=f'refused: {error}'), None
            return SetSiteParameter.Response(
                accepted=True, revision=change.revision,
                message=f'revision {change.revision} recorded; takes effect when the site starts again'), change

        def done(result: tuple[SetSiteParameter.Response, Any]) -> None:
            self._busy = False
            response, change = result
            if change is not None:
                text = ', '.join(f'{n} = {v or "as in the site file"}' for n, v in change.values.items())
                self.log.info('parameters', revision=change.revision, by=change.by, values=text, comment=change.comment)
                event = Event(kind='parameter', source=self.get_name(), name=f'revision {change.revision}',
                              change='entered', text=f'{text} (by {change.by}) {change.comment}'.strip())
                event.header.stamp = wall_stamp(wall)
                self._events.publish(event)
            answer(response)

        self._in_thread(work, done)


def _checked_change(request: Any, path: Path, folder: Path, wall: float) -> site_changes.Change:
    """The change that a request means, checked against the whole site. Raises ValueError or SiteError."""
    changes = site_changes.load(folder)
    if not request.by.strip():
        raise ValueError('who changes it is missing')
    if request.rollback:
        if request.names or request.values:
            raise ValueError('rollback takes no names')
        values = changes.back_to(request.revision)
    else:
        count = len(request.names)
        if not count or len(request.values) != count or len(set(request.names)) != count:
            raise ValueError('names and values must be equally many, at least one, and no name twice')
        values = {n: _as_json(n, v) for n, v in zip(request.names, request.values, strict=True)}
    if not values:
        raise ValueError('nothing would change')
    for name in values:
        parts = name.split('.')
        if not (len(parts) == 3 and (parts[0] == 'nodes' or parts[:2] == ['site', 'features'])) \
                or parts[2] in site_module.NODE_KEYS:
            raise ValueError(f'{name!r} is not nodes.NODE.PARAMETER or site.features.NAME')
    merged = {n: v for n, v in {**changes.values(), **values}.items() if v}
    _load(path, folder, merged)
    return changes.next(values, request.by.strip(), request.comment.strip(), wall)


def _as_json(name: str, text: str) -> str:
    if not text.strip():
        return ''
    try:
        value = yaml.safe_load(text)
        if isinstance(value, float) and not isfinite(value):
            raise ValueError('not a finite number')
        return json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f'{name}: {text!r} cannot be read: {error}') from error


def _load(path: Path, folder: Path, values: dict[str, str]) -> site_module.Site:
    return site_module.load(path, state=folder, recorded=[f'{n}={v}' for n, v in values.items()])


def _parameters(site: site_module.Site) -> dict[str, SiteParameter]:
    """All parameters of a checked site by name."""
    out = {f'site.features.{n}': SiteParameter(name=f'site.features.{n}', value=json.dumps(v), allowed='true or false',
                                               description='feature switch')
           for n, v in site.params.features.items()}
    for node in site.nodes:
        for spec in params.specs(type(node.params)):
            name = f'nodes.{node.name}.{spec.name}'
            out[name] = SiteParameter(
                name=name, value=json.dumps(getattr(node.params, spec.name), default=str), allowed=spec.allowed,
                unit=spec.metadata.get('unit', ''), description=spec.metadata.get('doc', ''))
    return out


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''
