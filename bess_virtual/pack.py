"""Pack: modules in series and strings in parallel, seen as one battery at its DC terminals.

A string of modules in series (one current through all of them), module j with voltage V, charge Q and headroom
R in Ah, current limit I:

    V = sum(V_j)    I_max = min(I_j)    Q = min(Q_j)    R = min(R_j)    Q_full = Q + R    P_max = I_max * V

Strings in parallel (one voltage), string k:

    V = mean of V_k, weighted by Q_full,k    I = sum(I_k)    I_max = sum(I_max,k)
    Q = sum(Q_k)    Q_full = sum(Q_full,k)    P_max = sum(P_max,k)

Energies are those that can be reached: a string is empty when its first module is, full when its first module is.
A module that fails takes its string out, never the pack. Strings whose voltages differ by more than allowed must not
be connected: the ones that the most others disagree with are refused, and all of them where no majority agrees.
Pure; no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan

import numpy as np

from bess_core.values import BatteryReading, Contactor, Mode

from .aggregate import known_weights
from .allocation import Allocation, allocate
from .expected import expect, usual
from .member import Member, common_contactor, common_mode, view
from .reasons import MAX_MISSING, limited_list

CARRIES_A = 0.5  # A: shares of parallel strings are measured from this total current on


@dataclass(slots=True)
class String:
    """Modules in series. Currents in A and powers in W are magnitudes where they are limits; NaN unknown."""

    name: str
    modules: list[Member]
    labels: list[str]
    reading: BatteryReading
    out: str = ''  # why it takes no part; '' = usable
    missing: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Takes part."""
        return not self.out


def groups(names: Sequence[str], series: int) -> list[list[str]]:
    """Strings of `series` modules each, in order. ValueError when they do not come out even."""
    if series < 1 or len(names) % series or not names:
        raise ValueError(f'{len(names)} modules cannot form strings of {series} in series')
    return [list(names[i:i + series]) for i in range(0, len(names), series)]


def string(labels: Sequence[str], modules: Sequence[BatteryReading], now: float, max_age: float,
           invalid_after: float) -> String:
    """One string at time `now` (s). Its reading holds what its modules allow together."""
    name = '+'.join(labels)
    views = [view(r, now, max_age, invalid_after) for r in modules]
    readings = [m.reading for m in views]
    missing = [f'{label}: {m.blocked}' for label, m in zip(labels, views, strict=True) if m.blocked]
    voltage = sum(r.voltage for r in readings)  # one unknown makes it unknown
    charges = [_ah(m.reading.charge, m.energy, m.reading.voltage) for m in views]
    fulls = [_ah(m.reading.charge_full, m.energy_full, m.reading.voltage) for m in views]
    room = [f - q for f, q in zip(fulls, charges, strict=True)]
    charge, headroom = _least(charges), max(_least(room), 0.0)
    energy, energy_room = _reachable(views, charges, charge), _reachable_room(views, room, headroom)
    up = down = 0.0
    if not missing:
        up = min(_amperes(m.charge_power, m.reading.max_charge_current, m.reading.voltage) for m in views)
        down = min(_amperes(m.discharge_power, m.reading.max_discharge_current, m.reading.voltage) for m in views)
    powers = [r.current * r.voltage if isnan(r.power) else r.power for r in readings]
    currents = [r.current for r in readings if not isnan(r.current)]
    power = sum(powers)
    reading = BatteryReading(
        time=min(r.time for r in readings), newest=max(r.newest for r in readings),
        quality=max(m.quality for m in views), mode=_series_mode([r.mode for r in readings], power),
        contactor=_series_contactor([r.contactor for r in readings]),
        voltage=voltage, current=sum(currents) / len(currents) if currents else nan, power=power,
        charge=charge, charge_full=charge + headroom, energy=energy, energy_full=energy + energy_room,
        max_charge_current=up, max_discharge_current=down,
        max_charge_power=0.0 if up == 0 else up * voltage, max_discharge_power=0.0 if down == 0 else down * voltage,
        soc=_ratio(charge, charge + headroom, [r.soc for r in readings]),
        soh=min((r.soh for r in readings if not isnan(r.soh)), default=nan),
        energy_charged=sum(r.energy_charged for r in readings),
        energy_discharged=sum(r.energy_discharged for r in readings),
        current_spread=max(currents) - min(currents) if currents else nan,
        limit_reasons=[f'{label}: {text}' for label, r in zip(labels, readings, strict=True)
                       for text in r.limit_reasons])
    _extremes(reading, readings)
    out = '; '.join(missing)
    if not out and isnan(voltage):
        out = f'{name}: voltage not known'
        missing = [out]
    return String(name, views, list(labels), reading, out, missing)


