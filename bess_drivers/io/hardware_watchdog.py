"""Watchdogs in hardware: `/dev/watchdog` of Linux and that of a Strato Pi. When to feed is for others to decide."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from struct import pack, unpack
from typing import Protocol

from bess_drivers.device import Disconnected, NoAnswer, ReadOnlyError
from bess_drivers.io.sysfs import read_number, write_text

SET_TIMEOUT, KEEP_ALIVE = 0xC0045706, 0x80045705  # linux/watchdog.h
MAGIC = b'V'  # written before closing: the watchdog stops


class HardwareWatchdog(Protocol):
    """Restarts the computer unless it is fed."""

    timeout: float  # s, as the hardware took it; 0 = not started

    def start(self, timeout: float) -> None:
        """Start with a time-out in s (whole ones). Raises `DeviceError`."""

    def feed(self) -> None:
        """Start its time anew. Raises `DeviceError`."""

    def stop(self) -> None:
        """Disarm and let go. Without it the computer restarts after the time-out. Raises `DeviceError`."""


class LinuxWatchdog:
    """The character device of the kernel."""

    def __init__(self, path: str = '/dev/watchdog', read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        self.timeout = 0.0
        self._fd = -1

    def start(self, timeout: float) -> None:
        """See `HardwareWatchdog`. The kernel may choose another time-out: see `timeout`."""
        if self.read_only:
            raise ReadOnlyError(f'{self.path} is read-only; not started')
        if not 1.0 <= timeout <= 86400.0:
            raise ValueError(f'time-out {timeout:g} s is not in 1..86400')
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)  # opening it starts it
            except OSError as error:
                raise Disconnected(f'{self.path}: {error.strerror}') from error
        try:
            self.timeout = float(unpack('i', fcntl.ioctl(self._fd, SET_TIMEOUT, pack('i', round(timeout))))[0])
        except OSError as error:
            raise NoAnswer(f'{self.path}: time-out {timeout:g} s: {error.strerror}') from error

    def feed(self) -> None:
        """See `HardwareWatchdog`."""
        if self._fd < 0:
            raise Disconnected(f'{self.path} is not started')
        try:
            fcntl.ioctl(self._fd, KEEP_ALIVE, pack('i', 0))
        except OSError as error:
            raise NoAnswer(f'{self.path}: {error.strerror}') from error

    def stop(self) -> None:
        """See `HardwareWatchdog`. A kernel built with NOWAYOUT goes on regardless."""
        fd, self._fd, self.timeout = self._fd, -1, 0.0
        if fd >= 0:
            try:
                os.write(fd, MAGIC)
            except OSError as error:
                raise NoAnswer(f'{self.path}: not disarmed: {error.strerror}') from error
            finally:
                os.close(fd)


class StratoWatchdog:
    """The watchdog of a Strato Pi: each heartbeat is a flip."""

    def __init__(self, root: str = '/sys/class/stratopi', read_only: bool = False) -> None:
        self._root, self.read_only = Path(root) / 'watchdog', read_only
        self.timeout = 0.0

    def start(self, timeout: float) -> None:
        """See `HardwareWatchdog`."""
        if not 1.0 <= timeout <= 99_999.0:
            raise ValueError(f'time-out {timeout:g} s is not in 1..99999')
        for name, text in (('timeout', str(round(timeout))), ('heartbeat', 'F'), ('enabled', '1')):
            write_text(self._root / name, text, read_only=self.read_only)
        self.timeout = read_number(self._root / 'timeout')

    def feed(self) -> None:
        """See `HardwareWatchdog`."""
        write_text(self._root / 'heartbeat', 'F', read_only=self.read_only)

    def stop(self) -> None:
        """See `HardwareWatchdog`."""
        write_text(self._root / 'enabled', '0', read_only=self.read_only)
        self.timeout = 0.0
