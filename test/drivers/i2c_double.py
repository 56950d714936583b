"""A simulated I2C bus in a process of its own, under the unmodified smbus2: its `ioctl` and `os` are replaced."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import smbus2.smbus2 as real

FUNCTIONS = 0x0EFF000D  # plain I2C, PEC, all SMBus transfers


class Bus:
    """The bus as the test sees it. `kernel_word` leaves plain transfers out when it lacks bit 0."""

    def __init__(self, path: Path) -> None:
        self.path, self.functions, self.plugged = path, FUNCTIONS, True
        self._sockets: dict[int, socket.socket] = {}
        self.address = f'i2c:{path}'

    def ask(self, **request: Any) -> dict[str, Any]:
        """A line to the simulator."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.path))
            return self._line(s, request)

    @staticmethod
    def _line(s: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
        s.sendall(json.dumps(request).encode() + b'\n')
        data = b''
        while not data.endswith(b'\n'):
            part = s.recv(65536)
            assert part, 'the simulator is gone'
            data += part
        return json.loads(data)

    def set(self, chip: int, **values: Any) -> None:
        self.ask(addr=chip, set=values)

    def fault(self, chip: int, name: str = '') -> None:
        self.ask(addr=chip, fault=name)

    def writes(self, chip: int) -> list[str]:
        return self.ask(addr=chip, writes=True)['writes']

    # -- what smbus2 calls

    O_RDWR = os.O_RDWR

    def open(self, path: str, _: int) -> int:
        if not self.plugged:
            raise FileNotFoundError(2, 'No such file or directory', path)
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        self._sockets[s.fileno()] = s
        return s.fileno()

    def close(self, fd: int) -> None:
        self._sockets.pop(fd).close()

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        if not self.plugged:
            raise OSError(19, 'No such device')
        if request == real.I2C_FUNCS:
            ctypes.cast(ctypes.addressof(argument) if isinstance(argument, ctypes._SimpleCData) else argument,
                        ctypes.POINTER(ctypes.c_uint32))[0] = self.functions
            return 0
        assert request == real.I2C_RDWR, f'unexpected ioctl {request:#x}'
        messages = [argument.msgs[i] for i in range(argument.nmsgs)]
        wire = [['r', m.len] if m.flags & real.I2C_M_RD else ['w', ctypes.string_at(m.buf, m.len).hex()]
                for m in messages]
        answer = self._line(self._sockets[fd], {'addr': messages[0].addr, 'm': wire})
        if 'e' in answer:
            raise OSError(answer['e'], os.strerror(answer['e']))
        reads = [m for m in messages if m.flags & real.I2C_M_RD]
        for message, data in zip(reads, answer['r'], strict=True):
            ctypes.memmove(message.buf, bytes.fromhex(data), message.len)
        return 0


@contextmanager
def i2c_bus(folder: Path, monkeypatch: pytest.MonkeyPatch, *chips: str) -> Iterator[Bus]:
    """A bus with these chips."""
    path = folder / 'i2c'
    process = subprocess.Popen([sys.executable, '-m', 'bess_sim.devices.i2c_bus', str(path), *chips],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == 'ready\n'
        bus = Bus(path)
        monkeypatch.setattr(real, 'os', bus)
        monkeypatch.setattr(real, 'ioctl', bus.ioctl)
        yield bus
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
