"""What every mode has: its view of the site, its parameters, and the proposals it makes. Pure.

A mode class is registered under the entry point group ``bess.modes``. It has a frozen dataclass
`Params`, is made as ``cls(params, source, battery, meter)`` and offers ``decide(view)`` and
``reset()``. What else it wants to see it says in class attributes; see `ModeBase`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any, ClassVar

from bess_control.proposals import Proposal
from bess_core.params import param
from bess_core.values import BatteryReading, ConverterReading, MeterReading


@dataclass(frozen=True, slots=True)
class Signal:
    """A digital input as it was last heard: `value`, and when (site time in s)."""

    value: bool
    time: float


@dataclass(slots=True)
class View:
    """What a mode sees at one moment. Times in site seconds, except `wall` (epoch s)."""

    now: float
    battery: BatteryReading
    meter: MeterReading | None = None  # at the grid connection
    granted: float | None = None  # W, what the power manager last granted for the battery; None = nothing yet
    wall: float = nan  # s since the epoch, for times of day and tariffs
    meters: dict[str, MeterReading] = field(default_factory=dict)  # by the name of the parameter that names it
    signals: dict[str, Signal] = field(default_factory=dict)  # by the name of the parameter that names the topic
    converter: ConverterReading | None = None


@dataclass(frozen=True)
class ModeBaseParams:
    """Parameters of every mode."""

    priority: int = param(
        100, '', low=0, high=255,
        doc='Priority of the proposals: higher is resolved first, and narrows what lower ones may choose.')
    lease_s: float = param(
        3.0, 's', low=0.1, high=60.0,
        doc='Lease of each proposal.')


@dataclass(frozen=True)
class BoundParams(ModeBaseParams):
    """Parameters of modes that limit others; above the modes that steer."""

    priority: int = param(
        150, '', low=0, high=255,
        doc='Priority of the proposals; a limit belongs above the modes that it is to limit.')


class ModeBase:
    """Base of the modes. Subclasses override `decide`, and `reset` where they remember something."""

    Params: ClassVar[type] = ModeBaseParams
    needs_meter: ClassVar[bool] = False  # the meter at the grid connection must be named
    meters: ClassVar[tuple[str, ...]] = ()  # names of parameters that name further meters
    signals: ClassVar[tuple[str, ...]] = ()  # names of parameters that name topics of digital inputs
    takes_setpoints: ClassVar[bool] = False  # has `order`: leased setpoints on `~/setpoint`
    takes_manual: ClassVar[bool] = False  # has `manual`: service `~/set_power`
    takes_schedule: ClassVar[bool] = False  # has `set_schedule`: service `~/set_schedule`
    takes_heartbeat: ClassVar[bool] = False  # has `beat`: topic `~/heartbeat`

    def __init__(self, params: Any, source: str = '', battery: str = '', meter: str = '') -> None:
        self.params = params
        self.source = source
        self.battery = battery
        self.meter = meter
        self.state = ''  # in one word, for people
        self.text = ''  # reason of the last proposal
        self.problem = ''  # why it cannot do its work, in words
        self.values: dict[str, float] = {}  # what it reckons with, for people; SI units
        self.outputs: dict[str, bool] = {}  # topics of digital outputs (std_msgs/Bool) and their values
        self.dirty = False  # `save` has something new; whoever saves sets it back

    def reset(self) -> None:
        """The mode is switched on: start bumplessly from what it sees next."""

    def decide(self, view: View) -> Proposal | None:
        """What the mode wants now; None = what it said last still holds (until its lease ends)."""
        raise NotImplementedError(f'{type(self).__name__} does not decide')

    def step(self, meter: MeterReading | None, battery: BatteryReading, granted: float | None,
             now: float) -> Proposal | None:
        """`decide` for callers that have no more than this (times of day count from the epoch at 0)."""
        return self.decide(View(now=now, battery=battery, meter=meter, granted=granted, wall=now))

    def propose(self, view: View, preferred: float = nan, *, low: float = -inf, high: float = inf,
                reactive: float = nan, reason: str = '') -> Proposal:
        """A proposal of this mode: preferred power and bounds in W, + = charging; NaN = no preference."""
        self.text = reason
        return Proposal(
            source=self.source, battery=self.battery, priority=self.params.priority,
            min_power=low + 0.0, max_power=high + 0.0,
            preferred_power=preferred + 0.0, preferred_reactive_power=reactive + 0.0,
            lease=self.params.lease_s, reason=reason, time=view.now)


def soc_problem(battery: BatteryReading) -> str:
    """Why the state of charge can not be used, in words; "" when it can."""
    if not isfinite(battery.soc) or not -0.01 <= battery.soc <= 1.01:
        return 'state of charge is unknown'
    return ''
