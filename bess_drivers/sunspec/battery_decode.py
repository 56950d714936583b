"""A reading from models 802 and 803. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan

from bess_core.values import (
    Alarm,
    BatteryReading,
    Contactor,
    Mode,
    Quality,
    smallest_known,
)
from bess_drivers.device import BadValue
from bess_drivers.sunspec.battery_params import SunSpecBatteryParams
from bess_drivers.sunspec.battery_parts import (
    add_alarms,
    bank_alarms,
    event_alarms,
    vendor_alarms,
)
from bess_drivers.sunspec.codec import ModelValues, signed
from bess_drivers.sunspec.common import SIGNS

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
STOP_CHARGING = {'fire_alarm', 'over_temp_alarm', 'under_temp_alarm', 'over_volt_alarm', 'over_soc_max_alarm'}
STOP_DISCHARGING = {'fire_alarm', 'over_temp_alarm', 'under_volt_alarm', 'under_soc_min_alarm'}


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
        add_alarms(reading, bank_alarms(bank))
    state = battery.integer('State')
    reading.mode, reading.contactor = _mode(state, battery.integer('ChaSt'), reading.current)
    if state == SOC_PROTECTION:
        reading.limit_reasons.append('bms: SoC protection')
    stop_on_alarms(reading, names(reading))
    if battery.integer('ReqInvState') == INVERTER_STOP:
        stop_request(reading)
    return reading


def stop_request(reading: BatteryReading) -> None:
    """The battery asks the inverter to stop: no current in either direction."""
    reading.limit_reasons.append('bms: asks the inverter to stop')
    reading.max_charge_current = reading.max_discharge_current = 0.0
    reading.max_charge_power = reading.max_discharge_power = 0.0


def names(reading: BatteryReading) -> list[str]:
    """Ids of its alarms without prefix."""
    return [a.id.removeprefix('sunspec.') for a in reading.alarms]


def stop_on_alarms(reading: BatteryReading, events: Iterable[str]) -> None:
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


def _alarms(battery: ModelValues) -> tuple[Alarm, ...]:
    return (*event_alarms([*battery.bits('Evt1'), *battery.bits('Evt2')], 'battery'),
            *vendor_alarms(battery, 'battery', 'EvtVnd1', 'EvtVnd2'))
