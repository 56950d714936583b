"""What a system remembers about itself over restarts. Pure. Times in s, wall clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite, isnan
from typing import Any

DAY_S = 86400.0
DAYS = 400  # balance history that is kept
REST_A = 2.0  # below this a battery is at rest, and cell voltages may be compared
FULL, EMPTY = 0.995, 0.05  # SoC


@dataclass(slots=True)
class SystemRecord:
    """Kept in the state folder."""

    runtime: float = 0.0  # s
    starts: int = 0
    sleep_time: float = 0.0  # s
    last_mode_change: float = 0.0
    last_state_change: float = 0.0
    last_full_charge: float = 0.0
    last_empty: float = 0.0
    balance: list[list[float]] = field(default_factory=list)  # [time, V] per day, the least spread at rest of that day

    def step(self, dt: float, asleep: bool) -> None:
        """`dt` s of running."""
        if dt > 0.0:
            self.runtime += dt
            self.sleep_time += dt if asleep else 0.0

    def battery(self, soc: float, spread: float, current: float, wall: float) -> None:
        """A good reading: SoC (fraction), highest minus lowest cell (V), current (A)."""
        if soc >= FULL:
            self.last_full_charge = wall
        elif soc <= EMPTY:
            self.last_empty = wall
        if isnan(spread) or spread < 0.0 or not abs(current) < REST_A:
            return
        if self.balance and self.balance[-1][0] // DAY_S == wall // DAY_S:
            self.balance[-1][1] = min(self.balance[-1][1], spread)
        else:
            self.balance.append([wall, spread])
            del self.balance[:-DAYS]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def restored(data: Any) -> SystemRecord:
    """What `to_dict` gave. Raises ValueError."""
    if not isinstance(data, Mapping) or set(data) != {f.name for f in fields(SystemRecord)}:
        raise ValueError('system record: wrong keys')
    numbers = [v for k, v in data.items() if k != 'balance']
    rows = data['balance']
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        raise ValueError('system record: balance')
    for value in (*numbers, *(v for r in rows for v in r)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < 0.0:
            raise ValueError(f'system record: {value!r} is no number from 0')
    return SystemRecord(**{**data, 'starts': int(data['starts']), 'balance': [list(map(float, r)) for r in rows]})


def boot_time(stat: str) -> float:
    """When the machine started, of the text of /proc/stat; 0 unknown."""
    for line in stat.splitlines():
        if line.startswith('btime '):
            return float(line.split()[1])
    return 0.0


