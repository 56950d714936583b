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
from math import inf, isnan
from typing import Literal

import numpy as np

from bess_core.values import BatteryReading
from bess_virtual import aggregate_many as many
from bess_virtual.aggregate_values import (
    charge_of,
    current_of,
    known_sum,
    per_volt,
    plain_sum,
    power_of,
    soc_of,
    spread_of,
    voltage_of,
    weighted,
)
from bess_virtual.allocation import Allocation, allocate
from bess_virtual.expected import expect, usual
from bess_virtual.member import Member, common_contactor, common_mode, energy_of, power_limit, view
from bess_virtual.reasons import MAX_MISSING, MAX_REASONS, limited_list
from bess_virtual.zones import Zone, allocate_in_bands

Limit = Literal['together', 'sum']

FEW = 16
"""Beyond so many members they are handled as columns of arrays: the same values, less time."""

BALANCED = 0.99
"""The pace-setting member is named when members together reach less than this part of the plain sum."""


def combine(
    members: Sequence[BatteryReading],
    now: float,
    max_age: float,
    invalid_after: float,
    *,
    limit: Limit = 'together',
    names: Sequence[str] | None = None,
    last_good: Sequence[BatteryReading] | None = None,
) -> BatteryReading:
    """The aggregate of `members` at time `now` (s).

    Stored energy, limits, SoC and extremes are those of the usable members (fresh, closed, not off,
    not failed); `members_usable` and `limit_reasons` tell who is missing and why. Measured power and
    current are summed over all fresh members, counters over all members. `time` is the oldest
    contributing sample. With no usable member the values of the best remaining ones are kept with
    their quality, and the limits are 0. Energy that one member does not know counts as 0 and is
    named. Currents hold at the aggregate's own voltage. `names` label the members in reasons.

    `missing` names who takes no part and why; the `expected_*` values are those with every member as
    in `last_good` (its last reading while it took part; without it, as last read).
    """
    if not members:
        return BatteryReading(
            max_charge_current=0.0, max_discharge_current=0.0, max_charge_power=0.0,
            max_discharge_power=0.0, members=0, members_usable=0, limit_reasons=['no members'])
    labels = names if names is not None else [f'member {i}' for i in range(len(members))]
    if len(members) > FEW:
        return _combine_many(members, now, max_age, invalid_after, limit, labels, last_good)
    views = [view(r, now, max_age, invalid_after) for r in members]
    if len(views) == 1 and _is_plain(views[0]):
        return _of_one(views[0], labels[0], limit)
    usable = [m for m in views if not m.blocked]
    best = views[0].quality
    for m in views:
        best = min(best, m.quality)
    parts = usable or [m for m in views if m.quality == best]
    fresh = [m.reading for m in views if m.quality == best]

    missing, reasons = _who_is_missing(labels, views)
    discharge = _limit('discharge', limit, labels, views, reasons)
    charge = _limit('charge', limit, labels, views, reasons)
    more = _limits_of_members(labels, members, reasons)
    power = energy_charged = energy_discharged = 0.0
    for r in fresh:
        power += power_of(r)
    for r in members:
        energy_charged += r.energy_charged
        energy_discharged += r.energy_discharged
    voltage = voltage_of(parts, power > 0)
    sums = _sums(parts)
    time, newest, quality = parts[0].reading.time, parts[0].reading.newest, parts[0].quality
    for m in parts:
        time, newest = min(time, m.reading.time), max(newest, m.reading.newest)
        quality = max(quality, m.quality)
    result = BatteryReading(
        time=time,
        newest=newest,
        quality=quality,
        mode=common_mode([m.reading.mode for m in parts], power),
        contactor=common_contactor([m.reading.contactor for m in parts]),
        voltage=voltage,
        current=current_of(fresh, voltage, power),
        power=power,
        charge=sums[2],
        charge_full=sums[3],
        energy=sums[0],
        energy_full=sums[1],
        max_charge_current=per_volt(charge, voltage),
        max_discharge_current=per_volt(discharge, voltage),
        max_charge_power=charge,
        max_discharge_power=discharge,
        soc=soc_of(parts),
        soh=weighted([m.reading.soh for m in parts], [m.energy_full for m in parts]),
        energy_charged=energy_charged,
        energy_discharged=energy_discharged,
        balance_power=0.0,
        soc_spread=spread_of(parts),
        members=len(views),
        members_usable=len(usable),
        limit_reasons=limited_list(reasons, more=more),
        missing=limited_list(missing, MAX_MISSING),
    )
    _set_expected(result, members, last_good, [bool(m.blocked) for m in views] if missing else [], limit)
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


