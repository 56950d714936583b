"""What to write for an order, and when not to: sequences, write limits, heartbeats. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, inf, isnan, nan
from typing import NamedTuple

from bess_drivers.device import BadValue

from .model import HeartbeatKeys, Point, Profile, StepKeys

HOUR_S, DAY_S = 3600.0, 86400.0


class Write(NamedTuple):
    """One number for one point; with `mask` only these bits of it."""

    point: Point
    value: float  # SI, or the number of the device when `raw`
    raw: bool = False
    mask: int = 0


class Order(NamedTuple):
    """What is asked of a device. Powers passive-signed; NaN = not asked."""

    power: float = nan  # W
    reactive_power: float = nan  # var
    lease: float = nan  # s
    temperature: float = nan  # degC
    mode: float = nan  # ClimateMode
    dc_voltage: float = nan  # V, for devices that take a current
    security_code: float = nan  # number that unlocks writing

    def word(self, name: str) -> float:
        """The number that a step means by a word."""
        if name == 'charge_power':
            return max(self.power, 0.0)
        if name == 'discharge_power':
            return max(-self.power, 0.0)
        if name in ('current', 'charge_current'):
            power = self.power if name == 'current' else max(self.power, 0.0)
            if power and not self.dc_voltage > 0.0:
                raise BadValue('the device takes a current, and its voltage is not known')
            return power / self.dc_voltage if power else 0.0
        if name == 'lease':
            return float(ceil(self.lease))
        return float(getattr(self, name))

    def is_(self, name: str) -> bool:
        """Whether a condition of a step or bit holds."""
        return {'always': True, 'charging': self.power > 0.0, 'discharging': self.power < 0.0,
                'idle': self.power == 0.0, 'running': self.power != 0.0,
                'reactive': not isnan(self.reactive_power)}[name]


def writes(profile: Profile, steps: Iterable[StepKeys], order: Order) -> list[Write]:
    """The writes of a sequence for an order; words that are not asked for (NaN) are left out."""
    out = []
    for step in steps:
        if not order.is_(step.when):
            continue
        point = profile.points[step.point]
        if step.bits:
            number = mask = 0
            for bit, word in step.bits.items():
                mask |= 1 << bit
                on = bool(word) if isinstance(word, int) else order.is_(word)
                number |= int(on) << bit
            out.append(Write(point, float(number), raw=True, mask=mask))
        elif isinstance(step.value, str):
            value = order.word(step.value)
            if step.value == 'mode' and not isnan(value) and point.codes:
                code = next((c for c, v in point.codes.items() if v == value), None)
                if code is None:
                    raise BadValue(f'{point.name} has no number for mode {value:g}')
                out.append(Write(point, float(code), raw=True))
            elif not isnan(value):
                out.append(Write(point, value))
        else:
            out.append(Write(point, float(step.value), raw=True))
    return out


@dataclass
class _Written:
    """What was written to one point."""

    number: float = nan
    value: float = nan  # SI
    at: float = -inf
    tokens: float = nan
    filled_at: float = -inf


@dataclass
class WriteLimiter:
    """Keeps the write limits of points: unchanged numbers, deadband, interval, writes per day.

    The budget of `writes_per_day` is a bucket that holds one hour's share and fills evenly, so a day
    never sees more than the limit and that hour's share. What goes to zero or off is never held back.
    """

    held_back: int = 0  # writes that the limits delayed or dropped
    _points: dict[str, _Written] = field(default_factory=dict)

    def forget(self) -> None:
        """The device may have restarted: every number counts as changed. Budgets stay."""
        for written in self._points.values():
            written.number = written.value = nan

    def decide(self, point: Point, number: float, value: float, now: float, urgent: bool = False) -> str:
        """'write', 'same' (nothing to do) or why the write has to wait. `urgent`: part of a stop."""
        k, w = point.keys, self._points.setdefault(point.name, _Written())
        changed = number != w.number  # NaN: never written
        if not changed and not k.rewrite:
            return 'same'
        urgent = urgent or value == 0.0 or number == 0.0
        if changed and not urgent and k.deadband and abs(value - w.value) < k.deadband:
            return 'same'
        if urgent and changed:
            return 'write'
        if now - w.at < k.min_write_interval:
            return self._hold(f'{point.name}: next write in {k.min_write_interval - (now - w.at):.1f} s')
        if k.writes_per_day and self._tokens(w, k.writes_per_day, now) < 1.0:
            return self._hold(f'{point.name}: {k.writes_per_day:g} writes per day are used up')
        return 'write'

    def _hold(self, why: str) -> str:
        self.held_back += 1
        return why

    @staticmethod
    def _tokens(w: _Written, per_day: float, now: float) -> float:
        most = max(per_day * HOUR_S / DAY_S, 1.0)
        if isnan(w.tokens):
            w.tokens = most
        else:
            w.tokens = min(most, w.tokens + max(now - w.filled_at, 0.0) * per_day / DAY_S)
        w.filled_at = now
        return w.tokens

    def written(self, point: Point, number: float, value: float, now: float) -> None:
        """A write was confirmed."""
        w = self._points.setdefault(point.name, _Written())
        if point.keys.writes_per_day:
            w.tokens = self._tokens(w, point.keys.writes_per_day, now) - 1.0
        w.number, w.value, w.at = number, value, now

    def numbers(self) -> Mapping[str, float]:
        """Last written number of each point."""
        return {name: w.number for name, w in self._points.items()}


class Beat:
    """When a heartbeat is due and with which number."""

    def __init__(self, keys: HeartbeatKeys) -> None:
        self._keys = keys
        self.forget()

    def forget(self) -> None:
        """Start anew after a reconnect."""
        self._next = -inf
        self._number = nan

    def due(self, now: float, shown: float) -> int | None:
        """The number to write now, None = nothing. `shown`: what the register reads (NaN unknown)."""
        k = self._keys
        if now < self._next:
            return None
        if k.kind == 'reload':
            # Looked at with every poll: a countdown that runs out stops the device.
            return k.value if not isnan(shown) and shown <= k.below else None
        if k.kind == 'constant':
            return k.value
        if k.kind == 'toggle':
            return int(self._number != 1.0)
        if isnan(self._number):
            return k.first
        return int(self._number) + 1 if self._number < k.last else k.first

    def beaten(self, number: int, now: float) -> None:
        """It was written."""
        self._number = float(number)
        k = self._keys
        on_grid = self._next + k.every
        self._next = on_grid if now - self._next < k.every else now + k.every
