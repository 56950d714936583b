"""Values of an aggregate out of those of its members: sums, weighted means, the current at its own voltage. Pure."""

from __future__ import annotations

from math import inf, isnan, nan

from bess_core.values import BatteryReading
from bess_virtual.member import Member


def power_of(r: BatteryReading) -> float:
    """W; from current and voltage where not measured."""
    return r.current * r.voltage if isnan(r.power) else r.power


def charge_of(charge: float, energy: float, voltage: float) -> float:
    """Ah; from the energy where not measured."""
    return energy / voltage if isnan(charge) and voltage > 0 else charge


def voltage_of(parts: list[Member], charging: bool) -> float:
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


def current_of(fresh: list[BatteryReading], voltage: float, power: float) -> float:
    """Current at the aggregate's voltage, from the DC power of the members where it is measured."""
    direct = plain_sum([r.current * r.voltage for r in fresh])
    return per_volt(power if isnan(direct) else direct, voltage)


def per_volt(power: float, voltage: float) -> float:
    """A for a power in W; NaN while the voltage is not known."""
    if power == 0:
        return 0.0
    return power / voltage if voltage > 0 else nan


def soc_of(parts: list[Member]) -> float:
    """Stored energy over full energy of the members that know both; else the mean of known SoCs."""
    stored = full = 0.0
    for m in parts:
        if m.energy_full > 0 and m.energy >= 0:
            stored += m.energy
            full += m.energy_full
    if full > 0:
        return stored / full
    return weighted([m.reading.soc for m in parts], [1.0] * len(parts))


def spread_of(parts: list[Member]) -> float:
    """Highest minus lowest state of charge; NaN unknown."""
    low, high = inf, -inf
    for m in parts:
        soc = m.energy / m.energy_full if m.energy_full > 0 and m.energy >= 0 else m.reading.soc
        if not isnan(soc):
            low, high = min(low, soc), max(high, soc)
    return high - low if low <= high else nan


def weighted(values: list[float], weights: list[float]) -> float:
    """Weighted mean of known values; equal weights when no weight is known."""
    total = weight = 0.0
    for v, w in zip(values, weights, strict=True):
        if w > 0 and not isnan(v):
            total += v * w
            weight += w
    if weight > 0:
        return total / weight
    known = [v for v in values if not isnan(v)]
    return sum(known) / len(known) if known else nan


def known_sum(values: list[float]) -> float:
    """Sum of what is known; NaN when nothing is."""
    total = plain_sum(values)
    if not isnan(total) or not values:
        return total
    known = [v for v in values if not isnan(v)]
    return sum(known) if known else nan


def plain_sum(values: list[float]) -> float:
    """Plain sum: one unknown member makes it unknown."""
    if not values:
        return nan
    total = 0.0
    for value in values:  # compiled, several times faster than `sum`, which also rounds otherwise from Python 3.12 on
        total += value
    return total
