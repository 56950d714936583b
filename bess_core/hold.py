"""Runs a command that Ctrl-C must not end: `python -m bess_core.hold COMMAND...`.

Simulated devices have to answer until the nodes have written their last set-points, but launch and the
terminal interrupt all processes at once. The command runs in a session of its own; SIGINT is ignored
here, SIGTERM handed on, and the end of the starting process ends the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

PARENT_S = 1.0  # period of the look at the starting process
KILL_S = 8.0  # how long the command may take to end


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the command ends; its exit code (128 + n for signal n)."""
    command = list(sys.argv[1:] if argv is None else argv)
    parent = os.getppid()
    waited_for = {signal.SIGTERM, signal.SIGCHLD}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A blocked signal stays until it is asked for: none is lost between start and wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = subprocess.Popen(
        command, start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before) and None)  # noqa: PLW1509 (one thread)
    while child.poll() is None:
        received = signal.sigtimedwait(waited_for, PARENT_S)
        if os.getppid() != parent or (received is not None and received.si_signo == signal.SIGTERM):
            child.terminate()
            try:
                child.wait(KILL_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    code = child.returncode
    return code if code >= 0 else 128 - code


if __name__ == '__main__':
    sys.exit(main())
