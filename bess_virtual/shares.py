"""Shares of a partition, and the policies that spread a source over its children. Pure functions.

Children are ordered: index 0 is the top, the last one the bottom.

* proportional: strict fractions of whatever the source has.
* tranche: surplus goes to the top first, a deficit is taken from the bottom first.
* reserved: surplus and deficit both go to the bottom first, so the upper children are dependable.
* guaranteed: each child has a promised power per direction that the others cannot touch; what the
  source can do beyond all promises is shared by the fractions (`spread_promises`, `share_rest`). A
  source that cannot keep all promises keeps each in the same proportion. Energy is proportional.

Fractions of a column may add up to less than 1: the rest is `UNASSIGNED`, an account like a child's that
nobody can ask for power; it stands below the last child.

Powers in W, energies in Wh, + = charging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import fsum, isfinite

from bess_virtual.exact import exact_sum

SUM_TOLERANCE = 1e-6
UNASSIGNED = 'unassigned'
"""Account of what no child owns."""
REMOVED = 'removed'
"""Line of the sums of children that are no more."""
COLUMNS = ('energy', 'charge', 'discharge')


class Policy(Enum):
    """How a surplus or deficit of the source is spread over the children."""

    PROPORTIONAL = 'proportional'
    TRANCHE = 'tranche'
    RESERVED = 'reserved'
    GUARANTEED = 'guaranteed'


@dataclass(frozen=True, slots=True)
class Share:
    """One child's fractions (0..1) of the source's energy and of its power in each direction, and for
    policy guaranteed the power that is promised to it (W, >= 0)."""

    energy: float
    charge: float
    discharge: float
    promised_charge: float = 0.0
    promised_discharge: float = 0.0

    @classmethod
    def equal(cls, fraction: float) -> Share:
        """The same fraction of everything."""
        return cls(fraction, fraction, fraction)


def validate(names: Sequence[str], shares: Sequence[Share], policy: Policy | None = None) -> list[str]:
    """What is wrong with the shares, in words; empty when nothing is. Order does not matter."""
    problems: list[str] = []
    if not names:
        problems.append('a partition needs at least one child')
    if len(names) != len(shares):
        problems.append(f'{len(names)} children but {len(shares)} shares')
        return problems
    repeated = sorted({n for n in names if names.count(n) > 1})
    problems += [f'child {name!r} is listed more than once' for name in repeated]
    problems += [f'a child cannot have the name {n!r}' for n in names if n in (UNASSIGNED, REMOVED)]
    for column in COLUMNS:
        values = [float(getattr(s, column)) for s in shares]
        bad = [(n, v) for n, v in zip(names, values, strict=True) if not (isfinite(v) and v >= 0)]
        problems += [f'{column} share of {n!r} is {v}, allowed: 0 to 1' for n, v in bad]
        if values and not bad and fsum(values) > 1 + SUM_TOLERANCE:
            problems.append(f'{column} shares add up to {fsum(values):.9g}, must be 1 or less')
    for name, share in zip(names, shares, strict=True):
        promises = (share.promised_charge, share.promised_discharge)
        if not all(isfinite(p) and p >= 0 for p in promises):
            problems.append(f'promised power of {name!r} is {promises[0]} and {promises[1]} W, allowed: 0 or more')
        elif any(promises) and policy not in (None, Policy.GUARANTEED):
            problems.append(f'{name!r} has a promised power, which only the policy guaranteed keeps')
    return problems


def broken_promises(shares: Sequence[Share], max_charge_power: float, max_discharge_power: float) -> list[str]:
    """Which promises a source with these powers (W) cannot keep, in words; empty when it can keep all."""
    problems = []
    for word, promised, power in (
            ('charge', fsum(s.promised_charge for s in shares), max_charge_power),
            ('discharge', fsum(s.promised_discharge for s in shares), max_discharge_power)):
        if promised > power * (1 + 1e-9):
            problems.append(f'{promised:.0f} W of {word} power are promised, the source has {power:.0f} W')
    return problems


def spread_promises(promises: Sequence[float], fractions: Sequence[float], total: float) -> list[float]:
    """Each child's firm part of a power limit `total` >= 0 under the policy guaranteed; the sum is `total`.

    P_i = g_i + f_i * (total - sum g) while the source covers all promises g, else g_i * total / sum g.
    """
    promised = fsum(promises)
    if total >= promised:
        return [g + f * (total - promised) for g, f in zip(promises, fractions, strict=True)]
    return [g * total / promised for g in promises]


def share_rest(promises: Sequence[float], fractions: Sequence[float], asked: Sequence[float],
               total: float) -> list[float]:
    """What each gets of what it asks for (W, magnitudes of one direction) when the source can do `total`.

    First each gets up to its promise (all cut alike when the source cannot keep them), then the
    unpromised rest goes to who wants more: by the fractions, and what one leaves to the others.
    """
    promised = fsum(promises)
    keep = min(total / promised, 1.0) if promised > 0 else 1.0
    granted = [min(a, g * keep) for a, g in zip(asked, promises, strict=True)]
    rest = max(total - promised * keep, 0.0)
    wanting = [i for i, a in enumerate(asked) if a > granted[i]]
    weights = list(fractions)
    while wanting and rest > 0:
        whole = fsum(weights[i] for i in wanting)
        if whole <= 0:  # only children without a fraction are left
            weights = [1.0] * len(weights)
            continue
        parts = {i: rest * (weights[i] / whole) for i in wanting}  # rest / whole overflows for tiny fractions
        content = [i for i in wanting if asked[i] - granted[i] <= parts[i]]
        if not content:
            for i in wanting:
                granted[i] += parts[i]
            return granted
        for i in content:
            rest -= asked[i] - granted[i]
            granted[i] = asked[i]
        wanting = [i for i in wanting if i not in content]
    return granted


def spread_limit(policy: Policy, fractions: list[float], expected: list[float], total: float) -> list[float]:
    """Each child's part of a limit (capacity or power) of the source, which is `total` >= 0 now.

    `expected` are the children's absolute parts at creation. The sum is `total` (for tranche and
    reserved exactly as far as rounding allows, whatever the fractions). For guaranteed this is the
    capacity; its powers are spread by `spread_promises`.
    """
    if policy in (Policy.PROPORTIONAL, Policy.GUARANTEED):
        return [f * total for f in fractions]
    parts = list(expected)
    surplus = total - exact_sum(parts)
    if surplus >= 0:
        parts[0 if policy is Policy.TRANCHE else -1] += surplus
        return parts
    return _take(parts, -surplus)


def spread_energy(policy: Policy, fractions: list[float], ledger: list[float], full: list[float],
                  total: float) -> tuple[list[float], float]:
    """Each child's part of the stored energy `total` >= 0, from its ledger; and what fits nowhere.

    0 <= part <= full for each child, and parts + unassigned = total.
    """
    held = [min(max(e, 0.0), f) for e, f in zip(ledger, full, strict=True)]
    if policy in (Policy.PROPORTIONAL, Policy.GUARANTEED):
        return _scale(fractions, held, full, total)
    delta = total - exact_sum(held)
    if delta < 0:
        return _take(held, -delta), 0.0
    order = range(len(held)) if policy is Policy.TRANCHE else range(len(held) - 1, -1, -1)
    for i in order:
        added = min(delta, full[i] - held[i])
        held[i] += added
        delta -= added
    return held, delta


def _take(parts: Sequence[float], deficit: float) -> list[float]:
    """Take a deficit from the bottom upwards; stops at zero."""
    result = list(parts)
    for i in range(len(result) - 1, -1, -1):
        taken = min(deficit, result[i])
        result[i] -= taken
        deficit -= taken
    return result


def _scale(fractions: list[float], held: list[float], full: list[float],
           total: float) -> tuple[list[float], float]:
    """In proportion to what each holds (to the fractions when nobody holds anything), capped by `full`."""
    whole = exact_sum(full)
    if total >= whole:
        return list(full), total - whole
    weights = list(held) if exact_sum(held) >= 1e-6 else list(fractions)
    parts = [0.0] * len(held)
    rest = total
    open_ = [i for i, w in enumerate(weights) if w > 0]
    while open_:
        level = rest / exact_sum([weights[i] for i in open_])
        capped = [i for i in open_ if weights[i] * level > full[i]]
        if not capped:
            for i in open_:
                parts[i] = weights[i] * level
            return parts, 0.0
        for i in capped:
            parts[i] = full[i]
            rest -= full[i]
        open_ = [i for i in open_ if i not in capped]
    # Those that held something are full: the rest goes to the others by their free room.
    room = [f - p for f, p in zip(full, parts, strict=True)]
    level = rest / exact_sum(room)
    return [p + r * level for p, r in zip(parts, room, strict=True)], 0.0


def attribute(policy: Policy, requests: list[float], delivered: float, charge_limits: list[float],
              discharge_limits: list[float], *, fractions: list[float], promises: Sequence[Share] = ()) -> list[float]:
    """Whose power the delivered source power was. The parts always add up to `delivered`.

    Whenever feasible no part exceeds its request or turns its sign: a residual is first taken off
    the requests that go the other way (requests +20 and -10 with 19 delivered: +20 and -1). Only
    what remains beyond all requests in the direction of `delivered` is added on top: in proportion to
    the requests (proportional, guaranteed), else child by child up to its limit; what nobody asked for
    at all follows `fractions`.

    The order of tranche: a residual > 0 (less discharge or more charge than asked) from the top
    down, one < 0 from the bottom up. Reserved: always from the bottom up. Guaranteed: first from what
    the requests have beyond their promises (`promises`, of the same children), then from these, both in
    proportion.
    """
    parts = [float(r) for r in requests]
    residual = delivered - exact_sum(parts)
    sign = 1.0 if residual > 0 else -1.0
    rest = abs(residual)
    by_order = policy in (Policy.TRANCHE, Policy.RESERVED)
    against = [max(-sign * r, 0.0) for r in parts]  # how far each can fall towards zero
    available = exact_sum(against)
    top_down = policy is Policy.TRANCHE and residual > 0
    order = range(len(parts)) if top_down else range(len(parts) - 1, -1, -1)
    if rest >= available:  # all opposite requests fall to zero
        parts = [0.0 if a > 0 else p for a, p in zip(against, parts, strict=True)]
        rest -= available
    elif not by_order:
        kept = against
        if policy is Policy.GUARANTEED and promises:
            promised = [s.promised_discharge if residual > 0 else s.promised_charge for s in promises]
            firm = [min(a, g) for a, g in zip(against, promised, strict=True)]
            beyond = available - exact_sum(firm)
            if rest <= beyond:
                lower = rest / beyond if beyond > 0 else 0.0
                return [p + sign * (a - f) * lower for p, a, f in zip(parts, against, firm, strict=True)]
            parts = [-sign * f if a > 0 else p for p, a, f in zip(parts, against, firm, strict=True)]
            kept, rest = firm, rest - beyond
        whole = exact_sum(kept)
        keep = (whole - rest) / whole
        return [p * keep if a > 0 else p for a, p in zip(kept, parts, strict=True)]
    else:
        for i in order:
            taken = min(rest, against[i])
            parts[i] += sign * taken
            rest -= taken
        return parts
    if rest <= 0:
        return parts
    along = exact_sum([abs(p) for p in parts])
    if along > 0 and not by_order:
        return [p + sign * rest * (abs(p) / along) for p in parts]
    if along > 0:
        limits = charge_limits if residual > 0 else discharge_limits
        for i in order:
            added = min(rest, max(limits[i] - abs(parts[i]), 0.0)) if parts[i] != 0 else 0.0
            parts[i] += sign * added
            rest -= added
    return [p + sign * rest * f for p, f in zip(parts, fractions, strict=True)]
