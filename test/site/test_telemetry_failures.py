"""Telemetry that dies or finds no space costs the record, not the control."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from running_site import SETTLE_S, TELEMETRY, RunningSite, alive, lateness, near_target

from bess.msg import SystemState

DISK_BYTES = 8 << 20


class SmallDisk:
    """The folder of the recordings: a file system of its own where this user may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mount = shutil.which('mount')
        self.mounted = mount is not None and subprocess.run(
            [mount, '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'tmpfs', str(folder)], capture_output=True,
            check=False).returncode == 0

    def fill(self, recorder_pid: int) -> None:
        """Leave no space. Where nothing could be mounted, the recorder's files may not grow any more."""
        if not self.mounted:
            biggest = max(file.stat().st_size for file in self.folder.rglob('*.mcap'))
            resource.prlimit(recorder_pid, resource.RLIMIT_FSIZE, (biggest, biggest))
            return
        with open(self.folder / 'filler', 'wb', buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def close(self) -> None:
        """Unmount."""
        if self.mounted:
            subprocess.run(['umount', str(self.folder)], check=True)


@pytest.fixture(scope='module')
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """A small disk for the recordings."""
    made = SmallDisk(tmp_path_factory.mktemp('telemetry') / 'state' / 'recordings')
    yield made
    made.close()


@pytest.fixture(scope='module')
def shared_site(disk: SmallDisk) -> Iterator[RunningSite]:
    """The whole demo site with its recordings on the small disk."""
    with RunningSite(disk.folder.parent.parent, '--set', 'nodes.recorder.min_free_mb=0') as running:
        yield running


@pytest.fixture
def site(shared_site: RunningSite) -> RunningSite:
    """The site in RUN at its target."""
    shared_site.device('world').set(house_power=1800.0, pv_power=0.0)
    shared_site.wait_for(lambda: shared_site.all_active() and near_target(shared_site), SETTLE_S, 'at the target')
    shared_site.watch_ticks()
    return shared_site


def control_goes_on(site: RunningSite, pid: int) -> None:
    """A changed load is covered by the same process, in time."""
    site.device('world').set(house_power=1000.0)
    site.wait_for(lambda: abs(site.battery_power() + 980.0) < 150.0, SETTLE_S, 'batteries follow the load')
    assert site.pid('control') == pid
    assert alive(pid)
    assert site.state_is(SystemState.RUN)
    print(lateness(site.traces))
    assert not site.late_ticks(), 'control ticks came late'


def test_killed_telemetry_does_not_touch_control_and_comes_back(site: RunningSite) -> None:
    control, telemetry = site.pid('control'), site.pid('telemetry')
    killed = time.monotonic()
    os.kill(telemetry, signal.SIGKILL)
    control_goes_on(site, control)
    site.wait_for(lambda: site.all_active() and all(site.heard_since(node, killed + 0.5) for node in TELEMETRY), 12.0,
                  'recorder and dashboard are back')
    assert site.pid('telemetry') != telemetry
    assert site.fault_ids() == []


def test_full_disk_ends_the_recording_with_a_fault_and_nothing_else(site: RunningSite, disk: SmallDisk) -> None:
    control, telemetry = site.pid('control'), site.pid('telemetry')
    site.wait_for(lambda: any(f.stat().st_size > 20_000 for f in disk.folder.rglob('*.mcap')), 15.0, 'a recording')
    disk.fill(telemetry)
    site.wait_for(lambda: 'recorder.disk_full' in site.faults('recorder'), 15.0, 'recorder.disk_full')
    print(f'mounted: {disk.mounted}; {site.faults("recorder")["recorder.disk_full"].text}')
    control_goes_on(site, control)
    assert site.pid('telemetry') == telemetry, 'telemetry was restarted'
    site.wait_for(site.all_active, 2.0, 'recorder and dashboard still live')
    assert list(disk.folder.rglob('*.mcap'))
