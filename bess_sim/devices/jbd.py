"""A simulated JBD BMS: answers the JBD serial protocol on a pseudo terminal.

It measures a pack of the plant, protects it as the real one does (trip, release, FETs off), and can
be made to misbehave with `DeviceFaults`. Frames: see `answer_frame` and `RequestParser`.
"""

from __future__ import annotations

import os
import select
import termios
import threading
import tty
from collections import deque
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from struct import pack
from time import monotonic

from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PackSample, PlantApi

START, END, READ, WRITE = 0xDD, 0x77, 0xA5, 0x5A
OK, REFUSED = 0x00, 0x80
BASIC, CELLS, NAME, FET_CONTROL = 0x03, 0x04, 0x05, 0xE1
FACTORY_ENTER, FACTORY_LEAVE = 0x00, 0x01

CELL_OV, CELL_UV, PACK_OV, PACK_UV = (1 << i for i in range(4))
CHARGE_OT, CHARGE_UT, DISCHARGE_OT, DISCHARGE_UT = (1 << i for i in range(4, 8))
CHARGE_OC, DISCHARGE_OC, SHORT, AFE, FET_LOCK = (1 << i for i in range(8, 13))
BLOCKS_CHARGE = CELL_OV | PACK_OV | CHARGE_OT | CHARGE_UT | CHARGE_OC | SHORT | AFE
BLOCKS_DISCHARGE = CELL_UV | PACK_UV | DISCHARGE_OT | DISCHARGE_UT | DISCHARGE_OC | SHORT | AFE

TICK_S = 0.05  # longest time between two looks at the pack, the faults and the stop event
PIECE = 16  # bytes that a USB adapter delivers at once
REQUEST_GAP_S = 0.1  # a request that pauses so long is dropped
MAX_REQUEST = 2 * (255 + 7)


@dataclass(frozen=True)
class JbdProtection:
    """Thresholds of the BMS with hysteresis; currents are multiples of the pack's own limit."""

    cell_ov: float = 3.75  # V
    cell_ov_release: float = 3.55
    cell_uv: float = 2.5
    cell_uv_release: float = 2.8
    pack_ov_per_cell: float = 3.75  # V per cell
    pack_ov_release_per_cell: float = 3.55
    pack_uv_per_cell: float = 2.5
    pack_uv_release_per_cell: float = 2.8
    charge_ot: float = 60.0  # degC
    charge_ut: float = -5.0
    discharge_ot: float = 65.0
    discharge_ut: float = -20.0
    temperature_hysteresis: float = 5.0  # K
    charge_oc: float = 1.25
    discharge_oc: float = 1.25
    short_circuit: float = 5.0
    overcurrent_hold_s: float = 30.0  # the current is 0 while the FET is off, so time releases it


def _latched(bits: int, bit: int, trip: bool, release: bool) -> int:
    if trip:
        return bits | bit
    return bits & ~bit if release else bits


def protection_bits(bits: int, sample: PackSample, limits: JbdProtection) -> int:
    """Next protection word: each bit sets at its trip value and clears at its release value.

    Overcurrent and short-circuit bits only set here; `JbdSimulator` releases them after a time.
    """
    cells = [v for v in sample.cells if isfinite(v)]
    bits = _latched(bits, AFE, len(cells) < len(sample.cells), len(cells) == len(sample.cells))
    if cells:
        high, low, mean = max(cells), min(cells), sample.voltage / len(sample.cells)
        p = limits
        bits = _latched(bits, CELL_OV, high > p.cell_ov, high < p.cell_ov_release)
        bits = _latched(bits, CELL_UV, low < p.cell_uv, low > p.cell_uv_release)
        bits = _latched(bits, PACK_OV, mean > p.pack_ov_per_cell, mean < p.pack_ov_release_per_cell)
        bits = _latched(bits, PACK_UV, mean < p.pack_uv_per_cell, mean > p.pack_uv_release_per_cell)
    temperatures = [t for t in sample.temperatures if isfinite(t)]
    if temperatures:
        hot, cold, width = max(temperatures), min(temperatures), limits.temperature_hysteresis
        for bit, threshold in ((CHARGE_OT, limits.charge_ot), (DISCHARGE_OT, limits.discharge_ot)):
            bits = _latched(bits, bit, hot > threshold, hot < threshold - width)
        for bit, threshold in ((CHARGE_UT, limits.charge_ut), (DISCHARGE_UT, limits.discharge_ut)):
            bits = _latched(bits, bit, cold < threshold, cold > threshold + width)
    if sample.current > limits.charge_oc * sample.max_charge_current:
        bits |= CHARGE_OC
    if -sample.current > limits.discharge_oc * sample.max_discharge_current:
        bits |= DISCHARGE_OC
    if -sample.current > limits.short_circuit * sample.max_discharge_current:
        bits |= SHORT
    return bits


def _u16(value: float) -> int:
    """Saturated to a register, as the device does; not measured = 0."""
    return min(0xFFFF, max(0, round(value))) if isfinite(value) else 0


