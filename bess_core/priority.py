"""Which processes of a site go first when the processor is short: those that act, before those that record and show."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

ACTING, OTHERS = -10, 5  # nice values
ACTING_ROLES = frozenset({'converter', 'manager'})  # of nodes that give orders to hardware, or decide on them
AUTOGROUP = Path('/proc/self/autogroup')
AGAIN_S, TIMES = 0.12, 5  # the system takes one change per 0.1 s from all users together, but for the privileged


def take(acts: bool) -> int:
    """Set the priority of this process and of the threads that it will start; the nice value that it has then.

    A session of its own (as `bess up` gives each process) gets it too. One that is shared is left alone: the terminal
    or launch that started this process, and whatever else runs in it, is not ours.

    To go ahead takes a privilege (CAP_SYS_NICE, or `LimitNICE=` of a systemd unit); without it everything stays as the
    process was started, which is what the returned value tells. To stand back takes none. Never raises: a process
    without its priority (also where /proc cannot be written) is better than none.
    """
    with suppress(OSError):
        set_nice(ACTING if acts else OTHERS, session=os.getsid(0) == os.getpid())
    return os.getpriority(os.PRIO_PROCESS, 0)


def set_nice(nice: int, thread: int = 0, *, session: bool = True) -> None:
    """Nice value of a thread (0: this one) and of the session it belongs to. Raises OSError (PermissionError, ...).

    Sessions compete with each other as groups, each with a nice value of its own, where the system does so
    (sched(7), autogroup).
    """
    os.setpriority(os.PRIO_PROCESS, thread, nice)
    for left in reversed(range(TIMES if session else 0)):
        try:
            if AUTOGROUP.exists():
                AUTOGROUP.write_text(str(nice))
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(AGAIN_S)


def session_nice() -> int:
    """Nice value of the session, 0 where sessions do not compete."""
    return int(AUTOGROUP.read_text().split()[-1]) if AUTOGROUP.exists() else 0
