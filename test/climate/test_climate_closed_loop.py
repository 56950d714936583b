"""A frozen cabinet, closed loop on real DDS: it is not charged until its heater or air conditioner has warmed it."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from bess import msg
from bess_control.climate.climate_node import ClimateNode
from bess_control.climate.profile import load
from bess_control.climate.zone import device_order
from bess_control.power_manager_node import PowerManagerNode
from bess_core import qos
from bess_core.convert import stamp
from bess_core.values import ClimateMode

TICK = 0.05
WARM = 12.0  # K/s of heater or air conditioner, some thousand times faster than a real one
LOSS = 0.1  # 1/s towards the ambient


class Cabinet:
    """Its temperature follows what the climate node orders; a mode wants to charge all the time."""

    def __init__(self, graph: Any, wired: dict[str, Any]) -> None:
        self.graph, peer = graph, graph.peer
        self.temperature, self.ambient = -8.0, -10.0
        self.heat = 0.0
        self.power = nan
        self.modes: list[int] = []
        self.targets: list[float] = []
        self.rows: list[tuple[float, float]] = []  # degC, W
        self.climate = graph.add(ClimateNode, 'climate', {
            'profile': 'small', 'io': ['io'], 'sensors': {'cabinet': ['io.t']}, 'battery': 'bat', 'period': TICK,
            **wired})
        self.manager = graph.add(PowerManagerNode, 'power_manager', {'battery': 'bat', 'tick_s': TICK})
        peer.create_subscription(msg.OutputSetpoint, 'io/output', self._on_output, qos.SETPOINT)
        peer.create_subscription(msg.ClimateSetpoint, 'aircon/setpoint', self._on_aircon, qos.SETPOINT)
        peer.create_subscription(msg.PowerSetpoint, 'bat/setpoint', self._on_order, qos.SETPOINT)
        graph.up(self.climate, self.manager)
        self._io = graph.publisher(msg.IoStatus, 'io/status', qos.MEASUREMENT)
        self._battery = graph.publisher(msg.BatteryStatus, 'bat/status', qos.MEASUREMENT)
        self._system = graph.publisher(msg.SystemState, 'system_state', qos.STATE)
        self._wish = graph.publisher(msg.PowerProposal, 'proposals', qos.EVENT)
        self._system.publish(msg.SystemState(state=1))
        graph.ticker.every(TICK, lambda _: self._step())

    def _on_output(self, m: msg.OutputSetpoint) -> None:
        if m.name == 'heater':
            self.heat = m.value

    def _on_aircon(self, m: msg.ClimateSetpoint) -> None:
        self.modes.append(m.mode)
        self.targets.append(m.temperature)
        self.heat = 1.0 if m.mode == ClimateMode.HEAT and self.temperature < m.temperature else 0.0

    def _on_order(self, m: msg.PowerSetpoint) -> None:
        self.power = m.power
        self.rows.append((self.temperature, m.power))

    def _step(self) -> None:
        self.temperature += TICK * (WARM * self.heat - LOSS * (self.temperature - self.ambient))
        now = stamp(self.graph.clock, self.graph.clock.now())
        io = msg.IoStatus(analog_input_names=['t'], analog_inputs=[self.temperature], analog_input_units=['degC'])
        battery = msg.BatteryStatus(soc=0.5, voltage=51.2, mode=2, contactor=2, max_charge_power=3000.0,
                                    max_discharge_power=3000.0, power=0.0 if self.power != self.power else self.power)
        wish = msg.PowerProposal(source='eco', battery='bat', priority=100, min_power=-inf, max_power=inf,
                                 preferred_power=2000.0, preferred_reactive_power=nan, lease=1.0, reason='cheap')
        for publisher, m in ((self._io, io), (self._battery, battery), (self._wish, wish)):
            m.header.stamp = now
            publisher.publish(m)


@pytest.mark.parametrize('wired', [
    {'outputs': {'cabinet': {'fan': 'io.fan', 'heater': 'io.heater'}}},
    {'climate': ['aircon'], 'devices': {'cabinet': ['aircon']}}], ids=['heater on a relay', 'air conditioner'])
def test_no_charging_below_the_temperature_of_the_chemistry_until_warm(graph: Any, wired: dict[str, Any]) -> None:
    c = Cabinet(graph, wired)
    zone = load('small')[0]
    graph.wait(lambda: c.climate.faults.get('climate.interlock'), 'interlock')
    graph.wait(lambda: c.power == 2000.0, lambda: f'charges when it is warm: {c.rows[-3:]}, {c.temperature}')
    # What was ordered before the interlock's first proposal arrived does not count: a tick, as for any limit.
    cold = [p for t, p in c.rows[2:] if t < zone.charge_min]
    assert len(cold) > 3 and not any(p > 0.0 for p in cold)
    assert c.temperature >= zone.charge_min + zone.hysteresis - 1.0
    graph.wait(lambda: not c.climate.faults.get('climate.interlock'), 'interlock ends')
    if 'devices' in wired:
        assert ClimateMode.HEAT in c.modes and zone.heater is not None and zone.heater.stop in c.targets


def test_what_a_device_is_told() -> None:
    zone = load('small')[0]

    def told(fan: float, heater: float, cooling: ClimateMode = ClimateMode.COOL) -> tuple[ClimateMode, float]:
        return device_order(zone, {'fan': fan, 'heater': heater}, cooling)

    assert told(0.0, 0.0)[0] is ClimateMode.OFF
    assert told(0.0, 1.0) == (ClimateMode.HEAT, 9.0)
    assert told(1.0, 1.0) == (ClimateMode.HEAT, 9.0)
    assert told(0.3, 0.0) == (ClimateMode.COOL, 28.0)
    assert told(0.3, 0.0, ClimateMode.FAN)[0] is ClimateMode.FAN
