"""Climate profiles: a YAML file per cabinet size (`config/climate/`), checked as strictly as a site file. No ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from bess_core.site import site_folders

from .zone import OUTPUTS, Actuator, Zone, ZoneParams

MAX_BYTES = 100_000


class ProfileError(ValueError):
    """A profile that cannot be used."""


def load(name: str) -> tuple[ZoneParams, ...]:
    """Zones of a profile: a path, or the name of an installed one. Raises `ProfileError`."""
    path = Path(name)
    if not path.is_file():
        folders = [f.parent / 'climate' for f in site_folders()]
        found = [f / f'{name}.yaml' for f in folders if (f / f'{name}.yaml').is_file()]
        if not found:
            known = sorted({f.stem for folder in folders for f in folder.glob('*.yaml')})
            raise ProfileError(f'{name}: no such climate profile; installed: {", ".join(known) or "none"}')
        path = found[0]
    try:
        text = path.read_text(encoding='utf-8')
        if len(text) > MAX_BYTES:
            raise ProfileError(f'{path}: larger than {MAX_BYTES // 1000} kB')
        return parse(yaml.safe_load(text), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ProfileError(f'{path}: cannot be read: {error}') from error


def parse(data: Any, where: str = 'profile') -> tuple[ZoneParams, ...]:
    """Zones from plain values: ``zones: {name: {fan: {...}, charge_min: 0, ...}}``. Raises `ProfileError`."""
    if (not isinstance(data, Mapping) or set(data) - {'description', 'zones'}
            or not isinstance(data.get('zones'), Mapping)):
        raise ProfileError(f'{where}: needs "zones" (a mapping), and may have "description"')
    zones = []
    for name, values in data['zones'].items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ProfileError(f'{where}: zone {name!r}: letters, digits and underscores')
        zone = _build(ZoneParams, values, f'{where}: {name}', name=name)
        if problem := zone.problem():
            raise ProfileError(f'{where}: {problem}')
        Zone(zone)
        zones.append(zone)
    if not zones:
        raise ProfileError(f'{where}: no zone')
    return tuple(zones)


def _build(kind: Any, values: Any, where: str, **given: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ProfileError(f'{where}: not a mapping')
    known = {f.name: f for f in fields(kind) if f.name not in given}
    out = dict(given)
    for key, value in values.items():
        if key not in known:
            raise ProfileError(f'{where}: unknown key {key!r}; allowed: {", ".join(known)}')
        if key in OUTPUTS:
            out[key] = _build(Actuator, value, f'{where}: {key}')
        elif key == 'steps':
            if not isinstance(value, bool):
                raise ProfileError(f'{where}: steps must be true or false')
            out[key] = value
        elif key == 'plausible':
            if not isinstance(value, list) or len(value) != 2:
                raise ProfileError(f'{where}: plausible must be two temperatures')
            out[key] = (_number(value[0], f'{where}: {key}'), _number(value[1], f'{where}: {key}'))
        else:
            out[key] = _number(value, f'{where}: {key}')
    missing = [n for n, f in known.items() if f.default is MISSING and n not in out]
    if missing:
        raise ProfileError(f'{where}: {missing[0]} is missing')
    return kind(**out)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ProfileError(f'{where} is {value!r}, must be a number')
    return float(value)


def describe(zone: ZoneParams) -> str:
    """One line for people."""
    parts = [f'{n} {a.start:g}/{a.stop:g} degC' for n, a in zone.actuators.items()]
    return f'{zone.name}: {", ".join(parts)}; charging {zone.charge_min:g} to {zone.charge_max:g} degC'


