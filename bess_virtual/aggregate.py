"""Aggregate: several batteries seen as one, by energy and power (members may differ in voltage).

Energy E (Wh stored), headroom H (Wh until full), limits P_d and P_c (W, magnitudes) per member:

    together:  P_d,max = sum(E) * min(P_d,i / E_i)    over members that can discharge and have E_i > 0
               P_c,max = sum(H) * min(P_c,i / H_i)    over members that can charge and have H_i > 0
    sum:       P_d,max = sum(P_d,i), P_c,max = sum(P_c,i) over the same members

'together' can be held until all members are empty (full) at the same moment; 'sum' only until the
first of them is. A member that is empty, full, blocked, failed or stale is left out of the minimum,
so it never blocks the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import Literal

from bess_core.values import BatteryReading, Contactor, Mode, Quality, quality_of
from bess_virtual.allocation import Allocation, allocate

Limit = Literal['together', 'sum']

BALANCED = 0.99
"""The pace-setting member is named when members together reach less than this part of the plain sum."""


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
            charge = _power_limit(r.max_charge_power, r.max_charge_current, r.voltage)
        if energy != 0 and r.contactor != Contactor.CHARGE_ONLY:
            discharge = _power_limit(r.max_discharge_power, r.max_discharge_current, r.voltage)
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


def combine(
    members: Sequence[BatteryReading],
    now: float,
    max_age: float,
    invalid_after: float,
    *,
    limit: Limit = 'together',
    names: Sequence[str] | None = None,
) -> BatteryReading:
    """The aggregate of `members` at time `now` (s).

    Stored energy, limits, SoC and extremes are those of the usable members (fresh, closed, not off,
    not failed); `members_usable` and `limit_reasons` tell who is missing and why. Measured power and
    current are summed over all fresh members, counters over all members. `time` is the oldest
    contributing sample. With no usable member the values of the best remaining ones are kept with
    their quality, and the limits are 0. Energy that one member does not know counts as 0 and is
    named. Currents hold at the aggregate's own voltage. `names` label the members in reasons.
    """
    if not members:
        return BatteryReading(
            max_charge_current=0.0, max_discharge_current=0.0, max_charge_power=0.0,
            max_discharge_power=0.0, members=0, members_usable=0, limit_reasons=['no members'])
    views = [view(r, now, max_age, invalid_after) for r in members]
    labels = names if names is not None else [f'member {i}' for i in range(len(views))]
    usable = [m for m in views if not m.blocked]
    best = min(m.quality for m in views)
    parts = usable or [m for m in views if m.quality == best]
    fresh = [m.reading for m in views if m.quality == best]

    reasons: list[str] = []
    for label, m in zip(labels, views, strict=True):
        if m.blocked:
            reasons.append(f'{label}: {m.blocked}')
        elif isnan(m.energy) or isnan(m.headroom):
            reasons.append(f'{label}: energy not known, not counted')
        if m.reading.limit_reasons:
            reasons += [f'{label}: {text}' for text in m.reading.limit_reasons]

    discharge = _limit('discharge', limit, labels, views, reasons)
    charge = _limit('charge', limit, labels, views, reasons)
    energy = _known_sum([m.energy for m in parts])
    full = _known_sum([m.energy_full for m in parts])
    power = _sum([_power(r) for r in fresh])
    voltage = _voltage(parts, power > 0)
    result = BatteryReading(
        time=min(m.reading.time for m in parts),
        newest=max(m.reading.newest for m in parts),
        quality=max(m.quality for m in parts),
        mode=_mode([m.reading.mode for m in parts], power),
        contactor=_contactor([m.reading.contactor for m in parts]),
        voltage=voltage,
        current=_current(fresh, voltage, power),
        power=power,
        charge=_known_sum([_charge(m.reading.charge, m.energy, m.reading.voltage) for m in parts]),
        charge_full=_known_sum(
            [_charge(m.reading.charge_full, m.energy_full, m.reading.voltage) for m in parts]),
        energy=energy,
        energy_full=full,
        max_charge_current=_per_volt(charge, voltage),
        max_discharge_current=_per_volt(discharge, voltage),
        max_charge_power=charge,
        max_discharge_power=discharge,
        soc=_soc(parts),
        soh=_weighted([(m.reading.soh, m.energy_full) for m in parts]),
        energy_charged=_sum([r.energy_charged for r in members]),
        energy_discharged=_sum([r.energy_discharged for r in members]),
        members=len(views),
        members_usable=len(usable),
        limit_reasons=reasons,
    )
    for m in parts:
        r = m.reading
        # written so that a NaN on the left is replaced and a NaN on the right is ignored
        if not result.temperature >= r.temperature and not isnan(r.temperature):
            result.temperature = r.temperature
        coldest = r.temperature if isnan(r.temperature_min) else r.temperature_min
        if not result.temperature_min <= coldest and not isnan(coldest):
            result.temperature_min = coldest
        if not result.cell_voltage_min <= r.cell_voltage_min and not isnan(r.cell_voltage_min):
            result.cell_voltage_min = r.cell_voltage_min
        if not result.cell_voltage_max >= r.cell_voltage_max and not isnan(r.cell_voltage_max):
            result.cell_voltage_max = r.cell_voltage_max
    return result


def split(
    power: float,
    members: Sequence[BatteryReading],
    now: float,
    max_age: float,
    invalid_after: float,
    *,
    minimum: Sequence[float] | None = None,
    running: Sequence[bool] | None = None,
) -> Allocation:
    """Who delivers how much of `power` (W, + = charging): by energy when discharging, by headroom
    when charging, within each member's own limits (`allocation.allocate`).

    A member whose energy is not known is weighed as if it lasted as long as the others do. To be
    called every tick, so that the shares follow the energies.
    """
    views = [view(r, now, max_age, invalid_after) for r in members]
    return allocate(
        power,
        _weights([m.headroom for m in views], [m.charge_power for m in views]),
        _weights([m.energy for m in views], [m.discharge_power for m in views]),
        [-m.discharge_power for m in views],
        [m.charge_power for m in views],
        exclusion=minimum,
        running=running,
    )


def _weights(energies: list[float], limits: list[float]) -> list[float]:
    """Energies; where unknown, limit times the mean duration of those that are known."""
    if not any(isnan(e) for e in energies):
        return energies
    known = [(e, p) for e, p in zip(energies, limits, strict=True) if e > 0 and 0 < p < inf]
    total = sum(p for _, p in known)
    hours = sum(e for e, _ in known) / total if total > 0 else 1.0
    return [(p * hours if p < inf else 0.0) if isnan(e) else e
            for e, p in zip(energies, limits, strict=True)]


def _limit(direction: Literal['charge', 'discharge'], rule: Limit, labels: Sequence[str],
           views: list[Member], reasons: list[str]) -> float:
    """Common limit in one direction, and why it is below the plain sum."""
    total = stored = 0.0
    unknown = 0.0
    pace = inf
    slowest = ''
    charging = direction == 'charge'
    for label, m in zip(labels, views, strict=True):
        if m.blocked:
            continue
        if charging:
            limit, energy = m.charge_power, m.headroom
        else:
            limit, energy = m.discharge_power, m.energy
        if limit <= 0:
            full, empty = charging and energy == 0, energy == 0
            what = 'full' if full else 'empty' if empty else f'must not {direction}'
            reasons.append(f'{label}: {what}')
            continue
        total += limit
        if energy > 0:
            stored += energy
            if limit / energy < pace:
                pace, slowest = limit / energy, label
        elif isnan(energy):
            unknown += limit  # a member of unknown energy adds its power and does not set the pace
    if rule == 'sum' or pace == inf:
        return total
    together = min(stored * pace + unknown, total)
    if together < BALANCED * total:
        reasons.append(f'{direction} {together:.0f} W of {total:.0f} W so that members finish'
                       f' together: {slowest} sets the pace')
    return together


def _power_limit(power: float, current: float, voltage: float) -> float:
    """Limit in W >= 0; from the current where no power limit is known; 0 when neither is."""
    if isnan(power):
        power = current * voltage
    return power if power > 0 else 0.0


def _power(r: BatteryReading) -> float:
    return r.current * r.voltage if isnan(r.power) else r.power


def _charge(charge: float, energy: float, voltage: float) -> float:
    """Ah; from the energy where not measured."""
    return energy / voltage if isnan(charge) and voltage > 0 else charge


def _voltage(parts: list[Member], charging: bool) -> float:
    """Weighted by charge when discharging, by headroom (Ah) when charging; NaN only if none is known."""
    known = [m for m in parts if m.reading.voltage > 0]
    for by_headroom in (charging, not charging):
        energy = charge = 0.0
        for m in known:
            weight = m.headroom if by_headroom else m.energy
            if weight > 0:
                energy += weight
                charge += weight / m.reading.voltage
        if charge > 0:
            return energy / charge
    if known:
        return sum(m.reading.voltage for m in known) / len(known)
    return 0.0 if any(m.reading.voltage == 0 for m in parts) else nan


def _current(fresh: list[BatteryReading], voltage: float, power: float) -> float:
    """Current at the aggregate's voltage, from the DC power of the members where it is measured."""
    direct = _sum([r.current * r.voltage for r in fresh])
    return _per_volt(power if isnan(direct) else direct, voltage)


