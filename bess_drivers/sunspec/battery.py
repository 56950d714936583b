"""SunSpec battery: 802 with 803 to 805 and 807, strings (804) alone, the MESA drafts of 801 to 803, or 713."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan, nan
from typing import ClassVar

from bess_core.values import (
    Alarm,
    BatteryReading,
    Identity,
    Mode,
    Quality,
    Severity,
)
from bess_drivers.device import BadFrame, BadValue, Counters, NoAnswer, ReadOnlyError, Refused, Role
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.sunspec.battery_decode import (
    CONNECT,
    CONNECTED,
    DISCONNECT,
    DISCONNECTED,
    FAULT,
    INVERTER_STOP,
    SOC_PROTECTION,
    STATE_NAMES,
    decode_battery,
    names,
    stop_on_alarms,
    stop_request,
)
from bess_drivers.sunspec.battery_params import SunSpecBatteryParams
from bess_drivers.sunspec.battery_parts import (
    LOCAL_DRAFT,
    add_flow,
    add_modules,
    add_strings,
    from_draft,
    from_strings,
)
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.common import SIGNS, Heartbeat
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink

__all__ = ['SunSpecBattery', 'SunSpecBatteryParams']


class SunSpecBattery:
    """A battery that speaks SunSpec. `link` replaces the Modbus link (tests, shared buses)."""

    Params: ClassVar[type] = SunSpecBatteryParams
    role: ClassVar[Role] = Role.BATTERY
    shares_link: ClassVar[bool] = True

    def __init__(
        self,
        params: SunSpecBatteryParams,
        read_only: bool = False,
        *,
        link: RegisterLink | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.params = params
        self._read_only = read_only
        self._link: RegisterLink = link or ModbusLink(
            params.address, timeout_s=params.timeout_s, read_only=read_only
        )
        self._map = DeviceMap(self._link, params.unit, params.base, params.max_registers)
        self._clock, self._sleep = clock, sleep
        self._hb = Heartbeat(params.heartbeat_timeout_s)
        self._modules: list[ModelValues] = []
        self._modules_at = nan
        self._read_at: dict[int, float] = {}  # model -> s, site time

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each model was read."""
        return {str(m): now - at for m, at in self._read_at.items()}

    def open(self) -> None:
        """See `Device`."""
        self._read_at = {}
        self._map.forget()
        self._hb.reset()
        self._modules, self._modules_at = [], nan
        self._link.open()

    def close(self) -> None:
        """See `Device`."""
        self._link.close()

    def identify(self) -> Identity:
        """See `Device`. Raises `BadValue` if there is no battery model in a known layout."""
        self._scan()
        return self._map.identity()

    @property
    def counters(self) -> Counters:
        """Traffic of the link."""
        return getattr(self._link, 'counters', Counters())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the device's map; empty before the first contact."""
        return self._map.notes

    def _scan(self) -> int:
        """The model that carries the battery: 802, else 804, else 713."""
        if not self._map.known:
            self._map.scan()
        model = self._map.first_of(802, 804, 713)
        if not model:
            # names a wrong L of 802 rather than the missing 713
            raise BadValue(f'no SunSpec battery: {self._map.problem(802)}')
        return model

    def read(self, now: float) -> BatteryReading:
        """See `BatteryDevice`. Raises `BadValue` where V, A or SoC is missing (713: SoC)."""
        try:
            reading = self._read(now)
        except BadFrame:
            self._map.forget()  # the models may have moved
            raise
        self._read_at.update((m, now) for m in (713, 801, 802, 803, 804, 807) if self._map.has(m))
        return reading

    def _read(self, now: float) -> BatteryReading:
        model = self._scan()
        if model == 713:
            return self._from_capacity(self._map.read(713), now)
        if model == 804:
            reading = from_strings(self._map.read_each(804), SIGNS[self.params.current_sign], now)
            stop_on_alarms(reading, names(reading))
            self._add_modules(reading, now)
            return reading
        if self._map.is_draft(802):
            return self._from_draft(now)
        bank = self._map.has(803)
        models = self._map.read_models({802: 0, **({803: 0} if bank else {})})
        reading = decode_battery(models[802], models.get(803), self.params)
        reading.time = reading.newest = now
        if self._map.has(804):
            add_strings(reading, self._map.read_each(804))
        if self._map.has(807):
            add_flow(reading, self._map.read_each(807))
            if 'fire_alarm' in names(reading):
                stop_on_alarms(reading, ['fire_alarm'])
        self._add_modules(reading, now)
        if self._hb.stands_still(models[802].number('Hb'), now):
            reading.quality = Quality.STALE
            reading.alarms += (
                Alarm(
                    'sunspec.heartbeat_lost',
                    Severity.ERROR,
                    f'802 Hb did not count for {self.params.heartbeat_timeout_s:g} s',
                ),
            )
        if self.params.heartbeat and not self._read_only:
            reading.alarms += self._beat(models[802])
        return reading

    def _add_modules(self, reading: BatteryReading, now: float) -> None:
        if not self._map.has(805):
            return
        if not self._clock() - self._modules_at < self.params.cells_every_s:
            self._modules = self._map.read_each(805)
            self._modules_at, self._read_at[805] = self._clock(), now
        add_modules(reading, self._modules)

    def _from_draft(self, now: float) -> BatteryReading:
        if not self._map.is_draft(801):
            raise BadValue(f'the draft layout of 802 has no SoC: {self._map.problem(801) or "801 is no draft"}')
        bank = self._map.is_draft(803)
        models = self._map.read_models({801: 0, 802: 0, **({803: 0} if bank else {})})
        base, battery = models[801], models[802]
        reading = from_draft(base, battery, models.get(803), SIGNS[self.params.current_sign], now)
        stop_on_alarms(reading, names(reading))
        if battery.integer('BatReqPCSSt') == INVERTER_STOP:
            stop_request(reading)
        if self._hb.stands_still(base.number('DERHb'), now):
            reading.quality = Quality.STALE
            reading.alarms += (Alarm('sunspec.heartbeat_lost', Severity.ERROR, '801 DERHb does not count'),)
        if self.params.heartbeat and not self._read_only:
            reading.alarms += self._beat(base, 'ControllerHb')
        return reading

    def _from_capacity(self, model: ModelValues, now: float) -> BatteryReading:
        soc, soh = model.number('SoC') / 100, model.number('SoH') / 100
        if isnan(soc):
            raise BadValue('713 SoC is not implemented or cannot be scaled')
        full = model.number('WHRtg') * (1.0 if isnan(soh) else soh)
        available = model.number('WHAvail')
        status = model.integer('Sta')
        alarms = {
            1: Alarm('sunspec.storage_warning', Severity.WARNING, '713 Sta is WARNING'),
            2: Alarm('sunspec.storage_error', Severity.ERROR, '713 Sta is ERROR'),
        }
        return BatteryReading(
            time=now,
            newest=now,
            quality=Quality.OK,
            soc=soc,
            soh=soh,
            energy_full=full,
            energy=full * soc if isnan(available) else available,
            mode=Mode.FAULT if status == 2 else Mode.UNKNOWN,
            alarms=(alarms[status],) if status in alarms else (),
        )

    def _beat(self, battery: ModelValues, point: str = 'CtrlHb') -> tuple[Alarm, ...]:
        """Count our heartbeat up once a second. A refusal costs an alarm, not the reading."""
        if not battery.has(point) or (value := self._hb.due(self._clock())) is None:
            return ()
        try:
            self._map.write(battery.model_id, {point: value}, battery.sf)
        except Refused as error:
            text = f'{battery.model_id} {point}: {error}'
            return (Alarm('sunspec.heartbeat_refused', Severity.WARNING, text),)
        return ()

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """See `BatteryDevice`. 802 knows no single direction, and no disconnecting under load.

        Raises `BadValue` for those, `Refused` in local control or when State shows a fault, and
        `NoAnswer` when State does not confirm in time.
        """
        if charge != discharge:
            raise BadValue('SunSpec 802 can only connect or disconnect both directions')
        if self._read_only:
            raise ReadOnlyError('802 SetOp not written: read-only')
        if self._scan() != 802:
            raise BadValue(f'contactors cannot be switched: {self._map.problem(802)}')
        draft = self._map.is_draft(802)
        battery = self._map.read(802)
        state_name, order = ('BatSt', 'BSetOperation') if draft else ('State', 'SetOp')
        state = battery.integer(state_name)
        if self._local(battery, draft):
            raise Refused('the battery is in local control')
        current = self._terminal_current(battery, draft)
        if not charge and not abs(current) <= self.params.max_disconnect_current:
            raise BadValue(
                f'will not disconnect at {current:g} A '
                f'(at most {self.params.max_disconnect_current:g} A)'
            )
        wanted = (CONNECTED, SOC_PROTECTION) if charge else (DISCONNECTED,)
        if state in wanted:
            return
        self._map.write(802, {order: CONNECT if charge else DISCONNECT}, battery.sf)
        deadline = self._clock() + self.params.contactor_timeout_s
        while True:
            state = self._map.read(802).integer(state_name)
            if state in wanted:
                return
            if charge and state == FAULT:
                raise Refused('the battery went into fault instead of connecting')
            if self._clock() >= deadline:
                verb = 'connect' if charge else 'disconnect'
                raise NoAnswer(
                    f'the battery did not {verb} within {self.params.contactor_timeout_s:g} s '
                    f'(State: {STATE_NAMES.get(state or 0, state)})'
                )
            self._sleep(0.1)

    def _terminal_current(self, battery: ModelValues, draft: bool) -> float:
        if not draft:
            return battery.number('A')
        return self._map.read(803).number('BTotDCCur') if self._map.is_draft(803) else nan

    def _local(self, battery: ModelValues, draft: bool) -> bool:
        if not draft:
            return battery.integer('LocRemCtl') == 1
        return self._map.has(801) and self._map.read(801).integer('LocRemCtl') == LOCAL_DRAFT

    def reset_alarms(self) -> None:
        """Reset latched alarms (802 AlmRst = 1; draft: 801 DERAlarmReset). Raises `DeviceError`."""
        if self._read_only:
            raise ReadOnlyError('802 AlmRst not written: read-only')
        if self._scan() != 802:
            raise BadValue(self._map.problem(802))
        model, point = (801, 'DERAlarmReset') if self._map.is_draft(802) else (802, 'AlmRst')
        self._map.write(model, {point: 1}, {})


