"""Which processes of a site go first when the processor is short: those that act, before those that record and show."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

ACTING, OTHERS = -10, 5  # nice values
ACTING_ROLES = frozenset({'converter', 'manager'})  # of nodes that give orders to hardware, or decide on them
AUTOGROUP = Path('/proc/self/autogroup')


def take(acts: bool) -> int:
    """Set the priority of this process and of the threads that it will start; the nice value that it has then.

    To go ahead takes a privilege (CAP_SYS_NICE, or `LimitNICE=` of a systemd unit); without it everything stays as the
    process was started, which is what the returned value tells. To stand back takes none.
    """
    with suppress(PermissionError):
        set_nice(ACTING if acts else OTHERS)
    return os.getpriority(os.PRIO_PROCESS, 0)


def set_nice(nice: int, thread: int = 0) -> None:
    """Nice value of a thread (0: this one) and of the session it belongs to. Raises PermissionError.

    Sessions compete with each other as groups, each with a nice value of its own, where the system does so
    (sched(7), autogroup).
    """
    os.setpriority(os.PRIO_PROCESS, thread, nice)
    if AUTOGROUP.exists():
        AUTOGROUP.write_text(str(nice))


def session_nice() -> int:
    """Nice value of the session, 0 where sessions do not compete."""
    return int(AUTOGROUP.read_text().split()[-1]) if AUTOGROUP.exists() else 0
