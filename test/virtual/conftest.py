"""The example package outside the tree, installed as anybody would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / 'examples' / 'simple_battery'


@pytest.fixture(scope='session')
def example_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which pip installed the example package; nothing is fetched."""
    folder = tmp_path_factory.mktemp('example')
    source, target = folder / 'source', folder / 'target'
    shutil.copytree(EXAMPLE, source)
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index',
         '--disable-pip-version-check', '--target', str(target), str(source)],
        capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def example(example_target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example package can be imported and its type `bucket` used, for one test."""
    from bess_core import plugins

    monkeypatch.syspath_prepend(str(example_target))
    plugins.forget()
    yield example_target
    monkeypatch.undo()
    plugins.forget()
