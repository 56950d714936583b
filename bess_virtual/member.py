"""One member of a whole: age, usability, energy and limits, derived where they are not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan

from bess_core.values import BatteryReading, Contactor, Mode, Quality, quality_of


@dataclass(slots=True)
class Member:
    """What an aggregate uses of one member. NaN where nothing is known."""

    reading: BatteryReading
    quality: Quality  # worst of the member's own and of its age
    blocked: str  # why it takes no part at present; '' = usable
    energy: float  # Wh
    energy_full: float  # Wh
    headroom: float  # Wh
    charge_power: float  # W, >= 0, 0 when blocked or full
    discharge_power: float  # W, >= 0, 0 when blocked or empty


def view(reading: BatteryReading, now: float, max_age: float, invalid_after: float) -> Member:
    """One member at time `now`: age, usability, energy and limits, derived where not measured."""
    r = reading
    quality = r.quality
    if not now - r.time <= max_age:
        quality = max(quality, quality_of(now - r.time, max_age, invalid_after))
    energy, full = energy_of(r)
    headroom = full - energy if full > energy else (0.0 if full <= energy else nan)
    blocked = ''
    charge = discharge = 0.0
    if quality != Quality.OK:
        blocked = (f'{"stale" if quality == Quality.STALE else "invalid"}, '
                   + (f'{now - r.time:.1f} s old' if isfinite(r.time) else 'never read'))
    elif r.mode == Mode.FAULT:
        blocked = 'fault'
    elif r.mode == Mode.OFF:
        blocked = 'off'
    elif r.contactor == Contactor.OPEN:
        blocked = 'contactor open'
    else:
        # NaN compares false: an unknown limit allows nothing
        if headroom != 0 and r.contactor != Contactor.DISCHARGE_ONLY:
            charge = power_limit(r.max_charge_power, r.max_charge_current, r.voltage)
        if energy != 0 and r.contactor != Contactor.CHARGE_ONLY:
            discharge = power_limit(r.max_discharge_power, r.max_discharge_current, r.voltage)
    return Member(r, quality, blocked, energy, full, headroom, charge, discharge)


def energy_of(r: BatteryReading) -> tuple[float, float]:
    """Energy now and when full in Wh; from charge and voltage, or from SoC, where not measured."""
    full, energy = r.energy_full, r.energy
    if energy >= 0.0 and full >= 0.0:
        return energy, full
    if isnan(full):
        full = r.charge_full * r.voltage
    if isnan(energy):
        energy = r.charge * r.voltage
        if isnan(energy):
            energy = r.soc * full
    return (energy if not energy < 0 else 0.0), full


def power_limit(power: float, current: float, voltage: float) -> float:
    """Limit in W >= 0; from the current where no power limit is known; 0 when neither is."""
    if isnan(power):
        power = current * voltage
    return power if power > 0 else 0.0


def common_mode(modes: Sequence[Mode], power: float) -> Mode:
    """Mode of a whole whose measured power is `power` (W, + = charging)."""
    if modes.count(modes[0]) == len(modes):
        return modes[0]
    if Mode.CHARGING in modes or Mode.DISCHARGING in modes:
        if power > 0:
            return Mode.CHARGING
        if power < 0:
            return Mode.DISCHARGING
    for mode in (Mode.CHARGING, Mode.DISCHARGING, Mode.IDLE, Mode.FAULT, Mode.OFF):
        if mode in modes:
            return mode
    return Mode.UNKNOWN


def common_contactor(states: Sequence[Contactor]) -> Contactor:
    """What the members allow together: closed in a direction when any member is."""
    if states.count(states[0]) == len(states):
        return states[0]
    charge = Contactor.CLOSED in states or Contactor.CHARGE_ONLY in states
    discharge = Contactor.CLOSED in states or Contactor.DISCHARGE_ONLY in states
    if charge and discharge:
        return Contactor.CLOSED
    if Contactor.UNKNOWN in states:
        return Contactor.UNKNOWN
    return (Contactor.CHARGE_ONLY if charge
            else Contactor.DISCHARGE_ONLY if discharge else Contactor.OPEN)
