"""Mode nodes: a thin lifecycle shell around any mode class.

A mode class is registered under the entry point group ``bess.modes``. It has a frozen dataclass
`Params`, is made as ``cls(params, source, battery, meter)`` and offers
``step(meter, battery, granted, now) -> Proposal | None`` and ``reset()``. It is asked on every fresh
meter sample and, so that it can speak up when the meter is silent, every `period`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from math import isfinite
from typing import Any, ClassVar

from bess.msg import BatteryStatus, MeterStatus, PowerProposal, PowerSetpoint
from bess_core import qos
from bess_core.convert import battery_from_msg, meter_from_msg, set_stamp
from bess_core.node import BessNode
from bess_core.params import extract, merge, param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, MeterReading, Severity

from .load_estimate import without
from .proposals import Proposal

PROBLEM_S = 1.0  # an input that is missing for longer (not just at start) is a fault

WITHDRAWN_S = 0.5  # lease of the last word of a mode: longer than a busy machine may take to deliver it


@dataclass(frozen=True, kw_only=True)
class ModeParams:
    """Parameters of every mode node, beside those of the mode."""

    battery: str = param(doc='battery that the mode uses', ref='battery')
    meter: str = param(doc='meter at the grid connection', ref='meter')
    others: list[str] = param([], doc='batteries whose power is meant for the grid (another partition that serves '
                                      'it): taken out of what the meter shows', ref='battery')
    period: float = param(0.5, 's', 'how often it looks without a fresh meter sample', low=0.01, high=60.0)


class ModeNode(BessNode):
    """Publishes the mode's proposals while active."""

    role: ClassVar[str] = 'mode'
    Params: ClassVar[type] = ModeParams
    ModeClass: ClassVar[Any]

    def on_bess_configure(self) -> None:
        """Listen to meter, battery and what was granted."""
        p = self.params
        self._mode = self.ModeClass(extract(self.ModeClass.Params, p), self.get_name(), p.battery, p.meter)
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._granted: float | None = None
        self._others = dict.fromkeys(p.others, 0.0)  # W
        self._proposals = self.create_publisher(PowerProposal, self.ctx.topic('proposals'), qos.EVENT)
        self._message = PowerProposal()  # refilled for every proposal
        topic = self.ctx.topic
        self._own = [
            self.create_subscription(BatteryStatus, topic(f'{p.battery}/status'), self._on_battery, qos.MEASUREMENT),
            self.create_subscription(MeterStatus, topic(f'{p.meter}/status'), self._on_meter, qos.MEASUREMENT),
            self.create_subscription(PowerSetpoint, topic(f'{p.battery}/setpoint'), self._on_granted, qos.SETPOINT),
        ]
        self._own += [
            self.create_subscription(BatteryStatus, topic(f'{name}/status'), partial(self._on_other, name),
                                     qos.MEASUREMENT)
            for name in p.others
        ]
        self.every(p.period, self._on_period, phase=0)

    def on_bess_activate(self) -> None:
        """Start bumplessly from the next sample."""
        self._mode.reset()
        self._sound_at = self.clock.now()

    def on_bess_deactivate(self) -> None:
        """The last proposal is withdrawn at once: one that wants nothing takes its place."""
        self._publish(Proposal(self.get_name(), self.params.battery, lease=WITHDRAWN_S, reason='mode is off'))
        self.clear_fault('mode.input')

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        self._own = []
        if hasattr(self, '_proposals'):
            self.destroy_publisher(self._proposals)
            del self._proposals

    def _on_battery(self, message: BatteryStatus) -> None:
        self._battery = battery_from_msg(message, self.clock)

    def _on_other(self, name: str, message: BatteryStatus) -> None:
        self._others[name] = 0.0 if message.quality == BatteryStatus.QUALITY_INVALID else message.power

    def _on_granted(self, message: PowerSetpoint) -> None:
        self._granted = message.power

    def _on_meter(self, message: MeterStatus) -> None:
        self._meter = without(meter_from_msg(message, self.clock), self._others.values())
        self._step()

    def _on_period(self, _: Tick) -> None:
        if self._meter is None or self.clock.now() - self._meter.time > self.params.period:
            self._step()

    def _step(self) -> None:
        if not self.is_active:
            return
        proposal = self._mode.step(self._meter, self._battery, self._granted, self.clock.now())
        if proposal is not None:
            self.progress += 1
            self._publish(proposal)
        problem = getattr(self._mode, 'problem', '')
        now = self.clock.now()
        if not problem:
            self._sound_at = now
        self.set_fault(now - self._sound_at > PROBLEM_S, 'mode.input', Severity.WARNING, problem)

    def _publish(self, proposal: Proposal) -> None:
        message = self._message
        message.source, message.battery, message.reason = proposal.source, proposal.battery, proposal.reason
        message.priority, message.lease = int(proposal.priority), float(proposal.lease)
        message.min_power, message.max_power = float(proposal.min_power), float(proposal.max_power)
        message.preferred_power = float(proposal.preferred_power)
        message.preferred_reactive_power = float(proposal.preferred_reactive_power)
        set_stamp(message.header.stamp, self.clock, proposal.time if isfinite(proposal.time) else self.clock.now())
        self._proposals.publish(message)


@cache
def node_type(mode_class: Any) -> type[ModeNode]:
    """Node class for a mode class: the shell with both sets of parameters."""
    params = merge(f'{mode_class.__name__}NodeParams', ModeParams, mode_class.Params)
    return type(f'{mode_class.__name__}Node', (ModeNode,), {
        '__doc__': f'Mode node of {mode_class.__name__}.', 'ModeClass': mode_class, 'Params': params})
