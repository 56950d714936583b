"""How a site leaves: the reboot command, once, and what tells that a REBOOT or RESTART has failed.

A RESTART is carried out by whoever supervises the processes (`bess up`, the launch file); here only the time is
watched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class Leaving:
    """One announcement. `command` is run `delay` s after that of a REBOOT; after `timeout` s it has failed."""

    def __init__(self, command: Sequence[str], delay: float, timeout: float) -> None:
        self._command, self._delay, self._timeout = list(command), delay, timeout
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, reboot: bool, elapsed: float) -> str:
        """`elapsed` s after the announcement of a REBOOT (or RESTART): '' while it is under way, or why it failed."""
        if reboot and self._process is None and elapsed >= self._delay:
            try:
                self._process = subprocess.Popen(self._command, start_new_session=True, stdin=subprocess.DEVNULL)
            except OSError as error:
                return f'reboot_command cannot be started: {error}'
        code = self._process.poll() if self._process is not None else None
        if code:
            return f'reboot_command ended with code {code}'
        if elapsed >= self._timeout:
            return f'this process still runs {elapsed:.0f} s later'
        return ''
