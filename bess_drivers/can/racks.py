"""Several racks of one battery in parallel, as one reading. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan

from bess_core.values import Alarm, BatteryReading, Contactor, Mode, Quality


def _sum(values: Sequence[float]) -> float:
    return sum(values)  # NaN as soon as one is not known: half a battery must not look like a whole one


def _known(values: Sequence[float]) -> list[float]:
    return [v for v in values if not isnan(v)]


def combine_racks(racks: Sequence[BatteryReading]) -> BatteryReading:
    """Racks on one DC bus: currents and charges add up, limits are those of the weakest times the number.

    A rack whose contactor is open takes no part in limits and energies; its alarms still count. Cell
    numbers go on from rack to rack.
    """
    if len(racks) == 1:
        return racks[0]
    taking = [r for r in racks if r.contactor is not Contactor.OPEN] or list(racks)
    count = float(len(taking))
    voltages = _known([r.voltage for r in taking])
    voltage = sum(voltages) / len(voltages) if voltages else nan
    cells = tuple(v for r in racks for v in r.cells)
    lowest, highest = _known([r.cell_voltage_min for r in racks]), _known([r.cell_voltage_max for r in racks])
    charge, full = _sum([r.charge for r in taking]), _sum([r.charge_full for r in taking])
    soc = charge / full if full > 0 else _sum([r.soc for r in taking]) / count
    hot, cold = _known([r.temperature for r in racks]), _known([r.temperature_min for r in racks])
    charge_limit = count * min(r.max_charge_current for r in taking)
    discharge_limit = count * min(r.max_discharge_current for r in taking)
    modes = {r.mode for r in racks}
    return BatteryReading(
        time=min(r.time for r in racks), newest=max(r.newest for r in racks), quality=Quality.OK,
        mode=Mode.FAULT if Mode.FAULT in modes else taking[0].mode,
        contactor=taking[0].contactor if len({r.contactor for r in taking}) == 1 else Contactor.UNKNOWN,
        voltage=voltage, current=_sum([r.current for r in racks]), power=_sum([r.power for r in racks]),
        charge=charge, charge_full=full, energy=_sum([r.energy for r in taking]),
        energy_full=_sum([r.energy_full for r in taking]),
        max_charge_current=charge_limit, max_discharge_current=discharge_limit,
        max_charge_power=charge_limit * voltage, max_discharge_power=discharge_limit * voltage,
        soc=soc, soh=min((r.soh for r in racks), default=nan), temperature=max(hot, default=nan),
        temperature_min=min(cold, default=nan), cell_voltage_min=min(lowest, default=nan),
        cell_voltage_max=max(highest, default=nan),
        cell_voltage_min_index=cells.index(min(cells)) if cells and not any(map(isnan, cells)) else -1,
        cell_voltage_max_index=cells.index(max(cells)) if cells and not any(map(isnan, cells)) else -1,
        energy_charged=_sum([r.energy_charged for r in racks]),
        energy_discharged=_sum([r.energy_discharged for r in racks]),
        members=len(racks), members_usable=sum(r.contactor is not Contactor.OPEN for r in racks),
        limit_reasons=[f'rack {i}: {reason}' for i, r in enumerate(racks, 1) for reason in r.limit_reasons],
        cells=cells, temperatures=tuple(t for r in racks for t in r.temperatures),
        balancing=tuple(b for r in racks for b in r.balancing), alarms=_alarms(racks))


def _alarms(racks: Sequence[BatteryReading]) -> tuple[Alarm, ...]:
    """One alarm per id, naming the racks that have it."""
    found: dict[str, tuple[Alarm, list[int]]] = {}
    for number, rack in enumerate(racks, 1):
        for alarm in rack.alarms:
            found.setdefault(alarm.id, (alarm, []))[1].append(number)
    return tuple(
        type(alarm)(alarm.id, alarm.severity, f'rack {", ".join(map(str, numbers))}: {alarm.text}')
        for alarm, numbers in found.values())
