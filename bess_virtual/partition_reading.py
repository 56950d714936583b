"""A child of a partition as a battery. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, isnan, nan

from bess_core.values import BatteryReading, Mode, quality_of
from bess_virtual.ledger import Ledger
from bess_virtual.shares import Share

EMPTY_WH = 1e-6
"""Below this a ledger counts as empty, and this close to its capacity as full."""


@dataclass(slots=True)
class Part:
    """What one account is at present; rebuilt at each refresh."""

    energy: float = nan  # Wh
    energy_full: float = nan  # Wh
    charge_power: float = 0.0  # W, limit
    discharge_power: float = 0.0  # W, limit
    power: float = 0.0  # W, + = charging
    charged: float = 0.0  # Wh, counters as reported: they never go back, though a correction may
    discharged: float = 0.0


def reading_of(source: BatteryReading, child: Part, ledger: Ledger | None, share: Share,
               reasons: list[str]) -> BatteryReading:
    """Energy, power and limits are the child's own, the rest is the source's. `reasons` is extended.

    Cells and alarms belong to the source and are reported there once.
    """
    v = source.voltage
    if ledger is None:
        reasons.append('the energy of the source is not known yet')
    else:
        child.charged = max(child.charged, ledger.charged + ledger.moved_in)
        child.discharged = max(child.discharged, ledger.discharged + ledger.moved_out)
        if child.energy <= EMPTY_WH:
            reasons.append('empty')
        elif child.energy_full - child.energy <= EMPTY_WH:
            reasons.append('full')
    mode = source.mode
    if mode in (Mode.IDLE, Mode.CHARGING, Mode.DISCHARGING) and not isnan(child.power):
        mode = Mode.CHARGING if child.power > 0 else Mode.DISCHARGING if child.power < 0 else Mode.IDLE
    return BatteryReading(
        time=source.time,
        newest=source.newest,
        quality=source.quality,
        mode=mode,
        contactor=source.contactor,
        voltage=v,
        current=_scaled(source.current, child.power, source.power, v),
        power=child.power,
        charge=_scaled(source.charge, child.energy, source.energy, v),
        charge_full=_scaled(source.charge_full, child.energy_full, source.energy_full, v),
        energy=child.energy,
        energy_full=child.energy_full,
        max_charge_current=_scaled(source.max_charge_current, child.charge_power, source.max_charge_power, v),
        max_discharge_current=_scaled(
            source.max_discharge_current, child.discharge_power, source.max_discharge_power, v),
        max_charge_power=child.charge_power,
        max_discharge_power=child.discharge_power,
        soc=child.energy / child.energy_full if child.energy_full > 0 else (0.0 if share.energy == 0 else nan),
        soh=source.soh,
        temperature=source.temperature,
        temperature_min=source.temperature_min,
        cell_voltage_min=source.cell_voltage_min,
        cell_voltage_max=source.cell_voltage_max,
        cell_voltage_min_index=source.cell_voltage_min_index,
        cell_voltage_max_index=source.cell_voltage_max_index,
        energy_charged=nan if ledger is None else child.charged,
        energy_discharged=nan if ledger is None else child.discharged,
        members=source.members,
        members_usable=source.members_usable,
        limit_reasons=reasons,
    )


def aged(reading: BatteryReading, now: float, max_age: float, invalid_after: float) -> BatteryReading:
    """A child's reading at time `now` (s), with the quality of its age if that is worse."""
    quality = quality_of(now - reading.time, max_age, invalid_after)
    return reading if quality <= reading.quality else replace(reading, quality=quality)


def _scaled(whole: float, part_power: float, whole_power: float, voltage: float) -> float:
    """A current or charge of the source in the ratio of powers or energies; by voltage without ratio."""
    if part_power == 0:
        return 0.0
    if whole_power != 0 and isfinite(whole_power) and not isnan(whole):
        return whole * part_power / whole_power
    return part_power / voltage if voltage > 0 else nan
