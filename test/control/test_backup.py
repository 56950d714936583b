"""Backup: the machine as stories on a virtual clock, an island with loads, and the node with its outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes_story import meter, view
from std_msgs.msg import Bool
from test_control_nodes import Plant

from bess.msg import IoStatus, OutputSetpoint
from bess_control.backup import BackupMachine, BackupParams, LoadGroup, Outputs, Seen
from bess_control.mode_node import node_type
from bess_control.modes.backup import Backup
from bess_core import qos
from bess_core.params import ParameterError, build
from bess_core.values import ConverterReading, Quality

GOOD = {'voltage': (230.0,) * 3, 'frequency': 50.0}
DEAD = {'voltage': (0.0, 0.0, 0.0), 'frequency': nan}
FAST = {'observation_s': 60.0, 'ramp_s': 100.0, 'ramp_power': 5000.0, 'form_timeout_s': 5.0, 'restore_s': 10.0}


@dataclass
class Site:
    """A switch, a converter and loads behind it: what the machine's outputs do."""

    machine: BackupMachine
    loads: dict[str, float]  # topic -> W
    grid: dict[str, Any]
    soc: float = 0.8
    limit: float = 5000.0
    form_s: float = 0.3
    overload_stops: bool = False  # forming under more than `limit` does not succeed
    now: float = 0.0
    started: float | None = None
    out: Outputs | None = None

    def run(self, seconds: float, dt: float = 0.1) -> list[str]:
        states = []
        for _ in range(round(seconds / dt)):
            out = self.out or self.machine.outputs
            load = sum(self.loads[t] for t, on in out.loads.items() if on)
            self.started = None if not out.form_grid else self.now if self.started is None else self.started
            forming = self.started is not None and self.now - self.started >= self.form_s and not (
                self.overload_stops and load > self.limit)
            island = forming and not out.switch_closed
            seen = Seen(**self.grid, forming=forming, switch_open=not out.switch_closed, soc=self.soc,
                        power=-load if island else 0.0, max_discharge=self.limit)
            self.out = replace(self.machine.tick(seen, self.now, 1e9 + self.now))
            if not states or states[-1] != self.machine.state:
                states.append(self.machine.state)
            self.now += dt
        return states


def site(loads: dict[str, float] | None = None, groups: tuple[str, ...] = ('a', 'b', 'c 0.5'), **params: Any) -> Site:
    machine = BackupMachine(BackupParams(**{**FAST, **params}), [LoadGroup.parse(g) for g in groups])
    return Site(machine, loads or {'a': 500.0, 'b': 1000.0, 'c': 1000.0}, dict(GOOD))


def test_an_outage_from_beginning_to_end() -> None:
    s = site()
    assert s.run(5.0) == ['on_grid']
    s.grid = dict(DEAD)
    assert s.run(5.0) == ['on_grid', 'islanding', 'forming', 'island']
    assert (s.out.switch_closed, s.out.form_grid) == (False, True)
    assert all(s.out.loads.values()), 'a seamless change keeps the loads'
    s.run(600.0)
    s.grid = dict(GOOD)
    assert s.run(30.0) == ['observing']
    s.grid = dict(DEAD)
    assert s.run(5.0) == ['island'], 'the observation begins anew when the grid is gone again'
    s.grid = {'voltage': (230.0,) * 3, 'frequency': 50.3}
    assert s.run(200.0) == ['island'], 'a grid outside of its range is not back'
    s.grid = dict(GOOD)
    assert s.run(59.0) == ['observing'] and not s.out.switch_closed
    assert s.run(3.0) == ['observing', 'reconnecting', 'ramping']
    assert (s.out.switch_closed, s.out.form_grid) == (True, False)
    half = s.machine.bound(s.machine.since + 50.0)
    assert half == pytest.approx(2500.0)
    assert s.run(100.0) == ['ramping', 'on_grid']
    assert s.machine.bound(s.now) == float('inf')


def test_a_dip_shorter_than_the_detection_and_a_silent_meter_are_no_outage() -> None:
    s = site(detect_s=0.3)
    s.run(1.0)
    s.grid = dict(DEAD)
    assert s.run(0.2) == ['on_grid']
    s.grid = dict(GOOD)
    assert s.run(1.0) == ['on_grid']
    s.grid = {'grid_silent': True}
    assert s.run(100.0) == ['on_grid'], 'unknown is not lost'
    s.grid = {'grid_silent': True, 'converter_dead': True}
    assert s.run(2.0)[-1] == 'island', 'but with a converter that sees no grid it is'


@pytest.mark.parametrize('grid', [
    {'voltage': (230.0, 150.0, 230.0), 'frequency': 50.0}, {'voltage': (290.0,) * 3, 'frequency': 50.0},
    {'voltage': (230.0,) * 3, 'frequency': 47.0}, {'voltage': (230.0,) * 3, 'frequency': 52.0}])
