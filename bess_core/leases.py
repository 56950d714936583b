"""Leased orders: who may command now. Pure; times are site times in s.

One source holds the lease at a time. Another source is refused until the lease is over, except with a
higher term (a newly elected leader). An order that is older than its own lease on arrival, repeats a
sequence number or carries NaN is refused. Every refusal says why.
"""

from __future__ import annotations

from math import isfinite, isinf, nan
from typing import NamedTuple


class Order(NamedTuple):
    """An accepted order. `power` in W or, with `is_current`, A; + = charging."""

    power: float
    reactive_power: float  # var; NaN = leave
    source: str
    term: int
    sequence: int
    given: float  # s
    expires: float  # s
    is_current: bool = False


class Numbers:
    """Numbers for the orders of one sender, rising also over its restarts: they begin at the microsecond of its start.

    So a sender that is made anew while its old lease lasts (a partition that is destroyed and created, a process that
    is started again) is heard at once, and what its former life sent late is still old. After a restart of the whole
    machine the monotonic clock begins afresh; then the old lease has to end first.
    """

    __slots__ = ('_last',)

    def __init__(self, now: float) -> None:
        """`now`: s of a monotonic clock that all lives of the sender share."""
        self._last = max(0, int(now * 1e6))

    def next(self) -> int:
        """One more than the last; at least 1."""
        self._last += 1
        return self._last


class LeaseHolder:
    """Keeps the order in force of one battery or converter."""

    def __init__(self, max_lease: float = 60.0) -> None:
        self.max_lease = max_lease
        self._order: Order | None = None
        self._term = 0

    def offer(self, power: float, lease: float, source: str, now: float, *, given: float | None = None,
              reactive_power: float = nan, term: int = 0, sequence: int = 0, is_current: bool = False) -> str:
        """Take an order if it is in order; '' or the reason why it is refused.

        A lease longer than `max_lease` is shortened to it. A sequence of 0 means "not numbered".
        """
        if not isfinite(power):
            return f'{"current" if is_current else "power"} is {power}, not a finite number'
        if isinf(reactive_power):
            return f'reactive power is {reactive_power}, not a finite number'
        if not (isfinite(lease) and lease > 0):
            return f'lease is {lease} s, must be above 0'
        given = now if given is None else min(given, now)
        lease = min(lease, self.max_lease)
        if now - given >= lease:
            return f'arrived {now - given:.1f} s old, after its lease of {lease:g} s'
        if term < self._term:
            return f'term {term} is below the present term {self._term}'
        order = self.current(now)
        if order is not None and term <= order.term:  # a newer term may come from anybody, with numbers of its own
            if order.source != source:
                return f'{order.source} holds the lease for another {order.expires - now:.1f} s'
            if sequence and sequence <= order.sequence:
                return f'sequence {sequence} is not above the last one ({order.sequence})'
        self._term = max(self._term, term)
        self._order = Order(power, reactive_power, source, term, sequence, given, given + lease, is_current)
        return ''

    def current(self, now: float) -> Order | None:
        """The order in force, or None when its lease is over: then its source may count from 1 again."""
        if self._order is not None and now >= self._order.expires:
            self._order = None
        return self._order

    def remaining(self, now: float) -> float:
        """s left of the lease; 0 without one."""
        order = self.current(now)
        return order.expires - now if order else 0.0

    def release(self) -> None:
        """Forget the order in force."""
        self._order = None
