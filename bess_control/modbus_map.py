"""Registers of the Modbus control server: setpoints in, what the battery does out. Pure.

32 bit values are two registers, high word first, two's complement. Powers are W and var, + = charging (inductive).
Unknown is 0x80000000 in 32 bits and 0xFFFF in 16. See docs/modes.md for the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

VERSION = 1
ORDER_AT, ORDER_COUNT = 0, 5  # power, reactive power, lease
STATUS_AT, STATUS_COUNT = 100, 14
UNKNOWN_32, UNKNOWN_16 = 0x8000_0000, 0xFFFF
HIGHEST = 0x7FFF_FFFF


class IllegalWrite(ValueError):
    """Why a write is refused."""


@dataclass(frozen=True, slots=True)
class Order:
    """A setpoint. W and var, + = charging and inductive; NaN reactive = leave; `lease` s, 0 = the server's."""

    power: float
    reactive_power: float
    lease: float


@dataclass(frozen=True, slots=True)
class Status:
    """What a master may read. NaN and None = unknown."""

    site_state: int | None = None  # msg/SystemState
    accepting: bool = False  # an order counts now
    soc: float = nan  # 0..1
    power: float = nan  # W, + = charging
    max_charge: float = nan  # W
    max_discharge: float = nan  # W, magnitude
    granted: float = nan  # W
    lease_left: float = 0.0  # s
    emergency_stop: bool | None = None


def words_32(value: float) -> list[int]:
    """A number in W or var as two registers."""
    raw = UNKNOWN_32 if not isfinite(value) else round(max(-HIGHEST, min(HIGHEST, value))) & 0xFFFF_FFFF
    return [raw >> 16, raw & 0xFFFF]


def number_32(words: Sequence[int]) -> float:
    """Two registers as a number; NaN for unknown."""
    raw = words[0] << 16 | words[1]
    return nan if raw == UNKNOWN_32 else float(raw - 0x1_0000_0000 if raw & UNKNOWN_32 else raw)


def word_16(value: float) -> int:
    """A number from 0 to 65534 as a register."""
    return UNKNOWN_16 if not isfinite(value) else round(max(0.0, min(UNKNOWN_16 - 1, value)))


def status_words(s: Status) -> list[int]:
    """The status registers, from `STATUS_AT` on."""
    return [VERSION, UNKNOWN_16 if s.site_state is None else s.site_state, int(s.accepting), word_16(1000.0 * s.soc),
            *words_32(s.power), *words_32(s.max_charge), *words_32(s.max_discharge), *words_32(s.granted),
            word_16(s.lease_left), UNKNOWN_16 if s.emergency_stop is None else int(s.emergency_stop)]


def order_words(order: Order | None) -> list[int]:
    """The order registers, from `ORDER_AT` on, as they read back."""
    if order is None:
        return [*words_32(nan), *words_32(nan), 0]
    return [*words_32(order.power), *words_32(order.reactive_power), word_16(order.lease)]


def written(before: Sequence[int], address: int, values: Sequence[int], limits: Mapping[str, float]) -> Order | None:
    """The order that a write makes; None when it only prepares one (reactive power or lease without a power).

    `before`: the order registers. `limits`: `charge`, `discharge`, `lease`. Raises `IllegalWrite`.
    """
    end = address + len(values)
    if address < ORDER_AT or end > ORDER_AT + ORDER_COUNT:
        raise IllegalWrite('these registers are not written')
    for first in (0, 2):
        if (address <= first < end) is not (address <= first + 1 < end):
            raise IllegalWrite('both registers of a 32 bit value are written at once')
    after = list(before)
    after[address:end] = values
    order = Order(number_32(after[0:2]), number_32(after[2:4]), float(after[4]))
    if order.lease > limits['lease']:
        raise IllegalWrite(f'lease is {order.lease:g} s, at most {limits["lease"]:g} s')
    if address > 0:
        return None
    if not isfinite(order.power):
        raise IllegalWrite('an order needs a power')
    if not -limits['discharge'] <= order.power <= limits['charge']:
        raise IllegalWrite(f'{order.power:g} W is not within -{limits["discharge"]:g} to {limits["charge"]:g} W')
    return order
