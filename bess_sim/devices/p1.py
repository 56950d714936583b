"""A simulated smart meter with a P1 port: sends a telegram each period on a pty or to whoever connects by TCP.

Telegrams as in the P1 companion standard: version 5 with CRC, or 2 without version and CRC, with the gas reading on a
line of its own. With a key the telegram is encrypted as in Luxembourg (DLMS general-global-cipher). Faults: `no_answer`
(silent), `disconnect`, `flipped_bytes`, `truncated_frame`, `frozen_value`.
"""

from __future__ import annotations

import os
import socket
import threading
import tty
from datetime import UTC, datetime
from math import isnan
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bess_sim.control_server import Request
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.jbd import place_link
from bess_sim.devices.serial_bms import crc16
from bess_sim.plant_api import MeterSample, PlantApi

TICK_S = 0.02
TEXT = '0-0:96.13.0()'


def checksum(data: bytes) -> str:
    """CRC-16/ARC as four hexadecimal digits."""
    return crc16(data, 0)[::-1].hex().upper()


def telegram(m: MeterSample, version: int, at: datetime) -> bytes:
    """A telegram of version 5 or 2; energies are split over the two tariffs."""
    phases = [0.0 if isnan(p) else p for p in m.phase_power]
    total = sum(phases)

    def kw(value: float) -> str:
        return f'{max(0.0, value) / 1000:06.3f}*kW' if version == 5 else f'{max(0.0, value) / 1000:07.2f}*kW'

    energies = [(f'1-0:{way}.8.{n}', f'{0.5 * wh / 1000:010.3f}*kWh')
                for way, wh in ((1, m.energy_import), (2, m.energy_export)) for n in (1, 2)]
    lines = [r'/BES5\SIMULATED' if version == 5 else r'/BES2\SIMULATED', '']
    if version == 5:
        lines += ['1-3:0.2.8(50)', f'0-0:1.0.0({at:%y%m%d%H%M%S}W)']
    lines += ['0-0:96.1.1(4245535330303031)', *(f'{code}({value})' for code, value in energies),
              '0-0:96.14.0(0002)', f'1-0:1.7.0({kw(total)})', f'1-0:2.7.0({kw(-total)})']
    if version == 5:
        for n, (volt, watt) in enumerate(zip(m.voltage, phases, strict=True)):
            if isnan(volt):
                continue
            lines += [f'1-0:{32 + 20 * n}.7.0({volt:05.1f}*V)', f'1-0:{31 + 20 * n}.7.0({abs(watt) / volt:03.0f}*A)',
                      f'1-0:{21 + 20 * n}.7.0({kw(watt)})', f'1-0:{22 + 20 * n}.7.0({kw(-watt)})']
        lines += [TEXT, '0-1:24.1.0(003)', f'0-1:24.2.1({at:%y%m%d%H%M%S}W)(00012.345*m3)']
    else:
        lines += [TEXT, '0-1:24.1.0(03)', '0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.1)(m3)', '(00012.345)']
    body = '\r\n'.join(lines).encode() + b'\r\n!'
    return body + (checksum(body).encode() if version == 5 else b'') + b'\r\n'


def encrypted(data: bytes, key: bytes, counter: int) -> bytes:
    """A telegram in a general-global-cipher frame; the authentication key is the one that Luxembourg prints."""
    title, control = b'BES\0\0\0\0\1', b'\x30'
    count = counter.to_bytes(4, 'big')
    box = Cipher(algorithms.AES(key), modes.GCM(title + count, min_tag_length=12)).encryptor()
    box.authenticate_additional_data(control + bytes(0x11 * n for n in range(16)))
    secret = box.update(data) + box.finalize()
    content = control + count + secret + box.tag[:12]
    return b'\xdb\x08' + title + b'\x82' + len(content).to_bytes(2, 'big') + content


