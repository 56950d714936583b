"""What a watcher may not hold against those it watches: that it stood still itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

SHARE = 0.2  # of the timeout: shorter stalls change nothing


class OwnStalls:
    """Notices that the watcher itself was late: on a machine that hangs nobody is heard, and that is no silence."""

    def __init__(self, period: float, timeout: float) -> None:
        """`period`: s between two looks; `timeout`: s of silence after which somebody counts as lost."""
        self._period, self._least = period, SHARE * timeout
        self._looked_at = nan

    def late(self, now: float) -> float:
        """s by which this look is late; 0 when that is nothing to speak of, and at the first look."""
        late, self._looked_at = now - self._looked_at - self._period, now
        return late if late > self._least else 0.0


def excused(seen: Mapping[str, float], late: float, now: float) -> dict[str, float]:
    """When each one was last heard (s), as if the time of the stall had not been; never later than now."""
    return {name: min(at + late, max(now, at)) for name, at in seen.items()}
