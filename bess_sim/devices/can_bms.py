"""A simulated low-voltage battery on a CAN bus: sends the CAN-bms frames of a pack of the plant each second.

It keeps talking whether or not anybody listens. Faults: `no_answer` and `disconnect` silence it,
`alarm_bit` adds an alarm, `frozen_value` repeats the present frames, `truncated_frame` halves them,
`flipped_bytes` inverts one byte of the measured values, `wrong_unit_id` sends under foreign ids.
"""

from __future__ import annotations

import threading
from math import isfinite
from struct import pack
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

import can

from bess_sim.control_server import Request
from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PackSample, PlantApi

PERIOD_S = 0.2  # real batteries send each second; a bench shows changes sooner
LISTEN_S = 0.02


def open_bus(address: str) -> Any:
    """python-can bus of `can:INTERFACE:CHANNEL?port=...`; multicast never leaves this machine. Raises ValueError."""
    path, _, query = address.removeprefix('can:').partition('?')
    interface, _, channel = path.partition(':')
    if not channel:
        interface, channel = 'socketcan', path
    settings: dict[str, Any] = {key: int(value) for key, value in parse_qsl(query)}
    if interface == 'udp_multicast':
        settings |= {'fd': False, 'hop_limit': 0}
    return can.Bus(interface=interface, channel=channel, **settings)


def _u16(value: float) -> int:
    return min(0xFFFF, max(0, round(value))) if isfinite(value) else 0


def _s16(value: float) -> int:
    return min(0x7FFF, max(-0x8000, round(value))) if isfinite(value) else 0


def frames_of(sample: PackSample, cell_high: float, cell_low: float) -> dict[int, bytes]:
    """All frames of a pack; `cell_high` and `cell_low` (V) are the limits of a cell."""
    count = len(sample.cells)
    highest, lowest = max(sample.cells), min(sample.cells)
    hot, cold = max(sample.temperatures), min(sample.temperatures)
    alarms = bytearray(b'\xaa' * 8)
    over, under = highest > cell_high, lowest < cell_low
    if over:
        alarms[0] = alarms[0] & ~0x0C | 0x04
    if under:
        alarms[0] = alarms[0] & ~0x30 | 0x10
    if hot > 60.0:
        alarms[0] = alarms[0] & ~0xC0 | 0x40
    charge = sample.charge_switch and not over
    discharge = sample.discharge_switch and not under
    share = sample.charge / sample.charge_full if sample.charge_full > 0 else 0.0
    return {
        0x351: pack('<HHHH', _u16(count * cell_high * 10), _u16(10 * sample.max_charge_current * charge),
                    _u16(10 * sample.max_discharge_current * discharge), _u16(count * cell_low * 10)),
        0x355: pack('<HHHH', _u16(100 * share), _u16(100 * sample.soh), _u16(10_000 * share), 0),
        0x356: pack('<hhhH', _s16(100 * sample.voltage), _s16(10 * sample.current), _s16(10 * hot), 0),
        0x35A: bytes(alarms),
        0x35C: bytes((0x80 * charge | 0x40 * discharge, 0)),
        0x35E: b'BESSSIM ',
        0x35F: pack('<HHHH', 0, 0x0102, _u16(sample.charge), 0),
        0x372: pack('<HHHH', 1, 0, 0, 0),
        0x373: pack('<HHHH', _u16(1000 * lowest), _u16(1000 * highest), _u16(cold + 273), _u16(hot + 273)),
        0x379: pack('<HHHH', _u16(sample.charge_full), 0, 0, 0),
    }


class CanBmsSimulator:
    """The battery `unit` on a CAN bus (`RunningDevice`)."""

    def __init__(self, plant: PlantApi, unit: str, faults: DeviceFaults, address: str,
                 cell_high: float = 3.6, cell_low: float = 2.7) -> None:
        self.plant, self.unit, self.faults, self.address = plant, unit, faults, address
        self.cell_high, self.cell_low = cell_high, cell_low
        self.keep_alives = 0
        self.period_s = PERIOD_S
        self._bus: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> str:
        """See `RunningDevice`."""
        try:
            self._bus = open_bus(self.address)
        except (can.CanError, ImportError) as error:
            raise OSError(str(error)) from error
        self._thread = threading.Thread(target=self._run, name='can_bms', daemon=True)
        self._thread.start()
        return self.address

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def check(self) -> None:
        """See `RunningDevice`."""
        if self._failure is not None:
            raise self._failure

    def command(self, request: Request) -> Request:
        """See `RunningDevice`."""
        if request['cmd'] == 'keep_alives':
            return {'keep_alives': self.keep_alives}
        raise ValueError(f'unknown command {request["cmd"]!r}')

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - raised by `check` in the main thread
            self._failure = error
        finally:
            self._bus.shutdown()

    def _raise(self, frames: dict[int, bytes]) -> None:
        """The injected alarm: bits 0 to 31 of 0x359, 32 to 95 (01 in a pair) of 0x35A, 96 to 103 of 0x35C."""
        bits = self.faults.alarm_bits
        if protection := bits(0, 32):
            frames[0x359] = protection.to_bytes(4, 'little') + bytes((1, 0x50, 0x4E))
        if pair := bits(32, 64):
            frames[0x35A] = (int.from_bytes(frames[0x35A], 'little') & ~(3 * pair) | pair).to_bytes(8, 'little')
        frames[0x35C] = bytes((frames[0x35C][0] | bits(96, 8), 0))

    def _serve(self) -> None:
        due = monotonic()
        frames: dict[int, bytes] = {}
        while not self._stop.is_set():
            try:
                message = self._bus.recv(LISTEN_S)
            except OSError:
                raise  # the bus is gone
            except Exception:  # noqa: BLE001 - others may send anything; a battery talks on
                message = None
            if message is not None and message.arbitration_id == 0x305:
                self.keep_alives += 1
            if monotonic() < due:
                continue
            due += self.period_s
            on = self.faults.on
            if on('no_answer') or on('disconnect'):
                continue
            if not (on('frozen_value') and frames):
                frames = frames_of(self.plant.pack(self.unit), self.cell_high, self.cell_low)
                self._raise(frames)
            for can_id, data in frames.items():
                if on('flipped_bytes') and can_id == 0x356:
                    data = data[:1] + bytes((data[1] ^ 0xFF,)) + data[2:]
                if on('truncated_frame'):
                    data = data[:len(data) // 2]
                self._bus.send(can.Message(arbitration_id=can_id + 0x100 * on('wrong_unit_id'), data=data,
                                           is_extended_id=False))