def test_every_kind_of_loss(grid: dict[str, Any]) -> None:
    s = site()
    s.run(1.0)
    s.grid = grid
    assert s.run(3.0)[-1] == 'island'


def test_overload_sheds_the_least_important_and_they_come_back_one_by_one() -> None:
    s = site({'a': 1000.0, 'b': 3000.0, 'c': 2500.0}, groups=('a', 'b', 'c'))
    s.run(1.0)
    s.grid = dict(DEAD)
    s.run(4.0)
    assert s.out.loads == {'a': True, 'b': True, 'c': False}
    s.run(100.0)
    assert s.out.loads == {'a': True, 'b': True, 'c': False}, 'it would not bear it'
    s.loads['b'] = 500.0
    s.run(15.0)
    assert s.out.loads['c']


def test_state_of_charge_sheds_by_group_then_gives_up_and_starts_again() -> None:
    s = site()
    s.run(1.0)
    s.grid = dict(DEAD)
    s.run(3.0)
    s.soc = 0.49
    s.run(1.0)
    assert s.out.loads == {'a': True, 'b': True, 'c': False}
    s.soc = 0.53
    s.run(20.0)
    assert not s.out.loads['c'], 'hysteresis'
    s.soc = 0.05
    assert s.run(1.0) == ['dark']
    assert not any(s.out.loads.values()) and not s.out.form_grid
    s.soc = 0.56
    assert s.run(2.0) == ['black_start', 'island']
    assert not any(s.out.loads.values()), 'without load first'
    s.run(11.0)
    assert s.out.loads == {'a': True, 'b': False, 'c': False}
    s.run(25.0)
    assert all(s.out.loads.values())


def test_forming_under_too_much_load_becomes_a_black_start() -> None:
    s = site({'a': 4000.0, 'b': 4000.0, 'c': 0.0})
    s.overload_stops = True
    s.run(1.0)
    s.grid = dict(DEAD)
    assert s.run(10.0) == ['on_grid', 'islanding', 'forming', 'black_start', 'island']


def test_no_grid_at_start_is_a_black_start_and_one_that_fails_ends() -> None:
    s = site(black_start_tries=2)
    s.grid = dict(DEAD)
    assert s.run(3.0) == ['black_start', 'island']
    s = site(black_start_tries=2)
    s.grid, s.form_s = dict(DEAD), 1e9
    assert s.run(30.0) == ['black_start', 'failed']
    assert not s.out.form_grid and not s.out.switch_closed
    s.machine.restart(s.now)
    s.form_s = 0.3
    assert s.run(2.0)[-1] == 'island'
    s = site()
    s.grid, s.form_s = dict(DEAD), 1e9
    s.run(60.0)
    s.grid = dict(GOOD)
    assert s.run(70.0)[-1] == 'ramping', 'the grid ends a failure'


def test_the_periodic_test() -> None:
    s = site(test_every_days=1.0, test_duration_s=30.0, observation_s=5.0)
    assert s.run(100.0, 1.0) == ['on_grid']
    states = s.run(86400.0 + 400.0, 1.0)
    assert states[:6] == ['on_grid', 'islanding', 'forming', 'island', 'observing', 'reconnecting']
    assert states[-1] == 'on_grid' and s.machine.last_result == 'passed'
    s.soc = 0.2
    assert s.machine.start_test(Seen(soc=0.2), s.now, 0.0) == 'state of charge is below 50%'
    s.soc = 0.9
    assert s.machine.start_test(Seen(soc=0.9), s.now, 0.0) == ''
    s.run(5.0)
    s.grid = dict(DEAD)
    s.run(60.0)
    assert s.machine.state == 'island' and 'lost meanwhile' in s.machine.last_result
    assert s.machine.start_test(Seen(soc=0.9), s.now, 0.0) == 'no test in state island'


def test_a_test_that_fails_goes_back_to_the_grid() -> None:
    s = site(observation_s=1.0)
    s.run(5.0)
    s.form_s = 1e9
    s.machine.start_test(Seen(soc=0.9), s.now, 0.0)
    states = s.run(20.0)
    assert states[:3] == ['islanding', 'forming', 'observing'] and states[-1] == 'ramping'
    assert s.machine.last_result.startswith('failed')


def test_a_switch_that_does_not_move_is_a_failure() -> None:
    machine = BackupMachine(BackupParams(**FAST))
    stuck = Seen(**DEAD, forming=True, switch_open=False, soc=0.8)
    for i in range(60):
        machine.tick(Seen(**GOOD, switch_open=False, soc=0.8) if i < 5 else stuck, i * 0.1, 1e9)
    assert machine.state == 'failed' and 'does not open' in machine.cause
    assert not machine.outputs.form_grid, 'never forms onto a grid that may be there'


@given(st.lists(st.tuples(st.sampled_from(['good', 'dead', 'silent', 'odd']), st.floats(0.0, 1.0), st.booleans(),
                          st.sampled_from([True, False, None]), st.floats(-9000.0, 9000.0), st.floats(0.0, 40.0)),
                max_size=60))
