"""Emergency stop: pressed by anybody, reset by somebody on the spot, kept over restarts. Pure.

The input is watched fail-safe: while one is configured, an input that is not read, too old or unknown
counts as pressed. A reset needs the input released, no trigger that is still
there, and proof that whoever resets is at the machine: either the local reset input (a rising edge), or the token that
only this machine's users can read.
"""

from __future__ import annotations

import hmac
from math import inf
from typing import Any

from bess_core.emergency import Stop


class EmergencyStop:
    """`max_age` s: an input read longer ago counts as pressed. `debounce` s: a reset input must be held so long."""

    def __init__(self, stop: Stop | None = None, *, input_configured: bool = False, max_age: float = 1.0,
                 debounce: float = 0.1, grace: float = 10.0, now: float = 0.0) -> None:
        self.stop = stop or Stop()
        self.input_configured = input_configured
        self._max_age, self._debounce = max_age, debounce
        self._read_at, self._pressed = -inf, False
        self._grace_until = now + grace  # the input's driver comes up after us
        self._reset_seen_low = False
        self._reset_since: float | None = None

    def press(self, source: str, cause: str, wall: float) -> bool:
        """Stop. True when this is news; a second press keeps the first cause."""
        if self.stop.active:
            return False
        self.stop = Stop(True, cause or 'not said', source, wall)
        return True

    def read_input(self, pressed: bool | None, now: float) -> None:
        """A reading of the input; None = could not be read, which ages like a missing one."""
        if pressed is not None:
            self._read_at, self._pressed = now, pressed

    def input_pressed(self, now: float) -> bool:
        """Whether the input counts as pressed now."""
        if not self.input_configured:
            return False
        return self._pressed or now - self._read_at > self._max_age

    def tick(self, now: float, wall: float) -> bool:
        """Look at the input. True when that stopped the site."""
        if not self.input_pressed(now):
            return False
        lost = now - self._read_at > self._max_age
        if lost and self._read_at == -inf and now < self._grace_until:
            return False
        return self.press('input', 'the input cannot be read' if lost else 'the input is pressed', wall)

    def read_reset(self, on: bool | None, now: float, wall: float) -> str:
        """A reading of the local reset input: off, then on for `debounce`. Returns why it did not reset, '' = did
        or nothing happened."""
        if on is None:
            self._reset_since, self._reset_seen_low = None, False  # a wire that comes back is nobody's hand
            return ''
        if not on:
            self._reset_seen_low, self._reset_since = True, None
            return ''
        if not self._reset_seen_low:
            return ''
        if self._reset_since is None:
            self._reset_since = now
        if now - self._reset_since < self._debounce:
            return ''
        self._reset_seen_low = False
        return self._reset('reset input', now, wall) if self.stop.active else ''

    def reset(self, token: str, expected: str, by: str, now: float, wall: float) -> str:
        """Reset with the local token. Returns why not, '' = reset."""
        if not by.strip():
            return 'refused: who resets is missing'
        if not expected or not hmac.compare_digest(token.strip().encode(), expected.encode()):
            return 'refused: an emergency stop is reset on the spot; the token of this machine is wrong or missing'
        if not self.stop.active:
            return 'not active'
        return self._reset(by.strip(), now, wall)

    def _reset(self, by: str, now: float, wall: float) -> str:
        if self.input_pressed(now):
            lost = now - self._read_at > self._max_age
            return f'refused: the input {"cannot be read" if lost else "is still pressed"}'
        self.stop = Stop(False, f'reset by {by}; was: {self.stop.cause}', self.stop.source, wall)
        return ''

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        s = self.stop
        return {'active': s.active, 'cause': s.cause, 'source': s.source, 'changed': s.changed}
