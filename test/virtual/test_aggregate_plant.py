"""An aggregate in closed loop with the simulated plant: cells, inverters, losses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bess_core.values import BatteryReading, Contactor, ConverterReading, ConverterState, Mode, Quality
from bess_sim.plant import Plant
from bess_sim.plant_config import PlantConfig
from bess_virtual.aggregate import combine, split
from bess_virtual.balancing import Goal, equalise
from bess_virtual.member import view
from bess_virtual.unit import Ages, UnitParams, merge

AGES = (2.0, 10.0)
TICK = 2.0  # s
UNITS = {
    'small': {'pack': {'chemistry': 'lfp', 'cells': 16, 'capacity_ah': 50.0, 'initial_soc': 0.55}, 'inverter': {}},
    'big': {'pack': {'chemistry': 'lfp', 'cells': 16, 'capacity_ah': 150.0, 'initial_soc': 0.75}, 'inverter': {}},
    'other': {'pack': {'chemistry': 'nmc', 'cells': 14, 'capacity_ah': 80.0, 'initial_soc': 0.45}, 'inverter': {}},
}


class Loop:
    """Three units of different size, chemistry and state, as one."""

    def __init__(self) -> None:
        self.plant = Plant(PlantConfig.model_validate(
            {'units': UNITS, 'house': {'profile': 'none'}, 'pv': {'profile': 'none'}}))
        self.failed: set[str] = set()
        self.orders: dict[str, float] = {}

    def readings(self) -> list[BatteryReading]:
        now = self.plant.time
        out = []
        for name in UNITS:
            p, c = self.plant.pack(name), self.plant.inverter(name)
            bms = BatteryReading(
                time=now, newest=now, quality=Quality.OK, contactor=Contactor.CLOSED,
                mode=Mode.FAULT if name in self.failed else Mode.IDLE, voltage=p.voltage, current=p.current,
                charge=p.charge, charge_full=p.charge_full, energy=p.energy, energy_full=p.energy_full, soc=p.soc,
                max_charge_current=p.max_charge_current, max_discharge_current=p.max_discharge_current)
            converter = ConverterReading(
                time=now, quality=Quality.OK, state=ConverterState.RUNNING, active_power=c.active_power,
                dc_voltage=c.dc_voltage, max_charge_power=c.max_charge_power,
                max_discharge_power=c.max_discharge_power, max_apparent_power=c.max_apparent_power)
            out.append(merge(bms, converter, now, Ages(), UnitParams()))
        return out

    def run(self, power: float, goal: Goal | None = None) -> Iterator[BatteryReading]:
        """One tick after the other."""
        while True:
            readings, now = self.readings(), self.plant.time
            shares = split(power, readings, now, *AGES).powers.tolist()
            if goal is not None:
                moved = equalise(goal, [view(r, now, *AGES) for r in readings], shares).powers.tolist()
                shares = [s + t for s, t in zip(shares, moved, strict=True)]
            self.orders = dict(zip(UNITS, shares, strict=True))
            for name, share in self.orders.items():
                self.plant.set_inverter(name, share, 0.0)
            yield combine(readings, now, *AGES, names=list(UNITS))
            self.plant.step(TICK)


@pytest.mark.parametrize('power', [-3000.0, 3000.0])
def test_members_finish_together(power: float) -> None:
    """Each has given (or taken) all but 6 % of what it could, at the same time within 2 % of the run."""
    loop, done = Loop(), {}

    def room(name: str) -> float:
        p = loop.plant.pack(name)
        return p.energy if power < 0 else p.energy_full - p.energy

    first = {name: room(name) for name in UNITS}
    for _ in loop.run(power):
        for name in UNITS:
            if room(name) <= 0.06 * first[name]:
                done.setdefault(name, loop.plant.time)
        if len(done) == len(UNITS) or loop.plant.time > 8 * 3600:
            break
    assert set(done) == set(UNITS)
    assert max(done.values()) - min(done.values()) < 0.02 * max(done.values()), done


def test_a_member_that_drops_out_mid_run_moves_its_share_within_one_tick() -> None:
    loop = Loop()
    for whole in loop.run(-2000.0):
        now = loop.plant.time
        if now == 600.0:
            before = dict(loop.orders)
            loop.failed.add('big')
            assert before['big'] < -1000.0 and whole.missing == []
        if now == 600.0 + TICK:
            assert loop.orders['big'] == 0.0
            assert sum(loop.orders.values()) == pytest.approx(-2000.0)
            assert whole.missing == ['big: fault'] and whole.members_usable == 2
            loop.failed.clear()
        if now == 600.0 + 2 * TICK:
            assert loop.orders['big'] == pytest.approx(before['big'], rel=0.01)
            break


def test_equalisation_brings_states_of_charge_together_at_no_power_of_the_whole() -> None:
    loop = Loop()
    for whole in loop.run(0.0, Goal(1500.0, 0.02)):
        assert sum(loop.orders.values()) == pytest.approx(0.0, abs=1e-6)
        assert sum(p for p in loop.orders.values() if p > 0) <= 1500.0 + 1e-6
        if whole.soc_spread <= 0.02:
            break
        assert loop.plant.time < 6 * 3600
    assert loop.plant.time > 600.0
    assert not any(loop.orders.values()), 'it ends at the tolerance'
    lost = sum(loop.plant.books(name).loss for name in UNITS)
    assert lost > 1.0, 'paid with the losses of the converters'
