"""The check of the import rules catches what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def rooms() -> ModuleType:
    """tools/check_rooms.py; tools/ is no package."""
    spec = importlib.util.spec_from_file_location('check_rooms', ROOT / 'tools' / 'check_rooms.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(rooms: ModuleType, tmp_path: Path) -> Path:
    """All rooms, each with one harmless module."""
    for room in rooms.ALLOWED:
        (tmp_path / room).mkdir()
        (tmp_path / room / '__init__.py').write_text('import json\nfrom . import values\n')
    return tmp_path


def test_a_tree_that_keeps_the_rules_passes(rooms: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / 'bess_control' / 'mode.py').write_text('from bess_core import log\nfrom bess_virtual.unit import Unit\n')
    (tree / 'bess_virtual' / 'unit_node.py').write_text('import rclpy\nfrom bess.msg import BatteryStatus\n')
    assert rooms.main(tree) == 0
    assert 'imports go down only' in capsys.readouterr().out


@pytest.mark.parametrize('file, source, said', [
    ('bess_core/a.py', 'from bess_control import pid\n', 'bess_core must not import bess_control'),
    ('bess_sim/a.py', 'import bess_drivers.device\n', 'bess_sim must not import bess_drivers'),
    ('bess_drivers/deep/a.py', 'def f():\n    from bess_sim import plant\n', 'bess_drivers must not import bess_sim'),
    ('bess_virtual/a.py', 'import rclpy\n', 'a pure module must not import rclpy'),
    ('bess_control/a.py', 'from bess.msg import BatteryStatus\n', 'a pure module must not import bess '),
    ('bess_telemetry/a.py', 'from bess_telemetry import page_node\n', 'a pure module must not import'),
    ('bess_telemetry/a.py', 'from .page_node import Page\n', 'a pure module must not import'),
    ('bess_telemetry/a.py', 'from . import page_node\n', 'a pure module must not import'),
    ('bess_telemetry/a.py', 'from bess_telemetry.page_node import Page\n', 'a pure module must not import'),
    ('bess_core/a.py', 'import launch.actions\n', 'launch must not be imported here'),
    ('bess_drivers/a.py', 'import pyiec61850\n', 'pyiec61850 must not be imported here'),
])
def test_each_kind_of_violation(
        rooms: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], file: str, source: str, said: str) -> None:
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(source)
    assert rooms.main(tree) == 1
    out = capsys.readouterr().out
    assert said in out
    assert f'{file}:{len(source.splitlines())}: ' in out  # the import is in the last line of each


def test_a_room_that_is_gone_is_reported(rooms: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / 'bess_sim' / '__init__.py').unlink()
    (tree / 'bess_sim').rmdir()
    assert rooms.main(tree) == 1
    assert 'bess_sim: no such room' in capsys.readouterr().out


def test_our_own_tree(rooms: ModuleType) -> None:
    assert rooms.check_tree(ROOT) == []


def test_the_gpl_program_and_the_rest_are_apart(rooms: ModuleType, tree: Path) -> None:
    (tree / 'iec61850_bridge').mkdir()
    (tree / 'iec61850_bridge' / 'bridge.py').write_text('import pyiec61850\n')
    (tree / 'test').mkdir(exist_ok=True)
    assert rooms.check_tree(tree) == []
    (tree / 'iec61850_bridge' / 'bridge.py').write_text('def f():\n    from bess_core import log\n')
    (tree / 'test' / 'test_x.py').write_text('import pyiec61850.mms\n')
    (tree / 'bess_drivers' / 'x.py').write_text('import bess_iec61850_bridge\n')
    found = rooms.check_tree(tree)
    assert [p.split(':')[0] for p in found] == ['bess_drivers/x.py', 'test/test_x.py', 'iec61850_bridge/bridge.py',
                                                'iec61850_bridge/bridge.py']
