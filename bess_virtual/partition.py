"""Partition: one battery divided among several children, each with a ledger of its own energy.

Accounting per refresh, for child i with the power P_i attributed to it (`shares.attribute`):

1. delivered energy   d_i = P_i * dt
2. losses             the source loses, by its efficiencies, (1 - n_c) * P * dt when charging and
                      (1/n_d - 1) * |P| * dt when discharging. They are shared in proportion to the
                      attributed throughput |d_i|. Opposite requests that cancel at the source move
                      energy between ledgers without loss.
3. ledger             e_i += d_i - loss_i
4. reconciliation     with the source's own energy by the policy (`shares.spread_energy`), so that
                      the children always add up to the source; the difference is kept visible as
                      `correction`.

While the source is incomplete (a member missing) or not fresh, step 4 shapes only what is reported,
not the ledgers: an outage must not move energy from one child to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import fsum, isfinite, isnan, nan
from typing import Any

from bess_core.values import BatteryReading, Mode, Quality, quality_of
from bess_virtual.shares import (
    Policy,
    Share,
    attribute,
    spread_energy,
    spread_limit,
    validate,
)

STATE_VERSION = 1
EMPTY_WH = 1e-6
"""Below this a ledger counts as empty, and this close to its capacity as full."""


@dataclass(slots=True)
class Ledger:
    """Energy account of one child, Wh."""

    energy: float = 0.0  # stored
    charged: float = 0.0  # counter of attributed energy in, >= 0
    discharged: float = 0.0  # counter of attributed energy out, >= 0
    lost: float = 0.0  # counter of its part of the losses, >= 0
    correction: float = 0.0  # sum of reconciliations with the source, either sign


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source has when everything works: Wh, W, W."""

    energy_full: float
    max_charge_power: float
    max_discharge_power: float


@dataclass(frozen=True, slots=True)
class NetRequest:
    """What the children may have now, and the sum to ask of the source. W, + = charging."""

    source_power: float
    granted: dict[str, float]
    reasons: dict[str, str]  # per child that gets less than it asked for


@dataclass(slots=True)
class _Child:
    """What one child reports; rebuilt at each refresh."""

    energy: float = nan
    energy_full: float = nan
    charge_power: float = 0.0
    discharge_power: float = 0.0
    power: float = 0.0


