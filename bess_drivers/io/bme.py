"""Climate sensors on I2C: Bosch BME280 and BME680 (role climate)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, ClassVar

import bme680

from bess_core.params import param
from bess_core.values import ClimateReading, Identity, Quality
from bess_drivers.device import BadValue, DeviceError, NoAnswer, ReadOnlyError, Refused, Role
from bess_drivers.io import bme280_codec as b
from bess_drivers.serial.bms_reading import checked
from bess_drivers.smbus.i2c import I2cDevice

ADDRESS = 0x76
LOOK_S, LONGEST_S = 0.01, 0.5


@dataclass(frozen=True)
class BmeParams:
    """Settings of a climate sensor."""

    address: str = param('', doc='i2c:/dev/i2c-1?address=0x76')
    temperature_offset: float = param(0.0, 'K', 'added to what the sensor says, for heat of its board',
                                      low=-20.0, high=20.0)


@dataclass(frozen=True)
class Bme680Params(BmeParams):
    """Settings of a climate sensor with gas sensor."""

    heater_temperature: int = param(320, 'degC', 'of the gas sensor; 0 = no gas measurement', low=0, high=400)
    heater_ms: int = param(150, 'ms', 'how long it is heated', low=1, high=4032)


class _Bme:
    """What both share."""

    role: ClassVar[Role] = Role.CLIMATE

    def __init__(self, params: BmeParams, read_only: bool = False,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.params = params
        self.link = I2cDevice(params.address, ADDRESS, read_only=read_only)
        self._sleep = sleep

    def open(self) -> None:
        """Open the bus. Raises `Disconnected`."""
        self.link.open()

    def close(self) -> None:
        """Close the bus; never raises."""
        self.link.close()

    def _chip(self, wanted: int, name: str) -> None:
        found = self.link.read(bytes((b.ID,)), 1)[0]
        if found != wanted:
            raise BadValue(f'{self.link.text}: chip id 0x{found:02x} is not that of a {name} (0x{wanted:02x})')

    def write_climate(self, mode: float, temperature: float) -> None:
        """Raises `Refused`: a sensor takes no orders."""
        if not (isnan(mode) and isnan(temperature)):
            raise Refused('a sensor takes no orders')

    def _reading(self, now: float, celsius: float, pascal: float, humidity: float,
                 gas_resistance: float = nan) -> ClimateReading:
        return ClimateReading(
            time=now, quality=Quality.OK,
            temperature=checked('temperature in degC', celsius, -50.0, 100.0) + self.params.temperature_offset,
            pressure=pascal if isnan(pascal) else checked('pressure in Pa', pascal, 20_000.0, 120_000.0),
            humidity=humidity, gas_resistance=gas_resistance)


class Bme280Sensor(_Bme):
    """Temperature, humidity, pressure. Under `read_only` it must have been set to normal mode by others."""

    Params: ClassVar[type] = BmeParams
    _calibration: b.Calibration | None = None

    def identify(self) -> Identity:
        """Chip id and calibration. Raises `DeviceError`."""
        self._chip(b.CHIP, 'BME280')
        self._calibration = b.parse_calibration(self.link.read(bytes((b.CALIBRATION_1,)), b.SIZE_1),
                                                self.link.read(bytes((b.CALIBRATION_2,)), b.SIZE_2))
        return Identity('Bosch', 'BME280')

    def read(self, now: float) -> ClimateReading:
        """One measurement. Raises `DeviceError`."""
        if self._calibration is None:
            self.identify()
        assert self._calibration is not None
        if self.link.read_only:
            if self.link.read(bytes((b.MEAS,)), 1)[0] & 3 != b.NORMAL:
                raise BadValue(f'{self.link.text} sleeps, and read_only forbids to start a measurement')
        else:
            self.link.write(bytes((b.HUM, 1)))  # one sample each; takes effect with the next line
            self.link.write(bytes((b.MEAS, 1 << 5 | 1 << 2 | b.FORCED)))
            waited = 0.0
            while self.link.read(bytes((b.STATUS,)), 1)[0] & b.MEASURING:
                if waited > LONGEST_S:
                    raise NoAnswer(f'{self.link.text} does not finish its measurement')
                self._sleep(LOOK_S)
                waited += LOOK_S
        t, p, h = b.parse_raw(self.link.read(bytes((b.DATA,)), b.DATA_SIZE))
        fine, k = b.fine(t, self._calibration), self._calibration
        return self._reading(now, b.temperature(fine), b.pressure(p, fine, k), b.humidity(h, fine, k))


class _Registers:
    """The three calls that the bme680 library makes of a bus."""

    def __init__(self, link: I2cDevice) -> None:
        self._link = link

    def read_byte_data(self, _: int, register: int) -> int:
        """One register."""
        return self._link.read(bytes((register,)), 1)[0]

    def read_i2c_block_data(self, _: int, register: int, size: int) -> list[int]:
        """Several."""
        return list(self._link.read(bytes((register,)), size))

    def write_byte_data(self, _: int, register: int, value: int) -> None:
        """One register."""
        self._link.write(bytes((register, value)))

    def write_i2c_block_data(self, _: int, register: int, values: list[int]) -> None:
        """Several, from `register` on."""
        self._link.write(bytes(x for i, v in enumerate(values) for x in (register + i, v)))


class Bme680Sensor(_Bme):
    """Temperature, humidity, pressure and resistance of the gas sensor; formulas of Pimoroni's library."""

    Params: ClassVar[type] = Bme680Params
    _sensor: Any = None

    def identify(self) -> Identity:
        """Chip id, calibration, settings. Raises `DeviceError` (`ReadOnlyError`: it measures by order only)."""
        self._chip(0x61, 'BME680')
        if self.link.read_only:
            raise ReadOnlyError(f'{self.link.text}: a BME680 measures by order only, which read_only forbids')
        p = self.params
        try:
            sensor = bme680.BME680(self.link.address.device, i2c_device=_Registers(self.link))
            sensor.set_humidity_oversample(bme680.OS_2X)
            sensor.set_pressure_oversample(bme680.OS_4X)
            sensor.set_temperature_oversample(bme680.OS_8X)
            sensor.set_filter(bme680.FILTER_SIZE_3)
            gas = bool(p.heater_temperature)  # type: ignore[attr-defined]
            sensor.set_gas_status(bme680.ENABLE_GAS_MEAS if gas else bme680.DISABLE_GAS_MEAS)
            if gas:
                sensor.set_gas_heater_temperature(p.heater_temperature)  # type: ignore[attr-defined]
                sensor.set_gas_heater_duration(p.heater_ms)  # type: ignore[attr-defined]
                sensor.select_gas_heater_profile(0)
        except DeviceError:
            raise
        except (RuntimeError, ValueError, ArithmeticError) as error:
            raise BadValue(f'{self.link.text}: {error}') from error
        self._sensor = sensor
        return Identity('Bosch', 'BME680')

    def read(self, now: float) -> ClimateReading:
        """One measurement; gas resistance is NaN until its heater is stable. Raises `DeviceError`."""
        if self._sensor is None:
            self.identify()
        try:
            if not self._sensor.get_sensor_data():
                raise NoAnswer(f'{self.link.text} does not finish its measurement')
        except (RuntimeError, ValueError, ArithmeticError) as error:
            raise BadValue(f'{self.link.text}: {error}') from error
        data = self._sensor.data
        gas = float(data.gas_resistance) if data.heat_stable else float('nan')
        return self._reading(now, data.temperature, data.pressure * 100.0, data.humidity / 100.0, gas_resistance=gas)
