"""The counted energy over a restart: a small file, replaced as a whole."""

from __future__ import annotations

import json
from math import isfinite, nan
from pathlib import Path

from bess_core.files import replace_file


def load(path: Path, full: float) -> tuple[float, str]:
    """(Wh, '') as it was stored; (NaN, reason) when there is nothing usable for a battery of `full` Wh."""
    try:
        found = json.loads(path.read_text(encoding='ascii'))
        energy, of = float(found['energy_wh']), float(found['full_wh'])
    except FileNotFoundError:
        return nan, 'nothing is stored yet'
    except (OSError, ValueError, TypeError, KeyError) as error:
        return nan, f'{path}: {type(error).__name__}: {error}'
    if not (isfinite(energy) and 0.0 <= energy <= of and abs(of - full) <= 1e-6 * full):
        return nan, f'{path}: {energy:g} of {of:g} Wh does not fit a battery of {full:g} Wh'
    return energy, ''


def save(path: Path, energy: float, full: float) -> str:
    """Store it; returns what went wrong, '' = nothing. An unknown energy is not stored."""
    if not isfinite(energy):
        return ''
    try:
        replace_file(path, json.dumps({'energy_wh': energy, 'full_wh': full}))
    except OSError as error:
        return f'{path}: {error.strerror or error}'
    return ''
