"""State of charge node on real DDS: estimate, restart, faults, contactors, balancing."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest

from bess.msg import BalanceSetpoint, BatteryStatus, CellArray
from bess.srv import GetStatus, SetContactor
from bess_control.soc import SocEstimator, SocParams
from bess_control.soc_node import SocNode, SocNodeParams
from bess_core import qos
from bess_core.convert import battery_to_msg, cells_to_msg, stamp
from bess_core.params import ParameterError, build
from bess_core.values import BatteryReading, Contactor, Quality, Severity
from bess_drivers.driver_node import node_type
from bess_sim.conductor import bound
from bess_sim.plant import Plant
from bess_sim.plant_config import PlantConfig
from bess_sim.plant_devices import PlantBattery
from bess_sim.shared_plant import SharedPlant

READING = BatteryReading(
    quality=Quality.OK, contactor=Contactor.CLOSED, voltage=52.8, current=0.0, power=0.0, temperature=25.0,
    cell_voltage_min=3.295, cell_voltage_max=3.305, max_charge_current=50.0, max_discharge_current=50.0,
    max_charge_power=2640.0, max_discharge_power=2640.0)


class Bms:
    """A BMS that tells what it is told to tell, every 50 ms."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.reading, self.cells, self.silent = graph, READING, (3.40, 3.41, 3.425), False
        self.contactors: list[tuple[bool, bool]] = []
        self.refuses = ''
        self.orders: list[BalanceSetpoint] = []
        peer = graph.peer
        self._status = peer.create_publisher(BatteryStatus, 'bms/status', qos.MEASUREMENT)
        self._cells = peer.create_publisher(CellArray, 'bms/cells', qos.MEASUREMENT)
        peer.create_subscription(BalanceSetpoint, 'bms/balance', self.orders.append, qos.SETPOINT)
        peer.create_service(SetContactor, 'bms/set_contactor', self._on_contactor)
        graph.ticker.every(0.05, lambda _: self._tell())

    def _on_contactor(self, request: Any, response: Any) -> Any:
        self.contactors.append((request.charge, request.discharge))
        response.accepted, response.message = not self.refuses, self.refuses
        return response

    def _tell(self) -> None:
        if self.silent:
            return
        now = self.graph.clock.now()
        reading = replace(self.reading, time=now, newest=now, cells=self.cells)
        self._status.publish(battery_to_msg(reading, self.graph.clock, 'bms'))
        self._cells.publish(cells_to_msg(reading, self.graph.clock, 'bms'))


def start(graph: Any, soc: float = nan, **params: Any) -> tuple[Bms, Any, list[BatteryStatus]]:
    bms = Bms(graph)
    bms.reading = replace(READING, soc=soc)
    heard = graph.listen(BatteryStatus, 'soc/status', qos.MEASUREMENT)
    node = graph.add(SocNode, 'soc', {'bms': 'bms', 'capacity': 100.0, 'max_age': 0.4, 'invalid_after': 1.0, **params})
    graph.up(node)
    graph.wait(lambda: heard and heard[-1].voltage == 52.8, 'the BMS is heard')
    return bms, node, heard


def severity(node: Any, fault: str) -> Any:
    record = node.faults.get(fault)
    return record.severity if record is not None and record.active else None


def test_a_bms_without_state_of_charge_gets_one_at_rest(graph: Any) -> None:
    bms, node, heard = start(graph, rest_time=1.0, voltage_error=0.001)
    assert node.role == 'bms' and isnan(heard[-1].soc)
    graph.wait(lambda: severity(node, 'soc.unknown') is Severity.WARNING, 'it says that it does not know')
    bms.reading = replace(bms.reading, cell_voltage_min=3.1967, cell_voltage_max=3.1967)
    graph.wait(lambda: heard[-1].soc == pytest.approx(0.1, abs=0.01), 'open-circuit voltage')
    graph.wait(lambda: severity(node, 'soc.unknown') is None, 'fault gone')
    last = heard[-1]
    assert last.charge == pytest.approx(10.0, abs=1.0) and last.charge_full == pytest.approx(100.0)
    assert last.energy_full == pytest.approx(5280.0) and last.soh == pytest.approx(1.0)
    assert (last.max_charge_current, last.contactor) == (50.0, int(Contactor.CLOSED)), 'the rest is that of the BMS'


