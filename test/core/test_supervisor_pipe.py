"""What a process tells its supervisor over the pipe."""

from __future__ import annotations

import os

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from bess_core.supervisor import Group, Supervisor


def test_lines_are_taken_whole_however_they_arrive() -> None:
    ready, told = os.pipe()
    os.set_blocking(ready, False)
    group = Group('control', ['bms_1', 'site'], [], told_fd=ready)
    try:
        Supervisor._listen(group, 1.0)
        assert (group.told_at, group.configured, group.faults) == (0.0, set(), set()), 'nothing was said'
        os.write(told, b'lives\nfault bms_1/comm.lost\nfault site/site.dri')
        Supervisor._listen(group, 2.0)
        assert (group.told_at, group.configured, group.faults) == (2.0, set(), {'bms_1/comm.lost'})
        os.write(told, b've\nup\n\xff\n')
        Supervisor._listen(group, 3.0)
        assert group.configured == {'bms_1', 'site'}
        assert group.faults == {'bms_1/comm.lost', 'site/site.drive'}
    finally:
        os.close(told)
        os.close(ready)


def test_the_end_of_the_pipe_is_no_sign_of_life() -> None:
    ready, told = os.pipe()
    os.close(told)
    group = Group('control', ['site'], [], told_fd=ready)
    Supervisor._listen(group, 1.0)
    os.close(ready)
    assert group.told_at == 0.0


def test_what_a_supervisor_could_not_hear_while_it_stood_still_is_no_silence() -> None:
    group = Group('control', ['bms_1', 'site'], [], last_seen={'bms_1': 10.0, 'site': 9.0}, told_at=10.0)
    Supervisor._excuse(group, 5.0, 15.2)
    assert group.last_seen == {'bms_1': 15.0, 'site': 14.0}
    assert group.told_at == 15.0
    group.told_at = 0.0
    Supervisor._excuse(group, 5.0, 20.2)
    assert group.told_at == 0.0, 'it has told nothing yet'
