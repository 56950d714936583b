"""Forks container processes of a site that have everything imported: a start costs a tenth of a second, not seconds.

    {"argv": [...]} on stdin -> {"pid": N} on stdout. Its end is the end of all of them (`--supervised`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import rclpy.lifecycle  # noqa: F401

import bess.msg
import bess.srv
from bess_core import container, site


def warm(file: Path) -> None:
    """Import every node type of a site and load the message libraries; nothing of the middleware is started."""
    site.load(file)
    for module in (bess.msg, bess.srv):
        for name in dir(module):
            load = getattr(getattr(module, name), '__import_type_support__', None)
            if load is not None:
                load()


def main() -> None:
    """Serve until stdin ends."""
    warm(Path(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print('{}', flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            os._exit(container.main(json.loads(line)['argv']))
        print(json.dumps({'pid': pid}), flush=True)


if __name__ == '__main__':
    main()
