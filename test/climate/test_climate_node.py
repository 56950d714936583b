"""The climate node on real DDS: sensors in, leased outputs and charge bounds out."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from bess.msg import ClimateZone, Event, IoStatus, OutputSetpoint, PowerProposal
from bess.srv import ForceClimate
from bess_control.climate.climate_node import ClimateNode, ClimateParams
from bess_core import qos
from bess_core.convert import stamp

PARAMS = {'profile': 'small', 'io': ['io'], 'sensors': {'cabinet': ['io.t1', 'io.t2']}, 'battery': 'bat',
          'outputs': {'cabinet': {'fan': 'io.fan', 'heater': 'io.heater'}}, 'period': 0.05}


class Cabinet:
    """An I/O module played by the peer."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.temperatures = graph, [20.0, 20.0]
        self.node = graph.add(ClimateNode, 'climate', dict(PARAMS))
        self.outputs: dict[str, OutputSetpoint] = {}
        self.proposals: list[PowerProposal] = []
        graph.peer.create_subscription(OutputSetpoint, 'io/output', self._on_output, qos.SETPOINT)
        graph.peer.create_subscription(PowerProposal, 'proposals', self.proposals.append, qos.EVENT)
        graph.up(self.node)
        self.zones = graph.listen(ClimateZone, 'climate/zone_cabinet', qos.STATE)
        self._io = graph.publisher(IoStatus, 'io/status', qos.MEASUREMENT)
        graph.ticker.every(0.05, lambda _: self.publish())

    def _on_output(self, m: OutputSetpoint) -> None:
        self.outputs[m.name] = m

    def publish(self) -> None:
        m = IoStatus(analog_input_names=['t1', 't2'], analog_inputs=self.temperatures, analog_input_units=['degC'] * 2)
        m.header.stamp = stamp(self.graph.clock, self.graph.clock.now())
        self._io.publish(m)

    def value(self, name: str) -> float:
        return self.outputs[name].value if name in self.outputs else nan


def test_a_cold_cabinet_is_heated_and_not_charged_until_it_is_warm(graph: Any) -> None:
    c = Cabinet(graph)
    c.temperatures = [-5.0, 3.0]
    graph.wait(lambda: c.value('heater') == 1.0 and 'fan' in c.outputs, 'heats')
    graph.wait(lambda: c.proposals and c.proposals[-1].max_power == 0.0, 'no charging')
    p = c.proposals[-1]
    assert (p.battery, p.min_power, p.preferred_power != p.preferred_power) == ('bat', -inf, True)
    assert '-5.0 degC' in p.reason
    assert c.node.faults.get('climate.interlock')
    assert c.outputs['heater'].lease >= 1.0
    assert c.outputs['heater'].source == 'climate'
    c.temperatures = [20.0, 20.0]
    graph.wait(lambda: c.zones[-1].charge_allowed and not c.node.faults.get('climate.interlock'), 'may charge')
    count = len(c.proposals)
    graph.settle(0.2)
    assert len(c.proposals) <= count + 1


def test_without_sensors_it_says_so_and_bars_the_battery(graph: Any) -> None:
    c = Cabinet(graph)
    c.temperatures = [nan, 20.0]
    graph.wait(lambda: c.node.faults.get('climate.sensor') and c.zones[-1].quality == 1, 'one is broken')
    c.temperatures = [nan, nan]
    graph.wait(lambda: c.zones[-1].quality == 2 and c.value('fan') == 1.0, 'fan to its safe value')
    assert not c.zones[-1].charge_allowed
    assert c.value('heater') == 0.0


def test_force_by_service(graph: Any) -> None:
    c = Cabinet(graph)

    def force(**fields: Any) -> Any:
        return graph.call(ForceClimate, 'climate/force', ForceClimate.Request(
            **{'zone': 'cabinet', 'output': 'fan', 'value': 1.0, 'duration': 60.0, 'by': 'eva', **fields}))

    for bad in ({'zone': 'x'}, {'output': 'x'}, {'value': 2.0}, {'duration': 0.0}, {'duration': 1e9}, {'duration': nan},
                {'by': ' '}):
        answer = force(**bad)
        assert not answer.accepted and answer.message, bad
    events = graph.listen(Event, 'events', qos.EVENT)
    assert force().accepted
    graph.wait(lambda: c.value('fan') == 1.0 and c.zones[-1].forced.startswith('fan=1 for '), 'forced')
    assert force(value=nan).accepted
    graph.wait(lambda: c.zones[-1].forced == '', 'automatic')
    assert force(duration=0.3).accepted
    graph.wait(lambda: len(events) == 4, 'told')
    assert [(e.kind, e.name, e.change) for e in events] == [('climate', 'cabinet.fan', w) for w in (
        'forced', 'released', 'forced', 'released')]
    assert [events[0].text, events[1].text, events[3].text] == [
        '100% for 60 s by eva', 'by eva', 'its time is over']


@pytest.mark.parametrize(('change', 'text'), [
    ({'profile': 'huge'}, 'no such climate profile'), ({'sensors': {}}, 'needs a list'),
    ({'sensors': {'attic': ['io.t1']}}, 'unknown zone'), ({'sensors': {'cabinet': ['other.t1']}}, 'is not of io'),
    ({'sensors': {'cabinet': ['bms']}}, 'any node given'), ({'outputs': {'cabinet': {'pump': 'io.x'}}}, "no 'pump'"),
    ({'outputs': {'cabinet': {'fan': 'x'}}}, 'MODULE.OUTPUT'), ({'interlock': ['attic']}, 'unknown zone'),
    ({'devices': {'attic': []}}, 'unknown zone'), ({'devices': {'cabinet': ['aircon']}}, 'list of climate devices'),
    ({'climate': ['aircon'], 'devices': {'cabinet': ['aircon', 'aircon']}}, 'two zones'),
])
def test_parameters_that_cannot_be(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ClimateParams(**{**PARAMS, **change})
