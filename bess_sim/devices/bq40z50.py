"""A BQ40Z50 gauge on a simulated bus: SBS words and blocks, ManufacturerBlockAccess, data flash, security."""

from __future__ import annotations

import errno
import time
from struct import pack
from typing import Any

KEYS = {3: (0x0414, 0x3672), 2: (0xFFFF, 0xFFFF)}  # the public ones of a new part, by mode that they lead out of
FLASH = range(0x4000, 0x6000)
KEY_WINDOW_S, WRITE_S = 4.0, 0.02


def crc8(data: bytes) -> int:
    """CRC-8, polynomial x^8 + x^2 + x + 1, bit by bit as a shift register."""
    register = 0
    for bit in ''.join(f'{b:08b}' for b in data):
        feedback = (register >> 7) ^ int(bit)
        register = (register << 1) & 0xFF
        if feedback:
            register ^= 0x07
    return register


class Bq40z50:
    """The gauge. `quiet` (s): keys are refused when the bus was not silent for so long before."""

    address = 0x0B

    def __init__(self) -> None:
        self.words = {0x03: 0, 0x08: 2982, 0x09: 14800, 0x0A: 0, 0x0D: 67, 0x0F: 1340, 0x10: 2000, 0x14: 2000,
                      0x15: 16800, 0x16: 0, 0x17: 12, 0x1A: 0x0031, 0x1C: 7, 0x4F: 98}
        self.names = {0x20: b'Texas Instruments', 0x21: b'bms_03', 0x22: b'LION'}
        self.cells = [3700, 3700, 3710, 3690]
        self.temperatures = [2990, 2982, 2983, 2984, 2985, 2986, 2987]
        self.safety = self.failure = 0
        self.security = 3
        self.quiet = 0.05
        self.firmware = bytes.fromhex('4500010500260003850200')
        self.flash = bytearray(len(FLASH))
        self.obeys = True  # False: seals and keys are ignored
        self._pending, self._key, self._key_at, self._last = 0, 0, 0.0, 0.0
        self._away_until = 0.0

    def set(self, values: dict[str, Any]) -> None:
        """`words` by command, or any other attribute."""
        self.words |= {int(k): v for k, v in values.pop('words', {}).items()}
        for name, value in values.items():
            setattr(self, name, value)

    def _operation(self) -> int:
        return 0b110 | self.security << 8 | (1 << 12 if self.failure else 0)

    def _block(self, code: int) -> bytes | None:
        v, t = self.cells, self.temperatures
        mA = self.words[0x0A] - 0x10000 if self.words[0x0A] & 0x8000 else self.words[0x0A]
        return {
            0x50: pack('<I', self.safety), 0x51: pack('<I', self.safety), 0x52: pack('<I', self.failure),
            0x53: pack('<I', self.failure), 0x54: pack('<I', self._operation()),
            0x71: pack('<6H10h', *v, sum(v), sum(v), *[mA] * 4, *[x * mA // 10000 for x in v],
                       sum(v) * mA // 10000, sum(v) * mA // 10000),
            0x72: pack('<7H', *t), 0x01: b'\x00\x45', 0x02: self.firmware, 0x03: b'\xa5\x00', 0x06: b'\x21\x01',
        }.get(code)

    def read(self, command: bytes, size: int) -> bytes:
        """SBS word or block."""
        self._present()
        self._disturb()
        number = command[0]
        if number in self.words:
            data = pack('<H', self.words[number])
        elif number in self.names:
            data = bytes((len(self.names[number]),)) + self.names[number]
        elif number == 0x44:
            content = self._answer()
            data = bytes((len(content),)) + content
        elif (block := self._block(number)) is not None:
            data = bytes((len(block),)) + block
        else:
            raise OSError(errno.EREMOTEIO, 'no such command')
        return data + bytes((crc8(bytes((0x16, number, 0x17)) + data),))

    def _answer(self) -> bytes:
        code = self._pending
        if code in FLASH:
            if self.security == 3:
                return pack('<H', code)
            self._pending = code + 32
            at = code - FLASH.start
            return pack('<H', code) + bytes(self.flash[at:at + 32])
        return pack('<H', code) + (self._block(code) or b'')

    def write(self, data: bytes) -> None:
        """Word to 0x00 or block to 0x44; with a wrong packet error code it is not acknowledged."""
        self._present()
        size = 3 if data[0] == 0 else data[1] + 2
        if len(data) == size + 1 and crc8(b'\x16' + data[:-1]) != data[-1]:
            raise OSError(errno.EREMOTEIO, 'wrong packet error code')
        if data[0] == 0x00:
            self._take_key(int.from_bytes(data[1:3], 'little'))
        elif data[0] == 0x44:
            self._disturb()
            self._order(int.from_bytes(data[2:4], 'little'), data[4:size])
        else:
            raise OSError(errno.EREMOTEIO, 'no such command')

    def _take_key(self, word: int) -> None:
        now = time.monotonic()
        first, second = KEYS.get(self.security, (-1, -1))
        if self._key and word == second and now - self._key_at < KEY_WINDOW_S and self.obeys:
            self.security -= 1
            self._key = 0
        elif word == first and now - self._last >= self.quiet:
            self._key, self._key_at = 1, now
        else:
            self._key = 0
        self._last = now

    def _order(self, code: int, data: bytes) -> None:
        self._pending = code
        if data and code in FLASH and self.security != 3:
            at = code - FLASH.start
            self.flash[at:at + len(data)] = data
        elif code == 0x0030 and self.obeys:
            self.security = 3
        elif code == 0x0041 and self.security != 3:
            self.security = 3
            self._away_until = time.monotonic() + 0.1

    def _present(self) -> None:
        if time.monotonic() < self._away_until:
            raise OSError(errno.EREMOTEIO, 'starting')

    def _disturb(self) -> None:
        self._key, self._last = 0, time.monotonic()
