"""Simulated BMS on serial lines: Daly, JK (both generations), Pylontech, Seplos V2, JBD UP16S.

Each class turns a pack of the plant into the frames of one protocol, written from its published layout
and not from the drivers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from struct import pack

from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PackSample, PlantApi

CELL_HIGH, CELL_LOW, HOT = 3.7, 2.6, 60.0  # V, V, degC: where the simulated BMS protect


def _n(value: float, low: int = 0, high: int = 0xFFFF) -> int:
    return min(high, max(low, round(value))) if isfinite(value) else 0


def crc16(data: bytes, start: int = 0xFFFF) -> bytes:
    """CRC-16/Modbus, low byte first; with `start` 0 it is CRC-16/ARC."""
    crc = start
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc.to_bytes(2, 'little')


@dataclass
class SimulatedBms:
    """What all share: the pack, and the frozen value."""

    plant: PlantApi
    unit: str
    faults: DeviceFaults
    address: int = 1
    _frozen: PackSample | None = None

    def sample(self) -> PackSample:
        """The pack as this BMS shows it."""
        sample = replace(self.plant.pack(self.unit))
        if not self.faults.on('frozen_value'):
            self._frozen = None
            return sample
        self._frozen = self._frozen or sample
        return self._frozen

    def switch(self, charge: bool, discharge: bool) -> None:
        """Open or close the paths."""
        self.plant.set_switches(self.unit, charge, discharge)

    @property
    def wrong(self) -> int:
        """1 while answers carry another address."""
        return int(self.faults.on('wrong_unit_id'))


def over(s: PackSample) -> bool:
    """A cell is too full."""
    return max(s.cells) > CELL_HIGH


def under(s: PackSample) -> bool:
    """A cell is too empty."""
    return min(s.cells) < CELL_LOW


class Daly(SimulatedBms):
    """13 byte frames."""

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        at = data.find(b'\xa5')
        if at < 0:
            return None, len(data)
        frame = data[at:at + 13]
        if len(frame) < 13:
            return None, at
        if sum(frame[:-1]) & 0xFF != frame[-1] or frame[1] not in (0x3F + self.address, 0x7F + self.address):
            return None, at + 1
        return b''.join(self._frame(frame[2], d) for d in self._data(frame[2], frame[4:12])), at + 13

    def _frame(self, command: int, data: bytes) -> bytes:
        frame = bytes((0xA5, self.address + self.wrong, command, 8)) + data.ljust(8, b'\0')
        return frame + bytes((sum(frame) & 0xFF,))

    def _data(self, command: int, asked: bytes) -> list[bytes]:
        s = self.sample()
        cells, degrees = s.cells, s.temperatures
        if command == 0x90:
            return [pack('>HHHH', _n(s.voltage * 10), 0, _n(30_000 - 10 * s.current),
                         _n(1000 * s.charge / s.charge_full))]
        if command == 0x93:
            state = 1 if s.current > 0 else 2 if s.current < 0 else 0
            return [pack('>BBBBL', state, s.charge_switch, s.discharge_switch, 7, _n(1000 * s.charge, 0, 1 << 31))]
        if command == 0x94:
            return [pack('>BBBBBH', len(cells), len(degrees), 0, 0, 0, s.cycles)]
        if command == 0x95:
            return [bytes((1 + i // 3,)) + b''.join(pack('>H', _n(1000 * v)) for v in cells[i:i + 3])
                    for i in range(0, len(cells), 3)]
        if command == 0x96:
            return [bytes((1 + i // 7, *(_n(t + 40, 0, 255) for t in degrees[i:i + 7])))
                    for i in range(0, len(degrees), 7)]
        if command == 0x98:
            bits = 0x20 * over(s) | 0x80 * under(s) | 0x0200 * (max(degrees) > HOT) | self.faults.alarm_bits(0, 64)
            return [bits.to_bytes(8, 'little')]
        if command in (0xD9, 0xDA):
            on = bool(asked[0])
            self.switch(on if command == 0xDA else s.charge_switch, on if command == 0xD9 else s.discharge_switch)
            return [asked[:1]]
        return []


class Jk(SimulatedBms):
    """The read-all record of the older generation."""

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        at = data.find(b'\x4e\x57')
        if at < 0:
            return None, max(0, len(data) - 1)
        if len(data) < at + 4:
            return None, at
        size = int.from_bytes(data[at + 2:at + 4], 'big') + 2
        if len(data) < at + size:
            return None, at if size < 64 else at + 2
        frame = data[at:at + size]
        if sum(frame[:-4]) & 0xFFFF != int.from_bytes(frame[-2:], 'big') or frame[8] != 6:
            return None, at + 2
        return self._record(), at + size

    def _record(self) -> bytes:
        s = self.sample()
        alarms = 1 << 10 if over(s) else 0
        alarms |= 1 << 11 if under(s) else 0
        alarms |= self.faults.alarm_bits(0, 16)
        current = _n(abs(s.current) * 100, 0, 0x7FFF) | (0x8000 if s.current > 0 else 0)
        degree = [_n(t, 0, 100) if t >= 0 else 100 - _n(t, -40, 0) for t in (*s.temperatures, 25.0, 25.0)]
        body = bytes((0x79, 3 * len(s.cells)))
        body += b''.join(pack('>BH', i, _n(1000 * v)) for i, v in enumerate(s.cells, 1))
        for code, value in ((0x80, 30), (0x81, degree[1]), (0x82, degree[0]), (0x83, _n(100 * s.voltage)),
                            (0x84, current)):
            body += pack('>BH', code, value)
        body += pack('>BBBBBH', 0x85, _n(100 * s.charge / s.charge_full), 0x86, 2, 0x87, max(1, s.cycles))
        body += pack('>BHBH', 0x8B, alarms, 0x8C, s.charge_switch | s.discharge_switch << 1)
        body += pack('>BI', 0xAA, _n(s.charge_full)) + b'\xb4JK-SIM  ' + b'\xb7' + b'11.XA_SIM'.ljust(15)
        body += b'\xc0\x01'
        head = pack('>IBBB', 0, 6, 0, 0 if self.wrong else 1) + body + pack('>IB', 1, 0x68)
        frame = b'\x4e\x57' + pack('>H', len(head) + 6) + head + b'\0\0'
        return frame + (sum(frame[:-2]) & 0xFFFF).to_bytes(2, 'big')


class JkPb(SimulatedBms):
    """300 byte records of the inverter series."""

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        if len(data) < 11:
            return None, 0
        frame = data[:11]
        if crc16(frame[:-2]) != frame[-2:] or frame[1:3] != b'\x10\x16' or frame[0] != self.address:
            return None, 1
        kind = {0x20: 2, 0x1E: 1, 0x1C: 3}.get(frame[3])
        if kind is None:
            return None, 11
        record = bytearray(300)
        record[:6] = b'\x55\xaa\xeb\x90' + pack('<H', kind)
        if kind == 2:
            self._status(record)
        elif kind == 3:
            record[6:22], record[30:38] = b'JK-PB-SIM'.ljust(16, b'\0'), b'15.38\0\0\0'
            record[46:62] = b'4711'.ljust(16, b'\0')
        record[299] = sum(record[:299]) & 0xFF
        acknowledged = bytes((self.address + self.wrong, 0x10, 0x16, frame[3], 0, 1))
        return bytes(record) + b'\0' + acknowledged + crc16(acknowledged) + b'\0', 11

    def _status(self, record: bytearray) -> None:
        s = self.sample()

        def put(at: int, form: str, value: int) -> None:
            data = pack('<' + form, value)
            record[at:at + len(data)] = data

        for k, v in enumerate(s.cells[:32]):
            put(6 + 2 * k, 'H', _n(1000 * v))
        put(70, 'I', (1 << len(s.cells)) - 1)
        put(150, 'I', _n(1000 * s.voltage, 0, 1 << 31))
        put(158, 'i', _n(1000 * s.current, -(1 << 31), (1 << 31) - 1))
        put(162, 'h', _n(10 * s.temperatures[0], -400, 1500))
        put(164, 'h', _n(10 * s.temperatures[-1], -400, 1500))
        put(166, 'I', (1 << 4 if over(s) else 1 << 11 if under(s) else 0) | self.faults.alarm_bits(0, 32))
        put(173, 'B', _n(100 * s.charge / s.charge_full, 0, 100))
        put(174, 'i', _n(1000 * s.charge, 0, 1 << 30))
        put(178, 'I', _n(1000 * s.charge_full, 0, 1 << 30))
        put(190, 'B', _n(100 * s.soh, 0, 100))
        put(198, 'B', s.charge_switch)
        put(199, 'B', s.discharge_switch)
        put(214, 'B', 0b111)


class Pylontech(SimulatedBms):
    """Hexadecimal text frames; `seplos` changes the contents to those of Seplos V2."""

    seplos = False

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        start, end = data.find(b'~'), data.find(b'\r')
        if end < 0:
            return None, max(0, start)
        text, used = data[start + 1:end], end + 1
        try:
            raw = bytes.fromhex(text.decode('ascii'))
        except ValueError:
            return None, used
        if len(raw) < 8 or -sum(text[:-4]) & 0xFFFF != int.from_bytes(raw[-2:], 'big') or raw[1] != self.address:
            return None, used
        info = self._info(raw[3])
        code = 4 if info is None else 0
        size = 2 * len(info or b'')
        nibbles = sum(int(c, 16) for c in f'{size:03X}')
        body = f'20{self.address + self.wrong:02X}46{code:02X}{-nibbles & 15:X}{size:03X}{(info or b"").hex().upper()}'
        return b'~' + body.encode() + f'{-sum(body.encode()) & 0xFFFF:04X}\r'.encode(), used

    def _info(self, command: int) -> bytes | None:
        s = self.sample()
        degrees = [_n(10 * t + 2731) for t in s.temperatures]
        cells = bytes((len(s.cells),)) + b''.join(pack('>H', _n(1000 * v)) for v in s.cells)
        if self.seplos:
            return self._seplos(command, s, cells, degrees)
        left, full = _n(1000 * s.charge, 0, 1 << 23), _n(1000 * s.charge_full, 0, 1 << 23)
        if command == 0x42:
            out = bytes((0, self.address)) + cells + bytes((len(degrees),)) + b''.join(pack('>H', d) for d in degrees)
            out += pack('>hH', _n(10 * s.current, -0x8000, 0x7FFF), _n(1000 * s.voltage))
            return out + pack('>HBHH', 0xFFFF, 4, 0xFFFF, s.cycles) + left.to_bytes(3, 'big') + full.to_bytes(3, 'big')
        if command == 0x44:
            state = bytes(2 if v > CELL_HIGH else 1 if v < CELL_LOW else 0 for v in s.cells)
            heat = bytes(2 if t > HOT else 0 for t in s.temperatures)
            paths = s.charge_switch << 1 | s.discharge_switch << 2
            answer = bytearray((0, self.address, len(state), *state, len(heat), *heat, 0, 0, 0, 0, paths, 0, 0, 0))
            # Its alarms: first cell, first sensor, charge current, voltage, discharge current, status 1.
            places = (3, 4 + len(state), *range(4 + len(state) + len(heat), 8 + len(state) + len(heat)))
            for n, place in enumerate(places):
                answer[place] |= self.faults.alarm_bits(8 * n, 8)
            return bytes(answer)
        if command == 0x51:
            return b'US3000C'.ljust(10, b'\0') + b'\x02\x04' + b'Simulated'.ljust(20, b'-')
        if command == 0x92:
            allowed = 0x80 * (s.charge_switch and not over(s)) | 0x40 * (s.discharge_switch and not under(s))
            allowed |= self.faults.alarm_bits(48, 6)  # what it asks for
            return bytes((self.address,)) + pack('>HHhhB', 53_250, 44_500, _n(10 * s.max_charge_current),
                                                 -_n(10 * s.max_discharge_current), allowed)
        if command == 0x93:
            return bytes((self.address,)) + b'PPTAH0123456789A'
        return None

    def _seplos(self, command: int, s: PackSample, cells: bytes, degrees: list[int]) -> bytes | None:
        if command == 0x42:
            six = [*[degrees[i % len(degrees)] for i in range(4)], 2981, 3031]  # cells, room, switches
            out = b'\0\1' + cells + b'\6' + b''.join(pack('>H', d) for d in six)
            out += pack('>hHHBHH', _n(100 * s.current, -0x8000, 0x7FFF), _n(100 * s.voltage), _n(100 * s.charge), 10,
                        _n(100 * s.charge_full), _n(1000 * s.charge / s.charge_full))
            return out + bytes(17)
        if command == 0x44:
            alarms = bytearray(49)
            alarms[30] = 0x02 * over(s) | 0x08 * under(s)
            alarms[31] = 0x02 * (max(s.temperatures) > HOT)
            alarms[35] = s.discharge_switch | s.charge_switch << 1
            return bytes(b | self.faults.alarm_bits(8 * at, 8) for at, b in enumerate(alarms))
        return None


class Seplos(Pylontech):
    """Seplos V2."""

    seplos = True


class Up16s(SimulatedBms):
    """JBD UP16S."""

    def answer(self, data: bytes) -> tuple[bytes | None, int]:
        """See `SerialLine`."""
        if len(data) < 10:
            return None, 0
        frame = data[:10]
        if crc16(frame[:-2]) != frame[-2:] or frame[0] != self.address:
            return None, 1
        function, start, end = frame[1], int.from_bytes(frame[2:4], 'big'), int.from_bytes(frame[4:6], 'big')
        payload = {(0x78, 0x1000): self._status, (0x78, 0x2810): self._product}.get((function, start))
        if payload is None:
            return None, 10
        body = payload()
        out = pack('>BBHHH', self.address + self.wrong, function, start, end, len(body)) + body
        return out + crc16(out), 10

    @staticmethod
    def _product() -> bytes:
        return pack('>6H', 1, 1, 12, 1, 7, 0) + b'UP16S015'.ljust(16, b'\0') + b'SIM'.ljust(16, b'\0')

    def _status(self) -> bytes:
        s = self.sample()
        degrees = [_n(10 * t + 500) for t in s.temperatures]
        high, low = max(s.cells), min(s.cells)
        out = pack('>HHIHHHHHHHH', _n(100 * s.voltage), 0, _n(100 * s.current + 300_000, 0, 1 << 31),
                   _n(10_000 * s.charge / s.charge_full, 0, 10_000), _n(100 * s.charge), _n(100 * s.charge_full),
                   _n(100 * s.charge_full), degrees[0], degrees[-1], 0, _n(100 * s.soh))
        bits = self.faults.alarm_bits
        out += pack('>IIHHH', over(s) | under(s) << 1 | bits(0, 32), bits(32, 32),
                    s.discharge_switch | s.charge_switch << 1, 0, s.cycles)
        out += pack('>HHHHH', s.cells.index(high) + 1, _n(1000 * high), s.cells.index(low) + 1, _n(1000 * low),
                    _n(1000 * sum(s.cells) / len(s.cells)))
        out += pack('>5H', 1, degrees[0], 2, degrees[-1], degrees[0])
        out += pack('>4H', 576, _n(10 * s.max_charge_current), 440, _n(10 * s.max_discharge_current))
        out += pack(f'>H{len(s.cells)}H', len(s.cells), *(_n(1000 * v) for v in s.cells))
        out += pack(f'>H{len(degrees)}H', len(degrees), *degrees)
        balance = sum(1 << i for i, on in enumerate(s.balancing[:16]) if on)
        return out + pack('>HHH', 0, balance, 0x0C01) + b'UP16S-SIM'.ljust(30, b'\0') + bytes(10)


KINDS: dict[str, tuple[type[SimulatedBms], int]] = {
    'daly': (Daly, 1), 'jk': (Jk, 1), 'jk_pb': (JkPb, 1), 'pylontech': (Pylontech, 2), 'seplos': (Seplos, 0),
    'jbd_up16s': (Up16s, 1),
}
