"""What a profile of a CAN device says beside what all profiles say."""

from __future__ import annotations

from dataclasses import dataclass

from bess_core.params import param

MAX_ID = 0x1FFFFFFF


@dataclass(frozen=True)
class CanKeys:
    """Section `can`: what holds for all points."""

    dbc: str = param('', doc='DBC file with the signals, beside the profile or absolute; not needed where all points '
                             'give id, start and length')
    timeout: float = param(3.0, 's', 'a frame that is older is missing', low=0.05, high=600.0)
    racks: int = param(1, doc='so many batteries of this kind in parallel, each with ids of its own', low=1, high=64)
    rack_step: int = param(1, doc='the ids of the next rack are this much higher', low=1, high=0x100000)


@dataclass(frozen=True)
class CanPlace:
    """Where a point is: a signal of the DBC file, or bits of a frame."""

    signal: str = param('', doc='Message.Signal; a # stands for the numbers of an array, ## for two digits, ...')
    first: int = param(0, doc='first number that replaces #', low=0, high=10_000)
    count: int = param(1, doc='so many values, numbered from `first`', low=1, high=512)
    id: int = param(-1, doc='frame id, where there is no DBC; above 0x7FF it has 29 bits', low=-1, high=MAX_ID)
    start: int = param(0, doc='first bit of the value, counted from bit 0 of byte 0', low=0, high=511)
    length: int = param(16, doc='bits of one value; those of an array follow each other', low=1, high=64)
    big_endian: bool = param(False, doc='bytes of one value are in the other order (then whole bytes only)')
    signed: bool = param(False, doc='two\'s complement')
    id_step: int = param(0, doc='an array goes on in the frame with an id so much higher; 0 = all in one frame',
                         low=0, high=0x100000)
    per_frame: int = param(0, doc='values of an array in one frame; 0 = all', low=0, high=64)

    def at(self, index: int) -> tuple[int, int]:
        """(frame id, first bit) of one value of an array."""
        frame, place = divmod(index, self.per_frame) if self.per_frame else (0, index)
        return self.id + frame * self.id_step, self.start + place * self.length


def check_can(place: CanPlace, section: CanKeys) -> str:
    """What is wrong with the place of a CAN point; whether a signal exists shows when the DBC file is read."""
    if (place.id >= 0) == bool(place.signal):
        return 'needs either signal (Message.Signal) or id with start and length'
    if place.signal:
        if place.signal.count('.') != 1 or place.signal.startswith('.') or place.signal.endswith('.'):
            return f'signal {place.signal!r} is not like Message.Signal'
        if not section.dbc:
            return 'names a signal, but the section can has no dbc file'
        if (place.count > 1) != ('#' in place.signal):
            return 'an array (count) needs a # in its signal, and only an array may have one'
        return ''
    if place.count > 1 and place.per_frame and not place.id_step:
        return 'per_frame needs id_step'
    if place.start + min(place.count, place.per_frame or place.count) * place.length > 512:
        return 'ends after bit 511, the last one of a CAN FD frame'
    if place.big_endian and (place.start % 8 or place.length % 8):
        return 'big_endian needs start and length in whole bytes'
    return ''
