"""Partition: one battery divided among several children, each with a ledger of its own energy.

Accounting per refresh, for child i with the power P_i attributed to it (`shares.attribute`):

1. delivered energy   d_i = P_i * dt
2. losses             the source loses, by its efficiencies, (1 - n_c) * P * dt when charging and
                      (1/n_d - 1) * |P| * dt when discharging. They are shared by the loss rule
                      (`ledger.divide_loss`), by default in proportion to the attributed throughput
                      |d_i|. Opposite requests that cancel at the source move energy between ledgers
                      without loss.
3. ledger             e_i += d_i - loss_i
4. reconciliation     with the source's own energy by the policy (`shares.spread_energy`), so that
                      the children always add up to the source; the difference is kept visible as
                      `correction`.

While the source is incomplete (a member missing) or not fresh, step 4 shapes only what is reported,
not the ledgers: an outage must not move energy from one child to another.

Beside the ledgers each flow is booked into the open period of the energy statements (`statements`), which
is closed on a grid of wall time, before children change and around gaps; closed records wait in `closed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite, isnan, nan

from bess_core.values import BatteryReading, Quality
from bess_virtual.exact import exact_sum
from bess_virtual.ledger import Ledger, LossRule, divide_loss, flows
from bess_virtual.partition_reading import EMPTY_WH, Part, aged, reading_of
from bess_virtual.shares import (
    COLUMNS,
    SUM_TOLERANCE,
    UNASSIGNED,
    Policy,
    Share,
    attribute,
    broken_promises,
    share_rest,
    spread_energy,
    spread_limit,
    spread_promises,
    validate,
)
from bess_virtual.statements import PERIOD_S, OpenPeriod, Record, next_boundary

#: Ticks of the children that an order to the source lasts at least, while any child asks.
HOLD_TICKS = 3.0


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


class Partition:
    """Children of one source. State: ledgers, expected values, open period (`partition_state`).

    `shares` maps child name to share, in order from top to bottom. What they leave of the source is the
    account `UNASSIGNED`. `expected` are the rated values of the source; without them those of the first
    good reading are taken. Tranche and reserved should be given `expected`: a source that is full at first
    sight cannot charge. Raises ValueError for bad shares, promises or efficiencies.
    """

    def __init__(self, shares: Mapping[str, Share], policy: Policy = Policy.PROPORTIONAL,
                 expected: Expected | None = None, charge_efficiency: float = 1.0,
                 discharge_efficiency: float = 1.0, loss_rule: LossRule = LossRule.THROUGHPUT,
                 period: float = PERIOD_S) -> None:
        problems = validate(list(shares), list(shares.values()), policy)
        for name, value in (('charge_efficiency', charge_efficiency),
                            ('discharge_efficiency', discharge_efficiency)):
            if not 0 < value <= 1:
                problems.append(f'{name} is {value}, allowed: above 0, up to 1')
        if expected is not None:
            problems += broken_promises(list(shares.values()), expected.max_charge_power,
                                        expected.max_discharge_power)
        if problems:
            raise ValueError('; '.join(problems))
        self.policy = policy
        self.expected = expected
        self.charge_efficiency = charge_efficiency
        self.discharge_efficiency = discharge_efficiency
        self.loss_rule = loss_rule
        self.ledgers: list[Ledger] | None = None  # None until the source's energy is known
        self.removed = Ledger()  # sums of children that are no more; holds no energy
        self.unassigned = 0.0  # Wh of the source that fits into no account, at the last refresh
        self.period_s = period
        self.period = OpenPeriod()
        self.closed: list[Record] = []  # to be stored by the owner, who empties the list
        self.source_in = self.source_out = 0.0  # Wh through the source's terminals, as booked
        self.booked = 0.0  # Wh, in and out together, that power gave in the period that was closed last
        self.counter_resets = 0
        self._source = BatteryReading()
        self.names: list[str] = []
        self._parts: list[Part] = []
        self.set_accounts(dict(shares))

    def set_accounts(self, shares: Mapping[str, Share], *, keep_unassigned: bool = False) -> None:
        """Take over these children; their ledgers are those of the same place (see `partition_children`)."""
        rest = [1 - fsum(getattr(s, c) for s in shares.values()) for c in COLUMNS]
        known = dict(zip(self.names, self._parts, strict=True))
        self.children = list(shares)
        self.names, self.shares = list(shares), list(shares.values())
        if keep_unassigned or any(r > SUM_TOLERANCE for r in rest):
            self.names.append(UNASSIGNED)
            self.shares.append(Share(*(r if r > SUM_TOLERANCE else 0.0 for r in rest)))
        self._parts = [known.get(name) or Part() for name in self.names]
        self._energy = _normalised([s.energy for s in self.shares])
        self._charge = _normalised([s.charge for s in self.shares])
        self._discharge = _normalised([s.discharge for s in self.shares])

    @property
    def energy_fractions(self) -> list[float]:
        """Energy share of each account in `names`."""
        return list(self._energy)

    @property
    def source(self) -> BatteryReading:
        """The reading of the last refresh."""
        return self._source

    @property
    def powers(self) -> list[float]:
        """W attributed to each account in `names` at the last refresh; NaN unknown."""
        return [part.power for part in self._parts]

    def broken_promises(self) -> list[str]:
        """Promises that the source cannot keep at present, in words."""
        if self.policy is not Policy.GUARANTEED or self.expected is None:
            return []
        return broken_promises(self.shares, _or_zero(self._source.max_charge_power),
                               _or_zero(self._source.max_discharge_power))

    def net_request(self, requests: dict[str, float], horizon: float = 0.0) -> NetRequest:
        """What may run of these requests (W; missing = 0), and the source's target: their sum.

        Each child is held to its own limits (a drained or full child to 0), then the sum to the
        source's limits of the last refresh, the excess being cut by the policy. Opposite requests
        cancel. With `horizon` (s, the time to the next call) no child gets more than its ledger can
        give or take in that time, so that it stops exactly at its end. A NaN request counts as 0.
        Raises KeyError for an unknown child.
        """
        granted, reasons = self._admit(requests, horizon)
        total = exact_sum(granted)
        low, high = -_or_zero(self._source.max_discharge_power), _or_zero(self._source.max_charge_power)
        target = min(max(total, low), high)
        if target != total:
            cut = self._attribute(granted, target)
            word = 'charge' if total > 0 else 'discharge'
            for name, before, after in zip(self.names, granted, cut, strict=True):
                if after != before:
                    reasons[name] = f'the source can {word} only {abs(target):.0f} W in total'
            granted = cut
        return NetRequest(target, {name: granted[i] for i, name in enumerate(self.children)}, reasons)

    def refresh(self, source: BatteryReading, requests: dict[str, float], dt: float,
                wall: float = nan, gap: bool = False) -> dict[str, BatteryReading]:
        """Book the past `dt` seconds and return the children's readings.

        `requests` (W) are those in force during `dt`, as granted by `net_request`; `source` is the
        reading at its end. `wall` (s since the epoch) is the time of the end for the statements, NaN =
        keep none. `gap`: more time passed than `dt`, in which nobody booked. Raises ValueError for a
        negative or infinite dt, KeyError for an unknown child.
        """
        if not (isfinite(dt) and dt >= 0):
            raise ValueError(f'dt is {dt} s, must be finite and not negative')
        granted, _ = self._admit(requests, hold_to_limits=False)
        power = source.power
        known = source.quality != Quality.INVALID and isfinite(power)
        parts = self._attribute(granted, power) if known else [nan] * len(self.names)
        if gap and isfinite(wall) and isfinite(self.period.start):
            self.close_period(self.period.last)
            self.period.gap = True
        if self.ledgers is not None and known:
            self._book(parts, power, dt / 3600)
        self.period.elapsed += dt
        self._source = source
        self._reconcile(source)
        for child, part in zip(self._parts, parts, strict=True):
            child.power = part
        if self.ledgers is not None and isfinite(wall):
            self._keep_time(source, wall, gap)
        reasons = [f'source: {text}' for text in source.limit_reasons] + self._notices()
        return {name: self._reading(i, reasons) for i, name in enumerate(self.children)}

    def close_period(self, wall: float) -> None:
        """Close the open period at `wall` (s since the epoch) and begin the next; nothing before the first booking."""
        period = self.period
        if self.ledgers is None or not isfinite(period.start):
            return
        record = period.record(self.names, self.ledgers, self._energy, wall)
        self.booked = fsum(s[0] + s[1] for s in period.sums.values())
        for name, ledger in zip(self.names, self.ledgers, strict=True):  # the source's counter is right
            booked = period.sums.get(name, (0.0, 0.0))
            more_in = record.rows[name].taken / 1000 - booked[0]
            more_out = record.rows[name].given / 1000 - booked[1]
            ledger.charged += more_in
            ledger.discharged += more_out
            ledger.correction -= more_in - more_out
            self.source_in += more_in
            self.source_out += more_out
        self.closed.append(record)
        period.begin(record.end, self.names, record.rows)

    def open_record(self, wall: float) -> Record | None:
        """What closing the open period now would give; None before the first booking."""
        if self.ledgers is None or not isfinite(self.period.start):
            return None
        return self.period.record(self.names, self.ledgers, self._energy, wall, final=False)

    def _keep_time(self, source: BatteryReading, wall: float, gap: bool) -> None:
        period = self.period
        whole = source.quality == Quality.OK and source.members_usable == source.members
        taken, given = (source.energy_charged, source.energy_discharged) if whole else (nan, nan)
        if not isfinite(period.start):
            period.counter_last = (taken, given) if isfinite(taken) and isfinite(given) else (nan, nan)
            period.begin(wall, self.names, {})
            period.sequence = max(1, period.sequence - 1)
            assert self.ledgers is not None
            period.stored = {n: r.stored for n, r in period.record(
                self.names, self.ledgers, self._energy, wall).rows.items()}
            return
        if not period.observe(taken, given):
            self.counter_resets += 1
        boundary = next_boundary(period.start, self.period_s)
        stepped = abs(wall - period.start - period.elapsed) > max(60.0, 0.01 * period.elapsed) and not period.gap
        if gap or wall >= boundary or wall < period.start or stepped:
            end = period.end_at(wall, boundary)
            self.close_period(end)
            if not gap and abs(end - wall) > 2.0:
                period.start = wall  # the clock was stepped
        period.last = wall

    def _notices(self) -> list[str]:
        return [f'promises cut: {text}' for text in self.broken_promises()]

    def _admit(self, requests: dict[str, float], horizon: float = 0.0, *,
               hold_to_limits: bool = True) -> tuple[list[float], dict[str, str]]:
        """Requests per account held to each child's own limits, and why."""
        known = 0
        for name in self.children:
            if name in requests:
                known += 1
        if known < len(requests):
            raise KeyError(f'no such child: {", ".join(sorted(requests.keys() - set(self.children)))}')
        granted = [requests.get(name, 0.0) for name in self.names]
        if not hold_to_limits:
            return [0.0 if isnan(asked) else asked for asked in granted], {}
        reasons: dict[str, str] = {}
        limits = self._request_limits(granted)
        for i, (name, part, asked) in enumerate(zip(self.names, self._parts, granted, strict=True)):
            if isnan(asked):
                reasons[name] = 'the request is not a number'
                asked = 0.0
            limit = limits[i]
            if horizon > 0 and limit > 0:
                if asked > 0:
                    room = (part.energy_full - part.energy) / self.charge_efficiency
                else:
                    room = part.energy * self.discharge_efficiency
                limit = min(limit, max(room, 0.0) * 3600 / horizon)
            if abs(asked) > limit:
                reasons[name] = _why(part, asked, limit)
                asked = limit if asked > 0 else -limit
            granted[i] = asked + 0.0
        return granted, reasons

    def _request_limits(self, asked: Sequence[float]) -> list[float]:
        """Highest power (W, magnitude) of each account in the direction that it asks for."""
        if self.policy is not Policy.GUARANTEED:
            return [p.charge_power if a > 0 else p.discharge_power
                    for p, a in zip(self._parts, asked, strict=True)]
        up = share_rest([s.promised_charge for s in self.shares], self._charge,
                        [a if a > 0 and p.charge_power > 0 else 0.0
                         for a, p in zip(asked, self._parts, strict=True)],
                        _or_zero(self._source.max_charge_power))
        down = share_rest([s.promised_discharge for s in self.shares], self._discharge,
                          [-a if a < 0 and p.discharge_power > 0 else 0.0
                           for a, p in zip(asked, self._parts, strict=True)],
                          _or_zero(self._source.max_discharge_power))
        return [u if a > 0 else d for a, u, d in zip(asked, up, down, strict=True)]

    def _attribute(self, requests: list[float], delivered: float) -> list[float]:
        return attribute(
            self.policy, requests, delivered, [p.charge_power for p in self._parts],
            [p.discharge_power for p in self._parts], fractions=self._energy, promises=self.shares)

    def _book(self, parts: list[float], power: float, hours: float) -> None:
        """Steps 1 to 3 of the accounting."""
        assert self.ledgers is not None
        if power > 0:
            loss = power * hours * (1 - self.charge_efficiency)
        else:
            loss = -power * hours * (1 / self.discharge_efficiency - 1)
        through = flows(parts)
        lost = divide_loss(self.loss_rule, loss, through, self._energy)
        for ledger, part, flow, own in zip(self.ledgers, parts, through, lost, strict=True):
            ledger.energy += part * hours - own
            ledger.lost += own
            ledger.charged += flow.taken * hours
            ledger.discharged += flow.given * hours
            ledger.moved_in += flow.moved_in * hours
            ledger.moved_out += flow.moved_out * hours
        self.source_in += max(power, 0.0) * hours
        self.source_out += max(-power, 0.0) * hours
        self.period.book(self.names, through, lost, hours)

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
        up, down = _or_zero(source.max_charge_power), _or_zero(source.max_discharge_power)
        if self.policy is Policy.GUARANTEED:
            charge = spread_promises([s.promised_charge for s in self.shares], self._charge, up)
            discharge = spread_promises([s.promised_discharge for s in self.shares], self._discharge, down)
        else:
            charge = self._spread(self._charge, x.max_charge_power, up)
            discharge = self._spread(self._discharge, x.max_discharge_power, down)
        for i, child in enumerate(self._parts):
            child.energy = energies[i]
            child.energy_full = capacities[i]
            child.charge_power = charge[i] if capacities[i] - energies[i] > EMPTY_WH else 0.0
            child.discharge_power = discharge[i] if energies[i] > EMPTY_WH else 0.0

    def _spread(self, fractions: list[float], expected: float, total: float) -> list[float]:
        return spread_limit(self.policy, fractions, [f * expected for f in fractions], total)

    def _reading(self, i: int, source_reasons: list[str]) -> BatteryReading:
        ledger = None if self.ledgers is None else self.ledgers[i]
        reasons = source_reasons.copy()
        if self.unassigned > EMPTY_WH:
            reasons.append(f'{self.unassigned:.1f} Wh of the source fit into no child')
        return reading_of(self._source, self._parts[i], ledger, self.shares[i], reasons)


def _normalised(fractions: list[float]) -> list[float]:
    """Fractions whose sum is 1 (they are checked to 1e-6 only), so that no energy is left over."""
    total = fsum(fractions)
    return [f / total for f in fractions]


def _why(child: Part, asked: float, limit: float) -> str:
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


__all__ = ['EMPTY_WH', 'Expected', 'Ledger', 'NetRequest', 'Partition', 'aged']
