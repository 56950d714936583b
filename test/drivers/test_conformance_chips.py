"""What only the climate sensors on I2C have: a measurement that does not end, another chip at their address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from i2c_double import i2c_bus

from bess_drivers.device import BadValue, DeviceError, NoAnswer
from bess_drivers.io.bme import Bme280Sensor, Bme680Params, Bme680Sensor, BmeParams

ADDRESS = 0x76


@pytest.mark.parametrize(('chip', 'cls', 'params', 'register', 'busy'), [
    ('bme280', Bme280Sensor, BmeParams, 0xF3, 0x08), ('bme680', Bme680Sensor, Bme680Params, 0x1D, 0x00)])
def test_a_measurement_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: str, cls: Any,
                                         params: Any, register: int, busy: int) -> None:
    with i2c_bus(tmp_path, monkeypatch, chip) as bus:
        sensor = cls(params(address=bus.address))
        sensor.open()
        first = sensor.read(0.0).temperature
        free = 0x80 if chip == 'bme680' else 0
        bus.set(ADDRESS, memory={register: busy})
        with pytest.raises(NoAnswer, match='does not finish'):
            sensor.read(1.0)
        bus.set(ADDRESS, memory={register: free})
        assert sensor.read(2.0).temperature == pytest.approx(first, abs=0.01)
        sensor.close()


@pytest.mark.parametrize(('chip', 'cls', 'params'), [
    ('bme280', Bme680Sensor, Bme680Params), ('bme680', Bme280Sensor, BmeParams)])
def test_another_chip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: str, cls: Any,
                               params: Any) -> None:
    with i2c_bus(tmp_path, monkeypatch, chip) as bus:
        sensor = cls(params(address=bus.address))
        sensor.open()
        with pytest.raises(BadValue, match='chip id'):
            sensor.identify()
        with pytest.raises(DeviceError):
            sensor.read(0.0)
        sensor.close()