@settings(max_examples=60)
def test_it_never_forms_while_the_switch_was_told_to_be_closed_but_for_the_return(rows: list[Any]) -> None:
    machine = BackupMachine(BackupParams(**FAST), [LoadGroup('a'), LoadGroup('b', 0.5)])
    grids = {'good': GOOD, 'dead': DEAD, 'silent': {'grid_silent': True},
             'odd': {'voltage': (nan, 9e9, -1.0), 'frequency': 1e9}}
    now = 0.0
    for grid, soc, forming, switch, power, dt in rows:
        now += dt
        out = machine.tick(Seen(**grids[grid], forming=forming, switch_open=switch, soc=soc, power=power,
                                max_discharge=3000.0), now, 1e9 + now)
        if out.form_grid and out.switch_closed:
            assert machine.state == 'reconnecting'
        if machine.state in ('dark', 'failed'):
            assert not any(out.loads.values()) and not out.form_grid


@pytest.mark.parametrize('params, said', [
    ({'loads': ['']}, 'no load group'), ({'loads': ['io/x 2']}, 'no load group'),
    ({'restart_soc': 0.01}, 'below dark_soc'),
    ({'return_frequency_low': 45.0}, 'lost and back at once')])
def test_settings_that_make_no_sense(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        build(Backup.Params, params)


def test_the_mode_asks_nothing_of_the_battery_in_an_island() -> None:
    mode = Backup(build(Backup.Params, {'converter': 'c', 'switch_output': 'io/s', 'form_output': 'io/f',
                                        'loads': ['io/a'], 'switch_timeout_s': 0.5}), 'm', 'b', 'grid')
    now = 0.0

    def step(volts: float, forming: bool) -> Any:
        nonlocal now
        now += 0.3
        seen = view(now)
        seen.meter = meter(0.0, now, voltage=(volts,) * 3, frequency=50.0 if volts else nan)
        seen.converter = ConverterReading(time=now, quality=Quality.OK, grid_forming=forming, voltage=(230.0,) * 3)
        return mode.decide(seen)

    assert step(230.0, False).reason == 'on the grid'
    proposals = [step(0.0, False) for _ in range(5)] + [step(0.0, True) for _ in range(2)]
    assert mode.state == 'island' and mode.outputs == {'io/a': True, 'io/s': False, 'io/f': True}
    assert (proposals[-1].min_power, proposals[-1].max_power, proposals[-1].preferred_power) == (0.0, 0.0, 0.0)


def test_outputs_on_the_wire(graph: Any) -> None:
    plant = Plant(graph)
    plant.silent = {'meter', 'battery'}
    node = graph.add(node_type(Backup), 'backup', {
        'battery': 'bat', 'meter': 'grid', 'switch_output': 'io/switch', 'loads': ['io/kitchen'],
        'test_input': 'io/button'})
    graph.up(node)
    switch = graph.listen(Bool, 'io/switch', qos.STATE)
    loads = graph.listen(Bool, 'io/kitchen', qos.STATE)
    graph.wait(lambda: switch and loads and switch[-1].data and loads[-1].data, 'connected to the grid')
    graph.publisher(Bool, 'io/button', qos.EVENT).publish(Bool(data=True))
    graph.wait(lambda: node._mode.machine.last_result.startswith('refused'), 'no test without a known state of charge')


def test_contacts_and_outputs_of_an_io_module(graph: Any) -> None:
    plant = Plant(graph)
    plant.silent = {'meter', 'battery'}
    node = graph.add(node_type(Backup), 'backup', {
        'battery': 'bat', 'meter': 'grid', 'switch_output': 'io:k1', 'loads': ['io:k2', 'io:k3 0.5'],
        'test_input': 'io:button', 'period': 0.05})
    orders = graph.listen(OutputSetpoint, 'io/output', qos.SETPOINT)
    status = graph.peer.create_publisher(IoStatus, 'io/status', qos.MEASUREMENT)
    graph.up(node)
    graph.wait(lambda: {o.name for o in orders} == {'k1', 'k2', 'k3'}, 'each output gets its order')
    assert all(o.value == 1.0 and o.lease > 1.0 and o.source == 'backup' for o in orders)
    count = len(orders)
    graph.wait(lambda: {o.name for o in orders[count:]} == {'k1', 'k2', 'k3'}, 'and again before its lease ends', 4.0)
    graph.wait(lambda: status.get_subscription_count() > 0, 'it listens to the module')
    status.publish(IoStatus(digital_input_names=['other', 'button'], digital_inputs=[0, 255]))
    graph.settle(0.2)
    assert node._mode.machine.last_result == '', 'a contact that was not read is no press'
    status.publish(IoStatus(digital_input_names=['other', 'button'], digital_inputs=[0, 1]))
    graph.wait(lambda: node._mode.machine.last_result.startswith('refused'), 'the button')
