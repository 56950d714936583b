"""Where profiles are: files of a user, and those in `config/devices` of the checkout or the installation."""

from __future__ import annotations

import difflib
import os
from functools import lru_cache
from pathlib import Path

from bess_core.installed import folders as installed_folders

from .loader import load
from .model import Profile, ProfileError


def folders() -> list[Path]:
    """Folders with installed profiles, the first wins. `BESS_DEVICES` may name one more, before all others."""
    found = [Path(p) for p in os.environ.get('BESS_DEVICES', '').split(os.pathsep) if p]
    return [*(f for f in found if f.is_dir()), *installed_folders('config', 'devices')]


def installed() -> list[str]:
    """Names of all installed profiles."""
    return sorted({f.stem for folder in folders() for f in folder.glob('*.yaml')})


def find(name: str) -> Path:
    """File of a profile: a path to a .yaml file, or the name of an installed one. Raises `ProfileError`."""
    if not name:
        raise ProfileError([f'profile is missing; installed: {", ".join(installed()) or "none"}'])
    if name.endswith('.yaml') or os.sep in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path.resolve()
        raise ProfileError([f'{name}: no such profile file'])
    for folder in folders():
        if (folder / f'{name}.yaml').is_file():
            return (folder / f'{name}.yaml').resolve()
    near = difflib.get_close_matches(name, installed(), n=3)
    hint = f'; did you mean {" or ".join(near)}?' if near else f'; installed: {", ".join(installed()) or "none"}'
    raise ProfileError([f'no profile {name!r}{hint}'])


@lru_cache(maxsize=256)
def _loaded(path: Path, _changed: int) -> Profile:
    return load(path, find)


def load_profile(name: str) -> Profile:
    """The profile of a name or path, checked. Raises `ProfileError`."""
    path = find(name)
    return _loaded(path, path.stat().st_mtime_ns)
