"""The end of a process, also when the middleware does not end."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: `pause` of the C library, called without giving the GIL back: no thread or signal handler of Python runs any more.
STUCK = """
import ctypes, sys
from bess_core import runtime
runtime.END_S = 0.5
with runtime.Runtime() as made:
    {0}
    print("in order", flush=True)
print("past it", flush=True)
"""
FOREVER = 'ctypes.PyDLL(None).pause()'


def end(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', STUCK.format(line)], capture_output=True, text=True, timeout=60,
                          check=False)


@pytest.mark.parametrize('line', [
    f'runtime.rclpy.try_shutdown = lambda: {FOREVER}',
    f'made.executor = made; made.remove_node = lambda _: {FOREVER}; made.drop(None)',
])
def test_middleware_that_does_not_end_is_left_behind(line: str) -> None:
    done = end(line)
    assert done.returncode == 1 and 'past it' not in done.stdout
    assert done.stderr.startswith('Timeout') and 'runtime.py' in done.stderr, 'where it was'


def test_one_that_ends_is_waited_for_no_longer() -> None:
    done = end('import time; made.drop(__import__("rclpy.node").node.Node("a")); time.sleep(0.7)')
    assert (done.returncode, done.stdout) == (0, 'in order\npast it\n'), done.stderr
