"""SunSpec meter: 201 to 204 (integers), 211 to 214 (floats), and 701, which measures the terminals of a DER."""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, isnan, nan
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Alarm, Identity, MeterReading, Quality, Severity
from bess_drivers.device import BadValue, Counters, Role
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.common import SunSpecParams, check_params
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink

METER_MODELS = (203, 204, 202, 201, 213, 214, 212, 211, 701)


@dataclass(frozen=True)
class SunSpecMeterParams(SunSpecParams):
    """Settings of one meter."""

    invert: bool = param(False, doc='a positive power of the meter is an export (the standard does not state the sign)')

    def __post_init__(self) -> None:
        check_params(self)


def events(m: ModelValues) -> tuple[Alarm, ...]:
    """Events of a meter (Evt) as named faults."""
    names = (name.removeprefix('m_event_') for name in m.bits('Evt'))
    return tuple(Alarm(f'sunspec.meter_{name}', Severity.WARNING, f'meter reports {name.replace("_", " ")}')
                 for name in names)


def decode(m: ModelValues, invert: bool, now: float) -> MeterReading:
    """A reading from the values of a meter model. Raises `BadValue` without a power.

    Phase powers that are not implemented stay unknown. Currents get the sign of their phase's power;
    the power factor is P/S, so that it has the sign of the power whatever unit the meter uses for it.
    """
    sign = -1.0 if invert else 1.0
    power = sign * m.number('W') + 0.0
    if isnan(power):
        raise BadValue(f'model {m.model_id}: W is not implemented')
    phases = tuple(sign * m.number(f'Wph{p}') + 0.0 for p in 'ABC')
    currents = tuple(copysign(abs(m.number(f'Aph{p}')), w) if not isnan(w) else m.number(f'Aph{p}')
                     for p, w in zip('ABC', phases, strict=True))
    apparent = abs(m.number('VA'))
    imported, exported = m.number('TotWhImp'), m.number('TotWhExp')
    if invert:
        imported, exported = exported, imported
    frequency = m.number('Hz')
    return MeterReading(
        time=now, quality=Quality.OK, voltage=(m.number('PhVphA'), m.number('PhVphB'), m.number('PhVphC')),
        current=(currents[0], currents[1], currents[2]), phase_power=(phases[0], phases[1], phases[2]),
        active_power=power, reactive_power=sign * m.number('VAR') + 0.0, apparent_power=apparent,
        power_factor=max(-1.0, min(1.0, power / apparent)) if apparent > 0 else nan,
        frequency=frequency if frequency else nan, energy_import=imported, energy_export=exported, alarms=events(m))


def decode_der(m: ModelValues, invert: bool, now: float) -> MeterReading:
    """A reading from 701, whose W is + = generation: here + = import, which for a DER is consumption.

    Raises `BadValue` without a power.
    """
    sign = 1.0 if invert else -1.0
    power = sign * m.number('W') + 0.0
    if isnan(power):
        raise BadValue('model 701: W is not implemented')
    phases = [sign * m.number(f'WL{n}') + 0.0 for n in (1, 2, 3)]
    amps = [abs(m.number(f'AL{n}')) for n in (1, 2, 3)]
    volts = [m.number(f'VL{n}') for n in (1, 2, 3)]
    if m.integer('ACType') == 0:
        phases[0] = power if isnan(phases[0]) else phases[0]
        amps[0] = abs(m.number('A')) if isnan(amps[0]) else amps[0]
        volts[0] = m.number('LNV') if isnan(volts[0]) else volts[0]
    amps = [a if isnan(w) else copysign(a, w) for a, w in zip(amps, phases, strict=True)]
    apparent, frequency = abs(m.number('VA')), m.number('Hz')
    imported, exported = m.number('TotWhAbs'), m.number('TotWhInj')
    if invert:
        imported, exported = exported, imported
    return MeterReading(
        time=now, quality=Quality.OK, voltage=(volts[0], volts[1], volts[2]), current=(amps[0], amps[1], amps[2]),
        phase_power=(phases[0], phases[1], phases[2]), active_power=power, reactive_power=sign * m.number('Var') + 0.0,
        apparent_power=apparent, power_factor=max(-1.0, min(1.0, power / apparent)) if apparent > 0 else nan,
        frequency=frequency if frequency else nan, energy_import=imported, energy_export=exported)


class SunSpecMeter:
    """A `MeterDevice`. Never writes, so its own link is read-only whatever `read_only` says."""

    Params: ClassVar[type] = SunSpecMeterParams
    role: ClassVar[Role] = Role.METER
    shares_link: ClassVar[bool] = True
    never_writes: ClassVar[bool] = True

    def __init__(self, params: SunSpecMeterParams, read_only: bool = False, *,
                 link: RegisterLink | None = None) -> None:
        self.params = params
        self._link: RegisterLink = link or ModbusLink(params.address, timeout_s=params.timeout_s, read_only=True)
        self._map = DeviceMap(self._link, params.unit, params.base, params.max_registers)

    @property
    def counters(self) -> Counters:
        """Traffic of the link."""
        return getattr(self._link, 'counters', Counters())

    def open(self) -> None:
        """See `Device`."""
        self._map.forget()
        self._link.open()

    def close(self) -> None:
        """See `Device`."""
        self._link.close()

    def _scan(self) -> int:
        if not self._map.known:
            self._map.scan()
        model = self._map.first_of(*METER_MODELS)
        if not model:
            raise BadValue(f'no SunSpec meter: {self._map.problem(203)}')
        return model

    def identify(self) -> Identity:
        """See `Device`. Raises `BadValue` if there is no meter model in the known layout."""
        self._scan()
        return self._map.identity()

    def read(self, now: float) -> MeterReading:
        """See `MeterDevice`. One request."""
        model = self._scan()
        if model == 701:
            return decode_der(self._map.read(701), self.params.invert, now)
        return decode(self._map.read(model), self.params.invert, now)
