"""The simulated cabinet: what its heater and fan do to the pack, over shared memory, Modbus and simulated time."""

from __future__ import annotations

import struct
from math import inf, nan
from pathlib import Path

import pytest

from bess_core.site import find, load
from bess_sim import conductor
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import Units
from bess_sim.devices.register_layouts import Cabinet
from bess_sim.plant import Plant
from bess_sim.plant_api import StaticPlant
from bess_sim.plant_config import PlantConfig
from bess_sim.shared_plant import SharedPlant

PACK = {'cells': 16, 'capacity_ah': 50.0, 'initial_temperature': 0.0}
J_PER_K = 24.0 * 50.0 * 16  # of the whole pack: 24 J/(K Ah), see `bess_sim.chemistry`


def plant(ambient: float = 0.0, units: int = 1) -> Plant:
    packs = {f'u{i}': {'pack': PACK} for i in range(units)}
    return Plant(PlantConfig.model_validate({'ambient': ambient, 'units': packs}))


def coldest(p: Plant, unit: str = 'u0') -> float:
    return min(p.pack(unit).temperatures)


def test_a_heater_warms_its_own_pack_and_is_no_loss_of_the_battery() -> None:
    p = plant(units=2)
    p.set_climate('u0', 400.0, 1.0)
    for _ in range(60):
        p.step(1.0)
    assert coldest(p) == pytest.approx(400.0 * 60.0 / J_PER_K, rel=0.02)
    assert coldest(p, 'u1') == pytest.approx(0.0, abs=0.01)
    assert p.books('u0').heat == pytest.approx(p.books('u1').heat, abs=0.1)
    p.set_climate('u0', 0.0, 1.0)
    before = coldest(p)
    p.step(60.0)
    assert coldest(p) < before


def test_a_fan_cools_towards_the_ambient_faster() -> None:
    still, blown = plant(-20.0), plant(-20.0)
    blown.set_climate('u0', 0.0, 4.0)
    for p in (still, blown):
        for _ in range(60):
            p.step(5.0)
    slow, fast = coldest(still), coldest(blown)
    assert fast == pytest.approx(4.0 * slow, rel=0.1) and fast < slow < 0.0


@pytest.mark.parametrize('values', [(-1.0, 1.0), (nan, 1.0), (inf, 1.0), (0.0, 0.5), (0.0, nan), (0.0, inf)])
def test_what_cannot_be_is_refused(values: tuple[float, float]) -> None:
    p = plant()
    with pytest.raises(ValueError, match='heater'):
        p.set_climate('u0', *values)
    with pytest.raises(ValueError, match='heater'):
        SharedPlant.of(p).set_climate('u0', *values)
    with pytest.raises(ValueError, match='unknown unit'):
        SharedPlant.of(p).set_climate('u9', 0.0, 1.0)


def test_relays_over_modbus_and_shared_memory() -> None:
    p = plant()
    shared = SharedPlant.of(p)
    units = Units({1: Cabinet(shared, 'u0', DeviceFaults(), 400.0, 4.0)}, DeviceFaults())

    def coil(n: int, on: bool) -> None:
        request = struct.pack('>BHH', 5, n, 0xFF00 if on else 0)
        assert units.answer(1, request) == request

    def warmed() -> float:
        shared.take_orders(p)
        before = coldest(p)
        p.step(10.0)
        return coldest(p) - before

    assert warmed() == pytest.approx(0.0, abs=1e-3)
    coil(0, True)
    assert warmed() == pytest.approx(400.0 * 10.0 / J_PER_K, rel=0.05)
    coil(0, False)
    coil(1, True)
    assert warmed() < 0.0
    fixed = StaticPlant()
    Cabinet(fixed, 'u', DeviceFaults(), 400.0, 4.0).write_coils(0, [1, 1])
    assert fixed.climate == {'u': (400.0, 4.0)}


def test_the_site_on_simulated_time_warms_up_and_then_charges(tmp_path: Path) -> None:
    site = load(find('cabinet_demo'), state=tmp_path, check_simulation=True,
                overrides=['simulation.units.battery.pack.initial_temperature=-3.0'])
    cold = conductor.simulate(site, tmp_path / 'a', hours=0.02)
    assert cold['faults'] == ['climate/climate.interlock'] and cold['limit_violations'] == 0
    assert cold['soc']['battery'] < 0.5, 'the sun shines, but it is not charged'
    warm = conductor.simulate(site, tmp_path / 'b', hours=0.25)
    assert warm['faults'] == [] and warm['limit_violations'] == 0
    assert warm['soc']['battery'] > 0.55, 'charged once it was warm'
