"""Files that belong to the program, from a checkout and from installations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bess_core import installed
from bess_core.site import site_folders


def test_a_checkout_goes_before_installations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for prefix in ('env', 'ws'):
        (tmp_path / prefix / 'share' / 'bess' / 'config' / 'sites').mkdir(parents=True)
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'env'))
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path / "none"}:{tmp_path / "ws"}')
    checkout = Path(installed.__file__).parents[1] / 'config' / 'sites'
    assert site_folders() == [checkout, *(tmp_path / p / 'share/bess/config/sites' for p in ('env', 'ws'))]


def test_the_catalogue_of_an_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installed, 'roots', lambda: [tmp_path / 'packages', tmp_path / 'share'])
    with pytest.raises(FileNotFoundError, match='faults.yaml'):
        installed.fault_catalogue()
    (tmp_path / 'share' / 'docs').mkdir(parents=True)
    (tmp_path / 'share' / 'docs' / 'faults.yaml').write_text(
        '- {raised_by: x, faults: [{id: a.b, severity: ERROR}, {id: "c.*", severity: WARNING}]}\n')
    found = installed.fault_catalogue()
    assert list(found) == ['a.b', 'c.*']
    assert found['a.b'][0]['raised_by'] == 'x' and found['c.*'][1]['severity'] == 'WARNING'


def test_a_fault_manager_works_without_a_catalogue_but_not_with_a_wrong_path(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip('rclpy', reason='needs ROS 2')
    from bess_control.protection.fault_manager_node import _catalogue

    assert len(_catalogue('')) > 100
    monkeypatch.setattr(installed, 'roots', lambda: [tmp_path])
    assert _catalogue('') == ()
    with pytest.raises(FileNotFoundError):
        _catalogue(str(tmp_path / 'wrong.yaml'))
