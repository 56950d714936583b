"""Modes, manager and site of the pure chain: see `bench.chain`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isnan
from typing import Any

from bess_control.bounds import PowerManagerParams
from bess_control.load_estimate import without
from bess_control.manager import PowerManager
from bess_control.proposals import Proposal, ProposalBook
from bess_control.site_state import SiteMachine, SiteParams, SiteState
from bess_core.params import extract
from bess_core.site import NodeSpec, Site
from bess_core.values import BatteryReading, MeterReading, Quality

from .chain_devices import Loop, Order, Sender


class Mode:
    """A control mode."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        cls: Any = spec.cls.ModeClass  # type: ignore[attr-defined]
        self.loop, self.name, self.params = loop, spec.name, p
        self._mode = cls(extract(cls.Params, p), spec.name, p.battery, p.meter)
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._granted: float | None = None
        self.active = True
        self._proposals = loop.topic('proposals')
        loop.topic(f'{p.battery}/status').append(self.on_battery)
        loop.topic(f'{p.meter}/status').append(self.on_meter)
        loop.topic(f'{p.battery}/setpoint').append(self.on_granted)
        self._others = dict.fromkeys(p.others, 0.0)  # W
        for name in p.others:
            loop.topic(f'{name}/status').append(partial(self.on_other, name))
        loop.every(p.period, self.on_period, 0)

    def on_battery(self, reading: BatteryReading) -> None:
        """News of the battery."""
        self._battery = reading

    def on_other(self, name: str, reading: BatteryReading) -> None:
        """News of a battery that serves the grid."""
        self._others[name] = 0.0 if reading.quality is Quality.INVALID else reading.power

    def on_granted(self, order: Order) -> None:
        """What the manager granted."""
        self._granted = order.power

    def on_meter(self, reading: MeterReading) -> None:
        """A fresh sample."""
        self._meter = without(reading, self._others.values())
        self.step()

    def on_period(self) -> None:
        """Speak up when the meter is silent."""
        if self._meter is None or self.loop.now - self._meter.time > self.params.period:
            self.step()

    def step(self) -> None:
        """One step of the mode."""
        if not self.active:
            return
        proposal = self._mode.step(self._meter, self._battery, self._granted, self.loop.now)
        if proposal is not None:
            self.loop.publish(self._proposals, proposal)

    def switch(self, on: bool) -> None:
        """As the site drives it."""
        if on and not self.active:
            self._mode.reset()
        elif self.active and not on:
            self.loop.publish(self._proposals, Proposal(
                self.name, self.params.battery, lease=1e-3, reason='mode is off', time=self.loop.now))
        self.active = on


class Manager:
    """The control tick."""

    def __init__(self, loop: Loop, spec: NodeSpec) -> None:
        p = spec.params
        self.loop, self.name, self.params = loop, spec.name, p
        self._manager = PowerManager(extract(PowerManagerParams, p))
        self._book = ProposalBook()
        self._battery = BatteryReading()
        self._meter: MeterReading | None = None
        self._state, self._cause = SiteState.INIT, ''
        self._was_asked = False
        self.ticks = 0
        self._sender = Sender(loop, spec.name, p.battery, p.lease)
        loop.topic(f'{p.battery}/status').append(self.on_battery)
        loop.topic('proposals').append(self.on_proposal)
        loop.topic('system_state').append(self.on_state)
        if p.meter:
            loop.topic(f'{p.meter}/status').append(self.on_meter)
        loop.every(p.tick_s, self.tick, 1)

    def on_battery(self, reading: BatteryReading) -> None:
        """News of the battery."""
        self._battery = reading

    def on_meter(self, reading: MeterReading) -> None:
        """A fresh sample."""
        self._meter = reading

    def on_proposal(self, proposal: Proposal) -> None:
        """What a mode wants."""
        self._book.put(proposal, self.loop.now)

    def on_state(self, state: tuple[SiteState, str]) -> None:
        """The site's state."""
        self._state, self._cause = state

    def tick(self) -> None:
        """One decision."""
        now = self.loop.now
        self.ticks += 1
        self._book.expire(now)
        decision = self._manager.tick(now, self._book, self._battery, self._meter, self._state, 0.0, self._cause)
        asked = not isnan(decision.asked) or decision.granted != 0.0 or abs(decision.granted_reactive) > 0.0
        if asked or self._was_asked or self._state is not SiteState.RUN:
            self._sender.send(decision.granted, decision.granted_reactive)
        self._was_asked = asked


class SiteRoom:
    """The site's state: RUN once every required node is there; only the chosen mode stays on."""

    def __init__(self, loop: Loop, spec: NodeSpec, site: Site, modes: Sequence[Mode], present: set[str]) -> None:
        p = spec.params
        self.loop, self.name, self._modes, self._present = loop, spec.name, modes, present
        required = [n.name for n in site.nodes if n.required and n.name != spec.name]
        self._machine = SiteMachine(extract(SiteParams, p), required, [m.name for m in modes], p.mode, 0.0, p.modes)
        if not self._machine.wants_run:
            raise ValueError(f'{spec.name}: autostart is off, so nothing would run')
        self._state = loop.topic('system_state')
        self._running = False
        loop.every(p.period, self.look, 2)

    def look(self) -> None:
        """Who is there, and what follows from it."""
        if self._running:
            return
        machine = self._machine
        for name in machine.required:
            if name in self._present:
                machine.node_active(name, self.loop.now)
        if not machine.allows_power:
            raise ValueError(f'{self.name}: the site would not run, required nodes are missing: '
                             f'{", ".join(machine.missing)}')
        for mode in self._modes:
            mode.switch(mode.name in machine.active_modes)
        self.loop.publish(self._state, (machine.state, machine.cause))
        self._running = True
