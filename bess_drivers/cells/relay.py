"""When the relay of a battery closes and opens. Pure, clock by argument.

Opening never waits. Closing needs all of: checks passed, the time-out after the last fault over, the link to
everything above alive, nobody holding it open. Source: facts in `shared/facts/bms_portal_radio.md`, section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from bess_core.params import param


@dataclass(frozen=True)
class RelayParams:
    """Times of the relay."""

    reengage: float = param(10.0, 's', 'after a fault the relay stays open so long', low=0.0, high=86400.0)
    first: float = param(2.0, 's', 'after the start the relay is not closed before; it stays as it is found',
                         low=0.0, high=600.0)
    link_timeout: float = param(15.0, 's', 'silence of everything above after which the relay opens', low=0.5,
                                high=3600.0)
    blind_timeout: float = param(5.0, 's', 'time without measured cells after which the relay opens', low=0.2,
                                 high=600.0)
    confirm: float = param(1.0, 's', 'time that the relay may take until its contact has followed', low=0.05, high=60.0)


@dataclass
class Relay:
    """The decision. Times are site times in s."""

    params: RelayParams
    started: float = -inf
    held_open: bool = False  # an order to keep it open
    why: str = 'not started'
    lost: bool = False  # the link to everything above
    _fault_at: float = -inf
    _link_at: float = -inf
    _measured_at: float = -inf
    _ok: bool = False
    _wanted_at: float = -inf
    _wanted: bool | None = None

    def start(self, now: float) -> None:
        """From now on it decides; the link counts as alive, so that those above have time to come up."""
        self.started = self._link_at = self._measured_at = now

    def link(self, now: float) -> None:
        """Everything above has given a sign of life."""
        self._link_at = max(self._link_at, now)

    def measured(self, now: float, ok: bool) -> None:
        """A complete poll of the cells; `ok`: nothing is beyond an absolute limit."""
        self._measured_at, self._ok = now, ok

    def fault(self, now: float) -> None:
        """Something is wrong now, whatever the last poll said."""
        self._ok, self._fault_at = False, now

    def decide(self, now: float, closed: bool) -> bool:
        """Whether it shall be closed, `closed` being its present state; `why` says the reason."""
        p = self.params
        blind = now - self._measured_at > p.blind_timeout
        lost = self.lost = now - self._link_at > p.link_timeout
        # Before the first poll nothing is known to be wrong: a restart does not toggle the contactor.
        fault = blind or (self._measured_at > self.started and not self._ok)
        if fault:
            self._fault_at = now
        if fault or lost or self.held_open:
            self.why = ('the cells have not been measured' if blind else 'a limit is violated' if fault
                        else 'the link to everything above is lost' if lost else 'held open by an order')
            return False
        if closed:
            self.why = ''
            return True
        waits = max(self._fault_at + p.reengage, self.started + p.first) - now
        known = self._ok and self._measured_at > self.started
        self.why = '' if known and waits <= 0.0 else f'closes in {waits:.1f} s' if known else 'no complete poll yet'
        return known and waits <= 0.0

    def stuck(self, now: float, wanted: bool, closed: bool | None) -> bool:
        """Whether the contact that is read back has not followed in time (None = it cannot be read)."""
        if wanted is not self._wanted:
            self._wanted, self._wanted_at = wanted, now
        return closed is not None and closed is not wanted and now - self._wanted_at > self.params.confirm
