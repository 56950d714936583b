"""The control chain alone: 8 modes and 12 limits resolved for 10 units, one tick at a time."""

from __future__ import annotations

import time
from math import nan
from typing import Any

import numpy as np

from bess_control.bounds import PowerManagerParams
from bess_control.grid_support.modes import FrequencyWatt, VoltWatt
from bess_control.manager import PowerManager
from bess_control.modes.base import Signal, View
from bess_control.modes.charging import DelayedCharge
from bess_control.modes.connection import FeedInLimit, LoadLimit
from bess_control.modes.peak_shaving import PeakShaving
from bess_control.modes.reserves import EmergencyReserve, LimitTotalDischarge
from bess_control.modes.self_consumption import SelfConsumption
from bess_control.proposals import Proposal, ProposalBook
from bess_core.params import build
from bess_core.values import BatteryReading, Contactor, MeterReading, Quality
from bess_core.values import Mode as BatteryMode
from bess_virtual.allocation import allocate

from .figures import Figure, percentile

UNITS = 10
MODES: list[tuple[Any, dict[str, Any]]] = [
    (SelfConsumption, {}), (PeakShaving, {'import_limit': 30e3, 'export_limit': 20e3}),
    (FeedInLimit, {'max_feed_in': 15e3}), (LoadLimit, {'input': 'contact'}), (DelayedCharge, {}),
    (EmergencyReserve, {}), (LimitTotalDischarge, {}), (FrequencyWatt, {'rated_power': 50e3}),
]
assert len(MODES) == 8


def _limits(now: float, number: int) -> list[Proposal]:
    """Proposals of limits, as limit nodes send them."""
    return [Proposal(source=f'limit_{i}', battery='b', priority=200 + i, min_power=-40e3 - 1e3 * i,
                     max_power=40e3 + 1e3 * i, lease=3.0, reason=f'limit {i}', time=now) for i in range(number)]


def tick_times(ticks: int) -> list[float]:
    """Seconds of each tick: modes, book, manager, allocation over the units."""
    rng = np.random.default_rng(3)
    modes = [cls(build(cls.Params, params), cls.__name__, 'b', 'meter') for cls, params in MODES]
    # Site, battery, contactor, battery limits, configured, grid connection, circle, ramp: 8 of the manager; volt-watt
    # and three more as limit nodes.
    manager = PowerManager(PowerManagerParams(
        battery='b', max_charge_power=45e3, max_discharge_power=45e3, max_apparent_power=48e3, import_limit=40e3,
        export_limit=30e3, ramp_rate=20e3))
    volt_watt = VoltWatt(build(VoltWatt.Params, {'rated_power': 50e3}), 'volt_watt', 'b', 'meter')
    book = ProposalBook()
    room, energy = rng.uniform(1e3, 9e3, UNITS), rng.uniform(1e3, 9e3, UNITS)
    low, high = np.full(UNITS, -5e3), np.full(UNITS, 5e3)
    granted, power, load, times = 0.0, 0.0, 5e3, []
    for k in range(ticks):
        now = 100.0 + 0.1 * k
        load += float(rng.normal(0.0, 200.0))
        load = min(max(load, -25e3), 25e3)
        power += 0.3 * (granted - power)
        battery = BatteryReading(
            time=now, newest=now, quality=Quality.OK, mode=BatteryMode.IDLE, contactor=Contactor.CLOSED, voltage=800.0,
            power=power, soc=0.5, energy=50e3, energy_full=100e3, max_charge_power=50e3, max_discharge_power=50e3)
        meter = MeterReading(time=now, sequence=k + 1, quality=Quality.OK, voltage=(231.0,) * 3, frequency=50.01,
                             active_power=load + power, reactive_power=nan)
        view = View(now=now, wall=1.77e9 + now, battery=battery, meter=meter, granted=granted,
                    signals={'input': Signal(False, now)})
        started = time.thread_time()  # of this thread: what other programs of the machine do is not counted
        for mode in (*modes, volt_watt):
            proposal = mode.decide(view)
            if proposal is not None:
                book.put(proposal, now)
        for proposal in _limits(now, 3):
            book.put(proposal, now)
        granted = manager.tick(now, book, battery, meter).granted
        allocate(granted, room, energy, low, high)
        times.append(time.thread_time() - started)
    return times


def measure(ticks: int = 5000) -> list[Figure]:
    """Median and 99th percentile of a tick."""
    times = [1e3 * t for t in tick_times(ticks)]
    return [Figure('control chain, 8 modes, 12 limits, 10 units: median CPU time', percentile(times, 0.5), 'ms', 1.0),
            Figure('control chain, 8 modes, 12 limits, 10 units: 99 % CPU time', percentile(times, 0.99), 'ms', 3.0)]
