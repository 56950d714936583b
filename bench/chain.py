"""A simulated site without ROS: the pure functions of the node graph, in the order of the graph.

Each class of `chain_devices`, `chain_batteries` and `chain_control` stands for one node type and does
what its callbacks do, with the same parameters and the same pure objects (gate, unit, aggregate,
partition, mode, manager). A queue stands for the executor: what a node publishes is handled in the
order in which it was sent, then what was posted. Delays and results are therefore those of
`bess_sim.conductor.simulate`.
"""

from __future__ import annotations

import time
from typing import Any

from bess_core.site import Site
from bess_sim.conductor import simulated_specs
from bess_sim.limit_watch import LimitWatch
from bess_sim.plant import Plant
from bess_sim.plant_config import BenchConfig

from .chain_batteries import Aggregate, Battery, Child, PartitionOwner, Unit
from .chain_control import Manager, Mode, SiteRoom
from .chain_devices import Converter, Driver, Loop, Meter

_KINDS: dict[str, type[Driver | Battery | PartitionOwner | Mode | Manager]] = {
    'bms': Driver, 'meter': Meter, 'converter': Converter, 'partition': PartitionOwner, 'mode': Mode,
    'manager': Manager,
}
#: They look on, or act only when a person presses or starts something: without them the energies are the same.
_ONLOOKERS = {'emergency_stop', 'fault_manager', 'event_log', 'system', 'test_controller'}
_BATTERIES: dict[str, type[Battery]] = {'unit': Unit, 'aggregate': Aggregate}


class Chain:
    """A site as pure objects. Raises ValueError for a node that has no counterpart here."""

    def __init__(self, site: Site, plant: Plant, config: BenchConfig, tick: float) -> None:
        self.loop = loop = Loop(plant, tick)
        specs = simulated_specs(site, plant, config, tick)
        self.parts: dict[str, Any] = {}
        for spec in specs:
            if spec.type in _ONLOOKERS:
                continue
            if spec.role in _KINDS:
                part: Any = _KINDS[spec.role](loop, spec)
            elif spec.role == 'battery' and spec.type in _BATTERIES:
                part = _BATTERIES[spec.type](loop, spec)
            elif spec.type == 'partition_child':
                part = Child(loop, spec, self.parts[spec.params.partition])
            elif spec.role == 'site':
                part = SiteRoom(loop, spec, site, self._of(Mode), {s.name for s in specs})
            else:
                raise ValueError(f'{spec.name}: a node of type {spec.type!r} has no counterpart in the pure chain')
            self.parts[spec.name] = part
        managers = self._of(Manager)
        if len(managers) != 1:
            raise ValueError(f'the pure chain needs exactly one power manager, the site has {len(managers)}')
        self.manager = managers[0]
        self.batteries = self._of(Battery)
        self.limits = LimitWatch()
        self._ticks = 0

    def _of(self, kind: type[Any]) -> list[Any]:
        return [p for p in self.parts.values() if isinstance(p, kind)]

    def run(self, hours: float) -> None:
        """Run so many simulated hours more."""
        loop, plant, tick = self.loop, self.loop.plant, self.loop.tick
        first = self._ticks + 1
        self._ticks += round(hours * 3600.0 / tick)
        for k in range(first, self._ticks + 1):
            plant.step(tick)
            loop.now = k * tick
            loop.run(k)
            for battery in self.batteries:
                self.limits.look(battery.name, battery.reading)


def simulate_chain(site: Site, *, hours: float = 24.0, tick: float = 1.0) -> dict[str, Any]:
    """As `bess_sim.conductor.simulate`, without ROS; `faults` are those of the last gates only.

    Raises ValueError for a site that cannot be simulated in this way.
    """
    if not site.simulation:
        raise ValueError(f'{site.path}: there is no section "simulation"')
    if not (tick > 0 and hours > 0):
        raise ValueError(f'tick ({tick} s) and hours ({hours} h) must be above 0')
    config = BenchConfig.model_validate(dict(site.simulation))
    plant = Plant(config)
    started = time.monotonic()
    chain = Chain(site, plant, config, tick)
    chain.run(hours)
    wall = time.monotonic() - started
    meter = plant.meter()
    return {
        'nodes_active': len(chain.parts),
        'control_ticks': chain.manager.ticks,
        'tick_jitter_p99_ms': None,
        'limit_violations': chain.limits.violations,
        'faults': sorted(f'{c.name}/{a.id}' for c in chain._of(Converter) for a in c.gate.alarms),
        'energy_import_wh': round(meter.energy_import, 3),
        'energy_export_wh': round(meter.energy_export, 3),
        'soc': {b.name: round(b.reading.soc, 6) for b in chain.batteries},
        'simulated_s': chain.loop.now,
        'wall_s': round(wall, 2),
        'speed': round(chain.loop.now / wall, 1),
    }


__all__ = ['Chain', 'simulate_chain']
