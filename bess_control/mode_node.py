"""Mode nodes: a thin lifecycle shell around any mode class (`bess_control.modes.base`).

The mode is asked on every fresh meter sample and, so that it can speak up when the meter is silent,
every `period`. The shell brings what the mode says it wants to see, publishes its proposals and its
state, drives its outputs, keeps what must survive a restart, and runs its long computations on a
thread of their own.
"""

from __future__ import annotations

import importlib
import json
import threading
from array import array
from dataclasses import dataclass
from functools import cache, partial
from math import isfinite, isnan, nan
from typing import Any, ClassVar

from std_msgs.msg import Bool

from bess.msg import (
    BatteryStatus,
    InverterStatus,
    IoStatus,
    MeterStatus,
    ModeState,
    PowerProposal,
    PowerSetpoint,
)
from bess.srv import AdoptCurve, SetPower, SetPowerSchedule
from bess_core import qos
from bess_core.clock import join_stamp
from bess_core.convert import HEADER, battery_from_msg, converter_from_msg, meter_from_msg, order_from_msg, stamp_parts
from bess_core.files import replace_file
from bess_core.log import Refusals
from bess_core.messages import floats, maker, same
from bess_core.node import BessNode
from bess_core.params import extract, merge, param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Severity

from .load_estimate import without
from .mode_outputs_node import ModeOutputs
from .modes.base import Signal, View
from .proposals import Proposal

PROBLEM_S = 1.0  # an input that is missing for longer (not just at start) is a fault
STATE_S = 1.0  # the state is told again after so long, so that its values stay fresh
WITHDRAWN_S = 0.5  # lease of the last word of a mode: longer than a busy machine may take to deliver it


@dataclass(frozen=True, kw_only=True)
class ModeParams:
    """Parameters of every mode node, beside those of the mode."""

    battery: str = param(doc='battery that the mode uses', ref='battery')
    meter: str = param(doc='meter at the grid connection', ref='meter')
    others: list[str] = param([], doc='batteries whose power is meant for the grid (another partition that serves '
                                      'it): taken out of what the meter shows', ref='battery')
    period: float = param(0.5, 's', 'how often it looks without a fresh meter sample', low=0.01, high=60.0)


@dataclass(frozen=True, kw_only=True)
class MeterlessParams(ModeParams):
    """As `ModeParams`, for modes that can do without a meter."""

    meter: str = param('', doc='meter at the grid connection; empty = none', ref='meter')


_proposal = maker(PowerProposal, 'p, sec, nanosec, frame', {
    **HEADER, **floats(PowerProposal, 'p'), **same('p', 'source', 'battery', 'reason'), 'priority': 'int(p.priority)'})
_mode_state = maker(ModeState, 'mode, type, state, text, problem, keys, values, sec, nanosec, frame', HEADER)