def _sums(parts: list[Member]) -> tuple[float, float, float, float]:
    """Energy and full energy (Wh), charge and full charge (Ah): of what is known, NaN when nothing is."""
    energy = full = charge = charge_full = 0.0
    for m in parts:
        r = m.reading
        energy += m.energy
        full += m.energy_full
        charge += charge_of(r.charge, m.energy, r.voltage)
        charge_full += charge_of(r.charge_full, m.energy_full, r.voltage)
    if isnan(energy):
        energy = known_sum([m.energy for m in parts])
    if isnan(full):
        full = known_sum([m.energy_full for m in parts])
    if isnan(charge):
        charge = known_sum([charge_of(m.reading.charge, m.energy, m.reading.voltage) for m in parts])
    if isnan(charge_full):
        charge_full = known_sum([charge_of(m.reading.charge_full, m.energy_full, m.reading.voltage) for m in parts])
    return energy, full, charge, charge_full


def _is_plain(m: Member) -> bool:
    """Usable in both directions, with energies and voltage known: what `_of_one` is written for."""
    return (not m.blocked and m.charge_power > 0.0 and m.discharge_power > 0.0 and m.energy > 0.0 and m.headroom > 0.0
            and m.energy_full < inf and m.reading.voltage > 0.0 and not m.reading.missing)


def _of_one(m: Member, label: str, rule: Limit) -> BatteryReading:
    """`combine` of one member that `_is_plain`: the same values, less time, as batteries stand on each other."""
    r = m.reading
    charge, discharge = m.charge_power, m.discharge_power
    if rule == 'together':  # with the rounding of the sums over many
        charge = min(m.headroom * (charge / m.headroom), charge)
        discharge = min(m.energy * (discharge / m.energy), discharge)
    power = r.current * r.voltage if r.power != r.power else r.power
    weight = m.headroom if power > 0.0 else m.energy
    voltage = weight / (weight / r.voltage)
    soc = m.energy / m.energy_full
    return BatteryReading(
        time=r.time, newest=r.newest, quality=m.quality, mode=r.mode, contactor=r.contactor, voltage=voltage,
        current=current_of([r], voltage, power), power=power, charge=charge_of(r.charge, m.energy, r.voltage),
        charge_full=charge_of(r.charge_full, m.energy_full, r.voltage), energy=m.energy, energy_full=m.energy_full,
        max_charge_current=charge / voltage, max_discharge_current=discharge / voltage, max_charge_power=charge,
        max_discharge_power=discharge, soc=soc, soh=r.soh * m.energy_full / m.energy_full,
        temperature=r.temperature,
        temperature_min=r.temperature if r.temperature_min != r.temperature_min else r.temperature_min,
        cell_voltage_min=r.cell_voltage_min, cell_voltage_max=r.cell_voltage_max, energy_charged=r.energy_charged,
        energy_discharged=r.energy_discharged, balance_power=0.0, soc_spread=0.0, members=1, members_usable=1,
        expected_energy_full=m.energy_full, expected_charge_power=charge, expected_discharge_power=discharge,
        limit_reasons=limited_list([f'{label}: {text}' for text in r.limit_reasons]) if r.limit_reasons else [],
        missing=[])


def split(
    power: float,
    members: Sequence[BatteryReading],
    now: float,
    max_age: float,
    invalid_after: float,
    *,
    minimum: Sequence[float] | None = None,
    running: Sequence[bool] | None = None,
    zones: Sequence[Sequence[Zone]] | None = None,
    present: Sequence[float] | None = None,
) -> Allocation:
    """Who delivers how much of `power` (W, + = charging): by energy when discharging, by headroom
    when charging, within each member's own limits (`allocation.allocate`).

    A member whose energy is not known is weighed as if it lasted as long as the others do. To be
    called every tick, so that the shares follow the energies. `minimum` W per member: at least so much
    or nothing; `zones` of powers (W, + = charging) a member must stay out of (`zones.allocate_in_bands`);
    `running` and `present` (W) of each member weigh against switching to and fro.
    """
    if len(members) > FEW:
        t = many.table(members, now, max_age, invalid_after, many.SPLIT_NAMES)
        energy, headroom = t.energy.tolist(), t.headroom.tolist()
        discharge, charge = t.discharge_power.tolist(), t.charge_power.tolist()
    else:
        views = [view(r, now, max_age, invalid_after) for r in members]
        if len(views) == 1 and _is_plain(views[0]) and minimum is None and not zones and power == power:
            only = views[0]
            most = only.charge_power if power > 0.0 else only.discharge_power
            if abs(power) <= most:
                return Allocation(np.array([power + 0.0]), power, 0.0, '')
        energy, headroom = [m.energy for m in views], [m.headroom for m in views]
        discharge, charge = [m.discharge_power for m in views], [m.charge_power for m in views]
    room, store = known_weights(headroom, charge), known_weights(energy, discharge)
    low = [-p for p in discharge]
    if zones is not None and any(zones):
        return allocate_in_bands(power, room, store, low, charge, zones, minimum=minimum, present=present)
    return allocate(power, room, store, low, charge, exclusion=minimum, running=running)


