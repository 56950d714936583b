"""The last gate of outputs: who may set one, for how long, and what it goes to afterwards. Pure, clock by argument.

Outputs are *leased*: an order holds for its lease, then the output goes to its safe value by itself, as
it does when the driver is deactivated and when it starts (whatever an earlier process left there). A
relay that heats or starts something must not stay on because the software above died. An output that is
*latched* may also be set with lease 0: then it stays until somebody sets it again, whatever happens to
this process; that is for lamps, mode selectors and the like, and a profile must say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan
from typing import NamedTuple

CLOCK_SLACK_S = 1.0  # a stamp may lie so far in the future


@dataclass(frozen=True)
class OutputRule:
    """What one output takes."""

    safe: float = 0.0  # value when nobody holds it; NaN = leave as it is
    latched: bool = False  # lease 0 is allowed
    digital: bool = True  # 0 or 1 only
    low: float = -inf
    high: float = inf


class Holding(NamedTuple):
    """Who holds an output."""

    source: str
    until: float  # s, site time; inf = latched
    sequence: int


@dataclass
class _Output:
    rule: OutputRule
    wanted: float = nan  # NaN = leave
    holder: Holding | None = None
    written: float = nan
    at: float = -inf


@dataclass
class OutputGate:
    """All outputs of one device."""

    rules: Mapping[str, OutputRule]
    read_only: bool = False
    longest_lease: float = 3600.0  # s
    refresh: float = inf  # s, a held value is written again after this time
    refused: int = 0
    _blocked: str = 'not started'
    _seen: bool = False
    _outputs: dict[str, _Output] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._outputs = {name: _Output(rule) for name, rule in self.rules.items()}

    # -- what the driver tells

    def start(self) -> None:
        """Let orders through; outputs that nobody holds go to their safe values."""
        self._blocked = ''
        for output in self._outputs.values():
            if output.holder is None and not output.rule.latched:
                output.wanted, output.written = output.rule.safe, nan

    def stop(self, why: str = 'stopped') -> None:
        """Orders are refused; leased outputs go to their safe values, latched ones stay."""
        self._blocked = why or 'stopped'
        for output in self._outputs.values():
            if output.holder is not None and output.holder.until == inf:
                continue
            self._release(output)

    def reading(self, values: Mapping[str, float]) -> None:
        """A good poll with the outputs as they are read back (NaN = not known)."""
        self._seen = True
        for name, value in values.items():
            output = self._outputs.get(name)
            # Somebody else (or a restart of the device) changed it: it is written again.
            if output is not None and not isnan(value) and not isnan(output.written) \
                    and abs(value - output.written) > 1e-3 * max(1.0, abs(value)):
                output.written = nan

    def written(self, name: str, value: float, now: float) -> None:
        """A write reached the device."""
        self._outputs[name].written, self._outputs[name].at = value, now

    # -- orders

    def offer(self, name: str, value: float, lease: float, source: str, sequence: int, given: float,
              now: float) -> str:
        """Take an order given at `given` (s, site time). Returns why it is refused, '' when it is accepted."""
        problem = self._problem(name, value, lease, source, sequence, given, now)
        if problem:
            self.refused += 1
            return problem
        output = self._outputs[name]
        until = min(given, now) + lease if lease > 0.0 else inf
        output.holder, output.wanted = Holding(source, until, sequence), value
        return ''

    def _problem(self, name: str, value: float, lease: float, source: str, sequence: int, given: float,
                 now: float) -> str:
        output = self._outputs.get(name)
        if output is None:
            return f'no output {name!r}; there is: {", ".join(self._outputs) or "none"}'
        rule = output.rule
        if not isfinite(value):
            return f'value is {value}'
        if rule.digital and value not in (0.0, 1.0):
            return f'value is {value:g}, {name} is 0 or 1'
        if not rule.low <= value <= rule.high:
            return f'value {value:g} is not in {rule.low:g}..{rule.high:g}'
        if not source:
            return 'source is empty'
        if not isfinite(lease) or lease < 0.0 or (lease == 0.0 and not rule.latched):
            return f'lease is {lease} s, must be above 0' + (' or 0' if rule.latched else f': {name} is not latched')
        if lease > self.longest_lease:
            return f'lease {lease:g} s is longer than {self.longest_lease:g} s'
        if not isfinite(given) or given > now + CLOCK_SLACK_S:
            return f'stamp is {given - now:.1f} s in the future'
        if lease and given + lease <= now:
            return f'expired on arrival: {now - given:.1f} s old, lease {lease:g} s'
        holder = output.holder
        if holder is not None and now < holder.until < inf and holder.source != source:
            return f'{holder.source} holds the lease for another {holder.until - now:.1f} s'
        if holder is not None and now < holder.until and holder.source == source and sequence <= holder.sequence:
            return f'sequence {sequence} is not above {holder.sequence}'
        if self.read_only:
            return 'read only'
        if self._blocked:
            return f'refused: {self._blocked}'
        return '' if self._seen else 'no valid reading of the device yet'

    # -- what to do

    def tick(self, now: float) -> dict[str, float]:
        """Outputs to write now. Tell `written` what arrived."""
        due = {}
        for name, output in self._outputs.items():
            if output.holder is not None and now >= output.holder.until:
                self._release(output)
            held = output.holder is not None
            again = held and now - output.at >= self.refresh
            if not isnan(output.wanted) and (output.wanted != output.written or again):
                due[name] = output.wanted
        return {} if self.read_only or not self._seen else due

    @staticmethod
    def _release(output: _Output) -> None:
        if output.holder is not None or not output.rule.latched:
            output.wanted = output.rule.safe
        output.holder = None

    def holdings(self, now: float) -> dict[str, tuple[str, float]]:
        """Held outputs: name -> (source, s left; inf = latched)."""
        return {name: (o.holder.source, o.holder.until - now) for name, o in self._outputs.items()
                if o.holder is not None and now < o.holder.until}
