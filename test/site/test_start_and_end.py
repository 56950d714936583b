"""How `bess up` begins and ends: by time, by Ctrl-C, on measured data of a house, with a dead device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from running_site import (
    INVERTERS,
    REPOSITORY,
    SETTLE_S,
    TELEMETRY,
    RunningSite,
    command,
    lateness,
    near_target,
    nodes_of,
    write_site,
)

from bess_sim.control_client import ControlError

SUMMARY_KEYS = {'nodes_active', 'control_ticks', 'tick_jitter_p99_ms', 'limit_violations', 'faults',
                'energy_import_wh', 'energy_export_wh'}


def test_up_for_some_seconds_ends_by_itself_with_a_summary(tmp_path: Path) -> None:
    path = write_site(tmp_path / 'site.yaml')
    run = subprocess.run(command(path, tmp_path / 'state', '--for', '8'), cwd=REPOSITORY, capture_output=True,
                         text=True, timeout=40, check=False)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert set(summary) >= SUMMARY_KEYS
    assert summary['nodes_active'] == len(nodes_of(path))
    assert summary['control_ticks'] >= 20
    assert summary['tick_jitter_p99_ms'] >= 0.0
    assert summary['limit_violations'] == 0
    assert summary['faults'] == [], run.stderr
    assert summary['energy_import_wh'] >= 0.0
    assert summary['energy_export_wh'] >= 0.0


def test_ctrl_c_ends_in_order_with_the_inverters_at_zero(tmp_path: Path) -> None:
    with RunningSite(tmp_path, without=TELEMETRY) as site:
        site.device('world').set(house_power=2500.0, pv_power=0.0)
        site.wait_for(lambda: site.battery_power() < -1500.0, SETTLE_S)
        before, pids, asked = site.battery_power(), site.own_pids(), time.monotonic()
        last: dict[str, Any] = {}

        def devices_ended() -> bool:
            try:
                last['orders'] = {name: site.orders(name, asked) for name in INVERTERS}
                last['power'] = site.battery_power()
            except ControlError:
                return True
            return False

        site.process.send_signal(signal.SIGINT)
        site.wait_for(devices_ended, 8.0, 'the end of the devices')
        for name, orders in last['orders'].items():
            assert orders and orders[-1][1] == 0, f'{name}: {orders}'
            print(f'{name}: zero on the wire {(orders[-1][0] - asked) * 1e3:.0f} ms after Ctrl-C')
        assert abs(last['power']) < 0.2 * abs(before)
        code, summary = site.ended(pids)
        assert code == 0, site.words()
        assert summary['nodes_active'] == len(site.nodes_in_file())
        assert summary['limit_violations'] == 0
        assert not (site.state / 'sim' / 'bench.json').exists()
        ended = site.events('process ends', 'control')
        assert len(ended) == 1


def test_site_on_measured_house_data(shared_data: Path, tmp_path: Path) -> None:
    """A sunny noon of the measured house: batteries charge, grid at its target as far as limits allow."""
    profile = shared_data / 'load_pv' / 'emhass_home_pv_load_30min.csv'
    if not profile.exists():
        pytest.skip(f'no measured house at {profile}')

    def measured(data: dict[str, Any]) -> None:
        data['simulation'] |= {
            'start': '2022-05-08T13:10:00',
            'house': {'profile': str(profile), 'time': 'timestamp', 'load': 'P_Load'},
            'pv': {'profile': str(profile), 'time': 'timestamp', 'pv': 'P_PV'},
        }

    with RunningSite(tmp_path, without=TELEMETRY, edit=measured) as site:
        world = site.world()
        rows = [line.split(',') for line in profile.read_text().splitlines() if line.startswith('2022-05-08 13:')]
        loads = [float(row[2]) for row in rows]
        assert min(loads) * 0.9 - 50 <= abs(world['house_power']) <= max(loads) * 1.1 + 50
        assert abs(world['pv_power']) > 500.0
        site.wait_for(lambda: near_target(site), SETTLE_S, 'grid power at its target')
        site.holds(lambda: near_target(site), 2.0, 'grid power leaves its target')
        assert site.battery_power() > 100.0  # more sun than load
        code, summary = site.end()
        assert code == 0
        assert summary['limit_violations'] == 0
        assert summary['faults'] == []


def test_dead_device_leaves_the_rest_running(tmp_path: Path) -> None:
    with RunningSite(tmp_path, without=TELEMETRY) as site:
        site.device('world').set(house_power=1500.0, pv_power=0.0)
        site.wait_for(lambda: near_target(site), SETTLE_S, 'grid power at its target')
        site.watch_ticks()
        os.kill(site.bench()['devices']['inverter_b']['pid'], signal.SIGKILL)
        site.wait_for(lambda: 'comm.disconnected' in site.faults('inverter_b'), 8.0, 'a fault of inverter_b')
        site.wait_for(lambda: site.inverter_powers()['unit_a'] < -1200.0, SETTLE_S, 'the other battery takes over')
        print(f'with a dead device: {lateness(site.traces)}; {site.fault_ids()}; {site.trace().text}')
        assert not site.late_ticks()
        assert {f.split('/')[0] for f in site.fault_ids()} <= {'inverter_b', 'unit_b', 'all', 'house', 'grid', 'split'}
        code, summary = site.end()
        assert code == 0
        assert 'inverter_b/comm.disconnected' in summary['faults']
