"""A message that is filled again and again holds nothing of what it held before."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

import pytest

from bess.msg import BatteryStatus, InverterStatus, MeterStatus
from bess_core import convert
from bess_core.clock import SimClock
from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, MeterReading, Mode, Quality

CASES = {
    'battery': (BatteryReading, BatteryStatus, convert.battery_to_msg, convert.battery_from_msg),
    'converter': (ConverterReading, InverterStatus, convert.converter_to_msg, convert.converter_from_msg),
    'meter': (MeterReading, MeterStatus, convert.meter_to_msg, convert.meter_from_msg),
}
ENUMS = {'quality': Quality, 'mode': Mode, 'contactor': Contactor, 'state': ConverterState}
NOT_SENT = {'cells', 'temperatures', 'balancing', 'alarms', 'next_power', 'next_change'}


def draw(kind: Any, rng: random.Random) -> Any:
    """A reading with random content; whole seconds, so that stamps are exact."""
    values: dict[str, Any] = {}
    for f in fields(kind):
        if f.name in NOT_SENT:
            continue
        if f.name in ('time', 'newest'):
            values[f.name] = rng.choice([-math.inf, float(rng.randrange(1000))])
        elif f.name in ENUMS:
            values[f.name] = rng.choice(list(ENUMS[f.name]))
        elif f.name in ('limit_reasons', 'missing'):
            values[f.name] = rng.choice([[], ['bms: cell 7 at 3.62 V'], ['a', 'b']])
        elif f.type == 'bool':
            values[f.name] = rng.random() < 0.5
        elif f.type == 'int':
            values[f.name] = rng.randrange(100)
        elif f.type == 'str':
            values[f.name] = rng.choice(['', 'house'])
        elif f.type == 'float':
            values[f.name] = rng.choice([math.nan, 0.0, -0.5, rng.uniform(-1e4, 1e4)])
        else:
            values[f.name] = tuple(rng.choice([math.nan, 230.0, rng.random()]) for _ in range(3))
    return kind(**values)


@pytest.mark.parametrize('case', CASES)
def test_one_message_for_all(case: str) -> None:
    kind, message_type, to_msg, from_msg = CASES[case]
    clock = SimClock(1.8e9)
    clock.set(2000.0)
    rng = random.Random(7)
    message = message_type()
    for _ in range(300):
        reading = draw(kind, rng)
        assert to_msg(reading, clock, 'unit_a', message) is message
        assert repr(from_msg(message, clock)) == repr(reading)  # in words, where NaN equals NaN
        assert repr(message) == repr(to_msg(reading, clock, 'unit_a'))