def known_weights(energies: list[float], limits: list[float]) -> list[float]:
    """Energies; where unknown, limit times the mean duration of those that are known."""
    if not isnan(plain_sum(energies)):
        return energies
    known = [(e, p) for e, p in zip(energies, limits, strict=True) if e > 0 and 0 < p < inf]
    total = sum(p for _, p in known)
    hours = sum(e for e, _ in known) / total if total > 0 else 1.0
    return [(p * hours if p < inf else 0.0) if isnan(e) else e
            for e, p in zip(energies, limits, strict=True)]


def _who_is_missing(labels: Sequence[str], views: Sequence[Member]) -> tuple[list[str], list[str]]:
    """Who takes no part and why; and the same with members that are not wholly known."""
    missing: list[str] = []
    reasons: list[str] = []
    for label, m in zip(labels, views, strict=True):
        if m.blocked:
            missing.append(f'{label}: {m.blocked}')
            reasons.append(missing[-1])
            continue
        missing += [f'{label}: {text}' for text in m.reading.missing]
        if isnan(m.energy) or isnan(m.headroom):
            reasons.append(f'{label}: energy not known, not counted')
    return missing, reasons


def _limits_of_members(labels: Sequence[str], members: Sequence[BatteryReading], reasons: list[str]) -> int:
    """Append what the members themselves report, as far as a status takes it; the number of those left out."""
    left = 0
    for label, r in zip(labels, members, strict=True):
        if r.limit_reasons:
            if len(reasons) > MAX_REASONS:
                left += len(r.limit_reasons)
            else:
                reasons += [f'{label}: {text}' for text in r.limit_reasons]
    return left


def _set_expected(result: BatteryReading, members: Sequence[BatteryReading],
                  last_good: Sequence[BatteryReading] | None, blocked: Sequence[bool], rule: Limit) -> None:
    """Expected values of the whole; the current ones while nobody is missing."""
    if not result.missing:
        result.expected_energy_full = result.energy_full
        result.expected_charge_power = result.max_charge_power
        result.expected_discharge_power = result.max_discharge_power
        return
    values, energies = [], []
    for i, (r, out) in enumerate(zip(members, blocked, strict=True)):
        r = last_good[i] if out and last_good is not None else r
        energy, full = energy_of(r)
        values.append(usual(
            r, full, 0.0 if full <= energy else power_limit(r.max_charge_power, r.max_charge_current, r.voltage),
            0.0 if energy == 0 else power_limit(r.max_discharge_power, r.max_discharge_current, r.voltage)))
        energies.append(energy)
    result.expected_energy_full, result.expected_charge_power, result.expected_discharge_power = expect(
        values, energies, rule == 'sum')


def _combine_many(members: Sequence[BatteryReading], now: float, max_age: float, invalid_after: float,
                  rule: Limit, labels: Sequence[str], last_good: Sequence[BatteryReading] | None) -> BatteryReading:
    """`combine` by columns."""
    t = many.table(members, now, max_age, invalid_after)
    out = t.blocked.tolist()
    result = many.combine(t)
    odd = t.blocked | (t.energy != t.energy) | (t.headroom != t.headroom)
    missing: list[str] = []
    reasons: list[str] = []
    for i, (r, unusual) in enumerate(zip(members, odd.tolist(), strict=True)):
        if unusual or r.missing:
            gone, why = _who_is_missing(labels[i:i + 1], [view(r, now, max_age, invalid_after)])
            missing += gone
            reasons += why
    for direction in ('discharge', 'charge'):
        charging = direction == 'charge'
        limits, energies = ((t.charge_power, t.headroom) if charging else (t.discharge_power, t.energy))
        for i in (~t.blocked & (limits <= 0)).nonzero()[0].tolist():
            reasons.append(f'{labels[i]}: {_why_not(direction, float(energies[i]))}')
        power = many.common_limit(limits, energies, rule == 'sum')
        total = float(limits.sum())
        if power < BALANCED * total:
            reasons.append(_paced(direction, power, total, labels[many.slowest(limits, energies)]))
        many.set_limit(result, charging, power)
    more = _limits_of_members(labels, members, reasons)
    result.limit_reasons, result.missing = (
        limited_list(reasons, more=more), limited_list(missing, MAX_MISSING))
    _set_expected(result, members, last_good, out, rule)
    return result


def _why_not(direction: str, energy: float) -> str:
    """`energy`: headroom when charging."""
    return ('full' if direction == 'charge' else 'empty') if energy == 0 else f'must not {direction}'


def _paced(direction: str, power: float, total: float, slowest: str) -> str:
    return f'{direction} {power:.0f} W of {total:.0f} W so that members finish together: {slowest} sets the pace'


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
            reasons.append(f'{label}: {_why_not(direction, energy)}')
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
        reasons.append(_paced(direction, together, total, slowest))
    return together
