"""SunSpec meter: models 201 to 204 (integers) and 211 to 214 (floats)."""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, isnan, nan
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, MeterReading, Quality
from bess_drivers.device import BadValue, Counters, Role
from bess_drivers.modbus.link import ModbusLink
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.common import SunSpecParams, check_params
from bess_drivers.sunspec.device_map import DeviceMap, RegisterLink

METER_MODELS = (203, 204, 202, 201, 213, 214, 212, 211)


@dataclass(frozen=True)
class SunSpecMeterParams(SunSpecParams):
    """Settings of one meter."""

    invert: bool = param(False, doc='a positive power of the meter is an export (the standard does not state the sign)')

    def __post_init__(self) -> None:
        check_params(self)


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
        return decode(self._map.read(self._scan()), self.params.invert, now)
