"""Serial protocol of the diyBMS modules with MoaT firmware: frames, chain header, replies. Pure.

Facts: `shared/facts/bms_portal_radio.md`, section 2.6; framing and check code as in the public SerialPacker of
M-o-a-T (start, one or two length bytes, data, CRC-16 high byte first; reversed polynomial 0xBAAD, fed with the
high half of each byte first). Modules hand frames on in a chain, so that the host sees its request come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from struct import calcsize, unpack_from

from bess_drivers.device import BadChecksum, BadFrame
from bess_drivers.io.ntc import SteinhartHart
from bess_drivers.serial.link import Extract

START = 0xFF
VOLTAGES, TEMPERATURE, SETTINGS, WRITE_SETTINGS, BALANCE_LEVEL = 1, 3, 5, 6, 11
BROADCAST, SEEN = 0x20, 0x10
MAX_CELLS = 32
BALANCING, OVER_TEMPERATURE, ADC_MASK = 0x8000, 0x4000, 0x1FFF
REPLY_FORMAT = {VOLTAGES: '<HH', TEMPERATURE: '<3B', SETTINGS: '<LHBBfHHHHBB', BALANCE_LEVEL: '<'}
ADC_FULL = 1023


def _table() -> tuple[int, ...]:
    table = []
    for value in range(16):
        for _ in range(4):
            value = value >> 1 ^ 0xBAAD if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


CRC_TABLE = _table()


def crc16(data: bytes) -> int:
    """Check code of a frame's data."""
    crc = 0
    for byte in data:
        crc = CRC_TABLE[(byte >> 4 ^ crc) & 0xF] ^ crc >> 4
        crc = CRC_TABLE[(byte ^ crc) & 0xF] ^ crc >> 4
    return crc


def frame(data: bytes) -> bytes:
    """A frame around `data` (1 to 2000 bytes)."""
    size = len(data)
    length = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((START,)) + length + data + crc16(data).to_bytes(2, 'big')


def request(command: int, start: int, cells: int, sequence: int, data: bytes = b'') -> bytes:
    """A request to `cells` modules from number `start` (from 0) on."""
    return frame(bytes((start, command, 0, (cells - 1) << 3 | sequence & 7)) + data)


def split(data: bytes) -> tuple[bytes, int] | None:
    """(data of the first whole frame, bytes up to its end), None while there is none. Raises `BadChecksum`."""
    at = data.find(bytes((START,)))
    if at < 0 or len(data) < at + 2:
        return None
    size, first = data[at + 1], at + 2
    if size & 0x80:
        if len(data) < at + 3:
            return None
        size, first = size & 0x7F | data[at + 2] << 7, at + 3
    if len(data) < first + size + 2:
        return None
    content = data[first:first + size]
    if crc16(content) != int.from_bytes(data[first + size:first + size + 2], 'big'):
        raise BadChecksum(f'check code of {data[at:first + size + 2].hex(" ")}')
    return content, first + size + 2


def extractor(command: int, start: int, cells: int, sequence: int) -> Extract:
    """Finds the answer to a request; frames of other requests and the own echo are passed over."""
    def extract(data: bytes) -> bytes | None:
        while (found := split(data)) is not None:
            content, end = found
            if len(content) >= 4 and content[0] == start and content[1] & 0x1F == command | SEEN \
                    and content[3] == (cells - 1) << 3 | sequence & 7:
                return content
            data = data[end:]
        return None

    return extract


def replies(content: bytes, command: int, cells: int) -> list[tuple[float, ...]]:
    """One tuple per cell. Raises `BadFrame` when the number of replies is not that of the cells."""
    size = calcsize(REPLY_FORMAT[command])
    if len(content) - 4 != cells * size:
        raise BadFrame(f'{len(content) - 4} bytes of replies to command {command}, not {cells} times {size}')
    return [unpack_from(REPLY_FORMAT[command], content, 4 + i * size) for i in range(cells)]


@dataclass(frozen=True)
class Module:
    """What a module says about itself."""

    volts_per_adc: float  # V, of the sum of `samples` readings: volts = raw * volts_per_adc / samples * calibration
    calibration: float
    samples: int
    internal: SteinhartHart
    external: SteinhartHart
    version: int

    def volts(self, raw: int) -> float:
        """Cell voltage; NaN when the module has not measured (0)."""
        return raw * self.volts_per_adc / self.samples * self.calibration if raw else nan

    def raw(self, volts: float) -> int:
        """The same the other way, clamped to what fits."""
        return min(max(round(volts / (self.volts_per_adc * self.calibration) * self.samples), 0), ADC_MASK)


def module(reply: tuple[float, ...]) -> Module:
    """From a reply to SETTINGS. Raises `BadFrame` for what cannot be."""
    git, _, _, step, calibration, _, _, b_internal, b_external, samples, _ = reply
    if not (step and samples and b_internal and b_external and 0.1 < calibration < 100.0):
        raise BadFrame(f'settings of a module make no sense: {reply}')
    return Module(step / 64_000.0, calibration, int(samples), SteinhartHart.from_beta(b_internal, 1.0),
                  SteinhartHart.from_beta(b_external, 1.0), int(git))


def temperature(raw: int, curve: SteinhartHart) -> float:
    """degC of a thermistor below an equal resistor; NaN when it is open, shorted or absent."""
    return curve.temperature(raw / (ADC_FULL - raw)) if 0 < raw < ADC_FULL else nan


def temperatures(reply: tuple[float, ...], m: Module) -> tuple[float, float]:
    """(balancing resistor, cell) in degC from a reply to TEMPERATURE."""
    b1, b2, b3 = (int(b) for b in reply)
    return temperature(b1 | (b2 & 0xF) << 8, m.internal), temperature(b2 >> 4 | b3 << 4, m.external)
