"""The watchdog of a Strato Pi, fed by the node `watchdog` (`device: strato_pi`). When to feed is for that to decide."""

from __future__ import annotations

from pathlib import Path


class StratoWatchdog:
    """Files of its kernel module; each heartbeat is a flip. What cannot be written is an OSError."""

    def __init__(self, root: str = '') -> None:
        self._root = Path(root or '/sys/class/stratopi') / 'watchdog'

    def start(self, timeout: float) -> None:
        """Start with a time-out in s (whole ones). Raises OSError, ValueError."""
        if not 1.0 <= timeout <= 99_999.0:
            raise ValueError(f'time-out {timeout:g} s is not in 1..99999')
        for name, text in (('timeout', str(round(timeout))), ('heartbeat', 'F'), ('enabled', '1')):
            self._write(name, text)

    def feed(self) -> None:
        """Start its time anew. Raises OSError."""
        self._write('heartbeat', 'F')

    def stop(self) -> None:
        """Disarm it. Without this the computer restarts after the time-out. Raises OSError."""
        self._write('enabled', '0')

    def _write(self, name: str, text: str) -> None:
        with (self._root / name).open('r+') as file:  # it must be there
            file.write(text)
