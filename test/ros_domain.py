"""ROS domains that no other test process uses."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from pathlib import Path
from typing import IO

from bess_core.shared_memory import remove_stale

DOMAINS = range(1, 100)  # their ports stay below the ones that the system gives out


def claim_domain() -> tuple[int, IO[str]]:
    """A ROS domain that no other test process uses, for as long as the returned file is open."""
    folder = Path(tempfile.gettempdir()) / f'bess-test-domains-{os.getuid()}'
    folder.mkdir(exist_ok=True)
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        lock = open(folder / f'{domain}.lock', 'w', encoding='ascii')  # noqa: SIM115 - open until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        remove_stale()  # an earlier process of this domain may have been killed
        return domain, lock
    raise RuntimeError(f'all ROS domains are taken: {folder}')
