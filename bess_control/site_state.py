"""State machine of the site: which state, why, and what each event makes of it. Pure.

`wants_run` remembers what people asked for, apart from what is possible: a site that lost a node
goes to ERROR and, when the node is back, by itself to where it was wanted. Two things end that wish:
a `stop`, and a critical fault (after which somebody has to look, clear and start again, unless
`resume_after_clear`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from math import inf, isfinite
from typing import Any

from bess_core.params import param


class SiteState(IntEnum):
    """States of `msg/SystemState.msg`."""

    INIT = 0
    RUN = 1
    SLEEP = 2
    MAINTENANCE = 3
    ERROR = 4
    REBOOT = 5
    RESTART = 6


LEAVING = (SiteState.REBOOT, SiteState.RESTART)  # nothing but the end follows


@dataclass(frozen=True)
class SiteParams:
    """Parameters of the site state machine."""

    autostart: bool = param(True, '', 'go to RUN by itself when all required nodes are active')
    resume_after_clear: bool = param(
        False, '', 'after a critical fault was cleared go on as before instead of waiting for start')
    sleep_after: float = param(
        0.0, 's', 'fall asleep when nothing was asked and nothing flowed for so long; 0 = never', low=0.0, high=1e7)
    wake_on_demand: bool = param(True, '', 'wake by itself when something is asked while asleep')


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state."""

    previous: SiteState
    state: SiteState
    cause: str
    time: float  # s


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to one event. `transition` is None when the state stays."""

    accepted: bool
    message: str
    transition: Transition | None = None


@dataclass(frozen=True, slots=True)
class _Site:
    state: SiteState = SiteState.INIT
    previous: SiteState = SiteState.INIT
    cause: str = 'starting'
    since: float = 0.0
    mode: str = ''
    beside: tuple[str, ...] = ()  # modes that act beside the main one
    wants_run: bool = False
    locked: bool = False  # maintenance, also while the site leaves
    asleep: bool = False  # wants to run, but sleeps meanwhile
    wake_at: float = inf  # s, when a sleep with a timer is over
    missing: frozenset[str] = frozenset()
    critical: tuple[tuple[str, str], ...] = ()  # (key, text) in order of appearance


class SiteMachine:
    """The site's state. Each method is one event; `now` is the site clock in s.

    `required`: names of the nodes without which the site must not run; all are missing at first.
    `modes`: names that `set_mode` accepts. `beside`: those of them that act beside the main mode.
    """

    def __init__(self, params: SiteParams, required: Iterable[str], modes: Iterable[str] = (),
                 mode: str = '', now: float = 0.0, beside: Iterable[str] = ()) -> None:
        self.params = params
        self.required = frozenset(required)
        self.modes = tuple(modes)
        for name in filter(None, (mode, *beside)):
            if name not in self.modes:
                raise ValueError(f'unknown mode {name!r}; available: {", ".join(self.modes) or "none"}')
        self._site = _Site(since=now, mode=mode, beside=tuple(dict.fromkeys(beside)), wants_run=params.autostart,
                           missing=self.required)
        self._busy = -inf  # s, when something was asked or flowed last

    # What it is

    @property
    def state(self) -> SiteState:
        """Present state."""
        return self._site.state

    @property
    def previous(self) -> SiteState:
        """State before the present one."""
        return self._site.previous

    @property
    def cause(self) -> str:
        """Why the present state was entered."""
        return self._site.cause

    @property
    def since(self) -> float:
        """When the present state was entered, s."""
        return self._site.since

    @property
    def mode(self) -> str:
        """Active control mode, "" = none."""
        return self._site.mode

    @property
    def beside(self) -> tuple[str, ...]:
        """Modes that act beside the main one, in the order in which they were added."""
        return self._site.beside

    @property
    def active_modes(self) -> tuple[str, ...]:
        """Every mode that is to act while the site runs: the main one first."""
        return tuple(dict.fromkeys(m for m in (self._site.mode, *self._site.beside) if m))

    @property
    def wants_run(self) -> bool:
        """True when the site is to run as soon as it can."""
        return self._site.wants_run

    @property
    def missing(self) -> tuple[str, ...]:
        """Required nodes that are not active, sorted."""
        return tuple(sorted(self._site.missing))

    @property
    def critical(self) -> tuple[str, ...]:
        """Keys of the latched critical faults."""
        return tuple(key for key, _ in self._site.critical)

    @property
    def allows_power(self) -> bool:
        """True when modes and setpoints may act; only in RUN."""
        return self._site.state is SiteState.RUN

    # Orders

    def start(self, now: float, by: str = 'operator') -> Reply:
        """Run as soon as possible. Refused while a critical fault is latched or under maintenance."""
        site = self._site
        if site.state is SiteState.MAINTENANCE:
            return Reply(False, 'refused: the site is under maintenance')
        if site.state in LEAVING:
            return Reply(False, f'refused: the site is about to {site.state.name.lower()}')
        if site.critical:
            return Reply(False, f'refused: critical fault latched: {site.critical[0][1]}')
        self._site = replace(site, wants_run=True, asleep=False, wake_at=inf)
        self._busy = now
        if site.state is SiteState.RUN:
            return Reply(True, 'already running')
        if site.missing:
            return Reply(True, f'will run when active: {", ".join(self.missing)}')
        return self._settle(f'start by {by}', now, 'running')

    def stop(self, now: float, by: str = 'operator') -> Reply:
        """Stop; accepted in every state. Afterwards nothing starts again without `start`."""
        self._site = replace(self._site, wants_run=False, asleep=False, wake_at=inf)
        if self._site.state is SiteState.RUN:
            return self._enter(SiteState.SLEEP, f'stop by {by}', now, 'stopped')
        return Reply(True, f'stopped; the site stays in {self._site.state.name}')

    def set_mode(self, mode: str) -> Reply:
        """Choose the control mode; "" or "none" = no mode. Does not change the state."""
        name = '' if mode == 'none' else mode
        if name and name not in self.modes:
            return Reply(False, f'unknown mode {mode!r}; available: '
                                f'{", ".join(self.modes) or "none"}')
        self._site = replace(self._site, mode=name)
        return Reply(True, f'mode is {name or "none"}')

    def set_beside(self, mode: str, on: bool) -> Reply:
        """Let a mode act beside the main one, or no longer. Does not change the state."""
        if mode not in self.modes:
            return Reply(False, f'unknown mode {mode!r}; available: {", ".join(self.modes) or "none"}')
        kept = tuple(m for m in self._site.beside if m != mode)
        if not on and len(kept) == len(self._site.beside):
            return Reply(False, f'{mode} does not act beside the main mode')
        self._site = replace(self._site, beside=(*kept, mode) if on else kept)
        return Reply(True, f'{mode} {"acts" if on else "no longer acts"} beside {self._site.mode or "no main mode"}')

    def maintenance(self, on: bool, now: float, by: str = 'operator') -> Reply:
        """Lock out (True) or release (False) remote operation; a released site waits for `start`."""
        site = self._site
        if site.state in LEAVING:
            return Reply(False, f'refused: the site is about to {site.state.name.lower()}')
        if on is (site.state is SiteState.MAINTENANCE):
            return Reply(True, f'maintenance is already {"on" if on else "off"}')
        self._site = replace(site, wants_run=False, asleep=False, wake_at=inf, locked=on)
        if on:
            return self._enter(SiteState.MAINTENANCE, f'maintenance by {by}', now, 'locked out')
        return self._settle(f'maintenance ended by {by}', now, 'released', leave=True)

    def sleep(self, duration: float, now: float, by: str = 'operator') -> Reply:
        """Sleep for `duration` s, or with 0 until a start or a demand; the wish to run stays."""
        site = self._site
        if not (isfinite(duration) and duration >= 0.0):
            return Reply(False, f'refused: duration is {duration} s, must be 0 or more')
        if site.state is not SiteState.RUN and not (site.state is SiteState.SLEEP and site.asleep):
            return Reply(False, f'refused in {site.state.name}: only a site in RUN, or asleep, can be sent to sleep')
        self._site = replace(site, asleep=True, wake_at=now + duration if duration else inf)
        until = f'for {duration:g} s' if duration else 'until start or demand'
        return self._enter(SiteState.SLEEP, f'sleep {until} by {by}', now, f'sleeps {until}')

    def look(self, now: float, demand: str = '') -> Reply:
        """Automatic sleep and waking. `demand`: what is asked or flows now, in words; '' = nothing."""
        site = self._site
        if demand or site.state is not SiteState.RUN:
            self._busy = now
        if site.state is SiteState.RUN:
            after = self.params.sleep_after
            if not demand and after > 0.0 and now - max(self._busy, site.since) >= after:
                self._site = replace(self._site, asleep=True, wake_at=inf)
                return self._enter(SiteState.SLEEP, f'idle for {after:g} s', now, 'asleep')
        elif site.state is SiteState.SLEEP and site.asleep:
            # A sleep that somebody ordered for a time lasts that time; only an open one ends by demand.
            if now >= site.wake_at:
                return self._wake('sleep timer is over', now)
            if demand and self.params.wake_on_demand and site.wake_at == inf:
                return self._wake(f'demand: {demand}', now)
        return Reply(True, 'nothing to do')

    def _wake(self, cause: str, now: float) -> Reply:
        self._site = replace(self._site, asleep=False, wake_at=inf)
        self._busy = now
        return self._settle(cause, now, 'awake')

    @property
    def asleep(self) -> bool:
        """True while the site sleeps although it is wanted to run."""
        return self._site.asleep and self._site.state is SiteState.SLEEP

    def leave(self, target: SiteState, now: float, by: str = 'operator') -> Reply:
        """Announce REBOOT or RESTART; final for this process unless it fails. The wish to run stays for afterwards."""
        if target not in LEAVING:
            raise ValueError(f'{target.name} is not REBOOT or RESTART')
        if self._site.state in LEAVING:
            return Reply(False, f'refused: already in {self._site.state.name}')
        return self._enter(target, f'{target.name.lower()} by {by}', now, target.name.lower())

    def leave_failed(self, why: str, now: float) -> Reply:
        """The announced REBOOT or RESTART did not happen: the site goes on as before."""
        if self._site.state not in LEAVING:
            return Reply(False, 'the site is not about to leave')
        return self._settle(f'{self._site.state.name.lower()} failed: {why}', now, why, leave=True)

    # What survives a restart

    def saved(self, to_wall: Callable[[float], float]) -> dict[str, Any]:
        """Plain JSON values of what people want and what bars it. `to_wall`: site clock to epoch seconds."""
        s = self._site
        return {'wants_run': s.wants_run, 'mode': s.mode, 'beside': list(s.beside), 'maintenance': s.locked,
                'asleep': s.asleep, 'wake_at': to_wall(s.wake_at) if isfinite(s.wake_at) else None,
                'critical': [list(c) for c in s.critical]}

    def resume(self, saved: Mapping[str, Any], now: float, wall: float, sources: Iterable[str] | None = None) -> Reply:
        """Take over what `saved` gave, before anything else happens; `wall` is `now` in epoch seconds.

        `sources`: nodes whose critical faults still count, None = all. Raises ValueError, KeyError or TypeError for
        what `saved` did not give. The message of the reply says what could not be taken over, '' = everything.
        """
        if not saved['wants_run']:
            self.stop(now, 'operator before the restart')
        beside = saved.get('beside')
        replies = [self.set_mode(str(saved['mode']))]
        if beside is not None:
            replies += [self.set_beside(m, False) for m in self.beside if m not in beside]
            replies += [self.set_beside(str(m), True) for m in beside]
        wake_at, asleep = saved.get('wake_at'), bool(saved.get('asleep')) and self._site.wants_run
        known = None if sources is None else set(sources)
        critical = tuple((str(key), str(text)) for key, text in saved.get('critical', ())
                         if known is None or str(key).split('/')[0] in known)
        self._site = replace(self._site, critical=critical, asleep=asleep, wake_at=inf if wake_at is None or not asleep
                             else now + max(float(wake_at) - wall, 0.0))
        problems = '; '.join(r.message for r in replies if not r.accepted)
        reply = Reply(True, '')
        if saved.get('maintenance'):
            self._site = replace(self._site, locked=True, wants_run=False, asleep=False, wake_at=inf)
            reply = self._enter(SiteState.MAINTENANCE, 'maintenance from before the restart', now, '')
        elif critical:
            reply = self._enter(SiteState.ERROR, f'critical fault from before the restart: {critical[0][1]}', now, '')
        return replace(reply, accepted=not problems, message=problems)

    # What happens

    def node_active(self, node: str, now: float) -> Reply:
        """A node became active (first time or again)."""
        if node not in self.required:
            return Reply(True, f'{node} is not required')
        self._site = replace(self._site, missing=self._site.missing - {node})
        if self._site.missing:
            return Reply(True, f'still missing: {", ".join(self.missing)}')
        was_init = self._site.state is SiteState.INIT
        cause = 'all required nodes are active' if was_init else f'{node} is back'
        if was_init and self._site.asleep:
            cause = f'{cause}; asleep as before the restart'
        return self._settle(cause, now, cause)

    def node_lost(self, node: str, now: float, why: str = '') -> Reply:
        """A node is no longer active."""
        if node not in self.required:
            return Reply(True, f'{node} is not required')
        self._site = replace(self._site, missing=self._site.missing | {node})
        cause = f'{node} lost: {why}' if why else f'{node} lost'
        return self._settle(cause, now, cause)

    def critical_fault(self, key: str, text: str, now: float) -> Reply:
        """A critical fault latched; `key` names it uniquely, e.g. "battery_a/jbd.short_circuit"."""
        site = self._site
        wants_run = site.wants_run and self.params.resume_after_clear
        site = replace(site, asleep=site.asleep and wants_run)
        if key not in self.critical:
            site = replace(site, critical=(*site.critical, (key, text)))
        self._site = replace(site, wants_run=wants_run)
        return self._settle(f'critical fault: {text}', now, text)

    def fault_cleared(self, key: str, now: float) -> Reply:
        """A latched critical fault was cleared; `key` "" = all of them."""
        kept = tuple(c for c in self._site.critical if key and c[0] != key)
        if kept == self._site.critical:
            return Reply(False, f'no critical fault {key!r} is latched' if key else 'none is latched')
        self._site = replace(self._site, critical=kept)
        return self._settle('critical fault cleared', now, 'cleared')

    # Where that leads

    def _settle(self, cause: str, now: float, message: str, leave: bool = False) -> Reply:
        """Enter the state that follows from conditions and wishes."""
        site = self._site
        if not leave and site.state in (SiteState.MAINTENANCE, *LEAVING):
            return Reply(True, f'{message}; the site stays in {site.state.name}')
        if site.locked:
            target = SiteState.MAINTENANCE
        elif site.critical:
            target = SiteState.ERROR
            if not cause.startswith('critical fault:'):
                message = f'{message}; critical fault latched: {site.critical[0][1]}'
        elif site.missing:
            # Nodes that have never been there are no error, only a start that is not finished.
            target = SiteState.INIT if site.state is SiteState.INIT else SiteState.ERROR
        else:
            target = SiteState.RUN if site.wants_run and not site.asleep else SiteState.SLEEP
        return self._enter(target, cause, now, message)

    def _enter(self, target: SiteState, cause: str, now: float, message: str) -> Reply:
        site = self._site
        if target is site.state:
            return Reply(True, message)
        self._site = replace(site, state=target, previous=site.state, cause=cause, since=now)
        return Reply(True, message, Transition(site.state, target, cause, now))
