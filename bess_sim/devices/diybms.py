"""A chain of diyBMS modules with MoaT firmware on a serial line. Each module hands the frame on."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, isnan
from struct import pack

START, SEEN, BROADCAST = 0xFF, 0x10, 0x20
STEP, CALIBRATION, SAMPLES, B = 128, 2.25, 4, 3950  # mV/64 per step, factor, readings per sum, K


def crc(data: bytes) -> int:
    """Bit by bit, low bit first, the high half of each byte first."""
    register = 0
    for byte in data:
        for half in (byte >> 4, byte & 0xF):
            for i in range(4):
                out = (register ^ half >> i) & 1
                register >>= 1
                if out:
                    register ^= 0xBAAD
    return register


def adc_of(celsius: float) -> int:
    """10 bit reading of a thermistor below an equal resistor; 0 = not there."""
    if isnan(celsius):
        return 0
    ratio = exp(B * (1.0 / (celsius + 273.15) - 1.0 / 298.15))
    return round(1023.0 * ratio / (1.0 + ratio))


@dataclass
class Module:
    """One cell."""

    volts: float = 3.3
    celsius: float = 25.0
    resistor: float = 25.0
    level: int = 0  # raw, 0 = no balancing
    hot: bool = False

    @property
    def raw(self) -> int:
        """Sum of the readings."""
        return round(self.volts / (STEP / 64_000.0 * CALIBRATION) * SAMPLES)

    @property
    def balancing(self) -> bool:
        """Whether the resistor is on."""
        return bool(self.level) and self.raw > self.level and not self.hot


@dataclass
class Chain:
    """All modules."""

    modules: list[Module] = field(default_factory=lambda: [Module() for _ in range(16)])
    level_writes: int = 0

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        at = data.find(bytes((START,)))
        if at < 0:
            return None, len(data)
        if len(data) < at + 2:
            return None, at
        size, first = data[at + 1], at + 2
        if size & 0x80:
            if len(data) < at + 3:
                return None, at
            size, first = size & 0x7F | data[at + 2] << 7, at + 3
        end = first + size + 2
        if len(data) < end:
            return None, at
        content = data[first:first + size]
        if crc(content).to_bytes(2, 'big') != data[end - 2:end] or size < 4:
            return b'', end  # a module drops it
        out = self._through(content)
        length = bytes((len(out),)) if len(out) < 128 else bytes((len(out) & 0x7F | 0x80, len(out) >> 7))
        return bytes((START,)) + length + out + crc(out).to_bytes(2, 'big'), end

    def _through(self, content: bytes) -> bytes:
        start, flags, hops, cells = content[0], content[1], content[2], content[3]
        rest = content[4:]
        for m in self.modules:
            if flags & BROADCAST or start <= hops <= start + (cells >> 3):
                flags |= SEEN
                rest = self._serve(m, flags & 0xF, rest)
            hops += 1
        return bytes((start, flags, hops, cells)) + rest

    def _serve(self, m: Module, command: int, rest: bytes) -> bytes:
        if command == 1:
            return rest + pack('<HH', m.raw | m.balancing << 15 | m.hot << 14, m.level)
        if command == 3:
            internal, external = adc_of(m.resistor), adc_of(m.celsius)
            return rest + bytes((internal & 0xFF, internal >> 8 | (external & 0xF) << 4, external >> 4))
        if command == 5:
            return rest + pack('<LHBBfHHHHBB', 0xC0FFEE, 440, 1, STEP, CALIBRATION, 500, 0, B, B, SAMPLES, 50)
        if command == 11:
            m.level = int.from_bytes(rest[:2], 'little')
            self.level_writes += 1
            return rest[2:]
        return rest
