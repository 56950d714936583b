"""Messages that are made and copied without checks: equal to those of the constructor, and nothing is shared."""

from __future__ import annotations

import random
from typing import Any

import pytest
from message_filler import OTHERS, TYPES, fill, same
from sensor_msgs.msg import NavSatFix

from bess.msg import BatteryStatus, DecisionStep, DecisionTrace, PowerSetpoint
from bess_core import messages


def parts(value: Any) -> list[int]:
    """Identities of everything in a message that could be changed in place."""
    if hasattr(value, 'SLOT_TYPES'):
        return [id(value), *(i for n in value.get_fields_and_field_types() for i in parts(getattr(value, n)))]
    if isinstance(value, list):
        return [id(value), *(i for e in value for i in parts(e))]
    return [] if isinstance(value, bool | int | float | str | bytes) else [id(value)]


@pytest.mark.parametrize('message_type', [*TYPES, *OTHERS], ids=lambda t: t.__name__)
def test_a_copy_is_equal_and_shares_nothing(message_type: Any) -> None:
    rng = random.Random(message_type.__name__)
    for _ in range(20):
        message = fill(message_type, rng)
        copied = messages.copier(message_type)(message)
        assert same(message, copied)
        assert not set(parts(message)) & set(parts(copied))


@pytest.mark.parametrize('message_type', [*TYPES, *OTHERS], ids=lambda t: t.__name__)
def test_what_is_not_given_is_at_its_default(message_type: Any) -> None:
    make = messages.maker(message_type, '')
    first, second = make(), make()
    assert same(first, message_type()) and same(second, first)
    assert not set(parts(first)) & set(parts(second))


@pytest.mark.parametrize('message_type', [*TYPES, *OTHERS], ids=lambda t: t.__name__)
def test_every_field_can_be_given(message_type: Any) -> None:
    rng, names = random.Random(message_type.__name__), list(message_type.get_fields_and_field_types())
    make = messages.maker(message_type, ', '.join(names))
    for _ in range(5):
        message = fill(message_type, rng)
        assert same(make(*(getattr(message, n) for n in names)), message)


def test_fields_of_parts_and_expressions() -> None:
    step = messages.maker(DecisionStep, 'name, after', {'before': 'after * 2'})
    make = messages.maker(DecisionTrace, 'tick, sec, d', {
        'header.stamp.sec': 'sec', 'header.frame_id': 'd["frame"]', 'steps': '[step("a", v) for v in d["values"]]'},
        step=step)
    message = make(7, 8, {'frame': 'x', 'values': [1.0, 2.0]})
    assert (message.tick, message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (
        7, 8, 0, 'x')
    assert [(s.name, s.before, s.after) for s in message.steps] == [('a', 2.0, 1.0), ('a', 4.0, 2.0)]


@pytest.mark.parametrize('field', ['powr', 'header.stmp.sec', 'header.stamp', 'power.x'])
def test_a_field_that_is_not_there_is_named(field: str) -> None:
    if field == 'header.stamp':  # as a whole
        assert messages.maker(PowerSetpoint, 't', {field: 't'})(5).header.stamp == 5
        return
    with pytest.raises(ValueError, match=f'PowerSetpoint has no field {field}'):
        messages.maker(PowerSetpoint, 'x', {field: 'x'})


def test_floats_of_a_message() -> None:
    names = messages.floats(BatteryStatus, 'r', 'soc')
    assert 'voltage' in names and 'soc' not in names and 'members' not in names
    assert not messages.floats(NavSatFix, 'r', 'latitude', 'longitude', 'altitude')
    assert messages.same('r', 'a', 'b') == {'a': 'r.a', 'b': 'r.b'}
