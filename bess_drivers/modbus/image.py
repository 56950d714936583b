"""Between registers and the numbers of a profile's points: which requests to send, what their answers hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from bess_drivers.device import BadValue
from bess_drivers.modbus.plan import Span, plan
from bess_drivers.modbus.registers import Kind, decode, encode, text
from bess_drivers.profiles.model import ModbusKeys, ModbusPlace, Point

KINDS = {'u16': Kind.U16, 'i16': Kind.I16, 'u32': Kind.U32, 'i32': Kind.I32, 'u64': Kind.U64, 'i64': Kind.I64,
         'f32': Kind.F32}
MAX_READ_COILS = 2000


@dataclass(frozen=True)
class Block:
    """One read request and the points that it brings."""

    function: int
    span: Span
    points: tuple[Point, ...]


def function_of(place: ModbusPlace, section: ModbusKeys) -> int:
    """Function code with which a point is read."""
    return section.read_function(place)


def write_function_of(place: ModbusPlace, section: ModbusKeys) -> int:
    """Function code with which a point is written."""
    single = place.write_function or section.write_function
    if place.type == 'bool':
        return single if single in (5, 15) else 5
    return single if single in (6, 16) and not (single == 6 and place.words > 1) else 16


def start_of(place: ModbusPlace, section: ModbusKeys) -> int:
    """First register of a point as it goes over the wire."""
    return section.wire(place.address)


def low_first(place: ModbusPlace, section: ModbusKeys) -> bool:
    """Word order of a point."""
    return (place.word_order or section.word_order) == 'low_first'


def blocks(points: Iterable[Point], section: ModbusKeys, max_registers: int = 0) -> list[Block]:
    """The fewest requests that read these points. `max_registers` may lower the limit of the profile."""
    by_function: dict[int, list[Point]] = {}
    alone: list[Block] = []
    for point in points:
        function = function_of(point.place, section)
        if point.place.alone:
            alone.append(Block(function, Span(start_of(point.place, section), point.place.span), (point,)))
        else:
            by_function.setdefault(function, []).append(point)
    out: list[Block] = []
    holes = [(section.wire(first), section.wire(last)) for first, last in section.holes]
    for function, members in sorted(by_function.items()):
        most = min(section.max_registers, max_registers or section.max_registers)
        most = MAX_READ_COILS if function in (1, 2) and section.max_registers == 125 else most
        spans = {part: p for p in members for part in _parts(p, section, most)}
        reads = plan(spans, most, section.max_gap, holes)
        for read in reads:
            held = tuple(p for p in members if any(
                part.start >= read.start and part.end <= read.end for part in _parts(p, section, most)))
            out.append(Block(function, read, held))
    return [*out, *alone]


def _parts(point: Point, section: ModbusKeys, most: int) -> list[Span]:
    """A point as spans that must not be torn: one per value of an array, else the whole."""
    place, start = point.place, start_of(point.place, section)
    if place.count > 1:
        return [Span(start + i * place.step, place.words) for i in range(place.count)]
    if place.words > most:
        raise BadValue(f'{point.name} has {place.words} registers, one read brings {most}')
    return [Span(start, place.words)]


class Registers:
    """Registers as they come in, by function code."""

    def __init__(self) -> None:
        self._words: dict[tuple[int, int], int] = {}

    def put(self, function: int, start: int, words: Sequence[int]) -> None:
        """Keep what a request brought."""
        for i, word in enumerate(words):
            self._words[function, start + i] = word

    def number(self, point: Point, section: ModbusKeys) -> Any:
        """The number(s) or the text of a point; None when not all of its registers came. NaN passes."""
        place = point.place
        function, start = function_of(place, section), start_of(place, section)
        values = []
        for i in range(place.count):
            at = start + i * place.step
            try:
                words = [self._words[function, at + j] for j in range(place.words)]
            except KeyError:
                return None
            values.append(number_of(words, place, section))
        return values[0] if place.count == 1 else tuple(values)


def number_of(words: Sequence[int], place: ModbusPlace, section: ModbusKeys) -> Any:
    """The number or text in the registers of one value."""
    if place.type == 'bool':
        return float(words[0])
    if place.type == 'text':
        return text(words)
    number = decode(KINDS[place.type], words, low_first=low_first(place, section))
    return float(number) if place.type == 'f32' else number


def registers_of(point: Point, number: float, section: ModbusKeys) -> list[int]:
    """Registers (or a coil) of a number; whole numbers are rounded. Raises `BadValue` when it does not fit."""
    place = point.place
    if isnan(number):
        raise BadValue(f'{point.name}: not a number')
    if place.type == 'bool':
        return [int(number != 0.0)]
    if place.type == 'text':
        raise BadValue(f'{point.name} is a text')
    if place.type != 'f32':
        number = round(number)
    return encode(KINDS[place.type], number, low_first=low_first(place, section))
