"""Power proposals and the book that keeps the live ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite, isinf, isnan, nan

CLOCK_SLACK_S = 1.0  # s, a stamp this far in the future is clock skew; farther is refused


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a mode, service or limit wants of a battery. Fields as in `msg/PowerProposal.msg`."""

    source: str
    battery: str = ''
    priority: int = 0  # 0..255, higher is resolved first
    min_power: float = -inf  # W, + = charging; -inf or NaN = none
    max_power: float = inf  # W; +inf or NaN = none
    preferred_power: float = nan  # W; NaN = bounds only
    preferred_reactive_power: float = nan  # var, + = inductive; NaN = no preference
    lease: float = 1.0  # s, > 0
    reason: str = ''
    time: float = nan  # s, when it was made (header.stamp); NaN = on arrival
    received: float = nan  # s, when the book took it

    @property
    def low(self) -> float:
        """Lower bound in W, -inf when there is none."""
        return -inf if isnan(self.min_power) else self.min_power

    @property
    def high(self) -> float:
        """Upper bound in W, +inf when there is none."""
        return inf if isnan(self.max_power) else self.max_power

    @property
    def has_preference(self) -> bool:
        """True when it asks for an active power."""
        return not isnan(self.preferred_power)

    @property
    def expires(self) -> float:
        """Time in s from which it is void; counts from when it was made, not from arrival."""
        made = self.time
        if not made <= self.received:  # one of them is unknown, or the stamp is ahead
            made = made if isnan(self.received) else self.received
        return made + self.lease

    def problem(self) -> str:
        """Why this proposal makes no sense; "" when it does."""
        if not self.source:
            return 'source is empty'
        if not 0 <= self.priority <= 255:
            return f'priority is {self.priority}, allowed 0 to 255'
        if not isfinite(self.lease) or self.lease <= 0.0:
            return f'lease is {self.lease} s, must be above 0'
        if self.low == inf or self.high == -inf:
            return 'a bound is infinite on the wrong side'
        if self.low > self.high:
            return f'min_power {self.low:g} W is above max_power {self.high:g} W'
        if isinf(self.preferred_power) or isinf(self.preferred_reactive_power):
            return 'preferred power is infinite'
        if isinf(self.time):
            return 'stamp is infinite'
        return ''


def resolution_order(proposals: Iterator[Proposal] | list[Proposal]) -> list[Proposal]:
    """High priority first; within one priority bounds before preferences, then by source name.

    Bounds first, because among equals a limit must hold for a wish, not the other way round.
    """
    if isinstance(proposals, list) and len(proposals) < 2:
        return proposals
    return sorted(proposals, key=lambda p: (-p.priority, p.has_preference, p.source))


class ProposalBook:
    """The live proposals: one per source, each void when its lease ends.

    `members` (optional) names the hardware units of each battery. Then a proposal for a battery that
    shares some units with a *different* battery of another live proposal is refused: two decisions
    about the same cells would fight each other.
    """

    def __init__(
        self, longest_lease_s: float = 60.0, members: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self._longest_lease_s = longest_lease_s
        self._members = dict(members or {})
        self._by_source: dict[str, Proposal] = {}

    def __len__(self) -> int:
        return len(self._by_source)

    def __iter__(self) -> Iterator[Proposal]:
        return iter(self._by_source.values())

    def put(self, proposal: Proposal, now: float) -> str:
        """Take a proposal, replacing the source's last one. Returns why it is refused, "" if taken."""
        self.expire(now)
        problem = proposal.problem() or self._conflict(proposal, now)
        if problem:
            return problem
        if proposal.time <= now and isnan(proposal.received):
            self._by_source[proposal.source] = proposal  # its lease counts from when it was made
        else:
            self._by_source[proposal.source] = replace(proposal, received=now)
        return ''

    def _conflict(self, proposal: Proposal, now: float) -> str:
        if proposal.lease > self._longest_lease_s:
            return f'lease {proposal.lease:g} s is longer than {self._longest_lease_s:g} s'
        if proposal.time > now + CLOCK_SLACK_S:
            return f'stamp is {proposal.time - now:.1f} s in the future'
        if proposal.time + proposal.lease <= now:
            return f'already expired on arrival: {now - proposal.time:.1f} s old'
        last = self._by_source.get(proposal.source)
        if last is not None and proposal.time < last.time:
            return 'older than the last proposal of this source'
        for other in self._by_source.values():
            if other.source == proposal.source or other.battery == proposal.battery:
                continue
            mine = self._members.get(proposal.battery, frozenset((proposal.battery,)))
            shared = mine & self._members.get(other.battery, frozenset((other.battery,)))
            if shared:
                return (
                    f'{proposal.battery} shares {", ".join(sorted(shared))} with '
                    f'{other.battery}, for which {other.source} has a live proposal'
                )
        return ''

    def withdraw(self, source: str) -> bool:
        """Remove a source's proposal before its lease ends; False when it has none."""
        return self._by_source.pop(source, None) is not None

    def expire(self, now: float) -> list[Proposal]:
        """Remove and return what has expired."""
        gone = [p for p in self._by_source.values() if p.expires <= now] if self._by_source else []
        for proposal in gone:
            del self._by_source[proposal.source]
        return gone

    def live(self, now: float, battery: str | None = None) -> list[Proposal]:
        """Live proposals in the order in which they are resolved; for one battery, or all."""
        self.expire(now)
        return resolution_order(
            [p for p in self._by_source.values() if battery is None or p.battery == battery]
        )
