"""`bess commission` of a site whose meter is wired the wrong way round: refused, and said which is wrong and why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from running_site import REPOSITORY, TELEMETRY, RunningSite


def commission(site: RunningSite, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'bess_core.cli.main', 'commission', str(site.site), '--state', str(site.state),
         '--by', 'eva', *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=False)


def test_a_meter_that_is_wired_the_wrong_way_round_is_refused(tmp_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data['simulation']['devices']['meter']['reversed'] = True
        data['nodes']['site']['mode'] = ''

    with RunningSite(tmp_path, without=(*TELEMETRY, 'self_consumption'), edit=edit) as site:
        site.device('world').set(house_power=500.0, pv_power=0.0)
        site.wait_for(lambda: -550.0 < site.meter().active_power < -450.0, 5.0, 'a load that looks like a generator')
        done = commission(site, '--power', '600', '--hold', '3', '--item', 'signs.inverter_a')
        print(done.stdout, done.stderr)
        assert done.returncode == 1
        assert '[FAIL] inverter_a follows a small setpoint, and battery and meter agree in sign' in done.stdout
        explained = next(line for line in done.stdout.splitlines() if 'battery and meter disagree' in line)
        assert 'charging inverter_a lowered the import at meter' in explained
        assert 'change `invert` of meter' in explained
        assert 'refused; failed: signs.inverter_a' in done.stdout.splitlines()[-1]
        assert 'ok: converter inverter_a' in done.stdout and 'FAIL: meter meter' in done.stdout
        report = json.loads((site.state / 'commissioning' / 'report.json').read_text())
        assert report['verdict'] == 'refused'
        shown = commission(site, '--show')
        assert shown.returncode == 1 and 'battery and meter disagree' in shown.stdout
        site.wait_for(site.at_zero, 5.0, 'at rest afterwards')
