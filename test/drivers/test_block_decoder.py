"""The decoder of whole blocks means what `Point.value` means, and is fast."""

from __future__ import annotations

from math import isnan

import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.device import BadValue
from bess_drivers.modbus.block_decoder import BlockDecoder
from bess_drivers.modbus.image import Registers, blocks
from bess_drivers.profiles.model import ModbusKeys, ModbusPlace, Point, PointKeys

KEYS = st.builds(
    PointKeys, scale=st.sampled_from([1.0, 0.1, -0.001]), offset=st.sampled_from([0.0, -40.0]),
    not_implemented=st.sampled_from([(), (0xFFFF,), (-32768, 0x8000)]),
    range=st.sampled_from([(), (-100.0, 1000.0)]), outside=st.sampled_from(['refuse', 'unknown']))
PLACES = st.builds(ModbusPlace, address=st.integers(0, 60), word_order=st.sampled_from(['', 'low_first']),
                   type=st.sampled_from(['u16', 'i16', 'u32', 'i32', 'u64', 'i64', 'f32']))
MASKS = st.sampled_from([(0, 0), (0xFF00, 8), (1, 0)])


def make(name: str, keys: PointKeys, place: ModbusPlace, mask: tuple[int, int], sign: float) -> Point:
    if place.type == 'f32':
        mask = (0, 0)
    return Point(name, keys, place, 2.0, 0.5, sign, True, mask[0], mask[1])


@given(st.lists(st.tuples(KEYS, PLACES, MASKS, st.sampled_from([1.0, -1.0])), min_size=1, max_size=12),
       st.lists(st.integers(0, 0xFFFF) | st.sampled_from([0x7FC0, 0x7F80, 0x8000, 0xFFFF]), min_size=70, max_size=70),
       st.booleans())
@settings(max_examples=300)
def test_the_same_as_point_by_point(parts: list, words: list[int], inverted: bool) -> None:
    section = ModbusKeys()
    points = [make(f'p{i}', *part) for i, part in enumerate(parts)]
    for block in blocks(points, section):
        registers = Registers()
        here = words[block.span.start:block.span.end]
        registers.put(block.function, block.span.start, here)
        decoder = BlockDecoder(block, section, lambda _: 3.0, inverted)
        try:
            expected = {p.name: p.value(registers.number(p, section), 0.0, 3.0, inverted) for p in block.points}
        except BadValue:
            with pytest.raises(BadValue, match='outside of'):
                decoder.decode(here)
            continue
        numbers, values = decoder.decode(here)
        assert not decoder.rest
        assert set(values) == set(expected)
        for name, value in expected.items():
            if isnan(value):
                assert isnan(values[name]), name
            else:
                assert values[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
        for point in block.points:
            number = registers.number(point, section)
            assert numbers[point.name] == number or isnan(number)


def test_a_short_block_is_no_block() -> None:
    point = make('x', PointKeys(), ModbusPlace(address=0, type='u32'), (0, 0), 1.0)
    decoder = BlockDecoder(blocks([point], ModbusKeys())[0], ModbusKeys(), lambda _: 1.0, False)
    for wrong in ([], [1], [1, 2, 3], [1, 70_000]):
        with pytest.raises(BadValue):
            decoder.decode(wrong)


def test_1000_points_are_decoded_by_the_block() -> None:
    """Numpy across points: work for each of the few reads, not for each point (`make bench` has the time)."""
    section = ModbusKeys()
    points = [make(f'p{i}', PointKeys(scale=0.1, range=(-1e9, 1e9)), ModbusPlace(address=2 * i, type='f32'), (0, 0),
                   1.0) for i in range(1000)]
    plan = [(b, BlockDecoder(b, section, lambda _: 1.0, False)) for b in blocks(points, section)]

    def decode() -> None:
        for block, decoder in plan:
            decoder.decode([0x4248, 0x0000] * (block.span.count // 2))

    assert len(plan) < 20 and calls(decode) < 20 * len(plan)
