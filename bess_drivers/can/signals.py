"""Signals of CAN frames: from a DBC file (with cantools) or from bit positions. Pure.

A `Source` says which frames it needs and turns their data into the number of one point (or a tuple for
an array); NaN where a frame that carries a part has not come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import cantools
from cantools.database import Message
from cantools.database.can import Database
from cantools.database.errors import Error as DbcError

from bess_drivers.can.channel import frame_key
from bess_drivers.device import BadFrame
from bess_drivers.profiles.can_model import CanPlace

MAX_DBC_BYTES = 20_000_000
#: (frame id, selected content) -> data
Frames = Mapping[tuple[int, int], bytes]
MUX_ALL = -1  # a signal that is in every frame of its id, whatever is multiplexed


@dataclass(frozen=True)
class Part:
    """One value: the frame that carries it, which content of it, and how to read it."""

    can_id: int
    selected: int
    read: Callable[[bytes], float]


@dataclass(frozen=True)
class Source:
    """All parts of one point; more than one for an array."""

    parts: tuple[Part, ...]
    array: bool

    def ids(self) -> set[int]:
        """Ids of all frames that it needs."""
        return {p.can_id for p in self.parts}

    def number(self, frames: Frames, shift: int = 0) -> Any:
        """Number of the device, or a tuple. `shift` is added to the ids (racks). Raises `BadFrame`."""
        numbers = tuple(_number(p, frames, shift) for p in self.parts)
        return numbers if self.array else numbers[0]


def _number(part: Part, frames: Frames, shift: int) -> float:
    data = newest(frames, part, shift)
    return nan if data is None else part.read(data)


def newest(frames: Frames, part: Part, shift: int) -> bytes | None:
    """The frame of a part; a value that every content carries is taken from any of them."""
    can_id = part.can_id + shift
    data = frames.get((can_id, max(part.selected, 0)))
    if data is None and part.selected == MUX_ALL:
        data = next((d for (i, _), d in frames.items() if i == can_id), None)
    return data


def bits(place: CanPlace, index: int = 0) -> Part:
    """One value given by its position in a frame."""
    can_id, start = place.at(index)
    end = start + place.length

    def read(data: bytes) -> float:
        if len(data) * 8 < end:
            raise BadFrame(f'frame {can_id:#x} has {len(data)} bytes, bit {end - 1} is needed')
        if place.big_endian:
            number = int.from_bytes(data[start // 8:end // 8], 'big')
        else:
            number = int.from_bytes(data, 'little') >> start & (1 << place.length) - 1
        if place.signed and number >> place.length - 1:
            number -= 1 << place.length
        return float(number)

    return Part(can_id, 0, read)


def load_dbc(path: Path) -> Database:
    """The database of a DBC file. Raises ValueError that names the file and what is wrong."""
    try:
        if path.stat().st_size > MAX_DBC_BYTES:
            raise ValueError(f'{path}: larger than {MAX_DBC_BYTES // 1_000_000} MB')
        found = cantools.database.load_file(str(path), database_format='dbc', strict=True)
    except OSError as error:
        raise ValueError(f'{path}: cannot be read: {error.strerror or error}') from error
    except (cantools.database.UnsupportedDatabaseFormatError, DbcError, UnicodeDecodeError) as error:  # type: ignore[attr-defined]
        raise ValueError(f'{path}: is no usable DBC file: {error}') from error
    if not isinstance(found, Database):
        raise ValueError(f'{path}: holds no CAN messages')
    return found


class DbcSignals:
    """Signals of one database by `Message.Signal`."""

    def __init__(self, database: Database, name: str) -> None:
        self._database, self._name = database, name
        self._last: dict[str, tuple[bytes, dict[str, Any]]] = {}  # message -> its last frame, decoded

    def _decoded(self, message: Message, data: bytes) -> dict[str, Any]:
        """All signals of a frame; one decoding serves all points of it. Raises `BadFrame`."""
        last = self._last.get(message.name)
        if last is None or last[0] != data:
            try:
                values: Any = message.decode(data, decode_choices=False, allow_truncated=True)
            except Exception as error:  # cantools raises many kinds for a frame that does not fit
                raise BadFrame(f'{message.name}: the frame does not fit: {error}') from error
            last = self._last[message.name] = (data, values)
        return last[1]

    def message(self, name: str) -> Message:
        """A message. Raises ValueError."""
        try:
            return self._database.get_message_by_name(name)
        except KeyError:
            known = sorted(m.name for m in self._database.messages)
            raise ValueError(f'{self._name} has no message {name!r}; it has: {", ".join(known[:20])}'
                             f'{", ..." if len(known) > 20 else ""}') from None

    def part(self, signal: str) -> Part:
        """How to read one signal, in the physical unit of the DBC file. Raises ValueError."""
        message_name, _, signal_name = signal.partition('.')
        message = self.message(message_name)
        found = next((s for s in message.signals if s.name == signal_name), None)
        if found is None:
            raise ValueError(f'message {message_name} of {self._name} has no signal {signal_name!r}; it has: '
                             f'{", ".join(s.name for s in message.signals[:20])}')
        selected = found.multiplexer_ids[0] if found.multiplexer_ids else MUX_ALL

        def read(data: bytes) -> float:
            value = self._decoded(message, data).get(signal_name)
            if value is None:
                raise BadFrame(f'{signal}: not in the frame of {len(data)} bytes')
            return float(value)

        key = frame_key(message.frame_id, message.is_extended_frame)
        return Part(key, selected if message.is_multiplexed() else 0, read)

    def selector(self, message: Message) -> Callable[[bytes], int] | None:
        """Which content a multiplexed frame carries; None for a message that is not multiplexed."""
        multiplexers = [s for s in message.signals if s.is_multiplexer]
        if not multiplexers:
            return None
        signal = multiplexers[0]
        length, start = signal.length, signal.start
        mask = (1 << length) - 1
        if signal.byte_order == 'little_endian':
            return lambda data: int.from_bytes(data, 'little') >> start & mask
        # Motorola: `start` is the most significant bit, counted within its byte from the least significant one.
        first = start // 8 * 8 + 7 - start % 8
        return lambda data: int.from_bytes(data, 'big') >> max(0, len(data) * 8 - first - length) & mask


def sources(places: Mapping[str, CanPlace], dbc: DbcSignals | None) -> dict[str, Source]:
    """How to read every point. Raises ValueError for a signal that the DBC file does not have."""
    out = {}
    for name, place in places.items():
        if place.signal:
            assert dbc is not None
            names = [place.signal]
            if place.count > 1:
                marks = place.signal.count('#')
                names = [place.signal.replace('#' * marks, f'{place.first + i:0{marks}d}')
                         for i in range(place.count)]
            parts = tuple(dbc.part(n) for n in names)
        else:
            parts = tuple(bits(place, i) for i in range(place.count))
        out[name] = Source(parts, place.count > 1)
    return out