def refuse_mismatch(strings: Sequence[String], tolerance: float) -> str:
    """Take strings out whose voltage does not agree with most of the others, within `tolerance` (V); all of them
    where no majority agrees. The reason, '' when all agree. To be called before limits are used."""
    able = [s for s in strings if s.usable]
    if len(able) < 2:
        return ''
    volts = sorted(s.reading.voltage for s in able)
    if volts[-1] - volts[0] <= tolerance:
        return ''
    agree: list[String] = []
    for low in volts:
        near = [s for s in able if low <= s.reading.voltage <= low + tolerance]
        if len(near) > len(agree):
            agree = near
    if 2 * len(agree) <= len(able):
        agree = []
    texts = []
    for s in able:
        if s not in agree:
            s.out = (f'{s.name}: {s.reading.voltage:.2f} V must not be in parallel with '
                     f'{", ".join(f"{o.reading.voltage:.2f} V" for o in (agree or able) if o is not s)[:60]}, '
                     f'more than {tolerance:g} V apart')
            s.missing = [s.out]
            texts.append(s.out)
    return '; '.join(texts)


def strings_of(names: Sequence[str], modules: Sequence[BatteryReading], series: int, now: float, max_age: float,
               invalid_after: float, tolerance: float) -> tuple[list[String], str]:
    """The strings of a pack and why the parallel connection of some is refused ('' when none is)."""
    by_name = dict(zip(names, modules, strict=True))
    found = [string(g, [by_name[n] for n in g], now, max_age, invalid_after) for g in groups(names, series)]
    return found, refuse_mismatch(found, tolerance)


def combine(strings: Sequence[String], *, passive: bool = False,
            last_good: Sequence[String] | None = None) -> BatteryReading:
    """The pack.

    passive: nothing but the cells decides how strings share the current. The string that carries more than its part
    then sets the limit: I_max = min(I_max,k / share_k) with the measured shares, in the direction that flows.
    last_good: each string when it last took part, for the expected values.
    """
    usable = [s for s in strings if s.usable]
    best = min(s.reading.quality for s in strings)
    parts = usable or [s for s in strings if s.reading.quality == best]
    rs = [s.reading for s in parts]
    everyone = [s.reading for s in strings]
    fresh = [r for r in everyone if r.quality == best]
    missing = [text for s in strings for text in s.missing]
    modules_missing = [f'{label}: {text}' for s in strings if s.usable
                       for label, m in zip(s.labels, s.modules, strict=True) for text in m.reading.missing]
    reasons = [f'string {s.name} is out: {s.out}' for s in strings if s.out]
    weights = [r.charge_full if r.charge_full > 0 else 0.0 for r in rs]
    volts = [r.voltage for r in rs]
    total = sum(weights)
    voltage = (sum(v * w for v, w in zip(volts, weights, strict=True)) / total if total > 0
               else sum(volts) / len(volts))
    current, power = sum(r.current for r in fresh), sum(r.power for r in fresh)
    up = sum(s.reading.max_charge_current for s in usable)
    down = sum(s.reading.max_discharge_current for s in usable)
    up_power = sum(s.reading.max_charge_power for s in usable)
    down_power = sum(s.reading.max_discharge_power for s in usable)
    if passive and len(usable) > 1 and abs(current) >= CARRIES_A:
        limits = [s.reading.max_charge_current if current > 0 else s.reading.max_discharge_current for s in usable]
        held, who = _by_measured_shares(current, usable, limits)
        before = up if current > 0 else down
        if held < before:
            reasons.append(f'{"charge" if current > 0 else "discharge"} {held:.1f} A of {before:.1f} A: '
                           f'string {who} carries more than its part')
            if current > 0:
                up, up_power = held, up_power * held / before
            else:
                down, down_power = held, down_power * held / before
    charge, full = sum(r.charge for r in rs), sum(r.charge_full for r in rs)
    states = [m.reading.soc for s in parts for m in s.modules if not isnan(m.reading.soc)]
    within = max((r.current_spread for r in rs if not isnan(r.current_spread)), default=nan)
    between = [r.current for r in rs if not isnan(r.current)]
    result = BatteryReading(
        time=min(r.time for r in rs), newest=max(r.newest for r in rs), quality=max(r.quality for r in rs),
        mode=common_mode([r.mode for r in rs], power), contactor=common_contactor([r.contactor for r in rs]),
        voltage=voltage, current=current, power=power, charge=charge, charge_full=full,
        energy=sum(r.energy for r in rs), energy_full=sum(r.energy_full for r in rs),
        max_charge_current=up, max_discharge_current=down, max_charge_power=up_power, max_discharge_power=down_power,
        soc=_ratio(charge, full, [r.soc for r in rs]),
        soh=min((r.soh for r in rs if not isnan(r.soh)), default=nan),
        energy_charged=sum(r.energy_charged for r in everyone),
        energy_discharged=sum(r.energy_discharged for r in everyone),
        balance_power=0.0, soc_spread=max(states) - min(states) if states else nan,
        voltage_spread=max(volts) - min(volts) if len(strings) > 1 else nan,
        current_spread=max(between) - min(between) if len(parts) > 1 and between else within,
        members=sum(len(s.modules) for s in strings), members_usable=sum(len(s.modules) for s in usable),
        missing=limited_list(missing + modules_missing, MAX_MISSING))
    _extremes(result, rs)
    result.limit_reasons = limited_list(reasons + [text for r in rs for text in r.limit_reasons])
    if not result.missing:
        expected = (result.energy_full, up_power, down_power)
    else:
        seen = [s if s.usable or last_good is None else last_good[i] for i, s in enumerate(strings)]
        expected = expect([usual(s.reading, s.reading.energy_full, s.reading.max_charge_power,
                                 s.reading.max_discharge_power) for s in seen],
                          [s.reading.energy for s in seen], True)
    result.expected_energy_full, result.expected_charge_power, result.expected_discharge_power = expected
    return result


