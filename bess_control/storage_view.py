"""What is known of a storage unit at one moment, what follows from it, and what its machine says. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan

from bess_control.storage_params import StorageParams, StorageState
from bess_core.values import BatteryReading, Contactor, ConverterState, Mode, Quality

#: Closed for at least one direction: a battery that is too empty to discharge must be able to charge.
CLOSED = (Contactor.CLOSED, Contactor.CHARGE_ONLY, Contactor.DISCHARGE_ONLY)


@dataclass(slots=True)
class View:
    """What is known of the unit at one moment."""

    battery: BatteryReading = field(default_factory=BatteryReading)
    contactor: Contactor = Contactor.UNKNOWN  # of the battery management system
    contactor_time: float = -inf  # s, when it was measured
    converter: ConverterState = ConverterState.UNKNOWN
    converter_time: float = -inf  # s
    converter_on: bool = False  # it was started: it takes orders
    faults: tuple[str, ...] = ()  # what battery and converter report, in words
    has_contactor: bool = True  # False: there is none to switch
    has_converter: bool = True  # False: there is none to switch

    def not_sound(self, now: float, age: float) -> str:
        """What is missing for a start, from readings of at most this age (s); '' = nothing."""
        if self.has_contactor and not now - self.contactor_time <= age:
            return 'the battery management system is not read'
        if self.has_converter and not now - self.converter_time <= age:
            return 'the converter is not read'
        if not self.has_contactor and self.battery.quality is Quality.INVALID:
            return 'the battery is not read'
        if self.has_converter and self.converter is ConverterState.FAULT:
            return 'the converter is in fault'
        if self.battery.mode is Mode.FAULT:
            return 'the battery is in fault'
        return ''

    def closed(self, since: float) -> bool:
        """The contactors were measured closed since then, when it was asked for."""
        return not self.has_contactor or (self.contactor in CLOSED and self.contactor_time >= since)

    def open(self, since: float) -> bool:
        """The contactors were measured open since then."""
        return not self.has_contactor or (self.contactor is Contactor.OPEN and self.contactor_time >= since)

    def converter_ready(self, now: float, age: float) -> bool:
        """The converter takes orders."""
        return not self.has_converter or (
            self.converter_on and self.converter in (ConverterState.STANDBY, ConverterState.RUNNING)
            and now - self.converter_time <= age)

    @property
    def converter_off(self) -> bool:
        """The converter takes no orders and gives nothing."""
        return not self.has_converter or (not self.converter_on and self.converter is not ConverterState.RUNNING)

    def fresh(self, now: float, age: float) -> bool:
        """The battery's reading is usable and at most so old."""
        return self.battery.quality is not Quality.INVALID and now - self.battery.time <= age

    def rests(self, now: float, since: float, p: StorageParams) -> bool:
        """Nothing flows, measured since then."""
        b = self.battery
        return self.fresh(now, p.max_data_age) and b.time >= since and abs(b.power) <= p.zero_tolerance

    def no_current(self, now: float, age: float) -> bool:
        """Nothing can flow: the contactors are known to be open."""
        return self.has_contactor and self.contactor is Contactor.OPEN and now - self.contactor_time <= age

    def follows(self, order: float, since: float, p: StorageParams) -> bool:
        """The measured power is the ordered one (W or A), within tolerance, and of the right sign."""
        b = self.battery
        if isnan(order) or order == 0.0 or b.quality is Quality.INVALID or b.time < since:
            return False
        wish = order * b.voltage if p.in_current else order
        power = b.current * b.voltage if p.in_current and isfinite(b.current) else b.power
        if abs(wish) <= p.zero_tolerance:
            return abs(power) <= p.zero_tolerance
        return abs(power - wish) <= max(p.follow_tolerance * abs(wish), p.zero_tolerance) and power * wish > 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """One transition."""

    previous: StorageState
    state: StorageState
    cause: str
    time: float  # s


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to a command; `state` is the state after it."""

    accepted: bool
    message: str
    state: StorageState


@dataclass(slots=True)
class Wanted:
    """What is to be made true now. `order` in W or A (see user_command_mode); NaN = no order."""

    contactor: bool | None = None  # True closed, False open, None as it is
    converter: bool | None = None  # True on, False off, None as it is
    order: float = nan  # + = charging
    reactive: float = nan  # var, NaN = leave
    reasons: list[str] = field(default_factory=list)  # why `order` is not what was asked, and what is waited for
    alarms: list[tuple[str, str]] = field(default_factory=list)  # (fault id, text), present now
    changes: list[Change] = field(default_factory=list)  # since the last tick
