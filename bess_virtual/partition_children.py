"""Children of a partition added, resized and removed while it runs. Pure.

A share always comes from somewhere and goes somewhere: a sibling or the unassigned part. With it goes the
energy that belongs to it, e * change / share, so that neither side's state of charge changes. These
transfers are booked as corrections; they are no flow that anybody asked for. The open period of the
statements is closed first, so that every record has one set of children.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

from bess_virtual.ledger import Ledger
from bess_virtual.partition import Partition
from bess_virtual.partition_reading import EMPTY_WH
from bess_virtual.shares import (
    COLUMNS,
    REMOVED,
    SUM_TOLERANCE,
    UNASSIGNED,
    Share,
    broken_promises,
    validate,
)

MAX_CHILDREN = 1000


def shares_of(partition: Partition) -> dict[str, Share]:
    """Share per child, without the unassigned part."""
    return dict(zip(partition.children, partition.shares, strict=False))


def add_child(partition: Partition, name: str, share: Share, donor: str = '', wall: float = float('nan')) -> None:
    """A new child at the bottom; its share and energy come from `donor` ('' = the unassigned part).

    `wall` (s since the epoch) is the time for the statements. Raises ValueError, and nothing has changed.
    """
    shares = shares_of(partition)
    if name in (UNASSIGNED, REMOVED):
        raise ValueError(f'a child cannot have the name {name!r}')
    if name in shares:
        raise ValueError(f'there is a child {name!r} already')
    if len(shares) >= MAX_CHILDREN:
        raise ValueError(f'there are {MAX_CHILDREN} children already, which is the most')
    _change(partition, {**shares, name: Share(0.0, 0.0, 0.0)}, name, share, donor, wall)


def resize_child(partition: Partition, name: str, share: Share, partner: str = '',
                 wall: float = float('nan')) -> None:
    """Other shares for a child; the difference goes to or comes from `partner`. As `add_child`."""
    shares = shares_of(partition)
    if name not in shares:
        raise ValueError(f'there is no child {name!r}; children: {", ".join(shares)}')
    _change(partition, shares, name, share, partner, wall)


def remove_child(partition: Partition, name: str, heir: str, wall: float = float('nan')) -> float:
    """End a child; share and energy go to `heir`, a sibling or `UNASSIGNED`. Returns the energy, Wh.

    Its promised power ends with it. Raises ValueError, and nothing has changed.
    """
    shares = shares_of(partition)
    if name not in shares:
        raise ValueError(f'there is no child {name!r}; children: {", ".join(shares)}')
    others = [n for n in shares if n != name]
    if not others:
        raise ValueError(f'{name!r} is the last child; a partition keeps at least one')
    if heir != UNASSIGNED and heir not in others:
        raise ValueError(f'the heir is {heir!r}; allowed: {", ".join([*others, UNASSIGNED])}')
    left = shares.pop(name)
    if heir != UNASSIGNED:
        shares[heir] = _sum(shares[heir], left, 1.0)
    energy = 0.0
    ledgers = _accounts(partition)
    if ledgers is not None:
        energy = ledgers[name].energy
        _transfer(ledgers, name, heir, energy)
        if UNASSIGNED not in partition.names and heir == UNASSIGNED:
            _set(partition, shares_of(partition), ledgers)
        partition.close_period(wall if isfinite(wall) else partition.period.last)
        partition.removed.absorb(replace(ledgers.pop(name), energy=0.0))
    _set(partition, shares, ledgers)
    return energy


def adapt(partition: Partition, wanted: Mapping[str, Share], wall: float = float('nan')) -> list[str]:
    """Make the children equal to `wanted` (a changed site file); ledgers of those that stay are kept.

    What leaves or shrinks goes to the unassigned part, what grows or is new comes from there. Returns what
    was done, in words. Raises ValueError for bad shares.
    """
    problems = validate(list(wanted), list(wanted.values()), partition.policy)
    if problems:
        raise ValueError('; '.join(problems))
    done = []
    before = shares_of(partition)
    partition.close_period(wall if isfinite(wall) else partition.period.last)
    ledgers = _accounts(partition)
    pool = before.copy()
    for name in [n for n in before if n not in wanted]:
        done.append(f'{name} removed')
        if ledgers is not None:
            done[-1] += f', its {ledgers[name].energy:.0f} Wh are unassigned'
            _transfer(ledgers, name, UNASSIGNED, ledgers[name].energy)
            partition.removed.absorb(replace(ledgers.pop(name), energy=0.0))
        del pool[name]
    growing = []
    for name, share in wanted.items():
        old = before.get(name)
        if old == share:
            continue
        done.append(f'{name} {"added" if old is None else "resized"}')
        if ledgers is not None and old is not None and share.energy < old.energy:
            _transfer(ledgers, name, UNASSIGNED, ledgers[name].energy * (1 - share.energy / old.energy))
            pool[name] = replace(old, energy=share.energy)
        elif old is None or share.energy > old.energy:
            growing.append((name, share.energy - (0.0 if old is None else old.energy)))
    if ledgers is not None:
        free = 1 - sum(s.energy for s in pool.values())
        stored = ledgers[UNASSIGNED].energy
        for name, more in growing:
            ledgers.setdefault(name, Ledger())
            if free > SUM_TOLERANCE:
                _transfer(ledgers, UNASSIGNED, name, stored * min(more / free, 1.0))
    _set(partition, dict(wanted), ledgers)
    return done


def _change(partition: Partition, shares: dict[str, Share], name: str, share: Share, partner: str,
            wall: float) -> None:
    partner = partner or UNASSIGNED
    if partner == name or (partner != UNASSIGNED and partner not in shares):
        allowed = [n for n in shares if n != name]
        raise ValueError(f'{partner!r} is no sibling of {name!r}; allowed: {", ".join([*allowed, UNASSIGNED])}')
    old = shares[name]
    after = {**shares, name: share}
    if partner != UNASSIGNED:
        change = Share(*(getattr(share, c) - getattr(old, c) for c in COLUMNS))
        for column in COLUMNS:
            gives, has = getattr(change, column), getattr(shares[partner], column)
            if gives > has + SUM_TOLERANCE:
                raise ValueError(f'{partner!r} has {has:.6g} of the {column}, {gives:.6g} are needed')
        after[partner] = _sum(shares[partner], change, -1.0)
    problems = validate(list(after), list(after.values()), partition.policy)
    if partition.expected is not None:
        problems += broken_promises(list(after.values()), partition.expected.max_charge_power,
                                    partition.expected.max_discharge_power)
    if problems:
        raise ValueError('; '.join(problems))
    partition.close_period(wall if isfinite(wall) else partition.period.last)
    ledgers = _accounts(partition)
    if ledgers is not None:
        ledgers.setdefault(name, Ledger())
        grows = share.energy - old.energy
        giver, taker, has = (partner, name, 0.0) if grows > 0 else (name, partner, old.energy)
        if grows > 0:
            has = (1 - sum(s.energy for s in shares.values())) if partner == UNASSIGNED else shares[partner].energy
        if grows and has > SUM_TOLERANCE:
            _transfer(ledgers, giver, taker, ledgers[giver].energy * min(abs(grows) / has, 1.0))
    _set(partition, after, ledgers)


def _sum(a: Share, b: Share, sign: float) -> Share:
    """Shares of b moved to a (promises are not); rounding does not make them negative."""
    return replace(a, **{c: max(getattr(a, c) + sign * getattr(b, c), 0.0) for c in COLUMNS})


def _accounts(partition: Partition) -> dict[str, Ledger] | None:
    """Ledger per account, with one for the unassigned part in any case; None while nothing is known."""
    if partition.ledgers is None:
        return None
    ledgers = dict(zip(partition.names, partition.ledgers, strict=True))
    ledgers.setdefault(UNASSIGNED, Ledger())
    return ledgers


def _transfer(ledgers: dict[str, Ledger], giver: str, taker: str, energy: float) -> None:
    for name, part in ((giver, -energy), (taker, energy)):
        ledgers[name].energy += part
        ledgers[name].correction += part


def _set(partition: Partition, shares: Mapping[str, Share], ledgers: dict[str, Ledger] | None) -> None:
    """Take over shares and accounts together."""
    keep = ledgers is not None and ledgers[UNASSIGNED].energy > EMPTY_WH
    partition.ledgers = None
    partition.set_accounts(shares, keep_unassigned=keep)
    if ledgers is None:
        return
    if UNASSIGNED not in partition.names:
        partition.removed.absorb(replace(ledgers[UNASSIGNED], energy=0.0))
    partition.ledgers = [ledgers[name] for name in partition.names]
