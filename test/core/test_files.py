"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bess_core.files import replace_file


def test_it_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / 'state.json'
    replace_file(path, 'ä1')
    replace_file(path, b'2')
    assert path.read_bytes() == b'2'
    assert os.listdir(path.parent) == ['state.json']


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / 'missing' / 'state.json', 'x')


def test_a_failure_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'state.json'
    replace_file(path, 'old')

    def full(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        replace_file(path, 'new')
    assert path.read_text() == 'old'
