"""SunSpec inverter: DER models 701 to 715 or the older 101 to 124, by what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, nan
from typing import ClassVar

from bess_core.values import Alarm, ConverterReading, Identity, Quality, Severity
from bess_drivers.device import (
    BadFrame,
    BadValue,
    Counters,
    DeviceError,
    ReadOnlyError,
    Refused,
    Role,
)
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.common import Heartbeat
from bess_drivers.sunspec.control_common import INVERTER_MODELS
from bess_drivers.sunspec.curves import Points
from bess_drivers.sunspec.der_control import DerControl
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink
from bess_drivers.sunspec.grid_functions import GridFunctions
from bess_drivers.sunspec.inverter_decode import decode_der, decode_legacy, enter_service
from bess_drivers.sunspec.inverter_params import SunSpecInverterParams
from bess_drivers.sunspec.kaco_control import MODEL as KACO
from bess_drivers.sunspec.kaco_control import STATES as KACO_STATES
from bess_drivers.sunspec.kaco_control import KacoControl
from bess_drivers.sunspec.legacy_control import LegacyControl
from bess_drivers.sunspec.vendor_functions import kaco_alarms

__all__ = ['SunSpecInverter', 'SunSpecInverterParams']

MEASURED_701 = 123  # registers of 701 up to its last scale factor: one request instead of two
SETTINGS_EVERY_S = 10.0  # ratings and settings change rarely


class SunSpecInverter:
    """An inverter that speaks SunSpec. `link` replaces the Modbus link (tests, shared buses)."""

    Params: ClassVar[type] = SunSpecInverterParams
    role: ClassVar[Role] = Role.CONVERTER
    shares_link: ClassVar[bool] = True

    def __init__(
        self,
        params: SunSpecInverterParams,
        read_only: bool = False,
        *,
        link: RegisterLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.params = params
        self._read_only = read_only
        self._clock = clock
        self._link: RegisterLink = link or ModbusLink(
            params.address, timeout_s=params.timeout_s, read_only=read_only
        )
        self._map = DeviceMap(self._link, params.unit, params.base, params.max_registers)
        self._der = DerControl(self._map, params, clock)
        self._legacy = LegacyControl(self._map, params, clock)
        self.grid = GridFunctions(self._map, params, clock)
        self._kaco = KacoControl(self._map, params, clock, self.grid.vendor)
        self._hb = Heartbeat(params.heartbeat_timeout_s)
        self._read_at: dict[int, float] = {}  # model -> s, site time
        self._settings: dict[int, ModelValues] = {}
        self._settings_at = nan

    @property
    def counters(self) -> Counters:
        """Traffic of the link."""
        return getattr(self._link, 'counters', Counters())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the device's map; empty before the first contact."""
        return self._map.notes

    def open(self) -> None:
        """See `Device`."""
        self._forget()
        self._link.open()

    def close(self) -> None:
        """See `Device`."""
        self._link.close()

    def identify(self) -> Identity:
        """See `Device`. Raises `BadValue` if there is no inverter model in the known layout."""
        with self._watched():
            self._scan()
            return self._map.identity()

    def _forget(self) -> None:
        self._map.forget()
        self._der.forget()
        self._legacy.forget()
        self._kaco.forget()
        self._hb.reset()
        self.grid.forget()
        self._read_at = {}
        self._settings, self._settings_at = {}, nan

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """After a failure the device may have restarted: the next order sets everything anew."""
        try:
            yield
        except (Refused, BadValue, ReadOnlyError):
            raise
        except DeviceError as error:
            self._der.forget()
            self._legacy.forget()
            self._kaco.forget()
            if isinstance(error, BadFrame):
                self._map.forget()
            raise

    def _scan(self) -> int:
        """The model that carries the measurement: 701 or one of 101 to 113."""
        if not self._map.known:
            self._map.scan()
        model = self._map.first_of(701, *INVERTER_MODELS)
        if not model:
            raise BadValue(f'no SunSpec inverter: {self._map.problem(701)}')
        return model

    def read(self, now: float) -> ConverterReading:
        """See `ConverterDevice`. Three requests for a DER device. Raises `BadValue` without W."""
        with self._watched():
            model = self._scan()
            reading = self._read_der(now) if model == 701 else self._read_legacy(model, now)
        reading.time = now
        return reading

    def read_slow(self, now: float) -> float:
        """Settings of one grid function (see `GridFunctions`); when it is to be called again (s, site time)."""
        with self._watched():
            self._scan()
            return self.grid.read_one(now)

    @property
    def shown(self) -> dict[str, str]:
        """Grid functions as they were read last, for people."""
        return self.grid.shown

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each model was read."""
        return {str(m): now - at for m, at in {**self.grid.read_at, **self._read_at}.items()}

    def _with_settings(
        self, live: dict[int, int], settings: tuple[int, ...], now: float
    ) -> dict[int, ModelValues]:
        """Live models, and the settings models from the last time if that is not long ago."""
        if not self._clock() - self._settings_at < SETTINGS_EVERY_S:
            self._settings = self._map.read_models({m: 0 for m in settings if self._map.has(m)})
            self._settings_at = self._clock()
            self._read_at.update(dict.fromkeys(self._settings, now))
        live = {m: n for m, n in live.items() if self._map.has(m)}
        models = {**self._settings, **self._map.read_models(live)}
        self._read_at.update(dict.fromkeys(live, now))
        return models

    def _read_der(self, now: float) -> ConverterReading:
        models = self._with_settings({701: MEASURED_701, 703: 0, 704: 0, 713: 0, 714: 0, 715: 0}, (702,),
                                     now)
        reading = decode_der(
            models[701], models.get(702), models.get(704), models.get(714), self.params
        )
        if service := models.get(703):
            enter_service(reading, service)
        if control := models.get(704):
            self._check_orders(reading, self._der, control)
        storage = models.get(713)
        if storage and storage.integer('Sta') == 2:
            reading.alarms += (Alarm('sunspec.storage_error', Severity.ERROR, '713 Sta is ERROR'),)
        if operation := models.get(715):
            self._operation(reading, operation, now)
        return reading

    def _read_legacy(self, model: int, now: float) -> ConverterReading:
        writer: LegacyControl | KacoControl = self._kaco if self._map.has(KACO) else self._legacy
        control = KACO if writer is self._kaco else 123 if self.params.legacy_control == 'signed_limit' else 124
        models = self._with_settings({model: 0, control: 0, 64800: 0}, (120, 121), now)
        reading = decode_legacy(
            models[model], models.get(120), models.get(121), models.get(124), self.params
        )
        if state := models.get(control):
            self._check_orders(reading, writer, state)
        if kaco := models.get(KACO):
            if (code := kaco.integer('CurrentState')) in KACO_STATES:
                reading.state = KACO_STATES[code]
            reading.alarms += kaco_alarms(kaco)
        if operation := models.get(64800):
            self._operation(reading, operation, now)
        reading.setpoint, reading.reactive_setpoint = writer.power, writer.reactive
        return reading

    @staticmethod
    def _check_orders(
        reading: ConverterReading, writer: DerControl | LegacyControl | KacoControl, state: ModelValues
    ) -> None:
        """Say so where the device left an order, or would never leave it by itself."""
        reading.alarms += tuple(
            Alarm(
                f'sunspec.order_dropped_{name.lower()}',
                Severity.WARNING,
                f'the inverter confirmed an order and then left it ({name})',
            )
            for name in writer.observe(state)
        )
        if writer.without_timer:
            reading.alarms += (
                Alarm(
                    'sunspec.no_reversion_timer',
                    Severity.WARNING,
                    'the inverter would keep its last order if communication failed',
                ),
            )

    def _operation(self, reading: ConverterReading, operation: ModelValues, now: float) -> None:
        """Local control and both heartbeats of 715 or 64800."""
        model = operation.model_id
        theirs, limit = ('DERHb', 0xFFFFFFFE) if model == 715 else ('PCSHb', 0x7FFE)
        if operation.integer('LocRemCtl') == 1:
            reading.limit_reasons.append('inverter: in local control')
        if self._hb.stands_still(operation.number(theirs), now):
            reading.quality = Quality.STALE
            reading.alarms += (
                Alarm(
                    'sunspec.heartbeat_lost',
                    Severity.ERROR,
                    f'{model} {theirs} did not count for {self.params.heartbeat_timeout_s:g} s',
                ),
            )
        if not self.params.heartbeat or self._read_only or not operation.has('ControllerHb'):
            return
        value = self._hb.due(self._clock(), limit)
        if value is None:
            return
        try:
            self._map.write(model, {'ControllerHb': value}, {})
        except Refused as error:
            reading.alarms += (
                Alarm('sunspec.heartbeat_refused', Severity.WARNING, f'{model} ControllerHb: {error}'),
            )

    def _control(self) -> DerControl | LegacyControl | KacoControl:
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')
        self._scan()
        if self._map.has(704):
            return self._der
        if self._map.has(KACO):
            return self._kaco
        model = 123 if self.params.legacy_control == 'signed_limit' else 124
        if not self._map.has(model):
            raise BadValue(
                f'the inverter takes no power: {self._map.problem(704)}; {self._map.problem(model)}'
            )
        return self._legacy

    def read_curve(self, model: int) -> tuple[bool, Points]:
        """Whether a function with a curve is enabled and the curve that acts; see `Curves.read`."""
        with self._watched():
            self._scan()
            return self.grid.read_curve(model)

    def write_curve(self, model: int, points: Sequence[tuple[float, float]]) -> None:
        """Make a curve act; see `GridFunctions.write_curve`. Takes as long as the device needs to adopt it."""
        with self._writing():
            self.grid.write_curve(model, points)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')
        with self._watched():
            self._scan()
            yield

    def apply_settings(self) -> list[str]:
        """Write the grid functions of the site file that the device does not have yet; their names."""
        with self._writing():
            return self.grid.apply()

    def operate(self, operation: str, arguments: Sequence[str]) -> list[str]:
        """See `GridFunctions.operate`; and `reset_alarms` (715)."""
        with self._writing():
            if operation != 'reset_alarms':
                return self.grid.operate(operation, arguments)
            self._map.write(715, {'AlarmReset': 1}, {})
            return []

    def write_power(self, power: float, reactive_power: float, lease: float) -> None:
        """See `ConverterDevice`. One request per order, a few more when its timer is due."""
        if not isfinite(power):
            raise BadValue(f'power of {power} W')
        with self._watched():
            self._control().order(power, reactive_power, lease)

    def stop(self) -> None:
        """See `ConverterDevice`. Two requests."""
        with self._watched():
            self._control().stop()