def basic_payload(sample: PackSample, protections: int) -> bytes:
    """Register 0x03 of a pack."""
    count, sensors = min(32, len(sample.cells)), sample.temperatures[:8]
    current = min(32767, max(-32768, round(sample.current * 100)))
    balance = sum(1 << i for i, on in enumerate(sample.balancing[:32]) if on)
    share = sample.charge / sample.charge_full if sample.charge_full > 0 else 0.0
    soc = min(100, max(0, round(100 * share)))
    return pack(
        f'>HhHHHHHHHBBBBB{len(sensors)}H',
        _u16(sample.voltage * 100), current,
        _u16(sample.charge * 100), _u16(sample.charge_full * 100), _u16(sample.cycles),
        25 << 9 | 1 << 5 | 15, balance & 0xFFFF, balance >> 16, protections,
        0x30, soc, sample.charge_switch | sample.discharge_switch << 1, count, len(sensors),
        *(_u16(2731 + 10 * t) for t in sensors),
    )  # fmt: skip


def cells_payload(sample: PackSample) -> bytes:
    """Register 0x04 of a pack."""
    cells = sample.cells[:32]
    return pack(f'>{len(cells)}H', *(_u16(v * 1000) for v in cells))


def answer_frame(register: int, status: int, data: bytes = b'') -> bytes:
    """A complete answer."""
    body = bytes((status, len(data))) + data
    return (
        bytes((START, register)) + body + (-sum(body) & 0xFFFF).to_bytes(2, 'big') + bytes((END,))
    )


def is_request(frame: bytes) -> bool:
    """Whether a frame of the right length (at least 7) is a valid request."""
    good = -sum(frame[2:-3]) & 0xFFFF == int.from_bytes(frame[-3:-1], 'big')
    return good and frame[1] in (READ, WRITE) and frame[-1] == END


class RequestParser:
    """Finds requests in a stream of bytes, whatever comes between them."""

    def __init__(self) -> None:
        self._data = b''
        self._last = 0.0

    def feed(self, data: bytes, now: float) -> list[tuple[int, int, bytes]]:
        """Complete requests as (read or write, register, data); `now` is monotonic s."""
        if now - self._last > REQUEST_GAP_S:
            self._data = b''
        self._data, self._last = (self._data + data)[-MAX_REQUEST:], now
        found = []
        start = self._data.find(START)
        while start >= 0:
            end = start + self._data[start + 3] + 7 if len(self._data) > start + 3 else 0
            frame = self._data[start:end]
            if 0 < end <= len(self._data) and is_request(frame):
                found.append((frame[1], frame[2], frame[4:-3]))
                self._data, start = self._data[end:], -1
            start = self._data.find(START, start + 1)
        return found


