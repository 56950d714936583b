"""Curves of a DER over real Modbus TCP, read back by a foreign client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from bess_drivers.device import BadValue, ReadOnlyError, Refused
from bess_drivers.sunspec.inverter import SunSpecInverter, SunSpecInverterParams
from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_server import ModbusDeviceServer
from bess_sim.devices.sunspec import SunSpecInverterSimulator
from bess_sim.plant_api import StaticPlant

# IEEE 1547-2018 category B volt-var: % of nominal voltage, % of the rated reactive power
CATEGORY_B = ((92.0, 44.0), (98.0, 0.0), (102.0, 0.0), (108.0, -44.0))


@pytest.fixture
def der() -> Iterator[tuple[Any, ModbusDeviceServer]]:
    simulator = SunSpecInverterSimulator(StaticPlant(), 'u', curves=True, background=False)
    server = ModbusDeviceServer({1: simulator}, DeviceFaults())
    server.start()
    yield simulator, server
    server.stop()


def device(server: ModbusDeviceServer, read_only: bool = False) -> SunSpecInverter:
    made = SunSpecInverter(SunSpecInverterParams(address=f'tcp://127.0.0.1:{server.port}'), read_only)
    made.open()
    return made


@pytest.mark.parametrize('model', [705, 706, 712])
def test_a_curve_is_adopted_then_enabled(der: tuple[Any, ModbusDeviceServer], model: int) -> None:
    simulator, server = der
    inverter = device(server)
    enabled, points = inverter.read_curve(model)
    assert not enabled and [v for p in points for v in p] == pytest.approx([90.0, 0.0, 95.0, 0.0])
    inverter.write_curve(model, CATEGORY_B)
    enabled, points = inverter.read_curve(model)
    assert enabled and [v for p in points for v in p] == pytest.approx([v for p in CATEGORY_B for v in p])
    assert [w[3] for w in server.writes][2:] == [(2,), (1,)]  # adopt curve 2, then enable
    assert simulator.image.raw(model, 'Crv[0].ReadOnly') == 1
    inverter.read(0.0)  # measuring goes on
    inverter.close()


def test_a_foreign_client_sees_the_volt_var_curve(der: tuple[Any, ModbusDeviceServer]) -> None:
    _, server = der
    device(server).write_curve(705, CATEGORY_B)
    client = SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr='127.0.0.1', ipport=server.port, timeout=5)
    client.scan()
    model = client.models[705][0]
    assert model.Ena.value == 1 and model.Crv[0].ActPt.value == 4
    assert [(p.V.cvalue, p.Var.cvalue) for p in model.Crv[0].Pt] == [pytest.approx(p) for p in CATEGORY_B]
    client.close()


def test_what_is_refused(der: tuple[Any, ModbusDeviceServer]) -> None:
    simulator, server = der
    inverter = device(server)
    before = len(server.writes)
    for model, points in ((705, CATEGORY_B[:1]), (705, CATEGORY_B * 2), (705, CATEGORY_B[::-1]), (711, CATEGORY_B),
                          (705, ((90.0, 0.0), (float('nan'), 0.0))), (705, ((90.0, 0.0), (900.0, 0.0)))):
        with pytest.raises(BadValue):
            inverter.write_curve(model, points)
    with pytest.raises(ReadOnlyError):
        device(server, read_only=True).write_curve(705, CATEGORY_B)
    assert len(server.writes) == before
    with pytest.raises(Refused, match='does not adopt'):
        inverter.write_curve(705, ((90.0, 150.0), (100.0, 0.0)))  # more than 100 %
    assert simulator.image.raw(705, 'Ena') == 0  # and the old curve acts, not enabled
    simulator.image.set(705, {'Crv[1].ReadOnly': 1, 'Crv[2].ReadOnly': 1})
    with pytest.raises(BadValue, match='no curve that can be written'):
        inverter.write_curve(705, CATEGORY_B)
    inverter.close()