class ModeNode(BessNode):
    """Publishes the mode's proposals while active."""

    role: ClassVar[str] = 'mode'
    Params: ClassVar[type] = ModeParams
    ModeClass: ClassVar[Any]

    def on_bess_configure(self) -> None:
        """Listen to meter, battery, what was granted, and whatever else the mode wants to see."""
        p = self.params
        self._mode = self.ModeClass(extract(self.ModeClass.Params, p), self.get_name(), p.battery, p.meter)
        self._decide = getattr(self._mode, 'decide', None)
        self._view = View(now=self.clock.now(), battery=BatteryReading())
        self._others = dict.fromkeys(p.others, 0.0)  # W
        self._told: tuple[float, tuple[str, str, str]] = (-1e9, ('', '', ''))
        self._job: threading.Thread | None = None
        self._sound_at = self.clock.now()
        self._refusals = Refusals(self.log, 'setpoint refused')
        self._file = self.ctx.state_dir / 'modes' / f'{self.get_name()}.json'
        self._proposals = self.create_publisher(PowerProposal, self.ctx.topic('proposals'), qos.EVENT)
        self._state = self.create_publisher(ModeState, '~/state', qos.STATE)
        self._outputs = ModeOutputs(self, getattr(p, 'converter', ''))
        self._offered: list[Any] = []
        self._own: list[Any] = []
        self._listen()
        self._restore()
        self.every(p.period, self._on_period, phase=0)

    def _listen(self) -> None:
        p, mode, topic, add = self.params, self._mode, self.ctx.topic, self._subscribe
        add(BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT)
        add(PowerSetpoint, topic(f'{p.battery}/setpoint'), self._on_granted, qos.SETPOINT)
        if p.meter:
            add(MeterStatus, topic(f'{p.meter}/status'), self._on_meter, qos.MEASUREMENT)
        for name in p.others:
            add(BatteryStatus, topic(f'{name}/status'), partial(self._on_other, name), qos.MEASUREMENT)
        for key in getattr(mode, 'meters', ()):
            if name := getattr(p, key):
                add(MeterStatus, topic(f'{name}/status'), partial(self._on_further_meter, key), qos.MEASUREMENT)
        for key in getattr(mode, 'signals', ()):
            if name := getattr(p, key):
                module, colon, contact = name.partition(':')
                if colon:
                    add(IoStatus, topic(f'{module}/status'), partial(self._on_io, key, contact), qos.MEASUREMENT)
                else:
                    add(Bool, topic(name), partial(self._on_signal, key), qos.EVENT)
        if getattr(p, 'converter', ''):
            add(InverterStatus, topic(f'{p.converter}/status'), self._on_converter, qos.MEASUREMENT)
        if getattr(mode, 'takes_setpoints', False):
            add(PowerSetpoint, '~/setpoint', self._on_order, qos.SETPOINT)
        if getattr(mode, 'takes_heartbeat', False):
            add(Bool, '~/heartbeat', lambda m: mode.beat(m.data, self.clock.now()), qos.EVENT)
        if getattr(mode, 'takes_manual', False):
            self._offered.append(self.create_service(SetPower, '~/set_power', self._on_set_power))
        if getattr(mode, 'takes_schedule', False):
            self._offered.append(self.create_service(SetPowerSchedule, '~/set_schedule', self._on_set_schedule))

        if getattr(mode, 'active', None) is not None:
            self._offered.append(self.create_service(AdoptCurve, '~/adopt_curve', self._on_adopt))

    def _subscribe(self, *args: Any) -> None:
        self._own.append(self.create_subscription(*args))

    def on_bess_activate(self) -> None:
        """Start bumplessly from the next sample."""
        self._mode.reset()
        self._sound_at = self.clock.now()

    def on_bess_deactivate(self) -> None:
        """The last proposal is withdrawn at once: one that wants nothing takes its place."""
        self._publish(Proposal(self.get_name(), self.params.battery, lease=WITHDRAWN_S, reason='mode is off'))
        self.clear_fault('mode.input')
        self._tell_state(off=True)

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        for service in getattr(self, '_offered', []):
            self.destroy_service(service)
        self._own, self._offered = [], []
        if hasattr(self, '_proposals'):
            self._outputs.close()
            self.destroy_publisher(self._proposals)
            self.destroy_publisher(self._state)
            del self._proposals

    # -- what it hears -----------------------------------------------------------------------------

    def _on_battery(self, message: BatteryStatus) -> None:
        self._view.battery = battery_from_msg(message, self.clock)

    def _on_other(self, name: str, message: BatteryStatus) -> None:
        self._others[name] = 0.0 if message.quality == BatteryStatus.QUALITY_INVALID else message.power

    def _on_granted(self, message: PowerSetpoint) -> None:
        self._view.granted = message.power

    def _on_further_meter(self, key: str, message: MeterStatus) -> None:
        self._view.meters[key] = meter_from_msg(message, self.clock)

    def _on_converter(self, message: InverterStatus) -> None:
        self._view.converter = converter_from_msg(message, self.clock)

    def _on_signal(self, key: str, message: Bool) -> None:
        self._view.signals[key] = Signal(message.data, self.clock.now())

    def _on_io(self, key: str, contact: str, message: IoStatus) -> None:
        """A contact of an I/O module; one that is not read keeps its last value, which grows old."""
        if message.quality != IoStatus.QUALITY_OK or contact not in message.digital_input_names:
            return
        value = message.digital_inputs[list(message.digital_input_names).index(contact)]
        if value != IoStatus.SWITCH_UNKNOWN:
            self._view.signals[key] = Signal(value == IoStatus.SWITCH_ON, self.clock.now())

    def _on_meter(self, message: MeterStatus) -> None:
        self._view.meter = without(meter_from_msg(message, self.clock), self._others.values())
        self._step()

    def _on_period(self, _: Tick) -> None:
        meter = self._view.meter
        if meter is None or self.clock.now() - meter.time > self.params.period:
            self._step()
        elif self.is_active:
            self._tell_state()

    # -- orders to the mode ------------------------------------------------------------------------

    def _on_order(self, message: PowerSetpoint) -> None:
        now = self.clock.now()
        power, reactive, lease, source, term, sequence, given = order_from_msg(message, self.clock)
        refused = self._mode.order(power, reactive, lease, source, now, given=given, term=term, sequence=sequence)
        if refused:
            self._refusals.refuse(source, refused, now)

    def _on_set_power(self, request: SetPower.Request, response: SetPower.Response) -> SetPower.Response:
        response.accepted, response.message = self._mode.manual(
            request.power, request.reactive_power, self.clock.now())
        if response.accepted:
            self._save()
        return response

    def _on_set_schedule(self, request: SetPowerSchedule.Request,
                         response: SetPowerSchedule.Response) -> SetPowerSchedule.Response:
        start = [join_stamp(t.sec, t.nanosec) for t in request.start]
        end = [join_stamp(t.sec, t.nanosec) for t in request.end]
        before = self._mode.save()
        response.accepted, response.message = self._mode.set_schedule(
            start, end, list(request.power), list(request.reactive_power))
        if response.accepted:
            try:
                self._save()
            except OSError as error:
                self._mode.restore(before)
                response.accepted, response.message = False, f'the schedule could not be saved: {error}'
        return response

    def _on_adopt(self, request: AdoptCurve.Request, response: AdoptCurve.Response) -> AdoptCurve.Response:
        mode, before = self._mode, self._mode.save()
        response.accepted, response.message = mode.adopt(
            list(request.x), list(request.y), request.response_time, request.reversion_time, self.clock.now(),
            self.clock.wall())
        if response.accepted:
            self.log.info('curve', what=response.message)
            try:
                self._save()
            except OSError as error:
                mode.adopt([], [], nan, nan, self.clock.now(), self.clock.wall())
                mode.restore(before)
                response.accepted, response.message = False, f'the curve could not be saved: {error}'
        return response

    # -- what it does ------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self.is_active:
            return
        view, mode = self._view, self._mode
        now = view.now = self.clock.now()
        view.wall = self.clock.wall()
        if self._decide is not None:
            proposal = self._decide(view)
        else:  # a mode of the first kind
            proposal = mode.step(view.meter, view.battery, view.granted, now)
        if proposal is not None:
            self.progress += 1
            self._publish(proposal)
        problem = getattr(mode, 'problem', '')
        if not problem:
            self._sound_at = now
        self.set_fault(now - self._sound_at > PROBLEM_S, 'mode.input', Severity.WARNING, problem)
        self.after_step(view)
        self._tell_state()
        self._outputs.form(getattr(mode, 'form_grid', None), view.converter, now)
        if getattr(mode, 'dirty', False):  # last: an outage does not wait for the disk
            mode.dirty = False
            self._save()

    def after_step(self, view: View) -> None:
        """For shells with more to do; called after each step of the mode."""

    def run_job(self, job: Any) -> bool:
        """Run ``job() -> result`` off the executor thread, then `job_done(result, error)` on it. One at a time."""
        if self._job is not None:
            return False
        if self.clock.simulated:  # lock-step: there is no other thread, and nothing waits
            self._ended(*_outcome(job))
            return True
        self._job = threading.Thread(
            target=lambda: self.ctx.post(partial(self._ended, *_outcome(job))), name=f'{self.get_name()}.job',
            daemon=True)
        self._job.start()
        return True

    def _ended(self, result: Any, error: str) -> None:
        self._job = None
        if hasattr(self, '_proposals'):
            self._guarded(self.job_done, result, error)

    def job_done(self, result: Any, error: str) -> None:
        """Result of `run_job`, or in words why there is none."""

    def _publish(self, proposal: Proposal) -> None:
        made = proposal.time if isfinite(proposal.time) else self.clock.now()
        self._proposals.give(_proposal(proposal, *stamp_parts(self.clock, made), ''))

    def _tell_state(self, off: bool = False) -> None:
        """State and outputs, when they changed or their time has come."""
        mode, now = self._mode, self.clock.now()
        said = ('off', 'mode is off', '') if off else (
            getattr(mode, 'state', ''), getattr(mode, 'text', ''), getattr(mode, 'problem', ''))
        due = now - self._told[0] >= STATE_S
        if due or said[0] != self._told[1][0] or said[2] != self._told[1][2]:
            self._told = (now, said)
            values = getattr(mode, 'values', {})
            self._state.give(_mode_state(
                self.name, type(mode).__name__, *said, list(values), array('d', map(float, values.values())),
                *stamp_parts(self.clock, now), ''))
        if not off:
            self._outputs.drive(getattr(mode, 'outputs', {}), due, now)

    # -- what survives a restart -------------------------------------------------------------------

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, json.dumps(self._mode.save()))

    def _restore(self) -> None:
        if not hasattr(self._mode, 'restore') or not self._file.exists():
            return
        try:
            self._mode.restore(json.loads(self._file.read_text()))
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.log.warning('saved state of the mode cannot be read; starting without', reason=str(error))

    def diagnostics(self) -> dict[str, Any]:
        """State and values of the mode, for people."""
        if not hasattr(self, '_mode'):
            return {}
        mode = self._mode
        said = {k: getattr(mode, k, '') for k in ('state', 'text', 'problem')}
        return {**said, **{k: f'{v:g}' for k, v in getattr(mode, 'values', {}).items() if not isnan(v)}}


def _outcome(job: Any) -> tuple[Any, str]:
    try:
        return job(), ''
    except (ValueError, OSError) as error:  # says by itself what it is
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is becomes the reason for the fallback, and is shown
        return None, f'{type(error).__name__}: {error}'


@cache
def node_type(mode_class: Any) -> type[ModeNode]:
    """Node class for a mode class: the shell with both sets of parameters.

    A mode class may name a shell of its own in `shell` ("module:class", a subclass of `ModeNode`).
    """
    base: Any = ModeNode
    if shell := getattr(mode_class, 'shell', ''):
        module, _, name = shell.partition(':')
        base = getattr(importlib.import_module(module), name)
    needs_meter = getattr(mode_class, 'needs_meter', True)
    common = ModeParams if needs_meter else MeterlessParams
    params = merge(f'{mode_class.__name__}NodeParams', common, mode_class.Params)
    return type(f'{mode_class.__name__}Node', (base,), {
        '__doc__': f'Mode node of {mode_class.__name__}.', 'ModeClass': mode_class, 'Params': params})