class Partition:
    """Children of one source. State: ledgers and expected values (`to_dict`, `from_dict`).

    `shares` maps child name to share, in order from top to bottom. `expected` are the rated values of
    the source; without them those of the first good reading are taken. Tranche and reserved should
    be given `expected`: a source that is full at first sight cannot charge.
    Raises ValueError for bad shares or efficiencies.
    """

    def __init__(self, shares: Mapping[str, Share], policy: Policy = Policy.PROPORTIONAL,
                 expected: Expected | None = None, charge_efficiency: float = 1.0,
                 discharge_efficiency: float = 1.0) -> None:
        problems = validate(list(shares), list(shares.values()))
        for name, value in (('charge_efficiency', charge_efficiency),
                            ('discharge_efficiency', discharge_efficiency)):
            if not 0 < value <= 1:
                problems.append(f'{name} is {value}, allowed: above 0, up to 1')
        if problems:
            raise ValueError('; '.join(problems))
        self.names = list(shares)
        self._known = frozenset(self.names)
        self.shares = list(shares.values())
        self.policy = policy
        self.expected = expected
        self.charge_efficiency = charge_efficiency
        self.discharge_efficiency = discharge_efficiency
        self.ledgers: list[Ledger] | None = None  # None until the source's energy is known
        self.unassigned = 0.0  # Wh of the source that fits into no child, at the last refresh
        self._children = [_Child() for _ in self.names]
        self._source = BatteryReading()
        self._energy = _normalised([s.energy for s in self.shares])
        self._charge = _normalised([s.charge for s in self.shares])
        self._discharge = _normalised([s.discharge for s in self.shares])

    def net_request(self, requests: Mapping[str, float], horizon: float = 0.0) -> NetRequest:
        """What may run of these requests (W; missing = 0), and the source's target: their sum.

        Each child is held to its own limits (a drained or full child to 0), then the sum to the
        source's limits of the last refresh, the excess being cut by the policy. Opposite requests
        cancel. With `horizon` (s, the time to the next call) no child gets more than its ledger can
        give or take in that time, so that it stops exactly at its end. A NaN request counts as 0.
        Raises KeyError for an unknown child.
        """
        granted, reasons = self._admit(requests, horizon)
        total = fsum(granted)
        low, high = -_or_zero(self._source.max_discharge_power), _or_zero(self._source.max_charge_power)
        target = min(max(total, low), high)
        if target != total:
            cut = self._attribute(granted, target)
            word = 'charge' if total > 0 else 'discharge'
            for name, before, after in zip(self.names, granted, cut, strict=True):
                if after != before:
                    reasons[name] = f'the source can {word} only {abs(target):.0f} W in total'
            granted = cut
        return NetRequest(target, dict(zip(self.names, granted, strict=True)), reasons)

    def refresh(self, source: BatteryReading, requests: Mapping[str, float],
                dt: float) -> dict[str, BatteryReading]:
        """Book the past `dt` seconds and return the children's readings.

        `requests` (W) are those in force during `dt`, as granted by `net_request`; `source` is the
        reading at its end. Raises ValueError for a negative or infinite dt, KeyError for an unknown
        child.
        """
        if not (isfinite(dt) and dt >= 0):
            raise ValueError(f'dt is {dt} s, must be finite and not negative')
        granted, _ = self._admit(requests)
        power = source.power
        known = source.quality != Quality.INVALID and isfinite(power)
        parts = self._attribute(granted, power) if known else [nan] * len(self.names)
        if self.ledgers is not None and known:
            self._book(parts, power, dt / 3600)
        self._source = source
        self._reconcile(source)
        for child, part in zip(self._children, parts, strict=True):
            child.power = part
        reasons = [f'source: {text}' for text in source.limit_reasons]
        return {name: self._reading(i, reasons) for i, name in enumerate(self.names)}

    def to_dict(self) -> dict[str, Any]:
        """State to be saved (JSON types only)."""
        return {
            'version': STATE_VERSION,
            'policy': self.policy.value,
            'expected': None if self.expected is None else asdict(self.expected),
            'children': {
                name: {'share': asdict(share),
                       'ledger': None if self.ledgers is None else asdict(self.ledgers[i])}
                for i, (name, share) in enumerate(zip(self.names, self.shares, strict=True))},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], charge_efficiency: float = 1.0,
                  discharge_efficiency: float = 1.0) -> Partition:
        """A partition from its saved state. ValueError when the state is damaged or of another version."""
        try:
            if state['version'] != STATE_VERSION:
                raise ValueError(f'version {state["version"]}, expected {STATE_VERSION}')
            children = state['children']
            expected = state['expected']
            partition = cls(
                {name: Share(**child['share']) for name, child in children.items()},
                Policy(state['policy']),
                None if expected is None else Expected(**expected),
                charge_efficiency, discharge_efficiency)
            if all(child['ledger'] is not None for child in children.values()):
                partition.ledgers = [
                    Ledger(**{k: float(v) for k, v in child['ledger'].items()})
                    for child in children.values()]
                if not all(isfinite(v) for x in partition.ledgers for v in asdict(x).values()):
                    raise ValueError('a ledger holds a value that is not finite')
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'saved partition is damaged: {error!r}') from error
        return partition

    def _admit(self, requests: Mapping[str, float],
               horizon: float = 0.0) -> tuple[list[float], dict[str, str]]:
        """Requests held to each child's own limits, and why."""
        if not requests.keys() <= self._known:
            raise KeyError(f'no such child: {", ".join(sorted(requests.keys() - self._known))}')
        granted: list[float] = []
        reasons: dict[str, str] = {}
        for name, child in zip(self.names, self._children, strict=True):
            asked = requests.get(name, 0.0)
            if isnan(asked):
                reasons[name] = 'the request is not a number'
                asked = 0.0
            limit = child.charge_power if asked > 0 else child.discharge_power
            if horizon > 0 and limit > 0:
                if asked > 0:
                    room = (child.energy_full - child.energy) / self.charge_efficiency
                else:
                    room = child.energy * self.discharge_efficiency
                limit = min(limit, max(room, 0.0) * 3600 / horizon)
            if abs(asked) > limit:
                reasons[name] = _why(child, asked, limit)
                asked = limit if asked > 0 else -limit
            granted.append(asked + 0.0)
        return granted, reasons

    def _attribute(self, requests: Sequence[float], delivered: float) -> list[float]:
        return attribute(
            self.policy, requests, delivered, [c.charge_power for c in self._children],
            [c.discharge_power for c in self._children], fractions=self._energy)

    def _book(self, parts: Sequence[float], power: float, hours: float) -> None:
        """Steps 1 to 3 of the accounting."""
        assert self.ledgers is not None
        if power > 0:
            loss = power * hours * (1 - self.charge_efficiency)
        else:
            loss = -power * hours * (1 / self.discharge_efficiency - 1)
        throughput = fsum(abs(p) for p in parts)
        for ledger, part in zip(self.ledgers, parts, strict=True):
            lost = loss * (abs(part) / throughput) if throughput > 0 else 0.0
            ledger.energy += part * hours - lost
            ledger.lost += lost
            if part > 0:
                ledger.charged += part * hours
            else:
                ledger.discharged -= part * hours

    def _reconcile(self, source: BatteryReading) -> None:
        """Step 4, and the children's limits, from the source's present values."""
        fresh = source.quality == Quality.OK
        complete = fresh and source.members_usable == source.members
        if self.expected is None and complete and isfinite(source.energy_full):
            self.expected = Expected(source.energy_full, _or_zero(source.max_charge_power),
                                     _or_zero(source.max_discharge_power))
        full = source.energy_full
        if isnan(full) and self.expected is not None:
            full = self.expected.energy_full
        if self.expected is None or isnan(full):
            return
        x = self.expected
        capacities = self._spread(self._energy, x.energy_full, full)
        if isfinite(source.energy):
            total = max(source.energy, 0.0)
            if self.ledgers is None:
                if not complete:
                    return
                self.ledgers = [Ledger(f * total) for f in self._energy]
            energies, self.unassigned = spread_energy(
                self.policy, self._energy, [x.energy for x in self.ledgers], capacities, total)
            if complete:
                for ledger, energy in zip(self.ledgers, energies, strict=True):
                    ledger.correction += energy - ledger.energy
                    ledger.energy = energy
        elif self.ledgers is not None:
            energies = [min(max(b.energy, 0.0), c)
                        for b, c in zip(self.ledgers, capacities, strict=True)]
        else:
            return
        charge = self._spread(self._charge, x.max_charge_power, _or_zero(source.max_charge_power))
        discharge = self._spread(
            self._discharge, x.max_discharge_power, _or_zero(source.max_discharge_power))
        for i, child in enumerate(self._children):
            child.energy = energies[i]
            child.energy_full = capacities[i]
            child.charge_power = charge[i] if capacities[i] - energies[i] > EMPTY_WH else 0.0
            child.discharge_power = discharge[i] if energies[i] > EMPTY_WH else 0.0

    def _spread(self, fractions: Sequence[float], expected: float, total: float) -> list[float]:
        return spread_limit(self.policy, fractions, [f * expected for f in fractions], total)

    def _reading(self, i: int, source_reasons: list[str]) -> BatteryReading:
        """Child i as a battery: energy, power and limits are its own, the rest is the source's.

        Cells and alarms belong to the source and are reported there once.
        """
        source, child, share = self._source, self._children[i], self.shares[i]
        v = source.voltage
        ledger = None if self.ledgers is None else self.ledgers[i]
        reasons = source_reasons.copy()
        if ledger is None:
            reasons.append('the energy of the source is not known yet')
        elif child.energy <= EMPTY_WH:
            reasons.append('empty')
        elif child.energy_full - child.energy <= EMPTY_WH:
            reasons.append('full')
        if self.unassigned > EMPTY_WH:
            reasons.append(f'{self.unassigned:.1f} Wh of the source fit into no child')
        mode = source.mode
        if mode in (Mode.IDLE, Mode.CHARGING, Mode.DISCHARGING) and not isnan(child.power):
            mode = (Mode.CHARGING if child.power > 0
                    else Mode.DISCHARGING if child.power < 0 else Mode.IDLE)
        return BatteryReading(
            time=source.time,
            newest=source.newest,
            quality=source.quality,
            mode=mode,
            contactor=source.contactor,
            voltage=v,
            current=_scaled(source.current, child.power, source.power, v),
            power=child.power,
            charge=_scaled(source.charge, child.energy, source.energy, v),
            charge_full=_scaled(source.charge_full, child.energy_full, source.energy_full, v),
            energy=child.energy,
            energy_full=child.energy_full,
            max_charge_current=_scaled(
                source.max_charge_current, child.charge_power, source.max_charge_power, v),
            max_discharge_current=_scaled(
                source.max_discharge_current, child.discharge_power, source.max_discharge_power, v),
            max_charge_power=child.charge_power,
            max_discharge_power=child.discharge_power,
            soc=child.energy / child.energy_full if child.energy_full > 0 else (
                0.0 if share.energy == 0 else nan),
            soh=source.soh,
            temperature=source.temperature,
            temperature_min=source.temperature_min,
            cell_voltage_min=source.cell_voltage_min,
            cell_voltage_max=source.cell_voltage_max,
            cell_voltage_min_index=source.cell_voltage_min_index,
            cell_voltage_max_index=source.cell_voltage_max_index,
            energy_charged=nan if ledger is None else ledger.charged,
            energy_discharged=nan if ledger is None else ledger.discharged,
            members=source.members,
            members_usable=source.members_usable,
            limit_reasons=reasons,
        )


