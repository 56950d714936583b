"""Modes as nodes on real DDS: setpoints, schedules, contacts, state, and the hand-over from one to another."""

from __future__ import annotations

from math import nan
from types import SimpleNamespace
from typing import Any

import pytest
from lifecycle_msgs.msg import State
from std_msgs.msg import Bool
from test_control_nodes import Plant, SiteBench, manager

from bess.msg import ModeState, PowerSetpoint, SystemState
from bess.srv import SetMode, SetPower, SetPowerSchedule
from bess_control.mode_node import node_type
from bess_control.modes.connection import LoadLimit
from bess_control.modes.external import ExternalControl, LocalControl
from bess_control.modes.simple import FixedPower
from bess_control.site_node import SiteNode
from bess_core import qos
from bess_core.convert import stamp, wall_stamp
from bess_core.params import ParameterError, build

RUN = SystemState.RUN


def start(graph: Any, cls: Any, name: str = 'mode', **params: Any) -> tuple[Plant, Any]:
    plant = Plant(graph)
    node = graph.add(node_type(cls), name, {'battery': 'bat', 'period': 0.05, **params})
    graph.up(node)
    return plant, node


def preferred(plant: Plant) -> float:
    return plant.proposals[-1].preferred_power if plant.proposals else nan


def test_a_mode_without_need_of_a_meter_has_none_and_one_with_need_is_refused_without(graph: Any) -> None:
    plant, _ = start(graph, FixedPower, charge_power=300.0)
    graph.wait(lambda: preferred(plant) == 300.0, 'proposes on its period')
    from bess_control.modes.peak_shaving import PeakShaving
    with pytest.raises(ParameterError, match='meter'):
        build(node_type(PeakShaving).Params, {'battery': 'bat', 'import_limit': 1.0})


def test_external_setpoints_on_a_topic_with_lease(graph: Any) -> None:
    plant, node = start(graph, ExternalControl)
    orders = graph.publisher(PowerSetpoint, 'mode/setpoint', qos.SETPOINT)

    def order(power: float, lease: float, sequence: int) -> None:
        message = PowerSetpoint(power=power, reactive_power=nan, lease=lease, source='scada', sequence=sequence)
        message.header.stamp = stamp(graph.clock, graph.clock.now())
        orders.publish(message)

    order(900.0, 0.4, 1)
    graph.wait(lambda: preferred(plant) == 900.0, 'the setpoint')
    graph.wait(lambda: preferred(plant) == 0.0, 'zero when its lease ended', 2.0)
    order(nan, 5.0, 2)
    graph.settle(0.2)
    assert preferred(plant) == 0.0, 'NaN is refused'
    order(800.0, 30.0, 9)
    graph.wait(lambda: preferred(plant) == 800.0, 'the next one')
    node.trigger_deactivate()
    node.trigger_activate()
    graph.wait(lambda: preferred(plant) == 0.0, 'setpoints from before it was switched on are void')


def test_a_schedule_of_p_and_q_survives_a_restart_and_bad_ones_change_nothing(graph: Any) -> None:
    plant, node = start(graph, ExternalControl)
    now = graph.clock.wall()
    request = SetPowerSchedule.Request(start=[wall_stamp(now - 5.0)], end=[wall_stamp(now + 600.0)], power=[-400.0],
                                       reactive_power=[120.0])
    assert graph.call(SetPowerSchedule, 'mode/set_schedule', request).accepted
    graph.wait(lambda: preferred(plant) == -400.0, 'the schedule')
    assert plant.proposals[-1].preferred_reactive_power == 120.0
    bad = graph.call(SetPowerSchedule, 'mode/set_schedule', SetPowerSchedule.Request(
        start=[wall_stamp(now)], end=[wall_stamp(now + 1.0)], power=[nan]))
    assert (bad.accepted, 'finite' in bad.message) == (False, True)
    graph.remove(node)
    plant.proposals.clear()
    graph.up(graph.add(node_type(ExternalControl), 'mode', {'battery': 'bat', 'period': 0.05}))
    graph.wait(lambda: preferred(plant) == -400.0, 'the schedule after a restart')


def test_a_schedule_that_the_disk_does_not_take_is_refused(graph: Any) -> None:
    (graph.ctx.state_dir / 'modes').write_text('in the way of the folder')
    plant, _ = start(graph, ExternalControl)
    now = graph.clock.wall()
    answer = graph.call(SetPowerSchedule, 'mode/set_schedule', SetPowerSchedule.Request(
        start=[wall_stamp(now - 5.0)], end=[wall_stamp(now + 600.0)], power=[-400.0]))
    assert not answer.accepted and 'could not be saved' in answer.message
    graph.settle(0.2)
    assert preferred(plant) == 0.0