class P1Simulator:
    """The grid meter of the plant (`RunningDevice`). address: `serial:<link>` or `tcp://host:port`.

    `key`: 16 bytes, the telegrams are encrypted with it; empty = they are not.
    """

    def __init__(self, plant: PlantApi, faults: DeviceFaults, address: str, *, version: int = 5,
                 period: float = 1.0, key: bytes = b'') -> None:
        if version not in (2, 5):
            raise ValueError(f'version must be 2 or 5, not {version}')
        self.key = key
        self.plant, self.faults, self.version, self.period = plant, faults, version, period
        self._link = Path(address[7:]) if address.startswith('serial:') else None
        host, _, port = address.removeprefix('tcp://').partition(':')
        self._where = (host, int(port or 0)) if self._link is None else ('', 0)
        self.sent = 0
        self._frozen: MeterSample | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._server: socket.socket | None = None

    def start(self) -> str:
        """See `RunningDevice`."""
        ready = threading.Event()
        if self._link is None:
            self._server = socket.create_server(self._where)
            self._server.settimeout(TICK_S)
            self._where = self._server.getsockname()[:2]
        else:
            self._link.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, args=(ready,), name='p1', daemon=True)
        self._thread.start()
        if not ready.wait(5.0) or self._failure is not None:
            raise OSError(f'P1 meter: {self._failure or "did not start"}')
        return f'tcp://{self._where[0]}:{self._where[1]}' if self._link is None else f'serial:{self._link}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)
        if self._server is not None:
            self._server.close()

    def check(self) -> None:
        """See `RunningDevice`."""
        if self._failure is not None:
            raise self._failure

    def command(self, request: Request) -> Request:
        """See `RunningDevice`."""
        if request['cmd'] == 'sent':
            return {'sent': self.sent}
        raise ValueError(f'unknown command {request["cmd"]!r}')

    def frame(self) -> bytes:
        """The next telegram, with the faults that concern its bytes."""
        sample = self.plant.meter()
        self._frozen = (self._frozen or sample) if self.faults.on('frozen_value') else None
        data = telegram(self._frozen or sample, self.version, datetime.now(UTC))
        if self.key:
            data = encrypted(data, self.key, self.sent + 1)
        if self.faults.on('flipped_bytes') and self.key:
            data = data[:40] + bytes((data[40] ^ 0x01,)) + data[41:]
        elif self.faults.on('flipped_bytes'):
            at = data.index(b'1.7.0(') + 7
            data = data[:at] + bytes((data[at] ^ 0x01,)) + data[at + 1:]
        return data[:len(data) // 2] if self.faults.on('truncated_frame') else data

    def _run(self, ready: threading.Event) -> None:
        try:
            while not self._stop.is_set():
                if self.faults.on('disconnect'):
                    self._stop.wait(TICK_S)
                elif self._link is None:
                    self._serve_tcp(ready)
                else:
                    self._serve_pty(ready)
        except Exception as error:  # noqa: BLE001 - raised by `check` in the main thread
            self._failure = error
        ready.set()

    def _talking(self) -> bool:
        """Wait for the next telegram; False when the connection is to end."""
        waited = 0.0
        while waited < self.period:
            if self._stop.wait(TICK_S) or self.faults.on('disconnect'):
                return False
            waited += TICK_S
        return True

    def _serve_pty(self, ready: threading.Event) -> None:
        assert self._link is not None
        master, slave = os.openpty()
        target = os.ttyname(slave)
        try:
            tty.setraw(slave)
            os.set_blocking(master, False)
            place_link(self._link, target)
            ready.set()
            while self._talking():
                if not self.faults.on('no_answer'):
                    try:
                        os.write(master, self.frame())
                        self.sent += 1
                    except BlockingIOError:
                        continue  # nobody reads: the bytes are lost, as on a wire
        finally:
            if self._link.is_symlink() and os.readlink(self._link) == target:
                self._link.unlink()
            os.close(slave)
            os.close(master)

    def _serve_tcp(self, ready: threading.Event) -> None:
        assert self._server is not None
        ready.set()
        try:
            connection, _ = self._server.accept()
        except TimeoutError:
            return
        with connection:
            while self._talking():
                if self.faults.on('no_answer'):
                    continue
                try:
                    connection.sendall(self.frame())
                    self.sent += 1
                except OSError:
                    return  # the other end is gone
