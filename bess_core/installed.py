"""Files that belong to the program: in a checkout beside the packages, else in the share folder of the installation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CATALOGUE = Path('docs') / 'faults.yaml'


def roots() -> list[Path]:
    """Where they may lie, the first wins: checkout, Python environment (wheel), ROS 2 workspaces (colcon)."""
    workspaces = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    return [Path(__file__).parents[1], *(p / 'share' / 'bess' for p in (Path(sys.prefix), *workspaces))]


def folders(*parts: str) -> list[Path]:
    """The folders of this name that exist, in the order of `roots`."""
    return [f for root in roots() if (f := root.joinpath(*parts)).is_dir()]


def fault_catalogue(path: str = '') -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Fault id (or pattern) -> its group and its entry, of a catalogue file; '' = the installed one.

    Raises OSError when there is none, yaml.YAMLError for other content.
    """
    import yaml

    file = Path(path) if path else next((f for r in roots() if (f := r / CATALOGUE).is_file()), roots()[0] / CATALOGUE)
    groups = yaml.load(file.read_text(encoding='utf-8'), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    return {str(e['id']): (group, e) for group in groups for e in group['faults']}
