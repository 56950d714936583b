"""Power manager node: resolves all proposals on the control tick and commands one battery."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, ClassVar

from std_srvs.srv import Trigger

from bess.msg import BatteryStatus, DecisionStep, DecisionTrace, MeterStatus, PowerProposal, SystemState
from bess_core import qos
from bess_core.convert import HEADER, battery_from_msg, meter_from_msg, sent_at, stamp_parts
from bess_core.files import replace_file
from bess_core.log import Refusals
from bess_core.messages import compiled, floats, maker, same
from bess_core.node import BessNode
from bess_core.params import extract, param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, MeterReading, Quality, Severity
from bess_virtual.setpoint_sender_node import SetpointSender

from .bounds import PowerManagerParams
from .manager import PowerManager
from .proposals import Proposal, ProposalBook
from .site_state import SiteState

_read_proposal = compiled('m, made', [], 'Proposal(m._source, m._battery, m._priority, m._min_power, m._max_power, '
                          'm._preferred_power, m._preferred_reactive_power, m._lease, m._reason, made)',
                          {'Proposal': Proposal})
_step = maker(DecisionStep, 's', {
    **floats(DecisionStep, 's'), **same('s', 'name', 'reason'), 'bound': 'bool(s.bound)'})
_trace = maker(DecisionTrace, 'd, sec, nanosec, frame', {
    **HEADER, **floats(DecisionTrace, 'd'), **same('d', 'tick', 'battery', 'asked_by', 'text'),
    'steps': '[step(s) for s in d.steps]'}, step=_step)


@dataclass(frozen=True)
class PowerManagerNodeParams(PowerManagerParams):
    """Parameters of the power manager node."""

    battery: str = param('', '', 'battery that is decided on', ref='battery', owns=True)
    meter: str = param('', '', 'meter at the grid connection', ref='meter')
    lease: float = param(1.0, 's', 'how long the battery keeps an order without a new one', low=0.1, high=60.0)
    late_tick: float = param(0.02, 's', 'a tick later than this against the grid counts as late', low=0.001, high=10.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.battery:
            raise ValueError('battery is missing; name the battery that is decided on')


class PowerManagerNode(BessNode):
    """Control tick on a fixed monotonic grid; every decision is published with its reasons."""

    Params: ClassVar[type] = PowerManagerNodeParams
    role: ClassVar[str] = 'manager'

    def on_bess_configure(self) -> None:
        """Listen; the tick runs from now on and says what it would not do."""
        p = self.params
        self._manager = PowerManager(extract(PowerManagerParams, p))
        self._book = ProposalBook()
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._state = SiteState.INIT
        self._cause = 'the site has not said its state yet'
        self._refusals = Refusals(self.log, 'proposal refused')
        self._was_asked = False
        self.late_ticks = 0
        self.missed_ticks = 0
        self._file = self.ctx.state_dir / f'{self.get_name()}.json'
        self._stopped, self._stopped_at = self._restore()  # by what, '' = not; when (epoch s)
        self._sender = SetpointSender(self, p.battery, p.lease)
        self._trace = self.create_publisher(DecisionTrace, '~/trace', qos.EVENT)
        topic = self.ctx.topic
        self._own = [
            self.create_subscription(BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT),
            self.create_subscription(PowerProposal, topic('proposals'), self._on_proposal, qos.EVENT),
            self.create_subscription(SystemState, topic('system_state'), self._on_state, qos.STATE),
        ]
        if p.meter:
            self._own.append(
                self.create_subscription(MeterStatus, topic(f'{p.meter}/status'), self._on_meter, qos.MEASUREMENT))
        self._stop_service = self.create_service(Trigger, '~/stop', self._on_stop)
        self.every(p.tick_s, self._tick, phase=1)

    def on_bess_deactivate(self) -> None:
        """A last order of zero."""
        self._sender.send(0.0, nan, self.clock.now())

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        self._own = []
        if hasattr(self, '_sender'):
            self._sender.close()
            self.destroy_publisher(self._trace)
            self.destroy_service(self._stop_service)
            del self._sender

    def _on_battery(self, message: BatteryStatus) -> None:
        self._battery = battery_from_msg(message, self.clock)

    def _on_meter(self, message: MeterStatus) -> None:
        self._meter = meter_from_msg(message, self.clock)

    def _on_state(self, message: SystemState) -> None:
        before, self._state, self._cause = self._state, SiteState(message.state), message.cause
        since = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
        # Entered anew: a RUN that is only told again, to a new process or with another mode, ends no stop.
        if self._stopped and self._state is SiteState.RUN and (
                since > self._stopped_at or before not in (SiteState.RUN, SiteState.INIT)):
            self._keep_stop('')

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Zero from the next tick on, whatever the site's state, until the site enters RUN anew."""
        self._keep_stop('stop service')
        response.success, response.message = True, 'zero from the next tick on; start the site to go on'
        self.log.info('stopped by service')
        return response

    def _keep_stop(self, by: str) -> None:
        """In force first, then on the disk: it outlives this process."""
        self._stopped, self._stopped_at = by, self.clock.wall()
        try:
            if by:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._file, json.dumps({'stopped': by, 'at': self._stopped_at}))
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            self.raise_fault('power_manager.save', Severity.ERROR, f'{self._file} cannot be written: {error}')
        else:
            self.clear_fault('power_manager.save')

    def _restore(self) -> tuple[str, float]:
        try:
            saved = json.loads(self._file.read_text(encoding='utf-8'))
            return str(saved['stopped']), float(saved['at'])
        except FileNotFoundError:
            return '', 0.0
        except (OSError, ValueError, KeyError, TypeError) as error:  # it is only there after a stop
            self.log.warning('the stored stop cannot be read; it stays in force', reason=str(error))
            return 'stop before the restart', self.clock.wall()

    def _on_proposal(self, message: PowerProposal) -> None:
        now = self.clock.now()
        made = sent_at(message, self.clock)
        reason = self._book.put(_read_proposal(message, made if made > -inf else nan), now)
        if reason:
            self._refusals.refuse(message.source, reason, now)

    def _tick(self, tick: Tick) -> None:
        now = self.clock.now()
        self.progress += 1
        self.missed_ticks += tick.missed
        if tick.late > self.params.late_tick:
            self.late_ticks += 1
        self._book.expire(now)
        state: SiteState | bool = self._state
        cause = self._cause
        if self._stopped:
            state, cause = False, self._stopped
        elif not self.is_active:
            state, cause = False, 'power manager is not active'
        decision = self._manager.tick(now, self._book, self._battery, self._meter, state, tick.late, cause)
        # A bound that forces power and a function that only wants reactive power ask, too.
        asked = not isnan(decision.asked) or decision.granted != 0.0 or abs(decision.granted_reactive) > 0.0
        if self.is_active and (asked or self._was_asked or state is not SiteState.RUN):
            # While nobody asks nothing is sent, so that the battery's own schedule may run.
            self._sender.send(decision.granted, decision.granted_reactive, now)
            decision.sent = decision.granted
        self._was_asked = asked
        if self._trace.get_subscription_count():
            self._trace.give(_trace(decision, *stamp_parts(self.clock, decision.time), ''))
        self._watch()

    def _watch(self) -> None:
        lost = self._meter is not None and self.clock.now() - self._meter.time > self.params.max_meter_age_s
        self.set_fault(lost, 'meter.lost', Severity.ERROR,
                       f'{self.params.meter}: no fresh sample for more than {self.params.max_meter_age_s:g} s')

    def diagnostics(self) -> dict[str, Any]:
        """The grid of ticks, for people."""
        return {'ticks': self.progress, 'late ticks': self.late_ticks, 'missed ticks': self.missed_ticks,
                'proposals': len(self._book) if hasattr(self, '_book') else 0,
                'battery quality': Quality(self._battery.quality).name if hasattr(self, '_battery') else ''}