def _per_volt(power: float, voltage: float) -> float:
    if power == 0:
        return 0.0
    return power / voltage if voltage > 0 else nan


def _soc(parts: list[Member]) -> float:
    """Stored energy over full energy of the members that know both; else the mean of known SoCs."""
    stored = full = 0.0
    for m in parts:
        if m.energy_full > 0 and m.energy >= 0:
            stored += m.energy
            full += m.energy_full
    if full > 0:
        return stored / full
    return _weighted([(m.reading.soc, 1.0) for m in parts])


def _weighted(pairs: list[tuple[float, float]]) -> float:
    """Weighted mean of known values; equal weights when no weight is known."""
    total = weights = 0.0
    for v, w in pairs:
        if w > 0 and not isnan(v):
            total += v * w
            weights += w
    if weights > 0:
        return total / weights
    known = [v for v, _ in pairs if not isnan(v)]
    return sum(known) / len(known) if known else nan


def _known_sum(values: list[float]) -> float:
    """Sum of what is known; NaN when nothing is."""
    total = sum(values)
    if not isnan(total):
        return total if values else nan
    known = [v for v in values if not isnan(v)]
    return sum(known) if known else nan


def _sum(values: list[float]) -> float:
    """Plain sum: one unknown member makes it unknown."""
    return sum(values) if values else nan


def _mode(modes: list[Mode], power: float) -> Mode:
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


def _contactor(states: list[Contactor]) -> Contactor:
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
