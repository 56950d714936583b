"""A Modbus device that is nothing but numbers in registers: filled by hand, by a layout or by a test.

Own encoding on purpose: it must not share a mistake with the drivers that read it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from bess_sim.devices.modbus_pdu import IllegalAddress, IllegalValue

FORMATS = {'u16': '>H', 'i16': '>h', 'u32': '>I', 'i32': '>i', 'u64': '>Q', 'i64': '>q', 'f32': '>f'}


class RegisterImage:
    """A `RegisterMap`: only what was put exists. `max_read`: more registers at once are refused.

    `on_write(function table, address, values)` is called after a write; what it raises refuses it.
    """

    def __init__(self, max_read: int = 125, *, same_tables: bool = False) -> None:
        self.max_read = max_read
        #: function code -> address -> word; with `same_tables` FC3 and FC4 show the same registers
        self.words: dict[int, dict[int, int]] = {1: {}, 2: {}, 3: {}, 4: {}}
        if same_tables:
            self.words[4] = self.words[3]
        self.writable: set[tuple[int, int]] = set()  # (function, address)
        self.before_read: Callable[[], None] | None = None
        self.on_write: Callable[[int, int, list[int]], None] | None = None
        self.reads: list[tuple[int, int, int]] = []  # (function, address, count), the last 10000

    def put(self, function: int, address: int, kind: str, value: float, *, low_first: bool = False,
            writable: bool = False) -> None:
        """Put a number (`kind`: u16 .. f32, or bit)."""
        if kind == 'bit':
            words = [int(value)]
        else:
            data = struct.pack(FORMATS[kind], value if kind == 'f32' else round(value))
            words = [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]
            if low_first:
                words.reverse()
        self._place(function, address, words, writable)

    def put_text(self, function: int, address: int, text: str, registers: int) -> None:
        """Put a text, two characters per register, padded with NULs."""
        data = text.encode('ascii').ljust(2 * registers, b'\0')[:2 * registers]
        self._place(function, address, [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)], False)

    def fill(self, function: int, addresses: Iterable[int]) -> None:
        """Registers between the points that exist and read zero."""
        for address in addresses:
            self.words[function].setdefault(address, 0)

    def _place(self, function: int, address: int, words: list[int], writable: bool) -> None:
        for i, word in enumerate(words):
            self.words[function][address + i] = word
            if writable:
                self.writable.add((function, address + i))

    def number(self, function: int, address: int, kind: str, *, low_first: bool = False) -> float:
        """A number as it stands in the registers."""
        size = struct.calcsize(FORMATS[kind]) // 2
        words = [self.words[function][address + i] for i in range(size)]
        if low_first:
            words.reverse()
        return float(struct.unpack(FORMATS[kind], struct.pack(f'>{size}H', *words))[0])

    def read(self, function: int, address: int, count: int) -> list[int]:
        """See `RegisterMap`."""
        self.reads.append((function, address, count))
        del self.reads[:-10_000]
        if self.before_read is not None:
            self.before_read()
        table = self.words[function]
        if function in (3, 4) and count > self.max_read:
            raise IllegalValue
        if any(a not in table for a in range(address, address + count)):
            raise IllegalAddress
        return [table[a] for a in range(address, address + count)]

    def write(self, address: int, values: list[int]) -> None:
        """See `RegisterMap`: holding registers."""
        self._write(3, address, values)

    def write_coils(self, address: int, values: list[int]) -> None:
        """Coils."""
        self._write(1, address, values)

    def _write(self, function: int, address: int, values: list[int]) -> None:
        if any((function, address + i) not in self.writable for i in range(len(values))):
            raise IllegalAddress
        before = {a: self.words[function][a] for a in range(address, address + len(values))}
        for i, value in enumerate(values):
            self.words[function][address + i] = value
        if self.on_write is not None:
            try:
                self.on_write(function, address, values)
            except Exception:
                self.words[function].update(before)
                raise
