"""SunSpec battery: model 802 (with bank model 803 where present), or 713 where 802 is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isnan
from typing import ClassVar

from bess_core.values import (
    Alarm,
    BatteryReading,
    Contactor,
    Identity,
    Mode,
    Quality,
    Severity,
    smallest_known,
)
from bess_drivers.device import BadFrame, BadValue, Counters, NoAnswer, ReadOnlyError, Refused, Role
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.sunspec.codec import ModelValues, as_number, signed
from bess_drivers.sunspec.common import SIGNS, Heartbeat, SunSpecParams, check_params
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink

#: 802 State and SetOp
DISCONNECTED, INITIALIZING, CONNECTED, STANDBY, SOC_PROTECTION, SUSPENDING, FAULT = (
    1,
    2,
    3,
    4,
    5,
    6,
    99,
)
CONNECT, DISCONNECT = 1, 2
CHARGING, DISCHARGING = 4, 3  # 802 ChaSt
INVERTER_STOP = 2  # 802 ReqInvState
STATE_NAMES = {
    DISCONNECTED: 'disconnected',
    INITIALIZING: 'initializing',
    CONNECTED: 'connected',
    STANDBY: 'standby',
    SOC_PROTECTION: 'SoC protection',
    SUSPENDING: 'suspending',
    FAULT: 'fault',
}

#: 802 Evt1 alarms that end charging or discharging ("alarms must stop or limit, warnings must not").
STOP_CHARGING = {'over_temp_alarm', 'under_temp_alarm', 'over_volt_alarm', 'over_soc_max_alarm'}
STOP_DISCHARGING = {'over_temp_alarm', 'under_volt_alarm', 'under_soc_min_alarm'}


@dataclass(frozen=True)
class SunSpecBatteryParams(SunSpecParams):
    """Where the battery is and what its map leaves open."""

    current_sign: str = field(
        default='charge_positive',
        metadata={
            'unit': '',
            'choices': tuple(SIGNS),
            'doc': 'sign of 802 A; SunSpec leaves it open',
        },
    )
    power_sign: str = field(
        default='charge_positive',
        metadata={
            'unit': '',
            'choices': tuple(SIGNS),
            'doc': 'sign of 802 W; SunSpec leaves it open',
        },
    )
    heartbeat: bool = field(
        default=False,
        metadata={'unit': '', 'doc': 'write 802 CtrlHb, +1 every second, while the device is read'},
    )
    heartbeat_timeout_s: float = field(
        default=5.0,
        metadata={
            'unit': 's',
            'min': 1.5,
            'max': 3600.0,
            'doc': 'a battery whose counting 802 Hb stands still for longer is reported as stale',
        },
    )
    contactor_timeout_s: float = field(
        default=10.0,
        metadata={
            'unit': 's',
            'min': 0.1,
            'max': 600.0,
            'doc': 'time within which State must confirm 802 SetOp',
        },
    )
    max_disconnect_current: float = field(
        default=5.0,
        metadata={
            'unit': 'A',
            'min': 0.0,
            'max': 10000.0,
            'doc': 'no disconnecting while the current is larger: contactors do not break load',
        },
    )

    def __post_init__(self) -> None:
        check_params(self)


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

    def open(self) -> None:
        """See `Device`."""
        self._map.forget()
        self._hb.reset()
        self._link.open()

    def close(self) -> None:
        """See `Device`."""
        self._link.close()

    def identify(self) -> Identity:
        """See `Device`. Raises `BadValue` if neither 802 nor 713 is there in the known layout."""
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
        """The model that carries the battery: 802, else 713."""
        if not self._map.known:
            self._map.scan()
        model = self._map.first_of(802, 713)
        if not model:
            # names a wrong L of 802 rather than the missing 713
            raise BadValue(f'no SunSpec battery: {self._map.problem(802)}')
        return model

    def read(self, now: float) -> BatteryReading:
        """See `BatteryDevice`. Raises `BadValue` where V, A or SoC is missing (713: SoC)."""
        try:
            return self._read(now)
        except BadFrame:
            self._map.forget()  # the models may have moved
            raise

    def _read(self, now: float) -> BatteryReading:
        if self._scan() == 713:
            return self._from_capacity(self._map.read(713), now)
        bank = self._map.has(803)
        models = self._map.read_models({802: 0, **({803: 0} if bank else {})})
        reading = decode_battery(models[802], models.get(803), self.params)
        reading.time = reading.newest = now
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

    def _beat(self, battery: ModelValues) -> tuple[Alarm, ...]:
        """Count CtrlHb up once a second. A refusal costs an alarm, not the reading."""
        if not battery.has('CtrlHb') or (value := self._hb.due(self._clock())) is None:
            return ()
        try:
            self._map.write(802, {'CtrlHb': value}, battery.sf)
        except Refused as error:
            return (Alarm('sunspec.heartbeat_refused', Severity.WARNING, f'802 CtrlHb: {error}'),)
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
        battery = self._map.read(802)
        state = battery.integer('State')
        if battery.integer('LocRemCtl') == 1:
            raise Refused('the battery is in local control')
        current = battery.number('A')
        if not charge and not abs(current) <= self.params.max_disconnect_current:
            raise BadValue(
                f'will not disconnect at {current:g} A '
                f'(at most {self.params.max_disconnect_current:g} A)'
            )
        wanted = (CONNECTED, SOC_PROTECTION) if charge else (DISCONNECTED,)
        if state in wanted:
            return
        self._map.write(802, {'SetOp': CONNECT if charge else DISCONNECT}, battery.sf)
        deadline = self._clock() + self.params.contactor_timeout_s
        while True:
            state = self._map.read(802).integer('State')
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

    def reset_alarms(self) -> None:
        """Reset latched alarms (802 AlmRst = 1). Raises `DeviceError`."""
        if self._read_only:
            raise ReadOnlyError('802 AlmRst not written: read-only')
        if self._scan() != 802:
            raise BadValue(self._map.problem(802))
        self._map.write(802, {'AlmRst': 1}, {})


def decode_battery(
    battery: ModelValues, bank: ModelValues | None, params: SunSpecBatteryParams
) -> BatteryReading:
    """A reading from model 802 and, where there is one, 803. Pure; leaves the times to the caller.

    SoC is in % of WHRtg; energy = WHRtg * SoC * SoH as SunSpec 713 defines it, with SoH taken as 1
    where it is not implemented. Raises `BadValue` where V, A or SoC is missing.
    """
    voltage, soc = battery.number('V'), battery.number('SoC') / 100
    current = signed(battery.number('A'), SIGNS[params.current_sign])
    missing = [n for n, v in (('V', voltage), ('A', current), ('SoC', soc)) if isnan(v)]
    if missing:
        raise BadValue(f'802 {", ".join(missing)} is not implemented or cannot be scaled')
    power = signed(battery.number('W'), SIGNS[params.power_sign])
    soh = battery.number('SoH') / 100
    health = 1.0 if isnan(soh) else soh
    charge_full, energy_full = battery.number('AHRtg') * health, battery.number('WHRtg') * health
    charge_limit, discharge_limit = battery.number('AChaMax'), battery.number('ADisChaMax')
    reading = BatteryReading(
        quality=Quality.OK,
        voltage=voltage,
        current=current,
        power=voltage * current if isnan(power) else power,
        soc=soc,
        soh=soh,
        charge=charge_full * soc,
        charge_full=charge_full,
        energy=energy_full * soc,
        energy_full=energy_full,
        max_charge_current=charge_limit,
        max_discharge_current=discharge_limit,
        max_charge_power=smallest_known(battery.number('WChaRteMax'), charge_limit * voltage),
        max_discharge_power=smallest_known(
            battery.number('WDisChaRteMax'), discharge_limit * voltage
        ),
        cell_voltage_min=battery.number('CellVMin'),
        cell_voltage_max=battery.number('CellVMax'),
        alarms=_alarms(battery),
    )
    if bank is not None:
        reading.temperature = bank.number('ModTmpMax')
        reading.temperature_min = bank.number('ModTmpMin')
        reading.alarms += _string_alarms(bank)
    state = battery.integer('State')
    reading.mode, reading.contactor = _mode(state, battery.integer('ChaSt'), reading.current)
    if state == SOC_PROTECTION:
        reading.limit_reasons.append('bms: SoC protection')
    _stop_on_alarms(reading, battery.bits('Evt1'))
    if battery.integer('ReqInvState') == INVERTER_STOP:
        reading.limit_reasons.append('bms: asks the inverter to stop')
        reading.max_charge_current = reading.max_discharge_current = 0.0
        reading.max_charge_power = reading.max_discharge_power = 0.0
    return reading


def _stop_on_alarms(reading: BatteryReading, events: Iterable[str]) -> None:
    """No power towards an alarm, also where the battery leaves its limits as they were."""
    for name in events:
        if name in STOP_CHARGING:
            reading.max_charge_current = reading.max_charge_power = 0.0
        if name in STOP_DISCHARGING:
            reading.max_discharge_current = reading.max_discharge_power = 0.0
        if name in STOP_CHARGING | STOP_DISCHARGING:
            reading.limit_reasons.append(f'bms: {name.replace("_", " ")}')


def _mode(state: int | None, charge_state: int | None, current: float) -> tuple[Mode, Contactor]:
    if state == FAULT:
        return Mode.FAULT, Contactor.UNKNOWN
    if state in (DISCONNECTED, INITIALIZING):
        return Mode.OFF, Contactor.OPEN
    if state in (CONNECTED, SOC_PROTECTION):
        by_state = {CHARGING: Mode.CHARGING, DISCHARGING: Mode.DISCHARGING}
        if charge_state is not None:
            return by_state.get(charge_state, Mode.IDLE), Contactor.CLOSED
        mode = Mode.CHARGING if current > 0 else Mode.DISCHARGING if current < 0 else Mode.IDLE
        return mode, Contactor.CLOSED
    if state == STANDBY:  # SunSpec does not say whether the contactors are closed
        return Mode.IDLE, Contactor.UNKNOWN
    return (Mode.OFF if state == SUSPENDING else Mode.UNKNOWN), Contactor.UNKNOWN


def _severity(name: str) -> Severity:
    # SunSpec: alarms must stop or limit, warnings must not
    return Severity.WARNING if name.endswith('warning') else Severity.ERROR


def _alarms(battery: ModelValues) -> tuple[Alarm, ...]:
    alarms = [
        Alarm(f'sunspec.{name}', _severity(name), f'battery reports {name.replace("_", " ")}')
        for name in battery.bits('Evt1')
    ]
    for point in ('EvtVnd1', 'EvtVnd2'):
        value = battery.integer(point)
        if value:
            alarms.append(
                Alarm(
                    f'sunspec.{point.lower()}',
                    Severity.WARNING,
                    f'battery reports vendor events 0x{value:08x} ({point})',
                )
            )
    return tuple(alarms)


#: 803 StrConFail
_CONNECTION_FAILURES = {
    1: 'button pushed',
    2: 'ground fault',
    3: 'outside voltage range',
    4: 'string not enabled',
    5: 'fuse open',
    6: 'contactor failure',
    7: 'precharge failure',
    8: 'string fault',
}


def _string_alarms(bank: ModelValues) -> tuple[Alarm, ...]:
    alarms = []
    for index, string in enumerate(bank.groups):
        failure = as_number(string.get('StrConFail'))
        if failure > 0:
            why = _CONNECTION_FAILURES.get(int(failure), f'code {failure:g}')
            alarms.append(
                Alarm(
                    f'sunspec.string_{index}_connection',
                    Severity.ERROR,
                    f'string {index} cannot connect: {why}',
                )
            )
    return tuple(alarms)
