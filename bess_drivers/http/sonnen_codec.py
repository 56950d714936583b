"""JSON of a sonnenBatterie to readings. Pure.

Signs of the device: Pac_total_W + = discharging (ours: + = charging). Sources: maker's API page (fields and units of
v2 status and latestdata, setpoints), public drivers for the cloud form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

from bess_core.values import (
    Alarm,
    BatteryReading,
    Contactor,
    ConverterReading,
    ConverterState,
    Mode,
    Quality,
    Severity,
    smallest_known,
)
from bess_drivers.device import BadFrame, BadValue

IDLE_W = 15.0  # smaller powers are the device's own consumption


@dataclass(frozen=True)
class Ratings:
    """What the device is: NaN = not known. Powers in W, energy in Wh."""

    charge: float = nan
    discharge: float = nan
    energy_full: float = nan


def number(source: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number within its range; NaN where it is missing, null or no number. Raises `BadValue` outside."""
    value = source.get(name)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        return nan
    if not low <= value <= high:
        raise BadValue(f'{name} = {value:g} is outside {low:g} to {high:g}')
    return float(value)


def status_of(answer: Any) -> Mapping[str, Any]:
    """The status object. Raises `BadFrame` for another kind and `BadValue` for an empty one."""
    if not isinstance(answer, dict):
        raise BadFrame('the status is no JSON object')
    if not answer:
        raise BadValue('the status is empty: older firmware answers so to a wrong token')
    return answer


def shutdown_reasons(latest: Any) -> tuple[str, ...]:
    """Reasons of a DC shutdown that are set in `latestdata` (ic_status, "DC Shutdown Reason"), as they stand there."""
    if not isinstance(latest, dict):
        raise BadFrame('latestdata is no JSON object')
    reasons: Any = latest.get('ic_status')
    reasons = reasons.get('DC Shutdown Reason') if isinstance(reasons, dict) else None
    return tuple(sorted(k for k, v in reasons.items() if v is True)) if isinstance(reasons, dict) else ()


def _alarms(status: Mapping[str, Any], reasons: tuple[str, ...]) -> tuple[Alarm, ...]:
    system = str(status.get('SystemStatus', ''))
    alarms = []
    if system == 'OffGrid':
        alarms.append(Alarm('sonnen.off_grid', Severity.WARNING, 'the battery supplies the house without the grid'))
    elif system not in ('OnGrid', ''):
        alarms.append(Alarm('sonnen.system_error', Severity.ERROR, f'SystemStatus is {system[:60]!r}'))
    if status.get('IsSystemInstalled') in (0, '0', False):
        alarms.append(Alarm('sonnen.not_installed', Severity.ERROR, 'the system is not put into operation'))
    if status.get('dischargeNotAllowed') is True:
        alarms.append(Alarm('sonnen.discharge_not_allowed', Severity.WARNING, 'the battery forbids discharging'))
    for reason in reasons:
        slug = re.sub(r'[^a-z0-9]+', '_', reason.lower()).strip('_')[:60]
        alarms.append(Alarm(f'sonnen.dc_shutdown_{slug}', Severity.ERROR, f'DC shutdown: {reason[:100]}'))
    return tuple(alarms)


def power_of(status: Mapping[str, Any]) -> float:
    """AC power in W, + = charging. Raises `BadValue` where it is not there."""
    power = 0.0 - number(status, 'Pac_total_W', -1e6, 1e6)
    if isnan(power):
        raise BadValue('Pac_total_W is not there')
    return power


def off_grid(status: Mapping[str, Any]) -> bool:
    """Whether it runs without the grid: no setpoint is possible then."""
    return status.get('SystemStatus') == 'OffGrid' or number(status, 'Uac', 0, 500) == 0


def _limits(status: Mapping[str, Any], ratings: Ratings, reasons: list[str]) -> tuple[float, float]:
    charge, discharge = ratings.charge, ratings.discharge
    soc, reserve = number(status, 'USOC', 0, 100), number(status, 'BackupBuffer', 0, 100)
    if soc >= 100:
        charge = 0.0
        reasons.append('bms: full')
    if soc <= (0.0 if isnan(reserve) else reserve):
        discharge = 0.0
        reasons.append('bms: at its reserve for backup')
    if status.get('dischargeNotAllowed') is True:
        discharge = 0.0
        reasons.append('bms: discharging not allowed')
    return charge, discharge


def battery_reading(status: Mapping[str, Any], ratings: Ratings, reasons: tuple[str, ...],
                    now: float) -> BatteryReading:
    """A battery reading. SoC is USOC, the part that the user may use.

    The device tells AC power and DC voltage only: power is that of the AC side, losses included, and the current
    is power / Ubat. Raises `BadValue` without SoC or power.
    """
    power, volts = power_of(status), number(status, 'Ubat', 0, 2000)
    soc = number(status, 'USOC', 0, 100) / 100
    if isnan(soc):
        raise BadValue('USOC is not there')
    volts = volts if volts > 0 else nan
    limits: list[str] = []
    charge, discharge = _limits(status, ratings, limits)
    alarms = _alarms(status, reasons)
    broken = any(a.severity >= Severity.ERROR for a in alarms)
    if broken:
        charge = discharge = 0.0
        limits.append('bms: error')
    mode = Mode.FAULT if broken else (
        Mode.IDLE if abs(power) < IDLE_W else Mode.CHARGING if power > 0 else Mode.DISCHARGING)
    return BatteryReading(
        time=now, newest=now, quality=Quality.OK, voltage=volts, current=power / volts, power=power, soc=soc,
        energy_full=ratings.energy_full, energy=ratings.energy_full * soc, max_charge_power=charge,
        max_discharge_power=discharge, max_charge_current=charge / volts, max_discharge_current=discharge / volts,
        mode=mode, contactor=Contactor.OPEN if reasons else Contactor.UNKNOWN, limit_reasons=limits, alarms=alarms)


def converter_reading(status: Mapping[str, Any], ratings: Ratings, reasons: tuple[str, ...],
                      now: float) -> ConverterReading:
    """A converter reading. Raises `BadValue` without power."""
    power = power_of(status)
    limits: list[str] = []
    charge, discharge = _limits(status, ratings, limits)
    alarms = _alarms(status, reasons)
    apparent = [number(status, f'Sac{n}', 0, 1e6) for n in (1, 2, 3)]
    total = sum(a for a in apparent if not isnan(a)) if not isnan(apparent[0]) else nan
    volts = number(status, 'Uac', 0, 500)
    state = ConverterState.RUNNING if abs(power) >= IDLE_W else ConverterState.STANDBY
    if any(a.severity >= Severity.ERROR for a in alarms):
        state = ConverterState.FAULT
    frequency = number(status, 'Fac', 0, 100)
    return ConverterReading(
        time=now, quality=Quality.OK, state=state, grid_forming=status.get('SystemStatus') == 'OffGrid',
        voltage=(volts, nan, nan), active_power=power, apparent_power=total, frequency=frequency if frequency else nan,
        dc_voltage=number(status, 'Ubat', 0, 2000), max_charge_power=charge, max_discharge_power=discharge,
        max_apparent_power=smallest_known(ratings.charge, ratings.discharge), limit_reasons=limits, alarms=alarms)