class JbdSimulator:
    """The BMS of the pack `unit`.

    baud: line speed to imitate (a pty has none); 0 = as fast as possible.
    echo_read: answers carry A5 instead of the register, as some devices do.
    """

    def __init__(
        self,
        plant: PlantApi,
        unit: str,
        faults: DeviceFaults,
        *,
        limits: JbdProtection | None = None,
        name: str = 'JBD-SP16S020-SIM',
        baud: float = 9600.0,
        echo_read: bool = False,
    ) -> None:
        self.plant = plant
        self.unit = unit
        self.faults = faults
        self.limits = limits or JbdProtection()
        self.name = name
        self.echo_read = echo_read
        self.requests = 0  # valid requests received
        self._byte_s = 10.0 / baud if baud > 0 else 0.0
        self._parser = RequestParser()
        self._outbox: deque[tuple[float, bytes]] = deque()  # (monotonic s, piece), in order
        self._protections = 0
        self._overcurrent_since = 0.0
        self._lock = 0  # what register E1 holds: bit 0 charge off, bit 1 discharge off
        self._switched: tuple[bool, bool] | None = None  # last order to the plant; None = never any
        self._frozen: PackSample | None = None
        self._factory = False

    # Protection --------------------------------------------------------------------------------

    def protect(self, now: float) -> None:
        """Look at the pack, update the protection bits, switch the FETs; `now` monotonic s."""
        before = self._protections
        sample = self.plant.pack(self.unit)
        bits = protection_bits(before & ~FET_LOCK, sample, self.limits)
        overcurrents = CHARGE_OC | DISCHARGE_OC | SHORT
        if bits & overcurrents & ~before:
            self._overcurrent_since = now
        elif now - self._overcurrent_since >= self.limits.overcurrent_hold_s:
            bits &= ~overcurrents
        self._protections = bits | (FET_LOCK if self._lock else 0)
        charge = not (self._lock & 1 or bits & BLOCKS_CHARGE)
        discharge = not (self._lock & 2 or bits & BLOCKS_DISCHARGE)
        # Only a change is an order: what a scenario does to the switches of a healthy pack stays.
        if (charge, discharge) != (self._switched or (True, True)):
            self._switched = (charge, discharge)
            self.plant.set_switches(self.unit, charge, discharge)

    # Protocol ----------------------------------------------------------------------------------

    def answer(self, kind: int, register: int, data: bytes, now: float) -> bytes:
        """The undisturbed answer to one request; `now` monotonic s."""
        echo = READ if self.echo_read else register
        if self.faults.on('modbus_exception'):
            return answer_frame(echo, REFUSED)
        if kind == READ and not data:
            payload = self._read(register)
            return (
                answer_frame(echo, REFUSED) if payload is None else answer_frame(echo, OK, payload)
            )
        return answer_frame(
            echo, OK if kind == WRITE and self._write(register, data, now) else REFUSED
        )

    def _read(self, register: int) -> bytes | None:
        if register == NAME:
            return self.name.encode('ascii')[:31]
        if register not in (BASIC, CELLS):
            return None
        sample = replace(self.plant.pack(self.unit))
        if not self.faults.on('frozen_value'):
            self._frozen = None
        else:
            if self._frozen is None:
                self._frozen = sample
            sample = replace(
                self._frozen,
                charge_switch=sample.charge_switch,
                discharge_switch=sample.discharge_switch,
            )
        return (
            basic_payload(sample, self._protections | self.faults.alarm_bits(0, 16))
            if register == BASIC else cells_payload(sample)
        )

    def _write(self, register: int, data: bytes, now: float) -> bool:
        if register == FET_CONTROL and len(data) == 2 and data[0] == 0 and data[1] <= 3:
            self._lock = data[1]
            self.protect(now)
            return True
        if register == FACTORY_ENTER and data == b'\x56\x78':
            self._factory = True
            return True
        if register == FACTORY_LEAVE and data in (b'\x00\x00', b'\x28\x28') and self._factory:
            self._factory = False
            return True
        return False

    def _disturb(self, frame: bytes) -> bytes:
        if self.faults.on('wrong_unit_id'):
            frame = frame[:1] + bytes(((frame[1] + 1) & 0xFF,)) + frame[2:]
        if self.faults.on('flipped_bytes'):
            # Behind the length byte, where the checksum covers it.
            at = max(4, len(frame) // 2)
            frame = frame[:at] + bytes((frame[at] ^ 0xFF,)) + frame[at + 1 :]
        if self.faults.on('truncated_frame'):
            frame = frame[: len(frame) // 2]
        return frame

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the line and put the answers into the outbox."""
        for kind, register, payload in self._parser.feed(data, now):
            self.requests += 1
            if self.faults.on('no_answer'):
                continue
            frame = self._disturb(self.answer(kind, register, payload, now))
            delay = (
                max(0.0, self.faults.value('late_answer', 2.0))
                if self.faults.on('late_answer')
                else 0.0
            )
            # One line: an answer cannot overtake an earlier one.
            due = max(now + delay, self._outbox[-1][0] if self._outbox else now)
            for at in range(0, len(frame), PIECE):
                piece = frame[at : at + PIECE]
                due += len(piece) * self._byte_s
                self._outbox.append((due, piece))

    # Line --------------------------------------------------------------------------------------

    def serve(self, link_path: str, stop: threading.Event) -> None:
        """Offer the BMS at `link_path` (a symbolic link to a pty) until `stop` is set; blocks.

        Raises FileExistsError when something else than a symbolic link is there.
        """
        link = Path(link_path)
        while not stop.is_set():
            if self.faults.on('disconnect'):
                self.protect(monotonic())
                stop.wait(TICK_S)
            else:
                self._serve_once(link, stop)

    def _serve_once(self, link: Path, stop: threading.Event) -> None:
        # This end of the slave stays open, or the master would fail whenever nobody listens.
        master, slave = os.openpty()
        target = os.ttyname(slave)
        try:
            tty.setraw(master, termios.TCSANOW)
            tty.setraw(slave, termios.TCSANOW)
            os.set_blocking(master, False)
            self._parser, self._outbox = RequestParser(), deque()
            place_link(link, target)
            while not (stop.is_set() or self.faults.on('disconnect')):
                now = monotonic()
                self.protect(now)
                self._send(master, now)
                wait = min(TICK_S, self._outbox[0][0] - now) if self._outbox else TICK_S
                if select.select([master], [], [], max(0.0, wait))[0]:
                    self.receive(os.read(master, 4096), monotonic())
        finally:
            # The link goes first, so that nobody finds a closed terminal.
            if link.is_symlink() and os.readlink(link) == target:
                link.unlink()
            os.close(slave)
            os.close(master)

    def _send(self, master: int, now: float) -> None:
        while self._outbox and self._outbox[0][0] <= now:
            _, piece = self._outbox.popleft()
            try:
                os.write(master, piece)
            except BlockingIOError:
                # Nobody reads and the line is full: the bytes are lost, as on a wire.
                continue


def place_link(link: Path, target: str) -> None:
    """Make `link` point to `target` in one step, replacing an older link but nothing else."""
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f'{link} exists and is no symbolic link')
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f'.{link.name}.{os.getpid()}.{threading.get_ident()}')
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