def test_it_counts_goes_on_after_a_restart_and_never_looks_fresh(graph: Any) -> None:
    bms, node, heard = start(graph, 0.5, capacity=0.01, tail_current=0.0, deviation=1.0, reference='start')
    graph.wait(lambda: heard[-1].soc == pytest.approx(0.5, abs=1e-6), 'start value of the BMS')
    bms.reading = replace(bms.reading, current=10.0, soc=0.5)
    graph.wait(lambda: heard[-1].soc > 0.6, '10 A into 10 mAh')
    bms.silent = True
    graph.wait(lambda: heard[-1].quality == BatteryStatus.QUALITY_INVALID, 'old is old')
    assert severity(node, 'battery.stale') is Severity.WARNING
    assert not graph.call(GetStatus, 'soc/get_status').fresh
    kept = node.estimator.soc
    graph.remove(node)
    again = graph.add(SocNode, 'soc', {'bms': 'bms', 'capacity': 0.01, 'reference': 'none'})
    bms.reading = replace(bms.reading, current=0.0, soc=0.1)
    graph.up(again)
    assert again.estimator.soc == pytest.approx(kept)
    bms.silent = False
    graph.wait(lambda: heard[-1].quality == BatteryStatus.QUALITY_OK, 'fresh')
    assert heard[-1].soc == pytest.approx(kept, abs=1e-3), 'the poor value of the BMS does not count'
    assert again.diagnostics()['corrected by'] == 'restart'


@pytest.mark.parametrize('text', ['', '{', '[]', '{"soc": 2}', json.dumps({
    'capacity': 50.0, 'soc': 0.5, 'soh': 1, 'offset': 0, 'throughput': 0, 'loss_from': 1, 'loss_throughput': 0})])
def test_a_damaged_file_is_told_and_not_used(graph: Any, text: str) -> None:
    file = graph.ctx.state_dir / 'soc' / 'soc.json'
    file.parent.mkdir(parents=True)
    file.write_text(text)
    node = graph.add(SocNode, 'soc', {'bms': 'bms', 'capacity': 100.0})
    graph.up(node)
    assert isnan(node.estimator.soc) and severity(node, 'soc.store') is Severity.WARNING


def test_a_full_disk_is_a_fault_and_no_end(graph: Any) -> None:
    (graph.ctx.state_dir / 'soc').write_text('a file where the folder should be')
    bms, node, heard = start(graph, 0.5, save_every=1.0)
    graph.wait(lambda: severity(node, 'soc.store') is Severity.WARNING, 'it cannot be stored')
    assert heard[-1].soc == pytest.approx(0.5, abs=0.01)


def test_a_bms_that_drifts_away_and_a_worn_battery_are_faults(graph: Any) -> None:
    bms, node, heard = start(graph, 0.5, min_soh=0.7)
    graph.wait(lambda: heard[-1].soc == pytest.approx(0.5, abs=1e-3), 'start value')
    bms.reading = replace(bms.reading, soc=0.8)
    graph.wait(lambda: severity(node, 'soc.degraded') is Severity.WARNING, 'difference')
    assert node.faults.get('soc.degraded').text == 'estimate 0.50, BMS says 0.80'
    bms.reading = replace(bms.reading, soc=0.52)
    graph.wait(lambda: severity(node, 'soc.degraded') is None, 'gone')
    node.estimator.soh = node.estimator._loss_from = 0.6
    graph.wait(lambda: severity(node, 'soc.worn_out') is Severity.WARNING, 'worn out')


def test_contactors_are_those_of_the_bms(graph: Any) -> None:
    bms, _, _ = start(graph, 0.5)
    order = lambda on: graph.call(  # noqa: E731
        SetContactor, 'soc/set_contactor', SetContactor.Request(charge=on, discharge=on))
    assert order(True).accepted and bms.contactors == [(True, True)]
    bms.refuses = 'protection'
    answer = order(False)
    assert (answer.accepted, answer.message) == (False, 'protection')


def test_balancing_is_ordered_under_its_conditions(graph: Any) -> None:
    bms, node, heard = start(graph, 0.9, balance=True)
    cells = lambda: list(bms.orders[-1].cells) if bms.orders else None  # noqa: E731
    graph.wait(lambda: cells() == [False, True, True], 'the high cells')
    assert (bms.orders[-1].source, bms.orders[-1].lease) == ('soc', 10.0)
    for change, why in (({'temperature': 60.0}, 'temperature is 60.0 degC'), ({'current': -20.0}, 'current is -20.0 A'),
                        ({'temperature': nan}, 'temperature is nan degC')):
        good, bms.reading = bms.reading, replace(bms.reading, **change)
        graph.wait(lambda: not any(cells()), why)
        assert node.balancer.reason == why
        bms.reading = good
        graph.wait(lambda: cells() == [False, True, True], 'again')
    bms.silent = True
    graph.wait(lambda: not any(cells()), 'nothing on old values')
    bms.silent = False
    graph.wait(lambda: any(cells()), 'again')
    node.trigger_deactivate()
    graph.wait(lambda: cells() == [], 'deactivated: given back')


