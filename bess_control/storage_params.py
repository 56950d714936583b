"""Options of a storage unit, under the names and with the defaults of the BESS Agent (University of Toledo). Pure.

States of charge are in percent here, as in the original; powers in W, except where an option says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, tzinfo
from enum import IntEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bess_core.params import param


class StorageState(IntEnum):
    """States of `msg/StorageState.msg`; numbers and names of the BESS Agent."""

    STOPPED = 0
    STARTING = 1
    CONNECTING = 2
    CONNECTED = 3
    HOLD_TRANSITION = 4
    HOLDING = 5
    CHARGE_TRANSITION = 6
    CHARGING = 7
    DISCHARGE_TRANSITION = 8
    DISCHARGING = 9
    STOPPING = 10
    LOW_SOC_RECOVERY = 11


S = StorageState
#: States in which charge, discharge and hold are accepted, transitions under way included.
READY = (S.HOLD_TRANSITION, S.HOLDING, S.CHARGE_TRANSITION, S.CHARGING, S.DISCHARGE_TRANSITION, S.DISCHARGING)
#: Request -> states from which it is allowed. STOPPING is allowed from everywhere, always.
ALLOWED: dict[StorageState, tuple[StorageState, ...]] = {
    S.STARTING: (S.STOPPED,),
    S.CONNECTING: (S.STARTING,),
    S.CONNECTED: (S.CONNECTING,),
    S.HOLD_TRANSITION: (S.CONNECTED, S.LOW_SOC_RECOVERY, *READY),
    S.CHARGE_TRANSITION: READY,
    S.DISCHARGE_TRANSITION: READY,
    S.LOW_SOC_RECOVERY: (S.CONNECTED, S.LOW_SOC_RECOVERY, *READY),
}
#: What configuration may not allow: power with open contactors, or undoing a stop.
NEVER = {
    S.STARTING: (S.STOPPING,),
    **dict.fromkeys((S.HOLD_TRANSITION, S.CHARGE_TRANSITION, S.DISCHARGE_TRANSITION, S.LOW_SOC_RECOVERY),
                    (S.STOPPED, S.STOPPING, S.STARTING, S.CONNECTING)),
    S.CONNECTING: tuple(s for s in S if s is not S.STARTING),
    S.CONNECTED: tuple(s for s in S if s is not S.CONNECTING),
}


@dataclass(frozen=True, kw_only=True)
class StorageParams:
    """Options of the storage machine."""

    tz: str = param('UTC', '', 'time zone of the times in `system_state_publish_topic`')
    soc_monitor_max_time: float = param(
        30.0, 's', 'a unit in operation without a younger state of charge is stopped', low=0.1, high=3600.0)
    soc_high_limit: float = param(90.0, '%', 'highest state of charge; charging ends here', low=0.0, high=100.0)
    soc_low_limit: float = param(10.0, '%', 'lowest state of charge; recovery begins here', low=0.0, high=100.0)
    soc_recovered_level: float = param(20.0, '%', 'recovery ends here', low=0.0, high=100.0)
    soc_hysteresis: float = param(
        1.0, '%', 'after a limit was reached the state of charge must come back so far before that direction is '
        'allowed again', low=0.0, high=50.0)
    soc_monitor_interval: float = param(1.0, 's', 'how often the limits are looked at', low=0.01, high=60.0)
    soc_recovery_check_interval: float = param(1.0, 's', 'the same during recovery', low=0.01, high=60.0)
    soc_low_recovery_charge_command: float = param(
        10.0, '', 'rate of recovery: kW with user_command_mode POWER, A with CURRENT', low=0.0, high=100.0)
    system_fault_check_interval: float = param(1.0, 's', 'how often battery and converter are asked for faults',
                                               low=0.01, high=60.0)
    wait_connecting_interval: float = param(
        1.0, 's', 'how often contactors and converter are told again while their answer is awaited',
        low=0.01, high=60.0)
    strict_power_sign: bool = param(
        True, '', 'a negative charge or discharge command is refused and the unit holds; false: its magnitude counts')
    user_command_mode: str = param('POWER', '', 'unit of commands: POWER in W, CURRENT in A',
                                   choices=['POWER', 'CURRENT'])
    max_inverter_command: float = param(
        125.0, '', 'highest command: kW with user_command_mode POWER, A with CURRENT', low=0.0, high=1e6)
    start_timeout: float = param(30.0, 's', 'longest stay in STARTING', low=0.1, high=3600.0)
    connect_timeout: float = param(60.0, 's', 'longest stay in CONNECTING', low=0.1, high=3600.0)
    inverter_timeout: float = param(60.0, 's', 'longest stay in CONNECTED', low=0.1, high=3600.0)
    transition_timeout: float = param(
        30.0, 's', 'power that is not there after so long: a charge or discharge becomes hold, a hold becomes stop',
        low=0.1, high=3600.0)
    recovery_timeout: float = param(
        3600.0, 's', 'recovery that gains no state of charge for so long ends in stop', low=1.0, high=86400.0)
    stop_timeout: float = param(
        10.0, 's', 'each step of a stop; the next one follows anyway, and a stop that is not confirmed is a fault',
        low=0.1, high=600.0)
    zero_tolerance: float = param(100.0, 'W', 'power below which nothing flows', low=0.0, high=1e6)
    follow_tolerance: float = param(
        0.1, '', 'share of the order within which power counts as there (zero_tolerance at least)', low=0.0, high=1.0)
    max_data_age: float = param(5.0, 's', 'older readings of battery or converter start nothing', low=0.1, high=3600.0)
    allowed_transitions: dict = param(  # type: ignore[type-arg]
        {}, '', 'state that is entered -> list of the states from which; replaces the default of that state')

    def __post_init__(self) -> None:
        if not self.soc_low_limit <= self.soc_high_limit:
            raise ValueError(f'soc_low_limit {self.soc_low_limit:g} is above soc_high_limit {self.soc_high_limit:g}')
        if not self.soc_low_limit < self.soc_recovered_level <= self.soc_high_limit:
            raise ValueError(f'soc_recovered_level {self.soc_recovered_level:g} must be above soc_low_limit '
                             f'{self.soc_low_limit:g} and at most soc_high_limit {self.soc_high_limit:g}')
        try:
            self.zone  # noqa: B018 - checks it
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f'tz {self.tz!r} is no time zone') from error
        self.transitions()

    @property
    def zone(self) -> tzinfo:
        """Time zone `tz`."""
        return UTC if self.tz == 'UTC' else ZoneInfo(self.tz)  # UTC is known without a time zone data base

    @property
    def in_current(self) -> bool:
        """True when commands are in A."""
        return self.user_command_mode == 'CURRENT'

    @property
    def recovery_rate(self) -> float:
        """Rate of recovery in W or A."""
        return self.soc_low_recovery_charge_command * (1.0 if self.in_current else 1000.0)

    @property
    def highest_command(self) -> float:
        """Highest command in W or A."""
        return self.max_inverter_command * (1.0 if self.in_current else 1000.0)

    def transitions(self) -> dict[StorageState, tuple[StorageState, ...]]:
        """The table of allowed transitions. ValueError when the configured one is not usable."""
        table = dict(ALLOWED)
        for key, value in self.allowed_transitions.items():
            target = _state(key)
            if target not in ALLOWED:
                raise ValueError(f'allowed_transitions: {target.name} cannot be configured; '
                                 f'possible: {", ".join(s.name for s in ALLOWED)}')
            if not isinstance(value, (list, tuple)):
                raise ValueError(f'allowed_transitions: {target.name} needs a list of states, not {value!r}')
            sources = tuple(dict.fromkeys(_state(v) for v in value))
            if bad := [s.name for s in sources if s in NEVER[target]]:
                raise ValueError(f'allowed_transitions: {target.name} must never follow {", ".join(bad)}')
            table[target] = sources
        for target, source in ((S.CONNECTING, S.STARTING), (S.CONNECTED, S.CONNECTING),
                               (S.HOLD_TRANSITION, S.CONNECTED), (S.HOLD_TRANSITION, S.LOW_SOC_RECOVERY)):
            if source not in table[target]:
                raise ValueError(f'allowed_transitions: without {source.name} -> {target.name} the unit is stuck')
        return table


def _state(name: object) -> StorageState:
    try:
        return StorageState[str(name)]
    except KeyError:
        raise ValueError(f'allowed_transitions: unknown state {name!r}; '
                         f'known: {", ".join(s.name for s in StorageState)}') from None