def aged(reading: BatteryReading, now: float, max_age: float, invalid_after: float) -> BatteryReading:
    """A child's reading at time `now` (s), with the quality of its age if that is worse."""
    quality = quality_of(now - reading.time, max_age, invalid_after)
    return reading if quality <= reading.quality else replace(reading, quality=quality)


def _normalised(fractions: list[float]) -> list[float]:
    """Fractions whose sum is 1 (they are checked to 1e-6 only), so that no energy is left over."""
    total = fsum(fractions)
    return [f / total for f in fractions]


def _why(child: _Child, asked: float, limit: float) -> str:
    direction = 'charge' if asked > 0 else 'discharge'
    if limit > 0:
        return f'can {direction} only {limit:.0f} W of {abs(asked):.0f} W'
    if isnan(child.energy):
        return 'the energy of the source is not known yet'
    if asked < 0 and child.energy <= EMPTY_WH:
        return 'empty'
    if asked > 0 and child.energy_full - child.energy <= EMPTY_WH:
        return 'full'
    return f'the source can not {direction} at present'


def _or_zero(value: float) -> float:
    """An unknown or negative limit allows nothing."""
    return value if value > 0 else 0.0


def _scaled(whole: float, part_power: float, whole_power: float, voltage: float) -> float:
    """A current or charge of the source in the ratio of powers or energies; by voltage without ratio."""
    if part_power == 0:
        return 0.0
    if whole_power != 0 and isfinite(whole_power) and not isnan(whole):
        return whole * part_power / whole_power
    return part_power / voltage if voltage > 0 else nan