@pytest.mark.parametrize(('values', 'why'), [
    ({'capacity': 0.0}, 'capacity'), ({'reference': 'maybe'}, 'reference'), ({'ocv': [0.0, 3.0, 1.0]}, 'ocv'),
    ({'ocv': [0.0, 3.0, 1.0, 2.9]}, 'rise'), ({'balance_stop_difference': 0.02}, 'stop_difference'),
    ({'invalid_after': 1.0}, 'max_age'), ({'min_soh': 1.5}, 'min_soh')])
def test_bad_settings(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        build(SocNodeParams, {'bms': 'bms', 'capacity': 100.0, **values})


def test_what_is_stored_is_taken_up_whole_or_not_at_all() -> None:
    p = SocParams(capacity=100.0)
    one = SocEstimator(p, soc=0.7, soh=0.9)
    one.throughput, one.offset = 40.0, 0.3
    other = SocEstimator(p)
    other.resume(json.loads(json.dumps(one.saved())))
    assert (other.soc, other.soh, other.offset, other.throughput) == (0.7, 0.9, 0.3, 40.0)
    for key, value in (('soc', nan), ('soc', 1.1), ('soh', 0.0), ('throughput', -1.0), ('offset', nan), ('soc', 'x')):
        with pytest.raises(ValueError):
            other.resume({**one.saved(), key: value})
    assert other.soc == 0.7


# -- the driver, and the plant behind it -------------------------------------------------------------


def plant() -> Plant:
    return Plant(PlantConfig.model_validate({'units': {'u': {'pack': {'cells': 4, 'initial_soc': 0.97}}}}))


def balance(graph: Any, publisher: Any, cells: list[bool], lease: float = 5.0, age: float = 0.0) -> None:
    message = BalanceSetpoint(cells=cells, lease=lease, source='test')
    message.header.stamp = stamp(graph.clock, graph.clock.now() - age)
    publisher.publish(message)


def test_a_driver_bleeds_as_long_as_the_lease_lasts(graph: Any) -> None:
    world = plant()
    seen: list[tuple[bool, ...]] = []
    cls = bound('bms', world)
    assert issubclass(cls, PlantBattery)
    take = world.set_balancing
    world.set_balancing = lambda name, cells: (seen.append(cells), take(name, cells))  # type: ignore[assignment,func-returns-value]
    node = graph.add(node_type(cls), 'bms', {'address': 'plant:u', 'plant_unit': 'u', 'period': 0.05})
    graph.up(node)
    publisher = graph.publisher(BalanceSetpoint, 'bms/balance', qos.SETPOINT)
    graph.wait(lambda: node.reading.cells and publisher.get_subscription_count(), 'it is read')
    want = [False, True, False, True]
    for bad in ({'cells': [True] * 3}, {'lease': nan}, {'lease': 0.0}, {'lease': 61.0}, {'age': 9.0}, {'age': -9.0}):
        balance(graph, publisher, **{'cells': want, **bad})  # type: ignore[arg-type]
    balance(graph, publisher, want, lease=1.0)
    graph.wait(lambda: seen, 'ordered')
    assert seen == [tuple(want)], 'what cannot be is refused'
    world.step(1.0)
    assert world.pack('u').balancing == tuple(want)
    graph.wait(lambda: seen[-1] == (), 'the lease ended')
    balance(graph, publisher, want, lease=20.0)
    graph.wait(lambda: seen[-1] == tuple(want), 'ordered again')
    node.trigger_deactivate()
    graph.wait(lambda: seen[-1] == (), 'deactivated')


def test_ordered_cells_lose_charge_in_the_plant_and_over_shared_memory() -> None:
    world = plant()
    shared = SharedPlant.of(world)
    with pytest.raises(ValueError, match='3 cells are named, the pack has 4'):
        shared.set_balancing('u', (True,) * 3)
    shared.set_balancing('u', (True, False, False, False))
    shared.take_orders(world)
    before = world.bank.charge[0, :4].copy()
    for _ in range(600):
        world.step(1.0)
    lost = before - world.bank.charge[0, :4]
    shared.publish(world)
    assert shared.pack('u').balancing == (True, False, False, False)
    assert lost[0] - lost[1] == pytest.approx(0.1 * 600.0 / 3600.0, rel=0.05)
