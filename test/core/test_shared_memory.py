"""Shared memory of killed processes is removed, that of living ones is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bess_core import shared_memory

pytest.importorskip('rclpy', reason='needs ROS 2')

NODE = """
import rclpy, time
from rclpy.node import Node
rclpy.init()
node = Node('lives')
print('up', flush=True)
time.sleep(60)
"""


def old(path: Path) -> Path:
    path.touch()
    os.utime(path, (1.0, 1.0))
    return path


def own_files(pid: int) -> set[str]:
    """Segments that this process has open."""
    links = (os.readlink(f) for f in Path(f'/proc/{pid}/fd').iterdir() if f.exists())
    return {Path(link).name for link in links if Path(link).name.startswith(shared_memory.PREFIX)}


@pytest.mark.skipif(not shared_memory.FOLDER.is_dir(), reason='no /dev/shm on this machine')
def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, 'SETTLED_S', 0.0)
    process = subprocess.Popen([sys.executable, '-c', NODE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == 'up\n'
        files = own_files(process.pid)
        if not files:
            pytest.skip('the middleware uses no shared memory here')
        shared_memory.remove_stale()
        assert all((shared_memory.FOLDER / f).exists() for f in files)
        process.kill()
        process.wait()
        assert all((shared_memory.FOLDER / f).exists() for f in files), 'the kernel does not do it for us'
        assert shared_memory.remove_stale() >= 1
        assert not any((shared_memory.FOLDER / f).exists() for f in files)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_only_old_files_with_their_names_are_touched(tmp_path: Path) -> None:
    gone = [old(tmp_path / n) for n in ('fastrtps_port7411', 'fastrtps_port7411_el', 'sem.fastrtps_port7411_mutex')]
    stay = [old(tmp_path / n) for n in ('other_el', 'fastrtps_0123', 'sem.other')]
    young = tmp_path / 'fastrtps_4567_el'
    young.touch()
    link = tmp_path / 'fastrtps_89ab_el'
    link.symlink_to(stay[0])
    assert shared_memory.remove_stale(tmp_path) == 1
    assert not any(f.exists() for f in gone)
    assert all(f.exists() for f in (*stay, young, link))


def test_a_folder_that_is_missing_is_no_error(tmp_path: Path) -> None:
    assert shared_memory.remove_stale(tmp_path / 'missing') == 0
