"""SunSpec inverter: DER models 701 to 715 or the older 101 to 124, by what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink
from bess_drivers.sunspec.inverter_control import DerControl, LegacyControl
from bess_drivers.sunspec.inverter_decode import decode_der, decode_legacy
from bess_drivers.sunspec.inverter_params import SunSpecInverterParams

__all__ = ['SunSpecInverter', 'SunSpecInverterParams']

INVERTER_MODELS = (103, 113, 102, 112, 101, 111)
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
        self._hb = Heartbeat(params.heartbeat_timeout_s)
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
        self._hb.reset()
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
            reading = self._read_der(now) if model == 701 else self._read_legacy(model)
        reading.time = now
        return reading

    def _with_settings(
        self, live: dict[int, int], settings: tuple[int, ...]
    ) -> dict[int, ModelValues]:
        """Live models, and the settings models from the last time if that is not long ago."""
        if not self._clock() - self._settings_at < SETTINGS_EVERY_S:
            self._settings = self._map.read_models({m: 0 for m in settings if self._map.has(m)})
            self._settings_at = self._clock()
        live = {m: n for m, n in live.items() if self._map.has(m)}
        return {**self._settings, **self._map.read_models(live)}

    def _read_der(self, now: float) -> ConverterReading:
        models = self._with_settings({701: MEASURED_701, 704: 0, 713: 0, 714: 0, 715: 0}, (702,))
        reading = decode_der(
            models[701], models.get(702), models.get(704), models.get(714), self.params
        )
        if control := models.get(704):
            self._check_orders(reading, self._der, control)
        storage = models.get(713)
        if storage and storage.integer('Sta') == 2:
            reading.alarms += (Alarm('sunspec.storage_error', Severity.ERROR, '713 Sta is ERROR'),)
        if operation := models.get(715):
            self._operation(reading, operation, now)
        return reading

    def _read_legacy(self, model: int) -> ConverterReading:
        control = 123 if self.params.legacy_control == 'signed_limit' else 124
        models = self._with_settings({model: 0, control: 0}, (120, 121))
        reading = decode_legacy(
            models[model], models.get(120), models.get(121), models.get(124), self.params
        )
        if state := models.get(control):
            self._check_orders(reading, self._legacy, state)
        reading.setpoint, reading.reactive_setpoint = self._legacy.power, self._legacy.reactive
        return reading

    @staticmethod
    def _check_orders(
        reading: ConverterReading, writer: DerControl | LegacyControl, state: ModelValues
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
        """Local control and both heartbeats of 715."""
        if operation.integer('LocRemCtl') == 1:
            reading.limit_reasons.append('inverter: in local control')
        if self._hb.stands_still(operation.number('DERHb'), now):
            reading.quality = Quality.STALE
            reading.alarms += (
                Alarm(
                    'sunspec.heartbeat_lost',
                    Severity.ERROR,
                    f'715 DERHb did not count for {self.params.heartbeat_timeout_s:g} s',
                ),
            )
        if not self.params.heartbeat or self._read_only or not operation.has('ControllerHb'):
            return
        value = self._hb.due(self._clock(), 0xFFFFFFFE)
        if value is None:
            return
        try:
            self._map.write(715, {'ControllerHb': value}, {})
        except Refused as error:
            reading.alarms += (
                Alarm('sunspec.heartbeat_refused', Severity.WARNING, f'715 ControllerHb: {error}'),
            )

    def _control(self) -> DerControl | LegacyControl:
        if self._read_only:
            raise ReadOnlyError('nothing written: read-only')
        self._scan()
        if self._map.has(704):
            return self._der
        model = 123 if self.params.legacy_control == 'signed_limit' else 124
        if not self._map.has(model):
            raise BadValue(
                f'the inverter takes no power: {self._map.problem(704)}; {self._map.problem(model)}'
            )
        return self._legacy

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
