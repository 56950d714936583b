"""Endurance (`make soak`): memory, ticks and files of a site that simply runs on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from running_site import RunningSite

from bess_core.supervisor import memory_pss_mb

SOAK_S = float(os.environ.get('BESS_SOAK_S', '1800'))
GROWTH_MB = 8.0  # after the warm-up; a leak of one message per tick would be far above
WARM_UP_S = 120.0


@pytest.mark.soak
@pytest.mark.timeout(int(SOAK_S) + 600)
def test_memory_ticks_and_files_stay_bounded(tmp_path: Path) -> None:
    """Half an hour (BESS_SOAK_S): memory of every process flat, no tick lost, no fault, files open."""
    with RunningSite(tmp_path) as site:
        site.run_for(min(WARM_UP_S, SOAK_S / 4))
        pids = {'control': site.pid('control'), 'telemetry': site.pid('telemetry')}
        before = {name: memory_pss_mb(pid) for name, pid in pids.items()}
        files = {name: len(os.listdir(f'/proc/{pid}/fd')) for name, pid in pids.items()}
        site.traces.clear()
        end = time.monotonic() + SOAK_S
        while time.monotonic() < end:
            site.run_for(min(30.0, end - time.monotonic()))
        ticks = [trace.tick for _, trace in site.traces]
        assert ticks[-1] - ticks[0] + 1 == len(ticks), 'a decision was lost'
        for name, pid in pids.items():
            assert memory_pss_mb(pid) - before[name] < GROWTH_MB, f'{name} grows'
            assert len(os.listdir(f'/proc/{pid}/fd')) <= files[name] + 2, f'{name} leaks files'
        assert site.fault_ids() == [], site.words()
