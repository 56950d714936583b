"""Emergency stop node: input, topic and service in, one latched topic out that every converter driver obeys."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from std_msgs.msg import String

from bess.msg import EmergencyStop as EmergencyMessage
from bess.msg import Event, IoStatus
from bess.srv import ResetEmergencyStop, TriggerEmergencyStop
from bess_core import emergency, qos
from bess_core.convert import wall_stamp
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import Severity

from .emergency import EmergencyStop

ACTIVE = 'emergency_stop.active'


@dataclass(frozen=True)
class EmergencyStopParams:
    """Parameters of the emergency stop node."""

    input_io: str = param('', '', 'I/O module with the emergency stop input; empty = none', ref='io')
    input_name: str = param('emergency_stop', '', 'name of that input')
    input_closed: bool = param(True, '', 'true: a closed circuit (1) is the released state, as with a normally closed '
                                         'button, so that a broken wire stops')
    input_max_age: float = param(1.0, 's', 'an input read longer ago counts as pressed', low=0.05, high=60.0)
    input_grace: float = param(15.0, 's', 'how long after the start a first reading may take', low=0.0, high=300.0)
    reset_name: str = param('', '', 'name of a local reset input of the same module; empty = none')
    reset_debounce: float = param(0.2, 's', 'how long the reset input must be held', low=0.0, high=10.0)
    period: float = param(0.05, 's', 'how often the input is looked at', low=0.01, high=1.0)

    def __post_init__(self) -> None:
        if self.reset_name and not self.input_io:
            raise ValueError('reset_name needs input_io')


class EmergencyStopNode(BessNode):
    """State on `<site>/emergency_stop`; pressed by the input, `~/trigger_topic` or `~/trigger`.

    `~/reset` works on the spot.
    """

    Params: ClassVar[type] = EmergencyStopParams
    role: ClassVar[str] = 'emergency_stop'

    def on_bess_configure(self) -> None:
        """Take over the stored state and publish it; listens in every lifecycle state from now on."""
        p, now = self.params, self.clock.now()
        self._machine = EmergencyStop(
            emergency.load(self.ctx.state_dir, self.clock.wall()), input_configured=bool(p.input_io),
            max_age=p.input_max_age, debounce=p.reset_debounce, grace=p.input_grace, now=now)
        self._token = self._make_token()
        self._shown: Any = None
        self._state = self.create_publisher(EmergencyMessage, self.ctx.topic('emergency_stop'), qos.STATE)
        self._events = self.create_publisher(Event, self.ctx.topic('events'), qos.EVENT)
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            (self.destroy_publisher, self._state), (self.destroy_publisher, self._events),
            (self.destroy_subscription,
             self.create_subscription(String, '~/trigger_topic', self._on_topic, qos.EVENT)),
            (self.destroy_service, self.create_service(TriggerEmergencyStop, '~/trigger', self._on_trigger)),
            (self.destroy_service, self.create_service(ResetEmergencyStop, '~/reset', self._on_reset)),
        ]
        if p.input_io:
            self._own.append((self.destroy_subscription, self.create_subscription(
                IoStatus, self.ctx.topic(f'{p.input_io}/status'), self._on_io, qos.MEASUREMENT)))
        self.every(p.period, self._tick, phase=0)
        self._announce('' if not self._machine.stop.active else 'entered')

    def on_bess_cleanup(self) -> None:
        """Take everything back; the stored state and what drivers have heard stay."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        self._own = []

    def _make_token(self) -> str:
        """A new secret per start that only users of this machine who may read the state folder know."""
        file = self.ctx.state_dir / emergency.TOKEN
        token = secrets.token_hex(16)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(token + '\n', encoding='ascii')
        return token

    # -- pressed -----------------------------------------------------------------------------------

    def _on_topic(self, message: String) -> None:
        self._press('topic', message.data[:200])

    def _on_trigger(self, request: TriggerEmergencyStop.Request,
                    response: TriggerEmergencyStop.Response) -> TriggerEmergencyStop.Response:
        by = request.by.strip() or 'service'
        news = self._press(by if by == 'fault_manager' else 'service', f'{request.cause or "not said"} (by {by})')
        response.accepted = True
        response.message = 'emergency stop in force' if news else \
            f'was in force already: {self._machine.stop.cause}'
        return response

    def _press(self, source: str, cause: str) -> bool:
        news = self._machine.press(source, cause, self.clock.wall())
        if news:
            self._announce('entered')
        return news

    def _on_io(self, message: IoStatus) -> None:
        now = self.clock.now()
        usable = message.quality == IoStatus.QUALITY_OK
        values = dict(zip(message.digital_input_names, message.digital_inputs, strict=False)) if usable else {}
        known = {n: v == IoStatus.SWITCH_ON for n, v in values.items() if v != IoStatus.SWITCH_UNKNOWN}
        closed = known.get(self.params.input_name)
        self._machine.read_input(None if closed is None else closed is not self.params.input_closed, now)
        if self.params.reset_name:
            was = self._machine.stop.active
            problem = self._machine.read_reset(known.get(self.params.reset_name), now, self.clock.wall())
            if problem:
                self.log.warning('reset', result=problem)
            elif was and not self._machine.stop.active:
                self._released()
        self._look()

    def _tick(self, _: Tick) -> None:
        self.progress += 1
        self._look()

    def _look(self) -> None:
        if self._machine.tick(self.clock.now(), self.clock.wall()):
            self._announce('entered')
        else:
            self._publish()

    # -- released ----------------------------------------------------------------------------------

    def _on_reset(self, request: ResetEmergencyStop.Request,
                  response: ResetEmergencyStop.Response) -> ResetEmergencyStop.Response:
        was = self._machine.stop.active
        problem = self._machine.reset(request.token, self._token, request.by, self.clock.now(), self.clock.wall())
        response.accepted = not problem or problem == 'not active'
        response.message = problem or 'released; start the site to go on'
        if was and not problem:
            self._released()
        elif not response.accepted:
            self.log.warning('reset refused', by=request.by, reason=problem)
        return response

    def _released(self) -> None:
        self._announce('gone')
        self._tell_faults_cleared()

    def _tell_faults_cleared(self) -> None:
        """Whoever reset it on the spot has cleared the fault as well; the site still waits for a start."""
        self.clear_fault(ACTIVE)
        _, _, events = self.faults.clear(ACTIVE)
        self._tell(events)

    # -- out ---------------------------------------------------------------------------------------

    def _announce(self, change: str) -> None:
        """Wire first, then disk, then people."""
        stop = self._machine.stop
        self._publish()
        if not change:
            return
        try:
            emergency.save(self.ctx.state_dir, self._machine.to_dict())
            self.clear_fault('emergency_stop.save')
        except OSError as error:  # it is in force all the same; only a restart of everything would forget it
            self.raise_fault('emergency_stop.save', Severity.CRITICAL, f'the emergency stop cannot be stored: {error}')
        if stop.active:
            self.raise_fault('emergency_stop.active', Severity.CRITICAL,
                             f'emergency stop by {stop.source}: {stop.cause}')
        self.log.warning('emergency stop', active=stop.active, source=stop.source, cause=stop.cause)
        event = Event(severity=Event.SEVERITY_CRITICAL if stop.active else Event.SEVERITY_INFO, kind='emergency',
                      source=self.get_name(), name='emergency_stop', change=change, text=stop.cause)
        event.header.stamp = wall_stamp(self.clock.wall())
        self._events.publish(event)

    def _publish(self) -> None:
        stop, pressed = self._machine.stop, self._machine.input_pressed(self.clock.now())
        if self._shown == (stop, pressed):
            return
        self._shown = (stop, pressed)
        message = EmergencyMessage(active=stop.active, cause=stop.cause, source=stop.source,
                                   input_configured=self._machine.input_configured, input_pressed=pressed)
        message.header.stamp = wall_stamp(stop.changed)
        self._state.publish(message)

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        stop = self._machine.stop
        return {'active': stop.active, 'cause': stop.cause, 'source': stop.source}
