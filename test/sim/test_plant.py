"""The plant: energy balance, inverter response, limits, faults, shared memory."""

from __future__ import annotations

from math import exp, hypot, isnan, nan

import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bess_sim.plant import PLANT_FAULTS, Plant
from bess_sim.plant_config import BenchConfig, PlantConfig
from bess_sim.shared_plant import SharedPlant

QUIET = {'house': {'profile': 'none'}, 'pv': {'profile': 'none'}}


def plant(*, inverter: dict | None = None, pack: dict | None = None, **more) -> Plant:
    unit = {'pack': pack or {}, 'inverter': inverter or {}}
    return Plant(PlantConfig.model_validate({'units': {'a': unit}, **QUIET, **more}))


def two(**more) -> Plant:
    units = {
        'lfp': {'pack': {'chemistry': 'lfp', 'cells': 16}, 'inverter': {'phase': 1}},
        'nmc': {'pack': {'chemistry': 'nmc', 'cells': 14}, 'inverter': {'phase': 3, 'lag': 0.3}},
    }
    return Plant(PlantConfig.model_validate({'units': units, **more}))


def test_energy_is_conserved_over_a_day() -> None:
    p = two(start='2026-06-21T00:00:00')
    net = load = pv = 0.0
    for k in range(86_400 // 10):
        if k % 180 == 0:
            power = (2500.0, -2500.0, 0.0, 800.0)[k // 180 % 4]
            p.set_inverter('lfp', power, 300.0)
            p.set_inverter('nmc', -power, 0.0)
        p.step(10.0)
        batteries = sum(p.inverter(name).active_power for name in p.units)
        meter = p.meter()
        total = sum(meter.phase_power)
        assert total == pytest.approx(p.house_power + p.pv_power + batteries, abs=1e-6)
        net, load, pv = net + total * 10, load + p.house_power * 10, pv + p.pv_power * 10
    meter = p.meter()
    assert meter.energy_import - meter.energy_export == pytest.approx(net / 3600, abs=1e-3)
    ac = 0.0
    for name in p.units:
        books = p.books(name)
        inverter = p.inverter(name)
        assert books.ac == pytest.approx(inverter.energy_import - inverter.energy_export, abs=1e-6)
        assert books.ac == pytest.approx(books.dc + books.loss, abs=1e-6)
        assert books.dc == pytest.approx(books.stored + books.heat, abs=0.05)
        assert books.loss > 100.0 and books.heat > 1.0
        ac += books.ac
    assert net / 3600 == pytest.approx(load / 3600 + pv / 3600 + ac, abs=1e-3)
    assert load > 8000 * 3600 and pv < -10_000 * 3600


def test_efficiency_curve_follows_the_measured_converter(shared_data) -> None:
    rows = (shared_data / 'converter' / 'sinamics_S120_efficiency.csv').read_text().split()[1:]
    measured = [tuple(map(float, row.split(','))) for row in rows]
    for share in (0.1, 0.2, 0.3, 0.5, 0.75, 1.0):
        for sign in (1, -1):
            p = plant(inverter={'rating': 5000.0, 'lag': 0.0, 'ramp': 1e9})
            p.set_inverter('a', sign * share * 5000.0, 0.0)
            p.step(1.0)
            s = p.inverter('a')
            assert s.active_power == pytest.approx(sign * share * 5000.0)
            efficiency = s.dc_power / s.active_power if sign > 0 else s.active_power / s.dc_power
            expected = measured[round(share * 1000)][0 if sign > 0 else 1]
            assert efficiency == pytest.approx(expected, abs=0.008)
            assert s.dc_power == pytest.approx(s.dc_voltage * s.dc_current)


def test_response_has_dead_time_ramp_and_first_order_lag() -> None:
    p = plant(inverter={'lag': 0.5, 'dead_time': 0.2, 'ramp': 1e9})
    p.set_inverter('a', 2000.0, 0.0)
    idle = p.inverter('a').active_power
    for _ in range(10):
        p.step(0.02)
    assert p.inverter('a').active_power == pytest.approx(idle, abs=1e-9)  # dead time
    for _ in range(25):
        p.step(0.02)
    assert p.inverter('a').active_power == pytest.approx(2000.0 * (1 - exp(-1)), rel=1e-6)
    p = plant(inverter={'lag': 0.0, 'ramp': 1000.0})
    p.set_inverter('a', -5000.0, 0.0)
    for k in range(1, 11):
        p.step(0.5)
        assert p.inverter('a').active_power == pytest.approx(-500.0 * k)
    p.set_inverter('a', 0.0, 0.0, 250.0)  # a slower ramp than its own; never a faster one
    p.step(1.0)
    assert p.inverter('a').active_power == pytest.approx(-4750.0)
    p.set_inverter('a', 0.0, 0.0, 1e6)
    p.step(1.0)
    assert p.inverter('a').active_power == pytest.approx(-3750.0)


def test_response_does_not_depend_on_the_step() -> None:
    ends = []
    for dt in (0.01, 0.1):
        p = plant(inverter={'lag': 0.4, 'ramp': 1e9})
        p.set_inverter('a', 3000.0, 0.0)
        for _ in range(round(1.0 / dt)):
            p.step(dt)
        ends.append(p.inverter('a').active_power)
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


@settings(max_examples=50)
@given(st.floats(-2e4, 2e4), st.floats(-2e4, 2e4))
def test_rating_and_apparent_power_are_kept(power: float, reactive: float) -> None:
    p = plant(inverter={'rating': 5000.0, 'max_charge_power': 3000.0, 'lag': 0.0, 'ramp': 1e9})
    p.set_inverter('a', power, reactive)
    p.step(1.0)
    s = p.inverter('a')
    assert s.active_power == pytest.approx(min(max(power, -5000.0), 3000.0))  # P first
    assert hypot(s.active_power, s.reactive_power) <= 5000.0 * (1 + 1e-9)
    if hypot(power, reactive) <= 3000.0:
        assert s.reactive_power == pytest.approx(reactive)


def test_switches_stop_either_direction_and_nothing_flows_when_open() -> None:
    p = plant(inverter={'lag': 0.0, 'ramp': 1e9, 'standby_power': 7.0})
    for order, charge, discharge in ((2000.0, False, True), (-2000.0, True, False)):
        p.set_inverter('a', order, 0.0)
        p.set_switches('a', charge, discharge)
        p.step(1.0)
        assert abs(p.inverter('a').active_power) < 40.0  # no more than its own loss
        assert p.pack('a').current == 0.0 if discharge is False else p.pack('a').current <= 0.0
        assert p.inverter('a').running
    p.set_switches('a', False, False)
    p.step(1.0)
    s = p.inverter('a')
    assert (s.active_power, s.dc_power, s.running) == (7.0, 0.0, False)
    assert p.pack('a').current == 0.0
    p.set_switches('a', True, True)
    p.set_inverter('a', 1000.0, 0.0)
    p.step(1.0)
    assert p.inverter('a').active_power == pytest.approx(1000.0)


@pytest.mark.parametrize('chemistry', ['lfp', 'nmc'])
@pytest.mark.parametrize('power', [5000.0, -5000.0])
def test_a_pack_driven_to_its_end_stays_sane(chemistry: str, power: float) -> None:
    p = plant(pack={'chemistry': chemistry, 'cells': 14, 'capacity_ah': 20.0})
    p.set_inverter('a', power, 0.0)
    for _ in range(3000):
        p.step(1.0)
        s = p.pack('a')
        assert 0.0 <= s.soc <= 1.0
        assert all(0.5 < v < 4.8 for v in s.cells)
    assert s.soc > 0.9 if power > 0 else s.soc < 0.1
    books = p.books('a')
    assert books.ac == pytest.approx(books.dc + books.loss, abs=1e-6)
    assert books.dc == pytest.approx(books.stored + books.heat, abs=1.0)


@pytest.mark.parametrize('fault', PLANT_FAULTS)
def test_faults_show_in_the_sample_and_leave_the_state_alone(fault: str) -> None:
    p, untouched = plant(), plant()
    clean = p.pack('a')
    p.inject(fault, index=1)
    seen = p.pack('a')
    if fault == 'over_temperature':
        assert seen.temperatures[1] == 75.0 and seen.temperatures[0] == clean.temperatures[0]
    else:
        assert abs(seen.cells[1] - clean.cells[1]) > 0.5
        assert seen.voltage == pytest.approx(sum(seen.cells))
        assert seen.cells[2:] == clean.cells[2:]
    p.step(1.0)
    untouched.step(1.0)
    p.clear(fault)
    assert p.pack('a') == untouched.pack('a')


def test_a_fault_ends_by_itself_and_takes_value_unit_and_index() -> None:
    p = two(**QUIET)
    p.inject('cell_overvoltage', 4.4, 'nmc', 13, for_s=3.0)
    assert p.pack('nmc').cells[13] == 4.4
    assert max(p.pack('lfp').cells) < 3.6
    for _ in range(3):
        p.step(1.0)
    assert p.pack('nmc').cells[13] < 4.2
    for arguments in (('nothing',), ('cell_overvoltage',), ('cell_overvoltage', 4.0, 'nmc', 14),
                      ('over_temperature', 80.0, 'lfp', 2), ('over_temperature', nan, 'x')):  # fmt: skip
        with pytest.raises(ValueError):
            p.inject(*arguments)
    assert not p.faults


def test_phases_voltage_and_frequency() -> None:
    p = two(house={'profile': 'none', 'phase': 2}, pv={'profile': 'none'})
    p.override(900.0, nan)
    p.set_inverter('lfp', 1000.0, 0.0)
    p.set_inverter('nmc', -2000.0, 0.0)
    frequencies = []
    for _ in range(5000):
        p.step(1.0)
        frequencies.append(p.meter().frequency)
        if p.time == 60.0:
            assert p.meter().phase_power == pytest.approx((1000.0, 900.0, -2000.0), abs=1e-3)
            assert p.meter().voltage[0] < p.meter().voltage[2]  # import lowers, export raises
            assert isnan(p.inverter('lfp').voltage[1])
    mean = sum(frequencies) / len(frequencies)
    spread = (sum((f - mean) ** 2 for f in frequencies) / len(frequencies)) ** 0.5
    assert mean == pytest.approx(50.0, abs=0.01) and 0.008 < spread < 0.025
    p.grid.frequency_override, p.grid.voltage_override = 49.7, 240.0
    p.step(1.0)
    assert (p.meter().frequency, p.meter().voltage[1]) == (49.7, 240.0)


def test_same_seed_same_plant() -> None:
    a, b, c = two(), two(), two(seed=7)
    for p in (a, b, c):
        p.set_inverter('lfp', -1500.0, 0.0)
        for _ in range(50):
            p.step(1.0)
    assert a.meter() == b.meter() and a.pack('lfp') == b.pack('lfp')
    assert a.meter() != c.meter()


def test_bad_calls_are_refused() -> None:
    p = plant()
    for dt in (0.0, -1.0, nan, float('inf')):
        with pytest.raises(ValueError, match='dt'):
            p.step(dt)
    for call in (lambda: p.pack('x'), lambda: p.set_inverter('a', float('inf'), 0.0),
                 lambda: p.set_inverter('a', 0.0, 0.0, -1.0), lambda: p.set_ambient(nan)):  # fmt: skip
        with pytest.raises(ValueError):
            call()
    assert p.time == 0.0


@pytest.mark.parametrize(
    ('change', 'place'),
    [
        ({'units': {'a': {'pack': {'cells': 0}}}}, 'cells'),
        ({'units': {'a': {'pack': {'chemistry': 'lead'}}}}, 'chemistry'),
        ({'units': {'a': {'inverter': {'rating': -1}}}}, 'rating'),
        ({'units': {'a': {'inverter': {'ratng': 1}}}}, 'ratng'),
        ({'start': 'noon'}, 'start'),
        ({'ambient': float('nan')}, 'ambient'),
        ({'devices': {'d': {'kind': 'jbd', 'unit': 'none'}}}, 'devices'),
    ],
)
def test_bad_configuration_names_the_place(change: dict, place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        BenchConfig.model_validate(change)


def test_start_as_yaml_reads_it() -> None:
    for value, expected in ((1110, '18:30:00'), (66_600, '18:30:00'), ('06:00', '06:00')):
        assert PlantConfig.model_validate({'start': value}).start == expected


def test_shared_memory_shows_the_same_samples_and_passes_orders_on() -> None:
    p = two()
    shared = SharedPlant.of(p)
    shared.set_inverter('nmc', -1200.0, 100.0, 500.0)
    shared.set_switches('lfp', True, False)
    for _ in range(20):
        shared.take_orders(p)
        p.step(0.5)
    shared.publish(p)
    for name in p.units:
        assert shared.pack(name) == p.pack(name)
        ours, theirs = shared.inverter(name), p.inverter(name)
        assert repr(ours) == repr(theirs)  # NaN voltages
    assert shared.meter() == p.meter()
    assert p.inverter('nmc').active_power == pytest.approx(-1200.0)
    assert not p.pack('lfp').discharge_switch and p.pack('lfp').charge_switch
    p.set_inverter('nmc', 0.0, 0.0)
    shared.take_orders(p)  # an old order is not taken twice
    for _ in range(20):
        p.step(0.5)
    assert abs(p.inverter('nmc').active_power) < 1e-6
    for bad in (lambda: shared.pack('x'), lambda: shared.set_inverter('lfp', float('inf'), 0.0)):
        with pytest.raises(ValueError):
            bad()


def test_a_step_is_quick() -> None:
    """Numpy across packs and cells: few calls."""
    p = two()
    p.set_inverter('lfp', 1500.0, 0.0)
    assert calls(lambda: p.step(1.0)) < 120
