"""Sequences of the test controller: steps as text, checked before anything moves, and the order at a time. Pure.

Powers in W, + = charging; times in s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from ..site_state import SiteState

MOST_STEPS = 200
TRANSITIONS = {'start': SiteState.RUN, 'stop': SiteState.SLEEP, 'maintenance': SiteState.MAINTENANCE,
               'release': SiteState.SLEEP}
FORMS = 'hold:W:S, ramp:W:S, mode:NAME, start, stop, maintenance or release'


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `power` (W) and `duration` (s) of hold and ramp; `name` of a mode; NaN and '' otherwise."""

    kind: str
    power: float = nan
    duration: float = nan
    name: str = ''

    @property
    def powered(self) -> bool:
        """Whether it orders a power."""
        return self.kind in ('hold', 'ramp')

    @property
    def text(self) -> str:
        """As it is written."""
        if self.powered:
            return f'{self.kind}:{self.power:g}:{self.duration:g}'
        return f'{self.kind}:{self.name}' if self.kind == 'mode' else self.kind

    def order(self, elapsed: float, before: float) -> float:
        """W at a time within the step, `before` being the order of the step before it; NaN without power."""
        if self.kind == 'ramp':
            return before + (self.power - before) * min(max(elapsed / self.duration, 0.0), 1.0)
        return self.power


@dataclass(frozen=True, slots=True)
class Allowed:
    """What holds at the moment of asking. Powers are magnitudes in W; NaN = not known, so nothing is allowed."""

    state: SiteState
    modes: Sequence[str]
    max_charge: float
    max_discharge: float
    max_total: float  # s
    transition_time: float  # s, longest of one transition
    limited_by: str = ''  # what makes the powers what they are


def parse(texts: Iterable[str]) -> tuple[Step, ...]:
    """Steps from text. Raises ValueError that names the step."""
    steps = []
    for number, said in enumerate(texts, 1):
        kind, *rest = said.strip().split(':')
        try:
            if kind in ('hold', 'ramp') and len(rest) == 2:
                power, duration = float(rest[0]), float(rest[1])
                if not isfinite(power) or not (isfinite(duration) and duration > 0.0):
                    raise ValueError
                steps.append(Step(kind, power, duration))
            elif kind == 'mode' and len(rest) == 1 and rest[0]:
                steps.append(Step(kind, name=rest[0]))
            elif kind in TRANSITIONS and not rest:
                steps.append(Step(kind))
            else:
                raise ValueError
        except ValueError:
            raise ValueError(f'step {number}: {said!r} is not {FORMS}') from None
    if not steps:
        raise ValueError('no steps')
    if len(steps) > MOST_STEPS:
        raise ValueError(f'{len(steps)} steps; at most {MOST_STEPS} are allowed')
    return tuple(steps)


def total(steps: Iterable[Step], transition_time: float) -> float:
    """Longest time that the steps take, s."""
    return sum(s.duration if s.powered else transition_time for s in steps)


def check(steps: Sequence[Step], allowed: Allowed) -> str:
    """Why the sequence is refused; '' = it may run. Follows the site state through the transitions."""
    if (length := total(steps, allowed.transition_time)) > allowed.max_total:
        return f'the sequence takes up to {length:.0f} s; at most {allowed.max_total:.0f} s are allowed'
    state = allowed.state
    if state not in (SiteState.RUN, SiteState.SLEEP):
        return f'the site is in {state.name}: no test now'
    state = SiteState(state)  # from here on it changes with the steps
    for number, s in enumerate(steps, 1):
        where = f'step {number} ({s.text})'
        if s.powered:
            if state is not SiteState.RUN:
                return f'{where}: power flows only in RUN, and the site would be in {state.name}'
            room = allowed.max_charge if s.power > 0.0 else allowed.max_discharge
            if s.power and not abs(s.power) <= room:
                verb = 'charging' if s.power > 0.0 else 'discharging'
                known = f'only {room:.0f} W of {verb} are allowed now' if isfinite(room) else f'{verb} is not allowed'
                return f'{where}: {known}' + (f' ({allowed.limited_by})' if allowed.limited_by else '')
        elif s.kind == 'mode':
            if s.name != 'none' and s.name not in allowed.modes:
                return f'{where}: no such mode; there is: {", ".join([*allowed.modes, "none"])}'
        elif s.kind == 'release' and state is not SiteState.MAINTENANCE:
            return f'{where}: the site would not be in MAINTENANCE'
        elif s.kind in ('start', 'stop') and state is SiteState.MAINTENANCE:
            return f'{where}: the site would be in MAINTENANCE'
        else:
            state = TRANSITIONS[s.kind]
    return ''
