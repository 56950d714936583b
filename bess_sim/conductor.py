"""`bess sim`: the node graph of a site on simulated time, in lock-step with the physics.

All nodes run in this process on one executor. Each step moves the physics on by one tick, then calls
what is due, first what measures, then what decides, and lets all messages settle before going on. Messages
go through an exchange (`bess_core.exchange`), or with `middleware` through DDS as on a running site: it hands
them over synchronously within a process and the executor keeps their order. Either way a run is
deterministic: the same site file and seed give the same result.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bess_core import plugins
from bess_core.clock import SimClock
from bess_core.container import Container
from bess_core.exchange import Exchange
from bess_core.runtime import Runtime
from bess_core.site import NodeSpec, Site
from bess_core.ticker import SimTicker

from .lockstep import Conductor, Progress
from .plant import Plant
from .plant_config import BenchConfig, parse_start
from .plant_devices import BY_ROLE, PlantDevice, PlantDeviceParams

TELEMETRY = ('recorder', 'dashboard')

#: Parameters that are durations, by what a slower tick means for them.
_PERIODS = ('period', 'gate_period', 'tick_s', 'max_step_s')
_AGES = ('lease', 'lease_s', 'max_age', 'max_meter_age_s', 'max_battery_age_s', 'longest_lease', 'max_bms_age',
         'bms_max_age')
_ENDS = ('invalid_after', 'battery_invalid_after_s', 'bms_invalid_after')


def at_tick(parameters: Any, tick: float) -> Any:
    """Parameters with periods of at least one tick and ages and leases that bear it."""
    changes = {}
    for f in fields(parameters):
        value = getattr(parameters, f.name)
        if not isinstance(value, float) or value <= 0.0:
            continue
        floor = tick if f.name in _PERIODS else 3 * tick if f.name in _AGES else 10 * tick if f.name in _ENDS else 0.0
        if value < floor:
            changes[f.name] = floor
    return replace(parameters, **changes) if changes else parameters


def bound(role: str, plant: Plant) -> type[PlantDevice]:
    """Device class of a role that reads this plant."""
    base: Any = BY_ROLE[role]

    def wired(self: PlantDevice, params: PlantDeviceParams, read_only: bool = False) -> None:
        base.__init__(self, params, read_only)
        self.plant = plant

    return type(base.__name__, (base,), {'__doc__': base.__doc__, '__init__': wired})


def simulated_specs(site: Site, plant: Plant, config: BenchConfig, tick: float) -> list[NodeSpec]:
    """The nodes of a site with drivers that read the plant; without telemetry.

    Raises ValueError for a driver that no simulated device stands in for.
    """
    shell = plugins.load('bess.shells', 'driver')
    specs = []
    for spec in site.nodes:
        if spec.role in TELEMETRY:
            continue
        parameters = spec.params
        cls = spec.cls
        if hasattr(parameters, 'address'):
            device = config.devices.get(spec.name)
            if device is None:
                known = ', '.join(config.devices) or 'none'
                raise ValueError(f'{spec.name}: no simulated device of this name in simulation.devices; known: {known}')
            cls = shell(bound(spec.role, plant))
            values = {f.name: getattr(parameters, f.name) for f in fields(cls.Shell)}
            parameters = cls.Params(**values, address=f'plant:{spec.name}',
                                    plant_unit=device.unit or str(device.options.get('measures', '')),
                                    plant_options=device.options)
        specs.append(replace(spec, cls=cls, params=at_tick(parameters, tick)))
    return specs


@contextmanager
def _alone() -> Iterator[None]:
    """No discovery beyond this process: simulated orders must never reach a running site of the same name."""
    key = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
    before = os.environ.get(key)
    os.environ[key] = 'OFF'
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def simulate(site: Site, state_dir: Path, *, hours: float = 24.0, tick: float = 1.0,
             progress: Progress | None = None, ros_args: list[str] | None = None,
             middleware: bool = False) -> dict[str, Any]:
    """Run a site with a `simulation` section for so many simulated hours; the summary as plain values.

    With `middleware` messages go through DDS as on a running site, which takes longer; the result is the same.

    Raises ValueError for a site that cannot be simulated.
    """
    if not site.simulation:
        raise ValueError(f'{site.path}: there is no section "simulation"')
    if not (tick > 0 and hours > 0):
        raise ValueError(f'tick ({tick} s) and hours ({hours} h) must be above 0')
    config = BenchConfig.model_validate(dict(site.simulation))
    plant = Plant(config)
    start, _ = parse_start(config.start)
    clock = SimClock(start.timestamp())
    started = time.monotonic()
    with _alone(), Runtime(ros_args) as runtime:
        container = Container(runtime, site, 'sim', state_dir, clock=clock, ticker=SimTicker(clock))
        container.ctx.heartbeat_s = 0.0
        container.ctx.diagnostics_s = 0.0
        container.ctx.exchange = None if middleware else Exchange()  # nobody else is to listen: see `_alone`
        container.make(simulated_specs(site, plant, config, tick))
        conductor = Conductor(runtime, container, plant, tick, hours * 3600.0, progress)
        container.bring_up()
        conductor.start()
        gc.collect()
        gc.freeze()  # what exists now stays: collections need not walk it
        try:
            runtime.spin()
        finally:
            gc.unfreeze()
        if conductor.error is not None:
            raise conductor.error
        wall = time.monotonic() - started
        meter = plant.meter()
        result = {
            'nodes_active': sum(n.is_active for n in container.nodes),
            'control_ticks': sum(n.progress for n in container.nodes if n.role == 'manager'),
            'tick_jitter_p99_ms': None,
            'limit_violations': conductor.limits.violations,
            'faults': sorted({f'{n.get_name()}/{r.id}' for n in container.nodes for r in n.faults.records}),
            'energy_import_wh': round(meter.energy_import, 3),
            'energy_export_wh': round(meter.energy_export, 3),
            'soc': {n.get_name(): round(n.reading.soc, 6) for n in container.nodes if n.role == 'battery'},
            'simulated_s': clock.now(),
            'wall_s': round(wall, 2),
            'speed': round(clock.now() / wall, 1),
        }
        container.close()
    return result


__all__ = ['at_tick', 'simulate', 'simulated_specs']
