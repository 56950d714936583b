"""Test controller node: setpoints and transitions by sequence, through the normal chain, with the measured response.

It proposes to the power manager like a mode does, so every limit, the site state and the emergency stop go before it.
When its client falls silent, the site leaves the state that the sequence expects or the battery is not measured, the
test ends and its proposal is withdrawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, nan
from typing import Any, ClassVar

from std_msgs.msg import UInt64
from std_srvs.srv import SetBool, Trigger

from bess.msg import BatteryStatus, DecisionTrace, EmergencyStop, Event, PowerProposal, SystemState, TestState, TestStep
from bess.srv import GetTestReport, RunTest, SetMode
from bess_core import qos
from bess_core.calls import Call
from bess_core.convert import battery_from_msg, stamp, wall_stamp
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Quality

from ..site_state import SiteState
from .reports import Note, last_id, read_note, store
from .response import Response, analyse
from .run import Run, report
from .sequence import TRANSITIONS, Allowed, Step, check, parse, total

LEASE_S = 1.0
FRESH_S = 3.0  # a battery that was not heard for so long is not tested
MOST_SAMPLES = 100_000


@dataclass(frozen=True)
class TestControllerParams:
    """Parameters of the test controller."""

    battery: str = param('', '', 'battery that is tested; its power manager decides', ref='battery')
    manager: str = param('power_manager', '', 'power manager of the battery', ref='manager')
    site: str = param('site', '', 'site node', ref='site')
    priority: int = param(170, '', 'above the modes, below limits and grid functions', low=0, high=255)
    max_charge_power: float = param(1e9, 'W', 'greatest power of a test for charging', low=0.0, high=1e9)
    max_discharge_power: float = param(1e9, 'W', 'greatest power (magnitude) for discharging', low=0.0, high=1e9)
    max_duration: float = param(7200.0, 's', 'longest test', low=1.0, high=86400.0)
    longest_alive: float = param(30.0, 's', 'longest silence that a client may ask for', low=0.5, high=600.0)
    transition_time: float = param(20.0, 's', 'longest time of a transition', low=0.5, high=600.0)
    tolerance: float = param(50.0, 'W', 'least deviation that counts as followed', low=0.1, high=1e6)
    period: float = param(0.1, 's', 'how often the order is renewed and a sample taken', low=0.02, high=0.5)
    keep: int = param(50, '', 'reports that are kept on disk', low=1, high=10_000)

    def __post_init__(self) -> None:
        if not self.battery:
            raise ValueError('battery is missing; name the battery that is tested')


class TestControllerNode(BessNode):
    """`~/run`, `~/stop`, `~/report`, `~/state`; the client sends the test's number on `~/alive`."""

    Params: ClassVar[type] = TestControllerParams
    role: ClassVar[str] = 'test'

    def on_bess_configure(self) -> None:
        """Listen; tests run while active."""
        p, topic = self.params, self.ctx.topic
        self._folder = self.ctx.state_dir / f'{self.name}s'
        self._run: Run | None = None
        self._message = TestState(battery=p.battery, asked=nan, granted=nan, measured=nan)
        self._samples: dict[str, list[float]] = {n: [] for n in ('time', 'asked', 'granted', 'measured')}
        self._battery, self._system, self._trace = BatteryReading(), SystemState(), DecisionTrace(granted=nan)
        self._limits, self._stopped = '', 'the emergency stop has not said its state'
        self._watched = any(n.role == 'emergency_stop' for n in (self.ctx.site.nodes if self.ctx.site else ()))
        if not self._watched:
            self._stopped = ''
        self._marker = self._folder / 'running.json'
        self._left = self._unfinished()
        self._counter = max(last_id(self._folder), self._left.id if self._left is not None else 0)
        self._shown = self.create_publisher(TestState, '~/state', qos.STATE)
        self._proposals = self.create_publisher(PowerProposal, topic('proposals'), qos.EVENT)
        self._events = self.create_publisher(Event, topic('events'), qos.EVENT)
        self._site_clients = {
            **{n: self.create_client(Trigger, topic(f'{p.site}/{n}')) for n in ('start', 'stop')},
            'maintenance': self.create_client(SetBool, topic(f'{p.site}/set_maintenance')),
            'mode': self.create_client(SetMode, topic(f'{p.site}/set_mode'))}
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            *((self.destroy_publisher, e) for e in (self._shown, self._proposals, self._events)),
            *((self.destroy_client, c) for c in self._site_clients.values()),
            *((self.destroy_subscription, self.create_subscription(kind, name, take, profile))
              for kind, name, take, profile in (
                  (BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT),
                  (DecisionTrace, topic(f'{p.manager}/trace'), self._on_trace, qos.EVENT),
                  (SystemState, topic('system_state'), self._on_state, qos.STATE),
                  (EmergencyStop, topic('emergency_stop'), self._on_emergency, qos.STATE),
                  (UInt64, '~/alive', self._on_alive, qos.EVENT))),
            (self.destroy_service, self.create_service(RunTest, '~/run', self._on_run)),
            (self.destroy_service, self.create_service(Trigger, '~/stop', self._on_stop)),
            (self.destroy_service, self.create_service(GetTestReport, '~/report', self._on_report))]
        self.every(p.period, self._tick, phase=0)
        self._publish()

    def on_bess_deactivate(self) -> None:
        """A test does not outlive its node."""
        if self._run is not None:
            self._end('the test controller was switched off', restore=False)

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        self._own = []

    # -- in ----------------------------------------------------------------------------------------

    def _on_battery(self, m: BatteryStatus) -> None:
        self._battery, self._limits = battery_from_msg(m, self.clock), '; '.join(m.limit_reasons)

    def _on_trace(self, m: DecisionTrace) -> None:
        self._trace = m

    def _on_state(self, m: SystemState) -> None:
        self._system = m

    def _on_emergency(self, m: EmergencyStop) -> None:
        self._stopped = f'emergency stop: {m.cause}' if m.active else ''

    def _on_alive(self, m: UInt64) -> None:
        if self._run is not None and m.data == self._run.id:
            self._run.heard = self.clock.now()

    def _on_run(self, request: RunTest.Request, response: RunTest.Response) -> RunTest.Response:
        p, now, b = self.params, self.clock.now(), self._battery
        try:
            steps = parse(request.steps)
        except ValueError as error:
            response.message = str(error)
            return response
        modes = [n.name for n in (self.ctx.site.nodes if self.ctx.site else ()) if n.role == 'mode']
        usable = self._unusable(now) == ''
        allowed = Allowed(
            SiteState(self._system.state), modes, min(p.max_charge_power, b.max_charge_power) if usable else nan,
            min(p.max_discharge_power, b.max_discharge_power) if usable else nan, p.max_duration, p.transition_time,
            self._limits if usable else self._unusable(now))
        if not request.by.strip():
            response.message = 'who tests is missing'
        elif not self.is_active:
            response.message = 'the test controller is not active'
        elif self._run is not None:
            response.message = f'test {self._run.id} of {self._run.by} runs'
        elif self._stopped:
            response.message = self._stopped
        elif not 0.0 < request.alive <= p.longest_alive:
            response.message = f'alive is {request.alive:g} s, allowed is above 0 to {p.longest_alive:g} s'
        else:
            response.message = check(steps, allowed)
        if response.message:
            self.log.info('test refused', by=request.by, reason=response.message)
            return response
        self._counter += 1
        self._run = Run(self._counter, steps, request.by.strip(), request.alive, now, now, allowed.state,
                        self._system.mode, total(steps, p.transition_time), step_started=now,
                        measured_before=b.power)
        for values in self._samples.values():
            values.clear()
        self._message = TestState(
            state=TestState.RUNNING, id=self._counter, by=self._run.by, battery=p.battery, message='runs',
            total=self._run.total, steps=[_step(s.text, Response()) for s in steps], asked=nan, granted=nan,
            measured=nan)
        self._mark(self._run)
        self._event('started', f'test {self._counter} by {self._run.by}: {", ".join(s.text for s in steps)}')
        response.accepted, response.id, response.message = True, self._counter, f'test {self._counter} runs'
        self._publish()
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        response.message = 'no test runs' if self._run is None else f'test {self._run.id} ended'
        if self._run is not None:
            self._end('stopped by its user')
        return response

    def _on_report(self, request: GetTestReport.Request, response: GetTestReport.Response) -> GetTestReport.Response:
        if request.id not in (0, self._message.id) or not self._message.id:
            response.message = (f'test {request.id} is not the latest; older reports are files in {self._folder}'
                                if self._message.id else 'no test since the start')
            return response
        response.accepted, response.state = True, self._message
        for name, values in self._samples.items():
            setattr(response, name, list(values))
        return response

    # -- the test ----------------------------------------------------------------------------------

    def _unusable(self, now: float) -> str:
        b = self._battery
        if b.quality is not Quality.OK or now - b.time > FRESH_S:
            return f'{self.params.battery} is not measured'
        return ''

    def _barred(self, run: Run, now: float) -> str:
        """Why the test cannot go on; '' = it can."""
        state = SiteState(self._system.state)
        if self._stopped:
            return self._stopped
        if now - run.heard > run.alive:
            return f'its client was silent for {now - run.heard:.1f} s'
        moving = run.called and run.steps[run.index].kind in TRANSITIONS
        if state is not run.expected and not moving:
            return f'the site is in {state.name}: {self._system.cause}'
        if moving and state is SiteState.ERROR:
            return f'the site is in ERROR: {self._system.cause}'
        if run.steps[run.index].powered:
            return self._unusable(now)
        return ''

    def _tick(self, tick: Tick) -> None:
        self.progress += 1
        run, now = self._run, self.clock.now()
        if self._left is not None and self.is_active:
            self._clear_up(self._left)
        if run is None or not self.is_active:
            return
        if why := self._barred(run, now):
            self._end(why)
            return
        step, elapsed = run.steps[run.index], now - run.step_started
        asked = step.order(elapsed, run.before) if step.powered else nan
        self._sample(run, now, asked)
        if step.powered:
            self._propose(asked, LEASE_S, f'test {run.id} of {run.by}, {step.text}')
            if elapsed >= step.duration:
                self._powered_done(run, step, now)
        else:
            self._transition(run, step, now)
        if self._run is not None and tick.index % 2 == 0:
            self._publish()

    def _sample(self, run: Run, now: float, asked: float) -> None:
        usable = self._battery.quality is Quality.OK
        m = self._message
        m.elapsed, m.step, m.asked, m.granted = now - run.started, run.index, float(asked), float(self._trace.granted)
        m.measured = float(self._battery.power) if usable else nan
        if len(self._samples['time']) < MOST_SAMPLES:
            for name, value in (('time', m.elapsed), ('asked', m.asked), ('granted', m.granted),
                                ('measured', m.measured)):
                self._samples[name].append(value)

    def _propose(self, power: float, lease: float, reason: str) -> None:
        """Want a power (W) for so long (s); NaN = nothing any more."""
        message = PowerProposal(
            source=self.get_name(), battery=self.params.battery, priority=self.params.priority, min_power=-inf,
            max_power=inf, preferred_power=float(power), preferred_reactive_power=nan, lease=lease, reason=reason)
        message.header.stamp = stamp(self.clock, self.clock.now())
        self._proposals.publish(message)

    def _withdraw(self) -> None:
        self._propose(nan, 0.05, 'no test')

    def _powered_done(self, run: Run, step: Step, now: float) -> None:
        at = self._samples['time'][run.first:]
        shifted = [t - (run.step_started - run.started) for t in at]
        asked, granted, measured = (self._samples[n][run.first:] for n in ('asked', 'granted', 'measured'))
        result = analyse(shifted, asked, granted, measured, run.measured_before, ramp=step.kind == 'ramp',
                         tolerance=self.params.tolerance, reason=self._trace.text)
        run.before = step.power
        self._next(run, result, now)

    def _transition(self, run: Run, step: Step, now: float) -> None:
        if not run.called:
            run.called = True
            name = {'release': 'maintenance'}.get(step.kind, step.kind)
            request: Any = Trigger.Request()
            if name == 'maintenance':
                request = SetBool.Request(data=step.kind == 'maintenance')
            elif name == 'mode':
                request = SetMode.Request(mode=step.name)
                run.mode_changed = True
                self._mark(run, step.name)
            client = self._site_clients[name]
            if not client.service_is_ready():
                self._fail(run, f'{client.srv_name} is not there')
                return
            Call(self, client, request, self.params.transition_time, partial(self._answered, run, run.index))
            self._withdraw()
        target = TRANSITIONS.get(step.kind)
        state = SiteState(self._system.state)
        reached = state is target if target is not None else self._system.mode == ('' if step.name == 'none'
                                                                                    else step.name)
        if run.answered and reached:
            if target is not None:
                run.expected, run.before = target, 0.0
            self._next(run, Response('ok', settling=now - run.step_started), now)
        elif now - run.step_started > self.params.transition_time:
            self._fail(run, f'{step.text} not within {self.params.transition_time:g} s; the site is in {state.name}')

    def _answered(self, run: Run, index: int, answer: Any, why: str) -> None:
        if self._run is not run or run.index != index:
            return
        if answer is None:
            self._fail(run, why)
        elif not (answer.accepted if hasattr(answer, 'accepted') else answer.success):
            self._fail(run, answer.message)
        run.answered = True

    def _fail(self, run: Run, why: str) -> None:
        self._message.steps[run.index] = _step(run.steps[run.index].text, Response('failed', why))
        self._end(why)

    def _next(self, run: Run, result: Response, now: float) -> None:
        self._message.steps[run.index] = _step(run.steps[run.index].text, result)
        run.index += 1
        if run.index == len(run.steps):
            run.index -= 1
            self._end('')
            return
        run.step_started, run.called, run.answered = now, False, False
        run.first, run.measured_before = len(self._samples['time']), self._battery.power

    def _end(self, why: str, *, restore: bool = True) -> None:
        run, m = self._run, self._message
        assert run is not None
        self._run = None
        self._withdraw()
        m.state, m.asked = (TestState.ABORTED if why else TestState.DONE), nan
        m.message = why or 'done'
        client = self._site_clients['mode']
        if restore and run.mode_changed and client.service_is_ready():
            self._restore_mode(run.mode)
        self._event('aborted' if why else 'done', f'test {run.id} by {run.by}: {m.message}', 1 if why else 0)
        self._marker.unlink(missing_ok=True)
        self._save(run)
        self._publish()

    def _restore_mode(self, mode: str) -> None:
        def done(answer: Any, why: str) -> None:
            if answer is None or not answer.accepted:
                self.log.error('the mode from before the test is not back', mode=mode, reason=why or answer.message)

        Call(self, self._site_clients['mode'], SetMode.Request(mode=mode), self.params.transition_time, done)

    # -- a test whose process ended ----------------------------------------------------------------

    def _mark(self, run: Run, chosen: str | None = None) -> None:
        """Who comes after this process finds that a test ran, and which mode it took away."""
        try:
            Note(run.id, run.by, run.mode, chosen).write(self._marker)
        except OSError as error:
            self.log.error('the test cannot be noted on the disk', error=str(error))

    def _unfinished(self) -> Note | None:
        try:
            return read_note(self._marker)
        except (OSError, ValueError) as error:
            self.log.error('what an earlier test left cannot be read', error=str(error))
            return None

    def _clear_up(self, left: Note) -> None:
        """The mode from before the test, unless somebody has chosen another one meanwhile."""
        client = self._site_clients['mode']
        if left.chosen is not None and (self._system.header.stamp.sec == 0 or not client.service_is_ready()):
            return  # later
        if left.chosen is not None and self._system.mode == ('' if left.chosen == 'none' else left.chosen):
            self._restore_mode(left.mode)
        self._left = None
        self._marker.unlink(missing_ok=True)
        self._event('aborted', f'test {left.id} by {left.by}: its process ended', 1)

    # -- out ---------------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._message.header.stamp = stamp(self.clock, self.clock.now())
        self._shown.publish(self._message)

    def _event(self, change: str, text: str, severity: int = 0) -> None:
        event = Event(kind='test', source=self.get_name(), name=self.params.battery, change=change, text=text,
                      severity=severity)
        event.header.stamp = wall_stamp(self.clock.wall())
        self._events.publish(event)
        self.log.info('test', change=change, what=text)

    def _save(self, run: Run) -> None:
        ended = time.strftime('%Y-%m-%dT%H:%M:%S%z', time.localtime(self.clock.wall()))
        aborted = self._message.state == TestState.ABORTED
        try:
            store(self._folder, run.id, report(self._message, run, self._samples, aborted, ended), self.params.keep)
        except OSError as error:
            self.log.error('the report of the test cannot be saved', error=str(error))

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        m = getattr(self, '_message', None)
        return {} if m is None else {'test': str(m.id), 'message': m.message}


def _step(text: str, r: Response) -> TestStep:
    return TestStep(text=text, **asdict(r))
