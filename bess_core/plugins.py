"""Node types, drivers and commands from entry points: ours and those of other packages alike.

Groups: ``bess.nodes`` (name -> `BessNode` class), ``bess.drivers`` (name -> device class of
`bess_drivers.device`), ``bess.batteries`` (name -> class with `refresh` and `set_current`, see
`bess_drivers.simple`), ``bess.modes`` (name -> mode class), ``bess.commands`` (name -> CLI command),
``bess.watchdogs`` (name -> class with `start`, `feed` and `stop`: see `bess_drivers.io.hardware_watchdog`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

NODES = 'bess.nodes'
DRIVERS = 'bess.drivers'
BATTERIES = 'bess.batteries'
MODES = 'bess.modes'
COMMANDS = 'bess.commands'
WATCHDOGS = 'bess.watchdogs'


class PluginError(Exception):
    """A plug-in is unknown, defined twice differently, or cannot be imported."""


@cache
def _installed() -> Any:  # a type of its own in Python 3.11
    """Those of all groups: to find them takes a look into every installed distribution."""
    return entry_points()


@cache
def available(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name. An ament install lists ours once per room: equal ones are one."""
    found: dict[str, EntryPoint] = {}
    for entry in _installed().select(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise PluginError(f'{group} {entry.name!r} is defined twice: {other.value} and {entry.value}')
    return found


@cache
def load(group: str, name: str) -> Any:
    """The object behind an entry point. Raises `PluginError` naming what exists."""
    found = available(group)
    if name not in found:
        raise PluginError(f'unknown {group} {name!r}; known: {", ".join(sorted(found)) or "none"}')
    try:
        return found[name].load()
    except Exception as error:
        raise PluginError(f'{group} {name!r} ({found[name].value}) cannot be loaded: {error}') from error


def forget() -> None:
    """Look again: packages were installed or removed meanwhile."""
    for kept in (_installed, available, load):
        kept.cache_clear()