def test_local_control_by_service_with_heartbeat(graph: Any) -> None:
    plant, _ = start(graph, LocalControl, heartbeat_timeout_s=0.4, fallback_discharge_power=50.0)
    assert not graph.call(SetPower, 'mode/set_power', SetPower.Request(power=500.0, reactive_power=nan)).accepted
    beats = graph.publisher(Bool, 'mode/heartbeat', qos.EVENT)
    beating = graph.ticker.every(0.05, lambda _: beats.publish(Bool(data=True)))
    graph.settle(0.2)
    assert graph.call(SetPower, 'mode/set_power', SetPower.Request(power=500.0, reactive_power=nan)).accepted
    graph.wait(lambda: preferred(plant) == 500.0, 'the manual setpoint')
    beating.cancel()
    graph.wait(lambda: preferred(plant) == -50.0, 'the fallback when the heartbeat is lost', 3.0)


def test_a_contact_limits_and_the_state_is_told(graph: Any) -> None:
    plant, _ = start(graph, LoadLimit, input='io/k1', timeout_s=60.0)
    states = graph.listen(ModeState, 'mode/state', qos.STATE)
    contact = graph.publisher(Bool, 'io/k1', qos.STATE)
    contact.publish(Bool(data=True))
    graph.wait(lambda: plant.proposals and plant.proposals[-1].max_power == 4200.0, 'limited')
    graph.wait(lambda: states and states[-1].state == 'limited', 'state')
    values = dict(zip(states[-1].keys, states[-1].values, strict=True))
    assert values['limit_w'] == 4200.0 and states[-1].type == 'LoadLimit'
    contact.publish(Bool(data=False))
    graph.wait(lambda: states[-1].state == 'free', 'free again')


def test_modes_beside_the_main_one(graph: Any) -> None:
    bench = SiteBench(graph, modes=['mode_b'], mode='')
    graph.up(bench.site)
    bench.wait(RUN, {'conv', 'mode_b'}, 'the mode beside acts without a main mode')
    assert graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='mode_a')).accepted
    bench.wait(RUN, {'conv', 'mode_a', 'mode_b'}, 'both')
    assert (bench.states[-1].mode, list(bench.states[-1].modes)) == ('mode_a', ['mode_b'])
    remove = SetMode.Request(mode='mode_b', action=SetMode.Request.REMOVE)
    assert graph.call(SetMode, 'site/set_mode', remove).accepted
    bench.wait(RUN, {'conv', 'mode_a'}, 'one')
    assert not graph.call(SetMode, 'site/set_mode', remove).accepted
    for wrong in (SetMode.Request(mode='nobody', action=1), SetMode.Request(mode='mode_b', action=7)):
        assert not graph.call(SetMode, 'site/set_mode', wrong).accepted
    assert graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='mode_b', action=SetMode.Request.ADD)).accepted
    bench.wait(RUN, {'conv', 'mode_a', 'mode_b'}, 'both again')
    graph.remove(bench.site)
    bench.site = graph.add(SiteNode, 'site', {**bench.params, 'modes': [], 'mode': ''})
    graph.up(bench.site)
    bench.wait(RUN, {'conv', 'mode_a', 'mode_b'}, 'what was chosen survives a restart')


def test_changing_the_mode_does_not_pass_through_zero(graph: Any) -> None:
    nodes = [SimpleNamespace(name=n, role=r, required=n in ('a', 'b')) for n, r in
             (('a', 'mode'), ('b', 'mode'), ('site', 'site'))]
    graph.ctx.site = SimpleNamespace(nodes=nodes)
    plant, _ = manager(graph)
    modes = {n: graph.add(node_type(FixedPower), n, {'battery': 'bat', 'charge_power': p, 'period': 0.05})
             for n, p in (('a', 800.0), ('b', 900.0))}
    for node in modes.values():
        node.trigger_configure()
    site = graph.add(SiteNode, 'site', {'mode': 'a', 'period': 0.05, 'handover': 0.3})
    graph.up(site)
    graph.wait(lambda: plant.power == 800.0, 'the first mode')
    count = len(plant.orders)
    for mode, power in (('b', 900.0), ('a', 800.0), ('b', 900.0)):
        assert graph.call(SetMode, 'site/set_mode', SetMode.Request(mode=mode)).accepted
        graph.wait(lambda m=mode: {n for n, node in modes.items() if node.lifecycle_id == State.PRIMARY_STATE_ACTIVE}
                   == {m}, 'only the chosen one is left')
        graph.wait(lambda p=power: plant.power == p, f'power of mode {mode}')
        graph.settle(0.6)
    assert min(p for _, p in plant.orders[count:]) >= 800.0, 'never through zero'
    assert graph.call(SetMode, 'site/set_mode', SetMode.Request(mode='none')).accepted
    graph.wait(lambda: plant.power == 0.0, 'no mode: at rest, at once', 2.0)
