"""The `simulation` section of a site file, checked as the bench would, without starting anything."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices import factory
from bess_sim.plant import Plant
from bess_sim.plant_config import BenchConfig
from bess_sim.shared_plant import SharedPlant

Place = tuple[Any, ...]


def problems(simulation: Mapping[str, Any]) -> list[tuple[Place, str]]:
    """Each mistake as (keys that lead to it, what is wrong and what is allowed); empty = the bench can start."""
    try:
        config = BenchConfig.model_validate(dict(simulation))
    except ValidationError as error:
        return [_problem(simulation, dict(problem)) for problem in error.errors()]
    try:
        plant = Plant(config)
    except (ValueError, OSError) as error:  # a profile that cannot be read
        return [_placed(simulation, (), str(error))]
    return list(_devices(config, SharedPlant.of(plant)))


def _devices(config: BenchConfig, shared: SharedPlant) -> Iterator[tuple[Place, str]]:
    used: dict[str, str] = {}
    for name, device in config.devices.items():
        place = ('devices', name)
        try:
            factory.build(device, shared, DeviceFaults())
        except (ValueError, KeyError) as error:
            text = str(error) if isinstance(error, ValueError) else f'no unit {error}'
            yield place, text
            continue
        if not device.address.endswith(':0') and device.address in used:
            yield (*place, 'address'), f'{device.address} is already used by {used[device.address]!r}'
        used.setdefault(device.address, name)


def _problem(simulation: Mapping[str, Any], error: dict[str, Any]) -> tuple[Place, str]:
    place = tuple(error['loc'])
    if error['type'] == 'extra_forbidden':
        known = _keys_at(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        return place, f'unknown key{hint}; allowed: {", ".join(known) or "none"}'
    if error['type'] == 'missing':
        return place, 'missing'
    if error['type'] == 'value_error':
        return _placed(simulation, place, str(error['msg']).removeprefix('Value error, '))
    shown = repr(error.get('input'))
    return place, f'{shown if len(shown) <= 80 else shown[:77] + "..."}: {error["msg"]}'


def _placed(simulation: Mapping[str, Any], place: Place, text: str) -> tuple[Place, str]:
    """A text that starts with the keys it is about ("devices.meter.unit: ...") is put there."""
    match = re.match(r'([\w.]+): ', text)
    if place or match is None:
        return place, text
    keys = tuple(match[1].split('.'))
    inside: Any = simulation
    for key in keys:
        if not isinstance(inside, Mapping) or key not in inside:
            return place, text
        inside = inside[key]
    return keys, text[match.end():]


def _keys_at(place: Place) -> list[str]:
    """Keys that are allowed at a place of the section."""
    here: Any = BenchConfig
    for key in place:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(key))
            here = field.annotation if field is not None else None
        else:
            here = next((a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
