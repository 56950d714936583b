"""Readings from the models of a SunSpec inverter. Pure."""

from __future__ import annotations

from math import copysign, isnan, nan

from bess_core.values import (
    Alarm,
    ConverterReading,
    ConverterState,
    Quality,
    Severity,
    smallest_known,
)
from bess_drivers.device import BadValue
from bess_drivers.sunspec.battery_parts import add_alarms, vendor_alarms
from bess_drivers.sunspec.codec import ModelValues, signed
from bess_drivers.sunspec.common import SIGNS
from bess_drivers.sunspec.inverter_params import POWER_SIGNS, REACTIVE_SIGNS, SunSpecInverterParams

#: 701 InvSt; St of 101 to 113 is one higher
STATES = {
    0: ConverterState.OFF,
    1: ConverterState.STANDBY,
    2: ConverterState.STARTING,
    3: ConverterState.RUNNING,
    4: ConverterState.RUNNING,
    5: ConverterState.OFF,
    6: ConverterState.FAULT,
    7: ConverterState.STANDBY,
    8: ConverterState.RUNNING,  # St 9 of some 103 (REFU): started
}
THROTTLED = 4
GRID_FORMING_BIT = 1  # 701 DERMode
WATTS = 1  # 704 WSetMod
VARS = 4  # 704 VarSetMod


def first_known(*values: float) -> float:
    """The first value that is not NaN; NaN if there is none."""
    return next((v for v in values if not isnan(v)), nan)


VENDOR_WORDS = ('EvtVnd1', 'EvtVnd2', 'EvtVnd3', 'EvtVnd4')


def _alarms(model: ModelValues, *points: str, who: str = 'inverter') -> tuple[Alarm, ...]:
    return tuple(
        Alarm(f'sunspec.{name}', Severity.ERROR, f'{who} reports {name.replace("_", " ")}')
        for point in points for name in model.bits(point)
    )


def _hottest(model: ModelValues, *names: str) -> float:
    known = [v for v in map(model.number, names) if not isnan(v)]
    return max(known, default=nan)


def _need_power(power: float, model: ModelValues) -> float:
    if isnan(power):
        raise BadValue(f'{model.model_id} W is not implemented or cannot be scaled')
    return power


def decode_der(
    measure: ModelValues,
    capacity: ModelValues | None,
    control: ModelValues | None,
    dc: ModelValues | None,
    params: SunSpecInverterParams,
) -> ConverterReading:
    """A reading from 701 and, where present, 702, 704 and 714. Raises `BadValue`."""
    sign, q_sign = POWER_SIGNS[params.power_sign], REACTIVE_SIGNS[params.reactive_sign]
    state = measure.integer('InvSt')
    if state is None:
        on = measure.integer('St')
        converter_state = (
            ConverterState.UNKNOWN
            if on is None
            else ConverterState.RUNNING
            if on
            else ConverterState.OFF
        )
    else:
        converter_state = STATES.get(state, ConverterState.UNKNOWN)
    v1, a1 = measure.number('VL1'), measure.number('AL1')
    reading = ConverterReading(
        quality=Quality.OK,
        state=converter_state,
        grid_forming=bool((measure.integer('DERMode') or 0) >> GRID_FORMING_BIT & 1),
        voltage=(
            first_known(v1, measure.number('LNV')),
            measure.number('VL2'),
            measure.number('VL3'),
        ),
        current=(abs(a1), abs(measure.number('AL2')), abs(measure.number('AL3'))),
        active_power=_need_power(signed(measure.number('W'), sign), measure),
        reactive_power=signed(measure.number('Var'), q_sign),
        apparent_power=abs(measure.number('VA')),
        frequency=measure.number('Hz'),
        temperature=_hottest(measure, 'TmpCab', 'TmpSnk', 'TmpTrns', 'TmpSw', 'TmpOt'),
        energy_import=measure.number('TotWhAbs'),
        energy_export=measure.number('TotWhInj'),
        alarms=_alarms(measure, 'Alrm'),
    )
    if isnan(a1) and measure.integer('ACType') == 0:
        reading.current = (abs(measure.number('A')), nan, nan)
    if params.power_sign == 'charge_positive':
        reading.energy_import, reading.energy_export = reading.energy_export, reading.energy_import
    if state == THROTTLED:
        reading.limit_reasons.append('inverter: throttled')
    if capacity is not None:
        _capacity(reading, capacity)
    if control is not None:
        _der_control(reading, control, capacity, sign, q_sign)
    if dc is not None:
        _dc(reading, dc, params)
    return reading


def _capacity(reading: ConverterReading, c: ModelValues) -> None:
    power = first_known(c.number('WMax'), c.number('WMaxRtg'))
    reading.max_charge_power = first_known(
        smallest_known(c.number('WChaRteMax'), c.number('WChaRteMaxRtg')), power
    )
    reading.max_discharge_power = smallest_known(
        c.number('WDisChaRteMax'), c.number('WDisChaRteMaxRtg'), power
    )
    reading.max_apparent_power = first_known(c.number('VAMax'), c.number('VAMaxRtg'))


