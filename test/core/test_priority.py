"""Processes that act go first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bess_core import priority

CODE = """
import os
from bess_core import priority
{}
print(os.getpriority(os.PRIO_PROCESS, 0), priority.take({}), priority.session_nice())
"""


def taken(acts: bool, preparation: str = '') -> tuple[int, int, int]:
    """Nice before and after, and of the session, in a session of its own."""
    done = subprocess.run([sys.executable, '-c', CODE.format(preparation, acts)], capture_output=True, text=True,
                          start_new_session=True, check=True, timeout=60)
    before, after, session = map(int, done.stdout.split())
    return before, after, session


def test_who_only_records_stands_back() -> None:
    before, after, session = taken(False)
    assert after == max(before, priority.OTHERS)
    assert session == (priority.OTHERS if priority.AUTOGROUP.exists() else 0)


@pytest.mark.skipif(not priority.AUTOGROUP.exists(), reason='sessions do not compete on this system')
def test_a_session_that_is_shared_is_left_alone() -> None:
    code = CODE.format('', False)
    shell = [sys.executable, '-c',
             f'import subprocess, sys; subprocess.run([sys.executable, "-c", {code!r}], check=True)']
    done = subprocess.run(shell, capture_output=True, text=True, start_new_session=True, check=True, timeout=60)
    before, after, session = map(int, done.stdout.split())
    assert after == max(before, priority.OTHERS) and session == 0


def test_who_acts_goes_ahead_where_that_is_allowed() -> None:
    try:
        subprocess.run(['nice', '-n', '-1', 'true'], check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip('this user may not raise a priority')
    assert taken(True)[1] in (priority.ACTING, 0)


def test_without_the_privilege_all_stays_as_it_was() -> None:
    drop = 'os.setpriority(os.PRIO_PROCESS, 0, 3)\nif os.getuid() == 0: os.setuid(65534)'
    assert taken(True, drop)[:2] == (3, 3)


class Group:
    """Stands for the file of the session; it fails as it is told, one by one."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.written = list(failures), ''

    def exists(self) -> bool:
        return True

    def write_text(self, text: str) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written = text


def nice_of_this(monkeypatch: pytest.MonkeyPatch, group: Group) -> None:
    """Nothing outside of the test is changed."""
    monkeypatch.setattr(priority, 'AUTOGROUP', group)
    monkeypatch.setattr(priority, 'AGAIN_S', 0.0)
    monkeypatch.setattr(os, 'setpriority', lambda *_: None)
    monkeypatch.setattr(os, 'getsid', lambda _: os.getpid())


def test_a_system_that_is_asked_too_often_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(BlockingIOError(11, 'again'), BlockingIOError(11, 'again'))
    nice_of_this(monkeypatch, group)
    priority.take(False)
    assert group.written == str(priority.OTHERS)


@pytest.mark.parametrize('failures', [[OSError(30, 'read-only file system')], [BlockingIOError(11, 'again')] * 99])
def test_no_priority_ends_no_process(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> None:
    group = Group(*failures)
    nice_of_this(monkeypatch, group)
    assert priority.take(True) == os.getpriority(os.PRIO_PROCESS, 0)
    assert group.written == ''