def divide(power: float, strings: Sequence[String]) -> Allocation:
    """Power (W, + = charging) of each module: over strings by energy or headroom within their limits, within a
    string in proportion to voltage, because one current flows. Modules in the order of the strings."""
    up = [s.reading.max_charge_power if s.usable else 0.0 for s in strings]
    down = [s.reading.max_discharge_power if s.usable else 0.0 for s in strings]
    whole = allocate(power, known_weights([s.reading.energy_full - s.reading.energy for s in strings], up),
                     known_weights([s.reading.energy for s in strings], down), [-p for p in down], up)
    shares: list[float] = []
    for s, share in zip(strings, whole.powers.tolist(), strict=True):
        shares += [share * (m.reading.voltage / s.reading.voltage) if share else 0.0 for m in s.modules]
    return replace(whole, powers=np.array(shares))


def imbalance(reading: BatteryReading, soc: float, current: float) -> str:
    """What of a pack is further apart than allowed (fraction, A); '' when nothing is."""
    texts = []
    if reading.soc_spread > soc:
        texts.append(f'states of charge of the modules are {reading.soc_spread:.3f} apart, allowed {soc:g}')
    if reading.current_spread > current:
        texts.append(f'currents are {reading.current_spread:.1f} A apart, allowed {current:g} A')
    return '; '.join(texts)


def _by_measured_shares(current: float, strings: Sequence[String], limits: Sequence[float]) -> tuple[float, str]:
    held, who = inf, ''
    for s, limit in zip(strings, limits, strict=True):
        share = s.reading.current / current
        if share > 0 and limit / share < held:
            held, who = limit / share, s.name
    return held, who


def _ah(charge: float, energy: float, voltage: float) -> float:
    return energy / voltage if isnan(charge) and voltage > 0 else charge


def _least(values: Sequence[float]) -> float:
    """The smallest; NaN when one is unknown, because it could be the smallest."""
    return nan if any(isnan(v) for v in values) else min(values)


def _reachable(views: Sequence[Member], charges: Sequence[float], charge: float) -> float:
    """Wh until the first module is empty."""
    return sum(m.energy * (charge / q) if q > 0 else 0.0 * q for m, q in zip(views, charges, strict=True))


def _reachable_room(views: Sequence[Member], room: Sequence[float], headroom: float) -> float:
    """Wh until the first module is full."""
    return sum(m.headroom * (headroom / r) if r > 0 else 0.0 * r for m, r in zip(views, room, strict=True))


def _amperes(power: float, current: float, voltage: float) -> float:
    """Tighter of a power limit (W, 0 when nothing is allowed) and a current limit (A, NaN unknown)."""
    if power <= 0.0 or not voltage > 0.0:
        return 0.0
    return min(power / voltage, current) if current >= 0.0 else power / voltage


def _ratio(charge: float, full: float, states: Sequence[float]) -> float:
    if full > 0 and not isnan(charge):
        return charge / full
    known = [s for s in states if not isnan(s)]
    return min(known) if known else nan


def _series_mode(modes: Sequence[Mode], power: float) -> Mode:
    for worst in (Mode.FAULT, Mode.OFF):
        if worst in modes:
            return worst
    return common_mode(modes, power)


def _series_contactor(states: Sequence[Contactor]) -> Contactor:
    """A direction is open when it is open in every module."""
    if Contactor.OPEN in states or {Contactor.CHARGE_ONLY, Contactor.DISCHARGE_ONLY} <= set(states):
        return Contactor.OPEN
    for only in (Contactor.CHARGE_ONLY, Contactor.DISCHARGE_ONLY, Contactor.UNKNOWN):
        if only in states:
            return only
    return Contactor.CLOSED


def _extremes(result: BatteryReading, readings: Sequence[BatteryReading]) -> None:
    """Hottest and coldest sensor, lowest and highest cell of those that are known."""
    for name, pick, other in (('temperature', max, ''), ('temperature_min', min, 'temperature'),
                              ('cell_voltage_min', min, ''), ('cell_voltage_max', max, '')):
        known = [v for r in readings
                 if not isnan(v := getattr(r, other) if other and isnan(getattr(r, name)) else getattr(r, name))]
        if known:
            setattr(result, name, pick(known))