def _der_control(
    reading: ConverterReading,
    control: ModelValues,
    capacity: ModelValues | None,
    sign: float,
    q_sign: float,
) -> None:
    if control.integer('WSetEna') == 1 and control.integer('WSetMod') in (WATTS, None):
        reading.setpoint = signed(control.number('WSet'), sign)
        remaining = control.number('WSetRvrtRem')
        reading.lease_remaining = 0.0 if isnan(remaining) else remaining
    if control.integer('VarSetEna') == 1 and control.integer('VarSetMod') in (VARS, None):
        reading.reactive_setpoint = signed(control.number('VarSet'), q_sign)
    limit = control.number('WMaxLimPct') / 100
    if control.integer('WMaxLimPctEna') == 1 and not isnan(limit) and capacity is not None:
        base = first_known(capacity.number('WMax'), capacity.number('WMaxRtg'))
        if limit * base < reading.max_discharge_power:
            reading.max_discharge_power = limit * base
            reading.limit_reasons.append(f'inverter: output limited to {100 * limit:g} % of WMax')


def enter_service(reading: ConverterReading, m: ModelValues) -> None:
    """Say where 703 keeps the device off the grid."""
    if m.integer('ES') == 0:
        reading.limit_reasons.append('inverter: not permitted to enter service (703 ES)')
    elif m.number('ESDlyRemTms') > 0:
        reading.limit_reasons.append(f'inverter: enters service in {m.number("ESDlyRemTms"):g} s')


def _dc(reading: ConverterReading, dc: ModelValues, params: SunSpecInverterParams) -> None:
    sign = SIGNS[params.dc_sign]
    ports = dc.elements()
    for n, port in enumerate(ports):
        add_alarms(reading, _alarms(port, 'DCAlrm', who=f'DC port {n}'))
    add_alarms(reading, (Alarm(f'sunspec.dc_port_{bit}_alarm', Severity.ERROR, f'DC port {bit} has an alarm')
                         for bit in range(32) if (dc.integer('PrtAlrms') or 0) >> bit & 1))
    # ports may sit at different voltages: only a single (storage) port gives one
    storage = [p for p in ports if p.integer('PrtTyp') == 1] or ports
    if len(storage) == 1:
        port = storage[0]
        reading.dc_voltage = port.number('DCV')
        reading.dc_current, reading.dc_power = (
            signed(port.number('DCA'), sign),
            signed(port.number('DCW'), sign),
        )
    else:
        reading.dc_current, reading.dc_power = (
            signed(dc.number('DCA'), sign),
            signed(dc.number('DCW'), sign),
        )


def decode_legacy(
    inverter: ModelValues,
    nameplate: ModelValues | None,
    settings: ModelValues | None,
    storage: ModelValues | None,
    params: SunSpecInverterParams,
) -> ConverterReading:
    """A reading from 101 to 113, with 120, 121 and 124 for the limits. Raises `BadValue`."""
    sign = POWER_SIGNS[params.power_sign]
    state = inverter.integer('St')
    power = _need_power(signed(inverter.number('W'), sign), inverter)
    dc_power = signed(inverter.number('DCW'), SIGNS[params.dc_sign])
    dc_current = inverter.number('DCA')
    if inverter.model_id < 111:  # uint16: a magnitude
        dc_current = dc_current * copysign(1.0, first_known(dc_power, power)) + 0.0
    else:
        dc_current = signed(dc_current, SIGNS[params.dc_sign])
    reading = ConverterReading(
        quality=Quality.OK,
        state=ConverterState.UNKNOWN
        if state is None
        else STATES.get(state - 1, ConverterState.UNKNOWN),
        voltage=(inverter.number('PhVphA'), inverter.number('PhVphB'), inverter.number('PhVphC')),
        current=(
            abs(inverter.number('AphA')),
            abs(inverter.number('AphB')),
            abs(inverter.number('AphC')),
        ),
        active_power=power,
        reactive_power=signed(inverter.number('VAr'), REACTIVE_SIGNS[params.reactive_sign]),
        apparent_power=abs(inverter.number('VA')),
        frequency=inverter.number('Hz'),
        dc_voltage=inverter.number('DCV'),
        dc_current=dc_current,
        dc_power=dc_power,
        temperature=_hottest(inverter, 'TmpCab', 'TmpSnk', 'TmpTrns', 'TmpOt'),
        energy_export=inverter.number('WH'),
        alarms=(*_alarms(inverter, 'Evt1', 'Evt2'), *vendor_alarms(inverter, 'inverter', *VENDOR_WORDS)),
    )
    if state == THROTTLED + 1:
        reading.limit_reasons.append('inverter: throttled')
    rating = settings.number('WMax') if settings else nan
    if nameplate:
        rating = first_known(rating, nameplate.number('WRtg'))
    charge = storage.number('WChaMax') if storage else nan
    reading.max_charge_power = first_known(
        charge, nameplate.number('MaxChaRte') if nameplate else nan, rating
    )
    # 124 counts OutWRte in % of a maximum that is in no model but the nameplate
    reading.max_discharge_power = smallest_known(
        first_known(nameplate.number('MaxDisChaRte') if nameplate else nan, charge), rating
    )
    reading.max_apparent_power = first_known(
        settings.number('VAMax') if settings else nan,
        nameplate.number('VARtg') if nameplate else nan,
    )
    return reading
