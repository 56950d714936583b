"""What `ros2 launch bess site.launch.py` starts: the processes of a site as commands, without launch itself.

Every process group is a `container`, which brings its nodes up in order, and a `watchdog` for it.
Simulated devices, if the site has some, are one process more, which is to end last.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cli.up import default_state
from .site import Site, SiteError, find, load

STOP_S = 8.0  # how long a process may take to end in order
RESTART = 3  # exit code of `watchdog`: its container has to be started again
RESTART_S = 1.0  # from the announcement of a restart to the end of the processes: all goes to zero meanwhile
SITE_RESTART = 4  # exit code of `watchdog`: the site is in RESTART, all containers are to end in order and start again
WORDS = {'true': True, 'false': False, '1': True, '0': False}


@dataclass(frozen=True)
class Group:
    """One process group: its nodes in bring-up order, and the two commands that belong together."""

    name: str
    nodes: tuple[str, ...]
    container: tuple[str, ...]
    watchdog: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """The simulated devices: a command that reads `file`."""

    command: tuple[str, ...]
    folder: Path
    file: Path
    content: str

    def prepare(self) -> None:
        """Write what the command reads, into a new folder. Raises OSError."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.file.write_text(self.content)


@dataclass(frozen=True)
class Plan:
    """All processes of a site; groups in the order in which they are ended."""

    site: Site
    state: Path
    groups: tuple[Group, ...]
    bench: Bench | None = None

    @property
    def stop_s(self) -> float:
        """Longest time in s until all have ended in order, one after the other."""
        return STOP_S * (len(self.groups) + (self.bench is not None))


def boolean(name: str, text: str) -> bool:
    """A launch argument that is true or false. Raises `SiteError`."""
    try:
        return WORDS[text.strip().lower()]
    except KeyError:
        raise SiteError([f'{name}:={text}: must be true or false']) from None


def plan(site: str, *, state: str = '', settings: str = '', node: str = '', sim: bool = True,
         console: str = 'warning', python: str = sys.executable) -> Plan:
    """Processes for launch arguments as typed: site file or name, state folder ('' = the usual one),
    ``KEY=VALUE`` settings divided by spaces, one node only ('' = all). Raises `SiteError`.
    """
    path = find(site).absolute()
    folder = Path(state).expanduser().absolute() if state else default_state(path.stem)
    try:
        overrides = shlex.split(settings)
    except ValueError as error:
        raise SiteError([f'set:={settings}: {error}']) from None
    checked = load(path, overrides=overrides, state=folder)
    if node and node not in (names := [n.name for n in checked.nodes]):
        raise SiteError([f'{path}: no node {node!r}; nodes: {", ".join(names)}'])
    return plan_site(checked, folder, overrides=overrides, node=node, sim=sim, console=console, python=python)


def plan_site(site: Site, state: Path, *, overrides: Sequence[str] = (), node: str = '', sim: bool = True,
              console: str = 'warning', python: str = sys.executable) -> Plan:
    """Processes for a checked site whose file was read with these overrides."""
    only = ('--node', node) if node else ()
    common = ('--site', str(site.path), '--state', str(state),
              *(word for setting in overrides for word in ('--set', setting)))
    groups = []
    for process in site.processes:
        nodes = tuple(n.name for n in site.nodes if n.process == process and node in ('', n.name))
        if not nodes:
            continue
        words = (*common, '--process', process, *only, '--supervised')
        groups.append(Group(
            process, nodes, (python, '-m', 'bess_core.container', *words, '--bring-up', '--console', console),
            (python, '-m', 'bess_core.watchdog', *words)))
    return Plan(site, state, tuple(groups), _bench(site, state, python) if sim and site.simulation else None)


def _bench(site: Site, state: Path, python: str) -> Bench:
    folder = state / 'sim'
    file = folder / 'simulation.json'
    return Bench((python, '-m', 'bess_core.hold', python, '-m', 'bess_sim.bench', str(file), '--run-dir', str(folder)),
                 folder, file, json.dumps({'simulation': site.simulation}, default=str))


__all__ = ['RESTART', 'RESTART_S', 'SITE_RESTART', 'STOP_S', 'Bench', 'Group', 'Plan', 'SiteError', 'boolean', 'plan',
           'plan_site']
