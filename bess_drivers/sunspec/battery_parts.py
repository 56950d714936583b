"""What strings, modules and flow batteries (804, 805, 807) add to a battery, and the MESA drafts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan

from bess_core.values import Alarm, BatteryReading, Contactor, ConverterReading, Mode, Quality, Severity
from bess_drivers.device import BadValue
from bess_drivers.sunspec.codec import ModelValues, signed

CONNECTION_FAILURES = {
    1: 'button pushed', 2: 'ground fault', 3: 'outside voltage range', 4: 'string not enabled', 5: 'fuse open',
    6: 'contactor failure', 7: 'precharge failure', 8: 'string fault',
}
LOCAL_DRAFT = 2  # LocRemCtl of the draft 801
_STATUS_BITS = {'contactor_status', 'string_enabled'}  # of the drafts: no alarms


def known(values: Iterable[float]) -> list[float]:
    """Those that are not NaN."""
    return [v for v in values if not isnan(v)]


def mean(values: Iterable[float]) -> float:
    """Mean of those that are known; NaN without any."""
    some = known(values)
    return sum(some) / len(some) if some else nan


def severity(name: str) -> Severity:
    """SunSpec: alarms must stop or limit, warnings must not."""
    return Severity.WARNING if name.endswith('warning') else Severity.ERROR


def event_alarms(names: Iterable[str], who: str) -> tuple[Alarm, ...]:
    """Alarms of named event bits; status bits of the drafts are none."""
    return tuple(Alarm(f'sunspec.{n}', severity(n), f'{who} reports {n.replace("_", " ")}')
                 for n in names if n not in _STATUS_BITS)


def vendor_alarms(model: ModelValues, who: str, *points: str) -> tuple[Alarm, ...]:
    """Words of vendor events that are not 0: no standard names their bits."""
    words = ((p.removeprefix('Str').removeprefix('Mod').lower(), model.integer(p)) for p in points)
    return tuple(Alarm(f'sunspec.{p}', Severity.WARNING, f'{who} reports vendor events 0x{word:08x} ({p})')
                 for p, word in words if word)


def bank_alarms(bank: ModelValues) -> tuple[Alarm, ...]:
    """Events of the strings of a bank (803), and those that cannot connect."""
    return tuple(
        alarm for n, s in enumerate(bank.elements())
        for alarm in (*event_alarms([*s.bits('StrEvt1'), *s.bits('StrEvt2')], f'string {n}'),
                      *vendor_alarms(s, f'string {n}', 'StrEvtVnd1', 'StrEvtVnd2'),
                      *connection_alarm(n, s.integer('StrConFail'))))


def connection_alarm(index: int, code: int | None, what: str = 'string') -> tuple[Alarm, ...]:
    """Alarm of a string or module that cannot connect; () for code 0 or none."""
    if not code:
        return ()
    why = CONNECTION_FAILURES.get(code, f'code {code}')
    return (Alarm(f'sunspec.{what}_{index}_connection', Severity.ERROR, f'{what} {index} cannot connect: {why}'),)


def add_alarms(reading: BatteryReading | ConverterReading, more: Iterable[Alarm]) -> None:
    """Add alarms whose id is not there yet: bank and string report the same event."""
    present = {a.id for a in reading.alarms}
    fresh = {a.id: a for a in more if a.id not in present}
    reading.alarms += tuple(fresh.values())


def add_strings(reading: BatteryReading, strings: Sequence[ModelValues]) -> None:
    """Alarms, cell voltages and temperatures of the strings (804)."""
    for n, s in enumerate(strings):
        index = s.integer('Idx')
        n = n if index is None else index
        add_alarms(reading, event_alarms([*s.bits('Evt1'), *s.bits('Evt2')], f'string {n}'))
        add_alarms(reading, vendor_alarms(s, f'string {n}', 'EvtVnd1', 'EvtVnd2'))
        add_alarms(reading, connection_alarm(n, s.integer('ConFail')))
    _widen(reading, [s.number('CellVMin') for s in strings], [s.number('CellVMax') for s in strings],
           [s.number('ModTmpMin') for s in strings], [s.number('ModTmpMax') for s in strings])


def add_modules(reading: BatteryReading, modules: Sequence[ModelValues]) -> None:
    """Single cells of the modules (805): voltages, temperatures, balancing. An unknown one leaves NaN."""
    cells = [c for m in modules for c in m.elements()]
    reading.cells = tuple(c.number('CellV') for c in cells)
    reading.temperatures = tuple(known(c.number('CellTmp') for c in cells))
    reading.balancing = tuple('cell_is_balancing' in c.bits('CellSt') for c in cells)
    volts = known(reading.cells)
    if volts:
        reading.cell_voltage_min, reading.cell_voltage_max = min(volts), max(volts)
        reading.cell_voltage_min_index = reading.cells.index(min(volts))
        reading.cell_voltage_max_index = reading.cells.index(max(volts))
    _widen(reading, [], [], list(reading.temperatures), list(reading.temperatures))


def add_flow(reading: BatteryReading, strings: Sequence[ModelValues]) -> None:
    """Alarms, cell voltages and temperatures of flow battery strings (807) and their modules."""
    for n, s in enumerate(strings):
        index = s.integer('Idx')
        n = n if index is None else index
        add_alarms(reading, event_alarms([*s.bits('Evt1'), *s.bits('Evt2')], f'string {n}'))
        add_alarms(reading, vendor_alarms(s, f'string {n}', 'EvtVnd1', 'EvtVnd2'))
        for k, module in enumerate(s.elements()):
            who = f'string {n} module {k}'
            add_alarms(reading, event_alarms([*module.bits('ModEvt1'), *module.bits('ModEvt2')], who))
            add_alarms(reading, connection_alarm(k, module.integer('ModConFail'), f'string_{n}_module'))
    _widen(reading, [s.number('CellVMin') for s in strings], [s.number('CellVMax') for s in strings],
           [s.number('TmpMin') for s in strings], [s.number('TmpMax') for s in strings])


def _widen(reading: BatteryReading, low: Sequence[float], high: Sequence[float], cold: Sequence[float],
           hot: Sequence[float]) -> None:
    """Take extremes in, keeping what the bank says where it is more extreme."""
    reading.cell_voltage_min = min(known([reading.cell_voltage_min, *low]), default=nan)
    reading.cell_voltage_max = max(known([reading.cell_voltage_max, *high]), default=nan)
    reading.temperature_min = min(known([reading.temperature_min, *cold]), default=nan)
    reading.temperature = max(known([reading.temperature, *hot]), default=nan)


def from_strings(strings: Sequence[ModelValues], sign: float, now: float) -> BatteryReading:
    """A battery that shows nothing but its strings (804), in parallel: limits and energies stay unknown.

    `sign`: factor to + = charging. Currents of all strings are added; if one is unknown the sum is, too.
    Raises `BadValue` where V, A or SoC is missing.
    """
    volts, soc = mean(s.number('V') for s in strings), mean(s.number('SoC') for s in strings) / 100
    current = signed(sum(s.number('A') for s in strings), sign)
    missing = [n for n, v in (('V', volts), ('A', current), ('SoC', soc)) if isnan(v)]
    if missing:
        raise BadValue(f'804 {", ".join(missing)} is not implemented or cannot be scaled')
    closed = ['contactor_status' in s.bits('St') for s in strings]
    contactor = Contactor.CLOSED if any(closed) else Contactor.OPEN
    mode = Mode.OFF if not any(closed) else (
        Mode.CHARGING if current > 0 else Mode.DISCHARGING if current < 0 else Mode.IDLE)
    reading = BatteryReading(
        time=now, newest=now, quality=Quality.OK, voltage=volts, current=current, power=volts * current, soc=soc,
        soh=mean(s.number('SoH') for s in strings) / 100, contactor=contactor, mode=mode, members=len(strings),
        members_usable=sum(closed))
    add_strings(reading, strings)
    return reading


def from_draft(base: ModelValues, battery: ModelValues, bank: ModelValues | None, sign: float,
               now: float) -> BatteryReading:
    """A reading from the MESA drafts of 801 and 802, and 803 for current, cells and temperatures.

    Without 803 the current is unknown: the draft 802 has none. Raises `BadValue` where V or SoC is missing.
    """
    volts, soc = battery.number('Vol'), base.number('SoC') / 100
    missing = [n for n, v in (('802 Vol', volts), ('801 SoC', soc)) if isnan(v)]
    if missing:
        raise BadValue(f'{", ".join(missing)} is not implemented or cannot be scaled')
    soh = battery.number('SoH') / 100
    full = base.number('WHRtg') * (1.0 if isnan(soh) else soh)
    current = signed(bank.number('BTotDCCur'), sign) if bank else nan
    charge, discharge = battery.number('MaxBatACha'), battery.number('MaxBatADischa')
    state = battery.integer('BatSt')
    mode = {1: Mode.OFF, 2: Mode.OFF, 4: Mode.IDLE}.get(state or 0, Mode.UNKNOWN)
    if state in (3, 5):
        mode = {3: Mode.DISCHARGING, 4: Mode.CHARGING}.get(base.integer('ChaSt') or 0, Mode.IDLE)
    reading = BatteryReading(
        time=now, newest=now, quality=Quality.OK, voltage=volts, current=current, power=volts * current, soc=soc,
        soh=soh, energy_full=full, energy=full * soc, max_charge_current=charge, max_discharge_current=discharge,
        max_charge_power=min(known([base.number('WMaxChaRte'), charge * volts]), default=nan),
        max_discharge_power=min(known([base.number('WMaxDisChaRte'), discharge * volts]), default=nan), mode=mode,
        contactor={1: Contactor.OPEN, 2: Contactor.OPEN, 3: Contactor.CLOSED, 5: Contactor.CLOSED}.get(
            state or 0, Contactor.UNKNOWN),
        alarms=event_alarms([*battery.bits('Evt1'), *battery.bits('Evt2'), *base.bits('Evt')], 'battery'))
    if state == 5:
        reading.limit_reasons.append('bms: SoC protection')
    if bank:
        _widen(reading, [bank.number('BMinCellVol')], [bank.number('BMaxCellVol')], [bank.number('BMinModTmp')],
               [bank.number('BMaxModTmp')])
        for n, string in enumerate(bank.elements()):
            add_alarms(reading, event_alarms([*string.bits('StrEvt1'), *string.bits('StrEvt2')], f'string {n}'))
            add_alarms(reading, connection_alarm(n, string.integer('StrConFail')))
    return reading
